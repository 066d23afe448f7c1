import ast
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from corea.workflow import pipeline as p
from corea.workflow.pipeline import PipelineError, load_profile

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
TITLE = ("markdown", "# What is this?")
GIVEN = 'profile = "tiny"\nseed = 0\noutput_dir = ""\n'


@pytest.fixture
def repository(tmp_path, monkeypatch, make_repository):
    """A repository with the notebooks ``first`` and ``second``; the working directory."""
    monkeypatch.chdir(make_repository(tmp_path, {"first": [("code", "size")], "second": []}))
    return tmp_path


# --- profiles ---------------------------------------------------------------------------------


def write_profile(text, name="tiny"):
    Path("profiles", f"{name}.yaml").write_text(text, "utf-8")


def test_profile_is_read(repository):
    profile = load_profile("tiny")
    assert (profile.name, profile.seed) == ("tiny", 0)
    assert list(profile.runs) == ["first", "second"]
    expected = {"profile": "tiny", "seed": 0, "size": 3}
    first = p.Run("first", Path("notebooks/first.ipynb"), expected, entry="first")
    assert profile.runs["first"] == first


def test_one_notebook_may_run_twice(repository):
    write_profile(
        "profile: tiny\nseed: 7\nruns:\n"
        "  small: {notebook: first, parameters: {size: 1}}\n"
        "  large: {notebook: first, parameters: {size: 9}}\n"
    )
    profile = load_profile("tiny")
    assert {run.notebook.name for run in profile.runs.values()} == {"first.ipynb"}
    assert [run.parameters["size"] for run in profile.runs.values()] == [1, 9]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("profile: [", "tiny.yaml: not readable as YAML"),
        ("- profile", r"the profile must be a mapping, found \['profile'\]"),
        ("profile: tiny\nseed: 0", "the profile: lacks runs"),
        ("profile: tiny\nseed: 0\nruns: {}\nsed: 1", "the profile: unknown key sed"),
        ("profile: other\nseed: 0\nruns: {}", "profile is 'other', expected 'tiny'"),
        ("profile: tiny\nseed: -1\nruns: {}", "seed is -1, expected an integer >= 0"),
        ("profile: tiny\nseed: true\nruns: {}", "seed is True"),
        ("profile: tiny\nseed: 0\nruns: {}", "runs must map at least one name"),
        ("profile: tiny\nseed: 0\nseed: 1\nruns: {}", "line 1: seed given more than once"),
        ("profile: tiny\nseed: 0\nruns: {first: }", "runs.first must be a mapping, found None"),
        ("profile: tiny\nseed: 0\nruns: {first: {}}", "runs.first: lacks parameters"),
        (
            "profile: tiny\nseed: 0\nruns: {first: {parameters: {size: 1}, note: x}}",
            "runs.first: unknown key note",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {third: {parameters: {}}}",
            "runs.third: there is no notebook notebooks/third.ipynb",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {x: {notebook: ../first, parameters: {}}}",
            "runs.x: '../first' is not made of letters, digits and _",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {parameters: {length: 1}}}",
            "runs.first.parameters: unknown key length",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {parameters: {size: 1, seed: 2}}}",
            "runs.first.parameters: unknown key seed",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {parameters: {}}}",
            "runs.first.parameters: lacks size",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {parameters: {size: many}}}",
            "runs.first.parameters.size is 'many', expected int as in notebooks/first.ipynb",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {parameters: {size: true}}}",
            "runs.first.parameters.size is True, expected int",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {parameters: {size: 1.5}}}",
            "runs.first.parameters.size is 1.5, expected int",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {}}\nkernel: ''",
            "kernel is '', expected the name",
        ),
        ("profile: tiny\nseed: 0\nruns: {first: {}}\nkernel: a b", "kernel is 'a b', expected"),
        ("profile: tiny\nseed: 0\nruns: {first: {}}\nkernel: 3", "kernel is 3, expected"),
        (
            "profile: tiny\nseed: 0\nruns: {first: {}}\nresources: 1",
            "resources must be a mapping, found 1",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {}}\nresources: {gpu: 1}",
            "resources: unknown key gpu",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {}}\nresources: {cpus: 0}",
            "resources.cpus is 0, expected an integer >= 1",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {parameters: {size: 1}, resources: {gpus: -1}}}",
            "runs.first.resources.gpus is -1, expected an integer >= 0",
        ),
        (
            "profile: tiny\nseed: 0\nruns: {first: {parameters: {size: 1}, resources: {minutes: 1.5}}}",
            "runs.first.resources.minutes is 1.5, expected an integer >= 1",
        ),
    ],
)
def test_wrong_profile_is_refused_by_name(repository, text, complaint):
    write_profile(text)
    with pytest.raises(PipelineError, match=complaint):
        load_profile("tiny")


@pytest.mark.parametrize("name", ["none", "../tiny", ""])
def test_unknown_profile_is_refused_and_the_known_are_named(repository, name):
    with pytest.raises(PipelineError, match="there are: tiny"):
        load_profile(name)


def test_types_are_those_of_the_defaults(repository, write_notebook):
    cell = "rate = 0.5\nflag = False\nanything = None\nnames = ['a']"
    write_notebook(Path("notebooks/first.ipynb"), TITLE, ("code", GIVEN + cell, "parameters"))
    head = "profile: tiny\nseed: 0\nruns: {first: {parameters: "
    write_profile(head + "{rate: 1, flag: true, anything: [1], names: []}}}")
    assert load_profile("tiny").runs["first"].parameters["rate"] == 1
    for wrong in ("rate: true, flag: true", "rate: 1, flag: 1", "rate: 1e-3, flag: true"):
        write_profile(head + "{" + wrong + ", anything: x, names: []}}}")
        with pytest.raises(PipelineError, match=r"first\.parameters\.(rate|flag) is"):
            load_profile("tiny")


# --- several runs of one notebook, and runs that read others -----------------------------------


@pytest.fixture
def trainings(repository, write_notebook):
    """Function that loads the profile whose runs are given; the notebooks take what they need."""
    cell = ("code", GIVEN + "reward = 'none'\nsteps = 1", "parameters")
    write_notebook(Path("notebooks/train.ipynb"), TITLE, cell)
    cell = ("code", GIVEN + "base = ''\nruns = ['']\nby_name = {}", "parameters")
    write_notebook(Path("notebooks/compare.ipynb"), TITLE, cell)

    def load(runs):
        write_profile(f"profile: tiny\nseed: 7\nruns:\n{runs}")
        return load_profile("tiny")

    return load


