r"""What happens while a model is trained: rewards, calibration and alignment over steps.

A training run leaves one row a step in ``dynamics.csv`` (measured on its own rollouts) and
rollouts on held-out questions in ``validation.csv``. ``prepare`` functions return tables,
``plot_*`` functions draw them; nothing here needs torch. Paper A shows these data in Figure 3
and as sample outputs in appendix B; its figures are not in the text at hand, so:

1. Curves are running means over a centred window of steps, fewer at both ends; what was
   measured at each step is drawn faintly behind them.
2. With several seeds the line is their mean and the band reaches from the lowest to the highest
   seed. With one seed there is no band.
3. Figure 3(c) is drawn for four checkpoints: before training, half way, the one that was
   selected, the last. Of the steps evaluated, half way is the one closest to half of the last.
4. Alignment is by distinct stated confidence, not by bin: a model that says only 0 and 1 is
   seen to do so. Seeds are pooled.
5. Metrics of a step are of the rollouts that stated a confidence; the share of those that did
   is the confidence output ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from corea.book.display import as_label
from corea.book.figures import REFERENCE, colors, style
from corea.metrics.calibration import (
    describe_stated,
    reliability_curve,
)
from corea.metrics.intervals import Interval, as_interval, bootstrap_interval
from corea.metrics.measure import calibration_metrics
from corea.runs import RunError, TrainedModel, read_model, run_file, run_records, run_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DYNAMICS = (
    *("step", "reward", "reward_correctness", "reward_confidence", "reward_format"),
    *("pass_at_1", "ece", "auroc", "confidence_output_ratio", "mean_confidence"),
    *("distinct_confidences", "share_at_0", "share_at_1", "groups_without_variance"),
)
"""Columns of ``dynamics.csv`` that the chapters draw."""

VALIDATION = ("step", "question_id", "sample", "correct", "confidence", "format")
ALARMS = ("step", "alarm", "detail")
SAMPLES = (
    *("dataset", "question_id", "level", "prompt", "gold"),
    *("completion", "answer", "confidence", "correct"),
)

LABELS: Mapping[str, str] = {
    "reward": "reward",
    "reward_correctness": "correctness reward",
    "reward_confidence": "confidence reward",
    "reward_format": "format reward",
    "pass_at_1": "pass@1",
    "ece": "ECE",
    "auroc": "AUROC",
    "confidence_output_ratio": "confidence output ratio",
    "mean_confidence": "mean confidence",
    "distinct_confidences": "distinct confidences",
    "share_at_0": "share at 0",
    "share_at_1": "share at 1",
    "groups_without_variance": "groups without variance",
    "confidence": "confidence of the decision",
    "no_decision": "share without a decision",
    "calibration_loss": "calibration-aware loss",
    "gradient_cosine": "cosine of the gradients",
}
"""What the columns are called in a figure."""

GAINED = "gained, none shown before"
"""The verdict on a model whose stated confidence came to tell something."""

CHECKPOINTS = ("before", "half way", "selected", "last")


# --- reading ----------------------------------------------------------------------------------


def named_models(
    runs: Sequence[str | Path], name: Callable[[TrainedModel], str] | None = None
) -> dict[str, TrainedModel]:
    """What each run trained, under a name of one's own choice.

    Chapters that compare backbones or group sizes need names that tell those apart.

    Args:
        runs: Folders of runs.
        name: What a system is called; its own name by default.

    Returns:
        Folder to model, in order, ``system`` being the name.

    Raises:
        RunError: If no run is named, one was not made yet, or two are the same system with the
            same seed.
    """
    if not runs:
        raise RunError("no runs were named; expected folders of training runs")
    models: dict[str, TrainedModel] = {}
    made: dict[tuple[str, int], str] = {}
    for run in map(str, runs):
        model = read_model(run)
        model = replace(model, system=name(model)) if name else model
        identity = (model.system, model.seed)
        if identity in made:
            raise RunError(
                f"{run} and {made[identity]} are both {model.system!r} with seed {model.seed}"
            )
        made[identity], models[run] = run, model
    return models


def named_records(models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """Records of several runs under the names given to them.

    Args:
        models: From :func:`named_models`.

    Returns:
        As :func:`corea.runs.run_records`, with ``informed`` behind.

    Raises:
        RunError: If a run has no records.
    """
    return pd.concat(
        [
            run_records([run]).assign(system=model.system, informed=model.informed)
            for run, model in models.items()
        ],
        ignore_index=True,
    )


def trained(models: Mapping[str, TrainedModel]) -> dict[str, TrainedModel]:
    """Those models that reinforcement trained, base models left out.

    Args:
        models: From :func:`named_models`.

    Returns:
        Those whose method is not ``"base"``, in order.

    Raises:
        RunError: If there is none.
    """
    found = {run: model for run, model in models.items() if model.method != "base"}
    if not found:
        raise RunError(f"nothing was trained by reinforcement in any of {', '.join(models)}")
    return found


def dynamics_table(models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """Training metrics of several runs, one row a run and step.

    Args:
        models: From :func:`named_models`, base models left out.

    Returns:
        The rows of every ``dynamics.csv`` behind ``system``, ``method`` and ``seed``.

    Raises:
        RunError: If a table is missing, lacks a column of :data:`DYNAMICS`, holds something
            other than numbers there, or its steps do not rise.
    """
    tables = [_checked_dynamics(run).assign(system=m.system) for run, m in models.items()]
    return pd.concat(tables, ignore_index=True)


def _checked_dynamics(run: str | Path) -> pd.DataFrame:
    path = Path(run, "dynamics.csv").as_posix()
    table = run_table([run], "dynamics")
    _require(path, table, DYNAMICS)
    if table.empty:
        raise RunError(f"{path}: no rows; expected one for each training step")
    for name in DYNAMICS:
        if not pd.api.types.is_numeric_dtype(table[name]) and table[name].notna().any():
            row, value = next((i, v) for i, v in enumerate(table[name], 1) if not _is_number(v))
            raise RunError(f"{path}: row {row}, field {name}: found {value!r}, expected a number")
    later = table["step"].diff().iloc[1:]
    if (fallen := np.flatnonzero(~(later > 0))).size:
        row = int(fallen[0]) + 2
        step, before = table["step"].iloc[row - 1], table["step"].iloc[row - 2]
        raise RunError(
            f"{path}: row {row}, field step: found {step} after {before}, expected a later step"
        )
    return table


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def validation_table(models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """Held-out rollouts of several runs at the steps evaluated.

    Args:
        models: From :func:`named_models`, base models left out.

    Returns:
        The rows of every ``validation.csv`` behind ``system``, ``method`` and ``seed``;
        ``dataset`` is ``"validation"``, ``correct`` is boolean, a confidence that could not be
        read is missing.

    Raises:
        RunError: If a table is missing, lacks a column of :data:`VALIDATION`, or holds a
            confidence outside [0, 1] or a verdict other than true or false.
    """
    tables = [_checked_validation(run).assign(system=m.system) for run, m in models.items()]
    return pd.concat(tables, ignore_index=True)


def _checked_validation(run: str | Path) -> pd.DataFrame:
    path = Path(run, "validation.csv").as_posix()
    table = run_table([run], "validation")
    _require(path, table, VALIDATION)
    if table.empty:
        raise RunError(f"{path}: no rows; expected one for each rollout on held-out questions")
    confidence = pd.to_numeric(table["confidence"], errors="coerce")
    unread = table["confidence"].notna() & ~confidence.between(0, 1)
    _refuse(path, table["confidence"], unread, "a number in [0, 1], or nothing")
    known = {"true": True, "false": False, "1": True, "0": False}
    correct = table["correct"].astype(str).str.lower().map(known)
    _refuse(path, table["correct"], correct.isna(), "true, false, 0 or 1")
    return table.assign(dataset="validation", confidence=confidence, correct=correct.astype("bool"))


def alarm_table(models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """Alarms that fired in training.

    Args:
        models: From :func:`named_models`.

    Returns:
        Columns ``system, seed, step, alarm, detail``; no row where none fired.

    Raises:
        RunError: If an ``alarms.csv`` lacks a column.
    """
    columns = ["system", "seed", *ALARMS]
    tables = []
    for run, model in models.items():
        path = Path(run, "alarms.csv")
        if path.is_file():
            text = {"alarm": str, "detail": str}
            table = pd.read_csv(path, dtype=text, keep_default_na=False)
            _require(path.as_posix(), table, ALARMS)
            if len(table):
                tables.append(table.assign(system=model.system, seed=model.seed)[columns])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def sample_table(models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """Completions that runs kept to be read by people.

    Args:
        models: From :func:`named_models`.

    Returns:
        Columns ``system, seed`` and those of :data:`SAMPLES`.

    Raises:
        RunError: If a table is missing or lacks a column of :data:`SAMPLES`.
    """
    tables = []
    for run, model in models.items():
        path = run_file(run, "samples.parquet")
        table = pd.read_parquet(path)
        _require(path.as_posix(), table, SAMPLES)
        table = table.assign(system=model.system, seed=model.seed)
        tables.append(table[["system", "seed", *SAMPLES]])
    return pd.concat(tables, ignore_index=True)


def _require(path: str, table: pd.DataFrame, columns: Iterable[str]) -> None:
    if missing := [name for name in columns if name not in table]:
        raise RunError(f"{path}: lacks the column(s) {', '.join(missing)}")


def _refuse(path: str, column: pd.Series, wrong: pd.Series, expected: str) -> None:
    if (rows := np.flatnonzero(wrong)).size:
        found = column.tolist()[rows[0]]
        raise RunError(
            f"{path}: row {rows[0] + 1}, field {column.name}: found {found!r}, expected {expected}"
        )


# --- curves over steps ------------------------------------------------------------------------


def prepare_curves(table: pd.DataFrame, metrics: Sequence[str], *, window: int = 1) -> pd.DataFrame:
    r"""Metrics over steps, one row per (system, seed, metric, step), smoothed.

    .. math:: \bar v_t = \frac{1}{|W_t|}\sum_{s \in W_t} v_s, \qquad
        W_t = \{s : |s - t| \le \lfloor w / 2 \rfloor\}

    counted in rows of the table; a missing value is left out.

    Source: choice 1 of the module; paper A, Figure 3(a) and (b).

    Args:
        table: One row per (system, seed, step) with a column per metric.
        metrics: Which columns.
        window: Number of rows w, odd, from 1; 1 smooths nothing.

    Returns:
        Columns ``system, seed, metric, step, value, smooth``.

    Raises:
        ValueError: If the window is not an odd number from 1, or a metric is not a column.

    Example:
        >>> table = pd.DataFrame({"system": "L1", "seed": 0, "step": [1, 2, 3],
        ...     "ece": [0.3, 0.6, 0.0]})
        >>> prepare_curves(table, ["ece"], window=3)["smooth"].round(2).tolist()
        [0.45, 0.3, 0.3]
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}; expected an odd number from 1")
    if missing := [name for name in metrics if name not in table]:
        raise ValueError(f"the table lacks the metric(s) {', '.join(missing)}")
    long = table.melt(
        id_vars=["system", "seed", "step"], value_vars=list(metrics), var_name="metric"
    )
    long["smooth"] = long.groupby(["system", "seed", "metric"], sort=False)["value"].transform(
        lambda values: values.rolling(window, center=True, min_periods=1).mean()
    )
    return long[["system", "seed", "metric", "step", "value", "smooth"]]


