import json
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corea import verify
from corea.verify import verify_batch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TOWER = "9^{9^{9^{9}}}"
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


def ask_math_verify(answer, gold):
    """Its verdict with its own settings, in the main thread."""
    answer, gold = (math_verify.parse(rf"\boxed{{{text}}}") for text in (answer, gold))
    return math_verify.verify(gold, answer)


SAMPLE = [
    # answer, gold, verdict
    ("0.5", r"\frac12", True),
    (r"\dfrac{1}{2}", "1/2", True),
    ("0.333333", r"\frac{1}{3}", True),
    ("0.33", r"\frac{1}{3}", False),
    ("1,000", "1000", True),
    ("007", "7", True),
    ("7.0", "7", True),
    ("-7", "7", False),
    ("10%", "10", True),
    (r"90^\circ", "90", True),
    (r"5\text{ cm}", "5", True),
    (r"\$36", "36", True),
    ("84, 69", "$69$,$84$", True),
    ("69", "$69$,$84$", False),
    ("(2,1)", "(1,2)", False),
    ("[1,2)", "[1,2]", False),
    (r"(-\infty, 2)", "x<2", True),
    ("x<2", r"(-\infty, 2)", False),  # the gold decides what form is asked for
    ("Evelyn", r"\text{Evelyn}", True),
    ("Briana", r"\text{Evelyn}", False),
    ("(x+1)^2", "x^2+2x+1", True),
    ("y=2x+3", "2x+3", True),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    (r"\frac{1}{0}", r"\frac{1}{0}", True),
    ("{3", "3", False),
    ("((", "((", True),
    ("", "5", False),
    (" ", "5", False),
    ("5\n", "5", True),
    ("\ud800", "5", False),
    ("5\0", "5", False),
    ("</div><script>alert(1)</script>", "5", False),
    ("__import__('os').system('true')", "5", False),
]


def test_verdicts_are_those_of_math_verify_on_a_sample():
    answers, golds, expected = zip(*SAMPLE, strict=True)
    assert [ask_math_verify(a, g) for a, g in zip(answers, golds, strict=True)] == list(expected)
    assert verify_batch(answers, golds, "math") == list(expected)


@pytest.mark.skipif(not SHARED.exists(), reason="the question sets are not beside the repository")
@pytest.mark.parametrize("others", [False, True], ids=["themselves", "shuffled others"])
def test_verdicts_are_those_of_math_verify_on_all_golds(others):
    golds = []
    for name, rows in (("math500", 500), ("olympiadbench", 675)):
        lines = (SHARED / name / "test.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == rows
        for row in map(json.loads, lines):
            golds.append(row["answer"] if "answer" in row else ", ".join(row["final_answer"]))
    answers = list(golds)
    if others:
        random.Random(0).shuffle(answers)
    expected = [ask_math_verify(a, g) for a, g in zip(answers, golds, strict=True)]
    assert verify_batch(answers, golds, "math") == expected
    assert sum(expected) == 1175 if not others else 0 < sum(expected) < 100


INTEGERS = st.from_regex(verify._INTEGER, fullmatch=True)
PLAIN = st.from_regex(verify._PLAIN, fullmatch=True)
WORDS = st.lists(
    st.sampled_from([
        "5", "12", "1,2", "cm", "and", "or", "percent", "the final answer is", "I hope", "answer",
        "inf", "infinity", "x", "=", ",", ".", "/", "-",
    ]),
    min_size=1,
    max_size=8,
).map(" ".join)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(INTEGERS, INTEGERS, st.booleans())
def test_integers_settled_at_sight_are_settled_as_math_verify_does(answer, gold, same):
    answer = gold if same else answer
    assert verify._at_sight(answer, gold) == str(int(ask_math_verify(answer, gold)))


@settings(max_examples=100, deadline=None)
@given(PLAIN | WORDS.filter(verify._PLAIN.fullmatch))
def test_equal_texts_settled_at_sight_are_equal_for_math_verify(text):
    assert verify._at_sight(text, text) == "1"
    assert ask_math_verify(text, text)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("07", "7"),
        ("-0", "0"),
        ("７", "7"),
        ("7\n", "7"),
        ("1" * 16, "1" * 16 + "0"),
        ("7.0", "7"),
        ("a", "b"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("9!", "9!"),
        ("", ""),
        (" ", " "),
    ],
)
def test_nothing_else_is_settled_at_sight(answer, gold):
    assert verify._at_sight(answer, gold) == ""


HOSTILE = {
    TOWER: "out of time",
    "10^{10^{10}}": "out of time",
    "1000000!": "out of time",
    "x" * 20_000: "too long or nested too deep",
    r"\sqrt{" * 200 + "2" + "}" * 200: "too long or nested too deep",
    "(" * 50: "too long or nested too deep",
    "(" * 50 + "1" + ")" * 50: "too long or nested too deep",
    "[" * 17: "too long or nested too deep",
    r"2^{10^{12}}": "out of time",
    r"\binom{10^8}{10^7}": "out of time",
    r"\sum_{n=1}^{10^9} n^n": "out of time",
}


