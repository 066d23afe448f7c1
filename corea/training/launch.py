"""Trainings in several processes: a job as a file, and accelerate that starts who works on it.

A stage (:mod:`corea.stages`) is asked for by one process, a notebook's. With an accelerate
configuration (``profiles/accelerate/``) it writes what is to be trained to ``job.json`` in the
folder of the results, and starts::

    accelerate launch --config_file profiles/accelerate/zero2.yaml -m corea.training.launch FOLDER

1. The processes share nothing with the notebook but that folder. So the lock of the store, its
   seal and its name are the notebook's alone, however many processes train.
2. What a process prints with ``progress: `` before it is printed by the notebook; all else is
   kept back and shown if the training fails.
3. The processes end with the notebook: all read the end of a pipe that closes when it is
   interrupted or killed. Otherwise the next one would find the lock free and the folder in use.
4. ``COREA_LAUNCH`` may hold another command than ``accelerate launch``, one that starts it on
   several machines that share the folder (``profiles/slurm/train_with_vllm.sbatch``).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from corea.engines.loading import load_tokenizer
from corea.store import write_atomically
from corea.training.settings import TrainingError

if TYPE_CHECKING:
    from corea.tasks.decision_questions import DecisionQuestion
    from corea.tasks.questions import Question
    from corea.training.settings import WeightSettings

JOB = "job.json"
LAUNCH = "COREA_LAUNCH"  # environment variable with a command in place of `accelerate launch`
PROGRESS = "progress: "
ERROR = "error: "
_SHOWN = 80  # last lines of a training that failed
_UNKNOWN = (ImportError, AttributeError)  # a name that is not there
_PATIENCE = 10  # seconds in which processes may end by themselves


@dataclass(frozen=True)
class Job:
    """One training."""

    trains: Callable[..., None]  # such as `corea.training.sft.train_sft`
    base: str  # folder or hub name of the model to start from
    settings: WeightSettings
    # dictionaries with `prompt` and `completion`, or questions
    rows: Sequence[Mapping[str, str]] | Sequence[Question] | Sequence[DecisionQuestion]
    # held out; None where the function takes none
    validation: Sequence[Question] | Sequence[DecisionQuestion] | None = None

    def run(self, folder: str | Path, accelerate: str = "") -> None:
        """Train in the processes of an accelerate configuration; in this one if it is empty."""
        if accelerate:
            start(self, folder, accelerate)
        else:
            self.train(folder)

    def train(self, folder: str | Path) -> None:
        """Train in this process: alone, or as one of those that accelerate started."""
        held_out = () if self.validation is None else (self.validation,)
        tokenizer = load_tokenizer(self.base)
        self.trains(self.base, tokenizer, self.rows, *held_out, self.settings, folder)

    def write(self, folder: str | Path) -> None:
        """Write the job where its results will be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        held_out = self.validation
        content = {
            "trains": _name(self.trains),
            "base": self.base,
            "settings": [_name(type(self.settings)), asdict(self.settings)],
            "rows": [_plain(row) for row in self.rows],
            "validation": None if held_out is None else [_plain(row) for row in held_out],
        }
        write_atomically(folder / JOB, json.dumps(content) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> Job:
        """Read what :meth:`write` wrote; a TrainingError names a file that is no job."""
        path = Path(folder, JOB)
        try:
            content = json.loads(path.read_text("utf-8"))
            kind, settings = content["settings"]
            rows, held_out = content["rows"], content["validation"]
            return cls(
                _named(content["trains"]),
                content["base"],
                _named(kind)(**settings),
                [_row(*row) for row in rows],
                None if held_out is None else [_row(*row) for row in held_out],
            )
        except (OSError, json.JSONDecodeError, LookupError, TypeError, *_UNKNOWN) as error:
            raise TrainingError(
                f"{path.as_posix()} is no job ({type(error).__name__}: {error}); expected what "
                "corea.training.launch.Job.write wrote"
            ) from None


def configuration(path: str | Path) -> dict[str, Any]:
    """What an accelerate configuration says, without its comments; what is none is named."""
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: no accelerate configuration ({error})") from None
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise TrainingError(
            f"{path}: no accelerate configuration (it has no distributed_type); expected a file "
            "like profiles/accelerate/zero2.yaml"
        )
    return content


def start(job: Job, folder: str | Path, accelerate: str | Path) -> None:
    """Train in the processes of an accelerate configuration, and wait for them."""
    configuration(accelerate)
    job.write(folder)
    accelerating = (sys.executable, "-m", "accelerate.commands.launch")
    command = shlex.split(os.environ.get(LAUNCH, "")) or [*accelerating]
    command += ["--config_file", str(accelerate), "-m", "corea.training.launch"]
    command += ["--attached", str(folder)]
    reading, writing = os.pipe()
    process = subprocess.Popen(
        command,
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    os.close(reading)
    errors: dict[str, None] = {}
    last: deque[str] = deque(maxlen=_SHOWN)
    try:
        for line in process.stdout or ():
            text = line.rstrip()
            if text.startswith(PROGRESS):
                print(text, flush=True)
            elif text.startswith(ERROR):
                errors[text.removeprefix(ERROR)] = None
            elif text:
                last.append(text)
        status = process.wait()
    finally:
        os.close(writing)  # each of them reads its end
        _end(process)
    if status:
        reason = "; ".join(errors) or "it printed no error of its own"
        shown = "\n".join(last)
        raise TrainingError(
            f"the training ended with status {status}: {reason}. The last lines were:\n{shown}"
        )
    Path(folder, JOB).unlink()


def _end(process: subprocess.Popen[str]) -> None:
    """End what started the processes, if it has not ended by itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
    if process.stdout:
        process.stdout.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one of the processes that accelerate started; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m corea.training.launch", description=__doc__)
    parser.add_argument("folder", help=f"holds {JOB}, and will hold the results")
    parser.add_argument(
        "--attached", action="store_true", help="end when standard input ends, at once"
    )
    options = parser.parse_args(arguments)
    if options.attached:
        threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        Job.read(options.folder).train(options.folder)
    except Exception as error:
        reason = " ".join(str(error).split())
        print(f"{ERROR}{type(error).__name__}: {reason}", flush=True)
        raise
    return 0


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)  # whoever started it is gone


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _named(name: str) -> Any:
    """What has a name in ``corea``; a job names nothing else."""
    module, _, attribute = name.rpartition(".")
    if not module.startswith("corea."):
        raise ImportError(f"{name!r} is not in corea")
    return getattr(import_module(module), attribute)


def _plain(row: Any) -> tuple[str, dict[str, Any]]:
    """A row as JSON, with what it is: empty for a dictionary."""
    if is_dataclass(row) and not isinstance(row, type):
        return _name(type(row)), asdict(row)
    return "", dict(row)


def _row(kind: str, fields: Mapping[str, Any]) -> Any:
    if not kind:
        return dict(fields)
    # JSON has no tuples; a question needs them, to be hashed
    tuples = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return _named(kind)(**tuples)


if __name__ == "__main__":
    sys.exit(main())
