import dataclasses
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from corea.engines.base import Rollout, Sampling
from corea.engines.evaluation import (
    EvaluationError,
    ask_in_parts,
    evaluate,
    read_pooled_states,
    read_samples,
)
from corea.store import seal
from corea.tasks.questions import Question


class Scripted:
    """An engine whose answers follow from the prompt and the number of the sample."""

    def __init__(self, fingerprint="a", delay=0.0):
        self.fingerprint = fingerprint
        self.delay = delay
        self.batch_size = 8
        self.parts_at_once = 1
        self.gives_expected_confidence = True
        self.asked = []
        self.failing = set()  # pairs of a number that is asked and a sample

    def generate(self, prompts, sampling, *, pooled_states=False, confidence_grid=(), samples=None):
        time.sleep(self.delay)
        self.asked += prompts
        samples = samples or [range(sampling.n_samples)] * len(prompts)
        return [
            [self.rollout(prompt, k, pooled_states, confidence_grid) for k in numbers]
            for prompt, numbers in zip(prompts, samples, strict=True)
        ]

    def rollout(self, prompt, k, pooled_states, confidence_grid):
        asked = int(prompt.split("+")[0])
        if (asked, k) in self.failing:
            return Rollout("", None, None, False, 0, error=f"HTTP 500 on {asked}, {k}")
        answer = asked + 1 + (asked % 3 == 0) + k
        stated = rf" \confidence{{0.{asked % 10}}}" if asked % 5 else ""
        return Rollout(
            completion=rf"It is \boxed{{{answer}}}.{stated}" if asked % 7 else "I do not know",
            token_ids=np.arange(asked % 4 + 1),
            logprobs=np.log(np.full(asked % 4 + 1, 0.5, np.float32)),
            finished=asked != 9,
            prompt_tokens=10 + asked,
            pooled_state=np.full(3, asked + k / 10, np.float32) if pooled_states else None,
            expected_confidence=0.25 if confidence_grid and stated else None,
            expected_mass=0.5 if confidence_grid and stated else None,
        )


def make_questions(n):
    kinds = ("choice", "math")
    return [Question("sums", f"q{i}", f"{i}+1", str(i + 1), kinds[i % 2], i % 3 or None) for i in range(n)]  # fmt: skip


QUESTIONS = make_questions(12)
SAMPLING = Sampling(0.6, 20, n_samples=2)


def run(directory, engine=None, questions=QUESTIONS, **changed):
    arguments = {"system": "SLM", "sampling": SAMPLING, "directory": directory, "part_size": 5}
    return evaluate(engine or Scripted(), questions, **arguments | changed)


# --- records ------------------------------------------------------------------------------------


def test_an_option_may_be_answered_by_its_text(tmp_path):
    asked = [Question("places", "0", "1+1", "B", "choice", options=("1", "2"))]
    assert run(tmp_path / "known", questions=asked).table["correct"].tolist() == [True, False]
    asked = [dataclasses.replace(asked[0], options=("2", "1"))]
    assert not run(tmp_path / "other", questions=asked).table["correct"].any()


def test_answers_become_records(tmp_path):
    records = run(tmp_path / "e")
    table = records.table
    assert len(table) == 24
    assert table["question_id"].tolist() == [f"q{i}" for i in range(12) for _ in range(2)]
    assert table["sample"].tolist() == [0, 1] * 12
    assert set(table["dataset"]) == {"sums"}
    assert set(table["system"]) == {"SLM"}
    first = table[table["sample"] == 0].reset_index(drop=True)
    right = [i % 3 != 0 and i % 7 != 0 for i in range(12)]
    assert first["correct"].tolist() == right
    assert not table.loc[table["sample"] == 1, "correct"].any()
    assert first["answer"].isna().tolist() == [i % 7 == 0 for i in range(12)]
    assert first["gold"].tolist() == [str(i + 1) for i in range(12)]
    stated = [i % 10 / 10 if i % 5 and i % 7 else np.nan for i in range(12)]
    np.testing.assert_allclose(first["confidence"], stated)
    assert first["prompt_tokens"].tolist() == [10 + i for i in range(12)]
    assert first["completion_tokens"].tolist() == [i % 4 + 1 for i in range(12)]
    np.testing.assert_allclose(first["average_probability"], 0.5)
    np.testing.assert_allclose(
        first["expected_confidence"], [0.25 if i % 5 else np.nan for i in range(12)]
    )
    assert records.notes == ("2 completion(s) were cut at 20 tokens",)


