"""A tiny chat model in a folder, and vLLM and transformers on it."""

import os

import pytest
import tiny

from corea.engines.loading import load_model
from corea.engines.transformers_engine import TransformersEngine
from corea.engines.vllm_engine import VLLMEngine

os.environ |= tiny.ENVIRONMENT


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The model's folder."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny.save(path)
    return path


@pytest.fixture(scope="session")
def loaded(folder):
    return load_model(folder, device="cpu")


@pytest.fixture(scope="session")
def plain(loaded):
    """What transformers makes of it."""
    return TransformersEngine(*loaded, batch_size=4)


@pytest.fixture(scope="session")
def chat(loaded):
    return TransformersEngine(*loaded, batch_size=4, chat=True)


@pytest.fixture(scope="session")
def vllm(folder):
    """VLLM in this process."""
    # a step takes as few tokens as it may: the prompts of a call do not fit into one
    few = {"enforce_eager": True, "max_num_batched_tokens": 256}
    engine = VLLMEngine(folder, batch_size=64, chat=False, sequences=16, more=few)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def address(folder, tmp_path_factory):
    """Of ``vllm serve`` on loopback."""
    with tiny.served(folder, tmp_path_factory.mktemp("served") / "log", 16) as address:
        yield f"{address}/v1"
