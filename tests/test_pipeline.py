"""Executing, rendering and building. tests/test_profiles.py tests what decides what is executed."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import papermill
import psutil
import pytest

from corea.cli import main
from corea.workflow import PipelineError
from corea.workflow.execute import damage, execute, private_text, remove_damaged
from corea.workflow.pipeline import build
from corea.workflow.profiles import Profile, Run, load_profile
from corea.workflow.render import assemble, render

TITLE = ("markdown", "# What is this?")
GIVEN = 'profile = "tiny"\nseed = 0\noutput_dir = ""\n'


@pytest.fixture
def repository(tmp_path, monkeypatch, make_repository):
    """A repository with the notebooks ``first`` and ``second``; the working directory."""
    monkeypatch.chdir(make_repository(tmp_path, {"first": [("code", "size")], "second": []}))
    return tmp_path


# --- executing --------------------------------------------------------------------------------


def tiny_run(cells, write_notebook):
    """The run ``first`` with these cells after the title and the parameters."""
    path = Path("notebooks/first.ipynb")
    write_notebook(path, TITLE, ("code", GIVEN + "size = 0", "parameters"), *cells)
    profile = load_profile("tiny")
    return profile, profile.runs["first"]


def outputs(path):
    cells = json.loads(Path(path).read_text("utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_executed_notebook_tables_log_and_progress(repository, write_notebook, monkeypatch, capsys):
    write = "from pathlib import Path\nPath(output_dir, 't.csv').write_text(f'{size},{seed}');"
    where = "import os\nprint(os.path.samefile(os.getcwd(), os.environ['EXPECTED']))"
    monkeypatch.setenv("EXPECTED", str(repository))
    cells = [("code", write), ("markdown", "Read."), ("code", where)]
    execute(*tiny_run(cells, write_notebook))
    executed = Path("build/tiny/executed/first.ipynb")
    assert [output["text"] for output in outputs(executed)] == [["True\n"]]
    assert str(repository) not in executed.read_text()
    assert Path("build/tiny/tables/first/t.csv").read_text() == "3,0"
    assert capsys.readouterr().out.splitlines() == [f"first: cell {n} of 5" for n in (2, 3, 5)]
    assert "Executing Cell 3" in Path("build/tiny/logs/first.log").read_text()
    for state in ("failed", "running"):
        assert not list(Path("build/tiny", state).iterdir())


def test_lines_about_progress_are_told_and_not_kept(repository, write_notebook, capsys):
    first = "progress: 1 of 2 \x1b[31mred"
    lines = "\n".join([first, "kept: progress: 1", "progress:no", "progress: 2 of 2"])
    execute(*tiny_run([("code", f"print({t!r})") for t in (lines, first)], write_notebook))
    executed = Path("build/tiny/executed/first.ipynb")
    assert [output["text"] for output in outputs(executed)] == ["kept: progress: 1\nprogress:no\n"]
    told = [line for line in capsys.readouterr().out.splitlines() if " cell " not in line]
    assert told == ["first: 1 of 2 red", "first: 2 of 2", "first: 1 of 2 red"]
    noted = json.loads(executed.read_text("utf-8"))["metadata"]["corea"]
    assert (noted["profile"], noted["seed"]) == ("tiny", "0")
    assert {"commit", "date", "python", "numpy", "torch"} <= set(noted)


@pytest.mark.parametrize(("cpus", "variable", "given"), [(1, None, 1), (3, None, 3), (3, "2", 2)])
def test_notebook_gets_as_many_threads_as_its_run_asks_for_unless_told_otherwise(
    repository, write_notebook, monkeypatch, cpus, variable, given
):
    def fake(*_, **__):
        raise RuntimeError(os.environ["OMP_NUM_THREADS"])

    monkeypatch.setattr(papermill, "execute_notebook", fake)
    text = Path("profiles/tiny.yaml").read_text("utf-8")
    asked = text.replace("first: {", f"first: {{resources: {{cpus: {cpus}}}, ")
    Path("profiles/tiny.yaml").write_text(asked, "utf-8")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    with pytest.raises(PipelineError, match=rf"did not start: RuntimeError: {given}\n"):
        execute(*tiny_run([], write_notebook))
    assert os.environ.get("OMP_NUM_THREADS") == variable


@pytest.mark.parametrize(
    ("trains", "variable", "given"),
    [(True, None, "500000000"), (True, "7", "7"), (False, None, None)],
)
def test_a_run_that_trains_keeps_its_memory_unless_told_otherwise(
    repository, write_notebook, monkeypatch, trains, variable, given
):
    def fake(*_, **__):
        raise RuntimeError(os.environ.get("MALLOC_TOP_PAD_"))

    monkeypatch.setattr(papermill, "execute_notebook", fake)
    monkeypatch.setattr(Run, "trains", trains)
    monkeypatch.delenv("MALLOC_TOP_PAD_", raising=False)
    if variable:
        monkeypatch.setenv("MALLOC_TOP_PAD_", variable)
    with pytest.raises(PipelineError, match=rf"did not start: RuntimeError: {given}\n"):
        execute(*tiny_run([], write_notebook))
    assert os.environ.get("MALLOC_TOP_PAD_") == variable


def test_a_run_is_executed_by_one_process_at_a_time(repository, write_notebook):
    tiny_run([], write_notebook)
    lock = Path("build/tiny/locks/first")
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "corea", "execute", "tiny", "first"]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert second.stdout.readline() == "first: waiting for another process that executes it\n"
        time.sleep(0.5)
        assert not Path("build/tiny/executed").exists()
    second.communicate()
    assert second.returncode == 0
    assert Path("build/tiny/executed/first.ipynb").exists()


# --- kernels ------------------------------------------------------------------------------------


@pytest.fixture
def kernel(repository, tmp_path_factory, monkeypatch):
    """Function that makes the profile name the kernel ``corea-gpu`` and installs it, or not."""
    text = Path("profiles/tiny.yaml").read_text("utf-8")
    Path("profiles/tiny.yaml").write_text("kernel: corea-gpu\n" + text, "utf-8")
    folder = tmp_path_factory.mktemp("jupyter")
    monkeypatch.setenv("JUPYTER_PATH", str(folder))

    def install(python):
        spec = folder / "kernels" / "corea-gpu"
        spec.mkdir(parents=True)
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        content = {"argv": argv, "display_name": "COREA (GPU)", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(content | {"env": {"WHERE": "on a GPU"}}))

    return install


def test_notebook_runs_in_the_kernel_that_the_profile_names(
    repository, kernel, write_notebook, tmp_path
):
    # as another environment is: its Python sees packages of other versions
    package = tmp_path / "other" / "relplot-9.9.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: relplot\nVersion: 9.9\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{package.parent}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    kernel(python)
    execute(*tiny_run([("code", "import os\nos.environ['WHERE']")], write_notebook))
    notebook = json.loads(Path("build/tiny/executed/first.ipynb").read_text("utf-8"))
    assert notebook["cells"][-1]["outputs"][0]["data"]["text/plain"] == ["'on a GPU'"]
    noted = notebook["metadata"]["corea"]
    assert noted["relplot"] == "9.9"
    assert (noted["profile"], noted["seed"]) == ("tiny", "0")


def test_kernel_that_cannot_import_corea_is_reported(repository, kernel, write_notebook):
    kernel(shutil.which("false"))
    with pytest.raises(
        PipelineError, match=r"first: kernel corea-gpu: \S+/false is no Python that"
    ):
        execute(*tiny_run([], write_notebook))
    assert "is no Python that" in Path("build/tiny/failed/first.txt").read_text()


def test_kernel_that_is_not_there_is_reported_before_anything_runs(repository, kernel, pipeline):
    complaint = (
        r"profiles/tiny\.yaml: there is no Jupyter kernel 'corea-gpu' here; there are: .*python3.*"
        r"python -m ipykernel install --user --name corea-gpu"
    )
    assert re.search(complaint, pipeline(repository, "build", "tiny").stdout)
    assert not Path("build").exists()
    by_hand = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "profile=tiny"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert by_hand.returncode == 1
    assert re.search(complaint, by_hand.stderr)
    assert not Path("build").exists()


HOSTILE = "\\x1b[31mred\\x1b[0m\\x07 <script>alert(1)</script>\\r\\nExecuting Cell 9-----"


def test_failure_names_the_cell_and_keeps_what_there_is(repository, write_notebook):
    cells = [("code", "print('kept')"), ("code", f"raise KeyError('{HOSTILE}')"), ("code", "1")]
    with pytest.raises(PipelineError) as caught:
        execute(*tiny_run(cells, write_notebook))
    reason, kept, log = str(caught.value).splitlines()
    assert reason.startswith(
        r"first: notebooks/first.ipynb, cell 4 of 5 (In [4]): KeyError: '\x1b[31mred"
    )
    assert kept == "  partial notebook: build/tiny/failed/first.ipynb"
    assert log == "  log: build/tiny/logs/first.log"
    partial = outputs("build/tiny/failed/first.ipynb")
    assert partial[0]["text"] == ["kept\n"]
    assert partial[1]["ename"] == "KeyError"
    assert not Path("build/tiny/executed/first.ipynb").exists()
    assert Path("build/tiny/failed/first.txt").read_text() == reason + "\n"


def test_hostile_error_text_is_shown_as_text(repository, write_notebook):
    cells = [("code", f"print('{HOSTILE}')\nraise ValueError('{HOSTILE}')")]
    with pytest.raises(PipelineError) as caught:
        execute(*tiny_run(cells, write_notebook))
    assert "cell 3 of 3 (In [3]): ValueError: red␇ <script>alert(1)</script>␍␊Exec" in str(
        caught.value
    )
    for told in (str(caught.value), Path("build/tiny/logs/first.log").read_text("utf-8")):
        assert not set(re.findall(r"[\x00-\x1f\x7f]", told)) - {"\n"}


def test_dead_kernel_is_reported_as_such(repository, write_notebook):
    cells = [("code", "import os\nprint('Executing Cell 9---')\nos.kill(os.getpid(), 9)")]
    with pytest.raises(PipelineError, match=r"cell 3 of 3: the kernel died"):
        execute(*tiny_run(cells, write_notebook))
    assert Path("build/tiny/failed/first.ipynb").exists()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import warnings\nwarnings.warn('careful')", "cell 3 wrote to standard error: .*careful"),
        ("import os\nos.getcwd()", "'/.*' in cell 3"),
    ],
)
def test_what_a_book_must_not_show_fails_the_run(repository, write_notebook, source, complaint):
    with pytest.raises(PipelineError, match="ran, but is not fit for a book: " + complaint):
        execute(*tiny_run([("code", source)], write_notebook))
    assert Path("build/tiny/failed/first.ipynb").exists()
    assert not Path("build/tiny/executed/first.ipynb").exists()


@pytest.mark.parametrize("failures", [1, 2])
def test_kernel_that_did_not_start_is_started_once_more(
    repository, write_notebook, capsys, monkeypatch, failures
):
    tries, real = [], papermill.execute_notebook

    def fake(*arguments, **options):
        tries.append(1)
        if len(tries) <= failures:
            raise RuntimeError("zmq: Address already in use")
        return real(*arguments, **options)

    monkeypatch.setattr(papermill, "execute_notebook", fake)
    run = tiny_run([], write_notebook)
    if failures == 1:
        execute(*run)
    else:
        complaint = (
            r"first: notebooks/first\.ipynb did not start: RuntimeError: zmq: Address already"
        )
        with pytest.raises(PipelineError, match=complaint):
            execute(*run)
    assert "the kernel did not start; trying once more" in capsys.readouterr().out


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_keeps_what_there_is(repository, write_notebook, number):
    slow = "import os, time\nfrom pathlib import Path\nPath('kernel').write_text(f'{os.getpid()}.')"
    tiny_run([("code", "print('kept')"), ("code", slow + "\ntime.sleep(60)")], write_notebook)
    process = subprocess.Popen(
        [sys.executable, "-m", "corea", "execute", "tiny", "first"],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    kernel = Path("kernel")
    while not kernel.exists() or not kernel.read_text().endswith("."):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, number)
    killed = number == signal.SIGKILL
    assert process.wait(timeout=30) == (-number if killed else 128 + number)
    left = Path("build/tiny/running" if killed else "build/tiny/failed", "first.ipynb")
    assert outputs(left)[0]["text"] == ["kept\n"]
    reason = "first: its process was killed (out of memory?)" if killed else "interrupted"
    assert Path("build/tiny/failed/first.txt").read_text() == reason + "\n"
    number = int(kernel.read_text().rstrip("."))
    while psutil.pid_exists(number):  # it sees within a second that nobody waits for it
        time.sleep(0.05)


# --- what must not be in a book ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home/ada/work", ["/home/ada"]),
        ("C:\\Users\\ada", ["C:\\Users\\ada"]),
        ("ada@node-7", ["ada@node"]),
        ("run on node-7.", ["node-7"]),
        ("nodes-7, anode-7, node-77", []),
        ("accuracy and/or cost; https://host/home/page; </tmp/x>", []),
        ("adamant ada", []),
        ("data:image/svg+xml;base64,AAAA/tmp/node-7+home/", []),
    ],
)
def test_private_text(tmp_path, monkeypatch, write_notebook, text, found):
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    write_notebook(tmp_path / "n.ipynb", TITLE, ("code", f"print({text!r})"))
    content = json.loads((tmp_path / "n.ipynb").read_text())
    content["cells"][1]["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": ["first\n", text]}
    ]
    content["cells"][1]["source"] = ""
    assert private_text(content) == [f"{name!r} in cell 2" for name in found]


# --- the whole --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory, make_repository, pipeline):
    """A repository whose book is built; tests undo what they change."""
    path = tmp_path_factory.mktemp("built")
    source = "from corea.book import display\ndisplay.reading('It is {size}.', size=size)"
    first = [("code", source)]
    make_repository(path, {"first": first, "second": []})
    result = pipeline(path, "build", "tiny")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "build/tiny/_build/html/index.html"
    return path


def to_do(repository):
    """Outputs that the next build would make again."""
    result = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--nolock", "--config", "profile=tiny"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return {Path(m).stem for m in re.findall(r"output: ([^,\n]+)", result.stdout + result.stderr)}


@pytest.mark.parametrize(
    ("file", "made_again"),
    [
        (None, set()),
        ("corea/book/display.py", {"first", "index"}),
        ("corea/metrics/cascade.py", set()),
        ("corea/data/numbers.csv", {"first", "second", "index"}),
        ("notebooks/second.ipynb", {"second", "index"}),
        ("profiles/tiny.yaml", {"first", "index"}),
        ("constraints.txt", {"first", "second", "index"}),
        ("book/intro.md", {"index"}),
        ("_config.yml", {"index"}),
    ],
)
def test_only_what_a_change_touches_is_made_again(built, file, made_again):
    if file is None:
        assert to_do(built) == made_again
        return
    path = built / file
    before = path.read_text("utf-8")
    if file == "profiles/tiny.yaml":
        path.write_text(before.replace("size: 3", "size: 4", 1), "utf-8")
    else:
        path.write_text(before + "\n", "utf-8")
    try:
        assert to_do(built) == made_again
    finally:
        path.write_text(before, "utf-8")


def test_all_failures_are_named_and_only_they_are_redone(built, pipeline, write_notebook):
    paths = [built / "notebooks" / f"{name}.ipynb" for name in ("first", "second")]
    good = [path.read_text() for path in paths]
    parameters = ("code", GIVEN + "size = 0", "parameters")
    for path in paths:
        write_notebook(path, TITLE, parameters, ("code", "1 / 0"))
    result = pipeline(built, "build", "tiny")
    assert result.returncode == 1
    *_, head, first, second, log = result.stdout.splitlines()
    assert head == "profile tiny failed:"
    assert "notebooks/first.ipynb, cell 3 of 3 (In [3]): ZeroDivisionError" in first
    assert "notebooks/second.ipynb, cell 3 of 3 (In [3]): ZeroDivisionError" in second
    assert log.endswith("build/tiny/logs/snakemake.log")
    assert not (built / "build/tiny/_build").exists()  # no page shows what failed

    assert to_do(built) == {"first", "second", "index"}  # and nothing is forgotten

    paths[0].write_text(good[0])
    result = pipeline(built, "build", "tiny")
    assert result.returncode == 1
    assert "first: cell 3 of 3" in result.stdout
    assert "first.ipynb, cell" not in result.stdout

    paths[1].write_text(good[1])
    result = pipeline(built, "build", "tiny")
    assert result.returncode == 0, result.stdout
    assert "first: cell" not in result.stdout
    assert "second: cell 2 of 2" in result.stdout
    assert not list((built / "build/tiny/failed").iterdir())


def test_warning_of_a_page_fails_the_build_and_is_told(built, pipeline):
    page = built / "book" / "intro.md"
    before = page.read_text()
    page.write_text(before + "\n{doc}`nowhere`\n")
    try:
        result = pipeline(built, "build", "tiny")
        assert result.returncode == 1
        assert "book/intro.md:5: WARNING: unknown document: 'nowhere'" in result.stdout
        assert not (built / "build/tiny/_build").exists()
    finally:
        page.write_text(before)


def test_pages_and_profile_must_agree(built, monkeypatch):
    monkeypatch.chdir(built)
    profile = load_profile("tiny")
    fewer = Profile(profile.name, profile.seed, {"first": profile.runs["first"]})
    with pytest.raises(PipelineError, match=r"profiles/tiny\.yaml does not run: notebooks/second$"):
        assemble(fewer)
    run = Run("first_l1", Path("notebooks/first.ipynb"), {})
    more = Profile(profile.name, profile.seed, {**profile.runs, "first_l1": run})
    with pytest.raises(PipelineError, match="neither notebooks/first_l1 nor book/first, to which"):
        assemble(more)


WRITE = """\
import time
from pathlib import Path
from corea.store import make
began = time.time()
entry = make("sum", {"of": [size, seed]}, lambda f: (f / "sum").write_text(str(size + seed)))
Path(output_dir, "seed.csv").write_text((entry / "sum").read_text())
time.sleep(0.3)
Path(output_dir, "when.csv").write_text(f"{began} {time.time()}");"""
READ = """\
from pathlib import Path
from corea.book import display, full_run
total = sum(int(Path(run, "seed.csv").read_text()) for run in runs)
display.reading("Together {total}.", total=total)"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_repository, pipeline, write_notebook):
    """A repository with a built book in which ``compare`` reads two runs of ``train``."""
    path = make_repository(tmp_path_factory.mktemp("trained"), {"compare": [], "train": []})
    cells = ("code", GIVEN + "size = 0", "parameters"), ("code", WRITE)
    write_notebook(path / "notebooks/train.ipynb", TITLE, *cells)
    cells = ("code", GIVEN + "runs = ['']", "parameters"), ("code", READ)
    write_notebook(path / "notebooks/compare.ipynb", ("markdown", "# Which?\n\nAll."), *cells)
    (path / "book/train.md").write_text("# Training\n\n```{tableofcontents}\n```\n")
    contents = "  - file: notebooks/compare\n  - file: book/train\n"
    (path / "_toc.yml").write_text(f"format: jb-book\nroot: book/intro\nchapters:\n{contents}")
    (path / "profiles/tiny.yaml").write_text(
        "profile: tiny\nseed: 0\nruns:\n"
        "  compare: {parameters: {runs: ['{tables}/train_big']}}\n"
        "  train: {parameters: {}, variants: {big: {size: 10}}, seeds: [1, 2],"
        " resources: {gpus: 1}}\n"
    )
    result = pipeline(path, "build", "tiny")
    assert result.returncode == 0, result.stdout + result.stderr
    return path


