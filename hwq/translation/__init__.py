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

__all__ = ["Translation", "Value", "translate"]

TFLITE = frozenset({"litert-ref", "litert-ref-fixedfc", "litert-xnnpack"})


@dataclass(frozen=True)
class Value:
    """Where a value of the source lies in the translated graph.

    Attributes
    ----------
    name : str
    channels_last : bool
        Its channels stand last there, and second in the source.
    offset : int
        What the source's stored integers have more.
    """

    name: str
    channels_last: bool = False
    offset: int = 0

    def restored(self, array: Array, dtype: np.dtype[np.generic]) -> Array:
        """A value of the translated graph in the source's layout and type."""
        turned = np.moveaxis(array, -1, 1) if self.channels_last else array
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


def translate(graph: Graph, dialect: str) -> Translation:
    """Write a quantized ONNX graph in the operators of the runtime that a dialect names.

    Parameters
    ----------
    graph : Graph
        In source form, quantized with Q and DQ nodes or with integer operators.
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
    if any(node.domain == "tflite" for node in graph.nodes):
        return Translation(graph)
    if dialect in TFLITE:
        from hwq.translation.tflite import to_tflite

        return to_tflite(graph, dialect)
    if dialect.startswith("torch-fbgemm"):
        from hwq.translation.eager import to_eager

        return to_eager(graph)
    return Translation(graph)
