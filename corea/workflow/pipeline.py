"""The pipeline: a profile's parameters -> executed notebooks and tables -> the book.

``Snakefile`` says what depends on what, so that only what is missing or changed
is made again; this module is what its rules run and what they ask. Run it from
the root of the repository::

    python -m corea.workflow.pipeline build laptop               # what `make book` runs
    python -m corea.workflow.pipeline parameters laptop          # only the parameter files
    python -m corea.workflow.pipeline execute laptop cascade     # one notebook, by papermill
    python -m corea.workflow.pipeline render laptop              # only the pages

Everything of a profile is made below ``build/<profile>/``:

================  ============================================================
``parameters/``   one YAML file per run, as passed to ``papermill -f``
``running/``      notebooks while they run
``executed/``     notebooks that ran to their end
``failed/``       notebooks that did not, with the reason beside them
``locks/``        one file per run, held by whoever executes it
``tables/``       what a run wrote to its ``output_dir``, sealed when it had run to its end
``logs/``         papermill's and jupyter-book's output
``source/``       the book's source: pages, executed notebooks, static files
``_build/html/``  the book
================  ============================================================

A profile, ``profiles/<profile>.yaml``, holds its own name, a seed and the runs::

    profile: laptop
    seed: 0
    runs:
      calibration:            # name of the run, and of its page
        notebook: calibration # optional: by default the name of the run
        parameters:
          resamples: 1000

Every run gets ``profile``, ``seed`` and its parameters. A profile must name
exactly the parameters that the notebook's cell tagged ``parameters`` assigns,
since papermill only warns about a name it does not know and stays silent about
one that is missing. ``output_dir`` alone is left to the pipeline: a notebook
writes result tables there, and none when it is empty, as it is by hand.

An entry may stand for several runs of its notebook, one for each variant and seed::

      train:
        parameters: {steps: 40, base: "{tables}/pretrain"}
        variants:             # what each changes: the runs train_l1, train_rlvr
          l1: {reward: l1}
          rlvr: {reward: none}
        seeds: [0, 1]         # in place of the profile's: train_l1_s0, train_l1_s1, ...
      compare:
        parameters:
          runs: ["{tables}/train_l1_s*"]

A run reads what another one wrote by naming its folder in a parameter,
``build/<profile>/tables/<run>``, and then runs after it. ``{tables}`` stands for
``build/<profile>/tables``, so that profiles can share text, and an item of a list with
``*`` for every run whose name fits, in sorted order. The pages of variants are
not chapters of ``_toc.yml`` but sections of the page ``book/<entry>.md`` there or, where it
lists none, of ``book/<notebook>.md``.

A profile may name the Jupyter kernel of its notebooks, and what its runs ask of a
cluster; an entry may ask otherwise::

    kernel: corea-gpu         # optional: by default python3, that of this environment
    resources: {gpus: 1, cpus: 8, memory_gb: 64, minutes: 720}
    runs:
      train:
        resources: {minutes: 1440}

The first ``resources`` are for runs that train or generate, which is those whose notebook
imports :mod:`corea.stages`; any other run asks for what :class:`Resources` says.

As many notebooks run at once as there are cores, with one thread each, since several
that use every core slow each other down: ``OMP_NUM_THREADS`` is the number of ``cpus`` that
a run asks for. Runs that ask for GPUs go one after the other on one machine. A run is
executed by one process at a time, on whatever machine: ``locks/<run>`` is held meanwhile,
so that a job that a cluster starts a second time waits for the first.
Lines that a notebook prints with ``progress: `` before them are shown while it runs
and are not part of the executed notebook.

The pages are those of whole results only. The first run that is executed removes the book that
there is, and it is rendered when all runs have succeeded. A run's folder of tables is sealed
(:mod:`corea.store`), with the digest of its executed notebook and the names of the entries of the
store that it asked for. Where any of these is missing or was changed, the run is executed again;
a page that was changed is rendered again.
"""

from __future__ import annotations

import argparse
import ast
import errno
import fcntl
import graphlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml

from corea.book.display import visible
from corea.book.provenance import PACKAGES, provenance
from corea.sources import imported_files, with_imports
from corea.store import ENTRIES, LEAST_SPACE, StoreError, check_seal, locked, seal

GIVEN = ("profile", "seed", "output_dir")  # parameters that a profile's runs do not list
VERSIONS = (*PACKAGES, "torch", "transformers", "trl")  # packages noted in executed notebooks
KERNEL = "python3"  # of the environment that the pipeline runs in
# what a notebook imports that trains or generates; a name of a script would count as starting it
STAGES = Path("corea", "stages").with_suffix(".py")
FULL_RUN = Path("corea", "book", "full_run.py")  # reads the one part of the data that few runs read
RESULT = "run.json"  # in a run's tables: what else belongs to its result
PROGRESS = "progress: "  # what a line starts with that is shown and not kept
# a folder of results in a parameter, with or without a file in it
TABLES = re.compile(r"build/(?P<profile>[^/]+)/tables(?:/(?P<run>[^/]*)(?P<file>/.*)?)?")
LONG_CELL = 15  # lines above which the book folds a code cell
# the parts of MathJax that pages may load: TeX in, HTML out, and its accessibility menu
MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts", "ui", "a11y", "sre")


_MENDS = {
    errno.ENOSPC: "The disk is full: free some space and run it again; what is finished is kept",
    errno.EDQUOT: "Your quota is used up: free some and run it again; what is finished is kept",
    errno.EACCES: "Make it yours to write (chown, chmod), or work in a copy of the repository",
    errno.EROFS: "Work in a copy of the repository that can be written",
}


class PipelineError(Exception):
    """What a person must know and can mend: shown without a traceback."""


@dataclass(frozen=True)
class Resources:
    """What a run asks of a cluster, and the least that a run can ask.

    Attributes:
        gpus: GPUs, all on one node.
        cpus: Processor cores, and threads.
        memory_gb: Memory, in GB of 1,000 MB.
        minutes: Time after which it is ended; what it trained it goes on with when run again.
    """

    gpus: int = 0
    cpus: int = 1
    memory_gb: int = 4
    minutes: int = 60


