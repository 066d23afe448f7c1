"""Coverage of intervals: what ``benchmarks/bench_coverage.py --publish`` found."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parents[1] / "data" / "coverage"


def measured() -> pd.DataFrame:
    """``n_seeds, n_questions, system, metric, rule, covered`` (share), ``width, n_worlds``."""
    return pd.read_csv(FOLDER / "coverage.csv")


def truth() -> pd.DataFrame:
    """``what, metric`` and a column per system: what is known of its models, one per seed.

    ``truth, deviation`` and ``skewness`` over seeds, and the share that Student's t over so many
    seeds covers where questions are endless.
    """
    return pd.read_csv(FOLDER / "truth.csv")


def publish(coverage: pd.DataFrame, truth: pd.DataFrame) -> None:
    """Write both tables into the package."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    coverage.to_csv(FOLDER / "coverage.csv", index=False, float_format="%.4g")
    truth.to_csv(FOLDER / "truth.csv", index=False, float_format="%.4g")
