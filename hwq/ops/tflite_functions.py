"""Sigmoid and tanh as Eigen's vectors compute them in LiteRT's packages: SSE, four floats at a time, no fused multiply-add.

Elements in front of the first 16-byte boundary and behind the last whole vector take Eigen's scalar functions, so a value
depends on its place in memory. Source of the formulas: Eigen's scalar_logistic_op and ptanh_float with EIGEN_FAST_MATH,
found in every element of 2**16 arguments of ai-edge-litert 2.3.0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hwq.graph import Array
from hwq.numerics import exp_c

__all__ = ["apply_vectors", "hyperbolic_tangent", "logistic", "scalar_logistic"]

f32 = np.float32
# Floats of a vector.
LANES = 4
# Beyond these bounds exp(x) / (1 + exp(x)) is 1, and 0.
HIGH, LOW = f32(16.6355324), f32(-104)
LOG2E = f32(1.44269504088896341)
# -ln(2) in two parts.
LN2 = (f32(-0.693359375), f32(2.12194440e-4))
# exp(r) = 1 + r + r^2 * (even + r * odd), |r| <= ln(2) / 2; highest power first.
EVEN = (f32(4.1898667812347412109375e-2), f32(0.49999141693115234375))
ODD = (f32(8.33471305668354034423828125e-3), f32(0.16666877269744873046875))
# tanh(x) = (x^3 * p(x^2) + x) / q(x^2) up to the first argument where it is 1.
TANH_REACH = f32(7.90738964080810547)
NUMERATOR = tuple(f32(c) for c in (1.394553628e-8, 2.102733560e-5, 3.520756727e-3, 1.340216100e-1))
DENOMINATOR = tuple(f32(c) for c in (8.015776984e-7, 3.326951409e-4, 2.597254514e-2, 4.673548340e-1, 1.0))


def _polynomial(x: Array, coefficients: Sequence[np.float32]) -> Array:
    total: Array = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def logistic(x: Array) -> Array:
    """``e / (1 + e)`` with ``e = exp(x / 2)**2``; float32 in and out."""
    half = np.minimum(x, HIGH) * f32(0.5)
    whole = np.floor(half * LOG2E + f32(0.5))
    rest = whole * LN2[1] + (whole * LN2[0] + half)
    square = rest * rest
    root = square * (rest * _polynomial(square, ODD) + _polynomial(square, EVEN)) + (rest + f32(1))
    with np.errstate(invalid="ignore"):
        # |whole| <= 75 where the result counts, and NaN stays NaN through the root.
        power = np.ldexp(root, np.nan_to_num(np.clip(whole, -80, 80)).astype(np.int32))
    grown = power * power
    return np.asarray(np.where(x < LOW, f32(0), grown / (f32(1) + grown)), f32)


def scalar_logistic(x: Array) -> Array:
    """``e / (1 + e)`` with the C library's expf."""
    grown = exp_c(np.minimum(x, HIGH))
    return np.asarray(grown / (f32(1) + grown), f32)


def hyperbolic_tangent(x: Array) -> Array:
    """A rational function of degrees 9 and 8; float32 in and out."""
    inside = np.clip(x, -TANH_REACH, TANH_REACH)
    square = inside * inside
    above = (square * inside) * _polynomial(square, NUMERATOR) + inside
    return np.asarray(above / _polynomial(square, DENOMINATOR), f32)


def apply_vectors(
    vector: Callable[[Array], Array], scalar: Callable[[Array], Array], values: Array, place: int
) -> Array:
    """A function of contiguous `values` whose result starts `place` floats behind a 16-byte boundary."""
    flat = values.reshape(-1)
    start = min(-place % LANES, flat.size)
    stop = start + (flat.size - start) // LANES * LANES
    made = np.empty_like(flat)
    made[start:stop] = vector(flat[start:stop])
    for edge in (slice(0, start), slice(stop, flat.size)):
        made[edge] = scalar(flat[edge])
    return made.reshape(values.shape)
