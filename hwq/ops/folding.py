"""Rewrites that keep the value: constants computed once, BatchNormalization inside the layer before it, no-ops removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops.application import evaluate_node
from hwq.ops.inference import pruned

__all__ = ["fold", "fold_batch_normalization", "fold_constants", "remove_identities"]

# Results above this are cheaper to compute than to keep (elements).
FOLDED_ELEMENTS = 1 << 26


def fold(graph: Graph) -> Graph:
    """`remove_identities`, `fold_constants` and `fold_batch_normalization`, in this order."""
    return fold_batch_normalization(fold_constants(remove_identities(graph)))


def remove_identities(graph: Graph) -> Graph:
    """Without Identity and Dropout at inference; a graph output keeps its name, its maker takes it over."""
    renamed: dict[str, str] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        source = renamed.get(node.inputs[0], node.inputs[0]) if node.inputs else ""
        plain = node.op in {"Identity", "Dropout"} and not node.domain and not any(node.outputs[1:])
        if plain and node.outputs[0] not in graph.outputs:
            renamed[node.outputs[0]] = source
            continue
        if (
            plain
            and source in graph.producers
            and source not in graph.outputs
            and len(graph.consumers.get(source, ())) == 1
        ):
            maker = next(index for index, other in enumerate(kept) if source in other.outputs)
            made = tuple(node.outputs[0] if name == source else name for name in kept[maker].outputs)
            kept[maker] = dataclasses.replace(kept[maker], outputs=made)
            continue
        kept.append(dataclasses.replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)))
    return pruned(graph.replace(nodes=kept)) if len(kept) != len(graph.nodes) else graph


def fold_constants(graph: Graph) -> Graph:
    """Nodes whose operands are all constant are computed now; Q and DQ stay, since they say how numbers are stored."""
    values: dict[str, Array] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        given = [values.get(name, graph.constant(name)) if name else None for name in node.inputs]
        known = bool(given) and all(
            value is not None or not name for value, name in zip(given, node.inputs, strict=True)
        )
        made = [graph.tensors[name] for name in node.outputs if name]
        small = all(not tensor.concrete or tensor.elements <= FOLDED_ELEMENTS for tensor in made)
        if not known or not small or "QuantizeLinear" in node.op or node.op == "DequantizeLinear":
            kept.append(node)
            continue
        values.update(
            {name: value for name, value in zip(node.outputs, evaluate_node(node, given), strict=False) if name}
        )
    if not values:
        return graph
    tensors = [
        tensor
        if tensor.name not in values
        else dataclasses.replace(
            tensor, data=values[tensor.name], shape=tuple(values[tensor.name].shape), known_shape=True
        )
        for tensor in graph.tensors.values()
    ]
    return pruned(graph.replace(nodes=kept, tensors=tensors))


def fold_batch_normalization(graph: Graph) -> Graph:
    """BatchNormalization after a Conv or Gemm that nothing else reads goes into that layer's weight and bias.

    In float64, rounded once: ``w' = w * g / sqrt(v + e)``, ``b' = (b - m) * g / sqrt(v + e) + beta``.
    """
    tensors = dict(graph.tensors)
    replaced: dict[str, Node] = {}
    dropped: set[str] = set()
    for node in graph.nodes:
        if node.op != "BatchNormalization" or node.domain or any(node.outputs[1:]):
            continue
        layer = graph.producers.get(node.inputs[0])
        layer = replaced.get(layer.name, layer) if layer is not None else None
        if layer is None or not _foldable(graph, layer, node, tensors):
            continue
        parameters = [tensors[name].data for name in node.inputs[1:5]]
        folded = _folded(layer, node, [one for one in parameters if one is not None], tensors)
        replaced[layer.name] = dataclasses.replace(
            layer, inputs=(layer.inputs[0], *(tensor.name for tensor in folded)), outputs=node.outputs
        )
        tensors.update({tensor.name: tensor for tensor in folded})
        dropped.add(node.name)
    if not dropped:
        return graph
    nodes = [replaced.get(node.name, node) for node in graph.nodes if node.name not in dropped]
    return pruned(graph.replace(nodes=nodes, tensors=tensors.values()))


def _foldable(graph: Graph, layer: Node, node: Node, tensors: Mapping[str, Tensor]) -> bool:
    if (
        layer.op not in {"Conv", "Gemm"}
        or layer.domain
        or len(graph.consumers[node.inputs[0]]) != 1
        or node.inputs[0] in graph.outputs
    ):
        return False
    if layer.op == "Gemm" and (
        float(layer.attributes.get("beta", 1.0)) != 1.0 or len(graph.tensors[node.inputs[0]].shape) != 2
    ):
        return False
    names = [*layer.inputs[1:], *node.inputs[1:5]]
    if any(name and (tensors[name].data is None or tensors[name].dtype != "float32") for name in names):
        return False
    bias = tensors[layer.inputs[2]].data if len(layer.inputs) > 2 and layer.inputs[2] else None
    channels = tensors[node.inputs[1]].elements
    return bias is None or bias.shape == (channels,)


def _folded(layer: Node, node: Node, parameters: list[Array], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    gamma, beta, mean, variance = (one.astype(np.float64) for one in parameters)
    factor = gamma / np.sqrt(variance + float(np.float32(node.attributes.get("epsilon", 1e-5))))
    weight = tensors[layer.inputs[1]]
    bias = tensors[layer.inputs[2]] if len(layer.inputs) > 2 and layer.inputs[2] else None
    assert weight.data is not None
    rows = layer.op == "Conv" or bool(layer.attributes.get("transB", 0))
    shape = (-1, *([1] * (weight.data.ndim - 1))) if rows else (1, -1)
    scaled = (weight.data.astype(np.float64) * factor.reshape(shape)).astype(np.float32)
    old = np.zeros_like(mean) if bias is None or bias.data is None else bias.data.astype(np.float64)
    moved = ((old - mean) * factor + beta).astype(np.float32)
    # New names: the old weight may have other readers. The layer's name is unique, so these are too.
    return [
        dataclasses.replace(weight, name=f"{layer.name}/{weight.name}/folded", data=scaled),
        Tensor(f"{layer.name}/{node.inputs[2]}/folded_bias", "float32", moved.shape, moved),
    ]
