r"""Conformance: the same vectors through this package and the field's libraries.

Fixed vectors go through every library that has the metric; confidences on the edges of ten
bins are probed from outside, so that what a library *does* with an edge is measured and not
read off its documentation. Differences between ECEs can then be recomputed from the probed
bins alone (:func:`explain`): an explanation that does not give the library's number is wrong.

torchmetrics and netcal need torch, which the book does not install: their results are in
``data/conformance.csv``, with the versions that gave them. Everything else runs live.

Verdicts on answers are math-verify's but for the deviations of :mod:`corea.tasks.verify`.
:data:`CONVENTIONS` are what stays as it has them; how many answers of real question sets each
touches is in ``data/conformance_verdicts.csv``, since the sets are not shipped.
``benchmarks/record_conformance.py`` writes both files.

One rule has no library: ``np.digitize`` on ``np.linspace`` edges, as RLCR's evaluation bins.
It is restated here under that name. LM-Polygraph needs no restating: its edges are closed on
the right, like scikit-learn's, but it has 20 bins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from corea.checks import one_of
from corea.metrics import calibration
from corea.tasks.verify import verify_batch

N_BINS = 10
RECORDED = ("torchmetrics", "netcal")
"""Libraries that need torch: their results are recorded."""
METRICS = ("ECE", "ECE, equal mass", "maximum error", "Brier score", "AUROC", "smooth ECE")
OWN_BIN = N_BINS + 1
"""Stands for a bin beyond the last, of which no confidence below 1 has a share."""

RESULTS = Path(__file__).parents[1] / "data" / "conformance.csv"
VERDICTS = Path(__file__).parents[1] / "data" / "conformance_verdicts.csv"
SETS = ("math500", "olympiadbench", "gsm8k")

Metric = Callable[[NDArray[Any], NDArray[np.int64]], float]


@dataclass(frozen=True)
class Vector:
    """Answers that every library scores."""

    name: str
    confidence: NDArray[Any]  # in [0, 1], float32 or float64, shape (n,)
    correct: NDArray[np.int64]  # 0 or 1, shape (n,)
    tests: str  # what it is there to show


def vectors() -> list[Vector]:
    """The fixed vectors, small ones first."""
    random = np.random.default_rng(20260321)
    twentieths = np.arange(21) / 20
    thirds = np.arange(21) % 3 == 0
    answers = {0.5: (5, 4), 0.7: (10, 5), 0.8: (15, 9), 0.9: (40, 34), 0.95: (20, 20), 1.0: (9, 9)}
    stated = np.repeat(list(answers), [n for n, _ in answers.values()])
    right = np.concatenate([np.arange(n) < k for n, k in answers.values()])
    uniform = random.random(1000)
    correct = random.random(1000) < uniform**2
    high = np.round(random.uniform(0.9, 1.0, 1000), 2)
    rows = [
        ("issue 3510", [0.95, 1.0], [1, 0], "torchmetrics issue 3510: 1.0 beside 0.95"),
        ("one answer", [0.7], [1], "the smallest input, on an edge, one class"),
        ("all right", [0.2, 0.9], [1, 1], "one class: AUROC is undefined"),
        ("all ones", [1.0] * 10, [1] * 7 + [0] * 3, "what an overconfident model states"),
        ("0.1 + 0.2", [0.1 + 0.2, 0.25, 0.35], [1, 0, 0], "a computed 0.3, one bit above it"),
        ("edges", twentieths, thirds, "every edge of ten bins and every middle"),
        ("edges, float32", twentieths.astype(np.float32), thirds, "the same in float32"),
        ("stated", stated, right, "few distinct values, many ties, as models state them"),
        ("stated, float32", stated.astype(np.float32), right, "the same in float32"),
        ("23 distinct", uniform[:23], correct[:23], "not divisible by the number of bins"),
        ("imbalance", high, np.arange(1000) >= 3, "3 of 1,000 wrong, confidences 0.90 to 1.00"),
        ("random", uniform, correct, "1,000 distinct confidences, none near an edge"),
        ("random, float32", uniform.astype(np.float32), correct, "the same in float32"),
    ]  # fmt: skip
    return [
        Vector(name, np.asarray(confidence), np.asarray(truth).astype(np.int64), tests)
        for name, confidence, truth, tests in rows
    ]


def _corea() -> dict[str, Metric]:
    error = calibration.expected_calibration_error
    return {
        "ECE": error,
        "ECE, equal mass": lambda c, y: error(c, y, binning="equal_mass"),
        "maximum error": calibration.maximum_calibration_error,
        "Brier score": calibration.brier_score,
        "AUROC": calibration.auroc,
        "smooth ECE": calibration.smooth_ece,
    }


def _scikit_learn() -> dict[str, Metric]:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss, roc_auc_score

    def maximum_error(confidence: NDArray[Any], correct: NDArray[np.int64]) -> float:
        accuracy, mean = calibration_curve(correct, confidence, n_bins=N_BINS)
        return float(np.abs(accuracy - mean).max())

    return {
        "maximum error": maximum_error,
        "Brier score": lambda c, y: brier_score_loss(y, c),
        "AUROC": lambda c, y: roc_auc_score(y, c),
    }


def _relplot() -> dict[str, Metric]:
    from relplot import smECE
    from relplot.metrics import binnedECE

    return {"ECE": lambda c, y: float(binnedECE(c, y, N_BINS)), "smooth ECE": smECE}


def _np_digitize() -> dict[str, Metric]:
    inner = np.linspace(0, 1, N_BINS + 1)[1:-1]

    def error(confidence: NDArray[Any], correct: NDArray[np.int64]) -> float:
        residual = correct - confidence.astype(np.float64)
        gaps = np.bincount(np.digitize(confidence, inner), residual)
        return float(np.abs(gaps).sum() / len(correct))

    return {"ECE": error}


def _torchmetrics() -> dict[str, Metric]:
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

    def on_tensors(metric: Callable[..., Any], **options: Any) -> Metric:
        return lambda c, y: float(metric(torch.tensor(c), torch.tensor(y), **options))

    return {
        "ECE": on_tensors(binary_calibration_error, n_bins=N_BINS, norm="l1"),
        "maximum error": on_tensors(binary_calibration_error, n_bins=N_BINS, norm="max"),
        "AUROC": on_tensors(binary_auroc),
    }


def _netcal() -> dict[str, Metric]:
    from netcal.metrics import ECE, MCE

    return {
        "ECE": ECE(bins=N_BINS).measure,
        "ECE, equal mass": ECE(bins=N_BINS, equal_intervals=False).measure,
        "maximum error": MCE(bins=N_BINS).measure,
    }


_METRICS_OF = {
    "corea": _corea,
    "scikit-learn": _scikit_learn,
    "relplot": _relplot,
    "np.digitize": _np_digitize,
    "torchmetrics": _torchmetrics,
    "netcal": _netcal,
}
LIBRARIES = tuple(_METRICS_OF)


def metrics_of(library: str) -> dict[str, Metric]:
    """What a library has of :data:`METRICS`, with ten bins where it bins."""
    one_of(library, "library", LIBRARIES)
    return _METRICS_OF[library]()


def run(library: str) -> pd.DataFrame:
    """Score every vector with a library, and probe where it puts the edges of ten bins.

    A row per vector and metric: a metric that raised has no value, and its error as a note. Where
    the library bins, ``counted in bin`` and ``averaged in bin`` have a row per tenth and dtype.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing says is not a result
        metrics = metrics_of(library)
    rows = [
        (vector.name, name, *_scored(metrics[name], vector.confidence, vector.correct))
        for vector in vectors()
        for name in METRICS
        if name in metrics
    ]
    for dtype, tenth in product((np.float32, np.float64), range(N_BINS + 1)):
        landing = _landing(metrics, tenth, dtype)
        name = f"{tenth / 10:.1f} {dtype.__name__}"
        rows += [
            (name, f"{what} in bin", float(part), "" if part <= N_BINS else "a bin of its own")
            for what, part in zip(("counted", "averaged"), landing, strict=True)
        ]
    table = pd.DataFrame(rows, columns=["vector", "metric", "value", "note"])
    table.insert(0, "library", library)
    table.insert(1, "version", version("numpy" if library.startswith("np.") else library))
    return table


