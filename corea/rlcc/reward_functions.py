r"""The rewards of RLCC as plain functions in TRL's signature, for a stock ``trl.GRPOTrainer``.

``reward_funcs=[correctness, confidence("l1"), form]``: each takes prompts, completions (texts, or
messages) and columns of the data set, and gives a list of numbers, one a completion. Nothing here
needs torch.

1. The rows of a group are found by their prompt, in whatever order they come. TRL may spread a
   group over processes and calls reward functions before it gathers (it needs only that the
   completions of all processes are whole groups); so correctness is gathered here first.
2. A group accuracy needs what TRL's sampler does: every prompt ``num_generations`` times in a
   generation batch. A batch where it does not hold, such as prompts that a collator changes from
   row to row, is refused: how often each prompt occurs must have a common divisor above 1.
3. All processes must call the function, or the others wait for ever: not to be given to a trainer
   that asks for rewards on one process alone.
4. What the alarms read (:mod:`corea.training.alarms`) is logged by the confidence reward, through
   TRL's ``log_metric``, of all processes together.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from corea.checks import Floats
from corea.metrics.calibration import describe_stated
from corea.rlcc.rewards import EPSILON, confidence_reward_of, format_reward
from corea.tasks.parsing import parse_completion
from corea.tasks.verify import score_answers
from corea.training.alarms import without_variance

COMPONENTS = ("correctness", "confidence", "format")
ROLLOUT_METRICS = (
    *("pass_at_1", "ece", "auroc", "confidence_output_ratio", "mean_confidence"),
    *("distinct_confidences", "share_at_0", "share_at_1", "groups_without_variance"),
    *("commonest_share", "accuracy_spread"),
)
Text = str | Sequence[dict[str, Any]]
RewardFunction = Callable[..., list[float]]


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


def correctness(
    completions: Sequence[Text],
    gold: Sequence[str],
    kind: Sequence[str] | None = None,
    options: Sequence[Sequence[str]] | None = None,
    **_: object,
) -> list[float]:
    r"""1 where the last box holds the right answer, else 0; without a ``kind`` it is mathematics.

    Example:
        >>> correctness([r"\boxed{B}", "B"], gold=["B", "B"], kind=["choice"] * 2)
        [1.0, 0.0]
    """
    answers = [parse_completion(_text(completion)).answer for completion in completions]
    kinds = ["math"] * len(answers) if kind is None else kind
    return [float(right is True) for right in score_answers(answers, gold, kinds, options)]


def form(completions: Sequence[Text], **_: object) -> list[float]:
    r""":func:`corea.rlcc.rewards.format_reward` of each completion.

    Example:
        >>> form([r"\boxed{4} \confidence{0.9}", [{"role": "assistant", "content": "四"}]])
        [1.0, 0.0]
    """
    texts = [_text(completion) for completion in completions]
    return [format_reward(parse_completion(text), text) for text in texts]


def confidence(
    name: str = "l1", *, right: RewardFunction = correctness, epsilon: float = EPSILON
) -> RewardFunction:
    r"""A confidence reward of :mod:`corea.rlcc.rewards`, as a function in TRL's signature.

    Source: paper A, section 3.2.

    Args:
        name: A key of :data:`corea.rlcc.rewards.CONFIDENCE_REWARDS`.
        right: What tells right answers, in TRL's signature; gives 0 or 1.
        epsilon: Clipping factor of the KL rewards, above 0 and below 1/2.

    Returns:
        The function. It raises a ValueError where the batch holds no whole groups and the reward
        is of the group (2 above).

    Example:
        >>> l1, columns = confidence("l1"), {"gold": ["4", "4"], "kind": ["choice"] * 2}
        >>> texts = [r"\boxed{4} \confidence{0.75}", r"\boxed{5} \confidence{0.25}"]
        >>> l1(["2+2"] * 2, texts, **columns)
        [-0.25, -0.25]
        >>> l1(["2+2", "1+3"], texts, **columns)
        Traceback (most recent call last):
            ...
        ValueError: no group accuracy: prompts occur 1, 1 times among 2 completions; ...
    """
    reward = confidence_reward_of(name)

    def confidence(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        stated = [parse_completion(_text(completion)).confidence for completion in completions]
        rows = np.column_stack(
            [
                right(prompts=prompts, completions=completions, **columns),
                np.array(stated, dtype=np.float64),
            ]
        )
        everyone = _of_all_processes((list(map(repr, prompts)), rows))
        before = sum(len(part) for _, part in everyone[: _process()])
        of_all = np.concatenate([part for _, part in everyone])
        occurs, group = group_rows([prompt for prompts, _ in everyone for prompt in prompts])
        if reward.target == "group" and math.gcd(*occurs.tolist()) < 2:
            some = ", ".join(str(count) for count in sorted(occurs.tolist())[:8])
            raise ValueError(
                f"no group accuracy: prompts occur {some} times among {len(of_all)} completions; "
                "expected each a multiple of num_generations, from 2, with the same text"
            )
        accuracy = np.bincount(group, of_all[:, 0]) / occurs
        if log_metric:
            for metric, value in rollout_metrics(of_all[:, 0], of_all[:, 1], accuracy).items():
                if math.isfinite(value):
                    log_metric(metric, value)
        target = accuracy[group] if reward.target == "group" else of_all[:, 0]
        earned: list[float] = reward(of_all[:, 1], target, epsilon).tolist()
        return earned[before : before + len(rows)]

    return confidence


form.__name__ = "format"  # TRL logs a function by its name


def group_rows(prompts: Sequence[str]) -> tuple[Any, Any]:
    """How often each distinct prompt occurs, shape (groups,), and the group of each row, (n,).

    Example:
        >>> [found.tolist() for found in group_rows(["b", "a", "b"])]
        [[1, 2], [1, 0, 1]]
    """
    _, group, occurs = np.unique(prompts, return_inverse=True, return_counts=True)
    return occurs, group


def rollout_metrics(correct: Floats, stated: Floats, accuracy: Floats) -> dict[str, float]:
    """What is logged of a batch of rollouts, by group accuracies of shape (groups,).

    What :func:`corea.metrics.calibration.describe_stated` gives (10 bins), and
    ``groups_without_variance``, the share of groups all right or all wrong;
    ``commonest_share``, of the most common confidence among those stated; and
    ``accuracy_spread``, the standard deviation of the group accuracies.

    Example:
        >>> found = rollout_metrics(np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.array([0.5]))
        >>> found["groups_without_variance"], found["commonest_share"], found["accuracy_spread"]
        (0.0, 1.0, 0.0)
    """
    return describe_stated(stated, correct) | {
        "groups_without_variance": without_variance(accuracy),
        "commonest_share": commonest(stated)[1],
        "accuracy_spread": float(accuracy.std()),
    }


def commonest(stated: ArrayLike) -> tuple[float, float]:
    """The confidence that is stated most often, and its share; NaN where none is stated.

    Example:
        >>> commonest([0.5, 0.5, 1.0, float("nan")])[0]
        0.5
    """
    values = np.asarray(stated, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return math.nan, math.nan
    ((value, count),) = Counter(values.tolist()).most_common(1)
    return value, count / values.size


def _text(completion: Text) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _process() -> int:
    return int(os.environ.get("RANK", "0"))


def _of_all_processes(part: tuple[list[str], Floats]) -> list[tuple[list[str], Floats]]:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return [part]
    from accelerate.utils import gather_object

    gathered: list[tuple[list[str], Floats]] = gather_object([part])
    return gathered
