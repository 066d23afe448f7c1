"""What a chapter on trained models shows: the committed full run, and the reader's own beside it.

The prose and the figures of such a chapter are about the committed tables
(:mod:`corea.book.full_run`). The reader's own run is a replication: it is folded, and marked where
it lies inside or outside the committed intervals. Where the own run is not there (:func:`there`),
as for a notebook that was downloaded, the chapter shows the committed tables alone; only while
nothing is committed does the own run stand in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from corea.book import claims, display, full_run
from corea.book.compare import NOT_TRAINED
from corea.metrics import intervals
from corea.metrics.intervals import COLUMNS, Interval, as_interval
from corea.tasks.suites import MICROWORLD, Suite

LEFT_OUT = display.paragraphs("Left out: it is of your own run, and none is there.")
"""What stands for a figure or a table that only the reader's own run has."""


def there(run: str, *folders: str | Path) -> bool:
    """Whether the reader's own runs, from which a chapter makes its own tables, are there.

    They are if one of their folders is: one that then lacks is named when it is read. If none is,
    a sentence on the page says so, and how to get them.

    Raises:
        EvidenceError: If nothing is committed that the chapter could show instead.

    Example:
        >>> there("sft_or_grpo", "corea")
        True
    """
    if any(Path(folder).is_dir() for folder in folders):
        return True
    lacking = ", ".join(dict.fromkeys(Path(folder).parent.as_posix() for folder in folders))
    where = f" in {lacking}" if lacking else ""
    if not full_run.facts(run):
        raise full_run.EvidenceError(
            f"{run}: nothing is committed, and no run is there{where}; `make book` makes them, in "
            "the repository"
        )
    display.show(
        display.paragraphs(
            f"This page shows the committed evidence: no run of yours is there{where}. `make "
            "book`, in the repository, trains your own."
        )
    )
    return False


def show_own(*parts: display.Html) -> None:
    """Show the reader's own run, folded; for the ``if`` of those that are :func:`there`."""
    display.show(display.folded("Your run", *parts))


def shown(run: str, table: str, own: pd.DataFrame | None) -> pd.DataFrame:
    """The committed table of a chapter; its own where none is committed.

    Raises:
        EvidenceError: If there is neither.
    """
    committed = full_run.published(run, table)
    found = own if committed is None else committed
    if found is None:
        raise full_run.EvidenceError(f"{run}: no table {table} is committed, and no run is there")
    return found


