r"""A warm-up: supervised rows that show how an answer and a confidence are written.

Paper A starts from models that follow its instruction. A small chat model does not: it states no
``\confidence{}``, and reinforcement has nothing to pay. The rows teach the form. Of confidence they
teach nothing: each row states one that is drawn from the grid, whatever the question. Of
the task they teach something: their answers are the right ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from corea.confidence import CONFIDENCE_GRID
from corea.engines.prompts import chat_prompt
from corea.tasks.questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def shown_answer(question: Question, confidence: str) -> str:
    r"""An answer as the instruction asks for it, behind the solution if there is one.

    Example:
        >>> print(shown_answer(Question("sums", "0", "2 + 3 =", "5", "math"), "0.4"))
        \boxed{5}
        \confidence{0.4}
    """
    stated = f"\\boxed{{{question.gold}}}\n\\confidence{{{confidence}}}"
    return f"{question.solution}\n{stated}" if question.solution else stated


def warm_up_rows(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], seed: int
) -> list[dict[str, str]]:
    """Rows for :func:`corea.training.sft.train_sft`; the seed is that of the confidences."""
    stated = np.random.default_rng(seed).choice(CONFIDENCE_GRID, len(questions))
    return [
        {
            "prompt": chat_prompt(tokenizer, question.prompt),
            "completion": shown_answer(question, str(confidence)),
        }
        for question, confidence in zip(questions, stated, strict=True)
    ]
