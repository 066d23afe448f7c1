"""What models take, beside what torch counts and the hub and the papers say."""

import math
from dataclasses import replace

import pytest

from corea.tasks import microworld
from corea.workflow import compute
from corea.workflow.compute import DEVICES, GIB, HUB, Draw, Shape, Training

H100, CORE = DEVICES["h100"], DEVICES["cpu"]
SEVEN = HUB["Qwen/Qwen2.5-7B-Instruct"]
COUNTED = {  # parameters in the safetensors, as the hub shows them
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen3-1.7B": 1_720_574_976,  # without the copy of its tied output layer
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
}


# --- weights ----------------------------------------------------------------------------------


def test_weights_of_hub_models_are_those_that_the_hub_counts():
    assert {name: shape.weights for name, shape in HUB.items()} == COUNTED


def config_of(shape):
    import transformers

    kind = "Qwen2" if shape.biased else "Qwen3" if shape.normed else "Llama"
    return getattr(transformers, f"{kind}Config")(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
    )


def built(shape):
    """The model of transformers, without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(shape))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["biased", "normed", None])
def test_a_config_is_read_as_it_is_built(kind, tied):
    pytest.importorskip("transformers")
    shape = Shape(64, 3, 4, 2, 96, 120, 32, tied=tied, **({kind: True} if kind else {}))
    assert compute.shape_of(config_of(shape).to_dict()) == shape
    assert built(shape).num_parameters() == shape.weights


def test_a_config_of_another_architecture_is_not_guessed():
    assert compute.shape_of({"model_type": "gpt2", "n_embd": 768}) is None
    with pytest.raises(KeyError, match="num_hidden_layers"):
        compute.shape_of({"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8})


# peft calls what transformers will rename
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("targets", ["default", "all-linear"])
def test_adapters_are_those_of_peft(targets):
    peft = pytest.importorskip("peft")
    shape = Shape(64, 3, 4, 2, 96, 120, 16)
    modules = None if targets == "default" else targets
    config = peft.LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM")
    model = peft.get_peft_model(built(shape), config)
    trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
    assert trained == shape.adapter(4, targets)


# --- operations and activations, as torch counts them -------------------------------------------

SMALL = Shape(128, 4, 4, 4, 512, 300, 32, biased=True)
ROWS, LENGTH = 4, 16


def counted(how):
    """Operations of a forward and a backward pass for each token, less those of attention."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = microworld.model_config("qwen2", 128, 4, 4, 300)
    config._attn_implementation = "eager"  # of products of matrices, which are counted
    model = microworld.new_model(config, 0).train()
    if how.lora_rank:
        import peft

        model = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=how.lora_rank, target_modules=how.lora_targets, task_type="CAUSAL_LM"
            ),
        )
        model.enable_input_require_grads()
    if how.checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.randint(0, 300, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    passes = 4 if how.checkpointing else 3  # of attention: one more forward
    attention = passes * 4 * SMALL.n_layers * SMALL.hidden_size * LENGTH
    return counter.get_total_flops() / (ROWS * LENGTH) - attention


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "how",
    [
        Training(),
        Training(checkpointing=True),
        Training(lora_rank=8, lora_targets="all-linear"),
        Training(lora_rank=8, lora_targets="all-linear", checkpointing=True),
    ],
    ids=["all weights", "checkpointing", "LoRA", "LoRA, checkpointing"],
)
def test_operations_of_training_are_those_that_torch_counts(how):
    pytest.importorskip("peft")
    # the output layer is in no block, so it is not computed again
    assert counted(how) == pytest.approx(how.operations(SMALL), rel=0.08)


def saved_bytes(model, rows, precision):
    """Of tensors that a forward pass keeps for the backward pass."""
    import torch

    saved, alive = {}, []

    def keep(tensor):
        alive.append(tensor)  # or another would get its address
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        model.model(input_ids=torch.randint(0, 300, (rows, 32)))
    return sum(saved.values())


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [("qwen2", "float32"), ("llama", "float32"), ("qwen3", "float32"), ("qwen2", "bfloat16")],
)
def test_activations_are_about_those_that_autograd_saves(architecture, precision):
    pytest.importorskip("torch")
    config = microworld.model_config(architecture, 256, 4, 8, 300)
    model = microworld.new_model(config, 0).train()
    shape = compute.shape_of(config.to_dict())
    # of more rows, since weights are saved as well
    more = saved_bytes(model, 16, precision) - saved_bytes(model, 8, precision)
    expected = 8 * 32 * shape.n_layers * shape.saved * compute.BYTES[precision]
    assert more == pytest.approx(expected, rel=0.3)


# --- memory -----------------------------------------------------------------------------------


def memory(how=Training(), **options):  # noqa: B008
    options = {"rows": 0, "length": 0} | options
    return compute.training_gib(SEVEN, H100, how, **options) - H100.base


def test_memory_of_training_by_hand():
    n = SEVEN.weights / GIB
    assert memory() == pytest.approx(16 * n)
    assert memory(Training("bfloat16")) == pytest.approx(18 * n)
    assert memory(reference=True) == pytest.approx(20 * n)
    lora = Training("bfloat16", lora_rank=16)
    adapter = SEVEN.adapter(16) / GIB
    assert memory(lora) == pytest.approx(2 * n + 16 * adapter)
    assert memory(lora, reference=True) == memory(lora)  # which is the model without its adapter
    eight = Training("bfloat16", processes=8)
    assert memory(eight) == pytest.approx(18 * n)
    assert memory(replace(eight, sharded="states")) == pytest.approx((4 + 12 / 8 + 2) * n)
    assert memory(replace(eight, sharded="all")) == pytest.approx(16 / 8 * n)


