"""Rules for a threshold put to the test: how often each breaks its promise, and what it costs.

A *world* is a table of questions that both models answered, taken as all questions there are.
Calibration questions are drawn from it with replacement, so what a threshold does to questions to
come is known exactly: its mean over the table. (Halves of a file would not do: what a threshold
does on the other half is itself known to a few points only, and the halves depend on each other.)

``benchmarks/bench_certified.py --publish`` writes what :func:`measured` reads:

- ``rules``: a row a ``world, n, epsilon, rule``: of so many ``splits`` how many promises were
  ``broken`` (more accuracy lost than epsilon) and ``own_broken`` (of another kind, where the rule
  promises something else), in how many ``refused`` the large model answers alone, the mean
  ``cost`` over that of the cheapest threshold that keeps the promise in the world, ``own_cost``
  over that of the cheapest that keeps the rule's own, ``deferred``, and ``labels`` asked for; of
  that cheapest threshold ``best_cost``, a share of the large model's, ``best_loss`` and
  ``best_deviation``, the standard deviation of the loss of one question
- ``batch``: a row a ``world, n, epsilon, rule``: a batch of n questions is answered so that few
  answers differ from the large model's; ``asked`` is the share that the large model was asked
- ``alarm``: a row a ``world, to, share``: with this share of questions from another world, the
  mean ``loss``, ``broken`` promises, and ``fired`` alarms of so many ``runs``, in the median after
  ``median`` audited questions (missing where fewer than half fired)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea import adapters
from corea.book.real_records import Agreed, agreement_pair, choose_threshold
from corea.confidence import agreement
from corea.metrics.cascade import COLUMNS, DEFER_ALL, defers, priced_pair
from corea.records import select
from corea.thresholds.certify import (
    Kind,
    Promise,
    answers_differ,
    calibration_questions,
    find_threshold,
)
from corea.thresholds.sequential import DriftAlarm, certify_by_labels

Floats = NDArray[np.float64]

FOLDER = Path(__file__).parents[1] / "data" / "certified"
TABLES = ("rules", "batch", "alarm")
DELTA = 0.05
SIZE_RATIO = 10.0  # of prices, where nobody published tokens: the large model is so much dearer
_ROUNDING = 1e-9


def measured(table: str) -> pd.DataFrame:
    """A committed table, one of :data:`TABLES`."""
    return pd.read_csv(FOLDER / f"{table}.csv")


def facts() -> dict[str, str]:
    """How the committed tables were made: splits, versions, seed."""
    found: dict[str, str] = json.loads((FOLDER / "provenance.json").read_text("utf-8"))
    return found


def publish(tables: Mapping[str, pd.DataFrame], provenance: Mapping[str, str]) -> None:
    """Write tables and how they were made into the package."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(FOLDER / f"{name}.csv", index=False, float_format="%.4g")
    text = json.dumps(dict(provenance), indent=1)
    (FOLDER / "provenance.json").write_text(text + "\n", encoding="utf-8")


def margin(deviation: ArrayLike, n: ArrayLike, power: float = 0.9) -> Floats:
    r"""How far below the promise a loss must lie to be certified with a probability.

    .. math:: (z_{1-\delta} + z_{power})\, \sigma / \sqrt n

    as any test of a mean has it where n is large; :math:`\sigma` is the deviation of one question.

    Example:
        >>> round(float(margin(0.2, 2000)), 4)
        0.0131
    """
    from scipy.stats import norm

    z = norm.ppf(1 - DELTA) + norm.ppf(power)
    return np.asarray(z * np.asarray(deviation, float) / np.sqrt(np.asarray(n, float)))


# --- worlds -----------------------------------------------------------------------------------


