"""The two papers' printed tables, and what can be checked with nothing but them.

The numbers lie in ``data/published/paper_a.csv`` and ``paper_b.csv``, one row per
printed number. A check compares a printed number with one recomputed from other
printed numbers. Printed numbers are rounded, so where something was computed a check
never asks for equality: it carries the rounding of its inputs (half a unit of the last
digit each, worst case) to the result and adds the rounding of the printed number. A
cell *agrees* when the difference is within that tolerance.

What differs from the papers' pages:

1. Paper A's Tables 2-4 lost their cells in the text at hand and are not transcribed.
   :func:`recompute_lost_table` computes them from Tables 12-15 instead.
2. Paper B's Table 7: the text moved the row "OpenAI, Base" two cells to the right and
   cut it after the first number. That number is recorded under the first model, the
   two lost ones as missing; their ``note`` says so, and no check uses them.
3. Marks at names are left out: the star at paper A's own systems (``L1-SLM*``), the
   dagger and the star at paper B's datasets.
4. A number in parentheses behind another one, ``60.3 (-8.6)``, is a row of its own
   whose metric ends in ``_change``.
5. Units stay the papers': accuracies, pass@1, deferral rates and paper B's ECE, SCE,
   MCE and AUROC in percent, paper A's ECE and AUROC as fractions.
6. A column is taken to be rounded at the precision of its most precise cell: paper A
   prints 0 and 100 without decimals in columns that have one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd

from corea.checks import one_of
from corea.rlcc.cascades import LARGE_MODEL

QUESTIONS: Mapping[str, int] = {
    "DeepMath500": 500,
    "Math500": 500,
    "GSM8K": 1319,
    "OlympiadBench": 675,
    "GPQA": 448,
    "CommonsenseQA": 1221,
}
"""Questions per dataset of paper A. Source: paper A, section 4.1 (DeepMath500, GPQA,
CommonsenseQA); the sizes of the public test sets for the other three."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "DeepMath500": ("DeepMath500",),
    "OOD Math": ("Math500", "GSM8K", "OlympiadBench"),
    "OOD Non-Math": ("GPQA", "CommonsenseQA"),
}
"""Datasets behind each column group of paper A's Tables 1 and 11. Source: section 4.1."""

SMALL_MODEL: Mapping[str, str] = {
    "SLM-Verb": "SLM",
    "RLVR-SLM-Verb": "RLVR-SLM",
    "RLVR-SLM-AvgProb": "RLVR-SLM",
    "RLVR-SLM-Probe": "RLVR-SLM",
    "Router+RLVR-SLM": "RLVR-SLM",
    "Brier-SLM-Verb": "Brier-SLM",
    "COREA": "L1-SLM",
}
"""Small model inside each of paper A's collaborative systems. Source: section 4.2."""

ROUTER = "Router+RLVR-SLM"

TABLES: Mapping[tuple[str, int], str] = {
    ("A", 1): "standalone and collaborative systems, in and out of domain",
    **{("A", n): f"systems on {dataset}" for n, dataset in enumerate(QUESTIONS, start=5)},
    ("A", 11): "systems with a 1.5B small model",
    ("A", 12): "confidence rewards on DeepMath500, Math500 and GSM8K",
    ("A", 13): "confidence rewards on OlympiadBench, GPQA and CommonsenseQA",
    ("A", 14): "rollout sizes on DeepMath500, Math500 and GSM8K",
    ("A", 15): "rollout sizes on OlympiadBench, GPQA and CommonsenseQA",
    ("B", 1): "accuracy and ECE of base, SFT and GRPO models",
    ("B", 2): "share of sampled decisions with a probability above 0.99",
    ("B", 3): "share of decisions that flip with swapped reasoning",
    ("B", 4): "accuracy and ECE of base, SFT, GRPO and the proposed models",
    ("B", 5): "ECE after post-hoc calibration",
    ("B", 6): "static and marginal calibration error",
    ("B", 7): "AUROC for selective prediction",
    ("B", 8): "weight of the calibration loss",
    ("B", 9): "weight of the KL penalty in GRPO",
}
"""What each transcribed table shows, by paper and number."""

