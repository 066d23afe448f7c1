"""How often 95 % intervals cover a known truth, ours beside the rules that were not taken.

``python benchmarks/bench_coverage.py [--publish]`` (some minutes a setting). Each *world* is a
trained-and-evaluated study: questions of beta-distributed difficulty, the same for two systems and
all seeds; training seeds that move a system's accuracy, overconfidence, sharpness and noise by as
much as in the committed full run (standard deviations of 4 points of pass@1, 0.05 of ECE and AUROC,
0.03 of the Brier score), half of it common to the two systems of a seed; confidences stated in
steps of 0.1. One answer a question.

The truth is the mean over all seeds of the value on endlessly many questions, of the ECE with the
same ten bins of equal width; with one seed, which can say nothing of others, it is that model's
value on endlessly many questions. Both are computed from 20,000 questions a model, with the
probability of being right in place of an answer, over 1,500 models. From the same models comes what
Student's t over seeds covers where questions are endless: what skewed seeds leave to be had.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import betaincinv, expit, logit
from scipy.stats import skew, t

from corea.book import coverage
from corea.metrics import intervals
from corea.metrics.measure import measure

METRICS = ("pass_at_1", "ece", "auroc", "brier")
SEEDS, QUESTIONS = (1, 3, 5, 8), (300, 1000)
N_RESAMPLES = 200
TAILS = [0.025, 0.975]


@dataclass(frozen=True)
class System:
    """Difficulty (beta's parameters), how confidence follows from ability, and seed effects."""

    a: float
    b: float
    gain: float
    shift: float
    seed_effects: tuple[float, float, float, float]  # of ability, shift, log gain, log noise


SYSTEMS = {
    "well calibrated": System(1.2, 0.8, 0.9, 0.0, (0.25, 0.2, 0.25, 0.5)),
    "overconfident": System(1.0, 1.0, 0.5, 0.9, (0.2, 0.25, 0.15, 0.5)),
}


def answer(
    system: System, effect: np.ndarray, difficulty: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of being right and stated confidence on each question of one trained model."""
    ability, shift, gain, noise = effect * system.seed_effects
    easy = np.clip(betaincinv(system.a, system.b, difficulty), 1e-4, 1 - 1e-4)
    n = len(difficulty)
    able = logit(easy) + ability + 0.5 * random.standard_normal(n)
    felt = system.gain * np.exp(gain) * able + system.shift + shift
    felt = felt + 0.9 * np.exp(noise) * random.standard_normal(n)
    return expit(able), np.round(10 * expit(felt)) / 10


def population(system: System, effect: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The metrics of one trained model on endlessly many questions, as :data:`METRICS`."""
    right, confidence = answer(system, effect, random.random(20_000), random)
    level = np.rint(10 * confidence).astype(int)
    n, correct = np.bincount(level, minlength=11), np.bincount(level, right, 11)
    wrong = n - correct
    gap = correct - n * np.arange(11) / 10
    gap[1] += gap[0]
    above = np.cumsum(wrong) - wrong / 2
    brier = np.mean(confidence**2 - 2 * confidence * right + right)
    area = correct @ above / (correct.sum() * wrong.sum())
    return np.array([100 * right.mean(), np.abs(gap[1:]).sum() / n.sum(), area, brier])


def world(
    n_seeds: int, n_questions: int, random: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Records of both systems, and the seed effects of each."""
    common = random.standard_normal((n_seeds, 4))
    difficulty = random.random(n_questions)
    parts, effects = [], {}
    for name, system in SYSTEMS.items():
        effects[name] = np.sqrt(0.5) * (common + random.standard_normal((n_seeds, 4)))
        for seed, effect in enumerate(effects[name]):
            right, confidence = answer(system, effect, difficulty, random)
            facts = {"system": name, "seed": seed, "dataset": "d", "confidence": confidence}
            facts["correct"] = random.random(n_questions) < right
            parts.append(pd.DataFrame(facts | {"question_id": np.arange(n_questions)}))
    return pd.concat(parts, ignore_index=True), effects


def other_rules(
    values: np.ndarray, random: np.random.Generator
) -> Iterator[tuple[str, float, float]]:
    """Intervals that were not taken, from values (seeds, 1 + resamples)."""
    n = len(values)
    now, resampled = values[:, 0], values[:, 1:]
    if n == 1:
        low, high = np.quantile(resampled[0], TAILS)
        yield "percentile bootstrap over questions", low, high
        return
    half = t.ppf(0.975, n - 1) * now.std(ddof=1) / np.sqrt(n)
    yield "Student's t over seeds", now.mean() - half, now.mean() + half
    drawn = random.integers(0, n, (resampled.shape[1], n))
    both = resampled[drawn, np.arange(len(drawn))[:, None]].mean(axis=1)
    low, high = np.quantile(both, TAILS)
    yield "percentile bootstrap over seeds and questions", low, high


def covered(n_seeds: int, n_questions: int, n_worlds: int, truth: pd.DataFrame) -> pd.DataFrame:
    """Share of worlds whose interval covers, by system, metric and rule."""
    random = np.random.default_rng([n_seeds, n_questions])
    pair = tuple(SYSTEMS)
    found = []
    for number in range(n_worlds):
        records, effects = world(n_seeds, n_questions, random)
        true = truth
        if n_seeds == 1:
            true = pd.DataFrame(
                {name: population(SYSTEMS[name], effects[name][0], random) for name in SYSTEMS},
                index=METRICS,
            )
        true = true.assign(difference=true[pair[0]] - true[pair[1]])
        measured = measure(records, groups={"d": ["d"]}, n_resamples=N_RESAMPLES, seed=number)
        measured = measured[measured["metric"].isin(METRICS)]
        gap = intervals.differences(measured, [pair]).assign(system="difference")
        taken = pd.concat([intervals.summarize(measured), gap]).to_dict("records")
        ends = [(row["system"], row["metric"], "ours", row["low"], row["high"]) for row in taken]
        for metric, rows in measured.groupby("metric", sort=False):
            values = {
                name: part["value"].to_numpy().reshape(n_seeds, 1 + N_RESAMPLES)
                for name, part in rows.groupby("system", sort=False)
            }
            values["difference"] = values[pair[0]] - values[pair[1]]
            for name, by_seed in values.items():
                ends += [(name, metric, *rule) for rule in other_rules(by_seed, random)]
        found += [
            (name, metric, rule, low <= true.loc[metric, name] <= high, high - low)
            for name, metric, rule, low, high in ends
        ]
    table = pd.DataFrame(found, columns=["system", "metric", "rule", "covered", "width"])
    table = table.groupby(["system", "metric", "rule"], sort=False).mean().reset_index()
    table.insert(0, "n_questions", n_questions)
    table.insert(0, "n_seeds", n_seeds)
    return table.assign(n_worlds=n_worlds)


def covered_by_seeds(models: np.ndarray, n_seeds: int) -> np.ndarray:
    """Share of Student's t intervals over seeds that cover, of each metric, without questions."""
    drawn = models[np.random.default_rng(n_seeds).integers(0, len(models), (20_000, n_seeds))]
    half = t.ppf(0.975, n_seeds - 1) * drawn.std(axis=1, ddof=1) / np.sqrt(n_seeds)
    return np.asarray((np.abs(drawn.mean(axis=1) - models.mean(axis=0)) <= half).mean(axis=0))


def main() -> None:
    """Print the coverage of every setting, and publish it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--publish", action="store_true", help="write corea/data/coverage/")
    given = parser.parse_args()
    start = time.perf_counter()
    random = np.random.default_rng(0)
    models = {
        name: np.array(
            [population(system, effect, random) for effect in random.standard_normal((1500, 4))]
        )
        for name, system in SYSTEMS.items()
    }
    facts = {
        "truth": lambda of: of.mean(axis=0),
        "deviation": lambda of: of.std(axis=0),
        "skewness": skew,
        **{f"covered by {n} seeds": partial(covered_by_seeds, n_seeds=n) for n in SEEDS[1:]},
    }
    of_models = pd.concat(
        {
            what: pd.DataFrame({name: fact(of) for name, of in models.items()}, index=METRICS)
            for what, fact in facts.items()
        },
        names=["what", "metric"],
    )
    truth = of_models.loc["truth"]
    print(of_models.round(4), flush=True)
    settings = [(s, n) for s in SEEDS for n in QUESTIONS]
    with ProcessPoolExecutor(given.processes) as pool:
        parts = pool.map(
            covered,
            *zip(*settings, strict=True),
            [given.worlds] * len(settings),
            [truth] * len(settings),
        )
        tables = []
        for part in parts:
            tables.append(part)
            wide = part[part["rule"] == "ours"].pivot(
                index="system", columns="metric", values="covered"
            )
            print(part.iloc[0, :2].to_list(), f"{time.perf_counter() - start:.0f} s")
            print(wide.round(3), flush=True)
    table = pd.concat(tables, ignore_index=True)
    print(table.pivot_table(index=["n_seeds", "rule"], columns="metric", values="covered").round(3))
    if given.publish:
        coverage.publish(table, of_models.reset_index())


if __name__ == "__main__":
    main()
