"""Adapters: trained, merged and evaluated on a chat model in a folder, as if it came from a hub."""

import copy
import shutil

import numpy as np
import pandas as pd
import pytest

trl = pytest.importorskip("trl", reason="training needs the extra `train`")

import torch  # noqa: E402
import train_in_process as small  # noqa: E402
from decide_in_process import TRAINING, VALIDATION  # noqa: E402
from peft import PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import PrinterCallback  # noqa: E402
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP  # noqa: E402

from corea.decisions.settings import DecisionSettings  # noqa: E402
from corea.decisions.trainer import train_decisions  # noqa: E402
from corea.engines import loading  # noqa: E402
from corea.engines.base import Sampling  # noqa: E402
from corea.engines.evaluation import evaluate, read_samples  # noqa: E402
from corea.engines.loading import load_model, load_tokenizer  # noqa: E402
from corea.engines.prompts import chat_prompt  # noqa: E402
from corea.engines.transformers_engine import TransformersEngine, open_model  # noqa: E402
from corea.rlcc.settings import GRPOSettings  # noqa: E402
from corea.rlcc.trainer import train_grpo  # noqa: E402
from corea.tasks import microworld  # noqa: E402
from corea.training import grpo, loop, sft  # noqa: E402
from corea.training.checkpoints import keep_model, merged, weights_of  # noqa: E402
from corea.training.grpo import complete, without_rounding  # noqa: E402
from corea.training.quiet import quiet  # noqa: E402
from corea.training.settings import SFTSettings, TrainingError  # noqa: E402
from corea.training.sft import train_sft  # noqa: E402

# peft calls what transformers will rename
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
LORA = {"lora_rank": 4, "lora_targets": "all-linear", "lora_dropout": 0.0, "learning_rate": 1e-2}
SHORT = small.GRPO | LORA | {"steps": 4, "kl_coef": 0.0}


def sampled_rows(tokenizer):
    return [
        row | {"prompt": chat_prompt(tokenizer, row["prompt"])} for row in small.rows_to_learn()
    ]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folder of a model with a chat template: config, safetensors, tokenizer."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = microworld.build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    settings = SFTSettings(**small.SFT | {"steps": 48, "checkpoint_every": 48})
    model = small.new_model(tokenizer)
    train_sft(model, tokenizer, sampled_rows(tokenizer), settings, folder / "made")
    return (folder / "made" / "model").rename(folder / "tiny-chat")


def weights(model):
    return load_file(model / "model.safetensors")


def logits(model, tokenizer, text="Please say 3"):
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """Folder to which the adapter is copied that a run is about to merge."""

    def copied(step, *arguments):
        shutil.copytree(weights_of(arguments[-1], step), tmp_path / "adapter")
        keep_model(step, *arguments)

    monkeypatch.setattr(grpo, "keep_model", copied)
    monkeypatch.setattr(sft, "keep_model", copied)
    return tmp_path / "adapter"


