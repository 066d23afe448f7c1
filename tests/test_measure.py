import csv
import re
from collections import Counter
from html import unescape

import numpy as np
import pandas as pd
import pytest
from chapters import execute

from corea import adapters
from corea.metrics import calibration, cascade, measure
from corea.metrics.calibration import brier_score, expected_calibration_error
from corea.metrics.cascade import operating_point
from corea.records import RecordsError, select


@pytest.fixture(scope="module")
def rlcr():
    return select(adapters.rlcr().table, dataset="math-500")


def test_calibration_table_is_the_metrics(rlcr):
    result = measure.calibration_table(rlcr, n_bins=15, n_resamples=5, seed=1)
    values = result.set_index(["system", "metric"])["estimate"]
    rows = select(rlcr, system="RLCR")
    expected = expected_calibration_error(rows["confidence"], rows["correct"], n_bins=15)
    assert values["RLCR", "ECE (equal width)"] == expected
    assert values["RLCR", "Brier score"] == brier_score(rows["confidence"], rows["correct"])
    assert values["RLCR", "pass@1"] == rows["correct"].mean()
    again = measure.calibration_table(rlcr, n_bins=15, n_resamples=5, seed=1)
    pd.testing.assert_frame_equal(result, again)
    two = ["AUROC", "pass@1"]
    some = measure.calibration_table(rlcr, two, n_bins=15, n_resamples=5, seed=1)
    chosen = result.set_index(["system", "metric"]).loc[
        [(s, m) for s in rlcr["system"].unique() for m in two]
    ]
    pd.testing.assert_frame_equal(some.set_index(["system", "metric"]), chosen)
    with pytest.raises(ValueError, match="metrics has 'ECE'; expected some of pass@1, "):
        measure.calibration_table(rlcr, ["ECE"])


def test_what_is_stated_is_measured_among_what_is_stated():
    rng = np.random.default_rng(1)
    rows = pd.DataFrame(
        {
            "confidence": np.where(rng.random(60) < 0.2, np.nan, rng.integers(0, 11, 60) / 10),
            "correct": rng.random(60) < 0.6,
            "sample": 0,
        }
    )
    weight = rng.integers(0, 4, (20, 60)).astype(float)
    weight[19, rows["correct"]] = 0  # only wrong answers: no constant to compare with
    found = measure._values(rows, weight, 10, "equal_width")
    assert set(found) == set(measure.METRICS)
    stated = rows["confidence"].notna().to_numpy()
    pair = rows["confidence"][stated], rows["correct"][stated]
    for i, counted in enumerate(weight[:, stated]):
        accuracy = np.average(pair[1], weights=counted)
        assert found["stated_accuracy"][i] == pytest.approx(100 * accuracy)
        gap = np.average(pair[0], weights=counted) - accuracy
        assert found["overconfidence"][i] == pytest.approx(gap)
        area = calibration.area_under_risk_coverage(*pair, weight=counted)
        assert found["aurc"][i] == pytest.approx(area)
        skill = calibration.brier_skill(*pair, weight=counted)
        assert found["brier_skill"][i] == pytest.approx(skill, nan_ok=True)
    assert np.isnan(found["brier_skill"][19])


def test_rows_without_a_confidence_are_counted():
    table = pd.DataFrame(
        {
            "dataset": "d",
            "question_id": ["1", "2", "1"],
            "system": ["s", "s", "t"],
            "sample": 0,
            "correct": True,
            "confidence": [1.0, np.nan, np.nan],
        }
    )
    result = measure.calibration_table(table, n_resamples=2).set_index(["system", "metric"])
    assert result.loc[("s", "pass@1"), ["n", "without_confidence"]].tolist() == [1, 1]
    assert np.isnan(result.loc[("t", "Brier score"), "estimate"])
    shown = measure.with_intervals(result.reset_index(), ["Brier score"])
    assert str(shown["Brier score"][0]) == "0.000 [0.000, 0.975]"  # one question
    assert shown["Brier score"][1] is None


def test_difference_of_a_system_with_itself_is_nothing(rlcr):
    same = pd.concat([rlcr, select(rlcr, system="RLCR").assign(system="copy")])
    interval = measure.difference_interval(same, brier_score, "copy", "RLCR", n_resamples=20)
    # no question on which they differ was seen, which bounds how many there are
    unseen = 1 - 0.025 ** (1 / interval.n_questions)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0, -unseen, unseen))


def test_difference_is_paired(rlcr):
    both = measure.difference_interval(rlcr, brier_score, "RLCR", "Base", n_resamples=200)
    table = measure.calibration_table(rlcr, n_resamples=200).set_index(["system", "metric"])
    one, other = (table.loc[(name, "Brier score")] for name in ("RLCR", "Base"))
    assert both.estimate == pytest.approx(one["estimate"] - other["estimate"])
    apart = np.hypot(one["high"] - one["low"], other["high"] - other["low"])
    assert both.high - both.low < apart


def test_difference_needs_the_same_questions(rlcr):
    with pytest.raises(RecordsError, match="expected the same questions"):
        measure.difference_interval(rlcr, brier_score, "RLCR", "nobody")
    less = rlcr.drop(select(rlcr, system="Base").index[:1])
    with pytest.raises(RecordsError, match="expected the same questions"):
        measure.difference_interval(less, brier_score, "RLCR", "Base")
    gaps = rlcr.assign(confidence=rlcr["confidence"].mask(rlcr.index == rlcr.index[0]))
    name = gaps.loc[gaps.index[0], "system"]
    with pytest.raises(RecordsError, match=r"1 confidence\(s\) are missing"):
        measure.difference_interval(gaps, brier_score, name, "RLCR" if name != "RLCR" else "Base")


