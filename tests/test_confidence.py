import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corea.confidence import (
    CONFIDENCE_GRID,
    average_probability,
    expectation_on_grid,
    with_signal,
)
from corea.records import RecordsError, validate
from corea.tasks.parsing import confidence_opening, parse_completion

# --- average probability ----------------------------------------------------------------------


def test_average_probability_is_the_mean_of_probabilities():
    assert average_probability(np.log([0.5, 0.1, 0.9])) == pytest.approx(0.5)
    assert average_probability([0.0]) == 1
    assert average_probability([-np.inf, 0.0]) == 0.5
    assert np.isnan(average_probability([]))


def test_rounding_above_certainty_is_certainty():
    assert average_probability(np.array([1e-6], np.float32)) == 1


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        ([-1, 0.5], r"logprobs\[1\] is 0.5; expected a number up to 0"),
        ([np.nan, -1], r"logprobs\[0\] is nan; expected"),
        ([[-1.0]], r"logprobs has shape \(1, 1\); expected \(T,\)"),
        (-1.0, r"logprobs has shape \(\)"),
    ],
)
def test_what_is_no_logprobs_is_refused(logprobs, message):
    with pytest.raises(ValueError, match=message):
        average_probability(logprobs)


# --- expectation ------------------------------------------------------------------------------


def test_expectation_on_grid_by_hand():
    with np.errstate(divide="ignore"):
        logprobs = np.log([[0.1, 0.0, 0.3], [0.2, 0.2, 0.6], [0.0, 0.0, 0.0]])
    expected, mass = expectation_on_grid(logprobs, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(expected, [0.75, 0.7, np.nan])
    np.testing.assert_allclose(mass, [0.4, 1.0, 0.0])


def test_a_missing_row_stays_missing():
    expected, mass = expectation_on_grid([[np.nan, np.nan], [-1.0, -1.0]], [0, 1])
    assert np.isnan([expected[0], mass[0]]).all()
    assert expected[1] == 0.5


def test_tiny_probabilities_are_told_apart():
    expected, mass = expectation_on_grid([[-2000.0, -2000.0 + np.log(3)]], [0, 1])
    assert expected[0] == pytest.approx(0.75)
    assert mass[0] == 0


@given(
    st.integers(1, 5).flatmap(
        lambda k: st.tuples(
            st.lists(st.floats(-50, 0), min_size=k, max_size=k),
            st.lists(st.floats(0, 1), min_size=k, max_size=k),
        )
    )
)
def test_expectations_lie_between_the_values(drawn):
    logprobs, values = drawn
    expected, mass = expectation_on_grid([logprobs], values)
    assert min(values) <= expected[0] <= max(values)
    assert 0 <= mass[0] <= 1


@pytest.mark.parametrize(
    ("logprobs", "values", "message"),
    [
        ([[-1.0]], [0.1, 0.2], r"logprobs has shape \(1, 1\) and values \(2,\)"),
        ([-1.0], [0.1], r"logprobs has shape \(1,\)"),
        (np.empty((2, 0)), [], "K from 1"),
        ([[-1.0]], [1.5], r"values are \[1.5\]; expected numbers in \[0, 1\]"),
        ([[-1.0]], [np.nan], r"expected numbers in \[0, 1\]"),
        ([[0.5]], [1.0], "found 0.5, expected numbers up to 0"),
    ],
)
def test_what_has_no_expectation_is_refused(logprobs, values, message):
    with pytest.raises(ValueError, match=message):
        expectation_on_grid(logprobs, values)


def test_the_grid_is_read_as_tenths():
    read = [parse_completion(rf"\confidence{{{text}}}").confidence for text in CONFIDENCE_GRID]
    assert read == [k / 10 for k in range(11)]


# --- where a confidence is stated ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        (r"\boxed{5} \confidence{0.9}", r"\boxed{5} \confidence{"),
        (r"\boxed{5} \confidence {0.9} \confidence{0.2} end", r"\boxed{5} \confidence {0.9} \confidence{"),
        (r"\boxed{5} \confidence{95%}", r"\boxed{5} \confidence{"),
        (r"\boxed{5} \confidence{", r"\boxed{5} \confidence{"),
        (r"no box \confidence{0.5}", r"no box \confidence{"),
        (r"\confidence{0.9} \boxed{5}", None),
        (r"\boxed{5 \confidence{0.9}", None),
        (r"\boxed{\confidence{0.9}}", None),
        (r"\boxed{5} confidence 0.9", None),
        ("", None),
    ],
)  # fmt: skip
def test_where_a_confidence_is_stated(text, opening):
    assert confidence_opening(text) == opening


PIECES = st.lists(
    st.sampled_from([r"\boxed{", r"\confidence{", "}", "0.5", "5", " ", "{", r"\{"]), max_size=12
).map("".join)


@given(PIECES)
def test_every_confidence_that_is_read_was_stated_at_the_opening(text):
    opening = confidence_opening(text)
    assert opening is None or text.startswith(opening)
    stated = parse_completion(text).confidence
    if stated is not None:
        assert parse_completion(opening + "0.25}").confidence == 0.25
        assert parse_completion(opening + f"{stated}}}") == parse_completion(text)


# --- records ------------------------------------------------------------------------------------


@pytest.fixture
def records():
    return pd.DataFrame(
        {
            "dataset": "d",
            "question_id": ["1", "2", "3"],
            "system": "SLM",
            "sample": 0,
            "correct": [True, False, True],
            "confidence": [1.0, 1.0, np.nan],
            "completion_tokens": pd.array([5, 6, 7], dtype="Int64"),
            "average_probability": [0.5, 0.25, np.nan],
        }
    )


def test_another_signal_becomes_the_confidence(records):
    before = records.copy()
    other = with_signal(records, "average_probability", "SLM-AvgProb")
    validate(other)
    pd.testing.assert_frame_equal(records, before)
    pd.testing.assert_series_equal(
        other["confidence"], records["average_probability"], check_names=False
    )
    assert set(other["system"]) == {"SLM-AvgProb"}
    kept = ["question_id", "correct", "completion_tokens", "average_probability"]
    pd.testing.assert_frame_equal(other[kept], records[kept])
    validate(pd.concat([records, other], ignore_index=True))


def test_signals_that_are_none_are_refused(records):
    with pytest.raises(RecordsError, match="no column probe; there are dataset, question_id"):
        with_signal(records, "probe", "x")
    with pytest.raises(RecordsError, match="field completion_tokens: found type Int64, expected f"):
        with_signal(records, "completion_tokens", "x")
    wrong = records.assign(average_probability=[0.5, 1.5, -0.1])
    with pytest.raises(
        RecordsError, match=r"row 2, field average_probability: found 1.5, .*\n.*row 3"
    ):
        with_signal(wrong, "average_probability", "x")
    several = pd.concat([records, records.assign(system="LLM")])
    with pytest.raises(
        ValueError, match=r"records are of \['SLM', 'LLM'\]; expected .* one system"
    ):
        with_signal(several, "average_probability", "x")
