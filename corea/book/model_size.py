r"""What depends on the size of a model: trends over sizes, and what there is to be known.

Paper A finds its 1.5B model less self-aware than its 7B model and leaves "the scaling laws of
model self-awareness" to future work (appendix D). Here models of the microworld that differ in
size, all pretrained on the same corpus, are compared. What is decided:

1. The size is the number of all weights, which cost scales with. Two thirds of the smallest
   model's weights are embeddings, so those of the blocks alone
   (:attr:`corea.tasks.microworld.Preset.block_weights`) are told as well.
2. A trend is the slope of the least-squares line through the means over seeds, one for each
   size, on :math:`x = \log_{10} N`: what a metric changes by where the model has ten times the
   weights,

   .. math:: b = \sum_i c_i\, \bar v_i, \qquad c_i = \frac{x_i - \bar x}{\sum_j (x_j - \bar x)^2}.

3. Its interval is that of any combination of means (:func:`corea.metrics.intervals.combination`):
   the spread over seeds is pooled over sizes, so a size that was trained once takes part. It does
   not count how far the means are from the line.
4. Nothing says that the line is straight. Spearman's rank correlation over all runs, which asks
   only whether the order is that of sizes, stands beside it with the p-value of a permutation
   test.
5. The corpus bounds what its models can know. A perfect learner of it that states how likely its
   answer is right has the accuracy and the AUROC of :func:`learner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from corea.book.display import as_label
from corea.book.figures import PANEL, REFERENCE, colors, label_edges, panels, style
from corea.metrics.intervals import combination
from corea.tasks.microworld import World, questions, sampler_accuracy

_PERMUTATIONS = 10_000

Floats = NDArray[np.float64]


def trends(
    measurements: pd.DataFrame, lines: Mapping[str, Mapping[str, float]], *, seed: int = 0
) -> pd.DataFrame:
    """Slope, interval and rank correlation of metrics over sizes (points 2 to 4 of this module).

    ``lines`` has each line's systems with their sizes; a row per line, dataset and metric that
    two sizes or more have.

    Example:
        Two sizes, a factor of 100 apart, and one run of each; 1 becomes 3:

        >>> measurements = pd.DataFrame({"system": ["s", "l"], "seed": 0, "dataset": "chains",
        ...     "metric": "ece", "resample": 0, "value": [1.0, 3.0]})
        >>> float(trends(measurements, {"SLM": {"s": 1e4, "l": 1e6}})["value"].iloc[0])
        1.0
    """
    known = set(measurements["system"])
    for name, sizes in lines.items():
        if unknown := [system for system in sizes if system not in known]:
            raise ValueError(f"{name}: not measured: {', '.join(unknown)}")
    resamples = range(int(measurements["resample"].max()) + 1)
    found = []
    for name, sizes in lines.items():
        line = measurements[measurements["system"].isin(list(sizes))]
        for (dataset, metric), part in line.groupby(["dataset", "metric"], sort=False):
            runs: dict[float, list[Floats]] = {}
            for (system, _), rows in part.groupby(["system", "seed"], sort=False):
                # where a metric is not defined in a resample there may be no row
                values = rows.set_index("resample")["value"].reindex(resamples).to_numpy(float)
                if not np.isnan(values[0]):
                    runs.setdefault(sizes[str(system)], []).append(values)
            if len(runs) >= 2:
                counted = part["n_questions"].max() if "n_questions" in part else np.nan
                n_questions = 0 if np.isnan(counted) else int(counted)
                labels = {"line": name, "dataset": dataset, "metric": metric}
                found.append(labels | _slope(runs, n_questions) | _ranks(runs, seed))
    columns = ["line", "dataset", "metric", "value", "low", "high", "n_sizes", "n_runs"]
    return pd.DataFrame(found, columns=[*columns, "interval", "rank_correlation", "p_value"])


def _slope(runs: Mapping[float, Sequence[Floats]], n_questions: int) -> dict[str, object]:
    """The slope through the means over seeds; of each run the values by resample, 0 first."""
    x = np.log10(list(runs))
    share = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    groups = [np.array(seeds) for seeds in runs.values()]
    slope = combination(groups, share, n_questions=n_questions)
    return {
        "value": slope.estimate,
        "low": slope.low,
        "high": slope.high,
        "n_sizes": len(runs),
        "n_runs": slope.n_seeds,
        "interval": slope.method,
    }


def _ranks(runs: Mapping[float, Sequence[Floats]], seed: int) -> dict[str, float]:
    """Spearman's rank correlation over runs, and how often chance gives as much or more."""
    size = pd.Series([size for size, seeds in runs.items() for _ in seeds]).rank().to_numpy()
    value = pd.Series([values[0] for seeds in runs.values() for values in seeds]).rank().to_numpy()
    if np.ptp(value) == 0:
        return {"rank_correlation": np.nan, "p_value": np.nan}
    size, value = (rank - rank.mean() for rank in (size, value))
    size, value = (rank / np.sqrt(rank @ rank) for rank in (size, value))
    correlation = float(size @ value)
    rng = np.random.default_rng(seed)
    by_chance = rng.permuted(np.tile(value, (_PERMUTATIONS, 1)), axis=1) @ size
    # the order found is one of the possible ones; sums of the same terms may differ in rounding
    as_much = (np.abs(by_chance) >= abs(correlation) - 1e-9).sum() + 1
    return {"rank_correlation": correlation, "p_value": float(as_much / (_PERMUTATIONS + 1))}


