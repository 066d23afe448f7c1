"""What models take, by hand and beside torch, peft, the hub and the papers; what runs do with them."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from corea.tasks import decision_world, microworld
from corea.tasks.suites import MICROWORLD, PAPERS
from corea.workflow import PipelineError, estimate
from corea.workflow.estimate import (
    DEVICES,
    GIB,
    HUB,
    TEXTS,
    Draw,
    Shape,
    Training,
    find_model,
    run_jobs,
)
from corea.workflow.profiles import load_profile
from corea.workflow.work import accelerated, training_settings

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
H100, CORE = DEVICES["h100"], DEVICES["cpu"]
NAME = "Qwen/Qwen2.5-7B-Instruct"
SEVEN = HUB[NAME]
COUNTED = {  # parameters in the safetensors, as the hub shows them
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen3-1.7B": 1_720_574_976,  # without the copy of its tied output layer
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": 494_032_768,
}


# --- weights, operations and activations --------------------------------------------------------


def test_weights_are_those_that_the_hub_counts():
    assert {name: shape.weights for name, shape in HUB.items()} == pytest.approx(COUNTED, rel=2e-4)


def built(shape, **options):
    """The model of transformers, without weights, and its configuration."""
    transformers = pytest.importorskip("transformers")
    import torch

    config = transformers.LlamaConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.queries // 16,
        num_key_value_heads=shape.keys // 16,
        intermediate_size=shape.feed_forward,
        vocab_size=shape.vocabulary,
        head_dim=16,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
    )
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config), config


@pytest.mark.parametrize("tied", [False, True])
def test_a_config_is_read_as_it_is_built(tied):
    shape = Shape(64, 3, 128, 32, 96, 120, tied)
    model, config = built(shape)
    assert estimate.shape_of(config.to_dict()) == shape
    assert model.num_parameters() == shape.weights


def test_a_config_of_another_architecture_is_not_guessed():
    assert estimate.shape_of({"model_type": "gpt2", "n_embd": 768}) is None


# peft calls what transformers will rename
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("targets", ["default", "all-linear"])
def test_adapters_are_those_of_peft(targets):
    peft = pytest.importorskip("peft")
    shape = Shape(64, 3, 64, 32, 96, 120)
    modules = None if targets == "default" else targets
    config = peft.LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM")
    model = peft.get_peft_model(built(shape)[0], config)
    trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
    assert trained == shape.adapter(4, targets)


SMALL = Shape(128, 4, 128, 128, 512, 300)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("rank", [0, 8], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_of_training_are_those_that_torch_counts(rank, checkpointing):
    peft = pytest.importorskip("peft")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = microworld.model_config("qwen2", 128, 4, 4, 300)
    config._attn_implementation = "eager"  # of products of matrices, which are counted
    model = microworld.new_model(config, 0).train()
    if rank:
        lora = peft.LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora)
        model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(0, 300, (4, 16))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    attention = (4 if checkpointing else 3) * 4 * 4 * 128 * 16  # passes, layers, width, length
    counted = counter.get_total_flops() / ids.numel() - attention
    how = Training(rank=rank, targets="all-linear", checkpointing=checkpointing)
    # the output layer is in no block, so it is not computed again
    assert counted == pytest.approx(how.operations(SMALL), rel=0.08)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "qwen3"])
def test_activations_are_about_those_that_autograd_saves(architecture):
    torch = pytest.importorskip("torch")
    config = microworld.model_config(architecture, 256, 4, 8, 300)
    model, shape = microworld.new_model(config, 0).train(), estimate.shape_of(config.to_dict())

    def saved(rows):
        kept, alive = {}, []

        def keep(tensor):
            alive.append(tensor)  # or another would get its address
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.model(input_ids=torch.randint(0, 300, (rows, 32)))
        return sum(kept.values())

    # of more rows, since weights are saved as well
    expected = 8 * 32 * shape.layers * shape.saved * 4
    assert saved(16) - saved(8) == pytest.approx(expected, rel=0.3)


# --- memory and time, by hand -------------------------------------------------------------------


def memory(how=Training(), rows=0, length=0, **options):  # noqa: B008
    return estimate.training_gib(SEVEN, H100, how, rows, length, **options) - H100.base


def test_memory_of_training_by_hand():
    n, adapter = SEVEN.weights / GIB, SEVEN.adapter(16) / GIB
    assert memory() == pytest.approx(16 * n)
    assert memory(Training("bfloat16")) == pytest.approx(18 * n)
    assert memory(reference=True) == pytest.approx(20 * n)
    lora = Training("bfloat16", rank=16)
    assert memory(lora) == pytest.approx(2 * n + 16 * adapter)
    assert memory(lora, reference=True) == memory(lora)  # which is the model without its adapter
    eight = Training("bfloat16", processes=8)
    assert memory(eight) == pytest.approx(18 * n)
    assert memory(eight._replace(sharded="states")) == pytest.approx((4 + 12 / 8 + 2) * n)
    assert memory(eight._replace(sharded="all")) == pytest.approx(16 / 8 * n)


def test_activations_shrink_with_checkpointing_and_a_cache_takes_their_place():
    one, two = (memory(rows=rows, length=1000) - memory() for rows in (1, 2))
    assert two == pytest.approx(2 * one)
    less = memory(Training(checkpointing=True), rows=1, length=1000) - memory()
    # the input of each of 28 blocks, and all of one
    assert less == pytest.approx(1000 * (28 * 3584 + SEVEN.saved) * 4 / GIB)
    cache = 10**6 * 2 * 28 * 4 * 128 * 4 / GIB  # 28 layers, 4 heads of keys and of values
    assert memory(cached_tokens=10**6) - memory() == pytest.approx(cache)
    assert memory(cached_tokens=1, rows=1, length=1000) == memory(rows=1, length=1000)


DRAW = Draw(rows=1000, prompt=100, completion=500, longest=1000, at_once=100)


def test_memory_of_generation_by_hand():
    gib = estimate.generation_gib(SEVEN, DRAW, H100, "bfloat16") - H100.base
    logits, output = 100 * 152_064 * 4 * 2, 152_064 * 3584 * 4
    assert gib * GIB == pytest.approx(2 * SEVEN.weights + 100 * 1100 * 57_344 + logits + output)
    many = DRAW._replace(at_once=1000)  # vLLM works on 256, and takes another when one ends
    served = estimate.generation_gib(SEVEN, many, H100, "bfloat16", "vllm") - H100.base
    assert served * GIB == pytest.approx(
        2 * SEVEN.weights + 256 * 600 * 57_344 + logits * 256 / 100
    )


def seconds(draw, device=H100, engine="transformers", shape=SEVEN):
    return estimate.generation_seconds(shape, draw, device, "bfloat16", engine)


def test_time_of_generation_by_hand():
    # ten batches of 1000 steps, each with 28 launches and all weights read at 60 % of 3.35 TB/s
    step = 28e-3 + 2 * SEVEN.multiplied / (0.6 * 3.35e12)
    cache = 1000 * 500 * 57_344 * (100 + 250) / (0.6 * 3.35e12)
    operations = 1000 * 600 * 2 * SEVEN.multiplied / (0.3 * 989e12)
    assert seconds(DRAW) == pytest.approx(10 * 1000 * step + cache + operations)
    assert seconds(DRAW._replace(at_once=500)) < seconds(DRAW) / 3
    assert seconds(DRAW, DEVICES["h200"]) < seconds(DRAW) < seconds(DRAW, DEVICES["a100"])


def test_vllm_works_on_as_many_rows_as_fit():
    large = HUB["Qwen/Qwen2.5-32B-Instruct"]
    # 71.6 GiB less 61.0 of weights, 256 KiB a token and 600 tokens a row
    assert estimate.fitting_rows(large, DRAW, H100, "bfloat16") == 72
    assert estimate.fitting_rows(SEVEN, DRAW, H100, "bfloat16") == 256
    assert estimate.fitting_rows(large, DRAW, DEVICES["a100"], "bfloat16") == 0
    assert seconds(DRAW, DEVICES["a100"], "vllm", large) == math.inf
    assert seconds(DRAW._replace(at_once=1000), engine="vllm") < seconds(DRAW) / 3


def test_time_of_training_is_operations_over_what_is_reached():
    took = estimate.training_seconds(SEVEN, 1e6, 1, H100, Training("bfloat16"))
    assert took == pytest.approx(6 * SEVEN.multiplied * 1e6 / (0.3 * 989e12))
    assert estimate.reading_seconds(SEVEN, 1e6, H100, "bfloat16") == pytest.approx(took / 3)
    # a core moves activations as well, and starts each pass of each layer
    each = 6 * SMALL.multiplied / 150e9 + 4 * 128 * CORE.moved[0]
    took = estimate.training_seconds(SMALL, 1000, 10, CORE, Training())
    assert took == pytest.approx(1000 * each + 10 * 4 * CORE.launch_pass)


# --- what runs do -------------------------------------------------------------------------------


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Function that loads a profile of the book's notebooks: run -> notebook and what differs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "notebooks", "notebooks")
    Path("profiles").mkdir()

    def load(runs):
        entries = {
            name: {"notebook": notebook, "parameters": changes}
            for name, (notebook, changes) in runs.items()
        }
        content = {"profile": "real", "seed": 0, "runs": entries}
        Path("profiles", "real.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_profile("real")

    return load


BASE = ("base_model", {"model": NAME, "engine": "vllm", "batch_size": 1024})
TRAIN = {"base": "{tables}/base", "precision": "bfloat16", "max_completion_tokens": 1000}
TRAIN |= {"steps": 40, "batch": 256, "checkpoint_every": 20, "n_validation": 64, "group_size": 8}


def trained(profile, more=None, **changes):
    """The jobs of a training of the 7B model: the training and the answers."""
    options = {**TRAIN, "engine": "vllm", **changes, "more": {"micro_batch": 8, **(more or {})}}
    return run_jobs(profile({"base": BASE, "t": ("train", options)}), "t", H100)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("device", [CORE, H100], ids=["cpu", "h100"])
def test_every_run_of_every_profile_can_be_estimated(monkeypatch, name, device):
    monkeypatch.chdir(ROOT)
    loaded = load_profile(name)
    for run in loaded.runs.values():
        jobs = run_jobs(loaded, run.name, device)
        # of a partial profile a notebook may have been given no model
        assert bool(jobs) == run.trains or (run.lenient and run.trains), run.name
        for job in jobs:
            assert job.seconds >= 0, run.name
            assert job.gib >= 0, run.name


def test_a_run_is_followed_to_the_model_it_starts_from(profile):
    loaded = profile(
        {
            "small": ("pretrain", {"role": "tiny"}),
            "l1": ("train", {"base": "{tables}/small", "precision": "bfloat16"}),
            "grpo": ("decision_train", {"base": "{tables}/l1"}),
            "judged": ("confidence_models", {"model": "{tables}/l1", "base": "{tables}/small"}),
            "hub": ("base_model", {"model": f"{NAME}@a09a354"}),
        }
    )
    tiny = find_model(loaded, "small")
    assert (tiny.name, tiny.kind, tiny.suite) == ("microworld, tiny", "microworld", MICROWORLD)
    assert find_model(loaded, "grpo") == tiny  # in its own precision
    assert find_model(loaded, "judged") == replace(tiny, precision="bfloat16")
    assert find_model(loaded, "judged", "base") == tiny
    hub = find_model(loaded, "hub")
    assert (hub.name, hub.kind, hub.shape, hub.suite) == (f"{NAME}@a09a354", "hub", SEVEN, PAPERS)


def test_models_of_the_microworld_are_those_that_are_trained(profile):
    vocabulary = len(microworld.build_tokenizer())
    for role, preset in microworld.PRESETS.items():
        found = find_model(profile({"m": ("pretrain", {"role": role})}), "m")
        sizes = (preset.hidden_size, preset.n_layers, preset.n_heads, vocabulary)
        model = microworld.new_model(microworld.model_config("qwen2", *sizes), 0)
        assert found.weights == pytest.approx(model.num_parameters(), rel=0.01)


def test_a_folder_is_read(profile, tmp_path):
    config = microworld.model_config("qwen3", 32, 2, 1, 300)
    config.save_pretrained(tmp_path / "mine")
    loaded = profile({"base": ("base_model", {"model": "mine"})})
    found = find_model(loaded, "base")
    assert (found.kind, found.shape) == ("folder", Shape(32, 2, 32, 32, 128, 300))
    Path("mine", "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(PipelineError, match=r"config.json: not a model's configuration \(KeyErr"):
        find_model(loaded, "base")


def test_a_model_that_nobody_knows_is_not_left_out(profile):
    loaded = profile({"base": ("base_model", {"model": "nobody/Odd-1B", "n_questions": 10})})
    (job,) = run_jobs(loaded, "base", H100)
    assert job.model.shape is None
    assert math.isnan(job.seconds)
    assert math.isnan(job.gib)
    assert job.sampled_tokens == 6 * 10 * 2 * 1024 / 2


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ({"b": ("base_model", {"model": "no such folder"})}, "b: 'no such folder' is neither a"),
        ({"b": ("base_model", {"model": ""})}, "b: '' is neither a model's folder nor a name"),
        ({"b": ("base_model", {"model": NAME, "suite": "x"})}, "b: suite is 'x'; expected one of"),
        ({"b": ("base_model", {"model": NAME, "engine": "x"})}, "b: engine is 'x'; expected one"),
        ({"b": ("pretrain", {"role": "giant"})}, "b: role is 'giant'; expected one of micro, mini"),
        (
            {"a": BASE, "b": ("decision_train", {"base": "{tables}/a", "task": "x"})},
            "b: task is 'x'; expected one of choices, messages",
        ),
    ],
)
def test_what_cannot_be_is_named(profile, runs, complaint):
    with pytest.raises(PipelineError, match=complaint):
        run_jobs(profile(runs), "b", H100)


def test_a_parameter_that_is_missing_is_named(profile):
    loaded = profile({"base": BASE})
    fewer = {k: v for k, v in loaded.runs["base"].parameters.items() if k != "batch_size"}
    loaded = replace(loaded, runs={"base": replace(loaded.runs["base"], parameters=fewer)})
    with pytest.raises(PipelineError, match=r"base_model.ipynb has no parameter 'batch_size'"):
        run_jobs(loaded, "base", H100)


def test_tokens_are_those_of_all_questions_rollouts_and_decisions(profile):
    (job,) = run_jobs(
        profile({"base": ("base_model", {"model": NAME, "n_samples": 10})}), "base", H100
    )
    questions = 500 + 500 + 1319 + 675 + 448 + 1221  # paper A, section 4.1
    assert job.sampled_tokens == questions * 10 * 1024 / 2
    assert job.datasets == PAPERS.datasets
    few = {"model": NAME, "n_questions": 500}
    (job,) = run_jobs(profile({"base": ("base_model", few)}), "base", H100)
    assert job.sampled_tokens == (5 * 500 + 448) * 2 * 1024 / 2  # GPQA has no more
    (shown,) = run_jobs(profile({"base": ("base_model", few | {"n_examples": 4})}), "base", H100)
    assert shown.prompt_tokens == job.prompt_tokens + (5 * 500 + 448) * 2 * 4 * 120
    assert shown.sampled_tokens == job.sampled_tokens

    training, answers = trained(profile)
    validated = 3 * 64 * 8  # before the first step and at two checkpoints
    assert training.sampled_tokens == (40 * 256 + validated) * 500
    assert training.trained_tokens == 40 * 256 * (120 + 500)
    assert (training.what, training.datasets) == ("GRPO", ("deepmath",))
    assert (answers.what, answers.trained_tokens) == ("answers", 0)

    sft = {"base": "{tables}/b", "method": "sft", "precision": "bfloat16"}
    loaded = profile(
        {"b": ("decision_base", {"model": "Qwen/Qwen3-1.7B"}), "sft": ("decision_train", sft)}
    )
    sampled, greedy, direct = run_jobs(loaded, "b", H100)
    questions = 1221 + 500 + 1170 + 450
    assert sampled.sampled_tokens == greedy.sampled_tokens == questions * 128
    assert direct.sampled_tokens == questions * 2
    training, sampled, greedy, direct = run_jobs(loaded, "sft", H100)
    assert (training.what, training.datasets) == ("SFT", ("commonsenseqa",))
    assert sampled.sampled_tokens == 2 * greedy.sampled_tokens  # two of each are sampled
    assert direct.sampled_tokens == 300 * 2 * 2


def test_a_warm_up_and_other_orders_count_only_where_they_are_asked_for(profile):
    def jobs(**parameters):
        changed = {"model": "Qwen/Qwen3-1.7B", "n_questions": 10} | parameters
        return run_jobs(profile({"b": ("decision_base", changed)}), "b", H100)

    assert [job.what for job in jobs()] == ["decisions"] * 3
    assert [job.what for job in jobs(rotations=0)] == ["decisions"] * 3
    warm = {"warm_up_steps": 50, "n_warm_up": 40, "warm_up_tokens": 60, "batch": 4}
    first, *rest = jobs(**warm, n_held_out=6, rotations=4)
    assert (first.what, first.datasets) == ("warm-up", ("commonsenseqa", "openai_moderation"))
    assert first.sampled_tokens == 40 * 30
    prompt = (TEXTS["commonsenseqa"].prompt + TEXTS["openai_moderation"].prompt) / 2
    assert first.trained_tokens == 50 * 4 * (prompt + (30 + 6) / 2)
    assert first.seconds > 0
    held_out = [job for job in rest if job.what == "decisions before and after"]
    assert sum(job.sampled_tokens for job in held_out) == 2 * 6 * (2 * 128 + 2 * 128 + 2 * 2)
    (orders,) = (job for job in rest if job.what == "decisions in other orders")
    assert orders.prompt_tokens == pytest.approx(
        4 * 10 * sum(TEXTS[name].prompt + 4 for name in orders.datasets)
    )
    drawn, _, direct = jobs()
    assert jobs(test_decisions="options")[0].seconds == drawn.seconds
    assert jobs(test_decisions="options")[2].seconds < direct.seconds


def test_a_setting_that_is_empty_is_the_default():
    given = {"steps": 4, "batch": 2, "checkpoint_every": 4, "precision": "", "more": {}}
    assert training_settings({"rule": "warm_up"}, given).precision == "float32"
    given["more"] = {"precision": "bfloat16"}
    assert training_settings({"rule": "warm_up"}, given).precision == "bfloat16"


def test_a_warm_up_that_would_be_refused_is_told_before_anything_starts(profile):
    with pytest.raises(PipelineError, match="learning_rate is -1"):
        profile(
            {"b": ("decision_base", {"model": NAME, "warm_up_steps": 2, "learning_rate": -1.0})}
        )


def test_metadata_may_rename_settings_and_name_other_runs(profile):
    judged = {"model": "{tables}/small", "base": "{tables}/tiny", "n_train": 10, "n_answers": 3}
    loaded = profile(
        {
            "small": ("pretrain", {}),
            "tiny": ("pretrain", {"role": "tiny"}),
            "judged": ("confidence_models", {**judged, "router_steps": 5, "router_batch": 4}),
            "d": ("decision_train", {"base": "{tables}/small", "task": "messages"}),
            "rolls": ("calibrated_rollouts", {"runs": ["{tables}/small", "{tables}/d"]}),
        }
    )
    judge, router, routing = run_jobs(loaded, "judged", CORE)
    assert judge.sampled_tokens == pytest.approx(10 * 3 * TEXTS["chains"].completion)
    assert router.trained_tokens == pytest.approx(5 * 4 * (TEXTS["chains"].prompt + 6))
    assert [job.model.name for job in (judge, router, routing)] == [
        "microworld, small", "microworld, tiny", "microworld, tiny"
    ]  # fmt: skip
    both, one = run_jobs(loaded, "rolls", CORE)
    assert (both.datasets, one.datasets) == (("choices", "messages"), ("messages",))


def test_lengths_of_the_microworld_are_those_of_its_texts():
    tokenizer, decides = microworld.build_tokenizer(), decision_world.build_tokenizer()
    world, own = microworld.World(), decision_world.DecisionWorld()

    def mean(tokenizer, texts):
        return sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)

    for name in microworld.DATASETS:
        asked = [q.prompt for q in microworld.questions(world, name, "test", 100)]
        assert mean(tokenizer, asked) == pytest.approx(TEXTS[name].prompt, rel=0.1)
    for name in decision_world.DATASETS:
        asked = decision_world.questions(own, name, "test", 100)
        texts = [q.prompt(reasoning=True) for q in asked]
        assert mean(decides, texts) == pytest.approx(TEXTS[name].prompt, rel=0.1)
    for made, reader, name in (
        (microworld.corpus(world, 500, 1), tokenizer, "corpus"),
        (decision_world.corpus(own, 500, 1), decides, "decision_corpus"),
    ):
        rows = sum(mean(reader, [row[part] for row in made]) for part in ("prompt", "completion"))
        assert rows + 1 == pytest.approx(sum(TEXTS[name][:2]), rel=0.05)  # and the end


@pytest.mark.parametrize("name", PAPERS.datasets + PAPERS.decision_datasets)
def test_lengths_and_counts_of_the_papers_datasets_are_those_of_their_files(monkeypatch, name):
    if not any((SHARED / name).glob("*[lv]")):
        pytest.skip(f"{name} is not in shared/data")
    monkeypatch.setenv("COREA_DATA", str(SHARED))
    decides = name in PAPERS.decision_datasets
    asked = (PAPERS.decisions if decides else PAPERS.questions)(name, "test")
    assert len(asked) == TEXTS[name].tests
    prompts = [q.prompt(reasoning=True) if decides else q.prompt for q in asked]
    tokens = sum(map(len, prompts)) / len(prompts) / 4 + 30
    assert tokens == pytest.approx(TEXTS[name].prompt, rel=0.02)


def test_a_server_takes_nothing_here(profile):
    served = {"model": "gpt-4.1", "engine": "server"}
    (job,) = run_jobs(profile({"base": ("base_model", served)}), "base", H100)
    assert (job.what, job.seconds, job.gib, job.devices) == ("answers by a server", 0, 0, 0)
    assert job.sampled_tokens > 0


def test_what_a_training_asks_for_costs_time_and_memory(profile):
    own, colocated, served = (
        trained(profile, {"rollouts": name})[0]
        for name in ("corea", "vllm_colocate", "vllm_server")
    )
    assert own.seconds > 2 * colocated.seconds
    assert colocated.gib == pytest.approx(served.gib + 0.3 * 79.6)
    assert (own.devices, served.devices) == (1, 2)
    checkpointed, adapter = (
        trained(profile, {"rollouts": "vllm_server", **more})[0]
        for more in ({"gradient_checkpointing": True}, {"lora_rank": 16})
    )
    assert served.gib > checkpointed.gib + 50 > 79.6
    assert served.gib > adapter.gib + 100
    assert checkpointed.seconds > served.seconds > adapter.seconds
    for changes in ({"kl_coef": 0.001}, {"n_validation": 96}, {"checkpoint_every": 10}):
        assert trained(profile, **changes)[0].seconds > own.seconds, changes


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, (4, "none")),
        ({"distributed_type": "FSDP", "num_processes": 2}, (2, "all")),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 8,
             "deepspeed_config": {"zero_stage": 2}},
            (8, "states"),
        ),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 8,
             "deepspeed_config": {"zero_stage": 3}},
            (8, "all"),
        ),
    ],
)  # fmt: skip
def test_several_processes_share_a_training(profile, content, expected):
    one = trained(profile, {"rollouts": "vllm_server"})[0]
    Path("a.yaml").write_text(yaml.safe_dump(content))
    assert accelerated("a.yaml") == expected
    several = trained(profile, {"rollouts": "vllm_server"}, accelerate="a.yaml")[0]
    assert several.devices == expected[0] + 1
    assert several.seconds == pytest.approx(one.seconds)
    assert (several.gib < one.gib - 20) == (expected[1] != "none")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("num_processes: [", "not a configuration of accelerate"),
        ("distributed_type: NO", "not a configuration of accelerate"),
        ("num_processes: 0", "num_processes is 0; expected at least 1"),
        ("just words", "not a configuration of accelerate"),
        (None, r".*FileNotFoundError"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, text, complaint):
    path = tmp_path / "a.yaml"
    if text:
        path.write_text(text)
    with pytest.raises(PipelineError, match=f"a.yaml: {complaint}"):
        accelerated(str(path))


def test_paper_b_took_about_as_long_as_it_says(profile):
    """It says "roughly 500 hours" of A100s with 40 GB (appendix A).

    GRPO with 500 questions, 32 completions each, 256 a step, 20 epochs, LoRA of rank 16; two tasks,
    with the calibration-aware loss and without, three sizes of Qwen3.
    """
    Path("a.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    settings = {"steps": 1250, "batch": 256, "group_size": 32, "checkpoint_every": 125}
    settings |= {"precision": "bfloat16", "max_completion_tokens": 256, "n_questions": 0}
    settings |= {"n_validation": 100, "accelerate": "a.yaml"}
    settings |= {"more": {"lora_rank": 16, "micro_batch": 8}}
    runs = {}
    for size in ("1.7B", "4B", "8B"):
        base = f"base{size[0]}"
        runs[base] = ("decision_base", {"model": f"Qwen/Qwen3-{size}"})
        for task in ("choices", "messages"):
            for weight in (0.0, 0.001):
                changes = {"base": f"{{tables}}/{base}", "task": task, **settings}
                changes["calibration_weight"] = weight
                runs[f"{task}_{len(runs)}"] = ("decision_train", changes)
    loaded = profile(runs)
    jobs = [job for run in loaded.runs for job in run_jobs(loaded, run, DEVICES["a100"])]
    hours = sum(job.seconds for job in jobs) / 3600
    assert 500 / 3 < hours < 500 * 3
