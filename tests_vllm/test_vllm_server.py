"""ServerEngine against `vllm serve`, beside TransformersEngine on the same tiny float32 model."""

import numpy as np
import pytest
from tiny import LONG, PROMPTS, TEXTS

from corea.engines.base import Sampling
from corea.engines.evaluation import evaluate, read_samples
from corea.engines.server import ServerEngine, ServerError
from corea.tasks.questions import Question

pytestmark = pytest.mark.timeout(900)


def flat(rollouts):
    return [rollout for group in rollouts for rollout in group]


@pytest.fixture
def ask(address):
    """Makes engines."""
    engines = []

    def make(**settings):
        engines.append(ServerEngine("tiny", **{"url": address, "attempts": 2} | settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("encoded", ["there", "here"])
@pytest.mark.parametrize("as_chat", [False, True])
@pytest.mark.parametrize("length", [1, 5, 60])
def test_greedy_output_is_that_of_transformers(ask, plain, chat, encoded, as_chat, length):
    questions = PROMPTS + [question for question, _ in TEXTS[::7]]
    theirs = flat((chat if as_chat else plain).generate(questions, Sampling(0.0, length)))
    engine = ask(chat=as_chat, tokenizer=plain.tokenizer if encoded == "here" else None)
    ours = flat(engine.generate(questions, Sampling(0.0, length)))
    for own, other in zip(ours, theirs, strict=True):
        assert own.error == ""
        assert own.completion == other.completion
        assert own.finished == other.finished
        assert own.completion_tokens == other.completion_tokens
        assert own.prompt_tokens == other.prompt_tokens
        np.testing.assert_allclose(own.logprobs, other.logprobs, atol=1e-3)


SAMPLED = Sampling(1.0, 40, 3, 5)


@pytest.mark.parametrize("as_chat", [False, True])
def test_sampling_is_repeatable_and_any_sample_can_be_asked_for_alone(ask, as_chat):
    first = ask(chat=as_chat).generate(PROMPTS, SAMPLED)
    again = ask(chat=as_chat, concurrency=2).generate(PROMPTS[::-1], SAMPLED)[::-1]
    texts = [[rollout.completion for rollout in group] for group in first]
    assert texts == [[rollout.completion for rollout in group] for group in again]
    assert len({text for group in texts for text in group}) > 10
    alone = ask(chat=as_chat).generate(PROMPTS, SAMPLED, samples=[[2], [], [1], [], [0]])
    assert [rollout.completion for rollout in flat(alone)] == [
        texts[0][2],
        texts[2][1],
        texts[4][0],
    ]


def test_it_draws_what_the_engine_in_process_draws(ask, vllm):
    served = flat(ask(chat=False).generate([*PROMPTS, *LONG], SAMPLED))
    here = flat(vllm.generate([*PROMPTS, *LONG], SAMPLED))
    # the server leaves out a character of which only the first bytes were written
    texts = [rollout.completion.rstrip("\ufffd") for rollout in here]
    assert [rollout.completion for rollout in served] == texts


def test_an_evaluation_by_a_server_is_that_by_transformers(ask, chat, tmp_path):
    questions = [
        Question("sums", f"q{i}", question, answer.partition("boxed{")[2].partition("}")[0], "math")
        for i, (question, answer) in enumerate(TEXTS)
    ]
    tables = []
    for name, engine in (("served", ask()), ("here", chat)):
        records = evaluate(
            engine,
            questions,
            system="tiny",
            sampling=Sampling(0.0, 60),
            directory=tmp_path / name,
            confidence_grid=(),
        )
        tables.append(records.table)
    served, here = tables
    assert 0 < here["correct"].mean() < 1
    exact = served.columns.drop("average_probability")
    assert served[exact].equals(here[exact])
    np.testing.assert_allclose(
        served["average_probability"], here["average_probability"], atol=1e-4
    )


def test_what_the_server_refuses_is_a_failed_row(ask, tmp_path):
    questions = [
        Question("sums", "short", "3+4:", "7", "math"),
        Question("sums", "long", "3+4:" * 300, "7", "math"),
    ]
    records = evaluate(
        ask(),
        questions,
        system="tiny",
        sampling=Sampling(0.0, 60),
        directory=tmp_path,
        confidence_grid=(),
    )
    assert list(records.table["question_id"]) == ["short"]
    [error] = [text for text in read_samples(tmp_path, failed=True)["error"] if text]
    assert error.startswith("HTTP 400")
    assert "256" in error


def test_a_model_it_does_not_have_is_named(address):
    engine = ServerEngine("large", address)
    with pytest.raises(ServerError, match="HTTP 404.*these models: tiny; asked for large"):
        engine.generate(["3+4:"], Sampling(0.0, 5))
    engine.close()
