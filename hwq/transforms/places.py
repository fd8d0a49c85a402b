"""Which rows of a layer's input its moments are taken from, and what stands beside its output at the same places.

Some rows of every sample, evenly over its places: rows of one sample are alike, so more of each say little more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hwq.graph import Array, Graph
from hwq.patches import Linear, Places, outputs_at, places_of, rows_of

__all__ = ["beside", "partner", "rows", "spread"]

Read = Callable[[str, Array], Array]
Values = Sequence[Mapping[str, Array]]

# Rows of one layer, as long as one of each sample is not more.
ROWS = 1 << 15
# Share of a step between the first places of one sample and the next, so that no two look at the same (the golden ratio's fraction).
TURN = 0.6180339887498949


def spread(layer: Linear, values: Values, most: int = ROWS) -> list[Places]:
    """Sample and place of every row, a pair of arrays for each piece of the samples."""
    sizes = [places_of(layer, piece[layer.operand]) for piece in values]
    each = max(1, most // max(1, sum(samples for samples, _ in sizes)))
    found, first = [], 0
    for samples, places in sizes:
        count = min(each, places)
        starts = np.modf((first + np.arange(samples)) * TURN)[0] if count < places else np.zeros(samples)
        at = np.floor((np.arange(count) + starts[:, None]) * (places / max(count, 1))).astype(np.int64)
        found.append((np.repeat(np.arange(samples), count), np.minimum(at, places - 1).reshape(-1)))
        first += samples
    return found


def rows(layer: Linear, values: Values, at: Sequence[Places], read: Read) -> Array:
    """The layer's input as (groups, rows, K) at these places; `read` gives a value as its readers see it."""
    found = [
        rows_of(layer, read(layer.operand, piece[layer.operand]).astype(np.float32, copy=False), one)
        for piece, one in zip(values, at, strict=True)
    ]
    return np.concatenate(found, axis=1)


def partner(graph: Graph, name: str) -> str:
    """The value that a layer's output is added to and nothing else is done with it, constants (a bias) aside; empty if none."""
    while True:
        readers = graph.consumers.get(name, ())
        if len(readers) != 1 or name in graph.outputs or readers[0].kind != "Add":
            return ""
        others = [one for one in readers[0].inputs if one != name]
        if len(others) != 1:
            return ""
        if graph.constant(others[0]) is None:
            return others[0]
        name = readers[0].outputs[0]


def beside(
    layer: Linear, channels: int, name: str, before: Values, after: Values, at: Sequence[Places], read: Read
) -> Array | None:
    """s - s^ as (groups, rows, channels of a group), s the value `name` of both models; None where either has none yet or s has not
    the shape of the layer's output.
    """
    found = []
    for plain, rounded, one in zip(before, after, at, strict=True):
        if name not in plain or name not in rounded or plain[name].dtype.kind != "f":
            return None
        off = plain[name].astype(np.float32) - read(name, rounded[name]).astype(np.float32)
        taken = outputs_at(layer, plain[layer.operand], off, one)
        if taken is None or taken.shape[0] * taken.shape[2] != channels:
            return None
        found.append(taken)
    return np.concatenate(found, axis=1)
