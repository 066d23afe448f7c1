"""The process that renders chat templates for :mod:`corea.engines.chat_template`; not for import.

Started by path, it answers one request after another over its standard input, a socket. The
kernel's timers end it when a text takes too long: Python's own handlers of signals wait until the
interpreter is back from C, which for a long enough repetition is never.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WALL_FACTOR = 10  # how many times its CPU time a text may spend on the clock, waiting included
_LONGEST_REASON = 300


def serve() -> None:
    """Answer each line on the socket with one line, until the other side closes it."""
    limits = {signal.SIGPROF, signal.SIGALRM}
    for number in limits:  # may have been inherited as ignored
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, limits)
    link = socket.socket(fileno=0)
    from transformers.utils.chat_template_utils import render_jinja_template

    mapped = _mapped()
    for line in link.makefile("rb"):
        asked = json.loads(line)
        _limit_memory(mapped, asked["memory"])
        signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        signal.setitimer(signal.ITIMER_REAL, _WALL_FACTOR * asked["seconds"])
        link.sendall(_reply(render_jinja_template, asked) + b"\n")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _reply(render: Callable[..., Any], asked: dict[str, Any]) -> bytes:
    message: str = asked["message"]
    try:
        [text], _ = render(
            conversations=[[{"role": "user", "content": message}]],
            chat_template=asked["template"],
            add_generation_prompt=True,
            **asked["special"],
        )
        if len(text) <= len(message) + asked["longest"]:
            return json.dumps({"text": text}).encode()
        failure = f"it makes {len(text):,} characters of a message of {len(message):,}"
    except MemoryError:
        failure = f"it takes more than {asked['memory'] // 2**20:,} MiB of memory"
    except Exception as error:  # Jinja's, and all that a program can end with
        failure = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
    return json.dumps({"failure": failure}).encode()


def _mapped() -> int:
    """Bytes that are mapped now, where the system tells it, else 0."""
    with contextlib.suppress(FileNotFoundError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return pages * resource.getpagesize()
    return 0


def _limit_memory(mapped: int, more: int) -> None:
    """Allow ``more`` bytes beyond those that were ``mapped``, where that is known."""
    if mapped:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = mapped + more
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    serve()
