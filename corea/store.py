"""Things made once: trained models and evaluations, kept by what they were made from.

An entry is a folder below ``build/store``, named after its kind and a digest of everything it
depends on: the specification, the source code that makes it, and the versions of the packages
that decide its numbers. The same request finds it; any other makes another one. So a chapter
whose text changes is executed again in seconds, and two profiles share what they have in common.

1. An entry is made in ``<name>.partial`` and gets its name when it is complete, with the digest
   of every file in ``manifest.json``. What an interrupted maker left in ``.partial`` is handed
   to the next one, which may go on from it.
2. Each entry has a lock file; of two processes that ask for the same entry one makes it, the
   other waits and finds it. The system frees the lock of a process that was killed.
3. Nothing is read from an entry in which a file is missing or differs from the manifest, or whose
   manifest is unfinished. It is named, set aside as ``<name>.damaged``, and made again.
4. Source code is compared without comments, docstrings and layout: rewording a docstring makes
   nothing anew. A string after an assignment, which documents it, is one of those.
5. The code of an entry is that of the modules named and of all modules of ``corea`` that they
   import or, as the checker of answers is, start by their file's name.
6. Where the environment names a file as ``COREA_ENTRIES``, each entry that is asked for is noted
   there, a line each, so that the pipeline knows which entries a run's results rest on.
"""

from __future__ import annotations

import ast
import fcntl
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

from corea.sources import with_imports

MANIFEST = "manifest.json"
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
    modules: Sequence[str] = (),
    root: str | Path = ROOT,
) -> Path:
    """The entry for a specification, made if it is not there.

    Args:
        kind: What it is, such as ``"grpo"``; letters, digits, ``_`` and ``-``.
        spec: All that decides the content, as JSON: settings, seed, the names of other entries.
        build: Fills the folder it is given; called only if the entry is not there. The folder
            holds what an interrupted call left, or nothing.
        modules: Modules of ``corea`` whose code decides the content, with all they import.
        root: Folder of the store.

    Returns:
        The folder of the entry.

    Raises:
        StoreError: If the disk was full while it was made.
        FileNotFoundError: If there is no such module.
        TypeError: If ``spec`` is not JSON.
        ValueError: If ``kind`` is not a name, or a number of ``spec`` is not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = make("sum", {"a": 1}, lambda p: p.joinpath("x").write_text("1"), root=root)
        ...     again = make("sum", {"a": 1}, lambda p: 1 / 0, root=root)
        ...     path == again, path.joinpath("x").read_text()
        (True, '1')
    """
    entry, text = _entry(kind, spec, modules, root)
    waiting = f"progress: waiting for another process that makes {entry.name}"
    with locked(entry.with_name(entry.name + ".lock"), waiting):
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
                write_atomically(partial / "request.json", text + "\n")
                seal(partial)
            partial.replace(entry)
    _note(entry)
    return entry


def keep_up(
    kind: str,
    spec: Mapping[str, Any],
    build: Callable[[Path], None],
    *,
    modules: Sequence[str] = (),
    root: str | Path = ROOT,
) -> Path:
    """The entry for a specification, brought up to date by every call.

    For what may stay incomplete, such as answers of a server that fails now and then.

    Args:
        kind: As for :func:`make`.
        spec: As for :func:`make`.
        build: Completes the folder it is given; called each time.
        modules: As for :func:`make`.
        root: As for :func:`make`.

    Returns:
        The folder of the entry.

    Raises:
        FileNotFoundError: As :func:`make` does.
        TypeError: As :func:`make` does.
        ValueError: As :func:`make` does.
    """
    entry, _ = _entry(kind, spec, modules, root)
    waiting = f"progress: waiting for another process that completes {entry.name}"
    with locked(entry.with_name(entry.name + ".lock"), waiting):
        entry.mkdir(parents=True, exist_ok=True)
        with _space_told(entry):
            build(entry)
            seal(entry)
    _note(entry)
    return entry


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


def _note(entry: Path) -> None:
    if path := os.environ.get(ENTRIES):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(f"{entry.as_posix()}\n")


def _entry(
    kind: str, spec: Mapping[str, Any], modules: Sequence[str], root: str | Path
) -> tuple[Path, str]:
    """The folder of an entry, and the request it is for."""
    if not re.fullmatch(r"[\w-]+", kind):
        raise ValueError(f"kind is {kind!r}; expected letters, digits, _ and -")
    request = {
        "kind": kind,
        "spec": spec,
        "code": {path.as_posix(): digest for path, digest in _code(modules)},
        "packages": {name: version(name) for name in PACKAGES} if modules else {},
    }
    text = json.dumps(request, sort_keys=True, indent=1, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Path(root) / f"{kind}-{digest}", text


def seal(folder: Path) -> None:
    """Write the digests of all files of a folder into its manifest, as the last of its files.

    Args:
        folder: A folder whose content is complete.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     _ = folder.joinpath("weights").write_text("1.5")
        ...     seal(folder)
        ...     check_seal(folder)  # as it was sealed: says nothing
        ...     _ = folder.joinpath("weights").write_text("2.5")
        ...     try:
        ...         check_seal(folder)
        ...     except StoreError as error:
        ...         print(str(error).partition(" is damaged: ")[2].partition(" (")[0])
        weights was changed
    """
    digests = {p.relative_to(folder).as_posix(): _digest(p) for p in _files(folder)}
    write_atomically(folder / MANIFEST, json.dumps(digests, indent=1) + "\n")


def check_seal(folder: Path) -> None:
    """Compare a folder with its manifest.

    Args:
        folder: A folder that was sealed.

    Raises:
        StoreError: If there is no manifest, or a file is missing, added or different; names
            each of them.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise StoreError(f"{folder.as_posix()}: half written, there is no {MANIFEST}")
    try:
        expected = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path.as_posix()}: not readable ({error})") from None
    found = {p.relative_to(folder).as_posix(): _digest(p) for p in _files(folder)}
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
    """Write a text file so that it is either there as a whole or not at all.

    Args:
        path: The file; replaced if it exists.
        text: Its content.

    Raises:
        OSError: If it cannot be written; what was there before stays.
    """
    partial = path.with_name(path.name + ".writing")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _files(folder: Path) -> Iterator[Path]:
    for inner, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if (path := Path(inner, name)) != folder / MANIFEST:
                yield path


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock, which the system frees if this process is killed.

    Args:
        path: The lock's file.
        waiting: What is printed before this process waits for another one that has the lock.

    Raises:
        BlockingIOError: If another process has the lock, and ``waiting`` is empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                raise
            print(waiting, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# --- the code an entry was made by ------------------------------------------------------------


def _code(modules: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Source files of the modules and of all of ``corea`` that they import, with digests."""
    package = Path(__file__).parent
    files = [Path(package.name, *name.split(".")).with_suffix(".py") for name in modules]
    for path in with_imports(files, package.parent):
        tree = ast.parse((package.parent / path).read_text("utf-8"))
        yield path, hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
