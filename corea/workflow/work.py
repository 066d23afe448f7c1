"""What a notebook declares of its work with models, and the settings of its trainings.

Its metadata say what it does, ``{"corea": {"work": ["reinforce", "evaluate"]}}``; a notebook that
only reads tables declares nothing. An item is a rule of :data:`corea.workflow.estimate.RULES`, or
a mapping with the key ``rule`` and any of

- ``when``: parameters, and the values with which the item counts
- ``unless``: parameters, and lists of values with any of which it does not
- ``of``: parameters that name the runs whose models it uses; or ``model``: the one that names its
  own
- ``dataset``: one of :data:`corea.workflow.estimate.TEXTS`, ``"answers"`` or ``"decisions"`` (all
  of the suite) or ``"trained"`` (what is trained on), where it is not the rule's own
- ``what``: how a plan names it
- settings, such as ``n_samples``: a value, or the name of the parameter that holds it. All others
  are the run's parameters by the same name, those in ``more`` included.

``seconds`` beside ``work`` are what the notebook takes on a CPU core besides its models, where that
is not about :attr:`corea.workflow.estimate.Device.around`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from corea.book.display import visible
from corea.decisions.settings import DecisionSettings
from corea.rlcc.settings import GRPOSettings
from corea.training.settings import (
    RolloutSettings,
    Settings,
    SFTSettings,
    TrainingError,
    accumulation,
    validation_batch,
)
from corea.workflow import PipelineError
from corea.workflow.notebooks import read_notebook

TRAININGS: Mapping[str, type[Settings]] = {
    "pretrain": SFTSettings,
    "supervise": SFTSettings,
    "reinforce": GRPOSettings,
    "reinforce_decisions": DecisionSettings,
    "warm_up": SFTSettings,
}
"""The rules that train, with the class of their settings."""


def declared(notebook: Path) -> dict[str, Any]:
    """What a notebook's metadata say: ``work``, and ``seconds`` where it has them."""
    metadata = read_notebook(notebook)["metadata"].get("corea", {})
    items = metadata.get("work", [])
    work = [{"rule": item} if isinstance(item, str) else item for item in items]
    return {**metadata, "work": work}


def items(notebook: Path, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The items of a notebook's work that count with some parameters.

    A KeyError names a parameter that the notebook lacks.
    """
    for item in declared(notebook)["work"]:
        wanted, refused = item.get("when", {}), item.get("unless", {})
        counts = all(parameters[key] == value for key, value in wanted.items())
        if counts and not any(parameters[key] in values for key, values in refused.items()):
            yield item


def flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A run's parameters with what is in ``more``, further fields of the trainer's settings."""
    return {**parameters, **parameters.get("more", {})}


def item_settings(item: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters and what the item says; of a training, every field of its settings.

    A ValueError or TypeError tells a setting that the training would refuse.
    """
    settings = flat(parameters) | _named(item, parameters)
    if item["rule"] in TRAININGS:
        made = training_settings(item, parameters)
        settings |= {setting.name: getattr(made, setting.name) for setting in fields(made)}
    return settings


def training_settings(item: Mapping[str, Any], parameters: Mapping[str, Any]) -> Settings:
    """The settings with which a notebook trains, as :func:`item_settings` says."""
    kind: Any = TRAININGS[item["rule"]]
    given = {**parameters, **_named(item, parameters)}
    # a setting that is empty is the default, as a precision may be
    values = {s.name: given[s.name] for s in fields(kind) if given.get(s.name, "") != ""}
    batch = values["batch"]
    values["micro_batch"] = math.gcd(batch, 8) if item["rule"] == "pretrain" else batch
    settings: Settings = kind(**values | parameters.get("more", {}))
    return settings


def _named(item: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """An item with parameters in place of their names."""
    return {
        name: parameters[value] if isinstance(value, str) and value in parameters else value
        for name, value in item.items()
    }


def complaints(notebook: Path, parameters: Mapping[str, Any]) -> Iterator[str]:
    """What the trainings of a run would refuse, before anything starts.

    That is a setting, or a batch or a validation that cannot be shared out among the processes
    that its accelerate file starts.
    """
    try:
        for item in items(notebook, parameters):
            if item["rule"] in TRAININGS:
                settings = training_settings(item, parameters)
                processes, _ = accelerated(parameters.get("accelerate", ""))
                accumulation(settings, processes)
                if isinstance(settings, RolloutSettings):
                    validation_batch(parameters["n_validation"], settings, processes)
    except KeyError as error:
        yield f"{notebook} has no parameter {error}, which its metadata or its training needs"
    except (TypeError, ValueError, TrainingError, PipelineError) as error:
        yield visible(error)


def accelerated(path: str) -> tuple[int, str]:
    """How many processes a configuration of accelerate starts, and what they share.

    Shared is ``"none"``, ``"states"`` (gradients and moments) or ``"all"`` (weights too). Without
    a configuration it is this process alone.
    """
    if not path:
        return 1, "none"
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
        processes = content["num_processes"]
        stage = (content.get("deepspeed_config") or {}).get("zero_stage", 0)
        stage = 3 if content.get("distributed_type") == "FSDP" else stage
        shared = ["none", "states", "states", "all"][stage]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {visible(error)}"
        raise PipelineError(f"{path}: not a configuration of accelerate ({reason})") from error
    if type(processes) is not int or processes < 1:
        raise PipelineError(f"{path}: num_processes is {processes!r}; expected at least 1")
    return processes, shared
