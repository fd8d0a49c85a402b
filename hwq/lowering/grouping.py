"""DQ..op..Q becomes one group: which ops onnxruntime fuses with the Q and DQ around them, and under which conditions.

The conditions are facts about onnxruntime 1.31.1 on x86-64, read in qdq_transformer/selectors_actions of its sources
and checked against the graphs that it writes. A group keeps the op's name and attributes, reads and makes quantized
tensors, and holds the source nodes in its body.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from hwq.graph import Node, Quantization
from hwq.lowering.conversion import seems_unsigned
from hwq.lowering.pairs import EIGHT_BIT, Affine, affine, is_dequantize, is_quantize, made_by_dequantize, same_pair
from hwq.lowering.rewriting import Draft, same_quantization
from hwq.lowering.simplification import clip_is_redundant

__all__ = ["FUSED", "Site", "annotate", "declare", "drop_inverse_pairs", "group", "merge", "surroundings"]


@dataclass(frozen=True)
class Site:
    """An op with the Q and DQ nodes around it.

    `dequantizes` are those among the inputs, in order; `quantizes` those among the readers; `clip` is a Relu or Clip in
    between that the Q makes redundant.
    """

    draft: Draft
    key: float
    node: Node
    dequantizes: tuple[tuple[float, Node], ...]
    quantizes: tuple[tuple[float, Node], ...]
    clip: tuple[float, Node] | None

    @property
    def actual_inputs(self) -> int:
        """Inputs that are present."""
        return sum(bool(value) for value in self.node.inputs)

    def type_of(self, index: int) -> str:
        """Stored type under one DQ, as onnxruntime sees it after its own conversions of int8 constants."""
        dequantize = self.dequantizes[index][1]
        return "uint8" if seems_unsigned(self.draft, dequantize) else self.draft.tensors[dequantize.inputs[0]].dtype

    @property
    def output_type(self) -> str:
        """Stored type that the first Q makes."""
        return self.draft.tensors[self.quantizes[0][1].outputs[0]].dtype

    def complete(self, dequantizes: int | None = None, open_output: bool = False) -> bool:
        """Whether every input (or so many) comes from a DQ of its own and every output goes to exactly one Q."""
        if len(self.dequantizes) != (self.actual_inputs if dequantizes is None else dequantizes):
            return False
        if any(self.draft.only_reader(node.outputs[0]) is None for _, node in self.dequantizes):
            return False
        if not self.quantizes:
            return open_output
        last = self.node if self.clip is None else self.clip[1]
        outputs = [value for value in last.outputs if value]
        return len(outputs) == len(self.quantizes) and all(
            self.draft.only_reader(value) is not None for value in outputs
        )

    def constants(self) -> bool:
        """Whether all scales and zero points are known, and every activation's is one number."""
        found = [affine(self.draft, node) for _, node in (*self.dequantizes, *self.quantizes)]
        return all(one is not None for one in found)


def surroundings(draft: Draft, key: float, node: Node) -> Site | None:
    """The Q and DQ around a node; None where a Relu or Clip follows that its Q does not make redundant."""
    dequantizes = [made_by_dequantize(draft, value) for value in node.inputs]
    clip = None
    last = node
    reader = draft.only_reader(node.outputs[0]) if len(node.outputs) == 1 else None
    if reader is not None and reader[1].op in {"Relu", "Clip"} and draft.only_reader(reader[1].outputs[0]) is not None:
        clip, last = reader, reader[1]
    quantizes = [found for value in last.outputs for found in draft.readers(value) if is_quantize(found[1])]
    if clip is not None and (len(quantizes) != 1 or not clip_is_redundant(draft, clip[1], quantizes[0][1])):
        return None
    return Site(draft, key, node, tuple(found for found in dequantizes if found is not None), tuple(quantizes), clip)


def _unary(site: Site) -> bool:
    return site.complete(1) and site.type_of(0) == site.output_type and site.output_type in EIGHT_BIT and _scalar(site)


def _variadic(site: Site) -> bool:
    types = {site.type_of(index) for index in range(len(site.dequantizes))}
    return site.complete() and types == {site.output_type} and site.output_type in EIGHT_BIT and _scalar(site)