def all_shown(run: str, own: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Every committed table of a chapter, and its own tables that are not committed, by name."""
    names = dict.fromkeys([*full_run.tables().get(run, []), *own])
    return {name: shown(run, name, own.get(name)) for name in names}


def suite_shown(run: str, own: Suite) -> Suite:
    """The suite of what a chapter shows: the model world's where that is committed, or its own.

    Example:
        >>> from corea.tasks.suites import PAPERS
        >>> suite_shown("sft_or_grpo", PAPERS).name, suite_shown("no_such_run", PAPERS).name
        ('microworld', 'papers')
    """
    return MICROWORLD if full_run.facts(run) else own


def standing(run: str) -> str:
    """Where the shown tables come from, in a few words.

    Example:
        >>> standing("no_such_run")
        'this run; no full run is committed'
    """
    facts = full_run.facts(run)
    if not facts:
        return "this run; no full run is committed"
    return f"full run {facts['profile']} of {facts['date']}, commit {facts['commit'][:7]}"


def facts(run: str) -> dict[str, str]:
    """Where the shown tables come from, for the provenance of a page."""
    return {f"full run: {name}": text for name, text in full_run.facts(run).items()}


def parameters(run: str, **own: float) -> dict[str, Any]:
    """The parameters that the shown tables were made with; the own ones where none are committed.

    Example:
        >>> parameters("sft_or_grpo", n_resamples=7), parameters("no_such_run", n_resamples=7)
        ({'n_resamples': 100}, {'n_resamples': 7})
    """
    if not full_run.facts(run):
        return dict(own)
    committed = full_run.parameters(run)
    if lacking := [name for name in own if name not in committed]:
        raise full_run.EvidenceError(
            f"{run} was published without its parameter(s) {', '.join(lacking)}; publish it anew"
        )
    return {name: committed[name] for name in own}


def interval_note(run: str, table: pd.DataFrame, *, n_resamples: int, seed: int) -> str:
    """What a caption says of the intervals of a shown table.

    ``n_resamples`` and ``seed`` are those of this run. In a table of
    :func:`corea.book.compare.beside_paper` both runs have intervals.
    """
    own: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    if "full_run" not in table:
        return intervals.interval_note(table, **parameters(run, **own))
    here = table[table["value"].notna()]
    there = table[["full_run_interval", "full_run_n_seeds"]][table["full_run"].notna()]
    there = there.set_axis(["interval", "n_seeds"], axis="columns")
    if there.empty:
        return intervals.interval_note(here, **own)
    full = intervals.interval_note(there, **parameters(run, **own), run="the committed full run")
    if here.empty:
        return full
    return f"{full} {intervals.interval_note(here, **own, run='this run')}"


def one(table: pd.DataFrame, **labels: object) -> Interval:
    """The value with its interval in the one row that has some labels.

    Raises:
        ValueError: If it is not one row.

    Example:
        >>> table = pd.DataFrame({"system": ["a", "b"], "value": [1.0, 2.0], "low": 0.0,
        ...     "high": 3.0, "n_seeds": 5})
        >>> one(table, system="b").estimate
        2.0
    """
    rows = table
    for name, value in labels.items():
        rows = rows[rows[name].astype(object).fillna("") == value]
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows have {labels}; expected one")
    return Interval.of(rows.iloc[0].to_dict())


def bound(table: pd.DataFrame, *names: str, **labels: object) -> Callable[..., Interval]:
    """:func:`one` of a table as a function of some labels, ``names`` and then those with a default.

    Example:
        >>> table = pd.DataFrame({"system": ["a", "b"], "metric": "ece", "value": [1.0, 2.0],
        ...     "low": 0.0, "high": 3.0})
        >>> of = bound(table, "system", metric="ece")
        >>> of("b").estimate, of("a", "ece").estimate, of("a", metric="ece").estimate
        (2.0, 1.0, 1.0)
    """
    order = [*names, *labels]

    def of(*values: object, **more: object) -> Interval:
        if len(values) > len(order):
            raise TypeError(f"{len(values)} labels; expected at most {', '.join(order)}")
        return one(table, **labels | dict(zip(order, values, strict=False)) | more)

    return of


def decided(chapter: str, own: Mapping[str, pd.DataFrame]) -> display.Html:
    """The claims of a chapter: their verdicts on the committed tables, and on the reader's own.

    ``own`` are the chapter's tables of this run by name, ``"contrasts"``.
    """
    verdicts = claims.decide_committed()
    here, _ = claims.decide_run({f"{chapter}/{name}": of for name, of in own.items()})
    rows = [
        {
            "claim": f"{name}. {decision.claim.sentence}",
            "verdict": decision.verdict,
            "decided by": claims.interval_text(decision.rows[0]) if decision.rows else "",
            "seeds": claims.seeds_text(decision),
            "your run": here[name].reason or here[name].verdict if name in here else NOT_TRAINED,
        }
        for name, decision in verdicts.items()
        if decision.claim.chapter == chapter
    ]
    return display.table(
        pd.DataFrame(rows),
        "What the paper claims, and what the committed full run says. Of several rows the one that "
        "decides is shown; the page of claims has all.",
        name="claims",
    )


def replication(
    run: str, own: Mapping[str, pd.DataFrame], keys: Sequence[str], suite: Suite = MICROWORLD
) -> list[display.Html]:
    """Where the values of this run lie outside the intervals of the committed full run.

    ``own`` are this run's tables by name, made of a suite; ``keys`` the labels of rows, of which a
    table may lack some. A table of counts and one of what lies outside; a sentence where nothing is
    committed.
    """
    counts, outside = [], []
    for name, here in own.items():
        there = full_run.published(run, name, suite)
        if there is None:
            continue
        at = [key for key in keys if key in here and key in there]
        both = here.merge(there, on=at, suffixes=("", "_there"), validate="1:1")
        both = both.dropna(subset=["value", "low_there", "high_there"])
        inside = both["value"].between(both["low_there"], both["high_there"])
        counts.append({"table": name, "values of both runs": len(both), "inside": inside.sum()})
        for row, of in zip(both[~inside].to_dict("records"), both[~inside].index, strict=True):
            ends = {column: both.loc[of, f"{column}_there"] for column in COLUMNS}
            outside.append(
                {key: row[key] for key in at}
                | {"this run": row["value"], "committed": as_interval(ends)}
            )
    if not counts:
        return [display.paragraphs("No full run of these datasets is committed.")]
    return [
        display.table(
            pd.DataFrame(counts),
            "How many values of this run lie inside the committed intervals. Those are of the mean "
            "over training seeds: a run of one seed is outside more often than one time in twenty.",
        ),
        display.table(pd.DataFrame(outside), "Values of this run that lie outside."),
    ]
