"""Rules on stored types: onnxruntime quantizes what was left float and turns int8 into uint8.

Each rule takes a `Draft`, changes it, and says whether it did. The rules are facts about onnxruntime 1.31.1 at its
default optimization level, read in its sources (onnxruntime/core/optimizer) and checked against the graphs that it
writes with ``optimized_model_filepath``.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hwq.graph import Array, Node
from hwq.lowering.pairs import Affine, affine, explicit, fits_seven_bits, is_dequantize, is_quantize, made_by_dequantize
from hwq.lowering.rewriting import Draft, constant_like

__all__ = ["quantize_biases", "seems_unsigned", "turn_unsigned"]


def quantize_biases(draft: Draft) -> bool:
    """Float biases, and float weights, of Conv and Gemm between DQ and Q are quantized (weight_bias_quantization.cc).

    The bias becomes int32 with scale f32(input scale * weight scale); a float weight becomes int8 with the range of its
    values widened to hold 0 in 255 steps.
    """
    changed = False
    for key, node in draft:
        if node.op not in {"Conv", "Gemm", "ConvTranspose"} or not _leads_to_quantize(draft, node):
            continue
        first = made_by_dequantize(draft, node.inputs[0])
        given = affine(draft, first[1]) if first is not None else None
        if given is None or not given.scalar:
            continue
        bias = draft.known(node.inputs[2]) if len(node.inputs) > 2 else None
        if len(node.inputs) > 2 and node.inputs[2] and (bias is None or bias.ndim != 1):
            continue
        second = made_by_dequantize(draft, node.inputs[1])
        weights: Affine | None
        if second is not None:
            weights = affine(draft, second[1])
            if weights is None or bias is None or (not weights.scalar and not _bias_axis(node, weights, bias)):
                continue
        else:
            data = draft.known(node.inputs[1])
            if data is None or data.dtype != np.float32:
                continue
            weights = _quantize_weight(draft, key, node, data)
        if bias is not None and bias.dtype == np.float32:
            _quantize_bias(draft, key, bias, given, weights)
        changed = True
    return changed


def _leads_to_quantize(draft: Draft, node: Node) -> bool:
    value = node.outputs[0]
    while True:
        readers = draft.readers(value)
        if len(readers) != 1:
            return False
        reader = readers[0][1]
        if is_quantize(reader):
            return True
        if reader.op not in {"Relu", "Clip"}:
            return False
        value = reader.outputs[0]


def _bias_axis(node: Node, weights: Affine, bias: Array) -> bool:
    turned = node.op == "Gemm" and not int(node.attributes.get("transB", 0))
    expected = 1 if turned or node.op == "ConvTranspose" else 0
    return weights.block is None and weights.scale.shape == (bias.shape[0],) and weights.axis == expected


def _quantize_weight(draft: Draft, key: float, node: Node, data: Array) -> Affine:
    f32 = np.float32
    low, high = f32(min(0.0, float(data.min(initial=0.0)))), f32(max(0.0, float(data.max(initial=0.0))))
    scale = f32(1) if low == high else f32(f32(high - low) / f32(255))
    zero = int(np.rint(np.clip(f32(-128) - f32(low / scale), f32(-128), f32(127))))
    # Q clips after the division and adds the zero point after rounding (numerics b2).
    stored = (np.rint(np.clip(data / scale, f32(-128 - zero), f32(127 - zero))).astype(np.int32) + zero).astype(np.int8)
    weights = Affine("int8", np.array(scale, np.float32), np.array(zero, np.int8))
    name = draft.fresh(f"{node.inputs[1]}_weight_q", constant_like(stored))
    inputs = (
        name,
        draft.fresh(f"{node.inputs[1]}_weight_scale", constant_like(weights.scale)),
        draft.fresh(f"{node.inputs[1]}_weight_zp", constant_like(np.array(zero, np.int8))),
    )
    real = draft.fresh(
        f"{node.inputs[1]}_weight_dq", dataclasses.replace(draft.tensors[node.inputs[1]], name="", data=None)
    )
    draft.add(Node("DequantizeLinear", draft.unique(f"{node.name}_weight_dq"), inputs, (real,)), key, after=False)
    if draft.constant(node.inputs[1]) is None:
        draft.open(name)
    draft.set_input((key, 1), real)
    return weights


def _quantize_bias(draft: Draft, key: float, bias: Array, given: Affine, weights: Affine) -> None:
    node = draft.nodes[key]
    scale = np.asarray(
        given.scale.reshape(()) * (weights.scale.reshape(()) if weights.scalar else weights.scale), np.float32
    )
    with np.errstate(all="ignore"):
        steps = np.rint(bias / scale)
    # float32 -> int32 as x86 converts: NaN and values outside the range become the lowest int32.
    fits = (steps >= np.float32(-(2.0**31))) & (steps < np.float32(2.0**31))
    stored = np.where(fits, steps, np.float32(-(2.0**31))).astype(np.int64).astype(np.int32)
    inputs = (
        draft.fresh(f"{node.inputs[2]}_bias_int32", constant_like(stored)),
        draft.fresh(f"{node.inputs[2]}_bias_scale", constant_like(scale)),
    )
    real = draft.fresh(
        f"{node.inputs[2]}_bias_dq", dataclasses.replace(draft.tensors[node.inputs[2]], name="", data=None)
    )
    draft.add(
        Node(
            "DequantizeLinear", draft.unique(f"{node.name}_bias_dq"), inputs, (real,), {"axis": 0} if scale.ndim else {}
        ),
        key,
        after=False,
    )
    if draft.constant(node.inputs[2]) is None:
        draft.open(inputs[0])
    if not (given.fixed_scale and weights.fixed_scale):
        draft.open(inputs[1])
    draft.set_input((key, 2), real)


def turn_unsigned(draft: Draft) -> bool:
    """int8 Q DQ pairs become uint8 with zero point + 128 (qdq_s8_to_u8.cc), where Q has one reader."""
    changed = False
    for key, node in draft:
        if not is_quantize(node) or not explicit(node):
            continue
        reader = draft.only_reader(node.outputs[0])
        if reader is None or not is_dequantize(reader[1]) or not explicit(reader[1]):
            continue
        one, other = affine(draft, node), affine(draft, reader[1])
        zeros = [draft.constant(part.inputs[2]) for part in (node, reader[1])]
        if any(zero is None or zero.size != 1 or zero.dtype != np.int8 for zero in zeros):
            continue
        if one is not None and other is not None and one.offset != other.offset:
            continue
        offset = int(zeros[0].reshape(-1)[0]) + 128  # type: ignore[union-attr]
        zero = draft.fresh(f"{node.inputs[2]}_u8", constant_like(np.array(offset, np.uint8)))
        value = draft.fresh(
            f"{node.outputs[0]}_u8",
            dataclasses.replace(draft.tensors[node.outputs[0]], name="", dtype="uint8", quantization=None),
        )
        draft.exchange(reader[0], dataclasses.replace(reader[1], inputs=(value, reader[1].inputs[1], zero)))
        attributes = {name: given for name, given in node.attributes.items() if name != "output_dtype"}
        inputs = (*node.inputs[:2], zero)
        draft.exchange(key, dataclasses.replace(node, inputs=inputs, outputs=(value,), attributes=attributes))
        changed = True
    return changed


def seems_unsigned(draft: Draft, dequantize: Node) -> bool:
    """Whether onnxruntime has turned the int8 constant under a DQ into uint8 (its values leave [-64, 64])."""
    tensor = draft.tensors[dequantize.inputs[0]]
    if draft.constant(tensor.name) is None or tensor.dtype != "int8" or fits_seven_bits(tensor):
        return False
    return not explicit(dequantize) or draft.constant(dequantize.inputs[2]) is not None
