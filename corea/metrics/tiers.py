r"""More than two models: chains with a threshold each, routes past a model, abstaining; envelopes.

A chain asks its tiers in order. It stops at the first whose confidence reaches that tier's
threshold (:func:`corea.metrics.cascade.defers`, so a missing confidence goes on); the last one
answers what is left. Everybody who was asked is paid. Beside it, three things that are said in the
same terms:

1. *Straight to the last*: where a signal is below a further threshold, the tiers between are
   spared (:attr:`Tiers.signal`). A router decides so before anybody was asked, at the cost of the
   last tier alone; the first tier's own confidence decides so after it was paid.
2. *Abstaining* is a last tier that costs nothing and whose answer is worth 0, where a right one is
   worth 1 and a wrong one less than 0 (:func:`abstaining`). Straight to it is early abstention.
3. *Mixing*: who may draw at random between two policies can have any point between them, so what a
   family of policies can do at each cost is its upper concave envelope (:func:`envelope`).

Thresholds are searched all at once: the sums over questions that go on past each tier are
cumulative sums of one table with an axis a threshold. This is exact for every combination of the
grids; where there would be more than ``most`` of them, grids are thinned to quantiles first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea import checks
from corea.metrics.cascade import DEFER_ALL, defers

Floats = NDArray[np.float64]

MOST = 20_000
"""Combinations of thresholds that are tried for one chain, at most."""

NOBODY = "nobody"


@dataclass(frozen=True)
class Tiers:
    """Who is asked in which order, on n questions, and what comes of it.

    Attributes:
        names: Of the k tiers.
        value: What each answer is worth, shape (n, k): 1 if right and 0 if wrong, by default.
        cost: What asking each costs, shape (n, k).
        confidence: Of each, in [0, 1] or NaN, shape (n, k); that of the last decides nothing.
        signal: Below a threshold of it the last tier is asked at once, shape (n,); None: never.
        straight: What that costs, shape (n,).

    Raises:
        ValueError: If shapes differ, a cost is missing or negative, a value missing, or a
            confidence outside of [0, 1].
    """

    names: tuple[str, ...]
    value: Floats
    cost: Floats
    confidence: Floats
    signal: Floats | None = None
    straight: Floats | None = None

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        shape = len(self.value), len(self.names)
        for name in ("value", "cost", "confidence"):
            array = np.asarray(getattr(self, name), dtype=np.float64)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}; expected {shape}")
            object.__setattr__(self, name, array)
        if not np.isfinite(self.value).all():
            raise ValueError("value must not be missing")
        checks.not_negative(self.cost.ravel(), "cost")
        checks.unit_interval(self.confidence.ravel(), "confidence", missing=True)
        if self.signal is not None or self.straight is not None:
            signal, straight = self.bypass()
            checks.unit_interval(signal, "signal", missing=True)
            checks.not_negative(straight, "straight", shape[0])

    def of(self, rows: ArrayLike) -> Tiers:
        """The same on some of the questions, a mask or positions."""
        rows = np.asarray(rows)
        taken = {name: getattr(self, name)[rows] for name in ("value", "cost", "confidence")}
        if self.signal is not None:
            signal, straight = self.bypass()
            taken |= {"signal": signal[rows], "straight": straight[rows]}
        return replace(self, **taken)

    def bypass(self) -> tuple[Floats, Floats]:
        """The signal that sends straight to the last tier, and what that costs."""
        if self.signal is None or self.straight is None:
            raise ValueError(f"{' > '.join(self.names)} has no signal to skip by")
        return self.signal, self.straight

    def routed(self, signal: ArrayLike, router_cost: ArrayLike = 0.0) -> Tiers:
        """With a router in front: below a threshold of ``signal`` only the last tier is asked.

        Source: paper A, section 4.3 (what a router costs).
        """
        n = len(self.value)
        paid = checks.not_negative(router_cost, "router_cost", n)
        first = np.arange(len(self.names)) == 0
        signal = np.asarray(signal, dtype=np.float64)
        straight = paid + self.cost[:, -1]
        cost = self.cost + paid[:, None] * first
        return replace(self, cost=cost, signal=signal, straight=straight)

    def scored(self, wrong: float = 1.0) -> Tiers:
        """With wrong answers worth ``-wrong``."""
        if not wrong >= 0:
            raise ValueError(f"wrong is {wrong}; expected a number from 0")
        return replace(self, value=np.where(self.value > 0, self.value, -wrong))

    def bypassing(self) -> Tiers:
        """With a second threshold of the first tier: below it the tiers between are left out."""
        straight = self.cost[:, 0] + self.cost[:, -1]
        return replace(self, signal=self.confidence[:, 0], straight=straight)


def abstaining(tiers: Tiers) -> Tiers:
    """The same tiers, with nobody behind the last: who is not sure enough gives no answer.

    That costs nothing and is worth 0, so wrong answers are to be worth less (:meth:`Tiers.scored`).
    Early abstention is this with :meth:`Tiers.bypassing`: the large models are not asked where the
    first one is lost.

    Source: Zellinger et al., arXiv 2502.09054 (early abstention in cascades).

    Example:
        >>> tiers = Tiers(("a",), [[1.0], [0.0]], [[2.0], [2.0]], [[0.9], [0.1]]).scored()
        >>> abstaining(tiers).value.tolist()
        [[1.0, 0.0], [-1.0, 0.0]]
    """
    none = np.zeros((len(tiers.value), 1))
    value, cost = (np.hstack([each, none]) for each in (tiers.value, tiers.cost))
    confidence = np.hstack([tiers.confidence, np.nan * none])
    return Tiers((*tiers.names, NOBODY), value, cost, confidence)


@dataclass(frozen=True)
class Policy:
    """Tiers with their thresholds.

    Attributes:
        tiers: Who is asked.
        thresholds: Of each tier but the last.
        skip: Below it, of the signal, the last tier is asked at once; None: never.
    """

    tiers: Tiers
    thresholds: tuple[float, ...]
    skip: float | None = None

    def outcome(self) -> pd.DataFrame:
        """What the policy does on each question: ``value, cost`` and ``tier``, a position.

        Example:
            >>> tiers = Tiers(("a", "b"), [[1, 1], [0, 1]], [[1, 9]] * 2, [[0.9, 1], [0.2, 1]])
            >>> Policy(tiers, (0.5,)).outcome().to_dict("list")
            {'value': [1.0, 1.0], 'cost': [1.0, 10.0], 'tier': [0, 1]}
        """
        n, k = self.tiers.value.shape
        tier, going = np.zeros(n, dtype=int), np.ones(n, dtype=bool)
        cost = self.tiers.cost[:, 0].copy()
        for j, threshold in enumerate(self.thresholds):
            going &= defers(self.tiers.confidence[:, j], threshold)
            tier += going
            cost += going * self.tiers.cost[:, j + 1]
        if self.skip is not None:
            signal, straight = self.tiers.bypass()
            at_once = defers(signal, self.skip)
            tier[at_once] = k - 1
            cost[at_once] = straight[at_once]
        value = self.tiers.value[np.arange(n), tier]
        return pd.DataFrame({"value": value, "cost": cost, "tier": tier})

    def means(self, rows: ArrayLike) -> tuple[float, float]:
        """Mean cost and value on some of the questions."""
        value, cost, _ = self.on(rows).outcome().to_numpy().mean(axis=0)
        return float(cost), float(value)

    def on(self, rows: ArrayLike) -> Policy:
        """The same on some of the questions."""
        return replace(self, tiers=self.tiers.of(rows))


def every_policy(tiers: Tiers, *, most: int = MOST) -> pd.DataFrame:
    """Mean value and cost at every combination of thresholds.

    Columns ``threshold_1`` to ``threshold_{k-1}``, ``skip`` (missing: nobody is skipped),
    ``pass_at_1`` (the mean value) and ``cost``. Of two tiers these are the rows of
    :func:`corea.metrics.cascade.deferral_curve`.

    Example:
        >>> tiers = Tiers(("a", "b"), [[1, 1], [0, 1]], [[1, 10]] * 2, [[0.9, 1], [0.2, 1]])
        >>> every_policy(tiers).drop(columns="skip")
           threshold_1  pass_at_1  cost
        0          0.2        0.5   1.0
        1          0.9        1.0   6.0
        2          1.1        1.0  11.0
    """
    *thresholds, skip, value, cost = _points(tiers, most)
    columns = {f"threshold_{j + 1}": values for j, values in enumerate(thresholds)}
    return pd.DataFrame({**columns, "skip": skip, "pass_at_1": value, "cost": cost})


def _points(tiers: Tiers, most: int) -> Floats:
    """The columns of :func:`every_policy`, shape (columns, combinations)."""
    checks.whole(most, "most", 1)
    n, k = tiers.value.shape
    signals = [tiers.confidence[:, j] for j in range(k - 1)]
    signals += [] if tiers.signal is None else [tiers.signal]
    grids = _grids(signals, most)
    sizes = tuple(map(len, grids[: k - 1]))
    # the lowest threshold at which each question goes on
    at = [
        np.where(np.isnan(signal), 0, np.searchsorted(grid, signal, side="right"))
        for signal, grid in zip(signals[: k - 1], grids, strict=False)
    ]
    chosen = [grid.ravel() for grid in np.meshgrid(*grids[: k - 1], indexing="ij")]
    parts = []
    for skip in [None] if tiers.signal is None else [None, *grids[-1]]:
        gone = np.zeros(n, dtype=bool) if skip is None else defers(tiers.bypass()[0], skip)
        value, cost = _means_past(tiers, at, sizes, ~gone)
        if skip is not None:
            value = value + tiers.value[gone, -1].sum() / n
            cost = cost + tiers.bypass()[1][gone].sum() / n
        skips = np.full(value.size, np.nan if skip is None else skip)
        parts.append(np.array([*chosen, skips, value.ravel(), cost.ravel()]))
    return np.concatenate(parts, axis=1)


def _means_past(
    tiers: Tiers, at: Sequence[NDArray[np.intp]], sizes: tuple[int, ...], rows: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Mean value and cost at all thresholds, shape ``sizes``; of questions not in ``rows`` 0."""
    n, k = tiers.value.shape

    def going(weights: Floats, tier: int) -> Floats:
        """Mean of weights over what reaches a tier, for all thresholds of those before it."""
        shape = sizes[:tier]
        if not shape:
            return np.asarray(weights[rows].sum() / n)
        cell = np.ravel_multi_index([position[rows] for position in at[:tier]], shape)
        table = np.bincount(cell, weights[rows], int(np.prod(shape))).reshape(shape)
        for axis in range(tier):
            table = table.cumsum(axis)
        return np.asarray(table.reshape(shape + (1,) * (k - 1 - tier)) / n)

    value, cost = np.zeros(sizes), np.zeros(sizes)
    for tier in range(k):
        cost = cost + going(tiers.cost[:, tier], tier)
        value = value + going(tiers.value[:, tier], tier)
        if tier:
            value = value - going(tiers.value[:, tier - 1], tier)
    return value, cost


