r"""The ledger: what both papers claim, and what decides each claim.

The claims are data, ``data/claims.toml``, which says at its top how one is written. :func:`decide`
is the one function that decides, on the committed full run, on a reader's run, and on what the
papers printed::

    python -m corea claims                                # on the committed tables
    python -m corea claims --tables build/laptop/tables   # on those of a run

1. A claim is about each row that it selects: it *holds* where all intervals agree with it, *fails*
   where one of them excludes it, and is *unsettled* otherwise. Each interval has its own level of
   95 %, so a claim about many rows fails by chance more often than one about few.
2. One training seed says nothing about training: such a claim is unsettled, whatever its interval.
   So is one whose interval has no width, for what did not vary in a few seeds may vary in more.
3. Where a claim presupposes something (``requires``) that fails here, it *cannot be tested here*;
   where that is unsettled, so is the claim.
4. What the world puts in (``by_construction``) is decided as all else, and marked.
5. No verdict is stored. Text may rely on one by naming it, "(A4: holds)": :func:`unfounded` finds
   the sentences whose verdict is another one by now.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from corea.book import full_run
from corea.book.display import Html, as_html, visible
from corea.book.printed_claims import printed_claims
from corea.metrics.intervals import FEW, LEVEL, Interval, verdict

FILE = Path(__file__).parents[1] / "data" / "claims.toml"

HOLDS, FAILS, UNSETTLED, CANNOT = "holds", "fails", "unsettled", "cannot be tested here"
VERDICTS = (HOLDS, FAILS, UNSETTLED, CANNOT)
AWAITING = "no evidence is committed yet"

MOST_SEEDS = 1000
"""More seeds than this are not counted: nobody will train them."""

PRINTED = "printed/claims"
"""The table of :func:`corea.book.printed_claims.printed_claims`, exact but for rounding."""


def _places(sections: str, appendices: str, n_tables: int, n_figures: int) -> frozenset[str]:
    counted = {"section": sections, "appendix": appendices}
    named = [f"{kind} {part}" for kind, parts in counted.items() for part in parts.split()]
    named += [f"Table {n + 1}" for n in range(n_tables)]
    named += [f"Figure {n + 1}" for n in range(n_figures)]
    return frozenset(["abstract", "limitations", *named])


PLACES: Mapping[str, frozenset[str]] = {
    "A": _places(
        "1 2.1 2.2 3.1 3.2 4.1 4.2 4.3 4.4 5.1 5.2 5.3 5.4.1 5.4.2 5.4.3 6",
        "A.1 A.2 B C D E F G",
        15,
        9,
    ),
    "B": _places("1 2 3.1 3.2 3.3 4.1 4.2 5 5.1 6 7", "A B.1 B.2 B.3 B.4 B.5 C", 9, 4),
}
"""The places that each paper has."""

_COLUMNS = ("value", "low", "high", "n_seeds")
RELIED = re.compile(r"\((?P<claim>[ABT]\d+):\s+(?P<verdict>[^)]+)\)")
"""Where text relies on the verdict of a claim."""

Tables = Mapping[str, pd.DataFrame]
Text = Annotated[str, Field(min_length=1)]
Bound = dict[str, float]
Rows = Annotated[dict[str, str | Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]


class ClaimError(ValueError):
    """A claim that is not well formed, or relies on a verdict that is another one."""


class MissingError(ClaimError):
    """Evidence that is not there: a table, a column, an arm or a row."""


# --- what a claim is --------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Evidence(_Strict):
    """Rows of one table, and what must be true of each.

    Attributes:
        table: ``"chapter/table"``, with the columns ``value, low, high, n_seeds``.
        rows: Column to the value, or values, of the rows, one row for each combination (empty: a
            cell that is blank); or several such tables, for what goes together in pairs.
        at_least: Lower bound of the value.
        at_most: Upper bound.
        within: Equivalence: the value is so close to 0.
        why: Where the bound comes from; may be empty where it is 0.
    """

    table: Annotated[str, Field(pattern=r"^\w+/\w+$")]
    rows: Rows | Annotated[list[Rows], Field(min_length=1)]
    at_least: float | None = None
    at_most: float | None = None
    within: Annotated[float, Field(gt=0)] | None = None
    why: str = ""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if len(self.bound) != 1:
            raise ValueError("expected one of at_least, at_most and within")
        if not self.why and {*self.bound.values()} != {0.0}:
            raise ValueError("why is empty; expected the reason of a bound that is not 0")
        return self

    @property
    def bound(self) -> Bound:
        """The one bound, as :func:`corea.metrics.intervals.verdict` takes it."""
        given = {"at_least": self.at_least, "at_most": self.at_most, "within": self.within}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def selections(self) -> Sequence[Mapping[str, str | list[str]]]:
        """The tables of columns and values in ``rows``."""
        return self.rows if isinstance(self.rows, list) else [self.rows]

    @property
    def asks(self) -> str:
        """The bound in words."""
        ((side, bound),) = self.bound.items()
        return {"within": f"within ±{bound:g}"}.get(side, f"{side.replace('_', ' ')} {bound:g}")

    def __str__(self) -> str:
        """Table, what all rows have in common, the bound and its reason."""
        first, *rest = self.selections
        common = [
            str(value)
            for name, value in first.items()
            if isinstance(value, str) and all(other.get(name) == value for other in rest)
        ]
        bound = f"{self.asks} ({self.why})" if self.why else self.asks
        return f"{self.table}: {', '.join([*common, bound])}"


class Claim(_Strict):
    """One claim of a paper.

    Attributes:
        id: Of paper A (A1, ...) or B, or about what a paper printed (T1, ...).
        paper: Whose claim it is.
        place: Where it stands, one or more of :data:`PLACES`.
        sentence: The claim in our words.
        chapter: The notebook that shows it.
        evidence: What decides; empty where it cannot be tested.
        arms: Runs of a profile without their seeds, all of which the evidence is made of.
        by_construction: Why the world makes it so; empty where it does not.
        requires: What it presupposes, and
        otherwise: what is to be said where that fails.
        cannot_test: Why nothing here can test it.
        awaits: Whether its evidence is not committed yet.
    """

    id: Annotated[str, Field(pattern=r"^[ABT]\d+$")]
    paper: Literal["A", "B"]
    place: Annotated[list[str], Field(min_length=1)]
    sentence: Text
    chapter: Text
    evidence: list[Evidence] = []
    arms: list[Text] = []
    by_construction: str = ""
    requires: list[Evidence] = []
    otherwise: str = ""
    cannot_test: str = ""
    awaits: bool = False

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.id[0] in PLACES and self.id[0] != self.paper:
            raise ValueError(f"paper is {self.paper!r}; expected that of the id")
        if unknown := [place for place in self.place if place not in PLACES[self.paper]]:
            raise ValueError(f"paper {self.paper} has no {', '.join(unknown)}")
        if bool(self.evidence) == bool(self.cannot_test):
            raise ValueError("expected evidence, or why it cannot be tested: one of the two")
        if bool(self.requires) != bool(self.otherwise):
            raise ValueError("requires and otherwise belong together")
        measured = [part for part in self.evidence if part.table != PRINTED]
        if bool(measured) != bool(self.arms):
            raise ValueError("expected arms where evidence is measured, and only there")
        return self

    @property
    def chapters(self) -> list[str]:
        """The chapters whose tables decide it, in order of appearance."""
        parts = (part.table for part in (*self.evidence, *self.requires) if part.table != PRINTED)
        return list(dict.fromkeys(table.partition("/")[0] for table in parts))


@cache
def load(path: Path = FILE) -> Mapping[str, Claim]:
    """All claims by id; a ClaimError names file, claim and field.

    Example:
        >>> load()["A4"].paper
        'A'
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ClaimError(f"{path}: not readable as TOML: {visible(error)}") from error
    claims, wrong = {}, []
    for name, fields in content.items():
        given = fields if isinstance(fields, dict) else {}
        try:
            claims[name] = Claim.model_validate({"id": name} | given)
        except ValidationError as error:
            for found in error.errors():
                where = ".".join(map(str, found["loc"])) or "the claim"
                wrong.append(f"{path}: {name}: {visible(where)}: {visible(found['msg'])}")
    if wrong:
        raise ClaimError("\n".join(wrong))
    return claims


