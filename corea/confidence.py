r"""Confidence signals: what a system's confidence is read from.

Verbalized confidence is what a completion states (:mod:`corea.tasks.parsing`). The others are
columns of records beside it, and :func:`with_signal` makes one of them the confidence. Choices of
our own, where paper A leaves them open:

1. Average token probability is over *all* tokens of the response: reasoning, answer, the
   confidence statement where there is one, and the closing token, since all of them were sampled.
2. It is the mean of probabilities, not the exponential of the mean log-probability, and of the
   model's own distribution (temperature 1), whatever temperature sampled the response.
3. Expected verbalized confidence is ours, not the paper's. It mends what the paper names as its
   first limitation, that stated confidences take a few values only: it is the mean of all that
   the model might have stated at that place, weighted by its own probabilities, and continuous.
   The candidates are a fixed grid of texts, each with its closing brace, so that ``1}`` and
   ``1.0}`` are different events and no probability is counted twice. What the model would have
   written otherwise is left out, by dividing by the probability the grid covers; that is
   returned too, and a low one says that the grid is the wrong one for the model.
4. It is read where the confidence is stated, by the rules of :mod:`corea.tasks.parsing`: after the
   last ``\confidence{`` that follows the last box. What is stated there need not be readable;
   a completion cut off inside the braces has an expected confidence too. Without that opening
   there is none.
5. For it the model also reads the other texts of the grid, about three tokens each, behind what it
   has read already. Records do not count them as cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea.records import KEY, RecordsError, read_confidences, select

CONFIDENCE_GRID = tuple(f"{tenths / 10:.1f}" for tenths in range(11))
"""The texts ``0.0``, ``0.1``, ... ``1.0``."""

_ROUNDING = 1e-4  # by which a probability computed in low precision may exceed 1


def average_probability(logprobs: ArrayLike) -> float:
    r"""Mean probability of the tokens of one response.

    .. math:: \bar p = \frac{1}{T} \sum_{t=1}^{T} \exp \log p(y_t \mid x, y_{<t})

    Source: paper A, section 4.2 (RLVR-SLM-AvgProb); choices 1 and 2 of this module.

    Args:
        logprobs: Natural logarithms, at most 0, shape (T,), T from 0.

    Returns:
        The mean, in [0, 1]; NaN for a response without tokens.

    Raises:
        ValueError: If the shape is another, or a value is positive or missing.

    Example:
        >>> average_probability(np.log([0.5, 1.0]))
        0.75
    """
    logprobs = np.asarray(logprobs, dtype=np.float64)
    if logprobs.ndim != 1:
        raise ValueError(f"logprobs has shape {logprobs.shape}; expected (T,), one response")
    if not (logprobs <= _ROUNDING).all():
        first = int(np.argmin(logprobs <= _ROUNDING))
        raise ValueError(f"logprobs[{first}] is {logprobs[first]}; expected a number up to 0")
    return float(np.exp(np.minimum(logprobs, 0)).mean()) if logprobs.size else float("nan")


def expectation_on_grid(
    logprobs: ArrayLike, values: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Expected value of what a model might have written, and how much of that was looked at.

    .. math:: \mathbb{E}[c] = \frac{\sum_k v_k p_k}{\sum_k p_k}, \qquad m = \sum_k p_k

    Source: choice 3 of this module.

    Args:
        logprobs: :math:`\log p_k`, of each candidate text, shape (n, K); a row of NaN where
            nothing was stated.
        values: :math:`v_k`, the number each candidate says, in [0, 1], shape (K,).

    Returns:
        The expected values in [0, 1] and the masses :math:`m` in [0, 1], each of shape (n,);
        both NaN where the row is. Where every candidate has the probability 0 the expected
        value is NaN and the mass 0.

    Raises:
        ValueError: If the shapes do not fit, a value is outside [0, 1] or a log-probability
            positive.

    Example:
        >>> expected, mass = expectation_on_grid(np.log([[0.2, 0.6]]), [0.5, 0.9])
        >>> round(float(expected[0]), 3), round(float(mass[0]), 3)
        (0.8, 0.8)
    """
    logprobs = np.asarray(logprobs, dtype=np.float64)
    values = np.asarray(values, dtype=np.float64)
    if logprobs.ndim != 2 or values.shape != logprobs.shape[1:] or not values.size:
        raise ValueError(
            f"logprobs has shape {logprobs.shape} and values {values.shape}; expected (n, K) "
            "and (K,), K from 1"
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"values are {values.tolist()}; expected numbers in [0, 1]")
    if (logprobs > _ROUNDING).any():
        raise ValueError(f"logprobs: found {np.nanmax(logprobs)}, expected numbers up to 0")
    mass = np.exp(logprobs).sum(axis=1)
    highest = np.max(logprobs, axis=1, keepdims=True)  # so that the smallest do not become 0
    shares = np.exp(logprobs - np.where(np.isneginf(highest), 0, highest))
    total = shares.sum(axis=1)
    expected = np.divide(shares @ values, total, out=np.full_like(mass, np.nan), where=total > 0)
    return np.clip(expected, values.min(), values.max()), np.minimum(mass, 1)


