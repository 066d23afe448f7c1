r"""The process that runs math-verify for :mod:`corea.verify`; not for import.

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
import resource
import selectors
import signal
import socket
import struct
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RANGE = struct.Struct("=II")
_LONGEST_RANGE = 16  # pairs a message: few messages, and yet nobody is left with all the work
_WALL_FACTOR = 10  # how many times its limit a pair may spend on the clock, waiting included
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
    """What one call of ``verify_batch`` asks.

    Attributes:
        pairs: (answer, gold), equal golds together.
        timeout: CPU seconds for one pair.
        memory: Bytes an evaluator may come to hold beyond what it was forked with.
        workers: How many evaluators at most.
    """

    pairs: list[tuple[str, str]]
    timeout: float
    memory: int
    workers: int


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


def _checker() -> Callable[[str, str], bool]:
    """math-verify as one function of answer and gold; each string is parsed once."""
    import math_verify

    @functools.lru_cache(maxsize=1024)
    def parse(text: str) -> Any:
        return math_verify.parse(r"\boxed{" + text + "}", parsing_timeout=None)

    def check(answer: str, gold: str) -> bool:
        return bool(math_verify.verify(parse(gold), parse(answer), timeout_seconds=None))

    # It warns that its alarm is off. It is on purpose: the kernel's timers do that work.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return check


def decide(batch: Batch, connection: socket.socket) -> str:
    """Verdicts of a batch; exits when the other side of ``connection`` closes it meanwhile.

    Returns:
        One character a pair: ``1`` equal, ``0`` not equal, or not decided because it was out
        of time (``t``), out of memory (``m``), or the evaluator died (``d``).
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
            signal.setitimer(signal.ITIMER_REAL, _WALL_FACTOR * batch.timeout)
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


if __name__ == "__main__":
    serve()
