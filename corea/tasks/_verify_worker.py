r"""The process that runs math-verify for :mod:`corea.tasks.verify`; not for import.

Started by path, it imports math-verify once, then serves one batch after another over its
standard input, a socket. It evaluates nothing itself, so no answer can hang or kill it. For
every batch it forks evaluators, which share what it has imported: a replacement costs a few
milliseconds instead of another import of sympy, and nothing one batch did to an evaluator
(caches, memory) can change the verdicts of the next.

An evaluator is stopped by the kernel, through timers with their default action: Python's own
signal handlers wait until the interpreter is back from C, which for a tower of powers is
never. The main timer counts CPU time, so that a busy machine does not change a verdict.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import os
import re
import resource
import selectors
import signal
import socket
import struct
import sys
import traceback
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RANGE = struct.Struct("=II")
_LONGEST_RANGE = 16  # pairs a message: few messages, and yet nobody is left with all the work
_ADDRESS_SPACE_FACTOR = 4  # an allocation that fails comes after one a fraction of it succeeded
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_OUT_OF_MEMORY = 3  # exit status

# What answers look like: parsing these builds the grammar's tables before evaluators are forked.
_WARM_UP = (
    r"\frac{1}{2}+\sqrt{3}", r"\left(3,\frac{\pi}{2}\right)", r"[1,2)\cup(3,\infty)", "1,2,3",
    r"x^2-2x+1", r"\{1,2\}", r"90^\circ", r"\text{Evelyn}", r"10\%", "y=2x+3", r"1 \le x < 2",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\binom{n}{2}", r"\log_2 3+\sin x", "12,345.5",
    r"|x|", r"\lfloor x\rfloor", "f(x)=x", "-3+4i", "a_{1}", "5^{10}", "n!",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """What one call of ``verify_batch`` asks."""

    pairs: list[tuple[str, str]]  # (answer, gold), equal golds together
    timeout: float  # CPU seconds for one pair
    wall: float  # seconds on the clock for one pair, waiting for a CPU included
    memory: int  # bytes an evaluator may come to hold beyond what it was forked with
    workers: int  # evaluators at most


@dataclass
class Evaluator:
    """A forked process, the socket to it and the range of pairs it is at."""

    pid: int
    link: socket.socket
    position: int = 0
    stop: int = 0

    def take(self, pairs: tuple[int, int]) -> None:
        """Send it a range."""
        self.position, self.stop = pairs
        with contextlib.suppress(ConnectionError):  # if it is dead, reading from it will say so
            self.link.sendall(_RANGE.pack(*pairs))

    def hear(self) -> str:
        """Verdicts that have come, 1 or 0 each; empty when it has ended."""
        with contextlib.suppress(ConnectionError):
            return self.link.recv(_LONGEST_RANGE).decode()
        return ""

    def end(self) -> str:
        """Let it end; why it did: empty if by itself, else t, m or d as in :func:`decide`."""
        self.link.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        reasons = {0: "", -signal.SIGPROF: "t", -signal.SIGALRM: "t", _OUT_OF_MEMORY: "m"}
        return reasons.get(status, "d")


def serve() -> None:
    """Answer each line on the socket with one line, until the other side closes it."""
    ends_a_process = {signal.SIGPROF, signal.SIGALRM}
    for number in (*ends_a_process, signal.SIGCHLD):  # may have been inherited as ignored
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends_a_process)
    connection = socket.socket(fileno=0)
    try:
        _warm_up()
        for line in connection.makefile("rb"):
            verdicts = decide(Batch(**json.loads(line)), connection)
            connection.sendall(json.dumps({"verdicts": verdicts}).encode() + b"\n")
    except Exception:
        connection.sendall(json.dumps({"failure": traceback.format_exc()}).encode() + b"\n")


def _warm_up() -> None:
    check = _checker()
    for expression in _WARM_UP:
        check(expression, r"\frac{1}{2}")
    gc.collect()
    gc.freeze()  # the collector of an evaluator leaves the shared pages alone


def decide(batch: Batch, connection: socket.socket) -> str:
    """Verdicts of a batch; exits when the other side of ``connection`` closes it meanwhile.

    One character a pair: ``1`` equal, ``0`` not equal, or not decided because it was out of time
    (``t``), out of memory (``m``), or the evaluator died (``d``).
    """
    verdicts = [""] * len(batch.pairs)
    waiting = deque(_ranges([gold for _, gold in batch.pairs]))
    running: list[Evaluator] = []
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while waiting or running:
            while waiting and len(running) < batch.workers:
                evaluator = _fork(batch, [connection, *(other.link for other in running)])
                running.append(evaluator)
                selector.register(evaluator.link, selectors.EVENT_READ, evaluator)
                evaluator.take(waiting.popleft())
            for key, _ in selector.select():
                if key.data is None:
                    for evaluator in running:
                        os.kill(evaluator.pid, signal.SIGKILL)
                    sys.exit()
                evaluator = key.data
                news = evaluator.hear()
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b" ")  # a sign of life, which JSON allows
                for verdict in news:
                    verdicts[evaluator.position] = verdict
                    evaluator.position += 1
                if news and evaluator.position < evaluator.stop:
                    continue
                if news and waiting:
                    evaluator.take(waiting.popleft())
                    continue
                selector.unregister(evaluator.link)
                running.remove(evaluator)
                reason = evaluator.end()
                if reason and evaluator.position < evaluator.stop:
                    verdicts[evaluator.position] = reason
                    evaluator.position += 1
                if evaluator.position < evaluator.stop:
                    waiting.appendleft((evaluator.position, evaluator.stop))
    return "".join(verdicts)


def _ranges(golds: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs of equal golds, so that one evaluator parses a gold once; long ones are split."""
    start = 0
    for i in range(1, len(golds) + 1):
        if i == len(golds) or golds[i] != golds[start] or i - start == _LONGEST_RANGE:
            yield start, i
            start = i


