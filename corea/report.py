"""A report on one file of records: a single HTML page that opens offline.

What the confidence of each system is worth, what a second system would buy, which threshold can be
promised, and what to do. Every sentence is chosen by an interval; nothing of the file is shown
unescaped, and nothing in the page is loaded from elsewhere or can run.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import corea
from corea.book import display
from corea.book.display import Html
from corea.book.real_records import level_and_ranking
from corea.confidence import with_signal
from corea.metrics import calibration, cascade, measure
from corea.metrics.intervals import Interval, mean_interval, verdict
from corea.records import Records, select, summarize
from corea.thresholds.card import Card
from corea.thresholds.certify import Promise, certify_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SYSTEMS = 12
"""Systems, each on each dataset, that a report has room for in its figures."""

_POINTS = 400  # of a curve that are drawn
_DRAWS = 20_000_000  # question weights that a bootstrap may draw
_COLUMNS = ("pass@1", "mean confidence", "ECE (equal width)", "AUROC")
_WRITTEN = {
    "pass_at_1": "right",
    "confidence_output_ratio": "with confidence",
    "mean_confidence": "mean confidence",
    "distinct_confidences": "different values",
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f23; --ground: #fff; --soft: #5c6168;
  --line: #d7dade; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --ground: #16181c; --soft: #a6abb3; --line: #3a3e45; }
}
body { background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 46rem; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.answer { border-left: .3rem solid #0072b2; padding: .1rem 1rem; }
.corea-scroll, figure { overflow-x: auto; margin: 1rem 0; }
.corea-scroll { container-type: inline-size; } .corea-name { white-space: nowrap; }
caption { position: sticky; left: 0; max-width: 100cqi; }
table { border-collapse: collapse; font-size: .9rem; }
caption, figcaption { text-align: left; color: var(--soft); font-size: .9rem; padding: .3rem 0; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid var(--line); text-align: left; }
.corea-number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
small { color: var(--soft); } img { max-width: 100%; height: auto; }
summary { cursor: pointer; } code { overflow-wrap: anywhere; }
@media print { details > * { display: block; } body { max-width: none; } }
"""


def say_level(found: dict[str, Interval], small: str) -> Html:
    """Whether a system states too much, too little, or neither that can be shown."""
    return display.reading(
        {
            "holds": "{small} states too much: {stated:.0%} on average, and {right:.0%} are right.",
            "fails": "{small} states too little: {stated:.0%} on average, and {right:.0%} are "
            "right.",
            "unsettled": "{small} states {stated:.0%} on average, and {right:.0%} are right: no "
            "difference can be shown.",
        }[verdict(found["overconfidence"], above=0)],
        small=display.short(small),
        stated=found["stated"].estimate,
        right=found["accuracy"].estimate,
    )


def say_ranking(found: dict[str, Interval]) -> Html:
    """Whether the confidence tells right answers from wrong ones."""
    return display.reading(
        {
            "holds": "Its confidence tells right answers from wrong ones, with an AUROC of "
            "{area:.2f}.",
            "fails": "Its wrong answers have more confidence than its right ones: AUROC "
            "{area:.2f}.",
            "unsettled": "Its confidence cannot be shown to tell right from wrong: AUROC "
            "{area:.2f}.",
        }[verdict(found["AUROC"], above=0.5)],
        area=found["AUROC"].estimate,
    )


def say_all(stated: pd.DataFrame, areas: pd.DataFrame) -> Html:
    """Of several systems, for how many level and ranking are shown to be off or right."""
    levels = [
        verdict(mean_interval(rows["confidence"] - rows["correct"], bounds=(-1, 1)), above=0)
        for _, rows in stated.groupby("system", sort=False)
    ]
    ranks = [
        verdict(Interval.of(row | {"value": row["estimate"]}), above=0.5)
        for row in areas[areas["estimate"].notna()].to_dict("records")
    ]
    return display.reading(
        "Of {n} systems that state a confidence {high} state too much and {low} too little; for "
        "the others no difference can be shown.",
        "In {ranks} of {cells} cases, a system on a dataset, the confidence tells right answers "
        "from wrong ones.",
        n=len(levels),
        high=levels.count("holds"),
        low=levels.count("fails"),
        ranks=ranks.count("holds"),
        cells=len(ranks),
    )


def say_card(card: Card) -> Html:
    """What a card promises and what it saves, or why it promises nothing."""
    small, large = display.short(card.small), display.short(card.large)
    if card.threshold is None:
        return display.reading(
            "No threshold can be certified for {small} before {large}, because {why}.",
            small=small, large=large, why=card.refusal,
        )  # fmt: skip
    saving = card.expected["cost_saving"]
    cheaper = "saves {saving:.0%} of" if saving.estimate >= 0 else "adds {dearer:.0%} to"
    return display.reading(
        "Ask {large} where the confidence of {small} is below {threshold:.4g} or missing. "
        "{promise}",
        f"On these questions that defers {{deferred:.0%}} of them and {cheaper} what {{large}} "
        "alone would cost (saving [{low:.0%}, {high:.0%}]).",
        large=large,
        small=small,
        threshold=card.threshold,
        promise=card.guarantee.words,
        deferred=card.expected["deferral_rate"].estimate,
        saving=saving.estimate,
        dearer=-saving.estimate,
        low=saving.low,
        high=saving.high,
    )


