"""Small result tables of full runs of the book, kept in the package.

A reader's own run is small. The chapters therefore show beside it what a full run gave, read from
``data/full_run/<run>/<table>.csv``; ``data/full_run/<run>/provenance.json`` says where those
numbers come from. They are put there, from the root of the repository, by::

    make book PROFILE=laptop-full
    make publish PROFILE=laptop-full        # python -m corea publish laptop-full [RUN ...]

Without runs on the command line these are the runs of the notebooks that import this module.

1. What is published of a notebook replaces all that was of it: one chapter never shows tables of
   two full runs. Those of other notebooks stay.
2. The commit and the versions are those with which the notebooks were executed, the runs that
   the published ones read included, not those of the moment of publishing. A commit that ends
   in ``+changes`` was not clean; several commits are all named.
3. The wall time is that of a notebook. A training that ``build/store`` already held costs
   little of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from corea.book.display import visible
from corea.tasks.suites import MICROWORLD, Suite
from corea.workflow import PipelineError
from corea.workflow.execute import damage
from corea.workflow.notebooks import FULL_RUN, imported_modules
from corea.workflow.profiles import Profile, load_profile

FOLDER = Path(__file__).parents[1] / "data" / "full_run"
LARGEST = 64 * 1024  # bytes of a table
_PROVENANCE = "provenance.json"


def published(run: str, table: str, suite: Suite = MICROWORLD) -> pd.DataFrame | None:
    """A result table of the full run.

    Args:
        run: Name of the run, such as ``"reward_ablation"``.
        table: Name of the table, such as ``"standalone"``.
        suite: Beside what it is shown; full runs are of the microworld.

    Returns:
        The table, or None if no full run with this table is in the package.

    Example:
        >>> published("no_such_run", "table") is None
        True
    """
    path = FOLDER / run / f"{table}.csv"
    return pd.read_csv(path) if suite is MICROWORLD and path.is_file() else None


def facts(run: str, suite: Suite = MICROWORLD) -> dict[str, str]:
    """Where the published tables of a run come from.

    Args:
        run: Name of the run.
        suite: As for :func:`published`.

    Returns:
        Field name to value, as :func:`corea.book.provenance.provenance` gives them for the
        notebooks executed for it, with their number and wall time in all; empty if nothing of it is
        in the package.

    Example:
        >>> facts("no_such_run")
        {}
    """
    path = FOLDER / run / _PROVENANCE
    if suite is not MICROWORLD:
        return {}
    content: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return content


def publish(profile: Profile, runs: Sequence[str] = ()) -> list[Path]:
    """Copy the CSV tables of runs into the package: all of them, or none.

    Args:
        profile: The profile that was run.
        runs: The runs; by default those whose notebook imports this module.

    Returns:
        The files written.

    Raises:
        PipelineError: If there is no such run; or one that is published or read was not
            executed, or with other parameters than the profile's, or before a run that it
            reads, or was changed since; or a published one has no table, one that cannot be
            read or one of more than :data:`LARGEST` bytes. Every complaint is told, and nothing
            has changed.
    """
    if unknown := sorted(set(runs) - profile.runs.keys()):
        raise PipelineError(f"profile {profile.name} has no run {', '.join(unknown)}")
    chosen = list(dict.fromkeys(runs)) or [
        run.name for run in profile.runs.values() if FULL_RUN in imported_modules(run.notebook)
    ]
    if not chosen:
        raise PipelineError(f"no notebook of profile {profile.name} imports corea.book.full_run")
    tables = {run: sorted((profile.directory / "tables" / run).glob("*.csv")) for run in chosen}
    every = list(dict.fromkeys(name for run in chosen for name in [*profile.all_needs(run), run]))
    notes = {run: read_notes(profile, run) for run in every}
    complaints = [*_outdated(profile, notes), *_unfit(tables)]
    if complaints:
        raise PipelineError("\n  ".join(["nothing was published:", *complaints]))

    with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix=".full_run-") as temporary:
        fresh, earlier = Path(temporary, "fresh"), Path(temporary, "earlier")
        if FOLDER.exists():
            shutil.copytree(FOLDER, fresh, ignore=lambda _, names: set(names) & set(chosen))
        for run, paths in tables.items():
            (fresh / run).mkdir(parents=True)
            for path in paths:
                shutil.copyfile(path, fresh / run / path.name)
            own = {name: notes[name] for name in [*profile.all_needs(run), run]}
            content = json.dumps(join_notes(own), indent=1, ensure_ascii=False) + "\n"
            (fresh / run / _PROVENANCE).write_text(content, "utf-8")
        if FOLDER.exists():
            FOLDER.rename(earlier)
        try:
            fresh.rename(FOLDER)
        except OSError:
            if earlier.exists():
                earlier.rename(FOLDER)
            raise
    return sorted(path for run in chosen for path in (FOLDER / run).iterdir())


def read_notes(profile: Profile, run: str) -> dict[str, Any]:
    """What is noted in an executed notebook.

    Args:
        profile: The profile.
        run: One of its runs.

    Returns:
        The notebook's metadata: ``papermill``'s notes, and ``corea``'s, the provenance; nothing
        if it was not executed.
    """
    path = profile.directory / "executed" / f"{run}.ipynb"
    if not path.is_file():
        return {}
    notes: dict[str, Any] = json.loads(path.read_text("utf-8"))["metadata"]
    return notes


def _outdated(profile: Profile, notes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    times = {}
    for run, noted in notes.items():
        if "corea" not in noted:
            yield f"{run} was not executed, or by a pipeline that did not note its commit"
            continue
        began, ended = (noted["papermill"][f"{moment}_time"] for moment in ("start", "end"))
        times[run] = datetime.fromisoformat(began), datetime.fromisoformat(ended)
        output_dir = (profile.directory / "tables" / run).as_posix()
        expected = {**profile.runs[run].parameters, "output_dir": output_dir}
        if found := damage(profile, run):
            yield f"{run}: {found}"
        if noted["papermill"]["parameters"] != expected:
            yield f"{run} was executed with other parameters than the profile's"
        for need in profile.runs[run].needs:
            if need in times and times[run][0] < times[need][1]:
                yield f"{run} was executed before {need}, which it reads"


def _unfit(tables: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    for run, paths in tables.items():
        if not paths:
            yield f"{run} wrote no CSV table"
        for path in paths:
            if (size := path.stat().st_size) > LARGEST:
                yield f"{path} has {size:,} bytes, more than {LARGEST:,}: no small table"
                continue
            try:
                pd.read_csv(path)
            except ValueError as error:
                yield f"{path} is not readable as CSV: {visible(error)}"


def join_notes(notes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The provenance of several runs as one, as a ``provenance.json`` has it.

    Args:
        notes: Run to what :func:`read_notes` returned for it; all were executed.

    Returns:
        Field to its values, each different one once, and the wall time in all.
    """
    facts: dict[str, dict[str, None]] = {}
    for noted in notes.values():
        for field, value in noted["corea"].items():
            facts.setdefault(field, {})[value] = None
    seconds = sum(noted["papermill"]["duration"] for noted in notes.values())
    total = f"{seconds / 60:.0f} minutes, the sum over {len(notes)} notebooks"
    joined = {field: "; ".join(values) for field, values in facts.items()}
    return {**joined, "wall time": total}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: publish tables of a profile's runs.

    Args:
        arguments: Words after the program's name; by default those of the process.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m corea.book.full_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile")
    parser.add_argument("run", nargs="*")
    options = parser.parse_args(arguments)
    try:
        written = publish(load_profile(options.profile), options.run)
    except PipelineError as error:
        print(error)
        return 1
    print(*written, sep="\n")
    commits = {facts(path.parent.name)["commit"] for path in written}
    print(f"made from commit {'; '.join(sorted(commits))}")
    if any("+changes" in commit or "unknown" in commit for commit in commits):
        print("Nobody else has that source: better commit it and make the full run from it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
