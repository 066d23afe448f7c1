r"""Intervals: one matrix of question weights, one rule, one way to print.

A *measurement* is a row (system, seed, dataset, metric, resample, value); resample 0 is the
questions as they are, in the others questions were drawn with replacement, each with all its
samples. :func:`summarize` and :func:`differences` make intervals of measurements, :func:`verdict`
judges them, and nothing else decides what an interval is.

With :math:`v_{sb}` the value of seed s under resample b, :math:`S` seeds and N questions:

1. The estimate is :math:`\bar v_{\cdot 0}`, the mean over seeds of what was measured.
2. What questions do to the mean is :math:`V_Q = \operatorname{var}_b \bar v_{\cdot b}`. Of it
   :math:`V_E`, what they do to each seed by itself, is the mean over b of
   :math:`\operatorname{var}_s (v_{sb} - \bar v_{s\cdot}) / S`. The spread over seeds
   :math:`V_S = \operatorname{var}_s v_{s0} / S` has it too, so the variance is
   :math:`(V_Q - V_E) + \max(V_S, V_E)`.
3. The half width is :math:`\sqrt{t_{N-1}^2 (V_Q - V_E) + t_{S-1}^2 \max(V_S, V_E)}`: each part
   with its own degrees of freedom, as Cochran has it for the Behrens-Fisher problem.
   Satterthwaite's grow where the spread over a few seeds is small by chance, just where it must
   not be trusted. Resampling three seeds, as a hierarchical percentile bootstrap does, gives two
   thirds of their variance and covers about 87 %.
4. The plug-in ECE of a sample is too large, and that of a resample again, so a percentile interval
   can lie above its estimate. The corrected estimate is :math:`2 \bar v_{\cdot 0} -
   \operatorname{mean}_b \bar v_{\cdot b}`; the interval reaches a half width below the lower of
   both and above the higher, and is cut to what the metric can be. The corrected one alone covers
   less where seeds differ much, since the ECE is then skewed.
5. Where no resample differs, what never occurred in N questions may still have the probability
   :math:`p = 1 - (\alpha/2)^{1/N}`: the interval reaches that part of the way to either end of
   the metric's range. What is constant by definition, as the deferral rate of a model that
   stands alone, stays so.
6. Differences are paired: the same seeds, and in a resample the same questions for all systems.
   Questions are drawn within each dataset.

``benchmarks/bench_coverage.py`` counts how often these intervals cover a known truth, beside the
rules that were not taken. What no rule mends: where the values of seeds are skewed, few of them
seldom show the long tail, and Student's t then covers about 89 % at five seeds and at eight even
with endlessly many questions. One seed says nothing about training; its intervals are of that
model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea import checks

Floats = NDArray[np.float64]

LEVEL = 0.95
ONE_SEED = "bootstrap over questions"
SEEDS, FEW_SEEDS = "questions and seeds", "questions and few seeds"

FEW = 4
"""With so many seeds or fewer an interval is marked: it is wide (with three, 94 to 100 % cover in
the benchmark), and how skewed the seeds are cannot be seen."""

RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    dict.fromkeys(("pass_at_1", "stated_accuracy", "deferral_rate"), (0.0, 100.0))
    | dict.fromkeys(
        (
            *("ece", "ece_per_run", "auroc", "aurc", "brier", "confidence_output_ratio"),
            *("mean_confidence", "share_at_ends", "sce", "mce", "asked", "confidence", "correct"),
            *("sure", "sure_and_wrong", "calibrated", "spread", "flipped", "own_confidence"),
            *("flipped_confidence", "flipped_sure"),
        ),
        (0.0, 1.0),
    )
    | dict.fromkeys(("overconfidence", "asked_gap", "advantage"), (-1.0, 1.0))
    | {"brier_skill": (-np.inf, 1.0)}
    | dict.fromkeys(("small_cost", "large_cost", "router_cost", "cost"), (0.0, np.inf))
    | {"cost_change": (-100.0, np.inf), "pass_at_1_change": (-100.0, 100.0)}
)
"""What metrics can be; others can be any number."""

COLUMNS = ("value", "low", "high", "n_seeds", "n_questions", "interval")
"""Columns that :func:`summarize` and :func:`differences` add to their labels."""

_ANY = (-np.inf, np.inf)
_BY_RULE = ("deferral_rate", "pass_at_1_change", "cost_change")
_NOT_LABELS = ("seed", "resample", "value", "n_questions")


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; ``f"{interval:.3f}"`` reads ``0.123 [0.101, 0.145]``.

    The estimate is NaN where the metric is not defined, and otherwise within its interval; numbers
    of questions and seeds are 0 where they are not known; ``n_undefined`` resamples were left out.
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
        value, low, high = (float(row[name]) for name in ("value", "low", "high"))
        n_questions, n_seeds = (
            int(row[name]) if name in row and not pd.isna(row[name]) else 0
            for name in ("n_questions", "n_seeds")
        )
        method = row.get("interval", "")
        method = method if isinstance(method, str) else ""
        return cls(value, low, high, LEVEL, method, n_questions, n_seeds)

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
    by_rule: bool = False,
) -> Interval:
    """The interval of a mean over seeds, by the rule of this module.

    Args:
        by_seed: Of each seed its values, resample 0 first; all of one length. A seed on which the
            metric is not defined is left out.
        n_questions: How many were drawn; 0 if not known, then they count as many.
        bounds: What the metric can be.
        level: Level of the interval.
        by_rule: Whether a value that no resample changes is what it is by definition (point 5).

    Example:
        Two seeds, 1 and 3, and no resamples: t for one degree of freedom is 12.706.

        >>> print(interval([np.array([1.0]), np.array([3.0])]))
        2.000 [-10.706, 14.706]
    """
    seeds = [values for values in by_seed if not np.isnan(values[0])]
    if not seeds:
        return Interval(np.nan, np.nan, np.nan, level, "", n_questions, 0)
    return combination(
        [np.array(seeds)], [1.0],
        n_questions=n_questions, bounds=bounds, level=level, by_rule=by_rule,
    )  # fmt: skip


def combination(
    groups: Sequence[Floats],
    factors: Sequence[float] | Floats,
    *,
    n_questions: int = 0,
    bounds: tuple[float, float] = _ANY,
    level: float = LEVEL,
    by_rule: bool = False,
) -> Interval:
    r"""The interval of :math:`\sum_i c_i \bar v_i`, a slope for one, by the rule of this module.

    :math:`V_S` and :math:`V_E` are those of one seed, pooled over groups, times
    :math:`\sum_i c_i^2 / S_i`, with :math:`\sum_i (S_i - 1)` degrees of freedom.

    ``groups`` has the values of each group of seeds, shape (seeds, 1 + resamples), resample 0
    first, and ``factors`` its :math:`c_i`; all else is as for :func:`interval`. The interval has no
    ends where there is neither a second seed nor a resample.

    Example:
        >>> print(combination([np.array([[1.0], [3.0]]), np.array([[5.0]])], [-1.0, 1.0]))
        3.000 [-19.008, 25.008]
    """
    from scipy.special import stdtrit  # scipy.stats takes a second to load

    values = sum(c * group.mean(axis=0) for c, group in zip(factors, groups, strict=True))
    values = np.asarray(values)
    every = np.concatenate(groups)
    n, freedom = len(every), len(every) - len(groups)
    estimate, resampled = float(values[0]), values[1:]
    resampled = resampled[known := ~np.isnan(resampled)]
    method = FEW_SEEDS if freedom < FEW else SEEDS
    facts = (level, method if freedom else ONE_SEED, n_questions, n, int((~known).sum()))
    if not freedom and len(resampled) < 2:
        return Interval(estimate, np.nan, np.nan, *facts)

    of_questions = float(resampled.var(ddof=1)) if len(resampled) > 1 else 0.0
    of_seeds = of_each = 0.0
    if freedom:
        share = sum(c**2 / len(group) for c, group in zip(factors, groups, strict=True)) / freedom
        of_seeds = share * sum(((g[:, 0] - g[:, 0].mean()) ** 2).sum() for g in groups)
        if len(resampled) > 1:
            moved = [group[:, 1:][:, known] for group in groups]
            moved = [m - m.mean(axis=1, keepdims=True) for m in moved]
            squares = sum(((m - m.mean(axis=0)) ** 2).sum() for m in moved)
            of_each = min(share * float(squares) / (len(resampled) - 1), of_questions)
    common, by_seeds = of_questions - of_each, max(float(of_seeds), of_each)
    if common + by_seeds <= 1e-24 * max(1.0, estimate**2):  # rounding of equal sums
        known_value = by_rule or not n_questions
        unseen = 0.0 if known_value else 1 - ((1 - level) / 2) ** (1 / n_questions)
        reached = [estimate + unseen * (end - estimate) for end in bounds if np.isfinite(end)]
        return Interval(estimate, min([estimate, *reached]), max([estimate, *reached]), *facts)
    many = max(n_questions - 1, 1) if n_questions else np.inf
    of_common, of_spread = stdtrit([many, freedom or many], (1 + level) / 2)
    half = np.sqrt(of_common**2 * common + of_spread**2 * by_seeds)
    corrected = 2 * estimate - float(resampled.mean()) if len(resampled) else estimate
    ends = (min(estimate, corrected) - half, max(estimate, corrected) + half)
    low, high = np.clip(ends, *bounds)
    # rounding may put an estimate at the end of a range beyond it
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), *facts)


def mean_interval(
    values: ArrayLike,
    *,
    over: ArrayLike | None = None,
    bounds: tuple[float, float] = _ANY,
    level: float = LEVEL,
) -> Interval:
    """The interval of a mean over independent questions, or of a ratio of two, without resampling.

    Student's t with the delta method for a ratio: for tables of a million rows, where it differs
    from a bootstrap by less than either moves. Point 5 of the rule holds where all values are one.

    Args:
        values: One number a question, shape (n,).
        over: What the mean is divided by the mean of, same shape; not 0 throughout.
        bounds: What the quantity can be.
        level: Level of the interval.

    Example:
        >>> print(mean_interval([0.0, 1.0, 1.0, 0.0], bounds=(0, 1)))
        0.500 [0.000, 1.000]
    """
    from scipy.special import stdtrit

    given = checks.numbers(values, "values", boolean=True).astype(float)
    base = np.ones_like(given) if over is None else checks.not_negative(over, "over", given.size)
    n, mean = given.size, float(base.mean())
    if not mean:
        return Interval(np.nan, np.nan, np.nan, level, "", n, 1)
    estimate = float(given.mean()) / mean
    facts = (level, "t over questions", n, 1)
    errors = (given - estimate * base) / mean
    if n < 2 or errors.var() <= 1e-24 * max(1.0, estimate**2):
        unseen = 1 - ((1 - level) / 2) ** (1 / n)
        reached = [estimate + unseen * (end - estimate) for end in bounds if np.isfinite(end)]
        return Interval(estimate, min([estimate, *reached]), max([estimate, *reached]), *facts)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(errors.std(ddof=1)) / np.sqrt(n)
    low, high = np.clip((estimate - half, estimate + half), *bounds)
    return Interval(estimate, float(low), float(high), *facts)


def proportion(count: int, n: int, level: float = LEVEL) -> Interval:
    """A share of independent trials with its exact interval (Clopper and Pearson, 1934).

    Example:
        >>> f"{proportion(0, 1000):.4f}"
        '0.0000 [0.0000, 0.0037]'
    """
    from scipy.stats import binomtest

    found = binomtest(int(count), int(n)).proportion_ci(level, method="exact")
    return Interval(count / n, float(found.low), float(found.high), level)


def summarize(measurements: pd.DataFrame) -> pd.DataFrame:
    """Every measured value with its interval, by the rule of this module.

    A row per (system, dataset, metric, and whatever other columns label a measurement) with the
    :data:`COLUMNS`; ``n_seeds`` are those on which the value is defined.

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
        metric = str(label.get("metric"))
        found = interval(
            list(_by_seed(part).values()),
            n_questions=_n(part),
            bounds=RANGES.get(metric, _ANY),
            by_rule=metric in _BY_RULE,
        )
        rows.append(label | _row(found))
    return pd.DataFrame(rows, columns=[*labels, *COLUMNS])


