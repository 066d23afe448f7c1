"""Engines are opened by name, and closed."""

import pytest

from corea.engines.loading import ModelError
from corea.engines.opening import ENGINES, opened, opened_here
from corea.engines.server import ServerError


def test_an_engine_that_is_not_there_is_named():
    expected = f"engine is 'ollama'; expected one of {', '.join(ENGINES)}"
    with pytest.raises(ValueError, match=expected), opened("ollama", "m"):
        pass


def test_a_server_that_cannot_be_reached_is_told_before_anything_is_asked(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ServerError, match="cannot be reached"), opened("server", "m"):
        pass


def test_decisions_by_a_server_are_refused():
    with (
        pytest.raises(ValueError, match="engine is 'server'.*needs transformers or vllm"),
        opened_here("server", "m"),
    ):
        pass


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(ModelError, match="no such folder"), opened("transformers", "./no/such"):
        pass
