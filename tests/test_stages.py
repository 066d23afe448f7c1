"""Stages are made once, and again when what decides them changes."""

import inspect
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from corea import stages
from corea.engines import loading
from corea.engines.base import Sampling
from corea.engines.evaluation import read_samples
from corea.engines.loading import ModelError
from corea.rlcc.settings import GRPOSettings
from corea.tasks import microworld
from corea.training.settings import SFTSettings

WORLD = microworld.World(names=12)
SETTINGS = SFTSettings(steps=2, batch=4, micro_batch=4, checkpoint_every=2)
SAMPLING = Sampling(0.6, 8, 1, 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def base(root):
    tiny = microworld.PRESETS["tiny"]
    return stages.pretrained(WORLD, tiny, "qwen2", SETTINGS, root=root) / "model"


@pytest.fixture(scope="module")
def questions():
    return microworld.questions(WORLD, "chains", "train", 4)


def test_pretraining_is_found_again_and_depends_on_its_seed(root, base):
    tiny = microworld.PRESETS["tiny"]
    again = stages.pretrained(WORLD, tiny, "qwen2", SETTINGS, root=root)
    assert again / "model" == base
    other = stages.pretrained(WORLD, tiny, "qwen2", replace(SETTINGS, seed=1), root=root)
    assert stages.identity(other / "model") != stages.identity(base)


def test_a_model_is_known_by_its_files_not_by_its_folder(base, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert stages.identity(copy) == stages.identity(base)
    (copy / "config.json").write_text("{}")
    assert stages.identity(copy) != stages.identity(base)


def test_a_model_of_the_hub_is_known_by_its_commit(base, tmp_path, monkeypatch):
    snapshot = tmp_path / "0123abcd"
    shutil.copytree(base, snapshot)
    asked = []

    def fetch(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert stages.identity("Qwen/Qwen2.5") == "Qwen/Qwen2.5@0123abcd"
    assert stages.identity("Qwen/Qwen2.5@main") == "Qwen/Qwen2.5@0123abcd"
    assert stages.count_weights("Qwen/Qwen2.5") == stages.count_weights(base)
    assert asked == [("Qwen/Qwen2.5", None), ("Qwen/Qwen2.5", "main"), ("Qwen/Qwen2.5", None)]


def test_reinforcement_starts_from_the_base_and_is_made_once(root, base, questions):
    settings = GRPOSettings(
        steps=1, batch=4, micro_batch=4, group_size=2, checkpoint_every=1, max_completion_tokens=6
    )
    held_out = microworld.questions(WORLD, "chains", "validation", 2)
    made = stages.reinforced(base, questions, held_out, settings, root=root)
    assert (made / "model" / "model.safetensors").is_file()
    assert stages.reinforced(base, questions, held_out, settings, root=root) == made
    rlvr = replace(settings, confidence_reward="none")
    assert stages.reinforced(base, questions, held_out, rlvr, root=root) != made


def code(made):
    request = json.loads((made / "request.json").read_text())
    return {path.removeprefix("corea/") for path in request["code"]}


def test_the_code_of_a_stage_is_all_that_it_runs(root, base, questions):
    settings = GRPOSettings(
        steps=1, batch=4, micro_batch=4, group_size=2, checkpoint_every=1, max_completion_tokens=6
    )
    trained = code(stages.reinforced(base, questions, questions[:2], settings, root=root))
    used = {"rlcc/trainer.py", "rlcc/rewards.py", "tasks/parsing.py", "tasks/verify.py"}
    assert used | {"tasks/_verify_worker.py", "engines/transformers_engine.py"} <= trained
    assert not {"book/figures.py", "decisions/trainer.py", "stages.py"} & trained
    answered = code(stages.evaluated(base, questions, SAMPLING, batch_size=4, root=root))
    assert "engines/transformers_engine.py" in answered
    assert not {"engines/server.py", "engines/vllm_engine.py", "rlcc/trainer.py"} & answered


def test_a_stage_is_made_again_when_it_does_something_else(tmp_path, monkeypatch):
    def keyed(body):
        monkeypatch.setattr(stages.inspect, "getsource", lambda _: f"def made(folder):\n{body}")
        return made(root=tmp_path).name

    @stages.stage
    def made(folder):
        pass

    first = keyed("    return 1")
    assert keyed('    """Says what."""\n    return 1  # one') == first
    assert keyed("    return 2") != first
    assert keyed("    from corea import records\n    return 1") != first


ASKED = []


@stages.stage
def asking(folder, size, *, shares=(0.5,), name="a"):
    ASKED.append((size, shares, name))


def test_what_a_stage_is_not_given_has_its_default(tmp_path):
    assert list(inspect.signature(asking).parameters) == ["size", "shares", "name"]
    first = asking(1, root=tmp_path)
    assert asking(size=1, shares=[0.5], name="a", root=tmp_path) == first
    assert asking(1, name="b", root=tmp_path) != first
    assert ASKED == [(1, (0.5,), "a"), (1, (0.5,), "b")]
    with pytest.raises(TypeError, match="missing a required argument: 'size'"):
        asking(root=tmp_path)


def test_an_evaluation_and_a_router_are_made_once(root, base, questions):
    made = stages.evaluated(base, questions, SAMPLING, batch_size=4, root=root)
    assert len(read_samples(made)) == len(questions)
    assert stages.evaluated(base, questions, SAMPLING, batch_size=4, root=root) == made
    assert stages.evaluated(base, questions[:3], SAMPLING, batch_size=4, root=root) != made
    router = stages.router(base, questions, made, SETTINGS, root=root)
    assert (router / "model" / "model.safetensors").is_file()
    assert stages.router(base, questions, made, SETTINGS, root=root) == router


def specified(made):
    return json.loads((made / "request.json").read_text())["spec"]


@pytest.mark.parametrize("fast", [True, False])
def test_what_is_fast_here_is_named_in_the_key(root, base, questions, monkeypatch, fast):
    monkeypatch.setattr(loading, "fast_bfloat16", lambda: fast)
    named = "bfloat16" if fast else "float32"
    asked = {"batch_size": 4, "root": root}
    made = stages.evaluated(base, questions, SAMPLING, precision="auto", **asked)
    assert specified(made)["precision"] == named
    assert stages.evaluated(base, questions, SAMPLING, precision=named, **asked) == made
    own = stages.evaluated(base, questions, SAMPLING, **asked)
    assert own != made
    assert "precision" not in specified(own)
    with pytest.raises(ValueError, match="precision is 'float16'"):
        stages.evaluated(base, questions, SAMPLING, precision="float16", **asked)
    trained = {"preset": microworld.PRESETS["tiny"], "architecture": "qwen2", "root": root}
    models = [
        stages.pretrained(WORLD, settings=replace(SETTINGS, precision=precision), **trained)
        for precision in ("auto", named)
    ]
    assert models[0] == models[1]
    assert specified(models[0])["settings"]["precision"] == named


def test_weights_are_counted_from_the_files(tmp_path, base):
    save_file({"a": np.zeros((2, 3)), "b": np.zeros(4)}, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert stages.count_weights(tmp_path) == 10
    tiny = microworld.PRESETS["tiny"]
    vocabulary = len(microworld.build_tokenizer(WORLD))
    config = microworld.model_config("qwen2", tiny.hidden_size, tiny.n_layers, 1, vocabulary)
    weights = microworld.new_model(config, 0).parameters()
    assert stages.count_weights(base) == sum(part.numel() for part in weights)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="found none; expected weights as \\*.safetensors"):
        stages.count_weights(tmp_path)


def test_the_corpus_of_a_size_has_its_names():
    large = microworld.PRESETS["large"]
    said = stages.corpus_world(WORLD, large)
    assert said == replace(WORLD, name_shares=large.name_shares)
    assert stages.corpus_world(WORLD, microworld.PRESETS["small"]) == WORLD


def test_decisions_are_drawn_several_times_only_where_reasoning_is_sampled(monkeypatch):
    asked = {}

    def decided(model, questions, sampling, *, reasoning, **_):
        asked[len(asked)] = (reasoning, sampling)
        return f"folder {len(asked)}"

    monkeypatch.setattr(stages, "decided", decided)
    drawn = Sampling(1.0, 8, 2, seed=3)
    found = stages.decided_formats("model", [], drawn, batch_size=4)
    assert found == {"sampled": "folder 1", "greedy": "folder 2", "none": "folder 3"}
    once = replace(drawn, temperature=0.0, n_samples=1)
    assert list(asked.values()) == [(True, drawn), (True, once), (False, once)]