def _grids(signals: Sequence[Floats], most: int) -> list[Floats]:
    """Of each signal the thresholds at which something changes, and one that defers all.

    Thinned to quantiles, down to two each, where they have more than ``most`` combinations.
    """
    stated = [signal[~np.isnan(signal)] for signal in signals]
    values = [np.unique(signal) for signal in stated]
    each = max(map(len, values), default=0) + 1
    while each > 2 and np.prod([min(len(v) + 1.0, each) for v in values]) > most:
        each -= 1
    for i, signal in enumerate(stated):
        if len(values[i]) + 1 > each:
            at = np.linspace(0, 1, each - 1)
            values[i] = np.unique(np.quantile(signal, at, method="nearest"))
    return [np.append(v, DEFER_ALL) for v in values]


# --- envelopes ---


def envelope(cost: ArrayLike, pass_at_1: ArrayLike) -> NDArray[np.intp]:
    """Positions of the vertices of the upper concave, rising envelope, by rising cost.

    Source: RouterBench (Hu et al., arXiv 2403.12031, section 3): the non-decreasing convex hull.

    Example:
        >>> envelope([1, 2, 3, 4], [0.5, 0.55, 0.9, 0.8]).tolist()
        [0, 2]
    """
    x, y = np.asarray(cost, dtype=np.float64), np.asarray(pass_at_1, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise ValueError(f"cost has shape {x.shape} and pass_at_1 {y.shape}; expected one length")
    kept: list[int] = []
    for i in np.lexsort((-y, x)):
        if kept and y[i] <= y[kept[-1]]:
            continue
        while len(kept) > 1 and _slope(x, y, kept[-2], i) >= _slope(x, y, kept[-2], kept[-1]):
            kept.pop()
        kept.append(int(i))
    return np.array(kept, dtype=np.intp)


def _slope(x: Floats, y: Floats, i: int, j: int) -> float:
    return float((y[j] - y[i]) / (x[j] - x[i])) if x[j] > x[i] else np.inf


def best_policies(choices: Iterable[Tiers], rows: ArrayLike, *, most: int = MOST) -> list[Policy]:
    """Of all tiers and thresholds those on the envelope of some questions, by rising cost.

    ``rows`` says on which questions they are chosen, a mask or positions; the policies that come
    back are of all questions, to be judged on the others (:meth:`Policy.on`).
    """
    found, points = [], []
    for tiers in choices:
        *thresholds, skip, value, cost = _points(tiers.of(rows), most)
        for i in envelope(cost, value):
            chosen = tuple(float(at[i]) for at in thresholds)
            found.append(Policy(tiers, chosen, None if np.isnan(skip[i]) else float(skip[i])))
            points.append((cost[i], value[i]))
    if not found:
        raise ValueError("there are no tiers to choose from")
    return [found[i] for i in envelope(*np.transpose(points))]


def together(policies: Iterable[Policy], rows: ArrayLike) -> list[Policy]:
    """Of policies of several families those on the envelope of them all."""
    found = list(policies)
    return [found[i] for i in envelope(*np.transpose([p.means(rows) for p in found]))]


def mixing(costs: ArrayLike, budgets: ArrayLike) -> Floats:
    """How often to take each of the policies of an envelope, shape (budgets, policies).

    Of the two beside a budget, so that it is spent in expectation; above the dearest that alone.

    Raises:
        ValueError: If costs do not rise, or a budget is below the lowest.

    Example:
        >>> mixing([1.0, 3.0], [1.5, 9.0]).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    cost, budget = np.asarray(costs, dtype=np.float64), np.atleast_1d(budgets).astype(np.float64)
    if (np.diff(cost) <= 0).any():
        raise ValueError("costs of an envelope must rise")
    if (budget < cost[0]).any():
        raise ValueError(f"a budget of {budget.min():g} is below the lowest cost, {cost[0]:g}")
    return np.array([np.interp(budget, cost, row) for row in np.eye(len(cost))]).T


# --- what others report ---


def average_performance_gap_recovered(curve: pd.DataFrame) -> float:
    r"""Share of the gap between both models that is recovered, averaged over deferral rates.

    .. math:: \int_0^1 \frac{a(r) - a_S}{a_L - a_S}\, dr

    Of a :func:`corea.metrics.cascade.deferral_curve` on which every question has a confidence. 0.5
    for deferral at random. Source: RouteLLM (Ong et al., arXiv 2406.18665), which takes ten
    rates; this is the integral.

    Example:
        >>> from corea.metrics.cascade import deferral_curve
        >>> curve = deferral_curve([0.9, 0.2], [1, 0], [1, 1], 1, 10)
        >>> average_performance_gap_recovered(curve)
        0.75
    """
    rates, right = curve["deferral_rate"].to_numpy(), curve["pass_at_1"].to_numpy()
    if rates[0] > 0 or rates[-1] < 1:
        raise ValueError(f"the curve goes from a deferral rate of {rates[0]:g} to {rates[-1]:g}")
    gap = right[-1] - right[0]
    return float(np.trapezoid((right - right[0]) / gap, rates)) if gap > 0 else np.nan


def average_improvement_in_quality(
    cost: ArrayLike, pass_at_1: ArrayLike, low: float, high: float
) -> float:
    r"""Mean height of the envelope of some points between two costs.

    .. math:: \frac{1}{c_1 - c_0} \int_{c_0}^{c_1} \tilde a(c)\, dc

    Source: RouterBench (Hu et al., arXiv 2403.12031, section 3), AIQ.

    Raises:
        ValueError: If ``low`` is below the lowest cost, where nothing can be had, or not below
            ``high``.

    Example:
        >>> average_improvement_in_quality([1, 3], [0.5, 0.9], 1, 5)
        0.8
    """
    x, y = np.asarray(cost, dtype=np.float64), np.asarray(pass_at_1, dtype=np.float64)
    at = envelope(x, y)
    if not x[at[0]] <= low < high:
        raise ValueError(f"low is {low:g} and high {high:g}; expected {x[at[0]]:g} <= low < high")
    inside = x[at][(x[at] > low) & (x[at] < high)]
    ends = np.concatenate([[low], inside, [high]])
    return float(np.trapezoid(np.interp(ends, x[at], y[at]), ends) / (high - low))


def gap_to_oracle(right: ArrayLike, correct: ArrayLike) -> float:
    """Share of what somebody would get right who always knew whom to ask that is not.

    ``right`` of the system, shape (n,), ``correct`` of all models, shape (n, k). Source:
    LLMRouterBench (Li et al., arXiv 2601.07206), Gap@O, relative as its gains are.

    Example:
        >>> gap_to_oracle([1, 0, 0, 0], [[1, 0], [0, 1], [0, 0], [0, 0]])
        0.5
    """
    best = float(np.asarray(correct, dtype=np.float64).max(axis=1).mean())
    return 1 - float(np.mean(np.asarray(right, dtype=np.float64))) / best if best else np.nan


def cost_save(
    cost: ArrayLike, pass_at_1: ArrayLike, *, single_cost: float, single_pass_at_1: float
) -> float:
    """Largest share of the best single model's cost that is saved at its accuracy or better.

    Of a system's operating points; NaN where none is as accurate, negative where all that are cost
    more. Source: LLMRouterBench (Li et al., arXiv 2601.07206), CostSave.

    Example:
        >>> cost_save([1, 4, 12], [0.5, 0.8, 0.9], single_cost=10, single_pass_at_1=0.8)
        0.6
    """
    enough = np.asarray(pass_at_1, dtype=np.float64) >= single_pass_at_1
    paid = np.asarray(cost, dtype=np.float64)[enough]
    return 1 - float(paid.min()) / single_cost if paid.size else np.nan
