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

1. ``correct`` is a boolean, 0 or 1 (also ``1.0``), or in text files also true/false
   in any case.
2. ``confidence`` is a number in [0, 1]. A missing one is an empty cell, JSON's ``null``,
   a NaN, or one of the words in :data:`MISSING_WORDS` in any case, in text and typed
   files alike; a note counts the cells of each word. A missing confidence is never 0.
   A percentage is not guessed at. Token counts are missing by the same words.
3. Token counts and samples are whole numbers from 0 to 2**53; ``12.0`` is 12.
4. Integers in identifier and answer columns of typed files become text (7 is "7").
5. (dataset, question_id, system, sample) is unique.
6. Text files are UTF-8, columns separated by commas (``.tsv``: by tabs). Rows are counted
   from 1, the header not counted; in JSON lines a row is a line. No key comes twice in a
   JSON object.
7. A file holds at most :data:`MAX_BYTES` bytes once decompressed and :data:`MAX_ROWS`
   rows; JSON nests at most :data:`MAX_DEPTH` deep.

What the rules allow and is still odd -- a token count that never changes, a confidence
that is always the same, samples or systems that repeat each other, log-probabilities of
exactly 0 -- is said in the notes of :func:`read_records`.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import math
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import pandera.pandas as pa

KEY = ("dataset", "question_id", "system", "sample")
REQUIRED = ("dataset", "question_id", "system", "correct", "confidence")
_QUESTION = ("dataset", "question_id", "sample")
_NUMBERS = ("prompt_tokens", "completion_tokens", "confidence")  # where words mean missing
OPTIONAL = ("sample", "prompt_tokens", "completion_tokens", "answer", "gold")
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
MISSING_WORDS = ("nan", "null", "none", "na", "n/a", "<na>", "missing", "-")
MAX_BYTES = 2**29  # of a file, decompressed
MAX_ROWS = 5_000_000
MAX_DEPTH = 32

_PROVENANCE_KEY = b"corea.provenance"
_MAX_COUNT = 2**53  # up to here a float holds every whole number
# what others call the columns, for the question "did you mean"
_ALIASES = {
    "dataset": ("task", "task_name", "benchmark", "data_set", "source"),
    "question_id": ("id", "qid", "question", "idx", "index", "doc_id", "example_id", "uid"),
    "system": ("model", "model_name", "model_id", "method", "run"),
    "sample": ("sample_id", "sample_index", "repeat"),
    "correct": ("is_correct", "iscorrect", "acc", "accuracy", "score", "exact_match", "right"),
    "confidence": ("conf", "confidences", "certainty", "probability", "prob", "p"),
    "prompt_tokens": ("input_tokens", "n_prompt_tokens", "tokens_in"),
    "completion_tokens": ("output_tokens", "n_completion_tokens", "tokens_out"),
}
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SHOWN_PROBLEMS = 10


class RecordsError(ValueError):
    """Records that break the contract.

    Attributes:
        source: Name of the file or table.
        problems: One sentence each, naming row and field, what was found and expected.
    """

    def __init__(self, source: str, problems: str | Sequence[str]) -> None:
        """Put the first problems into the message and say how many there are."""
        self.source = source
        self.problems = [problems] if isinstance(problems, str) else list(problems)
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

    def __str__(self) -> str:
        """Say how many rows were read and how many lack a confidence."""
        table = self.table
        questions = len(table[["dataset", "question_id"]].drop_duplicates())
        rows = (
            f"{self.source}: {len(table):,} rows read "
            f"({table['dataset'].nunique()} dataset(s), {table['system'].nunique()} system(s), "
            f"{questions:,} question(s)); {table['confidence'].isna().sum():,} lack a confidence"
        )
        return "\n".join([rows, *self.notes])


_QUOTES = reprlib.Repr()
_QUOTES.maxstring = _QUOTES.maxlong = _QUOTES.maxother = 60


def quoted(value: object) -> str:
    """A value as Python writes it, on one line and short enough for a message."""
    return _QUOTES.repr(value)


def quoted_names(names: Iterable[object]) -> str:
    """The first of many names, for a message, and how many more there are."""
    names = list(names)
    more = [f"and {len(names) - _SHOWN_PROBLEMS} more"] if len(names) > _SHOWN_PROBLEMS else []
    return ", ".join([*map(quoted, names[:_SHOWN_PROBLEMS]), *more])