@dataclass(frozen=True)
class Run:
    """One notebook with one set of parameters.

    Attributes:
        name: Name of the run, of its page and of its files.
        notebook: The notebook, relative to the repository.
        parameters: Everything passed to papermill, except ``output_dir``.
        label: What tells its page from those of the notebook's other runs, such as
            ``"l1, seed 0"``; empty for a notebook's only run.
        needs: Runs whose folders its parameters name.
        resources: Fields of :class:`Resources` that its entry sets.
        entry: Name of its entry in the profile.
    """

    name: str
    notebook: Path
    parameters: Mapping[str, Any]
    label: str = ""
    needs: tuple[str, ...] = ()
    resources: Mapping[str, int] = field(default_factory=dict)
    entry: str = ""

    @cached_property
    def trains(self) -> bool:
        """Whether its notebook trains or generates: it imports :mod:`corea.stages` itself."""
        return STAGES in _imports(self.notebook)


@dataclass(frozen=True)
class Profile:
    """The runs of a book.

    Attributes:
        name: Name of the profile, also of its file and its build folder.
        seed: Seed of every random number.
        runs: The runs by name.
        kernel: Name of the Jupyter kernel that executes the notebooks.
        resources: Fields of :class:`Resources` for runs that train or generate.
    """

    name: str
    seed: int
    runs: Mapping[str, Run]
    kernel: str = KERNEL
    resources: Mapping[str, int] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where everything of this profile is made."""
        return Path("build", self.name)

    @property
    def index(self) -> Path:
        """The page that opens the book."""
        return self.directory / "_build" / "html" / "index.html"

    def all_needs(self, name: str) -> list[str]:
        """Runs whose results a run reads, directly or through others, in a possible order."""
        found: dict[str, None] = {}
        for need in self.runs[name].needs:
            found |= dict.fromkeys([*self.all_needs(need), need])
        return list(found)

    def asked(self, name: str) -> Resources:
        """What a run asks of a cluster: as its entry says, or else as its profile does."""
        run = self.runs[name]
        return Resources(**{**(self.resources if run.trains else {}), **run.resources})

    @cached_property
    def readers(self) -> Sequence[str]:
        """Runs that only read what others left, and that no run waits for."""
        awaited = {need for run in self.runs.values() for need in run.needs}
        return [run.name for run in self.runs.values() if not (run.trains or run.name in awaited)]

    @cached_property
    def priorities(self) -> Mapping[str, int]:
        """How early to start each run: by the longest chain of runs that wait for it in turn.

        Among equals the first in the profile goes first. The higher, the earlier.
        """
        needs = {run.name: run.needs for run in self.runs.values()}
        chain = dict.fromkeys(needs, 1)
        for name in reversed([*graphlib.TopologicalSorter(needs).static_order()]):
            for need in needs[name]:
                chain[need] = max(chain[need], chain[name] + 1)
        return {name: chain[name] * len(needs) - i for i, name in enumerate(needs)}


# --- profiles ---------------------------------------------------------------------------------


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that appears twice is an error, not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(
                f"line {node.start_mark.line + 1}: {', '.join(repeated)} given more than once"
            )
        return super().construct_mapping(node, deep)


def load_profile(name: str) -> Profile:
    """Read and check ``profiles/<name>.yaml``.

    Args:
        name: Name of the profile.

    Returns:
        The profile.

    Raises:
        PipelineError: If there is no such profile, its notebooks do not exist, its
            keys or types are not those of the notebooks' parameters, two runs have the
            same name, or a run needs one that does not exist or, through others, itself.
            The message names the file and the key.
    """
    path = Path("profiles", f"{name}.yaml")
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in Path("profiles").glob("*.yaml")))
        raise PipelineError(
            f"there is no profile {visible(name)!r} in profiles/ here; there are: {known or 'none'}"
        )
    try:
        content = yaml.load(path.read_text("utf-8"), _UniqueKeyLoader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not readable as YAML: {visible(error)}") from error

    keys, optional = ("profile", "seed", "runs"), ("kernel", "resources")
    content = _checked_mapping(path, "the profile", content, required=keys, optional=optional)
    if content["profile"] != name:
        raise PipelineError(f"{path}: profile is {content['profile']!r}, expected {name!r}")
    seed = content["seed"]
    if type(seed) is not int or seed < 0:
        raise PipelineError(f"{path}: seed is {seed!r}, expected an integer >= 0")
    kernel = content.get("kernel", KERNEL)
    if not isinstance(kernel, str) or not re.fullmatch(r"[\w.-]+", kernel):
        raise PipelineError(f"{path}: kernel is {kernel!r}, expected the name of a Jupyter kernel")
    resources = _checked_resources(path, "resources", content.get("resources", {}))
    if not isinstance(content["runs"], dict) or not content["runs"]:
        raise PipelineError(f"{path}: runs must map at least one name to its parameters")

    runs: dict[str, Run] = {}
    for key, entry in content["runs"].items():
        for run in _entry_runs(path, key, entry, {"profile": name, "seed": seed}):
            if run.name in runs:
                raise PipelineError(f"{path}: runs.{key}: another run is named {run.name} as well")
            runs[run.name] = run
    runs = {run.name: _connected(path, run, runs) for run in runs.values()}
    try:
        graphlib.TopologicalSorter({run.name: run.needs for run in runs.values()}).prepare()
    except graphlib.CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise PipelineError(f"{path}: runs need each other: {circle}") from error
    return Profile(name, seed, runs, kernel, resources)


def _entry_runs(path: Path, key: str, entry: object, given: Mapping[str, Any]) -> Iterator[Run]:
    """The runs of one entry of a profile: one, or one for each variant and seed."""
    where = f"runs.{key}"
    optional = ["notebook", "variants", "seeds", "resources"]
    entry = _checked_mapping(path, where, entry, required=["parameters"], optional=optional)
    stem = entry.get("notebook", key)
    _check_names(path, where, [key, stem])
    notebook = Path("notebooks", f"{stem}.ipynb")
    if not notebook.is_file():
        raise PipelineError(f"{path}: {where}: there is no notebook {notebook}")

    label = [] if key == stem else [key]
    variants = [(key, label, entry["parameters"])]
    if "variants" in entry:
        known = notebook_parameters(notebook).keys() - set(GIVEN)
        common = _checked_mapping(path, f"{where}.parameters", entry["parameters"], optional=known)
        if not isinstance(entry["variants"], dict) or not entry["variants"]:
            raise PipelineError(f"{path}: {where}.variants must map at least one name to changes")
        _check_names(path, f"{where}.variants", entry["variants"])
        variants = []
        for variant, changes in entry["variants"].items():
            part = f"{where}.variants.{variant}"
            changes = _checked_mapping(path, part, changes, optional=known)
            variants.append((f"{key}_{variant}", [*label, variant], common | changes))

    seeds = entry.get("seeds", [])
    if "seeds" in entry and (
        not isinstance(seeds, list)
        or not seeds
        or any(type(seed) is not int or seed < 0 for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise PipelineError(
            f"{path}: {where}.seeds is {seeds!r}, expected a list of different integers >= 0"
        )
    resources = _checked_resources(path, f"{where}.resources", entry.get("resources", {}))
    for name, label, parameters in variants:
        checked = {**given, **_checked_parameters(path, f"runs.{name}", parameters, notebook)}
        words = [part.replace("_", " ") for part in label]
        run = Run(name, notebook, checked, ", ".join(words), resources=resources, entry=key)
        if not seeds:
            yield run
        for seed in seeds:
            seeded = ", ".join([*words, f"seed {seed}"])
            own = checked | {"seed": seed}
            yield replace(run, name=f"{name}_s{seed}", parameters=own, label=seeded)


def _check_names(path: Path, where: str, names: Iterable[object]) -> None:
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise PipelineError(f"{path}: {where}: {name!r} is not made of letters, digits and _")


def _connected(path: Path, run: Run, runs: Collection[str]) -> Run:
    """A run with ``{tables}`` and ``*`` in its parameters filled in, and with what it needs."""
    profile = run.parameters["profile"]
    needs: dict[str, None] = {}

    def fill(where: str, value: Any) -> Any:
        match value:
            case str():
                return folders(where, value, wild=False)[0]
            case dict():
                return {key: fill(f"{where}.{key}", part) for key, part in value.items()}
            case list():
                filled: list[Any] = []
                for part in value:
                    whole = isinstance(part, str)
                    filled += folders(where, part, wild=True) if whole else [fill(where, part)]
                return filled
        return value

    def folders(where: str, text: str, *, wild: bool) -> list[str]:
        text = text.replace("{tables}", f"build/{profile}/tables")
        text = text.replace("{seed}", str(run.parameters["seed"]))
        folder = TABLES.fullmatch(text)
        if not folder:
            return [text]
        if folder["profile"] != profile:
            raise PipelineError(f"{path}: {where} is {text!r}, in the folder of another profile")
        pattern = re.escape(folder["run"] or "")
        fitting = re.compile(pattern.replace(r"\*", r"\w*") if wild else pattern)
        found = sorted(name for name in runs if fitting.fullmatch(name))
        if not found:
            raise PipelineError(f"{path}: {where} is {text!r}, but there is no such run")
        needs.update(dict.fromkeys(found))
        return [f"build/{profile}/tables/{name}{folder['file'] or ''}" for name in found]

    parameters = fill(f"runs.{run.name}.parameters", run.parameters)
    return replace(run, parameters=parameters, needs=tuple(needs))


def _checked_mapping(
    path: Path,
    where: str,
    content: object,
    *,
    required: Collection[str] = (),
    optional: Collection[str] = (),
) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise PipelineError(f"{path}: {where} must be a mapping, found {content!r}")
    if unknown := sorted({str(key) for key in content} - {*required, *optional}):
        raise PipelineError(f"{path}: {where}: unknown key {', '.join(unknown)}")
    if missing := sorted(set(required) - set(content)):
        raise PipelineError(f"{path}: {where}: lacks {', '.join(missing)}")
    return content


def _checked_resources(path: Path, where: str, content: object) -> dict[str, int]:
    least = {name: min(value, 1) for name, value in asdict(Resources()).items()}
    checked = _checked_mapping(path, where, content, optional=least)
    for name, value in checked.items():
        if type(value) is not int or value < least[name]:
            raise PipelineError(
                f"{path}: {where}.{name} is {value!r}, expected an integer >= {least[name]}"
            )
    return checked


def _checked_parameters(
    path: Path, where: str, parameters: object, notebook: Path
) -> dict[str, Any]:
    defaults = notebook_parameters(notebook)
    if lacking := [name for name in GIVEN if name not in defaults]:
        raise PipelineError(f"{notebook}: the parameters cell lacks {', '.join(lacking)}")
    expected = {name: value for name, value in defaults.items() if name not in GIVEN}
    checked = _checked_mapping(path, f"{where}.parameters", parameters, required=expected)
    for name, value in checked.items():
        # a default of None says nothing about the type, and an integer is a fine float
        accepted = (int, float) if type(expected[name]) is float else type(expected[name])
        if expected[name] is not None and (
            not isinstance(value, accepted) or isinstance(value, bool) > (accepted is bool)
        ):
            raise PipelineError(
                f"{path}: {where}.parameters.{name} is {value!r}, expected "
                f"{type(expected[name]).__name__} as in {notebook}"
            )
    return checked


def notebook_parameters(notebook: Path) -> dict[str, Any]:
    """Names and default values that a notebook's parameters cell assigns.

    Args:
        notebook: A notebook with exactly one code cell tagged ``parameters``.

    Returns:
        Name to default value.

    Raises:
        PipelineError: If there is no such cell, or it does anything but assign
            literals to names.
    """
    cells = [
        (number, "".join(cell["source"]))
        for number, cell in enumerate(_read_notebook(notebook)["cells"], 1)
        if "parameters" in cell["metadata"].get("tags", [])
    ]
    if len(cells) != 1:
        raise PipelineError(
            f"{notebook}: {len(cells)} cells are tagged 'parameters', expected exactly one"
        )
    number, source = cells[0]
    parameters = {}
    for statement in _parse_cell(notebook, number, source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                raise PipelineError(
                    f"{notebook}: cell {number}: {ast.unparse(statement)!r} is not a parameter; "
                    "expected 'name = literal'"
                )
        try:
            parameters[name] = ast.literal_eval(value)
        except ValueError as error:
            raise PipelineError(
                f"{notebook}: cell {number}: the default of {name} is not a literal"
            ) from error
    return parameters


def write_parameters(profile: Profile) -> list[Path]:
    """Write one parameter file per run, for ``papermill -f``.

    A file whose content would not change is left alone, so that its time of change
    says when the parameters changed.

    Args:
        profile: The profile.

    Returns:
        The files, in the order of the runs.
    """
    paths = []
    for run in profile.runs.values():
        path = profile.directory / "parameters" / f"{run.name}.yaml"
        text = yaml.safe_dump(dict(run.parameters), sort_keys=False, allow_unicode=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
        paths.append(path)
    return paths


# --- what a run depends on --------------------------------------------------------------------


def run_inputs(run: Run) -> list[Path]:
    """Files that a run reads, apart from its parameter file.

    They are the notebook, the modules of ``corea`` it imports (directly or through
    other modules of ``corea``), the data of the package, the pinned versions of
    everything else, and each file that a parameter names, except what other runs make:
    their executed notebooks stand for that. The published full run counts only for
    notebooks that import :mod:`corea.book.full_run`, so that publishing one repeats no training.

    Args:
        run: The run.

    Returns:
        Paths relative to the repository, sorted.
    """
    modules = imported_modules(run.notebook)
    # all other data count for every run: a module that reads them need not say so by importing
    data = {p for p in Path("corea", "data").rglob("*") if p.is_file()}
    if FULL_RUN not in modules:
        data -= {p for p in data if p.is_relative_to(Path("corea", "data", "full_run"))}
    named = [Path(text) for text in _leaves(run.parameters) if _is_file(text)]
    own = [path for path in named if not TABLES.fullmatch(path.as_posix())]
    return sorted({run.notebook, Path("constraints.txt"), *modules, *data, *own})


def _leaves(value: object) -> Iterator[str]:
    """Texts in a parameter, however deep in lists and mappings."""
    match value:
        case str():
            yield value
        case list():
            for part in value:
                yield from _leaves(part)
        case dict():
            yield from _leaves([*value.values()])


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or with a null character: not a path
        return False


def imported_modules(notebook: Path) -> list[Path]:
    """Source files of ``corea`` in the transitive closure of a notebook's imports.

    Args:
        notebook: The notebook.

    Returns:
        Paths relative to the repository, sorted. Imports inside functions count, and
        so do scripts that a module names (``"worker.py"``) to run as processes.

    Raises:
        PipelineError: If a code cell is not Python (magics are not).
    """
    return with_imports(_imports(notebook), Path())


def _imports(notebook: Path) -> list[Path]:
    """Source files of ``corea`` that a notebook imports itself."""
    found: list[Path] = []
    for number, cell in enumerate(_read_notebook(notebook)["cells"], 1):
        if cell["cell_type"] == "code":
            tree = _parse_cell(notebook, number, "".join(cell["source"]))
            found += imported_files(tree, (), Path())
    return found


def _read_notebook(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: not readable as a notebook: {visible(error)}") from error
    if not isinstance(content, dict) or content.get("nbformat") != 4:
        raise PipelineError(f"{path}: not a notebook of format 4")
    return content


def _parse_cell(notebook: Path, number: int, source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise PipelineError(
            f"{notebook}: cell {number} is not Python (magics are not): {visible(error)}"
        ) from error


# --- executing --------------------------------------------------------------------------------


def check_kernel(profile: Profile) -> list[str]:
    """Look for the Jupyter kernel of a profile.

    Args:
        profile: The profile.

    Returns:
        The command that starts the kernel.

    Raises:
        PipelineError: If there is no such kernel; names those that there are.
    """
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    manager = KernelSpecManager()
    try:
        return [*manager.get_kernel_spec(profile.kernel).argv]
    except NoSuchKernel as error:
        known = ", ".join(sorted(manager.find_kernel_specs()))
        raise PipelineError(
            f"profiles/{profile.name}.yaml: there is no Jupyter kernel {profile.kernel!r} here; "
            f"there are: {known or 'none'}. The Python of its environment installs it: "
            f"python -m ipykernel install --user --name {profile.kernel}"
        ) from error


def execute(profile: Profile, run: Run) -> None:
    """Execute one notebook with papermill, in a process of its own.

    Progress goes to standard output, one line a code cell and each line that the
    notebook prints with ``progress: `` before it, and papermill's output to
    ``logs/<run>.log``. A kernel that dies before its first cell is started once more,
    since two kernels starting at once may pick the same port. The executed notebook's
    metadata say under ``corea`` from which commit and versions it was made. While another
    process executes the run, this one waits.

    Args:
        profile: The profile.
        run: The run.

    Raises:
        PipelineError: If what the run reads is not whole, or the notebook did not run to its
            end, wrote to standard error or names this machine. The partial notebook is then
            ``failed/<run>.ipynb``, the reason ``failed/<run>.txt``.
    """
    waiting = f"{run.name}: waiting for another process that executes it"
    with locked(_lock(profile, run.name), waiting):
        _execute(profile, run)


def _lock(profile: Profile, run: str) -> Path:
    return profile.directory / "locks" / run


def _execute(profile: Profile, run: Run) -> None:
    running, executed, failed = (
        profile.directory / state / f"{run.name}.ipynb"
        for state in ("running", "executed", "failed")
    )
    tables = profile.directory / "tables" / run.name
    log = profile.directory / "logs" / f"{run.name}.log"
    entries = running.with_suffix(".entries")
    # no page is left to show what is about to change, and may fail
    shutil.rmtree(profile.index.parents[1], ignore_errors=True)
    for stale in (running, entries, executed, failed, failed.with_suffix(".txt")):
        stale.unlink(missing_ok=True)
    for folder in (running.parent, executed.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(tables, ignore_errors=True)
    tables.mkdir(parents=True)
    write_parameters(profile)

    reason = "interrupted"
    try:
        for need in run.needs:
            if found := damage(profile, need):
                raise PipelineError(f"{need}, which it reads, is not whole: {found}")
        facts = _facts(profile, run)
        status, started = _papermill(profile, run, running, tables, log)
        if status != 0 and started == 0:
            print(f"{run.name}: the kernel did not start; trying once more", flush=True)
            status, started = _papermill(profile, run, running, tables, log)
        if status != 0:
            reason = _failure(run, running, log, status, started)
        else:
            _tidy(running, facts)
            found = "; ".join([*warnings_in(running), *private_text(running)])
            unfit = f"{run.name}: {run.notebook} ran, but is not fit for a book: {found}"
            reason = unfit if found else ""
            if not reason:
                asked = entries.read_text("utf-8").splitlines() if entries.exists() else []
                seal_result(running, tables, asked)
    except PipelineError as error:  # the kernel is unfit, or what papermill left is no notebook
        reason = f"{run.name}: {error}"
    finally:
        if reason:
            _write_reason(profile, run.name, reason)
            if running.exists():
                running.replace(failed)
    entries.unlink(missing_ok=True)
    if reason:
        kept = f"\n  partial notebook: {failed}" if failed.exists() else ""
        raise PipelineError(f"{reason}{kept}\n  log: {log}")
    running.replace(executed)


def seal_result(notebook: Path, tables: Path, entries: Iterable[str] = ()) -> None:
    """Seal a run's tables, and with them its executed notebook.

    Args:
        notebook: The executed notebook.
        tables: The folder of its tables.
        entries: Folders of the store's entries that it asked for.
    """
    result = {"notebook": _digest(notebook), "entries": sorted(set(entries))}
    (tables / RESULT).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    seal(tables)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def damage(profile: Profile, run: str, *, entries: dict[str, str] | None = None) -> str:
    """What a run's result lacks, or what of it was changed since the run succeeded.

    Args:
        profile: The profile.
        run: Name of the run.
        entries: What is known of entries of the store: name to damage. It is added to, so that
            an entry that several runs rest on is read once.

    Returns:
        What is wrong; empty for a result that is whole: the executed notebook, the tables, and
        every entry of the store that the run asked for.
    """
    entries = {} if entries is None else entries
    executed = profile.directory / "executed" / f"{run}.ipynb"
    tables = profile.directory / "tables" / run
    if not executed.is_file():
        return f"{executed} is missing"
    try:
        check_seal(tables)
        result = json.loads((tables / RESULT).read_text("utf-8"))
        if _digest(executed) != result["notebook"]:
            return f"{executed} was changed (its SHA-256 is not that of {tables / RESULT})"
        for entry in result["entries"]:
            if entry not in entries:
                entries[entry] = _damage(Path(entry))
            if entries[entry]:
                return entries[entry]
    except (OSError, ValueError, KeyError, StoreError) as error:
        return str(error)
    return ""


def _damage(sealed: Path) -> str:
    try:
        check_seal(sealed)
    except (OSError, StoreError) as error:
        return str(error)
    return ""


def remove_damaged(profile: Profile) -> None:
    """Remove results that are not whole, and pages that are not, so that they are made again.

    Snakemake looks at times, and at what is there only where it is needed.

    Args:
        profile: The profile. A run that another process executes is left alone.
    """
    entries: dict[str, str] = {}
    whole = True
    for run in profile.runs:
        executed = profile.directory / "executed" / f"{run}.ipynb"
        tables = profile.directory / "tables" / run
        with suppress(BlockingIOError), locked(_lock(profile, run)):
            if found := damage(profile, run, entries=entries):
                whole = False
                if executed.exists():
                    print(f"{run}: {found}; it is executed again", flush=True)
                executed.unlink(missing_ok=True)
                shutil.rmtree(tables, ignore_errors=True)
    pages = profile.index.parents[1]
    if found := _damage(pages) if pages.exists() else "":
        print(f"book: {found}; the pages are rendered again", flush=True)
    if found or not whole:
        shutil.rmtree(pages, ignore_errors=True)


def _facts(profile: Profile, run: Run) -> dict[str, str]:
    """Provenance of a run, by the Python of its kernel."""
    arguments = (profile.name, run.parameters["seed"])
    if profile.kernel == KERNEL:
        return provenance(*arguments, packages=VERSIONS)
    program = (
        "import json, sys\n"
        "from corea.book.provenance import provenance\n"
        "print(json.dumps(provenance(*json.loads(sys.argv[1]), packages=sys.argv[2:])))\n"
    )
    command = [check_kernel(profile)[0], "-c", program, json.dumps(arguments), *VERSIONS]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        facts: dict[str, str] = json.loads(said.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        failed = isinstance(error, subprocess.CalledProcessError) and error.stderr.strip()
        told = plain_lines(failed or str(error))[-1]
        raise PipelineError(
            f"kernel {profile.kernel}: {command[0]} is no Python that can import corea: {told}"
        ) from error
    return facts


def _write_reason(profile: Profile, name: str, reason: str) -> None:
    path = profile.directory / "failed" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(reason + "\n", "utf-8")


def _papermill(
    profile: Profile, run: Run, output: Path, tables: Path, log: Path
) -> tuple[int, int]:
    """Exit status of papermill, and how many cells it started."""
    parameters = profile.directory / "parameters" / f"{run.name}.yaml"
    # relative paths only: papermill writes them into the notebook
    command = [sys.executable, "-m", "papermill", str(run.notebook), str(output)]
    command += ["-f", str(parameters), "-r", "output_dir", tables.as_posix()]
    command += ["-k", profile.kernel, "--cwd", ".", "--log-output", "--no-progress-bar"]
    cells = _read_notebook(run.notebook)["cells"]
    started = 0
    with tempfile.TemporaryDirectory() as settings, log.open("w", encoding="utf-8") as record:
        # a person's own start-up files and kernels of the same name must not change the result
        own = {"IPYTHONDIR": settings, "JUPYTER_PREFER_ENV_PATH": "1"}
        own |= {"JUPYTER_RUNTIME_DIR": settings}  # else below HOME, which may not be writable
        own |= {ENTRIES: str(output.with_suffix(".entries").absolute())}
        threads = {"OMP_NUM_THREADS": str(profile.asked(run.name).cpus)}
        environment = threads | os.environ | own
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            for line in process.stdout or ():
                record.write(plain(line.rstrip("\n")) + "\n")
                if line.startswith(PROGRESS):
                    said = plain(line.removeprefix(PROGRESS).rstrip())
                    print(f"{run.name}: {said}", flush=True)
                announced = re.match(r"Executing Cell (\d+)-+$", line)
                # the notebook may print such a line as well: only the next number counts
                if announced and int(announced[1]) == started + 1:
                    started += 1
                    number = _number(cells, started)
                    new = number > _number(cells, started - 1)
                    if new and cells[number - 1]["cell_type"] == "code":
                        print(f"{run.name}: cell {number} of {len(cells)}", flush=True)
            return process.wait(), started
        finally:
            if process.stdout:
                process.stdout.close()
            _end(process)


def _tidy(executed: Path, facts: Mapping[str, str]) -> None:
    """Take the lines about progress out of an executed notebook and note where it is from."""
    notebook = _read_notebook(executed)
    for cell in notebook["cells"]:
        for output in [*cell.get("outputs", [])]:
            if output["output_type"] == "stream" and output["name"] == "stdout":
                said = "".join(output["text"])
                kept, found = re.subn(rf"^{PROGRESS}.*\n?", "", said, flags=re.M)
                if found:
                    output["text"] = kept
                    if not kept.strip():
                        cell["outputs"].remove(output)
    notebook["metadata"]["corea"] = facts
    executed.write_text(json.dumps(notebook, ensure_ascii=False, indent=1), "utf-8")


def _end(process: subprocess.Popen[str]) -> None:
    """Wait for papermill, which an interrupt has reached as well and which ends its kernel."""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _number(cells: Sequence[Mapping[str, Any]], started: int) -> int:
    """Number of the last started cell in the committed notebook.

    Papermill inserts a cell with the values after the one tagged ``parameters``;
    the two count as one.
    """
    tagged = [n for n, c in enumerate(cells, 1) if "parameters" in c["metadata"].get("tags", [])]
    return started - 1 if tagged and started > tagged[0] else started


def _numbered(executed: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Cells of an executed notebook with their numbers in the committed one."""
    number = 0
    for cell in executed:
        tags = cell["metadata"].get("tags", [])
        if "papermill-error-cell-tag" not in tags:
            number += "injected-parameters" not in tags
            yield number, cell


