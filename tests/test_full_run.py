import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from corea.book import full_run
from corea.cli import main
from corea.workflow import PipelineError, publish
from corea.workflow.execute import seal_result
from corea.workflow.profiles import load_profile

TITLE = ("markdown", "# What is this?")
GIVEN = 'profile = "tiny"\nseed = 0\noutput_dir = ""\n'


@pytest.fixture
def executed(tmp_path, monkeypatch, write_notebook):
    """Function that notes a run as executed, with its tables; three runs are at first.

    ``compare`` and ``alone`` import corea.book.full_run; ``compare`` reads ``train_l1``.
    """
    monkeypatch.chdir(tmp_path)
    Path("corea/data").mkdir(parents=True)
    Path("corea/book").mkdir()
    for module in ("book/full_run.py", "other.py"):
        Path("corea", module).touch()
    monkeypatch.setattr(full_run, "FOLDER", tmp_path / "corea" / "data" / "full_run")
    monkeypatch.setattr(full_run, "PROFILE", "tiny")
    reads = ("code", "from corea.book import full_run")
    cell = ("code", GIVEN + "run = ''", "parameters")
    write_notebook(Path("notebooks/compare.ipynb"), TITLE, cell, reads)
    write_notebook(Path("notebooks/alone.ipynb"), TITLE, ("code", GIVEN, "parameters"), reads)
    cell = ("code", GIVEN + "steps = 1\nmodel = ''", "parameters")
    write_notebook(Path("notebooks/train.ipynb"), TITLE, cell, ("code", "from corea import other"))
    Path("profiles").mkdir()
    Path("profiles/tiny.yaml").write_text(
        "profile: tiny\nseed: 3\nruns:\n  compare: {parameters: {run: '{tables}/train_l1'}}\n"
        "  alone: {parameters: {}}\n"
        "  train: {parameters: {}, variants: {l1: {steps: 1}, l2: {steps: 2}}}\n"
    )

    def note(name, minute, *, commit="abc", tables=None, **changes):
        folder = Path("build/tiny/tables", name)
        parameters = dict(load_profile("tiny").runs[name].parameters) | changes
        papermill = {
            "parameters": parameters | {"output_dir": folder.as_posix()},
            "start_time": f"2026-01-01T10:{minute:02}:00.000001+00:00",
            "end_time": f"2026-01-01T10:{minute + 1:02}:30.123456+00:00",
            "duration": 90.123455,
        }
        facts = {"profile": "tiny", "seed": "3", "commit": commit, "numpy": "2.3"}
        notebook = {"metadata": {"papermill": papermill, "corea": facts}}
        path = Path("build/tiny/executed", f"{name}.ipynb")
        for parent in (path.parent, folder):
            parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook))
        for table, text in (tables or {}).items():
            (folder / table).write_text(text)
        seal_result(path, folder)

    note("train_l1", 0, tables={"dynamics.csv": "step\n1\n", "model.json": "{}"})
    note("compare", 2, tables={"standalone.csv": "x,name\n0.1,a\n,b\n", "big.parquet": "x" * 99999})
    note("alone", 5, commit="def+changes", tables={"one.csv": "x\n1\n", "two.csv": "y\n2\n"})
    return note


def test_nothing_is_published_at_first(executed):
    assert full_run.published("compare", "standalone") is None
    assert full_run.facts("compare") == {}


def test_small_tables_of_the_chapters_that_show_them_are_published(executed):
    written = publish.publish(load_profile("tiny"))
    assert [path.relative_to(full_run.FOLDER).as_posix() for path in written] == [
        "alone/one.csv", "alone/provenance.json", "alone/two.csv", "compare/provenance.json",
        "compare/standalone.csv",
    ]  # fmt: skip
    expected = pd.DataFrame({"x": [0.1, None], "name": ["a", "b"]})
    pd.testing.assert_frame_equal(full_run.published("compare", "standalone"), expected)
    assert full_run.published("compare", "dynamics") is None
    assert full_run.published("train_l1", "dynamics") is None
    assert full_run.facts("compare") == {
        "profile": "tiny",
        "seed": "3",
        "commit": "abc",
        "numpy": "2.3",
        "wall time": "3 minutes, the sum over 2 notebooks",
    }
    assert full_run.facts("alone")["commit"] == "def+changes"
    assert full_run.parameters("compare") == {"seed": 3}
    assert [path.name for path in full_run.FOLDER.parent.iterdir()] == ["full_run"]


