"""ECE with bootstrap: cells of equal rows against resampling rows with other libraries.

``python benchmarks/bench_calibration.py [--publish]`` (needs the ``test`` extra: torch,
torchmetrics, netcal). 100,000 rows, 1,000 resamples, ten equal-width bins, one thread each; the
contenders take turns, and the best and median of the repetitions are shown. Ratios are of the best.
Times are of the processor, since other work on the machine stretches those of the clock.
Confidences are taken off the bins' edges, where the libraries' rules differ (the conformance page
is about those), so all estimate the same quantity and their intervals should agree within Monte
Carlo error.

Two data sets: stated confidences take few values, which is what cells are for; decision-token
probabilities are all distinct, and no two rows can be merged.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from corea.book import speed
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
    parser.add_argument("--publish", action="store_true", help="write corea/data/speed/")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # netcal imports deprecated names
    torch.set_num_threads(1)
    threadpool_limits(1)

    random = np.random.default_rng(0)
    few = random.choice([0.15, 0.25, 0.45, 0.55, 0.65, 0.75, 0.82, 0.85, 0.92, 0.95, 0.98], N_ROWS)
    data = {"11 distinct confidences": few, "all distinct": random.random(N_ROWS)}
    contenders: dict[str, Callable[[np.ndarray, np.ndarray, int], Interval]] = {
        "corea": with_corea,
        "torchmetrics": with_torchmetrics,
        "netcal": with_netcal,
    }
    rows = []
    for name, confidence in data.items():
        correct = random.random(N_ROWS) < 0.1 + 0.8 * confidence
        for run in contenders.values():
            run(confidence[:1000], correct[:1000], 0)  # imports, not timed
        for repetition in range(given.repetitions):
            for contender, run in contenders.items():
                start = time.process_time()
                low, high = run(confidence, correct, repetition)
                seconds = time.process_time() - start
                rows.append((repetition + 1, name, contender, seconds, low, high))
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows, columns=["step", "data", "way", "seconds", "low", "high"])
    best = table.groupby(["data", "way"], sort=False)["seconds"].agg(["min", "median"])
    corea = best["min"].xs("corea", level="way")
    print(best.assign(ratio=best["min"] / corea.reindex(best.index, level="data")).round(3))
    if given.publish:
        facts = {
            "rows": str(N_ROWS),
            "resamples": str(N_RESAMPLES),
            "threads": "1",
            "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when it ended",
            **{name: version(name) for name in ("numpy", "torch", "torchmetrics", "netcal")},
        }
        speed.publish("intervals", {"intervals": table}, facts)


if __name__ == "__main__":
    main()
