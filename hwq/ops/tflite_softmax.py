"""SOFTMAX and LOG_SOFTMAX of TFLite: 8-bit in gemmlowp fixed point, int16 by two interpolated tables, floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array, Node, Tensor, carrier
from hwq.ops import dims, functions
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops import tflite_gemmlowp as gemmlowp
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import Call, TfliteOp, inferred, present

__all__ = ["LogSoftmax", "Softmax", "interpolation_table", "leading_zeros"]

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


def leading_zeros(x: Int64) -> Int64:
    """Leading zero bits of positive 32-bit values."""
    return 31 - np.floor(np.log2(x.astype(np.float64))).astype(np.int64)


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
    headroom = leading_zeros(total)
    reciprocal = gemmlowp.one_over_one_plus((total << headroom) - 2**31)
    kind = np.iinfo(carrier(call.made_dtype()))
    bits = 16 if call.made_dtype() == "int16" else 8
    exponent = (12 - headroom) + 31 - bits
    values = fixed.divide_by_power(fixed.double_high_multiply(powers, reciprocal), exponent) + int(kind.min)
    return np.where(kept, np.clip(values, kind.min, kind.max), kind.min).astype(kind.dtype)


def interpolation_table(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    scale: float,
    zero_point: int,
    made_scale: float,
    made_zero_point: int,
) -> Int64:
    """513 int16 samples of a function, each shifted by half of the error in the middle of its interval (float64)."""
    low, high = scale * (-32768 - zero_point), scale * (32767 - zero_point)
    step = float(high - low) / 512
    inverse = 65536 / (made_scale * (32767 - made_zero_point) - made_scale * (-32768 - made_zero_point))
    index: NDArray[np.float64] = np.arange(512).astype(np.float64)
    value, middle, following = (
        function(low + index * step),
        function(low + index * step + step / 2),
        function(low + (index + 1) * step),
    )
    sample = fixed.away(value * inverse)
    interpolated = fixed.away((following * inverse + fixed.away(value * inverse)) / 2)
    bias = fixed.away((interpolated - fixed.away(middle * inverse)) / 2)
    last = fixed.away(function(np.array([high])) * inverse)
    return np.asarray(np.clip(np.concatenate([sample - bias, last]), -32768, 32767).astype(np.int64))


def _interpolate(table: Int64, x: Int64) -> Int64:
    index = 256 + (x >> 7)
    base, slope = table[index], table[index + 1] - table[index]
    return np.asarray(base + ((slope * (x & 0x7F) + 64) >> 7))


def _softmax16(call: Call, beta: np.float32) -> Array:
    """int16: exp on [-10, 0] and 1 / (1 + x) on [0, 1] by interpolation, Q0.15 throughout."""
    powers_of = interpolation_table(np.exp, 10.0 / 65535, 32767, 2.0 / 65535, 0)
    reciprocal_of = interpolation_table(lambda x: 1.0 / (1.0 + x), 1.0 / 65535, -32768, 2.0 / 65535, 0)
    real = float(np.float32(call.scale(0) * beta)) / (10.0 / 65535.0)
    x = call.wide(0)
    away = x - x.max(axis=-1, keepdims=True)
    scaled = fixed.multiply(away, *fixed.quantize_multiplier(real))
    powers = _interpolate(powers_of, fixed.saturate(scaled + 32767, 16))
    total = powers.sum(axis=-1, keepdims=True)
    headroom = leading_zeros(total)
    shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
    reciprocal = _interpolate(reciprocal_of, fixed.saturate(shifted - (1 << 15) - (1 << 16), 16))
    right = 31 - headroom
    values = (powers * reciprocal + (np.int64(1) << (right - 1))) >> right
    return np.asarray(np.clip(values, 0, 32767).astype(np.int16))


@register
class LogSoftmax(TfliteOp):
    """LOG_SOFTMAX over the last axis, on floats."""

    operators = ("LOG_SOFTMAX",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        return inferred(x.dtype, x.shape if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        if call.quantized:
            raise call.fault(
                f"quantized {call.dtype(0)} operands are not supported in this operator", None, "dequantize them first"
            )
        return [functions.in_float64(functions.log_softmax, call.array(0), -1)]