def test_a_published_run_replaces_the_earlier_one_whole_and_no_other(executed):
    publish.publish(load_profile("tiny"))
    before = snapshot()
    shutil.rmtree("build/tiny/tables/alone")
    executed("alone", 7, commit="fed", tables={"one.csv": "x\n3\n"})
    written = publish.publish(load_profile("tiny"), ["alone"])
    assert [path.name for path in written] == ["one.csv", "provenance.json"]
    assert full_run.published("alone", "two") is None
    assert full_run.published("alone", "one")["x"].tolist() == [3]
    assert full_run.facts("alone")["commit"] == "fed"
    after = snapshot()
    kept = {path: text for path, text in before.items() if path.parent.name == "compare"}
    assert kept == {path: text for path, text in after.items() if path.parent.name == "compare"}


def test_provenance_names_the_packaged_models_that_were_used(executed):
    tiny_gguf = pytest.importorskip("tiny_gguf", reason="GGUF files need the extra `train`")
    Path("build/models").mkdir()
    for name in ("used", "other"):
        tiny_gguf.write_gguf(Path(f"build/models/{name}.gguf"), kind="F16")
    digest = "0123456789abcdef" * 4
    packaged = f"{{model: someone/used, packages: [x==1], sha256: '{digest}'}}"
    text = Path("profiles/tiny.yaml").read_text()
    text = text.replace("l1: {steps: 1}", "l1: {steps: 1, model: build/models/used.gguf}")
    text += f"models: {{build/models/used.gguf: {packaged}, build/models/other.gguf: {packaged}}}\n"
    Path("profiles/tiny.yaml").write_text(text)
    executed("train_l1", 0, tables={"dynamics.csv": "step\n1\n"})
    publish.publish(load_profile("tiny"))
    assert full_run.facts("compare")["models"] == f"someone/used (F16, SHA-256 {digest})"
    assert "models" not in full_run.facts("alone")


def test_provenance_names_the_published_runs_that_were_read_and_their_weights(
    executed, monkeypatch
):
    monkeypatch.setattr(full_run, "REAL", Path("published").absolute())
    facts = {
        "profile": full_run.REAL_PROFILE,
        "schema": full_run.SCHEMA,
        "parameters": {},
        "tables": {},
    }
    path = full_run.REAL / "first" / full_run.PROVENANCE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(facts | {"models": "someone/used (F16)"}))
    text = Path("profiles/tiny.yaml").read_text()
    text = text.replace("l1: {steps: 1}", "l1: {steps: 1, model: published/first}")
    Path("profiles/tiny.yaml").write_text(text)
    executed("train_l1", 0, tables={"dynamics.csv": "step\n1\n"})
    publish.publish(load_profile("tiny"))
    told = json.loads((full_run.FOLDER / "compare" / full_run.PROVENANCE).read_text())
    assert told["models"] == "someone/used (F16)"
    assert told["runs"] == {"first": full_run.digest(path)}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"profile": "laptop"}, "provenance.json: profile is 'laptop'; expected 'tiny'"),
        ({"schema": 0}, f"provenance.json: schema is 0; expected {full_run.SCHEMA}"),
        ({"schema": None}, f"provenance.json: schema is None; expected {full_run.SCHEMA}"),
        ({"tables": None}, "provenance.json: lacks tables; expected the SHA-256 of each"),
        ({"parameters": 3}, "provenance.json: lacks parameters; expected those of the run"),
    ],
)
def test_evidence_of_another_profile_or_schema_is_refused(executed, change, complaint):
    publish.publish(load_profile("tiny"))
    path = full_run.FOLDER / "compare" / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for read in (
        lambda: full_run.published("compare", "standalone"),
        lambda: full_run.facts("compare"),
    ):
        with pytest.raises(full_run.EvidenceError) as caught:
            read()
        assert str(caught.value).endswith(complaint)
        assert "full_run/compare/" in str(caught.value)
    assert full_run.published("alone", "one") is not None


