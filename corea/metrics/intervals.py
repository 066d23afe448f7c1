r"""Intervals: one matrix of question weights, one rule, one way to print.

A *measurement* is a row (system, seed, dataset, metric, resample, value); resample 0 is the
questions as they are, in the others questions were drawn with replacement, each with all its
samples. :func:`summarize` and :func:`differences` make intervals of measurements, :func:`verdict`
judges them, and nothing else decides what an interval is.

With :math:`v_{sb}` the value of seed s under resample b, :math:`S` seeds and N questions:

1. The estimate is :math:`\bar v_{\cdot 0}`, the mean over seeds of what was measured.
2. Its variance is that over questions, :math:`V_Q = \operatorname{var}_b \bar v_{\cdot b}`, and
   with several seeds that over seeds, :math:`V_S = \operatorname{var}_s v_{s0} / S`. Both count
   what questions do to one seed alone, so the sum is a little too large, never too small.
3. The half width is :math:`t\,\sqrt{V_Q + V_S}` with Satterthwaite's degrees of freedom,
   :math:`(V_Q + V_S)^2 / (V_Q^2/(N-1) + V_S^2/(S-1))`. Resampling three seeds, as a hierarchical
   percentile bootstrap does, gives two thirds of their variance and covers about 85 %.
4. The plug-in ECE of a sample is too large, and that of a resample again, by about as much: the
   middle is the estimate less :math:`\operatorname{mean}_b \bar v_{\cdot b} - \bar v_{\cdot 0}`.
   The interval is then widened to hold the estimate, and cut to what the metric can be.
5. Where no resample differs, what never occurred in N questions may still have the probability
   :math:`p = 1 - (\alpha/2)^{1/N}`: the interval reaches that part of the way to either end of
   the metric's range.
6. Differences are paired: the same seeds, and in a resample the same questions for all systems.
   Questions are drawn within each dataset.

``benchmarks/bench_coverage.py`` counts how often these intervals cover a known truth, beside the
rules that were not taken. One seed says nothing about training; its intervals are of that model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from corea import checks

Floats = NDArray[np.float64]

LEVEL = 0.95
ONE_SEED = "bootstrap over questions"
SEEDS = "bootstrap over questions, Student's t over seeds"
FEW_SEEDS = f"{SEEDS} (few: may be too narrow)"
SEEDS_ALONE = "Student's t over seeds"
"""What full runs that were published before this module have; it left the questions out."""

FEW = 4
"""With so many seeds or fewer an interval is marked: its coverage was below 93 % somewhere."""

RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    dict.fromkeys(("pass_at_1", "deferral_rate"), (0.0, 100.0))
    | dict.fromkeys(
        ("ece", "auroc", "brier", "confidence_output_ratio", "mean_confidence", "sce", "mce"),
        (0.0, 1.0),
    )
    | dict.fromkeys(("small_cost", "large_cost", "router_cost", "cost"), (0.0, np.inf))
    | {"cost_change": (-100.0, np.inf), "pass_at_1_change": (-100.0, 100.0)}
)
"""What metrics can be; others can be any number."""

COLUMNS = ("value", "low", "high", "n_seeds", "n_questions", "interval")
"""Columns that :func:`summarize` and :func:`differences` add to their labels."""

_ANY = (-np.inf, np.inf)
_NOT_LABELS = ("seed", "resample", "value", "n_questions")


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; ``f"{interval:.3f}"`` reads ``0.123 [0.101, 0.145]``.

    Attributes:
        estimate: What was measured; NaN where it is not defined.
        low: Lower end, never above the estimate.
        high: Upper end, never below it.
        level: Level of the interval.
        method: How it was made, such as :data:`ONE_SEED`.
        n_questions: Questions it was made from; 0 if not known.
        n_seeds: Training seeds; 0 if not known.
        n_undefined: Resamples left out because the metric is not defined on them.
    """

    estimate: float
    low: float
    high: float
    level: float = LEVEL
    method: str = ""
    n_questions: int = 0
    n_seeds: int = 0
    n_undefined: int = 0

    @classmethod
    def of(cls, row: Mapping[Any, Any] | None) -> Interval:
        """The interval in a row of a table, with ``value``, ``low`` and ``high``; or a missing one.

        Example:
            >>> f"{Interval.of({'value': 0.5, 'low': 0.4, 'high': 0.6}):.2f}"
            '0.50 [0.40, 0.60]'
        """
        if row is None:
            return cls(np.nan, np.nan, np.nan)
        ends = (float(row[name]) for name in ("value", "low", "high"))
        counts = (
            int(row[name]) if name in row and not pd.isna(row[name]) else 0
            for name in ("n_questions", "n_seeds")
        )
        method = row["interval"] if "interval" in row else ""
        return cls(*ends, LEVEL, method if isinstance(method, str) else "", *counts)

    def __format__(self, spec: str) -> str:
        """Each number in the given format; three decimals by default."""
        if np.isnan(self.estimate):
            return "not defined"
        spec = spec or ".3f"
        text = f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"
        return f"{text} ({self.n_undefined} resamples undefined)" if self.n_undefined else text

    def __str__(self) -> str:
        """Three decimals."""
        return format(self)


