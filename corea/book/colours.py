"""Colours of the book's figures: each is a pair, for a light page and for a dark one.

Two of a page differ by 19 or more in CIE L*a*b*, for who sees all colours and for who lacks a kind
of cones; each stands out from its page by 3 to 1 or more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PAGES = ("#ffffff", "#121212")
PAIRS: tuple[tuple[str, str], ...] = (
    ("#1565c8", "#58a0ff"),
    ("#d1600b", "#ff9d4d"),
    ("#05a1aa", "#c2f2f6"),
    ("#5b036f", "#7c58fa"),
    ("#353a00", "#fdc60e"),
    ("#fb0487", "#df4c77"),
    ("#831e42", "#e80337"),
    ("#0508ad", "#c552a9"),
    ("#c0754e", "#f6eea8"),
)
GREY = "#8a8a8a"
"""What is beside the point; the same on both pages."""
REFERENCE_GREY = "#737373"
STRONG_GREY = "#404040"

DARK: Mapping[str, str] = {
    "#000000": "#f2f2f2",
    "#262626": "#dcdcdc",  # seaborn's text
    "#cccccc": "#4c4c4c",  # its grid
    "#ffffff": "#121212",  # the page
    STRONG_GREY: "#c8c8c8",
    REFERENCE_GREY: "#9c9c9c",
    **dict(PAIRS),
}
"""Colours of a figure, and what they are on a dark page; others serve on both."""

_COLOUR = re.compile(rf"(?:{'|'.join(DARK)})(?![0-9a-f])")


def darkened(text: str) -> str:
    """Text of a figure (SVG, JSON) with the colours of a dark page.

    Example:
        >>> darkened("fill: #ffffff; stroke: #1565c8")
        'fill: #121212; stroke: #58a0ff'
    """
    return _COLOUR.sub(lambda colour: DARK[colour[0]], text)
