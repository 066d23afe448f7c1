"""Records: the one table that everything here speaks.

One row per (dataset, question_id, system, sample). Whatever makes records -- a
training run, an inference server, a user's own logs -- every chapter can analyse.

================== ======== ========= ==================================================
column             type     required  meaning
================== ======== ========= ==================================================
dataset            str      yes       name of the question set
question_id        str      yes       identifies the question inside its dataset
system             str      yes       what answered: a model, a prompt, a cascade
correct            bool     yes       whether the answer was judged correct
confidence         float    yes       in [0, 1]; missing where none could be read
sample             int      no        which repeated answer, from 0; 0 when absent
prompt_tokens      int      no        tokens read, or missing
completion_tokens  int      no        tokens written, or missing
answer             str      no        what was answered, or missing
gold               str      no        what was expected, or missing
================== ======== ========= ==================================================

Further columns are kept as they are. Rules of reading, all of them stated errors
otherwise (:class:`RecordsError` names file, row and field):

1. ``correct`` is a boolean, 0 or 1, or in text files also true/false in any case.
2. ``confidence`` is a number in [0, 1]. Empty, ``null`` and ``nan`` (text files:
   also ``none`` and ``na``, any case) mean missing; a missing confidence is never 0.
   A percentage is not guessed at.
3. Token counts and samples are whole numbers, not negative; ``12.0`` is 12.
4. Integers in identifier and answer columns of typed files become text (7 is "7").
5. (dataset, question_id, system, sample) is unique.
6. Text files are UTF-8. Rows are counted from 1, the header not counted; in JSON
   lines a row is a line.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import pandera.pandas as pa

KEY = ("dataset", "question_id", "system", "sample")
REQUIRED = ("dataset", "question_id", "system", "correct", "confidence")
_QUESTION = ("dataset", "question_id", "sample")
OPTIONAL = ("sample", "prompt_tokens", "completion_tokens", "answer", "gold")
SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")

_PROVENANCE_KEY = b"corea.provenance"
_MISSING_TEXT = {"", "nan", "null", "none", "na"}
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SHOWN_PROBLEMS = 10


class RecordsError(ValueError):
    """Records that break the contract.

    Attributes:
        source: Name of the file or table.
        problems: One sentence each, naming row and field, what was found and expected.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        """Put the first problems into the message and say how many there are."""
        self.source = source
        self.problems = list(problems)
        shown = self.problems[:_SHOWN_PROBLEMS]
        more = len(self.problems) - len(shown)
        lines = [f"{source}: {len(self.problems)} problem(s)", *shown]
        super().__init__("\n  ".join(lines + ([f"... and {more} more"] if more else [])))


@dataclass(frozen=True)
class Records:
    """A validated records table and what is known of it.

    Attributes:
        table: The records, columns in the order of the module's table, others after.
        source: Name of the file (never a path) or of what made them.
        provenance: What the file says of its own making; empty if nothing.
        notes: What the reader should know: defaults taken, cells without a record.
    """

    table: pd.DataFrame
    source: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def n_without_confidence(self) -> int:
        """Number of rows whose confidence is missing."""
        return int(self.table["confidence"].isna().sum())

    def __str__(self) -> str:
        """Say how many rows were read and how many lack a confidence."""
        table = self.table
        questions = len(table[["dataset", "question_id"]].drop_duplicates())
        said = (
            f"{self.source}: {len(table):,} rows read "
            f"({table['dataset'].nunique()} dataset(s), {table['system'].nunique()} system(s), "
            f"{questions:,} question(s)); {self.n_without_confidence:,} lack a confidence"
        )
        return "\n".join([said, *self.notes])


@cache
def schema() -> pa.DataFrameSchema:
    """The contract of a records table, as a pandera schema.

    Returns:
        Schema of the typed table: types, ranges, missing values, unique key.
    """
    import pandera.pandas as pa

    def counts(name: str) -> pa.Column:
        return pa.Column("Int64", pa.Check.ge(0), nullable=True, required=False, name=name)

    def text(name: str, *, required: bool) -> pa.Column:
        check = pa.Check.str_length(min_value=1) if required else None
        return pa.Column("str", check, nullable=not required, required=required, name=name)

    return pa.DataFrameSchema(
        {
            "dataset": text("dataset", required=True),
            "question_id": text("question_id", required=True),
            "system": text("system", required=True),
            "sample": pa.Column("int64", pa.Check.ge(0)),
            "correct": pa.Column("bool"),
            "confidence": pa.Column("float64", pa.Check.in_range(0, 1), nullable=True),
            "prompt_tokens": counts("prompt_tokens"),
            "completion_tokens": counts("completion_tokens"),
            "answer": text("answer", required=False),
            "gold": text("gold", required=False),
        },
        unique=list(KEY),
        strict=False,
        coerce=False,
    )


