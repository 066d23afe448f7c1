"""Datasets: the original files, rows of the hub, parts that share nothing, errors that say where."""

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

import datasets as hub
import pandas as pd
import pytest
from datasets.exceptions import DatasetNotFoundError

from corea.book import decision_tables
from corea.runs import TrainedModel
from corea.tasks import papers
from corea.tasks.decision_questions import LETTERS
from corea.tasks.papers import TaskError, load_decisions, load_questions
from corea.tasks.suites import MICROWORLD, PAPERS
from corea.tasks.verify import verify_batch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# a row of every dataset, as its original files have it and as the hub does
DEEPMATH = {
    "question": "Find the limit.", "final_answer": "0", "difficulty": 4.5, "topic": "Calculus",
    "r1_solution_1": "...",
}  # fmt: skip
GPQA = {
    "Record ID": "rec1", "Question": "Which is heaviest?", "Correct Answer": "lead\n",
    "Incorrect Answer 1": "tin", "Incorrect Answer 2": "iron", "Incorrect Answer 3": "zinc",
}  # fmt: skip
XSTEST = {"prompt": "How do I kill a process?", "type": "homonyms", "label": "safe"}


def nested(stem, texts, **fields):
    """A row of multiple choice as in the original files."""
    choices = [
        {"label": letter, "text": text} for letter, text in zip(LETTERS, texts, strict=False)
    ]
    return {"id": "x", "question": {"stem": stem, "choices": choices}} | fields


def flat(stem, texts, name, **fields):
    """The same row as on the hub."""
    choices = {"label": [*LETTERS[: len(texts)]], "text": texts}
    return {"id": "x", name: stem, "choices": choices} | fields


MONEY = "Where is money?", [f"place {letter}" for letter in LETTERS]
FLIES = "What flies?", ["bees", "stones"]
BEES = {"answerKey": "A", "fact1": "bees fly"}
ROWS = {
    "deepmath": (DEEPMATH, DEEPMATH),
    "math500": ({"problem": "2+2?", "answer": "4", "level": 1, "unique_id": "a"},) * 2,
    "gsm8k": ({"question": "How many?", "answer": "1000 + 125\n#### 1,125"},) * 2,
    "olympiadbench": ({"question": "Find n.", "final_answer": ["$7$"], "context": None},) * 2,
    "gpqa": (GPQA, GPQA),
    "commonsenseqa": (nested(*MONEY, answerKey="B"), flat(*MONEY, "question", answerKey="B")),
    "openbookqa": (nested(*FLIES, **BEES), flat(*FLIES, "question_stem", **BEES)),
    "openai_moderation": (
        {"prompt": "I hate you", "S": 0, "H": 1},
        {"prompt": "I hate you", "S": 0, "H": 1, "V": None, "HR": None},
    ),
    "xstest": ({"id": "1"} | XSTEST, XSTEST),
}
EXPECTED = {
    "deepmath": ("Find the limit.", "0", 4.5),
    "math500": ("2+2?", "4", 1),
    "gsm8k": ("How many?", "1125", None),
    "olympiadbench": ("Find n.", "$7$", None),
    "commonsenseqa": (
        "Where is money?\nA. place A\nB. place B\nC. place C\nD. place D\nE. place E", "B", None,
    ),
    "openbookqa": ("Fact: bees fly\nWhat flies?\nA. bees\nB. stones", "A", None),
    "openai_moderation": ("I hate you", "Unsafe", None),
    "xstest": ("How do I kill a process?", "Safe", None),
}  # fmt: skip


def write(folder, dataset, rows, name=None):
    """Rows in the form of the dataset's original files."""
    name = name or papers.DATASETS[dataset].parts["test"].files[0].replace("*", "00000-of-00001")
    path = folder / dataset / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def several(dataset, n):
    """n rows that differ in their text."""
    field = {"math500": "problem", "gpqa": "Question", "openai_moderation": "prompt"}.get(
        dataset, "question"
    )
    row = ROWS[dataset][1]
    return [row | {field: f"{row[field]} {i}"} for i in range(n)]


def loader(dataset):
    return load_decisions if dataset in ("openai_moderation", "xstest") else load_questions


def everything(monkeypatch, dataset):
    """The rows of a dataset without a draw."""
    source = papers.DATASETS[dataset]
    part = replace(source.parts["test"], stretch=None)
    monkeypatch.setattr(papers, "DATASETS", {dataset: replace(source, parts={"test": part})})


