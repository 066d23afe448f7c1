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
from fractions import Fraction
from pathlib import Path

import math_verify
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_pairs import DIFFERENT, EQUAL

from corea.tasks import verify
from corea.tasks.verify import verify_batch

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


# all golds against themselves and shuffled: what math-verify finds equal and is not
MENDED = {("(-2,1)", "1,-2")}  # a pair is in order


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
    pairs = list(zip(answers, golds, strict=True))
    expected = [ask_math_verify(*pair) and pair not in MENDED for pair in pairs]
    assert verify_batch(answers, golds, "math") == expected
    assert sum(expected) == 1175 if not others else 0 < sum(expected) < 100


@pytest.mark.parametrize(("pairs", "verdict"), [(EQUAL, True), (DIFFERENT, False)])
def test_verdicts_on_pairs_are_right_both_ways_round(pairs, verdict):
    assert all(len(pair) == 2 for pair in pairs)
    asked = [tuple(pair) for pair in pairs] + [(b, a) for a, b in pairs]
    verdicts = verify_batch([a for a, _ in asked], [b for _, b in asked], "math")
    assert [pair for pair, found in zip(asked, verdicts, strict=True) if found is not verdict] == []


@pytest.mark.parametrize(
    ("answer", "gold", "verdict", "reverse"),
    [
        (r"(-\infty, 2)", "x<2", True, False),  # an inequality may be answered by its interval
        ("2x+y=7", "7", True, False),  # an equation for the value asked for
        ("72 clips", "72", True, False),  # words are a unit where the gold is a bare number
        ("1,319 people.", "1319", True, False),
    ],
)
def test_what_depends_on_the_side(answer, gold, verdict, reverse):
    assert verify_batch([answer, gold], [gold, answer], "math") == [verdict, reverse]


CONVENTIONS = [  # as math-verify has it
    ("5 cm", "5 m"),
    (r"5\text{ cm}^2", r"5\text{ m}"),
    (r"10:30\text{ a.m.}", r"10:30\text{ p.m.}"),
    (r"5\text{ million}", "5"),
    (r"50\%", "50"),
    ("0.3333333", "0.333333"),
    ("a", "A"),
    ("3R^2", "3r^2"),
    ("204", "204_5"),
]


def test_conventions_of_math_verify_stay():
    for answer, gold in (*CONVENTIONS, *(pair[::-1] for pair in CONVENTIONS)):
        assert ask_math_verify(answer, gold), (answer, gold)
        assert verify_batch([answer], [gold], "math") == [True], (answer, gold)
    assert verify_batch(["62.5"], [r"62.5\%"], "math") == [ask_math_verify("62.5", r"62.5\%")]


NOTATIONS = [
    lambda f, k: f"{f.numerator * 10**k}/{f.denominator}" if k >= 0 else
    rf"\frac{{{f.numerator}}}{{{f.denominator * 10**-k}}}",
    lambda f, k: rf"\frac{{{f.numerator}}}{{{f.denominator}}}\cdot 10^{{{k}}}",
    lambda f, k: rf"10^{{{k}}}\times\frac{{{f.numerator}}}{{{f.denominator}}}",
]  # fmt: skip
FRACTIONS = st.fractions(-9, 9, max_denominator=7)
SIZES = st.integers(-40, 40)
NUMBERS = st.tuples(FRACTIONS, SIZES, st.sampled_from(NOTATIONS), st.sampled_from(NOTATIONS))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=5, max_size=15))
def test_exact_numbers_are_equal_exactly_when_they_are_the_same(pairs):
    rows = [
        (write(f, k), again(f, k), f * Fraction(10) ** k)
        for pair in pairs
        for f, k, write, again in pair
    ]
    answers = [text for text, _, _ in rows] + [text for text, _, _ in rows[::2]]
    golds = [text for _, text, _ in rows] + [text for text, _, _ in rows[1::2]]
    others = [a[2] == b[2] for a, b in zip(rows[::2], rows[1::2], strict=True)]
    assert verify_batch(answers, golds, "math") == [True] * len(rows) + others


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
    [("07", "7"), ("-0", "0"), ("７", "7"), ("7\n", "7"), ("1" * 16, "1" * 16 + "0"), ("7.0", "7"),
     ("a", "b"), (r"\frac{1}{2}", r"\frac{1}{2}"), ("9!", "9!"), ("", ""), (" ", " ")],
)  # fmt: skip
def test_nothing_else_is_settled_at_sight(answer, gold):
    assert verify._at_sight(answer, gold) == ""