def test_answers_that_could_not_be_had_are_left_out_and_asked_again_alone(tmp_path):
    engine = Scripted()
    whole = run(tmp_path / "whole").table
    engine.failing = {(3, 0), (3, 1), (4, 1), (11, 0)}
    records = run(tmp_path / "e", engine)
    assert len(records.table) == 20
    gone = set(map(tuple, whole[["question_id", "sample"]].values)) - set(
        map(tuple, records.table[["question_id", "sample"]].values)
    )
    assert gone == {("q3", 0), ("q3", 1), ("q4", 1), ("q11", 0)}
    assert (
        "4 of 24 answer(s) could not be had, the first because of HTTP 500 on 3, 0; the same call "
        "again asks for them"
    ) in records.notes
    samples = read_samples(tmp_path / "e", failed=True)
    assert len(samples) == 24
    assert (samples["error"] != "").sum() == 4
    assert samples["question_id"].tolist() == whole["question_id"].tolist()

    engine.asked, engine.failing = [], {(11, 0)}
    assert len(run(tmp_path / "e", engine).table) == 23
    assert [prompt.split("+")[0] for prompt in engine.asked] == ["3", "4", "11"]
    engine.asked, engine.failing = [], set()
    again = run(tmp_path / "e", engine)
    assert [prompt.split("+")[0] for prompt in engine.asked] == ["11"]
    pd.testing.assert_frame_equal(again.table, whole)
    assert not any("could not be had" in note for note in again.notes)
    run(tmp_path / "e", engine)
    assert len(engine.asked) == 1


def test_no_answer_at_all_is_an_error(tmp_path):
    engine = Scripted()
    engine.failing = {(i, k) for i in range(12) for k in range(2)}
    with pytest.raises(EvaluationError, match="24 of 24 answer.s. could not be had, the first"):
        run(tmp_path, engine)


def test_parts_that_are_asked_at_once_give_the_same(tmp_path):
    class Slow(Scripted):
        at_once = most = 0

        def generate(self, *arguments, **named):
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            made = super().generate(*arguments, **named)
            self.at_once -= 1
            return made

    engine = Slow(delay=0.2)
    engine.parts_at_once = 3
    table = run(tmp_path / "e", engine, part_size=2).table
    pd.testing.assert_frame_equal(table, run(tmp_path / "one", part_size=2).table)
    assert engine.most == 3

    def fail(*_, **__):
        raise RuntimeError("gone")

    engine.generate = fail
    with pytest.raises(RuntimeError, match="gone"):
        run(tmp_path / "other", engine, part_size=2)


def test_a_part_fills_a_batch_of_the_engine(tmp_path):
    table = run(tmp_path, part_size=None).table  # 8 rows: 4 questions, 2 samples each
    assert len(list(tmp_path.glob("part-*"))) == 3
    assert len(table) == 24
    many = dataclasses.replace(SAMPLING, n_samples=9)
    run(tmp_path / "many", questions=QUESTIONS[:2], sampling=many, part_size=None)
    assert len(list((tmp_path / "many").glob("part-*"))) == 2


