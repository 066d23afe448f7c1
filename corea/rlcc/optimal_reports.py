r"""What each confidence reward asks for, computed exactly.

A question is answered rightly with chance :math:`p`; a group of :math:`G` rollouts is drawn,
:math:`K` of them right, and a rollout states the confidence :math:`c`. Which :math:`c` has the
largest expected reward (:mod:`corea.rlcc.rewards`), and which one does GRPO push towards? All
expectations are sums over binomial or multinomial chances; nothing is sampled.

What is assumed, beyond the paper:

1. Given the question, rollouts are independent and the stated confidence says nothing of the
   own answer. ``own_probability`` gives the case in which the rollout knows more.
2. Where several reports are equally good, the whole interval of them is returned; the one
   nearest to the truth is what a reward is credited with (:meth:`Optimum.nearest`).
3. Advantages are TRL's: rewards minus their mean over the group, and with the scaling
   ``group`` (its default) divided by their standard deviation over the group (n - 1 in the
   denominator) plus 1e-4. ``normalize_then_sum`` divides each part of the reward by its own.
   TRL's scaling ``batch``, and what ``normalize_then_sum`` divides by last, are one number
   for all groups of a batch: in a large batch it changes no optimum, and is left out.
4. The reward is correctness plus confidence. The format reward is left out: it is the same
   for all rollouts that are well formed.
5. Learning moves the policy over reports by :math:`\pi(c) \leftarrow \pi(c)\, e^{\eta A(c)} / Z`,
   with the exact expected advantage :math:`A(c)`: a natural-gradient step, without noise,
   clipping, entropy or KL terms. The chance :math:`p` stays as it is.

Throughout, ``probability`` is the chance :math:`p` that another rollout is right and
``own_probability`` the chance :math:`q` that the own answer is (:math:`p` when None), both in
[0, 1] and of shape (n,); ``name`` is a key of
:data:`corea.rlcc.rewards.CONFIDENCE_REWARDS`, ``epsilon`` the clipping factor of the KL rewards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement, product
from math import comb, factorial, prod
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea import checks
from corea.checks import Floats
from corea.metrics.calibration import auroc, expected_calibration_error
from corea.rlcc.rewards import CONFIDENCE_REWARDS, EPSILON, confidence_reward, confidence_reward_of

Scaling = Literal["none", "group", "normalize_then_sum"]

REWARDS = tuple(name for name in CONFIDENCE_REWARDS if name != "none")
"""The rewards that ask for anything."""

_MEDIAN = ("l1", "sample_l1")  # all others ask for the mean
_ROUNDING = 1e-12
_STD_OFFSET = 1e-4  # TRL's
_MOST_GROUPS = 100_000


class Optimum(NamedTuple):
    """All reports between two bounds are equally good, and better than any other."""

    low: Floats  # shape (n,)
    high: Floats

    def nearest(self, probability: ArrayLike) -> Floats:
        """The optimal report nearest to the truth, shape (n,)."""
        return np.clip(np.asarray(probability, dtype=np.float64), self.low, self.high)


def accuracy_distribution(
    probability: ArrayLike, group_size: int, *, own_probability: ArrayLike | None = None
) -> Floats:
    r"""Chances of the group accuracies 0, 1/G, ..., 1, own answer included, shape (n, G + 1).

    .. math:: \mathrm{P}(K = k) = q \,\mathrm{B}(k-1;\, G-1,\, p)
        + (1 - q)\, \mathrm{B}(k;\, G-1,\, p)

    where B are binomial chances; with :math:`q = p` that is :math:`\mathrm{B}(k;\, G,\, p)`.

    Source: paper A, section 3.2, equation (6), whose estimate this is the distribution of.

    Example:
        >>> accuracy_distribution([0.5], 2).tolist()
        [[0.25, 0.5, 0.25]]
        >>> accuracy_distribution([0.5], 2, own_probability=1).tolist()
        [[0.0, 0.5, 0.5]]
    """
    p = _probabilities(probability, "probability")
    q = p if own_probability is None else _probabilities(own_probability, "own_probability")
    checks.whole(group_size, "group_size", 1)
    others = _binomial(p, group_size - 1)
    q = np.broadcast_to(q, p.shape)[:, None]
    chances = np.zeros((len(p), group_size + 1))
    chances[:, :-1] += (1 - q) * others
    chances[:, 1:] += q * others
    return chances


def expected_reward(
    name: str,
    report: ArrayLike,
    probability: ArrayLike,
    group_size: int,
    *,
    own_probability: ArrayLike | None = None,
    epsilon: float = EPSILON,
) -> Floats:
    r"""Expected confidence reward of each report, shape (n, m); reports are (n, m) or (m,).

    .. math:: F(c) = \sum_{k=0}^{G} \mathrm{P}(K = k)\, R(c, k/G)
        \qquad \text{or} \qquad F(c) = q\, R(c, 1) + (1 - q)\, R(c, 0)

    for rewards with the group's accuracy or the own correctness as the target.

    Source: paper A, section 3.2, equations (2) to (6); :mod:`corea.rlcc.rewards`.

    Example:
        A rollout whose chance is 0.75 expects 0.25 * 0.75 + 0.75 * 0.25 of honesty to be lost
        with sample_l1, and only 0.25 of certainty:

        >>> expected_reward("sample_l1", [0.75, 1.0], [0.75], 8).tolist()
        [[-0.375, -0.25]]
    """
    targets, chances = _targets(name, probability, group_size, own_probability)
    stated = np.atleast_2d(np.asarray(report, dtype=np.float64))
    rewards = confidence_reward_of(name)(stated[:, :, None], targets, epsilon)  # (n or 1, m, v)
    expected: Floats = np.sum(rewards * chances[:, None, :], axis=2)
    return expected


def optimal_report(
    name: str,
    probability: ArrayLike,
    group_size: int,
    *,
    own_probability: ArrayLike | None = None,
    epsilon: float = EPSILON,
) -> Optimum:
    r"""The reports with the largest expected reward, in closed form.

    The median of the target for ``l1`` and ``sample_l1``, its mean for ``l2`` and ``brier``,
    its clipped mean for ``kl`` and ``sample_kl``. The mean of the group accuracy is
    :math:`p + (q - p) / G`, that of the own correctness :math:`q`.

    Source: :mod:`corea.rlcc.rewards`, where each optimum is stated.

    Example:
        With two rollouts and a chance of 0.25, both are wrong in 9 of 16 groups:

        >>> [optimal_report(name, [0.25], 2).low.item() for name in ("l1", "l2", "sample_l1")]
        [0.0, 0.25, 0.0]
        >>> optimal_report("sample_l1", [0.5], 2)
        Optimum(low=array([0.]), high=array([1.]))
    """
    targets, chances = _targets(name, probability, group_size, own_probability)
    if name == "none":
        return Optimum(np.zeros(len(chances)), np.ones(len(chances)))
    if name in _MEDIAN:
        below = np.cumsum(chances, axis=1)
        low = targets[np.argmax(below >= 0.5 - _ROUNDING, axis=1)]
        high = targets[np.argmax(below > 0.5 + _ROUNDING, axis=1)]
        return Optimum(low, high)
    mean = np.clip(chances @ targets, 0, 1)  # a sum of chances may round to more than 1
    if not confidence_reward_of(name).clipped:
        return Optimum(mean, mean)
    return Optimum(
        np.where(mean <= epsilon + _ROUNDING, 0, np.minimum(mean, 1 - epsilon)),
        np.where(mean >= 1 - epsilon - _ROUNDING, 1, np.maximum(mean, epsilon)),
    )


def study(
    probability: ArrayLike,
    group_sizes: Iterable[int],
    *,
    names: Sequence[str] = REWARDS,
    epsilon: float = EPSILON,
) -> pd.DataFrame:
    r"""The optimal report of every reward at every probability and group size, one row each.

    Of the reports from ``low`` to ``high`` (:class:`Optimum`), ``report`` is the one nearest to
    the truth and ``error`` its distance from it. ``price_of_honesty`` is how much the expected
    reward of reporting the probability falls short of the largest, ``target_sd`` the standard
    deviation of the target, whose mean is the probability.

    Example:
        >>> table = study([0.25], [2], names=["l1", "l2"])
        >>> table[["reward", "report", "error", "price_of_honesty"]].values.tolist()
        [['l1', 0.0, -0.25, 0.03125], ['l2', 0.25, 0.0, 0.0]]
    """
    p = _probabilities(probability, "probability")
    parts = []
    for name in names:
        for size in group_sizes:
            low, high = optimum = optimal_report(name, p, size, epsilon=epsilon)
            report = optimum.nearest(p)
            both = np.column_stack([report, p])
            best, honest = expected_reward(name, both, p, size, epsilon=epsilon).T
            targets, chances = _targets(name, p, size, None)
            columns = {
                "reward": name,
                "group_size": size,
                "probability": p,
                "low": low,
                "high": high,
                "report": report,
                "error": report - p,
                "price_of_honesty": np.maximum(best - honest, 0),  # rounding may go below
                "target_sd": np.sqrt(np.sum(chances * (targets - p[:, None]) ** 2, axis=1)),
            }
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def summarize_study(table: pd.DataFrame) -> pd.DataFrame:
    r"""How well a population that follows each reward's advice would be calibrated.

    The population is the table's probabilities, all equally frequent, each stated as the
    ``report``; calibration is measured by :mod:`corea.metrics.calibration` with right and wrong
    answers in exactly their expected shares. Of honest reports over chances spread evenly, the
    AUROC is 5/6.

    Example:
        >>> even = (np.arange(1000) + 0.5) / 1000
        >>> summary = summarize_study(study(even, [8], names=["sample_l1", "brier"]))
        >>> summary[["reward", "distinct", "ece", "auroc"]].round(3).values.tolist()
        [['sample_l1', 2, 0.25, 0.75], ['brier', 1000, 0.0, 0.833]]
    """
    rows = []
    for (name, size), part in table.groupby(["reward", "group_size"], sort=False):
        p, report = part["probability"].to_numpy(), part["report"].to_numpy()
        answers = (np.tile(report, 2), np.repeat([1, 0], len(p)))
        weight = np.concatenate([p, 1 - p])
        rows.append(
            {
                "reward": name,
                "group_size": size,
                "distinct": len(np.unique(report)),
                "largest_error": np.abs(report - p).max(),
                "rms_error": np.sqrt(np.mean((report - p) ** 2)),
                "ece": expected_calibration_error(*answers, weight=weight),
                "auroc": auroc(*answers, weight=weight),
                "price_of_honesty": part["price_of_honesty"].max(),
            }
        )
    return pd.DataFrame(rows)


def group_advantages(parts: ArrayLike, scaling: Scaling) -> Floats:
    r"""GRPO's advantages of whole groups, shape (groups, G), as TRL computes them.

    .. math:: A_i = \frac{R_i - \bar R}{s + 10^{-4}}

    with :math:`\bar R` and :math:`s` the mean and the standard deviation over the group, and
    without the division for the scaling ``none``. The parts of the reward are of shape
    (parts, groups, G).

    Source: trl 1.16, ``GRPOTrainer``, ``scale_rewards`` and ``multi_objective_aggregation``
    (choice 3 of this module).

    Example:
        One of two is right, and both state the same:

        >>> group_advantages([[[1, 0]], [[-0.5, -0.5]]], "none").tolist()
        [[0.5, -0.5]]
    """
    checks.one_of(scaling, "scaling", get_args(Scaling))
    rewards = np.asarray(parts, dtype=np.float64)
    if rewards.ndim != 3 or rewards.shape[2] < 2:
        raise ValueError(
            f"parts must have shape (parts, groups, G), G from 2, found {rewards.shape}"
        )
    if scaling != "normalize_then_sum":
        rewards = rewards.sum(axis=0, keepdims=True)
    advantages = rewards - rewards.mean(axis=2, keepdims=True)
    if scaling != "none":
        advantages = advantages / (rewards.std(axis=2, ddof=1, keepdims=True) + _STD_OFFSET)
    total: Floats = advantages.sum(axis=0)
    return total


def stable_reports(
    name: str,
    probability: ArrayLike,
    group_size: int,
    reports: ArrayLike,
    *,
    scaling: Scaling,
    epsilon: float = EPSILON,
) -> NDArray[np.bool_]:
    r"""Which reports hold once all rollouts of a group make them, shape (n, m).

    A report :math:`c_0` is stable where a rollout that states another one, in a group whose
    other rollouts all state :math:`c_0`, expects no larger advantage than by stating it too.
    With the scaling ``none`` these are the reports, among those offered, with the largest
    expected reward. There may be several, or none.

    Example:
        With two rollouts, dividing by the standard deviation leaves of "how much better" only
        "better", and even the Brier score asks for a step:

        >>> tenths = np.arange(11) / 10
        >>> for scaling in ("none", "group"):
        ...     tenths[stable_reports("brier", [0.7], 2, tenths, scaling=scaling)[0]].tolist()
        [0.7]
        [1.0]
    """
    p, stated = _probabilities(probability, "probability"), _probabilities(reports, "reports")
    checks.whole(group_size, "group_size", 2)
    n_right = np.arange(group_size)
    chances = _binomial(p, group_size - 1)
    stable = np.zeros((len(p), len(stated)), dtype=bool)
    for i in range(len(stated)):
        others = 2 * i + (n_right[:, None] > np.arange(group_size - 1)).astype(np.intp)
        table = _advantage_table(name, stated, others, scaling, epsilon)
        advantage = _of_reports(chances @ table.T, p)
        stable[:, i] = np.all(advantage <= advantage[:, [i]] + _ROUNDING, axis=1)
    return stable


def learned_policy(
    name: str,
    probability: ArrayLike,
    group_size: int,
    reports: ArrayLike,
    *,
    scaling: Scaling,
    steps: int = 2000,
    rate: float = 0.2,
    epsilon: float = EPSILON,
) -> Floats:
    r"""Where a policy over reports ends that follows the exact expected advantage, shape (n, m).

    .. math:: \pi(c) \leftarrow \pi(c)\, e^{\eta A(c)} / Z, \qquad
        A(c) = \mathrm{E}[A_i \mid c_i = c]

    from a uniform start. The expectation runs over all groups of G rollouts that the policy
    can draw, each with its chance.

    Source: GRPO (Shao et al. 2024) in expectation; choice 5 of this module.

    Example:
        >>> policy = learned_policy("brier", [0.75], 2, [0, 0.25, 0.5, 0.75, 1], scaling="none")
        >>> policy.argmax(), bool(policy.max() > 0.99)
        (np.int64(3), True)
    """
    p, stated = _probabilities(probability, "probability"), _probabilities(reports, "reports")
    checks.whole(group_size, "group_size", 2)
    n_types = 2 * len(stated)
    if (n_groups := comb(n_types + group_size - 2, group_size - 1)) > _MOST_GROUPS:
        raise ValueError(
            f"{len(stated)} reports in groups of {group_size} make {n_groups:,} different groups; "
            f"expected at most {_MOST_GROUPS:,}, so fewer reports or smaller groups"
        )
    others = np.array(list(combinations_with_replacement(range(n_types), group_size - 1)))
    table = _advantage_table(name, stated, others, scaling, epsilon)
    counts = (others[:, :, None] == np.arange(n_types)).sum(axis=1)
    orders = [factorial(group_size - 1) // prod(map(factorial, row)) for row in counts.tolist()]
    arrangements = np.array(orders)  # in how many orders each group can be drawn
    log_policy = np.full((len(p), len(stated)), -np.log(len(stated)))
    correctness = np.stack([1 - p, p], axis=1)[:, None, :]
    for _ in range(steps):
        chance_of_type = (np.exp(log_policy)[:, :, None] * correctness).reshape(len(p), -1)
        # a type of chance 0 is in no group: its logarithm only has to be very negative
        log_chance = np.log(np.maximum(chance_of_type, 1e-300))
        chances = np.exp(log_chance @ counts.T) * arrangements
        log_policy += rate * _of_reports(chances @ table.T, p)
        log_policy -= np.log(np.exp(log_policy).sum(axis=1, keepdims=True))
    policy: Floats = np.exp(log_policy)
    return policy


def study_stability(
    probability: ArrayLike,
    group_sizes: Iterable[int],
    reports: ArrayLike,
    *,
    scalings: Sequence[Scaling],
    names: Sequence[str] = REWARDS,
    epsilon: float = EPSILON,
) -> pd.DataFrame:
    """One row per stable report of every reward, scaling and group size (:func:`stable_reports`).

    Example:
        >>> study_stability([0.7], [2], [0.5, 0.7, 1], scalings=["group"], names=["brier"])[
        ...     ["reward", "probability", "report"]
        ... ].values.tolist()
        [['brier', 0.7, 1.0]]
    """
    p, stated = _probabilities(probability, "probability"), _probabilities(reports, "reports")
    parts = []
    for scaling, size, name in product(scalings, group_sizes, names):
        stable = stable_reports(name, p, size, stated, scaling=scaling, epsilon=epsilon)
        row, column = np.nonzero(stable)
        columns = {"scaling": scaling, "reward": name, "group_size": size}
        found = {"probability": p[row], "report": stated[column]}
        parts.append(pd.DataFrame(columns | found, index=range(len(row))))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(error=table["report"] - table["probability"])


def study_learning(
    probability: ArrayLike,
    group_size: int,
    reports: ArrayLike,
    *,
    scalings: Sequence[Scaling],
    steps: int,
    names: Sequence[str] = REWARDS,
    epsilon: float = EPSILON,
) -> pd.DataFrame:
    """The mean report learned with every reward and scaling (:func:`learned_policy`).

    Example:
        >>> table = study_learning([0.7], 2, [0.5, 0.7, 1], scalings=["group"], steps=2000)
        >>> table.loc[table["reward"] == "brier", "report"].round(2).tolist()
        [1.0]
    """
    p, stated = _probabilities(probability, "probability"), _probabilities(reports, "reports")
    parts = []
    for scaling, name in product(scalings, names):
        policy = learned_policy(
            name, p, group_size, stated, scaling=scaling, steps=steps, epsilon=epsilon
        )
        columns = {"scaling": scaling, "reward": name, "probability": p, "report": policy @ stated}
        parts.append(pd.DataFrame(columns))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(error=table["report"] - table["probability"])


def worth_of_being_right(name: str, confidence: ArrayLike, *, epsilon: float = EPSILON) -> Floats:
    r"""Reward of a right answer minus that of a wrong one of its group that states the same.

    .. math:: 1 + R(c, 1) - R(c, 0) \quad \text{or} \quad 1

    for rewards with the own correctness or the group's accuracy as the target: the latter is
    the same for both. With ``sample_l1`` and ``brier`` it is :math:`2c`.

    Example:
        >>> worth_of_being_right("brier", [0.0, 0.25, 1.0]).tolist()
        [0.0, 0.5, 2.0]
    """
    stated = np.repeat(_probabilities(confidence, "confidence"), 2)
    correct = np.tile([1.0, 0.0], len(stated) // 2)
    rewards = correct + confidence_reward(name, stated, correct, 2, epsilon=epsilon)
    return rewards[::2] - rewards[1::2]


def _advantage_table(
    name: str, reports: Floats, others: NDArray[np.intp], scaling: Scaling, epsilon: float
) -> Floats:
    """Advantage of a rollout of each type among each set of others (types), shape (T, M).

    Types are (report, wrong) and (report, right), one report after the other.
    """
    reward = confidence_reward_of(name)
    confidence_of, correct_of = np.repeat(reports, 2), np.tile([0.0, 1.0], len(reports))
    rows = []
    for own in range(len(confidence_of)):
        members = np.column_stack([np.full(len(others), own), others])
        correct = correct_of[members]
        target = correct
        if reward.target == "group":
            target = np.broadcast_to(correct.mean(axis=1, keepdims=True), correct.shape)
        confidence = reward(confidence_of[members], target, epsilon)
        rows.append(group_advantages(np.stack([correct, confidence]), scaling)[:, 0])
    return np.array(rows)


def _of_reports(advantage: Floats, probability: Floats) -> Floats:
    """Advantage of reports (n, m) from that of types (n, 2 m): wrong or right by chance."""
    wrong, right = advantage[:, ::2], advantage[:, 1::2]
    mean: Floats = wrong + probability[:, None] * (right - wrong)
    return mean


def _targets(
    name: str, probability: ArrayLike, group_size: int, own_probability: ArrayLike | None
) -> tuple[Floats, Floats]:
    """The values that a reward's target can take (v,), and their chances (n, v)."""
    checks.whole(group_size, "group_size", 1)
    size = group_size if confidence_reward_of(name).target == "group" else 1
    chances = accuracy_distribution(probability, size, own_probability=own_probability)
    return np.arange(size + 1) / size, chances


def _binomial(p: Floats, n: int) -> Floats:
    k = np.arange(n + 1)
    ways = np.array([comb(n, i) for i in k], dtype=np.float64)
    chances: Floats = ways * p[:, None] ** k * (1 - p[:, None]) ** (n - k)
    return chances


def _probabilities(values: ArrayLike, name: str) -> Floats:
    array = checks.unit_interval(np.atleast_1d(np.asarray(values)), name)
    return array.astype(np.float64, copy=False)