def test_run_reads_what_the_runs_before_it_wrote(trained):
    assert "Together 23." in (trained / "build/tiny/executed/compare.ipynb").read_text("utf-8")


def test_runs_that_ask_for_a_gpu_do_not_run_side_by_side(trained):
    folders = [trained / f"build/tiny/tables/train_big_s{seed}" for seed in (1, 2)]
    (_, ended), (began, _) = sorted(
        [float(time) for time in (folder / "when.csv").read_text().split()] for folder in folders
    )
    assert ended < began


def test_variants_are_sections_below_their_page_with_titles_of_their_own(trained):
    contents = (trained / "build/tiny/source/_toc.yml").read_text("utf-8")
    assert contents.splitlines()[2:] == [
        "chapters:", "- file: notebooks/compare", "- file: book/train", "  sections:",
        "  - file: notebooks/train_big_s1", "  - file: notebooks/train_big_s2",
    ]  # fmt: skip
    html = trained / "build/tiny/_build/html"
    above = (html / "book/train.html").read_text("utf-8")
    for seed in (1, 2):
        title = f"What is this? · big, seed {seed}"
        assert f"{title}<" in above
        page = html / f"notebooks/train_big_s{seed}.html"
        assert f"<h1>{title}<" in page.read_text("utf-8")
    assert "<h1>Which?<" in (html / "notebooks/compare.html").read_text("utf-8")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


