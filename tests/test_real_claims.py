"""What real models say of the claims, and where their tables are kept."""

import json

import pandas as pd
import pytest

from corea.book import claims, full_run, real_claims
from corea.book.claims import Claim, Evidence
from corea.book.real_claims import AGREES, CONTRADICTS, NOT_ASKED, OPEN, read


def claim(**changes):
    rows = {"system": ["L1", "L2"], "baseline": "RLVR", "dataset": ["chains", "facts"]}
    given = {
        "id": "A1",
        "paper": "A",
        "place": ["abstract"],
        "sentence": "It gains.",
        "chapter": "rewards",
        "arms": ["train_l1"],
        "evidence": [Evidence(table="rewards/gaps", rows=rows, at_least=0)],
    }
    return Claim(**given | changes)


def gaps(*rows):
    columns = ["system", "baseline", "dataset", "value", "low", "high", "n_seeds"]
    return {"rewards/gaps": pd.DataFrame(rows, columns=columns)}


@pytest.mark.parametrize(
    ("ends", "word"),
    [
        ([(1, 3)], AGREES),
        ([(1, 3), (0, 2)], AGREES),
        ([(1, 3), (-1, 2)], OPEN),
        ([(1, 3), (-3, -1)], CONTRADICTS),
        ([(float("nan"), float("nan"))], OPEN),
    ],
)
def test_one_seed_is_read_by_its_intervals_over_questions(ends, word):
    rows = [
        (system, "RLVR", "chains", (low + high) / 2, low, high, 1)
        for system, (low, high) in zip(["L1", "L2"], ends, strict=False)
    ]
    found = read(claim(), gaps(*rows))
    assert (found.word, len(found.rows), found.of) == (word, len(ends), 4)
    assert f"({len(ends)} of 4 rows)" in str(found)


def test_rows_that_were_not_made_are_not_missed_and_none_at_all_is_no_reading():
    assert read(claim(), gaps(("L1", "RLVR", "words", 1, 0, 2, 1))) is None
    assert read(claim(), {}) is None
    assert read(claim(), {"rewards/gaps": pd.DataFrame({"system": ["L1"]})}) is None
    assert read(claim(evidence=[], arms=[], cannot_test="nobody knows"), {}) is None


def test_what_a_claim_presupposes_is_asked_first():
    rows = {"system": "L1", "baseline": "SLM", "dataset": "chains"}
    needs = claim(
        requires=[Evidence(table="rewards/gaps", rows=rows, at_least=0)], otherwise="it is worse"
    )
    own, worse = ("L1", "RLVR", "chains", 2, 1, 3, 1), ("L1", "SLM", "chains", -2, -3, -1, 1)
    found = read(needs, gaps(own, worse))
    assert (found.word, str(found)) == (NOT_ASKED, "not asked: it is worse")
    assert read(needs, gaps(own)).word == AGREES


def test_a_row_is_named_by_the_dataset_that_was_asked():
    tables = gaps(("L1", "RLVR", "sums", 2, 1, 3, 1))
    named = {name: real_claims.named_as_in_the_world(table) for name, table in tables.items()}
    assert read(claim(), named).rows[0].label == "L1, sums"


def test_two_rows_with_the_same_labels_are_refused():
    row = ("L1", "RLVR", "chains", 2, 1, 3, 1)
    with pytest.raises(full_run.EvidenceError, match="rewards/gaps: 2 rows have"):
        read(claim(), gaps(row, row))


def test_every_dataset_of_the_suites_stands_in_for_one_of_the_model_world():
    table = pd.DataFrame({"dataset": ["sums", "OOD", "gsm8k", "openbookqa", "openai_moderation"]})
    named = real_claims.named_as_in_the_world(table)
    expected = ["chains", "OOD reasoning", "words", "fact_choices", "messages"]
    assert named["dataset"].tolist() == expected
    assert named["asked"].equals(table["dataset"])
    assert real_claims.named_as_in_the_world(pd.DataFrame({"x": [1]})).equals(
        pd.DataFrame({"x": [1]})
    )


def test_the_ledger_has_a_column_only_where_real_models_were_read():
    decided = {"A1": claims.decide(claim(), gaps(*[
        (system, "RLVR", dataset, 2, 1, 3, 8)
        for system in ("L1", "L2")
        for dataset in ("chains", "facts")
    ]))}  # fmt: skip
    assert "real models" not in claims.page(decided, "Claims.").data
    html = claims.page(decided, "Claims.", {"A1": "open: <b>"}).data
    assert "<th>real models</th>" in html
    assert "open: &lt;b&gt;" in html


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder with one published table of real models."""
    monkeypatch.setattr(full_run, "REAL", tmp_path)
    folder = tmp_path / "rewards"
    folder.mkdir()
    folder.joinpath("gaps.csv").write_text("dataset,value\nsums,1\n")
    told = {
        "profile": full_run.REAL_PROFILE,
        "schema": full_run.SCHEMA,
        "commit": "abc",
        "parameters": {},
        "tables": {"gaps.csv": full_run.digest(folder / "gaps.csv")},
    }
    folder.joinpath(full_run.PROVENANCE).write_text(json.dumps(told))
    return folder


def test_committed_tables_have_the_names_of_the_world_and_their_provenance(kept):
    (name,) = real_claims.committed()
    assert name == "rewards/gaps"
    assert real_claims.committed()[name]["dataset"].tolist() == ["chains"]
    assert full_run.real_facts("rewards")["commit"] == "abc"
    assert full_run.real_facts("other") == {}


def test_a_table_that_was_changed_or_is_of_another_profile_is_refused(kept, monkeypatch):
    kept.joinpath("gaps.csv").write_text("dataset,value\nsums,2\n")
    with pytest.raises(full_run.EvidenceError, match=r"gaps.csv is not what was published"):
        full_run.real_tables()
    monkeypatch.setattr(full_run, "REAL_PROFILE", "other")
    with pytest.raises(full_run.EvidenceError, match="profile is 'desk-full'; expected 'other'"):
        full_run.real_tables()