_LABELS = ["block", "dataset", "model", "system", "setting", "metric", "unit", "note"]
_COLUMNS = [
    *("paper", "table", "block", "dataset", "model", "system", "setting", "metric"),
    *("value", "spread", "unit", "decimals", "half_unit", "note"),
]
_COMPARISON = ["printed", "recomputed", "difference", "tolerance", "agrees", "same_digits"]
_PER_DATASET = range(5, 11)

# row and column headings of the papers' own layouts
_LAYOUT: Mapping[tuple[str, int], tuple[list[str], list[str]]] = {
    **{("A", n): (["block", "system"], ["dataset", "metric"]) for n in (1, 11)},
    **{("A", n): (["block", "system"], ["metric"]) for n in _PER_DATASET},
    **{("A", n): (["system"], ["dataset", "metric"]) for n in (12, 13)},
    **{("A", n): (["setting"], ["dataset", "metric"]) for n in (14, 15)},
    **{("B", n): (["dataset", "system"], ["model", "metric"]) for n in (1, 4, 6)},
    **{("B", n): (["dataset"], ["model"]) for n in (2, 3)},
    ("B", 5): (["model", "setting"], ["dataset", "system"]),
    ("B", 7): (["dataset", "system"], ["model"]),
    **{("B", n): (["dataset", "setting"], ["metric"]) for n in (8, 9)},
}
_SETTING_HEADING = {
    **{("A", n): "Rollout Size" for n in (14, 15)},
    ("B", 5): "Post-Hoc",
    ("B", 8): "lambda",
    ("B", 9): "beta",
}
_METRIC_HEADING = {
    "pass_at_1": "Pass@1%",
    "cost": "Total Cost",
    "deferral_rate": "LLM%",
    "small_cost": "SLM Cost",
    "large_cost": "LLM Cost",
    "accuracy": "Acc",
    "ece": "ECE",
    "auroc": "AUROC",
    "sce": "SCE",
    "mce": "MCE",
}

# a difference that equals its tolerance on paper must agree in floating point
_SLACK = 1e-9


@cache
def _transcription(paper: str) -> pd.DataFrame:
    source = files("corea").joinpath("data", "published", f"paper_{paper.lower()}.csv")
    with source.open("rb") as stream:
        # as text: "None" is a setting here, and trailing zeros say how a number was rounded
        text = pd.read_csv(stream, dtype=str, keep_default_na=False)
    value = text["value"].mask(text["value"] == "")
    frame = text[_LABELS].assign(
        paper=paper,
        table=text["table"].astype("int64"),
        value=pd.to_numeric(value),
        spread=pd.to_numeric(text["spread"].mask(text["spread"] == "")),
        decimals=value.str.partition(".")[2].str.len().astype("Int64"),
    )
    finest = frame.groupby(["table", "metric"])["decimals"].transform("max").astype("float64")
    return frame.assign(half_unit=0.5 * 10.0**-finest)[_COLUMNS]


def published_table(paper: str, table: int) -> pd.DataFrame:
    """One printed table of a paper, one row per printed number, in reading order.

    Source: paper A, Tables 1 and 5-15; paper B, Tables 1-9.

    Example:
        >>> rows = published_table("A", 1)
        >>> corea = rows[(rows["system"] == "COREA") & (rows["dataset"] == "OOD Math")]
        >>> dict(zip(corea["metric"], corea["value"], strict=True))["cost_change"]
        -21.5
    """
    one_of(paper, "paper", ("A", "B"))
    one_of(table, f"table of paper {paper}", [n for p, n in TABLES if p == paper])
    whole = _transcription(paper)
    return whole[whole["table"] == table].reset_index(drop=True)


