"""The dialect hwq's own groups: products that no kernel of onnxruntime takes and ours do.

Static integers of any width and signedness that the kernels have, with one scale a tensor, a channel or a group of the sum;
float activations with stored weights; activations quantized at run time. Bounds and orders: kernels/README.md.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hwq.graph import Array, Node, Quantization
from hwq.lowering.grouping import FUSED, Site, annotate, merge, surroundings
from hwq.lowering.pairs import Affine, affine, is_quantize, made_by_dequantize
from hwq.lowering.rewriting import Draft, constant_like

__all__ = ["group_integer_products", "group_own", "group_run_time", "swallow_relus", "with_clamp"]

# Of float activations too; a transposed convolution of floats has no integers to gain.
WEIGHT_ONLY = frozenset({"Conv", "Gemm", "MatMul"})
PRODUCTS = WEIGHT_ONLY | {"ConvTranspose"}
INTEGER_PRODUCTS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
BYTES = frozenset({"int8", "uint8"})
FEW_BITS = frozenset({"int4", "uint4", "int2", "uint2"})
ACTIVATIONS = BYTES | {"int16", "uint16"}
# The longest group of 8-bit weights whose sums float32 holds exactly (kernels/README.md).
EXACT_GROUP = 256


def group_run_time(draft: Draft) -> bool:
    """Dequantize at run time, the product, dequantized constant weights: one group of domain ``hwq`` on stored integers."""
    changed = False
    for key, node in draft:
        if node.op not in PRODUCTS or node.domain or node.body or not _plain(draft, node):
            continue
        first, second = draft.maker(node.inputs[0]), made_by_dequantize(draft, node.inputs[1])
        if first is None or second is None or draft.only_reader(node.inputs[1]) is None:
            continue
        back = first[1]
        if not _made_at_run_time(draft, back):
            continue
        weights = _weights(draft, node, second[1])
        if weights is None or not _bias_is_plain(draft, node) or not _short_groups(weights):
            continue
        q, s, z = back.inputs
        stored = draft.tensors[q]
        draft.tensors[q] = dataclasses.replace(stored, quantization=Quantization(stored.dtype, s, z))
        kept = annotate(draft, second[1].inputs[0], weights.quantization(), key)
        bias = node.inputs[2] if len(node.inputs) > 2 else ""
        body = (back, second[1], node)
        made = dataclasses.replace(node, domain="hwq", inputs=(q, kept, bias, s, z), body=body)
        only = draft.only_reader(node.inputs[0]) is not None
        draft.exchange(key, made)
        draft.remove(second[0])
        if only:
            draft.remove(first[0])
        changed = True
    return changed


def group_integer_products(draft: Draft) -> bool:
    """DynamicQuantizeLinear, an integer product, Cast, Mul by the scales, perhaps Add: the same group, the same bits."""
    changed = False
    for key, node in draft:
        if node.op not in INTEGER_PRODUCTS or node.domain or node.layout == "NHWC" or len(node.inputs) < 3:
            continue
        maker, weights = draft.maker(node.inputs[0]), draft.constant(node.inputs[1])
        points = draft.constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else np.zeros((), np.int8)
        if (
            maker is None
            or maker[1].op != "DynamicQuantizeLinear"
            or maker[1].outputs[::2] != (node.inputs[0], node.inputs[2])
        ):
            continue
        if weights is None or points is None or points.any() or draft.tensors[node.inputs[1]].dtype not in BYTES:
            continue
        if weights.ndim != 2 and not (node.op == "ConvInteger" and 3 <= weights.ndim <= 5):
            continue
        cast = draft.only_reader(node.outputs[0])
        times = draft.only_reader(cast[1].outputs[0]) if cast is not None and cast[1].op == "Cast" else None
        if cast is None or times is None or times[1].op != "Mul":
            continue
        count, rank = (
            (int(weights.shape[0]), weights.ndim - 2) if node.op == "ConvInteger" else (int(weights.shape[1]), 0)
        )
        steps = _run_time_factor(draft, times[1], cast[1].outputs[0], maker[1].outputs[1])
        scales = None if steps is None else _per_column(steps, count, rank)
        if scales is None:
            continue
        parts, bias, last = [cast, times], "", times[1]
        plus = draft.only_reader(last.outputs[0])
        if plus is not None and plus[1].op == "Add" and not plus[1].domain:
            added = [draft.constant(value) for value in plus[1].inputs if value != last.outputs[0]]
            flat = _per_column(added[0], count, rank) if len(added) == 1 and added[0] is not None else None
            if flat is not None:
                parts, last = [*parts, plus], plus[1]
                wide = np.ascontiguousarray(np.broadcast_to(flat, (count,)))
                bias = draft.fresh(f"{node.name}_bias", constant_like(wide))
        axis = None if scales.ndim == 0 else 0 if node.op == "ConvInteger" else 1
        kept = annotate(
            draft, node.inputs[1], Quantization(draft.tensors[node.inputs[1]].dtype, scales, axis=axis), key
        )
        made = dataclasses.replace(
            node, op=INTEGER_PRODUCTS[node.op], domain="hwq", outputs=last.outputs, body=(node, *(one for _, one in parts)),
            inputs=(node.inputs[0], kept, bias, *maker[1].outputs[1:]),
        )  # fmt: skip
        stored = draft.tensors[node.inputs[0]]
        draft.tensors[stored.name] = dataclasses.replace(
            stored, quantization=Quantization(stored.dtype, maker[1].outputs[1], maker[1].outputs[2])
        )
        for other, _ in parts:
            draft.remove(other)
        draft.exchange(key, made)
        changed = True
    return changed


def swallow_relus(draft: Draft) -> bool:
    """A Relu behind a group whose result is float: weights alone, or run-time ranges. Its bits do not depend on the place."""
    changed = False
    for key, node in draft:
        kind = node.op in PRODUCTS and node.body and draft.tensors[node.outputs[0]].quantization is None
        if not kind or (node.domain != "hwq" and draft.tensors[node.inputs[0]].quantization is not None):
            continue
        reader = draft.only_reader(node.outputs[0])
        if reader is None or reader[1].op != "Relu" or reader[1].domain:
            continue
        draft.remove(reader[0])
        draft.exchange(key, dataclasses.replace(node, outputs=reader[1].outputs, body=(*node.body, reader[1])))
        changed = True
    return changed


def _run_time_factor(draft: Draft, times: Node, value: str, scale: str) -> Array | None:
    """The constant that multiplies the run-time scale before a Mul takes it to `value`; None where it is another Mul."""
    factors = [name for name in times.inputs if name != value]
    product = draft.maker(factors[0]) if len(factors) == 1 else None
    if product is None or product[1].op != "Mul" or scale not in product[1].inputs:
        return None
    constants = [draft.constant(name) for name in product[1].inputs if name != scale]
    return (
        constants[0] if len(constants) == 1 and constants[0] is not None and constants[0].dtype == np.float32 else None
    )


def _per_column(values: Array, count: int, rank: int) -> Array | None:
    """One float32 number, or one a column before `rank` dimensions of space, as () or (count,)."""
    if values.dtype != np.float32 or values.ndim > rank + 2:
        return None
    if values.size == 1:
        return values.reshape(())
    fits = values.ndim > rank and values.shape[values.ndim - rank - 1] == values.size == count
    return np.ascontiguousarray(values.reshape(-1)) if fits else None


def group_own(draft: Draft) -> bool:
    """DQ, the product and Q where onnxruntime fuses nothing; and products of floats with dequantized constant weights."""
    changed = False
    for key, node in draft:
        if node.op not in PRODUCTS or node.domain or node.body or not _plain(draft, node):
            continue
        theirs, bare = surroundings(draft, key, node), _without_quantize(draft, key, node)
        given = [site for site in (theirs, with_clamp(draft, key, node), bare) if site is not None]
        fused = theirs is not None and node.op in FUSED and FUSED[node.op](theirs)
        found = (_static(site, fused) for site in given)
        fitting = next((site for site in found if site is not None), None) or _weight_only(bare)
        if fitting is not None:
            merge(draft, fitting)
            changed = True
    return changed


def with_clamp(draft: Draft, key: float, node: Node) -> Site | None:
    """The site where a Relu or Clip stands before the Q: it clamps stored values between its bounds' own (Q is monotone)."""
    reader = draft.only_reader(node.outputs[0])
    if reader is None or reader[1].op not in {"Relu", "Clip"} or reader[1].domain:
        return None
    if any(value and draft.constant(value) is None for value in reader[1].inputs[1:]):
        return None
    quantizes = [found for found in draft.readers(reader[1].outputs[0]) if is_quantize(found[1])]
    return dataclasses.replace(_without_quantize(draft, key, node), quantizes=tuple(quantizes), clip=reader)


