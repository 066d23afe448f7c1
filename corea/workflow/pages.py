"""What an executed notebook becomes as a page of the book.

1. Values that code cells said stand in the prose (:mod:`corea.book.prose`), claims that it relies
   on are links to their rows, and a line below the title says how long the page takes to read.
2. Code is folded, but for cells tagged ``lesson``; what leads to one output is folded together.
3. Figures and tables are numbered within the chapter; ``[Figure](#name)`` is a link to one.
4. A static figure is two files, for a light page and for a dark one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from corea.book import prose
from corea.book.claims import RELIED
from corea.book.colours import darkened
from corea.book.display import visible
from corea.workflow import PipelineError

Cell = dict[str, Any]

WORDS_A_MINUTE = 200
_CODE: Cell = {"cell_type": "code", "execution_count": None, "outputs": []}
_CAPTION = re.compile(
    r'<(?P<kind>figure|table) class="corea-\w+"(?: id="(?P<id>[\w-]+)")?|<(?:fig)?caption>'
)
_LINK = re.compile(r"\[(?P<kind>Figure|Table)\]\(#(?P<id>[\w-]+)\)")
_IMAGE = re.compile(
    r'<img alt="(?P<alt>[^"]*)" src="data:image/svg\+xml;base64,(?P<data>[^"]*)"[^>]*'
)
_WIDTH = re.compile(r'<svg[^>]* width="([\d.]+)pt"')
_NO_WORDS = re.compile(
    r"<[^>]+>|(?s:\$\$.*?\$\$)|^[:`]{3}.*$|^:\w+:.*$|\{[\w:]+\}|\|", re.MULTILINE
)


def finish(notebook: Mapping[str, Any], where: str, label: str = "") -> None:
    """Put into the prose what was computed for it, and a label behind the title.

    What is downloaded from a page is the notebook as it is then. It writes no tables: a reader has
    no folder for them.
    """
    values: dict[str, str] = {}
    for cell in notebook["cells"]:
        values |= prose.said(cell)
    for number, cell in enumerate(notebook["cells"], 1):
        if cell["cell_type"] == "markdown":
            try:
                cell["source"] = prose.fill("".join(cell["source"]), values)
            except KeyError as error:
                raise PipelineError(
                    f"{where}, cell {number}: nothing was said under the name {error}"
                ) from error
        elif "injected-parameters" in cell["metadata"].get("tags", []):
            source = "".join(cell["source"])
            cell["source"] = re.sub(r"^output_dir = .*\n?", "", source, flags=re.MULTILINE)
    if label:
        _behind_title(notebook, lambda title: f"{title} · {label}")


def lay_out(notebook: dict[str, Any], where: str, chapter: int | None, figures: Path) -> None:
    """Make a finished notebook a page; static figures go into a folder beside the pages."""
    named: dict[str, str] = {}
    counts = {"figure": 0, "table": 0}
    for cell in notebook["cells"]:
        for data in _html_outputs(cell):
            data["text/html"] = _number("".join(data["text/html"]), chapter, counts, named)
            data["text/html"] = _two_files(data["text/html"], figures)
    for number, cell in enumerate(notebook["cells"], 1):
        if cell["cell_type"] == "markdown":
            cell["source"] = _linked(cell["source"], named, f"{where}, cell {number}")
    notebook["cells"] = _fold(notebook["cells"])
    minutes = max(1, round(words(notebook) / WORDS_A_MINUTE))
    note = f'<p class="corea-minutes">{minutes} min</p>'
    _behind_title(notebook, lambda title: f"{title}\n\n{note}")


def words(notebook: Mapping[str, Any]) -> int:
    """Words of prose in the markdown cells of a notebook."""
    texts = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    return len(_NO_WORDS.sub(" ", "\n".join(texts)).split())


def link_claims(text: str, claims: str) -> str:
    """Markdown in which each claim that it relies on is a link into the page of claims.

    Example:
        >>> link_claims("It costs less (A4: holds).", "claims.html")
        'It costs less (<a class="corea-claim" href="claims.html#A4">A4: holds</a>).'
    """
    return RELIED.sub(
        lambda found: (
            f'(<a class="corea-claim" href="{claims}#{found["claim"]}">'
            f"{found['claim']}: {found['verdict']}</a>)"
        ),
        text,
    )


def _html_outputs(cell: Cell) -> Iterator[dict[str, Any]]:
    """The HTML outputs of a cell, to change; others of the same output mean nothing to a page."""
    outputs = cell.get("outputs", [])
    outputs[:] = [output for output in outputs if prose.MIME not in output.get("data", {})]
    for data in (output.get("data", {}) for output in outputs):
        if "text/html" in data:
            data.pop("application/vnd.plotly.v1+json", None)
            yield data


def _fold(cells: Sequence[Cell]) -> list[Cell]:
    """Cells with their code folded, that of one without output together with the next one's."""
    folded: list[Cell] = []
    waiting = ""
    for cell in cells:
        if cell["cell_type"] == "code" and "lesson" not in cell["metadata"].get("tags", []):
            source = waiting + "".join(cell["source"])
            if not cell.get("outputs"):
                waiting = f"{source}\n\n"
                continue
            folded.append(_folded(cell, source))
            waiting = ""
        else:
            folded += [_folded(_CODE, waiting.rstrip())] if waiting else []
            folded.append(cell)
            waiting = ""
    return folded + ([_folded(_CODE, waiting.rstrip())] if waiting else [])


