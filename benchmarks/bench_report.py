"""How long ``corea report`` takes on a million rows, on one core.

Run ``python benchmarks/bench_report.py``; it prints seconds of the processor and of the clock, and
the size of the page. The rows are drawn: two systems on 500,000 questions, one with confidences.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

QUESTIONS = 500_000


def write_rows(path: Path, n: int = QUESTIONS) -> None:
    """A records file of two systems on n questions."""
    rng = np.random.default_rng(0)
    confidence = rng.beta(5, 2, n)
    facts = {"dataset": "drawn", "question_id": np.arange(n).astype(str)}
    small = {"system": "small", "correct": rng.random(n) < confidence, "confidence": confidence}
    large = {"system": "large", "correct": rng.random(n) < 0.9, "confidence": np.nan}
    table = pd.concat([pd.DataFrame({**facts, **side}) for side in (small, large)])
    tokens = rng.integers(50, 800, len(table))
    table.assign(prompt_tokens=100, completion_tokens=tokens).to_parquet(path, index=False)


def main() -> None:
    """Write the rows, report on them, say what it took."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from corea.cli import main as corea

    with tempfile.TemporaryDirectory() as folder:
        records, page = Path(folder, "records.parquet"), Path(folder, "report.html")
        write_rows(records)
        processor, clock = time.process_time(), time.perf_counter()
        status = corea(["report", str(records), "--out", str(page)])
        assert status == 0
        print(
            f"{2 * QUESTIONS:,} rows: {time.process_time() - processor:.1f} s of the processor, "
            f"{time.perf_counter() - clock:.1f} s; page {page.stat().st_size / 1e6:.2f} MB"
        )


if __name__ == "__main__":
    main()
