r"""Questions that a package generates, reasoning-gym (Stojanovski et al., 2025): no file, no hub.

They are for real models on a machine without a network: made so easy that a model of 135 M weights
is right in a part of them after it has seen how they are answered. Questions are those of one seed
in their order, of which each text counts once. The first are the test questions, the next those
for the choice of a checkpoint, all others are for training; so the parts share no text.

Decisions are made of the same questions (choice of ours). Either the right answer stands among four
wrong ones, which are drawn near it, in an order that is drawn; or one answer is given, half of
the time a wrong one near the right one, and it is to be said whether it is right.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from corea.tasks.decision_questions import LETTERS, DecisionQuestion
from corea.tasks.papers import TaskError
from corea.tasks.questions import Question

SEED = 0
"""Of all questions; the parts are stretches of their order."""

SIZES: Mapping[str, int] = MappingProxyType({"test": 1000, "validation": 500, "train": 4000})
"""Questions of each part, in the order in which they are taken; fewer where asked for fewer."""

_MOST = 100_000  # questions made before a task counts as having no more


@dataclass(frozen=True)
class Task:
    """A task of reasoning-gym, and how hard its questions are made."""

    name: str
    settings: Mapping[str, int]


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "sums": Task("chain_sum", {"min_terms": 2, "max_terms": 4, "max_digits": 2}),
        "long_sums": Task("chain_sum", {"min_terms": 5, "max_terms": 6, "max_digits": 1}),
        "products": Task("products", {"min_terms": 2, "max_terms": 2, "max_digits": 2}),
    }
)
"""Datasets of questions answered in words."""

CHOICES: Mapping[str, str] = MappingProxyType(
    {"sum_choices": "sums", "product_choices": "products"}
)
"""Datasets of decisions between five answers, and the questions that they are made of."""

CHECKS: Mapping[str, str] = MappingProxyType({"sum_checks": "sums", "product_checks": "products"})
"""Datasets of decisions whether an answer is right, likewise."""


def load_questions(dataset: str, part: str, n: int = 0) -> list[Question]:
    """Questions of a part of one of :data:`TASKS`; with n = 0 all of them.

    ``level`` is the number of terms, and ``solution`` of a sum the terms added one by one.

    Raises:
        TaskError: If there is no such dataset or part, n is more than it has, or reasoning-gym is
            not installed.
    """
    return [
        Question(
            dataset,
            str(number),
            made["question"],
            str(made["answer"]),
            "math",
            level=float(made["metadata"]["num_terms"]),
            solution=_added(made["metadata"]["expression"]) if "sums" in dataset else "",
        )
        for number, made in _part(dataset, part, n)
    ]


def load_decisions(dataset: str, part: str, n: int = 0) -> list[DecisionQuestion]:
    """Decisions of a part of one of :data:`CHOICES` or :data:`CHECKS`.

    Raises:
        TaskError: As :func:`load_questions` does.
    """
    made_of = {**CHOICES, **CHECKS}
    _one_of("dataset", dataset, made_of)
    decide = _choice if dataset in CHOICES else _check
    decisions = []
    for number, made in _part(made_of[dataset], part, n):
        text, gold, options = decide(
            made["question"], int(made["answer"]), np.random.default_rng([SEED, number])
        )
        level = float(made["metadata"]["num_terms"])
        decisions.append(DecisionQuestion(dataset, str(number), text, gold, options, level=level))
    return decisions


def _choice(text: str, right: int, rng: np.random.Generator) -> tuple[str, str, tuple[str, ...]]:
    """A question, the letter of the right answer, and five answers."""
    lowest = right - int(rng.integers(21))  # else the right one would be in the middle
    near = np.setdiff1d(np.arange(lowest, lowest + 21), [right])
    options = rng.permutation([right, *rng.choice(near, len(LETTERS) - 1, replace=False)])
    return text, LETTERS[options.tolist().index(right)], tuple(map(str, options.tolist()))


def _check(text: str, right: int, rng: np.random.Generator) -> tuple[str, str, tuple[str, ...]]:
    """A question with an answer, the letter of whether that is right, and the two options."""
    is_right = bool(rng.integers(2))
    off = int(rng.integers(1, 11)) * int(rng.choice([-1, 1]))
    given = right if is_right else right + off
    return f"{text}\nSomebody answers {given}. Is that right?", LETTERS[not is_right], ("yes", "no")


def _part(dataset: str, part: str, n: int) -> list[tuple[int, dict[str, Any]]]:
    """What reasoning-gym made, with its number."""
    _one_of("dataset", dataset, TASKS)
    _one_of("part", part, SIZES)
    size = SIZES[part]
    if n > size:
        raise TaskError(f"{dataset}: {n:,} questions for {part} are asked for; it has {size:,}")
    before = sum(SIZES[name] for name in itertools.takewhile(lambda name: name != part, SIZES))
    found = list(itertools.islice(_different(TASKS[dataset]), before, before + (n or size)))
    if len(found) < (n or size):
        raise TaskError(
            f"{dataset}: {len(found):,} different questions for {part} after {_MOST:,}; expected "
            f"{n or size:,}"
        )
    return found


def _different(task: Task) -> Iterator[tuple[int, dict[str, Any]]]:
    """Questions in their order, without those whose text came before."""
    try:
        with warnings.catch_warnings():  # of code that it needs, when Python first compiles it
            warnings.simplefilter("ignore", SyntaxWarning)
            import reasoning_gym
    except ImportError as error:
        raise TaskError(
            "reasoning-gym, which makes these questions, is not installed: "
            "pip install 'corea[desk]'"
        ) from error
    made = reasoning_gym.create_dataset(
        task.name, size=_MOST, seed=SEED, min_digits=1, **task.settings
    )
    seen: set[str] = set()
    for number in range(_MOST):
        item = made[number]
        if item["question"] not in seen:
            seen.add(item["question"])
            yield number, item


def _added(expression: str) -> str:
    """A sum worked out term by term.

    Example:
        >>> print(_added("4 - 1 + 7"))
        4 - 1 = 3
        3 + 7 = 10
    """
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {result}")
        total = result
    return "\n".join(lines)


def _one_of(what: str, value: str, known: Mapping[str, object]) -> None:
    if value not in known:
        raise TaskError(f"{what} is {value!r}; expected one of {', '.join(known)}")
