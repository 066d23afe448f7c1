"""Copies the small result tables of a full run into the package, where the chapters show them.

From the root of the repository::

    make book PROFILE=laptop-full
    make publish PROFILE=laptop-full        # python -m corea publish laptop-full [RUN ...]

Runs may be named; by default they are those of the notebooks that import
:mod:`corea.book.full_run` themselves. Only the profiles that the chapters expect are published,
:data:`corea.book.full_run.PROFILE` and, of real models, :data:`corea.book.full_run.REAL_PROFILE`.

1. What is published of a notebook replaces all that was of it: one chapter never shows tables of
   two full runs, and its provenance has the SHA-256 of each and those of its parameters that are
   numbers. Those of other notebooks stay, also of other commits.
2. The commit and the versions are those with which the notebooks were executed, the runs that
   the published ones read included, not those of the moment of publishing. A commit that ends
   in ``+changes`` was not clean; several commits are all named.
3. Models that packages hold are named, with the type of their weights and their SHA-256.
4. Of a run that leaves a model to others (:mod:`corea.runs`) its records are kept, but for answers,
   as CSV, and what it says of the model: chapters read such a folder as they read the run's.
5. The wall time is that of a notebook. A training that ``build/store`` already held costs
   little of it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from corea.book import full_run
from corea.book.display import visible
from corea.engines.gguf_files import read_header
from corea.records import read_records
from corea.runs import OPTION_PLACES
from corea.tasks.decision_questions import PLACES
from corea.workflow import PipelineError
from corea.workflow.execute import damage
from corea.workflow.notebooks import EVIDENCE, FULL_RUN, own_imports
from corea.workflow.profiles import Profile, texts


def publish(profile: Profile, runs: Sequence[str] = ()) -> list[Path]:
    """Copy the CSV tables of runs into the package, all or none, and return the files written.

    A PipelineError has every complaint: of runs that are not whole, not executed with the profile's
    parameters or before what they read, or whose tables are missing, unreadable or too large.
    """
    places = {full_run.PROFILE: full_run.FOLDER, full_run.REAL_PROFILE: full_run.REAL}
    if profile.name not in places:
        raise PipelineError(
            f"profile {profile.name} is not published; expected {' or '.join(places)}, whose "
            "numbers the chapters and the claims take them for"
        )
    if unknown := sorted(set(runs) - profile.runs.keys()):
        raise PipelineError(f"profile {profile.name} has no run {', '.join(unknown)}")
    chosen = list(dict.fromkeys(runs)) or [
        run.name
        for run in profile.runs.values()
        if {FULL_RUN, EVIDENCE} & set(own_imports(run.notebook))
    ]
    if not chosen:
        raise PipelineError(
            f"no notebook of profile {profile.name} imports corea.book.full_run "
            "or corea.book.evidence"
        )
    folders = {run: profile.directory / "tables" / run for run in chosen}
    tables = {run: sorted(folder.glob("*.csv")) for run, folder in folders.items()}
    every = list(dict.fromkeys(name for run in chosen for name in [*profile.all_needs(run), run]))
    notes = {run: read_notes(profile, run) for run in every}
    complaints = [*_outdated(profile, notes), *_unfit(tables, folders)]
    if complaints:
        raise PipelineError("\n  ".join(["nothing was published:", *complaints]))

    folder = places[profile.name]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".full_run-") as temporary:
        fresh, earlier = Path(temporary, "fresh"), Path(temporary, "earlier")
        if folder.exists():
            shutil.copytree(folder, fresh, ignore=lambda _, names: set(names) & set(chosen))
        for run, paths in tables.items():
            (fresh / run).mkdir(parents=True)
            for path in paths:
                shutil.copyfile(path, fresh / run / path.name)
            written = [fresh / run / path.name for path in paths]
            written += (records := _copy_model(folders[run], fresh / run))
            if complaints := [*_too_large(records)]:
                raise PipelineError("\n  ".join(["nothing was published:", *complaints]))
            read = {name: notes[name] for name in [*profile.all_needs(run), run]}
            given = notes[run]["papermill"]["parameters"].items()
            told = (
                join_notes(read)
                | _models(profile, read)
                | {
                    "schema": full_run.SCHEMA,
                    "parameters": {name: v for name, v in given if isinstance(v, int | float)},
                    "tables": {path.name: full_run.digest(path) for path in written},
                }
            )
            content = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
            (fresh / run / full_run.PROVENANCE).write_text(content, "utf-8")
        if folder.exists():
            folder.rename(earlier)
        try:
            fresh.rename(folder)
        except OSError:
            if earlier.exists():
                earlier.rename(folder)
            raise
    return sorted(path for run in chosen for path in (folder / run).iterdir())


def read_notes(profile: Profile, run: str) -> dict[str, Any]:
    """Metadata of an executed notebook, papermill's and our own; empty if it was not executed."""
    path = profile.directory / "executed" / f"{run}.ipynb"
    if not path.is_file():
        return {}
    notes: dict[str, Any] = json.loads(path.read_text("utf-8"))["metadata"]
    return notes


