"""Biases that empirical correction moves: where a layer's is, and one of its own for each layer."""

from __future__ import annotations

import dataclasses

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops.convolution import filters_first
from hwq.patches import Linear, linears

__all__ = ["bias_of", "matrix_of", "with_biases"]


def with_biases(graph: Graph) -> Graph:
    """The graph with a bias of its own, one number a channel, for each layer that has or can carry one: zeros if a
    convolution or Gemm had none. A MatMul's is the constant of the Add behind it.
    """
    tensors, nodes, taken = dict(graph.tensors), {node.name: node for node in graph.nodes}, set(graph.tensors)
    for layer in linears(graph).values():
        found = _place(graph, layer)
        if found is None:
            continue
        node, slot = found
        old, channels = node.inputs[slot] if slot < len(node.inputs) else "", _channels(layer, graph)
        given = graph.constant(old) if old else np.zeros(channels, np.float32)
        # A Gemm's last operand may also hold a number a row.
        if given is None or given.size != int(np.prod(given.shape[-1:])) or given.size not in (1, channels):
            continue
        data = np.broadcast_to(given.reshape(-1), channels)
        name = old or f"{node.name}_bias"
        while name in taken and (name != old or len(graph.consumers.get(old, ())) > 1):
            name += "_"
        taken.add(name)
        tensors[name] = Tensor(name, "float32", (channels,), data)
        nodes[node.name] = dataclasses.replace(node, inputs=(*node.inputs[:slot], name, *node.inputs[slot + 1 :]))
    return graph.replace(nodes=list(nodes.values()), tensors=list(tensors.values()))


def _place(graph: Graph, layer: Linear) -> tuple[Node, int] | None:
    """The node and the slot in which a layer's bias is, or could be, added as it is."""
    node = layer.node
    if node.op == "MatMul":
        readers = graph.consumers.get(node.outputs[0], ())
        if len(readers) != 1 or node.outputs[0] in graph.outputs or readers[0].kind != "Add":
            return None
        slot = 1 if readers[0].inputs[0] == node.outputs[0] else 0
        return (readers[0], slot) if graph.constant(readers[0].inputs[slot]) is not None else None
    plain = node.op == "Conv" or all(node.attributes.get(key, 1.0) == 1.0 for key in ("alpha", "beta"))
    return (node, 2) if plain else None


def bias_of(graph: Graph, layer: Linear) -> str:
    """The constant that is the layer's bias, one number a channel; empty if it has none that can be corrected."""
    node, slot = _place(graph, layer) or (layer.node, 3)
    tensor = graph.tensors.get(node.inputs[slot]) if slot < len(node.inputs) else None
    known = tensor is not None and tensor.data is not None and tensor.shape == (_channels(layer, graph),)
    return tensor.name if tensor is not None and known else ""


def _channels(layer: Linear, graph: Graph) -> int:
    weight = graph.constant(layer.node.inputs[1])
    assert weight is not None  # `linears` says so
    return len(matrix_of(layer, weight))


def matrix_of(layer: Linear, weight: Array) -> Array:
    """The weight as (channels, K), K as in `hwq.patches.rows_of`."""
    if layer.node.op == "Conv":
        first = filters_first(weight, layer.node)
        return first.reshape(len(first), -1)
    return weight if layer.node.op == "Gemm" and layer.node.attributes.get("transB", 0) else weight.T
