"""Adapters: tables that others published, read as records.

Each takes the path of a file in the source's layout (default: the copy shipped
with this package, see ``corea/data/records/README.md``) and returns
:class:`corea.records.Records`. Cells without a record are counted in its notes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from corea.records import (
    Records,
    RecordsError,
    quoted,
    read_csv_columns,
    read_records,
    records_from_columns,
)

SHIPPED = Path(__file__).parents[1] / "data" / "records"
RLCR_GPQA = SHIPPED / "rlcr_gpqa.csv.gz"


def _read_source(path: Path, expected: Sequence[str]) -> pd.DataFrame:
    """Read a source's CSV as text, or say what is wrong with it."""
    try:
        # every cell as text: the records module decides what a cell means
        table = pd.DataFrame(read_csv_columns(path), dtype="str")
    except RecordsError as error:
        raise RecordsError(
            path.name, [f"not a complete CSV file: {problem}" for problem in error.problems]
        ) from None
    if missing := [name for name in expected if name not in table.columns]:
        raise RecordsError(
            path.name, [f"missing column(s) {', '.join(missing)}; found {', '.join(table.columns)}"]
        )
    return table


def _refuse(
    source: str, table: pd.DataFrame, name: str, allowed: Callable[[str], bool], expected: str
) -> None:
    """Name every cell of a column that is not what the source may hold."""
    wrong = [(i, cell) for i, cell in enumerate(table[name], start=1) if not allowed(cell)]
    if wrong:
        raise RecordsError(
            source,
            [
                f"row {i}, field {name}: found {quoted(cell)}, expected {expected}"
                for i, cell in wrong
            ],
        )


def rlcr(path: str | Path = SHIPPED / "rlcr_confidence.csv.gz") -> Records:
    """Correctness and stated confidence of five 7B systems.

    CommonsenseQA dev (1,221 questions) and MATH-500, with the extra columns ``completion_chars``
    and ``conf_format_ok``; :data:`RLCR_GPQA` holds the same of GPQA (448 questions).
    Source: damanimehul/RLCR (MIT).
    """
    path = Path(path)
    extra = ("completion_chars", "conf_format_ok")
    table = _read_source(path, ("dataset", "idx", "method", "correct", "confidence", *extra))
    columns = {name: list(table[name]) for name in ("dataset", "correct", "confidence")}
    columns |= {"question_id": list(table["idx"]), "system": list(table["method"])}
    columns |= {name: list(pd.to_numeric(table[name])) for name in extra}
    return records_from_columns(
        {**columns, "sample": ["0"] * len(table)}, source=path.name, text=True
    )


def mmlu_pro(
    path: str | Path = SHIPPED / "mmlu_pro_predictions.csv.gz",
    *,
    systems: Sequence[str] | None = None,
) -> Records:
    """The letter that each of 28 models (or the ``systems`` named) predicted on MMLU-Pro.

    12,032 questions in 14 categories, up to ten options. No confidence is stated. The file has a
    column a model: an empty cell means that no answer could be read (a wrong record without an
    answer), ``-`` that the model has no row for the question (no record, counted in the notes).
    Source: TIGER-AI-Lab/MMLU-Pro (Apache-2.0).
    """
    path = Path(path)
    facts = ["question_id", "category", "answer", "n_options"]
    wide = _read_source(path, facts)
    models = [name for name in wide.columns if name not in facts]
    if unknown := [name for name in systems or () if name not in models]:
        raise ValueError(f"{path.name}: no model {unknown}; there are {models}")
    chosen = list(systems) if systems is not None else models
    table = wide.rename(columns={"answer": "gold"}).melt(
        id_vars=["question_id", "category", "gold", "n_options"],
        value_vars=chosen,
        var_name="system",
        value_name="answer",
    )
    unasked = table["answer"] == "-"
    table = table[~unasked]
    counts = table["answer"].eq("").sum()
    notes = [f"{counts:,} record(s) hold no answer and count as wrong"]
    if unasked.any():
        notes.append(f"{unasked.sum():,} cell(s) have no prediction and made no record")
    columns = {name: list(table[name]) for name in table.columns}
    columns["n_options"] = [int(n) for n in table["n_options"]]
    columns |= {
        "dataset": ["mmlu_pro"] * len(table),
        "sample": ["0"] * len(table),
        "correct": ["1" if right else "0" for right in table["answer"] == table["gold"]],
        "confidence": [""] * len(table),
    }
    return records_from_columns(columns, source=path.name, notes=notes, text=True)


