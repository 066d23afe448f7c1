"""Supervised fine-tuning on completions, with TRL's trainer.

The loss is that of the completion and of the end token after it, where paper B's equation (1) has
the decision token alone. Schedule, warm-up and weight decay are TRL's by default: the rate falls
linearly from the first step, and nothing decays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from corea.engines.loading import model_folder
from corea.training import loop
from corea.training.alarms import remove_alarms
from corea.training.checkpoints import SealCheckpoints, keep_model
from corea.training.quiet import quiet
from corea.training.settings import SFTSettings


def train_sft(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, str]],
    settings: SFTSettings,
    directory: str | Path,
) -> None:
    """Train a model on completions, or go on where a killed run stopped.

    The loss is that of the completion and of the end-of-sequence token after it, a mean over both.

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
    settings = loop.resolved(settings)
    loop.check_processes(settings)
    named = isinstance(model, str | Path)
    if settings.lora_rank and not named:
        raise ValueError(
            f"lora_rank is {settings.lora_rank} for a model in memory; expected its folder or hub "
            "name, for adapters are merged into what is read from there"
        )
    config = SFTConfig(
        **loop.common_arguments(settings, directory),
        model_init_kwargs={"dtype": loop.load_dtype(settings)} if named else None,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        train_sampling_strategy="sequential",
        max_length=None,
        eval_strategy="no",
    )
    chosen = loop.in_order(rows, settings.batch * settings.steps, settings.seed)
    with quiet():
        tokenized = tokenize_rows(chosen, tokenizer)
        lengths = np.array([len(ids) for ids in tokenized["input_ids"]])
        # longest first within a step: the same step, and parts of about one length pad little
        order = np.argsort(-lengths.reshape(settings.steps, -1), axis=1, kind="stable")
        order += np.arange(settings.steps)[:, None] * settings.batch
        trainer = SFTTrainer(
            model=str(model_folder(model)) if named else model,
            args=config,
            processing_class=tokenizer,
            train_dataset=tokenized.select(order.ravel()),
            callbacks=[loop.StopIfNotFinite(directory), loop.Heartbeat(), SealCheckpoints()],
            peft_config=loop.adapter(settings),
        )
        loop.run(trainer, directory, evaluate_first=False)
    if trainer.accelerator.is_main_process:
        loop.write_dynamics(trainer, directory, {}, drop_empty=True)
        keep_model(settings.steps, model, settings, tokenizer, directory)
        remove_alarms(directory)
    trainer.accelerator.wait_for_everyone()


def tokenize_rows(
    rows: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase
) -> datasets.Dataset:
    """Token ids and labels of prompts and completions; prompts have no labels."""
    # with the special tokens a tokenizer puts before a prompt, as generation does
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    completions = tokenizer([row["completion"] for row in rows], add_special_tokens=False)[
        "input_ids"
    ]
    end = [tokenizer.eos_token_id]
    pairs = list(zip(prompts, completions, strict=True))
    return datasets.Dataset.from_dict(
        {
            "input_ids": [prompt + completion + end for prompt, completion in pairs],
            "labels": [[-100] * len(prompt) + completion + end for prompt, completion in pairs],
        }
    )
