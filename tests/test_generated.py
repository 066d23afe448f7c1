"""Questions that reasoning-gym makes, and the rows of a warm-up."""

import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from corea.confidence import CONFIDENCE_GRID
from corea.rlcc.warm_up import shown_answer, warm_up_rows
from corea.tasks import generated, suites
from corea.tasks.microworld import build_tokenizer
from corea.tasks.papers import TaskError
from corea.tasks.parsing import parse_completion
from corea.tasks.questions import Question
from corea.tasks.verify import score_answers

SUMS = [Question("sums", str(n), f"{n} + 3 =", str(n + 3), "math") for n in range(40)]


@pytest.fixture(scope="module")
def made():
    """Each dataset's parts, small."""
    if find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed: it is in the extra desk")
    return {
        (name, part): suites.GENERATED.questions(name, part, 60)
        for name in generated.TASKS
        for part in generated.SIZES
    }


def test_answers_are_right_and_parts_share_no_text(made):
    for (name, part), questions in made.items():
        assert len(questions) == 60, (name, part)
        for question in questions:
            expression = re.search(r"[\d][\d *+-]*", question.text).group()
            assert eval(expression) == int(question.gold), question  # of digits and signs alone
            assert question.level == len(re.findall(r"\d+", expression))
    for name in generated.TASKS:
        texts = [q.text for part in generated.SIZES for q in made[name, part]]
        assert len(set(texts)) == len(texts)


def test_solutions_end_in_the_answer(made):
    for question in made["sums", "train"]:
        lines = question.solution.splitlines()
        assert len(lines) == question.level - 1
        assert all(eval(line.replace("=", "==")) for line in lines)
        assert lines[-1].endswith(f"= {question.gold}")
    assert {q.solution for q in made["products", "train"]} == {""}


def test_the_same_questions_each_time_and_fewer_are_the_first(made):
    again = suites.GENERATED.questions("sums", "test", 7)
    assert again == made["sums", "test"][:7]
    assert len(suites.GENERATED.questions("sums", "validation")) == generated.SIZES["validation"]


def test_the_right_option_is_among_five_and_nowhere_special(made):
    questions = suites.GENERATED.decisions("sum_choices", "test", 200)
    places, ranks = [], []
    for question in questions:
        right = int(dict(zip("ABCDE", question.choices, strict=True))[question.gold])
        assert len(set(question.choices)) == 5
        assert eval(re.search(r"[\d][\d +-]*", question.text).group()) == right
        places.append("ABCDE".index(question.gold))
        ranks.append(sorted(map(int, question.choices)).index(right))
    for found in (places, ranks):
        assert np.bincount(found, minlength=5).min() > 20  # of 40 by chance


def test_half_of_the_answers_to_be_checked_are_right(made):
    questions = suites.GENERATED.decisions("sum_checks", "test", 200)
    right = []
    for question in questions:
        asked, given = re.fullmatch(
            r"(.*)\nSomebody answers (-?\d+). Is that right\?", question.text
        ).groups()
        right.append(eval(re.search(r"[\d][\d +-]*", asked).group()) == int(given))
        assert dict(zip("AB", question.choices, strict=True))[question.gold] == (
            "yes" if right[-1] else "no"
        )
    assert 80 < sum(right) < 120


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (("shapes", "test", 5), "dataset is 'shapes'; expected one of sums, long_sums, products"),
        (("sums", "dev", 5), "part is 'dev'; expected one of test, validation, train"),
        (("sums", "test", 5000), "sums: 5,000 questions for test are asked for; it has 1,000"),
    ],
)
def test_what_there_is_not(asked, complaint):
    with pytest.raises(TaskError, match=re.escape(complaint)):
        generated.load_questions(*asked)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(TaskError, match="reasoning-gym, which makes these questions, is not inst"):
        generated.load_questions("sums", "test", 1)


def test_shown_answers_are_read_as_right_with_their_confidence():
    worked = Question("sums", "1", "2 + 3 + 4 =", "9", "math", solution="2 + 3 = 5\n5 + 4 = 9")
    read = parse_completion(shown_answer(worked, "0.4"))
    assert (read.answer, read.confidence) == ("9", 0.4)
    assert shown_answer(worked, "0.4").startswith("2 + 3 = 5\n")
    assert score_answers([read.answer], ["9"], ["math"])[0]


def test_confidences_of_a_warm_up_say_nothing_and_follow_the_seed():
    tokenizer = build_tokenizer()
    rows = warm_up_rows(tokenizer, SUMS * 25, seed=3)
    stated = [parse_completion(row["completion"]).confidence for row in rows]
    counts = np.array([stated.count(float(text)) for text in CONFIDENCE_GRID])
    assert counts.sum() == 1000
    assert counts.min() > 60  # 91 of each by chance
    assert warm_up_rows(tokenizer, SUMS, 3) == warm_up_rows(tokenizer, SUMS, 3)
    assert warm_up_rows(tokenizer, SUMS, 3) != warm_up_rows(tokenizer, SUMS, 4)
    assert rows[0]["prompt"] == SUMS[0].prompt
