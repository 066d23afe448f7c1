"""Paper A's cascades on the records of several runs: accuracy, cost, thresholds.

The measurements that intervals are made of (:mod:`corea.metrics.intervals`), of what a small model,
its confidence and a large model do together. Units are the paper's: pass@1, deferral rate and
changes in cost in percent, changes in pass@1 in percentage points, costs in input tokens of the
small model. The threshold of a cascade is the same in every resample, but for
:func:`measure_matched`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from corea.confidence import with_signal
from corea.metrics.cascade import (
    COLUMNS,
    cheapest_threshold,
    deferral_curve,
    defers,
    oracle_confidence,
    query_cost,
)
from corea.metrics.intervals import QuestionWeights, as_measurements
from corea.metrics.measure import measure_runs, on_dataset
from corea.records import join_on_questions
from corea.tasks import suites

Floats = NDArray[np.float64]

LARGE_MODEL = "Baseline LLM"
"""Paper A's name of the large model by itself."""

COMPUTED = ("probe", "average_probability")
"""Signals that depend on nothing that is written, so that no row may lack them. (A router may
write what is no probability; its question is then deferred.)"""

CASCADE_METRICS = (
    *("pass_at_1", "pass_at_1_change", "small_cost", "large_cost", "router_cost"),
    *("cost", "cost_change", "deferral_rate"),
)
"""What :func:`measure_cascades` measures."""


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


def cascades_of(
    records: pd.DataFrame, cascades: Mapping[str, Cascade] = CASCADES
) -> dict[str, Cascade]:
    """Those cascades whose small model is in ``records`` with the signal: no probe, no cascade.

    A probe, router or probability that some rows lack is there; whether it may be missing, says
    :func:`cascade_questions`.

    Example:
        >>> records = pd.DataFrame({"system": ["SLM", "RLVR-SLM"], "confidence": [0.3, 0.5]})
        >>> [*cascades_of(records.assign(probe=float("nan")))]
        ['SLM-Verb', 'RLVR-SLM-Verb']
    """

    def made(of: Cascade) -> bool:
        rows = records[records["system"] == of.small]
        if of.routed or of.signal in COMPUTED:
            rows = rows.reindex(columns=[of.signal]).dropna()
        return not rows.empty  # what nobody states is read all the same: every question is deferred

    return {name: of for name, of in cascades.items() if made(of)}


def cascade_questions(
    records: pd.DataFrame, cascade: Cascade, *, large: str = LARGE_MODEL, output_price: float = 4.0
) -> pd.DataFrame:
    r"""Both models of a cascade side by side on every question, with what asking each costs.

    A row per (seed, dataset, question_id, sample): ``confidence`` (the signal), ``small_correct,
    large_correct, small_cost, large_cost, router_cost`` (0 without a router) and ``size_ratio``,
    the large model's parameters over the small one's. The large model is paired seed by seed; one
    that was trained once stands behind every seed of the small model.

    Source: paper A, section 4.3.

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
        tokens = {
            side: (both[f"prompt_tokens_{side}"], both[f"completion_tokens_{side}"])
            for side in ("small", "large")
        }
        parts.append(
            both[["dataset", "question_id", "sample", "confidence"]].assign(
                seed=run_seed,
                small_correct=both["correct_small"],
                large_correct=both["correct_large"],
                small_cost=query_cost(*tokens["small"], 1.0, output_price),
                large_cost=query_cost(*tokens["large"], ratio, output_price),
                router_cost=query_cost(both[router[0]], both[router[1]], 1.0, output_price)
                if router
                else 0.0,
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
    model's pass@1 there, unless ``thresholds`` gives one by cascade and dataset. Groups are by
    default those of the paper's Table 1.

    Source: paper A, sections 4.3 and 5.1, Tables 1 and 5 to 11.

    Returns:
        Measurements of :data:`CASCADE_METRICS`: standing small models first, then the large
        model, then the cascades.

    Raises:
        ValueError: As :func:`corea.metrics.measure.measure` and :func:`cascade_questions`.
    """
    groups = suites.of(records["dataset"]).groups if groups is None else groups
    paired = _cascade_rows(records, cascades, large=large, output_price=output_price)
    by_cascade = {str(name): rows for name, rows in paired.groupby("system", sort=False)}
    # what a small model does alone is seen in any cascade that it is in, as is the large one
    alone = {cascade.small: by_cascade[name] for name, cascade in cascades.items()}
    first = next(iter(by_cascade.values()))
    large_seeds = list(_of_system(records, large)["seed"].unique())
    of_large = first[first["seed"].isin(large_seeds)]
    if of_large.empty:  # one run of the large model stands behind other seeds of the small
        of_large = first[first["seed"] == first["seed"].iloc[0]].assign(seed=large_seeds[0])
    everything = {**alone, large: of_large, **by_cascade}
    together = pd.concat([rows.assign(system=name) for name, rows in everything.items()])
    weights = QuestionWeights(together, n_resamples, seed)

    def values(name: str, dataset: str, rows: pd.DataFrame, weight: Floats) -> dict[str, Floats]:
        if name in cascades:
            chosen = (thresholds or {}).get(name, {}).get(dataset)
            threshold = rows["large_correct"].mean() if chosen is None else chosen
            means = _outcome(rows, threshold, routed=cascades[name].routed)
        else:
            by_large = np.full(len(rows), name == large)
            means = _priced(rows.assign(router_cost=0.0), by_large=by_large, by_small=~by_large)
        total = weight.sum(axis=1)
        return {metric: weight @ value / total for metric, value in means.items()}

    return measure_runs(
        together, groups, weights, values, partial(_with_changes, metrics=CASCADE_METRICS)
    )