def lay_out_table(paper: str, table: int) -> pd.DataFrame:
    """One printed table in the paper's own wide layout, cells as printed.

    Example:
        >>> lay_out_table("A", 5).loc[("Collaborative", "COREA"), "Total Cost"]
        '13882 (-6.7%)'
    """
    rows = published_table(paper, table)
    index, columns = _LAYOUT[paper, table]
    rows["text"] = rows.apply(_printed, axis=1)
    # "60.3" and "(-8.6)" are one cell on paper
    rows["metric"] = rows["metric"].str.removesuffix("_change").replace(_METRIC_HEADING)
    if table in (1, 11):
        rows["metric"] = rows["metric"].replace("Total Cost", "Avg Cost")
    cells = rows.groupby([*index, *columns], sort=False)["text"].agg(" ".join)
    wide = cells.mask(cells == "").unstack(columns, sort=False)
    headings = {"block": "", "setting": _SETTING_HEADING.get((paper, table), "")}
    wide.index.names = [headings.get(name, name.title()) for name in index]
    wide.columns.names = [None] * wide.columns.nlevels
    return wide


def _printed(row: pd.Series) -> str:
    """One number as it stands on paper; empty if it is lost."""
    if pd.isna(row["value"]):
        return ""
    if row["metric"].endswith("_change"):
        return f"({row['value']:+.{row['decimals']}f}{'%' * (row['unit'] == '%')})"
    text = f"{row['value']:.{row['decimals']}f}"
    if not pd.isna(row["spread"]):
        text += f"±{row['spread']:.{row['decimals']}f}"
    return text + "%" * (row["metric"] in {"share_above_0.99", "flipped_share"})


def weighted_mean_over_datasets(
    values: pd.DataFrame, weights: Mapping[str, float] = QUESTIONS
) -> pd.Series:
    r"""Mean over datasets, each weighted by its number of questions.

    .. math:: \bar v = \sum_d n_d v_d / \sum_d n_d

    Source: not stated in paper A; its Table 1 follows from its Tables 5-10 this way
    (:func:`cross_check_table1`).

    Example:
        >>> values = pd.DataFrame({"easy": [90.0], "hard": [30.0]}, index=["SLM"])
        >>> float(weighted_mean_over_datasets(values, {"easy": 100, "hard": 200})["SLM"])
        50.0
    """
    if set(values.columns) != set(weights):
        raise ValueError(f"datasets: found {list(values.columns)}, expected {list(weights)}")
    weight = pd.Series(dict(weights), dtype="float64")
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError(f"weights: found {dict(weights)}, expected positive numbers")
    for row, column in np.argwhere(values.isna().to_numpy())[:1]:
        where = f"row {values.index[row]!r}, dataset {values.columns[column]!r}"
        raise ValueError(f"values: no number at {where}")
    return (values[weight.index] * weight).sum(axis=1) / weight.sum()


def cross_check_table1(weights: Mapping[str, float] = QUESTIONS) -> pd.DataFrame:
    """Every cell of paper A's Table 1 against the weighted mean of Tables 5-10.

    Source: paper A, Table 1 and Tables 5-10. A change is recomputed from the weighted
    means, not from the printed cells of Table 1.
    """
    detail = _tables("A", _PER_DATASET)
    recomputed = []
    for group, datasets in GROUPS.items():
        rows = detail[detail["dataset"].isin(datasets)]
        means = {
            metric: weighted_mean_over_datasets(
                _wide(_where(rows, metric=metric), "system", "dataset"),
                {d: weights[d] for d in datasets},
            )
            for metric in ("pass_at_1", "cost", "deferral_rate")
        }
        recomputed.append(_with_changes(pd.DataFrame(means)).assign(dataset=group))
    return _compare(published_table("A", 1), pd.concat(recomputed))


