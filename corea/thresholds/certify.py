r"""Certified thresholds: the cheapest cascade that keeps a promise with a stated probability.

A :class:`Promise` bounds the mean of a loss that each question has at each threshold. Thresholds
are tested one after the other, the safest first, and the testing stops at the first that cannot be
shown to keep the promise: all before it are certified together, at level :math:`\delta`, for
the first broken one among them is fixed in advance and passes its own test with probability
:math:`\delta` at most (fixed-sequence testing, Angelopoulos et al., "Learn then Test", 2021,
arXiv:2110.01052). This needs questions that are drawn as those to come will be, and nothing else:
not that the confidence is calibrated, nor that risk grows as the threshold falls.

================= =========================================== ======= =============================
promise           loss of a question                           in      tested by
================= =========================================== ======= =============================
``within``        large model right minus cascade right        -1,0,1  :func:`paired_p`
``at_least``      cascade wrong                                0, 1    :func:`binomial_p`
``disagreement``  cascade's answer is not the large model's    0, 1    :func:`binomial_p`
``budget``        cost of the question over the dearest one    [0, 1]  :func:`hoeffding_bentkus_p`
================= =========================================== ======= =============================

``disagreement`` needs no correct answers; since an answer that is the same is as right, it bounds
the loss of accuracy as well. A ``budget`` is tested from the cheapest threshold upwards, the other
promises from deferring everything downwards. :data:`THRESHOLDS` is fixed in advance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import corea
from corea import checks
from corea.confidence import with_signal
from corea.metrics.cascade import DEFER_ALL, defers, priced_pair
from corea.metrics.intervals import Interval, mean_interval
from corea.records import Records, select
from corea.thresholds.card import Card, Estimate, Guarantee, Tested
from corea.thresholds.recalibration import Recalibration

Floats = NDArray[np.float64]
Kind = Literal["within", "at_least", "disagreement", "budget"]

_NEAR_ONE = 1 - 10.0 ** -np.linspace(3, 9, 121)
THRESHOLDS: Floats = np.unique(
    np.concatenate([np.linspace(0, 1, 1001).round(3), _NEAR_ONE, 1 - _NEAR_ONE, [DEFER_ALL]])
)
"""Every thousandth, closer near 0 and 1, where probabilities of tokens crowd; and defer all."""

_SET_ASIDE = 0.1  # the share of delta spent on how many questions the two models differ on
_SHOWN = 24


@dataclass(frozen=True)
class Promise:
    """What a threshold must keep, and how surely.

    Attributes:
        kind: Of the module's table.
        level: At most so much accuracy lost (``within``), at least this accuracy, at most this
            share of answers that differ, at most this mean cost.
        delta: Probability, at most, that the certified threshold does not keep it.
        max_cost: ``budget`` only: what no question costs more than, in the unit of the costs.
    """

    kind: Kind
    level: float
    delta: float = 0.05
    max_cost: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be promised."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"no promise {self.kind!r}; there are {', '.join(get_args(Kind))}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta is {self.delta}; expected a probability between 0 and 1")
        if self.kind == "budget":
            if self.max_cost is None or not 0 < self.level < self.max_cost < np.inf:
                raise ValueError(
                    f"budget is {self.level} and max_cost {self.max_cost}; expected a budget above "
                    "0 and below max_cost, the most that one question can cost"
                )
        elif not 0 < self.level < 1:
            raise ValueError(f"{self.kind} is {self.level}; expected a share between 0 and 1")

    @property
    def risk(self) -> float:
        """The mean loss that is allowed."""
        if self.kind == "at_least":
            return 1 - self.level
        return self.level / self.max_cost if self.max_cost else self.level

    @property
    def words(self) -> str:
        """The promise as a sentence."""
        sure = f"with a probability of at least {1 - self.delta:.4g}"
        what = {
            "within": f"right at most {100 * self.level:.4g} points less often than the large "
            "model alone",
            "at_least": f"right on at least {100 * self.level:.4g} % of questions",
            "disagreement": f"of another answer than the large model on at most "
            f"{100 * self.level:.4g} % of questions",
            "budget": f"at a mean cost of at most {self.level:.6g} a question",
        }[self.kind]
        return f"On questions drawn as these were, the cascade is {what}, {sure}."


# --- tests of one threshold -------------------------------------------------------------------


def binomial_p(losses: int, n: int, risk: float) -> float:
    r"""P-value of "the loss is above the risk", from how many of n questions are lost.

    .. math:: P(\operatorname{Bin}(n, r) \le k)

    Example:
        >>> round(binomial_p(0, 149, 0.02), 4)
        0.0493
    """
    from scipy.stats import binom

    return float(binom.cdf(losses, n, risk))


def paired_p(losses: int, gains: int, n: int, risk: float, *, set_aside: float = 0.005) -> float:
    r"""P-value of "losses exceed gains by more than the risk", exact, of two paired models.

    Of n questions ``losses`` are right with the large model only, ``gains`` with the cascade only.
    Were the two to differ on a share d of questions, then :math:`S`, losses minus gains, would be a
    sum of n independent steps, +1 with probability :math:`(d + r) / 2`, -1 with :math:`(d - r)/2`:

    .. math:: p = \max_{d \in \{r, \bar d\}} P_d(S \le k) + \gamma

    with :math:`\bar d` the exact upper bound of d at level :math:`1 - \gamma` (``set_aside``).
    Source: Berger and Boos (1994), P values maximized over a confidence set. Where it is small
    the probability is largest at an end of the set; a test looks at all of it.

    Example:
        >>> round(paired_p(32, 8, 2000, 0.02), 4)
        0.0239
    """
    from scipy.stats import beta, binom

    differ = losses + gains
    most = 1.0 if differ == n else float(beta.ppf(1 - set_aside, differ + 1, n - differ))
    found = 0.0
    for share in {risk, max(risk, most)}:
        spread = 9 * (np.sqrt(n * share * (1 - share)) + 1)
        low, high = max(0.0, np.floor(n * share - spread)), min(n, np.ceil(n * share + spread))
        steps = np.arange(low, high + 1)
        down = binom.cdf(np.floor((losses - gains + steps) / 2), steps, (1 + risk / share) / 2)
        found = max(found, float(binom.pmf(steps, n, share) @ down))
    return min(1.0, found + set_aside)


def hoeffding_bentkus_p(mean: float, n: int, risk: float) -> float:
    r"""P-value of "the mean exceeds the risk", of n values in [0, 1].

    .. math:: \min\{e^{-n\,\mathrm{kl}(\min(\hat r, r), r)},
        \; e\,P(\operatorname{Bin}(n, r) \le \lceil n \hat r \rceil)\}

    Source: Bates et al. (2021), "Distribution-free, risk-controlling prediction sets".

    Example:
        >>> round(hoeffding_bentkus_p(0.1, 200, 0.2), 6)
        0.000288
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    below = min(mean, risk)
    divergence = float(rel_entr(below, risk) + rel_entr(1 - below, 1 - risk))
    tail = float(binom.cdf(np.ceil(n * mean - 1e-9), n, risk))
    return min(1.0, float(np.exp(-n * divergence)), np.e * tail)


