"""Chat templates of models, rendered where they can do no harm.

A chat template is a program (Jinja) that comes with a model. transformers renders it in a sandbox
that keeps it from files and attributes, but not from taking all time or memory. Nothing in this
process can stop ``'x' * 10**10``, so templates are rendered in another one, which the kernel ends:

1. One text may take :data:`SECONDS` of CPU time (and ten times that on the clock, while it waits
   for a CPU), :data:`MEMORY` bytes beyond what the process began with, and may be
   :data:`LONGEST` characters longer than its message.
2. The process renders by transformers' own function, so that prompts are what its tokenizers make.
   It is started by the first template (about a second), is shared by all threads and models, and
   ends with this one. A fork of this process starts its own. What has ended it is not rendered
   again; a process that was ended by something else is started once more.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECONDS = 2.0
MEMORY = 512 * 2**20
LONGEST = 2**20

_WALL_FACTOR = 10
_PATIENCE = 120.0  # seconds for a start and a text; only a process that was stopped takes them
_LONGEST_REASON = 300
_SECRETS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")  # ends of variables that it is not given


class TemplateError(Exception):
    """A chat template does not render; says why."""


def render(template: str, special: Mapping[str, str], message: str) -> str:
    """A user's message in a chat template, with the opening of the answer.

    Args:
        template: Source of the template.
        special: Special tokens by name, such as ``bos_token``.
        message: What the user says.

    Returns:
        The text.

    Raises:
        TemplateError: If the template is wrong, or takes more than is allowed.

    Example:
        >>> render("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}", {}, "Hi")
        '[user] Hi'
    """
    asked = json.dumps([SECONDS, template, dict(special), message]).encode() + b"\n"
    limit = 12 * (len(message) + LONGEST) + 2**10  # JSON writes a character in 12 bytes at most
    global _process
    with _lock:
        for _ in range(2):
            _process = _process or _Process()
            try:
                reply = _process.ask(asked, limit)
            except BaseException:  # an interrupt too: its reply would answer the next message
                _process.process.kill()
                _end()
                raise
            if reply is not None:
                break
            status = _end()
            if status in (-signal.SIGPROF, -signal.SIGALRM):
                raise TemplateError(f"it takes more than {SECONDS:g} s of CPU time")
        else:
            raise TemplateError("it ended the process that renders it twice")
    if "failure" in reply:
        raise TemplateError(reply["failure"])
    return str(reply["text"])


class _Process:
    """The process that renders, and the socket to it."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(_PATIENCE)
        with theirs:
            # by path, so that it needs no importable package; in a session of its own, so that
            # an interrupt of the terminal or notebook reaches this process only
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", str(Path(__file__))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if not k.endswith(_SECRETS)},
            )

    def ask(self, asked: bytes, limit: int) -> dict[str, Any] | None:
        """The reply; None where the process has ended."""
        received = bytearray()
        try:
            self.socket.sendall(asked)
            while not received.endswith(b"\n"):
                part = self.socket.recv(1 << 16)
                if not part or len(received) > limit:
                    return None
                received += part
        except ConnectionError:
            return None
        except TimeoutError:
            raise TemplateError(f"no text within {_PATIENCE:g} s") from None
        reply: dict[str, Any] = json.loads(received)
        return reply

    def end(self) -> int:
        """Close the socket, upon which it ends itself; its exit status."""
        self.socket.close()
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def forget(self) -> None:
        """In a fork of this process: leave it to the original."""
        self.socket.close()
        self.process.returncode = 0  # not our child: nothing to wait for, nothing to warn of


_lock = threading.Lock()
_process: _Process | None = None


def _end() -> int:
    global _process
    process, _process = _process, None
    return process.end() if process else 0


def _forget() -> None:
    global _process, _lock
    _lock = threading.Lock()  # another thread may have held it at the fork
    process, _process = _process, None
    if process:
        process.forget()


# --- in the other process -----------------------------------------------------------------------


def _serve() -> None:
    """Answer each line on the socket with one line, until the other side closes it."""
    limits = {signal.SIGPROF, signal.SIGALRM}
    for number in limits:  # may have been inherited as ignored
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, limits)
    link = socket.socket(fileno=0)
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    for line in link.makefile("rb"):
        seconds, *asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, _WALL_FACTOR * seconds)
        link.sendall(_reply(render_jinja_template, *asked) + b"\n")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _reply(renderer: Any, template: str, special: dict[str, str], message: str) -> bytes:
    try:
        [text], _ = renderer(
            conversations=[[{"role": "user", "content": message}]],
            chat_template=template,
            add_generation_prompt=True,
            **special,
        )
        if len(text) <= len(message) + LONGEST:
            return json.dumps({"text": text}).encode()
        failure = f"it makes {len(text):,} characters of a message of {len(message):,}"
    except MemoryError:
        failure = f"it takes more than {MEMORY // 2**20:,} MiB of memory"
    except Exception as error:  # Jinja's, and all that a program can end with
        failure = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
    return json.dumps({"failure": failure}).encode()


def _limit_memory() -> None:
    """Allow so much beyond what is mapped now, where the system tells how much that is."""
    import resource

    with contextlib.suppress(FileNotFoundError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + MEMORY
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    _serve()
else:
    atexit.register(_end)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)