def routellm(path: str | Path = SHIPPED / "routellm_mixtral_gpt4.csv.gz") -> Records:
    """Whether Mixtral-8x7B and GPT-4-1106 answered GSM8K and MMLU questions correctly.

    No confidence is stated; ``listed_contaminated`` is an extra column.
    Source: lm-sys/RouteLLM (Apache-2.0).
    """
    path = Path(path)
    judged = {"mixtral-8x7b": "mixtral_8x7b_correct", "gpt-4-1106": "gpt4_1106_correct"}
    table = _read_source(
        path, ("benchmark", "subject", "idx", *judged.values(), "listed_contaminated")
    )
    subject = table["subject"].where(table["subject"] != "", table["benchmark"])
    identifiers = list(subject + "/" + table["idx"])
    columns = {
        "dataset": list(table["benchmark"]) * 2,
        "question_id": identifiers * 2,
        "system": [name for name in judged for _ in identifiers],
        "sample": ["0"] * (2 * len(table)),
        "correct": [cell for column in judged.values() for cell in table[column]],
        "confidence": [""] * (2 * len(table)),
        "listed_contaminated": [cell == "1" for cell in table["listed_contaminated"]] * 2,
    }
    return records_from_columns(columns, source=path.name, text=True)


_VERDICTS = ("VALID", "HALLUCINATED")


def hallmark(path: str | Path = SHIPPED / "hallmark_stated_confidence.csv.gz") -> Records:
    """Verdicts, stated confidences and seconds of twelve language models on 500 citations.

    Is a reference to the literature real (``VALID``) or made up (``HALLUCINATED``)? Both ``gold``
    and ``answer`` are kept; an answer ``UNCERTAIN`` is wrong. Where a call failed or its output
    could not be read, the source writes UNCERTAIN and a confidence of 0.5: here such a record has
    neither answer nor confidence, since the model stated none. ``seconds`` is an extra column, 0
    where nothing was called. Source: rpatrik96/hallmark (MIT).

    Raises:
        RecordsError: If a cell is not what the source may hold; also where only one of answer and
            confidence is there.
    """
    path = Path(path)
    names = ("dataset", "question_id", "system", "answer", "gold", "confidence", "seconds")
    table = _read_source(path, names)
    gold, answers = " or ".join(_VERDICTS), (*_VERDICTS, "UNCERTAIN", "")
    _refuse(path.name, table, "gold", lambda cell: cell in _VERDICTS, gold)
    _refuse(path.name, table, "answer", lambda cell: cell in answers, f"{gold}, UNCERTAIN or none")
    number = re.compile(r"[0-9]+(\.[0-9]+)?").fullmatch
    _refuse(path.name, table, "seconds", lambda cell: bool(number(cell)), "a number from 0")
    silent = table["answer"] == ""
    halves = silent != (table["confidence"] == "")
    if halves.any():
        row = int(halves.to_numpy().argmax())
        raise RecordsError(
            path.name,
            f"row {row + 1}, fields answer and confidence: found {quoted(table['answer'][row])} "
            f"and {quoted(table['confidence'][row])}, expected both or neither",
        )
    failed = table.loc[silent, "system"].value_counts(sort=False)
    unsure = int((table["answer"] == "UNCERTAIN").sum())
    columns = {name: list(table[name]) for name in names}
    columns |= {
        "sample": ["0"] * len(table),
        "correct": ["1" if right else "0" for right in table["answer"] == table["gold"]],
        "seconds": [float(cell) for cell in table["seconds"]],
    }
    notes = [
        f"{len(table[silent]):,} record(s) hold no answer, since the call failed or could not be "
        f"read: {', '.join(f'{name} {n}' for name, n in failed.items()) or 'none'}",
        f"{unsure:,} answer(s) are UNCERTAIN and count as wrong",
    ]
    return records_from_columns(columns, source=path.name, notes=notes, text=True)


