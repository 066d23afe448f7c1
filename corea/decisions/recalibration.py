r"""Decisions compared: paper B's tables, beside what is measured here.

Records of decisions (:mod:`corea.decisions.evaluation`) are records like any others, and
:func:`corea.metrics.measure.measure` measures them. Here is what only decisions have: errors over
the probabilities of all options, recalibration behind the training, and where the decision world
stands for paper B's datasets.

1. Units are those of paper A's tables: accuracies (``pass_at_1``) in percent, errors and
   AUROC as fractions. Paper B prints all in percent.
2. The paper's numbers shown beside ours are those of its smallest model, Qwen3-1.7B, unless a
   table is about all three.
3. Recalibration is fitted to the records that decided something; one without a decision stays
   without a confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea.book.published import published_table
from corea.decisions.evaluation import OPTIONS
from corea.metrics.calibration import (
    expected_calibration_error,
    marginal_calibration_error,
    static_calibration_error,
)
from corea.metrics.intervals import (
    QuestionWeights,
    as_interval,
    as_measurements,
    claim,
    differences,
)
from corea.metrics.measure import measure
from corea.tasks import suites
from corea.tasks.decision_questions import LETTERS, VERDICTS
from corea.tasks.suites import MICROWORLD, Suite

Floats = NDArray[np.float64]

PAPER_MODELS = ("Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B")

METHODS = ("none", "temperature", "platt", "isotonic")
"""Recalibrations of :func:`recalibrated`."""

NAMES: Mapping[str, str] = MappingProxyType({name: name.capitalize() for name in METHODS})
"""What they are called in tables."""

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
_ERRORS = {"sce": static_calibration_error, "mce": marginal_calibration_error}
_TINY = 1e-6
_OF_QUESTION = ["system", "seed", "dataset", "question_id"]


def paper_rows(
    *tables: int,
    systems: Mapping[str, str] | None = None,
    model: str = PAPER_MODELS[0],
    suite: Suite = MICROWORLD,
) -> pd.DataFrame:
    """Printed numbers of paper B under the names and in the units used here.

    Args:
        *tables: Numbers of paper B's tables.
        systems: The paper's name to the name here, rows of others are left out; where a table has
            settings, a name is ``"system, setting"``. All under their own names when None.
        model: Of :data:`PAPER_MODELS`.
        suite: Whose datasets stand for the paper's.

    Returns:
        Columns as of :func:`corea.book.compare.paper_rows`.

    Raises:
        ValueError: If there is no such table.

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


def measure_decisions(
    records: pd.DataFrame, *, n_bins: int = 10, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Accuracy and calibration on every dataset, each for the systems that have it.

    Args:
        records: Of decisions, with ``seed``.
        n_bins: Bins of the ECE, of equal mass.
        n_resamples: As for :func:`corea.metrics.measure.measure`.
        seed: Of the resampling.

    Returns:
        Measurements, as of :func:`corea.metrics.measure.measure`.
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
            )
            for dataset, rows in records.groupby("dataset", sort=False)
        ],
        ignore_index=True,
    )


