"""The engine that answers, by name, as a profile names it.

==================  ================================================================
``transformers``    a model in this process: every signal; small models, few answers
``vllm``            a model in this process on vLLM: many answers of real models
``server``          a server that speaks OpenAI's API, at ``OPENAI_BASE_URL``
==================  ================================================================

What each decides for itself stands in :mod:`corea.engines.transformers_engine`,
:mod:`corea.engines.vllm_engine` and :mod:`corea.engines.server`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corea.engines.base import Engine, OpenEngine

ENGINES = ("transformers", "vllm", "server")
"""Their names."""


@contextmanager
def opened(
    name: str, model: str | Path, *, batch_size: int = 64, precision: str = ""
) -> Iterator[Engine]:
    """An engine (one of :data:`ENGINES`) for a model, which gives its memory back in the end.

    The model is a folder or hub name; for a server the name under which it has the model. A server
    that has the model of a folder here (``vllm serve FOLDER``) is sent its prompts as the ids that
    the folder's tokenizer makes of them, in its chat template if it has one. ``batch_size`` is how
    many completions it works on at once; ``precision`` is as for
    :func:`corea.engines.transformers_engine.open_model`, and a server's own.
    """
    if name not in ENGINES:
        raise ValueError(f"engine is {name!r}; expected one of {', '.join(ENGINES)}")
    if name != "server":
        with opened_here(name, model, batch_size=batch_size, precision=precision) as engine:
            yield engine
        return
    if precision:
        raise ValueError(f"precision is {precision!r}; expected none, for the server has its own")
    from corea.engines.loading import load_tokenizer
    from corea.engines.server import ServerEngine

    tokenizer = load_tokenizer(model) if Path(model).is_dir() else None
    server = ServerEngine(
        str(model),
        concurrency=batch_size,
        chat=tokenizer is None or bool(tokenizer.chat_template),
        tokenizer=tokenizer,
    )
    try:
        server.models()  # one that cannot be reached is told before anything is asked
        yield server
    finally:
        server.close()


@contextmanager
def opened_here(
    name: str, model: str | Path, *, batch_size: int = 64, precision: str = ""
) -> Iterator[OpenEngine]:
    """A model of this process, on transformers or vLLM, which gives its memory back."""
    if name == "transformers":
        import torch

        from corea.engines.transformers_engine import open_model

        engine = open_model(model, batch_size=batch_size, precision=precision)
        try:
            yield engine
        finally:
            del engine
            if torch.cuda.is_available():
                gc.collect()
                torch.cuda.empty_cache()
    elif name == "vllm":
        from corea.engines.loading import resolved_precision
        from corea.engines.vllm_engine import VLLMEngine

        running = VLLMEngine(model, batch_size, dtype=resolved_precision(precision) or "auto")
        try:
            yield running
        finally:
            running.close()
    else:
        raise ValueError(
            f"engine is {name!r}; a model that has to be looked into, as for decisions, needs "
            "transformers or vllm"
        )
