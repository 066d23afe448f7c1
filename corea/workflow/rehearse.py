"""Rehearse a profile: all its runs on two CPU cores, small, before somebody pays for a GPU.

A profile is derived from the one that is named and written to ``build/rehearse-<profile>/``, where
the pipeline reads it: the same entries, variants, seeds, notebooks and links between runs, with

1. one local model in place of all that are named: a folder or a GGUF file, or else the tiny one of
   :mod:`corea.workflow.stand_ins`; each keeps the family of the one it stands for, so that
   chapters that compare families find them;
2. transformers in place of vLLM where that is not installed, and our rollouts in place of vLLM's
   also where there is no GPU;
3. two processes on CPUs (``profiles/accelerate/cpu2.yaml``) in place of several on GPUs;
4. sizes cut to :data:`LEAST`, and of a training to two checkpoints of two batches of one question
   for each process or more, so that what must divide divides;
5. the kernel that the pipeline runs in, and nothing asked of a cluster.

The datasets are those that ``COREA_DATA`` names, and made-up ones for the others. What this leaves
out is told in the end (:func:`left_out`).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from corea.book.display import visible
from corea.tasks.decision_questions import VERDICTS
from corea.tasks.papers import DATASETS
from corea.tasks.suites import DATA
from corea.workflow import PipelineError
from corea.workflow.pipeline import build
from corea.workflow.plan import probe
from corea.workflow.profiles import (
    TABLES,
    File,
    Profile,
    Resources,
    Run,
    chapters,
    entry_runs,
    load_profile,
    profile_file,
    read_file,
    without_seed,
)
from corea.workflow.stand_ins import made_up, tiny_model
from corea.workflow.work import accelerated

PREFIX = "rehearse-"
TWO = "profiles/accelerate/cpu2.yaml"
LEAST: Mapping[str, int] = MappingProxyType(
    {
        "n_questions": 8,
        "n_samples": 2,
        "n_train": 16,
        "n_validation": 2,
        "n_answers": 2,
        "max_completion_tokens": 32,
        "batch_size": 16,  # a batch is padded to its longest question
        "n_resamples": 20,
        "hidden_sizes": 8,
        "probe_epochs": 2,
        "router_steps": 2,
        "n_fit": 4,
        "n_draws": 2,
        "n_splits": 2,
        "learning_steps": 20,
        "n_probabilities": 100,
        "n_warm_up": 16,
        "warm_up_tokens": 16,
        "n_held_out": 4,
    }
)
"""The most that a parameter, or each of a list, may be; 0 stands for all that there is."""
PRETRAINED = {"steps": 20, "batch": 16}
"""Of models of the world, which start from random weights."""


@dataclass(frozen=True)
class Means:
    """What a rehearsal is made with.

    Attributes:
        model: Folder or file of the model that stands in, as notebooks name it.
        vllm: Whether vLLM answers.
        gpu: Whether there is a GPU.
        letters: Whether messages are decided by letter, since a verdict is not one token.
    """

    model: str
    vllm: bool = False
    gpu: bool = False
    letters: bool = False


# --- the derived profile --------------------------------------------------------------------------


def derive(file: File, path: Path, means: Means) -> File:
    """The profile of a rehearsal, from the file of the one that is rehearsed.

    Args:
        file: What is rehearsed.
        path: Where it is, for complaints.
        means: What stands in.
    """
    entries = {}
    for key, entry in (chapters() | file.runs).items():
        changes: dict[str, dict[str, Any]] = {}
        for run in entry_runs(path, key, entry, file):
            given = dict(run.parameters)
            new = {k: v for k, v in reduced(run, means).items() if v != given[k]}
            variant = without_seed(run.name) if entry.seeds else run.name
            changes[variant.removeprefix(key).removeprefix("_")] = new
        update: dict[str, Any] = {"resources": Resources()}
        if entry.variants:
            update["variants"] = {v: given | changes[v] for v, given in entry.variants.items()}
        else:
            update["parameters"] = entry.parameters | changes[""]
        entries[key] = entry.model_copy(update=update)
    name = f"{PREFIX}{file.profile}"
    return File(
        profile=name,
        seed=file.seed,
        partial=file.partial,
        defaults=file.defaults,
        runs=entries,
    )


def write_derived(name: str, means: Means) -> Profile:
    """Write the profile of a rehearsal where the pipeline reads it, and read it."""
    path = profile_file(name)
    derived = derive(read_file(path, name), path, means)
    folder = Path("build", derived.profile)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(derived.model_dump(exclude_defaults=True), sort_keys=False)
    (folder / "profile.yaml").write_text(text, "utf-8")
    return load_profile(derived.profile)


def reduced(run: Run, means: Means) -> dict[str, Any]:
    """The parameters of a run, with stand-ins and the least sizes.

    Example:
        >>> run = Run("a", Path("notebooks/train.ipynb"), {"n_train": 4000, "engine": "vllm"})
        >>> reduced(run, Means("build/tiny"))
        {'n_train': 16, 'engine': 'transformers'}
    """
    p = {name: _least(value, LEAST.get(name)) for name, value in run.parameters.items()}
    if (named := p.get("model")) and not _of_a_run(named):
        p["model"] = means.model
        if family := re.match(r"[A-Za-z]+\d*", Path(named).name):
            p |= {"architecture": family[0].lower()} if p.get("architecture") == "" else {}
    if means.letters and "labels" in p:
        p["labels"] = "letters"
    if p.get("warm_up_steps"):
        p["warm_up_steps"] = min(p["warm_up_steps"], 2)
    if p.get("label_counts"):
        p["label_counts"] = [p["n_fit"] // 2, p["n_fit"]]
    for name in ("engine", "engines"):
        if name in p and not means.vllm:
            p[name] = _without_vllm(p[name])
    if "more" in p and not (means.vllm and means.gpu):
        kept = {k: v for k, v in p["more"].items() if k != "vllm_memory_share"}
        kept |= {"rollouts": "corea"} if kept.get("rollouts") == "vllm_colocate" else {}
        p["more"] = kept
    processes = 1
    if p.get("accelerate"):
        processes, shared = accelerated(p["accelerate"])
        if processes > 1 or shared != "none":
            p["accelerate"], processes = TWO, accelerated(TWO)[0]
    return p | _training(p, processes)


def _of_a_run(model: str) -> bool:
    """Whether a model is the one that another run made."""
    return bool(TABLES.fullmatch(model.replace("{tables}", "build/x/tables")))


def _least(value: Any, most: int | None) -> Any:
    if isinstance(value, list) and most is not None:
        return [*dict.fromkeys(_least(part, most) for part in value)]
    return min(value or most, most) if type(value) is int and most is not None else value


def _without_vllm(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_vllm(part) for part in value]
    return "transformers" if value == "vllm" else value


def _training(p: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """The least steps and batches with which a training does all that it does."""
    found: dict[str, Any] = {}
    if "router_batch" in p:
        found["router_batch"] = batch = min(p["router_batch"], 4 * processes)
        found |= _micro(p, batch, processes)
    if "group_size" in p and "batch" in p:
        each = p.get("steps_per_rollout", 1)
        found |= {"checkpoint_every": each, "steps": 2 * each}
        found["batch"] = batch = 2 * math.lcm(p["group_size"], processes)
        found |= _micro(p, batch, processes)
        found |= {"cosine_every": each} if p.get("cosine_every") else {}
    elif "steps" in p:
        found |= {name: min(p[name], most) for name, most in PRETRAINED.items()}
    return found


def _micro(p: Mapping[str, Any], batch: int, processes: int) -> dict[str, Any]:
    """``more`` with a micro-batch of which each process takes two a step."""
    if "micro_batch" not in p.get("more", {}) and processes == 1:
        return {}
    return {"more": {**p.get("more", {}), "micro_batch": batch // (2 * processes)}}


# --- what it leaves out ---------------------------------------------------------------------------


def left_out(profile: Profile, rehearsed: Profile, means: Means) -> list[str]:
    """What of a profile its rehearsal did not try, and why, a line each."""
    told: dict[str, list[str]] = {}
    for name, run in profile.runs.items():
        for reason in _replaced(run.parameters, rehearsed.runs[name].parameters, means):
            told.setdefault(reason, []).append(name)
    lines = [f"{reason} ({_listed(names)})" for reason, names in told.items()]
    if profile.kernel != rehearsed.kernel:
        lines.append(f"kernel {profile.kernel}: python3 ran instead, with what is installed here")
    lines.append("sizes, lengths, memory, speed: next to nothing was computed; no number counts")
    return lines


def _replaced(old: Mapping[str, Any], new: Mapping[str, Any], means: Means) -> Iterator[str]:
    lacking = "there is no GPU" if means.vllm else "vLLM is not installed here"
    if old.get("model") != new.get("model") and not _of_a_run(old["model"]):
        yield f"model {old['model']}: {new['model']} stood in for its weights and chat template"
    if old.get("labels") != new.get("labels"):
        yield f"labels {old['labels']}: letters, since the model lacks a token for each"
    if old.get("engine") != new.get("engine") or old.get("engines") != new.get("engines"):
        yield f"engine vllm: transformers answered, since {lacking}"
    if (rollouts := old.get("more", {}).get("rollouts")) != new.get("more", {}).get("rollouts"):
        yield f"rollouts {rollouts}: corea's own, since {lacking}"
    if old.get("accelerate") != new.get("accelerate"):
        n, shared = accelerated(old["accelerate"])
        what = {"none": "", "states": ", states shared", "all": ", weights shared"}[shared]
        yield f"{old['accelerate']}, {n} processes{what}: needs GPUs; {new['accelerate']} ran"


def _listed(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


# --- rehearsing -----------------------------------------------------------------------------------


def prepare(name: str, model: str = "") -> tuple[Profile, list[str]]:
    """Write the profile of a rehearsal, make what stands in; the profile, and what is left out.

    ``COREA_DATA`` is then a folder in which every dataset is found.

    Args:
        name: The profile to rehearse.
        model: Folder or GGUF file of a model; a tiny one is made if it is empty.
    """
    profile = load_profile(name)
    folder = Path("build", f"{PREFIX}{name}")
    found, gpus = probe(sys.executable, ["torch", "vllm"])
    stand_in = _stand_in(folder, model).as_posix()
    means = Means(stand_in, "vllm" in found, bool(gpus), not _has_verdicts(stand_in))
    rehearsed = write_derived(name, means)
    untried = left_out(profile, rehearsed, means)
    if absent := _gather_data(folder / "data"):
        untried.append(f"datasets {', '.join(absent)}: made-up questions, not in {DATA}")
    return rehearsed, untried


def _stand_in(folder: Path, model: str) -> Path:
    """The model under a name below build/, by which notebooks may call it: paths are private."""
    folder.joinpath("models").mkdir(parents=True, exist_ok=True)
    if not model:
        tiny = folder / "models" / "tiny"
        if not (tiny / "config.json").is_file():
            print(f"making {tiny.as_posix()}, a tiny model, in seconds", flush=True)
            tiny_model(tiny)
        return tiny
    target = Path(model).absolute()
    if not target.exists():
        raise PipelineError(f"model is {visible(model)!r}; expected a folder or a GGUF file")
    link = folder / "models" / target.name
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link


def _has_verdicts(model: str) -> bool:
    """Whether a model has a token for each verdict on a message."""
    from corea.decisions.tokens import OptionError, option_ids
    from corea.engines.loading import load_tokenizer

    try:
        option_ids(load_tokenizer(model), VERDICTS)
    except OptionError:
        return False
    return True


def _gather_data(folder: Path) -> list[str]:
    """Let ``COREA_DATA`` name a folder with all datasets; those that had to be made up."""
    given = os.environ.get(DATA, "")
    there = {name for name in DATASETS if given and Path(given, name).is_dir()}
    absent = [name for name in DATASETS if name not in there]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in there:
        folder.joinpath(name).symlink_to(Path(given, name).absolute())
    made_up(folder, absent)
    os.environ[DATA] = str(folder.absolute())
    return absent


def rehearse(name: str, model: str = "") -> Path:
    """Execute every run of a profile, small, and render its book; the page that opens it.

    Whatever comes of it, what it left out is printed. A PipelineError names each run that failed,
    its notebook and cell.
    """
    profile, untried = prepare(name, model)
    try:
        return build(profile)
    finally:
        print("Not rehearsed:", *untried, sep="\n  ", flush=True)