def cross_check_changes() -> pd.DataFrame:
    """Every printed change against the printed values of its own table.

    Source: paper A, Tables 1 and 5-11: the numbers in parentheses are differences in
    pass@1 (percentage points) and relative differences in cost (%) from the Baseline
    LLM.
    """
    rows = _tables("A", (1, *_PER_DATASET, 11))
    recomputed = []
    for table, dataset in rows[["table", "dataset"]].drop_duplicates().itertuples(index=False):
        part = rows[(rows["table"] == table) & (rows["dataset"] == dataset)]
        changes = _with_changes(_wide(part, "system", "metric")[["pass_at_1", "cost"]])
        recomputed.append(changes.assign(table=table, dataset=dataset))
    changes = rows[rows["metric"].str.endswith("_change")]
    return _compare(changes, pd.concat(recomputed), "table")


def cross_check_cost_sums() -> pd.DataFrame:
    """Small-model cost plus large-model cost against the printed total.

    Source: paper A, Tables 5-10 and section 4.3: a cascade always pays the small model,
    and the large one for deferred questions. The router system pays its router as well
    and is left to :func:`router_cost`.
    """
    rows = _tables("A", _PER_DATASET)
    rows = rows[rows["system"] != ROUTER]
    parts = rows[rows["metric"].isin(["small_cost", "large_cost"])]
    sums = (
        parts.groupby(["table", "dataset", "system"], sort=False)
        .agg(recomputed=("value", "sum"), input_tolerance=("half_unit", "sum"))
        .reset_index()
        .assign(metric="cost")
    )
    return _compare(rows[rows["metric"] == "cost"], sums, "table")


def router_cost() -> pd.DataFrame:
    """What the router itself costs: total less small-model and large-model cost.

    Source: paper A, Tables 5-10, system ``Router+RLVR-SLM``; section 4.3.
    """
    rows = _tables("A", _PER_DATASET)
    router = rows[rows["system"] == ROUTER]
    costs = ["cost", "small_cost", "large_cost"]
    cost = _wide(router, "dataset", "metric")[costs].reindex(list(QUESTIONS))
    rest = cost["cost"] - cost["small_cost"] - cost["large_cost"]
    tolerance = _half_units(router)[costs].sum()
    return cost.assign(
        router_cost=rest, tolerance=tolerance, share=rest / cost["cost"]
    ).reset_index()


def cross_check_repeats() -> pd.DataFrame:
    """Numbers that stand in two tables, against each other.

    Source: paper A, Tables 5-15; paper B, Tables 1, 4, 5, 8 and 9. Copies must be equal.
    The one computed row is the large model's cost in paper A's Table 11: costs count
    input tokens of the small model, so the same runs cost 7/1.5 times as much beside a
    1.5B model as beside a 7B one.
    """
    rewards, rollouts = _tables("A", (12, 13)), _tables("A", (14, 15))
    detail = _where(_tables("A", _PER_DATASET), metric="small_cost")
    small = _where(detail, block="Standalone")
    cascades = _where(detail[detail["system"] != ROUTER], block="Collaborative")
    size_ratio = 7 / 1.5
    large = {n: _where(published_table("A", n), system=LARGE_MODEL) for n in (1, 11)}
    large[1]["value"] *= np.where(large[1]["metric"] == "cost", size_ratio, 1.0)
    b1, b4, b5, b8, b9 = (published_table("B", n) for n in (1, 4, 5, 8, 9))
    small_b = _where(b4, model="Qwen3-1.7B")
    pairs = {
        "A 14-15 (rollout size 8) = A 12-13 (L1)": (
            _with_spread(_where(rollouts, setting="8")),
            _with_spread(_where(rewards, system="L1")),
        ),
        "A 5-10, SLM cost: collaborative = standalone": (
            cascades.assign(system=cascades["system"].map(SMALL_MODEL)),
            small,
        ),
        "A 11 = A 1 (large model, cost x 7/1.5)": (large[11], large[1]),
        "B 1 = B 4": (b1, b4),
        "B 5 (no post-hoc calibration) = B 4": (_where(b5, setting="None"), b4),
        "B 8 (lambda 0.001) = B 4 (Ours)": (_where(b8, setting="0.001"), small_b),
        "B 9 (beta 0) = B 4 (GRPO)": (_where(b9, setting="0"), small_b),
    }
    on = ["dataset", "model", "system", "metric"]
    compared = []
    for check, (first, second) in pairs.items():
        both = first.merge(second[[*on, "value"]], how="left", on=on, suffixes=("", "_second"))
        scaled = check.startswith("A 11") & (both["metric"] == "cost")
        compared.append(
            both.assign(
                check=check,
                printed=both["value"],
                recomputed=both["value_second"],
                tolerance=np.where(scaled, both["half_unit"] * (1 + size_ratio), 0.0),
            )
        )
    return _judge(pd.concat(compared, ignore_index=True))[["check", *on, *_COMPARISON]]