class World:
    """All questions there are, and what any threshold does to them.

    Args:
        questions: The columns of a deferral curve, and ``differ`` where answers are known.
    """

    def __init__(self, questions: pd.DataFrame) -> None:
        """Keep these columns, and sums over the questions by falling confidence."""
        names = [*COLUMNS, *(["differ"] if "differ" in questions else [])]
        self.questions = questions[names].astype(float).reset_index(drop=True)
        known = self.questions["confidence"].fillna(-1).to_numpy()
        order = np.argsort(-known, kind="stable")
        q = self.questions.iloc[order]
        kept = {
            "loss": q["large_correct"] - q["small_correct"],
            "apart": (q["large_correct"] - q["small_correct"]).abs(),
            "differ": q["differ"] if "differ" in q else q["confidence"] * np.nan,
            "saved": q["large_cost"],
            "kept": pd.Series(1.0, q.index),
        }
        self._falling = -known[order]
        self._sums = {name: np.append(0, np.cumsum(of)) for name, of in kept.items()}

    def judge(self, thresholds: ArrayLike) -> pd.DataFrame:
        """Mean ``loss, differ, cost`` and ``deferred`` at each threshold, over all questions.

        ``apart`` is the share of questions that are kept and that one model alone gets right.
        A missing threshold is the large model alone, which costs no small answer; so is one above
        every confidence.
        """
        at = np.atleast_1d(np.asarray(thresholds, dtype=float))
        at = np.where(np.isnan(at), DEFER_ALL, at)
        counts = np.searchsorted(self._falling, -at, side="right")
        n = len(self.questions)
        found = pd.DataFrame({name: values[counts] / n for name, values in self._sums.items()})
        small, large = self.questions["small_cost"].mean(), self.questions["large_cost"].mean()
        alone = (at >= DEFER_ALL).astype(float)
        found["cost"] = large - found.pop("saved") + small * (1 - alone)
        return found.assign(deferred=1 - found.pop("kept"))

    def cheapest(self, epsilon: float, promise: str = "loss") -> dict[str, float]:
        """What the cheapest threshold does that keeps the promise here; nobody can know it."""
        levels = np.append(self.questions["confidence"].dropna().unique(), DEFER_ALL)
        found = self.judge(levels)
        best = found[found[promise] <= epsilon + _ROUNDING].nsmallest(1, "cost").iloc[0]
        return {str(name): float(value) for name, value in best.items()}

    def drawn(self, n: int, splits: int, seed: int | list[int]) -> NDArray[np.int64]:
        """Places of the calibration questions of each split, with replacement: (splits, n)."""
        return np.random.default_rng(seed).integers(0, len(self.questions), (splits, n))


def _zeroeval(dataset: str, small: str, large: str, *others: str) -> World:
    known = adapters.zeroeval_models()["billions"].dropna()
    billions = {str(name): float(size) for name, size in known.items()}
    records = adapters.zeroeval(systems=[small, large, *others]).table
    paired = agreement_pair(records, Agreed(dataset, small, large, others), billions)
    return World(paired.assign(differ=answers_differ(records, paired, small, large)))


def _mmlu_pro() -> World:
    billions = {
        "Meta-Llama-3_1-8B-Instruct": 8.0, "mathstral-7B": 7.0, "Phi-3-mini-4k-instruct": 3.8,
    }  # fmt: skip
    large = "Meta-Llama-3_1-70B-Instruct"
    records = adapters.mmlu_pro(systems=[*billions, large]).table
    both = pd.concat([agreement(records, list(billions), name="vote"), records])
    ratio = 70 / sum(billions.values())
    return World(calibration_questions(both, "vote", large, size_ratio=ratio)[0])


def _stated(table: pd.DataFrame, small: str, large: str) -> World:
    return World(calibration_questions(table, small, large, size_ratio=SIZE_RATIO)[0])


def rlcr(dataset: str, small: str) -> World:
    """A system of RLCR's records before the one that is called RLCR; all have 7B parameters."""
    return _stated(select(adapters.rlcr().table, dataset=dataset), small, "RLCR")


