"""What every training on TRL shares: its arguments, its callbacks, how it runs and resumes.

1. Questions come in an order drawn from the seed, as many as the steps need; each is asked once
   before any is asked again. TRL's own sampler forgets its state between passes over the data,
   so that a resumed run would see others.
2. A loss or gradient that is not finite ends the run before the weights are kept.
3. All weights are trained, or adapters beside frozen ones (LoRA). Trained weights are kept in 32
   bits; with ``precision="bfloat16"`` the forward pass casts them (autocast), and weights that
   are frozen are in 16 bits from the start on a GPU, and on a CPU that is fast at them.
4. Several processes are accelerate's (:mod:`corea.training.launch`). Weights that are sharded
   (ZeRO-3, FSDP) leave nothing for our engine to generate with; that is refused, and so are
   configurations whose checkpoints would not hold whole weights, before a model is loaded. We
   ran two processes on a CPU; DeepSpeed and FSDP need GPUs and were not run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from corea.engines.loading import fast_bfloat16, resolved_precision
from corea.store import write_atomically
from corea.training.alarms import drop_alarms_after, report_alarm, tell
from corea.training.checkpoints import last_checkpoint
from corea.training.settings import Settings, TrainingError, WeightSettings, accumulation

S = TypeVar("S", bound=WeightSettings)

_SCHEDULES = {"constant": "constant_with_warmup"}  # transformers' names where others
_LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "kl": "kl",
    "completions/mean_length": "completion_tokens",
    "learning_rate": "learning_rate",
    "step_time": "seconds",
}


def n_processes() -> int:
    """How many processes accelerate started for this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_processes(settings: WeightSettings) -> None:
    """Compare settings with the processes that accelerate started, before a model is loaded.

    Refused are another precision, weights that are sharded although something needs them whole,
    and checkpoints that would not hold whole weights.
    """
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if configured not in ("no", "bf16" if settings.precision == "bfloat16" else "no"):
        raise TrainingError(
            f"the accelerate configuration says mixed_precision {configured!r} and precision is "
            f"{settings.precision!r}; expected 'no' there, for the settings decide"
        )
    sharding = sharded_by()
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


def sharded_by() -> str:
    """How the weights are spread over the processes; empty if each has all of them."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "FSDP"
    zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    return "ZeRO-3" if zero and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else ""


def load_dtype(settings: WeightSettings) -> str:
    """Dtype of the base weights; adapters are always float32."""
    frozen = settings.lora_rank and settings.precision == "bfloat16"
    return "bfloat16" if frozen and (torch.cuda.is_available() or fast_bfloat16()) else "float32"


def resolved(settings: S) -> S:
    """Settings with the precision that is fast on this machine in place of ``"auto"``."""
    return replace(settings, precision=resolved_precision(settings.precision))


def adapter(settings: WeightSettings) -> LoraConfig | None:
    """What peft is told, None where all weights are trained."""
    if not settings.lora_rank:
        return None
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=None if settings.lora_targets == "default" else settings.lora_targets,
        task_type="CAUSAL_LM",
    )


def common_arguments(settings: Settings, directory: Path) -> dict[str, Any]:
    """Arguments of transformers' trainer that TRL's configurations of both trainings take."""
    return {
        "output_dir": str(directory / "checkpoints"),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": accumulation(settings, n_processes()),
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": _SCHEDULES.get(settings.lr_schedule, settings.lr_schedule),
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


def in_order(rows: Sequence[Any], n: int, seed: int) -> list[Any]:
    """``n`` rows in an order drawn from the seed, each once before any comes again."""
    if not rows:
        raise ValueError("nothing to train on: expected at least one row")
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < n:
        order += rng.permutation(len(rows)).tolist()
    return [rows[i] for i in order[:n]]


def not_finite(
    directory: Path, step: int, name: str, value: float, examples: Sequence[str] = ()
) -> TrainingError:
    """Report a loss or gradient that is not finite; the error that ends the run."""
    detail = f"the {name} is {value}"
    if PartialState().is_main_process:
        report_alarm(directory, step, "loss", detail, examples)
    shown = f", the last completions are {list(examples)!r}" if examples else ""
    return TrainingError(f"step {step}: {detail}{shown}; the checkpoints before it are kept")


class StopIfNotFinite(TrainerCallback):  # type: ignore[misc]
    """End a run whose loss or gradient is not finite; a step is logged before it is saved."""

    def __init__(self, directory: Path) -> None:
        """Alarms go to the run's folder."""
        self.directory = directory

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        """Look at what was logged."""
        for key, name in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
            if key in logs and not math.isfinite(logs[key]):
                raise not_finite(self.directory, state.global_step, name, logs[key])


class Heartbeat(TrainerCallback):  # type: ignore[misc]
    """Tell a few times how far supervised fine-tuning is; it has no validation that would."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Tell at every fifth of the steps."""
        every = max(1, state.max_steps // 5)
        if state.is_world_process_zero and "loss" in logs and state.global_step % every == 0:
            tell(f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.3f}")


def run(trainer: Any, directory: Path, *, evaluate_first: bool) -> None:
    """Train from the last checkpoint that is whole, or from the start."""
    with trainer.accelerator.main_process_first():  # it sets aside what the others must not see
        last = last_checkpoint(directory)
        # step 0 is validated again where there is no checkpoint
        drop_alarms_after(directory, int(last.name.split("-")[1]) if last else -1)
    trainer.remove_callback(PrinterCallback)
    if last is None and evaluate_first:
        trainer.args.eval_on_start = True
    trainer.train(resume_from_checkpoint=str(last) if last else None)


def write_dynamics(
    trainer: Any, directory: Path, more: Mapping[str, str], *, drop_empty: bool = False
) -> None:
    """Write ``dynamics.csv``: one row a step; ``more`` maps logged names to further columns."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    names = {**more, **_LOGGED}
    table = pd.DataFrame(rows).reindex(columns=["step", *names]).rename(columns=names)
    if drop_empty:
        table = table[[name for name in table if table[name].notna().any()]]
    write_atomically(directory / "dynamics.csv", table.to_csv(index=False))
