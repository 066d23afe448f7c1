"""Records out of tables of routers and out of batches of requests.

The rules that all readers share are those of :mod:`corea.adapters.rows`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from corea import checks
from corea.adapters.rows import (
    ARRAY,
    NUMBER,
    OBJECT,
    OF_TOKENS,
    TEXT,
    WHOLE,
    Gathering,
    Row,
    chosen,
    lines_of,
    said,
)
from corea.records import Records, RecordsError, quoted_names, read_csv_columns
from corea.tasks.parsing import parse_completion
from corea.tasks.verify import KINDS, verify_batch

_CONFIDENCE = re.compile(r"\\+confidence\s*\{[^{}]*\}")
_BLANK = ("", "nan", "none", "null", "<na>")


def routerbench(path: str | Path, *, threshold: float | str | None = None) -> Records:
    """The wide table of RouterBench as CSV: a row a question, a column a model.

    The models are the columns that have another, ``MODEL|total_cost``, beside them; its dollars
    are kept as ``cost``. A blank cell makes no record, and is counted in the notes. There is no
    confidence. RouterBench publishes pickles, which are not read, for they can run code.
    """
    path = Path(path)
    if path.suffix in (".pkl", ".pickle"):
        mend = "write it as CSV where you trust it: pandas.read_pickle(FILE).to_csv(NEW)"
        raise RecordsError(path.name, f"found a pickle, which can run code; expected CSV: {mend}")
    table = read_csv_columns(path)
    models = [name for name in table if f"{name}|total_cost" in table]
    lacking = [name for name in ("sample_id", "eval_name") if name not in table]
    if lacking or not models:
        wanted = [*lacking, *([] if models else ["MODEL and MODEL|total_cost"])]
        raise RecordsError(
            path.name, f"no column(s) {', '.join(wanted)}; found {quoted_names(table)}"
        )
    gathered = Gathering(path, threshold=threshold)
    for i in range(len(table["sample_id"])):
        row = Row(path.name, f"row {i + 1}", {name: cells[i] for name, cells in table.items()})
        for model in models:
            if str(row.content[model]).strip().lower() in _BLANK:
                gathered.counts["blank cell(s) made no record"] += 1
                continue
            cost = str(row.content[f"{model}|total_cost"]).strip()
            try:
                dollars = None if cost.lower() in _BLANK else float(cost)
            except ValueError:
                raise row.wrong((f"{model}|total_cost",), cost, "a number") from None
            gathered.add(
                dataset=row.content["eval_name"],
                question_id=row.content["sample_id"],
                system=model,
                correct=gathered.is_right(row, model),
                cost=dollars,
            )
    return gathered.records("")


def routerarena(
    path: str | Path, *, threshold: float | str | None = None, errors: str = "wrong"
) -> Records:
    """JSON lines of RouterArena's ``cached_results``: one model's answers, judged.

    ``global_index`` is the dataset and the question's number (``AIME_112``). Where ``success``
    is false the call failed. Rows without an ``evaluation_result`` were not judged and make no
    record. The dollars of ``inference_cost`` are kept as ``cost``. There is no confidence.
    """
    path = Path(path)
    gathered = Gathering(path, threshold=threshold, errors=errors)
    for row in lines_of(path):
        index = row.need("global_index", kind=TEXT)
        cells: dict[str, Any] = {
            "dataset": index.rpartition("_")[0] or path.stem,
            "question_id": index,
            "system": row.need("llm_selected", kind=TEXT),
            "gold": said(row.may("evaluation_result", "ground_truth")),
            "prompt_tokens": row.may("token_usage", "input_tokens", kind=NUMBER),
            "completion_tokens": row.may("token_usage", "output_tokens", kind=NUMBER),
            "cost": row.may("evaluation_result", "inference_cost", kind=NUMBER),
        }
        if row.may("success") is False:
            gathered.fail(**cells)
        elif row.may("evaluation_result", kind=OBJECT) is None:
            gathered.counts["row(s) were not judged and made no record"] += 1
        else:
            right = gathered.is_right(row, "evaluation_result", "score")
            answer = said(row.may("evaluation_result", "extracted_answer"))
            gathered.add(**cells, correct=right, answer=answer)
    return gathered.records("")


def batch(
    path: str | Path,
    *,
    golds: str | Path,
    kind: str,
    dataset: str | None = None,
    system: str | None = None,
    errors: str = "wrong",
) -> Records:
    r"""Output of OpenAI's batches, or of ``vllm run-batch``: chats or completions.

    ``golds`` is a file of CSV or JSON lines with ``custom_id`` and ``gold``, and perhaps
    ``dataset`` and, in JSON lines, the ``options`` of a choice. ``kind`` says how an answer is
    compared with its gold by :mod:`corea.tasks.verify`: ``"math"`` or ``"choice"``. The answer
    is what the last ``\boxed{}`` holds, or all that follows the reasoning where there is none.
    Several choices of a request are its samples, without completion tokens, which the format
    has for all of them together only. Where any answer states a ``\confidence{}``
    that is the confidence; else it is out of the log-probabilities.
    """
    path, golds = Path(path), Path(golds)
    checks.one_of(kind, "kind", KINDS)
    gathered = Gathering(path, errors=errors)
    known = _golds(golds)
    rows: dict[str, Row] = {}
    failed: list[str] = []
    answers: list[dict[str, Any]] = []
    for row in lines_of(path):
        question = row.need("custom_id", kind=TEXT)
        if question not in known:
            raise row.wrong(("custom_id",), question, f"one of the questions in {golds.name}")
        if rows.setdefault(question, row) is not row:
            raise row.wrong(("custom_id",), question, f"one not in {rows[question].where} already")
        if row.may("error") or row.may("response", "status_code") not in (None, 200):
            failed.append(question)
            continue
        for i in range(len(row.need("response", "body", "choices", kind=ARRAY))):
            answers.append(_choice(gathered, row, ("response", "body", "choices", i)))
    stated = any(answer["stated"] is not None for answer in answers)
    asked = [known[answer["question_id"]] for answer in answers]
    options = [gold.may("options", kind=ARRAY) or () for gold in asked]
    right = verify_batch(
        [answer["answer"] for answer in answers],
        [gold.content["gold"] for gold in asked],
        kind,
        options=options if kind == "choice" else None,
    )
    gathered.counts["answer(s) could not be decided and count as wrong"] += right.count(None)
    missing = len(known) - len(rows)
    gathered.counts[f"question(s) of {golds.name} have no line (one that failed?)"] += missing
    models = [answer.pop("model") for answer in answers]
    name = system or (chosen(path.name, "system", None, [*dict.fromkeys(models)]))

    def facts(question: str) -> dict[str, Any]:
        of = dataset or known[question].may("dataset", kind=TEXT) or golds.stem
        gold = known[question].content["gold"]
        return {"dataset": of, "question_id": question, "system": name, "gold": gold}

    for answer, verdict in zip(answers, right, strict=True):
        signals = answer.pop("stated"), answer.pop("of_tokens")
        cells = {**answer, **facts(answer["question_id"])}
        gathered.add(**cells, correct=bool(verdict), confidence=signals[0 if stated else 1])
    for question in failed:
        gathered.fail(**facts(question))
    return gathered.records("what the answers state" if stated else OF_TOKENS, kind=kind)


def _golds(path: Path) -> dict[str, Row]:
    """The right answers by question."""
    if path.name.lower().removesuffix(".gz").endswith(".csv"):
        table = read_csv_columns(path)
        cells = zip(*table.values(), strict=True)
        contents = [dict(zip(table, row, strict=True)) for row in cells]
        rows = [Row(path.name, f"row {i}", content) for i, content in enumerate(contents, start=1)]
    else:
        rows = list(lines_of(path))
    known: dict[str, Row] = {}
    for row in rows:
        if not row.need("gold", kind=TEXT).strip():
            raise row.wrong(("gold",), "", "the right answer")
        question = row.need("custom_id", kind=TEXT)
        if known.setdefault(question, row) is not row:
            raise row.wrong(("custom_id",), question, f"one not in {known[question].where} already")
    return known


def _choice(gathered: Gathering, row: Row, at: tuple[str | int, ...]) -> dict[str, Any]:
    """What one choice of a response answers, and with which confidence."""
    text = row.may(*at, "message", "content", kind=TEXT) or row.may(*at, "text", kind=TEXT) or ""
    parsed = parse_completion(text)
    answer = parsed.answer
    if "\\boxed" not in text:
        gathered.counts["answer(s) have no box; the whole text is the answer"] += 1
        said_last = _CONFIDENCE.sub("", text.rpartition("</think>")[2]).strip()
        answer = said_last or None
    body = ("response", "body")
    several = len(row.need(*body, "choices")) > 1  # the usage is that of all choices together
    tokens = [
        row.may(*body, "usage", name, kind=WHOLE) for name in ("prompt_tokens", "completion_tokens")
    ]
    content = row.may(*at, "logprobs", "content", kind=ARRAY)  # of a chat; else of a completion
    logprobs = "token_logprobs" if content is None else "content"
    return {
        "question_id": row.content["custom_id"],
        "model": row.need(*body, "model", kind=TEXT),
        "sample": row.need(*at, "index", kind=WHOLE),
        "answer": answer,
        "stated": parsed.confidence,
        "of_tokens": gathered.probability(row, *at, "logprobs", logprobs),
        "prompt_tokens": tokens[0],
        "completion_tokens": None if several else tokens[1],
    }
