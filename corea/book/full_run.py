"""Small result tables of full runs of the book, kept in the package.

A reader's own run is small. The chapters therefore show beside it what a full run gave, read from
``data/full_run/<run>/<table>.csv``; ``data/full_run/<run>/provenance.json`` says where those
numbers come from. :mod:`corea.workflow.publish` puts them there.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from corea.tasks.suites import MICROWORLD, Suite

FOLDER = Path(__file__).parents[1] / "data" / "full_run"
LARGEST = 512 * 1024  # bytes of a table
PROVENANCE = "provenance.json"


def published(run: str, table: str, suite: Suite = MICROWORLD) -> pd.DataFrame | None:
    """A table of a run of the full run; None if it has none, or for a suite it was not made of.

    Example:
        >>> published("no_such_run", "table") is None
        True
    """
    path = FOLDER / run / f"{table}.csv"
    return pd.read_csv(path) if suite is MICROWORLD and path.is_file() else None


def facts(run: str, suite: Suite = MICROWORLD) -> dict[str, str]:
    """Where the published tables of a run come from, field to value; empty where none are.

    Example:
        >>> facts("no_such_run")
        {}
    """
    path = FOLDER / run / PROVENANCE
    if suite is not MICROWORLD or not path.is_file():
        return {}
    content: dict[str, str] = json.loads(path.read_text("utf-8"))
    return content