def say_what_to_do(found: dict[str, Interval], card: Card | None) -> Html:
    """What follows from level, ranking and card."""
    steps = []
    if not found and card is None:
        return display.reading("Name a small and a large system to see what deferring would buy.")
    if not found:
        return display.reading("Record a confidence with each answer: without one nothing defers.")
    if verdict(found["AUROC"], above=0.5) != "holds":
        steps.append(
            "Look for another signal (the probability of the answer's tokens, agreement of several "
            "answers): no threshold helps on a confidence that does not rank."
        )
    elif verdict(found["overconfidence"], above=0) != "unsettled":
        steps.append(
            "Do not show the number to anybody as it is: its level is off. A recalibration on a "
            "few hundred labelled answers mends the level and leaves the ranking."
        )
    if card is None:
        steps.append("Name a second system to see what deferring to it would buy.")
    elif card.threshold is None:
        steps.append(
            "Label more questions, allow a larger loss, or take a better signal; the table of "
            "thresholds says how far each is from the promise."
        )
    else:
        steps.append(
            "Use the card as it is, audit some of the answers that were kept, and certify again "
            "when a model or the questions change: the promise is about questions like these."
        )
    return display.reading(*steps)


def card_tables(card: Card) -> list[Html]:
    """What a card expects, and the thresholds that were tested."""
    names = {
        "accuracy": "right, cascade",
        "large_accuracy": "right, large alone",
        "small_accuracy": "right, small alone",
        "deferral_rate": "deferred",
        "cost_saving": "saved of the large model's cost",
    }
    expected = pd.DataFrame(
        {
            "of the questions": list(names.values()),
            "estimate": [
                Interval(of.estimate, of.low, of.high)
                for of in (card.expected[name] for name in names)
            ],
        }
    )
    tested = pd.DataFrame([row.model_dump() for row in card.table])
    tested["certified"] = tested["certified"].map({True: "yes", False: "no"})
    tested = tested[["threshold", "kept", "risk", "bound", "certified"]]
    least = (
        ""
        if card.least_deferral is None
        else f" Whatever the confidence, at least {card.least_deferral:.1%} must be deferred."
    )
    return [
        display.table(
            expected,
            f"On the {card.questions:,} questions that chose the threshold, with 95 % intervals by "
            f"question. At least {card.smallest_questions:,} questions are needed for this promise."
            f"{least}",
            formats={"estimate": ".1%"},
        ),
        display.folded(
            "The thresholds that were tested",
            display.table(
                tested,
                "A choice of the thresholds, the safest first: the share of questions kept, their "
                "mean loss over all questions, and the bound that each by itself keeps with a "
                f"probability of {1 - card.guarantee.delta:.4g}.",
                formats={"threshold": ".4g", "kept": ".1%", "risk": ".4f", "bound": ".4f"},
            ),
        ),
    ]


