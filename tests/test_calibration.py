"""Calibration metrics: the mathematics, the bin edges, the contract."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from corea.metrics.calibration import (
    area_under_risk_coverage,
    auroc,
    bin_by_confidence,
    brier_score,
    brier_skill,
    confidence_output_ratio,
    describe_stated,
    expected_calibration_error,
    marginal_calibration_error,
    maximum_calibration_error,
    reliability_curve,
    resampled_errors,
    risk_coverage_curve,
    smooth_ece,
    static_calibration_error,
)

equal_mass_ece = partial(expected_calibration_error, binning="equal_mass")
METRICS = {
    "ece": expected_calibration_error,
    "ece, equal mass": equal_mass_ece,
    "maximum": maximum_calibration_error,
    "brier": brier_score,
    "brier skill": brier_skill,
    "auroc": auroc,
    "smooth ece": smooth_ece,
    "aurc": area_under_risk_coverage,
}
# a first call imports scikit-learn or relplot: no deadline
unhurried = settings(deadline=None)
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def answers(min_size: int = 1) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Confidences with many ties and edges, some arbitrary ones, and correctness."""
    confidence = st.one_of(
        st.integers(0, 20).map(lambda k: k / 20), st.floats(0, 1, allow_subnormal=False)
    )
    rows = st.lists(st.tuples(confidence, st.booleans()), min_size=min_size, max_size=30)
    return rows.map(lambda r: (np.array([c for c, _ in r]), np.array([y for _, y in r])))


def simulated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    confidence = random.integers(0, 21, n) / 20
    return confidence, random.random(n) < 0.2 + 0.6 * confidence


# --- bins -----------------------------------------------------------------------------


def exact_bin(tenths: int, n_bins: int) -> int:
    return max(math.ceil(Fraction(tenths, 10) * n_bins), 1) - 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n_bins", [5, 10, 15, 20])
def test_tenths_land_in_the_stated_bin(dtype: type, n_bins: int) -> None:
    tenths = range(11)
    confidence = np.array([f"0.{k}" if k < 10 else "1.0" for k in tenths], dtype=dtype)
    found = [int(bin_by_confidence([c], [1], n_bins=n_bins).count.argmax()) for c in confidence]
    assert found == [exact_bin(k, n_bins) for k in tenths]
    together = bin_by_confidence(confidence, np.ones(11), n_bins=n_bins)
    assert together.count.tolist() == np.bincount(found, minlength=n_bins).tolist()


@pytest.mark.parametrize("n_bins", [3, 7, 10, 15, 20, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_edge_closes_the_bin_below(dtype: type, n_bins: int) -> None:
    edges = (np.arange(1, n_bins + 1) / n_bins).astype(dtype)
    bins = bin_by_confidence(edges, np.ones(n_bins), n_bins=n_bins)
    assert bins.count.tolist() == [1.0] * n_bins
    assert_allclose(bins.confidence, bins.upper, rtol=1e-6)


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        (0.1 + 0.2, 2),  # 0.30000000000000004: rounding, so 0.3
        (1 - 0.9, 0),  # 0.09999999999999998
        (0.3 + 1e-9, 3),  # not rounding
        (0.3 - 1e-9, 2),
        (np.float32(0.3) + np.float32(2e-7), 3),  # seven units in float32's last place
        (float(np.float32(0.3)), 3),  # float32's error is not rounding in float64
        (5e-324, 0),
        (math.nextafter(1, 0), 9),
    ],
)
def test_the_tolerance_is_a_few_units_in_the_last_place(confidence: float, expected: int) -> None:
    assert bin_by_confidence([confidence], [1]).count.argmax() == expected


@unhurried
@given(answers(), st.integers(1, 20))
def test_equal_width_bins_hold_what_their_edges_say(
    rows: tuple[np.ndarray, np.ndarray], n_bins: int
) -> None:
    confidence, correct = rows
    bins = bin_by_confidence(confidence, correct, n_bins=n_bins)
    assert len(bins.count) == n_bins
    assert bins.count.sum() == len(confidence)
    occupied = bins.count > 0
    assert np.isnan(bins.confidence[~occupied]).all()
    slack = 1e-14
    assert (bins.confidence[occupied] <= bins.upper[occupied] + slack).all()
    assert (bins.confidence[occupied] >= bins.lower[occupied] - slack).all()
    assert_allclose(np.nansum(bins.count * bins.accuracy), correct.sum())
    assert_allclose(np.nansum(bins.count * bins.confidence), confidence.sum())