def _column(name: object) -> str:
    plain = isinstance(name, str) and name.isidentifier() and len(name) <= _QUOTES.maxstring
    return str(name) if plain else quoted(name)


def _sentence(row: int, name: str, found: object) -> str:
    hint = ""
    if name == "confidence":
        text = quoted(found).strip("' ")
        number = text.removesuffix("%")
        if _NUMBER.fullmatch(number) and 1 < float(number) <= 100:
            hint = " (a percentage? divide by 100)"
        elif re.fullmatch("[01],[0-9]+", text):
            hint = " (a comma for a decimal point? write a point)"
    known = _COLUMNS.get(name)
    expected = known.expected if known else "Unicode text without lone surrogates"
    return f"row {row}, field {_column(name)}: found {quoted(found)}, expected {expected}{hint}"


def validate(table: pd.DataFrame, *, source: str = "records") -> None:
    """Check a typed table against :func:`schema`.

    Example:
        >>> validate(pd.DataFrame({"dataset": ["d"], "question_id": ["1"], "system": ["s"],
        ...     "sample": [0], "correct": [True], "confidence": [1.5]}))
        Traceback (most recent call last):
        ...
        corea.records.RecordsError: records: 1 problem(s)
          row 1, field confidence: found 1.5, expected a number in [0, 1], or nothing (an ...
    """
    import pandera.errors

    if missing := [c for c in ("sample", *REQUIRED) if c not in table.columns]:
        raise RecordsError(source, _missing_columns(missing, table.columns))
    if table.empty:
        raise RecordsError(source, "no rows: expected at least one record")
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
                f"field {name}: found type {table[name].dtype}, expected {_COLUMNS[name].expected}"
            )
        else:
            problems.append(_sentence(int(case["index"]) + 1, name, case["failure_case"]))
    key = list(KEY)
    rows = table[key].assign(row=np.arange(1, len(table) + 1))
    rows["first"] = rows.groupby(key, sort=False)["row"].transform("first")
    for again in rows[rows["row"] != rows["first"]].to_dict("records"):
        found = ", ".join(f"{name}={quoted(again[name])}" for name in key)
        problems.append(
            f"row {again['row']}: repeats the key of row {again['first']} ({found}); "
            "expected one row per (dataset, question_id, system, sample)"
        )
    return problems


def _missing_columns(missing: Sequence[str], found: Iterable[object]) -> str:
    names = [name for name in found if isinstance(name, str)]
    meant = {near: name for name in missing if (near := _near(name, names))}
    listed = [*map(_column, names[:30]), *([f"and {len(names) - 30} more"] if names[30:] else [])]
    mend = (
        f"; did you mean {', '.join(f'{quoted(near)} for {n}' for near, n in meant.items())}? "
        f"Rename in the file, or read it with read_records(path, names={meant})"
    )
    return (
        f"missing column(s) {', '.join(missing)}; found {', '.join(listed) or 'none'}; "
        f"expected {', '.join(REQUIRED)} and optionally {', '.join(OPTIONAL)}"
        f"{mend if meant else ''}"
    )


def _near(name: str, found: Iterable[str], *, typed: bool = True) -> str | None:
    """Which of the names found says the same as a column's, or is it ``typed`` badly."""
    strangers = [f for f in found if f not in _COLUMNS and len(f) < 40]
    plain = {re.sub(r"[\s-]+", "_", f.strip().casefold()): f for f in strangers}
    same = [n for n in (name, *_ALIASES.get(name, ())) if n in plain]
    close = difflib.get_close_matches(name, plain, 1, 0.8) if typed else []
    return next((plain[n] for n in (*same, *close)), None)


# --- one cell -----------------------------------------------------------------------------


def _is_nothing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _is_missing(value: object) -> bool:
    if isinstance(value, str):
        return value == "" or value.strip().casefold() in ("", *MISSING_WORDS)
    return _is_nothing(value)


def _number(value: object, *, text: bool) -> int | float:
    if text and isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    raise ValueError


def _correct(value: object, *, text: bool) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    words = {"true": True, "false": False}
    if text and isinstance(value, str) and (word := value.strip().casefold()) in words:
        return words[word]
    return {1.0: True, 0.0: False}[_number(value, text=text)]