def validation_metrics(validation: pd.DataFrame, *, n_bins: int = 10) -> pd.DataFrame:
    """Accuracy and calibration on held-out questions at each evaluated step.

    Source: paper A, section 4.3 (the metrics) and Figure 3(b).

    Args:
        validation: From :func:`validation_table`.
        n_bins: Bins of the expected calibration error, of equal width.

    Returns:
        One row per (system, method, seed, step): ``n`` rollouts and the metrics by their
        names in ``dynamics.csv``. Where nothing stated a confidence, those that need one are
        missing; so is AUROC where all rollouts are correct or none is.

    Example:
        >>> validation = pd.DataFrame({"system": "L1", "method": "l1", "seed": 0, "step": 0,
        ...     "confidence": [1.0, 0.5, np.nan], "correct": [True, False, False]})
        >>> found = validation_metrics(validation)[["auroc", "ece", "confidence_output_ratio"]]
        >>> found.round(2).values.tolist()
        [[1.0, 0.25, 0.67]]
    """
    rows = []
    for key, group in validation.groupby(["system", "method", "seed", "step"], sort=False):
        found = describe_stated(
            group["confidence"].to_numpy(), group["correct"].to_numpy(), n_bins=n_bins
        )
        names = dict(zip(("system", "method", "seed", "step"), key, strict=True))
        rows.append(names | {"n": len(group)} | found)
    columns = [
        *("system", "method", "seed", "step", "n", "pass_at_1", "ece", "auroc"),
        *("confidence_output_ratio", "mean_confidence", "distinct_confidences"),
        *("share_at_0", "share_at_1"),
    ]
    return pd.DataFrame(rows).reindex(columns=columns)


