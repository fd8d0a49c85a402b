"""Streaming statistics of one tensor: exact ranges, sums and a growing histogram that no batching can change."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.graph import Array

__all__ = ["BINS", "Moments", "Statistics", "observe"]

# Bins on both sides of zero together. Bin widths are powers of two, so growing merges whole bins and loses nothing, and at
# least BINS / 4 bins cover the largest magnitude (2048, what TensorRT's entropy calibration asks for).
BINS = 8192
_HALF = BINS // 2
# Width 2^-149 is float32's smallest step: nothing is finer.
_LOWEST_EXPONENT = -149


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration knows of one tensor.

    Attributes
    ----------
    count : int
        Elements seen.
    total, squares : float
        Sum of the elements and of their squares, in float64.
    exponent : int
        Bins are ``2 ** exponent`` wide.
    histogram : int64 array of shape (BINS,)
        Bin ``i`` counts the elements in ``[(i - BINS / 2) * width, (i + 1 - BINS / 2) * width)``.
    axis : int or None
        The channel axis; None when the tensor has none and the channel arrays hold one entry.
    minima, maxima : float32 array of shape (channels,)
        Exact range of each channel.
    totals : float64 array of shape (channels,)
        Sum of each channel.
    """

    count: int
    total: float
    squares: float
    exponent: int
    histogram: NDArray[np.int64]
    axis: int | None
    minima: NDArray[np.float32]
    maxima: NDArray[np.float32]
    totals: NDArray[np.float64]

    @property
    def minimum(self) -> float:
        """The smallest element, exact."""
        return float(self.minima.min())

    @property
    def maximum(self) -> float:
        """The largest element, exact."""
        return float(self.maxima.max())

    @property
    def mean(self) -> float:
        """Mean of all elements."""
        return self.total / self.count

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean of each channel."""
        return self.totals / (self.count / len(self.totals))

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The BINS + 1 edges of the bins."""
        return np.arange(-_HALF, _HALF + 1, dtype=np.float64) * self.width

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both sets together.

        Raises
        ------
        Error
            The two have different channels.
        """
        if self.axis != other.axis or len(self.totals) != len(other.totals):
            raise Error(
                "two parts of a calibration see different channels",
                why=f"{len(self.totals)} and {len(other.totals)}",
                remedy="calibrate both parts on the same input shapes",
            )
        exponent = max(self.exponent, other.exponent)
        return dataclasses.replace(
            self, count=self.count + other.count, total=self.total + other.total, squares=self.squares + other.squares,
            exponent=exponent, histogram=self._grown(exponent) + other._grown(exponent),
            minima=np.minimum(self.minima, other.minima), maxima=np.maximum(self.maxima, other.maxima),
            totals=self.totals + other.totals)  # fmt: skip

    def _grown(self, exponent: int) -> NDArray[np.int64]:
        """The histogram with bins ``2 ** exponent`` wide; floor(floor(x / w) / 2^d) = floor(x / (w 2^d)), always."""
        shift = exponent - self.exponent
        if shift == 0:
            return self.histogram
        used = np.flatnonzero(self.histogram)
        grown = np.zeros(BINS, np.int64)
        np.add.at(grown, ((used - _HALF) >> min(shift, 62)) + _HALF, self.histogram[used])
        return grown

    def quantile(self, share: float) -> float:
        """The value below which `share` of the elements lie, linear inside its bin and never outside the exact
        range.
        """
        target = share * self.count
        below = np.cumsum(self.histogram)
        index = min(int(np.searchsorted(below, target)), BINS - 1)
        inside = int(self.histogram[index])
        before = int(below[index]) - inside
        value = (index - _HALF + (target - before) / inside if inside else float(index - _HALF)) * self.width
        return min(max(value, self.minimum), self.maximum)


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of a linear layer's input: ``matrix / count = E[x x^T]`` over its rows (a convolution's patches).

    Attributes
    ----------
    count : int
        Rows seen.
    matrix : float64 array of shape (groups, K, K)
        Sum of the rows' outer products; a convolution's K runs over (channel of the group, kernel position).
    total : float64 array of shape (groups, K)
        Sum of the rows.
    """

    count: int
    matrix: NDArray[np.float64]
    total: NDArray[np.float64]

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        return Moments(self.count + other.count, self.matrix + other.matrix, self.total + other.total)


def observe(array: Array, axis: int | None = None) -> Statistics:
    """Statistics of one array of finite float values.

    Parameters
    ----------
    array : float array, at least one element
    axis : int, optional
        The channel axis.

    Raises
    ------
    FloatingPointError
        A value is NaN or infinite; the caller knows the tensor's name.
    """
    values = array if array.dtype == np.float32 else array.astype(np.float32)
    from hwq import kernels  # estimates read statistics' types and need no kernels

    found = kernels.ranges(values, axis)
    if found is None:
        raise FloatingPointError
    minima, maxima, totals = found
    largest = max(float(maxima.max()), -float(minima.min()), 0.0)
    # frexp: largest < 2^e, so bins of 2^(e - 12) put it inside the 2^12 bins on its side.
    reach = math.frexp(largest)[1] - (_HALF.bit_length() - 1)
    exponent = max(reach, _LOWEST_EXPONENT) if largest else _LOWEST_EXPONENT
    histogram, squares = kernels.histogram(values, exponent, BINS)
    return Statistics(values.size, float(totals.sum()), squares, exponent, histogram, axis, minima, maxima, totals)
