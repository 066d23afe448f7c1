"""What a committed notebook says: its parameters, and the modules of ``corea`` it imports."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corea.book.display import visible
from corea.sources import imported_files, with_imports
from corea.workflow import PipelineError

GIVEN = ("profile", "seed", "output_dir")  # parameters that every notebook has and no run sets
STAGES = Path("corea/stages.py")  # what a notebook imports that trains or generates
FULL_RUN = Path("corea/book/full_run.py")  # what one imports that shows the published full run
EVIDENCE = Path("corea/book/evidence.py")  # or this, which shows it in the prose
CLAIMS = Path("corea/book/claims.py")  # what one imports that shows the claims


def read_notebook(path: Path) -> dict[str, Any]:
    """The content of a notebook."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: not readable as a notebook: {visible(error)}") from error
    if not isinstance(content, dict) or content.get("nbformat") != 4:
        raise PipelineError(f"{path}: not a notebook of format 4")
    return content


def is_parameters(cell: Mapping[str, Any]) -> bool:
    """Whether a cell holds a notebook's parameters."""
    return "parameters" in cell["metadata"].get("tags", [])


def notebook_parameters(notebook: Path) -> dict[str, Any]:
    """Name to default of what a notebook's one cell tagged ``parameters`` assigns."""
    cells = [
        (number, "".join(cell["source"]))
        for number, cell in enumerate(read_notebook(notebook)["cells"], 1)
        if is_parameters(cell)
    ]
    if len(cells) != 1:
        raise PipelineError(
            f"{notebook}: {len(cells)} cells are tagged 'parameters', expected exactly one"
        )
    number, source = cells[0]
    parameters = {}
    for statement in _parse(notebook, number, source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                raise PipelineError(
                    f"{notebook}: cell {number}: {ast.unparse(statement)!r} is not a parameter; "
                    "expected 'name = literal'"
                )
        try:
            parameters[name] = ast.literal_eval(value)
        except ValueError as error:
            raise PipelineError(
                f"{notebook}: cell {number}: the default of {name} is not a literal"
            ) from error
    if lacking := [name for name in GIVEN if name not in parameters]:
        raise PipelineError(f"{notebook}: the parameters cell lacks {', '.join(lacking)}")
    return parameters


def imported_modules(notebook: Path) -> list[Path]:
    """Source files of ``corea`` that a notebook imports, directly or through others, sorted."""
    return with_imports(own_imports(notebook), Path())


def own_imports(notebook: Path) -> list[Path]:
    """Source files of ``corea`` that a notebook imports itself, in functions too."""
    found: list[Path] = []
    for number, cell in enumerate(read_notebook(notebook)["cells"], 1):
        if cell["cell_type"] == "code":
            tree = _parse(notebook, number, "".join(cell["source"]))
            found += imported_files(tree, (), Path())
    return found


def _parse(notebook: Path, number: int, source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise PipelineError(
            f"{notebook}: cell {number} is not Python (magics are not): {visible(error)}"
        ) from error
