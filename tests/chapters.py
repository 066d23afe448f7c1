"""Notebooks run in the process of a test, without a kernel."""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def execute(name, parameters):
    """Run a notebook's code here and return the HTML it shows, cell by cell."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"]
    namespace, shown = {}, []
    for cell in cells:
        if cell["cell_type"] == "code":
            code = ast.parse("".join(cell["source"]))
            last = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
            exec(compile(code, name, "exec"), namespace)
            if "parameters" in cell["metadata"].get("tags", []):
                assert set(parameters) <= set(namespace)
                namespace |= parameters
            if last:
                value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
                interactive = getattr(value, "_repr_mimebundle_", None)
                shown.append(interactive()["text/html"] if interactive else value._repr_html_())
    return shown