@pytest.mark.parametrize(
    ("entry", "runs"),
    [
        ("", {"train": ("none", 7, "")}),
        ("seeds: [3]", {"train_s3": ("none", 3, "seed 3")}),
        (
            "variants: {l1: {reward: l1}, plain_one: {}}",
            {"train_l1": ("l1", 7, "l1"), "train_plain_one": ("none", 7, "plain one")},
        ),
        (
            "seeds: [5, 0], variants: {l1: {reward: l1}, l2: {reward: l2}}",
            {
                "train_l1_s5": ("l1", 5, "l1, seed 5"),
                "train_l1_s0": ("l1", 0, "l1, seed 0"),
                "train_l2_s5": ("l2", 5, "l2, seed 5"),
                "train_l2_s0": ("l2", 0, "l2, seed 0"),
            },
        ),
    ],
)
def test_variants_and_seeds_are_runs_of_their_own(trainings, entry, runs):
    profile = trainings(f"  train: {{parameters: {{reward: none, steps: 9}}, {entry}}}")
    found = {
        name: (run.parameters["reward"], run.parameters["seed"], run.label)
        for name, run in profile.runs.items()
    }
    assert list(found.items()) == list(runs.items())
    for run in profile.runs.values():
        assert run.notebook == Path("notebooks/train.ipynb")
        assert set(run.parameters) == {"profile", "seed", "reward", "steps"}
        assert run.parameters["steps"] == 9


def test_entry_of_another_name_is_told_apart_by_it(trainings):
    profile = trainings(
        "  train: {parameters: {reward: a, steps: 1}}\n"
        "  big_one: {notebook: train, parameters: {steps: 1}, variants: {a: {reward: a}}}"
    )
    assert {name: run.label for name, run in profile.runs.items()} == {
        "train": "", "big_one_a": "big one, a",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("variants: {}", "runs.train.variants must map at least one name to changes"),
        ("variants: [l1]", "runs.train.variants must map at least one name to changes"),
        ("variants: {l-1: {}}", "runs.train.variants: 'l-1' is not made of letters, digits and _"),
        ("variants: {1: {}}", "runs.train.variants: 1 is not made of letters"),
        ("variants: {l1: }", "runs.train.variants.l1 must be a mapping, found None"),
        ("variants: {l1: {rewards: x}}", "runs.train.variants.l1: unknown key rewards"),
        ("variants: {l1: {seed: 1}}", "runs.train.variants.l1: unknown key seed"),
        ("variants: {l1: {reward: 1}}", "runs.train_l1.parameters.reward is 1, expected str as in"),
        ("seeds: []", r"runs.train.seeds is \[\], expected a list of different integers >= 0"),
        ("seeds: 3", "runs.train.seeds is 3, expected a list"),
        ("seeds: null", "runs.train.seeds is None, expected a list"),
        ("seeds: [1, 1]", r"runs.train.seeds is \[1, 1\], expected"),
        ("seeds: [-1]", r"runs.train.seeds is \[-1\], expected"),
        ("seeds: [true]", r"runs.train.seeds is \[True\], expected"),
        ("seeds: [[1]]", r"runs.train.seeds is \[\[1\]\], expected"),
    ],
)
def test_wrong_variants_and_seeds_are_refused_by_name(trainings, entry, complaint):
    with pytest.raises(PipelineError, match=rf"^profiles/tiny\.yaml: {complaint}"):
        trainings(f"  train: {{parameters: {{reward: none, steps: 9}}, {entry}}}")


def test_variants_share_known_parameters_and_set_the_rest(trainings):
    with pytest.raises(PipelineError, match="runs.train.parameters: unknown key length"):
        trainings("  train: {parameters: {steps: 1, length: 1}, variants: {l1: {reward: l1}}}")
    with pytest.raises(PipelineError, match="runs.train_l2.parameters: lacks reward"):
        trainings("  train: {parameters: {steps: 1}, variants: {l1: {reward: l1}, l2: {}}}")


def test_two_runs_of_one_name_are_refused(trainings):
    with pytest.raises(PipelineError, match="runs.train: another run is named train_l1 as well"):
        trainings(
            "  train_l1: {notebook: train, parameters: {reward: l1, steps: 1}}\n"
            "  train: {parameters: {steps: 1}, variants: {l1: {reward: l1}}}"
        )


TRAINED = (
    "  train: {parameters: {reward: none, steps: 9}, seeds: [1, 0],\n"
    "          variants: {l1: {reward: l1}, rlvr: {}}}\n"
)


def test_runs_are_found_that_a_parameter_names(trainings):
    profile = trainings(
        TRAINED + "  compare: {parameters: {base: '{tables}/train_rlvr_s0/model.json', runs: "
        "['{tables}/train_l1_s*', plain, '{tables}/train_*_s0/x.csv'], "
        "by_name: {deep: [['{tables}/train_rlvr_s1']], number: 1, text: '{tables}x'}}}"
    )
    folder = "build/tiny/tables/"
    assert profile.runs["compare"].parameters == {
        "profile": "tiny",
        "seed": 7,
        "base": folder + "train_rlvr_s0/model.json",
        "runs": [
            folder + "train_l1_s0", folder + "train_l1_s1", "plain",
            folder + "train_l1_s0/x.csv", folder + "train_rlvr_s0/x.csv",
        ],
        "by_name": {
            "deep": [[folder + "train_rlvr_s1"]], "number": 1, "text": "build/tiny/tablesx",
        },
    }  # fmt: skip
    needs = ["train_rlvr_s0", "train_l1_s0", "train_l1_s1", "train_rlvr_s1"]
    assert list(profile.runs["compare"].needs) == needs
    assert profile.runs["train_l1_s0"].needs == ()
    assert profile.all_needs("compare") == needs


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("{tables}/train", "build/tiny/tables/train', but there is no such run"),
        ("{tables}/train_l1_s*", r"build/tiny/tables/train_l1_s\*', but there is no such run"),
        ("{tables}/train.l1_s0", "build/tiny/tables/train.l1_s0', but there is no such run"),
        ("{tables}", "build/tiny/tables', but there is no such run"),
        ("build/other/tables/train_l1_s0", "build/other/.*', in the folder of another profile"),
    ],
)
def test_folder_of_no_run_is_refused_by_name(trainings, value, complaint):
    compare = f"  compare: {{parameters: {{base: '{value}', runs: [], by_name: {{}}}}}}"
    with pytest.raises(PipelineError, match=rf"runs\.compare\.parameters\.base is '{complaint}"):
        trainings(TRAINED + compare)


def test_list_item_that_fits_no_run_is_refused_by_name(trainings):
    where = (
        r"compare\.parameters\.by_name\.deep is 'build/tiny/tables/train_l3_\*', but there is no"
    )
    with pytest.raises(PipelineError, match=where):
        trainings(
            TRAINED + "  compare: "
            "{parameters: {base: '', runs: [], by_name: {deep: ['{tables}/train_l3_*']}}}"
        )


