"""Rehearsals: the derived profile, what stands in, what is told, and one run to its end."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from corea.engines.opening import ENGINES
from corea.tasks.papers import DATASETS, load_decisions, load_questions
from corea.tasks.suites import DATA, PAPERS
from corea.workflow import PipelineError, execute, rehearse
from corea.workflow.profiles import TABLES, load_profile
from corea.workflow.rehearse import LEAST, Means, left_out, reduced, write_derived
from corea.workflow.stand_ins import made_up
from corea.workflow.work import accelerated

ROOT = Path(__file__).resolve().parent.parent
TINY = "build/tiny"


@pytest.fixture(scope="module", autouse=True)
def repository(tmp_path_factory):
    """The repository without what was made in it; the working directory."""
    folder = tmp_path_factory.mktemp("repository")
    for part in ("notebooks", "corea", "profiles", "_toc.yml", "constraints.txt"):
        folder.joinpath(part).symlink_to(ROOT / part)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv(DATA, raising=False)
        yield folder


def derived(name, means):
    """A profile and that of its rehearsal, as the pipeline reads it."""
    return load_profile(name), write_derived(name, means)


@pytest.mark.parametrize("name", ["gpu", "paper", "laptop", "smoke"])
def test_a_rehearsal_has_the_same_runs_and_links_and_every_size_is_small(name):
    profile, rehearsed = derived(name, Means(TINY))
    assert list(rehearsed.runs) == list(profile.runs)
    for old, new in zip(profile.runs.values(), rehearsed.runs.values(), strict=True):
        same = ("name", "notebook", "label", "entry", "needs")
        assert [getattr(old, f) for f in same] == [getattr(new, f) for f in same]
        p = new.parameters
        assert p.keys() - {"profile"} == old.parameters.keys() - {"profile"}
        assert p.get("model", TINY) == TINY or TABLES.fullmatch(p["model"])
        assert {p.get("engine"), *p.get("engines", [])} <= {None, "transformers"}
        assert p.get("more", {}).get("rollouts", "corea") == "corea"
        assert not p.get("accelerate") or accelerated(p["accelerate"])[0] <= 2
        assert all(p[size] <= most for size, most in LEAST.items() if type(p.get(size)) is int)
        assert p.get("n_questions") != 0
        assert p.get("steps", 0) <= 20
        assert p.get("group_size") == old.parameters.get("group_size")
        assert rehearsed.asked(new.name).gpus == 0
    assert rehearsed.kernel == "python3"
    # a second derivation changes nothing: all is as small as it gets
    again = [reduced(run, Means(TINY)) for run in rehearsed.runs.values()]
    assert again == [run.parameters for run in rehearsed.runs.values()]


def test_families_stay_apart_where_one_model_plays_several():
    _, rehearsed = derived("paper", Means(TINY))
    families = {
        name: run.parameters["architecture"]
        for name, run in rehearsed.runs.items()
        if run.notebook.stem == "base_model"
    }
    assert families == {
        "pretrain_small": "qwen2",
        "pretrain_large": "qwen2",
        "pretrain_tiny": "qwen2",
        "pretrain_llama": "llama",
    }


@pytest.mark.parametrize(
    ("means", "engines", "rollouts"),
    [
        (Means(TINY, vllm=True), {"transformers", "vllm"}, {"corea"}),
        (Means(TINY, vllm=True, gpu=True), {"transformers", "vllm"}, {"vllm_colocate"}),
        (Means(TINY, gpu=True), {"transformers"}, {"corea"}),
    ],
)
def test_vllm_is_kept_where_it_is_installed(means, engines, rollouts):
    profile, rehearsed = derived("gpu", means)
    runs = [run.parameters for run in rehearsed.runs.values()]
    assert {p["engine"] for p in runs if "engine" in p} == engines <= set(ENGINES)
    found = {p["more"]["rollouts"] for p in runs if "rollouts" in p.get("more", {})}
    assert found == rollouts
    told = "\n".join(left_out(profile, rehearsed, means))
    assert ("engine vllm" in told) == (not means.vllm)
    assert ("vllm_colocate" in told) == (rollouts == {"corea"})


@pytest.mark.parametrize("name", ["gpu", "paper"])
def test_all_that_is_left_out_is_told_with_the_runs_it_is_of(name):
    profile, rehearsed = derived(name, Means(TINY))
    told = left_out(profile, rehearsed, Means(TINY))
    text = Path(f"profiles/{name}.yaml").read_text("utf-8")
    notebooks = "".join(p.read_text("utf-8") for p in Path("notebooks").glob("*_base.ipynb"))
    models = set(re.findall(r"(?:Qwen|meta-llama)/[\w.-]+", text))
    assert models <= {line.split()[1].rstrip(":") for line in told if line.startswith("model ")}
    assert "Qwen/Qwen3-1.7B" in text + notebooks
    expected = [
        "engine vllm",
        "rollouts vllm_colocate",
        "model Qwen/Qwen3-1.7B",
        "kernel corea-gpu",
    ]
    expected += ["zero3.yaml, 8 processes, weights shared"] if name == "paper" else []
    expected += ["zero2.yaml, 4 processes, states shared"] if name == "paper" else []
    for words in expected:
        assert any(words in line for line in told)
    assert any("(pretrain_small)" in line for line in told)


def test_messages_are_decided_by_letter_where_a_verdict_is_not_one_token():
    profile, rehearsed = derived("gpu", Means(TINY, letters=True))
    labels = {run.parameters.get("labels") for run in rehearsed.runs.values()}
    assert labels == {None, "letters"}
    told = left_out(profile, rehearsed, Means(TINY, letters=True))
    assert any(line.startswith("labels verdicts: letters") for line in told)


def test_a_profile_that_nobody_rehearsed_is_not_there():
    with pytest.raises(PipelineError, match=r"no profile 'rehearse-none' in profiles/ here"):
        load_profile("rehearse-none")
    with pytest.raises(PipelineError, match=r"model is 'no/such'; expected a folder or a GGUF"):
        rehearse.prepare("gpu", "no/such")


@pytest.mark.parametrize("dataset", DATASETS)
def test_made_up_files_have_questions_for_every_part(tmp_path, dataset):
    made_up(tmp_path, [dataset])
    for part, place in DATASETS[dataset].parts.items():
        moderation = dataset in PAPERS.tasks["messages"]
        load = load_decisions if moderation else load_questions
        questions = load(dataset, part, folder=tmp_path)
        wanted = place.stretch[1] - place.stretch[0] if place.stretch else 40
        assert len({q.text for q in questions}) == len(questions) == wanted
        assert len({q.gold for q in questions}) > 1  # neither always right nor always wrong


def test_a_dataset_that_is_unknown_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dataset is 'riddles'; expected one of"):
        made_up(tmp_path, ["riddles"])


def test_datasets_at_hand_are_used_and_the_others_made_up(tmp_path, monkeypatch):
    made_up(tmp_path / "own", ["gsm8k"])
    monkeypatch.setenv(DATA, str(tmp_path / "own"))
    absent = rehearse._gather_data(tmp_path / "all")
    assert absent == [name for name in DATASETS if name != "gsm8k"]
    assert (tmp_path / "all" / "gsm8k").samefile(tmp_path / "own" / "gsm8k")
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(DATASETS)


def test_a_run_of_the_gpu_profile_is_rehearsed_to_its_end(monkeypatch):
    pytest.importorskip("transformers", reason="a model needs the extra `train`")
    monkeypatch.setenv(DATA, "")
    profile, untried = rehearse.prepare("gpu")
    assert any("made-up questions" in line for line in untried)
    execute.execute(profile, profile.runs["pretrain_small"])
    executed = profile.directory / "executed" / "pretrain_small.ipynb"
    shown = json.dumps(json.loads(executed.read_text("utf-8"))["cells"])
    assert f"build/{profile.name}/models/tiny" in shown
    records = pd.read_parquet(profile.directory / "tables" / "pretrain_small" / "records.parquet")
    assert set(records["dataset"]) == set(PAPERS.datasets)
    assert records["confidence"].notna().mean() > 0.2  # the stand-in can be read
    assert len(records) == LEAST["n_questions"] * LEAST["n_samples"] * len(PAPERS.datasets)
