"""What a profile will take, before anything starts.

``make plan PROFILE=gpu`` prints a row for each run in the order in which they would start, what is
to go, which models and datasets must be had, and what this machine lacks::

    python -m corea.workflow.plan gpu                 # or: corea plan gpu
    python -m corea.workflow.plan gpu --device a100   # as it would be there

Nothing is loaded, downloaded or written. What runs do is read by :mod:`corea.workflow.jobs`, what
that takes is estimated by :mod:`corea.workflow.compute`; both say what they assume. Besides:

1. A run is done if its executed notebook is there with these parameters, and newer than all that it
   reads. Snakemake also compares the content of small files and the code of its own rules, so it
   may make a little less or more.
2. What :mod:`corea.store` holds is not looked at: it decides how long a run takes that is to do,
   not whether it is.
3. Around its models a notebook takes as long as in the committed run of the profile ``laptop``
   (:func:`measured`), on a GPU a minute.
"""

from __future__ import annotations

import argparse
import graphlib
import heapq
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from corea.tasks.papers import DATASETS
from corea.tasks.suites import DATA
from corea.workflow import compute
from corea.workflow.compute import DEVICES, Device
from corea.workflow.jobs import (
    JOBS,
    KNOWN,
    READERS,
    STARTS,
    cached_config,
    find_model,
    run_jobs,
    trainer_settings,
)
from corea.workflow.pipeline import (
    PipelineError,
    Profile,
    Run,
    check_kernel,
    damage,
    load_profile,
    plain_lines,
    run_inputs,
)
from corea.workflow.publish import join_notes, read_notes

FOLDER = Path(__file__).parents[1] / "data" / "plan"
DONE = "done"


# --- the plan ---------------------------------------------------------------------------------


def prepare_plan(profile: Profile, device: str = "") -> pd.DataFrame:
    """What each run of a profile takes.

    Args:
        profile: The profile.
        device: Name in :data:`corea.workflow.compute.DEVICES`; :func:`default_device` when empty.

    Returns:
        One row a run, in the order in which they would start: ``run``, ``notebook``, ``what`` it
        does, ``model``, ``weights``, ``prompt_tokens``, ``sampled_tokens``, ``trained_tokens``,
        ``hours`` (of one device), ``memory`` (GiB of each device), ``devices`` at once, ``state``
        (:func:`states`), ``took`` (hours, where the executed notebook says so). Missing where it
        cannot be estimated.

    Raises:
        PipelineError: If a parameter cannot be; names the run.
    """
    device = device or default_device(profile)
    if device not in DEVICES:
        raise PipelineError(f"device is {device!r}; expected one of {', '.join(DEVICES)}")
    state = states(profile)
    return pd.DataFrame(
        [
            {
                **_row(profile, name, DEVICES[device]),
                "state": state[name],
                "took": _took(profile, name),
            }
            for name in start_order(profile)
        ]
    )


def default_device(profile: Profile) -> str:
    """``"h100"`` for a profile with a model of the hub, otherwise ``"cpu"``.

    Args:
        profile: The profile.

    Returns:
        The device's name.

    Raises:
        PipelineError: As :func:`corea.workflow.jobs.find_model`.
    """
    starts = [run.name for run in profile.runs.values() if run.notebook.stem in STARTS]
    real = any(find_model(profile, name).kind == "hub" for name in starts)
    return "h100" if real else "cpu"


def start_order(profile: Profile) -> list[str]:
    """Runs in the order in which they would start, were one made at a time.

    Args:
        profile: The profile.

    Returns:
        Names; each after those it needs, and of those that can start the one with the highest
        priority first.
    """
    sorter = graphlib.TopologicalSorter({run.name: run.needs for run in profile.runs.values()})
    sorter.prepare()
    waiting: list[tuple[int, str]] = []
    found = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heapq.heappush(waiting, (-profile.priorities[name], name))
        _, name = heapq.heappop(waiting)
        found.append(name)
        sorter.done(name)
    return found