def learner(world: World, dataset: str, n: int, temperature: float) -> dict[str, float]:
    """What a perfect learner of a corpus gets right and knows of itself.

    Its answer to each question is right with a known probability
    (:func:`corea.tasks.microworld.sampler_accuracy`), and that is the confidence it states.

    Example:
        >>> known = learner(World(), "chains", 8, 0.6)
        >>> known["ece"], 0.5 < known["auroc"] < 1
        (0.0, True)
    """
    from sklearn.metrics import roc_auc_score

    asked = questions(world, dataset, "test", n)
    right = np.array([sampler_accuracy(world, question, temperature) for question in asked])
    n_right = right.sum()
    auroc = np.nan
    if 0 < n_right < len(right):
        # each answer is right with the weight of its chance, and wrong with the rest
        outcome, weight = np.repeat([1, 0], len(right)), np.concatenate([right, 1 - right])
        auroc = float(roc_auc_score(outcome, np.tile(right, 2), sample_weight=weight))
    return {"pass_at_1": 100 * float(right.mean()), "ece": 0.0, "auroc": auroc}


def short_number(weights: float) -> str:
    """A number of weights for an axis.

    Example:
        >>> short_number(25_712), short_number(695_904), short_number(2_571_456)
        ('26k', '696k', '2.6M')
    """
    return f"{weights / 1e3:.0f}k" if weights < 999_500 else f"{weights / 1e6:.1f}M"


@style()
def plot_sizes(
    values: pd.DataFrame,
    *,
    line: str,
    columns: str,
    rows: str,
    reference: str = "perfect learner",
) -> Figure:
    """Estimates with their intervals against size: a panel for each of rows and columns."""
    names = list(values[line].unique())
    across, down = list(values[columns].unique()), list(values[rows].unique())
    shade = colors(name for name in names if name != reference)
    sizes = np.sort(values["parameters"].unique())
    figure_size = PANEL * len(across), 1.0 + 2.1 * len(down)
    drawing, grid = panels(len(down), len(across), *figure_size, sharex=True)
    label_edges(grid, columns=across, rows=down, below="weights")
    for axes, (row, column) in zip(grid.flat, product(down, across), strict=True):
        in_panel = values[(values[rows] == row) & (values[columns] == column)]
        axes.set_xscale("log")
        for place, name in enumerate(names):
            part = in_panel[in_panel[line] == name].sort_values("parameters")
            part = part.dropna(subset="estimate")
            if name == reference:
                axes.plot(part["parameters"], part["estimate"], **REFERENCE)
                continue
            # side by side, so that intervals do not hide each other
            at = part["parameters"] * 1.05 ** (place - (len(names) - 1) / 2)
            axes.plot(at, part["estimate"], "o-", color=shade[name], ms=4, lw=1.2)
            axes.vlines(at, part["low"], part["high"], color=shade[name], lw=1.2)
        axes.set_xticks(sizes, [short_number(size) for size in sizes], rotation=60)
        axes.minorticks_off()
    marks = [
        Line2D([], [], **REFERENCE)
        if name == reference
        else Line2D([], [], marker="o", color=shade[name], markersize=4)
        for name in names
    ]
    labels = [as_label(name) for name in names]
    drawing.legend(marks, labels, loc="outside lower center", ncols=2)
    return drawing
