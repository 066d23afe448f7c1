"""Confidence signals: what a system's confidence is read from.

A signal takes records (or what made them) and gives records with a confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from corea.records import KEY, RecordsError, select


def agreement(table: pd.DataFrame, systems: Sequence[str], *, name: str) -> pd.DataFrame:
    r"""Plurality vote of several systems; the share of votes is its confidence.

    .. math:: \hat a = \arg\max_a \sum_i [a_i = a], \qquad c = \frac{1}{m}\sum_i [a_i = \hat a]

    A system without an answer votes for nothing but counts in :math:`m`. Ties go to
    the answer of the system named first. Tokens are summed, since every system is asked.

    Source: cascades on ensemble agreement, as Yue et al. (arXiv 2310.03094) do with
    samples of one model.

    Args:
        table: Records with ``answer`` and ``gold`` for all systems on the same questions.
        systems: At least two systems; the order breaks ties.
        name: Name of the new system.

    Returns:
        Records of the new system, one per (dataset, question_id, sample).

    Raises:
        ValueError: If fewer than two systems are named, or one has no records.
        RecordsError: If the systems were not asked the same questions, or the table
            lacks answers.

    Example:
        >>> votes = pd.DataFrame({"dataset": "d", "question_id": "1", "system": list("abc"),
        ...     "sample": 0, "correct": [False, True, True], "confidence": np.nan,
        ...     "answer": ["A", "B", "B"], "gold": "B"})
        >>> vote = agreement(votes, ["a", "b", "c"], name="vote").iloc[0]
        >>> vote["answer"], bool(vote["correct"]), round(float(vote["confidence"]), 3)
        ('B', True, 0.667)
    """
    if len(set(systems)) < 2 or len(set(systems)) != len(systems):
        raise ValueError(f"agreement needs two or more different systems, got {list(systems)}")
    if missing := [c for c in ("answer", "gold") if c not in table.columns]:
        raise RecordsError(name, [f"agreement needs the column(s) {', '.join(missing)}"])
    key = [column for column in KEY if column != "system"]
    members = [select(table, system=system).set_index(key) for system in systems]
    first = members[0]
    for system, member in zip(systems, members, strict=True):
        if not member.index.sort_values().equals(first.index.sort_values()):
            raise RecordsError(
                name, [f"{system!r} and {systems[0]!r} were not asked the same questions"]
            )
    members = [member.loc[first.index] for member in members]
    answers = pd.concat([member["answer"] for member in members], axis=1, ignore_index=True)
    codes, _ = pd.factorize(answers.to_numpy().ravel())  # -1: no answer
    codes = codes.reshape(answers.shape)
    votes = (codes[:, :, None] == codes[:, None, :]).sum(axis=2) * (codes >= 0)
    winner = votes.argmax(axis=1)  # the first among equals
    rows = np.arange(len(first))
    result = first.drop(columns="system").reset_index()
    result.insert(2, "system", name)
    result["answer"] = answers.to_numpy()[rows, winner]
    result["correct"] = (result["answer"] == result["gold"]).to_numpy(dtype=bool)
    result["confidence"] = votes[rows, winner] / len(systems)
    for tokens in ("prompt_tokens", "completion_tokens"):
        if tokens in result:
            result[tokens] = sum(member[tokens].array for member in members)
    return result
