"""Operators that are integer in the source already (QLinearConv, QLinearMatMul) become the same groups as DQ..op..Q."""

from __future__ import annotations

import dataclasses

import numpy as np

from hwq.graph import Array, Node, Quantization
from hwq.lowering.grouping import annotate
from hwq.lowering.rewriting import Draft

__all__ = ["adopt_integer_ops"]

# Operator -> (anchor, ((value, scale, zero point) of each operand), (scale, zero point) of the result, bias).
LAYOUTS = {
    "QLinearConv": ("Conv", ((0, 1, 2), (3, 4, 5)), (6, 7), 8),
    "QLinearMatMul": ("MatMul", ((0, 1, 2), (3, 4, 5)), (6, 7), None),
}


def adopt_integer_ops(draft: Draft) -> bool:
    """Rewrite integer operators whose scales and zero points are constant; the others are computed as they stand."""
    changed = False
    for key, node in draft:
        if node.op not in LAYOUTS or node.domain:
            continue
        anchor, operands, (scale, zero), bias = LAYOUTS[node.op]
        weight_axis = 0 if anchor == "Conv" else len(draft.tensors[node.inputs[3]].shape) - 1
        found = [
            _quantization(draft, node, *places, axis)
            for places, axis in zip(operands, (None, weight_axis), strict=True)
        ]
        result = _quantization(draft, node, None, scale, zero, None)
        if any(one is None for one in (*found, result)):
            continue
        inputs = [
            annotate(draft, node.inputs[places[0]], one, key)
            for places, one in zip(operands, found, strict=True)
            if one is not None
        ]
        if bias is not None and len(node.inputs) > bias and node.inputs[bias]:
            inputs.append(node.inputs[bias])
        assert result is not None
        made = node.outputs[0]
        draft.tensors[made] = dataclasses.replace(draft.tensors[made], quantization=result)
        draft.exchange(key, dataclasses.replace(node, op=anchor, inputs=tuple(inputs), body=(node,)))
        changed = True
    return changed


def _quantization(
    draft: Draft, node: Node, value: int | None, scale: int, zero: int, axis: int | None
) -> Quantization | None:
    scales, zeros = draft.constant(node.inputs[scale]), draft.constant(node.inputs[zero])
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
