import csv
import gzip
import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from corea import adapters
from corea.confidence import agreement, support
from corea.records import (
    KEY,
    MISSING_WORDS,
    SUFFIXES,
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


NAMES = "dataset,question_id,system,correct,confidence"
ROW = {"dataset": "d", "question_id": 1, "system": "s", "correct": True, "confidence": 0.5}


def write_csv(path, *rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def write_lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def one_row():
    return records_from_columns({name: [value] for name, value in ROW.items()}, source="x").table


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
    records = read_records(
        write_csv(tmp_path / "x.csv", "d,1,s,1,0.5,hello", header=NAMES + ",note")
    )
    assert records.table["note"].tolist() == ["hello"]
    assert records.notes == ("no column sample: every row is taken as sample 0",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("d,1,s,0,1,95,1,1,", r"row 1, field confidence: found '95', expected a number in \[0, 1\].*percentage"),
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
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(RecordsError, match=message) as error:
        read_records(write_csv(tmp_path / "log.csv", row))
    assert str(error.value).startswith("log.csv: 1 problem(s)")


def test_all_problems_are_counted_and_repeated_keys_name_both_rows(tmp_path):
    rows = [f"d,{i},s,0,2,{i + 2},1,1," for i in range(20)]
    with pytest.raises(RecordsError, match="40 problem") as error:
        read_records(write_csv(tmp_path / "log.csv", *rows))
    assert len(error.value.problems) == 40
    assert "... and 30 more" in str(error.value)
    rows = "d,1,s,0,1,0.5,1,1,", "d,2,s,0,1,0.5,1,1,", "d,1,s,0,0,0.7,1,1,"
    with pytest.raises(RecordsError, match=r"row 3: repeats the key of row 1 .*question_id='1'"):
        read_records(write_csv(tmp_path / "log.csv", *rows))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty file: expected a header"),
        ("a.csv", HEADER.encode(), "no rows"),
        ("a.csv", b"dataset,system\nd,s\n", "missing column.s. question_id, correct, confidence; found dataset, system"),
        ("a.csv", b"dataset,dataset\n", "repeated column name"),
        ("a.csv", HEADER.encode() + b"\nd,\xff,s,0,1,0.5,1,1,\n", "not UTF-8 text: found byte 0xff"),
        ("a.csv", HEADER.encode("utf-16"), "not UTF-8 text but UTF-16.*iconv -f UTF-16"),
        ("a.csv", HEADER.encode("utf-16-be"), "not UTF-8 text but UTF-16"),
        ("a.csv.gz", b"not gzip", "gzip file damaged"),
        ("a.csv.gz", gzip.compress(HEADER.encode() * 99, mtime=0)[:40], "gzip file damaged or truncated"),
        ("a.jsonl", b"", "empty file"),
        ("a.jsonl", b'{"a": 1}\n{"a"', "line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: nested deeper than 32"),
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


# --- records as people have them ----------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "right"),
    [("1.0", True), ("0.0", False), ("1.00", True), ("1", True), ("0", False), (" TRUE ", True),
     ("False", False), ("1e0", True), ("-0.0", False),
     ("0.5", None), ("1.01", None), ("2.0", None), ("yes", None), ("", None), ("nan", None),
     ("na", None)],
)  # fmt: skip
def test_correct_as_text(tmp_path, cell, right):
    path = write_csv(tmp_path / "a.csv", f"d,1,s,{cell},0.5", header=NAMES)
    if right is None:
        with pytest.raises(RecordsError, match=f"row 1, field correct: found '{cell}'"):
            read_records(path)
    else:
        assert read_records(path).table["correct"].tolist() == [right]


@pytest.mark.parametrize("word", [*MISSING_WORDS, "N/A", "NaN", " None ", "NULL"])
@pytest.mark.parametrize("field", ["confidence", "prompt_tokens"])
def test_words_for_missing_are_missing_and_counted(tmp_path, field, word):
    row = ROW | {"prompt_tokens": 1, field: word}
    fields = ",".join(str(int(v) if v is True else v) for v in row.values())
    text = write_csv(tmp_path / "a.csv", fields, header=",".join(row))
    for path in (text, write_lines(tmp_path / "a.jsonl", row)):
        records = read_records(path)
        assert records.table[field].isna().all()
        assert f"{field}: 1 cell(s) that say {word.strip()!r} are taken as missing" in records.notes


@pytest.mark.parametrize("field", ["confidence", "completion_tokens"])
@pytest.mark.parametrize("word", ["no", "unknown", "?", "--", "0,5", "nan%"])
def test_other_words_are_refused_with_those_that_are_missing(tmp_path, field, word):
    row = ROW | {"completion_tokens": 1, field: word}
    with pytest.raises(RecordsError, match=f"field {field}: found .*one of nan, null, none, na,"):
        read_records(write_lines(tmp_path / "a.jsonl", row))


def test_nothing_is_no_word(tmp_path):
    lines = [ROW | {"confidence": None}, '{"dataset": "d", "question_id": 2, "system": "s", '
             '"correct": 1, "confidence": NaN}', ROW | {"question_id": 3, "confidence": ""}]  # fmt: skip
    records = read_records(write_lines(tmp_path / "a.jsonl", *lines))
    assert records.table["confidence"].isna().all()
    assert not any("taken as missing" in note for note in records.notes)


@pytest.mark.parametrize(
    ("header", "mend"),
    [
        ("Dataset,question_id,system,correct,confidence", "'Dataset' for dataset"),
        ("dataset, question_id,system,correct,confidence", "' question_id' for question_id"),
        ("dataset,Question ID,system,correct,confidence", "'Question ID' for question_id"),
        ("dataset,question-id,system,correct,confidence", "'question-id' for question_id"),
        ("dataset,qid,system,correct,confidence", "'qid' for question_id"),
        ("task,id,model,is_correct,conf", "'task' for dataset, 'id' for question_id, "
         "'model' for system, 'is_correct' for correct, 'conf' for confidence"),
        ("dataset,question_id,system,corrects,confidence", "'corrects' for correct"),
    ],
)  # fmt: skip
def test_other_names_of_columns_are_offered_and_read(tmp_path, header, mend):
    path = write_csv(tmp_path / "a.csv", "d,1,s,1,0.5", header=header)
    with pytest.raises(RecordsError, match="did you mean .*names=") as error:
        read_records(path)
    assert mend in str(error.value)
    names = dict(zip(header.split(","), NAMES.split(","), strict=True))
    assert read_records(path, names=names).table["correct"].tolist() == [True]


def test_names_are_those_of_the_file(tmp_path):
    path = write_csv(tmp_path / "a.csv", "d,1,s,1,0.5,1", header=NAMES + ",acc")
    with pytest.raises(RecordsError, match="no column 'x'; found 'dataset', 'question_id'"):
        read_records(path, names={"x": "correct"})
    with pytest.raises(RecordsError, match="repeated column name in the header: 'correct'"):
        read_records(path, names={"acc": "correct"})
    with pytest.raises(RecordsError, match="missing column.s. dataset, question_id") as error:
        read_records(write_csv(path, "d", header="x{" * 9000))
    assert len(str(error.value)) < 1000


def test_an_optional_column_under_another_name_is_said(tmp_path):
    path = write_csv(
        tmp_path / "a.csv", "d,1,s,1,0.5,9,9", header=NAMES + ",Prompt_Tokens,output_tokens"
    )
    records = read_records(path)
    assert records.table["Prompt_Tokens"].tolist() == ["9"]
    notes = "\n".join(records.notes)
    assert "'Prompt_Tokens' is kept as it is; did you mean prompt_tokens?" in notes
    assert "'output_tokens' is kept as it is; did you mean completion_tokens?" in notes


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_another_separator_is_named_with_its_mend(tmp_path, separator, quote):
    lines = [NAMES, "d,1,s,1,0.5"]
    cells = [separator.join(f"{quote}{c}{quote}" for c in line.split(",")) for line in lines]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(cells))
    with pytest.raises(RecordsError) as error:
        read_records(path)
    assert f"read_records(path, separator={separator!r})" in str(error.value)
    assert read_records(path, separator=separator).table["confidence"].tolist() == [0.5]
    # the command that it offers
    command = str(error.value).split("commas: ")[1]
    command = command.replace("FILE", "a.csv").replace("NEW.csv", "b.csv")
    command = command.replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, timeout=60)
    assert read_records(tmp_path / "b.csv").table["confidence"].tolist() == [0.5]


