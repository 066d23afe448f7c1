r"""What real language models say of the claims: a reading beside the verdict, and no verdict.

The profile `desk-full` trains pretrained language models, and the chapters make the same tables of
them as of the model world. Their rows are read by the same bounds, with two differences:

1. A dataset stands in for the one of the model world that stands for the same one of the paper's
   (:mod:`corea.tasks.suites`). A row without such a dataset, or of a model that was not trained,
   is not there, and the reading is of those that are.
2. There is one training seed, and intervals are over questions. So a reading says what these very
   models do: it *agrees* where all intervals do, *contradicts* where one excludes the claim, and is
   *open* otherwise. It says nothing about what another seed would give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from corea.book import full_run
from corea.book.claims import (
    FAILS,
    HOLDS,
    Claim,
    Evidence,
    Outcome,
    combinations,
    interval_text,
    load,
)
from corea.metrics.intervals import Interval, verdict
from corea.tasks.suites import GENERATED, MICROWORLD, PAPERS

AGREES, CONTRADICTS, OPEN, NOT_ASKED = "agrees", "contradicts", "open", "not asked"
WORDS = (AGREES, CONTRADICTS, OPEN)
_WORD = {HOLDS: AGREES, FAILS: CONTRADICTS}


@dataclass(frozen=True)
class Reading:
    """What the rows of one claim say on real models.

    Attributes:
        word: One of :data:`WORDS`, or ``"not asked"`` where what the claim presupposes fails.
        rows: What each row says, in one of the words; those that contradict first.
        of: How many rows the claim has in the model world.
        reason: Why it is not asked, or empty.
    """

    word: str
    rows: tuple[Outcome, ...]
    of: int
    reason: str = ""

    def __str__(self) -> str:
        """The word, and the row that decides or why it is not asked."""
        if self.reason:
            return f"{self.word}: {self.reason}"
        return f"{self.word}: {interval_text(self.rows[0])} ({len(self.rows)} of {self.of} rows)"


def named_as_in_the_world(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose datasets have the names of those of the model world that they stand for.

    Their own names are in the column ``asked``.

    Example:
        >>> print(named_as_in_the_world(pd.DataFrame({"dataset": ["sums", "xstest", "x"]})))
          dataset   asked
        0  chains    sums
        1   lists  xstest
        2       x       x
    """
    if "dataset" not in table:
        return table
    names = {}
    for suite in (GENERATED, PAPERS):
        for kind in ("counterparts", "decision_counterparts"):
            ours = getattr(MICROWORLD, kind)
            for theirs, real in getattr(suite, kind).items():
                names[real] = ours[theirs]
    return table.assign(asked=table["dataset"]).replace({"dataset": names})


def committed() -> dict[str, pd.DataFrame]:
    """The committed tables of real models, ``"chapter/table"``, datasets named as in the world."""
    return {name: named_as_in_the_world(table) for name, table in full_run.real_tables().items()}


def read(claim: Claim, tables: Mapping[str, pd.DataFrame]) -> Reading | None:
    """What tables of real models say of a claim; None where they have none of its rows."""
    rows = [row for part in claim.evidence for row in _rows(part, tables)]
    if not rows:
        return None
    of = sum(len(_labels(part)) for part in claim.evidence)
    presupposed = [row for part in claim.requires for row in _rows(part, tables)]
    if any(row.verdict == CONTRADICTS for row in presupposed):
        return Reading(NOT_ASKED, tuple(presupposed), of, claim.otherwise)
    rank = {CONTRADICTS: 0, OPEN: 1, AGREES: 2}
    rows.sort(key=lambda row: rank[row.verdict])
    return Reading(rows[0].verdict, tuple(rows), of)


def readings(tables: Mapping[str, pd.DataFrame] | None = None) -> dict[str, Reading]:
    """The readings of all claims that real models say something about, by id."""
    tables = committed() if tables is None else tables
    found = {name: read(claim, tables) for name, claim in load().items()}
    return {name: reading for name, reading in found.items() if reading is not None}


def reads(found: Interval, part: Evidence) -> str:
    """One of :data:`WORDS`: what an interval says of the bound of some evidence."""
    return _WORD.get(verdict(found, **part.bound), OPEN)


def _labels(part: Evidence) -> list[dict[str, str]]:
    """The labels of each row that evidence names."""
    return [labels for selection in part.selections for labels in combinations(selection)]


def _rows(part: Evidence, tables: Mapping[str, pd.DataFrame]) -> Iterator[Outcome]:
    table = tables.get(part.table)
    wanted = _labels(part)
    if table is None or not {*wanted[0]} <= {*table.columns}:
        return
    cells = table[[*wanted[0]]].astype(str).fillna("")
    several = [name for name in wanted[0] if len({labels[name] for labels in wanted}) > 1]
    for labels in wanted:
        rows = table[(cells == pd.Series(labels)).all(axis=1)]
        if len(rows) > 1:
            raise full_run.EvidenceError(f"{part.table}: {len(rows)} rows have {labels}")
        if len(rows) == 1:
            row = rows.iloc[0].to_dict()
            found = Interval.of(row)
            named = labels | ({"dataset": row["asked"]} if row.get("asked") else {})
            shown = ", ".join(named[name] for name in several or [*named][:1])
            yield Outcome(shown, found, part.asks, reads(found, part))
