"""The command line on records of one's own: pages, cards, routes, and errors of one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from corea import adapters
from corea.cli import main
from corea.records import read_records
from corea.thresholds.card import Card

EXAMPLE = str(adapters.SHIPPED / "example.csv")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(n=300, *, systems=("s", "l"), hostile="", seed=0):
    """Records of two systems; the first states how sure it is."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(5, 2, n).round(2)
    right = {systems[0]: rng.random(n) < confidence, systems[-1]: rng.random(n) < 0.9}
    parts = [
        pd.DataFrame(
            {
                "dataset": f"d{hostile}",
                "question_id": [f"{i}{hostile}" for i in range(n)],
                "system": name + hostile,
                "correct": right[name].astype(int),
                "confidence": confidence if name == systems[0] else np.nan,
                "answer": right[name].astype(str),
            }
        )
        for name in dict.fromkeys(systems)
    ]
    return pd.concat(parts, ignore_index=True)


def test_a_report_is_one_page_that_loads_nothing(folder, capsys):
    assert main(["report", EXAMPLE]) == 0
    assert capsys.readouterr().out == "report.html\n"
    page = (folder / "report.html").read_text("utf-8")
    assert len(page) < 1_500_000
    assert "<script" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/svg+xml") for source in sources)
    for part in ("The short answer", "What to do", "Is the confidence right", "deferring buy"):
        assert part in page
    assert sorted(path.name for path in folder.iterdir()) == ["report.html"]


