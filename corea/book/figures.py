"""Figures: one look for the whole book.

A method has one colour everywhere; references (the diagonal, the oracle, always
small, always large) are grey and dashed. ``plot_*`` functions draw data that the
metric and cascade modules prepared, and compute nothing.

Text has 9.5 points or more and a figure two panels beside each other at most where that is for it
to say: a page shows it down to four fifths of its size before it scrolls, so that text has ten
pixels on a telephone, and most figures fit there.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from corea.book.colours import GREY, PAIRS, REFERENCE_GREY, STRONG_GREY
from corea.book.display import as_label, as_plotly, short

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE: tuple[str, ...] = tuple(light for light, _ in PAIRS)
REFERENCE: Mapping[str, Any] = {"color": REFERENCE_GREY, "linestyle": "--", "linewidth": 1}
WIDE = 4.4  # inches: what a telephone shows without scrolling
PANEL = 2.2  # inches: two of these
SMALLEST = 9.5  # points
MOST_STOPS = 200
FEW = 5  # answers in a bin, below which their accuracy says little
_MARKS = ("circle", "square", "diamond", "triangle-up", "cross")
_DASHES: tuple[Any, ...] = ((0, (1, 1)), (0, (5, 2)), "-.")

# A method's place in the palette, under each of the names the papers and sources give it. There
# are more methods than colours: those that share one are never in the same figure.
_METHODS = (
    ("Base", "SLM", "SLM-Verb"),
    ("RLVR", "RLVR-SLM", "RLVR-SLM-Verb", "GRPO"),
    ("RLCR", "Brier", "Brier-SLM", "Brier-SLM-Verb", "Brier-GRPO"),
    ("L1", "L1-SLM", "L1-SLM-Verb", "COREA", "Ours", "CA-GRPO"),
    ("RLVR-Classifier", "RLVR-SLM-Probe", "Probe", "KL", "KL-SLM", "CA-GRPO, two-stage"),
    ("Answer-Prob", "RLVR-SLM-AvgProb", "SLM-AvgProb", "L2", "L2-SLM", "CA-GRPO, log score"),
    ("Router+RLVR-SLM", "Router", "SFT", "Sample_L1", "Sample_L1-SLM"),
    ("Baseline LLM",),
    ("Sample_KL", "Sample_KL-SLM", "GRPO, longer", "COREA-Expected", "L1-SLM-Expected"),
)
_KNOWN = {name: place for place, names in enumerate(_METHODS) for name in names}


@contextmanager
def style() -> Iterator[None]:
    """The look of static figures, as a context to draw in or a decorator of what draws.

    Text is never parsed as mathematics, since names come from strangers' files.
    """
    look: Any = {**mpl.style.library["seaborn-v0_8-whitegrid"]}
    names = ("axes.titlesize", "axes.labelsize", "figure.titlesize", "font.size")
    look |= dict.fromkeys((*names, "legend.title_fontsize"), 10)
    look |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), SMALLEST)
    look |= {
        "lines.linewidth": 1.2,
        "lines.markersize": 4.8,
        "patch.edgecolor": "white",
        "patch.force_edgecolor": True,
        "patch.linewidth": 0.8,
        "xtick.major.pad": 8,
        "ytick.major.pad": 8,
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        "legend.frameon": False,
    }
    with mpl.rc_context(look):
        yield


def panels(
    n_rows: int, n_columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure of that size in inches, and its axes as a table."""
    return plt.subplots(n_rows, n_columns, figsize=(width, height), squeeze=False, **options)


