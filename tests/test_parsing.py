import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corea.tasks.parsing import (
    ParsedCompletion,
    answer_opening,
    confidence_opening,
    parse_completion,
    parse_decision,
)

LETTERS = ["A", "B", "C", "D", "E"]
TOKENS = st.sampled_from([
    r"\boxed{", r"\boxed", r"\confidence{", "{", "}", "\\", r"\{", r"\}", " ", "\n", "0.5", "1e999",
    "nan", "95%", "<think>", "</think>", "A", "٣", "\ud800", "\0",
])  # fmt: skip
TEXTS = st.lists(TOKENS | st.text(max_size=5), max_size=40).map("".join)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{4}, then \boxed{5}", "5"),  # rule 1: the last one
        (r"\boxed{4} or \boxed{5", None),  # rule 1: no falling back
        (r"\boxed{4} or \boxed{}", None),
        (r"\boxed{4} so \boxed 5", "4"),  # rule 2: no command without its brace
        (r"\boxed {5}", "5"),
        ("\\boxed\n{5}", "5"),
        (r"\\boxed{5}", "5"),
        (r"\fbox{5}", None),
        (r"\Boxed{5}", None),
        (r"boxed{5}", None),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),  # rule 3
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{\{}", r"\{"),
        (r"\boxed{a\\} b}", r"a\\"),
        (r"\boxed{\\\}}", r"\\\}"),
        (r"\boxed{5}}", "5"),
        (r"\boxed{{5}", None),
        ("\\boxed{5\\", None),
        (r"\boxed{\boxed{5}}", "5"),  # rule 4
        (r"\boxed{x = \boxed{5} + 1}", "5"),
        ("\\boxed{ 5\n}", "5"),  # rule 5
        ("\\boxed{ \t\n}", None),
        ("\\boxed{1\n2}", "1\n2"),
        ("\\boxed{" + "9" * 100_000 + "}", "9" * 100_000),
        ("\\boxed{\ud800}", "\ud800"),
        (r"\boxed{<script>alert(1)</script>}", "<script>alert(1)</script>"),
        ("", None),
        ("The answer is 5.", None),
    ],
)
def test_an_answer_is_the_last_box(text, answer):
    assert parse_completion(text).answer == answer


CONFIDENCES = {  # rule 7
    "0.85": 0.85, " 0.85 ": 0.85, ".85": 0.85, "1.": 1, "1": 1, "0": 0, "0.0": 0, "1.0": 1,
    "+0.5": 0.5, "8.5e-1": 0.85, "85E-2": 0.85, "0.8500": 0.85, "0." + "3" * 30: 1 / 3, "1e-999": 0,
}  # fmt: skip
NO_CONFIDENCES = [
    "-0.5", "-0", "+-0.5", "95%", r"95\%", "0.95%", "1/2", r"\frac{1}{2}", "0,85", "0.8.5", "0.85.",
    "0 .85", "0_1", "0x1", ".", "e-1", "0.5e", "high", "nan", "NaN", "inf", "Infinity", "True",
    "None", "{0.5}", "$0.5$", r"\text{0.5}", "0.5 (sure)", "0.5-0.7", "０.８５", "٠.٨", "²", "½",
    "0.5\u200b", "0." + "3" * 31, "", " ",
    "1.0000001", "95", "2", "1e999", "9" * 32, "1e" + "9" * 30,  # rule 8
]  # fmt: skip


@pytest.mark.parametrize(
    ("stated", "confidence"), [*CONFIDENCES.items(), *((text, None) for text in NO_CONFIDENCES)]
)
def test_a_confidence_is_a_decimal_number_in_range_or_missing(stated, confidence):
    parsed = parse_completion(rf"\boxed{{5}} \confidence{{{stated}}}")
    assert parsed.answer == "5"
    assert parsed.confidence == (None if confidence is None else pytest.approx(confidence, abs=0))
    if confidence == 0:  # and not minus zero
        assert math.copysign(1, parsed.confidence) == 1


