r"""GRPO on a model's own rollouts, with TRL's trainer pinned to one version.

The only private things of TRL that are touched are in this module and in
:mod:`corea.rlcc.trainer`: the methods ``_calculate_rewards``, ``_generate_and_score_completions``
with ``importance_sampling_ratio`` in its result, and ``_compute_loss``, and the attributes
``_metrics``, ``_logs`` and, with vLLM, ``vllm_generation.sync_weights``
(``tests/test_trainers.py`` fails when they change).

What is decided here:

1. Paper A has a "batch size of 1,024" in the rollout phase and "of 256" in training: four
   optimizer steps a rollout (:attr:`RolloutSettings.steps_per_rollout`). A batch counts
   completions here; in the framework that the paper uses it counts questions.
2. Validation runs the same code on held-out questions, at the training temperature, with random
   numbers of its own: the same at each evaluated step, and training does not notice it.
3. A loss that is not finite ends the run before it reaches the weights.
4. Rollouts are made by the engine the book evaluates with, through TRL's (experimental)
   ``rollout_func``: finished rows leave the batch, which halves their time. A completion is
   decided by the seed, the step, the process and its prompt alone.
5. Where hardly any validation question is answered both right and wrong before the first step,
   training raises an alarm or ends there (:func:`corea.training.alarms.variance_missing`).
6. The reference of the KL term is the model without its adapters.
7. vLLM may make the rollouts, in the process of the training or as a server whose address is in
   the environment (:data:`VLLM_SERVER`). Its probabilities differ a little from those of the
   model that is trained, so TRL weights completions by their ratio and drops those above 3; the
   share that is dropped is logged as ``masked_share``. (The dropout of adapters is on in the one
   and off in the other, which widens the ratios: better none with vLLM.) Its random numbers are
   its own: a run that was killed goes on, but not to the same weights, and validations differ in
   their draws. Adapters are taken out of the weights again after vLLM was given them merged,
   which would leave rounding behind each time; so the frozen weights are copied back. We ran it
   in the process of the training, on a CPU; the server needs GPUs and was not run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from corea.engines.loading import model_folder
from corea.engines.transformers_engine import TransformersEngine
from corea.store import write_atomically
from corea.training import loop
from corea.training.alarms import (
    remove_alarms,
    report_alarm,
    tell,
    variance_missing,
    write_alarm_table,
)
from corea.training.checkpoints import SealCheckpoints, keep_model, select_checkpoint
from corea.training.quiet import quiet
from corea.training.settings import (
    Floats,
    RolloutSettings,
    TrainingError,
    accumulation,
    validation_batch,
)

VLLM_SERVER = "COREA_VLLM_SERVER"  # environment variable with the address of a vLLM server


class RolloutTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO trainer with rollouts, validation and watchfulness of our own."""

    logged: ClassVar[Mapping[str, str]] = {}  # what a method logs beside the loop, and its column

    def __init__(
        self,
        settings: RolloutSettings,
        directory: Path,
        reward_funcs: Sequence[Callable[..., list[float]]],
        **arguments: Any,
    ) -> None:
        """Set up as TRL's trainer does; refuse validation rows that would mix groups."""
        self.settings = settings
        self.directory = directory
        self.validated: list[pd.DataFrame] = []  # of the validation in progress
        super().__init__(
            reward_funcs=list(reward_funcs),
            callbacks=[loop.StopIfNotFinite(directory), SealCheckpoints()],
            rollout_func=complete if settings.rollouts == "corea" else None,
            **arguments,
        )
        if settings.lora_rank and self.use_vllm and not loop.sharded_by():
            self.vllm_generation.sync_weights = without_rounding(
                self.vllm_generation.sync_weights, self.model
            )
        self.question_ids = {digest(row["prompt"]): row["question_id"] for row in self.eval_dataset}
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
    def step_now(self) -> int:
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
        """What a subclass adds to a batch of rollouts: tensors, one entry a completion first."""
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        with self.watching(model) as states:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        return self.adjusted(loss, model, inputs, states)

    @contextmanager
    def watching(self, model: Any) -> Iterator[list[torch.Tensor]]:
        """What a subclass wants to see of the forward pass: a list that holds it afterwards."""
        yield []

    def adjusted(
        self, loss: torch.Tensor, model: Any, inputs: dict[str, Any], states: list[torch.Tensor]
    ) -> torch.Tensor:
        """TRL's loss, a scalar, with what a subclass adds; states are from :meth:`watching`."""
        return loss

    def keep_validated(
        self, prompts: Floats, correct: Floats, confidence: Floats, **more: Floats
    ) -> None:
        """Keep rollouts of a validation, whole groups in a row; arrays of shape (n,).

        ``prompts`` are digests; a confidence is NaN where there is none.
        """
        columns = {
            "question_id": [self.question_ids[int(prompt)] for prompt in prompts],
            "sample": np.arange(len(prompts)) % self.settings.group_size,
            "correct": correct.astype(bool),
            "confidence": confidence,
        }
        self.validated.append(pd.DataFrame(columns | more))

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """One forward and backward pass; a loss that is not finite ends the run before it."""
        loss: torch.Tensor = super().training_step(*arguments, **named)
        losses = gather(loss.detach().reshape(1))
        if not torch.isfinite(losses).all().item():
            (wrong,) = losses[~torch.isfinite(losses)][:1].tolist()
            examples = list(self._logs["completion"])[-2:]
            raise loop.not_finite(self.directory, self.step_now, "loss", wrong, examples)
        return loss

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Sample validation rollouts with random numbers of their own, and write them."""
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
            tell(
                f"step {step} of {self.settings.steps}: validation pass@1 "
                f"{table['correct'].mean():.3f}, mean confidence "
                f"{np.nanmean(stated) if np.isfinite(stated).any() else np.nan:.3f}"
            )
        if step == 0:
            self.require_variance(table["correct"].to_numpy(dtype=float))
        return metrics

    def require_variance(self, correct: Floats) -> None:
        """Warn of a validation without right and wrong answers in a group, or end the training."""
        settings = self.settings
        detail, ends = variance_missing(
            correct.reshape(-1, settings.group_size).mean(axis=1),
            self.state.log_history[-1]["eval_completions/clipped_ratio"],
            group_size=settings.group_size,
            max_completion_tokens=settings.max_completion_tokens,
        )
        if detail and self.accelerator.is_main_process:
            report_alarm(self.directory, 0, "variance", detail, ())
        if ends:
            raise TrainingError(f"nothing to learn before the first step: {detail}")


def digest(text: str) -> int:
    """48 bits of a hash that is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def complete(prompts: list[str], trainer: RolloutTrainer) -> dict[str, Any]:
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
        "token_logprobs": [rollout.logprobs for rollout in made],  # for reward functions
    }


