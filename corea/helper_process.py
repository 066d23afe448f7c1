"""A script as a process beside this one, for what outside texts can make endless.

Nothing in a process can stop ``9**9**9**9`` or ``'x' * 10**10`` while it is being computed. So the
checker of answers and the renderer of chat templates are scripts, which limit themselves by the
kernel's timers, and are asked over a socket, a line of JSON each way. A process starts with the
first question, serves all threads, is replaced when it was lost, and ends with this process. A
fork of this process starts its own. POSIX only.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class HelperLost(Exception):
    """The process ended with an exit status, or was silent and ended here (None)."""

    def __init__(self, status: int | None) -> None:
        """Keep the status."""
        super().__init__(f"the process that helps was lost (status {status})")
        self.status = status


class HelperProcess:
    """The one process of a script, which serves its standard input, a socket, until that closes.

    ``environment`` gives the variables that it is started with.
    """

    def __init__(self, script: Path, environment: Callable[[], Mapping[str, str]]) -> None:
        """Start nothing yet."""
        self._script, self._environment = script, environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        atexit.register(self.end)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    @property
    def pid(self) -> int | None:
        """Number of the process; None if there is none."""
        return self._process.pid if self._process else None

    def ask(self, request: object, patience: float, longest: float = math.inf) -> Any:
        """What it replies to a request, both JSON.

        Nothing heard for ``patience`` seconds (a blank counts), or a reply of more than ``longest``
        bytes, is :class:`HelperLost`; the next question starts another process.
        """
        with self._lock:
            self._start()
            try:
                return self._reply(request, patience, longest)
            except TimeoutError:
                self.end(kill=True)
                raise HelperLost(None) from None
            except ConnectionError:
                raise HelperLost(self.end()) from None
            except BaseException:  # an interrupt too: its reply would answer the next question
                self.end(kill=True)
                raise

    def end(self, *, kill: bool = False) -> int | None:
        """Let the process end, or kill it with all that it started; its exit status."""
        process, link = self._process, self._socket
        self._process = self._socket = None
        if process is None or link is None:
            return None
        link.close()
        if not kill:
            try:
                return process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                pass
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def _start(self) -> None:
        if self._process is not None:
            return
        if os.name != "posix":
            raise RuntimeError("a helper process needs a POSIX system (on Windows: WSL)")
        self._socket, theirs = socket.socketpair()
        with theirs:
            # By path, so that it needs no importable package. In a session of its own, so that an
            # interrupt of the terminal or notebook reaches this process only.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", str(self._script)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # the allocator's reserve would count against the limits on its memory
                env={k: v for k, v in self._environment().items() if not k.startswith("MALLOC_")},
            )

    def _reply(self, request: object, patience: float, longest: float) -> Any:
        link = self._socket
        if link is None:
            raise ConnectionError
        link.settimeout(patience)
        link.sendall(json.dumps(request).encode() + b"\n")
        received = bytearray()
        while not received.endswith(b"\n"):
            part = link.recv(1 << 16)
            received += part
            if not part or len(received) > longest:
                raise ConnectionError
        return json.loads(received)

    def _forget(self) -> None:
        """In a fork of this process: leave it to the original."""
        self._lock = threading.Lock()  # another thread may have held it at the fork
        if self._socket:
            self._socket.close()
        if self._process:
            self._process.returncode = 0  # not our child: nothing to wait for, or to warn of
        self._process = self._socket = None