_EXPECTED = {
    "dataset": "a name",
    "question_id": "an identifier",
    "system": "a name",
    "sample": "a whole number from 0",
    "correct": "true, false, 0 or 1",
    "confidence": "a number in [0, 1], or nothing",
    "prompt_tokens": "a whole number from 0, or nothing",
    "completion_tokens": "a whole number from 0, or nothing",
    "answer": "text, or nothing",
    "gold": "text, or nothing",
}


def _sentence(row: int, name: str, found: object) -> str:
    hint = ""
    text = str(found).strip().removesuffix("%")
    if name == "confidence" and _NUMBER.fullmatch(text) and 1 < float(text) <= 100:
        hint = " (a percentage? divide by 100)"
    shown = repr(found)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"row {row}, field {name}: found {shown}, expected {_EXPECTED[name]}{hint}"


def validate(table: pd.DataFrame, *, source: str = "records") -> None:
    """Check a typed table against :func:`schema`.

    Args:
        table: Records in memory.
        source: Name used in the error.

    Raises:
        RecordsError: Naming every row and field that breaks the contract.

    Example:
        >>> validate(pd.DataFrame({"dataset": ["d"], "question_id": ["1"], "system": ["s"],
        ...     "sample": [0], "correct": [True], "confidence": [1.5]}))
        Traceback (most recent call last):
        ...
        corea.records.RecordsError: records: 1 problem(s)
          row 1, field confidence: found 1.5, expected a number in [0, 1], or nothing (a ...
    """
    import pandera.errors

    if missing := [c for c in ("sample", *REQUIRED) if c not in table.columns]:
        raise RecordsError(source, [_missing_columns(missing, table.columns)])
    if table.empty:
        raise RecordsError(source, ["no rows: expected at least one record"])
    positions = table.reset_index(drop=True)
    try:
        schema().validate(positions, lazy=True)
    except pandera.errors.SchemaErrors as error:
        raise RecordsError(source, _problems(error.failure_cases, positions)) from None


