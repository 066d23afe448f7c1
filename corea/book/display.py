"""What a page shows: tables, figures, computed sentences, provenance.

Everything that reaches a page goes through this module, because names, answers
and completions come from models and from strangers' files. They are shown as
text: HTML is escaped, control characters (ANSI codes among them) are made
visible, and ``$`` and backslashes are kept away from MathJax, which would
otherwise typeset -- and follow links in -- the output of a cell. Long names and
cells lose their middle in what is shown, never in the data.

All functions but :func:`show` return objects that IPython displays; none prints.
"""

from __future__ import annotations

import base64
import html
import io
import json
import string
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corea.book.colours import DARK

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

Formatter = str | Callable[[Any], str]


@dataclass(frozen=True, repr=False)
class Html:
    """HTML that IPython displays."""

    data: str  # already escaped

    def _repr_html_(self) -> str:
        return self.data


def visible(text: object) -> str:
    r"""Text with control and formatting characters made visible.

    Example:
        >>> visible("red: \x1b[31m")
        'red: ␛[31m'
    """

    def picture(character: str) -> str:
        code = ord(character)
        if code < 0x20:
            return chr(0x2400 + code)
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            return f"\\u{{{code:x}}}"
        return character

    return "".join(map(picture, str(text)))


def short(text: object, limit: int = 60) -> str:
    """Text of at most ``limit`` characters: a longer one loses its middle.

    Example:
        >>> short("abcdefghijklmnop", 9)
        'abcd…mnop'
    """
    text = str(text)
    if len(text) <= limit:
        return text
    kept = (limit - 1) // 2
    return f"{text[: limit - 1 - kept]}…{text[len(text) - kept :]}"


def as_label(name: object) -> str:
    """A name as a figure's label or title: visible, short, never left out.

    Matplotlib leaves what starts with an underscore out of its legends.
    """
    label = visible(short(name, 44))
    return f" {label}" if label.startswith("_") else label


def as_html(text: object) -> str:
    """HTML that shows ``text`` as text, in the book and in JupyterLab.

    ``$`` and the backslash stand in elements of their own, so that no MathJax
    delimiter can form: MathJax never joins delimiters across elements.

    Example:
        >>> as_html("<b>")
        '&lt;b&gt;'
    """
    escaped = html.escape(visible(text))
    return "".join(f"<span>{c}</span>" if c in "$\\" else c for c in escaped)


def as_plotly(text: object) -> str:
    """String that a plotly title, label or hover text shows literally.

    Plotly interprets a few tags, and hands text between dollar signs to MathJax.

    Example:
        >>> as_plotly("<i>$x$</i>")
        '&lt;i&gt;&#36;x&#36;&lt;/i&gt;'
    """
    return html.escape(visible(text)).replace("$", "&#36;")


class _EscapingFormatter(string.Formatter):
    """``str.format`` whose literal text and values are all escaped for HTML."""

    def parse(self, format_string: str) -> Any:
        for literal, *field in super().parse(format_string):
            yield as_html(literal), *field

    def format_field(self, value: Any, format_spec: str) -> str:
        return as_html(super().format_field(value, format_spec))


def show(shown: Html | Interactive) -> None:
    """Display something now: of a block, such as an ``if``, IPython displays nothing by itself."""
    from IPython.display import display

    display(shown)  # type: ignore[no-untyped-call]


def paragraphs(*texts: object) -> Html:
    """Texts as they are, braces too, one a paragraph.

    Example:
        >>> print(paragraphs("{x}.csv: 3 rows").data)
        <p class="corea-reading">{x}.csv: 3 rows</p>
    """
    return Html("\n".join(f'<p class="corea-reading">{as_html(text)}</p>' for text in texts))


def reading(*templates: str, **values: object) -> Html:
    """Sentences whose numbers are computed in the page.

    Example:
        >>> print(reading("ECE is {ece:.2f}.", ece=0.123).data)
        <p class="corea-reading">ECE is 0.12.</p>
    """
    fill = _EscapingFormatter().vformat
    return Html("\n".join(f'<p class="corea-reading">{fill(t, (), values)}</p>' for t in templates))


