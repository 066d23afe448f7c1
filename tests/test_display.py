import base64
import json
import re
import socket
from html import unescape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from corea.book import display, figures
from corea.book.provenance import provenance
from corea.metrics.calibration import reliability_curve, risk_coverage_curve
from corea.metrics.cascade import at_threshold, deferral_curve, oracle_confidence, random_deferral
from corea.metrics.intervals import Interval

HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror=alert(1)>",
    "</div></table></script>",
    r"$\href{javascript:alert(1)}{x}$ \(a\) \[b\]",
    "**bold** [link](javascript:alert(1)) # head",
    "\x1b[31mred\x1b[0m\x07",
    "&lt;b&gt;",
    "‮right-to-left",
    "{braces} {0} {x!r}",
    "{x",
    r"$x$ and $\frac{1}{2}$ \unknown",
    "_underscore_ *star* `tick` & <i>",
    "%{x} %{meta[0]}",
    "two\nlines\tand\x00nothing",
]


def text_of(html):
    """What a browser shows of HTML, near enough: tags removed, entities decoded."""
    return unescape(re.sub(r"<[^>]*>", "", html))


@pytest.mark.parametrize("text", HOSTILE)
def test_strangers_text_is_shown_as_text(text):
    shown = [
        display.as_html(text),
        display.table(pd.DataFrame({text: [text]}), text).data,
        display.reading("{found}", found=text).data,
        display.paragraphs(text).data,
    ]
    for html in shown:
        assert "<script" not in html
        assert "<img" not in html
        assert "\x1b" not in html
        assert display.visible(text) in text_of(html)
        # no MathJax delimiter survives: every $ and backslash is alone in an element
        assert "$" not in html.replace("<span>$</span>", "")
        assert "\\" not in html.replace("<span>\\</span>", "")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_is_shown_and_means_the_same(text):
    """What a browser makes of the page is the text itself, invisible characters made visible."""
    for html in (
        display.as_html(text),
        display.as_plotly(text),
        display.paragraphs(text).data,
        display.reading("{found}", found=text).data,
        display.table(pd.DataFrame({"a": [text]}), "c", longest=80).data,
    ):
        assert display.visible(text) in text_of(html)
        html.encode()


@given(st.text(), st.integers(3, 30))
def test_short_keeps_both_ends(text, limit):
    shown = display.short(text, limit)
    assert len(shown) <= limit
    if len(text) <= limit:
        assert shown == text
    else:
        middle = limit - 1 - (limit - 1) // 2
        assert shown[middle] == "…"
        assert text.startswith(shown[:middle])
        assert text.endswith(shown[middle + 1 :])


def test_long_cells_and_headers_lose_their_middle():
    frame = pd.DataFrame({"h" * 9000: ["c" * 9000], ("a", "b" * 9000): ["d"]})
    assert len(display.table(frame, "caption").data) < 8000
    assert len(display.table(frame, "caption", longest=20).data) < 600
    assert frame.iloc[0, 0] == "c" * 9000


def test_attributes_of_a_figure_are_escaped():
    html = display.figure(plt.figure(), '"><script>x</script>').data
    assert "<script" not in html
    assert 'alt="&quot;&gt;&lt;script' in html


def test_reading_fills_and_escapes_its_own_text():
    html = display.reading("a < b: {x:.1f}", "{{}} {y}", x=0.25, y="<i>").data
    assert html == (
        '<p class="corea-reading">a &lt; b: 0.2</p>\n<p class="corea-reading">{} &lt;i&gt;</p>'
    )
    with pytest.raises(KeyError, match="z"):
        display.reading("{z}")


def test_table_formats_missing_and_numbers():
    frame = pd.DataFrame(
        {"name": ["a", None], "x": [0.12345, np.nan], "n": pd.array([1, None], "Int64")}
    )
    html = display.table(frame, "caption", formats={"x": ".1f"}).data
    assert (
        '<td class="corea-name">a</td><td class="corea-number">0.1</td><td class="corea-number">1</td>'
        in html
    )
    assert html.count("–") == 3
    with pytest.raises(KeyError, match=r"formats for columns that are not shown: \['y'\]"):
        display.table(frame, "caption", formats={"y": ".1f"})