def wrapped(
    count: int, columns: int, width: float, height: float, *, below: str = "", **options: Any
) -> tuple[Figure, NDArray[Any], list[Axes]]:
    """A figure of ``count`` panels of that size, row by row; all its axes, and those to draw in.

    What ``below`` says stands below the lowest of each column.
    """
    columns = min(columns, count)
    n_rows = -(-count // columns)
    drawing, grid = panels(n_rows, columns, width * columns, height * n_rows, **options)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for axes in grid.flat[:count][-columns:]:  # the lowest of their columns
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(below)
    return drawing, grid, list(grid.flat[:count])


def room(names: Iterable[object]) -> float:
    """Inches that names need beside what is drawn, beyond those that all figures have."""
    return 0.08 * max(0, 0, *(len(as_label(name)) - 16 for name in names))


def legend_below(drawing: Figure, axes: Iterable[Axes], ncols: int = 2) -> None:
    """One legend below a figure, of all that is labelled in its panels."""
    labelled: dict[str, Any] = {}
    for one in axes:
        handles, names = one.get_legend_handles_labels()
        labelled |= dict(zip(names, handles, strict=True))
    drawing.legend(labelled.values(), labelled, loc="outside lower center", ncols=ncols)


def label_edges(
    grid: NDArray[Any],
    *,
    columns: Iterable[object] = (),
    rows: Iterable[object] = (),
    below: str = "",
) -> None:
    """Name the columns of panels above them, the rows beside them, and the axis below them."""
    for axes, name in zip(grid[0], columns, strict=False):
        axes.set_title(as_label(name))
    for axes, name in zip(grid[:, 0], rows, strict=False):
        axes.set_ylabel(as_label(name))
    for axes in grid[-1] if below else ():
        axes.set_xlabel(below)


def colors(systems: Iterable[str]) -> dict[str, str]:
    """A colour for each system: the method's own where it is known.

    Example:
        >>> colors(["Base", "mine"])["Base"] == colors(["SLM"])["SLM"]
        True
    """
    names = list(dict.fromkeys(systems))
    taken = {_KNOWN[name] for name in names if name in _KNOWN}
    free = [i for i in range(len(PALETTE)) if i not in taken] or list(range(len(PALETTE)))
    strangers = [name for name in names if name not in _KNOWN]
    places = {name: free[i % len(free)] for i, name in enumerate(strangers)}
    return {name: PALETTE[_KNOWN.get(name, places.get(name, 0))] for name in names}


@style()
def plot_reliability(curves: Mapping[str, pd.DataFrame], *, columns: int = 2) -> Figure:
    """Reliability diagrams, one a system, with the number of answers in each bin below.

    A bin with fewer than :data:`FEW` answers is a hollow mark through which no line goes.
    """
    shade = colors(curves)
    columns = min(columns, len(curves))
    n_rows = -(-len(curves) // columns)
    size, ratios = (PANEL * columns, 3.1 * n_rows), [3, 1] * n_rows
    drawing, grid = panels(2 * n_rows, columns, *size, height_ratios=ratios, sharex=True)
    for axes in grid.flat:
        axes.set_visible(False)
    for i, (name, curve) in enumerate(curves.items()):
        row, column = divmod(i, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.set_visible(True)
        below.set_visible(True)
        _draw_reliability(above, curve, shade[name])
        width = (curve["upper"] - curve["lower"]).clip(lower=0.01)
        below.bar(curve["lower"], curve["count"], width, align="edge", color=shade[name])
        above.set_title(as_label(name))
        above.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        above.tick_params(labelbottom=False)
        below.set_xlabel("confidence")
        below.tick_params(labelbottom=True)
        if column == 0:
            above.set_ylabel("accuracy")
            below.set_ylabel("answers")
    return drawing


def _draw_reliability(axes: Axes, curve: pd.DataFrame, color: str) -> None:
    filled = curve[curve["count"] > 0]
    enough = filled["count"] >= FEW
    axes.plot([0, 1], [0, 1], **REFERENCE)
    axes.vlines(
        filled["confidence"], filled["accuracy_low"], filled["accuracy_high"], color=color, lw=1
    )
    axes.plot(*filled.loc[enough, ["confidence", "accuracy"]].T.to_numpy(), "o-", ms=4, color=color)
    few = filled.loc[~enough, ["confidence", "accuracy"]].T.to_numpy()
    axes.plot(*few, "o", ms=4, color=color, markerfacecolor="white")


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> bool:
    """Names beside the ends of their lines; false, and none, where they would lie on each other.

    A line's end is (x, y, colour). Names may move by half of their height at most.
    """
    low, high = axes.get_ylim()
    drawing = axes.get_figure(root=True)
    assert drawing is not None
    drawing.draw_without_rendering()
    inches = axes.get_window_extent().height / drawing.dpi
    gap = (high - low) * 1.15 * SMALLEST / 72 / inches
    order = sorted(ends, key=lambda name: ends[name][1])
    places = np.array([ends[name][1] for name in order])
    for _ in range(50):
        for i in range(len(places) - 1):
            if (short_of := gap - (places[i + 1] - places[i])) > 0:
                places[i : i + 2] += [-short_of / 2, short_of / 2]
    if any(abs(place - ends[name][1]) > gap for name, place in zip(order, places, strict=True)):
        return False
    for name, place in zip(order, places, strict=True):
        x, y, color = ends[name]
        axes.annotate(
            as_label(name), (x, y), (8, (place - y) / gap * 1.15 * SMALLEST), fontsize=SMALLEST,
            textcoords="offset points", va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 1, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
    return True


@style()
def plot_risk_coverage(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Error rate among the answers given against the share of questions answered."""
    shade = colors(curves)
    drawing, axes = plt.subplots(figsize=(WIDE + room(curves), 3.0))
    for name, curve in curves.items():
        look: dict[str, Any] = {"color": shade[name], "label": as_label(name), "markersize": 4}
        axes.plot(curve["coverage"], curve["risk"], "o-" if len(curve) <= 30 else "-", **look)
    axes.set(xlabel="share of questions answered", ylabel="error rate of those")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(bottom=0)
    ends = {n: (*c[["coverage", "risk"]].iloc[-1], shade[n]) for n, c in curves.items()}
    if not _label_ends(axes, ends):
        drawing.legend(loc="outside lower center", ncols=2)
    return drawing


@style()
def plot_deferral(
    curves: Mapping[str, pd.DataFrame],
    *,
    references: Mapping[str, tuple[float, float]],
    lines: Mapping[str, pd.DataFrame],
) -> Figure:
    """Pass@1 against cost: a line a system, references grey."""
    shade = colors(curves)
    drawing, axes = plt.subplots(figsize=(WIDE, 3.6))
    # cycled, so that none is left out however many there are
    for dashes, (name, line) in zip(cycle(_DASHES), lines.items(), strict=False):
        look = {**REFERENCE, "linestyle": dashes, "label": as_label(name)}
        axes.plot(line["cost"], line["pass_at_1"], **look)
    for name, curve in curves.items():
        axes.plot(curve["cost"], curve["pass_at_1"], "-", color=shade[name], label=as_label(name))
        few = curve if len(curve) <= 30 else curve.iloc[:0]
        axes.plot(few["cost"], few["pass_at_1"], "o", markersize=4, color=shade[name])
    for marker, (name, (cost, accuracy)) in zip(cycle("sD^v"), references.items(), strict=False):
        axes.plot(cost, accuracy, marker, color=STRONG_GREY, markersize=6, label=as_label(name))
    axes.set(xlabel="mean cost of a question", ylabel="pass@1")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(drawing, [axes])
    return drawing


def threshold_explorer(
    curve: pd.DataFrame,
    *,
    small: tuple[float, float],
    large: tuple[float, float],
    oracle: pd.DataFrame,
    title: str,
) -> go.Figure:
    """A slider over the results that thresholds give: pass@1, cost, deferral rate and saving.

    It has a stop a result, :data:`MOST_STOPS` of them at most, and starts at that of the paper's
    threshold; ``small`` and ``large`` are (mean cost, pass@1) alone. What a page of the book makes
    of it (:class:`corea.book.display.Interactive`) stands in ``layout.meta``.
    """
    import plotly.graph_objects as go

    large_cost, large_pass_at_1 = large
    rows, active = _stops(curve, large_pass_at_1)

    def readout(position: int) -> str:
        row = rows[position]
        low, high = (f"{row[end]:.2f}" for end in ("above", "threshold"))
        span = f"above {low} up to {high}" if low != high else high
        if position == len(rows) - 1:
            span = f"above {low}"
        elif position == 0:
            span = f"up to {high}"
        paper = f" (the paper's, {large_pass_at_1:.3f}, is one of these)"
        return (
            f"threshold {span}{paper if position == active else ''}: "
            f"pass@1 {row['pass_at_1']:.1%}, "
            f"cost {_cost(row['cost'])}, deferred {row['deferral_rate']:.1%}, "
            f"saving {1 - row['cost'] / large_cost:+.1%}; "
            f"pass@1 against always large {100 * (row['pass_at_1'] - large_pass_at_1):+.1f} points"
        )

    def point(position: int) -> tuple[list[float], list[float]]:
        return [float(rows[position]["cost"])], [float(rows[position]["pass_at_1"])]

    drawing = go.Figure(
        [
            go.Scatter(
                x=oracle["cost"], y=oracle["pass_at_1"], name="oracle", mode="lines",
                line={"color": GREY, "dash": "dot"}, hoverinfo="skip",
            ),
            go.Scatter(
                x=curve["cost"].iloc[[0, -1]], y=curve["pass_at_1"].iloc[[0, -1]], mode="lines",
                name="random deferral", line={"color": GREY, "dash": "dash"}, hoverinfo="skip",
            ),
            go.Scatter(
                x=curve["cost"], y=curve["pass_at_1"], name="cascade", mode="lines+markers",
                line={"color": PALETTE[0]}, marker={"size": 5},
                customdata=np.column_stack([curve["threshold"], curve["deferral_rate"]]),
                hovertemplate="threshold %{customdata[0]:.3f}<br>deferred %{customdata[1]:.1%}"
                "<br>pass@1 %{y:.1%}<br>cost %{x:,.3~r}<extra></extra>",
            ),
            go.Scatter(
                x=[small[0], large_cost], y=[small[1], large_pass_at_1],
                name="always small, always large", mode="markers",
                marker={"color": STRONG_GREY, "size": 9, "symbol": ["square", "diamond"]},
                hovertemplate="pass@1 %{y:.1%}<br>cost %{x:,.3~r}<extra></extra>",
            ),
            go.Scatter(
                x=point(active)[0], y=point(active)[1], name="this threshold", mode="markers",
                marker={"color": PALETTE[1], "size": 15, "line": {"color": STRONG_GREY}},
                hoverinfo="skip",
            ),
        ]
    )  # fmt: skip
    stops = [{"x": point(i)[0], "y": point(i)[1], "text": readout(i)} for i in range(len(rows))]
    labels = [f"{row['threshold']:.2f}" for row in rows]
    drawing.update_layout(
        xaxis={"title": "mean cost of a question", "rangemode": "tozero"},
        yaxis={"title": "pass@1", "tickformat": ".0%"},
    )
    return _with_slider(drawing, title, "Threshold", stops, labels, active)


def _with_slider(
    drawing: go.Figure,
    title: str,
    label: str,
    stops: list[dict[str, Any]],
    labels: Iterable[str],
    active: int,
) -> go.Figure:
    """A drawing whose last trace is moved: JupyterLab's slider, and what a page makes of it.

    A stop has ``x`` and ``y`` of that trace and the ``text`` that is said of it.
    """
    heading = as_plotly(short(title, 120))
    titles = [f"{heading}<br>{stop['text'].replace(', cost', ',<br>cost')}" for stop in stops]
    steps = [
        {
            "method": "update",
            "label": text,
            "args": [
                {"x": [stop["x"]], "y": [stop["y"]]},
                {"title.text": above},
                [len(drawing.data) - 1],
            ],
        }
        for stop, text, above in zip(stops, labels, titles, strict=True)
    ]
    drawing.update_layout(
        template="plotly_white",
        # three lines above as many rows of the legend, on a narrow page
        title={
            "text": titles[active], "font": {"size": 14}, "x": 0.02, "y": 0.97, "yanchor": "top",
        },
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
        margin={"t": 170, "l": 70, "r": 20},
        height=580,
        sliders=[
            {
                "active": active, "steps": steps, "pad": {"t": 45},
                "currentvalue": {"prefix": f"{label.lower()} "},
            }
        ],
        meta={"heading": heading, "label": label, "active": active, "stops": stops},
    )  # fmt: skip
    return drawing


def tax_explorer(
    points: pd.DataFrame, lines: Mapping[float, pd.DataFrame], router: pd.DataFrame, *, title: str
) -> go.Figure:
    """Cascades in the plane of price ratio and share deferred, and a slider over lines of one cost.

    ``points`` has ``kind, name, price_ratio, deferred, cost``; ``lines`` are by their cost, a share
    of the large model's alone, among them 1, with ``price_ratio`` and ``deferred``, as the line
    ``router`` of what breaks even behind one. What a page makes of it is as for
    :func:`threshold_explorer`.
    """
    import plotly.graph_objects as go

    drawing = go.Figure()
    kinds = points["kind"].unique()
    for shade, mark, kind in zip(PALETTE[1:], _MARKS, kinds, strict=False):
        rows = points[points["kind"] == kind]
        drawing.add_scatter(
            x=rows["price_ratio"], y=rows["deferred"], name=as_plotly(kind), mode="markers",
            marker={"color": shade, "symbol": mark, "size": 9},
            customdata=np.column_stack([rows["name"].map(as_plotly), rows["cost"]]),
            hovertemplate="%{customdata[0]}<br>price ratio %{x:.1f}, deferred %{y:.0%}"
            "<br>cost %{customdata[1]:.0%} of the large model's<extra></extra>",
        )  # fmt: skip
    drawing.add_scatter(
        x=router["price_ratio"], y=router["deferred"], name="breaks even behind a router",
        mode="lines", line={"color": GREY, "dash": "dash"}, hoverinfo="skip",
    )  # fmt: skip
    stops = []
    for cost, line in lines.items():
        below = int((points["cost"] <= cost).sum())
        at = dict(zip(*_columns(line), strict=True))
        spent = ", ".join(
            f"{ratio:g} times the price up to {at[ratio]:.0%} deferred"
            for ratio in (2.0, 5.0, 20.0)
            if ratio in at
        )
        x, y = (values.tolist() for values in _columns(line))
        text = f"cost {cost:.0%} of the large model's: {spent or 'no price ratio shown'}; "
        stops.append({"x": x, "y": y, "text": f"{text}{below} of {len(points)} cost no more"})
    active = list(lines).index(1.0)
    drawing.add_scatter(
        x=stops[active]["x"], y=stops[active]["y"], name="this cost", mode="lines",
        line={"color": PALETTE[0], "width": 3}, hoverinfo="skip",
    )  # fmt: skip
    drawing.update_layout(
        xaxis={
            "title": "large model's cost over the small side's", "type": "log",
            "tickvals": [1, 2, 5, 10, 20, 50, 100, 200],
        },
        yaxis={"title": "share deferred", "tickformat": ".0%", "range": [0, 1.02]},
    )  # fmt: skip
    labels = [f"{cost:.0%}" for cost in lines]
    return _with_slider(drawing, title, "Cost", stops, labels, active)


def _columns(line: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return line["price_ratio"], line["deferred"]


def _stops(curve: pd.DataFrame, threshold: float) -> tuple[list[dict[Hashable, Any]], int]:
    """Results of a curve with the thresholds that give them, and which has that threshold.

    Each holds above the one threshold and up to the other.
    """
    rows = curve.assign(above=curve["threshold"].shift(fill_value=0.0))
    same = (rows[["cost", "pass_at_1", "deferral_rate"]].diff() == 0).all(axis=1)
    first = rows["above"].where(~same).ffill()
    rows = rows.assign(above=first)[~same.shift(-1, fill_value=False)]
    active = int((rows["threshold"] < threshold).sum())
    chosen = {round(x) for x in np.linspace(0, len(rows) - 1, min(len(rows), MOST_STOPS))}
    places = sorted(chosen | {active})
    return rows.iloc[places].to_dict("records"), places.index(active)


def _cost(cost: float) -> str:
    """A cost in input tokens, or in queries of the small model, which are few."""
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.2f}"


@style()
def plot_intervals(
    values: pd.DataFrame,
    *,
    label: str,
    panel: str,
    measure: str,
    shared: bool = False,
    reference: float | None = None,
) -> Figure:
    """Estimates with their intervals: a panel a group, a row a system.

    Where ``shared``, the two beside each other have one scale; with a ``reference``, a line in
    all panels, all have.
    """
    names = list(values[label].unique())
    groups = list(values[panel].unique())
    shade = colors(names)
    columns = min(2, len(groups))
    size = WIDE / 2 + room(names) / columns, 0.28 * len(names) + 0.8
    share: dict[str, Any] = {"sharey": True}
    share["sharex"] = reference is not None or ("row" if shared else False)
    drawing, _, used = wrapped(len(groups), columns, *size, below=measure, **share)
    for axes, group in zip(used, groups, strict=True):
        axes.set_title(as_label(group))
        if reference is not None:
            axes.axvline(reference, **REFERENCE)
        for row in values[values[panel] == group].to_dict("records"):
            name, height = row[label], names.index(row[label])
            axes.plot([row["low"], row["high"]], [height] * 2, color=shade[name], linewidth=2)
            axes.plot(row["estimate"], height, "o", color=shade[name])
        axes.set_yticks(range(len(names)), [as_label(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
    return drawing


@style()
def draw_corea() -> Figure:
    """Paper A's Figure 1 in our words: training of the small model, and the cascade."""
    drawing, axes = plt.subplots(figsize=(WIDE, 3.9))
    axes.set(xlim=(-0.4, 45.4), ylim=(0.5, 39))
    axes.set_axis_off()
    shades = {"plain": STRONG_GREY, "small": PALETTE[0], "large": PALETTE[1]}
    shape = "round,pad=0,rounding_size=0.8"

    def box(x: float, y: float, width: float, text: str, shade: str = "plain") -> None:
        look: dict[str, Any] = {"edgecolor": shades[shade], "facecolor": "none"}
        axes.add_patch(FancyBboxPatch((x, y), width, 5, shape, linewidth=1.3, **look))
        axes.text(x + width / 2, y + 2.5, text, ha="center", va="center", fontsize=SMALLEST)

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
        look = {"arrowstyle": "-|>", "color": STRONG_GREY, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", end, start, arrowprops=look)
        place = (start[0] + end[0]) / 2 + 0.8, (start[1] + end[1]) / 2
        axes.text(*place, text, va="center", fontsize=SMALLEST)

    for y, heading, made in (
        (31, "Training (RLCC)", "G answers, each with\na stated confidence"),
        (12, "Answering (cascade)", "one answer with\na stated confidence c"),
    ):
        axes.text(0, y + 7, heading, va="center", fontsize=10, fontweight="bold")
        box(0, y, 9, "question")
        box(12, y, 11, "small model", "small")
        box(26, y, 18, made, "small")
        arrow((9, y + 2.5), (12, y + 2.5))
        arrow((23, y + 2.5), (26, y + 2.5))
    reward = "right? + format + confidence near\nthe share of the G answers that are right"
    box(12, 22.5, 32, f"reward: {reward}")
    arrow((35, 31), (35, 27.5))
    arrow((17.5, 27.5), (17.5, 31), "GRPO")
    box(26, 1, 18, "the answer stands", "small")
    box(0, 1, 23, "the large model answers", "large")
    arrow((35, 12), (35, 6), "c ≥ threshold")
    arrow((28, 12), (15, 6))
    axes.text(19, 9.6, "c < threshold", ha="right", va="center", fontsize=SMALLEST)
    return drawing


@style()
def plot_reports(
    reports: Mapping[str, Mapping[str, pd.Series]], *, up: str, points: bool = False
) -> Figure:
    """Reports that rewards lead to against the true chance, their index; dashed is the truth."""
    shade = colors(name for lines in reports.values() for name in lines)
    share: dict[str, Any] = {"sharex": True, "sharey": True}
    drawing, grid, used = wrapped(len(reports), 2, PANEL, 2.2, below="true chance", **share)
    for axes, (title, lines) in zip(used, reports.items(), strict=True):
        axes.plot([0, 1], [0, 1], **REFERENCE)
        for mark, (name, line) in zip(cycle("ox" if points else "-"), lines.items(), strict=False):
            look: dict[str, Any] = {"color": shade[name], "label": as_label(name), "markersize": 4}
            axes.plot(line.index, line, mark, **look)
        axes.set_title(as_label(title))
        for scale in (axes.xaxis, axes.yaxis):
            scale.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])
    label_edges(grid, rows=[up] * len(grid))
    if max(map(len, reports.values())) > 1:
        legend_below(drawing, used)
    return drawing


@style()
def plot_savings(found: pd.DataFrame) -> Figure:
    """Cost and accuracy of cascades against their large model alone, with intervals.

    ``found`` has ``cascade``, whose part before a colon names the questions, and as intervals
    ``saving``, a share of the large model's cost, and ``lost``, a share of the questions.
    """
    kinds = found["cascade"].str.partition(":")[0]
    shade = colors(kinds.unique())
    drawing, grid = panels(1, 2, WIDE, 0.27 * (len(found) + len(shade)) + 0.9, sharey=True)
    cost, gain = grid[0]
    labels: list[str] = []
    for kind, cascades in found.groupby(kinds, sort=False):
        labels.append(kind)
        for name, saving, lost in cascades[["cascade", "saving", "lost"]].itertuples(index=False):
            labels.append(name.partition(": ")[2])
            height = len(labels) - 1
            for axes, value, start in ((cost, saving, 100), (gain, lost, 0)):
                ends = [start - 100 * value.high, start - 100 * value.low]
                axes.plot(ends, [height] * 2, color=shade[kind], linewidth=2)
                axes.plot(start - 100 * value.estimate, height, "o", color=shade[kind])
    cost.set_yticks(range(len(labels)), map(as_label, labels))
    for tick in cost.get_yticklabels():
        if tick.get_text() in shade:
            tick.set(fontweight="bold", color=shade[tick.get_text()])
    cost.set_ylim(len(labels) - 0.5, -0.5)
    cost.set_xlim(left=0)
    for axes, place, text in (
        (cost, 100, "cost, % of the\nlarge model's"),
        (gain, 0, "pass@1 gained,\npoints"),
    ):
        axes.axvline(place, **REFERENCE)
        axes.set_xlabel(text)
        axes.grid(visible=False, axis="y")
    return drawing


@style()
def plot_shares(shares: pd.DataFrame, *, label: str, value: str) -> Figure:
    """Shares of a whole as bars, with their percentages."""
    drawing, axes = plt.subplots(figsize=(WIDE + room(shares[label]), 0.32 * len(shares) + 0.7))
    names = [as_label(name) for name in shares[label]]
    bars = axes.barh(range(len(names)), shares[value], height=0.65, tick_label=names)
    axes.bar_label(bars, [f"{share:.1%}" for share in shares[value]], padding=3, fontsize=SMALLEST)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * shares[value].max())
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(visible=False, axis="y")
    return drawing


@style()
def plot_cost_accuracy(points: pd.DataFrame, *, row: str, column: str) -> Figure:
    """Pass@1 against cost, a point a system, with intervals; circles are cascades."""
    rows, columns = list(points[row].unique()), list(points[column].unique())
    shade = colors(points["system"])
    size = PANEL * len(columns), 2.3 * len(rows) + 0.1 * (len(shade) + 1)
    drawing, grid = panels(len(rows), len(columns), *size, sharex=True)
    label_edges(grid, rows=["pass@1 (%)"] * len(rows), below="cost (large = 100)")
    for axes, (high, across) in zip(grid.flat, product(rows, columns), strict=True):
        in_panel = points[(points[row] == high) & (points[column] == across)]
        for at in in_panel.to_dict("records"):
            x, y, look = at["cost"], at["pass_at_1"], {"color": shade[at["system"]]}
            axes.plot([at["cost_low"], at["cost_high"]], [y, y], lw=1, **look)
            axes.plot([x, x], [at["pass_at_1_low"], at["pass_at_1_high"]], lw=1, **look)
            marker = "o" if at["together"] else "s"
            axes.plot(x, y, marker, markersize=5, label=as_label(at["system"]), **look)
        axes.set_title(as_label(f"{across}: {high}"))
        axes.tick_params(labelbottom=True)
    legend_below(drawing, grid.flat)
    return drawing


@style()
def plot_threshold_curves(
    values: pd.DataFrame, *, labels: Mapping[str, str], banded: Collection[str]
) -> Figure:
    """Metrics against the threshold: a panel a metric, a line a system, bands of those named."""
    shade = colors(values["system"])
    size = WIDE + room(shade), 2.3
    drawing, _, used = wrapped(len(labels), 1, *size, below="threshold", sharex=True)
    named = True
    for axes, (metric, label) in zip(used, labels.items(), strict=True):
        part = values[values["metric"] == metric]
        ends = {}
        for name, rows in part.groupby("system", sort=False):
            line = rows.sort_values("threshold")
            color = shade[str(name)]
            look: dict[str, Any] = {"lw": 2.2 if name in banded else 1.4, "label": as_label(name)}
            axes.plot(line["threshold"], line["value"], color=color, **look)
            if name in banded:
                low_high = line["low"], line["high"]
                axes.fill_between(line["threshold"], *low_high, color=color, alpha=0.2, lw=0)
            ends[str(name)] = (*line[["threshold", "value"]].iloc[-1], color)
        axes.set(ylabel=label)
        named = _label_ends(axes, ends) and named
    if not named:
        legend_below(drawing, used)
    return drawing


@style()
def plot_stated(values: pd.DataFrame, *, constant: float) -> Figure:
    """What systems state beside how often they are right: a row a system, which is the index.

    ``values`` holds intervals in the columns ``accuracy`` and ``stated``; ``constant`` is how often
    one answer to every question is right.
    """
    drawing, axes = plt.subplots(figsize=(WIDE + room(values.index), 0.34 * len(values) + 1.0))
    for height, (right, stated) in enumerate(
        zip(values["accuracy"], values["stated"], strict=True)
    ):
        axes.plot([right.estimate, stated.estimate], [height] * 2, color=GREY, linewidth=1)
        axes.plot([right.low, right.high], [height] * 2, color=PALETTE[0], linewidth=2.5)
        axes.plot(right.estimate, height, "o", color=PALETTE[0], label="right" * (not height))
        look: dict[str, Any] = {"color": PALETTE[1], "label": "stated, on average" * (not height)}
        axes.plot(stated.estimate, height, "D", markersize=5, **look)
    axes.axvline(constant, **REFERENCE)
    axes.set_yticks(range(len(values)), [as_label(name) for name in values.index])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=False, axis="y")
    drawing.legend(loc="outside lower center", ncols=2)
    return drawing


@style()
def plot_cascades(
    cascades: Mapping[str, Mapping[str, pd.DataFrame]], *, below: str, columns: int = 2
) -> Figure:
    """Pass@1 of cascades against their cost: a panel a cascade.

    Of each its lines by name, curves of :func:`corea.metrics.cascade.deferral_curve`: the first is
    the cascade's own, with a mark a threshold, the others are grey references, one of a single row
    a mark.
    """
    drawing, grid, used = wrapped(len(cascades), columns, PANEL, 2.3)
    for axes, (title, lines) in zip(used, cascades.items(), strict=True):
        (name, curve), *references = lines.items()
        for dashes, (other, line) in zip(cycle(_DASHES), references, strict=False):
            look: dict[str, Any] = {**REFERENCE, "linestyle": dashes, "label": as_label(other)}
            if len(line) == 1:  # a system, not a curve
                look |= {"linestyle": "", "marker": "D", "markersize": 5, "color": STRONG_GREY}
            axes.plot(line["cost"], line["pass_at_1"], **look)
        look = {"color": PALETTE[0], "markersize": 4, "label": as_label(name)}
        axes.plot(curve["cost"], curve["pass_at_1"], "o-", **look)
        axes.set_title(as_label(title))
        axes.set_xlabel(below)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    label_edges(grid, rows=["pass@1"] * len(grid))
    legend_below(drawing, used)
    return drawing


@style()
def plot_cost_parts(parts: pd.DataFrame) -> Figure:
    """What a cascade's cost is made of, as shares of the large model's alone: a bar a cascade.

    A row a cascade, which is the index, and a column a part.
    """
    drawing, axes = plt.subplots(figsize=(WIDE + room(parts.index), 0.42 * len(parts) + 1.2))
    left = np.zeros(len(parts))
    for i, (name, share) in enumerate(parts.items()):
        axes.barh(range(len(parts)), share, 0.62, left, color=PALETTE[i], label=as_label(name))
        left += share.to_numpy(dtype=float)
    axes.axvline(1, **REFERENCE)
    axes.set_yticks(range(len(parts)), [as_label(name) for name in parts.index])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("cost (the large model alone = 100 %)")
    axes.grid(visible=False, axis="y")
    legend_below(drawing, [axes])
    return drawing


@style()
def plot_levels(values: pd.DataFrame) -> Figure:
    """Share of right answers against mean confidence: a colour a system, a mark a dataset.

    Columns ``system`` and ``dataset``, and intervals in ``right`` and ``stated``.
    """
    shade = colors(values["system"])
    marks = dict(zip(values["dataset"].unique(), cycle("osD^v"), strict=False))
    drawing, axes = plt.subplots(figsize=(WIDE, 4.8))
    axes.plot([0, 1], [0, 1], **REFERENCE)
    for row in values.to_dict("records"):
        right, at = row["right"], row["stated"].estimate
        look: dict[str, Any] = {"color": shade[row["system"]]}
        axes.plot([at, at], [right.low, right.high], linewidth=1, **look)
        axes.plot(at, right.estimate, marks[row["dataset"]], markersize=7, **look)
    for name, color in shade.items():
        axes.plot([], [], color=color, linewidth=5, label=as_label(name))
    for name, mark in marks.items():
        axes.plot([], [], mark, color=REFERENCE_GREY, markersize=7, label=as_label(name))
    axes.set(xlabel="stated, on average", ylabel="right", xlim=(0, 1.03), ylim=(0, 1.03))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    drawing.legend(loc="outside lower center", ncols=2)
    return drawing


@style()
def plot_course(
    values: pd.DataFrame, *, panel: str, label: str, labels: Mapping[str, str]
) -> Figure:
    """Measures over the steps of training: a panel a model, a line a measure with its range.

    Columns ``step``, ``mean``, ``min`` and ``max`` besides those that ``panel`` and ``label`` name.
    """
    names = list(values[panel].unique())
    drawing, grid = panels(1, len(names), PANEL * len(names), 2.9, sharey=True)
    for axes, name in zip(grid.flat, names, strict=True):
        for color, (measure, text) in zip(PALETTE, labels.items(), strict=False):
            line = values[(values[panel] == name) & (values[label] == measure)].sort_values("step")
            axes.plot(line["step"], line["mean"], color=color, label=as_label(text))
            axes.fill_between(line["step"], line["min"], line["max"], color=color, alpha=0.2, lw=0)
        axes.set(title=as_label(name), xlabel="training step", ylim=(-0.02, 1.02))
    legend_below(drawing, grid.flat)
    return drawing