def cascade_records(tokens=True):
    n = 50
    rng = np.random.default_rng(0)
    small = pd.DataFrame({"system": "s", "confidence": rng.integers(0, 11, n) / 10})
    large = pd.DataFrame({"system": "l", "confidence": np.full(n, np.nan)})
    table = pd.concat([small, large], ignore_index=True)
    table["question_id"] = [str(i % n) for i in range(2 * n)]
    table["correct"] = rng.random(2 * n) < 0.7
    if tokens:
        table["prompt_tokens"] = pd.array([100] * 2 * n, "Int64")
        table["completion_tokens"] = pd.array([50] * 2 * n, "Int64")
    return table.assign(dataset="d", sample=0)


def test_prices_from_tokens_or_by_the_query():
    paired, unit = cascade.priced_pair(cascade_records(), "s", "l", size_ratio=10)
    assert paired[["small_cost", "large_cost"]].iloc[0].tolist() == [300, 3000]
    assert unit == "input tokens of the small model"
    table = cascade_records()
    table.loc[3, "prompt_tokens"] = pd.NA
    for records in (table, cascade_records(tokens=False)):
        paired, unit = cascade.priced_pair(records, "s", "l", size_ratio=10)
        assert paired[["small_cost", "large_cost"]].iloc[0].tolist() == [1, 10]
        assert "not every row has its token counts" in unit


def test_operating_intervals_are_around_the_operating_point():
    paired, _ = cascade.priced_pair(cascade_records(), "s", "l", size_ratio=10)
    intervals = cascade.operating_intervals(paired, threshold=0.5, n_resamples=50)
    point = operating_point(*(paired[c] for c in cascade.COLUMNS), threshold=0.5)
    for name, interval in intervals.items():
        assert interval.estimate == pytest.approx(getattr(point, name))
        assert interval.low < interval.estimate < interval.high


def test_small_and_large():
    table = cascade_records()
    assert cascade.small_and_large(table) == ("s", "l")
    assert cascade.small_and_large(table, large="s") == ("l", "s")
    assert cascade.small_and_large(table[table["system"] == "l"]) == ("l", "")
    with pytest.raises(ValueError, match="both 's'"):
        cascade.small_and_large(table, "s", "s")
    with pytest.raises(ValueError, match="no system 'x'"):
        cascade.small_and_large(table, "x")
    three = pd.concat([table, table.iloc[:1].assign(system="third")])
    with pytest.raises(ValueError, match="3 systems: say which"):
        cascade.small_and_large(three, "s")
    assert cascade.small_and_large(three, "third", "l") == ("third", "l")


def test_confident_mistakes():
    table = cascade_records()
    found = measure.confident_mistakes(table, n=3)
    wrong = table[~table["correct"] & table["confidence"].notna()]
    assert len(found) == 3
    assert found["confidence"].tolist() == sorted(wrong["confidence"], reverse=True)[:3]
    assert list(found) == ["dataset", "question_id", "system", "confidence"]


UGLY = "{x} {0!r} $\\frac{1}{2}$ $b$ <b>&amp;</b> _c_ *d* `e` \\(f\\) %{y} \u202e"


def ugly_file(path, *, small, large, datasets=2, n=30):
    """Records with names that look like templates, mathematics or HTML, in a file with such a name."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "question_id", "system", "correct", "confidence", "answer"])
        for dataset in range(datasets):
            for question in range(n):
                row = [f"_{UGLY}{dataset}", question]
                stated = rng.integers(0, 11) / 10 if question else "N/A"
                writer.writerow([*row, small, f"{rng.integers(0, 2):.1f}", stated, UGLY])
                writer.writerow([*row, large, "1.0", "", "a" * 9000])
    return path


@pytest.mark.parametrize("end", ["", "$" * 20_000])
def test_the_report_on_an_ugly_file(tmp_path, end):
    small, large = UGLY + end, f"_{UGLY}{end}"
    path = ugly_file(tmp_path / "{x} $y$ <i>.csv", small=small, large=large)
    given = {"records": str(path), "n_resamples": 3, "output_dir": str(tmp_path)}
    html = "".join(execute("your_records", given | {"small": small, "large": large}))
    assert len(html) < 2_000_000
    static = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"<(b|i|em|code)>", static)
    # no MathJax delimiter survives
    assert "$" not in static.replace("<span>$</span>", "")
    assert "\\" not in static.replace("<span>\\</span>", "")
    text = unescape(re.sub(r"<[^>]*>", "", static))
    assert "{x} $y$ <i>.csv: 120 rows read" in text
    assert "confidence: 2 cell(s) that say 'N/A' are taken as missing" in text
    assert "{x} {0!r} $\\frac{1}{2}$" in text
    # what is short in the page is whole in the results
    kept = pd.read_csv(tmp_path / "calibration.csv", keep_default_na=False)
    assert set(kept["system"]) == {small, large}


def test_many_datasets_are_measured_in_bounded_time(tmp_path, monkeypatch):
    """Each resample calls a metric once a table: the work grows with datasets, not with rows."""
    calls = Counter()

    def counted(name, metric):
        def call(*args, **options):
            calls[name] += 1
            return metric(*args, **options)

        return call

    for name in ("auroc", "brier_score", "expected_calibration_error", "smooth_ece"):
        metric = getattr(measure.calibration, name)
        monkeypatch.setattr(measure.calibration, name, counted(name, metric))
    path = ugly_file(tmp_path / "a.csv", small="s", large="l", datasets=20, n=3)
    execute("your_records", {"records": str(path), "n_resamples": 10})
    assert calls == {
        # of each dataset, and of all together: there the skill is a Brier score too
        "auroc": (20 + 1) * 11,
        "brier_score": (20 + 2) * 11,
        "expected_calibration_error": (40 + 1) * 11,
    }
