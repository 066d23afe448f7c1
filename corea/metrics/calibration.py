r"""Calibration: how far stated confidences are from the accuracy they announce.

Every metric takes

- ``confidence``, shape (n,), in [0, 1],
- ``correct``, shape (n,), boolean or 0/1,
- ``weight``, shape (n,), from 0: how many times each row counts, once when None. A row of weight 3
  is three equal rows, which is how :mod:`corea.metrics.intervals` resamples questions.

Those with bins take their number, ``n_bins``, from 1, and ``binning``, ``"equal_width"`` or
``"equal_mass"``; one function, :func:`bin_by_confidence`, makes them. Bad input is refused by
:mod:`corea.checks` with a ``ValueError`` that names the first such row, or a ``TypeError`` where an
array is not numeric. All errors and scores are in [0, 1].

Deviations from the papers, and choices they leave open:

1. Neither paper states its number of bins; 10 is the default here. ECEs with different
   numbers of bins, or different binnings, are not comparable.
2. A confidence closer to the edge of an equal-width bin than four machine epsilons of its
   own dtype (relative) is on the edge, so that 0.3 lands in (0.2, 0.3] whether it came as
   float32 or float64 and whatever 3/10 rounds to. A value that was float32 once and comes
   as float64 keeps the error of float32: pass it as float32.
3. Equal-mass bins (paper B, after Nixon et al. 2019) never separate equal confidences, so
   they do not depend on the order of rows. Stated confidences take few values; there may
   then be fewer bins than asked for.
4. A missing confidence is an error, never 0: select the rows that have one and report
   :func:`confidence_output_ratio` beside the metric.
5. AUROC and the Brier skill are NaN where all answers are correct, or none is.
6. The marginal calibration error is Kumar et al.'s plug-in estimate, without their
   debiasing; paper B does not say which it reports.
7. ECE of a finite sample is biased upwards: a perfectly calibrated system has a positive
   one. Intervals take account of that (:mod:`corea.metrics.intervals`, point 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea import checks

Floats = NDArray[np.float64]
Binning = Literal["equal_width", "equal_mass"]

_EDGE_EPSILONS = 4  # a decimal and k/n_bins are each rounded, and so is their product


@dataclass(frozen=True)
class Bins:
    """What is in each bin, in rising order of confidence.

    Equal-width bins that are empty stay, with count 0 and NaN means; equal-mass bins
    are never empty.

    Attributes:
        lower: Lower edge, excluded (but 0 is in the first bin); of an equal-mass bin its
            smallest confidence. Shape (b,).
        upper: Upper edge, included; of an equal-mass bin its largest confidence.
        count: Number of rows (sum of their weights).
        confidence: Mean confidence, NaN in an empty bin.
        accuracy: Share of correct answers, NaN in an empty bin.
    """

    lower: Floats
    upper: Floats
    count: Floats
    confidence: Floats
    accuracy: Floats

    @property
    def gap(self) -> Floats:
        """Distance of accuracy and mean confidence; 0 in an empty bin."""
        return np.where(self.count > 0, np.abs(self.accuracy - self.confidence), 0.0)


def bin_by_confidence(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    n_bins: int = 10,
    binning: Binning = "equal_width",
    weight: ArrayLike | None = None,
) -> Bins:
    r"""Sort answers into bins of similar confidence.

    *Equal width*: bin :math:`m = 1..M` is :math:`((m-1)/M,\ m/M]`, and 0 is in the first.
    An edge is met within four machine epsilons of the input's dtype (relative).

    *Equal mass*: the rows, sorted by confidence, are cut into M parts whose sizes differ
    by at most one, larger ones first (``numpy.array_split``). Equal confidences stay
    together, in the part that holds the middle of their run; a middle that is exactly on
    a cut belongs to the upper part. Parts left empty by that are dropped.

    Source: equal width: paper A, section 4.3, equation (7); equal mass: paper B, section 2,
    "bins of equal size", after Nixon et al. (2019).

    Example:
        >>> bins = bin_by_confidence([0.0, 0.1, 0.3, 0.4, 1.0], [0, 0, 1, 0, 1], n_bins=5)
        >>> bins.count.tolist(), bins.upper.tolist()
        ([2.0, 2.0, 0.0, 0.0, 1.0], [0.2, 0.4, 0.6, 0.8, 1.0])
    """
    rows = _validated(confidence, correct, weight)
    _check_bins(n_bins, binning)
    if binning == "equal_width":
        part = _equal_width(rows, n_bins)
        edges = np.arange(n_bins + 1) / n_bins
        lower, upper = edges[:-1], edges[1:]
        count = _sums(part, rows.weight, n_bins)
        confidence_sum = _sums(part, rows.weight * rows.confidence, n_bins)
        correct_sum = _sums(part, rows.weight * rows.correct, n_bins)
    else:
        cells = _cells(rows)
        start = _cuts(cells.n.sum(), n_bins)
        middle = np.cumsum(cells.n) - cells.n / 2
        part = np.unique(np.searchsorted(start, middle, side="right"), return_inverse=True)[1]
        leads = np.flatnonzero(np.diff(part, prepend=-1))
        lower = cells.confidence[leads]
        upper = cells.confidence[np.append(leads[1:], len(part)) - 1]
        count = _sums(part, cells.n)
        confidence_sum = _sums(part, cells.n * cells.confidence)
        correct_sum = _sums(part, cells.correct)
    divisor = np.where(count > 0, count, np.nan)
    return Bins(lower, upper, count, confidence_sum / divisor, correct_sum / divisor)


def expected_calibration_error(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    n_bins: int = 10,
    binning: Binning = "equal_width",
    weight: ArrayLike | None = None,
) -> float:
    r"""Mean distance of accuracy and confidence over bins, weighted by their counts (ECE).

    .. math:: \mathrm{ECE} = \sum_{m=1}^{M} \frac{|B_m|}{n}
        \left|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)\right|

    Source: paper A, section 4.3, equation (7); paper B, section 2, with
    ``binning="equal_mass"`` (there also called adaptive calibration error).

    Example:
        Three answers at 0.9, two of them right, and one wrong at 0.25:
        3/4 * \|2/3 - 0.9\| + 1/4 * \|0 - 0.25\|.

        >>> round(expected_calibration_error([0.9, 0.9, 0.9, 0.25], [1, 1, 0, 0]), 4)
        0.2375
    """
    bins = bin_by_confidence(confidence, correct, n_bins=n_bins, binning=binning, weight=weight)
    return float(bins.count @ bins.gap / bins.count.sum())


def resampled_errors(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    weight: Floats,
    n_bins: int = 10,
    binning: Binning = "equal_width",
) -> Floats:
    """:func:`expected_calibration_error` under each of many weights, shape (b, n), at once.

    Equal-width bins stay where they are; equal-mass bins are cut again under every weight. The
    error is NaN where a weight is 0 in every row.
    """
    rows = _validated(confidence, correct, None)
    _check_bins(n_bins, binning)
    order = rows.confidence.argsort(kind="stable")
    ranked, gap = rows.confidence[order], (rows.confidence - rows.correct)[order]
    if (np.diff(order) != 1).any():
        weight = weight[:, order]
    total = weight.sum(axis=1)
    if binning == "equal_width":
        part = _equal_width(rows._replace(confidence=ranked), n_bins)
        ends = np.append(np.flatnonzero(np.diff(part, prepend=-1)), len(part))
        pieces = [weight[:, a:b] @ gap[a:b] for a, b in pairwise(ends)]
        error = np.abs(pieces).sum(axis=0)
    else:
        first = np.flatnonzero(np.diff(ranked, prepend=-1.0))
        count = np.add.reduceat(weight, first, axis=1)
        gaps = np.add.reduceat(weight * gap, first, axis=1)
        error = np.empty(len(weight))
        for i, (n, of_cell) in enumerate(zip(count, gaps, strict=True)):
            starts = np.unique(np.searchsorted(np.cumsum(n) - n / 2, _cuts(n.sum(), n_bins)))
            error[i] = np.abs(np.add.reduceat(of_cell, starts[starts < len(n)])).sum()
    return np.asarray(error / np.where(total > 0, total, np.nan))


expected_calibration_error.of_weights = resampled_errors  # type: ignore[attr-defined]


def maximum_calibration_error(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    n_bins: int = 10,
    binning: Binning = "equal_width",
    weight: ArrayLike | None = None,
) -> float:
    r"""Largest distance of accuracy and confidence in any bin.

    .. math:: \max_m \left|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)\right|

    A bin of one answer counts in full. Often abbreviated MCE, as is the marginal calibration error
    of paper B's Table 6.

    Source: Guo et al. (2017), with the bins of :func:`bin_by_confidence`.

    Example:
        >>> round(maximum_calibration_error([0.9, 0.9, 0.9, 0.25], [1, 1, 0, 0]), 4)
        0.25
    """
    bins = bin_by_confidence(confidence, correct, n_bins=n_bins, binning=binning, weight=weight)
    return float(bins.gap.max())


def static_calibration_error(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    n_bins: int = 10,
    weight: ArrayLike | None = None,
) -> float:
    r"""ECE of every option's probability, averaged over options (SCE).

    .. math:: \mathrm{SCE} = \frac{1}{K}\sum_{k=1}^{K}\sum_{m=1}^{M} \frac{|B_{mk}|}{n}
        \left|\mathrm{acc}(B_{mk}) - \mathrm{conf}(B_{mk})\right|

    where bin :math:`B_{mk}` sorts all n questions by the probability of option k, and
    acc is the share of them whose right option is k. Bins have equal width.

    Source: Nixon et al. (2019); paper B, Table 6.

    Args:
        probabilities: Of each option, in [0, 1], shape (n, K), K from 2. A row may sum to
            less than 1 (options are few tokens of a softmax over many), never to more.
        labels: Index of the right option, 0 to K - 1, shape (n,).
        n_bins: Number of bins M, from 1.
        weight: Multiplicity of each row.

    Example:
        Two questions, each option off by 0.2 in its one occupied bin or by 0.3 in the other:

        >>> round(static_calibration_error([[0.8, 0.2], [0.3, 0.7]], [0, 1]), 4)
        0.25
    """
    options = _one_against_rest(probabilities, labels)
    return float(
        np.mean(
            [
                expected_calibration_error(probability, right, n_bins=n_bins, weight=weight)
                for probability, right in options
            ]
        )
    )


def marginal_calibration_error(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    n_bins: int = 10,
    binning: Binning = "equal_mass",
    weight: ArrayLike | None = None,
) -> float:
    r"""Root mean square calibration error of every option's probability.

    With :math:`p_k` the probability of option k, the quantity defined is
    :math:`(\frac{1}{K}\sum_k \mathrm{E}[(p_k - \mathrm{P}(Y = k \mid p_k))^2])^{1/2}`, options
    equally important. It is estimated by bins, without debiasing:

    .. math:: \left(\frac{1}{K}\sum_{k=1}^{K}\sum_{m=1}^{M} \frac{|B_{mk}|}{n}
        \left(\mathrm{acc}(B_{mk}) - \mathrm{conf}(B_{mk})\right)^2\right)^{1/2}

    In the same bins it is never below :func:`static_calibration_error`.

    Source: Kumar et al. (2019), section 2; paper B, Table 6 (its "MCE").

    Args:
        probabilities: As in :func:`static_calibration_error`, like ``labels``.
        labels: Index of the right option.
        n_bins: Number of bins M, from 1.
        binning: ``"equal_mass"``, as Kumar et al. recommend, or ``"equal_width"``.
        weight: Multiplicity of each row.

    Example:
        The square root of (0.2**2 + 0.3**2) / 2, in bins of one question each:

        >>> round(marginal_calibration_error([[0.8, 0.2], [0.3, 0.7]], [0, 1]), 4)
        0.255
    """
    squares = []
    for probability, right in _one_against_rest(probabilities, labels):
        bins = bin_by_confidence(probability, right, n_bins=n_bins, binning=binning, weight=weight)
        squares.append(bins.count @ bins.gap**2 / bins.count.sum())
    return float(np.sqrt(np.mean(squares)))


def brier_score(
    confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None
) -> float:
    r"""Mean squared distance of confidence and correctness.

    .. math:: \frac{1}{n}\sum_{i=1}^{n} (c_i - y_i)^2

    Source: Brier (1950); the calibration reward that paper A compares with (section 3.2).

    Example:
        >>> round(brier_score([0.9, 0.4], [1, 0]), 4)  # (0.1**2 + 0.4**2) / 2
        0.085
    """
    rows = _validated(confidence, correct, weight)
    return float(rows.weight @ (rows.confidence - rows.correct) ** 2 / rows.weight.sum())


def brier_skill(
    confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None
) -> float:
    r"""How much better the Brier score is than that of the accuracy, stated for every answer.

    .. math:: 1 - \frac{\frac{1}{n}\sum_i (c_i - y_i)^2}{a (1 - a)}, \qquad
        a = \frac{1}{n}\sum_i y_i

    1 is perfect; 0 is what the constant a has, which is calibrated and tells no answer from
    another; below 0 the constant is better. NaN where all answers are correct or none is.

    Source: Murphy (1973), with the accuracy of the same answers for a reference.

    Example:
        Two right and two wrong: the constant 0.5 has 0.25, these have 0.09.

        >>> round(brier_skill([0.9, 0.5, 0.1, 0.3], [1, 1, 0, 0]), 4)  # 1 - 0.09 / 0.25
        0.64
    """
    rows = _validated(confidence, correct, weight)
    accuracy = float(rows.weight @ rows.correct / rows.weight.sum())
    if accuracy in (0.0, 1.0):
        return float("nan")
    return 1 - brier_score(confidence, correct, weight=weight) / (accuracy * (1 - accuracy))


def auroc(confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    r"""Chance that a correct answer has more confidence than a wrong one (ties count half).

    .. math:: \mathrm{P}(c_i > c_j \mid y_i = 1, y_j = 0)
        + \tfrac{1}{2}\,\mathrm{P}(c_i = c_j \mid y_i = 1, y_j = 0)

    which is the area under the ROC curve that the paper integrates. 0.5 says nothing; NaN where
    all answers are correct or none is.

    Source: paper A, section 4.3, equation (8); paper B, Table 7.

    Example:
        The right answer at 0.9 beats the wrong one at 0.5 and ties with the one at 0.9:

        >>> auroc([0.9, 0.9, 0.5], [1, 0, 0])
        0.75
    """
    cells = _cells(_validated(confidence, correct, weight))
    wrong = cells.n - cells.correct
    if not cells.correct.any() or not wrong.any():
        return float("nan")
    # pairs of a right and a wrong row: the right one is above, or they tie; in a resample
    # of few questions this takes a twentieth of scikit-learn's time
    above = np.cumsum(wrong) - wrong / 2
    return float(cells.correct @ above / (cells.correct.sum() * wrong.sum()))


def smooth_ece(
    confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None
) -> float:
    r"""Calibration error by kernel smoothing: no bins, no edges.

    The residuals :math:`y_i - c_i` are smoothed with a Gaussian kernel reflected at 0 and
    1, whose width is the one at which width and error are equal. Weights must be whole numbers:
    the package takes none, so rows are repeated.

    Source: Blasiok and Nakkiran (2023), computed by their package relplot.

    Example:
        Always certain, right half the time: about 0.5, less what smoothing takes.

        >>> 0.45 < smooth_ece([1.0] * 100, [0, 1] * 50) < 0.5
        True
    """
    from relplot import smECE

    rows = _validated(confidence, correct, weight)
    times = rows.weight.astype(np.int64)
    if (fractions := np.flatnonzero(times != rows.weight)).size:
        raise ValueError(
            f"weight must be whole numbers for smooth_ece: {fractions.size} of {len(times)} "
            f"are not, the first is row {fractions[0]} with {rows.weight[fractions[0]]}"
        )
    return float(smECE(np.repeat(rows.confidence, times), np.repeat(rows.correct, times)))


def describe_stated(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    n_bins: int = 10,
    binning: Binning = "equal_width",
) -> dict[str, float]:
    """How confidences that completions stated are spread, and how they fit correctness.

    ``pass_at_1`` and ``confidence_output_ratio`` are of all; ``ece``, ``auroc``,
    ``mean_confidence``, ``distinct_confidences`` (how many), ``share_at_0`` and ``share_at_1`` of
    those that state a confidence, NaN where none does.

    Example:
        >>> found = describe_stated([1.0, float("nan")], [1, 0])
        >>> found["pass_at_1"], found["confidence_output_ratio"], found["share_at_1"]
        (0.5, 0.5, 1.0)
    """
    every = checks.unit_interval(np.asarray(confidence, float), "confidence", missing=True)
    right = checks.verdicts(correct)
    checks.same_length(confidence=every, correct=right)
    known = ~np.isnan(every)
    stated, of_stated = every[known], right[known]
    nothing = not len(stated)
    bins: dict[str, Any] = {"n_bins": n_bins, "binning": binning}
    return {
        "pass_at_1": float(right.mean()),
        "ece": np.nan if nothing else expected_calibration_error(stated, of_stated, **bins),
        "auroc": np.nan if nothing else auroc(stated, of_stated),
        "confidence_output_ratio": confidence_output_ratio(every),
        "mean_confidence": np.nan if nothing else float(stated.mean()),
        "distinct_confidences": float(np.unique(stated).size),
        "share_at_0": np.nan if nothing else float((stated == 0).mean()),
        "share_at_1": np.nan if nothing else float((stated == 1).mean()),
    }


def confidence_output_ratio(confidence: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Share of responses from which a confidence could be read, the others being NaN.

    Source: paper A, section 4.3.

    Example:
        >>> confidence_output_ratio([0.9, float("nan"), 0.2, 1.0])
        0.75
    """
    stated = checks.unit_interval(confidence, "confidence", missing=True)
    multiplicity = _multiplicity(weight, len(stated))
    return float(multiplicity @ ~np.isnan(stated) / multiplicity.sum())


