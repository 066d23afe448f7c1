"""Checks of what comes in: called where a public function begins, and nowhere deeper.

Each returns the array that it checked, or says which argument is wrong, in how many rows,
which is the first, and what was expected.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def numbers(values: ArrayLike, name: str, *, boolean: bool = False) -> NDArray[Any]:
    """A one-dimensional array of numbers in the dtype that it came in; missing ones are NaN.

    Raises:
        TypeError: If there is anything else in it; text is not read as a number.
        ValueError: If it has another shape or no rows.
    """
    array = np.asarray(values)
    if array.dtype.kind == "O":  # None and pandas' NA are missing numbers
        known = [np.nan if pd.isna(value) else value for value in array.flat]
        array = np.array(known).reshape(array.shape)
    if array.dtype.kind not in ("bfiu" if boolean else "fiu"):
        expected = "booleans or 0/1" if boolean else "numbers"
        raise TypeError(f"{name} must be an array of {expected}, found dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (n,), found {array.shape}")
    if not array.size:
        raise ValueError(f"{name} is empty: expected at least one row")
    return array


def unit_interval(values: ArrayLike, name: str, *, missing: bool = False) -> NDArray[Any]:
    """Numbers in [0, 1], as confidences are; NaN only where ``missing`` allows it.

    Raises:
        TypeError: As :func:`numbers`.
        ValueError: As :func:`numbers`, and for a number outside [0, 1] or missing.
    """
    array = numbers(values, name)
    _refuse(name, array, (array < 0) | (array > 1), "in [0, 1]")
    if not missing and (lacking := np.flatnonzero(np.isnan(array))).size:
        raise ValueError(
            f"{name} is missing (NaN) in {lacking.size} of {len(array)} rows, the first is row "
            f"{lacking[0]}: select the rows that have one, and report their share"
        )
    return array


def verdicts(values: ArrayLike, name: str = "correct") -> Floats:
    """Booleans, or 0 and 1, as floats.

    Raises:
        TypeError: As :func:`numbers`.
        ValueError: As :func:`numbers`, and for any other number.
    """
    array = numbers(values, name, boolean=True)
    _refuse(name, array, (array != 0) & (array != 1), "boolean or 0/1")
    return array.astype(np.float64, copy=False)


def not_negative(values: ArrayLike, name: str, n: int | None = None) -> Floats:
    """Finite numbers from 0: weights, costs, counts; a scalar stands for ``n`` equal rows.

    Raises:
        TypeError: As :func:`numbers`.
        ValueError: As :func:`numbers`, for another length than ``n``, and for a number that is
            negative, infinite or missing.
    """
    if n is not None and np.ndim(values) == 0:
        values = np.broadcast_to(np.asarray(values), n)
    array = numbers(values, name).astype(np.float64, copy=False)
    _refuse(name, array, ~((array >= 0) & (array < np.inf)), "finite and not negative")
    if n is not None and len(array) != n:
        raise ValueError(f"{name} must have shape ({n},), found {array.shape}")
    return array


def same_length(**arrays: NDArray[Any]) -> None:
    """Refuse arrays of different lengths, by the names of the arguments."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = " and ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"{' and '.join(lengths)} must have the same length; {found} rows")


def whole(value: object, name: str, least: int, most: int | None = None) -> int:
    """A whole number from ``least`` to ``most``; a boolean is none."""
    fits = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not fits or value < least or (most is not None and value > most):  # type: ignore[operator]
        limits = f"from {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; expected a whole number {limits}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def one_of(value: object, name: str, allowed: Collection[object]) -> None:
    """Refuse a value that is not among those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def _refuse(name: str, array: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
    if (rows := np.flatnonzero(wrong)).size:
        raise ValueError(
            f"{name} must be {expected}: {rows.size} of {len(array)} rows are not, the first is "
            f"row {rows[0]} with {array[rows[0]]}"
        )
