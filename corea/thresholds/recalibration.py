r"""Recalibration maps that are kept in a file, and confidences whose ties are broken.

A map turns a confidence into the probability of being right, fitted on labelled answers and applied
to others, in another process or another month. It does not change which questions a threshold can
separate, unless it is flat: an isotonic map merges confidences, Platt's keeps them apart.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from corea import checks
from corea.metrics.cascade import area_over_random

Floats = NDArray[np.float64]
Method = Literal["platt", "isotonic"]

_TINY = 1e-6


class Recalibration(BaseModel):
    r"""A map from confidence to the probability of being right.

    - ``"platt"``: :math:`\sigma(a \operatorname{logit} c + b)`, a and b by logistic regression
      without a penalty: ``values`` are a and b, ``knots`` is empty;
    - ``"isotonic"``: the non-decreasing function of least squares: straight between ``knots``,
      where it has the ``values``, and constant beyond them.

    Source: paper B, appendix B.1. It is written into a threshold card, or by itself as JSON with
    ``model_dump_json`` and read with ``model_validate_json``.

    Example:
        >>> fitted = Recalibration.fit("isotonic", [0.9] * 10, [True] * 6 + [False] * 4)
        >>> Recalibration.model_validate_json(fitted.model_dump_json()).apply([0.9, None])
        array([0.6, nan])
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Method
    knots: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    values: tuple[float, ...]
    questions: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _fits(self) -> Recalibration:
        """Knots rise, and there is a probability to each; or there are two coefficients."""
        if self.method == "platt":
            if self.knots or len(self.values) != 2:
                raise ValueError("platt has two values and no knots")
        elif (
            not self.knots
            or len(self.knots) != len(self.values)
            or (np.diff(self.knots) < 0).any()
            or (np.diff(self.values) < 0).any()
            or not 0 <= self.values[0] <= self.values[-1] <= 1
        ):
            raise ValueError("isotonic has rising knots, each with a value in [0, 1] that rises")
        return self

    @classmethod
    def fit(cls, method: Method, confidence: ArrayLike, correct: ArrayLike) -> Recalibration:
        """Fit to labelled answers; those without a confidence are left out.

        Raises:
            ValueError: If none has a confidence, or for Platt all are right or all wrong.
        """
        stated = checks.unit_interval(confidence, "confidence", missing=True).astype(float)
        right = checks.verdicts(correct)
        checks.same_length(confidence=stated, correct=right)
        there = ~np.isnan(stated)
        stated, right = stated[there], right[there]
        if not len(stated) or (method == "platt" and len(set(right)) < 2):
            raise ValueError(
                f"nothing to fit {method} to: expected records with a confidence, and for platt "
                "both right and wrong ones"
            )
        if method == "platt":
            from sklearn.linear_model import LogisticRegression

            model = LogisticRegression(C=np.inf).fit(_logit(stated)[:, None], right)
            values = float(model.coef_[0, 0]), float(model.intercept_[0])
            return cls(method=method, values=values, questions=len(stated))
        from sklearn.isotonic import IsotonicRegression

        steps = IsotonicRegression(y_min=0.0, y_max=1.0).fit(stated, right)
        knots, heights = steps.X_thresholds_, steps.y_thresholds_
        return cls(
            method=method, knots=tuple(map(float, knots)), values=tuple(map(float, heights)),
            questions=len(stated),
        )  # fmt: skip

    def apply(self, confidence: ArrayLike) -> Floats:
        """Probabilities of being right, shape (n,); NaN where there is no confidence."""
        stated = checks.unit_interval(confidence, "confidence", missing=True).astype(float)
        if self.method == "isotonic":
            # interp gives a value to a NaN where there is one knot
            found: Floats = np.where(
                np.isnan(stated), np.nan, np.interp(stated, self.knots, self.values)
            )
            return found
        slope, shift = self.values
        with np.errstate(over="ignore"):
            sigmoid: Floats = 1 / (1 + np.exp(-(slope * _logit(stated) + shift)))
        return sigmoid


def _logit(confidence: Floats) -> Floats:
    p = np.clip(confidence, _TINY, 1 - _TINY)
    logits: Floats = np.log(p / (1 - p))
    return logits


def break_ties(stated: ArrayLike, finer: ArrayLike, *, step: float = 0.01) -> Floats:
    r"""A confidence in the order of the stated one, and of a finer one where that is equal.

    .. math:: c' = \frac{c + s f}{1 + s}

    which keeps the order of stated values that differ by a step :math:`s` or more, each of which
    becomes a range as wide as the step. It is an order to put a threshold into, no probability: map
    it by a :class:`Recalibration` to read it as one. Where either is missing so is the result.

    Args:
        stated: Confidences that take few values, in [0, 1], shape (n,).
        finer: Another signal of the same answers, in [0, 1]: average probability of their tokens.
        step: The least by which stated values differ, in (0, 1]. The wider, the more of the
            thresholds that :func:`corea.thresholds.certify.certify` tries lie within a range.

    Example:
        >>> break_ties([0.9, 0.9, 0.8], [0.2, 0.7, 1.0], step=0.1).round(3).tolist()
        [0.836, 0.882, 0.818]
    """
    if not 0 < step <= 1:
        raise ValueError(f"step is {step}; expected a number above 0 and up to 1")
    of_first = checks.unit_interval(stated, "stated", missing=True).astype(float)
    of_second = checks.unit_interval(finer, "finer", missing=True).astype(float)
    checks.same_length(stated=of_first, finer=of_second)
    found: Floats = (of_first + step * of_second) / (1 + step)
    return np.clip(found, 0.0, 1.0)


def fineness(curve: pd.DataFrame) -> dict[str, float]:
    """How finely a curve's thresholds can be set, and what the curve is worth.

    ``operating_points``, how many different shares can be deferred; ``largest_step`` between two of
    them, a share of the questions; ``largest_cost_step``, in the curve's unit; ``area``
    (:func:`corea.metrics.cascade.area_over_random`).

    Example:
        >>> from corea.metrics.cascade import deferral_curve
        >>> fineness(deferral_curve([0.9, 0.9, 0.2, 0.9], [1, 0, 0, 1], [1] * 4, 1, 10))
        {'operating_points': 3, 'largest_step': 0.75, 'largest_cost_step': 7.5, 'area': 0.0625}
    """
    rates = np.unique(curve["deferral_rate"])
    return {
        "operating_points": len(rates),
        "largest_step": float(np.diff(rates, prepend=rates[0]).max()),
        "largest_cost_step": float(curve["cost"].diff().abs().max()),
        "area": area_over_random(curve),
    }
