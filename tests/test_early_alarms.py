import numpy as np
import pandas as pd
import pytest
from chapters import execute, tables

from corea.book import early_alarms
from corea.training.alarms import Limits

SOUND = {
    "pass_at_1": 0.5, "ece": 0.2, "confidence_output_ratio": 0.9, "commonest_share": 0.4,
    "accuracy_spread": 0.3,
}  # fmt: skip


def run(arm, seed=0, end=None, late=None, at=13, steps=20):
    """Curves of one training: ``end`` changes the last validation, ``late`` the steps from ``at``."""
    rows = [{"split": "held-out", "step": 0} | SOUND]
    rows.append({"split": "held-out", "step": steps} | SOUND | (end or {}))
    for step in range(1, steps + 1):
        rows.append({"split": "train", "step": step} | SOUND | ((late or {}) if step >= at else {}))
    return pd.DataFrame(rows).assign(arm=arm, seed=seed)


@pytest.mark.parametrize(
    ("end", "failed"),
    [
        ({}, ""),
        ({"pass_at_1": 0.44}, "right less often"),
        ({"pass_at_1": 0.46}, ""),
        ({"pass_at_1": 1.0, "ece": 0.0}, ""),
        ({"ece": 0.26}, "less calibrated"),
        ({"ece": 0.24}, ""),
        ({"confidence_output_ratio": 0.49}, "silent"),
        ({"confidence_output_ratio": 0.51}, ""),
        ({"commonest_share": 0.96}, "collapsed"),
        ({"commonest_share": 0.96, "accuracy_spread": 0.05}, ""),
        ({"confidence_output_ratio": 0.0, "ece": np.nan, "commonest_share": np.nan}, "silent"),
        ({"pass_at_1": 0.1, "ece": 0.9}, "right less often, less calibrated"),
    ],
)
def test_a_failure_is_judged_on_held_out_questions_alone(end, failed):
    curves = run("a", end=end, late={"pass_at_1": 0.0, "commonest_share": 1.0})
    assert early_alarms.judged(curves)["failed"].tolist() == [failed]


def test_the_first_step_of_each_alarm_is_found():
    curves = pd.concat(
        [
            run("fine"),
            run("collapsed", late={"commonest_share": 1.0}),
            run("less", late={"pass_at_1": 0.3}),
            run("silent", late={"confidence_output_ratio": 0.0}, at=18),
        ]
    )
    first = early_alarms.first_alarms(curves).set_index("arm").drop(columns="seed")
    found = {arm: row.dropna().to_dict() for arm, row in first.iterrows()}
    assert found == {
        "fine": {},
        "collapsed": {"collapse": 13},
        "less": {"accuracy": 15},  # three of five steps at 0.3: 0.12 below
        "silent": {"silence": 20},  # three of five at 0: 0.36
    }
    hasty = early_alarms.first_alarms(curves, Limits(window=1)).set_index("arm")
    assert (hasty.loc["less", "accuracy"], hasty.loc["silent", "silence"]) == (13, 18)


def test_hits_and_false_alarms_are_counted_apart():
    curves = pd.concat(
        [
            run("failed", 0, end={"ece": 0.5}, late={"commonest_share": 1.0}),
            run("failed", 1, end={"ece": 0.5}),
            run("fine", 0, late={"pass_at_1": 0.0}, at=11),
            run("fine", 1),
            run("fine", 2),
        ]
    )
    runs, first = early_alarms.judged(curves), early_alarms.first_alarms(curves)
    found = early_alarms.hits(runs, first).set_index("alarm")
    counts = found[["caught", "false"]].values.tolist()
    assert dict(zip(found.index, counts, strict=True)) == {
        "collapse": [1, 0], "silence": [0, 0], "calibration": [0, 0], "accuracy": [0, 1],
        "any": [1, 1],
    }  # fmt: skip
    assert found.loc["any", "step, median"] == 13
    share = found.loc["any", "share caught"]
    assert (share.estimate, round(share.low, 3), round(share.high, 3)) == (0.5, 0.013, 0.987)
    tried = early_alarms.by_limit(curves, runs, [Limits(), Limits(worse=0.6)])
    assert tried["false"].tolist() == [1, 0]
    assert early_alarms.share(0, 0) is None


def test_recorded_trainings_are_whole():
    curves = early_alarms.recorded()
    for (arm, seed), part in curves.groupby(early_alarms.RUN):
        steps = part.loc[part["split"] == "train", "step"].tolist()
        assert steps == list(range(1, len(steps) + 1)), (arm, seed)
        ends = part.loc[part["split"] == "held-out", "step"].tolist()
        assert ends == [0, len(steps)]
    assert len(set(curves.groupby("arm")["seed"].nunique())) == 1
    assert {"commit", "date", "device", "trl"} <= set(early_alarms.facts())


def test_the_chapter_counts_what_its_tables_show(tmp_path):
    shown = execute("early_alarms", {"output_dir": str(tmp_path)}, with_prose=True)
    found = tables(shown)
    (every,) = [rows for caption, rows in found.items() if caption.startswith("How each training")]
    failed = [row for row in every if row["failed"] != "no"]
    assert 0 < len(failed) < len(every)
    caught = [row for row in failed if any(row[alarm] != "–" for alarm in early_alarms.ALARMS)]
    text = "\n".join(shown)
    assert f"**{len(caught)} of {len(failed)}** trainings that failed set off an alarm" in text
    (hits,) = [rows for caption, rows in found.items() if caption.startswith("Of ")]
    assert int(hits[-1]["caught"]) == len(caught)
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "hits.csv", "limits.csv"}
