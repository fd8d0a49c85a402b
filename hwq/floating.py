"""Floating-point types of a plan: which nodes compute in float16 or bfloat16, with a Cast at every border."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hwq.graph import Graph, Node, Tensor, carrier
from hwq.plan import Plan

__all__ = ["half_keys", "retyped"]

HALVES = frozenset({"float16", "bfloat16"})
REALS = HALVES | {"float32"}
# Constants up to this size may steer shapes and keep their values; larger ones are weights, whose values cost does
# not need.
KEPT_ELEMENTS = 1024
# These make float32 whatever the plan says (their type is an attribute), and these operands stay float32 by the
# operator's definition.
MAKERS = frozenset({"ConstantOfShape", "Range", "EyeLike", "RandomNormal", "RandomUniform", "DynamicQuantizeLinear"})
FIXED_OPERANDS = {"Resize": 1, "Upsample": 1}


def half_keys(graph: Graph, plan: Plan) -> Iterator[tuple[str, str, str]]:
    """(key, type, place) of every wish of the plan for a 16-bit floating-point type in this graph."""
    for node in graph.nodes:
        planned = plan.activations_of(node.outputs, (node,))
        if planned.dtype in HALVES:
            yield "activations.dtype", planned.dtype, node.name
        for name in node.inputs:
            if (
                name
                and name not in graph.producers
                and name not in graph.inputs
                and plan.weights_of(node, name).dtype in HALVES
            ):
                yield "weights.dtype", plan.weights_of(node, name).dtype, node.name


def retyped(graph: Graph, plan: Plan) -> Graph:
    """The graph in the plan's floating-point types: outputs and operands of a node have its type, Casts stand between.

    Constants that the plan stores in another type than their node computes in keep that type in front of a Cast.
    """
    if next(half_keys(graph, plan), None) is None:
        return graph
    return _Retyper(graph, plan).run()


class _Retyper:
    def __init__(self, graph: Graph, plan: Plan):
        self.old, self.plan = graph, plan
        self.tensors = dict(graph.tensors)
        self.nodes: list[Node] = []
        self.casts: dict[tuple[str, str], str] = {}
        self.settled: set[str] = set()

    def run(self) -> Graph:
        for name in self.old.inputs:
            readers = self.old.consumers.get(name, ())
            if readers and self._real(name):
                self._set(name, self._type(readers[0]))
        for node in self.old.nodes:
            self._node(node)
        return self.old.replace(nodes=self.nodes, tensors=self.tensors.values())

    def _real(self, name: str) -> bool:
        return bool(name) and self.old.tensors[name].dtype in REALS

    def _type(self, node: Node) -> str:
        planned = self.plan.activations_of(node.outputs, (node,))
        return planned.dtype if planned.dtype in HALVES and node.op not in MAKERS else "float32"

    def _set(self, name: str, dtype: str) -> None:
        tensor = self.tensors[name]
        data = tensor.data
        if data is not None and tensor.dtype != dtype:
            data = data.astype(carrier(dtype)) if data.size <= KEPT_ELEMENTS else None
        self.tensors[name] = dataclasses.replace(tensor, dtype=dtype, data=data)
        self.settled.add(name)

    def _node(self, node: Node) -> None:
        wanted, inputs = self._type(node), list(node.inputs)
        for slot, name in enumerate(node.inputs):
            if (
                not self._real(name)
                or (slot >= FIXED_OPERANDS.get(node.op, len(inputs)) and slot > 0)
                or node.op == "Cast"
            ):
                continue
            if name not in self.settled:  # a constant at its first reader
                stored = self.plan.weights_of(node, name).dtype
                matrix = slot < 2 and node.op in {"Conv", "Gemm", "MatMul"}
                self._set(name, stored if matrix and stored in REALS and stored != "float32" else wanted)
            if self.tensors[name].dtype != wanted:
                inputs[slot] = self._cast(name, wanted)
        for name in node.outputs:
            if self._real(name):
                self._set(name, wanted)
        attributes = dict(node.attributes)
        if node.op == "Cast" and self._real(node.outputs[0]):
            attributes["to"] = wanted
        self.nodes.append(dataclasses.replace(node, inputs=tuple(inputs), attributes=attributes))

    def _cast(self, name: str, dtype: str) -> str:
        if (name, dtype) not in self.casts:
            made = f"{name}_{dtype}"
            while made in self.tensors:
                made += "_"
            self.tensors[made] = Tensor(
                made, dtype, self.tensors[name].shape, known_shape=self.tensors[name].known_shape
            )
            self.nodes.append(Node("Cast", f"{made}_Cast", (name,), (made,), {"to": dtype}))
            self.settled.add(made)
            self.casts[name, dtype] = made
        return self.casts[name, dtype]
