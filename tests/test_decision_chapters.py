"""The chapters on decisions, built from made-up runs and made-up committed tables."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chapters import execute
from fake_decisions import fake_deciders, fake_decisions

from corea import stages
from corea.book import claims, decision_tables, full_run
from corea.engines import evaluation
from corea.metrics.intervals import COLUMNS
from corea.runs import FORMATS, RunError, format_records, read_model, run_records

FEW = {"n_resamples": 5}
CONTRAST = ["system", "baseline", "dataset", "metric", *COLUMNS]
SIZED = ("SFT", "GRPO", "CA-GRPO")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every arm, of one size and one seed."""
    return fake_deciders(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """The paper's arms of two sizes."""
    return fake_deciders(tmp_path_factory.mktemp("sizes"), SIZED, roles=("small", "tiny"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the committed full run is; nothing is there."""
    monkeypatch.setattr(full_run, "FOLDER", tmp_path / "full_run")
    monkeypatch.setattr(claims, "decide_committed", dict)  # of other chapters' evidence too


def few(runs, *systems, task=""):
    """Runs of some systems, trained on one task or on both; the base model is of both."""
    chosen = [run for run in runs if read_model(run).system in systems]
    return [run for run in chosen if task in run or read_model(run).system == "Base"]


def committed(name, folder):
    """What a chapter wrote as the committed full run."""
    target = full_run.FOLDER / name
    target.mkdir(parents=True)
    for path in Path(folder).glob("*.csv"):
        (target / path.name).write_text(path.read_text("utf-8"), "utf-8")
    seal(target)


def seal(folder):
    """Say what made the tables of a folder, as publishing does."""
    facts = {"profile": full_run.PROFILE, "schema": full_run.SCHEMA}
    facts |= {"date": "2026-01-01", "commit": "0123456789ab"}
    facts["parameters"] = dict.fromkeys(("seed", "n_resamples", "n_samples", "n_fit", "n_draws"), 7)
    facts["tables"] = {path.name: full_run.digest(path) for path in folder.glob("*.csv")}
    (folder / full_run.PROVENANCE).write_text(json.dumps(facts), "utf-8")


def text_of(shown):
    return unescape(re.sub(r"<[^>]+>", " ", "\n".join(shown)))


def column(shown, caption, name):
    """Cells of a column of the first table whose caption has some words."""
    page = next(part for part in "".join(shown).split("<table")[1:] if caption in unescape(part))
    page = page.partition("</table>")[0]
    header = [unescape(re.sub("<[^>]+>", "", h)) for h in re.findall("<th.*?</th>", page)]
    rows = [re.findall("<td.*?</td>", row) for row in re.findall("<tr>.*?</tr>", page)[1:]]
    return [unescape(re.sub("<[^>]+>", " ", row[header.index(name)])).strip() for row in rows]


# --- records in formats -------------------------------------------------------------------------


def test_a_run_is_read_in_one_format_its_own_unless_another_is_asked_for(runs):
    own = run_records(runs)
    formats = own.groupby("system")["reasoning"].unique().map(list).to_dict()
    assert formats.pop("SFT") == ["none"]
    assert set(map(tuple, formats.values())) == {("sampled",)}
    for name in FORMATS:
        assert set(run_records(runs, reasoning=name)["reasoning"]) == {name}
    every = format_records(runs)
    assert every.groupby("reasoning")["sample"].max().to_dict() == {
        "sampled": 1, "greedy": 0, "none": 0,
    }  # fmt: skip
    sft = run_records(few(runs, "SFT"), reasoning="none")
    pd.testing.assert_frame_equal(sft, own[own["system"] == "SFT"].reset_index(drop=True))


def test_a_format_that_a_run_lacks_is_named(tmp_path):
    [run, *_] = fake_deciders(tmp_path, ())
    Path(run, "records_greedy.parquet").unlink()
    with pytest.raises(RunError, match=r"Base.*/records_greedy.parquet: not there"):
        run_records([run], reasoning="greedy")


# --- sft_or_grpo --------------------------------------------------------------------------------


def sft_or_grpo(runs, folder):
    folder.mkdir()
    shown = execute("sft_or_grpo", FEW | {"runs": runs, "output_dir": str(folder)})
    return shown, {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}


def test_training_and_format_are_told_apart(runs, tmp_path):
    arms = ("Base", "SFT", "GRPO", "CA-GRPO", "CA-GRPO, two-stage", "GRPO, longer")
    chosen = few(runs, *arms)
    shown, tables = sft_or_grpo(chosen, tmp_path / "out")
    assert set(tables) == {"decisions", "contrasts"}
    decisions, contrasts = tables["decisions"], tables["contrasts"]
    assert set(decisions["reasoning"]) == set(FORMATS)
    assert {"brier_skill", "aurc", "confidence_output_ratio"} <= set(decisions["metric"])
    assert list(contrasts)[: len(CONTRAST)] == CONTRAST
    assert {"size", "reasoning", "baseline_reasoning"} < set(contrasts)
    row = contrasts.set_index(
        ["system", "reasoning", "baseline", "baseline_reasoning", "dataset", "metric"]
    )["value"]
    value = decisions.set_index(["system", "reasoning", "dataset", "metric"])["value"]
    for other in ("none", "greedy"):
        expected = value["GRPO", "greedy", "choices", "ece"] - value["SFT", other, "choices", "ece"]
        assert row["GRPO", "greedy", "SFT", other, "choices", "ece"] == pytest.approx(
            expected, abs=1e-5
        )
    assert ("CA-GRPO, two-stage", "sampled", "GRPO, longer", "sampled") in {
        k[:4] for k in row.index
    }
    assert "B6" in "".join(column(shown, "What the paper claims", "claim"))
    inside = column(shown, "inside the committed intervals", "inside")
    assert 0 < int(inside[0]) < len(decisions)


def test_the_papers_numbers_stand_beside_its_method_as_written(runs, tmp_path):
    shown, _ = sft_or_grpo(few(runs, "Base", "CA-GRPO", "CA-GRPO, two-stage"), tmp_path / "out")
    caption = "The small model, each in its own format"
    systems = column(shown, caption, "system")
    printed = dict(
        zip(zip(column(shown, caption, "dataset"), systems, strict=True),
            column(shown, caption, "ECE, paper"), strict=True)
    )  # fmt: skip
    assert printed["choices", "CA-GRPO"] == "0.160"
    assert printed["choices", "CA-GRPO, two-stage"] == "–"


def test_arms_that_are_absent_are_left_out(runs, tmp_path):
    _, tables = sft_or_grpo(few(runs, "Base", "GRPO", task="choices"), tmp_path / "out")
    assert set(tables["contrasts"]["system"]) == {"GRPO"}
    _, tables = sft_or_grpo(few(runs, "Base"), tmp_path / "alone")
    assert tables["contrasts"].empty


def test_a_page_is_about_the_committed_run_though_the_readers_has_fewer_arms(
    runs, folder, tmp_path
):
    _, wide = sft_or_grpo(runs, tmp_path / "wide")
    committed("sft_or_grpo", tmp_path / "wide")
    shown, _ = sft_or_grpo(few(runs, "Base", "GRPO", task="choices"), tmp_path / "out")
    systems = column(shown, "behind sampled reasoning and without reasoning", "system")
    assert set(systems) == set(wide["decisions"]["system"])
    counts = column(shown, "inside the committed intervals", "values of both runs")
    inside = column(shown, "inside the committed intervals", "inside")
    assert int(counts[0]) == int(inside[0]) > 0  # the same runs again
    prose = text_of(shown)
    ece = wide["decisions"].set_index(["system", "reasoning", "dataset", "metric"])["value"]
    assert f"{ece['SFT', 'none', 'choices', 'ece']:.2f}" in prose


def test_values_outside_the_committed_intervals_are_named(runs, folder, tmp_path):
    sft_or_grpo(runs, tmp_path / "wide")
    path = tmp_path / "wide" / "decisions.csv"
    table = pd.read_csv(path)
    place = (table["system"] == "GRPO") & (table["metric"] == "ece")
    place &= (table["dataset"] == "choices") & (table["reasoning"] == "greedy")
    table.loc[place, ["low", "high"]] = [0.9, 0.95]
    table.to_csv(path, index=False)
    committed("sft_or_grpo", tmp_path / "wide")
    shown, _ = sft_or_grpo(runs, tmp_path / "out")
    caption = "Values of this run that lie outside"
    rows = zip(*(column(shown, caption, n) for n in ("system", "metric", "reasoning")), strict=True)
    assert list(rows) == [("GRPO", "ece", "greedy")]


# --- decision_loss ------------------------------------------------------------------------------


def decision_loss(runs, folder):
    folder.mkdir()
    shown = execute("decision_loss", FEW | {"runs": runs, "output_dir": str(folder)})
    return shown, {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}


def test_every_arm_is_compared_with_what_it_is_to_be_compared_with(runs, tmp_path):
    shown, tables = decision_loss(runs, tmp_path / "out")
    contrasts = tables["contrasts"]
    assert list(contrasts)[: len(CONTRAST)] == CONTRAST
    pairs = set(contrasts[["system", "baseline"]].itertuples(index=False, name=None))
    assert {
        ("CA-GRPO", "GRPO"), ("CA-GRPO, two-stage", "GRPO, longer"), ("Brier-GRPO", "GRPO"),
        ("GRPO, calibrated start", "CA-GRPO, log score"), ("beta 0.05", "GRPO"),
        ("CA-GRPO, log score", "CA-GRPO, lambda 0.01"), ("CA-GRPO, lambda 0.01", "CA-GRPO"),
    } <= pairs  # fmt: skip
    assert set(contrasts["dataset"]) == {"choices", "fact_choices", "messages", "lists"}
    assert set(contrasts["reasoning"]) == {"sampled", "greedy"}
    assert "B8" in "".join(column(shown, "What the paper claims", "claim"))
    variants = tables["variants"].query("reasoning == 'sampled' and dataset == 'choices'")
    value = variants.set_index(["system", "metric"])["value"]
    a = value["CA-GRPO, log score", "stated_accuracy"] / 100
    assert value["CA-GRPO, log score", "asked"] == pytest.approx(a, abs=1e-5)
    two = value["CA-GRPO, two-stage", "stated_accuracy"] / 100
    assert value["CA-GRPO, two-stage", "asked"] == pytest.approx(two + (1 - two) / 5, abs=1e-5)
    a = value["CA-GRPO", "stated_accuracy"] / 100
    top, rest = 1 / (1 - a), 1 / (1 - (1 - a) / 4)
    assert value["CA-GRPO", "asked"] == pytest.approx(top / (top + 4 * rest), abs=1e-5)
    gap = value["CA-GRPO", "mean_confidence"] - value["CA-GRPO", "asked"]
    assert value["CA-GRPO", "asked_gap"] == pytest.approx(gap, abs=1e-5)
    assert ("GRPO", "asked") not in value.index


def test_tables_8_and_9_have_every_arm_of_the_committed_run(runs, folder, tmp_path):
    decision_loss(runs, tmp_path / "all")
    committed("decision_loss", tmp_path / "all")
    shown, _ = decision_loss(few(runs, "Base", "GRPO", "CA-GRPO"), tmp_path / "out")
    lambdas = column(shown, "The paper's Table 8", "lambda")
    datasets = column(shown, "The paper's Table 8", "dataset")
    ours = column(shown, "The paper's Table 8", "ECE")
    printed = column(shown, "The paper's Table 8", "ECE, paper")
    choices = [i for i, name in enumerate(datasets) if name == "choices"]
    assert [float(lambdas[i]) for i in choices] == [0.0005, 0.001, 0.005, 0.01]
    assert [ours[i] != "–" for i in choices] == [False, True, True, True]
    assert [printed[i] != "–" for i in choices] == [True, True, True, False]
    betas = column(shown, "The paper's Table 9", "beta")
    assert {float(beta) for beta in betas} == {0.0, 0.05}
    assert "CA-GRPO, two-stage" in column(shown, "Arms trained on choices", "system")


def test_one_task_and_few_arms_are_enough_for_the_loss(runs, tmp_path):
    _, tables = decision_loss(few(runs, "Base", "GRPO", task="choices"), tmp_path / "out")
    assert tables["contrasts"].empty


def test_two_trainings_of_one_name_are_refused(runs):
    settings = Path(few(runs, "GRPO", task="choices")[0], "settings.json")
    text = settings.read_text("utf-8")
    try:
        settings.write_text(text.replace('"steps": 40', '"steps": 41'), "utf-8")
        with pytest.raises(ValueError, match="'GRPO' names runs of different settings"):
            decision_tables.arms(few(runs, "GRPO"))
    finally:
        settings.write_text(text, "utf-8")


# --- post_hoc -----------------------------------------------------------------------------------


def test_recalibration_is_measured_for_every_size(sizes, tmp_path):
    few_labels = {"n_fit": 15, "label_counts": [5, 15], "n_draws": 2}
    shown = execute("post_hoc", FEW | few_labels | {"runs": sizes, "output_dir": str(tmp_path)})
    contrasts = pd.read_csv(tmp_path / "contrasts.csv")
    assert list(contrasts)[: len(CONTRAST)] == CONTRAST
    assert set(contrasts["size"]) == {"small", "tiny"}
    pairs = set(contrasts[["system", "baseline"]].itertuples(index=False, name=None))
    assert {("GRPO, Platt", "GRPO, None"), ("CA-GRPO, Isotonic", "GRPO, Isotonic")} <= pairs
    caption = "after each recalibration"
    rows = zip(*(column(shown, caption, n) for n in ("size", "dataset", "recalibration")),
               column(shown, caption, "CA-GRPO, paper"), strict=True)  # fmt: skip
    printed = {tuple(row[:3]): row[3] for row in rows}
    assert printed["small", "messages", "None"] == "0.087"
    assert printed["small", "lists", "Isotonic"] == "0.072"
    assert printed["tiny", "messages", "None"] == "–"
    labels = pd.read_csv(tmp_path / "labels.csv")
    assert set(labels["n"]) == {0, 5, 15}


# --- chapters that ask models -------------------------------------------------------------------


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Stages that answer as the made-up runs do."""
    made = {}

    def decided(checkpoint, questions, sampling, **_):
        datasets = list(dict.fromkeys(question.dataset for question in questions))
        system = "CA-GRPO" if "CA-GRPO" in str(checkpoint) else str(checkpoint)
        tables = [
            fake_decisions(
                name, system, len(questions), samples=sampling.n_samples, undecided=0.1,
                sharpness=1.0 if system == "CA-GRPO" else 5.0,
            )
            for name in datasets
        ]  # fmt: skip
        rows = pd.concat(tables, ignore_index=True)
        names = [question.question_id for question in questions]
        rows["question_id"] = [names[int(i)] for i in rows["question_id"]]
        folder = tmp_path / f"decided-{len(made)}"
        made[folder] = rows
        return folder

    def swapped(checkpoint, questions, own, shares, **_):
        rows = made[own][made[own]["answer"].notna()].reset_index(drop=True)
        tables = [
            rows[["dataset", "question_id"]].assign(
                own=rows["answer"], own_confidence=rows["confidence"], foreign="A",
                donor=rows["question_id"], share=float(share), answer="A",
                flipped=np.arange(len(rows)) / len(rows) < share * 0.97,
                confidence=0.999, renormalised=1.0,
            )
            for share in shares
        ]  # fmt: skip
        folder = tmp_path / f"swapped-{len(list(tmp_path.glob('swapped-*')))}"
        folder.mkdir()
        pd.concat(tables).to_parquet(folder / "swapped.parquet")
        return folder

    monkeypatch.setattr(stages, "decided", decided)
    monkeypatch.setattr(stages, "swapped", swapped)
    monkeypatch.setattr(evaluation, "read_samples", lambda folder: made[folder])


def test_rollouts_are_counted_for_every_size(sizes, models, tmp_path):
    asked = {"n_questions": 12, "n_samples": 6, "runs": sizes, "output_dir": str(tmp_path)}
    shown = execute("calibrated_rollouts", FEW | asked)
    table = pd.read_csv(tmp_path / "rollouts.csv")
    assert set(table["size"]) == {"small", "tiny"}
    assert set(table["reasoning"]) == {"sampled"}
    assert {"small", "tiny"} <= set(column(shown, "paper's Table 2", "size"))
    assert all("%" in cell for cell in column(shown, "paper's Table 2", "decided"))
    bounded = table[table["metric"].isin(["sure", "calibrated"])]
    assert (bounded["low"] >= 0).all()
    assert (bounded["high"] <= 1).all()
    contrasts = pd.read_csv(tmp_path / "contrasts.csv")
    assert list(contrasts) == [*CONTRAST, "size", "reasoning"]
    value = table.set_index(["size", "system", "dataset", "metric"])["value"]
    gap = contrasts.set_index(["size", "system", "baseline", "dataset", "metric"])["value"]
    for size in ("small", "tiny"):
        expected = [value[size, name, "choices", "confidence"] for name in ("CA-GRPO", "GRPO")]
        found = gap[size, "CA-GRPO", "GRPO", "choices", "confidence"]
        assert found == pytest.approx(expected[0] - expected[1], abs=1e-5)
    assert "B7" in "".join(column(shown, "What the paper claims", "claim"))


def test_swaps_are_counted_for_every_size(sizes, models, tmp_path):
    asked = {"n_questions": 20, "runs": sizes, "output_dir": str(tmp_path)}
    shown = execute("reasoning_swap", FEW | asked)
    table = pd.read_csv(tmp_path / "swaps.csv")
    assert set(table["size"]) == {"small", "tiny"}
    assert {"flipped", "confidence_output_ratio"} <= set(table["metric"])
    assert "B9" in "".join(column(shown, "What the paper claims", "claim"))
    contrasts = pd.read_csv(tmp_path / "contrasts.csv")
    assert list(contrasts) == [*CONTRAST, "size", "reasoning"]
    # questions that some model did not decide are left out
    assert (contrasts["n_questions"] < 20).any()
    assert "SFT" in column(shown, "paper's Table 3", "system")
