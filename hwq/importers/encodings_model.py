"""The plan of a quantized model (QDQ, QOperator, run-time ranges, packed weights; TFLite) in the float model's names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hwq.encodings import plain_name
from hwq.graph import Graph, Node
from hwq.importers.encodings import Imported, require_axis
from hwq.operator_kinds import CLAMPS, MATRIX
from hwq.ops.folding import fold
from hwq.plan import Plan
from hwq.plan_operators import with_operators
from hwq.plan_reading import literal

__all__ = ["parse"]

# What tools add to the name of a weight that they store: hwq and onnxruntime, AIMET, ModelOpt, NNCF.
_STORED = re.compile(r"(?:q_output_)?(.+?)(?:_quantized|_q|_i4|_Q\d|_\d+)?$")


def parse(model: Graph, graph: Graph | None) -> Imported:
    """The plan that a quantized model obeys; for the float model `graph`, where given, in its names.

    Raises
    ------
    NotSupportedYet
        Weights whose scales or blocks stand along another axis than a plan's.
    """
    model = with_operators(model)
    for name, node, slot in _weights(model):
        how = model.tensors[name].quantization
        if how is not None and how.known:
            require_axis(name, how.axis, how.block, how.scales().ndim, node, slot, len(model.tensors[name].shape))
    plan = Plan.of(model)
    return Imported(plan, "quantized model") if graph is None else _for(graph, model, plan)


def _weights(model: Graph) -> Iterator[tuple[str, Node, int]]:
    """Stored constants with the product that reads them, through their DequantizeLinear or as they are."""
    for node in model.nodes:
        for slot, name in enumerate(node.inputs[:2]) if node.op in MATRIX and not node.domain else ():
            back = model.producers.get(name)
            if back is not None and back.op == "DequantizeLinear":
                yield back.inputs[0], node, slot


def _for(graph: Graph, model: Graph, plan: Plan) -> Imported:
    """A quantized model's plan in the float model's names; rules for what it lacks are left out."""
    nodes = [*graph.nodes, *fold(graph).nodes]
    places = {(node.name, slot): name for node in graph.nodes for slot, name in enumerate(node.inputs)}
    rules, left = [], []
    for layer in plan.layers:
        rule = layer.model_dump(exclude_none=True)
        tensor = rule["match"].get("tensor")
        if tensor is None:
            rules.append({key: value for key, value in rule.items() if value})
            continue
        label = plain_name(tensor)
        name: str | None = label
        if not any(layer.match.fits(node) for node in nodes):
            name = _float_weight(label, model, graph, places) if rule["weights"] else None
        if name is None:
            left.append(f"tensor {label} is not in the model")
            continue
        if rule["weights"] and graph.constant(name) is not None:
            readers = [node for node in graph.consumers.get(name, ()) if node.op in MATRIX and name in node.inputs[:2]]
            if not readers:
                left.append(f"constant {name} is no weight of a convolution or product")
                continue
            if label in model.tensors and all(
                node.op == "Gemm" and node.attributes.get("transB", 0) for node in readers
            ):
                _turn(rule["weights"], label, model)
        rule["match"]["tensor"] = literal(_clamped(name, graph, model))
        rules.append({key: value for key, value in rule.items() if value})
    table = {**plan.model_dump(by_alias=True, exclude_none=True), "layers": rules}
    return Imported(Plan._checked(table, "imported plan"), "quantized model", tuple(left))


def _turn(weights: dict[str, Any], label: str, model: Graph) -> None:
    """Blocks of a matrix [K, N] in the order of its transpose, which is what the float model holds."""
    how = model.tensors[label].quantization
    if how is None or not how.block or any(node.op == "DequantizeLinear" for node in model.consumers.get(label, ())):
        return
    for key in ("scale", "zero_point"):
        if isinstance(weights.get(key), list):
            weights[key] = np.asarray(weights[key]).reshape(how.scales().shape).T.reshape(-1).tolist()


def _clamped(name: str, graph: Graph, model: Graph) -> str:
    """The value whose scale it is: a clamp that the integers' own bounds do is not in the model, only in the float one."""
    here = {node.name for node in model.nodes}
    while True:
        readers = graph.consumers.get(name, ())
        if len(readers) != 1 or readers[0].op not in CLAMPS or readers[0].name in here or name in graph.outputs:
            return name
        if readers[0].outputs[0] in model.tensors or readers[0].outputs[0] in graph.outputs:
            return name
        name = readers[0].outputs[0]


def _float_weight(label: str, model: Graph, graph: Graph, places: Mapping[tuple[str, int], str]) -> str | None:
    """The float model's constant in place of a stored one: what the same operator reads there, or the name that is left."""
    tensor = model.tensors.get(label)
    for reader in model.consumers.get(label, ()) if tensor is not None else ():
        for node in model.consumers.get(reader.outputs[0], ()) if reader.op == "DequantizeLinear" else (reader,):
            for slot, name in enumerate(node.inputs):
                found = places.get((node.name, slot)) if name in {label, *reader.outputs} else None
                if found is not None and graph.constant(found) is not None:
                    return found
    stripped = _STORED.match(label)
    return stripped[1] if stripped is not None and graph.constant(stripped[1]) is not None else None