def check_merged(hub, model, adapter):
    """That a model is the base with the adapter, and that all else is as it was."""
    before, after = weights(hub), weights(model)
    assert before.keys() == after.keys()
    scale = LORA_ALPHA / LORA["lora_rank"]
    pairs = load_file(adapter / "adapter_model.safetensors")
    for name, old in before.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in pairs:
            product = pairs.pop(f"{stem}.lora_B.weight") @ pairs.pop(f"{stem}.lora_A.weight")
            assert product.abs().max() > 1e-4
            torch.testing.assert_close(after[name], old + scale * product)
        else:
            assert torch.equal(after[name], old), name
    assert not pairs
    base, tokenizer = load_model(hub, device="cpu")
    beside = PeftModel.from_pretrained(base, adapter)
    whole, _ = load_model(model, device="cpu")
    torch.testing.assert_close(
        logits(whole, tokenizer).log_softmax(-1), logits(beside, tokenizer).log_softmax(-1),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


LORA_ALPHA = GRPOSettings().lora_alpha


# --- train, merge, evaluate -----------------------------------------------------------------------


def test_reinforced_adapters_are_merged_and_evaluated(hub, adapter, tmp_path):
    settings = GRPOSettings(**SHORT | {"lora_dropout": 0.1, "kl_coef": 0.01})
    run = tmp_path / "run"
    tokenizer = load_tokenizer(hub)
    train_grpo(hub, tokenizer, small.TRAINING, small.VALIDATION, settings, run)
    check_merged(hub, run / "model", adapter)
    assert {path.name for path in run.iterdir()} == {
        *("model", "dynamics.csv", "validation.csv", "selection.csv", "alarms.csv"),
    }
    dynamics = pd.read_csv(run / "dynamics.csv")
    assert dynamics["kl"].iloc[0] == 0  # of the model without its adapters, from which it starts
    assert (dynamics["kl"].iloc[1:] > 0).all()
    assert "masked_share" not in dynamics  # that of vLLM
    engine = open_model(run / "model")
    assert engine.chat
    sampling = Sampling(0.6, 12, 2, 0)
    evaluate(
        engine, small.VALIDATION, system="SLM", sampling=sampling, directory=tmp_path / "answers"
    )
    assert len(read_samples(tmp_path / "answers")) == 2 * len(small.VALIDATION)


def test_supervised_adapters_are_merged(hub, adapter, tmp_path):
    settings = SFTSettings(**small.SFT | LORA | {"steps": 12})
    tokenizer = load_tokenizer(hub)
    run = tmp_path / "run"
    train_sft(hub, tokenizer, sampled_rows(tokenizer), settings, run)
    check_merged(hub, run / "model", adapter)
    assert {path.name for path in run.iterdir()} == {"model", "dynamics.csv"}
    model, read = load_model(run / "model", device="cpu")
    assert read.chat_template == TEMPLATE
    assert model.dtype == torch.float32


def test_a_folder_is_trained_as_the_model_in_it_is(hub, tmp_path):
    settings = SFTSettings(**small.SFT | {"steps": 6})
    found = []
    for name in ("folder", "memory"):
        model, tokenizer = load_model(hub, device="cpu")
        start = model if name == "memory" else hub
        train_sft(start, tokenizer, sampled_rows(tokenizer), settings, tmp_path / name)
        found.append(weights(tmp_path / name / "model"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_adapters_of_decisions_are_merged(decider, adapter, tmp_path):
    settings = DecisionSettings(
        **LORA, group_size=4, steps=2, batch=16, micro_batch=8, max_completion_tokens=24,
        checkpoint_every=2, calibration_weight=0.1, mask_decision=True, cosine_every=1,
    )  # fmt: skip
    tokenizer = load_tokenizer(decider)
    train_decisions(decider, tokenizer, TRAINING, VALIDATION, settings, tmp_path / "run")
    check_merged(decider, tmp_path / "run" / "model", adapter)
    dynamics = pd.read_csv(tmp_path / "run" / "dynamics.csv")
    assert dynamics[["calibration_loss", "gradient_cosine"]].notna().all(axis=None)


def test_without_more_the_adapters_are_those_of_the_paper(hub):
    model, _ = load_model(hub, device="cpu")
    config = loop.adapter(GRPOSettings(lora_rank=16))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.1)
    names = {
        name for name, w in get_peft_model(model, config).named_parameters() if w.requires_grad
    }
    assert {name.split(".")[-4] for name in names} == {"q_proj", "v_proj"}


def test_weights_in_memory_get_no_adapters(hub, tmp_path):
    model, tokenizer = load_model(hub, device="cpu")
    settings = SFTSettings(**small.SFT | LORA)
    with pytest.raises(ValueError, match="lora_rank is 4 for a model in memory; expected its fold"):
        train_sft(model, tokenizer, sampled_rows(tokenizer), settings, tmp_path)


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4])
def test_a_model_trained_in_16_bits_is_stored_in_them(hub, adapter, tmp_path, rank):
    settings = SFTSettings(
        **small.SFT | LORA | {"steps": 6, "precision": "bfloat16", "lora_rank": rank}
    )
    tokenizer = load_tokenizer(hub)
    train_sft(hub, tokenizer, sampled_rows(tokenizer), settings, tmp_path / "run")
    found = weights(tmp_path / "run" / "model")
    if rank:
        exact = merged(hub, adapter).state_dict()
    else:
        exact = weights(adapter)
        before = weights(hub)
        assert any(not torch.equal(exact[name], before[name]) for name in before)
    assert {exact[name].dtype for name in found} == {torch.float32}
    assert all(torch.equal(found[name], exact[name].bfloat16()) for name in found)
    assert load_model(tmp_path / "run" / "model", device="cpu")[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("gpu", "fast", "expected"),
    [
        (False, False, "float32"),
        (False, True, "bfloat16"),
        (True, False, "bfloat16"),
        (True, True, "bfloat16"),
    ],
)
def test_frozen_weights_are_loaded_in_16_bits_where_those_are_fast(
    monkeypatch, gpu, fast, expected
):
    bits = {"precision": "bfloat16"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(loop, "fast_bfloat16", lambda: fast)
    assert loop.load_dtype(GRPOSettings(lora_rank=4, **bits)) == expected
    for whole in (GRPOSettings(lora_rank=4), SFTSettings(steps=200, **bits)):
        assert loop.load_dtype(whole) == "float32"


@pytest.mark.parametrize(("fast", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_what_is_fast_here_is_what_a_model_is_trained_and_kept_in(
    hub, tmp_path, monkeypatch, fast, dtype
):
    monkeypatch.setattr(loading, "fast_bfloat16", lambda: fast)
    monkeypatch.setattr(loop, "fast_bfloat16", lambda: fast)
    settings = SFTSettings(**small.SFT | LORA | {"steps": 6, "precision": "auto"})
    tokenizer = load_tokenizer(hub)
    train_sft(hub, tokenizer, sampled_rows(tokenizer), settings, tmp_path / "run")
    assert {weight.dtype for weight in weights(tmp_path / "run" / "model").values()} == {dtype}


def test_adapters_are_trained_beside_weights_in_16_bits(hub, tmp_path, monkeypatch):
    """What happens on a GPU, on a CPU: rollouts, loss and the reference in mixed types."""
    monkeypatch.setattr(loop, "load_dtype", lambda _: "bfloat16")
    settings = GRPOSettings(**SHORT | {"precision": "bfloat16", "kl_coef": 0.01, "steps": 2})
    tokenizer = load_tokenizer(hub)
    seen = []
    keep = grpo.finish

    def look(trainer, *arguments):
        seen.extend((w.requires_grad, w.dtype) for w in trainer.model.parameters())
        keep(trainer, *arguments)

    monkeypatch.setattr(grpo, "finish", look)
    train_grpo(hub, tokenizer, small.TRAINING, small.VALIDATION, settings, tmp_path / "run")
    assert set(seen) == {(True, torch.float32), (False, torch.bfloat16)}
    assert pd.read_csv(tmp_path / "run" / "dynamics.csv")["loss"].notna().all()


@pytest.mark.parametrize("rank", [0, 4])
def test_gradient_checkpointing_takes_the_same_step_by_computing_twice(
    hub, tmp_path, monkeypatch, rank
):
    forward, counted, losses = Qwen2MLP.forward, [], []

    def count(self, *arguments, **named):
        counted[-1] += self.training
        return forward(self, *arguments, **named)

    monkeypatch.setattr(Qwen2MLP, "forward", count)
    tokenizer = load_tokenizer(hub)
    for again in (False, True):
        counted.append(0)
        settings = SFTSettings(
            **small.SFT | LORA | {"steps": 6, "lora_rank": rank, "gradient_checkpointing": again}
        )
        run = tmp_path / str(again)
        train_sft(hub, tokenizer, sampled_rows(tokenizer), settings, run)
        losses.append(pd.read_csv(run / "dynamics.csv")["loss"])
    np.testing.assert_array_equal(*losses)
    assert counted[1] == 2 * counted[0] > 0


# --- the trainer with adapters --------------------------------------------------------------------


@pytest.fixture
def trainer(hub, tmp_path, monkeypatch):
    """Function that makes the trainer that train_grpo would run, its adapters not zero."""

    def build(**settings):
        class Built(Exception):
            pass

        def stop(made, directory, **_):
            raise Built(made)

        monkeypatch.setattr(loop, "run", stop)
        chosen = GRPOSettings(**SHORT | settings)
        tokenizer = load_tokenizer(hub)
        with pytest.raises(Built) as caught:
            train_grpo(hub, tokenizer, small.TRAINING, small.VALIDATION, chosen, tmp_path / "run")
        (made,) = caught.value.args
        made.remove_callback(PrinterCallback)
        made.model.train()
        return disturbed(made)

    return build


def disturbed(made):
    """The trainer with adapters that change what the model says."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in made.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    return made


def test_rollouts_are_those_of_the_adapted_model(hub, trainer):
    made = trainer(temperature=1e-4)
    prompts = [chat_prompt(made.processing_class, q.prompt) for q in small.TRAINING[:6]]
    found = complete(prompts, made)["completion_ids"]
    whole = copy.deepcopy(made.model).merge_and_unload()
    base, tokenizer = load_model(hub, device="cpu")
    sampling = Sampling(1e-4, SHORT["max_completion_tokens"])
    expected, without = (
        [group[0].ids for group in TransformersEngine(model, tokenizer).generate(prompts, sampling)]
        for model in (whole, base)
    )
    assert found == expected != without


def test_the_reference_is_the_model_without_its_adapters(hub, trainer):
    made = trainer(kl_coef=0.1)
    assert made.ref_model is None
    rows = [row for row in made.train_dataset.to_list()[:2] for _ in range(4)]
    with quiet():
        batch = made._generate_and_score_completions(rows)
    base, _ = load_model(hub, device="cpu")
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["prompt_ids"].shape[1]
    with torch.no_grad():
        logps = base(input_ids=ids, attention_mask=mask).logits[:, width - 1 : -1].log_softmax(-1)
    expected = logps.gather(2, batch["completion_ids"][..., None])[..., 0]
    kept = batch["completion_mask"].bool()
    torch.testing.assert_close(
        batch["ref_per_token_logps"][kept], expected[kept], rtol=1e-4, atol=1e-5
    )


# --- vLLM -----------------------------------------------------------------------------------------


def config(monkeypatch, hub, directory, **settings):
    """Arguments that reach TRL's trainer, by way of the whole of train_grpo."""

    class Reached(Exception):
        pass

    def stop(*_, args, **__):
        raise Reached(args)

    monkeypatch.setattr("corea.rlcc.trainer.RLCCTrainer", stop)
    chosen = GRPOSettings(**small.GRPO | settings)
    with pytest.raises(Reached) as caught:
        train_grpo(hub, load_tokenizer(hub), small.TRAINING, small.VALIDATION, chosen, directory)
    (args,) = caught.value.args
    return args


def test_without_more_trl_is_told_what_it_was(hub, tmp_path, monkeypatch):
    args = config(monkeypatch, hub, tmp_path)
    assert not args.use_vllm
    assert not args.gradient_checkpointing
    assert args.model_init_kwargs == {"dtype": "float32"}
    assert not args.bf16


def test_vllm_in_the_process_gets_its_share_and_room_for_the_longest(hub, tmp_path, monkeypatch):
    args = config(monkeypatch, hub, tmp_path, rollouts="vllm_colocate", vllm_memory_share=0.4)
    assert args.use_vllm
    assert args.vllm_mode == "colocate"
    assert args.vllm_gpu_memory_utilization == 0.4
    tokenizer = load_tokenizer(hub)
    asked = [*small.TRAINING, *small.VALIDATION]
    longest = max(len(tokenizer(chat_prompt(tokenizer, q.prompt))["input_ids"]) for q in asked)
    assert args.vllm_max_model_length == longest + small.GRPO["max_completion_tokens"]
    assert args.vllm_importance_sampling_correction
    assert args.vllm_importance_sampling_mode == "sequence_mask"
    assert args.vllm_importance_sampling_clip_max == 3


def test_the_vllm_server_is_that_of_the_environment(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("COREA_VLLM_SERVER", "http://node7:8000")
    args = config(monkeypatch, hub, tmp_path, rollouts="vllm_server")
    assert (args.use_vllm, args.vllm_mode) == (True, "server")
    assert args.vllm_server_base_url == "http://node7:8000"


@pytest.mark.parametrize("address", [None, "", "node7:8000"])
def test_a_vllm_server_that_is_not_named_is_asked_for(hub, tmp_path, monkeypatch, address):
    monkeypatch.delenv("COREA_VLLM_SERVER", raising=False)
    if address is not None:
        monkeypatch.setenv("COREA_VLLM_SERVER", address)
    settings = GRPOSettings(**small.GRPO, rollouts="vllm_server")
    tokenizer = load_tokenizer(hub)
    with pytest.raises(TrainingError, match=r"COREA_VLLM_SERVER is '.*'; expected the address"):
        train_grpo(hub, tokenizer, small.TRAINING, small.VALIDATION, settings, tmp_path / "run")


def test_what_vllm_is_too_far_off_for_is_logged(trainer, monkeypatch):
    made = trainer()
    ratios = torch.tensor([[1.2], [0.0], [0.7], [0.0]])
    monkeypatch.setattr(
        trl.GRPOTrainer,
        "_generate_and_score_completions",
        lambda *_: {"importance_sampling_ratio": ratios},
    )
    made._generate_and_score_completions([])
    assert made._metrics["train"]["masked_share"] == [0.5]
    made.model.eval()
    made._generate_and_score_completions([])
    assert made._metrics["train"]["masked_share"] == [0.5]


def test_giving_merged_weights_to_vllm_leaves_no_rounding(hub):
    model, _ = load_model(hub, device="cpu", dtype="bfloat16")
    adapted = get_peft_model(
        model, loop.adapter(GRPOSettings(lora_rank=4, lora_targets="all-linear"))
    )

    class Made:
        model = adapted

    disturbed(Made)
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    given = []

    def sync():  # as TRL does it
        adapted.merge_adapter()
        given.append(adapted.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.clone())
        adapted.unmerge_adapter()

    def changed():
        return [n for n, w in adapted.named_parameters() if not torch.equal(w, before[n])]

    without_rounding(sync, adapted)()
    assert changed() == []
    name = "base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"
    assert not torch.equal(given[0], before[name])
    sync()
    assert changed()  # without it


# --- processes ------------------------------------------------------------------------------------

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
ZERO3 = ZERO2 | {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
}


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        (FSDP, GRPOSettings(), "rollouts 'corea', .* all weights in every process, and FSDP"),
        (ZERO3, GRPOSettings(), "rollouts 'corea', .* all weights in every process, and ZeRO-3"),
        (ZERO3, DecisionSettings(rollouts="trl"), "decisions need all weights .* ZeRO-3 shards"),
        (ZERO3, GRPOSettings(rollouts="trl"), None),
        (FSDP, SFTSettings(steps=200), None),
        (ZERO2, GRPOSettings(), None),
        (ZERO2, DecisionSettings(), None),
        (
            ZERO3 | {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "false"},
            SFTSettings(steps=200),
            "ZERO3_SAVE_16BIT_MODEL is 'false'; expected 'true'",
        ),
        (
            FSDP | {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
            SFTSettings(steps=200),
            "FSDP_STATE_DICT_TYPE is 'SHARDED_STATE_DICT'; expected 'FULL_STATE_DICT'",
        ),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            SFTSettings(steps=200),
            "mixed_precision 'bf16' and precision is 'float32'",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, GRPOSettings(precision="bfloat16"), None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, GRPOSettings(precision="bfloat16"), None),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, GRPOSettings(precision="bfloat16"), "'fp16'"),
    ],
)
def test_processes_that_cannot_do_it_are_refused(monkeypatch, environment, settings, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if message is None:
        loop.check_processes(settings)
    else:
        with pytest.raises(TrainingError, match=message):
            loop.check_processes(settings)


def test_that_is_said_before_a_model_is_loaded(monkeypatch, hub, tmp_path):
    for name, value in ZERO3.items():
        monkeypatch.setenv(name, value)
    tokenizer = load_tokenizer(hub)
    nowhere = tmp_path / "no model"
    with pytest.raises(TrainingError, match="ZeRO-3 shards them"):
        train_grpo(nowhere, tokenizer, small.TRAINING, small.VALIDATION, GRPOSettings(), tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(TrainingError, match="mixed_precision 'fp16'"):
        train_sft(nowhere, tokenizer, [], SFTSettings(steps=200), tmp_path)
