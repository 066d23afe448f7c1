"""Things made once: trained models and evaluations, kept by what they were made from.

An entry is a folder below ``build/store``, named after its kind and a digest of everything it
depends on: the specification, the source code that makes it, and the versions of the packages
that decide its numbers. The same request finds it; any other makes another one.

1. An entry is made in ``<name>.partial`` and gets its name when it is complete, with the digest
   of every file in ``manifest.json``. What an interrupted maker left in ``.partial`` is handed
   to the next one, which may go on from it.
2. Each entry has a lock file; of two processes that ask for the same entry one makes it, the
   other waits and finds it. The system frees the lock of a process that was killed.
3. Nothing is read from an entry in which a file is missing or differs from the manifest, or whose
   manifest is unfinished. It is named, set aside as ``<name>.damaged``, and made again.
4. Source code is that of the files named and of all of ``corea`` that they import, compared
   without comments, docstrings and layout: rewording a docstring makes nothing anew. A string
   after an assignment, which documents it, is one of those.
5. Where the environment names a file as ``COREA_ENTRIES``, each entry that is asked for is noted
   there, a line each, so that the pipeline knows which entries a run's results rest on.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from corea.sources import with_imports

MANIFEST, REQUEST = "manifest.json", "request.json"  # of an entry: its files, what it is
ROOT = Path("build", "store")
ENTRIES = "COREA_ENTRIES"  # environment variable: the file in which entries are noted
LEAST_SPACE = 2**26  # bytes; with fewer left on the disk, a failure is put down to that
PACKAGES = (
    *("torch", "transformers", "trl", "accelerate", "peft", "tokenizers", "numpy"),
    *("math-verify", "latex2sympy2_extended", "sympy"),  # whether an answer is right
)


class StoreError(Exception):
    """A folder is damaged, or an entry could not be made; names the folder and the file."""


def make(
    kind: str,
    spec: Mapping[str, Any],
    build: Callable[[Path], None],
    *,
    code: Sequence[Path] = (),
    root: str | Path = ROOT,
) -> Path:
    """The folder of the entry for a specification, made if it is not there.

    Args:
        kind: What it is, such as ``"grpo"``; letters, digits, ``_`` and ``-``.
        spec: All that decides the content, as JSON: settings, seed, the names of other entries.
        build: Fills the folder it is given; called only if the entry is not there. The folder
            holds what an interrupted call left, or nothing.
        code: Files whose code decides the content, such as ``corea/training/sft.py``.
        root: Folder of the store.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = make("sum", {"a": 1}, lambda p: p.joinpath("x").write_text("1"), root=root)
        ...     again = make("sum", {"a": 1}, lambda p: 1 / 0, root=root)
        ...     path == again, path.joinpath("x").read_text()
        (True, '1')
    """
    with _entry("makes", kind, spec, code, root) as (entry, request):
        if entry.is_dir():
            try:
                check_seal(entry)
            except StoreError as error:
                damaged = entry.with_name(entry.name + ".damaged")
                print(f"progress: {error}. It is kept as {damaged.name} and made anew", flush=True)
                shutil.rmtree(damaged, ignore_errors=True)
                entry.replace(damaged)
        if not entry.is_dir():
            partial = entry.with_name(entry.name + ".partial")
            partial.mkdir(parents=True, exist_ok=True)
            with _space_told(partial):
                build(partial)
                write_atomically(partial / REQUEST, request + "\n")
                seal(partial)
            partial.replace(entry)
    return entry


def keep_up(
    kind: str,
    spec: Mapping[str, Any],
    build: Callable[[Path], None],
    *,
    code: Sequence[Path] = (),
    root: str | Path = ROOT,
) -> Path:
    """As :func:`make`, but ``build`` completes the folder of the entry in every call.

    For what may stay incomplete, such as answers of a server that fails now and then.
    """
    with _entry("completes", kind, spec, code, root) as (entry, _):
        entry.mkdir(parents=True, exist_ok=True)
        with _space_told(entry):
            build(entry)
            seal(entry)
    return entry


@contextmanager
def _entry(
    verb: str, kind: str, spec: Mapping[str, Any], code: Sequence[Path], root: str | Path
) -> Iterator[tuple[Path, str]]:
    """The locked folder of an entry, and the request it is for; it is noted in the end."""
    if not re.fullmatch(r"[\w-]+", kind):
        raise ValueError(f"kind is {kind!r}; expected letters, digits, _ and -")
    request = {
        "kind": kind,
        "spec": spec,
        "code": _digests(code) if code else {},
        "packages": {name: version(name) for name in PACKAGES} if code else {},
    }
    text = json.dumps(request, sort_keys=True, indent=1, allow_nan=False)
    entry = Path(root) / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    waiting = f"progress: waiting for another process that {verb} {entry.name}"
    with locked(entry.with_name(entry.name + ".lock"), waiting):
        yield entry, text
    if path := os.environ.get(ENTRIES):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(f"{entry.as_posix()}\n")


@contextmanager
def _space_told(folder: Path) -> Iterator[None]:
    """Say that the disk is full where that is why something failed: few libraries do."""
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(folder).free
        if free >= LEAST_SPACE:
            raise
        raise StoreError(
            f"{folder.as_posix()}: the disk is full ({free // 2**20} MiB are left; "
            f"{type(error).__name__}: {error}). Free some space and run it again: what is "
            "finished is kept"
        ) from error


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock, which the system frees if this process is killed.

    Where another process has it, ``waiting`` is printed and its end awaited; without such a text
    that is a :class:`BlockingIOError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a soft lock, in place of one that the file system lacks, would outlive a killed process
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not waiting:
            raise BlockingIOError(f"{path.as_posix()} is locked by another process") from None
        print(waiting, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def seal(folder: Path) -> None:
    """Write the digests of all files of a folder into its manifest, as the last of its files."""
    write_atomically(folder / MANIFEST, json.dumps(_contents(folder), indent=1) + "\n")


def check_seal(folder: Path) -> None:
    """Compare a folder with its manifest; a StoreError names each file that is not as sealed."""
    path = folder / MANIFEST
    if not path.is_file():
        raise StoreError(f"{folder.as_posix()}: half written, there is no {MANIFEST}")
    try:
        expected = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path.as_posix()}: not readable ({error})") from None
    found = _contents(folder)
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name} was added" for name in sorted(found.keys() - expected.keys())]
    wrong += [
        f"{name} was changed (its SHA-256 is not that of the manifest)"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    if wrong:
        raise StoreError(f"{folder.as_posix()} is damaged: {'; '.join(wrong)}")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is either there as a whole or not at all."""
    partial = path.with_name(path.name + ".writing")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but its manifest."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path != folder / MANIFEST:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _digests(code: Sequence[Path]) -> dict[str, str]:
    """Digests of files and of all of ``corea`` that they import, by their paths."""
    root = Path(__file__).parent.parent
    trees = {path: ast.parse((root / path).read_text("utf-8")) for path in with_imports(code, root)}
    return {path.as_posix(): code_digest(tree) for path, tree in trees.items()}


def code_digest(tree: ast.AST) -> str:
    """SHA-256 of source code without docstrings, which are taken out of the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