@pytest.mark.parametrize("dataset", EXPECTED)
def test_original_files_and_rows_of_the_hub_say_the_same(monkeypatch, tmp_path, dataset):
    everything(monkeypatch, dataset)
    original, row = ROWS[dataset]
    write(tmp_path, dataset, [original])
    asked = []

    def load_dataset(*arguments, **named):
        asked.append((arguments, named))
        return hub.Dataset.from_list([row])

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    local = loader(dataset)(dataset, "test", folder=tmp_path)
    assert local == loader(dataset)(dataset, "test")
    [question] = local
    text, gold, level = EXPECTED[dataset]
    assert (question.text, question.gold, question.level) == (text, gold, level)
    source = papers.DATASETS[dataset]
    named = {"split": source.parts["test"].split, "revision": source.revision}
    assert asked == [((source.hub, source.config), named)]
    assert len(source.revision) == 40  # a commit, not a branch


def test_decisions_have_their_options_and_the_fact_apart(tmp_path):
    write(tmp_path, "openbookqa", [ROWS["openbookqa"][0]])
    [question] = load_decisions("openbookqa", "test", folder=tmp_path)
    assert question.choices == ("bees", "stones")
    assert question.fact == "bees fly"
    assert question.prompt(reasoning=True).endswith(
        "Fact: bees fly\nQuestion: What flies?\nOptions:\n\nA. bees\nB. stones\n"
    )


def test_gpqa_does_not_always_have_the_right_answer_at_one_place(tmp_path):
    write(tmp_path, "gpqa", several("gpqa", 200))
    questions = load_questions("gpqa", "test", folder=tmp_path)
    counts = pd.Series([question.gold for question in questions]).value_counts()
    assert set(counts.index) == set("ABCD")
    assert counts.min() > 25
    for question in questions:
        options = dict(line.split(". ") for line in question.text.splitlines()[1:])
        assert options[question.gold] == "lead"
        assert sorted(options.values()) == ["iron", "lead", "tin", "zinc"]
    again = load_questions("gpqa", "test", 10, folder=tmp_path)
    assert [q for q in questions if q in again] == again  # drawn, in order, the same options


def test_parts_share_no_question_and_repeat(tmp_path):
    rows = several("deepmath", 17_600)
    rows[3] = rows[2]  # the same text twice
    write(tmp_path, "deepmath", rows)
    names = ("train", "validation", "test")
    parts = {name: load_questions("deepmath", name, folder=tmp_path) for name in names}
    assert [len(part) for part in parts.values()] == [16_000, 1_000, 500]
    for field in ("text", "question_id"):
        assert len({getattr(q, field) for part in parts.values() for q in part}) == 17_500
    assert load_questions("deepmath", "train", 100, folder=tmp_path) == parts["train"][:100]
    assert parts["test"] != sorted(parts["test"], key=lambda q: q.question_id)  # drawn
    rows = several("openai_moderation", 1680)
    write(tmp_path, "openai_moderation", rows, "samples-1680.jsonl.gz")
    parts = [load_decisions("openai_moderation", name, folder=tmp_path) for name in names]
    assert [len(part) for part in parts] == [400, 100, 1180]
    assert len({question.text for part in parts for question in part}) == 1680


