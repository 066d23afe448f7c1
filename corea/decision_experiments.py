r"""Decisions compared: paper B's tables, beside what is measured here.

Records of decisions (:mod:`corea.decision_evaluation`) are records like any others, and
:func:`corea.experiments.measure` measures them. Here is what only decisions have: errors over the
probabilities of all options, recalibration behind the training, and where the decision world
stands for paper B's datasets.

1. Units are those of :mod:`corea.experiments`: accuracies (``pass_at_1``) in percent, errors and
   AUROC as fractions. Paper B prints all in percent.
2. The paper's numbers shown beside ours are those of its smallest model, Qwen3-1.7B, unless a
   table is about all three.
3. Recalibration is fitted to the records that decided something; one without a decision stays
   without a confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea.calibration import marginal_calibration_error, static_calibration_error
from corea.decision_evaluation import OPTIONS
from corea.decisions import LETTERS, VERDICTS
from corea.experiments import QuestionWeights, as_interval
from corea.published import published_table

Floats = NDArray[np.float64]

TASKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"choices": ("choices", "fact_choices"), "messages": ("messages", "lists")}
)
"""Task to its dataset of training and the one of another distribution."""

EACH: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: (name,) for names in TASKS.values() for name in names}
)
"""Every dataset by itself."""

COUNTERPARTS: Mapping[str, str] = MappingProxyType(
    {"CSQA": "choices", "OBQA": "fact_choices", "OpenAI": "messages", "XSTest": "lists"}
)
"""Dataset of paper B to what stands in its place here."""

PAPER_MODELS = ("Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B")

METHODS = ("none", "temperature", "platt", "isotonic")
"""Recalibrations of :func:`recalibrated`."""

_UNITS = {"accuracy": ("pass_at_1", 1.0)}  # metric of the paper to ours, and what it is divided by
_TINY = 1e-6


def paper_rows(
    *tables: int, systems: Mapping[str, str] | None = None, model: str = PAPER_MODELS[0]
) -> pd.DataFrame:
    """Printed numbers of paper B under the names and in the units used here.

    Args:
        *tables: Numbers of paper B's tables.
        systems: The paper's name to the name here, rows of others are left out; where a table has
            settings, a name is ``"system, setting"``. All under their own names when None.
        model: Of :data:`PAPER_MODELS`.

    Returns:
        Columns as of :func:`corea.experiments.paper_rows`.

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
        dataset=found["dataset"].map(dict(COUNTERPARTS)),
        metric=[_UNITS.get(metric, (metric,))[0] for metric in found["metric"]],
        value=found["value"] / divisor,
        spread=0.0,
        half_unit=found["half_unit"] / divisor,
    )
    columns = ["dataset", "system", "metric", "value", "spread", "half_unit"]
    return found[columns].drop_duplicates().reset_index(drop=True)