def _failure(run: Run, output: Path, log: Path, status: int, started: int) -> str:
    """What went wrong, naming notebook, cell and error."""
    lines = plain_lines(log.read_text("utf-8"))
    last = lines[-1].strip() if lines else f"papermill ended with status {status}"
    if started == 0:
        return f"{run.name}: {run.notebook} did not start: {last}"
    cells = _read_notebook(run.notebook)["cells"]
    where = f"{run.name}: {run.notebook}, cell {_number(cells, started)} of {len(cells)}"
    if output.is_file():
        for cell in _read_notebook(output)["cells"]:
            for found in cell.get("outputs", []):
                if found["output_type"] == "error":
                    error = plain(f"{found['ename']}: {found['evalue'][:1000]}")
                    return f"{where} (In [{cell['execution_count']}]): {error}"
    if status < 0:
        return f"{where}: papermill was ended by signal {-status}"
    if "DeadKernelError" in last or status == 138:  # papermill's own status for it
        return f"{where}: the kernel died (was it killed, or out of memory?)"
    return f"{where}: {last}"


def plain(text: str) -> str:
    r"""Text without terminal colours, other control characters made visible.

    Line breaks are kept as the sign for them: one error is one line.

    Example:
        >>> plain("\x1b[31mred\x1b[0m \a")
        'red ␇'
    """
    return visible(re.sub(r"\x1b\[[0-9;:?]*[ -/]*[@-~]", "", text))


