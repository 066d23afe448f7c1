"""Small result tables of full runs of the book, kept in the package.

A reader's own run is small. The chapters therefore show beside it what a full run gave, read from
``data/full_run/<run>/<table>.csv``; ``data/full_run/<run>/provenance.json`` says where those
numbers come from. :mod:`corea.workflow.publish` puts them there.

1. Chapters may be published at different times and commits, each with its own provenance.
2. The tables of one chapter come from one run: its provenance has the run's parameters and the
   SHA-256 of each table, and one that is not among them, or is not what it was, is refused by name.
3. So is evidence of another profile than :data:`PROFILE`, or of another :data:`SCHEMA`.
4. What the chapters gave of real language models is kept likewise, in ``data/real_models``, of the
   profile :data:`REAL_PROFILE`; and the runs themselves, with their records (:func:`real_run`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from corea.tasks.suites import MICROWORLD, Suite

FOLDER = Path(__file__).parents[1] / "data" / "full_run"
PROFILE = "laptop-full"
REAL = FOLDER.with_name("real_models")
REAL_PROFILE = "desk-full"
SCHEMA = 2
"""What the names in the tables mean: raised when one changes its meaning, so that evidence from
before is not taken for evidence of now."""

LARGEST = 512 * 1024  # bytes of a table
PROVENANCE = "provenance.json"


class EvidenceError(ValueError):
    """Committed tables that are not what they are taken for."""


def published(run: str, table: str, suite: Suite = MICROWORLD) -> pd.DataFrame | None:
    """A table of a run of the full run; None if it has none, or for a suite it was not made of.

    Raises:
        EvidenceError: If it is of another profile, schema or run than its provenance says.

    Example:
        >>> published("no_such_run", "table") is None
        True
    """
    path = FOLDER / run / f"{table}.csv"
    if suite is not MICROWORLD or not path.is_file():
        return None
    return _table(path, PROFILE)


def real_tables() -> dict[str, pd.DataFrame]:
    """Every published table of real language models, by chapter and name, ``"chapter/table"``.

    Those of runs that leave a model (:func:`real_run`) are no chapter's.

    Raises:
        EvidenceError: As :func:`published` does.
    """
    paths = sorted(p for p in REAL.glob("*/*.csv") if not p.with_name("model.json").exists())
    return {f"{path.parent.name}/{path.stem}": _table(path, REAL_PROFILE) for path in paths}


def real_run(run: str) -> Path:
    """The folder of a published run of real models, which :mod:`corea.runs` reads.

    Raises:
        EvidenceError: If it was not published, or a file is not what was.
    """
    folder = REAL / run
    if not folder.is_dir():
        raise EvidenceError(f"{run}: no such run of real models was published")
    for path in folder.iterdir():
        if path.name != PROVENANCE:
            _known(path, REAL_PROFILE)
    return folder


def real_facts(run: str) -> dict[str, str]:
    """Where the published tables of real models of a chapter come from; empty where none are."""
    return _facts(REAL / run, REAL_PROFILE)


def real_parameters(run: str) -> dict[str, float]:
    """The parameters that are numbers, with which a published run of real models was made."""
    return _parameters(REAL / run, REAL_PROFILE)


def _table(path: Path, profile: str) -> pd.DataFrame:
    _known(path, profile)
    return pd.read_csv(path)


def _known(path: Path, profile: str) -> None:
    """Refuse a file that is not of the run that is said to have made it, or was changed."""
    known = _provenance(path.parent, profile)["tables"]
    if path.name not in known:
        raise EvidenceError(
            f"{path} is not of the run in {PROVENANCE}, whose tables are {', '.join(known)}"
        )
    if digest(path) != known[path.name]:
        raise EvidenceError(f"{path} is not what was published: its SHA-256 is another one")


def facts(run: str, suite: Suite = MICROWORLD) -> dict[str, str]:
    """Where the published tables of a run come from, field to value; empty where none are.

    Example:
        >>> facts("no_such_run")
        {}
    """
    return _facts(FOLDER / run, PROFILE) if suite is MICROWORLD else {}


def parameters(run: str) -> dict[str, float]:
    """The parameters that are numbers, with which the published tables of a run were made.

    Example:
        >>> parameters("sft_or_grpo")["n_resamples"]
        100
    """
    return _parameters(FOLDER / run, PROFILE)


def tables() -> dict[str, list[str]]:
    """Names of the tables of each run that was published."""
    found: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*/*.csv")):
        found.setdefault(path.parent.name, []).append(path.stem)
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _facts(folder: Path, profile: str) -> dict[str, str]:
    """The fields of a run's provenance that are texts; none where nothing of it is published."""
    found = _provenance(folder, profile) if folder.is_dir() else {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _parameters(folder: Path, profile: str) -> dict[str, float]:
    found: dict[str, float] = _provenance(folder, profile)["parameters"]
    return found


def _provenance(folder: Path, profile: str) -> dict[str, Any]:
    path = folder / PROVENANCE
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path}: not readable: nobody knows what made these tables") from error
    for field, expected in (("profile", profile), ("schema", SCHEMA)):
        if content.get(field) != expected:
            raise EvidenceError(f"{path}: {field} is {content.get(field)!r}; expected {expected!r}")
    for field, expected in (("tables", "the SHA-256 of each"), ("parameters", "those of the run")):
        if not isinstance(content.get(field), dict):
            raise EvidenceError(f"{path}: lacks {field}; expected {expected}")
    return content
