"""Adapters: tables that others published, read as records.

Each takes the path of a file in the source's layout (default: the copy shipped
with this package, see ``corea/data/records/README.md``) and returns
:class:`corea.records.Records`. Cells without a record are counted in its notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from corea.confidence import agreement
from corea.records import (
    Records,
    RecordsError,
    read_csv_columns,
    records_from_columns,
    select,
)

SHIPPED = Path(__file__).parent / "data" / "records"


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


def rlcr(path: str | Path = SHIPPED / "rlcr_confidence.csv.gz") -> Records:
    """Correctness and stated confidence of five 7B systems.

    CommonsenseQA dev (1,221 questions) and MATH-500, with the extra columns ``completion_chars``
    and ``conf_format_ok``. Source: damanimehul/RLCR (MIT).
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


def example() -> Records:
    """Records to try a report on: three small models' vote and a large model on MMLU-Pro."""
    small = ["Meta-Llama-3_1-8B-Instruct", "mathstral-7B", "Phi-3-mini-4k-instruct"]
    large = "Meta-Llama-3_1-70B-Instruct"
    read = mmlu_pro(systems=[*small, large])
    vote = agreement(read.table, small, name="three small models")
    table = pd.concat([vote, select(read.table, system=large)], ignore_index=True)
    return Records(table, read.source, read.provenance, ("the confidence is agreement of three",))