def differences(
    measurements: pd.DataFrame,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    ratio: bool = False,
) -> pd.DataFrame:
    """How much systems differ, paired over the seeds and the resamples that they share.

    A row per pair (system, baseline), dataset and metric that both have: ``system, baseline,
    dataset, metric`` and the :data:`COLUMNS`. All pairs, in order of appearance, when None; system
    minus baseline, or their ``ratio``. Two that have no seed in common are refused.

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
            bounds = (
                (0.0, np.inf) if ratio and low >= 0 else _ANY if ratio else (low - high, high - low)
            )
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
    n = int(part["resample"].max()) + 1
    found = {}
    for seed in part["seed"].unique().tolist():
        rows = part[part["seed"] == seed]
        values = rows["value"].to_numpy(dtype=float)
        if len(values) < n:  # where a metric is not defined there may be no row
            values = rows.set_index("resample")["value"].reindex(range(n)).to_numpy(float)
        found[int(seed)] = values
    return found


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


# --- the matrix of question weights -----------------------------------------------------------


class QuestionWeights:
    """How often each question counts in each resample; row 0 is every question once."""

    def __init__(self, table: pd.DataFrame, n_resamples: int, seed: int) -> None:
        """Note what is to be drawn for these records of all systems."""
        self._n_resamples = checks.whole(n_resamples, "n_resamples", 1)
        self._seed = seed
        seeds = [frozenset(rows["seed"]) for _, rows in table.groupby("system", sort=False)]
        self._seeds_pair = len(set(seeds)) == 1 and len(seeds[0]) > 1
        self._of_dataset: dict[str, tuple[pd.Index[str], Floats]] = {}

    def of_rows(self, rows: pd.DataFrame, dataset: str) -> Floats:
        """Weight of each row of one system and seed on a dataset, shape (1 + resamples, rows).

        Where an earlier system was asked other questions, there must be seeds in common.
        """
        questions = pd.Index(np.sort(rows["question_id"].unique()))
        if dataset not in self._of_dataset:
            self._of_dataset[dataset] = questions, self._drawn(len(questions), dataset)
        known, weight = self._of_dataset[dataset]
        if not known.equals(questions):
            if not self._seeds_pair:
                raise ValueError(
                    f"{rows['system'].iloc[0]!r} with seed {rows['seed'].iloc[0]} was asked other "
                    f"questions of {dataset!r} than {len(known)} asked of the first system; "
                    "expected the same, since one seed leaves only questions to compare over"
                )
            known, weight = questions, self._drawn(len(questions), dataset)
        # positions in a sorted index, all of which are there
        return weight[:, np.searchsorted(known.to_numpy(), rows["question_id"].to_numpy())]

    def _drawn(self, n: int, dataset: str) -> Floats:
        # the dataset's name seeds as well: datasets of one size are drawn independently
        random = np.random.default_rng([self._seed, zlib.crc32(dataset.encode())])
        drawn = random.multinomial(n, np.full(n, 1 / n), size=self._n_resamples)
        return np.vstack([np.ones(n), drawn])


def as_measurements(
    values: Mapping[str, Floats], *, n_questions: int = 0, **labels: object
) -> pd.DataFrame:
    """Values of metrics (resample 0 first) as measurements: a row per metric and resample.

    Example:
        >>> as_measurements({"ece": np.array([0.1])}, system="SLM", seed=0).to_dict("records")[0]
        {'system': 'SLM', 'seed': 0, 'n_questions': 0, 'metric': 'ece', 'resample': 0, 'value': 0.1}
    """
    n = len(next(iter(values.values())))
    return pd.DataFrame(
        {
            **labels,
            "n_questions": n_questions,
            "metric": np.repeat(list(values), n),
            "resample": np.tile(np.arange(n), len(values)),
            "value": np.concatenate(list(values.values())),
        }
    )


# --- any metric on one table ------------------------------------------------------------------


def bootstrap_interval(
    metric: Callable[..., float],
    records: pd.DataFrame,
    *,
    columns: Sequence[str] = ("confidence", "correct"),
    n_resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    r"""The interval of a metric on one table of records, over its questions.

    N questions are drawn with replacement from the N there are, each with all its samples, since
    samples of one question are not independent. Questions with the same rows are interchangeable,
    so what is drawn is how often each *kind* of question comes up, the same distribution. The
    metric sees every distinct row once, with a weight; the ECE sees many resamples at once
    (:func:`corea.metrics.calibration.resampled_errors`). The order of rows does not matter.

    Source: Efron and Tibshirani (1993), chapters 10 and 13; the papers state no intervals on these.

    Args:
        metric: Called as ``metric(*arrays, weight=weight)``, an array per column; use
            ``functools.partial`` for options.
        records: With ``dataset``, ``question_id`` and the columns named; one row per
            sample. Rows of one system, unless pooling several is meant.
        columns: What the metric takes, in order.
        n_resamples: Number of resamples, from 1.
        level: Level of the interval, between 0 and 1.
        seed: Seed of the draws.
        bounds: What the metric can be.

    Example:
        >>> from corea.metrics.calibration import brier_score
        >>> records = pd.DataFrame({"dataset": "d", "question_id": ["a", "b", "c", "d"],
        ...     "confidence": [0.9, 0.9, 0.9, 0.9], "correct": [True, True, True, False]})
        >>> found = bootstrap_interval(brier_score, records, n_resamples=200)
        >>> round(found.estimate, 3), found.low, found.n_questions
        (0.21, 0.0, 4)
    """
    found = bootstrap_intervals(
        {"metric": metric}, records, columns=columns, n_resamples=n_resamples, level=level,
        seed=seed, bounds={"metric": bounds},
    )  # fmt: skip
    return found["metric"]


def bootstrap_intervals(
    metrics: Mapping[str, Callable[..., float]],
    records: pd.DataFrame,
    *,
    columns: Sequence[str] = ("confidence", "correct"),
    n_resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Interval]:
    """The intervals of several metrics by name, on the same resamples.

    As :func:`bootstrap_interval`; a metric that has no ``bounds`` can be any number.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a number between 0 and 1")
    checks.whole(n_resamples, "n_resamples", 1)
    if missing := [c for c in ("dataset", "question_id", *columns) if c not in records.columns]:
        raise ValueError(f"records lack the column(s) {', '.join(missing)}")
    if records.empty:
        raise ValueError("records are empty: a metric needs at least one row")
    arrays = [records[column].to_numpy() for column in columns]
    # on the rows as they came, so that an error names the caller's row
    estimates = {name: metric(*arrays, weight=None) for name, metric in metrics.items()}

    kinds = _QuestionKinds.of(records, arrays)
    cells = [array[kinds.example] for array in arrays]
    values: dict[str, list[Any]] = {name: [np.array([float(v)])] for name, v in estimates.items()}
    for drawn in kinds.draws(n_resamples, seed):
        weight = kinds.of_cells(drawn)
        for name, metric in metrics.items():
            values[name].append(_under(metric, cells, weight))
    n = int(kinds.n_questions.sum())
    return {
        name: interval(
            [np.concatenate(parts)],
            n_questions=n,
            bounds=(bounds or {}).get(name, _ANY),
            level=level,
        )
        for name, parts in values.items()
    }


