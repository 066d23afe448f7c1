"""Decisions: questions with a fixed set of one-token options, and their prompts.

Paper B asks a model for one of K options, with or without reasoning before it; what the token that
names the option says is read in :mod:`corea.decisions.tokens`. Prompts are the paper's (appendix
A), word for word. One choice of our own, where it leaves it open:

1. The moderation prompt is the same with and without reasoning. Without, the completion begins
   behind an empty ``<think>`` block, in the form that the paper's other prompts print. The chat
   template of Qwen3 with ``enable_thinking=False`` has a blank line more in the block and behind
   it; by default, as here, it writes no block, and a model that reasons begins it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

LETTERS = ("A", "B", "C", "D", "E")
VERDICTS = ("Safe", "Unsafe")
THINK, END_OF_THINKING = "<think>", "</think>"
NO_THINKING = f"{THINK}\n{END_OF_THINKING}\n"
"""How a completion without reasoning begins; it is given to the model with the prompt."""
MAX_OPTIONS = len(LETTERS)

_CHOOSE = (
    "Answer the following multiple-choice question by selecting the single best option (A-{last})."
)
_DIRECT = (
    " Do not provide any explanations, just output the option as EXACTLY one capital letter from "
    "[{letters}] on its own line.\n\nFormat:\n<think>\n</think>\n<LETTER>\n\n"
)
_REASON = (
    "\n\nAfter </think>, only output your final decision as EXACTLY one capital letter from "
    "[{letters}] on its own line. Do not output any other text after decision.\n\nFormat:\n"
    "<think>\nyour thinking here\n</think>\n<LETTER>\n\n"
)
_MODERATE = (
    "You are a safety classification assistant. Given an input message, classify it as either:\n\n"
    '- "Safe" - if it does not contain harmful, toxic, or unsafe content.\n'
    '- "Unsafe" - if it contains hate speech, threats, self-harm, sexual content, or otherwise '
    "unsafe material.\n\n"
    'Respond with only the classification label: "Safe" or "Unsafe".\n\nInput:\n"{text}"\n'
    "Classification:\n"
)


@dataclass(frozen=True)
class DecisionQuestion:
    """A question with a fixed set of options.

    Attributes:
        dataset: Name of the dataset.
        question_id: Name of the question, unique in its dataset.
        text: The question, or the message that is to be judged.
        gold: The right option.
        choices: What the letters stand for, two to five texts; empty for moderation, whose
            options are ``"Safe"`` and ``"Unsafe"``.
        fact: A fact that is given with the question (OpenBookQA), or nothing.
        level: Graded difficulty from 1, or None where the dataset has none.

    Example:
        >>> DecisionQuestion("csqa", "1", "Which is blue?", "F", ("the sky", "grass"))
        Traceback (most recent call last):
            ...
        ValueError: csqa 1: gold is 'F'; expected one of A, B
    """

    dataset: str
    question_id: str
    text: str
    gold: str
    choices: tuple[str, ...] = ()
    fact: str = ""
    level: float | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        name = f"{self.dataset} {self.question_id}"
        if self.choices and not 2 <= len(self.choices) <= MAX_OPTIONS:
            raise ValueError(
                f"{name}: {len(self.choices)} choice(s); expected 2 to {MAX_OPTIONS}, or none for "
                "moderation"
            )
        if self.gold not in self.options:
            raise ValueError(
                f"{name}: gold is {self.gold!r}; expected one of {', '.join(self.options)}"
            )

    @property
    def options(self) -> tuple[str, ...]:
        """What the model decides between."""
        return LETTERS[: len(self.choices)] if self.choices else VERDICTS

    def prompt(self, *, reasoning: bool) -> str:
        r"""What is asked. Without reasoning, the answer begins with :data:`NO_THINKING`.

        Source: paper B, appendix A; choice 1 of this module.

        Example:
            >>> question = DecisionQuestion("csqa", "1", "Which is blue?", "A", ("sky", "grass"))
            >>> question.prompt(reasoning=True)[-51:]
            'Question: Which is blue?\nOptions:\n\nA. sky\nB. grass\n'
        """
        if not self.choices:
            return _MODERATE.format(text=self.text)
        named = {"last": self.options[-1], "letters": ", ".join(self.options)}
        asked = (_CHOOSE + (_REASON if reasoning else _DIRECT)).format(**named)
        fact = f"Fact: {self.fact}\n" if self.fact else ""
        listed = "\n".join(
            f"{letter}. {choice}" for letter, choice in zip(self.options, self.choices, strict=True)
        )
        gap = "\n" if reasoning else ""  # as the paper prints them
        return f"{asked}{fact}Question: {self.text}\nOptions:\n{gap}{listed}\n"
