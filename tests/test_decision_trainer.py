"""GRPO on decisions: the calibration-aware loss against a plain reference, and TRL's own step."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

trl = pytest.importorskip("trl", reason="training needs the extra `train`")

import datasets  # noqa: E402
import torch  # noqa: E402
from decide_in_process import TRAINING, VALIDATION  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import PrinterCallback  # noqa: E402

from corea.decisions import trainer as decision_trainer  # noqa: E402
from corea.decisions.settings import DecisionSettings  # noqa: E402
from corea.decisions.tokens import OptionError  # noqa: E402
from corea.decisions.trainer import (  # noqa: E402
    DECISION_METRICS,
    DecisionTrainer,
    decision_metrics,
    train_decisions,
)
from corea.engines.base import Sampling  # noqa: E402
from corea.engines.loading import load_model  # noqa: E402
from corea.engines.transformers_engine import TransformersEngine  # noqa: E402
from corea.metrics.calibration import auroc, expected_calibration_error  # noqa: E402
from corea.tasks.decision_questions import NO_THINKING, DecisionQuestion  # noqa: E402
from corea.training import loop  # noqa: E402
from corea.training.checkpoints import last_checkpoint  # noqa: E402
from corea.training.quiet import quiet  # noqa: E402
from corea.training.settings import TrainingError  # noqa: E402

SETTINGS = {
    "group_size": 4, "steps": 4, "batch": 16, "micro_batch": 8, "learning_rate": 3e-3,
    "max_completion_tokens": 24, "checkpoint_every": 2, "loss_type": "bnpo",
}  # fmt: skip


@pytest.fixture
def build(decider, tmp_path, monkeypatch):
    """Function that makes the trainer that train_decisions would run, training mode on."""

    def make(name="run", rows=TRAINING, validation=VALIDATION, **settings):
        class Built(Exception):
            pass

        def stop(trainer, directory, **_):
            raise Built(trainer)

        monkeypatch.setattr(loop, "run", stop)
        _, tokenizer = load_model(decider, device="cpu")
        chosen = DecisionSettings(**SETTINGS | settings)
        with pytest.raises(Built) as caught:
            train_decisions(decider, tokenizer, rows, validation, chosen, tmp_path / name)
        (made,) = caught.value.args
        made.remove_callback(PrinterCallback)
        made.model.train()
        made.current_gradient_accumulation_steps = 1
        return made

    return make


def rollouts(made, n=16):
    """An annotated batch, as the trainer makes it."""
    rows = [dict(row) for row in made.train_dataset.to_list()[: n // 4] for _ in range(4)]
    with quiet():
        return made._generate_and_score_completions(rows)


# --- the loss -------------------------------------------------------------------------------------


def reference_loss(made, batch, weight):
    """Both parts in plain PyTorch, from the logits of a forward pass of its own."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = made.model(input_ids=ids, attention_mask=mask).logits.float()
    width = batch["prompt_ids"].shape[1]
    policy, tokens, calibration, n = 0.0, 0, 0.0, 0
    for i in range(len(ids)):
        length = int(batch["completion_mask"][i].sum())
        place = int(batch["decision_place"][i])
        for t in range(length):
            logp = (logits[i, width + t - 1] / made.temperature).log_softmax(dim=-1)
            token = int(batch["completion_ids"][i, t])
            advantage = batch["advantages"][i]
            advantage = advantage if advantage.dim() == 0 else advantage[t]
            if made.settings.mask_decision and t == place:
                assert advantage == 0
            ratio = (logp[token] - logp[token].detach()).exp()
            policy = policy - ratio * advantage
            tokens += 1
        if place < 0:
            continue
        own = logits[i, width + place - 1].softmax(dim=-1)
        gold = int(batch["gold_option"][i])
        decided = int(batch["decided"][i])
        n += 1
        if made.settings.calibration_loss == "log_score":
            p = own[made.option_ids[decided]]
            calibration = calibration - (p if decided == gold else 1 - p).log()
            continue
        for k, option in enumerate(made.option_ids):
            if decided == gold:
                target = float(k == gold)
            elif made.settings.calibration_loss == "uniform":
                target = 1 / len(made.option_ids)
            else:
                target = 0.0 if k == decided else 1 / (len(made.option_ids) - 1)
            calibration = calibration - target * own[option].log()
    return policy / tokens + weight * calibration / n


