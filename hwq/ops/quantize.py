"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear: per tensor, per channel and in blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.graph import BITS, Array, Graph, Node, Tensor, carrier
from hwq.ops import accounting, dims, storage
from hwq.ops.base import Inferred, Op, register
from hwq.work import Work

__all__ = ["Dequantize", "Quantize", "dequantize", "quantize"]


def quantize(
    x: Array,
    scale: Array,
    zero_point: Array | None,
    dtype: str,
    axis: int | None = None,
    block: int | None = None,
    *,
    saturating: bool = True,
    precision: str | None = None,
) -> Array:
    """ONNX QuantizeLinear: ``saturate(rint(x / scale) + zero_point)``, ties to even.

    Parameters
    ----------
    x : float array
    scale, zero_point : array
        Of shape (), (C,) along `axis`, or the rank of `x` with `block`.
    dtype : str
        Stored type; float8 and float4 round ``x / scale`` to their own grid instead.
    precision : str, optional
        Type of the division; default the scale's.

    Returns
    -------
    array of `dtype`'s carrier
    """
    step = storage.spread(scale, x.shape, axis, block)
    division = carrier(precision) if precision else scale.dtype
    if division.name == "float8_e8m0fnu":
        division = np.dtype(np.float32)
    ratio = np.asarray(x.astype(division) / step.astype(division))
    if ratio.dtype not in (np.float32, np.float64):
        ratio = ratio.astype(np.float32)
    if not storage.is_integer(dtype):
        return storage.convert(ratio, dtype, saturating=saturating)
    point = 0 if zero_point is None else storage.spread(zero_point, x.shape, axis, block).astype(np.int64)
    low, high = storage.integer_range(dtype)
    # float64 holds every int32 bound exactly; the sum is exact because both terms are integers below 2**53.
    return storage.saturate(np.rint(np.clip(ratio.astype(np.float64), low - 2.0**33, high + 2.0**33)) + point, dtype)


def dequantize(
    q: Array,
    scale: Array,
    zero_point: Array | None,
    axis: int | None = None,
    block: int | None = None,
    dtype: str | None = None,
) -> Array:
    """ONNX DequantizeLinear: ``float32(q - zero_point) * scale``, then the output type."""
    target = carrier(dtype) if dtype else scale.dtype
    step = storage.spread(scale, q.shape, axis, block)
    if q.dtype.kind in "iu":
        point = 0 if zero_point is None else storage.spread(zero_point, q.shape, axis, block).astype(np.int64)
        wide = (q.astype(np.int64) - point).astype(np.float32)
    else:
        wide = q.astype(np.float32)
    return np.asarray(wide * step.astype(np.float32)).astype(target)


def _layout(node: Node, tensor: Tensor | Array, scale: Tensor | Array) -> tuple[int | None, int | None]:
    """(axis, block) of a Q or DQ node for this scale."""
    block = int(node.attributes.get("block_size", 0) or 0)
    if not scale.shape and not block:
        return None, None
    return int(node.attributes.get("axis", 1)), block or None