HARMS = {"deleted": Path.unlink, "truncated": halve, "flipped": flip}


@pytest.fixture
def harmed(trained, tmp_path, monkeypatch):
    """Function that harms a file of a copy of a built repository; the working directory."""
    for name in ("profiles", "notebooks", "corea", "book"):
        (tmp_path / name).symlink_to(trained / name)
    for name in ("Snakefile", "_toc.yml", "_config.yml", "constraints.txt"):
        shutil.copy(trained / name, tmp_path)
    shutil.copytree(trained / "build", tmp_path / "build")
    monkeypatch.chdir(tmp_path)

    def harm(pattern, kind):
        (path,) = [p for p in Path("build").glob(pattern) if p.suffix not in {".lock", ".damaged"}]
        HARMS[kind](path)
        return path

    return harm


@pytest.mark.parametrize("kind", HARMS)
@pytest.mark.parametrize(
    "pattern",
    [
        "tiny/executed/train_big_s1.ipynb",
        "tiny/tables/train_big_s1/seed.csv",
        "tiny/tables/train_big_s1/run.json",
        "tiny/tables/train_big_s1/manifest.json",
        "store/sum-*/sum",
        "store/sum-*/request.json",
        "store/sum-*/manifest.json",
    ],
)
def test_result_that_was_harmed_is_removed_and_named(trained, harmed, capsys, pattern, kind):
    profile = load_profile("tiny")
    assert {damage(profile, run) for run in profile.runs} == {""}
    if pattern.startswith("store"):  # of the two entries that of the first seed
        noted = json.loads(Path("build/tiny/tables/train_big_s1/run.json").read_text())
        pattern = f"store/{Path(noted['entries'][0]).name}/{Path(pattern).name}"
    path = harmed(pattern, kind)
    named = path if kind == "deleted" or "manifest" not in path.name else path.parent
    found = damage(profile, "train_big_s1")
    assert str(named if named.suffix == ".ipynb" else named.parent.name) in found
    with pytest.raises(PipelineError, match="the book was not built:\n  train_big_s1: "):
        render(profile)
    with pytest.raises(PipelineError, match="compare: train_big_s1, which it reads, is not whole"):
        execute(profile, profile.runs["compare"])
    remove_damaged(profile)
    executed = Path("build/tiny/executed")
    assert not (executed / "train_big_s1.ipynb").exists()
    assert not Path("build/tiny/tables/train_big_s1").exists()
    assert (executed / "train_big_s2.ipynb").exists()
    assert not Path("build/tiny/_build").exists()
    said = capsys.readouterr().out
    assert ("train_big_s1: " in said) == (path.parent != executed or kind != "deleted")


