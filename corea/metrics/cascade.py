r"""Cascades: a small model answers first, a large one when confidence is low.

The rule, everywhere: a question is deferred exactly when its confidence is below the
threshold, or missing. A curve is computed at every threshold at which anything changes,
by sorting once, so it is exact; nothing is interpolated unless said.

Functions of questions take arrays of shape (n,): ``confidence`` of the small model (or the router)
in [0, 1] or NaN, ``small_correct`` and ``large_correct`` boolean or 0/1, ``small_cost``,
``large_cost`` and, for a router, ``router_cost`` of asking each (or one number for all), and
``weight``, how many times each row counts. What is out of range, of another length, or a missing
cost is refused with a ``ValueError`` that names the first row. A ``curve`` comes from
:func:`deferral_curve`.

Deviations from paper A:

1. The paper sweeps thresholds from 0 to 1.1 on a grid; here every distinct confidence
   is a threshold. :data:`DEFER_ALL` is the paper's 1.1.
2. A missing confidence defers. The paper does not say; a system that cannot state its
   confidence has not earned the saving.
3. Formulas (9) and (10) of the paper, its costs, are lost in our text; they are reconstructed
   from its two assumptions (section 4.3): output tokens cost four times as much as input tokens,
   and prices scale with the number of parameters.
4. The paper sets the threshold to the large model's pass@1 on the evaluation set itself.
   :func:`cheapest_threshold` lets one choose it on other questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea import checks
from corea.metrics.intervals import Interval, bootstrap_intervals
from corea.records import pair, quoted, quoted_names, select

DEFER_ALL = 1.1
"""A threshold above every confidence (paper A, section 5.2)."""


def defers(confidence: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    r"""Whether each question goes to the large model: :math:`c < \tau`, or no :math:`c`.

    Source: paper A, section 3.1.

    Example:
        >>> defers([0.2, 0.7, float("nan")], 0.7).tolist()
        [True, False, True]
    """
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; expected a number from 0")
    stated = checks.unit_interval(confidence, "confidence", missing=True)
    return np.asarray((stated < threshold) | np.isnan(stated))


def deferral_curve(
    confidence: ArrayLike,
    small_correct: ArrayLike,
    large_correct: ArrayLike,
    small_cost: ArrayLike,
    large_cost: ArrayLike,
    *,
    router_cost: ArrayLike | None = None,
    weight: ArrayLike | None = None,
) -> pd.DataFrame:
    r"""Pass@1, cost and deferral rate at every threshold at which they change.

    With :math:`d_i = [c_i < \tau]` the cascade costs
    :math:`C_i = C_i^S + d_i C_i^L`, since the small model always answers first. A router
    decides before anybody answers: :math:`C_i = C_i^R + (1 - d_i) C_i^S + d_i C_i^L`.

    Source: paper A, section 4.3 (cost), section 5.2 and Figure 2 (curves).

    Columns ``threshold, pass_at_1, cost, deferral_rate``, thresholds increasing from 0 (nothing
    with a confidence defers) to :data:`DEFER_ALL`. At a threshold between two rows the cascade
    behaves as at the higher one (:func:`at_threshold`).

    Example:
        >>> deferral_curve([0.9, 0.2], [1, 0], [1, 1], 1, 10)
           threshold  pass_at_1  cost  deferral_rate
        0        0.0        0.5   1.0            0.0
        1        0.2        0.5   1.0            0.0
        2        0.9        1.0   6.0            0.5
        3        1.1        1.0  11.0            1.0
    """
    rows = _Rows.checked(
        confidence, small_correct, large_correct, small_cost, large_cost, router_cost, weight
    )
    order = np.argsort(rows.confidence, kind="stable")  # missing confidences come last
    n_missing = int(np.isnan(rows.confidence).sum())
    order = np.roll(order, n_missing)  # ... and are the first to defer
    # everything before the first row of a threshold is deferred there
    thresholds = np.unique(np.append(rows.confidence[~np.isnan(rows.confidence)], 0.0))
    stated = rows.confidence[order][n_missing:]
    first = n_missing + np.searchsorted(stated, thresholds)
    thresholds, first = np.append(thresholds, DEFER_ALL), np.append(first, order.size)

    total = rows.weight.sum()

    def mean_with_deferred(start: float, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over questions after the first ``first`` of them have been deferred."""
        running = np.append(0.0, np.cumsum((rows.weight * change)[order]))
        mean: NDArray[np.float64] = (start + running[first]) / total
        return mean

    kept_right = float(rows.weight @ rows.small_correct)
    kept_cost = float(rows.weight @ rows.kept_cost)
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "pass_at_1": mean_with_deferred(kept_right, rows.large_correct - rows.small_correct),
            "cost": mean_with_deferred(kept_cost, rows.deferred_cost - rows.kept_cost),
            "deferral_rate": mean_with_deferred(0.0, np.ones(order.size)),
        }
    )


