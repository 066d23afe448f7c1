"""Intervals: the bootstrap by question, the rule for seeds, differences, verdicts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import t

from corea.metrics import intervals
from corea.metrics.calibration import auroc, brier_score, expected_calibration_error
from corea.metrics.intervals import (
    FEW_SEEDS,
    ONE_SEED,
    SEEDS,
    Interval,
    QuestionWeights,
    bootstrap_interval,
    bootstrap_intervals,
    differences,
    interval,
    interval_note,
    judge,
    summarize,
    verdict,
)


def simulated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    confidence = random.integers(0, 21, n) / 20
    return confidence, random.random(n) < 0.2 + 0.6 * confidence


def as_records(confidence: np.ndarray, correct: np.ndarray, samples: int = 1) -> pd.DataFrame:
    n = len(confidence)
    return pd.DataFrame(
        {
            "dataset": "d",
            "question_id": [f"q{i // samples}" for i in range(n)],
            "confidence": confidence,
            "correct": correct,
        }
    )


def made(values, system="a", metric="gain", n_questions=100):
    """Measurements of one number: seed to its values over resamples."""
    parts = [
        pd.DataFrame(
            {"system": system, "seed": seed, "dataset": "d", "n_questions": n_questions,
             "metric": metric, "resample": range(len(value)), "value": value}
        )
        for seed, value in values.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


# --- the rule -------------------------------------------------------------------------------

values = st.lists(
    st.lists(st.floats(0, 1), min_size=8, max_size=8).map(np.array), min_size=1, max_size=4
)


@given(values, st.integers(2, 500))
def test_an_interval_holds_its_estimate_and_stays_in_range(by_seed, n_questions) -> None:
    found = interval(by_seed, n_questions=n_questions, bounds=(0.0, 1.0))
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.high > found.low


def test_questions_and_seeds_add_their_variances_each_with_its_own_t() -> None:
    random = np.random.default_rng(0)
    seeds = 0.5 + 0.05 * random.standard_normal(5)
    common, own = 0.03 * random.standard_normal(200), 0.02 * random.standard_normal((5, 200))
    by_seed = np.column_stack([seeds, seeds[:, None] + common + own])
    found = interval(list(by_seed), n_questions=300)
    covariance = np.cov(by_seed[:, 1:])  # of the seeds, over resamples
    shared = covariance[~np.eye(5, dtype=bool)].mean()
    half = np.hypot(
        t.ppf(0.975, 299) * np.sqrt(shared), t.ppf(0.975, 4) * seeds.std(ddof=1) / 5**0.5
    )
    shift = abs((common + own).mean())
    assert found.high - found.low == pytest.approx(2 * half + shift)
    assert (found.method, found.n_seeds, found.n_questions) == (SEEDS, 5, 300)


def test_seeds_that_are_alike_by_chance_keep_what_questions_do_to_each() -> None:
    own = 0.02 * np.random.default_rng(0).standard_normal((3, 300))
    own -= own.mean(axis=1, keepdims=True)
    own -= own.mean(axis=0)  # nothing in common
    found = interval(list(np.column_stack([np.full(3, 0.5), 0.5 + own])), n_questions=300)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
    own = 0.02 * np.random.default_rng(0).standard_normal((3, 300))
    found = interval(list(np.column_stack([np.full(3, 0.5), 0.5 + own])), n_questions=300)
    assert found.high - found.low > 2 * 1.96 * 0.02 / 3**0.5


def test_seeds_alone_are_students_t() -> None:
    row = summarize(made({0: [0.2], 1: [0.3], 2: [0.5]})).iloc[0]
    assert row["value"] == pytest.approx(1 / 3)
    # t with two degrees of freedom
    half = 4.30265 * np.std([0.2, 0.3, 0.5], ddof=1) / 3**0.5
    assert row["high"] - row["value"] == pytest.approx(half)
    assert (row["n_seeds"], row["interval"]) == (3, FEW_SEEDS)


def test_a_bias_widens_to_its_side_only() -> None:
    """Resamples of an ECE lie above it; the interval reaches lower for that, and not less high."""
    random = np.random.default_rng(1)
    noise = random.standard_normal(500)
    found = interval([np.append(0.10, 0.14 + 0.02 * (noise - noise.mean()))], n_questions=200)
    half = t.ppf(0.975, 199) * 0.02 * noise.std(ddof=1)
    assert (found.low, found.high) == pytest.approx((0.06 - half, 0.10 + half))


@pytest.mark.parametrize(("bounds", "by_rule"), [((0.0, 1.0), False), ((0.0, 1.0), True)])
def test_what_never_occurred_may_still_have_a_probability(bounds, by_rule) -> None:
    found = interval([np.ones(9)] * 3, n_questions=50, bounds=bounds, by_rule=by_rule)
    # Clopper and Pearson's bound of 50 in 50
    assert found.low == (1 if by_rule else pytest.approx(0.025 ** (1 / 50)))
    assert found.high == 1


def test_seeds_and_resamples_without_a_value_do_not_count() -> None:
    row = summarize(made({0: [0.2], 1: [np.nan], 2: [0.4]})).iloc[0]
    assert (row["n_seeds"], row["value"]) == (2, pytest.approx(0.3))
    with_nan, without = (interval([np.array(v)]) for v in ([2, 1, np.nan, 3.5], [2, 1, 3.5]))
    assert (with_nan.low, with_nan.high) == (without.low, without.high)
    assert (with_nan.n_undefined, without.n_undefined) == (1, 0)
    nothing = summarize(made({0: [np.nan, np.nan]})).iloc[0]
    assert (nothing["n_seeds"], nothing["interval"]) == (0, "")
    assert intervals.as_interval(nothing) is None


def test_an_interval_reads_as_a_sentence_would_have_it() -> None:
    found = Interval(0.1234, 0.1, 0.15)
    assert f"{found:.2f}" == "0.12 [0.10, 0.15]"
    assert f"{found}" == str(found) == "0.123 [0.100, 0.150]"
    assert f"{found:.1%}" == "12.3% [10.0%, 15.0%]"
    assert str(Interval.of(None)) == "not defined"


def test_the_note_says_every_kind_of_interval() -> None:
    table = pd.DataFrame({"interval": [ONE_SEED, FEW_SEEDS, ""], "n_seeds": [1, 3, 0]})
    assert interval_note(table, n_resamples=5, seed=1) == (
        "95 % intervals: bootstrap over questions (5 resamples, seed 1) and Student's t over "
        "3 seeds, few, so it is wide; elsewhere one seed, bootstrap over questions "
        "(5 resamples, seed 1)."
    )


# --- differences ----------------------------------------------------------------------------


def test_differences_are_paired() -> None:
    random = np.random.default_rng(0)
    seeds, questions = random.standard_normal(3), random.standard_normal(201)
    table = pd.concat(
        made({s: seeds[s] + questions + shift for s in range(3)}, system=name)
        for name, shift in (("a", 0.0), ("b", 0.5))
    )
    row = differences(table, [("b", "a")]).iloc[0]
    assert [row[name] for name in ("value", "low", "high")] == pytest.approx([0.5] * 3)


def test_ratios() -> None:
    table = pd.concat([made({0: [0.1, 0.1, 0.2, 0.1]}), made({0: [0.4, 0.2, 0.0, 0.4]}, "b")])
    row = differences(table, [("a", "b")], ratio=True).iloc[0]
    assert row["value"] == 0.25  # and a ratio to 0 is not defined
    assert row["low"] < 0.25 < row["high"]


def test_what_cannot_be_compared() -> None:
    table = pd.concat([made({0: [0.1]}), made({1: [0.4]}, system="b")])
    with pytest.raises(ValueError, match=r"'a' \(seeds \[0\]\) and 'b' \(seeds \[1\]\)"):
        differences(table)
    with pytest.raises(ValueError, match="no system 'c' was measured"):
        differences(table, [("a", "c")])
    assert differences(made({0: [0.1]})).empty


# --- verdicts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "statement", "expected"),
    [
        (0.1, 0.2, {"above": 0.0}, "holds"),
        (0.0, 0.2, {"above": 0.0}, "unsettled"),
        (-0.2, 0.0, {"above": 0.0}, "fails"),
        (0.0, 0.2, {"at_least": 0.0}, "holds"),
        (-0.2, -0.1, {"at_least": 0.0}, "fails"),
        (0.1, 0.2, {"at_most": 0.2}, "holds"),
        (0.1, 0.2, {"at_most": 0.1}, "unsettled"),
        (0.1, 0.2, {"at_most": 0.05}, "fails"),
        (-0.1, 0.2, {"within": 0.2}, "holds"),
        (-0.1, 0.3, {"within": 0.2}, "unsettled"),
        (-0.5, -0.3, {"within": 0.2}, "fails"),
        (math.nan, math.nan, {"above": 0.0}, "unsettled"),
    ],
)
def test_verdict(low, high, statement, expected) -> None:
    assert verdict(Interval(low, low, high), **statement) == expected


@pytest.mark.parametrize(
    ("low", "high", "bound", "expected"),
    [
        (0.6, 0.9, {"at_least": 0.5}, "yes"),
        (0.6, 0.9, {"at_most": 0.5}, "no"),
        (0.4, 0.9, {"at_least": 0.5}, "not certain, the estimate says yes"),
        (0.4, 0.9, {"at_most": 0.5}, "not certain, the estimate says no"),
    ],
)
def test_judge(low, high, bound, expected) -> None:
    assert judge({"value": 0.7, "low": low, "high": high}, **bound) == expected


def test_judge_needs_a_value_and_one_bound() -> None:
    empty = dict.fromkeys(("value", "low", "high"), np.nan)
    assert judge(empty, at_most=1) == "not measured"
    for bounds in ({}, {"at_least": 0, "at_most": 1}):
        with pytest.raises(ValueError, match="expected one of"):
            judge(empty, **bounds)


# --- the bootstrap by question --------------------------------------------------------------


def test_the_bootstrap_is_the_bootstrap_by_question() -> None:
    confidence, correct = simulated(600)
    records = as_records(confidence, correct, samples=3)
    found = bootstrap_interval(expected_calibration_error, records, n_resamples=4000, seed=1)
    assert found.estimate == expected_calibration_error(confidence, correct)

    random = np.random.default_rng(2)
    naive = []
    for _ in range(4000):
        questions = random.integers(0, 200, 200)
        rows = (3 * questions[:, None] + np.arange(3)).ravel()
        naive.append(expected_calibration_error(confidence[rows], correct[rows]))
    half = t.ppf(0.975, 199) * np.std(naive)
    shift = np.mean(naive) - found.estimate
    ends = (found.estimate - shift - half, found.estimate + half)
    # the Monte Carlo error of a standard deviation is some 1 % of it
    assert_allclose((found.low, found.high), ends, atol=0.08 * half)


@pytest.mark.parametrize("confidences", [21, 10_000], ids=["few kinds", "many kinds"])
def test_kinds_are_drawn_as_a_multinomial(confidences: int) -> None:
    random = np.random.default_rng(0)
    n_questions = np.bincount(random.integers(0, confidences, 1000))
    n_questions = n_questions[n_questions > 0]
    every = np.arange(len(n_questions))
    kinds = intervals._QuestionKinds(n_questions, every, every, every)
    drawn = np.concatenate(list(kinds.draws(4000, 0)))
    assert (drawn.sum(axis=1) == 1000).all()
    share = n_questions / 1000
    assert_allclose(drawn.mean(axis=0), n_questions, atol=5 * math.sqrt(60 / 4000))
    assert_allclose(drawn.var(axis=0).mean(), (1000 * share * (1 - share)).mean(), rtol=0.05)


def test_repeated_samples_add_nothing() -> None:
    confidence, correct = simulated(100)
    once = bootstrap_interval(brier_score, as_records(confidence, correct))
    repeated = as_records(np.repeat(confidence, 4), np.repeat(correct, 4), samples=4)
    four = bootstrap_interval(brier_score, repeated)
    assert_allclose([four.low, four.high], [once.low, once.high])


@pytest.mark.parametrize("samples", [1, 3])
def test_the_interval_depends_on_seed_but_not_on_row_order(samples: int) -> None:
    records = as_records(*simulated(300), samples=samples)
    found = bootstrap_interval(brier_score, records, n_resamples=50)
    assert found == bootstrap_interval(brier_score, records, n_resamples=50)
    shuffled = records.sample(frac=1, random_state=0)
    assert_allclose(
        [
            getattr(bootstrap_interval(brier_score, shuffled, n_resamples=50), e)
            for e in ("low", "high")
        ],
        [found.low, found.high],
        rtol=1e-12,
    )
    other = bootstrap_interval(brier_score, records, n_resamples=50, seed=1)
    assert (other.low, other.high) != (found.low, found.high)


def test_questions_with_the_same_rows_are_one_kind() -> None:
    records = pd.DataFrame(
        {
            "dataset": ["d"] * 5 + ["e"] * 3,
            "question_id": ["a", "a", "b", "b", "c", "a", "a", "b"],
            "confidence": [0.1, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9],
            "correct": [False, True, True, False, True, True, False, True],
        }
    )
    arrays = [records["confidence"].to_numpy(), records["correct"].to_numpy()]
    kinds = intervals._QuestionKinds.of(records, arrays)
    # d/a and d/b in either order; d/c and e/b alone; e/a
    assert sorted(kinds.n_questions.tolist()) == [1, 2, 2]
    weight = np.bincount(kinds.cell, kinds.n_questions[kinds.kind])
    cells = {
        (arrays[0][i], bool(arrays[1][i])): w for i, w in zip(kinds.example, weight, strict=True)
    }
    assert cells == {(0.1, False): 2, (0.9, True): 5, (0.9, False): 1}


def test_the_bootstrap_takes_any_columns() -> None:
    random = np.random.default_rng(0)
    records = as_records(*simulated(200)).assign(
        large=random.random(200) < 0.9, cost=random.integers(1, 4, 200).astype(float)
    )
    records.loc[:20, "confidence"] = np.nan  # a metric may have its own rule for these

    def mean_cost(confidence, correct, large, cost, *, weight):
        defers = (confidence < 0.5) | np.isnan(confidence)
        return np.average(cost * defers, weights=weight)

    columns = ("confidence", "correct", "large", "cost")
    found = bootstrap_interval(mean_cost, records, columns=columns, bounds=(0, np.inf))
    values = records["cost"] * ((records["confidence"] < 0.5) | records["confidence"].isna())
    assert_allclose(found.estimate, values.mean())
    half_width = 1.96 * values.std() / math.sqrt(200)
    assert_allclose(found.high - found.low, 2 * half_width, rtol=0.1)


def test_intervals_cover_the_truth() -> None:
    """95 % intervals of the Brier score cover it in about 95 % of simulated records.

    Questions have difficulties and three samples each: intervals by row would cover it
    in some 80 %.
    """
    random = np.random.default_rng(0)
    levels = np.array([0.2, 0.5, 0.8])
    chance = np.array([0.1, 0.5, 0.9])  # of a right answer, by difficulty
    # confidence is drawn once per question, independently of difficulty
    truth = np.mean([(c - 1) ** 2 * p + c**2 * (1 - p) for c in levels for p in chance])
    covered = by_row = 0
    for i in range(250):
        confidence = np.repeat(random.choice(levels, 80), 3)
        correct = random.random(240) < np.repeat(random.choice(chance, 80), 3)
        records = as_records(confidence, correct, samples=3)
        found = bootstrap_interval(brier_score, records, n_resamples=200, seed=i)
        covered += found.low <= truth <= found.high
        rows = bootstrap_interval(
            brier_score, as_records(confidence, correct), n_resamples=200, seed=i
        )
        by_row += rows.low <= truth <= rows.high
    assert 0.90 <= covered / 250 <= 0.98
    assert by_row / 250 < 0.88


def test_undefined_resamples_are_counted_and_said() -> None:
    records = as_records(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, True, True, False]))
    found = bootstrap_interval(auroc, records, n_resamples=1000)
    # no wrong answer in (3/4)^4 = 0.316 of resamples, nothing but it in (1/4)^4
    assert_allclose(found.n_undefined / 1000, (3**4 + 1) / 4**4, atol=0.06)
    assert (found.low, found.high) == (pytest.approx(0.025**0.25), 1)
    assert str(found) == f"1.000 [0.398, 1.000] ({found.n_undefined} resamples undefined)"

    never = bootstrap_interval(auroc, records[:3], n_resamples=10)
    assert np.isnan([never.estimate, never.low, never.high]).all()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda r: r.drop(columns="question_id"), {}, r"lack the column\(s\) question_id"),
        (lambda r: r, {"columns": ("confidence", "gold")}, r"lack the column\(s\) gold"),
        (lambda r: r[:0], {}, "records are empty"),
        (lambda r: r.assign(question_id=["a", None, "c"]), {}, "1 of 3 rows lack one, .* row 1"),
        (lambda r: r.assign(confidence=[0.1, 0.2, 7.0]), {}, "first is row 2 with 7.0"),
        (lambda r: r, {"n_resamples": 0}, "n_resamples is 0"),
        (lambda r: r, {"level": 1.0}, "level is 1.0"),
    ],
)
def test_bad_records_are_named(change, options, message) -> None:
    records = as_records(np.array([0.1, 0.5, 0.9]), np.array([True, False, True]))
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(brier_score, change(records), **options)


def test_metrics_bootstrapped_together_have_the_intervals_they_have_alone() -> None:
    random = np.random.default_rng(0)
    confidence = random.integers(0, 11, 90) / 10
    records = as_records(confidence, random.random(90) < confidence, samples=3)
    metrics = {"auroc": auroc, "brier": brier_score, "ece": expected_calibration_error}
    bounds = dict.fromkeys(metrics, (0.0, 1.0))
    together = bootstrap_intervals(metrics, records, n_resamples=50, seed=3, bounds=bounds)
    for name, metric in metrics.items():
        assert together[name] == bootstrap_interval(metric, records, n_resamples=50, seed=3)


def test_weights_are_of_questions() -> None:
    table = pd.DataFrame({"system": ["a"] * 4 + ["b"] * 4, "seed": 0, "dataset": "d"})
    table["question_id"] = ["x", "x", "y", "z", "z", "y", "x", "x"]
    weights = QuestionWeights(table, 20, 0)
    first, second = (weights.of_rows(table[table["system"] == name], "d") for name in ("a", "b"))
    assert (first[0] == 1).all()
    assert (first[:, 0] == first[:, 1]).all()
    assert (first[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert (first[:, [0, 2, 3]] == second[:, [2, 1, 0]]).all()