def over_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean and range over seeds of each smoothed curve.

    Source: choice 2 of the module.

    Args:
        curves: From :func:`prepare_curves`.

    Returns:
        One row per (system, metric, step) at which any seed has a value: ``mean``, ``low``
        and ``high`` (the lowest and the highest seed), ``seeds`` (how many).

    Example:
        >>> curves = pd.DataFrame({"system": "L1", "seed": [0, 1], "metric": "ece", "step": 5,
        ...     "value": [0.1, 0.3], "smooth": [0.1, 0.3]})
        >>> over_seeds(curves)[["mean", "low", "high", "seeds"]].round(2).values.tolist()
        [[0.2, 0.1, 0.3, 2.0]]
    """
    groups = curves.dropna(subset="smooth").groupby(["system", "metric", "step"], sort=False)
    return groups["smooth"].agg(mean="mean", low="min", high="max", seeds="size").reset_index()


# --- alignment of confidence and accuracy -----------------------------------------------------


def checkpoint_steps(validation: pd.DataFrame, models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """The evaluated steps that stand for the course of each run.

    Source: choice 3 of the module; paper A, Figure 3(c).

    Args:
        validation: From :func:`validation_table`.
        models: From :func:`named_models`, for the selected steps.

    Returns:
        One row per (system, seed, checkpoint of :data:`CHECKPOINTS`) with its ``step``.

    Raises:
        RunError: If a selected step was never evaluated.

    Example:
        >>> validation = pd.DataFrame({"system": "L1", "seed": 0, "step": [0, 10, 20, 30]})
        >>> model = TrainedModel("L1", "l1", "small", "qwen2", True, 8, 0, 100, 20, "", "papers")
        >>> checkpoint_steps(validation, {"run": model})["step"].tolist()
        [0, 10, 20, 30]
    """
    rows = []
    for model in models.values():
        here = (validation["system"] == model.system) & (validation["seed"] == model.seed)
        steps = np.unique(validation.loc[here, "step"])
        if model.selected_step not in steps:
            raise RunError(
                f"{model.system}, seed {model.seed}: selected step {model.selected_step} is not "
                f"among the steps evaluated: {', '.join(map(str, steps)) or 'none'}"
            )
        middle = steps[np.abs(steps - steps[-1] / 2).argmin()]
        chosen = steps[0], middle, model.selected_step, steps[-1]
        for name, step in zip(CHECKPOINTS, chosen, strict=True):
            rows.append(
                {"system": model.system, "seed": model.seed, "checkpoint": name, "step": int(step)}
            )
    return pd.DataFrame(rows)


def prepare_alignment(validation: pd.DataFrame, checkpoints: pd.DataFrame) -> pd.DataFrame:
    """How often each confidence is stated, and how often it is right.

    Source: paper A, Figure 3(c). Intervals are Wilson's, for independent answers; several
    rollouts of one question are not independent, and the intervals are then too narrow.

    Args:
        validation: From :func:`validation_table`.
        checkpoints: From :func:`checkpoint_steps`.

    Returns:
        One row per (system, checkpoint, distinct confidence), seeds pooled: ``steps`` (text),
        ``confidence``, ``count``, ``share`` of the rollouts with a confidence, ``accuracy``,
        ``accuracy_low``, ``accuracy_high``. Where none is stated, one row of count 0 with the
        other numbers missing.

    Example:
        >>> validation = pd.DataFrame({"system": "L1", "seed": 0, "step": 0,
        ...     "confidence": [1.0, 1.0, 0.5, np.nan], "correct": [True, False, False, True]})
        >>> checkpoints = pd.DataFrame({"system": ["L1"], "seed": [0], "checkpoint": ["before"],
        ...     "step": [0]})
        >>> table = prepare_alignment(validation, checkpoints)
        >>> table[["confidence", "count", "accuracy"]].values.tolist()
        [[0.5, 1.0, 0.0], [1.0, 2.0, 0.5]]
    """
    both = checkpoints.merge(validation, on=["system", "seed", "step"])
    parts = []
    for (system, checkpoint), group in both.groupby(["system", "checkpoint"], sort=False):
        stated = group[group["confidence"].notna()]
        steps = ", ".join(map(str, group["step"].drop_duplicates()))
        label: dict[object, object] = {"system": system, "checkpoint": checkpoint, "steps": steps}
        for confidence, rows in stated.groupby("confidence"):
            curve = reliability_curve(rows["confidence"], rows["correct"], n_bins=1)
            parts.append(
                label
                | {"confidence": confidence, "count": len(rows), "share": len(rows) / len(stated)}
                | curve[["accuracy", "accuracy_low", "accuracy_high"]].iloc[0].to_dict()
            )
        if stated.empty:
            parts.append(label | {"count": 0})
    columns = ["system", "checkpoint", "steps", "confidence", "count", "share"]
    columns += ["accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(parts).reindex(columns=columns)


def level_table(
    records: pd.DataFrame,
    *,
    columns: Sequence[str] = ("confidence",),
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy and mean confidence by graded difficulty.

    Seeds and samples of one question are pooled, and questions are resampled with all of them.
    Rows without a confidence are left out, as are questions without a level.

    Args:
        records: Records of several runs with a column ``level``.
        columns: Confidence signals, each its own quantity.
        n_resamples: Bootstrap resamples, by question.
        seed: Of the resampling.

    Returns:
        One row per (dataset, system, level, quantity), levels rising, with ``n`` answers and
        ``estimate``, ``low``, ``high`` (missing where no answer states one); the quantity is
        ``accuracy`` or a signal's column.

    Raises:
        ValueError: If the records have no column ``level``.

    Example:
        >>> records = pd.DataFrame({"dataset": "d", "question_id": ["a", "b"], "system": "s",
        ...     "level": [1, 1], "correct": [True, False], "confidence": [0.9, 0.7]})
        >>> table = level_table(records, n_resamples=10).set_index("quantity")
        >>> table["estimate"].round(2).to_dict()
        {'accuracy': 0.5, 'confidence': 0.8}
    """
    if "level" not in records:
        raise ValueError("the records lack the column level")
    metrics = calibration_metrics()
    graded = records[records["level"].notna()].sort_values("level", kind="stable")
    order = records[["dataset", "system"]].drop_duplicates()
    rows = []
    for dataset, system in order.itertuples(index=False):
        part = graded[(graded["dataset"] == dataset) & (graded["system"] == system)]
        for level, group in part.groupby("level"):
            stated = group[group["confidence"].notna()]
            quantities = {"accuracy": (stated, "pass@1", "confidence")}
            quantities |= {
                name: (group[group[name].notna()], "mean confidence", name) for name in columns
            }
            for quantity, (answers, metric, column) in quantities.items():
                row = {"dataset": dataset, "system": system, "level": int(level)}
                row |= {"quantity": quantity, "n": len(answers)}
                if len(answers):
                    interval = bootstrap_interval(
                        metrics[metric],
                        answers,
                        columns=(column, "correct"),
                        n_resamples=n_resamples,
                        seed=seed,
                    )
                    row |= {name: getattr(interval, name) for name in ("estimate", "low", "high")}
                rows.append(row)
    columns = ["dataset", "system", "level", "quantity", "n", "estimate", "low", "high"]
    return pd.DataFrame(rows).reindex(columns=columns)