def test_names_in_a_strangers_file_are_text(folder):
    rows(hostile='<img src=x onerror="alert(1)">$x$\x1b[31m').to_csv("mine.csv", index=False)
    assert main(["report", "mine.csv"]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert "&lt;img src=x" in page


def test_a_report_without_a_second_system_or_a_confidence_says_so(folder):
    alone = rows(systems=("s",))
    alone.to_csv("alone.csv", index=False)
    assert main(["report", "alone.csv"]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert "Name a second system" in page
    assert "deferring buy" not in page
    rows().assign(confidence=np.nan).to_csv("silent.csv", index=False)
    assert main(["report", "silent.csv"]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert "no question has a confidence" in page
    assert "Record a confidence" in page
    assert "were not named" in page


def test_more_than_two_systems_are_all_shown_and_a_pair_is_asked_for(folder):
    three = pd.concat([rows(), rows(systems=("t",), seed=1)])
    three.to_csv("three.csv", index=False)
    assert main(["report", "three.csv"]) == 0
    page = (folder / "report.html").read_text()
    assert "3 systems: name the small and the large one" in page
    assert "Of 2 systems that state a confidence 0 state too much" in page
    assert "In 1 of 2 cases" in page
    assert main(["report", "three.csv", "--small", "t", "--large", "l"]) == 0
    assert "always large" not in (folder / "report.html").read_text()  # it is inside the figure


def test_a_card_is_fitted_and_routes_new_records(folder, capsys):
    rows(2000).to_csv("mine.csv", index=False)
    command = ["fit", "mine.csv", "--within", "5", "--delta", "0.1", "--size-ratio", "8"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "right at most 5 points less often" in told
    card = Card.load("card.json")
    assert (card.small, card.large, card.guarantee.level) == ("s", "l", 0.05)
    assert card.guarantee.delta == 0.1
    assert card.expected["large_cost"].estimate == 8
    assert card.prices == {"size_ratio": 8, "output_price": 4}
    assert f"below {card.threshold:.6g} or missing" in told

    new = rows(50, systems=("s",), seed=9).drop(columns=["answer", "correct"])
    new.loc[0, "confidence"] = np.nan
    new.to_csv("new.csv", index=False)
    assert main(["route", "card.json", "new.csv", "--out", "sent.csv"]) == 0
    routed = pd.read_csv("sent.csv")
    expected = ~(new["confidence"] >= card.threshold)
    assert routed["deferred"].tolist() == expected.tolist()
    assert routed["reason"][0] == "no confidence"
    assert "correct" not in routed
    assert routed["probability"].between(0, 1).sum() == 49
    assert f"{expected.sum()} of 50 deferred" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "at most 2 points less often"),
        (["--at-least", "80"], "on at least 80 % of questions"),
        (["--disagreement", "15"], "another answer than the large model on at most 15 %"),
        (["--budget", "9", "--max-cost", "11"], "a mean cost of at most 9 a question"),
    ],
)
def test_each_promise_can_be_asked_for(folder, capsys, options, words):
    rows(3000).to_csv("mine.csv", index=False)
    assert main(["fit", "mine.csv", *options]) == 0
    assert words in capsys.readouterr().out


def test_nothing_certified_is_an_exit_status_of_its_own_and_leaves_no_card(folder, capsys):
    rows(60).to_csv("few.csv", index=False)
    assert main(["fit", "few.csv"]) == 4
    assert "because 60 questions cannot certify anything" in capsys.readouterr().out
    assert not (folder / "card.json").exists()


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["fit", "gone.csv"], 1, "gone.csv: no such records file"),
        (["fit", "bad.csv"], 1, "bad.csv: row 2, field confidence: found '7'"),
        (["fit", "alone.csv"], 1, "alone.csv: one system only"),
        (["fit", "mine.csv", "--within", "2", "--at-least", "80"], 1, "--within, --at-least: a "),
        (["fit", "mine.csv", "--within", "0.02"], 1, "--within is 0.02 %: points and percent"),
        (["fit", "mine.csv", "--within", "200"], 1, "within is 2.0; expected a share"),
        (["fit", "mine.csv", "--budget", "3"], 1, "budget is 3.0 and max_cost None"),
        (["fit", "mine.csv", "--rename", "x"], 1, "--rename is 'x'; expected COLUMN=NAME"),
        (["fit", "mine.csv", "--dataset", "zz"], 1, "no dataset 'zz'"),
        (["fit", "mine.csv", "--signal", "probe"], 1, "probe"),
        (["route", "mine.csv", "mine.csv"], 1, "mine.csv: not JSON"),
        (["route", "gone.json", "mine.csv"], 1, "gone.json"),
        (["fit"], 2, "Missing argument"),
        (["fit", "mine.csv", "--surprise"], 2, "No such option"),
        (["surprise"], 2, "No such command"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(folder, capsys, words, status, told):
    rows(250).to_csv("mine.csv", index=False)
    rows(250, systems=("s",)).to_csv("alone.csv", index=False)
    bad = rows(4).assign(confidence=["0.5", "7", "9", "11", *[""] * 4])
    bad.to_csv("bad.csv", index=False)
    assert main(words) == status
    captured = capsys.readouterr()
    lines = (captured.err + captured.out).splitlines()
    assert told in " ".join(lines)
    if status == 1:
        assert len(lines) == 1
    assert "Traceback" not in captured.err


def test_another_column_can_be_the_confidence(folder, capsys):
    mine = rows(2000)
    mine["probe"], mine["confidence"] = mine["confidence"], 0.5
    mine.loc[3, "probe"] = np.nan
    mine.to_csv("mine.csv", index=False)
    assert main(["fit", "mine.csv", "--signal", "probe", "--small", "s", "--large", "l"]) == 0
    assert Card.load("card.json").signal == "probe"
    assert "Ask l where s's probe is below" in capsys.readouterr().out
    assert main(["route", "card.json", "mine.csv"]) == 0
    assert pd.read_csv("routed.csv")["reason"][3] == "no confidence"
    assert main(["report", "mine.csv", "--signal", "probe", "--small", "s", "--large", "l"]) == 0
    page = (folder / "report.html").read_text()
    assert "tells right answers from wrong ones" in page
    mine.assign(probe=mine["probe"].astype(str).replace("0.5", "50%")).to_csv("bad.csv")
    assert main(["fit", "bad.csv", "--signal", "probe", "--small", "s", "--large", "l"]) == 1
    assert "field probe: found '50%', expected a number in [0, 1]" in capsys.readouterr().err


DATA = Path(__file__).parent / "data"


def test_what_a_harness_wrote_becomes_records(folder, capsys):
    (log,) = (DATA / "lm_eval").rglob("samples_doubling_2*.jsonl")
    assert main(["import", "lm-eval", str(log)]) == 1  # a line per filter
    assert "found 'strict-match', 'flexible-extract'" in capsys.readouterr().err
    assert main(["import", "lm-eval", str(log), "-o", "filter=strict-match"]) == 0
    told = capsys.readouterr()
    assert "rows read" in told.out
    assert len(read_records("records.parquet").table) > 1
    assert main(["import", "lm-eval", str(log), "-o", "surprise=1"]) == 1
    assert "its options are" in capsys.readouterr().err
    assert main(["import", "surprise", str(log)]) == 1
    assert "no format 'surprise'; expected lm-eval" in capsys.readouterr().err


def test_serve_says_in_a_line_why_it_cannot(folder, capsys):
    addresses = ["--small-url", "http://127.0.0.1:9/v1", "--large-url", "http://127.0.0.1:9/v1"]
    assert main(["serve", "gone.json", *addresses]) == 1
    assert "gone.json" in capsys.readouterr().err
    rows(2000).to_csv("mine.csv", index=False)
    assert main(["fit", "mine.csv", "--within", "5"]) == 0
    capsys.readouterr()
    assert main(["serve", "card.json", *addresses, "--when-large-fails", "cry"]) == 1
    assert "when_large_fails" in capsys.readouterr().err
    assert main(["serve", "card.json", *addresses, "--host", "0.0.0.0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "COREA_API_KEY" in line


def test_debug_shows_where_an_error_arose(folder):
    with pytest.raises(FileNotFoundError):
        main(["--debug", "fit", "gone.csv"])


def test_columns_are_renamed_and_systems_named(folder, capsys):
    mine = rows(800).rename(columns={"system": "model", "correct": "acc"})
    mine.to_csv("mine.csv", index=False)
    assert main(["fit", "mine.csv", "--rename", "model=system", "--rename", "acc=correct"]) in (
        0,
        4,
    )
    swapped = ["--small", "l", "--large", "s"]
    again = ["fit", "mine.csv", "--rename", "model=system", "--rename", "acc=correct", *swapped]
    assert main(again) == 4
    assert "no question has a confidence" in capsys.readouterr().out


def test_the_command_starts_without_what_it_does_not_use():
    code = "import sys; import corea.cli; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pandas", "numpy", "matplotlib", "torch"} & set(told.stdout.split())


def test_a_million_rows_are_reported_whole(folder):
    """In shape, not in time: benchmarks/bench_report.py has the seconds. A tenth of it here."""
    rows(50_000).to_parquet("big.parquet", index=False)
    assert len(read_records("big.parquet").table) == 100_000
    assert main(["report", "big.parquet"]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert len(page) < 1_500_000
    assert "100,000 rows read" in page
    assert json.dumps("s")[1:-1] in page
