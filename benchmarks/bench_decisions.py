"""What the loss at the decision token costs, and the confidence of decisions already made.

``python benchmarks/bench_decisions.py`` (needs the extra `train`; ``--small`` for a quick look).

1. A step of GRPO with the calibration-aware loss beside one of vanilla GRPO of the same trainer and
   beside TRL's own with the same reward. Batch and settings are those of the profile `laptop`, the
   rollouts TRL's in all three, from the same random numbers, and the learning rate so small that
   all keep the base model: so all sample the same completions. They take turns in one process
   (`in_turns.py`).
2. The confidence of decisions that are there, as `corea.decisions.evaluation` takes it from one
   forward pass, beside a bare forward pass of the model over the same tokens in the same batches.
   Each alternates with the other, the order too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from in_turns import arguments, keep_memory, take_turns, untrained
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from corea.book import speed
from corea.decisions.evaluation import _scored
from corea.decisions.settings import DecisionSettings
from corea.decisions.trainer import DecisionTrainer, _rows
from corea.engines.base import Sampling
from corea.engines.loading import load_model
from corea.engines.transformers_engine import TransformersEngine
from corea.tasks import decision_world
from corea.training.quiet import quiet
from corea.training.settings import SFTSettings
from corea.training.sft import train_sft

TRAINERS = ("calibration-aware", "vanilla", "trl")


def pretrain(folder: Path, preset: str, steps: int) -> Path:
    """A model that decides behind reasoning, badly."""
    own = decision_world.DecisionWorld()
    tokenizer = decision_world.build_tokenizer(own)
    settings = SFTSettings(steps=steps, batch=32, micro_batch=32, checkpoint_every=steps)
    rows = decision_world.corpus(own, settings.batch * steps, 0)
    train_sft(untrained(preset, tokenizer), tokenizer, rows, settings, folder)
    return folder / "model"


def build(
    name: str, base: Path, settings: DecisionSettings, folder: Path, callback: TrainerCallback
) -> Any:
    """One of the trainers."""
    own = decision_world.DecisionWorld()
    common = arguments(
        base,
        settings,
        folder,
        lambda split, n, tokenizer: _rows(
            decision_world.questions(own, "choices", split, n), tokenizer
        ),
    )
    trainer: Any = DecisionTrainer(settings, folder, **common)
    if name == "trl":
        common["args"].reward_weights = None
        trainer = GRPOTrainer(reward_funcs=trainer.reward_funcs, **common)
    trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def compare(base: Path, steps: int, batch: int, folder: Path) -> pd.DataFrame:
    """Seconds of each step of all trainers, taken in turns."""
    plain = {
        "steps": steps,
        "checkpoint_every": steps,
        "batch": batch,
        "micro_batch": batch,
        "learning_rate": 1e-12,
        "loss_type": "bnpo",
        "rollouts": "trl",
    }
    settings = dict.fromkeys(TRAINERS, DecisionSettings(**plain))
    settings["calibration-aware"] = DecisionSettings(
        **plain, calibration_weight=0.01, mask_decision=True
    )
    return take_turns(
        {
            name: lambda callback, name=name: build(
                name, base, settings[name], folder / name, callback
            )
            for name in TRAINERS
        }
    )


def confidences(base: Path, n: int, rounds: int) -> pd.DataFrame:
    """Seconds of the confidence of n decisions, and of a bare forward pass over their tokens."""
    model, tokenizer = load_model(base, device="cpu")
    engine = TransformersEngine(model, tokenizer, batch_size=256)
    own = decision_world.DecisionWorld()
    questions = decision_world.questions(own, "choices", "train", n // 8)
    prompts = [question.prompt(reasoning=True) for question in questions]
    rollouts = engine.generate(prompts, Sampling(1.0, 64, 8, 0))
    before = [
        tokenizer(prompt)["input_ids"] + rollout.token_ids.tolist()[:-1]
        for prompt, group in zip(prompts, rollouts, strict=True)
        for rollout in group
    ]
    options = [question.options for question in questions for _ in range(8)]
    decided = [question.gold for question in questions for _ in range(8)]

    def prefill() -> None:
        order = np.argsort([len(row) for row in before])
        with torch.no_grad():
            for start in range(0, len(order), engine.batch_size):
                rows = [before[i] for i in order[start : start + engine.batch_size]]
                inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
                model(**inputs, logits_to_keep=1)

    ways: dict[str, Callable[[], Any]] = {
        "confidence": lambda: _scored(engine, before, options, decided),
        "bare pass": prefill,
    }
    measured = []
    for step in range(rounds + 1):
        for name in list(ways)[:: 1 if step % 2 else -1]:
            start = time.thread_time()
            ways[name]()
            if step:  # the first round warms up
                seconds = time.thread_time() - start
                measured.append({"step": step, "way": name, "seconds": seconds})
    return pd.DataFrame(measured)


def main() -> None:
    """Pretrain, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="folder of a model of the decision world")
    parser.add_argument("--steps", type=int, default=60, help="of each trainer")
    parser.add_argument("--records", type=int, default=10_000, help="decisions to take")
    parser.add_argument("--rounds", type=int, default=8, help="of taking them")
    parser.add_argument("--small", action="store_true", help="tiny model, small batch")
    chosen = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)  # as notebooks train
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        preset = "tiny" if chosen.small else "small"
        base = chosen.base or pretrain(folder / "base", preset, 150)
        steps = compare(base, chosen.steps, 32 if chosen.small else 256, folder)
        taken = confidences(base, chosen.records, chosen.rounds)
    pairs = [("calibration-aware", "vanilla"), ("calibration-aware", "trl"), ("vanilla", "trl")]
    for first, second in pairs:
        middle, low, high = speed.overhead(steps, first, base=second)
        print(f"{first} over {second}: {middle:+.2%} [{low:+.2%}, {high:+.2%}] a step")
    middle, low, high = speed.overhead(taken, "confidence", base="bare pass")
    seconds = taken.groupby("way")["seconds"].median()
    print(
        f"confidence of {chosen.records:,} decisions: {seconds['confidence']:.2f} s, over a bare "
        f"forward pass ({seconds['bare pass']:.2f} s): {middle:+.2%} [{low:+.2%}, {high:+.2%}]"
    )


if __name__ == "__main__":
    main()
