import dataclasses
import inspect
import json
import math
import os
import queue
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

trl = pytest.importorskip("trl", reason="training needs the extra `train`")

import torch  # noqa: E402
import train_in_process as small  # noqa: E402
from huggingface_hub.utils import _telemetry  # noqa: E402
from packaging.requirements import Requirement  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import PreTrainedTokenizerFast, PrinterCallback  # noqa: E402
from trl.generation.vllm_generation import VLLMGeneration  # noqa: E402

from corea.metrics import calibration  # noqa: E402
from corea.rlcc import rewards  # noqa: E402
from corea.rlcc.reward_functions import (  # noqa: E402
    COMPONENTS,
    ROLLOUT_METRICS,
    correctness,
    rollout_metrics,
)
from corea.rlcc.settings import GRPOSettings  # noqa: E402
from corea.rlcc.trainer import RLCCTrainer, collapse, train_grpo  # noqa: E402
from corea.store import seal  # noqa: E402
from corea.tasks.parsing import parse_completion  # noqa: E402
from corea.training import alarms, loop  # noqa: E402
from corea.training import grpo as grpo_module  # noqa: E402
from corea.training.checkpoints import last_checkpoint, select_checkpoint  # noqa: E402
from corea.training.grpo import RolloutTrainer, complete  # noqa: E402
from corea.training.quiet import hub, quiet  # noqa: E402
from corea.training.settings import SFTSettings, TrainingError, validation_batch  # noqa: E402
from corea.training.sft import tokenize_rows, train_sft  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(small.__file__)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
COLUMNS = [
    *("step", "reward", "reward_correctness", "reward_confidence", "reward_format", "pass_at_1"),
    *("ece", "auroc", "confidence_output_ratio", "mean_confidence", "distinct_confidences"),
    *("share_at_0", "share_at_1", "groups_without_variance", "commonest_share"),
    *("accuracy_spread", "loss", "grad_norm", "entropy", "kl", "completion_tokens"),
    *("learning_rate", "seconds"),
]


# --- runs in other processes, and what they leave -------------------------------------------------


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory):
    """The base model and an uninterrupted run of each kind, with what the process printed."""
    folder = tmp_path_factory.mktemp("reference")
    result = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, "reference", folder],
        capture_output=True, text=True, timeout=280, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return folder, result


@pytest.fixture(scope="session")
def reference(reference_run):
    return reference_run[0]


@pytest.fixture(scope="session")
def serve(reference):
    """Function that has a process with everything imported fork one that trains."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", SCRIPT, "serve", reference],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip

    def run(directory, task="grpo", settings=None, expect=(0,), **options):
        settings = {"grpo": small.GRPO, "sft": small.SFT}[task] | (settings or {})
        request = {"task": task, "directory": str(directory), "settings": settings}
        process.stdin.write(json.dumps(request | options) + "\n")
        process.stdin.flush()
        reply = json.loads(process.stdout.readline())
        assert tuple(reply["statuses"]) == expect or "kill" in options, printed(directory, "err")
        return reply

    yield run
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


def printed(directory, ending="out", rank=0):
    return directory.with_name(f"{directory.name}.{rank}.{ending}").read_text()


def results(directory):
    """Everything a run leaves, without the time its steps took."""
    files = {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
    table = pd.read_csv(directory / "dynamics.csv")
    files["dynamics.csv"] = table.drop(columns="seconds", errors="ignore").to_csv().encode()
    return files


def newest_checkpoint(directory):
    """Step of the newest checkpoint that has its checksums, 0 if there is none."""
    whole = directory.glob("checkpoints/checkpoint-*/manifest.json")
    return max((int(path.parent.name.split("-")[1]) for path in whole), default=0)


def moments(events, letter):
    return [moment for name, moment in events if name == letter]


# --- runs in this process -------------------------------------------------------------------------


@pytest.fixture
def tokenizer(reference):
    return PreTrainedTokenizerFast.from_pretrained(reference / "tokenizer")


@pytest.fixture
def grpo(reference, tokenizer, tmp_path):
    """Function that runs train_grpo with the small model."""

    def train(directory=tmp_path / "run", validation=small.VALIDATION, **settings):
        directory.parent.mkdir(exist_ok=True)
        base = reference / "sft" / "model"
        settings = GRPOSettings(**small.GRPO | settings)
        train_grpo(base, tokenizer, small.TRAINING, validation, settings, directory)
        return directory

    return train


@pytest.fixture
def trainer(grpo, monkeypatch):
    """Function that makes the trainer that train_grpo would run, training mode on."""

    def build(**settings):
        class Built(Exception):
            pass

        def stop(trainer, directory, **_):
            raise Built(trainer)

        monkeypatch.setattr(loop, "run", stop)
        with pytest.raises(Built) as caught:
            grpo(**settings)
        (made,) = caught.value.args
        made.remove_callback(PrinterCallback)
        made.model.train()
        return made

    return build


def completion(question, right, stated):
    answer = question.gold if right else "x"
    said = "" if stated is None else rf" \confidence{{{stated}}}"
    return rf"\boxed{{{answer}}}{said}"


def batch(questions, group_size, rights, stated):
    """Arguments of _calculate_rewards for whole groups, row by row."""
    asked = [question for question in questions for _ in range(group_size)]
    inputs = [{"prompt": q.prompt, "gold": q.gold, "kind": q.kind} for q in asked]
    texts = [completion(*row) for row in zip(asked, rights, stated, strict=True)]
    return inputs, [q.prompt for q in asked], texts, [[5, 1]] * len(asked)


# --- TRL's private interface ----------------------------------------------------------------------


def test_the_trl_installed_is_the_one_that_was_read():
    """RLCCTrainer overrides private methods: another version is to be read before it is used."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    (line,) = [line for line in text.splitlines() if line.strip().startswith('"trl==')]
    requirement = Requirement(line.split('"')[1])
    assert str(requirement.specifier) == f"=={trl.__version__}"


def test_the_private_methods_of_trl_are_as_they_were():
    signature = inspect.signature(trl.GRPOTrainer._calculate_rewards)
    assert [*signature.parameters] == [
        *("self", "inputs", "prompts", "completions", "completion_ids_list"),
    ]
    overridden = {
        name
        for made in (RolloutTrainer, RLCCTrainer)
        for name, value in vars(made).items()
        if inspect.isfunction(value)
    }
    private = {name for name in overridden if name.startswith("_") and not name.startswith("__")}
    assert private == {
        *("_calculate_rewards", "_generate_and_score_completions", "_compute_loss"),
    }
    of_one = inspect.signature(trl.GRPOTrainer._generate_and_score_completions)
    assert [*of_one.parameters] == ["self", "inputs"]
    of_loss = inspect.signature(trl.GRPOTrainer._compute_loss)
    assert [*of_loss.parameters] == ["self", "model", "inputs"]
    added = (
        "step_now",
        "watch",
        "validated",
        "annotate",
        "watching",
        "adjusted",
        "logged",
        "keep_validated",
    )
    # a new method of theirs with such a name would be replaced without anybody noticing
    assert not any(hasattr(trl.GRPOTrainer, name) for name in added)


