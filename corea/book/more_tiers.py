"""The chapter on more than two tiers: published models beside each other, and chains of them.

Everything is chosen on one half of the questions and judged on the other, as in
:mod:`corea.book.real_records`. Two kinds of confidence: what models state, and the share of those
already asked who give the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from corea.book.real_records import halves, question_means
from corea.metrics.cascade import query_cost
from corea.metrics.intervals import interval
from corea.metrics.tiers import Policy, Tiers, mixing
from corea.records import RecordsError, select

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """Models on the same n questions: a column a model, by rising mean cost.

    Attributes:
        models: Their names.
        questions: ``dataset`` and ``question_id`` of each row.
        answer: A number for what each answered, the same for the same, shape (n, models); NaN for
            nothing.
        right: 1 where that is right and 0 elsewhere.
        cost: What it cost.
        confidence: What was stated; NaN for nothing.
    """

    models: tuple[str, ...]
    questions: pd.DataFrame
    answer: Floats
    right: Floats
    cost: Floats
    confidence: Floats

    def among(self, models: Iterable[str]) -> Asked:
        """The same of some of the models, in the same order."""
        named = set(models)
        kept = [i for i, name in enumerate(self.models) if name in named]
        wide = {name: getattr(self, name)[:, kept] for name in _WIDE}
        return replace(self, models=tuple(self.models[i] for i in kept), **wide)

    def first_half(self, seed: int) -> NDArray[np.bool_]:
        """Which questions are in the first of the :func:`halves`."""
        first, _ = halves(self.questions, seed)
        return self.questions.index.isin(first.index)


_WIDE = ("answer", "right", "cost", "confidence")


def side_by_side(table: pd.DataFrame, dataset: str, systems: Sequence[str] | None = None) -> Asked:
    """Systems on a dataset beside each other: by default all that answered every question.

    ``table`` has a column ``cost``, and one sample a question.

    Raises:
        RecordsError: If a system that was named lacks a question.
    """
    rows = select(table, dataset=dataset)
    answered = rows.groupby("system", sort=False)["question_id"].nunique()
    complete = answered.index[answered == rows["question_id"].nunique()]
    if lacking := [name for name in systems or () if name not in complete]:
        raise RecordsError(dataset, [f"{lacking} were not asked every question, or not at all"])
    rows = rows[rows["system"].isin(complete if systems is None else systems)]
    codes, _ = pd.factorize(rows["answer"])
    rows = rows.assign(answer=np.where(codes < 0, np.nan, codes), right=rows["correct"])
    wide = rows.pivot(index="question_id", columns="system", values=list(_WIDE))
    order = wide["cost"].mean().sort_values(kind="stable").index
    questions = wide.index.to_frame(index=False).assign(dataset=dataset)
    arrays = {name: wide[name][order].to_numpy(dtype=np.float64) for name in _WIDE}
    return Asked(tuple(order), questions, **arrays)


def with_costs(
    table: pd.DataFrame, billions: Mapping[str, float], output_price: float = 4.0
) -> pd.DataFrame:
    """Records of the systems whose parameters are known, with the ``cost`` of each.

    In input tokens of a model of a billion parameters (:func:`corea.metrics.cascade.query_cost`).
    """
    rows = table[table["system"].isin([name for name, size in billions.items() if size > 0])]
    paid = query_cost(rows["prompt_tokens"], rows["completion_tokens"], output_price=output_price)
    return rows.assign(cost=paid * rows["system"].map(billions).to_numpy(dtype=float))


def chain(asked: Asked, models: Sequence[str], others: Sequence[str] = ()) -> Tiers:
    """A chain of models that state a confidence; or whose confidence is agreement, with ``others``.

    The others are asked and paid with the first. The confidence of each tier is then the share of
    all who were asked before it that give its answer, so that those behind the first pay nobody
    for it.
    """
    at = [asked.models.index(name) for name in (*others, *models)]
    beside, own = at[: len(others)], at[len(others) :]
    names = (" + ".join([models[0], *others]), *models[1:])
    if not others:
        return Tiers(names, asked.right[:, own], asked.cost[:, own], asked.confidence[:, own])
    cost = asked.cost[:, own]
    cost[:, 0] += asked.cost[:, beside].sum(axis=1)
    given = asked.answer[:, at]
    agreed = [(given[:, :i] == given[:, [i]]).mean(axis=1) for i in range(len(others), len(at))]
    return Tiers(names, asked.right[:, own], cost, np.transpose(agreed))


def chains(asked: Asked, n_tiers: int, max_others: int = 0) -> Iterator[Tiers]:
    """All chains of so many models that rise in cost, and who may be asked beside the first.

    With ``max_others`` confidence is agreement: from one to so many of those that are cheaper than
    the last tier and not in the chain are asked beside the first.
    """
    for names in combinations(asked.models, n_tiers):
        cheaper = asked.models[: asked.models.index(names[-1])]
        beside = [name for name in cheaper if name not in names]
        for size in range(min(1, max_others), max_others + 1):
            for others in combinations(beside, size):
                yield chain(asked, names, others)


def over_envelope(
    policies: Sequence[Policy],
    pairs: Sequence[Policy],
    asked: Asked,
    first: NDArray[np.bool_],
    budgets: Floats,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""What policies get right beyond an envelope of pairs that costs the same.

    Both are envelopes of the ``first`` questions (:func:`corea.metrics.tiers.best_policies`), where
    each is mixed so as to spend each budget. On the other questions they spend a little more or
    less, which is set off by what money buys on the envelope of pairs:

    .. math:: (a - a_\mathrm{pairs}) - \frac{da_\mathrm{pairs}}{dc}\,(c - c_\mathrm{pairs})

    A row a budget, and a last one for their mean, whose ``budget`` is missing: ``cost``, of the
    policies, and with intervals by question ``pass@1`` and ``gain``, exactly 0 where both are the
    same policies.
    """
    on_first = [[p.on(first).outcome().mean() for p in family] for family in (policies, pairs)]
    costs, pair_costs = ([float(mean["cost"]) for mean in means] for means in on_first)
    mix, pair_mix = mixing(costs, budgets), mixing(pair_costs, budgets)
    segment = np.searchsorted(pair_costs, budgets, side="right") - 1
    rises = np.diff([float(mean["value"]) for mean in on_first[1]]) / np.diff(pair_costs)
    slope = np.append(rises, 0.0)[segment]
    rows = asked.questions[~first]
    mean = question_means(rows, n_resamples, seed)

    def expected(family: Sequence[Policy], weights: Floats, name: str) -> Floats:
        each = [p.on(~first).outcome()[name].to_numpy(dtype=float) for p in family]
        under = [mean(pd.Series(values)) for values in weights @ np.array(each)]
        return np.transpose([*under, np.mean(under, axis=0)])

    value, cost = (expected(policies, mix, name) for name in ("value", "cost"))
    less, paid = (expected(pairs, pair_mix, name) for name in ("value", "cost"))
    dearer = slope * (cost - paid)[:, :-1]
    gain = value - less - np.column_stack([dearer, dearer.mean(axis=1)])
    n = len(rows)
    return pd.DataFrame(
        {
            "budget": budget,
            "cost": float(cost[0, i]),
            "pass@1": interval([value[:, i]], n_questions=n, bounds=(0.0, 1.0)),
            "gain": interval([gain[:, i]], n_questions=n, bounds=(-1.0, 1.0), by_rule=True),
        }
        for i, budget in enumerate([*budgets, np.nan])
    )
