"""Builds that are killed, at random moments and in every kind of process, and built again."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

KILLS = 10
# what each process of a build is known by in its command line, the first before what it starts
KINDS = {
    "build": r"-m corea build",
    "snakemake": r"-m snakemake",
    "execute": r"-m corea execute",
    "kernel": r"ipykernel_launcher",
    "render": r"-m corea render",
}
MODEL = """\
import time
from pathlib import Path
from corea.store import keep_up, make
def build(folder):
    for step in range(4):  # goes on from what an earlier, killed call left
        if not (folder / f"{step}").exists():
            time.sleep(0.05)
            (folder / f"{step}.partial").write_text(str(seed))
            (folder / f"{step}.partial").replace(folder / f"{step}")
entry = make("steps", {"seed": seed}, build)
kept = keep_up("kept", {"seed": seed}, build)
steps = [path.read_text() for folder in (entry, kept) for path in sorted(folder.glob("[0-9]"))]
Path(output_dir, "steps.csv").write_text("step\\n" + "\\n".join(steps) + "\\n");"""
READ = """\
import time
from pathlib import Path
from corea.runs import run_file
time.sleep(0.2)
text = run_file("build/tiny/tables/model", "steps.csv").read_text()
Path(output_dir, "read.csv").write_text(text);"""
# pages as soon as there are results: a real book would take most of the time
RENDER = """

def render(profile):
    from corea.store import seal
    from corea.workflow.render import assemble
    assemble(profile)
    profile.index.parent.mkdir(parents=True, exist_ok=True)
    for run in profile.runs:
        table, = (profile.directory / "tables" / run).glob("*.csv")
        (profile.index.parent / f"{run}.html").write_text(table.read_text())
    profile.index.write_text("rendered")
    seal(profile.index.parents[1])
"""


@pytest.fixture
def repository(tmp_path, make_repository):
    path = make_repository(tmp_path, {"model": [("code", MODEL)], "reader": [("code", READ)]})
    profile = path / "profiles/tiny.yaml"
    profile.write_text(
        "profile: tiny\nseed: 0\nruns: {reader: {parameters: {of: '{tables}/model'}}}\n"
    )
    notebook = path / "notebooks/reader.ipynb"
    notebook.write_text(notebook.read_text().replace("size = 3", "of = ''"))
    pages = path / "corea/workflow/render.py"
    pages.write_text(pages.read_text() + RENDER)
    return path


def start(repository):
    log = (repository / "said").open("w")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "corea", "build", "tiny"],
            cwd=repository, stdout=log, stderr=log,
            env={**os.environ, "COREA_TEST": str(repository)},
        )  # fmt: skip


def processes(repository):
    """What was started by a build and is still there."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get("COREA_TEST") == str(repository):
                found[process] = " ".join(process.cmdline())
        except psutil.Error:  # it has ended, or is another user's
            continue
    return found


def wait_until(reached, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := reached()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)
    return value


STEPS = "step\n" + "0\n" * 8
EXPECTED = {
    **{f"store/{kind}/{step}": "0" for kind in ("steps", "kept") for step in range(4)},
    **{f"tiny/tables/{name}.csv": STEPS for name in ("model/steps", "reader/read")},
    **{f"tiny/_build/html/{name}.html": STEPS for name in ("model", "reader")},
    "tiny/_build/html/index.html": "rendered",
}


def results(repository):
    """What a finished build leaves, but for times and notes of who made it."""
    built = repository / "build"
    names = {p: p.relative_to(built).as_posix() for p in built.rglob("*") if p.is_file()}
    wanted = r"(tiny/tables/\w+/\w+\.csv|store/\w+(?:-\w{16})?/\d|tiny/_build/html/\w+\.html)"
    return {
        re.sub(r"-\w{16}/", "/", name): path.read_text()
        for path, name in names.items()
        if re.fullmatch(wanted, name)
    }


@pytest.mark.timeout(600)
def test_killed_builds_end_with_the_results_of_one_that_is_left_alone(repository):
    draw = random.Random(0)
    for number in range(KILLS):
        build = start(repository)
        kind = list(KINDS)[number % len(KINDS)]

        def there(kind=kind, build=build):
            fitting = [p for p, c in processes(repository).items() if re.search(KINDS[kind], c)]
            return fitting or build.poll() is not None

        victims = wait_until(there)
        time.sleep(draw.uniform(0, 0.5))
        for victim in victims if isinstance(victims, list) else ():
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        # what it had started ends by itself, or is killed at some moment too
        try:
            build.wait(timeout=draw.uniform(0, 1))
        except subprocess.TimeoutExpired:
            for process in processes(repository):
                try:
                    process.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
                except psutil.NoSuchProcess:
                    continue
        build.wait(timeout=60)
        wait_until(lambda: not processes(repository))
        index = repository / "build/tiny/_build/html/index.html"
        if index.exists():  # a page is there only with all that it shows
            assert results(repository) == EXPECTED
            shutil.rmtree(repository / "build")

    assert start(repository).wait(timeout=120) == 0, (repository / "said").read_text()
    assert results(repository) == EXPECTED
    left = [path.name for path in (repository / "build").rglob("*.partial")]
    assert left == []
    wait_until(lambda: not processes(repository))
    assert Path(repository, "said").read_text().splitlines()[-1].endswith("index.html")