def _without_quantize(draft: Draft, key: float, node: Node) -> Site:
    found = [made_by_dequantize(draft, value) for value in node.inputs]
    return Site(draft, key, node, tuple(one for one in found if one is not None), (), None)


def _made_at_run_time(draft: Draft, back: Node) -> bool:
    """Whether a node dequantizes what one node quantizes over its own range."""
    maker = draft.maker(back.inputs[0])
    if maker is None or maker[1].outputs != back.inputs:
        return False
    pair = maker[1].kind, back.kind
    return pair in {
        ("DynamicQuantizeLinear", "DequantizeLinear"),
        ("hwq::DynamicQuantizeRows", "hwq::DequantizeRows"),
        ("hwq::DynamicQuantizeRowsSymmetric", "hwq::DequantizeRows"),
    }


def _plain(draft: Draft, node: Node) -> bool:
    get = node.attributes.get
    rank = len(draft.tensors[node.inputs[1]].shape)
    if node.op in {"Conv", "ConvTranspose"}:
        return 3 <= rank <= 5
    return rank == 2 and not get("transA", 0) and get("alpha", 1.0) == 1.0 and get("beta", 1.0) == 1.0


def _sum_axis(node: Node) -> tuple[int, int]:
    """(axis of the output channels, axis of the sum) of a weight."""
    if node.op in {"Conv", "ConvTranspose"}:
        return (0, 1) if node.op == "Conv" else (1, 0)
    return (0, 1) if node.attributes.get("transB", 0) else (1, 0)