def _scored(
    metric: Metric, confidence: NDArray[Any], correct: NDArray[np.int64]
) -> tuple[float, str]:
    """A metric's value and the first line of its warning or error; an error is a result too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = float(metric(confidence, correct))
        except Exception as error:
            return np.nan, f"{type(error).__name__}: {error}".splitlines()[0]
    notes = [f"{type(each.message).__name__}: {each.message}" for each in caught]
    return value, notes[0].splitlines()[0] if notes else ""


def _landing(metrics: Mapping[str, Metric], tenth: int, dtype: type) -> tuple[int, int]:
    r"""The bins a library counts and averages a confidence in, found from outside.

    A wrong answer at confidence c meets a right one in the middle m of each bin in turn
    (correctness the other way round at c = 0). With gaps c and g = 1 - m, ECE is
    (c + g)/2 in different bins and \|c - g\|/2 in the same. A library that bins twice,
    once to count and once to average, may lose the gap of c: then ECE is g where both are
    counted together, \|c - g\|/4 where both are averaged together, and g/2 elsewhere. No
    two of these coincide for tenths c and odd twentieths g. scikit-learn has a maximum
    error only: max(c, g) in different bins.
    """
    wrong = int(tenth == 0)
    confidence = dtype(f"{tenth / 10}")
    metric = metrics.get("ECE", metrics.get("maximum error"))
    assert metric is not None
    gap = abs(wrong - tenth / 10)
    alone = metric(np.array([confidence]), np.array([wrong]))
    lost = abs(alone - gap) > 1e-3
    counted = averaged = OWN_BIN
    for part in range(1, N_BINS + 1):
        middle = (2 * part - 1) / 20
        other = abs(1 - wrong - middle)
        pair = np.array([confidence, dtype(middle)])
        value = metric(pair, np.array([wrong, 1 - wrong]))
        together = abs(gap - other) / 2
        if abs(value - (other if lost else together)) < 1e-3:
            counted = part
        if abs(value - (together / 2 if lost else together)) < 1e-3:
            averaged = part
    return counted, averaged


def recorded() -> pd.DataFrame:
    """The committed results of :data:`RECORDED`, as :func:`run` gives them."""
    return pd.read_csv(
        RESULTS, keep_default_na=False, na_values={"value": [""]}, dtype={"version": str}
    )


def results() -> pd.DataFrame:
    """Every library's results: recorded for those that need torch, else live.

    Recorded even where torch is installed, so that a page is the same everywhere; the
    tests compare what is recorded with what the libraries say.
    """
    live = [run(name).assign(source="live") for name in LIBRARIES if name not in RECORDED]
    return pd.concat([*live, recorded().assign(source="recorded")], ignore_index=True)


def landings(table: pd.DataFrame) -> pd.DataFrame:
    """The bin, from 1, that each library counts and averages each tenth in, by dtype."""
    probes = table[table["metric"].isin(["counted in bin", "averaged in bin"])]
    wide = probes.pivot_table(
        index=["library", "vector"], columns="metric", values="value", sort=False
    )
    found = wide.rename(columns=lambda name: name.removesuffix(" in bin")).astype(int)
    found = found.reset_index().rename_axis(columns=None)
    found[["confidence", "dtype"]] = found["vector"].str.split(" ", expand=True)
    found = found.astype({"confidence": float})
    return found[["library", "dtype", "confidence", "counted", "averaged"]]


def edge_table(edges: pd.DataFrame) -> pd.DataFrame:
    """Landings for reading, a column a library: the bin, "own" for one beyond the last, or both."""
    counted, averaged = (
        edges[what].astype(str).replace(str(OWN_BIN), "own") for what in ("counted", "averaged")
    )
    text = counted.where(counted == averaged, counted + " and " + averaged)
    wide = edges.assign(bin=text).pivot(
        index=["dtype", "confidence"], columns="library", values="bin"
    )
    return wide[list(dict.fromkeys(edges["library"]))]


def rules(table: pd.DataFrame) -> pd.DataFrame:
    """What each library does with the edges between ten bins, a row a library.

    ``closed on`` is the side of most tenths from 0.1 to 0.9 given as float64, ``except at`` are the
    others; ``moved in float32`` are tenths that land elsewhere when given as float32.
    """
    bins = edge_table(landings(table))
    rows = []
    for library, versions in table.groupby("library", sort=False)["version"]:
        double, single = bins[library].loc["float64"], bins[library].loc["float32"]
        inner = double[(double.index > 0) & (double.index < 1)]
        on_right = inner == [str(tenth) for tenth in range(1, N_BINS)]
        usual = bool(on_right.mean() > 0.5)
        row = {
            "library": library,
            "version": versions.iloc[0],
            "closed on": "right" if usual else "left",
            "except at": inner.index[on_right != usual],
            "1.0 is in": "a bin of its own" if double[1.0] == "own" else "the last bin",
            "moved in float32": double.index[double != single],
        }
        rows.append(row)
    found = pd.DataFrame(rows)
    for column in ("except at", "moved in float32"):
        found[column] = [", ".join(f"{c:.1f}" for c in tenths) for tenths in found[column]]
    return found


def side_by_side(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric laid out for reading: a row a vector, a column a library."""
    rows = table[table["metric"] == metric]
    wide = rows.pivot(index="vector", columns="library", values="value")
    order = list(dict.fromkeys(rows["vector"])), list(dict.fromkeys(rows["library"]))
    return wide.loc[order[0], order[1]]


