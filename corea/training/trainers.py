r"""Training: supervised fine-tuning and GRPO with a confidence reward (RLCC), on TRL.

Both trainers are TRL's, pinned to one version. The only private things of TRL that are touched
are in this module, in the two trainer classes: the methods ``_calculate_rewards`` with the order
of its result, ``_generate_and_score_completions`` with ``importance_sampling_ratio`` in its
result, and ``_compute_loss``, and the attributes ``_metrics``, ``_logs`` and, with vLLM,
``vllm_generation.sync_weights`` (``tests/test_trainers.py`` fails when they change).

What is decided here:

1. The reward is the sum of correctness, confidence and format (paper A, equation 1). The
   confidence reward needs the accuracy of the whole group (equation 6), and TRL calls reward
   functions on each process before it gathers; so TRL is told the confidence *stated*, and its
   column becomes the reward after gathering, when every group is whole. That each
   ``group_size`` rows in a row answer the same prompt is checked at every step.
2. Paper A has a "batch size of 1,024" in the rollout phase and "of 256" in training: four
   optimizer steps a rollout (:attr:`RolloutSettings.steps_per_rollout`). A batch counts
   completions here; in the framework that the paper uses it counts questions.
3. Questions come in an order drawn from the seed, as many as the steps need; each is asked once
   before any is asked again. TRL's own sampler forgets its state between passes over the data,
   so that a resumed run would see others.
4. Validation runs the same code on held-out questions, at the training temperature, with random
   numbers of its own: the same at each evaluated step, and training does not notice it.
5. Checkpoint selection (paper A stops at a fixed step and names that as a limitation): of the
   evaluated steps after 0, the one whose worst component is least behind. For each component of
   the method's reward k (correctness, format, and confidence if it is trained),

   .. math:: \text{behind}_k(t) = \frac{\max_s v_k(s) - v_k(t)}{\text{SE}_k},

   where :math:`v_k(t)` is the mean on the validation rollouts and :math:`\text{SE}_k` its standard
   error by question, the largest of all evaluated steps (a step where all questions earn the
   same has none, and would leave every other one infinitely far behind). The step with the
   smallest :math:`\max_k \text{behind}_k(t)` is taken, the latest of equals.
6. A checkpoint counts once its checksums are written, last of all. A run that was killed goes on
   from the newest one that is whole, and ends with the weights it would have had.
7. A loss that is not finite ends the run before it reaches the weights in GRPO, and before they
   are kept in both trainings; so does a gradient that is not. A confidence reward under which
   nearly all completions state the same confidence, although accuracy varies between questions,
   is reported the first time and again after each recovery.
8. Rollouts are made by the engine the book evaluates with, through TRL's (experimental)
   ``rollout_func``: finished rows leave the batch, which halves their time. A completion is
   decided by the seed, the step, the process and its prompt alone.
9. TRL keeps rewards in 32 bits; there 0.7 becomes 0.69999999 and falls into the bin below. So
   the confidences that are logged and rewarded are gathered in 64 bits, next to TRL's own tensor.
10. All weights are trained, or adapters beside frozen ones (LoRA). Trained weights are kept in 32
    bits; with ``precision="bfloat16"`` the forward pass casts them (autocast), and weights that
    are frozen on a GPU are in 16 bits from the start. The reference of the KL term is the model
    without its adapters. At the end the adapters of the selected step are merged into the base
    model in 32 bits, and ``model/`` holds whole weights, stored in the precision of the forward
    pass, the one that was validated.
11. vLLM may make the rollouts, in the process of the training or as a server whose address is in
    the environment (:data:`VLLM_SERVER`). Its probabilities differ a little from those of the
    model that is trained, so TRL weights completions by their ratio and drops those above 3; the
    share that is dropped is logged as ``masked_share``. (The dropout of adapters is on in the one
    and off in the other, which widens the ratios: better none with vLLM.) Its random numbers are
    its own: a run that was killed goes on, but not to the same weights, and validations differ in
    their draws. Adapters are taken out of the weights again after vLLM was given them merged,
    which would leave rounding behind each time; so the frozen weights are copied back. We ran it
    in the process of the training, on a CPU; the server needs GPUs and was not run.
12. Several processes are accelerate's (:mod:`corea.training.launch`). Weights that are sharded
    (ZeRO-3, FSDP) leave nothing for our engine to generate with; that is refused, and so are
    configurations whose checkpoints would not hold whole weights, before a model is loaded. We
    ran two processes on a CPU; DeepSpeed and FSDP need GPUs and were not run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pandas as pd
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from huggingface_hub import constants as hub
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from corea.engines.base import Sampling
from corea.engines.loading import load_model, model_folder
from corea.engines.prompts import chat_prompt
from corea.engines.transformers_engine import TransformersEngine
from corea.metrics.calibration import describe_stated
from corea.rlcc import rewards
from corea.store import MANIFEST, StoreError, check_seal, seal, write_atomically
from corea.tasks.parsing import parse_completion
from corea.tasks.questions import Question
from corea.tasks.verify import verify_batch

COMPONENTS = ("correctness", "confidence", "format")
ROLLOUT_METRICS = (
    *("pass_at_1", "ece", "auroc", "confidence_output_ratio", "mean_confidence"),
    *("distinct_confidences", "share_at_0", "share_at_1", "groups_without_variance"),
)
COLLAPSED_SHARE = 0.95  # of the confidences stated, at one value
VARYING_ACCURACY = 0.1  # standard deviation of the group accuracies
VLLM_SERVER = "COREA_VLLM_SERVER"  # environment variable with the address of a vLLM server

_Floats = NDArray[np.float64]


class TrainingError(Exception):
    """Training cannot go on; says at which step and why."""


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
        gradient_checkpointing: Whether the backward pass computes activations again that the
            forward pass did not keep: the same step in less memory and more time.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast; number 10 of this module).
    """

    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.1
    lora_targets: str = "default"
    gradient_checkpointing: bool = False
    precision: str = "float32"

    @property
    def adapter(self) -> LoraConfig | None:
        """What peft is told, None where all weights are trained."""
        if not self.lora_rank:
            return None
        return LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=None if self.lora_targets == "default" else self.lora_targets,
            task_type="CAUSAL_LM",
        )

    @property
    def dtype(self) -> str:
        """Of the weights as they are loaded; those of adapters are always float32."""
        frozen = self.lora_rank and self.precision == "bfloat16" and torch.cuda.is_available()
        return "bfloat16" if frozen else "float32"

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
        learning_rate: The highest, reached after ``warmup_steps``; then it falls as a cosine.
        warmup_steps: Steps until then.
        checkpoint_every: Steps between checkpoints.
        weight_decay: Of AdamW.
        adam_beta2: Of AdamW: how slowly it forgets squared gradients, below 1.
        seed: Seed of the order of the rows.

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
    warmup_steps: int = 0
    checkpoint_every: int = 200
    weight_decay: float = 0.01
    adam_beta2: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one is out of range; names it.
        """
        _check_settings(self)


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
        vllm_memory_share: Of the memory of a GPU that vLLM takes there, below 1.
        checkpoint_every: Steps between checkpoints, each with a validation.
        seed: Seed of the questions' order and of sampling.
    """

    group_size: int = 8
    steps: int = 120
    batch: int = 256
    micro_batch: int = 256
    steps_per_rollout: int = 1
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    lr_schedule: str = "constant"
    temperature: float = 1.0
    max_completion_tokens: int = 64
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    loss_type: str = "dapo"
    scale_rewards: str = "group"
    rollouts: str = "corea"
    vllm_memory_share: float = 0.3
    checkpoint_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one is out of range; names it.
        """
        _check_settings(self)
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
        """How rollouts are drawn.

        Args:
            seed: Of the draws.

        Returns:
            The sampling, one completion of each prompt given.
        """
        return Sampling(self.temperature, self.max_completion_tokens, seed=seed)

    def earned(self, rollouts: pd.DataFrame) -> dict[str, _Floats]:
        """What rollouts earned, by the components that a checkpoint is selected by.

        Args:
            rollouts: One row each with ``correct`` and ``confidence``, and ``format`` where that
                is rewarded; whole groups in a row.

        Returns:
            Component to rewards, each of the length of the rows.
        """
        return {"correctness": rollouts["correct"].to_numpy(dtype=float)}


@dataclass(frozen=True)
class GRPOSettings(RolloutSettings):
    """GRPO with a confidence reward; the rest is that of :class:`RolloutSettings`.

    Attributes:
        confidence_reward: Name in :data:`corea.rlcc.rewards.CONFIDENCE_REWARDS`; ``"none"`` is
        RLVR.
        confidence_weight: Weight of the confidence reward.
        format_weight: Weight of the format reward.

    Example:
        >>> GRPOSettings("l1", group_size=8, batch=100)
        Traceback (most recent call last):
            ...
        ValueError: batch is 100; expected a multiple of group_size, 8
    """

    confidence_reward: str = "l1"
    confidence_weight: float = 1.0
    format_weight: float = 1.0

    @property
    def reward_weights(self) -> list[float]:
        """Weights of correctness, confidence and format."""
        return [1.0, self.confidence_weight, self.format_weight]

    def earned(self, rollouts: pd.DataFrame) -> dict[str, _Floats]:
        """Correctness, format, and confidence if it is rewarded.

        Args:
            rollouts: As in :meth:`RolloutSettings.earned`, with ``format``.

        Returns:
            Component to rewards, each of the length of the rows.
        """
        found = super().earned(rollouts)
        if self.confidence_reward != "none":
            found["confidence"] = rewards.confidence_reward(
                self.confidence_reward,
                rollouts["confidence"].to_numpy(),
                found["correctness"],
                self.group_size,
            )
        return found | {"format": rollouts["format"].to_numpy()}


_Settings = SFTSettings | RolloutSettings


def _check_multiple(settings: _Settings, name: str, divisor: str) -> None:
    if getattr(settings, name) % getattr(settings, divisor):
        raise ValueError(
            f"{name} is {getattr(settings, name)}; expected a multiple of {divisor}, "
            f"{getattr(settings, divisor)}"
        )


def _check_settings(settings: _Settings) -> None:
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in _CHOICES:
            if value not in _CHOICES[field.name]:
                known = ", ".join(_CHOICES[field.name])
                raise ValueError(f"{field.name} is {value!r}; expected one of {known}")
            continue
        if field.type == "bool":
            if not isinstance(value, bool):
                raise ValueError(f"{field.name} is {value!r}; expected True or False")
            continue
        kind = "a whole number" if field.type == "int" else "a number"
        expected = "0 or more" if field.name in _MAY_BE_ZERO else "more than 0"
        if (
            isinstance(value, bool)
            or not isinstance(value, int if field.type == "int" else (int, float))
            or not math.isfinite(value)
            or value < 0
            or (value == 0 and field.name not in _MAY_BE_ZERO)
        ):
            raise ValueError(f"{field.name} is {value!r}; expected {kind}, {expected}")
        if field.name in _BELOW_ONE and value >= 1:
            raise ValueError(f"{field.name} is {value!r}; expected {kind}, below 1")
    _check_multiple(settings, "steps", "checkpoint_every")  # the last step is kept and validated


_CHOICES: Mapping[str, Sequence[str]] = {
    "confidence_reward": tuple(rewards.CONFIDENCE_REWARDS),
    # TRL's other two need importance ratios of whole sequences
    "loss_type": ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo"),
    "scale_rewards": ("group", "batch", "none"),
    "rollouts": ("corea", "trl", "vllm_colocate", "vllm_server"),
    "lora_targets": ("default", "all-linear"),
    "lr_schedule": ("constant", "linear", "cosine"),
    "wrong_target": ("uniform", "proper"),
    "decisions": ("sampled", "greedy"),
    "precision": ("float32", "bfloat16"),
}
_SCHEDULES = {"constant": "constant_with_warmup"}  # transformers' names where others
_BELOW_ONE = {"adam_beta2", "lora_dropout", "vllm_memory_share"}
_MAY_BE_ZERO = {
    "lora_rank",
    "lora_dropout",
    "warmup_steps",
    "kl_coef",
    "entropy_coef",
    "confidence_weight",
    "format_weight",
    "calibration_weight",
    "calibration_warmup_steps",
    "cosine_every",
    "weight_decay",
    "seed",
}


# --- reward functions, in TRL's signature -----------------------------------------------------

_parsed = lru_cache(maxsize=65536)(parse_completion)  # three components read each completion


def correctness(
    completions: Sequence[str],
    gold: Sequence[str],
    kind: Sequence[str],
    options: Sequence[Sequence[str]] | None = None,
    **_: object,
) -> list[float]:
    r"""1 for a right final answer, else 0; an answer that cannot be decided is wrong.

    Source: paper A, section 3.2.

    Args:
        completions: Texts, length n.
        gold: Right answers, length n.
        kind: How each is compared, as in :func:`corea.tasks.verify.verify_batch`.
        options: What the letters stand for, length n; None: they stand for nothing.

    Returns:
        The rewards, length n.

    Raises:
        ValueError: If a kind is unknown.

    Example:
        >>> correctness([r"\boxed{4}", r"\boxed{5}"], gold=["4", "4"], kind=["choice"] * 2)
        [1.0, 0.0]
    """
    answers = [_parsed(text).answer for text in completions]
    verdicts = np.zeros(len(answers))
    kinds = np.asarray(kind)
    for name in dict.fromkeys(kind):
        rows = np.flatnonzero(kinds == name)
        own = None if options is None else [options[int(i)] for i in rows]
        checked = verify_batch(
            [answers[i] for i in rows], [gold[int(i)] for i in rows], name, options=own
        )
        verdicts[rows] = [verdict is True for verdict in checked]
    return verdicts.tolist()


def confidence(completions: Sequence[str], **_: object) -> list[float]:
    r"""The confidence stated, NaN where there is none; :class:`RLCCTrainer` makes it a reward.

    Args:
        completions: Texts, length n.

    Returns:
        Confidences in [0, 1], length n.

    Example:
        >>> confidence([r"\boxed{4} \confidence{0.9}", r"\boxed{4}"])
        [0.9, nan]
    """
    stated = (_parsed(text).confidence for text in completions)
    return [np.nan if value is None else value for value in stated]


def format(completions: Sequence[str], **_: object) -> list[float]:  # TRL logs it by this name
    r"""The format reward of :func:`corea.rlcc.rewards.format_reward`.

    Args:
        completions: Texts, length n.

    Returns:
        Rewards in [0, 1], length n.

    Example:
        >>> format([r"\boxed{4} \confidence{0.9}"])
        [1.0]
    """
    return [float(value) for value in rewards.format_reward(completions)]


# --- GRPO ---------------------------------------------------------------------------------------


class _Reinforced(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO trainer with rollouts, validation and watchfulness of our own."""

    logged: ClassVar[Mapping[str, str]] = {}  # what is logged beside _LOGGED, and its column

    def __init__(
        self,
        settings: RolloutSettings,
        directory: Path,
        reward_funcs: Sequence[Callable[..., list[float]]],
        **arguments: Any,
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.validated: list[pd.DataFrame] = []  # of the validation in progress
        super().__init__(
            reward_funcs=list(reward_funcs),
            callbacks=[_Finite(directory), _Seal()],
            rollout_func=_complete if settings.rollouts == "corea" else None,
            **arguments,
        )
        if settings.lora_rank and self.use_vllm and not _sharding():
            self.vllm_generation.sync_weights = without_rounding(
                self.vllm_generation.sync_weights, self.model
            )
        self.question_ids = {
            _digest(row["prompt"]): row["question_id"] for row in self.eval_dataset
        }
        if len(self.question_ids) != len(self.eval_dataset):
            raise TrainingError("two validation questions have the same prompt")
        world = self.accelerator.num_processes
        at_once = self.args.per_device_eval_batch_size * world
        rows = len(self.eval_dataset) * settings.group_size
        if rows % at_once:
            # accelerate would fill the last batch with rows from the start, across groups
            raise TrainingError(
                f"{rows} validation rollouts ({len(self.eval_dataset)} questions, "
                f"{settings.group_size} each) do not divide into batches of {at_once} "
                f"({world} processes); expected a multiple"
            )

    @property
    def _step_now(self) -> int:
        """The step that is being trained, or that was evaluated."""
        return int(self.state.global_step) + int(self.model.training)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        ratio = batch.get("importance_sampling_ratio")  # (B, 1), 0 where vLLM is too far off
        if self.model.training and ratio is not None:
            masked = gather((ratio == 0).double().mean().reshape(1)).mean().item()
            self._metrics["train"]["masked_share"].append(masked)
        return self.annotate(inputs, batch)

    def annotate(self, inputs: list[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
        """What a subclass adds to a batch of rollouts.

        Args:
            inputs: The rows asked, one a completion.
            batch: TRL's tensors; what is added has one entry a completion first.

        Returns:
            The batch.
        """
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        with self.watching(model) as states:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        return self.adjusted(loss, model, inputs, states)

    @contextmanager
    def watching(self, model: Any) -> Iterator[list[torch.Tensor]]:
        """What a subclass wants to see of the forward pass.

        Args:
            model: The model that is trained, as wrapped by accelerate.

        Yields:
            A list that holds it afterwards.
        """
        yield []

    def adjusted(
        self,
        loss: torch.Tensor,
        model: Any,
        inputs: dict[str, Any],
        states: list[torch.Tensor],
    ) -> torch.Tensor:
        """The loss with what a subclass adds to it.

        Args:
            loss: TRL's, a scalar.
            model: The model that is trained, as wrapped by accelerate.
            inputs: The batch, as :meth:`annotate` left it.
            states: From :meth:`watching`.

        Returns:
            The loss, a scalar.
        """
        return loss

    def keep_validated(
        self, prompts: _Floats, correct: _Floats, confidence: _Floats, **more: _Floats
    ) -> None:
        """Keep rollouts of a validation, whole groups in a row.

        Args:
            prompts: Digests of the prompts, shape (n,).
            correct: 0 or 1, shape (n,).
            confidence: NaN where there is none, shape (n,).
            more: Further columns, each of shape (n,).
        """
        columns = {
            "question_id": [self.question_ids[int(digest)] for digest in prompts],
            "sample": np.arange(len(prompts)) % self.settings.group_size,
            "correct": correct.astype(bool),
            "confidence": confidence,
        }
        self.validated.append(pd.DataFrame(columns | more))

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """One forward and backward pass.

        Returns:
            The loss.

        Raises:
            TrainingError: If the loss is not finite; the weights are as before the step.
        """
        loss: torch.Tensor = super().training_step(*arguments, **named)
        losses = gather(loss.detach().reshape(1))
        if not torch.isfinite(losses).all().item():
            (wrong,) = losses[~torch.isfinite(losses)][:1].tolist()
            examples = list(self._logs["completion"])[-2:]
            raise _stop(self.directory, self._step_now, "loss", wrong, examples)
        return loss

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Sample validation rollouts with random numbers of their own, and write them.

        Returns:
            TRL's metrics.
        """
        self.validated = []
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.settings.seed + 1 + self.accelerator.process_index)
            metrics: dict[str, float] = super().evaluate(*arguments, **named)
        table = pd.concat(self.validated, ignore_index=True)
        step = self.state.global_step
        if self.accelerator.is_main_process:
            path = self.directory / "validation" / f"{step:06d}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, table.to_csv(index=False))
            stated = table["confidence"].to_numpy()
            _progress(
                f"step {step} of {self.settings.steps}: validation pass@1 "
                f"{table['correct'].mean():.3f}, mean confidence "
                f"{np.nanmean(stated) if np.isfinite(stated).any() else np.nan:.3f}"
            )
        return metrics


class RLCCTrainer(_Reinforced):
    """TRL's GRPO trainer with a confidence reward that sees whole groups."""

    settings: GRPOSettings
    logged: ClassVar[Mapping[str, str]] = {
        "reward": "reward",
        **{f"rewards/{name}/mean": f"reward_{name}" for name in COMPONENTS},
        **{name: name for name in ROLLOUT_METRICS},
    }

    def __init__(self, settings: GRPOSettings, directory: Path, **arguments: Any) -> None:
        """Set up as TRL's trainer does.

        Args:
            settings: The settings.
            directory: Where validations and alarms are written.
            arguments: Those of TRL's trainer.

        Raises:
            TrainingError: If the validation does not divide into batches of whole groups, or
                asks a question twice.
        """
        super().__init__(settings, directory, [correctness, confidence, format], **arguments)

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[str],
        completions: list[str],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        """Rewards of the whole batch, shape (n, 3), gathered from all processes.

        Returns:
            Columns in the order of :data:`COMPONENTS`.

        Raises:
            TrainingError: If a group holds more than one prompt.
        """
        gathered = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        exact = torch.tensor(
            [
                [_digest(text) for text in prompts],
                confidence(completions),
                format(completions),
            ],
            dtype=torch.float64,
            device=gathered.device,
        )
        prompt, stated, form = gather(exact.T.contiguous()).cpu().numpy().T
        correct = gathered[:, COMPONENTS.index("correctness")].double().cpu().numpy()
        groups = prompt.reshape(-1, self.settings.group_size)
        if (groups != groups[:, :1]).any():
            raise TrainingError(
                f"step {self._step_now}: {self.settings.group_size} completions in a row are not "
                "of one prompt, so there is no group accuracy"
            )
        earned = rewards.confidence_reward(
            self.settings.confidence_reward, stated, correct, self.settings.group_size
        )
        if self.model.training:
            self._log_rollouts(correct, stated)
            self._watch(correct, stated, completions)
        else:
            self.keep_validated(prompt, correct, stated, format=form)
        gathered[:, COMPONENTS.index("confidence")] = torch.as_tensor(earned).to(gathered)
        return gathered

    def _log_rollouts(self, correct: _Floats, stated: _Floats) -> None:
        for name, value in rollout_metrics(correct, stated, self.settings.group_size).items():
            self._metrics["train"][name].append(value)

    def _watch(self, correct: _Floats, stated: _Floats, completions: Sequence[str]) -> None:
        """Report a confidence that no longer tells questions apart, once each time it happens."""
        if self.settings.confidence_reward == "none":
            return
        found = collapse(correct, stated, self.settings.group_size)
        # from the log, which checkpoints keep: a resumed run does not report it again
        logged = (
            row["collapsed"] for row in reversed(self.state.log_history) if "collapsed" in row
        )
        if found and not next(logged, 0.0):
            # every process sees the same rewards, so all of them come here
            examples = gather_object(list(completions[:2]))[:2]
            if self.accelerator.is_main_process:
                report_alarm(self.directory, self._step_now, "collapse", found, examples)
        self._metrics["train"]["collapsed"].append(float(bool(found)))


def _complete(prompts: list[str], trainer: _Reinforced) -> dict[str, Any]:
    """A completion of each prompt, in TRL's signature; a prompt that comes again gets others."""
    settings, training = trainer.settings, trainer.model.training
    # validation is the same at every step
    place = [trainer.state.global_step if training else 0, trainer.accelerator.process_index]
    drawn = np.random.SeedSequence([settings.seed, int(training), *place])
    engine = TransformersEngine(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        batch_size=len(prompts),
    )
    sampling = settings.sampling(int(drawn.generate_state(1)[0]))
    made = [rollout for (rollout,) in engine.generate(prompts, sampling)]
    return {
        "prompt_ids": trainer.processing_class(prompts)["input_ids"],
        "completion_ids": [rollout.ids for rollout in made],
        "logprobs": None,  # only asked for where another model samples than is trained
    }


def without_rounding(sync: Callable[[], None], model: torch.nn.Module) -> Callable[[], None]:
    """Give merged weights away and have the frozen ones back as they were.

    Args:
        sync: Merges the adapters into the weights, gives those away, and takes them out again.
        model: With adapters; the frozen weights are copied once.

    Returns:
        What does the same and leaves no rounding behind.
    """
    frozen = {
        name: weight.detach().to("cpu", copy=True)
        for name, weight in model.named_parameters()
        if ".base_layer." in name
    }

    def synced() -> None:
        sync()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in frozen:
                    weight.copy_(frozen[name])

    return synced


def rollout_metrics(correct: _Floats, stated: _Floats, group_size: int) -> dict[str, float]:
    """What is logged of a batch of rollouts at every step.

    Args:
        correct: 0 or 1, shape (n,), whole groups in a row.
        stated: Confidences, NaN where none was stated, shape (n,).
        group_size: Rows a group.

    Returns:
        What :func:`corea.metrics.calibration.describe_stated` gives (10 bins), and
        ``groups_without_variance``: the share of groups all right or all wrong.

    Example:
        >>> metrics = rollout_metrics(np.array([1.0, 0.0]), np.array([1.0, np.nan]), 2)
        >>> metrics["pass_at_1"], metrics["confidence_output_ratio"], metrics["share_at_1"]
        (0.5, 0.5, 1.0)
    """
    accuracy = correct.reshape(-1, group_size).mean(axis=1)
    idle = float(((accuracy == 0) | (accuracy == 1)).mean())
    return describe_stated(stated, correct) | {"groups_without_variance": idle}


def collapse(correct: _Floats, stated: _Floats, group_size: int) -> str:
    """Whether nearly all confidences stated are one although accuracy varies between questions.

    Args:
        correct: 0 or 1, shape (n,), whole groups in a row.
        stated: Confidences, NaN where none was stated, shape (n,).
        group_size: Rows a group.

    Returns:
        What was found, empty if nothing.

    Example:
        >>> collapse(np.array([1.0, 1.0, 0.0, 0.0]), np.zeros(4), 2)
        'confidence 0 is 100% of those stated; accuracy by question varies by 0.50'
    """
    stated = stated[np.isfinite(stated)]
    if stated.size == 0:
        return ""
    value, count = Counter(stated.tolist()).most_common(1)[0]
    spread = float(correct.reshape(-1, group_size).mean(axis=1).std())
    if count / stated.size < COLLAPSED_SHARE or spread < VARYING_ACCURACY:
        return ""
    return (
        f"confidence {value:g} is {count / stated.size:.0%} of those stated; accuracy by question "
        f"varies by {spread:.2f}"
    )


def report_alarm(
    directory: Path, step: int, alarm: str, detail: str, examples: Sequence[str]
) -> None:
    """Say at once that something is wrong, and keep it with the run.

    Args:
        directory: The run's folder; a line is added to its ``alarms.jsonl``.
        step: Where it happened.
        alarm: What kind it is.
        detail: What was found.
        examples: Completions that show it.
    """
    line = {"step": step, "alarm": alarm, "detail": detail, "examples": list(examples)}
    with (directory / "alarms.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    _progress(f"step {step}: {alarm}: {detail}")


def train_grpo(
    base: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    validation: Sequence[Question],
    settings: GRPOSettings,
    directory: str | Path,
) -> None:
    """Train a model by GRPO with a confidence reward, or go on where a killed run stopped.

    Source: paper A, sections 3.2 and 4.4.

    Args:
        base: Folder or hub name of the model to start from.
        tokenizer: Its tokenizer.
        questions: To train on.
        validation: Held out, for checkpoint selection; no prompt twice.
        settings: The settings.
        directory: Where everything is written: ``model/`` (the selected weights),
            ``dynamics.csv``, ``validation.csv``, ``selection.csv`` and ``alarms.csv``.

    Raises:
        TrainingError: If the loss or the gradient is not finite, the batch layout breaks
            groups, a validation question is asked twice, the weights selected are damaged, the
            processes cannot do what the settings ask for, or no vLLM server is named.
        ValueError: If there are no questions to train or to validate on, or the batch does not
            divide among the processes.
    """
    reinforce(
        RLCCTrainer,
        base,
        tokenizer,
        _rows(questions, tokenizer),
        _rows(validation, tokenizer),
        settings,
        directory,
    )


def reinforce(
    trainer_class: Callable[..., _Reinforced],
    base: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    settings: RolloutSettings,
    directory: str | Path,
) -> None:
    """Train a model on its own rollouts, or go on where a killed run stopped.

    Args:
        trainer_class: What trains.
        base: Folder or hub name of the model to start from.
        tokenizer: Its tokenizer.
        questions: Rows to train on, each with ``prompt``, ``question_id`` and what the rewards
            read.
        validation: Rows held out, for checkpoint selection; no prompt twice.
        settings: The settings.
        directory: Where everything is written, as for :func:`train_grpo`.

    Raises:
        TrainingError: As :func:`train_grpo` does.
        ValueError: As :func:`train_grpo` does.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    check_processes(settings)
    per_rollout = settings.batch * settings.steps_per_rollout // settings.group_size
    rollouts = -(-settings.steps // settings.steps_per_rollout)
    asked = _in_order(questions, per_rollout * rollouts, settings.seed)
    longest = 0
    if settings.rollouts == "vllm_colocate":
        prompts = [row["prompt"] for row in (*questions, *validation)]
        longest = max(map(len, tokenizer(prompts)["input_ids"]))
    config = _grpo_config(settings, directory, len(validation), longest)
    with _quiet():
        trainer = trainer_class(
            settings,
            directory,
            model=str(model_folder(base)),
            args=config,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(asked),
            eval_dataset=datasets.Dataset.from_list(list(validation)),
            peft_config=settings.adapter,
        )
        _run(trainer, directory)
    if trainer.accelerator.is_main_process:
        _finish_grpo(trainer, base, settings, directory)
    trainer.accelerator.wait_for_everyone()


def train_sft(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, str]],
    settings: SFTSettings,
    directory: str | Path,
) -> None:
    """Train a model on completions, or go on where a killed run stopped.

    The loss is that of the completion and of the end-of-sequence token after it.

    Args:
        model: What to start from: the folder or hub name of a model; or a model, which is
            changed in place and whose weights stay as they are loaded.
        tokenizer: Its tokenizer.
        rows: Each with ``prompt`` and ``completion``.
        settings: The settings.
        directory: Where everything is written: ``model/`` and ``dynamics.csv``.

    Raises:
        TrainingError: If the loss or the gradient is not finite, or the processes cannot do what
            the settings ask for.
        ValueError: If there are no rows, the batch does not divide among the processes, or LoRA
            is to start from a model that is no folder.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    check_processes(settings)
    named = isinstance(model, str | Path)
    if settings.lora_rank and not named:
        raise ValueError(
            f"lora_rank is {settings.lora_rank} for a model in memory; expected its folder or hub "
            "name, for adapters are merged into what is read from there"
        )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    _accumulation(settings, world)
    chosen = _in_order(rows, settings.batch * settings.steps, settings.seed)
    config = SFTConfig(
        **_common(settings, directory, world),
        model_init_kwargs={"dtype": settings.dtype} if named else None,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        lr_scheduler_type="cosine",
        train_sampling_strategy="sequential",
        max_length=None,
        eval_strategy="no",
    )
    with _quiet():
        tokenized = _tokenized(chosen, tokenizer)
        lengths = np.array([len(ids) for ids in tokenized["input_ids"]])
        # longest first within a step: the same step, and parts of about one length pad little
        order = np.argsort(-lengths.reshape(settings.steps, -1), axis=1, kind="stable")
        order += np.arange(settings.steps)[:, None] * settings.batch
        trainer = SFTTrainer(
            model=str(model_folder(model)) if named else model,
            args=config,
            processing_class=tokenizer,
            train_dataset=tokenized.select(order.ravel()),
            callbacks=[_Finite(directory), _Heartbeat(), _Seal()],
            peft_config=settings.adapter,
        )
        _run(trainer, directory)
    if trainer.accelerator.is_main_process:
        table = _logged_steps(trainer, {})
        _write_dynamics(table[[name for name in table if table[name].notna().any()]], directory)
        weights = _weights(directory, settings.steps)
        _keep_model(weights, model, settings, tokenizer, directory)
        Path(directory, "alarms.jsonl").unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()


# --- what both have in common ---------------------------------------------------------------


def check_processes(settings: WeightSettings) -> None:
    """Compare settings with the processes that accelerate started, before a model is loaded.

    Args:
        settings: Those of the training.

    Raises:
        TrainingError: If the two differ in the precision, the weights are sharded although
            something needs them whole, or checkpoints would not hold whole weights.

    Example:
        >>> check_processes(SFTSettings(steps=200))  # no accelerate: nothing to say
    """
    said = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if said not in ("no", "bf16" if settings.precision == "bfloat16" else "no"):
        raise TrainingError(
            f"the accelerate configuration says mixed_precision {said!r} and precision is "
            f"{settings.precision!r}; expected 'no' there, for the settings decide"
        )
    sharding = _sharding()
    if sharding and settings.needs_whole_weights:
        raise TrainingError(
            f"{settings.needs_whole_weights} need all weights in every process, and {sharding} "
            "shards them; expected a configuration without, such as ZeRO-2"
        )
    for name, variable, expected in (
        ("ZeRO-3", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "true"),
        ("FSDP", "FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT"),
    ):
        value = os.environ.get(variable)
        if sharding == name and value != expected:
            raise TrainingError(
                f"{variable} is {value!r}; expected {expected!r}, so that checkpoints hold whole "
                "weights"
            )


def _sharding() -> str:
    """How the weights are spread over the processes; empty if each has all of them."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "FSDP"
    zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    return "ZeRO-3" if zero and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else ""


def _common(settings: _Settings, directory: Path, world: int) -> dict[str, Any]:
    """Arguments of transformers' trainer."""
    return {
        "output_dir": str(directory / "checkpoints"),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": _accumulation(settings, world),
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "bf16": settings.precision == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "activation_checkpointing": settings.gradient_checkpointing,
        "ddp_find_unused_parameters": False,  # a language model uses all of them
        "seed": settings.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
    }


def _grpo_config(
    settings: RolloutSettings, directory: Path, n_validation: int, longest_prompt: int = 0
) -> GRPOConfig:
    """Arguments of TRL's trainer."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return GRPOConfig(
        **_common(settings, directory, world),
        **_vllm(settings, longest_prompt),
        model_init_kwargs={"dtype": settings.dtype},
        num_generations=settings.group_size,
        num_generations_eval=settings.group_size,
        per_device_eval_batch_size=_eval_batch(n_validation, settings, world),
        steps_per_generation=_accumulation(settings, world) * settings.steps_per_rollout,
        temperature=settings.temperature,
        max_completion_length=settings.max_completion_tokens,
        beta=settings.kl_coef,
        entropy_coef=settings.entropy_coef,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        reward_weights=settings.reward_weights,
        lr_scheduler_type=_SCHEDULES.get(settings.lr_schedule, settings.lr_schedule),
        shuffle_dataset=False,
        eval_strategy="steps",
        eval_steps=settings.checkpoint_every,
        remove_unused_columns=False,
    )


def _vllm(settings: RolloutSettings, longest_prompt: int) -> dict[str, Any]:
    """What TRL is told of vLLM, of the versions 0.22 to 0.31."""
    if settings.rollouts not in ("vllm_colocate", "vllm_server"):
        return {}
    corrected = {
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
    }
    if settings.rollouts == "vllm_colocate":
        return corrected | {
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": settings.vllm_memory_share,
            "vllm_max_model_length": longest_prompt + settings.max_completion_tokens,
        }
    address = os.environ.get(VLLM_SERVER, "")
    if not address.startswith(("http://", "https://")):
        raise TrainingError(
            f"{VLLM_SERVER} is {address!r}; expected the address of a vLLM server for rollouts "
            "'vllm_server', such as 'http://node1:8000'"
        )
    return corrected | {"vllm_mode": "server", "vllm_server_base_url": address}


def _accumulation(settings: _Settings, world: int) -> int:
    at_once = settings.micro_batch * world
    if settings.batch % at_once:
        raise ValueError(
            f"batch is {settings.batch}; expected a multiple of micro_batch times the number of "
            f"processes, {settings.micro_batch} x {world}"
        )
    return settings.batch // at_once


def _eval_batch(n_questions: int, settings: RolloutSettings, world: int) -> int:
    """The largest batch a process can validate at once so that all batches are equal.

    It is that of training where that holds whole groups, and else the smallest that does.
    """
    if not n_questions:
        raise ValueError("nothing to validate on: expected at least one question")
    rows = n_questions * settings.group_size
    smallest = math.lcm(settings.group_size, world) // world
    for size in range(max(settings.micro_batch, smallest), 0, -1):
        if rows % (size * world) == 0 and size * world % settings.group_size == 0:
            return size
    raise TrainingError(
        f"{n_questions} validation questions cannot be shared by {world} processes in whole "
        f"groups of {settings.group_size}; expected a multiple of "
        f"{smallest * world // settings.group_size}"
    )


def _in_order(rows: Sequence[Any], n: int, seed: int) -> list[Any]:
    """``n`` rows in an order drawn from the seed, each once before any comes again."""
    if not rows:
        raise ValueError("nothing to train on: expected at least one row")
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < n:
        order += rng.permutation(len(rows)).tolist()
    return [rows[i] for i in order[:n]]


def _rows(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": chat_prompt(tokenizer, question.prompt),
            "question_id": question.question_id,
            "gold": question.gold,
            "kind": question.kind,
            "options": list(question.options),
        }
        for question in questions
    ]


def _tokenized(
    rows: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase
) -> datasets.Dataset:
    # with the special tokens a tokenizer puts before a prompt, as generation does
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    completions = tokenizer([row["completion"] for row in rows], add_special_tokens=False)[
        "input_ids"
    ]
    end = [tokenizer.eos_token_id]
    return datasets.Dataset.from_dict(
        {
            "input_ids": [p + c + end for p, c in zip(prompts, completions, strict=True)],
            "labels": [
                [-100] * len(p) + c + end for p, c in zip(prompts, completions, strict=True)
            ],
        }
    )


def _digest(text: str) -> int:
    """48 bits of a hash that is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _stop(
    directory: Path, step: int, name: str, value: float, examples: Sequence[str] = ()
) -> TrainingError:
    """The end of a run whose loss or gradient is not finite, reported."""
    detail = f"the {name} is {value}"
    if PartialState().is_main_process:
        report_alarm(directory, step, "loss", detail, examples)
    shown = f", the last completions are {list(examples)!r}" if examples else ""
    return TrainingError(f"step {step}: {detail}{shown}; the checkpoints before it are kept")


class _Finite(TrainerCallback):  # type: ignore[misc]
    """End a run whose loss or gradient is not finite; a step is logged before it is saved."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        for key, name in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
            if key in logs and not math.isfinite(logs[key]):
                raise _stop(self.directory, state.global_step, name, logs[key])


class _Seal(TrainerCallback):  # type: ignore[misc]
    """Keep the weights of each checkpoint, then write its checksums, last of all."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes its random state
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            weights = _weights(Path(args.output_dir).parent, state.global_step)
            shutil.rmtree(weights, ignore_errors=True)
            weights.mkdir(parents=True)
            for pattern in ("*.safetensors", "*.json"):
                for path in checkpoint.glob(pattern):
                    if path.name != "trainer_state.json":
                        os.link(path, weights / path.name)
            seal(weights)
            seal(checkpoint)


class _Heartbeat(TrainerCallback):  # type: ignore[misc]
    """Say a few times how far supervised fine-tuning is; it has no validation that would."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        every = max(1, state.max_steps // 5)
        if state.is_world_process_zero and "loss" in logs and state.global_step % every == 0:
            _progress(f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.3f}")


def _weights(directory: Path, step: int) -> Path:
    return directory / "weights" / f"{step:06d}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, no advice from the libraries, no reports to their makers."""
    bars = datasets.are_progress_bars_disabled()
    verbosity, telemetry = transformers.logging.get_verbosity(), hub.HF_HUB_DISABLE_TELEMETRY
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    hub.HF_HUB_DISABLE_TELEMETRY = True
    try:
        with warnings.catch_warnings():
            # TRL calls what transformers will rename, and a CPU has no pinned memory
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            warnings.filterwarnings("ignore", message=".*rollout_func.*")
            # peft asks the hub at every save whether the vocabulary is the base model's
            warnings.filterwarnings("ignore", message="Could not find a config file in .*")
            warnings.filterwarnings("ignore", message="Unable to fetch remote file .*")
            yield
    finally:
        hub.HF_HUB_DISABLE_TELEMETRY = telemetry
        transformers.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _run(trainer: Any, directory: Path) -> None:
    with trainer.accelerator.main_process_first():  # it sets aside what the others must not see
        last = last_checkpoint(directory)
        _drop_later(directory, int(last.name.split("-")[1]) if last else 0)
    trainer.remove_callback(PrinterCallback)
    if last is None and isinstance(trainer, _Reinforced):
        trainer.args.eval_on_start = True
    trainer.train(resume_from_checkpoint=str(last) if last else None)


def last_checkpoint(directory: str | Path) -> Path | None:
    """The newest checkpoint of a run that is whole; those that are not are named and set aside.

    Args:
        directory: The run's folder.

    Returns:
        The checkpoint's folder, or None.
    """
    found = Path(directory, "checkpoints").glob("checkpoint-*")
    for path in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            check_seal(path)
        except StoreError as error:
            _progress(f"a checkpoint is not used: {error}")
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
        else:
            return path
    return None


def _drop_later(directory: Path, step: int) -> None:
    """Forget what a killed run noted after the checkpoint from which it goes on."""
    path = directory / "alarms.jsonl"
    if path.is_file():
        kept = [line for line in _json_lines(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the last line of a killed run
            break
    return lines


def _progress(text: str) -> None:
    # the pipeline passes such lines on to whoever waits for `make book`
    print(f"progress: {text}", flush=True)


# --- results ------------------------------------------------------------------------------------

_LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "kl": "kl",
    "completions/mean_length": "completion_tokens",
    "learning_rate": "learning_rate",
    "step_time": "seconds",
}


def _logged_steps(trainer: Any, own: Mapping[str, str]) -> pd.DataFrame:
    """One row a step, with all columns; empty where nothing was measured."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    names = {**own, **_LOGGED}
    return pd.DataFrame(rows).reindex(columns=["step", *names]).rename(columns=names)


def _write_dynamics(table: pd.DataFrame, directory: Path) -> None:
    write_atomically(directory / "dynamics.csv", table.to_csv(index=False))


def _finish_grpo(
    trainer: _Reinforced, base: str | Path, settings: RolloutSettings, directory: Path
) -> None:
    masked = {"masked_share": "masked_share"} if trainer.use_vllm else {}
    _write_dynamics(_logged_steps(trainer, {**trainer.logged, **masked}), directory)
    parts = sorted((directory / "validation").glob("*.csv"))
    validation = pd.concat(
        [
            pd.read_csv(part, dtype={"question_id": str}).assign(step=int(part.stem))
            for part in parts
        ],
        ignore_index=True,
    )
    first = validation.pop("step")
    validation.insert(0, "step", first)
    write_atomically(directory / "validation.csv", validation.to_csv(index=False))
    choice = select_checkpoint(validation, settings)
    write_atomically(directory / "selection.csv", choice.to_csv(index=False))
    path = directory / "alarms.jsonl"
    alarms = pd.DataFrame(
        _json_lines(path) if path.is_file() else [],
        columns=["step", "alarm", "detail", "examples"],
    )
    write_atomically(directory / "alarms.csv", alarms.to_csv(index=False))
    chosen = int(choice.loc[choice["selected"], "step"].item())
    _keep_model(_weights(directory, chosen), base, settings, trainer.processing_class, directory)
    shutil.rmtree(directory / "validation")
    path.unlink(missing_ok=True)  # after the checkpoints: until then a killed run reads it again


def select_checkpoint(validation: pd.DataFrame, settings: RolloutSettings) -> pd.DataFrame:
    """Compare the evaluated steps by all components of the reward together.

    The rule is number 5 of this module.

    Args:
        validation: Rollouts with ``step`` and what :meth:`RolloutSettings.earned` reads; whole
            groups in a row.
        settings: Those of the run.

    Returns:
        One row per step after 0: the mean of each component, how many standard errors it is
        ``behind_`` the best, the ``worst`` of these, and whether the step is ``selected``.

    Raises:
        ValueError: If no step after 0 was evaluated.

    Example:
        Two questions, both rewards best at step 20, so nothing else can be selected:

        >>> rollouts = pd.DataFrame({"step": [10] * 4 + [20] * 4, "confidence": 0.5,
        ...     "correct": [0, 0, 1, 0, 1, 0, 1, 1], "format": [1, 1, 1, 0, 1, 1, 1, 1]})
        >>> choice = select_checkpoint(rollouts, GRPOSettings("none", group_size=2))
        >>> choice[["step", "correctness", "worst", "selected"]].round(2).values.tolist()
        [[10, 0.25, 2.83, False], [20, 0.75, 0.0, True]]
    """
    steps = [step for step in sorted(validation["step"].unique()) if step > 0]
    if not steps:
        raise ValueError("no step after 0 was evaluated; expected at least one")
    means, errors = [], []
    for step in steps:
        earned = settings.earned(validation[validation["step"] == step])
        names = list(earned)
        by_question = [
            values.reshape(-1, settings.group_size).mean(axis=1) for values in earned.values()
        ]
        means.append([values.mean() for values in by_question])
        errors.append([values.std() / np.sqrt(values.size) for values in by_question])
    return _least_behind(steps, names, np.array(means), np.array(errors))


def _least_behind(
    steps: list[int], names: list[str], means: _Floats, errors: _Floats
) -> pd.DataFrame:
    scale = np.maximum(errors.max(axis=0), 1e-6)  # no errors at all: any difference counts
    behind = (means.max(axis=0) - means) / scale
    worst = behind.max(axis=1)
    table = pd.DataFrame(means, columns=names)
    table.insert(0, "step", steps)
    for k, name in enumerate(names):
        table[f"behind_{name}"] = behind[:, k]
    table["worst"] = worst
    table["selected"] = False
    table.loc[len(steps) - 1 - int(worst[::-1].argmin()), "selected"] = True
    return table


def _keep_model(
    weights: Path,
    base: PreTrainedModel | str | Path,
    settings: WeightSettings,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> None:
    """Make ``model/`` from the weights of one step and delete what only training needed."""
    try:
        check_seal(weights)
    except StoreError as error:
        raise TrainingError(
            f"{error}: but training made them, so delete {directory.as_posix()} instead"
        ) from None
    model, partial = directory / "model", directory / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    unset_hf_deepspeed_config()  # ZeRO-3 would spread what is read now over all processes
    with _quiet():
        if settings.lora_rank:
            merged(base, weights).to(getattr(torch, settings.precision)).save_pretrained(partial)
        elif settings.precision == "float32":
            shutil.copytree(weights, partial, ignore=shutil.ignore_patterns(MANIFEST))
        else:
            read = AutoModelForCausalLM.from_pretrained
            read(weights, dtype=settings.precision).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(model, ignore_errors=True)
    partial.replace(model)
    for folder in ("checkpoints", "weights"):
        shutil.rmtree(directory / folder, ignore_errors=True)


def merged(base: str | Path, adapter: str | Path) -> PreTrainedModel:
    """A model with an adapter merged into its weights, in 32 bits.

    Args:
        base: Folder or hub name of the model that the adapter was trained beside.
        adapter: Folder of the adapter, as peft writes it.

    Returns:
        The model, on the CPU.
    """
    model, _ = load_model(base, device="cpu", dtype="float32")
    with _quiet():
        return PeftModel.from_pretrained(model, adapter, torch_device="cpu").merge_and_unload()