def test_tabs_are_the_separator_of_tsv(tmp_path):
    text = NAMES.replace(",", "\t") + '\nd\t1\t"a\nb,c"\t1\t0.5\n'
    for name in ("a.tsv", "A.TSV"):
        (tmp_path / name).write_text(text)
        assert read_records(tmp_path / name).table["system"].tolist() == ["a\nb,c"]
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(text.encode()))
    assert read_records(tmp_path / "a.tsv.gz").table["correct"].tolist() == [True]
    write_csv(tmp_path / "a.tsv", "d,1,s,1,0.5", header=NAMES)
    with pytest.raises(RecordsError, match="found ',' between the column names, expected a tab"):
        read_records(tmp_path / "a.tsv")
    with pytest.raises(ValueError, match="separator is '::'; expected one character"):
        read_records(tmp_path / "a.tsv", separator="::")
    write_csv(tmp_path / "a.csv", "d;1;s;1;0,5", header=NAMES.replace(",", ";"))
    with pytest.raises(RecordsError, match="found '0,5'.*comma for a decimal point"):
        read_records(tmp_path / "a.csv", separator=";")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_byte_order_marks_and_quoted_lines(tmp_path, end, mark):
    text = f'{mark}{NAMES},answer{end}d,1,s,1,0.5,"a{end}b ""c"""{end}{end}d,2,s,0,,x'
    (tmp_path / "a.csv").write_bytes(text.encode())
    table = read_records(tmp_path / "a.csv").table
    assert table["answer"].tolist() == [f'a{end}b "c"', "x"]
    rows = end.join(json.dumps(ROW | {"question_id": i}) for i in range(2))
    (tmp_path / "a.jsonl").write_bytes((mark + rows + end).encode())
    assert len(read_records(tmp_path / "a.jsonl").table) == 2