def _where(site: Site) -> bool:
    types = {site.type_of(index) for index in range(len(site.dequantizes))}
    return site.complete(2) and types == {site.output_type} and site.output_type in EIGHT_BIT and _scalar(site)


def _conv(site: Site) -> bool:
    # int8 activations stay float on x86-64 unless session.qdqisint8allowed is set.
    if (
        not site.complete()
        or site.type_of(0) != "uint8"
        or site.output_type != "uint8"
        or site.type_of(1) not in EIGHT_BIT
    ):
        return False
    return _bias_is_int32(site) and _scalar(site, skip=(1, 2)) and _weight_axis(site, 0) and _bias_scale_fits(site)


def _bias_scale_fits(site: Site) -> bool:
    """Whether the bias has the accumulators' scale, input scale * weight scale, within 1 % and 1e-6 (measured)."""
    if len(site.dequantizes) < 3:
        return True
    given, weights, bias = (affine(site.draft, node) for _, node in site.dequantizes)
    assert given is not None and weights is not None and bias is not None
    if not (given.fixed_scale and weights.fixed_scale and bias.fixed):
        return False
    channels = site.draft.tensors[site.node.inputs[1]].shape[0]
    expected = (given.scale.reshape(()) * weights.scale.reshape(-1)).astype(np.float32)
    found = bias.scale.reshape(-1)
    if found.size not in (1, channels):
        return False
    return bool(np.all(np.abs(found - expected) <= np.float32(1e-6) + np.float32(0.01) * np.abs(expected)))


def _matmul(site: Site) -> bool:
    if len(site.dequantizes) != 2 or site.type_of(0) != "uint8" or site.type_of(1) not in EIGHT_BIT:
        return False
    if site.quantizes and not (site.complete() and site.output_type == "uint8"):
        return False
    if any(site.draft.only_reader(node.outputs[0]) is None for _, node in site.dequantizes):
        return False
    rank = len(site.draft.tensors[site.node.inputs[1]].shape)
    return _scalar(site, skip=(1,)) and _weight_axis(site, rank - 1)


def _gemm(site: Site) -> bool:
    if not site.complete(open_output=True) or site.type_of(0) not in EIGHT_BIT or site.type_of(1) not in EIGHT_BIT:
        return False
    if site.type_of(0) == "int8" and site.type_of(1) != "int8":
        return False
    if site.quantizes and site.output_type != site.type_of(0):
        return False
    if len(site.dequantizes) > 2 and any(
        float(site.node.attributes.get(name, 1.0)) != 1.0 for name in ("alpha", "beta")
    ):
        return False
    axis = 0 if int(site.node.attributes.get("transB", 0)) else 1
    return _bias_is_int32(site) and _scalar(site, skip=(1, 2)) and _weight_axis(site, axis)


def _weight_only(site: Site) -> bool:
    """A float activation times a dequantized constant matrix: MatMulNBits (DQMatMulNodeGroupSelector)."""
    node, get = site.node, site.node.attributes.get
    if len(site.dequantizes) != 1 or site.quantizes or site.clip is not None:
        return False
    if site.dequantizes[0][1].outputs[0] != node.inputs[1] or not site.complete(1, open_output=True):
        return False
    if node.op == "Gemm":
        plain = get("alpha", 1.0) == 1.0 and get("beta", 1.0) == 1.0 and not get("transA", 0) and not get("transB", 0)
        if not plain or (site.actual_inputs > 2 and len(site.draft.tensors[node.inputs[2]].shape) != 1):
            return False
    weight = site.draft.tensors[site.dequantizes[0][1].inputs[0]]
    found = affine(site.draft, site.dequantizes[0][1])
    if found is None or not found.fixed or site.draft.constant(weight.name) is None or len(weight.shape) != 2:
        return False
    if weight.dtype not in EIGHT_BIT | {"int4", "uint4", "int2", "uint2"}:
        return False
    # The selector compares the attribute itself: it takes no axis that counts from the end.
    axis = int(site.dequantizes[0][1].attributes.get("axis", 1))
    if found.block is not None:
        return axis == 0 and found.block >= 16 and found.block & (found.block - 1) == 0
    return found.scale.ndim == 0 or (found.scale.shape == (weight.shape[1],) and axis == 1)