def reliability_curve(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    n_bins: int = 10,
    binning: Binning = "equal_width",
    level: float = 0.95,
    weight: ArrayLike | None = None,
) -> pd.DataFrame:
    r"""The data of a reliability diagram: what :func:`expected_calibration_error` bins.

    The interval of a bin's accuracy is Wilson's, for independent answers; several samples
    of one question are not independent, and the interval is then too narrow.

    .. math:: \frac{1}{1 + z^2/n}\left(\bar y + \frac{z^2}{2n}
        \pm z\sqrt{\frac{\bar y(1 - \bar y)}{n} + \frac{z^2}{4n^2}}\right)

    Source: paper B, section 2 and Figure 1; Wilson (1927).

    A row per bin: ``lower, upper, count, confidence, accuracy, accuracy_low, accuracy_high``; an
    empty bin has count 0 and NaN elsewhere.

    Example:
        >>> curve = reliability_curve([0.9, 0.8, 0.3], [1, 0, 0], n_bins=2)
        >>> curve[["count", "confidence", "accuracy"]].round(2).values.tolist()
        [[1.0, 0.3, 0.0], [2.0, 0.85, 0.5]]
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a number between 0 and 1")
    bins = bin_by_confidence(confidence, correct, n_bins=n_bins, binning=binning, weight=weight)
    count = np.where(bins.count > 0, bins.count, np.nan)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = bins.accuracy + z**2 / (2 * count)
    spread = z * np.sqrt(bins.accuracy * (1 - bins.accuracy) / count + (z / (2 * count)) ** 2)
    shrink = 1 + z**2 / count
    return pd.DataFrame(
        {
            "lower": bins.lower,
            "upper": bins.upper,
            "count": bins.count,
            "confidence": bins.confidence,
            "accuracy": bins.accuracy,
            # at accuracy 0 and 1 a bound equals it, but for rounding
            "accuracy_low": np.clip((centre - spread) / shrink, 0, bins.accuracy),
            "accuracy_high": np.clip((centre + spread) / shrink, bins.accuracy, 1),
        }
    )


def risk_coverage_curve(
    confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None
) -> pd.DataFrame:
    r"""Error rate among the most confident answers, at every distinct confidence.

    .. math:: \mathrm{coverage}(t) = \frac{|\{i: c_i \ge t\}|}{n}, \qquad
        \mathrm{risk}(t) = 1 - \mathrm{acc}(\{i: c_i \ge t\})

    Source: El-Yaniv and Wiener (2010).

    A row per distinct confidence, highest first: ``threshold, coverage, risk``.

    Example:
        >>> risk_coverage_curve([0.9, 0.9, 0.5, 0.1], [1, 0, 1, 0]).values.tolist()
        [[0.9, 0.5, 0.5], [0.5, 0.75, 0.3333333333333333], [0.1, 1.0, 0.5]]
    """
    cells = _cells(_validated(confidence, correct, weight))
    answered = np.cumsum(cells.n[::-1])
    wrong = np.cumsum((cells.n - cells.correct)[::-1])
    return pd.DataFrame(
        {
            "threshold": cells.confidence[::-1],
            "coverage": answered / answered[-1],
            "risk": wrong / answered,
        }
    )


def area_under_risk_coverage(
    confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None
) -> float:
    r"""Mean error rate among the i most confident answers, over i = 1..n (AURC).

    .. math:: \frac{1}{n}\sum_{i=1}^{n} \frac{1}{i}\sum_{j=1}^{i} (1 - y_{(j)})

    where (1), (2), ... sorts by falling confidence. Answers of equal confidence come in
    every order with equal chance, and the value is the expectation over those orders, so
    the order of rows does not matter: with a rows before and :math:`a_w` of them wrong, a
    run of m rows of error rate r adds
    :math:`m r + (a_w - a r)(H_{a+m} - H_a)`, H being harmonic numbers (the digamma function where
    weights are no whole numbers). Random confidence gets the overall error rate.

    Source: Geifman et al. (2019), with ties in expectation.

    Example:
        One right, one wrong at the same confidence: first 1/2 in expectation, then 1/2.

        >>> area_under_risk_coverage([0.9, 0.9], [1, 0])
        0.5
    """
    from scipy.special import digamma

    cells = _cells(_validated(confidence, correct, weight))
    count = cells.n[::-1]
    wrong = count - cells.correct[::-1]
    after = np.cumsum(count)
    before = after - count
    wrong_before = np.cumsum(wrong) - wrong
    harmonic = digamma(after + 1) - digamma(before + 1)
    return float(np.sum(wrong + (wrong_before - before * wrong / count) * harmonic) / after[-1])


class _Rows(NamedTuple):
    """Checked input of a metric."""

    confidence: Floats
    correct: Floats
    weight: Floats
    epsilon: float  # machine epsilon of the confidences as they came


class _Cells(NamedTuple):
    """Rows by distinct confidence, rising; only those of positive weight."""

    confidence: Floats
    n: Floats
    correct: Floats


def _equal_width(rows: _Rows, n_bins: int) -> NDArray[np.intp]:
    scaled = rows.confidence * n_bins
    nearest = np.rint(scaled)
    on_edge = np.abs(scaled - nearest) <= _EDGE_EPSILONS * rows.epsilon * nearest
    return np.maximum(np.where(on_edge, nearest, np.ceil(scaled)), 1).astype(np.intp) - 1


def _cuts(total: float, n_bins: int) -> Floats:
    """Where equal-mass bins begin, counted in rows."""
    size, remainder = divmod(total, n_bins)
    first = np.arange(n_bins)
    return np.asarray(first * size + np.minimum(first, remainder))


def _cells(rows: _Rows) -> _Cells:
    kept = rows.weight > 0
    values, group = np.unique(rows.confidence[kept], return_inverse=True)
    weight = rows.weight[kept]
    return _Cells(values, _sums(group, weight), _sums(group, weight * rows.correct[kept]))


def _sums(group: NDArray[np.intp], values: Floats, n_groups: int = 0) -> Floats:
    return np.bincount(group, values, n_groups).astype(np.float64, copy=False)


def _validated(confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None) -> _Rows:
    """Check what every metric takes; the one place where its rules are written."""
    stated = checks.unit_interval(confidence, "confidence")
    right = checks.verdicts(correct)
    checks.same_length(confidence=stated, correct=right)
    epsilon = np.finfo(stated.dtype).eps if stated.dtype.kind == "f" else 0.0
    return _Rows(
        stated.astype(np.float64, copy=False),
        right,
        _multiplicity(weight, len(stated)),
        max(float(epsilon), float(np.finfo(np.float64).eps)),
    )


def _multiplicity(weight: ArrayLike | None, n: int) -> Floats:
    if weight is None:
        return np.ones(n)
    array = checks.not_negative(checks.numbers(weight, "weight"), "weight", n)
    if not array.any():
        raise ValueError("weight is 0 in every row: a metric needs at least one row")
    return array


def _check_bins(n_bins: int, binning: str) -> None:
    checks.whole(n_bins, "n_bins", 1)
    checks.one_of(binning, "binning", ("equal_width", "equal_mass"))


def _one_against_rest(
    probabilities: ArrayLike, labels: ArrayLike
) -> list[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Check options' probabilities; per option: its probability, whether it is right."""
    table = np.asarray(probabilities)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ValueError(f"probabilities must have shape (n, K), K from 2, found {table.shape}")
    columns = [
        checks.unit_interval(column, f"probabilities of option {k}")
        for k, column in enumerate(table.T)
    ]
    total = np.sum(columns, axis=0)
    # a softmax in half precision is off by some 1e-3
    if (above := np.flatnonzero(total > 1.005)).size:
        raise ValueError(
            f"probabilities must not sum to more than 1: {above.size} of {len(total)} rows do, "
            f"the first is row {above[0]} with {total[above[0]]}"
        )
    right = np.asarray(labels)
    if right.shape != total.shape or right.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be {len(total)} whole numbers, shape ({len(total)},), found shape "
            f"{right.shape} of dtype {right.dtype}"
        )
    if (other := np.flatnonzero((right < 0) | (right >= len(columns)))).size:
        raise ValueError(
            f"labels must be from 0 to {len(columns) - 1}: {other.size} of {len(right)} are "
            f"not, the first is row {other[0]} with {right[other[0]]}"
        )
    return [(column, right == k) for k, column in enumerate(columns)]
