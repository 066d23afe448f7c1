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

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from transformers import PreTrainedTokenizerBase

from corea.engines.prompts import chat_prompt
from corea.metrics.calibration import describe_stated
from corea.rlcc.rewards import confidence_reward, format_reward
from corea.rlcc.settings import GRPOSettings
from corea.tasks.parsing import parse_completion
from corea.tasks.questions import Question
from corea.tasks.verify import score_answers
from corea.training.alarms import report_alarm
from corea.training.grpo import RolloutTrainer, digest, reinforce
from corea.training.settings import Floats, TrainingError

COMPONENTS = ("correctness", "confidence", "format")
ROLLOUT_METRICS = (
    *("pass_at_1", "ece", "auroc", "confidence_output_ratio", "mean_confidence"),
    *("distinct_confidences", "share_at_0", "share_at_1", "groups_without_variance"),
)
COLLAPSED_SHARE = 0.95  # of the confidences stated, at one value
VARYING_ACCURACY = 0.1  # standard deviation of the group accuracies


def read_components(
    completions: Sequence[str],
    gold: Sequence[str],
    kind: Sequence[str],
    options: Sequence[Sequence[str]] | None = None,
) -> Floats:
    r"""What each completion is worth before groups are looked at, from one reading of it.

    Source: paper A, section 3.2.

    Args:
        completions: Texts, length n.
        gold: Right answers, length n.
        kind: How each is compared, as in :func:`corea.tasks.verify.verify_batch`.
        options: What the letters stand for, length n; None: they stand for nothing.

    Returns:
        Shape (n, 3), in the order of :data:`COMPONENTS`: 1 for a right final answer, else 0 (an
        answer that cannot be decided is wrong); the confidence stated, NaN where there is none;
        the format reward.

    Raises:
        ValueError: If a kind is unknown.

    Example:
        >>> texts = [r"\boxed{4} \confidence{0.9}", r"\boxed{5}"]
        >>> read_components(texts, gold=["4", "4"], kind=["choice"] * 2).round(2).tolist()
        [[1.0, 0.9, 1.0], [0.0, nan, 0.67]]
    """
    read = [parse_completion(text) for text in completions]
    verdicts = score_answers([parsed.answer for parsed in read], gold, kind, options)
    columns = [
        [verdict is True for verdict in verdicts],
        [np.nan if parsed.confidence is None else parsed.confidence for parsed in read],
        [format_reward(parsed, text) for parsed, text in zip(read, completions, strict=True)],
    ]
    return np.array(columns, dtype=np.float64).T.reshape(len(read), len(COMPONENTS))


def _component(k: int) -> Callable[..., list[float]]:
    def reward(
        completions: Sequence[str],
        gold: Sequence[str],
        kind: Sequence[str],
        options: Sequence[Sequence[str]] | None = None,
        **_: object,
    ) -> list[float]:
        column: list[float] = read_components(completions, gold, kind, options)[:, k].tolist()
        return column

    reward.__name__ = COMPONENTS[k]  # TRL logs it by this name
    return reward


# In TRL's signature. RLCCTrainer reads completions once and asks none of them; they give TRL the
# names of the columns, and other trainers the rewards.
REWARD_FUNCTIONS = tuple(_component(k) for k in range(len(COMPONENTS)))


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
        super().__init__(settings, directory, REWARD_FUNCTIONS, **arguments)

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
        for name, value in rollout_metrics(correct, stated, size).items():
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


def rollout_metrics(correct: Floats, stated: Floats, group_size: int) -> dict[str, float]:
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


def collapse(correct: Floats, stated: Floats, group_size: int) -> str:
    """What was found where nearly all confidences are one although accuracy varies; or nothing.

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
