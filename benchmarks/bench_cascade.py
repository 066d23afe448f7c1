"""Time and memory of `deferral_curve` on a million questions, all confidences distinct."""

import time
import tracemalloc

import numpy as np

from corea.metrics.cascade import deferral_curve


def main(n: int = 1_000_000, runs: int = 5) -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(n)
    small, large = rng.random(n) < confidence, rng.random(n) < 0.8
    costs = rng.integers(100, 4000, n) * 1.0, rng.integers(100, 4000, n) * 32 / 7
    columns = (confidence, small, large, *costs)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        curve = deferral_curve(*columns)
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    deferral_curve(*columns)
    peak = tracemalloc.get_traced_memory()[1]
    given = sum(column.nbytes for column in columns)
    print(f"questions {n:,}, thresholds {len(curve):,}")
    print(f"seconds   median {np.median(seconds):.2f}, best {min(seconds):.2f} of {runs}")
    print(f"memory    {peak / 1e6:.0f} MB at the peak, {peak / given:.1f} times the input")


if __name__ == "__main__":
    main()
