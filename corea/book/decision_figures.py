"""Figures of the chapters on decisions; the look is that of :mod:`corea.book.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from corea.book.colours import GREY
from corea.book.decision_tables import level
from corea.book.display import Html, as_label, figure
from corea.book.figures import (
    PANEL,
    REFERENCE,
    SMALLEST,
    WIDE,
    colors,
    label_edges,
    legend_below,
    panels,
    style,
    wrapped,
)
from corea.decisions.loss import CALIBRATION_LOSSES, optimal_confidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style()
def plot_probabilities(rows: pd.DataFrame, systems: Sequence[str]) -> Figure:
    """Distribution of the decision's probability, a panel a system."""
    rows = rows[rows["confidence"].notna()]
    names = [name for name in systems if name in set(rows["system"])]
    shade = colors(names)
    drawing, grid, used = wrapped(len(names), 2, PANEL, 2.1, sharey=True)
    label_edges(grid, rows=["share"] * len(grid))
    drawing.supxlabel("probability of the decision")
    for axes, name in zip(used, names, strict=True):
        axes.set_title(as_label(name))
        part = rows[rows["system"] == name]
        right = part["correct"] if "correct" in part else pd.Series(True, index=part.index)
        values = [part.loc[right, "confidence"], part.loc[~right, "confidence"]]
        axes.hist(
            values,
            bins=np.linspace(0, 1, 21).tolist(),
            weights=[np.full(len(half), 1 / len(part)) for half in values],
            stacked=True,
            color=[shade[name], GREY],
        )
        axes.set_xticks([0, 0.5, 1])
    if "correct" in rows:
        patches = [Patch(color=shade[names[0]]), Patch(color=GREY)]
        drawing.legend(patches, ["right", "wrong"], loc="outside lower center", ncols=2)
    return drawing