def with_signal(table: pd.DataFrame, column: str, system: str) -> pd.DataFrame:
    """Records of the same completions whose confidence is another signal.

    Raises:
        ValueError: If the records are of several systems.
        RecordsError: If the column is not there, or holds what is no confidence.

    Example:
        >>> records = pd.DataFrame({"dataset": "d", "question_id": ["1"], "system": "L1-SLM",
        ...     "sample": 0, "correct": [True], "confidence": [1.0], "expected_confidence": [0.8]})
        >>> other = with_signal(records, "expected_confidence", "COREA, expected")
        >>> other[["system", "confidence"]].to_dict("records")
        [{'system': 'COREA, expected', 'confidence': 0.8}]
    """
    if len(systems := table["system"].unique()) != 1:
        raise ValueError(f"the records are of {list(systems)}; expected those of one system")
    if column not in table.columns:
        found = ", ".join(map(str, table.columns))
        raise RecordsError(system, [f"no column {column}; there are {found}"])
    if pd.api.types.is_string_dtype(table[column]):  # as it stands in a text file
        table = table.assign(**{column: read_confidences(table[column], column, source=system)})
    if not pd.api.types.is_float_dtype(table[column]):
        raise RecordsError(
            system, [f"field {column}: found type {table[column].dtype}, expected float"]
        )
    signal = table[column].to_numpy(dtype=np.float64, na_value=np.nan)
    outside = (signal < 0) | (signal > 1)
    if outside.any():
        problems = [
            f"row {i + 1}, field {column}: found {signal[i]}, expected a number in [0, 1], or "
            "nothing"
            for i in np.flatnonzero(outside)
        ]
        raise RecordsError(system, problems)
    return table.assign(system=system, confidence=signal)


def agreement(table: pd.DataFrame, systems: Sequence[str], *, name: str) -> pd.DataFrame:
    r"""Plurality vote of several systems; the share of votes is its confidence.

    .. math:: \hat a = \arg\max_a \sum_i [a_i = a], \qquad c = \frac{1}{m}\sum_i [a_i = \hat a]

    A system without an answer votes for nothing but counts in :math:`m`. Ties go to
    the answer of the system named first. Tokens are summed, since every system is asked.

    Source: cascades on ensemble agreement, as Yue et al. (arXiv 2310.03094) do with
    samples of one model.

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
    if "gold" not in table:
        raise RecordsError(name, ["agreement needs the column gold"])
    members = _members(table, systems, name)
    first = members[0]
    answers = pd.concat([member["answer"] for member in members], axis=1, ignore_index=True)
    codes, _ = pd.factorize(answers.to_numpy().ravel())  # -1: no answer
    codes = codes.reshape(answers.shape)
    votes = (codes[:, :, None] == codes[:, None, :]).sum(axis=2) * (codes >= 0)
    winner = votes.argmax(axis=1)  # the first among equals
    rows = np.arange(len(first))
    result = first.reset_index()
    result.insert(2, "system", name)
    result["answer"] = answers.to_numpy()[rows, winner]
    result["correct"] = (result["answer"] == result["gold"]).to_numpy(dtype=bool)
    result["confidence"] = votes[rows, winner] / len(systems)
    for tokens in ("prompt_tokens", "completion_tokens"):
        if tokens in result:
            result[tokens] = sum(member[tokens].array for member in members)
    return result


def support(table: pd.DataFrame, system: str, others: Sequence[str], *, name: str) -> pd.DataFrame:
    r"""A system's own answers, with the share of other systems that give the same as confidence.

    .. math:: c = \frac{1}{m}\sum_{j=1}^{m} [a_j = a]

    of the m ``others``; where the system has no answer :math:`c = 0`. Unlike :func:`agreement`, the
    others never change the answer. Token counts are the system's own: the others have to be paid
    for as well.

    Source: ours; agreement between models in the place of paper A's stated confidence.

    Example:
        >>> answers = pd.DataFrame({"dataset": "d", "question_id": "1", "system": list("abc"),
        ...     "sample": 0, "correct": [False, True, False], "confidence": np.nan,
        ...     "answer": ["A", "B", "A"]})
        >>> float(support(answers, "a", ["b", "c"], name="a, supported")["confidence"].iloc[0])
        0.5
    """
    if not others or len({system, *others}) <= len(others):
        raise ValueError(f"others are {list(others)}; expected different systems beside {system!r}")
    first, *members = _members(table, [system, *others], name)
    own = first["answer"]
    same = [(member["answer"] == own) & own.notna() for member in members]
    result = first.reset_index()
    result.insert(2, "system", name)
    return result.assign(confidence=np.mean(same, axis=0))


def _members(table: pd.DataFrame, systems: Sequence[str], name: str) -> list[pd.DataFrame]:
    """Each system's records by question, in the order of the first's."""
    if "answer" not in table:
        raise RecordsError(name, ["agreement needs the column answer"])
    key = [column for column in KEY if column != "system"]
    members = [select(table, system=system).set_index(key) for system in systems]
    first = members[0].index
    for system, member in zip(systems, members, strict=True):
        if not member.index.sort_values().equals(first.sort_values()):
            raise RecordsError(
                name, [f"{system!r} and {systems[0]!r} were not asked the same questions"]
            )
    return [member.loc[first].drop(columns="system") for member in members]
