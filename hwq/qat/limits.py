"""How far a scale may be trained: a Clip that the range of its Q makes redundant stays so, and one that cuts goes on cutting.

Which operators a dialect fuses depends on that, so beyond these limits the converted graph would be another program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from hwq.graph import Graph, Node
from hwq.lowering.simplification import clip_bounds, range_cuts
from hwq.qat.operators import MOVERS

__all__ = ["FACTORS", "limits"]

# A scale's factor over its first value never leaves these bounds: a factor of 0 has no inverse.
FACTORS = 1 / 64, 64.0
# Halvings of the interval: to the last bit of a float32.
HALVINGS = 40


def limits(quantized: Graph, joined: Mapping[str, str], groups: bool) -> dict[str, tuple[float, float]]:
    """The least and largest factor of each learned scale, by its representative, where they are narrower than `FACTORS`.

    Parameters
    ----------
    quantized : Graph
    joined : mapping of scale constant to the representative of those that are trained together
    groups : bool
        Whether the dialect's groups take in a Clip that cuts: then only one that is redundant sets a limit.
    """
    found: dict[str, tuple[float, float]] = {}
    for node in quantized.nodes:
        scale = quantized.constant(node.inputs[1]) if node.op == "QuantizeLinear" else None
        if scale is None or node.inputs[1] not in joined or scale.size != 1:
            continue
        base, root = np.float32(scale.reshape(())), joined[node.inputs[1]]
        for cuts in _clips(quantized, node):
            low, high = found.get(root, FACTORS)
            if cuts(base):
                high = min(high, _edge(lambda factor, base=base, cuts=cuts: cuts(base * factor), FACTORS[1]))  # type: ignore[misc]
            elif not groups:
                low = max(low, _edge(lambda factor, base=base, cuts=cuts: not cuts(base * factor), FACTORS[0]))  # type: ignore[misc]
            found[root] = low, high
    return found


def _clips(quantized: Graph, quantize: Node) -> Iterator[Callable[[np.float32], bool]]:
    """For each Clip whose result the Q stores, as it is or moved: whether a scale makes it redundant."""
    stored = quantized.tensors[quantize.outputs[0]]
    points = quantized.constant(quantize.inputs[2]) if len(quantize.inputs) > 2 and quantize.inputs[2] else None
    offset, name = 0 if points is None else int(points.reshape(-1)[0]), quantize.inputs[0]
    while (maker := quantized.producers.get(name)) is not None and maker.op in MOVERS | {"Relu", "Clip"}:
        bounds = clip_bounds(quantized.constant, maker) if maker.op == "Clip" else None
        if bounds is not None and stored.dtype in {"int8", "uint8", "int16", "uint16"}:
            given, explicit = bounds, points is not None
            yield lambda scale, given=given, explicit=explicit: range_cuts(given, scale, offset, stored.dtype, explicit)  # type: ignore[misc]
        name = maker.inputs[0]


def _edge(holds: Callable[[np.float32], bool], far: float) -> float:
    """The factor farthest from 1 towards `far` at which what holds at 1 still holds; it fails from some factor on, or never."""
    inside, outside = np.float32(1), np.float32(far)
    if holds(outside):
        return float(outside)
    for _ in range(HALVINGS):
        middle = np.float32((inside + outside) / np.float32(2))
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return float(inside)
