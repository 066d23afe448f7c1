"""What the readers of other people's formats share: rows, scores, confidences, notes.

Rules that hold in every format:

1. A score is right at 1 (true, ``1.0``) and wrong at 0. A fraction is refused unless a
   ``threshold`` is given: from there on an answer is right. A note counts the fractions.
2. Log-probabilities of an answer's tokens give as confidence their mean probability
   (:func:`corea.confidence.average_probability`). Where all of them are exactly 0 the file's
   maker had none: the confidence is missing, and a note counts such rows.
3. A question whose call failed has no answer. It counts as wrong and has no confidence
   (``errors="wrong"``), or makes no record (``errors="leave out"``). Either is noted.
4. What is odd in the records is noted as in :func:`corea.records.read_records`.
5. A file is read within the limits of :mod:`corea.records`, and never unpickled. The first
   thing wrong with it is an error that names file, row and field, what was found and expected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from corea import checks
from corea.confidence import average_probability
from corea.records import (
    Records,
    RecordsError,
    json_array,
    json_lines,
    json_object,
    oddities,
    quoted,
    quoted_names,
    read_text,
    records_from_columns,
)

_Json = TypeVar("_Json")

ERRORS = ("wrong", "leave out")
OF_TOKENS = "the mean probability of the output's tokens"
NO_LOGPROBS = "row(s) have log-probabilities of exactly 0; taken as missing"


class Kind(NamedTuple):
    """What a field may hold, in words and as Python has it."""

    expected: str
    types: tuple[type, ...]


NAME = Kind("a name or a whole number", (str, int))
TEXT = Kind("text", (str,))
WHOLE = Kind("a whole number", (int,))
NUMBER = Kind("a number", (int, float))
FLAG = Kind("true or false", (bool,))
OBJECT = Kind("an object", (dict,))
ARRAY = Kind("an array", (list,))
SCORE = Kind("0 or 1", (bool, int, float, str))
ANY = Kind("a value", (object,))


@dataclass(frozen=True)
class Row:
    """One object of a file, and where it is."""

    source: str
    where: str
    content: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse what is not an object."""
        if not isinstance(self.content, dict):
            raise self.wrong((), self.content, OBJECT.expected)

    def may(self, *path: str | int, kind: Kind = ANY) -> Any:
        """What stands at a path of keys and positions; None where nothing does."""
        found: Any = self.content
        for depth, step in enumerate(path):
            if found is None:
                return None
            if isinstance(step, str):
                if not isinstance(found, dict):
                    raise self.wrong(path[:depth], found, OBJECT.expected)
                found = found.get(step)
            else:
                if not isinstance(found, list):
                    raise self.wrong(path[:depth], found, ARRAY.expected)
                found = found[step] if step < len(found) else None
        flag = isinstance(found, bool) and not {bool, object} & {*kind.types}
        if found is None or (isinstance(found, kind.types) and not flag):
            return found
        raise self.wrong(path, found, kind.expected)

    def need(self, *path: str | int, kind: Kind = ANY) -> Any:
        """What stands at a path; an error where nothing does."""
        if (found := self.may(*path, kind=kind)) is None:
            raise self.wrong(path, None, kind.expected)
        return found

    def wrong(self, path: Sequence[str | int], found: object, expected: str) -> RecordsError:
        """The error that names file, row and field."""
        shown = "nothing" if found is None else quoted(found)
        place = ", field ".join([self.where, *([".".join(map(str, path))] if path else [])])
        return RecordsError(self.source, f"{place}: found {shown}, expected {expected}")


