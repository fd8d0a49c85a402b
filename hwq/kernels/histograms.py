"""What calibration gathers of float32 values: ranges and sums of channels, and exact histograms; the same bits on every path."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.operands import array_of, dense, in_memory_order, integer

__all__ = ["histogram", "ranges"]


def ranges(
    x: Any, axis: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]] | None:
    """Least, greatest and sum of each channel; None if a value is NaN or infinite.

    Parameters
    ----------
    x : float32 array, at least one element
        Channel-first or channel-last in memory: neither is copied.
    axis : int, optional
        The channel axis; None: one channel.

    Returns
    -------
    minima, maxima : float32 arrays (channels,)
    totals : float64 array (channels,)
        In the order that kernels.h states for the order of axes in memory.
    """
    given = array_of(x, "x")
    if given.dtype != np.float32 or not given.size:
        raise Error(f"ranges takes float32 values, not {given.size} of {given.dtype}")
    if axis is not None and not -given.ndim <= integer(axis, "axis") < given.ndim:
        raise Error(f"axis {axis} does not fit shape {given.shape}")
    at = None if axis is None else integer(axis, "axis") % given.ndim
    channels = 1 if at is None else given.shape[at]
    lines = in_memory_order(given if at is None else np.moveaxis(given, at, -1))
    if lines is None or (at is not None and not np.moveaxis(given, at, -1).flags.c_contiguous):
        given = np.ascontiguousarray(given)
        lines = given.reshape(-1)
        inner = given.size if at is None else math.prod(given.shape[at + 1 :])
    else:
        inner = given.size if at is None else 1
    outer = given.size // (channels * inner)
    minima, maxima, totals = np.empty(channels, np.float32), np.empty(channels, np.float32), np.empty(channels)
    finite = _kernels.ranges(outer, channels, inner, lines, minima, maxima, totals)
    return (minima, maxima, totals) if finite else None


def histogram(x: Any, exponent: int, bins: int) -> tuple[NDArray[np.int64], float]:
    """Counts of the values in bins ``2 ** exponent`` wide around zero, and the sum of their squares.

    Parameters
    ----------
    x : float32 array
    exponent : int
        -149 to 127.
    bins : int
        Even; bin i holds ``[(i - bins / 2) w, (i + 1 - bins / 2) w)``. What lies outside, and NaN, is not counted.

    Returns
    -------
    counts : int64 array (bins,)
    squares : float
        In float64, over four partial sums in the order of the elements in memory.
    """
    lines = in_memory_order(x) if isinstance(x, np.ndarray) and x.dtype == np.float32 else None
    given = dense(x, "x", ["float32"]) if lines is None else lines
    exponent, bins = integer(exponent, "exponent"), integer(bins, "bins")
    if not -149 <= exponent <= 127 or bins < 2 or bins % 2 or bins > 1 << 24:
        raise Error(
            f"a histogram of {bins} bins 2^{exponent} wide", remedy="an even number of bins, 2^-149 to 2^127 wide"
        )
    counts, squares = np.zeros((2, bins), np.int64), np.zeros(4)
    _kernels.histogram(given.size, given, math.ldexp(1.0, -exponent), bins // 2, counts, squares)
    return counts[0] + counts[1], math.fsum(squares.tolist())