# --- what decides it --------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one row says of a claim.

    Attributes:
        label: The labels that tell it from the other rows of its claim.
        found: The interval.
        asks: The bound, in words.
        verdict: One of :data:`VERDICTS` but the last.
        reason: Why it is unsettled where the interval does not say so.
        needed: Seeds that would settle it (:func:`seeds_needed`), None if that is not known.
        against: Whether the estimate lies on the other side of the bound.
    """

    label: str
    found: Interval
    asks: str
    verdict: str
    reason: str = ""
    needed: int | None = None
    against: bool = False


@dataclass(frozen=True)
class Decision:
    """A claim, its verdict, and the rows behind it, those that decide first.

    Attributes:
        claim: The claim.
        verdict: One of :data:`VERDICTS`.
        reason: Why it is unsettled or cannot be tested, where the intervals do not say so.
        rows: What each row says; of the precondition where that decided.
        awaiting: Whether it is unsettled because no evidence is committed.
    """

    claim: Claim
    verdict: str
    reason: str = ""
    rows: tuple[Outcome, ...] = ()
    awaiting: bool = False

    @property
    def n_seeds(self) -> int:
        """Training seeds of the row that decides; 0 where nothing was trained.

        That is the first row. A claim that holds is decided by all: the fewest of them.
        """
        deciding = self.rows if self.verdict == HOLDS else self.rows[:1]
        return min((row.found.n_seeds for row in deciding), default=0)

    @property
    def few(self) -> bool:
        """Whether so few seeds that the interval is wide and hides a skew."""
        return 0 < self.n_seeds <= FEW

    @property
    def needed(self) -> int | None:
        """Seeds that would settle an unsettled claim; None if that is not known.

        The first row whose estimate contradicts settles it, and otherwise the last of all.
        """
        if self.verdict != UNSETTLED:
            return None
        left = [row for row in self.rows if row.verdict == UNSETTLED]
        against = [row.needed for row in left if row.against and row.needed is not None]
        known = [row.needed for row in left if row.needed is not None]
        if against:
            return min(against)
        return max(known) if known and len(known) == len(left) else None


def decide(claim: Claim, tables: Tables) -> Decision:
    """The verdict of a claim on tables by name, ``"chapter/table"``; points 1 to 4 of this module.

    Raises:
        MissingError: If a table, a column, an arm or a row that it names is not there.

    Example:
        >>> table = pd.DataFrame({"system": ["L1"], "value": -0.2, "low": -0.3, "high": -0.1,
        ...     "n_seeds": 5})
        >>> lower = Claim(id="A1", paper="A", place=["abstract"], sentence="L1 lowers the ECE.",
        ...     chapter="rewards", arms=["train_l1"], evidence=[
        ...     Evidence(table="rewards/gaps", rows={"system": "L1"}, at_most=0)])
        >>> decide(lower, {"rewards/gaps": table}).verdict
        'holds'
        >>> decide(lower, {"rewards/gaps": table.assign(n_seeds=1)}).reason
        'one training seed'
    """
    if claim.cannot_test:
        return Decision(claim, CANNOT, claim.cannot_test)
    rows = _outcomes(claim, claim.evidence, tables)
    if required := _outcomes(claim, claim.requires, tables):
        first = _together(required)
        if first == FAILS:
            return Decision(claim, CANNOT, claim.otherwise, required)
        if first == UNSETTLED:
            reason = f"what it presupposes is unsettled ({_reason(required)})"
            return Decision(claim, UNSETTLED, reason.replace(" ()", ""), required)
    return Decision(claim, _together(rows), _reason(rows), rows)


def _together(rows: Sequence[Outcome]) -> str:
    verdicts = {row.verdict for row in rows}
    return next((each for each in (FAILS, UNSETTLED) if each in verdicts), HOLDS)


def _reason(rows: Sequence[Outcome]) -> str:
    return next((row.reason for row in rows if row.verdict == UNSETTLED and row.reason), "")


def _outcomes(claim: Claim, evidence: Sequence[Evidence], tables: Tables) -> tuple[Outcome, ...]:
    found = [
        _outcome(part, label, interval)
        for part in evidence
        for label, interval in _selected(claim, part, tables)
    ]
    order = {FAILS: 0, UNSETTLED: 1, HOLDS: 2}

    def rank(row: Outcome) -> tuple[int, bool, int]:  # an open row that contradicts comes first
        needed = row.needed or 0
        return order[row.verdict], not row.against, needed if row.against else -needed

    return tuple(sorted(found, key=rank))


def _outcome(part: Evidence, label: str, found: Interval) -> Outcome:
    def unsettled(reason: str) -> Outcome:
        return Outcome(label, found, part.asks, UNSETTLED, reason)

    if part.table != PRINTED and found.n_seeds == 1:
        return unsettled("one training seed")
    if np.isnan(found.estimate) or np.isnan(found.low) or np.isnan(found.high):
        return unsettled("no interval is defined")
    if part.table != PRINTED:
        if not found.n_seeds:
            return unsettled("no number of seeds")
        if found.low == found.high:
            return unsettled(f"{found.n_seeds} seeds do not differ at all")
    settled = verdict(found, **part.bound)
    if settled != UNSETTLED:
        return Outcome(label, found, part.asks, settled)
    point = Interval(found.estimate, found.estimate, found.estimate)
    against = verdict(point, **part.bound) == FAILS
    needed = seeds_needed(found, **part.bound)
    return Outcome(label, found, part.asks, settled, "", needed, against)


def combinations(selection: Mapping[str, str | list[str]]) -> list[dict[str, str]]:
    """The labels of each row that a table of columns and values names.

    Example:
        >>> combinations({"system": ["L1", "L2"], "dataset": "chains"})
        [{'system': 'L1', 'dataset': 'chains'}, {'system': 'L2', 'dataset': 'chains'}]
    """
    values = [[value] if isinstance(value, str) else value for value in selection.values()]
    return [dict(zip(selection, chosen, strict=True)) for chosen in product(*values)]


def _selected(claim: Claim, part: Evidence, tables: Tables) -> Iterator[tuple[str, Interval]]:
    """Each row that evidence names, with the labels that tell it from the others."""
    where = f"{claim.id}: {part.table}"
    if part.table not in tables:
        raise MissingError(f"{where}: there is no such table")
    table = tables[part.table]
    for selection in part.selections:
        every = combinations(selection)
        wanted = {name: [*dict.fromkeys(row[name] for row in every)] for name in selection}
        if lacking := [name for name in (*wanted, *_COLUMNS) if name not in table]:
            raise MissingError(f"{where} lacks the column(s) {', '.join(lacking)}")
        cells = table[[*wanted]].astype(str).fillna("")
        for name, values in wanted.items():
            if absent := [value for value in values if value not in set(cells[name])]:
                raise MissingError(f"{where} has no {name} {', '.join(map(repr, absent))}")
        several = [name for name, values in wanted.items() if len(values) > 1]
        for labels in every:
            shown = [labels[name] for name in (several or [*wanted][:1])]
            rows = table[(cells == pd.Series(labels)).all(axis=1)]
            yield ", ".join(shown), _only(where, rows, labels)


def _only(where: str, rows: pd.DataFrame, labels: Mapping[str, str]) -> Interval:
    """The interval of the one row that has some labels."""
    if len(rows) != 1:
        words = ", ".join(f"{name} {value!r}" for name, value in labels.items())
        raise MissingError(f"{where} has {len(rows)} rows with {words}; expected one")
    try:
        return Interval.of(rows.iloc[0].to_dict())
    except ValueError as error:
        raise MissingError(f"{where}: {error}; expected numbers") from error


def seeds_needed(found: Interval, **bound: float) -> int:
    r"""How many training seeds would settle a claim if its estimate stayed where it is.

    The half width of a mean over S seeds is :math:`h = t_{S-1}\, \sigma / \sqrt S`, so the spread
    seen is :math:`\sigma = h \sqrt S / t_{S-1}`. The interval leaves the bound out as soon as its
    half width is below the distance d of the estimate from the bound, so what is needed is the
    smallest N with

    .. math:: \frac{t_{N-1}}{\sqrt N} \le \frac{d}{h} \cdot \frac{t_{S-1}}{\sqrt S}.

    The distance from equivalence within m is :math:`\bigl||e| - m\bigr|`; h is the longer side of
    the interval. All of its width is put down to seeds: questions that are too few stay too few,
    however many seeds there are. And the estimate moves: with N seeds the chances are even.

    Args:
        found: An interval over two seeds or more.
        bound: One of ``at_least``, ``at_most`` and ``within``.

    Returns:
        The number, from 2; :data:`MOST_SEEDS` + 1 where it is larger than that.

    Example:
        An estimate of 1 and a half width of 2 over three seeds; with five it is 2 x 2.78 / 4.30 x
        (3 / 5) ** 0.5 = 1.00:

        >>> seeds_needed(Interval(1, -1, 3, n_seeds=3), at_least=0)
        5
    """
    from scipy.special import stdtrit

    ((side, limit),) = bound.items()
    estimate = abs(found.estimate) if side == "within" else found.estimate
    distance = abs(estimate - limit)
    half = max(found.high - found.estimate, found.estimate - found.low)
    share = (1 + LEVEL) / 2
    seeds = np.arange(2, MOST_SEEDS + 1)
    seen = stdtrit(found.n_seeds - 1, share) / np.sqrt(found.n_seeds)
    enough = stdtrit(seeds - 1, share) / np.sqrt(seeds) * half <= distance * seen
    return int(seeds[enough.argmax()]) if enough.any() else MOST_SEEDS + 1


# --- on which tables --------------------------------------------------------------------------


def committed() -> dict[str, pd.DataFrame]:
    """All tables of the committed full run, and what the papers printed."""
    found = {PRINTED: printed_claims()}
    for chapter, names in full_run.tables().items():
        for name in names:
            table = full_run.published(chapter, name)
            if table is not None:
                found[f"{chapter}/{name}"] = table
    return found


def evidence_facts() -> pd.DataFrame:
    """Where each chapter's committed tables come from, a row a chapter; none if none are."""
    rows = [{"chapter": chapter} | full_run.facts(chapter) for chapter in full_run.tables()]
    return pd.DataFrame(rows, columns=["chapter", "commit", "seed", "date", "device", "wall time"])