@pytest.mark.parametrize("name", ["logs", "logs.csv", "logs.parquet"])
def test_a_directory_is_called_one_and_a_missing_file_missing(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        read_records(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(RecordsError, match="is a directory; expected a file"):
        read_records(tmp_path / name)


# --- hostile files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(ROW)[:-1] + ', "correct": false}', "line 1: found the key 'correct' twice"),
        (json.dumps(ROW)[:-1] + ', "x": {"a": 1, "a": 2}}', "line 1: found the key 'a' twice"),
        ('{"x":' * 40 + "1" + "}" * 40, "line 1: nested deeper than 32"),
        ('{"x": ' + "[" * 500 + "]" * 500 + "}", "line 1: nested deeper than 32"),
        ('{"x": ' + "[" * 200_000, "line 1: nested deeper than 32"),
        ('{"x": ' + "9" * 5000 + "}", "line 1: not JSON .*digits"),
        (ROW | {"prompt_tokens": 2**63}, "row 1, field prompt_tokens: found 9223372036854775808"),
        (ROW | {"prompt_tokens": 2**53 + 1}, "field prompt_tokens: .*expected a whole .* 2..53"),
        (ROW | {"prompt_tokens": 10**30}, "row 1, field prompt_tokens: found 1000000"),
        (ROW | {"prompt_tokens": 1e300}, "row 1, field prompt_tokens"),
        (ROW | {"sample": 10**30}, "row 1, field sample"),
        (ROW | {"confidence": 10**400}, "row 1, field confidence"),
        (ROW | {"correct": 10**30}, "row 1, field correct"),
        (ROW | {"confidence": float("inf")}, "row 1, field confidence: found inf"),
        (ROW | {"prompt_tokens": float("-inf")}, "row 1, field prompt_tokens: found -inf"),
        (ROW | {"correct": float("nan")}, "row 1, field correct: found nan"),
        (ROW | {"system": "\ud800"}, r"row 1, field system: found '.ud800', expected a name"),
        (ROW | {"note": ["\udfff"]}, "row 1, field note: .*without lone surrogates"),
        (ROW | {"\ud800": 1}, r"row 1, field '.ud800'"),
        (ROW | {"confidence": {"value": 0.5}}, "row 1, field confidence: found {'value': 0.5}"),
        (ROW | {"dataset": ["x" * 9999] * 99}, r"row 1, field dataset: found \['xxx"),
    ],
    ids=range(21),
)  # fmt: skip
def test_hostile_json_is_a_named_line_or_cell(tmp_path, line, message):
    with pytest.raises(RecordsError, match=message) as error:
        read_records(write_lines(tmp_path / "a.jsonl", line))
    assert len(str(error.value)) < 1000


