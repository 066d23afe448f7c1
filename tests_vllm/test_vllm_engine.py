"""VLLMEngine beside TransformersEngine on the same tiny float32 model."""

from collections import Counter
from dataclasses import replace

import numpy as np
import psutil
import pytest
from tiny import LONG, PROMPTS

from corea.confidence import CONFIDENCE_GRID
from corea.engines.base import Sampling
from corea.engines.transformers_engine import next_logprobs

pytestmark = pytest.mark.timeout(900)


def flat(rollouts):
    return [rollout for group in rollouts for rollout in group]


def require_same(ours, theirs):
    """The same tokens, and all that is said of them."""
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        assert own.ids == other.ids
        assert own.completion == other.completion
        assert own.finished == other.finished
        assert own.prompt_tokens == other.prompt_tokens
        np.testing.assert_allclose(own.logprobs, other.logprobs, atol=1e-3)


@pytest.mark.parametrize("as_chat", [False, True])
@pytest.mark.parametrize("length", [1, 5, 60])
def test_greedy_output_is_that_of_transformers(plain, chat, vllm, as_chat, length):
    sampling = Sampling(0.0, length)
    theirs = flat((chat if as_chat else plain).generate(PROMPTS, sampling))
    ours = flat(replace(vllm, chat=as_chat).generate(PROMPTS, sampling))
    require_same(ours, theirs)
    assert length < 60 or any(rollout.finished for rollout in ours)


def test_both_end_tokens_end_it_and_are_among_the_tokens(chat, vllm):
    questions = [f"{a}+{b}:" for a in range(10) for b in range(9)]
    theirs = flat(chat.generate(questions, Sampling(0.0, 60)))
    ours = flat(replace(vllm, chat=True).generate(questions, Sampling(0.0, 60)))
    require_same(ours, theirs)
    assert {rollout.ids[-1] for rollout in ours if rollout.finished} == {1, 2}


def test_expected_confidence_is_that_of_transformers(plain, chat, vllm):
    for theirs, ours in ((plain, vllm), (chat, replace(vllm, chat=True))):
        made = [
            flat(engine.generate(PROMPTS, Sampling(0.0, 60), confidence_grid=CONFIDENCE_GRID))
            for engine in (theirs, ours)
        ]
        expected, mass = (
            np.array([[getattr(rollout, name) for rollout in rollouts] for rollouts in made])
            for name in ("expected_confidence", "expected_mass")
        )
        assert np.isfinite(expected).any()
        np.testing.assert_allclose(expected[0], expected[1], atol=1e-4)
        np.testing.assert_allclose(mass[0], mass[1], atol=1e-4)


def test_a_prompt_without_room_is_named(vllm):
    room = 256 - len(vllm.tokenizer("3+4:")["input_ids"])
    [[rollout]] = vllm.generate(["3+4:"], Sampling(0.0, room), confidence_grid=["0.5", "0.6"])
    assert rollout.expected_confidence is not None
    with pytest.raises(ValueError, match=r"prompts\[0\] has \d+ tokens; .* the model's 256 positi"):
        vllm.generate(["3+4:"], Sampling(0.0, room + 1))


def test_texts_of_the_grid_that_do_not_fit_have_no_probability(vllm):
    scores = vllm._candidate_logprobs(["3+4:"] * 2, ["?" * 300, ""], ["0.5}", "0.6}"])
    assert np.isnan(scores[0]).all()
    assert (scores[1] < 0).all()


SAMPLED = Sampling(1.0, 40, 3, 5)


def test_sampling_is_repeatable_and_each_sample_its_own(vllm):
    first = flat(vllm.generate(PROMPTS, SAMPLED))
    require_same(first, flat(vllm.generate(PROMPTS, SAMPLED)))
    assert len({tuple(rollout.ids) for rollout in first}) > 10
    other = flat(vllm.generate(PROMPTS, replace(SAMPLED, seed=6)))
    assert [rollout.ids for rollout in first] != [rollout.ids for rollout in other]