def test_runs_that_need_each_other_are_refused_by_name(trainings):
    entry = "  {}: {{notebook: compare, parameters: {{base: '{}', runs: [], by_name: {{}}}}}}\n"
    need = [("a", "{tables}/b"), ("b", "{tables}/c"), ("c", "")]
    chain = trainings("".join(entry.format(*pair) for pair in need))
    assert chain.all_needs("a") == ["c", "b"]
    # what most runs in turn wait for starts first; of two alike the first in the profile
    beside = trainings("".join(entry.format(*pair) for pair in [*need, ("d", "")]))
    assert sorted("abcd", key=beside.priorities.__getitem__, reverse=True) == list("cbad")
    assert min(beside.priorities.values()) > 0  # to Snakemake 0 is none
    need[2] = ("c", "{tables}/a/x.csv")
    circles = "a needs b needs c needs a|b needs c needs a needs b|c needs a needs b needs c"
    with pytest.raises(PipelineError, match=f"runs need each other: ({circles})$"):
        trainings("".join(entry.format(*pair) for pair in need))
    with pytest.raises(PipelineError, match="runs need each other: a needs a"):
        trainings(entry.format("a", "{tables}/a"))


# --- what a run asks of a cluster ---------------------------------------------------------------


def test_runs_that_train_ask_as_the_profile_says_and_others_for_little(trainings, write_notebook):
    cells = json.loads(Path("notebooks/train.ipynb").read_text())["cells"]
    (parameters,) = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    late = ("code", "def later():\n    import corea.stages")
    write_notebook(Path("notebooks/train.ipynb"), TITLE, ("code", parameters, "parameters"), late)
    profile = trainings(
        "  train: {parameters: {reward: a, steps: 1}, seeds: [0, 1], resources: {minutes: 90}}\n"
        "  more: {notebook: train, parameters: {reward: a, steps: 1}}\n"
        "  part: {notebook: compare, parameters: {base: '', runs: [], by_name: {}}}\n"
        "  compare: {parameters: {base: '{tables}/part', runs: ['{tables}/train_s1'], by_name: {}},"
        " resources: {memory_gb: 30}}\n"
        "resources: {gpus: 1, cpus: 8, memory_gb: 60, minutes: 30}\n"
    )
    assert {name: profile.asked(name) for name in profile.runs} == {
        "train_s0": p.Resources(1, 8, 60, 90),
        "train_s1": p.Resources(1, 8, 60, 90),
        "more": p.Resources(1, 8, 60, 30),
        "part": p.Resources(),
        "compare": p.Resources(memory_gb=30),
    }
    assert profile.readers == ["compare"]  # the other that trains nothing is waited for
    assert p.Resources() == p.Resources(gpus=0, cpus=1, memory_gb=4, minutes=60)


def test_chapters_that_train_are_told_from_those_that_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    profile = load_profile("smoke")
    runs = {run.notebook: run for run in profile.runs.values()}
    trains = {notebook.stem for notebook, run in runs.items() if run.trains}
    assert {"pretrain", "train", "decision_train", "confidence_models"} <= trains
    # but for the plan, which counts weights, none gets to the stages through another module alone
    reach = {path.stem for path in runs if p.STAGES in p.imported_modules(path)}
    assert trains == reach - {"real_models"}
    waited_for = {need for run in profile.runs.values() for need in run.needs}
    assert not waited_for & set(profile.readers)
    assert len(profile.readers) > 10


# --- parameters cells -------------------------------------------------------------------------


def test_parameters_cell_is_read(tmp_path, write_notebook):
    path = tmp_path / "n.ipynb"
    source = "a = 1  # with a reason\nb: float = -0.5\nc = ['x', None]\n# the end"
    write_notebook(path, TITLE, ("code", source, "other", "parameters"))
    assert p.notebook_parameters(path) == {"a": 1, "b": -0.5, "c": ["x", None]}


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        ([TITLE], "0 cells are tagged 'parameters'"),
        ([("code", "a = 1", "parameters")] * 2, "2 cells are tagged 'parameters'"),
        ([TITLE, ("code", "import os", "parameters")], "cell 2: 'import os' is not a parameter"),
        ([("code", "a = b = 1", "parameters")], "'a = b = 1' is not a parameter"),
        ([("code", "a: int", "parameters")], "'a: int' is not a parameter"),
        ([("code", "a = f()", "parameters")], "the default of a is not a literal"),
        ([("code", "a = (", "parameters")], "cell 1 is not Python"),
    ],
)
def test_parameters_cell_only_assigns_literals(tmp_path, write_notebook, cells, complaint):
    path = tmp_path / "n.ipynb"
    write_notebook(path, *cells)
    with pytest.raises(PipelineError, match=complaint):
        p.notebook_parameters(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nbformat": 3}', "\x00"])
def test_what_is_no_notebook_is_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.ipynb"
    path.write_text(text)
    with pytest.raises(PipelineError, match=r"broken\.ipynb: not"):
        p.notebook_parameters(path)


def test_parameter_files_are_what_papermill_gets_and_keep_their_time(repository):
    profile = load_profile("tiny")
    first, second = p.write_parameters(profile)
    assert first == Path("build/tiny/parameters/first.yaml")
    assert first.read_text() == "profile: tiny\nseed: 0\nsize: 3\n"
    for path in (first, second):
        os.utime(path, (1, 1))
    write_profile(Path("profiles/tiny.yaml").read_text().replace("size: 3", "size: 4", 1))
    p.write_parameters(load_profile("tiny"))
    assert first.stat().st_mtime > 1
    assert second.stat().st_mtime == 1


# --- what a run depends on --------------------------------------------------------------------

FORMS = {
    "corea/__init__.py": "",
    "corea/plain.py": "import os, corea.aliased as x",
    "corea/aliased.py": "",
    "corea/named.py": "def f():\n    from .relative import thing",
    "corea/relative.py": "from . import sibling",
    "corea/sibling.py": "from corea import plain  # and back: a cycle",
    "corea/nested/__init__.py": "from .deep import value",
    "corea/nested/deep.py": "from ..upward import value",
    "corea/upward.py": "value = 1",
    "corea/starter.py": "WORKER = 'worker.py', 'absent.py', '.py', 'no path'",
    "corea/worker.py": "import corea.aliased",
    "corea/unrelated.py": "import corea.plain",
}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import os", ""),
        ("import corea", ""),
        ("import corea.plain", "plain aliased"),
        ("from corea import plain", "plain aliased"),
        ("from corea.aliased import x", "aliased"),
        ("if True:\n    import corea.named", "named relative sibling plain aliased"),
        ("import corea.nested", "nested/__init__ nested/deep upward"),
        ("from corea.nested import deep", "nested/__init__ nested/deep upward"),
        ("from corea import starter\n'unrelated.py'", "starter worker aliased"),
    ],
)
def test_modules_are_followed_through_every_form_of_import(
    tmp_path, monkeypatch, write_notebook, source, modules
):
    monkeypatch.chdir(tmp_path)
    for name, text in FORMS.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    write_notebook(Path("n.ipynb"), ("markdown", "import corea.unrelated"), ("code", source))
    expected = {f"corea/{name}.py" for name in modules.split()}
    expected |= {"corea/__init__.py"} if "corea" in source else set()
    assert set(map(str, p.imported_modules(Path("n.ipynb")))) == expected