def measure_options(
    records: pd.DataFrame, *, n_bins: int = 10, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Calibration errors over the probabilities of all options.

    Source: paper B, Table 6.

    Args:
        records: Of decisions, from :func:`corea.runs.run_records`; those without one are left out.
        n_bins: Bins of each option.
        n_resamples: As for :func:`corea.experiments.measure`.
        seed: Of the resampling.

    Returns:
        Measurements, as of :func:`corea.experiments.measure`, with the metrics ``sce`` and
        ``mce`` (:func:`corea.calibration.static_calibration_error` and
        :func:`~corea.calibration.marginal_calibration_error`), missing where nothing was decided.
    """
    weights = QuestionWeights(records, n_resamples, seed)
    parts = []
    for key, rows in records.groupby(["system", "seed", "dataset"], sort=False):
        system, run_seed, dataset = key
        weight = weights.of_rows(rows, str(dataset))
        there = rows["answer"].notna().to_numpy()
        probabilities, gold = _options(rows[there])
        for metric, error in (
            ("sce", static_calibration_error),
            ("mce", marginal_calibration_error),
        ):
            values = [
                error(probabilities, gold, n_bins=n_bins, weight=row[there])
                if row[there].any()
                else np.nan
                for row in weight
            ]
            parts.append(
                pd.DataFrame(
                    {
                        "system": system,
                        "seed": run_seed,
                        "dataset": dataset,
                        "metric": metric,
                        "resample": np.arange(len(values)),
                        "value": values,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def measure_means(
    rows: pd.DataFrame, columns: Sequence[str], *, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Means of columns, as measurements.

    Args:
        rows: With ``system``, ``seed``, ``dataset``, ``question_id`` and the columns; a value that
            is missing is left out of its mean.
        columns: Numbers or flags.
        n_resamples: As for :func:`corea.experiments.measure`.
        seed: Of the resampling.

    Returns:
        Measurements, as of :func:`corea.experiments.measure`, with the columns as metrics.

    Example:
        >>> rows = pd.DataFrame({"system": "Base", "seed": 0, "dataset": "choices",
        ...     "question_id": ["1", "2"], "flipped": [True, False]})
        >>> measure_means(rows, ["flipped"], n_resamples=5).loc[0, "value"].item()
        0.5
    """
    weights = QuestionWeights(rows, n_resamples, seed)
    parts = []
    for (system, run_seed, dataset), own in rows.groupby(["system", "seed", "dataset"], sort=False):
        weight = weights.of_rows(own, str(dataset))
        for column in columns:
            values = own[column].to_numpy(dtype=float)
            there = ~np.isnan(values)
            total = weight[:, there].sum(axis=1)
            means = weight[:, there] @ values[there] / np.where(total > 0, total, np.nan)
            parts.append(
                pd.DataFrame(
                    {
                        "system": system,
                        "seed": run_seed,
                        "dataset": dataset,
                        "metric": column,
                        "resample": np.arange(len(means)),
                        "value": means,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def _options(rows: pd.DataFrame) -> tuple[Floats, NDArray[np.intp]]:
    """Probabilities of the options, (n, K), and the place of the right one."""
    probabilities = rows[list(OPTIONS)].to_numpy(dtype=float)
    probabilities = probabilities[:, ~np.isnan(probabilities).all(axis=0)]
    # float noise of K softmax terms may exceed 1 by an epsilon
    probabilities = probabilities / np.maximum(probabilities.sum(axis=1, keepdims=True), 1.0)
    names = VERDICTS if set(rows["gold"]) <= set(VERDICTS) else LETTERS
    return probabilities, np.array([names.index(label) for label in rows["gold"]], dtype=np.intp)


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
    known = fit[fit["confidence"].notna()]
    there = rows["confidence"].notna().to_numpy()
    found = np.full(len(rows), np.nan)
    if method == "none":
        return rows["confidence"].to_numpy(dtype=float)
    if known.empty:
        raise ValueError("nothing to fit to: expected at least one record with a confidence")
    found[there] = _METHODS[method](known, rows[there])
    return found


def _temperature(fit: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    from scipy.optimize import minimize_scalar

    probabilities, gold = _options(fit)
    logits = np.log(np.maximum(probabilities, 1e-30))

    def entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        own = scaled[np.arange(len(gold)), gold]
        return float((_log_sum_exp(scaled) - own).mean())

    best = minimize_scalar(entropy, bounds=(-3.0, 6.0), method="bounded")
    probabilities, _ = _options(rows)
    scaled = np.log(np.maximum(probabilities, 1e-30)) / np.exp(best.x)
    names = VERDICTS if set(rows["answer"]) <= set(VERDICTS) else LETTERS
    decided = [names.index(label) for label in rows["answer"]]
    result: Floats = np.exp(scaled[np.arange(len(rows)), decided] - _log_sum_exp(scaled))
    return result


def _log_sum_exp(values: Floats) -> Floats:
    highest = values.max(axis=1)
    total: Floats = highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))
    return total


def _platt(fit: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    from sklearn.linear_model import LogisticRegression

    if fit["correct"].nunique() < 2:
        raise ValueError("Platt scaling needs right and wrong records; these are all of one kind")
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
        table: From :func:`corea.experiments.intervals`.
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
