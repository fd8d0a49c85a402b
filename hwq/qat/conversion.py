"""From a trained module back to a quantized Graph: the integers of its last forward pass, and the scales that go with them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from hwq.errors import Error
from hwq.graph import Array, Graph, Quantization, Tensor, carrier
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
    return graph.replace(tensors=tensors, source=facts)


def _changed(network: Network) -> dict[str, Array]:
    """New data by the constant's name."""
    state, lowered = network.state, network.lowered
    made: dict[str, Array] = {}
    for factor, scale in zip(network.factors, state.scales, strict=True):
        values = (torch.from_numpy(scale.base) * factor).numpy().astype(np.float32)
        if not (np.isfinite(values) & (values > 0)).all():
            raise Error(
                "training has driven a scale to zero or beyond",
                where=f"scale {display_name(scale.names[0])}",
                remedy="train with a smaller rate",
            )
        made.update({name: values for name in scale.names})
    for weight in state.weights:
        scheme = lowered.tensors[weight.name].quantization
        assert scheme is not None
        array = stored_array(network.weight(weight.name, scheme))
        made[weight.name] = array.astype(carrier(network.quantized.tensors[weight.name].dtype))
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