@pytest.fixture(scope="module")
def loaded():
    """Modules of corea that the imports of each chapter load, chapters one after the other.

    In one process, since what they import besides takes seconds to load.
    """
    imports = {}
    for name in NAMES:
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        found = [n for n in ast.parse(code).body if isinstance(n, ast.Import | ast.ImportFrom)]
        imports[name] = "\n".join(map(ast.unparse, found))
    program = (
        "import json, sys\n"
        "loaded = {}\n"
        "for name, code in json.load(sys.stdin).items():\n"
        "    for own in [m for m in sys.modules if m.split('.')[0] == 'corea']:\n"
        "        del sys.modules[own]\n"
        "    exec(code, {})\n"
        "    loaded[name] = [m for m in sys.modules if m.split('.')[0] == 'corea']\n"
        "print(json.dumps(loaded))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(imports),
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
        cwd=ROOT,
    ).stdout
    return json.loads(said.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_no_module_that_a_chapter_loads_is_missed(monkeypatch, loaded, name):
    monkeypatch.chdir(ROOT)
    notebook = Path("notebooks", f"{name}.ipynb")
    found = {".".join(path.with_suffix("").parts) for path in p.imported_modules(notebook)}
    found |= {name.removesuffix(".__init__") for name in found}
    assert "corea.book.display" in found
    assert set(loaded[name]) <= found


def test_magics_are_refused_by_cell(tmp_path, write_notebook):
    write_notebook(tmp_path / "n.ipynb", TITLE, ("code", "%matplotlib inline"))
    with pytest.raises(PipelineError, match=r"n\.ipynb: cell 2 is not Python"):
        p.imported_modules(tmp_path / "n.ipynb")


def test_inputs_of_a_run(repository):
    made = Path("build/tiny/tables/second/t.csv")
    made.parent.mkdir(parents=True)
    for path in map(Path, ("mine.csv", "deep.csv", made)):
        path.write_text("x")
    values = {"a": "mine.csv", "b": "x\0", "c": "y" * 999, "d": {"e": ["deep.csv", 1]}}
    values["f"] = made.as_posix()  # the executed notebook that made it stands for it
    run = p.Run("first", Path("notebooks/first.ipynb"), values)
    assert set(map(str, p.run_inputs(run))) == {
        "constraints.txt", "corea/data/numbers.csv", "deep.csv", "mine.csv",
        "notebooks/first.ipynb",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "counts"),
    [("from corea.book import full_run", True), ("import corea.book.display", False)],
)
def test_published_full_run_counts_for_those_who_read_it(
    repository, write_notebook, source, counts
):
    table = Path("corea/data/full_run/compare/table.csv")
    table.parent.mkdir(parents=True)
    table.write_text("x\n1\n")
    notebook = Path("notebooks/first.ipynb")
    write_notebook(notebook, TITLE, ("code", source))
    inputs = p.run_inputs(p.Run("first", notebook, {}))
    assert (table in inputs) == counts
    assert Path("corea/data/numbers.csv") in inputs


# --- executing --------------------------------------------------------------------------------


def tiny_run(cells, write_notebook):
    """The run ``first`` with these cells after the title and the parameters."""
    path = Path("notebooks/first.ipynb")
    write_notebook(path, TITLE, ("code", GIVEN + "size = 0", "parameters"), *cells)
    profile = load_profile("tiny")
    return profile, profile.runs["first"]


