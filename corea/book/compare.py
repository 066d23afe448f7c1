"""What is measured, beside the paper.

1. The paper's ± is not explained and stands in Tables 12 to 15 only; here every number has a 95 %
   interval (:mod:`corea.metrics.intervals`).
2. A group of datasets is the mean over its datasets weighted by questions, as the paper's Table 1
   is made (:func:`corea.book.published.weighted_mean_over_datasets`). Metrics are computed on each
   dataset first. A change is computed from the means.
3. :data:`corea.tasks.suites.MICROWORLD` says which dataset stands for which of the paper's.
4. ECE, AUROC and the Brier score are of the answers that state a confidence; the confidence
   output ratio says how many do.
5. The paper's ECE is the mean of the ECEs of ten runs, one answer to each question in each
   (section 4.4); here that is ``ece_per_run``, and ``ece`` that of all answers together.
6. The committed full run is the evidence; the reader's own run is a replication beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from corea.book import display
from corea.book.published import published_table, recompute_lost_table
from corea.metrics.cascade import pareto_front
from corea.metrics.intervals import COLUMNS, Interval, as_interval, differences, summarize
from corea.rlcc.cascades import CASCADES, LARGE_MODEL, Cascade
from corea.tasks.suites import MICROWORLD, Suite

CONTRAST = ("system", "baseline", "dataset", "metric", "statistic")
"""Labels of a contrast, as chapters write it to ``contrasts.csv``; some have more."""

HEADINGS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "pass_at_1": ("Pass@1%", ".1f"),
        "ece_per_run": ("ECE per run", ".3f"),
        "ece": ("ECE of all answers", ".3f"),
        "auroc": ("AUROC", ".3f"),
    }
)
"""Metrics of models alone, with heading and format, in the order of the paper's tables."""

NOT_TRAINED = "not trained"
"""What stands for a number of this run where it trained no such model."""

