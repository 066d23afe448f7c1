"""The engine that answers, by name, as a profile names it.

==================  ================================================================
``transformers``    a model in this process: every signal; small models, few answers
``vllm``            a model in this process on vLLM: many answers of real models
``server``          a server that speaks OpenAI's API, at ``OPENAI_BASE_URL``
==================  ================================================================

What each decides for itself stands in :mod:`corea.generate`, :mod:`corea.vllm_engine` and
:mod:`corea.server`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corea.generate import Engine, TransformersEngine

ENGINES = ("transformers", "vllm", "server")
"""Their names."""


@contextmanager
def opened(name: str, model: str | Path, *, batch_size: int = 64) -> Iterator[Engine]:
    """An engine for a model, which gives its memory back in the end.

    Args:
        name: One of :data:`ENGINES`.
        model: Folder or hub name; for a server the name under which it has the model. A server
            that has the model of a folder here (``vllm serve FOLDER``) is sent its prompts as
            the ids that the folder's tokenizer makes of them, in its chat template if it has one.
        batch_size: Completions it works on at once.

    Yields:
        The engine.

    Raises:
        ValueError: If there is no such engine.
        ModelError: If the model cannot be read.
        ServerError: If the server cannot be reached.
    """
    if name == "transformers":
        with opened_model(model, batch_size=batch_size) as engine:
            yield engine
    elif name == "vllm":
        from corea.vllm_engine import VLLMEngine

        in_process = VLLMEngine(model, batch_size)
        try:
            yield in_process
        finally:
            in_process.close()
    elif name == "server":
        from corea.models import load_tokenizer
        from corea.server import ServerEngine

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
    else:
        raise ValueError(f"engine is {name!r}; expected one of {', '.join(ENGINES)}")


@contextmanager
def opened_model(model: str | Path, *, batch_size: int = 64) -> Iterator[TransformersEngine]:
    """A model of transformers, which gives a GPU's memory back in the end.

    Args:
        model: Folder or hub name.
        batch_size: Rows it works on at once.

    Yields:
        The engine.

    Raises:
        ModelError: If the model cannot be read.
    """
    import torch

    from corea.generate import open_model

    engine = open_model(model, batch_size=batch_size)
    try:
        yield engine
    finally:
        del engine
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