def test_samples_hold_the_texts(tmp_path):
    table = run(tmp_path / "e").table
    samples = read_samples(tmp_path / "e")
    shared = ["dataset", "question_id", "sample", "correct", "confidence", "average_probability"]
    pd.testing.assert_frame_equal(samples[shared], table[shared])
    assert samples.loc[2, "completion"] == r"It is \boxed{2}. \confidence{0.1}"
    assert samples.loc[2, "prompt"] == QUESTIONS[1].prompt
    assert samples["level"].tolist()[:6:2] == pytest.approx([np.nan, 1, 2], nan_ok=True)
    assert samples["kind"].tolist()[:4] == ["choice", "choice", "math", "math"]
    assert samples["finished"].tolist() == [i != 9 for i in range(12) for _ in range(2)]


class Changed(Scripted):
    """An engine all of whose rollouts are changed."""

    def __init__(self, **changes):
        super().__init__()
        self.changes = changes

    def rollout(self, *arguments):
        return dataclasses.replace(super().rollout(*arguments), **self.changes)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"logprobs": None}, ["average_probability", "expected_confidence", "expected_mass"]),
        ({"completion": ""}, ["answer", "confidence"]),  # nothing readable is still a record
    ],
)
def test_what_an_engine_does_not_give_is_missing(tmp_path, changes, missing):
    table = run(tmp_path / "e", Changed(**changes), confidence_grid=()).table
    assert len(table) == 24
    assert table[missing].isna().all(axis=None)


def test_answers_that_cannot_be_checked_are_wrong_and_counted(tmp_path, caplog):
    endless = Changed(completion=rf"\boxed{{{'(' * 30}0{')' * 30}}}")
    with caplog.at_level(logging.ERROR):
        records = run(tmp_path / "e", endless)
    assert not records.table["correct"].any()
    # the six questions of mathematics, two samples each; a choice is always decided
    assert "12 answer(s) could not be checked and count as wrong" in records.notes
    assert run(tmp_path / "e", endless).notes == records.notes


def test_pooled_states_are_kept_in_the_order_of_the_records(tmp_path):
    table = run(tmp_path / "e", pooled_states=True).table
    states = read_pooled_states(tmp_path / "e")
    assert states.shape == (24, 3)
    assert states.dtype == np.float32
    asked = table["question_id"].str[1:].astype(int) + table["sample"] / 10
    np.testing.assert_allclose(states[:, 0], asked, rtol=1e-6)
    run(tmp_path / "without")
    with pytest.raises(EvaluationError, match="no pooled states; they were not asked for"):
        read_pooled_states(tmp_path / "without")


# --- answers that no record could hold ----------------------------------------------------------


class Odd(Scripted):
    """An engine one of whose rollouts is odd: that of q4, sample 1."""

    def __init__(self, **odd):
        super().__init__()
        self.odd = odd

    def rollout(self, prompt, k, *arguments):
        own = super().rollout(prompt, k, *arguments)
        return dataclasses.replace(own, **self.odd) if prompt.startswith("4+1") and k == 1 else own


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        *(
            ({"prompt_tokens": wrong}, "prompt_tokens is ")
            for wrong in (2**63, 2**64, 10**30, 10**9 + 1, -1, 1.5, float("nan"), True, None, "1")
        ),
        ({"token_ids": None, "n_tokens": 2**63}, "completion_tokens is 9223372036854775808"),
        ({"completion": "half \ud800 of it"}, "the completion has half of a surrogate pair"),
        ({"completion": b"bytes"}, "the completion is bytes"),
        ({"completion": None}, "the completion is NoneType"),
        ({"expected_confidence": 1.5}, "expected_confidence is 1.5"),
        ({"expected_mass": -0.1}, "expected_mass is -0.1"),
        (
            {"error": "half \ud800, \x1b[31m " + "long" * 1000, "completion": ""},
            "half ?, ?[31m long",
        ),
    ],
)
def test_an_answer_that_no_record_could_hold_is_a_failed_row(tmp_path, odd, told):
    records = run(tmp_path, Odd(**odd))
    assert len(records.table) == 23
    [row] = read_samples(tmp_path, failed=True).query("error != ''").to_dict("records")
    assert (row["question_id"], row["sample"], row["completion"]) == ("q4", 1, "")
    assert told in row["error"]
    assert row["error"].isprintable()
    assert len(row["error"]) <= 400
    pd.testing.assert_frame_equal(run(tmp_path).table, run(tmp_path / "whole").table)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.5])
