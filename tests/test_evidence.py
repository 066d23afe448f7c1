"""What chapters show where no run of the reader's is there, as of a downloaded notebook."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from chapters import execute

from corea.book import compare, display, evidence, full_run

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    path.stem: [
        "".join(cell["source"])
        for cell in json.loads(path.read_text("utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
READERS = {"by_role", "format_records", "named_models", "read_model", "run_records", "run_table"}
TRAINS = {"base_model", "confidence_models", "decision_base", "decision_pretrain"}
TRAINS |= {"decision_train", "pretrain", "train"}
OF_RUNS = {
    name: cells
    for name, cells in SOURCES.items()
    if "evidence" in "".join(cells)
    and name not in TRAINS
    and "full_run.real_run(" not in "".join(cells)  # reads published runs alone
    and any(f"{reader}(" in "".join(cells) for reader in READERS)
}
GUARD = "own_there"


@pytest.fixture
def page(monkeypatch):
    """What a chapter shows from within a block."""
    shown = []
    monkeypatch.setattr(display, "show", lambda part: shown.append(part.data))
    return shown


def test_runs_are_there_if_one_of_their_folders_is(tmp_path, page):
    (tmp_path / "train_l1").mkdir()
    assert evidence.there("sft_or_grpo", tmp_path / "train_l1", tmp_path / "lost")
    assert page == []


def test_a_page_without_runs_says_how_to_get_them(tmp_path, page):
    assert not evidence.there("sft_or_grpo", tmp_path / "train_l1", tmp_path / "train_l2")
    (sentence,) = page
    assert "committed evidence" in sentence
    assert "`make book`" in sentence
    assert sentence.count(tmp_path.name) == 1
    assert not evidence.there("sft_or_grpo")


def test_without_runs_and_without_evidence_there_is_nothing_to_show(tmp_path, page):
    with pytest.raises(full_run.EvidenceError, match=r"no_such_run: nothing is committed.*`make b"):
        evidence.there("no_such_run", tmp_path / "train_l1")
    with pytest.raises(full_run.EvidenceError, match="no_such_run: no table gaps is committed"):
        evidence.shown("no_such_run", "gaps", None)
    assert page == []


def test_the_committed_table_is_shown_with_and_without_an_own_one():
    own = pd.DataFrame({"value": [1.0]})
    committed = full_run.published("sft_or_grpo", "contrasts")
    for mine in (own, None):
        pd.testing.assert_frame_equal(evidence.shown("sft_or_grpo", "contrasts", mine), committed)
    assert evidence.shown("sft_or_grpo", "new", own) is own
    assert list(evidence.all_shown("sft_or_grpo", {})) == ["contrasts", "decisions"]
    assert evidence.all_shown("sft_or_grpo", {"new": own})["new"] is own


def test_what_the_reader_ran_is_folded(page):
    evidence.show_own(display.paragraphs("It is so."))
    (shown,) = page
    assert "<summary" in shown
    assert "Your run" in shown
    assert "It is so." in shown


def test_beside_the_paper_nothing_of_the_reader_is_invented():
    committed = full_run.published("rollout_size", "sizes")
    beside = compare.beside_paper(None, compare.paper_rows(4), metrics=["ece"], committed=committed)
    assert beside["full_run"].notna().all()
    assert beside["value"].isna().all()
    assert set(beside["replicates"]) == {""}
    assert compare.own_columns(beside).empty
    assert "not trained" in compare.show_beside(beside, {"ece": ("ECE", ".2f")}, "ECE.").data
    note = evidence.interval_note("rollout_size", beside, n_resamples=7, seed=3)
    assert "committed full run" in note
    assert "this run" not in note


def test_claims_of_a_chapter_without_runs_are_not_trained():
    shown = evidence.decided("sft_or_grpo", {}).data
    assert shown.count(compare.NOT_TRAINED) == shown.count("<tr") - 1


class _Alone(ast.NodeTransformer):
    """A notebook's code as it runs where no run is there."""

    def visit_If(self, node):
        self.generic_visit(node)
        return node.orelse if self._guards(node.test) else node

    def visit_IfExp(self, node):
        self.generic_visit(node)
        return node.orelse if self._guards(node.test) else node

    @staticmethod
    def _guards(test):
        return any(isinstance(part, ast.Name) and part.id == GUARD for part in ast.walk(test))


def alone(cells):
    return _Alone().visit(ast.parse("\n".join(cells)))


def called(tree):
    """Names of what is called, but for what only is called within a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2]
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield from called(node)


def test_the_chapters_of_runs_are_known():
    assert len(OF_RUNS) >= 16
    assert {"backbones", "sft_or_grpo", "reasoning_swap", "sample_outputs"} <= set(OF_RUNS)


@pytest.mark.parametrize("name", OF_RUNS)
def test_no_run_is_read_that_may_not_be_there(name):
    tree = alone(OF_RUNS[name])
    assert "".join(OF_RUNS[name]).count(f"{GUARD} = ") == 1
    assert not READERS & set(called(tree))
    assert READERS & set(called(ast.parse("\n".join(OF_RUNS[name])))) or name in (
        "reasoning_swap",  # which read them in a function of their own
        "signals_together",
    )


@pytest.mark.parametrize("name", OF_RUNS)
def test_nothing_is_used_that_only_an_own_run_gives(name):
    source = ast.unparse(alone(OF_RUNS[name]))
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    found = subprocess.run(ruff, input=source, text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", ["rollout_size", "sample_outputs", "self_knowledge"])
def test_a_chapter_runs_alone(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    shown = "\n".join(execute(name, {}, with_prose=True))
    assert shown.count("`make book`, in the repository, trains your own.") == 1
    assert "full run laptop-full of " in shown  # where the numbers in the prose are from
    assert ">Your run</summary>" not in shown
    assert list(tmp_path.iterdir()) == []
