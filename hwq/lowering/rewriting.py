"""A graph while it is being rewritten: nodes and values that can change, with every reader of a value at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from hwq.graph import Array, Graph, Node, Quantization, Tensor

__all__ = ["Draft", "Edge", "constant_like", "same_quantization"]

# One reader of a value: the key of the node that reads it, and the index among that node's inputs.
Edge = tuple[float, int]

# Nodes added beside another take keys this far apart; a rewrite adds far fewer than 1 / STEP nodes beside any one node.
STEP = 2.0**-20


def constant_like(value: Array) -> Tensor:
    """A nameless constant, to be named by `Draft.fresh`."""
    return Tensor("", str(value.dtype), value.shape, value)


class Draft:
    """A mutable copy of a graph. Keys of nodes are numbers that keep their order; they are never reused.

    `overridable` names constants that a rule must not rest on, since a caller of the runtime may give others.
    """

    def __init__(self, graph: Graph, overridable: Collection[str] = ()):
        self.source = graph
        self._overridable = set(overridable)
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self.tensors: dict[str, Tensor] = dict(graph.tensors)
        self.nodes: dict[float, Node] = {}
        self._makers: dict[str, float] = {}
        self._readers: dict[str, list[Edge]] = {}
        self._names = {node.name for node in graph.nodes}
        for position, node in enumerate(graph.nodes):
            self._insert(float(position), node)

    def keys(self) -> list[float]:
        """The keys of all nodes, in order."""
        return sorted(self.nodes)

    def __iter__(self) -> Iterator[tuple[float, Node]]:
        """Nodes in order, as they stand now; a node that is removed meanwhile is skipped."""
        for key in self.keys():
            if key in self.nodes:
                yield key, self.nodes[key]

    def maker(self, value: str) -> tuple[float, Node] | None:
        """The node that makes a value, or None for an input, a constant or an absent name."""
        key = self._makers.get(value)
        return None if key is None else (key, self.nodes[key])

    def edges(self, value: str) -> list[Edge]:
        """Every place where a value is read: a node that reads it twice counts twice."""
        return list(self._readers.get(value, ()))

    def readers(self, value: str) -> list[tuple[float, Node]]:
        """The nodes that read a value, once an edge."""
        return [(key, self.nodes[key]) for key, _ in self._readers.get(value, ())]

    def only_reader(self, value: str) -> tuple[float, Node] | None:
        """The node at the one edge of a value that is no output of the graph; None where there is not exactly one."""
        edges = self._readers.get(value, ())
        if len(edges) != 1 or value in self.outputs:
            return None
        return edges[0][0], self.nodes[edges[0][0]]

    def constant(self, value: str) -> Array | None:
        """A constant's data, or None; None too where a caller may give other data."""
        return None if value in self._overridable else self.known(value)

    def known(self, value: str) -> Array | None:
        """The data of a constant or of an input's default, or None."""
        tensor = self.tensors.get(value) if value else None
        return None if tensor is None or value in self._makers else tensor.data

    def open(self, value: str) -> None:
        """Say that a constant follows from what a caller may replace."""
        self._overridable.add(value)

    def fresh(self, base: str, like: Tensor) -> str:
        """Declare a new value named after `base`, with the type and shape of `like`."""
        name = base
        counter = 0
        while name in self.tensors:
            counter += 1
            name = f"{base}_{counter}"
        self.tensors[name] = dataclasses.replace(like, name=name)
        return name

    def add(self, node: Node, near: float, after: bool = True) -> float:
        """Insert a node beside the one with key `near`; its name is made unique."""
        step = STEP if after else -STEP
        key = near + step
        while key in self.nodes:
            key += step
        self._insert(key, node)
        return key

    def unique(self, base: str) -> str:
        """A node name that is not taken, reserved from now on."""
        name = base
        counter = 0
        while name in self._names:
            counter += 1
            name = f"{base}_{counter}"
        self._names.add(name)
        return name

    def remove(self, key: float) -> None:
        """Take a node out; its outputs stay declared."""
        node = self.nodes.pop(key)
        self._names.discard(node.name)
        for output in node.outputs:
            if output:
                del self._makers[output]
        for index, value in enumerate(node.inputs):
            if value:
                self._readers[value].remove((key, index))

    def exchange(self, key: float, node: Node) -> None:
        """Put another node in the place of one."""
        self.remove(key)
        self._insert(key, node)

    def set_input(self, edge: Edge, value: str) -> None:
        """Let one input of one node read another value."""
        key, index = edge
        inputs = list(self.nodes[key].inputs)
        inputs[index] = value
        self.exchange(key, dataclasses.replace(self.nodes[key], inputs=tuple(inputs)))

    def redirect(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`."""
        for edge in self.edges(old):
            self.set_input(edge, new)

    def finish(self, dialect: str) -> Graph:
        """The lowered graph: only values that are still made or read are kept."""
        nodes = [self.nodes[key] for key in self.keys()]
        used = {*self.inputs, *self.outputs}
        for node in nodes:
            used.update(value for value in (*node.inputs, *node.outputs) if value)
            if node.body:
                used.update(self._parameters(node.body))
        tensors = [tensor for name, tensor in self.tensors.items() if name in used]
        return self.source.replace(nodes=nodes, tensors=tensors, form="lowered", dialect=dialect)

    def _parameters(self, body: Sequence[Node]) -> Iterator[str]:
        # Constants that a group swallowed (scales, zero points) stay readable through its body.
        for node in body:
            for value in node.inputs:
                if value and self.known(value) is not None:
                    yield value

    def _insert(self, key: float, node: Node) -> None:
        self.nodes[key] = node
        self._names.add(node.name)
        for output in node.outputs:
            if output:
                self._makers[output] = key
        for index, value in enumerate(node.inputs):
            if value:
                self._readers.setdefault(value, []).append((key, index))


def same_quantization(one: Quantization, other: Quantization) -> bool:
    """Whether both say the same of stored integers, bit for bit; of a single channel the axis says nothing."""
    if not (one.known and other.known) or (one.dtype, one.block) != (other.dtype, other.block):
        return False
    if one.axis != other.axis and (one.block is not None or one.scales().size != 1):
        return False
    points = one.zero_points().reshape(-1), other.zero_points().reshape(-1)
    return one.scales().tobytes() == other.scales().tobytes() and np.array_equal(*points)
