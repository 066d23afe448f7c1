"""What a profile takes, what is done, what must be had and what is missing."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from corea.cli import main
from corea.workflow import PipelineError
from corea.workflow import plan as p
from corea.workflow.execute import seal_result
from corea.workflow.plan import describe, lacking, must_have, prepare_plan, with_states
from corea.workflow.profiles import Packaged, load_profile

ROOT = Path(__file__).resolve().parent.parent
SMALL, LARGE = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-32B-Instruct"
RUNS = {
    "reads": ("backbones", {"runs": ["{tables}/l1"]}),
    "base": ("base_model", {"model": SMALL, "engine": "transformers"}),
    "alone": ("base_model", {"model": LARGE, "engine": "transformers", "batch_size": 64}),
    "l1": ("train", {"base": "{tables}/base", "more": {"micro_batch": 8}}),
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Function that writes the profile ``tiny``; the working directory is a repository."""
    monkeypatch.chdir(tmp_path)
    for name in ("COREA_DATA", "OPENAI_BASE_URL", "COREA_VLLM_SERVER"):
        monkeypatch.delenv(name, raising=False)
    for name in ("Snakefile", "_config.yml", "constraints.txt"):
        shutil.copy(ROOT / name, name)
    Path("_toc.yml").write_text("format: jb-book\nroot: book/intro\n")  # no chapters of its own
    shutil.copytree(ROOT / "notebooks", "notebooks")
    Path("corea").symlink_to(ROOT / "corea")
    for name in ("book", "profiles"):
        Path(name).mkdir()

    def write(runs):
        entries = {
            name: {"notebook": notebook, "parameters": changes}
            for name, (notebook, changes) in runs.items()
        }
        content = {"profile": "tiny", "seed": 0, "runs": entries}
        Path("profiles/tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_profile("tiny")

    return write


def execute(profile, *names, when=2_000_000_000):
    """Note runs as executed, at a time after all inputs."""
    for name in names:
        tables = profile.directory / "tables" / name
        tables.mkdir(parents=True, exist_ok=True)
        noted = {"papermill": {"duration": 90.0}, "corea": {"commit": "a"}}
        path = profile.directory / "executed" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"metadata": noted}))
        seal_result(path, tables)
        when += 1
        for file in (path, *tables.iterdir()):
            os.utime(file, (when, when))


def states(profile):
    return with_states(profile, prepare_plan(profile)).set_index("run")["state"].to_dict()


# --- the rows ---------------------------------------------------------------------------------


def test_a_row_for_each_run_in_the_order_in_which_they_start(repository):
    plan = prepare_plan(repository(RUNS))
    # the longest chain of runs that wait for each other first
    assert plan["run"].tolist() == ["base", "l1", "reads", "alone"]
    assert plan["notebook"].tolist() == ["base_model", "train", "backbones", "base_model"]
    assert plan["what"].tolist() == ["answers", "GRPO + answers", "reads tables", "answers"]
    assert plan["model"].tolist() == [SMALL, SMALL, "", LARGE]
    assert (plan["trained_tokens"] > 0).tolist() == [False, True, False, False]
    assert (plan["hours"] >= 0).all()
    assert plan["hours"].idxmax() == 3
    assert plan["memory"].iloc[3] > 61  # 2 bytes a weight
    shown = p.lay_out(plan)
    assert shown["weights"].tolist() == ["494 M", "494 M", "", "33 B"]
    assert shown["time"].iloc[2] == "0 s"


def test_what_is_not_known_is_said_and_not_left_out(repository):
    odd = ("base_model", {"model": "nobody/Odd-1B", "engine": "transformers"})
    profile = repository(RUNS | {"odd": odd})
    plan = prepare_plan(profile).set_index("run")
    assert plan.loc["odd", ["hours", "memory", "weights"]].isna().all()
    assert plan.loc["odd", "sampled_tokens"] > 0
    told = describe(plan.reset_index(), "h100")
    assert "Not estimated, so not in that: odd." in told
    shown = p.lay_out(plan.reset_index()).set_index("run")
    assert shown.loc["odd", ["weights", "time", "GiB"]].tolist() == ["?", "?", "?"]


def test_the_device_can_be_chosen_and_what_does_not_fit_is_named(repository, monkeypatch):
    profile = repository(RUNS)
    fast, slow = (prepare_plan(profile, name) for name in ("h100", "a100"))
    pd.testing.assert_frame_equal(prepare_plan(profile), fast)
    models = fast["notebook"] != "backbones"
    assert (slow.loc[models, "hours"] > fast.loc[models, "hours"]).all()
    told = describe(slow, "a100")
    assert told[-1] == "Does not fit into one of them: alone."
    assert "(alone), of 39.5" in told[-2]
    assert not any("fit into" in text for text in describe(prepare_plan(profile, "h200"), "h200"))
    with pytest.raises(PipelineError, match="device is 'abacus'; expected one of h100, h200, a100"):
        prepare_plan(profile, "abacus")
    monkeypatch.chdir(ROOT)
    for name in ("laptop", "laptop-full", "smoke"):
        assert p.default_device(load_profile(name)) == "cpu"


