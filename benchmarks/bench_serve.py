"""A served cascade under load: nothing lost when a backend dies, and what the service adds.

``python benchmarks/bench_serve.py`` asks 1,000 questions, 50 at once, by OpenAI's own client. The
fake backends, the service and the client are processes of their own. A third of the way the large
model's backend is killed, and started again at two thirds.

Then the same load without a kill. Backends wait as their questions say, so what was "added" is a
request's time less those waits. It holds two or three HTTP requests, the client's own work and the
scheduling of four processes on the cores there are; so the small backend is asked directly too.
"Inside" is what the service itself counts: its time less that in which it waits for models. CPU
time, which busy cores change less, is that of its whole process, requests to models included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from corea.serving.log import read_log

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import cascade_processes as processes

WAITS = np.array([0.4, 1.2])  # mean seconds of the small and the large model
RAMP = 1.0  # seconds in which clients begin


def told(name: str, outcomes: list[processes.Outcome], waits: np.ndarray) -> None:
    """Print how much longer than the backends' waits requests took."""
    deferred = [o.answer.corea["deferred"] if hasattr(o.answer, "corea") else 0 for o in outcomes]
    numbers = [o.number for o in outcomes]
    waited = waits[numbers, 0] + np.array(deferred) * waits[numbers, 1]
    added = np.array([o.seconds for o in outcomes]) - waited
    low, high = np.quantile(added, [0.5, 0.99]) * 1000
    print(f"{name}: median {low:.1f} ms, p99 {high:.1f} ms")


def main() -> None:
    """Print what was found; a lost or doubled answer ends it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=50)
    options = parser.parse_args()
    n = options.n
    waits = np.random.default_rng(0).uniform(0.5, 1.5, size=(n, 2)) * WAITS
    # of every ten, three are deferred for low confidence and one has none
    stated = ["c=0.95"] * 6 + ["c=0.2"] * 3 + [""]
    asked = [f"q{i} {stated[i % 10]} wait={a:.4f},{b:.4f}" for i, (a, b) in enumerate(waits)]
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before it started")
    with tempfile.TemporaryDirectory() as name, processes.backends() as (small, large):
        folder = Path(name)
        card = processes.card(folder / "card.json")
        service = processes.Served(card, small.url, large.url, folder / "killed.jsonl")
        steps = [(1 / 3, large.kill), (2 / 3, large.start)]
        outcomes = asyncio.run(processes.load(service.url, asked, options.concurrency, steps))
        status = service.end()
        processes.check(outcomes, read_log(service.answers), n)
        kinds = Counter(
            "error" if o.error else "degraded" if o.answer.corea["degraded"] else "answered"
            for o in outcomes
        )
        print(f"{n} questions, {options.concurrency} at once, killed and restarted: {dict(kinds)}")
        print(f"each one sound answer or error, none lost or twice in the log; exit {status}")

        service = processes.Served(card, small.url, large.url, folder / "load.jsonl")
        process = psutil.Process(service.process.pid)
        before = sum(process.cpu_times()[:2])
        outcomes = asyncio.run(processes.load(service.url, asked, options.concurrency, ramp=RAMP))
        cpu = sum(process.cpu_times()[:2]) - before
        processes.check(outcomes, read_log(service.answers), n)
        told("added, client included", outcomes, waits)
        buckets = processes.metric(service.url, "corea_overhead_seconds_bucket")
        within = {float(label[5:-2]): value / n for label, value in buckets.items()}
        shares = ", ".join(
            f"{within[s]:.1%} within {1000 * s:g} ms" for s in (0.0025, 0.005, 0.025)
        )
        print(f"inside: {shares}; CPU {1000 * cpu / n:.2f} ms a question")
        service.end()
        outcomes = asyncio.run(processes.load(small.url, asked, options.concurrency, ramp=RAMP))
        told("the small backend, asked directly", outcomes, waits)
        print(f"load {os.getloadavg()[0]:.1f} in the end")


if __name__ == "__main__":
    main()
