"""Execute a run's notebook by papermill, and seal what came of it.

Below ``build/<profile>/``:

===============  ================================================================================
``parameters/``  one YAML file per run, for ``papermill -f`` by hand
``running/``     notebooks while they run
``executed/``    notebooks that ran to their end
``failed/``      notebooks that did not, with the reason beside them
``locks/``       one file per run, held by whoever executes it, on whatever machine
``tables/``      what a run wrote to its ``output_dir``, sealed when it had run to its end
``logs/``        what papermill said and the notebook printed
===============  ================================================================================

1. A run's folder of tables is sealed (:mod:`corea.store`), with the digest of its executed notebook
   and the names of the entries of the store that it asked for. Where any of these is missing or
   was changed, the run is executed again.
2. A notebook runs with as many threads as its run asks for processor cores, since several that use
   every core slow each other down.
3. Lines that a notebook prints with ``progress: `` before them are shown while it runs and are not
   part of the executed notebook.
4. An executed notebook with output on standard error, or that names this machine or its user, is
   refused: it is not fit for a book.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml

from corea.book.display import visible
from corea.book.provenance import PACKAGES, provenance
from corea.store import ENTRIES, StoreError, check_seal, locked, seal
from corea.workflow import PipelineError
from corea.workflow.notebooks import is_parameters, read_notebook
from corea.workflow.profiles import KERNEL, Profile, Run

VERSIONS = (*PACKAGES, "torch", "transformers", "trl")  # packages noted in executed notebooks
RESULT = "run.json"  # in a run's tables: what else belongs to its result
PROGRESS = "progress: "  # what a line starts with that is shown and not kept


def write_parameters(profile: Profile) -> list[Path]:
    """Write one parameter file per run; one that would not change keeps its time of change."""
    folder = profile.directory / "parameters"
    texts = {
        folder / f"{run.name}.yaml": yaml.safe_dump(
            dict(run.parameters), sort_keys=False, allow_unicode=True
        )
        for run in profile.runs.values()
    }
    new = {
        path: text
        for path, text in texts.items()
        if not path.is_file() or path.read_text("utf-8") != text
    }
    if new:
        folder.mkdir(parents=True, exist_ok=True)
    for path, text in new.items():
        path.write_text(text, "utf-8")
    return [*texts]


def check_kernel(profile: Profile) -> list[str]:
    """The command that starts a profile's Jupyter kernel; an error names the kernels here."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    manager = KernelSpecManager()
    try:
        python, *rest = manager.get_kernel_spec(profile.kernel).argv
        # Jupyter starts a kernel that names no folder with its own Python
        return [sys.executable if python in ("python", "python3") else python, *rest]
    except NoSuchKernel as error:
        known = ", ".join(sorted(manager.find_kernel_specs()))
        raise PipelineError(
            f"profiles/{profile.name}.yaml: there is no Jupyter kernel {profile.kernel!r} here; "
            f"there are: {known or 'none'}. The Python of its environment installs it: "
            f"python -m ipykernel install --user --name {profile.kernel}"
        ) from error


# --- executing ----------------------------------------------------------------------------------


def execute(profile: Profile, run: Run) -> None:
    """Execute one notebook in this process and a kernel; wait while another process does.

    A PipelineError says why it failed; so does ``failed/<run>.txt``, beside the partial notebook.
    """
    waiting = f"{run.name}: waiting for another process that executes it"
    with locked(_lock(profile, run.name), waiting):
        _execute(profile, run)


def _lock(profile: Profile, run: str) -> Path:
    return profile.directory / "locks" / run


