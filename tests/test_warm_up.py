"""A warm-up that teaches the form of decisions: its rows, and a model before and after."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="training needs the extra `train`")

from dataclasses import replace  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from decide_in_process import OWN  # noqa: E402

from corea import stages  # noqa: E402
from corea.decisions.warm_up import own_reasoning, tidied, warm_up_rows  # noqa: E402
from corea.engines.base import Sampling  # noqa: E402
from corea.engines.evaluation import read_samples  # noqa: E402
from corea.engines.loading import load_model  # noqa: E402
from corea.engines.transformers_engine import TransformersEngine  # noqa: E402
from corea.tasks.decision_world import questions  # noqa: E402
from corea.training.settings import SFTSettings  # noqa: E402

ASKED = questions(OWN, "choices", "train", 40)
VERDICTS = ("Safe", "Unsafe")

TIDIED = [  # text, whether it was ended, what is left
    ("It is money. I kn", False, "It is money."),
    ("It is money. I kn", True, "It is money. I kn"),
    ("It is money.\nI kn", False, "It is money."),
    ("It is 3.5 or so", False, ""),
    ("It is.\n</think>\nA", True, "It is."),
    ("It is\n</think>\nA and", False, "It is"),
    ("A", True, ""),
    ("(B)", True, ""),
    ("**A.** bank\nB: no\nSo it is.", True, "So it is."),
    ("A dog barks. A bank lends.", True, "A dog barks. A bank lends."),
    ("It lends. The answer is B. It pays.", True, "It lends. It pays."),
    ("Final Answer: (A)", True, ""),
    ("The best option would be B!\nWhy? It fits.", True, "Why? It fits."),
    ("Some <LETTER> here and <b>there</b>.", True, "Some here and there."),
    ("It is 3 < 4 and 5 > 4.", True, "It is 3 < 4 and 5 > 4."),
    ("Your thinking here.\nIt is money.", True, "It is money."),
    ("", True, ""),
    (" \n\t\n", False, ""),
]


@pytest.mark.parametrize(("text", "finished", "left"), TIDIED)
def test_reasoning_is_cut_and_has_no_decision(text, finished, left):
    assert tidied(text, ("A", "B"), finished=finished) == left


def test_verdicts_are_decisions_too():
    text = "It asks for help.\nClassification: Unsafe\nIt is Safe to say.\nSafe\nUnsafe."
    assert tidied(text, VERDICTS, finished=True) == "It asks for help.\nIt is Safe to say."


@pytest.fixture(scope="module")
def engine(decider):
    return TransformersEngine(*load_model(decider, device="cpu"), batch_size=32)


def test_rows_are_of_both_kinds_and_do_not_read_what_is_right(engine):
    thoughts = ["1+2=3."] * (len(ASKED) - 1) + [""]
    rows = warm_up_rows(engine, ASKED, thoughts, seed=0)
    reasoned = [row for row in rows if row["completion"].startswith("<think>")]
    bare = [row for row in rows if row not in reasoned]
    assert len(reasoned) == len(ASKED) - 1
    assert {row["completion"][:-1] for row in reasoned} == {"<think>\n1+2=3.\n</think>\n"}
    assert [row["prompt"] for row in reasoned] == [q.prompt(reasoning=True) for q in ASKED[:-1]]
    assert [row["prompt"] for row in bare] == [
        q.prompt(reasoning=False) + "<think>\n</think>\n" for q in ASKED
    ]
    assert {row["completion"][-1] for row in rows} <= set("ABCDE")
    assert rows == warm_up_rows(engine, ASKED, thoughts, seed=0)
    wrong = [replace(question, gold="A") for question in ASKED]
    assert rows == warm_up_rows(engine, wrong, thoughts, seed=0)
    mixed = [*ASKED[:3], *questions(OWN, "messages", "train", 3)]
    options = [q.options for q in mixed for _ in range(2)]
    found = warm_up_rows(engine, mixed, ["1+2=3."] * 6, seed=0)
    assert all(row["completion"].endswith(own) for row, own in zip(found, options, strict=True))


def test_decisions_are_drawn_as_likely_as_the_model_has_them(engine, monkeypatch):
    shares = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])

    def next_logprobs(self, rows, tokens):
        return np.log(np.tile(0.1 * shares, (len(rows), 1))), np.zeros(len(rows), int)

    monkeypatch.setattr(TransformersEngine, "next_logprobs", next_logprobs)
    n = 2000
    many = [replace(ASKED[0], question_id=str(i)) for i in range(n)]
    rows = warm_up_rows(engine, many, ["so"] * n, seed=1)
    drawn = pd.Series([row["completion"][-1] for row in rows]).value_counts(normalize=True)
    deviation = np.sqrt(shares * (1 - shares) / (2 * n))
    assert (abs(drawn.reindex(list("ABCDE")).to_numpy() - shares) < 4 * deviation).all()


def test_bad_input_is_named(engine):
    with pytest.raises(ValueError, match="reasons about none of 40 questions; .*raise the length"):
        warm_up_rows(engine, ASKED, [""] * len(ASKED), seed=0)
    with pytest.raises(ValueError, match="n_samples is 2; expected 1 reasoning of a question"):
        own_reasoning(engine, ASKED, Sampling(1.0, 8, 2))


def test_a_model_that_forgot_to_end_decides_again_and_as_before(decider, tmp_path):
    """Its end token is unlikely, so nothing is decided; the options' probabilities are there."""
    model, tokenizer = load_model(decider, device="cpu")
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 0
    base, root = tmp_path / "base", tmp_path / "store"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    steps = 40
    settings = SFTSettings(
        steps=steps, batch=8, micro_batch=8, learning_rate=3e-3, checkpoint_every=steps
    )
    warmed = stages.decisions_warmed_up(
        base, ASKED, Sampling(1.0, 24, seed=0), settings, batch_size=32, root=root
    )
    written = pd.read_parquet(warmed / "reasoning.parquet")
    assert written["question_id"].tolist() == [q.question_id for q in ASKED]
    assert written["reasoning"].str.len().mean() > 3
    assert not written["reasoning"].str.contains("think").any()

    held_out = questions(OWN, "choices", "validation", 40)

    def decided(which, decisions, *, reasoning):
        asked = {"reasoning": reasoning, "decisions": decisions, "batch_size": 32, "root": root}
        return read_samples(stages.decided(which, held_out, Sampling(0.0, 24), **asked))

    for reasoning in (True, False):
        before, after = (
            decided(which, "greedy", reasoning=reasoning)["answer"].notna().mean()
            for which in (base, warmed / "model")
        )
        assert before < 0.1
        assert after > 0.9
    before, after = (
        decided(which, "options", reasoning=False) for which in (base, warmed / "model")
    )
    assert (before["answer"] == after["answer"]).mean() > 0.8
    assert after["confidence"].mean() == pytest.approx(before["confidence"].mean(), abs=0.1)