def _routellm() -> World:
    """MMLU; the confidence is the small model's record in the subject, from every other question.

    No confidence is published. What one may know beforehand is how often the small model was right
    in a subject: half of the questions tell, the other half are the world.
    """
    table = select(adapters.routellm().table, dataset="mmlu")
    paired, _ = priced_pair(table, "mixtral-8x7b", "gpt-4-1106", size_ratio=SIZE_RATIO)
    subject = paired["question_id"].str.rsplit("/", n=1).str[0]
    history = paired.groupby(subject).cumcount() % 2 == 0
    right = paired[history].groupby(subject)["small_correct"].mean()
    return World(paired.assign(confidence=subject.map(right))[~history].reset_index(drop=True))


def _drawn(overconfident: float = 0.0, n: int = 50_000) -> World:
    rng = np.random.default_rng(0)
    confidence = rng.beta(3, 2, n).round(2)
    small = rng.random(n) < confidence - overconfident
    large = rng.random(n) < 0.75 + 0.2 * confidence
    table = pd.DataFrame({"confidence": confidence, "small_correct": small, "large_correct": large})
    return World(_unpriced(table))


def _edge() -> World:
    """Three confidences; to keep the first loses 2.05 points, to keep the second as well 5.05.

    So a rule that takes what looks good enough is wrong about as often as right.
    """
    parts = []
    for level, n, losses in ((0.9, 8000, 510), (0.6, 6000, 700), (0.3, 6000, 1500)):
        place = np.arange(n)
        part = pd.DataFrame({"small_correct": place >= losses, "large_correct": place < n - 100})
        parts.append(part.assign(confidence=level))
    return World(_unpriced(pd.concat(parts, ignore_index=True)))


def _unpriced(table: pd.DataFrame) -> pd.DataFrame:
    """Answers differ where one is right; a large one is so much dearer."""
    differ = table["small_correct"] != table["large_correct"]
    return table.assign(differ=differ, small_cost=1.0, large_cost=SIZE_RATIO)


_ASKED = ("gemma-2-9b-it", "Phi-3.5-mini-instruct")
_LLAMA, _QWEN = "Meta-Llama-3.1-8B-Instruct", "Qwen2-7B-Instruct"
_LLAMAS = (_LLAMA, "Llama-3.1-405B-Inst@sambanova", _QWEN, *_ASKED)
_QWENS = (_QWEN, "Qwen2-72B-Instruct", _LLAMA, *_ASKED)
_OPUS = "Claude Opus 4.7"

WORLDS: dict[str, Callable[[], World]] = {
    "GSM8K, Llama 8B, 405B": lambda: _zeroeval("gsm8k", *_LLAMAS),
    "GSM8K, Qwen2 7B, 72B": lambda: _zeroeval("gsm8k", *_QWENS),
    "MATH, Llama 8B, 405B": lambda: _zeroeval("math_level5", *_LLAMAS),
    "MMLU-Pro, three voters, 70B": _mmlu_pro,
    "MMLU, Mixtral by subject, GPT-4": _routellm,
    "CommonsenseQA, Base, RLCR": lambda: rlcr("commonsenseqa", "Base"),
    "MATH-500, Answer-Prob, RLCR": lambda: rlcr("math-500", "Answer-Prob"),
    "HALLMARK, Sonnet 4.6, Opus 4.7": lambda: _stated(
        adapters.hallmark().table, "Claude Sonnet 4.6", _OPUS
    ),
    "HALLMARK, GPT-5.4, Opus 4.7": lambda: _stated(adapters.hallmark().table, "GPT-5.4", _OPUS),
    "drawn, calibrated": _drawn,
    "drawn, overconfident": lambda: _drawn(0.15),
    "drawn, on the edge": _edge,
}
"""Name to world: the questions, who answers first, who is behind."""


# --- rules ------------------------------------------------------------------------------------


