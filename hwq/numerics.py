"""An independent NumPy reading of the arithmetic: every rounding and formula in exact int64 and single IEEE steps.

It shares no code with the C kernels; the tests hold one against the other. Notation of kernels/README.md: `rint` ties
to even, `away` ties away from zero, `up` ties to plus infinity.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FourStages",
    "away",
    "binary",
    "dequantize",
    "exp_c",
    "four_stages",
    "fused_multiply_add",
    "quantize",
    "quantize_multiplier",
    "requantize",
    "rounding_divide",
    "saturating_doubling_high_multiply",
    "sum_f32",
    "up",
]

Array = NDArray[Any]
_INT32 = 2**32
# glibc 2.27 and later, from Arm's optimized routines: 2^(i / 32), and 2^(r / 32) as a cubic in float64.
_PARTS = 32
_POWERS = np.array([float(Decimal(2) ** (Decimal(index) / _PARTS)) for index in range(_PARTS)])
_CUBIC = tuple(
    float.fromhex(value) / _PARTS**power
    for value, power in (("0x1.c6af84b912394p-5", 3), ("0x1.ebfce50fac4f3p-3", 2), ("0x1.62e42ff0c52d6p-1", 1))
)
_LOG2E_PARTS = float.fromhex("0x1.71547652b82fep+0") * _PARTS


def _s32(v: Any) -> Array:
    """Modulo 2^32 into int32's range, held as int64."""
    return ((np.asarray(v, np.int64) + 2**31) % _INT32) - 2**31


def up(v: Any, e: Any) -> Array:
    """``floor(v / 2^e + 1/2)`` of int64 values: nearest, ties up."""
    v, e = np.asarray(v, np.int64), np.asarray(e, np.int64)
    return np.asarray(np.where(e > 0, (v + (np.int64(1) << np.maximum(e - 1, 0))) >> e, v))


def away(v: Any) -> Array:
    """Nearest integer, ties away from zero, in the dtype of `v` (exact: the fraction is compared, nothing is added)."""
    v = np.asarray(v)
    whole = np.trunc(v)
    return np.asarray(np.where(np.abs(v - whole) >= 0.5, whole + np.copysign(1, v).astype(v.dtype), whole))


def saturating_doubling_high_multiply(a: Any, b: Any) -> Array:
    """gemmlowp's SaturatingRoundingDoublingHighMul on int32 values: nearest of ``a * b / 2^31``, ties up."""
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    product = a * b
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    truncated = np.sign(nudged) * (np.abs(nudged) >> 31)
    return np.where((a == b) & (a == -(2**31)), 2**31 - 1, truncated)


def rounding_divide(x: Any, e: Any) -> Array:
    """gemmlowp's RoundingDivideByPOT: nearest of ``x / 2^e``, ties away from zero."""
    x, e = np.asarray(x, np.int64), np.asarray(e, np.int64)
    half = np.where(e > 0, np.int64(1) << np.maximum(e - 1, 0), 0)
    return np.asarray(np.sign(x) * ((np.abs(x) + half) >> e))


def quantize_multiplier(real: float) -> tuple[int, int]:
    """TFLite's QuantizeMultiplier: ``real = multiplier * 2^(shift - 31)``, multiplier in [2^30, 2^31); 0 -> (0, 0)."""
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = int(away(np.float64(fraction * 2.0**31)))
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def _gemmlowp(acc: Array, multiplier: Any, shift: Any) -> Array:
    shift = np.asarray(shift, np.int64)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    return rounding_divide(saturating_doubling_high_multiply(_s32(acc << left), multiplier), right)


