import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

import corea

HOME = Path(corea.__file__).parent
MODULES = {
    ".".join(path.relative_to(HOME).with_suffix("").parts): path
    for path in sorted(HOME.rglob("[!_]*.py"))
}
PROJECT = HOME.parent / "pyproject.toml"
MAY_NEED_TORCH = {
    "decisions.trainer",
    "engines.server",  # needs the extra `train` too, for openai
    "rlcc.learned_confidence",
    "rlcc.trainer",
    "tasks.microworld",
    "training.checkpoints",
    "training.grpo",
    "training.loop",
    "training.quiet",
    "training.sft",
}


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"numpy", "pandas", "matplotlib", "torch", "sklearn", "IPython"}
    assert not heavy & loaded_by("import corea")


def imported(statements):
    """First parts of the names that a module imports when it is loaded."""
    for node in statements:
        match node:
            case ast.Import(names=names):
                yield from (alias.name.split(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module.split(".")[0]
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=other):
                yield from imported(other)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                pass
            case _:
                yield from imported(ast.iter_child_nodes(node))


def test_torch_is_loaded_only_by_the_modules_that_train_and_generate():
    extras = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    heavy = {Requirement(line).name for line in extras["train"]}
    needing = {
        name
        for name, path in MODULES.items()
        if heavy & {*imported(ast.parse(path.read_text("utf-8")).body)}
    }
    assert needing <= MAY_NEED_TORCH
    light = [f"import corea.{name}" for name in MODULES if name not in MAY_NEED_TORCH]
    assert not heavy & loaded_by("; ".join(light))


def test_analysing_records_needs_none_of_the_book():
    core = (
        *("records", "adapters", "tasks.parsing", "tasks.verify"),
        *(name for name in MODULES if name.startswith("metrics.")),
    )
    book = {"matplotlib", "seaborn", "plotly", "papermill", "IPython", "snakemake"}
    assert not book & loaded_by("; ".join(f"import corea.{name}" for name in core))


# Low to high: a module imports from its own room and from lower ones.
ROOMS = (
    *("checks helper_process sources", "records store", "metrics", "confidence", "thresholds"),
    *("tasks", "adapters", "runs", "engines", "serving", "training", "rlcc", "decisions", "stages"),
    *("book", "report", "workflow", "cli"),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms.split()}


def arrows():
    """What imports what in the package, inside functions as well: (module, imported module)."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Import(names=names):
                    targets = [alias.name for alias in names]
                case ast.ImportFrom(module=str(module), names=names):
                    targets = [f"{module}.{alias.name}" for alias in names] + [module]
                case _:
                    continue
            for target in targets:
                if target.removeprefix("corea.") in MODULES:
                    yield name, target.removeprefix("corea.")


def test_rooms_import_only_from_lower_rooms_and_modules_not_in_a_circle():
    upward = [
        f"{name} imports {target}"
        for name, target in arrows()
        if RANK[target.split(".")[0]] > RANK[name.split(".")[0]]
    ]
    assert not upward
    imports = {name: set() for name in MODULES}
    for name, target in arrows():
        imports[name].add(target)
    graphlib.TopologicalSorter(imports).prepare()