def lines_of(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines."""
    for number, content in enumerate(json_lines(read_text(path), path.name), start=1):
        yield Row(path.name, f"row {number}", content)


def object_of(path: Path) -> Row:
    """A file that is one JSON object."""
    return Row(path.name, "the file", _whole(path, json_object))


def array_of(path: Path) -> Iterator[Row]:
    """The rows of a file that is one JSON array of objects."""
    for number, content in enumerate(_whole(path, json_array), start=1):
        yield Row(path.name, f"row {number}", content)


def _whole(path: Path, read: Callable[[str], _Json]) -> _Json:
    text = read_text(path).getvalue()
    try:
        return read(text)
    except ValueError as error:
        raise RecordsError(path.name, str(error)) from None


def said(value: object) -> str | None:
    """An answer or gold as text; None where there is not one."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return (str(value) or None) if plain else None


def chosen(source: str, option: str, named: str | None, found: Sequence[str]) -> str:
    """The one that is named among those found, or the only one there is."""
    if named is None and len(found) == 1:
        return found[0]
    if named in found:
        return str(named)
    said = "none named" if named is None else f"named {quoted(named)}"
    raise RecordsError(
        source,
        f"{option}: {said}, found {quoted_names(found) or 'none'}; expected one of them: "
        f"say {option}=...",
    )


class Gathering:
    """Records while they are gathered from a file."""

    def __init__(
        self, path: Path, *, threshold: float | str | None = None, errors: str = "wrong"
    ) -> None:
        """Check the options; ``threshold`` may be text, as a command line has it."""
        checks.one_of(errors, "errors", ERRORS)
        self.source, self.errors = path.name, errors
        try:
            self.threshold = None if threshold is None else float(threshold)
        except ValueError:
            self.threshold = math.nan
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold is {threshold!r}; expected a number")
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, **cells: Any) -> None:
        """One record; what is None is missing."""
        self.rows.append({"sample": 0, **cells})

    def fail(self, **cells: Any) -> None:
        """A question whose call failed (rule 3)."""
        if self.errors == "wrong":
            self.counts["record(s) of calls that failed count as wrong"] += 1
            self.add(**cells, correct=False)
        else:
            self.counts["call(s) failed and made no record"] += 1

    def is_right(self, row: Row, *path: str | int, found: Any = None) -> bool:
        """Whether a score says right (rule 1); ``found`` in place of what stands at the path."""
        found = row.need(*path, kind=SCORE) if found is None else found
        try:
            score = float({"true": 1, "false": 0}.get(str(found).strip().lower(), found))
        except (OverflowError, TypeError, ValueError):
            raise row.wrong(path, found, SCORE.expected) from None
        if score in (0, 1) and (self.threshold is None or 0 < self.threshold <= 1):
            return score == 1
        if self.threshold is None or not math.isfinite(score):
            said = ", or a threshold from which on an answer is right: say threshold=..."
            raise row.wrong(path, found, SCORE.expected + said)
        self.counts[f"score(s) are neither 0 nor 1; from {self.threshold:g} on they are right"] += 1
        return score >= self.threshold

    def probability(self, row: Row, *path: str | int) -> float | None:
        """Confidence out of log-probabilities, or of tokens with a ``logprob`` each (rule 2)."""
        tokens = row.may(*path, kind=ARRAY) or []
        values: list[Any] = [
            token.get("logprob") if isinstance(token, dict) else token for token in tokens
        ]
        try:
            if values and not any(values):
                self.counts[NO_LOGPROBS] += 1
            return average_probability(values) if any(values) else None
        except (OverflowError, TypeError, ValueError):
            raise row.wrong(path, values, "log-probabilities, numbers up to 0") from None

    def records(self, confidence: str, **provenance: str) -> Records:
        """The records gathered; ``confidence`` says what theirs is, for the notes."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        columns = {name: [row.get(name) for row in self.rows] for name in names}
        stated = [value for value in columns.get("confidence", []) if value is not None]
        columns = {name: cells for name, cells in columns.items() if set(cells) != {None}}
        columns["confidence"] = columns.get("confidence", [None] * len(self.rows))
        if not self.rows:
            more = "; ".join(f"{n:,} {what}" for what, n in self.counts.items())
            raise RecordsError(
                self.source, f"no records ({more})" if more else "no rows: expected at least one"
            )
        said = f"confidence: {confidence}" if stated else "confidence: none in the file"
        notes = [*self.notes, *(f"{n:,} {what}" for what, n in self.counts.items() if n), said]
        records = records_from_columns(
            columns, source=self.source, notes=notes, provenance=provenance
        )
        return replace(records, notes=(*records.notes, *oddities(records.table)))
