"""Rules on where Q and DQ stand: onnxruntime splits, merges and moves them before it looks for groups.

Each rule takes a `Draft`, changes it, and says whether it did. The rules are facts about onnxruntime 1.31.1 at its
default optimization level, read in its sources (onnxruntime/core/optimizer) and checked against the graphs that it
writes with ``optimized_model_filepath``.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hwq.graph import Array, Node
from hwq.lowering.pairs import RANGES, Affine, affine, explicit, is_dequantize, is_quantize, same_pair
from hwq.lowering.rewriting import Draft, Edge, constant_like

__all__ = ["merge_double_pairs", "propagate_pairs", "split_dequantizes"]

# Ops across which Q moves up and DQ moves down.
MOVERS = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"})


def split_dequantizes(draft: Draft) -> bool:
    """Every reader of a dequantized value gets a DQ of its own (ensure_unique_dq_for_node_unit.cc)."""
    changed = False
    for key, node in draft:
        if not is_dequantize(node):
            continue
        value = node.outputs[0]
        for edge in draft.edges(value)[0 if value in draft.outputs else 1 :]:
            copy = draft.fresh(f"{value}/duplicated", draft.tensors[value])
            draft.add(dataclasses.replace(node, name=draft.unique(f"{node.name}/duplicated"), outputs=(copy,)), key)
            draft.set_input(edge, copy)
            changed = True
    return changed


def merge_double_pairs(draft: Draft) -> bool:
    """Q DQ Q DQ in a row become one pair that covers the common range (double_qdq_pairs_remover.cc)."""
    changed = False
    for key, dequantize in draft:
        parent = draft.maker(dequantize.inputs[0]) if is_dequantize(dequantize) else None
        child = draft.only_reader(dequantize.outputs[0])
        if parent is None or not is_quantize(parent[1]) or draft.only_reader(dequantize.inputs[0]) is None:
            continue
        if child is None or not is_quantize(child[1]) or child[1].outputs[0] in draft.outputs:
            continue
        last = draft.readers(child[1].outputs[0])
        if not last or not same_pair(draft, parent[1], dequantize):
            continue
        if not all(is_dequantize(node) and same_pair(draft, child[1], node) for _, node in last):
            continue
        one, other = affine(draft, dequantize), affine(draft, child[1])
        if one is None or other is None or one.dtype != other.dtype or one.dtype not in {"int8", "uint8"}:
            continue
        if one.offset != other.offset or abs(one.scale.reshape(()) - other.scale.reshape(())) >= 1e-20:
            scale, zero = _common_range(one, other)
            constants = (
                draft.fresh(f"{dequantize.inputs[1]}_common", constant_like(scale)),
                draft.fresh(f"{dequantize.inputs[2]}_common", constant_like(zero)),
            )
            for where, node in (parent, *last):
                draft.exchange(where, dataclasses.replace(node, inputs=(node.inputs[0], *constants)))
        for where, _ in last:
            draft.set_input((where, 0), dequantize.inputs[0])
        draft.remove(child[0])
        draft.remove(key)
        changed = True
    return changed


def _common_range(one: Affine, other: Affine) -> tuple[Array, Array]:
    # All in float32, in onnxruntime's order; the zero point rounds halves away from zero.
    low, high = RANGES[one.dtype]
    f32 = np.float32
    scales = [affine_.scale.reshape(())[()] for affine_ in (one, other)]
    lows = [f32(low - affine_.offset) * scale for affine_, scale in zip((one, other), scales, strict=True)]
    highs = [f32(high - affine_.offset) * scale for affine_, scale in zip((one, other), scales, strict=True)]
    real_low, real_high = max(lows), min(highs)
    with np.errstate(all="ignore"):
        scale = f32(real_high - real_low) / f32(high - low)
        exact = f32(low) - f32(real_low / scale)
    zero = int(np.copysign(np.floor(np.abs(exact) + 0.5), exact)) if np.isfinite(exact) else low
    return np.array(scale, np.float32), np.array(min(max(zero, low), high), one.dtype)


def propagate_pairs(draft: Draft) -> bool:
    """Q moves up and DQ moves down across ops that only move data, as new pairs (qdq_propagation.cc)."""
    nodes = list(draft)
    changed = False
    for key, node in nodes:
        found = affine(draft, node) if is_quantize(node) else None
        if found is not None and found.scalar and found.fixed:
            changed |= _propagate_up(draft, draft.nodes[key])
    for key, node in nodes:
        found = affine(draft, node) if is_dequantize(node) else None
        reader = draft.only_reader(node.outputs[0])
        if found is not None and found.scalar and found.fixed and reader is not None:
            changed |= _propagate_down(draft, draft.nodes[key], reader)
    return changed


def _propagate_up(draft: Draft, quantize: Node) -> bool:
    changed = False
    value = quantize.inputs[0]
    while draft.only_reader(value) is not None:
        mover = draft.maker(value)
        if mover is None or mover[1].op not in MOVERS:
            break
        value = mover[1].inputs[0]
        maker = draft.maker(value)
        if maker is not None and (draft.only_reader(value) is None or is_dequantize(maker[1])):
            break
        _insert_pairs(draft, value, [(mover[0], 0)], quantize)
        changed = True
    return changed


def _propagate_down(draft: Draft, dequantize: Node, reader: tuple[float, Node]) -> bool:
    changed = False
    waiting = [reader]
    while waiting:
        _, mover = waiting.pop()
        if mover.op not in MOVERS or (mover.outputs[0] in draft.outputs and draft.edges(mover.outputs[0])):
            continue
        value = mover.outputs[0]
        edges = [edge for edge in draft.edges(value) if not is_quantize(draft.nodes[edge[0]])]
        if not edges and value not in draft.outputs:
            continue
        _insert_pairs(draft, value, edges, dequantize)
        changed = True
        waiting += [(key, draft.nodes[key]) for key, _ in edges]
    return changed


def _insert_pairs(draft: Draft, value: str, edges: list[Edge], like: Node) -> None:
    """Put one Q after `value` and one DQ before each edge (and before the graph's output, if `value` is one)."""
    maker = draft.maker(value)
    near = maker[0] if maker is not None else draft.keys()[0] - 1
    before = draft.tensors[value]
    source = value
    if value in draft.outputs and maker is not None:
        source = draft.fresh(f"{value}_pre_q", before)
        draft.exchange(
            maker[0],
            dataclasses.replace(
                maker[1], outputs=tuple(source if name == value else name for name in maker[1].outputs)
            ),
        )
    stored = draft.tensors[like.inputs[0] if is_dequantize(like) else like.outputs[0]]
    quantized = draft.fresh(
        f"{value}_q_to_dq", dataclasses.replace(before, name="", dtype=stored.dtype, data=None, quantization=None)
    )
    # Without a zero point only the attribute says which type is stored.
    attributes = {} if explicit(like) else {"output_dtype": stored.dtype}
    near = draft.add(
        Node("QuantizeLinear", draft.unique(f"{value}_q"), (source, *like.inputs[1:]), (quantized,), attributes), near
    )
    results = [draft.fresh(f"{value}_post_dq", before) for _ in edges]
    if value in draft.outputs:
        results.append(value)
    for result in results:
        near = draft.add(
            Node("DequantizeLinear", draft.unique(f"{value}_dq"), (quantized, *like.inputs[1:]), (result,)), near
        )
    for edge, result in zip(edges, results, strict=False):
        draft.set_input(edge, result)