def test_log_probabilities_that_are_none_are_missing_and_the_answer_counts(tmp_path, wrong):
    table = run(tmp_path, Odd(logprobs=np.float32([-0.5, wrong]))).table
    assert len(table) == 24
    missing = table["average_probability"].isna()
    assert table.loc[missing, ["question_id", "sample"]].values.tolist() == [["q4", 1]]


def test_hidden_states_are_of_all_rows_of_a_part(tmp_path):
    odd = Odd(prompt_tokens=2**63)
    run(tmp_path, odd, pooled_states=True)
    odd.odd, odd.asked = {}, []
    table = run(tmp_path, odd, pooled_states=True).table
    assert odd.asked == [question.prompt for question in QUESTIONS[:5]]
    asked = table["question_id"].str[1:].astype(int) + table["sample"] / 10
    np.testing.assert_allclose(read_pooled_states(tmp_path)[:, 0], asked, rtol=1e-6)


def rewritten(part, **changed):
    rows = pd.read_parquet(part / "rows.parquet").assign(**changed)
    rows.to_parquet(part / "rows.parquet", index=False)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda p: rewritten(p, prompt_tokens=np.uint64(2**63)), "column prompt_tokens is of type uint64"),
        (lambda p: rewritten(p, completion_tokens=1.5), "column completion_tokens is of type double"),
        (lambda p: rewritten(p, correct="yes"), "column correct is of type"),
        (lambda p: (p / "rows.parquet").write_text("no parquet"), "cannot be read .ArrowInvalid"),
        (lambda p: (p / "rows.parquet").unlink(), "cannot be read .FileNotFoundError"),
        (lambda p: without(p / "request.json", "failed"), "cannot be read .KeyError: 'failed'"),
    ],
)  # fmt: skip
def test_a_sealed_part_that_cannot_be_read_is_named_and_made_again(tmp_path, damage, told):
    whole = run(tmp_path).table
    damage(tmp_path / "part-00001")
    seal(tmp_path / "part-00001")
    with pytest.raises(EvaluationError, match=f"part-00001: .*{told}"):
        read_samples(tmp_path)
    engine = Scripted()
    records = run(tmp_path, engine)
    assert engine.asked == [question.prompt for question in QUESTIONS[5:10]]
    pd.testing.assert_frame_equal(records.table, whole)
    assert told.replace(".", "(").partition("(")[0] in records.notes[0]
    assert records.notes[0].endswith("; it was made again")


def without(path, name):
    content = json.loads(path.read_text())
    del content[name]
    path.write_text(json.dumps(content))


def test_what_cannot_be_read_back_is_not_sealed(tmp_path):
    rows = run(tmp_path / "e", questions=QUESTIONS[:1]).table.assign(error="", finished=True)
    rows["prompt_tokens"] = np.uint64(2**63)
    with pytest.raises(EvaluationError, match="part-00000: .*prompt_tokens is of type uint64"):
        ask_in_parts(QUESTIONS[:1], lambda *_: (rows, None), {}, tmp_path / "p", 1)
    assert not list((tmp_path / "p").glob("part-?????"))


def test_an_engine_that_scores_no_texts_is_not_asked_to(tmp_path):
    engine = Scripted()
    engine.gives_expected_confidence = False
    table = run(tmp_path, engine).table
    assert table["expected_confidence"].isna().all()
    assert (
        run(tmp_path / "asked", engine, confidence_grid=["0.5"])
        .table["expected_mass"]
        .notna()
        .any()
    )


# --- interruptions ----------------------------------------------------------------------------


