"""What integer operators of ONNX and onnxruntime say about storage where no scale stands beside the integers.

Weights of MatMulInteger and ConvInteger have their scale behind the sums, in the product of scales that the accumulator is
multiplied by; weights of MatMulNBits are packed in blocks; DynamicQuantizeMatMul quantizes what it reads by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hwq.errors import NotSupportedYet
from hwq.graph import Array, Graph, Node, Quantization, Tensor
from hwq.names import display_name
from hwq.ops.contributed import integers

__all__ = ["RUN_TIME", "quantized_inside", "with_operators"]

# Operators whose first result is their first operand, stored over the range that it then has.
RUN_TIME = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeRows", "DynamicQuantizeRowsSymmetric"})
# Stored weights that no layer of a plan has.
_BEYOND = frozenset({"DynamicQuantizeLSTM", "GatherBlockQuantized"})


def with_operators(graph: Graph) -> Graph:
    """The graph whose tensors also say what its integer operators mean.

    Raises
    ------
    NotSupportedYet
        An operator with stored weights that a plan has no layer for.
    """
    found: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op in _BEYOND:
            raise NotSupportedYet(
                f"reading a plan from {node.op}", where=f"node {display_name(node.name)}",
                why="a plan stores weights of Conv, ConvTranspose, Gemm and MatMul", remedy="the model itself loads and runs",
            )  # fmt: skip
        if node.op in {"MatMulInteger", "ConvInteger"} and len(node.inputs) > 1:
            tensor = graph.tensors[node.inputs[1]]
            how, scale = tensor.quantization, _behind(graph, node)
            if how is not None and how.scale is None and scale is not None:
                found[tensor.name] = replace(tensor, quantization=_with_scale(node, tensor, how, scale))
        elif node.op == "MatMulNBits" and (made := _in_blocks(graph, node)) is not None:
            found[made.name] = made
    return graph.replace(tensors=[found.get(name, one) for name, one in graph.tensors.items()]) if found else graph


def quantized_inside(graph: Graph) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Operands that operators quantize at run time over other ranges than ONNX's: name and a plan's activations."""
    for node in graph.nodes:
        if node.op == "DynamicQuantizeMatMul":
            yield node.inputs[0], {"dtype": "uint8", "mode": "dynamic", "symmetric": False}
        elif node.op in RUN_TIME and node.domain:
            rank, symmetric = len(graph.tensors[node.inputs[0]].shape), node.op.endswith("Symmetric")
            grain = "tensor" if len(node.attributes["axes"]) == rank else "row"
            dtype = "int8" if symmetric else "uint8"
            yield node.inputs[0], {"dtype": dtype, "mode": "dynamic", "symmetric": symmetric, "granularity": grain}


def _with_scale(node: Node, tensor: Tensor, how: Quantization, scale: Array) -> Quantization:
    steps = scale.astype(np.float32).reshape(() if scale.size == 1 else -1)
    zero = None if how.zero_point is None or isinstance(how.zero_point, str) else np.asarray(how.zero_point)
    if zero is not None and steps.ndim and zero.size == 1:
        zero = np.broadcast_to(zero.reshape(-1), steps.shape)
    axis = None if steps.ndim == 0 else len(tensor.shape) - 1 if node.op == "MatMulInteger" else 0
    return replace(how, scale=steps, zero_point=zero, axis=axis)


def _behind(graph: Graph, node: Node) -> Array | None:
    """The constant factor of the scales that the sums are multiplied by."""
    value = node.outputs[0]
    for _ in range(2):  # a Cast, then the product
        readers = graph.consumers.get(value, ())
        if len(readers) != 1 or not readers[0].outputs:
            return None
        if readers[0].op == "Mul":
            other = next((name for name in readers[0].inputs if name != value), "")
            factor = graph.producers.get(other)
            if factor is None or factor.op != "Mul":
                return None
            constants = [graph.constant(name) for name in factor.inputs]
            return next((one for one in constants if one is not None), None)
        value = readers[0].outputs[0]
    return None


def _in_blocks(graph: Graph, node: Node) -> Tensor | None:
    """The packed weights of a MatMulNBits as the matrix [K, N] that they are."""
    packed, scales = graph.constant(node.inputs[1]), graph.constant(node.inputs[2])
    named = node.inputs[3] if len(node.inputs) > 3 else ""
    points = graph.constant(named) if named else None
    if packed is None or scales is None or (named and points is None):
        return None
    _, zero = integers(node, packed, points)
    if zero.dtype.kind == "f" and (zero != np.rint(zero)).any():
        raise NotSupportedYet("zero points between two integers", where=f"node {display_name(node.name)}")
    steps = scales.reshape(zero.shape).astype(np.float32)
    k, n, block = (int(node.attributes[key]) for key in ("K", "N", "block_size"))
    dtype = f"uint{int(node.attributes.get('bits', 4))}"
    how = Quantization(dtype, np.ascontiguousarray(steps.T), np.ascontiguousarray(zero.T).astype(np.uint8), 0, block)
    return Tensor(node.inputs[1], dtype, (k, n), None, how)
