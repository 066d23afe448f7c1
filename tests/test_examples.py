"""Solved examples before a question."""

import pytest

from corea.confidence import CONFIDENCE_GRID
from corea.tasks import microworld, suites
from corea.tasks.examples import with_examples
from corea.tasks.parsing import parse_completion
from corea.tasks.questions import INSTRUCTION, Question

ASKED = [Question("sums", f"t{n}", f"{n}+1?", str(n + 1), "math", 2.0) for n in range(3)]
SHOWN = [Question("sums", f"s{n}", f"{n}+9?", str(n + 9), "math") for n in range(40)]
LETTERS = Question(
    "letters", "l", "Which?\nA. this\nB. that", "B", "choice", None, ("this", "that")
)


def parts(question):
    """What stands before the question, one text an example, and the question."""
    *before, asked = question.prompt.split("Question: ")[1:]
    return before, asked


@pytest.mark.parametrize("n", [1, 2, 4])
def test_examples_stand_solved_before_the_question_and_its_instruction(n):
    for shown, question in zip(
        with_examples(ASKED, [*SHOWN[: n - 1], LETTERS], seed=3), ASKED, strict=True
    ):
        before, asked = parts(shown)
        assert asked == f"{question.text}\n{INSTRUCTION}"
        assert INSTRUCTION not in "".join(before)
        for text, example in zip(before, [*SHOWN[: n - 1], LETTERS], strict=True):
            assert text.startswith(f"{example.text}\nAnswer: ")
            found = parse_completion(text)
            assert found.answer == example.gold
            assert f"{found.confidence:.1f}" in CONFIDENCE_GRID


def test_all_else_of_a_question_stays():
    (shown,) = with_examples([LETTERS], SHOWN[:2], seed=0)
    for name in ("dataset", "question_id", "gold", "kind", "level", "options"):
        assert getattr(shown, name) == getattr(LETTERS, name)


def test_without_examples_nothing_changes():
    assert with_examples(ASKED, [], seed=0) == ASKED


def stated(seed):
    (shown,) = with_examples(ASKED[:1], SHOWN, seed)
    return [parse_completion(text).confidence for text in parts(shown)[0]]


def test_confidences_are_drawn_from_the_whole_grid_by_the_seed():
    assert stated(1) == stated(1) != stated(2)
    many = [confidence for seed in range(25) for confidence in stated(seed)]
    counts = [many.count(float(text)) for text in CONFIDENCE_GRID]
    assert min(counts) > 60  # 91 are expected of 1,000; the standard deviation is 9
    assert sum(counts) == 1000


def test_a_question_among_the_examples_is_refused():
    match = "^1 questions, the first 't2', are among the solved examples; expected examples of an"
    with pytest.raises(ValueError, match=match):
        with_examples(ASKED, [*SHOWN[:1], ASKED[2]], seed=0)


def test_another_question_of_the_model_itself_ends_its_answer():
    text = r"\boxed{3} \confidence{0.4}" + "\n\nQuestion: 5+5?\nAnswer: " + r"\boxed{10}"
    assert parse_completion(text).answer == "3"


def test_training_questions_of_the_world_are_examples_of_its_tests():
    world = suites.MICROWORLD
    examples = world.questions(world.domain, "train", 4)
    shown = with_examples(world.tests(2), examples, seed=0)
    tokenizer = microworld.build_tokenizer()
    for question in shown:
        assert tokenizer.decode(tokenizer(question.prompt)["input_ids"]) == question.prompt
        assert [text.partition("\n")[0] for text in parts(question)[0]] == [
            e.text for e in examples
        ]