def _certified(kind: Kind) -> Callable[[pd.DataFrame, float], float | None]:
    return lambda paired, epsilon: find_threshold(paired, Promise(kind, epsilon, DELTA))


def _papers(paired: pd.DataFrame, _: float) -> float:
    return choose_threshold(paired)


RULES: dict[str, Callable[[pd.DataFrame, float], float | None]] = {
    "certified": _certified("within"),
    "certified, no labels": _certified("disagreement"),
    "cheapest on calibration": choose_threshold,
    "the paper's": _papers,
}
"""Name to rule: from calibration questions and epsilon to a threshold, None if it has none."""
NO_LABELS = "certified, no labels"
BY_LABELS = "certified, few labels"


def worth_it(paired: pd.DataFrame, threshold: float | None) -> float:
    """The threshold, missing where the large model alone is no dearer on these questions."""
    if threshold is None or np.isnan(threshold):
        return np.nan
    small, large = (paired[f"{side}_cost"].to_numpy(dtype=float) for side in ("small", "large"))
    kept = ~defers(paired["confidence"], threshold)
    return float(threshold) if small.sum() < large[kept].sum() else np.nan


def few_labels(paired: pd.DataFrame, epsilon: float, seed: int) -> tuple[float | None, int]:
    """Threshold and number of labels of :func:`certify_by_labels`."""
    right = paired[["small_correct", "large_correct"]].to_numpy(dtype=bool)
    found = certify_by_labels(
        paired["confidence"].to_numpy(), paired["differ"].to_numpy(dtype=bool),
        lambda i: (bool(right[i, 0]), bool(right[i, 1])),
        within=epsilon, delta=DELTA, seed=seed,
    )  # fmt: skip
    return found.threshold, found.labels


def simulate(
    world: World,
    drawn: NDArray[np.int64],
    epsilon: float,
    *,
    label_splits: int,
    others: Mapping[str, Floats] | None = None,
) -> pd.DataFrame:
    """All rules on the same splits: rows of the table ``rules``.

    Args:
        world: The questions; rules that need to know which answers differ are left out where the
            world does not.
        drawn: Calibration questions, from :meth:`World.drawn`.
        epsilon: Accuracy that may be lost.
        label_splits: How many of the splits :func:`few_labels` is tried on; it is slow.
        others: Thresholds of other rules by name, one for each of the first splits.
    """
    known = "differ" in world.questions
    found: dict[str, list[float]] = {r: [] for r in RULES if known or r != NO_LABELS}
    found |= {name: [] for name in others or {}} | ({BY_LABELS: []} if known else {})
    labels = []
    for split, rows in enumerate(drawn):
        paired = world.questions.iloc[rows]
        for name, taken in found.items():
            if name in RULES:
                taken.append(worth_it(paired, RULES[name](paired, epsilon)))
            elif name == BY_LABELS and split < label_splits:
                threshold, asked = few_labels(paired, epsilon, split)
                labels.append(asked)
                taken.append(worth_it(paired, threshold))
            elif others and name in others and split < len(others[name]):
                taken.append(worth_it(paired, others[name][split]))
    base = {"n": drawn.shape[1], "epsilon": epsilon}
    return pd.DataFrame(
        base | {"rule": name} | _summary(world, taken, epsilon, own=name == NO_LABELS)
        | {"labels": np.mean(labels) if name == BY_LABELS else np.nan}
        for name, taken in found.items()
    )  # fmt: skip


def _summary(
    world: World, thresholds: list[float], epsilon: float, *, own: bool
) -> dict[str, float]:
    found = world.judge(thresholds)
    promise = "differ" if own else "loss"
    best, of_own = world.cheapest(epsilon), world.cheapest(epsilon, promise)
    return {
        "splits": len(found),
        "broken": int((found["loss"] > epsilon + _ROUNDING).sum()),
        "own_broken": int((found[promise] > epsilon + _ROUNDING).sum()),
        "refused": int(np.isnan(thresholds).sum()),
        "cost": found["cost"].mean() / best["cost"],
        "own_cost": found["cost"].mean() / of_own["cost"],
        "deferred": found["deferred"].mean(),
        "best_cost": best["cost"] / world.questions["large_cost"].mean(),
        "best_loss": best["loss"],
        "best_deviation": np.sqrt(best["apart"] - best["loss"] ** 2),
    }


