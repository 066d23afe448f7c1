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
from corea.metrics.cascade import deferral_curve, pareto_front, query_cost
from corea.metrics.intervals import Interval, interval
from corea.metrics.tiers import (
    Policy,
    Tiers,
    abstaining,
    average_improvement_in_quality,
    average_performance_gap_recovered,
    best_policies,
    cost_save,
    gap_to_oracle,
    mixing,
    together,
)
from corea.records import RecordsError, select

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """Models on the same n questions: a column a model, by rising mean cost.

    Attributes:
        models: Their names.
        questions: ``dataset``, ``question_id`` and, where it was counted, ``prompt_tokens``.
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
    order = pd.Series(wide["cost"].mean()).sort_values(kind="stable").index
    facts = [name for name in ("dataset", "prompt_tokens") if name in rows]
    questions = rows.drop_duplicates("question_id").set_index("question_id")
    questions = questions.loc[wide.index, facts].reset_index()
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


def families(
    asked: Asked, first: NDArray[np.bool_], max_others: int = 0
) -> dict[str, list[Policy]]:
    """Envelopes of the first half, of families of policies: single models and ... each.

    ``pairs``, ``three tiers``, ``whole chain`` (of all models that no cheaper one matches),
    ``skipping`` (three tiers of which the second may be left out), ``router`` (pairs behind a
    router that goes by the length of the prompt, where it was counted), ``everything``.

    Without ``max_others`` the models up to the most accurate one are tried, in the order of their
    cost; where confidence is agreement, which more can be asked for, only those that no cheaper one
    matches.
    """
    whole = _unmatched(asked, first)
    best = int(asked.right[first].mean(axis=0).argmax())
    pool = whole if max_others else asked.among(asked.models[: best + 1])
    n_whole = len(whole.models) - (max_others > 0)
    of = {
        "pairs": list(chains(pool, 2, max_others)),
        "three tiers": list(chains(pool, 3, max_others)),
        "whole chain": list(chains(whole, n_whole, min(1, max_others))),
    }
    of["skipping"] = [tiers.bypassing() for tiers in of["three tiers"]]
    if "prompt_tokens" in asked.questions:
        length = asked.questions["prompt_tokens"].astype(float).rank(pct=True)
        length = (4 * length).round() / 4
        of["router"] = [tiers.routed(1 - length) for tiers in of["pairs"]]
    single = best_policies(chains(pool, 1), first)
    found = {"single models": single}
    for name, choices in of.items():
        known = found["pairs"] if name == "router" else single
        found[name] = together([*known, *best_policies(choices, first)], first)
    found["everything"] = together([p for family in found.values() for p in family], first)
    return found


def _unmatched(asked: Asked, first: NDArray[np.bool_]) -> Asked:
    """The models that no cheaper one matches on the first half."""
    means = asked.cost[first].mean(axis=0), asked.right[first].mean(axis=0)
    return asked.among(np.array(asked.models)[pareto_front(*means)])


def abstentions(
    asked: Asked, first: NDArray[np.bool_], max_others: int = 0, wrong: float = 1.0
) -> dict[str, list[Policy]]:
    """Envelopes of pairs that must answer, and of those that may abstain: at the end, or early.

    A right answer is worth 1, none 0, a wrong one ``-wrong``.
    """
    pool = _unmatched(asked, first) if max_others else asked
    choices = [tiers.scored(wrong) for tiers in (*chains(pool, 1), *chains(pool, 2, max_others))]
    late = [abstaining(tiers) for tiers in choices if len(tiers.names) > 1]
    found = {"must answer": best_policies(choices, first)}
    for name, more in (("at the end", late), ("early too", [t.bypassing() for t in late])):
        found[name] = together([*found["must answer"], *best_policies(more, first)], first)
    return found


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
    costs = [p.means(first)[0] for p in policies]
    pair_costs, pair_values = np.transpose([p.means(first) for p in pairs])
    mix, pair_mix = mixing(costs, budgets), mixing(pair_costs, budgets)
    segment = np.searchsorted(pair_costs, budgets, side="right") - 1
    slope = np.append(np.diff(pair_values) / np.diff(pair_costs), 0.0)[segment]
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
    gain = gain.round(12)  # equal sums differ by rounding
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


def compared(
    found: Mapping[str, list[Policy]],
    asked: Asked,
    first: NDArray[np.bool_],
    shares: Sequence[float],
    *,
    against: str = "pairs",
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """:func:`over_envelope` of every family but the one they are compared with.

    Budgets are ``shares`` of what the most accurate model of the first half costs; those for which
    not every family has something are left out. Columns ``family`` and those of it, ``budget`` and
    ``cost`` as shares.
    """
    dear = _dear(asked, first)
    least = max(family[0].means(first)[0] for family in found.values())
    budgets = np.array([share * dear for share in shares if share * dear >= least])
    if not budgets.size:
        raise ValueError(f"no budget of {list(shares)} is from {least / dear:.2f}, the least")
    options = {"n_resamples": n_resamples, "seed": seed}
    parts = [
        over_envelope(family, found[against], asked, first, budgets, **options).assign(family=name)
        for name, family in found.items()
        if name != against
    ]
    table = pd.concat(parts, ignore_index=True)
    budget = (table["budget"] / dear).round(12)  # the shares again
    return table.assign(budget=budget, cost=table["cost"] / dear)


def lines(
    found: Mapping[str, list[Policy]], asked: Asked, first: NDArray[np.bool_]
) -> dict[str, pd.DataFrame]:
    """What the policies of each family cost and get right on the second half, by name."""
    dear = _dear(asked, first)
    return {
        name: pd.DataFrame(
            [policy.means(~first) for policy in family], columns=["cost", "pass_at_1"]
        )
        / [dear, 1]
        for name, family in found.items()
    }


def _dear(asked: Asked, first: NDArray[np.bool_]) -> float:
    """Mean cost on the first half of the model that is most accurate there."""
    return float(asked.cost[first].mean(axis=0)[asked.right[first].mean(axis=0).argmax()])


def reported(
    policies: Sequence[Policy], asked: Asked, first: NDArray[np.bool_]
) -> dict[str, float]:
    """What other benchmarks report of policies, on the questions that they were not chosen on.

    ``AIQ`` from the cheapest policy to the best single model of the first half; ``CostSave``
    against that model; ``Gap@O`` of the most accurate policy, against all models. And ``APGR`` of
    the two tiers whose accuracies lie farthest apart, at all of their thresholds.
    """
    best = int(asked.right[first].mean(axis=0).argmax())
    dear, right = asked.cost[~first, best].mean(), asked.right[~first, best].mean()
    cost, value = np.transpose([policy.means(~first) for policy in policies])
    gap = np.nan
    two = [p.tiers.of(~first) for p in policies if len(p.tiers.names) == 2]
    if two:
        apart = [tiers.value.mean(axis=0) @ [-1, 1] for tiers in two]
        widest = two[int(np.argmax(apart))]
        curve = deferral_curve(
            np.nan_to_num(widest.confidence[:, 0]), *widest.value.T, *widest.cost.T
        )
        gap = average_performance_gap_recovered(curve)
    return {
        "AIQ": average_improvement_in_quality(cost, value, cost.min(), dear),
        "Gap@O": gap_to_oracle(policies[-1].on(~first).outcome()["value"], asked.right[~first]),
        "CostSave": cost_save(cost, value, single_cost=dear, single_pass_at_1=right),
        "APGR": gap,
    }


def shared_errors(
    paired: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """How often a large model is wrong, and how often where a small one is; by question.

    ``paired`` has ``small_correct`` and ``large_correct`` (:func:`corea.records.pair`). Were errors
    independent, both would be the same.
    """
    small, large = (1 - paired[f"{side}_correct"].astype(float) for side in ("small", "large"))
    mean = question_means(paired, n_resamples, seed)
    values = {
        "small wrong": mean(small),
        "large wrong": mean(large),
        "large wrong where small is": mean(small * large) / mean(small),
    }
    n = len(paired)
    return {
        name: interval([value], n_questions=n, bounds=(0.0, 1.0)) for name, value in values.items()
    }
