"""What a training tells while it runs: progress, and alarms that are kept with the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from corea.store import write_atomically

_LINES = "alarms.jsonl"


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
