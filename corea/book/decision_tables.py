"""Decisions beside what paper B printed, in its layout.

1. Units are those of paper A's tables: accuracies (``pass_at_1``) in percent, errors and AUROC as
   fractions. Paper B prints all in percent; its numbers beside ours are those of its smallest
   model, Qwen3-1.7B, unless a table is about all three.
2. The paper compares SFT without reasoning with all others behind it. Here systems are compared in
   the same format, and as the paper has it beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from corea.book import display
from corea.book.published import published_table
from corea.decisions import measures, positions
from corea.decisions.evaluation import n_closed
from corea.decisions.measures import Pair
from corea.decisions.recalibration import NAMES
from corea.engines.evaluation import read_samples
from corea.metrics.intervals import Interval, as_interval, summarize
from corea.runs import FORMATS, own_format, read_model, read_settings, run_records
from corea.tasks.suites import MICROWORLD, Suite

PAPER_MODELS = ("Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B")
PAPER_SIZES: Mapping[str, str] = MappingProxyType(
    dict(zip(("small", "4B", "8B"), PAPER_MODELS, strict=True))
)
"""Size of a run to the paper's model that its numbers stand beside."""

SYSTEMS = (
    *("Base", "SFT", "GRPO", "GRPO, longer", "beta 0.05", "CA-GRPO"),
    *(f"CA-GRPO, lambda {weight}" for weight in ("0.0005", "0.005", "0.01", "0.03", "0.1")),
    *("CA-GRPO, two-stage", "CA-GRPO, others", "CA-GRPO, log score", "Brier-GRPO"),
    "GRPO, calibrated start",
)
"""The order in which systems stand in tables; others follow."""

HEADINGS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "pass_at_1": ("accuracy, %", ".1f"),
        "stated_accuracy": ("accuracy of the decided, %", ".1f"),
        "confidence_output_ratio": ("decided", ".1%"),
        "mean_confidence": ("mean p", ".3f"),
        "overconfidence": ("mean p less accuracy", "+.3f"),
        "ece": ("ECE", ".3f"),
        "brier": ("Brier", ".3f"),
        "brier_skill": ("Brier skill", "+.3f"),
        "auroc": ("AUROC", ".3f"),
        "aurc": ("AURC", ".3f"),
        "sce": ("SCE", ".3f"),
        "mce": ("MCE", ".3f"),
        "asked": ("p asked for", ".3f"),
        "asked_gap": ("mean p less p asked for", "+.3f"),
        "sure": ("p > 0.99", ".3f"),
        "sure_and_wrong": ("p > 0.99 and wrong", ".3f"),
        "calibrated": ("calibrated", ".3f"),
        "confidence": ("mean p", ".3f"),
        "correct": ("accuracy", ".1%"),
        "spread": ("10th to 90th percentile of p", ".3f"),
        "advantage": ("p where right less p where wrong", "+.3f"),
        "flipped": ("flipped", ".3f"),
        "own_confidence": ("p before", ".3f"),
        "flipped_confidence": ("p of the flipped", ".3f"),
        "flipped_sure": ("of the flipped, p > 0.99", ".3f"),
        "area_over_random": ("area over random", ".1f"),
        "pass_at_1_change": ("change in pass@1", ".1f"),
        "cost_change": ("change in cost, %", ".1f"),
        "deferral_rate": ("deferred, %", ".1f"),
    }
)
"""Metric to its heading and format in tables."""

MAIN = (
    *("pass_at_1", "stated_accuracy", "confidence_output_ratio", "mean_confidence", "ece"),
    *("brier", "brier_skill", "auroc", "aurc"),
)
"""What tables of decisions show; :data:`GUIDE` says what it is."""

GUIDE = (
    "Decided: the share of completions with a valid decision; the others are wrong. The rest is of "
    "the decided: ECE in bins of equal mass; Brier skill: 1 less the Brier score over that of the "
    "accuracy as a constant, a (1 - a), so above 0 is better than the constant; AURC: mean error "
    "rate over all shares of the most confident decisions."
)

COMPARED = (
    *("pass_at_1", "confidence_output_ratio", "mean_confidence", "overconfidence", "ece", "sce"),
    *("mce", "auroc", "aurc", "brier_skill"),
)
"""Metrics of which contrasts are written."""

