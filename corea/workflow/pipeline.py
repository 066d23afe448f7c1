"""Build a profile's book: whatever is missing or changed, and nothing else.

``Snakefile`` says what depends on what, and starts ``python -m corea execute`` and ``render``.
As many notebooks run at once as there are cores; those that ask for GPUs go one after the other on
one machine. The first run that is executed removes the book that there is, and it is rendered when
all runs have succeeded.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from corea.store import LEAST_SPACE
from corea.workflow import PipelineError
from corea.workflow.execute import check_kernel, plain, plain_lines, write_parameters
from corea.workflow.models import fetch_models
from corea.workflow.profiles import Profile

_MENDS = {
    errno.ENOSPC: "The disk is full: free some space and run it again; what is finished is kept",
    errno.EDQUOT: "Your quota is used up: free some and run it again; what is finished is kept",
    errno.EACCES: "Make it yours to write (chown, chmod), or work in a copy of the repository",
    errno.EROFS: "Work in a copy of the repository that can be written",
}


def build(profile: Profile) -> Path:
    """Make the book of a profile, the page that opens it; a PipelineError names all failures."""
    check_kernel(profile)
    fetch_models(profile)
    write_parameters(profile)
    log, held_by = (profile.directory / name for name in ("logs/snakemake.log", "lock"))
    log.parent.mkdir(parents=True, exist_ok=True)
    # Snakemake's own lock outlives a killed run; the system frees this one with its last holder,
    # and Snakemake gets a copy of the descriptor
    copies: list[int] = []
    lock = FileLock(held_by, fallback_to_soft=False, on_acquired=lambda d: copies.append(os.dup(d)))
    try:
        held = lock.acquire(blocking=False)
    except Timeout as error:
        raise PipelineError(
            f"profile {profile.name} is being built already, by "
            f"{held_by.read_text('utf-8').strip()}. Wait for it, or end that process"
        ) from error
    with held:
        for reason in (profile.directory / "failed").glob("*.txt"):
            reason.unlink()
        status = _snakemake(profile, log, held_by, copies[0])
    if status != 0:
        raise PipelineError("\n  ".join([*_failures(profile, log), f"log: {log}"]))
    return profile.index


def _snakemake(profile: Profile, log: Path, held_by: Path, descriptor: int) -> int:
    """Exit status of Snakemake, which holds the lock as long as it runs."""
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--nocolor", "--keep-going"]
    command += ["--config", f"profile={profile.name}", "--rerun-incomplete", "--nolock"]
    command += ["--resources", "gpu=1"]  # several runs at once would all take the first GPU
    with log.open("w", encoding="utf-8") as record:
        # what Snakemake has to say goes to its log, what its rules have to say here
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=record,
            pass_fds=[descriptor],
            process_group=0,
            # a background job of a shell ignores the signal below, and so would what it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        held_by.write_text(f"process {process.pid} (Snakemake) on {socket.gethostname()}\n")
        try:
            return process.wait()
        except BaseException:
            # whatever ends this process ends all that it started, and they keep what they have
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
        finally:
            os.close(descriptor)


def _failures(profile: Profile, log: Path) -> list[str]:
    """What failed and why, what was not run for it, and what Snakemake says if it says more."""
    failures = sorted((profile.directory / "failed").glob("*.txt"))
    reasons = list(filter(None, (path.read_text("utf-8").strip() for path in failures)))
    for run in profile.runs:
        if lacking := [f.stem for f in failures if f.stem in profile.all_needs(run)]:
            reasons.append(f"{run}: not run, since it needs {', '.join(lacking)}")
    if shutil.disk_usage(profile.directory).free < LEAST_SPACE:
        reasons.append(_MENDS[errno.ENOSPC])
    told = reasons or plain_lines(log.read_text("utf-8"))[-20:]
    return [f"profile {profile.name} failed:", *told]


def writable_home() -> None:
    """Let a folder below build/ stand in for a HOME that cannot be written: libraries need one."""
    home = Path(os.environ.get("HOME", "/"))
    if not os.access(home, os.W_OK | os.X_OK):
        instead = Path("build", "home").absolute()
        instead.mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = str(instead)
        print(f"HOME, {plain(str(home))}, cannot be written: build/home stands in for it")


def refusal(error: OSError) -> str:
    """What the system refused, and what to do, in one line."""
    file = error.filename2 or error.filename or "a file"
    told = plain(f"{file}: {error.strerror or error}")
    return f"{told}. {_MENDS.get(error.errno or 0, 'Everything is made below build/')}"
