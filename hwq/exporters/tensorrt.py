"""QDQ ONNX by TensorRT's documented rules, or every reason why not.

NVIDIA, TensorRT documentation, "Working with Quantized Types" (explicit quantization): zero points must be 0; stored types are
int8, float8e4m3fn and, for weights alone, int4; activations have one scale a tensor; weights one a tensor or one an output
channel (int4 in blocks); the inputs of a convolution or product are quantized together; biases stay floating point. Not
verified: there is no runtime here to ask.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hwq.errors import Error
from hwq.graph import Graph, Node, Tensor

__all__ = ["for_tensorrt"]

STORED = frozenset({"int8", "float8e4m3fn"})
WEIGHTS_ONLY = frozenset({"int4"})
# Operators whose inputs TensorRT wants quantized together, and the axis of the weights' output channels.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
# Reasons that one message holds.
SHOWN = 8


def for_tensorrt(graph: Graph) -> Graph:
    """The graph with float biases, if it obeys the rules.

    Raises
    ------
    Error
        It does not; the message lists the reasons.
    """
    changed = _float_biases(graph)
    reasons = [*_storage(changed), *_placement(changed)]
    if reasons:
        more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        raise Error(
            f"TensorRT's documented rules forbid {len(reasons)} things in this graph",
            where=f"graph {graph.name}",
            why="; ".join(reasons[:SHOWN]) + more,
            remedy='quantize it with Plan.uniform(weights="int8", activations="int8", dialect="tensorrt")',
        )
    return changed


def _float_biases(graph: Graph) -> Graph:
    """int32 constants behind DQ become the float constants that they stand for."""
    nodes, tensors = [], dict(graph.tensors)
    for node in graph.nodes:
        stored = graph.constant(node.inputs[0]) if node.op == "DequantizeLinear" else None
        scale = graph.constant(node.inputs[1]) if node.op == "DequantizeLinear" else None
        if stored is None or scale is None or stored.dtype != np.int32:
            nodes.append(node)
            continue
        value = (stored.astype(np.float32) * scale.astype(np.float32)).astype(np.float32)
        name = node.outputs[0]
        tensors[name] = Tensor(name, "float32", value.shape, value)
    return graph.replace(nodes=nodes, tensors=list(tensors.values()))


def _storage(graph: Graph) -> Iterator[str]:
    """What is wrong with single Q and DQ nodes."""
    for node in graph.nodes:
        if node.op not in {"QuantizeLinear", "DequantizeLinear"}:
            if node.op.startswith("QLinear") or node.op.endswith("Integer") or node.op == "DynamicQuantizeLinear":
                yield f"node {node.name}: {node.op} is no operator of TensorRT's explicit quantization"
            continue
        stored = graph.tensors[node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]]
        weight = graph.constant(node.inputs[0]) is not None
        scale, point = graph.constant(node.inputs[1]), graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        allowed = STORED | WEIGHTS_ONLY if weight else STORED
        if stored.dtype not in allowed:
            yield f"tensor {stored.name} is {stored.dtype}, not {' or '.join(sorted(allowed))}"
        if len(node.inputs) > 2 and node.inputs[2] and (point is None or np.any(point.astype(np.float32))):
            yield f"tensor {stored.name} has a zero point"
        if scale is None:
            yield f"tensor {stored.name} has a scale that is computed at run time"
        elif np.any(~(scale.astype(np.float64) > 0) | ~np.isfinite(scale.astype(np.float64))):
            yield f"tensor {stored.name} has a scale that is not positive and finite"
        elif not weight and scale.size > 1:
            yield f"activation {stored.name} has {scale.size} scales, not one"
        elif weight and node.attributes.get("block_size") and stored.dtype not in WEIGHTS_ONLY:
            yield f"weights {stored.name} are {stored.dtype} in blocks, which is for int4"


def _placement(graph: Graph) -> Iterator[str]:
    """What is wrong with the inputs of convolutions and products."""
    for node in graph.nodes:
        if node.op not in PRODUCTS:
            continue
        makers = [graph.producers.get(name) for name in node.inputs[:2]]
        quantized = [maker is not None and maker.op == "DequantizeLinear" for maker in makers]
        weights = makers[1]
        if weights is not None and quantized[1]:
            yield from _channels(graph, node, weights)
        if quantized[0] == quantized[1]:
            continue
        stored = graph.tensors[weights.inputs[0]].dtype if weights is not None and quantized[1] else ""
        if stored not in WEIGHTS_ONLY:
            one, other = ("input", "weights") if quantized[0] else ("weights", "input")
            yield f"node {node.name} ({node.op}) has quantized {one} and a float {other}: both or neither"


def _channels(graph: Graph, node: Node, dequantize: Node) -> Iterator[str]:
    scale = graph.constant(dequantize.inputs[1])
    if scale is None or scale.size == 1 or dequantize.attributes.get("block_size"):
        return
    rank = len(graph.tensors[dequantize.inputs[0]].shape)
    axis = int(dequantize.attributes.get("axis", 1)) % max(rank, 1)
    expected = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if node.attributes.get("transB") else 1}.get(node.op, rank - 1)
    if axis != expected:
        yield f"weights of {node.name} ({node.op}) have scales along axis {axis}, not along output channels (axis {expected})"
