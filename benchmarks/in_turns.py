"""Trainers in one process that take turns: each takes a step, then all take the next.

They live in threads of which one works at a time; the order changes until all orders have come and
begin again. So whatever else the machine does falls on all alike. A step counts from its beginning
to the beginning of the next, logging included, in processor seconds of the trainer's thread:
waiting is no part of a step. The first steps are not counted. Each trainer keeps its own random
numbers.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, cycle, permutations
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from corea.tasks import microworld
from corea.training.grpo import grpo_config
from corea.training.settings import RolloutSettings

NOT_COUNTED = 2  # steps at the start of a run
_ALLOCATOR = {  # of glibc: one arena, nothing given back
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


def keep_memory() -> None:
    """Start the program again with an allocator that keeps what a step freed for the next.

    Left alone, glibc gives it back to the system; to get it again costs each thread something
    else, up to a tenth of a step, which is more than what is measured.
    """
    if _ALLOCATOR.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ALLOCATOR})


def untrained(preset: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model of the microworld with random weights."""
    size = microworld.PRESETS[preset]
    config = microworld.model_config(
        "qwen2", size.hidden_size, size.n_layers, size.n_heads, len(tokenizer)
    )
    return microworld.new_model(config, 0)


def arguments(
    base: Path,
    settings: RolloutSettings,
    folder: Path,
    rows: Callable[[str, int, PreTrainedTokenizerFast], list[dict[str, Any]]],
) -> dict[str, Any]:
    """Arguments of a trainer that neither validates nor saves; rows are of a split, so many."""
    n = settings.batch // settings.group_size * settings.steps
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    asked, held_out = (
        datasets.Dataset.from_list(rows(split, k, tokenizer))
        for split, k in (("train", n), ("validation", 8))
    )
    config = grpo_config(settings, folder, len(held_out))
    config.save_strategy = config.eval_strategy = "no"
    return {
        "model": str(base),
        "args": config,
        "processing_class": tokenizer,
        "train_dataset": asked,
        "eval_dataset": held_out,
    }


class Turns:
    """Whose turn it is to take a step: all take one, in one order after another."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin with the first."""
        self.waited_for = set(names)  # until the first step of all: to set up draws numbers too
        self.order = cycle(chain(*permutations(names)))
        self.now = next(self.order)
        self.changed = threading.Condition()
        self.failed: list[BaseException] = []

    def wait(self, name: str) -> None:
        """Wait for the turn of a trainer."""
        with self.changed:
            self.waited_for.discard(name)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.failed or (not self.waited_for and self.now == name))
        if self.failed:
            raise RuntimeError("another trainer failed") from self.failed[0]

    def pass_on(self) -> None:
        """End a turn."""
        with self.changed:
            self.now = next(self.order)
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Let the other threads end too."""
        with self.changed:
            self.failed.append(error)
            self.changed.notify_all()


class TakesTurns(TrainerCallback):
    """Processor seconds of each step of a trainer that takes turns with others in one process."""

    def __init__(self, name: str, turns: Turns) -> None:
        """Start with nothing measured, and the random numbers of now."""
        self.name, self.turns = name, turns
        self.seconds: list[float] = []
        self.begun: float | None = None
        self.random = torch.get_rng_state()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """End the turn, which was the step before and what came after it; wait for the next."""
        self.end_turn()
        self.turns.wait(self.name)
        torch.set_rng_state(self.random)
        self.begun = time.thread_time()

    def end_turn(self) -> None:
        """Note how long it took, and keep the random numbers."""
        if self.begun is not None:
            self.seconds.append(time.thread_time() - self.begun)
            self.random = torch.get_rng_state()
            self.turns.pass_on()
            self.begun = None


def take_turns(build: Mapping[str, Callable[[TrainerCallback], Any]]) -> pd.DataFrame:
    """Seconds of each counted step of all trainers: ``step``, ``way``, ``seconds``."""
    turns = Turns(list(build))
    callbacks = {name: TakesTurns(name, turns) for name in build}
    made = {name: build[name](callback) for name, callback in callbacks.items()}

    def train(name: str) -> None:
        try:
            made[name].train()
            callbacks[name].end_turn()
        except BaseException as error:
            turns.fail(error)
            raise

    threads = [threading.Thread(target=train, args=[name]) for name in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if turns.failed:
        raise SystemExit("a trainer failed; see above")
    return pd.DataFrame(
        [
            {"step": step, "way": name, "seconds": seconds}
            for name, callback in callbacks.items()
            for step, seconds in enumerate(callback.seconds, start=1)
            if step > NOT_COUNTED
        ]
    )