def at_threshold(curve: pd.DataFrame, threshold: float) -> pd.Series[float]:
    """The row of a curve whose deferrals are those at a threshold, under its own threshold.

    Example:
        >>> curve = deferral_curve([0.9, 0.2], [1, 0], [1, 1], 1, 10)
        >>> float(at_threshold(curve, 0.5)["cost"])
        6.0
    """
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; expected a number from 0")
    position = int(np.searchsorted(curve["threshold"].to_numpy(), threshold, side="left"))
    return curve.iloc[min(position, len(curve) - 1)]


@dataclass(frozen=True)
class OperatingPoint:
    """What a cascade does at one threshold, and against the large model alone.

    Attributes:
        threshold: Where it operates.
        pass_at_1: Share of questions answered correctly.
        cost: Mean cost of a question.
        deferral_rate: Share of questions the large model answers.
        cost_saving: Share of the large model's cost that is saved; negative when dearer.
        accuracy_drop: Pass@1 of the large model alone minus that of the cascade.
    """

    threshold: float
    pass_at_1: float
    cost: float
    deferral_rate: float
    cost_saving: float
    accuracy_drop: float


def operating_point(
    confidence: ArrayLike,
    small_correct: ArrayLike,
    large_correct: ArrayLike,
    small_cost: ArrayLike,
    large_cost: ArrayLike,
    *,
    threshold: float | None = None,
    router_cost: ArrayLike | None = None,
    weight: ArrayLike | None = None,
) -> OperatingPoint:
    """What a cascade does at a threshold: by the paper's rule the large model's pass@1.

    Source: paper A, section 5.1 and Table 1.

    Example:
        >>> operating_point([0.9, 0.2], [1, 0], [1, 1], 1, 10, threshold=0.5).cost_saving
        0.4
    """
    rows = _Rows.checked(
        confidence, small_correct, large_correct, small_cost, large_cost, router_cost, weight
    )

    def mean(values: NDArray[np.float64]) -> float:
        return float(np.average(values, weights=rows.weight))

    large_alone = mean(rows.large_cost)
    if large_alone <= 0:
        raise ValueError("large_cost is 0 throughout: no saving against it can be stated")
    large_right = mean(rows.large_correct)
    threshold = large_right if threshold is None else threshold
    deferred = defers(rows.confidence, threshold)
    pass_at_1 = mean(np.where(deferred, rows.large_correct, rows.small_correct))
    cost = mean(np.where(deferred, rows.deferred_cost, rows.kept_cost))
    return OperatingPoint(
        threshold=float(threshold),
        pass_at_1=pass_at_1,
        cost=cost,
        deferral_rate=mean(deferred.astype(float)),
        cost_saving=1 - cost / large_alone,
        accuracy_drop=large_right - pass_at_1,
    )


def cheapest_threshold(curve: pd.DataFrame, *, min_pass_at_1: float) -> float:
    """The threshold of lowest cost whose pass@1 is high enough; of equal costs the lowest.

    Example:
        >>> curve = deferral_curve([0.9, 0.2], [1, 0], [1, 1], 1, 10)
        >>> cheapest_threshold(curve, min_pass_at_1=0.9)
        0.9
    """
    enough = curve[curve["pass_at_1"] >= min_pass_at_1]
    if enough.empty:
        best = curve["pass_at_1"].max()
        raise ValueError(f"no threshold reaches a pass@1 of {min_pass_at_1:.4f}; best {best:.4f}")
    return float(enough["threshold"].iloc[int(enough["cost"].argmin())])


def oracle_confidence(small_correct: ArrayLike, large_correct: ArrayLike) -> NDArray[np.float64]:
    """The confidence of somebody who knows both verdicts: defer first where it helps.

    0 where only the large model is right, 1 where only the small one is, 0.5 where it
    makes no difference. Used as the confidence of a curve, it gives the best any
    deferral rule could do at each deferral rate.

    Example:
        >>> oracle_confidence([0, 1, 1], [1, 1, 0]).tolist()
        [0.0, 0.5, 1.0]
    """
    small = checks.verdicts(small_correct, "small_correct")
    return (1 + small - checks.verdicts(large_correct, "large_correct")) / 2


