"""A warm-up that teaches the form of decisions: its rows, and a model before and after."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="training needs the extra `train`")

import pandas as pd  # noqa: E402
from decide_in_process import OWN  # noqa: E402

from corea import stages  # noqa: E402
from corea.decisions.warm_up import own_reasoning, tidied, warm_up_rows  # noqa: E402
from corea.engines.base import Sampling  # noqa: E402
from corea.engines.evaluation import read_samples  # noqa: E402
from corea.engines.loading import load_model, load_tokenizer  # noqa: E402
from corea.engines.transformers_engine import TransformersEngine  # noqa: E402
from corea.tasks.decision_world import questions  # noqa: E402
from corea.training.settings import SFTSettings  # noqa: E402

ASKED = questions(OWN, "choices", "train", 40)
VERDICTS = ("Safe", "Unsafe")

TIDIED = [  # text, whether it was ended, what is left
    ("It is money. I thi", False, "It is money."),
    ("It is money. I thi", True, "It is money. I thi"),
    ("It is money.\nI thi", False, "It is money."),
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
def tokenizer(decider):
    return load_tokenizer(decider)


def test_rows_are_of_both_kinds_and_say_nothing_of_what_is_right(tokenizer):
    thoughts = ["1+2=3."] * (len(ASKED) - 1) + [""]
    rows = warm_up_rows(tokenizer, ASKED, thoughts, seed=0)
    assert len(rows) == 2 * len(ASKED) - 1
    reasoned = [row for row in rows if row["completion"]]
    bare = [row for row in rows if not row["completion"]]
    assert {row["completion"] for row in reasoned} == {"<think>\n1+2=3.\n</think>\n"}
    assert [row["prompt"] for row in reasoned] == [q.prompt(reasoning=True) for q in ASKED[:-1]]
    assert [row["prompt"] for row in bare] == [
        q.prompt(reasoning=False) + "<think>\n</think>\n" for q in ASKED
    ]
    given = [row["given"] for row in bare]
    assert set(given) == set("ABCDE")
    assert rows == warm_up_rows(tokenizer, ASKED, thoughts, seed=0)
    # with the same seed, whatever is right
    wrong = [type(q)(**vars(q) | {"gold": "A"}) for q in ASKED]
    assert rows == warm_up_rows(tokenizer, wrong, thoughts, seed=0)
    assert rows != warm_up_rows(tokenizer, ASKED, thoughts, seed=1)


def test_bad_input_is_named(tokenizer, decider):
    with pytest.raises(ValueError, match="reasons about none of 40 questions; .*raise the length"):
        warm_up_rows(tokenizer, ASKED, [""] * len(ASKED), seed=0)
    engine = TransformersEngine(*load_model(decider, device="cpu"), batch_size=8)
    with pytest.raises(ValueError, match="n_samples is 2; expected 1 reasoning of a question"):
        own_reasoning(engine, ASKED, Sampling(1.0, 8, 2))


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 2, "lora_targets": "all-linear"}])
def test_a_model_that_forgot_the_form_learns_it_and_not_what_is_right(
    decider, tmp_path, tokenizer, lora
):
    """The end token is made unlikely, so that nothing is decided; a warm-up teaches it again."""
    model, _ = load_model(decider, device="cpu")
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 0
    base = tmp_path / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    steps = 40
    folder = stages.decisions_warmed_up(
        base,
        ASKED,
        Sampling(1.0, 24, seed=0),
        SFTSettings(
            steps=steps, batch=8, micro_batch=8, learning_rate=1e-2, checkpoint_every=steps, **lora
        ),
        batch_size=16,
        root=tmp_path / "store",
    )
    written = pd.read_parquet(folder / "reasoning.parquet")
    assert written["question_id"].tolist() == [q.question_id for q in ASKED]
    assert written["reasoning"].str.len().mean() > 3
    assert not written["reasoning"].str.contains("think").any()
    held_out = questions(OWN, "choices", "validation", 20)
    shares = {}
    for which in (base, folder / "model"):
        answers = {
            name: stages.decided(
                which,
                held_out,
                Sampling(0.0, 24),
                reasoning=name == "greedy",
                batch_size=16,
                root=tmp_path / "store",
            )
            for name in ("greedy", "none")
        }
        for name, path in answers.items():
            shares[which == base, name] = read_samples(path)["answer"].notna().mean()
    for name in ("greedy", "none"):
        assert shares[True, name] < 0.2
        assert shares[False, name] > 0.8
