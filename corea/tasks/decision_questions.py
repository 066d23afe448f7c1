r"""Decisions: questions with a fixed set of one-token options, and the token that decides.

Paper B asks a model for one of K options, with or without reasoning before it, and takes the
probability of the token that names the option as the model's confidence (its section 2). Here
are the questions, their prompts, where in a completion the decision is, and what confidence it
has. Nothing here imports torch.

Prompts are the paper's (appendix A), word for word. Choices of our own, where it leaves them open:

1. The moderation prompt is the same with and without reasoning. Without, the completion begins
   behind an empty ``<think>`` block, as the chat template of Qwen3 writes it when thinking is
   switched off.
2. The decision is the last token of a completion that is neither an end token nor white space.
   It is valid if it is one of the options, the completion was ended by the model, and reasoning
   that was begun was closed before it. The paper does not say what it does with the others; here
   they are wrong, have no confidence, and are counted.
3. Confidence is that of the full vocabulary, as in the paper, at temperature 1 whatever
   completions were sampled at. Renormalised over the options it is another column: it is at
   least 1/K for the likeliest option, and what a classifier would state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


class OptionError(ValueError):
    """Options that a model cannot decide between with one token; names the option."""


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
        """Check the options.

        Raises:
            ValueError: If there is one choice or more than five, or the gold label is none of
                the options; names the question.
        """
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

        Args:
            reasoning: Whether the model is to reason before it decides.

        Returns:
            The text.

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


def option_ids(tokenizer: PreTrainedTokenizerBase, options: Sequence[str]) -> list[int]:
    """The token of each option, where it stands on a line of its own.

    Args:
        tokenizer: A tokenizer.
        options: Two or more texts, all different.

    Returns:
        One id for each, all different.

    Raises:
        OptionError: If there are fewer than two options, one is there twice, one is not a single
            token, is unknown to the tokenizer, or has the token of another.

    Example:
        >>> from corea.tasks.microworld import build_tokenizer
        >>> option_ids(build_tokenizer(), ["0", "1", "zoka was here"])
        Traceback (most recent call last):
            ...
        corea.tasks.decision_questions.OptionError: option 'zoka was here' is 11 tokens; expected
        one
    """
    if len(options) < 2:
        raise OptionError(f"options are {list(options)}; expected at least two")
    if len(set(options)) < len(options):
        raise OptionError(f"options are {list(options)}; expected them to be different")
    before = _ids(tokenizer, f"{END_OF_THINKING}\n")
    found: dict[int, str] = {}
    for option in options:
        ids = _ids(tokenizer, f"{END_OF_THINKING}\n{option}")
        own = ids[len(before) :]
        if ids[: len(before)] != before:
            raise OptionError(f"option {option!r} is merged with the line break before it")
        if len(own) != 1:
            raise OptionError(f"option {option!r} is {len(own)} tokens; expected one")
        if own[0] == tokenizer.unk_token_id:
            raise OptionError(f"option {option!r} is not in the vocabulary")
        if own[0] in found:
            raise OptionError(f"options {found[own[0]]!r} and {option!r} are the same token")
        found[own[0]] = option
    return list(found)


def decision_position(
    tokens: Sequence[str], ids: Sequence[int], options: Collection[int], ends: Collection[int]
) -> int | None:
    r"""Where a completion decides.

    Source: choice 2 of this module.

    Args:
        tokens: Text of each token of the completion.
        ids: Their ids, of the same length.
        options: Ids of the options.
        ends: Ids of end tokens.

    Returns:
        Index of the decision token, or None if there is no valid decision.

    Example:
        >>> decision_position(["<think>", "\n", "</think>", "\n", "A", ""], range(6), [4], [5])
        4
        >>> decision_position(["<think>", "\n", "A", ""], [0, 1, 4, 5], [4], [5]) is None
        True
    """
    if not ids or ids[-1] not in ends:
        return None
    place = len(ids) - 1
    while place >= 0 and (ids[place] in ends or not tokens[place].strip()):
        place -= 1
    if place < 0 or ids[place] not in options:
        return None
    before = "".join(tokens[:place])
    closed = before.rfind(END_OF_THINKING) > before.rfind(THINK)
    return place if closed or THINK not in before else None


def decision_confidence(
    logprobs: ArrayLike, decided: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Confidence of decisions, from the log-probabilities of the options.

    .. math:: C = p(y_d \mid x, y_{<d}), \qquad
        \tilde C = \frac{p(y_d \mid x, y_{<d})}{\sum_{c \in \mathcal C} p(c \mid x, y_{<d})}

    Source: paper B, section 2; choice 3 of this module.

    Args:
        logprobs: Natural log-probabilities of the K options over the full vocabulary, at
            temperature 1, shape (n, K); NaN in rows without a decision.
        decided: Index of the option that was decided for, -1 where none was, shape (n,).

    Returns:
        :math:`C` and :math:`\tilde C`, each of shape (n,), NaN where nothing was decided.

    Raises:
        ValueError: If the shapes do not fit, an index is out of range, or a row with a decision
            has a log-probability that is above 0 or not a number.

    Example:
        >>> full, renormalised = decision_confidence(np.log([[0.6, 0.2]]), [0])
        >>> full.round(2).tolist(), renormalised.round(2).tolist()
        ([0.6], [0.75])
    """
    scores, index = np.asarray(logprobs, dtype=float), np.asarray(decided)
    if scores.ndim != 2 or index.shape != scores.shape[:1]:
        raise ValueError(
            f"logprobs has shape {scores.shape} and decided {index.shape}; expected (n, K) and (n,)"
        )
    if (wrong := np.flatnonzero((index < -1) | (index >= scores.shape[1]))).size:
        raise ValueError(f"decided: row {wrong[0]} is {index[wrong[0]]}; expected -1 to K - 1")
    there = np.flatnonzero(index >= 0)
    chosen = scores[there]
    if (wrong := np.flatnonzero(~(chosen <= 1e-6).all(axis=1))).size:
        raise ValueError(
            f"logprobs: row {there[wrong[0]]} is {chosen[wrong[0]].tolist()}; expected numbers up "
            "to 0"
        )
    full, renormalised = np.full(len(index), np.nan), np.full(len(index), np.nan)
    own = chosen[np.arange(len(there)), index[there]]
    full[there] = np.exp(np.minimum(own, 0))
    highest = chosen.max(axis=1, initial=-np.inf)
    # an option of probability 0 is never decided for, so the highest is finite
    total = highest + np.log(np.exp(chosen - highest[:, None]).sum(axis=1))
    renormalised[there] = np.exp(np.minimum(own - total, 0))
    return full, renormalised