def _confidence(value: object, *, text: bool) -> float:
    if _is_missing(value):
        return math.nan
    number = _number(value, text=text)
    if not 0 <= number <= 1:
        raise ValueError
    return float(number)


def _whole(value: object, *, text: bool) -> int:
    number = _number(value, text=text)
    if not 0 <= number <= _MAX_COUNT or number != int(number):
        raise ValueError
    return int(number)


def _count(value: object, *, text: bool) -> object:
    return pd.NA if _is_missing(value) else _whole(value, text=text)


def _name(value: object, *, text: bool) -> str:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        value.encode()  # a lone surrogate is no text; its error is a ValueError
        return value
    raise ValueError


def _words(value: object, *, text: bool) -> str | None:
    # only an empty cell is missing: "None" and "na" can be answers
    return None if value == "" or _is_nothing(value) else _name(value, text=text)


@dataclass(frozen=True)
class _Column:
    """How a column's cells are read, and what they are."""

    read: Callable[..., Any]
    dtype: str
    expected: str
    nullable: bool = False


_NOTHING = f"or nothing (an empty cell or one of {', '.join(MISSING_WORDS)})"
_TOKENS = _Column(_count, "Int64", f"a whole number from 0 to 2**53, {_NOTHING}", nullable=True)
_TEXT = _Column(_words, "str", "text, or nothing", nullable=True)
_COLUMNS = {
    "dataset": _Column(_name, "str", "a name"),
    "question_id": _Column(_name, "str", "an identifier"),
    "system": _Column(_name, "str", "a name"),
    "sample": _Column(_whole, "int64", "a whole number from 0 to 2**53"),
    "correct": _Column(_correct, "bool", "true, false, 0 or 1"),
    "confidence": _Column(_confidence, "float64", f"a number in [0, 1], {_NOTHING}", nullable=True),
    "prompt_tokens": _TOKENS,
    "completion_tokens": _TOKENS,
    "answer": _TEXT,
    "gold": _TEXT,
}


@cache
def schema() -> pa.DataFrameSchema:
    """The contract of a records table, as a pandera schema."""
    import pandera.pandas as pa

    def check(name: str, column: _Column) -> pa.Check | None:
        if name == "confidence":
            return pa.Check.in_range(0, 1)
        if column.dtype == "str":
            return None if column.nullable else pa.Check.str_length(min_value=1)
        return None if column.dtype == "bool" else pa.Check.ge(0)

    columns = {
        name: pa.Column(
            column.dtype,
            check(name, column),
            nullable=column.nullable,
            required=name in (*REQUIRED, "sample"),
        )
        for name, column in _COLUMNS.items()
    }
    return pa.DataFrameSchema(columns, unique=list(KEY), strict=False, coerce=False)


def _typed_column(
    name: str, values: Sequence[object], *, text: bool
) -> tuple[pd.Series[Any], list[str]]:
    """Read one column; return it and a sentence for every cell that cannot be read."""
    column = _COLUMNS[name]
    known: dict[tuple[type, object], object] = {}
    parsed: list[object] = []
    problems = []
    for row, value in enumerate(values, start=1):
        try:
            # columns repeat a few values: read each once (True == 1 == 1.0, so the type counts)
            entry = (type(value), value)
            if entry not in known:
                known[entry] = column.read(value, text=text)
            parsed.append(known[entry])
        except (ValueError, KeyError, OverflowError, TypeError):
            problems.append(_sentence(row, name, value))
    return pd.Series(parsed if not problems else [], dtype=column.dtype, name=name), problems


def read_confidences(cells: Iterable[object], name: str, *, source: str) -> list[float]:
    """Another column of a text file, read as confidences are (rule 2); NaN where missing.

    Raises:
        RecordsError: Naming every cell that is none.

    Example:
        >>> read_confidences(["0.5", "n/a"], "probe", source="my.csv")
        [0.5, nan]
    """
    values, problems = [], []
    for row, cell in enumerate(cells, start=1):
        try:
            values.append(_confidence(cell, text=True))
        except (ValueError, TypeError):
            problems.append(_sentence(row, "confidence", cell).replace("confidence", name, 1))
    if problems:
        raise RecordsError(source, problems)
    return values


