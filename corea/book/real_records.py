"""The chapters on records that others publish: stated confidences, and cascades with true tokens.

Everything is chosen on one half of the questions -- threshold, and who is asked for agreement --
and judged on the other, so intervals are of the cascade that was chosen, on questions it has not
seen. Differences are paired: in a resample both sides answer the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea.confidence import support
from corea.metrics import calibration
from corea.metrics.cascade import (
    COLUMNS,
    area_over_random,
    cheapest_threshold,
    deferral_curve,
    defers,
    oracle_confidence,
    query_cost,
)
from corea.metrics.intervals import (
    Interval,
    QuestionWeights,
    bootstrap_interval,
    bootstrap_intervals,
    interval,
    verdict,
)
from corea.metrics.measure import calibration_metrics
from corea.records import KEY, pair, select
from corea.thresholds.certify import Promise, find_threshold

Floats = NDArray[np.float64]

SAVINGS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "saving": ("small_cost", "large_cost"),
        "saving, others free": ("first_cost", "large_cost"),
        "saving in tokens": ("small_tokens", "large_tokens"),
    }
)
"""Of an :func:`agreement_pair`: in the paper's unit, without what agreement costs, in tokens."""

_SUM_ERROR = 1e-9  # what is summed over questions is off by some 1e-16


# --- what stated confidences are worth --------------------------------------------------------


