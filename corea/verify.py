r"""Checking an answer: math-verify for mathematics, the option itself for choices.

:func:`verify_batch` gives one verdict an answer: True, False, or None where it could not be
decided. Callers treat None as wrong and may count it: ``verdicts.count(None)``.

How math-verify is asked:

1. Answer and gold are each wrapped in ``\boxed{}``, the form both come in, and given to
   ``math_verify.parse`` and ``math_verify.verify`` with their default settings, gold first.
   Nothing else is done to them.
2. Two plain integers (``0`` or up to 15 digits without a leading zero, perhaps a minus) are
   compared as text: there math-verify finds them equal exactly when they are the same. Equal
   answers and golds of up to 40 letters, digits and ``.,+-/=`` are equal for math-verify too,
   which keeps the text beside what it parsed. Other texts, and other equal texts, are not
   judged by their look.
3. A text of more than 1,000 characters, or with more than 16 brackets open at once, is not
   decided and costs nothing. math-verify's parser takes time that grows fast with open
   brackets, and overflows Python's stack on what is longer or deeper, which it takes for "not
   equal". The longest and deepest gold of MATH-500 and OlympiadBench have 204 characters and
   3 brackets.
4. One pair, both parses and all comparisons, gets ``timeout`` seconds of CPU time, and ten
   times that on the clock while it waits for a CPU; so verdicts do not depend on how busy the
   machine is. It gets 512 MiB of memory beyond math-verify itself, and the kernel stops it at
   four times that. What needs more, or ends the worker, is not decided.

Deviations from math-verify on its own:

1. It limits each parse and each comparison to 5 s of its own and calls what takes longer
   **not equal**; here that is None. Its limit is an alarm that only works in the main thread
   (elsewhere it fails on every answer) and that Python cannot act on while a big power is
   being computed, so that ``9^{9^{9^{9}}}`` may hold it for hours. Here it runs without an
   alarm, in processes the kernel stops.
2. The default limit is 2 s: ten times the slowest pair of golds of both sets, and less than
   half of what ``1000000!`` takes (5 s, where this was measured).
3. It and sympy catch ``MemoryError`` and go on to a verdict; here a pair out of memory is None.

The processes are not those of ``multiprocessing`` or of the library pebble. Those either fork
the calling process, which is unsafe with threads (Jupyter, torch), or import the caller's
script again, which breaks a script without an ``if __name__ == "__main__"`` guard, and a
killed worker imports sympy anew. Here one helper process imports math-verify once, and forks
evaluators for every batch (``_verify_worker.py``). It starts with the first call that needs
it, takes one to two seconds for that, is shared by all threads, and ends with this process. A
fork of this process starts its own. POSIX only.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import TypeVar

KINDS = ("math", "choice")

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")
_PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z .,+/=-]{0,39}")
_BRACKET = re.compile(r"[(\[{]|[)\]}]")
_LONGEST = 1000
_DEEPEST = 16
_MEMORY = 512 * 2**20
_REASONS = {
    "s": "too long or nested too deep",
    "t": "out of time",
    "m": "out of memory",
    "d": "worker died",
}
_VERDICTS = {"1": True, "0": False}
_WORKER = Path(__file__).with_name("_verify_worker.py")

_Text = TypeVar("_Text", str, str | None)

_log = logging.getLogger(__name__)


def verify_batch(
    answers: Iterable[str | None],
    golds: Iterable[str],
    kind: str,
    *,
    timeout: float = 2.0,
    workers: int | None = None,
) -> list[bool | None]:
    """Whether each answer is right; None where that could not be decided.

    Each different (answer, gold) is checked once. How many were not decided, and why, is
    logged as a warning.

    Source: paper A, section 4.1 (math-verify); the rules of this module.

    Args:
        answers: Final answers, as :mod:`corea.parsing` reads them, length n. None, an answer
            that is missing, is wrong.
        golds: What was expected, length n.
        kind: ``"math"``, or ``"choice"``: right is exactly the gold, to the letter.
        timeout: CPU seconds for one pair, above 0; for mathematics.
        workers: How many processes, from 1; as many as there are CPUs for this process when
            None.

    Returns:
        A verdict for each answer, in order.

    Raises:
        TypeError: If an answer is neither string nor None, or a gold is no string; names the
            index.
        ValueError: If there are more answers than golds or fewer, a gold is blank, or ``kind``,
            ``timeout`` or ``workers`` is none of the above.
        RuntimeError: If math-verify could not be started.

    Example:
        >>> verify_batch(["12", "13", None], ["12", "12", "12"], "math")
        [True, False, False]
        >>> verify_batch(["B", "b"], ["B", "B"], "choice")
        [True, False]
    """
    answers, golds = _listed("answers", answers, str, NoneType), _listed("golds", golds, str)
    _require(answers, golds, kind, timeout, workers)
    pairs = list(zip(answers, golds, strict=True))
    if kind == "choice":
        return [answer == gold for answer, gold in pairs]
    outcome = {pair: _at_sight(*pair) for pair in set(pairs)}
    # Equal golds together, so that one worker parses them once; sorted, so that the work is
    # divided the same way in every run.
    unknown = sorted((p for p in outcome if not outcome[p]), key=lambda p: (p[1], p[0] or ""))
    if unknown:
        limits = {"timeout": timeout, "memory": _MEMORY, "workers": workers or _cpu_count()}
        outcome |= zip(unknown, _ask({"pairs": unknown, **limits}), strict=True)
    undecided = Counter(_REASONS[outcome[p]] for p in pairs if outcome[p] in _REASONS)
    if undecided:
        reasons = ", ".join(f"{n} {reason}" for reason, n in undecided.most_common())
        _log.warning("%d of %d answers not decided: %s", undecided.total(), len(pairs), reasons)
    return [_VERDICTS.get(outcome[pair]) for pair in pairs]


def _at_sight(answer: str | None, gold: str) -> str:
    """Outcome where the texts settle it, else empty; rules 2 and 3 of this module."""
    if answer is None:
        return "0"
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return "1" if answer == gold else "0"
    if answer == gold and _PLAIN.fullmatch(answer):
        return "1"
    return "s" if _too_large(answer) or _too_large(gold) else ""


def _too_large(text: str) -> bool:
    if len(text) > _LONGEST:
        return True
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest > _DEEPEST


class _Helper:
    """The process that runs math-verify, and the socket to it."""

    def __init__(self) -> None:
        if os.name != "posix":
            raise RuntimeError("checking mathematics needs a POSIX system (on Windows: WSL)")
        self.socket, theirs = socket.socketpair()
        with theirs:
            # By path, so that it needs no importable package. In a session of its own, so that
            # an interrupt of the terminal or notebook reaches this process only.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", str(_WORKER)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # sympy's results may depend on the order of sets of strings
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )

    def ask(self, batch: dict[str, object]) -> str:
        """Outcomes of a batch, one character a pair."""
        self.socket.sendall(json.dumps(batch).encode() + b"\n")
        received = bytearray()
        while not received.endswith(b"\n"):
            part = self.socket.recv(1 << 16)
            if not part:
                raise ConnectionError("the process that runs math-verify has ended")
            received += part
        reply = json.loads(received)
        if "failure" in reply:
            raise RuntimeError(f"math-verify could not be run:\n{reply['failure']}")
        return str(reply["verdicts"])

    def end(self) -> None:
        """Close the socket, upon which it ends its evaluators and itself."""
        self.socket.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def forget(self) -> None:
        """In a fork of this process: leave it to the original."""
        self.socket.close()
        self.process.returncode = 0  # not our child: nothing to wait for, nothing to warn of


_lock = threading.Lock()
_helper: _Helper | None = None


def _ask(batch: dict[str, object]) -> str:
    """Outcomes of a batch; the helper is started where there is none, and once more if lost."""
    global _helper
    with _lock:
        lost: ConnectionError | None = None
        for _ in range(2):
            try:
                _helper = _helper or _Helper()
                return _helper.ask(batch)
            except ConnectionError as error:
                lost = error
                _end_helper()
            except BaseException:  # an interrupt too: its reply would answer the next batch
                _end_helper()
                raise
    raise RuntimeError("the process that runs math-verify ended twice on one batch") from lost


def _end_helper() -> None:
    global _helper
    helper, _helper = _helper, None
    if helper:
        helper.end()


def _forget_helper() -> None:
    global _helper, _lock
    _lock = threading.Lock()  # another thread may have held it at the fork
    helper, _helper = _helper, None
    if helper:
        helper.forget()


atexit.register(_end_helper)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helper)


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _listed(name: str, texts: Iterable[_Text], *allowed: type) -> list[_Text]:
    """The texts as a list, having looked at each."""
    expected = " or ".join("None" if t is NoneType else "a string" for t in allowed)
    if isinstance(texts, str):
        raise TypeError(f"{name} is one string, {texts!r}; expected a sequence of them")
    listed = list(texts)
    for i, text in enumerate(listed):
        if not isinstance(text, allowed):
            raise TypeError(f"{name}[{i}] is {text!r} ({type(text).__name__}); expected {expected}")
    return listed


def _require(
    answers: Sequence[str | None],
    golds: Sequence[str],
    kind: str,
    timeout: float,
    workers: int | None,
) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if len(answers) != len(golds):
        raise ValueError(f"{len(answers)} answers for {len(golds)} golds; expected as many")
    for i, gold in enumerate(golds):
        if not gold.strip():
            raise ValueError(f"golds[{i}] is {gold!r}; expected an answer that can be met")
    if not (isinstance(timeout, int | float) and 0.01 <= timeout <= 3600):
        raise ValueError(f"timeout is {timeout!r}; expected seconds from 0.01 to 3600")
    if workers is not None and not (isinstance(workers, int) and workers >= 1):
        raise ValueError(f"workers is {workers!r}; expected a whole number from 1, or None")
