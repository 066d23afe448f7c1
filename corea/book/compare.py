r"""Several training runs compared: metrics and cascades with intervals, beside the paper.

Everything starts from the records of several runs (:func:`corea.runs.run_records`) and goes
through one long table, the *measurements*: a row per (system, seed, dataset, metric,
resample), where resample 0 is the questions as they are. :func:`intervals` and
:func:`differences` read it; nothing else decides what an interval is.

The interval rule, everywhere:

* A system trained with two or more seeds: the mean over seeds and Student's t,
  :math:`\bar v \pm t_{0.975,\,k-1}\, s / \sqrt{k}`. It covers training and sampling noise.
* One seed: the percentile bootstrap over questions, as
  :func:`corea.metrics.calibration.bootstrap_interval` does it. It covers which questions were
  asked, not how training went, and is therefore too narrow for a claim about a method.
* A difference of two systems is paired: over the seeds both have, or over the same resamples
  of the same questions.

Choices where paper A leaves room, and deviations from it:

1. The paper's ± is not explained and stands in Tables 12 to 15 only; here every number has a
   95 % interval, and which of the two kinds it is, is said.
2. A group of datasets is the mean over its datasets weighted by questions, as the paper's
   Table 1 is made (:func:`corea.book.published.weighted_mean_over_datasets`). Metrics are computed
   on each dataset first. A change is computed from the means.
3. The paper has six datasets, the microworld four. :data:`corea.tasks.suites.MICROWORLD` says which
   stands where; Math500 and GPQA have none of their own.
4. ECE, AUROC and the Brier score are of the answers that state a confidence; the confidence
   output ratio says how many do.
5. Bootstrap resamples are drawn within each dataset, so a group keeps its composition, and
   are the same for all systems. The threshold of a cascade is the same in every resample.
6. Units are the paper's: pass@1, deferral rate and changes in cost in percent, changes in
   pass@1 in percentage points, costs in input tokens of the small model, the rest as
   fractions.
7. The ECE of a finite sample is biased upwards, in a resample more than in the sample
   (:mod:`corea.metrics.calibration`, choice 7). A bootstrap interval of a small ECE lies high for
   that reason and can even exclude the estimate; comparisons with it are on the safe side only for
   the better calibrated system.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from corea.book import display
from corea.book.published import (
    LARGE_MODEL,
    published_table,
    recompute_lost_table,
)
from corea.confidence import with_signal
from corea.metrics import calibration
from corea.metrics.calibration import Interval
from corea.metrics.cascade import (
    cheapest_threshold,
    deferral_curve,
    defers,
    oracle_confidence,
)
from corea.metrics.costs import query_cost
from corea.records import join_on_questions
from corea.tasks import suites
from corea.tasks.suites import MICROWORLD, Suite

Floats = NDArray[np.float64]

COMPUTED = ("probe", "average_probability")
"""Signals that depend on nothing that is written, so that no row may lack them. (A router may
write what is no probability; its question is then deferred.)"""

METRICS = ("pass_at_1", "ece", "auroc", "brier", "confidence_output_ratio", "mean_confidence")
"""What :func:`measure` measures."""

CASCADE_METRICS = (
    *("pass_at_1", "pass_at_1_change", "small_cost", "large_cost", "router_cost"),
    *("cost", "cost_change", "deferral_rate"),
)
"""What :func:`measure_cascades` measures."""

T, BOOTSTRAP = "Student's t over seeds", "bootstrap over questions"

_LEVEL = 0.95
# of a measurement's columns, those that are not what it is labelled by
_NOT_LABELS = ("seed", "resample", "value")
_INTERVAL = ("value", "low", "high", "n_seeds", "interval")


_ORDERING_NOTE = (
    "Ordering holds (yes / no / not certain): of the pairs with other systems that the paper "
    "orders, how many stand in its order here, how many the other way round, and for how many the "
    "paired interval of the difference covers 0."
)


@dataclass(frozen=True)
class Cascade:
    """A small model, what its confidence is read from, and who is asked first.

    Attributes:
        small: System of the small model.
        signal: Column of the records that the confidence is: ``"confidence"`` (verbalized) or
            one of :data:`corea.runs.SIGNALS`.
        routed: Whether the signal is a router's: it decides before anybody answers, and its
            own prompt and output are paid for.
    """

    small: str
    signal: str = "confidence"
    routed: bool = False


CASCADES: Mapping[str, Cascade] = MappingProxyType(
    {
        "SLM-Verb": Cascade("SLM"),
        "RLVR-SLM-Verb": Cascade("RLVR-SLM"),
        "RLVR-SLM-AvgProb": Cascade("RLVR-SLM", "average_probability"),
        "RLVR-SLM-Probe": Cascade("RLVR-SLM", "probe"),
        "Router+RLVR-SLM": Cascade("RLVR-SLM", "router", routed=True),
        "Brier-SLM-Verb": Cascade("Brier-SLM"),
        "COREA": Cascade("L1-SLM"),
        "COREA-Expected": Cascade("L1-SLM", "expected_confidence"),
    }
)
"""Paper A's collaborative systems (section 4.2), and COREA with the expected verbalized
confidence, which is ours."""


# --- measuring ------------------------------------------------------------------------------


def measure(
    records: pd.DataFrame,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    n_bins: int = 10,
    binning: calibration.Binning = "equal_width",
    n_resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy and calibration of every system: the measurements that intervals are made of.

    Source: paper A, section 4.3.

    Args:
        records: From :func:`corea.runs.run_records`: records with ``seed``; systems under
            another name from :func:`corea.confidence.with_signal` may be among them.
        groups: Name of each group to its datasets; by default those of the paper's Table 1.
        n_bins: Bins of the ECE.
        binning: ``"equal_width"``, as in paper A, or ``"equal_mass"``, as in paper B.
        n_resamples: Bootstrap resamples, by question; drawn only where a system was not
            trained with the same two or more seeds as all others.
        seed: Of the resampling.

    Returns:
        Columns ``system, seed, dataset`` (a group), ``metric`` (of :data:`METRICS`),
        ``resample`` (0: the questions as they are) and ``value``, missing where the metric is
        not defined (no confidence stated, AUROC without a wrong answer).

    Raises:
        ValueError: If a dataset of a group is missing for a system, or resamples are needed
            and two systems were not asked the same questions.

    Example:
        >>> records = pd.DataFrame({"dataset": "chains", "question_id": ["1", "2"], "sample": 0,
        ...     "system": "SLM", "seed": 0, "correct": [True, False], "confidence": [1.0, 0.5]})
        >>> table = measure(records, groups={"chains": ["chains"]}, n_resamples=10)
        >>> now = table[table["resample"] == 0].set_index("metric")["value"]
        >>> float(now["pass_at_1"]), float(now["ece"]), float(now["auroc"])
        (50.0, 0.25, 1.0)
    """
    groups = suites.of(records["dataset"]).groups if groups is None else groups
    weights = QuestionWeights(records, n_resamples, seed)
    parts = []
    for (system, run_seed), rows in records.groupby(["system", "seed"], sort=False):
        by_dataset = _by_dataset(rows, groups, f"{system!r} with seed {run_seed}")
        measured = {
            name: _calibration_values(part, weights.of_rows(part, name), n_bins, binning)
            for name, part in by_dataset.items()
        }
        for group, datasets in groups.items():
            means = _group_means(measured, by_dataset, datasets)
            parts.append(as_measurements(means, system=system, seed=run_seed, dataset=group))
    return pd.concat(parts, ignore_index=True)


