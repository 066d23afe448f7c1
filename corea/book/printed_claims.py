"""What the papers' printed tables say of the papers' own sentences.

A row per statement in the form of :func:`corea.metrics.intervals.summarize`: the value recomputed
from printed numbers, with the ends that their rounding allows. No training and no seeds are in it.
:mod:`corea.book.claims` decides on these rows as on measured ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from corea.book.published import (
    QUESTIONS,
    check_claims,
    cross_check_table1,
    published_table,
    recompute_lost_table,
)
from corea.rlcc.cascades import LARGE_MODEL

DECISIONS: Mapping[str, int] = {"CSQA": 1221, "OBQA": 500, "OpenAI": 1180, "XSTest": 450}
"""Questions per dataset of paper B: the public test sets (CommonsenseQA's validation set), and of
OpenAI Moderation's 1,680 those that section 3.2 does not train on."""

_HALF = 0.005  # half a unit of the last digit that paper B prints


def printed_claims() -> pd.DataFrame:
    """All statements: ``what, value, low, high, n_seeds``.

    Example:
        >>> found = printed_claims().set_index("what")
        >>> float(found.loc["B 4: accuracies that are no share of the questions", "value"])
        16.0
    """
    rows = [*_of_sentences(), *_of_a(), *_of_b()]
    found = pd.DataFrame(rows, columns=["what", "value", "tolerance"])
    slack = found.pop("tolerance")
    return found.assign(low=found["value"] - slack, high=found["value"] + slack, n_seeds=0)


def _of_sentences() -> Iterator[tuple[str, float, float]]:
    """Recomputed less claimed of the numbers in the papers' sentences."""
    for row in check_claims().to_dict("records"):
        what = f"{row['paper']} {row['section']}: {row['claim']}"
        yield what, row["recomputed"] - row["claimed"], row["tolerance"]


def _of_a() -> Iterator[tuple[str, float, float]]:
    wrong = ~cross_check_table1()["agrees"]
    yield "A 1: cells that are no weighted means of Tables 5 to 10", float(wrong.sum()), 0.0
    for table, dataset in enumerate(QUESTIONS, start=5):
        cells = published_table("A", table).set_index(["system", "metric"])["value"]
        change = 100 * (cells["COREA", "cost"] / cells[LARGE_MODEL, "cost"] - 1)
        yield f"A {table}: cost of COREA on {dataset}, %", change, 0.05
    rewards = _tables("A", 12, 13)
    rewards = rewards[~rewards["system"].isin(["SLM", "RLVR", "L2"])]
    for what, rows in (
        ("12 and 13: rewards but L2", rewards),
        ("14 and 15: sizes", _tables("A", 14, 15)),
    ):
        of = rows[rows["metric"] == "ece"].groupby("dataset")["value"]
        yield f"A {what}, widest range of ECE on a dataset", (of.max() - of.min()).max(), 0.01
    of_rlvr = recompute_lost_table(2)["ece"]
    change = of_rlvr["RLVR-SLM-Verb"] - of_rlvr["SLM-Verb"]
    yield "A 12 and 13: ECE of RLVR less the SLM's, all datasets", change, 0.01
    means = recompute_lost_table(3)
    others = means.drop("L2")["ece"].max()
    yield "A 12 and 13: ECE of L2 less the next, all datasets", means["ece"]["L2"] - others, 0.01
    ahead = means > means.loc["L1"]
    better = ahead["pass_at_1"] & (means["ece"] < means["ece"]["L1"])
    yield "A 12 and 13: rewards better than L1 in pass@1 and ECE", float(better.sum()), 0.0


def _of_b() -> Iterator[tuple[str, float, float]]:
    four = published_table("B", 4).set_index(["metric", "dataset", "model", "system"])["value"]
    accuracy = four["accuracy"]
    n = np.array([DECISIONS[dataset] for dataset in accuracy.index.get_level_values("dataset")])
    nearest = 100 * (accuracy * n / 100).round() / n
    odd = (nearest - accuracy).abs() > _HALF + 1e-9
    yield "B 4: accuracies that are no share of the questions", float(odd.sum()), 0.0
    by_system = accuracy.unstack("system")
    gap = float((by_system["Ours"] - by_system["GRPO"]).min())
    yield "B 4: least accuracy of the proposal less GRPO's, points", gap, 2 * _HALF
    five = published_table("B", 5).set_index(["dataset", "model", "system", "setting"])["value"]
    none = five.xs("None", level="setting")["OpenAI"]
    other = none != four["ece"]["OpenAI"].reindex(none.index)
    what = "B 5: OpenAI cells without post-hoc calibration that differ from Table 4"
    yield what, float(other.sum()), 0.0
    of_each = five.unstack("setting")
    grpo = of_each[of_each.index.get_level_values("system") == "GRPO"].droplevel("system")
    own = of_each[of_each.index.get_level_values("system") == "Ours"].droplevel("system")
    lower = grpo[["Isotonic", "Platt"]].lt(grpo["None"], axis=0).to_numpy().sum()
    yield "B 5: post-hoc methods that lower GRPO's ECE, of 12", float(lower), 0.0
    rest = pd.concat([grpo, own[["None"]]], axis=1).min(axis=1)
    best = float((own[["Isotonic", "Platt"]].min(axis=1) < rest).sum())
    yield "B 5: sets where the proposal after a post-hoc method is best, of 6", best, 0.0
    six = published_table("B", 6).set_index(["dataset", "model", "metric", "system"])["value"]
    of_both = six.unstack("system")
    agree = float((of_both["Ours"] < of_both["GRPO"]).sum())
    yield "B 6: SCE and MCE of the proposal below GRPO's, of 12", agree, 0.0


def _tables(paper: str, *numbers: int) -> pd.DataFrame:
    return pd.concat([published_table(paper, number) for number in numbers])