def of_run(folders: Iterable[str | Path]) -> dict[str, pd.DataFrame]:
    """The tables in folders of a run, each with a chapter's name, and what the papers printed."""
    found = {PRINTED: printed_claims()}
    for folder in map(Path, folders):
        for path in sorted(folder.glob("*.csv")):
            try:
                found[f"{folder.name}/{path.stem}"] = pd.read_csv(path)
            except ValueError as error:
                raise ClaimError(f"{path}: not readable as CSV: {visible(error)}") from error
    return found


def chapters() -> list[str]:
    """Chapters whose tables decide a claim."""
    return sorted({chapter for claim in load().values() for chapter in claim.chapters})


def decide_committed(tables: Tables | None = None) -> dict[str, Decision]:
    """Every claim on the committed tables.

    A claim that awaits its evidence is unsettled until the evidence is there.

    Raises:
        ClaimError: If evidence is missing that is not awaited, or is there and still said to be.
    """
    tables = committed() if tables is None else tables
    found, wrong = {}, []
    for name, claim in load().items():
        try:
            found[name] = decide(claim, tables)
        except MissingError as error:
            if not claim.awaits:
                wrong.append(str(error))
                continue
            missing = str(error).removeprefix(f"{name}: ")
            reason = f"{AWAITING} ({missing})"
            found[name] = Decision(claim, UNSETTLED, reason, awaiting=True)
        else:
            if claim.awaits:
                wrong.append(f"{name}: awaits evidence that is there: remove `awaits`")
    if wrong:
        raise ClaimError("\n".join(wrong))
    return found


