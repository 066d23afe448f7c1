"""Figures of the chapters on decisions; the look is that of :mod:`corea.book.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from corea.book.display import as_label
from corea.book.figures import REFERENCE, colors, style
from corea.tasks.decision_questions import optimal_confidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_probabilities(rows: pd.DataFrame, systems: Sequence[str]) -> Figure:
    """Distribution of the decision's probability, a panel a system.

    Args:
        rows: Decisions with ``system`` and ``confidence``; with ``correct``, wrong ones are grey.
        systems: Order of the panels; those without rows are left out.

    Returns:
        The figure.
    """
    rows = rows[rows["confidence"].notna()]
    there = [name for name in systems if name in set(rows["system"])]
    shade = colors(there)
    with style():
        drawing, grid = plt.subplots(
            1, len(there), figsize=(2.6 * len(there), 2.4), sharey=True, squeeze=False
        )
        for axes, name in zip(grid[0], there, strict=True):
            own = rows[rows["system"] == name]
            right = own["correct"] if "correct" in own else pd.Series(True, index=own.index)
            values = [own.loc[right, "confidence"], own.loc[~right, "confidence"]]
            axes.hist(
                values,
                bins=np.linspace(0, 1, 21),
                weights=[np.full(len(part), 1 / len(own)) for part in values],
                stacked=True,
                color=[shade[name], "0.7"],
            )
            axes.set(title=as_label(name), xlabel="probability of the decision")
            axes.set_xticks([0, 0.5, 1])
        grid[0][0].set_ylabel("share")
        if "correct" in rows:
            patches = [Patch(color=shade[there[0]]), Patch(color="0.7")]
            drawing.legend(patches, ["right", "wrong"], loc="outside lower center", ncols=2)
    return drawing


def plot_growing(growing: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Metrics against the share of foreign reasoning: a row a metric, a column a dataset.

    Args:
        growing: Rows of :func:`corea.metrics.intervals.summarize` with ``share``.
        labels: Metric to its label, in order.

    Returns:
        The figure.
    """
    tasks, systems = list(growing["dataset"].unique()), list(growing["system"].unique())
    shade = colors(systems)
    with style():
        drawing, grid = plt.subplots(
            len(labels),
            len(tasks),
            figsize=(3.6 * len(tasks), 2.2 * len(labels)),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for row, (metric, label) in zip(grid, labels.items(), strict=True):
            of_metric = growing[growing["metric"] == metric]
            for axes, task in zip(row, tasks, strict=True):
                for name, line in of_metric[of_metric["dataset"] == task].groupby(
                    "system", sort=False
                ):
                    color = shade[str(name)]
                    axes.plot(line["share"], line["value"], "o-", color=color, label=as_label(name))
                    axes.fill_between(
                        line["share"], line["low"], line["high"], color=color, alpha=0.15
                    )
                axes.set_ylim(-0.02, 1.02)
            row[0].set_ylabel(label)
        for axes, task in zip(grid[0], tasks, strict=True):
            axes.set_title(as_label(task))
        for axes in grid[-1]:
            axes.set_xlabel("share of the foreign reasoning")
        grid[0][0].legend(fontsize="small")
    return drawing


def plot_label_curves(curve: pd.DataFrame, methods: Mapping[str, str]) -> Figure:
    """Error against the number of labels: a row a dataset, a column a method.

    Args:
        curve: From :func:`corea.decisions.recalibration.label_curve`.
        methods: Method to its name, in order.

    Returns:
        The figure.
    """
    tasks, systems = list(curve["dataset"].unique()), list(curve["system"].unique())
    counts = sorted(set(curve["n"]) - {0})
    shade = colors(systems)
    with style():
        drawing, grid = plt.subplots(
            len(tasks),
            len(methods),
            figsize=(3.2 * len(methods), 2.7 * len(tasks)),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for row, task in zip(grid, tasks, strict=True):
            for axes, (method, title) in zip(row, methods.items(), strict=True):
                own = curve[curve["dataset"] == task]
                for name, line in own[own["method"] == method].groupby("system", sort=False):
                    color = shade[str(name)]
                    axes.plot(line["n"], line["mean"], "o-", color=color, label=as_label(name))
                    axes.fill_between(line["n"], line["low"], line["high"], color=color, alpha=0.15)
                for start in own[own["method"] == "none"].to_dict("records"):
                    axes.axhline(start["mean"], color=shade[start["system"]], ls=":", lw=1)
                axes.set(xscale="log", title=f"{as_label(task)}, {title}")
                axes.set_xticks(counts, [str(n) for n in counts])
                axes.minorticks_off()
            row[0].set_ylabel("ECE")
        for axes in grid[-1]:
            axes.set_xlabel("labelled questions")
        grid[0][0].legend(fontsize="small")
    return drawing


def plot_targets(n_options: int) -> Figure:
    """The confidence that each target of the calibration-aware loss asks for.

    Args:
        n_options: K, from 2.

    Returns:
        The figure.
    """
    accuracy = np.linspace(0, 1, 101)
    shade = colors(["GRPO", "CA-GRPO"])
    with style():
        drawing, axes = plt.subplots(figsize=(4.2, 3.6))
        axes.plot([0, 1], [0, 1], **REFERENCE)
        for target, color in zip(("uniform", "proper"), shade.values(), strict=True):
            asked = optimal_confidence(accuracy, n_options, target)
            axes.plot(accuracy, asked, color=color, label=f"{target} when wrong", linewidth=2)
        axes.axhline(1 / n_options, color="0.2", linestyle=":", linewidth=1.5)
        axes.set(xlabel="accuracy of the decisions", ylabel="confidence asked for")
        axes.legend()
    return drawing


def plot_correlations(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Correlation matrices, a panel each.

    Args:
        tables: Title to a square table of correlations in [-1, 1].

    Returns:
        The figure.
    """
    with style():
        drawing, grid = plt.subplots(
            1, len(tables), figsize=(4.6 * len(tables), 4.2), squeeze=False
        )
        for axes, (title, table) in zip(grid[0], tables.items(), strict=True):
            axes.imshow(table, vmin=-1, vmax=1, cmap="RdBu")
            for (i, j), value in np.ndenumerate(table.to_numpy()):
                color = "white" if abs(value) > 0.6 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, size="small")
            axes.set_xticks(
                range(len(table)), [as_label(c) for c in table], rotation=40, ha="right"
            )
            axes.set_yticks(range(len(table)), [as_label(c) for c in table])
            axes.grid(visible=False)
            axes.set_title(as_label(title))
    return drawing
