r"""Checking an answer: math-verify for mathematics, the option itself for choices.

:func:`verify_batch` gives one verdict an answer: True, False, or None where it could not be
decided. Callers treat None as wrong and may count it: ``verdicts.count(None)``.

How mathematics is checked:

1. Answer and gold are each wrapped in ``\boxed{}``, the form both come in, and given to
   ``math_verify.parse`` and ``math_verify.verify`` with their default settings, gold first.
   The deviations below say where its verdict is not the last word.
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

How a choice is checked:

5. What is put around an answer does not count: brackets, quotation marks, markdown, dollar
   signs, ``\text{}`` and its like, a full stop at the end, "Option" or "The answer is" before
   it. What is left is right if it is the gold.
6. A gold that is one letter from A to J may be answered in lower case, by the text of its
   option, or by both (``A) bank``), upper and lower case alike. Where the text beside a letter
   is not that option's, the two are no answer. Where no options are known, the letter decides
   unless another letter follows.
7. A letter of the question is that letter even where it is the text of another option. A text
   that two options share is neither.
8. Anything else beside the answer makes it wrong: ``A or B``, ``AB``, ``not A``.

Deviations from math-verify on its own:

1. It limits each parse and each comparison to 5 s of its own and calls what takes longer
   **not equal**; here that is None. Its limit is an alarm that only works in the main thread
   (elsewhere it fails on every answer) and that Python cannot act on while a big power is
   being computed, so that ``9^{9^{9^{9}}}`` may hold it for hours. Here it runs without an
   alarm, in processes the kernel stops.
2. The default limit is 2 s: ten times the slowest pair of golds of both sets, and less than
   half of what ``1000000!`` takes (5 s, where this was measured).
3. It and sympy catch ``MemoryError`` and go on to a verdict; here a pair out of memory is None.
4. It compares numbers by what is left of their difference at 15 digits or after six decimals,
   so that all numbers near zero are equal. Here numbers written exactly are equal if they are
   exactly equal, wherever they stand (coordinates, coefficients, matrices). Where one is a
   decimal, math-verify has to find them equal and they may differ by 1/10,000 of the larger:
   from 0.01 on its six decimals decide. Decimals that are exactly equal are equal at any size.
5. Notations it misreads are written out first: ``1e20``, ``0.\overline{3}``, ``1 1/2``,
   ``1\,319``, full-width and other scripts' digits, a full stop at the end, integers with blanks
   between them (a list), a number with its unit in one ``\text{}``, an inequality without a left
   side (its variable is then x). ``2e-1`` is read as a power of ten and as Euler's number. Words
   behind a number in the answer are a unit where the gold is a bare number (``72 clips``), but
   for words that change it (``5 million``, ``3 squared``).
6. A tuple is no set in braces, and equals a list without brackets only in the same order. A
   list has its repetitions (``1,2,2`` is not ``1,2``), two sets in braces have none.
7. An inequality it reads only in part equals nothing but its own text (``\ge 7`` is not 7).
   ``a \neq b`` is ``b \neq a``. Equations that hold always, never or without solutions are
   equal if they equate the same things. A chain of equations is its last side only if the
   numbers in it agree to a hundredth (``1=2=6`` is not 6).
8. Infinity equals itself, not ``\infty+1``. Numbers in different bases are different.

What stays as math-verify has it is counted on the page about conformance: units, percent, six
decimals, words behind a number in ``\text{}``, letters in either case, a base left out. Two
kinds depend on the side. A gold that is an inequality may be answered by its interval, and not
the other way round. A gold that is a value may be answered by an equation that ends in it
(``2x+y=7``); a gold equation is answered by its right side only if there are but names on the
left (``x=6``, ``x+y=7``). Words behind a bare number (deviation 5) count in the answer alone.

The processes are not those of ``multiprocessing`` or of the library pebble. Those either fork
the calling process, which is unsafe with threads (Jupyter, torch), or import the caller's
script again, which breaks a script without an ``if __name__ == "__main__"`` guard, and a
killed worker imports sympy anew. Here one helper process imports math-verify once, and forks
evaluators for every batch (``_verify_worker.py``). It starts with the first call that needs
it, takes one to two seconds for that, is shared by all threads, and ends with this process. A
fork of this process starts its own. Where it is killed, or gives no sign of life for as long as
a pair and its own start may take, it is replaced, once a batch; pairs of a batch that lost it
twice are not decided. POSIX only.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import TypeVar

from corea import checks
from corea.helper_process import HelperLost, HelperProcess

KINDS = ("math", "choice")

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")
_PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z .,+/=-]{0,39}")
_BRACKET = re.compile(r"[(\[{]|[)\]}]")
_LONGEST = 1000
_DEEPEST = 16
_MEMORY = 512 * 2**20
_WALL_FACTOR = 10  # how many times its limit a pair may spend on the clock, waiting included
_KILLED = {signal.SIGKILL, signal.SIGTERM}  # from outside, by one who wants memory perhaps
_START_UP = 60  # seconds the helper may take to import math-verify
_REASONS = {
    "s": "too long or nested too deep",
    "t": "out of time",
    "m": "out of memory",
    "d": "worker died",
    "h": "math-verify's process lost twice",
}
_LETTERS = "ABCDEFGHIJ"
_COMMAND = re.compile(r"\\(?:text|math|operatorname|boxed)[a-z]*\s*(?=\{)|\\(?:bf|rm|[()\[\]])")
_WRAPPING = " \t\r\n*_$\"'`()[]{}<>\u2018\u2019\u201c\u201d"
_SAID = re.compile(
    r"(?:the )?(?:(?:final|correct|best|right) )?(?:answer|option|choice)(?: is)?[\s:]+", re.I
)
_LETTER_AND_TEXT = re.compile(r"([A-Ja-j])\s*[).:*\]}(\u2013\u2014-][\s).:*\]}(]*(.+)", re.DOTALL)
_VERDICTS = {"1": True, "0": False}
_WORKER = Path(__file__).with_name("_verify_worker.py")

_Text = TypeVar("_Text", str, str | None)

_log = logging.getLogger(__name__)


def score_answers(
    answers: Sequence[str | None],
    golds: Sequence[str],
    kinds: Sequence[str],
    options: Sequence[Sequence[str]] | None = None,
) -> list[bool | None]:
    """:func:`verify_batch` for answers of several kinds: whether each is right, in order."""
    verdicts: list[bool | None] = [None] * len(answers)
    for kind in dict.fromkeys(kinds):
        rows = [i for i, other in enumerate(kinds) if other == kind]
        found = verify_batch(
            [answers[i] for i in rows],
            [golds[i] for i in rows],
            kind,
            options=None if options is None else [options[i] for i in rows],
        )
        for i, verdict in zip(rows, found, strict=True):
            verdicts[i] = verdict
    return verdicts


def verify_batch(
    answers: Iterable[str | None],
    golds: Iterable[str],
    kind: str,
    *,
    options: Iterable[Sequence[str]] | None = None,
    timeout: float = 2.0,
    workers: int | None = None,
) -> list[bool | None]:
    """Whether each answer is right, in order; None where that could not be decided.

    An answer that is missing (None) is wrong. ``options`` are what the letters A, B, ... of each
    question stand for, ``timeout`` the CPU seconds for one pair, ``workers`` as many as there are
    CPUs when None. Each different (answer, gold) is checked once. How many were not decided, and
    why, is logged as a warning.

    Source: paper A, section 4.1 (math-verify); the rules of this module.

    Example:
        >>> verify_batch(["12", "13", None], ["12", "12", "12"], "math")
        [True, False, False]
        >>> options = [("bank", "library")] * 3
        >>> verify_batch(["**B**", "library", "A or B"], ["B"] * 3, "choice", options=options)
        [True, True, False]
    """
    answers, golds = _listed("answers", answers, str, NoneType), _listed("golds", golds, str)
    checks.one_of(kind, "kind", KINDS)
    texts = [()] * len(golds) if options is None else [tuple(each) for each in options]
    for name, values in (("answers", answers), ("options", texts)):
        if len(values) != len(golds):
            raise ValueError(f"{len(values)} {name} for {len(golds)} golds; expected as many")
    for i, gold in enumerate(golds):
        if not gold.strip():
            raise ValueError(f"golds[{i}] is {gold!r}; expected an answer that can be met")
    if not (isinstance(timeout, int | float) and 0.01 <= timeout <= 3600):
        raise ValueError(f"timeout is {timeout!r}; expected seconds from 0.01 to 3600")
    if workers is not None:
        checks.whole(workers, "workers", 1)
    pairs = list(zip(answers, golds, strict=True))
    if kind == "choice":
        return [
            answer is not None and _is_chosen(answer, gold, choices)
            for (answer, gold), choices in zip(pairs, texts, strict=True)
        ]
    outcome = {pair: _at_sight(*pair) for pair in set(pairs)}
    # Equal golds together, so that one worker parses them once; sorted, so that the work is
    # divided the same way in every run.
    unknown = sorted((p for p in outcome if not outcome[p]), key=lambda p: (p[1], p[0] or ""))
    if unknown:
        limits = {"timeout": timeout, "wall": _WALL_FACTOR * timeout, "memory": _MEMORY}
        batch = {"pairs": unknown, **limits, "workers": workers or _cpu_count()}
        found = _ask(batch, limits["wall"] + _START_UP) or "h" * len(unknown)
        outcome |= zip(unknown, found, strict=True)
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


def _is_chosen(answer: str, gold: str, options: Sequence[str]) -> bool:
    """Whether an answer is the option; rules 5 to 8 of this module."""
    if answer == gold:
        return True
    if len(answer) > _LONGEST:
        return False
    said = _bare(answer)
    if len(gold) != 1 or gold not in _LETTERS:
        return bool(said) and said in (gold, _bare(gold))
    letters = _LETTERS[: len(options)] if options else _LETTERS
    if len(said) == 1 and said.upper() in letters:
        return said.upper() == gold
    for read in (_folded, lambda text: _folded(_bare(text))):
        texts = [read(option) for option in options]
        if texts.count(read(answer)) == 1:
            return letters[texts.index(read(answer))] == gold
    parts = _LETTER_AND_TEXT.fullmatch(said)
    if parts is None or parts[1].upper() != gold:
        return False
    if options:
        return _folded(_bare(parts[2])) == _folded(_bare(options[letters.index(gold)]))
    return not re.search(r"\b[A-J]\b", parts[2])


def _bare(text: str) -> str:
    """The text without what is put around an answer."""
    text = _COMMAND.sub("", text).lstrip(_WRAPPING)
    while said := _SAID.match(text):
        text = text[said.end() :].lstrip(_WRAPPING + ":")
    return text.rstrip(_WRAPPING + ".,;:")


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _too_large(text: str) -> bool:
    if len(text) > _LONGEST:
        return True
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest > _DEEPEST


# sympy's results may depend on the order of sets of strings
_helper = HelperProcess(_WORKER, lambda: {**os.environ, "PYTHONHASHSEED": "0"})


def _ask(batch: dict[str, object], patience: float) -> str:
    """Outcomes of a batch, one character a pair; empty if math-verify's process was lost twice."""
    for _ in range(2):
        try:
            reply = _helper.ask(batch, patience)
        except HelperLost as error:
            lost = error
            continue
        if "failure" in reply:
            raise RuntimeError(f"math-verify could not be run:\n{reply['failure']}")
        return str(reply["verdicts"])
    if lost.status is None or -lost.status in _KILLED:
        return ""
    raise RuntimeError("the process that runs math-verify ended twice on one batch") from lost


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
