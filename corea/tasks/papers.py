r"""Datasets of both papers, as questions: from the hub at a pinned revision, or from a folder.

:func:`load_questions` gives the questions of paper A (an answer and a confidence in words),
:func:`load_decisions` those of paper B (one token decides). Both read the rows of
``datasets.load_dataset`` and the files of the original releases, ``<folder>/<dataset>/<file>``, so
that a machine without a network needs only the files. :data:`DATASETS` says where each comes from.

Revisions are commits of the hub's dataset repositories. Choices of our own, where the papers are
silent:

1. A part that is drawn (DeepMath's 16,000 and 500, the 500 for training of CommonsenseQA and
   OpenAI Moderation) is a stretch of one permutation of the rows, with the seed :data:`SEED`.
   Parts share no row, and no text: of rows with the same text the first counts.
2. Questions for checkpoint selection (``"validation"``) are drawn beside the training questions.
   OpenAI Moderation has no others to give: there they are 100 of the 500.
3. Fewer questions than a part has are drawn from it with the same seed, and stay in its order.
4. Multiple choice for paper A lists its options below the question, one a line (``A. bank``), and
   the answer is the letter. GPQA names the right answer first; its options are put in an order
   that is drawn from the text of the question.
5. The answer of GSM8K is what follows ``####``, without the commas between thousands. What is
   before it is the solution, without the marks of its calculator (``<<2+3=5>>``).
6. OlympiadBench: the gold is ``final_answer`` as it is; its ``unit`` is not asked for. The paper's
   675 questions are those of the release of Qwen2.5-Math; the hub has 674 of them.
7. A message of OpenAI Moderation is unsafe if any of its eight categories is 1; one that is not
   annotated counts as 0.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from corea import checks
from corea.records import json_object
from corea.tasks.decision_questions import LETTERS, VERDICTS, DecisionQuestion
from corea.tasks.questions import Question

SEED = 0
"""Of the permutations that parts are drawn from."""

MAX_CHARACTERS = 2**33
"""Of a text file of questions, decompressed."""
MAX_LINE = 2**24
"""Characters of a line in it."""
MAX_LINES = 5_000_000

Row = Mapping[str, Any]


class TaskError(Exception):
    """A dataset cannot be read; says where, what was found, and what to do."""


class _FieldError(Exception):
    """A row lacks a field or has a wrong one; says which and what was expected."""


@dataclass(frozen=True)
class Item:
    """What a row of any dataset says."""

    text: str  # the question or message
    gold: str  # the right answer, letter or verdict
    kind: str  # "math", "choice" or "moderation"
    choices: tuple[str, ...] = ()  # what the letters stand for; empty but for "choice"
    fact: str = ""  # given with the question, or nothing
    level: float | None = None  # difficulty
    solution: str = ""  # the way to the answer, or nothing


@dataclass(frozen=True)
class Part:
    """Where a part of a dataset is."""

    split: str  # on the hub
    files: tuple[str, ...]  # in a folder: the first pattern that fits; files in sorted order
    # first and last (excluded) place in the permutation of the split's rows; None: all, in order
    stretch: tuple[int, int] | None = None


@dataclass(frozen=True)
class Source:
    """A dataset."""

    hub: str  # its name on the hub
    revision: str  # commit of the repository there
    read: Callable[[Row], Item]  # what a row says, from the hub or from the original files
    parts: Mapping[str, Part]
    config: str | None = None  # on the hub
    gated: bool = False  # whether the hub asks for an agreement first
    columns: tuple[str, ...] = ()  # what is read of a row that has much more; empty: all of it


# --- rows -----------------------------------------------------------------------------------------


def _text(row: Row, name: str) -> str:
    """A field that must hold text; ``a.b`` is b in a."""
    value: Any = row
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            found = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)
            raise _FieldError(f"there is no field {name!r}; found {found[:200]}")
        value = value[key]
    if not isinstance(value, str) or not value.strip():
        raise _FieldError(f"{name} is {str(value)[:80]!r}; expected text")
    return value


def _choices(row: Row, name: str) -> tuple[str, ...]:
    """Texts of the options A, B, ...: a list of labels and texts, or two lists."""
    found: Any = row
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    labels, texts = [], []
    if isinstance(found, Mapping):
        labels, texts = [*(found.get("label") or [])], [*(found.get("text") or [])]
    elif isinstance(found, list) and all(isinstance(part, Mapping) for part in found):
        labels, texts = ([part.get(field) for part in found] for field in ("label", "text"))
    if not texts or labels != list(LETTERS[: len(texts)]) or not all(map(_is_text, texts)):
        raise _FieldError(f"{name} is {str(found)[:120]}; expected texts labelled A, B, ...")
    return tuple(texts)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _letter(row: Row, name: str, choices: Sequence[str]) -> str:
    letter = _text(row, name)
    if letter not in LETTERS[: len(choices)]:
        raise _FieldError(f"{name} is {letter!r}; expected one of {LETTERS[: len(choices)]}")
    return letter


def _level(row: Row, name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _FieldError(f"{name} is {value!r}; expected a number")
    return value


def _mathematics(question: str, answer: str, level: str) -> Callable[[Row], Item]:
    return lambda row: Item(
        _text(row, question), _text(row, answer), "math", level=_level(row, level)
    )


def _gsm8k(row: Row) -> Item:
    solution, mark, answer = _text(row, "answer").rpartition("####")
    if not mark or not solution or not answer.strip():
        raise _FieldError("answer has nothing behind '####'; expected the number")
    gold, worked = answer.strip().replace(",", ""), re.sub(r"<<[^<>]*>>", "", solution).strip()
    return Item(_text(row, "question"), gold, "math", solution=worked)


def _olympiadbench(row: Row) -> Item:
    answers = row.get("final_answer")
    if not isinstance(answers, list) or len(answers) != 1 or not _is_text(answers[0]):
        raise _FieldError(f"final_answer is {str(answers)[:80]}; expected a list of one text")
    context = row.get("context")
    before = f"{context}\n" if _is_text(context) else ""
    return Item(before + _text(row, "question"), answers[0], "math")


def _gpqa(row: Row) -> Item:
    question = _text(row, "Question").strip()
    names = ["Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
    answers = [_text(row, name).strip() for name in names]
    key = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big")
    order = np.random.default_rng([SEED, key]).permutation(len(answers)).tolist()
    return Item(
        question, LETTERS[order.index(0)], "choice", tuple(answers[place] for place in order)
    )


def _multiple_choice(stem: str, fact: str = "") -> Callable[[Row], Item]:
    """A reader of rows whose question is nested, as in the original files, or flat."""

    def read(row: Row) -> Item:
        nested = isinstance(row.get("question"), Mapping)
        choices = _choices(row, "question.choices" if nested else "choices")
        question = _text(row, "question.stem" if nested else stem)
        gold = _letter(row, "answerKey", choices)
        return Item(question, gold, "choice", choices, _text(row, fact) if fact else "")

    return read


_CATEGORIES = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")


def _moderation(row: Row) -> Item:
    marks = {name: row.get(name) for name in _CATEGORIES}
    if wrong := {name: mark for name, mark in marks.items() if mark not in (0, 1, None)}:
        raise _FieldError(f"{wrong} found; expected 0, 1 or nothing")
    if not set(_CATEGORIES) & set(row):
        raise _FieldError(f"there is no category; expected some of {', '.join(_CATEGORIES)}")
    return Item(_text(row, "prompt"), VERDICTS[1 in marks.values()], "moderation")


def _xstest(row: Row) -> Item:
    label = _text(row, "label")
    if label.capitalize() not in VERDICTS:
        raise _FieldError(f"label is {label!r}; expected safe or unsafe")
    return Item(_text(row, "prompt"), label.capitalize(), "moderation")


# --- the datasets ---------------------------------------------------------------------------------

_TEST_FILE = {"test": Part("test", ("test.jsonl",))}
_CSQA_TRAIN = ("train_rand_split.jsonl", "train_rand_split.jsonl.gz")
_MODERATION = ("samples-1680.jsonl", "samples-1680.jsonl.gz")
_DEEPMATH = ("train-*.parquet", "*.jsonl")

DATASETS: Mapping[str, Source] = MappingProxyType(
    {
        "deepmath": Source(
            "zwhe99/DeepMath-103K",
            "5cf055d1fe3d7a2eb19719ac020211469736ae44",
            _mathematics("question", "final_answer", "difficulty"),
            {
                "test": Part("train", _DEEPMATH, (0, 500)),
                "train": Part("train", _DEEPMATH, (500, 16_500)),
                "validation": Part("train", _DEEPMATH, (16_500, 17_500)),
            },
            columns=("question", "final_answer", "difficulty"),  # not its three long solutions
        ),
        "math500": Source(
            "HuggingFaceH4/MATH-500",
            "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            _mathematics("problem", "answer", "level"),
            _TEST_FILE,
        ),
        "gsm8k": Source(
            "openai/gsm8k",
            "cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
            _gsm8k,
            _TEST_FILE,
            config="main",
        ),
        "olympiadbench": Source(
            "Hothan/OlympiadBench",
            "3b426ee1d587c71b495146dde9f3e995ee7ac59f",
            _olympiadbench,
            {"test": Part("train", ("test.jsonl",))},
            config="OE_TO_maths_en_COMP",
        ),
        "gpqa": Source(
            "Idavidrein/gpqa",
            "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
            _gpqa,
            {"test": Part("train", ("gpqa_main.csv",))},
            config="gpqa_main",
            gated=True,
        ),
        "commonsenseqa": Source(
            "tau/commonsense_qa",
            "94630fe30dad47192a8546eb75f094926d47e155",
            _multiple_choice("question"),
            {
                "train": Part("train", _CSQA_TRAIN, (0, 500)),
                "validation": Part("train", _CSQA_TRAIN, (500, 1000)),
                "test": Part("validation", ("dev_rand_split.jsonl",)),
            },
        ),
        "openbookqa": Source(
            "allenai/openbookqa",
            "388097ea7776314e93a529163e0fea805b8a6454",
            _multiple_choice("question_stem", "fact1"),
            {"test": Part("test", ("test_complete.jsonl",))},
            config="additional",
        ),
        "openai_moderation": Source(
            "mmathys/openai-moderation-api-evaluation",
            "84e5cf3bcd6acb3dfc70b6760451645872218a3e",
            _moderation,
            {
                "train": Part("train", _MODERATION, (0, 400)),
                "validation": Part("train", _MODERATION, (400, 500)),
                "test": Part("train", _MODERATION, (500, 1680)),
            },
        ),
        "xstest": Source(
            "walledai/XSTest",
            "f1d713187c61b6ae64e602d74f0b3d812cc2e8e8",
            _xstest,
            {"test": Part("test", ("xstest_prompts.csv",))},
            gated=True,
        ),
    }
)
"""The datasets by name: paper A, section 4.1; paper B, section 3.2."""


def load_questions(
    dataset: str, part: str, n: int | None = None, *, folder: str | Path = ""
) -> list[Question]:
    """At most ``n`` questions to be answered in words; from the hub where there is no ``folder``.

    Source: paper A, section 4.1.
    """
    items = _items(dataset, part, n, folder)
    if items and items[0][1].kind == "moderation":
        raise ValueError(f"{dataset!r} has messages to be judged: load_decisions reads them")
    return [
        Question(dataset, name, _listed(i), i.gold, i.kind, i.level, i.choices, i.solution)
        for name, i in items
    ]


def load_decisions(
    dataset: str, part: str, n: int | None = None, *, folder: str | Path = "", longest: int = 0
) -> list[DecisionQuestion]:
    """Questions with a fixed set of options, and messages to be judged; as :func:`load_questions`.

    Those whose text has more than ``longest`` characters are left out, unless that is 0.

    Source: paper B, section 3.2.
    """
    items = _items(dataset, part, n, folder, longest)
    if items and items[0][1].kind == "math":
        raise ValueError(f"{dataset!r} has no options to decide between: load_questions reads it")
    return [
        DecisionQuestion(dataset, name, i.text, i.gold, i.choices, i.fact, i.level)
        for name, i in items
    ]


def _listed(item: Item) -> str:
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, item.choices, strict=False)]
    fact = [f"Fact: {item.fact}"] if item.fact else []
    return "\n".join([*fact, item.text, *options])


def _items(
    dataset: str, part: str, n: int | None, folder: str | Path, longest: int = 0
) -> list[tuple[str, Item]]:
    """Names and contents of the questions of a part."""
    checks.one_of(dataset, "dataset", DATASETS)
    checks.whole(longest, "longest", 0)
    if n is not None:
        checks.whole(n, "n", 1)
    source = DATASETS[dataset]
    if part not in source.parts:
        raise ValueError(f"{dataset!r} has no {part!r} part; it has {', '.join(source.parts)}")
    place = source.parts[part]
    rows = _from_files(dataset, source, place, Path(folder)) if folder else _from_hub(source, place)
    items, seen = [], set()
    for i, (where, row) in enumerate(rows):
        try:
            item = source.read(row)
        except _FieldError as error:
            raise TaskError(f"{where}: {error}") from None
        if place.stretch is None or (item.text, item.choices) not in seen:
            seen.add((item.text, item.choices))
            items.append((f"{i:05d}", item))
    if not items:
        raise TaskError(f"{dataset}: no rows; expected questions")
    order = np.random.default_rng([SEED, len(items)]).permutation(len(items)).tolist()
    if place.stretch is not None:
        items = [items[k] for k in order[slice(*place.stretch)]]
        order = list(range(len(items)))
    if longest:
        order = [k for k in order if len(items[k][1].text) <= longest]
        if not order:
            raise ValueError(
                f"longest is {longest}; no question of {dataset} ({part}) has so few characters"
            )
    return [items[k] for k in sorted(order[:n])]


def _from_hub(source: Source, part: Part) -> Iterator[tuple[str, Row]]:
    """Rows of a part's split on the hub, each with where it is."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    where = f"{source.hub} ({part.split})"
    local = "or give the folder with the original files (environment variable COREA_DATA)"
    try:
        table = datasets.load_dataset(
            source.hub, source.config, split=part.split, revision=source.revision
        )
        chosen = [name for name in table.column_names if name in source.columns]
        table = table.select_columns(chosen) if chosen else table
    except DatasetNotFoundError as error:
        if source.gated:
            raise TaskError(
                f"{where}: not to be read without agreement. Ask for access on "
                f"https://huggingface.co/datasets/{source.hub} and log in with `hf auth login`, "
                f"{local}"
            ) from error
        raise TaskError(f"{where}: not there at revision {source.revision}; {error}") from error
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[:1]
        raise TaskError(
            f"{where}: not read ({type(error).__name__}: {''.join(first)[:300]}). Connect to the "
            f"network, {local}"
        ) from error
    for i, row in enumerate(table):
        yield f"{where}, row {i}", row


