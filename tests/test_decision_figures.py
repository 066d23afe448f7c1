"""Figures of the chapters on decisions: what is drawn is what was given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_recalibration import decisions

from corea.book import decision_figures as figures
from corea.book.figures import WIDE
from corea.decisions.recalibration import label_curve


@pytest.fixture(autouse=True)
def closed():
    """No figure stays open for the tests after these."""
    yield
    plt.close("all")


def test_probabilities_have_a_panel_a_system_and_add_up():
    rows = pd.concat([decisions(n=50), decisions(system="Base", n=40)], ignore_index=True)
    rows.loc[0, "confidence"] = np.nan
    drawing = figures.plot_probabilities(rows, ["Base", "SFT", "GRPO"])
    assert [axes.get_title() for axes in drawing.axes] == ["Base", "GRPO"]
    for axes in drawing.axes:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == ["right", "wrong"]
    alone = figures.plot_probabilities(rows.drop(columns="correct"), ["GRPO"])
    assert not alone.legends


def test_names_of_strangers_are_shown_as_text():
    drawing = figures.plot_probabilities(decisions(system="$x$\x00", n=9), ["$x$\x00"])
    assert "\x00" not in drawing.axes[0].get_title()


def test_growing_shares_are_lines_in_order():
    rows = [
        {"dataset": d, "system": s, "metric": m, "share": x, "value": x / 2, "low": 0, "high": 1}
        for d in ("choices", "messages") for s in ("Base", "GRPO")
        for m in ("flipped", "confidence") for x in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    drawing = figures.plot_growing(pd.DataFrame(rows), {"flipped": "flips", "confidence": "p"})
    assert len(drawing.axes) == 4
    for axes in drawing.axes:
        assert [line.get_label() for line in axes.lines] == ["Base", "GRPO"]
        assert axes.lines[0].get_ydata().tolist() == [0, 0.25, 0.5]
    assert [axes.get_ylabel() for axes in drawing.axes] == ["flips", "", "p", ""]


def test_label_curves_have_the_start_as_a_dotted_line():
    curve = label_curve(decisions(n=60), [5, 20], n_draws=2)
    drawing = figures.plot_label_curves(curve, {"platt": "Platt", "isotonic": "Isotonic"})
    assert [axes.get_title() for axes in drawing.axes] == ["choices, Platt", "choices, Isotonic"]
    start = curve.loc[curve["method"] == "none", "mean"].item()
    for axes in drawing.axes:
        assert [line.get_linestyle() for line in axes.lines] == ["-", ":"]
        assert axes.lines[1].get_ydata()[0] == start


def test_what_losses_ask_for_is_drawn_as_derived():
    drawing = figures.plot_asked([2, 5])
    titles = [axes.get_title() for axes in drawing.axes]
    assert titles == ["2 options", "5 options", "", ""]
    grid = [{line.get_label(): line.get_ydata() for line in a.lines} for a in drawing.axes]
    accuracy = np.linspace(0, 1, 101)
    two_sampled, five_sampled, _, five_greedy = grid
    assert two_sampled["uniform"] == pytest.approx(accuracy)  # proper
    top = 1 / (1 - accuracy[74])
    rest = 1 / (1 - (1 - accuracy[74]) / 4)
    assert five_sampled["uniform"][74] == pytest.approx(top / (top + 4 * rest))
    assert five_sampled["log score"] == pytest.approx(accuracy)
    assert five_greedy["uniform"][[0, -1]].tolist() == pytest.approx([0.2, 1])
    assert five_greedy["others"] == pytest.approx(accuracy)


def test_correlations_are_written_in_their_cells():
    table = pd.DataFrame([[1.0, -0.25], [-0.25, 1.0]], ["a", "b"], ["a", "b"])
    axes = figures.plot_correlations({"L1-SLM": table}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.00", "-0.25", "-0.25", "1.00"]


def test_the_level_of_two_tasks_fits_a_telephone():
    at = pd.DataFrame({"dataset": ["choices", "messages"], "system": "Base", "reasoning": "none"})
    drawing = figures.plot_level(at.assign(right=[0.2, 0.6], confidence=[0.9, 0.7]))
    assert drawing.get_figwidth() <= WIDE
    assert [axes.get_title() for axes in drawing.axes] == ["choices", "messages"]
    assert [axes.lines[-1].get_xydata().tolist() for axes in drawing.axes] == [
        [[0.2, 0.9]],
        [[0.6, 0.7]],
    ]