def stated_confidences(records: pd.DataFrame) -> pd.DataFrame:
    """How spread out the stated confidences of each system are, and which is the commonest.

    Source: paper A, Limitations (confidences stay discrete) and appendix D (nearly all 0).

    Args:
        records: Records of several runs; seeds are pooled.

    Returns:
        One row per (dataset, system): ``n`` answers with a confidence, ``distinct``
        confidences, ``share_at_0``, ``share_at_1``, the ``commonest`` confidence (the lowest
        of several) and its ``share_of_commonest``; missing where none is stated.

    Example:
        >>> records = pd.DataFrame({"dataset": "d", "system": "s", "confidence": [1, 1, 0, 0.5]})
        >>> found = stated_confidences(records)[["distinct", "share_at_1", "commonest"]]
        >>> found.values.tolist()
        [[3.0, 0.5, 1.0]]
    """
    rows = []
    for (dataset, system), group in records.groupby(["dataset", "system"], sort=False):
        stated = group["confidence"].dropna()
        row = {"dataset": dataset, "system": system, "n": len(stated)}
        if len(stated):
            shares = stated.value_counts(normalize=True).sort_index()
            row |= {
                "distinct": len(shares),
                "share_at_0": float(np.mean(stated == 0)),
                "share_at_1": float(np.mean(stated == 1)),
                "commonest": float(shares.index.to_numpy()[shares.argmax()]),
                "share_of_commonest": float(shares.max()),
            }
        rows.append(row)
    columns = ["dataset", "system", "n", "distinct", "share_at_0", "share_at_1"]
    return pd.DataFrame(rows).reindex(columns=[*columns, "commonest", "share_of_commonest"])