# --- a batch of questions, as BARGAIN has it ------------------------------------------------------


def ask_in_batch(paired: pd.DataFrame, epsilon: float) -> NDArray[np.bool_]:
    """Which questions of a batch the large model is asked, so that few answers differ from its.

    It answers the first quarter, which certifies a threshold without labels, and what is deferred
    there of the rest.
    """
    first = np.arange(len(paired)) < len(paired) // 4
    found = find_threshold(paired[first], Promise("disagreement", epsilon, DELTA))
    threshold = DEFER_ALL if found is None else found
    asked: NDArray[np.bool_] = first | defers(paired["confidence"], threshold)
    return asked


def batches(
    world: World,
    drawn: NDArray[np.int64],
    epsilon: float,
    others: Mapping[str, NDArray[np.bool_]] | None = None,
) -> pd.DataFrame:
    """Rows of the table ``batch``: each split is a batch; ``others`` say which they asked."""
    differ = world.questions["differ"].to_numpy(dtype=bool)[drawn]
    asked = {
        "certified on a quarter": np.array(
            [ask_in_batch(world.questions.iloc[rows], epsilon) for rows in drawn]
        )
    } | dict(others or {})
    return pd.DataFrame(
        {"n": drawn.shape[1], "epsilon": epsilon, "rule": name, "splits": len(drawn),
         "broken": int(((differ & ~of).mean(axis=1) > epsilon + _ROUNDING).sum()),
         "asked": of.mean()}
        for name, of in asked.items()
    )  # fmt: skip


# --- what breaks the promise ------------------------------------------------------------------


def alarms(
    world: World,
    to: World,
    share: float,
    epsilon: float,
    *,
    n: int,
    runs: int,
    most: int,
    seed: int = 0,
) -> dict[str, float]:
    """A row of the table ``alarm``: certified in one world, used where a share is from another.

    Each run draws n calibration questions, certifies a threshold and audits up to ``most``
    questions of the mix, one after the other. Runs without a threshold keep no question.
    """
    rng = np.random.default_rng([seed, round(1000 * share)])
    losses, fired = [], []
    for rows in world.drawn(n, runs, [seed, n]):
        threshold = find_threshold(world.questions.iloc[rows], Promise("within", epsilon, DELTA))
        threshold = DEFER_ALL if threshold is None else threshold
        by_world = [_losses(one, threshold) for one in (world, to)]
        losses.append((1 - share) * by_world[0].mean() + share * by_world[1].mean())
        foreign = rng.random(most) < share
        home, away = (rng.choice(of, most) for of in by_world)
        alarm = DriftAlarm(epsilon, DELTA)
        any(alarm.update(loss) for loss in np.where(foreign, away, home))
        fired.append(np.inf if alarm.fired_at is None else alarm.fired_at)
    median = float(np.median(fired))
    return {
        "share": share, "n": n, "epsilon": epsilon, "runs": runs, "loss": float(np.mean(losses)),
        "broken": int((np.array(losses) > epsilon + _ROUNDING).sum()),
        "fired": int(np.isfinite(fired).sum()), "most": most,
        "median": median if np.isfinite(median) else np.nan,
    }  # fmt: skip


def _losses(world: World, threshold: float) -> Floats:
    q = world.questions
    gap = q["large_correct"].to_numpy(dtype=float) - q["small_correct"].to_numpy(dtype=float)
    lost: Floats = gap * ~defers(q["confidence"], threshold)
    return lost
