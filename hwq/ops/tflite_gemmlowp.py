"""gemmlowp's fixed-point exp, logistic and tanh in 16 and 32 bits, as TFLite's SOFTMAX and LSTM use them.

A value with n integer bits in b bits stands for ``raw * 2**(n - b + 1)``. Source of the formulas: gemmlowp
fixedpoint/fixedpoint.h, measured against ai-edge-litert 2.3.0.
"""

from __future__ import annotations

import numpy as np

from hwq.ops import tflite_fixedpoint as fixed

__all__ = ["exponential", "hyperbolic_tangent", "logarithm", "logistic", "one_over_one_plus"]

Int64 = fixed.Int64
# exp(-2**i) for i = -2 .. 4 in Q0.31.
_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
_EXP_EIGHTH = 1895147668  # exp(-1/8) in Q0.31
_THIRD = 715827883  # 1/3 in Q0.31
_48_OVER_17, _MINUS_32_OVER_17 = 1515870810, -1010580540  # in Q2.29


def _constant(value: int, bits: int) -> int:
    """A constant of 32 bits in `bits` bits, rounded."""
    return value if bits == 32 else int(fixed.divide_by_power(np.int64(value), 32 - bits))


def exponential(a: Int64, integer_bits: int, bits: int = 32) -> Int64:
    """exp of values <= 0 with `integer_bits` integer bits; the result has none."""
    fraction = bits - 1 - integer_bits
    quarter = 1 << (fraction - 2)
    start = (a & (quarter - 1)) - quarter
    result = _near_zero(fixed.saturating_shift(start, integer_bits, bits), bits)
    rest = start - a
    for exponent, power in enumerate(_POWERS, -2):
        if integer_bits > exponent:
            factor = _constant(power, bits)
            result = np.where(
                rest & (1 << (fraction + exponent)), fixed.double_high_multiply(result, factor, bits), result
            )
    if integer_bits > 5:
        result = np.where(a < -(32 << fraction), 0, result)
    return np.where(a == 0, (1 << (bits - 1)) - 1, result)


def _near_zero(a: Int64, bits: int) -> Int64:
    """exp on [-1/4, 0) with no integer bits: a Taylor polynomial of degree 4 about -1/8."""
    x = a + (1 << (bits - 4))
    square = fixed.double_high_multiply(x, x, bits)
    cube = fixed.double_high_multiply(square, x, bits)
    fourth = fixed.double_high_multiply(square, square, bits)
    inner = fixed.divide_by_power(fourth, 2) + cube
    tail = fixed.divide_by_power(fixed.double_high_multiply(inner, _constant(_THIRD, bits), bits) + square, 1)
    middle = _constant(_EXP_EIGHTH, bits)
    result = middle + fixed.double_high_multiply(x + tail, middle, bits)
    return fixed.saturate(result, 16) if bits == 16 else result


def _reciprocal(a: Int64, bits: int) -> Int64:
    """``2 / (1 + a)`` with two integer bits for a in [0, 1) with none: three steps of Newton's iteration."""
    total = a + (1 << (bits - 1)) - 1
    half = np.where(total >= 0, (total + 1) >> 1, -((1 - total) >> 1))
    x = _constant(_48_OVER_17, bits) + fixed.double_high_multiply(half, _constant(_MINUS_32_OVER_17, bits), bits)
    for _ in range(3):
        error = (1 << (bits - 3)) - fixed.double_high_multiply(half, x, bits)
        x = x + fixed.saturating_shift(fixed.double_high_multiply(x, error, bits), 2, bits)
    return x


def one_over_one_plus(a: Int64, bits: int = 32) -> Int64:
    """``1 / (1 + a)`` for a in [0, 1), both without integer bits."""
    return fixed.saturating_shift(_reciprocal(a, bits), 1, bits)


def logistic(a: Int64, integer_bits: int, bits: int = 16) -> Int64:
    """``1 / (1 + exp(-a))`` without integer bits; exactly a half at 0."""
    positive = one_over_one_plus(exponential(-np.abs(a), integer_bits, bits), bits)
    result = np.where(a > 0, positive, (1 << (bits - 1)) - 1 - positive)
    return np.where(a == 0, 1 << (bits - 2), result)


def hyperbolic_tangent(a: Int64, integer_bits: int, bits: int = 16) -> Int64:
    """tanh without integer bits: ``(1 - e) / (1 + e)`` with e = exp(-2 \\|a\\|)."""
    power = exponential(-np.abs(a), integer_bits + 1, bits)
    result = fixed.saturating_shift(_reciprocal(power, bits) - (1 << (bits - 3)), 2, bits)
    return np.where(a == 0, 0, np.where(a < 0, -result, result))


# In Q0.31: log 2, the fourth and the second root of 1/2; the rest with s = the fourth root of 2.
_LOG_2, _ROOT_4, _ROOT_2 = 1488522236, 1805811301, 1518500250
_ALPHA_N, _ALPHA_D = 117049297, 127690142  # 11 s / 240, s / 20
_ALPHA_I, _ALPHA_F = 1057819769, 638450708  # 2 / s - s, s / 4


def logarithm(x: Int64, integer_bits: int, made_bits: int) -> Int64:
    """Natural logarithm of values >= 1 with `integer_bits` integer bits, as one with `made_bits`, in 32 bits.

    A power of two, or of two times the root of 1/2, is taken out so that the rest r lies near the fourth root of 1/2; log r is
    a quotient of polynomials in r less that root.
    """
    multiply, shift = fixed.double_high_multiply, fixed.saturating_shift
    bits = made_bits + 1
    unit, quarter = 31 - bits, int(fixed.divide_by_power(np.asarray(1 << 29), bits))
    zeros = fixed.leading_zeros(x)
    first = fixed.saturate(multiply(fixed.saturate(x << (zeros - 1), 32), _ROOT_2) << 1, 32)
    scaled = multiply(x, _ROOT_2)
    room = fixed.leading_zeros(scaled) - 1
    powers = np.maximum(
        fixed.saturate(fixed.saturate((integer_bits - zeros) << unit, 32) + quarter, 32),
        fixed.saturate(fixed.saturate((integer_bits - room) << unit, 32) - quarter, 32),
    )
    rest = np.minimum(first, fixed.saturate(x << room, 32))
    total = rest + _ROOT_4
    middle = np.where(total >= 0, (total + 1) >> 1, -((1 - total) >> 1))
    apart = fixed.wrap32(2 * fixed.wrap32(rest - _ROOT_4))
    square = multiply(apart, apart)
    above = fixed.wrap32(multiply(apart, rest) + multiply(multiply(apart, square), _ALPHA_N))
    below = fixed.wrap32(
        multiply(middle, fixed.wrap32(_ALPHA_I + apart + multiply(square, _ALPHA_D))) + multiply(apart, _ALPHA_F)
    )
    share = multiply(fixed.divide_by_power(above, bits), one_over_one_plus(below))
    return shift(fixed.wrap32(multiply(powers, _LOG_2) + share), 1)
