"""Integer operators of ONNX and onnxruntime as what they stand for: DequantizeLinear, the float operator, QuantizeLinear."""

from __future__ import annotations

import dataclasses

import numpy as np

from hwq.graph import Graph, Node, Quantization, Tensor
from hwq.lowering.integers import STANDARD
from hwq.ops.contributed import LAYOUTS, Layout, anchor, triples

__all__ = ["as_pairs"]

OWN = "com.microsoft"


def as_pairs(graph: Graph) -> Graph:
    """The graph with Q and DQ nodes around float operators instead of integer operators; stored values keep their names."""
    if not any(_layout(node) for node in graph.nodes):
        return graph
    tensors, nodes = dict(graph.tensors), list[Node]()
    for node in graph.nodes:
        layout = _layout(node)
        if layout is None:
            nodes.append(node)
            continue
        standard = not node.domain
        made = (
            dataclasses.replace(node, op=layout.op, inputs=(node.inputs[0], node.inputs[3]))
            if standard
            else anchor(node)
        )
        inputs = list(made.inputs)
        places = layout.operands if standard else triples(node)
        for value, scale, zero in places:
            axis = 0 if layout.op == "Conv" or (layout.op == "Gemm" and node.attributes.get("transB")) else 1
            name = f"{node.inputs[value]}:{node.name}:{value}"
            shape = tensors[node.inputs[value]].shape
            tensors[name] = Tensor(name, "float32", shape)
            nodes.append(Node("DequantizeLinear", f"{name}:dequantize", _present(node, value, scale, zero), (name,), {"axis": axis}))  # fmt: skip
            inputs[inputs.index(node.inputs[value])] = name
        if layout.bias is not None and len(node.inputs) > layout.bias and node.inputs[layout.bias]:
            bias = node.inputs[layout.bias]
            steps = [graph.constant(node.inputs[place[1]]) for place in places[:2]]
            if steps[0] is not None and steps[1] is not None:
                name, step = f"{bias}:{node.name}:real", f"{bias}:{node.name}:scale"
                product = np.asarray(steps[0].reshape(-1)[0] * steps[1], np.float32)
                product = product.reshape(()) if product.size == 1 else product.reshape(-1)
                tensors[step] = Tensor(step, "float32", product.shape, product)
                tensors[name] = Tensor(name, "float32", tensors[bias].shape)
                nodes.append(Node("DequantizeLinear", f"{name}:dequantize", (bias, step), (name,), {"axis": 0}))
                inputs = [*inputs[:2], name]
        output, result = node.outputs[0], layout.result
        if len(node.inputs) > result[0] and node.inputs[result[0]]:
            real = f"{output}:{node.name}:real"
            tensors[real] = Tensor(real, "float32", tensors[output].shape)
            nodes.append(dataclasses.replace(made, inputs=tuple(inputs), outputs=(real,)))
            point = node.inputs[result[1]] if len(node.inputs) > result[1] else ""
            nodes.append(Node("QuantizeLinear", f"{output}:quantize", (real, node.inputs[result[0]], *([point] if point else [])), (output,)))  # fmt: skip
        else:
            nodes.append(dataclasses.replace(made, inputs=tuple(inputs)))
    return Graph(nodes, tensors.values(), graph.inputs, graph.outputs, name=graph.name, dialect=graph.dialect, source=graph.source)  # fmt: skip


def _layout(node: Node) -> Layout | None:
    return LAYOUTS.get(node.op) if node.domain == OWN else STANDARD.get(node.op) if not node.domain else None


def _present(node: Node, *indices: int) -> tuple[str, ...]:
    return tuple(node.inputs[index] for index in indices if len(node.inputs) > index and node.inputs[index])


def moved(quantization: Quantization, dtype: str) -> tuple[Quantization, int]:
    """(the quantization in an 8-bit type of the other sign, what is added to its stored integers)."""
    if quantization.dtype == dtype:
        return quantization, 0
    offset = -128 if dtype == "int8" else 128
    points = quantization.zero_points() + offset
    return Quantization(dtype, quantization.scale, points.astype(np.int32), quantization.axis), offset
