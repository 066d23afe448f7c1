"""Folders that look like those of training runs, with made-up numbers of plausible size.

The numbers follow a small model of their own: a question has a chance of being answered by
each system that falls with its level; a calibrated system's confidence follows that chance,
others are nearly always certain.
"""

import numpy as np
import pandas as pd

from corea.records import records_from_columns, write_records
from corea.runs import TrainedModel, write_model
from corea.tasks.suites import MICROWORLD, SUITES

LEVELS = {
    "chains": (1, 4),
    "additions": (1, 3),
    "words": (1, 4),
    "long_chains": (4, 7),
    "fact_sums": (3, 5),
    "facts": (1, 3),
}
PARAMETERS = {
    "small": 230_000,
    "large": 1_050_000,
    "tiny": 40_000,
    "micro": 20_000,
    "mini": 30_000,
    "big": 2_000_000,
}
SKILL = {"small": 0.0, "large": 1.3, "tiny": -1.4, "mini": -1.7, "micro": -2.0, "big": 0.4}
CALIBRATED = {"l1", "sample_l1", "l2", "brier", "kl", "sample_kl"}
SIGNALS = ("expected_confidence", "average_probability", "probe", "router")


def fake_run(
    folder,
    *,
    system,
    method,
    role="small",
    architecture="qwen2",
    informed=True,
    group_size=8,
    seed=0,
    n_questions=60,
    n_samples=4,
    n_steps=30,
    learnt=True,
    suite=MICROWORLD,
):
    """Write one run's folder and return it as text.

    Without ``learnt`` no answer is right and none states a confidence, as after a training of
    two steps.
    """
    folder.mkdir(parents=True)
    trained = method != "base"
    model = TrainedModel(
        system=system,
        method=method,
        role=role,
        architecture=architecture,
        informed=informed,
        group_size=group_size if trained else None,
        seed=seed,
        parameters=PARAMETERS[role],
        selected_step=n_steps if trained else None,
        checkpoint=f"build/store/{folder.name}",
        suite=suite.name,
    )
    write_model(model, folder)
    rng = np.random.default_rng([seed, len(folder.name), sum(folder.name.encode())])
    records, samples = _records(model, rng, n_questions, n_samples, learnt)
    write_records(records_from_columns(records, source=system), folder / "records.parquet")
    samples.to_parquet(folder / "samples.parquet", index=False)
    if trained:
        _dynamics(model, rng, n_steps).to_csv(folder / "dynamics.csv", index=False)
        _validation(model, rng, n_steps).to_csv(folder / "validation.csv", index=False)
    return folder.as_posix()


def fake_runs(root, *, seeds=(0,), **options):
    """The runs of the main comparison and of the second pairing: name to its folders."""
    made = {
        "base": {"system": "SLM", "method": "base"},
        "rlvr": {"system": "RLVR-SLM", "method": "none"},
        "brier": {"system": "Brier-SLM", "method": "brier"},
        "l1": {"system": "L1-SLM", "method": "l1"},
        "large": {"system": "Baseline LLM", "method": "l1", "role": "large"},
        "tiny_base": {"system": "SLM", "method": "base", "role": "tiny"},
        "tiny_l1": {"system": "L1-SLM", "method": "l1", "role": "tiny"},
    }
    return {
        name: [fake_run(root / f"{name}_{seed}", seed=seed, **run | options) for seed in seeds]
        for name, run in made.items()
    }


def _chance(model, level, luck):
    """How likely an answer is right: falls with the level, differs between questions."""
    trained = 0.3 if model.method != "base" else 0.0
    return 1 / (1 + np.exp(-(1.6 + trained + SKILL[model.role] - 0.7 * (level - 1) + luck)))


def _stated(model, rng, chance):
    """Confidence as stated, some of it missing before training."""
    if model.method in CALIBRATED:
        collapse = 0.4 if model.role == "tiny" else 1.0
        near = np.clip(collapse * chance + rng.normal(0, 0.12, len(chance)), 0, 1)
        stated = np.round(near, 1)
    else:
        doubt = rng.random(len(chance)) < 0.25 * (1 - chance)
        stated = np.where(doubt, rng.integers(0, 11, len(chance)) / 10, 1.0)
        stated = np.where(rng.random(len(chance)) < 0.05 * (model.method == "base"), np.nan, stated)
    return stated


