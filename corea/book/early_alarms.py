"""How early alarms catch trainings that fail: recorded curves, their verdicts, their alarms.

``benchmarks/record_alarms.py`` made ``data/alarms/curves.csv``: one row a training step
(``split`` is train) and two of the held-out questions, before the first step and after the last.

1. What a failure is was fixed before any of these trainings was run, and is judged on held-out
   questions, which no alarm sees. Against the start, a run that failed is right less often by more
   than :data:`LOST`, or has an ECE higher by more than that, or states a confidence in less than
   half of its answers, or states one and the same in 95 % of those although accuracy varies
   between questions.
2. An alarm is a hit if it goes off in a run that failed, for whatever reason; it is false in a run
   that did not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from corea.book import full_run
from corea.book.display import as_label
from corea.book.figures import PALETTE, REFERENCE, WIDE, legend_below, panels, style
from corea.metrics.intervals import Interval, proportion
from corea.training.alarms import Limits, raised

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "data" / "alarms"
RUN = ["arm", "seed"]
LOST = 0.05
ALARMS = ("collapse", "silence", "calibration", "accuracy")


def recorded() -> pd.DataFrame:
    """The committed curves."""
    return pd.read_csv(FOLDER / "curves.csv")


def facts() -> dict[str, str]:
    """Where they come from."""
    content: dict[str, str] = json.loads((FOLDER / "curves.json").read_text("utf-8"))
    return content


def publish(curves: pd.DataFrame, facts: Mapping[str, str]) -> None:
    """Write both into the package."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    curves.to_csv(FOLDER / "curves.csv", index=False, float_format="%.4g")
    (FOLDER / "curves.json").write_text(json.dumps(dict(facts), indent=1) + "\n", "utf-8")


def judged(curves: pd.DataFrame) -> pd.DataFrame:
    """One row a run: what it was on held-out questions before and after, and ``failed``, how.

    Example:
        >>> curves = pd.DataFrame({"arm": "a", "seed": 0, "step": [0, 9], "split": "held-out",
        ...     "pass_at_1": [0.5, 0.4], "ece": 0.2, "confidence_output_ratio": [0.9, 0.3],
        ...     "commonest_share": 0.5, "accuracy_spread": 0.3})
        >>> judged(curves)["failed"].tolist()
        ['right less often, silent']
    """
    rows = []
    for run, part in curves[curves["split"] == "held-out"].groupby(RUN, sort=False):
        start, end = part.sort_values("step").iloc[[0, -1]].to_dict("records")
        # the alarms' own rules for what needs no start, on the end alone
        now = raised([end], Limits(window=1))
        ways = {
            "right less often": start["pass_at_1"] - end["pass_at_1"] > LOST,
            "less calibrated": end["ece"] - start["ece"] > LOST,
            "silent": "silence" in now,
            "collapsed": "collapse" in now,
        }
        shown = ("pass_at_1", "ece", "confidence_output_ratio")
        row = dict(zip(RUN, run, strict=True)) | {"steps": int(end["step"])}
        row |= {f"{name}, {when}": of[name] for name in shown
                for when, of in (("start", start), ("end", end))}  # fmt: skip
        rows.append(row | {"failed": ", ".join(way for way, true in ways.items() if true)})
    return pd.DataFrame(rows)


def first_alarms(curves: pd.DataFrame, limits: Limits | None = None) -> pd.DataFrame:
    """The first step at which each alarm goes off, missing where it does not; one row a run."""
    rows = []
    for run, part in curves[curves["split"] == "train"].groupby(RUN, sort=False):
        steps = part.sort_values("step").to_dict("records")
        first: dict[str, float] = {}
        for k, step in enumerate(steps):
            for alarm in raised(steps[: k + 1], limits):
                first.setdefault(alarm, float(step["step"]))
        rows.append(dict(zip(RUN, run, strict=True)) | first)
    return pd.DataFrame(rows).reindex(columns=[*RUN, *ALARMS]).astype(dict.fromkeys(ALARMS, float))