SLOW = [
    TOWER, "10^{10^{10}}", "1000000!", r"2^{10^{12}}", r"\binom{10^8}{10^7}",
    r"\sum_{n=1}^{10^9} n^n",
]  # fmt: skip
LARGE = [
    "x" * 20_000, r"\sqrt{" * 200 + "2" + "}" * 200, "(" * 50, "(" * 50 + "1" + ")" * 50, "[" * 17,
]  # fmt: skip
HOSTILE = dict.fromkeys(SLOW, "out of time") | dict.fromkeys(LARGE, "too long or nested too deep")


def test_hostile_answers_are_not_decided_and_leave_the_rest_alone(caplog):
    fine = [r"\frac{1}{2}", "5", "x+1"]
    answers = [a for hostile in HOSTILE for a in (hostile, *fine)]
    golds = ["12", "0.5", "6", "1+x"] * len(HOSTILE)
    start = time.perf_counter()
    with caplog.at_level(logging.WARNING, logger="corea.tasks.verify"):
        verdicts = verify_batch(answers, golds, "math", timeout=0.5, workers=2)
    assert verdicts == [None, True, False, True] * len(HOSTILE)
    # 6 at half a second, on a machine that may be 20 times slower than it is when idle
    assert time.perf_counter() - start < 60
    assert [record.getMessage() for record in caplog.records] == [
        "11 of 44 answers not decided: 6 out of time, 5 too long or nested too deep"
    ]