def random_deferral(curve: pd.DataFrame, deferral_rate: ArrayLike) -> pd.DataFrame:
    """What deferring questions drawn at random does, in expectation.

    The straight line between the two ends of a curve on which every question has a
    confidence; where some lack one, the line starts where they have been deferred. A row
    ``pass_at_1, cost, deferral_rate`` for each rate.
    """
    rates = np.atleast_1d(np.asarray(deferral_rate, dtype=float))
    ends = curve.iloc[[0, -1]]
    low, high = ends["deferral_rate"]
    if rates.size and not (rates.min() >= low and rates.max() <= high):
        raise ValueError(f"deferral rates are outside [{low:g}, {high:g}], the curve's")
    line = {
        name: np.interp(rates, ends["deferral_rate"], ends[name]) for name in ("pass_at_1", "cost")
    }
    return pd.DataFrame({**line, "deferral_rate": rates})


def area_over_random(curve: pd.DataFrame) -> float:
    r"""Area between a curve and the random-deferral line.

    .. math:: \int (a(r) - a_\text{random}(r)) \, dr

    over the deferral rate :math:`r`, :math:`a` being pass@1. Between two thresholds the
    curve is a straight line: questions of equal confidence are deferred in random order.
    Divided by the gap between the two models it is RouteLLM's average performance gap
    recovered, less one half. In pass@1: 0 for a confidence that knows nothing, negative for one
    that is worse than nothing.

    Example:
        >>> round(area_over_random(deferral_curve([0.9, 0.2], [1, 0], [1, 1], 1, 10)), 6)
        0.125
    """
    rates = curve["deferral_rate"].to_numpy()
    gain = (curve["pass_at_1"] - random_deferral(curve, rates)["pass_at_1"]).to_numpy()
    return float(np.trapezoid(gain, rates))


def pareto_front(cost: ArrayLike, pass_at_1: ArrayLike) -> NDArray[np.bool_]:
    """Which systems nothing else beats: no other is as cheap and better, or as good and cheaper.

    Equal systems are both on the front.

    Example:
        >>> pareto_front([1, 2, 3], [0.5, 0.4, 0.9]).tolist()
        [True, False, True]
    """
    cost, accuracy = np.asarray(cost, dtype=float), np.asarray(pass_at_1, dtype=float)
    if cost.ndim != 1 or cost.shape != accuracy.shape:
        raise ValueError(f"cost has shape {cost.shape} and pass_at_1 {accuracy.shape}")
    if np.isnan(cost).any() or np.isnan(accuracy).any():
        raise ValueError("cost and pass_at_1 must not be missing")
    order = np.lexsort((-accuracy, cost))
    best_before = np.maximum.accumulate(accuracy[order])
    improves = np.append(True, accuracy[order][1:] > best_before[:-1])[: cost.size]
    front = np.zeros(cost.size, dtype=bool)
    front[order[improves]] = True
    # those equal to a system on the front stand beside it
    points = set(zip(cost[front], accuracy[front], strict=True))
    return np.array([point in points for point in zip(cost, accuracy, strict=True)], dtype=bool)