def test_table_shows_an_interval_on_two_lines_and_a_named_index():
    interval = Interval(0.5, 0.25, 0.75)
    frame = pd.DataFrame({"x": [interval, None]}, index=pd.Index(["a", "b"], name="key"))
    html = display.table(frame, "caption").data
    assert '<th>key</th><th class="corea-number">x</th>' in html
    assert '<td class="corea-number">0.500<br><small>[0.250, 0.750]</small></td>' in html
    assert '<td class="corea-number">–</td>' in html


def test_figures_are_svg_images_and_reproducible():
    def drawn():
        drawing = plt.figure()
        drawing.gca().plot([0, 1])
        return display.figure(drawing, "caption").data

    assert drawn() == drawn()
    assert not plt.get_fignums()
    data = drawn().split("base64,")[1].split('"')[0]
    assert b"<svg" in base64.b64decode(data)


def test_interactive_figure_cannot_be_escaped_from():
    drawing = go.Figure().update_layout(title=display.as_plotly("</script><script>x</script>"))
    drawing.add_scatter(x=[0], y=[0], name="</script><b>")  # even unescaped, it stays a string
    bundle = display.Interactive(drawing, "<i>", element_id="one")._repr_mimebundle_()
    html = bundle["text/html"]
    assert html.count("<script") == html.count("</script>") == 1  # and that holds data
    assert '<script type="application/json">' in html
    assert "https://" not in html
    assert json.dumps(bundle["application/vnd.plotly.v1+json"])


@pytest.mark.parametrize("name", [*HOSTILE, "n" * 20_000])
def test_figures_draw_any_name(name):
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 11, 200) / 10
    correct = rng.random(200) < confidence
    curve = deferral_curve(confidence, correct, ~correct, 1, 10)
    values = pd.DataFrame(
        {"s": [name], "d": [name], "estimate": [0.5], "low": [0.4], "high": [0.6]}
    )
    line = random_deferral(curve, [0, 1])
    points = values.assign(
        system=name, metric="m", threshold=0.5, value=0.5, together=True,
        **{f"{n}{end}": 0.5 for n in ("cost", "pass_at_1") for end in ("", "_low", "_high")},
    )  # fmt: skip
    for drawing in (
        figures.plot_reliability({name: reliability_curve(confidence, correct)}),
        figures.plot_risk_coverage({name: risk_coverage_curve(confidence, correct)}),
        figures.plot_deferral({name: curve}, references={name: (1, 0.5)}, lines={name: line}),
        figures.plot_intervals(values, label="s", panel="d", measure="x"),
        figures.plot_shares(values, label="s", value="estimate"),
        figures.plot_reports({name: {name: line["cost"], "b": line["cost"]}}, up="x"),
        figures.plot_cost_accuracy(points, row="d", column="s"),
        figures.plot_threshold_curves(points, labels={"m": "x"}, banded=[name]),
        figures.plot_course(
            values.assign(step=0, mean=0.5, min=0.4, max=0.6),
            panel="s",
            label="d",
            labels={name: name},
        ),
    ):
        assert isinstance(drawing, Figure)
        assert "base64" in display.figure(drawing, name).data
        texts = [text for text in drawing.findobj(Text) if text.get_text()]
        # what is parsed as mathematics is matplotlib's own: numbers on the axes
        own = [text.get_text() for text in texts if text.get_parse_math() or text.get_usetex()]
        assert not [text for text in own if not re.fullmatch("[-−0-9.%]+", text)]
        # the name is there, in a legend too, and the panel's name is part of its title
        assert any(display.as_label(name) == text.get_text() for text in texts) or any(
            text.get_text().endswith(name[-20:]) for text in texts
        )
        assert max(len(text.get_text()) for text in texts) < 600


def test_panels_beside_each_other_share_a_scale_where_asked():
    values = pd.DataFrame({"s": "L1", "d": list("abcd"), "estimate": [0.1, 5.0, 20.0, 90.0]})
    values = values.assign(low=values["estimate"] - 0.1, high=values["estimate"] + 0.1)
    drawing = figures.plot_intervals(values, label="s", panel="d", measure="", shared=True)
    one, two, three, four = (axes.get_xlim() for axes in drawing.axes)
    assert one == two
    assert three == four
    assert one != three
    plt.close(drawing)


