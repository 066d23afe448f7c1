import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from corea import store
from corea.store import StoreError, check_seal, keep_up, make, write_atomically


def nothing_to_do(folder):
    raise AssertionError("made again")


def entries(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_an_entry_is_made_once_and_found_again(tmp_path):
    made = make("sum", {"a": 1, "b": [2, 3]}, lambda f: (f / "x").write_text("6"), root=tmp_path)
    found = make("sum", {"b": [2, 3], "a": 1}, nothing_to_do, root=tmp_path)
    assert found == made
    assert entries(tmp_path) == [made.name]
    assert made.name.startswith("sum-")
    assert sorted(p.name for p in made.iterdir()) == ["manifest.json", "request.json", "x"]
    request = json.loads((made / "request.json").read_text())
    assert request == {"kind": "sum", "spec": {"a": 1, "b": [2, 3]}, "code": {}, "packages": {}}


@pytest.mark.parametrize(
    ("kind", "spec"),
    [("sum", {"a": 2}), ("sum", {"a": 1, "b": None}), ("sum", {"a": "1"}), ("other", {"a": 1})],
)
def test_any_other_request_makes_another_entry(tmp_path, kind, spec):
    first = make("sum", {"a": 1}, lambda f: (f / "x").write_text("1"), root=tmp_path)
    other = make(kind, spec, lambda f: (f / "x").write_text("2"), root=tmp_path)
    assert entries(tmp_path) == sorted([first.name, other.name])
    assert ((first / "x").read_text(), (other / "x").read_text()) == ("1", "2")


@pytest.mark.parametrize("kind", ["", "a b", "../a", "a/b", "a.b"])
def test_a_kind_that_is_no_name_is_refused(tmp_path, kind):
    with pytest.raises(ValueError, match=f"kind is {kind!r}; expected letters"):
        make(kind, {}, nothing_to_do, root=tmp_path)
    assert not entries(tmp_path)


@pytest.mark.parametrize(
    ("spec", "error"), [({"a": float("nan")}, ValueError), ({"a": {1, 2}}, TypeError)]
)
def test_a_specification_that_is_not_json_is_refused(tmp_path, spec, error):
    with pytest.raises(error):
        make("sum", spec, nothing_to_do, root=tmp_path)
    assert not entries(tmp_path)


# --- what the key depends on ----------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of a few modules in the place of corea, as the code that entries are made by."""
    package = tmp_path / "corea"
    package.mkdir()
    sources = {
        "top": '"""Makes."""\nfrom corea.part import f\n\nN = 1\n"""How many."""\n',
        "part": 'def f():\n    """One."""\n    import corea.deep\n    return 1  # one\n',
        "deep": "from corea import data\nSCRIPT = 'worker.py'\n",
        "data": "X = 1\n",
        "worker": "Y = 1\n",
        "room/top": "from corea.room import deep\n",  # the names of two files that are there
        "room/deep": "W = 1\n",
        "unrelated": "Z = 1\n",
    }
    (package / "room").mkdir()
    for name, text in sources.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.setattr(store, "__file__", str(package / "store.py"))
    return package


def key(root):
    code = [Path("corea", "top.py"), Path("corea", "room", "top.py")]
    return make("x", {}, lambda folder: None, code=code, root=root / "store").name


@pytest.mark.parametrize("name", ["top", "part", "deep", "data", "worker", "room/top", "room/deep"])
def test_the_key_changes_with_the_code_of_every_module_that_is_used(tmp_path, package, name):
    before = key(tmp_path)
    path = package / f"{name}.py"
    path.write_text(path.read_text() + "Q = 2\n")
    assert key(tmp_path) != before


def test_the_key_changes_with_a_value_deep_in_a_function(tmp_path, package):
    before = key(tmp_path)
    path = package / "part.py"
    path.write_text(path.read_text().replace("return 1", "return 2"))
    assert key(tmp_path) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("top", "Makes.", "Builds."),  # of the module
        ("top", "How many.", "The number."),  # of a constant
        ("part", "One.", "The first number."),  # of a function
        ("part", "# one", "# the first"),
        ("part", "    return 1", "\n    return (1)"),
        ("unrelated", "Z = 1", "Z = 2"),
    ],
)
def test_the_key_stays_when_only_words_and_layout_change(tmp_path, package, name, old, new):
    before = key(tmp_path)
    path = package / f"{name}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert key(tmp_path) == before


@pytest.mark.parametrize("name", ["torch", "trl", "transformers", "math-verify"])
def test_the_key_changes_with_the_version_of_a_package(tmp_path, package, monkeypatch, name):
    before = key(tmp_path)
    monkeypatch.setattr(store, "version", lambda p: "0.0.1" if p == name else version(p))
    assert key(tmp_path) != before


def test_a_module_that_is_not_there_is_named(tmp_path, package):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py"):
        make("x", {}, nothing_to_do, code=[Path("corea/nowhere.py")], root=tmp_path / "store")


# --- damage ---------------------------------------------------------------------------------------


def build_two(folder):
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "weights").write_bytes(bytes(range(256)))
    (folder / "table.csv").write_text("a\n1\n")


def test_what_is_kept_up_is_brought_up_to_date_by_every_call(tmp_path):
    def add(folder):
        path = folder / "lines"
        path.write_text((path.read_text() if path.is_file() else "") + "x")

    first = keep_up("log", {"a": 1}, add, root=tmp_path)
    check_seal(first)
    assert keep_up("log", {"a": 1}, add, root=tmp_path) == first
    check_seal(first)
    assert (first / "lines").read_text() == "xx"
    assert keep_up("log", {"a": 2}, add, root=tmp_path) != first