WAYS: Mapping[str, str] = MappingProxyType(
    {
        "greedy": "decisions greedy",
        "sampled": "decisions sampled",
        "options": "decided for the likeliest option, with its probability among the options",
    }
)
"""How decisions are made (:data:`corea.decisions.evaluation.DECIDING`), in captions."""

_KEYS = ("dataset", "system")
_UNITS = {"accuracy": ("pass_at_1", 1.0)}  # metric of the paper to ours, and what it is divided by


# --- laying out -------------------------------------------------------------------------------


def own_formats(table: pd.DataFrame) -> pd.DataFrame:
    """Each model in the format it was trained in: SFT without reasoning, others sampled."""
    return table[table["reasoning"] == table["system"].map(_own)]


def in_order(systems: Iterable[str], order: Sequence[str] = SYSTEMS) -> list[str]:
    """Each system once, in a given order, unknown ones last."""
    names = list(dict.fromkeys(systems))
    return [name for name in order if name in names] + [n for n in names if n not in order]


def lay_out(
    table: pd.DataFrame, metrics: Sequence[str] = MAIN, *, keys: Sequence[str] = _KEYS
) -> pd.DataFrame:
    """Values side by side: a row for each of the ``keys``, a column for each metric.

    Cells are intervals, None where a value is missing. The accuracy of the decided stands only
    where it differs from that of all.
    """
    known = {"system": SYSTEMS, "reasoning": tuple(FORMATS)}
    orders = [in_order(table[key], known.get(key, ())) for key in keys]
    rows = sorted(
        table[list(keys)].drop_duplicates().itertuples(index=False, name=None),
        key=lambda row: [order.index(name) for order, name in zip(orders, row, strict=True)],
    )
    wide = pd.DataFrame(rows, columns=list(keys))
    cells = _cells(table, keys)
    for metric in metrics:
        if metric != "stated_accuracy" or _differs(cells, rows):
            found = [cells.get((*row, metric)) for row in rows]
            wide[HEADINGS[metric][0]] = pd.Series(found, wide.index, dtype="object")
    return wide


def _cells(table: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[Any, ...], Interval | None]:
    at = [*keys, "metric"]
    if (twice := table.duplicated(at)).any():
        raise ValueError(
            f"{', '.join(at)} do not tell cells apart: {table.loc[twice, at].iloc[0].tolist()} "
            "comes twice; expected one size and one format, or keys that name them"
        )
    return {tuple(row[key] for key in at): as_interval(row) for row in table.to_dict("records")}


def _differs(cells: Mapping[Any, Interval | None], rows: Iterable[tuple[Any, ...]]) -> bool:
    pairs = [(cells.get((*row, "pass_at_1")), cells.get((*row, "stated_accuracy"))) for row in rows]
    return any(a and b and abs(a.estimate - b.estimate) > 1e-9 for a, b in pairs)


def lay_out_across(table: pd.DataFrame, metrics: Sequence[str], across: str) -> pd.DataFrame:
    """Values in the layout of paper B's Tables 1 and 4: a column for each size, or format.

    ``across`` is a column of the table, such as ``"size"``; a heading is ``"small ECE"``.
    """
    parts = []
    for name, rows in table.groupby(across, sort=False):
        laid = lay_out(rows, metrics).set_index(list(_KEYS))
        parts.append(laid.add_prefix(f"{FORMATS.get(str(name), name)}: "))
    if not parts:
        return pd.DataFrame(columns=list(_KEYS))
    wide = pd.concat(parts, axis=1).reset_index()
    place = {name: i for i, name in enumerate(in_order(wide["system"]))}
    datasets = {name: i for i, name in enumerate(table["dataset"].unique())}
    order = wide.assign(d=wide["dataset"].map(datasets), s=wide["system"].map(place))
    return wide.loc[order.sort_values(["d", "s"], kind="stable").index].reset_index(drop=True)


def show(laid: pd.DataFrame, caption: str) -> display.Html:
    """A table of :func:`lay_out` or :func:`lay_out_across` as a page shows it."""
    known = dict(HEADINGS.values())
    formats = {}
    for name in laid.columns:
        heading = str(name).removesuffix(", paper").rpartition(": ")[2]
        if heading in known:
            formats[str(name)] = known[heading]
    if "reasoning" in laid:
        laid = laid.assign(reasoning=laid["reasoning"].map(lambda name: FORMATS.get(name, name)))
        laid = laid.rename(columns={"reasoning": "format"})
    return display.table(laid, caption, formats=formats)