@pytest.mark.parametrize("kind", HARMS)
@pytest.mark.parametrize(
    "page",
    [
        "html/index.html",
        "html/notebooks/compare.html",
        "html/_static/plotly.min.js",
        "manifest.json",
    ],
)
def test_page_that_was_harmed_is_removed_and_named(harmed, capsys, page, kind):
    harmed(f"tiny/_build/{page}", kind)
    remove_damaged(load_profile("tiny"))
    assert not Path("build/tiny/_build").exists()
    told = r"book: build/tiny/_build\b.+; the pages are rendered again\n"
    assert re.fullmatch(told, capsys.readouterr().out)
    assert len(list(Path("build/tiny/executed").iterdir())) == 3


def test_run_that_another_process_executes_is_left_alone(harmed):
    harmed("tiny/executed/train_big_s1.ipynb", "deleted")
    with Path("build/tiny/locks/train_big_s1").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_damaged(load_profile("tiny"))
    assert Path("build/tiny/tables/train_big_s1/seed.csv").exists()


def test_everything_harmed_is_made_anew_by_the_next_build(trained, pipeline):
    def content():
        kept = {}
        for path in sorted((trained / "build").rglob("*")):
            name = path.relative_to(trained / "build").as_posix()
            if re.fullmatch(r"tiny/tables/.*/seed.csv|store/sum-[0-9a-f]+/.*", name):
                kept[name] = path.read_bytes()
        for name in ("index", "notebooks/compare", "notebooks/train_big_s1"):
            kept[name] = (trained / f"build/tiny/_build/html/{name}.html").read_bytes()
        return kept

    before = content()
    noted = json.loads((trained / "build/tiny/tables/train_big_s2/run.json").read_text())
    halve(trained / noted["entries"][0] / "sum")
    (trained / "build/tiny/executed/compare.ipynb").unlink()
    (trained / "build/tiny/parameters/compare.yaml").write_text("")
    result = pipeline(trained, "build", "tiny")
    assert result.returncode == 0, result.stdout
    for told in (
        f"train_big_s2: {noted['entries'][0]} is damaged: sum was changed",
        "train_big_s2: build/store/sum-",  # set aside, and made again
    ):
        assert told in result.stdout
    assert "train_big_s1: " not in result.stdout
    assert content() == before
    assert to_do(trained) == set()


