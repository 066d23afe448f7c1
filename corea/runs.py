"""What training runs leave behind, read for the chapters that compare them.

A run's folder holds ``model.json`` (what was trained), ``records.parquet`` (its answers to the
test questions) and, where something was trained, ``dynamics.csv`` (one row a step) and
``validation.csv`` (rollouts on held-out questions at the steps evaluated). A run that decides has
its own format (:func:`own_format`) in ``records.parquet`` and each other of :data:`FORMATS` in a
file of its own, so that nothing mixes them by accident; and ``settings.json``, if it was
reinforced. Where a run was published into the package (:mod:`corea.workflow.publish`), its records
are CSV files. What the pipeline executed is sealed (:mod:`corea.store`), and nothing is read from a
folder that was changed since. Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from corea.records import OPTIONAL, REQUIRED, read_records, records_from_columns, write_records
from corea.store import MANIFEST, StoreError, check_seal
from corea.tasks.decision_questions import LETTERS
from corea.tasks.suites import SUITES, WITHHELD

if TYPE_CHECKING:
    from corea.tasks.decision_questions import DecisionQuestion

SIGNALS = ("expected_confidence", "average_probability", "probe", "router")

FORMATS: Mapping[str, str] = MappingProxyType(
    {"sampled": "reasoning sampled", "greedy": "reasoning greedy", "none": "no reasoning"}
)
"""Formats in which decisions are asked for, and what they are called in tables."""

OPTION_PLACES: Mapping[str, str] = MappingProxyType(
    {"answer": "decided_option", "gold": "right_option"}
)
"""Columns of published decisions: an option's place, from 1; only numbers are published."""


class RunError(Exception):
    """A run's results are missing or not what they should be; names the file."""


@dataclass(frozen=True)
class TrainedModel:
    """What a run trained.

    Attributes:
        system: Name in tables and figures, such as ``"L1-SLM"``.
        method: ``"base"``, or the name of the confidence reward (``"none"`` is RLVR).
        role: Its size among those compared, such as ``"small"`` or ``"large"``.
        architecture: ``"qwen2"``, ``"llama"`` or ``"qwen3"``, as transformers calls it.
        informed: Whether the base model's stated confidence was informed in pretraining; None
            where nobody knows.
        group_size: Rollouts of one prompt in training, or None for a base model.
        seed: Seed of the run.
        parameters: Size by which its tokens are priced: the nominal one where its name has one, as
            in paper A, and else the number of its weights.
        selected_step: Step of the checkpoint that was chosen, or None for a base model.
        checkpoint: Folder of the weights, relative to the repository, or a hub name.
        suite: What it is asked, a name in :data:`corea.tasks.suites.SUITES`.
        labels: How verdicts are asked for, :data:`corea.tasks.decision_questions.LABELS`.
        longest: Most characters of a decision's question, 0 for any.
        test_decisions: How its decisions are made, and those of what is trained from it, which
            are compared with them; one of :data:`corea.decisions.evaluation.DECIDING`.
    """

    system: str
    method: str
    role: str
    architecture: str
    informed: bool | None
    group_size: int | None
    seed: int
    parameters: int
    selected_step: int | None
    checkpoint: str
    suite: str
    labels: str = "verdicts"
    longest: int = 0
    test_decisions: str = "greedy"

    def decisions(self, dataset: str, part: str, n: int = 0) -> list[DecisionQuestion]:
        """Questions of the suite that one token decides, asked as the model was asked before."""
        suite = SUITES[self.suite]
        return suite.decisions(dataset, part, n, labels=self.labels, longest=self.longest)


def run_file(run: str | Path, name: str) -> Path:
    """A file that a run left to others.

    A folder that no pipeline made, as of a notebook that was executed by hand, is not sealed and
    taken as it is. A file that is not there, or whose folder was changed since it was sealed, is a
    :class:`RunError`.
    """
    path = Path(run, name)
    try:
        if path.with_name(MANIFEST).exists():
            check_seal(path.parent)
    except StoreError as error:
        raise RunError(f"{error}; `make book` makes it anew") from None
    if not path.is_file():
        raise RunError(f"{path.as_posix()}: not there; `make book` makes it, in the repository")
    return path


def read_model(run: str | Path) -> TrainedModel:
    """What a run trained, from its folder, such as ``build/laptop/tables/train_l1``."""
    path = run_file(run, "model.json")
    try:
        content = json.loads(path.read_text("utf-8"))
        return TrainedModel(**content)
    except (ValueError, TypeError) as error:
        raise RunError(f"{path.as_posix()}: not the description of a model ({error})") from None


def write_model(model: TrainedModel, folder: str | Path) -> None:
    """Write ``model.json`` into a run's folder."""
    text = json.dumps(vars(model), indent=1) + "\n"
    Path(folder, "model.json").write_text(text, "utf-8")


def write_results(
    folder: str | Path,
    model: TrainedModel,
    samples: pd.DataFrame,
    *,
    facts: Mapping[str, str],
    n_samples: int = 20,
) -> None:
    """Write what a run leaves to others: the model, its records, and some completions to read.

    Args:
        folder: The run's folder.
        model: What was trained.
        samples: What :func:`corea.engines.evaluation.read_samples` returns, under the model's
            system; of decisions, those of all :data:`FORMATS`, named in a column ``reasoning``.
        facts: Provenance, kept with the records.
        n_samples: Questions of each dataset whose first completion is kept as text, but for
            those of :data:`corea.tasks.suites.WITHHELD`.
    """
    folder = Path(folder)
    write_model(model, folder)
    texts = ["prompt", "completion", "kind", "finished", "undecided", "error"]
    own = own_format(model.method)
    formats = dict(iter(samples.groupby("reasoning"))) if "reasoning" in samples else {own: samples}
    for name, part in formats.items():
        columns = {str(c): values.tolist() for c, values in part.drop(columns=texts).items()}
        records = records_from_columns(columns, source=model.system, provenance=facts)
        write_records(records, folder / _records_file(str(name), model.method))
    samples = formats[own]
    shown = samples[(samples["sample"] == 0) & ~samples["dataset"].isin(WITHHELD)]
    first = shown.groupby("dataset", sort=False).head(n_samples)
    kept = ["dataset", "question_id", "level", "prompt", "gold"]
    kept += ["completion", "answer", "confidence", "correct"]
    first[kept].to_parquet(folder / "samples.parquet", index=False)