def _any_matmul(site: Site) -> bool:
    return _matmul(site) or _weight_only(site)


def _any_gemm(site: Site) -> bool:
    return _gemm(site) or _weight_only(site)


def _bias_is_int32(site: Site) -> bool:
    return len(site.dequantizes) < 3 or site.type_of(2) == "int32"


def _scalar(site: Site, skip: tuple[int, ...] = ()) -> bool:
    """Whether activations have one scale each; `skip` names the inputs that may have one a channel."""
    checked = [found for index, (_, found) in enumerate(site.dequantizes) if index not in skip] + [
        found for _, found in site.quantizes
    ]
    pairs = [affine(site.draft, node) for node in checked]
    return site.constants() and all(pair is not None and pair.scalar for pair in pairs)


def _weight_axis(site: Site, axis: int) -> bool:
    """Whether per-channel weights have their scales along the output channels, which is all that the kernels take."""
    weights = affine(site.draft, site.dequantizes[1][1])
    return weights is not None and (
        weights.scalar or (weights.block is None and weights.axis == axis and weights.scale.ndim == 1)
    )


def _mover(site: Site, sixteen: bool = True, positive: bool = False, outputs: int = 1) -> bool:
    if site.clip is not None or not site.complete(1) or len(site.quantizes) != outputs:
        return False
    dequantize = site.dequantizes[0][1]
    if not sixteen and site.type_of(0) not in EIGHT_BIT:
        return False
    found = affine(site.draft, dequantize)
    if found is None or (positive and not (found.scalar and bool(found.scale.reshape(()) > 0))):
        return False
    return all(same_pair(site.draft, quantize, dequantize) for _, quantize in site.quantizes)


def _max_pool(site: Site) -> bool:
    # The rule names MaxPool-12; the type of the second output does not matter, it is never asked for here.
    return _mover(site, sixteen=False, positive=True)


def _resize(site: Site) -> bool:
    mode = str(site.node.attributes.get("mode", "nearest"))
    return mode == "nearest" and _mover(site, sixteen=False)


def _split(site: Site) -> bool:
    return _mover(site, outputs=sum(bool(value) for value in site.node.outputs))


def _arg_max(site: Site) -> bool:
    if site.clip is not None or len(site.dequantizes) != 1 or site.type_of(0) not in EIGHT_BIT:
        return False
    found = affine(site.draft, site.dequantizes[0][1])
    only = site.draft.only_reader(site.dequantizes[0][1].outputs[0]) is not None
    return only and found is not None and found.fixed and found.scalar and found.zero_point is not None


# Every op that onnxruntime 1.31.1 fuses with the Q and DQ around it, and its condition; the rest are float islands.
FUSED: Mapping[str, Callable[[Site], bool]] = MappingProxyType(
    {
        "Conv": _conv,
        "MatMul": _any_matmul,
        "Gemm": _any_gemm,
        "Add": _variadic,
        "Mul": _variadic,
        "Concat": _variadic,
        "Where": _where,
        "AveragePool": _unary,
        "GlobalAveragePool": _unary,
        "LeakyRelu": _unary,
        "Sigmoid": _unary,
        "Softmax": _unary,
        "Expand": _mover,
        "Flatten": _mover,
        "Gather": _mover,
        "GatherElements": _mover,
        "Reshape": _mover,
        "Slice": _mover,
        "Squeeze": _mover,
        "Tile": _mover,
        "Transpose": _mover,
        "Unsqueeze": _mover,
        "MaxPool": _max_pool,
        "ReduceMax": _max_pool,
        "ReduceMin": _max_pool,
        "Resize": _resize,
        "Split": _split,
        "ArgMax": _arg_max,
    }
)
# Groups whose first operands are weights: int8 constants stay int8, since the integer result is the same.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


