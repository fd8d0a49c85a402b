"""SOFTMAX and LOG_SOFTMAX of TFLite: 8-bit in gemmlowp fixed point, int16 by two interpolated tables, floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Node, Tensor, carrier
from hwq.ops import dims
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops import tflite_gemmlowp as gemmlowp
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import DEFAULT_INTERPRETER, Call, TfliteOp, inferred, present
from hwq.ops.tflite_interpolation import interpolate, interpolation_table

__all__ = ["LogSoftmax", "Softmax"]

Int64 = fixed.Int64


@register
class Softmax(TfliteOp):
    """SOFTMAX over the last axis."""

    operators = ("SOFTMAX",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        dtype = str(node.attributes.get("to", x.dtype))
        if dtype != x.dtype and (x.dtype, dtype) not in {("int8", "int16"), ("uint8", "int16")}:
            raise dims.fault(node, f"{x.dtype} cannot become {dtype}")
        if x.known_shape and not x.shape:
            raise dims.fault(node, "the operator needs an axis")
        return inferred(dtype, x.shape if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        if x.size == 0:
            return [np.zeros(x.shape, carrier(call.made_dtype()))]
        beta = np.float32(call.attribute("beta", 1.0))
        if not call.quantized:
            return [_softmax_float(x, beta)]
        if call.dtype(0) == "int16":
            return [_softmax16(call, beta)]
        return [_softmax8(call, beta)]


def _softmax_float(x: Array, beta: np.float32) -> Array:
    """exp of each step rounded to float32, their sum in order, one division."""
    distance = ((x - x.max(axis=-1, keepdims=True)).astype(np.float32) * beta).astype(np.float32)
    powers = np.exp(distance.astype(np.float64)).astype(np.float32)
    total = np.zeros((*x.shape[:-1], 1), np.float32)
    for column in range(x.shape[-1]):
        total += powers[..., column : column + 1]
    return np.asarray((powers / total).astype(x.dtype))


def _softmax8(call: Call, beta: np.float32) -> Array:
    """8-bit (T3): exponentials in Q0.31, their sum with 12 integer bits, one reciprocal a row."""
    real = min(float(beta) * float(call.scale(0)) * 2**26, 2.0**31 - 1)
    mantissa, left = fixed.quantize_multiplier(real)
    least = -math.floor(31 * 2.0**26 / 2.0**left)
    x = call.wide(0)
    away = x - x.max(axis=-1, keepdims=True)
    kept = away >= least
    scaled = fixed.multiply(np.where(kept, away, 0), mantissa, left)
    powers = np.where(kept, gemmlowp.exponential(scaled, 5), 0)
    total = np.where(kept, fixed.divide_by_power(powers, 12), 0).sum(axis=-1, keepdims=True)
    headroom = fixed.leading_zeros(total)
    reciprocal = gemmlowp.one_over_one_plus((total << headroom) - 2**31)
    kind = np.iinfo(carrier(call.made_dtype()))
    bits = 16 if call.made_dtype() == "int16" else 8
    exponent = (12 - headroom) + 31 - bits
    values = fixed.divide_by_power(fixed.double_high_multiply(powers, reciprocal), exponent) + int(kind.min)
    return np.where(kept, np.clip(values, kind.min, kind.max), kind.min).astype(kind.dtype)


def _softmax16(call: Call, beta: np.float32) -> Array:
    """int16: exp on [-10, 0] and 1 / (1 + x) on [0, 1] by interpolation, Q0.15 throughout."""
    powers_of = interpolation_table(np.exp, 10.0 / 65535, 32767, 2.0 / 65535, 0)
    reciprocal_of = interpolation_table(lambda x: 1.0 / (1.0 + x), 1.0 / 65535, -32768, 2.0 / 65535, 0)
    real = float(np.float32(call.scale(0) * beta)) / (10.0 / 65535.0)
    x = call.wide(0)
    away = x - x.max(axis=-1, keepdims=True)
    scaled = fixed.multiply(away, *fixed.quantize_multiplier(real))
    powers = interpolate(powers_of, fixed.saturate(scaled + 32767, 16))
    total = powers.sum(axis=-1, keepdims=True)
    headroom = fixed.leading_zeros(total)
    shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
    reciprocal = interpolate(reciprocal_of, fixed.saturate(shifted - (1 << 15) - (1 << 16), 16))
    right = 31 - headroom
    values = (powers * reciprocal + (np.int64(1) << (right - 1))) >> right
    return np.asarray(np.clip(values, 0, 32767).astype(np.int16))


@register
class LogSoftmax(TfliteOp):
    """LOG_SOFTMAX over the last axis."""

    operators = ("LOG_SOFTMAX",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        return inferred(x.dtype, x.shape if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        if not call.quantized:
            return [_log_softmax_float(call.array(0))]
        if call.array(0).size == 0:
            return [call.array(0)]
        by_table = call.dialect == DEFAULT_INTERPRETER and call.dtype(0) != "int16"
        return [_log_softmax_table(call) if by_table else _log_softmax(call)]


def _log_softmax_float(x: Array) -> Array:
    """exp of each distance rounded to float32, their sum in order, its logarithm, one subtraction."""
    if not x.size:
        return x
    away = (x - x.max(axis=-1, keepdims=True)).astype(np.float32)
    powers = np.exp(away.astype(np.float64)).astype(np.float32)
    total = np.zeros((*x.shape[:-1], 1), np.float32)
    for column in range(x.shape[-1]):
        total += powers[..., column : column + 1]
    return np.asarray(away - np.log(total.astype(np.float64)).astype(np.float32))


def _log_softmax(call: Call) -> Array:
    """8 bits into steps of 1/16: exponentials in Q5.26, their sum with 12 integer bits, its logarithm in Q5.26."""
    if call.dtype(0) == "int16":
        raise call.fault("int16 is not supported in this operator", "LiteRT has no such kernel")
    info = np.iinfo(carrier(call.made_dtype()))
    mantissa, left = fixed.quantize_multiplier(min(float(call.scale(0)) * 2**26, 2.0**31 - 1))
    back, right = fixed.quantize_multiplier(1.0 / math.ldexp(mantissa, left - 31))
    least = -math.floor(31 * 2.0**26 / 2.0**left)
    x = call.wide(0)
    away = x - x.max(axis=-1, keepdims=True)
    kept = away >= least
    scaled = fixed.multiply(away, mantissa, left)
    powers = np.where(kept, fixed.divide_by_power(gemmlowp.exponential(np.where(kept, scaled, 0), 5), 12), 0)
    total = gemmlowp.logarithm(powers.sum(axis=-1, keepdims=True), 12, 5)
    nearest = np.maximum(least - 1, fixed.multiply(total - 2**31, back, right))
    values = np.clip(fixed.divide_by_power(scaled - total, 31 - 5 - 4) + int(info.max), info.min, info.max)
    return np.where(away > nearest, values, info.min).astype(info.dtype)


def _log_softmax_table(call: Call) -> Array:
    """8 bits: exponentials from a table of 256, their sum in order, its logarithm in float32."""
    f32 = np.float32
    x = call.wide(0)
    top = x.max(axis=-1, keepdims=True)
    step = f32(-call.scale(0))
    table = np.exp((step * np.arange(256).astype(f32)).astype(np.float64)).astype(f32)
    powers = table[top - x]
    total = np.zeros((*x.shape[:-1], 1), f32)
    for column in range(x.shape[-1]):
        total += powers[..., column : column + 1]
    logarithm = np.log(total.astype(np.float64)).astype(f32)
    scale = f32(call.scale(0) / call.made_scale())
    shift = ((call.scale(0) * top.astype(f32) + logarithm) / call.made_scale()).astype(f32)
    info = np.iinfo(carrier(call.made_dtype()))
    values = np.rint((scale * x.astype(f32) - shift).astype(f32)) + f32(call.made_zero_point())
    return np.asarray(np.clip(values, info.min, info.max).astype(info.dtype))
