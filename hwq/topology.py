"""The order of a graph's nodes: every value is made once, and before it is read."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from hwq.errors import Error
from hwq.names import display_name
from hwq.node import Node
from hwq.tensor import Tensor

__all__ = ["sort_nodes"]


def sort_nodes(nodes: tuple[Node, ...], tensors: Mapping[str, Tensor], inputs: tuple[str, ...]) -> tuple[Node, ...]:
    """Return the nodes so that every value is made before it is read; nodes already in such an order stay as they are.

    Raises
    ------
    Error
        A value is made twice or never, or the nodes form a cycle.
    """
    maker: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for output in node.outputs:
            if not output:
                continue
            if output in maker or output in inputs:
                raise Error(
                    "this value is made twice",
                    where=f"tensor {output}",
                    why=f"node {display_name(node.name)} makes it again",
                    remedy="give every node output a name of its own",
                )
            if output not in tensors:
                raise Error(
                    "a node makes a value that the graph does not declare", where=f"node {node.name}, output {output}"
                )
            maker[output] = index
    known = set(inputs) | {name for name, tensor in tensors.items() if name not in maker}
    waiting: list[int] = []
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        needed = {maker[value] for value in node.inputs if value and value in maker}
        for value in node.inputs:
            if value and value not in maker and value not in known:
                raise Error(
                    "a node reads a value that nothing makes",
                    where=f"node {node.name}, input {value}",
                    why="it is neither a graph input, nor an initializer, nor a node's output",
                    remedy="the file is damaged or was cut out of a larger model; export it again",
                )
        waiting.append(len(needed))
        for other in needed:
            readers.setdefault(other, []).append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) != len(nodes):
        stuck = next(node for index, node in enumerate(nodes) if waiting[index] > 0)
        raise Error(
            "the nodes form a cycle",
            where=f"node {stuck.name}",
            why="it waits, through others, for its own output",
            remedy="a model must be acyclic; export it again",
        )
    return tuple(nodes[index] for index in order)
