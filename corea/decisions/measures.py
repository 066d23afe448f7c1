"""Measurements of decisions: their accuracy and calibration, and means of columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from corea.decisions.recalibration import option_probabilities
from corea.metrics.calibration import marginal_calibration_error, static_calibration_error
from corea.metrics.intervals import QuestionWeights, as_measurements
from corea.metrics.measure import measure

_ERRORS = {"sce": static_calibration_error, "mce": marginal_calibration_error}


def measure_decisions(
    records: pd.DataFrame, *, n_bins: int = 10, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Accuracy and calibration (bins of equal mass) on every dataset, system by system."""
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
    """Calibration errors ``sce`` and ``mce`` over the probabilities of all options.

    Records without a decision are left out; missing where nothing was decided.

    Source: paper B, Table 6.
    """
    weights = QuestionWeights(records, n_resamples, seed)
    parts = []
    for key, rows in records.groupby(["system", "seed", "dataset"], sort=False):
        system, run_seed, dataset = key
        weight = weights.of_rows(rows, str(dataset))
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
        labels = {"system": system, "seed": run_seed, "dataset": dataset}
        parts.append(as_measurements(values, n_questions=n, **labels))
    return pd.concat(parts, ignore_index=True)


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