def flip(path, place=100):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: flip(f / "model" / "weights"), "model/weights was changed"),
        (lambda f: os.truncate(f / "model" / "weights", 255), "model/weights was changed"),
        (lambda f: (f / "model" / "weights").unlink(), "model/weights is missing"),
        (lambda f: (f / "model" / "extra").write_text(""), "model/extra was added"),
        (lambda f: (f / "table.csv").rename(f / "t"), "table.csv is missing; t was added"),
        (lambda f: flip(f / "manifest.json", 0), "manifest.json: not readable"),
        (lambda f: os.truncate(f / "manifest.json", 0), "manifest.json: not readable"),
        (lambda f: (f / "manifest.json").write_text("[1, 2]"), "manifest.json: not readable"),
        (lambda f: (f / "manifest.json").unlink(), "half written, there is no manifest.json"),
    ],
)
def test_a_damaged_entry_is_named_set_aside_and_made_again(tmp_path, capsys, damage, named):
    entry = make("two", {}, build_two, root=tmp_path)
    shutil.copytree(entry, tmp_path / "good")
    damage(entry)
    with pytest.raises(StoreError, match=re.escape(named)):
        check_seal(entry)
    damaged = {path: path.read_bytes() for path in entry.rglob("*") if path.is_file()}
    for _ in range(2):  # the second time it is found
        assert make("two", {}, build_two, root=tmp_path) == entry
    said = capsys.readouterr().out
    assert said.count("progress: ") == 1
    assert named in said
    assert f"{entry.name}.damaged" in said
    for path in (p for p in entry.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "good" / path.relative_to(entry)).read_bytes()
    kept = entry.with_name(entry.name + ".damaged")
    for path, content in damaged.items():
        assert (kept / path.relative_to(entry)).read_bytes() == content


def test_entries_that_are_asked_for_are_noted_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("COREA_ENTRIES", str(tmp_path / "asked"))
    asked = [make("two", {}, build_two, root=tmp_path) for _ in range(2)]
    asked.append(keep_up("log", {}, lambda folder: None, root=tmp_path))
    assert (tmp_path / "asked").read_text().splitlines() == list(map(str, asked))


@pytest.mark.parametrize("keep", [make, keep_up])
def test_a_failure_on_a_full_disk_is_put_down_to_that(tmp_path, monkeypatch, keep):
    def fail(folder):
        (folder / "kept").touch()
        raise RuntimeError("unexpected pos 640 vs 534")  # what torch says

    with pytest.raises(RuntimeError, match="unexpected pos"):
        keep("x", {}, fail, root=tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    full = "the disk is full .3 MiB are left; RuntimeError: unexpected pos .*Free some space"
    with pytest.raises(StoreError, match=full):
        keep("x", {}, fail, root=tmp_path)
    assert len(list(tmp_path.glob("*/kept"))) == 1


# --- interruptions --------------------------------------------------------------------------------


def test_what_an_interrupted_build_left_is_handed_on(tmp_path):
    def fail(folder):
        (folder / "half").write_text("half")
        raise OSError("the disk is full")

    def go_on(folder):
        assert [path.name for path in folder.iterdir()] == ["half"]
        (folder / "half").rename(folder / "whole")

    with pytest.raises(OSError, match="disk is full"):
        make("x", {}, fail, root=tmp_path)
    assert entries(tmp_path)[0].endswith(".partial")
    entry = make("x", {}, go_on, root=tmp_path)
    assert entries(tmp_path) == [entry.name]
    assert (entry / "whole").read_text() == "half"


def test_a_text_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, "one\n")

    def fail(descriptor):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_atomically(path, "two\n")
    assert path.read_text() == "one\n"
    monkeypatch.undo()
    write_atomically(path, "three\n")
    assert (path.read_text(), [p.name for p in tmp_path.iterdir()]) == ("three\n", ["a.txt"])


MAKER = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from corea.store import make

    root, seconds = Path(sys.argv[1]), float(sys.argv[2])

    def build(folder):
        with (root / "log").open("a") as stream:
            stream.write(f"{os.getpid()} {sorted(p.name for p in folder.iterdir())}\\n")
        (folder / "begun").write_text("")
        time.sleep(seconds)
        (folder / "done").write_text(str(os.getpid()))

    print(make("slow", {"a": 1}, build, root=root / "store") / "done")
    """
)


def start_maker(root, seconds):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", MAKER, str(root), str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_two_processes_that_ask_for_the_same_make_it_once(tmp_path):
    makers = [start_maker(tmp_path, 0.5) for _ in range(3)]
    answers = [maker.communicate(timeout=60) for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0, 0], answers
    assert {error for _, error in answers} == {""}
    assert len({said.splitlines()[-1] for said, _ in answers}) == 1
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert entries(tmp_path / "store") == [Path(answers[0][0].splitlines()[-1]).parent.name]


def test_a_killed_process_frees_the_entry_for_the_one_that_waits(tmp_path):
    first = start_maker(tmp_path, 600)
    wait_for(tmp_path / "log")
    second = start_maker(tmp_path, 0)
    lines = []
    reader = threading.Thread(target=lambda: lines.append(second.stdout.read()))
    reader.start()
    reader.join(1)
    assert reader.is_alive()  # it waits
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    reader.join(60)
    assert second.wait(60) == 0
    assert second.stderr.read() == ""
    second.stdout.close()
    second.stderr.close()
    built = [line.partition(" ")[::2] for line in (tmp_path / "log").read_text().splitlines()]
    assert built == [(str(first.pid), "[]"), (str(second.pid), "['begun']")]
    told, path = lines[0].splitlines()
    assert told.startswith("progress: waiting for another process that makes slow-")
    assert Path(path).read_text() == str(second.pid)
