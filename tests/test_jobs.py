"""What runs do: which model, how many tokens; on the book's profiles and on small ones of real models."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from corea.tasks import decision_world, microworld
from corea.tasks.suites import MICROWORLD, PAPERS
from corea.workflow import PipelineError, jobs
from corea.workflow.compute import DEVICES, HUB
from corea.workflow.jobs import find_model, read_accelerate, run_jobs
from corea.workflow.notebooks import notebook_parameters
from corea.workflow.profiles import load_profile

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
H100, CORE = DEVICES["h100"], DEVICES["cpu"]
SEVEN = "Qwen/Qwen2.5-7B-Instruct"


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Function that loads a profile of the book's notebooks: run -> notebook and what differs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "notebooks", "notebooks")
    Path("profiles").mkdir()

    def load(runs):
        entries = {}
        for name, (notebook, changes) in runs.items():
            values = notebook_parameters(Path("notebooks", f"{notebook}.ipynb"))
            del values["profile"], values["seed"], values["output_dir"]
            entries[name] = {"notebook": notebook, "parameters": values | changes}
        content = {"profile": "real", "seed": 0, "runs": entries}
        Path("profiles", "real.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_profile("real")

    return load


BASE = ("base_model", {"model": SEVEN, "engine": "vllm", "batch_size": 1024})
TRAIN = {"base": "{tables}/base", "precision": "bfloat16", "max_completion_tokens": 1000}
TRAIN |= {"steps": 40, "batch": 256, "checkpoint_every": 20, "n_validation": 64, "group_size": 8}


def trained(profile, more=None, device=H100, **changes):
    """The jobs of a training of the 7B model: the training and the evaluation."""
    options = {**TRAIN, "engine": "vllm", **changes, "more": {"micro_batch": 8, **(more or {})}}
    return run_jobs(profile({"base": BASE, "t": ("train", options)}), "t", device)


# --- every notebook of every profile ------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_every_notebook_of_every_profile_is_known(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    notebooks = {run.notebook.stem for run in load_profile(name).runs.values()}
    assert notebooks <= jobs.KNOWN


def test_notebooks_that_load_a_model_are_not_taken_for_readers():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        source = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert ("stages." in source) == (path.stem in jobs.JOBS), path.stem


@pytest.mark.parametrize("name", PROFILES)
def test_every_run_of_every_profile_can_be_estimated(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    profile = load_profile(name)
    for run in profile.runs.values():
        if run.notebook.stem in jobs.JOBS:
            for job in run_jobs(profile, run.name, CORE):
                assert job.model.name
                assert job.seconds >= 0, run.name
                assert job.gib >= 0, run.name


# --- models -----------------------------------------------------------------------------------


def test_models_of_the_microworld_are_those_that_are_trained():
    tokenizer = microworld.build_tokenizer()
    assert len(tokenizer) == jobs._VOCABULARY
    decisions = decision_world.build_tokenizer()
    assert len(decisions) - len(tokenizer) == jobs._DECISION_TOKENS
    for architecture in microworld.ARCHITECTURES:
        for role, preset in microworld.PRESETS.items():
            found = jobs._microworld_model(
                "x", {"role": role, "architecture": architecture, "precision": "float32"}
            )
            sizes = (preset.hidden_size, preset.n_layers, preset.n_heads, len(tokenizer))
            model = microworld.new_model(microworld.model_config(architecture, *sizes), 0)
            assert found.weights == model.num_parameters()


def test_a_run_is_followed_to_the_model_it_starts_from(profile):
    loaded = profile(
        {
            "small": ("pretrain", {"role": "tiny", "architecture": "llama"}),
            "l1": ("train", {"base": "{tables}/small"}),
            "decides": ("decision_pretrain", {"base": "{tables}/l1"}),
            "grpo": ("decision_train", {"base": "{tables}/decides"}),
            "judged": ("confidence_models", {"model": "{tables}/l1", "base": "{tables}/small"}),
        }
    )
    tiny = find_model(loaded, "small")
    assert (tiny.name, tiny.kind, tiny.suite) == (
        "microworld, tiny (llama)",
        "microworld",
        MICROWORLD,
    )
    assert find_model(loaded, "judged") == find_model(loaded, "l1") == tiny
    grown = find_model(loaded, "grpo")
    assert grown == find_model(loaded, "decides")
    assert grown.weights == tiny.weights + 2 * jobs._DECISION_TOKENS * 32  # both embeddings


def test_a_hub_model_may_be_named_with_a_commit(profile):
    for name in (SEVEN, f"{SEVEN}@a09a354"):
        found = find_model(profile({"base": ("base_model", {"model": name})}), "base")
        assert (found.name, found.kind, found.shape) == (name, "hub", HUB[SEVEN])
        assert (found.weights, found.suite) == (7_615_616_512, PAPERS)


def test_a_folder_is_read_and_its_weights_are_counted(profile, tmp_path):
    tokenizer = microworld.build_tokenizer()
    config = microworld.model_config("qwen3", 32, 2, 1, len(tokenizer))
    model = microworld.new_model(config, 0)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "mine")
    found = find_model(profile({"base": ("base_model", {"model": "mine"})}), "base")
    assert (found.kind, found.weights, found.precision) == (
        "folder", model.num_parameters(), "float32"
    )  # fmt: skip
    assert found.shape.weights == found.weights
    for path in Path("mine").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(
        PipelineError, match=r"base: mine: not a model's folder \(ModelError: mine:"
    ):
        find_model(load_profile("real"), "base")


def test_a_model_that_nobody_knows_has_no_estimate_and_is_not_left_out(profile):
    loaded = profile({"base": ("base_model", {"model": "nobody/Odd-1B", "n_questions": 10})})
    (job,) = run_jobs(loaded, "base", H100)
    assert (job.model.weights, job.model.shape) == (None, None)
    assert math.isnan(job.seconds)
    assert math.isnan(job.gib)
    assert job.sampled_tokens == 6 * 10 * 2 * 1024 / 2


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ({"b": ("base_model", {"model": "no such folder"})}, "b: 'no such folder' is neither a"),
        ({"b": ("base_model", {"model": ""})}, "b: its parameters name neither a model nor a base"),
        ({"b": ("base_model", {"model": SEVEN, "suite": "x"})}, "b: suite is 'x'; expected one of"),
        ({"b": ("base_model", {"model": SEVEN, "engine": "x"})}, "b: engine is 'x'; expected one"),
        ({"b": ("pretrain", {"role": "giant"})}, "b: role is 'giant'; expected one of micro, mini, tiny"),
        ({"b": ("pretrain", {"architecture": "x"})}, "b: architecture is 'x'; expected one of qwen2"),
        (
            {"a": BASE, "b": ("decision_train", {"base": "{tables}/a", "task": "x"})},
            "b: task is 'x'; expected one of choices, messages",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(profile, runs, complaint):
    with pytest.raises(PipelineError, match=complaint):
        run_jobs(profile(runs), "b", H100)


def test_a_parameter_that_is_missing_is_named(profile, write_notebook):
    loaded = profile({"base": BASE})
    fewer = {k: v for k, v in loaded.runs["base"].parameters.items() if k != "batch_size"}
    loaded = replace(loaded, runs={"base": replace(loaded.runs["base"], parameters=fewer)})
    with pytest.raises(PipelineError, match=r"base_model.ipynb has no parameter 'batch_size'"):
        run_jobs(loaded, "base", H100)


# --- tokens -----------------------------------------------------------------------------------


def test_all_test_questions_of_the_papers_are_counted(profile):
    (job,) = run_jobs(
        profile({"base": ("base_model", {"model": SEVEN, "n_samples": 10})}), "base", H100
    )
    questions = 500 + 500 + 1319 + 675 + 448 + 1221  # paper A, section 4.1
    assert job.sampled_tokens == questions * 10 * 1024 / 2
    assert job.datasets == PAPERS.datasets
    few = {"model": SEVEN, "n_questions": 500}
    (job,) = run_jobs(profile({"base": ("base_model", few)}), "base", H100)
    assert job.sampled_tokens == (5 * 500 + 448) * 2 * 1024 / 2  # GPQA has no more


def test_tokens_of_grpo_are_those_of_its_rollouts(profile):
    training, evaluation = trained(profile)
    validated = 3 * 64 * 8  # before the first step and at two checkpoints
    assert training.sampled_tokens == (40 * 256 + validated) * 500
    assert training.trained_tokens == 40 * 256 * (120 + 500)
    assert training.datasets == ("deepmath",)
    assert (training.what, evaluation.what) == ("GRPO (l1)", "evaluation")
    assert evaluation.trained_tokens == 0


def test_lengths_of_the_microworld_are_those_of_its_texts():
    tokenizer, decides = microworld.build_tokenizer(), decision_world.build_tokenizer()
    world, own = microworld.World(), decision_world.DecisionWorld()

    def mean(tokenizer, texts):
        return sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)

    for name in microworld.DATASETS:
        asked = [q.prompt for q in microworld.questions(world, name, "test", 100)]
        assert mean(tokenizer, asked) == pytest.approx(jobs.TEXTS[name].prompt, rel=0.1)
    for name in decision_world.DATASETS:
        asked = decision_world.questions(own, name, "test", 100)
        texts = [q.prompt(reasoning=True) for q in asked]
        assert mean(decides, texts) == pytest.approx(jobs.TEXTS[name].prompt, rel=0.1)
    for made, reader, length in (
        (microworld.corpus(world, 500, 1), tokenizer, jobs._CORPUS),
        (decision_world.corpus(own, 500, 1), decides, jobs._DECISION_CORPUS),
    ):
        rows = sum(mean(reader, [row[part] for row in made]) for part in ("prompt", "completion"))
        assert rows + 1 == pytest.approx(length, rel=0.05)  # and the end


@pytest.mark.parametrize("name", PAPERS.datasets + PAPERS.decision_datasets)
def test_lengths_and_counts_of_the_papers_datasets_are_those_of_their_files(monkeypatch, name):
    if not any((SHARED / name).glob("*[lv]")):
        pytest.skip(f"{name} is not in shared/data")
    monkeypatch.setenv("COREA_DATA", str(SHARED))
    decides = name in PAPERS.decision_datasets
    asked = (PAPERS.decisions if decides else PAPERS.questions)(name, "test")
    assert len(asked) == jobs.TEXTS[name].tests
    prompts = [q.prompt(reasoning=True) if decides else q.prompt for q in asked]
    tokens = sum(map(len, prompts)) / len(prompts) / 4 + 30
    assert tokens == pytest.approx(jobs.TEXTS[name].prompt, rel=0.02)


def test_a_run_that_decides_directly_draws_two_tokens(profile):
    loaded = profile(
        {
            "b": ("decision_base", {"model": "Qwen/Qwen3-1.7B"}),
            "sft": (
                "decision_train",
                {"base": "{tables}/b", "method": "sft", "precision": "bfloat16"},
            ),
        }
    )
    reasoned, direct = run_jobs(loaded, "b", H100)
    questions = 1221 + 500 + 1170 + 450
    assert (reasoned.sampled_tokens, direct.sampled_tokens) == (questions * 128, questions * 2)
    training, evaluation = run_jobs(loaded, "sft", H100)
    assert training.what == "SFT (decisions)"
    assert evaluation.sampled_tokens == 300 * 2 * 2 * 2


# --- time and memory ----------------------------------------------------------------------------


def test_a_server_takes_nothing_here(profile):
    served = {"model": "gpt-4.1", "engine": "server", "billions": 70.0}
    (job,) = run_jobs(profile({"base": ("base_model", served)}), "base", H100)
    assert (job.seconds, job.gib, job.devices) == (0, 0, 0)
    assert (job.what, job.model.weights) == ("evaluation by a server", 70_000_000_000)
    assert job.sampled_tokens > 0


def test_vllm_makes_rollouts_faster_beside_the_training_or_elsewhere(profile):
    own, colocated, served = (
        trained(profile, {"rollouts": name})[0]
        for name in ("corea", "vllm_colocate", "vllm_server")
    )
    assert own.seconds > 2 * colocated.seconds
    assert colocated.gib == pytest.approx(served.gib + 0.3 * 79.6)
    assert (own.devices, served.devices) == (1, 2)


def test_lora_and_checkpointing_take_less_memory(profile):
    whole, checkpointed, adapter = (
        trained(profile, {"rollouts": "vllm_server", **more})[0]
        for more in ({}, {"gradient_checkpointing": True}, {"lora_rank": 16})
    )
    assert whole.gib > checkpointed.gib + 50 > 79.6
    assert whole.gib > adapter.gib + 100
    assert checkpointed.seconds > whole.seconds > adapter.seconds


def test_what_a_step_reads_besides_costs_time(profile):
    plain = trained(profile)[0].seconds
    for changes in ({"kl_coef": 0.001}, {"n_validation": 96}, {"checkpoint_every": 10}):
        assert trained(profile, **changes)[0].seconds > plain, changes


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, (4, "none")),
        ({"distributed_type": "FSDP", "num_processes": 2}, (2, "all")),
        (
            {"distributed_type": "FSDP", "num_processes": 2,
             "fsdp_config": {"fsdp_sharding_strategy": "SHARD_GRAD_OP"}},
            (2, "states"),
        ),
        (
            {"distributed_type": "FSDP", "num_processes": 2,
             "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": False}},
            (2, "states"),
        ),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 8,
             "deepspeed_config": {"zero_stage": 3}},
            (8, "all"),
        ),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 8,
             "deepspeed_config": {"deepspeed_config_file": "zero.json"}},
            (8, "states"),
        ),
    ],
)  # fmt: skip
def test_processes_are_those_of_the_configuration_of_accelerate(
    profile, tmp_path, content, expected
):
    zero = {"zero_optimization": {"stage": 2}}
    (tmp_path / "zero.json").write_text(json.dumps(zero))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    profile({"base": BASE})
    assert read_accelerate("a.yaml") == expected


def test_sharing_out_everything_takes_less_memory_of_each_and_as_many_hours(profile, tmp_path):
    (tmp_path / "a.yaml").write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config: {zero_stage: 3}\n"
    )
    one = trained(profile, {"rollouts": "vllm_server"})[0]
    eight = trained(profile, {"rollouts": "vllm_server", "accelerate": "a.yaml"})[0]
    assert eight.gib < one.gib - 100
    assert eight.devices == 9
    assert eight.seconds == pytest.approx(one.seconds)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("num_processes: [", "not a configuration of accelerate"),
        ("distributed_type: NO", "not a configuration of accelerate"),
        ("num_processes: 0", "num_processes is 0; expected a number from 1"),
        ("just words", "not a configuration of accelerate"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, text, complaint):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError, match=f"a.yaml: {complaint}"):
        read_accelerate(str(path))
    with pytest.raises(PipelineError, match=r"none.yaml: .*FileNotFoundError"):
        read_accelerate(str(tmp_path / "none.yaml"))


def test_paper_b_took_about_as_long_as_it_says(profile, tmp_path):
    """It says "roughly 500 hours" of A100s with 40 GB (appendix A).

    GRPO with 500 questions, 32 completions each, 256 a step, 20 epochs, LoRA of rank 16; two tasks,
    with the calibration-aware loss and without, three sizes of Qwen3.
    """
    (tmp_path / "a.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    settings = {"steps": 1250, "batch": 256, "group_size": 32, "checkpoint_every": 125}
    settings |= {"precision": "bfloat16", "max_completion_tokens": 256, "n_questions": 0}
    settings |= {"more": {"lora_rank": 16, "micro_batch": 8}, "n_validation": 100}
    runs = {}
    for size in ("1.7B", "4B", "8B"):
        name = size.replace(".", "_")
        runs[f"base{name}"] = ("decision_base", {"model": f"Qwen/Qwen3-{size}"})
        for task in ("choices", "messages"):
            for weight in (0.0, 0.001):
                changes = {"base": f"{{tables}}/base{name}", "task": task, **settings}
                changes["calibration_weight"] = weight
                changes["more"] = settings["more"] | {"accelerate": "a.yaml"}
                runs[f"{task}{name}_{len(runs)}"] = ("decision_train", changes)
    loaded = profile(runs)
    done = [job for run in loaded.runs for job in run_jobs(loaded, run, DEVICES["a100"])]
    hours = sum(job.seconds for job in done) / 3600
    assert 500 / 3 < hours < 500 * 3