def _row(profile: Profile, run: str, device: Device) -> dict[str, Any]:
    notebook = profile.runs[run].notebook.stem
    row: dict[str, Any] = {"run": run, "notebook": notebook, "model": "", "weights": math.nan}
    counts = ("prompt_tokens", "sampled_tokens", "trained_tokens")
    if notebook not in KNOWN:
        unknown = dict.fromkeys((*counts, "hours", "memory", "devices"), math.nan)
        return {**row, "what": "not estimated", **unknown}
    around = _around(notebook, device)
    if notebook in READERS:
        core = device.unit == "core-hours"
        taken = {"hours": around / 3600, "memory": core * device.base, "devices": float(core)}
        return {**row, "what": "reads tables", **dict.fromkeys(counts, 0.0), **taken}
    jobs = run_jobs(profile, run, device)
    models = {job.model.name: job.model for job in jobs}
    weights = [math.nan if m.weights is None else float(m.weights) for m in models.values()]
    return {
        **row,
        "what": " + ".join(dict.fromkeys(job.what for job in jobs)),
        "model": "; ".join(models),
        "weights": _largest(weights),
        **{name: sum(getattr(job, name) for job in jobs) for name in counts},
        "hours": (sum(job.seconds for job in jobs) + around) / 3600,
        "memory": _largest([job.gib for job in jobs]),
        "devices": float(max(job.devices for job in jobs)),
    }