def _calibration_values(
    rows: pd.DataFrame, weight: Floats, n_bins: int, binning: calibration.Binning
) -> dict[str, Floats]:
    """Every metric under each row of weights at once, shape (resamples,)."""
    rows = rows.reset_index(drop=True)
    # by rising confidence, so that bins and equal confidences are runs; missing ones last
    order = rows["confidence"].to_numpy(dtype=float).argsort(kind="stable")
    confidence = rows["confidence"].to_numpy(dtype=float)[order]
    correct = rows["correct"].to_numpy(dtype=float)[order]
    weight = weight[:, order]
    total = weight.sum(axis=1)
    n_stated = int((~np.isnan(confidence)).sum())
    values = {"pass_at_1": 100 * (weight @ correct) / total}
    weight, confidence, correct = weight[:, :n_stated], confidence[:n_stated], correct[:n_stated]
    count = weight.sum(axis=1)
    values["confidence_output_ratio"] = count / total
    some = np.where(count > 0, count, np.nan)
    if not n_stated:
        return values | {m: some * np.nan for m in METRICS if m not in values}
    # weights do not move a row to another bin, so the bins are made once, by their one rule
    bins = calibration.bin_by_confidence(confidence, correct, n_bins=n_bins, binning=binning)
    filled = bins.count[bins.count > 0].astype(int)
    starts = np.cumsum(filled) - filled
    gaps = np.add.reduceat(weight * (confidence - correct), starts, axis=1)
    runs = np.flatnonzero(np.diff(confidence, prepend=-1.0))
    right = np.add.reduceat(weight * correct, runs, axis=1)
    wrong = np.add.reduceat(weight * (1 - correct), runs, axis=1)
    below = np.cumsum(wrong, axis=1) - wrong
    pairs = right.sum(axis=1) * wrong.sum(axis=1)
    won = np.sum(right * (below + wrong / 2), axis=1)
    return values | {
        "ece": np.abs(gaps).sum(axis=1) / some,
        "auroc": won / np.where(pairs > 0, pairs, np.nan),
        "brier": weight @ (confidence - correct) ** 2 / some,
        "mean_confidence": weight @ confidence / some,
    }


def cascade_questions(
    records: pd.DataFrame, cascade: Cascade, *, large: str = LARGE_MODEL, output_price: float = 4.0
) -> pd.DataFrame:
    r"""Both models of a cascade side by side on every question, with what asking each costs.

    Source: paper A, section 4.3. The unit is one input token of the small model; prices scale
    with the two models' parameters.

    Args:
        records: From :func:`corea.runs.run_records`, holding both systems.
        cascade: Which small model and signal.
        large: System of the large model. It is paired seed by seed; one that was trained
            once stands behind every seed of the small model.
        output_price: Price of an output token in input tokens.

    Returns:
        One row per (seed, dataset, question_id, sample): ``confidence`` (the signal),
        ``small_correct, large_correct, small_cost, large_cost, router_cost`` (0 without a
        router) and ``size_ratio``, the large model's parameters over the small one's.

    Raises:
        ValueError: If a system, its signal or the large model of a seed is missing.
        RecordsError: If the two were not asked the same questions.

    Example:
        >>> facts = {"dataset": "chains", "question_id": "1", "sample": 0, "seed": 0}
        >>> tokens = {"prompt_tokens": 20, "completion_tokens": 10}
        >>> records = pd.DataFrame([
        ...     {"system": "SLM", "correct": False, "confidence": 0.3, "parameters": 100},
        ...     {"system": "Baseline LLM", "correct": True, "confidence": 0.9, "parameters": 500},
        ... ]).assign(**facts, **tokens)
        >>> print(cascade_questions(records, Cascade("SLM"))[["small_cost", "large_cost"]])
           small_cost  large_cost
        0        60.0       300.0
    """
    small_rows = _of_system(records, cascade.small)
    # a confidence that was not stated is missing; one that is learnt or computed is there
    if cascade.signal in COMPUTED and (missing := int(small_rows[cascade.signal].isna().sum())):
        raise ValueError(
            f"{cascade.small!r} lacks the signal {cascade.signal!r} in {missing} of "
            f"{len(small_rows)} rows; expected it in all"
        )
    small_rows = with_signal(small_rows, cascade.signal, cascade.small)
    large_rows = _of_system(records, large)
    seeds_of_large = list(large_rows["seed"].unique())
    router = ["router_prompt_tokens", "router_completion_tokens"] if cascade.routed else []
    if lacking := [name for name in router if name not in small_rows]:
        raise ValueError(f"{cascade.small!r} lacks {' and '.join(lacking)}: no cost of its router")
    kept = ["dataset", "question_id", "sample", "correct", "parameters"]
    kept += ["prompt_tokens", "completion_tokens"]
    parts = []
    for run_seed, rows in small_rows.groupby("seed", sort=False):
        if run_seed not in seeds_of_large and len(seeds_of_large) > 1:
            raise ValueError(
                f"{large!r} has no run with seed {run_seed}, as {cascade.small!r} has; "
                f"there are {seeds_of_large}"
            )
        behind = run_seed if run_seed in seeds_of_large else seeds_of_large[0]
        both = join_on_questions(
            rows[[*kept, "confidence", *router]],
            large_rows.loc[large_rows["seed"] == behind, kept],
            names=(cascade.small, large),
            suffixes=("_small", "_large"),
        )
        ratio = float(both["parameters_large"].iloc[0] / both["parameters_small"].iloc[0])

        def cost(prompt: str, completion: str, ratio: float, both: pd.DataFrame = both) -> Floats:
            return query_cost(both[prompt], both[completion], ratio, output_price)

        parts.append(
            both[["dataset", "question_id", "sample", "confidence"]].assign(
                seed=run_seed,
                small_correct=both["correct_small"],
                large_correct=both["correct_large"],
                small_cost=cost("prompt_tokens_small", "completion_tokens_small", 1.0),
                large_cost=cost("prompt_tokens_large", "completion_tokens_large", ratio),
                router_cost=cost(router[0], router[1], 1.0) if cascade.routed else 0.0,
                size_ratio=ratio,
            )
        )
    return pd.concat(parts, ignore_index=True)