# --- the sequence -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    """What each distinct threshold does to n questions, highest first."""

    thresholds: Floats
    kept: Floats
    mean: Floats
    losses: Floats
    gains: Floats
    n: int

    def p_value(self, i: int, promise: Promise, risk: float) -> float:
        """That the promise is broken at threshold i, were the risk allowed this one."""
        if promise.kind == "budget":
            return hoeffding_bentkus_p(float(self.mean[i]), self.n, risk)
        losses, gains = int(self.losses[i]), int(self.gains[i])
        if promise.kind == "within":
            aside = _SET_ASIDE * promise.delta
            return paired_p(losses, gains, self.n, risk, set_aside=aside)
        return binomial_p(losses, self.n, risk)

    def bound(self, i: int, promise: Promise) -> float:
        """The risk that threshold i keeps with probability 1 - delta, to within 1e-4."""
        low, high = max(float(self.mean[i]), 0.0), 1.0
        while high - low > 1e-4:
            middle = (low + high) / 2
            passes = self.p_value(i, promise, middle) <= promise.delta
            low, high = (low, middle) if passes else (middle, high)
        return high


def distinct_thresholds(known: Floats, thresholds: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Of thresholds that keep the same questions the highest, from the top, and how many each.

    The questions decide nothing between it and those below. ``known`` are confidences, -1 for a
    missing one, in any order.
    """
    down = np.sort(thresholds)[::-1]
    counts = np.searchsorted(np.sort(-known), -down, side="right")
    kept, first = np.unique(counts, return_index=True)
    return down[first], kept


def _count(paired: pd.DataFrame, promise: Promise) -> _Counted:
    """Sums over the questions that each threshold keeps and defers."""
    confidence = checks.unit_interval(paired["confidence"], "confidence", missing=True)
    large = checks.verdicts(paired["large_correct"], "large_correct")
    small = checks.verdicts(paired["small_correct"], "small_correct")
    n = len(paired)
    if promise.kind == "within":
        deferred, kept = np.zeros(n), large - small
    elif promise.kind == "at_least":
        deferred, kept = 1 - large, 1 - small
    elif promise.kind == "disagreement":
        if "differ" not in paired:
            raise ValueError("disagreement needs the answers of both models; there are none")
        deferred, kept = np.zeros(n), checks.verdicts(paired["differ"], "differ")
    else:
        assert promise.max_cost is not None
        dearest = paired["small_cost"] + paired["large_cost"]
        if dearest.max() > promise.max_cost:
            raise ValueError(
                f"max_cost is {promise.max_cost:g}, but one question costs {dearest.max():g}; "
                "expected the most that one question can cost"
            )
        kept = paired["small_cost"].to_numpy(dtype=float) / promise.max_cost
        deferred = dearest.to_numpy(dtype=float) / promise.max_cost
    known = np.nan_to_num(confidence, nan=-1.0)
    order = np.argsort(-known, kind="stable")
    thresholds, counts = distinct_thresholds(known, THRESHOLDS)

    def after(values: Floats) -> Floats:
        """Sums over the questions kept at each threshold."""
        sums: Floats = np.append(0.0, np.cumsum(values[order]))[counts]
        return sums

    return _Counted(
        thresholds=thresholds,
        kept=counts / n,
        mean=(deferred.sum() + after(kept - deferred)) / n,
        losses=deferred.sum() + after((kept == 1).astype(float) - deferred),
        gains=after((kept == -1).astype(float)),
        n=n,
    )


def _search(counted: _Counted, promise: Promise) -> tuple[int | None, int | None]:
    """The place of the last threshold that passes, and of the first that does not."""
    chosen = None
    sequence = range(len(counted.thresholds))
    for i in reversed(sequence) if promise.kind == "budget" else sequence:
        # to defer everything loses nothing against the large model, whatever the questions; but
        # thresholds that keep none of these questions may keep others, and are tested too
        if promise.kind in ("within", "disagreement") and counted.kept[i] == 0:
            chosen = i
        if counted.p_value(i, promise, promise.risk) > promise.delta:
            return chosen, i
        chosen = i
    return chosen, None


def find_threshold(paired: pd.DataFrame, promise: Promise) -> float | None:
    """The threshold that :func:`certify` puts on its card, without the card.

    Example:
        >>> paired = pd.DataFrame({"confidence": [0.9, 0.2] * 200, "small_correct": [1, 0] * 200,
        ...     "large_correct": 1})
        >>> find_threshold(paired, Promise("within", 0.02))
        0.9
    """
    counted = _count(paired, promise)
    chosen, stopped = _search(counted, promise)
    if chosen is None or _refusal(counted, promise, chosen, stopped):
        return None
    return float(counted.thresholds[chosen])


def certify(
    paired: pd.DataFrame,
    promise: Promise,
    *,
    small: str = "small",
    large: str = "large",
    signal: str = "confidence",
    provenance: Mapping[str, str] | None = None,
) -> Card:
    """The cheapest threshold that keeps a promise, with what was tested on the way.

    Args:
        paired: A row a question: ``dataset, question_id, confidence, small_correct,
            large_correct, small_cost, large_cost``; for ``disagreement`` also ``differ``, whether
            the two answers do (:func:`calibration_questions` makes it of records).
        promise: What to keep. Of a ``budget`` the threshold that defers most is taken.
        small: System that answers first; ``large`` the one that is deferred to.
        large: See ``small``.
        signal: Column of the records that the confidence was read from.
        provenance: Kept on the card.

    Returns:
        The card. Where nothing can be certified its ``threshold`` is None and ``refusal`` says why.

    Raises:
        ValueError: If a question comes twice, or a column is missing or not what it must be.

    Example:
        >>> paired = pd.DataFrame({"dataset": "d", "question_id": [str(i) for i in range(400)],
        ...     "confidence": [0.9, 0.2] * 200, "small_correct": [1, 0] * 200,
        ...     "large_correct": 1, "small_cost": 1.0, "large_cost": 10.0})
        >>> card = certify(paired, Promise("within", 0.02))
        >>> card.threshold, card.expected["deferral_rate"].estimate
        (0.9, 0.5)
    """
    key = ["dataset", "question_id"]
    if (repeats := paired.duplicated(key)).any():
        first = paired.loc[repeats, key].iloc[0].to_dict()
        raise ValueError(
            f"{repeats.sum()} row(s) repeat a question, the first is {first}; expected one row a "
            "question, since the answers to one are not independent"
        )
    counted = _count(paired, promise)
    upwards = promise.kind == "budget"
    chosen, stopped = _search(counted, promise)
    refusal = _refusal(counted, promise, chosen, stopped)
    threshold = None if refusal or chosen is None else float(counted.thresholds[chosen])
    focus = next((i for i in (chosen, stopped) if i is not None), 0)
    n_small = smallest_n(promise)
    stated, right = paired["confidence"], paired["small_correct"].astype(bool)
    both = right[stated.notna()].nunique() == 2
    return Card(
        small=small,
        large=large,
        signal=signal,
        threshold=threshold,
        refusal=refusal,
        guarantee=Guarantee(
            kind=promise.kind, level=promise.level, delta=promise.delta, words=promise.words
        ),
        expected=_expected(paired, DEFER_ALL if threshold is None else threshold),
        questions=counted.n,
        smallest_questions=n_small,
        least_deferral=least_deferral(paired, promise),
        datasets={str(k): int(v) for k, v in paired["dataset"].value_counts().items()},
        table=[
            Tested(
                threshold=float(counted.thresholds[i]), kept=float(counted.kept[i]),
                risk=float(counted.mean[i]), questions=counted.n,
                bound=counted.bound(i, promise),
                certified=chosen is not None and (i >= chosen if upwards else i <= chosen),
            )
            for i in _spread(len(counted.thresholds), focus)
        ],
        recalibration=Recalibration.fit("platt", stated, right) if both else None,
        provenance=dict(provenance or {}),
    )  # fmt: skip


def _spread(n: int, focus: int) -> list[int]:
    """The places to show of n: some around one, and some over all."""
    near = range(max(0, focus - _SHOWN // 6), min(n, focus + _SHOWN // 6 + 1))
    over_all = np.linspace(0, n - 1, min(n, _SHOWN - len(near))).round().astype(int)
    return sorted({*near, *map(int, over_all)})


def _refusal(
    counted: _Counted, promise: Promise, chosen: int | None, stopped: int | None
) -> str | None:
    """Why nothing can be certified that is worth having; None where something can."""
    useful = chosen is not None and (promise.kind == "budget" or counted.kept[chosen] > 0)
    if useful or (chosen is not None and stopped is None):
        return None if useful else "no question has a confidence: all would be deferred"
    assert stopped is not None
    if counted.n < (needed := smallest_n(promise)):
        return (
            f"{counted.n:,} questions cannot certify anything: were nothing lost at all, it "
            f"takes {needed:,} for this promise"
        )
    found = f"{counted.mean[stopped]:.4f}, and {counted.bound(stopped, promise):.4f} at most"
    if promise.kind == "budget":
        unit = promise.max_cost or 1.0
        return (
            f"the cheapest threshold already costs {counted.mean[stopped] * unit:.6g} a question, "
            f"too near to the budget of {promise.level:.6g} or above it"
        )
    at = f"already at {counted.thresholds[stopped]:.4g}, the first threshold that is tested,"
    if counted.kept[stopped] == 0:
        return (
            f"the large model alone is wrong in a share of {found}; {promise.risk:.4f} is allowed"
        )
    share = f"which keeps {counted.kept[stopped]:.2%} of the questions"
    return f"{at} {share}, the loss is {found}; {promise.risk:.4f} is allowed"


def _expected(paired: pd.DataFrame, threshold: float) -> dict[str, Estimate]:
    """What the cascade does on these questions, with intervals by question."""
    deferred = defers(paired["confidence"], threshold)
    large, small = paired["large_correct"].astype(float), paired["small_correct"].astype(float)
    cost = paired["small_cost"] + paired["large_cost"] * deferred
    found: dict[str, Interval] = {
        "accuracy": mean_interval(small.where(~deferred, large), bounds=(0, 1)),
        "large_accuracy": mean_interval(large, bounds=(0, 1)),
        "small_accuracy": mean_interval(small, bounds=(0, 1)),
        "accuracy_drop": mean_interval((large - small) * ~deferred, bounds=(-1, 1)),
        "deferral_rate": mean_interval(pd.Series(deferred), bounds=(0, 1)),
        "cost": mean_interval(cost, bounds=(0, np.inf)),
        "large_cost": mean_interval(paired["large_cost"], bounds=(0, np.inf)),
        "cost_saving": mean_interval(
            paired["large_cost"] - cost, over=paired["large_cost"], bounds=(-np.inf, 1)
        ),
    }
    return {
        name: Estimate(estimate=of.estimate, low=of.low, high=of.high) for name, of in found.items()
    }


# --- what is possible at all ------------------------------------------------------------------


def smallest_n(promise: Promise) -> int:
    """Fewest questions that could certify a promise: were none of them lost, or all for free.

    Example:
        >>> smallest_n(Promise("at_least", 0.98)), smallest_n(Promise("within", 0.02))
        (149, 203)
    """

    def p_value(n: int) -> float:
        if promise.kind == "budget":
            return hoeffding_bentkus_p(0.0, n, promise.risk)
        if promise.kind == "within":
            return paired_p(0, 0, n, promise.risk, set_aside=_SET_ASIDE * promise.delta)
        return binomial_p(0, n, promise.risk)

    return _first(lambda n: p_value(n) <= promise.delta)


def _first(enough: Callable[[int], bool]) -> int:
    """The smallest number from 1 that is enough, where all above it are."""
    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def least_deferral(paired: pd.DataFrame, promise: Promise) -> float | None:
    r"""The least share that must be deferred, whatever the confidence: :math:`\max(0, \mu - r)`.

    :math:`\mu` is the loss of the small model alone, and each deferred question takes away one
    loss at most. An estimate from these questions; None for a budget.
    """
    if promise.kind == "budget":
        return None
    small, large = paired["small_correct"].astype(float), paired["large_correct"].astype(float)
    alone = {
        "within": (large - small).mean(),
        "at_least": 1 - small.mean(),
        "disagreement": paired["differ"].astype(float).mean() if "differ" in paired else np.nan,
    }[promise.kind]
    return float(max(0.0, alone - promise.risk))


def least_abstention(base_risk: float, risk: float) -> float:
    r"""The least share of questions that must go unanswered, whatever the confidence.

    .. math:: \frac{\max(0, \mu - \alpha)}{1 - \alpha}

    with :math:`\mu` the share of wrong answers to all questions and :math:`\alpha` that allowed
    among those answered: what is left out can at best be wrong throughout. Source: arXiv
    2606.29054.

    Example:
        >>> round(least_abstention(0.3, 0.1), 4)
        0.2222
    """
    for name, value in (("base_risk", base_risk), ("risk", risk)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; expected a share in [0, 1]")
    return 0.0 if base_risk <= risk else (base_risk - risk) / (1 - risk)


# --- from records ------------------------------------------------------------------------------


def calibration_questions(
    table: pd.DataFrame,
    small: str,
    large: str,
    *,
    signal: str = "confidence",
    size_ratio: float,
    output_price: float = 4.0,
) -> tuple[pd.DataFrame, str, list[str]]:
    """Records of two systems as :func:`certify` takes them, the unit of cost, and notes.

    Of a question that was answered several times the lowest sample stands for it, since answers to
    one question are not independent; a note says how many were left out. ``differ`` is there where
    both systems have their answers; an answer that is missing differs from all.

    Raises:
        ValueError: If a system has no records, or the small one lacks the signal.
        RecordsError: If the two were not asked the same questions.
    """
    if signal != "confidence":
        of_small = with_signal(select(table, system=small), signal, small)
        table = pd.concat([of_small, select(table, system=large)])
    paired, unit = priced_pair(
        table, small, large, size_ratio=size_ratio, output_price=output_price
    )
    notes = []
    if "answer" in table and table["answer"].notna().any():
        paired["differ"] = answers_differ(table, paired, small, large)
    first = paired.sort_values("sample", kind="stable").drop_duplicates(["dataset", "question_id"])
    if dropped := len(paired) - len(first):
        notes.append(
            f"{dropped:,} further sample(s) left out: a threshold is certified on one answer a "
            "question"
        )
    return first.sort_index().reset_index(drop=True), unit, notes


def answers_differ(
    table: pd.DataFrame, paired: pd.DataFrame, small: str, large: str
) -> NDArray[np.bool_]:
    """Whether the answers of two systems differ on paired questions, shape (n,).

    One that is missing differs from all.
    """
    key = ["dataset", "question_id", "sample"]
    order = pd.MultiIndex.from_frame(paired[key])
    of_small, of_large = (
        select(table, system=name).set_index(key)["answer"].loc[order] for name in (small, large)
    )
    return ~(of_small == of_large).fillna(False).to_numpy(dtype=bool)


def certify_records(
    records: Records,
    small: str,
    large: str,
    promise: Promise,
    *,
    signal: str = "confidence",
    size_ratio: float,
    output_price: float = 4.0,
) -> tuple[Card, pd.DataFrame, list[str]]:
    """The card of two systems of a file with its prices, the questions it is of, and notes.

    :func:`calibration_questions` and :func:`certify` say what is taken and refused.
    """
    prices = {"size_ratio": size_ratio, "output_price": output_price}
    paired, unit, notes = calibration_questions(
        records.table, small, large, signal=signal, size_ratio=size_ratio, output_price=output_price
    )
    told = {"source": records.source, "corea": corea.__version__}
    told |= {f"records: {key}": str(value) for key, value in records.provenance.items()}
    card = certify(paired, promise, small=small, large=large, signal=signal, provenance=told)
    return card.model_copy(update={"cost_unit": unit, "prices": prices}), paired, notes
