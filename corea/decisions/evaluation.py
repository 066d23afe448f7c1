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
   other token instead, as rollouts in training are (``"sampled"``).
3. A completion without a valid decision is wrong, has no answer and no confidence.
4. A model that was not trained to decide may write something else, or never end its reasoning.
   ``"options"`` asks which option it holds for likeliest all the same, at the place where a
   decision belongs; ``confidence`` is then ``renormalised``, its probability among the options,
   which is at least 1/K. Without reasoning that is behind the prompt, and nothing is generated.
   With reasoning it is behind what the model wrote up to its first ``</think>``, or all it wrote
   if it never closed its reasoning, be it ended or cut; then a line break, ``</think>`` and
   another line break are put there. So every question is decided, and a note says how many
   completions had to be closed.
5. Foreign reasoning is put behind the question as text, up to the line on which the decision
   stands, or a part of it that the model then goes on from, greedily.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from corea import checks
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

DECIDING = ("greedy", "sampled", "options")
"""How decisions are made: choices 2 and 4."""

_SWAPPED = {
    **dict.fromkeys(("dataset", "question_id", "own", "foreign", "donor", "answer"), "str"),
    **dict.fromkeys(("own_confidence", "share", "confidence", "renormalised"), "float64"),
    "flipped": "bool",
}
_WHOLE = {"finished": True, "error": ""}
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
        decisions: One of :data:`DECIDING`.
        part_size: Questions of a part; when None, as many as fill one batch of the engine.

    Returns:
        Records with the columns of choice 1 and ``level``; a note says how many completions had
        no valid decision, or how many had to be closed.
    """
    checks.one_of(decisions, "decisions", DECIDING)
    require_names([(question.dataset, question.question_id) for question in questions])
    for options in dict.fromkeys(question.options for question in questions):
        option_ids(engine.tokenizer, options)
    marker = "" if decisions == "sampled" else END_OF_THINKING
    sampling = dataclasses.replace(sampling, greedy_after=marker)

    def answer(part: Sequence[DecisionQuestion], _: Samples | None) -> Answers:
        prompts = [_prompt(engine, question, reasoning=reasoning) for question in part]
        if decisions == "options":
            rows = _among_options(engine, part, prompts, sampling, reasoning=reasoning)
        else:
            rows = _decide(engine, part, prompts, sampling)
        return rows.assign(system=system), None

    request = {
        "system": system,
        "model": engine.fingerprint,
        "sampling": dataclasses.asdict(sampling),
        "reasoning": reasoning,
        "decisions": decisions,
    }
    size = max(1, engine.batch_size // sampling.n_samples) if part_size is None else part_size
    notes = ask_in_parts(questions, answer, request, directory, size)
    samples = read_samples(directory)
    if missing := int(samples["answer"].isna().sum()):
        notes.append(f"{missing:,} completion(s) have no valid decision and count as wrong")
    if closed := n_closed(samples) if decisions == "options" and reasoning else 0:
        notes.append(
            f"{closed:,} completion(s) did not close their reasoning and were decided behind it"
        )
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
                _row(question, sample, prompt, decided)
                | {
                    "prompt_tokens": rollout.prompt_tokens,
                    "completion_tokens": rollout.completion_tokens,
                    "opening": "" if place is None else tokenizer.decode(ids[:place]),
                    "completion": rollout.completion,
                    "finished": rollout.finished,
                    "error": rollout.error,
                }
            )
    scored = _scored(engine, before, options, chosen).drop(columns="likeliest")
    return pd.concat([pd.DataFrame(rows), scored], axis=1)


def _row(
    question: DecisionQuestion, sample: int, prompt: str, decided: str | None
) -> dict[str, Any]:
    """What a row says of its question."""
    return {
        "dataset": question.dataset,
        "question_id": question.question_id,
        "sample": sample,
        "correct": decided == question.gold,
        "answer": decided,
        "gold": question.gold,
        "level": float("nan") if question.level is None else float(question.level),
        "prompt": prompt,
        "kind": "choice",
        "undecided": False,
    }


def _among_options(
    engine: OpenEngine,
    questions: Sequence[DecisionQuestion],
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    reasoning: bool,
) -> pd.DataFrame:
    """One row per question and sample, each decided for the likeliest option (choice 4)."""
    tokenizer, n = engine.tokenizer, sampling.n_samples
    rollouts = engine.plain().generate(prompts, sampling) if reasoning else [[]] * len(prompts)
    require_rollouts(rollouts, [n if reasoning else 0] * len(prompts))
    rows: list[dict[str, Any]] = []
    before: list[list[int]] = []
    for question, prompt, group in zip(questions, prompts, rollouts, strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        for sample in range(n):
            # without reasoning the decision is the one token that it would write
            row = {"opening": "", "completion": "", "completion_tokens": 1} | _WHOLE
            if reasoning:
                rollout = group[sample]
                thought = rollout.completion.partition(END_OF_THINKING)[0].rstrip()
                row = {
                    "opening": f"{thought}\n{END_OF_THINKING}\n",
                    "completion": rollout.completion,
                    "completion_tokens": rollout.completion_tokens,
                    "finished": rollout.finished,
                    "error": rollout.error,
                }
            row["prompt_tokens"] = len(prompt_ids)
            rows.append(_row(question, sample, prompt, None) | row)
            opening = tokenizer([row["opening"]], add_special_tokens=False)["input_ids"][0]
            before.append(prompt_ids + opening)
    asked = [question.options for question in questions for _ in range(n)]
    scored = _scored(engine, before, asked, among=True)
    table = pd.concat([pd.DataFrame(rows).drop(columns=["answer", "correct"]), scored], axis=1)
    table = table.rename(columns={"likeliest": "answer"})
    return table.assign(confidence=table["renormalised"], correct=table["answer"] == table["gold"])


def n_closed(samples: pd.DataFrame) -> int:
    """How many completions did not close their reasoning."""
    return int((~samples["completion"].str.contains(END_OF_THINKING, regex=False)).sum())


def _scored(
    engine: OpenEngine,
    before: Sequence[Sequence[int]],
    options: Sequence[tuple[str, ...]],
    decided: Sequence[str | None] | None = None,
    *,
    among: bool = False,
) -> pd.DataFrame:
    """Probabilities at the decision behind these ids: the one given, else the likeliest token.

    ``likeliest`` is the option that is the likeliest token, None if that is none; with ``among``
    the likeliest option.
    """
    columns = ["confidence", "renormalised", *OPTIONS]
    found = pd.DataFrame(np.nan, index=range(len(before)), columns=columns)
    likeliest: list[str | None] = [None] * len(before)
    for group in dict.fromkeys(options):
        rows = [i for i, these in enumerate(options) if these == group]
        known = option_ids(engine.tokenizer, group)
        logprobs, first = engine.next_logprobs([before[i] for i in rows], known)
        if among:
            first = np.asarray(known)[logprobs.argmax(axis=1)]
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
