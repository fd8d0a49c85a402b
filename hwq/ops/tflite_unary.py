"""TFLite's functions of one operand without parameters, and the norm: magnitudes, roots, logarithms, rounding, signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.graph import Array, carrier
from hwq.ops import functions
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops.base import register
from hwq.ops.tflite_activation import Elementwise, lookup, lookup16
from hwq.ops.tflite_base import Call
from hwq.ops.tflite_normalization import inverse_root

__all__ = ["Norm", "Unary"]

_FLOATS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "LOG": lambda x: functions.in_float64(np.log, x),
        "SIN": lambda x: functions.in_float64(np.sin, x),
        "COS": lambda x: functions.in_float64(np.cos, x),
        "SQRT": np.sqrt,
        "RSQRT": lambda x: np.ones((), x.dtype) / np.sqrt(x),
        "ABS": np.abs,
        "NEG": np.negative,
        "FLOOR": np.floor,
        "CEIL": np.ceil,
        "ROUND": np.rint,
        "SIGN": np.sign,
        "SQUARE": np.square,
        "LOGICAL_NOT": np.logical_not,
        "ZEROS_LIKE": np.zeros_like,
    }
)


def _stored(call: Call, values: fixed.Int64) -> Array:
    """Results less their zero point, as the result stores them."""
    info = np.iinfo(carrier(call.made_dtype()))
    return np.asarray(np.clip(values + call.made_zero_point(), info.min, info.max).astype(info.dtype))


def _magnitude(call: Call) -> Array:
    """ABS: R1 by ``f32(s_in / s_out)``, and no product where the scales are equal."""
    distance = np.abs(call.wide(0) - call.zero_point(0))
    if call.scale(0) != call.made_scale():
        distance = fixed.multiply(distance, *fixed.quantize_multiplier(float(call.scale(0) / call.made_scale())))
    return _stored(call, distance)


def _positive(call: Call) -> fixed.Int64:
    distance = call.wide(0) - call.zero_point(0)
    if np.any(distance < 0):
        raise call.fault("a root of a negative number", "LiteRT stops at the first one")
    return distance


# The inverse root is kept with 20 bits more.
_HEADROOM = 20


def _inverse_root(call: Call) -> Array:
    """RSQRT: Newton's iteration in Q3.28, then R1 by ``1 / (sqrt(s_in) s_out)``; the type's largest value for 0."""
    distance = _positive(call)
    mantissa, shift = inverse_root(distance)
    root = fixed.multiply(np.ones_like(distance), mantissa, shift + _HEADROOM)
    real = 1.0 / float(np.float32(np.sqrt(call.scale(0)) * call.made_scale()))
    multiplier, exponent = fixed.quantize_multiplier(real)
    made = _stored(call, fixed.multiply(root, multiplier, exponent - _HEADROOM))
    return np.where(distance == 0, np.iinfo(made.dtype).max, made).astype(made.dtype)


def _root(call: Call) -> Array:
    """SQRT: in float32, cut off."""
    root = np.sqrt((call.scale(0) * _positive(call).astype(np.float32)).astype(np.float32))
    return _stored(call, (root / call.made_scale()).astype(np.int64))


def _inverse_root16(call: Call) -> Array:
    """RSQRT of int16 by samples; the largest value that the result can store for 0."""
    _positive(call)
    top = np.float32(np.float32(32767 - call.made_zero_point()) * call.made_scale())

    def function(x: Array) -> Array:
        inverse = (np.float32(1) / np.sqrt(np.where(x > 0, x, 1))).astype(np.float32)
        return np.where(x > 0, inverse, top)

    return lookup16(call, function)


def _logarithm(call: Call) -> Array:
    """LOG by a table; where there is none, the lowest value that the result can store."""
    lowest = np.iinfo(carrier(call.made_dtype())).min
    bottom = np.float32(np.float32(lowest - call.made_zero_point()) * call.made_scale())

    def function(x: Array) -> Array:
        powers = np.log(np.where(x > 0, x, 1).astype(np.float64)).astype(np.float32)
        return np.where(x > 0, powers, bottom)

    return (lookup16 if call.dtype(0) == "int16" else lookup)(call, function)


_INTEGERS: Mapping[tuple[str, str], Callable[[Call], Array]] = MappingProxyType(
    {
        ("ABS", "int8"): _magnitude,
        ("ABS", "int16"): _magnitude,
        # The runtime negates the stored integer, whatever the scales say; the lowest one wraps onto itself.
        ("NEG", "int8"): lambda call: np.negative(call.array(0)),
        ("NEG", "int16"): lambda call: np.negative(call.array(0)),
        ("SQRT", "int8"): _root,
        ("SQRT", "int16"): _root,
        ("RSQRT", "int8"): _inverse_root,
        ("RSQRT", "int16"): _inverse_root16,
        ("LOG", "int8"): _logarithm,
        ("LOG", "int16"): _logarithm,
    }
)


@register
class Unary(Elementwise):
    """Functions of floats and plain integers; those that the runtime quantizes also of stored integers."""

    operators = tuple(_FLOATS)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        if call.quantized and call.reads[0] is not None and call.reads[0].quantization is not None:
            kernel = _INTEGERS.get((call.node.op, call.dtype(0)))
            if kernel is None:
                raise call.fault(
                    f"quantized {call.dtype(0)} operands are not supported in this operator",
                    None,
                    "dequantize them first",
                )
            return [kernel(call)]
        x = call.array(0)
        return [np.asarray(_FLOATS[call.node.op](x)).astype(x.dtype, copy=False)]


@register
class Norm(Elementwise):
    """L2_NORMALIZATION over the last axis: of 8 bits by the fixed-point inverse root, into steps of 1/128."""

    operators = ("L2_NORMALIZATION",)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        if call.quantized:
            distance = call.wide(0) - call.zero_point(0)
            total = fixed.wrap32((distance * distance).sum(axis=-1, keepdims=True))
            mantissa, shift = inverse_root(total)
            if call.dtype(0) == "uint8":
                return [_stored(call, fixed.multiply(128 * distance, mantissa, shift))]
            return [_stored(call, fixed.multiply(distance, mantissa, shift + 7))]
        x = call.array(0)
        total = np.zeros((*x.shape[:-1], 1), np.float32)
        for column in range(x.shape[-1]):
            total += x[..., column : column + 1] * x[..., column : column + 1]
        return [np.asarray(x / np.maximum(np.sqrt(total), np.float32(1e-6)))]