def differences(table: pd.DataFrame, tolerance: float = 1e-6) -> pd.DataFrame:
    """Every value that is not ours; both undefined is no difference."""
    scores = table[table["metric"].isin(METRICS)]
    ours = scores[scores["library"] == "corea"].set_index(["metric", "vector"])["value"]
    both = scores[scores["library"] != "corea"].join(ours.rename("corea"), on=["metric", "vector"])
    same = np.isclose(both["value"], both["corea"], rtol=0, atol=tolerance, equal_nan=True)
    columns = ["metric", "vector", "library", "value", "corea", "note"]
    return both.loc[~same, columns].sort_values("metric", kind="stable", ignore_index=True)


def error_in_bins_of(confidence: ArrayLike, correct: ArrayLike, edges: pd.DataFrame) -> float:
    r"""ECE with ten bins whose edges belong where a library puts them.

    With the bins that the library counts and averages a confidence in, a bin's gap
    :math:`g_m` is the mean of :math:`y_i - c_i` over the rows averaged in it, 0 if there
    are none:

    .. math:: \frac{1}{n}\sum_m |\{i: i \text{ is counted in } m\}| \cdot |g_m|

    Only exact tenths are taken from ``edges``; others are in the bin around them.

    Example:
        >>> edges = landings(run("np.digitize")).query("dtype == 'float64'")
        >>> error_in_bins_of([0.9, 0.95], [0, 1], edges)  # |(-0.9 + 0.05) / 2|, one bin
        0.425
    """
    stated = np.asarray(confidence)
    tenth = np.rint(stated * N_BINS).astype(np.intp)
    on_edge = stated == (tenth / N_BINS).astype(stated.dtype)
    inside = np.ceil(stated.astype(np.float64) * N_BINS).astype(np.intp)
    ordered = edges.sort_values("confidence")
    counted, averaged = (
        np.where(on_edge, ordered[what].to_numpy()[tenth], inside)
        for what in ("counted", "averaged")
    )
    residual = np.asarray(correct) - stated.astype(np.float64)
    size = np.bincount(averaged, minlength=OWN_BIN + 1)
    gap = np.bincount(averaged, residual, OWN_BIN + 1) / np.maximum(size, 1)
    return float(np.bincount(counted, minlength=OWN_BIN + 1) @ np.abs(gap) / len(stated))