def zeroeval(
    path: str | Path = SHIPPED / "zeroeval.csv.gz", *, systems: Sequence[str] | None = None
) -> Records:
    """Graded answers and token counts of 57 models (or the ``systems`` named).

    GSM8K (1,319 questions, 44 models) and level 5 of MATH (721 questions, 43 models); no
    confidence is stated. ``answer`` is the number of an answer's class: the same for the same
    answer to a question, ``0`` for the right one, which is ``gold``; no answer counts as wrong.
    Tokens are those of Qwen2.5's tokenizer, whatever the model. :func:`zeroeval_models` has the
    models' parameters. Source: WildEval/ZeroEval (Apache-2.0).

    Raises:
        RecordsError: If a cell is not what the source may hold; also where ``correct`` is not
            whether the class is 0.
        ValueError: If a system is not in the file.
    """
    path = Path(path)
    counts = ("prompt_tokens", "completion_tokens")
    names = ("dataset", "question_id", "system", "correct", "answer_class", *counts)
    table = _read_source(path, names)
    whole = re.compile("[0-9]+").fullmatch
    _refuse(
        path.name, table, "answer_class", lambda cell: cell == "" or bool(whole(cell)),
        "a whole number from 0, or nothing",
    )  # fmt: skip
    for name in counts:
        _refuse(path.name, table, name, lambda cell: bool(whole(cell)), "a whole number from 0")
    _refuse(path.name, table, "correct", lambda cell: cell in ("0", "1"), "0 or 1")
    differ = (table["correct"] == "1") != (table["answer_class"] == "0")
    if differ.any():
        row = int(differ.to_numpy().argmax())
        raise RecordsError(
            path.name,
            f"row {row + 1}, field correct: found {table['correct'][row]} with the answer_class "
            f"{quoted(table['answer_class'][row])}, expected 1 exactly where that is 0",
        )
    known = list(dict.fromkeys(table["system"]))
    if unknown := [name for name in systems or () if name not in known]:
        raise ValueError(f"{path.name}: no model {unknown}; there are {known}")
    asked = table.groupby("dataset")["question_id"].nunique().to_dict()
    if systems is not None:
        table = table[table["system"].isin(list(systems))]
    answered = table.groupby(["dataset", "system"], as_index=False).size()
    notes = [f"{(table['answer_class'] == '').sum():,} record(s) hold no answer and count as wrong"]
    notes += [
        f"{system} answered {n:,} of the {asked[dataset]:,} questions of {dataset}"
        for dataset, system, n in answered.itertuples(index=False)
        if n < asked[dataset]
    ]
    columns = {name: list(table[name]) for name in names if name != "answer_class"}
    columns |= {
        "sample": ["0"] * len(table),
        "confidence": [""] * len(table),
        "answer": list(table["answer_class"]),
        "gold": ["0"] * len(table),
    }
    return records_from_columns(columns, source=path.name, notes=notes, text=True)


def zeroeval_models() -> pd.DataFrame:
    """What is known of the models of :func:`zeroeval`: a row a system, which is the index.

    ``billions``: parameters as the ``model_page`` on the hub states them; missing where they are
    not published, and for mixtures of experts, of whose parameters each token uses a part.
    ``published_gsm8k``, ``published_math_level5``: the source's own pass@1, in percent, missing
    where it has none.

    Example:
        >>> float(zeroeval_models().loc["Qwen2.5-7B-Instruct", "billions"])
        7.61
    """
    return pd.read_csv(SHIPPED / "zeroeval_models.csv", index_col="system")


def example() -> Records:
    """Records to try a report on: two models of :func:`hallmark`, in a file as readers have it."""
    return read_records(SHIPPED / "example.csv")