def decide_run(tables: Tables) -> tuple[dict[str, Decision], dict[str, str]]:
    """Every claim that the tables of a run can decide, and why they cannot decide the others."""
    found, missing = {}, {}
    for name, claim in load().items():
        try:
            found[name] = decide(claim, tables)
        except MissingError as error:
            missing[name] = str(error)
    return found, missing


@cache
def _verdicts() -> Mapping[str, str]:
    return {name: decision.verdict for name, decision in decide_committed().items()}


# --- in words ---------------------------------------------------------------------------------


def summary(decisions: Iterable[Decision]) -> dict[str, int]:
    """How many claims there are, can be tested here, are settled, and await evidence."""
    made = [*decisions]
    count = {word: sum(d.verdict == word for d in made) for word in VERDICTS}
    return {
        "claims": len(made),
        "testable": len(made) - count[CANNOT],
        "settled": count[HOLDS] + count[FAILS],
        **count,
        "awaiting": sum(decision.awaiting for decision in made),
    }


def describe(what: str, decisions: Iterable[Decision]) -> str:
    """The numbers of :func:`summary` in a sentence."""
    n = summary(decisions)
    open_ones = f"{n[UNSETTLED]} are unsettled"
    if n["awaiting"]:
        open_ones += f"; {n['awaiting']} of them have no committed evidence yet"
    return (
        f"{what}: {n['claims']} claims, of which {n['testable']} can be tested here. "
        f"{n['settled']} of these are settled: {n[HOLDS]} hold and {n[FAILS]} fail. {open_ones}."
    )


