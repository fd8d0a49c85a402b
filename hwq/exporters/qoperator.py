"""Quantized graphs as integer operators: QLinearConv, QLinearMatMul, QGemm and onnxruntime's own QLinear family.

What onnxruntime would fuse is written fused: the graph is lowered by its rules, and every group becomes the operator that
onnxruntime runs for it. What it computes in float between DQ and Q stays as it is; operators that only move stored numbers
move them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Quantization, Tensor
from hwq.lowering import lower
from hwq.ops.contributed import LAYOUTS

__all__ = ["to_qoperator"]

OWN = "com.microsoft"
# Groups with a QLinear operator of one shape: operands with their scales, then the result's scale.
_UNARY = frozenset({"Sigmoid", "LeakyRelu", "Softmax", "AveragePool", "GlobalAveragePool"})
_BINARY = frozenset({"Add", "Mul"})


def to_qoperator(graph: Graph) -> Graph:
    """The graph in source form with integer operators.

    Parameters
    ----------
    graph : Graph
        Quantized, in source form.

    Returns
    -------
    Graph
        Source form; onnxruntime runs it to the same bytes as the QDQ form.

    Raises
    ------
    Error
        The graph is not quantized, or a group has no operator.
    """
    lowered = lower(graph, "ort")
    if not any(node.body for node in lowered.nodes):
        why, remedy = _nothing(graph)
        raise Error(
            "there is nothing to write as integer operators", where=f"graph {graph.name}", why=why, remedy=remedy
        )
    writer = _Writer(lowered, graph)
    nodes = [made for node in lowered.nodes for made in writer.written(node)]
    tensors = [_plain(tensor) for tensor in lowered.tensors.values()]
    return lowered.replace(
        nodes=nodes, tensors=[*tensors, *writer.constants.values()], form="source", dialect=graph.dialect
    )


def _nothing(graph: Graph) -> tuple[str, str]:
    """Why no group of the graph becomes an integer operator, and what to do."""
    ops = {node.op for node in graph.nodes}
    if any(op.startswith(("QLinear", "QGemm")) or "Integer" in op for op in ops):
        return "its integer operators are written already", 'export it with format="qdq": they are kept as they are'
    if not ops & {"QuantizeLinear", "DequantizeLinear"}:
        return "it is not quantized", "quantize it first"
    return (
        "onnxruntime computes in floats what stands between its Q and DQ: types that it has no integer operator for, weights alone, "
        "ranges at run time, or scales that a caller may replace",
        'quantize it for dialect ort with static 8-bit activations, or export it with format="qdq"',
    )


def _plain(tensor: Tensor) -> Tensor:
    """A tensor whose integer operators say how it is stored."""
    return dataclasses.replace(tensor, quantization=None)


class _Writer:
    """Groups to nodes; scales and zero points become constants of their tensor alone: onnxruntime 1.31.1 with
    session.x64quantprecision=1 refuses weights that share a zero point.
    """

    def __init__(self, graph: Graph, source: Graph):
        self.graph, self.source = graph, source
        self.constants: dict[str, Tensor] = {}
        self._known: dict[tuple[str, bytes], str] = {}

    def written(self, node: Node) -> list[Node]:
        """The nodes that stand for one node of the lowered graph."""
        if not node.body:
            return [node]
        node = dataclasses.replace(node, body=())
        if node.op in _MOVERS and self._same_pairs(node):
            return [node]
        writer = _WRITERS.get(node.op)
        if writer is None:
            raise Error(
                "this group has no integer operator",
                where=f"node {node.name} ({node.op})",
                remedy='export it with format="qdq"',
            )
        return writer(self, node)

    def constant(self, value: Array, base: str) -> str:
        """The name of a constant."""
        key = (base, value.tobytes())
        if key not in self._known:
            name, count = base, 0
            while name in self.graph.tensors or name in self.constants:
                count += 1
                name = f"{base}_{count}"
            self.constants[name] = Tensor(name, str(value.dtype), value.shape, value)
            self._known[key] = name
        return self._known[key]

    def quantization(self, name: str) -> Quantization | None:
        """How a value is stored."""
        return self.graph.tensors[name].quantization

    def pair(self, name: str, columns: bool = False) -> list[str]:
        """Constants with a value's scale and zero point."""
        quantization = self.quantization(name)
        assert quantization is not None
        scales, points = quantization.scales(), quantization.zero_points()
        if not columns or scales.size == 1:
            scales, points = scales.reshape(-1)[:1].reshape(()), points.reshape(-1)[:1].reshape(())
        else:
            points = np.broadcast_to(points.reshape(-1), scales.reshape(-1).shape)
        points = np.ascontiguousarray(points).reshape(scales.shape).astype(quantization.dtype)
        return [self.constant(scales.astype(np.float32), f"{name}_scale"), self.constant(points, f"{name}_zero_point")]

    def triple(self, name: str, columns: bool = False) -> list[str]:
        """A value with its scale and zero point."""
        return [name, *self.pair(name, columns)]

    def _same_pairs(self, node: Node) -> bool:
        found = [self.quantization(name) for name in (*node.inputs, *node.outputs) if name]
        kept = [one for one in found if one is not None]
        first = kept[0] if kept else None
        return all(
            first is not None and one.scales().tobytes() == first.scales().tobytes()
            and np.array_equal(one.zero_points(), first.zero_points())
            for one in kept
        )  # fmt: skip

    def unary(self, node: Node) -> list[Node]:
        """QLinearSigmoid and its kin."""
        attributes: dict[str, Any] = dict(node.attributes)
        if node.op == "Softmax":
            attributes["opset"] = 13
        if node.op.endswith("Pool"):
            attributes["channels_last"] = int(node.layout == "NHWC")
        inputs = (*self.triple(node.inputs[0]), *self.pair(node.outputs[0]))
        return [self._own(node, f"QLinear{node.op}", inputs, attributes)]

    def binary(self, node: Node) -> list[Node]:
        """QLinearAdd and QLinearMul."""
        inputs = (*self.triple(node.inputs[0]), *self.triple(node.inputs[1]), *self.pair(node.outputs[0]))
        return [self._own(node, f"QLinear{node.op}", inputs, {})]

    def concat(self, node: Node) -> list[Node]:
        """QLinearConcat."""
        operands = [part for name in node.inputs for part in self.triple(name)]
        return [self._own(node, "QLinearConcat", (*self.pair(node.outputs[0]), *operands), dict(node.attributes))]

    def where(self, node: Node) -> list[Node]:
        """QLinearWhere."""
        condition, first, second = node.inputs
        inputs = (condition, *self.triple(first), *self.triple(second), *self.pair(node.outputs[0]))
        return [self._own(node, "QLinearWhere", inputs, {})]

    def conv(self, node: Node) -> list[Node]:
        """QLinearConv, with the int32 bias."""
        x, weights, *bias = node.inputs
        inputs = [*self.triple(x), *self.triple(weights, columns=True), *self.pair(node.outputs[0]), *bias]
        return [dataclasses.replace(node, op="QLinearConv", inputs=tuple(inputs))]

    def matmul(self, node: Node) -> list[Node]:
        """QLinearMatMul; MatMulIntegerToFloat where no Q follows; DQ and MatMul for weights alone."""
        a, b = node.inputs[:2]
        if self.quantization(a) is None:
            return self._weight_only(node)
        if self.quantization(node.outputs[0]) is None:
            (a_scale, a_point), (b_scale, b_point) = self.pair(a), self.pair(b, columns=True)
            return [self._own(node, "MatMulIntegerToFloat", (a, b, a_scale, b_scale, a_point, b_point), {})]
        inputs = (*self.triple(a), *self._columns(a, b), *self.pair(node.outputs[0]))
        return [dataclasses.replace(node, op="QLinearMatMul", inputs=inputs)]

    def _columns(self, a: str, b: str) -> list[str]:
        """`triple` of the weights; int8 ones with a scale a column as uint8, both numbers 128 higher.

        Without VNNI onnxruntime saturates QLinearMatMul of uint8 x int8, with session.x64quantprecision=1 too where zero
        points are a vector; no sum changes.
        """
        name, scale, point = self.triple(b, columns=True)
        weights, points = self.graph.tensors[name].data, self.constants[point].data
        if weights is None or points is None or not points.shape or self.graph.tensors[a].dtype != "uint8" or weights.dtype != np.int8:  # fmt: skip
            return [name, scale, point]
        moved = [(values.astype(np.int16) + 128).astype(np.uint8) for values in (weights, points)]
        return [
            self.constant(moved[0], f"{name}_unsigned"),
            scale,
            self.constant(moved[1], f"{name}_unsigned_zero_point"),
        ]

    def gemm(self, node: Node) -> list[Node]:
        """QGemm, with the int32 bias."""
        a, b, *bias = node.inputs
        if self.quantization(a) is None:
            return self._weight_only(node)
        get = node.attributes.get
        attributes = {
            "transA": int(get("transA", 0)),
            "transB": int(get("transB", 0)),
            "alpha": float(get("alpha", 1.0)),
        }
        inputs = [*self.triple(a), *self.triple(b, columns=True), bias[0] if bias else ""]
        if self.quantization(node.outputs[0]) is not None:
            inputs += self.pair(node.outputs[0])
        return [self._own(node, "QGemm", tuple(inputs), attributes)]

    def _weight_only(self, node: Node) -> list[Node]:
        body = next(part for part in self.graph.node(node.name).body if part.op == "DequantizeLinear")
        inputs = (node.inputs[0], body.outputs[0], *node.inputs[2:])
        for name in (*body.inputs, *body.outputs):  # the group swallowed them
            if name and name not in self.graph.tensors:
                self.constants[name] = self.source.tensors[name]
        return [body, dataclasses.replace(node, inputs=inputs)]

    def _own(self, node: Node, op: str, inputs: tuple[str, ...], attributes: Mapping[str, Any]) -> Node:
        assert op in LAYOUTS or op == "MatMulIntegerToFloat"
        return Node(op, node.name, inputs, node.outputs, dict(attributes), OWN)


_MOVERS = frozenset(
    {"Expand", "Flatten", "Gather", "GatherElements", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze", "MaxPool",
     "ReduceMax", "ReduceMin", "Resize", "Split", "ArgMax", "Identity"}
)  # fmt: skip
_WRITERS: Mapping[str, Callable[[_Writer, Node], list[Node]]] = MappingProxyType(
    {
        "Conv": _Writer.conv,
        "MatMul": _Writer.matmul,
        "Gemm": _Writer.gemm,
        "Concat": _Writer.concat,
        "Where": _Writer.where,
        **dict.fromkeys(_UNARY, _Writer.unary),
        **dict.fromkeys(_BINARY, _Writer.binary),
    }
)