def join_notes(notes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The provenance of executed runs as one: each different value once, and the time in all."""
    facts: dict[str, dict[str, None]] = {}
    for noted in notes.values():
        for field, value in noted["corea"].items():
            facts.setdefault(field, {})[value] = None
    seconds = sum(noted["papermill"]["duration"] for noted in notes.values())
    total = f"{seconds / 60:.0f} minutes, the sum over {len(notes)} notebooks"
    return {**{field: "; ".join(values) for field, values in facts.items()}, "wall time": total}


def _copy_model(run: Path, folder: Path) -> list[Path]:
    """Copy what a run says of its model, and its records without texts; the files written."""
    if not (run / "model.json").is_file():
        return []
    copied = []
    for name in ("model.json", "settings.json"):
        if (run / name).is_file():
            copied.append(shutil.copyfile(run / name, folder / name))
    for path in sorted(run.glob("records*.parquet")):
        table = read_records(path).table
        if "p_1" in table:  # of decisions
            for column, places in OPTION_PLACES.items():
                table[places] = table[column].map(PLACES).astype("Int64") + 1
        table = table.drop(columns=[*OPTION_PLACES], errors="ignore")
        copied.append(folder / f"{path.stem}.csv")
        table.to_csv(copied[-1], index=False, float_format="%.5g")
    return copied


def _models(profile: Profile, runs: Iterable[str]) -> dict[str, Any]:
    """The weights behind some runs, with type and SHA-256, and the published runs that they read.

    ``models`` has the packaged models that runs name and those of the published runs; ``runs``
    the SHA-256 of what each published run's provenance was.
    """
    named = [*texts([dict(profile.runs[run].parameters) for run in runs])]
    read = [Path(text).name for text in named if Path(text).absolute().parent == full_run.REAL]
    told = [
        f"{model.model or path} ({read_header(Path(path)).quantization}, SHA-256 {model.sha256})"
        for path, model in profile.models.items()
        if path in named
    ]
    told += [facts["models"] for run in read if "models" in (facts := full_run.real_facts(run))]
    digests = {run: full_run.digest(full_run.REAL / run / full_run.PROVENANCE) for run in read}
    found = {"models": "; ".join(dict.fromkeys(told)), "runs": digests}
    return {name: value for name, value in found.items() if value}


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


def _unfit(tables: Mapping[str, Sequence[Path]], folders: Mapping[str, Path]) -> Iterator[str]:
    for run, paths in tables.items():
        if not paths and not (folders[run] / "model.json").is_file():
            yield f"{run} wrote no CSV table"
        yield from _too_large(paths)
        for path in paths:
            try:
                pd.read_csv(path)
            except ValueError as error:
                yield f"{path} is not readable as CSV: {visible(error)}"


def _too_large(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        if (size := path.stat().st_size) > full_run.LARGEST:
            yield f"{path} has {size:,} bytes, more than {full_run.LARGEST:,}: no small table"


def tell(written: Sequence[Path]) -> Iterator[str]:
    """What was published, and of which run, in lines."""
    yield from map(str, written)
    commits = set()
    for run in dict.fromkeys(path.parent.name for path in written):
        real = any(path.is_relative_to(full_run.REAL) for path in written)
        told = full_run.real_facts(run) if real else full_run.facts(run)
        commits.add(told["commit"])
        kept = ("commit", "seed", "device", "wall time")
        yield f"{run}: " + ", ".join(f"{name} {told[name]}" for name in kept if name in told)
    if any("+changes" in commit or "unknown" in commit for commit in commits):
        yield "Nobody else has that source: better commit it and make the full run from it."