def test_the_plan_of_laptop_is_what_it_took(monkeypatch):
    monkeypatch.chdir(ROOT)
    both = prepare_plan(load_profile("laptop")).merge(p.measured(), on="run")
    ratio = 3600 * both["hours"] / both["seconds"]
    models = both["what"] != "reads tables"
    assert models.sum() >= 15
    assert ratio[models].between(0.75, 1.25).all()
    assert 0.9 < (3600 * both["hours"]).sum() / both["seconds"].sum() < 1.1
    assert ratio[~models].between(0.99, 1.01).all()


# --- what is done -----------------------------------------------------------------------------


def test_what_is_done_and_why_a_run_is_not(repository):
    profile = repository(RUNS)
    assert set(states(profile).values()) == {"to do"}
    execute(profile, "base", "l1", "reads", "alone")
    plan = with_states(profile, prepare_plan(profile)).set_index("run")
    assert set(plan["state"]) == {"done"}
    assert plan.loc["base", "took"] == pytest.approx(90 / 3600)
    assert p.lay_out(plan.reset_index())["took"].tolist() == ["1.5 min"] * 4
    assert describe(plan.reset_index(), "h100")[0] == "4 runs, of which 4 are done."

    os.utime("notebooks/backbones.ipynb", (2_100_000_000, 2_100_000_000))
    assert states(profile) == {
        "base": "done", "l1": "done", "reads": "to do: updated input files", "alone": "done"
    }  # fmt: skip

    shutil.rmtree("build/tiny/tables/l1")
    Path("build/tiny/executed/alone.ipynb").unlink()
    Path("build/tiny/failed").mkdir()
    Path("build/tiny/failed/alone.txt").write_text("alone: out of memory")
    with Path("build/tiny/executed/base.ipynb").open("a") as file:
        file.write(" ")
    assert states(profile) == {
        "base": "to do: damaged", "l1": "to do: damaged", "reads": "to do: reads l1",
        "alone": "to do: failed before",
    }  # fmt: skip
    # asking removes nothing
    assert Path("build/tiny/executed/base.ipynb").is_file()


def test_other_parameters_are_to_do_and_what_reads_them_waits(repository):
    execute(repository(RUNS), "base", "l1", "reads", "alone")
    profile = repository(RUNS)
    assert set(states(profile).values()) == {"done"}
    os.utime("build/tiny/parameters/base.yaml", (2_100_000_000, 2_100_000_000))
    found = states(profile)
    assert found["base"].startswith("to do: ")
    assert (found["l1"], found["reads"]) == ("to do: reads base", "to do: reads l1")
    assert found["alone"] == "done"


def test_a_snakefile_that_cannot_be_read_is_an_error(repository):
    profile = repository(RUNS)
    Path("Snakefile").write_text("rulee x:\n")
    with pytest.raises(PipelineError, match="Snakemake cannot tell what is done:"):
        states(profile)


# --- what must be had, and what is missing ------------------------------------------------------


def test_models_and_datasets_that_must_be_had(repository, monkeypatch, tmp_path):
    gated = "meta-llama/Llama-3.1-8B-Instruct"
    served = ("base_model", {"model": "x", "engine": "server"})
    profile = repository(RUNS | {"llama": ("base_model", {"model": gated}), "served": served})
    plan = prepare_plan(profile)
    told = must_have(profile, plan)
    assert f"model {SMALL}: from the hub, or name a folder with the model" in told
    ask = f"model {gated}: gated: ask for access on https://huggingface.co/{gated}"
    assert sum(text.startswith(ask) for text in told) == 1
    assert [text.split(":")[0] for text in told if text.startswith("model")] == [
        f"model {name}" for name in (SMALL, LARGE, gated)
    ]
    assert {text.split(":")[0] for text in told if text.startswith("dataset")} == {
        f"dataset {name}"
        for name in ("deepmath", "math500", "gsm8k", "olympiadbench", "gpqa", "commonsenseqa")
    }
    (gpqa,) = (text for text in told if text.startswith("dataset gpqa"))
    assert "`hf auth login`, or set COREA_DATA" in gpqa
    assert must_have(profile, plan[plan["run"] == "reads"]) == []

    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "test.jsonl").touch()
    monkeypatch.setenv("COREA_DATA", str(tmp_path / "data"))
    told = must_have(profile, plan)
    assert "dataset gsm8k: in the folder that COREA_DATA names" in told
    where = "missing in the folder that COREA_DATA names: math500/test.jsonl"
    assert f"dataset math500: {where}" in told