def plain_lines(text: str) -> list[str]:
    """The lines of a text that hold anything, each as :func:`plain` text."""
    return [plain(line) for line in text.splitlines() if line.strip()]


# --- what must not be in a book ---------------------------------------------------------------


def warnings_in(notebook: Path) -> list[str]:
    """What an executed notebook wrote to standard error, warnings above all.

    Args:
        notebook: The executed notebook.

    Returns:
        One description per output, with the cell's number in the committed notebook.
    """
    return [
        plain(f"cell {number} wrote to standard error: {''.join(output['text']).strip()[:500]}")
        for number, cell in _numbered(_read_notebook(notebook)["cells"])
        for output in cell.get("outputs", [])
        if output["output_type"] == "stream" and output["name"] == "stderr"
    ]


def private_text(notebook: Path) -> list[str]:
    """Absolute paths, user and host names in the text of an executed notebook.

    A user's or host's name that is made of letters only is looked for where it
    cannot be an ordinary word: in a path or beside an ``@``.

    Args:
        notebook: The executed notebook.

    Returns:
        One description per cell and finding, with the cell's number in the committed
        notebook; empty if there is none.
    """
    host = socket.gethostname()
    user = Path.home().name or "/"  # a home of "/" names nobody
    here = {str(Path.cwd()), str(Path.home()), sys.prefix, sys.base_prefix, tempfile.gettempdir()}
    longest_first = sorted(here - {"/"}, key=len, reverse=True)
    patterns = [rf"(?<![\w/.<]){re.escape(path)}(?!\w)" for path in longest_first]
    patterns += [
        r"(?<![\w/.+<])/(?:home|Users|root|tmp|mnt|private|var/folders)/[\w.-]+",
        r"\b[A-Za-z]:\\+Users\\+\w+",
        rf"(?<!\w){re.escape(user)}@\w+",
        rf"\w@{re.escape(host)}(?!\w)",
    ]
    patterns += [
        rf"(?<!\w){re.escape(name)}(?!\w)"
        for name in (host, user)
        if len(name) > 3 and not name.isalpha()
    ]
    private = re.compile("|".join(patterns))

    content = _read_notebook(notebook)
    parts = [("the metadata", content["metadata"])]
    parts += [(f"cell {number}", cell) for number, cell in _numbered(content["cells"])]
    return [
        f"{plain(name)!r} in {where}"
        for where, part in parts
        for name in sorted({match for text in _strings(part) for match in private.findall(text)})
    ]


