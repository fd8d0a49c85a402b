"""From a trained module back to a quantized Graph: the integers of its last forward pass, and the scales that go with them."""

from __future__ import annotations

import dataclasses
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from hwq.errors import Error
from hwq.graph import Array, Graph, Quantization, Tensor, carrier
from hwq.lowering import lower
from hwq.names import display_name
from hwq.qat.network import Network, stored_array
from hwq.qat.state import require_prepared

__all__ = ["converted"]


def converted(prepared: Any) -> Graph:
    """See `hwq.qat.convert`."""
    require_prepared(prepared)
    network: Network = prepared
    with torch.no_grad():
        changed = _changed(network)
    graph = network.quantized
    tensors = [_replaced(tensor, changed, graph) for tensor in graph.tensors.values()]
    facts = {**graph.source, "trained": "hwq.qat"}
    made = graph.replace(tensors=tensors, source=facts)
    _require_same_steps(network, lower(made, network.dialect.name))
    return made


def _require_same_steps(network: Network, again: Graph) -> None:
    """Raise where the dialect now makes other operators, or another integer bias, of the graph than those that were trained."""
    before = network.lowered
    for old, new in zip_longest(before.nodes, again.nodes):
        same = old is not None and new is not None and (old.kind, old.outputs) == (new.kind, new.outputs)
        made = [name for name in new.inputs[2:3] if name and name not in network.quantized.tensors] if same else []
        for name in made if same and old.inputs == new.inputs else ():
            data, was = again.constant(name), before.constant(name)
            same = data is None or was is None or data.dtype != np.int32 or np.array_equal(data, was)
        if not same or old.inputs != new.inputs:
            node = new if old is None else old
            raise Error(
                f"training has changed what dialect {network.dialect.name} makes of this operator",
                where=f"node {display_name(node.name)}",
                why="its scales or its bias left the range in which it fuses as it was trained",
                remedy="train with a smaller rate, or plan this layer's activations as float",
            )


def _changed(network: Network) -> dict[str, Array]:
    """New data by the constant's name."""
    state, lowered = network.state, network.lowered
    made: dict[str, Array] = {}
    for index, scale in enumerate(state.scales):
        values = (torch.from_numpy(scale.base) * network.factor(index)).numpy().astype(np.float32)
        if not (np.isfinite(values) & (values > 0)).all():
            raise Error(
                "training has driven a scale to zero or beyond",
                where=f"scale {display_name(scale.names[0])}",
                remedy="train with a smaller rate",
            )
        made.update({name: values for name in scale.names})
    for weight in state.weights:
        scheme = lowered.tensors[weight.name].quantization or weight.scheme
        array = stored_array(network.weight(weight.name, scheme))
        made[weight.name] = array.astype(carrier(network.quantized.tensors[weight.name].dtype))
    for one in state.floats:
        made[one.name] = network.constant(one.name).numpy()
    for bias in state.biases:
        if not bias.scale_name:
            made[bias.holder] = network.float_bias(bias.name).numpy()
            continue
        node = lowered.node(bias.node)
        x, w = (lowered.tensors[name].quantization for name in node.inputs[:2])
        assert x is not None and w is not None
        steps = network.scale(node.inputs[0], x).reshape(()) * network.scale(node.inputs[1], w)
        made[bias.holder] = network.bias(bias.name, steps.reshape(-1)).numpy().astype(np.int64).astype(np.int32)
        known = network.quantized.constant(bias.scale_name)
        assert known is not None
        made[bias.scale_name] = steps.numpy().reshape(known.shape).astype(np.float32)
    return made


def _replaced(tensor: Tensor, changed: dict[str, Array], graph: Graph) -> Tensor:
    data = changed.get(tensor.name, tensor.data)
    scheme = tensor.quantization
    if scheme is not None and scheme.known:
        scheme = _scheme(scheme, tensor.name, changed, graph)
    if data is tensor.data and scheme is tensor.quantization:
        return tensor
    return dataclasses.replace(tensor, data=data, quantization=scheme)


def _scheme(scheme: Quantization, name: str, changed: dict[str, Array], graph: Graph) -> Quantization:
    """How the tensor is stored now: the scale of the Q that makes it or of the DQ that reads it."""
    maker = graph.producers.get(name)
    around = [maker] if maker is not None else list(graph.consumers.get(name, ()))
    for node in around:
        if node is not None and node.op in {"QuantizeLinear", "DequantizeLinear"} and node.inputs[1] in changed:
            return dataclasses.replace(scheme, scale=changed[node.inputs[1]].reshape(scheme.scales().shape))
    return scheme
