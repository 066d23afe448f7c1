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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from corea.book.display import as_label
from corea.book.figures import (
    PANEL,
    REFERENCE,
    colors,
    label_edges,
    panels,
    style,
    wrapped,
)
from corea.metrics.calibration import describe_stated, reliability_curve
from corea.metrics.intervals import bootstrap_interval
from corea.metrics.measure import calibration_metrics
from corea.runs import RunError, TrainedModel, read_model, run_file, run_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

DYNAMICS = ("step", *list(LABELS)[:13])
"""Columns of ``dynamics.csv`` that the chapters draw."""

VALIDATION = ("step", "question_id", "sample", "correct", "confidence", "format")
ALARMS = ("step", "alarm", "detail")
SAMPLES = (
    *("dataset", "question_id", "level", "prompt", "gold"),
    *("completion", "answer", "confidence", "correct"),
)
CHECKPOINTS = ("before", "half way", "selected", "last")


# --- reading ----------------------------------------------------------------------------------


def named_models(
    runs: Sequence[str | Path], name: Callable[[TrainedModel], str] | None = None
) -> dict[str, TrainedModel]:
    """Folder of each run to what it trained; ``name`` of it is its system where given."""
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
    """Records of several runs under the names given to them, with ``informed`` behind."""
    tables = [
        run_records([run]).assign(system=model.system, informed=model.informed)
        for run, model in models.items()
    ]
    return pd.concat(tables, ignore_index=True)


def trained(models: Mapping[str, TrainedModel]) -> dict[str, TrainedModel]:
    """Those models that reinforcement trained, base models left out; there must be one."""
    found = {run: model for run, model in models.items() if model.method != "base"}
    if not found:
        raise RunError(f"nothing was trained by reinforcement in any of {', '.join(models)}")
    return found


