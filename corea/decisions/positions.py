r"""How far a decision follows the place of an option in the list, and what averaging makes of it.

A model that cannot tell the options apart still prefers some letter. So a question is asked with
its choices in several orders, each one a rotation (:meth:`DecisionQuestion.rotated
<corea.tasks.decision_questions.DecisionQuestion.rotated>`): the text with letter A goes to the
end, and letters stay where they are. Over all K rotations each text has each letter once, and
whatever differs between letters is the model's.

Source: Zheng et al. (2024), arXiv 2309.03882, who average over permutations of the options; the
measures here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from corea.decisions.evaluation import OPTIONS
from corea.tasks.decision_questions import LETTERS, PLACES, DecisionQuestion

_QUESTION = ["dataset", "question_id"]


def in_order(questions: Sequence[DecisionQuestion], order: int) -> list[DecisionQuestion]:
    """Questions in an order of their choices, from 0; those that have no such order left out.

    A question of K choices has K orders; a message that is judged in words has none.

    Example:
        >>> question = DecisionQuestion("csqa", "1", "Which is blue?", "A", ("sky", "grass"))
        >>> [len(in_order([question], order)) for order in range(3)]
        [1, 1, 0]
    """
    return [q.rotated(order) for q in questions if order < len(q.choices)]


def letter_shares(samples: pd.DataFrame) -> pd.DataFrame:
    r"""How often each letter is decided for, and how often that is right.

    Of each dataset, a row a letter: ``n`` decisions, the share that fall on the letter
    (``decided``), the share of questions whose right option it is (``gold``), and the share of
    these that are decided right (``right``, missing where there are none). ``distance`` is the
    total variation between the two shares, :math:`\frac12 \sum_c |d_c - g_c|`, the same in all
    rows of a dataset: 0 where letters are decided for as often as they are right.

    Args:
        samples: Decisions with ``dataset``, ``answer`` and ``gold``, letters; those without an
            answer count as wrong, and fall on none.

    Example:
        >>> samples = pd.DataFrame({"dataset": "csqa", "answer": ["A", "A"], "gold": ["A", "B"]})
        >>> letter_shares(samples)[["letter", "decided", "right", "distance"]].values.tolist()
        [['A', 1.0, 1.0, 0.5], ['B', 0.0, 0.0, 0.5]]
    """
    rows = []
    for dataset, own in samples.groupby("dataset", sort=False):
        used = {*own["gold"], *own["answer"].dropna()}
        if unknown := used - set(LETTERS):
            raise ValueError(f"{dataset}: {min(unknown)!r} is decided for; expected letters")
        letters = LETTERS[: max(PLACES[letter] for letter in used) + 1]
        decided = [float((own["answer"] == letter).mean()) for letter in letters]
        gold = [float((own["gold"] == letter).mean()) for letter in letters]
        distance = sum(abs(d - g) for d, g in zip(decided, gold, strict=True)) / 2
        for letter, d, g in zip(letters, decided, gold, strict=True):
            right = (own["answer"] == letter)[own["gold"] == letter].mean()
            rows.append((dataset, letter, len(own), d, g, right, distance))
    columns = ["dataset", "letter", "n", "decided", "gold", "right", "distance"]
    return pd.DataFrame(rows, columns=columns)


def averaged(samples: pd.DataFrame) -> pd.DataFrame:
    """Decisions by the mean, over the orders, of each option's probability among the options.

    Args:
        samples: Decisions among options, one of a question and order, with ``order`` (from 0) and
            the probabilities ``p_1``, ... in it.

    Returns:
        The rows of order 0 with ``answer``, ``correct``, ``confidence`` (the mean probability of
        what is decided for) and ``orders`` (how many were asked); of equals the first option.

    Raises:
        ValueError: If an order of a question is there twice, or order 0 is not.
    """
    if (twice := samples.duplicated([*_QUESTION, "order"])).any():
        raise ValueError(f"{_named(samples[twice])} is there twice in an order; expected once")
    p = samples[list(OPTIONS)].to_numpy(dtype=float)
    n_options = (~np.isnan(p)).sum(axis=1)
    p = np.nan_to_num(p / np.nansum(p, axis=1, keepdims=True))
    # the option at place j of an order is that at place j + order of the first
    places = (np.arange(len(OPTIONS)) + samples["order"].to_numpy()[:, None]) % n_options[:, None]
    inside = np.arange(len(OPTIONS)) < n_options[:, None]
    moved = np.zeros_like(p)
    row, column = np.nonzero(inside)
    moved[row, places[row, column]] = p[row, column]
    keys = [samples[name] for name in _QUESTION]
    mean = pd.DataFrame(moved, index=samples.index).groupby(keys, sort=False).mean()
    count = samples.groupby(_QUESTION, sort=False)["order"].size()
    first = samples[samples["order"] == 0].set_index(_QUESTION)
    if (lacking := count.index.difference(first.index)).size:
        raise ValueError(f"{lacking[0]} is not there in order 0; expected all orders from it on")
    mean, count = mean.loc[first.index], count.loc[first.index]
    decided = mean.to_numpy().argmax(axis=1)
    answer = pd.Series([LETTERS[k] for k in decided], first.index)
    return first.assign(
        answer=answer,
        correct=answer == first["gold"],
        confidence=mean.to_numpy().max(axis=1),
        orders=count,
    ).reset_index()


def _named(rows: pd.DataFrame) -> str:
    return " ".join(str(rows[name].iloc[0]) for name in _QUESTION)
