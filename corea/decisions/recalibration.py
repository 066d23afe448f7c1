r"""Recalibration of decisions behind the training, and how a question's rollouts agree.

Recalibration is fitted to the records that decided something; one without a decision stays
without a confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from corea import checks
from corea.decisions.evaluation import OPTIONS
from corea.metrics.calibration import expected_calibration_error
from corea.tasks import suites
from corea.tasks.decision_questions import PLACES
from corea.thresholds.recalibration import Recalibration

Floats = NDArray[np.float64]


METHODS = ("none", "temperature", "platt", "isotonic")
"""Recalibrations of :func:`recalibrated`."""

NAMES: Mapping[str, str] = MappingProxyType({name: name.capitalize() for name in METHODS})
"""What they are called in tables."""


_OF_QUESTION = ["system", "seed", "dataset", "question_id"]


def option_probabilities(rows: pd.DataFrame) -> tuple[Floats, NDArray[np.intp]]:
    """Probabilities of the options, (n, K), and the place of the right one.

    Where questions differ in their options, those that one lacks have a probability of 0.
    """
    probabilities = rows[list(OPTIONS)].to_numpy(dtype=float)
    probabilities = np.nan_to_num(probabilities[:, ~np.isnan(probabilities).all(axis=0)])
    # float noise of K softmax terms may exceed 1 by an epsilon
    probabilities = probabilities / np.maximum(probabilities.sum(axis=1, keepdims=True), 1.0)
    return probabilities, np.array([PLACES[label] for label in rows["gold"]], dtype=np.intp)


# --- rollouts ---------------------------------------------------------------------------------


def flag_rollouts(rollouts: pd.DataFrame, *, sure: float = 0.99, near: float = 0.1) -> pd.DataFrame:
    """Whether rollouts are sure of their decision, and calibrated for their question.

    Adds ``accuracy`` (the share of the question's decisions that are right), ``sure`` (probability
    above ``sure``; paper B's Table 2 has 0.99), ``sure_and_wrong`` and ``calibrated`` (within
    ``near`` of the accuracy): 0 or 1, missing where nothing was decided, and the last also for
    questions that are always or never right, where nothing between is to be known.

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

    ``spread`` is from the 10th to the 90th percentile, ``advantage`` the mean probability of the
    right decisions less that of the wrong ones (missing where there is only one kind).
    """
    decided = rollouts[rollouts["confidence"].notna()]

    def by_question(rows: pd.DataFrame) -> Any:
        return rows.groupby(_OF_QUESTION, sort=False)["confidence"]

    spread = by_question(decided).quantile(0.9) - by_question(decided).quantile(0.1)
    advantage = (
        by_question(decided[decided["correct"]]).mean()
        - by_question(decided[~decided["correct"]]).mean()
    )
    found: pd.DataFrame = spread.to_frame("spread").assign(advantage=advantage)
    return found.reset_index()


# --- recalibration behind the training --------------------------------------------------------


def recalibrated(method: str, fit: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    r"""Confidences of decisions after a recalibration that was fitted to labelled others.

    With :math:`p` the confidence and :math:`z_k` the log-probabilities of the options,

    - ``"none"``: :math:`p`;
    - ``"temperature"``: the decided option's share of :math:`\exp(z_k / T)`, with the T of least
      cross-entropy to the right options. It needs the options, and is over them alone;
    - ``"platt"`` and ``"isotonic"``: a :class:`corea.thresholds.recalibration.Recalibration` of p.

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
    checks.one_of(method, "method", METHODS)
    if method == "none":
        return rows["confidence"].to_numpy(dtype=float)
    if not can_fit(method, fit):
        raise ValueError(
            f"nothing to fit {method} to: expected records with a confidence, and for platt both "
            "right and wrong ones"
        )
    decided = rows["confidence"].notna().to_numpy()
    found = np.full(len(rows), np.nan)
    found[decided] = _METHODS[method](fit[fit["confidence"].notna()], rows[decided])
    return found