def measure_options(
    records: pd.DataFrame, *, n_bins: int = 10, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Calibration errors over the probabilities of all options.

    Source: paper B, Table 6.

    Args:
        records: Of decisions, from :func:`corea.runs.run_records`; those without one are left out.
        n_bins: Bins of each option.
        n_resamples: As for :func:`corea.metrics.measure.measure`.
        seed: Of the resampling.

    Returns:
        Measurements, as of :func:`corea.metrics.measure.measure`, with the metrics ``sce`` and
        ``mce`` (:func:`corea.metrics.calibration.static_calibration_error` and
        :func:`~corea.metrics.calibration.marginal_calibration_error`), missing where nothing was
        decided.
    """
    weights = QuestionWeights(records, n_resamples, seed)
    parts = []
    for key, rows in records.groupby(["system", "seed", "dataset"], sort=False):
        system, run_seed, dataset = key
        weight = weights.of_rows(rows, str(dataset))
        there = rows["answer"].notna().to_numpy()
        probabilities, gold = _options(rows[there])
        values = {
            metric: np.array(
                [
                    error(probabilities, gold, n_bins=n_bins, weight=row[there])
                    if row[there].any()
                    else np.nan
                    for row in weight
                ]
            )
            for metric, error in _ERRORS.items()
        }
        n = rows["question_id"].nunique()
        labels = {"system": system, "seed": run_seed, "dataset": dataset}
        parts.append(as_measurements(values, n_questions=n, **labels))
    return pd.concat(parts, ignore_index=True)


def measure_means(
    rows: pd.DataFrame, columns: Sequence[str], *, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Means of columns, as measurements, every system by itself.

    Systems need not have the same questions, so their measurements are not for differences.

    Args:
        rows: With ``system``, ``seed``, ``dataset``, ``question_id`` and the columns; a value that
            is missing is left out of its mean.
        columns: Numbers or flags.
        n_resamples: As for :func:`corea.metrics.measure.measure`.
        seed: Of the resampling.

    Returns:
        Measurements, as of :func:`corea.metrics.measure.measure`, with the columns as metrics.

    Example:
        >>> rows = pd.DataFrame({"system": "Base", "seed": 0, "dataset": "choices",
        ...     "question_id": ["1", "2"], "flipped": [True, False]})
        >>> measure_means(rows, ["flipped"], n_resamples=5).loc[0, "value"].item()
        0.5
    """
    parts = []
    for system, of_system in rows.groupby("system", sort=False):
        weights = QuestionWeights(of_system, n_resamples, seed)
        for (run_seed, dataset), own in of_system.groupby(["seed", "dataset"], sort=False):
            weight = weights.of_rows(own, str(dataset))
            means = {}
            for column in columns:
                values = own[column].to_numpy(dtype=float)
                there = ~np.isnan(values)
                total = weight[:, there].sum(axis=1)
                total = np.where(total > 0, total, np.nan)
                means[column] = weight[:, there] @ values[there] / total
            labels = {"system": system, "seed": run_seed, "dataset": dataset}
            n = own["question_id"].nunique()
            parts.append(as_measurements(means, n_questions=n, **labels))
    return pd.concat(parts, ignore_index=True)


def _options(rows: pd.DataFrame) -> tuple[Floats, NDArray[np.intp]]:
    """Probabilities of the options, (n, K), and the place of the right one.

    Where questions differ in their options, those that one lacks have a probability of 0.
    """
    probabilities = rows[list(OPTIONS)].to_numpy(dtype=float)
    probabilities = np.nan_to_num(probabilities[:, ~np.isnan(probabilities).all(axis=0)])
    # float noise of K softmax terms may exceed 1 by an epsilon
    probabilities = probabilities / np.maximum(probabilities.sum(axis=1, keepdims=True), 1.0)
    names = VERDICTS if set(rows["gold"]) <= set(VERDICTS) else LETTERS
    return probabilities, np.array([names.index(label) for label in rows["gold"]], dtype=np.intp)


# --- rollouts ---------------------------------------------------------------------------------


def flag_rollouts(rollouts: pd.DataFrame, *, sure: float = 0.99, near: float = 0.1) -> pd.DataFrame:
    """Whether rollouts are sure of their decision, and calibrated for their question.

    Args:
        rollouts: Sampled decisions with ``system`` and ``seed``, several of each question.
        sure: Probability above which a decision is sure; paper B's Table 2 has 0.99.
        near: How far a probability may be from the share of the question's decisions that are
            right.

    Returns:
        The rollouts with ``accuracy`` (that share), ``sure``, ``sure_and_wrong`` and
        ``calibrated``; 0 or 1, missing where nothing was decided, and the last also for questions
        that are always or never right, where nothing between is to be known.

    Example:
        >>> rollouts = pd.DataFrame({"system": "Base", "seed": 0, "dataset": "choices",
        ...     "question_id": "1", "correct": [True, False], "confidence": [0.995, 0.55]})
        >>> flag_rollouts(rollouts)[["sure", "calibrated"]].to_numpy().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    accuracy = rollouts.groupby(_OF_QUESTION)["correct"].transform("mean")
    p, missing = rollouts["confidence"], rollouts["confidence"].isna()
    mixed = accuracy.between(0, 1, inclusive="neither")
    is_sure = (p > sure).astype(float).mask(missing)
    return rollouts.assign(
        accuracy=accuracy,
        sure=is_sure,
        sure_and_wrong=is_sure.where(~rollouts["correct"], 0.0).mask(missing),
        calibrated=((p - accuracy).abs() <= near).astype(float).mask(missing | ~mixed),
    )


def within_questions(rollouts: pd.DataFrame) -> pd.DataFrame:
    """How the probabilities of a question's rollouts spread, and whether right ones have more.

    Args:
        rollouts: As for :func:`flag_rollouts`.

    Returns:
        A row per system, seed, dataset and question with a decision: ``spread`` (10th to 90th
        percentile) and ``advantage`` (mean probability of the right decisions less that of the
        wrong ones; missing where one kind is).
    """
    own = rollouts[rollouts["confidence"].notna()]

    def of(rows: pd.DataFrame) -> Any:
        return rows.groupby(_OF_QUESTION, sort=False)["confidence"]

    spread = of(own).quantile(0.9) - of(own).quantile(0.1)
    advantage = of(own[own["correct"]]).mean() - of(own[~own["correct"]]).mean()
    found: pd.DataFrame = spread.to_frame("spread").assign(advantage=advantage)
    return found.reset_index()


# --- recalibration behind the training --------------------------------------------------------


def recalibrated(method: str, fit: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    r"""Confidences of decisions after a recalibration that was fitted to labelled others.

    With :math:`p` the confidence and :math:`z_k` the log-probabilities of the options,

    - ``"none"``: :math:`p`;
    - ``"temperature"``: the decided option's share of :math:`\exp(z_k / T)`, with the T of least
      cross-entropy to the right options. It needs the options, and is over them alone;
    - ``"platt"``: :math:`\sigma(a \operatorname{logit} p + b)`, a and b by logistic regression
      without a penalty;
    - ``"isotonic"``: the non-decreasing step function of least squares, constant beyond the
      confidences it was fitted to.

    Source: paper B, appendix B.1 (Platt scaling and isotonic regression); Guo et al. (2017) for
    the temperature.

    Args:
        method: One of :data:`METHODS`.
        fit: Records of decisions to fit to, with ``confidence`` and ``correct``.
        rows: Records to recalibrate.

    Returns:
        Confidences in [0, 1], shape (n,), NaN where nothing was decided.

    Raises:
        ValueError: If the method is unknown, there is nothing to fit to, or Platt scaling is
            asked for where all are right or all wrong.

    Example:
        >>> fit = pd.DataFrame({"confidence": [0.9] * 10, "correct": [True] * 6 + [False] * 4})
        >>> recalibrated("isotonic", fit, fit.head(1)).round(2).tolist()
        [0.6]
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if method == "none":
        return rows["confidence"].to_numpy(dtype=float)
    if not can_fit(method, fit):
        raise ValueError(
            f"nothing to fit {method} to: expected records with a confidence, and for platt both "
            "right and wrong ones"
        )
    there = rows["confidence"].notna().to_numpy()
    found = np.full(len(rows), np.nan)
    found[there] = _METHODS[method](fit[fit["confidence"].notna()], rows[there])
    return found


def can_fit(method: str, fit: pd.DataFrame) -> bool:
    """Whether there is what a recalibration needs to be fitted.

    Args:
        method: One of :data:`METHODS`.
        fit: Records of decisions.

    Returns:
        Whether any has a confidence, and for Platt scaling whether these are right and wrong.
    """
    correct = fit.loc[fit["confidence"].notna(), "correct"]
    return method == "none" or correct.nunique() > (1 if method == "platt" else 0)


def _temperature(fit: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    from scipy.optimize import minimize_scalar

    logits, gold = _logits(fit)

    def entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        own = scaled[np.arange(len(gold)), gold]
        return float((_log_sum_exp(scaled) - own).mean())

    best = minimize_scalar(entropy, bounds=(-3.0, 6.0), method="bounded")
    scaled = _logits(rows)[0] / np.exp(best.x)
    names = VERDICTS if set(rows["answer"]) <= set(VERDICTS) else LETTERS
    decided = [names.index(label) for label in rows["answer"]]
    result: Floats = np.exp(scaled[np.arange(len(rows)), decided] - _log_sum_exp(scaled))
    return result


def _logits(rows: pd.DataFrame) -> tuple[Floats, NDArray[np.intp]]:
    """Log-probabilities of the options, minus infinity where a question lacks one."""
    probabilities, gold = _options(rows)
    logits = np.log(np.maximum(probabilities, 1e-30))
    lacking = rows[list(OPTIONS)[: logits.shape[1]]].isna().to_numpy()
    return np.where(lacking, -np.inf, logits), gold


def _log_sum_exp(values: Floats) -> Floats:
    highest = values.max(axis=1)
    total: Floats = highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))
    return total


