"""The layer normalization inside TFLite's LSTM: in floats, and in 16-bit integers.

Source of the formulas: LiteRT's tensor_utils, measured against ai-edge-litert 2.3.0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array
from hwq.ops import tflite_fixedpoint as fixed

__all__ = ["normalize_floats", "normalize_integers"]

# Added to the variance.
GUARD = np.float32(1e-8)
# The mean keeps 10 bits of fraction, its square and the variance 20.
FRACTION = 1 << 10
HALF_ROOT_2 = 1518500250  # sqrt(2) / 2 in Q0.31


def _total(values: Array) -> Array:
    """The sum over the last axis, in order."""
    total = np.zeros(values.shape[:-1], np.float32)
    for column in range(values.shape[-1]):
        total = total + values[..., column]
    return np.asarray(total, np.float32)


def normalize_floats(rows: Array, weight: Array, bias: Array) -> Array:
    """``(x - mean) * (1 / sqrt(variance + 1e-8)) * weight + bias`` of each row, one float32 operation at a time."""
    count = np.float32(rows.shape[1])
    apart = rows - (_total(rows) / count)[:, None]
    inverse = np.float32(1) / np.sqrt(_total(apart * apart) / count + GUARD)
    return np.asarray(apart * inverse[:, None] * weight + bias, np.float32)


def normalize_integers(rows: fixed.Int64, weight: fixed.Int64, bias: fixed.Int64, scale: np.float32) -> fixed.Int64:
    """int16 rows normalized to Q3.12 with int16 weights of one scale and int32 biases.

    Squares and mean fit int64: ``|x| <= 2**15``, so a row of 2**20 elements sums to 2**50 at most, times 2**20 / count.
    The product with the weight wraps as int32.
    """
    count = rows.shape[1]
    mean = _toward_zero(rows.sum(axis=1) * FRACTION, count)
    variance = _toward_zero(
        (rows * rows).sum(axis=1) * (FRACTION * FRACTION // count) - mean * mean, FRACTION * FRACTION
    )
    guard = max(1, int(min(np.float32(10000) * scale, np.float32(1 << 30))))
    mantissa, shift = inverse_root(np.where(variance < 1, guard, variance)[:, None])
    rescaled = fixed.multiply(FRACTION * rows - mean[:, None], mantissa, shift)
    weighed = fixed.wrap32(rescaled * weight + bias)
    rounded = _toward_zero(weighed + np.where(weighed > 0, FRACTION // 2, -(FRACTION // 2)), FRACTION)
    multiplier, exponent = fixed.quantize_multiplier(float(scale))
    return fixed.saturate(fixed.multiply(rounded, multiplier, exponent + 12), 16)


def inverse_root(values: fixed.Int64) -> tuple[fixed.Int64, fixed.Int64]:
    """(mantissa in Q0.31, shift) of ``1 / sqrt(value)``: five steps of Newton's iteration with three integer bits."""
    # Down to below 2**29 by fours, then up by fours to [2**27, 2**29): at most 2**30 comes in.
    large = values >= 1 << 29
    reduced = np.where(large, values >> 2, np.maximum(values, 1))
    pairs = (31 - np.frexp(reduced.astype(np.float64))[1].astype(np.int64)) // 2 - 1
    shift = 11 + large - pairs
    entered = (reduced << 2 * pairs) >> 1
    half, three_halves = fixed.divide_by_power(entered, 1), np.full_like(values, 3 << 27)
    x = np.full_like(values, 1 << 28)
    multiply = fixed.double_high_multiply
    for _ in range(5):
        cube = fixed.saturating_shift(multiply(multiply(x, x), x), 6)
        x = fixed.saturating_shift(multiply(three_halves, x) - multiply(half, cube), 3)
    mantissa = multiply(x, HALF_ROOT_2) << np.maximum(-shift, 0)
    small = values <= 1
    return np.where(small, (1 << 31) - 1, mantissa), np.where(small, 0, -np.maximum(shift, 0))


def _toward_zero(values: NDArray[np.int64], divisor: int) -> fixed.Int64:
    return np.asarray(np.sign(values) * (np.abs(values) // divisor), np.int64)
