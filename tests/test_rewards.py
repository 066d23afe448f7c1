"""The rewards: their ranges, their optima, their targets, and what they refuse."""

import subprocess
import sys
import time
import timeit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from corea.rlcc import rewards
from corea.rlcc.rewards import (
    CONFIDENCE_REWARDS,
    WORST,
    brier,
    confidence_reward,
    format_reward,
    group_accuracy,
    kl,
    l1,
    l2,
    one_language,
    sample_kl,
    sample_l1,
)
from corea.tasks.parsing import parse_completion

NAN = float("nan")
GRID = np.linspace(0, 1, 2001)
NAMES = [name for name in CONFIDENCE_REWARDS if name != "none"]
GROUP_LEVEL = ["l1", "l2", "kl"]
SAMPLE_LEVEL = ["sample_l1", "brier", "sample_kl"]

unit = st.floats(0, 1)
epsilons = st.floats(1e-6, 0.49)
not_a_confidence = st.one_of(
    st.just(NAN),
    st.floats(max_value=0, exclude_max=True),
    st.floats(min_value=1, exclude_min=True),
).filter(lambda c: c != 0)


def format_of(text):
    return format_reward(parse_completion(text), text)


@st.composite
def batches(draw):
    """Whole groups: size, confidences (some unreadable), correctness."""
    size, groups = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    stated = st.one_of(unit, not_a_confidence)
    confidence = draw(st.lists(stated, min_size=size * groups, max_size=size * groups))
    correct = draw(arrays(bool, size * groups))
    return size, np.array(confidence), correct


@pytest.mark.parametrize("name", NAMES)
@given(c=unit, t=unit, y=st.booleans(), epsilon=epsilons)
def test_range_is_minus_one_to_zero_and_both_ends_are_met(name, c, t, y, epsilon):
    reward = CONFIDENCE_REWARDS[name]
    target = t if name in GROUP_LEVEL else y
    assert -1 <= reward(c, target, epsilon) <= 0
    assert reward(float(y), y, epsilon) == 0
    assert reward(float(not y), y, epsilon) == -1


@pytest.mark.parametrize("name", NAMES)
@given(c=not_a_confidence, other=unit, t=unit, y=st.booleans(), epsilon=epsilons)
def test_unreadable_confidence_gets_exactly_the_worst_value(name, c, other, t, y, epsilon):
    reward = CONFIDENCE_REWARDS[name]
    target = t if name in GROUP_LEVEL else y
    assert reward(c, target, epsilon) == WORST == -1
    assert reward(c, target, epsilon) <= reward(other, target, epsilon)


@pytest.mark.parametrize("name", NAMES)
@given(batch=batches())
def test_batch_is_the_definition_rollout_by_rollout(name, batch):
    size, confidence, correct = batch
    together = confidence_reward(name, confidence, correct, size)
    for i, (c, y) in enumerate(zip(confidence, correct, strict=True)):
        first = i - i % size
        share = sum(correct[first : first + size]) / size
        target = share if name in GROUP_LEVEL else float(y)
        if not 0 <= c <= 1:
            expected = -1.0
        elif name in ("l1", "sample_l1"):
            expected = -abs(c - target)
        elif name in ("l2", "brier"):
            expected = -((c - target) ** 2)
        else:
            c = min(max(c, 0.01), 0.99)
            cross_entropy = -target * np.log(c) - (1 - target) * np.log(1 - c)
            expected = -(cross_entropy + np.log(0.99)) / np.log(99)
        assert together[i] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", list(CONFIDENCE_REWARDS))
@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
def test_order_within_a_group_and_of_groups_does_not_matter(name, batch, seed):
    size, confidence, correct = batch
    rng = np.random.default_rng(seed)
    groups = np.arange(len(correct)).reshape(-1, size)
    order = rng.permuted(groups, axis=1)[rng.permutation(len(groups))].ravel()
    plain = confidence_reward(name, confidence, correct, size)
    shuffled = confidence_reward(name, confidence[order], correct[order], size)
    np.testing.assert_array_equal(shuffled, plain[order])


@given(batch=batches())
def test_levels_of_rewards(batch):
    size, confidence, correct = batch
    regrouped = np.sort(correct.reshape(-1, size), axis=1).ravel()
    for group, sample in zip(GROUP_LEVEL, SAMPLE_LEVEL, strict=True):
        # the group level ignores which of the group were right
        np.testing.assert_array_equal(
            confidence_reward(group, confidence, correct, size),
            confidence_reward(group, confidence, regrouped, size),
        )
        # groups of one make both levels the same
        np.testing.assert_array_equal(
            confidence_reward(group, confidence, correct, 1),
            confidence_reward(sample, confidence, correct, 1),
        )
    assert not confidence_reward("none", confidence, correct, size).any()


