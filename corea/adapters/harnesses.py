"""Records out of the logs of evaluation harnesses.

Each function reads one file of the harness's own making. The rules that all share (scores,
log-probabilities, failed calls, limits) are those of :mod:`corea.adapters.rows`; what a format
has of its own is said at its function.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from corea.adapters.rows import (
    ARRAY,
    FLAG,
    NAME,
    NO_LOGPROBS,
    NUMBER,
    OBJECT,
    OF_TOKENS,
    SCORE,
    TEXT,
    WHOLE,
    Gathering,
    Row,
    array_of,
    chosen,
    lines_of,
    object_of,
    said,
)
from corea.records import (
    MAX_BYTES,
    MAX_ROWS,
    Records,
    RecordsError,
    json_object,
    quoted,
    quoted_names,
    too_large,
)

_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "no": 0.0}  # of Inspect
_INPUT = ("input_tokens", "input_tokens_cache_read", "input_tokens_cache_write")


def lm_eval(
    path: str | Path,
    *,
    filter: str | None = None,  # the format's own name
    metric: str | None = None,
    system: str | None = None,
    dataset: str | None = None,
    threshold: float | str | None = None,
) -> Records:
    r"""``samples_TASK_TIME.jsonl`` of lm-evaluation-harness (``--log_samples``).

    A row is a question under one ``filter``: where the file has several, one has to be named, or
    every question would count twice. Right or wrong is the ``metric`` named, or else ``acc`` or
    ``exact_match``, or the only one. The dataset is the task in the file's name, the system the
    folder's name; both can be given.

    The confidence is that of the option chosen by ``acc``, out of the log-likelihoods
    :math:`\ell` of the options: :math:`\max_k e^{\ell_k} / \sum_j e^{\ell_j}`. Other metrics
    choose otherwise (``acc_norm`` by length) or from text without log-probabilities: missing.
    """
    path = Path(path)
    rows = list(lines_of(path))
    # older versions wrote no filter
    filters = dict.fromkeys(row.may("filter", kind=TEXT) or "none" for row in rows)
    wanted = chosen(path.name, "filter", filter, list(filters))
    metrics = list(dict.fromkeys(_lm_eval_metrics(rows[0])))
    usual = next((name for name in ("acc", "exact_match") if name in metrics), None)
    judged = chosen(path.name, "metric", metric or usual, metrics)
    task = re.fullmatch(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl(?:\.gz)?", path.name)
    gathered = Gathering(path, threshold=threshold)
    for name, one, there in (("metric", judged, metrics), ("filter", wanted, filters)):
        if len(there) > 1:
            gathered.notes.append(f"the {name} is {one}; the file has {', '.join(there)}")
    for row in rows:
        if (row.may("filter") or "none") != wanted:
            continue
        logs = _likelihoods(row, mutual="acc_mutual_info" in metrics)
        answer, confidence = row.may("filtered_resps", 0), None
        if len(logs):
            answer = int(logs.argmax()) if len(logs) > 1 else None
            if not logs.any():
                gathered.counts[NO_LOGPROBS] += 1
            elif len(logs) > 1 and judged == "acc" and np.isfinite(logs.max()):
                confidence = float(1 / np.exp(logs - logs.max()).sum())
        gathered.add(
            dataset=dataset or (task[1] if task else path.stem),
            question_id=row.need("doc_id", kind=NAME),
            system=system or path.resolve().parent.name,
            correct=gathered.is_right(row, judged),
            confidence=confidence,
            answer=said(answer),
            gold=said(row.may("target")),
        )
    return gathered.records("the probability of the option chosen, among the options")


def _lm_eval_metrics(row: Row) -> list[str]:
    if (listed := row.may("metrics", kind=ARRAY)) is not None:
        return [str(name) for name in listed]
    numbers = {name: value for name, value in row.content.items() if name != "doc_id"}
    return [name for name, value in numbers.items() if isinstance(value, int | float)]  # older


def _likelihoods(row: Row, *, mutual: bool) -> NDArray[np.float64]:
    """Log-likelihoods of the options; empty where the answer is text."""
    found = []
    for i, response in enumerate(row.need("resps", kind=ARRAY)):
        pair = response[0] if isinstance(response, list) and response else None
        if not isinstance(pair, list):
            break
        try:  # some versions write numbers as text
            found.append(float(pair[0]))
        except (IndexError, OverflowError, TypeError, ValueError):
            raise row.wrong(("resps", i, 0), pair, "[log-likelihood, is_greedy]") from None
    # behind them, for mutual information, those without the question
    return np.array(found[: len(found) // 2] if mutual else found)


def inspect_ai(
    path: str | Path,
    *,
    scorer: str | None = None,
    confidence: str | None = None,
    threshold: float | str | None = None,
    errors: str = "wrong",
) -> Records:
    """A log of Inspect, ``.eval`` or ``.json``.

    ``C`` means correct, also where the answer is the letter C or A; ``I`` and ``N`` (no answer)
    mean wrong, ``P`` is 0.5. Where several scorers judged, one has to be named. An epoch is a
    sample. The confidence is what the key ``confidence`` of the score's or the sample's metadata
    says, if one is named; else of the output's log-probabilities. Tokens are those of the
    evaluated model, prompt tokens with those from and to a cache.
    """
    path = Path(path)
    gathered = Gathering(path, threshold=threshold, errors=errors)
    samples = _zipped(path) if path.suffix == ".eval" else _listed(path)
    head = next(samples)
    model, task = (head.need("eval", name, kind=TEXT) for name in ("model", "task"))
    if (status := head.may("status", kind=TEXT)) != "success":
        gathered.notes.append(f"the log's status is {quoted(status)}; expected 'success'")
    for row in samples:
        usage = row.may("model_usage", model, kind=OBJECT) or {}
        cells: dict[str, Any] = {
            "dataset": task,
            "question_id": row.need("id", kind=NAME),
            "system": model,
            "sample": row.need("epoch", kind=WHOLE) - 1,
            "gold": said(row.may("target")),
            "prompt_tokens": sum(usage.get(name) or 0 for name in _INPUT) if usage else None,
            "completion_tokens": usage.get("output_tokens"),
        }
        if row.may("error"):
            gathered.fail(**cells)
            continue
        if not (scores := row.may("scores", kind=OBJECT)):
            gathered.counts["sample(s) have no score and made no record"] += 1
            continue
        at = ("scores", chosen(f"{path.name}, {row.where}", "scorer", scorer, list(scores)))
        value = row.need(*at, "value", kind=SCORE)
        if confidence is None:
            stated = gathered.probability(row, "output", "choices", 0, "logprobs", "content")
        elif (stated := row.may(*at, "metadata", confidence)) is None:
            stated = row.may("metadata", confidence)
        letters = _LETTERS.get(value, value) if isinstance(value, str) else value
        gathered.add(
            **cells,
            correct=gathered.is_right(row, *at, "value", found=letters),
            confidence=stated,
            answer=said(row.may(*at, "answer")),
        )
    what = f"{quoted(confidence)} of the metadata" if confidence else OF_TOKENS
    return gathered.records(what, inspect_ai=str(head.may("eval", "packages", "inspect_ai")))


def _listed(path: Path) -> Iterator[Row]:
    """The header and the samples of a log that is one JSON object."""
    head = object_of(path)
    yield head
    for i, content in enumerate(head.need("samples", kind=ARRAY)):
        yield Row(path.name, f"samples[{i}]", content)


def _zipped(path: Path) -> Iterator[Row]:
    """The header and the samples of a log that is a zip; all members together have a limit."""
    left, name = MAX_BYTES, ""
    if path.stat().st_size > MAX_BYTES:
        raise too_large(path.name, "bytes", MAX_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            names = dict.fromkeys(archive.namelist())
            # what has no header is still being written, or broke off
            head = "header.json" if "header.json" in names else "_journal/start.json"
            samples = [name for name in names if re.fullmatch(r"samples/[^/]+\.json", name)]
            if len(samples) > MAX_ROWS:
                raise too_large(path.name, "samples", MAX_ROWS)
            for name in (head, *samples):
                data = _member(archive, name, left + 1)
                if (left := left - len(data)) < 0:
                    raise too_large(path.name, "bytes once decompressed", MAX_BYTES)
                yield Row(path.name, name, json_object(data.decode()))
    except RecordsError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, KeyError) as error:
        problem = f"{name or 'zip'}: damaged, or not Inspect's ({error}); expected a complete log"
        raise RecordsError(path.name, problem) from None
    except (RuntimeError, ValueError) as error:  # an unknown compression; not JSON
        raise RecordsError(path.name, f"{name}: {error}") from None


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The first ``most`` bytes of a member; Inspect compresses by Zstandard (method 93)."""
    info = archive.getinfo(name)
    if info.compress_type != 93:  # zipfile knows it from Python 3.14 on
        with archive.open(info) as member:
            return member.read(most)
    import pyarrow as arrow

    file = cast(IO[bytes], archive.fp)
    file.seek(info.header_offset + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)  # its name, and what is extra
    packed = arrow.py_buffer(file.read(info.compress_size))
    with arrow.CompressedInputStream(packed, "zstd") as stream:
        data: bytes = stream.read(most)
    if len(data) < most and zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile(f"{name} is damaged")
    return data