def _checked(node: Node, inputs: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    if not 2 <= len(inputs) <= 3 or inputs[0] is None or inputs[1] is None:
        raise dims.fault(node, "the operator needs an input, a scale and at most a zero point")
    x, scale, point = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if not scale.dtype.startswith(("float", "bfloat")):
        raise dims.fault(node, f"the scale must be floating point, not {scale.dtype}")
    if (
        point is not None
        and point.concrete
        and scale.concrete
        and point.shape != scale.shape
        and (point.elements, scale.elements) != (1, 1)
    ):
        raise dims.fault(node, f"scale {list(scale.shape)} and zero point {list(point.shape)} have different shapes")
    if x.concrete and scale.concrete:
        axis, block = _layout(node, x, scale)
        try:
            if block is not None and block < 1:
                raise ValueError(f"block_size = {block} is not positive")
            _fits(x.shape, scale.shape, axis, block)
        except ValueError as error:
            raise dims.fault(node, str(error)) from None
    return x, scale, point


def _fits(shape: Sequence[int | str], scale: Sequence[int | str], axis: int | None, block: int | None) -> None:
    """Raise ValueError unless `storage.spread` would fit, without making arrays."""
    if not block and len(scale) < 2 and (not scale or scale[0] == 1):
        return
    if axis is None or not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} does not exist in a tensor of rank {len(shape)}")
    axis %= len(shape)
    wanted: tuple[int | str, ...] = (shape[axis],)
    if block:
        wanted = (*shape[:axis], -(-int(shape[axis]) // block), *shape[axis + 1 :])
    if tuple(scale) != wanted:
        raise ValueError(f"a scale of shape {list(scale)} does not fit {list(shape)}: {list(wanted)} is needed")


# Element types that no QuantizeLinear makes.
UNSTORED = frozenset({"bool", "string", "int64", "uint32", "uint64", "float16", "bfloat16", "float32", "float64"})


@register
class Quantize(Op):
    """QuantizeLinear. The stored type is attribute ``output_dtype``, else the zero point's, else uint8."""

    names = ("QuantizeLinear", "com.microsoft::QuantizeLinear")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, _, point = _checked(node, inputs)
        if not x.dtype.startswith(("float", "bfloat")) and x.dtype != "int32":
            raise dims.fault(node, f"the input must be floating point, not {x.dtype}")
        dtype = str(node.attributes.get("output_dtype") or (point.dtype if point is not None else "uint8"))
        if dtype not in BITS or dtype in UNSTORED:
            raise dims.fault(node, f"nothing is quantized to {dtype}", "integers of 2 to 32 bits and floats of 4 and 8 bits are stored")  # fmt: skip
        if point is not None and point.dtype != dtype:
            raise dims.fault(node, f"output_dtype {dtype} differs from the zero point's {point.dtype}")
        return [(dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, scale = inputs[0], inputs[1]
        assert x is not None and scale is not None
        point = inputs[2] if len(inputs) > 2 else None
        dtype = node.attributes.get("output_dtype") or (point.dtype.name if point is not None else "uint8")
        axis, block = _layout(node, x, scale)
        return [
            quantize(
                x,
                scale,
                point,
                str(dtype),
                axis,
                block,
                saturating=bool(node.attributes.get("saturate", 1)),
                precision=node.attributes.get("precision"),
            )
        ]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


@register
class Dequantize(Op):
    """DequantizeLinear. The output has the scale's type, or that of attribute ``output_dtype``."""

    names = ("DequantizeLinear", "com.microsoft::DequantizeLinear")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, scale, point = _checked(node, inputs)
        if point is not None and point.dtype != x.dtype:
            raise dims.fault(node, f"the zero point is {point.dtype}, the input {x.dtype}", "both must have one type")
        dtype = node.attributes.get("output_dtype")
        return [(str(dtype or ("float32" if scale.dtype == "float8e8m0" else scale.dtype)), x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        q, scale = inputs[0], inputs[1]
        assert q is not None and scale is not None
        axis, block = _layout(node, q, scale)
        dtype = node.attributes.get("output_dtype") or ("float32" if scale.dtype.name == "float8_e8m0fnu" else None)
        return [dequantize(q, scale, inputs[2] if len(inputs) > 2 else None, axis, block, dtype)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


@register
class DynamicQuantize(Op):
    """DynamicQuantizeLinear: uint8 over the range of the values, 0 included; outputs stored values, scale, zero point."""

    names = ("DynamicQuantizeLinear",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if len(inputs) != 1 or inputs[0] is None or inputs[0].dtype != "float32":
            raise dims.fault(node, "DynamicQuantizeLinear needs one float32 input")
        return [("uint8", inputs[0].shape, inputs[0].known_shape), ("float32", (), True), ("uint8", (), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`. NaN is ignored in the range and stored as the lowest value, as onnxruntime does."""
        (x,) = inputs
        assert x is not None
        # fmin and fmax return the other operand where one is NaN; 0 stands in for an empty input.
        low = np.fmin.reduce(x, axis=None, initial=np.float32(0))
        high = np.fmax.reduce(x, axis=None, initial=np.float32(0))
        scale = np.float32(1) if high == low else np.float32(np.float32(high - low) / np.float32(255))
        point = np.asarray(np.clip(np.rint(-np.float32(low / scale)), 0, 255), np.uint8)
        return [quantize(x, np.asarray(scale, np.float32), point, "uint8"), np.asarray(scale, np.float32), point]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(
            node, graph, operations=accounting.ELEMENT_OPERATIONS[node.op] * graph.tensors[node.inputs[0]].elements
        )