def _folded(cell: Mapping[str, Any], source: str) -> Cell:
    lines = source.count("\n") + 1
    prompts = {"code_prompt_show": f"Code ({lines} lines)", "code_prompt_hide": "Hide the code"}
    return {**cell, "source": source, "metadata": {"tags": ["hide-input"], "mystnb": prompts}}


def _number(html: str, chapter: int | None, counts: dict[str, int], named: dict[str, str]) -> str:
    """Captions with the number of their figure or table; those that have a name are noted."""
    kind, name = "figure", None

    def numbered(found: re.Match[str]) -> str:
        nonlocal kind, name
        if found["kind"]:
            kind, name = found["kind"], found["id"]
            return found[0]
        counts[kind] += 1
        number = f"{chapter}.{counts[kind]}" if chapter else f"{counts[kind]}"
        text = f"{kind.capitalize()} {number}"
        if name:
            named[name] = text
        return f"{found[0]}<strong>{text}.</strong> "

    return _CAPTION.sub(numbered, html)


def _linked(text: str, named: Mapping[str, str], where: str) -> str:
    def link(found: re.Match[str]) -> str:
        if found["id"] not in named:
            raise PipelineError(f"{where}: no figure or table is named {visible(found['id'])}")
        return f'<a href="#{found["id"]}">{named[found["id"]]}</a>'

    return link_claims(_LINK.sub(link, text), "claims.html")


def _two_files(html: str, figures: Path) -> str:
    """HTML whose static figures are files: one for a light page, one for a dark one."""

    def files(found: re.Match[str]) -> str:
        svg = base64.b64decode(found["data"]).decode("utf-8")
        name = hashlib.sha256(svg.encode("utf-8")).hexdigest()[:16]
        width = float(_WIDTH.search(svg)[1]) * 4 / 3  # type: ignore[index]
        figures.mkdir(parents=True, exist_ok=True)
        images = []
        for theme, text in (("light", svg), ("dark", darkened(svg))):
            (figures / f"{name}-{theme}.svg").write_text(text, "utf-8")
            images.append(
                f'<img class="corea-{theme}" alt="{found["alt"]}" loading="lazy" '
                f'style="--corea-width: {width:.0f}px" '
                f'src="../_static/{figures.name}/{name}-{theme}.svg"'
            )
        return ">".join(images)

    return _IMAGE.sub(files, html)


def _behind_title(notebook: Mapping[str, Any], change: Callable[[str], str]) -> None:
    """Change the first heading of a notebook."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source, found = re.subn(
                r"^# .*\S",
                lambda title: change(title[0]),
                "".join(cell["source"]),
                count=1,
                flags=re.M,
            )
            if found:
                cell["source"] = source
                return
