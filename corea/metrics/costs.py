r"""Cost of a query in the unit of paper A: one input token of the small model.

Formulas (9) and (10) of the paper are lost in our text; they are reconstructed from
its two assumptions (section 4.3): output tokens cost four times as much as input
tokens, and prices scale with the number of parameters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def query_cost(
    prompt_tokens: ArrayLike,
    completion_tokens: ArrayLike,
    size_ratio: float = 1.0,
    output_price: float = 4.0,
) -> NDArray[np.float64]:
    r"""Cost of asking one model.

    .. math:: C = \rho \, (n_\text{in} + \pi \, n_\text{out})

    Source: paper A, section 4.3, equations (9) and (10), reconstructed.

    Args:
        prompt_tokens: Tokens read, :math:`n_\text{in}`, shape (n,) or scalar.
        completion_tokens: Tokens written, :math:`n_\text{out}`, same shape.
        size_ratio: Parameters of the model over those of the small model, :math:`\rho`.
        output_price: Price of an output token in input tokens, :math:`\pi`.

    Returns:
        Cost in input tokens of the small model, the shape of the arguments.

    Raises:
        ValueError: If a count is missing or negative, or a ratio or price is not positive.

    Example:
        >>> float(query_cost(100, 50))
        300.0
        >>> float(query_cost(100, 50, size_ratio=32 / 7))  # a 32B model beside a 7B one
        1371.4285714285713
    """
    for name, value in (("size_ratio", size_ratio), ("output_price", output_price)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; expected a positive number")
    prompt, completion = (
        _token_counts(name, tokens)
        for name, tokens in (
            ("prompt_tokens", prompt_tokens),
            ("completion_tokens", completion_tokens),
        )
    )
    return size_ratio * (prompt + output_price * completion)


def _token_counts(name: str, tokens: ArrayLike) -> NDArray[np.float64]:
    # pandas' nullable integers need to be told what a missing count becomes
    to_numpy = getattr(tokens, "to_numpy", None)
    counts = np.asarray(
        to_numpy(dtype=float, na_value=np.nan) if to_numpy else tokens, dtype=np.float64
    )
    if missing := int(np.isnan(counts).sum()):
        raise ValueError(f"{name}: {missing} of {counts.size} counts are missing; no cost without")
    if counts.size and counts.min() < 0:
        raise ValueError(f"{name}: found {counts.min():g}, expected counts from 0")
    return counts
