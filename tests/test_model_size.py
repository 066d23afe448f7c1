import numpy as np
import pandas as pd
import pytest
from chapters import execute, tables
from fake_runs import fake_run
from scipy import stats

from corea.book import full_run
from corea.book.model_size import learner, plot_sizes, short_number, trends
from corea.metrics.intervals import ONE_SEED, SEEDS, Interval
from corea.tasks.microworld import PRESETS, World, build_tokenizer, model_config, new_model

SIZES = {"a": 1e4, "b": 1e5, "c": 1e6}


def measurements(values, resamples=()):
    """Rows of a metric: system to its values by seed, and shifts of each for resamples."""
    rows = [
        (system, seed, resample, value + shift)
        for system, by_seed in values.items()
        for seed, value in by_seed.items()
        for resample, shift in enumerate([0.0, *resamples])
    ]
    table = pd.DataFrame(rows, columns=["system", "seed", "resample", "value"])
    return table.assign(dataset="chains", metric="auroc")


def trend(values, resamples=(), **sizes):
    (row,) = trends(measurements(values, resamples), {"L1": sizes or SIZES}).to_dict("records")
    return row


# --- trends -------------------------------------------------------------------------------------


def test_slope_and_interval_are_those_of_least_squares_with_pure_error():
    rng = np.random.default_rng(0)
    values = {
        system: {seed: 0.1 * np.log10(size) + rng.normal(0, 0.05) for seed in range(3)}
        for system, size in SIZES.items()
    }
    found = trend(values)
    x = np.repeat(np.log10(list(SIZES.values())), 3)
    y = np.array([list(by_seed.values()) for by_seed in values.values()])
    # as many seeds of each size: the line through the means is that through all runs
    assert found["value"] == pytest.approx(stats.linregress(x, y.ravel()).slope)
    pooled = np.sqrt(y.var(axis=1, ddof=1).mean())  # 3 * 2 degrees of freedom
    error = pooled / np.sqrt(((x - x.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, 6) * error
    assert [found["low"], found["high"]] == pytest.approx(
        [found["value"] - half, found["value"] + half]
    )
    assert (found["interval"], found["n_sizes"], found["n_runs"]) == (SEEDS, 3, 9)


def test_the_interval_holds_the_slope_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        # the largest size once, as when it is dear
        runs = {"a": 3, "b": 3, "c": 1}
        values = {
            name: {seed: 0.2 * np.log10(SIZES[name]) + rng.normal(0, 0.1) for seed in range(n)}
            for name, n in runs.items()
        }
        found = trend(values)
        held += found["low"] <= 0.2 <= found["high"]
    assert held / 400 == pytest.approx(0.95, abs=0.03)


def test_a_size_with_more_seeds_weighs_no_more_in_the_slope():
    once = trend({"a": {0: 0.5}, "b": {0: 0.6}, "c": {0: 0.9}})
    often = trend({"a": {0: 0.5}, "b": {0: 0.6}, "c": {0: 0.8, 1: 1.0}})
    assert often["value"] == pytest.approx(once["value"]) == pytest.approx(0.2)


def test_with_one_run_of_each_size_the_interval_is_over_questions():
    values = {"a": {0: 0.5}, "b": {0: 0.6}, "c": {0: 0.7}}
    table = measurements(values, resamples=[0.0, 0.0])
    table.loc[(table["system"] == "c") & (table["resample"] == 1), "value"] = 0.9
    table = table.sample(frac=1, random_state=0)  # whatever the order of the rows
    (found,) = trends(table, {"L1": SIZES}).to_dict("records")
    assert found["interval"] == ONE_SEED
    assert found["value"] == pytest.approx(0.1)
    # the resamples have slopes 0.2 and 0.1, so a bias of 0.05 that widens to the lower side
    half = 1.959964 * np.std([0.1, 0.2], ddof=1)
    assert [found["low"], found["high"]] == pytest.approx([0.05 - half, 0.1 + half])


def test_questions_widen_the_interval_of_a_slope_as_they_do_that_of_a_mean():
    rng = np.random.default_rng(3)
    values = {name: {s: rng.normal(0, 0.01) for s in range(5)} for name in "ab"}
    sizes = {"a": 1.0, "b": 10.0}
    narrow = trend(values, **sizes)
    table = measurements(values, resamples=np.zeros(300))
    moved = table["resample"] > 0
    noise = rng.normal(0, 0.1, 301)
    table.loc[moved & table["system"].eq("b"), "value"] += noise[table["resample"]][
        moved & table["system"].eq("b")
    ]
    (wide,) = trends(table, {"L1": sizes}).to_dict("records")
    assert wide["value"] == narrow["value"]
    # the questions that move all seeds of a size alike have nearly endless degrees of freedom
    own = (narrow["high"] - narrow["low"]) / 2
    shift = abs(noise[1:].mean())
    half = np.sqrt(own**2 + (1.959964 * noise[1:].std(ddof=1)) ** 2)
    assert wide["high"] - wide["low"] == pytest.approx(2 * half + shift)


def test_rank_correlation_is_spearmans_and_its_p_value_that_of_permutations():
    values = {"a": {0: 0.5, 1: 0.52}, "b": {0: 0.51, 1: 0.6}, "c": {0: 0.7, 1: 0.8}}
    found = trend(values)
    x = np.repeat(list(SIZES.values()), 2)
    y = [value for by_seed in values.values() for value in by_seed.values()]
    assert found["rank_correlation"] == pytest.approx(stats.spearmanr(x, y).statistic)

    def correlation(y):
        return stats.spearmanr(x, y).statistic

    exact = stats.permutation_test((y,), correlation, permutation_type="pairings")
    assert found["p_value"] == pytest.approx(exact.pvalue, abs=0.02)


def test_a_metric_that_is_alike_everywhere_has_a_slope_of_zero_and_no_rank_correlation():
    found = trend({name: {0: 0.5, 1: 0.5} for name in SIZES})
    assert (found["value"], found["low"], found["high"]) == (0, 0, 0)
    assert np.isnan(found["rank_correlation"])
    assert np.isnan(found["p_value"])


def test_runs_in_which_a_metric_is_not_defined_are_left_out():
    found = trend({"a": {0: 0.5, 1: np.nan}, "b": {0: 0.6}, "c": {0: np.nan}})
    assert (found["n_sizes"], found["n_runs"]) == (2, 2)
    assert found["value"] == pytest.approx(0.1)
    nothing = trends(measurements({"a": {0: 0.5}, "b": {0: np.nan}}), {"L1": {"a": 1, "b": 2}})
    assert nothing.empty
    assert "p_value" in nothing


def test_resamples_in_which_a_metric_is_not_defined_may_have_no_row():
    values = {system: {0: value} for system, value in zip("abc", (0.1, 0.2, 0.4), strict=True)}
    table = measurements(values, resamples=(0.1, -0.1, 0.05, 0.0, -0.02))
    lines = {"L1": SIZES}
    (whole,) = trends(table, lines).to_dict("records")
    (found,) = trends(table.drop(index=[2, 9]), lines).to_dict("records")  # of a and b
    assert (found["value"], found["n_sizes"]) == (whole["value"], 3)
    assert np.isfinite([found["low"], found["high"]]).all()
    (two,) = trends(table.drop(index=6), lines).to_dict("records")  # b as it is
    assert two["n_sizes"] == 2


def test_a_system_that_was_not_measured_is_named():
    with pytest.raises(ValueError, match="L1: not measured: d"):
        trends(measurements({"a": {0: 0.5}}), {"L1": {"a": 1e4, "d": 1e7}})


# --- what there is to be known ----------------------------------------------------------------


def test_a_perfect_learner_of_a_sure_corpus_is_always_right():
    sure = World(noise_levels=(0.0,), name_shares=(1.0,))
    known = learner(sure, "chains", 20, 0.6)
    assert known["pass_at_1"] == 100
    assert np.isnan(known["auroc"])


def test_auroc_of_a_perfect_learner_is_what_its_answers_have():
    from sklearn.metrics import roc_auc_score

    from corea.tasks.microworld import questions, sampler_accuracy

    known = learner(World(), "chains", 200, 0.6)
    right = [sampler_accuracy(World(), q, 0.6) for q in questions(World(), "chains", "test", 200)]
    assert known["pass_at_1"] == pytest.approx(100 * np.mean(right))
    drawn = np.random.default_rng(0).random((2000, 200)) < right
    assert known["auroc"] == pytest.approx(
        roc_auc_score(drawn.ravel(), np.tile(right, 2000)), abs=0.002
    )


# --- sizes ------------------------------------------------------------------------------------


def test_weights_of_blocks_are_those_of_the_models_matrices():
    tokenizer = build_tokenizer()
    weights = {}
    for name, preset in PRESETS.items():
        shape = preset.hidden_size, preset.n_layers, preset.n_heads
        model = new_model(model_config("qwen2", *shape, len(tokenizer)), 0)
        blocks = [w.numel() for w in model.model.layers.parameters() if w.dim() == 2]
        assert sum(blocks) == preset.block_weights
        weights[name] = sum(w.numel() for w in model.parameters())
    same_corpus = [name for name, preset in PRESETS.items() if preset.name_shares is None]
    assert len(same_corpus) >= 5
    sizes = [weights[name] for name in same_corpus]
    assert sizes == sorted(sizes)
    assert sizes[-1] >= 90 * sizes[0]


def test_numbers_of_weights_are_short():
    assert [short_number(n) for n in (999_499, 999_500, 7e9)] == ["999k", "1.0M", "7000.0M"]


def test_each_panel_has_its_lines_and_the_reference_no_intervals():
    values = pd.DataFrame(
        [
            {"method": method, "metric": metric, "run": "this run", "parameters": size}
            for method in ("SLM", "L1", "perfect learner")
            for metric in ("ECE", "AUROC")
            for size in (1e4, 1e6)
        ]
    ).assign(estimate=0.5, low=0.4, high=0.6)
    values.loc[values["method"] == "perfect learner", ["low", "high"]] = np.nan
    drawing = plot_sizes(values, line="method", columns="metric", rows="run")
    for axes in drawing.axes:
        assert axes.get_xscale() == "log"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["10k", "1.0M"]
        assert len(axes.lines) == 3
        assert len(axes.collections) == 2  # intervals
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.texts] == ["SLM", "L1", "perfect learner"]


# --- the chapter --------------------------------------------------------------------------------

TRAINED = {"base": "SLM", "l1": "L1-SLM", "none": "RLVR-SLM"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs of three sizes, two seeds each but for the largest, RLVR of the small one only."""
    root = tmp_path_factory.mktemp("sizes")
    made = {}
    for role, seeds in {"tiny": (0, 1), "small": (0, 1), "big": (0,)}.items():
        for seed in seeds:
            for method, system in TRAINED.items():
                if method == "none" and (role, seed) != ("small", 0):
                    continue
                folder = root / f"{method}_{role}_{seed}"
                options = {"system": system, "method": method, "role": role, "seed": seed}
                made[method, role, seed] = fake_run(folder, n_questions=16, n_samples=2, **options)
    return made


def chapter(runs, tmp_path, **parameters):
    given = {"runs": list(runs), "n_resamples": 10, "output_dir": str(tmp_path)}
    return execute("model_size", given | parameters)


def test_the_chapter_writes_whatever_was_trained(folders, tmp_path):
    chapter(folders.values(), tmp_path)
    sizes = pd.read_csv(tmp_path / "sizes.csv")
    assert set(sizes["size"]) == {"tiny", "small", "big"}
    assert set(sizes["method"]) == {"SLM", "SLM-AvgProb", "RLVR", "L1", "gain"}
    key = ["size", "method", "dataset", "metric"]
    by_key = sizes.set_index(key)["value"]
    gain = by_key["big", "L1", "chains", "ece"] - by_key["big", "SLM", "chains", "ece"]
    assert by_key["big", "gain", "chains", "ece"] == pytest.approx(gain, abs=1e-5)
    gains = sizes[(sizes["method"] == "gain") & (sizes["metric"] == "ece")]
    assert (gains["low"] < gains["value"]).all()  # a gain in ECE is below 0, and so is its interval
    assert (gains["value"] < gains["high"]).all()
    trends = pd.read_csv(tmp_path / "trends.csv").set_index(["line", "dataset", "metric", "sizes"])
    trends = trends.sort_index()
    of = trends.loc[("L1", "chains", "ece")]
    assert of["n_sizes"].to_dict() == {"all": 3, "without the smallest": 2}
    assert of["n_runs"].to_dict() == {"all": 5, "without the smallest": 3}
    ends = pd.read_csv(tmp_path / "ends.csv").set_index("size")
    # its made-up confidence goes to 0
    assert ends["collapsed"].to_dict() == {"tiny": 1, "small": 0, "big": 0}


def test_the_page_shows_the_committed_sweep_and_the_run_beside_it(folders, tmp_path):
    own = [run for (method, role, seed), run in folders.items() if role == "small" and not seed]
    found = tables(chapter(own, tmp_path))
    (by_size,) = [rows for text, rows in found.items() if text.startswith("Each size on chains")]
    committed = full_run.published("model_size", "sizes")
    assert [row["size"].split(",")[0] for row in by_size] == list(
        committed.sort_values("parameters")["size"].unique()
    )
    (stated,) = committed[
        committed["size"].eq("small") & committed["method"].eq("L1") & committed["metric"].eq("ece")
        & committed["dataset"].eq("chains")
    ].to_dict("records")  # fmt: skip
    (small,) = [row for row in by_size if row["size"].startswith("small")]
    assert small["ECE, after L1"] == f"{Interval.of(stated):.2f}"
    (counts,) = [rows for text, rows in found.items() if text.startswith("How many values")]
    # SLM, L1 and RLVR in three metrics, SLM-AvgProb in two; the full run has no RLVR; two datasets
    assert [row["values of both runs"] for row in counts] == ["16"]
    assert set(pd.read_csv(tmp_path / "sizes.csv")["size"]) == {"small"}


def test_models_that_stated_nothing_do_not_stop_the_chapter(tmp_path):
    runs = [
        fake_run(tmp_path / f"{method}_{role}", system=TRAINED[method], method=method, role=role,
                 n_questions=8, n_samples=2, learnt=False)
        for role in ("tiny", "small")
        for method in ("base", "l1")
    ]  # fmt: skip
    assert "Provenance" in chapter(runs, tmp_path)[-1]


def test_a_model_with_another_corpus_is_refused(folders, tmp_path):
    other = fake_run(tmp_path / "large", system="SLM", method="base", role="large", n_questions=4)
    with pytest.raises(ValueError, match="large model has a corpus of its own"):
        chapter([*folders.values(), other], tmp_path)


def test_a_size_without_both_models_is_not_enough(folders, tmp_path):
    with pytest.raises(ValueError, match="no size has both"):
        chapter([folders["base", "tiny", 0], folders["l1", "small", 0]], tmp_path)