def test_a_small_file_that_holds_very_much_is_refused(tmp_path, monkeypatch):
    table = one_row()
    write_records(Records(table.assign(answer="x" * 9999), "x"), tmp_path / "a.parquet")
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 9999), pa.array(["x" * 99]))
    pq.write_table(pa.table({"answer": long}), tmp_path / "b.parquet")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a," * 9999))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n" * 9999))
    for name in ("a.csv.gz", "a.jsonl.gz", "a.parquet", "b.parquet"):
        with pytest.raises(RecordsError, match=r"more than 9,000 bytes \(max_bytes\)"):
            read_records(tmp_path / name, max_bytes=9000)
    assert (tmp_path / "b.parquet").stat().st_size < 9000
    monkeypatch.setattr("corea.records.MAX_ROWS", 2)
    write_lines(tmp_path / "a.jsonl", *[ROW | {"question_id": i} for i in range(3)])
    write_csv(tmp_path / "a.csv", *[f"d,{i},s,1,0.5" for i in range(3)], header=NAMES)
    pq.write_table(pa.table({"answer": [1, 2, 3]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        with pytest.raises(RecordsError, match="more than 2 rows, the limit"):
            read_records(tmp_path / name)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), "repeated column"),
        (pa.table({"a": pa.array([b"\xff"]).view(pa.string())}), "not a complete parquet file"),
        (pa.table({"a": [1]}, metadata={"corea.provenance": "{"}), "provenance: not JSON"),
        (pa.table({"a": [1]}, metadata={"corea.provenance": "[]"}), "provenance: found list"),
        (pa.table({"a": [1]}, metadata={"corea.provenance": b"\xff"}), "provenance: "),
    ],
    ids=range(5),
)
def test_hostile_parquet(tmp_path, table, message):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(RecordsError, match=message):
        read_records(tmp_path / "a.parquet")


