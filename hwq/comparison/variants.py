"""Variants of a quantized graph: some places back in float, or stored in another way; all else keeps its bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hwq.comparison.places import Place, Places
from hwq.graph import BITS, Array, Graph, Node, Quantization, Tensor, carrier
from hwq.observers import HUGE, TINY, weight_affine
from hwq.ops.quantize import dequantize, quantize
from hwq.ops.storage import integer_range
from hwq.plan import Weights

__all__ = ["Edit", "restored", "stored_again", "with_scale"]

Edit = Callable[[Graph], Graph]


# onnxruntime quantizes what is left float of these between a DQ and a Q (weight_bias_quantization.cc).
TAKEN = frozenset({"Conv", "Gemm", "ConvTranspose"})


def restored(places: Places, keys: Iterable[str], *, apart: bool = True) -> Edit:
    """Put places back to float: a value is read as it was made, a weight has the float model's values.

    With `apart` a layer of float weights runs in float whatever the runtime would do: a Max of one operand, which changes
    nothing, parts it from the Q node behind. Without it the dialect has its way.
    """
    off = frozenset(keys)

    def edit(graph: Graph) -> Graph:
        known = places.by_key()
        dropped = {name for key in off for name in known[key].dequantizes}
        free = {reader for key in off if known[key].kind == "weights" for reader in known[key].readers}
        renamed: dict[str, str] = {}
        tensors, nodes = dict(graph.tensors), []
        for node in graph.nodes:
            node = dataclasses.replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
            if node.name in off and node.op == "QuantizeLinear":
                renamed[node.outputs[0]] = node.inputs[0]
            elif node.name in dropped:
                made, value = node.outputs[0], places.values.get(node.name)
                if value is not None and node.name in off:
                    tensors[made] = dataclasses.replace(tensors[made], data=value, quantization=None)
                elif made in graph.outputs:
                    nodes.append(Node("Identity", node.name, node.inputs[:1], node.outputs))
                else:
                    renamed[made] = node.inputs[0]
            elif node.name in places.biases and _serves(graph, node, free):
                nodes += _float_bias(places, node, tensors)
            elif apart and node.name in free and node.op in TAKEN and node.outputs[0] not in graph.outputs:
                parted = f"{node.outputs[0]}_apart"
                tensors[parted] = dataclasses.replace(tensors[node.outputs[0]], name=parted)
                nodes.append(dataclasses.replace(node, outputs=(parted,)))
                nodes.append(Node("Max", f"{node.name}_apart", (parted,), node.outputs))
            else:
                nodes.append(node)
        return _with(graph, nodes, tensors)

    return edit


def _serves(graph: Graph, node: Node, layers: Iterable[str]) -> bool:
    """Whether every reader of a bias is among `layers`."""
    readers = graph.consumers.get(node.outputs[0], ())
    return bool(readers) and all(reader.name in layers for reader in readers)


def _float_bias(places: Places, node: Node, tensors: dict[str, Tensor]) -> list[Node]:
    value = places.biases[node.name]
    if value is None:
        return [node]
    made = node.outputs[0]
    tensors[made] = dataclasses.replace(tensors[made], data=value, quantization=None)
    return []


def with_scale(places: Places, tied: Iterable[Place], scale: np.float32, zero_point: int) -> Edit:
    """Store activations with another scale and zero point; biases of the layers behind follow."""
    group = tuple(tied)
    keys = {place.key for place in group} | {name for place in group for name in place.dequantizes}

    def edit(graph: Graph) -> Graph:
        dtype = group[0].quantization.dtype
        tensors, label = dict(graph.tensors), f"{group[0].key}_changed"
        names = _declare(
            tensors,
            label,
            np.asarray(scale, np.float32),
            np.asarray(zero_point, np.int64).astype(carrier(dtype)),
            dtype,
        )
        nodes = []
        for node in graph.nodes:
            if node.name in keys and node.op in {"QuantizeLinear", "DequantizeLinear"}:
                node = dataclasses.replace(node, inputs=(node.inputs[0], *names))
                if node.op == "QuantizeLinear":
                    stored = tensors[node.outputs[0]]
                    planned = Quantization(dtype, tensors[names[0]].data, tensors[names[1]].data)
                    tensors[stored.name] = dataclasses.replace(stored, quantization=planned)
            nodes.append(node)
        touched = {reader for place in group for reader in place.readers}
        return _biased(places, _with(graph, nodes, tensors), touched, False)

    return edit


def stored_again(places: Places, place: Place, how: Weights, axis: int | None) -> Edit:
    """Quantize a weight anew from its float values, per tensor (`axis` None) or per channel; its bias follows."""
    value = places.values[place.key]

    def edit(graph: Graph) -> Graph:
        rows = value.reshape(1, -1) if axis is None else np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
        scale, zero = weight_affine(rows, how)
        peak = float(scale.max(initial=0.0)) or 1.0
        step = np.where(scale == 0, np.float32(peak), scale).astype(np.float32).reshape(() if axis is None else -1)
        point = zero.reshape(step.shape).astype(carrier(how.dtype))
        tensors, label = dict(graph.tensors), f"{place.key}_changed"
        names = _declare(tensors, label, step, point, how.dtype)
        storage: Any = "packed" if BITS[how.dtype] < 8 else "plain"
        integers = quantize(value, step, point, how.dtype, axis)
        tensors[label] = Tensor(
            label, how.dtype, value.shape, integers, Quantization(how.dtype, step, point, axis, None, storage)
        )
        attributes = {} if axis is None else {"axis": axis}
        nodes = []
        for node in graph.nodes:
            if node.name == place.dequantizes[0]:
                made = Node(
                    "DequantizeLinear", node.name, (label, *names), node.outputs, attributes, origin=node.origin
                )
                nodes.append(made)
            else:
                nodes.append(node)
        return _biased(places, _with(graph, nodes, tensors), set(place.readers), True)

    return edit


def _declare(tensors: dict[str, Tensor], label: str, scale: Array, zero: Array, dtype: str) -> tuple[str, str]:
    names = f"{label}_scale", f"{label}_zero_point"
    tensors[names[0]] = Tensor(names[0], "float32", scale.shape, scale)
    tensors[names[1]] = Tensor(names[1], dtype, zero.shape, zero)
    return names


def _biased(places: Places, graph: Graph, layers: set[str], exact: bool) -> Graph:
    """Int32 biases of `layers` with scale = float32(input scale * weight scale) as they now are.

    With `exact` from the float model's bias, else from the value that the bias has (a corrected bias stays corrected).
    """
    tensors, nodes = dict(graph.tensors), list(graph.nodes)
    places_of = {node.name: index for index, node in enumerate(nodes)}
    for name in layers:
        layer = graph.node(name)
        maker = graph.producers.get(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] else None
        if maker is None or maker.name not in places.biases:
            continue
        step, weight = _scale_behind(graph, layer.inputs[0]), _scale_behind(graph, layer.inputs[1])
        stored = graph.tensors[maker.inputs[0]]
        if step is None or weight is None or stored.data is None or stored.quantization is None:
            continue
        value = places.biases[maker.name] if exact else None
        if value is None:
            scales = stored.quantization.scales()
            value = dequantize(stored.data, scales, None, stored.quantization.axis if scales.ndim else None)
        # As `hwq.quantize` has it: one float32 product.
        scale = np.asarray(np.clip(step * weight, np.float32(TINY), np.float32(HUGE)), np.float32)
        lowest, highest = integer_range("int32")
        integers = np.clip(np.rint(value.astype(np.float64) / scale), lowest, highest).astype(np.int32)
        label = f"{maker.name}_changed"
        axis = 0 if scale.ndim else None
        tensors[f"{label}_scale"] = Tensor(f"{label}_scale", "float32", scale.shape, scale)
        tensors[label] = Tensor(label, "int32", integers.shape, integers, Quantization("int32", scale, axis=axis))
        nodes[places_of[maker.name]] = dataclasses.replace(
            maker, inputs=(label, f"{label}_scale"), attributes={} if axis is None else {"axis": 0}
        )
    return _with(graph, nodes, tensors)


def _scale_behind(graph: Graph, value: str) -> Array | None:
    maker = graph.producers.get(value)
    scale = None if maker is None or maker.op != "DequantizeLinear" else graph.constant(maker.inputs[1])
    return None if scale is None else scale.astype(np.float32)


def _with(graph: Graph, nodes: Iterable[Node], tensors: dict[str, Tensor]) -> Graph:
    """The graph with these nodes and whatever tensors they and its ends still name."""
    kept = tuple(nodes)
    named = {name for node in kept for name in (*node.inputs, *node.outputs)} | {*graph.inputs, *graph.outputs}
    return graph.replace(nodes=kept, tensors=[tensor for name, tensor in tensors.items() if name in named])