def optimal_confidence(accuracy: ArrayLike, n_options: int, target: str) -> NDArray[np.float64]:
    r"""The decision probability that minimises the calibration-aware loss.

    The loss at a decision token is the cross-entropy to a target: the right option where the
    decision was right. Where it was wrong, with accuracy a and K options,

    - ``"uniform"`` (paper B): all options alike. The expected target gives the decided option
      :math:`a + (1 - a)/K`, which is more than a: not proper.
    - ``"proper"`` (ours): all options alike but the one that was decided for. The expected target
      gives it a, whose minimum is at the accuracy.

    Source: derived from paper B, section 5.

    Args:
        accuracy: How often the decision is right, in [0, 1].
        n_options: K, from 2.
        target: ``"uniform"`` or ``"proper"``.

    Returns:
        The probabilities, of the shape of ``accuracy``.

    Raises:
        ValueError: If the target is unknown or a number out of range.

    Example:
        >>> optimal_confidence([0.0, 0.5, 1.0], 2, "uniform").tolist()
        [0.5, 0.75, 1.0]
        >>> optimal_confidence([0.0, 0.5, 1.0], 2, "proper").tolist()
        [0.0, 0.5, 1.0]
    """
    a = np.asarray(accuracy, dtype=float)
    if not ((a >= 0) & (a <= 1)).all():
        raise ValueError(f"accuracy is {accuracy!r}; expected numbers in [0, 1]")
    optimum: NDArray[np.float64] = a + (1 - a) * wrong_target(n_options, target)[0]
    return optimum


def wrong_target(n_options: int, target: str) -> NDArray[np.float64]:
    """The target distribution after a wrong decision, the decided option first.

    Args:
        n_options: K, from 2.
        target: ``"uniform"`` or ``"proper"``, as in :func:`optimal_confidence`.

    Returns:
        K probabilities.

    Raises:
        ValueError: If the target is unknown or there are fewer than two options.

    Example:
        >>> wrong_target(3, "proper").tolist()
        [0.0, 0.5, 0.5]
    """
    if n_options < 2:
        raise ValueError(f"n_options is {n_options!r}; expected 2 or more")
    first: Mapping[str, float] = {"uniform": 1 / n_options, "proper": 0.0}
    if target not in first:
        raise ValueError(f"target is {target!r}; expected one of {', '.join(first)}")
    others = (1 - first[target]) / (n_options - 1)
    return np.array([first[target]] + [others] * (n_options - 1))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
