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

    Raises
    ------
    Error
        A stored input or output of the model would have to change its type.
    """
    source = as_pairs(graph)
    filters = {node.inputs[1] for node in source.nodes if node.op in PRODUCTS and len(node.inputs) > 1}
    tensors, nodes, values = dict(source.tensors), list[Node](), dict[str, Value]()
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
        if stored in source.inputs or stored in source.outputs:
            raise refuse(node, f"the model's {stored} is stored in {kind}", "eager modules store activations in uint8")
        dtype, offset = OTHER[kind]
        data = source.constant(stored)
        if data is not None:
            name = f"{stored}:{dtype}"
            tensors[name] = Tensor(name, dtype, data.shape, (data.astype(np.int16) + offset).astype(dtype))
        else:
            name = stored
            tensors[name] = dataclasses.replace(tensors[name], dtype=dtype)
            values[stored] = Value(stored, offset=-offset)
        scale = source.constant(node.inputs[1])
        stated = len(node.inputs) > 2 and bool(node.inputs[2])
        given = source.constant(node.inputs[2]) if stated else None if scale is None else np.zeros(scale.shape, kind)
        if given is None:
            raise refuse(node, "scale and zero point must be constants")
        points = f"{node.name}:zero_point"
        tensors[points] = Tensor(points, dtype, given.shape, (given.astype(np.int16) + offset).astype(dtype))
        first = node.inputs[0] if is_quantize(node) else name
        attributes = {key: value for key, value in node.attributes.items() if key != "output_dtype"}
        nodes.append(dataclasses.replace(node, inputs=(first, node.inputs[1], points), attributes=attributes))
    made = Graph(nodes, tensors.values(), source.inputs, source.outputs, name=source.name, dialect=source.dialect, source=source.source)  # fmt: skip
    return Translation(made, values)