def interval_text(row: Outcome) -> str:
    """An interval in three significant digits, behind its labels; one run may have none."""
    low, high = row.found.low, row.found.high
    ends = "(no interval)" if np.isnan(low) else f"[{low:.3g}, {high:.3g}]"
    return f"{row.label}: {row.found.estimate:.3g} {ends}, {row.asks}"


def seeds_text(decision: Decision) -> str:
    """How many seeds the row that decides has, and how many it would need."""
    if not decision.n_seeds:
        return ""
    few = " (few)" if decision.few else ""
    if decision.needed is None:
        return f"{decision.n_seeds}{few}"
    many = f"more than {MOST_SEEDS:,}" if decision.needed > MOST_SEEDS else f"{decision.needed}"
    return f"{decision.n_seeds}{few}; needed {many}"


def line(decision: Decision) -> str:
    """A decision in one line: id, verdict, what decided, seeds."""
    claim = decision.claim
    verdict_text = decision.verdict + (" by construction" if claim.by_construction else "")
    parts = [f"{claim.id:4} {verdict_text}"]
    if decision.rows:
        of = f" ({len(decision.rows)} rows)" if len(decision.rows) > 1 else ""
        parts.append(interval_text(decision.rows[0]) + of)
    if seeds := seeds_text(decision):
        parts.append(f"seeds {seeds}")
    if decision.reason:
        parts.append(decision.reason)
    return " | ".join(parts)


