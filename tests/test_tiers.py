"""Chains of models, their thresholds, envelopes, and what others report of them."""

import re
from dataclasses import replace
from html import unescape
from itertools import product

import numpy as np
import pandas as pd
import pytest
from chapters import execute

from corea import adapters
from corea.book import calibration_tax, display, figures, more_tiers, real_records
from corea.book.more_tiers import chain, chains, over_envelope, side_by_side
from corea.metrics import tiers as tiers_module
from corea.metrics.cascade import DEFER_ALL, cost_ratio, deferral_curve, defers, oracle_confidence
from corea.metrics.tiers import (
    Policy,
    Tiers,
    abstaining,
    average_improvement_in_quality,
    average_performance_gap_recovered,
    best_policies,
    cost_save,
    envelope,
    every_policy,
    gap_to_oracle,
    mixing,
    together,
)
from corea.records import RecordsError


def drawn(k=3, n=60, seed=0, levels=4):
    """Tiers of rising cost and accuracy, whose confidence knows something and may be missing."""
    rng = np.random.default_rng(seed)
    hard = rng.random((n, 1))
    right = rng.random((n, k)) < np.linspace(0.5, 0.9, k) + 0.3 * (0.5 - hard)
    confidence = np.round((right + rng.random((n, k))) / 2 * levels) / levels
    confidence[rng.random((n, k)) < 0.1] = np.nan
    cost = rng.uniform(1, 2, (n, k)) * 3.0 ** np.arange(k)
    return Tiers(tuple("abcdefgh"[:k]), right, cost, confidence)


def by_hand(tiers, thresholds, skip):
    """What a policy does, question by question."""
    value = cost = 0.0
    n, k = tiers.value.shape
    for i in range(n):
        if skip is not None and defers([tiers.signal[i]], skip)[0]:
            value, cost = value + tiers.value[i, -1], cost + tiers.straight[i]
            continue
        for j in range(k):
            cost += tiers.cost[i, j]
            if j == k - 1 or not defers([tiers.confidence[i, j]], thresholds[j])[0]:
                value += tiers.value[i, j]
                break
    return value / n, cost / n


def text_of(shown):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", "\n".join(shown))).split())


def grid(signal):
    return [*np.unique(signal[~np.isnan(signal)]), DEFER_ALL]


# --- every threshold at once ------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_policy_is_the_brute_force_one(k, seed):
    tiers = drawn(k, 30, seed, levels=3)
    found = every_policy(tiers)
    tried = list(product(*(grid(tiers.confidence[:, j]) for j in range(k - 1))))
    assert len(found) == len(tried)
    for (_, row), thresholds in zip(found.iterrows(), tried, strict=True):
        value, cost = by_hand(tiers, thresholds, None)
        assert [row[f"threshold_{j + 1}"] for j in range(k - 1)] == list(thresholds)
        assert (row["pass_at_1"], row["cost"]) == pytest.approx((value, cost))
        outcome = Policy(tiers, thresholds).outcome()
        assert (outcome["value"].mean(), outcome["cost"].mean()) == pytest.approx((value, cost))


@pytest.mark.parametrize("kind", ["routed", "bypassing"])
def test_skipping_is_the_brute_force_one(kind):
    tiers = drawn(3, 30, 2, levels=3)
    signal = np.round(np.random.default_rng(3).random(30) * 3) / 3
    tiers = tiers.routed(signal, 0.25) if kind == "routed" else tiers.bypassing()
    found = every_policy(tiers)
    skips = [None, *grid(tiers.signal)]
    tried = list(product(skips, *(grid(tiers.confidence[:, j]) for j in range(2))))
    assert len(found) == len(tried)
    for (_, row), (skip, *thresholds) in zip(found.iterrows(), tried, strict=True):
        expected = by_hand(tiers, thresholds, skip)
        assert (row["pass_at_1"], row["cost"]) == pytest.approx(expected)
        outcome = Policy(tiers, tuple(thresholds), skip).outcome()
        assert (outcome["value"].mean(), outcome["cost"].mean()) == pytest.approx(expected)


