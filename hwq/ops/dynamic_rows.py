"""Quantization at run time with one range a row, which ONNX has no operator for: functions of the domain ``hwq``.

A file holds them as functions whose bodies are ONNX's own operators (`hwq.exporters.functions`). A row is what lies along the
attribute `axes`. ``DynamicQuantizeRows`` is DynamicQuantizeLinear on each row; ``DynamicQuantizeRowsSymmetric`` stores int8
without zero points: ``s = max|x| / 127`` (1 where 0), ``q = clip(rint(x / s), -127, 127)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Graph, Node, Shape, Tensor
from hwq.ops import accounting, dims
from hwq.ops.base import Inferred, Op, lookup, register
from hwq.work import Work

__all__ = ["DOMAIN", "axes_of", "quantize_rows"]

DOMAIN = "hwq"


def axes_of(node: Node, rank: int) -> tuple[int, ...]:
    """The axes that make a row, from 0.

    Raises
    ------
    Error
        There are none, or they lie outside the tensor.
    """
    given = node.attributes.get("axes", ())
    if not isinstance(given, Sequence) or not given or any(not -rank <= int(axis) < rank for axis in given):
        raise dims.fault(node, f"axes {given} do not lie in a tensor of rank {rank}")
    return tuple(sorted({int(axis) % rank for axis in given}))


def quantize_rows(x: Array, axes: tuple[int, ...], symmetric: bool) -> tuple[Array, Array, Array]:
    """Stored values, scales and zero points; the latter two keep the reduced axes with size 1."""
    # fmin and fmax return the other operand where one is NaN; 0 stands in for an empty row.
    low = np.fmin.reduce(x, axis=axes, initial=np.float32(0), keepdims=True)
    high = np.fmax.reduce(x, axis=axes, initial=np.float32(0), keepdims=True)
    with np.errstate(all="ignore"):
        reach, steps = (np.maximum(-low, high), 127) if symmetric else (high - low, 255)
        scale = np.where(reach == 0, np.float32(1), reach / np.float32(steps)).astype(np.float32)
        if symmetric:
            point = np.zeros(scale.shape, np.int8)
            stored = np.clip(np.rint(x / scale), -127, 127)
            return np.where(np.isnan(stored), -127, stored).astype(np.int8), scale, point
        point = np.clip(np.rint(-(low / scale)), 0, 255).astype(np.uint8)
        stored = np.clip(np.rint(x / scale) + point, 0, 255)
    return np.where(np.isnan(stored), 0, stored).astype(np.uint8), scale, point


@register
class DynamicQuantizeRows(Op):
    """Stored values, a scale a row, a zero point a row."""

    names = (f"{DOMAIN}::DynamicQuantizeRows", f"{DOMAIN}::DynamicQuantizeRowsSymmetric")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if len(inputs) != 1 or inputs[0] is None or inputs[0].dtype != "float32":
            raise dims.fault(node, f"{node.op} needs one float32 input")
        dtype = "int8" if node.op.endswith("Symmetric") else "uint8"
        x = inputs[0]
        if not x.known_shape:
            return [(dtype, (), False), ("float32", (), False), (dtype, (), False)]
        reduced = axes_of(node, len(x.shape))
        rows: Shape = tuple(1 if axis in reduced else dim for axis, dim in enumerate(x.shape))
        return [(dtype, x.shape, True), ("float32", rows, True), (dtype, rows, True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`. NaN is ignored in the range and stored as the lowest value."""
        (x,) = inputs
        assert x is not None
        return list(quantize_rows(x, axes_of(node, x.ndim), node.op.endswith("Symmetric")))

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: as DynamicQuantizeLinear."""
        elements = graph.tensors[node.inputs[0]].elements
        return accounting.vector(node, graph, accounting.ELEMENT_OPERATIONS["DynamicQuantizeLinear"] * elements)


@register
class DequantizeRows(Op):
    """``float32(q - zero point) * scale``; scale and zero point broadcast."""

    names = (f"{DOMAIN}::DequantizeRows",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if len(inputs) != 3 or any(tensor is None for tensor in inputs):
            raise dims.fault(node, "DequantizeRows needs values, scales and zero points")
        assert inputs[0] is not None
        return [("float32", inputs[0].shape, inputs[0].known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        q, scale, point = inputs
        assert q is not None and scale is not None and point is not None
        return [(q.astype(np.int32) - point.astype(np.int32)).astype(np.float32) * scale]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


@register
class DynamicProduct(Op):
    """Conv, Gemm or MatMul of an operand quantized at run time, as the dialect ``hwq`` fuses it.

    Inputs: stored values, stored weights, bias or "", scale and zero point of the values.
    """

    names = tuple(f"{DOMAIN}::{name}" for name in ("Conv", "ConvTranspose", "Gemm", "MatMul"))

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`: the shape of the float operator."""
        if len(inputs) != 5 or inputs[0] is None or inputs[1] is None:
            raise dims.fault(node, "the group needs values, weights, a bias, scales and zero points")
        real = [None if one is None else dataclasses.replace(one, dtype="float32", data=None) for one in inputs[:3]]
        plain = plain_node(node)
        return lookup(plain).infer(plain, real[: len(plain.inputs)])

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """A group has no value of its own: execution computes it."""
        raise dims.fault(node, "this group belongs to the dialect hwq", "it is made by lowering and run by hwq.compile")

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: that of the product."""
        return lookup(plain_node(node)).work(plain_node(node), graph)


def plain_node(node: Node) -> Node:
    """The float operator inside a `DynamicProduct`; a MatMul's bias is the group's alone."""
    return dataclasses.replace(
        node, domain="", inputs=node.inputs[: 3 if node.inputs[2] and node.op != "MatMul" else 2]
    )
