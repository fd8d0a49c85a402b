"""From Q/DQ graphs of ONNX to what PyTorch's eager modules store: uint8 activations, int8 weights."""

from __future__ import annotations

import dataclasses

import numpy as np

from hwq.graph import Graph, Node, Tensor
from hwq.lowering.pairs import is_dequantize, is_quantize
from hwq.translation import Translation, Value
from hwq.translation.assembly import refuse
from hwq.translation.pairs import as_pairs

__all__ = ["to_eager"]

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
OTHER = {"int8": ("uint8", 128), "uint8": ("int8", -128)}


def to_eager(graph: Graph) -> Translation:
    """The graph with every 8-bit activation in uint8 and every 8-bit weight in int8, their real values unchanged.

    Stored inputs and outputs of the model keep their type: a DQ and a Q at the border, which change no value.

    Raises
    ------
    Error
        A scale or zero point is computed.
    """
    source = as_pairs(graph)
    filters = {node.inputs[1] for node in source.nodes if node.op in PRODUCTS and len(node.inputs) > 1}
    tensors, nodes, values = dict(source.tensors), list[Node](), dict[str, Value]()
    entered: set[str] = set()
    for node in source.nodes:
        if not (is_quantize(node) or is_dequantize(node)):
            nodes.append(node)
            continue
        stored = node.outputs[0] if is_quantize(node) else node.inputs[0]
        kind = source.tensors[stored].dtype
        weights = is_dequantize(node) and node.outputs[0] in filters and source.constant(stored) is not None
        if kind not in OTHER or kind == ("int8" if weights else "uint8"):
            nodes.append(node)
            continue
        dtype, offset = OTHER[kind]
        border = stored in source.inputs or stored in source.outputs
        data = source.constant(stored)
        if data is not None:
            name = f"{stored}:{dtype}"
            tensors[name] = Tensor(name, dtype, data.shape, (data.astype(np.int16) + offset).astype(dtype))
        else:
            name = f"{stored}:{dtype}" if border else stored
            tensors[name] = dataclasses.replace(tensors[stored], name=name, dtype=dtype)
            values[stored] = Value(name, offset=-offset)
        scale = source.constant(node.inputs[1])
        stated = len(node.inputs) > 2 and bool(node.inputs[2])
        given = source.constant(node.inputs[2]) if stated else None if scale is None else np.zeros(scale.shape, kind)
        if given is None:
            raise refuse(node, "scale and zero point must be constants")
        points = f"{node.name}:zero_point"
        tensors[points] = Tensor(points, dtype, given.shape, (given.astype(np.int16) + offset).astype(dtype))
        attributes = {key: value for key, value in node.attributes.items() if key != "output_dtype"}
        first, result = (node.inputs[0], name) if is_quantize(node) else (name, node.outputs[0])
        pair = (node.inputs[1], points)
        own = tuple(part for part in node.inputs[1:] if part)
        if border and is_dequantize(node) and stored in source.inputs:
            real = f"{stored}:{node.name}:border"
            tensors[real] = Tensor(real, "float32", tensors[stored].shape)
            nodes.append(Node("DequantizeLinear", real, (stored, *own), (real,)))
            if name not in entered:
                nodes.append(Node("QuantizeLinear", f"{name}:enter", (real, *pair), (name,)))
                entered.add(name)
        nodes.append(dataclasses.replace(node, inputs=(first, *pair), outputs=(result,), attributes=attributes))
        if border and is_quantize(node):
            real = f"{stored}:border"
            tensors[real] = Tensor(real, "float32", tensors[stored].shape)
            nodes.append(Node("DequantizeLinear", real, (name, *pair), (real,)))
            nodes.append(Node("QuantizeLinear", f"{stored}:leave", (real, *own), (stored,)))
    made = Graph(nodes, tensors.values(), source.inputs, source.outputs, name=source.name, dialect=source.dialect, source=source.source)  # fmt: skip
    return Translation(made, values)
