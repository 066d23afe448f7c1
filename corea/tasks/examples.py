"""Solved examples before a question, an alternative to a warm-up for a model as it is.

Paper A shows none. They stand in the message of the question and show the form of an answer and
nothing else: the right answer without its reasoning, which the datasets do not all have, and a
confidence drawn at random. So a model that follows them answers at once, too. Each begins with
``Question:``, by which a model that goes on with one of its own is cut there (rule 14 of
:mod:`corea.tasks.parsing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from corea.confidence import CONFIDENCE_GRID
from corea.tasks.questions import Question


def with_examples(
    questions: Sequence[Question], examples: Sequence[Question], seed: int
) -> list[Question]:
    r"""Questions as asked behind solved examples, the same before each of them.

    Source: ours.

    Args:
        questions: What is asked.
        examples: What is shown solved, in this order; with none the questions stay as they are.
        seed: Of the confidences, each drawn from :data:`corea.confidence.CONFIDENCE_GRID`, so that
            nothing is shown of calibration.

    Raises:
        ValueError: If a question is among the examples, which would give its answer away.

    Example:
        >>> sums = [Question("sums", str(n), f"{n}+{n}?", str(2 * n), "math") for n in range(3)]
        >>> [asked] = with_examples(sums[:1], sums[1:], seed=0)
        >>> print(asked.prompt.replace("{0.", "{.").partition("Please")[0])
        Question: 1+1?
        Answer: \boxed{2} \confidence{.9}
        <BLANKLINE>
        Question: 2+2?
        Answer: \boxed{4} \confidence{.7}
        <BLANKLINE>
        Question: 0+0?
        <BLANKLINE>
    """
    if not examples:
        return list(questions)
    shown = {example.text for example in examples}
    if given := [q.question_id for q in questions if q.text in shown]:
        raise ValueError(
            f"{len(given)} questions, the first {given[0]!r}, are among the solved examples; "
            "expected examples of another part"
        )
    stated = np.random.default_rng(seed).choice(CONFIDENCE_GRID, len(examples))
    before = "".join(
        f"Question: {example.text}\nAnswer: \\boxed{{{example.gold}}} \\confidence{{{c}}}\n\n"
        for example, c in zip(examples, stated, strict=True)
    )
    return [replace(q, text=f"{before}Question: {q.text}") for q in questions]