@pytest.mark.parametrize(
    ("text", "answer", "confidence"),
    [
        (r"\boxed{5} \confidence{0.2} \confidence{0.7}", "5", 0.7),  # rule 1
        (r"\boxed{5} \confidence{0.7} \confidence{95%}", "5", None),
        (r"\boxed{5} \confidence{0.7} \confidence{0.8", "5", None),
        (r"\boxed{5} \confidence{0.7} \confidence 0.8", "5", 0.7),  # rule 2
        (r"\boxed{5} \confidence {0.7}", "5", 0.7),
        (r"\boxed{5} \Confidence{0.7}", "5", None),
        (r"\boxed{5} confidence: 0.7", "5", None),
        (r"\boxed{5}", "5", None),
        (r"\confidence{0.7} \boxed{5}", "5", None),  # rule 6
        (r"\boxed{4} \confidence{0.2}. Wait. \boxed{5}", "5", None),
        (r"\boxed{4} \confidence{0.2}. Wait. \boxed{5} \confidence{0.9}", "5", 0.9),
        (r"<think>\confidence{0.2}</think> \boxed{5} \confidence{0.9}", "5", 0.9),
        (r"<think>\boxed{4} \confidence{0.2}</think> \boxed{5}", "5", None),
        (r"\boxed{5 \confidence{0.7}}", r"5 \confidence{0.7}", None),
        (r"\boxed{5 \confidence{0.7}", None, None),
        (r"\boxed{4} \confidence{0.7} \boxed{", None, None),
        (r"\boxed{} \confidence{0.1}", None, 0.1),
        (r"I do not know. \confidence{0.1}", None, 0.1),
        (r"\boxed{5}\confidence{0.7}", "5", 0.7),
        ("", None, None),
    ],
)
def test_the_confidence_that_counts_is_the_last_after_the_last_box(text, answer, confidence):
    assert parse_completion(text) == ParsedCompletion(answer, confidence)


STATED = r"So \boxed{18} \confidence{0.9}"
OPENERS = [
    "Question:", "question: ", "QUESTION 2:", "Question 2", "Question 2.", "### Question", "Q:", "Q3.",
    "**Question:**", "Problem:", "## Problem 7", "> Exercise 3:", "User:", "Human:", "### Human:",
    "  Question:", "### Instruction:", "<|im_start|>user", "<|endoftext|>", "<|start_header_id|>",
    "[INST]",
]  # fmt: skip
GOES_ON = " Find x.\nAnswer: \\boxed{42} \\confidence{0.2}"


@pytest.mark.parametrize("opener", [o + ":" * (o == "### Question") for o in OPENERS])
@pytest.mark.parametrize("between", ["\n", "\n\n", " Done.\n"])
def test_a_new_question_after_an_answer_is_not_read(opener, between):
    text = STATED + between + opener + GOES_ON
    assert parse_completion(text) == ParsedCompletion("18", 0.9)
    assert answer_opening(text) == r"So \boxed{"
    assert confidence_opening(text) == r"So \boxed{18} \confidence{"


@pytest.mark.parametrize(
    ("text", "answer", "confidence"),
    [
        # corrected within the reasoning: the last counts
        (r"\boxed{4} \confidence{0.3} Wait, that is \boxed{5} \confidence{0.9}", "5", 0.9),
        ("\\boxed{4} \\confidence{0.3}\n\nWait.\n\\boxed{5} \\confidence{0.9}", "5", 0.9),
        ("\\boxed{4} \\confidence{0.3}\n### Check\n\\boxed{5} \\confidence{0.9}", "5", 0.9),
        (r"\boxed{4} \confidence{0.3} The question: is it? \boxed{5} \confidence{0.9}", "5", 0.9),
        ("\\boxed{4} \\confidence{0.3}\nquestionable \\boxed{5} \\confidence{0.9}", "5", 0.9),
        ("\\boxed{4} \\confidence{0.3}\nUser error. \\boxed{5} \\confidence{0.9}", "5", 0.9),
        ("\\boxed{4} \\confidence{0.3} no, \\boxed{5} \\confidence{0.9}\nQ: \\boxed{6}", "5", 0.9),
        # nothing complete before the new question
        ("Question: 9+9?\n\\boxed{18} \\confidence{0.9}", "18", 0.9),
        ("\\boxed{4}\nQuestion: \\boxed{5} \\confidence{0.9}", "5", 0.9),
        ("\\confidence{0.3}\nQuestion: \\boxed{5} \\confidence{0.9}", "5", 0.9),
        ("\\boxed{4 \\confidence{0.3}}\nQuestion: \\boxed{5} \\confidence{0.9}", "5", 0.9),
        ("\\boxed{4} \\confidence{0.3\nQuestion: 5} x", "4", None),
        # complete in form, though neither can be read
        ("\\boxed{} \\confidence{95%}\nQuestion: \\boxed{5} \\confidence{0.9}", None, None),
        ("\\boxed{4} \\confidence{95%}\nQuestion: \\boxed{5} \\confidence{0.9}", "4", None),
        # braces around and before it
        ("{ \\boxed{\\{1\\}} \\confidence{0.3}\nQuestion: \\boxed{5}", r"\{1\}", 0.3),
        ("\\\\boxed {1} \\\\confidence\n{0.3}\nQ: \\boxed{5}", "1", 0.3),
        ("\\boxed{\\frac{1}{2}} } \\confidence{0.3}\nQ: \\boxed{5}", r"\frac{1}{2}", 0.3),
    ],
)
def test_only_a_new_question_after_a_complete_answer_ends_the_text(text, answer, confidence):
    assert parse_completion(text) == ParsedCompletion(answer, confidence)