def replicated(decision: Decision, run: Decision) -> tuple[int, int]:
    """How many values of a run lie inside the committed intervals, and how many both have."""
    there = {(row.label, row.asks): row.found for row in decision.rows}
    pairs = [
        (there[row.label, row.asks], row.found.estimate)
        for row in run.rows
        if (row.label, row.asks) in there
    ]
    return sum(found.low <= value <= found.high for found, value in pairs), len(pairs)


def replication(decisions: Mapping[str, Decision], run: Mapping[str, Decision]) -> pd.DataFrame:
    """What a run says of the claims that it has the tables for, beside the committed verdicts."""
    columns = ["claim", "full run", "your run", "values of both", "inside"]
    rows = []
    for name, here in run.items():
        inside, n = replicated(decisions[name], here)
        reason = f" ({here.reason})" if here.reason else ""
        rows.append([name, decisions[name].verdict, here.verdict + reason, n, inside])
    return pd.DataFrame(rows, columns=columns)


def _json(decision: Decision) -> dict[str, Any]:
    """A decision for other programs; numbers that are not finite are null."""

    def number(value: float) -> float | None:
        return value if np.isfinite(value) else None

    rows = [
        {
            "label": row.label,
            "value": number(row.found.estimate),
            "low": number(row.found.low),
            "high": number(row.found.high),
            "n_seeds": row.found.n_seeds,
            "asks": row.asks,
            "verdict": row.verdict,
            "seeds_needed": row.needed,
        }
        for row in decision.rows
    ]
    claim = decision.claim
    return {
        "id": claim.id,
        "paper": claim.paper,
        "place": claim.place,
        "claim": claim.sentence,
        "chapter": claim.chapter,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "by_construction": claim.by_construction,
        "awaiting": decision.awaiting,
        "n_seeds": decision.n_seeds,
        "seeds_needed": decision.needed,
        "rows": rows,
    }


