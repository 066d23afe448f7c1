"""Colours of figures: told apart by everybody, and seen on a light page and on a dark one."""

from itertools import combinations

import numpy as np
import pytest

from corea.book.colours import DARK, GREY, PAGES, PAIRS, REFERENCE_GREY, STRONG_GREY, darkened

# How those see who lack a kind of cones, in linear sRGB: Machado, Oliveira and Fernandes (2009),
# severity 1.
EYES = {
    "all": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = XYZ.sum(axis=1)


def linear(colour):
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    part = XYZ @ rgb / WHITE
    f = np.where(part > 216 / 24389, np.cbrt(part), (24389 / 27 * part + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one, other):
    dark, light = sorted(float(XYZ[1] @ linear(colour)) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("theme", [0, 1])
def test_colours_are_told_apart(eyes, theme):
    seen = [lab(np.clip(EYES[eyes] @ linear(pair[theme]), 0, 1)) for pair in PAIRS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 19


@pytest.mark.parametrize(
    "colour", [*(light for light, _ in PAIRS), *(GREY, REFERENCE_GREY, STRONG_GREY)]
)
def test_colours_stand_out_from_their_page(colour):
    light, dark = PAGES
    assert contrast(colour, light) >= 3
    assert contrast(DARK.get(colour, colour), dark) >= 3


def test_every_colour_is_darkened_once():
    assert darkened(" ".join(DARK)) == " ".join(DARK.values())
    assert darkened("#1565c8a0 #123456") == "#1565c8a0 #123456"
