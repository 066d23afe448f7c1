"""The tables that chapters share: every metric with its interval, and cascades compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial

import numpy as np
import pandas as pd

from corea.metrics import calibration
from corea.metrics.calibration import Interval, bootstrap_interval, bootstrap_intervals
from corea.metrics.cascade import operating_point
from corea.metrics.costs import query_cost
from corea.records import (
    RecordsError,
    join_on_questions,
    pair,
    quoted,
    quoted_names,
    select,
)

Metric = Callable[..., float]


def calibration_metrics(n_bins: int = 10) -> dict[str, Metric]:
    """The metrics every calibration table shows, by the name it shows them under.

    Args:
        n_bins: Bins of the two binned errors.

    Returns:
        Name to a function ``metric(confidence, correct, *, weight)``.
    """
    ece = partial(calibration.expected_calibration_error, n_bins=n_bins)
    return {
        "pass@1": _pass_at_1,
        "mean confidence": _mean_confidence,
        "ECE (equal width)": partial(ece, binning="equal_width"),
        "ECE (equal mass)": partial(ece, binning="equal_mass"),
        "smooth ECE": calibration.smooth_ece,
        "Brier score": calibration.brier_score,
        "AUROC": calibration.auroc,
        "AURC": calibration.area_under_risk_coverage,
    }


def _pass_at_1(
    confidence: np.ndarray, correct: np.ndarray, *, weight: np.ndarray | None = None
) -> float:
    return float(np.average(correct, weights=weight))


def _mean_confidence(
    confidence: np.ndarray, correct: np.ndarray, *, weight: np.ndarray | None = None
) -> float:
    return float(np.average(confidence, weights=weight))


def calibration_table(
    table: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    *,
    n_bins: int = 10,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Calibration metrics of every system on every dataset, with intervals.

    Args:
        table: Records. Rows without a confidence are left out of the metrics and counted.
        metrics: Names in :func:`calibration_metrics`; all when None. The smooth ECE takes
            nearly all of the time.
        n_bins: Bins of the two binned errors.
        n_resamples: Bootstrap resamples, by question.
        seed: Of the resampling.

    Returns:
        One row per (dataset, system, metric): the fields of an
        :class:`corea.metrics.calibration.Interval`, ``n`` rows with a confidence and
        ``without_confidence``. Where no row has one, the estimate is missing.

    Raises:
        ValueError: If there is no such metric.

    Example:
        >>> table = pd.DataFrame({"dataset": "d", "question_id": ["1", "2"], "system": "s",
        ...     "sample": 0, "correct": [True, False], "confidence": [1.0, 0.5]})
        >>> result = calibration_table(table, n_resamples=10).set_index("metric")
        >>> float(result.loc["ECE (equal width)", "estimate"])
        0.25
    """
    known = calibration_metrics(n_bins)
    names = list(known) if metrics is None else list(metrics)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"metrics has {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}"
        )

    def chosen(*arrays: np.ndarray, weight: np.ndarray) -> dict[str, float]:
        return {name: known[name](*arrays, weight=weight) for name in names}

    rows: list[dict[str, object]] = []
    for (dataset, system), group in table.groupby(["dataset", "system"], sort=False):
        stated = group[group["confidence"].notna()]
        intervals = (
            bootstrap_intervals(chosen, stated, n_resamples=n_resamples, seed=seed)
            if len(stated)
            else dict.fromkeys(names, Interval(np.nan, np.nan, np.nan, 0.95, n_resamples, seed))
        )
        rows += [
            {"dataset": dataset, "system": system, "metric": name}
            | asdict(interval)
            | {"n": len(stated), "without_confidence": len(group) - len(stated)}
            for name, interval in intervals.items()
        ]
    return pd.DataFrame(rows)