def without_rounding(sync: Callable[[], None], model: torch.nn.Module) -> Callable[[], None]:
    """``sync`` that leaves no rounding in frozen weights, which it merges adapters into and out of.

    The frozen weights are copied once and restored after each call.
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


def reinforce(
    trainer_class: Callable[..., RolloutTrainer],
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
        directory: Where everything is written: ``model/`` (the selected weights),
            ``dynamics.csv``, ``validation.csv``, ``selection.csv`` and ``alarms.csv``.

    Raises:
        TrainingError: If nothing can be learnt (rule 5 of this module), the loss or the gradient
            is not finite, a validation question is asked twice, or a checkpoint is damaged.
        ValueError: If there is nothing to train or to validate on, or the batch does not divide
            among the processes.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings = loop.resolved(settings)
    loop.check_processes(settings)
    per_rollout = settings.batch * settings.steps_per_rollout // settings.group_size
    rollouts = -(-settings.steps // settings.steps_per_rollout)
    asked = loop.in_order(questions, per_rollout * rollouts, settings.seed)
    longest = 0
    if settings.rollouts == "vllm_colocate":
        prompts = [row["prompt"] for row in (*questions, *validation)]
        longest = max(map(len, tokenizer(prompts)["input_ids"]))
    config = grpo_config(settings, directory, len(validation), longest)
    with quiet():
        trainer = trainer_class(
            settings,
            directory,
            model=str(model_folder(base)),
            args=config,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(asked),
            eval_dataset=datasets.Dataset.from_list(list(validation)),
            peft_config=loop.adapter(settings),
        )
        loop.run(trainer, directory, evaluate_first=True)
    if trainer.accelerator.is_main_process:
        finish(trainer, base, directory)
    trainer.accelerator.wait_for_everyone()


def grpo_config(
    settings: RolloutSettings, directory: Path, n_validation: int, longest_prompt: int = 0
) -> GRPOConfig:
    """Arguments of TRL's trainer."""
    world = loop.n_processes()
    return GRPOConfig(
        **loop.common_arguments(settings, directory),
        **_vllm(settings, longest_prompt),
        model_init_kwargs={"dtype": loop.load_dtype(settings)},
        num_generations=settings.group_size,
        num_generations_eval=settings.group_size,
        per_device_eval_batch_size=validation_batch(n_validation, settings, world),
        steps_per_generation=accumulation(settings, world) * settings.steps_per_rollout,
        temperature=settings.temperature,
        max_completion_length=settings.max_completion_tokens,
        beta=settings.kl_coef,
        entropy_coef=settings.entropy_coef,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        reward_weights=settings.reward_weights,
        weight_decay=settings.weight_decay,
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


def finish(trainer: RolloutTrainer, base: str | Path, directory: Path) -> None:
    """Write the tables of a run that has ended, and keep the weights that are selected."""
    masked = {"masked_share": "masked_share"} if trainer.use_vllm else {}
    loop.write_dynamics(trainer, directory, {**trainer.logged, **masked})
    parts = sorted((directory / "validation").glob("*.csv"))
    tables = {int(part.stem): pd.read_csv(part, dtype={"question_id": str}) for part in parts}
    validation = pd.concat(tables, names=["step"]).reset_index("step").reset_index(drop=True)
    write_atomically(directory / "validation.csv", validation.to_csv(index=False))
    choice = select_checkpoint(validation, trainer.settings)
    write_atomically(directory / "selection.csv", choice.to_csv(index=False))
    write_alarm_table(directory)
    chosen = int(choice.loc[choice["selected"], "step"].item())
    keep_model(chosen, base, trainer.settings, trainer.processing_class, directory)
    shutil.rmtree(directory / "validation")
    remove_alarms(directory)
