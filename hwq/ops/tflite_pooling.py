"""TFLite's pools and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor, carrier
from hwq.ops import accounting, dims
from hwq.ops import tflite_accumulators as sums
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import (
    DEFAULT_INTERPRETER,
    Call,
    TfliteOp,
    clamp,
    clamp_float,
    contiguous,
    inferred,
    present,
    renamed,
)
from hwq.work import Work

__all__ = ["ArgExtremum", "Pool", "Reduction"]


@register
class Pool(TfliteOp):
    """AVERAGE_POOL_2D and MAX_POOL_2D; padding takes no part, input and output share their scale."""

    operators = ("AVERAGE_POOL_2D", "MAX_POOL_2D")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        if not x.known_shape:
            return inferred(x.dtype, None)
        if len(x.shape) != 4:
            raise dims.fault(node, f"an input {list(x.shape)} must have four dimensions")
        kernel = dims.ints_attribute(node, "kernel_shape", (), 2, 1)
        windows = sums.windows_of(node, x.shape[1:3], (kernel[0], kernel[1]))
        return inferred(x.dtype, (x.shape[0], *windows.counts, x.shape[3]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        windows = sums.windows_of(call.node, x.shape[1:3], call.attribute("kernel_shape"))
        maximum, quantized = call.node.op == "MAX_POOL_2D", call.quantized
        wide = x.astype(np.int64) if quantized else x
        border = [(0, 0), *zip(windows.begin, windows.end, strict=True), (0, 0)]
        lowest: Any = (np.iinfo(np.int64).min if quantized else -np.inf) if maximum else 0
        padded = np.pad(wide, border, constant_values=lowest)
        inside = np.pad(np.ones((1, *x.shape[1:3], 1), np.int64), border)
        total = np.full((x.shape[0], *windows.sizes, x.shape[3]), lowest, wide.dtype)
        count = np.zeros((1, *windows.sizes, 1), np.int64)
        for row in range(windows.kernel[0]):
            for column in range(windows.kernel[1]):
                taps = tuple(
                    slice(tap, tap + (number - 1) * stride + 1, stride)
                    for tap, number, stride in zip((row, column), windows.sizes, windows.strides, strict=True)
                )
                part = padded[:, taps[0], taps[1]]
                total = np.maximum(total, part) if maximum else total + part
                count += inside[:, taps[0], taps[1]]
        if not quantized:
            return [clamp_float(call, (total if maximum else total / count.astype(x.dtype)).astype(x.dtype))]
        if not maximum:
            # The plain mean of stored values, halves away from zero.
            half = count // 2
            total = np.where(total > 0, (total + half) // count, -((half - total) // count))
        return [clamp(call, total)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: a comparison or an addition for each tap."""
        made = graph.tensors[node.outputs[0]]
        kernel, strides = node.attributes["kernel_shape"], node.attributes["strides"]
        work = accounting.vector(node, graph, operations=made.elements * int(kernel[0]) * int(kernel[1]))
        return renamed(
            work,
            node,
            kernel_h=int(kernel[0]),
            kernel_w=int(kernel[1]),
            stride_h=int(strides[0]),
            stride_w=int(strides[1]),
        )


