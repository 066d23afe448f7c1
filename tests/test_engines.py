"""Engines are opened by name, and closed."""

import pytest

from corea.engines.loading import PRECISIONS, ModelError, fast_bfloat16, resolved_precision
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


def test_a_server_has_its_own_precision():
    with (
        pytest.raises(ValueError, match="precision is 'auto'; expected none"),
        opened("server", "m", precision="auto"),
    ):
        pass


# --- precision --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "fast"),
    [
        ({}, False),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),  # Arm
    ],
)
def test_what_is_fast_is_bfloat16_on_a_cpu_that_has_instructions_for_it(monkeypatch, cpu, fast):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert fast_bfloat16() is fast
    assert resolved_precision("auto") == ("bfloat16" if fast else "float32")


@pytest.mark.parametrize("supported", [True, False])
def test_what_is_fast_on_a_gpu_is_what_the_gpu_says(monkeypatch, supported):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert resolved_precision("auto") == ("bfloat16" if supported else "float32")


def test_a_precision_that_is_named_is_itself():
    for name in set(PRECISIONS) - {"auto"}:
        assert resolved_precision(name) == name
    with pytest.raises(ValueError, match="precision is 'float16'; expected one of"):
        resolved_precision("float16")
