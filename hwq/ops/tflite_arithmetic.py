"""TFLite's arithmetic of two operands, element by element, with broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops import accounting, dims
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops import tflite_gemmlowp as gemmlowp
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import INTEGERS, Call, TfliteOp, clamp, clamp_float, inferred, present, renamed, same_dtype
from hwq.work import Work

__all__ = ["Arithmetic", "Comparison", "Extremum", "Select", "power_of_two", "rescaled_product", "rescaled_sum"]


class Broadcasting(TfliteOp):
    """Two operands of one type and any shapes that broadcast."""

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        a, b = present(node, inputs, 2)
        assert a is not None and b is not None
        dtype = self.result_type(node, same_dtype(node, a, b))
        if not (a.known_shape and b.known_shape):
            return inferred(dtype, None)
        return inferred(dtype, dims.broadcast(node, [a.shape, b.shape]))

    def result_type(self, node: Node, dtype: str) -> str:
        """The result's type for operands of `dtype`."""
        return dtype

    def require_plain(self, call: Call) -> None:
        """Raise where operands have a scale that the kernel would have to take into account."""
        if call.quantized and call.reads[0] is not None and call.reads[0].quantization is not None:
            raise call.fault(
                f"quantized {call.dtype(0)} operands are not supported in this operator", None, "dequantize them first"
            )


@register
class Arithmetic(Broadcasting):
    """ADD, SUB, MUL and DIV on floats, plain integers (which wrap) and quantized integers."""

    operators = ("ADD", "SUB", "MUL", "DIV")

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        if call.quantized:
            return [_QUANTIZED.get(call.node.op, _added)(call)]
        a, b = call.array(0), call.array(1)
        return [clamp_float(call, np.asarray(_PLAIN[call.node.op](a, b)).astype(a.dtype, copy=False))]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: each result is one operation; a quantized one rescales both operands and the result."""
        work = super().work(node, graph)
        quantized = graph.tensors[node.outputs[0]].dtype in INTEGERS
        epilogue = accounting.REQUANTIZE * work.output_elements if quantized else 0
        if quantized and node.op != "MUL":
            epilogue += 2 * accounting.RESIDUAL * work.output_elements
        if not quantized and node.attributes.get("activation", "NONE") != "NONE":
            epilogue += work.output_elements
        return renamed(work, node, epilogue_operations=epilogue)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not np.all(b):
        raise ValueError("integer division by zero")
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return np.where((a < 0) != (b < 0), -quotient, quotient)


_PLAIN: Mapping[str, Callable[[Array, Array], Any]] = MappingProxyType({
    "ADD": np.add, "SUB": np.subtract, "MUL": np.multiply, "DIV": _divide})  # fmt: skip


def power_of_two(scale: np.float32) -> int | None:
    """log2 of a scale that is a power of two to within 1e-3 of its exponent, else None."""
    logarithm = (
        np.float32(np.float32(math.log(float(scale))) * np.float32(1.0 / math.log(2.0)))
        if scale > 0
        else np.float32(0.5)
    )
    rounded = fixed.away(logarithm)
    return int(rounded) if abs(np.float32(logarithm - rounded)) < np.float32(1e-3) else None


def _added(call: Call) -> Array:
    """ADD and SUB: both operands are brought to the double of the larger scale with 20 (int16: 15) bits of headroom."""
    wide_type = call.dtype(0) == "int16"
    if wide_type:
        exact = [power_of_two(scale) for scale in (call.scale(0), call.scale(1), call.made_scale())]
        if None not in exact and call.attribute("power_of_two_scale", False):
            return _added_by_shifts(call, [exponent for exponent in exact if exponent is not None])
    return clamp(call, rescaled_sum(call, wide_type) + call.made_zero_point())


def rescaled_sum(call: Call, wide_type: bool = False) -> fixed.Int64:
    """The sum or difference in the result's scale, without its zero point.

    With |x - z| < 2**8 (2**16) the sum stays below 2**31.
    """
    left = 15 if wide_type else 20
    scales = [call.scale(0), call.scale(1)]
    twice = 2.0 * float(max(scales))
    mantissas, shifts = fixed.quantize_multipliers(
        [
            float(scales[0]) / twice,
            float(scales[1]) / twice,
            twice / float(np.float32(np.float32(1 << left) * call.made_scale())),
        ]
    )
    if call.node.op == "SUB":
        mantissas[1] = -mantissas[1]
    terms = [
        fixed.multiply((call.wide(index) - call.zero_point(index)) << left, mantissas[index], shifts[index])
        for index in (0, 1)
    ]
    return fixed.multiply(fixed.wrap32(terms[0] + terms[1]), mantissas[2], shifts[2])


def _added_by_shifts(call: Call, exponents: Sequence[int]) -> Array:
    """int16 with power-of-two scales: the finer operand is divided by a power of two, the sum saturates."""
    drops = [exponents[2] - exponents[0], exponents[2] - exponents[1]]
    if min(drops) < 0 or 0 not in drops:
        raise call.fault("power-of-two scales must have one operand in the result's scale and none coarser")
    terms = [fixed.divide_by_power(call.wide(index), drops[index]) for index in (0, 1)]
    total = terms[0] - terms[1] if call.node.op == "SUB" else terms[0] + terms[1]
    return clamp(call, fixed.saturate(total, 16))


def _multiplied(call: Call) -> Array:
    return clamp(call, rescaled_product(call) + call.made_zero_point())


def rescaled_product(call: Call) -> fixed.Int64:
    """MUL, without the result's zero point: R1 on the product of the operands less theirs; the scales meet in float32."""
    real = np.float32(np.float32(call.scale(0) * call.scale(1)) / call.made_scale())
    mantissa, shift = fixed.quantize_multiplier(float(real))
    product = (call.wide(0) - call.zero_point(0)) * (call.wide(1) - call.zero_point(1))
    return fixed.multiply(fixed.wrap32(product), mantissa, shift)