def _execute(profile: Profile, run: Run) -> None:
    running, executed, failed = (
        profile.directory / state / f"{run.name}.ipynb"
        for state in ("running", "executed", "failed")
    )
    tables = profile.directory / "tables" / run.name
    log = profile.directory / "logs" / f"{run.name}.log"
    entries = running.with_suffix(".entries")
    # no page is left to show what is about to change, and may fail
    shutil.rmtree(profile.index.parents[1], ignore_errors=True)
    for stale in (running, entries, executed, failed):
        stale.unlink(missing_ok=True)
    for folder in (running.parent, executed.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(tables, ignore_errors=True)
    tables.mkdir(parents=True)
    write_parameters(profile)

    # what a process that is killed leaves as its reason
    write_reason(profile, run.name, f"{run.name}: its process was killed (out of memory?)")
    reason = "interrupted"
    try:
        for need in run.needs:
            if found := damage(profile, need):
                raise PipelineError(f"{need}, which it reads, is not whole: {found}")
        facts = _facts(profile, run)
        notebook = _papermill(profile, run, running, tables, log)
        _tidy(notebook, facts)
        running.write_text(json.dumps(notebook, ensure_ascii=False, indent=1), "utf-8")
        if found := "; ".join([*warnings_in(notebook), *private_text(notebook)]):
            raise PipelineError(f"{run.notebook} ran, but is not fit for a book: {found}")
        asked = entries.read_text("utf-8").splitlines() if entries.exists() else []
        seal_result(running, tables, asked)
        reason = ""
    except PipelineError as error:
        reason = f"{run.name}: {error}"
    finally:
        if reason:
            write_reason(profile, run.name, reason)
            if running.exists():
                running.replace(failed)
    entries.unlink(missing_ok=True)
    if reason:
        kept = f"\n  partial notebook: {failed}" if failed.exists() else ""
        raise PipelineError(f"{reason}{kept}\n  log: {log}")
    running.replace(executed)
    failed.with_suffix(".txt").unlink()


def write_reason(profile: Profile, name: str, reason: str) -> None:
    """Note why a run, or the book, was not made."""
    path = profile.directory / "failed" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(reason + "\n", "utf-8")


# Of glibc's allocator, which gives the memory of large tensors back to the system and asks for it
# again at every step, page by page. With these a LoRA step of SmolLM2 took 12 to 14 % less of a
# core and 9 to 13 % more memory, GRPO on the microworld 9 to 13 % less and 3 to 6 % more.
_KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "500000000",
}


class _Log(logging.Handler):
    """Writes what papermill says to a file, and shows what is progress."""

    def __init__(self, run: Run, file: TextIO) -> None:
        super().__init__()
        self.run = run
        self.file = file

    def emit(self, record: logging.LogRecord) -> None:
        for line in record.getMessage().split("\n"):
            self.file.write(plain(line.rstrip("\r")) + "\n")
            if line.startswith(PROGRESS):
                said = plain(line.removeprefix(PROGRESS).rstrip())
                print(f"{self.run.name}: {said}", flush=True)
        self.file.flush()


def _papermill(
    profile: Profile, run: Run, output: Path, tables: Path, log: Path, attempts: int = 2
) -> dict[str, Any]:
    """The executed notebook.

    A kernel that does not start is started once more: two at once may pick the same port.
    """
    import papermill
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.log import logger

    cells = read_notebook(run.notebook)["cells"]
    number = 0

    def started(cell: Mapping[str, Any], cell_index: int) -> None:
        nonlocal number
        new = _number(cells, cell_index)
        if new > number:  # the cell with the run's parameters has no number of its own
            print(f"{run.name}: cell {new} of {len(cells)}", flush=True)
        number = new

    with log.open("w", encoding="utf-8") as file, _environment(profile, run, output):

        class Manager(AsyncKernelManager):
            async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
                await super().start_kernel(stdout=file, stderr=file, **options)

        handler = _Log(run, file)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        try:
            # relative paths only: papermill writes them into the notebook
            papermill.execute_notebook(
                str(run.notebook),
                str(output),
                {**run.parameters, "output_dir": tables.as_posix()},
                kernel_name=profile.kernel,
                kernel_manager_class=Manager,
                progress_bar=False,
                log_output=True,
                on_cell_execute=started,
            )
            return read_notebook(output)
        except PapermillExecutionError as error:
            logger.error(str(error))
            number, where = _number(cells, error.cell_index), f" (In [{error.exec_count}])"
            told = plain(f"{error.ename}: {error.evalue[:1000]}")
        except Exception as error:  # whatever jupyter, zmq and the disk have to say
            logger.error(str(error))
            told, where = plain_lines(f"{type(error).__name__}: {error}")[-1], ""
            if isinstance(error, DeadKernelError):
                told = "the kernel died (was it killed, or out of memory?)"
        finally:
            logger.removeHandler(handler)
    if number:
        raise PipelineError(f"{run.notebook}, cell {number} of {len(cells)}{where}: {told}")
    if attempts == 1:
        raise PipelineError(f"{run.notebook} did not start: {told}")
    print(f"{run.name}: the kernel did not start; trying once more", flush=True)
    return _papermill(profile, run, output, tables, log, attempts - 1)


