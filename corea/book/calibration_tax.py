"""The chapter on what deferred questions pay twice: small models, agreement, seconds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from corea.book.more_tiers import Asked
from corea.metrics.cascade import cost_ratio, defers


def tax(
    paired: pd.DataFrame, threshold: float, *, small: str = "small_cost", large: str = "large_cost"
) -> dict[str, float]:
    """What a cascade costs at a threshold, in shares of its large model alone.

    ``small, deferred`` is the tax: what the small side takes on questions that the large model then
    answers as well. With ``small, kept`` it makes up :math:`s`, and ``large, deferred`` is
    :math:`d` (:func:`corea.metrics.cascade.cost_ratio`). ``deferred`` is a share of questions.

    Example:
        >>> paired = pd.DataFrame({"confidence": [0.9, 0.2], "small_cost": [1, 1],
        ...     "large_cost": [4, 6]})
        >>> tax(paired, 0.5)
        {'small, kept': 0.1, 'small, deferred': 0.1, 'large, deferred': 0.6, 'deferred': 0.5}
    """
    deferred = defers(paired["confidence"], threshold)
    of_large = paired[large].sum()
    parts = {
        "small, kept": paired[small][~deferred].sum(),
        "small, deferred": paired[small][deferred].sum(),
        "large, deferred": paired[large][deferred].sum(),
    }
    shares = {name: float(cost / of_large) for name, cost in parts.items()}
    return shares | {"deferred": float(deferred.mean())}


def knowing_errors(asked: Asked) -> pd.DataFrame:
    """All cascades of two whose small model knows exactly when it is wrong, and defers then.

    A row a pair, the cheaper model first: ``small, large``, ``price_ratio`` (1 over :math:`s`),
    ``deferred``, the share :math:`d` of the large model's cost, and ``cost``, their
    :func:`corea.metrics.cascade.cost_ratio`. Only pairs of which the large model is the more
    accurate one. Nobody is asked for agreement, so a real confidence of the same models does worse.
    """
    rows = []
    for i, j in combinations(range(len(asked.models)), 2):
        wrong = asked.right[:, i] == 0
        if asked.right[:, j].mean() > asked.right[:, i].mean():
            of_large = asked.cost[:, j].sum()
            small, deferred = (
                asked.cost[:, i].sum() / of_large,
                asked.cost[wrong, j].sum() / of_large,
            )
            rows.append((asked.models[i], asked.models[j], 1 / small, deferred))
    found = pd.DataFrame(rows, columns=["small", "large", "price_ratio", "deferred"])
    return found.assign(cost=cost_ratio(1 / found["price_ratio"], found["deferred"]))


def highest_deferral(
    price_ratio: float, *, cost: float = 1.0, router: float | None = None
) -> float:
    r"""Up to which share deferred a cascade costs at most so much; NaN where it cannot.

    .. math:: d \le C - s, \qquad\text{behind a router}\qquad d \le \frac{C - r - s}{1 - s}

    with :math:`s` one over the price ratio. From :func:`corea.metrics.cascade.cost_ratio`.

    Example:
        >>> highest_deferral(4), round(highest_deferral(4, router=0.05), 3)
        (0.75, 0.933)
    """
    s = 1 / price_ratio
    room = cost - s if router is None else (cost - router - s) / (1 - s) if s < 1 else np.nan
    return float(min(room, 1.0)) if room >= 0 else float("nan")


def seconds(paired: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Median seconds of questions by what happens to them, ``small_seconds`` and ``large_seconds``.

    ``kept`` waits for the small model, ``deferred`` for both, one after the other, and ``large
    alone`` is what the same deferred questions would have waited.
    """
    deferred = defers(paired["confidence"], threshold)
    both = paired["small_seconds"] + paired["large_seconds"]
    return {
        "kept": float(paired["small_seconds"][~deferred].median()),
        "deferred": float(both[deferred].median()),
        "large alone": float(paired["large_seconds"][deferred].median()),
        "share deferred": float(deferred.mean()),
    }