def _strings(content: object) -> Iterator[str]:
    """Texts in a notebook's JSON; base64 data, in which any word may turn up, left out."""
    match content:
        case str():
            yield re.sub(r"data:[\w/+.;-]+;base64,[A-Za-z0-9+/=]+", "", content)
        case list() if all(isinstance(part, str) for part in content):
            yield from _strings("".join(content))
        case list():
            for part in content:
                yield from _strings(part)
        case dict():
            for key, part in content.items():
                if not re.fullmatch(r"image/(?!svg).*|application/pdf|bdata", key):
                    yield from _strings(part)


# --- the book ---------------------------------------------------------------------------------


def table_of_contents(profile: Profile) -> dict[str, Any]:
    """``_toc.yml`` with a section for each run that it does not list as a chapter.

    Args:
        profile: The profile.

    Returns:
        The contents, with such runs in the profile's order below ``book/<entry>`` or
        ``book/<notebook>``.

    Raises:
        PipelineError: If a chapter is no run of the profile, or a run has no place.
    """
    contents: dict[str, Any] = yaml.safe_load(Path("_toc.yml").read_text("utf-8"))
    entries = {entry["file"]: entry for entry in _entries(contents)}
    listed = {page for page in entries if page.startswith("notebooks/")}
    runs = {f"notebooks/{name}": run for name, run in profile.runs.items()}
    if absent := sorted(listed - runs.keys()):
        raise PipelineError(
            f"_toc.yml lists what profiles/{profile.name}.yaml does not run: {', '.join(absent)}"
        )
    for page, run in runs.items():
        places = [f"book/{name}" for name in (run.entry, run.notebook.stem)]
        above = next((place for place in places if place in entries), places[-1])
        if page not in listed and above not in entries:
            raise PipelineError(f"_toc.yml lists neither {page} nor {above}, to which it could go")
        if page not in listed:
            entries[above].setdefault("sections", []).append({"file": page})
    return contents