def _largest(values: Sequence[float]) -> float:
    """The largest; NaN if one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)


_AROUND_MODELS = 12.0  # seconds: import torch, resample, draw; median of the run measured
_AROUND_ON_GPU = 60.0  # and load models of gigabytes


def _around(notebook: str, device: Device) -> float:
    """Seconds that a notebook takes besides what its models take."""
    if device.unit != "core-hours":
        return 0.0 if notebook in READERS else _AROUND_ON_GPU
    if notebook in READERS:
        table = measured()
        readers = table[table["notebook"].isin(READERS)]
        own = readers.loc[readers["notebook"] == notebook, "seconds"]
        return float(own.median() if len(own) else readers["seconds"].median())
    return _AROUND_MODELS


# --- what is there already --------------------------------------------------------------------


def states(profile: Profile) -> dict[str, str]:
    """Whether each run is done, and if not, why (point 1).

    Args:
        profile: The profile.

    Returns:
        Run to :data:`DONE`, or to a few words.
    """
    found: dict[str, str] = {}
    for name in start_order(profile):
        run = profile.runs[name]
        found[name] = _state(profile, run, found)
    return found


def _state(profile: Profile, run: Run, earlier: Mapping[str, str]) -> str:
    executed = _executed(profile, run.name)
    tables = profile.directory / "tables" / run.name
    if not executed.is_file():
        failed = profile.directory / "failed" / f"{run.name}.txt"
        return "to do: failed before" if failed.is_file() else "to do"
    if damage(profile, run.name):
        return "to do: damaged"
    noted = read_notes(profile, run.name).get("papermill", {}).get("parameters")
    if noted != {**run.parameters, "output_dir": tables.as_posix()}:
        return "to do: other parameters"
    if waiting := [need for need in run.needs if earlier[need] != DONE]:
        return f"to do: reads {waiting[0]}"
    made = executed.stat().st_mtime
    for path in [*(_executed(profile, need) for need in run.needs), *run_inputs(run)]:
        if path.stat().st_mtime > made:
            return f"to do: {path.as_posix()} is newer"
    return DONE


def _executed(profile: Profile, run: str) -> Path:
    return profile.directory / "executed" / f"{run}.ipynb"


def _took(profile: Profile, run: str) -> float:
    """Hours that an executed notebook took."""
    return float(read_notes(profile, run).get("papermill", {}).get("duration", math.nan)) / 3600


def measured() -> pd.DataFrame:
    """How long the notebooks of a whole run of the profile ``laptop`` took, on an empty store.

    Returns:
        One row a run: ``run``, ``notebook``, ``seconds``.
    """
    return pd.read_csv(FOLDER / "laptop.csv")


def facts() -> dict[str, str]:
    """Where :func:`measured` comes from.

    Returns:
        Field name to value, in reading order.
    """
    content: dict[str, str] = json.loads((FOLDER / "provenance.json").read_text("utf-8"))
    return content


def publish(profile: Profile) -> list[Path]:
    """Write how long the notebooks of a profile took into the package, for :func:`measured`.

    Args:
        profile: The profile, made as a whole on an empty store.

    Returns:
        The files.

    Raises:
        PipelineError: If a run was not executed, which is named, or the profile is another one.
    """
    if profile.name != "laptop":
        raise PipelineError(f"profile {profile.name}: only what laptop took is kept")
    notes = {name: read_notes(profile, name) for name in profile.runs}
    if lacking := [name for name, noted in notes.items() if "corea" not in noted]:
        raise PipelineError(f"nothing was published: not executed: {', '.join(lacking)}")
    table = pd.DataFrame(
        {
            "run": list(notes),
            "notebook": [profile.runs[name].notebook.stem for name in notes],
            "seconds": [round(noted["papermill"]["duration"], 1) for noted in notes.values()],
        }
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    table.to_csv(FOLDER / "laptop.csv", index=False)
    content = json.dumps(join_notes(notes), indent=1, ensure_ascii=False) + "\n"
    (FOLDER / "provenance.json").write_text(content, "utf-8")
    return [FOLDER / "laptop.csv", FOLDER / "provenance.json"]


def compare(plan: pd.DataFrame, seconds: pd.DataFrame) -> pd.DataFrame:
    """Estimates beside measurements.

    Args:
        plan: What :func:`prepare_plan` returned for the device of the measurements.
        seconds: ``run`` and ``seconds``, as :func:`measured` returns them.

    Returns:
        One row for each run that has both: ``run``, ``notebook``, ``estimated`` and ``measured``
        in seconds, and ``ratio`` of the first to the second.

    Example:
        >>> plan = pd.DataFrame({"run": ["a"], "notebook": ["train"], "hours": [0.5]})
        >>> compare(plan, pd.DataFrame({"run": ["a", "b"], "seconds": [900, 1]})).values.tolist()
        [['a', 'train', 1800.0, 900, 2.0]]
    """
    both = plan[["run", "notebook", "hours"]].merge(seconds[["run", "seconds"]], on="run")
    table = both.assign(hours=3600 * both["hours"])
    table = table.rename(columns={"hours": "estimated", "seconds": "measured"})
    return table.assign(ratio=table["estimated"] / table["measured"])


# --- what must be had -------------------------------------------------------------------------


def prepare_needs(profile: Profile, plan: pd.DataFrame) -> pd.DataFrame:
    """Models and datasets that come from outside, for the runs that are to do.

    Args:
        profile: The profile.
        plan: What :func:`prepare_plan` returned.

    Returns:
        One row each: ``kind`` (model or dataset), ``name``, ``runs`` that need it, and ``how`` to
        have it. Empty for the microworld alone, and where everything is done.

    Raises:
        PipelineError: As :func:`prepare_plan`.
    """
    runs: dict[tuple[str, str], list[str]] = {}
    for name in plan.loc[(plan["state"] != DONE) & plan["notebook"].isin(JOBS), "run"]:
        for job in run_jobs(profile, name, DEVICES["h100"]):
            keys = [("dataset", dataset) for dataset in job.datasets if dataset in DATASETS]
            if job.devices and job.model.kind == "hub":
                keys.insert(0, ("model", job.model.name))
            for key in keys:
                runs.setdefault(key, []).append(name)
    rows = [
        {
            "kind": kind,
            "name": name,
            "runs": len(set(names)),
            "how": _how_model(name) if kind == "model" else _how_dataset(name),
        }
        for (kind, name), names in sorted(runs.items(), key=lambda item: item[0][0], reverse=True)
    ]
    return pd.DataFrame(rows, columns=["kind", "name", "runs", "how"])


def _how_model(name: str) -> str:
    if cached_config(name):
        return "in the hub's cache here"
    if name.startswith(compute.GATED):
        return (
            f"gated: ask for access on https://huggingface.co/{name} and log in with "
            "`hf auth login`, or name a folder with the model"
        )
    return "from the hub, or name a folder with the model"


def _how_dataset(name: str) -> str:
    source = DATASETS[name]
    if folder := os.environ.get(DATA, ""):
        patterns = dict.fromkeys(
            pattern for part in source.parts.values() for pattern in part.files
        )
        if any(any(Path(folder, name).glob(pattern)) for pattern in patterns):
            return f"in the folder that {DATA} names"
        return f"missing in the folder that {DATA} names: {name}/{' or '.join(patterns)}"
    local = f"or set {DATA} to a folder with the original files"
    if source.gated:
        return (
            f"gated: ask for access on https://huggingface.co/datasets/{source.hub} and log in "
            f"with `hf auth login`, {local}"
        )
    return f"from the hub ({source.hub}), {local}"


@dataclass(frozen=True)
class Machine:
    """What a plan asks of a machine.

    Attributes:
        gpus: GiB of memory of each GPU that torch sees; None without torch.
        modules: Names of Python packages that are installed, of those asked for.
        addresses: Environment variables with the address of a server that are set.
    """

    gpus: tuple[float, ...] | None
    modules: frozenset[str]
    addresses: frozenset[str]


_MODULES = ("torch", "transformers", "trl", "peft", "vllm", "deepspeed")
_ADDRESSES = {
    "OPENAI_BASE_URL": "answers, such as http://localhost:8000/v1",
    "COREA_VLLM_SERVER": "rollouts in training",
}
_PROBE = """
import importlib.util, json, sys
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
gpus = None
if "torch" in found:
    from torch import cuda
    count = cuda.device_count() if cuda.is_available() else 0
    gpus = [cuda.get_device_properties(i).total_memory for i in range(count)]