def _divided(call: Call) -> Array:
    """DIV: the divisor's reciprocal in Q0.31, both operands normalized to 31 bits, R1 by ``s_a / (s_b s_out)``."""
    a, b = (call.wide(index) - call.zero_point(index) for index in (0, 1))
    if np.any(b == 0):
        raise call.fault("a division by zero", "LiteRT stops at the first one")
    a, b = np.broadcast_arrays(np.where(b < 0, -a, a), np.abs(b))
    zeros = fixed.leading_zeros(b)
    reciprocal = gemmlowp.one_over_one_plus((b << zeros) - 2**31)
    room = np.where(a >= 0, fixed.leading_zeros(np.maximum(a, 1)), fixed.leading_zeros(np.maximum(~a, 1))) - 1
    room = np.where((a == 0) | (a == -1), 31, room)
    quotient = fixed.double_high_multiply(a << room, reciprocal)
    real = float(np.float32(call.scale(0) / np.float32(call.scale(1) * call.made_scale())))
    mantissa, exponent = fixed.quantize_multiplier(real)
    product = fixed.double_high_multiply(quotient, mantissa)
    right = (31 - zeros) + room - exponent
    if np.any(right < 0):
        raise call.fault("the quotient's scale is too far above the result's", "the kernel only shifts to the right")
    # A quotient so small needs a shift of more than 31 bits, which x86 takes modulo 32, and rounds by a mask of ones.
    values = np.where(
        right > 31, (product >> (right & 31)) + (product >= 0), fixed.divide_by_power(product, np.minimum(right, 31))
    )
    return clamp(call, values + call.made_zero_point())


_QUANTIZED: Mapping[str, Callable[[Call], Array]] = MappingProxyType({"MUL": _multiplied, "DIV": _divided})


@register
class Extremum(Broadcasting):
    """MAXIMUM and MINIMUM; stored integers of one scale compare as they are."""

    operators = ("MAXIMUM", "MINIMUM")

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        return [np.asarray((np.maximum if call.node.op == "MAXIMUM" else np.minimum)(call.array(0), call.array(1)))]


_COMPARISONS: Mapping[str, Callable[[Array, Array], Any]] = MappingProxyType({
    "EQUAL": np.equal, "NOT_EQUAL": np.not_equal, "LESS": np.less, "LESS_EQUAL": np.less_equal, "GREATER": np.greater,
    "GREATER_EQUAL": np.greater_equal, "LOGICAL_AND": np.logical_and, "LOGICAL_OR": np.logical_or,
})  # fmt: skip


@register
class Comparison(Broadcasting):
    """Two operands to bool."""

    operators = tuple(_COMPARISONS)

    def result_type(self, node: Node, dtype: str) -> str:
        """See `Broadcasting.result_type`."""
        return "bool"

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        a, b = call.array(0), call.array(1)
        if call.dtype(0) in {"int8", "uint8"} and call.reads[0] is not None and call.reads[0].quantization is not None:
            a, b = (_comparable(call, index) for index in (0, 1))
        return [np.asarray(_COMPARISONS[call.node.op](a, b)).astype(np.bool_)]


def _comparable(call: Call, index: int) -> fixed.Int64:
    """An operand's real number with 8 bits of headroom, R1 by its scale alone; int16 compares as stored."""
    if call.scale(index) >= 1:
        raise call.fault(
            f"{call.dtype(index)} operands of scale {call.scale(index)} cannot be compared",
            "LiteRT stops at scales from 1 on",
        )
    mantissa, shift = fixed.quantize_multiplier(float(call.scale(index)))
    return fixed.multiply((call.wide(index) - call.zero_point(index)) << 8, mantissa, shift)