def test_what_parquet_cannot_hold_is_said(tmp_path):
    table = one_row()
    with pytest.raises(RecordsError, match="x: .*\n.*cannot be written as parquet"):
        write_records(Records(table.assign(note=[10**30]), "x"), tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


# --- what looks odd -------------------------------------------------------------------------


def odd_notes(tmp_path, change=lambda table: table, n=30):
    """Notes on records of 'a' and 'b', on n questions each, that ``change`` made odd."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "dataset": "d", "question_id": [*range(n)] * 2, "system": ["a"] * n + ["b"] * n,
            "correct": rng.random(2 * n) < 0.5, "confidence": rng.integers(0, 11, 2 * n) / 10,
            "prompt_tokens": rng.integers(0, 99, 2 * n),
        }
    )  # fmt: skip
    change(table).to_csv(tmp_path / "a.csv", index=False)
    return [note for note in read_records(tmp_path / "a.csv").notes if note.startswith("odd: ")]


def repeat(table):
    copied = table.loc[table["system"] == "a", ["correct", "confidence"]].to_numpy()
    table.loc[table["system"] == "b", ["correct", "confidence"]] = copied
    return table.sample(frac=1, random_state=0)


def only_b(column, values):
    def change(table):
        rows = table["system"] == "b"
        table.loc[rows, column] = values(table[rows])
        return table

    return change


def twice(table):
    """Every question of 'b' again, as where a harness writes it once a filter."""
    again = table[table["system"] == "b"]
    return pd.concat([table.assign(sample=0), again.assign(sample=1)])


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda t: twice(t.assign(logprob=-1.0)), "all samples of a question are the same in the rows of 1 system(s): 'b'"),
        (lambda t: only_b("sum_logprobs", lambda _: 0.0)(t.assign(sum_logprobs=-1.0)), "sum_logprobs is exactly 0, as if there were none, in the rows of 1 system(s): 'b'"),
        (repeat, "correct and confidence are the same in every row of 1 pair(s) of systems: 'a' and 'b' on 'd'"),
        (only_b("prompt_tokens", lambda _: 7), "prompt_tokens never changes in the rows of 1 system(s): 'b'"),
        (only_b("confidence", lambda _: 1.0), "confidence never changes in the rows of 1 system(s): 'b'"),
        (only_b("confidence", lambda t: t["correct"] * 1.0), "confidence is only ever 0 or 1 in the rows of 1 system(s): 'b'"),
    ],
)  # fmt: skip
def test_odd_columns_are_noted_not_refused(tmp_path, change, note):
    assert odd_notes(tmp_path, change) == ["odd: " + note]
    assert odd_notes(tmp_path, change, n=19) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table,
        only_b("confidence", lambda _: np.nan),
        # two systems that are always right and state nothing agree, and that is all
        lambda table: table.assign(correct=True, confidence=np.nan),
    ],
)
def test_what_is_not_odd(tmp_path, change):
    assert odd_notes(tmp_path, change) == []


def test_notes_on_300_systems_are_short_and_quick(tmp_path):
    n = 300 * 25
    table = pd.DataFrame(
        {
            "dataset": "d", "question_id": [str(i % 25) for i in range(n)],
            "system": [f"{'s' * 2000}{i // 25}" for i in range(n)], "sample": 0,
            "correct": [i % 25 % 2 == 0 for i in range(n)], "confidence": 0.5,
            "prompt_tokens": pd.array([1] * n, "Int64"),
        }
    )  # fmt: skip
    write_records(Records(table, "many"), tmp_path / "a.parquet")
    start = time.process_time()
    said = str(read_records(tmp_path / "a.parquet"))
    assert "299 pair(s) of systems" in said
    assert len(said) < 5000
    assert time.process_time() - start < 10


# --- any table reads back -------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
CELLS = {
    "dataset": TEXT,
    "question_id": TEXT,
    "system": TEXT,
    "sample": st.integers(0, 2**53),
    "correct": st.booleans(),
    "confidence": st.none() | st.floats(0, 1),
    "prompt_tokens": st.none() | st.integers(0, 2**53),
    "answer": st.none() | TEXT,
}


@given(
    st.lists(st.fixed_dictionaries(CELLS), min_size=1, max_size=4,
             unique_by=lambda r: tuple(r[k] for k in KEY)),
    st.randoms(use_true_random=False),
)  # fmt: skip
@settings(
    max_examples=30, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
def test_any_table_reads_back_from_every_format(tmp_path, rows, random):
    columns = {name: [row[name] for row in rows] for name in CELLS}
    expected = records_from_columns(columns, source="x").table
    paths = [tmp_path / f"a{end}" for end in SUFFIXES]
    for path in paths:
        kind = path.name.removesuffix(".gz")
        opened = gzip.open if path.suffix == ".gz" else open
        if kind.endswith(".parquet"):
            write_records(Records(expected, "x"), path)
            continue
        with opened(path, "wt", encoding="utf-8", newline="") as stream:
            if kind.endswith(".jsonl"):
                stream.writelines(json.dumps(row) + random.choice(["\n", "\r\n"]) for row in rows)
            else:
                delimiter = "\t" if kind.endswith(".tsv") else ","
                writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
    for path in paths:
        pd.testing.assert_frame_equal(read_records(path).table, expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [("confidence", "0.9"), ("confidence", True), ("correct", "true"), ("correct", 0.5), ("correct", None),
     ("prompt_tokens", "7"), ("system", None), ("answer", ["x"])],
)  # fmt: skip
def test_typed_files_are_not_coerced(tmp_path, field, value):
    path = write_lines(tmp_path / "a.jsonl", ROW | {field: value})
    with pytest.raises(RecordsError, match=f"row 1, field {field}"):
        read_records(path)


def test_rows_of_json_lines(tmp_path):
    less = {k: v for k, v in ROW.items() if k != "confidence"} | {"question_id": 2}
    with pytest.raises(RecordsError, match=r"row 2: missing field\(s\) confidence"):
        read_records(write_lines(tmp_path / "a.jsonl", ROW, less))
    large = ROW | {"prompt_tokens": 2**53 - 1}  # exact
    table = read_records(write_lines(tmp_path / "a.jsonl", large)).table
    assert table["prompt_tokens"].tolist() == [2**53 - 1]


def test_answers_that_look_missing_are_answers(tmp_path):
    path = write_csv(tmp_path / "log.csv", "d,1,s,0,1,NaN,1,1,None", "d,2,s,0,1,null,1,1,na")
    table = read_records(path).table
    assert table["answer"].tolist() == ["None", "na"]
    assert table["confidence"].isna().all()


def test_validate_rejects_wrong_types():
    table = one_row()
    for wrong, message in (
        (table.astype({"correct": "int64"}), "field correct: found type int64"),
        (table.drop(columns="system"), "missing column"),
        (table.iloc[:0], "no rows"),
    ):
        with pytest.raises(RecordsError, match=message):
            validate(wrong)


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


@pytest.mark.parametrize(
    ("questions", "small", "error", "message"),
    [
        (("1",), "small", RecordsError, "1 row.s. of 'small' have no counterpart in 'large'.*question_id='2'"),
        (("1", "2", "3"), "small", RecordsError, "of 'large' have no counterpart in 'small'"),
        (("1", "2"), "x", ValueError, "no system 'x' among the records; there are 'small', 'large'"),
    ],
)  # fmt: skip
def test_pair_refuses_different_questions(questions, small, error, message):
    with pytest.raises(error, match=message):
        pair(two_systems(questions), small, "large")


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
    assert records.table["confidence"].notna().all()
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


def test_rlcr_gpqa_records():
    table = adapters.rlcr(adapters.RLCR_GPQA).table
    assert len(table) == 2240
    assert table["confidence"].notna().all()
    assert (table.groupby("system")["question_id"].nunique() == 448).all()
    right = table.groupby("system")["correct"].sum()
    assert right.to_dict() == {
        "Answer-Prob": 177, "Base": 177, "RLCR": 186, "RLVR": 177, "RLVR-Classifier": 177
    }  # fmt: skip


@pytest.fixture(scope="module")
def hallmark():
    return adapters.hallmark()


def test_hallmark_records(hallmark):
    table = hallmark.table
    assert len(table) == 6000
    assert (table.groupby("system")["question_id"].nunique() == 500).all()
    gold = table.drop_duplicates("question_id")["gold"].value_counts().to_dict()
    assert gold == {"HALLUCINATED": 300, "VALID": 200}
    right = table.groupby("system")["correct"].mean()
    assert right.round(3).to_dict() == {
        "Claude Opus 4.7": 0.718, "Claude Sonnet 4.6": 0.656, "DeepSeek-R1": 0.086,
        "DeepSeek-V3.2": 0.606, "GPT-5.1": 0.622, "GPT-5.4": 0.634, "Gemini 2.5 Flash": 0.608,
        "Gemini 2.5 Pro": 0.64, "Llama 4 Maverick": 0.606, "Mistral Large": 0.62,
        "Qwen3-235B": 0.6, "Qwen3-VL-235B": 0.61,
    }  # fmt: skip
    assert round(select(table, system="GPT-5.4")["confidence"].mean(), 2) == 0.96


def test_hallmark_keeps_what_no_model_stated_apart(hallmark):
    silent = hallmark.table["answer"].isna()
    assert (silent == hallmark.table["confidence"].isna()).all()
    assert hallmark.table.loc[silent, "system"].value_counts().to_dict() == {
        "DeepSeek-R1": 432, "Gemini 2.5 Flash": 6, "Gemini 2.5 Pro": 2, "Claude Opus 4.7": 1,
        "Claude Sonnet 4.6": 1,
    }  # fmt: skip
    unsure = hallmark.table["answer"] == "UNCERTAIN"
    assert unsure.sum() == 57
    assert not hallmark.table.loc[unsure | silent, "correct"].any()
    assert "442 record(s) hold no answer" in str(hallmark)
    assert "57 answer(s) are UNCERTAIN and count as wrong" in str(hallmark)


def test_the_example_is_of_hallmark(hallmark):
    example = adapters.example()
    asked = ["GPT-5.1", "Claude Opus 4.7"]
    assert list(example.table["system"].unique()) == asked
    for system in asked:
        ours, theirs = (
            select(table, system=system).set_index("question_id")[["correct", "confidence", "gold"]]
            for table in (example.table, hallmark.table)
        )
        pd.testing.assert_frame_equal(ours, theirs)


def test_zeroeval_records():
    records = adapters.zeroeval()
    table = records.table
    assert len(table) == 88_090
    by_dataset = table.groupby("dataset")
    assert by_dataset["system"].nunique().to_dict() == {"gsm8k": 44, "math_level5": 43}
    assert by_dataset["question_id"].nunique().to_dict() == {"gsm8k": 1319, "math_level5": 721}
    assert (table["correct"] == (table["answer"] == table["gold"])).all()
    assert table[["prompt_tokens", "completion_tokens"]].notna().all(axis=None)
    # every model reads the same prompt, counted by one tokenizer
    prompts = table.groupby(["dataset", "question_id"])["prompt_tokens"]
    assert (prompts.min() == prompts.max()).all()
    for partial in (
        "gemini-1.5-flash-exp-0827 answered 681 of the 1,319 questions of gsm8k",
        "Meta-Llama-3.1-405B-Instruct@hyperbolic answered 706 of the 721",
        "Meta-Llama-3.1-70B-Instruct@hyperbolic answered 425 of the 721",
    ):
        assert partial in str(records)
    assert len(records.notes) == 4
    models = adapters.zeroeval_models()
    assert set(models.index) == set(table["system"])
    right = 100 * table.groupby(["dataset", "system"])["correct"].mean()
    off = {
        name: right[name].sub(models[f"published_{name}"].dropna(), fill_value=None).abs().dropna()
        for name in ("gsm8k", "math_level5")
    }
    assert {name: len(gap) for name, gap in off.items()} == {"gsm8k": 44, "math_level5": 43}
    assert {name: (gap <= 1).sum() for name, gap in off.items()} == {"gsm8k": 34, "math_level5": 35}
    assert pd.concat(off).median() < 0.3
    papers = [f"Qwen2.5-{size}-Instruct" for size in ("7B", "32B", "72B")]
    assert off["math_level5"][papers].max() < 0.6


def test_zeroeval_models_have_a_size_or_none():
    models = adapters.zeroeval_models()
    known = models["billions"].notna()
    assert (known == models["model_page"].notna()).all()
    assert known.sum() == 27
    assert models.loc[known, "billions"].between(2, 406).all()
    # the size in the name is the size in the table, rounded as their makers round it
    named = (
        models[known]
        .index.to_series()
        .str.extract(r"-(\d+)[bB](?:-|@|$)")[0]
        .dropna()
        .astype(float)
    )
    assert len(named) > 20
    assert ((models.loc[named.index, "billions"] - named).abs() / named < 0.31).all()


def test_what_two_chapters_read_is_written_reproducibly():
    for name in ("hallmark_stated_confidence", "rlcr_gpqa", "zeroeval"):
        head = adapters.SHIPPED.joinpath(f"{name}.csv.gz").read_bytes()[:10]
        assert head[3:8] == bytes(5), "no file name and no time in the header"
    assert adapters.SHIPPED.joinpath("zeroeval.csv.gz").stat().st_size < 600_000


def test_zeroeval_reads_some_systems():
    records = adapters.zeroeval(systems=["Qwen2.5-7B-Instruct"])
    assert len(records.table) == 721
    assert records.notes == ("20 record(s) hold no answer and count as wrong",)
    with pytest.raises(ValueError, match=r"no model \['gpt'\]"):
        adapters.zeroeval(systems=["gpt"])


JUDGED = "dataset,question_id,system,answer,gold,confidence,seconds\n"
COUNTED = "dataset,question_id,system,correct,answer_class,prompt_tokens,completion_tokens\n"
ROUTED = "benchmark,subject,idx,mixtral_8x7b_correct,gpt4_1106_correct,listed_contaminated\n"
CUT = adapters.SHIPPED.joinpath("rlcr_confidence.csv.gz").read_bytes()[:5000]


@pytest.mark.parametrize(
    ("adapter", "name", "content", "message"),
    [
        (adapters.rlcr, "a.csv", b"x,y\n1,2\n", "a.csv: .*\n.*missing column.s. dataset, idx"),
        (adapters.rlcr, "a.csv.gz", CUT, "not a complete CSV file"),
        (adapters.routellm, "a.csv", (ROUTED + "gsm8k,,0,1,1\n").encode(), "row 1: found 5 fields, expected 6"),
        (adapters.routellm, "a.csv", (ROUTED + "gsm8k,\xff,0,1,1,0\n").encode("latin-1"), "not UTF-8"),
        (adapters.hallmark, "a.csv", (JUDGED + "d,1,s,VALID,REAL,0.9,1\n").encode(), "row 1, field gold: found 'REAL', expected VALID or HALLUCINATED"),
        (adapters.hallmark, "a.csv", (JUDGED + "d,1,s,Maybe,VALID,0.9,1\n").encode(), "row 1, field answer: found 'Maybe'"),
        (adapters.hallmark, "a.csv", (JUDGED + "d,1,s,VALID,VALID,0.9,1\nd,2,s,VALID,VALID,,1\n").encode(), "row 2, fields answer and confidence: found 'VALID' and '', expected both or neither"),
        (adapters.hallmark, "a.csv", (JUDGED + "d,1,s,,VALID,0.5,1\n").encode(), "row 1, fields answer and confidence"),
        (adapters.hallmark, "a.csv", (JUDGED + "d,1,s,VALID,VALID,95,1\n").encode(), "row 1, field confidence: found '95'"),
        (adapters.hallmark, "a.csv", (JUDGED + "d,1,s,VALID,VALID,0.9,-1\n").encode(), "row 1, field seconds: found '-1', expected a number from 0"),
        (adapters.zeroeval, "a.csv", (COUNTED + "d,1,s,1,2,9,9\n").encode(), "row 1, field correct: found 1 with the answer_class '2'"),
        (adapters.zeroeval, "a.csv", (COUNTED + "d,1,s,yes,0,9,9\n").encode(), "row 1, field correct: found 'yes', expected 0 or 1"),
        (adapters.zeroeval, "a.csv", (COUNTED + "d,1,s,0,x,9,9\n").encode(), "row 1, field answer_class: found 'x'"),
        (adapters.zeroeval, "a.csv", (COUNTED + "d,1,s,1,0,9,\n").encode(), "row 1, field completion_tokens: found ''"),
    ],
    ids=range(14),
)  # fmt: skip
def test_adapters_name_what_is_wrong(tmp_path, adapter, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordsError, match=message):
        adapter(tmp_path / name)


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


@pytest.mark.parametrize(
    ("answers", "confidence"),
    [
        (("A", "B", "B"), 0.0),  # the others never change the answer
        (("A", "A", "B"), 1 / 2),
        (("A", None, "A"), 1 / 2),
        ((None, None, None), 0.0),  # no answer is no agreement
    ],
)
def test_support(answers, confidence):
    table = votes(*answers)
    found = support(table, "m0", ["m1", "m2"], name="m0, supported")
    validate(found)
    row = found.iloc[0]
    assert row["confidence"] == confidence
    assert (row["answer"] if pd.notna(row["answer"]) else None) == answers[0]
    assert row["prompt_tokens"] == 3


def test_support_is_by_question_or_refused():
    first, second = votes("A", "A"), votes("B", "C").assign(question_id="2")
    table = pd.concat([first, second]).iloc[[0, 3, 1, 2]]  # the two in different orders
    found = support(table, "m0", ["m1"], name="s").set_index("question_id")["confidence"]
    assert found.to_dict() == {"1": 1.0, "2": 0.0}
    for others in ([], ["m0"], ["m1", "m1"]):
        with pytest.raises(ValueError, match="expected different systems beside 'm0'"):
            support(first, "m0", others, name="s")
    with pytest.raises(RecordsError, match="'m1' and 'm0' were not asked the same questions"):
        support(table.iloc[:3], "m0", ["m1"], name="s")


def test_agreement_makes_valid_records_or_refuses():
    table = votes("A", "B", "B")
    validate(agreement(table, ["m0", "m1", "m2"], name="vote"))
    for rows, systems, error, message in (
        (table, ["m0", "m0"], ValueError, "two or more different systems"),
        (table, ["m0", "x"], ValueError, "no system 'x'"),
        (table.drop(columns="gold"), ["m0", "m1"], RecordsError, "needs the column"),
        (
            table.assign(question_id=["1", "2", "1"]), ["m0", "m1"],
            RecordsError, "'m1' and 'm0' were not asked the same questions",
        ),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            agreement(rows, systems, name="vote")