def test_hostile_answers_are_not_decided_and_leave_the_rest_alone(caplog):
    fine = [r"\frac{1}{2}", "5", "x+1"]
    answers = [a for hostile in HOSTILE for a in (hostile, *fine)]
    golds = ["12", "0.5", "6", "1+x"] * len(HOSTILE)
    start = time.perf_counter()
    with caplog.at_level(logging.WARNING, logger="corea.verify"):
        verdicts = verify_batch(answers, golds, "math", timeout=0.5, workers=2)
    assert verdicts == [None, True, False, True] * len(HOSTILE)
    # 6 at half a second, on a machine that may be 20 times slower than it is when idle
    assert time.perf_counter() - start < 60
    assert [record.getMessage() for record in caplog.records] == [
        "11 of 44 answers not decided: 6 out of time, 5 too long or nested too deep"
    ]
    assert verdicts.count(None) == 11


@pytest.mark.parametrize(("hostile", "reason"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_a_hostile_answer_is_not_decided_for_its_reason(hostile, reason, caplog):
    assert verify_batch([hostile], ["12"], "math", timeout=0.3) == [None]
    assert caplog.messages == [f"1 of 1 answers not decided: 1 {reason}"]


def test_a_hostile_gold_is_not_decided_either():
    assert verify_batch(["12", "12"], [TOWER, "(" * 17], "math", timeout=0.3) == [None, None]


def test_a_pair_beyond_the_memory_limit_is_not_decided(caplog, monkeypatch):
    monkeypatch.setattr(verify, "_MEMORY", 30 * 2**20)
    answers = ["2^{10^{8}}", r"\frac{1}{2}", "2^{10^{8}}"]
    verdicts = verify_batch(answers, ["5", "0.5", "7"], "math", timeout=60, workers=1)
    assert verdicts == [None, True, None]
    assert caplog.messages == ["2 of 3 answers not decided: 2 out of memory"]


def helper():
    """The process that serves, started if need be."""
    assert verify_batch([r"\frac{1}{2}"], ["0.5"], "math") == [True]
    return verify._helper.process


def children(pid):
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


@needs_proc
def test_a_worker_that_dies_is_replaced(caplog):
    serving = helper().pid
    verdicts = []
    answers, golds = [TOWER, TOWER, "1/2"], ["12", "13", "0.5"]
    batch = threading.Thread(
        target=lambda: verdicts.extend(verify_batch(answers, golds, "math", timeout=600, workers=1))
    )
    batch.start()
    killed = set()
    while len(killed) < 2:  # both towers; the third pair is decided in no time
        worker = wait_for(lambda: set(children(serving)) - killed).pop()
        time.sleep(0.5)  # so that it is at its tower
        os.kill(worker, signal.SIGKILL)
        killed.add(worker)
    batch.join(60)
    assert verdicts == [None, None, True]
    assert caplog.messages == ["2 of 3 answers not decided: 2 worker died"]


def test_a_process_that_was_lost_is_started_again():
    lost = helper()
    lost.kill()
    lost.wait()
    assert helper().pid != lost.pid


@needs_proc
def test_an_interrupt_ends_the_batch_and_its_workers():
    serving = helper().pid
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        verify_batch([TOWER] * 2, ["12", "13"], "math", timeout=600)
    assert not Path(f"/proc/{serving}").exists()
    assert verify_batch(["1/2", "x"], ["0.5", "y"], "math") == [True, False]


def test_math_verify_that_cannot_be_imported_is_said_so(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no such grammar')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    verify._end_helper()
    try:
        with pytest.raises(RuntimeError, match="no such grammar"):
            verify_batch(["1/2"], ["0.5"], "math")
    finally:
        monkeypatch.undo()
    assert verify_batch(["1/2"], ["0.5"], "math") == [True]


def test_a_process_that_ends_at_once_is_not_started_for_ever(monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text("")
    monkeypatch.setattr(verify, "_WORKER", tmp_path / "worker.py")
    verify._end_helper()
    with pytest.raises(RuntimeError, match="ended twice"):
        verify_batch(["1/2"], ["0.5"], "math")


def test_it_works_in_threads_and_from_several_at_once():
    verdicts = {}

    def work(i):
        verdicts[i] = verify_batch([rf"\frac{{{i}}}{{7}}"] * 3, [f"{i}/7", "x", "y"], "math")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert verdicts == {i: [True, False, False] for i in range(1, 6)}


SCRIPT = """
    import os, sys, threading
    from corea.verify import verify_batch

    answers, golds = ["1/2", "9^{9^{9^{9}}}", "x"], ["0.5", "12", "y"]
    print(verify_batch(answers, golds, "math", timeout=0.3))
    if os.fork() == 0:  # a fork has a process of its own
        print(verify_batch(answers, golds, "math", timeout=0.3), flush=True)
        sys.exit()
    print(verify_batch(answers, golds, "math", timeout=0.3))
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    print(verify_batch(answers, golds, "math", timeout=0.3))
    from corea import verify
    print("serving", verify._helper.process.pid)
"""


@pytest.mark.parametrize("how", ["file", "standard input"])
def test_a_script_without_a_main_guard_works_and_leaves_no_process(how, tmp_path):
    script = textwrap.dedent(SCRIPT)
    (tmp_path / "script.py").write_text(script)
    arguments = {"file": ["script.py"], "standard input": ["-"]}[how]
    done = subprocess.run(
        [sys.executable, "-u", "-W", "error", *arguments],
        input=script,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    *verdicts, serving = done.stdout.splitlines()
    assert verdicts == ["[True, None, False]"] * 4
    warned = "1 of 3 answers not decided: 1 out of time"
    assert done.stderr.splitlines() == [warned] * 4
    with pytest.raises(ProcessLookupError):
        os.kill(int(serving.split()[1]), 0)


def test_a_notebook_kernel_can_call_it():
    # the kernel's own thread runs an event loop, and __main__ has no file
    code = "from corea.verify import verify_batch; print(verify_batch(['1/2'], ['0.5'], 'math'))"
    pytest.importorskip("ipykernel")
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    printed = []
    try:
        client.execute_interactive(
            code, timeout=60, output_hook=lambda m: printed.append(m["content"].get("text"))
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "[True]\n" in printed


def test_equal_pairs_are_asked_once_and_the_order_is_kept(monkeypatch):
    asked = []

    def ask(batch):
        asked.append(batch["pairs"])
        return "".join("1" if answer[0] == gold[0] else "0" for answer, gold in batch["pairs"])

    monkeypatch.setattr(verify, "_ask", ask)
    answers = ["x^2", "y^2", None, "3", "x^2", "y^2", "z^2"]
    golds = ["x+1", "x+1", "x+1", "3", "x+1", "x+1", "x+1"]
    assert verify_batch(answers, golds, "math") == [True, False, False, True, True, False, False]
    assert asked == [[("x^2", "x+1"), ("y^2", "x+1"), ("z^2", "x+1")]]


def test_verdicts_do_not_depend_on_order_or_number_of_workers():
    answers, golds, expected = zip(*random.Random(1).sample(SAMPLE * 3, 60), strict=True)
    for workers in (1, 3, None):
        assert verify_batch(answers, golds, "math", workers=workers) == list(expected)


def test_many_answers_to_one_question_are_divided():
    answers = [rf"\frac{{{i}}}{{2}}" for i in range(100)]
    verdicts = verify_batch(answers, ["1.5"] * 100, "math", workers=2)
    assert verdicts == [i == 3 for i in range(100)]


def test_a_missing_answer_is_wrong():
    assert verify_batch([None, None], ["12", "x"], "math") == [False, False]
    assert verify_batch([None], ["A"], "choice") == [False]


def test_a_choice_is_the_option_to_the_letter():
    answers = ["A", "a", "A ", "(A)", r"\text{A}", "B", "", "Safe"]
    golds = ["A"] * 7 + ["Safe"]
    assert verify_batch(answers, golds, "choice") == [True, *[False] * 6, True]


def test_no_answers_need_no_process(monkeypatch):
    monkeypatch.setattr(verify, "_ask", None)
    assert verify_batch([], [], "math") == []
    assert verify_batch(["12", "7"], ["12", "8"], "math") == [True, False]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((["1"], ["1"], "maths"), {}, ValueError, "kind is 'maths'; expected one of math, choice"),
        ((["1"], ["1", "2"], "math"), {}, ValueError, "1 answers for 2 golds"),
        ((["1", 2], ["1", "2"], "math"), {}, TypeError, r"answers\[1\] is 2 \(int\); .* or None"),
        (([float("nan")], ["1"], "math"), {}, TypeError, r"answers\[0\] is nan \(float\)"),
        ((["1"], [1], "choice"), {}, TypeError, r"golds\[0\] is 1 \(int\); expected a string$"),
        ((["1"], [None], "math"), {}, TypeError, r"golds\[0\] is None"),
        (("12", ["1", "2"], "math"), {}, TypeError, "answers is one string"),
        ((["1", "2"], "12", "math"), {}, TypeError, "golds is one string"),
        ((["1"], [" "], "math"), {}, ValueError, r"golds\[0\] is ' '"),
        ((["1"], ["1"], "math"), {"timeout": 0}, ValueError, "timeout is 0; expected seconds"),
        ((["1"], ["1"], "math"), {"timeout": float("nan")}, ValueError, "timeout is nan"),
        ((["1"], ["1"], "math"), {"timeout": None}, ValueError, "timeout is None"),
        ((["1"], ["1"], "math"), {"workers": 0}, ValueError, "workers is 0; expected a whole"),
        ((["1"], ["1"], "math"), {"workers": 1.5}, ValueError, "workers is 1.5"),
    ],
)
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        verify_batch(*arguments, **options)
