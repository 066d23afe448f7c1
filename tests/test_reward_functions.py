"""The rewards in TRL's signature, and the alarms, with a stock GRPOTrainer."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from corea.rlcc import reward_functions
from corea.rlcc.reward_functions import confidence, correctness, form
from corea.rlcc.rewards import CONFIDENCE_REWARDS, confidence_reward
from corea.training.alarms import Limits, raised

ROOT = Path(__file__).resolve().parent.parent


def completions(right, stated):
    texts = []
    for ok, number in zip(right, stated, strict=True):
        said = "" if np.isnan(number) else rf" \confidence{{{number:.2f}}}"
        texts.append(rf"\boxed{{{'B' if ok else 'C'}}}{said}")
    return texts, {"gold": ["B"] * len(texts), "kind": ["choice"] * len(texts)}


@pytest.mark.parametrize("name", sorted(CONFIDENCE_REWARDS))
def test_rewards_are_those_of_the_book_in_any_order_of_rows(name):
    rng = np.random.default_rng(0)
    right, stated = rng.integers(2, size=24).astype(float), rng.integers(101, size=24) / 100
    stated[[3, 17]] = np.nan
    prompts = np.repeat(["a", "b", "c"], 8)
    expected = confidence_reward(name, stated, right, 8)
    mixed = rng.permutation(24)
    texts, columns = completions(right[mixed], stated[mixed])
    found = confidence(name)(prompts=list(prompts[mixed]), completions=texts, **columns)
    assert found == pytest.approx(expected[mixed].tolist())
    assert all(type(value) is float for value in found)
    if name != "none":
        assert len({round(value, 3) for value in found}) > 5


def test_the_parts_have_the_names_that_trl_logs():
    assert [f.__name__ for f in (correctness, confidence("kl"), form)] == list(
        reward_functions.COMPONENTS
    )


def test_conversations_are_read_like_texts():
    texts, columns = completions([1, 0], [0.75, 0.25])
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    prompts = [[{"role": "user", "content": "which?"}]] * 2
    for reward in (correctness, confidence("l1"), form):
        assert reward(prompts=prompts, completions=messages, **columns) == reward(
            prompts=["which?"] * 2, completions=texts, **columns
        )


def test_another_judge_of_answers_is_asked():
    asked = []

    def judge(prompts, completions, tests, **_):
        asked.append(tests)
        return [1.0, 1.0, 0.0, 0.0]

    texts, _ = completions([0] * 4, [0.5, 0.5, 0.5, 1.0])
    found = confidence("l2", right=judge)(["a"] * 4, texts, tests=[1, 2, 3, 4])
    assert found == [0, 0, 0, -0.25]
    assert asked == [[1, 2, 3, 4]]


@pytest.mark.parametrize("prompts", ["abcd", "aabc", "aaab", "aaabb"])
def test_groups_that_are_not_whole_are_refused(prompts):
    texts, columns = completions([1] * len(prompts), [0.5] * len(prompts))
    with pytest.raises(ValueError, match=r"no group accuracy: prompts occur .*num_generations"):
        confidence("l1")(list(prompts), texts, **columns)
    assert len(confidence("brier")(list(prompts), texts, **columns)) == len(prompts)


def test_a_group_that_is_spread_over_processes_is_one(monkeypatch):
    """Each of two processes has half of a group."""
    right, stated = [1, 0, 0, 0], [0.25, 0.75, 0.5, 0.0]
    texts, columns = completions(right, stated)
    whole = confidence("l1")(["a"] * 4, texts, **columns)
    assert whole == [0, -0.5, -0.25, -0.25]
    parts, logged = {}, []
    gather = reward_functions._of_all_processes
    for rank in (0, 1):  # first what each would send, then what each makes of both
        monkeypatch.setattr(reward_functions, "_of_all_processes", lambda part, rank=rank: parts.setdefault(rank, gather(part)))  # noqa: E501
        rows = slice(2 * rank, 2 * rank + 2)
        confidence("l1")(["a"] * 2, texts[rows], **{k: v[rows] for k, v in columns.items()})
    both = [parts[0][0], parts[1][0]]
    monkeypatch.setattr(reward_functions, "_of_all_processes", lambda _: both)
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        rows = slice(2 * rank, 2 * rank + 2)
        here = {k: v[rows] for k, v in columns.items()}
        found = confidence("l1")(
            ["a"] * 2, texts[rows], log_metric=lambda *m: logged.append(m), **here
        )
        assert found == whole[rows]
    assert logged[: len(logged) // 2] == logged[len(logged) // 2 :]
    assert ("pass_at_1", 0.25) in logged


# --- the rules of the alarms ----------------------------------------------------------------------


def steps(n, **values):
    sound = {"pass_at_1": 0.5, "ece": 0.2, "confidence_output_ratio": 0.9}
    sound |= {"commonest_share": 0.4, "accuracy_spread": 0.3}
    return [sound | values for _ in range(n)]


@pytest.mark.parametrize(
    ("alarm", "last"),
    [
        ("collapse", steps(1, commonest_share=0.95)),
        ("silence", steps(5, confidence_output_ratio=0.49)),
        ("calibration", steps(5, ece=0.31)),
        ("accuracy", steps(5, pass_at_1=0.39)),
    ],
)
def test_each_alarm_needs_what_it_is_about(alarm, last):
    assert list(raised(steps(5) + last)) == [alarm]
    assert raised(steps(5) + last[:-1] + steps(1)) == {}
    assert raised([]) == raised(steps(20)) == {}


@pytest.mark.parametrize(
    "last",
    [
        steps(1, commonest_share=1.0, accuracy_spread=0.09),
        steps(5, confidence_output_ratio=0.5),
        steps(5, ece=0.29),
        steps(5, ece=0.0),
        steps(5, pass_at_1=0.41),
        steps(5, pass_at_1=1.0),
        steps(5, ece=None, commonest_share=float("nan")),
    ],
)
def test_no_alarm_goes_off_within_its_limits(last):
    assert raised(steps(5) + last) == {}


def test_limits_are_obeyed():
    falling = steps(2) + steps(2, pass_at_1=0.4)
    assert raised(falling, Limits(window=2, worse=0.05)) == {
        "accuracy": "pass@1 went from 0.50 to 0.40"
    }
    assert raised(falling, Limits(window=2, worse=0.2)) == {}
    assert raised(falling, Limits(window=3, worse=0.05)) == {}


# --- with TRL's own trainer -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example of the page, with fewer steps: what it printed, and its folder."""
    pytest.importorskip("trl", reason="training needs the extra `train`")
    folder = tmp_path_factory.mktemp("example")
    script = ROOT / "examples" / "rewards_for_trl.py"
    result = subprocess.run(
        [sys.executable, script, folder, "20"], capture_output=True, text=True, timeout=280,
        cwd=folder, env={**__import__("os").environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return folder
