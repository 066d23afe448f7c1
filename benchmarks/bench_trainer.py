"""A GRPO step of `RLCCTrainer` (group L1) beside TRL's own with a plain accuracy reward.

``python benchmarks/bench_trainer.py`` (needs the extra `train`; ``--small`` for a quick look).
Model, questions, batch and settings are those of the profile `laptop`; the model is pretrained
first, for fewer steps than there, or given by ``--base``. The learning rate is so small that
both trainers keep the base model and so sample the same completions, step by step: what differs
is the trainers' own work. Neither validates nor saves. The trainers alternate, in an order that
changes with each repetition; the overhead is the median over pairs of the same step of the same
repetition. The first steps of each run are not counted.

A run of its own, with clocks around the parts of a step, says where its time goes, and how many
tokens a second the rollouts make beside `model.generate` with the same prompts and settings.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from corea import microworld, trainers
from corea.trainers import GRPOSettings, RLCCTrainer, SFTSettings

NOT_COUNTED = 2  # steps at the start of a run
PARTS = ("rollouts", "rewards", "other scoring", "forward", "backward", "optimizer", "other")


class Clock(TrainerCallback):
    """Seconds of each step and of the parts of a step that are wrapped."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.ends: list[float] = []
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.begun = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the end of a step."""
        self.ends.append(time.perf_counter())

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Note that the optimizer begins."""
        self.begun = time.perf_counter()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Note how long it took."""
        self.parts["optimizer"].append(time.perf_counter() - self.begun)

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a clock around it."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **named)
            self.parts[part].append(time.perf_counter() - start)
            return result

        return timed

    def steps(self) -> list[float]:
        """Seconds from the end of a step to the end of the next, the first left out."""
        times = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return times[NOT_COUNTED - 1 :]


def pretrain(folder: Path, preset: str, steps: int) -> Path:
    """A model that has learnt the corpus for a while."""
    world = microworld.World()
    tokenizer = microworld.build_tokenizer(world)
    size = microworld.PRESETS[preset]
    config = microworld.model_config(
        "qwen2", size.hidden_size, size.n_layers, size.n_heads, len(tokenizer)
    )
    settings = SFTSettings(steps=steps, checkpoint_every=steps)
    rows = microworld.corpus(world, settings.batch * steps, seed=0)
    trainers.train_sft(microworld.new_model(config, 0), tokenizer, rows, settings, folder)
    return folder / "model"


def build(name: str, base: Path, settings: GRPOSettings, folder: Path) -> tuple[Any, Clock]:
    """One of the two trainers, with a clock."""
    world = microworld.World()
    n = settings.batch // settings.group_size * settings.steps
    asked = trainers._dataset(microworld.questions(world, "chains", "train", n))
    held_out = trainers._dataset(microworld.questions(world, "chains", "validation", 8))
    config = trainers._grpo_config(settings, folder, len(held_out))
    config.save_strategy = config.eval_strategy = "no"
    common = {
        "model": str(base),
        "args": config,
        "processing_class": PreTrainedTokenizerFast.from_pretrained(base),
        "train_dataset": asked,
        "eval_dataset": held_out,
    }
    trainer: Any
    if name == "corea":
        trainer = RLCCTrainer(settings, folder, **common)
    else:
        config.reward_weights = None
        trainer = GRPOTrainer(reward_funcs=[trainers.correctness], **common)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    return trainer, clock


def take_apart(trainer: Any, clock: Clock) -> None:
    """Put clocks around the parts of a step."""
    trainer._generate = clock.around("rollouts", trainer._generate)
    trainer._calculate_rewards = clock.around("rewards", trainer._calculate_rewards)
    trainer._generate_and_score_completions = clock.around(
        "all scoring", trainer._generate_and_score_completions
    )
    trainer.compute_loss = clock.around("forward", trainer.compute_loss)
    trainer.accelerator.backward = clock.around("backward", trainer.accelerator.backward)


def plain_generate(trainer: Any, step: int) -> float:
    """Tokens a second of `model.generate` on the prompts of one step."""
    group_size = trainer.settings.group_size
    n = trainer.settings.batch // group_size
    prompts = trainer.train_dataset["prompt"][step * n : (step + 1) * n]
    texts = [text for text in prompts for _ in range(group_size)]
    inputs = trainer.processing_class(texts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    start = time.perf_counter()
    with torch.no_grad():
        found = trainer.model.generate(**inputs, generation_config=trainer.generation_config)
    seconds = time.perf_counter() - start
    ids = found[:, inputs["input_ids"].shape[1] :]
    ended = (ids == microworld.EOS_ID).long().cumsum(dim=1)
    tokens = ((ended == 0) | ((ended == 1) & (ids == microworld.EOS_ID))).sum().item()
    return float(tokens / seconds)


def spread(values: list[float], form: str) -> str:
    """Median, and quartiles in brackets."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def compare(base: Path, settings: GRPOSettings, repetitions: int, folder: Path) -> None:
    """Print steps a second of both trainers, and the overhead."""
    seconds: dict[str, list[list[float]]] = {"trl": [], "corea": []}
    for repetition in range(repetitions):
        for name in sorted(seconds, reverse=repetition % 2 == 0):
            trainer, clock = build(name, base, settings, folder)
            trainer.train()
            seconds[name].append(clock.steps())
    print(f"{'trainer':8}{'steps/s: median [quartiles]':>32}{'  by repetition'}")
    for name, runs in seconds.items():
        rates = [1 / value for run in runs for value in run]
        by_run = ", ".join(f"{1 / statistics.median(run):.3f}" for run in runs)
        print(f"{name:8}{spread(rates, '.3f'):>32}  {by_run}")
    pairs = [
        [100 * (ours / theirs - 1) for ours, theirs in zip(*runs, strict=True)]
        for runs in zip(seconds["corea"], seconds["trl"], strict=True)
    ]
    by_run = ", ".join(f"{statistics.median(run):+.2f}" for run in pairs)
    print(
        f"overhead of a step in %: {spread(list(chain(*pairs)), '+.2f')}  by repetition {by_run}\n"
    )


