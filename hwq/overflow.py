"""What the weights alone prove about a product: int16 saturation of neighboring pairs, and headroom of int32 accumulators.

On x86-64 without VNNI, uint8 x int8 products of k = 2i and 2i + 1 are added in int16 (VPMADDUBSW). With activations in
[0, 255] a pair's largest sum is 255 * (max(w0, 0) + max(w1, 0)), its least 255 * (min(w0, 0) + min(w1, 0)); both are reached.
So a pair is safe exactly if its positive parts sum to 128 or less (255 * 128 = 32640 <= 32767 < 255 * 129) and its negative
parts to -128 or more (-32640 >= -32768 > -32895).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq import kernels
from hwq.graph import Array, Graph, Node

__all__ = ["LIMIT", "Proof", "Witness", "prove", "shown"]

# Largest sum of positive parts, and of negative parts negated, of a pair that cannot saturate.
LIMIT = 128
INT32_MAX = (1 << 31) - 1
SAFE = "safe on every CPU"


@dataclass(frozen=True)
class Witness:
    """A concrete input that breaks a layer on a CPU without VNNI: two activations of 255, all others 0.

    Attributes
    ----------
    column : int
        Output channel.
    k : (int, int)
        Places of the pair in the order in which the product runs over k: (tap, channel) for convolutions.
    place : str
        The same in words.
    weights : (int, int)
    exact, saturated : int
        The pair's sum, and what int16 makes of it.
    """

    column: int
    k: tuple[int, int]
    place: str
    weights: tuple[int, int]
    exact: int
    saturated: int


@dataclass(frozen=True)
class Proof:
    """One product of a lowered graph.

    Attributes
    ----------
    layer, op : str
    verdict : {"safe on every CPU", "saturates", "unknown"}
    reason : str
    pairs, unsafe_pairs : int
        Pairs of neighboring weights, and those that some input saturates.
    unsafe_columns : tuple of int
        Output channels that hold one.
    headroom_bits : float
        log2 of 2^31 over the largest accumulator that any input reaches, bias included; below 0 it may wrap.
    witness : Witness or None
    """

    layer: str
    op: str
    verdict: str
    reason: str
    pairs: int = 0
    unsafe_pairs: int = 0
    unsafe_columns: tuple[int, ...] = ()
    headroom_bits: float = math.inf
    witness: Witness | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        made = {key: value for key, value in vars(self).items() if key != "witness"}
        made["headroom_bits"] = None if math.isinf(self.headroom_bits) else self.headroom_bits
        return {**made, "witness": None if self.witness is None else vars(self.witness)}


def prove(lowered: Graph) -> tuple[Proof, ...]:
    """A proof for every quantized convolution and product of a graph lowered for ``ort``.

    Parameters
    ----------
    lowered : Graph

    Returns
    -------
    tuple of Proof
        In execution order. ``unknown`` where the right operand is no constant.
    """
    found = []
    for node in lowered.nodes:
        if node.op in {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger"}:
            found.append(_integer_proof(lowered, node))
        if node.op == "DynamicQuantizeLSTM":
            found += [_recurrent_proof(lowered, node, index, what) for index, what in ((1, "input"), (2, "state"))]
        if node.op not in {"Conv", "MatMul", "Gemm"} or not node.body:
            continue
        operands = [lowered.tensors[name] for name in node.inputs]
        if len(operands) < 2 or any(tensor.quantization is None for tensor in operands[:2]):
            continue
        found.append(_proof(lowered, node))
    return tuple(found)


def _proof(graph: Graph, node: Node) -> Proof:
    a, w = (graph.tensors[name] for name in node.inputs[:2])
    assert a.quantization is not None and w.quantization is not None
    if w.data is None:
        if (a.quantization.dtype, w.quantization.dtype) == ("uint8", "int8"):
            return Proof(node.name, node.op, "unknown", "both operands are variable: uint8 x int8 pairs may saturate")
        return Proof(
            node.name,
            node.op,
            SAFE,
            f"{a.quantization.dtype} x {w.quantization.dtype} has exact kernels",
        )
    matrix, groups, taps, depth = _matrix(node, w.data)
    bits = _headroom(graph, node, matrix, groups)
    wraps = " (but its int32 accumulator may wrap, alike on every CPU)" if bits < 0 else ""
    if a.quantization.dtype != "uint8" or w.quantization.dtype != "int8":
        why = f"{a.quantization.dtype} x {w.quantization.dtype} has exact kernels{wraps}"
        return Proof(node.name, node.op, SAFE, why, headroom_bits=bits)
    if groups > 1 and depth == 1 and matrix.shape[1] == groups:
        return Proof(
            node.name, node.op, SAFE, f"a depthwise convolution has an exact kernel{wraps}", headroom_bits=bits
        )
    return _pairs(node, matrix, taps, depth, bits, wraps)


def _integer_proof(graph: Graph, node: Node) -> Proof:
    """Products whose zero points and scales come at run time."""
    left, right = (graph.tensors[name] for name in node.inputs[:2])
    types = ("uint8" if node.op == "DynamicQuantizeMatMul" else left.dtype, right.dtype)
    mixed = (
        ("int8", "uint8") if node.op == "ConvInteger" else ("uint8", "int8")
    )  # ConvInteger has the filters on the left
    if types != mixed:
        return Proof(node.name, node.op, SAFE, f"{types[0]} x {types[1]} has an exact kernel in {node.op}")
    if right.data is None or node.op == "ConvInteger" or right.data.ndim != 2:
        return Proof(
            node.name, node.op, "unknown", f"{types[0]} x {types[1]} pairs may saturate, and the weights do not tell"
        )
    return _pairs(node, right.data, 1, right.data.shape[0], math.inf, "")


def _recurrent_proof(graph: Graph, node: Node, index: int, what: str) -> Proof:
    """An LSTM's weights of its input or of its state, [directions, k, gates]; both are multiplied by uint8."""
    weights = graph.tensors[node.inputs[index]]
    if weights.dtype != "int8":
        return Proof(node.name, node.op, SAFE, f"weights of the {what}: uint8 x {weights.dtype} has an exact kernel")
    if weights.data is None:
        return Proof(node.name, node.op, "unknown", f"weights of the {what} are variable: uint8 x int8 pairs may saturate")  # fmt: skip
    found = _pairs(node, np.concatenate(list(weights.data), axis=1), 1, weights.data.shape[1], math.inf, "")
    return dataclasses.replace(found, reason=f"weights of the {what}: {found.reason}")


