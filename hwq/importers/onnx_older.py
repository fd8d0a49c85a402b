"""Operators of opsets 7 to 12 in the form that opset 13 gave them.

Axes and parts moved from attributes to inputs (Squeeze, Unsqueeze, ReduceSum, Split; before them Slice, TopK, Pad and Clip), Dropout's
ratio too; Softmax and its logarithm took everything from their axis on as one row, by default from axis 1. Upsample, and Resize
before opset 11, counted positions from the corner and took the one below. The other operators kept their meaning: opset 7
brought NumPy's broadcasting, and is where onnxruntime begins too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, carrier
from hwq.names import display_name

__all__ = ["OLDEST", "RAISED", "raise_rows", "raised"]

OLDEST, RAISED = 7, 13
# Operator: the opset that made inputs of these attributes. Clip's and Pad's values have the operand's type, the others are int64.
_MOVED: Mapping[str, tuple[int, tuple[str, ...]]] = MappingProxyType({
    "Squeeze": (13, ("axes",)), "Unsqueeze": (13, ("axes",)), "ReduceSum": (13, ("axes",)), "Split": (13, ("split",)),
    "Clip": (11, ("min", "max")), "Pad": (11, ("pads", "value")), "TopK": (10, ("k",)), "Slice": (10, ("starts", "ends", "axes")),
    "Upsample": (9, ("scales",)),
})  # fmt: skip
_ROWS = frozenset({"Softmax", "LogSoftmax"})
# Marks a node of `_ROWS` until shapes are known.
MARK = "rows_from"


def raised(
    op: str, opset: int, inputs: list[str], attributes: dict[str, Any], dtype: str
) -> tuple[str, list[str | Array]]:
    """The operator of opset 13: its name and its inputs, names or constants; attributes are changed in place.

    Parameters
    ----------
    op : str
    opset : int
        The model's, at least `OLDEST`.
    inputs : list of str
    attributes : dict
    dtype : str
        Element type of the first operand.

    Raises
    ------
    Error
        It meant something that opset 13 cannot say.
    """
    given: list[str | Array] = list(inputs)
    if op == "Dropout":
        attributes.pop("ratio", None)
    if op in _ROWS:
        attributes[MARK] = int(attributes.pop("axis", 1))
    if op == "BatchNormalization" and opset < 9 and not attributes.pop("spatial", 1):
        raise Error(
            "BatchNormalization of every place by itself (spatial = 0) is not supported", where=f"node of {inputs[:1]}"
        )
    until, names = _MOVED.get(op, (0, ()))
    if opset < until:
        moved = [attributes.pop(name, None) for name in names]
        if op == "Pad" and not moved[1]:
            moved.pop()
        while moved and moved[-1] is None:
            moved.pop()
        kinds: list[Any] = [np.int64] * len(moved)
        if op == "Clip":
            kinds = [carrier(dtype)] * len(moved)
        elif op == "Pad":
            kinds[1:] = [carrier(dtype)] * (len(moved) - 1)
        elif op == "Upsample":
            kinds = [np.dtype(np.float32)] * len(moved)
        constants = ["" if value is None else np.asarray(value, kind) for value, kind in zip(moved, kinds, strict=True)]
        given[1:] = [one.reshape(() if op == "Clip" or (op == "Pad" and place) else -1) if isinstance(one, np.ndarray) else one
                     for place, one in enumerate(constants)]  # fmt: skip
    if op in {"Upsample", "Resize"} and opset < 11:
        # Upsample's scales are at least 1; where a Resize shrank, onnxruntime floors too.
        attributes.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        return "Resize", [*given[:1], "", *given[1:]]
    return op, given


def raise_rows(graph: Graph) -> Graph:
    """Softmax over one axis, once shapes are known.

    Raises
    ------
    Error
        A row has several axes longer than 1, or its rank is unknown.
    """
    return graph.replace(nodes=[_one_axis(graph, node) if _takes_rows(node) else node for node in graph.nodes])


def _takes_rows(node: Node) -> bool:
    """Whether a softmax takes all axes from one on; onnxruntime's own states whose opset it follows."""
    return MARK in node.attributes or (
        node.op == "QLinearSoftmax" and int(node.attributes.get("opset", RAISED)) < RAISED
    )


def _one_axis(graph: Graph, node: Node) -> Node:
    x, attributes = graph.tensors[node.inputs[0]], dict(node.attributes)
    axis = int(attributes.pop(MARK, attributes.get("axis", -1)))
    if "opset" in attributes:
        attributes["opset"] = RAISED
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
