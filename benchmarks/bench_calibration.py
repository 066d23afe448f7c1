"""ECE with bootstrap: cells of equal rows against resampling rows with other libraries.

``python benchmarks/bench_calibration.py`` (needs the ``test`` extra: torch, torchmetrics,
netcal). 100,000 rows, 1,000 resamples, ten equal-width bins; the contenders alternate, and
the best and median of the repetitions are shown. Ratios are of the best, since torch's threads
lose far more than the others where cores are shared. Confidences are taken off the bins' edges,
where the libraries' rules differ (the conformance page is about those), so all estimate the
same quantity and their intervals should agree within Monte Carlo error.

Two data sets: stated confidences take few values, which is what cells are for; decision-token
probabilities are all distinct, and no two rows can be merged.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

from corea.metrics.calibration import expected_calibration_error
from corea.metrics.intervals import bootstrap_interval

N_ROWS = 100_000
N_RESAMPLES = 1000
Interval = tuple[float, float]


def with_corea(confidence: np.ndarray, correct: np.ndarray, seed: int) -> Interval:
    """Resample cells; building the table of records is not timed elsewhere, so it is here."""
    records = pd.DataFrame(
        {
            "dataset": "d",
            "question_id": np.arange(len(confidence)),
            "confidence": confidence,
            "correct": correct,
        }
    )
    interval = bootstrap_interval(
        expected_calibration_error, records, n_resamples=N_RESAMPLES, seed=seed
    )
    return interval.low, interval.high


def with_torchmetrics(confidence: np.ndarray, correct: np.ndarray, seed: int) -> Interval:
    """Resample rows and recompute; its input check is off, which makes it faster."""
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    torch.manual_seed(seed)
    preds, target = torch.tensor(confidence), torch.tensor(correct.astype(np.int64))
    values = []
    for _ in range(N_RESAMPLES):
        rows = torch.randint(0, len(preds), (len(preds),))
        values.append(
            binary_calibration_error(preds[rows], target[rows], n_bins=10, validate_args=False)
        )
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def with_netcal(confidence: np.ndarray, correct: np.ndarray, seed: int) -> Interval:
    """Resample rows and recompute."""
    from netcal.metrics import ECE

    random = np.random.default_rng(seed)
    ece = ECE(bins=10)
    target = correct.astype(np.int64)
    values = []
    for _ in range(N_RESAMPLES):
        rows = random.integers(0, len(target), len(target))
        values.append(ece.measure(confidence[rows], target[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Print one row per data set and contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    repetitions = parser.parse_args().repetitions
    warnings.simplefilter("ignore")  # netcal imports deprecated names

    random = np.random.default_rng(0)
    few = random.choice([0.15, 0.25, 0.45, 0.55, 0.65, 0.75, 0.82, 0.85, 0.92, 0.95, 0.98], N_ROWS)
    data = {"11 distinct confidences": few, "all distinct": random.random(N_ROWS)}
    contenders: dict[str, Callable[[np.ndarray, np.ndarray, int], Interval]] = {
        "corea": with_corea,
        "torchmetrics": with_torchmetrics,
        "netcal": with_netcal,
    }
    print(f"{N_ROWS:,} rows, {N_RESAMPLES:,} resamples, {repetitions} alternating repetitions")
    print(f"{'data':24} {'contender':13} {'best s':>8} {'median s':>9} {'ratio':>7}  interval")
    for name, confidence in data.items():
        correct = random.random(N_ROWS) < 0.1 + 0.8 * confidence
        seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
        intervals: dict[str, Interval] = {}
        for run in contenders.values():
            run(confidence[:1000], correct[:1000], 0)  # imports, not timed
        for repetition in range(repetitions):
            for contender, run in contenders.items():
                start = time.perf_counter()
                intervals[contender] = run(confidence, correct, repetition)
                seconds[contender].append(time.perf_counter() - start)
        for contender in contenders:
            best, median = min(seconds[contender]), np.median(seconds[contender])
            low, high = intervals[contender]
            print(
                f"{name:24} {contender:13} {best:8.3f} {median:9.3f} "
                f"{best / min(seconds['corea']):7.1f}  [{low:.5f}, {high:.5f}]"
            )


if __name__ == "__main__":
    main()
