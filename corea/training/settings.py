"""Settings of trainings, and what can be said of them before anything is loaded.

This module needs neither torch nor TRL, so that profiles can be checked with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from corea import checks

if TYPE_CHECKING:
    import pandas as pd

    from corea.engines.base import Sampling

Floats = NDArray[np.float64]
SCHEDULES = ("constant", "linear", "cosine")


class TrainingError(Exception):
    """Training cannot go on; says at which step and why."""


def one_of(default: str, choices: Sequence[str]) -> Any:
    """A setting that is one of some words."""
    return field(default=default, metadata={"choices": tuple(choices)})


def from_zero(default: float, below: float = math.inf) -> Any:
    """A setting that may be 0; every other number must be more."""
    return field(default=default, metadata={"zero": True, "below": below})


def below(default: float, limit: float) -> Any:
    """A setting that is more than 0 and below a limit."""
    return field(default=default, metadata={"below": limit})


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    r"""Which weights are trained, and in which precision.

    With LoRA, a layer's weights :math:`W` stay as they are and :math:`A` (r x n) and :math:`B`
    (m x r) are trained:

    .. math:: W' = W + \frac{\alpha}{r} B A

    Source: of the defaults, paper B, appendix A, whose rank is 16.

    Attributes:
        lora_rank: r; 0: all weights are trained, and the other three mean nothing.
        lora_alpha: :math:`\alpha`.
        lora_dropout: Share of the inputs of A that a step of training leaves out, below 1.
        lora_targets: Which layers: ``"default"``, peft's for the architecture (the paper names
            none; queries and values in Qwen and Llama), or ``"all-linear"``.
        gradient_checkpointing: Recompute activations in the backward pass: the same step in
            less memory and more time.
        precision: Of the forward pass, ``"float32"`` or ``"bfloat16"`` (autocast); or
            ``"auto"``, which of them is fast on the machine that trains
            (:func:`corea.engines.loading.resolved_precision`).
    """

    lora_rank: int = from_zero(0)
    lora_alpha: float = 32.0
    lora_dropout: float = from_zero(0.1, below=1)
    lora_targets: str = one_of("default", ("default", "all-linear"))
    gradient_checkpointing: bool = False
    precision: str = one_of("float32", ("float32", "bfloat16", "auto"))

    @property
    def needs_whole_weights(self) -> str:
        """What needs all weights in every process; empty if nothing does."""
        return ""


@dataclass(frozen=True)
class SFTSettings(WeightSettings):
    """Supervised fine-tuning; the rest is that of :class:`WeightSettings`.

    Attributes:
        steps: Optimizer steps.
        batch: Sequences a step, over all processes.
        micro_batch: Sequences a process takes at once. Those of a step are sorted by length, so
            smaller parts pad less; the step is the same.
        learning_rate: The highest.
        warmup_steps: Steps until it is reached.
        lr_schedule: What it does from there: ``"constant"``, or falls to 0 at the last step as
            ``"linear"`` or ``"cosine"``.
        checkpoint_every: Steps between checkpoints.
        weight_decay: Of AdamW.
        adam_beta2: AdamW's decay rate of squared gradients, below 1.
        seed: Seed of the order of the rows.

    Raises:
        ValueError: If a value is out of range; names it.

    Example:
        >>> SFTSettings(steps=100, checkpoint_every=30)
        Traceback (most recent call last):
            ...
        ValueError: steps is 100; expected a multiple of checkpoint_every, 30
    """

    steps: int
    batch: int = 64
    micro_batch: int = 64
    learning_rate: float = 5e-3
    warmup_steps: int = from_zero(0)
    lr_schedule: str = one_of("linear", SCHEDULES)
    checkpoint_every: int = 200
    weight_decay: float = from_zero(0.0)
    adam_beta2: float = below(0.999, 1)
    seed: int = from_zero(0)

    def __post_init__(self) -> None:
        """Check the values."""
        _check(self)


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(WeightSettings):
    """What all reinforcement on rollouts has in common, beside :class:`WeightSettings`.

    Attributes:
        group_size: Rollouts of one prompt, G.
        steps: Optimizer steps.
        batch: Completions a step, over all processes.
        micro_batch: Completions a process takes at once in the forward and backward pass.
        steps_per_rollout: Optimizer steps taken on the completions of one rollout.
        learning_rate: The highest.
        warmup_steps: Steps until it is reached.
        lr_schedule: What it does from there: ``"constant"``, or falls to 0 at the last step as
            ``"linear"`` or ``"cosine"``.
        temperature: Of sampling.
        max_completion_tokens: Length at which a completion is cut.
        kl_coef: Weight of the KL divergence from the base model, TRL's beta.
        entropy_coef: Weight of the entropy bonus.
        loss_type: What a token's loss is divided by, as in TRL.
        scale_rewards: ``"group"``, ``"batch"`` or ``"none"``, as in TRL.
        rollouts: What makes them: ``"corea"``, our engine, for text prompts and a model that is
            whole in every process; ``"trl"``, for weights that are sharded; ``"vllm_colocate"``,
            vLLM on the GPUs of the training; or ``"vllm_server"``, on others.
        vllm_memory_share: Fraction of a GPU's memory for vLLM, in (0, 1).
        weight_decay: Of AdamW; 0 is TRL's default.
        checkpoint_every: Steps between checkpoints, each with a validation.
        selection: Which checkpoint the run keeps: that of the best ``"validation"`` (rule 2 of
            :mod:`corea.training.checkpoints`), or the ``"last"``, as paper A does, whose steps are
            fixed.
        seed: Seed of the questions' order and of sampling.

    Raises:
        ValueError: If a value is out of range; names it.
    """

    group_size: int = 8
    steps: int = 120
    batch: int = 256
    micro_batch: int = 256
    steps_per_rollout: int = 1
    learning_rate: float = 3e-4
    warmup_steps: int = from_zero(0)
    lr_schedule: str = one_of("constant", SCHEDULES)
    temperature: float = 1.0
    max_completion_tokens: int = 64
    kl_coef: float = from_zero(0.0)
    entropy_coef: float = from_zero(0.0)
    # TRL's other two need importance ratios of whole sequences
    loss_type: str = one_of("dapo", ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo"))
    scale_rewards: str = one_of("group", ("group", "batch", "none"))
    rollouts: str = one_of("corea", ("corea", "trl", "vllm_colocate", "vllm_server"))
    vllm_memory_share: float = below(0.3, 1)
    weight_decay: float = from_zero(0.0)
    checkpoint_every: int = 20
    selection: str = one_of("validation", ("validation", "last"))
    seed: int = from_zero(0)

    def __post_init__(self) -> None:
        """Check the values."""
        _check(self)
        if self.group_size < 2:
            raise ValueError(f"group_size is {self.group_size}; expected 2 or more")
        _check_multiple(self, "batch", "group_size")
        _check_multiple(self, "checkpoint_every", "steps_per_rollout")

    @property
    def needs_whole_weights(self) -> str:
        """Our engine, which generates with the model itself."""
        return "rollouts 'corea', unlike TRL's and vLLM's," if self.rollouts == "corea" else ""

    @property
    def reward_weights(self) -> list[float]:
        """Weights of the trainer's reward functions: correctness alone."""
        return [1.0]

    def sampling(self, seed: int) -> Sampling:
        """How rollouts are drawn: one completion of each prompt given."""
        from corea.engines.base import Sampling

        return Sampling(self.temperature, self.max_completion_tokens, seed=seed)

    def earned(self, rollouts: pd.DataFrame) -> dict[str, Floats]:
        """What rollouts earned, by the components that a checkpoint is selected by.

        Args:
            rollouts: One row each with ``correct`` and ``confidence``, and ``format`` where that
                is rewarded; whole groups in a row.

        Returns:
            Component to rewards, each of the length of the rows.
        """
        return {"correctness": rollouts["correct"].to_numpy(dtype=float)}


