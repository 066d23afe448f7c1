"""What is measured, beside the paper.

1. The paper's ± is not explained and stands in Tables 12 to 15 only; here every number has a 95 %
   interval (:mod:`corea.metrics.intervals`).
2. A group of datasets is the mean over its datasets weighted by questions, as the paper's Table 1
   is made (:func:`corea.book.published.weighted_mean_over_datasets`). Metrics are computed on each
   dataset first. A change is computed from the means.
3. The paper has six datasets, the microworld four. :data:`corea.tasks.suites.MICROWORLD` says which
   stands where; Math500 and GPQA have none of their own.
4. ECE, AUROC and the Brier score are of the answers that state a confidence; the confidence
   output ratio says how many do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from corea.book import display
from corea.book.published import published_table, recompute_lost_table
from corea.metrics.intervals import SEEDS_ALONE, as_interval, differences, summarize, verdict
from corea.rlcc.cascades import CASCADES, LARGE_MODEL, Cascade
from corea.tasks.suites import MICROWORLD, Suite

_ORDERING_NOTE = (
    "Ordering holds (yes / no / not certain): of the pairs with other systems that the paper "
    "orders, how many stand in its order here, how many the other way round, and for how many the "
    "paired interval of the difference covers 0."
)


def paper_rows(
    *tables: int,
    systems: Mapping[str, str] | None = None,
    label: str = "system",
    suite: Suite = MICROWORLD,
) -> pd.DataFrame:
    """Printed numbers of paper A under the names of the datasets and systems here.

    Tables 2, 3 and 4, whose cells are lost, are recomputed as means over all datasets. ``systems``
    maps the paper's name to the name here, and rows of others are left out; ``label`` is
    ``"setting"`` for the tables of rollout sizes. Columns ``dataset, system, metric, value, spread,
    half_unit``; the last two are 0 where the paper prints no spread, or the number was recomputed.

    Example:
        >>> rows = paper_rows(1, systems={"COREA": "COREA"}).set_index(["dataset", "metric"])
        >>> float(rows.loc[("OOD reasoning", "cost_change"), "value"])
        -21.5
    """
    parts = []
    for table in tables:
        if table in (2, 3, 4):
            lost = recompute_lost_table(table).rename_axis(label).reset_index()
            rows = lost.melt(label, var_name="metric").assign(dataset="all datasets")
            rows = rows.assign(spread=np.nan, half_unit=0.0)
        else:
            rows = published_table("A", table)
        rows = rows.assign(system=rows[label])
        parts.append(rows[["dataset", "system", "metric", "value", "spread", "half_unit"]])
    found = pd.concat(parts, ignore_index=True).dropna(subset=["value"])
    found["dataset"] = found["dataset"].map(dict(suite.counterparts))
    if systems is not None:
        found["system"] = found["system"].map(dict(systems))
    found["spread"] = found["spread"].fillna(0.0)
    return found.dropna(subset=["dataset", "system"]).reset_index(drop=True)


def orderings(measurements: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Does each pair of systems that the paper orders stand in the same order here?

    The paper orders two systems when its numbers differ by more than rounding and its printed
    spreads explain. The order *holds* here when the paired 95 % interval of the difference
    lies on the paper's side of 0, does *not* when it lies on the other, and is *not certain*
    when it covers 0. With many pairs some come out wrong by chance: one in forty of those
    without a real difference points each way.
    """
    at = ["dataset", "metric"]
    here = measurements[measurements["system"].isin(paper["system"])]
    printed = paper.set_index(["system", *at])
    found = differences(here)
    sides = [
        printed.reindex(pd.MultiIndex.from_frame(found[[side, *at]])).reset_index(drop=True)
        for side in ("system", "baseline")
    ]
    first, second = sides
    found.insert(4, "paper", first["value"] - second["value"])
    slack = sum(side["spread"] + side["half_unit"] for side in sides) + 1e-9
    ordered = found[found["paper"].abs() > slack]
    words = {"holds": "yes", "fails": "no", "unsettled": "not certain"}
    holds = []
    for row in ordered.to_dict("records"):
        # turned so that the paper's difference is positive; "fails" needs it below 0, not at it
        ends = sorted(np.sign(row["paper"]) * row[end] for end in ("low", "high"))
        turned = {"value": np.sign(row["paper"]) * row["value"], "low": ends[0], "high": ends[1]}
        holds.append(words[verdict(turned, above=0.0)])
    columns = [*at, "system", "baseline", "paper", "value", "low", "high", "n_seeds", "interval"]
    return ordered[columns].assign(holds=holds).reset_index(drop=True)


