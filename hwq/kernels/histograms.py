"""Histograms of float32 values, exact: every value in its own bin, whatever the path or the order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.operands import dense

__all__ = ["histogram"]


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
        In float64, over four partial sums in the order of the elements.
    """
    given = dense(x, "x", ["float32"])
    if not -149 <= exponent <= 127 or bins < 2 or bins % 2 or bins > 1 << 24:
        raise Error(
            f"a histogram of {bins} bins 2^{exponent} wide", remedy="an even number of bins, 2^-149 to 2^127 wide"
        )
    counts, squares = np.zeros((2, bins), np.int64), np.zeros(4)
    _kernels.histogram(given.size, given, math.ldexp(1.0, -exponent), bins // 2, counts, squares)
    return counts[0] + counts[1], math.fsum(squares.tolist())