def test_a_model_that_was_fetched_before_is_told(repository, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    cache, commit = tmp_path / "hub" / "models--nobody--Odd-1B", "0" * 40
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
    assert "model nobody/Odd-1B: in the hub's cache here" in must_have(profile, plan)


def test_gguf_files_that_must_be_had(repository):
    pytest.importorskip("gguf", reason="GGUF files need the extra `train`")
    from tiny_gguf import write_gguf

    named = "build/models/tiny.gguf"
    runs = {"base": ("base_model", {"model": named, "engine": "transformers"})}
    profile = repository(runs | {"other": ("base_model", {"model": "mine.gguf"})})
    fetched = Packaged(packages=["whole==1.0", "more==2.0"], sha256="0" * 64, megabytes=99)
    profile = replace(profile, models={named: fetched})
    plan = prepare_plan(profile)
    assert plan["weights"].isna().all()
    told = must_have(profile, plan)
    registry = "missing; fetched from the package registry when the profile is built"
    assert f"model {named}: {registry}, whole==1.0, more==2.0 (99 MB), or place the" in told[0]
    assert told[1] == "model mine.gguf: missing: place the file at this path"
    Path(named).parent.mkdir(parents=True)
    model = write_gguf(named)
    plan = prepare_plan(profile).set_index("run")
    assert plan.loc["base", "weights"] == sum(weight.numel() for weight in model.parameters())
    assert must_have(profile, plan.reset_index())[0] == f"model {named}: here"
    assert p.default_device(profile) == "cpu"
    Path("mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(PipelineError, match="mine.gguf: its header is damaged"):
        prepare_plan(profile)


def test_what_a_machine_lacks(repository, monkeypatch):
    more = {"lora_rank": 8, "rollouts": "vllm_server", "micro_batch": 64}
    Path("zero.yaml").write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config: {zero_stage: 2}\n"
    )
    profile = repository(
        {
            "a": ("base_model", {"model": SMALL, "engine": "vllm"}),
            "b": ("base_model", {"model": "x", "engine": "server"}),
            "l1": ("train", {"base": "{tables}/a", "more": more, "accelerate": "zero.yaml"}),
            "reads": ("backbones", {"runs": ["{tables}/l1"]}),
        }
    )
    plan = prepare_plan(profile)
    monkeypatch.setattr(p, "probe", lambda python, packages: (set(), []))
    assert lacking(profile, plan, "h100") == [
        *(f"{name} is not installed" for name in ("torch", "transformers", "trl", "vllm")),
        "peft is not installed",
        "deepspeed is not installed",
        "OPENAI_BASE_URL is not set, the address of a server for answers, such as "
        "http://localhost:8000/v1",
        "COREA_VLLM_SERVER is not set, the address of a server for rollouts in training",
        "no GPU that torch can use (CUDA)",
    ]
    for name in ("OPENAI_BASE_URL", "COREA_VLLM_SERVER"):
        monkeypatch.setenv(name, "http://localhost:1")
    monkeypatch.setattr(p, "probe", lambda python, packages: (set(packages), [1.0, 1.0]))
    most = f"{plan['memory'].max():.0f}"
    assert lacking(profile, plan, "h100") == [
        "2 GPUs; 5 are asked for", f"GPUs have 1 GiB; {most} are needed"
    ]  # fmt: skip
    monkeypatch.setattr(p, "probe", lambda python, packages: (set(packages), [999.0] * 5))
    assert lacking(profile, plan, "h100") == []
    assert lacking(profile, plan[plan["run"] == "reads"], "h100") == []
    elsewhere = replace(profile, kernel="no-such-kernel")
    assert "there is no Jupyter kernel 'no-such-kernel'" in lacking(elsewhere, plan, "h100")[0]


def test_the_packages_are_those_of_the_python_that_is_named(tmp_path):
    import venv

    venv.create(tmp_path / "bare", symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    assert p.probe(python, ["torch", "json"]) == ({"json"}, [])
    with pytest.raises(PipelineError, match=r"no-python: what is installed cannot be told \("):
        p.probe("no-python", [])


# --- in words, and measured ---------------------------------------------------------------------


def test_the_command_prints_it_all(repository, capsys):
    repository(RUNS | {"served": ("base_model", {"model": "x", "engine": "server"})})
    assert main(["plan", "tiny", "--device", "a100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "run"
    assert [line.split()[0] for line in lines[1:6]] == ["base", "l1", "reads", "alone", "served"]
    assert lines[7] == "5 runs, of which 0 are done."
    assert lines[8].startswith("To go: about ")
    assert "GPU-hours of one A100 (40 GB), within a factor of 3" in lines[8]
    assert "What a server computes is not in that." in lines
    assert "Must be had:" in lines
    assert "Missing on this machine:" in lines
    assert main(["plan", "other"]) == 1
    assert "there is no profile 'other' in profiles/ here" in capsys.readouterr().out


def test_how_long_laptop_took_is_kept(tmp_path, repository, monkeypatch):
    monkeypatch.setattr(p, "FOLDER", tmp_path)
    profile = replace(repository(RUNS), name="laptop")
    with pytest.raises(PipelineError, match="not executed: reads, base, alone, l1"):
        p.publish(profile)
    execute(profile, *profile.runs)
    p.publish(profile)
    assert p.measured().to_dict("records")[0] == {
        "run": "reads", "notebook": "backbones", "seconds": 90.0
    }  # fmt: skip
    noted = json.loads((tmp_path / "provenance.json").read_text())
    assert noted == {"commit": "a", "wall time": "6 minutes, the sum over 4 notebooks"}
    with pytest.raises(PipelineError, match="profile tiny: only what laptop took is kept"):
        p.publish(repository(RUNS))