def level_and_ranking(
    stated: pd.DataFrame, *, n_bins: int = 10, n_resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """What records with a confidence say of it, with intervals by question.

    ``accuracy, stated`` (mean confidence), ``overconfidence`` (stated minus accuracy), ``ECE,
    AUROC, Brier`` and ``skill`` (:func:`corea.metrics.calibration.brier_skill`).

    Example:
        >>> stated = pd.DataFrame({"dataset": "d", "question_id": ["1", "2"],
        ...     "correct": [True, False], "confidence": [1.0, 0.5]})
        >>> level_and_ranking(stated, n_resamples=10)["overconfidence"].estimate
        0.25
    """
    known = calibration_metrics(n_bins)
    metrics: dict[str, Callable[..., float]] = {
        "accuracy": known["pass@1"],
        "stated": known["mean confidence"],
        "overconfidence": lambda c, y, weight: _mean(c, weight) - _mean(y, weight),
        "ECE": known["ECE (equal width)"],
        "AUROC": known["AUROC"],
        "Brier": known["Brier score"],
        "skill": calibration.brier_skill,
    }
    bounds = dict.fromkeys(metrics, (0.0, 1.0))
    bounds |= {"overconfidence": (-1.0, 1.0), "skill": (-np.inf, 1.0)}
    return bootstrap_intervals(metrics, stated, n_resamples=n_resamples, seed=seed, bounds=bounds)


def stated_confidences(
    table: pd.DataFrame, *, n_bins: int = 10, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """What each system answers and states, of its records with a confidence, with intervals.

    A row a system, which is the index. Intervals by question: those of :func:`level_and_ranking`,
    and ``over constant``, accuracy minus that of always giving the commonest ``gold``. Numbers in
    ``n`` and ``distinct`` (values stated).

    Example:
        >>> table = pd.DataFrame({"dataset": "d", "question_id": ["1", "2", "3"], "system": "s",
        ...     "correct": [True, False, True], "confidence": [1.0, 0.5, 0.9],
        ...     "gold": ["A", "B", "A"]})
        >>> found = stated_confidences(table, n_resamples=10).loc["s"]
        >>> round(found["overconfidence"].estimate, 3), found["over constant"].estimate
        (0.133, 0.0)
    """
    commonest = table.drop_duplicates("question_id")["gold"].mode()[0]
    rows = {}
    for system, records in table.groupby("system", sort=False):
        stated = records[records["confidence"].notna()]
        stated = stated.assign(constant=stated["gold"] == commonest)
        found = level_and_ranking(stated, n_bins=n_bins, n_resamples=n_resamples, seed=seed)
        found |= bootstrap_intervals(
            {"over constant": lambda y, usual, weight: _mean(y, weight) - _mean(usual, weight)},
            stated, columns=("correct", "constant"), n_resamples=n_resamples, seed=seed,
            bounds={"over constant": (-1.0, 1.0)},
        )  # fmt: skip
        counts = {"n": len(stated), "distinct": stated["confidence"].nunique()}
        rows[system] = {**found, **counts}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")


def judged(values: Iterable[Interval], statement: str, **bound: float) -> dict[str, object]:
    """A row of a table of claims: for how many values a statement holds, fails or stays open.

    Example:
        >>> values = pd.Series({"a": Interval(0.3, 0.2, 0.4), "b": Interval(0.1, -0.1, 0.3)})
        >>> judged(values, "is above 0", above=0)
        {'statement': 'is above 0', 'holds': 1, 'fails': 0, 'unsettled': 1}
    """
    said = [verdict(value, **bound) for value in values]
    return {"statement": statement} | {
        word: said.count(word) for word in ("holds", "fails", "unsettled")
    }


# --- cascades, chosen on one half and judged on the other -------------------------------------


def halves(paired: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two halves of the questions, drawn at random: to choose on, and to judge on.

    Example:
        >>> [len(half) for half in halves(pd.DataFrame({"question_id": list("abcde")}), seed=0)]
        [2, 3]
    """
    question, questions = pd.factorize(paired["question_id"])
    drawn = np.random.default_rng(seed).permutation(len(questions)) < len(questions) // 2
    first = drawn[question]
    return paired[first], paired[~first]


def choose_threshold(paired: pd.DataFrame, max_accuracy_drop: float | None = None) -> float:
    """The paper's threshold, the large model's pass@1; or the cheapest that loses at most so much.

    Source: paper A, section 5.1; with ``max_accuracy_drop`` (a fraction of pass@1) ours.
    """
    of_large = float(paired["large_correct"].mean())
    if max_accuracy_drop is None:
        return of_large
    curve = deferral_curve(*(paired[column] for column in COLUMNS))
    return cheapest_threshold(curve, min_pass_at_1=of_large - max_accuracy_drop - _SUM_ERROR)


def judge_cascade(
    paired: pd.DataFrame,
    threshold: float,
    *,
    savings: Mapping[str, tuple[str, str]] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """What a cascade does at a threshold chosen elsewhere, with paired intervals by question.

    ``deferred``, a share of questions; ``pass@1``; ``lost``, the large model's pass@1 minus that;
    ``over random``, pass@1 minus that of spending as much on questions drawn at random, for which
    nobody needs to be asked for agreement; and of each of the ``savings``, from a name to the
    columns of what the small side and the large model cost, the share of the large model's cost
    that is saved. ``paired`` has the columns of a curve, and ``first_cost`` where a part of
    ``small_cost`` is for agreement.

    Example:
        >>> paired = pd.DataFrame({"dataset": "d", "question_id": ["1", "2"],
        ...     "confidence": [0.9, 0.2], "small_correct": [1, 0], "large_correct": [1, 1],
        ...     "small_cost": 1, "large_cost": 10})
        >>> found = judge_cascade(paired, 0.5, savings={"saving": ("small_cost", "large_cost")},
        ...     n_resamples=10)
        >>> round(found["saving"].estimate, 3), found["over random"].estimate
        (0.4, 0.25)
    """
    rows = _outcome(paired, threshold)
    mean = question_means(rows, n_resamples, seed)
    small, large = mean("small_correct"), mean("large_correct")
    alone = mean("first_cost" if "first_cost" in rows else "small_cost")
    at_random = np.clip((mean("cost") - alone) / mean("large_cost"), 0, 1)
    values = {
        "deferred": (mean("deferred"), (0.0, 1.0)),
        "pass@1": (mean("right"), (0.0, 1.0)),
        "lost": (large - mean("right"), (-1.0, 1.0)),
        "over random": (mean("right") - small - at_random * (large - small), (-1.0, 1.0)),
    }
    for name, (kept, dear) in (savings or {}).items():
        paid = mean(kept) + mean(rows[dear] * rows["deferred"])
        values[name] = 1 - paid / mean(dear), (-np.inf, 1.0)
    n = len(rows)
    return {
        name: interval([value], n_questions=n, bounds=bounds)
        for name, (value, bounds) in values.items()
    }


def _outcome(paired: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Which questions are deferred, whether the cascade is right, and what each costs."""
    deferred = defers(paired["confidence"], threshold)
    return paired.assign(
        deferred=deferred,
        right=paired["small_correct"].where(~deferred, paired["large_correct"]),
        cost=paired["small_cost"] + paired["large_cost"] * deferred,
    )


def question_means(
    rows: pd.DataFrame, n_resamples: int, seed: int
) -> Callable[[str | pd.Series[float]], Floats]:
    """Function to the mean of a column under every resample, the same for all columns."""
    one = rows.assign(system="", seed=0)
    weight = QuestionWeights(one, n_resamples, seed).of_rows(one, str(rows["dataset"].iloc[0]))
    total = weight.sum(axis=1)

    def mean(column: str | pd.Series[float]) -> Floats:
        values = rows[column] if isinstance(column, str) else column
        under: Floats = weight @ values.to_numpy(dtype=float) / total
        return under

    return mean


def priced(paired: pd.DataFrame) -> pd.DataFrame:
    """A pair whose costs nobody published: 0 for the small model and 1 for the large one.

    The mean cost of a cascade is then the share of questions that it defers.
    """
    return paired.assign(small_cost=0.0, large_cost=1.0)


def judge_rules(
    cascades: Mapping[str, pd.DataFrame],
    *,
    max_accuracy_drop: float,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """The paper's threshold and the cheapest, chosen on one half of each cascade's questions.

    A row per cascade and ``rule`` (``"paper's"`` or ``"cheapest"``) with its ``threshold`` and what
    :func:`judge_cascade` says of it on the other half; ``cascades`` are pairs by name.
    """
    rows = []
    for name, paired in cascades.items():
        first, second = halves(paired, seed)
        for rule, drop in (("paper's", None), ("cheapest", max_accuracy_drop)):
            threshold = choose_threshold(first, drop)
            found = judge_cascade(second, threshold, n_resamples=n_resamples, seed=seed)
            rows.append({"cascade": name, "rule": rule, "threshold": threshold, **found})
    return pd.DataFrame(rows)


def area_gain(
    paired: pd.DataFrame, finer: ArrayLike, *, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """What another order of the same answers adds to the area over random, paired by question.

    Example:
        >>> paired = pd.DataFrame({"dataset": "d", "question_id": list("abcd"), "large_correct": 1,
        ...     "confidence": [0.9, 0.9, 0.9, 0.2], "small_correct": [1, 1, 0, 0],
        ...     "small_cost": 1, "large_cost": 10})
        >>> area_gain(paired, [0.9, 0.8, 0.7, 0.2], n_resamples=10).estimate
        0.0625
    """

    def gain(finer: Floats, *columns: Floats, weight: Floats | None) -> float:
        before, after = (
            area_over_random(deferral_curve(order, *columns[1:], weight=weight))
            for order in (columns[0], finer)
        )
        return after - before

    both = paired.assign(finer=np.asarray(finer, dtype=float))
    return bootstrap_interval(
        gain, both, columns=("finer", *COLUMNS), n_resamples=n_resamples, seed=seed,
        bounds=(-1.0, 1.0),
    )  # fmt: skip


def certified_outcome(
    first: pd.DataFrame, second: pd.DataFrame, promise: Promise
) -> tuple[float, float]:
    """What the threshold certified on some questions does on others, against the large model alone.

    Its mean cost as a share of the large model's, and pass@1 lost. Where none is certified the
    large model answers alone: 1 and 0.

    Example:
        >>> paired = pd.DataFrame({"confidence": [0.9, 0.2] * 200, "small_correct": [1, 0] * 200,
        ...     "large_correct": 1, "small_cost": 1.0, "large_cost": 10.0})
        >>> certified_outcome(paired, paired, Promise("within", 0.02))
        (0.6, 0.0)
    """
    threshold = find_threshold(first, promise)
    if threshold is None:
        return 1.0, 0.0
    means = _outcome(second, threshold)[["cost", "large_cost", "large_correct", "right"]].mean()
    lost = means["large_correct"] - means["right"]
    return float(means["cost"] / means["large_cost"]), float(lost)


def median_seconds(
    table: pd.DataFrame, small: str, large: str, threshold: float
) -> dict[str, float]:
    """Seconds of a question, in the median: of each model alone, and of the cascade of both.

    Example:
        >>> table = pd.DataFrame({"dataset": "d", "question_id": ["1", "1"], "system": ["a", "b"],
        ...     "sample": 0, "correct": True, "confidence": [0.5, 0.9], "seconds": [1.0, 4.0]})
        >>> median_seconds(table, "a", "b", threshold=0.8)
        {'first': 1.0, 'behind': 4.0, 'cascade': 5.0}
    """
    paired = pair(table, small, large)
    of_small, of_large = (
        select(table, system=system).set_index("question_id")["seconds"].loc[paired["question_id"]]
        for system in (small, large)
    )
    deferred = defers(paired["confidence"], threshold)
    together = of_small + deferred * of_large
    medians = {"first": of_small, "behind": of_large, "cascade": together}
    return {name: float(seconds.median()) for name, seconds in medians.items()}


@dataclass(frozen=True)
class Agreed:
    """A cascade that defers where other models disagree.

    Attributes:
        dataset: The questions.
        small: System that answers first.
        large: System that is deferred to.
        others: Systems asked beside the small one; the share that agrees is the confidence.
    """

    dataset: str
    small: str
    large: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Who stands before whom."""
        return f"{self.small} before {self.large}"


@dataclass(frozen=True)
class Chosen:
    """A cascade whose others and threshold were chosen on one half of the questions.

    Attributes:
        cascade: Who answers.
        threshold: Below it the large model is asked.
        first: :func:`agreement_pair` of the half that it was chosen on.
        second: That of the other half, to judge it on.
    """

    cascade: Agreed
    threshold: float
    first: pd.DataFrame
    second: pd.DataFrame


def agreement_pair(
    table: pd.DataFrame,
    cascade: Agreed,
    billions: Mapping[str, float],
    *,
    output_price: float = 4.0,
) -> pd.DataFrame:
    """Both models of a cascade on every question, with confidence, costs and tokens.

    Beside the columns of :func:`corea.records.pair` and ``confidence``, the share of the others
    that agree: ``first_cost, others_cost, small_cost`` (their sum: the others are asked on every
    question), ``large_cost``, in input tokens of a model of a billion parameters
    (:func:`corea.metrics.cascade.query_cost`); and the same with ``_tokens``: tokens read and
    written, whatever the model.

    Raises:
        ValueError: If the parameters of a system are not among ``billions``, in which they are by
            system, or a system is not in the table.
        RecordsError: If two systems were not asked the same questions.
    """
    systems = (cascade.small, *cascade.others, cascade.large)
    if unknown := [name for name in systems if name not in billions or np.isnan(billions[name])]:
        raise ValueError(f"the parameters of {unknown} are not known: there is no cost to state")
    rows = select(table, dataset=cascade.dataset)
    supported = support(rows, cascade.small, cascade.others, name=str(cascade))
    paired = pair(pd.concat([supported, rows]), str(cascade), cascade.large)
    key = [column for column in KEY if column != "system"]
    order = pd.MultiIndex.from_frame(paired[key])

    def cost(system: str, size: float, price: float) -> Floats:
        counts = select(rows, system=system).set_index(key).loc[order]
        return query_cost(counts["prompt_tokens"], counts["completion_tokens"], size, price)

    for unit in ("cost", "tokens"):
        paid = {
            name: cost(name, billions[name], output_price) if unit == "cost" else cost(name, 1, 1)
            for name in systems
        }
        others = np.sum([paid[name] for name in cascade.others], axis=0)
        paired[f"first_{unit}"] = paid[cascade.small]
        paired[f"others_{unit}"] = others
        paired[f"small_{unit}"] = paid[cascade.small] + others
        paired[f"large_{unit}"] = paid[cascade.large]
    return paired


def choose_others(
    table: pd.DataFrame,
    cascade: Agreed,
    candidates: Sequence[str],
    billions: Mapping[str, float],
    *,
    max_others: int,
    max_accuracy_drop: float,
    output_price: float = 4.0,
    seed: int = 0,
) -> Chosen:
    """Who to ask for agreement, and the threshold: what is cheapest on the first half.

    Of all sets of up to ``max_others`` of the candidates that answered the questions, each with the
    cheapest threshold that loses at most ``max_accuracy_drop`` against the large model; of equal
    costs the first.
    """
    rows = select(table, dataset=cascade.dataset)
    there = set(rows["system"]) - {cascade.small, cascade.large}
    names = [name for name in candidates if name in there]
    best, lowest = None, np.inf
    for size in range(1, max_others + 1):
        for others in combinations(names, size):
            tried = replace(cascade, others=others)
            paired = agreement_pair(rows, tried, billions, output_price=output_price)
            first, second = halves(paired, seed)
            threshold = choose_threshold(first, max_accuracy_drop)
            cost = float(_outcome(first, threshold)["cost"].mean())
            if cost < lowest:
                best, lowest = Chosen(tried, threshold, first, second), cost
    if best is None:
        raise ValueError(f"{cascade}: none of {list(candidates)} answered {cascade.dataset!r}")
    return best


def question_costs(
    table: pd.DataFrame, cascade: Agreed, billions: Mapping[str, float], output_price: float = 4.0
) -> pd.DataFrame:
    """What each model of a cascade answered to the first question, its tokens and its cost."""
    asked = select(table, dataset=cascade.dataset)
    one = asked[asked["question_id"] == asked["question_id"].iloc[0]].set_index("system")
    one = one.loc[[cascade.small, *cascade.others, cascade.large]]
    size = np.array([billions[str(system)] for system in one.index])
    paid = query_cost(one["prompt_tokens"], one["completion_tokens"], output_price=output_price)
    shown: pd.DataFrame = one[["answer", "prompt_tokens", "completion_tokens"]]
    return shown.assign(billions=size, cost=paid * size)


def against_single(
    table: pd.DataFrame,
    chosen: Chosen,
    billions: Mapping[str, float],
    *,
    output_price: float = 4.0,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, object]:
    """A cascade beside the best single model that the same money buys.

    On the first half the most accurate of the systems of known parameters that cost no more than
    the cascade there; on the second its pass@1, how much the cascade's exceeds it, paired, and what
    share of the cascade's cost it takes.
    """
    first, second = (_outcome(half, chosen.threshold) for half in (chosen.first, chosen.second))
    questions = pd.concat([first["question_id"], second["question_id"]])
    rows = select(table, dataset=chosen.cascade.dataset)
    found = {}
    for system, part in rows.groupby("system", sort=False):
        size = billions.get(str(system), np.nan)
        asked = part.set_index("question_id")
        if np.isnan(size) or not questions.isin(asked.index).all():
            continue
        counts = asked["prompt_tokens"], asked["completion_tokens"]
        asked = asked.assign(cost=query_cost(*counts, size, output_price))
        on_first = asked.loc[first["question_id"]]
        if on_first["cost"].mean() <= first["cost"].mean():
            found[float(on_first["correct"].mean())] = str(system), asked
    if not found:
        raise ValueError(f"{chosen.cascade}: no single model costs as little as the cascade")
    system, asked = found[max(found)]
    single = asked.loc[second["question_id"]]
    beside = second.assign(single=single["correct"].to_numpy())
    mean = question_means(beside, n_resamples, seed)
    gap = mean("right") - mean("single")
    return {
        "single model": system,
        "its pass@1": float(single["correct"].mean()),
        "its cost": float(single["cost"].mean() / second["cost"].mean()),
        "cascade's gain": interval([gap], n_questions=len(beside), bounds=(-1.0, 1.0)),
    }


def cost_parts(chosen: Chosen) -> dict[str, float]:
    """What a cascade's cost is made of, in shares of that of the large model alone."""
    rows = _outcome(chosen.second, chosen.threshold)
    parts = {
        "answers first": rows["first_cost"],
        "asked for agreement": rows["others_cost"],
        "large model, where deferred": rows["large_cost"] * rows["deferred"],
    }
    of_large = rows["large_cost"].mean()
    return {name: float(cost.mean() / of_large) for name, cost in parts.items()}


def agreement_levels(chosen: Chosen) -> pd.DataFrame:
    """How often both models are right, by the share of the others that agree with the small one."""
    levels = chosen.second.groupby("confidence")
    right = levels[["small_correct", "large_correct"]].mean()
    right.columns = pd.Index(["small is right", "large is right"])
    return right.assign(questions=levels.size()).rename_axis("agree").reset_index()


def curve_lines(paired: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A cascade's curve, its references by name; cost as a share of the large model's alone.

    Neither the oracle nor random deferral asks anybody for agreement: they pay ``first_cost``,
    where there is that column.
    """
    verdicts = paired["small_correct"], paired["large_correct"]
    unit = float(paired["large_cost"].mean())
    large = paired["large_cost"] / unit
    alone = paired["first_cost" if "first_cost" in paired else "small_cost"] / unit
    oracle = deferral_curve(oracle_confidence(*verdicts), *verdicts, alone, large)
    return {
        "cascade": deferral_curve(
            paired["confidence"], *verdicts, paired["small_cost"] / unit, large
        ),
        "oracle": oracle,
        "random deferral": oracle.iloc[[0, -1]],
        "large model alone": pd.DataFrame({"cost": [1.0], "pass_at_1": [verdicts[1].mean()]}),
    }


def _mean(values: Floats, weight: Floats | None) -> float:
    return float(np.average(values, weights=weight))
