"""Outlier clipping: what lies beyond c standard deviations of an activation's mean is cut off before it is quantized.

A few outliers set the step of every other value of a tensor. The clamp stands in the model itself, so it holds for static
ranges and for those that are found at run time alike; behind a matrix operator an integer runtime fuses it for nothing.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from hwq.calibration import Calibration
from hwq.errors import Error
from hwq.graph import Graph, Node, Tensor
from hwq.patches import linears

__all__ = ["clip"]


def clip(graph: Graph, cal: Calibration, deviations: float) -> Graph:
    """The graph with a Clip behind each activation that a linear layer reads and that has such outliers.

    Parameters
    ----------
    graph : Graph
        Float, constants folded.
    cal : Calibration
        Of this graph.
    deviations : float
        c: the bounds are mean - c sigma and mean + c sigma, widened to hold zero, in float32.

    Returns
    -------
    Graph
        Inputs and outputs of the model are left alone; every reader of a clipped value reads the clamp. Not the same
        function: it differs where an outlier was.

    Raises
    ------
    Error
        `deviations` is not positive and finite.
    """
    if not 0.0 < deviations < math.inf:
        raise Error(f"{deviations} standard deviations cannot be clipped at", where="key transforms.clip")
    operands = dict.fromkeys(layer.operand for layer in linears(graph).values())
    tensors, made, renamed = dict(graph.tensors), [], {}
    for name in operands:
        if name not in graph.producers or name in graph.outputs or graph.tensors[name].dtype != "float32":
            continue
        seen = cal[name]
        spread = math.sqrt(max(seen.squares / seen.count - seen.mean**2, 0.0))
        low, high = min(seen.mean - deviations * spread, 0.0), max(seen.mean + deviations * spread, 0.0)
        if spread == 0.0 or (seen.minimum >= low and seen.maximum <= high):
            continue
        bounds = [_fresh(f"{name}_{word}", tensors) for word in ("low", "high")]
        result = _fresh(f"{name}_clipped", tensors)
        # A side without outliers keeps its range: only the other is cut.
        ends = (low if seen.minimum < low else -np.inf, high if seen.maximum > high else np.inf)
        for bound, end in zip(bounds, ends, strict=True):
            tensors[bound] = Tensor(bound, "float32", (), np.asarray(end, np.float32))
        tensors[result] = dataclasses.replace(graph.tensors[name], name=result)
        renamed[name] = result
        made.append(Node("Clip", result, (name, *bounds), (result,)))
    nodes = [
        dataclasses.replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)) for node in graph.nodes
    ]
    return graph.replace(nodes=[*nodes, *made], tensors=list(tensors.values()))


def _fresh(name: str, taken: dict[str, Tensor]) -> str:
    while name in taken:
        name += "_"
    return name
