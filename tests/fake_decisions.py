"""Folders that look like those of runs that decide, with made-up decisions.

A question has a distribution over its options, of which the right one is drawn; a model decides by
a sharper or flatter one. SFT is calibrated, as the calibration-aware arms nearly are; others are
too sure behind reasoning.
"""

import numpy as np
import pandas as pd

from corea.decisions.evaluation import OPTIONS
from corea.runs import TrainedModel, write_results, write_settings
from corea.tasks.decision_questions import LETTERS, VERDICTS
from corea.tasks.suites import MICROWORLD

N_OPTIONS = {"choices": 5, "fact_choices": 4, "messages": 2, "lists": 2}
ARMS = {
    "GRPO": {},
    "CA-GRPO": {"calibration_weight": 0.001, "mask_decision": True},
    "CA-GRPO, lambda 0.005": {"calibration_weight": 0.005, "mask_decision": True},
    "CA-GRPO, lambda 0.01": {"calibration_weight": 0.01, "mask_decision": True},
    "CA-GRPO, two-stage": {
        "calibration_weight": 0.01, "mask_decision": True, "decisions": "greedy",
        "start": "GRPO", "steps": 30,
    },
    "CA-GRPO, log score": {
        "calibration_weight": 0.01, "mask_decision": True, "calibration_loss": "log_score",
    },
    "GRPO, longer": {"start": "GRPO", "steps": 30},
    "GRPO, calibrated start": {"start": "CA-GRPO, log score"},
    "Brier-GRPO": {"trajectory_reward": "brier"},
    "beta 0.05": {"kl_coef": 0.05},
}  # fmt: skip
"""Settings of reinforced systems that differ from those of GRPO."""

_SETTINGS = {
    "calibration_weight": 0.0, "calibration_loss": "uniform", "decisions": "sampled",
    "mask_decision": False, "kl_coef": 0.0, "trajectory_reward": "correctness", "steps": 40,
    "start": "Base",
}  # fmt: skip


def fake_decisions(dataset, system, n=40, *, seed=0, sharpness=1.0, samples=1, undecided=0.0):
    """Answers as read_samples returns them; the same questions for all."""
    questions = np.random.default_rng(len(dataset))
    rng = np.random.default_rng([seed, sum(system.encode()), samples])
    names = VERDICTS if N_OPTIONS[dataset] == 2 else LETTERS[: N_OPTIONS[dataset]]
    rows = []
    for i in range(n):
        logits = questions.normal(0, 1.5, len(names))
        gold = questions.choice(len(names), p=np.exp(logits) / np.exp(logits).sum())
        for sample in range(samples):
            sharp = sharpness * (logits + rng.normal(0, 0.5, len(names)))
            p = np.exp(sharp - sharp.max())
            p = 0.999 * p / p.sum()
            place = int(p.argmax())
            decided = rng.random() >= undecided
            rows.append(
                {
                    "dataset": dataset, "question_id": f"{i:04d}", "system": system,
                    "sample": sample, "correct": bool(decided and place == gold),
                    "confidence": p[place] if decided else np.nan,
                    "answer": names[place] if decided else None, "gold": names[gold],
                    "prompt_tokens": 20, "completion_tokens": 12, "level": 1.0,
                    "prompt": f"question {i}\n", "completion": f"<think>\n</think>\n{names[place]}",
                    "opening": "<think>\n</think>\n", "kind": "choice", "finished": True,
                    "undecided": False, "error": "",
                }
                | {
                    name: p[k] if decided and k < len(names) else np.nan
                    for k, name in enumerate(OPTIONS)
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def fake_decider(root, system, task="", *, role="small", seed=0, n=40):
    """Write the folder of one run and return it as text; a base model is of both tasks."""
    folder = root / f"{system}_{task}_{role}_{seed}".replace(" ", "_").replace(",", "")
    folder.mkdir(parents=True)
    method = {"Base": "base", "SFT": "sft"}.get(system, "grpo")
    calibrated = system == "SFT" or system.startswith("CA-GRPO")
    datasets = MICROWORLD.tasks[task] if task else MICROWORLD.decision_datasets
    tables = [
        fake_decisions(
            dataset, system, n, seed=seed,
            sharpness=1.0 if reasoning == "none" or calibrated else 4.0,
            samples=2 if reasoning == "sampled" else 1,
            undecided=0.0 if reasoning == "none" else 0.05,
        ).assign(reasoning=reasoning)
        for dataset in datasets
        for reasoning in ("sampled", "greedy", "none")
    ]  # fmt: skip
    settings = _SETTINGS | ARMS.get(system, {})
    model = TrainedModel(
        system=system, method="ca_grpo" if settings["calibration_weight"] else method, role=role,
        architecture="qwen2", informed=True, group_size=8 if method == "grpo" else None,
        seed=seed, parameters=230_000, selected_step=None, checkpoint=f"build/store/{folder.name}",
        suite="microworld",
    )  # fmt: skip
    samples = pd.concat(tables, ignore_index=True).drop(columns="opening")
    write_results(folder, model, samples, facts={"profile": "made up"})
    if method == "grpo":
        write_settings(settings, folder)
        steps = np.arange(1, settings["steps"] + 1)
        course = {"step": steps, "accuracy": 0.5, "confidence": 0.9, "ece": 0.4, "auroc": 0.6}
        if settings["calibration_weight"]:
            course["gradient_cosine"] = np.where(steps % 5, np.nan, 0.1)
        pd.DataFrame(course).to_csv(folder / "dynamics.csv", index=False)
    return folder.as_posix()


def fake_deciders(root, systems=("SFT", *ARMS), *, roles=("small",), seeds=(0,), n=40):
    """The base model and systems for both tasks, of every size and seed."""
    return [
        fake_decider(root, system, task, role=role, seed=seed, n=n)
        for role in roles
        for seed in seeds
        for system, task in [
            ("Base", ""), *((s, t) for t in MICROWORLD.tasks for s in systems),
        ]
    ]  # fmt: skip
