"""What rewards ask for: closed forms against grids, advantages against all groups drawn."""

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pandas as pd
import pytest
from chapters import execute, tables
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from corea.rlcc.optimal_reports import (
    REWARDS,
    accuracy_distribution,
    expected_reward,
    group_advantages,
    learned_policy,
    optimal_report,
    stable_reports,
    study,
    study_learning,
    study_stability,
    summarize_study,
    worth_of_being_right,
)
from corea.rlcc.rewards import confidence_reward

GRID = np.arange(401) / 400
SIZES = (2, 4, 8, 16, 32, 64)
TENTHS = np.arange(11) / 10
EVEN = (np.arange(200) + 0.5) / 200
PROPER = ("l2", "brier", "kl", "sample_kl")

unit = st.floats(0, 1)
sizes = st.integers(1, 12)


def drawn_groups(p, q, size):
    """Every group of rollouts, the own one first, with its chance."""
    for group in product((0, 1), repeat=size):
        chance = q if group[0] else 1 - q
        for other in group[1:]:
            chance *= p if other else 1 - p
        yield np.array(group), chance


@given(unit, unit, st.integers(1, 6))
def test_distribution_counts_all_groups(p, q, size):
    counted = np.zeros(size + 1)
    for group, chance in drawn_groups(p, q, size):
        counted[group.sum()] += chance
    found = accuracy_distribution([p], size, own_probability=q)[0]
    np.testing.assert_allclose(found, counted, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_distribution_is_binomial_when_the_rollout_knows_nothing(size):
    p = Fraction(3, 8)
    exact = [float(comb(size, k) * p**k * (1 - p) ** (size - k)) for k in range(size + 1)]
    np.testing.assert_allclose(accuracy_distribution([0.375], size)[0], exact, rtol=1e-12)


@pytest.mark.parametrize("name", REWARDS)
@given(p=unit, q=unit, c=unit, size=st.integers(1, 6))
def test_expected_reward_is_the_mean_over_all_groups(name, p, q, c, size):
    mean = 0.0
    for group, chance in drawn_groups(p, q, size):
        stated = np.full(size, c)
        mean += chance * confidence_reward(name, stated, group, size)[0]
    found = expected_reward(name, [c], [p], size, own_probability=q).item()
    assert found == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("name", REWARDS)
@given(p=unit, q=st.one_of(st.none(), unit), size=sizes, epsilon=st.floats(0.001, 0.3))
def test_optimal_reports_are_the_best_of_a_fine_grid_and_no_others(name, p, q, size, epsilon):
    setting = {"own_probability": q, "epsilon": epsilon}
    low, high = (ends.item() for ends in optimal_report(name, [p], size, **setting))
    assert 0 <= low <= high <= 1
    if "kl" in name:  # so near the clipped part all of it is as good up to rounding
        for edge in (epsilon, 1 - epsilon):
            assume(abs(low - edge) <= 1e-12 or abs(low - edge) > 1e-3)
    reports = np.concatenate([[low, high], GRID])
    ends, expected = np.split(expected_reward(name, reports, [p], size, **setting)[0], [2])
    assert ends.min() >= expected.max() - 1e-9
    assert ends[0] == pytest.approx(ends[1], abs=1e-9)
    # best of the grid, up to rounding and the grid's step
    best = GRID[expected >= expected.max() - 1e-12]
    assert np.all((best >= low - 0.0025) & (best <= high + 0.0025))


@given(unit, sizes)
def test_proper_rewards_ask_for_the_truth_at_every_group_size(p, size):
    for name in PROPER:
        optimum = optimal_report(name, [p], size)
        assert optimum.nearest([p]).item() == pytest.approx(p, abs=1e-12)
        if "kl" not in name:  # it alone
            assert optimum.low.item() == optimum.high.item()


@pytest.mark.parametrize(
    ("name", "size", "p", "lows", "highs"),
    [
        ("sample_l1", 8, [0, 0.2, 0.499, 0.5, 0.501, 1], [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]),
        ("l1", 2, [0, 0.29, 0.3, 0.5, 0.71, 1], [0, 0, 0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5, 1, 1]),
        ("l1", 5, [0.5], [0.4], [0.6]),  # two middle accuracies, and all between them
        ("none", 8, [0.3, 0.6], [0, 0], [1, 1]),  # nothing is asked
    ],
)
def test_optima_by_hand(name, size, p, lows, highs):
    optimum = optimal_report(name, p, size)
    assert (optimum.low.tolist(), optimum.high.tolist()) == (lows, highs)
    assert optimum.nearest(p).tolist() == np.clip(p, lows, highs).tolist()


@given(unit, st.sampled_from(SIZES))
def test_error_of_l1_is_at_most_log_2_over_the_group_size(p, size):
    """Hamza (1995): median and mean of a binomial are less than log 2 apart."""
    report = optimal_report("l1", [p], size).nearest([p]).item()
    assert abs(report - p) <= np.log(2) / size + 1e-9


@pytest.mark.parametrize("size", SIZES)
def test_what_a_rollout_knows_of_itself_counts_one_gth_in_a_group(size):
    q = 0.9
    found = optimal_report("l2", [0.5], size, own_probability=q).low.item()
    assert found == pytest.approx(0.5 + (q - 0.5) / size)
    assert optimal_report("brier", [0.5], size, own_probability=q).low.item() == pytest.approx(q)


def test_study_has_each_case_once_and_its_columns_are_what_they_say():
    table = study(EVEN, SIZES)
    assert len(table) == len(EVEN) * len(SIZES) * len(REWARDS)
    assert not table.duplicated(["reward", "group_size", "probability"]).any()
    p = table["probability"]
    np.testing.assert_allclose(table["error"], table["report"] - p, atol=1e-15)
    assert table["report"].between(table["low"], table["high"]).all()
    group = table["reward"].isin(["l1", "l2", "kl"])
    variance = p * (1 - p) / table["group_size"].where(group, 1)
    np.testing.assert_allclose(table["target_sd"], np.sqrt(variance), atol=1e-12)
    proper = table["reward"].isin(PROPER)
    assert table.loc[proper, "price_of_honesty"].max() < 1e-12
    step = table["reward"] == "sample_l1"
    # |p - y| costs 2 p (1 - p), the nearer end min(p, 1 - p)
    price = 2 * p * (1 - p) - np.minimum(p, 1 - p)
    np.testing.assert_allclose(table["price_of_honesty"][step], price[step], atol=1e-12)


def test_summary_tells_proper_from_improper():
    summary = summarize_study(study(EVEN, [2, 8, 64])).set_index(["reward", "group_size"])
    for name in PROPER:
        assert summary.loc[name, "largest_error"].max() < 1e-12
        assert summary.loc[name, "ece"].max() < 1e-12
        assert summary.loc[name, "auroc"].tolist() == pytest.approx([5 / 6] * 3, abs=1e-4)
    assert summary.loc["sample_l1", "distinct"].tolist() == [2, 2, 2]
    assert summary.loc["sample_l1", "ece"].tolist() == pytest.approx([0.25] * 3)
    assert summary.loc["l1", "distinct"].tolist() == [3, 9, 65]
    assert summary.loc["l1", "ece"].is_monotonic_decreasing
    assert summary.loc["l1", "ece"].min() > 0


def test_advantages_by_hand():
    parts = [[[1.0, 0.0, 0.0]], [[-0.5, -0.5, -0.2]]]

    def scaled(advantages):
        centred = np.array(advantages) - np.mean(advantages)
        return centred / (np.sqrt((centred**2).sum() / 2) + 1e-4)

    total = np.array([0.5, -0.5, -0.2])
    for scaling, expected in (
        ("none", total - total.mean()),
        ("group", scaled(total)),
        ("normalize_then_sum", scaled([1, 0, 0]) + scaled([-0.5, -0.5, -0.2])),
    ):
        np.testing.assert_allclose(group_advantages(parts, scaling)[0], expected)


@pytest.mark.parametrize("scaling", ["none", "group", "normalize_then_sum"])
def test_a_group_that_agrees_has_no_signal_from_a_group_level_reward(scaling):
    correct = np.array([1, 1, 1, 0])
    agreed = confidence_reward("l1", np.full(4, 0.9), correct, 4)
    with_it = group_advantages([[correct], [agreed]], scaling)
    without = group_advantages([[correct], [np.zeros(4)]], scaling)
    np.testing.assert_allclose(with_it, without, atol=1e-12)
    unanimous = np.ones(4)
    assert not group_advantages(
        [[unanimous], [confidence_reward("l1", np.full(4, 0.9), unanimous, 4)]], scaling
    ).any()


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("size", [2, 5, 8])
def test_unscaled_the_stable_reports_are_the_optimal_ones(name, size):
    p = np.array([0.08, 0.3, 0.43, 0.5, 0.77])
    expected = expected_reward(name, TENTHS, p, size)
    best = expected >= expected.max(axis=1, keepdims=True) - 1e-12
    found = stable_reports(name, p, size, TENTHS, scaling="none")
    np.testing.assert_array_equal(found, best)


def mean_advantage_by_drawing(name, p, size, reports, policy, scaling):
    """Expected advantage of each report, from every ordered group that can be drawn."""
    kinds = [(c, y) for c in range(len(reports)) for y in (0, 1)]
    total = np.zeros(len(reports))
    for own in kinds:
        for others in product(kinds, repeat=size - 1):
            chance = p if own[1] else 1 - p
            for c, y in others:
                chance *= policy[c] * (p if y else 1 - p)
            group = [own, *others]
            correct = np.array([y for _, y in group], dtype=float)
            stated = np.array([reports[c] for c, _ in group])
            confidence = confidence_reward(name, stated, correct, size)
            parts = [[correct], [confidence]]
            total[own[0]] += chance * group_advantages(parts, scaling)[0, 0]
    return total


@pytest.mark.parametrize("scaling", ["none", "group", "normalize_then_sum"])
@pytest.mark.parametrize("name", REWARDS)
def test_a_step_follows_the_advantage_over_all_groups_drawn(name, scaling):
    reports, size, p, rate = [0.1, 0.6, 1.0], 3, 0.7, 0.3
    uniform = np.full(3, 1 / 3)
    advantage = mean_advantage_by_drawing(name, p, size, reports, uniform, scaling)
    step = uniform * np.exp(rate * advantage)
    step /= step.sum()
    found = learned_policy(name, [p], size, reports, scaling=scaling, steps=1, rate=rate)[0]
    np.testing.assert_allclose(found, step, atol=1e-12)
    again = step * np.exp(rate * mean_advantage_by_drawing(name, p, size, reports, step, scaling))
    found = learned_policy(name, [p], size, reports, scaling=scaling, steps=2, rate=rate)[0]
    np.testing.assert_allclose(found, again / again.sum(), atol=1e-12)


@pytest.mark.parametrize("scaling", ["group", "normalize_then_sum"])
@pytest.mark.parametrize("name", REWARDS)
def test_stable_is_what_no_deviator_gains_from(name, scaling):
    reports, size, p = [0.0, 0.4, 0.7, 1.0], 3, 0.62
    found = stable_reports(name, [p], size, reports, scaling=scaling)[0]
    for i in range(len(reports)):
        policy = np.eye(len(reports))[i]
        advantage = mean_advantage_by_drawing(name, p, size, reports, policy, scaling)
        assert found[i] == (advantage.max() <= advantage[i] + 1e-12)


@settings(max_examples=20, deadline=None)
@given(p=st.floats(0.02, 0.98), name=st.sampled_from(REWARDS))
def test_unscaled_learning_is_proportional_to_the_expected_reward(p, name):
    """Subtracting the group's mean keeps (G - 1) / G of the expected reward and no bias."""
    size, rate = 4, 0.5
    policy = learned_policy(name, [p], size, TENTHS, scaling="none", steps=1, rate=rate)[0]
    expected = expected_reward(name, TENTHS, [p], size)[0]
    gained = np.log(policy) - np.log(policy[0])
    np.testing.assert_allclose(gained, rate * 3 / 4 * (expected - expected[0]), atol=1e-9)


def test_dividing_by_the_groups_deviation_makes_the_brier_score_improper():
    p = np.array([0.2, 0.8])
    plain = learned_policy("brier", p, 4, TENTHS, scaling="none")
    scaled = learned_policy("brier", p, 4, TENTHS, scaling="group")
    assert TENTHS[plain.argmax(axis=1)].tolist() == [0.2, 0.8]
    assert TENTHS[scaled.argmax(axis=1)].tolist() == [0, 1]
    np.testing.assert_allclose(scaled.sum(axis=1), 1)


def test_studies_of_grpo_have_one_row_a_case():
    p, scalings = np.array([0.3, 0.62]), ["none", "group"]
    held = study_stability(p, [2, 4], TENTHS, scalings=scalings)
    for (scaling, name, size), part in held.groupby(["scaling", "reward", "group_size"]):
        stable = stable_reports(name, p, size, TENTHS, scaling=scaling)
        pairs = {(p[i], TENTHS[j]) for i, j in np.argwhere(stable)}
        assert set(zip(part["probability"], part["report"], strict=True)) == pairs
        assert len(part) == len(pairs)
    learned = study_learning(p, 2, TENTHS, scalings=scalings, steps=3)
    assert len(learned) == len(p) * len(scalings) * len(REWARDS)
    policy = learned_policy("kl", p, 2, TENTHS, scaling="group", steps=3)
    rows = learned[(learned["scaling"] == "group") & (learned["reward"] == "kl")]
    np.testing.assert_allclose(rows["report"], policy @ TENTHS)
    for table in (held, learned):
        np.testing.assert_allclose(table["error"], table["report"] - table["probability"])


@given(c=unit)
def test_a_right_answer_is_worth_what_its_confidence_says_at_the_sample_level(c):
    for name in ("l1", "l2", "kl", "none"):
        assert worth_of_being_right(name, [c]) == 1
    for name in ("sample_l1", "brier"):
        assert worth_of_being_right(name, [c]) == pytest.approx(2 * c)
    clipped = min(max(c, 0.01), 0.99)
    logit = np.log(clipped / (1 - clipped))
    assert worth_of_being_right("sample_kl", [c]) == pytest.approx(1 + logit / np.log(99))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimal_report("L1", [0.5], 2), "no confidence reward is called 'L1'"),
        (lambda: optimal_report("l1", [0.5, 1.5], 2), "probability must be in .* row 1 with 1.5"),
        (lambda: optimal_report("l1", [float("nan")], 2), "probability is missing .* row 0"),
        (lambda: optimal_report("brier", [0.5], 0), "group_size is 0; expected a whole number"),
        (lambda: accuracy_distribution([0.5], 0), "group_size is 0"),
        (lambda: accuracy_distribution([[0.5]], 2), r"probability must have shape \(n,\)"),
        (lambda: accuracy_distribution([0.5], 2, own_probability=2), "own_probability must be in"),
        (lambda: group_advantages([[[1, 0]]], "batch"), "scaling is 'batch'; expected one of 'no"),
        (lambda: group_advantages([[1, 0]], "none"), "parts must have shape"),
        (lambda: group_advantages([[[1]]], "group"), "parts must have shape"),
        (lambda: stable_reports("l1", [0.5], 1, [0.5], scaling="none"), "group_size is 1"),
        (lambda: stable_reports("l1", [0.5], 2, [1.5], scaling="none"), "reports must be in"),
        (lambda: learned_policy("l1", [0.5], 1, [0.5], scaling="none"), "group_size is 1"),
        (
            lambda: learned_policy("l1", [0.5], 16, TENTHS, scaling="none"),
            "11 reports in groups of 16 make .* different groups; expected at most 100,000",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_chapter_shows_what_its_tables_hold(tmp_path):
    sizes = {"group_sizes": [2, 8], "n_probabilities": 100, "output_dir": str(tmp_path)}
    quick = {"learning_group_size": 2, "learning_steps": 20}
    shown = execute("what_rewards_ask", sizes | quick, with_prose=True)
    found = tables(shown)
    (rows,) = [rows for text, rows in found.items() if text.startswith("Questions with chances")]
    summary = pd.read_csv(tmp_path / "calibration_asked_for.csv").set_index("reward")
    of = {row["reward"]: row for row in rows}
    assert of.keys() == {"L1, G = 2", "L1, G = 8", "Sample_L1", "Brier"}
    assert of["Sample_L1"]["ECE"] == f"{summary.loc['Sample_L1', 'ece'].iloc[0]:.2f}" == "0.25"
    assert int(of["L1, G = 8"]["values"]) == 9
    learned = pd.read_csv(tmp_path / "learned_reports.csv")
    off = learned.assign(off=learned["error"].abs())
    off = off.pivot_table(index="reward", columns="scaling", values="off")
    (rows,) = [rows for text, rows in found.items() if text.startswith("Mean distance of the lea")]
    assert {row["reward"]: row["divided"] for row in rows} == {
        name: f"{value:.2f}" for name, value in off["group"].items()
    }
    (answer,) = [text for text in shown if "The short answer" in text]
    assert "4 of paper A's 6 confidence rewards" in answer
    assert f"**{off['group'].min():.2f} to {off['group'].max():.2f}**" in answer
    assert {path.stem for path in tmp_path.glob("*.csv")} == {
        "what_rewards_ask", "calibration_asked_for", "learned_reports", "stable_reports",
    }  # fmt: skip
