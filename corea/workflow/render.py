"""Lay out the book's source from executed notebooks and render its pages.

The pages are those of whole results only. They are sealed, and a page that was changed is rendered
again.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import yaml

from corea.store import seal
from corea.workflow import PipelineError
from corea.workflow.execute import damage, plain_lines, write_reason
from corea.workflow.lighten import lighten
from corea.workflow.notebooks import read_notebook
from corea.workflow.pages import finish, lay_out, link_claims
from corea.workflow.profiles import Profile, page_entries

# the parts of MathJax that pages load: TeX in, HTML out with MathML for who cannot see it
MATHJAX = (
    *("startup.js", "core.js", "input/tex.js", "input/tex/extensions", "output/chtml.js"),
    *("output/chtml/fonts", "ui/safe.js", "a11y/assistive-mml.js"),
)


def table_of_contents(profile: Profile) -> dict[str, Any]:
    """``_toc.yml`` with a section for each run that it does not list as a chapter.

    Such runs stand in the profile's order below ``book/<entry>`` or ``book/<notebook>``.
    """
    contents: dict[str, Any] = yaml.safe_load(Path("_toc.yml").read_text("utf-8"))
    entries = {entry["file"]: entry for entry in page_entries(contents)}
    listed = {page for page in entries if page.startswith("notebooks/")}
    runs = {f"notebooks/{name}": run for name, run in profile.runs.items()}
    if absent := sorted(listed - runs.keys()):
        raise PipelineError(
            f"_toc.yml lists what profiles/{profile.name}.yaml does not run: {', '.join(absent)}"
        )
    for page, run in runs.items():
        places = [f"book/{name}" for name in (run.entry, run.notebook.stem)]
        above = next((place for place in places if place in entries), places[-1])
        if page not in listed and above not in entries:
            raise PipelineError(f"_toc.yml lists neither {page} nor {above}, to which it could go")
        if page not in listed:
            entries[above].setdefault("sections", []).append({"file": page})
    return contents


def assemble(profile: Profile) -> Path:
    """Lay out the book's source: configuration, pages, executed notebooks, static files.

    Plotly and MathJax come from the installed packages, so that the book needs no network. Returns
    the folder for ``jupyter-book build``.
    """
    contents = table_of_contents(profile)
    entries: dict[str, str] = {}
    found = {run: damage(profile, run, entries=entries) for run in profile.runs}
    if broken := [f"{run}: {why}" for run, why in found.items() if why]:
        raise PipelineError("\n  ".join(["the book was not built:", *broken]))
    source = profile.directory / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree("book", source / "book")
    config = yaml.safe_load(Path("_config.yml").read_text("utf-8"))
    footer = f"<p>{html.escape(config['title'])}, version {version('corea')}</p>"
    config["sphinx"]["config"]["html_theme_options"]["extra_footer"] = footer
    _dump(source / "_config.yml", config)
    _dump(source / "_toc.yml", contents)

    static = source / "book" / "_static"
    shutil.copy(_packaged("plotly", "plotly/package_data/plotly.min.js"), static)
    mathjax = _packaged("sphinx-mathjax-offline", "sphinx-mathjax-offline/static/mathjax")
    for part in (mathjax / name for name in MATHJAX):
        for file in [part] if part.is_file() else (p for p in part.rglob("*") if p.is_file()):
            copy = static / "mathjax" / file.relative_to(mathjax)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)

    numbers = chapter_numbers(contents)
    for folder in ("notebooks", "downloads"):
        (source / folder).mkdir()
    for run in profile.runs.values():
        where = f"notebooks/{run.name}.ipynb"
        notebook = read_notebook(profile.directory / "executed" / f"{run.name}.ipynb")
        finish(notebook, where, run.label)
        _write(source / "downloads" / f"{run.name}.ipynb", notebook)
        lay_out(notebook, where, numbers.get(f"notebooks/{run.name}"), static / "figures")
        _write(source / where, notebook)
    for page in (source / "book").glob("*.md"):
        text = link_claims(page.read_text("utf-8"), "../notebooks/claims.html")
        page.write_text(text, "utf-8")
    return source


def chapter_numbers(contents: Mapping[str, Any]) -> dict[str, int]:
    """The number of each chapter that has one: they count on through the parts."""
    every = (contents.get("options") or {}).get("numbered", False)
    numbers: dict[str, int] = {}
    for part in contents.get("parts", [contents]):
        if part.get("numbered", every):
            for chapter in part.get("chapters", []):
                numbers[chapter["file"]] = len(numbers) + 1
    return numbers


def _dump(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")


def _write(path: Path, notebook: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1), "utf-8")


def _packaged(package: str, path: str) -> Path:
    """A file or folder of an installed package, found without importing it."""
    return Path(str(distribution(package).locate_file(path)))


def render(profile: Profile) -> Path:
    """Build the pages with jupyter-book, where a warning is an error; the opening page."""
    source = assemble(profile)
    log = profile.directory / "logs" / "book.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print("book: rendering the pages", flush=True)
    # from nothing each time, which takes seconds: no page of an earlier book is left
    shutil.rmtree(profile.directory / "_build", ignore_errors=True)
    run = "from jupyter_book.cli.main import main; main()"  # it cannot be run as a module
    command = [sys.executable, "-c", run, "build", str(source)]
    command += ["--path-output", str(profile.directory), "-W", "-n", "--keep-going"]
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    lines = plain_lines(result.stdout)
    log.write_text("\n".join([*lines, ""]), "utf-8")
    if result.returncode != 0 or not profile.index.is_file():
        # a book with a warning in it is not left to be taken for one without
        shutil.rmtree(profile.directory / "_build", ignore_errors=True)
        told = [line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL|SEVERE)\b", line)]
        reason = "\n  ".join(["the book was not built:", *(told or lines)[-20:]])
        write_reason(profile, "book", reason)
        raise PipelineError(f"{reason}\n  log: {log}")
    for notebook in (source / "downloads").iterdir():  # whole, with the figures in it
        shutil.copy(notebook, profile.index.parent / "_sources" / "notebooks")
    lighten(profile.index.parent)
    seal(profile.index.parents[1])
    return profile.index