class Interrupted(Scripted):
    """An engine that fails once it was asked so many prompts."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def generate(self, prompts, *arguments, **named):
        if len(self.asked) >= self.after:
            raise KeyboardInterrupt
        return super().generate(prompts, *arguments, **named)


def test_only_what_is_missing_is_asked(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(EvaluationError, match="part-00000: not there"):
        read_samples(tmp_path / "e")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "e", Interrupted(after=5))
    with pytest.raises(EvaluationError, match="part-00001: not there; the evaluation is not fin"):
        read_samples(tmp_path / "e")
    engine = Scripted()
    records = run(tmp_path / "e", engine)
    assert engine.asked == [question.prompt for question in QUESTIONS[5:]]
    pd.testing.assert_frame_equal(records.table, whole.table)
    assert records.notes == whole.notes
    again = Scripted()
    pd.testing.assert_frame_equal(run(tmp_path / "e", again).table, whole.table)
    assert again.asked == []


def test_a_finished_evaluation_is_there_at_once(tmp_path):
    """At most 50 microseconds a row, of the processor: 5 seconds for 100,000 rows."""
    questions = [
        dataclasses.replace(question, kind="choice") for question in make_questions(10_000)
    ]
    arguments = {"directory": tmp_path, "questions": questions, "part_size": 32}
    records = run(**arguments)
    assert len(list(tmp_path.glob("part-*"))) == 313
    engine, begun = Scripted(), time.process_time()
    again = run(engine=engine, **arguments)
    seconds = time.process_time() - begun
    assert engine.asked == []
    assert len(again.table) == 20_000
    pd.testing.assert_frame_equal(again.table, records.table)
    assert seconds < 1.0


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_evaluation import Scripted, make_questions, run
run({directory!r}, Scripted(delay=0.02), make_questions(40), part_size=1, pooled_states=True)
"""


def test_an_evaluation_that_is_killed_goes_on(tmp_path):
    """Killed several times, at moments drawn at random; then finished."""
    directory, rng = tmp_path / "e", random.Random(0)
    script = SCRIPT.format(tests=str(Path(__file__).parent), directory=str(directory))
    n_before = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
        deadline = time.monotonic() + 60
        while len(list(directory.glob("part-?????"))) < n_before + 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.08))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        n_before = len(list(directory.glob("part-?????")))
        assert 3 <= n_before < 40
    there = {path.name for path in directory.glob("part-?????")}
    engine, questions = Scripted(), make_questions(40)
    records = run(directory, engine, questions, part_size=1, pooled_states=True)
    missing = [q.prompt for i, q in enumerate(questions) if f"part-{i:05d}" not in there]
    assert engine.asked == missing
    whole = run(tmp_path / "whole", Scripted(), questions, part_size=1, pooled_states=True)
    pd.testing.assert_frame_equal(records.table, whole.table)
    assert (read_pooled_states(directory) == read_pooled_states(tmp_path / "whole")).all()
    assert not list(directory.glob("*.partial"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("file", ["rows.parquet", "states.safetensors", "request.json", "manifest.json"])  # fmt: skip
def test_a_damaged_part_is_named_and_made_again(tmp_path, damage, file, caplog):
    whole = run(tmp_path, pooled_states=True).table
    damage(tmp_path / "part-00001" / file)
    with pytest.raises(EvaluationError, match="part-00001"):
        read_samples(tmp_path)
    engine = Scripted()
    with caplog.at_level(logging.CRITICAL):
        records = run(tmp_path, engine, pooled_states=True)
    assert engine.asked == [question.prompt for question in QUESTIONS[5:10]]
    pd.testing.assert_frame_equal(records.table, whole)
    note = records.notes[0]
    assert "part-00001" in note
    assert "it was made again" in note
    assert run(tmp_path, pooled_states=True).notes == records.notes[1:]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"system": "LLM"}, "system is 'SLM', not 'LLM'"),
        ({"engine": Scripted("b")}, "model is 'a', not 'b'"),
        ({"questions": QUESTIONS[:-1]}, "n_questions is 12, not 11"),
        ({"questions": [*QUESTIONS[:-1], dataclasses.replace(QUESTIONS[-1], gold="7")]}, "questions is"),
        ({"sampling": dataclasses.replace(SAMPLING, temperature=1.0)}, "sampling is .*0.6.* not .*1.0"),
        ({"sampling": dataclasses.replace(SAMPLING, seed=1)}, "'seed': 0.*'seed': 1"),
        ({"part_size": 4}, "part_size is 5, not 4"),
        ({"confidence_grid": ["0.5"]}, "confidence_grid is "),
        ({"pooled_states": True}, "pooled_states is False, not True"),
    ],
)  # fmt: skip
def test_parts_of_another_request_are_neither_used_nor_replaced(tmp_path, changed, message):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(after=5))
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    engine = changed.pop("engine", Scripted())
    with pytest.raises(EvaluationError, match=f"part-00000 belongs to another .*{message}"):
        run(tmp_path, engine, **changed)
    assert engine.asked == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == kept


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (dataclasses.replace(QUESTIONS[3]), r"questions\[12\] and questions\[3\] are both"),
        (dataclasses.replace(QUESTIONS[3], question_id="x", kind="essay"), r"\[12\]: kind is 'ess"),
        (dataclasses.replace(QUESTIONS[3], question_id="x", gold=" "), r"\[12\]: gold is ' '"),
        (dataclasses.replace(QUESTIONS[3], question_id=""), r"\[12\]: dataset and question_id"),
        *(
            (
                dataclasses.replace(QUESTIONS[3], **{"question_id": "x", name: "\ud800"}),
                rf"\[12\]: {name} has half",
            )
            for name in ("dataset", "question_id", "text", "gold")
        ),
    ],
)
def test_questions_that_cannot_be_checked_are_refused_before_asking(tmp_path, question, message):
    engine = Scripted()
    with pytest.raises(ValueError, match=message):
        run(tmp_path, engine, [*QUESTIONS, question])
    assert engine.asked == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"questions": []}, "no questions"),
        ({"system": ""}, "system is empty"),
        ({"part_size": 0}, "part_size is 0; expected a whole number from 1"),
    ],
)
def test_calls_that_cannot_be_are_refused(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changed)