@pytest.mark.parametrize(("hostile", "reason"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_a_hostile_answer_is_not_decided_for_its_reason(hostile, reason, caplog):
    assert verify_batch([hostile], ["12"], "math", timeout=0.3) == [None]
    assert verify_batch(["12"], [hostile], "math", timeout=0.3) == [None]  # nor as a gold
    assert caplog.messages == [f"1 of 1 answers not decided: 1 {reason}"] * 2


def test_a_pair_beyond_the_memory_limit_is_not_decided(caplog, monkeypatch):
    monkeypatch.setattr(verify, "_MEMORY", 30 * 2**20)
    answers = ["2^{10^{8}}", r"\frac{1}{2}", "2^{10^{8}}"]
    verdicts = verify_batch(answers, ["5", "0.5", "7"], "math", timeout=60, workers=1)
    assert verdicts == [None, True, None]
    assert caplog.messages == ["2 of 3 answers not decided: 2 out of memory"]


def helper():
    """The process that serves, started if need be."""
    assert verify_batch([r"\frac{1}{2}"], ["0.5"], "math") == [True]
    return psutil.Process(verify._helper.pid)


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
    # a shell's background jobs ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            verify_batch([TOWER] * 2, ["12", "13"], "math", timeout=600)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not Path(f"/proc/{serving}").exists()
    assert verify_batch(["1/2", "x"], ["0.5", "y"], "math") == [True, False]


def test_math_verify_that_cannot_be_imported_is_said_so(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no such grammar')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    verify._helper.end()
    try:
        with pytest.raises(RuntimeError, match="no such grammar"):
            verify_batch(["1/2"], ["0.5"], "math")
    finally:
        monkeypatch.undo()
    assert verify_batch(["1/2"], ["0.5"], "math") == [True]


def test_a_process_that_ends_at_once_is_not_started_for_ever(monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text("")
    monkeypatch.setattr(verify._helper, "_script", tmp_path / "worker.py")
    verify._helper.end()
    with pytest.raises(RuntimeError, match="ended twice"):
        verify_batch(["1/2"], ["0.5"], "math")


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(600)", "import os; os.kill(os.getpid(), 9)"]
)
def test_a_process_that_is_lost_twice_leaves_pairs_undecided(code, monkeypatch, tmp_path, caplog):
    (tmp_path / "worker.py").write_text(code)
    monkeypatch.setattr(verify._helper, "_script", tmp_path / "worker.py")
    monkeypatch.setattr(verify, "_START_UP", 0.2)
    verify._helper.end()
    assert verify_batch(["1/2", "3"], ["0.5", "3"], "math", timeout=0.01) == [None, True]
    assert caplog.messages == ["1 of 2 answers not decided: 1 math-verify's process lost twice"]
    assert verify._helper.pid is None


def test_a_stopped_process_is_replaced_and_leaves_none_behind(monkeypatch):
    stopped, ask = helper(), verify._helper.ask

    def impatient(batch, patience):
        return ask(batch, 0.2 if verify._helper.pid == stopped.pid else patience)

    monkeypatch.setattr(verify._helper, "ask", impatient)
    stopped.send_signal(signal.SIGSTOP)
    assert verify_batch(["1/2", "1/3"], ["0.5", "0.5"], "math") == [True, False]
    with pytest.raises(ProcessLookupError):
        os.killpg(stopped.pid, 0)


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
    from corea.tasks.verify import verify_batch

    answers, golds = ["1/2", "9^{9^{9^{9}}}", "x"], ["0.5", "12", "y"]
    print(verify_batch(answers, golds, "math", timeout=0.3))
    if os.fork() == 0:  # a fork has a process of its own
        print(verify_batch(answers, golds, "math", timeout=0.3), flush=True)
        sys.exit()
    print(verify_batch(answers, golds, "math", timeout=0.3))
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    print(verify_batch(answers, golds, "math", timeout=0.3))
    from corea.tasks import verify
    print("serving", verify._helper.pid)
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
    code = (
        "from corea.tasks.verify import verify_batch; print(verify_batch(['1/2'], ['0.5'], 'math'))"
    )
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

    def ask(batch, patience):
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
    answers = [rf"\frac{{{i}}}{{2}}" for i in range(100)]  # many to one question are divided
    verdicts = verify_batch(answers, ["1.5"] * 100, "math", workers=2)
    assert verdicts == [i == 3 for i in range(100)]


OPTIONS = ("bank", "library", "department store", "mall", "new york")
WRAPPED = (
    r"""
A|(A)|A.|A)|[A]|{A}|<A>|A,|A:| A |a|(a)|\text{A}|\textbf{A}|\mathrm{A}|\mathbf{(A)}|\boxed{A}|{\bf A}
**A**|**A.**|*A*|__A__|`A`|"A"|'A'|“A”|$A$|\(A\)|$\text{A}$|\text{Option A}|Option A|option (A)
Choice A|**Option A**|Answer: A|answer: a|**Answer:** A|Final answer: **A**|The answer is A
The answer is (A).|The correct answer is A.|The answer is: A|The correct answer is option A.
""".strip()
    .replace("\n", "|")
    .split("|")
)
BOTH = (
    r"""
A) bank|A. bank|(A) bank|A: bank|A - bank|**A. bank**|**A.** bank|A.  Bank.|\text{A. bank}
\text{(A) bank}|\textbf{A) bank}|The answer is A. bank
""".strip()
    .replace("\n", "|")
    .split("|")
)
TEXTS = [
    "bank", "Bank", "BANK.", '"bank"', r"\text{bank}", "The answer is bank.", " bank\n", "**bank**",
]  # fmt: skip
OTHERS = [
    "B", "AB", "A and B", "B or A", "A or B", "A, B", "A/B", "(A) and (B)", "A. B", "B) bank",
    "not A", "anything but B", "bank or library", "A. bank or B. library", "Answer: B", "A A", "AA",
    "neither", "", ".", "()", "Answer:", "F", "1", "\u0410", "A because B is wrong", "banks",
    "A" * 2000, "(" * 999, "answer " * 100,
]  # fmt: skip
UNLIKE = ["A) library", "A. mall", "A. banks", "a - " * 250]


def chosen(answers, gold="A", options=OPTIONS):
    n = len(answers)
    return verify_batch(answers, [gold] * n, "choice", options=[options] * n)


def test_a_choice_is_the_option_in_any_wrapping_or_its_text():
    right = [*WRAPPED, *BOTH, *TEXTS]
    assert [a for a, verdict in zip(right, chosen(right), strict=True) if not verdict] == []
    wrong = [*OTHERS, *UNLIKE, None]
    assert [a for a, verdict in zip(wrong, chosen(wrong), strict=True) if verdict] == []
    assert not any(chosen([a for a in right if a not in ("a",)], gold="B"))


def test_a_letter_decides_where_options_are_not_known():
    assert all(chosen([*WRAPPED, *BOTH, *UNLIKE], options=()))
    assert not any(chosen([*TEXTS, *OTHERS], options=()))
    assert verify_batch(["A", "b"], ["A", "A"], "choice") == [True, False]


@pytest.mark.parametrize(
    ("answer", "gold", "options", "verdict"),
    [
        ("B", "A", ("B", "A"), False),  # a letter is the letter
        ("B", "B", ("B", "A"), True),
        ("A) B", "A", ("B", "A"), True),
        ("bank", "A", ("bank", "Bank "), False),  # two options, one text
        ("A", "A", ("bank", "bank"), True),
        ("[1,2]", "A", ("[1,2]", "(1,2)"), True),  # the text as it is comes first
        ("(1,2)", "A", ("[1,2]", "(1,2)"), False),
        ("5", "A", ("$5$", "-5"), True),
        ("-5", "A", ("$5$", "-5"), False),
        ("H", "B", ("O", "H"), True),  # no letter of this question
        ("a - b", "C", ("x", "y", "a - b"), True),
        ("F", "F", ("bank", "library"), True),
    ],
)
def test_letters_and_texts_that_could_be_confused(answer, gold, options, verdict):
    assert chosen([answer], gold, options) == [verdict]


def test_a_choice_that_is_no_letter_is_the_gold_in_any_wrapping():
    assert all(chosen(["8", " 8 ", "(8)", r"\text{8}", "$8$", "8.", "**8**", "Answer: 8"], "8", ()))
    assert not any(chosen(["-8", "88", "8 or 9", "", "8.0", "７"], "8", ()))
    assert chosen(["Safe", "safe", "**Safe**"], "Safe", ()) == [True, False, True]
    assert chosen(["(x)", "x"], "(x)", ()) == [True, True]


def test_missing_answers_are_wrong_and_need_no_process(monkeypatch):
    monkeypatch.setattr(verify, "_ask", None)
    assert verify_batch([None, None], ["12", "x"], "math") == [False, False]
    assert verify_batch([None], ["A"], "choice") == [False]
    assert verify_batch([], [], "math") == []
    assert verify_batch(["12", "7"], ["12", "8"], "math") == [True, False]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((["1"], ["1"], "maths"), {}, ValueError, "kind is 'maths'; expected one of 'math', 'ch"),
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
        ((["A"], ["A"], "choice"), {"options": []}, ValueError, "0 options for 1 golds"),
        ((["1"], ["1"], "math"), {"workers": 0}, ValueError, "workers is 0; expected a whole"),
        ((["1"], ["1"], "math"), {"workers": 1.5}, ValueError, "workers is 1.5"),
    ],
)
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        verify_batch(*arguments, **options)
