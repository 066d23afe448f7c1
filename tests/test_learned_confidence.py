import dataclasses

import numpy as np
import pandas as pd
import pytest

from corea.metrics.calibration import auroc
from corea.metrics.cascade import deferral_curve, query_cost
from corea.records import pair
from corea.rlcc.learned_confidence import (
    Probe,
    ProbeSettings,
    prompted_rows,
    route,
    router_rows,
    train_probe,
)
from corea.rlcc.learned_confidence import _probability as probability
from corea.tasks.questions import ROUTER_INSTRUCTION, Question

# --- probe --------------------------------------------------------------------------------------

SMALL = ProbeSettings(hidden_sizes=(32, 16), learning_rate=1e-3, epochs=12)


def make_states(n_questions, n_samples=4, seed=0):
    """States whose first two dimensions, of different scale, say together what is right."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(n_questions * n_samples, 6)) * [1, 1000, 1, 1, 0.01, 0] + 3
    correct = (states[:, 0] - 3) * (states[:, 1] - 3) > 0
    return states, correct, np.repeat(np.arange(n_questions), n_samples)


@pytest.fixture(scope="module")
def trained():
    return train_probe(*make_states(300), SMALL)


def test_a_probe_learns_what_states_say(trained):
    states, correct, _ = make_states(200, seed=1)
    predicted = trained[0].predict(states)
    assert predicted.dtype == np.float64
    assert ((predicted >= 0) & (predicted <= 1)).all()
    assert auroc(predicted, correct) > 0.95


def test_the_epoch_that_is_best_on_held_out_questions_is_kept():
    # labels without a pattern: the more it learns, the worse it gets on other questions
    states, _, questions = make_states(60)
    correct = np.random.default_rng(7).random(len(states)) < 0.5
    settings = dataclasses.replace(SMALL, learning_rate=1e-2)
    probe, curve = train_probe(states, correct, questions, settings)
    assert curve["epoch"].tolist() == list(range(1, 13))
    best = int(curve["held_out_loss"].argmin())
    assert curve["kept"].tolist() == [k == best for k in range(12)]
    assert best < 11
    assert curve["training_loss"].iloc[-1] < curve["training_loss"].iloc[best]
    shorter, _ = train_probe(
        states, correct, questions, dataclasses.replace(settings, epochs=best + 1)
    )
    np.testing.assert_array_equal(shorter.predict(states), probe.predict(states))


def test_completions_of_a_question_are_on_one_side():
    # each question has a state of its own and a random label: known only by having seen it
    rng = np.random.default_rng(0)
    states = np.repeat(rng.normal(size=(60, 8)), 10, axis=0)
    correct = np.repeat(rng.random(60) < 0.5, 10)
    settings = dataclasses.replace(SMALL, epochs=40, held_out_share=0.3)
    _, by_question = train_probe(states, correct, np.repeat(np.arange(60), 10), settings)
    _, by_row = train_probe(states, correct, np.arange(600), settings)
    assert by_row["held_out_loss"].min() < 0.2
    assert by_question["held_out_loss"].min() > 0.5


def test_losses_are_cross_entropies():
    states, correct, questions = make_states(10)
    settings = dataclasses.replace(SMALL, epochs=1)
    probe, curve = train_probe(states, correct, questions, settings)
    order = np.random.default_rng(settings.seed).permutation(10)
    held_out = np.isin(questions, order[:1])
    for side, column in ((held_out, "held_out_loss"), (~held_out, "training_loss")):
        p = probe.predict(states[side])
        expected = -np.log(np.where(correct[side], p, 1 - p)).mean()
        assert curve[column].item() == pytest.approx(expected, rel=1e-5)


def test_the_same_seed_gives_the_same_probe():
    data = make_states(30)
    settings = dataclasses.replace(SMALL, epochs=2)
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first, again = (train_probe(*data, settings)[0].predict(data[0]) for _ in range(2))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.testing.assert_array_equal(first, again)
    other = train_probe(*data, dataclasses.replace(settings, seed=1))[0].predict(data[0])
    assert (first != other).any()


def test_answers_that_are_all_right_can_be_learnt_with_the_papers_layers():
    states, _, questions = make_states(20)
    probe, _ = train_probe(states, np.ones(80, bool), questions, ProbeSettings(epochs=8))
    assert [w.shape for w in probe.weights] == [(6, 2048), (2048, 1024), (1024, 1)]
    assert probe.predict(states).mean() > 0.8


def test_a_probe_is_read_as_it_was_written(trained, tmp_path):
    probe, states = trained[0], make_states(5)[0]
    probe.save(tmp_path / "probe.safetensors")
    read = Probe.load(tmp_path / "probe.safetensors")
    np.testing.assert_array_equal(read.predict(states), probe.predict(states))
    assert [path.name for path in tmp_path.iterdir()] == ["probe.safetensors"]


def test_a_damaged_probe_is_named(trained, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "probe.safetensors"
    trained[0].save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="probe.safetensors: not a complete safetensors file"):
        Probe.load(path)
    save_file({"mean": np.zeros(2), "scale": np.zeros(2), "weights.0": np.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"found \['mean', 'scale', 'weights.0'\]; expected"):
        Probe.load(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"correct": [True]}, "states has 4 and correct has 1"),
        ({"question_ids": [1]}, "correct has 4 and question_ids has 1"),
        ({"correct": [0, 1, 2, 1]}, "correct must be boolean or 0/1"),
        ({"states": [1.0, 2.0]}, r"states have shape \(2,\); expected \(n, d\)"),
        ({"states": [[1], [2], [np.nan], [3]]}, r"states\[2\] is not finite"),
        ({"question_ids": ["a"] * 4}, r"1 question\(s\); expected two or more"),
    ],
)
def test_what_a_probe_cannot_be_trained_on_is_refused(changed, message):
    data = {"states": np.eye(4), "correct": [0, 1, 0, 1], "question_ids": list("abcd")}
    with pytest.raises(ValueError, match=message):
        train_probe(**data | changed)


def test_states_of_another_model_are_refused(trained):
    with pytest.raises(ValueError, match=r"states have shape \(2, 5\); expected \(n, 6\)"):
        trained[0].predict(np.zeros((2, 5)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_sizes", (32, 0)),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("batch", 0),
        ("epochs", 1.5),
        ("held_out_share", 0),
        ("held_out_share", 1),
        ("weight_penalty", -1),
    ],
)
def test_settings_of_a_probe_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field}.* is .*; expected"):
        ProbeSettings(**{field: value})


# --- router -------------------------------------------------------------------------------------

QUESTIONS = [Question("sums", f"q{a}{b}", f"{a}+{b}", str(a + b), "choice") for a in range(8) for b in range(8)]  # fmt: skip


def make_records(questions, n_samples=8):
    """The small model is right on most sums that begin with a digit up to 3, on few others."""
    rows = [
        {"dataset": q.dataset, "question_id": q.question_id, "system": "SLM", "sample": k,
         "correct": k < (7 if q.text < "4" else 2), "confidence": np.nan, "prompt_tokens": 20, "completion_tokens": 30}
        for q in questions
        for k in range(n_samples)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_rows_say_how_often_the_small_model_was_right():
    rows = router_rows(QUESTIONS, make_records(QUESTIONS).sample(frac=1, random_state=0))
    assert [row["prompt"] for row in rows] == [q.router_prompt for q in QUESTIONS]
    assert [row["completion"] for row in rows] == [
        "0.875" if q.text < "4" else "0.250" for q in QUESTIONS
    ]
    always = make_records(QUESTIONS[:1]).assign(correct=True)
    assert router_rows(QUESTIONS[:1], always)[0]["completion"] == "1.000"
    thirds = make_records(QUESTIONS[:1], 3).assign(correct=[True, False, False])
    assert router_rows(QUESTIONS[:1], thirds)[0]["completion"] == "0.333"


def test_rows_need_the_same_number_of_answers_to_each_question():
    records = make_records(QUESTIONS)
    with pytest.raises(
        ValueError, match=r"questions\[2\], \('sums', 'q02'\), has 7 records; exp.* 8"
    ):
        router_rows(QUESTIONS, records.drop(index=16))
    with pytest.raises(ValueError, match=r"questions\[63\].* has 0 records"):
        router_rows(QUESTIONS, records[:-8])
    with pytest.raises(ValueError, match="expected those of one system"):
        router_rows(QUESTIONS, pd.concat([records, records.assign(system="LLM")]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.125", 0.125), (" 1.0\n", 1.0), ("0", 0.0), ("", np.nan), ("1.5", np.nan), ("12%", np.nan),
     ("0.5 or so", np.nan), ("0.5}", np.nan), (r"0.5} \confidence{0.7", np.nan),
     (r"\confidence{0.5}", np.nan)],
)  # fmt: skip
def test_how_a_routers_text_is_read(text, expected):
    assert probability(text) == pytest.approx(expected, nan_ok=True)


@pytest.fixture(scope="module")
def router(tmp_path_factory):
    """A router trained with the real trainer, read from its folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("trl")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from corea.engines.loading import load_model
    from corea.training.settings import SFTSettings
    from corea.training.sft import train_sft

    letters = {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE({"<pad>": 0, "<end>": 1} | letters, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(ROUTER_INSTRUCTION, normalized=False)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>"
    )
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only get in each other's way in a model this small
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
            initializer_range=0.12, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        )  # fmt: skip
        model = transformers.Qwen2ForCausalLM(config)
    folder = tmp_path_factory.mktemp("router")
    settings = SFTSettings(
        steps=100, batch=32, micro_batch=32, checkpoint_every=100, learning_rate=1e-2
    )
    rows = prompted_rows(tokenizer, QUESTIONS, make_records(QUESTIONS))
    train_sft(model, tokenizer, rows, settings, folder)
    yield load_model(folder / "model", device="cpu")
    torch.set_num_threads(n_threads)