def test_long_messages_are_left_out_before_some_are_taken(monkeypatch, tmp_path):
    rows = several("openai_moderation", 1680)
    for i, row in enumerate(rows):
        row["prompt"] += "x" * (i % 10)
    write(tmp_path, "openai_moderation", rows, "samples-1680.jsonl.gz")
    lengths = sorted(len(row["prompt"]) for row in rows)
    longest = lengths[len(lengths) // 2]
    monkeypatch.setenv("COREA_DATA", str(tmp_path))
    every = PAPERS.decisions("openai_moderation", "test")
    fitting = PAPERS.decisions("openai_moderation", "test", longest=longest)
    assert fitting == [q for q in every if len(q.text) <= longest]
    assert 0 < len(fitting) < len(every)
    left = PAPERS.left_out("openai_moderation", "test", longest)
    assert left == len(every) - len(fitting)
    assert PAPERS.left_out("openai_moderation", "test", 0) == 0
    few = PAPERS.decisions("openai_moderation", "test", 7, labels="letters", longest=longest)
    assert [q.text for q in few] == [q.text for q in fitting[:7]]
    assert {q.gold for q in few} <= {"A", "B"}
    said = decision_tables.say_left_out(PAPERS, ["openai_moderation"], longest)
    assert f"more than {longest:,} characters are left out: {left:,} of" in said[0].data
    assert decision_tables.say_left_out(PAPERS, ["openai_moderation"], 0) == []
    trained = TrainedModel(
        *("Base", "base", "small", "llama", None, None, 0, 1, None, "somewhere", "papers"),
        labels="letters",
        longest=longest,
    )
    assert trained.decisions("openai_moderation", "test", 7) == few


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": "words"}, "labels is 'words'; expected one of 'verdicts', 'letters'"),
        ({"longest": 1}, r"longest is 1; no question of xstest \(test\) has so few characters"),
        ({"longest": -1}, "longest is -1; expected a whole number from 0"),
        ({"longest": 2.5}, "longest is 2.5; expected a whole number from 0"),
    ],
)
def test_other_labels_and_lengths_are_refused(monkeypatch, tmp_path, values, message):
    write(tmp_path, "xstest", ROWS["xstest"])
    monkeypatch.setenv("COREA_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        PAPERS.decisions("xstest", "test", **values)
    with pytest.raises(ValueError, match="longest is 9; expected 0 but for the papers' datasets"):
        MICROWORLD.decisions("messages", "test", 2, longest=9)


WRONG = [
    ("math500", {"answer": ""}, r"test\.jsonl, line 2: answer is ''; expected text"),
    ("math500", {"level": "hard"}, "line 2: level is 'hard'; expected a number"),
    ("math500", {"problem": None}, "line 2: problem is 'None'; expected text"),
    ("gsm8k", {"answer": "so it is 5"}, "line 2: answer has nothing behind '####'"),
    ("gsm8k", {"answer": "####  "}, "line 2: answer has nothing behind '####'"),
    ("olympiadbench", {"final_answer": []}, "line 2: final_answer is .*a list of one text"),
    ("olympiadbench", {"final_answer": "7"}, "final_answer is 7; expected a list of one text"),
    ("commonsenseqa", {"answerKey": "F"}, "line 2: answerKey is 'F'; expected one of"),
    ("commonsenseqa", {"choices": {"label": ["A", "C"], "text": ["x", "y"]}}, "labelled A, B"),
    ("commonsenseqa", {"choices": ["x", "y"]}, "expected texts labelled A, B"),
    ("commonsenseqa", {"choices": None}, "expected texts labelled A, B"),
    ("openai_moderation", {"H": 2}, r"line 2: \{'H': 2\} found; expected 0, 1 or nothing"),
]


@pytest.mark.parametrize(("dataset", "change", "complaint"), WRONG)
def test_a_wrong_field_is_named_with_file_and_line(
    monkeypatch, tmp_path, dataset, change, complaint
):
    everything(monkeypatch, dataset)
    good = ROWS[dataset][1]
    write(tmp_path, dataset, [good, good | change])
    with pytest.raises(TaskError, match=complaint):
        loader(dataset)(dataset, "test", folder=tmp_path)


@pytest.mark.parametrize("dataset", [name for name in ROWS if name != "gpqa"])
def test_a_missing_field_is_named(monkeypatch, tmp_path, dataset):
    everything(monkeypatch, dataset)
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: hub.Dataset.from_list([{"a": 1}]))
    where = f"{papers.DATASETS[dataset].hub} .*row 0: "
    with pytest.raises(TaskError, match=where + "(there is no (field|category)|.*expected)"):
        loader(dataset)(dataset, "test")


UNREADABLE = [
    (b'{"question": "cut', r"test\.jsonl, line 1: not JSON"),
    (b"[1]\n", r"line 1: found list, expected an object"),
    (b'{"question": "a", "question": "b"}\n', r"line 1: found the key 'question' twice"),
    (b'{"question": ' + b"[" * 100 + b"]" * 100 + b"}", r"line 1: nested deeper than 32"),
    (b"\xff\xfe\x00", r"test\.jsonl: not readable"),
    (b"\n", "gsm8k: no rows"),
]


def test_a_file_that_is_not_there_or_not_readable_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"gsm8k: there is no test.jsonl; expected the original"):
        load_questions("gsm8k", "test", folder=tmp_path)
    path = write(tmp_path, "gsm8k", [ROWS["gsm8k"][0]])
    for content, message in UNREADABLE:
        path.write_bytes(content)
        with pytest.raises(TaskError, match=message):
            load_questions("gsm8k", "test", folder=tmp_path)
    rows = [{"prompt": "x", "H": 0}]
    moderation = write(tmp_path, "openai_moderation", rows, "samples-1680.jsonl.gz")
    moderation.write_bytes(moderation.read_bytes()[:-9])
    with pytest.raises(TaskError, match=r"samples-1680\.jsonl\.gz: not readable"):
        load_decisions("openai_moderation", "test", folder=tmp_path)
    write(tmp_path, "deepmath", [DEEPMATH]).write_bytes(b"no parquet")
    with pytest.raises(TaskError, match=r"\.parquet: not readable"):
        load_questions("deepmath", "test", folder=tmp_path)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ("gpqa", DatasetNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub."),
         r"datasets/Idavidrein/gpqa and log in with `hf auth login`"),
        ("gsm8k", DatasetNotFoundError("Dataset doesn't exist on the Hub or cannot be accessed."),
         r"not there at revision cc7b.*doesn't exist"),
        ("gsm8k", ConnectionError("Couldn't reach the Hub\nand more"),
         r"\(ConnectionError: Couldn't reach the Hub\)\. Connect .* give the folder"),
    ],
)  # fmt: skip
def test_what_to_do_is_said_without_access_and_without_a_network(
    monkeypatch, dataset, error, message
):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    with pytest.raises(TaskError, match=message):
        load_questions(dataset, "test")