def outputs(path):
    cells = json.loads(Path(path).read_text("utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_executed_notebook_tables_log_and_progress(repository, write_notebook, monkeypatch, capsys):
    write = "from pathlib import Path\nPath(output_dir, 't.csv').write_text(f'{size},{seed}');"
    where = "import os\nprint(os.path.samefile(os.getcwd(), os.environ['EXPECTED']))"
    monkeypatch.setenv("EXPECTED", str(repository))
    cells = [("code", write), ("markdown", "Read."), ("code", where)]
    p.execute(*tiny_run(cells, write_notebook))
    executed = Path("build/tiny/executed/first.ipynb")
    assert [output["text"] for output in outputs(executed)] == [["True\n"]]
    assert str(repository) not in executed.read_text()
    assert Path("build/tiny/tables/first/t.csv").read_text() == "3,0"
    assert capsys.readouterr().out.splitlines() == [f"first: cell {n} of 5" for n in (2, 3, 5)]
    assert "Executing Cell 3" in Path("build/tiny/logs/first.log").read_text()
    assert not Path("build/tiny/failed").exists()
    assert not list(Path("build/tiny/running").iterdir())


def test_lines_about_progress_are_told_and_not_kept(repository, write_notebook, capsys):
    first = "progress: 1 of 2 \x1b[31mred"
    lines = "\n".join([first, "kept: progress: 1", "progress:no", "progress: 2 of 2"])
    p.execute(*tiny_run([("code", f"print({t!r})") for t in (lines, first)], write_notebook))
    executed = Path("build/tiny/executed/first.ipynb")
    assert [output["text"] for output in outputs(executed)] == ["kept: progress: 1\nprogress:no\n"]
    told = [line for line in capsys.readouterr().out.splitlines() if " cell " not in line]
    assert told == ["first: 1 of 2 red", "first: 2 of 2", "first: 1 of 2 red"]
    noted = json.loads(executed.read_text("utf-8"))["metadata"]["corea"]
    assert (noted["profile"], noted["seed"]) == ("tiny", "0")
    assert {"commit", "date", "python", "numpy", "torch"} <= set(noted)


@pytest.mark.parametrize(("asked", "given"), [(None, "1"), ("3", "3")])
def test_notebook_gets_one_thread_unless_told_otherwise(
    repository, write_notebook, monkeypatch, asked, given
):
    Path("papermill.py").write_text(  # in place of the real one
        "import os, sys\nprint('Executing Cell 1---')\nsys.exit(os.environ['OMP_NUM_THREADS'])\n"
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    with pytest.raises(PipelineError, match=rf"cell 1 of 2: {given}\n"):
        p.execute(*tiny_run([], write_notebook))


def test_notebook_gets_as_many_threads_as_its_run_asks_for(repository, write_notebook, monkeypatch):
    text = Path("profiles/tiny.yaml").read_text("utf-8")
    write_profile(text.replace("first: {", "first: {resources: {cpus: 3}, "))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    p.execute(*tiny_run([("code", "import os\nos.environ['OMP_NUM_THREADS']")], write_notebook))
    (shown,) = outputs("build/tiny/executed/first.ipynb")
    assert shown["data"]["text/plain"] == ["'3'"]


def test_a_run_is_executed_by_one_process_at_a_time(repository, write_notebook, capsys):
    profile, run = tiny_run([], write_notebook)
    lock = Path("build/tiny/locks/first")
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = threading.Thread(target=p.execute, args=(profile, run))
        second.start()
        time.sleep(0.5)
        assert not Path("build/tiny/executed").exists()
        assert capsys.readouterr().out == "first: waiting for another process that executes it\n"
    second.join()
    assert Path("build/tiny/executed/first.ipynb").exists()


# --- kernels ------------------------------------------------------------------------------------


@pytest.fixture
def kernel(repository, tmp_path_factory, monkeypatch):
    """Function that makes the profile name the kernel ``corea-gpu`` and installs it, or not."""
    write_profile("kernel: corea-gpu\n" + Path("profiles/tiny.yaml").read_text("utf-8"))
    folder = tmp_path_factory.mktemp("jupyter")
    monkeypatch.setenv("JUPYTER_PATH", str(folder))

    def install(python):
        spec = folder / "kernels" / "corea-gpu"
        spec.mkdir(parents=True)
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        content = {"argv": argv, "display_name": "COREA (GPU)", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(content | {"env": {"WHERE": "on a GPU"}}))

    return install


def test_notebook_runs_in_the_kernel_that_the_profile_names(
    repository, kernel, write_notebook, tmp_path
):
    # as another environment is: its Python sees packages of other versions
    package = tmp_path / "other" / "relplot-9.9.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: relplot\nVersion: 9.9\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{package.parent}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    kernel(python)
    p.execute(*tiny_run([("code", "import os\nos.environ['WHERE']")], write_notebook))
    notebook = json.loads(Path("build/tiny/executed/first.ipynb").read_text("utf-8"))
    assert notebook["cells"][-1]["outputs"][0]["data"]["text/plain"] == ["'on a GPU'"]
    noted = notebook["metadata"]["corea"]
    assert noted["relplot"] == "9.9"
    assert (noted["profile"], noted["seed"]) == ("tiny", "0")


def test_kernel_that_cannot_import_corea_is_reported(repository, kernel, write_notebook):
    kernel(shutil.which("false"))
    with pytest.raises(
        PipelineError, match=r"first: kernel corea-gpu: \S+/false is no Python that"
    ):
        p.execute(*tiny_run([], write_notebook))
    assert "is no Python that" in Path("build/tiny/failed/first.txt").read_text()


def test_kernel_that_is_not_there_is_reported_before_anything_runs(repository, kernel, pipeline):
    complaint = (
        r"profiles/tiny\.yaml: there is no Jupyter kernel 'corea-gpu' here; there are: .*python3.*"
        r"python -m ipykernel install --user --name corea-gpu"
    )
    assert re.search(complaint, pipeline(repository, "build", "tiny").stdout)
    assert not Path("build").exists()
    by_hand = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "profile=tiny"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert by_hand.returncode == 1
    assert re.search(complaint, by_hand.stderr)
    assert not Path("build").exists()


HOSTILE = "\\x1b[31mred\\x1b[0m\\x07 <script>alert(1)</script>\\r\\nExecuting Cell 9-----"


def test_failure_names_the_cell_and_keeps_what_there_is(repository, write_notebook):
    cells = [("code", "print('kept')"), ("code", f"raise KeyError('{HOSTILE}')"), ("code", "1")]
    with pytest.raises(PipelineError) as caught:
        p.execute(*tiny_run(cells, write_notebook))
    reason, kept, log = str(caught.value).splitlines()
    assert reason.startswith(
        r"first: notebooks/first.ipynb, cell 4 of 5 (In [4]): KeyError: '\x1b[31mred"
    )
    assert kept == "  partial notebook: build/tiny/failed/first.ipynb"
    assert log == "  log: build/tiny/logs/first.log"
    partial = outputs("build/tiny/failed/first.ipynb")
    assert partial[0]["text"] == ["kept\n"]
    assert partial[1]["ename"] == "KeyError"
    assert not Path("build/tiny/executed/first.ipynb").exists()
    assert Path("build/tiny/failed/first.txt").read_text() == reason + "\n"


def test_hostile_error_text_is_shown_as_text(repository, write_notebook):
    cells = [("code", f"print('{HOSTILE}')\nraise ValueError('{HOSTILE}')")]
    with pytest.raises(PipelineError) as caught:
        p.execute(*tiny_run(cells, write_notebook))
    assert "cell 3 of 3 (In [3]): ValueError: red␇ <script>alert(1)</script>␍␊Exec" in str(
        caught.value
    )
    for told in (str(caught.value), Path("build/tiny/logs/first.log").read_text("utf-8")):
        assert not set(re.findall(r"[\x00-\x1f\x7f]", told)) - {"\n"}


def test_dead_kernel_is_reported_as_such(repository, write_notebook):
    cells = [("code", "import os\nprint('Executing Cell 9---')\nos.kill(os.getpid(), 9)")]
    with pytest.raises(PipelineError, match=r"cell 3 of 3: the kernel died"):
        p.execute(*tiny_run(cells, write_notebook))
    assert Path("build/tiny/failed/first.ipynb").exists()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import warnings\nwarnings.warn('careful')", "cell 3 wrote to standard error: .*careful"),
        ("import os\nos.getcwd()", "'/.*' in cell 3"),
    ],
)
def test_what_a_book_must_not_show_fails_the_run(repository, write_notebook, source, complaint):
    with pytest.raises(PipelineError, match="ran, but is not fit for a book: " + complaint):
        p.execute(*tiny_run([("code", source)], write_notebook))
    assert Path("build/tiny/failed/first.ipynb").exists()
    assert not Path("build/tiny/executed/first.ipynb").exists()


def test_papermill_that_is_killed_is_reported_and_what_it_left_is_kept(repository, write_notebook):
    Path("papermill.py").write_text(  # in place of the real one
        "import os, pathlib, sys\nprint('Executing Cell 1---', flush=True)\n"
        "pathlib.Path(sys.argv[2]).write_text('{')\nos.kill(os.getpid(), 9)\n"
    )
    with pytest.raises(PipelineError, match=r"running/first\.ipynb: not readable as a notebook"):
        p.execute(*tiny_run([], write_notebook))
    assert Path("build/tiny/failed/first.ipynb").read_text() == "{"
    Path("papermill.py").write_text(
        Path("papermill.py").read_text().replace("'{'", '\'{"nbformat": 4, "cells": []}\'')
    )
    with pytest.raises(PipelineError, match=r"cell 1 of 2: papermill was ended by signal 9"):
        p.execute(*tiny_run([], write_notebook))


PAPERMILL = """\
import pathlib, shutil, sys
tries = pathlib.Path("tries")
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if len(tries.read_text()) < {good}:
    print("zmq.error.ZMQError: Address already in use")
    sys.exit(1)
print("Executing Cell 1---")
shutil.copy(sys.argv[1], sys.argv[2])
"""


def test_kernel_that_did_not_start_is_started_once_more(
    repository, write_notebook, capsys, monkeypatch
):
    # a file rewritten within a second with as many bytes is taken for what was compiled of it
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    Path("papermill.py").write_text(PAPERMILL.format(good=2))  # in place of the real one
    p.execute(*tiny_run([], write_notebook))
    assert "the kernel did not start; trying once more" in capsys.readouterr().out
    Path("tries").unlink()
    Path("papermill.py").write_text(PAPERMILL.format(good=3))
    with pytest.raises(PipelineError, match=r"first\.ipynb did not start: zmq.*already in use"):
        p.execute(*tiny_run([], write_notebook))
    assert Path("tries").read_text() == "xx"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_keeps_what_there_is(repository, write_notebook, number):
    slow = "import os, time\nfrom pathlib import Path\nPath('kernel').write_text(f'{os.getpid()}.')"
    tiny_run([("code", "print('kept')"), ("code", slow + "\ntime.sleep(60)")], write_notebook)
    process = subprocess.Popen(
        [sys.executable, "-m", "corea.workflow.pipeline", "execute", "tiny", "first"],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    kernel = Path("kernel")
    while not kernel.exists() or not kernel.read_text().endswith("."):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait(timeout=30) == 128 + number
    assert outputs("build/tiny/failed/first.ipynb")[0]["text"] == ["kept\n"]
    assert Path("build/tiny/failed/first.txt").read_text() == "interrupted\n"
    number = int(kernel.read_text().rstrip("."))
    while psutil.pid_exists(number):  # it sees within a second that papermill is gone
        time.sleep(0.05)


# --- what must not be in a book ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home/ada/work", ["/home/ada"]),
        ("C:\\Users\\ada", ["C:\\Users\\ada"]),
        ("ada@node-7", ["ada@node"]),
        ("run on node-7.", ["node-7"]),
        ("nodes-7, anode-7, node-77", []),
        ("accuracy and/or cost; https://host/home/page; </tmp/x>", []),
        ("adamant ada", []),
        ("data:image/svg+xml;base64,AAAA/tmp/node-7+home/", []),
    ],
)
def test_private_text(tmp_path, monkeypatch, write_notebook, text, found):
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    write_notebook(tmp_path / "n.ipynb", TITLE, ("code", f"print({text!r})"))
    content = json.loads((tmp_path / "n.ipynb").read_text())
    content["cells"][1]["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": ["first\n", text]}
    ]
    content["cells"][1]["source"] = ""
    (tmp_path / "n.ipynb").write_text(json.dumps(content))
    assert p.private_text(tmp_path / "n.ipynb") == [f"{name!r} in cell 2" for name in found]


