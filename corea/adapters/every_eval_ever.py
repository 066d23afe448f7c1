"""Every Eval Ever: the shared schema of evaluation results, version 0.3.0, read and written.

A run is two files in ``data/COLLECTION/DEVELOPER/MODEL/``: ``UUID.json`` says what was run,
``UUID_samples.jsonl`` holds a line an answer. The schema has no field for a confidence nor for
the number of a repeated answer: both are in a line's ``metadata``, whose values are texts, as
``confidence`` and ``sample``. Source: github.com/evaleval/every_eval_ever (MIT).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from corea.adapters.rows import (
    ARRAY,
    FLAG,
    NAME,
    NUMBER,
    TEXT,
    Gathering,
    Row,
    chosen,
    lines_of,
    said,
)
from corea.records import Records

SCHEMA_VERSION = "0.3.0"
_METRIC = "accuracy"
_MODEL = {"deployment_type": "unknown", "model_availability": "unknown"}
_SOURCE = {
    "source_type": "evaluation_run",
    "source_organization_name": "unknown",
    "evaluator_relationship": "other",
}
_READ = {
    "turn_idx": 0,
    "source": "output.raw",
    "extraction_method": "unknown",
    "is_terminal": True,
}


def read_every_eval_ever(path: str | Path, *, metric: str | None = None) -> Records:
    """``UUID_samples.jsonl`` of Every Eval Ever, of any schema version with these fields.

    Right or wrong is ``evaluation.is_correct``. The schema has a line for each metric of an
    answer: where an evaluation has several (``evaluation_result_id``), one has to be named. The
    confidence is ``metadata.confidence``.
    """
    path = Path(path)
    rows = list(lines_of(path))
    metrics: dict[str, dict[str, None]] = {}
    for row in rows:
        of = metrics.setdefault(row.need("evaluation_name", kind=TEXT), {})
        of[row.may("evaluation_result_id", kind=TEXT) or ""] = None
    gathered = Gathering(path)
    for row in rows:
        name = row.content["evaluation_name"]
        result = row.may("evaluation_result_id") or ""
        if result != chosen(path.name, "metric", metric, list(metrics[name])):
            gathered.counts["line(s) of other metrics made no record"] += 1
            continue
        final = [
            said(row.may("answer_attribution", i, "extracted_value"))
            for i in range(len(row.may("answer_attribution", kind=ARRAY) or []))
            if row.may("answer_attribution", i, "is_terminal")
        ]
        gathered.add(
            dataset=name,
            question_id=row.need("sample_id", kind=NAME),
            system=row.need("model_id", kind=TEXT),
            sample=_number(row, "sample") or 0,
            correct=row.need("evaluation", "is_correct", kind=FLAG),
            confidence=_number(row, "confidence"),
            prompt_tokens=row.may("token_usage", "input_tokens", kind=NUMBER),
            completion_tokens=row.may("token_usage", "output_tokens", kind=NUMBER),
            answer=final[-1] if final else None,
            gold=said(row.may("input", "reference", kind=ARRAY)),
        )
    return gathered.records("metadata.confidence")


def _number(row: Row, name: str) -> float | None:
    """A number of the metadata, whose values are texts."""
    if (found := row.may("metadata", name, kind=TEXT)) is None:
        return None
    try:
        return float(found)
    except ValueError:
        raise row.wrong(("metadata", name), found, "a number as text") from None


def write_every_eval_ever(
    records: Records, folder: str | Path, *, timestamp: float | None = None
) -> list[Path]:
    """Write records as Every Eval Ever: two files for each system on each dataset.

    The texts of the questions are not in records, so ``input.raw`` is empty; columns beyond
    those of :mod:`corea.records` are not written. A file's UUID is made from what is in it, so
    that the same records at the same time are the same files.

    Args:
        records: What is written.
        folder: Where ``data/`` is made.
        timestamp: When the records were made, in seconds since 1970; now, when None.

    Returns:
        The ``_samples.jsonl`` files, which :func:`read_every_eval_ever` reads.
    """
    made = f"{time.time() if timestamp is None else timestamp:.0f}"
    written = []
    groups: Any = records.table.groupby(["dataset", "system"], sort=False)
    for (dataset, system), table in groups:
        developer, _, model = system.rpartition("/")
        place = Path("data", *map(_component, (dataset, developer or "unknown", model)))
        run = f"{_component(dataset)}/{_component(system)}/{made}"
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        lines = "".join(json.dumps(_line(row, run), ensure_ascii=False) + "\n" for row in rows)
        digest = hashlib.sha256(lines.encode())
        name = place / str(uuid.UUID(bytes=digest.digest()[:16], version=4))
        samples = f"{name.as_posix()}_samples.jsonl"
        metric = {"metric_name": _METRIC, "lower_is_better": False, "score_type": "continuous"}
        result = {
            "evaluation_result_id": _METRIC,
            "evaluation_name": dataset,
            "source_data": {"dataset_name": dataset, "source_type": "other"},
            "metric_config": {**metric, "min_score": 0, "max_score": 1},
            "score_details": {"score": float(table["correct"].mean())},
        }
        aggregate = {
            "schema_version": SCHEMA_VERSION,
            "evaluation_id": run,
            "retrieved_timestamp": made,
            "source_metadata": {"source_name": records.source, **_SOURCE},
            "eval_library": {"name": "corea", "version": version("corea")},
            "model_info": {"name": model, "id": system, "developer": developer or "unknown"}
            | {"additional_details": _MODEL},
            "evaluation_results": [result],
            "detailed_evaluation_results": {"format": "jsonl", "file_path": samples}
            | {"hash_algorithm": "sha256", "checksum": digest.hexdigest()}
            | {"total_rows": len(table)},
        }
        target = Path(folder) / samples
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lines.encode())
        text = json.dumps(aggregate, indent=2, ensure_ascii=False) + "\n"
        Path(folder, f"{name}.json").write_text(text, encoding="utf-8")
        written.append(target)
    return written


def _line(row: Mapping[str, Any], run: str) -> dict[str, Any]:
    """One record as a line of samples."""
    answer, gold = row.get("answer"), row.get("gold")
    line: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": run,
        "model_id": row["system"],
        "evaluation_name": row["dataset"],
        "evaluation_result_id": _METRIC,
        "sample_id": row["question_id"],
        "interaction_type": "single_turn",
        "input": {"raw": "", "reference": [] if gold is None else [gold]},
        "output": {"raw": [] if answer is None else [answer]},
        "answer_attribution": [] if answer is None else [{**_READ, "extracted_value": answer}],
        "evaluation": {"score": float(row["correct"]), "is_correct": bool(row["correct"])},
        "metadata": {"sample": str(row["sample"])},
    }
    if row["confidence"] is not None:
        line["metadata"]["confidence"] = repr(float(row["confidence"]))
    read, wrote = row.get("prompt_tokens"), row.get("completion_tokens")
    if read is not None and wrote is not None:
        counts = {"input_tokens": int(read), "output_tokens": int(wrote)}
        line["token_usage"] = {**counts, "total_tokens": sum(counts.values())}
    return line


def _component(name: str) -> str:
    """A name as part of a path on any system."""
    plain = re.sub(r"[^\w.+=-]+", "_", name).strip("._") or "_"
    return f"_{plain}" if plain.casefold() == "data" else plain
