r"""Checkpoints: sealed when they are whole, found again after a kill, selected at the end.

1. A checkpoint counts once its checksums are written, last of all. A run that was killed goes on
   from the newest one that is whole, and ends with the weights it would have had.
2. Checkpoint selection: of the evaluated steps after 0, the one whose worst component is least
   behind; or the last, as paper A does, which stops at a fixed step and suspects that rule of the
   L2 reward's high ECE (section 5.4.2). For each component of
   the method's reward k (correctness, format, and confidence if it is trained),

   .. math:: \text{behind}_k(t) = \frac{\max_s v_k(s) - v_k(t)}{\text{SE}_k},

   where :math:`v_k(t)` is the mean on the validation rollouts and :math:`\text{SE}_k` its standard
   error by question, the largest of all evaluated steps (a step where all questions earn the
   same has none, and would leave every other one infinitely far behind). The step with the
   smallest :math:`\max_k \text{behind}_k(t)` is taken, the latest of equals.
3. The adapters of the selected step are merged into the base model in 32 bits, and ``model/``
   holds whole weights, stored in the precision of the forward pass, the one that was validated.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from corea.engines.loading import load_model
from corea.store import MANIFEST, StoreError, check_seal, seal
from corea.training.alarms import tell
from corea.training.quiet import quiet
from corea.training.settings import Floats, RolloutSettings, TrainingError, WeightSettings


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Keep the weights of each checkpoint, then write its checksums, last of all."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal what was saved."""
        PartialState().wait_for_everyone()  # each process writes its random state
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            weights = weights_of(Path(args.output_dir).parent, state.global_step)
            shutil.rmtree(weights, ignore_errors=True)
            weights.mkdir(parents=True)
            for pattern in ("*.safetensors", "*.json"):
                for path in checkpoint.glob(pattern):
                    if path.name != "trainer_state.json":
                        os.link(path, weights / path.name)
            seal(weights)
            seal(checkpoint)


def weights_of(directory: Path, step: int) -> Path:
    """Folder of the weights kept of a step."""
    return directory / "weights" / f"{step:06d}"


def last_checkpoint(directory: str | Path) -> Path | None:
    """The newest checkpoint of a run that is whole; those that are not are named and set aside."""
    found = Path(directory, "checkpoints").glob("checkpoint-*")
    for path in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            check_seal(path)
        except StoreError as error:
            tell(f"a checkpoint is not used: {error}")
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
        else:
            return path
    return None


def select_checkpoint(validation: pd.DataFrame, settings: RolloutSettings) -> pd.DataFrame:
    """Compare the evaluated steps by all components of the reward, and select one (rule 2).

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
        >>> rollouts = pd.DataFrame({"step": [10] * 4 + [20] * 4, "confidence": 0.5,
        ...     "correct": [0, 0, 1, 0, 1, 0, 1, 1]})
        >>> choice = select_checkpoint(rollouts, RolloutSettings(group_size=2))
        >>> choice[["step", "correctness", "worst", "selected"]].round(2).values.tolist()
        [[10, 0.25, 2.83, False], [20, 0.75, 0.0, True]]
        >>> fixed = RolloutSettings(group_size=2, selection="last")
        >>> select_checkpoint(rollouts.assign(correct=1 - rollouts["correct"]), fixed)[
        ...     ["worst", "selected"]].round(2).values.tolist()
        [[0.0, False], [2.83, True]]
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
    table = _least_behind(steps, names, np.array(means), np.array(errors))
    if settings.selection == "last":
        table["selected"] = table["step"] == steps[-1]
    return table


def _least_behind(
    steps: list[int], names: list[str], means: Floats, errors: Floats
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


def keep_model(
    step: int,
    base: PreTrainedModel | str | Path,
    settings: WeightSettings,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> None:
    """Make ``model/`` from the weights of one step and delete what only training needed."""
    weights = weights_of(directory, step)
    try:
        check_seal(weights)
    except StoreError as error:
        raise TrainingError(
            f"{error}: but training made them, so delete {directory.as_posix()} instead"
        ) from None
    model, partial = directory / "model", directory / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    unset_hf_deepspeed_config()  # ZeRO-3 would spread what is read now over all processes
    with quiet():
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
    """The base model with an adapter merged into its weights, in 32 bits on the CPU."""
    model, _ = load_model(base, device="cpu", dtype="float32")
    with quiet():
        return PeftModel.from_pretrained(model, adapter, torch_device="cpu").merge_and_unload()
