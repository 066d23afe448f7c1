r"""A warm-up that teaches the form of a decision, and nothing of what is right or how sure to be.

A model that never writes ``<think>``, or says more than the option, decides nothing that could be
read. So before any other training it is shown the form, supervised, on rows of two kinds:

1. behind the prompt with reasoning, ``<think>``, reasoning, ``</think>`` and a decision, each on
   lines of its own. The reasoning is the model's own, sampled behind the prompt and ``<think>``:
   what it would have written, which teaches it no new thoughts. It is cut at its last whole
   sentence or line, and tags, whatever reads like a decision, and what the prompt has in the
   place of reasoning are taken out of it.
2. behind the prompt without reasoning and the empty ``<think>`` block, the decision.

The decision of a row is the model's own too: drawn from the probabilities that it has for the
options at that place, renormalised; the right one is not read. So what is learnt there is, in the
mean of the draws, that one of the options stands, and of each option the probability that the model
had for it:

.. math:: \mathbb{E}_{d}[-\log p_d] = -\sum_c \tilde p^0_c \log p_c, \qquad
    \text{least at } p_c = \tilde p^0_c

Neither which option is right nor how sure to be is taught. To leave the decision out of the loss
instead does not do that: nothing then holds the probabilities in their place. In a model of the
microworld that had forgotten to end (40 rows of each kind, 40 steps, rate 3e-3) the options' mass
fell from 0.93 to 0.36 and confidence among them from 0.95 to 0.76 without that loss, and went to
0.96 and 0.91 with it; and a model that puts something else in the place would never learn better.

Source: ours. Paper B's models need none: they were trained to reason in this form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from corea.decisions.tokens import option_ids
from corea.engines.prompts import chat_prompt, encode, encode_prompts
from corea.tasks.decision_questions import (
    END_OF_THINKING,
    NO_THINKING,
    THINK,
    THINKING_HERE,
    DecisionQuestion,
)

if TYPE_CHECKING:
    from corea.engines.base import OpenEngine, Sampling

_TAG = re.compile(r"</?[A-Za-z][^<>\n]*>")
_SENTENCE = re.compile(r"(?<=[.!?])[ \t]+")
_NAMED = r"(?i:\b(?:answer|option|decision|choice|classification|label|verdict)s?\b)"


def own_reasoning(
    engine: OpenEngine, questions: Sequence[DecisionQuestion], sampling: Sampling
) -> list[str]:
    """What a model thinks of questions, as rows of the warm-up have it; empty where nothing is.

    Args:
        engine: The model.
        questions: What is asked, length n.
        sampling: How reasoning is drawn, one of each question.

    Returns:
        n texts without white space around them.
    """
    if sampling.n_samples != 1:
        raise ValueError(f"n_samples is {sampling.n_samples}; expected 1 reasoning of a question")
    prompts = [
        chat_prompt(engine.tokenizer, question.prompt(reasoning=True), f"{THINK}\n")
        for question in questions
    ]
    rollouts = engine.plain().generate(prompts, sampling)
    return [
        tidied(rollout.completion, question.options, finished=rollout.finished)
        for question, (rollout,) in zip(questions, rollouts, strict=True)
    ]


def tidied(text: str, options: Sequence[str], *, finished: bool) -> str:
    r"""Reasoning up to where it is closed, without what was cut, tags and decisions.

    Example:
        >>> text = "It is about money. The answer is B.\nB. bank\nSo a bank <LETTER> fits. I kn"
        >>> tidied(text, ["A", "B"], finished=False)
        'It is about money.\nSo a bank fits.'
    """
    text, closed, _ = text.partition(END_OF_THINKING)
    if not finished and not closed:
        ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|\n", text + " ")]
        text = text[: ends[-1]] if ends else ""
    label = "|".join(map(re.escape, options))
    line_decides = re.compile(rf"\W*(?:{label})(?:\W*$|[.):])")
    decides = re.compile(rf"{_NAMED}[^.!?]*?(?<!\w)(?:{label})(?!\w)")
    lines = []
    for line in _TAG.sub("", text).splitlines():
        kept = [part for part in _SENTENCE.split(line) if not decides.search(part)]
        copied = THINKING_HERE in line.lower()
        if not copied and not line_decides.match(line) and any(map(str.strip, kept)):
            lines.append(re.sub(r"[ \t]+", " ", " ".join(kept)).strip())
    return "\n".join(lines)


def warm_up_rows(
    engine: OpenEngine,
    questions: Sequence[DecisionQuestion],
    reasoning: Sequence[str],
    *,
    seed: int,
) -> list[dict[str, str]]:
    """Rows for :func:`corea.training.sft.train_sft`, of both kinds; see this module.

    Args:
        engine: The model, which decides.
        questions: What is asked, length n.
        reasoning: From :func:`own_reasoning`, length n; where it is empty there is no row of the
            first kind.
        seed: Of the draw of decisions, from 0.

    Raises:
        OptionError: If options are not one token each.
        ValueError: If there is no reasoning at all.
    """
    if not any(reasoning):
        raise ValueError(
            f"the model reasons about none of {len(questions)} questions; expected some text "
            "behind <think>, so raise the length at which it is cut"
        )
    tokenizer = engine.tokenizer
    rows, options = [], []
    for question, thought in zip(questions, reasoning, strict=True):
        if thought:
            prompt = chat_prompt(tokenizer, question.prompt(reasoning=True))
            written = f"{THINK}\n{thought}\n{END_OF_THINKING}\n"
            rows.append({"prompt": prompt, "completion": written})
        prompt = chat_prompt(tokenizer, question.prompt(reasoning=False), NO_THINKING)
        rows.append({"prompt": prompt, "completion": ""})
        options += [question.options] * (1 + bool(thought))
    for row, decision in zip(rows, _drawn(engine, rows, options, seed), strict=True):
        row["completion"] += decision
    return rows


def _drawn(
    engine: OpenEngine,
    rows: Sequence[Mapping[str, str]],
    options: Sequence[tuple[str, ...]],
    seed: int,
) -> list[str]:
    """An option behind each row, drawn as likely as the model has it among the options."""
    prompts = encode_prompts(engine.tokenizer, [row["prompt"] for row in rows])
    written = encode(engine.tokenizer, [row["completion"] for row in rows])
    before = [one + other for one, other in zip(prompts, written, strict=True)]
    rng = np.random.default_rng(seed)
    drawn = [""] * len(rows)
    for group in dict.fromkeys(options):
        known = option_ids(engine.tokenizer, group)
        own = [i for i, these in enumerate(options) if these == group]
        logprobs, _ = engine.next_logprobs([before[i] for i in own], known)
        p = np.exp(logprobs - logprobs.max(axis=1, keepdims=True))
        for i, shares in zip(own, p / p.sum(axis=1, keepdims=True), strict=True):
            drawn[i] = group[int(rng.choice(len(group), p=shares))]
    return drawn
