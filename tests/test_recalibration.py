"""Decisions compared: measurements, recalibration, and paper B beside them."""

import numpy as np
import pandas as pd
import pytest

from corea.book import decision_tables
from corea.book.published import published_table
from corea.decisions import measures
from corea.decisions import recalibration as de
from corea.decisions.evaluation import OPTIONS
from corea.metrics.calibration import (
    expected_calibration_error,
    marginal_calibration_error,
    static_calibration_error,
)
from corea.metrics.intervals import summarize
from corea.tasks.decision_questions import LETTERS
from corea.tasks.suites import MICROWORLD


def decisions(dataset="choices", system="GRPO", n=200, *, seed=0, sharpness=1.0, samples=1):
    """Records of decisions: calibrated ones at sharpness 1, too sure above it."""
    rng = np.random.default_rng([seed, len(system)])
    options = 2 if dataset in ("messages", "lists") else 5
    names = ("Safe", "Unsafe") if options == 2 else LETTERS
    rows = []
    for i in range(n):
        logits = rng.normal(0, 2, options)
        p = np.exp(logits) / np.exp(logits).sum()
        gold = rng.choice(options, p=p)
        sharp = np.exp(sharpness * logits) / np.exp(sharpness * logits).sum()
        for sample in range(samples):
            place = int(sharp.argmax())
            rows.append(
                {
                    "dataset": dataset, "question_id": f"{i:04d}", "system": system, "seed": seed,
                    "sample": sample, "correct": place == gold, "confidence": sharp[place],
                    "answer": names[place], "gold": names[gold], "reasoning": "sampled",
                }
                | {f"p_{k + 1}": sharp[k] if k < options else np.nan for k in range(5)}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_verdicts_by_letters_are_recalibrated_as_verdicts_in_words_are():
    words = decisions("messages", n=300, sharpness=3)
    letters = words.replace(
        {"answer": {"Safe": "A", "Unsafe": "B"}, "gold": {"Safe": "A", "Unsafe": "B"}}
    )
    assert set(letters["answer"]) == {"A", "B"}
    for one, other in zip(
        de.option_probabilities(words), de.option_probabilities(letters), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    found = [
        [de.recalibrated(method, rows[:200], rows[200:]) for method in de.METHODS]
        for rows in (words, letters)
    ]
    np.testing.assert_array_equal(*found)
    measured = [measures.measure_options(rows, n_resamples=3) for rows in (words, letters)]
    pd.testing.assert_frame_equal(*measured)


# --- the paper ----------------------------------------------------------------------------------


def test_paper_rows_are_the_printed_numbers_in_our_units():
    rows = decision_tables.paper_rows(4, systems={"GRPO": "GRPO", "Ours": "mine"}).set_index(
        ["dataset", "system", "metric"]
    )["value"]
    printed = published_table("B", 4)
    printed = printed[printed["model"] == "Qwen3-1.7B"].set_index(["dataset", "system", "metric"])
    assert len(rows) == 16
    for theirs, ours in MICROWORLD.decision_counterparts.items():
        accuracy = printed.loc[(theirs, "Ours", "accuracy"), "value"]
        assert rows[ours, "mine", "pass_at_1"] == accuracy
        error = printed.loc[(theirs, "GRPO", "ece"), "value"]
        assert rows[ours, "GRPO", "ece"] == pytest.approx(error / 100)


def test_settings_of_a_table_are_part_of_the_system():
    names = set(decision_tables.paper_rows(5)["system"])
    assert names == {f"{s}{m}" for s in ("GRPO", "Ours") for m in ("", ", Isotonic", ", Platt")}


def test_printed_shares_are_those_of_all_three_models():
    assert decision_tables.printed_shares(2)["choices"] == "97.62 / 98.93 / 99.85 %"


def test_the_same_format_and_the_papers_own_are_compared():
    seeds = [
        decisions(system=name, seed=seed, sharpness=sharpness).assign(reasoning=reasoning)
        for seed in (1, 2, 3)
        for name, sharpness in (("SFT", 1.0), ("GRPO", 4.0), ("Base", 4.0))
        for reasoning in ("sampled", "none")
    ]
    measured = measures.measure_decisions(pd.concat(seeds, ignore_index=True))
    contrasts = measures.contrasts(measured, decision_tables.PAIRS)
    found = contrasts[(contrasts["metric"] == "ece") & (contrasts["baseline"] == "SFT")]
    ways = set(found[["reasoning", "baseline_reasoning"]].itertuples(index=False, name=None))
    assert ways == {("sampled", "none"), ("sampled", "sampled"), ("none", "none")}
    assert (found["low"] > 0).all()  # the sharper model is the worse calibrated


def test_a_model_that_is_too_sure_lies_above_the_diagonal():
    rows = pd.concat(
        [
            decisions(system="GRPO", sharpness=4.0).assign(reasoning="sampled"),
            decisions(system="GRPO", sharpness=1.0).assign(reasoning="none"),
        ],
        ignore_index=True,
    )
    table = summarize(measures.measure_decisions(rows, n_resamples=10))
    level = decision_tables.level(table, ["choices"]).set_index("reasoning")
    assert level.loc["sampled", "confidence"] > level.loc["sampled", "right"]
    assert level["right"].between(0, 1).all()
    [row] = decision_tables.by_format(table, ["choices"]).to_dict("records")
    assert row["ECE, reasoning"].estimate > row["ECE, none"].estimate


def test_a_laid_out_table_has_known_systems_first():
    table = summarize(measures.measure_decisions(decisions(n=40), n_resamples=10))
    alone = decision_tables.lay_out(table, ["ece"])
    assert alone.columns.tolist() == ["dataset", "system", "ECE"]
    more = pd.concat([table.assign(system="else"), table, table.assign(system="SFT")])
    laid = decision_tables.lay_out(more, ["ece"])
    assert laid["system"].tolist() == ["SFT", "GRPO", "else"]
    assert laid["ECE"].tolist() == alone["ECE"].tolist() * 3


def test_metrics_under_one_heading_are_written_alike():
    known = {}
    for heading, spec in decision_tables.HEADINGS.values():
        assert known.setdefault(heading, spec) == spec


def test_cells_of_two_formats_are_refused():
    both = pd.concat([decisions(n=20), decisions(n=20).assign(reasoning="greedy")])
    table = summarize(measures.measure_decisions(both.reset_index(drop=True), n_resamples=3))
    with pytest.raises(ValueError, match="dataset, system, metric do not tell cells apart"):
        decision_tables.lay_out(table)
    laid = decision_tables.lay_out(table, keys=("dataset", "system", "reasoning"))
    assert laid["reasoning"].tolist() == ["sampled", "greedy"]


def test_the_accuracy_of_the_decided_stands_where_it_differs():
    rows = decisions(n=40)
    whole = summarize(measures.measure_decisions(rows, n_resamples=3))
    heading = "accuracy of the decided, %"
    assert heading not in decision_tables.lay_out(whole)
    rows.loc[:9, ["confidence", "answer", *OPTIONS]] = np.nan
    rows.loc[:9, "correct"] = False
    laid = decision_tables.lay_out(summarize(measures.measure_decisions(rows, n_resamples=3)))
    assert laid[heading][0].estimate == pytest.approx(100 * rows.loc[10:, "correct"].mean())
    assert laid["decided"][0].estimate == 0.75
    assert ">75.0%<" in decision_tables.show(laid, "Decisions.").data.replace("<br>", "<")


# --- measuring ----------------------------------------------------------------------------------


def test_sizes_stand_side_by_side():
    small, large = decisions(), pd.concat([decisions(seed=1), decisions(system="SFT")])
    tables = [
        summarize(measures.measure_decisions(rows, n_resamples=10)).assign(size=size)
        for size, rows in (("small", small), ("large", large))
    ]
    laid = decision_tables.lay_out_across(pd.concat(tables), ["pass_at_1", "ece"], "size")
    assert laid.columns.tolist() == [
        "dataset", "system", "small: accuracy, %", "small: ECE", "large: accuracy, %",
        "large: ECE",
    ]  # fmt: skip
    assert laid[["dataset", "system"]].to_numpy().tolist() == [
        ["choices", "SFT"], ["choices", "GRPO"],
    ]  # fmt: skip
    for size, table in zip(("small", "large"), tables, strict=True):
        value = table.set_index(["system", "metric"])["value"]["GRPO", "ece"]
        assert laid.loc[1, f"{size}: ECE"].estimate == value
    assert pd.isna(laid.loc[0, "small: ECE"])
    assert laid.loc[0, "large: ECE"] is not None


def test_errors_of_options_and_decisions_are_those_of_calibration():
    rows = decisions(n=300, sharpness=2.0)
    rows.loc[:9, ["confidence", "answer", *OPTIONS]] = np.nan
    rows.loc[:9, "correct"] = False
    measured = pd.concat(
        [
            measures.measure_decisions(rows, n_resamples=3),
            measures.measure_options(rows, n_resamples=3),
        ]
    )
    now = measured[measured["resample"] == 0].set_index("metric")["value"]
    kept = rows[10:]
    assert now["pass_at_1"] == pytest.approx(100 * rows["correct"].mean())
    assert now["ece"] == pytest.approx(
        expected_calibration_error(kept["confidence"], kept["correct"], binning="equal_mass")
    )
    gold = [LETTERS.index(label) for label in kept["gold"]]
    options = kept[list(OPTIONS)].to_numpy()
    assert now["sce"] == pytest.approx(static_calibration_error(options, gold))
    assert now["mce"] == pytest.approx(marginal_calibration_error(options, gold))
    assert measured["resample"].nunique() == 4


def test_systems_need_not_have_the_same_datasets():
    rows = pd.concat([decisions(n=30), decisions("messages", "SFT", 30)], ignore_index=True)
    measured = measures.measure_decisions(rows, n_resamples=2)
    cells = set(measured[["dataset", "system"]].itertuples(index=False, name=None))
    assert cells == {("choices", "GRPO"), ("messages", "SFT")}


def test_formats_are_compared_and_not_mixed():
    rows = pd.concat(
        [decisions(n=60, sharpness=4.0), decisions(n=60).assign(reasoning="greedy")],
        ignore_index=True,
    )
    measured = measures.measure_decisions(rows, n_resamples=3)
    assert len(measured) == 2 * len(measures.measure_decisions(rows[:60], n_resamples=3))
    pair = measures.Pair("GRPO", "sampled", "GRPO", "greedy")
    found = measures.contrasts(measured, [pair, pair, pair._replace(baseline="SFT")])
    assert not found.duplicated(["metric"]).any()
    found = found.set_index("metric")
    assert set(found["reasoning"]) == {"sampled"}
    assert set(found["baseline_reasoning"]) == {"greedy"}
    errors = [
        expected_calibration_error(part["confidence"], part["correct"], binning="equal_mass")
        for part in (rows[:60], rows[60:])
    ]
    assert found.loc["ece", "value"] == pytest.approx(errors[0] - errors[1])
    assert found.loc["pass_at_1", "value"] == 0  # the same decisions, less sure


def test_what_a_loss_asks_for_is_of_the_decided():
    rows = decisions(n=80)
    rows.loc[:7, ["confidence", "answer", *OPTIONS]] = np.nan
    rows.loc[:7, "correct"] = False
    assert measures.options_of(rows) == {"choices": 5}
    measured = measures.measure_decisions(rows, n_resamples=4)
    asked = measures.measure_asked(measured, {"GRPO": ("uniform", "greedy")}, {"choices": 5})
    assert set(asked["metric"]) == {"asked", "asked_gap"}
    assert asked["resample"].nunique() == 5
    now = asked[asked["resample"] == 0].set_index("metric")["value"]
    a = rows.loc[8:, "correct"].mean()
    assert now["asked"] == pytest.approx(a + (1 - a) / 5)
    gap = rows["confidence"].mean() - now["asked"]
    assert now["asked_gap"] == pytest.approx(gap)
    assert measures.measure_asked(measured, {}, {"choices": 5}).empty


def test_means_leave_out_what_is_missing():
    rows = decisions(n=4).assign(x=[1.0, np.nan, 0.0, 0.0])
    measured = measures.measure_means(rows, ["x"], n_resamples=2)
    assert measured.loc[0, "value"] == pytest.approx(1 / 3)
    nothing = measures.measure_means(rows.assign(x=np.nan), ["x"], n_resamples=2)
    assert nothing["value"].isna().all()


def test_means_are_compared_on_the_questions_that_all_have():
    rows = pd.concat([decisions(n=30), decisions(system="SFT", n=30)[10:]], ignore_index=True)
    rows = rows.assign(size="small")
    found = measures.contrast_means(rows, ["confidence"], baselines=["GRPO", "Base"])
    [row] = found.to_dict("records")
    assert (row["system"], row["baseline"], row["n_questions"]) == ("SFT", "GRPO", 20)
    shared = rows[rows["question_id"] >= "0010"].groupby("system")["confidence"].mean()
    assert row["value"] == pytest.approx(shared["SFT"] - shared["GRPO"])


def test_means_of_systems_with_other_questions():
    rows = pd.concat([decisions(n=30), decisions(system="SFT", n=30)[10:]], ignore_index=True)
    both = measures.measure_means(rows, ["correct"], n_resamples=5)
    alone = [
        measures.measure_means(r, ["correct"], n_resamples=5) for _, r in rows.groupby("system")
    ]
    pd.testing.assert_frame_equal(both, pd.concat(alone, ignore_index=True))


# --- rollouts -----------------------------------------------------------------------------------


def test_rollouts_are_flagged_by_question():
    rows = pd.DataFrame(
        {
            "system": "Base", "seed": 0, "dataset": "choices",
            "question_id": ["a"] * 4 + ["b"] * 2,
            "correct": [True, True, False, False, True, True],
            "confidence": [0.995, 0.5, 0.999, np.nan, 0.2, 1.0],
        }
    )  # fmt: skip
    found = de.flag_rollouts(rows)
    assert found["accuracy"].tolist() == [0.5] * 4 + [1.0] * 2
    assert found["sure"].tolist()[:3] == [1, 0, 1]
    assert found["sure_and_wrong"].tolist()[:3] == [0, 0, 1]
    assert found["calibrated"].tolist()[:3] == [0, 1, 0]
    assert found.loc[3, ["sure", "sure_and_wrong", "calibrated"]].isna().all()
    assert found.loc[4:, "calibrated"].isna().all()  # always right
    within = de.within_questions(rows).set_index("question_id")
    assert within.loc["a", "advantage"] == pytest.approx((0.995 + 0.5) / 2 - 0.999)
    assert np.isnan(within.loc["b", "advantage"])
    assert within.loc["b", "spread"] == pytest.approx(0.8 * 0.8)


# --- recalibration ------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["choices", "messages"])
@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_recalibration_mends_what_is_too_sure(method, dataset):
    fit = decisions(dataset, n=2000, seed=1, sharpness=3.0)
    rows = decisions(dataset, n=2000, seed=2, sharpness=3.0)
    before = expected_calibration_error(rows["confidence"], rows["correct"])
    after = expected_calibration_error(de.recalibrated(method, fit, rows), rows["correct"])
    assert before > 0.1
    assert after < 0.04


def test_the_temperature_is_the_one_that_made_it_too_sure():
    fit = decisions(n=4000, seed=1, sharpness=3.0)
    rows = decisions(n=50, seed=2, sharpness=3.0)
    calibrated = decisions(n=50, seed=2, sharpness=1.0)
    found = de.recalibrated("temperature", fit, rows)
    assert found == pytest.approx(calibrated["confidence"], abs=0.03)


def test_the_temperature_is_for_questions_with_fewer_options_too():
    fit = decisions(n=300, sharpness=3.0)
    few = decisions(n=300, seed=1, sharpness=3.0)
    few["p_5"], few["confidence"] = np.nan, few["p_1"]
    few = few.assign(answer=LETTERS[0], gold=LETTERS[0])
    both = pd.concat([fit, few], ignore_index=True)
    together = de.recalibrated("temperature", fit, both)
    assert not np.isnan(together).any()
    np.testing.assert_allclose(together[300:], de.recalibrated("temperature", fit, few))
    # over the options that are there: two alike have half each
    alike = few.head(1).assign(p_1=0.5, p_2=0.5, p_3=np.nan, p_4=np.nan)
    mixed = pd.concat([fit, alike], ignore_index=True)
    assert de.recalibrated("temperature", fit, mixed)[-1] == pytest.approx(0.5)


def test_what_decided_nothing_stays_without_a_confidence():
    rows = decisions(n=20)
    rows.loc[3, ["confidence", "answer", *OPTIONS]] = np.nan
    for method in de.METHODS:
        found = de.recalibrated(method, decisions(n=60, seed=4), rows)
        assert np.flatnonzero(np.isnan(found)).tolist() == [3]


def test_recalibration_that_cannot_be_fitted_says_so():
    rows = decisions(n=20)
    right = rows.assign(correct=True)
    assert not de.can_fit("platt", right)
    assert de.can_fit("isotonic", right)
    with pytest.raises(ValueError, match="nothing to fit platt to: expected records with"):
        de.recalibrated("platt", right, rows)
    with pytest.raises(ValueError, match="nothing to fit isotonic to"):
        de.recalibrated("isotonic", rows.assign(confidence=np.nan), rows)
    with pytest.raises(ValueError, match="method is 'beta'; expected one of 'none', 'temperature'"):
        de.recalibrated("beta", rows, rows)


def test_every_system_is_recalibrated_on_questions_it_was_not_fitted_to():
    rows = pd.concat([decisions(n=60), decisions("fact_choices", n=30)], ignore_index=True)
    rows = pd.concat([rows, rows.assign(system="SFT")], ignore_index=True)
    mapped = de.recalibrate_all(rows, 20)
    fit, rest = de.split_questions(rows, "choices", 20)
    assert not set(fit["question_id"]) & set(rest["question_id"])
    own = mapped[mapped["system"] == "SFT, Platt"]
    assert sorted(own.loc[own["dataset"] == "choices", "question_id"]) == sorted(
        rest.loc[rest["system"] == "SFT", "question_id"]
    )
    assert (own["dataset"] == "fact_choices").sum() == 30
    assert set(mapped["system"]) == {
        f"{s}, {de.NAMES[m]}" for s in ("GRPO", "SFT") for m in de.METHODS
    }


def test_more_labels_mean_less_error():
    curve = de.label_curve(decisions(n=700, sharpness=4.0), [10, 300], n_draws=8)
    error = curve.set_index(["method", "n"])["mean"]
    assert error["isotonic", 300] < error["isotonic", 10] < error["none", 0]
    assert (curve["low"] <= curve["high"]).all()


def test_a_system_that_decided_nothing_has_no_curve():
    nothing = decisions(n=60, system="Base").assign(confidence=np.nan, answer=None, correct=False)
    records = pd.concat([decisions(n=60), nothing], ignore_index=True)
    curve = de.label_curve(records, [10, 20], n_draws=2)
    assert curve["system"].unique().tolist() == ["GRPO"]


@pytest.mark.parametrize("n", [0, 30])
def test_a_split_without_questions_is_refused(n):
    with pytest.raises(ValueError, match=f"n is {n}; 'choices' has 30 questions"):
        de.split_questions(decisions(n=30), "choices", n)