def best(values: pd.Series, *, highest: bool = True) -> str:
    """Names of the best values, for a sentence.

    Args:
        values: Named numbers; missing ones are never best.
        highest: Whether the highest is best, or the lowest.

    Returns:
        The name, or several joined by "and" where they are equal but for rounding error;
        ``"none"`` where all are missing.

    Example:
        >>> best(pd.Series({"L1": 0.1, "KL": 0.1, "L2": 0.3, "Brier": np.nan}), highest=False)
        'L1 and KL'
    """
    known = values.dropna()
    if known.empty:
        return "none"
    top = known.max() if highest else known.min()
    return " and ".join(str(name) for name in known.index[np.isclose(known, top)])


def in_words(row: Mapping[Any, Any], spec: str = ".3f") -> str:
    """An interval for a sentence, also where it does not exist.

    Args:
        row: With ``value``, ``low`` and ``high``, as of :func:`corea.metrics.intervals.summarize`.
        spec: Format of each number.

    Returns:
        The estimate and its interval, or ``"not defined"`` where the value is missing.

    Example:
        >>> in_words({"value": 0.5, "low": 0.4, "high": 0.6}, ".1f")
        '0.5 [0.4, 0.6]'
    """
    interval = as_interval(row)
    return "not defined" if interval is None else format(interval, spec)


