"""What depends on what. `make book` runs this through `python -m corea build`.

By hand:       snakemake --cores all --resources gpu=1 --config profile=laptop
On a cluster:  snakemake --profile profiles/slurm --config profile=gpu
"""

import sys
from pathlib import Path

from corea.store import MANIFEST
from corea.workflow.execute import check_kernel, remove_damaged, write_parameters
from corea.workflow.models import fetch_models
from corea.workflow.profiles import load_profile

profile = load_profile(config.get("profile", "laptop"))
planned = config.get("plan")  # `make plan` asks what is done, and changes nothing
if not planned:
    check_kernel(profile)
if workflow.is_main_process and not planned:
    fetch_models(profile)  # before the runs are asked which files they read
write_parameters(profile)  # a file changes only when its content does
if workflow.is_main_process and not planned:  # not in its jobs
    remove_damaged(profile)
executed = f"{profile.directory}/executed/{{run}}.ipynb"


def one_of(runs):
    return "|".join(runs) or "(?!)"  # a pattern that fits nothing


def asked(part, times=1):
    return lambda wildcards: times * getattr(profile.asked(wildcards.run), part)


rule book:
    localrule: True
    input:
        expand(executed, run=profile.runs),
        [path for path in Path("book").rglob("*") if path.is_file()],
        ["_config.yml", "_toc.yml", "constraints.txt", "corea/workflow/render.py"],
    output:
        profile.index,
    shell:
        "{sys.executable:q} -m corea render {profile.name}"


# what trains or generates, or waits for what only reads: a job of its own
rule train:
    wildcard_constraints:
        run=one_of(run for run in profile.runs if run not in profile.readers),
    input:
        lambda wildcards: profile.runs[wildcards.run].inputs(),
        lambda wildcards: [executed.format(run=run) for run in profile.runs[wildcards.run].needs],
        f"{profile.directory}/parameters/{{run}}.yaml",
    output:
        executed,
        f"{profile.directory}/tables/{{run}}/{MANIFEST}",
    priority: lambda wildcards: profile.priorities[wildcards.run]
    threads: asked("cpus")
    resources:
        gpu=asked("gpus"),
        mem_mb=asked("memory_gb", 1000),
        runtime=asked("minutes"),
        nodes=1,
    shell:
        "{sys.executable:q} -m corea execute {profile.name} {wildcards.run}"


# the rest, in minutes: profiles/slurm puts several into a job
use rule train as read with:
    wildcard_constraints:
        run=one_of(profile.readers),
    resources:  # without nodes, which a group would add up
        gpu=asked("gpus"),
        mem_mb=asked("memory_gb", 1000),
        runtime=asked("minutes"),
