"""Decisions: prompts, options of one token, where a completion decides, its confidence."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corea.decisions.tokens import (
    OptionError,
    decision_confidence,
    decision_position,
    optimal_confidence,
    option_ids,
    wrong_target,
)
from corea.tasks.decision_questions import LETTERS, VERDICTS, DecisionQuestion
from corea.tasks.decision_world import DecisionWorld, build_tokenizer

PAPER = Path(__file__).parents[2] / "shared" / "papers" / "004_2b4017eb5bcad0bb.txt"
FIVE = tuple(f"{{option{i}}}" for i in range(1, 6))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(DecisionWorld())


def squeezed(text):
    return re.sub(r"\s+", " ", text.replace('"', "").replace("“", "").replace("”", ""))


@pytest.mark.skipif(not PAPER.is_file(), reason="the papers are not beside this checkout")
@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize(
    "question",
    [
        DecisionQuestion("csqa", "0", "{question}", "A", FIVE),
        DecisionQuestion("obqa", "0", "{question}", "A", FIVE[:4], fact="{fact}"),
        DecisionQuestion("openai", "0", "{input}", "Safe"),
    ],
    ids=lambda q: q.dataset,
)
def test_prompts_are_those_of_the_paper(question, reasoning):
    paper = squeezed(PAPER.read_text("utf-8"))
    prompt = question.prompt(reasoning=reasoning)
    assert squeezed(prompt).strip() in paper


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gold": "C"}, r"^csqa 7: gold is 'C'; expected one of A, B$"),
        ({"gold": "Safe"}, "expected one of A, B"),
        ({"choices": ("x",), "gold": "A"}, r"^csqa 7: 1 choice\(s\); expected 2 to 5"),
        ({"choices": ("x",) * 6}, r"6 choice\(s\)"),
        ({"choices": (), "gold": "A"}, "expected one of Safe, Unsafe"),
    ],
)
def test_a_question_without_a_right_option_is_refused(values, message):
    good = {"dataset": "csqa", "question_id": "7", "text": "?", "gold": "A", "choices": ("x", "y")}
    DecisionQuestion(**good)
    with pytest.raises(ValueError, match=message):
        DecisionQuestion(**good | values)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [LETTERS, VERDICTS, LETTERS[:2]])
def test_each_option_is_a_token_of_its_own(tokenizer, options):
    ids = option_ids(tokenizer, options)
    assert [tokenizer.decode([i]) for i in ids] == list(options)
    for i, option in zip(ids, options, strict=True):
        whole = tokenizer(f"<think>\nx\n</think>\n{option}", add_special_tokens=False)["input_ids"]
        assert whole[-1] == i


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["A"], "expected at least two"),
        ([], "expected at least two"),
        (["A", "B", "A"], "expected them to be different"),
        (["A", "yes sir"], r"option 'yes sir' is \d+ tokens; expected one"),
        (["A", ""], "option '' is 0 tokens"),
    ],
)
def test_options_that_are_not_one_token_are_named(tokenizer, options, message):
    with pytest.raises(OptionError, match=message):
        option_ids(tokenizer, options)


class Words:
    """A tokenizer of whole words, whose vocabulary has two words, and a line break that merges."""

    unk_token_id = 0

    def __init__(self, known, merged=""):
        self.known, self.merged = known, merged

    def __call__(self, text, add_special_tokens=True):
        _, _, word = text.partition("\n")
        if self.merged and word == self.merged:
            return {"input_ids": [90, 99]}
        return {"input_ids": [90, 91] + ([self.known.get(word, 0)] if word else [])}


def test_an_option_unknown_or_shared_or_merged_is_named():
    with pytest.raises(OptionError, match="option 'no' is not in the vocabulary"):
        option_ids(Words({"yes": 5}), ["yes", "no"])
    with pytest.raises(OptionError, match="options 'yes' and 'Yes' are the same token"):
        option_ids(Words({"yes": 5, "Yes": 5}), ["yes", "Yes"])
    with pytest.raises(OptionError, match="option 'no' is merged with the line break before it"):
        option_ids(Words({"yes": 5}, merged="no"), ["yes", "no"])
    assert option_ids(Words({"yes": 5, "no": 6}), ["yes", "no"]) == [5, 6]


# --- where it decides ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("<think>|\n|a|\n|</think>|\n|A|$", 6),
        ("<think>|\n|A|\n|</think>|\n|B|$", 6),  # not the one in the reasoning
        ("A|$", 0),
        ("A| |\n|$", 0),  # white space after it
        ("<think>|\n|</think>|\n|A|A|$", 5),
        ("<think>|\n|</think>|\n|A", None),  # cut
        ("<think>|\n|A|$", None),  # never stopped reasoning
        ("</think>|<think>|A|$", None),
        ("<think>|</think>|A|a|$", None),  # something follows
        ("<think>|</think>|$", None),
        ("$", None),
        (" |\n|$", None),
    ],
)
def test_the_decision_is_the_last_token_that_says_something(text, place):
    tokens = ["" if part == "$" else part for part in text.split("|")]
    ids = [{"": 0, "A": 1, "B": 2}.get(token, 9) for token in tokens]
    assert decision_position(tokens, ids, [1, 2], [0]) == place


def test_nothing_is_no_decision():
    assert decision_position([], [], [1, 2], [0]) is None


# --- confidence ---------------------------------------------------------------------------------


@given(
    scores=st.lists(st.lists(st.floats(-30, 0), min_size=3, max_size=3), min_size=1, max_size=8),
    data=st.data(),
)
def test_confidence_is_the_probability_of_the_decision(scores, data):
    decided = data.draw(
        st.lists(st.integers(-1, 2), min_size=len(scores), max_size=len(scores)), label="decided"
    )
    full, renormalised = decision_confidence(scores, decided)
    for row, index, c, own in zip(scores, decided, full, renormalised, strict=True):
        if index < 0:
            assert np.isnan(c)
            assert np.isnan(own)
            continue
        assert c == pytest.approx(np.exp(row[index]))
        assert own == pytest.approx(np.exp(row[index]) / np.exp(row).sum())
        assert 0 <= c <= 1
        assert 0 <= own <= 1
        if row[index] == max(row):
            assert own >= 1 / 3 - 1e-12


def test_rows_without_a_decision_may_hold_anything():
    full, renormalised = decision_confidence([[np.nan] * 2, [-0.1, -np.inf]], [-1, 0])
    assert np.isnan(full[0])
    assert np.isnan(renormalised[0])
    assert full[1] == pytest.approx(np.exp(-0.1))
    assert renormalised[1] == 1.0
    assert all(part.size == 0 for part in decision_confidence(np.empty((0, 2)), np.empty(0, int)))


@pytest.mark.parametrize(
    ("scores", "decided", "message"),
    [
        ([[-1.0, -1.0]], [0, 0], r"expected \(n, K\) and \(n,\)"),
        ([-1.0, -1.0], [0], "logprobs has shape"),
        ([[-1.0, -1.0]], [2], "decided: row 0 is 2"),
        ([[-1.0, -1.0]], [-2], "decided: row 0 is -2"),
        ([[-1.0, -1.0], [-1.0, np.nan]], [0, 0], "logprobs: row 1"),
        ([[0.5, -1.0]], [0], "logprobs: row 0"),
    ],
)
def test_wrong_log_probabilities_are_named(scores, decided, message):
    with pytest.raises(ValueError, match=message):
        decision_confidence(scores, decided)


@pytest.mark.parametrize("target", ["uniform", "proper"])
@pytest.mark.parametrize("n_options", [2, 3, 5])
@pytest.mark.parametrize("accuracy", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_optimum_minimises_the_expected_loss(target, n_options, accuracy):
    """Over all distributions that treat the options not decided for alike."""
    grid = np.linspace(1e-6, 1 - 1e-6, 20001)
    others = (1 - grid) / (n_options - 1)
    wrong = wrong_target(n_options, target)
    assert wrong.sum() == pytest.approx(1)
    loss = -accuracy * np.log(grid) - (1 - accuracy) * (
        wrong[0] * np.log(grid) + wrong[1:].sum() * np.log(others)
    )
    found = grid[loss.argmin()]
    assert optimal_confidence(accuracy, n_options, target) == pytest.approx(found, abs=1e-4)
    if target == "proper":
        assert optimal_confidence(accuracy, n_options, target) == accuracy
    elif accuracy < 1:
        assert optimal_confidence(accuracy, n_options, target) > accuracy


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimal_confidence([0.5, 1.5], 3, "proper"), "accuracy is"),
        (lambda: optimal_confidence(0.5, 1, "proper"), "n_options is 1; expected 2 or more"),
        (lambda: wrong_target(3, "other"), "target is 'other'; expected one of uniform, proper"),
    ],
)
def test_targets_out_of_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_importing_decisions_does_not_import_torch():
    code = "import sys, corea.decisions.tokens, corea.tasks.decision_world; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