@pytest.mark.parametrize("p", [0.003, 0.1, 0.3, 0.49, 0.51, 0.77, 0.995])
def test_optimum_of_each_reward_as_its_docstring_says(p):
    # beyond the clipping factor all reports are worth the same, and argmax takes the first
    clipped = min(p, 0.99) if p > 0.01 else 0
    for reward, optimum in ((sample_l1, float(p > 0.5)), (brier, p), (sample_kl, clipped)):
        expected = p * reward(GRID, 1) + (1 - p) * reward(GRID, 0)
        assert GRID[np.argmax(expected)] == pytest.approx(optimum, abs=0.0005)
    for reward, optimum in ((l1, p), (l2, p), (kl, clipped)):
        assert GRID[np.argmax(reward(GRID, p))] == pytest.approx(optimum, abs=0.0005)


@given(st.lists(st.booleans(), min_size=1, max_size=12), epsilons)
def test_group_level_optimum_is_median_or_mean_of_the_sampled_targets(drawn, epsilon):
    targets = np.cumsum(drawn) / len(drawn)  # any sample of group accuracies
    for reward, optimum in ((l1, np.median(targets)), (l2, targets.mean())):
        mean = reward(GRID[:, None], targets).mean(axis=1)
        assert reward(optimum, targets).mean() >= mean.max() - 1e-12
    clipped = np.clip(targets.mean(), epsilon, 1 - epsilon)
    mean = kl(GRID[:, None], targets, epsilon).mean(axis=1)
    assert kl(clipped, targets, epsilon).mean() >= mean.max() - 1e-12


@given(t=unit, c=st.floats(0.01, 0.99), d=st.floats(0.01, 0.99))
def test_kl_differs_from_the_divergence_by_a_constant_and_a_factor(t, c, d):
    def divergence(stated):
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = [q * np.log(q / r) for q, r in ((t, stated), (1 - t, 1 - stated)) if q > 0]
        return sum(terms)

    difference = -(divergence(c) - divergence(d)) / np.log(99)
    assert kl(c, t) - kl(d, t) == pytest.approx(difference, abs=1e-9)


def test_l1_with_groups_of_two_is_a_step_at_0_293():
    for p, optimum in ((0.28, 0), (0.30, 0.5), (0.70, 0.5), (0.72, 1)):
        chances = np.array([(1 - p) ** 2, 2 * p * (1 - p), p**2])
        expected = l1(GRID[:, None], [0, 0.5, 1]) @ chances
        assert GRID[np.argmax(expected)] == pytest.approx(optimum)


def test_group_accuracy_is_a_mean_over_consecutive_rollouts():
    correct = np.array([1, 1, 0, 1, 0, 0, 0, 0], dtype=bool)
    assert group_accuracy(correct, 4).tolist() == [0.75] * 4 + [0.0] * 4
    assert group_accuracy(correct, 8).tolist() == [0.375] * 8
    assert group_accuracy(correct, 1).tolist() == correct.tolist()


@pytest.mark.parametrize("size", [0, -4, 3, 5, 16])
def test_split_groups_are_refused(size):
    with pytest.raises(ValueError, match=rf"8 rollouts are no whole number of groups of {size}"):
        group_accuracy(np.ones(8), size)
    with pytest.raises(ValueError, match="no whole number of groups"):
        confidence_reward("brier", np.ones(8), np.ones(8), size)


