"""What a training tells while it runs: progress, and alarms that are kept with the run.

:func:`raised` has the rules of the alarms that read what was logged of the rollouts
(:func:`corea.rlcc.reward_functions.rollout_metrics`). Their limits are ours:

1. ``collapse``: nearly all completions state one confidence, although accuracy varies between
   questions. It looks at one step.
2. ``silence``: on average over the last few steps, most completions state none that can be read.
3. ``calibration`` and ``accuracy``: ECE is higher, or pass@1 lower, in the last few steps than in
   the first few, by more than is likely to be noise.

Before the first step, :func:`variance_missing` looks at the validation of the model as it is:
``variance`` where hardly any group has both right and wrong answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from corea.checks import Floats
from corea.store import write_atomically

_LINES = "alarms.jsonl"
COLLAPSED_SHARE = 0.95  # of the confidences stated, at one value
VARYING_ACCURACY = 0.1  # standard deviation of the group accuracies
MIXED_SHARE = 0.1  # of groups with right and wrong answers: with fewer most of a step is idle
_UNLIKELY = 0.05  # chance of what is not put down to chance


@dataclass(frozen=True)
class Limits:
    """When alarms go off.

    Attributes:
        window: Steps that are averaged, and compared with as many at the start.
        silent: Share of completions that state a confidence, below which most are silent.
        worse: How much ECE may rise, or pass@1 fall.
    """

    window: int = 5
    silent: float = 0.5
    worse: float = 0.1


def raised(steps: Sequence[Mapping[Any, Any]], limits: Limits | None = None) -> dict[str, str]:
    """The alarms that are on after the last of these steps, each with what was found.

    Args:
        steps: What was logged of each step so far, at least with ``pass_at_1``, ``ece``,
            ``confidence_output_ratio``, ``commonest_share`` and ``accuracy_spread``; what is
            missing or None is unknown.
        limits: When they go off.

    Example:
        >>> raised([{"pass_at_1": 0.5, "commonest_share": 1.0, "accuracy_spread": 0.3}])
        {'collapse': '100% of the confidences stated are one; accuracy varies by 0.30'}
        >>> falling = [{"pass_at_1": 0.6}] * 2 + [{"pass_at_1": 0.4}] * 2
        >>> raised(falling, Limits(window=2))
        {'accuracy': 'pass@1 went from 0.60 to 0.40'}
    """
    limits = limits or Limits()
    found = {}
    share, spread = (_mean(steps[-1:], of) for of in ("commonest_share", "accuracy_spread"))
    if share >= COLLAPSED_SHARE and spread >= VARYING_ACCURACY:
        text = f"{share:.0%} of the confidences stated are one; accuracy varies by {spread:.2f}"
        found["collapse"] = text
    first, last = steps[: limits.window], steps[-limits.window :]
    if len(steps) >= limits.window:
        ratio = _mean(last, "confidence_output_ratio")
        if ratio < limits.silent:
            found["silence"] = f"{ratio:.0%} of the completions state a confidence"
    if len(steps) >= 2 * limits.window:
        for alarm, metric, name, sign in (
            ("calibration", "ece", "ECE", 1),
            ("accuracy", "pass_at_1", "pass@1", -1),
        ):
            before, now = _mean(first, metric), _mean(last, metric)
            if sign * (now - before) > limits.worse:
                found[alarm] = f"{name} went from {before:.2f} to {now:.2f}"
    return found


def without_variance(accuracy: Floats) -> float:
    """Share of groups all right or all wrong, of group accuracies of shape (groups,).

    Example:
        >>> import numpy as np
        >>> without_variance(np.array([0.0, 0.5, 1.0, 1.0]))
        0.75
    """
    return float(((accuracy == 0) | (accuracy == 1)).mean())


def variance_missing(
    accuracy: Floats, cut: float, *, group_size: int, max_completion_tokens: int
) -> tuple[str, bool]:
    """What is found where GRPO has little to learn from, and whether that ends the training.

    A group whose answers are all right or all wrong has no advantage to learn correctness from.
    Where no group is mixed the training ends, if so many groups (29) would otherwise be unlikely:
    with a share of :data:`MIXED_SHARE` mixed, none of n is mixed with the probability
    (1 - share)^n, which is below 0.05 then. A few groups, as in a test's validation, cannot tell
    and only raise the alarm. That other rewards vary is no reason to go on: a confidence or form
    would be learnt from answers that are all alike, for which supervised rows do as well.

    Args:
        accuracy: Of each group, shape (groups,).
        cut: Share of completions cut at their limit.
        group_size: Rollouts of a group.
        max_completion_tokens: That limit.

    Returns:
        The text, empty where enough groups are mixed; whether the training is to end.

    Example:
        >>> import numpy as np
        >>> text, ends = variance_missing(
        ...     np.zeros(40), 0.75, group_size=8, max_completion_tokens=64
        ... )
        >>> ends, text.partition(";")[0]
        (True, '0 of 40 validation groups are mixed (0.0% of answers right, 75% cut at 64 tokens)')
        >>> text.partition(": ")[2][:48]
        'max_completion_tokens above 64, easier questions'
    """
    groups = len(accuracy)
    mixed = groups - round(without_variance(accuracy) * groups)
    if mixed / groups >= MIXED_SHARE:
        return "", False
    right = float(accuracy.mean())
    easier = ["easier questions", "a warm-up on supervised rows", "a larger model"]
    ways = [
        *([f"max_completion_tokens above {max_completion_tokens}"] if cut > 0.5 else []),
        *(easier if right < 0.5 else ["harder questions", "a higher temperature"]),
        f"a group_size above {group_size}",
    ]
    text = (
        f"{mixed} of {groups} validation groups are mixed ({right:.1%} of answers right, "
        f"{cut:.0%} cut at {max_completion_tokens} tokens); expected right and wrong answers in "
        f"{MIXED_SHARE:.0%} of them, as by: {', '.join(ways)}"
    )
    return text, not mixed and (1 - MIXED_SHARE) ** groups < _UNLIKELY


def _mean(steps: Sequence[Mapping[Any, Any]], metric: str) -> float:
    """Mean of what is known; NaN, which is on neither side of a limit, where nothing is."""
    known = [step[metric] for step in steps if step.get(metric) is not None]
    known = [value for value in known if value == value]
    return sum(known) / len(known) if known else float("nan")


def tell(text: str) -> None:
    """Print a line that the pipeline passes on to whoever waits for `make book`."""
    print(f"progress: {text}", flush=True)


def report_alarm(
    directory: Path, step: int, alarm: str, detail: str, examples: Sequence[str]
) -> None:
    """Tell at once that something is wrong, and add it to ``alarms.jsonl`` of the run."""
    line = {"step": step, "alarm": alarm, "detail": detail, "examples": list(examples)}
    with (directory / _LINES).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    tell(f"step {step}: {alarm}: {detail}")


def read_alarms(directory: Path) -> list[dict[str, Any]]:
    """The alarms of a run so far; a killed run may have left half a line at the end."""
    path = directory / _LINES
    lines: list[dict[str, Any]] = []
    for text in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def drop_alarms_after(directory: Path, step: int) -> None:
    """Forget what a killed run noted after the checkpoint from which it goes on."""
    if (directory / _LINES).is_file():
        kept = [line for line in read_alarms(directory) if line["step"] <= step]
        write_atomically(directory / _LINES, "".join(json.dumps(line) + "\n" for line in kept))


def write_alarm_table(directory: Path) -> None:
    """Write ``alarms.csv``, with its header also where there was no alarm."""
    columns = ["step", "alarm", "detail", "examples"]
    table = pd.DataFrame(read_alarms(directory), columns=columns)
    write_atomically(directory / "alarms.csv", table.to_csv(index=False))


def remove_alarms(directory: Path) -> None:
    """Remove the lines, once the checkpoints are gone: until then a killed run reads them."""
    (directory / _LINES).unlink(missing_ok=True)
