r"""What a training step, an answer and an interval cost: committed measurements, their summaries.

``python benchmarks/bench_trainer.py --publish`` makes three of the tables in ``data/speed/``:

- ``steps``: ``step``, ``way`` to train (``"corea"``, the same with TRL's rollouts, or ``"trl"``),
  ``seconds`` of that step
- ``parts``: ``step``, ``part`` of it, ``seconds``
- ``rollouts``: ``step``, ``way`` in which its completions were made, ``tokens``, ``seconds``

and ``benchmarks/bench_server.py --publish`` the fourth:

- ``server``: ``step``, ``logprobs`` whether log-probabilities were asked for, ``way`` to ask
  (``"corea"``, or ``"vllm bench serve"``, the server's own benchmark), ``tokens``, ``seconds``

and ``benchmarks/bench_calibration.py --publish`` the last:

- ``intervals``: ``step``, ``data``, ``way`` (``"corea"`` or another library), ``seconds`` of the
  processor for an ECE with its interval, ``low``, ``high``
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from corea import checks

FOLDER = Path(__file__).parents[1] / "data" / "speed"
TABLES = dict.fromkeys(("steps", "parts", "rollouts"), "training")
TABLES |= {"server": "server", "intervals": "intervals"}
"""Table to what was measured."""


def measured(table: str) -> pd.DataFrame:
    """A table of the committed measurements, one of :data:`TABLES`."""
    checks.one_of(table, "table", TABLES)
    return pd.read_csv(FOLDER / f"{table}.csv")


def facts(subject: str) -> dict[str, str]:
    """Where the measurements of a subject in :data:`TABLES` come from, with which settings."""
    content: dict[str, str] = json.loads((FOLDER / f"{subject}.json").read_text("utf-8"))
    return content


def publish(subject: str, tables: Mapping[str, pd.DataFrame], facts: Mapping[str, str]) -> None:
    """Write all tables of a subject into the package, and what :func:`facts` is to return."""
    expected = [name for name, measured in TABLES.items() if measured == subject]
    if sorted(tables) != sorted(expected):
        raise ValueError(f"tables are {', '.join(tables)}; expected {', '.join(expected)}")
    for name, rows in tables.items():
        rows.to_csv(FOLDER / f"{name}.csv", index=False, float_format="%.6g")
    (FOLDER / f"{subject}.json").write_text(json.dumps(dict(facts), indent=1) + "\n", "utf-8")


def overhead(
    steps: pd.DataFrame,
    way: str = "corea",
    *,
    base: str = "trl",
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """By how much a step done in one way is longer than the same step done in another.

    Returns:
        Median over the pairs of its time / the other's - 1, and the 95 % interval (percentiles of
        a bootstrap of the pairs).

    Example:
        >>> pair = {"way": ["corea", "trl"] * 2, "seconds": [1.03, 1.0, 2.06, 2.0]}
        >>> steps = pd.DataFrame({"step": [1, 1, 2, 2]} | pair)
        >>> [round(value, 3) for value in overhead(steps)]
        [0.03, 0.03, 0.03]
    """
    both = steps[steps["way"].isin([way, base])]
    pairs = both.pivot(index="step", columns="way", values="seconds")
    if set(pairs) != {way, base} or pairs.isna().any(axis=None) or len(pairs) < 2:
        raise ValueError(f"expected at least two steps, each measured with {way} and with {base}")
    ratios = (pairs[way] / pairs[base] - 1).to_numpy()
    found = bootstrap(
        (ratios,),
        np.median,
        n_resamples=n_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(np.median(ratios)), float(found.low), float(found.high)


def step_parts(parts: pd.DataFrame) -> pd.DataFrame:
    """Where the time of a step goes: ``part``, ``milliseconds`` (median over steps), ``share``.

    Example:
        >>> parts = pd.DataFrame({"step": [1, 1], "part": ["a", "b"], "seconds": [0.3, 0.1]})
        >>> step_parts(parts).round(2).values.tolist()
        [['a', 300.0, 0.75], ['b', 100.0, 0.25]]
    """
    seconds = parts.groupby("part", sort=False)["seconds"].median()
    return pd.DataFrame(
        {
            "part": seconds.index,
            "milliseconds": 1000 * seconds.to_numpy(),
            "share": (seconds / seconds.sum()).to_numpy(),
        }
    )


def token_rates(rollouts: pd.DataFrame) -> pd.DataFrame:
    """Completion tokens a second of each ``way``: quartiles over steps, from ``low`` to ``high``.

    Example:
        >>> rollouts = pd.DataFrame({"way": ["x"] * 2, "tokens": [10, 30], "seconds": [1, 1]})
        >>> token_rates(rollouts).values.tolist()
        [['x', 15.0, 20.0, 25.0]]
    """
    rates = (rollouts["tokens"] / rollouts["seconds"]).groupby(rollouts["way"], sort=False)
    low, middle, high = (rates.quantile(q) for q in (0.25, 0.5, 0.75))
    return pd.DataFrame(
        {"way": middle.index, "low": low, "tokens_per_second": middle, "high": high}
    ).reset_index(drop=True)
