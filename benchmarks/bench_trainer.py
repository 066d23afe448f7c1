"""A GRPO step of `RLCCTrainer` (group L1) beside TRL's own with a plain accuracy reward.

``python benchmarks/bench_trainer.py`` (needs the extra `train`; ``--small`` for a quick look).
Model, questions, batch and settings are those of the profile `laptop`; the model is pretrained
first, for fewer steps than there, or given by ``--base``. The learning rate is so small that
all trainers keep the base model. Ours runs twice: as the book uses it, and with TRL's rollouts.
The latter and TRL's own keep the same random numbers, so that both sample the same completions:
what differs is what our rewards and logs cost. None validates or saves.

The three take turns in one process (`in_turns.py`), so that whatever else the machine does falls on
all alike.

A run of its own, with clocks around the parts of a step, says where its time goes, and how many
tokens a second its rollouts make beside `model.generate` alone and our engine alone
with the same prompts and settings.

``--publish`` writes the measurements into the package, where the chapter on training speed
reads them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from in_turns import NOT_COUNTED, arguments, take_turns, untrained
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from corea.book import speed
from corea.book.provenance import provenance
from corea.engines.base import Sampling
from corea.engines.transformers_engine import TransformersEngine
from corea.rlcc.reward_functions import correctness
from corea.rlcc.settings import GRPOSettings
from corea.rlcc.trainer import RLCCTrainer, question_row
from corea.tasks import microworld
from corea.training.quiet import quiet
from corea.training.settings import SFTSettings
from corea.training.sft import train_sft

TRAINERS = ("corea", "corea, TRL's rollouts", "trl")
PARTS = ("rollouts", "rewards", "other scoring", "forward", "backward", "optimizer", "other")


class Clock(TrainerCallback):
    """Seconds of each step, and of the parts of a step that are wrapped."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.begins: list[float] = []
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Note the beginning of a step, from which its parts are added up."""
        self.begins.append(time.perf_counter())
        for values in self.parts.values():
            values.append(0.0)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Note that the optimizer begins."""
        self.begun = time.perf_counter()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Note how long it took."""
        self._add("optimizer", time.perf_counter() - self.begun)

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a clock around it."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **named)
            self._add(part, time.perf_counter() - start)
            return result

        return timed

    def _add(self, part: str, seconds: float) -> None:
        if part not in self.parts:
            self.parts[part] = [0.0] * len(self.begins)
        self.parts[part][-1] += seconds


def pretrain(folder: Path, preset: str, steps: int) -> Path:
    """A model that has learnt the corpus for a while."""
    world = microworld.World()
    tokenizer = microworld.build_tokenizer(world)
    settings = SFTSettings(
        steps=steps,
        batch=32,
        micro_batch=32,
        warmup_steps=steps // 5,
        learning_rate=3e-3,
        weight_decay=1.0,
        adam_beta2=0.95,
        checkpoint_every=steps,
    )
    rows = microworld.corpus(world, settings.batch * steps, seed=0)
    train_sft(untrained(preset, tokenizer), tokenizer, rows, settings, folder)
    return folder / "model"


def build(
    name: str, base: Path, settings: GRPOSettings, folder: Path, callback: TrainerCallback
) -> Any:
    """One of the trainers."""
    world = microworld.World()
    common = arguments(
        base,
        settings,
        folder,
        lambda split, n, tokenizer: [
            question_row(question, tokenizer)
            for question in microworld.questions(world, "chains", split, n)
        ],
    )
    trainer: Any
    if name != "trl":
        rollouts = "corea" if name == "corea" else "trl"
        trainer = RLCCTrainer(replace(settings, rollouts=rollouts), folder, **common)
    else:
        common["args"].reward_weights = None
        trainer = GRPOTrainer(reward_funcs=[correctness], **common)
    trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def compare(base: Path, settings: GRPOSettings, folder: Path) -> pd.DataFrame:
    """Seconds of each step of all trainers, taken in turns."""
    return take_turns(
        {
            name: lambda callback, name=name: build(name, base, settings, folder / name, callback)
            for name in TRAINERS
        }
    )


def take_apart(trainer: Any, clock: Clock) -> None:
    """Put clocks around the parts of a step."""
    trainer._generate = clock.around("rollouts", trainer._generate)
    trainer._calculate_rewards = clock.around("rewards", trainer._calculate_rewards)
    trainer._generate_and_score_completions = clock.around(
        "all scoring", trainer._generate_and_score_completions
    )
    trainer.compute_loss = clock.around("forward", trainer.compute_loss)
    trainer.accelerator.backward = clock.around("backward", trainer.accelerator.backward)


def explain(base: Path, settings: GRPOSettings, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Seconds of each part of each step, and tokens and seconds of the rollouts."""
    clock = Clock()
    trainer = build("corea", base, settings, folder, clock)
    take_apart(trainer, clock)
    trainer.train()
    ends = [*clock.begins[1:], time.perf_counter()]
    table = pd.DataFrame(clock.parts)
    table["total"] = [end - begin for begin, end in zip(clock.begins, ends, strict=True)]
    table["other scoring"] = table.pop("all scoring") - table["rollouts"] - table["rewards"]
    table["other"] = 2 * table["total"] - table.sum(axis=1)
    table["step"] = range(1, len(table) + 1)
    counted = table.iloc[NOT_COUNTED:-1]  # the last step ends with the run
    parts = counted.melt("step", PARTS, "part", "seconds")

    lengths = [
        row["completions/mean_length"]
        for row in trainer.state.log_history
        if "completions/mean_length" in row
    ]
    rollouts = [
        {
            "step": step,
            "way": "in training",
            "tokens": round(lengths[step - 1] * settings.batch),
            "seconds": table["rollouts"][step - 1],
        }
        for step in counted["step"]
    ]
    with quiet():
        trainer.model.eval()
        for step in counted["step"]:
            n = settings.batch // settings.group_size
            prompts = trainer.train_dataset["prompt"][(step - 1) * n : step * n]
            rollouts += alone(trainer, settings, prompts, step)
    return parts, pd.DataFrame(rollouts)


