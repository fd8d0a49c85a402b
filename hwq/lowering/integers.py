"""Operators that are integer in the source already become the same groups as DQ..op..Q: the standard's and onnxruntime's."""

from __future__ import annotations

import dataclasses

import numpy as np

from hwq.graph import Array, Node, Quantization
from hwq.lowering.grouping import annotate
from hwq.lowering.rewriting import Draft
from hwq.ops.contributed import LAYOUTS, Layout, anchor, triples

__all__ = ["adopt_integer_ops"]

# The standard's own, laid out as `hwq.ops.contributed` lays out onnxruntime's.
STANDARD = {
    "QLinearConv": Layout("Conv", ((0, 1, 2), (3, 4, 5)), (6, 7), bias=8),
    "QLinearMatMul": Layout("MatMul", ((0, 1, 2), (3, 4, 5)), (6, 7)),
}
OWN = "com.microsoft"


def adopt_integer_ops(draft: Draft) -> bool:
    """Rewrite integer operators whose scales and zero points are constant; the others are computed as they stand."""
    changed = False
    for key, node in draft:
        layout = LAYOUTS.get(node.op) if node.domain == OWN else STANDARD.get(node.op) if not node.domain else None
        if layout is None:
            continue
        places = triples(node) if node.domain else layout.operands
        axes: list[int | None] = [None] * len(places)
        if layout.op in {"Conv", "MatMul", "Gemm"}:
            rank = len(draft.tensors[node.inputs[3]].shape)
            axes[1] = 0 if layout.op == "Conv" or node.attributes.get("transB") else rank - 1
        found = [_quantization(draft, node, *place, axis) for place, axis in zip(places, axes, strict=True)]
        open_result = layout.op == "Gemm" and not _given(node, layout.result[0])
        result = None if open_result else _quantization(draft, node, places[0][0], *layout.result, None)
        if any(one is None for one in found) or (result is None and not open_result):
            continue
        made = anchor(node) if node.domain else dataclasses.replace(node, op=layout.op)
        inputs = [] if layout.plain == () else [node.inputs[index] for index, _ in layout.plain]
        inputs += [
            annotate(draft, node.inputs[place[0]], one, key) for place, one in zip(places, found, strict=True) if one
        ]
        if layout.bias is not None and _given(node, layout.bias):
            inputs.append(node.inputs[layout.bias])
        output = node.outputs[0]
        if result is not None:
            draft.tensors[output] = dataclasses.replace(draft.tensors[output], quantization=result)
        draft.exchange(key, dataclasses.replace(made, inputs=tuple(inputs), outputs=node.outputs, body=(node,)))
        changed = True
    return changed


def _given(node: Node, index: int) -> bool:
    return len(node.inputs) > index and bool(node.inputs[index])


def _quantization(draft: Draft, node: Node, value: int, scale: int, zero: int, axis: int | None) -> Quantization | None:
    """Constant scale and zero point of an operand, or (with the first operand's type where no zero point says it) of the result."""
    scales = draft.known(node.inputs[scale])
    if _given(node, zero):
        zeros = draft.known(node.inputs[zero])
    else:
        zeros = np.zeros((), draft.tensors[node.inputs[value]].dtype)
    if scales is None or zeros is None or scales.dtype != np.float32:
        return None
    dtype = str(zeros.dtype)
    if scales.size == 1 and zeros.size == 1:
        return Quantization(dtype, scales.reshape(()), zeros.reshape(()))
    if axis is None or scales.ndim > 1 or zeros.ndim > 1:  # rows of the left operand: no kernel takes them
        return None
    channels = max(scales.size, zeros.size)
    return Quantization(dtype, _spread(scales, channels), _spread(zeros, channels), axis=axis)


def _spread(values: Array, channels: int) -> Array:
    return np.ascontiguousarray(np.broadcast_to(values.reshape(-1), (channels,)))
