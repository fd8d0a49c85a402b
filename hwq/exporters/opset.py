"""The version of ONNX's operator set that a graph needs. onnxruntime's kernels, and so the bits of floats, follow from it."""

from __future__ import annotations

from hwq.graph import Graph
from hwq.ops.dynamic_rows import DOMAIN

__all__ = ["OWN_SINCE", "opset_of"]

# Where a graph says nothing of its opset (drawn by hand, from the zoo): the one that brought LayerNormalization.
DEFAULT_OPSET = 17
# The first opset in which Q and DQ take a type (ONNX changelog); 13 knows int8, uint8 and int32 per channel.
_STORED_SINCE = {"int4": 21, "uint4": 21, "int16": 21, "uint16": 21, "int2": 25, "uint2": 25, "float4e2m1": 23}
# First opset of operators younger than DEFAULT_OPSET's least.
_OP_SINCE = {"LayerNormalization": 17, "Gelu": 20, "HardSwish": 14, "Mish": 18, "Swish": 24, "RMSNormalization": 23}
# The bodies of our own functions: ReduceMax and ReduceMin take their axes as an input from this opset on.
OWN_SINCE = 18


def opset_of(graph: Graph) -> int:
    """The opset that the graph states, raised as far as its operators and types need."""
    stated = graph.source.get("opset")
    needed = [stated if isinstance(stated, int) else DEFAULT_OPSET]
    for node in graph.nodes:
        needed.append(OWN_SINCE if node.domain == DOMAIN else _OP_SINCE.get(node.op, 13))
        if node.op in {"QuantizeLinear", "DequantizeLinear"}:
            stored = graph.tensors[node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]].dtype
            needed.append(_STORED_SINCE.get(stored, 13))
            # Blocks, and scales that are not float32, came with opset 21 and 19.
            needed.append(21 if node.attributes.get("block_size") else 13)
            needed.append(19 if graph.tensors[node.inputs[1]].dtype != "float32" else 13)
        if node.op.startswith("Reduce") and len(node.inputs) > 1 and node.op != "ReduceSum":
            needed.append(18)
    return max(needed)