def _from_files(
    dataset: str, source: Source, part: Part, folder: Path
) -> Iterator[tuple[str, Row]]:
    """Rows of the original files in a folder, each with where it is."""
    for pattern in part.files:
        if paths := sorted((folder / dataset).glob(pattern)):
            for path in paths:
                try:
                    yield from _rows(path, source.columns)
                except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
                    raise TaskError(f"{path.as_posix()}: not readable ({error})") from error
            return
    raise TaskError(
        f"{(folder / dataset).as_posix()}: there is no {' or '.join(part.files)}; expected the "
        f"original files of {dataset}"
    )


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    name = path.as_posix()
    if path.suffix == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as table:
            chosen = [name for name in table.schema_arrow.names if name in columns] or None
            batches = table.iter_batches(columns=chosen)
            rows = (row for batch in batches for row in batch.to_pylist())
            for i, row in enumerate(rows):
                yield f"{name}, row {i}", row
        return
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as stream:
        if path.suffix == ".csv":
            for row in (reader := csv.DictReader(_lines(stream))):
                yield f"{name}, line {reader.line_num}", row
            return
        for number, line in enumerate(_lines(stream), 1):
            if not line.strip():
                continue
            try:
                yield f"{name}, line {number}", json_object(line)
            except ValueError as error:
                raise TaskError(f"{name}, line {number}: {error}") from None


def _lines(stream: IO[str]) -> Iterator[str]:
    """The lines of a file, within limits: a small gzip file can hold any number, of any length."""
    left = MAX_CHARACTERS
    for _ in range(MAX_LINES):
        if not (line := stream.readline(MAX_LINE + 1)):
            return
        left -= len(line)
        if len(line) > MAX_LINE or left < 0:
            raise ValueError(
                f"more than {MAX_LINE:,} characters in a line or {MAX_CHARACTERS:,} in all"
            )
        yield line
    raise ValueError(f"{MAX_LINES:,} lines or more; expected fewer")