def dynamics_table(models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """Training metrics of several runs, one row a run and step, behind system, method and seed."""
    tables = []
    for run in models:
        path, table = _read(run, "dynamics.csv", DYNAMICS)
        for name in DYNAMICS:
            numbers = pd.to_numeric(table[name], errors="coerce")
            _refuse(path, table[name], table[name].notna() & numbers.isna(), "a number")
        step = table["step"]
        _refuse(path, step, step.isna() | (step.diff() <= 0), "a later step than in the row before")
        tables.append(table)
    return _stack(models, tables)


def validation_table(models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """Held-out rollouts of several runs at the steps evaluated, behind system, method and seed.

    ``correct`` is boolean, and a confidence that could not be read is missing.
    """
    words = {"true": True, "false": False, "1": True, "0": False}
    tables = []
    for run in models:
        path, table = _read(run, "validation.csv", VALIDATION)
        confidence = pd.to_numeric(table["confidence"], errors="coerce")
        unread = table["confidence"].notna() & ~confidence.between(0, 1)
        _refuse(path, table["confidence"], unread, "a number in [0, 1], or nothing")
        correct = table["correct"].astype(str).str.lower().map(words)
        _refuse(path, table["correct"], correct.isna(), "true, false, 0 or 1")
        read = {"confidence": confidence, "correct": correct.astype("bool")}
        tables.append(table.assign(dataset="validation", **read))
    return _stack(models, tables)


def alarm_table(models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """Alarms that fired in training; no row where none fired."""
    options: dict[str, Any] = {"dtype": {"alarm": str, "detail": str}, "keep_default_na": False}
    tables = {
        run: _read(run, "alarms.csv", ALARMS, may_be_empty=True, **options)[1]
        for run in models
        if Path(run, "alarms.csv").is_file()
    }
    # left out where empty: its dtypes would become those of all
    fired = {run: table for run, table in tables.items() if len(table)}
    columns = ["system", "seed", *ALARMS]
    if not fired:
        return pd.DataFrame(columns=columns)
    return _stack({run: models[run] for run in fired}, list(fired.values()))[columns]


def sample_table(models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """Completions that runs kept to be read by people."""
    tables = [_read(run, "samples.parquet", SAMPLES, may_be_empty=True)[1] for run in models]
    return _stack(models, tables)[["system", "seed", *SAMPLES]]


def _read(
    run: str, name: str, columns: Sequence[str], *, may_be_empty: bool = False, **options: Any
) -> tuple[str, pd.DataFrame]:
    """A table of a run and its path, refused if it lacks columns or rows."""
    path = run_file(run, name)
    read = pd.read_parquet if path.suffix == ".parquet" else pd.read_csv
    table = read(path, **options)
    if lacking := [column for column in columns if column not in table]:
        raise RunError(f"{path.as_posix()}: lacks the column(s) {', '.join(lacking)}")
    if table.empty and not may_be_empty:
        raise RunError(f"{path.as_posix()}: no rows; expected one for each step or rollout")
    return path.as_posix(), table


def _stack(models: Mapping[str, TrainedModel], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of runs below each other, behind columns of what was trained."""
    for model, table in zip(models.values(), tables, strict=True):
        for column in ("seed", "method", "system"):
            table.insert(0, column, getattr(model, column))
    return pd.concat(tables, ignore_index=True)


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
    """Accuracy and calibration on held-out questions at each evaluated step, in ``n`` rollouts.

    Source: paper A, section 4.3 (the metrics) and Figure 3(b). Missing where nothing stated a
    confidence; so is AUROC where all rollouts are correct or none is.

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
    """Mean of each smoothed curve over the seeds that have a value, and the lowest and highest."""
    groups = curves.dropna(subset="smooth").groupby(["system", "metric", "step"], sort=False)
    return groups["smooth"].agg(mean="mean", low="min", high="max", seeds="size").reset_index()


# --- alignment of confidence and accuracy -----------------------------------------------------


def checkpoint_steps(validation: pd.DataFrame, models: Mapping[str, TrainedModel]) -> pd.DataFrame:
    """The evaluated steps that stand for the course of each run (choice 3 of the module)."""
    rows = []
    for model in models.values():
        mask = (validation["system"] == model.system) & (validation["seed"] == model.seed)
        steps = np.unique(validation.loc[mask, "step"])
        if model.selected_step not in steps:
            raise RunError(
                f"{model.system}, seed {model.seed}: selected step {model.selected_step} is not "
                f"among the steps evaluated: {', '.join(map(str, steps)) or 'none'}"
            )
        middle = steps[np.abs(steps - steps[-1] / 2).argmin()]
        chosen = steps[0], middle, model.selected_step, steps[-1]
        rows += [
            (model.system, model.seed, name, int(step))
            for name, step in zip(CHECKPOINTS, chosen, strict=True)
        ]
    return pd.DataFrame(rows, columns=["system", "seed", "checkpoint", "step"])


def prepare_alignment(validation: pd.DataFrame, checkpoints: pd.DataFrame) -> pd.DataFrame:
    """How often each confidence is stated and how often it is right; a row of count 0 if none is.

    Source: paper A, Figure 3(c). Intervals are Wilson's, for independent answers; several
    rollouts of one question are not independent, and the intervals are then too narrow.

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
    quantities = [("accuracy", "pass@1", "confidence")]
    quantities += [(name, "mean confidence", name) for name in columns]
    rows = []
    for dataset, system in order.itertuples(index=False):
        part = graded[(graded["dataset"] == dataset) & (graded["system"] == system)]
        for (level, group), (quantity, metric, column) in product(
            part.groupby("level"), quantities
        ):
            answers = group[group[column].notna()]
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
    names = ["dataset", "system", "level", "quantity", "n", "estimate", "low", "high"]
    return pd.DataFrame(rows).reindex(columns=names)


def stated_confidences(records: pd.DataFrame) -> pd.DataFrame:
    """How spread out each system's stated confidences are; of equally common ones the lowest.

    Source: paper A, Limitations (confidences stay discrete) and appendix D (nearly all 0).

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


# --- sample outputs ---------------------------------------------------------------------------


def confidently_wrong(
    samples: pd.DataFrame, system: str, *, min_confidence: float = 0.9
) -> pd.DataFrame:
    """All systems' first completions to the questions that ``system`` gets confidently wrong.

    A rule instead of a choice by hand: of the questions that every system answered, in their
    order, the first of each dataset and level to which ``system``'s first completion is wrong
    with a confidence of at least ``min_confidence``. Paper A's appendix B shows one problem and
    does not say how it was chosen.
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


@style()
def plot_curves(
    curves: pd.DataFrame,
    *,
    points: pd.DataFrame | None = None,
    selected: pd.DataFrame | None = None,
    columns: int = 2,
) -> Figure:
    """Metrics over training steps: a panel a metric, a colour a system."""
    metrics = list(curves["metric"].unique())
    shade = colors(curves["system"])
    columns = min(columns, len(metrics))
    width = 2 * PANEL / columns
    size = width, 2.1
    drawing, _, used = wrapped(len(metrics), columns, *size, below="training step", sharex=True)
    for axes, metric in zip(used, metrics, strict=True):
        _draw_curves(axes, curves[curves["metric"] == metric], shade)
        if points is not None:
            _draw_points(axes, points[points["metric"] == metric], shade)
        if selected is not None:
            _mark_steps(axes, selected, shade)
        axes.set_title(LABELS.get(metric, metric))
    lines = [Line2D([], [], color=color, linewidth=2) for color in shade.values()]
    names = [as_label(name) for name in shade]
    drawing.legend(lines, names, loc="outside lower center", ncols=min(len(names), 2))
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


@style()
def plot_alignment(alignment: pd.DataFrame) -> Figure:
    """Share and accuracy of each stated confidence: a row a system, a column a checkpoint."""
    systems = list(alignment["system"].unique())
    shade = colors(systems)
    n_rows, n_columns = len(systems), len(CHECKPOINTS)
    size = 1.7 * n_columns, 0.3 + 1.8 * n_rows
    drawing, grid = panels(n_rows, n_columns, *size, sharex=True, sharey=True)
    label_edges(grid, rows=systems, below="stated confidence")
    for (i, system), (j, name) in product(enumerate(systems), enumerate(CHECKPOINTS)):
        rows = alignment[(alignment["system"] == system) & (alignment["checkpoint"] == name)]
        _draw_alignment(grid[i, j], rows, shade[system])
        steps = ", ".join(rows["steps"].unique())
        grid[i, j].set_title(f"{name} (step {steps})" if steps else name)
    return drawing


def _draw_alignment(axes: Axes, rows: pd.DataFrame, color: str) -> None:
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.02, 1.02))
    axes.bar(rows["confidence"], rows["share"], 0.07, color=color, alpha=0.35, linewidth=0)
    axes.plot([0, 1], [0, 1], **REFERENCE)
    error = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
    axes.errorbar(
        rows["confidence"], rows["accuracy"], yerr=error, color=color, marker="o", markersize=4,
        linestyle="", elinewidth=1,
    )  # fmt: skip


@style()
def plot_levels(levels: pd.DataFrame) -> Figure:
    """Accuracy and mean confidence by difficulty: a row a dataset, a column a system."""
    datasets, systems = list(levels["dataset"].unique()), list(levels["system"].unique())
    shade = colors(systems)
    looks = {"accuracy": "--", "confidence": "-"}
    n_rows, n_columns = len(datasets), len(systems)
    size = 0.6 + 1.8 * n_columns, 0.4 + 1.9 * n_rows
    drawing, grid = panels(n_rows, n_columns, *size, sharex="row", sharey=True)
    label_edges(grid, columns=systems, rows=datasets, below="level")
    for (i, dataset), (j, system) in product(enumerate(datasets), enumerate(systems)):
        axes = grid[i, j]
        part = levels[(levels["dataset"] == dataset) & (levels["system"] == system)]
        for name, rows in part.groupby("quantity", sort=False):
            color = REFERENCE["color"] if name == "accuracy" else shade[system]
            mark = "s" if name == "accuracy" else "o"
            line = mark + looks.get(str(name), ":")
            axes.vlines(rows["level"], rows["low"], rows["high"], color=color, linewidth=1)
            axes.plot(rows["level"], rows["estimate"], line, color=color, markersize=4)
        axes.set(ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawing
