"""Profiles, what notebooks say of themselves, and what a run depends on."""

import ast
import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from corea.book.published import hyperparameters
from corea.training.settings import SFTSettings
from corea.workflow import PipelineError, execute, notebooks
from corea.workflow.profiles import Resources, Run, load_profile
from corea.workflow.work import TRAININGS, items, training_settings

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
TITLE = ("markdown", "# What is this?")
GIVEN = 'profile = "laptop"\nseed = 0\noutput_dir = ""\n'


@pytest.fixture
def repository(tmp_path, monkeypatch, make_repository):
    """A repository with the notebooks ``first`` and ``second``; the working directory."""
    monkeypatch.chdir(make_repository(tmp_path, {"first": [("code", "size")], "second": []}))
    return tmp_path


def load(runs, head="profile: tiny\nseed: 7\n"):
    Path("profiles/tiny.yaml").write_text(f"{head}runs: {runs}", "utf-8")
    return load_profile("tiny")


# --- what a profile says -----------------------------------------------------------------------


def test_chapters_are_runs_with_the_defaults_of_their_notebooks(repository):
    profile = load("{first: {parameters: {size: 1}}}")
    assert (profile.name, profile.seed, list(profile.runs)) == ("tiny", 7, ["first", "second"])
    given = {"profile": "tiny", "seed": 7}
    assert profile.runs["first"] == Run(
        "first", Path("notebooks/first.ipynb"), {**given, "size": 1}, entry="first"
    )
    assert profile.runs["second"].parameters == {**given, "size": 3}  # which the profile leaves out
    assert load("{}").runs["first"].parameters == {**given, "size": 3}
    twice = load("{small: {notebook: first}, large: {notebook: first, parameters: {size: 9}}}")
    assert list(twice.runs) == ["first", "second", "small", "large"]
    assert [run.parameters["size"] for run in twice.runs.values()] == [3, 3, 3, 9]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("profile: [", "tiny.yaml: not readable as YAML"),
        ("- profile", r"the profile is \['profile'\]: Input should be a valid dictionary"),
        ("seed: 0", "tiny.yaml: lacks profile"),
        ("profile: tiny\nseed: 0\nsed: 1", "sed: unknown key"),
        ("profile: other\nseed: 0", "profile is 'other', expected 'tiny'"),
        ("profile: tiny\nseed: -1", "seed is -1: Input should be greater than or equal to 0"),
        ("profile: tiny\nseed: true", "seed is True: Input should be a valid integer"),
        ("profile: tiny\nseed: 0\nseed: 1", "line 1: seed given more than once"),
        ("profile: tiny\nseed: 0\nruns: {first: {note: x}}", "runs.first.note: unknown key"),
        ("profile: tiny\nseed: 0\nruns: {first: 3}", "runs.first is 3: Input should be"),
        ("profile: tiny\nseed: 0\nruns: {third: }", "runs.third: there is no notebook notebooks/th"),
        ("profile: tiny\nseed: 0\nruns: {x: {notebook: ../first}}", "runs.x.notebook is '../first'"),
        ("profile: tiny\nseed: 0\nkernel: a b", "kernel is 'a b': String should match"),
        ("profile: tiny\nseed: 0\nkernel: 3", "kernel is 3: Input should be a valid string"),
        ("profile: tiny\nseed: 0\nresources: {gpu: 1}", "resources.gpu: unknown key"),
        ("profile: tiny\nseed: 0\nresources: {cpus: 0}", "resources.cpus is 0: Input should be"),
        (
            "profile: tiny\nseed: 0\nruns: {first: {resources: {gpus: -1, minutes: 1.5}}}",
            r"(?s)runs.first.resources.gpus is -1: .*runs.first.resources.minutes is 1.5: ",
        ),
        ("profile: tiny\nseed: 0\ndefaults: {sizes: 1}", "defaults: unknown parameter sizes; .* size"),
        ("profile: tiny\nseed: 0\ndefaults: {size: x}", "defaults.size is 'x', expected int as in"),
    ],
)  # fmt: skip
def test_wrong_profile_is_refused_by_name(repository, text, complaint):
    Path("profiles/tiny.yaml").write_text(text)
    with pytest.raises(PipelineError, match=complaint):
        load_profile("tiny")


@pytest.mark.parametrize("name", ["none", "../tiny", ""])
def test_unknown_profile_is_refused_and_the_known_are_named(repository, name):
    with pytest.raises(PipelineError, match="there are: tiny"):
        load_profile(name)


@pytest.fixture
def fits(repository, write_notebook):
    """Two notebooks more: ``fit`` is trained in variants, ``compare`` reads."""
    cell = "reward = 'none'\nsteps = 1\nrate = 0.5\nflag = False\nanything = None"
    write_notebook(Path("notebooks/fit.ipynb"), TITLE, ("code", GIVEN + cell, "parameters"))
    cell = "base = ''\nruns = ['build/laptop/tables/fit_l1']\nby_name = {}\nsteps = 1"
    write_notebook(Path("notebooks/compare.ipynb"), TITLE, ("code", GIVEN + cell, "parameters"))


def test_types_are_those_of_the_defaults(fits):
    run = load("{fit: {parameters: {rate: 1, flag: true, anything: [1]}}}").runs["fit"]
    assert run.parameters["rate"] == 1
    for wrong in ("rate: true", "flag: 1", "rate: 1e-3", "steps: 1.5", "steps: true"):
        with pytest.raises(PipelineError, match=r"runs\.fit\.parameters\.\w+ is .*, expected"):
            load(f"{{fit: {{parameters: {{{wrong}}}}}}}")


def test_nearest_setting_wins(fits):
    head = "profile: tiny\nseed: 7\ndefaults: {steps: 2, rate: 0.1}\n"
    runs = "{fit: {parameters: {steps: 3}, variants: {a: {steps: 4}, b: }}, other: {notebook: fit}}"
    found = load(runs, head).runs
    assert {n: (found[n].parameters["steps"], found[n].parameters["rate"]) for n in list(found)[2:]} == {
        "fit_a": (4, 0.1), "fit_b": (3, 0.1), "other": (2, 0.1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "runs"),
    [
        ("", {"fit": ("none", 7, "")}),
        ("seeds: [3]", {"fit_s3": ("none", 3, "seed 3")}),
        (
            "variants: {l1: {reward: l1}, plain_one: }",
            {"fit_l1": ("l1", 7, "l1"), "fit_plain_one": ("none", 7, "plain one")},
        ),
        (
            "seeds: [5, 0], variants: {l1: {reward: l1}, l2: {reward: l2}}",
            {
                "fit_l1_s5": ("l1", 5, "l1, seed 5"),
                "fit_l1_s0": ("l1", 0, "l1, seed 0"),
                "fit_l2_s5": ("l2", 5, "l2, seed 5"),
                "fit_l2_s0": ("l2", 0, "l2, seed 0"),
            },
        ),
        (
            "seeds: [5], more_seeds: {seeds: [2], variants: [l2]}, "
            "variants: {l1: {reward: l1}, l2: {reward: l2}}",
            {
                "fit_l1_s5": ("l1", 5, "l1, seed 5"),
                "fit_l2_s5": ("l2", 5, "l2, seed 5"),
                "fit_l2_s2": ("l2", 2, "l2, seed 2"),
            },
        ),
        ("notebook: first, variants: {a: }", {"fit_a": (None, 7, "fit, a")}),
    ],
)
def test_variants_and_seeds_are_runs_of_their_own(fits, entry, runs):
    found = {
        name: (run.parameters.get("reward"), run.parameters["seed"], run.label)
        for name, run in load(f"{{fit: {{{entry}}}}}").runs.items()
        if run.entry == "fit"
    }
    assert list(found.items()) == list(runs.items())


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("parameters: {stepps: 1}", "parameters: unknown parameter stepps; the nearest known is steps"),
        ("parameters: {seed: 1}", "parameters: unknown parameter seed; the pipeline sets it"),
        ("variants: {}", "variants is {}: Dictionary should have at least 1 item"),
        ("variants: [l1]", r"variants is \['l1'\]: Input should be a valid dictionary"),
        ("variants: {l-1: }", "variants.l-1 is 'l-1': String should match pattern"),
        ("variants: {1: }", "variants.1 is 1: Input should be a valid string"),
        ("variants: {l1: {rewards: x}}", "variants.l1: unknown parameter rewards; .* reward$"),
        ("variants: {l1: {reward: 1}}", "variants.l1.reward is 1, expected str as in notebooks/fit"),
        ("seeds: []", "seeds is .*: List should have at least 1 item"),
        ("seeds: 3", "seeds is 3: Input should be a valid list"),
        ("seeds: null", "seeds is None: Input should be a valid list"),
        ("seeds: [1, 1]", r"seeds is \[1, 1\]: Value error, expected different seeds"),
        ("seeds: [-1]", "seeds.0 is -1: Input should be greater"),
        ("seeds: [true]", "seeds.0 is True: Input should be a valid integer"),
        *(
            (f"variants: {{l1: }}, {given}", f" is .*: Value error, {complaint}")
            for given, complaint in (
                ("more_seeds: {seeds: [1], variants: [l1]}", "more_seeds without seeds"),
                (
                    "seeds: [1], more_seeds: {seeds: [2, 1], variants: [l1]}",
                    "more_seeds has 1, which seeds has; expected new ones",
                ),
                (
                    "seeds: [1], more_seeds: {seeds: [2], variants: [l3]}",
                    "more_seeds names 'l3', which is no variant",
                ),
            )
        ),
    ],
)  # fmt: skip
def test_wrong_entry_is_refused_by_name(fits, entry, complaint):
    where = complaint if complaint.startswith(" is") else f".{complaint}"
    with pytest.raises(PipelineError, match=rf"^profiles/tiny\.yaml: runs.fit{where}"):
        load(f"{{fit: {{{entry}}}}}")


def test_two_runs_of_one_name_are_refused(fits):
    with pytest.raises(PipelineError, match="runs.fit: another run is named fit_l1 as well"):
        load("{fit_l1: {notebook: fit}, fit: {variants: {l1: }}}")


def test_yaml_may_say_once_what_variants_share(fits):
    runs = load("{fit: {variants: {a: &a {steps: 2, reward: x}, b: {<<: *a, reward: y}}}}").runs
    assert [runs[n].parameters["reward"] for n in ("fit_a", "fit_b")] == ["x", "y"]
    assert [runs[n].parameters["steps"] for n in ("fit_a", "fit_b")] == [2, 2]


# --- runs that read others -----------------------------------------------------------------------

FITS = "fit: {variants: {l1: , rlvr: }, seeds: [1, 0]}"


def test_runs_are_found_that_a_parameter_names(fits):
    runs = load(
        f"{{{FITS}, compare: {{parameters: {{base: '{{tables}}/fit_rlvr_s0/model.json', "
        "runs: ['{tables}/fit_l1', plain, '{tables}/fit_rlvr_s0/x.csv'], "
        "by_name: {deep: [['{tables}/fit_rlvr_s1']], number: 1, text: '{tables}x'}}}}"
    )
    folder = "build/tiny/tables/"
    assert runs.runs["compare"].parameters == {
        "profile": "tiny",
        "seed": 7,
        "steps": 1,
        "base": folder + "fit_rlvr_s0/model.json",
        "runs": [folder + "fit_l1_s1", folder + "fit_l1_s0", "plain", folder + "fit_rlvr_s0/x.csv"],
        "by_name": {
            "deep": [[folder + "fit_rlvr_s1"]], "number": 1, "text": "build/tiny/tablesx",
        },
    }  # fmt: skip
    needs = ["fit_rlvr_s0", "fit_l1_s1", "fit_l1_s0", "fit_rlvr_s1"]
    assert [*runs.runs["compare"].needs] == runs.all_needs("compare") == needs
    assert runs.runs["fit_l1_s0"].needs == ()


def test_run_without_its_seed_is_that_of_the_same_seed_or_in_a_list_those_of_all(fits):
    # the notebook's default names the folder of another profile
    compare = "compare: {parameters: {base: '{tables}/fit_rlvr/x'}, seeds: [0, 1]}"
    runs = load(f"{{{FITS}, {compare}}}").runs
    for seed in (0, 1):
        parameters = runs[f"compare_s{seed}"].parameters
        assert parameters["base"] == f"build/tiny/tables/fit_rlvr_s{seed}/x"
        assert parameters["runs"] == [f"build/tiny/tables/fit_l1_s{s}" for s in (1, 0)]
    with pytest.raises(PipelineError, match=r"base is '.*/fit_rlvr/x', but there is no such run"):
        load(f"{{{FITS}, {compare.replace('0, 1', '2')}}}")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("base: '{tables}/train'", "base is 'build/tiny/tables/train', but there is no such run"),
        ("base: '{tables}'", "base is 'build/tiny/tables', but there is no such run"),
        ("base: build/other/tables/fit_l1_s0", "base is '.*', in the folder of another profile"),
        ("by_name: {x: ['{tables}/l3']}", "by_name.x is '.*/l3', but there is no such run"),
    ],
)
def test_folder_of_no_run_is_refused_by_name(fits, value, complaint):
    with pytest.raises(PipelineError, match=rf"runs\.compare\.parameters\.{complaint}"):
        load(f"{{{FITS}, compare: {{parameters: {{{value}}}}}}}")


PART = "profile: tiny\nseed: 7\npartial: true\n"


def test_a_partial_profile_gives_a_notebook_none_of_the_folders_that_it_cannot_fill(
    repository, write_notebook
):
    cell = 'runs = ["build/laptop/tables/second", "build/laptop/tables/train"]\n'
    cell += 'base = "build/laptop/tables/train"'
    for name, code in (("reads", cell), ("train", "steps = 1")):
        code = ("code", GIVEN + code, "parameters")
        write_notebook(Path("notebooks", f"{name}.ipynb"), TITLE, code)
    with pytest.raises(PipelineError, match="tables/train', but there is no such run"):
        load("{reads: }")
    partly = load("{reads: }", PART).runs["reads"]
    assert (partly.parameters["runs"], partly.needs) == ([], ())
    assert partly.parameters["base"] == "build/tiny/tables/train"  # which is not there
    whole = load("{reads: , train: }", PART).runs["reads"]
    assert whole.parameters["runs"] == ["build/tiny/tables/second", "build/tiny/tables/train"]
    given = load("{reads: {parameters: {runs: ['{tables}/second']}}}", PART).runs["reads"]
    assert given.needs == ("second",)
    with pytest.raises(PipelineError, match="tables/none', but there is no such run"):
        load("{reads: {parameters: {runs: ['{tables}/none']}}}", PART)


def test_runs_that_need_each_other_are_refused_by_name(fits):
    def chain(*pairs):
        entry = "{}: {{notebook: compare, parameters: {{base: '{}', runs: []}}}}"
        return load("{" + ", ".join(entry.format(*pair) for pair in pairs) + "}")

    need = [("a", "{tables}/b"), ("b", "{tables}/c"), ("c", "")]
    assert chain(*need).all_needs("a") == ["c", "b"]
    # what most runs in turn wait for starts first; of two alike the first in the profile
    beside = chain(*need, ("d", ""))
    assert sorted("abcd", key=beside.priorities.__getitem__, reverse=True) == list("cbad")
    assert min(beside.priorities.values()) > 0  # to Snakemake 0 is none
    circles = "a needs b needs c needs a|b needs c needs a needs b|c needs a needs b needs c"
    with pytest.raises(PipelineError, match=f"runs need each other: ({circles})$"):
        chain(*need[:2], ("c", "{tables}/a/x.csv"))
    with pytest.raises(PipelineError, match="runs need each other: a needs a"):
        chain(("a", "{tables}/a"))


# --- what a run asks for, and whether it can have it -----------------------------------------------


def test_runs_that_train_ask_as_the_profile_says_and_others_for_little(fits, write_notebook):
    write_fit = partial(
        write_notebook,
        Path("notebooks/fit.ipynb"),
        TITLE,
        ("code", GIVEN, "parameters"),
        ("code", "def later():\n    import corea.stages"),
    )
    write_fit()
    with pytest.raises(PipelineError, match="fit.ipynb trains or generates, but its metadata"):
        load("{fit: {}}")
    for work in ({"rule": "reinforce"}, {"rule": "evaluate", "when": {"batch": 1}}):
        write_fit(work=[work])
        with pytest.raises(PipelineError, match="runs.fit: .*fit.ipynb has no parameter 'batch'"):
            load("{fit: {}}")
    write_fit(work=["evaluate"])
    profile = load(
        "{fit: {seeds: [0, 1], resources: {minutes: 90}}, more: {notebook: fit}, "
        "part: {notebook: compare, parameters: {runs: []}}, compare: {resources: {memory_gb: 30}, "
        "parameters: {base: '{tables}/part', runs: ['{tables}/fit_s1']}}}\n"
        "resources: {gpus: 1, cpus: 8, memory_gb: 60, minutes: 30}\n"
    )
    full = Resources(gpus=1, cpus=8, memory_gb=60, minutes=30)
    least = Resources(gpus=0, cpus=1, memory_gb=4, minutes=60)
    assert {name: profile.asked(name) for name in profile.runs} == {
        **dict.fromkeys(["first", "second", "part"], least),
        **dict.fromkeys(["fit_s0", "fit_s1"], full.model_copy(update={"minutes": 90})),
        "more": full,
        "compare": least.model_copy(update={"memory_gb": 30}),
    }
    assert profile.readers == ["first", "second", "part"]  # compare waits for the part


def test_chapters_that_train_are_told_from_those_that_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    profile = load_profile("smoke")
    runs = {run.notebook: run for run in profile.runs.values()}
    trains = {notebook.stem for notebook, run in runs.items() if run.trains}
    assert {"pretrain", "train", "decision_train", "confidence_models"} <= trains
    # but for the plan, which counts weights, none gets to the stages through another module alone
    reach = {path.stem for path in runs if notebooks.STAGES in notebooks.imported_modules(path)}
    assert trains == reach - {"real_models"}
    readers = set(profile.readers)
    assert not any(readers & {*profile.runs[name].needs} for name in readers)
    assert "claims" not in readers
    assert len(profile.readers) > 10


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        # what PROFILE=paper could not train before this was checked
        ("paper", "micro_batch: 8}", "micro_batch: 16}",
         r"runs.decision_train_sft_choices: batch is 32; expected a multiple .* 16 x 4\n"),
        ("paper", "n_validation: 256", "n_validation: 255", "runs.train_l1_g4: 255 validation"),
        ("paper", "router_batch: 256 ", "router_batch: 40 ", "runs.confidence_models: batch is 40"),
        ("gpu", "micro_batch: 16", "micro_bacth: 16", "runs.train_l1: .*argument 'micro_bacth'"),
        ("smoke", "brier, group_size: 2}", "brier, group_size: 3}", "runs.train_brier: batch is 16; exp"),
        ("laptop", "cosine_every: 5\n      two", "cosine_every: -5\n      two",
         r"(?s)runs.decision_train_ca_choices: cosine_every is -5.*runs.decision_train_ca_messages"),
        ("laptop", "steps: 1000}", "steps: 0}", "runs.pretrain_large: steps is 0; expected"),
        ("gpu", "accelerate/one.yaml   # a", "accelerate/two.yaml   # a",
         "runs.train_l1: .*two.yaml: not a configuration of accelerate"),
    ],
)  # fmt: skip
def test_training_that_cannot_be_run_is_refused_before_anything_starts(
    tmp_path, monkeypatch, name, old, new, complaint
):
    monkeypatch.chdir(tmp_path)
    for part in ("notebooks", "corea", "_toc.yml"):
        Path(part).symlink_to(ROOT / part)
    Path("profiles").mkdir()
    Path("profiles/accelerate").symlink_to(ROOT / "profiles/accelerate")
    text = (ROOT / "profiles" / f"{name}.yaml").read_text("utf-8")
    assert old in text
    Path(f"profiles/{name}.yaml").write_text(text.replace(old, new), "utf-8")
    with pytest.raises(PipelineError, match=complaint):
        load_profile(name)


def settings_of(profile):
    """Every value of a profile that is a setting: entry and parameter, and the value as text."""
    # which model, not how; and how precise the intervals are
    named = {"system", "base", "role", "task", "method", "n_resamples"}

    def leaves(parameters, entry):
        for name, value in (parameters or {}).items():
            if name == "more":
                yield from leaves(value, entry)
            elif name not in named and value != [] and "{tables}" not in str(value):
                yield f"{entry}.{name}", str(value)

    for entry, given in profile["runs"].items():
        if not entry.startswith("world"):  # the model world, which no paper has
            variants = (given.get("variants") or {}).values()
            for parameters in (given.get("parameters"), *variants):
                yield from leaves(parameters, entry)
    yield from leaves(profile["defaults"], "defaults")


def test_each_setting_of_the_profile_paper_has_a_source_and_each_source_a_setting():
    profile = yaml.safe_load((ROOT / "profiles" / "paper.yaml").read_text("utf-8"))
    table = hyperparameters()
    rows = list(zip(table["setting"], table["value"], strict=True))
    assert len(set(rows)) == len(rows)
    assert set(settings_of(profile)) == set(rows)
    places = table["place"].str.split(r"[ :]", regex=True).str[0]
    assert set(places) == {"A", "B", "SimpleRL", "TRL", "ours"}
    assert table.loc[places == "ours", "place"].str.fullmatch("ours: .+").all()
    assert set(table["paper"]) == {"A", "B"}
    assert (places[places.isin(["A", "B"])] == table.loc[places.isin(["A", "B"]), "paper"]).all()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("pretrain", {}),
        ("decision_pretrain", {}),
        ("train", {"train_temperature": 0.7, "temperature": 0.0, "more": {"lora_rank": 4}}),
        ("decision_train", {"temperature": 0.0, "more": {"micro_batch": 8}}),
        ("decision_train", {"method": "sft", "more": {"micro_batch": 8}}),
        ("confidence_models", {"router_batch": 16, "more": {"lora_rank": 4}}),
    ],
)
def test_the_settings_that_are_checked_are_those_that_the_notebook_trains_with(name, changes):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    parameters = notebooks.notebook_parameters(path) | changes
    (item,) = [item for item in items(path, parameters) if item["rule"] in TRAININGS]
    kind = TRAININGS[item["rule"]]
    cells = notebooks.read_notebook(path)["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (call,) = [
        node
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == kind.__name__
    ]
    trained = eval(ast.unparse(call), {kind.__name__: kind, "math": math, **parameters})
    # of no weight for what is checked and estimated, so not declared
    silent = {"warmup_steps", "loss_type", "weight_decay", "adam_beta2", "selection"}
    silent |= {"lr_schedule"} if kind is SFTSettings else set()
    left = {field.name: field.default for field in fields(kind) if field.name in silent}
    assert training_settings(item, parameters) == replace(trained, **left)


# --- notebooks ----------------------------------------------------------------------------------


def test_parameters_cell_is_read(tmp_path, write_notebook):
    path = tmp_path / "n.ipynb"
    source = GIVEN + "a = 1  # with a reason\nb: float = -0.5\nc = ['x', None]\n# the end"
    write_notebook(path, TITLE, ("code", source, "other", "parameters"))
    given = {"profile": "laptop", "seed": 0, "output_dir": ""}
    found = notebooks.notebook_parameters(path)
    assert found == {**given, "a": 1, "b": -0.5, "c": ["x", None]}


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
        ([("code", "seed = 1", "parameters")], "the parameters cell lacks profile, output_dir"),
    ],
)
def test_parameters_cell_only_assigns_literals(tmp_path, write_notebook, cells, complaint):
    path = tmp_path / "n.ipynb"
    write_notebook(path, *cells)
    with pytest.raises(PipelineError, match=complaint):
        notebooks.notebook_parameters(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nbformat": 3}', "\x00"])
def test_what_is_no_notebook_is_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.ipynb"
    path.write_text(text)
    with pytest.raises(PipelineError, match=r"broken\.ipynb: not"):
        notebooks.notebook_parameters(path)


def test_magics_are_refused_by_cell(tmp_path, write_notebook):
    write_notebook(tmp_path / "n.ipynb", TITLE, ("code", "%matplotlib inline"))
    with pytest.raises(PipelineError, match=r"n\.ipynb: cell 2 is not Python"):
        notebooks.imported_modules(tmp_path / "n.ipynb")


def test_parameter_files_are_what_papermill_gets_and_keep_their_time(repository):
    first, second = execute.write_parameters(load("{}"))
    assert first == Path("build/tiny/parameters/first.yaml")
    assert first.read_text() == "profile: tiny\nseed: 7\nsize: 3\n"
    for path in (first, second):
        os.utime(path, (1, 1))
    execute.write_parameters(load("{first: {parameters: {size: 4}}}"))
    assert first.stat().st_mtime > 1
    assert second.stat().st_mtime == 1


# --- what a run depends on ------------------------------------------------------------------------

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
    assert set(map(str, notebooks.imported_modules(Path("n.ipynb")))) == expected


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
    paths = notebooks.imported_modules(Path("notebooks", f"{name}.ipynb"))
    found = {".".join(path.with_suffix("").parts) for path in paths}
    found |= {name.removesuffix(".__init__") for name in found}
    assert "corea.book.display" in found
    assert set(loaded[name]) <= found


def test_inputs_of_a_run(repository, write_notebook):
    made = Path("build/tiny/tables/second/t.csv")
    table = Path("corea/data/full_run/compare/table.csv")
    ledger = Path("corea/data/claims.toml")
    for path in map(Path, ("mine.csv", "deep.csv", made, table, ledger)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    values = {"a": "mine.csv", "b": "x\0", "c": "y" * 999, "d": {"e": ["deep.csv", 1]}}
    values["f"] = made.as_posix()  # the executed notebook that made it stands for it
    run = Run("first", Path("notebooks/first.ipynb"), values)
    own = [
        "constraints.txt", "corea/data/numbers.csv", "deep.csv", "mine.csv", "notebooks/first.ipynb",
    ]  # fmt: skip
    assert list(map(str, run.inputs())) == own
    # the published full run and the claims, for those who show them
    for source, shown in {
        "from corea.book import full_run": {table},
        "from corea.book import claims": {table, ledger},
        "import corea.sources": set(),
    }.items():
        write_notebook(run.notebook, TITLE, ("code", source))
        assert {table, ledger} & {*run.inputs()} == shown
        assert Path("corea/data/numbers.csv") in run.inputs()
