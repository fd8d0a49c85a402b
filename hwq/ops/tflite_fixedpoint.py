"""Fixed-point arithmetic of TensorFlow Lite's reference kernels, in exact int64 steps.

An independent reading: the formulas are those of ``reference/numerics.md`` section a (R1, R2, R5, T1-T3), found by
experiment against ai-edge-litert 2.3.0. Every function takes and returns int64 arrays that hold values of the width it
names, so nothing is lost on the way; where LiteRT's int32 wraps, `wrap32` says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.numerics import away, quantize_multiplier
from hwq.numerics import rounding_divide as divide_by_power

__all__ = [
    "Int64",
    "away",
    "divide_by_power",
    "double_high_multiply",
    "down_scale",
    "leading_zeros",
    "multiply",
    "multiply_wide",
    "quantize_multiplier",
    "quantize_multipliers",
    "saturate",
    "saturating_shift",
    "wrap32",
]

Int64 = NDArray[np.int64]
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def wrap32(x: Int64) -> Int64:
    """The value that an int32 holds after wrap-around."""
    return x.astype(np.int32).astype(np.int64)


def saturate(x: Int64, bits: int) -> Int64:
    """Clip to a signed integer of `bits` bits."""
    return np.clip(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def quantize_multipliers(reals: Any) -> tuple[Int64, Int64]:
    """`quantize_multiplier` of every element, as two arrays of the same shape."""
    values = np.asarray(reals, np.float64)
    pairs = [quantize_multiplier(float(real)) for real in values.ravel()]
    mantissas, shifts = (np.array([pair[part] for pair in pairs], np.int64).reshape(values.shape) for part in (0, 1))
    return mantissas, shifts


def double_high_multiply(a: Int64, b: Any, bits: int = 32) -> Int64:
    """High half of ``2 * a * b``, rounded (gemmlowp's SaturatingRoundingDoublingHighMul) for 32 or 16 bits.

    ``|a * b| <= 2**62``, so int64 holds the sum.
    """
    product = a * np.asarray(b, np.int64)
    nudge = 1 << (bits - 2)
    nudged = product + np.where(product >= 0, nudge, 1 - nudge)
    divisor = 1 << (bits - 1)
    quotient = np.where(nudged >= 0, nudged >> (bits - 1), -((-nudged) >> (bits - 1)))
    return np.where(product == divisor * divisor, divisor - 1, quotient)


def multiply(x: Int64, mantissa: Any, shift: Any) -> Int64:
    """R1: ``x * mantissa * 2**(shift - 31)`` with two roundings; the left shift wraps as int32, its count at 32 (x86-64)."""
    shift = np.asarray(shift, np.int64)
    shifted = wrap32(x << (np.maximum(shift, 0) & 31))
    return divide_by_power(double_high_multiply(shifted, mantissa), np.maximum(-shift, 0))


def multiply_wide(x: Int64, mantissa: Any, shift: Any) -> Int64:
    """R5: a 48-bit accumulator times a multiplier of 16 bits, one rounding, halves up; the result is int32."""
    mantissa = np.asarray(mantissa, np.int64)
    reduced = down_scale(mantissa)
    total = 15 - np.asarray(shift, np.int64)
    return wrap32((x * reduced + (np.int64(1) << (total - 1))) >> total)


def down_scale(mantissa: Any) -> Int64:
    """A 31-bit mantissa as one of 15 bits, rounded, at most 32767."""
    mantissa = np.asarray(mantissa, np.int64)
    return np.where(mantissa < 0x7FFF0000, (mantissa + (1 << 15)) >> 16, 0x7FFF)


def saturating_shift(x: Int64, exponent: int, bits: int = 32) -> Int64:
    """``x * 2**exponent`` saturated to `bits` bits."""
    return saturate(x << exponent, bits)


def leading_zeros(x: Int64) -> Int64:
    """Leading zero bits of positive 32-bit values."""
    return 31 - np.floor(np.log2(x.astype(np.float64))).astype(np.int64)
