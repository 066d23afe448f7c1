"""Computed numbers in prose that people write.

A chapter's text stands in markdown cells, and its numbers come from a code cell before it::

    n = prose.say(deferred=f"{share:.0%}", saved=f"{saved:.0f} %")
    n

The text shows one as ``{eval}`n.deferred` ``. JupyterLab evaluates that with jupyterlab-myst; in
the pages, and in the notebooks that are downloaded from them, :func:`fill` puts the value in its
place. A statement that could turn names its claim, "(A4: holds)": :mod:`corea.book.claims` fails
when the verdict is another one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from corea.book.display import visible
from corea.metrics.intervals import Interval

MIME = "application/vnd.corea.said+json"
"""Of the hidden output that holds the values for the pages."""

_SHOWN = re.compile(r"\{eval\}`n\.(?P<name>[^`]*)`")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>$~|#])")


class Said(str):
    """A string that JupyterLab shows without quotation marks."""

    __slots__ = ()
    __repr__ = str.__str__


class Numbers:
    """Values by name, each as the text it is shown as."""

    def __init__(self, **values: str) -> None:
        """Keep each as text that holds no control characters."""
        self.__dict__.update({name: Said(visible(value)) for name, value in values.items()})

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {MIME: dict(self.__dict__), "text/html": ""}


def say(**values: str) -> Numbers:
    """Values that the prose shows, by name; text only, so that it was decided how each looks.

    Raises:
        TypeError: If a value is not a string.

    Example:
        >>> n = say(deferred=f"{0.314:.0%}")
        >>> n.deferred
        31%
    """
    for name, value in values.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}; expected it formatted as a string")
    return Numbers(**values)


def said(outputs: Mapping[str, Any]) -> dict[str, str]:
    """The values that a code cell of an executed notebook said."""
    values: dict[str, str] = {}
    for output in outputs.get("outputs", []):
        values |= output.get("data", {}).get(MIME, {})
    return values


def fill(text: str, values: Mapping[str, str]) -> str:
    r"""Markdown with its values in their places, whatever is markup in them escaped.

    Raises:
        KeyError: If nothing was said under a name.

    Example:
        >>> fill("It defers {eval}`n.deferred` of all.", {"deferred": "31 % [28, 34]"})
        'It defers 31 % \\[28, 34\\] of all.'
    """
    return _SHOWN.sub(lambda found: _MARKUP.sub(r"\\\1", values[found["name"]]), text)


def percent(share: float | Interval, digits: int = 0) -> str:
    r"""A share as prose shows it, with its interval where it has one.

    Example:
        >>> percent(0.314), percent(Interval(0.003, -0.009, 0.014), 1)
        ('31\xa0%', '0.3\xa0% [-0.9, 1.4]')
    """
    if isinstance(share, Interval):
        ends = f"[{100 * share.low:.{digits}f}, {100 * share.high:.{digits}f}]"
        return f"{percent(share.estimate, digits)} {ends}"
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"
