"""How often rules for a threshold break the promise "within epsilon of the large model".

``python benchmarks/bench_certified.py [--rivals PYTHON] [--publish] [--quick]`` (about twenty
minutes of processor time). The worlds, the rules and what is counted are described in
``corea.book.certified``; all rules are given the same calibration questions. Two published packages
run beside ours in an environment of their own::

    python -m venv build/rivals
    build/rivals/bin/python -m pip install -r benchmarks/requirements-rivals.txt
    python benchmarks/bench_certified.py --rivals build/rivals/bin/python --publish

Without ``--rivals`` they are left out; ``--quick`` takes few splits of two worlds.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from corea.book import certified
from corea.book.certified import DELTA, WORLDS, World

SETTINGS = {200: 0.05, 500: 0.02, 2000: 0.02}  # questions, and accuracy that may be lost
SHIFTS = (  # certified on the first, used on the second
    ("GSM8K, Llama 8B, 405B", "MATH, Llama 8B, 405B"),
    ("CommonsenseQA, Answer-Prob, RLCR", "MATH-500, Answer-Prob, RLCR"),
    ("HALLMARK, Sonnet 4.6, Opus 4.7", "HALLMARK, GPT-5.4, Opus 4.7"),
    ("drawn, calibrated", "drawn, overconfident"),
)
ALSO = {"CommonsenseQA, Answer-Prob, RLCR": lambda: certified.rlcr("commonsenseqa", "Answer-Prob")}
SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Scale:
    """How much is drawn.

    Attributes:
        splits: Of every world and number of questions.
        few: Splits of the rules that are slow: labels on a budget, batches.
        runs: Of the alarm.
        most: Questions audited, at most.
    """

    splits: int = 1000
    few: int = 100
    runs: int = 100
    most: int = 3000


QUICK = Scale(splits=5, few=2, runs=2, most=200)


@cache
def world(name: str) -> World:
    return {**WORLDS, **ALSO}[name]()


def rivals(
    python: str, name: str, drawn: np.ndarray, few: int, epsilon: float
) -> dict[str, np.ndarray]:
    """What other packages take on these splits, asked in their own environment through files."""
    q = world(name).questions
    facts = {column: q[f"{column}_correct"].to_numpy(dtype=bool) for column in ("small", "large")}
    if "differ" in q:
        facts["differ"] = q["differ"].to_numpy(dtype=bool)
    facts |= {"confidence": q["confidence"].to_numpy(dtype=float), "drawn": drawn}
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "given.npz"), Path(folder, "found.npz")
        np.savez(given, epsilon=epsilon, delta=DELTA, batches=few, **facts)
        script = Path(__file__).with_name("rivals.py")
        subprocess.run([python, str(script), str(given), str(found)], check=True)
        with np.load(found) as file:
            return dict(file)


def measure(
    name: str, n: int, scale: Scale, python: str | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the tables rules and batch for one world and number of questions."""
    here = world(name)
    drawn = here.drawn(n, scale.splits, [list(WORLDS).index(name), n])
    epsilon = SETTINGS[n]
    theirs = rivals(python, name, drawn, scale.few, epsilon) if python else {}
    asked = {key: of for key, of in theirs.items() if key == "bargain"}
    isotonic = {key: of for key, of in theirs.items() if key not in asked}
    rules = certified.simulate(here, drawn, epsilon, label_splits=scale.few, others=isotonic)
    batch = pd.DataFrame()
    if "differ" in here.questions:
        batch = certified.batches(here, drawn[: scale.few], epsilon, asked)
    return rules.assign(world=name), batch.assign(world=name)


def shift(pair: tuple[str, str], share: float, scale: Scale) -> dict[str, object]:
    """A row of the table alarm."""
    here, to = map(world, pair)
    found = certified.alarms(
        here, to, share, SETTINGS[2000], n=2000, runs=scale.runs, most=scale.most
    )
    return {"world": pair[0], "to": pair[1], **found}


def run(
    scale: Scale, python: str | None, processes: int, names: list[str], sizes: list[int]
) -> dict[str, pd.DataFrame]:
    """The tables of :data:`corea.book.certified.TABLES`."""
    settings = [(name, n) for n in sizes for name in names]
    pairs = [pair for pair in SHIFTS if pair[1] in names]
    rows, start = [], time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        waiting = [pool.submit(measure, *setting, scale, python) for setting in settings]
        watched = [pool.submit(shift, pair, share, scale) for pair in pairs for share in SHARES]
        for setting, job in zip(settings, waiting, strict=True):
            rows.append(job.result())
            print(*setting, f"{time.perf_counter() - start:.0f} s", flush=True)
        alarm = pd.DataFrame(job.result() for job in watched)
    rules, batch = (pd.concat(parts, ignore_index=True) for parts in zip(*rows, strict=True))
    first = ["world", "n", "epsilon", "rule"]
    return {
        "rules": rules[[*first, *rules.columns.difference(first, sort=False)]],
        "batch": batch[[*first, *batch.columns.difference(first, sort=False)]],
        "alarm": alarm,
    }


def main() -> None:
    """Print what was found, and publish it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", metavar="PYTHON", help="python that has the other packages")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few splits of two worlds")
    parser.add_argument("--publish", action="store_true", help="write corea/data/certified/")
    given = parser.parse_args()
    scale, names, sizes = Scale(), list(WORLDS), sorted(SETTINGS, reverse=True)
    if given.quick:
        scale, names, sizes = QUICK, ["drawn, overconfident", "HALLMARK, GPT-5.4, Opus 4.7"], [500]
    tables = run(scale, given.rivals, given.processes, names, sizes)
    for table in tables.values():
        print(table.to_string(index=False))
    if given.publish:
        facts = {"seeds": "the place of the world, and n", "delta": f"{DELTA:g}"}
        facts |= {name: str(value) for name, value in asdict(scale).items()}
        facts |= {name: version(name) for name in ("numpy", "scipy", "pandas")}
        lines = Path(__file__).with_name("requirements-rivals.txt").read_text("utf-8").split()
        facts |= dict(line.split("==") for line in lines if "==" in line and given.rivals)
        certified.publish(tables, facts)


if __name__ == "__main__":
    main()
