"""What a profile takes, what is done, what must be had and what is missing."""

import importlib.util
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from corea.workflow import PipelineError
from corea.workflow import plan as p
from corea.workflow.compute import DEVICES
from corea.workflow.execute import seal_result
from corea.workflow.plan import Machine, prepare_needs, prepare_plan, start_order, states
from corea.workflow.profiles import load_profile

ROOT = Path(__file__).resolve().parent.parent
GIVEN = 'profile = "tiny"\nseed = 0\noutput_dir = ""\n'
ASK = {"n_questions": 0, "n_samples": 1, "max_completion_tokens": 1000, "batch_size": 64}
TRAINING = {"base": "", "confidence_reward": "l1", "group_size": 8, "steps": 20, "batch": 64}
TRAINING |= {"checkpoint_every": 10, "n_validation": 16, "kl_coef": 0.0, "precision": "bfloat16"}
TRAINING |= {"more": {"micro_batch": 8}, "engine": "transformers"}
FULL = Machine((80.0, 80.0), frozenset(p._MODULES), frozenset(p._ADDRESSES))


@pytest.fixture
def repository(tmp_path, monkeypatch, write_notebook):
    """Function that writes the profile ``tiny``; the working directory is a repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COREA_DATA", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    Path("constraints.txt").touch()
    Path("profiles").mkdir()

    def notebook(name, values, *cells):
        source = GIVEN + "\n".join(f"{key} = {value!r}" for key, value in values.items())
        path = Path("notebooks", f"{name}.ipynb")
        write_notebook(path, ("code", source, "parameters"), *cells)

    notebook("base_model", {"model": "", "suite": "papers", "engine": "transformers", **ASK})
    notebook("train", TRAINING | ASK)
    notebook("backbones", {"runs": []})
    notebook("strange", {"runs": []})

    def write(runs):
        defaults = {"base_model": {"suite": "papers", "engine": "transformers", **ASK}}
        defaults |= {"train": TRAINING | ASK}
        entries = {
            name: {"notebook": stem, "parameters": defaults.get(stem, {}) | changes}
            for name, (stem, changes) in runs.items()
        }
        content = {"profile": "tiny", "seed": 0, "runs": entries}
        Path("profiles/tiny.yaml").write_text(json.dumps(content))
        return load_profile("tiny")

    return write


SMALL, LARGE = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-32B-Instruct"
RUNS = {
    "reads": ("backbones", {"runs": ["{tables}/l1"]}),
    "base": ("base_model", {"model": SMALL}),
    "alone": ("base_model", {"model": LARGE}),
    "l1": ("train", {"base": "{tables}/base"}),
}


def execute(profile, *names, when=2_000_000_000, **changes):
    """Note runs as executed, at a time after all inputs."""
    for name in names:
        tables = profile.directory / "tables" / name
        tables.mkdir(parents=True, exist_ok=True)
        parameters = {**profile.runs[name].parameters, "output_dir": tables.as_posix()} | changes
        noted = {
            "papermill": {"parameters": parameters, "duration": 90.0},
            "corea": {"commit": "a"},
        }
        path = profile.directory / "executed" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"metadata": noted}))
        seal_result(path, tables)
        os.utime(path, (when, when))
        when += 1


# --- the rows ---------------------------------------------------------------------------------


def test_a_row_for_each_run_in_the_order_in_which_they_start(repository):
    profile = repository(RUNS)
    # the longest chain of runs that wait for each other first
    assert start_order(profile) == ["base", "l1", "reads", "alone"]
    plan = prepare_plan(profile)
    assert plan["run"].tolist() == ["base", "l1", "reads", "alone"]
    assert plan["notebook"].tolist() == ["base_model", "train", "backbones", "base_model"]
    assert plan["what"].tolist() == [
        "evaluation", "GRPO (l1) + evaluation", "reads tables", "evaluation"
    ]  # fmt: skip
    assert plan["model"].tolist() == [SMALL, SMALL, "", LARGE]
    assert plan["weights"].dropna().tolist() == [494_032_768, 494_032_768, 32_763_876_352]
    assert plan["trained_tokens"].tolist() == [0, 20 * 64 * (120 + 500), 0, 0]
    assert (plan["hours"] >= 0).all()
    assert plan["hours"].idxmax() == 3
    assert plan["memory"].iloc[3] > 61  # 2 bytes a weight
    assert plan["took"].isna().all()


def test_what_is_not_known_is_said_and_not_left_out(repository):
    profile = repository(
        RUNS
        | {"what": ("strange", {"runs": []}), "odd": ("base_model", {"model": "nobody/Odd-1B"})}
    )
    plan = prepare_plan(profile).set_index("run")
    assert plan.loc["what", "what"] == "not estimated"
    assert plan.loc[["what", "odd"], ["hours", "memory", "weights"]].isna().all(axis=None)
    assert plan.loc["odd", "sampled_tokens"] > 0
    told = " ".join(p.describe(profile, plan.reset_index()))
    assert "Not estimated, so not in that: what, odd." in told
    shown = p.lay_out(plan.reset_index()).set_index("run")
    assert shown.loc["odd", ["weights", "time", "GiB"]].tolist() == ["?", "?", "?"]
    assert shown.loc["what", "time"] == "?"
    assert shown.loc["reads", ["weights", "GiB", "time"]].tolist() == ["", "", "0 s"]


def test_the_device_can_be_chosen(repository):
    profile = repository(RUNS)
    fast, slow = (prepare_plan(profile, name).set_index("run") for name in ("h100", "a100"))
    pd.testing.assert_frame_equal(prepare_plan(profile).set_index("run"), fast)
    assert (slow.loc[["base", "l1"], "hours"] > fast.loc[["base", "l1"], "hours"]).all()
    with pytest.raises(PipelineError, match="device is 'abacus'; expected one of h100, h200, a100"):
        prepare_plan(profile, "abacus")


@pytest.mark.parametrize(
    ("name", "device"), [("laptop", "cpu"), ("laptop-full", "cpu"), ("smoke", "cpu")]
)
def test_profiles_of_the_microworld_are_for_a_cpu(monkeypatch, name, device):
    monkeypatch.chdir(ROOT)
    assert p.default_device(load_profile(name)) == device


def test_the_plan_of_laptop_is_what_it_took(monkeypatch):
    monkeypatch.chdir(ROOT)
    compared = p.compare(prepare_plan(load_profile("laptop"), "cpu"), p.measured())
    models = compared[~compared["notebook"].isin(p.READERS)]
    assert len(models) >= 20
    assert models["ratio"].between(0.5, 2).all()
    assert 0.75 < models["estimated"].sum() / models["measured"].sum() < 1.33
    assert p.facts()["profile"] == "laptop"


# --- what is done -----------------------------------------------------------------------------


def test_what_is_executed_and_newer_than_its_inputs_is_done(repository):
    profile = repository(RUNS)
    assert set(states(profile).values()) == {"to do"}
    execute(profile, "base", "l1", "reads")
    assert states(profile) == {"base": "done", "l1": "done", "reads": "done", "alone": "to do"}
    plan = prepare_plan(profile).set_index("run")
    assert plan.loc["base", "took"] == pytest.approx(90 / 3600)
    told = p.describe(profile, plan.reset_index())
    assert told[0] == "4 runs, of which 3 are done."
    hours = plan.loc["alone", "hours"]
    assert told[1].startswith(f"To go: about {p._digits(hours)} GPU-hours of one H100")


def test_why_a_run_is_to_do(repository):
    profile = repository(RUNS)
    execute(profile, "base", "l1", "reads", "alone")
    os.utime("notebooks/backbones.ipynb", (2_000_000_099, 2_000_000_099))
    assert states(profile)["reads"] == "to do: notebooks/backbones.ipynb is newer"

    execute(profile, "l1", when=2_000_000_001, steps=10)
    assert states(profile) == {
        "base": "done", "l1": "to do: other parameters", "reads": "to do: reads l1", "alone": "done"
    }  # fmt: skip

    execute(profile, "base", when=2_000_000_050)
    execute(profile, "l1", when=2_000_000_001)
    assert states(profile)["l1"] == "to do: build/tiny/executed/base.ipynb is newer"

    shutil.rmtree("build/tiny/tables/alone")
    assert states(profile)["alone"] == "to do: damaged"
    Path("build/tiny/executed/alone.ipynb").unlink()
    assert states(profile)["alone"] == "to do"
    Path("build/tiny/failed").mkdir()
    Path("build/tiny/failed/alone.txt").write_text("alone: out of memory")
    assert states(profile)["alone"] == "to do: failed before"


def test_a_model_folder_that_a_parameter_names_is_an_input_too(repository):
    profile = repository(RUNS)
    execute(profile, "base")
    Path("more.txt").touch()
    run = profile.runs["base"]
    named = replace(run, parameters={**run.parameters, "model": "more.txt"})
    profile = replace(profile, runs=dict(profile.runs) | {"base": named})
    execute(profile, "base")
    os.utime("more.txt", (2_100_000_000, 2_100_000_000))
    assert states(profile)["base"] == "to do: more.txt is newer"


# --- what must be had, and what is missing ------------------------------------------------------


def test_models_and_datasets_that_must_be_had(repository):
    gated = "meta-llama/Llama-3.1-8B-Instruct"
    profile = repository(RUNS | {"llama": ("base_model", {"model": gated})})
    needs = prepare_needs(profile, prepare_plan(profile)).set_index("name")
    models = needs[needs["kind"] == "model"]
    assert models["runs"].to_dict() == {SMALL: 2, LARGE: 1, gated: 1}
    assert models.loc[SMALL, "how"] == "from the hub, or name a folder with the model"
    assert models.loc[gated, "how"].startswith(
        f"gated: ask for access on https://huggingface.co/{gated}"
    )
    assert set(needs.index[needs["kind"] == "dataset"]) == {
        "deepmath", "math500", "gsm8k", "olympiadbench", "gpqa", "commonsenseqa"
    }  # fmt: skip
    assert "`hf auth login`, or set COREA_DATA" in needs.loc["gpqa", "how"]
    assert needs.loc["gsm8k", "how"].startswith("from the hub (openai/gsm8k)")


def test_what_is_done_or_served_needs_nothing(repository):
    profile = repository(
        {
            "a": ("base_model", {"model": SMALL}),
            "b": ("base_model", {"model": "x", "engine": "server"}),
        }
    )
    execute(profile, "a")
    needs = prepare_needs(profile, prepare_plan(profile))
    assert "model" not in set(needs["kind"])
    execute(profile, "b")
    assert prepare_needs(profile, prepare_plan(profile)).empty


def test_original_files_are_looked_for_in_their_folder(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("COREA_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "test.jsonl").touch()
    profile = repository({"base": ("base_model", {"model": SMALL})})
    how = prepare_needs(profile, prepare_plan(profile)).set_index("name")["how"]
    assert how["gsm8k"] == "in the folder that COREA_DATA names"
    assert how["math500"] == "missing in the folder that COREA_DATA names: math500/test.jsonl"


def test_a_model_that_was_fetched_before_is_told(repository, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    commit = "0" * 40
    cache = tmp_path / "hub" / "models--nobody--Odd-1B"
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 99}
    config |= {"num_attention_heads": 2, "intermediate_size": 128}
    (cache / "snapshots" / commit / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.file_download, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    profile = repository({"base": ("base_model", {"model": "nobody/Odd-1B"})})
    plan = prepare_plan(profile)
    assert plan["weights"].item() == 2 * (4 * 64**2 + 3 * 64 * 128 + 128) + 64 + 2 * 99 * 64
    needs = prepare_needs(profile, plan).set_index("name")
    assert needs.loc["nobody/Odd-1B", "how"] == "in the hub's cache here"


LORA = {"lora_rank": 8, "micro_batch": 8, "rollouts": "vllm_server"}


def test_what_a_machine_lacks(repository):
    profile = repository(
        {
            "a": ("base_model", {"model": SMALL, "engine": "vllm"}),
            "b": ("base_model", {"model": "x", "engine": "server"}),
            "l1": ("train", {"base": "{tables}/a", "more": LORA}),
        }
    )
    plan = prepare_plan(profile)
    assert p.lacking(profile, plan, FULL, "h100") == []
    bare = Machine(None, frozenset(), frozenset())
    assert p.lacking(profile, plan, bare, "h100") == [
        "torch is not installed",
        "transformers is not installed",
        "trl is not installed",
        "vllm is not installed",
        "peft is not installed",
        "OPENAI_BASE_URL is not set, the address of a server for answers, such as "
        "http://localhost:8000/v1",
        "COREA_VLLM_SERVER is not set, the address of a server for rollouts in training",
        "no GPU that torch can use (CUDA)",
    ]
    small = replace(FULL, gpus=(8.0, 8.0))
    most = f"{plan['memory'].max():.0f}"
    assert p.lacking(profile, plan, small, "h100") == [f"GPUs have 8 GiB; {most} are needed"]
    execute(profile, "a", "b", "l1")
    assert p.lacking(profile, prepare_plan(profile), bare, "h100") == []


def test_several_processes_want_as_many_gpus_and_their_packages(repository, tmp_path):
    Path("zero.yaml").write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config: {zero_stage: 2}\n"
    )
    more = {"micro_batch": 4, "accelerate": "zero.yaml"}
    profile = repository(
        {
            "a": ("base_model", {"model": SMALL}),
            "l1": ("train", {"base": "{tables}/a", "more": more}),
        }
    )
    plan = prepare_plan(profile)
    assert plan["devices"].tolist() == [1, 4]
    one = replace(FULL, modules=FULL.modules - {"deepspeed"})
    assert p.lacking(profile, plan, one, "h100") == [
        "deepspeed is not installed", "2 GPUs; 4 are asked for"
    ]  # fmt: skip


def test_a_reader_of_tables_lacks_nothing(repository):
    profile = repository(RUNS)
    execute(profile, "base", "l1", "alone")
    assert (
        p.lacking(profile, prepare_plan(profile), Machine(None, frozenset(), frozenset()), "h100")
        == []
    )


def test_this_machine_is_asked(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    monkeypatch.delenv("COREA_VLLM_SERVER", raising=False)
    found = p.this_machine()
    assert found.addresses == {"OPENAI_BASE_URL"}
    installed = {name for name in p._MODULES if importlib.util.find_spec(name)}
    assert found.modules == installed
    assert (found.gpus is None) == ("torch" not in installed)


def test_the_packages_are_those_of_the_python_that_is_named(tmp_path, monkeypatch):
    import venv

    for name in p._ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    venv.create(tmp_path / "bare", symlinks=True)
    assert p.this_machine(str(tmp_path / "bare" / "bin" / "python")) == Machine(
        None, frozenset(), frozenset()
    )
    with pytest.raises(PipelineError, match=r"no-python: what is installed cannot be told \("):
        p.this_machine("no-python")


# --- in words ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_named(repository):
    profile = repository(RUNS)
    told = p.describe(profile, prepare_plan(profile, "a100"), "a100")
    assert told[-1] == "Does not fit into one of them: alone."
    assert told[-2].startswith("Most memory: ")
    assert "(alone), of 39.5" in told[-2]
    told = p.describe(profile, prepare_plan(profile, "h200"), "h200")
    assert not any("fit into" in text for text in told)


def test_hours_of_a_server_are_said_not_to_be_counted(repository):
    profile = repository({"b": ("base_model", {"model": "x", "engine": "server"})})
    assert "What a server computes is not in that." in p.describe(profile, prepare_plan(profile))


def test_the_command_prints_it_all_and_writes_nothing(repository, capsys):
    repository(RUNS)
    before = sorted(Path().rglob("*"))
    assert p.main(["tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "run"
    assert [line.split()[0] for line in lines[1:5]] == ["base", "l1", "reads", "alone"]
    assert lines[6] == "4 runs, of which 0 are done."
    assert "Must be had:" in lines
    assert f"  model {SMALL}: from the hub, or name a folder with the model" in lines
    assert sorted(Path().rglob("*")) == before
    assert p.console(["plan", "tiny", "--device", "a100"]) == 0
    assert "one A100 (40 GB)" in capsys.readouterr().out


def test_an_unknown_profile_is_an_error(repository, capsys):
    repository(RUNS)
    assert p.main(["other"]) == 1
    assert (
        capsys.readouterr().out
        == "there is no profile 'other' in profiles/ here; there are: tiny\n"
    )
    assert p.console(["plan", "other"]) == 1
    assert p.console([]) == 2
    assert p.console(["--help"]) == 0


# --- measured ---------------------------------------------------------------------------------


def test_how_long_laptop_took_is_kept(tmp_path, repository, monkeypatch):
    monkeypatch.setattr(p, "FOLDER", tmp_path / "kept")
    profile = replace(repository(RUNS), name="laptop")
    with pytest.raises(PipelineError, match="not executed: reads, base, alone, l1"):
        p.publish(profile)
    execute(profile, *profile.runs)
    p.publish(profile)
    assert p.measured().to_dict("records")[0] == {
        "run": "reads", "notebook": "backbones", "seconds": 90.0
    }  # fmt: skip
    assert p.facts() == {"commit": "a", "wall time": "6 minutes, the sum over 4 notebooks"}
    with pytest.raises(PipelineError, match="profile tiny: only what laptop took is kept"):
        p.publish(repository(RUNS))


def test_readers_take_on_a_core_what_they_took(monkeypatch):
    table = pd.DataFrame(
        {
            "run": ["a", "b", "c", "d"],
            "notebook": ["backbones", "calibration", "cascade", "train"],
            "seconds": [4.0, 20.0, 6.0, 100.0],
        }
    )
    monkeypatch.setattr(p, "measured", lambda: table)
    core = DEVICES["cpu"]
    assert p._around("calibration", core) == 20
    assert p._around("post_hoc", core) == 6  # the median of the others
    assert p._around("calibration", DEVICES["h100"]) == 0
