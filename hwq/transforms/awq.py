"""AWQ: weight-only layers round the weights of large inputs more finely.

Input channel j of the weights is multiplied by ``s_j = m_j^a`` before rounding and the activation is divided by it, m_j the
root mean square of the channel; a is searched over a grid of 20 for the least error of the layers' outputs,

    sum over readers of tr(D H D^T),   D = FQ(W diag(s)) diag(s)^-1 - W,   H = E[x x^T]

(Lin et al. 2023, arXiv 2306.00978; there m_j is the mean magnitude). The division folds as in SmoothQuant.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwq.cholesky import product
from hwq.errors import Error
from hwq.graph import Graph
from hwq.names import display_name
from hwq.ops.quantize import dequantize, quantize
from hwq.patches import Linear
from hwq.placement import Constant, Placement
from hwq.scales import Scales
from hwq.statistics import Moments
from hwq.transforms.channels import Site, columns, rescale, rows_first
from hwq.transforms.smoothing import product_sites

__all__ = ["candidates", "scale_weights"]

Floats = NDArray[np.float64]

# Exponents that are tried; 0 leaves the weights alone.
EXPONENTS = np.arange(20) / 20.0


def candidates(graph: Graph, placement: Placement) -> tuple[Site, ...]:
    """Sites whose readers all keep their activations in float and store their weights as integers.

    Raises
    ------
    Error
        There is none.
    """
    found = tuple(
        site
        for site in product_sites(graph, "awq")
        if all(
            (reader.node.name, 1) in placement.constants
            and reader.node.name not in placement.wants
            and reader.node.name not in placement.dynamics
            for reader in site.readers
        )
    )
    if not found:
        raise Error(
            "no weights can be scaled by their activations",
            where=f"graph {graph.name}, key transforms.awq",
            why="AWQ is for weight-only layers: integer weights under float activations",
            remedy='plan activations = { mode = "float" } for such layers, or leave the key out',
        )
    return found


def scale_weights(graph: Graph, scales: Scales, moments: Mapping[str, Moments]) -> Graph:
    """The same function with input channels scaled for rounding.

    Parameters
    ----------
    graph : Graph
        Float, constants folded.
    scales : Scales
        Of its placement: how each weight is stored.
    moments : mapping of node name to Moments
        Of the layers' inputs in this graph.

    Raises
    ------
    Error
        No weight-only layer can be scaled, or one has no moments.
    """
    found = candidates(graph, scales.placement)
    return rescale(graph, {site.tensor: _factor(graph, scales, site, moments) for site in found}, found)


def _factor(graph: Graph, scales: Scales, site: Site, moments: Mapping[str, Moments]) -> Floats:
    readers = [(reader, scales.placement.constants[reader.node.name, 1]) for reader in site.readers]
    seen = moments.get(readers[0][0].node.name)
    if seen is None:
        raise Error(
            "weights are to be scaled by their activations, and there are none",
            where=f"node {display_name(readers[0][0].node.name)}, key transforms.awq",
            remedy="pass batches= to quantize, or calibrate with moments=True",
        )
    second = seen.matrix[0] / seen.count
    channels, members = np.zeros(site.channels), np.bincount(site.index, minlength=site.channels)
    np.add.at(channels, site.index, np.diag(second))
    size = np.sqrt(channels / members)
    size = np.where(size > 0.0, size, size[size > 0.0].min(initial=np.inf))
    if not np.isfinite(size).all():
        return np.ones(site.channels)
    best, least = np.ones(site.channels), np.inf
    for exponent in EXPONENTS:
        raw = size**exponent
        factor = raw / np.sqrt(raw.max() * raw.min())
        error = sum(_error(graph, scales, reader, constant, factor[site.index], second) for reader, constant in readers)
        if error < least:
            best, least = factor, error
    return best


def _error(graph: Graph, scales: Scales, reader: Linear, constant: Constant, factor: Floats, second: Floats) -> float:
    """``tr(D H D^T)`` of one layer."""
    weight = graph.constant(constant.tensor)
    assert weight is not None  # `linears` says so
    scaled = columns(reader, weight, factor).astype(np.float32)
    # The methods that need data choose their scales later, for these very weights; the squared error serves here.
    method = constant.weights.scale if constant.weights.scale in {"minmax", "mse"} else "mse"
    how = constant.weights.model_copy(update={"scale": method})
    step, zero = scales.observed_weight(reader.node, constant, scaled, how, None)
    stored = quantize(scaled, step, zero, how.dtype, constant.axis, constant.block)
    made = columns(reader, dequantize(stored, step, zero, constant.axis, constant.block), 1.0 / factor)
    difference = rows_first(reader, made - weight)[0, :, :, 0]
    return float((product(difference.astype(np.float64), second) * difference).sum())