def _missing_note(name: str, values: Sequence[object]) -> list[str]:
    """A sentence on the words that were taken as missing, if there are any."""
    if name not in _NUMBERS:
        return []
    words = Counter(value.strip() for value in values if isinstance(value, str))
    taken = {word: n for word, n in words.items() if word.casefold() in MISSING_WORDS}
    cells = ", ".join(f"{n:,} cell(s) that say {word!r}" for word, n in sorted(taken.items()))
    return [f"{name}: {cells} are taken as missing"] if taken else []


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
        raise RecordsError(source, _missing_columns(missing, columns))
    n_rows = len(columns["dataset"])
    if n_rows == 0:
        raise RecordsError(source, "no rows: expected at least one record")
    notes = list(notes)
    if "sample" not in columns:
        columns = {**columns, "sample": [0] * n_rows}
        notes.append("no column sample: every row is taken as sample 0")
    typed, problems = {}, []
    for name in (c for c in _COLUMNS if c in columns):
        typed[name], wrong = _typed_column(name, columns[name], text=text)
        problems += wrong
        notes += _missing_note(name, columns[name])
    if problems:
        raise RecordsError(source, problems)
    extra = {name: list(cells) for name, cells in columns.items() if name not in _COLUMNS}
    table = pd.DataFrame({**typed, **extra})
    validate(table, source=source)
    return Records(table, source, dict(provenance or {}), tuple(notes))


# --- files --------------------------------------------------------------------------------