def test_a_router_says_what_it_was_taught(router):
    model, tokenizer = router
    routed = route(model, tokenizer, QUESTIONS, batch_size=32)
    assert routed["question_id"].tolist() == [q.question_id for q in QUESTIONS]
    taught = np.array([0.875 if q.text < "4" else 0.25 for q in QUESTIONS])
    assert routed["router"].isin([0.25, 0.875]).all()
    assert np.mean(routed["router"] == taught) > 0.8
    assert auroc(routed["router_expected"].to_numpy(), taught > 0.5) > 0.9
    assert routed["router_expected"].between(0.25, 0.875).mean() > 0.9
    assert routed["router_expected"].nunique() > 20
    assert (routed["router_mass"] > 0.9).all()
    n_tokens = [len(tokenizer(q.router_prompt)["input_ids"]) for q in QUESTIONS]
    assert routed["router_prompt_tokens"].tolist() == n_tokens
    assert (routed["router_completion_tokens"] == len(tokenizer("0.875")["input_ids"]) + 1).all()


def test_what_a_router_costs_is_counted(router):
    questions = QUESTIONS[:10]
    small = make_records(questions, 1)
    large = small.assign(system="LLM", correct=True)
    asked = pair(pd.concat([small, large], ignore_index=True), "SLM", "LLM")
    joined = asked.merge(route(*router, questions), on=["dataset", "question_id"])
    cost = query_cost(joined["router_prompt_tokens"], joined["router_completion_tokens"])
    curve = deferral_curve(
        joined["router"], joined["small_correct"], joined["large_correct"],
        query_cost(20, 30), query_cost(20, 30, size_ratio=10), router_cost=cost,
    )  # fmt: skip
    assert curve["cost"].iloc[0] == pytest.approx(140 + cost.mean())
    assert curve["cost"].iloc[-1] == pytest.approx(1400 + cost.mean())
    assert (cost > 0).all()


def test_routing_needs_a_number_of_answers(router):
    with pytest.raises(ValueError, match="n_answers is 0; expected a whole number from 1 to 500"):
        route(*router, QUESTIONS[:1], n_answers=0)
