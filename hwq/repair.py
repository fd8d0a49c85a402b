"""Repairs of models that saturate on CPUs without VNNI: the cheapest that gives every CPU the same answer, re-checked.

``uint8``: weights plus 128 with zero point 128: the integer sums, and so the outputs, stay bit for bit; onnxruntime then takes
its exact uint8 x uint8 kernels, about half as fast as the saturating ones on AVX2 (kernels.md). ``rescale``: only the output
channels that hold an unsafe pair take steps so much coarser that no pair can saturate. ``seven-bit``: all channels of an
unsafe layer take steps of twice the size (weights in [-64, 64]).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Quantization, Tensor
from hwq.lowering import lower
from hwq.overflow import LIMIT, Proof, prove
from hwq.translation import in_onnx

__all__ = ["METHODS", "Repair", "repair"]

# Cheapest first: what changes the fewest outputs.
METHODS = ("uint8", "rescale", "seven-bit")


@dataclass(frozen=True)
class Repair:
    """A repaired model.

    Attributes
    ----------
    graph : Graph
        In source form.
    method : str
    layers : tuple of str
        What was changed, by the lowered graph's names.
    exact : bool
        Whether the outputs are bit for bit those that the original has with exact products.
    proofs : tuple of Proof
        Of the repaired graph: none saturates.
    """

    graph: Graph
    method: str
    layers: tuple[str, ...]
    exact: bool
    proofs: tuple[Proof, ...]


def repair(graph: Graph, method: str | None = None) -> Repair:
    """Make every product of a QDQ graph safe on every CPU.

    Parameters
    ----------
    graph : Graph
        Quantized with Q and DQ nodes or TFLite's, in source form.
    method : {"uint8", "rescale", "seven-bit"}, optional
        Default: the cheapest, ``uint8``, which keeps every output's bits.

    Returns
    -------
    Repair

    Raises
    ------
    Error
        No such method, or a layer saturates that cannot be repaired (its weights are no constants behind a DQ).
    """
    chosen = METHODS[0] if method is None else method
    if chosen not in METHODS:
        raise Error("there is no such repair", where=f"method {method}", remedy=f"one of: {', '.join(METHODS)}")
    graph = in_onnx(graph)
    unsafe = [proof for proof in prove(lower(graph, "ort")) if proof.verdict == "saturates"]
    made = graph
    for proof in unsafe:
        made = _repaired(made, _weights(made, proof.layer), proof, chosen)
    left = prove(lower(made, "ort"))
    still = [proof.layer for proof in left if proof.verdict == "saturates"]
    if still:
        raise Error(
            f"{len(still)} layers still saturate after the repair",
            where=f"layer {still[0]}",
            why="their weights are shared or are no constants behind a DequantizeLinear",
            remedy=f"another method ({', '.join(METHODS)}), or session.x64quantprecision=1",
        )
    return Repair(made, chosen, tuple(proof.layer for proof in unsafe), chosen == "uint8" or not unsafe, left)


# Integer operators with weights of their own: places of their weights (scale and zero point follow) and of their int32 bias.
_OPERATORS = {"QLinearConv": (3, 8), "QLinearMatMul": (3, None), "QGemm": (3, 6)}


@dataclass(frozen=True)
class _Stored:
    """Stored weights: the node that reads them, the first of the three places where it does, and their channels' axis."""

    node: Node
    place: int
    axis: int


def _weights(graph: Graph, layer: str) -> _Stored:
    """Where a layer's weights are: behind a DQ, or in an integer operator."""
    node = graph.node(layer)
    if node.op in _OPERATORS:
        axis = 0 if node.op == "QLinearConv" else 1 - int(bool(node.attributes.get("transB", 0)))
        return _Stored(node, _OPERATORS[node.op][0], axis)
    maker = graph.producers.get(node.inputs[1])
    if maker is None or maker.op != "DequantizeLinear" or graph.constant(maker.inputs[0]) is None:
        raise Error(
            "the weights of this layer are no constant behind a DequantizeLinear",
            where=f"layer {layer}",
            why=f"{node.op} has no form with other weights",
            remedy="run onnxruntime with session.x64quantprecision=1, or quantize the model with static ranges",
        )
    return _Stored(maker, 0, int(maker.attributes.get("axis", 1)))


