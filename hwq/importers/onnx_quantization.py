"""What Q, DQ and the integer operators say about how a tensor is stored, written onto the tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

from hwq.graph import BITS, Array, Graph, Node, Quantization, Tensor
from hwq.ops.application import evaluate_node

__all__ = ["annotated"]

_UNARY = (((0, 1, 2),), 3)
# onnxruntime's own integer operators: where each stored operand, its scale and its zero point stand, and the result's scale,
# before its zero point (0: a float result).
CONTRIBUTED: Mapping[str, tuple[tuple[tuple[int, int, int], ...], int]] = MappingProxyType({
    "QLinearAdd": (((0, 1, 2), (3, 4, 5)), 6), "QLinearMul": (((0, 1, 2), (3, 4, 5)), 6), "QGemm": (((0, 1, 2), (3, 4, 5)), 7),
    "QLinearWhere": (((1, 2, 3), (4, 5, 6)), 7), "MatMulIntegerToFloat": (((0, 2, 4), (1, 3, 5)), 0), "DynamicQuantizeMatMul": (((1, 2, 3),), 0),
    "QLinearLeakyRelu": _UNARY, "QLinearSigmoid": _UNARY, "QLinearSoftmax": _UNARY, "QLinearAveragePool": _UNARY,
    "QLinearGlobalAveragePool": _UNARY, "QLinearReduceMean": _UNARY,
})  # fmt: skip


def annotated(graph: Graph) -> Graph:
    """The graph with `Tensor.quantization` on every stored tensor of Q, DQ and integer operators.

    Scales keep their exact bits. A tensor that two nodes read differently keeps the first reading.
    """
    found: dict[str, Quantization] = {}
    for node in graph.nodes:
        for name, quantization in _said(graph, node):
            found.setdefault(name, quantization)
    if not found:
        return graph
    return graph.replace(
        tensors=[
            tensor
            if tensor.name not in found or tensor.quantization is not None
            else dataclasses.replace(tensor, quantization=found[tensor.name])
            for tensor in graph.tensors.values()
        ]
    )


def _said(graph: Graph, node: Node) -> Iterator[tuple[str, Quantization]]:
    names = [*node.inputs, *[""] * 9]
    if node.op in {"QuantizeLinear", "DequantizeLinear"}:
        stored = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
        axis = int(node.attributes.get("axis", 1))
        yield from _quantization(
            graph, stored, names[1], names[2], axis, int(node.attributes.get("block_size", 0) or 0)
        )
    elif node.op == "DynamicQuantizeLinear" and len(node.outputs) == 3:
        yield node.outputs[0], Quantization("uint8", node.outputs[1] or None, node.outputs[2] or None)
    elif node.op == "QLinearConv":
        channel = len(graph.tensors[node.outputs[0]].shape) - 1 if node.layout == "NHWC" else 1
        yield from _quantization(graph, names[0], names[1], names[2], channel)
        yield from _quantization(graph, names[3], names[4], names[5], 0)
        yield from _quantization(graph, node.outputs[0], names[6], names[7], channel)
        yield from _bias(graph, names[8], names[1], names[4])
    elif node.op == "QLinearMatMul":
        yield from _quantization(graph, names[0], names[1], names[2], -2)
        yield from _quantization(graph, names[3], names[4], names[5], -1)
        yield from _quantization(graph, node.outputs[0], names[6], names[7], -2)
    elif node.op in {"MatMulInteger", "ConvInteger"}:
        first, second = (-2, -1) if node.op == "MatMulInteger" else (1, 0)
        yield from _quantization(graph, names[0], "", names[2], first)
        yield from _quantization(graph, names[1], "", names[3], second)
    elif node.domain == "com.microsoft" and node.op == "QLinearConcat":
        for begin in range(2, len(node.inputs) - 2, 3):
            yield from _quantization(graph, names[begin], names[begin + 1], names[begin + 2], -1)
        yield from _quantization(graph, node.outputs[0], names[0], names[1], -1)
    elif node.domain == "com.microsoft" and node.op in CONTRIBUTED:
        operands, made = CONTRIBUTED[node.op]
        for operand, scale, point in operands:
            # Weights of QGemm with transB have their channels first.
            axis = 0 if operand and node.op == "QGemm" and node.attributes.get("transB", 0) else -1
            yield from _quantization(graph, names[operand], names[scale], names[point], axis)
        if made and names[made]:
            yield from _quantization(graph, node.outputs[0], names[made], names[made + 1], -1)
        if node.op == "QGemm":
            yield from _bias(graph, names[6], names[1], names[4])


def _quantization(
    graph: Graph, stored: str, scale: str, point: str, axis: int, block: int = 0
) -> Iterator[tuple[str, Quantization]]:
    tensor = graph.tensors[stored]
    steps, points = _value(graph, scale), _value(graph, point)
    shape = _shape(steps if steps is not None else points, graph, scale or point)
    place: int | None = None
    if shape is not None and (block or (len(shape) == 1 and shape != (1,))):
        if not tensor.known_shape or not -len(tensor.shape) <= axis < len(tensor.shape):
            return
        place = axis % len(tensor.shape)
    elif shape is not None and len(shape) > 1 and any(dim != 1 for dim in shape):
        return  # per row and per column forms of a batched product have no place in Quantization
    if place is None:
        steps, points = _scalar(steps), _scalar(points)
    yield (
        stored,
        Quantization(
            tensor.dtype,
            steps if steps is not None else (scale or None),
            points if points is not None else (point or None),
            place,
            block or None,
            _storage(tensor),
        ),
    )


def _storage(tensor: Tensor) -> Literal["plain", "packed"]:
    return "packed" if tensor.constant and BITS[tensor.dtype] < 8 else "plain"


def _value(graph: Graph, name: str) -> Array | None:
    data = graph.constant(name)
    if data is None and (maker := graph.producers.get(name)) is not None and maker.op == "DequantizeLinear":
        # Scales in two levels: integers a block times a scale a channel, all constant.
        operands = [graph.constant(one) if one else None for one in maker.inputs]
        if all(one is not None or not given for one, given in zip(operands, maker.inputs, strict=True)):
            data = evaluate_node(maker, operands, graph)[0]
    if data is None or data.dtype.kind in "iub":
        return data
    return data.astype(np.float32)  # exact: every narrower scale type is a subset of float32


def _shape(value: Array | None, graph: Graph, name: str) -> tuple[int | str, ...] | None:
    if value is not None:
        return value.shape
    tensor = graph.tensors.get(name)
    return tensor.shape if tensor is not None and tensor.known_shape else None


def _scalar(value: Array | None) -> Array | None:
    return value.reshape(()) if value is not None and value.size == 1 else value


def _bias(graph: Graph, bias: str, x_scale: str, w_scale: str) -> Iterator[tuple[str, Quantization]]:
    """The bias of QLinearConv has scale ``x_scale * w_scale`` by definition (ONNX), in float32."""
    first, second = graph.constant(x_scale), graph.constant(w_scale)
    if not bias or first is None or second is None or first.size != 1:
        return
    product = first.astype(np.float32).reshape(()) * second.astype(np.float32)
    yield (
        bias,
        Quantization(
            "int32",
            np.asarray(product.reshape(()) if product.size == 1 else product),
            None,
            None if product.size == 1 else 0,
        ),
    )