def _entries(contents: object) -> Iterator[dict[str, Any]]:
    """Entries of a table of contents that name a file."""
    match contents:
        case dict():
            if "file" in contents:
                yield contents
            yield from _entries([*contents.values()])
        case list():
            for part in contents:
                yield from _entries(part)


def assemble(profile: Profile) -> Path:
    """Lay out the book's source: configuration, pages, executed notebooks, static files.

    Plotly and MathJax come from the installed packages, so that the book needs no
    network. Long code cells are folded, and a title says which of its notebook's runs
    the page shows.

    Args:
        profile: The profile, with all its runs executed.

    Returns:
        The folder for ``jupyter-book build``.

    Raises:
        PipelineError: If the result of a run is not whole, or the table of contents and the
            profile disagree on the chapters.
    """
    contents = table_of_contents(profile)
    entries: dict[str, str] = {}
    found = {run: damage(profile, run, entries=entries) for run in profile.runs}
    if broken := [f"{run}: {why}" for run, why in found.items() if why]:
        raise PipelineError("\n  ".join(["the book was not built:", *broken]))
    source = profile.directory / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree("book", source / "book")
    shutil.copy("_config.yml", source)
    toc = yaml.safe_dump(contents, sort_keys=False, allow_unicode=True)
    (source / "_toc.yml").write_text(toc, "utf-8")

    static = source / "book" / "_static"
    shutil.copy(_packaged("plotly", "plotly/package_data/plotly.min.js"), static)
    mathjax = _packaged("sphinx-mathjax-offline", "sphinx-mathjax-offline/static/mathjax")
    for part in (mathjax / name for name in MATHJAX):
        for file in [part] if part.is_file() else (p for p in part.rglob("*") if p.is_file()):
            copy = static / "mathjax" / file.relative_to(mathjax)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)

    (source / "notebooks").mkdir()
    for run in profile.runs.values():
        notebook = _read_notebook(profile.directory / "executed" / f"{run.name}.ipynb")
        if run.label:
            _entitle(notebook, run.label)
        for cell in notebook["cells"]:
            tags = cell["metadata"].setdefault("tags", [])
            lines = "".join(cell["source"]).count("\n") + 1
            given = "injected-parameters" in tags
            long = lines > LONG_CELL and "parameters" not in tags
            if cell["cell_type"] == "code" and (given or long):
                tags.append("hide-input")
                prompt = "Parameters of this run" if given else f"Show the code ({lines} lines)"
                cell["metadata"]["mystnb"] = {"code_prompt_show": prompt}
            for data in (output.get("data", {}) for output in cell.get("outputs", [])):
                if "text/html" in data:  # JupyterLab's form of a figure means nothing to a page
                    data.pop("application/vnd.plotly.v1+json", None)
        page = source / "notebooks" / f"{run.name}.ipynb"
        page.write_text(json.dumps(notebook, ensure_ascii=False, indent=1), "utf-8")
    return source


