"""What is measured of records: every metric of every system, with what intervals need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from corea.metrics import calibration
from corea.metrics.intervals import (
    Interval,
    QuestionWeights,
    as_measurements,
    bootstrap_interval,
    bootstrap_intervals,
)
from corea.records import RecordsError, join_on_questions, quoted

Floats = NDArray[np.float64]
Metric = Callable[..., float]

METRICS = (
    *("pass_at_1", "stated_accuracy", "confidence_output_ratio", "mean_confidence"),
    *("overconfidence", "share_at_ends", "ece", "ece_per_run", "auroc", "aurc", "brier"),
    "brier_skill",
)
"""What :func:`measure` measures. ``pass_at_1`` is of all answers, ``stated_accuracy`` (in percent
too) and all that follow are of those that state a confidence. ``overconfidence`` is the mean
confidence less their accuracy as a fraction, ``share_at_ends`` the share of confidences that are 0
or 1. ``ece`` is that of all answers together; ``ece_per_run``, which paper A prints, the mean of
the ECEs of its runs: the first answers to all questions, the second ones, and so on. The fewer
answers an ECE is of, the more of it is noise."""


def measure(
    records: pd.DataFrame,
    *,
    groups: Mapping[str, Sequence[str]],
    n_bins: int = 10,
    binning: calibration.Binning = "equal_width",
    n_resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy and calibration of every system: the measurements that intervals are made of.

    Source: paper A, section 4.3; its results are means over ten runs (section 4.4).

    Args:
        records: From :func:`corea.runs.run_records`: records with ``seed``; systems under
            another name from :func:`corea.confidence.with_signal` may be among them.
        groups: Name of each group to its datasets.
        n_bins: Bins of the ECE.
        binning: ``"equal_width"``, as in paper A, or ``"equal_mass"``, as in paper B.
        n_resamples: Bootstrap resamples, by question.
        seed: Of the resampling.

    Returns:
        Columns ``system, seed, dataset`` (a group), ``n_questions, metric`` (of
        :data:`METRICS`), ``resample`` (0: the questions as they are) and ``value``, missing where
        the metric is not defined (no confidence stated, AUROC without a wrong answer).

    Raises:
        ValueError: If a dataset of a group is missing for a system, or two systems share neither
            questions nor seeds.

    Example:
        >>> records = pd.DataFrame({"dataset": "chains", "question_id": ["1", "2"], "sample": 0,
        ...     "system": "SLM", "seed": 0, "correct": [True, False], "confidence": [1.0, 0.5]})
        >>> table = measure(records, groups={"chains": ["chains"]}, n_resamples=10)
        >>> now = table[table["resample"] == 0].set_index("metric")["value"]
        >>> float(now["pass_at_1"]), float(now["ece"]), float(now["auroc"])
        (50.0, 0.25, 1.0)
    """
    return measure_runs(
        records,
        groups,
        QuestionWeights(records, n_resamples, seed),
        lambda _system, _dataset, rows, weight: _values(rows, weight, n_bins, binning),
    )


def measure_runs(
    records: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    weights: QuestionWeights,
    values: Callable[[str, str, pd.DataFrame, Floats], Mapping[str, Floats]],
    finish: Callable[[dict[str, Floats]], Mapping[str, Floats]] = dict,
) -> pd.DataFrame:
    """Measurements of ``values(system, dataset, rows, weight)`` of every run and group.

    A group is the mean over its datasets weighted by questions, missing if one is; ``finish`` makes
    what is shown of the means.
    """
    parts = []
    for (system, run_seed), rows in records.groupby(["system", "seed"], sort=False):
        measured: dict[str, Mapping[str, Floats]] = {}
        asked: dict[str, int] = {}
        for name in dict.fromkeys(name for datasets in groups.values() for name in datasets):
            part = on_dataset(rows, name, f"{system!r} with seed {run_seed}")
            asked[name] = part["question_id"].nunique()
            measured[name] = values(str(system), name, part, weights.of_rows(part, name))
        for group, datasets in groups.items():
            n = sum(asked[name] for name in datasets)
            means = {
                metric: np.sum([asked[d] * measured[d][metric] for d in datasets], axis=0) / n
                for metric in measured[datasets[0]]
            }
            labels = {"system": system, "seed": run_seed, "dataset": group}
            parts.append(as_measurements(finish(means), n_questions=n, **labels))
    return pd.concat(parts, ignore_index=True)


def on_dataset(rows: pd.DataFrame, dataset: str, whose: str) -> pd.DataFrame:
    """The records on a dataset, of which there must be some."""
    part = rows[rows["dataset"] == dataset]
    if part.empty:
        known = ", ".join(map(repr, rows["dataset"].unique()))
        raise ValueError(f"{whose} has no records on {dataset!r}; there are {known}")
    return part


