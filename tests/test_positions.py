"""What the place of an option does to decisions, and what averaging over orders makes of them."""

import numpy as np
import pandas as pd
import pytest

from corea.book import decision_tables
from corea.decisions.evaluation import OPTIONS
from corea.decisions.positions import averaged, in_order, letter_shares
from corea.tasks.decision_questions import LETTERS, VERDICTS, DecisionQuestion, lettered

FIVE = ("v", "w", "x", "y", "z")
QUESTIONS = [
    *(DecisionQuestion("csqa", str(i), "?", LETTERS[i % 5], FIVE) for i in range(10)),
    *(lettered(DecisionQuestion("xstest", str(i), "?", VERDICTS[i % 2])) for i in range(6)),
    DecisionQuestion("openai", "0", "?", "Safe"),
]


def decided(questions, order, believes, prefers):
    """Decisions of a model whose weight for an option is that of its text times its letter's."""
    rows = []
    for question in questions:
        p = np.array([believes(question, text) for text in question.choices])
        p = p * prefers[: len(p)]
        p = 0.8 * p / p.sum()  # 0.2 are other tokens'
        place = int(p.argmax())
        rows.append(
            {
                "dataset": question.dataset, "question_id": question.question_id, "sample": 0,
                "order": order, "answer": LETTERS[place], "gold": question.gold,
                "correct": LETTERS[place] == question.gold, "confidence": p[place] / p.sum(),
                "system": "SLM", "seed": 0,
            }
            | {name: p[k] if k < len(p) else np.nan for k, name in enumerate(OPTIONS)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def in_all_orders(believes, prefers, n=5):
    return pd.concat(
        [decided(in_order(QUESTIONS, order), order, believes, prefers) for order in range(n)],
        ignore_index=True,
    )


def right_text(question, text):
    """A model that knows: the same belief in a text wherever it stands."""
    own = {(q.dataset, q.question_id): q for q in QUESTIONS}[question.dataset, question.question_id]
    return 2.0 if text == own.choices[LETTERS.index(own.gold)] else 1.0


FIRST = np.array([10.0, 1, 1, 1, 1])  # a letter that is always preferred
FAIR = np.ones(5)


def test_each_question_is_asked_in_as_many_orders_as_it_has_options():
    assert [len(in_order(QUESTIONS, order)) for order in range(6)] == [16, 16, 10, 10, 10, 0]
    assert in_order(QUESTIONS, 0) == QUESTIONS[:16]


def test_a_model_that_prefers_a_letter_is_seen_and_averaged_out():
    turned = in_all_orders(right_text, FIRST)
    first = letter_shares(turned[turned["order"] == 0]).set_index(["dataset", "letter"])
    assert first.loc[("csqa", "A"), "decided"] == 1
    assert first.loc["csqa"]["gold"].tolist() == [0.2] * 5
    assert first.loc["csqa"]["right"].tolist() == [1, 0, 0, 0, 0]
    assert first.loc["csqa"]["distance"].to_numpy() == pytest.approx([0.8] * 5)
    assert first.loc["xstest"]["distance"].to_numpy() == pytest.approx([0.5] * 2)
    assert len(first.loc["xstest"]) == 2
    mean = averaged(turned)
    assert len(mean) == 16
    assert mean["correct"].all()
    assert mean.groupby("dataset")["orders"].unique().map(list).to_dict() == {
        "csqa": [5], "xstest": [2]
    }  # fmt: skip
    # by hand: two letters, weights 10:1 times belief 2:1 either way
    assert mean[mean["dataset"] == "xstest"]["confidence"].to_numpy() == pytest.approx(
        [(20 / 21 + 2 / 12) / 2] * 6
    )


def test_a_model_without_a_preference_is_as_it_was():
    turned = in_all_orders(right_text, FAIR)
    shares = letter_shares(turned)
    assert shares["distance"].to_numpy() == pytest.approx(0)
    assert (shares["right"] == 1).all()
    mean, first = averaged(turned), turned[turned["order"] == 0]
    assert mean["confidence"].to_numpy() == pytest.approx(first["confidence"].to_numpy())
    assert mean["answer"].tolist() == first["answer"].tolist()


def test_one_order_is_its_own_mean():
    turned = in_all_orders(right_text, FIRST, n=1)
    mean = averaged(turned)
    assert mean["answer"].tolist() == turned["answer"].tolist()
    assert mean["confidence"].to_numpy() == pytest.approx(turned["confidence"].to_numpy())


def test_what_was_not_decided_falls_on_no_letter():
    samples = pd.DataFrame({"dataset": "csqa", "answer": ["A", None], "gold": ["A", "B"]})
    shares = letter_shares(samples)
    assert shares["decided"].tolist() == [0.5, 0]
    assert shares["right"].tolist() == [1, 0]
    assert shares["distance"].tolist() == [0.25, 0.25]


def test_bad_input_is_named():
    turned = in_all_orders(right_text, FAIR)
    with pytest.raises(ValueError, match="csqa 0 is there twice in an order; expected once"):
        averaged(pd.concat([turned, turned.head(1)], ignore_index=True))
    with pytest.raises(ValueError, match=r"\('csqa', '0'\) is not there in order 0; expected all"):
        averaged(turned.drop(index=0))
    with pytest.raises(ValueError, match="openai: 'Safe' is decided for; expected letters"):
        letter_shares(pd.DataFrame({"dataset": "openai", "answer": ["Safe"], "gold": ["Safe"]}))


def test_both_tables_are_shown():
    letters, measured = decision_tables.show_positions(
        in_all_orders(right_text, FIRST), n_resamples=5, seed=0
    )
    assert "distance of the two shares" in letters.data
    assert "all asked" in letters.data
    assert "mean of the orders" in measured.data
    assert "(csqa 5, xstest 2)" in measured.data
