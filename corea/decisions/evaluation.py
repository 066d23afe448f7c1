r"""Decisions of a model as records, and what becomes of them under foreign reasoning.

A decision is asked for as an answer is (:mod:`corea.engines.evaluation`): in parts, resumable, one
record per question and sample. What is different:

1. ``confidence`` is the probability of the decision token (:mod:`corea.decisions.tokens`,
   choice 2), from one forward pass over prompt and completion up to it; ``renormalised`` that over
   the options, and ``p_1`` ... ``p_5`` those of the options over the full vocabulary (missing
   beyond K).
2. The decision itself is greedy whatever the reasoning before it was drawn at, so that it is the
   option the model holds for likeliest. Paper B does not say how it decides; its method wants the
   intended label to be "selected as the greedy output" (section 5). It can be drawn like every
   other token instead, as rollouts in training are.
3. A completion without a valid decision is wrong, has no answer and no confidence.
4. Foreign reasoning is put behind the question as text, up to the line on which the decision
   stands, or a part of it that the model then goes on from, greedily.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from corea.decisions.tokens import decision_confidence, decision_position, option_ids
from corea.engines.evaluation import (
    Answers,
    Samples,
    ask_in_parts,
    read_samples,
    require_names,
    require_rollouts,
)
from corea.records import Records, records_from_columns
from corea.tasks.decision_questions import (
    END_OF_THINKING,
    MAX_OPTIONS,
    NO_THINKING,
    THINK,
    DecisionQuestion,
)

if TYPE_CHECKING:
    from corea.engines.base import OpenEngine, Sampling

OPTIONS = tuple(f"p_{k + 1}" for k in range(MAX_OPTIONS))
"""Columns of the options' probabilities."""

_SWAPPED = {
    **dict.fromkeys(("dataset", "question_id", "own", "foreign", "donor", "answer"), "str"),
    **dict.fromkeys(("own_confidence", "share", "confidence", "renormalised"), "float64"),
    "flipped": "bool",
}
_TEXTS = ["prompt", "opening", "completion", "kind", "finished", "undecided", "error"]