def can_fit(method: str, fit: pd.DataFrame) -> bool:
    """Whether there are confidences to fit to and, for Platt scaling, right and wrong ones."""
    correct = fit.loc[fit["confidence"].notna(), "correct"]
    return method == "none" or correct.nunique() > (1 if method == "platt" else 0)


def _temperature(fit: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    from scipy.optimize import minimize_scalar

    logits, gold = _logits(fit)

    def entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        right = scaled[np.arange(len(gold)), gold]
        return float((_log_sum_exp(scaled) - right).mean())

    best = minimize_scalar(entropy, bounds=(-3.0, 6.0), method="bounded")
    scaled = _logits(rows)[0] / np.exp(best.x)
    decided = [PLACES[label] for label in rows["answer"]]
    result: Floats = np.exp(scaled[np.arange(len(rows)), decided] - _log_sum_exp(scaled))
    return result


def _logits(rows: pd.DataFrame) -> tuple[Floats, NDArray[np.intp]]:
    """Log-probabilities of the options, minus infinity where a question lacks one."""
    probabilities, gold = option_probabilities(rows)
    logits = np.log(np.maximum(probabilities, 1e-30))
    lacking = rows[list(OPTIONS)[: logits.shape[1]]].isna().to_numpy()
    return np.where(lacking, -np.inf, logits), gold


def _log_sum_exp(values: Floats) -> Floats:
    highest = values.max(axis=1)
    total: Floats = highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))
    return total


def _mapped(
    method: Literal["platt", "isotonic"],
) -> Callable[[pd.DataFrame, pd.DataFrame], Floats]:
    """A map of the confidence alone."""
    return lambda fit, rows: Recalibration.fit(method, fit["confidence"], fit["correct"]).apply(
        rows["confidence"]
    )


_METHODS: Mapping[str, Callable[[pd.DataFrame, pd.DataFrame], Floats]] = MappingProxyType(
    {"temperature": _temperature, "platt": _mapped("platt"), "isotonic": _mapped("isotonic")}
)


def recalibrate_all(records: pd.DataFrame, n_fit: int, *, seed: int = 0) -> pd.DataFrame:
    """Records of every system after every recalibration.

    ``n_fit`` questions of a task's first dataset are fitted to; the others and the second dataset
    are recalibrated. ``name`` is the system, ``system`` names the method too; a confidence is
    missing where a method cannot be fitted (:func:`can_fit`).
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


def parts_of(systems: pd.Series[str]) -> tuple[pd.Series[str], pd.Series[str]]:
    """System and method of names that :func:`recalibrate_all` made.

    Example:
        >>> [part.tolist() for part in parts_of(pd.Series(["CA-GRPO, two-stage, Platt"]))]
        [['CA-GRPO, two-stage'], ['platt']]
    """
    names = systems.map(lambda system: system.rpartition(", ")[0])
    return names, systems.map(lambda system: system.rpartition(", ")[2].lower())


def label_curve(
    records: pd.DataFrame, counts: Sequence[int], *, n_draws: int, n_bins: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Error of each recalibration against the number of labelled questions.

    The largest of ``counts`` is set apart and the other questions are evaluated; smaller numbers
    are drawn from it ``n_draws`` times.

    Returns:
        A row per dataset, system, method and number ``n`` (0 for no recalibration): ``mean``,
        ``low`` and ``high`` (5th and 95th percentile) of the ECE (bins of equal mass) over draws
        and seeds, those left out to which a method cannot be fitted.
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
    """Records of a dataset in two parts that share no question; n questions, and the others."""
    rows = records[records["dataset"] == dataset]
    questions = np.sort(rows["question_id"].unique())
    if not 0 < n < len(questions):
        raise ValueError(
            f"n is {n!r}; {dataset!r} has {len(questions)} questions, expected 1 to one fewer"
        )
    chosen = np.random.default_rng(seed).permutation(questions)[:n]
    first = rows["question_id"].isin(chosen)
    return rows[first], rows[~first]