def hits(runs: pd.DataFrame, first: pd.DataFrame) -> pd.DataFrame:
    """For each alarm and any of them: failures it caught, how early, and false alarms.

    Intervals of shares are exact (Clopper and Pearson), for independent runs.
    """
    both = runs.merge(first, on=RUN).assign(any=first[list(ALARMS)].min(axis=1).to_numpy())
    failed = both["failed"] != ""
    rows = []
    for alarm in (*ALARMS, "any"):
        at, of_sound = both.loc[failed, alarm].dropna(), both.loc[~failed, alarm].dropna()
        rows.append(
            {
                "alarm": alarm,
                "caught": len(at),
                "share caught": share(len(at), failed.sum()),
                "step, median": at.median(),
                "step, latest": at.max(),
                "false": len(of_sound),
                "share false": share(len(of_sound), (~failed).sum()),
            }
        )
    return pd.DataFrame(rows)


def by_limit(curves: pd.DataFrame, runs: pd.DataFrame, limits: Iterable[Limits]) -> pd.DataFrame:
    """What any alarm catches, under other limits."""
    rows = [
        {"window": one.window, "worse": one.worse}
        | hits(runs, first_alarms(curves, one)).iloc[-1].to_dict()
        for one in limits
    ]
    return pd.DataFrame(rows).drop(columns="alarm")


def lowest_points() -> pd.DataFrame:
    """The validations of the full run's L1 trainings, one row a run: how far pass@1 went down.

    ``lowest`` and ``end`` are changes against the start; ``alarm`` is whether it was ever down by
    more than an alarm allows; ``failed`` whether it ended below :data:`LOST`.
    """
    course = full_run.published("second_pairing", "course")
    if course is None:
        raise full_run.EvidenceError("no course of second_pairing is published; expected one")
    rows = []
    for (size, seed), part in course.groupby(["pairing", "seed"], sort=False):
        right = part.sort_values("step").set_index("step")["correct"]
        change = right - right.iloc[0]
        rows.append(
            {
                "size": size,
                "seed": seed,
                "lowest": change.min(),
                "at step": int(change.idxmin()),
                "end": change.iloc[-1],
                "most at 0": part["at_0"].max(),
                "alarm": change.min() < -Limits().worse,
                "failed": change.iloc[-1] < -LOST,
            }
        )
    return pd.DataFrame(rows)


def alarms_by_size() -> pd.DataFrame:
    """The full run's ``collapsed`` share of seeds and ``alarms`` a run by size, smallest first."""
    ends = full_run.published("model_size", "ends")
    if ends is None:
        raise full_run.EvidenceError("no ends of model_size are published; expected them")
    return ends


@style()
def plot_timeline(runs: pd.DataFrame, first: pd.DataFrame) -> Figure:
    """A line a run, above those that failed, with a mark where each alarm first goes off."""
    both = runs.merge(first, on=RUN)
    parts = {"failed": both[both["failed"] != ""], "did not fail": both[both["failed"] == ""]}
    parts = {name: part for name, part in parts.items() if len(part)}
    heights = [len(part) + 1 for part in parts.values()]
    drawing, grid = panels(
        len(parts), 1, WIDE, 1.2 + 0.19 * sum(heights), sharex=True, height_ratios=heights
    )
    marks = dict(zip(ALARMS, zip(PALETTE, "Xosv", strict=False), strict=True))
    for axes, (name, part) in zip(grid.flat, parts.items(), strict=True):
        for k, row in enumerate(part.to_dict("records")):
            axes.plot([0, row["steps"]], [k, k], color=REFERENCE["color"], linewidth=0.8)
            for j, (alarm, (color, mark)) in enumerate(marks.items()):
                height = k + 0.16 * (j - 1.5)  # beside each other where steps are equal
                axes.plot(row[alarm], height, mark, color=color, markersize=5)
        names = [as_label(f"{row['arm']}, {row['seed']}") for row in part.to_dict("records")]
        axes.set_yticks(range(len(part)), names)
        axes.set(ylim=(len(part) - 0.4, -0.6), title=name)
        axes.grid(axis="y", visible=False)
    for alarm, (color, mark) in marks.items():
        grid[-1, 0].plot([], [], mark, color=color, label=alarm)
    grid[-1, 0].set_xlabel("training step")
    legend_below(drawing, [grid[-1, 0]], ncols=2)
    return drawing


def share(count: int, of: int) -> Interval | None:
    """A share of runs; None of none."""
    return proportion(count, of) if of else None
