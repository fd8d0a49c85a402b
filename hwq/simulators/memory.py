"""What stays on chip between layers, and what a layer must fetch again when it does not fit.

A value stays on chip from the layer that makes it to the last layer that reads it if, at every step between, everything
that is alive fits into the memory. This is stricter than an allocator, and monotone: neither a larger memory nor fewer
bits ever sends more bytes off chip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Graph, Node
from hwq.work import Work

__all__ = ["OPERANDS", "ceil_divide", "offchip_bytes", "place", "stripe_passes"]

Column = NDArray[Any]

# The operands of a layer that are activations.
OPERANDS = ("input", "weight", "other", "output")


def ceil_divide(dividend: Any, divisor: Any) -> Any:
    """Smallest whole number not below ``dividend / divisor``, exact on integers."""
    return -(-dividend // divisor)


def place(graph: Graph, works: Sequence[Work]) -> dict[str, Column]:
    """Columns that say how much is alive beside each activation operand.

    Parameters
    ----------
    graph : Graph
        Lowered, concrete shapes; one Work a node, in order.

    Returns
    -------
    dict
        ``OPERAND_live`` (int64 bytes): the most that is alive at any step of the operand's life, itself included; 0 for
        parameters. ``OPERAND_external`` (bool): it is an input or output of the model.
    """
    root = _roots(graph, works)
    first, last = _lives(graph, root)
    alive = np.zeros(len(graph.nodes) + 1, np.int64)
    for value, start in first.items():
        alive[start : last[value] + 1] += graph.tensors[value].bytes
    peak = {value: int(alive[start : last[value] + 1].max()) for value, start in first.items()}
    ends = {root.get(value, value) for value in graph.outputs}
    table: dict[str, list[int]] = {f"{name}_{what}": [] for name in OPERANDS for what in ("live", "external")}
    for node, work in zip(graph.nodes, works, strict=True):
        for name, values in _operands(node, work, first, root).items():
            table[f"{name}_live"].append(max((peak[value] for value in values), default=0))
            outside = ends if name == "output" else graph.inputs
            table[f"{name}_external"].append(any(value in outside for value in values))
    return {key: np.array(values, np.bool_ if key.endswith("external") else np.int64) for key, values in table.items()}


def _roots(graph: Graph, works: Sequence[Work]) -> dict[str, str]:
    """The value that each view is a view of."""
    root: dict[str, str] = {}
    for node, work in zip(graph.nodes, works, strict=True):
        if work.kind == "none" and node.inputs and node.inputs[0]:
            for value in node.outputs:
                root[value] = root.get(node.inputs[0], node.inputs[0])
    return root


def _lives(graph: Graph, root: Mapping[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    """Index of the first and of the last node that touches each activation. Inputs start at their first reader."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for value in (*node.inputs, *node.outputs):
            value = root.get(value, value)
            if value and (value in graph.inputs or value in graph.producers) and graph.tensors[value].concrete:
                first.setdefault(value, index)
                last[value] = index
    return first, last


def _operands(node: Node, work: Work, known: Mapping[str, int], root: Mapping[str, str]) -> dict[str, list[str]]:
    read = [root.get(value, value) for value in node.inputs if value]
    read = [value for value in dict.fromkeys(read) if value in known]
    second = [read.pop(1)] if work.weight_is_activation and len(read) > 1 else []
    if work.weight_is_activation and not second:
        second = read[:1]
    made = [root.get(value, value) for value in node.outputs if value]
    return {
        "input": read[:1],
        "weight": second,
        "other": read[1:],
        "output": [value for value in made if value in known],
    }


def offchip_bytes(columns: Mapping[str, Column], capacity: Any) -> dict[str, Column]:
    """Bytes of each operand that cross the chip's edge, 0 for what stays within `capacity` bytes.

    Model inputs and outputs always cross.
    """
    crossing: dict[str, Column] = {}
    for name in OPERANDS:
        stays = (columns[f"{name}_live"] <= capacity) & ~columns[f"{name}_external"]
        if name == "weight":
            stays = stays & columns["weight_is_activation"]
        crossing[name] = np.where(stays, 0, columns[f"{name}_bytes"])
    return crossing


def stripe_passes(columns: Mapping[str, Column], operand: str, half: Any) -> Column:
    """How often the other operand streams by when this one is kept a stripe of `half` bytes at a time.

    Half the memory, because the next stripe loads while this one is used. Each group of a product has its own stripes.
    """
    kept = columns[f"{operand}_bytes"] / np.maximum(columns["groups"], 1)
    return np.asarray(np.maximum(1, np.ceil(kept / half))).astype(np.int64)