def errors_of_records(table: pd.DataFrame, edges: pd.DataFrame) -> pd.DataFrame:
    """ECE of real records with edges where each library puts them."""
    stated = table.dropna(subset="confidence")
    same_dtype = edges[edges["dtype"] == stated["confidence"].dtype.name]
    rules = list(same_dtype.groupby("library", sort=False))
    rows = []
    for (dataset, system), answers in stated.groupby(["dataset", "system"], sort=False):
        confidence, correct = answers["confidence"].to_numpy(), answers["correct"].to_numpy()
        on_edge = np.isin(confidence, (np.arange(N_BINS + 1) / N_BINS).astype(confidence.dtype))
        errors = {name: error_in_bins_of(confidence, correct, rule) for name, rule in rules}
        rows.append({"dataset": dataset, "system": system, "on_edge": on_edge.mean()} | errors)
    return pd.DataFrame(rows)


def explain(table: pd.DataFrame) -> pd.DataFrame:
    """Recompute each library's ECE from nothing but where it puts the edges.

    The computed 0.3 is left out, for it is no tenth; ``unexplained`` is the distance of the
    library's value and the one recomputed.
    """
    edges = dict(list(landings(table).groupby(["library", "dtype"])))
    ece = table[table["metric"] == "ECE"].set_index(["library", "vector"])["value"]
    rows = []
    for library, vector in product(ece.index.unique("library"), vectors()):
        if vector.name != "0.1 + 0.2":
            own_edges = edges[library, vector.confidence.dtype.name]
            from_bins = error_in_bins_of(vector.confidence, vector.correct, own_edges)
            ours, value = ece["corea", vector.name], ece[library, vector.name]
            rows.append((library, vector.name, ours, value, from_bins, abs(value - from_bins)))
    columns = ["library", "vector", "corea", "value", "from_bins", "unexplained"]
    return pd.DataFrame(rows, columns=columns)


