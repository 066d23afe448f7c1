"""The committed tables against the papers, and what the cross-checks find."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corea.book import published

TOKENS = "SLM input tokens per question"

# (paper, table, labels, value): read by hand from the papers' pages
CELLS = [
    ("A", 1, "DeepMath500 | SLM | pass_at_1", 42.7),
    ("A", 1, "OOD Math | SLM-Verb | cost", 7300),
    ("A", 1, "OOD Math | COREA | cost_change", -21.5),
    ("A", 1, "OOD Non-Math | Router+RLVR-SLM | deferral_rate", 34.0),
    ("A", 1, "DeepMath500 | Brier-SLM-Verb | cost_change", 2.5),
    ("A", 5, "DeepMath500 | RLVR-SLM-Probe | large_cost", 7051),
    ("A", 5, "DeepMath500 | COREA | pass_at_1_change", -1.5),
    ("A", 5, "DeepMath500 | Baseline LLM | deferral_rate", 100),
    ("A", 6, "Math500 | Baseline LLM | cost", 11499),
    ("A", 6, "Math500 | SLM-Verb | pass_at_1", 77.2),
    ("A", 6, "Math500 | Brier-SLM-Verb | pass_at_1_change", -0.2),
    ("A", 7, "GSM8K | Router+RLVR-SLM | small_cost", 1324),
    ("A", 7, "GSM8K | RLVR-SLM-Verb | deferral_rate", 25.1),
    ("A", 7, "GSM8K | COREA | cost_change", -55.7),
    ("A", 8, "OlympiadBench | COREA | cost_change", -0.4),
    ("A", 8, "OlympiadBench | L1-SLM | small_cost", 4424),
    ("A", 8, "OlympiadBench | RLVR-SLM-AvgProb | large_cost", 0),
    ("A", 9, "GPQA | COREA | pass_at_1_change", -5.1),
    ("A", 9, "GPQA | Brier-SLM | pass_at_1", 32.8),
    ("A", 9, "GPQA | SLM-Verb | cost", 4557),
    ("A", 10, "CommonsenseQA | Brier-SLM-Verb | pass_at_1_change", 0.0),
    ("A", 10, "CommonsenseQA | Brier-SLM-Verb | cost_change", 10.1),
    ("A", 10, "CommonsenseQA | Router+RLVR-SLM | large_cost", 1614),
    ("A", 11, "OOD Non-Math | L1-SLM | cost", 449),
    ("A", 11, "DeepMath500 | Baseline LLM | cost", 69450),
    ("A", 11, "OOD Non-Math | COREA | cost_change", -42.4),
    ("A", 12, "DeepMath500 | L1 | ece", 0.11),
    ("A", 12, "GSM8K | L2 | ece", 0.53),
    ("A", 12, "Math500 | Sample_KL | auroc", 0.86),
    ("A", 13, "OlympiadBench | SLM | ece", 0.76),
    ("A", 13, "GPQA | RLVR | pass_at_1", 29.0),
    ("A", 13, "CommonsenseQA | Sample_L1 | auroc", 0.60),
    ("A", 14, "DeepMath500 | 32 | ece", 0.19),
    ("A", 14, "Math500 | 16 | pass_at_1", 68.9),
    ("A", 14, "GSM8K | 32 | auroc", 0.62),
    ("A", 15, "GPQA | 32 | ece", 0.42),
    ("A", 15, "OlympiadBench | 4 | pass_at_1", 35.2),
    ("A", 15, "CommonsenseQA | 16 | auroc", 0.66),
    ("B", 1, "CSQA | Qwen3-1.7B | Base | accuracy", 67.49),
    ("B", 1, "OpenAI | Qwen3-4B | SFT | ece", 5.26),
    ("B", 1, "XSTest | Qwen3-8B | GRPO | accuracy", 86.22),
    ("B", 2, "CSQA | Qwen3-8B | share_above_0.99", 99.85),
    ("B", 2, "OpenAI | Qwen3-4B | share_above_0.99", 94.62),
    ("B", 2, "OpenAI | Qwen3-1.7B | share_above_0.99", 99.80),
    ("B", 3, "OpenAI | Qwen3-1.7B | flipped_share", 100.00),
    ("B", 3, "CSQA | Qwen3-1.7B | flipped_share", 92.15),
    ("B", 3, "OpenAI | Qwen3-8B | flipped_share", 96.85),
    ("B", 4, "CSQA | Qwen3-1.7B | Ours | ece", 15.97),
    ("B", 4, "OBQA | Qwen3-8B | Ours | accuracy", 95.59),
    ("B", 4, "XSTest | Qwen3-4B | Ours | ece", 8.89),
    ("B", 5, "OpenAI | Qwen3-4B | Ours | Isotonic | ece", 2.8),
    ("B", 5, "XSTest | Qwen3-8B | GRPO | Isotonic | ece", 1.62),
    ("B", 5, "OpenAI | Qwen3-1.7B | GRPO | None | ece", 12.20),
    ("B", 6, "CSQA | Qwen3-1.7B | Base | mce", 16.68),
    ("B", 6, "OBQA | Qwen3-8B | Ours | sce", 1.60),
    ("B", 6, "OBQA | Qwen3-4B | GRPO | mce", 6.52),
    ("B", 7, "OpenAI | Qwen3-1.7B | Base | auroc", 71.915),
    ("B", 7, "OpenAI | Qwen3-8B | Ours | auroc", 77.209),
    ("B", 7, "XSTest | Qwen3-1.7B | GRPO | auroc", 56.012),
    ("B", 8, "CSQA | Qwen3-1.7B | 0.005 | ece", 4.26),
    ("B", 8, "OBQA | Qwen3-1.7B | 0.0005 | accuracy", 89.07),
    ("B", 8, "OBQA | Qwen3-1.7B | 0.005 | ece", 9.60),
    ("B", 9, "CSQA | Qwen3-1.7B | 0.05 | ece", 23.14),
    ("B", 9, "OBQA | Qwen3-1.7B | 0 | accuracy", 86.17),
    ("B", 9, "OBQA | Qwen3-1.7B | 0.05 | accuracy", 86.05),
]

ROWS = (
    {("A", 1): 150, ("A", 11): 57}
    | {("A", n): 74 for n in range(5, 11)}
    | {("A", n): rows for n, rows in ((12, 72), (13, 72), (14, 36), (15, 36))}
    | {("B", n): rows for n, rows in enumerate((72, 6, 6, 96, 36, 48, 24, 12, 8), start=1)}
)


def cell(paper, table, labels):
    """The one row that carries all labels."""
    rows = published.published_table(paper, table)
    columns = ["dataset", "model", "system", "setting", "metric"]
    wanted = set(labels.split(" | "))
    found = rows[[wanted <= set(row) for row in rows[columns].itertuples(index=False)]]
    assert len(found) == 1, found
    return found.iloc[0]


@pytest.mark.parametrize(("paper", "table", "labels", "value"), CELLS)
def test_cells_read_by_hand(paper, table, labels, value):
    assert cell(paper, table, labels)["value"] == value


def test_every_table_is_whole_and_three_of_its_cells_were_read_by_hand():
    counts = pd.Series([(paper, table) for paper, table, *_ in CELLS]).value_counts()
    assert set(counts.index) == set(published.TABLES)
    assert counts.min() >= 3
    counted = {key: len(published.published_table(*key)) for key in published.TABLES}
    assert counted == ROWS


@pytest.mark.parametrize("key", published.TABLES)
def test_every_number_has_labels_and_a_unit_and_stands_once(key):
    rows = published.published_table(*key)
    assert (rows[["dataset", "system", "metric", "unit"]] != "").all(axis=None)
    labels = ["block", "dataset", "model", "system", "setting", "metric"]
    assert not rows.duplicated(labels).any()
    assert rows["half_unit"].gt(0).all()


def test_units_and_spreads():
    tables = {key: published.published_table(*key) for key in published.TABLES}
    rows = pd.concat(tables.values())
    units = rows.groupby(["paper", "metric"])["unit"].unique().map(list)
    assert units["A", "ece"] == units["A", "auroc"] == ["fraction"]
    assert units["A", "cost"] == units["A", "large_cost"] == [TOKENS]
    assert units["A", "pass_at_1_change"] == ["percentage points"]
    assert set(rows.loc[rows["paper"] == "B", "unit"]) == {"%"}
    with_spread = {key for key, table in tables.items() if table["spread"].notna().any()}
    assert with_spread == {("A", n) for n in (12, 13, 14, 15)}  # only behind results of runs
    assert cell("A", 12, "DeepMath500 | SLM | pass_at_1")["spread"] == 1.5
    assert cell("A", 13, "GPQA | RLVR | pass_at_1")["spread"] == 1.9
    assert cell("A", 15, "GPQA | 32 | ece")["spread"] == 0.02


def test_only_the_cut_row_of_table_7_is_lost():
    rows = pd.concat([published.published_table(*key) for key in published.TABLES])
    lost = rows[rows["value"].isna()]
    assert lost[["paper", "table", "dataset", "model", "system"]].to_numpy().tolist() == [
        ["B", 7, "OpenAI", "Qwen3-4B", "Base"],
        ["B", 7, "OpenAI", "Qwen3-8B", "Base"],
    ]
    assert lost["note"].str.contains("lost").all()
    assert "first number of the row" in cell("B", 7, "OpenAI | Qwen3-1.7B | Base")["note"]
    assert (rows["note"] != "").sum() == 3


def test_a_column_is_rounded_at_its_most_precise_cell():
    never_deferred = cell("A", 5, "RLVR-SLM-AvgProb | deferral_rate")
    assert (never_deferred["decimals"], never_deferred["half_unit"]) == (0, 0.05)
    assert cell("A", 1, "OOD Math | COREA | cost")["half_unit"] == 0.5
    assert cell("B", 7, "XSTest | Qwen3-8B | Ours")["half_unit"] == 0.0005


def test_a_returned_table_can_be_changed_without_changing_the_next():
    rows = published.published_table("B", 9)
    rows["value"] = 0.0
    assert published.published_table("B", 9)["value"].gt(0).all()


@pytest.mark.parametrize("read", [published.published_table, published.lay_out_table])
@pytest.mark.parametrize(
    ("paper", "table", "message"),
    [
        ("C", 1, "paper is 'C'; expected one of 'A', 'B'"),
        ("A", 2, "table of paper A is 2; expected one of 1, 5, 6"),
        ("B", 10, r"table of paper B is 10; expected one of 1, 2, .*, 9$"),
    ],
)
def test_unknown_tables_name_what_exists(read, paper, table, message):
    with pytest.raises(ValueError, match=message):
        read(paper, table)


# the papers' layout


@pytest.mark.parametrize(
    ("paper", "table", "row", "column", "text"),
    [
        ("A", 1, ("Collaborative", "COREA"), ("OOD Math", "Avg Cost"), "7978 (-21.5%)"),
        ("A", 1, ("Standalone", "SLM"), ("DeepMath500", "LLM%"), "0.0"),
        ("A", 8, ("Collaborative", "RLVR-SLM-AvgProb"), "LLM%", "0"),
        ("A", 10, ("Collaborative", "Brier-SLM-Verb"), "Pass@1%", "81.7 (+0.0)"),
        ("A", 12, "L1", ("GSM8K", "ECE"), "0.07±0.00"),
        ("A", 14, "16", ("Math500", "Pass@1%"), "68.9±1.3"),
        ("B", 2, "CSQA", "Qwen3-1.7B", "97.62%"),
        ("B", 4, ("OBQA", "Ours"), ("Qwen3-8B", "ECE"), "1.83"),
        ("B", 5, ("Qwen3-4B", "Isotonic"), ("XSTest", "Ours"), "3.9"),
        ("B", 8, ("OBQA", "0.005"), "ECE", "9.60"),
    ],
)
def test_layout_prints_cells_as_the_paper_does(paper, table, row, column, text):
    assert published.lay_out_table(paper, table).loc[row, column] == text


def test_layout_keeps_the_papers_order_and_headings():
    wide = published.lay_out_table("A", 1)
    assert list(wide.columns.get_level_values(0).unique()) == list(published.GROUPS)
    assert wide.index.get_level_values(1)[0] == "SLM"
    assert wide.index[-1] == ("Collaborative", "COREA")
    assert published.lay_out_table("A", 15).index.name == "Rollout Size"
    assert list(published.lay_out_table("B", 5).index.names) == ["Model", "Post-Hoc"]


@pytest.mark.parametrize("key", published.TABLES)
def test_layout_has_every_value_in_one_cell(key):
    rows = published.published_table(*key)
    values = rows[~rows["metric"].str.endswith("_change")]
    wide = published.lay_out_table(*key)
    assert wide.size == len(values)
    assert wide.notna().sum().sum() == values["value"].notna().sum()


# the weighted mean


def test_weighted_mean_by_hand():
    values = pd.DataFrame({"Math500": [54.1], "GSM8K": [81.7], "OlympiadBench": [23.4]})
    mean = published.weighted_mean_over_datasets(
        values, {"Math500": 500, "GSM8K": 1319, "OlympiadBench": 675}
    )
    assert mean[0] == pytest.approx((54.1 * 500 + 81.7 * 1319 + 23.4 * 675) / 2494)
    assert round(mean[0], 1) == 60.4  # as Table 1 prints it


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6),
    st.lists(st.floats(0.1, 1e3), min_size=6, max_size=6),
)
def test_weighted_mean_lies_between_its_values_and_ignores_scale(values, weights):
    names = [f"d{i}" for i in range(len(values))]
    frame = pd.DataFrame([values], columns=names)
    weight = dict(zip(names, weights, strict=False))
    mean = published.weighted_mean_over_datasets(frame, weight)[0]
    assert min(values) - 1e-6 <= mean <= max(values) + 1e-6
    tripled = {name: 3 * n for name, n in weight.items()}
    assert published.weighted_mean_over_datasets(frame[names[::-1]], tripled)[0] == pytest.approx(
        mean, abs=1e-9
    )


def test_weighted_mean_refuses_what_it_would_have_to_guess():
    values = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, math.nan]}, index=["x", "y"])
    weights = {"a": 1, "b": 1}
    with pytest.raises(ValueError, match=r"datasets: found \['a', 'b'\], expected \['a'\]"):
        published.weighted_mean_over_datasets(values, {"a": 1})
    with pytest.raises(ValueError, match="row 'y', dataset 'b'"):
        published.weighted_mean_over_datasets(values, weights)
    with pytest.raises(ValueError, match="expected positive numbers"):
        published.weighted_mean_over_datasets(values[:1], weights | {"b": 0})


# the cross-checks


def test_table_1_is_the_question_weighted_mean_of_tables_5_to_10():
    checked = published.cross_check_table1()
    assert len(checked) == ROWS["A", 1]
    assert checked[~checked["agrees"]].empty  # not one cell differs by more than rounding
    other_digits = checked[~checked["same_digits"]]
    cells = other_digits[["dataset", "system", "metric"]]
    assert set(cells.itertuples(index=False, name=None)) == {
        ("DeepMath500", "SLM-Verb", "pass_at_1_change"),
        ("DeepMath500", "Router+RLVR-SLM", "pass_at_1_change"),
        ("OOD Math", "RLVR-SLM", "pass_at_1"),
        ("OOD Math", "L1-SLM", "pass_at_1"),
        ("OOD Math", "Baseline LLM", "cost"),
        ("OOD Math", "RLVR-SLM-AvgProb", "deferral_rate"),
        ("OOD Math", "Router+RLVR-SLM", "cost"),
        ("OOD Math", "Brier-SLM-Verb", "pass_at_1_change"),
        ("OOD Math", "COREA", "pass_at_1"),
        ("OOD Math", "COREA", "deferral_rate"),
        ("OOD Non-Math", "SLM-Verb", "cost"),
        ("OOD Non-Math", "Router+RLVR-SLM", "cost"),
        ("OOD Non-Math", "Brier-SLM-Verb", "pass_at_1"),
    }


def test_table_1_tolerance_is_the_rounding_of_inputs_and_output():
    checked = published.cross_check_table1().set_index(["dataset", "system", "metric"])
    tolerance = checked["tolerance"]
    assert tolerance["OOD Math", "COREA", "pass_at_1"] == pytest.approx(0.05 + 0.05)
    assert tolerance["OOD Math", "COREA", "cost"] == pytest.approx(0.5 + 0.5)
    assert tolerance["OOD Math", "COREA", "pass_at_1_change"] == pytest.approx(0.05 + 0.1)
    # 100 (c / b - 1), c and b each within 0.5: the upper end is the farther one
    cost, base = (checked["recomputed"]["OOD Math", s, "cost"] for s in ("COREA", "Baseline LLM"))
    farther = 100 * ((cost + 0.5) / (base - 0.5) - cost / base)
    assert tolerance["OOD Math", "COREA", "cost_change"] == pytest.approx(0.05 + farther)


def test_one_wrong_cell_is_found_by_every_check_that_reads_it(monkeypatch):
    whole = published._transcription("A").copy()
    wrong = (whole["table"] == 6) & (whole["system"] == "COREA") & (whole["metric"] == "cost")
    whole.loc[wrong, "value"] += 20
    monkeypatch.setattr(published, "_transcription", {"A": whole}.__getitem__)
    table1 = published.cross_check_table1()
    cells = table1[~table1["agrees"]][["dataset", "system", "metric"]].to_numpy().tolist()
    assert cells == [["OOD Math", "COREA", "cost"]]  # 20 * 500 / 2494 is 4; its change is 0.04 %
    for check in (published.cross_check_changes(), published.cross_check_cost_sums()):
        wrong_cells = check[~check["agrees"]]
        assert wrong_cells[["table", "dataset", "system"]].to_numpy().tolist() == [
            [6, "Math500", "COREA"]
        ]


def test_without_question_weights_table_1_does_not_come_out():
    checked = published.cross_check_table1(dict.fromkeys(published.QUESTIONS, 1))
    agreeing = checked.groupby("dataset")["agrees"].sum().to_dict()
    assert agreeing == {"DeepMath500": 50, "OOD Math": 8, "OOD Non-Math": 6}


def test_printed_changes_follow_from_printed_values():
    checked = published.cross_check_changes()
    printed = sum(
        published.published_table("A", n)["metric"].str.endswith("_change").sum()
        for n in (1, *range(5, 12))
    )
    assert len(checked) == printed == 138
    assert checked["agrees"].all()
    assert (~checked["same_digits"]).sum() == 17
    assert checked["difference"].abs().max() == pytest.approx(0.1)


def test_small_and_large_costs_add_up():
    checked = published.cross_check_cost_sums()
    assert len(checked) == 66
    assert published.ROUTER not in set(checked["system"])
    assert checked["agrees"].all()
    assert checked["tolerance"].eq(1.5).all()
    assert checked["difference"].value_counts().to_dict() == {0.0: 55, -1.0: 6, 1.0: 5}


def test_router_cost_is_what_remains():
    cost = published.router_cost().set_index("dataset")
    assert list(cost.index) == list(published.QUESTIONS)
    assert cost["router_cost"].tolist() == [116, 113, 104, 143, 246, 80]
    assert cost["tolerance"].eq(1.5).all()
    assert cost["share"]["GSM8K"] == pytest.approx(104 / 1532)


def test_numbers_printed_twice_are_equal():
    checked = published.cross_check_repeats()
    assert checked.groupby("check", sort=False).size().to_dict() == {
        "A 14-15 (rollout size 8) = A 12-13 (L1)": 36,
        "A 5-10, SLM cost: collaborative = standalone": 36,
        "A 11 = A 1 (large model, cost x 7/1.5)": 9,
        "B 1 = B 4": 72,
        "B 5 (no post-hoc calibration) = B 4": 12,
        "B 8 (lambda 0.001) = B 4 (Ours)": 4,
        "B 9 (beta 0) = B 4 (GRPO)": 4,
    }
    assert checked["recomputed"].notna().all()
    assert checked["agrees"].all()
    scaled = checked[checked["tolerance"] > 0]
    assert set(scaled["metric"]) == {"cost"}
    assert len(scaled) == 3


def test_one_model_scores_differently_in_two_evaluations():
    compared = published.compare_evaluations()
    assert len(compared) == 24
    outside = compared[~compared["agrees"]]
    assert outside[["dataset", "system", "printed", "recomputed"]].to_numpy().tolist() == [
        ["Math500", "L1-SLM", 71.5, 72.4]
    ]


def test_deferral_selectivity_by_hand():
    rows = published.deferral_selectivity().set_index(["dataset", "system"])
    assert len(rows) == 42
    corea = rows.loc[("GPQA", "COREA")]
    assert corea["cost_ratio"] == pytest.approx(6734 / (0.458 * 13420))
    assert corea["cost_ratio_low"] == pytest.approx(6733.5 / (0.4585 * 13420.5))
    assert corea["random_pass_at_1"] == pytest.approx(0.542 * 34.2 + 0.458 * 43.4)
    assert corea["gain_tolerance"] == pytest.approx(0.1 + 0.0005 * (43.4 - 34.2))


def test_what_deferral_selects():
    rows = published.deferral_selectivity()
    nothing = rows["deferral_rate"] == 0
    assert rows["cost_ratio"].isna().tolist() == nothing.tolist()
    assert nothing.sum() == 4
    deferring = rows[~nothing]
    assert (
        deferring[["cost_ratio_low", "cost_ratio", "cost_ratio_high"]]
        .apply(lambda row: row.is_monotonic_increasing, axis=1)
        .all()
    )
    worse = rows[rows["gain"] < -rows["gain_tolerance"]]
    assert set(worse[["dataset", "system"]].itertuples(index=False, name=None)) == {
        ("DeepMath500", "RLVR-SLM-Verb"),
        ("DeepMath500", "Router+RLVR-SLM"),
        ("GPQA", "Router+RLVR-SLM"),
        ("GPQA", "COREA"),
        ("CommonsenseQA", "Router+RLVR-SLM"),
    }


def test_lost_tables_come_out_of_tables_12_to_15():
    by_hand = np.average(
        [0.11, 0.11, 0.07, 0.11, 0.15, 0.19], weights=[*published.QUESTIONS.values()]
    )
    rewards, rollouts = published.recompute_lost_table(3), published.recompute_lost_table(4)
    assert rewards.loc["L1", "ece"] == pytest.approx(by_hand)
    assert list(rewards.index) == ["L1", "Sample_L1", "L2", "Brier", "KL", "Sample_KL"]
    assert list(rollouts.index) == ["4", "8", "16", "32"]
    np.testing.assert_allclose(rollouts.loc["8"], rewards.loc["L1"])
    methods = published.recompute_lost_table(2)
    assert methods.index[methods["ece"].isna()].tolist() == [
        "RLVR-SLM-AvgProb",
        "RLVR-SLM-Probe",
        "Router+RLVR-SLM",
    ]
    np.testing.assert_allclose(methods.loc["L1-SLM-Verb"], rewards.loc["L1"])
    with pytest.raises(ValueError, match="found 1, expected 2, 3 or 4"):
        published.recompute_lost_table(1)


def test_claims_that_the_tables_do_not_bear_out():
    claims = published.check_claims()
    assert len(claims) == 24
    failed = claims[~claims["agrees"]].set_index("claim")
    assert failed["section"].to_dict() == {
        "Rollout Size 16 has the best AUROC": "5.4.3",
        "ECE reduced by up to": "abstract",
        "GRPO consistently above SFT in accuracy": "3.3",
        "better than GRPO for all lambda: accuracy": "B.3",
    }
    assert failed["recomputed"]["ECE reduced by up to"] == pytest.approx(24.39 - 15.97)
    assert failed["recomputed"]["GRPO consistently above SFT in accuracy"] == 11
    assert failed["recomputed"]["Rollout Size 16 has the best AUROC"] == 2


def test_claims_that_hold():
    claims = published.check_claims().set_index("claim")
    assert claims["recomputed"]["COREA reduces cost on OOD Math by"] == pytest.approx(21.5, abs=0.1)
    assert claims["recomputed"]["GRPO above SFT on average by"] == pytest.approx(33.86 / 12)
    drop = claims.loc["COREA's drop in pass@1 is at most"]
    assert (drop["relation"], drop["recomputed"] < 2) == ("<=", True)


def test_the_price_of_the_large_model_decides_about_the_saving():
    swept = published.sweep_price_ratio([1, 5, np.inf])
    of = swept.set_index(["price_factor", "system", "dataset"])["cost_change"]
    printed = pd.concat([published.published_table("A", n) for n in range(5, 11)])
    printed = printed[printed["metric"] == "cost_change"].set_index(["system", "dataset"])["value"]
    now = of[1.0].reindex(printed.index)
    assert (now - printed).abs().max() < 0.07  # as printed, but for rounding
    limits = {"DeepMath500": -32.0, "Math500": -42.7, "GSM8K": -80.2, "OlympiadBench": -26.2,
              "GPQA": -49.8, "CommonsenseQA": -35.5}  # fmt: skip
    assert of[np.inf]["COREA"].round(1).to_dict() == limits
    assert (of[np.inf] <= of[5.0]).all()
    # SLM-Verb on GSM8K, by hand: 1388 and 1280 of 6073
    assert of[5.0, "SLM-Verb", "GSM8K"] == pytest.approx(
        100 * (1387 / 5 / 6073 + 1280 / 6073 - 1), abs=0.01
    )