def _floored(a: Array, b: Array, rest: bool) -> Array:
    """FLOOR_DIV, in float64, 8 and 16 bits saturated, and FLOOR_MOD."""
    if a.dtype.kind == "f":
        if not rest:
            return np.asarray(np.floor(a.astype(np.float64) / b.astype(np.float64)))
        found = np.fmod(a, b)
        return np.where((found != 0) & ((b < 0) != (found < 0)), found + b, found)
    if not np.all(b):
        raise ValueError("integer division by zero")
    if rest:
        return np.asarray(np.mod(a, b))
    quotient = np.floor_divide(a.astype(np.int64), b.astype(np.int64))
    if a.dtype.itemsize > 2:
        return quotient  # the one that does not fit wraps
    info = np.iinfo(a.dtype)
    return np.asarray(np.clip(quotient, info.min, info.max))


_FLOATS: Mapping[str, Callable[[Array, Array], Any]] = MappingProxyType({
    "POW": lambda a, b: np.power(a.astype(np.float64), b.astype(np.float64)) if a.dtype.kind == "f" else np.power(a, b),
    "SQUARED_DIFFERENCE": lambda a, b: np.square(a - b), "FLOOR_DIV": lambda a, b: _floored(a, b, False),
    "FLOOR_MOD": lambda a, b: _floored(a, b, True),
})  # fmt: skip


def _squared_difference(call: Call) -> Array:
    """SQUARED_DIFFERENCE of int8: both operands in the double of the larger scale with 7 bits of headroom."""
    twice = 2.0 * float(max(call.scale(0), call.scale(1)))
    scaled = [
        fixed.multiply(
            (call.wide(index) - call.zero_point(index)) << 7,
            *fixed.quantize_multiplier(float(call.scale(index)) / twice),
        )
        for index in (0, 1)
    ]
    square = fixed.wrap32(np.square(scaled[0] - scaled[1]))
    multiplier = fixed.quantize_multiplier(twice * twice / float(np.float32(np.float32(1 << 14) * call.made_scale())))
    return clamp(call, fixed.multiply(square, *multiplier) + call.made_zero_point())


@register
class Plain(Broadcasting):
    """Operators of two floats or two plain integers; SQUARED_DIFFERENCE also of int8."""

    operators = tuple(_FLOATS)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        if call.node.op == "SQUARED_DIFFERENCE" and call.dtype(0) == "int8":
            return [_squared_difference(call)]
        if not call.node.op.startswith("FLOOR_"):  # these take stored integers for numbers
            self.require_plain(call)
        a, b = call.array(0), call.array(1)
        return [np.asarray(_FLOATS[call.node.op](a, b)).astype(a.dtype)]


@register
class AddMany(TfliteOp):
    """ADD_N of floats or plain integers, one operand after the other."""

    operators = ("ADD_N",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = [tensor for tensor in present(node, inputs, 1, max(len(inputs), 1)) if tensor is not None]
        dtype = same_dtype(node, *given)
        if len(given) != len(inputs) or any(tensor.known_shape and tensor.shape != given[0].shape for tensor in given):
            raise dims.fault(node, "only operands of one shape can be added")
        return inferred(dtype, given[0].shape if given[0].known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        if call.quantized:
            raise call.fault(f"{call.dtype(0)} is not supported in this operator", "LiteRT has no such kernel")
        total = call.array(0)
        for index in range(1, len(call.arrays)):
            total = total + call.array(index)
        return [total]


@register
class Select(TfliteOp):
    """SELECT and SELECT_V2: ``condition ? a : b``; SELECT's condition may be a vector over the first axis."""

    operators = ("SELECT", "SELECT_V2")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        condition, a, b = present(node, inputs, 3)
        assert condition is not None and a is not None and b is not None
        dtype = same_dtype(node, a, b)
        if condition.dtype != "bool":
            raise dims.fault(node, f"the condition must be bool, not {condition.dtype}")
        if not (condition.known_shape and a.known_shape and b.known_shape):
            return inferred(dtype, None)
        if node.op == "SELECT" and len(condition.shape) == 1 and len(a.shape) > 1:
            return inferred(dtype, a.shape)
        return inferred(dtype, dims.broadcast(node, [condition.shape, a.shape, b.shape]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        condition, a, b = (call.array(index) for index in range(3))
        if call.node.op == "SELECT" and condition.ndim == 1 and a.ndim > 1:
            condition = condition.reshape(-1, *([1] * (a.ndim - 1)))
        return [np.where(condition, a, b).astype(a.dtype, copy=False)]