# --- the paper's numbers ----------------------------------------------------------------------


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
    )
    columns = ["dataset", "system", "metric", "value"]
    return found[columns].drop_duplicates().reset_index(drop=True)


def beside_printed(laid: pd.DataFrame, paper: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """A table of :func:`lay_out` with the paper's number before each metric that it prints."""
    printed = paper.set_index(["dataset", "system", "metric"])["value"].to_dict()
    keys = list(laid[list(_KEYS)].itertuples(index=False, name=None))
    laid = laid.copy()
    for metric in metrics:
        heading = HEADINGS[metric][0]
        values = [printed.get((*key, metric), np.nan) for key in keys]
        if not np.isnan(values).all():
            laid.insert(list(laid.columns).index(heading), f"{heading}, paper", values)
    return laid


def printed_table_4(suite: Suite = MICROWORLD) -> pd.DataFrame:
    """Paper B's Table 4 as printed, in percent, for its three sizes."""
    printed = published_table("B", 4).set_index(["dataset", "system", "metric", "model"])["value"]
    rows = [
        {"dataset": dataset, "system": system}
        | {
            f"{model} {short}": printed[dataset, system, metric, model]
            for model in PAPER_MODELS
            for metric, short in (("accuracy", "Acc"), ("ece", "ECE"))
        }
        for dataset in suite.decision_counterparts
        for system in ("Base", "SFT", "GRPO", "Ours")
    ]
    return pd.DataFrame(rows)


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


# --- training and format ----------------------------------------------------------------------

_BEHIND = ("sampled", "greedy")

PAIRS = (
    *(Pair("SFT", name, "Base", name) for name in FORMATS),
    *(Pair("GRPO", name, "Base", name) for name in FORMATS),
    *(Pair("GRPO", name, "SFT", name) for name in FORMATS),
    *(Pair("GRPO", name, "SFT", "none") for name in _BEHIND),
    *(Pair("SFT", "none", "Base", name) for name in _BEHIND),
    *(Pair("CA-GRPO", name, "GRPO", name) for name in _BEHIND),
    *(Pair("CA-GRPO", name, "SFT", "none") for name in _BEHIND),
    *(Pair("GRPO, longer", name, "GRPO", name) for name in FORMATS),
    *(Pair("CA-GRPO, two-stage", name, "GRPO, longer", name) for name in FORMATS),
)
"""What paper B compares, in the same format and, as the paper has it, in each system's own."""


def _own(system: str) -> str:
    """The format in which the paper has a system."""
    return own_format("sft" if system == "SFT" else "grpo")


def samples_by_format(answers: Mapping[str, Path], *, system: str, seed: int) -> pd.DataFrame:
    """All samples of :func:`corea.stages.decided_formats`, with ``reasoning, system, seed``."""
    parts = [read_samples(folder).assign(reasoning=name) for name, folder in answers.items()]
    return pd.concat(parts, ignore_index=True).assign(system=system, seed=seed)


def show_positions(turned: pd.DataFrame, *, n_resamples: int, seed: int) -> list[display.Html]:
    """How decisions follow the letters, and what they are averaged over the orders: two tables.

    ``turned`` are decisions among options, without reasoning, in each ``order`` that was asked
    (:mod:`corea.decisions.positions`), with ``system`` and ``seed``.
    """
    first = turned[turned["order"] == 0]
    letters = pd.concat(
        [
            positions.letter_shares(rows).assign(orders=name)
            for name, rows in (("as written", first), ("all asked", turned))
        ],
        ignore_index=True,
    ).sort_values(["dataset", "orders"], ascending=[True, False], kind="stable")
    headings = {"decided": "decided for", "gold": "right option", "right": "of these right"}
    letters = letters.rename(columns=headings | {"distance": "distance of the two shares"})
    letters = letters[
        ["dataset", "orders", *[n for n in letters if n not in ("dataset", "orders")]]
    ]
    both = {"one order": first, "mean of the orders": positions.averaged(turned)}
    measured = pd.concat(
        [
            measures.measure_decisions(
                rows.assign(system=name, reasoning="none"), n_resamples=n_resamples, seed=seed
            )
            for name, rows in both.items()
        ],
        ignore_index=True,
    )
    asked = ", ".join(
        f"{name} {n}"
        for name, n in turned.groupby("dataset", sort=False)["order"].nunique().items()
    )
    metrics = ("pass_at_1", "mean_confidence", "ece", "brier", "auroc")
    return [
        display.table(
            letters,
            "Share of decisions that fall on each letter, and share of questions whose right "
            "option it is; half the sum of their absolute differences is 0 without a preference. "
            "Without reasoning, among the options.",
            formats=dict.fromkeys([*headings.values(), "distance of the two shares"], ".3f"),
        ),
        show(
            lay_out(summarize(measured), metrics),
            f"Decided in one order, and by the mean of the options' probabilities over the orders "
            f"asked ({asked}). Confidence is among the options. 95 % bootstrap intervals by "
            f"question, {n_resamples} resamples, seed {seed}.",
        ),
    ]


def show_warm_up(samples: pd.DataFrame, steps: int, *, n_resamples: int, seed: int) -> display.Html:
    """Decisions of systems before and after a warm-up, in each format; the rest is calibration."""
    options = {"n_resamples": n_resamples, "seed": seed}
    return show(
        lay_out(
            summarize(measures.measure_decisions(samples, **options)),
            keys=("dataset", "reasoning", "system"),
        ),
        f"Held-out questions before and after a warm-up of {steps} steps, decisions greedy. It "
        f"teaches the form, on the model's own reasoning and decisions. {GUIDE} 95 % bootstrap "
        f"intervals by question, {n_resamples} resamples, seed {seed}.",
    )


def say_closed(samples: pd.DataFrame, test_decisions: str) -> list[display.Html]:
    """How many completions did not close their reasoning, where it is decided all the same."""
    if test_decisions != "options":
        return []
    reasoned = samples[samples["reasoning"] != "none"]
    return [
        display.reading(
            "{n:,} of {total:,} completions did not close their reasoning; they are decided behind "
            "all that they wrote.",
            n=n_closed(reasoned),
            total=len(reasoned),
        )
    ]


def say_left_out(suite: Suite, datasets: Sequence[str], longest: int) -> list[display.Html]:
    """How many test questions were left out as too long to be asked; nothing if none can be."""
    left = {name: suite.left_out(name, "test", longest) for name in datasets} if longest else {}
    return [
        display.reading(
            "Test questions of more than {longest:,} characters are left out: {n:,} of {name}.",
            longest=longest,
            n=n,
            name=name,
        )
        for name, n in left.items()
    ]


def level(table: pd.DataFrame, datasets: Sequence[str]) -> pd.DataFrame:
    """Share right and mean probability of the decided, of each system with and without reasoning.

    Columns ``dataset, system, reasoning, right, confidence``, to be drawn.
    """
    metrics = {"stated_accuracy": "right", "mean_confidence": "confidence"}
    kept = table[table["dataset"].isin(datasets) & table["metric"].isin(metrics)]
    kept = kept[kept["reasoning"].isin(("sampled", "none"))]
    at = ["dataset", "system", "reasoning"]
    wide = kept.pivot(index=at, columns="metric", values="value").reset_index()
    wide = wide.rename(columns=metrics).rename_axis(columns=None)
    return wide.assign(right=wide["right"] / 100)


def by_format(table: pd.DataFrame, datasets: Sequence[str]) -> pd.DataFrame:
    """Accuracy and ECE of each system behind sampled reasoning and without, a row a system."""
    cells = _cells(table, ["dataset", "system", "reasoning"])
    metrics = {"right": "pass_at_1", "ECE": "ece"}
    rows = [
        {"dataset": dataset, "system": system}
        | {
            f"{heading}, {name}": cells.get((dataset, system, at, metric))
            for heading, metric in metrics.items()
            for name, at in (("reasoning", "sampled"), ("none", "none"))
        }
        for dataset in datasets
        for system in in_order(table.loc[table["dataset"] == dataset, "system"])
    ]
    return pd.DataFrame(rows)


def to_draw(
    table: pd.DataFrame, systems: Sequence[str], datasets: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """Values of some systems for :func:`corea.book.figures.plot_intervals`, in that order.

    Columns ``dataset, system, measured`` (the metric's heading), ``estimate, low, high``.
    """
    rows = table[table["dataset"].isin(datasets) & table["metric"].isin(metrics)]
    rows = rows[rows["system"].isin(systems)]
    places = [rows["metric"].map(list(metrics).index), rows["system"].map(list(systems).index)]
    rows = rows.assign(_metric=places[0], _system=places[1]).sort_values(["_metric", "_system"])
    rows = rows.assign(measured=[HEADINGS[metric][0] for metric in rows["metric"]])
    rows = rows.rename(columns={"value": "estimate"})
    return rows[["dataset", "system", "measured", "estimate", "low", "high"]]


def at_rest(table: pd.DataFrame, systems: Sequence[str], datasets: Sequence[str]) -> pd.DataFrame:
    """Where arms with a loss came to rest, and what their loss asks for: a row an arm."""
    headings = {
        "right": "stated_accuracy",
        "stated": "mean_confidence",
        "asked for": "asked",
        "too much": "asked_gap",
    }
    cells = _cells(table, _KEYS)
    rows = [
        {"dataset": dataset, "system": system}
        | {name: cells[dataset, system, metric] for name, metric in headings.items()}
        for dataset in datasets
        for system in systems
        if (dataset, system, "asked") in cells
    ]
    return pd.DataFrame(rows, columns=[*_KEYS, *headings])


# --- arms -------------------------------------------------------------------------------------


def arms(runs: Sequence[str]) -> pd.DataFrame:
    """How each reinforced system was trained: a row a system, from the settings of its runs.

    Columns ``system``, ``start`` (the system it began as), ``loss`` and ``weight`` (lambda) at the
    decision token, ``decisions``, ``kl_coef``, ``masked``, ``reward`` and ``steps``. Runs of one
    name that were trained in different ways are a ValueError.
    """
    rows = []
    for run in runs:
        model = read_model(run)
        if model.method in ("base", "sft"):
            continue
        settings = read_settings(run)
        rows.append(
            {
                "system": model.system,
                "start": settings["start"],
                "loss": settings["calibration_loss"] if settings["calibration_weight"] else "none",
                "decisions": settings["decisions"],
                "weight": float(settings["calibration_weight"]),
                "kl_coef": float(settings["kl_coef"]),
                "masked": bool(settings["mask_decision"]),
                "reward": settings["trajectory_reward"],
                "steps": int(settings["steps"]),
            }
        )
    columns = ["system", "start", "loss", "decisions", "weight", "kl_coef", "masked", "reward"]
    found = pd.DataFrame(rows, columns=[*columns, "steps"]).drop_duplicates()
    if (twice := found["system"][found["system"].duplicated()]).size:
        raise ValueError(
            f"{twice.iloc[0]!r} names runs of different settings: "
            f"{found[found['system'] == twice.iloc[0]].to_dict('records')}; expected one name each"
        )
    return found.reset_index(drop=True)


def runs_by_task(runs: Sequence[str], suite: Suite) -> dict[str, list[str]]:
    """Runs by the dataset they were trained on; a base model is with every task."""
    known = {run: set(run_records([run])["dataset"]) for run in runs}
    found = {
        first: [run for run in runs if first in known[run]] for first, _ in suite.tasks.values()
    }
    return {first: own for first, own in found.items() if own}


def arm_pairs(trained: pd.DataFrame) -> list[Pair]:
    """What of some :func:`arms` is compared, behind sampled and behind greedy reasoning.

    Each with GRPO; with what it started from, where that was trained by a loss; the two-stage arm
    with GRPO of as many steps; other losses with the paper's of the same weight; and a lambda with
    the smallest.
    """
    rows = trained.to_dict("records")
    found = [(row["system"], "GRPO") for row in rows if row["system"] != "GRPO"]
    found += [(row["system"], row["start"]) for row in rows if row["start"] not in ("Base", "GRPO")]
    found.append(("CA-GRPO, two-stage", "GRPO, longer"))
    swept = sweep(trained, 8)[["system", "weight"]].to_dict("records")
    found += [(row["system"], swept[0]["system"]) for row in swept[1:]]
    found += [
        (row["system"], paper["system"])
        for row in rows
        for paper in swept
        if row["loss"] in ("others", "log_score") and row["weight"] == paper["weight"]
    ]
    names = [pair for pair in dict.fromkeys(found) if pair[0] != pair[1]]
    return [Pair(one, name, other, name) for one, other in names for name in _BEHIND]


def sweep(table: pd.DataFrame, number: int) -> pd.DataFrame:
    """The arms of paper B's Table 8 (lambda) or 9 (beta), as far as a table has them.

    ``table`` has the columns of :func:`arms` beside measured values. Of Table 8 these are the arms
    trained as the paper writes: from the base, sampled decisions, the uniform target, masked. Of
    Table 9 those without a calibration loss. ``setting`` is added, the value that was varied.
    """
    plain = (table["start"] == "Base") & (table["reward"] == "correctness")
    if number == 8:
        own = plain & (table["loss"] == "uniform") & (table["decisions"] == "sampled")
        own &= table["masked"].astype(bool) & (table["kl_coef"] == 0)
    else:
        own = plain & (table["loss"] == "none")
    column = "weight" if number == 8 else "kl_coef"
    return table[own].assign(setting=table.loc[own, column]).sort_values("setting", kind="stable")


def beside_sweep(table: pd.DataFrame, number: int, suite: Suite = MICROWORLD) -> pd.DataFrame:
    """Paper B's Table 8 or 9 beside a table of ours: a row per dataset and value."""
    metrics = ["pass_at_1", "ece", "confidence_output_ratio", "brier_skill"]
    keys = ["dataset", "setting"]
    laid = lay_out(sweep(table, number), metrics, keys=keys)
    printed = published_table("B", number)
    printed = printed.assign(
        dataset=printed["dataset"].map(dict(suite.decision_counterparts)),
        setting=printed["setting"].astype(float),
    )
    wide = printed.pivot(index=keys, columns="metric", values="value").reset_index()
    wide = wide.rename(columns={"accuracy": "accuracy, %, paper", "ece": "ECE, paper"})
    wide["ECE, paper"] /= 100
    wide = wide.rename_axis(columns=None)
    both = laid.merge(wide, how="outer", on=keys)
    order = {name: place for place, name in enumerate(suite.decision_datasets)}
    both = both.sort_values(keys, key=lambda c: c.map(order) if c.name == "dataset" else c)
    both["setting"] = both["setting"].map("{:g}".format)
    both = both.rename(columns={"setting": "lambda" if number == 8 else "beta"})
    return both.reset_index(drop=True)


def recalibrated_errors(table: pd.DataFrame, suite: Suite = MICROWORLD) -> pd.DataFrame:
    """Paper B's Table 5: ECE after each recalibration, a column a model.

    ``table`` has the columns ``size, dataset, name, method`` beside measured values. Beside a size
    that stands for a model of the paper is what it prints.
    """
    cells = {
        tuple(row[key] for key in ("size", "dataset", "method", "name")): as_interval(row)
        for row in table[table["metric"] == "ece"].to_dict("records")
    }
    names = in_order(name for *_, name in cells)
    places = {key[:3] for key in cells}
    rows = []
    for place in product(dict.fromkeys(table["size"]), suite.decision_datasets, NAMES):
        if place not in places:
            continue
        size, dataset, method = place
        row: dict[str, object] = {"size": size, "dataset": dataset, "recalibration": NAMES[method]}
        printed = _printed_recalibrated(size, method, suite)
        for name in names:
            if (dataset, name) in printed:
                row[f"{name}, paper"] = printed[dataset, name]
            row[name] = cells.get((*place, name))
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _printed_recalibrated(size: str, method: str, suite: Suite) -> dict[tuple[str, str], float]:
    if size not in PAPER_SIZES:
        return {}
    names = {"Ours": "CA-GRPO", "GRPO": "GRPO"}
    setting = "" if method == "none" else f", {NAMES[method]}"
    systems = {f"{theirs}{setting}": ours for theirs, ours in names.items()}
    rows = paper_rows(5, systems=systems, model=PAPER_SIZES[size], suite=suite)
    return {(row["dataset"], row["system"]): row["value"] for row in rows.to_dict("records")}