def compare_evaluations() -> pd.DataFrame:
    """Pass@1 of the same small models in two evaluations of paper A.

    Source: paper A, Tables 12-13 (with a spread) against Tables 5-10 (without one).
    Section 4.4: results are averages of 10 runs; what the number behind ± is, the paper
    does not say.
    """
    systems = {"SLM": "SLM", "RLVR": "RLVR-SLM", "L1": "L1-SLM", "Brier": "Brier-SLM"}
    rewards = _where(_tables("A", (12, 13)), metric="pass_at_1")
    rewards = rewards[rewards["system"].isin(systems)]
    rewards["system"] = rewards["system"].map(systems)
    on = ["dataset", "system", "metric"]
    detail = _tables("A", _PER_DATASET)[[*on, "value"]]
    both = rewards.merge(detail, how="left", on=on, validate="1:1", suffixes=("", "_detail"))
    both["printed"], both["recomputed"] = both["value"], both["value_detail"]
    both["tolerance"] = both["spread"] + 2 * both["half_unit"]
    return _judge(both)[[*on, *_COMPARISON]]


def deferral_selectivity() -> pd.DataFrame:
    r"""Which questions a system defers, as far as printed averages tell.

    With deferral rate :math:`r`, large-model cost :math:`C` (alone) and :math:`c` (in
    the system), the mean cost of a deferred question relative to all questions is
    :math:`c / (r C)`. Deferring the same share at random would reach a pass@1 of
    :math:`(1-r) p_{small} + r\,p_{large}`.

    Source: paper A, Tables 5-10; the relations follow from section 4.3.
    """
    rows = _tables("A", _PER_DATASET)
    wide, half = _wide(rows, ["dataset", "system"], "metric"), _half_units(rows)
    system = wide.loc[[(d, s) for d in QUESTIONS for s in SMALL_MODEL]].reset_index()
    alone = wide.loc[list(zip(system["dataset"], system["system"].map(SMALL_MODEL), strict=True))]
    large = wide.xs(LARGE_MODEL, level="system").loc[system["dataset"]].reset_index(drop=True)
    rate, cost = system["deferral_rate"] / 100, system["large_cost"]
    half_rate, half_cost = half["deferral_rate"] / 100, half["large_cost"]
    deferring = rate > 0
    highest = (cost + half_cost) / ((rate - half_rate).clip(lower=0) * (large["cost"] - half_cost))
    lowest = (cost - half_cost) / ((rate + half_rate) * (large["cost"] + half_cost))
    p_small, p_large = alone["pass_at_1"].to_numpy(), large["pass_at_1"]
    random = (1 - rate) * p_small + rate * p_large
    return system[["dataset", "system", "deferral_rate"]].assign(
        cost_ratio=(cost / (rate * large["cost"])).where(deferring),
        cost_ratio_low=lowest.where(deferring),
        cost_ratio_high=highest.where(deferring),
        pass_at_1=system["pass_at_1"],
        random_pass_at_1=random,
        gain=system["pass_at_1"] - random,
        gain_tolerance=2 * half["pass_at_1"] + half_rate * (p_large - p_small).abs(),
    )


