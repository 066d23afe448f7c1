"""The rewards in TRL's signature, and the alarms, with a stock GRPOTrainer."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from corea.rlcc import reward_functions
from corea.rlcc.reward_functions import confidence, correctness, form
from corea.rlcc.rewards import CONFIDENCE_REWARDS, confidence_reward
from corea.training.alarms import Limits, raised
from corea.training.settings import TrainingError

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
    """What the example of the page leaves, with fewer steps: its names to their values."""
    pytest.importorskip("trl", reason="training needs the extra `train`")
    from corea.training.quiet import quiet

    folder = tmp_path_factory.mktemp("example")
    script = ROOT / "book" / "rewards_for_trl.py"
    with quiet(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [script.name, str(folder), "20"])
        return runpy.run_path(str(script))


@pytest.mark.timeout(900)  # half a minute of two cores that are free
def test_a_stock_trainer_learns_from_the_rewards(example):
    log = pd.DataFrame(example["trainer"].state.log_history)
    log = log[log["reward"].notna()]
    assert len(log) == 20
    first, last = log.head(6), log.tail(6)
    for name in ("reward", "rewards/confidence/mean", "rewards/format/mean"):
        error = np.hypot(first[name].std(), last[name].std()) / np.sqrt(6)
        assert last[name].mean() - first[name].mean() > 3 * error, name
    parts = sum(log[f"rewards/{name}/mean"] for name in reward_functions.COMPONENTS)
    np.testing.assert_allclose(log["reward"], parts, atol=1e-5)
    # correctness is read twice, by two functions: TRL's mean and our log
    np.testing.assert_allclose(log["pass_at_1"], log["rewards/correctness/mean"], atol=1e-6)


@pytest.mark.timeout(900)  # half a minute of two cores that are free
def test_rolling_back_ends_with_the_weights_of_the_checkpoint_before(example, capsys):
    from safetensors.torch import load_file
    from trl import GRPOConfig, GRPOTrainer

    from corea.training.alarm_callback import AlarmCallback
    from corea.training.quiet import quiet

    folder = example["folder"] / "rolled"
    always = Limits(window=1, worse=-1.0)  # on from the second step
    with quiet():
        trainer = GRPOTrainer(
            model=str(example["folder"] / "base" / "model"),
            processing_class=example["tokenizer"],
            reward_funcs=[correctness, confidence("l1"), form],
            train_dataset=example["trainer"].train_dataset,
            args=GRPOConfig(
                output_dir=str(folder), max_steps=6, save_steps=1, learning_rate=1e-2,
                per_device_train_batch_size=16, gradient_accumulation_steps=1,
                num_generations=8, max_completion_length=24, logging_steps=1, report_to=[],
                use_cpu=True, disable_tqdm=True,
            ),
            callbacks=[AlarmCallback("roll back", always, alarms=("accuracy",))],
        )  # fmt: skip
        trainer.train()
    assert trainer.state.global_step == 2
    lines = [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]
    assert [(line["step"], line["alarm"]) for line in lines] == [
        (2, "accuracy"),
        (2, "rolled back"),
    ]
    assert lines[1]["detail"] == "the weights of checkpoint-1"
    assert "progress: step 2: rolled back" in capsys.readouterr().out
    kept, spoilt = (load_file(folder / f"checkpoint-{k}" / "model.safetensors") for k in (1, 2))
    now = trainer.model.state_dict()
    assert all((now[name] == weight).all() for name, weight in kept.items())
    assert any((now[name] != weight).any() for name, weight in spoilt.items())


TWO = """
import json, sys
from accelerate import PartialState
from corea.rlcc.reward_functions import confidence
rank = PartialState(cpu=True).process_index
answers = [r"\\boxed{B} \\confidence{0.25}", r"\\boxed{C} \\confidence{0.75}"]
logged = {}
found = confidence("l1")(
    ["a"] * 2, [answers[rank]] * 2, gold=["B"] * 2, kind=["choice"] * 2, log_metric=logged.__setitem__
)
print(json.dumps([found, logged["pass_at_1"]]))
PartialState().destroy_process_group()
"""


def test_two_processes_with_half_a_group_each_know_its_accuracy(tmp_path):
    pytest.importorskip("accelerate", reason="training needs the extra `train`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    told |= {"MASTER_PORT": port, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env=os.environ | told | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    found = [json.loads(process.communicate(timeout=280)[0]) for process in both]
    assert found == [[[-0.25, -0.25], 0.5]] * 2


# --- what the callback makes of a log -------------------------------------------------------------


@pytest.fixture
def watched(tmp_path):
    """Function that shows a callback what was logged, step by step; what it then wants."""
    pytest.importorskip("transformers", reason="training needs the extra `train`")
    from corea.training.alarm_callback import AlarmCallback

    def watch(log, *options, saved=(), resumed_at=0):
        callback = AlarmCallback(*options)
        (tmp_path / "checkpoint-3").mkdir(exist_ok=True)  # of an earlier run
        args = SimpleNamespace(
            output_dir=str(tmp_path), save_strategy="steps", load_best_model_at_end=False
        )  # fmt: skip
        history = [row | {"step": step} for step, row in enumerate(log[:resumed_at], 1)]
        state = SimpleNamespace(
            log_history=history, best_model_checkpoint=None, is_world_process_zero=True,
            global_step=resumed_at,
        )  # fmt: skip
        control = SimpleNamespace(should_training_stop=False)
        callback.on_train_begin(args, state, control)
        for step, row in enumerate(log[resumed_at:], resumed_at + 1):
            state.global_step = step
            state.log_history.append(row | {"step": step})
            callback.on_log(args, state, control, logs=row)
            if step in saved:
                (tmp_path / f"checkpoint-{step}").mkdir(exist_ok=True)
                callback.on_save(args, state, control)
            if control.should_training_stop:
                break
        path = tmp_path / "alarms.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        told = [(line["step"], line["alarm"]) for line in map(json.loads, lines)]
        return told, control.should_training_stop, args, state

    return watch


ONE = steps(1, commonest_share=1.0)


def test_an_alarm_is_told_once_until_it_has_recovered(watched):
    told, stopped, *_ = watched(steps(2) + ONE * 3 + steps(2) + ONE)
    assert told == [(3, "collapse"), (8, "collapse")]
    assert not stopped


def test_a_resumed_run_does_not_tell_again(watched):
    told, *_ = watched(steps(2) + ONE * 3, resumed_at=3)
    assert told == []


def test_stopping_leaves_the_weights(watched):
    told, stopped, args, state = watched(steps(2) + ONE * 3, "stop", saved=[1])
    assert (told, stopped) == ([(3, "collapse")], True)
    assert state.best_model_checkpoint is None
    assert not args.load_best_model_at_end


@pytest.mark.parametrize(
    ("saved", "chosen"), [([2, 4, 6, 8], 4), ([5, 10], 5), ([6], None), ([3, 6], 3)]
)
def test_the_checkpoint_is_from_before_the_steps_of_the_alarm(watched, saved, chosen):
    """It goes off at step 10, of a window of 5 steps: 6 to 10."""
    told, stopped, args, state = watched(steps(5) + steps(5, ece=0.4), "roll back", saved=saved)
    assert (told, stopped) == ([(10, "calibration"), (10, "rolled back")], True)
    assert args.load_best_model_at_end == (chosen is not None)
    name = state.best_model_checkpoint and Path(state.best_model_checkpoint).name
    assert name == (chosen and f"checkpoint-{chosen}")


def test_only_the_alarms_asked_for_are_acted_on(watched):
    told, stopped, *_ = watched(steps(2) + ONE, "stop", Limits(), ("silence",))
    assert (told, stopped) == ([], False)


def test_a_run_that_nothing_watches_is_told_so(watched):
    with pytest.raises(TrainingError, match="nothing logs 'confidence_output_ratio'"):
        watched([{"loss": 0.5}])
    told, *_ = watched([ONE[0] | {"loss": 0.5}, {"loss": 0.5}])  # several steps a rollout
    assert told == [(1, "collapse")]


@pytest.mark.parametrize("field", ["save_strategy", "load_best_model_at_end"])
def test_rolling_back_needs_checkpoints_of_its_own(field, watched):
    from corea.training.alarm_callback import AlarmCallback

    state = SimpleNamespace(global_step=0)
    args = SimpleNamespace(save_strategy="steps", load_best_model_at_end=False)
    setattr(args, field, {"save_strategy": "no", "load_best_model_at_end": True}[field])
    with pytest.raises(TrainingError, match="rolling back needs checkpoints"):
        AlarmCallback("roll back").on_train_begin(args, state, None)
    AlarmCallback("stop").on_train_begin(args, state, None)