def evaluate_decisions(
    engine: OpenEngine,
    questions: Sequence[DecisionQuestion],
    *,
    system: str,
    sampling: Sampling,
    reasoning: bool,
    directory: str | Path,
    decisions: str = "greedy",
    part_size: int | None = None,
) -> Records:
    """Have a model decide all questions, or those that an earlier, interrupted call left.

    Args:
        engine: What decides.
        questions: What is asked; no two of the same dataset and name.
        system: Name of what decides, in the records.
        sampling: How reasoning is drawn.
        reasoning: Whether to reason first.
        directory: Where parts are kept, for :func:`corea.engines.evaluation.read_samples`.
        decisions: ``"greedy"`` or ``"sampled"`` (choice 2).
        part_size: Questions of a part; when None, as many as fill one batch of the engine.

    Returns:
        Records with the columns of choice 1 and ``level``; a note says how many completions had
        no valid decision.
    """
    if decisions not in ("greedy", "sampled"):
        raise ValueError(f"decisions is {decisions!r}; expected greedy or sampled")
    require_names([(question.dataset, question.question_id) for question in questions])
    for options in dict.fromkeys(question.options for question in questions):
        option_ids(engine.tokenizer, options)
    marker = END_OF_THINKING if decisions == "greedy" else ""
    sampling = dataclasses.replace(sampling, greedy_after=marker)

    def answer(part: Sequence[DecisionQuestion], _: Samples | None) -> Answers:
        prompts = [_prompt(engine, question, reasoning=reasoning) for question in part]
        return _decide(engine, part, prompts, sampling).assign(system=system), None

    request = {
        "system": system,
        "model": engine.fingerprint,
        "sampling": dataclasses.asdict(sampling),
        "reasoning": reasoning,
    }
    size = max(1, engine.batch_size // sampling.n_samples) if part_size is None else part_size
    notes = ask_in_parts(questions, answer, request, directory, size)
    samples = read_samples(directory)
    if missing := int(samples["answer"].isna().sum()):
        notes.append(f"{missing:,} completion(s) have no valid decision and count as wrong")
    kept = samples.drop(columns=_TEXTS)
    columns = {str(name): values.tolist() for name, values in kept.items()}
    return records_from_columns(columns, source=system, notes=notes)


def _prompt(engine: OpenEngine, question: DecisionQuestion, *, reasoning: bool) -> str:
    """All that stands before the reasoning, or before the decision where there is none."""
    from corea.engines.prompts import chat_prompt

    message, opening = question.prompt(reasoning=reasoning), "" if reasoning else NO_THINKING
    return chat_prompt(engine.tokenizer, message, opening) if engine.chat else message + opening


def _decide(
    engine: OpenEngine,
    questions: Sequence[DecisionQuestion],
    prompts: Sequence[str],
    sampling: Sampling,
) -> pd.DataFrame:
    """One row per question and sample; a prompt is that of its question, or goes on from it."""
    tokenizer = engine.tokenizer
    # the prompts stand in the chat template already
    rollouts = engine.plain().generate(prompts, sampling)
    require_rollouts(rollouts, [sampling.n_samples] * len(questions))
    rows: list[dict[str, Any]] = []
    before: list[list[int]] = []  # of each row, the ids its decision follows
    options: list[tuple[str, ...]] = []
    chosen: list[str | None] = []
    ends = {tokenizer.eos_token_id}
    texts: dict[int, str] = {}  # of tokens met
    for question, prompt, group in zip(questions, prompts, rollouts, strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        known = option_ids(tokenizer, question.options)
        for sample, rollout in enumerate(group):
            ids = rollout.ids
            texts |= {i: tokenizer.decode([i]) for i in set(ids) - texts.keys()}
            place = decision_position([texts[i] for i in ids], ids, known, ends)
            decided = None if place is None else question.options[known.index(ids[place])]
            before.append(prompt_ids + ids[: 0 if place is None else place])
            options.append(question.options)
            chosen.append(decided)
            rows.append(
                {
                    "dataset": question.dataset,
                    "question_id": question.question_id,
                    "sample": sample,
                    "correct": decided == question.gold,
                    "prompt_tokens": rollout.prompt_tokens,
                    "completion_tokens": rollout.completion_tokens,
                    "answer": decided,
                    "gold": question.gold,
                    "level": float("nan") if question.level is None else float(question.level),
                    "prompt": prompt,
                    "opening": "" if place is None else tokenizer.decode(ids[:place]),
                    "completion": rollout.completion,
                    "kind": "choice",
                    "finished": rollout.finished,
                    "undecided": False,
                    "error": rollout.error,
                }
            )
    scored = _scored(engine, before, options, chosen).drop(columns="likeliest")
    return pd.concat([pd.DataFrame(rows), scored], axis=1)


def _scored(
    engine: OpenEngine,
    before: Sequence[Sequence[int]],
    options: Sequence[tuple[str, ...]],
    decided: Sequence[str | None] | None = None,
) -> pd.DataFrame:
    """Probabilities at the decision behind these ids: the one given, else the likeliest token.

    ``likeliest`` is the option that is the likeliest token, None if that is none.
    """
    columns = ["confidence", "renormalised", *OPTIONS]
    found = pd.DataFrame(np.nan, index=range(len(before)), columns=columns)
    likeliest: list[str | None] = [None] * len(before)
    for group in dict.fromkeys(options):
        rows = [i for i, these in enumerate(options) if these == group]
        known = option_ids(engine.tokenizer, group)
        logprobs, first = engine.next_logprobs([before[i] for i in rows], known)
        for i, token in zip(rows, first, strict=True):
            likeliest[i] = group[known.index(token)] if token in known else None
        chosen = [likeliest[i] if decided is None else decided[i] for i in rows]
        index = np.array([-1 if option is None else group.index(option) for option in chosen])
        full, renormalised = decision_confidence(logprobs, index)
        valid = index >= 0
        found.loc[rows, "confidence"], found.loc[rows, "renormalised"] = full, renormalised
        probabilities = np.where(valid[:, None], np.exp(np.minimum(logprobs, 0)), np.nan)
        found.loc[rows, list(OPTIONS[: len(group)])] = probabilities
    return found.assign(likeliest=pd.Series(likeliest, dtype="object"))


# --- foreign reasoning ------------------------------------------------------------------------


def swap_reasoning(
    engine: OpenEngine,
    questions: Sequence[DecisionQuestion],
    decided: pd.DataFrame,
    *,
    shares: Sequence[float] = (1.0,),
    max_completion_tokens: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Give each question the reasoning of another of its dataset that was decided otherwise.

    The donor is drawn among all decisions of the dataset with another answer. With the whole
    reasoning the next token decides; with a part of it (a share of its tokens, from the start) the
    model goes on by itself, greedily, and decides. A share of 0 is its own greedy decision. First
    samples of ``decided`` (:func:`corea.engines.evaluation.read_samples`) count.

    Source: paper B, section 4.2 and Table 3; parts of the reasoning are ours.

    Returns:
        A row per share and question that was decided and has a donor: ``dataset, question_id,
        share, own`` (its decision), ``own_confidence``, ``foreign`` (the donor's), ``donor``,
        ``answer`` (what is decided now, None for no option), ``flipped`` (whether that is the
        donor's), ``confidence`` and ``renormalised`` (of what is decided now).
    """
    from corea.engines.base import Sampling

    for share in shares:
        if not 0 <= share <= 1:
            raise ValueError(f"shares has {share!r}; expected numbers in [0, 1]")
    by_name = {(question.dataset, question.question_id): question for question in questions}
    first = decided[(decided["sample"] == 0) & decided["answer"].notna()].reset_index(drop=True)
    for name in zip(first["dataset"], first["question_id"], strict=True):
        if name not in by_name:
            raise ValueError(f"{name} was decided, but is none of the questions")
    rng = np.random.default_rng(seed)
    pairs = []
    for dataset, rows in first.groupby("dataset", sort=False):
        for row in rows.to_dict("records"):
            others = rows[rows["answer"] != row["answer"]]
            if others.empty:
                continue
            donor = others.iloc[int(rng.integers(len(others)))]
            pairs.append(
                {
                    "dataset": dataset,
                    "question_id": row["question_id"],
                    "own": row["answer"],
                    "own_confidence": row["confidence"],
                    "foreign": donor["answer"],
                    "donor": donor["question_id"],
                    "reasoning": donor["opening"],
                }
            )
    if not pairs:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _SWAPPED.items()})
    swapped = pd.DataFrame(pairs)
    asked = [by_name[pair] for pair in zip(swapped["dataset"], swapped["question_id"], strict=True)]
    prompts = [_prompt(engine, question, reasoning=True) for question in asked]
    tables = []
    for share in shares:
        if share == 1:
            texts = [p + r for p, r in zip(prompts, swapped["reasoning"], strict=True)]
            before = [engine.tokenizer(text)["input_ids"] for text in texts]
            now = _scored(engine, before, [question.options for question in asked])
            now = now.rename(columns={"likeliest": "answer"})
        else:
            begun = [_part(engine, text, share) for text in swapped["reasoning"]]
            now = _decide(
                engine,
                asked,
                [p + r for p, r in zip(prompts, begun, strict=True)],
                Sampling(0.0, max_completion_tokens),
            )
        table = swapped.drop(columns="reasoning").assign(
            share=float(share), **now[["answer", "confidence", "renormalised"]]
        )
        tables.append(table.assign(flipped=table["answer"] == table["foreign"]))
    return pd.concat(tables, ignore_index=True)


def _part(engine: OpenEngine, opening: str, share: float) -> str:
    """The beginning of what is thought: this share of its tokens, none of the closing tag."""
    thought, closing, _ = opening.partition(END_OF_THINKING)
    before, begun, thought = thought.partition(THINK)
    if not closing or not begun or share == 0:
        return ""
    words = thought.strip()
    space = thought[: len(thought) - len(thought.lstrip())]
    ids: list[int] = engine.tokenizer(words, add_special_tokens=False)["input_ids"]
    kept: str = engine.tokenizer.decode(ids[: round(share * len(ids))])
    return before + begun + space + kept