@register
class Reduction(TfliteOp):
    """MEAN, SUM, the extrema, the product, and whether any or all are true, over the axes that operand 1 names."""

    operators = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, axes = present(node, inputs, 2)
        assert x is not None
        found = (
            dims.integers(node, axes, "the axes")
            if axes is None or axes.data is None or axes.data.ndim
            else (int(axes.data),)
        )
        if not x.known_shape or found is None:
            return inferred(x.dtype, None)
        reduced = _axes(node, found, len(x.shape))
        if node.attributes.get("keep_dims", False):
            return inferred(x.dtype, [1 if axis in reduced else dim for axis, dim in enumerate(x.shape)])
        return inferred(x.dtype, [dim for axis, dim in enumerate(x.shape) if axis not in reduced])

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        axes = tuple(sorted(_axes(call.node, [int(axis) for axis in call.array(1).reshape(-1)], x.ndim)))
        keep = bool(call.attribute("keep_dims", False))
        op = call.node.op
        if op in {"REDUCE_MAX", "REDUCE_MIN"}:
            info: Any = np.iinfo(x.dtype) if x.dtype.kind in "iu" else np.finfo(x.dtype)
            function = np.max if op == "REDUCE_MAX" else np.min
            return [
                np.asarray(
                    function(x, axis=axes, keepdims=keep, initial=info.min if op == "REDUCE_MAX" else info.max)
                ).astype(x.dtype)
            ]
        if op in {"REDUCE_ANY", "REDUCE_ALL"}:
            if x.dtype != np.bool_:
                raise call.fault(f"{call.dtype(0)} is not supported in this operator", "it reduces truth values")
            return [np.asarray((np.any if op == "REDUCE_ANY" else np.all)(x, axis=axes, keepdims=keep))]
        if op == "REDUCE_PROD":
            if call.quantized:
                return [_product(call, axes, keep)]
            return [np.asarray(x.prod(axis=axes, keepdims=keep, dtype=x.dtype))]
        count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
        # BUILTIN_REF of 2.3.0 reads int8 as uint8 here, and writes what it makes of that.
        misread = x.dtype == np.int8 and call.dialect == "litert-ref"
        if call.quantized and op == "SUM" and (x.dtype == np.uint8 or misread):
            total = x.view(np.uint8).astype(np.int64).sum(axis=axes, keepdims=keep)
            return [_sum_of_bytes(call, total, count).view(x.dtype)]
        if call.quantized and op == "SUM" and x.dtype == np.int16 and call.dialect == "litert-ref":
            raise call.fault("int16 is not supported in this operator", "BUILTIN_REF leaves the result unset")
        if call.quantized:
            return [_rescaled(call, x.astype(np.int64).sum(axis=axes, keepdims=keep), count)]
        if x.dtype.kind == "f":
            total = _in_order(x, axes, keep)
            return [total if op == "SUM" else (total / np.asarray(count, x.dtype)).astype(x.dtype)]
        total = x.astype(np.int64).sum(axis=axes, keepdims=keep)
        if op == "MEAN" and count:
            total = np.where(total >= 0, total // count, -(-total // count))
        return [np.asarray(total).astype(x.dtype)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: an addition or a comparison for each element."""
        return renamed(accounting.vector(node, graph, operations=graph.tensors[node.inputs[0]].elements), node)


def _axes(node: Node, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(dims.axis_of(node, int(axis), rank) for axis in axes)) if rank else ()


def _in_order(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    """The sum over `axes`, one element after the other in memory order, each step rounded."""
    moved = np.moveaxis(x, axes, range(len(axes))).reshape(
        -1, *(dim for axis, dim in enumerate(x.shape) if axis not in axes)
    )
    total = np.zeros(moved.shape[1:], x.dtype)
    for part in moved:
        total += part
    return total.reshape([1 if axis in axes else dim for axis, dim in enumerate(x.shape)]) if keep else total


def _product(call: Call, axes: tuple[int, ...], keep: bool) -> Array:
    """REDUCE_PROD of int8 and int16: R5 after each factor, by ``s_in / s_out ** (1 / n)``, so that no product overflows."""
    if call.dtype(0) == "uint8":
        raise call.fault("uint8 is not supported in this operator", "LiteRT has no such kernel")
    wide = call.wide(0) - call.zero_point(0)
    shape = [1 if axis in axes else dim for axis, dim in enumerate(wide.shape) if keep or axis not in axes]
    factors = np.moveaxis(wide, axes, range(len(axes))).reshape(math.prod(wide.shape[axis] for axis in axes), -1)
    if not len(factors):
        raise call.fault("a product of no factors", "LiteRT has no such kernel")
    if len(factors) == 1 and call.dialect == DEFAULT_INTERPRETER:
        return call.array(0).reshape(shape)  # copied, whatever the scales
    real = float(call.scale(0)) / float(call.made_scale()) ** (1.0 / len(factors))
    mantissa, shift = fixed.quantize_multiplier(real)
    total = factors[0]
    for factor in factors[1:]:
        total = fixed.multiply_wide(total * factor, mantissa, shift)
    info = np.iinfo(carrier(call.made_dtype()))
    values = fixed.multiply_wide(total, mantissa, shift) + call.made_zero_point()
    return np.clip(values, info.min, info.max).astype(info.dtype).reshape(shape)


def _sum_of_bytes(call: Call, total: fixed.Int64, count: int) -> Array:
    """SUM of uint8: R1 by ``s_in / s_out``."""
    multiplier = fixed.quantize_multiplier(float(call.scale(0)) / float(call.made_scale()))
    values = fixed.multiply(fixed.wrap32(total - call.zero_point(0) * count), *multiplier) + call.made_zero_point()
    return np.clip(values, 0, 255).astype(np.uint8)


def _rescaled(call: Call, total: fixed.Int64, count: int) -> Array:
    """MEAN: R1 by ``s_in / s_out`` with 1 / count inside the multiplier; SUM of int8 and int16: in float32, halves away from zero.

    The multiplier is shifted left by at most 32 bits and so far that the shift stays >= -31, then divided.
    """
    info = np.iinfo(carrier(call.made_dtype()))
    if call.node.op == "SUM":
        scale = np.float32(call.scale(0) / call.made_scale())
        bias = np.float32(np.float32(np.float32(-call.zero_point(0)) * scale) * np.float32(count))
        summed = fixed.away((fixed.wrap32(total).astype(np.float32) * scale).astype(np.float32) + bias)
        return np.clip(summed + np.float32(call.made_zero_point()), info.min, info.max).astype(info.dtype)
    mantissa, shift = fixed.quantize_multiplier(float(call.scale(0)) / float(call.made_scale()))
    if count:
        room = min(count.bit_length() - 1, 32, 31 + shift)
        mantissa, shift = (mantissa << room) // count, shift - room
    values = fixed.multiply(fixed.wrap32(total - call.zero_point(0) * count), mantissa, shift) + call.made_zero_point()
    return np.clip(values, info.min, info.max).astype(info.dtype)


@register
class CumulativeSum(TfliteOp):
    """CUMSUM along an axis, one element after the other."""

    operators = ("CUMSUM",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, _ = present(node, inputs, 2)
        assert x is not None
        return inferred(x.dtype, x.shape if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, (axis,) = call.array(0), call.numbers(1)
        if call.quantized:
            raise call.fault(f"{call.dtype(0)} is not supported in this operator", "LiteRT has no such kernel")
        place = dims.axis_of(call.node, axis, x.ndim)
        turned = np.flip(x, place) if call.attribute("reverse", False) else x
        made = np.add.accumulate(turned, axis=place, dtype=x.dtype)
        if call.attribute("exclusive", False):
            made = np.roll(made, 1, place)
            np.moveaxis(made, place, 0)[:1] = 0
        return [contiguous(np.flip(made, place) if call.attribute("reverse", False) else made)]


@register
class ArgExtremum(TfliteOp):
    """ARG_MAX and ARG_MIN: the first of equal elements wins."""

    operators = ("ARG_MAX", "ARG_MIN")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, axis = present(node, inputs, 2)
        assert x is not None and axis is not None
        dtype = str(node.attributes.get("to", "int32"))
        if dtype not in {"int32", "int64"}:
            raise dims.fault(node, f"indices cannot be {dtype}")
        if not x.known_shape or axis.data is None:
            return inferred(dtype, None)
        gone = dims.axis_of(node, int(axis.data.reshape(-1)[0]), len(x.shape))
        return inferred(dtype, [dim for index, dim in enumerate(x.shape) if index != gone])

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        axis = int(call.array(1).reshape(-1)[0])
        function = np.argmax if call.node.op == "ARG_MAX" else np.argmin
        return [np.asarray(function(call.array(0), axis=axis)).astype(str(call.attribute("to", "int32")))]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: a comparison for each element."""
        return renamed(accounting.vector(node, graph, operations=graph.tensors[node.inputs[0]].elements), node)