def _entitle(notebook: Mapping[str, Any], label: str) -> None:
    """Put a label behind the title of a notebook, its first heading."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source, labelled = "".join(cell["source"]), rf"\g<0> · {label}"
            cell["source"], found = re.subn(r"^# .*\S", labelled, source, count=1, flags=re.M)
            if found:
                return


def _packaged(package: str, path: str) -> Path:
    """A file or folder of an installed package, found without importing it."""
    return Path(str(distribution(package).locate_file(path)))


def render(profile: Profile) -> Path:
    """Build the pages with jupyter-book; a warning is an error.

    Args:
        profile: The profile, with all its runs executed.

    Returns:
        The page that opens the book.

    Raises:
        PipelineError: If jupyter-book reports an error or a warning; it holds them.
    """
    source = assemble(profile)
    log = profile.directory / "logs" / "book.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print("book: rendering the pages", flush=True)
    # from nothing each time, which takes seconds: no page of an earlier book is left
    shutil.rmtree(profile.directory / "_build", ignore_errors=True)
    run = "from jupyter_book.cli.main import main; main()"  # it cannot be run as a module
    command = [sys.executable, "-c", run, "build", str(source)]
    command += ["--path-output", str(profile.directory), "-W", "-n", "--keep-going"]
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    lines = plain_lines(result.stdout)
    log.write_text("\n".join([*lines, ""]), "utf-8")
    if result.returncode != 0 or not profile.index.is_file():
        # a book with a warning in it is not left to be taken for one without
        shutil.rmtree(profile.directory / "_build", ignore_errors=True)
        told = [line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL|SEVERE)\b", line)]
        reason = "\n  ".join(["the book was not built:", *(told or lines)[-20:]])
        _write_reason(profile, "book", reason)
        raise PipelineError(f"{reason}\n  log: {log}")
    seal(profile.index.parents[1])
    return profile.index


def build(profile: Profile) -> Path:
    """Make the book of a profile: whatever is missing or changed, and nothing else.

    Args:
        profile: The profile.

    Returns:
        The page that opens the book.

    Raises:
        PipelineError: If the profile is being built already, its kernel is not there, or
            something failed; all failures are named.
    """
    check_kernel(profile)
    failed, log = profile.directory / "failed", profile.directory / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--nocolor", "--keep-going"]
    command += ["--config", f"profile={profile.name}", "--rerun-incomplete", "--nolock"]
    command += ["--resources", "gpu=1"]  # several runs at once would all take the first GPU
    # Snakemake's own lock outlives a killed run; the system frees this one with its last holder
    with (profile.directory / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise PipelineError(
                f"profile {profile.name} is being built already, by {lock.read().strip()}. Wait "
                "for it, or end that process"
            ) from error
        for reason in failed.glob("*.txt"):
            reason.unlink()
        with log.open("w", encoding="utf-8") as record:
            # what Snakemake has to say goes to its log, what its rules have to say here
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=record,
                pass_fds=[lock.fileno()],
                process_group=0,
                # a background job of a shell ignores the signal below, and so would what it starts
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            lock.truncate(0)
            lock.write(f"process {process.pid} (Snakemake) on {socket.gethostname()}\n")
            lock.flush()
            try:
                status = process.wait()
            except BaseException:
                # whatever ends this process ends all that it started, and they keep what they have
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
                raise
    if status != 0:
        failures = sorted(failed.glob("*.txt"))
        reasons = list(filter(None, (path.read_text("utf-8").strip() for path in failures)))
        for run in profile.runs:
            if lacking := [f.stem for f in failures if f.stem in profile.all_needs(run)]:
                reasons.append(f"{run}: not run, since it needs {', '.join(lacking)}")
        if shutil.disk_usage(profile.directory).free < LEAST_SPACE:
            reasons.append(_MENDS[errno.ENOSPC])
        told = reasons or plain_lines(log.read_text("utf-8"))[-20:]
        raise PipelineError("\n  ".join([f"profile {profile.name} failed:", *told, f"log: {log}"]))
    return profile.index


def _writable_home() -> None:
    """Let a folder below build/ stand in for a HOME that cannot be written: libraries need one."""
    home = Path(os.environ.get("HOME", "/"))
    if not os.access(home, os.W_OK | os.X_OK):
        instead = Path("build", "home").absolute()
        instead.mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = str(instead)
        print(f"HOME, {plain(str(home))}, cannot be written: build/home stands in for it")


def _refusal(error: OSError) -> str:
    """What the system refused, and what to do, in one line."""
    file = error.filename2 or error.filename or "a file"
    told = plain(f"{file}: {error.strerror or error}")
    return f"{told}. {_MENDS.get(error.errno or 0, 'Everything is made below build/')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the pipeline.

    Args:
        arguments: Words after the program's name; by default those of the process.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m corea.workflow.pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "parameters", "execute", "render"):
        command = commands.add_parser(name)
        command.add_argument("profile")
        if name == "execute":
            command.add_argument("run")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):  # unwind, as for an interrupt
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores the second
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        _writable_home()
        profile = load_profile(options.profile)
        if options.command == "parameters":
            print(*write_parameters(profile), sep="\n")
        elif options.command == "execute":
            if options.run not in profile.runs:
                raise PipelineError(f"profile {profile.name} has no run {options.run!r}")
            execute(profile, profile.runs[options.run])
        elif options.command == "render":
            render(profile)
        else:
            print(build(profile))
    except PipelineError as error:
        print(error, flush=True)
        return 1
    except OSError as error:
        print(_refusal(error), flush=True)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