@pytest.mark.parametrize(
    ("kind", "masked", "temperature", "rank"),
    [
        *(("uniform", True, 1.0, 0), ("uniform", True, 0.7, 0), ("others", False, 1.0, 0)),
        *(("log_score", False, 0.7, 0), ("log_score", True, 1.0, 0), ("uniform", True, 0.7, 4)),
    ],
)
def test_gradients_are_those_of_a_plain_reference(build, kind, masked, temperature, rank):
    made = build(
        calibration_weight=0.3, calibration_loss=kind, mask_decision=masked, temperature=temperature,
        lora_rank=rank, lora_dropout=0.0, seed=4,
    )  # fmt: skip
    for name, weight in made.model.named_parameters():
        if "lora_B" in name:  # 0 at first, where the other factor has no gradient
            torch.nn.init.normal_(weight, std=0.02)
    batch = rollouts(made)
    decided = batch["decision_place"] >= 0
    assert decided.sum() > 4
    right = (batch["decided"] == batch["gold_option"])[decided]
    assert 0 < right.sum() < len(right)
    assert batch["advantages"].abs().sum() > 0
    parameters = [weight for weight in made.model.parameters() if weight.requires_grad]
    ours = torch.autograd.grad(made._compute_loss(made.model, batch), parameters)
    plain = torch.autograd.grad(reference_loss(made, batch, 0.3), parameters)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_calibration_part_does_not_depend_on_the_layout_or_the_loss_type(build):
    made = build(calibration_weight=0.5)
    batch = rollouts(made)
    made.settings = DecisionSettings(**SETTINGS | {"calibration_weight": 0.0})
    without = made._compute_loss(made.model, batch)
    made.settings = DecisionSettings(**SETTINGS | {"calibration_weight": 0.5})
    part = made._compute_loss(made.model, batch) - without
    uneven = [slice(0, 5), slice(5, 16)]
    total = 0.0
    for chosen in uneven:
        rows = {k: v[chosen] if v.dim() else v for k, v in batch.items()}
        made.settings = DecisionSettings(**SETTINGS | {"calibration_weight": 0.0})
        alone = made._compute_loss(made.model, rows)
        made.settings = DecisionSettings(**SETTINGS | {"calibration_weight": 0.5})
        share = len(range(16)[chosen]) / 16
        total = total + share * (made._compute_loss(made.model, rows) - alone)
    assert total.item() == pytest.approx(part.item(), rel=1e-4)
    made.current_gradient_accumulation_steps = 4
    made.loss_type = "grpo"
    made.settings = DecisionSettings(**SETTINGS | {"calibration_weight": 0.0})
    alone = made._compute_loss(made.model, batch)
    made.settings = DecisionSettings(**SETTINGS | {"calibration_weight": 0.5})
    quarter = made._compute_loss(made.model, batch) - alone
    assert 4 * quarter.item() == pytest.approx(part.item(), rel=1e-3)


def test_without_a_weight_a_step_is_that_of_trl_bit_for_bit(build, tmp_path):
    made = build(rollouts="trl", steps=2)
    with quiet():
        made.train()

    def correctness(completion_ids, gold, **_):
        decided = made._decided(completion_ids)
        return [float(i == made.options.index(g)) for (_, i), g in zip(decided, gold, strict=True)]

    fresh = build("stock", rollouts="trl", steps=2)
    args = fresh.args
    args.output_dir = str(tmp_path / "stock-checkpoints")
    args.save_strategy = args.eval_strategy = "no"
    with quiet():
        stock = trl.GRPOTrainer(
            model=fresh.model.config.name_or_path,
            reward_funcs=[correctness],
            args=args,
            processing_class=fresh.processing_class,
            train_dataset=fresh.train_dataset,
        )
        stock.train()
    rewards = [row["reward"] for row in stock.state.log_history if "reward" in row]
    assert 0 < np.mean(rewards) < 1
    theirs = stock.model.state_dict()
    for name, weights in made.model.state_dict().items():
        assert torch.equal(weights, theirs[name]), name


def joined(parts):
    """Batches of several processes as one: prompts padded on the left, completions on the right."""
    whole = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if tensors[0].dim() == 2:
            width = max(t.shape[1] for t in tensors)
            left = name.startswith("prompt")
            tensors = [
                torch.nn.functional.pad(
                    t, (width - t.shape[1], 0) if left else (0, width - t.shape[1])
                )
                for t in tensors
            ]
        whole[name] = torch.cat(tensors) if tensors[0].dim() else tensors[0]
    return whole


