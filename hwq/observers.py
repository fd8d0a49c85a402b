"""Observers: from what a tensor holds to scale and zero point. Ranges and the affine map."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from hwq.entropy import BINS_LIMIT, entropy_clip, folded_histogram
from hwq.errors import Error
from hwq.ops.storage import integer_range
from hwq.plan import Activations, Weights
from hwq.statistics import Statistics

__all__ = ["TINY", "activation_range", "affine", "weight_affine"]

# Smallest scale: float32's smallest normal number, so that dividing by it never meets a denormal.
TINY = 2.0**-126
# Largest scale: 2^15 steps of it (int16) still fit into float32.
HUGE = 2.0**112
# Candidates of a clipping search, as shares of the full range (methods of AIMET and torch: a hundred steps).
_SHARES = np.arange(1, 101) / 100.0
_WEIGHT_SHARES = np.linspace(0.3, 1.0, 71)


def affine(low: float, high: float, dtype: str, symmetric: bool) -> tuple[np.float32, int]:
    """Scale and zero point of the range [low, high], widened to hold zero exactly.

    Asymmetric: ``s = (high - low) / (qmax - qmin)``, ``z = clip(rint(qmin - low / s))``. Symmetric: ``s = max|x| /
    (2^(b-1) - 1)``,
    z = 0, or the middle 2^(b-1) of an unsigned type (Jacob et al. 2018); an unsigned type whose range has no negative value
    keeps all its steps for it: ``s = max x / (2^b - 1)``, z = 0. Computed in float64, the scale rounded to float32.
    A range of nothing but zero gets scale 1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    lowest, highest = integer_range(dtype)
    middle = 0 if low == 0.0 and lowest == 0 else (lowest + highest + 1) // 2
    if symmetric:
        peak = max(-low, high)
        return _scale(peak / (highest - middle)), middle
    scale = _scale((high - low) / (highest - lowest))
    return scale, int(min(max(np.rint(lowest - low / float(scale)), lowest), highest))


def _scale(value: float) -> np.float32:
    return np.float32(min(max(value, TINY), HUGE)) if value > 0.0 else np.float32(1.0)


def activation_range(statistics: Statistics, how: Activations) -> tuple[float, float]:
    """The range that an activation's observer keeps.

    Raises
    ------
    Error
        The observer "coordinate" looks at the model's outputs, not at one tensor (`hwq.range_search`).
    """
    low, high = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
    if how.observer == "minmax":
        return low, high
    if how.observer == "percentile":
        # Each side loses 1 - p; a side that holds nothing stays at zero, so only the top of a ReLU's output is cut.
        share = how.percentile / 100.0
        return min(statistics.quantile(1.0 - share), 0.0), max(statistics.quantile(share), 0.0)
    if how.observer == "mse":
        return _least_error(statistics, low, high, how)
    if how.observer == "kl":
        levels = integer_range(how.dtype)[1] + 1
        if low < 0.0 and how.dtype.startswith("u"):
            levels //= 2
        if levels >= BINS_LIMIT:  # every bin has a level: nothing is lost by the whole range
            return low, high
        clip = entropy_clip(*folded_histogram(statistics), levels)
        return max(low, -clip), min(high, clip)
    raise Error(
        f'the observer "{how.observer}" does not rest on one tensor\'s statistics', where="key activations.observer"
    )


# What `_least_error` found, as long as the statistics live: several plans of one calibration ask for the same.
_FOUND: WeakKeyDictionary[Statistics, dict[tuple[str, bool], tuple[float, float]]] = WeakKeyDictionary()


def _least_error(statistics: Statistics, low: float, high: float, how: Activations) -> tuple[float, float]:
    """Range of least mean squared error over the histogram: the ends are searched in turn until neither moves."""
    found = _FOUND.setdefault(statistics, {})
    key = how.dtype, how.symmetric
    if key not in found:
        found[key] = _searched(statistics, low, high, how)
    return found[key]


