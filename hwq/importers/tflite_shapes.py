"""Shapes of a TFLite graph: open where the file leaves them open and every operator can follow, else its defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hwq.errors import Error
from hwq.graph import Dim, Graph, Node, Tensor
from hwq.importers.tflite_tensors import TensorRecord
from hwq.ops import inference

__all__ = ["infer_shapes"]

BATCH = "N"


def infer_shapes(
    nodes: Sequence[Node],
    tensors: Sequence[Tensor],
    inputs: Sequence[TensorRecord],
    outputs: Sequence[str],
    *,
    name: str,
    source: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]] | None,
    where: str,
) -> Graph:
    """The graph with every shape inferred from its inputs.

    Raises
    ------
    Error
        The operators do not fit together, or `shapes` does not fit the inputs.
    """
    names = [record.name for record in inputs]

    def build(opened: Mapping[str, tuple[Dim, ...]], stated: bool) -> Graph:
        made = {value for node in nodes for value in node.outputs}
        changed = []
        for tensor in tensors:
            if tensor.name in opened:
                changed.append(dataclasses.replace(tensor, shape=opened[tensor.name]))
            elif tensor.name in made and not stated:
                changed.append(dataclasses.replace(tensor, shape=(), known_shape=False))
            else:
                changed.append(tensor)
        return Graph(nodes, changed, names, outputs, name=name, dialect="litert-ref", source=source)

    opened = {record.name: _opened(record) for record in inputs if -1 in record.signature}
    if opened or shapes:
        try:
            graph = inference.infer_shapes(build(opened, stated=False), shapes)
            if shapes or all(tensor.known_shape for tensor in graph.tensors.values()):
                return _checked(graph, tensors, where)
        except Error:
            if shapes:
                raise
    return _checked(inference.infer_shapes(build({}, stated=True)), tensors, where)


def _opened(record: TensorRecord) -> tuple[Dim, ...]:
    """The input's shape with a symbol for every open dimension; a batch is ``N`` in every input."""
    return tuple(
        dim if open_dim >= 0 else BATCH if axis == 0 else f"{record.name}_{axis}"
        for axis, (dim, open_dim) in enumerate(zip(record.shape, record.signature, strict=True))
    )


def _checked(graph: Graph, tensors: Sequence[Tensor], where: str) -> Graph:
    """The graph, once every inferred type is the one that the file states."""
    stated = {tensor.name: tensor.dtype for tensor in tensors}
    for tensor in graph.tensors.values():
        if stated.get(tensor.name, tensor.dtype) != tensor.dtype:
            raise Error(
                f"the file says {stated[tensor.name]}, its operator makes {tensor.dtype}",
                where=f"{where}, tensor {tensor.name}",
                why="a tensor has the type that its operator makes",
                remedy="the file is damaged; export it again",
            )
    return graph