def _values(
    rows: pd.DataFrame, weight: Floats, n_bins: int, binning: calibration.Binning
) -> dict[str, Floats]:
    """Every metric under each row of weights at once, shape (resamples,)."""
    # by rising confidence, so that equal confidences are runs; missing ones last
    order = rows["confidence"].to_numpy(dtype=float).argsort(kind="stable")
    confidence = rows["confidence"].to_numpy(dtype=float)[order]
    correct = rows["correct"].to_numpy(dtype=float)[order]
    answer = rows["sample"].to_numpy()[order]
    weight = weight[:, order]
    total = weight.sum(axis=1)
    n_stated = int((~np.isnan(confidence)).sum())
    values = {"pass_at_1": 100 * (weight @ correct) / total}
    weight, confidence, correct = weight[:, :n_stated], confidence[:n_stated], correct[:n_stated]
    count = weight.sum(axis=1)
    values["confidence_output_ratio"] = count / total
    some = np.where(count > 0, count, np.nan)
    if not n_stated:
        return values | {m: some * np.nan for m in METRICS if m not in values}
    runs = np.flatnonzero(np.diff(confidence, prepend=-1.0))
    right = np.add.reduceat(weight * correct, runs, axis=1)
    wrong = np.add.reduceat(weight * (1 - correct), runs, axis=1)
    below = np.cumsum(wrong, axis=1) - wrong
    ece = partial(calibration.resampled_errors, n_bins=n_bins, binning=binning)
    pooled = ece(confidence, correct, weight=weight)
    numbers = np.unique(answer[:n_stated])
    of_runs = [answer[:n_stated] == number for number in numbers] if len(numbers) > 1 else []
    per_run = [ece(confidence[own], correct[own], weight=weight[:, own]) for own in of_runs] or [
        pooled
    ]
    pairs = right.sum(axis=1) * wrong.sum(axis=1)
    won = np.sum(right * (below + wrong / 2), axis=1)
    stated = right.sum(axis=1) / some
    brier = weight @ (confidence - correct) ** 2 / some
    constant = stated * (1 - stated)
    return values | {
        "ece": pooled,
        "ece_per_run": np.mean(per_run, axis=0),
        "stated_accuracy": 100 * stated,
        "overconfidence": weight @ confidence / some - stated,
        "share_at_ends": weight @ ((confidence == 0) | (confidence == 1)) / some,
        "aurc": _risk_coverage_areas(right, wrong) / some,
        "brier_skill": 1 - brier / np.where(constant > 0, constant, np.nan),
        "auroc": won / np.where(pairs > 0, pairs, np.nan),
        "brier": brier,
        "mean_confidence": weight @ confidence / some,
    }


def _risk_coverage_areas(right: Floats, wrong: Floats) -> Floats:
    """The AURC times the number of answers, from what is right and wrong at each confidence.

    Both have the shape (resamples, confidences), rising; the formula is that of
    :func:`corea.metrics.calibration.area_under_risk_coverage`.
    """
    from scipy.special import digamma

    wrong, count = wrong[:, ::-1], (right + wrong)[:, ::-1]
    after, wrong_after = np.cumsum(count, axis=1), np.cumsum(wrong, axis=1)
    before = after - count
    rate = wrong / np.where(count > 0, count, 1.0)
    harmonic = np.diff(digamma(after + 1), axis=1, prepend=digamma(1.0))
    found: Floats = np.sum(wrong + (wrong_after - wrong - before * rate) * harmonic, axis=1)
    return found


# --- tables of one run ---


def calibration_metrics(n_bins: int = 10) -> dict[str, Metric]:
    """The metrics every calibration table shows, by the name it shows them under."""
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


def _pass_at_1(_: Floats, correct: Floats, *, weight: Floats | None = None) -> float:
    return float(np.average(correct, weights=weight))


def _mean_confidence(confidence: Floats, _: Floats, *, weight: Floats | None = None) -> float:
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

    A row per (dataset, system, metric): the fields of an
    :class:`corea.metrics.intervals.Interval`, ``n`` rows with a confidence and
    ``without_confidence``, which are left out. The smooth ECE takes nearly all of the time.

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
    chosen = {name: known[name] for name in names}
    bounds = dict.fromkeys(names, (0.0, 1.0))
    rows: list[dict[str, object]] = []
    for (dataset, system), group in table.groupby(["dataset", "system"], sort=False):
        stated = group[group["confidence"].notna()]
        intervals = (
            bootstrap_intervals(chosen, stated, n_resamples=n_resamples, seed=seed, bounds=bounds)
            if len(stated)
            else dict.fromkeys(names, Interval.of(None))
        )
        rows += [
            {"dataset": dataset, "system": system, "metric": name}
            | asdict(interval)
            | {"n": len(stated), "without_confidence": len(group) - len(stated)}
            for name, interval in intervals.items()
        ]
    return pd.DataFrame(rows)


def with_intervals(long: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """A calibration table for reading: a row a system, a column of intervals a metric."""
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
    """How much a metric differs between two systems on the same questions of one dataset.

    Questions are drawn once for both, so what they share does not widen the interval.

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

    def difference(*columns: Floats, weight: Floats | None = None) -> float:
        return metric(*columns[:2], weight=weight) - metric(*columns[2:], weight=weight)

    columns = ("confidence", "correct", "confidence_baseline", "correct_baseline")
    return bootstrap_interval(
        difference, both, columns=columns, n_resamples=n_resamples, seed=seed, bounds=(-1.0, 1.0)
    )


def confident_mistakes(table: pd.DataFrame, *, n: int = 10) -> pd.DataFrame:
    """The n wrong answers stated with most confidence, most confident first."""
    wrong = table[~table["correct"] & table["confidence"].notna()]
    shown = ["dataset", "question_id", "system", "confidence", "answer", "gold"]
    found = wrong.sort_values("confidence", ascending=False, kind="stable").head(n)
    return found[[name for name in shown if name in found]].reset_index(drop=True)
