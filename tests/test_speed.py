"""The measurements of training speed, and what is computed of them."""

import numpy as np
import pandas as pd
import pytest

from corea.book import speed
from corea.book.speed import measured, overhead, step_parts, token_rates


def timed(ratios, *, slow=1.0):
    """Steps of TRL's that take 1 s (times ``slow``), and of ours in these ratios to it."""
    rows = [
        {"step": step, "way": trainer, "seconds": slow * seconds}
        for step, ratio in enumerate(ratios)
        for trainer, seconds in (("corea", ratio), ("trl", 1.0))
    ]
    return pd.DataFrame(rows)


def test_overhead_is_that_of_pairs_and_its_interval_holds_the_truth():
    rng = np.random.default_rng(0)
    ratios = 1.02 + 0.05 * rng.standard_normal(200)
    middle, low, high = overhead(timed(ratios))
    assert middle == pytest.approx(np.median(ratios) - 1)
    assert low < 0.02 < high
    assert high - low < 0.04
    assert overhead(timed(ratios, slow=3.0)) == pytest.approx((middle, low, high))
    # drift of the machine falls on both
    steps = timed(ratios)
    steps["seconds"] *= 1 + steps["step"]
    assert overhead(steps) == pytest.approx((middle, low, high))


def test_overhead_of_incomplete_pairs_is_refused():
    steps = timed([1.0, 1.1, 1.2])
    for wrong in (steps.iloc[:-1], steps[steps["way"] == "trl"], steps.iloc[:2]):
        with pytest.raises(ValueError, match="each measured with corea and with trl"):
            overhead(wrong)


def test_the_committed_measurements_are_whole():
    steps = measured("steps")
    for trainer in set(steps["way"]) - {"trl"}:
        middle, low, high = overhead(steps, trainer, n_resamples=200)
        assert low <= middle <= high
    # what the chapter says of them
    assert overhead(steps, "corea, TRL's rollouts")[2] < 0.03
    assert overhead(steps)[2] < 0
    parts = step_parts(measured("parts"))
    assert parts["share"].sum() == pytest.approx(1)
    # of the same trainer on the same machine: a step is the sum of its parts
    whole = 1000 * steps.loc[steps["way"] == "corea", "seconds"].median()
    assert parts["milliseconds"].sum() == pytest.approx(whole, rel=0.3)
    rates = token_rates(measured("rollouts"))
    assert (rates["low"] <= rates["tokens_per_second"]).all()
    assert {"torch", "trl", "commit", "threads"} <= speed.facts("training").keys()
    with pytest.raises(ValueError, match="table is 'nothing'; expected one of 'steps', 'parts'"):
        measured("nothing")
