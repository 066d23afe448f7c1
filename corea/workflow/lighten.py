"""Make built pages light: what the theme ships and no page of ours needs is left out.

1. Icons: of the 2,000 in the theme's script and style sheet, those in use stay.
2. Source maps, which only a debugger of the theme asks for.
3. The index of the search, which every page loaded: it is the search page's.
"""

from __future__ import annotations

import re
from pathlib import Path

from corea.workflow import PipelineError

_CLASSES = re.compile(r'class="([^"]*)"')
_IN_SCRIPTS = re.compile(r"fa-(?:solid|regular|brands) fa-([a-z0-9-]+)")
_KINDS = {"fa", "fas", "far", "fab", "fa-solid", "fa-regular", "fa-brands"}
_LOOKS = {"fa-lg", "fa-xs", "fa-sm", "fa-fw", "fa-2x", "fa-spin", "fa-inverse"}
_ICON = re.compile(
    r'(?P<name>"[a-z0-9-]+"|[a-z][a-z0-9]*|\$[a-z]*):'
    r'\[\d+,\d+,\[(?P<aliases>[^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\["[^\]]*\])\](?P<comma>,?)'
)
_RULE = re.compile(r'(?:\.fa-[a-z0-9-]+:+before,?)+\{content:"(?:\\.|[^"\\])*"\}')
_MAP = re.compile(r"^(?://|/\*)# sourceMappingURL=\S+\.map(?: ?\*/)?\s*\Z", re.MULTILINE)
_SEARCH = re.compile(
    r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>'
)


def lighten(pages: Path) -> None:
    """Take out of a built book what none of its pages needs."""
    static = pages / "_static"
    used: set[str] = set()
    for page in (path for path in pages.rglob("*.html") if static not in path.parents):
        text = page.read_text("utf-8")
        used |= icons(text)
        if page.name != "search.html":
            page.write_text(_SEARCH.sub("", text), "utf-8")
    for script in static.rglob("*.js"):
        if "mathjax" not in script.parts and script.name != "plotly.min.js":
            text = script.read_text("utf-8")
            if script.name != "fontawesome.js":
                used |= set(_IN_SCRIPTS.findall(text))
    script = static / "scripts" / "fontawesome.js"
    script.write_text(with_icons(script.read_text("utf-8"), used), "utf-8")
    for style in (static / "styles").glob("*.css"):
        style.write_text(_RULE.sub("", style.read_text("utf-8")), "utf-8")
    for path in [*static.rglob("*.js"), *static.rglob("*.css")]:
        if path.with_name(f"{path.name}.map").is_file():
            path.write_text(_MAP.sub("", path.read_text("utf-8")), "utf-8")
    for path in static.rglob("*.map"):
        path.unlink()


def icons(html: str) -> set[str]:
    """Names of the icons in a page.

    Example:
        >>> icons('<i class="fa-solid fa-moon fa-lg"></i>')
        {'moon'}
    """
    found = set()
    for classes in _CLASSES.findall(html):
        names = set(classes.split())
        if names & _KINDS:
            found |= {name for name in names - _KINDS - _LOOKS if name.startswith("fa-")}
    return {name.removeprefix("fa-") for name in found}


def with_icons(script: str, used: set[str]) -> str:
    """The script of Font Awesome with only the icons of these names.

    Raises:
        PipelineError: One of them is not in it, or what it holds is not understood.
    """
    left = set(used)

    def kept(found: re.Match[str]) -> str:
        names = {found["name"].strip('"'), *re.findall(r'"([a-z0-9-]+)"', found["aliases"])}
        left.difference_update(names)
        return found[0] if names & used else ""

    text = _ICON.sub(kept, script)
    if left or len(text) > len(script) / 4:
        raise PipelineError(f"the theme's icons: not understood, or not in it: {sorted(left)}")
    return text
