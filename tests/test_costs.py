import numpy as np
import pandas as pd
import pytest

from corea.metrics.costs import query_cost


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
        ((pd.array([1, None], "Int64"), [1, 1]), "prompt_tokens: 1 of 2 counts are missing"),
        (([1.0], [np.nan]), "completion_tokens: 1 of 1"),
        (([-1], [1]), "found -1, expected counts from 0"),
        (([1], [1], 0.0), "size_ratio is 0.0"),
        (([1], [1], 1.0, float("nan")), "output_price is nan"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        query_cost(*arguments)