def _pairs(node: Node, matrix: Array, taps: int, depth: int, bits: float, wraps: str) -> Proof:
    odd = matrix.shape[0] % 2
    wide = np.pad(matrix.astype(np.int32), ((0, odd), (0, 0)))
    above = np.maximum(wide[0::2], 0) + np.maximum(wide[1::2], 0)
    below = np.minimum(wide[0::2], 0) + np.minimum(wide[1::2], 0)
    unsafe = (above > LIMIT) | (below < -LIMIT)
    pairs, count = unsafe.size, int(np.count_nonzero(unsafe))
    if not count:
        return Proof(
            node.name, node.op, SAFE, f"none of {pairs} pairs can leave int16{wraps}", pairs, headroom_bits=bits
        )
    columns = tuple(int(column) for column in np.flatnonzero(unsafe.any(axis=0)))
    reason = f"{count} of {pairs} pairs can leave int16 on a CPU without VNNI, in {len(columns)} of {matrix.shape[1]} output channels{wraps}"
    return Proof(
        node.name, node.op, "saturates", reason, pairs, count, columns, bits, _witness(node, wide, unsafe, taps, depth)
    )


def _matrix(node: Node, data: Array) -> tuple[Array, int, int, int]:
    """Weights as (k, output channels), k in the product's order; groups; taps; channels a group."""
    if node.op != "Conv":
        transposed = node.op == "Gemm" and bool(node.attributes.get("transB", 0))
        flat = data.reshape(-1, data.shape[-1]) if data.ndim > 2 else np.atleast_2d(data.T if data.ndim == 1 else data)
        matrix = flat.T if transposed else flat
        # Stacked matrices of a batched product pair up within each matrix: an odd k is padded in each.
        if data.ndim > 2:
            matrix = np.concatenate([one for one in data.reshape(-1, *data.shape[-2:])], axis=1)
        return np.ascontiguousarray(matrix), 1, 1, matrix.shape[0]
    filters = data if node.layout == "NHWC" else np.moveaxis(data, 1, -1)
    depth = filters.shape[-1]
    taps = int(np.prod(filters.shape[1:-1]))
    return filters.reshape(filters.shape[0], -1).T, int(node.attributes.get("group", 1)), taps, depth