def with_intervals(long: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Lay a calibration table out for reading: a row a system, a column a metric.

    Args:
        long: From :func:`calibration_table`.
        metrics: Which metrics, in order.

    Returns:
        Table ``dataset, system, n`` and a column of intervals per metric; None where
        there is no estimate.
    """
    names = [field.name for field in fields(Interval)]
    shown = long[long["metric"].isin(metrics)]
    intervals = [
        None if np.isnan(row["estimate"]) else Interval(*(row[name] for name in names))
        for row in shown.to_dict("records")
    ]
    keys = ["dataset", "system", "n"]
    index = pd.MultiIndex.from_frame(shown[[*keys, "metric"]])
    wide = pd.Series(intervals, index=index, dtype=object).unstack(sort=False)
    return wide[metrics].reset_index().rename_axis(columns=None)


def difference_interval(
    table: pd.DataFrame,
    metric: Metric,
    system: str,
    baseline: str,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """How much a metric differs between two systems on the same questions.

    Questions are resampled once for both, so what they share does not widen the interval.

    Args:
        table: Records of one dataset holding both systems.
        metric: ``metric(confidence, correct, *, weight)``.
        system: The one looked at.
        baseline: The one it is compared with.
        n_resamples: Bootstrap resamples, by question.
        seed: Of the resampling.

    Returns:
        Interval of ``metric(system) - metric(baseline)``.

    Raises:
        RecordsError: If the two were not asked the same questions, or a confidence is missing.
    """
    key = ["dataset", "question_id", "sample"]
    sides = [
        table.loc[table["system"] == name, [*key, "confidence", "correct"]]
        for name in (system, baseline)
    ]
    names, suffixes = (system, baseline), ("", "_baseline")
    both = join_on_questions(*sides, names=names, suffixes=suffixes)
    if missing := int(both[["confidence", "confidence_baseline"]].isna().to_numpy().sum()):
        raise RecordsError(
            f"{quoted(system)} against {quoted(baseline)}",
            [f"{missing} confidence(s) are missing"],
        )

    def difference(
        confidence: np.ndarray,
        correct: np.ndarray,
        confidence_baseline: np.ndarray,
        correct_baseline: np.ndarray,
        *,
        weight: np.ndarray | None = None,
    ) -> float:
        return metric(confidence, correct, weight=weight) - metric(
            confidence_baseline, correct_baseline, weight=weight
        )

    columns = ("confidence", "correct", "confidence_baseline", "correct_baseline")
    return bootstrap_interval(difference, both, columns=columns, n_resamples=n_resamples, seed=seed)


CASCADE_COLUMNS = ("confidence", "small_correct", "large_correct", "small_cost", "large_cost")


def operating_intervals(
    paired: pd.DataFrame, *, threshold: float, n_resamples: int = 1000, seed: int = 0
) -> Mapping[str, Interval]:
    """What a cascade does at one threshold, with intervals.

    Args:
        paired: From :func:`corea.records.pair`, with ``small_cost`` and ``large_cost``.
        threshold: Where it operates; the same in every resample.
        n_resamples: Bootstrap resamples, by question.
        seed: Of the resampling.

    Returns:
        Name of each quantity of an operating point to its interval.
    """
    names = ("pass_at_1", "cost", "deferral_rate", "cost_saving", "accuracy_drop")

    def quantities(*columns: np.ndarray, weight: np.ndarray) -> dict[str, float]:
        point = operating_point(*columns, threshold=threshold, weight=weight)
        return {name: getattr(point, name) for name in names}

    return bootstrap_intervals(
        quantities, paired, columns=CASCADE_COLUMNS, n_resamples=n_resamples, seed=seed
    )


def small_and_large(table: pd.DataFrame, small: str = "", large: str = "") -> tuple[str, str]:
    """Which system answers first and which one is behind it.

    Args:
        table: Records.
        small: Name of the system that answers first; chosen here when empty: the only
            one, or of two the one with more confidences.
        large: Name of the system behind it; the other of two when empty.

    Returns:
        Both names; the second is empty when there is one system only.

    Raises:
        ValueError: If a name is not among the systems, both are the same, or more than
            two systems leave the choice open.

    Example:
        >>> table = pd.DataFrame({"system": ["big", "tiny"], "confidence": [None, 0.5]})
        >>> small_and_large(table)
        ('tiny', 'big')
    """
    stated = table.groupby("system", sort=False)["confidence"].count()
    systems = list(stated.sort_values(ascending=False, kind="stable").index)
    for name in filter(None, (small, large)):
        select(table, system=name)
    if small and small == large:
        raise ValueError(f"small and large are both {quoted(small)}; a cascade needs two systems")
    if len(systems) > 2 and not (small and large):
        there = quoted_names(systems)
        raise ValueError(f"{len(systems)} systems: say which is small and which large of {there}")
    small = small or next(name for name in systems if name != large)
    large = large or next((name for name in systems if name != small), "")
    return small, large


def priced_pair(
    table: pd.DataFrame,
    small: str,
    large: str,
    *,
    size_ratio: float,
    output_price: float = 4.0,
) -> tuple[pd.DataFrame, str]:
    """Two systems on the same questions, with the cost of asking each.

    Args:
        table: Records.
        small: System that answers first.
        large: System behind it.
        size_ratio: Parameters of the large model over those of the small one.
        output_price: Price of an output token in input tokens.

    Returns:
        The paired table with ``small_cost`` and ``large_cost``, and the unit of cost in
        words. Where a token count is missing anywhere, every query of a system costs the
        same: 1 for the small model, ``size_ratio`` for the large.

    Raises:
        ValueError: As :func:`corea.records.pair` and :func:`corea.metrics.costs.query_cost`.
    """
    paired = pair(table, small, large)
    tokens = [
        f"{side}_{kind}_tokens" for side in ("small", "large") for kind in ("prompt", "completion")
    ]
    counted = all(name in paired and paired[name].notna().all() for name in tokens)
    ratios = {"small": 1.0, "large": size_ratio}
    costs = {
        f"{side}_cost": query_cost(
            paired[f"{side}_prompt_tokens"] if counted else np.ones(len(paired)),
            paired[f"{side}_completion_tokens"] if counted else np.zeros(len(paired)),
            ratio,
            output_price,
        )
        for side, ratio in ratios.items()
    }
    unit = (
        "input tokens of the small model"
        if counted
        else "queries of the small model, since not every row has its token counts"
    )
    return paired.assign(**costs), unit


def confident_mistakes(table: pd.DataFrame, *, n: int = 10) -> pd.DataFrame:
    """The wrong answers stated with most confidence.

    Args:
        table: Records.
        n: How many.

    Returns:
        Their rows, most confident first: dataset, question, system, confidence and, where
        the records have them, answer and gold.
    """
    wrong = table[~table["correct"] & table["confidence"].notna()]
    shown = ["dataset", "question_id", "system", "confidence", "answer", "gold"]
    found = wrong.sort_values("confidence", ascending=False, kind="stable").head(n)
    return found[[name for name in shown if name in found]].reset_index(drop=True)
