"""Training dynamics: what is read, what is computed, what is drawn, and the chapters that do so."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chapters import execute, tables
from fake_runs import fake_run
from matplotlib.colors import to_hex

from corea.book import claims, dynamics, figures, full_run
from corea.metrics.calibration import auroc, expected_calibration_error
from corea.runs import RunError, TrainedModel
from corea.tasks.suites import PAPERS
from corea.workflow.notebooks import notebook_parameters

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"n_questions": 12, "n_samples": 2, "n_steps": 30}


@pytest.fixture
def l1(tmp_path):
    return fake_run(tmp_path / "l1", system="L1-SLM", method="l1", **SMALL)


# --- reading ----------------------------------------------------------------------------------


def test_models_come_in_order_under_the_names_given(tmp_path):
    runs = [
        fake_run(tmp_path / str(size), system="L1-SLM", method="l1", group_size=size, **SMALL)
        for size in (16, 4)
    ]
    models = dynamics.named_models(runs, lambda model: f"G = {model.group_size}")
    assert list(models) == runs
    assert [model.system for model in models.values()] == ["G = 16", "G = 4"]
    assert list(dynamics.named_records(models)["system"].unique()) == ["G = 16", "G = 4"]
    assert list(dynamics.dynamics_table(models)["system"].unique()) == ["G = 16", "G = 4"]
    assert list(dynamics.validation_table(models)["system"].unique()) == ["G = 16", "G = 4"]
    with pytest.raises(RunError, match=r"4 and .*16 are both 'L1-SLM' with seed 0"):
        dynamics.named_models(runs)


def test_no_runs_or_none_trained_is_said(tmp_path):
    with pytest.raises(RunError, match="no runs were named"):
        dynamics.named_models([])
    base = fake_run(tmp_path / "base", system="SLM", method="base", **SMALL)
    with pytest.raises(RunError, match=r"nothing was trained by reinforcement in any of .*/base"):
        dynamics.trained(dynamics.named_models([base]))


def test_base_models_are_left_out_of_what_was_trained(tmp_path, l1):
    base = fake_run(tmp_path / "base", system="SLM", method="base", **SMALL)
    models = dynamics.named_models([base, l1])
    assert list(dynamics.trained(models)) == [l1]
    assert set(dynamics.named_records(models)["informed"]) == {True}


DYNAMICS, VALIDATION = dynamics.dynamics_table, dynamics.validation_table


@pytest.mark.parametrize(
    ("read", "name", "wrong", "said"),
    [
        (DYNAMICS, "dynamics.csv", lambda t: t.drop(columns=["ece", "auroc"]),
         r"lacks the column\(s\) ece, auroc"),
        (DYNAMICS, "dynamics.csv",
         lambda t: t.astype({"ece": object}).assign(ece=["0.3", "much", *["0.1"] * 28]),
         "row 2, field ece: found 'much', expected a number"),
        (DYNAMICS, "dynamics.csv", lambda t: t.assign(step=[1, 2, 2, *range(4, 31)]),
         "row 3, field step: found 2, expected a later step than in the row before"),
        (DYNAMICS, "dynamics.csv", lambda t: t.assign(step=[None, *range(2, 31)]),
         "row 1, field step: found nan, expected a later step"),
        (DYNAMICS, "dynamics.csv", lambda t: t.iloc[:0], "no rows; expected one for each"),
        (VALIDATION, "validation.csv", lambda t: t.drop(columns="confidence"),
         r"lacks the column\(s\) confidence"),
        (VALIDATION, "validation.csv",
         lambda t: t.assign(confidence=[0.5, 95.0, *t["confidence"][2:]]),
         r"row 2, field confidence: found 95.0, expected a number in \[0, 1\]"),
        (VALIDATION, "validation.csv",
         lambda t: t.assign(confidence=["high", *map(str, t["confidence"][1:])]),
         "row 1, field confidence: found 'high', expected a number"),
        (VALIDATION, "validation.csv",
         lambda t: t.assign(correct=[True, True, "maybe", *t["correct"][3:]]),
         "row 3, field correct: found 'maybe', expected true, false, 0 or 1"),
        (VALIDATION, "validation.csv", lambda t: t.iloc[:0], "no rows; expected one for each"),
        (dynamics.sample_table, "samples.parquet", lambda t: t.drop(columns="gold"),
         r"lacks the column\(s\) gold"),
    ],
)  # fmt: skip
def test_a_bad_table_is_named_with_row_and_field(l1, read, name, wrong, said):
    models = dynamics.named_models([l1])
    assert read(models)["system"].unique().tolist() == ["L1-SLM"]
    path = Path(l1, name)
    if path.suffix == ".csv":
        wrong(pd.read_csv(path)).to_csv(path, index=False)
    else:
        wrong(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(RunError, match=f"{name}: {said}"):
        read(models)
    path.unlink()
    with pytest.raises(RunError, match=f"l1/{name}: not there"):
        read(models)


def test_numbers_may_be_missing_where_they_are_not_defined(l1):
    missing = {"dynamics": ["auroc", "reward_confidence"], "validation": ["confidence"]}
    for name, columns in missing.items():
        path = Path(l1, f"{name}.csv")
        pd.read_csv(path).assign(**dict.fromkeys(columns, np.nan)).to_csv(path, index=False)
    models = dynamics.named_models([l1])
    assert dynamics.dynamics_table(models)["auroc"].isna().all()
    validation = dynamics.validation_table(models)
    assert validation["confidence"].isna().all()
    assert validation["correct"].dtype == bool


def test_alarms_are_those_of_the_runs_that_have_any(tmp_path, l1):
    other = fake_run(tmp_path / "rlvr", system="RLVR-SLM", method="none", seed=3, **SMALL)
    models = dynamics.named_models([l1, other])
    assert dynamics.alarm_table(models).empty
    Path(l1, "alarms.csv").write_text("step,alarm,detail,examples\n")
    assert dynamics.alarm_table(models).empty
    alarms = pd.DataFrame({"step": [7], "alarm": ["collapse"], "detail": ["1.0"], "examples": "x"})
    alarms.to_csv(Path(other, "alarms.csv"), index=False)
    assert dynamics.alarm_table(models).to_dict("records") == [
        {"system": "RLVR-SLM", "seed": 3, "step": 7, "alarm": "collapse", "detail": "1.0"}
    ]
    alarms.drop(columns="detail").to_csv(Path(other, "alarms.csv"), index=False)
    with pytest.raises(RunError, match=r"rlvr/alarms.csv: lacks the column\(s\) detail"):
        dynamics.alarm_table(models)


# --- curves -----------------------------------------------------------------------------------


def test_smoothing_never_reaches_into_another_run():
    table = pd.DataFrame(
        {
            "system": ["a", "a", "a", "a", "b", "b"],
            "seed": [0, 0, 1, 1, 0, 0],
            "step": [1, 2, 1, 2, 1, 2],
            "ece": [0.0, 1.0, 10.0, 20.0, 100.0, np.nan],
        }
    )
    smooth = dynamics.prepare_curves(table, ["ece"], window=99)["smooth"]
    assert smooth.tolist() == [0.5, 0.5, 15.0, 15.0, 100.0, 100.0]
    assert dynamics.prepare_curves(table, ["ece"])["smooth"].equals(table["ece"].rename("smooth"))


@pytest.mark.parametrize("window", [0, -1, 2])
def test_a_window_that_has_no_middle_is_refused(window):
    table = pd.DataFrame({"system": ["a"], "seed": [0], "step": [1], "ece": [0.0]})
    with pytest.raises(ValueError, match=f"window is {window}; expected an odd number"):
        dynamics.prepare_curves(table, ["ece"], window=window)
    with pytest.raises(ValueError, match=r"lacks the metric\(s\) brier"):
        dynamics.prepare_curves(table, ["brier"])


def test_range_over_seeds_is_of_those_that_have_a_value():
    curves = pd.DataFrame(
        {
            "system": "a",
            "seed": [0, 1, 2, 0],
            "metric": "auroc",
            "step": [1, 1, 1, 2],
            "value": np.nan,
            "smooth": [0.5, 0.9, np.nan, np.nan],
        }
    )
    (row,) = dynamics.over_seeds(curves).to_dict("records")
    assert row == pytest.approx(
        {"mean": 0.7, "low": 0.5, "high": 0.9, "seeds": 2, "step": 1}
        | {"system": "a", "metric": "auroc"}
    )


def test_held_out_metrics_are_the_metrics_of_each_step(l1):
    validation = dynamics.validation_table(dynamics.named_models([l1]))
    found = dynamics.validation_metrics(validation, n_bins=5).set_index("step")
    assert found.index.tolist() == [0, 10, 20, 30]
    rows = validation[validation["step"] == 20]
    arrays = rows["confidence"].to_numpy(), rows["correct"].to_numpy()
    assert found.loc[20, "ece"] == expected_calibration_error(*arrays, n_bins=5)
    assert found.loc[20, "auroc"] == auroc(*arrays)
    assert found.loc[20, "n"] == len(rows)
    assert found.loc[20, "share_at_1"] == (rows["confidence"] == 1).mean()
    assert found.loc[0, "distinct_confidences"] == 1  # made certain before training


def test_without_a_confidence_only_what_needs_none_is_defined():
    validation = pd.DataFrame(
        {"system": "a", "method": "l1", "seed": 0, "step": 0, "confidence": [np.nan, np.nan]}
    ).assign(correct=[True, False])
    (row,) = dynamics.validation_metrics(validation).to_dict("records")
    assert (row["pass_at_1"], row["confidence_output_ratio"]) == (0.5, 0.0)
    assert np.isnan([row[name] for name in ("ece", "auroc", "mean_confidence")]).all()


# --- alignment --------------------------------------------------------------------------------


def trained_model(system="a", seed=0, selected_step=20):
    return TrainedModel(
        system, "l1", "small", "qwen2", True, 8, seed, 100, selected_step, "", "microworld"
    )


def test_checkpoints_are_each_seeds_own():
    validation = pd.DataFrame(
        {"system": "a", "seed": [0, 0, 0, 0, 1, 1, 1], "step": [0, 40, 20, 50, 0, 30, 60]}
    )
    models = {"0": trained_model(), "1": trained_model(seed=1, selected_step=60)}
    steps = dynamics.checkpoint_steps(validation, models).groupby("seed")["step"].agg(list)
    assert steps.to_dict() == {0: [0, 20, 20, 50], 1: [0, 30, 60, 60]}
    with pytest.raises(
        RunError, match="a, seed 0: selected step 10 is not among .*: 0, 20, 40, 50"
    ):
        dynamics.checkpoint_steps(validation, {"0": trained_model(selected_step=10)})


def test_alignment_counts_every_stated_confidence_once():
    rng = np.random.default_rng(0)
    stated = rng.choice([0.0, 0.3, 1.0, np.nan], 200, p=[0.2, 0.3, 0.4, 0.1])
    validation = pd.DataFrame({"system": "a", "seed": 0, "step": 5, "confidence": stated}).assign(
        correct=rng.random(200) < 0.6
    )
    checkpoints = pd.DataFrame({"system": ["a"], "seed": [0], "checkpoint": ["last"], "step": [5]})
    found = dynamics.prepare_alignment(validation, checkpoints)
    assert found["confidence"].tolist() == [0.0, 0.3, 1.0]
    assert found["count"].sum() == np.isfinite(stated).sum()
    assert found["share"].sum() == pytest.approx(1)
    ones = validation[validation["confidence"] == 1]
    assert found["accuracy"].iloc[2] == pytest.approx(ones["correct"].mean())
    assert (found["accuracy_low"] < found["accuracy"]).all()
    assert (found["accuracy"] < found["accuracy_high"]).all()


def test_a_checkpoint_without_confidences_stays_in_the_picture():
    validation = pd.DataFrame(
        {"system": "a", "seed": 0, "step": 5, "confidence": [np.nan], "correct": [True]}
    )
    checkpoints = pd.DataFrame({"system": "a", "seed": 0, "checkpoint": ["before"], "step": [5]})
    found = dynamics.prepare_alignment(validation, checkpoints)
    assert found["count"].tolist() == [0]
    assert found["confidence"].isna().all()
    assert len(dynamics.plot_alignment(found).axes) == len(dynamics.CHECKPOINTS)


RECORDS = pd.DataFrame(
    {
        "dataset": ["d"] * 6,
        "question_id": ["1", "1", "2", "2", "3", "4"],
        "system": "s",
        "level": [2, 2, 1, 1, 2, None],
        "correct": [True, False, True, True, False, True],
        "confidence": [1.0, 0.0, 0.8, np.nan, 0.2, 0.9],
        "probe": [0.5, 0.5, 0.7, 0.7, 0.2, 0.9],
    }
)


def test_levels_compare_accuracy_and_confidence_on_the_same_answers():
    found = dynamics.level_table(RECORDS, columns=["confidence", "probe"], n_resamples=20)
    value = found.set_index(["level", "quantity"])
    assert found["level"].unique().tolist() == [1, 2]
    assert value.loc[(1, "accuracy"), ["n", "estimate"]].tolist() == [1, 1.0]
    assert value.loc[(2, "accuracy"), "estimate"] == pytest.approx(1 / 3)
    assert value.loc[(2, "confidence"), "estimate"] == pytest.approx(0.4)
    assert value.loc[(1, "probe"), ["n", "estimate"]].tolist() == [2, 0.7]
    assert (found["low"] <= found["estimate"] + 1e-12).all()
    again = dynamics.level_table(RECORDS, columns=["confidence", "probe"], n_resamples=20)
    pd.testing.assert_frame_equal(found, again)


def test_levels_where_nothing_is_stated_are_missing_not_absent():
    silent = RECORDS.assign(confidence=np.nan)
    found = dynamics.level_table(silent, n_resamples=5)
    assert found["n"].tolist() == [0] * 4
    assert found[["estimate", "low", "high"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="lack the column level"):
        dynamics.level_table(RECORDS.drop(columns="level"))


def test_the_commonest_confidence_is_the_lowest_of_several():
    records = pd.DataFrame({"dataset": "d", "system": ["s"] * 5 + ["t"]}).assign(
        confidence=[1.0, 1.0, 0.0, 0.0, 0.5, np.nan]
    )
    found = dynamics.stated_confidences(records).set_index("system")
    assert found.loc["s", ["n", "distinct", "commonest"]].tolist() == [5, 3, 0.0]
    assert found.loc["s", ["share_at_0", "share_at_1"]].tolist() == [0.4, 0.4]
    assert found.loc["s", "share_of_commonest"] == 0.4
    assert found.loc["t", "n"] == 0
    assert np.isnan(found.loc["t", "commonest"])


# --- words ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdict():
    """The rule of the chapter on self-knowledge, from its cell."""
    cells = json.loads((ROOT / "notebooks" / "self_knowledge.ipynb").read_text("utf-8"))["cells"]
    (code,) = ["".join(c["source"]) for c in cells if "def verdict(" in "".join(c["source"])]
    namespace = {}
    exec(code, namespace)
    return namespace["verdict"]


@pytest.mark.parametrize(
    ("before", "after", "gain", "said"),
    [
        ((0.55, 0.65), (0.7, 0.9), (0.1, 0.3), "amplified"),
        ((0.55, 0.65), (0.6, 0.7), (-0.01, 0.1), "no change shown"),
        ((0.55, 0.65), (0.45, 0.55), (-0.2, -0.01), "lost"),
        ((0.45, 0.55), (0.6, 0.8), (0.1, 0.3), "gained, none shown before"),
        ((0.35, 0.45), (0.48, 0.52), (0.05, 0.2), "no change shown"),
        ((0.45, 0.55), (0.5, 0.5), (-0.05, 0.05), "no change shown"),
        ((0.45, 0.55), (0.35, 0.45), (-0.2, -0.05), "no change shown"),
    ],
)
def test_verdicts_follow_the_intervals(verdict, before, after, gain, said):
    given = [SimpleNamespace(low=low, high=high) for low, high in (before, after, gain)]
    assert verdict(*given) == said
    for place in range(3):
        lacking = [None if i == place else value for i, value in enumerate(given)]
        assert verdict(*lacking) == "not defined"


# --- sample outputs ---------------------------------------------------------------------------


def samples_of(system, rows, seed=0):
    columns = ["dataset", "question_id", "level", "correct", "confidence"]
    return pd.DataFrame(rows, columns=columns).assign(system=system, seed=seed)


BASE = [
    ("words", "w1", 2, False, 1.0),
    ("chains", "c1", 2, True, 1.0),
    ("chains", "c2", 2, False, 0.9),  # the first of level 2
    ("chains", "c3", 2, False, 1.0),
    ("chains", "c4", 1, False, 0.8),  # not confident
    ("chains", "c5", 1, False, np.nan),  # no confidence is no confident one
    ("chains", "c6", 1, False, 1.0),  # not answered by the other
    ("chains", "c7", 1, False, 0.95),
    ("facts", "f1", None, False, 1.0),
    ("facts", "f2", None, False, 1.0),
]
SAMPLES = pd.concat(
    [
        samples_of("SLM", BASE),
        samples_of("L1-SLM", [(*row[:3], True, 0.5) for row in BASE if row[1] != "c6"]),
    ],
    ignore_index=True,
)


def test_samples_are_chosen_by_the_rule():
    found = dynamics.confidently_wrong(SAMPLES, "SLM")
    assert found["question_id"].tolist() == ["w1", "w1", "c7", "c7", "c2", "c2", "f1", "f1"]
    assert found["system"].tolist() == ["SLM", "L1-SLM"] * 4
    assert list(found.columns) == list(SAMPLES.columns)
    strict = dynamics.confidently_wrong(SAMPLES, "SLM", min_confidence=1.0)
    assert strict["question_id"].unique().tolist() == ["w1", "c3", "f1"]


def test_of_several_completions_the_first_counts():
    first_right = samples_of("SLM", [("words", "w1", 2, True, 1.0)])
    found = dynamics.confidently_wrong(pd.concat([first_right, SAMPLES]), "SLM")
    assert "w1" not in set(found["question_id"])


def test_no_sample_is_chosen_where_nothing_is_confidently_wrong():
    assert dynamics.confidently_wrong(SAMPLES, "L1-SLM").empty
    with pytest.raises(ValueError, match="no samples of 'RLVR'; there are SLM, L1-SLM"):
        dynamics.confidently_wrong(SAMPLES, "RLVR")
    twice = pd.concat([SAMPLES, samples_of("SLM", BASE, seed=1)])
    with pytest.raises(ValueError, match="several seeds of 'SLM'"):
        dynamics.confidently_wrong(twice, "SLM")


# --- figures ----------------------------------------------------------------------------------

HOSTILE = "<script>$x$</script>\x1b[31m"


def test_curves_draw_each_metric_and_each_system_in_its_colour():
    table = pd.DataFrame(
        {"system": ["L1-SLM"] * 6 + [HOSTILE] * 3, "seed": [0] * 3 + [1] * 3 + [0] * 3}
    ).assign(step=[1, 2, 3] * 3, ece=np.arange(9) / 10, auroc=0.5, reward=1.0)
    curves = dynamics.prepare_curves(table, ["ece", "auroc", "reward"], window=3)
    selected = pd.DataFrame({"system": ["L1-SLM"], "step": [3]})
    drawing = dynamics.plot_curves(curves, points=curves, selected=selected)
    shown = [axes for axes in drawing.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["ECE", "AUROC", "reward"]
    ours = [
        line
        for line in shown[0].lines
        if len(line.get_xdata()) == 3 and line.get_marker() == "None"
    ]
    assert {to_hex(line.get_color()) for line in ours} == set(
        figures.colors(["L1-SLM", HOSTILE]).values()
    )
    (band,) = shown[0].collections  # only one system has two seeds
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(0.45)
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "L1-SLM",
        "<script>$x$</script>␛[31m",
    ]


def test_alignment_has_a_row_a_system_and_a_column_a_checkpoint(l1):
    models = dynamics.named_models([l1])
    validation = dynamics.validation_table(models)
    checkpoints = dynamics.checkpoint_steps(validation, models)
    drawing = dynamics.plot_alignment(dynamics.prepare_alignment(validation, checkpoints))
    titles = [axes.get_title() for axes in drawing.axes]
    assert titles == [
        "before (step 0)",
        "half way (step 10)",
        "selected (step 30)",
        "last (step 30)",
    ]
    (bar,) = drawing.axes[0].patches  # certain of everything before training
    assert (bar.get_x() + bar.get_width() / 2, bar.get_height()) == pytest.approx((1.0, 1.0))


def test_levels_draw_accuracy_as_a_reference():
    levels = dynamics.level_table(RECORDS, columns=["confidence", "probe"], n_resamples=5)
    (axes,) = dynamics.plot_levels(levels).axes
    assert [line.get_linestyle() for line in axes.lines] == ["--", "-", ":"]
    accuracy = levels[levels["quantity"] == "accuracy"]
    assert axes.lines[0].get_ydata().tolist() == accuracy["estimate"].tolist()


# --- the chapters -----------------------------------------------------------------------------

RUNS = {
    "pretrain_small": {"system": "SLM", "method": "base"},
    "confidence_models": {"system": "RLVR-SLM", "method": "none"},
    "train_rlvr": {"system": "RLVR-SLM", "method": "none"},
    "train_brier": {"system": "Brier-SLM", "method": "brier"},
    "train_l1": {"system": "L1-SLM", "method": "l1"},
    "train_l2": {"system": "L2-SLM", "method": "l2"},
    "train_l1_g2": {"system": "L1-SLM", "method": "l1", "group_size": 2},
    "train_l1_g4": {"system": "L1-SLM", "method": "l1", "group_size": 4},
    "pretrain_llama": {"system": "SLM", "method": "base", "architecture": "llama"},
    "train_l1_llama": {"system": "L1-SLM", "method": "l1", "architecture": "llama"},
    "pretrain_llama_tiny": {
        "system": "SLM",
        "method": "base",
        "architecture": "llama",
        "role": "tiny",
    },
    "train_l1_paper": {"system": "L1, paper's GRPO", "method": "l1"},
    "train_l1_batch": {"system": "L1, batch-scaled", "method": "l1"},
    "pretrain_uninformed": {"system": "SLM", "method": "base", "informed": False},
    "train_l1_uninformed": {"system": "L1-SLM", "method": "l1", "informed": False},
}
MAIN = ["pretrain_small", "train_rlvr", "train_l1"]
CHAPTERS = {
    "self_awareness": {
        "runs": ["train_rlvr", "train_brier", "train_l1"],
        "answer_runs": ["pretrain_small", "confidence_models", "train_l1"],
    },
    "backbones": {"runs": [*MAIN, "pretrain_llama", "train_l1_llama", "pretrain_llama_tiny"]},
    "reward_ablation": {
        "runs": [*MAIN, "train_l2"],
        "scaling_runs": ["train_l1_paper", "train_l1_batch"],
    },
    "rollout_size": {
        "runs": ["train_l1", "train_l1_g4", "train_l1_g2"],
        "question_runs": ["train_l1"],
        "base_runs": ["pretrain_small"],
    },
    "sample_outputs": {"runs": MAIN},
    "self_knowledge": {
        "runs": ["pretrain_small", "train_l1", "pretrain_uninformed", "train_l1_uninformed"]
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, run in RUNS.items():
        for seed in (0, 1):
            fake_run(root / f"{name}_s{seed}", seed=seed, **SMALL, **run)
    return root


def chapter_parameters(name, folders, seeds, tmp_path):
    given = {
        parameter: [f"{folders}/{run}_s{seed}" for run in runs for seed in seeds]
        for parameter, runs in CHAPTERS[name].items()
    }
    defaults = notebook_parameters(ROOT / "notebooks" / f"{name}.ipynb")
    quick = {"n_resamples": 10, "learning_steps": 20}
    quick = {parameter: value for parameter, value in quick.items() if parameter in defaults}
    return given | quick | {"output_dir": str(tmp_path)}


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapters_run_on_one_seed(name, folders, tmp_path):
    shown = execute(name, chapter_parameters(name, folders, (0,), tmp_path))
    assert shown.count("") <= 1  # the numbers of the prose
    assert "Provenance" in shown[-1]
    written = list(tmp_path.glob("*.csv"))
    assert written
    assert all(0 < path.stat().st_size < 64 * 1024 for path in written)


@pytest.mark.parametrize("name", sorted(CHAPTERS.keys() - {"self_knowledge"}))
def test_chapters_run_on_the_papers_datasets(name, tmp_path):
    for run, made in RUNS.items():
        if any(run in runs for runs in CHAPTERS[name].values()):
            fake_run(tmp_path / f"{run}_s0", seed=0, suite=PAPERS, **SMALL, **made)
    text = "".join(execute(name, chapter_parameters(name, tmp_path, (0,), tmp_path)))
    assert "deepmath" in text
    if name in TOLD:  # its prose is about the evidence, whatever was run
        written = pd.concat(map(pd.read_csv, tmp_path.glob("*.csv")))
        assert "chains" not in set(written["dataset"])
        assert "No full run of these datasets is committed." in text
    else:
        assert "chains" not in text
        assert "committed full run" not in text


def test_chapters_say_that_intervals_are_over_seeds(folders, tmp_path):
    given = chapter_parameters("self_knowledge", folders, (0, 1), tmp_path)
    text = "".join(execute("self_knowledge", given))
    assert "and Student&#x27;s t over 2 seeds, few" in text


# Chapters whose prose is about the evidence: an arm that only the evidence has, one that both have,
# one that only the run has (if any), and a table it shows.
TOLD = {
    "backbones": (
        "qwen3 small, L1", "qwen2 small, L1", "llama tiny, SLM", "Pass@1%. Figure 4",
        ("Pass@1 in percent", {"backbone": "qwen2 small"}, "L1"),
    ),
    "rollout_size": (
        "G = 32, equal questions", "G = 8, equal questions", "G = 2, equal completions",
        "Pass@1%. Table 4", ("As many questions a step", {"G": "8"}, "pass@1, %"),
    ),
    "reward_ablation": (
        "Brier", "L1", "", "Pass@1%. Table 3", ("All datasets together", {"reward": "L1"}, "pass@1, %"),
    ),
    "self_awareness": (
        "Brier-SLM-Verb", "L1-SLM-Verb", "", "Pass@1%. Table 2",
        ("From before training", {"reward": "RLVR"}, ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_the_page_shows_the_evidence_and_the_run_beside_it(name, folders, tmp_path):
    found = tables(execute(name, chapter_parameters(name, folders, (0, 1), tmp_path)))
    theirs, common, ours, caption, (title, of_row, column) = TOLD[name]

    def rows_of(start):
        (rows,) = [rows for text, rows in found.items() if text.startswith(start)]
        return rows

    of = {row["system"]: row for row in rows_of(caption)}
    assert of[theirs]["committed full run"] != "–"
    assert (of[theirs]["this run"], of[theirs]["this run is"]) == ("not trained", "")
    if ours:
        assert of[ours]["committed full run"] == "–"
        assert of[ours]["this run"] != "–"
    assert of[common]["this run is"] in ("inside", "outside")
    (row,) = [row for row in rows_of(title) if of_row.items() <= row.items()]
    if column:
        assert row[column] == of[common]["committed full run"]
    else:
        changes = full_run.published("self_awareness", "contrasts").set_index(["system", "metric"])
        change = changes.loc[("RLVR-SLM, selected", "ece"), "value"]
        assert row["ECE"].startswith(f"{change:+.2f}")
    counted = {row["table"]: int(row["values of both runs"]) for row in rows_of("How many values")}
    assert all(counted.values())
    written = {path.stem: pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    assert counted.keys() == {name for name, table in written.items() if "value" in table}
    systems = set(pd.concat(written.values())["system"])
    assert theirs not in systems
    assert {ours} - {""} <= systems


def test_evidence_decides_what_the_run_cannot(folders, tmp_path):
    """The run trained no L2; the evidence did, and says so."""
    parameters = chapter_parameters("reward_ablation", folders, (0,), tmp_path)
    parameters["runs"] = [f"{folders}/{run}_s0" for run in MAIN]
    found = tables(execute("reward_ablation", parameters))
    (said,) = [rows for text, rows in found.items() if text.startswith("What the paper claims")]
    verdicts = {row["claim"].partition(".")[0]: row for row in said}
    committed = claims.decide_committed()
    assert verdicts.keys() == {"A16", "A17", "A18"}
    assert all(row["verdict"] == committed[name].verdict for name, row in verdicts.items())
    assert all(row["your run"] == "not trained" for row in said)


def test_what_models_write_is_shown_as_text(folders, tmp_path):
    hostile = "</td></table><script>window.pwned=1</script> $x$ \x1b[31m" + "z" * 3000
    for run in MAIN:
        made = fake_run(tmp_path / run, seed=0, **SMALL, **RUNS[run])
        path = Path(made, "samples.parquet")
        samples = pd.read_parquet(path).assign(completion=hostile, prompt=hostile)
        samples.assign(correct=False, confidence=1.0, answer=hostile).to_parquet(path)
    parameters = {"runs": [str(tmp_path / run) for run in MAIN], "n_characters": 100}
    text = "".join(execute("sample_outputs", parameters))
    assert "&lt;script&gt;window.pwned" in text
    assert "<script" not in text
    assert "$x$" not in text
    assert "[...]" in text
    assert "\x1b" not in text
