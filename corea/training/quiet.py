"""Libraries without progress bars, advice and reports to their makers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import transformers
from huggingface_hub import constants as hub


@contextmanager
def quiet() -> Iterator[None]:
    """Silence datasets, transformers and TRL, and restore what was set before."""
    bars = datasets.are_progress_bars_disabled()
    verbosity, telemetry = transformers.logging.get_verbosity(), hub.HF_HUB_DISABLE_TELEMETRY
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    hub.HF_HUB_DISABLE_TELEMETRY = True
    try:
        with warnings.catch_warnings():
            # TRL calls what transformers will rename, and a CPU has no pinned memory
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            warnings.filterwarnings("ignore", message=".*rollout_func.*")
            # peft asks the hub at every save whether the vocabulary is the base model's
            warnings.filterwarnings("ignore", message="Could not find a config file in .*")
            warnings.filterwarnings("ignore", message="Unable to fetch remote file .*")
            yield
    finally:
        hub.HF_HUB_DISABLE_TELEMETRY = telemetry
        transformers.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