def test_two_processes_have_the_gradient_of_one(build, decider, tmp_path):
    settings = SETTINGS | {
        "calibration_weight": 0.4, "mask_decision": True, "loss_type": "dapo",
        "calibration_loss": "others",
    }  # fmt: skip
    script = Path(__file__).with_name("decide_in_process.py")
    subprocess.run(
        [sys.executable, script, decider, tmp_path, json.dumps(settings)], check=True, timeout=300
    )
    parts = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    batch = joined(parts)
    n_decided = [int((part["decision_place"] >= 0).sum()) for part in parts]
    assert len(batch["decided"]) == 16
    assert all(n_decided)
    assert batch["advantages"].abs().sum() > 0
    assert batch["decisions"].unique().tolist() == [sum(n_decided) / 16]  # on both
    made = build(**settings | {"micro_batch": 16})
    parameters = dict(made.model.named_parameters())
    loss = made._compute_loss(made.model, batch)
    found = load_file(tmp_path / "gradients.safetensors")
    assert found.keys() == parameters.keys()
    alone = torch.autograd.grad(loss, list(parameters.values()))
    for name, gradient in zip(parameters, alone, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_cosine_is_that_of_both_gradients(build):
    made = build(calibration_weight=0.3, cosine_every=2)
    batch = rollouts(made)
    made._metrics["train"].clear()
    made.state.global_step = 1
    made._compute_loss(made.model, batch)
    assert "gradient_cosine" not in made._metrics["train"]
    made.state.global_step = 2
    made._compute_loss(made.model, batch)
    (found,) = made._metrics["train"]["gradient_cosine"]
    parameters = list(made.model.parameters())

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    policy = gradient(reference_loss(made, batch, 0.0))
    both = gradient(reference_loss(made, batch, 1.0))
    expected = torch.nn.functional.cosine_similarity(policy, both - policy, dim=0)
    assert found == pytest.approx(expected.item(), abs=1e-4)
    assert -1 < found < 1


def test_masking_takes_the_decision_out_of_the_policy_gradient(build):
    made = build(mask_decision=True)
    batch = rollouts(made)
    for i, place in enumerate(batch["decision_place"].tolist()):
        row = batch["advantages"][i]
        kept = torch.ones_like(row, dtype=torch.bool)
        if place >= 0:
            assert row[place] == 0
            kept[place] = False
        assert len(row[kept].unique()) == 1


@pytest.mark.parametrize("decisions", ["sampled", "greedy"])
def test_the_brier_reward_is_that_of_the_probability_the_rollout_was_made_with(build, decisions):
    made = build(trajectory_reward="brier", decisions=decisions, temperature=1.3)
    batch = rollouts(made)
    width = batch["prompt_ids"].shape[1]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        p = made.model(input_ids=ids, attention_mask=mask).logits.softmax(dim=-1)
    expected = []
    for i, place in enumerate(batch["decision_place"].tolist()):
        right = float(batch["decided"][i] == batch["gold_option"][i])
        own = p[i, width + place - 1, ids[i, width + place]].item()
        expected.append(-((own - right) ** 2) if place >= 0 else -1.0)
    assert {-1.0} < set(expected)
    assert made._metrics["train"]["reward"] == [pytest.approx(np.mean(expected), abs=1e-5)]
    groups = torch.tensor(expected).reshape(-1, 4)
    spread = groups.std(dim=1, keepdim=True)
    advantages = (groups - groups.mean(dim=1, keepdim=True)) / (spread + 1e-4)
    torch.testing.assert_close(batch["advantages"], advantages.flatten(), rtol=0.01, atol=1e-3)


# --- rollouts -------------------------------------------------------------------------------------


def test_greedy_decisions_are_the_likeliest_after_the_reasoning(build, decider):
    model, tokenizer = load_model(decider, device="cpu")
    engine = TransformersEngine(model, tokenizer, batch_size=64)
    prompts = [question.prompt(reasoning=True) for question in TRAINING]
    hot = Sampling(1.5, 24, 4, seed=1)
    greedy = DecisionSettings(**SETTINGS | {"decisions": "greedy"}).sampling(1).greedy_after
    assert greedy == "</think>"
    made = build()
    likeliest = {}
    for name, after in (("sampled", ""), ("greedy", greedy)):
        sampling = Sampling(hot.temperature, 24, 4, seed=1, greedy_after=after)
        found = []
        for prompt, group in zip(prompts, engine.generate(prompts, sampling), strict=True):
            for rollout in group:
                [(place, option)] = made._decided([rollout.ids])
                before = rollout.token_ids[: max(place, 0)].tolist()
                if greedy in tokenizer.decode(before):
                    ids = torch.tensor([tokenizer(prompt)["input_ids"] + before])
                    with torch.no_grad():
                        likely = int(model(input_ids=ids).logits[0, -1].argmax())
                    found.append(made.option_ids[option] == likely)
        assert len(found) > 10
        likeliest[name] = np.mean(found)
    assert likeliest["greedy"] == 1 > likeliest["sampled"]


def test_a_decision_right_after_the_prompt_is_greedy_too(decider):
    engine = TransformersEngine(*load_model(decider, device="cpu"), batch_size=64)
    prompts = [question.prompt(reasoning=False) + NO_THINKING for question in TRAINING[:6]]
    for after, at_most in (("</think>", 1), ("", 8)):
        groups = engine.generate(prompts, Sampling(2.0, 2, 8, seed=0, greedy_after=after))
        firsts = [len({int(rollout.token_ids[0]) for rollout in group}) for group in groups]
        assert max(firsts) <= at_most
    assert max(firsts) > 1  # without it


def test_rollouts_are_logged_and_validated(build, tmp_path):
    made = build(calibration_weight=0.1, mask_decision=True)
    with quiet():
        made.args.eval_on_start = True
        made.train()
    logged = [row for row in made.state.log_history if "loss" in row]
    for row in logged:
        assert {*DECISION_METRICS, "calibration_loss", "reward"} <= row.keys()
        assert row["accuracy"] == pytest.approx(row["reward"])
        assert row["groups_without_variance"] in (0, 0.25, 0.5, 0.75, 1)
    for step in (0, 2, 4):
        table = pd.read_csv(tmp_path / "run" / "validation" / f"{step:06d}.csv")
        assert len(table) == 4 * len(VALIDATION)
        assert (table.groupby("question_id", sort=False).size() == 4).all()
        assert table["question_id"].str.startswith("choices/validation-").all()
        assert table["confidence"].dropna().between(0, 1).all()


def test_groups_without_variance_are_counted(build):
    made = build()
    found = rollouts(made)
    right = (found["decided"] == found["gold_option"]).reshape(-1, 4).sum(dim=1).tolist()
    assert len(set(right)) > 1
    idle = sum(n in (0, 4) for n in right) / len(right)
    assert made._metrics["train"]["groups_without_variance"] == [idle]


def test_a_model_that_never_decides_is_not_trained(decider, tmp_path):
    _, tokenizer = load_model(decider, device="cpu")
    settings = DecisionSettings(**SETTINGS | {"max_completion_tokens": 1})
    n = re.escape("0 of 30 validation groups are mixed (0.0% of answers right, 100% cut at 1 tok")
    with pytest.raises(TrainingError, match=f"^nothing to learn before the first step: {n}"):
        train_decisions(decider, tokenizer, TRAINING, TRAINING[:30], settings, tmp_path)
    assert last_checkpoint(tmp_path) is None


def test_the_brier_reward_is_paid_in_training_and_validation(build, tmp_path):
    made = build(trajectory_reward="brier", steps=2)
    with quiet():
        made.args.eval_on_start = True
        made.train()
    validated = [row["eval_reward"] for row in made.state.log_history if "eval_reward" in row]
    assert len(validated) == 2
    for step, reward in zip((0, 2), validated, strict=True):
        table = pd.read_csv(tmp_path / "run" / "validation" / f"{step:06d}.csv")
        assert table["confidence"].isna().any()
        assert reward == pytest.approx(made.settings.earned(table)["calibration"].mean(), abs=1e-5)
    assert all(-1 <= row["reward"] < 0 for row in made.state.log_history if "reward" in row)


def test_training_leaves_a_model_and_selects_by_both(decider, tmp_path):
    _, tokenizer = load_model(decider, device="cpu")
    settings = DecisionSettings(**SETTINGS | {"calibration_weight": 0.1, "mask_decision": True})
    train_decisions(decider, tokenizer, TRAINING, VALIDATION, settings, tmp_path)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    choice = pd.read_csv(tmp_path / "selection.csv")
    assert {"correctness", "calibration", "behind_calibration"} <= set(choice)
    assert choice["selected"].sum() == 1
    dynamics = pd.read_csv(tmp_path / "dynamics.csv")
    assert {"step", *DECISION_METRICS, "calibration_loss", "seconds"} <= set(dynamics)
    assert dynamics["calibration_loss"].notna().all()


def test_what_is_earned_counts_a_missing_decision_as_the_worst():
    settings = DecisionSettings()
    rows = pd.DataFrame({"correct": [True, False, False], "confidence": [0.8, 0.5, np.nan]})
    earned = settings.earned(rows)
    assert earned["correctness"].tolist() == [1, 0, 0]
    assert earned["calibration"] == pytest.approx([-0.04, -0.25, -1.0])


def test_metrics_of_decisions_are_those_of_calibration():
    rng = np.random.default_rng(0)
    confidence = rng.random(50)
    correct = (rng.random(50) < confidence).astype(float)
    confidence[:5], correct[:5] = np.nan, 0
    found = decision_metrics(correct, confidence)
    assert list(found) == list(DECISION_METRICS)
    assert found["accuracy"] == correct.mean()
    assert found["no_decision"] == pytest.approx(0.1)
    kept = confidence[5:], correct[5:]
    assert found["ece"] == expected_calibration_error(*kept, binning="equal_mass")
    assert found["auroc"] == auroc(*kept)
    nothing = decision_metrics(np.zeros(3), np.full(3, np.nan))
    assert nothing["no_decision"] == 1
    assert all(math.isnan(nothing[name]) for name in ("confidence", "ece", "auroc"))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"calibration_weight": -0.1}, "calibration_weight is -0.1; expected a number, 0 or more"),
        ({"calibration_weight": math.nan}, "calibration_weight is nan"),
        ({"calibration_loss": "proper"}, "calibration_loss is 'proper'; expected one of 'uniform'"),
        ({"trajectory_reward": "l1"}, "trajectory_reward is 'l1'; expected one of 'correctness'"),
        ({"decisions": "both"}, "decisions is 'both'; expected one of 'sampled', 'greedy'"),
        ({"mask_decision": 1}, "mask_decision is 1; expected True or False"),
        ({"decisions": "greedy", "rollouts": "trl"}, "decisions is 'greedy' with rollouts 'trl'"),
        ({"trajectory_reward": "brier", "rollouts": "trl"}, "is 'brier' with rollouts 'trl'"),
    ],
)
def test_a_wrong_setting_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        DecisionSettings(**SETTINGS | values)


