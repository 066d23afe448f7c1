r"""Time of `verify_batch` beside math-verify in a loop, on 1,024 questions x 8 completions.

The questions are MATH-500's and OlympiadBench's, seeded; the duplication is that of a real
group. A question's rate of right answers is drawn from a Beta distribution with mean 0.6 and
intraclass correlation 0.7, which is what the five 7B systems in ../shared/data/records show
on MATH-500 (0.72): most groups are all right or all wrong. Right answers are the gold without
its dollar signs, 1 in 20 spelled otherwise. Wrong ones are drawn with weights 4, 2, 1, 1 from
a question's own four: the gold with a digit changed (two of these), a small integer, another
question's gold.

Serial math-verify is timed in two orders, since its own caches hold 20 texts: a question's
completions one after another, as a sampler returns them, which lets it keep what it parsed;
and in eight passes over the questions. `verify_batch` sorts, so the order is nothing to it.

Needs the question sets in ../shared/data beside the repository.
"""

import json
import random
import re
import statistics
import time
from pathlib import Path

import math_verify

from corea.tasks import verify
from corea.tasks.verify import verify_batch

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def read_golds() -> list[str]:
    """The gold answers of both sets, several answers to one question joined by commas."""
    golds = []
    for name in ("math500", "olympiadbench"):
        for line in (DATA / name / "test.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            golds.append(row.get("answer") or ", ".join(row["final_answer"]))
    return golds


def respell(gold: str) -> str:
    """The same answer as another completion may write it."""
    spelled = gold.replace("$", "").replace(r"\frac", r"\dfrac")
    return spelled if spelled != gold else rf"{gold}."


def misplace(gold: str, rng: random.Random) -> str:
    """The gold with one digit changed, or one added where there is none."""
    digits = [m.start() for m in re.finditer(r"\d", gold)]
    if not digits:
        return f"{gold}+1"
    i = rng.choice(digits)
    return gold[:i] + str((int(gold[i]) + rng.randint(1, 9)) % 10) + gold[i + 1 :]


def draw_groups(questions: int, group_size: int, seed: int) -> list[tuple[str, str]]:
    """(answer, gold), a question's completions one after another."""
    rng = random.Random(seed)
    everything = read_golds()
    mean, correlation = 0.6, 0.7
    concentration = 1 / correlation - 1
    pairs = []
    for gold in rng.sample(everything, questions):
        wrong = [misplace(gold, rng), misplace(gold, rng), str(rng.randint(0, 20))]
        wrong.append(rng.choice(everything))
        rng.shuffle(wrong)
        pass_rate = rng.betavariate(mean * concentration, (1 - mean) * concentration)
        for _ in range(group_size):
            if rng.random() < pass_rate:
                answer = gold.replace("$", "") if rng.random() < 0.95 else respell(gold)
            else:
                answer = rng.choices(wrong, weights=(4, 2, 1, 1))[0]
            pairs.append((answer, gold))
    return pairs


def verify_serially(pairs: list[tuple[str, str]]) -> list[bool | None]:
    def parse(text: str) -> list[object]:
        return math_verify.parse(r"\boxed{" + text + "}")

    return [math_verify.verify(parse(gold), parse(answer)) for answer, gold in pairs]


def main(questions: int = 1024, group_size: int = 8, workers: int = 2, runs: int = 3) -> None:
    groups = draw_groups(questions, group_size, seed=0)
    passes = [
        groups[i] for start in range(group_size) for i in range(start, len(groups), group_size)
    ]

    def verify_together(pairs: list[tuple[str, str]]) -> list[bool | None]:
        return verify_batch(*zip(*pairs, strict=True), "math", workers=workers)

    start = time.perf_counter()
    verify_together([(r"\frac{1}{2}", "0.5")])
    start_up = time.perf_counter() - start
    verify_serially(groups[::8])  # its parser, too, has built its tables before it is timed

    ways = {
        "math-verify, by question": (verify_serially, groups),
        "math-verify, in passes": (verify_serially, passes),
        "verify_batch": (verify_together, groups),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    verdicts = {}
    for _ in range(runs):
        for name, (check, pairs) in ways.items():
            start = time.perf_counter()
            verdicts[name] = dict(zip(pairs, check(pairs), strict=True))
            seconds[name].append(time.perf_counter() - start)

    ours = verdicts["verify_batch"]
    at_sight = sum(bool(verify._at_sight(*pair)) for pair in ours)
    print(f"completions {len(groups):,}, right {sum(ours[pair] is True for pair in groups):,}")
    print(f"different pairs {len(ours):,}, of them settled at sight {at_sight:,}")
    print(f"not decided {sum(ours[pair] is None for pair in groups)}")
    for name in list(ways)[:2]:
        differ = sum(ours[pair] != verdict for pair, verdict in verdicts[name].items())
        print(f"verdicts that differ from {name}: {differ}")
    print(f"start of verify_batch, once a process: {start_up:.1f} s; {workers} workers\n")
    print(f"{'':26}{'median s':>9}{'best s':>8}{'ratio':>7}{'best':>6}   ({runs} alternating runs)")
    for name, measured in seconds.items():
        ratios = [a / b for a, b in zip(measured, seconds["verify_batch"], strict=True)]
        best = min(measured) / min(seconds["verify_batch"])
        row = f"{statistics.median(measured):9.2f}{min(measured):8.2f}"
        print(f"{name:26}{row}{statistics.median(ratios):7.1f}{best:6.1f}")


if __name__ == "__main__":
    main()
