"""Stages are made once, and again when what decides them changes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from corea import stages
from corea.engines.evaluation import read_samples
from corea.engines.generate import Sampling
from corea.engines.models import ModelError
from corea.rlcc.trainer import GRPOSettings, SFTSettings
from corea.tasks import microworld

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


def test_an_evaluation_and_a_router_are_made_once(root, base, questions):
    made = stages.evaluated(base, questions, SAMPLING, batch_size=4, root=root)
    assert len(read_samples(made)) == len(questions)
    assert stages.evaluated(base, questions, SAMPLING, batch_size=4, root=root) == made
    assert stages.evaluated(base, questions[:3], SAMPLING, batch_size=4, root=root) != made
    router = stages.router(base, questions, made, SETTINGS, root=root)
    assert (router / "model" / "model.safetensors").is_file()
    assert stages.router(base, questions, made, SETTINGS, root=root) == router


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
