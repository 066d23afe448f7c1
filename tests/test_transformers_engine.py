import dataclasses
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import (  # noqa: E402
    PROMPTS,
    REASONED,
    behind,
    flat,
    ids_of,
    make_merging_tokenizer,
    make_model,
    make_tokenizer,
    taught,
    taught_model,
)
from tokenizers.processors import TemplateProcessing  # noqa: E402

from corea.confidence import CONFIDENCE_GRID  # noqa: E402
from corea.engines import transformers_engine as g  # noqa: E402
from corea.engines.base import Sampling  # noqa: E402
from corea.engines.prompts import chat_prompt  # noqa: E402
from corea.engines.transformers_engine import (  # noqa: E402
    TransformersEngine,
    candidate_logprobs,
    expected_confidence,
    next_logprobs,
)

STATED = r" 3+4=7. \boxed{7} \confidence{0.3} "


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
    return taught_model(tokenizer)


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    return TransformersEngine(model, tokenizer, batch_size=4)


# --- sampling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        *(
            ({"temperature": value}, "a number from 0")
            for value in (-0.1, np.nan, np.inf, True, "1")
        ),
        *(({"max_completion_tokens": n}, "a whole number from 1") for n in (0, 1.5)),
        *(({"n_samples": n}, "a whole number from 1") for n in (0, True)),
        ({"seed": -1}, "a whole number from 0"),
        ({"n_samples": 2, "temperature": 0}, "1"),
    ],
)
def test_sampling_that_cannot_be_is_refused(settings, expected):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is .*; expected {expected}$"):
        Sampling(**settings)


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


# --- the likeliest tokens behind a text -----------------------------------------------------------


def test_all_tokens_behind_a_text_are_the_likeliest_whatever_is_merged_with_it():
    tokenizer = make_merging_tokenizer()
    model = taught_model(tokenizer, REASONED)
    sampling = Sampling(1.2, 30, 32, 3)
    made = {
        after: TransformersEngine(model, tokenizer, batch_size=24).generate(
            ["1?", "2?<think>"], dataclasses.replace(sampling, greedy_after=after)
        )
        for after in ("</think>", "")
    }
    found = {
        after: [
            behind(model, tokenizer, prompt, rollout, "</think>")
            for prompt, group in zip(["1?", "2?<think>"], groups, strict=True)
            for rollout in group
        ]
        for after, groups in made.items()
    }
    assert {closing for closing, _ in found["</think>"]} >= {">", ">\n", ">\n\n"}
    assert all(all(likeliest) for _, likeliest in found["</think>"])
    assert not all(all(likeliest) for _, likeliest in found[""])
    for own, free in zip(flat(made["</think>"]), flat(made[""]), strict=True):
        reasoning = free.completion.partition("</think>")[0]
        assert own.completion.partition("</think>")[0] == reasoning  # that is drawn as ever


def test_a_text_at_the_end_of_a_prompt_counts_and_one_before_does_not(model, tokenizer):
    engine = TransformersEngine(model, tokenizer, batch_size=64)
    sampling = Sampling(2.0, 4, 16, 1, greedy_after="+4:")
    drawn = engine.generate(["3+4:", "3+4: \n", "3+4:3"], sampling)
    assert [len({tuple(r.ids) for r in group}) == 1 for group in drawn] == [True, True, False]


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


def test_tokens_do_not_tie_in_half_precision(tokenizer):
    """Logits above 16 have steps of 1/8 in bfloat16; of float32 they have none to speak of."""
    model = make_model().to(torch.bfloat16)
    states, weight = [], model.lm_head.weight
    with torch.no_grad():
        weight.mul_(30)  # logits of some tens
        model.lm_head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        rough = model(torch.tensor([[5, 7, 9]])).logits[0, -1]
        exact = torch.nn.functional.linear(states[0][0, -1].float(), weight.float())
    assert rough.dtype == torch.bfloat16
    assert rough.abs().max() > 16
    tokens = list(range(len(exact)))
    found, _ = next_logprobs(model, [[5, 7, 9]], tokens)
    assert np.allclose(found[0], exact.log_softmax(-1).numpy(), atol=1e-4)
    distinct = len(np.unique(found))
    assert distinct > len(tokens) * 0.95 > rough.unique().numel()
    scored = candidate_logprobs(model, tokenizer, ["1"], [""], ["2", "3"])[0]
    ids = tokenizer(["1", "2", "3"], add_special_tokens=False)["input_ids"]
    (two,), (three,) = ids[1:]
    again, _ = next_logprobs(model, [tokenizer("1")["input_ids"]], [two, three])
    assert np.allclose(scored, again[0], atol=1e-5)
    assert "forward" not in vars(model.lm_head)


def test_rollouts_under_autocast_have_exact_logits_too(tokenizer):
    """As in training, where accelerate casts the forward pass."""
    model = make_model()
    plain = TransformersEngine(model, tokenizer).generate(["1+1:"], Sampling(0.0, 4))[0][0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = TransformersEngine(model, tokenizer).generate(["1+1:"], Sampling(0.0, 4))[0][0]
    assert np.allclose(plain.logprobs, cast.logprobs, atol=0.05)
    bits = np.frombuffer(cast.logprobs.tobytes(), np.uint32)
    assert (bits & 0xFFFF).any()  # of bfloat16 they would be 0


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
    if merging:  # across the end of an opening
        opening, whole = tokenizer([r"\confidence{", r"\confidence{0.1}"])["input_ids"]
        assert whole[: len(opening)] != opening
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
