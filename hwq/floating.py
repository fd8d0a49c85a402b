"""Floating-point types of a plan: which nodes compute in float16 or bfloat16, with a Cast at every border."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, carrier
from hwq.names import display_name
from hwq.operator_kinds import MATRIX
from hwq.plan import Plan

if TYPE_CHECKING:
    from hwq.calibration import Calibration

__all__ = ["HALVES", "half_keys", "in_one_type", "require_range", "retyped", "widened"]

HALVES = frozenset({"float16", "bfloat16"})
LARGEST_HALF = 65504.0
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


def retyped(graph: Graph, plan: Plan, values: bool = False) -> Graph:
    """The graph in the plan's floating-point types: outputs and operands of a node have its type, Casts stand between.

    A Conv, Gemm or MatMul whose weights are 16-bit floats computes in their type, unless the plan says float32 for its
    activations. Constants that the plan stores in another type than their node computes in keep that type in front of a
    Cast.

    Parameters
    ----------
    values : bool
        Keep the values of constants, rounded to nearest even, the types of the model's inputs and outputs, and in float32
        what the plan stores as integers. False: for cost only.

    Raises
    ------
    Error
        With `values`, a constant beyond the largest float16.
    """
    if next(half_keys(graph, plan), None) is None:
        return graph
    return _Retyper(graph, plan, values).run()


def in_one_type(node: Node, operands: list[Array | None]) -> list[Array | None]:
    """The operands of a product or convolution, with its float32 weights in the 16-bit type that it computes in: `retyped`
    leaves them float32 where the plan stores them as integers.
    """
    types = {one.dtype for one in operands if one is not None}
    if node.op not in MATRIX or node.domain or len(types) < 2 or operands[0] is None:
        return operands
    dtype = next((one for one in types if one != np.float32), operands[0].dtype)
    return [None if one is None else one.astype(dtype, copy=False) for one in operands]


def widened(graph: Graph) -> Graph:
    """The graph with float32 in the place of the 16-bit types of `retyped`: the same shapes, and sizes that bound its own."""
    if not any(tensor.dtype in HALVES for tensor in graph.tensors.values()):
        return graph
    tensors = [
        dataclasses.replace(one, dtype="float32", data=None) if one.dtype in HALVES else one
        for one in graph.tensors.values()
    ]
    nodes = [
        dataclasses.replace(node, attributes={**node.attributes, "to": "float32"})
        if node.op == "Cast" and node.attributes.get("to") in HALVES
        else node
        for node in graph.nodes
    ]
    return graph.replace(tensors=tensors, nodes=nodes)


def require_range(before: Graph, after: Graph, cal: Calibration) -> None:
    """Refuse float16 where calibration saw larger values.

    Raises
    ------
    Error
        Names the value and the largest seen.
    """
    for name, tensor in after.tensors.items():
        source = name
        maker = after.producers.get(name)
        if maker is not None and maker.op == "Cast":
            source = maker.inputs[0]
        if tensor.dtype != "float16" or source not in before.tensors or source not in cal.tensors:
            continue
        seen = cal[source]
        largest = max(-float(seen.minima.min(initial=0.0)), float(seen.maxima.max(initial=0.0)))
        if largest > LARGEST_HALF:
            raise _overflow(f"tensor {display_name(source)}", largest)


def _overflow(where: str, largest: float) -> Error:
    return Error(
        "a value does not fit into float16",
        where=where,
        why=f"it reaches {largest:.6g}, float16 ends at {LARGEST_HALF:.0f}",
        remedy='dtype = "bfloat16" or "float32" for this layer',
    )


class _Retyper:
    def __init__(self, graph: Graph, plan: Plan, values: bool):
        self.old, self.plan, self.values = graph, plan, values
        self.tensors = dict(graph.tensors)
        self.nodes: list[Node] = []
        self.casts: dict[tuple[str, str], str] = {}
        self.settled: set[str] = set()

    def run(self) -> Graph:
        for name in self.old.inputs:
            readers = self.old.consumers.get(name, ())
            if self.values:
                self.settled.add(name)
            elif readers and self._real(name):
                self._set(name, self._type(readers[0]))
        for node in self.old.nodes:
            self._node(node)
        return self.old.replace(nodes=self.nodes, tensors=self.tensors.values())

    def _real(self, name: str) -> bool:
        return bool(name) and self.old.tensors[name].dtype in REALS

    def _type(self, node: Node) -> str:
        planned: str = self.plan.activations_of(node.outputs, (node,)).dtype
        weights = [name for name in node.inputs[1::-1] if self._parameter(name)]
        if planned not in REALS and node.op in MATRIX and not node.domain and weights:
            planned = self.plan.weights_of(node, weights[0]).dtype
        return planned if planned in HALVES and node.op not in MAKERS else "float32"

    def _parameter(self, name: str) -> bool:
        return name not in self.old.producers and name not in self.old.inputs

    def _set(self, name: str, dtype: str) -> None:
        tensor = self.tensors[name]
        data = tensor.data
        if data is not None and tensor.dtype != dtype and self.values:
            if dtype == "float16":
                self._require(name)
            data = data.astype(carrier(dtype))
        elif data is not None and tensor.dtype != dtype:
            data = data.astype(carrier(dtype)) if data.size <= KEPT_ELEMENTS else None
        self.tensors[name] = dataclasses.replace(tensor, dtype=dtype, data=data)
        self.settled.add(name)

    def _require(self, name: str) -> None:
        """Refuse a constant that float16 cannot hold; infinity, as a bound that is not there, it can."""
        data = self.tensors[name].data
        largest = 0.0 if data is None else float(np.abs(data[np.isfinite(data)], dtype=np.float64).max(initial=0.0))
        if largest > LARGEST_HALF:
            raise _overflow(f"constant {display_name(name)}", largest)

    def _node(self, node: Node) -> None:
        wanted, inputs = self._type(node), list(node.inputs)
        for slot, name in enumerate(node.inputs):
            if (
                not self._real(name)
                or (slot >= FIXED_OPERANDS.get(node.op, len(inputs)) and slot > 0)
                or node.op == "Cast"
            ):
                continue
            matrix = slot < 2 and node.op in MATRIX
            if self.values and matrix and self._parameter(name) and not self.plan.weights_of(node, name).floating:
                if wanted == "float16":
                    self._require(name)
                continue  # stored as integers, dequantized, then cast
            if name not in self.settled:  # a constant at its first reader
                stored = self.plan.weights_of(node, name).dtype
                self._set(name, stored if matrix and stored in REALS and stored != "float32" else wanted)
            if self.tensors[name].dtype != wanted:
                inputs[slot] = self._cast(name, wanted)
        outputs, behind = list(node.outputs), []
        for slot, name in enumerate(node.outputs):
            if self._real(name) and self.values and name in self.old.outputs and wanted != "float32":
                outputs[slot] = self._made(name, wanted)
                behind.append(Node("Cast", f"{name}_Cast", (outputs[slot],), (name,), {"to": "float32"}))
                self.casts[name, wanted] = outputs[slot]
                self.settled.add(name)
            elif self._real(name):
                self._set(name, wanted)
        attributes = dict(node.attributes)
        if node.op == "Cast" and self._real(node.outputs[0]):
            attributes["to"] = wanted
        self.nodes.append(
            dataclasses.replace(node, inputs=tuple(inputs), outputs=tuple(outputs), attributes=attributes)
        )
        self.nodes += behind

    def _cast(self, name: str, dtype: str) -> str:
        if (name, dtype) not in self.casts:
            made = self._made(name, dtype)
            self.nodes.append(Node("Cast", f"{made}_Cast", (name,), (made,), {"to": dtype}))
            self.settled.add(made)
            self.casts[name, dtype] = made
        return self.casts[name, dtype]

    def _made(self, name: str, dtype: str) -> str:
        """A new value like another, in another type."""
        made = f"{name}_{dtype}"
        while made in self.tensors:
            made += "_"
        self.tensors[made] = dataclasses.replace(self.tensors[name], name=made, dtype=dtype, data=None)
        return made
