"""Measurements of decisions: accuracy and calibration in each format, and means of columns.

Records and measurements have a column ``reasoning`` (:data:`corea.runs.FORMATS`). Systems are
compared in formats that :func:`contrasts` names; nothing is averaged over formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from corea.decisions.evaluation import OPTIONS
from corea.decisions.loss import optimal_confidence
from corea.decisions.recalibration import METHODS, NAMES, option_probabilities, parts_of
from corea.metrics.calibration import marginal_calibration_error, static_calibration_error
from corea.metrics.intervals import (
    COLUMNS,
    QuestionWeights,
    as_measurements,
    differences,
    summarize,
)
from corea.metrics.measure import measure

_ERRORS = {"sce": static_calibration_error, "mce": marginal_calibration_error}


class Pair(NamedTuple):
    """Two systems to compare, each in a format.

    Example:
        >>> Pair("GRPO", "greedy", "SFT", "none").baseline
        'SFT'
    """

    system: str
    reasoning: str
    baseline: str
    baseline_reasoning: str


def measure_decisions(
    records: pd.DataFrame, *, n_bins: int = 10, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Accuracy and calibration on every dataset, system by system, in every format.

    Bins have equal mass. Measurements of :data:`corea.metrics.measure.METRICS` with the label
    ``reasoning``.
    """
    return pd.concat(
        [
            measure(
                rows,
                groups={str(dataset): (str(dataset),)},
                n_bins=n_bins,
                binning="equal_mass",
                n_resamples=n_resamples,
                seed=seed,
            ).assign(reasoning=str(reasoning))
            for (reasoning, dataset), rows in records.groupby(["reasoning", "dataset"], sort=False)
        ],
        ignore_index=True,
    )


