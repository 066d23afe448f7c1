"""The command line, from the root of the repository: ``python -m corea build laptop``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from corea.workflow import PipelineError
from corea.workflow.execute import execute, write_parameters
from corea.workflow.pipeline import build, refusal, writable_home
from corea.workflow.profiles import load_profile
from corea.workflow.render import render

_COMMANDS = {
    "build": "make what is missing or changed of a profile, and its book",
    "execute": "execute one run",
    "render": "render the pages of results that are there",
    "parameters": "write the parameter files, for running a notebook by hand",
}
_ELSEWHERE = {
    "plan": ("corea.workflow.plan", "what a profile takes, what is done and what is missing"),
    "claims": ("corea.book.claims", "what both papers claim, decided on the committed tables"),
    "publish": ("corea.workflow.publish", "copy small tables of a full run into the package"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = sys.argv[1:] if arguments is None else [*arguments]
    if words and words[0] in _ELSEWHERE:
        module, _ = _ELSEWHERE[words[0]]
        status: int = import_module(module).main(words[1:])
        return status
    parser = argparse.ArgumentParser(prog="python -m corea", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in _COMMANDS.items():
        command = commands.add_parser(name, help=what)
        command.add_argument("profile")
        if name == "execute":
            command.add_argument("run")
    for name, (_, what) in _ELSEWHERE.items():
        commands.add_parser(name, help=what)
    options = parser.parse_args(words)
    for number in (signal.SIGTERM, signal.SIGHUP):  # unwind, as for an interrupt
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores the second
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        writable_home()
        profile = load_profile(options.profile)
        if options.command == "build":
            print(build(profile))
        elif options.command == "render":
            render(profile)
        elif options.command == "parameters":
            print(*write_parameters(profile), sep="\n")
        elif options.run not in profile.runs:
            raise PipelineError(f"profile {profile.name} has no run {options.run!r}")
        else:
            execute(profile, profile.runs[options.run])
    except PipelineError as error:
        print(error, flush=True)
        return 1
    except OSError as error:
        print(refusal(error), flush=True)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
