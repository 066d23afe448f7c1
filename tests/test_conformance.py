"""Conformance: probes find known rules, explanations are complete, the record is current."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chapters import execute
from numpy.testing import assert_allclose

from corea.book import conformance
from corea.book.conformance import (
    LIBRARIES,
    METRICS,
    OWN_BIN,
    RECORDED,
    differences,
    edge_table,
    errors_of_records,
    explain,
    landings,
    metrics_of,
    recorded,
    results,
    run,
    side_by_side,
    vectors,
)

TENTHS = np.arange(11)
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "record_conformance.py"
RERUN = f"rerun {SCRIPT.name}"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return results()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(library: str) -> None:
    """Skip without torch; what importing says is not ours to judge."""
    pytest.importorskip("torch")
    pytest.importorskip(library)


def test_vectors_are_fixed_and_named_once() -> None:
    once, again = vectors(), vectors()
    assert len({vector.name for vector in once}) == len(once)
    for a, b in zip(once, again, strict=True):
        assert (a.confidence == b.confidence).all()
        assert (a.correct == b.correct).all()
        assert set(a.correct) <= {0, 1}
        assert len(a.confidence) == len(a.correct)
    assert {vector.confidence.dtype.name for vector in once} == {"float32", "float64"}


def ece_with(bin_of, average_in=None):
    """An ECE with a bin rule of its own, and perhaps another rule for its means."""

    def ece(confidence, correct):
        counted = np.array([bin_of(c) for c in confidence])
        averaged = np.array([(average_in or bin_of)(c) for c in confidence])
        total = 0.0
        for part in set(counted):
            inside = averaged == part
            gap = abs(np.mean(correct[inside] - confidence[inside])) if inside.any() else 0
            total += (counted == part).sum() * gap
        return total / len(correct)

    return {"ECE": ece}


def on_the_right(confidence: float) -> int:
    return max(int(np.ceil(round(float(confidence) * 10, 4))), 1)


def on_the_left(confidence: float) -> int:
    return min(int(np.floor(round(float(confidence) * 10, 4))) + 1, 10)


def phantom(confidence: float) -> int:
    return int(np.floor(round(float(confidence) * 10, 4))) + 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("counting", "averaging"),
    [
        (on_the_right, on_the_right),
        (on_the_left, on_the_left),
        (phantom, phantom),
        (on_the_right, on_the_left),
        (on_the_left, on_the_right),
    ],
)
def test_probes_find_the_rule_of_an_ece(counting, averaging, dtype) -> None:
    metrics = ece_with(counting, averaging)
    found = [conformance._landing(metrics, tenth, dtype) for tenth in TENTHS]
    assert found == [(counting(t / 10), averaging(t / 10)) for t in TENTHS]
    assert (OWN_BIN in {counted for counted, _ in found}) == (counting is phantom)


def test_edges_of_ours_and_of_np_digitize() -> None:
    edges = landings(run("corea"))
    for _, rows in edges.groupby("dtype"):  # closed on the right
        assert rows["counted"].tolist() == np.maximum(TENTHS, 1).tolist()
        assert rows["averaged"].tolist() == rows["counted"].tolist()
    # linspace's 0.3, 0.6 and 0.7 are above the decimals; its other edges are not
    edges = landings(run("np.digitize")).query("dtype == 'float64'").set_index("confidence")
    below = edges["counted"][edges["counted"] == np.maximum(TENTHS, 1)].index.tolist()
    assert below == [0.0, 0.3, 0.6, 0.7, 1.0]


def test_every_metric_of_a_library_scores_every_vector(table) -> None:
    scored = table[table["metric"].isin(METRICS)]
    assert not scored.duplicated(["library", "vector", "metric"]).any()
    for _, rows in scored.groupby("library"):
        assert len(rows) == rows["metric"].nunique() * len(vectors())
    assert set(scored["library"]) == set(LIBRARIES)
    silent = scored[scored["value"].isna() & (scored["note"] == "")]
    assert set(silent["library"]) <= {"corea"}  # our NaN is a stated rule, without a warning
    assert set(silent["metric"]) <= {"AUROC"}


def test_metrics_without_bins_agree_everywhere(table) -> None:
    values = table[table["metric"].isin(["Brier score", "AUROC", "smooth ECE"])]
    two_classes = {v.name for v in vectors() if 0 < v.correct.sum() < len(v.correct)}
    values = values[values["vector"].isin(two_classes)]
    wide = values.pivot_table(index=["metric", "vector"], columns="library", values="value")
    for library in wide.columns.drop("corea"):
        both = wide[[library, "corea"]].dropna()
        assert len(both) >= len(two_classes)
        assert_allclose(both[library], both["corea"], atol=1e-6)


def test_edges_explain_every_difference_of_ece(table) -> None:
    explained = explain(table)
    assert explained["unexplained"].max() < 1e-6
    different = (explained["value"] - explained["corea"]).abs() > 1e-3
    # and there is something to explain, in every other library, but nothing off the edges
    assert set(explained["library"][different]) == set(explained["library"]) - {"corea"}
    ece = table[(table["metric"] == "ECE") & table["vector"].isin(["random", "23 distinct"])]
    assert ece.groupby("vector")["value"].agg(np.ptp).max() < 1e-9
    wide = edge_table(landings(table))
    assert wide.loc[("float64", 0.3), "corea"] == "3"
    assert wide.loc[("float64", 1.0), "torchmetrics"] == "own"
    assert wide.loc[("float32", 0.7), "netcal"] == "7 and 8"


def test_differences_are_those_of_the_table(table) -> None:
    found = differences(table)
    assert ((found["value"] - found["corea"]).abs().fillna(1) > 1e-6).all()
    ece = side_by_side(table, "ECE")
    apart = (ece.sub(ece["corea"], axis=0).abs() > 1e-6).to_numpy().sum()
    assert 0 < apart == (found["metric"] == "ECE").sum()
    one_class = found[found["metric"] == "AUROC"]
    assert set(one_class["library"]) == {"torchmetrics"}  # scikit-learn and we say NaN
    assert list(ece.index) == [vector.name for vector in vectors()]


@pytest.mark.parametrize("library", ["corea", "relplot", "np.digitize", *RECORDED])
def test_bins_found_by_probing_give_the_ece_of_real_records(library, table) -> None:
    if library in RECORDED:
        installed(library)
    from corea.adapters import rlcr

    stated = rlcr().table.dropna(subset="confidence")
    errors = errors_of_records(stated, landings(table)).set_index(["dataset", "system"])[library]
    assert len(errors) == 10
    ece = metrics_of(library)["ECE"]
    for names, rows in stated.groupby(["dataset", "system"]):
        arrays = rows["confidence"].to_numpy(), rows["correct"].to_numpy(np.int64)
        assert_allclose(errors[names], ece(*arrays), atol=1e-9)


def test_a_library_that_raises_is_a_result() -> None:
    def broken(confidence, correct):
        raise ZeroDivisionError("no such bin\nat all")

    value, note = conformance._scored(broken, np.array([0.5]), np.array([1]))
    assert np.isnan(value)
    assert note == "ZeroDivisionError: no such bin"
    with pytest.raises(ValueError, match="library is 'uqlm'; expected one of 'corea', "):
        run("uqlm")


def test_what_needs_torch_comes_from_the_record(monkeypatch) -> None:
    def without_torch(library):
        if library in RECORDED:
            raise ModuleNotFoundError("No module named 'torch'")
        return run(library)

    monkeypatch.setattr(conformance, "run", without_torch)
    sources = results().groupby("library")["source"].unique().map(list).to_dict()
    assert sources == {name: ["recorded" if name in RECORDED else "live"] for name in LIBRARIES}

    def without_relplot(library):
        raise ModuleNotFoundError("No module named 'relplot'")

    monkeypatch.setattr(conformance, "run", without_relplot)
    with pytest.raises(ModuleNotFoundError, match="relplot"):
        results()


def test_the_record_is_of_the_pinned_versions() -> None:
    text = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE))
    on_file = recorded()
    assert set(on_file["library"]) == set(RECORDED)
    for library, rows in on_file.groupby("library"):
        assert set(rows["version"]) == {pinned[library]}, RERUN
        scored = rows[rows["metric"].isin(METRICS)]
        assert set(scored["vector"]) == {vector.name for vector in vectors()}
        assert len(landings(rows)) == 22


@pytest.mark.parametrize("library", RECORDED)
def test_the_record_is_what_the_library_says(library) -> None:
    installed(library)
    on_file = recorded().query("library == @library").reset_index(drop=True)
    pd.testing.assert_frame_equal(run(library), on_file, rtol=0, atol=1e-6)


def test_the_script_writes_what_recorded_reads(monkeypatch, tmp_path, script) -> None:
    monkeypatch.setattr(conformance, "RESULTS", tmp_path / "conformance.csv")
    monkeypatch.setattr(conformance, "RECORDED", ("corea",))
    script.main()
    pd.testing.assert_frame_equal(recorded(), run("corea"))


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def test_conventions_are_right_today_and_counted(script) -> None:
    table = conformance.conventions(conformance.counted())
    assert set(table["verdict"]) == {"right"}
    for name, answer, gold in conformance.CONVENTIONS:
        assert script.PLAIN[name](answer) == script.PLAIN[name](gold)
    text = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8")
    (pinned,) = re.findall(r"^math-verify==(\S+)", text, flags=re.MULTILINE)
    assert set(conformance.counted()["version"]) == {pinned}, f"{RERUN} FOLDER"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the question sets are not beside the clone")
def test_counts_of_conventions_are_those_of_a_set(script) -> None:
    on_file = conformance.counted().query("dataset == 'math500'").reset_index(drop=True)
    pd.testing.assert_frame_equal(script.count_conventions(SHARED, ["math500"]), on_file)


def test_each_convention_counts_the_golds_it_touches(tmp_path, script) -> None:
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": "?", "answer": f"So.\n#### {gold}"} for gold in ("1,000", "5%", "7")]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "gsm8k" / "test.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "gsm8k" / "SOURCE.tsv").write_text("file\trepo\tcommit\ntest.jsonl\ta/b\tc0\n")
    counts = script.count_conventions(tmp_path, ["gsm8k"]).set_index("convention")
    assert set(counts["source"]) == {"a/b@c0"}
    assert set(counts["n_golds"]) == {3}
    assert counts["golds"].to_dict() == {
        name: int(name.startswith("percent")) for name, *_ in conformance.CONVENTIONS
    }


def test_the_chapter_says_what_the_tables_hold(table, tmp_path) -> None:
    shown = execute("conformance", {"n_resamples": 5, "output_dir": str(tmp_path)}, with_prose=True)
    text = re.sub(r"\s+", " ", " ".join(shown))
    for sentence in (
        "**0.004 or 0.025** is the ECE of the same 1,221 answers",
        "**21 of 52** ECEs of other libraries differ from ours on vectors made to tell them apart, "
        "by up to 0.067",
        "**2 of 10** ECEs of real models depend on the library, one by 0.022 and one by 0.001",
        "Closed on the right: (0.1 + 0.95) / 2 = 0.525. Closed on the left: |0.5 - 0.925| = 0.425.",
        "The side matters at 10 bins alone",
        "For 17 of the 21 ECEs that differ",
    ):
        assert sentence in text
    parts = re.search(r"these two part at (.*?); netcal, by probing, at (.*?)\.\s", text)
    assert parts[1] == parts[2]
    restated = re.search(r"rule restated gives (\S+), and netcal gave (\S+)\.\s", text)
    assert restated[1] == restated[2]
    written = {path.name: list(pd.read_csv(path)) for path in tmp_path.iterdir()}
    assert written["conformance.csv"] == list(table)
    assert written["edges.csv"] == list(landings(table))
    assert len(written["conventions.csv"]) == 8


def test_no_two_libraries_put_the_edges_alike(table) -> None:
    bins = edge_table(landings(table))
    assert len({tuple(bins[library]) for library in LIBRARIES}) == len(LIBRARIES)
    rules = conformance.rules(table).set_index("library")
    assert rules["closed on"].to_dict() == {
        library: "right" if library in {"corea", "scikit-learn"} else "left"
        for library in LIBRARIES
    }
    assert rules.loc["corea", "except at"] == rules.loc["corea", "moved in float32"] == ""
    assert rules.loc["np.digitize", "except at"] == "0.3, 0.6, 0.7"
    assert rules.loc["torchmetrics", "1.0 is in"] == "a bin of its own"
