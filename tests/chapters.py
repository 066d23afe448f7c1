"""Notebooks run in the process of a test, without a kernel."""

import ast
import json
import re
from html import unescape
from pathlib import Path
from unittest.mock import patch

from corea.book import display, prose

ROOT = Path(__file__).resolve().parent.parent


def execute(name, parameters, *, with_prose=False):
    """Run a notebook's code here; the HTML it shows, cell by cell, and if asked for the prose."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"]
    namespace, shown, said = {}, [], {}

    def show(value):
        bundle = getattr(value, "_repr_mimebundle_", dict)()
        said.update(bundle.get(prose.MIME, {}))
        shown.append(bundle["text/html"] if bundle else value._repr_html_())

    for cell in cells:
        if cell["cell_type"] == "code":
            code = ast.parse("".join(cell["source"]))
            last = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
            with patch.object(display, "show", show):  # what a block shows
                exec(compile(code, name, "exec"), namespace)
            if "parameters" in cell["metadata"].get("tags", []):
                assert set(parameters) <= set(namespace)
                namespace |= parameters
            if last:
                with patch.object(display, "show", show):
                    value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
                if value is not None:
                    show(value)
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    filled = [prose.fill(text, said) for text in texts]
    return shown + filled if with_prose else shown


def tables(shown):
    """Tables of a chapter's HTML: caption to rows, each a dict of heading to text."""
    found = {}
    for table in re.findall(r"<table.*?</table>", "\n".join(shown), re.DOTALL):
        caption = _text(re.search(r"<caption>(.*?)</caption>", table, re.DOTALL)[1])
        head, body = table.split("</thead>")
        headings = [_text(cell) for cell in re.findall(r"<th\b.*?</th>", head, re.DOTALL)]
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        cells = [[_text(c) for c in re.findall(r"<td\b.*?</td>", row, re.DOTALL)] for row in rows]
        found[caption] = [dict(zip(headings, row, strict=True)) for row in cells]
    return found


def _text(html):
    return unescape(re.sub(r"<[^>]+>", "", html.replace("<br>", " ")))