def _problems(failures: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    problems = []
    for case in failures.drop_duplicates(["column", "check", "index"]).to_dict("records"):
        if case["check"] == "multiple_fields_uniqueness":
            continue
        name = str(case["column"])
        if pd.isna(case["index"]):
            problems.append(
                f"field {name}: found type {table[name].dtype}, expected {_EXPECTED[name]}"
            )
        else:
            problems.append(_sentence(int(case["index"]) + 1, name, case["failure_case"]))
    key = list(KEY)
    rows = table[key].assign(row=np.arange(1, len(table) + 1))
    rows["first"] = rows.groupby(key, sort=False)["row"].transform("first")
    for again in rows[rows["row"] != rows["first"]].to_dict("records"):
        found = ", ".join(f"{name}={again[name]!r}" for name in key)
        problems.append(
            f"row {again['row']}: repeats the key of row {again['first']} ({found}); "
            "expected one row per (dataset, question_id, system, sample)"
        )
    return problems


def _missing_columns(missing: Sequence[str], found: Iterable[object]) -> str:
    return (
        f"missing column(s) {', '.join(missing)}; found {', '.join(map(str, found)) or 'none'}; "
        f"expected {', '.join(REQUIRED)} and optionally {', '.join(OPTIONAL)}"
    )


# --- one cell -----------------------------------------------------------------------------


def _is_missing(value: object, *, text: bool) -> bool:
    if text and isinstance(value, str):
        return value.strip().casefold() in _MISSING_TEXT
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _number(value: object, *, text: bool) -> float:
    if text and isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return float(value)
    raise ValueError


def _correct(value: object, *, text: bool) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if text and isinstance(value, str):
        return {"1": True, "0": False, "true": True, "false": False}[value.strip().casefold()]
    return {1.0: True, 0.0: False}[_number(value, text=text)]


def _confidence(value: object, *, text: bool) -> float:
    number = math.nan if _is_missing(value, text=text) else _number(value, text=text)
    if not (math.isnan(number) or 0 <= number <= 1):
        raise ValueError
    return number


def _whole(value: object, *, text: bool) -> int:
    number = _number(value, text=text)
    if number < 0 or not number.is_integer():
        raise ValueError
    return int(number)


def _count(value: object, *, text: bool) -> object:
    return pd.NA if _is_missing(value, text=text) else _whole(value, text=text)


def _name(value: object, *, text: bool) -> str:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    raise ValueError


def _words(value: object, *, text: bool) -> str | None:
    # only an empty cell is missing: "None" and "na" can be answers
    return None if value == "" or _is_missing(value, text=False) else _name(value, text=text)


_CELLS: dict[str, tuple[Callable[..., Any], str]] = {
    "dataset": (_name, "str"),
    "question_id": (_name, "str"),
    "system": (_name, "str"),
    "sample": (_whole, "int64"),
    "correct": (_correct, "bool"),
    "confidence": (_confidence, "float64"),
    "prompt_tokens": (_count, "Int64"),
    "completion_tokens": (_count, "Int64"),
    "answer": (_words, "str"),
    "gold": (_words, "str"),
}


def _typed_column(
    name: str, values: Sequence[object], *, text: bool
) -> tuple[pd.Series[Any], list[str]]:
    """Read one column; return it and a sentence for every cell that cannot be read."""
    read, dtype = _CELLS[name]
    known: dict[tuple[type, object], object] = {}
    parsed: list[object] = []
    problems = []
    for row, value in enumerate(values, start=1):
        try:
            # columns repeat a few values: read each once (True == 1 == 1.0, so the type counts)
            entry = (type(value), value)
            if entry not in known:
                known[entry] = read(value, text=text)
            parsed.append(known[entry])
        except (ValueError, KeyError, OverflowError, TypeError):
            problems.append(_sentence(row, name, value))
    return pd.Series(parsed if not problems else [], dtype=dtype, name=name), problems


def records_from_columns(
    columns: Mapping[str, Sequence[object]],
    *,
    source: str,
    provenance: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    text: bool = False,
) -> Records:
    """Make validated records from columns of cells.

    Args:
        columns: Column name to cells, all of the same length.
        source: Name used in errors and kept with the records.
        provenance: Kept with the records.
        notes: Kept with the records.
        text: Whether cells are text to be read (CSV) rather than typed values.

    Returns:
        The records.

    Raises:
        RecordsError: Naming every row and field that cannot be read or is not valid.

    Example:
        >>> print(records_from_columns({"dataset": ["d", "d"], "question_id": [1, 2],
        ...     "system": ["s", "s"], "correct": [1, 0], "confidence": [0.9, None]}, source="log"))
        log: 2 rows read (1 dataset(s), 1 system(s), 2 question(s)); 1 lack a confidence
        no column sample: every row is taken as sample 0
    """
    if missing := [c for c in REQUIRED if c not in columns]:
        raise RecordsError(source, [_missing_columns(missing, columns)])
    n_rows = len(columns["dataset"])
    if n_rows == 0:
        raise RecordsError(source, ["no rows: expected at least one record"])
    notes = list(notes)
    if "sample" not in columns:
        columns = {**columns, "sample": [0] * n_rows}
        notes.append("no column sample: every row is taken as sample 0")
    typed, problems = {}, []
    for name in (c for c in _CELLS if c in columns):
        typed[name], wrong = _typed_column(name, columns[name], text=text)
        problems += wrong
    if problems:
        raise RecordsError(source, problems)
    extra = {name: list(cells) for name, cells in columns.items() if name not in _CELLS}
    table = pd.DataFrame({**typed, **extra})
    validate(table, source=source)
    return Records(table, source, dict(provenance or {}), tuple(notes))


# --- files --------------------------------------------------------------------------------


def read_records(path: str | Path) -> Records:
    """Read a records file.

    Args:
        path: A ``.csv``, ``.csv.gz``, ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file.

    Returns:
        The validated records. ``str()`` of them says how many rows were read and how
        many lack a confidence.

    Raises:
        FileNotFoundError: If there is no such file.
        RecordsError: If the file cannot be read or breaks the contract.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path.name}: no such records file (looked for {path})")
    if not path.name.endswith(SUFFIXES):
        raise RecordsError(path.name, [f"unknown file type; expected {', '.join(SUFFIXES)}"])
    if path.name.endswith(".parquet"):
        return _read_parquet(path)
    if path.name.removesuffix(".gz").endswith(".csv"):
        return records_from_columns(read_csv_columns(path), source=path.name, text=True)
    return records_from_columns(_read_text(path, _jsonl_columns), source=path.name)


def read_csv_columns(path: Path) -> dict[str, list[object]]:
    """Read a CSV file as text, cell by cell, whatever its columns are.

    Args:
        path: A ``.csv`` or ``.csv.gz`` file.

    Returns:
        Column name to cells, all text.

    Raises:
        RecordsError: If the file is damaged, empty, not UTF-8 or not CSV, or a row has
            too many or too few fields.
    """
    return _read_text(path, _csv_columns)


def _read_text(
    path: Path, read: Callable[[IO[str], str], dict[str, list[object]]]
) -> dict[str, list[object]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as stream:
            return read(stream, path.name)
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise RecordsError(
            path.name, [f"not UTF-8 text: found byte 0x{found:02x}; expected a file in UTF-8"]
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RecordsError(
            path.name, [f"gzip file damaged or truncated ({error}); expected a complete one"]
        ) from None


def _csv_columns(stream: IO[str], source: str) -> dict[str, list[object]]:
    reader = csv.reader(stream, strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise RecordsError(source, ["empty file: expected a header line with column names"])
        if len(set(header)) != len(header):
            raise RecordsError(source, [f"repeated column name in the header: {header}"])
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise RecordsError(source, [f"line {reader.line_num}: not CSV ({error})"]) from None
    problems = [
        f"row {i}: found {len(row)} fields, expected {len(header)}"
        for i, row in enumerate(rows, start=1)
        if len(row) != len(header)
    ]
    if problems:
        raise RecordsError(source, problems)
    cells = zip(*rows, strict=True) if rows else ([] for _ in header)
    return {name: list(column) for name, column in zip(header, cells, strict=True)}


def _jsonl_columns(stream: IO[str], source: str) -> dict[str, list[object]]:
    rows: list[dict[str, object]] = []
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordsError(source, [f"line {number}: not JSON ({error})"]) from None
        if not isinstance(row, dict):
            raise RecordsError(
                source, [f"line {number}: found {type(row).__name__}, expected an object"]
            )
        rows.append(row)
    if not rows:
        raise RecordsError(source, ["empty file: expected one JSON object a line"])
    names = dict.fromkeys(name for row in rows for name in row)
    absent = [
        f"row {i}: missing field(s) {', '.join(lacking)}"
        for i, row in enumerate(rows, start=1)
        if (lacking := [c for c in REQUIRED if c in names and c not in row])
    ]
    if absent:
        raise RecordsError(source, absent)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: Path) -> Records:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        first = str(error).splitlines()[0].replace(str(path), path.name)
        raise RecordsError(path.name, [f"not a complete parquet file ({first})"]) from None
    metadata = table.schema.metadata or {}
    provenance = json.loads(metadata.get(_PROVENANCE_KEY, b"{}"))
    # arrow's nulls in numbers are NaN again: a column of nothing else would lose its type
    columns = {
        name: column.to_numpy().tolist()
        if arrow.types.is_floating(column.type)
        else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return records_from_columns(columns, source=path.name, provenance=provenance)


def write_records(records: Records, path: str | Path) -> None:
    """Write records as parquet, with their provenance, all or nothing.

    Args:
        records: What to write; validated first.
        path: A path ending in ``.parquet``; an existing file is replaced.

    Raises:
        ValueError: If the path does not end in ``.parquet``.
        RecordsError: If the table breaks the contract.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path = Path(path)
    if path.suffix != ".parquet":
        raise ValueError(f"{path.name}: records are written as .parquet")
    validate(records.table, source=records.source)
    table = arrow.Table.from_pandas(records.table, preserve_index=False)
    said = json.dumps(dict(records.provenance)).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _PROVENANCE_KEY: said})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    parquet.write_table(table, partial)
    partial.replace(path)


