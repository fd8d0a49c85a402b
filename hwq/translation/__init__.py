"""Translation: the same quantized network in the operators and stored types of another runtime.

Integers stay what they stand for: uint8 activations are int8 ones moved by 128, channels-first and channels-last differ in
layout only, and a float bias becomes int32 where a runtime has no other. What a runtime cannot represent is an `Error`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hwq.dialect import find
from hwq.graph import Array, Graph

__all__ = ["Translation", "Value", "in_onnx", "is_tflite", "translate"]

TFLITE = frozenset({"litert-ref", "litert-ref-fixedfc", "litert-xnnpack"})


@dataclass(frozen=True)
class Value:
    """Where a value of the source lies in the translated graph.

    Attributes
    ----------
    name : str
    axis : pair of int, optional
        ``np.moveaxis`` of this gives the source's layout: (-1, 1) where its channels stand last there and second in the source.
    offset : int
        What the source's stored integers have more.
    """

    name: str
    axis: tuple[int, int] | None = None
    offset: int = 0

    def restored(self, array: Array, dtype: np.dtype[np.generic]) -> Array:
        """A value of the translated graph in the source's layout and type."""
        turned = array if self.axis is None else np.moveaxis(array, *self.axis)
        return turned.astype(dtype) if not self.offset else (turned.astype(np.int64) + self.offset).astype(dtype)


@dataclass(frozen=True)
class Translation:
    """A network in another runtime's operators.

    Attributes
    ----------
    graph : Graph
        In source form; its inputs and outputs have the source's names, types and shapes.
    values : mapping of the source's value to `Value`
        Those that both graphs hold; others keep their name.
    """

    graph: Graph
    values: Mapping[str, Value] = field(default_factory=dict)

    def then(self, other: Translation) -> Translation:
        """This translation, and another one of its graph."""
        values = dict(self.values)
        for name, value in values.items():
            found = other.values.get(value.name)
            if found is not None and found.axis is None:
                values[name] = Value(found.name, value.axis, value.offset + found.offset)
        return Translation(other.graph, values)


def is_tflite(graph: Graph) -> bool:
    """Whether any operator is TFLite's."""
    return graph.form == "source" and any(node.domain == "tflite" for node in graph.nodes)


def in_onnx(graph: Graph) -> Graph:
    """The graph in ONNX's operators; itself where it is.

    Raises
    ------
    Error
        An operator of TFLite has no counterpart.
    """
    return translate(graph, "ort").graph if is_tflite(graph) else graph


def translate(graph: Graph, dialect: str) -> Translation:
    """Write a quantized graph of ONNX or TFLite in the operators of the runtime that a dialect names.

    Parameters
    ----------
    graph : Graph
        In source form, quantized with Q and DQ nodes, with integer operators, or as TFLite does.
    dialect : str

    Returns
    -------
    Translation
        The graph itself where the runtime executes it as it is.

    Raises
    ------
    Error
        The runtime has no such operator, type or quantization.
    """
    find(dialect, usable=True)
    if is_tflite(graph):
        if dialect in TFLITE:
            return Translation(graph)
        from hwq.translation.onnx import to_onnx

        made = to_onnx(graph)
        return made.then(translate(made.graph, dialect))
    if dialect in TFLITE:
        from hwq.translation.tflite import to_tflite

        return to_tflite(graph, dialect)
    if dialect.startswith("torch-fbgemm"):
        from hwq.translation.eager import to_eager

        return to_eager(graph)
    return Translation(graph)