_REPLICATION = (
    "Inside or outside: where the value of this run, a replication, lies relative to the interval "
    "of the committed full run."
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
    ``"setting"`` for the tables of rollout sizes. The paper's ECE is ``ece_per_run``. Columns
    ``dataset, system, metric, value``.

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
        else:
            rows = published_table("A", table)
        rows = rows.assign(system=rows[label])
        parts.append(rows[["dataset", "system", "metric", "value"]])
    found = pd.concat(parts, ignore_index=True).dropna(subset=["value"])
    found["dataset"] = found["dataset"].map(dict(suite.counterparts))
    if systems is not None:
        found["system"] = found["system"].map(dict(systems))
    found["metric"] = found["metric"].replace({"ece": "ece_per_run"})
    return found.dropna(subset=["dataset", "system"]).reset_index(drop=True)


def beside_paper(
    measurements: pd.DataFrame | None,
    paper: pd.DataFrame,
    *,
    metrics: Sequence[str],
    committed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The paper's number, the committed full run's, and this run's, of every system of either run.

    Args:
        measurements: Of this run; None where there is none.
        paper: From :func:`paper_rows`.
        metrics: Those to keep, in their order.
        committed: The table that the full run of this chapter wrote; None where there is none.

    Returns:
        A row per dataset, metric and system: ``paper``; this run's ``value`` and the other
        :data:`corea.metrics.intervals.COLUMNS`; the same of the committed full run behind
        ``full_run``; and ``replicates``, whether this run's value is ``"inside"`` or ``"outside"``
        the committed interval, empty where one of them is missing.

    Raises:
        ValueError: If neither run has a metric.
    """
    at = ["dataset", "metric", "system"]
    here = pd.DataFrame(columns=[*at, *COLUMNS])
    if measurements is not None:
        here = summarize(measurements[measurements["metric"].isin(metrics)])
    both = _beside(here, committed, at)
    if unknown := [name for name in metrics if name not in set(both["metric"])]:
        raise ValueError(f"not measured: {', '.join(unknown)}")
    both = both[both["metric"].isin(metrics)]
    printed = paper[[*at, "value"]].rename(columns={"value": "paper"})
    rows = both.merge(printed, how="left", on=at, validate="1:1")
    for column, order in (("metric", list(metrics)), ("dataset", list(both["dataset"].unique()))):
        places = rows[column].map(order.index).sort_values(kind="stable")
        rows = rows.loc[places.index].reset_index(drop=True)
    return rows[[*at, "paper", *both.columns.drop(at)]]


def _beside(here: pd.DataFrame, committed: pd.DataFrame | None, at: list[str]) -> pd.DataFrame:
    """Rows of this run and of the committed full run, joined by their labels."""
    named = {name: f"full_run_{name}" for name in COLUMNS} | {"value": "full_run"}
    there = pd.DataFrame(columns=at) if committed is None else committed
    there = there.reindex(columns=[*at, *COLUMNS]).rename(columns=named)
    # a label that one of them lacks is missing there, whatever its type in the other
    there = there[there["full_run"].notna()].astype(dict.fromkeys(at, object))
    here = here.astype(dict.fromkeys(at, object))
    order = pd.concat([there[at], here[at]]).drop_duplicates()  # as the full run has it
    both = order.merge(here[[*at, *COLUMNS]], how="left", on=at, validate="1:1")
    both = both.merge(there, how="left", on=at, validate="1:1")
    numbers = [name for name in both if name not in at and not str(name).endswith("interval")]
    both = both.astype(dict.fromkeys(numbers, "float64"))
    inside = both["value"].between(both["full_run_low"], both["full_run_high"])
    known = both[["value", "full_run_low", "full_run_high"]].notna().all(axis=1)
    return both.assign(
        replicates=inside.map({True: "inside", False: "outside"}).where(known, "").astype(str)
    )


def own_columns(beside: pd.DataFrame) -> pd.DataFrame:
    """What this run has in a table of :func:`beside_paper`, to be written: it may be published."""
    theirs = [name for name in beside if str(name).startswith("full_run")] + ["paper", "replicates"]
    return beside.loc[beside["value"].notna()].drop(columns=theirs)


def _both_cells(rows: pd.DataFrame, trained: Collection[str]) -> dict[str, list[Any]]:
    """Cells of the committed full run, if there is one, and of this run beside it."""
    runs = rows.to_dict("records")
    cells: dict[str, list[Any]] = {}
    if rows["full_run"].notna().any():
        ends = {"value": "full_run", "low": "full_run_low", "high": "full_run_high"}
        there = [{name: row[column] for name, column in ends.items()} for row in runs]
        cells["committed full run"] = [_cell(row) for row in there]
    cells["this run"] = [_cell(row) if row["system"] in trained else NOT_TRAINED for row in runs]
    if "committed full run" in cells:
        cells["this run is"] = rows["replicates"].to_list()
    return cells


def _cell(row: Mapping[Any, Any]) -> Interval | float | None:
    """A value with its interval; alone where one seed and no resample leave it without."""
    return float(row["value"]) if np.isnan(row["low"]) else as_interval(row)


def show_beside(
    beside: pd.DataFrame, metrics: Mapping[str, tuple[str, str]], caption: str
) -> display.Html:
    """Tables of :func:`beside_paper` as a page shows them, one for each metric.

    ``metrics`` are their headings and formats, by metric.

    Example:
        >>> measurements = pd.DataFrame({"system": "SLM", "seed": [0, 1], "dataset": "chains",
        ...     "metric": "ece_per_run", "resample": 0, "value": [0.3, 0.4]})
        >>> beside = beside_paper(measurements, paper_rows(12), metrics=["ece_per_run"])
        >>> ">0.57</td>" in show_beside(beside, {"ece_per_run": ("ECE", ".2f")}, "ECE.").data
        True
    """
    parts, trained = [], set(beside.loc[beside["value"].notna(), "system"])
    for metric, (heading, spec) in metrics.items():
        rows = beside[beside["metric"] == metric]
        shown = rows[["dataset", "system"]].reset_index(drop=True)
        if rows["paper"].notna().any():
            shown["paper"] = rows["paper"].to_list()
        shown = shown.assign(**_both_cells(rows, trained))
        if len(rows["dataset"].unique()) == 1:
            shown = shown.drop(columns="dataset")
        numbers = [n for n in ("paper", "committed full run", "this run") if n in shown]
        text = caption if len(metrics) == 1 else f"{heading}. {caption}"
        if "this run is" in shown:
            text += f" {_REPLICATION}"
        parts.append(display.table(shown, text, formats=dict.fromkeys(numbers, spec)).data)
    return display.Html("\n".join(parts))


def sources(beside: pd.DataFrame) -> pd.DataFrame:
    """The numbers of :func:`beside_paper` one below the other, to be drawn.

    Columns ``dataset, metric, system, whose`` (paper, committed full run, this run), ``estimate,
    low, high``; a source without any number is left out.
    """
    at = ["dataset", "metric", "system"]
    of = {
        "paper": beside.assign(value=beside["paper"], low=np.nan, high=np.nan),
        "committed full run": beside.assign(
            value=beside["full_run"], low=beside["full_run_low"], high=beside["full_run_high"]
        ),
        "this run": beside,
    }
    parts = [
        rows[[*at, "value", "low", "high"]].assign(whose=whose)
        for whose, rows in of.items()
        if rows["value"].notna().any()
    ]
    return pd.concat(parts, ignore_index=True).rename(columns={"value": "estimate"})


def cost_accuracy_points(
    tables: Mapping[str, pd.DataFrame], *, large: str = LARGE_MODEL
) -> pd.DataFrame:
    """Pass@1 and cost relative to the large model, of each source, to be drawn.

    ``tables`` are, by source, :func:`paper_rows` or summaries of ``measure_cascades``.
    """
    parts = []
    for source, table in tables.items():
        rows = table.reindex(columns=["dataset", "system", "metric", "value", "low", "high"])
        of = rows.pivot(index=["dataset", "system"], columns="metric")
        of_large = of["value", "cost"].xs(large, level="system")
        points = pd.DataFrame(
            {
                "source": source,
                "pass_at_1": of["value", "pass_at_1"],
                "cost": 100 * of["value", "cost"].div(of_large, level="dataset"),
            }
        )
        for end in ("low", "high"):
            points[f"pass_at_1_{end}"] = of[end, "pass_at_1"]
            points[f"cost_{end}"] = 100 + of[end, "cost_change"]
        order = rows[["dataset", "system"]].drop_duplicates()
        parts.append(order.merge(points.dropna(subset=["cost"]).reset_index()))
    found = pd.concat(parts, ignore_index=True)
    return found.assign(together=found["system"].isin(list(CASCADES)))


# --- contrasts --------------------------------------------------------------------------------


def contrasts(
    measurements: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    *,
    metrics: Sequence[str],
    datasets: Collection[str] = (),
    ratios: Collection[str] = (),
) -> pd.DataFrame:
    """Differences of the pairs (system, baseline) of which both were measured.

    A row per pair, dataset and metric, as :func:`corea.metrics.intervals.differences` gives it,
    with a column ``statistic``: ``"difference"``, or ``"ratio"`` of the metrics in ``ratios``.

    Example:
        >>> measurements = pd.DataFrame({"system": ["SLM", "L1"] * 2, "seed": [0, 0, 1, 1],
        ...     "dataset": "chains", "metric": "ece", "resample": 0, "value": [0.4, 0.1, 0.6, 0.1]})
        >>> found = contrasts(measurements, [("L1", "SLM"), ("L2", "SLM")], metrics=["ece"])
        >>> found[["system", "baseline", "value"]].values.tolist()
        [['L1', 'SLM', -0.4]]
    """
    there = set(measurements["system"])
    made = [pair for pair in dict.fromkeys(pairs) if set(pair) <= there]
    kept = measurements[measurements["metric"].isin(metrics)]
    if datasets:
        kept = kept[kept["dataset"].isin(datasets)]
    parts = [differences(kept, made).assign(statistic="difference")]
    if ratios:
        of_ratios = kept[kept["metric"].isin(ratios)]
        parts.append(differences(of_ratios, made, ratio=True).assign(statistic="ratio"))
    found = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return found[[*CONTRAST, *COLUMNS]]


def pareto_shares(
    measurements: pd.DataFrame, *, gain: str, loss: str, seed: int = 0
) -> pd.DataFrame:
    """How often each system is on the Pareto front of a gain and a loss, over the resamples.

    In each resample of the questions seeds are drawn with replacement from those that all systems
    share. What is not defined is on no front. Columns ``system, share, n_seeds``; measurements of
    one dataset.

    Example:
        >>> measurements = pd.DataFrame({"system": ["a", "a", "b", "b"], "seed": 0,
        ...     "metric": ["acc", "ece"] * 2, "resample": 1, "value": [0.9, 0.1, 0.8, 0.2]})
        >>> pareto_shares(measurements, gain="acc", loss="ece")["share"].tolist()
        [1.0, 0.0]
    """
    resampled = measurements[measurements["resample"] > 0]
    seeds = set.intersection(*(set(rows["seed"]) for _, rows in resampled.groupby("system")))
    cells = resampled[resampled["seed"].isin(seeds)].pivot(
        index=["resample", "system"], columns=["metric", "seed"], values="value"
    )
    systems = list(measurements["system"].unique())
    rng = np.random.default_rng(seed)
    on_front = []
    for _, rows in cells.groupby(level="resample"):
        drawn = rng.choice(sorted(seeds), len(seeds))
        of = rows.droplevel("resample").loc[systems]
        lost, gained = (of[name][list(drawn)].to_numpy().mean(axis=1) for name in (loss, gain))
        known = ~np.isnan(lost + gained)
        front = np.zeros(len(systems), dtype=bool)
        front[known] = pareto_front(lost[known], gained[known])
        on_front.append(front)
    share = np.mean(on_front, axis=0)
    return pd.DataFrame({"system": systems, "share": share, "n_seeds": len(seeds)})


def lay_out_systems(
    table: pd.DataFrame, cascades: Mapping[str, Cascade], metrics: Mapping[str, str]
) -> pd.DataFrame:
    """Systems in the paper's own wide layout, as Tables 1 and 5 to 11 have it.

    ``table`` is :func:`corea.metrics.intervals.summarize` of ``measure_cascades``, of which
    ``cascades`` are the collaborative systems; a change stands in parentheses behind its value,
    and what was not measured is empty.

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
                value = cells.get((system, dataset, metric))
                text = "" if value is None else f"{value:.{0 if 'cost' in metric else 1}f}"
                change = cells.get((system, dataset, f"{metric}_change"))
                if together and change is not None:
                    text += f" ({change:+.1f}{'%' * (metric == 'cost')})"
                row[heading if len(datasets) == 1 else f"{dataset} {heading}"] = text
        rows.append(row)
    return pd.DataFrame(rows).rename(columns={"block": ""})
