import dataclasses
import json
import random

import httpx
import huggingface_hub
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402

from corea.confidence import CONFIDENCE_GRID  # noqa: E402
from corea.engines import transformers_engine as g  # noqa: E402
from corea.engines.base import Sampling  # noqa: E402
from corea.engines.loading import ModelError, load_model, load_tokenizer  # noqa: E402
from corea.engines.prompts import chat_prompt  # noqa: E402
from corea.engines.transformers_engine import (  # noqa: E402
    TransformersEngine,
    candidate_logprobs,
    expected_confidence,
    next_logprobs,
)

TEXTS = [rf"{a}+{b}: {a}+{b}={a + b}. \boxed{{{a + b}}} \confidence{{0.{a}}}" for a in range(10) for b in range(9)]  # fmt: skip
PROMPTS = ["3+4:", "1+1:", "3+4: 3+", "2+2: 2+2=4. So", "0"]
STATED = r" 3+4=7. \boxed{7} \confidence{0.3} "


def make_tokenizer(*, merging):
    """A byte-level tokenizer; a merging one has tokens across ``{0.`` and the like."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merging)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>"
    )


def make_model(vocab_size=300, kind="Qwen2", **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=128,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            tie_word_embeddings=False,
            **settings,
        )
        return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads only get in each other's way in models this small."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(merging=False)


@pytest.fixture(scope="module")
def model(tokenizer):
    """A model that has seen the texts often enough to end, and to state confidences."""
    model = make_model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rows = [tokenizer(text + "<end>")["input_ids"] for text in TEXTS]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 0, -100)
    for _ in range(60):
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    return TransformersEngine(model, tokenizer, batch_size=4)


def flat(rollouts):
    return [rollout for group in rollouts for rollout in group]


def ids_of(rollouts):
    return [rollout.token_ids.tolist() for rollout in flat(rollouts)]


@torch.no_grad()
def taught(model, prompt_ids, completion_ids):
    """Log-probabilities and last states by one pass over the whole text, nothing padded."""
    ids = torch.tensor([[*prompt_ids, *completion_ids]])
    output = model(input_ids=ids, output_hidden_states=True)
    predicting = slice(len(prompt_ids) - 1, -1)
    logprobs = output.logits[0, predicting].float().log_softmax(-1)
    chosen = logprobs[range(len(completion_ids)), torch.tensor(completion_ids)]
    return chosen.numpy(), output.hidden_states[-1][0, predicting].float().mean(0).numpy()


# --- sampling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", -0.1, "a number from 0"),
        ("temperature", float("nan"), "a number from 0"),
        ("temperature", float("inf"), "a number from 0"),
        ("temperature", True, "a number from 0"),
        ("temperature", "1", "a number from 0"),
        ("max_completion_tokens", 0, "a whole number from 1"),
        ("max_completion_tokens", 1.5, "a whole number from 1"),
        ("n_samples", 0, "a whole number from 1"),
        ("n_samples", True, "a whole number from 1"),
        ("seed", -1, "a whole number from 0"),
    ],
)
def test_sampling_that_cannot_be_is_refused(field, value, expected):
    with pytest.raises(ValueError, match=f"{field} is .*; expected {expected}"):
        Sampling(**{field: value})


def test_several_samples_at_temperature_0_are_refused():
    with pytest.raises(ValueError, match="n_samples is 2 at temperature 0"):
        Sampling(temperature=0, n_samples=2)


# --- rollouts ---------------------------------------------------------------------------------


def test_rollouts_come_in_the_order_of_the_prompts(engine, tokenizer):
    sampling = Sampling(1.0, 60, n_samples=3, seed=1)
    rollouts = engine.generate(PROMPTS, sampling)
    assert [len(group) for group in rollouts] == [3] * len(PROMPTS)
    for prompt, group in zip(PROMPTS, rollouts, strict=True):
        assert {rollout.prompt_tokens for rollout in group} == {len(tokenizer(prompt)["input_ids"])}
        alone = engine.generate([prompt], sampling)[0]
        assert [r.completion for r in alone] == [r.completion for r in group]


def test_a_rollout_says_what_was_sampled(engine, tokenizer):
    rollouts = flat(engine.generate(PROMPTS, Sampling(1.0, 25, n_samples=8)))
    assert {rollout.finished for rollout in rollouts} == {True, False}
    for rollout in rollouts:
        ids = rollout.token_ids.tolist()
        assert rollout.completion_tokens == len(ids) == len(rollout.logprobs) <= 25
        assert (1 in ids) == rollout.finished == (ids[-1] == 1)
        assert ids.count(1) <= 1
        assert rollout.finished or len(ids) == 25
        assert rollout.completion == tokenizer.decode(ids, skip_special_tokens=True)
        assert "<end>" not in rollout.completion
        assert rollout.pooled_state is rollout.expected_confidence is rollout.expected_mass is None


@pytest.mark.parametrize("kind", ["Qwen2", "Llama", "Qwen3", "Mistral"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_logprobs_and_states_are_those_of_teacher_forcing(tokenizer, model, kind, temperature):
    """At temperature 1, whatever the temperature; padded, cached, and with rows dropped."""
    # Mistral's window is shorter than the texts: the cache then keeps the last tokens only
    settings = {"sliding_window": 8} if kind == "Mistral" else {}
    model = model if kind == "Qwen2" else make_model(kind=kind, **settings)
    engine = TransformersEngine(model, tokenizer, batch_size=16)
    rollouts = engine.generate(PROMPTS, Sampling(temperature, 30, n_samples=3), pooled_states=True)
    assert len({len(ids) for ids in ids_of(rollouts)}) > 1 or kind != "Qwen2"
    for prompt, group in zip(PROMPTS, rollouts, strict=True):
        for rollout in group:
            logprobs, state = taught(model, tokenizer(prompt)["input_ids"], rollout.token_ids)
            np.testing.assert_allclose(rollout.logprobs, logprobs, atol=2e-4)
            np.testing.assert_allclose(rollout.pooled_state, state, atol=2e-4)
            assert rollout.logprobs.dtype == rollout.pooled_state.dtype == np.float32


def test_temperature_0_is_greedy_generate(engine, model, tokenizer):
    rollouts = engine.generate(PROMPTS, Sampling(0.0, 30))
    for prompt, (rollout,) in zip(PROMPTS, rollouts, strict=True):
        given = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**given, do_sample=False, max_new_tokens=30)
        assert rollout.token_ids.tolist() == out[0, given["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_with_the_models_probabilities(model, tokenizer, temperature):
    engine = TransformersEngine(model, tokenizer, batch_size=4096)
    drawn = ids_of(engine.generate(["3+4: 3"], Sampling(temperature, 1, n_samples=4096)))
    with torch.no_grad():
        logits = model(**tokenizer("3+4: 3", return_tensors="pt")).logits[0, -1]
    expected = (logits / temperature).softmax(-1).numpy()
    found = np.bincount(np.ravel(drawn), minlength=len(expected)) / 4096
    error = np.sqrt(expected * (1 - expected) / 4096)
    assert (np.abs(found - expected) <= 5 * error + 1e-3).all()


def test_a_token_without_probability_is_never_drawn():
    own = torch.tensor([0.0, 0.25, 0.75, 0.0]).log().expand(3, 4)
    uniform = torch.tensor([0.0, 0.2, 1 - 2**-53], dtype=torch.float64)
    for temperature in (0.1, 0.6, 1.0, 3.0):
        assert g._draw(own, temperature, uniform).tolist()[0::2] == [1, 2]
    assert g._draw(own, 1.0, uniform).tolist() == [1, 1, 2]


# --- seeds --------------------------------------------------------------------------------------


def test_the_same_call_gives_the_same_rollouts(engine):
    sampling = Sampling(1.0, 30, n_samples=4, seed=5)
    first, again = engine.generate(PROMPTS, sampling), engine.generate(PROMPTS, sampling)
    for a, b in zip(flat(first), flat(again), strict=True):
        assert a.completion == b.completion
        assert (a.logprobs == b.logprobs).all()
    other = engine.generate(PROMPTS, dataclasses.replace(sampling, seed=6))
    assert ids_of(first) != ids_of(other)


def test_random_state_of_others_is_neither_used_nor_changed(engine):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    sampling = Sampling(1.0, 10, n_samples=2)
    before = states()
    first = ids_of(engine.generate(PROMPTS, sampling))
    assert states() == before
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert ids_of(engine.generate(PROMPTS, sampling)) == first


def test_neither_order_nor_batch_size_decides_the_samples(engine):
    sampling = Sampling(1.0, 20, n_samples=8, seed=2)
    first = engine.generate(PROMPTS, sampling)
    turned = TransformersEngine(engine.model, engine.tokenizer, batch_size=40).generate(
        PROMPTS[::-1], sampling
    )[::-1]
    # rounding may change a token now and then
    same = [a == b for a, b in zip(ids_of(first), ids_of(turned), strict=True)]
    assert np.mean(same) > 0.9


def test_a_prompt_given_twice_gets_further_samples(engine):
    four = ids_of(engine.generate(["3+4:"], Sampling(1.0, 30, n_samples=4)))
    twice = ids_of(engine.generate(["3+4:", "3+4:"], Sampling(1.0, 30, n_samples=2)))
    assert twice == four
    assert four[0] != four[2]


# --- the model ----------------------------------------------------------------------------------


def test_every_module_is_left_in_the_mode_it_was_in(tokenizer):
    model = make_model(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    engine = TransformersEngine(model, tokenizer)
    sampling = Sampling(1.0, 8)
    first = engine.generate(PROMPTS, sampling)
    assert [module.training for module in model.modules()] == before
    model.eval()  # so dropout was off
    assert ids_of(engine.generate(PROMPTS, sampling)) == ids_of(first)
    assert not model.lm_head._forward_pre_hooks


def test_a_model_gone_wrong_is_named_and_left_as_it_was(tokenizer):
    model = make_model().train()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        TransformersEngine(model, tokenizer).generate(["1"], Sampling(1.0, 4))
    with pytest.raises(FloatingPointError, match="not numbers"):
        candidate_logprobs(model, tokenizer, ["1"], [""], ["2"])
    assert all(module.training for module in model.modules())
    assert not model.lm_head._forward_pre_hooks


def test_half_precision_works(tokenizer):
    engine = TransformersEngine(make_model().to(torch.bfloat16), tokenizer)
    (rollout,) = engine.generate(
        ["1+1:"], Sampling(1.0, 8), pooled_states=True, confidence_grid=CONFIDENCE_GRID
    )[0]
    assert rollout.logprobs.dtype == rollout.pooled_state.dtype == np.float32
    assert (rollout.logprobs < 0).all()


def test_all_end_tokens_of_the_model_end_a_completion(tokenizer):
    model = make_model()
    model.generation_config.eos_token_id = list(range(100, 300))
    rollouts = flat(TransformersEngine(model, tokenizer).generate(PROMPTS, Sampling(1.0, 40)))
    for rollout in rollouts:
        ends = (rollout.token_ids >= 100) | (rollout.token_ids == 1)
        assert rollout.finished == ends.any()
        assert not ends[:-1].any()
    assert any(rollout.finished for rollout in rollouts)


def test_a_models_own_sampling_settings_are_not_used(tokenizer):
    model, sampling = make_model(), Sampling(1.0, 20)
    before = ids_of(TransformersEngine(model, tokenizer).generate(PROMPTS, sampling))
    model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 2.0
    assert ids_of(TransformersEngine(model, tokenizer).generate(PROMPTS, sampling)) == before


def test_no_prompts_give_no_rollouts(engine):
    assert engine.generate([], Sampling()) == []


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("3+4:", TypeError, "prompts is one string, '3\\+4:'"),
        (["1", ""], ValueError, r"prompts\[1\] is ''; expected text with tokens"),
        (["1", "1=" * 40], ValueError, r"prompts\[1\] has 80 tokens; .* = 60 .* 128 positions"),
    ],
)
def test_prompts_that_cannot_be_completed_are_named(engine, prompts, error, message):
    with pytest.raises(error, match=message):
        engine.generate(prompts, Sampling(max_completion_tokens=60))


def test_settings_of_an_engine_are_checked(model, tokenizer):
    with pytest.raises(ValueError, match="batch_size is 0; expected a whole number from 1"):
        TransformersEngine(model, tokenizer, batch_size=0)
    with pytest.raises(ValueError, match="no chat template"):
        TransformersEngine(model, tokenizer, chat=True)


def test_a_chat_template_is_put_around_prompts(model):
    tokenizer = make_tokenizer(merging=False)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[bot]{% endif %}"
    )
    sampling, grid = Sampling(1.0, 20, n_samples=4), CONFIDENCE_GRID
    chat = TransformersEngine(model, tokenizer, chat=True)
    plain = TransformersEngine(model, tokenizer)
    a = flat(chat.generate(["3+4:"], sampling, confidence_grid=grid))
    b = flat(plain.generate(["[user]3+4:[bot]"], sampling, confidence_grid=grid))
    assert [r.completion for r in a] == [r.completion for r in b]
    assert [r.prompt_tokens for r in a] == [r.prompt_tokens for r in b]
    np.testing.assert_array_equal(
        [r.expected_confidence for r in a], [r.expected_confidence for r in b]
    )


def test_a_chat_prompt_has_one_begin_token_and_the_opening_behind_it():
    tokenizer = make_tokenizer(merging=False)
    assert chat_prompt(tokenizer, "3+4:", "<think>") == "3+4:<think>"  # no template
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[bot]{% endif %}"
    )
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    assert chat_prompt(tokenizer, "3+4:", "<think>") == "<begin>[user]3+4:[bot]<think>"
    begin = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", begin)]
    )
    text = chat_prompt(tokenizer, "3+4:", "<think>")
    assert text == "[user]3+4:[bot]<think>"
    assert tokenizer(text)["input_ids"].count(begin) == 1


def test_a_fingerprint_is_that_of_the_weights(tokenizer):
    model = make_model()
    before = TransformersEngine(model, tokenizer).fingerprint
    assert TransformersEngine(make_model(), tokenizer, batch_size=3).fingerprint == before
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    assert TransformersEngine(model, tokenizer).fingerprint != before


# --- expected confidence --------------------------------------------------------------------------


@torch.no_grad()
def score_one_by_one(model, tokenizer, prompt, opening, candidate):
    """log p(candidate | prompt, opening): one text, one pass, no cache."""
    start = tokenizer(prompt)["input_ids"] + tokenizer(opening)["input_ids"]
    whole = tokenizer(prompt)["input_ids"] + tokenizer(opening + candidate)["input_ids"]
    shared = next((i for i, (a, b) in enumerate(zip(start, whole)) if a != b), len(start))  # noqa: B905
    logprobs, _ = taught(model, whole[:shared], whole[shared:])
    return float(logprobs.sum())


OPENINGS = [
    "",
    " ",
    r" 3+4=7. \boxed{7} \confidence{",
    r"\confidence{",
    "\N{GRINNING FACE} {",
    "x\n{",
]


@pytest.mark.parametrize("kind", ["Qwen2", "Mistral"])
@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("candidates", [["0.1}", "0.25}", "1}"], ["7", " x", "0.1}{0.1}"]])
def test_candidates_have_the_probability_of_their_texts(merging, candidates, kind):
    tokenizer = make_tokenizer(merging=merging)
    model = make_model(len(tokenizer), kind)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(OPENINGS))]
    scores = candidate_logprobs(model, tokenizer, prompts, OPENINGS, candidates, batch_size=7)
    for i, (prompt, opening) in enumerate(zip(prompts, OPENINGS, strict=True)):
        # the ids that all candidates begin with are given, up to the end of the opening
        wholes = [tokenizer(opening + c)["input_ids"] for c in candidates]
        own = tokenizer(opening)["input_ids"]
        n = 0
        while n < len(own) and all(len(w) > n and w[n] == own[n] for w in wholes):
            n += 1
        for k, whole in enumerate(wholes):
            given = tokenizer(prompt)["input_ids"] + whole[:n]
            expected = taught(model, given, whole[n:])[0].sum()
            assert scores[i, k] == pytest.approx(float(expected), abs=1e-3)


def test_merges_across_the_end_of_an_opening_are_among_the_cases():
    tokenizer = make_tokenizer(merging=True)
    opening = tokenizer(r"\confidence{")["input_ids"]
    whole = tokenizer(r"\confidence{0.1}")["input_ids"]
    assert whole[: len(opening)] != opening


def test_expected_confidence_is_the_mean_over_what_might_have_been_stated(model, tokenizer):
    opening = STATED[: STATED.index("{0.3") + 1]
    each = [score_one_by_one(model, tokenizer, "3+4:", opening, c + "}") for c in CONFIDENCE_GRID]
    p = np.exp(each)
    expected, mass = expected_confidence(model, tokenizer, ["3+4:"], [STATED])
    assert mass[0] == pytest.approx(p.sum(), abs=1e-4)
    assert expected[0] == pytest.approx(p @ np.arange(11) / 10 / p.sum(), abs=1e-4)
    assert 0.5 < mass[0] < 1  # the model has learnt to state one


def test_without_a_statement_there_is_no_expected_confidence(model, tokenizer):
    completions = [
        "",
        r"\boxed{7}",
        STATED,
        r"\confidence{0.3} \boxed{7}",
        r"\boxed{7} \confidence{",
    ]
    expected, mass = expected_confidence(model, tokenizer, ["3+4:"] * 5, completions)
    assert (
        np.isnan(expected).tolist() == np.isnan(mass).tolist() == [True, True, False, True, False]
    )
    none, _ = expected_confidence(model, tokenizer, ["3+4:"], ["no"])
    assert np.isnan(none).all()
    assert expected_confidence(model, tokenizer, [], [])[0].shape == (0,)


def test_what_was_stated_does_not_change_what_was_expected(model, tokenizer):
    stated = [STATED.replace("0.3", text) for text in ("0.3", "1.0", "95", "nonsense")]
    expected, _ = expected_confidence(model, tokenizer, ["3+4:"] * 4, stated)
    np.testing.assert_allclose(expected, expected[0], atol=1e-6)


def test_another_grid_is_another_question(model, tokenizer):
    coarse, less = expected_confidence(model, tokenizer, ["3+4:"], [STATED], grid=["0.3", "0.4"])
    _, more = expected_confidence(model, tokenizer, ["3+4:"], [STATED])
    assert 0.3 <= coarse[0] <= 0.4
    assert less[0] < more[0]


def test_the_engine_gives_the_same_expected_confidence(engine):
    rollouts = engine.generate(
        PROMPTS, Sampling(0.6, 60, n_samples=4), confidence_grid=CONFIDENCE_GRID
    )
    expected, mass = expected_confidence(
        engine.model,
        engine.tokenizer,
        [prompt for prompt in PROMPTS for _ in range(4)],
        [rollout.completion for rollout in flat(rollouts)],
        batch_size=512,
    )
    assert np.isfinite(expected).sum() >= 10
    found = [(r.expected_confidence, r.expected_mass) for r in flat(rollouts)]
    np.testing.assert_allclose(found, np.stack([expected, mass], axis=1), atol=1e-4)


@pytest.mark.parametrize("text", ["", "95", "-1", "nan", "0.5 ", "0.1}{0.2", "+0.5"])
def test_a_grid_holds_numbers_only(model, tokenizer, text):
    with pytest.raises(ValueError, match="grid has .*; expected the text of a number"):
        expected_confidence(model, tokenizer, ["1"], [STATED], grid=["0.5", text])


def test_what_cannot_be_scored_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="2 prompts for 1 completions"):
        expected_confidence(model, tokenizer, ["1", "2"], [STATED])
    with pytest.raises(ValueError, match="1 prompts for 0 openings"):
        candidate_logprobs(model, tokenizer, ["1"], [], ["a"])
    for candidates in ([], ["a", ""], ["a", "a"]):
        with pytest.raises(ValueError, match="expected texts, all different"):
            candidate_logprobs(model, tokenizer, ["1"], [""], candidates)
    with pytest.raises(ValueError, match="all different"):
        expected_confidence(model, tokenizer, ["1"], [STATED], grid=["0.5", "0.5"])


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, model, tokenizer, capfd):
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    capfd.readouterr()
    return tmp_path / "m"


def test_a_model_is_read_as_it_was_written(folder, model, tokenizer, capfd):
    read, its_tokenizer = load_model(folder, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert not read.training
    assert its_tokenizer.padding_side == "left"
    for text in [*TEXTS, *PROMPTS]:
        assert its_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    sampling = Sampling(1.0, 20)
    engines = (TransformersEngine(read, its_tokenizer), TransformersEngine(model, tokenizer))
    assert engines[0].fingerprint == engines[1].fingerprint
    assert ids_of(engines[0].generate(PROMPTS, sampling)) == ids_of(engines[1].generate(PROMPTS, sampling))  # fmt: skip
    assert load_model(str(folder), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_a_tokenizer_is_not_replaced_by_that_of_the_architecture(tmp_path, model):
    tokenizer = make_tokenizer(merging=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, read = load_model(tmp_path)
    assert read(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


def test_a_tokenizer_file_alone_is_enough(folder, tokenizer):
    (folder / "tokenizer_config.json").unlink()
    _, read = load_model(folder)
    assert (read.eos_token, read.pad_token) == ("<end>", "<end>")
    assert read(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


@pytest.mark.parametrize("missing", ["", "tokenizer_config.json", "generation_config.json"])
def test_a_tokenizer_alone_is_read_as_with_its_model(folder, missing, capfd):
    for name in filter(None, ("tokenizer_config.json" if missing else "", missing)):
        (folder / name).unlink(missing_ok=True)
    alone, (_, beside) = load_tokenizer(folder), load_model(folder)
    assert capfd.readouterr() == ("", "")
    for name in ("eos_token", "pad_token", "padding_side"):
        assert getattr(alone, name) == getattr(beside, name)
    assert alone(TEXTS)["input_ids"] == beside(TEXTS)["input_ids"]


def test_progress_bars_are_as_they_were(folder):
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    for switch in (logging.disable_progress_bar, logging.enable_progress_bar):
        switch()
        shown = logging.is_progress_bar_enabled()
        load_model(folder)
        assert logging.is_progress_bar_enabled() == shown
    assert logging.get_verbosity() == verbosity


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def without_layer(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def grow(path, size):
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream:
        stream.truncate(size)  # of nothing, which takes no space


def with_header(path, size):
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])


def ends(path, ids):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ids}))


def with_width(path):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"intermediate_size": 48}))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.json", lambda p: p.unlink(), "m: no config.json; expected"),
        ("tokenizer.json", lambda p: p.unlink(), "m: no tokenizer.json; expected"),
        ("model.safetensors", lambda p: p.unlink(), "m: found none; expected weights as .*safe"),
        (
            "model.safetensors",
            lambda p: p.rename(p.with_name("pytorch_model.bin")),
            "m: found pytorch_model.bin; expected weights as .*safetensors",
        ),
        ("model.safetensors", truncate, "m: cannot be read .*Safetensor"),
        ("model.safetensors", without_layer, "m: the weights are not .*layers.1.mlp.up_proj"),
        ("config.json", with_width, "m: .*"),
        ("config.json", lambda p: p.write_text("{"), "m: cannot be read"),
        *(
            (name, lambda p, text=text: p.write_text(text), rf"m: cannot be read \({name}.*{told}")
            for name in ("config.json", "tokenizer_config.json", "generation_config.json")
            for text, told in (
                ("[" * 10**5, "RecursionError"),
                ('{"a":' * 10**5, "RecursionError"),
                ("[]", "is a list; expected an object"),
                ("null", "is a NoneType"),
            )
        ),
        *(
            (name, lambda p, n=size: grow(p, n), rf"m: {name} has {size:,} bytes; expected at most")
            for name, size in (
                ("config.json", 2**24 + 1),
                ("special_tokens_map.json", 2**30),
                ("tokenizer.json", 2**27 + 1),
                ("chat_template.jinja", 2**20 + 1),
                ("additional_chat_templates/a.jinja", 2**30),
                ("merges.txt", 2**30),
            )
        ),
        *(
            (
                "model.safetensors",
                lambda p, n=size: with_header(p, n),
                rf"m: cannot be read \(mod.*{told}",
            )
            for size, told in (
                (2**63, "9,223,372"),
                (2**25 + 1, "33,554,433"),
                (10**6, "1,000,000 bytes"),
            )
        ),
        *(
            (
                "generation_config.json",
                lambda p, i=i: ends(p, i),
                f"m: the end token {told} is not in",
            )
            for i, told in ((300, "300"), ([1, 10**6], "1000000"), (-1, "-1"))
        ),
        *(
            (
                "chat_template.jinja",
                lambda p, t=template: p.write_text(t),
                f"m: its chat template {told}",
            )
            for template, told in (
                (
                    "<u>What?<a>",
                    "cannot be used .of a user's message 'Is 12 .*makes '<u>What.<a>', without",
                ),
                ("{% for %}", "cannot be used .TemplateSyntaxError"),
                ("{{ messages[0].content + 1 }}", "cannot be used .TypeError"),
                ("{{ raise_exception('no users') }}", "cannot be used .TemplateError: no users"),
                (
                    "{{ messages[0].content * 10**10 }}",
                    "cannot be used .it takes more than 512 MiB",
                ),
            )
        ),
        ("tokenizer.json", lambda p: p.write_text("{}"), "m: cannot be read"),
    ],
)
def test_a_damaged_model_is_named(folder, file, damage, message, capfd):
    damage(folder / file)
    with pytest.raises(ModelError, match=message):
        load_model(folder)
    if "weights" not in message and file != "model.safetensors" and damage is not with_width:
        with pytest.raises(ModelError, match=message):
            load_tokenizer(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("path", ["/no/such/folder", "./models/mine", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(path):
    with pytest.raises(ModelError, match="no such folder"):
        load_model(path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "GatedRepoError",
            "a/b: not to be had without agreement. Ask for access .* `hf auth login`",
        ),
        ("RepositoryNotFoundError", "a/b: neither a folder nor a model on the hub"),
        (None, r"a/b: cannot be fetched \(ConnectionError: no route\). Connect to the network, or"),
    ],
)
def test_a_model_that_the_hub_does_not_give_says_what_to_do(monkeypatch, error, told):
    def refuse(name, **_):
        if error is None:
            raise ConnectionError("no route")
        answer = httpx.Response(403, request=httpx.Request("GET", "http://hub"))
        raise getattr(huggingface_hub.errors, error)("no", response=answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match=told):
        load_model("a/b@0123")


# --- the next token -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_next_logprobs_are_those_of_each_row_alone(batch_size):
    model, rows, tokens = make_model(), [[5, 6, 7], [8], [9, 10, 11, 12, 13]], [4, 70, 299]
    scores, likeliest = next_logprobs(model, rows, tokens, batch_size=batch_size)
    for row, score, first in zip(rows, scores, likeliest, strict=True):
        with torch.no_grad():
            own = model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(dim=-1)
        assert score == pytest.approx(own[tokens].numpy(), abs=1e-5)
        assert first == own.argmax()


def test_next_logprobs_name_an_empty_row():
    with pytest.raises(ValueError, match=r"rows\[1\] is empty"):
        next_logprobs(make_model(), [[5], []], [4])
