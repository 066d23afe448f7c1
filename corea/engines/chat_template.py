"""Chat templates of models, rendered where they can do no harm.

A chat template is a program (Jinja) that comes with a model. transformers renders it in a sandbox
that keeps it from files and attributes, but not from taking all time or memory. Nothing in this
process can stop ``'x' * 10**10``, so templates are rendered in another one, which the kernel ends:

1. One text may take :data:`SECONDS` of CPU time (and ten times that on the clock, while it waits
   for a CPU), :data:`MEMORY` bytes beyond what the process began with, and may be
   :data:`LONGEST` characters longer than its message.
2. The process renders by transformers' own function, so that prompts are what its tokenizers make.
   What has used up its time in it is not rendered again; where the process was ended by something
   else, it is started once more (:mod:`corea.helper_process`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from corea.helper_process import HelperLost, HelperProcess

SECONDS = 2.0
MEMORY = 512 * 2**20
LONGEST = 2**20
PROBE = "Is 12 more than 7?"

_WORKER = Path(__file__).with_name("_template_worker.py")
_PATIENCE = 120.0  # seconds for a start and a text; only a process that was stopped takes them
_SECRETS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")  # ends of variables that it is not given


_helper = HelperProcess(
    _WORKER, lambda: {k: v for k, v in os.environ.items() if not k.endswith(_SECRETS)}
)


class TemplateError(Exception):
    """A chat template does not render; says why."""


def render(template: str, special: Mapping[str, str], message: str) -> str:
    """A user's message in a chat template, with the opening of the answer.

    A template that is wrong, or takes more than is allowed, is a :class:`TemplateError`.

    Example:
        >>> render("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}", {}, "Hi")
        '[user] Hi'
    """
    limits = {"seconds": SECONDS, "memory": MEMORY, "longest": LONGEST}
    request = {**limits, "template": template, "special": dict(special), "message": message}
    limit = 12 * (len(message) + LONGEST) + 2**10  # JSON writes a character in 12 bytes at most
    for _ in range(2):
        try:
            reply = _helper.ask(request, _PATIENCE, limit)
        except HelperLost as lost:
            if lost.status is None:
                raise TemplateError(f"no text within {_PATIENCE:g} s") from None
            if -lost.status in (signal.SIGPROF, signal.SIGALRM):
                raise TemplateError(f"it takes more than {SECONDS:g} s of CPU time") from None
            continue
        if "failure" in reply:
            raise TemplateError(reply["failure"])
        return str(reply["text"])
    raise TemplateError("it ended the process that renders it twice")


def user_message(tokenizer: Any, message: str) -> str:
    """A user's message in a tokenizer's chat template, which must not drop it."""
    try:
        template, special = tokenizer.get_chat_template(), tokenizer.special_tokens_map
    except ValueError as error:  # of several templates none is the default
        raise TemplateError(str(error)) from error
    _require_message(template, tuple(special.items()))
    return render(template, special, message)


@lru_cache(maxsize=64)
def _require_message(template: str, special: tuple[tuple[str, str], ...]) -> None:
    """Refuse a template that drops the message; a model would answer without the question."""
    if PROBE not in (text := render(template, dict(special), PROBE)):
        raise TemplateError(f"of a user's message {PROBE!r} it makes {text[:100]!r}, without it")