@unhurried
@given(st.integers(1, 60), st.integers(1, 25), st.randoms(use_true_random=False))
def test_equal_mass_bins_of_distinct_confidences_are_array_split(n, n_bins, random) -> None:
    confidence = [(i + 1) / (n + 1) for i in range(n)]
    random.shuffle(confidence)
    correct = [random.random() < 0.5 for _ in range(n)]
    bins = bin_by_confidence(confidence, correct, n_bins=n_bins, binning="equal_mass")
    order = np.argsort(confidence)
    parts = [part for part in np.array_split(order, n_bins) if len(part)]
    assert bins.count.tolist() == [len(part) for part in parts]
    assert_allclose(bins.confidence, [np.array(confidence)[part].mean() for part in parts])
    assert_allclose(bins.accuracy, [np.array(correct)[part].mean() for part in parts])
    assert bins.lower.tolist() == [confidence[part[0]] for part in parts]
    assert bins.upper.tolist() == [confidence[part[-1]] for part in parts]


@unhurried
@given(answers(), st.integers(1, 12))
def test_equal_mass_bins_never_separate_equal_confidences(
    rows: tuple[np.ndarray, np.ndarray], n_bins: int
) -> None:
    confidence, correct = rows
    bins = bin_by_confidence(confidence, correct, n_bins=n_bins, binning="equal_mass")
    assert 1 <= len(bins.count) <= n_bins
    assert (bins.count > 0).all()
    assert (bins.upper[:-1] < bins.lower[1:]).all()
    inside = [
        ((confidence >= a) & (confidence <= b)).sum()
        for a, b in zip(bins.lower, bins.upper, strict=True)
    ]
    assert bins.count.tolist() == inside


def test_a_long_run_of_equal_confidences_has_a_bin_to_itself() -> None:
    confidence = [0.1] * 5 + [0.9] * 90 + [1.0] * 5
    bins = bin_by_confidence(confidence, [1] * 100, binning="equal_mass")
    assert bins.count.tolist() == [5, 90, 5]


def test_a_run_whose_middle_is_on_a_cut_goes_up() -> None:
    # four rows, two parts of two: the run 0.5, 0.5 has its middle exactly on the cut
    bins = bin_by_confidence([0.1, 0.5, 0.5, 0.9], [0, 1, 0, 1], n_bins=2, binning="equal_mass")
    assert bins.count.tolist() == [1, 3]


# --- the errors -----------------------------------------------------------------------


def test_ece_by_hand() -> None:
    # bins (0.2, 0.4]: 0.3, 0.4 -> |1/2 - 0.35|; (0.8, 1]: 0.9, 1, 1 -> |1/3 - 29/30|
    confidence, correct = [0.3, 0.4, 0.9, 1.0, 1.0], [1, 0, 1, 0, 0]
    expected = 2 / 5 * 0.15 + 3 / 5 * (29 / 30 - 1 / 3)
    assert_allclose(expected_calibration_error(confidence, correct, n_bins=5), expected)
    assert_allclose(maximum_calibration_error(confidence, correct, n_bins=5), 29 / 30 - 1 / 3)
    # equal mass, two parts of 3 and 2: the run 1, 1 is whole
    expected = 3 / 5 * abs(2 / 3 - 1.6 / 3) + 2 / 5 * 1
    assert_allclose(equal_mass_ece(confidence, correct, n_bins=2), expected)


@unhurried
@given(answers(), st.integers(1, 20))
def test_ece_agrees_with_exact_arithmetic(rows, n_bins) -> None:
    confidence, correct = rows
    gaps = [Fraction(0)] * n_bins
    for c, y in zip(np.round(confidence * 20) / 20, correct, strict=True):
        exact = Fraction(round(c * 20), 20)
        gaps[max(math.ceil(exact * n_bins), 1) - 1] += int(y) - exact
    expected = float(sum(map(abs, gaps)) / len(correct))
    found = expected_calibration_error(np.round(confidence * 20) / 20, correct, n_bins=n_bins)
    assert_allclose(found, expected, atol=1e-12)


