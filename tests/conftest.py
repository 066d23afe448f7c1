"""What several test modules share: small notebooks and repositories, the built book, a browser."""

import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
TITLE = ("markdown", "# What is this?")
PARAMETERS = ("code", 'profile = "tiny"\nseed = 0\noutput_dir = ""\nsize = 3', "parameters")

# One thread for each process, before torch is imported: those of several slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores interrupts, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Let all temporary files lie in one folder: what is killed cannot remove its own."""
    if not hasattr(config, "workerinput"):  # the workers take the folder over
        os.environ["TMPDIR"] = config.temporary = tempfile.mkdtemp(prefix="corea-tests-")
        tempfile.tempdir = None


def pytest_unconfigure(config):
    """Remove the folder, but for tests that failed."""
    if hasattr(config, "temporary") and not getattr(config, "failed", False):
        shutil.rmtree(config.temporary, ignore_errors=True)


def pytest_sessionfinish(session, exitstatus):
    """Note whether a test failed."""
    session.config.failed = exitstatus not in (0, 5)  # 5: none was chosen


@pytest.fixture(autouse=True)
def closed_figures():
    """No figure that one test left open is seen by another."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(scope="session")
def decider(tmp_path_factory):
    """Folder of a model that reasons about choices and decides, badly."""
    from decide_in_process import OWN

    from corea.tasks import microworld
    from corea.tasks.decision_world import build_tokenizer, corpus
    from corea.training.settings import SFTSettings
    from corea.training.sft import train_sft

    folder = tmp_path_factory.mktemp("decider")
    tokenizer = build_tokenizer(OWN)
    config = microworld.model_config("qwen2", 32, 1, 1, len(tokenizer))
    settings = SFTSettings(
        steps=120,
        batch=32,
        micro_batch=32,
        lr_schedule="cosine",
        weight_decay=0.01,
        checkpoint_every=120,
    )
    train_sft(microworld.new_model(config, 0), tokenizer, corpus(OWN, 2000, 0), settings, folder)
    return folder / "model"


@pytest.fixture(scope="session")
def write_notebook():
    """Function that writes a notebook from (type, source, *tags) of its cells."""

    def write(path, *cells, work=()):
        content = [
            {"cell_type": kind, "id": f"cell-{i}", "metadata": {"tags": tags}, "source": source}
            | ({"outputs": [], "execution_count": None} if kind == "code" else {})
            for i, (kind, source, *tags) in enumerate(cells)
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
        metadata |= {"corea": {"work": work}} if work else {}
        path.parent.mkdir(exist_ok=True)
        notebook = {"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        path.write_text(json.dumps(notebook), "utf-8")

    return write


@pytest.fixture(scope="session")
def make_repository(write_notebook):
    """Function that lays out a repository with the real pipeline and tiny notebooks.

    Its profile is ``tiny``; the notebooks are given as name -> cells after the
    title and the parameters.
    """

    def make(path, notebooks):
        for name in ("Snakefile", "_config.yml", "constraints.txt"):
            shutil.copy(ROOT / name, path)
        shutil.copytree(ROOT / "book" / "_static", path / "book" / "_static")
        shutil.copy(ROOT / "book" / "references.bib", path / "book")
        (path / "book" / "intro.md").write_text("# A tiny book\n\nIt says $x = 1$.\n")
        ignored = shutil.ignore_patterns("data", "__pycache__")
        shutil.copytree(ROOT / "corea", path / "corea", ignore=ignored)
        (path / "corea" / "data").mkdir()
        (path / "corea" / "data" / "numbers.csv").write_text("1\n")
        chapters = "".join(f"  - file: notebooks/{name}\n" for name in notebooks)
        (path / "_toc.yml").write_text(f"format: jb-book\nroot: book/intro\nchapters:\n{chapters}")
        runs = "".join(f"  {name}: {{parameters: {{size: 3}}}}\n" for name in notebooks)
        (path / "profiles").mkdir()
        (path / "profiles" / "tiny.yaml").write_text(f"profile: tiny\nseed: 0\nruns:\n{runs}")
        for name, cells in notebooks.items():
            write_notebook(path / "notebooks" / f"{name}.ipynb", TITLE, PARAMETERS, *cells)
        return path

    return make


@pytest.fixture(scope="session")
def pipeline():
    """Function that runs the pipeline's command line in a repository."""

    def run(repository, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "corea", *arguments],
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=850,
        )

    return run


@pytest.fixture(scope="session")
def book(pipeline):
    """Folder of the real book, built with the smoke profile (once, and only what changed)."""
    result = pipeline(ROOT, "build", "smoke")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return (ROOT / result.stdout.splitlines()[-1]).parent


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@contextlib.contextmanager
def served(folder):
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def serve():
    """Context manager that serves a folder on the loopback and gives its address."""
    return served


@pytest.fixture(scope="session")
def site(book):
    """Address at which the real book is served."""
    with served(book) as address:
        yield address


# of a module: while it is open an event loop runs, beside which no other test could start one
@pytest.fixture(scope="module")
def chromium():
    """The system's Chromium, headless."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        reason = f"none of {', '.join(names)} is installed"
        if os.environ.get("COREA_REQUIRE_BROWSER") == "1":
            pytest.fail(f"COREA_REQUIRE_BROWSER is set, but {reason}")
        pytest.skip(f"browser test: {reason}")
    from playwright.sync_api import sync_playwright

    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", *quiet]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page in the browser, and what it did that it should not.

    Attributes:
        page: The page.
        complaints: Console errors and warnings, script errors, failed requests.
        outside: Addresses that were asked for and are neither local nor in the page itself.
    """

    page: object
    complaints: list = field(default_factory=list)
    outside: list = field(default_factory=list)

    def open(self, address):
        """Go there and wait until scripts, figures and formulas are done."""
        self.page.goto(address)
        self.page.wait_for_load_state("networkidle")
        self.page.evaluate(
            "window.MathJax?.startup ? MathJax.startup.promise.then(() => null) : null"
        )


@pytest.fixture
def visit(chromium):
    """A fresh page that can reach the loopback and files only."""
    context = chromium.new_context(viewport={"width": 1300, "height": 1000})
    page = context.new_page()
    record = Visit(page)

    def guard(route):
        address = urlsplit(route.request.url)
        if address.hostname == "127.0.0.1" or address.scheme in {"file", "data", "blob"}:
            route.continue_()
        else:
            record.outside.append(route.request.url)
            route.abort()

    def hear(message):
        if message.type in {"error", "warning"}:
            record.complaints.append(f"{message.type}: {message.text}")

    def answered(response):
        if response.status >= 400:
            record.complaints.append(f"{response.status}: {response.url}")

    context.route("**/*", guard)
    page.on("console", hear)
    page.on("pageerror", lambda error: record.complaints.append(f"script: {error}"))
    page.on("requestfailed", lambda request: record.complaints.append(f"failed: {request.url}"))
    page.on("response", answered)
    yield record
    context.close()