def _under(metric: Callable[..., float], cells: Sequence[NDArray[Any]], weight: Floats) -> Floats:
    """A metric under each row of weights, at once if it can (``metric.of_weights``)."""
    options = metric.keywords if isinstance(metric, partial) else {}
    at_once = getattr(getattr(metric, "func", metric), "of_weights", None)
    if at_once and not getattr(metric, "args", ()):
        found: Floats = at_once(*cells, weight=weight, **options)
        return found
    return np.array([metric(*cells, weight=row) for row in weight], dtype=float)


@dataclass(frozen=True)
class _QuestionKinds:
    """Records as kinds of questions: those with the same multiset of rows."""

    n_questions: NDArray[np.int64]  # of each kind, shape (k,)
    kind: NDArray[np.intp]  # of each row of each kind, shape (e,)
    cell: NDArray[np.intp]  # which distinct row that is, shape (e,)
    example: NDArray[np.intp]  # a row of the records that each cell stands for, shape (c,)

    @classmethod
    def of(cls, records: pd.DataFrame, arrays: Sequence[NDArray[Any]]) -> _QuestionKinds:
        names = records[["dataset", "question_id"]]
        if (nameless := np.flatnonzero(names.isna().any(axis=1))).size:
            raise ValueError(
                f"dataset and question_id must be given: {nameless.size} of {len(names)} rows "
                f"lack one, the first is row {nameless[0]}"
            )
        question = names.groupby(["dataset", "question_id"], sort=False).ngroup().to_numpy()
        cell = _joint_codes(arrays)
        example = np.empty(cell.max() + 1, dtype=np.intp)
        example[cell] = np.arange(len(cell))  # any row will do, all rows of a cell are equal
        if question.max() + 1 == len(question):  # a sample of each: its row is its kind
            every = np.arange(len(example))
            return cls(np.bincount(cell), every, every, example)
        order = np.lexsort((cell, question))
        n_samples = np.bincount(question)
        samples_of_row = n_samples[question[order]]
        n_questions, kind, cell_of_kind = [], [], []
        n_kinds = 0
        for size in np.unique(n_samples):
            members = cell[order[samples_of_row == size]].reshape(-1, size)
            code = _joint_codes(list(members.T))
            n_questions.append(np.bincount(code))
            one = np.empty(code.max() + 1, dtype=np.intp)
            one[code] = np.arange(len(code))
            cell_of_kind.append(members[one].ravel())
            kind.append(np.repeat(n_kinds + np.arange(len(one)), size))
            n_kinds += len(one)
        return cls(
            np.concatenate(n_questions), np.concatenate(kind), np.concatenate(cell_of_kind), example
        )

    def draws(self, n_resamples: int, seed: int) -> Iterator[Floats]:
        """How often each kind comes up in each resample, in parts of some 30 MB."""
        random = np.random.default_rng(seed)
        total, n_kinds = int(self.n_questions.sum()), len(self.n_questions)
        at_once = max(1, 4_000_000 // n_kinds)
        # the same distribution twice: a binomial per kind costs some ten times a draw per question
        few = n_kinds * 10 < total
        kind_of_question = np.repeat(np.arange(n_kinds), self.n_questions)
        for start in range(0, n_resamples, at_once):
            size = min(at_once, n_resamples - start)
            if few:
                yield random.multinomial(total, self.n_questions / total, size=size).astype(float)
                continue
            part = np.empty((size, n_kinds))
            for row in part:
                drawn = random.integers(0, total, total, dtype=np.uint32)
                own = drawn if n_kinds == total else kind_of_question[drawn]
                row[:] = np.bincount(own, minlength=n_kinds)
            yield part

    def of_cells(self, drawn: Floats) -> Floats:
        """Weight of every distinct row, shape (resamples, c)."""
        if len(self.cell) == len(self.example) == drawn.shape[1]:  # each row is a kind
            return drawn
        return np.stack(
            [np.bincount(self.cell, row[self.kind], len(self.example)) for row in drawn]
        )


def _joint_codes(arrays: Sequence[NDArray[Any]]) -> NDArray[np.intp]:
    """Number equal tuples equally, from 0 in sorted order; NaN equals NaN."""
    joint = np.zeros(len(arrays[0]), dtype=np.intp)
    for array in arrays:
        code, values = pd.factorize(array, sort=True, use_na_sentinel=False)
        # numbered anew after every column, so that the product never overflows
        joint = pd.factorize(joint * len(values) + code, sort=True)[0]
    return joint


# --- verdicts ---------------------------------------------------------------------------------


def verdict(
    found: Interval | Mapping[Any, Any],
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    within: float | None = None,
) -> str:
    """Whether a statement about a value holds, as far as its interval tells.

    One statement: the value is ``above`` a number, ``at_least`` or ``at_most`` it, or ``within`` it
    of 0 (equivalence within a margin). ``"holds"`` where all of the interval agrees, ``"fails"``
    where none of it does, ``"unsettled"`` otherwise and where there is no interval.

    Example:
        >>> gap = Interval(0.02, 0.01, 0.03)
        >>> verdict(gap, above=0), verdict(gap, at_most=0.02), verdict(gap, within=0.05)
        ('holds', 'unsettled', 'holds')
    """
    given = [x for x in (above, at_least, at_most, within) if x is not None]
    if len(given) != 1:
        raise ValueError("expected one of above, at_least, at_most and within")
    (bound,) = given
    found = found if isinstance(found, Interval) else Interval.of(found)
    low, high = found.low, found.high
    if above is not None:
        holds, fails = low > bound, high <= bound
    elif at_least is not None:
        holds, fails = low >= bound, high < bound
    elif at_most is not None:
        holds, fails = high <= bound, low > bound
    else:
        holds, fails = -bound <= low and high <= bound, low > bound or high < -bound
    return "holds" if holds else "fails" if fails else "unsettled"


def judge(
    row: Mapping[Any, Any], *, at_most: float | None = None, at_least: float | None = None
) -> str:
    """:func:`verdict` in the words of a table, with what the estimate says where it is open.

    Example:
        >>> judge({"value": 0.8, "low": 0.7, "high": 0.9}, at_least=0.75)
        'not certain, the estimate says yes'
    """
    found = Interval.of(row)
    settled = verdict(found, at_most=at_most, at_least=at_least)
    if np.isnan(found.estimate):
        return "not measured"
    if settled != "unsettled":
        return "yes" if settled == "holds" else "no"
    alone = Interval(found.estimate, found.estimate, found.estimate)
    met = verdict(alone, at_most=at_most, at_least=at_least) == "holds"
    return f"not certain, the estimate says {'yes' if met else 'no'}"


def claim(
    what: str, dataset: str, row: Mapping[Any, Any], paper: float, **bound: float
) -> dict[str, object]:
    """A row of a table of claims: what is promised, the paper's number, ours, and its judgement.

    Example:
        >>> row = {"value": 0.8, "low": 0.78, "high": 0.9}
        >>> claim("AUROC", "chains", row, 0.77, at_least=0.75)["bound"]
        'at least 0.75'
    """
    holds = judge(row, **bound)
    ((side, limit),) = bound.items()
    return {
        "claim": what,
        "dataset": dataset,
        "bound": f"{side.replace('_', ' ')} {limit:g}",
        "paper": float(paper),
        **{name: float(row[name]) for name in ("value", "low", "high")},
        "holds": holds,
    }


def interval_note(table: pd.DataFrame, *, n_resamples: int, seed: int, run: str = "") -> str:
    """The sentence a caption needs about the intervals of a table, and of which ``run`` it is.

    Example:
        >>> table = pd.DataFrame({"interval": [ONE_SEED], "n_seeds": [1]})
        >>> interval_note(table, n_resamples=200, seed=0)
        '95 % intervals: one seed, bootstrap over questions (200 resamples, seed 0).'
    """
    resamples = f"({n_resamples} resamples, seed {seed})"
    kinds = []
    for method in dict.fromkeys(table["interval"].dropna()):
        n_seeds = table.loc[table["interval"] == method, "n_seeds"]
        fewest, most = int(n_seeds.min()), int(n_seeds.max())
        seeds = f"{fewest if fewest == most else f'{fewest} to {most}'} seeds"
        if method == ONE_SEED:
            kinds.append(f"one seed, {ONE_SEED} {resamples}")
        elif method in (SEEDS, FEW_SEEDS):
            few = ", few, so it is wide" if method == FEW_SEEDS else ""
            kinds.append(f"{ONE_SEED} {resamples} and Student's t over {seeds}{few}")
    of = f" of {run}" if run else ""
    return f"95 % intervals{of}: {'; elsewhere '.join(sorted(kinds)) or 'none'}."