def test_change_of_a_run_touches_what_reads_it(trained):
    profile, table = trained / "profiles/tiny.yaml", trained / "corea/data/full_run/c/t.csv"
    before = profile.read_text()
    assert to_do(trained) == set()
    try:
        profile.write_text(before.replace("seeds: [1, 2]", "seeds: [2, 3]"))
        assert to_do(trained) == {"train_big_s3", "compare", "index"}
        profile.write_text(before.replace("size: 10", "size: 11"))
        assert to_do(trained) == {"train_big_s1", "train_big_s2", "compare", "index"}
        profile.write_text(before)
        table.parent.mkdir(parents=True)
        table.write_text("x\n1\n")
        assert to_do(trained) == {"compare", "index"}
    finally:
        profile.write_text(before)
        shutil.rmtree(table.parents[1], ignore_errors=True)


def test_what_needs_a_failed_run_does_not_run_and_is_named(trained, pipeline, write_notebook):
    cells = ("code", GIVEN + "size = 0", "parameters"), ("code", "1 / (2 - seed)")
    write_notebook(trained / "notebooks/train.ipynb", TITLE, *cells)
    result = pipeline(trained, "build", "tiny")
    assert result.returncode == 1
    *_, head, failed, blocked, _ = result.stdout.splitlines()
    assert head == "profile tiny failed:"
    assert failed.startswith("  train_big_s2: notebooks/train.ipynb, cell 3 of 3 (In [3]): Zero")
    assert blocked == "  compare: not run, since it needs train_big_s2"
    assert "compare: cell" not in result.stdout
    # the last test of this repository: its book is not built again
    assert (trained / "build/tiny/executed/train_big_s1.ipynb").exists()


