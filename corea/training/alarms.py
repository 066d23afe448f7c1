"""What a training tells while it runs: progress, and alarms that are kept with the run.

:func:`raised` has the rules of the alarms that read what was logged of the rollouts
(:func:`corea.rlcc.reward_functions.rollout_metrics`). Their limits are ours:

1. ``collapse``: nearly all completions state one confidence, although accuracy varies between
   questions. It looks at one step.
2. ``silence``: on average over the last few steps, most completions state none that can be read.
3. ``calibration`` and ``accuracy``: ECE is higher, or pass@1 lower, in the last few steps than in
   the first few, by more than is likely to be noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from corea.store import write_atomically

_LINES = "alarms.jsonl"
COLLAPSED_SHARE = 0.95  # of the confidences stated, at one value
VARYING_ACCURACY = 0.1  # standard deviation of the group accuracies


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
