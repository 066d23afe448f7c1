import gzip
import json

import numpy as np
import pandas as pd
import pytest

from corea import adapters
from corea.confidence import agreement
from corea.records import (
    Records,
    RecordsError,
    pair,
    read_records,
    records_from_columns,
    select,
    summarize,
    validate,
    write_records,
)

HEADER = (
    "dataset,question_id,system,sample,correct,confidence,prompt_tokens,completion_tokens,answer"
)
ROWS = [
    "d,1,small,0,1,0.9,10,20,x",
    "d,2,small,0,false,,10.0,,",
    'd,3,small,0,True,1e-1,0,5,"a,\nb"',
]


def write_csv(path, *rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_csv_is_read_as_written(tmp_path):
    records = read_records(write_csv(tmp_path / "log.csv", *ROWS))
    table = records.table
    assert table["correct"].tolist() == [True, False, True]
    assert table["confidence"].tolist()[::2] == [0.9, 0.1]
    assert np.isnan(table["confidence"][1])
    assert table["prompt_tokens"].tolist() == [10, 10, 0]
    assert table["completion_tokens"].isna().tolist() == [False, True, False]
    assert table["answer"].isna().tolist() == [False, True, False]
    assert table["answer"][2] == "a,\nb"
    assert "3 rows read" in str(records)
    assert "1 lack a confidence" in str(records)


def test_every_format_gives_the_same_records(tmp_path):
    records = read_records(write_csv(tmp_path / "log.csv", *ROWS))
    zipped = tmp_path / "log.csv.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes()))
    lines = tmp_path / "log.jsonl"
    rows = records.table.astype(object).where(records.table.notna(), None).to_dict("records")
    lines.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    parquet = tmp_path / "deep" / "log.parquet"
    write_records(Records(records.table, "log", {"seed": "7"}), parquet)
    for path in (zipped, lines, parquet):
        pd.testing.assert_frame_equal(read_records(path).table, records.table)
    assert read_records(parquet).provenance == {"seed": "7"}
    assert list(parquet.parent.iterdir()) == [parquet]


def test_extra_columns_are_kept(tmp_path):
    path = write_csv(
        tmp_path / "x.csv",
        "d,1,s,1,0.5,hello",
        header="dataset,question_id,system,correct,confidence,note",
    )
    records = read_records(path)
    assert records.table["note"].tolist() == ["hello"]
    assert records.notes == ("no column sample: every row is taken as sample 0",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "d,1,s,0,1,95,1,1,",
            r"row 1, field confidence: found '95', expected a number in \[0, 1\].*percentage",
        ),
        ("d,1,s,0,1,95%,1,1,", r"field confidence: found '95%'.*percentage"),
        ("d,1,s,0,1,high,1,1,", "field confidence: found 'high'"),
        ("d,1,s,0,1,-0.1,1,1,", "field confidence: found '-0.1'"),
        ("d,1,s,0,1,1e999,1,1,", "field confidence: found '1e999'"),
        ("d,1,s,0,1,٠.٥,1,1,", "field confidence"),
        ("d,1,s,0,1,1_0,1,1,", "field confidence"),
        ("d,1,s,0,2,0.5,1,1,", "field correct: found '2', expected true, false, 0 or 1"),
        ("d,1,s,0,yes,0.5,1,1,", "field correct: found 'yes'"),
        ("d,1,s,0,,0.5,1,1,", "field correct: found ''"),
        ("d,1,s,0,1,0.5,1.5,1,", "field prompt_tokens: found '1.5', expected a whole number"),
        ("d,1,s,0,1,0.5,1,-1,", "field completion_tokens: found '-1'"),
        ("d,1,s,x,1,0.5,1,1,", "field sample: found 'x'"),
        ("d,,s,0,1,0.5,1,1,", "field question_id: found '', expected an identifier"),
        ("d,1,s,0,1,0.5", "row 1: found 6 fields, expected 9"),
        ("d,1,s,0,1,0.5,1,1,,,", "row 1: found 11 fields, expected 9"),
        ('d,1,s,0,1,0.5,1,1,"open', "line 2: not CSV"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(RecordsError, match=message) as error:
        read_records(write_csv(tmp_path / "log.csv", row))
    assert str(error.value).startswith("log.csv: 1 problem(s)")


def test_all_problems_are_counted_and_the_first_shown(tmp_path):
    rows = [f"d,{i},s,0,2,{i + 2},1,1," for i in range(20)]
    with pytest.raises(RecordsError, match="40 problem") as error:
        read_records(write_csv(tmp_path / "log.csv", *rows))
    assert len(error.value.problems) == 40
    assert "... and 30 more" in str(error.value)


def test_repeated_keys_name_both_rows(tmp_path):
    path = write_csv(
        tmp_path / "log.csv", "d,1,s,0,1,0.5,1,1,", "d,2,s,0,1,0.5,1,1,", "d,1,s,0,0,0.7,1,1,"
    )
    with pytest.raises(RecordsError, match=r"row 3: repeats the key of row 1 .*question_id='1'"):
        read_records(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty file: expected a header"),
        ("a.csv", HEADER.encode(), "no rows"),
        ("a.csv", b"dataset,system\nd,s\n", "missing column.s. question_id, correct, confidence; found dataset, system"),
        ("a.csv", b"dataset,dataset\n", "repeated column name"),
        ("a.csv", HEADER.encode() + b"\nd,\xff,s,0,1,0.5,1,1,\n", "not UTF-8 text: found byte 0xff"),
        ("a.csv", "dataset".encode("utf-16"), "not UTF-8"),
        ("a.csv.gz", b"not gzip", "gzip file damaged"),
        ("a.csv.gz", gzip.compress(HEADER.encode() * 99, mtime=0)[:40], "gzip file damaged or truncated"),
        ("a.jsonl", b"", "empty file"),
        ("a.jsonl", b'{"a": 1}\n{"a"', "line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b"[1]", "line 1: found list, expected an object"),
        ("a.parquet", b"PAR1", "not a complete parquet file"),
        ("a.xlsx", b"", "unknown file type; expected .csv"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordsError, match=message) as error:
        read_records(tmp_path / name)
    assert str(error.value).startswith(name)
    assert str(tmp_path) not in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="nothing.csv"):
        read_records("nothing.csv")


@pytest.mark.parametrize(
    ("field", "value"),
    [("confidence", "0.9"), ("confidence", True), ("correct", "true"), ("correct", 0.5), ("correct", None),
     ("prompt_tokens", "7"), ("system", None), ("answer", ["x"])],
)  # fmt: skip
def test_typed_files_are_not_coerced(tmp_path, field, value):
    row = {
        "dataset": "d",
        "question_id": 1,
        "system": "s",
        "sample": 0,
        "correct": True,
        "confidence": 0.5,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {field: value}))
    with pytest.raises(RecordsError, match=f"row 1, field {field}"):
        read_records(tmp_path / "a.jsonl")


def test_json_lines_with_a_field_missing_in_one_row(tmp_path):
    row = {"dataset": "d", "question_id": 1, "system": "s", "correct": True, "confidence": None}
    less = {k: v for k, v in row.items() if k != "confidence"} | {"question_id": 2}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(less))
    with pytest.raises(RecordsError, match=r"row 2: missing field\(s\) confidence"):
        read_records(tmp_path / "a.jsonl")


def test_answers_that_look_missing_are_answers(tmp_path):
    path = write_csv(tmp_path / "log.csv", "d,1,s,0,1,NaN,1,1,None", "d,2,s,0,1,null,1,1,na")
    table = read_records(path).table
    assert table["answer"].tolist() == ["None", "na"]
    assert table["confidence"].isna().all()


def test_validate_rejects_wrong_types():
    table = records_from_columns(
        {
            "dataset": ["d"],
            "question_id": ["1"],
            "system": ["s"],
            "correct": [1],
            "confidence": [1.0],
        },
        source="log",
    ).table
    with pytest.raises(RecordsError, match="field correct: found type int64"):
        validate(table.astype({"correct": "int64"}))
    with pytest.raises(RecordsError, match="missing column"):
        validate(table.drop(columns="system"))
    with pytest.raises(RecordsError, match="no rows"):
        validate(table.iloc[:0])


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    records = read_records(write_csv(tmp_path / "log.csv", *ROWS))
    path = tmp_path / "log.parquet"
    write_records(records, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pyarrow.parquet.write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_records(records, path)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="written as .parquet"):
        write_records(records, tmp_path / "log.csv")


def two_systems(large_questions=("1", "2")):
    ids = ["1", "2", *large_questions]
    n = len(large_questions)
    return records_from_columns(
        {
            "dataset": ["d"] * (2 + n),
            "question_id": ids,
            "system": ["small"] * 2 + ["large"] * n,
            "correct": [1, 0] + [1] * n,
            "confidence": [0.9, None] + [None] * n,
            "prompt_tokens": [1] * 2 + [2] * n,
        },
        source="log",
    ).table


def test_pair_matches_by_question_not_by_order():
    paired = pair(two_systems(("2", "1")), "small", "large")
    assert paired["question_id"].tolist() == ["1", "2"]
    assert paired["small_correct"].tolist() == [True, False]
    assert paired["small_prompt_tokens"].tolist() == [1, 1]
    assert paired["large_prompt_tokens"].tolist() == [2, 2]


def test_pair_refuses_different_questions():
    with pytest.raises(
        RecordsError, match="1 row.s. of 'small' have no counterpart in 'large'.*question_id='2'"
    ):
        pair(two_systems(("1",)), "small", "large")
    with pytest.raises(RecordsError, match="of 'large' have no counterpart in 'small'"):
        pair(two_systems(("1", "2", "3")), "small", "large")
    with pytest.raises(
        ValueError, match="no system 'x' among the records; there are 'small', 'large'"
    ):
        pair(two_systems(), "x", "large")


def test_summary_and_selection():
    table = two_systems()
    summary = summarize(table).set_index("system")
    assert summary.loc["small", "pass_at_1"] == 0.5
    assert summary.loc["small", "confidence_output_ratio"] == 0.5
    assert summary.loc["large", "distinct_confidences"] == 0
    assert len(select(table, dataset="d", system="small")) == 2
    with pytest.raises(ValueError, match="no dataset 'e'"):
        select(table, dataset="e")


# --- the shipped tables: counts and accuracies as their sources state them -----------------


def test_rlcr_records():
    records = adapters.rlcr()
    assert len(records.table) == 8605
    assert records.n_without_confidence == 0
    counts = records.table.groupby(["dataset", "system"]).size().unstack()
    assert (counts.loc["commonsenseqa"] == 1221).all()
    assert (counts.loc["math-500"] == 500).all()
    assert set(counts.columns) == {"Base", "RLVR", "RLVR-Classifier", "Answer-Prob", "RLCR"}


def test_routellm_records():
    table = adapters.routellm().table
    rates = table.groupby(["dataset", "system"])["correct"].mean().mul(100).round(2)
    assert rates.loc["gsm8k"].tolist() == [85.67, 63.84]
    assert rates.loc["mmlu"].tolist() == [80.58, 68.08]


def test_mmlu_pro_records():
    records = adapters.mmlu_pro(systems=["gemini-1.5-pro-002", "mathstral-7B"])
    table = records.table
    assert len(table) == 2 * 12032 - 12
    assert "12 cell(s) have no prediction" in str(records)
    assert "8 record(s) hold no answer" in str(records)
    unanswered = table["answer"].isna()
    assert unanswered.sum() == 8
    assert not table.loc[unanswered, "correct"].any()
    assert (table["correct"] == (table["answer"] == table["gold"])).all()
    with pytest.raises(ValueError, match=r"no model \['gpt'\]"):
        adapters.mmlu_pro(systems=["gpt"])


def test_adapters_name_what_is_wrong(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(RecordsError, match="a.csv: .*\n.*missing column.s. dataset, idx"):
        adapters.rlcr(tmp_path / "a.csv")
    (tmp_path / "b.csv.gz").write_bytes(
        adapters.SHIPPED.joinpath("rlcr_confidence.csv.gz").read_bytes()[:5000]
    )
    with pytest.raises(RecordsError, match="not a complete CSV file"):
        adapters.rlcr(tmp_path / "b.csv.gz")


def test_adapters_accept_no_broken_row(tmp_path):
    header = "benchmark,subject,idx,mixtral_8x7b_correct,gpt4_1106_correct,listed_contaminated"
    (tmp_path / "a.csv").write_text(f"{header}\ngsm8k,,0,1,1\n")
    with pytest.raises(RecordsError, match="row 1: found 5 fields, expected 6"):
        adapters.routellm(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(f"{header}\ngsm8k,\xff,0,1,1,0\n".encode("latin-1"))
    with pytest.raises(RecordsError, match="not UTF-8"):
        adapters.routellm(tmp_path / "b.csv")


# --- agreement ------------------------------------------------------------------------------


def votes(*answers, gold="B"):
    n = len(answers)
    return pd.DataFrame(
        {
            "dataset": "d", "question_id": "1", "system": [f"m{i}" for i in range(n)], "sample": 0,
            "correct": [a == gold for a in answers], "confidence": np.nan,
            "prompt_tokens": pd.array([3] * n, "Int64"), "answer": list(answers), "gold": gold,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "winner", "confidence"),
    [
        (("A", "B", "B"), "B", 2 / 3),
        (("A", "B"), "A", 1 / 2),  # a tie goes to the system named first
        (("C", "A", "B", "A"), "A", 2 / 4),
        ((None, "B", None), "B", 1 / 3),  # no answer is no vote, but the system was asked
        ((None, None), None, 0.0),
    ],
)
def test_agreement(answers, winner, confidence):
    table = votes(*answers)
    row = agreement(table, list(table["system"]), name="vote").iloc[0]
    assert (row["answer"] if pd.notna(row["answer"]) else None) == winner
    assert row["confidence"] == pytest.approx(confidence)
    assert row["correct"] == (winner == "B")
    assert row["prompt_tokens"] == 3 * len(answers)


def test_agreement_makes_valid_records():
    table = votes("A", "B", "B")
    validate(agreement(table, ["m0", "m1", "m2"], name="vote"))


def test_agreement_refuses():
    table = votes("A", "B", "B")
    with pytest.raises(ValueError, match="two or more different systems"):
        agreement(table, ["m0", "m0"], name="vote")
    with pytest.raises(ValueError, match="no system 'x'"):
        agreement(table, ["m0", "x"], name="vote")
    with pytest.raises(RecordsError, match="needs the column"):
        agreement(table.drop(columns="gold"), ["m0", "m1"], name="vote")
    other = table.assign(question_id=["1", "2", "1"])
    with pytest.raises(RecordsError, match="'m1' and 'm0' were not asked the same questions"):
        agreement(other, ["m0", "m1"], name="vote")