def query_cost(
    prompt_tokens: ArrayLike,
    completion_tokens: ArrayLike,
    size_ratio: float = 1.0,
    output_price: float = 4.0,
) -> NDArray[np.float64]:
    r"""Cost of asking one model.

    .. math:: C = \rho \, (n_\text{in} + \pi \, n_\text{out})

    Source: paper A, section 4.3, equations (9) and (10), reconstructed.

    Args:
        prompt_tokens: Tokens read, :math:`n_\text{in}`, shape (n,) or scalar.
        completion_tokens: Tokens written, :math:`n_\text{out}`, same shape.
        size_ratio: Parameters of the model over those of the small model, :math:`\rho`.
        output_price: Price of an output token in input tokens, :math:`\pi`.

    Returns:
        Cost in input tokens of the small model, the shape of the arguments.

    Example:
        >>> float(query_cost(100, 50))
        300.0
        >>> float(query_cost(100, 50, size_ratio=32 / 7))  # a 32B model beside a 7B one
        1371.4285714285713
    """
    for name, value in (("size_ratio", size_ratio), ("output_price", output_price)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; expected a positive number")
    prompt = _token_counts(prompt_tokens, "prompt_tokens")
    completion = _token_counts(completion_tokens, "completion_tokens")
    return size_ratio * (prompt + output_price * completion)


def cost_ratio(
    small: ArrayLike, deferred: ArrayLike, router: float | None = None
) -> NDArray[np.float64]:
    r"""What a cascade costs, as a share of its large model alone.

    .. math:: s + d, \qquad\text{behind a router}\qquad r + (1 - d)\, s + d

    Source: paper A, section 4.3.

    Args:
        small: :math:`s`, what the small side costs on every question, as a share of what the large
            model does, any shape.
        deferred: :math:`d`, the share of the large model's cost that deferred questions make up,
            which is the deferral rate where all questions cost alike; in [0, 1].
        router: :math:`r`, what a router costs that spares the small model what it sends on.

    Above 1 the cascade loses. A router that is free loses only where the small model is dearer.

    Example:
        >>> float(cost_ratio(0.4, 0.7)), float(cost_ratio(0.4, 0.7, router=0.05))
        (1.1, 0.87)
    """
    s, d = np.asarray(small, dtype=np.float64), np.asarray(deferred, dtype=np.float64)
    if not ((s >= 0).all() and (d >= 0).all() and (d <= 1).all()):
        raise ValueError("small must be from 0 and deferred in [0, 1]")
    return np.asarray(s + d if router is None else router + (1 - d) * s + d)


def _token_counts(tokens: ArrayLike, name: str) -> NDArray[np.float64]:
    return checks.not_negative(np.atleast_1d(tokens), name).reshape(np.shape(tokens))


# --- tables of one run ---


COLUMNS = ("confidence", "small_correct", "large_correct", "small_cost", "large_cost")


def operating_intervals(
    paired: pd.DataFrame, *, threshold: float, n_resamples: int = 1000, seed: int = 0
) -> Mapping[str, Interval]:
    """What a cascade does at one threshold, the same in every resample, with intervals."""
    ranges = {
        "pass_at_1": (0.0, 1.0),
        "cost": (0.0, np.inf),
        "deferral_rate": (0.0, 1.0),
        "cost_saving": (-np.inf, 1.0),
        "accuracy_drop": (-1.0, 1.0),
    }

    def quantity(name: str, *columns: np.ndarray, weight: np.ndarray | None) -> float:
        point = operating_point(*columns, threshold=threshold, weight=weight)
        return float(getattr(point, name))

    return bootstrap_intervals(
        {name: partial(quantity, name) for name in ranges},
        paired,
        columns=COLUMNS,
        n_resamples=n_resamples,
        seed=seed,
        bounds=ranges,
    )


def small_and_large(table: pd.DataFrame, small: str = "", large: str = "") -> tuple[str, str]:
    """Which system answers first and which one is behind it, as far as they are not given.

    Of two systems the one with more confidences answers first; the second name is empty where
    there is one system only. More than two leave the choice open, which is refused.

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
    """Two systems on the same questions with the cost of asking each, and its unit in words.

    Where a token count is missing anywhere, every query of a system costs the same: 1 for the
    small model, ``size_ratio`` for the large.
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


@dataclass(frozen=True)
class _Rows:
    """Checked input of a cascade: floats of one shape."""

    confidence: NDArray[np.float64]
    small_correct: NDArray[np.float64]
    large_correct: NDArray[np.float64]
    large_cost: NDArray[np.float64]
    kept_cost: NDArray[np.float64]
    deferred_cost: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def checked(
        cls,
        confidence: ArrayLike,
        small_correct: ArrayLike,
        large_correct: ArrayLike,
        small_cost: ArrayLike,
        large_cost: ArrayLike,
        router_cost: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> _Rows:
        confidences = checks.unit_interval(confidence, "confidence", missing=True)
        n = confidences.size
        small = checks.verdicts(small_correct, "small_correct")
        large = checks.verdicts(large_correct, "large_correct")
        checks.same_length(confidence=confidences, small_correct=small, large_correct=large)
        small_costs = checks.not_negative(small_cost, "small_cost", n)
        large_costs = checks.not_negative(large_cost, "large_cost", n)
        kept, deferred = small_costs, small_costs + large_costs
        if router_cost is not None:
            asked = checks.not_negative(router_cost, "router_cost", n)
            kept, deferred = asked + small_costs, asked + large_costs
        weights = np.ones(n) if weight is None else checks.not_negative(weight, "weight", n)
        if not weights.sum() > 0:
            raise ValueError("weight is 0 throughout")
        confidences = confidences.astype(np.float64, copy=False)
        return cls(confidences, small, large, large_costs, kept, deferred, weights)
