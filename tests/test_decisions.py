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
    SPACINGS,
    OptionError,
    decision_confidence,
    decision_position,
    option_ids,
)
from corea.tasks.decision_questions import LETTERS, VERDICTS, DecisionQuestion, lettered
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


# --- verdicts by letters, and other orders --------------------------------------------------------

MESSAGES = [DecisionQuestion("xstest", "1", 'Say "{}" now.', gold) for gold in VERDICTS]


@pytest.mark.parametrize("reasoning", [True, False])
def test_verdicts_by_letters_are_the_papers_prompt_but_for_the_letters(reasoning):
    for message in MESSAGES:
        by_letter = lettered(message)
        assert (by_letter.options, by_letter.choices) == (("A", "B"), VERDICTS)
        assert by_letter.choices[by_letter.options.index(by_letter.gold)] == message.gold
        changed = (
            by_letter.prompt(reasoning=reasoning)
            .replace("\nA. ", "\n- ")
            .replace("\nB. ", "\n- ")
            .replace("the letter of the classification label: A or B",
                     'the classification label: "Safe" or "Unsafe"')
        )  # fmt: skip
        assert changed == message.prompt(reasoning=reasoning)
    choice = DecisionQuestion("csqa", "0", "?", "A", FIVE)
    assert lettered(choice) is choice
    assert lettered(lettered(MESSAGES[0])) == lettered(MESSAGES[0])


@pytest.mark.parametrize("question", [
    *(DecisionQuestion("csqa", "0", "?", gold, FIVE) for gold in LETTERS),
    *(lettered(message) for message in MESSAGES),
])  # fmt: skip
def test_the_right_text_stays_right_in_every_order(question):
    k = len(question.choices)
    right = question.choices[question.options.index(question.gold)]
    golds = set()
    for by in range(k):
        moved = question.rotated(by)
        assert moved.choices[moved.options.index(moved.gold)] == right
        assert moved.choices[0] == question.choices[by]
        if k == 2:  # what the verdict means moves with it
            letter = moved.options[moved.choices.index("Unsafe")]
            assert f'{letter}. "Unsafe" - if it contains' in moved.prompt(reasoning=False)
        golds.add(moved.gold)
    assert golds == set(question.options)
    assert question.rotated(0) == question
    for by in (-1, k, 1.0, True):
        with pytest.raises(
            ValueError, match=f"by is {by}; expected a whole number from 0 to {k - 1}"
        ):
            question.rotated(by)


def test_verdicts_in_words_have_no_other_order():
    with pytest.raises(ValueError, match='xstest 1: .* no letters .* expected labels "letters"'):
        MESSAGES[0].rotated(0)


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


def test_verdicts_that_are_several_tokens_are_asked_for_by_letters():
    models = pytest.importorskip("tiny_models", reason="tokenizers need the extra `train`")
    merging = models.make_merging_tokenizer()
    with pytest.raises(
        OptionError, match=r'tokens; expected one \(labels "letters" asks for A or B'
    ):
        option_ids(merging, VERDICTS)
    assert len(option_ids(merging, lettered(MESSAGES[0]).options)) == 2


class Words:
    """A tokenizer of whole words behind white space of two tokens, but for those told otherwise."""

    unk_token_id = 0

    def __init__(self, known, **otherwise):
        self.known, self.otherwise = known, otherwise

    def ids(self, text):
        spacing = next(s for s in sorted(SPACINGS, key=len)[::-1] if text.startswith(s))
        word = text.removeprefix(spacing)
        if spacing == SPACINGS[1] and word in self.otherwise:
            return self.otherwise[word]
        return [90, 91] + ([self.known.get(word, 0)] if word else [])

    def decode(self, ids, clean_up_tokenization_spaces=True):
        return f"{ids}"

    def __call__(self, texts, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [self.ids(text) for text in texts]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (Words({"yes": 5}), "option 'no' is not in the vocabulary"),
        (Words({"yes": 5, "no": 5}), "options 'yes' and 'no' are the same token"),
        (Words({"yes": 5, "no": 6}, no=[90, 99]), r"option 'no' is merged with .* '</think>\\n\\n'"),
        (Words({"yes": 5, "no": 6}, no=[90, 91, 7]), r"'no' is another token behind '</think>\\n\\n'"),
        (Words({"yes": 5, "no": 6}, no=[90, 91, 5]), "option 'no' is another token behind"),
        (Words({"yes": 5, "no": 6}, no=[90, 91, 6, 6]), "option 'no' is 2 tokens; expected one"),
    ],
)  # fmt: skip
def test_an_option_that_is_not_one_token_behind_all_white_space_is_named(words, message):
    with pytest.raises(OptionError, match=message):
        option_ids(words, ["yes", "no"])


def test_options_are_in_their_order():
    assert option_ids(Words({"yes": 5, "no": 6}), ["no", "yes"]) == [6, 5]


def test_a_tokenizer_that_merges_line_breaks_has_the_same_options_behind_all_of_them():
    models = pytest.importorskip("tiny_models", reason="tokenizers need the extra `train`")
    merging = models.make_merging_tokenizer()
    known = option_ids(merging, LETTERS)
    merged = set()
    for gap in models.GAPS:
        ids = merging(f"<think>\nso B{gap}D<end>")["input_ids"]
        tokens = [merging.decode([i]) for i in ids]
        merged |= {token for token in tokens if token[:1] == ">"}
        place = decision_position(tokens, ids, known, [merging.eos_token_id])
        assert place == len(ids) - 2
        assert ids[place] == known[3]
        assert decision_position(tokens[:-2], ids[:-2], known, [ids[-3]]) is None
    assert merged == {">", ">\n", ">\n\n"}
    # behind a mere space it is another token, and no decision
    ids = merging("<think>\nso B</think> D<end>")["input_ids"]
    assert decision_position([merging.decode([i]) for i in ids], ids, known, ids[-1:]) is None


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


def test_importing_decisions_does_not_import_torch():
    code = "import sys, corea.decisions.tokens, corea.decisions.loss, corea.tasks.decision_world; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