@unhurried
@given(answers(), st.integers(1, 20), st.sampled_from(["equal_width", "equal_mass"]))
def test_errors_lie_between_overall_gap_and_one(rows, n_bins, binning) -> None:
    confidence, correct = rows
    ece = expected_calibration_error(confidence, correct, n_bins=n_bins, binning=binning)
    largest = maximum_calibration_error(confidence, correct, n_bins=n_bins, binning=binning)
    overall = abs(correct.mean() - confidence.mean())
    assert overall - 1e-12 <= ece <= largest + 1e-12 <= 1 + 2e-12
    one_bin = expected_calibration_error(confidence, correct, n_bins=1, binning=binning)
    assert_allclose(one_bin, overall, atol=1e-12)


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_perfect_and_worst_calibration(binning) -> None:
    assert expected_calibration_error([0, 0, 1, 1], [0, 0, 1, 1], binning=binning) == 0
    assert expected_calibration_error([0, 0, 1, 1], [1, 1, 0, 0], binning=binning) == 1


@every_metric
@unhurried
@given(rows=answers(), random=st.randoms(use_true_random=False))
def test_row_order_does_not_matter(metric, rows, random) -> None:
    confidence, correct = rows
    order = list(range(len(correct)))
    random.shuffle(order)
    assert_allclose(
        metric(confidence[order], correct[order]), metric(confidence, correct), atol=1e-12
    )


@every_metric
@unhurried
@given(rows=answers(), data=st.data())
def test_a_weight_is_a_repetition(metric, rows, data) -> None:
    confidence, correct = rows
    n = len(correct)
    times = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(any))
    assert_allclose(
        metric(confidence, correct, weight=np.array(times)),
        metric(np.repeat(confidence, times), np.repeat(correct, times)),
        atol=1e-10,
    )


@unhurried
@given(answers())
def test_reliability_curve_shows_the_bins_of_ece(rows) -> None:
    confidence, correct = rows
    for binning in ("equal_width", "equal_mass"):
        curve = reliability_curve(confidence, correct, binning=binning).dropna()
        ece = (curve["count"] * (curve["accuracy"] - curve["confidence"]).abs()).sum() / len(
            correct
        )
        assert_allclose(
            ece, expected_calibration_error(confidence, correct, binning=binning), atol=1e-12
        )
        assert (curve["accuracy_low"] >= 0).all()
        assert (curve["accuracy_high"] <= 1).all()
        assert (curve["accuracy_low"] <= curve["accuracy"]).all()
        assert (curve["accuracy"] <= curve["accuracy_high"]).all()


def test_reliability_curve_has_wilson_intervals() -> None:
    curve = reliability_curve([0.75] * 10, [1] * 8 + [0] * 2, n_bins=2)
    # Wilson's interval of 8 out of 10, from the literature
    assert_allclose(
        curve.loc[1, ["accuracy_low", "accuracy_high"]].tolist(), [0.4902, 0.9433], atol=5e-5
    )
    assert curve.loc[0, "count"] == 0
    assert curve.loc[0, ["confidence", "accuracy", "accuracy_low", "accuracy_high"]].isna().all()
    wide, narrow = (
        reliability_curve([0.75] * 10, [1] * 8 + [0] * 2, n_bins=1, level=level).loc[0]
        for level in (0.99, 0.5)
    )
    assert wide["accuracy_low"] < narrow["accuracy_low"] < 0.8 < narrow["accuracy_high"]


# --- several options ------------------------------------------------------------------