# --- the rule ---------------------------------------------------------------------------------


def interval(
    by_seed: Sequence[Floats],
    *,
    n_questions: int = 0,
    bounds: tuple[float, float] = _ANY,
    level: float = LEVEL,
) -> Interval:
    """The interval of a mean over seeds, by the rule of this module.

    Args:
        by_seed: Of each seed its values, resample 0 first; all of one length. A seed on which the
            metric is not defined is left out.
        n_questions: How many were drawn; 0 if not known, then they count as many.
        bounds: What the metric can be.
        level: Level of the interval.

    Returns:
        The interval; without ends where there is neither a second seed nor a resample.

    Example:
        Two seeds, 1 and 3, and no resamples: t for one degree of freedom is 12.706.

        >>> print(interval([np.array([1.0]), np.array([3.0])]))
        2.000 [-10.706, 14.706]
    """
    from scipy.stats import t

    values = np.array([v for v in by_seed if not np.isnan(v[0])])
    n = len(values)
    if not n:
        return Interval(np.nan, np.nan, np.nan, level, "", n_questions, 0)
    estimate = float(values[:, 0].mean())
    resampled = values[:, 1:].mean(axis=0)
    defined = resampled[~np.isnan(resampled)]
    method = ONE_SEED if n == 1 else FEW_SEEDS if n <= FEW else SEEDS
    facts = (level, method, n_questions, n, len(resampled) - len(defined))
    if n == 1 and len(defined) < 2:
        return Interval(estimate, np.nan, np.nan, *facts)
    questions = float(defined.var(ddof=1)) if len(defined) > 1 else 0.0
    seeds = float(values[:, 0].var(ddof=1)) / n if n > 1 else 0.0
    variance = questions + seeds
    if variance <= 1e-24 * max(1.0, estimate**2):  # sums of the same terms differ in rounding
        unseen = 1 - ((1 - level) / 2) ** (1 / n_questions) if n_questions else 0.0
        ends = [estimate + unseen * (end - estimate) for end in bounds if np.isfinite(end)]
        return Interval(estimate, min([estimate, *ends]), max([estimate, *ends]), *facts)
    spread = questions**2 / max(n_questions - 1, 1) if n_questions else 0.0
    spread += seeds**2 / (n - 1) if n > 1 else 0.0
    freedom = variance**2 / spread if spread else np.inf
    half = float(t.ppf((1 + level) / 2, freedom)) * np.sqrt(variance)
    middle = estimate - (float(defined.mean()) - estimate if len(defined) else 0.0)
    low, high = np.clip([min(middle - half, estimate), max(middle + half, estimate)], *bounds)
    # rounding may put an estimate at the end of a range beyond it
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), *facts)