def requantize(
    acc: Any,
    rounding: str,
    *,
    multipliers: Any,
    shifts: Any = 0,
    zero_point: int = 0,
    clamp: tuple[int, int] = (-128, 127),
    float_bias: Any = None,
) -> Array:
    """Accumulators to integers by one of the roundings R1..R7.

    Parameters
    ----------
    acc : int32 or int64 array (..., columns)
    rounding : {"gemmlowp", "f64", "ruy", "fp32", "mbqm64", "xnn-fixed", "single"}
    multipliers, shifts : scalar or (columns,)
        float32 for fp32, float64 for f64, int32 otherwise.
    float_bias : float32, optional
        For fp32: added to f32(acc) before the product.

    Returns
    -------
    int64 array, within `clamp`
    """
    acc = np.asarray(acc, np.int64)
    lo, hi = clamp
    if rounding == "fp32":
        wide = acc.astype(np.float32)
        if float_bias is not None:
            wide = wide + np.asarray(float_bias, np.float32)
        with np.errstate(over="ignore"):
            scaled = wide * np.asarray(multipliers, np.float32)
        clipped = np.clip(scaled, np.float32(lo - zero_point), np.float32(hi - zero_point))
        return np.asarray(np.rint(clipped).astype(np.int64) + zero_point)
    if rounding == "f64":
        scaled = away(acc.astype(np.float64) * np.asarray(multipliers, np.float64))
        return np.clip(scaled, lo - zero_point, hi - zero_point).astype(np.int64) + zero_point
    m, s = np.asarray(multipliers, np.int64), np.asarray(shifts, np.int64)
    if rounding == "gemmlowp":
        v = _gemmlowp(acc, m, s)
    elif rounding == "ruy":
        v = up(_s32(up(_s32(acc << np.maximum(s, 0)) * m, 31)), np.maximum(-s, 0))
    elif rounding == "mbqm64":
        m16 = np.where(m < 0x7FFF0000, (m + 2**15) >> 16, 0x7FFF)
        v = up(acc * m16, 15 - s)
    elif rounding == "xnn-fixed":
        v = up(acc * m, s)
    elif rounding == "single":
        v = up(acc * m, 31 - s)
    else:
        raise ValueError(f"no rounding {rounding}")
    return np.asarray(np.clip(v + zero_point, lo, hi))


def quantize(
    x: Any, scale: Any, zero_point: Any = 0, clamp: tuple[int, int] = (0, 255), *, formula: str = "onnx"
) -> Array:
    """float32 to integers (int64 array); scale and zero point broadcast against `x`. Formulas: kernels/README.md."""
    x, s, z = np.asarray(x, np.float32), np.asarray(scale, np.float32), np.asarray(zero_point, np.int64)
    lo, hi = clamp
    with np.errstate(all="ignore"):
        if formula in ("onnx", "reciprocal"):
            v = x / s if formula == "onnx" else x * (np.float32(1) / s)
            low, high = (lo - z).astype(np.float32), (hi - z).astype(np.float32)
            v = np.where(np.isnan(v), low, np.minimum(np.maximum(v, low), high))
            return np.rint(v).astype(np.int64) + z
        if formula == "tflite":
            v = away(x / s)
            fits = (v >= np.float32(-(2.0**31))) & (v < np.float32(2.0**31))
            whole = np.where(fits, v, -(2.0**31)).astype(np.int64)
            return np.clip(_s32(whole + z), lo, hi)
        inverse = np.float32(1) / s
        if formula == "torch-tensor":
            v = fused_multiply_add(x, np.broadcast_to(inverse, x.shape), np.broadcast_to(z, x.shape).astype(np.float32))
            v = np.rint(v)
        elif formula == "torch-channel":
            v = np.rint(z.astype(np.float32) + x * inverse)
        elif formula == "torch-fake":
            v = np.rint(x * inverse) + z.astype(np.float32)
        else:
            raise ValueError(f"no formula {formula}")
        return np.where(np.isnan(v), hi, np.clip(v, lo, hi)).astype(np.int64)


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """float32 fused multiply-add, exact: float64 holds the product; where its sum may have hidden a side of a tie, it is rounded to odd."""
    product, c = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32), np.asarray(c, np.float32)
    total = np.atleast_1d(product + c)  # 48 bits: exact (no float32 product leaves float64's range)
    made = total.astype(np.float32)
    # Two roundings are one unless the first falls on the middle between two float32: the 29 bits that go are 2^28 then.
    # Subnormal results lose more bits.
    doubtful = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    doubtful |= np.abs(total) < np.finfo(np.float32).tiny
    if doubtful.any():
        parts = (np.broadcast_to(v, total.shape)[doubtful].astype(np.float64) for v in (product, c))
        made[doubtful] = _rounded_to_odd(*parts).astype(np.float32)
    return made.reshape(np.broadcast_shapes(product.shape, c.shape))


def _rounded_to_odd(product: Array, c: Array) -> Array:
    """float64 sums whose last bit is odd where they are inexact: rounding them again sees which side of a tie they lie on."""
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)  # two-sum: what the addition lost
    bits = total.view(np.int64)
    with np.errstate(invalid="ignore"):
        inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
        toward = np.where((error > 0) == (total > 0), 1, -1)
    return np.asarray(np.where(inexact, bits + toward, bits).view(np.float64))


