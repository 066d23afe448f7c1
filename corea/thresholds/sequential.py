r"""Promises watched one question at a time: the drift alarm, and certifying on a budget of labels.

Both bet against a hypothesis. A bettor who stakes the share :math:`\lambda` of his wealth on each
question has after t questions

.. math:: W_t(\lambda) = \prod_{i \le t} \bigl(1 + \lambda (L_i - r)\bigr)

which no stake can make grow in the mean while the mean loss stays at r or below. A mean of such
wealths over stakes, fixed in advance, is an e-process: it ever reaches :math:`1/\delta` with
probability :math:`\delta` at most (Ville), so one may look after every question and stop at any
time. Source: Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by
betting".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from corea import checks
from corea.thresholds.certify import THRESHOLDS, distinct_thresholds

Floats = NDArray[np.float64]

_STAKES = np.geomspace(0.01, 0.95, 24)  # shares of the largest stake that cannot ruin
_HOPELESS = 3.0  # standard errors above the risk at which labels are no longer spent on a threshold
_LEAST_SEEN = 30


def _log_mean_exp(logs: Floats) -> Floats:
    """Logarithm of the mean over the last axis."""
    found: Floats = np.logaddexp.reduce(logs, axis=-1) - np.log(logs.shape[-1])
    return found


class DriftAlarm:
    """Fires when audited questions show that a promise is no longer kept.

    An audited question is one whose loss became known after the cascade answered: both models were
    asked, or somebody judged the answer. While the mean loss stays at the risk or below, the alarm
    ever fires with probability ``delta`` at most, however long it runs. So that a change is seen
    late as well as early, the wealth is shared out among bettors who begin one after the other, at
    each 25th question and later on at each twentieth part of those seen; the k-th has the share
    :math:`1/(k (k + 1))`.

    Args:
        risk: The mean loss that is promised, in (0, 1).
        delta: Probability of a false alarm, ever.

    Attributes:
        seen: Questions audited.
        fired_at: The question at which it fired; None while it has not.

    Example:
        >>> alarm = DriftAlarm(0.02)
        >>> any(alarm.update(0) for _ in range(1000)), alarm.fired_at
        (False, None)
        >>> while not alarm.update(1):
        ...     pass
        >>> alarm.fired_at
        1020
    """

    def __init__(self, risk: float, delta: float = 0.05) -> None:
        """Start with a wealth of 1."""
        for name, value in (("risk", risk), ("delta", delta)):
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value}; expected a number between 0 and 1")
        self.risk, self.delta = risk, delta
        self.seen = 0
        self.fired_at: int | None = None
        # a loss can be -1, where the cascade was right and the large model wrong
        self._stakes = _STAKES / (1 + risk)
        self._wealth = np.empty((0, len(_STAKES)))  # logarithms, a row a bettor
        self._next = 0

    @property
    def evidence(self) -> float:
        """The wealth: 1 at first, and an alarm at ``1 / delta``."""
        k = np.arange(1, len(self._wealth) + 1)
        unspent = 1 / (len(k) + 1)
        if not len(k):
            return unspent
        logs = _log_mean_exp(self._wealth) - np.log(k * (k + 1))
        with np.errstate(over="ignore"):
            return float(np.exp(logs).sum()) + unspent

    def update(self, loss: float) -> bool:
        """Take in the loss of one audited question, in [-1, 1]; whether the alarm has fired."""
        if not -1 <= loss <= 1:
            raise ValueError(f"loss is {loss}; expected a number in [-1, 1]")
        if self.seen == self._next:
            self._wealth = np.vstack([self._wealth, np.zeros(len(_STAKES))])
            self._next += max(25, self.seen // 20)
        self.seen += 1
        self._wealth += np.log1p(self._stakes * (loss - self.risk))
        if self.fired_at is None and self.evidence >= 1 / self.delta:
            self.fired_at = self.seen
        return self.fired_at is not None


@dataclass(frozen=True)
class Budgeted:
    """What was certified, question by question, and what it took.

    Attributes:
        threshold: The lowest certified; None where only deferring everything is.
        labels: Questions that were judged.
        questions: Questions that both models answered, up to the last one looked at.
        history: A row a label: ``labels, questions, threshold`` (missing while there is none).
    """

    threshold: float | None
    labels: int
    questions: int
    history: pd.DataFrame = field(repr=False)


def certify_by_labels(
    confidence: Sequence[float] | Floats,
    differ: Sequence[bool] | NDArray[np.bool_],
    judge: Callable[[int], tuple[bool, bool]],
    *,
    within: float,
    delta: float = 0.05,
    max_labels: int | None = None,
    thresholds: Floats = THRESHOLDS,
    seed: int = 0,
) -> Budgeted:
    """Certify a threshold while asking for as few correct answers as possible.

    Both models answered all questions; whether an answer is correct has a price. A question on
    which the models agree loses nothing at any threshold, whatever is correct, so it needs no
    label; neither does one that is deferred at every threshold still in play. Thresholds are in
    play from the top down to where the loss seen is three standard errors above ``within``: those
    below are given up for good. That choice cannot break the promise, it only forgoes savings.
    Certified are all thresholds from the top whose wealth, bet against "the loss is above
    ``within``", has ever reached ``1 / delta``: valid at whatever question one stops.

    Args:
        confidence: Of the small model, shape (n,); missing ones defer.
        differ: Whether the two answers differ, shape (n,).
        judge: From the place of a question to whether the small and the large model are right.
        within: Accuracy that may be lost against the large model.
        delta: Probability, at most, that more is lost.
        max_labels: Labels that may be asked for; all that are worth it by default.
        thresholds: To try, fixed in advance.
        seed: Of the order of the questions.

    Example:
        Of 400 questions the models differ on 40, all of low confidence.

        >>> low = np.arange(400) % 10 == 0
        >>> found = certify_by_labels(np.where(low, 0.2, 0.9), low, lambda i: (False, True),
        ...     within=0.02)
        >>> found.threshold, found.labels < 40
        (0.9, True)
    """
    stated = checks.unit_interval(np.asarray(confidence, dtype=float), "confidence", missing=True)
    apart = checks.verdicts(np.asarray(differ), "differ").astype(bool)
    checks.same_length(confidence=stated, differ=apart)
    if not 0 < within < 1 or not 0 < delta < 1:
        raise ValueError(f"within is {within} and delta {delta}; expected shares between 0 and 1")
    most = len(stated) if max_labels is None else max_labels
    known = np.nan_to_num(stated, nan=-1.0)
    levels, kept = distinct_thresholds(known, thresholds)
    stakes = _STAKES / (1 - within)
    wealth = np.zeros((len(levels), len(stakes)))
    # what no question is kept at loses nothing
    passed = kept == 0
    total, squares = np.zeros(len(levels)), np.zeros(len(levels))
    in_play, labels, asked = len(levels), 0, 0
    history: list[dict[str, float]] = []
    for seen, i in enumerate(np.random.default_rng(seed).permutation(len(stated)), start=1):
        loss = np.zeros(in_play)
        if apart[i] and (keeps := known[i] >= levels[:in_play]).any():
            if labels == most:
                break
            small, large = judge(int(i))
            labels += 1
            loss[keeps] = float(large) - float(small)
        asked = seen
        wealth[:in_play] += np.log1p(stakes * (within - loss[:, None]))
        total[:in_play] += loss
        squares[:in_play] += loss**2
        passed[:in_play] |= _log_mean_exp(wealth[:in_play]) >= np.log(1 / delta)
        certified = int(np.logical_and.accumulate(passed).sum())
        if seen >= _LEAST_SEEN:
            mean = total[:in_play] / seen
            error = np.sqrt(np.maximum(squares[:in_play] / seen - mean**2, 1 / seen) / seen)
            hopeless = (mean > within + _HOPELESS * error) & ~passed[:in_play]
            if hopeless.any():
                in_play = max(certified, int(hopeless.argmax()))
        if history and history[-1]["labels"] == labels:
            history.pop()
        useful = certified and kept[certified - 1] > 0
        lowest = float(levels[certified - 1]) if useful else np.nan
        history.append({"labels": labels, "questions": seen, "threshold": lowest})
        if certified == in_play:
            break
    found = history[-1]["threshold"] if history else np.nan
    table = pd.DataFrame(history, columns=["labels", "questions", "threshold"])
    return Budgeted(None if np.isnan(found) else float(found), labels, asked, table)