def read_records(
    path: str | Path,
    *,
    separator: str = "",
    names: Mapping[str, str] | None = None,
    judged: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Records:
    """Read a records file.

    Args:
        path: A ``.csv``, ``.tsv``, ``.jsonl`` (each also ``.gz``) or ``.parquet`` file.
        separator: Between the columns of a text file; a comma when empty, in ``.tsv`` a tab.
        names: Name of a column in the file to its name in the module's table.
        judged: Whether the column ``correct`` must be there. Where it need not be and is not, every
            row has False, and a note says so: for what asks who should answer, not who is right.
        max_bytes: Size the file may have, in bytes once decompressed.

    Returns:
        The validated records. ``str()`` of them says how many rows were read and how
        many lack a confidence. Their notes also say what looks odd (:func:`oddities`).

    Raises:
        FileNotFoundError: If there is no such file.
        RecordsError: If the file cannot be read, is larger than a limit of the module's
            docstring, or breaks the contract.
        ValueError: If ``separator`` is not one character.
    """
    path = Path(path)
    kind = path.name.lower()
    if path.is_dir():
        raise RecordsError(path.name, "is a directory; expected a file, such as one in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path.name}: no such records file (looked for {path})")
    if not kind.endswith(SUFFIXES):
        raise RecordsError(path.name, f"unknown file type; expected {', '.join(SUFFIXES)}")
    if len(separator) > 1:
        raise ValueError(f"separator is {separator!r}; expected one character")
    provenance: dict[str, Any] = {}
    text = kind.removesuffix(".gz").endswith((".csv", ".tsv"))
    if kind.endswith(".parquet"):
        columns, provenance = _parquet_columns(path, max_bytes)
    elif text:
        columns = read_csv_columns(path, separator=separator, max_bytes=max_bytes)
    else:
        columns = _jsonl_columns(read_text(path, max_bytes), path.name)
    columns = _renamed(columns, names or {}, path.name)
    unjudged = not judged and "correct" not in columns
    if unjudged:
        columns["correct"] = [False] * len(next(iter(columns.values()), []))
    notes = ["no column correct: nothing is known of who is right"] * unjudged + [
        f"column {quoted(near)} is kept as it is; did you mean {name}? Then rename it"
        for name in OPTIONAL
        if name in _ALIASES and name not in columns and (near := _near(name, columns, typed=False))
    ]
    records = records_from_columns(
        columns, source=path.name, provenance=provenance, notes=notes, text=text
    )
    return replace(records, notes=(*records.notes, *oddities(records.table)))


def _renamed(
    columns: Mapping[str, list[object]], names: Mapping[str, str], source: str
) -> dict[str, list[object]]:
    if absent := [name for name in names if name not in columns]:
        raise RecordsError(
            source, f"no column {quoted_names(absent)}; found {quoted_names(columns)}"
        )
    renamed = [names.get(name, name) for name in columns]
    _check_header(renamed, source)
    return dict(zip(renamed, columns.values(), strict=True))


def _check_header(header: Sequence[str], source: str) -> None:
    if again := [name for name, n in Counter(header).items() if n > 1]:
        raise RecordsError(
            source, f"repeated column name in the header: {quoted_names(again)}; expected one"
        )


def read_csv_columns(
    path: Path, *, separator: str = "", max_bytes: int = MAX_BYTES
) -> dict[str, list[object]]:
    """Read a CSV file as text, cell by cell, whatever its columns are."""
    tabs = path.name.lower().removesuffix(".gz").endswith(".tsv")
    separator = separator or ("\t" if tabs else ",")
    stream, source = read_text(path, max_bytes), path.name
    _check_separator(stream.readline(), source, separator)
    stream.seek(0)
    reader = csv.reader(stream, strict=True, delimiter=separator)
    try:
        header = next(reader, None)
        if not header:
            raise RecordsError(source, "empty file: expected a header line with column names")
        _check_header(header, source)
        rows = list(islice((row for row in reader if row), MAX_ROWS + 1))
    except csv.Error as error:
        raise RecordsError(source, f"line {reader.line_num}: not CSV ({error})") from None
    if len(rows) > MAX_ROWS:
        raise too_large(source, "rows", MAX_ROWS)
    problems = [
        f"row {i}: found {len(row)} fields, expected {len(header)}"
        for i, row in enumerate(rows, start=1)
        if len(row) != len(header)
    ]
    if problems:
        raise RecordsError(source, problems)
    cells = zip(*rows, strict=True) if rows else ([] for _ in header)
    return {name: list(column) for name, column in zip(header, cells, strict=True)}


_DECOMPRESSED = "bytes (max_bytes) once decompressed"


def too_large(source: str, found: str, limit: int) -> RecordsError:
    """The error of a file larger than a limit, as in "more than 5 rows"."""
    return RecordsError(
        source, f"more than {limit:,} {found}, the limit; expected a smaller file: read it in parts"
    )


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> io.StringIO:
    """Read a file of UTF-8 text, gzipped where its name ends so, within a limit of size."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    data = bytearray()
    try:
        with opened(path, "rb") as stream:
            while chunk := stream.read(2**20):
                data += chunk
                if len(data) > max_bytes:
                    raise too_large(path.name, _DECOMPRESSED, max_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problem = f"gzip file damaged or truncated ({error}); expected a complete one"
        raise RecordsError(path.name, problem) from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:64]:
        mend = "iconv -f UTF-16 -t UTF-8 FILE > NEW, or save it as 'CSV UTF-8'"
        raise RecordsError(
            path.name, f"not UTF-8 text but UTF-16 (or binary); expected UTF-8: {mend}"
        )
    try:
        return io.StringIO(data.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        problem = f"not UTF-8 text: found byte 0x{found:02x}; expected a file in UTF-8"
        raise RecordsError(path.name, problem) from None


def _check_separator(header: str, source: str, separator: str) -> None:
    others = {"\t": "a tab", ";": "';'", "|": "'|'", ",": "','"}
    found = max(others, key=header.count)
    if separator in header or found not in header:
        return
    commas = (
        'python -c "import csv, sys; csv.writer(sys.stdout).writerows('
        f'csv.reader(sys.stdin, delimiter={found!r}))" < FILE > NEW.csv'
    )
    raise RecordsError(
        source,
        f"header: found {others[found]} between the column names, expected "
        f"{others.get(separator, repr(separator))}; read it with "
        f"read_records(path, separator={found!r}), or write it with commas: {commas}",
    )


def json_object(text: str) -> dict[str, Any]:
    """Read one JSON object from outside; a ValueError says what else was found.

    Example:
        >>> json_object('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ...
        ValueError: found the key 'a' twice, expected it once
    """
    found = _json(text)
    if not isinstance(found, dict):
        raise ValueError(f"found {type(found).__name__}, expected an object")
    return found


def json_array(text: str) -> list[Any]:
    """Read one JSON array from outside, as :func:`json_object` reads an object."""
    found = _json(text)
    if not isinstance(found, list):
        raise ValueError(f"found {type(found).__name__}, expected an array")
    return found


def _json(text: str) -> Any:
    twice: list[str] = []

    def read(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(taken := dict(pairs)) < len(pairs):
            twice.extend(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        return taken

    try:
        found = json.loads(text, object_pairs_hook=read)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}, the limit") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if twice:
        raise ValueError(f"found the key {quoted(twice[0])} twice, expected it once")
    if _deeper(found, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH}, the limit")
    return found


def _deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(part, levels - 1) for part in inner)


def json_lines(stream: Iterable[str], source: str) -> list[dict[str, Any]]:
    """Read one JSON object a line, empty lines left out, within the limits of this module."""
    rows: list[dict[str, Any]] = []
    wrong = []
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json_object(line)
        except ValueError as error:
            raise RecordsError(source, f"line {number}: {error}") from None
        rows.append(row)
        if len(rows) > MAX_ROWS:
            raise too_large(source, "rows", MAX_ROWS)
        if "\\u" in line:
            wrong += [
                _sentence(len(rows), name, value)
                for name, value in row.items()
                if not _is_unicode([name, value])
            ]
    if not rows:
        raise RecordsError(source, "empty file: expected one JSON object a line")
    if wrong:
        raise RecordsError(source, wrong)
    return rows


def _jsonl_columns(stream: Iterable[str], source: str) -> dict[str, list[object]]:
    rows = json_lines(stream, source)
    names = dict.fromkeys(name for row in rows for name in row)
    absent = [
        f"row {i}: missing field(s) {', '.join(lacking)}"
        for i, row in enumerate(rows, start=1)
        if (lacking := [c for c in REQUIRED if c in names and c not in row])
    ]
    if absent:
        raise RecordsError(source, absent)
    return {name: [row.get(name) for row in rows] for name in names}


def _is_unicode(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_columns(path: Path, max_bytes: int) -> tuple[dict[str, list[object]], dict[str, Any]]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            names, size = file.schema_arrow.names, 0
            _check_header(names, path.name)
            if file.metadata.num_rows > MAX_ROWS:
                raise too_large(path.name, "rows", MAX_ROWS)
            columns: dict[str, list[object]] = {name: [] for name in names}
            # one long text repeated is small in the file, so the size is counted while reading
            for batch in file.iter_batches(batch_size=1024):
                batch.validate(full=True)  # texts that are not UTF-8
                for name, cells in zip(names, batch.columns, strict=True):
                    if arrow.types.is_dictionary(cells.type):
                        cells = cells.dictionary_decode()
                    if (size := size + cells.nbytes) > max_bytes:
                        raise too_large(path.name, _DECOMPRESSED, max_bytes)
                    if arrow.types.is_floating(cells.type):  # its nulls are NaN again
                        columns[name] += cells.to_numpy(zero_copy_only=False).tolist()
                    else:
                        columns[name] += cells.to_pylist()
            metadata = file.schema_arrow.metadata or {}
    except (arrow.ArrowException, OSError) as error:
        first = str(error).splitlines()[0].replace(str(path), path.name)
        raise RecordsError(path.name, f"not a complete parquet file ({first})") from None
    try:
        provenance = json_object(metadata.get(_PROVENANCE_KEY, b"{}").decode())
    except ValueError as error:
        raise RecordsError(path.name, f"provenance: {error}") from None
    return columns, provenance


_ODD_ROWS = 20  # fewer rows are easily alike


def oddities(table: pd.DataFrame) -> list[str]:
    """Sentences on what is allowed but cannot well be what it says.

    Of systems with 20 rows or more: token counts that never change, confidences that are all
    the same or all 0 or 1, a column of log-probabilities (its name says ``logprob``) that are
    all exactly 0, samples of a question that are all the same, and rows that repeat another
    system's.
    """
    found: dict[str, list[str]] = {}
    for name in [name for name in _NUMBERS if name in table]:
        by_system = table.groupby("system", sort=False)[name]
        facts = by_system.agg(["count", "nunique", "min", "max"]).query(f"count >= {_ODD_ROWS}")
        found[f"{name} never changes in the rows"] = list(facts.query("nunique == 1").index)
        if name == "confidence":
            certain = facts.query("nunique == 2 and min == 0 and max == 1")
            found["confidence is only ever 0 or 1 in the rows"] = list(certain.index)
    for name in [str(name) for name in table if "logprob" in str(name).casefold()]:
        numbers = pd.to_numeric(table[name], errors="coerce")  # text files keep it as text
        zero = (numbers == 0).groupby(table["system"], sort=False).agg(["all", "size"])
        silent = zero.query(f"all and size >= {_ODD_ROWS}").index
        found[f"{name} is exactly 0, as if there were none, in the rows"] = list(silent)
    found["all samples of a question are the same in the rows"] = _same_samples(table)
    notes = [
        f"odd: {what} of {len(systems)} system(s): {quoted_names(systems)}"
        for what, systems in found.items()
        if systems
    ]
    if repeats := _repeats(table):
        first = "; ".join(repeats[:_SHOWN_PROBLEMS])
        notes.append(
            f"odd: correct and confidence are the same in every row of {len(repeats)} pair(s) of "
            f"systems: {first}"
        )
    return notes


def _same_samples(table: pd.DataFrame) -> list[str]:
    """Systems whose samples differ in nothing, as where a question is written once a filter."""
    if not table["sample"].any():
        return []
    names = ["correct", *_NUMBERS, "answer"]
    codes = pd.util.hash_pandas_object(table[[n for n in names if n in table]], index=False)
    keys = [table[name] for name in ("system", "dataset", "question_id")]
    questions = codes.groupby(keys, sort=False).agg(["size", "nunique"]).query("size > 1")
    systems = questions.groupby("system", sort=False)["nunique"].agg(["max", "size"])
    return list(systems.query(f"max == 1 and size >= {_ODD_ROWS}").index)


def _repeats(table: pd.DataFrame) -> list[str]:
    """Two systems and the dataset on which all their rows are the same; each later one once."""
    first: dict[tuple[str, bytes], str] = {}
    repeats = []
    seen = table[["question_id", "sample", "correct", "confidence"]]
    codes = pd.util.hash_pandas_object(seen, index=False).to_numpy()
    verdicts = table.groupby(["correct", "confidence"], dropna=False).ngroup().to_numpy()
    groups: Mapping[Any, Any] = table.groupby(["dataset", "system"], sort=False).indices
    for (dataset, system), rows in groups.items():
        # rows that are all alike agree by chance
        if len(rows) < _ODD_ROWS or (verdicts[rows] == verdicts[rows[0]]).all():
            continue
        same = first.setdefault((dataset, np.sort(codes[rows]).tobytes()), system)
        if same != system:
            repeats.append(f"{quoted(same)} and {quoted(system)} on {quoted(dataset)}")
    return repeats


def write_records(records: Records, path: str | Path) -> None:
    """Write validated records as parquet, with their provenance, all or nothing."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path = Path(path)
    if path.suffix != ".parquet":
        raise ValueError(f"{path.name}: records are written as .parquet")
    validate(records.table, source=records.source)
    try:
        table = arrow.Table.from_pandas(records.table, preserve_index=False)
    except (arrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise RecordsError(records.source, f"cannot be written as parquet ({error})") from None
    metadata = {
        **(table.schema.metadata or {}),
        _PROVENANCE_KEY: json.dumps(dict(records.provenance)).encode(),
    }
    table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    parquet.write_table(table, partial)
    partial.replace(path)


# --- looking at records -------------------------------------------------------------------


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Describe each system on each dataset.

    ``confidence_output_ratio`` is the share of rows with a confidence (paper A, section 4.3).

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
    """Rows of one dataset, one system, or both; an error lists those there are."""
    for name, wanted in (("dataset", dataset), ("system", system)):
        if wanted is None:
            continue
        rows = table[table[name] == wanted]
        if rows.empty:
            known = quoted_names(table[name].unique())
            raise ValueError(f"no {name} {quoted(wanted)} among the records; there are {known}")
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

    ``names`` are those of the two in errors, ``suffixes`` are appended to columns that both have.
    Questions that only one was asked are an error with examples.
    """
    key = list(_QUESTION)
    joined = left.merge(right, on=key, suffixes=suffixes)
    problems = []
    for (asked, system), (others, other) in permutations(zip((left, right), names, strict=True)):
        if len(joined) < len(asked):
            sides = asked[key].merge(others[key], on=key, how="left", indicator=True)
            alone = sides[sides["_merge"] == "left_only"]
            first = ", ".join(f"{name}={quoted(alone.iloc[0][name])}" for name in key)
            problems.append(
                f"{len(alone)} row(s) of {quoted(system)} have no counterpart in {quoted(other)}, "
                f"the first is {first}; expected the same questions and samples for both"
            )
    if problems:
        raise RecordsError(f"pairing {quoted(names[0])} with {quoted(names[1])}", problems)
    return joined.sort_values(key, ignore_index=True)
