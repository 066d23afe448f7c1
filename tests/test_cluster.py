"""The book's runs as Slurm jobs: what profiles/slurm asks for, with commands in Slurm's place.

The real thing is ``tests/cluster/run.sh``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SLURM = ("--profile", "profiles/slurm", "--config", "profile=tiny")
TRAINS = ("code", "def train():\n    from corea import stages")
PROFILE = """\
profile: tiny
seed: 0
resources: {gpus: 2, cpus: 3, memory_gb: 8, minutes: 90}
runs:
  model: {resources: {minutes: 600}}
  part: {notebook: first}
  second: {parameters: {of: "{tables}/part"}, resources: {cpus: 2}}
"""
# sbatch notes what it was asked for and makes at once what the job would; the first training fails
COMMANDS = {
    "sbatch": """\
import json, os, pathlib, re, sys
(wrapped,) = [word for word in sys.argv if word.startswith("--wrap=")]
runs = re.findall(r"(?:train|read):run=(\\w+)", wrapped)
tried = pathlib.Path("tried")
state = "FAILED" if runs == ["model"] and not tried.exists() else "COMPLETED"
if state == "FAILED":
    tried.touch()
    runs = []
for run in runs:
    pathlib.Path("build/tiny/tables", run).mkdir(parents=True)
    pathlib.Path("build/tiny/tables", run, "manifest.json").touch()
    notebook = pathlib.Path("build/tiny/executed", run + ".ipynb")
    notebook.parent.mkdir(exist_ok=True)
    notebook.write_text("executed")
asked = [word for word in sys.argv[1:] if word != wrapped]
job = pathlib.Path(__file__).with_name(f"{os.getpid()}.job")
job.write_text(json.dumps({"runs": runs, "state": state, "asked": asked}))
print(job.stem)
""",
    "squeue": """\
import json, pathlib
for job in pathlib.Path(__file__).parent.glob("*.job"):
    print(job.stem, json.loads(job.read_text())["state"], sep="|")
""",
    "sinfo": "print('main*')",
    "scontrol": "print('MinJobAge = 300 sec')",
    "scancel": "",
    "sacct": "",  # of which the account is guessed
}
RENDER = """

def render(profile):
    profile.index.parent.mkdir(parents=True, exist_ok=True)
    profile.index.write_text("rendered")
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory, make_repository, write_notebook):
    """A repository in which a notebook trains and two read, one of them what the other wrote."""
    notebooks = {"model": [TRAINS], "first": [], "second": []}
    path = make_repository(tmp_path_factory.mktemp("cluster"), notebooks)
    parameters = ("code", 'profile = "tiny"\nseed = 0\noutput_dir = ""\nof = ""', "parameters")
    write_notebook(path / "notebooks/second.ipynb", ("markdown", "# What?"), parameters)
    model = path / "notebooks/model.ipynb"
    content = json.loads(model.read_text("utf-8"))
    content["metadata"]["corea"] = {"work": ["evaluate"]}
    model.write_text(json.dumps(content), "utf-8")
    shutil.copytree(ROOT / "profiles" / "slurm", path / "profiles" / "slurm")
    (path / "profiles/tiny.yaml").write_text(PROFILE)
    pages = path / "corea/workflow/render.py"
    pages.write_text(pages.read_text("utf-8") + RENDER, "utf-8")
    return path


def snakemake(repository, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--nocolor", *arguments],
        cwd=repository,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_dry_run_tells_resources_and_groups(repository):
    result = snakemake(repository, "-n", *SLURM)
    assert result.returncode == 0, result.stdout + result.stderr
    jobs = result.stdout.split("Reasons:")[0] + result.stderr
    alone, _, grouped = jobs.partition("Group job chapters")
    found = re.compile(
        r"rule (\w+):(?:\n +\w.*)*?\n +wildcards: run=(\w+)\n +priority: \d+(?:\n +threads: (\d+))?"
        r"\n +resources: tmpdir=\S+, gpu=(\d+), runtime=(\d+), (nodes=1, )?mem_mb=(\d+),"
    )
    assert "rule read" not in alone
    assert sorted(found.findall(alone + grouped)) == [
        ("read", "first", "", "0", "60", "", "4000"), ("read", "part", "", "0", "60", "", "4000"),
        ("train", "model", "3", "2", "600", "nodes=1, ", "8000"),
        ("train", "second", "2", "0", "60", "nodes=1, ", "4000"),
    ]  # fmt: skip


def test_jobs_are_submitted_as_asked_and_again_when_they_fail(repository, tmp_path):
    for name, program in COMMANDS.items():
        command = tmp_path / name
        command.write_text(f"#!{sys.executable}\n{program}")
        command.chmod(0o755)
    result = snakemake(
        repository, *SLURM, "--slurm-status-command", "squeue",
        "--slurm-init-seconds-before-status-checks", "1",
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert re.search("^localrule book:", said, re.M)
    assert (repository / "build/tiny/_build/html/index.html").read_text() == "rendered"

    jobs = [json.loads(path.read_text()) for path in tmp_path.glob("*.job")]
    assert sorted((job["state"], sorted(job["runs"])) for job in jobs) == [
        ("COMPLETED", ["first", "part"]), ("COMPLETED", ["model"]), ("COMPLETED", ["second"]),
        ("FAILED", []),
    ]  # fmt: skip
    expected = {
        "rule_train_wildcards_model": "-t 600 --mem 8000 --nodes=1 --cpus-per-task=3 --gpus=2",
        "rule_train_wildcards_second": "-t 60 --mem 4000 --nodes=1 --cpus-per-task=2",
        "rule_chapters_read": "-t 60 --mem 8000 --cpus-per-task=2",  # two side by side
    }
    for job in jobs:
        words = " ".join(job["asked"]) + " "
        (name,) = re.findall("--comment (\\S+)", words)
        asked = re.findall(r"(?:-t|--mem|--nodes|--cpus-per-task|--gpus)[ =]\d+(?= )", words)
        assert " ".join(sorted(asked, key=expected[name].find)) == expected[name], words
        assert "--requeue " in words
