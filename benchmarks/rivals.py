"""Other people's rules for a threshold, on splits that bench_certified.py wrote.

``python benchmarks/rivals.py splits.npz found.npz``, run by ``bench_certified.py`` with the python
of an environment that has ``requirements-rivals.txt`` and need not have corea.

ucci-router (an isotonic map from uncertainty to the probability of an error, then the cheapest
threshold that meets an accuracy) is used as its documentation has it: the map is fitted on 60 % of
the calibration questions and the threshold chosen on 40 %, its 30 to 20; uncertainty is 1 minus
the confidence, and 1 where that is missing; the target is the large model's accuracy on the
questions that choose it, minus epsilon. It promises nothing about other questions.

bargain (BARGAIN_A) answers a batch so that with probability 1 - delta at least 1 - epsilon of the
answers are those of the large model, which it asks as seldom as it can. It speaks of that batch
and of the large model's answers, not of what is correct; thresholds and M are its defaults.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from BARGAIN import BARGAIN_A, Oracle, Proxy
from ucci import UCCIRouter
from ucci.policy import InfeasibleTargetError


class Small(Proxy):
    """The small model: its answer to question i is called 1."""

    def __init__(self, confidence: np.ndarray) -> None:
        """Take what it states of each question."""
        super().__init__(verbose=False, max_workers=1)
        self.confidence = confidence

    def proxy_func(self, record: str) -> tuple[int, float]:
        """Answer and score of a question."""
        return 1, float(self.confidence[int(record)])


class Large(Oracle):
    """The large model: the answer is 1 where it is the small model's, else 0."""

    def __init__(self, differ: np.ndarray) -> None:
        """Take which of its answers differ from the small model's."""
        super().__init__(verbose=False, max_workers=1)
        self.differ = differ

    def oracle_func(self, record: str, proxy_output: int) -> tuple[bool, int]:
        """Whether the small model's answer is the same, and the answer."""
        same = not self.differ[int(record)]
        return same, int(same)


def bargain(confidence: np.ndarray, differ: np.ndarray, epsilon: float, delta: float, seed: int):
    """Which questions of a batch the large model was asked."""
    method = BARGAIN_A(
        Small(confidence), Large(differ), target=1 - epsilon, delta=delta, verbose=False, seed=seed
    )
    records = [str(i) for i in range(len(confidence))]
    _, asked = method.process(records, return_oracle_usage=True)
    return np.array(asked, dtype=bool)


def ucci(
    confidence: np.ndarray, small: np.ndarray, large: np.ndarray, epsilon: float, levels: np.ndarray
) -> float:
    """The lowest of the levels at which the small model's answer is kept; missing if none is."""
    uncertain = 1 - np.where(np.isnan(confidence), 0.0, confidence)
    first = round(0.6 * len(confidence))  # questions come in random order
    router = UCCIRouter(cost_model="sequential")
    router.calibrate(uncertain[:first], 1.0 - small[:first])
    target = large[first:].mean() - epsilon
    try:
        router.choose_threshold(uncertain[first:], small[first:], large[first:], tau=target)
    except InfeasibleTargetError:
        return float("nan")
    kept = ~np.asarray(router.escalate(1 - levels))
    return float(levels[kept].min()) if kept.any() else float("nan")


def main(given: str, found: str) -> None:
    with np.load(given) as file:
        all_ = {name: file[name] for name in file.files}
    confidence, drawn = all_["confidence"], all_["drawn"]
    small, large = all_["small"].astype(float), all_["large"].astype(float)
    levels = np.unique(confidence[~np.isnan(confidence)])
    epsilon, delta = float(all_["epsilon"]), float(all_["delta"])
    result = {
        "ucci-router": np.array(
            [ucci(confidence[r], small[r], large[r], epsilon, levels) for r in drawn]
        )
    }
    if "differ" in all_:
        score, differ = np.nan_to_num(confidence, nan=0.0), all_["differ"]
        batches = enumerate(drawn[: int(all_["batches"])])
        result["bargain"] = np.array(
            [bargain(score[r], differ[r], epsilon, delta, seed) for seed, r in batches]
        )
    with Path(found).open("wb") as file:
        np.savez_compressed(file, **result)


if __name__ == "__main__":
    main(*sys.argv[1:])
