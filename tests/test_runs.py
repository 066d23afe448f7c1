"""What runs leave to others, and how it is read again."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run

from corea.records import RecordsError, read_records
from corea.runs import (
    RunError,
    TrainedModel,
    read_model,
    read_settings,
    run_records,
    run_table,
    write_model,
    write_settings,
)
from corea.runs import write_results as write

MODEL = TrainedModel(
    "L1-SLM", "l1", "small", "qwen2", True, 8, 0, 1000, 20, "build/store/x/model", "microworld"
)


def samples(**changes):
    """Three answers as corea.engines.evaluation.read_samples returns them."""
    table = {
        "dataset": ["chains", "chains", "facts"],
        "question_id": ["0", "0", "0"],
        "system": "L1-SLM",
        "sample": [0, 1, 0],
        "correct": [True, False, True],
        "confidence": [0.9, np.nan, 1.0],
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "answer": ["1", None, "A"],
        "gold": ["1", "1", "A"],
        "expected_confidence": [0.8, np.nan, 0.9],
        "expected_mass": [1.0, np.nan, 1.0],
        "average_probability": [0.7, 0.6, 0.5],
        "kind": "choice",
        "level": [2, 2, 1],
        "prompt": "p",
        "completion": ["a", "b", "c"],
        "finished": True,
        "undecided": False,
        "error": "",
    }
    return pd.DataFrame(table | changes)


def test_a_model_comes_back_as_it_was_written(tmp_path):
    write_model(MODEL, tmp_path)
    assert read_model(tmp_path) == MODEL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model.json: not there; `make book` makes it"),
        ("{", "model.json: not the description of a model"),
        (json.dumps({"system": "x"}), "missing .* required positional arguments"),
        (json.dumps(vars(MODEL) | {"colour": "red"}), "unexpected keyword argument 'colour'"),
    ],
)
def test_a_model_that_cannot_be_read_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(RunError, match=message):
        read_model(tmp_path)


def test_results_come_back_with_what_was_trained(tmp_path):
    write(tmp_path, MODEL, samples(), facts={"profile": "smoke"})
    found = run_records([tmp_path])
    assert found["confidence"].tolist()[0::2] == [0.9, 1.0]
    assert found["level"].tolist() == [2, 2, 1]
    assert found["expected_confidence"].isna().tolist() == [False, True, False]
    assert found["probe"].isna().all()
    assert set(found["method"]) == {"l1"}
    assert set(found["parameters"]) == {1000}
    assert read_records(tmp_path / "records.parquet").provenance == {"profile": "smoke"}


def test_a_signal_that_no_row_has_is_still_a_number(tmp_path):
    nothing = samples(confidence=[np.nan] * 3, expected_confidence=[np.nan] * 3)
    write(tmp_path, MODEL, nothing, facts={})
    found = run_records([tmp_path])
    assert found["expected_confidence"].dtype == found["probe"].dtype == float


def test_formats_of_decisions_are_files_of_their_own(tmp_path):
    both = pd.concat([samples(reasoning="none"), samples(reasoning="sampled", sample=[3, 4, 3])])
    write(tmp_path, replace(MODEL, method="sft"), both, facts={})
    assert sorted(path.name for path in tmp_path.glob("records*")) == [
        "records.parquet", "records_sampled.parquet",
    ]  # fmt: skip
    assert run_records([tmp_path])["sample"].tolist() == [0, 1, 0]
    assert run_records([tmp_path], reasoning="none")["sample"].tolist() == [0, 1, 0]
    assert run_records([tmp_path], reasoning="sampled")["sample"].tolist() == [3, 4, 3]
    assert len(pd.read_parquet(tmp_path / "samples.parquet")) == 2  # first ones, own format


def test_settings_come_back_with_what_was_started_from(tmp_path):
    write_settings({"calibration_weight": 0.001, "start": "Base"}, tmp_path)
    assert read_settings(tmp_path) == {"calibration_weight": 0.001, "start": "Base"}
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(RunError, match=r"settings.json: not the settings of a training"):
        read_settings(tmp_path)


def test_the_first_completions_are_kept_as_text(tmp_path):
    write(tmp_path, MODEL, samples(), facts={}, n_samples=1)
    kept = pd.read_parquet(tmp_path / "samples.parquet")
    assert kept["completion"].tolist() == ["a", "c"]


def test_results_that_break_the_contract_are_not_written(tmp_path):
    with pytest.raises(RecordsError, match="confidence"):
        write(tmp_path, MODEL, samples(confidence=[2.0, 0.1, 0.2]), facts={})
    assert not (tmp_path / "records.parquet").exists()


def test_the_same_system_and_seed_twice_is_refused(tmp_path):
    one, two = (
        fake_run(tmp_path / name, system="L1-SLM", method="l1", n_questions=3) for name in "ab"
    )
    with pytest.raises(RunError, match="are both 'L1-SLM' with seed 0"):
        run_records([one, two])


def test_a_missing_table_is_named(tmp_path):
    base = fake_run(tmp_path / "base", system="SLM", method="base", n_questions=3)
    trained = fake_run(tmp_path / "l1", system="L1-SLM", method="l1", n_questions=3)
    assert run_table([trained], "dynamics").columns[:3].tolist() == ["system", "method", "seed"]
    with pytest.raises(RunError, match=r"base/dynamics.csv: not there"):
        run_table([base], "dynamics")
    (tmp_path / "l1" / "records.parquet").unlink()
    with pytest.raises(RunError, match=r"l1/records.parquet: not there"):
        run_records([trained])