def _fork(batch: Batch, others: Sequence[socket.socket]) -> Evaluator:
    """A new evaluator, which does not keep the sockets of ``others`` open."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return Evaluator(pid, ours)
    status = 1
    try:
        for other in (ours, *others):
            os.close(other.fileno())
        _limit_address_space(_ADDRESS_SPACE_FACTOR * batch.memory)
        status = _evaluate(batch, theirs)
    finally:
        os._exit(status)


def _evaluate(batch: Batch, link: socket.socket) -> int:
    """Answer ranges until the socket is closed; returns the exit status."""
    check = _checker()
    at_first = _peak_memory()
    while message := link.recv(_RANGE.size, socket.MSG_WAITALL):
        for answer, gold in batch.pairs[slice(*_RANGE.unpack(message))]:
            signal.setitimer(signal.ITIMER_PROF, batch.timeout)
            signal.setitimer(signal.ITIMER_REAL, batch.wall)
            equal = check(answer, gold)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            # math-verify and sympy catch MemoryError and go on, to a verdict without a ground.
            # So what counts is what was held, and not which exception came out.
            held = _peak_memory() - at_first
            if held > batch.memory:
                return _OUT_OF_MEMORY
            link.sendall(b"1" if equal else b"0")
            if held > batch.memory // 2:
                return 0  # the next pair deserves the whole of the memory
    return 0


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def _limit_address_space(more: int) -> None:
    """Allow ``more`` bytes beyond what is mapped now, where the system tells how much it is."""
    with contextlib.suppress(FileNotFoundError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + more
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


# --- what an answer says ------------------------------------------------------------------------

_PREFIX = r"(?<![\w.,^{}])"
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_POWER_OF_TEN = re.compile(_PREFIX + r"(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d+)(?!\w)")
_MIXED = re.compile(_PREFIX + r"(\d+)(?:\s|\\ |~)+(?:(\d+)/(\d+)(?![\d/])|(?=\\[dt]?frac))")
_THOUSANDS = re.compile(_PREFIX + r"(\d{1,3}(?:(?:\\[,;! ]|[ ~\u00a0\u202f])\d{3})+)(?![\d/])")
_SIDE_BY_SIDE = re.compile(r"\s*-?\d+(?:\s+-?\d+)+\s*")
_FULL_STOP = re.compile(r"(?<=[\d)}$\]])\.\s*$")
_FULL_WIDTH = re.compile(r"[\uff01-\uff5e]")
_DIGIT = re.compile(r"[^\D0-9]")
_VULGAR = re.compile(r"[\u00bc-\u00be\u2150-\u215e]")
_NUMBER = r"-?(?:\\?\$)?\d[\d,]*(?:\.\d+)?"
_BARE_NUMBER = re.compile(_NUMBER)
_UNIT = (  # any word but those that change the number
    r"(?:\s+(?!(?:hundred|thousand|\w*illion|dozen|squared|cubed|factorial|percent\w*|and|or|half|"
    r"halves|thirds?|quarters?|\w*th(?:s)?|plus|minus|times|over|choose|point|mod\w*|log|sin|cos|"
    r"tan|sqrt|pi)\b)[a-zA-Z]%s)"
)
_COUNTED = re.compile(rf"({_NUMBER}){_UNIT % '{3,}'}+\.?")
_TEXT_NUMBER = re.compile(rf"\\(?:text|mbox|math)\w*\s*\{{\s*({_NUMBER})({_UNIT % '*'}*)\s*\}}")
_INEQUALITY = re.compile(
    r"\\(?:[lg](?:eq?q?|eqslant|t)|neq?|not\s*=)(?![a-zA-Z])|[<>\u2264\u2265\u2260]"
)
_BASE = re.compile(r"(?<![A-Za-z0-9\\])(?:[A-F]*\d[0-9A-F]*|[A-F]{2,})_\s*\{?\s*(\d+)")
_BRACES = re.compile(r"(?:\\left)?\\\{.*\\\}", re.DOTALL)


def _written(text: str) -> str:
    """The text in the notation math-verify reads; what it reads rightly stays as it is."""
    text = _FULL_WIDTH.sub(lambda m: unicodedata.normalize("NFKC", m[0]), text)
    text = _DIGIT.sub(lambda m: str(unicodedata.decimal(m[0])), text)
    text = text.replace("\u221e", r"\infty ").replace(r"\varnothing", r"\emptyset")
    text = _FULL_STOP.sub("", text)
    text = _VULGAR.sub(
        lambda m: r"\frac{" + unicodedata.normalize("NFKC", m[0]).replace("\u2044", "}{") + "}",
        text,
    )
    text = _REPEATING.sub(_fraction, text)
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _MIXED.sub(lambda m: m[1] + (rf"\frac{{{m[2]}}}{{{m[3]}}}" if m[2] else ""), text)
    text = _TEXT_NUMBER.sub(lambda m: m[1] + (m[2] and rf"\text{{{m[2]}}}"), text)
    if _SIDE_BY_SIDE.fullmatch(text):  # which would be added
        text = ",".join(text.split())
    # a relation without its left side, which would be lost
    return "x" + text if _INEQUALITY.match(text.lstrip()) else text


def _fraction(match: re.Match[str]) -> str:
    """A repeating decimal as the fraction it is."""
    whole, before, again = match[1], match[2], match[3] or match[4]
    above = int(whole + before + again) - int(whole + before or "0")
    return rf"\frac{{{above}}}{{{(10 ** len(again) - 1) * 10 ** len(before)}}}"


def _checker() -> Callable[[str, str], bool]:
    """Whether answer and gold are equal, as one function; each string is parsed once."""
    import math_verify
    from sympy import Rel

    _mend_grader()

    @functools.lru_cache(maxsize=1024)
    def parse(text: str) -> list[Any]:
        text = _written(text)
        readings = [_POWER_OF_TEN.sub(r"\1\\cdot10^{\2}", text)]
        if re.search(r"\de[+-]", text):  # 2e-1 may be twice Euler's number less 1
            readings.append(text)
        found = [
            expression
            for reading in readings
            for expression in math_verify.parse(r"\boxed{" + reading + "}", parsing_timeout=None)
        ]
        if _INEQUALITY.search(text):  # a number found in what could not be read as a whole
            found = [e for e in found if isinstance(e, str) or e.has(Rel)]
        return found

    def check(answer: str, gold: str) -> bool:
        bases = [_BASE.findall(text) for text in (gold, answer)]
        if all(bases) and bases[0] != bases[1]:
            return False
        if _BARE_NUMBER.fullmatch(gold) and (counted := _COUNTED.fullmatch(answer.strip())):
            answer = counted[1]
        braces = [_BRACES.fullmatch(text.strip()) is not None for text in (gold, answer)]
        return any(
            math_verify.verify(expected, found, timeout_seconds=None)
            and not _clash(expected, found, braces)
            for expected in parse(gold)
            for found in parse(answer)
        )

    # It warns that its alarm is off. It is on purpose: the kernel's timers do that work.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return check


def _mend_grader() -> None:
    """Have math-verify compare numbers by our rule wherever they stand, in this process."""
    from math_verify import grader
    from sympy import Eq, Float, MatrixBase, MatrixExpr, Ne, UnevaluatedExpr, nan, oo, solve, zoo

    if Ne in grader.INVERSE_RELATIONS:
        return  # done before
    grader.INVERSE_RELATIONS[Ne] = Ne
    by_rounding, by_solutions = grader.sympy_numeric_eq, grader.sympy_solve_and_compare

    def numeric(a: Any, b: Any, rounding: int, precision: int) -> bool:
        if isinstance(a, MatrixBase | MatrixExpr) or isinstance(b, MatrixBase | MatrixExpr):
            return bool(by_rounding(a, b, rounding, precision))
        if any(side.has(oo, -oo, zoo, nan) for side in (a, b)):
            return False  # the same infinity was found equal before
        equal = bool(by_rounding(a, b, rounding, precision))
        if not equal and (a.free_symbols or b.free_symbols):
            return False
        x, y = _value(a), _value(b)
        if not (x.is_number and y.is_number):
            return equal
        if not equal:
            return bool(x == y)
        tolerance = 1e-4 if a.has(Float) or b.has(Float) else 0
        factors = (1, 100) if a.has(UnevaluatedExpr) or b.has(UnevaluatedExpr) else (1,)
        return any(_near(f * x, y, tolerance) or _near(x, f * y, tolerance) for f in factors)

    def solutions(gold: Any, answer: Any, rounding: int, precision: int) -> bool:
        if isinstance(gold, Eq) and not solve(gold, gold.free_symbols):
            return False  # two equations without solutions need not be the same
        return bool(by_solutions(gold, answer, rounding, precision))

    grader.sympy_numeric_eq, grader.sympy_solve_and_compare = numeric, solutions


def _value(expression: Any) -> Any:
    """What is written, decimals as the fractions they are; a number for each symbol."""
    from sympy import Float, Rational

    decimals = {number: Rational(str(number)) for number in expression.atoms(Float)}
    symbols = sorted(expression.free_symbols, key=str)
    numbers = {symbol: Rational(37 + 10 * i, 11) for i, symbol in enumerate(symbols)}
    return expression.xreplace(decimals).subs(numbers).doit()


def _near(x: Any, y: Any, tolerance: float) -> bool:
    """Whether two numbers are equal, or differ by no more than a part of the larger."""
    difference = x - y
    if tolerance == 0:
        # so many digits that what is left of equal numbers is known to be noise
        left = difference.evalf(2, maxn=300)
        return all(part == 0 or part._prec == 1 for part in left.as_real_imag())
    largest = max(abs(x).evalf(20), abs(y).evalf(20))
    return bool(abs(difference).evalf(20) <= tolerance * largest)


def _clash(gold: Any, answer: Any, braces: Sequence[bool]) -> bool:
    """Whether two that math-verify calls equal differ in structure; ``braces``: written as sets."""
    from math_verify import grader
    from sympy import Eq, FiniteSet, Interval, Tuple, ordered

    def shape(side: Any, braced: bool) -> tuple[str, Sequence[Any]]:
        if isinstance(side, Tuple):
            return "tuple", side.args
        if isinstance(side, Interval) and side.is_open:
            return "tuple", (side.start, side.end)
        if isinstance(side, FiniteSet):
            return "set" if braced else "list", getattr(side, "_unsorted_args", side.args)
        return "", (side,)

    pair = gold, answer
    if isinstance(gold, str) or isinstance(answer, str):
        return False
    if isinstance(gold, Eq) and isinstance(answer, Eq):
        # what holds for every value, or for none, says no more than what it equates
        sides = [{_value(part) for part in equation.args} for equation in pair]
        empty = not gold.free_symbols or min(map(len, sides)) == 1
        return empty and sides[0] != sides[1]
    for equation, other in (pair, pair[::-1]):
        if grader.is_equation(equation) and not grader.is_relation(other):
            parts = getattr(equation, "_unsorted_args", [equation])
            numbers = [side for part in parts for side in part.args if side.is_number]
            if not all(_near(_value(n), _value(numbers[-1]), 0.01) for n in numbers):
                return True  # 1 = 2 = 6 is not 6
    bare = [grader.unwrap_eq(side) for side in pair]
    (kind, items), (other, others) = map(shape, bare, braces)
    if {kind, other} == {"tuple", "set"}:
        return True
    if "list" not in (kind, other):
        return False
    if "tuple" not in (kind, other):
        distinct = [len(side.args) if isinstance(side, FiniteSet) else 1 for side in bare]
        if [len(items), len(others)] == distinct:
            return False
        items, others = (ordered(x, keys=grader.sort_key, default=False) for x in (items, others))
    items, others = list(items), list(others)
    return len(items) != len(others) or not all(
        grader.sympy_expr_eq(a, b, 6, 15) for a, b in zip(items, others, strict=True)
    )


if __name__ == "__main__":
    serve()