def explain(base: Path, settings: GRPOSettings, folder: Path) -> None:
    """Print where the time of a step goes, and tokens a second."""
    trainer, clock = build("corea", base, settings, folder)
    take_apart(trainer, clock)
    trainer.train()
    total = statistics.median(clock.steps())
    calls = {name: len(values) // settings.steps for name, values in clock.parts.items()}
    parts = {
        name: statistics.median(
            sum(values[i : i + calls[name]])
            for i in range(NOT_COUNTED * calls[name], len(values), calls[name])
        )
        for name, values in clock.parts.items()
    }
    parts["other scoring"] = parts.pop("all scoring") - parts["rollouts"] - parts["rewards"]
    parts["other"] = total - sum(parts.values())
    print(f"where the {1000 * total:.0f} ms of a step go (medians)")
    for name in PARTS:
        print(f"  {name:14}{1000 * parts[name]:9.1f} ms{100 * parts[name] / total:7.1f} %")

    logged = [row for row in trainer.state.log_history if "completions/mean_length" in row]
    inside = [
        row["completions/mean_length"] * settings.batch / seconds
        for row, seconds in zip(logged, clock.parts["rollouts"], strict=True)
    ][NOT_COUNTED:]
    with trainers._quiet():
        trainer.model.eval()
        plain = [plain_generate(trainer, step) for step in range(NOT_COUNTED, settings.steps)]
    print(f"rollout tokens/s  in the trainer {spread(inside, ',.0f')}")
    print(f"                  plain generate {spread(plain, ',.0f')}")


def main() -> None:
    """Pretrain, compare, explain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="folder of a microworld model")
    parser.add_argument("--pretraining-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--small", action="store_true", help="tiny model, small batch")
    chosen = parser.parse_args()
    settings = GRPOSettings(
        "l1",
        steps=chosen.steps,
        checkpoint_every=chosen.steps,
        batch=32 if chosen.small else 256,
        micro_batch=32 if chosen.small else 256,
        max_completion_tokens=96,
        learning_rate=1e-12,
        entropy_coef=0.005,
        scale_rewards="batch",
    )
    preset = "tiny" if chosen.small else "small"
    with tempfile.TemporaryDirectory() as name, trainers._quiet():
        folder = Path(name)
        base = chosen.base or pretrain(folder / "base", preset, chosen.pretraining_steps)
        print(
            f"batch {settings.batch} completions, groups of {settings.group_size}, "
            f"{chosen.repetitions} alternating runs of {chosen.steps} steps, "
            f"{torch.get_num_threads()} threads"
        )
        compare(base, settings, chosen.repetitions, folder)
        explain(base, settings, folder)


if __name__ == "__main__":
    main()