def softmax_table(n: int, options: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.dirichlet(np.ones(options), n), random.integers(0, options, n)


def test_static_calibration_error_is_nixons_double_sum() -> None:
    probabilities, labels = softmax_table(200, 4)
    total = 0.0
    for k, m in itertools.product(range(4), range(10)):
        inside = (probabilities[:, k] > m / 10) & (probabilities[:, k] <= (m + 1) / 10)
        if inside.any():
            gap = (labels[inside] == k).mean() - probabilities[inside, k].mean()
            total += inside.sum() / 200 * abs(gap)
    assert_allclose(static_calibration_error(probabilities, labels), total / 4)


def test_marginal_calibration_error_is_kumars_root_mean_square() -> None:
    probabilities, labels = softmax_table(203, 3)
    total = 0.0
    for k in range(3):
        for part in np.array_split(np.argsort(probabilities[:, k]), 10):
            gap = (labels[part] == k).mean() - probabilities[part, k].mean()
            total += len(part) / 203 * gap**2
    assert_allclose(marginal_calibration_error(probabilities, labels), math.sqrt(total / 3))


def test_marginal_is_at_least_static_in_the_same_bins() -> None:
    for seed in range(20):
        probabilities, labels = softmax_table(50, 5, seed)
        marginal = marginal_calibration_error(probabilities, labels, binning="equal_width")
        assert marginal >= static_calibration_error(probabilities, labels)


def test_two_options_are_two_binary_problems() -> None:
    # away from the edges, 1 - p has mirrored bins, so both options err alike
    p, label = np.array([0.85, 0.72, 0.31, 0.64]), np.array([0, 1, 1, 0])
    both = np.column_stack([p, 1 - p])
    assert_allclose(
        static_calibration_error(both, label), expected_calibration_error(p, label == 0)
    )


def test_the_names_of_options_do_not_matter() -> None:
    probabilities, labels = softmax_table(100, 4)
    order = np.array([2, 0, 3, 1])
    renamed = np.argsort(order)[labels]
    for metric in (static_calibration_error, marginal_calibration_error):
        assert_allclose(metric(probabilities[:, order], renamed), metric(probabilities, labels))
        assert_allclose(
            metric(probabilities, labels, weight=np.full(100, 3)),
            metric(np.repeat(probabilities, 3, axis=0), np.repeat(labels, 3)),
        )


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([0.2, 0.8], [1], r"shape \(n, K\), K from 2, found \(2,\)"),
        ([[0.2], [0.8]], [0, 0], r"K from 2, found \(2, 1\)"),
        ([[0.2, 1.8]], [0], "probabilities of option 1 must be in .* first is row 0 with 1.8"),
        ([[0.2, 0.8], [0.6, 0.6]], [0, 1], "1 of 2 rows do, the first is row 1 with 1.2"),
        ([[0.2, math.nan]], [0], r"option 1 is missing .* in 1 of 1"),
        ([[0.2, 0.8]], [2], "from 0 to 1: 1 of 1 are not, the first is row 0 with 2"),
        ([[0.2, 0.8]], [-1], "row 0 with -1"),
        ([[0.2, 0.8]], [0.0], "whole numbers.* float64"),
        ([[0.2, 0.8]], [0, 1], r"shape \(1,\), found shape \(2,\)"),
    ],
)
def test_bad_options_are_refused(probabilities, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        static_calibration_error(probabilities, labels)


def test_options_of_a_larger_softmax_may_sum_to_less_than_one() -> None:
    assert_allclose(static_calibration_error([[0.5, 0.25]], [0]), (0.5 + 0.25) / 2)


# --- Brier, AUROC, smooth ECE -----------------------------------------------------------


def test_brier_skill_is_what_is_gained_over_the_constant() -> None:
    # three right of four: a = 3/4 and a (1 - a) = 3/16; (0.2^2 + 0 + 0.5^2 + 0.1^2) / 4 = 0.3 / 4
    assert_allclose(brier_skill([0.8, 1.0, 0.5, 0.1], [1, 1, 1, 0]), 1 - (0.3 / 4) / (3 / 16))
    assert_allclose(brier_skill([0.75] * 4, [1, 1, 1, 0]), 0)  # the constant itself
    assert brier_skill([0.9] * 4, [1, 1, 1, 0]) < 0
    assert_allclose(brier_skill([0.8, 0.1], [1, 0], weight=[3, 1]), 1 - (0.13 / 4) / (3 / 16))
    assert math.isnan(brier_skill([0.3, 0.9], [1, 1]))
    assert math.isnan(brier_skill([0.2, 0.9], [0, 1], weight=[2, 0]))


def test_brier_and_auroc_agree_with_scikit_learn() -> None:
    from sklearn.metrics import brier_score_loss, roc_auc_score

    confidence, correct = simulated(300)
    assert_allclose(brier_score(confidence, correct), brier_score_loss(correct, confidence))
    assert_allclose(auroc(confidence, correct), roc_auc_score(correct, confidence))
    weight = np.arange(len(correct)) % 4  # some rows do not count, as in a resample
    expected = roc_auc_score(correct, confidence, sample_weight=weight)
    assert_allclose(auroc(confidence, correct, weight=weight), expected, rtol=1e-12)


@unhurried
@given(answers(min_size=2).filter(lambda rows: 0 < rows[1].sum() < len(rows[1])))
def test_auroc_is_the_share_of_pairs_in_order(rows) -> None:
    confidence, correct = rows
    right, wrong = confidence[correct], confidence[~correct]
    difference = right[:, None] - wrong
    expected = np.mean((difference > 0) + (difference == 0) / 2)
    assert_allclose(auroc(confidence, correct), expected, atol=1e-12)
    assert_allclose(auroc(confidence, ~correct), 1 - expected, atol=1e-12)


@unhurried
@given(answers().filter(lambda rows: 0 < rows[1].mean() < 1))
def test_brier_skill_compares_with_the_best_constant(rows) -> None:
    confidence, correct = rows
    share = np.full(len(correct), correct.mean())
    assert_allclose(brier_skill(share, correct), 0, atol=1e-9)
    expected = 1 - brier_score(confidence, correct) / brier_score(share, correct)
    assert_allclose(brier_skill(confidence, correct), expected, atol=1e-9)
    assert brier_skill(correct.astype(float), correct) == 1


def test_auroc_of_one_class_is_nan() -> None:
    assert math.isnan(auroc([0.2, 0.9], [1, 1]))
    assert math.isnan(auroc([0.2, 0.9], [0, 0]))
    assert math.isnan(auroc([0.2, 0.9], [0, 1], weight=[0, 2]))


def test_smooth_ece_is_relplots() -> None:
    from relplot import smECE

    confidence, correct = simulated(400)
    assert smooth_ece(confidence, correct) == smECE(confidence, correct.astype(float))
    # calibrated by construction against miscalibrated by 0.3 everywhere
    random = np.random.default_rng(1)
    p = random.uniform(0.3, 0.7, 4000)
    assert smooth_ece(p, random.random(4000) < p) < 0.03
    assert 0.25 < smooth_ece(p + 0.3, random.random(4000) < p) < 0.3


def test_confidence_output_ratio_counts_what_is_there() -> None:
    assert confidence_output_ratio([0.5, math.nan]) == 0.5
    assert confidence_output_ratio([None, 0.0, 1.0, None]) == 0.5
    assert confidence_output_ratio([math.nan]) == 0
    assert confidence_output_ratio([0.5, math.nan], weight=[3, 1]) == 0.75
    with pytest.raises(ValueError, match="first is row 1 with 95"):
        confidence_output_ratio([math.nan, 95.0])


# --- risk and coverage ------------------------------------------------------------------


def test_risk_coverage_by_hand() -> None:
    curve = risk_coverage_curve([0.9, 0.5, 0.9, 0.1], [1, 0, 0, 1])
    assert curve["threshold"].tolist() == [0.9, 0.5, 0.1]
    assert_allclose(curve["coverage"], [0.5, 0.75, 1])
    assert_allclose(curve["risk"], [1 / 2, 2 / 3, 1 / 2])


@unhurried
@given(answers(min_size=2).filter(lambda rows: len(rows[0]) <= 6))
def test_aurc_is_the_mean_over_all_orders_of_ties(rows) -> None:
    confidence, correct = rows
    n = len(correct)
    areas = []
    for order in itertools.permutations(range(n)):
        if (np.diff(confidence[list(order)]) <= 0).all():
            wrong = ~correct[list(order)]
            areas.append(np.mean(np.cumsum(wrong) / np.arange(1, n + 1)))
    assert_allclose(area_under_risk_coverage(confidence, correct), np.mean(areas), atol=1e-12)


def test_aurc_of_useless_confidence_is_the_error_rate() -> None:
    assert_allclose(area_under_risk_coverage([0.7] * 10, [1] * 7 + [0] * 3), 0.3)
    best = area_under_risk_coverage([0.9] * 7 + [0.1] * 3, [1] * 7 + [0] * 3)
    worst = area_under_risk_coverage([0.1] * 7 + [0.9] * 3, [1] * 7 + [0] * 3)
    assert_allclose(best, (1 / 8 + 2 / 9 + 3 / 10) / 10)
    assert best < 0.3 < worst


# --- the contract -----------------------------------------------------------------------


BAD = [
    ([[0.5, 0.5]], [1, 0], r"confidence must have shape \(n,\), found"),
    ([], [], "confidence is empty"),
    ([0.5], [1, 0], "same length; confidence has 1 and correct has 2 rows"),
    (
        [0.5, 95.0, 80.0],
        [1, 0, 1],
        r"in \[0, 1\]: 2 of 3 rows are not, the first is row 1 with 95.0",
    ),
    ([-1e-9], [1], "row 0 with -1e-09"),
    ([math.inf], [1], "row 0 with inf"),
    ([0.5, math.nan, math.nan], [1, 0, 1], "missing .* in 2 of 3 rows, the first is row 1: select"),
    ([0.5, None], [1, 0], "missing .* in 1 of 2 rows"),
    (["0.5"], [1], "confidence must be an array of numbers, found dtype <U3"),
    (np.array(["0.5"], dtype=object), [1], "confidence .* <U3"),
    ([True, False], [0.5, 0.9], "confidence .* found dtype bool"),
    ([0.5, 0.5], [1, 2], "1 of 2 rows are not, the first is row 1 with 2"),
    ([0.5], [math.nan], "correct must be .* row 0 with nan"),
    ([0.5], ["yes"], "correct must be an array of booleans or 0/1"),
]


@pytest.mark.parametrize(("confidence", "correct", "message"), BAD)
@every_metric
def test_bad_input_is_named(metric, confidence, correct, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        metric(confidence, correct)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0], r"weight must have shape \(2,\), found \(1,\)"),
        ([1.0, -1.0], "not negative: 1 of 2 rows are not, the first is row 1 with -1.0"),
        ([math.nan, 1.0], "row 0 with nan"),
        ([math.inf, 1.0], "row 0 with inf"),
        ([0, 0], "weight is 0 in every row"),
    ],
)
@every_metric
def test_bad_weights_are_named(metric, weight, message) -> None:
    with pytest.raises(ValueError, match=message):
        metric([0.5, 0.6], [1, 0], weight=weight)