def unfounded(text: str, where: str) -> list[str]:
    """Sentences of a text that name a claim, "(A4: holds)", with another verdict than it has.

    Example:
        >>> unfounded("Table 4 has shares (T11: fails).", "a.md")
        []
        >>> print(*unfounded("Table 4 has shares (T11: holds).", "a.md"))
        a.md: T11 fails, but it says: Table 4 has shares (T11: holds).
    """
    told = []
    for found in RELIED.finditer(text):
        name, said = found["claim"], " ".join(found["verdict"].split())
        start = max(text.rfind(mark, 0, found.start()) for mark in (". ", "\n\n", "? "))
        end = text.find(".", found.end())
        sentence = " ".join(text[start + 1 : end + 1 if end >= 0 else None].split())
        now = _verdicts().get(name)
        if now is None:
            told.append(f"{where}: there is no claim {name}, but it says: {sentence}")
        elif said != now:
            told.append(f"{where}: {name} {_as_verb(now)}, but it says: {sentence}")
    return told


def _as_verb(word: str) -> str:
    return f"is {word}" if word == UNSETTLED else word


def texts(root: Path = Path()) -> Iterator[tuple[str, str]]:
    """Name and text of every page of the book, notebooks cell by cell."""
    for path in sorted([*root.glob("book/*.md"), root / "README.md"]):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path.read_text("utf-8")
    for path in sorted(root.glob("notebooks/*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"], 1):
            where = f"{path.relative_to(root).as_posix()}, cell {number}"
            yield where, "".join(cell["source"])


# --- the page ---------------------------------------------------------------------------------

_STYLE = """
.corea-claims fieldset {border: 0; margin: 0.5rem 0; padding: 0}
.corea-claims legend {font-size: 1rem; margin: 0}
.corea-claims fieldset label {margin-right: 1rem; white-space: nowrap}
.corea-claims td {vertical-align: top}
.corea-claims td:first-child {white-space: nowrap}
.corea-claims td:nth-child(2) {min-width: 13rem}
.corea-claims td:nth-child(4) {min-width: 9rem}
.corea-claims td small {overflow-wrap: anywhere}
.corea-claims td p {margin: 0 0 0.3rem}
@media print {
  .corea-claims fieldset {display: none}
  .corea-claims details::details-content {content-visibility: visible; block-size: auto}
}
"""


def page(
    decisions: Mapping[str, Decision], caption: str, real: Mapping[str, object] | None = None
) -> Html:
    """All claims as a table that can be filtered without a script.

    A box for each paper and verdict hides its rows where it is not ticked; on paper all are there.
    ``real`` are the readings of real models by claim, as texts (:mod:`corea.book.real_claims`);
    there is no column of them where there are none.
    """
    kinds = {
        "of": {"A": "paper A", "B": "paper B", "T": "what the papers printed"},
        "is": {word.split()[0]: word for word in VERDICTS},
    }
    boxes, hide = [], []
    for kind, legend in (("of", "Claims of"), ("is", "that")):
        ticks = []
        for key, words in kinds[kind].items():
            name = f"corea-claims-{kind}-{key}"
            ticks.append(
                f'<label><input type="checkbox" id="{name}" checked> {as_html(words)}</label>'
            )
            hide.append(
                f".corea-claims:has(#{name}:not(:checked)) tr[data-{kind}={key}] {{display: none}}"
            )
        boxes.append(f"<fieldset><legend>{as_html(legend)}</legend>{''.join(ticks)}</fieldset>")
    headings = ["id", "claim", "verdict", "interval", "seeds", "chapter"]
    if real:
        headings.insert(-1, "real models")
    header = "".join(f"<th>{as_html(heading)}</th>" for heading in headings)
    rows = "\n".join(
        _row(one, str(real.get(name, "")) if real else None) for name, one in decisions.items()
    )
    style = f"{_STYLE}@media screen {{{' '.join(hide)}}}"
    return Html(
        f'<div class="corea-claims"><style>{style}</style>{"".join(boxes)}'
        f'<div class="corea-scroll"><table class="corea-table"><caption>{as_html(caption)}'
        f"</caption>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div></div>"
    )