def beside_paper(
    measurements: pd.DataFrame,
    paper: pd.DataFrame,
    *,
    metrics: Sequence[str],
    committed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The paper's number, this run's with its interval, and whether the paper's ordering holds."""
    if unknown := [name for name in metrics if name not in set(measurements["metric"])]:
        raise ValueError(f"not measured: {', '.join(unknown)}")
    at = ["dataset", "metric", "system"]
    measurements = measurements[measurements["metric"].isin(metrics)]
    rows = summarize(measurements)
    order = {name: i for i, name in enumerate(metrics)}
    rows = rows.sort_values("metric", key=lambda names: names.map(order), kind="stable")
    groups = {name: i for i, name in enumerate(measurements["dataset"].unique())}
    rows = rows.sort_values("dataset", key=lambda names: names.map(groups), kind="stable")
    rows = rows.merge(
        paper[[*at, "value"]].rename(columns={"value": "paper"}), how="left", on=at, validate="1:1"
    )
    names = {"value": "full_run", "low": "full_run_low", "high": "full_run_high"}
    names["interval"] = "full_run_interval"
    full = pd.DataFrame(columns=[*at, *names.values()])
    if committed is not None:
        full = committed[[*at, *names]].rename(columns=names)
    rows = rows.merge(full, how="left", on=at, validate="1:1")
    pairs = orderings(measurements, paper)
    turned = pairs.rename(columns={"system": "baseline", "baseline": "system"})
    of_either = pd.concat([pairs, turned]).groupby([*at, "holds"]).size().unstack("holds")
    counts = of_either.reindex(
        pd.MultiIndex.from_frame(rows[at]), columns=["yes", "no", "not certain"]
    ).fillna(0)
    rows["ordering_holds"] = [
        " / ".join(f"{n:.0f}" for n in row) if sum(row) else "" for row in counts.to_numpy()
    ]
    columns = [*at, "paper", "value", "low", "high", "n_seeds", "interval"]
    floats = ["full_run", "full_run_low", "full_run_high"]
    kept = [*columns, *floats, "full_run_interval", "ordering_holds"]
    return rows[kept].astype(dict.fromkeys(floats, "float64"))


def cost_accuracy_points(beside: pd.DataFrame, *, large: str = LARGE_MODEL) -> pd.DataFrame:
    """Pass@1 and cost relative to the large model, in the paper and here, to be drawn."""
    of = beside.pivot(index=["dataset", "system"], columns="metric")
    relative = of["paper", "cost"] / of["paper", "cost"].xs(large, level="system")
    paper = pd.DataFrame({"cost": 100 * relative, "pass_at_1": of["paper", "pass_at_1"]})
    ends = {"": "value", "_low": "low", "_high": "high"}
    here = pd.DataFrame(
        {f"cost{end}": 100 + of[column, "cost_change"] for end, column in ends.items()}
        | {f"pass_at_1{end}": of[column, "pass_at_1"] for end, column in ends.items()}
    )
    points = pd.concat({"paper": paper, "this run": here}, names=["source"]).reset_index()
    points["together"] = points["system"].isin(list(CASCADES))
    order = beside[["dataset", "system"]].drop_duplicates()
    points = order.merge(points, on=["dataset", "system"]).dropna(subset=["cost"])
    return points.sort_values("source", kind="stable", ignore_index=True)


def lay_out_beside(beside: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """A table of :func:`beside_paper` for reading: a row a system, up to four columns a metric."""
    wide = beside[["dataset", "system"]].drop_duplicates().reset_index(drop=True)
    for metric, heading in metrics.items():
        part = beside[beside["metric"] == metric]
        full = part.rename(columns={"value": "now", "low": "now_low", "high": "now_high"}).rename(
            columns={"full_run": "value", "full_run_low": "low", "full_run_high": "high"}
        )
        columns: dict[str, object] = {f"{heading} paper": part["paper"].to_list()}
        columns[f"{heading} here"] = [as_interval(row) for row in part.to_dict("records")]
        if part["full_run"].notna().any():
            shown = [as_interval(row) for row in full.to_dict("records")]
            columns[f"{heading} committed full run"] = shown
        columns[f"{heading} ordering holds"] = part["ordering_holds"].to_list()
        shown_columns = pd.DataFrame(columns).assign(
            dataset=part["dataset"].to_list(), system=part["system"].to_list()
        )
        wide = wide.merge(shown_columns, how="left", on=["dataset", "system"], validate="1:1")
    return wide


def show_beside(
    beside: pd.DataFrame, metrics: Mapping[str, tuple[str, str]], caption: str
) -> display.Html:
    """A table of :func:`beside_paper` as a page shows it: metric to its heading and format.

    Example:
        >>> measurements = pd.DataFrame({"system": "SLM", "seed": [0, 1], "dataset": "chains",
        ...     "metric": "ece", "resample": 0, "value": [0.3, 0.4]})
        >>> beside = beside_paper(measurements, paper_rows(12), metrics=["ece"])
        >>> ">0.57</td>" in show_beside(beside, {"ece": ("ECE", ".2f")}, "ECE.").data
        True
    """
    wide = lay_out_beside(beside, {metric: heading for metric, (heading, _) in metrics.items()})
    if len(beside["dataset"].unique()) == 1:
        wide = wide.drop(columns="dataset")
    formats = {
        name: spec
        for heading, spec in metrics.values()
        for name in (f"{heading} paper", f"{heading} here", f"{heading} committed full run")
        if name in wide
    }
    note = _ORDERING_NOTE
    if (beside["full_run_interval"] == SEEDS_ALONE).any():
        note += " Intervals of the committed full run: Student's t over its seeds alone."
    return display.table(wide, f"{caption} {note}", formats=formats)


def lay_out_systems(
    table: pd.DataFrame, cascades: Mapping[str, Cascade], metrics: Mapping[str, str]
) -> pd.DataFrame:
    """Systems in the paper's own wide layout, as Tables 1 and 5 to 11 have it.

    ``table`` is :func:`corea.metrics.intervals.summarize` of ``measure_cascades``, of which
    ``cascades`` are the collaborative systems; a change stands in parentheses behind its value.

    Example:
        >>> table = pd.DataFrame({"system": "COREA", "dataset": "chains", "value": [1500.0, -6.7],
        ...     "metric": ["cost", "cost_change"]})
        >>> lay_out_systems(table, CASCADES, {"cost": "Avg Cost"}).iloc[0].to_list()
        ['Collaborative', 'COREA', '1500 (-6.7%)']
    """
    cells = table.set_index(["system", "dataset", "metric"])["value"].to_dict()
    datasets = list(table["dataset"].unique())
    rows = []
    for system in table["system"].unique():
        together = system in cascades
        row = {"block": "Collaborative" if together else "Standalone", "System": system}
        for dataset in datasets:
            for metric, heading in metrics.items():
                text = f"{cells[system, dataset, metric]:.{0 if 'cost' in metric else 1}f}"
                change = cells.get((system, dataset, f"{metric}_change"))
                if together and change is not None:
                    text += f" ({change:+.1f}{'%' * (metric == 'cost')})"
                row[heading if len(datasets) == 1 else f"{dataset} {heading}"] = text
        rows.append(row)
    return pd.DataFrame(rows).rename(columns={"block": ""})