def _records(model, rng, n_questions, n_samples, learnt):
    tables = []
    for dataset in SUITES[model.suite].datasets:
        lowest, highest = LEVELS.get(dataset, (1, 4))
        # the same questions for every run
        questions = np.random.default_rng(len(dataset))
        level = np.repeat(questions.integers(lowest, highest + 1, n_questions), n_samples)
        luck = np.repeat(questions.normal(0, 0.8, n_questions), n_samples)
        luck = luck + rng.normal(0, 0.15)  # one run is better than another
        chance = _chance(model, level, luck)
        right = (rng.random(len(level)) < chance) & learnt
        stated = _stated(model, rng, chance)
        gold = np.repeat(questions.integers(0, 13, n_questions), n_samples)
        tables.append(
            pd.DataFrame(
                {
                    "dataset": dataset,
                    "question_id": [
                        f"{i:04}" for i in range(n_questions) for _ in range(n_samples)
                    ],
                    "sample": np.tile(np.arange(n_samples), n_questions),
                    "system": model.system,
                    "correct": right,
                    "confidence": stated if learnt else np.full(len(level), np.nan),
                    "prompt_tokens": 12 + 3 * level,
                    "completion_tokens": 8 + 7 * level + rng.integers(0, 3, len(level)),
                    "answer": np.where(right, gold, (gold + 1) % 13).astype(str),
                    "gold": gold.astype(str),
                    "level": level,
                    "expected_confidence": np.clip(chance + rng.normal(0, 0.08, len(level)), 0, 1),
                    "average_probability": np.clip(0.93 + 0.06 * chance, 0, 1),
                    "probe": np.clip(chance + rng.normal(0, 0.15, len(level)), 0, 1),
                    "router": np.round(np.clip(chance + rng.normal(0, 0.2, len(level)), 0, 1), 2),
                    "router_prompt_tokens": 14 + 3 * level,
                    "router_completion_tokens": 3,
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    # as the real runs do: the probe and the router are RLVR's, a base model has neither
    if model.method != "none":
        table = table.drop(columns=["probe", "router", "router_prompt_tokens",
                                    "router_completion_tokens"])  # fmt: skip
    samples = table[table["sample"] == 0].groupby("dataset", sort=False).head(3)
    samples = samples[
        ["dataset", "question_id", "level", "gold", "answer", "confidence", "correct"]
    ]
    stated = samples["confidence"].map(lambda c: "" if np.isnan(c) else f" \\confidence{{{c:g}}}")
    samples = samples.assign(
        prompt=[f"{level}+1*2" for level in samples["level"]],
        completion=" 9-1=8, 8+7=2. \\boxed{" + samples["answer"] + "}" + stated,
    )
    return {name: table[name].tolist() for name in table}, samples


def _dynamics(model, rng, n_steps):
    progress = np.linspace(0, 1, n_steps)
    noise = rng.normal(0, 0.01, n_steps)
    learns = progress if model.method in CALIBRATED else 0 * progress
    pass_at_1 = 0.55 + 0.05 * progress + noise
    ece = 0.35 - 0.22 * learns + noise
    share_at_1 = 0.8 - 0.5 * learns + noise
    return pd.DataFrame(
        {
            "step": np.arange(1, n_steps + 1),
            "reward": pass_at_1 - ece + 0.99,
            "reward_correctness": pass_at_1,
            "reward_confidence": -ece,
            "reward_format": 0.99,
            "pass_at_1": pass_at_1,
            "ece": ece,
            "auroc": 0.6 + 0.2 * learns + noise,
            "confidence_output_ratio": 0.99,
            "mean_confidence": 0.9 - 0.3 * learns + noise,
            "distinct_confidences": 11,
            "share_at_0": 0.02 + 0.2 * learns,
            "share_at_1": share_at_1,
            "groups_without_variance": 0.3,
            "loss": noise,
            "grad_norm": 0.5 + noise,
            "entropy": 0.6 - 0.3 * progress,
            "kl": 0.05 * progress,
            "completion_tokens": 24 + 2 * progress,
            "learning_rate": 3e-4,
            "seconds": 1.1,
        }
    )


def _validation(model, rng, n_steps, n_questions=40, n_samples=2):
    parts = []
    for step in range(0, n_steps + 1, 10):
        level = np.repeat(rng.integers(1, 5, n_questions), n_samples)
        chance = _chance(model, level, rng.normal(0, 0.5, len(level)))
        share = step / n_steps if model.method in CALIBRATED else 0.0
        calibrated = rng.random(len(level)) < share
        stated = np.where(calibrated, _stated(model, rng, chance), 1.0)
        if model.role == "tiny":
            stated = np.where(calibrated, 0.0, stated)
        parts.append(
            pd.DataFrame(
                {
                    "step": step,
                    "question_id": [
                        f"{i:04}" for i in range(n_questions) for _ in range(n_samples)
                    ],
                    "sample": np.tile(np.arange(n_samples), n_questions),
                    "correct": rng.random(len(level)) < chance,
                    "confidence": stated,
                    "format": 1.0,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