def test_many_prompts_at_once_are_sampled_by_their_seeds(vllm):
    """Prompts computed in parts would end vLLM here: "CPU Generator does not use offset"."""
    assert sum(map(len, vllm.tokenizer(LONG[:16])["input_ids"])) > 2 * 256
    sampling = Sampling(1.0, 12, 1, 5)
    first = flat(vllm.generate(LONG, sampling))
    require_same(first, flat(vllm.generate(LONG, sampling)))
    assert len({tuple(rollout.ids) for rollout in first}) > 50
    require_same(first[:3], flat(vllm.generate(LONG[:3], sampling)))


def test_any_samples_can_be_asked_for_alone(vllm):
    everything = vllm.generate([*PROMPTS, PROMPTS[0]], SAMPLED)
    wanted = [[2], [], [0, 1], [], [1], [0]]
    some = vllm.generate([*PROMPTS, PROMPTS[0]], SAMPLED, samples=wanted)
    assert [len(group) for group in some] == [1, 0, 2, 0, 1, 1]
    for numbers, group, whole in zip(wanted, some, everything, strict=True):
        require_same(group, [whole[number] for number in numbers])
    assert everything[0][0].ids != everything[-1][0].ids  # the same prompt again: further samples


def test_log_probabilities_are_those_of_temperature_1(vllm):
    cold = flat(vllm.generate(["3+4:"], Sampling(0.05, 20, 4, 0)))
    greedy = flat(vllm.generate(["3+4:"], Sampling(0.0, 20)))[0]
    for rollout in cold:
        same = np.cumprod(np.equal(rollout.ids[:15], greedy.ids[:15])).astype(bool)
        np.testing.assert_allclose(
            rollout.logprobs[:15][same], greedy.logprobs[:15][same], atol=1e-4
        )


def test_all_tokens_behind_a_text_are_the_likeliest(vllm, plain):
    sampling = Sampling(1.5, 40, 8, 1)
    free = vllm.generate(PROMPTS, sampling)
    common = Counter(vllm.tokenizer.decode([t]) for rollout in flat(free) for t in rollout.ids[:-1])
    text = common.most_common(1)[0][0]
    rollouts = vllm.generate(PROMPTS, replace(sampling, greedy_after=text))
    places = changed = 0
    for prompt, group, drawn in zip(PROMPTS, rollouts, free, strict=True):
        before = vllm.tokenizer(prompt)["input_ids"]
        for rollout, without in zip(group, drawn, strict=True):
            assert rollout.completion_tokens == 40 or rollout.finished
            ids = rollout.ids
            reach = [n for n in range(len(ids)) if text in vllm.tokenizer.decode(ids[:n])]
            rows = [before + ids[:n] for n in reach]
            likeliest = next_logprobs(plain.model, rows, [0])[1] if rows else []
            assert [ids[n] for n in reach] == list(likeliest)
            places += len(rows)
            changed += ids != without.ids
            if without.ids == ids:
                np.testing.assert_array_equal(without.logprobs, rollout.logprobs)
    assert places > 20
    assert changed > 5


def test_tokens_behind_rows_are_as_likely_as_transformers_says(vllm, plain):
    rows = [vllm.tokenizer(prompt)["input_ids"] for prompt in PROMPTS] * 2
    tokens = [7, 3, *{row[0] for row in rows}]
    scores, likeliest = vllm.next_logprobs(rows, tokens)
    expected, first = plain.next_logprobs(rows, tokens)
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert likeliest.tolist() == first.tolist()


def test_closing_ends_every_process_and_asking_starts_them_again(vllm):
    [[before]] = vllm.generate(["3+4:"], Sampling(0.0, 30))
    running = [p for p in psutil.Process().children(recursive=True) if "VLLM" in p.name()]
    assert running  # the core, and its worker
    vllm.close()
    assert not any(process.is_running() for process in running)
    vllm.close()  # nothing to do
    [[again]] = vllm.generate(["3+4:"], Sampling(0.0, 30))
    require_same([again], [before])