class Convention(NamedTuple):
    """Two texts that math-verify takes for the same answer by a default of its own."""

    name: str
    answer: str  # an example, right by this convention
    gold: str


CONVENTIONS = (
    Convention("units do not count", r"5\text{ m}", r"5\text{ cm}"),
    Convention("percent is the number or its hundredth", "50", r"50\%"),
    Convention("six decimals are enough", "0.333333", r"\frac{1}{3}"),
    Convention("letters in either case", "3r^2", "3R^2"),
    Convention("a base may be left out", "204", "204_5"),
    Convention("a name before the value may be left out", "5", "x=5"),
    Convention("a list is its set", r"\{1,2\}", "1,2"),
    Convention("words behind a number", "5", r"5\text{ million}"),
    Convention("a.m. and p.m.", r"10:30\text{ p.m.}", r"10:30\text{ a.m.}"),
)
"""What stays as math-verify has it."""


def counted() -> pd.DataFrame:
    """How many golds and answers of each question set a convention touches, as committed."""
    return pd.read_csv(VERDICTS)


def conventions(counts: pd.DataFrame) -> pd.DataFrame:
    """Each convention's example, its verdict now, and the golds and answers that it touches."""
    names = [convention.name for convention in CONVENTIONS]
    table = pd.DataFrame(CONVENTIONS)[["name", "gold", "answer"]]
    table = table.rename(columns={"name": "convention"})
    verdicts = verify_batch(table["answer"], table["gold"], "math")
    table["verdict"] = ["right" if verdict else "wrong" for verdict in verdicts]
    golds = counts.pivot(index="convention", columns="dataset", values="golds").loc[names]
    for dataset in SETS:
        table[dataset] = golds[dataset].to_numpy()
    table["answers"] = counts.groupby("convention")["answers"].sum().loc[names].to_numpy()
    return table