def test_an_engine_that_does_not_keep_its_word_is_named(tmp_path):
    class Short(Scripted):
        def generate(self, prompts, *arguments, **named):
            return super().generate(prompts, *arguments, **named)[1:]

    with pytest.raises(
        EvaluationError, match=r"gave \[2, 2, 2, 2\] rollouts; expected \[2, 2, 2, 2, 2\]"
    ):
        run(tmp_path, Short())
    with pytest.raises(EvaluationError, match="gave no pooled state, though asked"):
        run(tmp_path, Changed(pooled_state=None), pooled_states=True)
    assert not list(tmp_path.glob("part-?????"))


# --- with a model -------------------------------------------------------------------------------


def test_a_model_can_be_evaluated(tmp_path):
    pytest.importorskip("transformers")
    from tiny_models import make_model, make_tokenizer

    from corea.engines.transformers_engine import TransformersEngine, expected_confidence

    tokenizer = make_tokenizer(merging=True)
    engine = TransformersEngine(make_model(len(tokenizer), max_position_embeddings=512), tokenizer)
    records = run(tmp_path, engine, pooled_states=True)
    samples, states = read_samples(tmp_path), read_pooled_states(tmp_path)
    assert states.shape == (24, 32)
    assert np.isfinite(states).all()
    assert records.table["average_probability"].between(0, 1).all()
    assert (records.table["completion_tokens"] <= 20).all()
    rollouts = engine.generate([q.prompt for q in QUESTIONS[:5]], SAMPLING)
    assert samples["completion"].tolist()[:10] == [
        r.completion for group in rollouts for r in group
    ]
    expected, _ = expected_confidence(
        engine.model, tokenizer, samples["prompt"].tolist(), samples["completion"].tolist()
    )
    np.testing.assert_allclose(records.table["expected_confidence"], expected, atol=1e-6)
    request = json.loads((tmp_path / "part-00000" / "request.json").read_text())
    assert request["model"] == engine.fingerprint