def _headroom(graph: Graph, node: Node, matrix: Array, groups: int) -> float:
    """Bits between the largest accumulator that an input reaches and 2^31, from the kernels' own proof."""
    a, w = (graph.tensors[name] for name in node.inputs[:2])
    assert a.quantization is not None and w.quantization is not None
    if a.quantization.dtype.endswith("16"):
        return math.inf  # sums of 64 bits
    low, high = (0, 255) if a.quantization.dtype == "uint8" else (-128, 127)
    if a.quantization.dynamic:  # any zero point of the type
        low, high, zero = low - high, high - low, np.zeros(1, np.int64)
    else:
        zero = a.quantization.zero_points().reshape(-1).astype(np.int64)[:1]
    points = (
        np.broadcast_to(w.quantization.zero_points().reshape(-1).astype(np.int64), (matrix.shape[1],))
        if w.quantization.zero_points().size in (1, matrix.shape[1])
        else np.zeros(matrix.shape[1], np.int64)
    )
    centered = matrix.astype(np.int64) - points
    positive, negative = np.maximum(centered, 0).sum(axis=0), np.maximum(-centered, 0).sum(axis=0)
    bias = graph.tensors[node.inputs[2]].data if len(node.inputs) > 2 and node.inputs[2] else None
    offset = (
        bias.astype(np.int64).reshape(-1)
        if bias is not None and bias.dtype.kind == "i" and bias.size in (1, matrix.shape[1])
        else np.zeros(1, np.int64)
    )
    top = offset + (high - zero) * positive + (zero - low) * negative
    bottom = offset - (zero - low) * positive - (high - zero) * negative
    largest = int(max(np.abs(top).max(initial=1), np.abs(bottom).max(initial=1), 1))
    return math.log2((INT32_MAX + 1) / largest)


def _witness(node: Node, wide: Array, unsafe: Array, taps: int, depth: int) -> Witness:
    """The pair that loses most, with both activations at 255 wherever that drives it outwards."""
    first, second = wide[0::2], wide[1::2]
    high = 255 * (np.maximum(first, 0) + np.maximum(second, 0)) - 32767
    low = -32768 - 255 * (np.minimum(first, 0) + np.minimum(second, 0))
    loss = np.where(unsafe, np.maximum(high, low), 0)
    pair, column = (int(index) for index in np.unravel_index(int(loss.argmax()), loss.shape))
    weights = int(first[pair, column]), int(second[pair, column])
    up = high[pair, column] >= low[pair, column]
    exact = sum(255 * weight for weight in weights if (weight > 0) == up)
    k = 2 * pair, 2 * pair + 1
    place = (
        f"k = {k[0]} and {k[1]}"
        if node.op != "Conv"
        else " and ".join(f"tap {one // depth}, channel {one % depth}" for one in k)
    )
    return Witness(column, k, place, weights, exact, max(-32768, min(32767, exact)))


def shown(proof: Proof, lowered: Graph) -> tuple[int, int]:
    """A witness run through the kernels: the exact and the saturated sum of its column, other activations 0."""
    node = lowered.node(proof.layer)
    data = lowered.tensors[node.inputs[1]].data
    assert data is not None and proof.witness is not None
    matrix = np.ascontiguousarray(_matrix(node, data)[0])
    a = np.zeros((1, matrix.shape[0]), np.uint8)
    up = proof.witness.exact > 0
    for k, weight in zip(proof.witness.k, proof.witness.weights, strict=True):
        if k < matrix.shape[0] and (weight > 0) == up:
            a[0, k] = 255
    packed = kernels.pack(matrix)
    column = proof.witness.column
    return int(kernels.gemm(a, packed)[0, column]), int(kernels.gemm_saturating(a, packed)[0, column])