def test_names_that_look_alike_when_short_stay_apart():
    shares = pd.DataFrame({"s": ["a" * 99, "a" * 98], "v": [0.4, 0.6]})
    drawing = figures.plot_shares(shares, label="s", value="v")
    assert [bar.get_width() for bar in drawing.axes[0].patches] == [0.4, 0.6]
    plt.close(drawing)


def test_every_reference_and_line_is_drawn():
    curve = deferral_curve([0.9, 0.2], [1, 0], [1, 1], 1, 10)
    line = random_deferral(curve, [0, 1])
    references = {f"point {i}": (i, 0.5) for i in range(6)}
    lines = {f"line {i}": line for i in range(5)}
    drawing = figures.plot_deferral({"mine": curve}, references=references, lines=lines)
    labels = [text.get_text() for text in drawing.legends[0].get_texts()]
    plt.close(drawing)
    assert set(labels) == {"mine", *references, *lines}


def test_explorer_says_the_exact_curve():
    rng = np.random.default_rng(0)
    confidence = rng.random(500)
    small, large = rng.random(500) < confidence, rng.random(500) < 0.8
    curve = deferral_curve(confidence, small, large, 1, 10)
    oracle = deferral_curve(oracle_confidence(small, large), small, large, 1, 10)
    drawing = figures.threshold_explorer(
        curve,
        small=(1, small.mean()),
        large=(10, large.mean()),
        oracle=oracle,
        title="<script>$x$",
    )
    meta, steps = drawing.layout.meta, drawing.layout.sliders[0].steps
    assert len(meta["stops"]) == len(steps) == pytest.approx(figures.MOST_STOPS, abs=1)
    for step, stop in zip(steps, meta["stops"], strict=True):
        row = curve[(curve["cost"] == stop["x"][0]) & (curve["pass_at_1"] == stop["y"][0])].iloc[-1]
        last = row["threshold"] == curve["threshold"].max()
        assert last or re.match(rf"threshold .*{row['threshold']:.2f}[:( ]", stop["text"])
        assert f"pass@1 {row['pass_at_1']:.1%}" in stop["text"]
        assert f"saving {1 - row['cost'] / 10:+.1%}" in stop["text"]
        moved, said, _ = step.args  # JupyterLab's slider
        assert moved == {"x": [stop["x"]], "y": [stop["y"]]}
        assert f"saving {1 - row['cost'] / 10:+.1%}" in said["title.text"]
        assert "<script" not in said["title.text"]
        assert "$" not in said["title.text"]
    # it starts at the paper's threshold
    start = at_threshold(curve, large.mean())
    assert meta["stops"][meta["active"]]["x"] == [start["cost"]]
    assert meta["active"] == drawing.layout.sliders[0].active
    assert "the paper's" in meta["stops"][meta["active"]]["text"]
    html = display.Interactive(drawing, "c", element_id="one")._repr_mimebundle_()["text/html"]
    assert f'max="{len(steps) - 1}" step="1" value="{meta["active"]}"' in html
    assert html.count("<script") == 1


def test_the_explorer_has_a_stop_a_result():
    confidence, small = [0.2, 0.2, 0.5, 0.9], [0, 0, 1, 1]
    curve = deferral_curve(confidence, small, [1, 1, 1, 1], 1, 10)
    drawing = figures.threshold_explorer(
        curve, small=(1, 0.5), large=(10, 1.0), oracle=curve, title="t"
    )
    texts = [stop["text"].split(":")[0] for stop in drawing.layout.meta["stops"]]
    assert [text.split(" (")[0] for text in texts] == [
        "threshold up to 0.20",
        "threshold above 0.20 up to 0.50",
        "threshold above 0.50 up to 0.90",
        "threshold above 0.90",
    ]


def test_colors_belong_to_methods():
    one = figures.colors(["RLVR", "mine"])
    other = figures.colors(["theirs", "mine", "Base", "RLVR"])
    assert one["RLVR"] == other["RLVR"]
    assert len(set(other.values())) == 4
    assert len(figures.colors([f"s{i}" for i in range(25)])) == 25


def test_provenance_names_no_machine_or_place():
    facts = provenance("laptop", 3, sources=["a.csv"], packages=["numpy", "no-such-package"])
    assert facts["seed"] == "3"
    assert facts["numpy"] == np.__version__
    assert facts["no-such-package"] == "not installed"
    said = " ".join(facts.values())
    for private in (socket.gethostname(), str(Path.cwd()), str(Path.home())):
        assert private not in said