def test_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match="'L1'; expected one of none, l1, sample_l1, l2, brier, k"):
        confidence_reward("L1", [0.5], [1], 1)
    assert list(CONFIDENCE_REWARDS) == ["none", "l1", "sample_l1", "l2", "brier", "kl", "sample_kl"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: l1([0.5, 0.5], [0.5, 1.5]), ValueError, "target: row 1 is 1.5"),
        (lambda: l2([0.5], [NAN]), ValueError, "target: row 0 is nan"),
        (lambda: brier([0.5, 0.5], [1, 0.5]), ValueError, "boolean or 0/1: .* row 1 with 0.5"),
        (lambda: sample_l1([0.5], [NAN]), ValueError, "boolean or 0/1: .* row 0 with nan"),
        (lambda: kl([0.5], [0.5], 0), ValueError, "epsilon is 0; expected a number above 0"),
        (lambda: sample_kl([0.5], [1], 0.5), ValueError, "epsilon is 0.5"),
        (lambda: kl([0.5], [0.5], NAN), ValueError, "epsilon is nan"),
        (lambda: l1(["0.5"], [0.5]), TypeError, "confidence must be an array of numbers, found"),
        (lambda: l1([True], [0.5]), TypeError, "confidence must be .* dtype bool"),
        (lambda: brier([0.5], ["1"]), TypeError, "correct must be an array of booleans or 0/1"),
        (lambda: group_accuracy([[1, 0]], 2), ValueError, r"correct must have shape \(n,\)"),
        (
            lambda: confidence_reward("l1", [0.5], [1, 0], 2),
            ValueError,
            "must have the same length",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_none_is_a_missing_confidence_and_single_precision_is_read():
    assert confidence_reward("l1", [0.5, None], [1, 0], 2).tolist() == [0.0, -1.0]
    stated = np.array([0.25, NAN], dtype=np.float32)
    assert confidence_reward("brier", stated, [1, 1], 2).tolist() == [-0.5625, -1.0]


@pytest.mark.parametrize("name", SAMPLE_LEVEL)
@given(c=unit, epsilon=epsilons)
def test_no_stated_confidence_makes_a_wrong_answer_pay(name, c, epsilon):
    """Correctness outweighs any confidence reward, so no report is better off being wrong."""
    reward = CONFIDENCE_REWARDS[name]
    assert 1 + reward(c, 1, epsilon) >= reward(c, 0, epsilon) - 1e-12


@pytest.mark.parametrize(
    ("completion", "thirds"),
    [
        (r"9-1=8. \boxed{8} \confidence{0.9}", 3),
        (r"\boxed{\frac{1}{2}} so \confidence{1}", 3),
        (r"Let α ∈ ℝ, x² ≤ 𝒙. \boxed{α} \confidence{0.5}", 3),
        (r"Café: \boxed{8} \confidence{.5}", 3),
        (r"\boxed{8} \confidence{95%}", 2),
        (r"\boxed{8} \confidence{1.5}", 2),
        (r"\boxed{8} \confidence{-0.5}", 2),
        (r"\boxed{8}", 2),
        (r"\confidence{0.9} \boxed{8}", 2),  # stated before the answer: no confidence
        (r"\confidence{0.9}", 2),
        (r"\boxed{} \confidence{0.9}", 2),
        (r"所以 \boxed{8} \confidence{0.9}", 2),
        (r"\boxed{八} \confidence{0.9}", 2),
        (r"значит \boxed{8}", 1),
        (r"\boxed{8 \confidence{0.9}", 1),  # the box never ends
        ("", 1),
        ("I do not know.", 1),
        ("不知道", 0),
    ],
)
def test_format_is_the_share_of_three_parts(completion, thirds):
    assert format_of(completion) == pytest.approx(thirds / 3)


@given(st.text() | st.text(st.sampled_from("\\boxed{}confidence 0.9八α"), max_size=60))
def test_any_text_has_a_format_reward_and_is_read_as_in_evaluation(text):
    parsed = parse_completion(text)
    parts = (parsed.answer is not None, parsed.confidence is not None, one_language(text))
    assert format_of(text) == sum(parts) / 3


@pytest.mark.parametrize(
    ("text", "one"),
    [
        ("", True),
        ("2 + 2 = 4 🙂 «x» ½ ≥ ∑ x′", True),
        ("ﬁve µm, Å, ℵ0, ℏ, Ａ, 𝔸, nᵃ", True),
        ("e\u0301", True),
        ("答", False),
        ("こたえ", False),
        ("ответ", False),
        ("عشرة", False),
        ("cоrrect", False),  # the o is Cyrillic
    ],
)
def test_letters_of_other_scripts_are_found(text, one):
    assert one_language(text) is one


@pytest.mark.parametrize("make", [lambda n: "α" * n, lambda n: r"\boxed{" * n, lambda n: "八α" * n])
def test_format_takes_time_linear_in_the_text(make):
    def seconds(n):
        text = make(n)
        return min(
            timeit.repeat(lambda: format_of(text), timer=time.process_time, number=1, repeat=5)
        )

    assert seconds(64_000) < 40 * seconds(4_000) + 0.01  # 16 times the text


@pytest.mark.parametrize("name", list(CONFIDENCE_REWARDS))
def test_a_large_batch_takes_less_than_two_milliseconds(name):
    rng = np.random.default_rng(0)
    correct, confidence = rng.random(8192) < 0.5, rng.random(8192)

    def step():
        confidence_reward(name, confidence, correct, 8)

    assert min(timeit.repeat(step, number=5, repeat=10)) / 5 < 0.002


def test_importing_the_rewards_does_not_import_torch():
    code = f"import sys, {rewards.__name__}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