def alone(
    trainer: Any, settings: GRPOSettings, prompts: list[str], step: int
) -> list[dict[str, Any]]:
    """Tokens and seconds of `model.generate` and of our engine on the prompts of one step."""
    texts = [text for text in prompts for _ in range(settings.group_size)]
    inputs = trainer.processing_class(texts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    start = time.perf_counter()
    with torch.no_grad():
        found = trainer.model.generate(**inputs, generation_config=trainer.generation_config)
    seconds = {"model.generate": time.perf_counter() - start}
    ids = found[:, inputs["input_ids"].shape[1] :]
    ended = (ids == microworld.EOS_ID).long().cumsum(dim=1)
    counted = (ended == 0) | ((ended == 1) & (ids == microworld.EOS_ID))
    tokens = {"model.generate": int(counted.sum())}

    engine = TransformersEngine(trainer.model, trainer.processing_class, batch_size=settings.batch)
    sampling = Sampling(
        settings.temperature, settings.max_completion_tokens, settings.group_size, seed=step
    )
    start = time.perf_counter()
    rollouts = [rollout for batch in engine.generate(prompts, sampling) for rollout in batch]
    seconds["our engine"] = time.perf_counter() - start
    tokens["our engine"] = sum(rollout.completion_tokens for rollout in rollouts)
    return [
        {"step": step, "way": way, "tokens": tokens[way], "seconds": seconds[way]} for way in tokens
    ]


def main() -> None:
    """Pretrain, compare, explain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="folder of a microworld model")
    parser.add_argument("--pretraining-steps", type=int, default=700)
    parser.add_argument("--steps", type=int, default=60, help="of each trainer")
    parser.add_argument("--steps-apart", type=int, default=20, help="of the run taken apart")
    parser.add_argument("--small", action="store_true", help="tiny model, small batch")
    parser.add_argument("--publish", action="store_true", help="write into the package")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # as notebooks train
    batch = 32 if chosen.small else 256

    def settings(steps: int) -> GRPOSettings:
        return GRPOSettings(
            "l1",
            steps=steps,
            checkpoint_every=steps,
            batch=batch,
            micro_batch=batch,
            learning_rate=1e-12,
            entropy_coef=0.005,
            scale_rewards="batch",
        )

    preset = "tiny" if chosen.small else "small"
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        base = chosen.base or pretrain(folder / "base", preset, chosen.pretraining_steps)
        steps = compare(base, settings(chosen.steps), folder)
        parts, rollouts = explain(base, settings(chosen.steps_apart), folder / "apart")
    for name in TRAINERS[:-1]:
        middle, low, high = speed.overhead(steps, name)
        print(f"{name}: a step is longer than TRL's by {middle:+.2%} [{low:+.2%}, {high:+.2%}]")
    print(speed.step_parts(parts).round(3).to_string(index=False))
    print(speed.token_rates(rollouts).round(0).to_string(index=False))
    if chosen.publish:
        facts = provenance("laptop", 0, packages=["torch", "transformers", "trl"])
        facts |= {
            "threads": str(torch.get_num_threads()),
            "model": preset,
            "completions a step": str(batch),
            "completions of a question": str(settings(1).group_size),
            "longest completion": f"{settings(1).max_completion_tokens} tokens",
        }
        speed.publish("training", {"steps": steps, "parts": parts, "rollouts": rollouts}, facts)


if __name__ == "__main__":
    main()