def test_tables_of_another_run_are_refused(executed):
    publish.publish(load_profile("tiny"))
    folder = full_run.FOLDER / "compare"
    shutil.copy(full_run.FOLDER / "alone" / "one.csv", folder / "one.csv")
    with pytest.raises(full_run.EvidenceError, match="one.csv is not of the run in provenance"):
        full_run.published("compare", "one")
    shutil.copy(folder / "one.csv", folder / "standalone.csv")
    with pytest.raises(full_run.EvidenceError, match="standalone.csv is not what was published"):
        full_run.published("compare", "standalone")
    (folder / "provenance.json").unlink()
    for read in (full_run.facts, lambda run: full_run.published(run, "standalone")):
        with pytest.raises(full_run.EvidenceError, match="nobody knows what made these tables"):
            read("compare")


def test_chapters_may_be_of_different_commits(executed):
    publish.publish(load_profile("tiny"))
    assert full_run.facts("compare")["commit"] == "abc"
    assert full_run.facts("alone")["commit"] == "def+changes"
    assert full_run.tables() == {"alone": ["one", "two"], "compare": ["standalone"]}


def test_another_profile_is_not_published(executed, monkeypatch):
    monkeypatch.setattr(full_run, "PROFILE", "other")
    with pytest.raises(PipelineError, match="profile tiny is not published; expected other"):
        publish.publish(load_profile("tiny"))
    assert not full_run.FOLDER.exists()