def dequantize(q: Any, scale: Any, zero_point: Any = 0) -> Array:
    """``f32(q - zp) * s``, float32."""
    centered = np.asarray(q).astype(np.int64) - np.asarray(zero_point, np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(centered.astype(np.float32) * np.asarray(scale, np.float32), np.float32)


def binary(
    formula: str,
    a: Any,
    b: Any,
    *,
    a_scale: float,
    b_scale: float,
    scale: float,
    a_zero_point: int = 0,
    b_zero_point: int = 0,
    zero_point: int = 0,
    clamp: tuple[int, int] = (0, 255),
    sixteen: bool = False,
) -> Array:
    """Elementwise operators on quantized tensors, by the formula names of `hwq.kernels.Binary`; int64 result."""
    f32 = np.float32
    qa, qb = np.asarray(a).astype(np.int64), np.asarray(b).astype(np.int64)
    qa, qb = np.broadcast_arrays(qa, qb)
    ca, cb = qa - a_zero_point, qb - b_zero_point
    sa, sb, sc = f32(a_scale), f32(b_scale), f32(scale)
    lo, hi = clamp
    if formula == "ort-add":
        ra, rb = sa / sc, sb / sc
        fixed = f32(zero_point) - fused_multiply_add(
            np.asarray(ra), np.asarray(f32(a_zero_point)), np.asarray(rb * f32(b_zero_point))
        )
        inner = fused_multiply_add(np.asarray(b).astype(f32), np.asarray(rb), np.asarray(fixed))
        v = fused_multiply_add(np.asarray(a).astype(f32), np.asarray(ra), inner)
        return np.asarray(np.rint(np.clip(v, f32(lo), f32(hi))).astype(np.int64))
    if formula == "ort-mul":
        v = (ca * cb).astype(f32) * (f32(sa * sb) / sc) + f32(zero_point)
        return np.asarray(np.rint(np.clip(v, f32(lo), f32(hi))).astype(np.int64))
    if formula == "torch-add":
        fa = fused_multiply_add(qa.astype(f32), np.full(qa.shape, sa), np.full(qa.shape, f32(-a_zero_point) * sa))
        fb = fused_multiply_add(qb.astype(f32), np.full(qb.shape, sb), np.full(qb.shape, f32(-b_zero_point) * sb))
        v = np.rint((fa + fb) * (f32(1) / sc))
        return np.clip(v, lo - zero_point, hi - zero_point).astype(np.int64) + zero_point
    if formula in ("torch-mul", "xnnpack-mul"):
        return requantize(ca * cb, "fp32", multipliers=f32(sa * sb) / sc, zero_point=zero_point, clamp=clamp)
    if formula == "tflite-mul":
        m, s = quantize_multiplier(float(f32(sa * sb) / sc))
        return np.asarray(np.clip(_gemmlowp(ca * cb, m, s) + zero_point, lo, hi))
    minus = formula.endswith("-sub")
    if formula in ("tflite-add", "tflite-sub"):
        left = 15 if sixteen else 20
        twice = 2.0 * float(max(sa, sb))
        (ma, ea), (mb, eb) = quantize_multiplier(float(sa) / twice), quantize_multiplier(float(sb) / twice)
        mo, eo = quantize_multiplier(twice / float(f32(2.0**left) * sc))
        x, y = _gemmlowp(ca << left, ma, ea), _gemmlowp(cb << left, -mb if minus else mb, eb)
        return np.asarray(np.clip(_gemmlowp(_s32(x + y), mo, eo) + zero_point, lo, hi))
    if formula in ("xnnpack-add", "xnnpack-sub"):
        ra, rb = sa / sc, sb / sc
        shift = 20 - math.floor(math.log2(float(max(ra, rb))))
        ma, mb = (int(np.rint(float(r) * 2.0**shift)) for r in (ra, rb))
        return np.asarray(np.clip(up(ca * ma + cb * (-mb if minus else mb), shift) + zero_point, lo, hi))
    raise ValueError(f"no formula {formula}")


def sum_f32(terms: Any) -> Array:
    """The fixed order over the last axis of float32 terms: 8 interleaved sums, then the tree of neighbors."""
    terms = np.asarray(terms, np.float32)
    k = terms.shape[-1]
    lanes = np.zeros((*terms.shape[:-1], 8), np.float32)
    for i in range(k):
        lanes[..., i % 8] = lanes[..., i % 8] + terms[..., i]
    pairs = lanes[..., 0::2] + lanes[..., 1::2]
    quads = pairs[..., 0::2] + pairs[..., 1::2]
    return np.asarray(quads[..., 0] + quads[..., 1], np.float32)


def dot_f32(a: Any, b: Any) -> Array:
    """Dot products over the last axis in the fixed order, by fused multiply-adds; k padded with +0 to 8."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float32), np.asarray(b, np.float32))
    missing = -a.shape[-1] % 8
    pad = [(0, 0)] * (a.ndim - 1) + [(0, missing)]
    a, b = np.pad(a, pad), np.pad(b, pad)
    lanes = np.zeros((*a.shape[:-1], 8), np.float32)
    for i in range(0, a.shape[-1], 8):
        lanes = fused_multiply_add(a[..., i : i + 8], b[..., i : i + 8], lanes)
    pairs = lanes[..., 0::2] + lanes[..., 1::2]
    quads = pairs[..., 0::2] + pairs[..., 1::2]
    return np.asarray(quads[..., 0] + quads[..., 1], np.float32)


def exp_c(x: Any) -> Array:
    """glibc's expf: float64 inside, rounded once."""
    narrow = np.asarray(x, np.float32)
    wide = narrow.astype(np.float64)
    # 2^+-160 rounds to infinity and to 0 in float32.
    z = np.clip(np.where(np.isnan(wide), 0.0, wide), -110.0, 110.0) * _LOG2E_PARTS
    k = np.rint(z)
    r, whole = z - k, k.astype(np.int64)
    scale = np.ldexp(_POWERS[whole % _PARTS], (whole // _PARTS).astype(np.int32))
    with np.errstate(over="ignore", under="ignore"):
        made = (((_CUBIC[0] * r + _CUBIC[1]) * (r * r) + (_CUBIC[2] * r + 1.0)) * scale).astype(np.float32)
    return np.where(np.isnan(wide), narrow, made).astype(np.float32)


class FourStages:
    """The classic four stages of quantization: normalize, scale, quantize, dequantize.

    ``Q = round(S * (X - minimum))`` with ``S = levels / (maximum - minimum)``, and back by ``Q / S + minimum``.
    Runtimes compute the affine form ``clip(round(x / s) + z, 0, levels)`` with ``s = 1 / S`` and an integer z. Both
    agree where ``-minimum * S`` is an integer, that is where zero lies on the grid; there they differ only at exact
    ties with an odd z, because ties go to even before z is added. Off the grid, zero
    itself comes back as another number.

    Parameters
    ----------
    minimum, maximum : float
        Range of the data, minimum < maximum.
    bits : int
        The grid has 2^bits - 1 steps.
    """

    def __init__(self, minimum: float, maximum: float, bits: int = 8):
        if not (math.isfinite(minimum) and math.isfinite(maximum) and minimum < maximum):
            raise ValueError(f"no range: [{minimum}, {maximum}]")
        self.minimum, self.maximum, self.levels = float(minimum), float(maximum), 2**bits - 1

    @property
    def scale(self) -> float:
        """S: grid steps per unit of x."""
        return float(self.levels / (self.maximum - self.minimum))

    @property
    def zero_point(self) -> float:
        """Where zero falls on the grid; an integer exactly when both forms agree."""
        return 0.0 - self.minimum * self.scale

    def zero_on_grid(self, tolerance: float = 1e-9) -> bool:
        """Whether zero is one of the grid's points."""
        return abs(self.zero_point - round(self.zero_point)) <= tolerance

    def equals_affine(self, x: Any) -> Array:
        """Where `quantized` equals `affine`, told without computing either; bool array.

        Certain where it says True. Where zero is off the grid it says False, though both may happen to agree.
        """
        steps = np.asarray(x, np.float64) * self.scale
        tie = np.abs(steps - np.trunc(steps)) == 0.5
        return np.asarray(self.zero_on_grid() & ~(tie & bool(round(self.zero_point) % 2)))

    def normalize(self, x: Any) -> Array:
        """Stage 1: into [0, 1], values outside the range clipped."""
        clipped = np.clip(np.asarray(x, np.float64), self.minimum, self.maximum)
        return np.asarray((clipped - self.minimum) / (self.maximum - self.minimum))

    def scaled(self, x: Any) -> Array:
        """Stage 2: S (X - minimum), in [0, levels]."""
        return np.asarray(self.normalize(x) * self.levels)

    def quantized(self, x: Any) -> Array:
        """Stage 3: round to even, int64."""
        return np.rint(self.scaled(x)).astype(np.int64)

    def dequantized(self, q: Any) -> Array:
        """Stage 4: back to x."""
        return np.asarray(np.asarray(q, np.float64) / self.scale + self.minimum)

    def affine(self, x: Any) -> Array:
        """``clip(round(x / s) + z)`` with the zero point rounded to the grid: what runtimes compute."""
        q = np.rint(np.asarray(x, np.float64) * self.scale) + round(self.zero_point)
        return np.asarray(np.clip(q, 0, self.levels).astype(np.int64))


def four_stages(x: Any, bits: int = 8) -> tuple[Array, FourStages]:
    """Quantize data over its own range by the four stages: (Q, the map)."""
    data = np.asarray(x, np.float64)
    stages = FourStages(float(data.min()), float(data.max()), bits)
    return stages.quantized(data), stages