@contextmanager
def _environment(profile: Profile, run: Run, output: Path) -> Iterator[None]:
    """The environment variables of a kernel that is started meanwhile."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as settings:
        os.environ.setdefault("OMP_NUM_THREADS", str(profile.asked(run.name).cpus))
        for name, value in (_KEEPING if run.trains else {}).items():
            os.environ.setdefault(name, value)
        os.environ |= {
            # a person's own start-up files and kernels of the same name must not change the result
            "IPYTHONDIR": settings,
            "JUPYTER_PREFER_ENV_PATH": "1",
            "JUPYTER_RUNTIME_DIR": settings,  # else below HOME, which may not be writable
            ENTRIES: str(output.with_suffix(".entries").absolute()),
        }
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _number(cells: Sequence[Mapping[str, Any]], index: int) -> int:
    """Number in the committed notebook of the cell at an index of the one that runs.

    Papermill inserts a cell with the values after that with the parameters; the two count as one.
    """
    (parameters,) = [n for n, cell in enumerate(cells) if is_parameters(cell)]
    return index + 1 - (index > parameters)


def _tidy(notebook: dict[str, Any], facts: Mapping[str, str]) -> None:
    """Take the lines about progress out of an executed notebook and note where it is from."""
    for cell in notebook["cells"]:
        for output in [*cell.get("outputs", [])]:
            if output["output_type"] == "stream" and output["name"] == "stdout":
                said = "".join(output["text"])
                kept, found = re.subn(rf"^{PROGRESS}.*\n?", "", said, flags=re.M)
                if found:
                    output["text"] = kept
                    if not kept.strip():
                        cell["outputs"].remove(output)
    notebook["metadata"]["corea"] = facts


def _facts(profile: Profile, run: Run) -> dict[str, str]:
    """Provenance of a run, by the Python of its kernel."""
    arguments = (profile.name, run.parameters["seed"])
    if profile.kernel == KERNEL:
        return provenance(*arguments, packages=VERSIONS)
    program = (
        "import json, sys\n"
        "from corea.book.provenance import provenance\n"
        "print(json.dumps(provenance(*json.loads(sys.argv[1]), packages=sys.argv[2:])))\n"
    )
    command = [check_kernel(profile)[0], "-c", program, json.dumps(arguments), *VERSIONS]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        facts: dict[str, str] = json.loads(said.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        failed = isinstance(error, subprocess.CalledProcessError) and error.stderr.strip()
        told = plain_lines(failed or str(error))[-1]
        raise PipelineError(
            f"kernel {profile.kernel}: {command[0]} is no Python that can import corea: {told}"
        ) from error
    return facts


def plain(text: str) -> str:
    r"""Text without terminal colours, other control characters made visible.

    Line breaks are kept as the sign for them: one error is one line.

    Example:
        >>> plain("\x1b[31mred\x1b[0m \a")
        'red ␇'
    """
    return visible(re.sub(r"\x1b\[[0-9;:?]*[ -/]*[@-~]", "", text))


def plain_lines(text: str) -> list[str]:
    """The lines of a text that hold anything, each as :func:`plain` text."""
    return [plain(line) for line in text.splitlines() if line.strip()]


# --- results ------------------------------------------------------------------------------------


def seal_result(notebook: Path, tables: Path, entries: Iterable[str] = ()) -> None:
    """Seal a run's tables, and with them its executed notebook and the store's entries it read."""
    result = {"notebook": _digest(notebook), "entries": sorted(set(entries))}
    (tables / RESULT).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    seal(tables)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def damage(profile: Profile, run: str, *, entries: dict[str, str] | None = None) -> str:
    """What a run's result lacks or what of it was changed since it succeeded; empty if it is whole.

    ``entries`` is what is known of entries of the store, name to damage. It is added to, so that an
    entry that several runs rest on is read once.
    """
    entries = {} if entries is None else entries
    executed = profile.directory / "executed" / f"{run}.ipynb"
    tables = profile.directory / "tables" / run
    if not executed.is_file():
        return f"{executed} is missing"
    if found := broken_seal(tables):
        return found
    try:
        result = json.loads((tables / RESULT).read_text("utf-8"))
        if _digest(executed) != result["notebook"]:
            return f"{executed} was changed (its SHA-256 is not that of {tables / RESULT})"
        for entry in result["entries"]:
            if entry not in entries:
                entries[entry] = broken_seal(Path(entry))
            if entries[entry]:
                return entries[entry]
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return ""


def broken_seal(sealed: Path) -> str:
    """What of a sealed folder is missing or was changed; empty if nothing."""
    try:
        check_seal(sealed)
    except (OSError, StoreError) as error:
        return str(error)
    return ""


def remove_damaged(profile: Profile) -> None:
    """Remove results and pages that are not whole, so that they are made again.

    Snakemake looks at times, and at what is there only where it is needed. A run that another
    process executes is left alone.
    """
    entries: dict[str, str] = {}
    whole = True
    for run in profile.runs:
        executed = profile.directory / "executed" / f"{run}.ipynb"
        tables = profile.directory / "tables" / run
        with suppress(BlockingIOError), locked(_lock(profile, run)):
            if found := damage(profile, run, entries=entries):
                whole = False
                if executed.exists():
                    print(f"{run}: {found}; it is executed again", flush=True)
                executed.unlink(missing_ok=True)
                shutil.rmtree(tables, ignore_errors=True)
    pages = profile.index.parents[1]
    if found := broken_seal(pages) if pages.exists() else "":
        print(f"book: {found}; the pages are rendered again", flush=True)
    if found or not whole:
        shutil.rmtree(pages, ignore_errors=True)


# --- what must not be in a book -----------------------------------------------------------------


def _numbered(executed: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Cells of an executed notebook with their numbers in the committed one."""
    number = 0
    for cell in executed:
        number += "injected-parameters" not in cell["metadata"].get("tags", [])
        yield number, cell