def snapshot():
    return {path: path.read_bytes() for path in full_run.FOLDER.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("wrong", "complaints"),
    [
        (
            lambda note: note("alone", 5, tables={"one.csv": "x\n" + "1\n" * 262144}),
            [
                "build/tiny/tables/alone/one.csv has 524,290 bytes, more than 524,288: no small table"
            ],
        ),
        (
            lambda note: note("alone", 5, tables={"one.csv": "a\n1,2\n1,2,3\n", "two.csv": ""}),
            [
                "build/tiny/tables/alone/one.csv is not readable as CSV: Error tokenizing data",
                "build/tiny/tables/alone/two.csv is not readable as CSV: No columns to parse",
            ],
        ),
        (
            lambda _: Path("build/tiny/tables/compare/standalone.csv").unlink(),
            [
                "compare: build/tiny/tables/compare is damaged: standalone.csv is missing",
                "compare wrote no CSV table",
            ],
        ),
        (
            lambda _: Path("build/tiny/tables/train_l1/dynamics.csv").write_text("step\n2\n"),
            ["train_l1: build/tiny/tables/train_l1 is damaged: dynamics.csv was changed"],
        ),
        (
            lambda _: Path("build/tiny/executed/train_l1.ipynb").unlink(),
            ["train_l1 was not executed, or by a pipeline that did not note its commit"],
        ),
        (
            lambda _: Path("build/tiny/executed/alone.ipynb").write_text('{"metadata": {}}'),
            ["alone was not executed, or by a pipeline that did not note its commit"],
        ),
        (
            lambda note: note("train_l1", 0, steps=7),
            ["train_l1 was executed with other parameters than the profile's"],
        ),
        (
            lambda note: note("train_l1", 1),
            ["compare was executed before train_l1, which it reads"],
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_changes(executed, wrong, complaints):
    publish.publish(load_profile("tiny"))
    before = snapshot()
    wrong(executed)
    with pytest.raises(PipelineError) as caught:
        publish.publish(load_profile("tiny"))
    head, *told = str(caught.value).splitlines()
    assert head == "nothing was published:"
    assert len(told) == len(complaints)
    for line, complaint in zip(told, complaints, strict=True):
        assert line.startswith(f"  {complaint}")
    assert snapshot() == before


def test_largest_table_is_published(executed):
    executed("alone", 5, tables={"one.csv": "xx\n\n" + "1\n" * 262142})
    publish.publish(load_profile("tiny"), ["alone"])
    assert (full_run.FOLDER / "alone/one.csv").stat().st_size == full_run.LARGEST


def test_earlier_run_is_back_when_the_new_one_cannot_be_put_in_place(executed, monkeypatch):
    publish.publish(load_profile("tiny"))
    before = snapshot()
    rename = Path.rename

    def refuse(self, target):
        if self.name == "fresh":
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        publish.publish(load_profile("tiny"), ["alone"])
    assert snapshot() == before
    assert [path.name for path in full_run.FOLDER.parent.iterdir()] == ["full_run"]


def test_command_line_says_what_was_published_and_refuses_what_it_does_not_know(executed, capsys):
    assert main(["publish", "tiny", "compare"]) == 0
    *files, told = capsys.readouterr().out.splitlines()
    assert [Path(file).name for file in files] == ["provenance.json", "standalone.csv"]
    assert told == "compare: commit abc, seed 3, wall time 3 minutes, the sum over 2 notebooks"
    assert main(["publish", "tiny", "alone"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Nobody else has that source")
    assert main(["publish", "tiny", "alone", "gone"]) == 1
    assert capsys.readouterr().out == "profile tiny has no run gone\n"
    Path("corea/book/full_run.py").unlink()
    assert main(["publish", "tiny"]) == 1
    told = capsys.readouterr().out
    assert told == (
        "no notebook of profile tiny imports corea.book.full_run or corea.book.evidence\n"
    )
    assert main(["publish", "none"]) == 1


def test_what_is_in_the_package_is_whole():
    for path in sorted(full_run.FOLDER.rglob("*.csv")):
        assert path.stat().st_size <= full_run.LARGEST
        assert not full_run.published(path.parent.name, path.stem).empty
        found = full_run.facts(path.parent.name)
        assert {"profile", "commit", "seed", "wall time"} <= found.keys()
        assert "+changes" not in found["commit"]
        assert {"seed", "n_resamples"} <= full_run.parameters(path.parent.name).keys()


def test_a_run_is_published_with_its_records_and_read_as_any_other(executed, monkeypatch):
    from corea import runs
    from corea.records import Records, records_from_columns, write_records

    folder = Path("build/tiny/tables/train_l1")
    model = runs.TrainedModel(
        "L1-SLM", "l1", "small", "qwen2", None, 8, 3, 1000, 50, "build/store/x", "generated"
    )
    columns = {
        "dataset": ["sums"] * 3,
        "question_id": ["0", "1", "2"],
        "system": ["L1-SLM"] * 3,
        "sample": [0] * 3,
        "correct": [True, False, False],
        "confidence": [0.1 + 0.2, 0.0, None],
        "answer": ["C", "Safe", None],
        "gold": ["C", "Unsafe", "E"],
        "average_probability": [0.123456789, 0.5, 0.25],
        "p_1": [0.5, None, 0.25],
        "reasoning": ["none"] * 3,
    }
    records = records_from_columns(columns, source="L1-SLM")
    assert isinstance(records, Records)
    write_records(records, folder / "records.parquet")
    runs.write_model(model, folder)
    executed("train_l1", 0)
    publish.publish(load_profile("tiny"), ["train_l1"])
    kept = full_run.FOLDER / "train_l1"
    assert "Safe" not in (kept / "records.csv").read_text()
    monkeypatch.setattr(full_run, "REAL", full_run.FOLDER)
    monkeypatch.setattr(full_run, "REAL_PROFILE", "tiny")
    found = runs.run_records([full_run.real_run("train_l1")])
    assert found["confidence"].tolist()[:2] == [0.3, 0]
    assert found["confidence"].isna().tolist() == [False, False, True]
    assert found["correct"].tolist() == [True, False, False]
    assert found["average_probability"].tolist() == [0.12346, 0.5, 0.25]
    assert found["p_1"].fillna(-1).tolist() == [0.5, -1, 0.25]
    assert found["reasoning"].unique().tolist() == ["none"]
    assert found["parameters"].unique().tolist() == [1000]
    assert found["gold"].tolist() == ["C", "B", "E"]  # from their places
    assert found["answer"].fillna("-").tolist() == ["C", "A", "-"]
    (kept / "records.csv").write_text((kept / "records.csv").read_text().replace("True", "False"))
    with pytest.raises(full_run.EvidenceError, match=r"records.csv is not what was published"):
        full_run.real_run("train_l1")
    with pytest.raises(full_run.EvidenceError, match="gone: no such run of real models"):
        full_run.real_run("gone")
