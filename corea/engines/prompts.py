"""From texts to tokens: chat templates, prompts, and candidates after an opening.

Candidate texts are encoded together with the text before them, as the tokenizer would, whatever
it merges.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corea.engines.chat_template import TemplateError, user_message
from corea.engines.model_errors import ModelError
from corea.tasks.decision_questions import THINK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_prompt(tokenizer: PreTrainedTokenizerBase, message: str, opening: str = "") -> str:
    """Wrap a user message in the chat template, if there is one, and append an opening.

    One that begins with ``<think>`` takes the place of that which the template ends with, if any.
    The text is encoded like any other. So a begin token at the start of the template, which the
    tokenizer puts before every text anyway, is left out. A template that does not render, or
    drops the message, is a :class:`~corea.engines.loading.ModelError`.
    """
    if not tokenizer.chat_template:
        return message + opening
    try:
        text = user_message(tokenizer, message)
    except TemplateError as error:
        name = Path(str(tokenizer.name_or_path)).name or "tokenizer"
        raise ModelError(f"{name}: its chat template cannot be used ({error})") from error
    begin = tokenizer.bos_token
    if begin and encode(tokenizer, [""], special=True)[0][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(begin)
    if opening.startswith(THINK) and text.rstrip().endswith(THINK):  # which the template began
        text = text.rstrip().removesuffix(THINK)
    return text + opening


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """The ids of texts, with the tokenizer's begin token before each if ``special``."""
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=special)["input_ids"]
    return encoded


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of prompts, with the special tokens that the tokenizer adds; none may be empty."""
    if isinstance(prompts, str):
        raise TypeError(f"prompts is one string, {prompts[:40]!r}; expected a sequence of them")
    if not prompts:
        return []
    encoded = encode(tokenizer, prompts, special=True)
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompts[{i}] is {prompts[i]!r}; expected text with tokens in it")
    return encoded


def encode_candidates(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    openings: Sequence[str],
    candidates: Sequence[str],
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The ids before the candidates, and the candidates' ids.

    Args:
        tokenizer: The model's.
        prompts: What was asked, length n.
        openings: How the completions begin, length n; may be empty.
        candidates: How they might go on, K texts, all different.

    Returns:
        The ids that an opening has in common with all its continuations, after those of the
        prompt; and how each continuation goes on, K lists of ids of each prompt.
    """
    if len(prompts) != len(openings):
        raise ValueError(f"{len(prompts)} prompts for {len(openings)} openings")
    if not candidates or not all(candidates) or len(set(candidates)) != len(candidates):
        raise ValueError(f"candidates are {list(candidates)}; expected texts, all different")
    encoded = encode_prompts(tokenizer, prompts)
    shared, suffixes = _continuations(tokenizer, openings, candidates)
    return [prompt + ids for prompt, ids in zip(encoded, shared, strict=True)], suffixes


def _continuations(
    tokenizer: Any, openings: Sequence[str], candidates: Sequence[str]
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Encode each opening with each candidate: the ids all share, and how each goes on.

    To encode long texts once for each candidate would take longer than the model does. So only
    the end is, from the token on in which the opening ends. That this gives the ids of the whole
    text is checked with the first candidate, and with all of them whenever the end, or the token
    before it, is one not met before.
    """
    known: dict[str, list[int]] = {}  # many openings end alike
    checked: set[tuple[int, str]] = set()

    def encoded(text: str) -> list[int]:
        if text not in known:
            known[text] = encode(tokenizer, [text])[0]
        return known[text]

    whole = tokenizer(
        [opening + candidates[0] for opening in openings],
        add_special_tokens=False,
        return_offsets_mapping=tokenizer.is_fast,
    )
    shared, suffixes = [], []
    for i, opening in enumerate(openings):
        ids = whole["input_ids"][i]
        offsets = whole["offset_mapping"][i] if tokenizer.is_fast else []
        last = max(0, bisect_left(offsets, (len(opening), 0)) - 1)
        end = opening[offsets[last][0] :] if last else opening
        same = ids == ids[:last] + encoded(end + candidates[0])
        if same and last and (ids[last - 1], end) not in checked:
            all_ids = encode(tokenizer, [opening + candidate for candidate in candidates])
            tails = [encoded(end + candidate) for candidate in candidates]
            same = all_ids == [ids[:last] + tail for tail in tails]
            if same:
                checked.add((ids[last - 1], end))
        if not same:
            last, end = 0, opening
        tails = [encoded(end + candidate) for candidate in candidates]
        n = _n_shared([encoded(end), *tails])
        if any(len(tail) == n for tail in tails):
            raise ValueError(f"candidates are {list(candidates)}; one adds no token to the text")
        shared.append(ids[:last] + tails[0][:n])
        suffixes.append([tail[n:] for tail in tails])
    return shared, suffixes


def _n_shared(rows: Sequence[list[int]]) -> int:
    """How many ids all rows begin with."""
    low, high = min(rows), max(rows)  # all others lie between them
    differing = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return next(differing, min(len(low), len(high)))