@style()
def plot_growing(growing: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Metrics against the share of foreign reasoning: a row a metric, a column a dataset."""
    tasks, systems = list(growing["dataset"].unique()), list(growing["system"].unique())
    shade = colors(systems)
    size = PANEL * len(tasks), 2.0 * len(labels) + 0.4
    drawing, grid = panels(len(labels), len(tasks), *size, sharex=True, sharey=True)
    label_edges(grid, columns=tasks, rows=labels.values(), below="share of the foreign reasoning")
    for axes, (metric, task) in zip(grid.flat, product(labels, tasks), strict=True):
        part = growing[(growing["metric"] == metric) & (growing["dataset"] == task)]
        for name, line in part.groupby("system", sort=False):
            color = shade[str(name)]
            axes.plot(line["share"], line["value"], "o-", color=color, label=as_label(name))
            axes.fill_between(line["share"], line["low"], line["high"], color=color, alpha=0.15)
        axes.set_ylim(-0.02, 1.02)
    legend_below(drawing, grid.flat)
    return drawing


@style()
def plot_label_curves(curve: pd.DataFrame, methods: Mapping[str, str]) -> Figure:
    """Error against the number of labels: a row a dataset, a column a method."""
    tasks, systems = list(curve["dataset"].unique()), list(curve["system"].unique())
    counts = sorted(set(curve["n"]) - {0})
    shade = colors(systems)
    size = PANEL * len(methods), 2.3 * len(tasks) + 0.4
    drawing, grid = panels(len(tasks), len(methods), *size, sharex=True, sharey=True)
    label_edges(grid, rows=["ECE"] * len(tasks), below="labelled questions")
    for axes, (task, method) in zip(grid.flat, product(tasks, methods), strict=True):
        part = curve[curve["dataset"] == task]
        for name, line in part[part["method"] == method].groupby("system", sort=False):
            color = shade[str(name)]
            axes.plot(line["n"], line["mean"], "o-", color=color, label=as_label(name))
            axes.fill_between(line["n"], line["low"], line["high"], color=color, alpha=0.15)
        for start in part[part["method"] == "none"].to_dict("records"):
            axes.axhline(start["mean"], color=shade[start["system"]], ls=":", lw=1)
        axes.set(xscale="log", title=f"{as_label(task)}, {methods[method]}")
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
    legend_below(drawing, grid.flat)
    return drawing


@style()
def plot_asked(option_counts: Sequence[int]) -> Figure:
    """The confidence that each loss asks for: a column a number of options.

    Decisions are sampled in the upper row, where it is the fixed point of training, and greedy in
    the lower one, where it is the optimum.
    """
    accuracy = np.linspace(0, 1, 101)
    ways = {"sampled": "sampled: p at rest", "greedy": "greedy: p of least loss"}
    drawing, grid = panels(2, len(option_counts), PANEL * len(option_counts), 5.0, sharex=True)
    label_edges(
        grid,
        columns=[f"{k} options" for k in option_counts],
        rows=ways.values(),
        below="accuracy of the decision",
    )
    shade = colors(CALIBRATION_LOSSES)
    looks = zip(CALIBRATION_LOSSES, ("-", "--", ":"), strict=True)  # some lie on each other
    for loss, line in looks:
        for axes, (way, k) in zip(grid.flat, product(ways, option_counts), strict=True):
            asked = optimal_confidence(accuracy, k, loss, way)
            name = loss.replace("_", " ")
            axes.plot(accuracy, asked, color=shade[loss], linestyle=line, lw=2, label=name)
    for axes in grid.flat:
        axes.plot([0, 1], [0, 1], **REFERENCE)
    legend_below(drawing, grid.flat)
    return drawing


@style()
def plot_correlations(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Correlation matrices, a panel each."""
    import seaborn as sns  # takes two seconds to load

    drawing, _, used = wrapped(len(tables), 1, WIDE, 4.0)
    for axes, (title, table) in zip(used, tables.items(), strict=True):
        axes.set_title(as_label(title))
        names = [as_label(column) for column in table]
        sns.heatmap(
            table.set_axis(names).set_axis(names, axis=1), ax=axes, vmin=-1, vmax=1, cmap="RdBu",
            annot=True, fmt=".2f", annot_kws={"size": SMALLEST}, cbar=False, square=True,
        )  # fmt: skip
        # a cell's text is as it is when dark, so it is neither of the theme's two inks
        for text, value in zip(axes.texts, table.to_numpy().flat, strict=True):
            text.set_color("#fefefe" if abs(value) > 0.6 else "#010101")
        axes.set_xticklabels(names, rotation=40, ha="right")
        axes.set_yticklabels(names, rotation=0)
    return drawing


@style()
def plot_level(points: pd.DataFrame) -> Figure:
    """Mean probability of the decision against the share that is right: a panel a dataset.

    Filled marks are behind reasoning, hollow ones without it; ``points`` is a table of
    :func:`corea.book.decision_tables.level`.
    """
    tasks, systems = list(points["dataset"].unique()), list(points["system"].unique())
    shade = colors(systems)
    drawing, grid = panels(1, len(tasks), PANEL * len(tasks), 3.2, sharex=True, sharey=True)
    label_edges(grid, columns=tasks, rows=["mean probability"], below="share right")
    for axes, task in zip(grid[0], tasks, strict=True):
        axes.plot([0, 1], [0, 1], **REFERENCE)
        for row in points[points["dataset"] == task].to_dict("records"):
            color = shade[row["system"]]
            face = color if row["reasoning"] != "none" else "none"
            axes.plot(row["right"], row["confidence"], "o", color=color, mfc=face, ms=8, mew=1.6)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    marks = [Line2D([], [], marker="o", ls="", color=shade[name]) for name in systems]
    drawing.legend(marks, map(as_label, systems), loc="outside lower center", ncols=2)
    return drawing


def show_level(table: pd.DataFrame, datasets: Sequence[str]) -> Html:
    """:func:`plot_level` of one training's measured decisions, as its page shows it."""
    return figure(
        plot_level(level(table, datasets)),
        "How sure the model is, and how often it is right. Mean probability of the decision "
        "against the share of right ones. Filled: behind sampled reasoning. Hollow: without it. "
        "Above the diagonal it is too sure.",
        alt="Panels, one a dataset: filled and hollow marks beside a dashed diagonal.",
        name="level",
    )
