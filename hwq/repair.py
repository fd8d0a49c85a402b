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


def _weights(graph: Graph, layer: str) -> Node:
    """The DQ that makes a layer's weights."""
    node = graph.node(layer)
    maker = graph.producers.get(node.inputs[1])
    if maker is None or maker.op != "DequantizeLinear" or graph.constant(maker.inputs[0]) is None:
        raise Error(
            "the weights of this layer are no constant behind a DequantizeLinear",
            where=f"layer {layer}",
            remedy="repair the QDQ form (hwq export --format qdq)",
        )
    return maker


def _repaired(graph: Graph, dequantize: Node, proof: Proof, method: str) -> Graph:
    stored, scale = graph.constant(dequantize.inputs[0]), graph.constant(dequantize.inputs[1])
    if stored is None or scale is None or stored.dtype != np.int8:
        raise Error("the weights of this layer are no int8 constant", where=f"layer {proof.layer}")
    given = graph.constant(dequantize.inputs[2]) if len(dequantize.inputs) > 2 and dequantize.inputs[2] else None
    points = np.zeros(scale.shape, np.int16) if given is None else given.astype(np.int16)
    axis = int(dequantize.attributes.get("axis", 1)) % stored.ndim
    if method == "uint8":
        data: Array = (stored.astype(np.int16) + 128).astype(np.uint8)
        return _exchanged(graph, dequantize, data, scale, (points + 128).astype(np.uint8), axis)
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
    changed = _exchanged(
        graph, dequantize, data, (scale * factors).astype(np.float32), None if given is None else given, axis
    )
    return _bias_rescaled(changed, proof.layer, factors)


def _exchanged(graph: Graph, dequantize: Node, data: Array, scale: Array, points: Array | None, axis: int) -> Graph:
    """The graph with other weights under one DQ; constants that others read stay."""
    tensors = dict(graph.tensors)
    names = []
    for old, value, ending in zip(
        (*dequantize.inputs, "")[:3], (data, scale, points), ("", "_scale", "_zero_point"), strict=False
    ):
        if value is None:
            continue
        name = _fresh(tensors, f"{dequantize.inputs[0]}_repaired{ending}")
        shape = tuple(int(size) for size in value.shape)
        tensors[name] = Tensor(name, str(value.dtype), shape, value)
        names.append(name)
        if old and len(graph.consumers.get(old, ())) == 1 and old not in graph.outputs:
            del tensors[old]
    quantization = Quantization(str(data.dtype), scale, points, None if scale.size == 1 else axis)
    tensors[names[0]] = dataclasses.replace(tensors[names[0]], quantization=quantization)
    nodes = [dataclasses.replace(node, inputs=tuple(names)) if node is dequantize else node for node in graph.nodes]
    return graph.replace(nodes=nodes, tensors=list(tensors.values()))


def _bias_rescaled(graph: Graph, layer: str, factors: Array) -> Graph:
    """An int32 bias keeps the accumulators' scale: its steps grow with the weights'."""
    node = graph.node(layer)
    maker = graph.producers.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    if maker is None or maker.op != "DequantizeLinear":
        return graph
    stored, scale = graph.constant(maker.inputs[0]), graph.constant(maker.inputs[1])
    if stored is None or scale is None or stored.dtype != np.int32:
        return graph
    spread = factors.reshape(-1) if factors.size > 1 else factors.reshape(())
    data = np.rint(stored / spread.astype(np.float64)).astype(np.int32)
    given = graph.constant(maker.inputs[2]) if len(maker.inputs) > 2 and maker.inputs[2] else None
    return _exchanged(
        graph,
        maker,
        data,
        (scale * spread.reshape(scale.shape if spread.size > 1 else ())).astype(np.float32),
        given,
        0,
    )


def _fresh(tensors: dict[str, Tensor], base: str) -> str:
    name, count = base, 0
    while name in tensors:
        count += 1
        name = f"{base}_{count}"
    return name