def test_two_tiers_are_a_deferral_curve():
    tiers = drawn(2, 200)
    curve = deferral_curve(tiers.confidence[:, 0], *tiers.value.T, *tiers.cost.T)
    found = every_policy(tiers)
    shared = curve[curve["threshold"].isin(found["threshold_1"])].reset_index(drop=True)
    for name in ("pass_at_1", "cost"):
        np.testing.assert_allclose(found[name], shared[name])


def test_what_a_router_costs_is_paid_on_every_question():
    tiers = drawn(2, 50).routed(np.linspace(0, 1, 50), 0.5)
    all_on = Policy(tiers, (0.0,), DEFER_ALL).outcome()
    np.testing.assert_allclose(all_on["cost"], 0.5 + tiers.cost[:, 1])
    assert (all_on["tier"] == 1).all()


def test_the_search_is_bounded_and_thins_by_quantiles():
    tiers = drawn(4, 400, levels=50)
    whole = every_policy(tiers, most=10**6)
    few = every_policy(tiers, most=300)
    assert len(few) <= 300 < len(whole)
    # what is tried is tried exactly
    row = few.iloc[len(few) // 2]
    thresholds = tuple(row[f"threshold_{j}"] for j in (1, 2, 3))
    outcome = Policy(tiers, thresholds).outcome()
    assert outcome["value"].mean() == pytest.approx(row["pass_at_1"])
    assert few["threshold_1"].max() == DEFER_ALL
    many = drawn(8, 100, levels=50)
    assert len(every_policy(many)) <= tiers_module.MOST


def test_tiers_are_checked():
    tiers = drawn(2, 5)
    for name, wrong, problem in (
        ("cost", tiers.cost[:, :1], r"cost has shape \(5, 1\); expected \(5, 2\)"),
        ("cost", -tiers.cost, "cost"),
        ("value", np.full((5, 2), np.nan), "value must not be missing"),
        ("confidence", tiers.confidence + 2, "confidence"),
    ):
        with pytest.raises(ValueError, match=problem):
            replace(tiers, **{name: wrong})
    with pytest.raises(ValueError, match="a > b has no signal to skip by"):
        Policy(tiers, (0.5,), skip=0.2).outcome()
    with pytest.raises(ValueError, match="no tiers to choose from"):
        best_policies([], [True])


# --- envelopes --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_nothing_mixed_of_two_points_is_above_the_envelope(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.random(40).round(1), rng.random(40).round(1)
    at = envelope(x, y)
    assert (np.diff(x[at]) > 0).all()
    assert (np.diff(y[at]) > 0).all()
    for i, j in product(range(40), repeat=2):
        cost, right = (x[i] + x[j]) / 2, (y[i] + y[j]) / 2
        assert right <= np.interp(cost, x[at], y[at]) + 1e-12


def test_a_mix_spends_its_budget():
    mix = mixing([1.0, 3.0, 7.0], [1, 2.5, 7, 9])
    np.testing.assert_allclose(mix.sum(axis=1), 1)
    np.testing.assert_allclose(mix @ [1, 3, 7], [1, 2.5, 7, 7])
    with pytest.raises(ValueError, match="below the lowest cost"):
        mixing([1.0, 3.0], [0.5])
    with pytest.raises(ValueError, match="must rise"):
        mixing([1.0, 1.0], [2.0])


def test_policies_are_chosen_on_the_questions_named():
    tiers = drawn(3, 80)
    first = np.arange(80) < 40
    found = best_policies([tiers], first)
    table = every_policy(tiers.of(first))
    at = envelope(table["cost"], table["pass_at_1"])
    costs = [policy.on(first).outcome()["cost"].mean() for policy in found]
    np.testing.assert_allclose(costs, table["cost"].to_numpy()[at])
    pairs = best_policies([drawn(2, 80, 5)], first)
    best = together([*found, *pairs], first)
    means = [policy.means(first) for policy in [*found, *pairs]]
    assert len(best) == len(envelope(*np.transpose(means)))


def test_abstaining_is_a_last_tier_that_is_worth_nothing():
    tiers = Tiers(("a", "b"), [[1, 1], [0, 1], [0, 0]], [[1, 10]] * 3,
                  [[0.9, 1.0], [0.5, 0.9], [0.1, 0.2]]).scored(2.0)  # fmt: skip
    late, early = abstaining(tiers), abstaining(tiers).bypassing()
    must = Policy(tiers, (0.9,)).outcome()
    assert must["value"].tolist() == [1, 1, -2]
    at_the_end = Policy(late, (0.9, 0.5)).outcome()
    assert at_the_end["value"].tolist() == [1, 1, 0]
    assert at_the_end["cost"].tolist() == [1, 11, 11]
    soon = Policy(early, (0.9, 0.5), skip=0.3).outcome()
    assert soon["value"].tolist() == [1, 1, 0]
    assert soon["cost"].tolist() == [1, 11, 1]  # the large model is spared


# --- what others report, by hand --------------------------------------------------------------


def test_performance_gap_recovered():
    # deferring the one question that only the large model gets right recovers all, at a rate of 1/2
    curve = deferral_curve([0.9, 0.2], [1, 0], [1, 1], 1, 10)
    assert average_performance_gap_recovered(curve) == pytest.approx(0.5 * 0.5 + 0.5)
    rng = np.random.default_rng(0)
    small, large = rng.random(20_000) < 0.5, rng.random(20_000) < 0.9
    blind = deferral_curve(rng.random(20_000), small, large, 1, 10)
    assert average_performance_gap_recovered(blind) == pytest.approx(0.5, abs=0.01)
    sure = deferral_curve(oracle_confidence(small, large), small, large, 1, 10)
    assert average_performance_gap_recovered(sure) > 0.85
    assert np.isnan(average_performance_gap_recovered(deferral_curve([0.9], [1], [1], 1, 1)))
    with pytest.raises(ValueError, match=r"from a deferral rate of 0.5 to 1"):
        average_performance_gap_recovered(deferral_curve([0.9, np.nan], [1, 0], [1, 1], 1, 10))


def test_improvement_in_quality():
    # from 0.5 at a cost of 1 up to 0.9 at 3 and level from there; (2, 0.6) is below
    assert average_improvement_in_quality([1, 2, 3], [0.5, 0.6, 0.9], 1, 5) == pytest.approx(
        (2 * 0.7 + 2 * 0.9) / 4
    )
    with pytest.raises(ValueError, match="low is 0"):
        average_improvement_in_quality([1, 2], [0.5, 0.6], 0, 2)


def test_gap_to_the_oracle_and_cost_save():
    assert gap_to_oracle([1, 1, 0, 0], [[1, 0], [0, 1], [0, 1], [0, 0]]) == pytest.approx(1 / 3)
    points = {"cost": [1, 6, 8], "pass_at_1": [0.5, 0.9, 0.95]}
    assert cost_save(**points, single_cost=10, single_pass_at_1=0.9) == pytest.approx(0.4)
    assert cost_save(**points, single_cost=5, single_pass_at_1=0.9) == pytest.approx(-0.2)
    assert np.isnan(cost_save(**points, single_cost=10, single_pass_at_1=0.99))


def test_where_a_cascade_loses_to_its_large_model():
    assert cost_ratio([0.2, 0.2], [0.7, 0.9]).tolist() == pytest.approx([0.9, 1.1])
    # a router spares the small model what it sends on: nothing is paid twice
    assert cost_ratio(0.2, 0.9, router=0.0) == pytest.approx(0.92)
    assert cost_ratio(0.2, 1.0, router=0.05) == pytest.approx(1.05)
    # as a curve says at every threshold
    tiers = drawn(2, 100)
    ones = np.ones(100)
    curve = deferral_curve(tiers.confidence[:, 0], *tiers.value.T, 0.3 * ones, ones)
    np.testing.assert_allclose(curve["cost"], cost_ratio(0.3, curve["deferral_rate"]))
    routed = deferral_curve(
        tiers.confidence[:, 0], *tiers.value.T, 0.3 * ones, ones, router_cost=0.1
    )
    np.testing.assert_allclose(routed["cost"], cost_ratio(0.3, routed["deferral_rate"], 0.1))
    with pytest.raises(ValueError, match="deferred in"):
        cost_ratio(0.1, 1.2)


# --- published models beside each other -------------------------------------------------------


@pytest.fixture(scope="module")
def citations():
    table = adapters.hallmark().table
    table = table[table["system"] != "DeepSeek-R1"]
    return table.assign(cost=table.groupby("system")["seconds"].transform("median"))


@pytest.fixture(scope="module")
def mathematics():
    sizes = adapters.zeroeval_models()["billions"].dropna().to_dict()
    models = ["Qwen2.5-3B-Instruct", "Qwen2.5-7B-Instruct", "Qwen2.5-32B-Instruct",
              "Qwen2.5-72B-Instruct", "Phi-3.5-mini-instruct"]  # fmt: skip
    table = adapters.zeroeval(systems=models).table
    return table, more_tiers.with_costs(table, sizes), sizes


def test_a_chain_that_agrees_is_the_pair_of_the_other_chapter(mathematics):
    """One confidence, one cost: token_cascade's pairs are chains of two."""
    table, priced, sizes = mathematics
    small, others, large = (
        "Qwen2.5-7B-Instruct",
        ("Phi-3.5-mini-instruct", "Qwen2.5-3B-Instruct"),
        "Qwen2.5-72B-Instruct",
    )
    cascade = real_records.Agreed("math_level5", small, large, others)
    pair = real_records.agreement_pair(table, cascade, sizes).set_index("question_id")
    asked = side_by_side(priced, "math_level5")
    tiers = chain(asked, (small, large), others)
    pair = pair.loc[asked.questions["question_id"]]
    for array, columns in (
        (tiers.value, ["small_correct", "large_correct"]),
        (tiers.cost, ["small_cost", "large_cost"]),
    ):
        np.testing.assert_allclose(array, pair[columns].astype(float))
    np.testing.assert_allclose(tiers.confidence[:, 0], pair["confidence"])
    # the second tier is asked by nobody else: the share of the three before it
    given = asked.answer[:, [asked.models.index(name) for name in (*others, small, large)]]
    np.testing.assert_allclose(tiers.confidence[:, 1], (given[:, :3] == given[:, [3]]).mean(1))


def test_models_lie_beside_each_other_by_rising_cost(citations):
    asked = side_by_side(citations, "hallmark_crossdomain")
    assert (np.diff(asked.cost.mean(axis=0)) >= 0).all()
    assert len(asked.models) == 11
    one = asked.models.index("GPT-5.4")
    own = citations[citations["system"] == "GPT-5.4"].set_index("question_id")
    own = own.loc[asked.questions["question_id"]]
    np.testing.assert_array_equal(asked.right[:, one], own["correct"].astype(float))
    np.testing.assert_array_equal(asked.confidence[:, one], own["confidence"].astype(float))
    assert len(list(chains(asked, 3))) == 11 * 10 * 9 / 6
    few = citations.drop(citations.index[citations["system"] == "GPT-5.4"][:1])
    assert "GPT-5.4" not in side_by_side(few, "hallmark_crossdomain").models
    with pytest.raises(RecordsError, match="GPT-5.4"):
        side_by_side(few, "hallmark_crossdomain", ["GPT-5.4", "GPT-5.1"])


def test_a_family_gains_nothing_over_itself_and_less_where_it_is_smaller(citations):
    asked = side_by_side(citations, "hallmark_crossdomain")
    first = asked.first_half(0)
    assert 2 * first.sum() == len(first)
    found = more_tiers.families(asked, first)
    dear = asked.cost[first].mean(axis=0)[asked.right[first].mean(axis=0).argmax()]
    budgets = np.array([0.8, 0.9]) * dear
    options = {"n_resamples": 20}
    same = over_envelope(found["pairs"], found["pairs"], asked, first, budgets, **options)
    assert [(g.low, g.estimate, g.high) for g in same["gain"]] == [(0, 0, 0)] * 3
    single = over_envelope(found["single models"], found["pairs"], asked, first, budgets, **options)
    for row in single.itertuples():
        assert row.gain.low <= row.gain.estimate <= row.gain.high
    assert single["gain"].iloc[-1].estimate == pytest.approx(
        np.mean([g.estimate for g in single["gain"][:-1]])
    )


def test_a_chain_that_is_better_by_construction_beats_the_pairs():
    """Each model knows what it knows; the middle one is too dear for all and spares the last."""
    kind = np.arange(600) % 20
    right = np.array([kind < 16, kind < 19, kind < 20]).T.astype(float)
    cost = np.tile([1.0, 6.0, 20.0], (600, 1))
    questions = pd.DataFrame({"dataset": "d", "question_id": [str(i) for i in range(600)]})
    asked = more_tiers.Asked(("a", "b", "c"), questions, right, right, cost, right)
    first = asked.first_half(0)
    found = more_tiers.families(asked, first)
    # all are right for 1 + 6/5 + 20/20; a before b is right on 0.95 for 2.2, a before c on all for 5
    assert found["three tiers"][-1].outcome()[["value", "cost"]].mean().tolist() == pytest.approx(
        [1.0, 3.2]
    )
    gain = more_tiers.compared(
        {name: found[name] for name in ("pairs", "three tiers")}, asked, first, [3.3 / 20],
        n_resamples=50,
    )["gain"]  # fmt: skip
    assert 0.01 < gain[0].low < gain[0].estimate < 0.05


def test_errors_are_shared_or_not():
    base = {"dataset": "d", "question_id": [str(i) for i in range(8)]}
    apart = pd.DataFrame(base | {"small_correct": [0, 0, 0, 0, 1, 1, 1, 1],
                                 "large_correct": [0, 0, 1, 1, 0, 0, 1, 1]})  # fmt: skip
    found = more_tiers.shared_errors(apart, n_resamples=20)
    assert found["large wrong"].estimate == found["large wrong where small is"].estimate == 0.5
    same = apart.assign(large_correct=apart["small_correct"])
    found = more_tiers.shared_errors(same, n_resamples=20)
    assert found["large wrong where small is"].estimate == 1


def test_what_a_cascade_pays_twice():
    paired = pd.DataFrame(
        {"confidence": [0.9, 0.2, np.nan], "small_cost": [1, 2, 3], "large_cost": [10, 4, 6],
         "small_seconds": [1.0, 2.0, 4.0], "large_seconds": [5.0, 3.0, 5.0]}
    )  # fmt: skip
    found = calibration_tax.tax(paired, 0.5)
    assert found == {
        "small, kept": 0.05, "small, deferred": 0.25, "large, deferred": 0.5,
        "deferred": pytest.approx(2 / 3),
    }  # fmt: skip
    assert calibration_tax.seconds(paired, 0.5) == {
        "kept": 1.0, "deferred": 7.0, "large alone": 4.0, "share deferred": pytest.approx(2 / 3),
    }  # fmt: skip


def test_a_small_model_that_knows_its_errors_defers_them(mathematics):
    _, priced, _ = mathematics
    asked = side_by_side(priced, "math_level5")
    found = calibration_tax.knowing_errors(asked).set_index(["small", "large"])
    pair = found.loc[("Qwen2.5-7B-Instruct", "Qwen2.5-72B-Instruct")]
    small, large = (asked.models.index(name) for name in pair.name)
    knows = np.where(asked.right[:, small] == 1, 1.0, 0.0)
    tiers = Tiers(pair.name, asked.right[:, [small, large]], asked.cost[:, [small, large]],
                  np.stack([knows, knows], axis=1))  # fmt: skip
    cost, value = Policy(tiers, (0.5,)).means(np.arange(len(knows)))
    assert pair["cost"] == pytest.approx(cost / asked.cost[:, large].mean())
    assert value >= asked.right[:, large].mean()
    # the dearer model of a pair is the more accurate one
    for one, other in found.index:
        at, behind = asked.models.index(one), asked.models.index(other)
        assert at < behind
        assert asked.right[:, behind].mean() > asked.right[:, at].mean()


@pytest.mark.parametrize("router", [None, 0.05])
@pytest.mark.parametrize("cost", [0.4, 1.0])
def test_the_highest_deferral_costs_just_that(cost, router):
    for ratio in (1.5, 3.0, 40.0):
        share = calibration_tax.highest_deferral(ratio, cost=cost, router=router)
        if np.isnan(share):
            assert float(cost_ratio(1 / ratio, 0.0, router)) > cost
        else:
            assert float(cost_ratio(1 / ratio, share, router)) == pytest.approx(cost)
    assert calibration_tax.highest_deferral(2.0, cost=3.0) == 1.0  # no more than all


def test_the_explorer_says_how_many_cascades_cost_no_more():
    points = pd.DataFrame(
        {"kind": ["a", "a", "<b>"], "name": ["one", "two", "<i>$x$"], "price_ratio": [2.0, 5.0, 9.0],
         "deferred": [0.2, 0.9, 0.5], "cost": [0.7, 1.1, 0.611]}
    )  # fmt: skip
    ratios = [1.0, 2.0, 5.0, 20.0]

    def line(cost):
        shares = [calibration_tax.highest_deferral(r, cost=cost) for r in ratios]
        return pd.DataFrame({"price_ratio": ratios, "deferred": shares}).dropna()

    drawing = figures.tax_explorer(
        points, {cost: line(cost) for cost in (0.4, 0.7, 1.0, 1.2)}, line(1.0), title="<script>"
    )
    meta = drawing.layout.meta
    assert [stop["text"].partition("; ")[2] for stop in meta["stops"]] == [
        "0 of 3 cost no more", "2 of 3 cost no more", "2 of 3 cost no more", "3 of 3 cost no more",
    ]  # fmt: skip
    assert (
        "cost 100% of the large model's: 2 times the price up to 50% deferred"
        in (meta["stops"][meta["active"]]["text"])
    )
    # the line that is drawn at first, and last of all, is that of the large model's cost
    assert list(drawing.data[-1].y) == meta["stops"][meta["active"]]["y"] == [0.0, 0.5, 0.8, 0.95]
    assert meta["stops"][0]["x"] == [5.0, 20.0]  # at twice the price 40 % cannot be had
    page = display.Interactive(drawing, "c", element_id="one")._repr_mimebundle_()["text/html"]
    assert 'max="3" step="1" value="2"' in page
    assert "<script>" not in page
    assert "<i>" not in page


# --- the chapters -----------------------------------------------------------------------------


def test_the_chapter_on_more_tiers(tmp_path):
    given = {
        "n_resamples": 20, "n_draws": 2, "output_dir": str(tmp_path),
        "questions": {"GSM8K": ["gsm8k", 1], "MATH level 5": ["math_level5", 1],
                      "citations": ["hallmark_crossdomain", 0]},
    }  # fmt: skip
    text = text_of(execute("more_tiers", given, with_prose=True))
    assert "75% of the time the one, 25% the other, 65% right." in text
    assert "answered by 20 models of known size" in text
    gains = pd.read_csv(tmp_path / "gains.csv")
    # pairs beat single models, and chains of three nothing by more than two points
    average = gains[gains["budget"].isna()].set_index(["of", "family"])
    assert average.loc[("GSM8K", "single models"), "high"] < 0
    three = average.xs("three tiers", level="family")["estimate"]
    assert three.abs().max() < 0.02
    reported = pd.read_csv(tmp_path / "reported.csv").set_index(["questions of", "family"])
    assert (reported.xs("single models", level="family")["CostSave"] == 0).all()


def test_the_chapter_on_the_calibration_tax(tmp_path):
    shown = execute("calibration_tax", {"output_dir": str(tmp_path)}, with_prose=True)
    text = text_of(shown)
    assert "0.20 + 0.85 = 1.05: dearer than the large model." in text
    points = pd.read_csv(tmp_path / "points.csv")
    lost = points["cost"].gt(1).groupby(points["kind"]).mean()
    assert f"{lost['knows its errors, MATH level 5']:.0%}".rstrip("%") + "\N{NO-BREAK SPACE}%" in (
        "\n".join(shown)
    )
    assert lost["knows its errors, GSM8K"] < 0.1 < 0.5 < lost["knows its errors, MATH level 5"]
    tax = pd.read_csv(tmp_path / "tax.csv", index_col=0)
    np.testing.assert_allclose(tax["cost"], tax["s"] + tax["large, deferred"])
    assert (tax["cost"] > 1).tolist() == [False, False, True, True, False, False, False]
    waits = pd.read_csv(tmp_path / "seconds.csv", index_col=0)
    assert (waits["deferred"] > waits["large alone"]).all()