def own_format(method: str) -> str:
    """The format in which a model decides: as it was trained, and with reasoning by default.

    Example:
        >>> own_format("sft"), own_format("grpo")
        ('none', 'sampled')
    """
    return "none" if method == "sft" else "sampled"


def _records_file(reasoning: str | None, method: str) -> str:
    own = reasoning in (None, own_format(method))
    return "records.parquet" if own else f"records_{reasoning}.parquet"


def asked(samples: pd.DataFrame) -> str:
    """What was asked, in words.

    Example:
        >>> samples = pd.DataFrame({"dataset": list("aaabb"), "question_id": list("12312"),
        ...     "sample": 0})
        >>> asked(samples)
        '3 questions of a and 2 of b, one answer to each'
        >>> asked(samples[1:])
        '2 questions of each dataset, one answer to each'
    """
    counts = samples.groupby("dataset", sort=False)["question_id"].nunique()
    if (counts == counts.iloc[0]).all():
        questions = f"{counts.iloc[0]:,} questions of each dataset"
    else:
        *first, last = [f"{n:,} of {name}" for name, n in counts.items()]
        questions = f"{', '.join(first)} and {last}".replace(" of ", " questions of ", 1)
    n_samples = samples["sample"].nunique()
    return f"{questions}, {f'{n_samples} answers' if n_samples > 1 else 'one answer'} to each"


def run_records(runs: Sequence[str | Path], *, reasoning: str | None = None) -> pd.DataFrame:
    """Records of several runs with what was trained, one below the other.

    Beside the records there are the columns ``method``, ``role``, ``architecture``,
    ``group_size``, ``seed`` and ``parameters`` of each run; a confidence signal of
    :data:`SIGNALS` that a run lacks is missing. Of runs that decide they are those of one format
    of :data:`FORMATS`, or else of each run's own. Two runs of the same system and seed on the same
    dataset are a :class:`RunError`.
    """
    tables: list[pd.DataFrame] = []
    seen: dict[tuple[str, int, str], str | Path] = {}
    for run in runs:
        model = read_model(run)
        table = _read_table(run, _records_file(reasoning, model.method))
        for dataset in table["dataset"].unique():
            identity = (model.system, model.seed, dataset)
            if identity in seen:
                raise RunError(
                    f"{run} and {seen[identity]} are both {model.system!r} with seed {model.seed} "
                    f"on {dataset!r}"
                )
            seen[identity] = run
        facts = ("method", "role", "architecture", "group_size", "seed", "parameters")
        table = table.assign(
            system=model.system,
            **{name: getattr(model, name) for name in facts},
            **{name: np.nan for name in SIGNALS if name not in table},
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _read_table(run: str | Path, name: str) -> pd.DataFrame:
    """The records of a run; those of a published one are CSV, which has no types of its own.

    ``answer`` and ``gold`` of published decisions are letters, of verdicts too.
    """
    kept = Path(run, name).with_suffix(".csv")
    if not kept.is_file():
        return read_records(run_file(run, name)).table
    table = read_records(run_file(run, kept.name)).table
    for column in {*table.columns} - {*REQUIRED, *OPTIONAL}:
        numbers = pd.to_numeric(table[column], errors="coerce")
        if (numbers.isna() == table[column].isin(["", np.nan])).all():
            table[column] = numbers
    for column, places in OPTION_PLACES.items():
        if places in table:
            letters = dict(enumerate(LETTERS, start=1))
            table[column] = table.pop(places).map(letters).astype("str")
    return table


def by_role(runs: Sequence[str | Path]) -> dict[str, list[str | Path]]:
    """Runs by the size of their models, in order of appearance."""
    found: dict[str, list[str | Path]] = {}
    for run in runs:
        found.setdefault(read_model(run).role, []).append(run)
    return found


def format_records(runs: Sequence[str | Path]) -> pd.DataFrame:
    """Records of runs that decide in each of :data:`FORMATS`, told apart by ``reasoning``."""
    return pd.concat([run_records(runs, reasoning=name) for name in FORMATS], ignore_index=True)


def write_settings(settings: Mapping[str, Any], folder: str | Path) -> None:
    """Write the settings of a training, and what it started from, into a run's folder."""
    text = json.dumps(dict(settings), indent=1) + "\n"
    Path(folder, "settings.json").write_text(text, "utf-8")


def read_settings(run: str | Path) -> dict[str, Any]:
    """The settings with which a run's model was reinforced, and ``start``, the system it was."""
    path = run_file(run, "settings.json")
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RunError(f"{path.as_posix()}: not the settings of a training ({error})") from None
    return content


def run_table(runs: Sequence[str | Path], name: str) -> pd.DataFrame:
    """A CSV table (``"dynamics"`` or ``"validation"``) of several runs, one below the other.

    The columns ``system``, ``method`` and ``seed`` are put before its own.
    """
    tables = []
    for run in runs:
        model = read_model(run)
        table = pd.read_csv(run_file(run, f"{name}.csv"))
        for column in ("seed", "method", "system"):
            table.insert(0, column, getattr(model, column))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
