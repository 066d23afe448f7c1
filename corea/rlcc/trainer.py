r"""RLCC: GRPO with a confidence-calibration reward (paper A, sections 3.2 and 4.4), on TRL.

1. The reward is the sum of correctness, confidence and format (paper A, equation 1). The
   confidence reward needs the accuracy of the whole group (equation 6), and TRL calls reward
   functions on each process before it gathers. So the trainer gathers what was read of the
   completions and computes the rewards where every group is whole. That each ``group_size`` rows
   in a row answer the same prompt is checked at every step.
2. TRL keeps rewards in 32 bits; there 0.7 becomes 0.69999999 and falls into the bin below. So
   the confidences that are logged and rewarded are gathered in 64 bits.
3. A confidence reward under which nearly all completions state the same confidence, although
   accuracy varies between questions, is reported the first time and again after each recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from transformers import PreTrainedTokenizerBase

from corea.engines.prompts import chat_prompt
from corea.rlcc.reward_functions import (
    COMPONENTS,
    ROLLOUT_METRICS,
    commonest,
    confidence,
    correctness,
    form,
    read_components,
    rollout_metrics,
)
from corea.rlcc.rewards import confidence_reward
from corea.rlcc.settings import GRPOSettings
from corea.tasks.questions import Question
from corea.training.alarms import COLLAPSED_SHARE, VARYING_ACCURACY, report_alarm
from corea.training.grpo import RolloutTrainer, digest, reinforce
from corea.training.settings import Floats, TrainingError


class RLCCTrainer(RolloutTrainer):
    """TRL's GRPO trainer with a confidence reward that sees whole groups."""

    settings: GRPOSettings
    logged: ClassVar = {
        "reward": "reward",
        **{f"rewards/{name}/mean": f"reward_{name}" for name in COMPONENTS},
        **{name: name for name in ROLLOUT_METRICS},
    }

    def __init__(self, settings: GRPOSettings, directory: Path, **arguments: Any) -> None:
        """Set up as TRL's trainer does."""
        # it reads completions once and asks none of these; TRL takes the names from them
        functions = (correctness, confidence(settings.confidence_reward), form)
        super().__init__(settings, directory, functions, **arguments)

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[str],
        completions: list[str],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        """Rewards of the whole batch, shape (n, 3), gathered from all processes."""
        columns = {
            k: [row[k] for row in inputs] for k in ("gold", "kind", "options") if k in inputs[0]
        }
        local = np.column_stack(
            [read_components(completions, **columns), [digest(prompt) for prompt in prompts]]
        )
        rows = gather(torch.as_tensor(local, device=self.accelerator.device)).cpu().numpy()
        correct, stated, form, prompt = rows.T
        groups = prompt.reshape(-1, self.settings.group_size)
        if (groups != groups[:, :1]).any():
            raise TrainingError(
                f"step {self.step_now}: {self.settings.group_size} completions in a row are not "
                "of one prompt, so there is no group accuracy"
            )
        if self.model.training:
            self.watch(correct, stated, completions)
        else:
            self.keep_validated(prompt, correct, stated, format=form)
        earned = confidence_reward(
            self.settings.confidence_reward, stated, correct, self.settings.group_size
        )
        rewards = np.column_stack([correct, earned, form])
        return torch.as_tensor(rewards, dtype=torch.float32, device=self.accelerator.device)

    def watch(self, correct: Floats, stated: Floats, completions: Sequence[str]) -> None:
        """Log the rollouts; report confidences that collapse, once each time it happens."""
        size, logged = self.settings.group_size, self._metrics["train"]
        accuracy = correct.reshape(-1, size).mean(axis=1)
        for name, value in rollout_metrics(correct, stated, accuracy).items():
            logged[name].append(value)
        if self.settings.confidence_reward == "none":
            return
        found = collapse(correct, stated, size)
        # from the log, which checkpoints keep: a resumed run does not report it again
        before = (
            row["collapsed"] for row in reversed(self.state.log_history) if "collapsed" in row
        )
        if found and not next(before, 0.0):
            # every process sees the same rewards, so all of them come here
            examples = gather_object(list(completions[:2]))[:2]
            if self.accelerator.is_main_process:
                report_alarm(self.directory, self.step_now, "collapse", found, examples)
        logged["collapsed"].append(float(bool(found)))


def collapse(correct: Floats, stated: Floats, group_size: int) -> str:
    """What was found where nearly all confidences are one although accuracy varies; or nothing.

    Example:
        >>> collapse(np.array([1.0, 1.0, 0.0, 0.0]), np.zeros(4), 2)
        'confidence 0 is 100% of those stated; accuracy by question varies by 0.50'
    """
    value, share = commonest(stated)
    spread = float(correct.reshape(-1, group_size).mean(axis=1).std())
    if not (share >= COLLAPSED_SHARE and spread >= VARYING_ACCURACY):
        return ""
    return (
        f"confidence {value:g} is {share:.0%} of those stated; accuracy by question "
        f"varies by {spread:.2f}"
    )


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
        directory: Where everything is written, as for :func:`corea.training.grpo.reinforce`.

    Raises:
        TrainingError: As :func:`corea.training.grpo.reinforce` does.
        ValueError: As :func:`corea.training.grpo.reinforce` does.
    """
    asked, held_out = (
        [question_row(question, tokenizer) for question in part] for part in (questions, validation)
    )
    reinforce(RLCCTrainer, base, tokenizer, asked, held_out, settings, directory)


def question_row(question: Question, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A question as a row of the trainer's data."""
    return {
        "prompt": chat_prompt(tokenizer, question.prompt),
        "question_id": question.question_id,
        "gold": question.gold,
        "kind": question.kind,
        "options": list(question.options),
    }