print(json.dumps([found, gpus]))
"""


def this_machine(python: str = sys.executable) -> Machine:
    """The machine that this runs on.

    Args:
        python: The Python whose packages count: that of the notebooks' kernel.

    Returns:
        What it has.

    Raises:
        PipelineError: If that Python does not run or cannot import torch; says why.
    """
    command = [python, "-c", _PROBE, *_MODULES]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        modules, memory = json.loads(said.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        told = plain_lines(getattr(error, "stderr", None) or str(error))[-1]
        raise PipelineError(f"{python}: what is installed cannot be told ({told})") from error
    gpus = None if memory is None else tuple(size / compute.GIB for size in memory)
    return Machine(gpus, frozenset(modules), frozenset(filter(os.environ.get, _ADDRESSES)))


def lacking(profile: Profile, plan: pd.DataFrame, machine: Machine, device: str) -> list[str]:
    """What a machine lacks for the runs that are to do.

    Args:
        profile: The profile.
        plan: What :func:`prepare_plan` returned.
        machine: The machine.
        device: Name of the device of the plan.

    Returns:
        A sentence each; none if nothing is lacking.
    """
    rows = plan[(plan["state"] != DONE) & plan["notebook"].isin(JOBS)]
    if rows.empty:
        return []
    runs = [profile.runs[name] for name in rows["run"]]
    engines = {run.parameters.get("engine", "transformers") for run in runs}
    settings = [trainer_settings(run) for run in runs]
    wanted = {"torch": True, "transformers": True, "trl": True, "vllm": "vllm" in engines}
    wanted["vllm"] |= any(s.get("rollouts") == "vllm_colocate" for s in settings)
    wanted["peft"] = any(s.get("lora_rank") for s in settings)
    files = {s["accelerate"] for s in settings if s.get("accelerate")}
    wanted["deepspeed"] = any(
        "DEEPSPEED" in Path(file).read_text("utf-8") for file in files if Path(file).is_file()
    )
    found = [
        f"{name} is not installed"
        for name, needed in wanted.items()
        if needed and name not in machine.modules
    ]
    asked = {"OPENAI_BASE_URL": "server" in engines}
    asked["COREA_VLLM_SERVER"] = any(s.get("rollouts") == "vllm_server" for s in settings)
    found += [
        f"{name} is not set, the address of a server for {_ADDRESSES[name]}"
        for name, needed in asked.items()
        if needed and name not in machine.addresses
    ]
    if DEVICES[device].unit == "GPU-hours" and rows["devices"].gt(0).any():
        if not machine.gpus:
            found.append("no GPU that torch can use (CUDA)")
        elif len(machine.gpus) < rows["devices"].max():
            found.append(f"{len(machine.gpus)} GPUs; {rows['devices'].max():g} are asked for")
        if machine.gpus and min(machine.gpus) < rows["memory"].max():
            found.append(
                f"GPUs have {min(machine.gpus):.0f} GiB; {rows['memory'].max():.0f} are needed"
            )
    return found


# --- in words ---------------------------------------------------------------------------------


def lay_out(plan: pd.DataFrame) -> pd.DataFrame:
    """A plan as text, two significant digits.

    Args:
        plan: What :func:`prepare_plan` returned.

    Returns:
        The same rows, with a heading for each column; ``?`` where nothing can be estimated.
    """
    counts = ("weights", "prompt_tokens", "sampled_tokens", "trained_tokens")
    shown = {
        "run": plan["run"],
        "notebook": plan["notebook"],
        "what it does": plan["what"],
        "model": plan["model"],
        **{name.replace("_", " "): [shorten(value) for value in plan[name]] for name in counts},
        "time": [clock(hours) for hours in plan["hours"]],
        "GiB": [_digits(value) for value in plan["memory"]],
        "devices": [shorten(value) for value in plan["devices"]],
        "state": plan["state"],
    }
    text = pd.DataFrame(shown).astype("str")
    return text.mask(
        (plan["what"] == "reads tables") & pd.Series(True, index=plan.index), ""
    ).assign(**{name: text[name] for name in ("run", "notebook", "what it does", "time", "state")})


def clock(hours: float) -> str:
    """A time in two significant digits.

    Args:
        hours: The time; NaN is not known.

    Returns:
        It, in seconds, minutes or hours.

    Example:
        >>> [clock(hours) for hours in (0.001, 0.05, 12.34, math.nan)]
        ['3.6 s', '3 min', '12 h', '?']
    """
    for unit, size in (("h", 1.0), ("min", 60.0), ("s", 3600.0)):
        if hours * size >= 1:
            return f"{_digits(hours * size)} {unit}"
    return "?" if math.isnan(hours) else f"{_digits(hours * 3600)} s"


def shorten(value: float) -> str:
    """A large number in few digits.

    Args:
        value: The number, from 0; NaN is not known.

    Returns:
        It, in thousands, millions or billions.

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