def measure_options(
    records: pd.DataFrame, *, n_bins: int = 10, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Calibration errors ``sce`` and ``mce`` over the probabilities of all options.

    Records without a decision are left out; missing where nothing was decided.

    Source: paper B, Table 6.
    """
    weights = QuestionWeights(records, n_resamples, seed)
    parts = []
    keys = ["system", "seed", "dataset", "reasoning"]
    for key, rows in records.groupby(keys, sort=False):
        weight = weights.of_rows(rows, str(key[2]))
        decided = rows["answer"].notna().to_numpy()
        probabilities, gold = option_probabilities(rows[decided])
        values = {
            metric: np.array(
                [
                    error(probabilities, gold, n_bins=n_bins, weight=row[decided])
                    if row[decided].any()
                    else np.nan
                    for row in weight
                ]
            )
            for metric, error in _ERRORS.items()
        }
        n = rows["question_id"].nunique()
        parts.append(as_measurements(values, n_questions=n, **dict(zip(keys, key, strict=True))))
    return pd.concat(parts, ignore_index=True)


def contrasts(measurements: pd.DataFrame, pairs: Iterable[Pair]) -> pd.DataFrame:
    """Differences of systems in formats, by :func:`corea.metrics.intervals.differences`.

    Each pair once; one of which a side was not measured is left out. The formats are in the columns
    ``reasoning`` and ``baseline_reasoning``.

    Example:
        >>> measured = pd.DataFrame({"system": ["SFT", "GRPO"], "reasoning": ["none", "greedy"],
        ...     "seed": 0, "dataset": "choices", "metric": "ece", "resample": 0,
        ...     "value": [0.125, 0.5]})
        >>> found = contrasts(measured, [Pair("GRPO", "greedy", "SFT", "none")])
        >>> found[["system", "reasoning", "baseline", "value"]].values.tolist()
        [['GRPO', 'greedy', 'SFT', 0.375]]
    """
    cells = measurements["system"] + "\n" + measurements["reasoning"]
    known = set(cells)
    named = [
        (f"{pair.system}\n{pair.reasoning}", f"{pair.baseline}\n{pair.baseline_reasoning}")
        for pair in dict.fromkeys(pairs)
    ]
    named = [pair for pair in named if set(pair) <= known]
    plain = measurements.drop(columns="reasoning").assign(system=cells)
    found = differences(plain, named)
    for name, label in (("system", "reasoning"), ("baseline", "baseline_reasoning")):
        parts = found[name].astype(str).str.split("\n", n=1).str
        found[name], found[label] = parts[0], parts[1]
    return found


def recalibration_pairs(measurements: pd.DataFrame) -> list[Pair]:
    """What is compared of systems under :func:`corea.decisions.recalibration.recalibrate_all`.

    Each method with none, of the same system; and every other system with GRPO under each method.
    """
    known = measurements.drop_duplicates("system").set_index("system")["reasoning"].to_dict()
    names = dict.fromkeys(parts_of(pd.Series(list(known), dtype=str))[0])
    methods = [NAMES[method] for method in METHODS]
    pairs = [(f"{n}, {method}", f"{n}, {methods[0]}") for n in names for method in methods[1:]]
    pairs += [(f"{n}, {m}", f"GRPO, {m}") for n in names if n != "GRPO" for m in methods]
    return [
        Pair(one, known[one], other, known[other])
        for one, other in pairs
        if one in known and other in known
    ]


def measure_asked(
    measurements: pd.DataFrame, losses: Mapping[str, tuple[str, str]], n_options: Mapping[str, int]
) -> pd.DataFrame:
    """The confidence that a system's loss asks for at the accuracy that its decisions have.

    Measurements ``asked`` and ``asked_gap``, the mean confidence less it. Decisions differ in how
    often they are right, and what is asked of their mean accuracy is not the mean of what is asked
    of each where :func:`corea.decisions.loss.optimal_confidence` is not linear.

    Args:
        measurements: From :func:`measure_decisions`.
        losses: Of each system to be measured the calibration loss and how decisions were made.
        n_options: Options K of each dataset; others are left out.
    """
    chosen = measurements[
        measurements["system"].isin(list(losses))
        & measurements["dataset"].isin(list(n_options))
        & measurements["metric"].isin(["stated_accuracy", "mean_confidence"])
    ]
    keys = ["system", "seed", "dataset", "reasoning", "n_questions"]
    parts = []
    for key, rows in chosen.groupby(keys, sort=False):
        labels = dict(zip(keys, key, strict=True))
        loss, decisions = losses[str(labels["system"])]
        wide = rows.pivot(index="resample", columns="metric", values="value").sort_index()
        stated = wide["stated_accuracy"].to_numpy() / 100
        asked = np.full(len(wide), np.nan)
        known = ~np.isnan(stated)
        options = n_options[str(labels["dataset"])]
        asked[known] = optimal_confidence(stated[known], options, loss, decisions)
        gap = wide["mean_confidence"].to_numpy() - asked
        n = int(str(labels.pop("n_questions")))
        parts.append(as_measurements({"asked": asked, "asked_gap": gap}, n_questions=n, **labels))
    return pd.concat(parts, ignore_index=True) if parts else chosen.head(0)


def options_of(records: pd.DataFrame) -> dict[str, int]:
    """Options K of each dataset: of the decisions' probabilities, those that are there."""
    stated = records[list(OPTIONS)].notna().groupby(records["dataset"], sort=False).any()
    return {str(name): int(n) for name, n in stated.sum(axis=1).items() if n > 1}


def measure_means(
    rows: pd.DataFrame, columns: Sequence[str], *, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Means of columns, as measurements, every system by itself; missing values are left out.

    Systems need not have the same questions, so their measurements are not for differences.

    Example:
        >>> rows = pd.DataFrame({"system": "Base", "seed": 0, "dataset": "choices",
        ...     "question_id": ["1", "2"], "flipped": [True, False]})
        >>> measure_means(rows, ["flipped"], n_resamples=5).loc[0, "value"].item()
        0.5
    """
    parts = []
    for system, of_system in rows.groupby("system", sort=False):
        weights = QuestionWeights(of_system, n_resamples, seed)
        for (run_seed, dataset), selected in of_system.groupby(["seed", "dataset"], sort=False):
            weight = weights.of_rows(selected, str(dataset))
            means = {}
            for column in columns:
                values = selected[column].to_numpy(dtype=float)
                known = ~np.isnan(values)
                total = weight[:, known].sum(axis=1)
                total = np.where(total > 0, total, np.nan)
                means[column] = weight[:, known] @ values[known] / total
            n = selected["question_id"].nunique()
            labels = {"system": system, "seed": run_seed, "dataset": dataset}
            parts.append(as_measurements(means, n_questions=n, **labels))
    return pd.concat(parts, ignore_index=True)


def summarize_means(rows: pd.DataFrame, columns: Sequence[str], **options: int) -> pd.DataFrame:
    """Intervals of :func:`measure_means`, with models of each ``size`` by themselves.

    Where there are no rows there are none, with the columns that there would be.
    """
    if rows.empty:
        kinds = dict.fromkeys(("system", "dataset", "metric", "size"), "str")
        kinds |= dict.fromkeys(COLUMNS, "float64")
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
    return pd.concat(
        [
            summarize(measure_means(of_size, columns, **options)).assign(size=size)
            for size, of_size in rows.groupby("size", sort=False)
        ],
        ignore_index=True,
    )


def contrast_means(
    rows: pd.DataFrame,
    columns: Sequence[str],
    *,
    baselines: Sequence[str] = ("Base", "GRPO"),
    **options: int,
) -> pd.DataFrame:
    """Differences of :func:`measure_means` from baselines, with models of each ``size`` apart.

    Of questions, those count that all systems of a size, dataset and seed have. Columns are those
    of :func:`corea.metrics.intervals.differences` and ``size``.
    """
    keys = ["size", "dataset", "seed"]
    having = rows.groupby([*keys, "question_id"])["system"].transform("nunique")
    shared = rows[having == rows.groupby(keys)["system"].transform("nunique")]
    parts = []
    for size, of_size in shared.groupby("size", sort=False):
        measured = measure_means(of_size, columns, **options)
        names = list(measured["system"].unique())
        pairs = [(n, b) for b in baselines if b in names for n in names if n != b]
        parts.append(differences(measured, pairs).assign(size=size))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
