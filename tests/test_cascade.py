import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corea.metrics.cascade import (
    DEFER_ALL,
    area_over_random,
    at_threshold,
    cheapest_threshold,
    deferral_curve,
    defers,
    operating_point,
    oracle_confidence,
    pareto_front,
    query_cost,
    random_deferral,
)
from corea.metrics.intervals import bootstrap_interval

NAN = float("nan")


def brute_force(rows, threshold, *, router=False):
    """The definition, one question at a time."""
    right = cost = deferred = 0.0
    for confidence, small, large, small_cost, large_cost in rows:
        if np.isnan(confidence) or confidence < threshold:
            right, cost, deferred = right + large, cost + large_cost, deferred + 1
            cost += 0 if router else small_cost
        else:
            right, cost = right + small, cost + small_cost
    return np.array([right, cost, deferred]) / len(rows)


confidences = st.one_of(
    st.just(NAN), st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]), st.floats(0, 1, allow_nan=False)
)
questions = st.lists(
    st.tuples(confidences, st.booleans(), st.booleans(), st.integers(0, 9), st.integers(1, 99)),
    min_size=1,
    max_size=30,
)


@given(questions, st.floats(0, 1.2))
def test_curve_is_the_definition_at_every_threshold(rows, threshold):
    columns = [np.array(column, dtype=float) for column in zip(*rows, strict=True)]
    curve = deferral_curve(*columns)
    for row in curve.itertuples():
        expected = brute_force(rows, row.threshold)
        assert [row.pass_at_1, row.cost, row.deferral_rate] == pytest.approx(expected)
    here = at_threshold(curve, threshold)
    expected = brute_force(rows, threshold)
    assert here[["pass_at_1", "cost", "deferral_rate"]].tolist() == pytest.approx(expected)
    point = operating_point(*columns, threshold=threshold)
    assert [point.pass_at_1, point.cost, point.deferral_rate] == pytest.approx(expected)


@given(questions)
def test_curve_has_every_distinct_confidence_and_the_ends_once(rows):
    columns = list(zip(*rows, strict=True))
    thresholds = deferral_curve(*columns)["threshold"].tolist()
    distinct = {c for c in columns[0] if not np.isnan(c)}
    assert thresholds == sorted({0.0, DEFER_ALL} | distinct)


@given(questions)
def test_router_asks_exactly_one_of_the_two(rows):
    columns = [np.array(column, dtype=float) for column in zip(*rows, strict=True)]
    curve = deferral_curve(*columns, router_cost=0)
    for row in curve.itertuples():
        assert row.cost == pytest.approx(brute_force(rows, row.threshold, router=True)[1])


@given(questions, st.integers(0, 2**32 - 1))
def test_curve_does_not_depend_on_row_order_and_weight_is_repetition(rows, seed):
    columns = [np.array(column, dtype=float) for column in zip(*rows, strict=True)]
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(rows))
    pd.testing.assert_frame_equal(
        deferral_curve(*columns), deferral_curve(*(c[shuffled] for c in columns))
    )
    weight = rng.integers(1, 4, len(rows))
    pd.testing.assert_frame_equal(
        deferral_curve(*columns, weight=weight),
        deferral_curve(*(np.repeat(c, weight) for c in columns)),
    )


@given(questions)
def test_nothing_beats_the_oracle(rows):
    columns = [np.array(column, dtype=float) for column in zip(*rows, strict=True)]
    columns[0] = np.nan_to_num(columns[0])
    oracle = deferral_curve(oracle_confidence(*columns[1:3]), *columns[1:])
    curve = deferral_curve(*columns)
    best = np.interp(curve["deferral_rate"], oracle["deferral_rate"], oracle["pass_at_1"])
    assert (curve["pass_at_1"] <= best + 1e-9).all()
    assert area_over_random(curve) <= area_over_random(oracle) + 1e-9


def test_a_confidence_that_says_nothing_has_no_area():
    curve = deferral_curve([0.5] * 4, [1, 0, 1, 0], [1, 1, 1, 0], 1, 10)
    assert area_over_random(curve) == 0
    assert random_deferral(curve, [0.5]).iloc[0].tolist() == [0.625, 6.0, 0.5]


def test_deferral_rule_at_the_threshold_itself():
    assert defers([0.5, np.nextafter(0.5, 0), NAN], 0.5).tolist() == [False, True, True]
    assert defers([0.0, 1.0], 0.0).tolist() == [False, False]
    assert defers([0.0, 1.0], DEFER_ALL).all()


def test_operating_point_takes_the_papers_threshold():
    # the large model answers 3 of 4: threshold 0.75, so 0.7 defers and 0.75 does not
    point = operating_point([0.75, 0.7, 0.9, 0.1], [1, 0, 1, 0], [1, 1, 1, 0], 1, 10)
    assert point.threshold == 0.75
    assert point.deferral_rate == 0.5
    assert point.pass_at_1 == 0.75
    assert point.accuracy_drop == 0
    assert point.cost == 6
    assert point.cost_saving == pytest.approx(0.4)