def measure_cascades(
    records: pd.DataFrame,
    cascades: Mapping[str, Cascade] = CASCADES,
    *,
    large: str = LARGE_MODEL,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    output_price: float = 4.0,
    n_resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Accuracy and cost of small models, the large one, and cascades: Table 1's cells.

    A cascade without a router costs :math:`C^S + [c < \tau]\,C^L`; with one
    :math:`C^R + [c \ge \tau]\,C^S + [c < \tau]\,C^L`. The threshold of a dataset is the large
    model's pass@1 there, unless given.

    Source: paper A, sections 4.3 and 5.1, Tables 1 and 5 to 11.

    Args:
        records: From :func:`corea.runs.run_records`.
        cascades: Name of each collaborative system to what it is made of; the small models
            in them are also measured standing alone.
        large: System of the large model.
        thresholds: Cascade to (dataset to threshold), instead of the paper's rule.
        groups: Name of each group to its datasets; by default those of the paper's Table 1.
        output_price: Price of an output token in input tokens.
        n_resamples: Bootstrap resamples, as in :func:`measure`.
        seed: Of the resampling.

    Returns:
        Columns as :func:`measure`'s, with the metrics :data:`CASCADE_METRICS`: standing
        small models first, then the large model, then the cascades.

    Raises:
        ValueError: As :func:`measure` and :func:`cascade_questions`.
        RecordsError: As :func:`cascade_questions`.
    """
    groups = suites.of(records["dataset"]).groups if groups is None else groups
    paired = _cascade_rows(records, cascades, large=large, output_price=output_price)
    by_cascade = {str(name): rows for name, rows in paired.groupby("system", sort=False)}
    # what a small model does alone is seen in any cascade that it is in, as is the large one
    alone = {cascade.small: by_cascade[name] for name, cascade in cascades.items()}
    first = next(iter(by_cascade.values()))
    own_seeds = list(_of_system(records, large)["seed"].unique())
    of_large = first[first["seed"].isin(own_seeds)]
    if of_large.empty:  # one run of the large model stands behind other seeds of the small
        of_large = first[first["seed"] == first["seed"].iloc[0]].assign(seed=own_seeds[0])
    everything = {**alone, large: of_large, **by_cascade}
    together = pd.concat([rows.assign(system=name) for name, rows in everything.items()])
    weights = QuestionWeights(together, n_resamples, seed)

    def values(name: str, dataset: str, rows: pd.DataFrame, weight: Floats) -> dict[str, Floats]:
        if name in cascades:
            chosen = (thresholds or {}).get(name, {}).get(dataset)
            threshold = rows["large_correct"].mean() if chosen is None else chosen
            means = _outcome(rows, threshold, routed=cascades[name].routed)
        else:
            means = _alone(rows, large=name == large)
        total = weight.sum(axis=1)
        return {metric: weight @ value / total for metric, value in means.items()}

    parts = []
    for (name, run_seed), rows in together.groupby(["system", "seed"], sort=False):
        by_dataset = _by_dataset(rows, groups, f"{name!r} with seed {run_seed}")
        measured = {
            dataset: values(str(name), dataset, part, weights.of_rows(part, dataset))
            for dataset, part in by_dataset.items()
        }
        for group, datasets in groups.items():
            mean = _group_means(measured, by_dataset, datasets)
            mean["pass_at_1_change"] = mean["pass_at_1"] - mean["large_pass_at_1"]
            mean["cost_change"] = 100 * (mean["cost"] / mean["large_alone_cost"] - 1)
            shown = {metric: mean[metric] for metric in CASCADE_METRICS}
            parts.append(as_measurements(shown, system=name, seed=run_seed, dataset=group))
    return pd.concat(parts, ignore_index=True)


def _outcome(rows: pd.DataFrame, threshold: float, *, routed: bool) -> dict[str, Floats]:
    """What a cascade gets right and pays on each question, at one threshold."""
    deferred = defers(rows["confidence"], threshold)
    by_small = ~deferred if routed else np.ones(len(rows), dtype=bool)
    return _priced(rows, by_large=deferred, by_small=by_small)


def _alone(rows: pd.DataFrame, *, large: bool) -> dict[str, Floats]:
    """What one of the two models gets right and pays on each question."""
    by_large = np.full(len(rows), large)
    return _priced(rows.assign(router_cost=0.0), by_large=by_large, by_small=~by_large)


def _priced(
    rows: pd.DataFrame, *, by_large: NDArray[np.bool_], by_small: NDArray[np.bool_]
) -> dict[str, Floats]:
    """Per question, given which models are asked; the large one's answer counts if it is."""
    small = by_small * rows["small_cost"].to_numpy()
    big = by_large * rows["large_cost"].to_numpy()
    router = rows["router_cost"].to_numpy()
    return {
        "pass_at_1": 100.0 * np.where(by_large, rows["large_correct"], rows["small_correct"]),
        "small_cost": small,
        "large_cost": big,
        "router_cost": router,
        "cost": small + big + router,
        "deferral_rate": 100.0 * by_large,
        "large_pass_at_1": 100.0 * rows["large_correct"].to_numpy(),
        "large_alone_cost": rows["large_cost"].to_numpy(),
    }


def measure_thresholds(
    records: pd.DataFrame,
    thresholds: Sequence[float],
    cascades: Mapping[str, Cascade] = CASCADES,
    *,
    dataset: str,
    large: str = LARGE_MODEL,
    output_price: float = 4.0,
    n_resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy, cost and deferral of cascades over a grid of thresholds.

    Source: paper A, section 5.2, Figure 2(a) to (c).

    Args:
        records: From :func:`corea.runs.run_records`.
        thresholds: Where to look, each from 0.
        cascades: Name of each collaborative system to what it is made of.
        dataset: One dataset.
        large: System of the large model.
        output_price: Price of an output token in input tokens.
        n_resamples: Bootstrap resamples, as in :func:`measure`.
        seed: Of the resampling.

    Returns:
        Measurements with a column ``threshold`` and the metrics ``pass_at_1``, ``cost`` and
        ``deferral_rate``.

    Raises:
        ValueError: As :func:`measure_cascades`.
        RecordsError: As :func:`cascade_questions`.
    """
    paired = _cascade_rows(records, cascades, large=large, output_price=output_price)
    weights = QuestionWeights(paired, n_resamples, seed)
    metrics = ("pass_at_1", "cost", "deferral_rate")
    parts = []
    for (name, run_seed), rows in paired.groupby(["system", "seed"], sort=False):
        part = _by_dataset(rows, {dataset: [dataset]}, f"{name!r} with seed {run_seed}")[dataset]
        weight = weights.of_rows(part, dataset)
        for threshold in thresholds:
            outcome = _outcome(part, threshold, routed=cascades[str(name)].routed)
            values = {m: weight @ outcome[m] / weight.sum(axis=1) for m in metrics}
            labels = {"system": name, "seed": run_seed, "dataset": dataset}
            parts.append(as_measurements(values, **labels, threshold=float(threshold)))
    return pd.concat(parts, ignore_index=True)


def measure_areas(
    records: pd.DataFrame,
    cascades: Mapping[str, Cascade] = CASCADES,
    *,
    large: str = LARGE_MODEL,
    groups: Mapping[str, Sequence[str]] | None = None,
    n_resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """How much better than random each cascade defers, whatever the threshold.

    Source: ours, :func:`corea.metrics.cascade.area_over_random`.

    Args:
        records: From :func:`corea.runs.run_records`.
        cascades: Name of each collaborative system to what it is made of.
        large: System of the large model.
        groups: Name of each group to its datasets; by default those of the paper's Table 1.
        n_resamples: Bootstrap resamples, as in :func:`measure`.
        seed: Of the resampling.

    Returns:
        Measurements of ``area_over_random`` and of ``oracle_area``, that of somebody who
        knows both models' verdicts; in percentage points of pass@1, averaged over deferral
        rates.

    Raises:
        ValueError: As :func:`measure_cascades`.
        RecordsError: As :func:`cascade_questions`.
    """
    groups = suites.of(records["dataset"]).groups if groups is None else groups
    paired = _cascade_rows(records, cascades, large=large, output_price=4.0)
    weights = QuestionWeights(paired, n_resamples, seed)

    parts = []
    for (name, run_seed), rows in paired.groupby(["system", "seed"], sort=False):
        by_dataset = _by_dataset(rows, groups, f"{name!r} with seed {run_seed}")
        measured = {}
        for dataset, part in by_dataset.items():
            weight = weights.of_rows(part, dataset)
            best = oracle_confidence(part["small_correct"], part["large_correct"])
            gain = part["large_correct"].to_numpy(float) - part["small_correct"].to_numpy(float)
            stated = part["confidence"].to_numpy(dtype=float)
            measured[dataset] = {
                "area_over_random": 100 * _areas(stated, gain, weight),
                "oracle_area": 100 * _areas(best, gain, weight),
            }
        for group, datasets in groups.items():
            means = _group_means(measured, by_dataset, datasets)
            parts.append(as_measurements(means, system=name, seed=run_seed, dataset=group))
    return pd.concat(parts, ignore_index=True)


def _areas(confidence: Floats, gain: Floats, weight: Floats) -> Floats:
    """:func:`corea.metrics.cascade.area_over_random` under each row of weights, shape (resamples,).

    ``gain`` is what deferring a question changes: 1, 0 or -1.
    """
    # missing confidences defer first, and at every threshold
    confidence = np.where(np.isnan(confidence), -1.0, confidence)
    order = confidence.argsort(kind="stable")
    ranked, total = confidence[order], weight.sum(axis=1, keepdims=True)
    runs = np.flatnonzero(np.diff(ranked, prepend=-2.0))
    zero = np.zeros((len(weight), 1))
    points = [
        np.hstack([zero, np.cumsum(np.add.reduceat(part[:, order], runs, axis=1), axis=1)]) / total
        for part in (weight, weight * gain)
    ]
    rate, change = (part[:, 1:] if ranked[0] < 0 else part for part in points)
    ends = (rate[:, -1] - rate[:, 0]) * (change[:, 0] + change[:, -1]) / 2
    area: Floats = np.trapezoid(change, rate, axis=1) - ends
    return area


def choose_thresholds(
    records: pd.DataFrame,
    cascades: Mapping[str, Cascade] = CASCADES,
    *,
    datasets: Sequence[str],
    max_accuracy_drop: float | None = None,
    large: str = LARGE_MODEL,
    output_price: float = 4.0,
) -> dict[str, dict[str, float]]:
    """Thresholds chosen on some questions, to be used on others.

    Source: paper A, section 5.1 (the large model's pass@1); the cheapest is ours.

    Args:
        records: Of one seed, only the questions to choose on.
        cascades: Name of each collaborative system to what it is made of.
        datasets: Where to choose, each by itself.
        max_accuracy_drop: Choose the cheapest threshold that loses at most so much pass@1
            against the large model, as a fraction; the paper's rule when None.
        large: System of the large model.
        output_price: Price of an output token in input tokens.

    Returns:
        Cascade to (dataset to threshold), as :func:`measure_cascades` takes it.

    Raises:
        ValueError: As :func:`cascade_questions`, or if there are several seeds.
        RecordsError: As :func:`cascade_questions`.
    """
    paired = _cascade_rows(records, cascades, large=large, output_price=output_price)
    if len(paired["seed"].unique()) > 1:
        raise ValueError("several seeds: a threshold is chosen for one trained model")
    found: dict[str, dict[str, float]] = {name: {} for name in cascades}
    for name, rows in paired.groupby("system", sort=False):
        parts = _by_dataset(rows, {"": datasets}, repr(name))
        for dataset, part in parts.items():
            of_large = float(part["large_correct"].mean())
            threshold = of_large
            if max_accuracy_drop is not None:
                columns = [part[column] for column in _CURVE_COLUMNS]
                routed = part["router_cost"] if cascades[str(name)].routed else None
                curve = deferral_curve(*columns, router_cost=routed)
                # what is summed over questions is off by some 1e-16
                enough = of_large - max_accuracy_drop - 1e-9
                threshold = cheapest_threshold(curve, min_pass_at_1=enough)
            found[str(name)][dataset] = threshold
    return found


def measure_held_out(
    records: pd.DataFrame,
    cascades: Mapping[str, Cascade] = CASCADES,
    *,
    max_accuracy_drop: float,
    large: str = LARGE_MODEL,
    groups: Mapping[str, Sequence[str]] | None = None,
    n_resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cascades whose thresholds were chosen on one half of the questions, on the other half.

    Three rules, for each trained model by itself: the paper's on each dataset; the cheapest
    threshold that loses at most ``max_accuracy_drop``, on each dataset; and the paper's rule on
    the first dataset, for all of them.

    Source: ours; the paper's threshold looks at the questions that it is used on.

    Args:
        records: From :func:`corea.runs.run_records`.
        cascades: Name of each collaborative system to what it is made of.
        max_accuracy_drop: Pass@1 that may be lost, as a fraction.
        large: System of the large model.
        groups: Name of each group to its datasets, by default those of the paper's Table 1; the
            first dataset is the one in domain.
        n_resamples: Bootstrap resamples, as in :func:`measure`.
        seed: Of the split and of the resampling.

    Returns:
        Measurements of the cascades as :func:`measure_cascades` makes them, with a column
        ``rule``.

    Raises:
        ValueError: As :func:`measure_cascades`.
        RecordsError: As :func:`cascade_questions`.
    """
    groups = suites.of(records["dataset"]).groups if groups is None else groups
    question = ["dataset", "question_id"]
    asked = records[question].drop_duplicates().sort_values(question, ignore_index=True)
    # half of each dataset, so that none is left without questions to choose on
    drawn = asked.sample(frac=1, random_state=np.random.default_rng(seed))
    asked["chosen"] = drawn.groupby("dataset").cumcount() % 2 == 0
    halves = records.merge(asked, on=question, validate="m:1")
    datasets = list(dict.fromkeys(name for group in groups.values() for name in group))
    small = {cascade.small for cascade in cascades.values()}
    parts = []
    for run_seed in records.loc[records["system"].isin(small), "seed"].unique():
        own = halves[halves["system"].eq(large) | halves["seed"].eq(run_seed)]
        first, second = own[own["chosen"]], own[~own["chosen"]]
        rules = {
            rule: choose_thresholds(
                first, cascades, datasets=datasets, max_accuracy_drop=drop, large=large
            )
            for rule, drop in (("paper's", None), ("cheapest", max_accuracy_drop))
        }
        of_first = {name: chosen[datasets[0]] for name, chosen in rules["paper's"].items()}
        rules[f"paper's, on {datasets[0]}"] = {
            name: dict.fromkeys(datasets, threshold) for name, threshold in of_first.items()
        }
        for rule, thresholds in rules.items():
            measured = measure_cascades(
                second, cascades, large=large, thresholds=thresholds, groups=groups,
                n_resamples=n_resamples, seed=seed,
            )  # fmt: skip
            parts.append(measured[measured["system"].isin(list(cascades))].assign(rule=rule))
    return pd.concat(parts, ignore_index=True)


_CURVE_COLUMNS = ("confidence", "small_correct", "large_correct", "small_cost", "large_cost")


def _cascade_rows(
    records: pd.DataFrame, cascades: Mapping[str, Cascade], *, large: str, output_price: float
) -> pd.DataFrame:
    """Paired questions of all cascades, whose costs must have one unit."""
    paired = [
        cascade_questions(records, cascade, large=large, output_price=output_price).assign(
            system=name
        )
        for name, cascade in cascades.items()
    ]
    together = pd.concat(paired, ignore_index=True)
    if len(together["size_ratio"].unique()) > 1:
        ratios = together.groupby("system", sort=False)["size_ratio"].first().to_dict()
        raise ValueError(f"the small models differ in size, so costs have no one unit: {ratios}")
    return together


def _of_system(records: pd.DataFrame, system: str) -> pd.DataFrame:
    rows = records[records["system"] == system]
    if rows.empty:
        there = ", ".join(map(repr, records["system"].unique()))
        raise ValueError(f"no system {system!r} among the runs; there are {there}")
    return rows


def _by_dataset(
    rows: pd.DataFrame, groups: Mapping[str, Sequence[str]], whose: str
) -> dict[str, pd.DataFrame]:
    parts = {}
    for dataset in dict.fromkeys(name for datasets in groups.values() for name in datasets):
        parts[dataset] = rows[rows["dataset"] == dataset]
        if parts[dataset].empty:
            there = ", ".join(map(repr, rows["dataset"].unique()))
            raise ValueError(f"{whose} has no records on {dataset!r}; there are {there}")
    return parts


def _group_means(
    measured: Mapping[str, Mapping[str, Floats]],
    by_dataset: Mapping[str, pd.DataFrame],
    datasets: Sequence[str],
) -> dict[str, Floats]:
    """Means over the datasets of a group, weighted by questions; missing if one is."""
    n_questions = {name: by_dataset[name]["question_id"].nunique() for name in datasets}
    total = sum(n_questions.values())
    return {
        metric: np.sum([n_questions[d] * measured[d][metric] for d in datasets], axis=0) / total
        for metric in measured[datasets[0]]
    }


def as_measurements(values: Mapping[str, Floats], **labels: object) -> pd.DataFrame:
    """Values of metrics as rows of measurements.

    Args:
        values: Metric to its values, resample 0 first; all of one length.
        **labels: What they are of: ``system``, ``seed`` and ``dataset``.

    Returns:
        A row per metric and resample.

    Example:
        >>> as_measurements({"ece": np.array([0.1])}, system="SLM", seed=0).to_dict("records")
        [{'system': 'SLM', 'seed': 0, 'metric': 'ece', 'resample': 0, 'value': 0.1}]
    """
    n = len(next(iter(values.values())))
    return pd.DataFrame(
        {
            **labels,
            "metric": np.repeat(list(values), n),
            "resample": np.tile(np.arange(n), len(values)),
            "value": np.concatenate(list(values.values())),
        }
    )


class QuestionWeights:
    """How often each question counts in each resample; row 0 is every question once."""

    def __init__(self, table: pd.DataFrame, n_resamples: int, seed: int) -> None:
        """Decide whether there is anything to draw.

        Args:
            table: Records of all systems with ``seed``.
            n_resamples: How many; none are drawn where every system has the same two or more
                seeds.
            seed: Of the draws.

        Raises:
            ValueError: If ``n_resamples`` is below 1.
        """
        if n_resamples < 1:
            raise ValueError(f"n_resamples is {n_resamples}; expected a number from 1")
        seeds = [frozenset(rows["seed"]) for _, rows in table.groupby("system", sort=False)]
        replicated = len(set(seeds)) == 1 and len(seeds[0]) >= 2
        self._n_resamples = 0 if replicated else n_resamples
        self._seed = seed
        self._of_dataset: dict[str, tuple[pd.Index[str], Floats]] = {}

    def of_rows(self, rows: pd.DataFrame, dataset: str) -> Floats:
        """Weight of each row of a system on a dataset.

        Args:
            rows: Records of one system and seed on the dataset.
            dataset: Its name.

        Returns:
            Shape (1 + resamples, rows).

        Raises:
            ValueError: If there are resamples and an earlier system was asked other questions.
        """
        questions = pd.Index(np.sort(rows["question_id"].unique()))
        if dataset not in self._of_dataset:
            n = len(questions)
            # the dataset's name seeds as well: datasets of one size are drawn independently
            random = np.random.default_rng([self._seed, zlib.crc32(dataset.encode())])
            drawn = random.multinomial(n, np.full(n, 1 / n), size=self._n_resamples)
            self._of_dataset[dataset] = questions, np.vstack([np.ones(n), drawn])
        known, weight = self._of_dataset[dataset]
        if self._n_resamples and not known.equals(questions):
            raise ValueError(
                f"{rows['system'].iloc[0]!r} with seed {rows['seed'].iloc[0]} was asked other "
                f"questions of {dataset!r} than {len(known)} asked of the first system; expected "
                "the same, since one seed leaves only questions to compare over"
            )
        if not self._n_resamples:
            return np.ones((1, len(rows)))
        # positions in a sorted index, all of which are there
        return weight[:, np.searchsorted(known.to_numpy(), rows["question_id"].to_numpy())]


# --- intervals and orderings ----------------------------------------------------------------


def intervals(measurements: pd.DataFrame) -> pd.DataFrame:
    """Every measured value with its interval, by the rule of this module.

    Args:
        measurements: From :func:`measure` or :func:`measure_cascades`, or several below each
            other.

    Returns:
        One row per (system, dataset, metric, and whatever other columns label a
        measurement): ``value``, ``low`` and ``high`` (95 %), ``n_seeds`` on which the value
        is defined, and ``interval``: :data:`T` or :data:`BOOTSTRAP`. Resamples on which a
        metric is not defined are left out.

    Example:
        Two seeds, 1.0 and 3.0: t for one degree of freedom is 12.706, the standard error 1.

        >>> measurements = pd.DataFrame({"system": "SLM", "seed": [0, 1], "dataset": "chains",
        ...     "metric": "pass_at_1", "resample": 0, "value": [1.0, 3.0]})
        >>> row = intervals(measurements).iloc[0]
        >>> float(row["value"]), round(float(row["low"]), 3), row["interval"]
        (2.0, -10.706, "Student's t over seeds")
    """
    labels = [name for name in measurements if name not in _NOT_LABELS]
    measurements = measurements.sort_values("resample", kind="stable")
    rows = [
        dict(zip(labels, key, strict=True)) | _interval(_by_seed(part))
        for key, part in measurements.groupby(labels, sort=False)
    ]
    return pd.DataFrame(rows)


def differences(
    measurements: pd.DataFrame,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    ratio: bool = False,
) -> pd.DataFrame:
    """How much systems differ, paired over the seeds or the resamples they share.

    Args:
        measurements: As for :func:`intervals`.
        pairs: (system, baseline); all pairs, in order of appearance, when None.
        ratio: System over baseline instead of system minus baseline.

    Returns:
        One row per pair, dataset and metric that both have: ``system, baseline, dataset,
        metric``, ``value`` (system minus baseline), ``low``, ``high``, ``n_seeds`` and
        ``interval`` as :func:`intervals`.

    Raises:
        ValueError: If a system is unknown or two have no seed in common.

    Example:
        >>> measurements = pd.DataFrame({"system": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1],
        ...     "dataset": "chains", "metric": "ece", "resample": 0, "value": [0.5, 0.7, 0.1, 0.3]})
        >>> row = differences(measurements, [("b", "a")]).iloc[0]
        >>> [round(float(row[name]), 3) for name in ("value", "low", "high")]
        [-0.4, -0.4, -0.4]
    """
    in_order = measurements.sort_values("resample", kind="stable")
    by_system = dict(iter(in_order.groupby("system", sort=False)))
    cells = {
        system: {
            key: _by_seed(part) for key, part in rows.groupby(["dataset", "metric"], sort=False)
        }
        for system, rows in by_system.items()
    }
    found = []
    for system, baseline in combinations(cells, 2) if pairs is None else pairs:
        for name in (system, baseline):
            if name not in cells:
                raise ValueError(f"no system {name!r} was measured; there are {list(cells)}")
        for key in cells[system]:
            if key not in cells[baseline]:
                continue
            here, there = cells[system][key], cells[baseline][key]
            shared = [seed for seed in here if seed in there]
            if not shared:
                raise ValueError(
                    f"{system!r} (seeds {list(here)}) and {baseline!r} (seeds {list(there)}) "
                    "have no seed in common: nothing to pair over"
                )
            # resamples were drawn for both or for neither
            gap = {
                seed: _over(here[seed], there[seed]) if ratio else here[seed] - there[seed]
                for seed in shared
            }
            names = {"system": system, "baseline": baseline, "dataset": key[0], "metric": key[1]}
            found.append(names | _interval(gap))
    columns = ["system", "baseline", "dataset", "metric", *_INTERVAL]
    return pd.DataFrame(found, columns=columns)


def _over(value: Floats, baseline: Floats) -> Floats:
    return value / np.where(baseline == 0, np.nan, baseline)


def _by_seed(part: pd.DataFrame) -> dict[int, Floats]:
    """Values of one cell by seed, resample 0 first; the rows are in order of resamples."""
    seeds, values = part["seed"].to_numpy(), part["value"].to_numpy(dtype=float)
    return {int(seed): values[seeds == seed] for seed in dict.fromkeys(seeds)}


def _interval(by_seed: Mapping[int, Floats]) -> dict[str, object]:
    """The interval rule: over seeds if two or more are defined, else over resamples."""
    from scipy.stats import t

    defined = [values for values in by_seed.values() if not np.isnan(values[0])]
    if not defined:
        return dict.fromkeys(("value", "low", "high"), np.nan) | {"n_seeds": 0, "interval": ""}
    now = np.array([values[0] for values in defined])
    value, n = float(now.mean()), len(now)
    if n >= 2:
        half = float(t.ppf((1 + _LEVEL) / 2, n - 1) * now.std(ddof=1) / np.sqrt(n))
        low, high, kind = value - half, value + half, T
    else:
        resampled = defined[0][1:]
        resampled = resampled[~np.isnan(resampled)]
        tails = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
        low, high = np.quantile(resampled, tails) if len(resampled) else (np.nan, np.nan)
        kind = BOOTSTRAP
    return {"value": value, "low": float(low), "high": float(high), "n_seeds": n, "interval": kind}


def as_interval(row: Mapping[Any, Any]) -> Interval | None:
    """A row of :func:`intervals` or :func:`differences` as what tables and sentences show.

    Args:
        row: With ``value``, ``low`` and ``high``.

    Returns:
        The interval; None where the value is missing.

    Example:
        >>> f"{as_interval({'value': 0.5, 'low': 0.4, 'high': 0.6}):.2f}"
        '0.50 [0.40, 0.60]'
    """
    value, low, high = (float(row[name]) for name in ("value", "low", "high"))
    return None if np.isnan(value) else Interval(value, low, high, _LEVEL, 0, 0)


def said(row: Mapping[Any, Any], spec: str = ".2f") -> str:
    """A row of :func:`intervals` or :func:`differences` in words, for a sentence.

    Args:
        row: With ``value``, ``low`` and ``high``.
        spec: Format of the three numbers.

    Returns:
        Such as ``"0.50 [0.40, 0.60]"``, or ``"not defined"`` where the value is missing.

    Example:
        >>> said({"value": float("nan"), "low": float("nan"), "high": float("nan")})
        'not defined'
    """
    interval = as_interval(row)
    return "not defined" if interval is None else format(interval, spec)


def judge(
    row: Mapping[Any, Any], *, at_most: float | None = None, at_least: float | None = None
) -> str:
    """Whether a bound is met, and whether the interval leaves doubt.

    Args:
        row: With ``value``, ``low`` and ``high``, as of :func:`intervals`.
        at_most: The bound, if values below it meet it.
        at_least: The bound, if values above it meet it.

    Returns:
        ``"yes"`` or ``"no"`` where the whole interval lies on one side of the bound,
        otherwise ``"not certain, the estimate says yes"`` or ``"... no"``; ``"not measured"``
        where the value is missing.

    Raises:
        ValueError: Unless exactly one bound is given.

    Example:
        >>> judge({"value": 0.8, "low": 0.7, "high": 0.9}, at_least=0.75)
        'not certain, the estimate says yes'
    """
    if at_most is not None and at_least is None:
        bound, sign = at_most, 1
    elif at_least is not None and at_most is None:
        bound, sign = at_least, -1
    else:
        raise ValueError("expected one of at_most and at_least")
    value, low, high = (float(row[name]) for name in ("value", "low", "high"))
    if np.isnan(value):
        return "not measured"
    met = [sign * (x - bound) <= 0 for x in (value, low, high)]
    if met[1] == met[2] == met[0]:
        return "yes" if met[0] else "no"
    return f"not certain, the estimate says {'yes' if met[0] else 'no'}"


def claim(
    what: str, dataset: str, row: Mapping[Any, Any], paper: float, **bound: float
) -> dict[str, object]:
    """A promise, what the paper has, what is found, and whether it holds.

    Args:
        what: The promise, in words.
        dataset: Where.
        row: With ``value``, ``low`` and ``high``, as of :func:`intervals`.
        paper: The paper's number.
        **bound: ``at_most`` or ``at_least``.

    Returns:
        A row ``claim, dataset, bound, paper, value, low, high, holds``, ``holds`` as
        :func:`judge` says it.

    Raises:
        ValueError: As :func:`judge`.

    Example:
        >>> row = {"value": 0.8, "low": 0.78, "high": 0.9}
        >>> claim("AUROC", "chains", row, 0.77, at_least=0.75)["bound"]
        'at least 0.75'
    """
    holds = judge(row, **bound)
    ((side, limit),) = bound.items()
    return {
        "claim": what,
        "dataset": dataset,
        "bound": f"{side.replace('_', ' ')} {limit:g}",
        "paper": float(paper),
        **{name: float(row[name]) for name in ("value", "low", "high")},
        "holds": holds,
    }


def interval_note(table: pd.DataFrame, *, n_resamples: int, seed: int) -> str:
    """The sentence a caption needs about the intervals of a table.

    Args:
        table: From :func:`intervals`, :func:`differences` or :func:`beside_paper`.
        n_resamples: Bootstrap resamples that were asked for.
        seed: Of the resampling.

    Returns:
        What the intervals are, over how many seeds or resamples.

    Example:
        >>> table = pd.DataFrame({"interval": [T, T], "n_seeds": [3, 3]})
        >>> interval_note(table, n_resamples=200, seed=0)
        "95 % intervals: Student's t over 3 seeds."
    """
    kinds = []
    over_seeds = table[table["interval"] == T]
    if len(over_seeds):
        low, high = over_seeds["n_seeds"].min(), over_seeds["n_seeds"].max()
        kinds.append(f"{T.removesuffix('seeds')}{low if low == high else f'{low} to {high}'} seeds")
    if (table["interval"] == BOOTSTRAP).any():
        kinds.append(f"one seed, {BOOTSTRAP} ({n_resamples} resamples, seed {seed})")
    return f"95 % intervals: {'; elsewhere '.join(kinds) or 'none'}."


# --- beside the paper -----------------------------------------------------------------------


def paper_rows(
    *tables: int,
    systems: Mapping[str, str] | None = None,
    label: str = "system",
    suite: Suite = MICROWORLD,
) -> pd.DataFrame:
    """Printed numbers of paper A under the names of the datasets and systems here.

    Args:
        *tables: Numbers of paper A's tables; 2, 3 and 4, whose cells are lost, are recomputed
            as means over all datasets (:func:`corea.book.published.recompute_lost_table`).
        systems: The paper's name to the name here; rows of others are left out. All under
            their own names when None.
        label: ``"system"``, or ``"setting"`` for the tables of rollout sizes.
        suite: Whose datasets stand for the paper's.

    Returns:
        Columns ``dataset, system, metric, value, spread, half_unit``; the last two 0 where
        the paper prints no spread, or the number was recomputed.

    Raises:
        ValueError: If there is no such table.

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

    Args:
        measurements: As for :func:`intervals`.
        paper: From :func:`paper_rows`.

    Returns:
        One row per dataset, metric and ordered pair: ``dataset, metric, system, baseline,
        paper`` (difference of the printed numbers), ``value, low, high, n_seeds, interval``
        (here) and ``holds``: ``"yes"``, ``"no"`` or ``"not certain"``.
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
    sign = np.sign(ordered["paper"])
    same = np.where(sign > 0, ordered["low"] > 0, ordered["high"] < 0)
    opposite = np.where(sign > 0, ordered["high"] < 0, ordered["low"] > 0)
    holds = np.select([same, opposite], ["yes", "no"], "not certain")
    columns = [*at, "system", "baseline", "paper", "value", "low", "high", "n_seeds", "interval"]
    return ordered[columns].assign(holds=holds).reset_index(drop=True)


def beside_paper(
    measurements: pd.DataFrame,
    paper: pd.DataFrame,
    *,
    metrics: Sequence[str],
    committed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The paper's number, this run's with its interval, and whether the paper's ordering holds.

    Args:
        measurements: As for :func:`intervals`.
        paper: From :func:`paper_rows`.
        metrics: Which, in order.
        committed: The same table of the committed full run, as this function made it and
            ``to_csv`` wrote it; None where there is none.

    Returns:
        One row per dataset, metric and system measured: ``dataset, metric, system, paper,
        value, low, high, n_seeds, interval``, ``full_run, full_run_low, full_run_high`` (the
        committed full run) and ``ordering_holds``: of the pairs with other systems that the
        paper orders (:func:`orderings`), for how many it holds, for how many it does not and
        how many are not certain, as ``"3 / 1 / 2"``; empty where the paper orders none.

    Raises:
        ValueError: If a metric was not measured.
    """
    if unknown := [name for name in metrics if name not in set(measurements["metric"])]:
        raise ValueError(f"not measured: {', '.join(unknown)}")
    at = ["dataset", "metric", "system"]
    measurements = measurements[measurements["metric"].isin(metrics)]
    rows = intervals(measurements)
    order = {name: i for i, name in enumerate(metrics)}
    rows = rows.sort_values("metric", key=lambda names: names.map(order), kind="stable")
    groups = {name: i for i, name in enumerate(measurements["dataset"].unique())}
    rows = rows.sort_values("dataset", key=lambda names: names.map(groups), kind="stable")
    rows = rows.merge(
        paper[[*at, "value"]].rename(columns={"value": "paper"}), how="left", on=at, validate="1:1"
    )
    full = pd.DataFrame(columns=[*at, "full_run", "full_run_low", "full_run_high"])
    if committed is not None:
        names = {"value": "full_run", "low": "full_run_low", "high": "full_run_high"}
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
    return rows[[*columns, *floats, "ordering_holds"]].astype(dict.fromkeys(floats, "float64"))


def cost_accuracy_points(beside: pd.DataFrame, *, large: str = LARGE_MODEL) -> pd.DataFrame:
    """Pass@1 and relative cost of each system, in the paper and here, to be drawn.

    Args:
        beside: From :func:`beside_paper`, with the metrics ``pass_at_1``, ``cost`` and
            ``cost_change``.
        large: The system whose cost is 100.

    Returns:
        What :func:`corea.book.figures.plot_cost_accuracy` draws: one row per ``source``
        (``"paper"`` or ``"this run"``), ``dataset`` and ``system`` with a cost.
    """
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
    """A table of :func:`beside_paper` for reading: a row a system, four columns a metric.

    Args:
        beside: From :func:`beside_paper`, one dataset or several.
        metrics: Metric to its heading, in order.

    Returns:
        Columns ``dataset, system`` and for each metric: its heading with ``paper``, ``here``
        (an interval), ``committed full run`` (an interval; only if there is one) and
        ``ordering holds``.
    """
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
    """A table of :func:`beside_paper` as a page shows it.

    Args:
        beside: From :func:`beside_paper`, one dataset or several.
        metrics: Metric to its heading and the format of its numbers, in order.
        caption: What is shown; what the orderings count is said behind it.

    Returns:
        The captioned table.

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
    return display.table(wide, f"{caption} {_ORDERING_NOTE}", formats=formats)


def lay_out_systems(
    table: pd.DataFrame, cascades: Mapping[str, Cascade], metrics: Mapping[str, str]
) -> pd.DataFrame:
    """Systems in the paper's own wide layout, as Tables 1 and 5 to 11 have it.

    Args:
        table: :func:`intervals` of :func:`measure_cascades`.
        cascades: The collaborative systems among them; the others stand alone.
        metrics: Metric to its heading, in order. A change that was measured stands in
            parentheses behind its value, for collaborative systems.

    Returns:
        Text cells such as ``"60.3 (-8.6)"``; columns ``block, System`` and one per dataset
        and metric, headed by both if there are several datasets.

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