@given(st.data())
def test_all_readers_agree_on_where_the_text_ends(data):
    text = data.draw(TEXTS) + STATED
    more = f"{data.draw(st.sampled_from(OPENERS))} {data.draw(TEXTS)}"
    parsed = parse_completion(text)
    assert parsed == ParsedCompletion("18", 0.9)
    if not more.startswith("### Question"):
        assert parse_completion(f"{text}\n{more}") == parsed
        assert answer_opening(f"{text}\n{more}") == answer_opening(text)
        assert confidence_opening(f"{text}\n{more}") == confidence_opening(text)


DECIDED = [
    *("<think>\nB is wrong.\n</think>\nA", "<think>\n</think>\nA", "<think></think>A"),
    "<think>\n</think>\r\n\r\n  A \r\n",
    "<think>one</think> B <think>two</think>\nA",  # rule 9
    *("B\n<think>\n</think>\nA", "Sure!\n<think>\n</think>\nA"),
    "<think>I write <think> here</think>\nA",
    *("I reason.\n</think>\nA", "A", "\n A\n"),  # rule 11
]
UNDECIDED = [
    *("<think>\nA", "<think>\n</think>\nA\n<think>", "<think>"),  # rule 10
    *("The answer is A", "", "<think>\n</think>"),
    *("<THINK>\n</THINK>\nA", "<think>\n</Think>\nA"),  # rule 13
]
NO_OPTIONS = [  # rule 12, and 13; the last is a Cyrillic capital
    "The answer is A", "A\nB", "A A", "A.", "(A)", "**A**", "'A'", "<A>", "A<|im_end|>",
    "A\nBecause B is wrong.", "F", "AB", "a", "А",
]  # fmt: skip


def test_a_decision_is_one_option_alone_after_the_reasoning():
    assert {text: parse_decision(text, LETTERS) for text in DECIDED} == dict.fromkeys(DECIDED, "A")
    none = [*UNDECIDED, *(f"<think>\n</think>\n{text}" for text in NO_OPTIONS)]
    assert {text: parse_decision(text, LETTERS) for text in none} == dict.fromkeys(none)


def test_options_of_several_characters_are_read_whole():
    options = ("Safe", "Unsafe")
    assert parse_decision("Unsafe\n", options) == "Unsafe"
    assert parse_decision("unsafe", options) is None
    assert parse_decision("Safe Unsafe", options) is None
    assert parse_decision("not safe", ["not safe", "safe"]) == "not safe"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], ValueError, "one or more"),
        (["A", "A"], ValueError, "all different"),
        (["A", ""], ValueError, r"options\[1\] is ''"),
        (["A ", "B"], ValueError, r"options\[0\] is 'A '"),
        (["A", 1], TypeError, r"options\[1\] is 1 \(int\)"),
    ],
)
def test_options_that_could_never_be_read_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        parse_decision("A", options)


@pytest.mark.parametrize("text", [None, 5, float("nan"), b"A", ["A"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match="text is .* expected a string"):
        parse_completion(text)
    with pytest.raises(TypeError, match="text is .* expected a string"):
        parse_decision(text, LETTERS)


@given(TEXTS)
def test_nothing_raises_and_what_is_read_stands_in_the_text(text):
    parsed = parse_completion(text)
    assert parsed.answer is None or (parsed.answer and parsed.answer in text)
    assert parsed.answer is None or parsed.answer == parsed.answer.strip()
    assert parsed.confidence is None or 0 <= parsed.confidence <= 1
    assert parse_decision(text, LETTERS) in [None, *LETTERS]


@given(TEXTS, st.sampled_from(["5", r"\frac{1}{2}", r"\{1\}", "{a}b"]), st.floats(0, 1))
def test_what_is_written_in_the_format_is_read_back(reasoning, answer, confidence):
    text = rf"{reasoning} so \boxed{{{answer}}} \confidence{{{confidence!r}}}"
    assert parse_completion(text) == ParsedCompletion(answer, confidence)
    assert parse_decision(f"{reasoning}</think>\nC", LETTERS) == "C"


UNITS = [
    r"\boxed{", r"\boxed", r"\boxed ", r"\boxed{5}", r"\confidence{", r"\confidence{0.5}",
    r"\boxed{\confidence{", "{", "}", "\\", r"\{", " ", "0", "<think>", "</think>",
    "<think></think>", "<", "<|", "<|a|>", r"\\boxed", "\nQ 1", "\n ", r"\boxed{5}\confidence{0.5}",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "frame", ["%s", r"\boxed{%s}\confidence{%s}", r"\boxed{5}\confidence{%s", "%s\nQuestion:"]
)
def test_time_is_linear(unit, frame):
    def seconds(length):
        text = frame.replace("%s", unit * (length // len(unit)))
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            parse_completion(text)
            parse_decision(text, LETTERS)
            best = min(best, time.perf_counter() - start)
        return best

    # linear is 10 times, quadratic 100; what is faster than a millisecond is within the noise
    assert seconds(60_000) < 40 * max(seconds(6_000), 1e-3)