def summarize(measurements: pd.DataFrame) -> pd.DataFrame:
    """Every measured value with its interval, by the rule of this module.

    Args:
        measurements: From :func:`corea.metrics.measure.measure` and its kind, or several below
            each other.

    Returns:
        One row per (system, dataset, metric, and whatever other columns label a measurement) with
        the :data:`COLUMNS`; ``n_seeds`` are those on which the value is defined.

    Example:
        >>> measurements = pd.DataFrame({"system": "SLM", "seed": [0, 1], "dataset": "chains",
        ...     "metric": "gain", "resample": 0, "value": [1.0, 3.0]})
        >>> row = summarize(measurements).iloc[0]
        >>> float(row["value"]), round(float(row["low"]), 3), int(row["n_seeds"])
        (2.0, -10.706, 2)
    """
    labels = [name for name in measurements if name not in _NOT_LABELS]
    measurements = measurements.sort_values("resample", kind="stable")
    rows = []
    for key, part in measurements.groupby(labels, sort=False):
        label = dict(zip(labels, key, strict=True))
        bounds = RANGES.get(str(label.get("metric")), _ANY)
        found = interval(list(_by_seed(part).values()), n_questions=_n(part), bounds=bounds)
        rows.append(label | _row(found))
    return pd.DataFrame(rows, columns=[*labels, *COLUMNS])


def differences(
    measurements: pd.DataFrame,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    ratio: bool = False,
) -> pd.DataFrame:
    """How much systems differ, paired over the seeds and the resamples that they share.

    Args:
        measurements: As for :func:`summarize`.
        pairs: (system, baseline); all pairs, in order of appearance, when None.
        ratio: System over baseline instead of system minus baseline.

    Returns:
        One row per pair, dataset and metric that both have: ``system, baseline, dataset,
        metric`` and the :data:`COLUMNS`.

    Raises:
        ValueError: If a system is unknown or two have no seed in common.

    Example:
        >>> measurements = pd.DataFrame({"system": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1],
        ...     "dataset": "chains", "metric": "ece", "resample": 0, "value": [0.5, 0.7, 0.1, 0.3]})
        >>> round(float(differences(measurements, [("b", "a")])["value"].iloc[0]), 3)
        -0.4
    """
    in_order = measurements.sort_values("resample", kind="stable")
    cells = {
        system: dict(iter(rows.groupby(["dataset", "metric"], sort=False)))
        for system, rows in in_order.groupby("system", sort=False)
    }
    found = []
    for system, baseline in combinations(cells, 2) if pairs is None else pairs:
        for name in (system, baseline):
            if name not in cells:
                raise ValueError(f"no system {name!r} was measured; there are {list(cells)}")
        for (dataset, metric), part in cells[system].items():
            if (dataset, metric) not in cells[baseline]:
                continue
            first, second = _by_seed(part), _by_seed(cells[baseline][dataset, metric])
            shared = [seed for seed in first if seed in second]
            if not shared:
                raise ValueError(
                    f"{system!r} (seeds {list(first)}) and {baseline!r} (seeds {list(second)}) "
                    "have no seed in common: nothing to pair over"
                )
            low, high = RANGES.get(str(metric), _ANY)
            bounds = (0.0, np.inf) if ratio and low >= 0 else _ANY if ratio else (low - high, high - low)
            gaps = [_gap(first[seed], second[seed], ratio=ratio) for seed in shared]
            names = {"system": system, "baseline": baseline, "dataset": dataset, "metric": metric}
            found.append(names | _row(interval(gaps, n_questions=_n(part), bounds=bounds)))
    return pd.DataFrame(found, columns=["system", "baseline", "dataset", "metric", *COLUMNS])


def _gap(value: Floats, baseline: Floats, *, ratio: bool) -> Floats:
    n = min(len(value), len(baseline))  # measured with and without resamples
    if ratio:
        return value[:n] / np.where(baseline[:n] == 0, np.nan, baseline[:n])
    return value[:n] - baseline[:n]


def _by_seed(part: pd.DataFrame) -> dict[int, Floats]:
    """Values of one cell by seed, resample 0 first; the rows are in order of resamples."""
    seeds, values = part["seed"].to_numpy(), part["value"].to_numpy(dtype=float)
    return {int(seed): values[seeds == seed] for seed in dict.fromkeys(seeds)}


def _n(part: pd.DataFrame) -> int:
    return int(part["n_questions"].iloc[0]) if "n_questions" in part else 0


def _row(found: Interval) -> dict[str, object]:
    return {
        "value": found.estimate,
        "low": found.low,
        "high": found.high,
        "n_seeds": found.n_seeds,
        "n_questions": found.n_questions,
        "interval": found.method,
    }


def as_interval(row: Mapping[Any, Any]) -> Interval | None:
    """A row of :func:`summarize` or :func:`differences` for a cell; None where it is missing."""
    found = Interval.of(row)
    return None if np.isnan(found.estimate) else found