def sweep_price_ratio(factors: Iterable[float]) -> pd.DataFrame:
    r"""The change in cost of paper A's systems, were its large model dearer than it is.

    With the large model's price times f, of the costs in the tables,

    .. math:: 100\,\left(\frac{C - C_L}{f\, C_\mathrm{alone}}
        + \frac{C_L}{C_\mathrm{alone}} - 1\right),

    which falls towards what is left of the large model's own cost, :math:`100\,(C_L /
    C_\mathrm{alone} - 1)`, as f grows. Columns ``dataset, system, price_factor, cost_change``;
    collaborative systems.

    Source: paper A, Tables 5-10; its limitations say that savings grow with the ratio.

    Example:
        >>> limit = sweep_price_ratio([np.inf]).set_index(["dataset", "system"])["cost_change"]
        >>> round(float(limit["GPQA", "COREA"]), 1)
        -49.8
    """
    wide = _wide(_tables("A", _PER_DATASET), ["dataset", "system"], "metric")
    of = wide.loc[[(d, s) for d in QUESTIONS for s in SMALL_MODEL]]
    alone = wide["cost"].xs(LARGE_MODEL, level="system").reindex(of.index, level="dataset")
    rest, large = (of["cost"] - of["large_cost"]) / alone, of["large_cost"] / alone
    parts = [
        (100 * (rest / factor + large - 1)).rename("cost_change").reset_index()
        .assign(price_factor=float(factor))
        for factor in factors
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def hyperparameters() -> pd.DataFrame:
    """What the papers trained with, as the profile ``paper`` has it, and where each value is from.

    Columns ``paper, setting`` (entry of the profile and parameter), ``value`` and ``place``: a
    section of the paper; SimpleRL, the framework of paper A, or TRL, that of paper B, to whose
    defaults they refer; or "ours:" and why. A test compares them with ``profiles/paper.yaml``.

    Example:
        >>> rows = hyperparameters().set_index("setting")
        >>> rows.loc["train.kl_coef", "value"].to_list()
        ['0.0001', '0.001']
    """
    source = files("corea").joinpath("data", "published", "hyperparameters.csv")
    with source.open("rb") as stream:
        return pd.read_csv(stream, dtype=str, keep_default_na=False)


def recompute_lost_table(table: int) -> pd.DataFrame:
    """A summary table of paper A whose cells are lost, from Tables 12-15.

    The mean over all six datasets, weighted by questions. The six numbers of Table 4
    that section 5.4.3 quotes come out (:func:`check_claims`), the unweighted mean misses
    them. Spreads cannot be recomputed: they depend on how datasets vary together.

    Source: paper A, Tables 2-4 (headings) and 12-15 (numbers).
    """
    if table not in (2, 3, 4):
        raise ValueError(f"table of paper A: found {table!r}, expected 2, 3 or 4")
    row = "setting" if table == 4 else "system"
    rows = _tables("A", (14, 15) if table == 4 else (12, 13))
    means = pd.DataFrame(
        {
            metric: weighted_mean_over_datasets(_wide(part, row, "dataset"))
            for metric, part in rows.groupby("metric", sort=False)
        }
    ).loc[rows[row].unique()]
    if table == 2:
        methods = {"SLM-Verb": "SLM", "RLVR-SLM-Verb": "RLVR"}
        methods |= dict.fromkeys(("RLVR-SLM-AvgProb", "RLVR-SLM-Probe", ROUTER), "")
        methods |= {"Brier-SLM-Verb": "Brier", "L1-SLM-Verb": "L1"}
        return means.reindex(list(methods.values())).set_axis(pd.Index(methods, name="Method"))
    if table == 3:
        return means.drop(["SLM", "RLVR"]).rename_axis("Conf. Reward")
    return means.rename_axis("Rollout Size")


def check_claims() -> pd.DataFrame:
    """Numbers in the papers' sentences against the papers' tables.

    Paper A's method ranks are among the four of Table 2's seven methods that can be
    recomputed. Paper B's "consistently outperforms" (appendix B.3) does not say in what;
    it is counted for both metrics of Table 8.

    Source: paper A, abstract and sections 5.1, 5.3 and 5.4.3; paper B, abstract,
    sections 3.3 and 5.1, appendices B.2 and B.3.
    """
    columns = ["paper", "section", "claim", "relation", "claimed", "recomputed"]
    claims = pd.DataFrame(_claims_a() + _claims_b(), columns=[*columns, "tolerance", "unit"])
    claims = claims.astype(dict.fromkeys(("claimed", "recomputed", "tolerance"), "float64"))
    above = claims["recomputed"] - claims["claimed"]
    slack = claims["tolerance"] + _SLACK
    within = (above <= slack) & ((above >= -slack) | (claims["relation"] == "<="))
    return claims.assign(agrees=within)


def _claims_a() -> list[tuple[object, ...]]:
    claims: list[tuple[object, ...]] = []
    corea = _where(cross_check_table1(), system="COREA")
    cost = _where(corea, metric="cost_change").set_index("dataset")
    for group, section, claimed in (
        ("DeepMath500", "5.1", 6.7),
        ("OOD Math", "abstract", 21.5),
        ("OOD Non-Math", "abstract", 16.8),
    ):
        found, tolerance = -cost["recomputed"][group], cost["tolerance"][group]
        what = f"COREA reduces cost on {group} by"
        claims.append(("A", section, what, "=", claimed, found, tolerance, "%"))
    drop = -_where(corea, metric="pass_at_1_change")["recomputed"]
    what = "COREA's drop in pass@1 is at most"
    claims.append(("A", "abstract", what, "<=", 2.0, drop.max(), 0.1, "percentage points"))
    rollouts = recompute_lost_table(4)
    units = {"pass_at_1": ("%", 0.05), "ece": ("fraction", 0.005), "auroc": ("fraction", 0.005)}
    for size, quoted in (("32", (68.3, 0.17, 0.65)), ("16", (66.7, 0.10, 0.69))):
        for (metric, (unit, half_unit)), claimed in zip(units.items(), quoted, strict=True):
            what = f"rollout size {size}, all datasets: {_METRIC_HEADING[metric].rstrip('%')}"
            found = rollouts[metric][size]
            claims.append(("A", "5.4.3", what, "=", claimed, found, 2 * half_unit, unit))
    methods = recompute_lost_table(2)
    for section, table, row, metric, ascending in (
        ("5.3", methods, "L1-SLM-Verb", "pass_at_1", False),
        ("5.3", methods, "L1-SLM-Verb", "ece", True),
        ("5.4.3", rollouts, "32", "pass_at_1", False),
        ("5.4.3", rollouts, "16", "ece", True),
        ("5.4.3", rollouts, "16", "auroc", False),
    ):
        rank = table[metric].rank(ascending=ascending)[row]
        what = f"{table.index.name} {row} has the best {_METRIC_HEADING[metric].rstrip('%')}"
        claims.append(("A", section, what, "=", 1, rank, 0, "rank"))
    return claims


def _claims_b() -> list[tuple[object, ...]]:
    results = published_table("B", 4)
    by_model = _wide(results, ["dataset", "model"], ["metric", "system"])
    accuracy, ece = by_model["accuracy"], by_model["ece"]
    auroc = _wide(published_table("B", 7), ["dataset", "model"], "system")
    weights = _wide(published_table("B", 8), ["dataset", "setting"], "metric")
    grpo = _wide(_where(results, model="Qwen3-1.7B", system="GRPO"), "dataset", "metric")
    grpo = grpo.reindex(weights.index, level="dataset")
    better = accuracy["GRPO"] - accuracy["SFT"]
    sft = ece["SFT"].groupby("dataset").mean()
    # a claim in whole points is rounded to half a point, the tables to half a hundredth
    whole, point = 0.5 + 2 * 0.005, "percentage points"

    def count(section: str, what: str, won: pd.Series) -> tuple[object, ...]:
        return ("B", section, what, "=", len(won), won.sum(), 0, "cells")

    gain = (ece["GRPO"] - ece["Ours"]).max()
    more_accurate = weights["accuracy"] > grpo["accuracy"]
    return [
        ("B", "abstract", "ECE reduced by up to", "=", 9, gain, whole, point),
        ("B", "3.3", "GRPO above SFT on average by", "=", 3, better.mean(), whole, point),
        count("3.3", "GRPO consistently above SFT in accuracy", better > 0),
        ("B", "3.3", "SFT reduces ECE on CSQA to around", "=", 7, sft["CSQA"], whole, "%"),
        ("B", "3.3", "SFT reduces ECE on OpenAI to about", "=", 4, sft["OpenAI"], whole, "%"),
        count("5.1", "the proposal's ECE is below GRPO's", ece["Ours"] < ece["GRPO"]),
        count("B.2", "the proposal's AUROC is above GRPO's", auroc["Ours"] > auroc["GRPO"]),
        count("B.3", "better than GRPO for all lambda: ECE", weights["ece"] < grpo["ece"]),
        count("B.3", "better than GRPO for all lambda: accuracy", more_accurate),
    ]


def _tables(paper: str, numbers: Iterable[int]) -> pd.DataFrame:
    return pd.concat([published_table(paper, n) for n in numbers], ignore_index=True)


def _wide(rows: pd.DataFrame, index: str | list[str], columns: str | list[str]) -> pd.DataFrame:
    return rows.pivot(index=index, columns=columns, values="value")


def _half_units(rows: pd.DataFrame) -> pd.Series:
    """Half a unit of the last printed digit of each metric."""
    return rows.groupby("metric")["half_unit"].first()


def _where(rows: pd.DataFrame, **labels: str) -> pd.DataFrame:
    for column, label in labels.items():
        rows = rows[rows[column] == label]
    return rows.copy()


def _with_spread(rows: pd.DataFrame) -> pd.DataFrame:
    spread = rows.assign(metric=rows["metric"] + "_spread", value=rows["spread"])
    return pd.concat([rows, spread], ignore_index=True)


def _with_changes(systems: pd.DataFrame) -> pd.DataFrame:
    """Long table of paper A's metrics and their changes against the large model.

    A cost change is a ratio: its tolerance is the farther end of the interval that the
    rounded costs allow.
    """
    half = _half_units(published_table("A", 1))
    large = systems.loc[LARGE_MODEL]
    ratio = systems["cost"] / large["cost"]
    highest = (systems["cost"] + half["cost"]) / (large["cost"] - half["cost"])
    lowest = (systems["cost"] - half["cost"]) / (large["cost"] + half["cost"])
    recomputed = systems.assign(
        pass_at_1_change=systems["pass_at_1"] - large["pass_at_1"],
        cost_change=100 * (ratio - 1),
    )
    tolerance = pd.DataFrame({m: half[str(m)] for m in systems}, index=systems.index).assign(
        pass_at_1_change=2 * half["pass_at_1"],
        cost_change=100 * np.maximum(highest - ratio, ratio - lowest),
    )
    long = [
        part.reset_index().melt("system", var_name="metric", value_name=name)
        for part, name in ((recomputed, "recomputed"), (tolerance, "input_tolerance"))
    ]
    return long[0].merge(long[1], on=["system", "metric"], validate="1:1")


def _judge(comparison: pd.DataFrame) -> pd.DataFrame:
    difference = comparison["printed"] - comparison["recomputed"]
    return comparison.assign(
        difference=difference,
        agrees=difference.abs() <= comparison["tolerance"] + _SLACK,
        same_digits=difference.abs() <= comparison["half_unit"] + _SLACK,
    )


def _compare(cells: pd.DataFrame, recomputed: pd.DataFrame, *also: str) -> pd.DataFrame:
    """Put printed cells beside ``recomputed``, whose ``input_tolerance`` is in its unit."""
    on = [*also, "dataset", "system", "metric"]
    columns = [*on, "recomputed", "input_tolerance"]
    both = cells.merge(recomputed[columns], how="left", on=on, validate="1:1")
    both["printed"] = both["value"]
    both["tolerance"] = both["half_unit"] + both["input_tolerance"]
    return _judge(both)[[*on, *_COMPARISON]]
