r"""The token that decides: where it stands in a completion, and what confidence it has.

Paper B asks a model for one of K options and takes the probability of the token that names the
option as the model's confidence (its section 2). Nothing here imports torch. Choices of our own,
where the paper leaves them open:

1. The decision is the last token of a completion that is neither an end token nor white space.
   It is valid if it is one of the options, the completion was ended by the model, and reasoning
   that was begun was closed before it. The paper does not say what it does with the others; here
   they are wrong, have no confidence, and are counted. It wants "EXACTLY one capital letter" and no
   "other text after decision", so a letter with its text behind it, or in the ``<`` and ``>`` of
   the prompt's format, is none: ``corea.decisions.evaluation`` can decide among the options
   instead, and ``corea.decisions.warm_up`` teaches the form.
2. Confidence is that of the full vocabulary, as in the paper, at temperature 1 whatever
   completions were sampled at. Renormalised over the options it is another column: it is at
   least 1/K for the likeliest option, and what a classifier would state.
3. An option is one token, and the same one behind all white space that chat templates write
   between reasoning and decision (:data:`SPACINGS`), whatever the tokenizer merges or splits
   there: to some, two line breaks are one token at the end of a text and two before a word. Options
   of which that is not true are refused before a model is asked. All of that white space ends in
   a line break, for the paper's prompts want the option "on its own line": behind a mere space it
   is another token to most tokenizers, and such a completion has no valid decision.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from corea.tasks.decision_questions import END_OF_THINKING, THINK, VERDICTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SPACINGS = (f"{END_OF_THINKING}\n", f"{END_OF_THINKING}\n\n", f" {END_OF_THINKING} \n")
"""What may stand before a decision."""


class OptionError(ValueError):
    """Options that a model cannot decide between with one token; names the option."""


def option_ids(tokenizer: PreTrainedTokenizerBase, options: Sequence[str]) -> list[int]:
    """The token of each option, where it stands on a line of its own.

    Source: choice 3 of this module.

    Example:
        >>> from corea.tasks.microworld import build_tokenizer
        >>> option_ids(build_tokenizer(), ["0", "1", "zoka was here"])
        Traceback (most recent call last):
            ...
        corea.decisions.tokens.OptionError: option 'zoka was here' is 11 tokens; expected one
    """
    if len(options) < 2:
        raise OptionError(f"options are {list(options)}; expected at least two")
    if len(set(options)) < len(options):
        raise OptionError(f"options are {list(options)}; expected them to be different")
    found: dict[int, str] = {}
    for k, spacing in enumerate(SPACINGS):
        texts = [spacing, *(spacing + option for option in options)]
        before, *encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for option, ids in zip(options, encoded, strict=True):
            added = ids[len(before) :]
            if ids[: len(before)] != before:
                # GPT-2's way of splitting takes the last of several line breaks apart from the
                # others where a word follows
                if tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) != spacing:
                    raise OptionError(
                        f"option {option!r} is merged with the white space of {spacing!r}"
                    )
                added = ids[-1:]
            if len(added) != 1:
                advice = ' (labels "letters" asks for A or B instead)' if option in VERDICTS else ""
                raise OptionError(f"option {option!r} is {len(added)} tokens; expected one{advice}")
            if added[0] == tokenizer.unk_token_id:
                raise OptionError(f"option {option!r} is not in the vocabulary")
            if k and found.get(added[0]) != option:
                raise OptionError(f"option {option!r} is another token behind {spacing!r}")
            if found.setdefault(added[0], option) != option:
                raise OptionError(f"options {found[added[0]]!r} and {option!r} are the same token")
    return list(found)


def decision_position(
    tokens: Sequence[str], ids: Sequence[int], options: Collection[int], ends: Collection[int]
) -> int | None:
    r"""Where a completion decides: the place of the deciding token, None where there is none.

    What closes the reasoning is looked for in the text, not among tokens, which differ with the
    white space behind it.

    Source: choice 1 of this module.

    Args:
        tokens: The text of each token, length T.
        ids: The tokens, length T.
        options: The tokens of the options.
        ends: The tokens that end a completion.

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

    Source: paper B, section 2; choice 2 of this module.

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
    valid = np.flatnonzero(index >= 0)
    chosen = scores[valid]
    if (wrong := np.flatnonzero(~(chosen <= 1e-6).all(axis=1))).size:
        raise ValueError(
            f"logprobs: row {valid[wrong[0]]} is {chosen[wrong[0]].tolist()}; expected numbers up "
            "to 0"
        )
    full, renormalised = np.full(len(index), np.nan), np.full(len(index), np.nan)
    logprob = chosen[np.arange(len(valid)), index[valid]]
    full[valid] = np.exp(np.minimum(logprob, 0))
    highest = chosen.max(axis=1, initial=-np.inf)
    # an option of probability 0 is never decided for, so the highest is finite
    total = highest + np.log(np.exp(chosen - highest[:, None]).sum(axis=1))
    renormalised[valid] = np.exp(np.minimum(logprob - total, 0))
    return full, renormalised