def helm(
    path: str | Path, *, metric: str = "exact_match", threshold: float | str | None = None
) -> Records:
    """``per_instance_stats.json`` of HELM, with the ``run_spec.json`` beside it.

    Right or wrong is the mean of the statistic ``metric``. HELM writes an instance once for
    each of its metrics: they are put together. Perturbed instances make no record. A trial is a
    sample. The dataset is the run's name without its model, so that runs of several models are
    of one dataset.

    The confidence is ``max_prob``. HELM writes a ``logprob`` of 0 and a ``max_prob`` of 1 where
    the model gave no log-probabilities: then it is missing, and a note counts these.
    """
    path = Path(path)
    beside = path.with_name("run_spec.json")
    if not beside.is_file():
        raise RecordsError(path.name, "found no run_spec.json beside it, expected the run's")
    spec = object_of(beside)
    system = spec.need("adapter_spec", "model", kind=TEXT)
    name = spec.need("name", kind=TEXT)
    dataset = re.sub(r"(?<=[:,])model(_deployment)?=[^,]*(,|$)", "", name).rstrip(":,")
    gathered = Gathering(path, threshold=threshold)
    instances: dict[tuple[str, int], dict[str, tuple[Row, tuple[str | int, ...]]]] = {}
    for row in array_of(path):
        if row.may("perturbation", kind=OBJECT):
            gathered.counts["perturbed instance(s) made no record"] += 1
            continue
        key = row.need("instance_id", kind=TEXT), row.need("train_trial_index", kind=WHOLE)
        stats = instances.setdefault(key, {})
        for j in range(len(row.need("stats", kind=ARRAY))):
            stats[row.need("stats", j, "name", "name", kind=TEXT)] = (row, ("stats", j, "mean"))
    for (question, trial), stats in instances.items():
        means = {name: row.may(*at, kind=NUMBER) for name, (row, at) in stats.items()}
        if metric not in stats:
            raise RecordsError(
                path.name,
                f"instance {quoted(question)}: no statistic {quoted(metric)}, expected one of "
                f"{quoted_names(means)}: say metric=...",
            )
        row, at = stats[metric]
        confidence = means.get("max_prob")
        if confidence == 1 or means.get("logprob") == 0:
            gathered.counts[NO_LOGPROBS] += confidence is not None
            confidence = None
        gathered.add(
            dataset=dataset,
            question_id=question,
            system=system,
            sample=trial,
            correct=gathered.is_right(row, *at),
            confidence=confidence,
            prompt_tokens=means.get("num_prompt_tokens"),
            completion_tokens=means.get("num_completion_tokens"),
        )
    return gathered.records("max_prob, the model's probability of its answer")


