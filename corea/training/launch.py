"""Trainings in several processes: a job as a file, and accelerate that starts who works on it.

A stage (:mod:`corea.stages`) is asked for by one process, a notebook's. With an accelerate
configuration (``profiles/accelerate/``) it writes what is to be trained to ``job.json`` in the
folder of the results, and starts::

    accelerate launch --config_file profiles/accelerate/zero2.yaml -m corea.training.launch FOLDER

What is decided here:

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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from corea.engines.models import load_tokenizer
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
_PATIENCE = 10  # seconds in which processes may end by themselves

# what trains, its settings, and what its rows are (nothing: dictionaries). Named, not imported:
# a result depends on the code of its own kind alone.
_TASKS = {
    "sft": ("training.sft.train_sft", "training.settings.SFTSettings", ""),
    "grpo": (
        "rlcc.trainer.train_grpo",
        "rlcc.trainer.GRPOSettings",
        "tasks.questions.Question",
    ),
    "decisions": (
        "decisions.trainer.train_decisions",
        "decisions.trainer.DecisionSettings",
        "tasks.decision_questions.DecisionQuestion",
    ),
}


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        task: ``"sft"``, ``"grpo"`` or ``"decisions"``.
        base: Folder or hub name of the model to start from.
        settings: Of the training.
        rows: To train on: dictionaries with ``prompt`` and ``completion``, or questions.
        validation: Questions held out; none for ``"sft"``.
    """

    task: str
    base: str
    settings: WeightSettings
    rows: Sequence[Mapping[str, str]] | Sequence[Question] | Sequence[DecisionQuestion]
    validation: Sequence[Question] | Sequence[DecisionQuestion] = ()

    def write(self, folder: str | Path) -> None:
        """Write the job where its results will be.

        Args:
            folder: The folder; made if it is not there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "task": self.task,
            "base": self.base,
            "settings": asdict(self.settings),
            "rows": [_plain(row) for row in self.rows],
            "validation": [_plain(row) for row in self.validation],
        }
        write_atomically(folder / JOB, json.dumps(content) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> Job:
        """Read a job.

        Args:
            folder: Where :meth:`write` wrote it.

        Returns:
            The job.

        Raises:
            TrainingError: If the file is missing or is no job; names it.
            ValueError: If a setting is out of range.
        """
        path = Path(folder, JOB)
        try:
            content = json.loads(path.read_text("utf-8"))
            _, settings, row = _TASKS[content["task"]]
            made: Any = _named(row) if row else dict
            rows, held_out = (
                [made(**_tuples(fields)) for fields in content[name]]
                for name in ("rows", "validation")
            )
            chosen = _named(settings)(**content["settings"])
            return cls(content["task"], content["base"], chosen, rows, held_out)
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise _failure(
                f"{path.as_posix()} is no job ({type(error).__name__}: {error}); expected what "
                "corea.training.launch.Job.write wrote"
            ) from None

    def train(self, folder: str | Path) -> None:
        """Train in this process: alone, or as one of those that accelerate started.

        Args:
            folder: Where everything is written, as :func:`corea.training.sft.train_sft` and
                :func:`corea.rlcc.trainer.train_grpo` say, which also say what is raised.
        """
        train, *_ = _TASKS[self.task]
        held_out = () if self.task == "sft" else (self.validation,)
        tokenizer = load_tokenizer(self.base)
        _named(train)(self.base, tokenizer, self.rows, *held_out, self.settings, folder)


def configuration(path: str | Path) -> dict[str, Any]:
    """What an accelerate configuration says, without its comments.

    Args:
        path: A YAML file.

    Returns:
        Its content.

    Raises:
        TrainingError: If there is no such file, or it is no accelerate configuration.
    """
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise _failure(f"{path}: no accelerate configuration ({error})") from None
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise _failure(
            f"{path}: no accelerate configuration (it has no distributed_type); expected a file "
            "like profiles/accelerate/zero2.yaml"
        )
    return content


def start(job: Job, folder: str | Path, accelerate: str | Path) -> None:
    """Train in the processes of an accelerate configuration, and wait for them.

    Args:
        job: What to train.
        folder: Where everything is written.
        accelerate: The configuration.

    Raises:
        TrainingError: If the training fails; with its error and the last that was printed.
    """
    configuration(accelerate)
    job.write(folder)
    command = shlex.split(os.environ.get(LAUNCH, "")) or [
        *(sys.executable, "-m", "accelerate.commands.launch"),
    ]
    command += [
        "--config_file",
        str(accelerate),
        "-m",
        "corea.training.launch",
        "--attached",
        str(folder),
    ]
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
        said = "; ".join(errors) or "it printed no error of its own"
        shown = "\n".join(last)
        raise _failure(
            f"the training ended with status {status}: {said}. The last lines were:\n{shown}"
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
    """Train as one of the processes that accelerate started.

    Args:
        arguments: The command line; that of this process when None.

    Returns:
        Exit status.
    """
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
        said = " ".join(str(error).split())
        print(f"{ERROR}{type(error).__name__}: {said}", flush=True)
        raise
    return 0


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)  # whoever started it is gone


def _failure(text: str) -> Exception:
    return TrainingError(text)


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(f"corea.{module}"), attribute)


def _plain(row: Any) -> dict[str, Any]:
    return asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; a question needs them, to be hashed."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }


if __name__ == "__main__":
    sys.exit(main())