def refused(base, tmp_path, error, message, rows=TRAINING, validation=VALIDATION, pad=True):
    _, tokenizer = load_model(base, device="cpu")
    if not pad:
        tokenizer.pad_token = None
    with pytest.raises(error, match=message):
        train_decisions(
            base, tokenizer, rows, validation, DecisionSettings(**SETTINGS), tmp_path / "run"
        )
    assert not list(tmp_path.glob("run/checkpoints/checkpoint-*"))


def test_what_cannot_be_decided_is_refused_before_training(decider, tmp_path):
    mixed = [*TRAINING, DecisionQuestion("choices", "x", "1", "A", ("0", "1"))]
    refused(decider, tmp_path, OptionError, "questions differ in their options", rows=mixed)
    refused(decider, tmp_path, ValueError, "nothing to train on", rows=[])
    refused(decider, tmp_path, ValueError, "nothing to validate on", validation=[])
    refused(decider, tmp_path, TrainingError, "no token for padding", pad=False)
    twice = [*VALIDATION[:3], VALIDATION[0]]
    refused(decider, tmp_path, TrainingError, "the same prompt", validation=twice)


def test_rows_are_prompts_with_reasoning(decider):
    _, tokenizer = load_model(decider, device="cpu")
    (row,) = decision_trainer._rows(TRAINING[:1], tokenizer)
    assert row["prompt"] == TRAINING[0].prompt(reasoning=True)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    (row,) = decision_trainer._rows(TRAINING[:1], tokenizer)
    assert row["prompt"] == f"[{TRAINING[0].prompt(reasoning=True)}]"
    assert datasets.Dataset.from_list([row])["options"][0] == ["A", "B", "C", "D", "E"]
    assert isinstance(DecisionTrainer.logged, dict)
