r"""Reading a completion: the final answer, its stated confidence, or a decision.

This is the only place where text becomes an answer or a confidence; rewards, training and
evaluation all read through it. Nothing here raises on any text, and every function takes
time linear in its length. What cannot be read is missing (``None``); a confidence that
cannot be read is never 0.

Paper A's format, "put your final answer within ``\boxed{}``, then output the confidence
(0.0-1.0) that your answer is correct within ``\confidence{}``", is read so:

1. The last one counts, for either command. If the last one cannot be read, the field is
   missing: an earlier one is not fallen back to, since the text took it back.
2. A command is its name, whitespace or none, and a brace. ``\boxed 5`` is none. A doubled
   backslash before the name changes nothing.
3. The argument ends at the brace that matches. An escaped brace, ``\{`` or ``\}``, is a
   sign and not a brace; ``\\}`` is a line break and a brace. An argument that never ends
   cannot be read.
4. Of nested boxes the innermost opened last is the last.
5. The answer is the argument without whitespace around it, at any length. An empty
   argument is a missing answer.
6. A confidence counts only after the last box has ended. One in the reasoning before it, or
   inside it, was stated of something else; after a box that never ends there is none. Where
   there is no box at all, a stated confidence still counts (the answer is missing).
7. A confidence is a decimal number of at most 32 characters in ASCII digits, with
   whitespace around it, a plus sign and an exponent allowed: ``0.85``, ``.85``, ``1.``,
   ``+0.5``, ``8.5e-1``. So a minus sign (``-0`` too), a percentage, a fraction, a decimal
   comma, a word, ``nan``, ``inf``, units, inner braces, digits of other scripts and an empty
   argument are all missing.
8. It lies in [0, 1], or is missing. Out of range is never clipped: ``95`` and ``1e999`` are
   missing. What is smaller than any float (``1e-999``) is 0.

Paper B's format, ``<think>``, reasoning, ``</think>``, then "EXACTLY one capital letter from
[A, B, C, D, E] on its own line", is read so:

9. The decision is what follows the last ``</think>``; what stands before ``<think>``, and
   all reasoning, is not looked at.
10. A ``<think>`` that is not closed (none after it) has no decision: the model was cut off.
11. ``</think>`` alone is enough, since chat templates put ``<think>`` into the prompt. Without
    either tag the whole text is the decision, as in paper B's moderation prompt.
12. The decision is exactly one option, whitespace and blank lines around it allowed. Any
    other text beside it, a second option, a full stop, brackets, quotation marks, markdown
    or a special token the tokenizer left in, and it is missing.
13. Upper and lower case matter, in options and in tags.

A base model may go on after its answer, with a question of its own. For paper A's format:

14. Where an answer and its confidence are complete, in form, and a new question or turn begins
    after them, the text ends there. One begins with a line that starts with Question, Problem,
    Exercise, Q, User, Human or Instruction and a colon (a number, ``#``, ``*`` and ``>`` are
    allowed), or with one of the first four and a number; or with a special token
    (``<|im_start|>``) or ``[INST]``. Anything else after them, such as "Wait", is reasoning, in
    which a last answer counts (rule 1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_BOXED = re.compile(r"\\boxed\s*\{")
_CONFIDENCE = re.compile(r"\\confidence\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # a backslash takes the next character with it
_DECIMAL = re.compile(r"\+?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LONGEST_CONFIDENCE = 32
_COMMAND = r"\\(?P<name>boxed|confidence)\s*\{"
_NESTED = re.compile(rf"{_COMMAND}|\\(?!{_COMMAND.replace('?P<name>', '?:')}).|[{{}}]", re.DOTALL)
_NEW_TURN = re.compile(
    r"^[ \t#*>]*(?:(?:question|problem|exercise|q|user|human|instruction)[ \t]*\d*[ \t*]*:"
    r"|(?:question|problem|exercise|q)[ \t]*\d+\b)|<\|\w{1,40}\|>|\[INST\]",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class ParsedCompletion:
    """What a completion says: its final answer, and the confidence in [0, 1] stated of it."""

    answer: str | None
    confidence: float | None


def parse_completion(text: str) -> ParsedCompletion:
    r"""Read the last ``\boxed{}`` and the ``\confidence{}`` after it.

    Source: paper A, section 3.1 (the instruction); rules 1 to 8 and 14 of this module.

    Example:
        >>> parse_completion(r"So \boxed{\frac{1}{2}}. \confidence{0.85}")
        ParsedCompletion(answer='\\frac{1}{2}', confidence=0.85)
        >>> parse_completion(r"\boxed{4}, or rather \boxed{5} \confidence{95%}")
        ParsedCompletion(answer='5', confidence=None)
    """
    text = _own(text)
    answer, end = _read_answer(text)
    return ParsedCompletion(answer, None if end is None else _read_confidence(text, end))


def confidence_opening(text: str) -> str | None:
    r"""A completion up to and with the brace in which its confidence is stated.

    What follows need not be readable: a completion cut off inside the braces has an opening.

    Source: rules 1, 2, 6 and 14 of this module.

    Example:
        >>> confidence_opening(r"So \boxed{5}. \confidence{0.9} Done.")
        'So \\boxed{5}. \\confidence{'
        >>> confidence_opening(r"\confidence{0.9} \boxed{5}") is None
        True
    """
    text = _own(text)
    _, end = _read_answer(text)
    opening = None if end is None else _last(_CONFIDENCE, text, end)
    return text[: opening.end()] if opening else None


def answer_opening(text: str) -> str | None:
    r"""A completion up to and with the brace in which its answer stands.

    Source: rules 1, 2 and 14 of this module.

    Example:
        >>> answer_opening(r"Not \boxed{4}, so \boxed{5}. \confidence{0.9}")
        'Not \\boxed{4}, so \\boxed{'
    """
    text = _own(text)
    box = _last(_BOXED, text, 0)
    return text[: box.end()] if box else None


def parse_decision(text: str, options: Sequence[str]) -> str | None:
    r"""Read the one option after the reasoning.

    Source: paper B, appendix A (the prompts); rules 9 to 13 of this module.

    Example:
        >>> parse_decision("<think>\nB is wrong.\n</think>\nA", ["A", "B"])
        'A'
        >>> parse_decision("<think>\nB is wrong.\n</think>\nThe answer is A", ["A", "B"]) is None
        True
    """
    _require_text(text)
    _require_options(options)
    reasoning_end = text.rfind("</think>")
    if text.rfind("<think>") > reasoning_end:
        return None
    decision = text[reasoning_end + len("</think>") :] if reasoning_end >= 0 else text
    decision = decision.strip()
    return decision if decision in list(options) else None


def _own(text: str) -> str:
    """The text without what the model goes on with after its answer; rule 14."""
    _require_text(text)
    if not _NEW_TURN.search(text):
        return text
    opened: list[str] = []
    boxed = False
    for token in _NESTED.finditer(text):
        if token[0] == "}":
            closed = opened.pop() if opened else ""
            if closed == "confidence":
                turn = _NEW_TURN.search(text, token.end())
                return text[: turn.start()] if turn else text
            boxed |= closed == "boxed"
        elif token[0].endswith("{") and token[0] != "\\{":
            name = token["name"] or ""
            opened.append("" if name == "confidence" and not boxed else name)
    return text


def _read_answer(text: str) -> tuple[str | None, int | None]:
    """The answer, and where a confidence may follow; nowhere behind a box that never ends."""
    box = _last(_BOXED, text, 0)
    if box is None:
        return None, 0
    closing = _closing_brace(text, box.end())
    return (None, None) if closing is None else (text[box.end() : closing].strip() or None, closing)


def _read_confidence(text: str, start: int) -> float | None:
    command = _last(_CONFIDENCE, text, start)
    closing = _closing_brace(text, command.end()) if command else None
    if command is None or closing is None:
        return None
    stated = text[command.end() : closing].strip()
    if len(stated) > _LONGEST_CONFIDENCE or not _DECIMAL.fullmatch(stated):
        return None
    confidence = float(stated)
    return confidence if confidence <= 1 else None


def _last(command: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
    last = None
    for last in command.finditer(text, start):  # noqa: B007  the last one is what is wanted
        pass
    return last


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace opened just before ``start`` is closed."""
    depth = 1
    for token in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.start()
    return None


def _require_text(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text is {text!r} ({type(text).__name__}); expected a string")


def _require_options(options: Sequence[str]) -> None:
    for i, option in enumerate(options):
        if not isinstance(option, str):
            raise TypeError(
                f"options[{i}] is {option!r} ({type(option).__name__}); expected a string"
            )
        if not option or option != option.strip():
            raise ValueError(
                f"options[{i}] is {option!r}; expected text without whitespace around it"
            )
    if not options or len(set(options)) != len(options):
        raise ValueError(f"options are {list(options)}; expected one or more, all different")
