"""Integer products of the source form: ConvInteger, MatMulInteger, QLinearConv, QLinearMatMul.

Accumulators are int32 and wrap, as ONNX defines. Requantization follows onnxruntime (rounding R4 of
kernels/README.md): ``rint(clip(float32(acc) * float32(float32(sa * sb) / sy)))`` and then the zero point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array, Dim, Graph, Node, Tensor
from hwq.ops import arithmetic, dims, spatial, storage
from hwq.ops.base import Inferred, Op, register
from hwq.ops.convolution import convolution_shape, convolution_work, filters_first
from hwq.ops.matmul import product_shape, product_work
from hwq.work import Work

__all__ = ["requantize"]


def requantize(accumulator: NDArray[np.int32], factor: Array, zero_point: Array, dtype: str) -> Array:
    """R4: the clip comes before the rounding, the zero point after it."""
    low, high = storage.integer_range(dtype)
    point = zero_point.astype(np.int64)
    scaled = accumulator.astype(np.float32) * factor
    return storage.saturate(np.rint(np.clip(scaled, low - point, high - point)) + point, dtype)


def _require(node: Node, inputs: Sequence[Tensor | None], least: int, most: int) -> None:
    if not least <= len(inputs) <= most or any(tensor is None for tensor in inputs[:least]):
        raise dims.fault(node, f"the operator needs {least} to {most} inputs")


def _require_bytes(node: Node, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.dtype not in {"int8", "uint8"} and not tensor.dtype.startswith("float8"):
            raise dims.fault(node, f"an operand is {tensor.dtype}", "the operator takes int8 and uint8")


def _require_values(node: Node, tensor: Tensor | None, what: str, along: Dim | None = None) -> None:
    """A scale or zero point: one number, or where `along` is given one each for that many rows, columns or filters."""
    if tensor is None or not tensor.concrete or tensor.elements == 1 or not isinstance(along, int | None):
        return
    # More axes are ONNX's batched products: there, any shape that broadcasts.
    if along is None or (len(tensor.shape) == 1 and tensor.elements != along):
        raise dims.fault(
            node,
            f"the {what} has {tensor.elements} values",
            "one for the whole tensor" + ("" if along is None else f", or one for each of {along}, are possible"),
        )


def _require_product_values(node: Node, inputs: Sequence[Tensor | None], first: int, a: Tensor, b: Tensor) -> None:
    """Scales and zero points of ``a`` go by its rows, those of ``b`` by its columns; ``y`` goes with ``a``."""
    rows: Dim | None = a.shape[-2] if a.known_shape and len(a.shape) > 1 else "unknown"
    columns: Dim | None = b.shape[-1] if b.known_shape and b.shape else "unknown"
    places: list[tuple[int, Dim | None]] = [(2, rows), (3, columns)]
    if first == 1:
        places = [(1, rows), (2, rows), (4, columns), (5, columns), (6, rows), (7, rows)]
    for index, along in places:
        if index < len(inputs):
            _require_values(node, inputs[index], f"scale or zero point (input {index})", along)


def _require_filter_values(
    node: Node, inputs: Sequence[Tensor | None], whole: Sequence[int], each: Sequence[int], weight: Tensor
) -> None:
    filters: Dim = weight.shape[0] if weight.known_shape and weight.shape else "unknown"
    for index in (*whole, *each):
        if index < len(inputs):
            along = filters if index in each else None
            _require_values(node, inputs[index], f"scale or zero point (input {index})", along)


def _shifted(x: Array, zero_point: Array | None, shape: Sequence[int]) -> NDArray[np.int32]:
    """``x - zero_point`` in int32 (at most 9 bits and a sign, so never near the bound)."""
    if zero_point is None:
        return x.astype(np.int32)
    return x.astype(np.int32) - zero_point.astype(np.int32).reshape(shape)


def _columns(values: Array, rank: int, first: bool) -> tuple[int, ...]:
    """A broadcast shape for per-row (first operand) or per-column values of a product."""
    if values.ndim > 1 or values.size == 1:
        return values.shape if values.ndim > 1 else ()
    return (-1, 1) if first and rank > 1 else (-1,)


def _image(x: Array, weight: Array, node: Node, point: Array | None, weight_point: Array | None) -> NDArray[np.int32]:
    image = _shifted(spatial.channels_first(x, node), point, ())
    kernel = filters_first(weight, node)
    filters = _shifted(
        kernel,
        weight_point,
        (-1, *([1] * (kernel.ndim - 1))) if weight_point is not None and weight_point.size > 1 else (),
    )
    windows = spatial.windows_of(node, image.shape[2:], kernel.shape[2:])
    return arithmetic.wrap_int32(
        arithmetic.convolve(
            image,
            filters,
            windows.begin,
            windows.end,
            windows.strides,
            windows.dilations,
            int(node.attributes.get("group", 1)),
            windows.sizes,
        )
    )


@register
class MatMulInteger(Op):
    """``(a - a_zero_point) @ (b - b_zero_point)`` in int32."""

    names = ("MatMulInteger",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        _require(node, inputs, 2, 4)
        a, b = inputs[0], inputs[1]
        assert a is not None and b is not None
        _require_bytes(node, a, b)
        _require_product_values(node, inputs, 2, a, b)
        return [("int32", *product_shape(node, a, b))]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, b, first, second = [*inputs, None, None][:4]
        assert a is not None and b is not None
        left = _shifted(a, first, () if first is None else _columns(first, a.ndim, True))
        right = _shifted(b, second, () if second is None else _columns(second, b.ndim, False))
        return [arithmetic.wrap_int32(arithmetic.integer_matmul(left, right))]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return product_work(node, graph)


@register
class ConvInteger(Op):
    """Convolution of integers in int32; padding holds the zero point."""

    names = ("ConvInteger",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        _require(node, inputs, 2, 4)
        x, weight = inputs[0], inputs[1]
        assert x is not None and weight is not None
        _require_bytes(node, x, weight)
        _require_filter_values(node, inputs, (2,), (3,), weight)
        shape, known = convolution_shape(node, x, weight, None)
        return [("int32", shape if known else (), known)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, weight, first, second = [*inputs, None, None][:4]
        assert x is not None and weight is not None
        return [spatial.from_channels_first(_image(x, weight, node, first, second), node)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return convolution_work(node, graph)


@register
class QLinearMatMul(Op):
    """Product of quantized operands, requantized."""

    names = ("QLinearMatMul",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        _require(node, inputs, 8, 8)
        a, b, point = inputs[0], inputs[3], inputs[7]
        assert a is not None and b is not None and point is not None
        _require_bytes(node, a, b, point)
        if any(tensor.dtype.startswith("float8") for tensor in (a, b, point)):
            raise dims.fault(
                node, "QLinearMatMul of float8 operands is not supported", None, "use QuantizeLinear and MatMul"
            )
        _require_product_values(node, inputs, 1, a, b)
        return [(point.dtype, *product_shape(node, a, b))]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, a_scale, a_point, b, b_scale, b_point, scale, point = [one for one in inputs if one is not None]
        left = _shifted(a, a_point, _columns(a_point, a.ndim, True))
        right = _shifted(b, b_point, _columns(b_point, b.ndim, False))
        product = arithmetic.wrap_int32(arithmetic.integer_matmul(left, right))
        factor = a_scale.astype(np.float32).reshape(_columns(a_scale, a.ndim, True)) * b_scale.astype(
            np.float32
        ).reshape(_columns(b_scale, b.ndim, False))
        factor = factor / scale.astype(np.float32).reshape(_columns(scale, a.ndim, True))
        return [requantize(product, factor, point.reshape(_columns(point, a.ndim, True)), point.dtype.name)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return dataclasses.replace(product_work(node, graph, 0, 3), op=node.op)


@register
class QLinearConv(Op):
    """Convolution of quantized operands with an int32 bias, requantized."""

    names = ("QLinearConv",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        _require(node, inputs, 8, 9)
        x, weight, point = inputs[0], inputs[3], inputs[7]
        assert x is not None and weight is not None and point is not None
        _require_bytes(node, x, weight, point)
        _require_filter_values(node, inputs, (1, 2, 6, 7), (4, 5), weight)
        bias = inputs[8] if len(inputs) > 8 else None
        if bias is not None and bias.dtype != "int32":
            raise dims.fault(node, f"the bias must be int32, not {bias.dtype}")
        shape, known = convolution_shape(node, x, weight, bias)
        return [(point.dtype, shape if known else (), known)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, x_scale, x_point, weight, w_scale, w_point, scale, point = [one for one in inputs[:8] if one is not None]
        product = _image(x, weight, node, x_point, w_point)
        channel = (-1, *([1] * (product.ndim - 2)))
        if len(inputs) > 8 and inputs[8] is not None:
            product = arithmetic.wrap_int32(product.astype(np.int64) + inputs[8].reshape(channel))
        factor = x_scale.astype(np.float32).reshape(()) * w_scale.astype(np.float32).reshape(
            channel if w_scale.size > 1 else ()
        )
        factor = factor / scale.astype(np.float32).reshape(())
        return [spatial.from_channels_first(requantize(product, factor, point.reshape(()), point.dtype.name), node)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return convolution_work(node, graph, 0, 3)
