"""Small trainings with TRL's own trainer, healthy and not, and what was logged of each step.

``python benchmarks/record_alarms.py BASE FOLDER [SEED ...]`` trains the model in folder BASE, that
of ``make book`` before reinforcement (``checkpoint`` in ``pretrain_small/model.json`` below
``build/laptop/tables``), by each of :data:`ARMS` once a seed. It writes ``FOLDER/curves.csv``: one
row a training step, and one for the held-out questions before the first and after the last; several
processes may share the seeds. ``... publish FOLDER ...`` keeps them in ``corea/data/alarms``, where
the chapter on early alarms reads them. A step has 128 completions of at most 48 tokens, 8 a
question; the book's trainings have twice as many. What the arms do not say is as there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from transformers import AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from corea.book import early_alarms
from corea.book.provenance import provenance
from corea.rlcc.reward_functions import ROLLOUT_METRICS, confidence, correctness, form
from corea.rlcc.trainer import question_row
from corea.tasks import microworld
from corea.training.alarm_callback import AlarmCallback
from corea.training.quiet import quiet

ARMS: dict[str, dict[str, Any]] = {  # chosen before any was run: one, and ways to go wrong
    "L1": {},
    "L1, rate × 10": {"learning_rate": 3e-3},
    "L1, entropy × 10": {"entropy_coef": 0.05},
    "RLVR": {"reward": "none"},
    "L1, format unpaid": {"format_weight": 0.0},
    "Sample L1": {"reward": "sample_l1"},
}
STEPS = 40
GROUP = 8


def record(base: Path, folder: Path, arm: str, seed: int) -> pd.DataFrame:
    """What TRL's trainer logs of one training."""
    options = {"reward": "l1", "learning_rate": 3e-4, "entropy_coef": 0.005, "format_weight": 1.0}
    options |= ARMS[arm]
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = {
        split: datasets.Dataset.from_list(
            [question_row(q, tokenizer) for q in microworld.questions(world, "chains", split, n)]
        )
        for world, split, n in (
            (microworld.World(), "train", 4000),
            (microworld.World(), "validation", 64),
        )
    }
    config = GRPOConfig(
        output_dir=str(folder), max_steps=STEPS, seed=seed, use_cpu=True, report_to=[],
        per_device_train_batch_size=128, gradient_accumulation_steps=1, num_generations=GROUP,
        per_device_eval_batch_size=64 * GROUP, eval_on_start=True, disable_tqdm=True,
        max_completion_length=48, learning_rate=options["learning_rate"], logging_steps=1,
        lr_scheduler_type="linear", beta=0.0, entropy_coef=options["entropy_coef"],
        loss_type="dapo", scale_rewards="batch", save_strategy="no",
        reward_weights=[1.0, 1.0, options["format_weight"]],
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=str(base),
        args=config,
        reward_funcs=[correctness, confidence(options["reward"]), form],
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        callbacks=[AlarmCallback()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.evaluate()
    log = pd.DataFrame(trainer.state.log_history)
    kept = [*ROLLOUT_METRICS, "grad_norm", "entropy", "completions/mean_length"]
    steps = log[log["confidence_output_ratio"].notna()].reindex(columns=["step", *kept])
    held_out = log[log["eval_confidence_output_ratio"].notna()]
    held_out = held_out.reindex(columns=["step", *(f"eval_{name}" for name in kept)])
    held_out.columns = steps.columns
    parts = pd.concat([steps.assign(split="train"), held_out.assign(split="held-out")])
    parts = parts.rename(columns={"completions/mean_length": "completion_tokens"})
    for column, value in (("seed", seed), ("arm", arm)):
        parts.insert(0, column, value)
    return parts


def main(base: Path, folder: Path, seeds: list[int]) -> None:
    """Train everything, and write the table after each training."""
    tables = []
    for seed in seeds:
        for k, arm in enumerate(ARMS):
            with quiet():
                tables.append(record(base, folder / f"{seed}_{k}", arm, seed))
            table = pd.concat(tables)
            table.to_csv(folder / "curves.csv", index=False, float_format="%.4g")


def publish(folders: list[str]) -> None:
    """Keep the settings that all of the folders have in the package."""
    parts = [pd.read_csv(Path(folder, "curves.csv")) for folder in folders]
    both = pd.concat(parts)
    whole = [arm for arm in ARMS if all((part["arm"] == arm).any() for part in parts)]
    both = both[both["arm"].isin(whole)]
    both = both.sort_values("arm", key=lambda arms: arms.map(whole.index), kind="stable")
    seeds = ", ".join(map(str, sorted(both["seed"].unique())))
    told = provenance(
        "laptop", 0, sources=["pretrain_small"], packages=("torch", "transformers", "trl")
    )
    early_alarms.publish(both, told | {"seed": seeds})


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish(sys.argv[2:])
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]), list(map(int, sys.argv[3:])) or [0, 1, 2, 3])