def group(draft: Draft) -> bool:
    """Turn every DQ..op..Q that onnxruntime fuses into one node on quantized tensors."""
    changed = False
    for _, node in draft:
        found = affine(draft, node) if is_quantize(node) else None
        if found is not None:
            declare(draft, node.outputs[0], found.quantization())
    for key, node in draft:
        rule = None if node.domain or node.body else FUSED.get(node.op)
        site = surroundings(draft, key, node) if rule is not None else None
        if rule is not None and site is not None and rule(site):
            merge(draft, site)
            changed = True
    return changed


def merge(draft: Draft, site: Site) -> None:
    """Put one node on quantized tensors in the place of a site."""
    node = site.node
    body = (
        [part for _, part in site.dequantizes]
        + [node]
        + ([site.clip[1]] if site.clip is not None else [])
        + [part for _, part in site.quantizes]
    )
    keys = (
        [key for key, _ in site.dequantizes]
        + ([site.clip[0]] if site.clip is not None else [])
        + [key for key, _ in site.quantizes]
    )
    replaced: dict[str, str] = {}
    for _, dequantize in site.dequantizes:
        found = affine(draft, dequantize)
        assert found is not None
        value = dequantize.inputs[0]
        if node.op not in PRODUCTS and seems_unsigned(draft, dequantize):
            value, found = _unsigned(draft, value, found)
        replaced[dequantize.outputs[0]] = annotate(draft, value, found.quantization(), site.key)
    outputs = list(node.outputs)
    for _, quantize in site.quantizes:
        found = affine(draft, quantize)
        assert found is not None
        declare(draft, quantize.outputs[0], found.quantization())
        first = node.outputs[0] if site.clip is not None else quantize.inputs[0]
        outputs[outputs.index(first)] = quantize.outputs[0]
    for key in keys:
        draft.remove(key)
    inputs = tuple(replaced.get(value, value) for value in node.inputs)
    draft.exchange(site.key, dataclasses.replace(node, inputs=inputs, outputs=tuple(outputs), body=tuple(body)))


def _unsigned(draft: Draft, value: str, found: Affine) -> tuple[str, Affine]:
    tensor = draft.tensors[value]
    assert tensor.data is not None
    data = (tensor.data.astype(np.int16) + 128).astype(np.uint8)
    zero = np.zeros(found.scale.shape, np.int16) if found.zero_point is None else found.zero_point.astype(np.int16)
    name = draft.fresh(f"{value}_u8", dataclasses.replace(tensor, name="", dtype="uint8", data=data))
    return name, Affine("uint8", found.scale, (zero + 128).astype(np.uint8), found.axis, found.block)


def declare(draft: Draft, value: str, quantization: Quantization) -> None:
    """Say how the maker of a tensor stores it."""
    draft.tensors[value] = dataclasses.replace(draft.tensors[value], quantization=quantization)


def annotate(draft: Draft, value: str, quantization: Quantization, near: float) -> str:
    """Say how a reader takes a tensor; where it is stored otherwise, return a view of it that says so."""
    tensor = draft.tensors[value]
    known = tensor.quantization
    if known is None or same_quantization(known, quantization):
        draft.tensors[value] = dataclasses.replace(tensor, quantization=quantization)
        return value
    view = draft.fresh(
        f"{value}_view", dataclasses.replace(tensor, name="", quantization=quantization, data=tensor.data)
    )
    if tensor.data is None:
        draft.add(Node("Identity", draft.unique(view), (value,), (view,)), near, after=False)
    return view


def drop_inverse_pairs(draft: Draft) -> bool:
    """DQ followed by its own Q is no change (qdq_final_cleanup.cc)."""
    changed = False
    for key, node in draft:
        reader = draft.only_reader(node.outputs[0]) if is_dequantize(node) else None
        if reader is None or not is_quantize(reader[1]) or not same_pair(draft, reader[1], node):
            continue
        value = reader[1].outputs[0]
        if value in draft.outputs:
            continue
        draft.remove(reader[0])
        draft.remove(key)
        draft.redirect(value, node.inputs[0])
        changed = True
    return changed