def test_what_is_read_of_trl_with_vllm_is_as_it_was():
    """No vLLM is installed here: what its users see is checked in the source."""
    assert [*inspect.signature(VLLMGeneration.sync_weights).parameters] == ["self"]
    for method, line in (
        ("__init__", "self.vllm_generation = VLLMGeneration("),
        ("_generate_single_turn", "self.vllm_generation.sync_weights()"),
        (
            "_generate_and_score_completions",
            'output["importance_sampling_ratio"] = vllm_importance_sampling_ratio',
        ),
    ):
        assert line in inspect.getsource(getattr(trl.GRPOTrainer, method))


def test_the_private_state_of_trl_is_as_it_was(trainer):
    made = trainer(confidence_reward="none")
    assert {mode: dict(kept) for mode, kept in made._metrics.items()} == {"train": {}, "eval": {}}
    assert made._step == 0
    assert made._buffered_inputs is None
    assert list(made._logs["completion"]) == []
    assert made.reward_func_names == list(COMPONENTS)
    made._metrics["train"]["something"].append(2.5)  # what RLCCTrainer does
    made.log({})
    assert made.state.log_history[-1]["something"] == 2.5
    assert "something" not in made._metrics["train"]


def test_correctness_knows_the_options():
    texts = [r"\boxed{bank}", r"\boxed{mall}", r"\boxed{4}"]
    columns = {"gold": ["B", "B", "4"], "kind": ["choice", "choice", "math"]}
    options = [["mall", "bank"], ["mall", "bank"], []]
    assert correctness(texts, **columns, options=options) == [1, 0, 1]
    assert correctness(texts, **columns) == [0, 0, 1]


@pytest.mark.parametrize("name", sorted(rewards.CONFIDENCE_REWARDS))
def test_trl_gets_the_same_from_the_functions_as_from_the_trainer(trainer, name):
    made = trainer(confidence_reward=name)
    arguments = batch(small.TRAINING[:2], 4, [1, 0, 1, 1, 0] + [0] * 3, [0.5, None, 0.25, 0.75] * 2)
    found = trl.GRPOTrainer._calculate_rewards(made, *arguments)
    assert isinstance(found, torch.Tensor)
    assert found.shape == (8, 3)
    assert torch.equal(found, made._calculate_rewards(*arguments))
    assert (found[:, 1] != 0).any() == (name != "none")


# --- settings -------------------------------------------------------------------------------------

BOTH = [
    ("steps", 0), ("steps", -4), ("steps", 4.5), ("steps", True), ("steps", None),
    ("batch", 0), ("micro_batch", 0), ("micro_batch", "16"),
    ("learning_rate", 0), ("learning_rate", -1e-3), ("learning_rate", math.nan),
    ("learning_rate", math.inf), ("warmup_steps", -1), ("warmup_steps", 0.5),
    ("checkpoint_every", 0), ("precision", "float16"), ("precision", None),
    ("seed", -1), ("seed", 0.5),
    ("lora_rank", -1), ("lora_rank", 1.5), ("lora_rank", True), ("lora_alpha", 0),
    ("lora_alpha", math.nan), ("lora_dropout", -0.1), ("lora_dropout", 1), ("lora_dropout", None),
    ("lora_targets", "q_proj"), ("gradient_checkpointing", 1),
]  # fmt: skip
OF_GRPO = [
    ("confidence_reward", "l3"), ("confidence_reward", None), ("group_size", 1),
    ("group_size", 0), ("group_size", 2.0), ("steps_per_rollout", 0), ("temperature", 0),
    ("temperature", -1.0), ("max_completion_tokens", 0), ("kl_coef", -0.1), ("kl_coef", math.nan),
    ("entropy_coef", -0.1), ("confidence_weight", math.nan), ("confidence_weight", -1),
    ("format_weight", math.inf), ("loss_type", "ppo"), ("loss_type", "luspo"),
    ("scale_rewards", True), ("scale_rewards", "all"), ("rollouts", "vllm"),
    ("vllm_memory_share", 0), ("vllm_memory_share", 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "good", "name", "value"),
    [(SFTSettings, {"steps": 200}, name, value) for name, value in BOTH]
    + [(SFTSettings, {"steps": 200}, "weight_decay", -0.1)]
    + [(SFTSettings, {"steps": 200}, "adam_beta2", value) for value in (0, 1, 1.5, math.nan)]
    + [(GRPOSettings, {}, name, value) for name, value in BOTH + OF_GRPO],
)
def test_a_wrong_setting_is_named(settings, good, name, value):
    settings(**good)
    with pytest.raises(ValueError, match=f"^{name} is {value!r}; expected "):
        settings(**good | {name: value})


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (SFTSettings, {"steps": 250}, "steps is 250; .* a multiple of checkpoint_every, 200"),
        (GRPOSettings, {"steps": 10}, "steps is 10; .* a multiple of checkpoint_every, 20"),
        (GRPOSettings, {"group_size": 7}, "batch is 256; .* a multiple of group_size, 7"),
        (GRPOSettings, {"steps_per_rollout": 3}, "checkpoint_every is 20; .* steps_per_rollout, 3"),
    ],
)
def test_settings_that_do_not_fit_together_are_named(settings, values, message):
    with pytest.raises(ValueError, match=message):
        settings(**values)


def test_values_at_the_edge_are_taken():
    zero = dict.fromkeys(
        ("warmup_steps", "kl_coef", "entropy_coef", "confidence_weight", "format_weight", "seed"), 0
    )
    assert GRPOSettings(**zero).kl_coef == 0
    assert loop.adapter(GRPOSettings(lora_rank=0, lora_dropout=0)) is None
    assert SFTSettings(steps=200, weight_decay=0, seed=0, learning_rate=1).learning_rate == 1


def test_nothing_to_train_on_is_refused(grpo, tokenizer, tmp_path, monkeypatch):
    model = small.new_model(tokenizer)
    with pytest.raises(ValueError, match="nothing to train on"):
        train_sft(model, tokenizer, [], SFTSettings(**small.SFT), tmp_path / "none")
    with pytest.raises(ValueError, match="nothing to validate on"):
        grpo(validation=[])
    monkeypatch.setattr(small, "TRAINING", [])
    with pytest.raises(ValueError, match="nothing to train on"):
        grpo()