def _searched(statistics: Statistics, low: float, high: float, how: Activations) -> tuple[float, float]:
    used = np.flatnonzero(statistics.histogram)
    values = np.clip((statistics.edges[used] + statistics.edges[used + 1]) / 2.0, low, high)
    weights = statistics.histogram[used].astype(np.float64)

    lowest, highest = integer_range(how.dtype)
    known: dict[tuple[float, int], float] = {}  # the ends are searched in turn, so most ranges come up twice
    errors = np.empty_like(values)

    def error(ends: tuple[float, float]) -> float:
        scale, zero = affine(*ends, how.dtype, how.symmetric)
        key = step, _ = float(scale), zero
        if key not in known:
            np.rint(np.divide(values, step, out=errors), out=errors)
            np.add(errors, zero, out=errors)
            np.minimum(np.maximum(errors, lowest, out=errors), highest, out=errors)
            np.multiply(np.subtract(errors, zero, out=errors), step, out=errors)
            np.square(np.subtract(errors, values, out=errors), out=errors)
            known[key] = float(np.multiply(errors, weights, out=errors).sum())
        return known[key]

    if how.symmetric:
        peak = max(-low, high)
        return min(((-peak * share if low else 0.0, peak * share) for share in _SHARES[::-1]), key=error)
    best = (low, high)
    for _ in range(4):
        previous = best
        best = min([best, *((best[0], high * share) for share in _SHARES[::-1])], key=error) if high > 0.0 else best
        best = min([best, *((low * share, best[1]) for share in _SHARES[::-1])], key=error) if low < 0.0 else best
        if best == previous:
            break
    return best


def weight_affine(
    groups: NDArray[np.float32], how: Weights, minimum: int | None = None, importance: NDArray[Any] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scale and zero point of each row of weights.

    Parameters
    ----------
    groups : float32 array of shape (scales, elements)
    how : Weights
    minimum : int, optional
        Lowest integer allowed, such as TFLite's -127.
    importance : array of the shape of `groups`, optional
        Weight of each squared error (``scale = "weighted"``): E[x^2] of the input that the weight multiplies.

    Returns
    -------
    scale : float32 array of shape (scales,)
        0 where a row is all zero: the caller knows what to do with it.
    zero_point : int32 array of shape (scales,)
    """
    low = np.minimum(groups.min(axis=1), 0.0).astype(np.float64)
    high = np.maximum(groups.max(axis=1), 0.0).astype(np.float64)
    scale, zero = _rows(low, high, how, minimum)
    if how.scale == "minmax":
        return scale, zero
    best = _row_errors(groups, scale, zero, how, minimum, importance)
    for share in _WEIGHT_SHARES[::-1]:
        candidate, moved = _rows(low * share, high * share, how, minimum)
        error = _row_errors(groups, candidate, moved, how, minimum, importance)
        better = error < best
        scale, zero, best = (
            np.where(better, candidate, scale),
            np.where(better, moved, zero),
            np.where(better, error, best),
        )
    return scale, zero


def _rows(
    low: NDArray[np.float64], high: NDArray[np.float64], how: Weights, minimum: int | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    lowest, highest = integer_range(how.dtype)
    lowest = lowest if minimum is None else max(lowest, minimum)
    middle = 0 if not how.dtype.startswith("u") else (highest + 1) // 2
    if how.symmetric:
        scale = _clamped(np.maximum(-low, high) / (highest - middle))
        return scale, np.full(scale.shape, middle, np.int32)
    scale = _clamped((high - low) / (highest - lowest))
    divisor = np.where(scale == 0.0, 1.0, scale).astype(np.float64)
    return scale, np.clip(np.rint(lowest - low / divisor), lowest, highest).astype(np.int32)


def _clamped(value: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.where(value > 0.0, np.clip(value, TINY, HUGE), 0.0).astype(np.float32)


def _row_errors(
    groups: NDArray[np.float32],
    scale: NDArray[Any],
    zero: NDArray[Any],
    how: Weights,
    minimum: int | None,
    importance: NDArray[Any] | None,
) -> NDArray[np.float64]:
    lowest, highest = integer_range(how.dtype)
    step = np.where(scale == 0.0, 1.0, scale).astype(np.float64)[:, None]
    stored = np.clip(np.rint(groups / step) + zero[:, None], lowest if minimum is None else minimum, highest)
    errors = np.square((stored - zero[:, None]) * step - groups)
    return np.asarray((errors if importance is None else errors * importance).sum(axis=1))