def describe(profile: Profile, plan: pd.DataFrame, device: str = "") -> list[str]:
    """The totals of a plan, in sentences.

    Args:
        profile: The profile.
        plan: What :func:`prepare_plan` returned.
        device: The device it was asked for.

    Returns:
        The sentences.
    """
    hardware = DEVICES[device or default_device(profile)]
    left = plan[plan["state"] != DONE]
    unknown = left[left["hours"].isna()]
    factor = 2 if hardware.unit == "core-hours" else 3
    hours = float(left["hours"].sum())
    took = f"{_digits(hours)} {hardware.unit} of {hardware.name}"
    tokens = [shorten(left[f"{name}_tokens"].sum()) for name in ("sampled", "trained")]
    told = [
        f"{len(plan)} runs, of which {len(plan) - len(left)} are done.",
        f"To go: about {took}{f' ({clock(hours)})' if hours < 1 else ''}, within a factor of "
        f"{factor}; {tokens[0]} tokens to sample, {tokens[1]} to train on.",
    ]
    if len(unknown):
        told.append(f"Not estimated, so not in that: {', '.join(unknown['run'])}.")
    if left["what"].str.contains(" by a server").any():
        told.append("What a server computes is not in that.")
    if left["memory"].notna().any() and left["memory"].max() > 0:
        most = left.sort_values("memory").dropna(subset="memory").iloc[-1]
        told.append(
            f"Most memory: {_digits(most['memory'])} GiB ({most['run']}), of "
            f"{hardware.memory:g}; within a factor of 1.5."
        )
        over = left[left["memory"] > hardware.memory]
        if len(over):
            told.append(f"Does not fit into one of them: {', '.join(over['run'])}.")
    return told


def _columns(table: pd.DataFrame) -> str:
    """A table of texts as lines."""
    rows = [[str(name) for name in table], *table.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def write_plan(profile: Profile, device: str = "") -> str:
    """All that there is to say before a profile starts.

    Args:
        profile: The profile.
        device: Name in :data:`corea.workflow.compute.DEVICES`; :func:`default_device` when empty.

    Returns:
        Text of several lines.

    Raises:
        PipelineError: As :func:`prepare_plan`.
    """
    device = device or default_device(profile)
    plan = prepare_plan(profile, device)
    needs = prepare_needs(profile, plan)
    parts = [_columns(lay_out(plan))]
    parts.append("\n".join(describe(profile, plan, device)))
    if len(needs):
        rows = [f"  {row.kind} {row.name}: {row.how}" for row in needs.itertuples(index=False)]
        parts.append("\n".join(["Must be had:", *rows]))
    try:
        python, lacks = check_kernel(profile)[0], []
    except PipelineError as error:
        python, lacks = sys.executable, [str(error)]
    if lacks := [*lacks, *lacking(profile, plan, this_machine(python), device)]:
        parts.append("\n".join(["Missing on this machine:", *(f"  {text}" for text in lacks)]))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print a plan.

    Args:
        arguments: Words after the program's name; by default those of the process.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m corea.workflow.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile")
    parser.add_argument("--device", choices=DEVICES, default="")
    parser.add_argument(
        "--publish", action="store_true", help="keep how long its notebooks took in the package"
    )
    options = parser.parse_args(arguments)
    try:
        profile = load_profile(options.profile)
        if options.publish:
            print(*publish(profile), sep="\n")
        else:
            print(write_plan(profile, options.device))
    except PipelineError as error:
        print(error)
        return 1
    return 0


def console(arguments: Sequence[str] | None = None) -> int:
    """The command ``corea``, which has one word so far: ``corea plan PROFILE``.

    Args:
        arguments: Words after the program's name; by default those of the process.

    Returns:
        Exit status.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["plan"]:
        return main(words[1:])
    print("usage: corea plan PROFILE [--device DEVICE]")
    return 0 if words in (["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main())