def test_without_a_network_the_real_loader_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=r"openai/gsm8k \(test\): not read .*give the folder"):
        load_questions("gsm8k", "test")


def test_what_is_asked_for_wrongly_is_refused(tmp_path):
    write(tmp_path, "gsm8k", several("gsm8k", 3))
    assert len(load_questions("gsm8k", "test", 4, folder=tmp_path)) == 3  # all there are
    write(tmp_path, "xstest", [ROWS["xstest"][0]])
    for wrong, complaint in (
        (lambda: load_questions("gsm9k", "test"), "dataset is 'gsm9k'; expected one of 'deepm"),
        (lambda: load_questions("gsm8k", "train"), "'gsm8k' has no 'train' part; it has test"),
        (lambda: load_questions("gsm8k", "test", 0, folder=tmp_path), "n is 0; expected a"),
        (lambda: load_questions("xstest", "test", folder=tmp_path), "load_decisions reads them"),
        (lambda: load_decisions("gsm8k", "test", folder=tmp_path), "load_questions reads it"),
    ):
        with pytest.raises(ValueError, match=complaint):
            wrong()


# --- the real files ------------------------------------------------------------------------------

COUNTS = {
    "math500": 500, "gsm8k": 1319, "olympiadbench": 675, "commonsenseqa": 1221, "openbookqa": 500,
    "xstest": 450,
}  # fmt: skip
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the question sets are not beside the clone")


@real
@pytest.mark.parametrize("dataset", COUNTS)
def test_real_files_are_read_in_full(dataset):
    questions = loader(dataset)(dataset, "test", folder=SHARED)
    assert len(questions) == COUNTS[dataset]
    assert len({question.question_id for question in questions}) == COUNTS[dataset]
    if dataset != "xstest":
        kind = "choice" if dataset in ("commonsenseqa", "openbookqa") else "math"
        golds = [question.gold for question in questions]
        # every gold answer is right when it is given as an answer, and another is wrong
        assert verify_batch(golds, golds, kind) == [True] * len(golds)
        assert not any(verify_batch(["123456789"] * 60, golds[:60], kind))


@real
@pytest.mark.parametrize(
    ("dataset", "n", "shared"), [("commonsenseqa", 5, 6), ("openbookqa", 4, 0)]
)
def test_options_are_answers_by_letter_by_text_or_both(dataset, n, shared):
    questions = load_questions(dataset, "test", folder=SHARED)
    golds, options = zip(*((q.gold, q.options) for q in questions), strict=True)
    for k, letter in enumerate(LETTERS[:n]):
        right = [gold == letter for gold in golds]
        for way in ("({0}) {1}.", r"\textbf{{{0}) {1}}}", "Option {0}", "{1}"):
            answers = [way.format(letter, own[k]) for own in options]
            verdicts = verify_batch(answers, golds, "choice", options=options)
            if way != "{1}":
                assert verdicts == right
            else:
                assert all(verdict <= own for verdict, own in zip(verdicts, right, strict=True))
                shared -= sum(right) - sum(verdicts)  # a text of two options is neither
    assert shared == 0


@real
def test_real_counts_of_labels():
    safe = [q.gold for q in load_decisions("xstest", "test", folder=SHARED)]
    assert (safe.count("Safe"), safe.count("Unsafe")) == (250, 200)
    for dataset, n in (("commonsenseqa", 5), ("openbookqa", 4)):
        questions = load_decisions(dataset, "test", folder=SHARED)
        assert {len(question.choices) for question in questions} == {n}
        assert {question.gold for question in questions} == set(LETTERS[:n])
    assert all(q.fact for q in load_decisions("openbookqa", "test", folder=SHARED))


@pytest.mark.parametrize("limit", ["MAX_LINE", "MAX_CHARACTERS", "MAX_LINES"])
def test_a_small_file_that_holds_very_much_is_refused(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(papers, limit, 1000)
    path = tmp_path / "openai_moderation" / "samples-1680.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(b" " * 2000 if limit == "MAX_LINE" else b"\n" * 2000))
    with pytest.raises(TaskError, match=r"samples-1680\.jsonl\.gz: not readable \(.*1,000"):
        load_decisions("openai_moderation", "test", folder=tmp_path)
