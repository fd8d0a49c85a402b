"""Operators of opsets 11 and 12 in the form that opset 13 gave them.

Axes and parts moved from attributes to inputs (Squeeze, Unsqueeze, ReduceSum, Split), Dropout's ratio too; Softmax and its
logarithm took everything from their axis on as one row, by default from axis 1. The other operators kept their meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node
from hwq.names import display_name

__all__ = ["OLDEST", "RAISED", "raise_rows", "raised"]

OLDEST, RAISED = 11, 13
_MOVED: Mapping[str, str] = MappingProxyType(
    {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split"}
)
_ROWS = frozenset({"Softmax", "LogSoftmax"})
# Marks a node of `_ROWS` until shapes are known.
MARK = "rows_from"


def raised(op: str, attributes: dict[str, Any]) -> Array | None:
    """Change one node's attributes in place; what becomes its second input, if anything."""
    if op == "Dropout":
        attributes.pop("ratio", None)
    if op in _ROWS:
        attributes[MARK] = int(attributes.pop("axis", 1))
    values = attributes.pop(_MOVED[op], None) if op in _MOVED else None
    return None if values is None else np.asarray(values, np.int64).reshape(-1)


def raise_rows(graph: Graph) -> Graph:
    """Softmax over one axis, once shapes are known.

    Raises
    ------
    Error
        A row has several axes longer than 1, or its rank is unknown.
    """
    return graph.replace(nodes=[_one_axis(graph, node) if MARK in node.attributes else node for node in graph.nodes])


def _one_axis(graph: Graph, node: Node) -> Node:
    x, attributes = graph.tensors[node.inputs[0]], dict(node.attributes)
    axis = int(attributes.pop(MARK))
    if axis != -1:
        rank = len(x.shape)
        sizes = x.shape[axis % rank :] if x.known_shape and -rank <= axis < rank else ()
        long = [place for place, size in enumerate(sizes, start=axis % max(rank, 1)) if size != 1]
        if not sizes or len(long) > 1:
            raise Error(
                f"{node.op} over several axes at once is not supported",
                where=f"node {display_name(node.name)}",
                why=f"before opset {RAISED} it takes axes {axis} and following as one row; its input is {list(x.shape) if x.known_shape else 'of unknown rank'}",
                remedy=f"convert it: onnx.version_converter.convert_version(model, {RAISED})",
            )
        axis = long[0] if long else axis
    return dataclasses.replace(node, attributes={**attributes, "axis": axis})