# --- looking at records -------------------------------------------------------------------


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Describe each system on each dataset.

    Args:
        table: Records.

    Returns:
        One row per (dataset, system): ``rows``, ``questions``, ``pass_at_1``,
        ``confidence_output_ratio`` (share of rows with a confidence; paper A, section
        4.3), ``mean_confidence`` and ``distinct_confidences``.

    Example:
        >>> records = records_from_columns({"dataset": ["d", "d"], "question_id": [1, 2],
        ...     "system": ["s", "s"], "correct": [1, 0], "confidence": [0.9, None]}, source="log")
        >>> summarize(records.table).to_dict("records")[0]["confidence_output_ratio"]
        0.5
    """
    return (
        table.groupby(["dataset", "system"], sort=False)
        .agg(
            rows=("correct", "size"),
            questions=("question_id", "nunique"),
            pass_at_1=("correct", "mean"),
            confidence_output_ratio=("confidence", lambda c: c.notna().mean()),
            mean_confidence=("confidence", "mean"),
            distinct_confidences=("confidence", "nunique"),
        )
        .reset_index()
    )


def select(
    table: pd.DataFrame, *, dataset: str | None = None, system: str | None = None
) -> pd.DataFrame:
    """Rows of one dataset, one system, or both.

    Args:
        table: Records.
        dataset: Name, or None for all.
        system: Name, or None for all.

    Returns:
        The rows, in their order.

    Raises:
        ValueError: If there is no such dataset or system; the message lists those there are.
    """
    for name, wanted in (("dataset", dataset), ("system", system)):
        if wanted is None:
            continue
        rows = table[table[name] == wanted]
        if rows.empty:
            there = ", ".join(map(repr, table[name].unique()))
            raise ValueError(f"no {name} {wanted!r} among the records; there are {there}")
        table = rows
    return table


def pair(table: pd.DataFrame, small: str, large: str) -> pd.DataFrame:
    """Put the records of two systems on the same questions side by side.

    Args:
        table: Records holding both systems.
        small: System that answers first and states the confidence.
        large: System that is deferred to.

    Returns:
        One row per (dataset, question_id, sample) with ``confidence`` (the small
        system's), ``small_correct``, ``large_correct`` and, where the records have
        tokens, ``small_prompt_tokens``, ``small_completion_tokens`` and the large ones.

    Raises:
        ValueError: If a system has no records.
        RecordsError: If the two were not asked the same questions, with examples.

    Example:
        >>> records = records_from_columns({"dataset": ["d", "d"], "question_id": [1, 1],
        ...     "system": ["s", "l"], "correct": [0, 1], "confidence": [0.2, None]}, source="log")
        >>> pair(records.table, "s", "l")[["confidence", "small_correct", "large_correct"]]
           confidence  small_correct  large_correct
        0         0.2          False           True
    """
    tokens = [c for c in ("prompt_tokens", "completion_tokens") if c in table.columns]
    joined = join_on_questions(
        select(table, system=small)[[*_QUESTION, "confidence", "correct", *tokens]],
        select(table, system=large)[[*_QUESTION, "correct", *tokens]],
        names=(small, large),
        suffixes=("_small", "_large"),
    )
    renamed = {
        f"{name}_{side}": f"{side}_{name}"
        for name in ("correct", *tokens)
        for side in ("small", "large")
    }
    return joined.rename(columns=renamed)


def join_on_questions(
    left: pd.DataFrame,
    right: pd.DataFrame,
    *,
    names: tuple[str, str],
    suffixes: tuple[str, str],
) -> pd.DataFrame:
    """Put the rows of two systems on the same questions and samples side by side.

    Args:
        left: Records of one system.
        right: Records of the other.
        names: Names of the two, for errors.
        suffixes: Appended to columns that both have.

    Returns:
        One row per (dataset, question_id, sample), sorted by them.

    Raises:
        RecordsError: If the two were not asked the same questions, with examples.
    """
    key = list(_QUESTION)
    joined = left.merge(right, on=key, suffixes=suffixes)
    problems = []
    for (frame, here), (other, there) in permutations(zip((left, right), names, strict=True)):
        if len(joined) == len(frame):
            continue
        sides = frame[key].merge(other[key], on=key, how="left", indicator=True)
        alone = sides[sides["_merge"] == "left_only"]
        first = ", ".join(f"{name}={alone.iloc[0][name]!r}" for name in key)
        problems.append(
            f"{len(alone)} row(s) of {here!r} have no counterpart in {there!r}, "
            f"the first is {first}; expected the same questions and samples for both"
        )
    if problems:
        raise RecordsError(f"pairing {names[0]!r} with {names[1]!r}", problems)
    return joined.sort_values(key, ignore_index=True)
