"""Liveness: how long each value is needed, and where it lies in one arena beside those that live with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwq.graph import Graph

__all__ = ["ALIGNMENT_BYTES", "Lifetime", "lifetimes", "place"]

# Offsets are multiples of a cache line, which also suits every vector load.
ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Lifetime:
    """A value and the nodes (by position) between which it must be kept: made at `first`, last read at `last`."""

    name: str
    first: int
    last: int
    bytes: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both must be kept at some moment. A node's operands and results are alive together."""
        return self.first <= other.last and other.first <= self.last


def lifetimes(graph: Graph) -> list[Lifetime]:
    """The lifetime of every value that a node makes, in order; outputs of the graph live to its end.

    Raises
    ------
    Error
        A shape still has open dimensions.
    """
    end = len(graph.nodes)
    last: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        for value in (*node.inputs, *node.outputs):
            last[value] = position
    last.update(dict.fromkeys(graph.outputs, end))
    return [
        Lifetime(value, position, last[value], graph.tensors[value].bytes)
        for position, node in enumerate(graph.nodes)
        for value in node.outputs
        if value
    ]


def place(values: Sequence[Lifetime]) -> tuple[dict[str, int], int]:
    """Offsets in one arena, and the arena's size, in bytes.

    Greedy by size: the largest values first, each at the lowest offset where it overlaps nothing that lives with it.
    """
    placed: list[tuple[int, Lifetime]] = []
    offsets: dict[str, int] = {}
    total = 0
    for value in sorted(values, key=lambda one: (-one.bytes, one.first, one.name)):
        offset = 0
        for start, other in sorted(
            ((start, other) for start, other in placed if value.overlaps(other)), key=lambda pair: pair[0]
        ):
            if offset + value.bytes <= start:
                break
            offset = max(offset, -(-(start + other.bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        placed.append((offset, value))
        offsets[value.name] = offset
        total = max(total, offset + value.bytes)
    return offsets, total
