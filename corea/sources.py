"""Which files of ``corea`` a piece of source code needs.

What the pipeline executes again, and what the store makes again, both depend on it. Imports
inside functions count, and so do scripts that a module names (``"worker.py"``) to start them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path


def with_imports(files: Iterable[Path], root: Path) -> list[Path]:
    """Files of ``corea`` and all those that they need, directly or not; relative to ``root``."""
    waiting, found = [*files], set[Path]()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            names = _names_in((root / path).read_text("utf-8"), path.parent.parts)
            waiting += _existing(names, root)
    return sorted(found)


def imported_files(tree: ast.AST, package: Sequence[str], root: Path) -> Iterator[Path]:
    """Files of ``corea`` that code in a package (none for a notebook) imports or names itself."""
    yield from _existing(_names(tree, package), root)


@lru_cache(maxsize=1024)
def _names_in(text: str, package: tuple[str, ...]) -> tuple[Sequence[str], ...]:
    # hundreds of runs ask for the same few modules
    return tuple(_names(ast.parse(text), package))


def _names(tree: ast.AST, package: Sequence[str]) -> Iterator[Sequence[str]]:
    """Dotted names that source code imports or runs: of modules, or of what is in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # a script beside the module that it starts as a process of its own
            if package and re.fullmatch(r"\w+\.py", node.value):
                yield [*package, node.value.removesuffix(".py")]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            # "from a import b": b is a module of a or a name in it; both are looked for
            yield from ([*base, alias.name] for alias in node.names)


def _existing(names: Iterable[Sequence[str]], root: Path) -> Iterator[Path]:
    for name in names:
        if name[0] == "corea":
            for length in range(1, len(name) + 1):
                module = Path(*name[:length])
                for path in (module / "__init__.py", module.with_suffix(".py")):
                    if (root / path).is_file():
                        yield path