def report(
    records: Records,
    *,
    small: str = "",
    large: str = "",
    promise: Promise | None = None,
    signal: str = "confidence",
    size_ratio: float = 10.0,
    output_price: float = 4.0,
    n_bins: int = 10,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[str, Card | None]:
    """The page as HTML, and the card in it where there are two systems.

    Args:
        records: What to report on.
        small: System that answers first; of two systems the one with more confidences.
        large: System behind it. With more than two systems both must be named, or the report ends
            before the cascade.
        promise: What the threshold must keep; by default within 2 points, with 95 %.
        signal: Column that the small system's confidence is read from.
        size_ratio: Parameters of the large model over those of the small one.
        output_price: Price of an output token in input tokens.
        n_bins: Bins of the calibration error.
        n_resamples: Bootstrap resamples by question; fewer where there are very many questions.
        seed: Of the bootstrap.
    """
    from corea.book import figures

    table, notes = records.table, list(records.notes)
    card, paired = None, None
    n_systems = table["system"].nunique()
    if n_systems > 2 and not (small and large):
        notes.append(f"{n_systems} systems: name the small and the large one to see a cascade")
    else:
        if n_systems > 1 and not (small and large):
            notes.append("the small and the large system were not named: taken by who states more")
        small, large = cascade.small_and_large(table, small, large)
        table = table[table["system"].isin([small, large])]
    if small and signal != "confidence":
        of_small = with_signal(select(table, system=small), signal, small)
        table = pd.concat([of_small, table[table["system"] != small]])
    if small and large:
        card, paired, more = certify_records(
            records, small, large, promise or Promise("within", 0.02), signal=signal,
            size_ratio=size_ratio, output_price=output_price,
        )  # fmt: skip
        notes += more
    stated = table[table["confidence"].notna()]
    resamples = int(np.clip(_DRAWS // max(1, len(stated)), 20, n_resamples))
    options = {"n_resamples": resamples, "seed": seed}
    metrics = measure.calibration_table(table, list(_COLUMNS), n_bins=n_bins, **options)
    by = ["system", "dataset"] if len(set(table["dataset"])) > 1 else ["system"]
    groups = [(", ".join(map(str, key)), rows) for key, rows in stated.groupby(by, sort=False)]
    of_small = stated[stated["system"] == small] if small else stated.iloc[:0]
    found = level_and_ranking(of_small, n_bins=n_bins, **options) if len(of_small) else {}
    answer = [say_level(found, small), say_ranking(found)] if found else []
    if not small and len(stated):
        answer = [say_all(stated, metrics[metrics["metric"] == "AUROC"])]
    answer += [say_card(card)] if card else []
    shown = dict(groups[:MOST_SYSTEMS])
    parts: list[Html] = [
        _section("What to do", say_what_to_do(found, card)),
        _section(
            "What the file holds",
            display.table(
                _narrow(summarize(table).rename(columns=_WRITTEN)),
                "Answers and confidences.",
                formats={"right": ".1%", "with confidence": ".1%", "mean confidence": ".2f"},
            ),
            display.paragraphs(*str(records).split("\n")[:1], *notes),
        ),
        _section(
            "Is the confidence right, and does it rank?",
            display.table(
                _narrow(measure.with_intervals(metrics, list(_COLUMNS))).rename(
                    columns={"ECE (equal width)": "ECE", "mean confidence": "stated"}
                ),
                f"ECE with {n_bins} bins; AUROC 0.5 ranks nothing. 95 % intervals from {resamples} "
                f"bootstrap resamples by question, seed {seed}. A dash: no confidence.",
                formats=dict.fromkeys(["pass@1", "stated", "ECE", "AUROC"], ".2f"),
            ),
            *_calibration_figures(shown, n_bins),
        ),
    ]
    if card and paired is not None:
        curve = cascade.deferral_curve(*(paired[name] for name in cascade.COLUMNS))
        verdicts, costs = (
            [paired[f"{side}_{what}"] for side in ("small", "large")]
            for what in ("correct", "cost")
        )
        oracle = cascade.deferral_curve(cascade.oracle_confidence(*verdicts), *verdicts, *costs)
        marks = {
            f"always {side}": (float(paired[f"{side}_cost"].mean()), float(right.mean()))
            for side, right in zip(("small", "large"), verdicts, strict=True)
        }
        if card.threshold is not None:
            at = card.expected
            marks["the card's threshold"] = at["cost"].estimate, at["accuracy"].estimate
        drawing: Figure = figures.plot_deferral(
            {small: thinned(curve)},
            references=marks,
            lines={"oracle": thinned(oracle), "random deferral": curve.iloc[[0, -1]]},
        )
        parts.append(
            _section(
                "What would deferring buy?",
                display.figure(
                    drawing,
                    f"Right answers against mean cost, in {card.cost_unit}, for every threshold. A "
                    "confidence is worth what it has above random deferral.",
                ),
                *card_tables(card),
            )
        )
    facts = {
        "file": records.source,
        "corea": corea.__version__,
        "seed": str(seed),
        **{f"records: {key}": str(value) for key, value in records.provenance.items()},
    }
    parts.append(display.provenance_table(facts))
    return _page(records.source, answer or [say_what_to_do(found, card)], parts), card


def _narrow(table: pd.DataFrame) -> pd.DataFrame:
    """Without what is the same in all rows."""
    return table.drop(columns=["dataset"]) if len(set(table["dataset"])) == 1 else table


def thinned(curve: pd.DataFrame, most: int = _POINTS) -> pd.DataFrame:
    """A curve of so many of its rows at most, both ends among them."""
    if len(curve) <= most:
        return curve
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, most).round().astype(int))]


def _calibration_figures(groups: dict[str, pd.DataFrame], n_bins: int) -> list[Html]:
    """Reliability diagrams and risk-coverage curves."""
    from corea.book import figures

    if not groups:
        return [display.reading("No row has a confidence: there is no diagram to draw.")]
    curves = {
        name: calibration.reliability_curve(rows["confidence"], rows["correct"], n_bins=n_bins)
        for name, rows in groups.items()
    }
    selective = {
        name: thinned(calibration.risk_coverage_curve(rows["confidence"], rows["correct"]))
        for name, rows in groups.items()
    }
    return [
        display.figure(
            figures.plot_reliability(curves),
            "Below the diagonal too much is stated, above it too little; the answers in each bin "
            "below.",
        ),
        display.figure(
            figures.plot_risk_coverage(selective),
            "Error rate among the answers given when only the most confident are.",
        ),
    ]


def _section(title: str, *parts: Html) -> Html:
    return Html(f"<h2>{html.escape(title)}</h2>\n" + "\n".join(part.data for part in parts))


def _page(source: str, answer: Sequence[Html], parts: Sequence[Html]) -> str:
    title = f"What {display.as_html(display.short(source))} says"
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "\n".join(part.data for part in parts)
    first = "\n".join(part.data for part in answer)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>\n<h1>{title}</h1>\n"
        f'<div class="answer"><h2>The short answer</h2>\n{first}\n</div>\n{body}\n'
        "</main></body></html>\n"
    )