def _platt(fit: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf).fit(_logit(fit["confidence"]), fit["correct"])
    result: Floats = model.predict_proba(_logit(rows["confidence"]))[:, 1]
    return result


def _logit(confidence: ArrayLike) -> Floats:
    p = np.clip(np.asarray(confidence, dtype=float), _TINY, 1 - _TINY)
    result: Floats = np.log(p / (1 - p))[:, None]
    return result


def _isotonic(fit: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    model.fit(fit["confidence"].to_numpy(float), fit["correct"].to_numpy(float))
    result: Floats = model.predict(rows["confidence"].to_numpy(float))
    return result


_METHODS: Mapping[str, Callable[[pd.DataFrame, pd.DataFrame], Floats]] = MappingProxyType(
    {"temperature": _temperature, "platt": _platt, "isotonic": _isotonic}
)


def recalibrate_all(records: pd.DataFrame, n_fit: int, *, seed: int = 0) -> pd.DataFrame:
    """Records of every system after every recalibration.

    Args:
        records: Of decisions, with ``seed``.
        n_fit: Questions of a task's first dataset that are fitted to; the others and the second
            dataset are what is recalibrated.
        seed: Of the split.

    Returns:
        The records, once per method, with ``method``, ``name`` (the system) and ``system`` (both);
        without a confidence where a method cannot be fitted (:func:`can_fit`).
    """
    parts = []
    for (system, _), rows in records.groupby(["system", "seed"], sort=False):
        for domain, shifted in suites.of(rows["dataset"]).tasks.values():
            if domain not in set(rows["dataset"]):
                continue
            fit, rest = split_questions(rows, domain, n_fit, seed=seed)
            new = pd.concat([rest, rows[rows["dataset"] == shifted]], ignore_index=True)
            parts += [
                new.assign(
                    confidence=(recalibrated(method, fit, new) if can_fit(method, fit) else np.nan),
                    method=method,
                    name=str(system),
                    system=f"{system}, {NAMES[method]}",
                )
                for method in METHODS
            ]
    return pd.concat(parts, ignore_index=True)


def label_curve(
    records: pd.DataFrame, counts: Sequence[int], *, n_draws: int, n_bins: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Error of each recalibration against the number of labelled questions.

    Args:
        records: Of decisions, with ``seed``.
        counts: Numbers of labelled questions; the largest are set apart, and the others of the
            dataset are evaluated.
        n_draws: Draws of fewer than the largest number, for each.
        n_bins: Bins of the ECE, of equal mass.
        seed: Of the split and the draws.

    Returns:
        A row per dataset, system, method and number ``n`` (0 for no recalibration): ``mean``,
        ``low`` and ``high`` (5th and 95th percentile) of the ECE over draws and seeds, those left
        out to which a method cannot be fitted.
    """
    points = []

    def note(rows: pd.DataFrame, confidence: Floats, **labels: object) -> None:
        error = expected_calibration_error(
            confidence, rows["correct"], n_bins=n_bins, binning="equal_mass"
        )
        points.append({**labels, "ece": error})

    for (system, _), rows in records.groupby(["system", "seed"], sort=False):
        for domain, _ in suites.of(rows["dataset"]).tasks.values():
            if domain not in set(rows["dataset"]):
                continue
            pool, rest = split_questions(rows, domain, max(counts), seed=seed)
            rest = rest[rest["confidence"].notna()]
            if rest.empty:  # nothing was decided
                continue
            labels = {"dataset": domain, "system": system}
            note(rest, rest["confidence"].to_numpy(), **labels, method="none", n=0)
            for n in counts:
                for draw in range(n_draws if n < max(counts) else 1):
                    fit = pool
                    if n < max(counts):
                        fit, _ = split_questions(pool, domain, n, seed=seed + 1 + draw)
                    for method in METHODS[1:]:
                        if can_fit(method, fit):
                            new = recalibrated(method, fit, rest)
                            note(rest, new, **labels, method=method, n=n)
    grouped = pd.DataFrame(points).groupby(["dataset", "system", "method", "n"], sort=False)["ece"]
    ends = {"mean": grouped.mean(), "low": grouped.quantile(0.05), "high": grouped.quantile(0.95)}
    return pd.DataFrame(ends).reset_index()


def split_questions(
    records: pd.DataFrame, dataset: str, n: int, *, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Records of a dataset in two parts that share no question.

    Args:
        records: Of decisions.
        dataset: Which.
        n: Questions of the first part.
        seed: Of the draw; the same questions whatever the system.

    Returns:
        The records of n questions, and those of the others.

    Raises:
        ValueError: If no question would be left for one of the parts.
    """
    rows = records[records["dataset"] == dataset]
    questions = np.sort(rows["question_id"].unique())
    if not 0 < n < len(questions):
        raise ValueError(
            f"n is {n!r}; {dataset!r} has {len(questions)} questions, expected 1 to one fewer"
        )
    chosen = np.random.default_rng(seed).permutation(questions)[:n]
    first = rows["question_id"].isin(chosen)
    return rows[first], rows[~first]


def lay_out(table: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Measured values side by side: a row per dataset and system, a column per metric.

    Args:
        table: From :func:`corea.metrics.intervals.summarize`.
        metrics: Metric to its heading, in order.

    Returns:
        Columns ``dataset, system`` and the headings, whose cells are intervals (None where a
        value is missing); in the order in which datasets and systems first occur.
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

    Args:
        table: From :func:`corea.metrics.intervals.summarize`, with ``size``.
        metrics: Metric to its heading, in order.

    Returns:
        As :func:`lay_out`, with a column per size and metric (``"small ECE"``), sizes in the order
        in which they first occur; what one size alone has is missing for the others.
    """
    parts = [
        lay_out(own, {metric: f"{size} {heading}" for metric, heading in metrics.items()})
        for size, own in table.groupby("size", sort=False)
    ]
    return pd.concat(
        [part.set_index(["dataset", "system"]) for part in parts], axis=1
    ).reset_index()


def printed_shares(table: int, suite: Suite = MICROWORLD) -> dict[str, str]:
    """Paper B's Tables 2 and 3, which have one number per model, as text.

    Args:
        table: 2 or 3.
        suite: Whose datasets stand for the paper's.

    Returns:
        Dataset here to the numbers of the three base models.

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
    """A table of :func:`lay_out` with what the committed full run has in the same cells.

    Args:
        shown: The table.
        committed: :func:`corea.metrics.intervals.summarize` of the full run, or None.
        metrics: Metric to its heading.

    Returns:
        The table, with a column more per metric if there is a full run.
    """
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
    """Which of paper B's findings hold, dataset by dataset.

    Args:
        measured: From :func:`measure_decisions`; a finding about systems that were not measured
            on a dataset is left out there.

    Returns:
        Rows of :func:`corea.metrics.intervals.claim`; the paper's numbers are those of its smallest
        model.
    """
    suite = suites.of(measured["dataset"])
    paper = paper_rows(4, suite=suite).set_index(["dataset", "system", "metric"])["value"]
    rows = []
    for dataset, own in measured.groupby("dataset", sort=False):
        there = set(own["system"])
        for what, (system, baseline, metric, bound, lower) in FINDINGS.items():
            if not {system, baseline} <= there:
                continue
            [row] = differences(own[own["metric"] == metric], [(system, baseline)]).to_dict(
                "records"
            )
            named = ["Ours" if name == "CA-GRPO" else name for name in (system, baseline)]
            first, second = (paper[dataset, name, metric] for name in named)
            side = "at_least" if lower else "at_most"
            rows.append(claim(what, str(dataset), row, first - second, **{side: bound}))
    return pd.DataFrame(rows)


def in_order(systems: Iterable[str], order: Sequence[str]) -> list[str]:
    """Systems in a given order, unknown ones last.

    Args:
        systems: Names, repeated or not.
        order: Names.

    Returns:
        Each once.

    Example:
        >>> in_order(["x", "GRPO", "Base", "x"], ["Base", "SFT", "GRPO"])
        ['Base', 'GRPO', 'x']
    """
    there = list(dict.fromkeys(systems))
    return [name for name in order if name in there] + [n for n in there if n not in order]