def _weights(draft: Draft, node: Node, dequantize: Node) -> Affine | None:
    """The constants of the weights, where a kernel takes their type and granularity."""
    found, tensor = affine(draft, dequantize), draft.tensors[dequantize.inputs[0]]
    data = draft.constant(tensor.name)
    if found is None or data is None or tensor.dtype not in BYTES | FEW_BITS or node.layout == "NHWC":
        return None
    channel, along = _sum_axis(node)
    if found.scalar:
        return found
    if found.block is None:
        return found if found.axis == channel and found.scale.ndim == 1 else None
    if found.axis != along or found.scale.ndim != data.ndim:
        return None
    groups = int(node.attributes.get("group", 1)) if node.op == "ConvTranspose" else 1
    if groups > 1 and data.shape[0] // groups % found.block:  # a scale of two groups
        return None
    return found


def _short_groups(weights: Affine) -> bool:
    return weights.block is None or weights.dtype in FEW_BITS or weights.block <= EXACT_GROUP


def _bias_is_plain(draft: Draft, node: Node) -> bool:
    """Whether there is no bias, or a constant float one with a value a column."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return True
    bias = draft.constant(node.inputs[2])
    return bias is not None and bias.dtype == np.float32 and bias.ndim <= 2 and (bias.ndim < 2 or bias.shape[0] == 1)


def _static(site: Site, fused: bool) -> Site | None:
    """Stored activations times stored weights; `fused`: onnxruntime fuses it."""
    draft, node = site.draft, site.node
    feeds = [maker.outputs[0] for _, maker in site.dequantizes]
    if len(feeds) < 2 or feeds[:2] != list(node.inputs[:2]) or len(feeds) != len(set(feeds)):
        return None
    given, weights = affine(draft, site.dequantizes[0][1]), _weights(draft, node, site.dequantizes[1][1])
    if given is None or weights is None or not given.scalar or given.dtype not in ACTIVATIONS:
        return None
    if any(draft.only_reader(feed) is None for feed in feeds):
        return None
    wide = given.dtype.endswith("16")
    if node.op == "ConvTranspose" and len(feeds) > 2:
        return None
    if not _short_groups(weights) or (wide and weights.block is not None):
        return None
    if len(feeds) > 2:
        bias = affine(draft, site.dequantizes[2][1])
        data = draft.constant(site.dequantizes[2][1].inputs[0])
        if bias is None or bias.dtype != "int32" or weights.block is not None or data is None or data.ndim != 1:
            return None
        expected = (given.scale.reshape(()) * weights.scale.reshape(-1)).astype(np.float32)
        if not np.array_equal(np.broadcast_to(expected, bias.scale.reshape(-1).shape), bias.scale.reshape(-1)):
            return None
    elif not _bias_is_plain(draft, node):
        return None
    # What onnxruntime fuses stays as it fuses it.
    ours = wide or weights.block is not None or not fused
    if site.quantizes:
        return site if ours and _quantizes(site) else None
    return site if ours and site.clip is None else None


def _quantizes(site: Site) -> bool:
    """Whether the result goes to one Q alone, of a type that the kernels' epilogue makes."""
    if len(site.quantizes) != 1 or not site.complete(len(site.dequantizes)):
        return False
    made = affine(site.draft, site.quantizes[0][1])
    return made is not None and made.scalar and made.dtype in ACTIVATIONS


def _weight_only(site: Site) -> Site | None:
    """Float activations times stored weights."""
    draft, node = site.draft, site.node
    if node.op not in WEIGHT_ONLY or len(site.dequantizes) != 1 or site.dequantizes[0][1].outputs[0] != node.inputs[1]:
        return None
    if draft.only_reader(node.inputs[1]) is None or draft.tensors[node.inputs[0]].dtype != "float32":
        return None
    if _weights(draft, node, site.dequantizes[0][1]) is None or not _bias_is_plain(draft, node):
        return None
    return dataclasses.replace(site, quantizes=(), clip=None)