# --- the whole --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory, make_repository, pipeline):
    """A repository whose book is built; tests undo what they change."""
    path = tmp_path_factory.mktemp("built")
    source = "from corea.book import display\ndisplay.reading('It is {size}.', size=size)"
    first = [("code", source)]
    make_repository(path, {"first": first, "second": []})
    result = pipeline(path, "build", "tiny")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "build/tiny/_build/html/index.html"
    return path


def to_do(repository):
    """Outputs that the next build would make again."""
    result = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--nolock", "--config", "profile=tiny"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return {Path(m).stem for m in re.findall(r"output: ([^,\n]+)", result.stdout + result.stderr)}


@pytest.mark.parametrize(
    ("file", "made_again"),
    [
        (None, set()),
        ("corea/book/display.py", {"first", "index"}),
        ("corea/metrics/cascade.py", set()),
        ("corea/data/numbers.csv", {"first", "second", "index"}),
        ("notebooks/second.ipynb", {"second", "index"}),
        ("profiles/tiny.yaml", {"first", "index"}),
        ("constraints.txt", {"first", "second", "index"}),
        ("book/intro.md", {"index"}),
        ("_config.yml", {"index"}),
    ],
)
def test_only_what_a_change_touches_is_made_again(built, file, made_again):
    if file is None:
        assert to_do(built) == made_again
        return
    path = built / file
    before = path.read_text("utf-8")
    if file == "profiles/tiny.yaml":
        path.write_text(before.replace("size: 3", "size: 4", 1), "utf-8")
    else:
        path.write_text(before + "\n", "utf-8")
    try:
        assert to_do(built) == made_again
    finally:
        path.write_text(before, "utf-8")


def test_all_failures_are_named_and_only_they_are_redone(built, pipeline, write_notebook):
    paths = [built / "notebooks" / f"{name}.ipynb" for name in ("first", "second")]
    good = [path.read_text() for path in paths]
    parameters = ("code", GIVEN + "size = 0", "parameters")
    for path in paths:
        write_notebook(path, TITLE, parameters, ("code", "1 / 0"))
    result = pipeline(built, "build", "tiny")
    assert result.returncode == 1
    *_, head, first, second, log = result.stdout.splitlines()
    assert head == "profile tiny failed:"
    assert "notebooks/first.ipynb, cell 3 of 3 (In [3]): ZeroDivisionError" in first
    assert "notebooks/second.ipynb, cell 3 of 3 (In [3]): ZeroDivisionError" in second
    assert log.endswith("build/tiny/logs/snakemake.log")
    assert not (built / "build/tiny/_build").exists()  # no page shows what failed

    assert to_do(built) == {"first", "second", "index"}  # and nothing is forgotten

    paths[0].write_text(good[0])
    result = pipeline(built, "build", "tiny")
    assert result.returncode == 1
    assert "first: cell 3 of 3" in result.stdout
    assert "first.ipynb, cell" not in result.stdout

    paths[1].write_text(good[1])
    result = pipeline(built, "build", "tiny")
    assert result.returncode == 0, result.stdout
    assert "first: cell" not in result.stdout
    assert "second: cell 2 of 2" in result.stdout
    assert not list((built / "build/tiny/failed").iterdir())


