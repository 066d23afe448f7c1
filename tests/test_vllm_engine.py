"""VLLMEngine without vLLM: a model of transformers takes its place; `make test-vllm` has the real."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import fake_vllm  # noqa: E402
from tiny_models import (  # noqa: E402
    PROMPTS,
    REASONED,
    behind,
    flat,
    make_merging_tokenizer,
    make_model,
    make_tokenizer,
    taught,
    taught_model,
)

from corea.confidence import CONFIDENCE_GRID  # noqa: E402
from corea.engines.base import Sampling  # noqa: E402
from corea.engines.loading import ModelError, load_model  # noqa: E402
from corea.engines.opening import opened  # noqa: E402
from corea.engines.transformers_engine import TransformersEngine, candidate_logprobs, next_logprobs  # noqa: E402
from corea.engines.vllm_engine import VLLMEngine  # noqa: E402

TEMPLATE = "{% for said in messages %}<u>{{ said['content'] }}<a>{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained model, whose every token is about as likely as any."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = make_tokenizer(merging=True)
    tokenizer.chat_template = TEMPLATE
    make_model(len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(folder, device="cpu")


@pytest.fixture
def fake(loaded, monkeypatch):
    """The module that is imported as vllm."""
    return fake_vllm.install(monkeypatch, loaded[0])


@pytest.mark.parametrize("chat", [False, True])
def test_it_says_what_transformers_says(fake, folder, loaded, chat):
    asked = {"sampling": Sampling(0.0, 12), "confidence_grid": CONFIDENCE_GRID}
    theirs = flat(TransformersEngine(*loaded, chat=chat).generate(PROMPTS, **asked))
    ours = flat(VLLMEngine(folder, chat=chat).generate(PROMPTS, **asked))
    for own, other in zip(ours, theirs, strict=True):
        assert own.ids == other.ids
        assert own.completion == other.completion
        assert own.finished == other.finished
        assert own.prompt_tokens == other.prompt_tokens
        np.testing.assert_allclose(own.logprobs, other.logprobs, atol=1e-5)
        assert np.isnan(own.expected_confidence) == np.isnan(other.expected_confidence)


def test_candidates_are_scored_as_by_transformers(fake, folder, loaded):
    openings = ["", r" 3+4=7. \confidence{", r" \confidence{0"]
    candidates = ["0.5}", "0.55}", "1}", "}"]
    theirs = candidate_logprobs(*loaded, ["3+4:"] * 3, openings, candidates)
    ours = VLLMEngine(folder, chat=False)._candidate_logprobs(["3+4:"] * 3, openings, candidates)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_candidates_without_room_have_no_probability(fake, folder):
    engine = VLLMEngine(folder, chat=False, max_model_len=8)
    scores = engine._candidate_logprobs(["1", "3+4: 3+4=7. So it is"], ["", ""], ["0.5}", "1}"])
    assert np.isfinite(scores[0]).all()
    assert np.isnan(scores[1]).all()


def test_each_sample_has_a_seed_of_its_own(fake, folder):
    engine = VLLMEngine(folder, chat=False)
    sampling = Sampling(1.0, 6, 3, 7)
    prompts = ["3+4:", "1+1:", "3+4:"]
    everything = engine.generate(prompts, sampling)
    assert len({tuple(rollout.ids) for rollout in flat(everything)}) == 9
    wanted = [[2], [], [0, 1]]
    some = engine.generate(prompts, sampling, samples=wanted)
    for numbers, group, whole in zip(wanted, some, everything, strict=True):
        assert [rollout.ids for rollout in group] == [whole[number].ids for number in numbers]
    assert engine.generate(prompts, sampling, samples=[[], [], []]) == [[], [], []]
    assert engine.generate([], sampling) == []


def test_all_tokens_behind_a_text_are_the_likeliest(monkeypatch, tmp_path):
    tokenizer = make_merging_tokenizer()
    model = taught_model(tokenizer, REASONED)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    fake_vllm.install(monkeypatch, model)
    engine, sampling = VLLMEngine(tmp_path, chat=False), Sampling(1.2, 30, 24, 3)
    (free,) = engine.generate(["1?"], sampling)
    (group,) = engine.generate(["1?"], replace(sampling, greedy_after="</think>"))
    closings, changed = set(), 0
    for rollout, drawn in zip(group, free, strict=True):
        closing, likeliest = behind(model, tokenizer, "1?", rollout, "</think>")
        assert all(likeliest)
        assert rollout.completion_tokens == 30 or rollout.finished
        np.testing.assert_allclose(
            rollout.logprobs, taught(model, tokenizer("1?")["input_ids"], rollout.ids)[0], atol=1e-4
        )
        closings.add(closing)
        changed += rollout.ids != drawn.ids
        own, other = (r.completion.partition("</think>")[0] for r in (rollout, drawn))
        assert own == other
    assert closings >= {">", ">\n", ">\n\n"}
    assert changed > 2


def test_tokens_behind_rows_are_as_likely_as_transformers_says(fake, folder, loaded):
    engine, tokens = VLLMEngine(folder, max_model_len=8), [9, 4, 300 - 1]
    rows = [[5, 6, 7], [8], [7, 6, 5, 4, 3, 2, 1]]
    scores, likeliest = engine.next_logprobs(rows, tokens)
    expected, first = next_logprobs(loaded[0], rows, tokens)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert likeliest.tolist() == first.tolist()
    assert [a.shape for a in engine.next_logprobs([], tokens)] == [(0, 3), (0,)]
    with pytest.raises(ValueError, match=r"rows\[1\] is empty"):
        engine.next_logprobs([[5], []], tokens)
    with pytest.raises(ValueError, match=r"has 8 tokens; .* the model's 8 positions"):
        engine.next_logprobs([[5] * 8], tokens)


def test_a_likeliest_token_that_ends_it_ends_it(fake, folder, loaded, monkeypatch):
    engine, sampling = VLLMEngine(folder, chat=False), Sampling(1.0, 20, 8, 3)
    greedy = next_logprobs(loaded[0], [engine.tokenizer("3+4:")["input_ids"]], [0])[1][0]
    monkeypatch.setattr(VLLMEngine, "_ends", [int(greedy)])
    (group,) = engine.generate(["3+4:"], replace(sampling, greedy_after=":"))
    assert all(rollout.finished and rollout.ids == [greedy] for rollout in group)
    (group,) = engine.generate(
        ["3+4:"], replace(sampling, greedy_after=":", max_completion_tokens=1)
    )
    assert all(rollout.finished and rollout.ids == [greedy] for rollout in group)


def test_vllm_is_started_once_as_it_is_told_and_ended(fake, folder):
    engine = VLLMEngine(
        folder, sequences=8, memory=0.5, max_model_len=64, more={"tensor_parallel_size": 2}
    )
    assert not fake.started  # before anything is asked
    assert engine.chat  # the tokenizer has a template
    other = replace(engine, chat=False)
    for _ in range(2):
        engine.generate(["1"], Sampling(0.0, 2))
        other.generate(["1"], Sampling(0.0, 2))
    [(path, arguments)] = fake.started
    assert path == str(folder)
    assert arguments == {
        "dtype": "float32",  # as the weights are stored
        "gpu_memory_utilization": 0.5,
        "max_model_len": 64,
        "max_num_seqs": 8,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "load_format": "safetensors",
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": True,
        "tensor_parallel_size": 2,
    }  # fmt: skip
    other.close()
    engine.close()
    assert fake.ended == 1
    engine.generate(["1"], Sampling(0.0, 2))
    assert len(fake.started) == 2


def test_both_kinds_of_end_tokens_are_told(fake, folder, tmp_path):
    assert VLLMEngine(folder, chat=False)._ends == [1]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((folder / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(
        json.dumps(settings | {"eos_token_id": [5, 7]})
    )
    assert VLLMEngine(tmp_path, chat=False)._ends == [1, 5, 7]
    (tmp_path / "generation_config.json").unlink()
    assert VLLMEngine(tmp_path, chat=False)._ends == [1]


def test_what_it_cannot_give_is_refused(fake, folder):
    engine = VLLMEngine(folder, chat=False)
    sampling = Sampling(0.0, 4)
    for complaint, prompts, asked, named in (
        ("pooled_states is not to be had from vLLM", ["1"], sampling, {"pooled_states": True}),
        (r"temperature is 2\.5; vLLM takes 0, or 0\.01 to 2\.0", ["1"], Sampling(2.5, 4), {}),
        (r"temperature is 0\.001; vLLM takes 0", ["1"], Sampling(0.001, 4), {}),
        (r"prompts\[1\] is ''", ["1", ""], sampling, {}),
        (r"prompts\[0\] has 1 tokens; .* than the model's 128 pos", ["1"], Sampling(0.0, 128), {}),
        ("grid has 'x'", ["1"], sampling, {"confidence_grid": ["x"]}),
    ):
        with pytest.raises(ValueError, match=complaint):
            engine.generate(prompts, asked, **named)


def test_probabilities_that_are_none_are_named(fake, folder, loaded, monkeypatch):
    bias = torch.full((300,), float("nan"))
    forward = loaded[0].lm_head.forward
    monkeypatch.setattr(loaded[0].lm_head, "forward", lambda states: forward(states) + bias)
    with pytest.raises(FloatingPointError, match="not finite"):
        VLLMEngine(folder, chat=False).generate(["1"], Sampling(0.0, 2))


def test_wrong_settings_are_named(fake, folder, tmp_path):
    for settings, error, complaint in (
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"sequences": True}, ValueError, "sequences is True"),
        ({"max_model_len": 1}, ValueError, "max_model_len is 1"),
        ({"memory": 0.0}, ValueError, r"memory is 0\.0; expected a share"),
        ({"model": "no/such/folder"}, ModelError, "no/such/folder: no such folder"),
        ({"model": tmp_path}, ModelError, r"no config\.json"),
    ):
        with pytest.raises(error, match=complaint):
            VLLMEngine(**{"model": folder, "chat": True} | settings)
    without = make_tokenizer(merging=True)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.jinja"))
    without.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        VLLMEngine(tmp_path, chat=True)
    assert VLLMEngine(tmp_path).chat is False


def test_a_vllm_that_does_not_start_says_why(fake, folder):
    with pytest.raises(
        ModelError, match=r"tiny: vLLM does not start \(ValueError: no such dtype\)"
    ):
        VLLMEngine(folder, chat=False, dtype="float4").generate(["1"], Sampling(0.0, 2))


def test_without_vllm_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(ModelError, match="vLLM is not installed.*environment.yml.*make test-vllm"),
        opened("vllm", folder),
    ):
        pass


def test_the_fingerprint_is_of_what_decides_answers(fake, folder, tmp_path):
    engine = VLLMEngine(folder, chat=False)
    assert (
        engine.fingerprint
        == VLLMEngine(str(folder), chat=False, memory=0.2, sequences=3).fingerprint
    )
    same = VLLMEngine(folder, chat=False, more={"tensor_parallel_size": 2, "enforce_eager": True})
    assert engine.fingerprint == same.fingerprint
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    assert VLLMEngine(tmp_path, chat=False).fingerprint == engine.fingerprint
    others = [
        replace(engine, chat=True),
        replace(engine, dtype="bfloat16"),
        VLLMEngine(folder, chat=False, more={"quantization": "fp8"}),
    ]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    weights.write_bytes(bytes(content))
    others.append(VLLMEngine(tmp_path, chat=False))
    assert len({other.fingerprint for other in [engine, *others]}) == 5