def table(
    frame: pd.DataFrame,
    caption: str,
    *,
    formats: Mapping[str, Formatter] | None = None,
    missing: str = "–",
    longest: int = 2000,
    name: str = "",
) -> Html:
    """A captioned table; every cell and header is escaped. Prose links to its name."""
    import pandas as pd

    from corea.metrics.intervals import Interval

    shown = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    formats = formats or {}
    if unknown := set(formats) - {str(c) for c in shown.columns}:
        raise KeyError(f"formats for columns that are not shown: {sorted(unknown)}")

    def cell(value: Any, formatter: Formatter | None) -> str:
        if isinstance(value, Interval):
            spec = formatter if isinstance(formatter, str) else ".3f"
            ends = f"[{value.low:{spec}}, {value.high:{spec}}]"
            return f"{as_html(format(value.estimate, spec))}<br><small>{as_html(ends)}</small>"
        if pd.api.types.is_scalar(value) and pd.isna(value):
            return as_html(missing)
        if formatter is None:
            formatter = ".3f" if pd.api.types.is_float(value) else ""
        if callable(formatter):
            text = formatter(value)
        else:  # a format is one of numbers: words between them are as they are
            text = value if isinstance(value, str) else format(value, formatter)
        return as_html(short(text, longest))

    header, columns = "", []
    for i, column in enumerate(shown.columns):
        values = shown.iloc[:, i]
        number = pd.api.types.is_numeric_dtype(values.dtype) or any(
            isinstance(value, Interval) for value in values
        )
        texts = [cell(value, formats.get(str(column))) for value in values]
        header += _tag("th", _heading(column, longest), "corea-number" if number else "")
        # a name is not broken over lines, a sentence is
        looks = ["corea-number" if number else "corea-name" * (len(t) <= 32) for t in texts]
        columns.append([_tag("td", *each) for each in zip(texts, looks, strict=True)])
    rows = "\n".join(f"<tr>{''.join(row)}</tr>" for row in zip(*columns, strict=True))
    return Html(
        f'<div class="corea-scroll"><table class="corea-table"{_named(name)}>'
        f"<caption>{as_html(caption)}</caption>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _tag(name: str, content: str, look: str) -> str:
    return f'<{name} class="{look}">{content}</{name}>' if look else f"<{name}>{content}</{name}>"


def _heading(name: object, longest: int) -> str:
    """HTML of a column's name, which may break after an underscore."""
    parts = name if isinstance(name, tuple) else (name,)
    text = " ".join(str(part) for part in parts if part != "")
    return as_html(short(text, longest)).replace("_", "_<wbr>")


def _named(name: str) -> str:
    return f' id="{html.escape(name)}"' if name else ""


def figure(drawing: Figure, caption: str, *, alt: str = "", name: str = "") -> Html:
    """A captioned static figure, as SVG inside an image (so nothing in it can run).

    Args:
        drawing: The figure; it is closed.
        caption: What it says.
        alt: What is to be seen in it, for who cannot see it; the caption where it is empty.
        name: What prose links to, ``[Figure](#name)``; unique in the page.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "corea"}), warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes; that is no reason to fail
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawing.savefig(
            buffer, format="svg", bbox_inches="tight", metadata={"Date": None}, transparent=True
        )
    plt.close(drawing)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Html(
        f'<figure class="corea-figure"{_named(name)}>'
        f'<img alt="{html.escape(visible(alt or caption))}" '
        f'src="data:image/svg+xml;base64,{data}" style="background: #fff">'
        f"<figcaption>{as_html(caption)}</figcaption></figure>"
    )


@dataclass(frozen=True, repr=False)
class Interactive:
    """A captioned plotly figure that works offline, in the book and in JupyterLab.

    In the book ``corea.js`` draws it, late, with the book's own plotly and in the colours of the
    theme; a figure whose ``layout.meta`` has ``stops`` gets a slider of the browser's own, and what
    each stop says stands below it. JupyterLab renders the plotly mimetype. Never put a name into
    ``drawing`` that did not pass through :func:`as_plotly`.
    """

    drawing: go.Figure
    caption: str
    element_id: str  # unique in the page; prose links to it
    alt: str = ""  # what is to be seen; the caption where it is empty

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        content = json.loads(self.drawing.to_json())
        meta = content["layout"].get("meta") or {}
        dropped = {"meta", "template"}
        if meta:  # the page has them outside of the drawing
            dropped |= {"title", "sliders", "height", "legend", "margin"}
        layout = {k: value for k, value in content["layout"].items() if k not in dropped}
        stops = meta.get("stops", [])
        shown = {"data": content["data"], "layout": layout, "stops": stops, "dark": {**DARK}}
        # "</script>" inside a string would end the script element
        data = json.dumps(shown).replace("<", "\\u003c")
        about = html.escape(visible(self.alt or self.caption))
        return {
            "text/html": (
                f'<figure class="corea-figure" id="{html.escape(self.element_id)}">'
                f"{self._slider(meta) if stops else ''}"
                f'<div class="corea-interactive" role="img" aria-label="{about}"></div>'
                f'<script type="application/json">{data}</script>'
                f"<figcaption>{as_html(self.caption)}</figcaption></figure>"
            ),
            "application/vnd.plotly.v1+json": content,
            "text/plain": visible(self.caption),
        }

    def _slider(self, meta: Mapping[str, Any]) -> str:
        stops, active = meta["stops"], meta["active"]
        text, name = stops[active]["text"], html.escape(f"{self.element_id}-slider")
        return (
            f'<p class="corea-heading">{as_html(html.unescape(meta["heading"]))}</p>'
            f'<label class="corea-slider" for="{name}">{as_html(meta["label"])} '
            f'<input id="{name}" type="range" min="0" max="{len(stops) - 1}" step="1" '
            f'value="{active}" autocomplete="off" aria-valuetext="{html.escape(text)}"></label>'
            f'<output class="corea-readout" for="{name}">{as_html(text)}</output>'
        )


def folded(summary: str, *parts: Html) -> Html:
    """Parts of a page that are there when they are asked for, and on paper.

    Example:
        >>> print(folded("More", paragraphs("It is so.")).data.splitlines()[1])
        <p class="corea-reading">It is so.</p>
    """
    inside = "\n".join(part.data for part in parts)
    return Html(
        # a reader's JupyterLab would show no triangle
        '<details class="corea-folded"><summary style="display: list-item; '
        f'list-style: revert; cursor: pointer">{as_html(summary)}</summary>\n{inside}\n</details>'
    )


def provenance_table(facts: Mapping[str, str]) -> Html:
    """The provenance of a page, as its last table."""
    import pandas as pd

    return folded(
        "Provenance: what is needed to make this page again",
        table(pd.DataFrame({"field": list(facts), "value": list(facts.values())}), "Provenance"),
    )