Settings = SFTSettings | RolloutSettings


def accumulation(settings: Settings, n_processes: int) -> int:
    """Micro-batches that each process takes for one optimizer step.

    Raises:
        ValueError: If the batch does not divide among the processes.

    Example:
        >>> accumulation(SFTSettings(steps=200, batch=64, micro_batch=16), n_processes=2)
        2
    """
    at_once = settings.micro_batch * n_processes
    if settings.batch % at_once:
        raise ValueError(
            f"batch is {settings.batch}; expected a multiple of micro_batch times the number of "
            f"processes, {settings.micro_batch} x {n_processes}"
        )
    return settings.batch // at_once


def validation_batch(n_questions: int, settings: RolloutSettings, n_processes: int) -> int:
    """The largest batch a process can validate at once so that all batches are equal.

    It is that of training where that holds whole groups, and else the smallest that does.

    Raises:
        ValueError: If there is nothing to validate on.
        TrainingError: If the processes cannot share the questions in whole groups.
    """
    if not n_questions:
        raise ValueError("nothing to validate on: expected at least one question")
    rows = n_questions * settings.group_size
    smallest = math.lcm(settings.group_size, n_processes) // n_processes
    for size in range(max(settings.micro_batch, smallest), 0, -1):
        at_once = size * n_processes
        if rows % at_once == 0 and at_once % settings.group_size == 0:
            return size
    raise TrainingError(
        f"{n_questions} validation questions cannot be shared by {n_processes} processes in whole "
        f"groups of {settings.group_size}; expected a multiple of "
        f"{smallest * n_processes // settings.group_size}"
    )


def _check(settings: Settings) -> None:
    """Refuse values that are out of range."""
    for setting in fields(settings):
        name, value, rules = setting.name, getattr(settings, setting.name), setting.metadata
        if choices := rules.get("choices"):
            checks.one_of(value, name, choices)
        elif setting.type == "bool":
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; expected True or False")
        else:
            _check_number(name, value, setting.type == "int", **rules)
    _check_multiple(settings, "steps", "checkpoint_every")  # the last step is kept and validated


def _check_number(
    name: str, value: object, whole: bool, *, zero: bool = False, below: float = math.inf
) -> None:
    kinds = int if whole else (int, float)
    kind = "a whole number" if whole else "a number"
    numeric = isinstance(value, kinds) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value) or value < 0 or (value == 0 and not zero):  # type: ignore[arg-type, operator]
        expected = "0 or more" if zero else "more than 0"
        raise ValueError(f"{name} is {value!r}; expected {kind}, {expected}")
    if value >= below:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}; expected {kind}, below {below}")


def _check_multiple(settings: Settings, name: str, divisor: str) -> None:
    if getattr(settings, name) % getattr(settings, divisor):
        raise ValueError(
            f"{name} is {getattr(settings, name)}; expected a multiple of {divisor}, "
            f"{getattr(settings, divisor)}"
        )