def _with_changes(means: dict[str, Floats], *, metrics: Sequence[str]) -> dict[str, Floats]:
    """Means with what changes against the large model alone."""
    means["pass_at_1_change"] = means["pass_at_1"] - means["large_pass_at_1"]
    means["cost_change"] = 100 * (means["cost"] / means["large_alone_cost"] - 1)
    return {metric: means[metric] for metric in metrics}


def _outcome(rows: pd.DataFrame, threshold: float, *, routed: bool) -> dict[str, Floats]:
    """What a cascade gets right and pays on each question, at one threshold."""
    deferred = defers(rows["confidence"], threshold)
    by_small = ~deferred if routed else np.ones(len(rows), dtype=bool)
    return _priced(rows, by_large=deferred, by_small=by_small)


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


def measure_matched(
    records: pd.DataFrame,
    max_drops: Sequence[float],
    cascades: Mapping[str, Cascade] = CASCADES,
    *,
    large: str = LARGE_MODEL,
    groups: Mapping[str, Sequence[str]] | None = None,
    output_price: float = 4.0,
    n_resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Cascades at matched accuracy: the cheapest at the large model's pass@1 less a drop.

    On each dataset the threshold of lowest cost at which the cascade loses at most ``max_drops``
    points of pass@1 against the large model; that which defers everything always does. It is
    chosen in each resample anew, on its own questions, so the intervals hold the choice too. What
    is chosen on the questions it is judged on flatters, and a finer confidence more than a coarse
    one; :func:`measure_held_out` chooses on others.

    Source: ours. Paper A compares systems at one threshold (section 5.1), where they differ in
    accuracy and in cost, and by their curves (Figure 2(d)).

    Returns:
        Measurements of pass@1, cost, their changes against the large model and the deferral rate,
        with a column ``max_drop``, in percentage points.
    """
    groups = suites.of(records["dataset"]).groups if groups is None else groups
    paired = _cascade_rows(records, cascades, large=large, output_price=output_price)
    weights = QuestionWeights(paired, n_resamples, seed)
    kept = ("pass_at_1", "pass_at_1_change", "cost", "cost_change", "deferral_rate")

    def values(name: str, _dataset: str, rows: pd.DataFrame, weight: Floats) -> dict[str, Floats]:
        found = _cheapest(rows, weight, max_drops, routed=cascades[name].routed)
        return {f"{m} {drop}": v for drop, of in found.items() for m, v in of.items()}

    def with_changes(means: dict[str, Floats]) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for drop in max_drops:
            of = {m.split()[0]: v for m, v in means.items() if m.split()[1] == str(drop)}
            changed = _with_changes(of, metrics=kept)
            found |= {f"{m} {drop}": v for m, v in changed.items()}
        return found

    found = measure_runs(paired, groups, weights, values, with_changes)
    both = found["metric"].str.split(expand=True)
    return found.assign(metric=both[0], max_drop=both[1].astype(float))


def _cheapest(
    rows: pd.DataFrame, weight: Floats, max_drops: Sequence[float], *, routed: bool
) -> dict[float, dict[str, Floats]]:
    """What a cascade does at its cheapest threshold within each drop, under each row of weights."""
    # missing confidences defer first, and at every threshold
    confidence = rows["confidence"].fillna(-1.0).to_numpy(dtype=float)
    order = confidence.argsort(kind="stable")
    runs = np.flatnonzero(np.diff(confidence[order], prepend=-2.0))
    always = int(confidence[order[0]] < 0)
    everybody = np.ones(len(rows), dtype=bool)
    by_large = _priced(rows, by_large=everybody, by_small=~everybody | (not routed))
    by_small = _priced(rows, by_large=~everybody, by_small=everybody)
    total, ordered = weight.sum(axis=1), weight[:, order]
    zero = np.zeros((len(weight), 1))

    def at_thresholds(metric: str) -> Floats:
        """Its mean after the first runs of equal confidences are deferred, (resamples, runs)."""
        change = (by_large[metric] - by_small[metric])[order]
        moved = np.add.reduceat(ordered * change, runs, axis=1).cumsum(axis=1)
        start = (weight @ by_small[metric])[:, None]
        means: Floats = ((start + np.hstack([zero, moved])) / total[:, None])[:, always:]
        return means

    curves = {name: at_thresholds(name) for name in ("pass_at_1", "cost", "deferral_rate")}
    alone = {
        name: weight @ by_large[name] / total for name in ("large_pass_at_1", "large_alone_cost")
    }
    found = {}
    for drop in max_drops:
        # what is summed over questions is off by some 1e-14
        enough = curves["pass_at_1"] >= alone["large_pass_at_1"][:, None] - drop - 1e-9
        chosen = np.where(enough, curves["cost"], np.inf).argmin(axis=1)[:, None]
        at = {name: np.take_along_axis(c, chosen, axis=1)[:, 0] for name, c in curves.items()}
        found[drop] = at | alone
    return found


def reprice(measurements: pd.DataFrame, factors: Sequence[float]) -> pd.DataFrame:
    r"""The change in cost of cascades, were the large model dearer or cheaper than it is.

    With the costs of section 4.3, and the large model's price times f,

    .. math:: \frac{C}{C_\mathrm{alone}} = \frac{C_S + C_R}{f\, C_\mathrm{alone}}
        + \frac{C_L}{C_\mathrm{alone}},

    so that for :math:`f \to \infty` only the large model's part is left.

    Source: paper A, section 4.3; its limitations say that savings grow with the ratio.

    Args:
        measurements: Of :func:`measure_cascades`, the cascades among them.
        factors: Of the price, 1 for as it is; infinity gives the limit.

    Returns:
        Measurements of ``cost_change`` with a column ``price_factor``.

    Example:
        >>> table = pd.DataFrame({"system": "COREA", "seed": 0, "dataset": "d", "n_questions": 9,
        ...     "metric": ["small_cost", "large_cost", "router_cost", "cost", "cost_change"],
        ...     "resample": 0, "value": [10.0, 30.0, 0.0, 40.0, -20.0]})
        >>> reprice(table, [1, 2, np.inf])["value"].round(6).tolist()
        [-20.0, -30.0, -40.0]
    """
    at = ["system", "seed", "dataset", "n_questions", "resample"]
    of = measurements.pivot(index=at, columns="metric", values="value")
    alone = of["cost"] / (1 + of["cost_change"] / 100)
    small, large = (of["small_cost"] + of["router_cost"]) / alone, of["large_cost"] / alone
    parts = [
        (100 * (small / factor + large - 1)).rename("value").reset_index()
        .assign(metric="cost_change", price_factor=float(factor))
        for factor in factors
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


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
    """Accuracy, cost and deferral of cascades over a grid of thresholds, on one dataset.

    Measurements with a column ``threshold``. Source: paper A, section 5.2, Figure 2(a) to (c).
    """
    paired = _cascade_rows(records, cascades, large=large, output_price=output_price)
    weights = QuestionWeights(paired, n_resamples, seed)
    metrics = ("pass_at_1", "cost", "deferral_rate")
    parts = []
    for (name, run_seed), rows in paired.groupby(["system", "seed"], sort=False):
        part = on_dataset(rows, dataset, f"{name!r} with seed {run_seed}")
        weight = weights.of_rows(part, dataset)
        for threshold in thresholds:
            outcome = _outcome(part, threshold, routed=cascades[str(name)].routed)
            values = {m: weight @ outcome[m] / weight.sum(axis=1) for m in metrics}
            labels = {"system": name, "seed": run_seed, "dataset": dataset}
            n = part["question_id"].nunique()
            parts.append(
                as_measurements(values, n_questions=n, **labels, threshold=float(threshold))
            )
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

    Measurements of ``area_over_random`` and of ``oracle_area``, that of somebody who knows both
    models' verdicts; in percentage points of pass@1, averaged over deferral rates.

    Source: ours, :func:`corea.metrics.cascade.area_over_random`.
    """
    groups = suites.of(records["dataset"]).groups if groups is None else groups
    paired = _cascade_rows(records, cascades, large=large, output_price=4.0)
    weights = QuestionWeights(paired, n_resamples, seed)

    def values(
        _system: str, _dataset: str, rows: pd.DataFrame, weight: Floats
    ) -> dict[str, Floats]:
        best = oracle_confidence(rows["small_correct"], rows["large_correct"])
        gain = rows["large_correct"].to_numpy(float) - rows["small_correct"].to_numpy(float)
        stated = rows["confidence"].to_numpy(dtype=float)
        areas = {"area_over_random": stated, "oracle_area": best}
        return {name: 100 * _areas(order, gain, weight) for name, order in areas.items()}

    return measure_runs(paired, groups, weights, values)


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
    """Thresholds chosen on some questions of one seed, to be used on others.

    On each dataset by itself the paper's rule, the large model's pass@1; or, where
    ``max_accuracy_drop`` is given, the cheapest that loses at most so much pass@1 (a fraction)
    against the large model, which is ours. Cascade to (dataset to threshold).

    Source: paper A, section 5.1.

    Raises:
        ValueError: As :func:`cascade_questions`, if there are several seeds, or if
            ``max_accuracy_drop`` is no fraction.
    """
    if not 0 <= (max_accuracy_drop or 0) <= 1:
        raise ValueError(f"max_accuracy_drop is {max_accuracy_drop:g}; expected a fraction")
    paired = _cascade_rows(records, cascades, large=large, output_price=output_price)
    if len(paired["seed"].unique()) > 1:
        raise ValueError("several seeds: a threshold is chosen for one trained model")
    found: dict[str, dict[str, float]] = {name: {} for name in cascades}
    for name, rows in paired.groupby("system", sort=False):
        for dataset in datasets:
            part = on_dataset(rows, dataset, repr(name))
            of_large = float(part["large_correct"].mean())
            threshold = of_large
            if max_accuracy_drop is not None:
                columns = [part[column] for column in COLUMNS]
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
    threshold that loses at most ``max_accuracy_drop``, a fraction, on each dataset; and the
    paper's rule on the first dataset, for all of them. Measurements with a column ``rule``.

    Source: ours; the paper's threshold looks at the questions that it is used on.
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
        of_seed = halves[halves["system"].eq(large) | halves["seed"].eq(run_seed)]
        first, second = of_seed[of_seed["chosen"]], of_seed[~of_seed["chosen"]]
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
        known = ", ".join(map(repr, records["system"].unique()))
        raise ValueError(f"no system {system!r} among the runs; there are {known}")
    return rows