def _row(decision: Decision, real: str | None) -> str:
    claim = decision.claim
    sentence = f"<p>{as_html(claim.sentence)}</p>"
    sentence += f"<small>{as_html(f'paper {claim.paper}, ' + ', '.join(claim.place))}</small>"
    verdict_cell = f"<p><strong>{as_html(decision.verdict)}</strong></p>"
    reason = AWAITING if decision.awaiting else decision.reason
    notes = [reason] if reason else []
    if claim.by_construction:
        notes.append(f"by construction: {claim.by_construction}")
    verdict_cell += "".join(f"<p><small>{as_html(note)}</small></p>" for note in notes)
    used = [str(part).removeprefix(f"{claim.chapter}/") for part in claim.evidence]
    used_text = "".join(f"<p><small>{as_html(part)}</small></p>" for part in used)
    cells = [
        as_html(claim.id),
        sentence,
        verdict_cell,
        _intervals(decision),
        as_html(seeds_text(decision)),
        *([] if real is None else [f"<small>{as_html(real)}</small>"]),
        f'<p><a href="{as_html(claim.chapter)}.html">{as_html(claim.chapter)}</a></p>{used_text}',
    ]
    filters = f'data-of="{claim.id[0]}" data-is="{decision.verdict.split()[0]}"'
    return f"<tr id={claim.id} {filters}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _intervals(decision: Decision) -> str:
    """The rows of a claim, of many only the first."""
    lines = [f"{interval_text(row)}: {row.verdict}" for row in decision.rows]
    if not lines:
        return ""
    first = f"<small>{as_html(lines[0])}</small>"
    if len(lines) == 1:
        return first
    rest = "<br>".join(as_html(text) for text in lines[1:])
    return (
        f"{first}<details><summary>{len(lines) - 1} more</summary><small>{rest}</small></details>"
    )


# --- the command ------------------------------------------------------------------------------


def show(tables: Path | None = None, paper: str = "", *, as_json: bool = False) -> int:
    """Print every verdict; 1 if evidence is missing or a sentence is unfounded.

    Args:
        tables: Folder of a run's tables to decide on; the committed ones if None.
        paper: Only claims of this paper.
        as_json: Whether another program reads it.
    """
    if paper not in ("", *PLACES):
        raise ValueError(f"paper is {paper!r}; expected one of {', '.join(sorted(PLACES))}")
    wrong: list[str] = []
    try:
        if tables:
            decisions, missing = decide_run(of_run([tables / chapter for chapter in chapters()]))
            wrong = [*missing.values()]
        else:
            decisions = decide_committed()
            wrong = [told for where, text in texts() for told in unfounded(text, where)]
    except (ClaimError, full_run.EvidenceError) as error:
        print(visible_lines(error), file=sys.stderr)
        return 1
    chosen = [d for d in decisions.values() if paper in ("", d.claim.paper)]
    if as_json:
        print(json.dumps([_json(d) for d in chosen], indent=1, ensure_ascii=False))
    else:
        print(*map(line, chosen), sep="\n")
        of_papers = [d for d in chosen if d.claim.id[0] in PLACES]
        printed = [d for d in chosen if d.claim.id[0] not in PLACES]
        print("", describe("Measured here", of_papers), describe("Printed", printed), sep="\n")
    if wrong:
        print(*map(visible, wrong), sep="\n", file=sys.stderr)
    return 1 if wrong else 0


def visible_lines(error: Exception) -> str:
    """The lines of a message, control characters made visible."""
    return "\n".join(map(visible, str(error).splitlines()))
