"""A served cascade under load: nothing lost when a backend dies, and what the service adds.

``python benchmarks/bench_serve.py`` asks 1,000 questions, 50 at once, by OpenAI's own client. The
fake backends, the service and the client are processes of their own. A third of the way the large
model's backend is killed, and started again at two thirds.

Then the same load without a kill, twice: through the cascade, and to the small backend directly,
for what the client itself takes. Backends wait as their questions say, so that
"added" is a request's time less those waits; it holds two HTTP requests, the client's work and the
scheduling of four processes on the cores there are. "Inside" is what the service itself counts:
its time less that in which it waits for models, which holds no client of its own.
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

from corea.serving.log import read_log

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import cascade_processes as processes

WAITS = (0.3, 0.9)  # seconds of the small and the large model


def questions(n: int, small: float, large: float) -> list[str]:
    """Of every ten, three are deferred for low confidence and one has none."""
    stated = ["c=0.95"] * 6 + ["c=0.2"] * 3 + [""]
    return [f"q{i} {stated[i % 10]} wait={small},{large}" for i in range(n)]


def told(name: str, seconds: np.ndarray) -> None:
    low, high = np.quantile(seconds, [0.5, 0.99]) * 1000
    print(f"{name}: median {low:.1f} ms, p99 {high:.1f} ms")


def main() -> None:
    """Print what was found; a lost or doubled answer ends it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=50)
    options = parser.parse_args()
    n, asked = options.n, questions(options.n, *WAITS)
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
        outcomes = asyncio.run(processes.load(service.url, asked, options.concurrency))
        processes.check(outcomes, read_log(service.answers), n)
        waited = [WAITS[0] + o.answer.corea["deferred"] * WAITS[1] for o in outcomes]
        told("added, client included", np.array([o.seconds for o in outcomes]) - waited)
        buckets = processes.metric(service.url, "corea_overhead_seconds_bucket")
        total = sum(processes.metric(service.url, "corea_overhead_seconds_sum").values())
        shares = {label[5:-2]: value / n for label, value in buckets.items()}
        print(f"inside: mean {1000 * total / n:.2f} ms; share within seconds: {shares}")
        service.end()
        direct = [question.replace("c=0.2", "c=0.95") for question in asked]
        outcomes = asyncio.run(processes.load(small.url, direct, options.concurrency))
        told("a backend asked directly", np.array([o.seconds for o in outcomes]) - WAITS[0])


if __name__ == "__main__":
    main()