def warnings_in(notebook: Mapping[str, Any]) -> list[str]:
    """What an executed notebook wrote to standard error, warnings above all, by cell."""
    return [
        plain(f"cell {number} wrote to standard error: {''.join(output['text']).strip()[:500]}")
        for number, cell in _numbered(notebook["cells"])
        for output in cell.get("outputs", [])
        if output["output_type"] == "stream" and output["name"] == "stderr"
    ]


def private_text(notebook: Mapping[str, Any]) -> list[str]:
    """Absolute paths, user and host names in the text of an executed notebook, by cell.

    A user's or host's name that is made of letters only is looked for where it
    cannot be an ordinary word: in a path or beside an ``@``.
    """
    host = socket.gethostname()
    user = Path.home().name or "/"  # a home of "/" names nobody
    here = {str(Path.cwd()), str(Path.home()), sys.prefix, sys.base_prefix, tempfile.gettempdir()}
    longest_first = sorted(here - {"/"}, key=len, reverse=True)
    patterns = [rf"(?<![\w/.<]){re.escape(path)}(?!\w)" for path in longest_first]
    patterns += [
        r"(?<![\w/.+<])/(?:home|Users|root|tmp|mnt|private|var/folders)/[\w.-]+",
        r"\b[A-Za-z]:\\+Users\\+\w+",
        rf"(?<!\w){re.escape(user)}@\w+",
        rf"\w@{re.escape(host)}(?!\w)",
    ]
    patterns += [
        rf"(?<!\w){re.escape(name)}(?!\w)"
        for name in (host, user)
        if len(name) > 3 and not name.isalpha()
    ]
    private = re.compile("|".join(patterns))
    parts = [("the metadata", notebook["metadata"])]
    parts += [(f"cell {number}", cell) for number, cell in _numbered(notebook["cells"])]
    return [
        f"{plain(name)!r} in {where}"
        for where, part in parts
        for name in sorted({match for text in _strings(part) for match in private.findall(text)})
    ]


def _strings(content: object) -> Iterator[str]:
    """Texts in a notebook's JSON; base64 data, in which any word may turn up, left out."""
    match content:
        case str():
            yield re.sub(r"data:[\w/+.;-]+;base64,[A-Za-z0-9+/=]+", "", content)
        case list() if all(isinstance(part, str) for part in content):
            yield from _strings("".join(content))
        case list():
            for part in content:
                yield from _strings(part)
        case dict():
            for key, part in content.items():
                if not re.fullmatch(r"image/(?!svg).*|application/pdf|bdata", key):
                    yield from _strings(part)