def self_knowledge_verdict(
    before: Interval | None, after: Interval | None, gain: Interval | None
) -> str:
    """What training did to self-knowledge, as far as intervals show.

    Self-knowledge is an AUROC of the stated confidence above 0.5, where it tells nothing. It is
    shown to be voiced before training if the interval of the AUROC then lies above 0.5. That it
    is not shown does not say that there is none: for that one has to know the base model.

    Source: ours; paper A has no base model whose confidence is known to be uninformed.

    Args:
        before: AUROC before training; None where it is not defined.
        after: AUROC after it.
        gain: Paired difference, after less before.

    Returns:
        ``"amplified"`` if it was voiced before and the interval of the gain lies above 0;
        :data:`GAINED` if it was not shown to be voiced, and those of the gain and of the AUROC
        after lie above 0 and 0.5; ``"lost"`` if it was voiced before and that
        of the gain lies below 0; ``"not defined"`` where an AUROC is not; otherwise ``"no
        change shown"``.

    Example:
        >>> def about(x): return Interval(x, x - 0.05, x + 0.05)
        >>> self_knowledge_verdict(about(0.6), about(0.8), about(0.2))
        'amplified'
        >>> self_knowledge_verdict(about(0.5), about(0.52), about(0.02))
        'no change shown'
    """
    if before is None or after is None or gain is None:
        return "not defined"
    voiced = before.low > 0.5
    if voiced and gain.low > 0:
        return "amplified"
    if not voiced and gain.low > 0 and after.low > 0.5:
        return GAINED
    if voiced and gain.high < 0:
        return "lost"
    return "no change shown"


def self_knowledge_conclusion(informed: Collection[str], uninformed: Collection[str]) -> str:
    """What verdicts on both kinds of base model say about creating self-knowledge.

    Args:
        informed: Verdicts of :func:`self_knowledge_verdict` on what was trained from base models
            whose stated confidence was informed in pretraining.
        uninformed: The same from base models whose stated confidence was not.

    Returns:
        A clause for a sentence. Created: something was gained from an uninformed base model.
        Amplified, and not seen to create: what an informed one voiced was amplified, and from
        the uninformed ones nothing was gained. Where only what the informed ones gained is
        shown, not that they voiced it before, the clause says that.

    Example:
        >>> self_knowledge_conclusion(["amplified"], [])
        'these runs do not decide it'
    """
    if GAINED in uninformed:
        return "reinforcement created self-knowledge that the base model did not voice"
    if "amplified" in uninformed:
        return "the uninformed model voiced some already, so these runs do not decide it"
    nothing_gained = uninformed and set(uninformed) <= {"no change shown", "lost"}
    if nothing_gained and "amplified" in informed:
        return "reinforcement amplified what was voiced and is not seen to create what was not"
    if nothing_gained and GAINED in informed:
        return (
            "reinforcement helped where pretraining had informed the confidence and is not seen "
            "to help where it had not"
        )
    return "these runs do not decide it"


# --- sample outputs ---------------------------------------------------------------------------


def confidently_wrong(
    samples: pd.DataFrame, system: str, *, min_confidence: float = 0.9
) -> pd.DataFrame:
    """The first question of each dataset and level that a system gets confidently wrong.

    The rule by which sample outputs are chosen, instead of by hand: of the questions that
    every system in the table answered, in the order they come in, the first of each (dataset,
    level) to which ``system`` gave a wrong answer with a confidence of at least
    ``min_confidence``. Of several completions of a question, each system's first counts.

    Source: ours; paper A's appendix B shows one problem and does not say how it was chosen.

    Args:
        samples: From :func:`sample_table`, of one seed.
        system: Whose mistakes choose the questions, such as the base model.
        min_confidence: The lowest confidence that is called confident.

    Returns:
        The first completion of every system to each chosen question: the table's columns,
        question by question, systems in the table's order. No row if no question qualifies.

    Raises:
        ValueError: If the system is not among the samples, or a system comes with several seeds.

    Example:
        >>> samples = pd.DataFrame({"system": ["SLM", "L1-SLM"], "seed": 0, "dataset": "d",
        ...     "question_id": "q", "level": 1, "correct": [False, True],
        ...     "confidence": [1.0, 0.8]})
        >>> confidently_wrong(samples, "SLM")["system"].tolist()
        ['SLM', 'L1-SLM']
    """
    systems = list(samples["system"].unique())
    if system not in systems:
        raise ValueError(f"no samples of {system!r}; there are {', '.join(systems)}")
    seeds = samples.groupby("system", sort=False)["seed"].nunique()
    if (seeds > 1).any():
        raise ValueError(f"several seeds of {seeds.idxmax()!r}; expected samples of one seed")
    question = ["dataset", "question_id"]
    first = samples.drop_duplicates([*question, "system"])
    shared = first.groupby(question, sort=False)["system"].transform("size") == len(systems)
    first = first[shared]
    wrong = first[
        (first["system"] == system) & ~first["correct"] & (first["confidence"] >= min_confidence)
    ]
    order = {name: place for place, name in enumerate(samples["dataset"].unique())}
    chosen = wrong.drop_duplicates(["dataset", "level"])
    chosen = chosen.assign(place=chosen["dataset"].map(order)).sort_values(["place", "level"])
    chosen = chosen[question].assign(place=range(len(chosen)))
    kept = first.merge(chosen, on=question).sort_values("place", kind="stable")
    return kept.drop(columns="place").reset_index(drop=True)