# --- batch layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "world", "error"),
    [
        ({"micro_batch": 6}, 1, r"batch is 16; expected a multiple of micro_batch .* 6 x 1"),
        ({"micro_batch": 16}, 2, r"batch is 16; expected a multiple of micro_batch .* 16 x 2"),
        ({"micro_batch": 4}, 3, r"batch is 16; expected a multiple of micro_batch .* 4 x 3"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(grpo, monkeypatch, settings, world, error):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(ValueError, match=error):
        grpo(**settings)


@pytest.mark.parametrize(
    ("group_size", "world", "n", "multiple"), [(3, 2, 3, 2), (4, 3, 4, 3), (6, 4, 5, 2)]
)
def test_validation_that_does_not_divide_is_refused(
    grpo, monkeypatch, group_size, world, n, multiple
):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(TrainingError, match=rf"{n} validation .* a multiple of {multiple}$"):
        grpo(
            validation=small.QUESTIONS[80 : 80 + n],
            group_size=group_size,
            batch=12,
            micro_batch=1,
        )


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batch", [1, 5, 16, 256])
@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_the_validation_batch_is_one_that_works(world, micro_batch, group_size):
    settings = GRPOSettings(
        group_size=group_size, batch=group_size * micro_batch, micro_batch=micro_batch
    )
    for n in (world, 3 * world, 24):
        if n % (math.lcm(group_size, world) // group_size):
            continue  # refused, see above
        at_once = validation_batch(n, settings, world) * world
        assert n * group_size % at_once == 0
        assert at_once % group_size == 0
        assert at_once <= max(micro_batch * world, math.lcm(group_size, world))


def test_an_unequal_last_validation_batch_is_refused(trainer, monkeypatch):
    """Accelerate would fill it with rows from the start."""
    monkeypatch.setattr(grpo_module, "validation_batch", lambda *_: 12)
    match = r"16 validation rollouts \(4 questions, 4 each\) do not divide into batches of 12"
    with pytest.raises(TrainingError, match=match):
        trainer()


def test_a_validation_question_asked_twice_is_refused(trainer):
    with pytest.raises(TrainingError, match="two validation questions have the same prompt"):
        trainer(validation=[*small.VALIDATION[:3], small.VALIDATION[0]])


def test_a_group_of_two_prompts_is_refused(trainer):
    made = trainer()
    made.state.global_step = 6
    first, second, third = small.TRAINING[:3]
    arguments = batch([first, second, third], 3, [1] * 9, [0.5] * 9)  # 9 rows in threes
    shifted = [part[:8] for part in arguments]  # ... are not groups of four
    with pytest.raises(TrainingError, match="step 7: 4 completions in a row are not of one prompt"):
        made._calculate_rewards(*shifted)


# --- rewards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rewards.CONFIDENCE_REWARDS)
@pytest.mark.parametrize("training", [True, False])
def test_rewards_of_the_trainer_are_those_of_the_functions(trainer, name, training):
    made = trainer(confidence_reward=name)
    made.model.train(training)
    rng = np.random.default_rng(3)
    questions = small.TRAINING[:3] if training else small.VALIDATION[:3]
    rights = rng.integers(2, size=12)
    stated = [*rng.choice([0.1, 0.3, 0.7, 0.9, 1.0], 10).tolist(), None, None]
    found = made._calculate_rewards(*batch(questions, 4, rights, stated)).numpy()
    confidences = [math.nan if c is None else c for c in stated]
    expected = np.stack(
        [
            rights,
            rewards.confidence_reward(name, confidences, rights, 4),
            [1.0] * 10 + [2 / 3] * 2,
        ],
        axis=1,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if training:
        assert not made.validated
    else:
        (table,) = made.validated
        assert table["question_id"].tolist() == [q.question_id for q in questions for _ in range(4)]
        assert table["sample"].tolist() == [0, 1, 2, 3] * 3
        assert table["correct"].tolist() == (rights == 1).tolist()
        # exactly as stated, not as TRL's 32 bits have it
        np.testing.assert_array_equal(table["confidence"], confidences)
        np.testing.assert_array_equal(table["format"], expected[:, 2])


def test_confidences_are_binned_as_they_are_stated(trainer):
    """In 32 bits 0.7 and 0.9 are less than 0.7 and 0.9, and fall into the bin below."""
    made = trainer()
    rights, stated = [0, 1, 1, 1, 0, 1, 1, 1], [0.6, 0.7, 0.7, 0.9, 0.8, 0.9, 0.9, 0.8]
    made._calculate_rewards(*batch(small.TRAINING[:2], 4, rights, stated))
    made.log({})
    logged = made.state.log_history[-1]
    by_hand = (0.6 + (2 - 1.4) + abs(1 - 1.6) + (3 - 2.7)) / 8
    assert logged["ece"] == pytest.approx(by_hand, abs=1e-12)
    assert logged["ece"] == calibration.expected_calibration_error(stated, rights)


# Layouts of a batch of 12 completions, in groups of 4, over two processes: what a process has at
# once holds a part of a group in each of them.
LAYOUTS = {
    "l1": {"micro_batch": 3, "steps_per_rollout": 1, "steps": 4, "checkpoint_every": 2},
    "kl": {"micro_batch": 6, "steps_per_rollout": 3, "steps": 3, "checkpoint_every": 3},
    "brier": {"micro_batch": 3, "steps_per_rollout": 3, "steps": 3, "checkpoint_every": 3},
    "none": {"micro_batch": 6, "steps_per_rollout": 1, "steps": 2, "checkpoint_every": 2},
}


def two_processes(name):
    return small.GRPO | LAYOUTS[name] | {"confidence_reward": name, "batch": 12, "kl_coef": 0.0}


@pytest.fixture(scope="module")
def run_together(serve, tmp_path_factory):
    """Function that trains with two processes: the folder, and what each process recorded."""
    folder, made = tmp_path_factory.mktemp("together"), {}

    def run(name):
        directory = folder / name
        if name not in made:
            settings = two_processes(name)
            serve(directory, settings=settings, processes=2, record=True, expect=(0, 0))
            made[name] = [
                json.loads(directory.with_name(f"{name}.{rank}.json").read_text())
                for rank in (0, 1)
            ]
        return directory, made[name]

    return run


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_processes_earn_what_one_would(run_together, reference, trainer, name):
    directory, (first, second) = run_together(name)
    settings = two_processes(name)
    assert first["weights"] == second["weights"]  # and training changed them:
    before = load_file(reference / "sft" / "model" / "model.safetensors")
    after = load_file(directory / "model" / "model.safetensors")
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert [printed(directory, "err", rank) for rank in (0, 1)] == ["", ""]

    made = trainer(**settings | {"micro_batch": 12})
    split = set()
    assert len(first["calls"]) == len(second["calls"])
    for one, two in zip(first["calls"], second["calls"], strict=True):
        assert one["training"] == two["training"]
        made.model.train(one["training"])
        inputs, prompts, texts = (one[k] + two[k] for k in ("inputs", "prompts", "completions"))
        alone = made._calculate_rewards(inputs, prompts, texts, [[1]] * len(texts)).tolist()
        assert one["rewards"] == two["rewards"] == alone
        stated = [parse_completion(text).confidence for text in texts]
        expected = rewards.confidence_reward(name, stated, [row[0] for row in alone], 4)
        np.testing.assert_allclose([row[1] for row in alone], expected, rtol=1e-6)
        split.add((one["training"], one["prompts"][-1] == two["prompts"][0]))
        if one["training"]:
            assert len(texts) == settings["batch"] * settings["steps_per_rollout"]
    # groups were shared by the processes, in validation too where that is done in twos
    assert split == {(True, True), (False, settings["micro_batch"] == 3)}


def test_two_killed_processes_go_on_together(serve, run_together, tmp_path):
    whole, recorded = run_together("l1")
    killed, settings = tmp_path / "killed", two_processes("l1")
    # each process has its part in a checkpoint: the checksums wait for the slow one
    reply = serve(killed, settings=settings, processes=2, slow=1, kill=["s", 3, 0.005])
    assert reply["statuses"] == [-9, -9]
    assert newest_checkpoint(killed) == 2
    serve(killed, settings=settings, processes=2, record=True, expect=(0, 0))
    assert "checkpoint-2" not in printed(killed)
    assert "step 0 of" not in printed(killed)  # it went on from there
    assert results(killed) == results(whole)
    for rank in (0, 1):
        again = json.loads(killed.with_name(f"killed.{rank}.json").read_text())
        assert again["weights"] == recorded[rank]["weights"]


def test_a_loss_of_one_process_ends_all(serve, tmp_path):
    directory = tmp_path / "run"
    serve(directory, settings=two_processes("l1"), processes=2, spoil=[1, 2], expect=(1, 1))
    for rank in (0, 1):
        assert "TrainingError: step 3: the loss is nan" in printed(directory, "err", rank)
    (line,) = (directory / "alarms.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3
    assert newest_checkpoint(directory) == 2


# Adapters whose dropout draws random numbers, beside weights that are kept as they are.
ADAPTERS = {"lora_rank": 4, "lora_targets": "all-linear", "learning_rate": 1e-2}


def test_two_processes_train_the_same_adapters(serve, reference, tmp_path):
    directory = tmp_path / "run"
    settings = two_processes("none") | ADAPTERS | {"kl_coef": 0.01}
    serve(directory, settings=settings, processes=2, record=True, expect=(0, 0))
    first, second = (
        json.loads(directory.with_name(f"run.{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first["weights"] == second["weights"]
    assert [printed(directory, "err", rank) for rank in (0, 1)] == ["", ""]
    before, after = (
        load_file(path / "model" / "model.safetensors") for path in (reference / "sft", directory)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj.weight" in name}


# --- killed runs ----------------------------------------------------------------------------------


def kill_and_go_on(serve, directory, plan, settled, n_saving, **request):
    """Kill a run as planned, each time where it then is; what happened at each kill."""
    kills = []
    for _ in range(4 * len(plan)):
        if len(kills) == len(plan):  # a busy machine may have let all saves end
            plan = [*plan, ["s", 1, 0.005]]
        start = newest_checkpoint(directory)
        reply = serve(directory, kill=plan[len(kills)], **request)
        if reply["statuses"] == [0]:  # it was too fast: the next one starts anew
            assert results(directory) == settled
            continue
        assert reply["statuses"] == [-9]
        saving = len(moments(reply["events"], "s")) > len(moments(reply["events"], "S"))
        named = "is not used" in printed(directory)
        kills.append({"start": start, "saving": saving, "named": named})
        if len(kills) >= len(plan) and sum(kill["saving"] for kill in kills) >= n_saving:
            serve(directory, **request)
            named = "is not used" in printed(directory)
            kills.append({"start": newest_checkpoint(directory), "saving": False, "named": named})
            return kills
    raise AssertionError(f"of {len(plan)} kills these hit before the end: {kills}")


def killing_plan(events, rng, n_anywhere, n_saving):
    """Random moments of a run like the one with these events: markers and seconds after them."""
    begin, end = moments(events, "b")[0], moments(events, "k")[0]
    saving = np.median(np.subtract(moments(events, "S"), moments(events, "s")))
    plan = [["", 0, rng.uniform(0, begin)]]
    plan += [["b", 1, rng.uniform(0, 0.25 * (end - begin))] for _ in range(n_anywhere)]
    plan += [["s", 2, rng.uniform(0, saving)] for _ in range(n_saving)]
    return [plan[i] for i in rng.permutation(len(plan))]


@pytest.mark.parametrize(
    ("task", "n_anywhere", "n_saving"), [("grpo", 5, 4), ("sft", 2, 2)], ids=["grpo", "sft"]
)
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(
    serve, reference, tmp_path, task, n_anywhere, n_saving
):
    # alarms that come and go, so that a resumed run may report one twice or forget it
    request = {"task": task, "constants": {"COLLAPSED_SHARE": 0.25, "VARYING_ACCURACY": 0.0}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reply = serve(whole, **request)
    settled = results(whole)
    if task == "grpo":
        assert len(settled["alarms.csv"].splitlines()) > 2
        settled["alarms.csv"] = b""
        assert settled == results(reference / "grpo") | {"alarms.csv": b""}
        settled = results(whole)
    else:
        assert settled == results(reference / "sft")

    rng = np.random.default_rng(0)
    plan = killing_plan(reply["events"], rng, n_anywhere, n_saving)
    kills = kill_and_go_on(serve, killed, plan, settled, n_saving // 2, **request)
    assert results(killed) == settled
    assert printed(killed, "err") == ""
    assert len(kills) > len(plan)
    starts = [kill["start"] for kill in kills]
    assert sum(step > 0 for step in starts) >= n_saving
    assert len(set(starts)) > n_saving // 2  # several of them made progress
    if task == "grpo":
        assert any(kill["named"] for kill in kills)  # a half-written checkpoint was


@pytest.mark.parametrize(("task", "steps"), [("grpo", 6), ("sft", 18)])
def test_a_killed_run_with_adapters_ends_with_the_same_weights(serve, tmp_path, task, steps):
    request = {"task": task, "settings": ADAPTERS | {"steps": steps}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    serve(whole, **request)
    serve(killed, at="S", expect=(-9,), **request)  # the first checkpoint is sealed
    first = newest_checkpoint(killed)
    serve(killed, at="s", expect=(-9,), **request)  # the next is about to be written
    assert newest_checkpoint(killed) == first == steps // 3
    checkpoint = killed / "checkpoints" / f"checkpoint-{first}"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists()
    serve(killed, **request)
    assert results(killed) == results(whole)
    assert printed(killed, "err") == ""


def test_a_run_killed_while_it_ends_has_lost_nothing(serve, tmp_path):
    request = {"settings": {"steps": 2}, "constants": {"COLLAPSED_SHARE": 0.1}}
    whole = tmp_path / "whole"
    serve(whole, **request)
    assert len((whole / "alarms.csv").read_text().splitlines()) > 1
    for milliseconds in (0, 2, 10):
        killed = tmp_path / f"killed-{milliseconds}"
        serve(killed, kill=["k", 1, milliseconds / 1000], **request)
        serve(killed, **request)
        assert results(killed) == results(whole)


# --- damaged checkpoints --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ending(serve, tmp_path_factory):
    """A run that was killed when all was trained and nothing was put away yet."""
    directory = tmp_path_factory.mktemp("ending") / "run"
    serve(directory, at="k", expect=(-9,))
    assert sorted(p.name for p in (directory / "checkpoints").glob("checkpoint-*")) == [
        *("checkpoint-14", "checkpoint-16"),
    ]
    return directory


@pytest.fixture
def ended(ending, tmp_path):
    """A copy of that run, links kept: a checkpoint shares its weights' file with ``weights/``."""
    subprocess.run(["cp", "-a", ending, tmp_path / "run"], check=True)
    return tmp_path / "run"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as stream:  # in place, as a disk does it
        stream.write(content)


@pytest.mark.parametrize(
    ("name", "damage", "named"),
    [
        ("model.safetensors", flip, "was changed"),
        ("optimizer.pt", lambda path: os.truncate(path, 100), "was changed"),
        ("rng_state.pth", Path.unlink, "is missing"),
        ("manifest.json", Path.unlink, "half written"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_not_used(serve, reference, ended, name, damage, named):
    damage(ended / "checkpoints" / "checkpoint-16" / name)
    serve(ended)
    lines = printed(ended).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("progress: a checkpoint is not used: ")
    assert "checkpoint-16" in lines[0]
    assert named in lines[0]
    assert (name in lines[0]) or named == "half written"
    assert lines[1].startswith("progress: step 16 of 16: validation")  # from the one before
    assert results(ended) == results(reference / "grpo")


def test_damaged_checkpoints_are_set_aside(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    for step in (8, 10, 100):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "weights").write_text(str(step))
    seal(folder / "checkpoint-8")
    seal(folder / "checkpoint-10")
    (folder / "checkpoint-10" / "weights").write_text("11")
    (folder / "damaged-checkpoint-10").mkdir()  # of an earlier attempt
    assert last_checkpoint(tmp_path) == folder / "checkpoint-8"
    names = ["checkpoint-8", "damaged-checkpoint-10", "damaged-checkpoint-100"]
    assert sorted(path.name for path in folder.iterdir()) == names
    first, second = capsys.readouterr().out.splitlines()
    assert "checkpoint-100: half written" in first
    assert "checkpoint-10 is damaged: weights was changed" in second
    (folder / "checkpoint-8" / "manifest.json").unlink()
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_damaged_weights_of_the_selected_step_are_named(serve, ended, reference):
    choice = pd.read_csv(reference / "grpo" / "selection.csv")
    step = choice.loc[choice["selected"], "step"].item()
    weights = ended / "weights" / f"{step:06d}" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    weights.unlink()  # the checkpoint, if it is still there, stays whole
    content[-1] ^= 1
    weights.write_bytes(content)
    serve(ended, expect=(1,))
    error = printed(ended, "err").splitlines()[-1]
    assert f"TrainingError: {weights.parent.as_posix()} is damaged: model.safetensors" in error
    assert f"delete {ended.as_posix()} instead" in error
    assert not (ended / "model").exists()


# --- alarms ---------------------------------------------------------------------------------------


def not_finite(monkeypatch, owner, step, change):
    original = owner.compute_loss

    def compute_loss(self, model, *arguments, **named):
        loss = original(self, model, *arguments, **named)
        if not self.model.training or self.state.global_step != step:
            return loss
        return change(loss, model)

    monkeypatch.setattr(owner, "compute_loss", compute_loss)


def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights(
    grpo, reference, tmp_path, monkeypatch, capsys
):
    directory = tmp_path / "run"
    not_finite(monkeypatch, trl.GRPOTrainer, 3, lambda loss, model: loss * math.inf)
    with pytest.raises(TrainingError, match=r"^step 4: the loss is -?(inf|nan), the last compl"):
        grpo(directory)
    (line,) = map(json.loads, (directory / "alarms.jsonl").read_text().splitlines())
    assert (line["step"], line["alarm"]) == (4, "loss")
    assert line["detail"].startswith("the loss is ")
    assert len(line["examples"]) == 2
    assert "progress: step 4: loss: the loss is " in capsys.readouterr().out
    last = last_checkpoint(directory)
    assert last.name == "checkpoint-2"
    assert all(w.isfinite().all() for w in load_file(last / "model.safetensors").values())
    monkeypatch.undo()
    grpo(directory)  # the cause mended, it goes on from there
    assert results(directory) == results(reference / "grpo")


def infinite_gradient(loss, model):
    return loss + torch.sqrt(sum((p * 0).sum() for p in model.parameters()))


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_kept(grpo, tmp_path, monkeypatch):
    not_finite(monkeypatch, trl.GRPOTrainer, 3, infinite_gradient)
    with pytest.raises(TrainingError, match="^step 4: the norm of the gradient is nan; the check"):
        grpo(tmp_path / "run")
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"
    (line,) = (tmp_path / "run" / "alarms.jsonl").read_text().splitlines()
    assert json.loads(line)["detail"] == "the norm of the gradient is nan"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda loss, model: loss * math.nan, "loss is nan"),
        (infinite_gradient, "norm of the gradient is nan"),
    ],
)
def test_fine_tuning_ends_too_when_it_is_not_finite(
    tokenizer, reference, tmp_path, monkeypatch, change, named
):
    def train():
        settings, model = SFTSettings(**small.SFT), small.new_model(tokenizer)
        train_sft(model, tokenizer, small.rows_to_learn(), settings, tmp_path / "run")

    not_finite(monkeypatch, trl.SFTTrainer, 11, change)
    with pytest.raises(TrainingError, match=f"^step 12: the {named}; the checkpoints before it"):
        train()
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-6"
    monkeypatch.undo()
    train()
    assert results(tmp_path / "run") == results(reference / "sft")


def test_a_collapsed_confidence_is_reported_once_until_it_recovers(trainer, capsys):
    made = trainer()
    rights = [1, 1, 1, 1, 0, 0, 1, 0]
    same, varied = [0.9] * 8, [0.9, 0.8] * 4
    for step, stated in enumerate([same, same, varied, same, same]):
        made.state.global_step = step
        made._calculate_rewards(*batch(small.TRAINING[:2], 4, rights, stated))
        made.log({})  # as every step does
    lines = [*map(json.loads, (made.directory / "alarms.jsonl").read_text().splitlines())]
    assert [(line["step"], line["alarm"]) for line in lines] == [(1, "collapse"), (4, "collapse")]
    detail = "confidence 0.9 is 100% of those stated; accuracy by question varies by 0.38"
    assert {line["detail"] for line in lines} == {detail}
    expected = [completion(small.TRAINING[0], 1, 0.9)] * 2
    assert [line["examples"] for line in lines] == [expected] * 2
    assert f"progress: step 4: collapse: {detail}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "rights", "stated"),
    [
        ("none", [1, 1, 1, 1, 0, 0, 1, 0], [0.9] * 8),  # RLVR asks for none
        ("l1", [1, 0, 1, 0, 0, 1, 0, 1], [0.9] * 8),  # accuracy does not vary
        ("l1", [1, 1, 1, 1, 0, 0, 1, 0], [0.9] * 7 + [0.8]),
        ("l1", [1, 1, 1, 1, 0, 0, 1, 0], [None] * 8),
    ],
)
def test_no_collapse_is_reported_where_there_is_none(trainer, name, rights, stated):
    made = trainer(confidence_reward=name)
    made._calculate_rewards(*batch(small.TRAINING[:2], 4, rights, stated))
    assert not (made.directory / "alarms.jsonl").exists()


def test_a_collapse_needs_nearly_all_and_an_accuracy_that_varies():
    correct = np.repeat([1.0, 0.0], 50)
    stated = np.full(100, 0.9)
    assert collapse(correct, stated, 50).startswith("confidence 0.9 is 100% of those stated")
    stated[:5] = 0.8
    assert collapse(correct, stated, 50).startswith("confidence 0.9 is 95% of those stated")
    stated[5] = 0.8
    assert collapse(correct, stated, 50) == ""
    assert collapse(np.tile([1.0, 0.0], 50), np.full(100, 0.9), 50) == ""


def test_alarms_after_the_checkpoint_are_forgotten(tmp_path):
    for step in (2, 4, 5):
        alarms.report_alarm(tmp_path, step, "collapse", "found", [r"\boxed{é}"])
    with (tmp_path / "alarms.jsonl").open("a") as stream:
        stream.write('{"step": 6, "al')  # killed here
    alarms.drop_alarms_after(tmp_path, 4)
    lines = alarms.read_alarms(tmp_path)
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["examples"] == [r"\boxed{é}"]


# --- nothing to learn correctness from ------------------------------------------------------------

EASIER = "as by: easier questions, a warm-up on supervised rows, a larger model, a group_size ab"


@pytest.mark.parametrize(
    ("accuracy", "cut", "found", "ends"),
    [
        ([0.0] * 36 + [0.25] * 4, 1.0, "", False),  # one in ten
        ([0.0] * 63 + [0.5] * 7, 1.0, "", False),  # in floating point too
        (
            [0.0] * 37 + [0.25] * 3,
            0.0,
            f"^3 of 40 validation groups are .* cut at 9 tokens.*{EASIER}",
            False,
        ),
        (
            [0.0] * 29,
            0.5,
            rf"^0 of 29 validation groups are .*\(0.0% of answers right, 50% cut.*{EASIER}",
            True,
        ),
        ([0.0] * 28, 0.0, f"^0 of 28 validation groups are .*{EASIER}", False),  # too few to tell
        ([0.0] * 29, 0.51, "as by: max_completion_tokens above 9, easier questions", True),
        ([1.0] * 29, 0.0, r"\(100.0% .* as by: harder questions, a higher temp.*above 4$", True),
        (
            [1.0] * 20 + [0.0] * 20,
            0.0,
            r"^0 of 40 .*\(50.0% of answers right.* as by: harder quest",
            True,
        ),
        ([1.0] * 4, 0.0, "^0 of 4 validation groups are mixed", False),
    ],
)
def test_groups_that_are_not_mixed_are_found(accuracy, cut, found, ends):
    text, stops = alarms.variance_missing(
        np.array(accuracy), cut, group_size=4, max_completion_tokens=9
    )
    assert bool(text) == bool(found)
    assert re.search(found, text)
    assert stops == ends


def test_a_model_that_is_never_right_is_not_trained(grpo, tmp_path, capsys):
    directory = tmp_path / "run"
    for _ in range(2):  # without a checkpoint the next call starts again, with one alarm
        with pytest.raises(
            TrainingError, match=r"^nothing to learn before the first step: 0 of 32 "
        ):
            grpo(directory, validation=small.TRAINING[:32], max_completion_tokens=2)
        (line,) = alarms.read_alarms(directory)
        assert (line["step"], line["alarm"]) == (0, "variance")
        assert "100% cut at 2 tokens" in line["detail"]
        assert f"progress: step 0: variance: {line['detail']}\n" in capsys.readouterr().out
        assert last_checkpoint(directory) is None
    table = pd.read_csv(directory / "validation" / "000000.csv")
    assert not table["correct"].any()


def test_a_few_groups_only_raise_the_alarm(grpo):
    directory = grpo(max_completion_tokens=2, steps=2)
    table = pd.read_csv(directory / "alarms.csv")
    assert (table[["step", "alarm"]] == [0, "variance"]).all(axis=1).sum() == 1
    assert table["detail"].str.startswith("0 of 4 validation groups are mixed").any()


# --- checkpoint selection -------------------------------------------------------------------------


def evaluated(step, correct, confidence, form=(1.0, 1.0, 1.0, 1.0)):
    """Rollouts of two questions, two each."""
    return pd.DataFrame(
        {
            "step": step, "question_id": ["a", "a", "b", "b"], "sample": [0, 1, 0, 1],
            "correct": np.array(correct, bool), "confidence": confidence, "format": form,
        }
    )  # fmt: skip


# Accuracy 1/2 (errors of the two questions: 1/2 / sqrt 2), confidence rewards 0 and 0.
SURE = (1, 1, 0, 0), (1.0, 1.0, 0.0, 0.0)
# Accuracy 3/4 (1/4 / sqrt 2); confidence rewards -1/2 and 0: mean -1/4 (1/4 / sqrt 2).
BETTER = (1, 1, 1, 0), (0.5, 0.5, 0.5, 0.5)
PERFECT = (1, 1, 1, 1), (1.0, 1.0, 1.0, 1.0)


def select(*tables, reward="l1"):
    settings = GRPOSettings(reward, group_size=2)
    return select_checkpoint(pd.concat(tables, ignore_index=True), settings)


def test_the_step_whose_worst_component_is_least_behind_is_selected():
    table = select(evaluated(0, *PERFECT), evaluated(10, *SURE), evaluated(20, *BETTER))
    assert table["step"].tolist() == [10, 20]  # step 0 is no candidate
    assert table["correctness"].tolist() == [0.5, 0.75]
    assert table["confidence"].tolist() == [0.0, -0.25]
    assert table["format"].tolist() == [1.0, 1.0]
    # 1/4 behind, in errors of 1/2 / sqrt 2 and of 1/4 / sqrt 2
    np.testing.assert_allclose(table["behind_correctness"], [math.sqrt(2) / 2, 0])
    np.testing.assert_allclose(table["behind_confidence"], [0, math.sqrt(2)])
    np.testing.assert_allclose(table["behind_format"], [0, 0])
    np.testing.assert_allclose(table["worst"], [math.sqrt(2) / 2, math.sqrt(2)])
    assert table["selected"].tolist() == [True, False]


def test_a_fixed_stopping_step_takes_the_last_whatever_was_validated():
    tables = pd.concat([evaluated(10, *PERFECT), evaluated(20, *SURE), evaluated(0, *PERFECT)])
    settings = GRPOSettings("l1", group_size=2, selection="last")
    best = select_checkpoint(tables, dataclasses.replace(settings, selection="validation"))
    last = select_checkpoint(tables, settings)
    assert best["selected"].tolist() == [True, False]
    assert last["selected"].tolist() == [False, True]
    pd.testing.assert_frame_equal(best.drop(columns="selected"), last.drop(columns="selected"))
    with pytest.raises(ValueError, match="selection is 'first'; expected one of"):
        GRPOSettings("l1", selection="first")


def test_confidence_does_not_count_where_it_is_not_trained():
    table = select(evaluated(10, *SURE), evaluated(20, *BETTER), reward="none")
    assert table["selected"].tolist() == [False, True]
    assert not [name for name in table if "confidence" in name]


def test_of_equal_steps_the_latest_is_selected():
    steps = [evaluated(step, *SURE) for step in (10, 20, 30)]
    table = select(*steps, evaluated(40, *BETTER), evaluated(0, *PERFECT))
    assert table.loc[table["selected"], "step"].tolist() == [30]
    table = select(evaluated(5, *PERFECT), evaluated(0, *PERFECT), evaluated(10, *PERFECT))
    assert table.loc[table["selected"], "step"].tolist() == [10]


def test_a_perfect_component_leaves_no_other_step_infinitely_behind():
    """Its questions all earn the same, so it has no standard error of its own."""
    almost = evaluated(20, *BETTER, form=(1.0, 1.0, 1.0, 2 / 3))
    table = select(evaluated(10, *SURE), almost, reward="none")
    # 1/12 behind, in errors of 1/12 / sqrt 2
    np.testing.assert_allclose(table["behind_format"], [0, math.sqrt(2)])
    np.testing.assert_allclose(table["worst"], [math.sqrt(2) / 2, math.sqrt(2)])
    # without any error, any difference counts
    worse = evaluated(20, *SURE, form=(2 / 3,) * 4)
    table = select(evaluated(10, *SURE), worse)
    assert table["selected"].tolist() == [True, False]


def test_a_confidence_that_is_missing_is_the_worst():
    missing = evaluated(20, SURE[0], (1.0, np.nan, np.nan, 0.0))
    table = select(evaluated(10, *SURE), missing)
    assert table["confidence"].tolist() == [0.0, -0.5]
    assert table["selected"].tolist() == [True, False]


def test_selection_needs_a_step_after_0():
    with pytest.raises(ValueError, match="no step after 0 was evaluated"):
        select(evaluated(0, *PERFECT))


def test_the_papers_settings_reach_the_trainer(tmp_path):
    settings = GRPOSettings(
        "l1", group_size=2, batch=8, micro_batch=4, steps=8, checkpoint_every=4,
        steps_per_rollout=4, kl_coef=1e-4, weight_decay=0.01, loss_type="bnpo",
        scale_rewards="none",
    )  # fmt: skip
    config = grpo_module.grpo_config(settings, tmp_path, n_validation=4)
    assert (config.weight_decay, config.beta, config.loss_type) == (0.01, 1e-4, "bnpo")
    assert (config.scale_rewards, config.steps_per_generation) == ("none", 8)
    assert config.lr_scheduler_type == "constant_with_warmup"


# --- what is logged -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_metrics_of_rollouts_are_those_of_calibration(seed):
    rng = np.random.default_rng(seed)
    group_size = int(rng.integers(2, 9))
    n = group_size * int(rng.integers(2, 30))
    correct = np.repeat(rng.integers(2, size=n // group_size), group_size).astype(float)
    noisy = rng.random(n) < rng.random()
    correct[noisy] = rng.integers(2, size=noisy.sum())
    stated = rng.integers(11, size=n) / 10
    stated[rng.random(n) < 0.2] = np.nan
    groups = correct.reshape(-1, group_size)
    found = rollout_metrics(correct, stated, groups.mean(axis=1))

    rows = [(c, y) for c, y in zip(stated, correct, strict=True) if c == c]
    confidences, right = map(list, zip(*rows, strict=True))
    right_or_nan = 0 < sum(right) < len(right)
    expected = {
        "pass_at_1": sum(correct) / n,
        "ece": calibration.expected_calibration_error(confidences, right),
        "auroc": calibration.auroc(confidences, right) if right_or_nan else math.nan,
        "confidence_output_ratio": calibration.confidence_output_ratio(stated),
        "mean_confidence": sum(confidences) / len(rows),
        "distinct_confidences": len(set(confidences)),
        "share_at_0": confidences.count(0) / len(rows),
        "share_at_1": confidences.count(1) / len(rows),
        "groups_without_variance": sum(len(set(g)) == 1 for g in groups) / len(groups),
        "commonest_share": max(map(confidences.count, confidences)) / len(rows),
        "accuracy_spread": statistics.pstdev(sum(g) / group_size for g in groups),
    }
    assert list(found) == list(expected) == list(ROLLOUT_METRICS)
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-12)
    assert all(type(value) is float for value in found.values())


def test_metrics_that_need_a_confidence_are_missing_without_one():
    found = rollout_metrics(np.array([1.0, 0, 0, 0]), np.full(4, np.nan), np.array([0.5, 0]))
    missing = {name for name, value in found.items() if math.isnan(value)}
    of_stated = {"ece", "auroc", "mean_confidence", "share_at_0", "share_at_1", "commonest_share"}
    assert missing == of_stated
    assert found["pass_at_1"] == 0.25
    assert found["confidence_output_ratio"] == found["distinct_confidences"] == 0
    assert found["groups_without_variance"] == 0.5


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_auroc_is_missing_where_all_are_right_or_all_wrong(right):
    found = rollout_metrics(np.full(4, right), np.array([0.1, 0.5, np.nan, 1.0]), np.full(2, right))
    assert math.isnan(found["auroc"])
    assert not any(math.isnan(value) for name, value in found.items() if name != "auroc")


def test_dynamics_have_a_row_a_step_and_the_columns_that_chapters_read(reference):
    table = pd.read_csv(reference / "grpo" / "dynamics.csv")
    assert list(table) == COLUMNS
    assert table["step"].tolist() == list(range(1, 17))
    measured = table["step"] % 2 == 1  # there are two steps a rollout
    of_steps = {"step", "loss", "grad_norm", "entropy", "kl", "learning_rate", "seconds"}
    assert table.loc[measured].notna().all(axis=None)
    assert table.loc[~measured, sorted(of_steps)].notna().all(axis=None)
    assert table.loc[~measured].drop(columns=of_steps).isna().all(axis=None)
    of_rollouts = table.loc[measured]
    total = sum(of_rollouts[f"reward_{name}"] for name in COMPONENTS)
    np.testing.assert_allclose(of_rollouts["reward"], total, atol=1e-6)
    np.testing.assert_allclose(of_rollouts["reward_correctness"], of_rollouts["pass_at_1"])
    assert of_rollouts["pass_at_1"].nunique() > 2
    assert (table["learning_rate"] == small.GRPO["learning_rate"]).all()


def test_without_a_kl_term_its_column_is_empty(serve, tmp_path):
    serve(tmp_path / "run", settings={"kl_coef": 0.0, "steps": 2})
    table = pd.read_csv(tmp_path / "run" / "dynamics.csv")
    assert list(table) == COLUMNS
    assert table["kl"].isna().all()


def test_fine_tuning_logs_its_loss(reference):
    table = pd.read_csv(reference / "sft" / "dynamics.csv")
    assert {"step", "loss", "grad_norm", "learning_rate"} <= {*table} <= {*COLUMNS}
    assert table["step"].tolist() == list(range(1, 61))
    assert table["loss"].iloc[-10:].mean() < table["loss"].iloc[:10].mean() / 2
    assert table.notna().all(axis=None)


def test_validation_has_whole_groups_at_every_evaluated_step(reference):
    table = pd.read_csv(reference / "grpo" / "validation.csv", dtype={"question_id": str})
    assert list(table) == ["step", "question_id", "sample", "correct", "confidence", "format"]
    assert table["step"].unique().tolist() == list(range(0, 17, 2))
    asked = {question.question_id for question in small.VALIDATION}
    for _, rows in table.groupby("step"):
        assert len(rows) == 16
        assert set(rows["question_id"]) == asked
        for _, group in rows.groupby(np.arange(16) // 4):
            assert len(set(group["question_id"])) == 1
            assert group["sample"].tolist() == [0, 1, 2, 3]
    stated = table["confidence"].dropna()
    assert stated.nunique() > 3
    assert (stated == stated.round(2)).all()  # as the model wrote them, not nearly
    choice = pd.read_csv(reference / "grpo" / "selection.csv")
    settings = GRPOSettings(**small.GRPO)
    pd.testing.assert_frame_equal(choice, select_checkpoint(table, settings))


# --- what a run does to its surroundings ----------------------------------------------------------


def test_training_says_nothing_but_its_progress(reference_run):
    """With warnings as errors; a notebook that writes to standard error fails the book."""
    _, result = reference_run
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert all(line.startswith("progress: step ") for line in lines)
    told = {name: [line for line in lines if name in line] for name in ("loss", "validation")}
    steps = {name: [int(line.split()[2]) for line in found] for name, found in told.items()}
    last = small.SFT["steps"]
    every = last // 5
    assert steps == {
        "loss": list(range(every, last + 1, every)),
        "validation": list(range(0, 17, 2)),
    }
    assert len(lines) == sum(map(len, told.values()))


def test_training_leaves_only_its_results(reference):
    files = {path.relative_to(reference).as_posix() for path in reference.rglob("*.*")}
    model = {"config.json", "generation_config.json", "model.safetensors"}
    model |= {"tokenizer.json", "tokenizer_config.json"}
    tables = {"dynamics.csv", "validation.csv", "selection.csv", "alarms.csv"}
    assert files == (
        {f"{run}/model/{name}" for run in ("sft", "grpo") for name in model}
        | {f"grpo/{name}" for name in tables}
        | {"sft/dynamics.csv", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    )


def test_training_does_not_report_to_anyone(trainer, monkeypatch):
    waiting = queue.Queue()
    monkeypatch.setattr(_telemetry, "_TELEMETRY_QUEUE", waiting)
    monkeypatch.setattr(_telemetry, "_start_telemetry_thread", lambda: None)
    monkeypatch.setattr(hub, "HF_HUB_DISABLE_TELEMETRY", False)
    _telemetry.send_telemetry("a")
    assert waiting.qsize() == 1  # so it would be sent
    trainer()
    assert waiting.qsize() == 1
    assert hub.HF_HUB_DISABLE_TELEMETRY is False


def test_validation_takes_no_random_numbers_from_training(trainer):
    made = trainer()
    path = made.directory / "validation" / "000000.csv"
    before = torch.random.get_rng_state()
    with quiet():
        assert "eval_reward" in made.evaluate()
        assert torch.equal(torch.random.get_rng_state(), before)
        first = path.read_text()
        torch.rand(5)
        made.evaluate()
    assert path.read_text() == first
    assert len(set(pd.read_csv(path)["confidence"])) > 1


# --- the order of what is learnt ------------------------------------------------------------------


def test_every_question_is_asked_once_before_any_is_asked_again():
    rows = list(range(10))
    order = loop.in_order(rows, 25, seed=1)
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == rows
    assert len(set(order[20:])) == 5
    assert order[:10] != order[10:20]
    assert order == loop.in_order(rows, 25, seed=1)
    assert order[:12] == loop.in_order(rows, 12, seed=1)
    assert order != loop.in_order(rows, 25, seed=2)


def test_fine_tuning_learns_the_completion_and_its_end_alone(tokenizer):
    rows = small.rows_to_learn()[:3]
    table = tokenize_rows(rows, tokenizer)
    for row, ids, labels in zip(rows, table["input_ids"], table["labels"], strict=True):
        assert tokenizer.decode(ids) == row["prompt"] + row["completion"] + tokenizer.eos_token
        learnt = [label for label in labels if label != -100]
        assert tokenizer.decode(learnt) == row["completion"] + tokenizer.eos_token
        assert labels[: len(labels) - len(learnt)] == [-100] * (len(labels) - len(learnt))


def test_rollouts_are_decided_by_seed_step_process_and_prompt(trainer):
    prompts = [q.prompt for q in small.TRAINING[:2] for _ in range(4)]

    def drawn(*, seed=0, step=0, process=0, training=True):
        made = trainer(seed=seed)
        made.state.global_step = step
        made.model.train(training)
        index = property(lambda _: process)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(made.accelerator), "process_index", index)
            found = complete(prompts, made)
        assert made.model.training is training
        assert found["prompt_ids"] == made.processing_class(prompts)["input_ids"]
        return found["completion_ids"]

    first = drawn()
    assert len({tuple(ids) for ids in first}) > len(first) / 2  # of one prompt, not the same again
    assert drawn() == first
    for other in ({"seed": 1}, {"step": 1}, {"process": 1}, {"training": False}):
        assert drawn(**other) != first
    validation = drawn(training=False)
    assert drawn(training=False, step=20) == validation
    assert drawn(training=False, process=1) != validation


def test_both_ways_to_make_rollouts_draw_from_the_same_distribution(trainer):
    """Next to greedy, where nothing is left to chance."""
    prompts = [q.prompt for q in small.TRAINING[:4] for _ in range(2)]
    found = []
    for rollouts in ("corea", "trl"):
        made = trainer(rollouts=rollouts, temperature=1e-4)
        assert (made.rollout_func is None) == (rollouts == "trl")
        with quiet():
            ids, completions, tool_mask, texts, logprobs, *_ = made._generate(prompts)
        assert tool_mask is None
        assert logprobs is None
        found.append((ids, completions, texts))
    assert found[0] == found[1]


def test_the_parts_of_a_supervised_step_do_not_change_it(tokenizer, tmp_path):
    rows = [
        row | {"completion": row["completion"] * (1 + i % 3)}
        for i, row in enumerate(small.rows_to_learn()[:64])
    ]
    losses = []
    for micro in (16, 4):
        settings = SFTSettings(**small.SFT | {"steps": 6, "batch": 16, "micro_batch": micro})
        model = small.new_model(tokenizer)
        train_sft(model, tokenizer, rows, settings, tmp_path / str(micro))
        losses.append(pd.read_csv(tmp_path / str(micro) / "dynamics.csv")["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0].iloc[-1] < losses[0].iloc[0]
