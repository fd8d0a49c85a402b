"""TFLite's functions of one operand: the RELU family, table functions, fixed-point HARD_SWISH, float functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array, Node, Tensor, carrier
from hwq.ops import dims, functions
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_arithmetic import power_of_two
from hwq.ops.tflite_base import DEFAULT_INTERPRETER, Call, TfliteOp, inferred, present
from hwq.ops.tflite_interpolation import interpolate, interpolation_table

__all__ = [
    "LeakyRelu",
    "Prelu",
    "Rectifier",
    "SigmoidTanh",
    "Table",
    "integer_sigmoid",
    "integer_tanh",
    "lookup",
    "lookup16",
]

Float32 = NDArray[np.float32]


class Elementwise(TfliteOp):
    """One operand in, one of the same type and shape out."""

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        return inferred(x.dtype, x.shape if x.known_shape else None)


_BOUNDS = {"RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}


@register
class Rectifier(Elementwise):
    """RELU and its bounded forms; on integers R1 with ``f64(f32(s_in / s_out))``, then the bounds in stored values."""

    operators = tuple(_BOUNDS)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        low, high = _BOUNDS[call.node.op]
        x = call.array(0)
        if not call.quantized:
            bounded = np.maximum(x, np.asarray(low, x.dtype))
            return [bounded if high is None else np.minimum(bounded, np.asarray(high, x.dtype))]
        info = np.iinfo(x.dtype)
        zero, scale = call.made_zero_point(), call.made_scale()
        least = max(int(info.min), zero + int(fixed.away(np.float32(np.float32(low) / scale))))
        most = (
            int(info.max)
            if high is None
            else min(int(info.max), zero + int(fixed.away(np.float32(np.float32(high) / scale))))
        )
        mantissa, shift = fixed.quantize_multiplier(float(np.float32(call.scale(0) / scale)))
        values = zero + fixed.multiply(call.wide(0) - call.zero_point(0), mantissa, shift)
        return [np.minimum(np.maximum(values, least), most).astype(x.dtype)]


@register
class LeakyRelu(Elementwise):
    """LEAKY_RELU: on integers R1 with one multiplier for each side of the zero point, both formed in float32."""

    operators = ("LEAKY_RELU",)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, alpha = call.array(0), np.float32(call.attribute("alpha", 0.0))
        if not call.quantized:
            return [np.where(x >= 0, x, x * alpha.astype(x.dtype)).astype(x.dtype)]
        identity = np.float32(call.scale(0) / call.made_scale())
        slope = np.float32(np.float32(call.scale(0) * alpha) / call.made_scale())
        return [_two_sided(call, call.wide(0) - call.zero_point(0), None, float(identity), float(slope))]


def _two_sided(call: Call, x: fixed.Int64, factor: fixed.Int64 | None, above: float, below: float) -> Array:
    """R1 by `above` where x >= 0, else of ``x * factor`` by `below`."""
    info = np.iinfo(carrier(call.dtype(0)))
    high, low = (
        fixed.multiply(values, *fixed.quantize_multiplier(real))
        for values, real in ((x, above), (x if factor is None else x * factor, below))
    )
    values = np.where(x >= 0, high, low) + call.made_zero_point()
    return np.asarray(np.clip(values, info.min, info.max).astype(info.dtype))


@register
class Prelu(TfliteOp):
    """PRELU: a slope for each channel, broadcast; on integers as LEAKY_RELU."""

    operators = ("PRELU",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, slope = present(node, inputs, 2)
        assert x is not None and slope is not None
        if not (x.known_shape and slope.known_shape):
            return inferred(x.dtype, None)
        shape = dims.broadcast(node, [x.shape, slope.shape])
        if shape != x.shape:
            raise dims.fault(node, f"slopes {list(slope.shape)} do not broadcast to the input {list(x.shape)}")
        return inferred(x.dtype, shape)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, slope = call.array(0), call.array(1)
        if not call.quantized:
            return [np.where(x >= 0, x, x * slope).astype(x.dtype)]
        if call.dtype(0) == "int16":
            raise call.fault("int16 is not supported in this operator", "LiteRT leaves the result unset")
        above = np.float32(call.scale(0) / call.made_scale())
        below = np.float32(np.float32(call.scale(0) * call.scale(1)) / call.made_scale())
        return [
            _two_sided(
                call, call.wide(0) - call.zero_point(0), call.wide(1) - call.zero_point(1), float(above), float(below)
            )
        ]


def lookup(call: Call, function: Callable[[Float32], Array], *, even: bool = False) -> Array:
    """A function of 8-bit integers by its 256 values: dequantize, compute in float32, rescale, round.

    Halves go away from zero before the zero point is added; with `even` (XNNPACK) to even, after it is.
    """
    kind = carrier(call.dtype(0))
    info = np.iinfo(kind)
    every = np.arange(info.min, info.max + 1)
    x = (call.scale(0) * (every - call.zero_point(0)).astype(np.float32)).astype(np.float32)
    inverse = np.float32(np.float32(1) / call.made_scale())
    y = np.asarray(function(x), np.float32)
    rescaled, zero = (y * inverse).astype(np.float32), np.float32(call.made_zero_point())
    moved = np.rint((rescaled + zero).astype(np.float32)) if even else (fixed.away(rescaled) + zero).astype(np.float32)
    table = np.clip(moved, info.min, info.max)
    return np.asarray(table.astype(kind)[call.array(0).astype(np.int64) - int(info.min)])


def lookup16(call: Call, function: Callable[[Float32], Array]) -> Array:
    """A function of int16 by 513 samples, every step in float32."""
    table = interpolation_table(
        lambda x: np.asarray(function(x), np.float32),
        float(call.scale(0)), call.zero_point(0), float(call.made_scale()), call.made_zero_point(), np.float32,
    )  # fmt: skip
    return interpolate(table, call.wide(0)).astype(np.int16)


def _sigmoid32(x: Float32) -> Float32:
    """``1 / (1 + exp(-x))`` with each step rounded to float32."""
    one = np.float32(1)
    with np.errstate(over="ignore"):
        power = np.exp(-x.astype(np.float64)).astype(np.float32)
    return (one / (one + power).astype(np.float32)).astype(np.float32)


def _sigmoid_float(x: Array) -> Array:
    """LOGISTIC of floats: exp below -9, 1 above 16.619047, else three steps of float32."""
    if x.dtype != np.float32:
        return functions.in_float64(functions.sigmoid, x)
    powers = functions.in_float64(np.exp, x)
    return np.where(x > np.float32(16.619047164916992188), np.float32(1), np.where(x < -9, powers, _sigmoid32(x)))


def _in32(function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Callable[[Float32], Float32]:
    return lambda x: function(x.astype(np.float64)).astype(np.float32)


# Entries of LiteRT's table of 256 that lie one above rint(65536 * sigmoid(i / 24)); measured, no closed form is known.
_ONE_ABOVE = (
    4, 8, 12, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 28, 29, 30, 31, 33, 34, 35, 37, 39, 40, 41, 43, 44, 45, 46, 49,
    50, 54, 62, 63, 64, 66, 82, 86, 93, 100, 103, 112, 116, 135, 255,
)  # fmt: skip


def sigmoid_table() -> fixed.Int64:
    """The 256 values of ``65536 * sigmoid(i / 24)`` that int16 LOGISTIC and TANH interpolate."""
    table = np.rint(65536 * functions.sigmoid(np.arange(256) / 24.0)).astype(np.int64)
    table[list(_ONE_ABOVE)] += 1
    return table


def _interpolated(v: fixed.Int64, bits: int) -> tuple[fixed.Int64, NDArray[np.bool_]]:
    """(table value at \\|v\\| with `bits` fraction bits, whether it lies behind the table's last entry)."""
    table = sigmoid_table()
    magnitude = np.abs(v)
    high = np.minimum(magnitude >> bits, 255)
    first, second = table[high], table[np.minimum(high + 1, 255)]
    return (first << bits) + (magnitude & ((1 << bits) - 1)) * (second - first), high == 255


def integer_sigmoid(x: fixed.Int64, multiplier: int, shift: int) -> fixed.Int64:
    """int16 LOGISTIC (T1): Q3.12 after the multiplier in, Q0.15 out."""
    v = fixed.wrap32(x * multiplier + ((1 << (shift - 1)) if shift else 0)) >> shift
    result, beyond = _interpolated(v, 9)
    result = np.where(beyond, 0x7FFF << 10, result)
    return np.where(v >= 0, result + (1 << 9), (1 << 25) - result + (1 << 9) - 1) >> 10


def integer_tanh(x: fixed.Int64, multiplier: int, shift: int) -> fixed.Int64:
    """int16 TANH (T1), through ``2 * sigmoid(2 x) - 1`` on the same table."""
    v = fixed.wrap32(x * multiplier + ((1 << (shift - 1)) if shift else 0)) >> shift
    result, beyond = _interpolated(v, 8)
    result = np.where(beyond, 0xFFFF << 8, result)
    return np.where(v >= 0, result - (1 << 23) + (1 << 7), -result + (1 << 23) + (1 << 7) - 1) >> 8


def _table_input(call: Call, allowed: tuple[int, ...]) -> tuple[int, int]:
    """(multiplier, right shift) that bring an int16 input to the table's scale of 1 / (3 * 4096)."""
    exponent = power_of_two(call.scale(0))
    if exponent is not None and 12 + exponent in allowed:
        return 3 << (12 + exponent), 0
    real = float(call.scale(0)) * 4096.0 * 3.0
    shift = 0
    while real <= 32767.0 / 2.0 and shift <= 30:
        shift += 1
        real *= 2.0
    return int(real), shift


@register
class SigmoidTanh(Elementwise):
    """LOGISTIC and TANH: 8-bit by table of 256, int16 by interpolation, floats in float64 and rounded once."""

    operators = ("LOGISTIC", "TANH")

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, tanh = call.array(0), call.node.op == "TANH"
        if call.dtype(0) == "int16" and call.quantized:
            function = integer_tanh if tanh else integer_sigmoid
            return [
                np.clip(function(call.wide(0), *_table_input(call, (0, 1) if tanh else (0,))), -32768, 32767).astype(
                    np.int16
                )
            ]
        if call.quantized:
            if call.dialect == DEFAULT_INTERPRETER:
                return [lookup(call, _in32(np.tanh if tanh else functions.sigmoid), even=True)]
            return [lookup(call, _in32(np.tanh) if tanh else _sigmoid32)]
        return [functions.in_float64(np.tanh, x) if tanh else _sigmoid_float(x)]


@register
class HardSwish(Elementwise):
    """HARD_SWISH: 8-bit in 16-bit fixed point (T2), floats in the order ``x * min(max(x + 3, 0), 6) / 6``."""

    operators = ("HARD_SWISH",)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        if call.quantized:
            return [_hard_swish(call)]
        three, six = np.asarray(3, x.dtype), np.asarray(6, x.dtype)
        return [(x * np.minimum(np.maximum(x + three, np.asarray(0, x.dtype)), six) / six).astype(x.dtype)]


def _hard_swish(call: Call) -> Array:
    fine = np.float32(np.float32(1.0 / 128.0) * call.scale(0))
    out_mantissa, out_shift = fixed.quantize_multiplier(float(np.float32(fine / call.made_scale())))
    ramp_mantissa, ramp_shift = fixed.quantize_multiplier(float(np.float32(fine / np.float32(3.0 / 32768.0))))
    if out_shift > 0:
        raise call.fault("the input's scale is more than 128 times the output's", "the kernel only shifts to the right")
    v = (call.wide(0) - call.zero_point(0)) * 128
    scaled = fixed.double_high_multiply(v, fixed.down_scale(out_mantissa), 16)
    ramp = v
    if ramp_shift > 0:
        ramp = fixed.saturating_shift(ramp, ramp_shift - 1, 16)
    ramp = fixed.double_high_multiply(ramp, fixed.down_scale(ramp_mantissa), 16)
    if ramp_shift > 0:
        ramp = fixed.saturating_shift(ramp, 1, 16)
    if ramp_shift < 0:
        ramp = fixed.divide_by_power(ramp, -ramp_shift)
    ramp = (ramp + (1 << 15)) >> 1
    product = ramp * scaled
    product = np.where(product >= 0, product >> 15, -((-product) >> 15))
    info = np.iinfo(carrier(call.dtype(0)))
    values = fixed.divide_by_power(product, -out_shift) + call.made_zero_point()
    return np.asarray(np.clip(values, info.min, info.max).astype(info.dtype))


def _elu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x < 0, np.expm1(np.minimum(x, 0)), x)


_TABLES: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = MappingProxyType(
    {"ELU": _elu, "EXP": np.exp}
)


@register
class Table(Elementwise):
    """ELU, EXP and GELU: 8-bit by table of 256, int16 (EXP) by samples, floats in float64 and rounded once."""

    operators = ("ELU", "EXP", "GELU")

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        function: Callable[..., Any] = _TABLES.get(call.node.op) or (
            lambda x: functions.gelu(x, "tanh" if call.attribute("approximate", False) else "none")
        )
        if call.quantized:
            if call.node.op == "EXP" and call.dtype(0) == "int16":
                return [lookup16(call, _in32(function))]
            if call.dtype(0) == "int16" or (call.node.op in {"ELU", "EXP"} and call.dtype(0) != "int8"):
                raise call.fault(f"{call.dtype(0)} is not supported in this operator")
            if call.node.op == "ELU" and call.dialect == DEFAULT_INTERPRETER:
                return [lookup(call, _in32(function), even=True)]
            return [lookup(call, _in32(function))]
        return [functions.in_float64(function, call.array(0))]
