"""Records that others made: tables that are shipped here, and files of other people's formats.

:data:`FORMATS` names each format, what reads it and what its file is; :func:`read` reads by
name. :mod:`corea.adapters.rows` has the rules that all readers share. The tables that others
published, as shipped with this package, are in :mod:`corea.adapters.published`.

Example:
    >>> sorted(FORMATS)[:3]
    ['batch', 'every-eval-ever', 'helm']
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from corea.adapters.every_eval_ever import read_every_eval_ever, write_every_eval_ever
from corea.adapters.harnesses import helm, inspect_ai, lm_eval, promptfoo
from corea.adapters.published import (
    RLCR_GPQA,
    SHIPPED,
    example,
    hallmark,
    mmlu_pro,
    rlcr,
    routellm,
    zeroeval,
    zeroeval_models,
)
from corea.adapters.tables import batch, routerarena, routerbench
from corea.records import Records, oddities, validate

__all__ = [
    "FORMATS", "RLCR_GPQA", "SHIPPED", "Format", "batch", "example", "hallmark", "helm",
    "inspect_ai", "lm_eval", "mmlu_pro", "promptfoo", "read", "read_every_eval_ever", "rlcr",
    "routellm", "routerarena", "routerbench", "write_every_eval_ever", "zeroeval",
    "zeroeval_models",
]  # fmt: skip


class Format(NamedTuple):
    """What reads a format, and what its file is."""

    reader: Callable[..., Records]
    file: str

    @property
    def options(self) -> list[str]:
        """Names of the reader's options."""
        return [*inspect.signature(self.reader).parameters][1:]


FORMATS = {
    "lm-eval": Format(lm_eval, "lm-evaluation-harness: samples_*.jsonl, from --log_samples"),
    "inspect": Format(inspect_ai, "Inspect: a log, .eval or .json"),
    "helm": Format(helm, "HELM: per_instance_stats.json, with run_spec.json beside it"),
    "routerbench": Format(routerbench, "RouterBench: the wide table as CSV, a column a model"),
    "routerarena": Format(routerarena, "RouterArena: cached_results/*.jsonl"),
    "batch": Format(batch, "OpenAI batches, vllm run-batch: output as JSON lines; needs golds"),
    "promptfoo": Format(promptfoo, "promptfoo: results.json, version 3"),
    "every-eval-ever": Format(read_every_eval_ever, "Every Eval Ever: *_samples.jsonl"),
}


def read(
    format: str, path: str | Path | Sequence[str | Path], **options: str | float | None
) -> Records:
    """Read one file of a format, or several as one table.

    Args:
        format: A name in :data:`FORMATS`.
        path: The file, or several: a model each, perhaps.
        options: The reader's own; texts, as a command line has them, are understood.

    Raises:
        ValueError: If there is no such format or option, or one that it needs is not given.
        FileNotFoundError: If there is no such file.
        RecordsError: If a file cannot be read, or two of them have the same record.
    """
    if format not in FORMATS:
        raise ValueError(f"no format {format!r}; expected {', '.join(FORMATS)}")
    reader = FORMATS[format].reader
    try:
        inspect.signature(reader).bind(path, **options)
    except TypeError as error:
        known = ", ".join(FORMATS[format].options)
        raise ValueError(f"{format}: {error}; its options are {known}") from None
    files = [Path(one) for one in ([path] if isinstance(path, str | Path) else path)]
    if absent := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{absent[0].name}: no such file (looked for {absent[0]})")
    parts = [reader(file, **options) for file in files]
    if len(parts) == 1:
        return parts[0]
    table = pd.concat([part.table for part in parts], ignore_index=True)
    source = ", ".join(part.source for part in parts)
    validate(table, source=source)
    notes = [f"{part.source}: {note}" for part in parts for note in part.notes]
    return Records(table, source, {}, (*notes, *oddities(table)))