def test_smooth_ece_needs_whole_weights() -> None:
    with pytest.raises(ValueError, match="1 of 2 are not, the first is row 1 with 0.5"):
        smooth_ece([0.5, 0.6], [1, 0], weight=[1, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_bins": 0}, "n_bins is 0"),
        ({"binning": "quantile"}, "binning is 'quantile'; expected one of 'equal_width'"),
    ],
)
def test_bad_options_of_bins_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        expected_calibration_error([0.5], [1], **options)
    with pytest.raises(ValueError, match="level is 95"):
        reliability_curve([0.5], [1], level=95)


@every_metric
def test_pandas_columns_are_arrays(metric) -> None:
    confidence, correct = simulated(40)
    expected = metric(confidence, correct)
    for floats, booleans in (("float64", "bool"), ("Float64", "boolean"), ("float64", "int64")):
        columns = pd.Series(confidence, dtype=floats), pd.Series(correct).astype(booleans)
        assert metric(*columns) == expected


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_resampled_errors_are_the_error_under_each_weight(binning) -> None:
    random = np.random.default_rng(0)
    for confidence, correct in (simulated(80), (random.random(60), random.random(60) < 0.5)):
        weight = random.integers(0, 4, (30, len(correct))).astype(float)
        weight[0] = 0
        options = {"n_bins": 7, "binning": binning}
        found = resampled_errors(confidence, correct, weight=weight, **options)
        assert np.isnan(found[0])
        for error, row in zip(found[1:], weight[1:], strict=True):
            expected = expected_calibration_error(confidence, correct, weight=row, **options)
            assert_allclose(error, expected, atol=1e-12)


def test_stated_confidences_are_described_where_there_are_any():
    found = describe_stated([0.9, np.nan, 0.9, 0.0], [True, True, False, False])
    assert found["pass_at_1"] == 0.5
    assert found["confidence_output_ratio"] == 0.75
    assert found["mean_confidence"] == pytest.approx(0.6)
    assert found["distinct_confidences"] == 2
    assert found["share_at_0"] == pytest.approx(1 / 3)
    assert found["auroc"] == auroc([0.9, 0.9, 0.0], [1, 0, 0])
    nothing = describe_stated([np.nan, np.nan], [1, 0])
    assert nothing["pass_at_1"] == 0.5
    assert np.isnan([nothing[name] for name in ("ece", "auroc", "mean_confidence")]).all()
    assert np.isnan(describe_stated([0.5, 0.7], [1, 1])["auroc"])


def test_stated_confidences_need_an_outcome_each():
    with pytest.raises(ValueError, match="confidence has 2 and correct has 1 rows"):
        describe_stated([0.5, 0.5], [1])