def test_warning_of_a_page_fails_the_build_and_is_told(built, pipeline):
    page = built / "book" / "intro.md"
    before = page.read_text()
    page.write_text(before + "\n{doc}`nowhere`\n")
    try:
        result = pipeline(built, "build", "tiny")
        assert result.returncode == 1
        assert "book/intro.md:5: WARNING: unknown document: 'nowhere'" in result.stdout
        assert not (built / "build/tiny/_build").exists()
    finally:
        page.write_text(before)


def test_pages_and_profile_must_agree(built, monkeypatch):
    monkeypatch.chdir(built)
    profile = load_profile("tiny")
    fewer = p.Profile(profile.name, profile.seed, {"first": profile.runs["first"]})
    with pytest.raises(PipelineError, match=r"profiles/tiny\.yaml does not run: notebooks/second$"):
        p.assemble(fewer)
    run = p.Run("first_l1", Path("notebooks/first.ipynb"), {})
    more = p.Profile(profile.name, profile.seed, {**profile.runs, "first_l1": run})
    with pytest.raises(PipelineError, match="neither notebooks/first_l1 nor book/first, to which"):
        p.assemble(more)


WRITE = """\
import time
from pathlib import Path
from corea.store import make
began = time.time()
entry = make("sum", {"of": [size, seed]}, lambda f: (f / "sum").write_text(str(size + seed)))
Path(output_dir, "seed.csv").write_text((entry / "sum").read_text())
time.sleep(0.3)
Path(output_dir, "when.csv").write_text(f"{began} {time.time()}");"""
READ = """\
from pathlib import Path
from corea.book import display, full_run
total = sum(int(Path(run, "seed.csv").read_text()) for run in runs)
display.reading("Together {total}.", total=total)"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_repository, pipeline, write_notebook):
    """A repository with a built book in which ``compare`` reads two runs of ``train``."""
    path = make_repository(tmp_path_factory.mktemp("trained"), {"compare": [], "train": []})
    cells = ("code", GIVEN + "size = 0", "parameters"), ("code", WRITE)
    write_notebook(path / "notebooks/train.ipynb", TITLE, *cells)
    cells = ("code", GIVEN + "runs = ['']", "parameters"), ("code", READ)
    write_notebook(path / "notebooks/compare.ipynb", ("markdown", "# Which?\n\nAll."), *cells)
    (path / "book/train.md").write_text("# Training\n\n```{tableofcontents}\n```\n")
    contents = "  - file: notebooks/compare\n  - file: book/train\n"
    (path / "_toc.yml").write_text(f"format: jb-book\nroot: book/intro\nchapters:\n{contents}")
    (path / "profiles/tiny.yaml").write_text(
        "profile: tiny\nseed: 0\nruns:\n"
        "  compare: {parameters: {runs: ['{tables}/train_big_s*']}}\n"
        "  train: {parameters: {}, variants: {big: {size: 10}}, seeds: [1, 2],"
        " resources: {gpus: 1}}\n"
    )
    result = pipeline(path, "build", "tiny")
    assert result.returncode == 0, result.stdout + result.stderr
    return path


def test_run_reads_what_the_runs_before_it_wrote(trained):
    assert "Together 23." in (trained / "build/tiny/executed/compare.ipynb").read_text("utf-8")


def test_runs_that_ask_for_a_gpu_do_not_run_side_by_side(trained):
    folders = [trained / f"build/tiny/tables/train_big_s{seed}" for seed in (1, 2)]
    (_, ended), (began, _) = sorted(
        [float(time) for time in (folder / "when.csv").read_text().split()] for folder in folders
    )
    assert ended < began


def test_variants_are_sections_below_their_page_with_titles_of_their_own(trained):
    contents = (trained / "build/tiny/source/_toc.yml").read_text("utf-8")
    assert contents.splitlines()[2:] == [
        "chapters:", "- file: notebooks/compare", "- file: book/train", "  sections:",
        "  - file: notebooks/train_big_s1", "  - file: notebooks/train_big_s2",
    ]  # fmt: skip
    html = trained / "build/tiny/_build/html"
    above = (html / "book/train.html").read_text("utf-8")
    for seed in (1, 2):
        title = f"What is this? · big, seed {seed}"
        assert f"{title}<" in above
        page = html / f"notebooks/train_big_s{seed}.html"
        assert f"<h1>{title}<" in page.read_text("utf-8")
    assert "<h1>Which?<" in (html / "notebooks/compare.html").read_text("utf-8")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


HARMS = {"deleted": Path.unlink, "truncated": halve, "flipped": flip}


@pytest.fixture
def harmed(trained, tmp_path, monkeypatch):
    """Function that harms a file of a copy of a built repository; the working directory."""
    for name in ("profiles", "notebooks", "corea", "book"):
        (tmp_path / name).symlink_to(trained / name)
    for name in ("Snakefile", "_toc.yml", "_config.yml", "constraints.txt"):
        shutil.copy(trained / name, tmp_path)
    shutil.copytree(trained / "build", tmp_path / "build")
    monkeypatch.chdir(tmp_path)

    def harm(pattern, kind):
        (path,) = [p for p in Path("build").glob(pattern) if p.suffix not in {".lock", ".damaged"}]
        HARMS[kind](path)
        return path

    return harm


@pytest.mark.parametrize("kind", HARMS)
@pytest.mark.parametrize(
    "pattern",
    [
        "tiny/executed/train_big_s1.ipynb",
        "tiny/tables/train_big_s1/seed.csv",
        "tiny/tables/train_big_s1/run.json",
        "tiny/tables/train_big_s1/manifest.json",
        "store/sum-*/sum",
        "store/sum-*/request.json",
        "store/sum-*/manifest.json",
    ],
)
def test_result_that_was_harmed_is_removed_and_named(trained, harmed, capsys, pattern, kind):
    profile = load_profile("tiny")
    assert {p.damage(profile, run) for run in profile.runs} == {""}
    if pattern.startswith("store"):  # of the two entries that of the first seed
        noted = json.loads(Path("build/tiny/tables/train_big_s1/run.json").read_text())
        pattern = f"store/{Path(noted['entries'][0]).name}/{Path(pattern).name}"
    path = harmed(pattern, kind)
    named = path if kind == "deleted" or "manifest" not in path.name else path.parent
    found = p.damage(profile, "train_big_s1")
    assert str(named if named.suffix == ".ipynb" else named.parent.name) in found
    with pytest.raises(PipelineError, match="the book was not built:\n  train_big_s1: "):
        p.render(profile)
    with pytest.raises(PipelineError, match="compare: train_big_s1, which it reads, is not whole"):
        p.execute(profile, profile.runs["compare"])
    p.remove_damaged(profile)
    executed = Path("build/tiny/executed")
    assert not (executed / "train_big_s1.ipynb").exists()
    assert not Path("build/tiny/tables/train_big_s1").exists()
    assert (executed / "train_big_s2.ipynb").exists()
    assert not Path("build/tiny/_build").exists()
    said = capsys.readouterr().out
    assert ("train_big_s1: " in said) == (path.parent != executed or kind != "deleted")


@pytest.mark.parametrize("kind", HARMS)
@pytest.mark.parametrize(
    "page",
    [
        "html/index.html",
        "html/notebooks/compare.html",
        "html/_static/plotly.min.js",
        "manifest.json",
    ],
)
def test_page_that_was_harmed_is_removed_and_named(harmed, capsys, page, kind):
    harmed(f"tiny/_build/{page}", kind)
    p.remove_damaged(load_profile("tiny"))
    assert not Path("build/tiny/_build").exists()
    told = r"book: build/tiny/_build\b.+; the pages are rendered again\n"
    assert re.fullmatch(told, capsys.readouterr().out)
    assert len(list(Path("build/tiny/executed").iterdir())) == 3


def test_run_that_another_process_executes_is_left_alone(harmed):
    harmed("tiny/executed/train_big_s1.ipynb", "deleted")
    with Path("build/tiny/locks/train_big_s1").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        p.remove_damaged(load_profile("tiny"))
    assert Path("build/tiny/tables/train_big_s1/seed.csv").exists()


def test_everything_harmed_is_made_anew_by_the_next_build(trained, pipeline):
    def content():
        kept = {}
        for path in sorted((trained / "build").rglob("*")):
            name = path.relative_to(trained / "build").as_posix()
            if re.fullmatch(r"tiny/tables/.*/seed.csv|store/sum-[0-9a-f]+/.*", name):
                kept[name] = path.read_bytes()
        for name in ("index", "notebooks/compare", "notebooks/train_big_s1"):
            kept[name] = (trained / f"build/tiny/_build/html/{name}.html").read_bytes()
        return kept

    before = content()
    noted = json.loads((trained / "build/tiny/tables/train_big_s2/run.json").read_text())
    halve(trained / noted["entries"][0] / "sum")
    (trained / "build/tiny/executed/compare.ipynb").unlink()
    (trained / "build/tiny/parameters/compare.yaml").write_text("")
    result = pipeline(trained, "build", "tiny")
    assert result.returncode == 0, result.stdout
    for told in (
        f"train_big_s2: {noted['entries'][0]} is damaged: sum was changed",
        "train_big_s2: build/store/sum-",  # set aside, and made again
    ):
        assert told in result.stdout
    assert "train_big_s1: " not in result.stdout
    assert content() == before
    assert to_do(trained) == set()


def test_change_of_a_run_touches_what_reads_it(trained):
    profile, table = trained / "profiles/tiny.yaml", trained / "corea/data/full_run/c/t.csv"
    before = profile.read_text()
    assert to_do(trained) == set()
    try:
        profile.write_text(before.replace("seeds: [1, 2]", "seeds: [2, 3]"))
        assert to_do(trained) == {"train_big_s3", "compare", "index"}
        profile.write_text(before.replace("size: 10", "size: 11"))
        assert to_do(trained) == {"train_big_s1", "train_big_s2", "compare", "index"}
        profile.write_text(before)
        table.parent.mkdir(parents=True)
        table.write_text("x\n1\n")
        assert to_do(trained) == {"compare", "index"}
    finally:
        profile.write_text(before)
        shutil.rmtree(table.parents[1], ignore_errors=True)


def test_what_needs_a_failed_run_does_not_run_and_is_named(trained, pipeline, write_notebook):
    cells = ("code", GIVEN + "size = 0", "parameters"), ("code", "1 / (2 - seed)")
    write_notebook(trained / "notebooks/train.ipynb", TITLE, *cells)
    result = pipeline(trained, "build", "tiny")
    assert result.returncode == 1
    *_, head, failed, blocked, _ = result.stdout.splitlines()
    assert head == "profile tiny failed:"
    assert failed.startswith("  train_big_s2: notebooks/train.ipynb, cell 3 of 3 (In [3]): Zero")
    assert blocked == "  compare: not run, since it needs train_big_s2"
    assert "compare: cell" not in result.stdout
    # the last test of this repository: its book is not built again
    assert (trained / "build/tiny/executed/train_big_s1.ipynb").exists()


def test_one_build_at_a_time(repository):
    profile = load_profile("tiny")
    profile.directory.mkdir(parents=True)
    with (profile.directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 (Snakemake) on node-7\n")
        lock.flush()
        told = "profile tiny is being built already, by process 7 .Snakemake. on node-7. Wait"
        with pytest.raises(PipelineError, match=told):
            p.build(profile)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "The disk is full: free some space and run it again"),
        (errno.EACCES, "Make it yours to write"),
        (errno.EROFS, "Work in a copy of the repository"),
        (errno.ENOTDIR, "Everything is made below build/"),
    ],
)
def test_what_the_system_refuses_is_told_in_a_line(repository, monkeypatch, capsys, number, told):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "build/tiny/logs")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert p.main(["build", "tiny"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"build/tiny/logs: {os.strerror(number)}. {told}")


def test_file_in_the_place_of_a_folder_is_told(repository, pipeline):
    Path("build").write_text("")
    result = pipeline(repository, "build", "tiny")
    assert (result.returncode, result.stderr) == (1, "")
    assert re.fullmatch(r"build\S*: (Not a directory|File exists)\. Everything .*\n", result.stdout)


def test_errors_of_snakemake_itself_are_told(repository, pipeline):
    Path("Snakefile").write_text(Path("Snakefile").read_text() + "\nrulee x:\n")
    result = pipeline(repository, "build", "tiny")
    assert result.returncode == 1
    assert "SyntaxError in file" in result.stdout


def test_command_line_refuses_what_it_does_not_know(repository, capsys):
    assert p.main(["execute", "tiny", "third"]) == 1
    assert "profile tiny has no run 'third'" in capsys.readouterr().out
    assert p.main(["parameters", "tiny"]) == 0
    assert capsys.readouterr().out.split() == [
        "build/tiny/parameters/first.yaml", "build/tiny/parameters/second.yaml",
    ]  # fmt: skip