def promptfoo(path: str | Path, *, errors: str = "wrong") -> Records:
    """Results of promptfoo (``promptfoo eval --output results.json``), version 3.

    Right or wrong is ``success``; a ``failureReason`` of 2 is a call that failed. The system is
    the provider's label, or else its id, with the number of the prompt where it was asked with
    several. ``--repeat`` writes a question again as another test: tests with the same variables
    and assertions are samples of the first. Of a cached answer promptfoo knows no prompt and
    completion tokens. The confidence is out of the response's ``logProbs``; ``cost`` is kept.
    """
    path = Path(path)
    file = object_of(path)
    if (version := file.may("results", "version")) != 3:
        raise file.wrong(("results", "version"), version, "3")
    gathered = Gathering(path, errors=errors)
    rows = [
        Row(path.name, f"results.results[{i}]", content)
        for i, content in enumerate(file.need("results", "results", kind=ARRAY))
    ]
    rows.sort(key=lambda row: row.need("testIdx", kind=WHOLE))  # written as they finished
    prompts: dict[str, dict[int, int]] = {}
    for row in rows:
        known = prompts.setdefault(_provider(row), {})
        known.setdefault(row.need("promptIdx", kind=WHOLE), len(known) + 1)
    first: dict[str, int] = {}
    asked: Counter[tuple[int, str]] = Counter()
    for row in rows:
        test = [row.may("testCase", name) for name in ("vars", "assert")]
        question = first.setdefault(json.dumps(test, sort_keys=True), row.content["testIdx"])
        system, known = _provider(row), prompts[_provider(row)]
        if len(known) > 1:
            system = f"{system}, prompt {known[row.content['promptIdx']]}"
        cells: dict[str, Any] = {
            "dataset": file.may("config", "description", kind=TEXT) or path.stem,
            "question_id": question,
            "system": system,
            "sample": asked[question, system],
            "prompt_tokens": row.may("response", "tokenUsage", "prompt", kind=NUMBER),
            "completion_tokens": row.may("response", "tokenUsage", "completion", kind=NUMBER),
            "cost": row.may("cost", kind=NUMBER),
        }
        asked[question, system] += 1
        if row.may("failureReason", kind=WHOLE) == 2:
            gathered.fail(**cells)
            continue
        gathered.add(
            **cells,
            correct=row.need("success", kind=FLAG),
            confidence=gathered.probability(row, "response", "logProbs"),
            answer=said(row.may("response", "output")),
        )
    return gathered.records(OF_TOKENS)


def _provider(row: Row) -> str:
    return str(row.may("provider", "label", kind=TEXT) or row.need("provider", "id", kind=TEXT))