def test_a_cascade_that_always_defers_costs_more_than_the_large_model():
    point = operating_point([NAN, NAN], [0, 0], [1, 1], 1, 10)
    assert point.cost_saving == pytest.approx(-0.1)


def test_cheapest_threshold_is_the_brute_force_one():
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 11, 200) / 10
    small, large = rng.random(200) < confidence, rng.random(200) < 0.8
    curve = deferral_curve(confidence, small, large, 1, 10)
    target = large.mean() - 0.02
    chosen = cheapest_threshold(curve, min_pass_at_1=target)
    reach = [r for r in curve.itertuples() if r.pass_at_1 >= target]
    assert chosen == min(reach, key=lambda r: (r.cost, r.threshold)).threshold
    with pytest.raises(ValueError, match=r"no threshold reaches a pass@1 of 1\.5"):
        cheapest_threshold(curve, min_pass_at_1=1.5)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_pareto_front_is_the_definition(points):
    cost, accuracy = zip(*points, strict=True)
    expected = [
        not any((c <= c0 and a > a0) or (c < c0 and a >= a0) for c, a in points)
        for c0, a0 in points
    ]
    assert pareto_front(cost, accuracy).tolist() == expected


def test_bootstrap_of_a_cascade_resamples_questions():
    rng = np.random.default_rng(1)
    n = 400
    confidence = rng.integers(0, 11, n) / 10
    table = pd.DataFrame(
        {
            "dataset": "d",
            "question_id": np.arange(n).astype(str),
            "confidence": confidence,
            "small_correct": rng.random(n) < confidence,
            "large_correct": rng.random(n) < 0.8,
            "small_cost": 1.0,
            "large_cost": 10.0,
        }
    )
    columns = ("confidence", "small_correct", "large_correct", "small_cost", "large_cost")

    def saving(*arrays, weight):
        return operating_point(*arrays, threshold=0.8, weight=weight).cost_saving

    interval = bootstrap_interval(saving, table, columns=columns, n_resamples=300, seed=0)
    exact = operating_point(*(table[c] for c in columns), threshold=0.8).cost_saving
    assert interval.estimate == pytest.approx(exact)
    # the saving is 0.9 minus the deferral rate: its standard error is known
    rate = (confidence < 0.8).mean()
    width = 2 * 1.96 * np.sqrt(rate * (1 - rate) / n)
    assert interval.high - interval.low == pytest.approx(width, rel=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: [0.5, 1.5]}, r"confidence must be in \[0, 1\]: 1 of 2 .* row 1 with 1.5"),
        ({0: [[0.5, 0.5]]}, r"confidence must have shape \(n,\)"),
        ({0: []}, "confidence is empty"),
        ({1: [1, 2]}, "small_correct must be boolean or 0/1: 1 of 2"),
        ({2: [1]}, "must have the same length; .* large_correct has 1"),
        ({3: [1, -1]}, "small_cost must be finite and not negative: .* row 1 with -1"),
        ({4: [1, NAN]}, "large_cost must be finite .* row 1 with nan"),
        ({4: [1, 2, 3]}, r"large_cost must have shape \(2,\), found \(3,\)"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = [[0.5, 0.6], [1, 0], [1, 1], [1, 1], [10, 10]]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(ValueError, match=message):
        deferral_curve(*arguments)


@pytest.mark.parametrize("threshold", [-0.1, NAN])
def test_threshold_must_be_a_number_from_0(threshold):
    curve = deferral_curve([0.5], [1], [1], 1, 10)
    for use in (lambda: defers([0.5], threshold), lambda: at_threshold(curve, threshold)):
        with pytest.raises(ValueError, match="threshold is"):
            use()


def test_no_saving_against_a_model_that_is_free():
    with pytest.raises(ValueError, match="large_cost is 0"):
        operating_point([0.5], [1], [1], 1, 0)


# --- costs ---


def test_cost_is_input_plus_four_times_output_scaled_by_size():
    assert query_cost([10, 0], [5, 1]).tolist() == [30, 4]
    assert query_cost(10, 5, size_ratio=2, output_price=5) == 70


def test_cost_of_paper_a_large_model_is_consistent_with_its_size():
    # 32B beside 7B: the same tokens cost 32/7 times as much
    assert query_cost(300, 900, 32 / 7) / query_cost(300, 900) == pytest.approx(32 / 7)


def test_nullable_integers_are_read():
    assert query_cost(pd.array([1, 2], "Int64"), pd.Series([1, 1], dtype="Int64")).tolist() == [
        5,
        6,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (pd.array([1, None], "Int64"), [1, 1]),
            "prompt_tokens must be finite and .* row 1 with nan",
        ),
        (([1.0], [np.nan]), "completion_tokens must be finite .* row 0 with nan"),
        (([-1], [1]), "prompt_tokens must be finite and not negative: .* with -1"),
        (([1], [1], 0.0), "size_ratio is 0.0"),
        (([1], [1], 1.0, float("nan")), "output_price is nan"),
    ],
)
def test_bad_counts_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        query_cost(*arguments)
