"""What PyTorch's eager quantized modules compute: DQ..op..Q as fbgemm's integer kernels, and what moves stored values.

Eager operators read and make stored tensors, so values that a ReLU, a pool or a view passes on keep scale and zero point.
A float bias stays float. Read in aten/src/ATen/native/quantized/cpu, compared with torch 2.13.0.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Node
from hwq.lowering.grouping import annotate, declare
from hwq.lowering.pairs import Affine, affine, is_dequantize, is_quantize
from hwq.lowering.rewriting import Draft, constant_like

__all__ = ["group_eager"]

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
SUMS = frozenset({"Add", "Mul"})
# Stored as their operand is.
AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "Resize"})
MOVERS = frozenset({"Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
                    "Unsqueeze", "Resize", "DepthToSpace"})  # fmt: skip
# Of one stored value, element by element, and normalizations: ATen's own kernels.
FUNCTIONS = frozenset({"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "BatchNormalization",
                       "GroupNormalization", "InstanceNormalization", "LayerNormalization"})  # fmt: skip


def group_eager(draft: Draft) -> bool:
    """Turn every DQ..op..Q into one node on quantized tensors, and let ReLU, max-pools and views work on stored values.

    Raises
    ------
    Error
        A quantized product whose operands fbgemm does not take.
    """
    changed = False
    for key, node in draft:
        if node.domain or node.body:
            continue
        if node.op in MOVERS | {"Relu"} and not _bilinear(node):
            changed |= _move(draft, key, node)
        elif node.op in PRODUCTS | SUMS:
            changed |= _fuse(draft, key, node)
        elif node.op in AVERAGES:
            changed |= _average(draft, key, node)
        elif node.op in FUNCTIONS:
            changed |= _apply(draft, key, node)
    for key, node in reversed(list(draft)):
        if is_dequantize(node) and not draft.edges(node.outputs[0]) and node.outputs[0] not in draft.outputs:
            draft.remove(key)
    return changed


def _source(draft: Draft, value: str) -> tuple[Node, Affine] | None:
    """The DQ that makes a value, with its constants."""
    found = draft.maker(value) if value else None
    if found is None or not is_dequantize(found[1]):
        return None
    pair = affine(draft, found[1])
    return None if pair is None else (found[1], pair)


def _move(draft: Draft, key: float, node: Node) -> bool:
    """Let a node work on the stored value under its DQ; a DQ behind it serves whoever reads real numbers."""
    found = _source(draft, node.inputs[0])
    if found is not None and node.op == "Transpose" and not found[1].scalar:
        return _transpose(draft, key, node, *found)
    if found is None or not found[1].scalar:
        return False
    dequantize, pair = found
    dtype = draft.tensors[dequantize.inputs[0]].dtype
    outputs = [
        draft.fresh(f"{made}_stored", dataclasses.replace(draft.tensors[made], name="", dtype=dtype)) if made else ""
        for made in node.outputs
    ]
    value = annotate(draft, dequantize.inputs[0], pair.quantization(), key)
    inputs: tuple[str, ...] = (value, *node.inputs[1:])
    draft.exchange(key, dataclasses.replace(node, inputs=inputs, outputs=tuple(outputs), body=(node,)))
    for made, stored in zip(node.outputs, outputs, strict=True):
        if not made:
            continue
        declare(draft, stored, pair.quantization())
        again = dataclasses.replace(
            dequantize,
            name=draft.unique(f"{node.name}_dequantize"),
            inputs=(stored, *dequantize.inputs[1:]),
            outputs=(made,),
        )
        draft.add(again, key)
    return True


def _transpose(draft: Draft, key: float, node: Node, dequantize: Node, pair: Affine) -> bool:
    """Transpose constant weights with their channels now."""
    data = draft.constant(dequantize.inputs[0])
    order = node.attributes.get("perm")
    if data is None or order is None or pair.block is not None or pair.axis is None:
        return False
    turned = np.ascontiguousarray(data.transpose([int(one) for one in order]))
    stored = draft.fresh(f"{node.outputs[0]}_stored", constant_like(turned))
    attributes = {**dequantize.attributes, "axis": [int(one) for one in order].index(pair.axis)}
    draft.exchange(
        key,
        dataclasses.replace(
            dequantize,
            name=node.name,
            inputs=(stored, *dequantize.inputs[1:]),
            outputs=node.outputs,
            attributes=attributes,
        ),
    )
    return True


def _fuse(draft: Draft, key: float, node: Node) -> bool:
    operands = [_source(draft, value) for value in node.inputs[:2]]
    chain = [(key, node)]
    reader = draft.only_reader(node.outputs[0])
    if reader is not None and reader[1].op == "Relu":
        chain.append(reader)
        reader = draft.only_reader(reader[1].outputs[0])
    if reader is None or not is_quantize(reader[1]) or any(one is None for one in operands):
        return False
    result = affine(draft, reader[1])
    (left, first), (right, second) = (one for one in operands if one is not None)
    if result is None or not result.scalar or not first.scalar:
        return False
    bias: tuple[str, ...] = ()
    if node.op in PRODUCTS:
        plain = all(float(node.attributes.get(name, 1.0)) == 1.0 for name in ("alpha", "beta"))
        if first.dtype != "uint8" or second.dtype != "int8" or result.dtype != "uint8" or not plain:
            raise Error(
                "fbgemm has no kernel for this product",
                where=f"node {node.name} ({node.op})",
                why=f"it multiplies {first.dtype} by {second.dtype} and makes {result.dtype}",
                remedy="plan uint8 activations and int8 weights",
            )
        offsets = _bias(draft, node)
        if len(node.inputs) > 2 and node.inputs[2]:
            if offsets is None:
                return False
            bias = (draft.fresh(f"{node.name}_bias", constant_like(offsets)),)
    elif not second.scalar or {first.dtype, second.dtype, result.dtype} != {"uint8"}:
        return False
    inputs = (
        annotate(draft, left.inputs[0], first.quantization(), key),
        annotate(draft, right.inputs[0], second.quantization(), key),
        *bias,
    )
    made = reader[1].outputs[0]
    body = (*dict.fromkeys((left, right)), *(part for _, part in chain), reader[1])
    for other, _ in [*chain[1:], reader]:
        draft.remove(other)
    draft.exchange(key, dataclasses.replace(node, inputs=inputs, outputs=(made,), body=body))
    declare(draft, made, result.quantization())
    return True


def _bilinear(node: Node) -> bool:
    return node.op == "Resize" and node.attributes.get("mode", "nearest") != "nearest"


def _average(draft: Draft, key: float, node: Node) -> bool:
    """Let an average that is stored as its input is work on stored values."""
    found, reader = _source(draft, node.inputs[0]), draft.only_reader(node.outputs[0])
    if found is None or reader is None or not is_quantize(reader[1]):
        return False
    (dequantize, first), result = found, affine(draft, reader[1])
    if result is None or not first.scalar or not result.scalar or (first.dtype, result.dtype) != ("uint8", "uint8"):
        return False
    if (first.scale.item(), first.offset) != (result.scale.item(), result.offset):
        return False
    inputs = (annotate(draft, dequantize.inputs[0], first.quantization(), key), *node.inputs[1:])
    made = reader[1].outputs[0]
    draft.remove(reader[0])
    draft.exchange(key, dataclasses.replace(node, inputs=inputs, outputs=(made,), body=(dequantize, node, reader[1])))
    declare(draft, made, result.quantization())
    return True


def _apply(draft: Draft, key: float, node: Node) -> bool:
    """Let a function of a stored value, with constant parameters, read and make stored values."""
    found, reader = _source(draft, node.inputs[0]), draft.only_reader(node.outputs[0])
    chain = [node]
    if reader is not None and reader[1].op == "Relu" and node.op == "BatchNormalization":
        chain.append(reader[1])
        swallowed, reader = reader[0], draft.only_reader(reader[1].outputs[0])
    if found is None or reader is None or not is_quantize(reader[1]):
        return False
    (dequantize, first), result = found, affine(draft, reader[1])
    if result is None or not first.scalar or not result.scalar or (first.dtype, result.dtype) != ("uint8", "uint8"):
        return False
    # A clamp keeps scale and zero point.
    if node.op == "Clip" and (first.scale.item(), first.offset) != (result.scale.item(), result.offset):
        return False
    inputs = [annotate(draft, dequantize.inputs[0], first.quantization(), key), *node.inputs[1:]]
    if node.op == "PRelu":
        slopes = _source(draft, node.inputs[1])
        if slopes is None or slopes[1].dtype != "uint8" or not slopes[1].scalar:
            return False
        inputs[1] = annotate(draft, slopes[0].inputs[0], slopes[1].quantization(), key)
    elif any(value and draft.constant(value) is None for value in inputs[1:]):
        return False
    made = reader[1].outputs[0]
    if len(chain) > 1:
        draft.remove(swallowed)
    draft.remove(reader[0])
    body = (dequantize, *chain, reader[1])
    draft.exchange(key, dataclasses.replace(node, inputs=tuple(inputs), outputs=(made,), body=body))
    declare(draft, made, result.quantization())
    return True


def _bias(draft: Draft, node: Node) -> Array | None:
    """The constant float bias; an int32 one is dequantized, since fbgemm takes floats."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return None
    given = draft.constant(node.inputs[2])
    if given is None:
        found = _source(draft, node.inputs[2])
        stored = None if found is None else draft.constant(found[0].inputs[0])
        if found is None or stored is None:
            return None
        points = np.int64(0) if found[1].zero_point is None else found[1].zero_point.astype(np.int64)
        given = (stored.astype(np.int64) - points).astype(np.float32) * found[1].scale
    return np.ascontiguousarray(given.reshape(-1), np.float32)
