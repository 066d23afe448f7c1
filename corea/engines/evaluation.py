"""Evaluation: ask a model questions, and keep every answer as records.

Questions are asked in parts. Each part that is answered and checked becomes a folder of its own
below the evaluation's directory, whole or not at all (:mod:`corea.store`), so an evaluation that
is interrupted loses the part it was at, and the same call again asks only for what is missing.

1. A part says what request it belongs to: the model's fingerprint, the system's name, the
   questions, the sampling and the signals. Where a directory holds a part of another request,
   nothing is asked and nothing overwritten; the error names the part and what differs.
2. A part that is damaged, or cannot be read, is named in the notes of the records, and made again.
3. An answer that could not be checked (out of time or memory) counts as wrong; how many did is
   in the notes.
4. An answer that could not be had (a server that failed), or that no record could hold (a count
   beyond :data:`corea.engines.base.MAX_TOKENS`, text that is not UTF-8), is a row with an
   ``error``, left out of the records; how many there are is in the notes. The same call again asks
   for these alone. What a part holds is read back before it is sealed.
5. Confidence is the verbalized one. Beside it are ``average_probability``,
   ``expected_confidence`` and ``expected_mass`` (:mod:`corea.confidence`); NaN where the engine
   has none or it was not asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from corea import checks
from corea.confidence import CONFIDENCE_GRID, average_probability
from corea.engines.base import LONE_SURROGATE, MAX_TOKENS, Rollout
from corea.records import Records, records_from_columns
from corea.store import StoreError, check_seal, seal, write_atomically
from corea.tasks.parsing import ParsedCompletion, parse_completion
from corea.tasks.questions import Question
from corea.tasks.verify import KINDS, score_answers

if TYPE_CHECKING:
    from corea.engines.base import Engine, Sampling
    from corea.tasks.decision_questions import DecisionQuestion

_ROWS, _STATES, _REQUEST = "rows.parquet", "states.safetensors", "request.json"
_FAILED = "failed"  # in the request: how many answers could not be had
_LONGEST_ERROR = 400  # characters
_RECORDS = (
    "dataset",
    "question_id",
    "system",
    "sample",
    "correct",
    "confidence",
    "prompt_tokens",
    "completion_tokens",
    "answer",
    "gold",
    "expected_confidence",
    "expected_mass",
    "average_probability",
)
_NEEDED = (*_RECORDS, "finished", "undecided", "error")

Asked = TypeVar("Asked", "Question", "DecisionQuestion")
Answers = tuple[pd.DataFrame, NDArray[np.float32] | None]
Samples = Sequence[Sequence[int]]

_log = logging.getLogger(__name__)


class EvaluationError(Exception):
    """An evaluation's directory does not hold what it should; names the part."""


