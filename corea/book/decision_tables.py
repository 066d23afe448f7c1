"""Decisions beside what paper B printed, in its layout.

Units are those of paper A's tables: accuracies (``pass_at_1``) in percent, errors and
AUROC as fractions. Paper B prints all in percent; its numbers beside ours are those of its smallest
model, Qwen3-1.7B, unless a table is about all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd

from corea.book.published import published_table
from corea.metrics.intervals import as_interval, claim, differences
from corea.tasks import suites
from corea.tasks.suites import MICROWORLD, Suite

PAPER_MODELS = ("Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B")

FINDINGS: Mapping[str, tuple[str, str, str, float, bool]] = MappingProxyType(
    {
        "SFT gains accuracy over the base": ("SFT", "Base", "pass_at_1", 0.0, True),
        "GRPO gains accuracy over the base": ("GRPO", "Base", "pass_at_1", 0.0, True),
        "GRPO gains more accuracy than SFT": ("GRPO", "SFT", "pass_at_1", 0.0, True),
        "SFT is better calibrated than GRPO": ("SFT", "GRPO", "ece", 0.0, False),
        "CA-GRPO is better calibrated than GRPO": ("CA-GRPO", "GRPO", "ece", 0.0, False),
        "CA-GRPO is as accurate as GRPO": ("CA-GRPO", "GRPO", "pass_at_1", -2.0, True),
    }
)
"""What paper B finds of two systems: system, baseline, metric, bound of the difference, and whether
it is a lower one. Source: its key finding 1 and takeaway; the two points are ours."""

_UNITS = {"accuracy": ("pass_at_1", 1.0)}  # metric of the paper to ours, and what it is divided by


def paper_rows(
    *tables: int,
    systems: Mapping[str, str] | None = None,
    model: str = PAPER_MODELS[0],
    suite: Suite = MICROWORLD,
) -> pd.DataFrame:
    """Printed numbers of paper B under the names and in the units used here.

    ``systems`` maps the paper's name to the name here, and rows of others are left out; where a
    table has settings, a name is ``"system, setting"``. All under their own names when None.

    Example:
        >>> rows = paper_rows(4, systems={"Ours": "CA-GRPO"}).set_index(["dataset", "metric"])
        >>> round(float(rows.loc[("choices", "ece"), "value"]), 4)
        0.1597
    """
    found = pd.concat([published_table("B", table) for table in tables], ignore_index=True)
    found = found[(found["model"] == model) & found["value"].notna()]
    settings = [f", {name}" if name not in ("", "None") else "" for name in found["setting"]]
    found = found.assign(system=found["system"] + settings)
    if systems is not None:
        found["system"] = found["system"].map(dict(systems))
        found = found.dropna(subset="system")
    divisor = np.array([_UNITS.get(metric, ("", 100.0))[1] for metric in found["metric"]])
    found = found.assign(
        dataset=found["dataset"].map(dict(suite.decision_counterparts)),
        metric=[_UNITS.get(metric, (metric,))[0] for metric in found["metric"]],
        value=found["value"] / divisor,
        spread=0.0,
        half_unit=found["half_unit"] / divisor,
    )
    columns = ["dataset", "system", "metric", "value", "spread", "half_unit"]
    return found[columns].drop_duplicates().reset_index(drop=True)


def lay_out(table: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Measured values side by side: a row per dataset and system, a column per metric's heading.

    Cells are intervals, None where a value is missing.
    """
    cells = {
        (row["dataset"], row["system"], row["metric"]): as_interval(row)
        for row in table.to_dict("records")
    }
    rows = [
        {"dataset": dataset, "system": system}
        | {heading: cells.get((dataset, system, metric)) for metric, heading in metrics.items()}
        for dataset in table["dataset"].unique()
        for system in table.loc[table["dataset"] == dataset, "system"].unique()
    ]
    return pd.DataFrame(rows)


def lay_out_sizes(table: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Measured values of models of several sizes, in the layout of paper B's Tables 1 and 4.

    A column per size and metric (``"small ECE"``); what one size lacks is missing.
    """
    parts = [
        lay_out(rows, {metric: f"{size} {heading}" for metric, heading in metrics.items()})
        for size, rows in table.groupby("size", sort=False)
    ]
    return pd.concat(
        [part.set_index(["dataset", "system"]) for part in parts], axis=1
    ).reset_index()


def printed_shares(table: int, suite: Suite = MICROWORLD) -> dict[str, str]:
    """Paper B's Table 2 or 3, which has one number per model, as text by dataset here.

    Example:
        >>> printed_shares(3)["messages"]
        '100.00 / 92.36 / 96.85 %'
    """
    rows = published_table("B", table)
    return {
        ours: " / ".join(f"{v:.2f}" for v in rows.loc[rows["dataset"] == theirs, "value"]) + " %"
        for theirs, ours in suite.decision_counterparts.items()
        if theirs in set(rows["dataset"])
    }


def with_committed(
    shown: pd.DataFrame, committed: pd.DataFrame | None, metrics: Mapping[str, str]
) -> pd.DataFrame:
    """A table of :func:`lay_out` with what the committed full run has in the same cells, if any."""
    if committed is None:
        return shown
    cells = committed.set_index(["dataset", "system", "metric"])
    keys = list(shown[["dataset", "system"]].itertuples(index=False, name=None))
    shown = shown.copy()
    for metric, heading in metrics.items():
        found = [
            as_interval(cells.loc[(*key, metric)].to_dict())
            if (*key, metric) in cells.index
            else None
            for key in keys
        ]
        shown[f"committed full run: {heading}"] = pd.Series(found, shown.index, dtype="object")
    return shown


def claims(measured: pd.DataFrame) -> pd.DataFrame:
    """Which of :data:`FINDINGS` hold, dataset by dataset, beside the paper's smallest model."""
    suite = suites.of(measured["dataset"])
    paper = paper_rows(4, suite=suite).set_index(["dataset", "system", "metric"])["value"]
    rows = []
    for dataset, table in measured.groupby("dataset", sort=False):
        systems = set(table["system"])
        for what, (system, baseline, metric, bound, lower) in FINDINGS.items():
            if not {system, baseline} <= systems:
                continue
            [row] = differences(table[table["metric"] == metric], [(system, baseline)]).to_dict(
                "records"
            )
            named = ["Ours" if name == "CA-GRPO" else name for name in (system, baseline)]
            first, second = (paper[dataset, name, metric] for name in named)
            side = "at_least" if lower else "at_most"
            rows.append(claim(what, str(dataset), row, first - second, **{side: bound}))
    return pd.DataFrame(rows)


def in_order(systems: Iterable[str], order: Sequence[str]) -> list[str]:
    """Each system once, in a given order, unknown ones last."""
    names = list(dict.fromkeys(systems))
    return [name for name in order if name in names] + [n for n in names if n not in order]