def test_activations_grow_with_tokens_and_shrink_with_checkpointing():
    one, two = (memory(rows=rows, length=1000) - memory() for rows in (1, 2))
    assert two == pytest.approx(2 * one)
    less = memory(Training(checkpointing=True), rows=1, length=1000) - memory()
    # the input of each of 28 blocks, and all of one
    expected = 1000 * (28 * 3584 + SEVEN.saved) * 4 / GIB
    assert less == pytest.approx(expected)
    assert less < one / 10


def test_rollouts_in_training_hold_a_cache_instead_of_activations():
    tokens = 1024 * 2000
    cache = tokens * 2 * 28 * 4 * 128 * 4 / GIB  # 28 layers, 4 heads of keys and of values
    assert memory(cached_tokens=tokens) - memory() == pytest.approx(cache)
    assert memory(cached_tokens=1, rows=1, length=1000) == memory(rows=1, length=1000)


def test_memory_of_generation_by_hand():
    draw = Draw(rows=1000, prompt=100, completion=500, longest=1000, at_once=64)
    gib = compute.generation_gib(SEVEN, draw, H100, "bfloat16") - H100.base
    logits = 64 * 152_064 * 4 * 2
    assert gib * GIB == pytest.approx(2 * SEVEN.weights + 64 * 1100 * 57_344 + logits)
    few = replace(draw, rows=2)
    assert compute.generation_gib(SEVEN, few, H100, "bfloat16") < gib
    many = replace(draw, at_once=1000)  # vLLM works on 256, and takes another when one ends
    served = compute.generation_gib(SEVEN, many, H100, "bfloat16", "vllm") - H100.base
    logits *= 256 / 64
    assert served * GIB == pytest.approx(2 * SEVEN.weights + 256 * 600 * 57_344 + logits)
    large = HUB["Qwen/Qwen2.5-32B-Instruct"]
    short = compute.generation_gib(large, many, DEVICES["a100"], "bfloat16", "vllm")
    assert short > 2 * large.weights / GIB > DEVICES["a100"].memory


# --- time -------------------------------------------------------------------------------------


def seconds(draw, device=H100, engine="transformers", shape=SEVEN):
    return compute.generation_seconds(shape, draw, device, "bfloat16", engine)


DRAW = Draw(rows=1000, prompt=100, completion=500, longest=1000, at_once=100)


def test_generation_by_hand():
    # ten batches of 1000 steps, each with 28 launches and all weights read at 60 % of 3.35 TB/s
    step = 28e-3 + 2 * SEVEN.multiplied / (0.6 * 3.35e12)
    cache = 1000 * 500 * 57_344 * (100 + 250) / (0.6 * 3.35e12)
    operations = 1000 * 600 * 2 * SEVEN.multiplied / (0.3 * 989e12)
    assert seconds(DRAW) == pytest.approx(10 * 1000 * step + cache + operations)


def test_a_larger_batch_a_faster_memory_and_vllm_take_less_time():
    assert seconds(replace(DRAW, at_once=500)) < seconds(DRAW) / 3
    assert seconds(DRAW, DEVICES["h200"]) < seconds(DRAW) < seconds(DRAW, DEVICES["a100"])
    assert seconds(replace(DRAW, at_once=1000), engine="vllm") < seconds(DRAW) / 3


def test_vllm_works_on_as_many_rows_as_fit():
    large = HUB["Qwen/Qwen2.5-32B-Instruct"]
    # 71.6 GiB less 61.0 of weights, 256 KiB a token and 600 tokens a row
    assert compute.fitting_rows(large, DRAW, H100, "bfloat16") == 72
    assert compute.fitting_rows(SEVEN, DRAW, H100, "bfloat16") == 256
    assert compute.fitting_rows(large, DRAW, DEVICES["a100"], "bfloat16") == 0
    assert seconds(DRAW, DEVICES["a100"], "vllm", large) == math.inf


def test_training_time_is_operations_over_what_is_reached():
    took = compute.training_seconds(SEVEN, 1e6, H100, Training("bfloat16"))
    assert took == pytest.approx(6 * SEVEN.multiplied * 1e6 / (0.3 * 989e12))
    assert compute.training_seconds(SEVEN, 1e6, H100, Training("float32")) > 10 * took
    read = compute.reading_seconds(SEVEN, 1e6, H100, "bfloat16")
    assert read == pytest.approx(took / 3)


def test_a_core_takes_what_the_committed_measurements_took():
    """A step of the benchmark: 256 completions of the small model, whose parts were measured."""
    from corea.book import speed

    small = Shape(64, 3, 2, 2, 256, 542, 32, biased=True)
    parts = speed.step_parts(speed.measured("parts"))
    took = dict(zip(parts["part"], parts["milliseconds"] / 1000, strict=True))
    sampled = speed.measured("rollouts").query("way == 'in training'")["tokens"].median()
    draw = Draw(256, 8.4, sampled / 256, 64, 256)
    drawn = compute.generation_seconds(small, draw, CORE, "float32")
    assert drawn == pytest.approx(took["rollouts"], rel=1e-6)
    trained = compute.training_seconds(small, 256 * 8.4 + sampled, CORE, Training())
    assert trained == pytest.approx(sum(took.values()) - took["rollouts"], rel=1e-6)