def evaluate(
    engine: Engine,
    questions: Sequence[Question],
    *,
    system: str,
    sampling: Sampling,
    directory: str | Path,
    part_size: int | None = None,
    confidence_grid: Sequence[str] | None = None,
    pooled_states: bool = False,
) -> Records:
    """Ask all questions, or those that an earlier, interrupted call left.

    Of two processes on the same directory only one may be at work (:func:`corea.store.make` sees
    to that). The records have a row for each question and sample, in the order of the questions;
    their notes say how many answers could not be checked, could not be had or were cut.

    Args:
        engine: What answers.
        questions: What is asked; no two of the same dataset and name.
        system: Name of what answers, in the records.
        sampling: How completions are drawn, and how many of each question.
        directory: Where parts are kept.
        part_size: Questions of a part; when None, as many as fill one batch of the engine.
        confidence_grid: Texts for the expected confidence; none: it is not computed. When None,
            :data:`corea.confidence.CONFIDENCE_GRID` if the engine can score texts.
        pooled_states: Whether to keep pooled states, for :func:`read_pooled_states`.
    """
    _require_questions(questions)
    if not system:
        raise ValueError("system is empty; expected a name")
    if part_size is None:
        part_size = max(1, engine.batch_size // sampling.n_samples)
    if confidence_grid is None:
        confidence_grid = CONFIDENCE_GRID if engine.gives_expected_confidence else ()

    def answer(part: Sequence[Question], wanted: Samples | None) -> Answers:
        wanted = [range(sampling.n_samples)] * len(part) if wanted is None else wanted
        rollouts = engine.generate(
            [question.prompt for question in part],
            sampling,
            pooled_states=pooled_states,
            confidence_grid=confidence_grid,
            samples=wanted,
        )
        require_rollouts(rollouts, [len(numbers) for numbers in wanted])
        rollouts = [[kept(rollout) for rollout in group] for group in rollouts]
        rows = pd.DataFrame(_rows(system, part, wanted, rollouts))
        if not pooled_states:
            return rows, None
        found = (rollout.pooled_state for group in rollouts for rollout in group)
        states = [state for state in found if state is not None]
        if len(states) < len(rows):
            raise EvaluationError("the engine gave no pooled state, though asked for one")
        return rows, np.stack(states)

    request = {
        "system": system,
        "model": engine.fingerprint,
        "sampling": dataclasses.asdict(sampling),
        "confidence_grid": list(confidence_grid),
        "pooled_states": pooled_states,
    }
    notes = ask_in_parts(
        questions, answer, request, directory, part_size, at_once=engine.parts_at_once
    )
    n_parts = -(-len(questions) // part_size)
    samples = _read_rows([Path(directory, _name(number)) for number in range(n_parts)], _NEEDED)
    if lacking := missing_answers(samples):
        notes.append(lacking)
        samples = samples[samples["error"] == ""]
    if samples.empty:
        raise EvaluationError(f"{Path(directory).as_posix()}: {lacking}")
    undecided, cut = int(samples["undecided"].sum()), int((~samples["finished"]).sum())
    if undecided:
        notes.append(f"{undecided:,} answer(s) could not be checked and count as wrong")
    if cut:
        notes.append(f"{cut:,} completion(s) were cut at {sampling.max_completion_tokens:,} tokens")
    # to_dict would make numpy values of what records read as Python's
    columns = {name: samples[name].tolist() for name in _RECORDS}
    return records_from_columns(columns, source=system, notes=notes)


def missing_answers(samples: pd.DataFrame) -> str:
    """How many answers could not be had and the first reason; empty if none is missing."""
    failed = samples.loc[samples["error"] != "", "error"]
    if failed.empty:
        return ""
    return (
        f"{len(failed):,} of {len(samples):,} answer(s) could not be had, the first because of "
        f"{failed.iloc[0]}; the same call again asks for them"
    )


def ask_in_parts(
    questions: Sequence[Asked],
    answer: Callable[[Sequence[Asked], Samples | None], Answers],
    request: Mapping[str, Any],
    directory: str | Path,
    part_size: int,
    *,
    at_once: int = 1,
) -> list[str]:
    """Have questions answered part by part, but for the answers that are there.

    ``answer`` is given the questions of a part and the numbers of the samples wanted of each (None:
    all); it gives the rows, and the hidden states that are kept, if any. ``request`` is what else
    decides the answers. ``at_once`` parts are asked at once, each in a thread. Returns a note for
    each part that was damaged and made again.
    """
    checks.whole(part_size, "part_size", 1)
    # not astuple, which copies every value
    read = attrgetter(*(field.name for field in dataclasses.fields(questions[0])))
    whole = {
        **request,
        "questions": _digest([read(question) for question in questions]),
        "n_questions": len(questions),
        "part_size": part_size,
    }
    directory = Path(directory)
    there, damaged = _parts_there(directory, whole)

    def make(number: int) -> None:
        path, start = directory / _name(number), number * part_size
        part = questions[start : start + part_size]
        # hidden states are of all rows of a part, or of none
        keeps_rows = number in there and not (path / _STATES).is_file()
        kept = pd.read_parquet(path / _ROWS) if keeps_rows else None
        if kept is None:
            rows, states = answer(part, None)
        else:
            failed = kept[kept["error"] != ""].groupby(["dataset", "question_id"])["sample"]
            wanted = {name: numbers.tolist() for name, numbers in failed}
            again = [q for q in part if (q.dataset, q.question_id) in wanted]
            new, states = answer(again, [wanted[q.dataset, q.question_id] for q in again])
            rows = _replaced(kept, new)
        _write_part(path, whole, rows, states)

    numbers = range(-(-len(questions) // part_size))
    to_make = [number for number in numbers if there.get(number, 1)]
    if at_once == 1:
        for number in to_make:
            make(number)
    else:
        with ThreadPoolExecutor(at_once) as threads:
            try:
                for done in [threads.submit(make, number) for number in to_make]:
                    done.result()
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise
    return [f"{message}; it was made again" for message in damaged]


def require_rollouts(rollouts: Sequence[Sequence[Rollout]], wanted: Sequence[int]) -> None:
    """Refuse more or fewer rollouts of a question than were asked for."""
    if [len(group) for group in rollouts] != list(wanted):
        raise EvaluationError(
            f"the engine gave {[len(group) for group in rollouts]} rollouts; expected "
            f"{list(wanted)}"
        )


def read_samples(directory: str | Path, *, failed: bool = False) -> pd.DataFrame:
    """All that a finished evaluation kept, with the texts.

    Beside the columns of its records: ``kind``, ``level``, ``prompt``, ``completion``,
    ``finished`` (whether the model ended it), ``undecided`` (whether the answer could not be
    checked) and ``error`` (why there is no answer, else empty; such rows only if ``failed``).
    Rows are in the order of the questions. A part that is missing or damaged is an
    :class:`EvaluationError`.
    """
    samples = _read_rows(_finished(Path(directory)))
    return samples if failed else samples[samples["error"] == ""].reset_index(drop=True)


def read_pooled_states(directory: str | Path) -> NDArray[np.float32]:
    """Pooled states of a finished evaluation that kept them, (n, d), as its records' rows."""
    from safetensors.numpy import load_file

    parts = _finished(Path(directory))
    if not (parts[0] / _STATES).is_file():
        raise EvaluationError(f"{parts[0].as_posix()}: no pooled states; they were not asked for")
    return np.concatenate([load_file(part / _STATES)["states"] for part in parts])


def require_names(questions: Sequence[tuple[str, str]]) -> None:
    """Refuse questions (dataset and name of each) that cannot be told apart."""
    if not questions:
        raise ValueError("no questions; expected at least one")
    names: dict[tuple[str, str], int] = {}
    for i, name in enumerate(questions):
        if not all(name):
            raise ValueError(f"questions[{i}]: dataset and question_id are {name}; expected names")
        if name in names:
            raise ValueError(f"questions[{i}] and questions[{names[name]}] are both {name}")
        names[name] = i


def _require_questions(questions: Sequence[Question]) -> None:
    """Find what cannot be checked before anything is asked."""
    require_names([(question.dataset, question.question_id) for question in questions])
    for i, question in enumerate(questions):
        if question.kind not in KINDS:
            raise ValueError(
                f"questions[{i}]: kind is {question.kind!r}; expected one of {', '.join(KINDS)}"
            )
        if not question.gold.strip():
            raise ValueError(f"questions[{i}]: gold is {question.gold!r}; expected an answer")
        for name in ("dataset", "question_id", "text", "gold"):
            if LONE_SURROGATE.search(getattr(question, name)):
                raise ValueError(f"questions[{i}]: {name} has half of a surrogate pair")


def kept(rollout: Rollout) -> Rollout:
    """The rollout, or a failed one where it is such as no record could hold (rule 4)."""
    wrong = [
        f"{name} is {value!r}"
        for name in ("prompt_tokens", "completion_tokens")
        if not _is_count(value := getattr(rollout, name))
    ]
    completion: object = rollout.completion
    if not isinstance(completion, str):
        wrong.append(f"the completion is {type(completion).__name__}")
    elif LONE_SURROGATE.search(completion):
        wrong.append("the completion has half of a surrogate pair")
    for name in ("expected_confidence", "expected_mass"):
        value = _float(getattr(rollout, name))
        if not (np.isnan(value) or 0 <= value <= 1):
            wrong.append(f"{name} is {value!r}")
    reason = f"the answer cannot be kept: {'; '.join(wrong)}" if wrong else str(rollout.error)
    reason = "".join(c if c.isprintable() else "?" for c in reason[:_LONGEST_ERROR])
    if not wrong:
        return rollout if reason == rollout.error else dataclasses.replace(rollout, error=reason)
    lost = Rollout("", None, None, finished=False, prompt_tokens=0, error=reason)
    return dataclasses.replace(lost, pooled_state=rollout.pooled_state)


def signals_of(rollout: Rollout, parsed: ParsedCompletion) -> dict[str, float]:
    """The confidence signals of one answer, by column of the records; NaN where there is none."""
    return {
        "confidence": _float(parsed.confidence),
        "expected_confidence": _float(rollout.expected_confidence),
        "average_probability": _average(rollout),
    }


# --- parts --------------------------------------------------------------------------------------


def _write_part(
    path: Path,
    request: Mapping[str, Any],
    rows: pd.DataFrame,
    states: NDArray[np.float32] | None,
) -> None:
    """Write all of a part, under its name only once it is whole."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows.to_parquet(partial / _ROWS, index=False)
    if states is not None:
        from safetensors.numpy import save_file

        save_file({"states": states}, partial / _STATES)
    written = {**request, _FAILED: int((rows["error"] != "").sum())}
    write_atomically(partial / _REQUEST, json.dumps(written, indent=1, sort_keys=True) + "\n")
    if wrong := _unreadable(partial, whole=True):
        raise EvaluationError(f"{path.as_posix()}: {wrong}")
    seal(partial)
    shutil.rmtree(path, ignore_errors=True)  # a damaged one
    partial.replace(path)


def _damage(part: Path) -> str:
    """What is wrong with a part that is there; empty if it is as it was sealed and readable."""
    try:
        check_seal(part)
    except StoreError as error:
        return str(error)
    wrong = _unreadable(part)
    return wrong and f"{part.as_posix()}: {wrong}"


def _unreadable(part: Path, *, whole: bool = False) -> str:
    """Why the rows of a part cannot be read; empty if they can, as far as their types tell."""
    from pyarrow import ArrowException, types
    from pyarrow.parquet import ParquetFile

    kinds: Mapping[str, Callable[[Any], bool]] = {
        **dict.fromkeys(("sample", "prompt_tokens", "completion_tokens"), types.is_signed_integer),
        **dict.fromkeys(("correct", "finished"), types.is_boolean),
    }
    try:
        with ParquetFile(part / _ROWS) as file:
            found = {field.name: field.type for field in file.schema_arrow}
            if whole:
                file.read(use_threads=False)
        failed = _request(part)[_FAILED]
    except (OSError, ArrowException, ValueError, KeyError) as error:
        return f"{_ROWS} or {_REQUEST} cannot be read ({type(error).__name__}: {error})"
    if type(failed) is not int:
        return f"{_REQUEST} has {failed!r} as {_FAILED}; expected a number"
    for name, holds in kinds.items():
        if name not in found or not holds(found[name]):
            return f"{_ROWS} cannot be read: its column {name} is of type {found.get(name)}"
    return ""


def _is_count(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return 0 <= int(value) <= MAX_TOKENS


def _replaced(rows: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The rows, with those of the same questions and samples replaced."""
    keys = ["dataset", "question_id", "sample"]
    rows, new = rows.set_index(keys), new.set_index(keys)
    order = rows.index
    return pd.concat([rows.drop(new.index), new]).loc[order].reset_index()


def _rows(
    system: str,
    questions: Sequence[Question],
    wanted: Samples,
    rollouts: Sequence[Sequence[Rollout]],
) -> Iterator[dict[str, Any]]:
    asked = [question for question, group in zip(questions, rollouts, strict=True) for _ in group]
    answered = [
        pair
        for numbers, group in zip(wanted, rollouts, strict=True)
        for pair in zip(numbers, group, strict=True)
    ]
    parsed = [parse_completion(rollout.completion) for _, rollout in answered]
    verdicts = score_answers(
        [reading.answer for reading in parsed],
        [question.gold for question in asked],
        [question.kind for question in asked],
        [question.options for question in asked],
    )
    for i, (question, (sample, rollout)) in enumerate(zip(asked, answered, strict=True)):
        signals = signals_of(rollout, parsed[i])
        yield {
            "dataset": question.dataset,
            "question_id": question.question_id,
            "system": system,
            "sample": sample,
            "correct": verdicts[i] is True,
            "confidence": signals["confidence"],
            "prompt_tokens": rollout.prompt_tokens,
            "completion_tokens": rollout.completion_tokens,
            "answer": parsed[i].answer,
            "gold": question.gold,
            "expected_confidence": signals["expected_confidence"],
            "expected_mass": _float(rollout.expected_mass),
            "average_probability": signals["average_probability"],
            "kind": question.kind,
            "level": _float(question.level),
            "prompt": question.prompt,
            "completion": rollout.completion,
            "finished": rollout.finished,
            "undecided": verdicts[i] is None,
            "error": rollout.error,
        }


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _average(rollout: Rollout) -> float:
    """The average probability; missing where a log-probability is no number up to 0."""
    with contextlib.suppress(ValueError):
        return _float(None if rollout.logprobs is None else average_probability(rollout.logprobs))
    return float("nan")


def _parts_there(directory: Path, request: Mapping[str, Any]) -> tuple[dict[int, int], list[str]]:
    """Parts that are whole, with how many answers they lack, and what is wrong with others."""
    there, damaged = {}, []
    for path in sorted(directory.glob("part-*")):
        if path.name.endswith(".partial"):
            continue
        if wrong := _damage(path):
            _log.warning("%s", wrong)
            damaged.append(wrong)
            continue
        found = _request(path)
        if differing := [name for name in request if found.get(name) != request[name]]:
            raise EvaluationError(
                f"{path.as_posix()} belongs to another evaluation: "
                + "; ".join(f"{n} is {found.get(n)!r}, not {request[n]!r}" for n in differing)
                + ". Use another directory, or delete this one"
            )
        there[int(path.name.removeprefix("part-"))] = int(found[_FAILED])
    return there, damaged


def _read_rows(parts: Sequence[Path], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of all parts, which were checked before; all columns when None."""
    import pyarrow as arrow
    from pyarrow.parquet import ParquetFile

    names = None if columns is None else list(columns)
    # one table before it is pandas': a data frame of each part takes four times as long
    tables = [
        ParquetFile(part / _ROWS).read(names, use_threads=False).replace_schema_metadata(None)
        for part in parts
    ]
    table: pd.DataFrame = arrow.concat_tables(tables, promote_options="permissive").to_pandas()
    return table


def _finished(directory: Path) -> list[Path]:
    """The parts of a finished evaluation, in order."""
    parts: list[Path] = []
    n_parts = 1
    while len(parts) < n_parts:
        path = directory / _name(len(parts))
        if not path.is_dir():
            raise EvaluationError(f"{path.as_posix()}: not there; the evaluation is not finished")
        if wrong := _damage(path):
            raise EvaluationError(wrong)
        request = _request(path)
        n_parts = -(-request["n_questions"] // request["part_size"])
        parts.append(path)
    return parts


def _request(path: Path) -> dict[str, Any]:
    request: dict[str, Any] = json.loads((path / _REQUEST).read_text("utf-8"))
    return request


def _name(number: int) -> str:
    return f"part-{number:05d}"


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
