"""Metrics and cascades of several runs beside the paper, and their chapters, on made-up runs."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from chapters import execute, tables
from fake_runs import fake_run, fake_runs

from corea.book import compare, figures, full_run, published
from corea.book import evidence as evidence_of
from corea.metrics import calibration, cascade
from corea.metrics.intervals import (
    COLUMNS,
    FEW_SEEDS,
    ONE_SEED,
    QuestionWeights,
    as_interval,
    differences,
    summarize,
)
from corea.metrics.measure import METRICS, _values, measure
from corea.records import RecordsError
from corea.rlcc.cascades import (
    CASCADES,
    LARGE_MODEL,
    Cascade,
    _areas,
    cascade_questions,
    cascades_of,
    choose_thresholds,
    measure_areas,
    measure_cascades,
    measure_held_out,
    measure_matched,
    measure_thresholds,
    reprice,
)
from corea.runs import run_records
from corea.tasks.suites import MICROWORLD, PAPERS

MAIN = ("base", "rlvr", "brier", "l1", "large")
EACH, GROUPS, ALL = MICROWORLD.each, MICROWORLD.groups, MICROWORLD.together
EVERY = {**GROUPS, **EACH, **ALL}


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    return fake_runs(tmp_path_factory.mktemp("one"), n_questions=16)


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    return fake_runs(tmp_path_factory.mktemp("three"), seeds=(0, 1, 2), n_questions=16)


@pytest.fixture(scope="module")
def on_the_papers_datasets(tmp_path_factory):
    return fake_runs(tmp_path_factory.mktemp("papers"), n_questions=8, suite=PAPERS)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    options = {"n_questions": 3, "n_samples": 2, "n_steps": 2, "learnt": False}
    return fake_runs(tmp_path_factory.mktemp("untrained"), **options)


def records_of(runs):
    return run_records([folder for name in MAIN for folder in runs[name]])


@pytest.fixture(scope="module")
def records(one_seed):
    return records_of(one_seed)


@pytest.fixture(scope="module")
def replicated(three_seeds):
    return records_of(three_seeds)


def now(measurements, system="COREA", dataset="chains", seed=0):
    rows = measurements[
        (measurements["system"] == system)
        & (measurements["dataset"] == dataset)
        & (measurements["seed"] == seed)
        & (measurements["resample"] == 0)
    ]
    return rows.set_index("metric")["value"]


def made(values, system="a", metric="ece", dataset="chains"):
    """Measurements of one number: seed to its values over resamples."""
    parts = [
        pd.DataFrame(
            {"system": system, "seed": seed, "dataset": dataset, "metric": metric,
             "resample": range(len(value)), "value": value}
        )
        for seed, value in values.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


# --- measuring ------------------------------------------------------------------------------


def test_measured_values_are_the_metrics(records):
    measured = measure(records, groups=EACH, n_bins=7, n_resamples=3)
    for system in ("SLM", "L1-SLM"):
        rows = records[(records["system"] == system) & (records["dataset"] == "words")]
        stated = rows[rows["confidence"].notna()]
        pair = stated["confidence"], stated["correct"]
        found = now(measured, system, "words")
        assert found["pass_at_1"] == pytest.approx(100 * rows["correct"].mean())
        ece = calibration.expected_calibration_error(*pair, n_bins=7)
        assert found["ece"] == pytest.approx(ece)
        assert found["auroc"] == pytest.approx(calibration.auroc(*pair))
        assert found["brier"] == pytest.approx(calibration.brier_score(*pair))
        assert found["confidence_output_ratio"] == pytest.approx(len(stated) / len(rows))
        assert found["mean_confidence"] == pytest.approx(stated["confidence"].mean())
    assert now(measured, "SLM", "words")["confidence_output_ratio"] < 1
    assert set(measured["metric"]) == set(METRICS)


def test_resampled_values_are_the_metrics_under_weights():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "confidence": np.where(rng.random(60) < 0.2, np.nan, rng.integers(0, 11, 60) / 10),
            "correct": rng.random(60) < 0.6,
            "sample": np.arange(60) % 3,
        }
    )
    weight = rng.integers(0, 4, (20, 60)).astype(float)
    weight[19, rows["correct"]] = 0  # only wrong answers: no AUROC
    found = _values(rows, weight, 10, "equal_width")
    stated = rows["confidence"].notna().to_numpy()
    pair = rows["confidence"][stated], rows["correct"][stated]
    for i, w in enumerate(weight):
        counted = {"weight": w[stated]}
        expected = {
            "pass_at_1": 100 * np.average(rows["correct"], weights=w),
            "ece": calibration.expected_calibration_error(*pair, **counted),
            "auroc": calibration.auroc(*pair, **counted),
            "brier": calibration.brier_score(*pair, **counted),
            "confidence_output_ratio": calibration.confidence_output_ratio(
                rows["confidence"], weight=w
            ),
            "ece_per_run": np.mean(
                [
                    calibration.expected_calibration_error(
                        pair[0][own], pair[1][own], weight=w[stated][own]
                    )
                    for own in (rows["sample"][stated] == k for k in range(3))
                ]
            ),
            "mean_confidence": np.average(pair[0], weights=w[stated]),
            "overconfidence": np.average(pair[0] - pair[1], weights=w[stated]),
            "share_at_ends": np.average(pair[0].isin([0, 1]), weights=w[stated]),
        }
        assert {name: found[name][i] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found["auroc"][19])


def test_a_group_is_the_papers_mean_over_datasets(records):
    uneven = records[(records["dataset"] != "words") | (records["question_id"] < "0009")]
    measured = measure(uneven, groups=EVERY, n_resamples=2)
    here = measured[(measured["system"] == "L1-SLM") & (measured["metric"] == "ece")]
    wide = here.pivot(index="resample", columns="dataset", values="value")
    for group, datasets in (("OOD reasoning", GROUPS["OOD reasoning"]), *ALL.items()):
        weights = {name: 9 if name == "words" else 16 for name in datasets}
        mean = published.weighted_mean_over_datasets(wide[list(datasets)], weights)
        assert wide[group].to_numpy() == pytest.approx(mean.to_numpy())


def test_nothing_stated_leaves_calibration_undefined(untrained):
    measured = measure(records_of(untrained), groups=GROUPS, n_resamples=2)
    found = now(measured, "SLM")
    assert found["pass_at_1"] == 0
    assert found["confidence_output_ratio"] == 0
    assert found[["ece", "auroc", "brier", "mean_confidence"]].isna().all()
    row = summarize(measured).set_index(["system", "dataset", "metric"]).loc[
        ("SLM", "chains", "ece")
    ]  # fmt: skip
    assert (row["n_seeds"], row["interval"]) == (0, "")
    assert as_interval(row) is None


def test_a_missing_dataset_is_named(records):
    less = records[(records["system"] != "L1-SLM") | (records["dataset"] != "facts")]
    with pytest.raises(ValueError, match="'L1-SLM' with seed 0 has no records on 'facts'"):
        measure(less, groups=EACH, n_resamples=2)


def test_one_seed_needs_the_same_questions(records, replicated):
    def less(table, system):
        return table[(table["system"] != system) | (table["question_id"] != "0003")]

    with pytest.raises(ValueError, match="'L1-SLM' with seed 0 was asked other questions"):
        measure(less(records, "L1-SLM"), groups=EACH, n_resamples=2)
    measure(
        less(replicated, "L1-SLM"), groups=EACH, n_resamples=2
    )  # over seeds there is nothing to pair


def test_a_computed_signal_is_there_in_every_row(records):
    lacking = Cascade("L1-SLM", "probe")
    with pytest.raises(ValueError, match="lacks the signal 'probe' in (\\d+) of \\1 rows"):
        cascade_questions(records, lacking, large="Baseline LLM")
    nobody = Cascade("nobody")
    with pytest.raises(ValueError, match="no system 'nobody' among the runs; there are 'SLM'"):
        cascade_questions(records, nobody, large="Baseline LLM")
    stated = records.assign(
        expected_confidence=records["expected_confidence"].mask(records.index % 2 == 0)
    )
    some = Cascade("L1-SLM", "expected_confidence")
    found = cascade_questions(stated, some, large="Baseline LLM")
    assert 0 < found["confidence"].isna().mean() < 1


# --- cascades -------------------------------------------------------------------------------


def test_priced_questions_are_those_of_the_report(records):
    found = cascade_questions(records, CASCADES["COREA"])
    expected, _ = cascade.priced_pair(records, "L1-SLM", LARGE_MODEL, size_ratio=1050 / 230)
    columns = ["dataset", "question_id", "sample", *cascade.COLUMNS]
    pd.testing.assert_frame_equal(found[columns], expected[columns], check_dtype=False)
    assert not found["router_cost"].any()


@pytest.fixture(scope="module")
def together(records):
    return measure_cascades(records, groups=EACH, n_resamples=2)


@pytest.mark.parametrize("name", list(CASCADES))
def test_a_cascade_is_its_operating_point(records, together, name):
    rows = cascade_questions(records, CASCADES[name])
    rows = rows[rows["dataset"] == "long_chains"]
    routed = CASCADES[name].routed
    point = cascade.operating_point(
        *(rows[column] for column in cascade.COLUMNS),
        router_cost=rows["router_cost"] if routed else None,
    )
    found = now(together, name, "long_chains")
    assert found["pass_at_1"] == pytest.approx(100 * point.pass_at_1)
    assert found["cost"] == pytest.approx(point.cost)
    assert found["deferral_rate"] == pytest.approx(100 * point.deferral_rate)
    assert found["cost_change"] == pytest.approx(-100 * point.cost_saving)
    assert found["pass_at_1_change"] == pytest.approx(-100 * point.accuracy_drop)
    parts = found[["small_cost", "large_cost", "router_cost"]]
    assert parts.sum() == pytest.approx(found["cost"])
    assert (parts["router_cost"] > 0) == routed


def test_models_alone(records, together):
    for system in ("RLVR-SLM", LARGE_MODEL):
        rows = records[(records["system"] == system) & (records["dataset"] == "chains")]
        ratio = rows["parameters"].iloc[0] / 230_000
        found = now(together, system)
        assert found["pass_at_1"] == pytest.approx(100 * rows["correct"].mean())
        tokens = rows["prompt_tokens"] + 4 * rows["completion_tokens"]
        assert found["cost"] == pytest.approx(ratio * tokens.mean())
        assert found["deferral_rate"] == (100 if system == LARGE_MODEL else 0)
        assert found["router_cost"] == 0
    assert list(together["system"].unique()) == [
        *("SLM", "RLVR-SLM", "Brier-SLM", "L1-SLM", LARGE_MODEL),
        *CASCADES,
    ]


def test_changes_of_a_group_are_those_of_its_means(records):
    measured = measure_cascades(records, n_resamples=2)
    corea, large = (now(measured, s, "OOD reasoning") for s in ("COREA", LARGE_MODEL))
    assert corea["cost_change"] == pytest.approx(100 * (corea["cost"] / large["cost"] - 1))
    assert corea["pass_at_1_change"] == pytest.approx(corea["pass_at_1"] - large["pass_at_1"])


def test_one_large_model_behind_three_small_ones(replicated):
    alone = (replicated["system"] != LARGE_MODEL) | (replicated["seed"] == 1)
    measured = measure_cascades(replicated[alone], n_resamples=20)
    seeds = measured.groupby("system")["seed"].unique()
    assert list(seeds[LARGE_MODEL]) == [1]
    assert list(seeds["COREA"]) == [0, 1, 2]
    rows = summarize(measured).set_index(["system", "dataset", "metric"])
    assert rows.loc[("COREA", "chains", "pass_at_1"), "interval"] == FEW_SEEDS
    assert rows.loc[(LARGE_MODEL, "chains", "pass_at_1"), "interval"] == ONE_SEED
    gap = differences(measured, [("COREA", LARGE_MODEL)]).iloc[0]
    assert (gap["n_seeds"], gap["interval"]) == (1, ONE_SEED)
    # the large model alone with a seed that no small one has
    other = replicated[alone & ~((replicated["system"] != LARGE_MODEL) & (replicated["seed"] == 1))]
    measured = measure_cascades(other, n_resamples=2)
    assert list(measured.loc[measured["system"] == LARGE_MODEL, "seed"].unique()) == [1]


def test_cascades_that_cannot_be(records, replicated, tmp_path):
    two = replicated[(replicated["system"] != LARGE_MODEL) | (replicated["seed"] > 0)]
    with pytest.raises(ValueError, match="'Baseline LLM' has no run with seed 0"):
        measure_cascades(two)
    without = records.drop(columns="router_prompt_tokens")
    with pytest.raises(ValueError, match="lacks router_prompt_tokens: no cost of its router"):
        cascade_questions(without, CASCADES["Router+RLVR-SLM"])
    fewer = records[(records["system"] != LARGE_MODEL) | (records["sample"] < 2)]
    with pytest.raises(RecordsError, match="expected the same questions and samples"):
        cascade_questions(fewer, CASCADES["COREA"])
    run = fake_run(tmp_path / "t", system="tiny", method="l1", role="tiny", n_questions=16)
    both = pd.concat([records, run_records([run])])
    with pytest.raises(ValueError, match="differ in size, so costs have no one unit"):
        measure_cascades(both, {"a": Cascade("L1-SLM"), "b": Cascade("tiny")})


def test_without_a_probe_its_cascade_is_left_out(records, untrained):
    without = records.drop(columns=["router", "router_prompt_tokens"]).assign(probe=np.nan)
    assert set(CASCADES) - set(cascades_of(without)) == {"RLVR-SLM-Probe", "Router+RLVR-SLM"}
    assert list(cascades_of(records_of(untrained))) == list(CASCADES)  # though nothing is stated


def test_thresholds_are_points_of_the_curve(records):
    thresholds = [0.0, 0.35, 0.7, 1.1]
    measured = measure_thresholds(records, thresholds, dataset="words", n_resamples=2)
    for name in ("COREA", "Router+RLVR-SLM"):
        rows = cascade_questions(records, CASCADES[name])
        rows = rows[rows["dataset"] == "words"]
        curve = cascade.deferral_curve(
            *(rows[column] for column in cascade.COLUMNS),
            router_cost=rows["router_cost"] if CASCADES[name].routed else None,
        )
        for threshold in thresholds:
            found = now(measured[measured["threshold"] == threshold], name, "words")
            expected = cascade.at_threshold(curve, threshold)
            assert found["pass_at_1"] == pytest.approx(100 * expected["pass_at_1"])
            assert found["cost"] == pytest.approx(expected["cost"])
            assert found["deferral_rate"] == pytest.approx(100 * expected["deferral_rate"])
    assert len(summarize(measured)) == len(CASCADES) * len(thresholds) * 3


def test_areas_are_those_of_the_curves():
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 40):
        confidence = np.where(rng.random(n) < 0.2, np.nan, rng.integers(0, 6, n) / 5)
        small, large = rng.random(n) < 0.5, rng.random(n) < 0.8
        weight = rng.integers(0, 3, (5, n)).astype(float)
        weight[:, 0] = 1
        found = _areas(confidence, large.astype(float) - small, weight)
        for area, w in zip(found, weight, strict=True):
            curve = cascade.deferral_curve(confidence, small, large, 1.0, 1.0, weight=w)
            assert area == pytest.approx(cascade.area_over_random(curve), abs=1e-12)


def test_matched_accuracy_is_the_cheapest_threshold_of_each_resample(records):
    some = records[records["dataset"].isin(["chains", "words"])]
    drops = [0.0, 3.0]
    groups = {"chains": ["chains"]}
    measured = measure_matched(some, drops, groups=groups, n_resamples=6)
    for name in ("COREA", "Router+RLVR-SLM", "SLM-Verb"):
        rows = cascade_questions(some, CASCADES[name])
        rows = rows[rows["dataset"] == "chains"]
        weights = QuestionWeights(rows.assign(system=name), 6, 0).of_rows(rows, "chains")
        for k, weight in enumerate(weights):
            curve = cascade.deferral_curve(
                *(rows[column] for column in cascade.COLUMNS),
                router_cost=rows["router_cost"] if CASCADES[name].routed else None,
                weight=weight,
            )
            large = np.average(rows["large_correct"], weights=weight)
            alone = np.average(rows["large_cost"], weights=weight)
            for drop in drops:
                enough = large - drop / 100 - 1e-9
                best = curve[
                    curve["threshold"] == cascade.cheapest_threshold(curve, min_pass_at_1=enough)
                ].iloc[0]
                at = measured[(measured["max_drop"] == drop) & (measured["resample"] == k)]
                at = at[at["system"] == name].set_index("metric")["value"]
                assert at["cost"] == pytest.approx(best["cost"])
                assert at["pass_at_1"] == pytest.approx(100 * best["pass_at_1"])
                assert at["cost_change"] == pytest.approx(100 * (best["cost"] / alone - 1))
                assert at["pass_at_1_change"] >= -drop - 1e-6
                assert at["deferral_rate"] == pytest.approx(100 * best["deferral_rate"])


def test_a_dearer_large_model_is_one_with_more_weights(records):
    of = {"COREA": CASCADES["COREA"]}
    options = {"groups": {"chains": ["chains"]}, "n_resamples": 2}
    measured = measure_cascades(records, of, **options)
    dear = records["parameters"].where(records["system"] != LARGE_MODEL, records["parameters"] * 3)
    expected = now(measure_cascades(records.assign(parameters=dear), of, **options))
    priced = reprice(measured[measured["system"] == "COREA"], [3.0, 1e12, np.inf])
    found = [now(rows)["cost_change"] for _, rows in priced.groupby("price_factor")]
    assert found[0] == pytest.approx(expected["cost_change"])
    assert found[1] == pytest.approx(found[2])


def test_no_confidence_defers_better_than_the_oracle(records):
    found = summarize(measure_areas(records, n_resamples=5))
    wide = found.pivot(index=["system", "dataset"], columns="metric", values="value")
    assert (wide["oracle_area"] > wide["area_over_random"]).all()


def test_chosen_thresholds(records):
    options = {"datasets": ["chains"]}
    rows = cascade_questions(records, CASCADES["COREA"])
    rows = rows[rows["dataset"] == "chains"]
    papers = choose_thresholds(records, **options)["COREA"]["chains"]
    assert papers == rows["large_correct"].mean()
    cheap = choose_thresholds(records, max_accuracy_drop=0.05, **options)
    curve = cascade.deferral_curve(*(rows[column] for column in cascade.COLUMNS))
    enough = rows["large_correct"].mean() - 0.05 - 1e-9
    expected = cascade.cheapest_threshold(curve, min_pass_at_1=enough)
    assert cheap["COREA"]["chains"] == expected


def test_a_threshold_is_chosen_for_one_model(replicated):
    with pytest.raises(ValueError, match="several seeds"):
        choose_thresholds(replicated, datasets=["chains"])


def held_out_records():
    """Small: always sure at 0.9 and right. Large: always right on a, never on b."""
    rows = [
        {"dataset": dataset, "question_id": f"{i}", "sample": 0, "system": system, "seed": seed,
         "correct": system == "S" or dataset == "a", "confidence": 0.9, "prompt_tokens": 10,
         "completion_tokens": 5, "parameters": 10 if system == "L" else 1}
        for dataset in "ab" for i in range(7) for system in "SL" for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_thresholds_from_the_other_half():
    groups = {"a": ["a"], "b": ["b"]}
    measured = measure_held_out(
        held_out_records(), {"C": Cascade("S")}, max_accuracy_drop=0.0, large="L", groups=groups
    )
    found = summarize(measured)
    rate = found[found["metric"] == "deferral_rate"].set_index(["rule", "dataset"])["value"]
    assert rate.to_dict() == {
        ("paper's", "a"): 100,  # 0.9 is below the large model's pass@1 of 1
        ("paper's", "b"): 0,
        ("cheapest", "a"): 0,  # the small model is as good
        ("cheapest", "b"): 0,
        ("paper's, on a", "a"): 100,
        ("paper's, on a", "b"): 100,
    }
    assert set(found["n_seeds"]) == {2}


def test_the_half_used_is_not_the_half_chosen_on(records):
    two = {"COREA": CASCADES["COREA"]}
    options = {"max_accuracy_drop": 0.02, "groups": {"chains": ["chains"]}, "n_resamples": 2}
    first, again, other = (
        measure_held_out(records, two, seed=seed, **options) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not first["value"].equals(other["value"])
    # where the large model is wrong on the questions chosen on, and only there, nothing is
    # deferred, and pass@1 of the large model on the others is as before
    change = now(first[first["rule"] == "paper's"])
    alone = now(measure_cascades(records, two, n_resamples=2), LARGE_MODEL)
    assert change["pass_at_1"] - change["pass_at_1_change"] != pytest.approx(alone["pass_at_1"])


# --- beside the paper ---


def three_systems():
    """The paper's numbers, and this run's of three systems, one of them ours."""
    paper = pd.DataFrame(
        {"dataset": "chains", "metric": "ece", "system": ["a", "b", "d"], "value": [0.1, 0.3, 0.5]}
    )
    here = pd.concat(
        [
            made({0: [0.1], 1: [0.11]}, system="a"),
            made({0: [0.4], 1: [0.42]}, system="b"),
            made({0: [0.2], 1: [0.3]}, system="ours"),
        ]
    )
    return here, paper


def evidence(**values):
    """A committed table of one metric: system to (value, low, high)."""
    rows = [
        {"dataset": "chains", "metric": "ece", "system": system, "value": value, "low": low,
         "high": high, "n_seeds": 8, "n_questions": 300, "interval": "questions and seeds"}
        for system, (value, low, high) in values.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_rows_beside_the_paper_are_those_of_either_run():
    here, paper = three_systems()
    committed = evidence(d=(0.6, 0.5, 0.7), a=(0.2, 0.15, 0.25), b=(0.4, 0.3, 0.5))
    beside = compare.beside_paper(here, paper, metrics=["ece"], committed=committed)
    rows = beside.set_index("system")
    assert list(rows.index) == ["d", "a", "b", "ours"]
    assert rows["replicates"].to_dict() == {"d": "", "a": "outside", "b": "inside", "ours": ""}
    assert rows["paper"].isna().to_dict() == {"d": False, "a": False, "b": False, "ours": True}
    assert rows.loc["d", "full_run"] == 0.6
    assert np.isnan(rows.loc["d", "value"])
    assert np.isnan(rows.loc["ours", "full_run"])
    with pytest.raises(ValueError, match="not measured: auroc"):
        compare.beside_paper(here, paper, metrics=["ece", "auroc"], committed=committed)


def test_a_table_beside_the_paper_shows_every_arm():
    here, paper = three_systems()
    hostile = here.replace({"system": {"ours": "<img src=x onerror=alert(1)>"}})
    alone = compare.beside_paper(hostile, paper, metrics=["ece"])
    shown = compare.show_beside(alone, {"ece": ("ECE", ".2f")}, "A caption.").data
    assert "<img" not in shown
    (rows,) = tables([shown]).values()
    assert list(rows[0]) == ["system", "paper", "this run"]
    committed = evidence(d=(0.6, 0.5, 0.7), b=(0.4, 0.3, 0.5))
    both = compare.beside_paper(hostile, paper, metrics=["ece"], committed=committed)
    (rows,) = tables(
        [compare.show_beside(both, {"ece": ("ECE", ".2f")}, "A caption.").data]
    ).values()
    assert [list(row.values()) for row in rows[:2]] == [
        ["d", "0.50", "0.60 [0.50, 0.70]", "not trained", ""],
        ["b", "0.30", "0.40 [0.30, 0.50]", "0.41 [0.28, 0.54]", "inside"],
    ]
    assert len(rows) == 4
    options = {"n_resamples": 7, "seed": 3}
    one, two = (evidence_of.interval_note("sft_or_grpo", rows, **options) for rows in (alone, both))
    assert one.startswith("95 % intervals: ")
    assert "(7 resamples, seed 3)" in one
    # the committed run has its own number of them
    assert two.startswith("95 % intervals of the committed full run: ")
    assert "(100 resamples, seed 0)" in two
    assert "(7 resamples, seed 3)" in two.partition("95 % intervals of this run: ")[2]


def test_a_committed_table_survives_its_file(tmp_path, records):
    measured = measure_cascades(records, n_resamples=5)
    paper = compare.paper_rows(1)
    metrics = ["pass_at_1", "cost_change"]
    first = compare.beside_paper(measured, paper, metrics=metrics)
    compare.own_columns(first).to_csv(tmp_path / "t.csv", index=False)
    committed = pd.read_csv(tmp_path / "t.csv")
    assert not {"paper", "replicates", "full_run"} & set(committed)
    again = compare.beside_paper(measured, paper, metrics=metrics, committed=committed)
    assert again["full_run"].to_numpy() == pytest.approx(again["value"].to_numpy())
    assert set(again["replicates"]) == {"inside"}
    # what a run shows of others is not its own to publish
    del_ours = measured[measured["system"] != "COREA"]
    fewer = compare.beside_paper(del_ours, paper, metrics=metrics, committed=committed)
    assert "COREA" in set(fewer["system"]) - set(compare.own_columns(fewer)["system"])


def test_contrasts_are_the_differences_of_the_pairs_there_are():
    here, _ = three_systems()
    found = compare.contrasts(
        here, [("b", "a"), ("b", "x"), ("b", "a")], metrics=["ece"], ratios=["ece"]
    )
    expected = differences(here, [("b", "a")])
    assert found["statistic"].to_list() == ["difference", "ratio"]
    assert found.loc[0, list(COLUMNS)].to_list() == expected.loc[0, list(COLUMNS)].to_list()
    assert found.loc[1, "value"] == pytest.approx(np.mean([0.4 / 0.1, 0.42 / 0.11]))
    none = compare.contrasts(here, [("x", "y")], metrics=["ece"])
    assert none.empty
    assert list(none) == [*compare.CONTRAST, *COLUMNS]


def test_shares_of_the_pareto_front():
    acc = {"a": [9, 9, 1], "b": [8, 8, 8], "c": [8, 7, 7]}  # resample 0 does not count
    ece = {"a": [1, 1, 9], "b": [2, 2, 2], "c": [1, 3, 3]}
    rows = pd.concat(
        made({0: values[s]}, system=s, metric=metric)
        for metric, values in (("acc", acc), ("ece", ece))
        for s in "abc"
    )
    found = compare.pareto_shares(rows, gain="acc", loss="ece")
    assert found["share"].to_list() == [0.5, 0.5, 0.0]
    rows.loc[(rows["system"] == "a") & (rows["metric"] == "ece"), "value"] = np.nan
    found = compare.pareto_shares(rows, gain="acc", loss="ece").set_index("system")["share"]
    assert found["a"] == 0  # not defined


def test_paper_rows():
    table1 = compare.paper_rows(1)
    assert set(table1["dataset"]) == set(GROUPS)
    assert len(table1) == len(published.published_table("A", 1))
    rollouts = compare.paper_rows(14, systems={"8": "G = 8"}, label="setting")
    assert set(rollouts["dataset"]) == {"chains", "additions", "words"}
    assert set(rollouts["system"]) == {"G = 8"}
    assert "ece_per_run" in set(rollouts["metric"])
    assert "ece" not in set(rollouts["metric"])
    lost = compare.paper_rows(3)
    assert set(lost["dataset"]) == {"all datasets"}
    own = compare.paper_rows(12, 13, suite=PAPERS)
    assert set(own["dataset"]) == set(PAPERS.datasets)
    with pytest.raises(ValueError, match="table of paper A"):
        compare.paper_rows(99)


def test_the_papers_layout():
    """The paper's own numbers, laid out here, are the paper's own table."""
    for number, names in (
        (1, {"pass_at_1": "Pass@1%", "cost": "Avg Cost", "deferral_rate": "LLM%"}),
        (11, {"pass_at_1": "Pass@1%", "cost": "Avg Cost", "deferral_rate": "LLM%"}),
    ):
        found = compare.lay_out_systems(published.published_table("A", number), CASCADES, names)
        expected = published.lay_out_table("A", number)
        expected.columns = [" ".join(column) for column in expected.columns]
        rows = found.set_index(["", "System"])[list(expected)]
        assert rows.to_numpy().tolist() == expected.to_numpy().tolist()
        assert rows.index.tolist() == expected.index.tolist()


def test_points_of_the_cost_figure(records):
    measured = measure_cascades(records, n_resamples=5)
    points = compare.cost_accuracy_points(
        {"paper": compare.paper_rows(1), "this run": summarize(measured)}
    ).set_index(["source", "dataset", "system"])
    corea = points.loc[("paper", "OOD reasoning", "COREA")]
    assert corea["cost"] == pytest.approx(100 - 21.5, abs=0.05)
    assert points.loc[("paper", "chains", LARGE_MODEL), "cost"] == 100
    here = points.loc[("this run", "chains", "COREA")]
    assert here["cost"] == pytest.approx(100 + now(measured)["cost_change"])
    assert here["cost_low"] <= here["cost"] <= here["cost_high"]
    assert ("paper", "chains", "COREA-Expected") not in points.index
    drawing = figures.plot_cost_accuracy(points.reset_index(), row="source", column="dataset")
    assert len(drawing.legends[0].get_texts()) == measured["system"].nunique()
    plt.close(drawing)


def test_systems_of_one_figure_have_colours_of_their_own():
    systems = figures.colors([*CASCADES, LARGE_MODEL])
    assert len(set(systems.values())) == len(systems)
    assert figures.colors(["COREA"])["COREA"] == figures.colors(["L1-SLM"])["L1-SLM"]
    rewards = figures.colors(["SLM", "RLVR", "L1", "Sample_L1", "L2", "Brier", "KL", "Sample_KL"])
    assert len(set(rewards.values())) == len(rewards)


# --- the chapters ---------------------------------------------------------------------------


CHAPTERS = {
    "corea_baselines": ("base", "rlvr", "brier", "l1"),
    "threshold_curves": ("base", "rlvr", "brier", "l1"),
    "second_pairing": ("base", "l1"),
}


def parameters_of(name, runs):
    small = [folder for run in CHAPTERS[name] for folder in runs[run]]
    parameters = {"small_runs": small, "large_runs": runs["large"], "n_resamples": 20}
    if name == "second_pairing":
        parameters["tiny_runs"] = [*runs["tiny_base"], *runs["tiny_l1"]]
    return parameters


@pytest.fixture(scope="module")
def chapter(request, tmp_path_factory):
    """Function that runs a chapter once and gives what it shows and where its tables are."""
    done = {}

    def run(name, made):
        if (name, made) not in done:
            folder = tmp_path_factory.mktemp(f"{name}-{made}")
            parameters = parameters_of(name, request.getfixturevalue(made))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                shown = execute(name, parameters | {"output_dir": str(folder)})
            done[name, made] = shown, folder
        return done[name, made]

    return run


@pytest.mark.parametrize("made", ["one_seed", "three_seeds", "untrained", "on_the_papers_datasets"])
@pytest.mark.parametrize("name", list(CHAPTERS))
def test_chapter_on_made_up_runs(chapter, name, made):
    shown, folder = chapter(name, made)
    assert not plt.get_fignums()
    text = "\n".join(shown)
    assert text.count("<caption>") + text.count("<figcaption>") > 5
    assert "bootstrap over questions (20 resamples" in text
    assert ("t over 3 seeds, few" in text) == (made == "three_seeds")
    assert str(folder.parent) not in text  # no path of this machine
    tables = sorted(folder.glob("*.csv"))
    assert tables
    for path in tables:
        assert path.stat().st_size < full_run.LARGEST
        assert not [c for c in pd.read_csv(path) if c.startswith("full_run")]


@pytest.mark.parametrize("name", list(CHAPTERS))
def test_a_run_on_the_papers_datasets_is_shown_beside_no_other(chapter, name):
    shown, folder = chapter(name, "on_the_papers_datasets")
    (own,) = [html for html in shown if ">Your run</summary>" in html]
    assert all(group in own for group in PAPERS.groups)
    assert "chains" not in own
    assert "committed full run" not in own
    assert "No full run of these datasets is committed." in own
    for path in folder.glob("*.csv"):
        assert "chains" not in path.read_text()


def doctored(folder, name, seeds):
    """Tables that a chapter wrote, as evidence with an arm more and one less, from eight seeds."""
    committed = full_run.published

    def published(run, table, suite=MICROWORLD):
        if run != name:
            return committed(run, table, suite)
        rows = pd.read_csv(folder / f"{table}.csv")
        if "n_seeds" in rows:
            rows["n_seeds"] = seeds
        if table == "systems":
            more = rows[rows["system"] == "COREA"].assign(system="Extra-SLM-Verb", value=77.25)
            rows = pd.concat([rows[rows["system"] != "SLM-Verb"], more])
        return rows

    return published


@pytest.mark.parametrize("name", ["corea_baselines", "second_pairing"])
def test_every_arm_of_the_evidence_and_of_the_run_is_shown(chapter, one_seed, monkeypatch, name):
    _, folder = chapter(name, "one_seed")
    monkeypatch.setattr(full_run, "published", doctored(folder, name, 8))
    found = tables(execute(name, parameters_of(name, one_seed)))
    (rows,) = [rows for caption, rows in found.items() if caption.startswith("Pass@1%. Beside")]
    of = {(row["dataset"], row["system"]): row for row in rows}
    extra, own, both = (of["chains", s] for s in ("Extra-SLM-Verb", "SLM-Verb", "COREA"))
    assert extra["committed full run"].startswith("77.2")
    assert (extra["this run"], extra["this run is"]) == ("not trained", "")
    assert (own["committed full run"], own["this run is"]) == ("–", "")
    assert own["this run"] != "–"
    assert both["this run is"] == "inside"


def test_a_chapter_is_about_the_evidence(chapter):
    shown, _ = chapter("corea_baselines", "one_seed")
    kept = full_run.published("corea_baselines", "systems").set_index(
        ["system", "metric", "dataset"]
    )["value"]
    found = tables(shown)
    (rows,) = [rows for caption, rows in found.items() if caption.startswith("COREA's change")]
    assert [row["questions"] for row in rows] == list(MICROWORLD.groups)
    for row in rows:
        for heading, metric in (("pass@1", "pass_at_1_change"), ("cost", "cost_change")):
            value = kept["COREA", metric, row["questions"]]
            assert row[heading].startswith(f"{value:+.1f} [")
    (rows,) = [rows for caption, rows in found.items() if caption.startswith("All cascades on")]
    assert [row["system"] for row in rows] == list(CASCADES)
    of = claims_of(shown)
    assert of["A4"]["verdict"] == "holds"
    assert of["A4"]["your run"] == "one training seed"


def test_the_allowed_loss_is_a_fraction(records):
    with pytest.raises(ValueError, match="expected a fraction"):
        choose_thresholds(records, datasets=["chains"], max_accuracy_drop=2.0)


def claims_of(shown):
    """Rows of a chapter's table of claims, by claim."""
    (rows,) = [
        rows for caption, rows in tables(shown).items() if caption.startswith("What the paper")
    ]
    return {row["claim"].partition(".")[0]: row for row in rows}


def test_the_collapse_is_seen(chapter):
    _, folder = chapter("second_pairing", "three_seeds")
    contrasts = pd.read_csv(folder / "contrasts.csv").set_index(["system", "baseline", "metric"])
    assert contrasts.loc[("tiny, end", "nothing", "share_at_0"), "low"].item() > 0.5
    assert contrasts.loc[("tiny, end", "nothing", "overconfidence"), "high"].item() < 0


def test_stated_confidence_is_the_coarser_one(chapter):
    _, folder = chapter("threshold_curves", "three_seeds")
    contrasts = pd.read_csv(folder / "contrasts.csv")
    fewer = contrasts[contrasts["metric"] == "operating_points"]
    assert set(fewer["dataset"]) == set(MICROWORLD.datasets)
    assert (fewer["high"] < 0).all()
    larger = contrasts[contrasts["metric"] == "largest_step"]
    assert (larger["value"] > 0).all()