def _repaired(graph: Graph, weights: _Stored, proof: Proof, method: str) -> Graph:
    stored, scale, given = _triple(graph, weights)
    if stored is None or scale is None or stored.dtype != np.int8:
        raise Error("the weights of this layer are no int8 constant", where=f"layer {proof.layer}")
    points = np.zeros(scale.shape, np.int16) if given is None else given.astype(np.int16)
    axis = weights.axis % stored.ndim
    if method == "uint8":
        data: Array = (stored.astype(np.int16) + 128).astype(np.uint8)
        return _exchanged(graph, weights, data, scale, (points + 128).astype(np.uint8))
    if np.any(points):
        raise Error("weights with zero points are not rescaled", where=f"layer {proof.layer}", remedy='method="uint8"')
    factors = np.ones(scale.shape, np.float32)
    columns = list(proof.unsafe_columns) if method == "rescale" and scale.size > 1 else slice(None)
    factors.reshape(-1)[columns] = 2
    spread = (
        factors.reshape([-1 if index == axis else 1 for index in range(stored.ndim)])
        if factors.size > 1
        else factors.reshape(())
    )
    # int8 / 2 ties to even: |w| <= 64, so a pair's positive parts sum to 128 at most.
    data = np.clip(np.rint(stored.astype(np.float32) / spread), -LIMIT, LIMIT - 1).astype(np.int8)
    coarser = np.asarray(scale * factors, np.float32)  # of a scalar NumPy's product is no array
    return _bias_rescaled(_exchanged(graph, weights, data, coarser, given), proof.layer, factors)


def _triple(graph: Graph, weights: _Stored) -> tuple[Array | None, Array | None, Array | None]:
    """Constants: what is stored, scale, zero point."""
    names = (*weights.node.inputs, "", "")[weights.place : weights.place + 3]
    stored, scale, point = (graph.constant(name) if name else None for name in names)
    return stored, scale, point


def _exchanged(graph: Graph, weights: _Stored, data: Array, scale: Array, points: Array | None) -> Graph:
    """The graph with other stored weights, or another bias, in one place; constants that others read stay."""
    tensors, reader, place = dict(graph.tensors), weights.node, weights.place
    inputs = [*reader.inputs, "", ""][: max(len(reader.inputs), place + (2 if points is None else 3))]
    for offset, (value, ending) in enumerate(zip((data, scale, points), ("", "_scale", "_zero_point"), strict=True)):
        if value is None:
            continue
        old = inputs[place + offset]
        name = _fresh(tensors, f"{reader.inputs[place]}_repaired{ending}")
        shape = tuple(int(size) for size in value.shape)
        tensors[name] = Tensor(name, str(value.dtype), shape, value)
        inputs[place + offset] = name
        if old and len(graph.consumers.get(old, ())) == 1 and old not in graph.outputs:
            del tensors[old]
    if reader.op == "DequantizeLinear":  # an integer operator's constants say nothing of themselves
        axis = None if scale.size == 1 else weights.axis
        pair = Quantization(str(data.dtype), scale, points, axis)
        tensors[inputs[place]] = dataclasses.replace(tensors[inputs[place]], quantization=pair)
    nodes = [dataclasses.replace(node, inputs=tuple(inputs)) if node is reader else node for node in graph.nodes]
    return graph.replace(nodes=nodes, tensors=list(tensors.values()))


def _bias_rescaled(graph: Graph, layer: str, factors: Array) -> Graph:
    """An int32 bias keeps the accumulators' scale: its steps grow with the weights'."""
    node = graph.node(layer)
    place = _OPERATORS[node.op][1] if node.op in _OPERATORS else 2
    name = node.inputs[place] if place is not None and len(node.inputs) > place else ""
    if not name:
        return graph
    spread = factors.reshape(-1) if factors.size > 1 else factors.reshape(())
    if node.op in _OPERATORS:  # its bias has no scale of its own
        stored = graph.constant(name)
        if stored is None or place is None:
            raise Error("the bias of this layer is no constant", where=f"layer {layer}", remedy='method="uint8"')
        fresh = _fresh(dict(graph.tensors), f"{name}_repaired")
        data = np.rint(stored / spread.astype(np.float64)).astype(np.int32)
        inputs = [*node.inputs[:place], fresh, *node.inputs[place + 1 :]]
        nodes = [dataclasses.replace(one, inputs=tuple(inputs)) if one is node else one for one in graph.nodes]
        tensors = [*graph.tensors.values(), Tensor(fresh, "int32", tuple(int(size) for size in data.shape), data)]
        unread = len(graph.consumers.get(name, ())) == 1
        return graph.replace(nodes=nodes, tensors=[one for one in tensors if one.name != name or not unread])
    maker = graph.producers.get(name)
    if maker is None or maker.op != "DequantizeLinear":
        return graph
    stored, scale, given = _triple(graph, _Stored(maker, 0, 0))
    if stored is None or scale is None or stored.dtype != np.int32:
        return graph
    data = np.rint(stored / spread.astype(np.float64)).astype(np.int32)
    coarser = np.asarray(scale * spread.reshape(scale.shape if spread.size > 1 else ()), np.float32)
    return _exchanged(graph, _Stored(maker, 0, 0), data, coarser, given)


def _fresh(tensors: dict[str, Tensor], base: str) -> str:
    name, count = base, 0
    while name in tensors:
        count += 1
        name = f"{base}_{count}"
    return name