def test_one_build_at_a_time(repository):
    profile = load_profile("tiny")
    profile.directory.mkdir(parents=True)
    with (profile.directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 (Snakemake) on node-7\n")
        lock.flush()
        told = "profile tiny is being built already, by process 7 .Snakemake. on node-7. Wait"
        with pytest.raises(PipelineError, match=told):
            build(profile)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "The disk is full: free some space and run it again"),
        (errno.EACCES, "Make it yours to write"),
        (errno.EROFS, "Work in a copy of the repository"),
        (errno.ENOTDIR, "Everything is made below build/"),
    ],
)
def test_what_the_system_refuses_is_told_in_a_line(repository, monkeypatch, capsys, number, told):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "build/tiny/logs")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["build", "tiny"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"build/tiny/logs: {os.strerror(number)}. {told}")


def test_file_in_the_place_of_a_folder_is_told(repository, pipeline):
    Path("build").write_text("")
    result = pipeline(repository, "build", "tiny")
    assert (result.returncode, result.stderr) == (1, "")
    assert re.fullmatch(r"build\S*: (Not a directory|File exists)\. Everything .*\n", result.stdout)


def test_errors_of_snakemake_itself_are_told(repository, pipeline):
    Path("Snakefile").write_text(Path("Snakefile").read_text() + "\nrulee x:\n")
    result = pipeline(repository, "build", "tiny")
    assert result.returncode == 1
    assert "SyntaxError in file" in result.stdout


def test_command_line_refuses_what_it_does_not_know(repository, capsys):
    assert main(["execute", "tiny", "third"]) == 1
    assert "profile tiny has no run 'third'" in capsys.readouterr().out
    assert main(["parameters", "tiny"]) == 0
    assert capsys.readouterr().out.split() == [
        "build/tiny/parameters/first.yaml", "build/tiny/parameters/second.yaml",
    ]  # fmt: skip