# --- figures ----------------------------------------------------------------------------------


def plot_curves(
    curves: pd.DataFrame,
    *,
    points: pd.DataFrame | None = None,
    selected: pd.DataFrame | None = None,
    columns: int = 2,
) -> Figure:
    """Metrics over training steps: a panel a metric, a colour a system.

    Args:
        curves: From :func:`prepare_curves`.
        points: Further values to draw as points, such as held-out ones; the same columns.
        selected: Columns ``system`` and ``step``: steps marked at the bottom of each panel.
        columns: Panels side by side, at most.

    Returns:
        The figure.
    """
    metrics = list(curves["metric"].unique())
    shade = colors(curves["system"])
    columns = min(columns, len(metrics))
    n_rows = -(-len(metrics) // columns)
    with style():
        drawing, grid = plt.subplots(
            n_rows, columns, figsize=(3.6 * columns, 2.3 * n_rows), sharex=True, squeeze=False
        )
        for axes in grid.flat[len(metrics) :]:
            axes.set_visible(False)
        for place, (axes, metric) in enumerate(zip(grid.flat, metrics, strict=False)):
            _draw_curves(axes, curves[curves["metric"] == metric], shade)
            if points is not None:
                _draw_points(axes, points[points["metric"] == metric], shade)
            if selected is not None:
                _mark_steps(axes, selected, shade)
            axes.set_title(LABELS.get(metric, metric))
            if place + columns >= len(metrics):
                axes.set_xlabel("training step")
                axes.tick_params(labelbottom=True)
        lines = [Line2D([], [], color=color, linewidth=2) for color in shade.values()]
        names = [as_label(name) for name in shade]
        drawing.legend(lines, names, loc="outside lower center", ncols=min(len(names), 4))
    return drawing


def _draw_curves(axes: Axes, curves: pd.DataFrame, shade: Mapping[str, str]) -> None:
    for (system, _), rows in curves.groupby(["system", "seed"], sort=False):
        color = shade[str(system)]
        axes.plot(rows["step"], rows["value"], color=color, linewidth=0.6, alpha=0.35)
    for system, rows in over_seeds(curves).groupby("system", sort=False):
        line, color = rows.sort_values("step"), shade[str(system)]
        axes.plot(line["step"], line["mean"], color=color, linewidth=1.6)
        if (line["seeds"] > 1).any():
            ends = line["low"].to_numpy(), line["high"].to_numpy()
            axes.fill_between(line["step"], *ends, color=color, alpha=0.2, linewidth=0)


def _draw_points(axes: Axes, points: pd.DataFrame, shade: Mapping[str, str]) -> None:
    for system, rows in points.groupby("system", sort=False):
        axes.plot(
            rows["step"], rows["value"], "o", color=shade[str(system)], markersize=5,
            markeredgecolor="white",
        )  # fmt: skip


def _mark_steps(axes: Axes, selected: pd.DataFrame, shade: Mapping[str, str]) -> None:
    for row in selected.to_dict("records"):
        height = 0.05 * list(shade).index(row["system"])  # above each other where steps are equal
        axes.plot(
            row["step"], height, "^", color=shade[row["system"]], markersize=6, clip_on=False,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def plot_alignment(alignment: pd.DataFrame) -> Figure:
    """Share and accuracy of each stated confidence: a row a system, a column a checkpoint.

    Args:
        alignment: From :func:`prepare_alignment`.

    Returns:
        The figure. Bars are shares of the answers, points their accuracy.
    """
    systems = list(alignment["system"].unique())
    shade = colors(systems)
    with style():
        drawing, grid = plt.subplots(
            len(systems),
            len(CHECKPOINTS),
            figsize=(2.3 * len(CHECKPOINTS), 0.3 + 2.2 * len(systems)),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for (i, system), (j, name) in product(enumerate(systems), enumerate(CHECKPOINTS)):
            here = (alignment["system"] == system) & (alignment["checkpoint"] == name)
            _draw_alignment(grid[i, j], alignment[here], shade[system])
            steps = ", ".join(alignment.loc[here, "steps"].unique())
            grid[i, j].set_title(f"{name} (step {steps})" if steps else name, fontsize="medium")
            if j == 0:
                grid[i, j].set_ylabel(as_label(system))
            if i == len(systems) - 1:
                grid[i, j].set_xlabel("stated confidence")
    return drawing


def _draw_alignment(axes: Axes, rows: pd.DataFrame, color: str) -> None:
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axes.bar(rows["confidence"], rows["share"], 0.07, color=color, alpha=0.35, linewidth=0)
    axes.plot([0, 1], [0, 1], **REFERENCE)
    error = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
    axes.errorbar(
        rows["confidence"], rows["accuracy"], yerr=error, color=color, marker="o", markersize=4,
        linestyle="", elinewidth=1,
    )  # fmt: skip


def plot_levels(levels: pd.DataFrame) -> Figure:
    """Accuracy and mean confidence by difficulty: a row a dataset, a column a system.

    Args:
        levels: From :func:`level_table`.

    Returns:
        The figure. Accuracy is grey and dashed, confidence in the system's colour; further
        signals are dotted.
    """
    datasets, systems = list(levels["dataset"].unique()), list(levels["system"].unique())
    shade = colors(systems)
    looks = {"accuracy": "--", "confidence": "-"}
    with style():
        drawing, grid = plt.subplots(
            len(datasets),
            len(systems),
            figsize=(0.6 + 2.3 * len(systems), 0.4 + 2.1 * len(datasets)),
            sharex="row",
            sharey=True,
            squeeze=False,
        )
        for (i, dataset), (j, system) in product(enumerate(datasets), enumerate(systems)):
            axes = grid[i, j]
            here = levels[(levels["dataset"] == dataset) & (levels["system"] == system)]
            for name, rows in here.groupby("quantity", sort=False):
                color = "0.45" if name == "accuracy" else shade[system]
                mark = "s" if name == "accuracy" else "o"
                line = mark + looks.get(str(name), ":")
                axes.vlines(rows["level"], rows["low"], rows["high"], color=color, linewidth=1)
                axes.plot(rows["level"], rows["estimate"], line, color=color, markersize=4)
            axes.set(ylim=(-0.03, 1.03))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if i == 0:
                axes.set_title(as_label(system))
            if i == len(datasets) - 1:
                axes.set_xlabel("level")
            if j == 0:
                axes.set_ylabel(as_label(dataset))
    return drawing


def plot_grouped(
    values: pd.DataFrame, *, x: str, hue: str, columns: str, rows: str, paper: str = "paper"
) -> Figure:
    """Estimates with their intervals side by side: a panel for each of rows and columns.

    Args:
        values: One row per panel, x and hue with ``estimate``, ``low`` and ``high``.
        x: Column whose values stand along the axis, in order of appearance.
        hue: Column whose values get a colour each and stand beside each other.
        columns: Column whose values get a column of panels each.
        rows: Column whose values get a row of panels each; they share an axis.
        paper: Value of ``hue`` that is a reference: grey, joined by a dashed line.

    Returns:
        The figure.
    """
    xs, hues = list(values[x].unique()), list(values[hue].unique())
    across, down = list(values[columns].unique()), list(values[rows].unique())
    shade = colors(name for name in hues if name != paper)
    with style():
        drawing, grid = plt.subplots(
            len(down),
            len(across),
            figsize=(0.7 + 2.3 * len(across), 0.9 + 1.9 * len(down)),
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for (i, row), (j, column) in product(enumerate(down), enumerate(across)):
            axes = grid[i, j]
            here = values[(values[rows] == row) & (values[columns] == column)]
            for place, name in enumerate(hues):
                part = here[here[hue] == name].dropna(subset="estimate")
                at = np.array([xs.index(value) for value in part[x]], dtype=float)
                at += 0.6 * ((place + 0.5) / len(hues) - 0.5)
                if name == paper:
                    axes.plot(at, part["estimate"], marker="D", markersize=3.5, **REFERENCE)
                else:
                    # an interval by resampling need not hold the estimate
                    axes.vlines(at, part["low"], part["high"], color=shade[name], linewidth=1.4)
                    axes.plot(at, part["estimate"], "o", color=shade[name], markersize=4)
            axes.set_xlim(-0.5, len(xs) - 0.5)
            axes.set_xticks(
                range(len(xs)), [as_label(value) for value in xs], rotation=40, ha="right"
            )
            if i == 0:
                axes.set_title(as_label(column))
            if j == 0:
                axes.set_ylabel(as_label(row))
        marks = [
            Line2D([], [], marker="D", markersize=3.5, **REFERENCE)
            if name == paper
            else Line2D([], [], marker="o", color=shade[name], linestyle="")
            for name in hues
        ]
        names = [as_label(name) for name in hues]
        drawing.legend(marks, names, loc="outside lower center", ncols=min(len(names), 4))
    return drawing
