"""The ledger of claims: what decides one, and that the committed file is whole."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from chapters import execute

from corea.book import claims, full_run
from corea.book.claims import (
    CANNOT,
    FAILS,
    HOLDS,
    UNSETTLED,
    Claim,
    ClaimError,
    Evidence,
    MissingError,
    decide,
    seeds_needed,
)
from corea.cli import main
from corea.metrics.intervals import Interval, interval, verdict
from corea.workflow.notebooks import notebook_parameters
from corea.workflow.plan import undecidable
from corea.workflow.profiles import load_profile, page_entries

ROOT = Path(__file__).resolve().parent.parent


def row(value, half, *, n_seeds=8, **labels):
    ends = {"value": value, "low": value - half, "high": value + half, "n_seeds": n_seeds}
    return {"system": "L1", "dataset": "chains", "metric": "ece"} | labels | ends


def table(*rows):
    return {"rewards/gaps": pd.DataFrame(rows)}


def evidence(bound=None, **rows):
    bound = {"at_most": 0.0} if bound is None else bound
    why = {"why": "a test"} if {*bound.values()} != {0.0} else {}
    rows = {"system": "L1", "metric": "ece"} | rows
    return Evidence(table="rewards/gaps", rows=rows, **bound, **why)


def claim(*parts, **fields):
    given = {"evidence": [*parts] or [evidence()], "arms": ["train_l1"]} | fields
    return Claim(
        id="A7", paper="A", place=["abstract"], sentence="It is so.", chapter="rewards", **given
    )


# --- deciding ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "found", "expected"),
    [
        ({"at_most": 0.0}, row(-0.2, 0.1), HOLDS),
        ({"at_most": 0.0}, row(0.2, 0.1), FAILS),
        ({"at_most": 0.0}, row(-0.2, 0.3), UNSETTLED),
        ({"at_least": -2.0}, row(-1.0, 0.5), HOLDS),
        ({"at_least": -2.0}, row(-3.0, 0.5), FAILS),
        ({"within": 0.3}, row(-0.1, 0.1), HOLDS),
        ({"within": 0.3}, row(0.5, 0.1), FAILS),
        ({"within": 0.3}, row(0.1, 0.3), UNSETTLED),
    ],
)
def test_the_interval_decides(bound, found, expected):
    assert decide(claim(evidence(bound)), table(found)).verdict == expected


def test_all_rows_must_hold_and_the_one_that_decides_comes_first():
    two = claim(evidence(dataset=["chains", "facts"]))
    holds, fails = row(-0.2, 0.1), row(0.2, 0.1, dataset="facts")
    wide = row(-0.2, 0.4, dataset="facts")
    decided = decide(two, table(holds, fails))
    assert decided.verdict == FAILS
    assert [(each.label, each.verdict) for each in decided.rows] == [
        ("facts", FAILS), ("chains", HOLDS),
    ]  # fmt: skip
    assert decide(two, table(holds, wide)).verdict == UNSETTLED
    assert decide(two, table(wide, holds)).rows[0].label == "facts"
    assert decide(two, table(holds, row(-0.3, 0.1, dataset="facts"))).verdict == HOLDS


def test_rows_may_be_pairs():
    pairs = [{"system": "a, L1", "baseline": "a"}, {"system": "b, L1", "baseline": "b"}]
    part = Evidence(table="rewards/gaps", rows=pairs, at_most=0.0)
    one, two = (row(-0.2, 0.1, **pair) for pair in pairs)
    decided = decide(claim(part), table(one, two))
    assert [each.label for each in decided.rows] == ["a, L1", "b, L1"]
    assert decided.verdict == HOLDS
    assert str(part) == "rewards/gaps: at most 0"
    with pytest.raises(MissingError, match="has no baseline 'b'"):
        decide(claim(part), table(one, two | {"baseline": "a"}))


def test_several_parts_are_decided_together():
    joint = claim(evidence(), evidence({"at_least": -2.0}, metric="pass_at_1"))
    cheaper = row(-0.2, 0.1)
    assert decide(joint, table(cheaper, row(0, 1, metric="pass_at_1"))).verdict == HOLDS
    assert decide(joint, table(cheaper, row(-4, 1, metric="pass_at_1"))).verdict == FAILS


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_seeds": 1}, "one training seed"),
        ({"n_seeds": 1, "low": np.nan}, "one training seed"),
        ({"n_seeds": 0}, "no number of seeds"),
        ({"n_seeds": np.nan}, "no number of seeds"),
        ({"low": -0.2, "high": -0.2}, "8 seeds do not differ at all"),
        ({"low": np.nan}, "no interval is defined"),
        ({"value": np.nan}, "no interval is defined"),
    ],
)
def test_what_looks_settled_and_is_not(changes, reason):
    for value in (-0.2, 0.2):
        assert decide(claim(), table(row(value, 0.1))).verdict in (HOLDS, FAILS)
        shifted = {name: change * np.sign(-value) for name, change in changes.items()}
        shifted |= {name: changes[name] for name in changes if name == "n_seeds"}
        decided = decide(claim(), table(row(value, 0.1) | shifted))
        assert (decided.verdict, decided.reason) == (UNSETTLED, reason)
        assert decided.needed is None


def test_few_seeds_are_told():
    assert decide(claim(), table(row(-0.2, 0.1, n_seeds=4))).few
    assert not decide(claim(), table(row(-0.2, 0.1, n_seeds=5))).few


def test_what_a_claim_presupposes_is_decided_first():
    needs = claim(
        evidence(),
        requires=[evidence(metric="pass_at_1")],
        otherwise="the large model is no better",
    )

    def found(value):
        return decide(needs, table(row(-0.2, 0.1), row(value, 1, metric="pass_at_1")))

    assert found(-3).verdict == HOLDS
    assert (found(3).verdict, found(3).reason) == (CANNOT, "the large model is no better")
    unsettled = found(-0.5)
    assert unsettled.verdict == UNSETTLED
    assert "presupposes is unsettled" in unsettled.reason
    assert unsettled.needed == unsettled.rows[0].needed > 8


def test_what_the_world_puts_in_is_decided_and_marked():
    made = claim(by_construction="it is in the corpus")
    decided = decide(made, table(row(-0.2, 0.1)))
    assert decided.verdict == HOLDS
    assert "by construction" in claims.line(decided)
    assert "it is in the corpus" in claims.page({"A7": decided}, "Claims.").data


def test_what_cannot_be_tested_says_why():
    untested = claim(evidence=[], arms=[], cannot_test="nobody knows")
    assert decide(untested, {}).verdict == CANNOT
    assert claims.line(decide(untested, {})) == "A7   cannot be tested here | nobody knows"


@pytest.mark.parametrize(
    ("part", "tables", "complaint"),
    [
        (evidence(), {}, "A7: rewards/gaps: there is no such table"),
        (
            evidence(),
            table({"system": "L1", "metric": "ece", "value": 1.0, "low": 1.0}),
            "A7: rewards/gaps lacks the column(s) high, n_seeds",
        ),
        (evidence(size="small"), table(row(0, 1)), "A7: rewards/gaps lacks the column(s) size"),
        (
            evidence(system=["L1", "L2", "KL"]),
            table(row(0, 1)),
            "A7: rewards/gaps has no system 'L2', 'KL'",
        ),
        (
            evidence(dataset=["chains", "facts"]),
            table(row(0, 1), row(0, 1, dataset="facts", metric="auroc")),
            "A7: rewards/gaps has 0 rows with system 'L1', metric 'ece', dataset 'facts'; "
            "expected one",
        ),
        (
            evidence(),
            table(row(0, 1) | {"low": "0.1 [0, 1]"}),
            "A7: rewards/gaps: could not convert string to float: '0.1 [0, 1]'; expected numbers",
        ),
        (
            evidence(),
            table(row(0, 1), row(0, 1, dataset="facts")),
            "A7: rewards/gaps has 2 rows with system 'L1', metric 'ece'; expected one",
        ),
    ],
)
def test_missing_evidence_is_named_with_the_claim(part, tables, complaint):
    with pytest.raises(MissingError) as caught:
        decide(claim(part), tables)
    assert str(caught.value) == complaint
    # and so in what it presupposes
    with pytest.raises(MissingError):
        decide(claim(evidence(), requires=[part], otherwise="no"), tables)


# --- how many seeds ---------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [{"at_least": 0.0}, {"at_most": 3.0}, {"within": 2.2}])
@pytest.mark.parametrize("spread", [2.0, 5.0, 10.0])
def test_with_the_seeds_needed_the_same_spread_is_settled_and_with_one_less_not(bound, spread):
    def of(n):
        """The interval of n seeds with mean 1 and the given sample variance."""
        values = np.linspace(-1, 1, n)
        values = 1 + values * spread / values.std(ddof=1)
        return interval([np.array([value]) for value in values])

    seen = of(3)
    assert verdict(seen, **bound) == UNSETTLED
    needed = seeds_needed(seen, **bound)
    assert 3 < needed < claims.MOST_SEEDS
    assert verdict(of(needed), **bound) == HOLDS
    assert verdict(of(needed - 1), **bound) == UNSETTLED
    assert seeds_needed(of(7), **bound) == needed  # whatever number of seeds it was seen in


def test_an_estimate_at_the_bound_needs_more_seeds_than_anybody_trains():
    assert seeds_needed(Interval(0, -1, 1, n_seeds=3), at_least=0) == claims.MOST_SEEDS + 1
    decided = decide(claim(), table(row(0, 1, n_seeds=3)))
    assert claims.seeds_text(decided) == "3 (few); needed more than 1,000"


def test_seeds_are_those_of_the_row_that_decides():
    two = claim(evidence(dataset=["chains", "facts"]))
    few = {"n_seeds": 3, "dataset": "facts"}
    failed = decide(two, table(row(0.5, 0.3), row(-0.1, 0.3, **few)))
    assert claims.seeds_text(failed) == "8"
    held = decide(two, table(row(-0.5, 0.3), row(-0.5, 0.3, **few)))
    assert claims.seeds_text(held) == "3 (few)"  # all rows decide


def test_the_row_that_needs_most_seeds_tells_how_many():
    two = claim(evidence(dataset=["chains", "facts"]))
    decided = decide(two, table(row(-0.2, 0.3), row(-0.1, 0.3, dataset="facts")))
    assert decided.needed == decided.rows[0].needed > decided.rows[1].needed
    assert decided.rows[0].label == "facts"


def test_an_open_row_that_contradicts_settles_a_claim_before_those_that_agree():
    two = claim(evidence(dataset=["chains", "facts"]))
    decided = decide(two, table(row(0.2, 0.3), row(-0.1, 0.3, dataset="facts")))
    assert [row.against for row in decided.rows] == [True, False]
    assert decided.needed == decided.rows[0].needed < decided.rows[1].needed
    # and one that is settled already needs no more
    failed = decide(two, table(row(0.5, 0.3), row(-0.1, 0.3, dataset="facts")))
    assert (failed.verdict, failed.needed) == (FAILS, None)
    assert "needed" not in claims.seeds_text(failed)


# --- the committed file -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def decisions():
    return claims.decide_committed()


def test_all_claims_of_both_papers_are_there(decisions):
    ids = set(claims.load())
    assert {f"A{n}" for n in range(1, 29)} | {f"B{n}" for n in range(1, 19)} <= ids
    assert sum(name.startswith("T") for name in ids) >= 15
    assert set(decisions) == ids


def test_every_claim_asserts_something_and_stands_in_a_chapter_of_the_book():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    pages = {entry["file"] for entry in page_entries(contents)}
    for name, each in claims.load().items():
        assert each.evidence or each.cannot_test, name
        assert {f"notebooks/{chapter}" for chapter in (each.chapter, *each.chapters)} <= pages, name
        assert each.sentence.endswith("."), name
    sentences = [each.sentence for each in claims.load().values()]
    assert len(set(sentences)) > len(sentences) - 5  # T claims may repeat what was measured


def test_the_claims_that_were_printed_are_as_the_papers_have_them(decisions):
    fails = {name for name in decisions if name[0] == "T" and decisions[name].verdict == FAILS}
    assert fails == {f"T{n}" for n in (4, 5, 6, 7, 9, 11, 12, 13, 14, 15, 16, 20)}
    assert all(decisions[f"T{n}"].verdict == HOLDS for n in (1, 2, 3, 8, 10, 17, 18, 19, 21))


def test_the_method_of_paper_b_is_judged_as_written_and_not_by_another():
    for name in ("B10", "B11"):
        for part in claims.load()[name].evidence:
            assert part.rows["system"] == "CA-GRPO"
            assert part.rows["baseline"] == "GRPO"


def test_an_empty_label_is_a_blank_cell():
    rows = table(row(-0.2, 0.1, rule=np.nan), row(0.2, 0.1, rule="other"))
    assert decide(claim(evidence(rule="")), rows).verdict == HOLDS
    assert decide(claim(evidence(rule="other")), rows).verdict == FAILS


def made_up(claim, change=lambda part: {}):
    """Tables with each row that decides a claim, changed part by part."""
    rows = {}
    for part in (*claim.evidence, *claim.requires):
        for selection in part.selections:
            values = [[each] if isinstance(each, str) else each for each in selection.values()]
            for labels in itertools.product(*values):
                labelled = dict(zip(selection, labels, strict=True))
                found = {"value": 0.0, "low": -1.0, "high": 1.0, "n_seeds": 8} | change(part)
                rows.setdefault(part.table, []).append(labelled | found)
    return {table: pd.DataFrame(found) for table, found in rows.items()}


def on_side(sign):
    """Far from the bound, on the side that agrees (1) or does not (-1)."""

    def change(part):
        ((side, bound),) = part.bound.items()
        far = {"at_least": bound + sign, "at_most": bound - sign}.get(side, bound * (1 - sign) * 2)
        width = 0.1 * part.bound.get("within", 1.0)
        return {"value": far, "low": far - width, "high": far + width}

    return change


MEASURED = {
    name: each.model_copy(update={"awaits": False})
    for name, each in claims.load().items()
    if each.arms
}


@pytest.mark.parametrize("name", MEASURED)
def test_every_measured_verdict_turns_with_its_evidence(name):
    each = MEASURED[name]
    assert decide(each, made_up(each, on_side(1))).verdict == HOLDS
    against = each.model_copy(update={"requires": [], "otherwise": ""})
    assert decide(against, made_up(against, on_side(-1))).verdict == FAILS
    assert decide(each, made_up(each, lambda _: {"low": -1e9, "high": 1e9})).verdict == UNSETTLED
    one = made_up(each, lambda part: on_side(1)(part) | {"n_seeds": 1})
    assert decide(each, one).verdict == UNSETTLED
    if each.requires:
        failed = made_up(each, on_side(-1))
        assert decide(each, failed).verdict == CANNOT
        assert decide(each, failed).reason == each.otherwise


def test_a_claim_without_its_evidence_fails_the_command_by_name(capsys, monkeypatch):
    each = MEASURED["A4"]
    monkeypatch.setattr(claims, "load", lambda: {"A4": each})
    monkeypatch.setattr(claims, "texts", list)  # the book's sentences are about other claims
    monkeypatch.setattr(claims, "committed", lambda: made_up(each))
    assert main(["claims"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(claims, "committed", dict)
    assert main(["claims"]) == 1
    assert capsys.readouterr().err == f"A4: {each.evidence[0].table}: there is no such table\n"


def test_evidence_that_is_there_is_not_awaited(monkeypatch):
    monkeypatch.setattr(claims, "load", lambda: {"A7": claim(awaits=True)})
    awaited = claims.decide_committed({})["A7"]
    assert (awaited.verdict, awaited.awaiting) == (UNSETTLED, True)
    assert awaited.reason == ("no evidence is committed yet (rewards/gaps: there is no such table)")
    assert claims.summary([awaited])["awaiting"] == 1
    with pytest.raises(ClaimError, match="A7: awaits evidence that is there: remove `awaits`"):
        claims.decide_committed(table(row(-0.2, 0.1)))


def test_the_command_derives_all_verdicts(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["claims", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["id"] for each in told] == list(claims.load())
    assert {each["verdict"] for each in told} <= set(claims.VERDICTS)
    assert main(["claims", "--paper", "B"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("B1 ")
    assert not any(line.startswith("A") for line in lines)


def test_the_command_line_knows_it():
    command = [sys.executable, "-m", "corea", "claims", "--paper", "A"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("A1 ")


def test_a_run_is_decided_by_the_same_function(tmp_path, capsys):
    each = MEASURED["A4"]
    ((used, rows),) = made_up(each, on_side(1)).items()
    path = tmp_path / f"{used}.csv"
    path.parent.mkdir()
    rows.to_csv(path, index=False)
    here, missing = claims.decide_run(claims.of_run([path.parent]))
    assert here["A4"].verdict == HOLDS
    other = next(key for key in MEASURED if key not in here)
    assert missing[other].startswith(f"{other}: ")
    assert main(["claims", "--tables", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "A4   holds" in told.out
    assert missing[other] in told.err


def test_a_table_of_a_run_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "backbones").mkdir()
    (tmp_path / "backbones" / "changes.csv").write_text("")
    assert main(["claims", "--tables", str(tmp_path)]) == 1
    assert "backbones/changes.csv: not readable as CSV: No columns" in capsys.readouterr().err


# --- the file, when it is wrong ---------------------------------------------------------------

WHOLE = """
[A1]
paper = "A"
place = ["abstract"]
sentence = "It is so."
chapter = "rewards"
arms = ["train_l1"]
[[A1.evidence]]
table = "rewards/gaps"
rows = { system = "L1" }
at_most = 0
"""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("at_most = 0", "", "A1: evidence.0: Value error, expected one of at_least, at_most"),
        ("at_most = 0", "at_most = 0\nat_least = 0", "expected one of at_least, at_most"),
        ("at_most = 0", "at_most = 2", "why is empty; expected the reason of a bound"),
        ("at_most = 0", "within = 0", "A1: evidence.0.within: Input should be greater than 0"),
        ('{ system = "L1" }', "{ }", "Dictionary should have at least 1 item"),
        ('{ system = "L1" }', "[ ]", "List should have at least 1 item"),
        ('"rewards/gaps"', '"gaps"', "A1: evidence.0.table: String should match pattern"),
        ('["abstract"]', '["section 9"]', "paper A has no section 9"),
        ('paper = "A"', 'paper = "B"', "paper is 'B'; expected that of the id"),
        ('arms = ["train_l1"]', "", "expected arms where evidence is measured"),
        ('sentence = "It is so."', "", "A1: sentence: Field required"),
        ('chapter = "rewards"', 'chapter = "rewards"\nmargin = 1', "A1: margin: Extra inputs"),
        ('chapter = "rewards"', 'chapter = "rewards"\ncannot_test = "x"', "expected evidence, or"),
        ('chapter = "rewards"', 'chapter = "rewards"\notherwise = "x"', "belong together"),
        ("[A1]", "[C1]", "C1: id: String should match pattern"),
        ("[A1]", "[A1]\n[A1]", "not readable as TOML: Cannot declare ('A1',) twice"),
    ],
)
def test_a_claim_that_is_not_well_formed_is_named(tmp_path, old, new, complaint):
    path = tmp_path / "claims.toml"
    path.write_text(WHOLE)
    assert list(claims.load(path)) == ["A1"]
    assert old in WHOLE
    wrong = tmp_path / "wrong.toml"
    text = WHOLE.replace(old, new, 1)
    wrong.write_text(text.replace("[[A1.", "[[C1.") if new == "[C1]" else text)
    with pytest.raises(ClaimError) as caught:
        claims.load(wrong)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"{wrong}: ")


# --- sentences that rely on a verdict ---------------------------------------------------------


def test_no_sentence_of_the_book_relies_on_another_verdict():
    told = [each for where, text in claims.texts(ROOT) for each in claims.unfounded(text, where)]
    assert told == []
    names = [where for where, _ in claims.texts(ROOT)]
    assert {"README.md", "book/cascades.md", "notebooks/claims.ipynb, cell 1"} <= set(names)


def test_a_changed_verdict_names_the_sentence(monkeypatch):
    monkeypatch.setattr(claims, "_verdicts", lambda: {"A4": HOLDS, "B10": UNSETTLED})
    text = "One is cheap. COREA costs\nless (A4: holds). Accuracy stays (B10: holds). Other text."
    assert claims.unfounded(text, "book/x.md") == [
        "book/x.md: B10 is unsettled, but it says: Accuracy stays (B10: holds)."
    ]
    assert claims.unfounded("It costs less (A99: holds).", "n") == [
        "n: there is no claim A99, but it says: It costs less (A99: holds)."
    ]
    assert claims.unfounded("It is so (A4: hold).", "n")


def test_the_command_fails_on_such_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("All accuracies are shares (T11: holds).\n")
    assert main(["claims"]) == 1
    assert capsys.readouterr().err == (
        "README.md: T11 fails, but it says: All accuracies are shares (T11: holds).\n"
    )


@pytest.mark.parametrize("said", ["(T11:\nholds)", "(T11: fails; T12: fails)", "(T11: Fails)"])
def test_a_claim_that_is_named_in_another_form_is_not_passed_over(said):
    (told,) = claims.unfounded(f"Its shares {said}.", "a.md")
    assert told.startswith("a.md: T11 fails, but it says: Its shares")
    assert claims.unfounded("Its shares (T11:\nfails).", "a.md") == []


# --- the page ---------------------------------------------------------------------------------


def test_chapter_shows_every_claim_and_works_without_a_run(tmp_path, decisions):
    shown = execute("claims", {"runs": [str(tmp_path / "backbones")]})
    page = "\n".join(shown)
    for name in decisions:
        assert f"<td>{name}</td>" in page
    assert "This run has the tables for 0 of the 46 claims" in page
    for commit in claims.evidence_facts()["commit"]:
        assert commit in page
    assert "<script" not in page


def test_chapter_reads_the_tables_that_decide():
    runs = notebook_parameters(ROOT / "notebooks" / "claims.ipynb")["runs"]
    assert [Path(run).name for run in runs] == claims.chapters()


def test_page_shows_text_as_text():
    named = claim().model_copy(update={"sentence": "<b>$x$</b>", "chapter": "a&b"})
    decided = decide(named, table(row(-0.2, 0.1)))
    html = claims.page({"A7": decided}, "<i>").data
    assert "&lt;b&gt;<span>$</span>x<span>$</span>&lt;/b&gt;" in html
    assert "<b>" not in html.replace("<br>", "")
    assert "<i>" not in html
    assert re.search(r'data-of="A" data-is="holds"', html)


def test_a_run_beside_says_how_much_of_it_lies_inside():
    two = claim(evidence(dataset=["chains", "facts"]))
    full = decide(two, table(row(-0.2, 0.1), row(-0.2, 0.1, dataset="facts")))
    here = [row(-0.25, 0.01, n_seeds=1), row(-0.5, 0.01, n_seeds=1, dataset="facts")]
    run = decide(two, table(*here))
    assert claims.replicated(full, run) == (1, 2)
    (beside,) = claims.replication({"A7": full}, {"A7": run}).to_dict("records")
    assert beside["your run"] == "unsettled (one training seed)"
    assert (beside["values of both"], beside["inside"]) == (2, 1)
    assert claims.replicated(full, decide(claim(evidence=[], arms=[], cannot_test="no"), {})) == (
        0,
        0,
    )


@pytest.mark.browser
def test_boxes_hide_rows_by_keyboard_and_paper_has_them_all(visit, tmp_path, decisions):
    file = tmp_path / "page.html"
    html = claims.page(decisions, "Claims.").data
    file.write_text(f"<!doctype html><meta charset=utf-8><title>t</title>{html}", "utf-8")
    visit.open(file.as_uri())
    page, rows = visit.page, visit.page.locator("tbody tr:visible")
    assert rows.count() == len(decisions)
    of_b = page.get_by_label("paper B")
    of_b.focus()
    page.keyboard.press("Space")
    assert rows.count() == sum(name[0] != "B" for name in decisions)
    page.get_by_label("unsettled").uncheck()
    left = [
        name for name, each in decisions.items() if name[0] != "B" and each.verdict != UNSETTLED
    ]
    assert rows.count() == len(left)
    assert rows.locator("td:first-child").all_text_contents() == left
    page.emulate_media(media="print")
    assert rows.count() == len(decisions)
    assert page.locator("details small").first.is_visible()
    page.emulate_media(media="screen")
    of_b.check()
    page.get_by_label("unsettled").check()
    assert rows.count() == len(decisions)
    assert not visit.complaints


# --- the profile ------------------------------------------------------------------------------


def test_plan_names_the_claims_that_a_profile_cannot_decide(monkeypatch):
    monkeypatch.chdir(ROOT)
    profile = load_profile("laptop-full")
    told = {line.partition(" ")[0]: line for line in undecidable(profile)}
    assert not {"A1", "A13", "B10"} & set(told)
    assert undecidable(load_profile("laptop")) == []
    # as published, laptop lacks arms and has one seed
    monkeypatch.setattr(full_run, "PROFILE", "laptop")
    told = {line.partition(" ")[0]: line for line in undecidable(load_profile("laptop"))}
    assert told["A1"].startswith("A1 (corea_baselines): one seed: train_l1")
    assert "not read: train_sample_l1, train_l2, train_kl, train_sample_kl" in told["A16"]
