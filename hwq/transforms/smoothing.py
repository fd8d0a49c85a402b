"""SmoothQuant: part of the outliers of an activation's channels moves into the weights that read them.

``s_j = max|X_j|^a / max|W_j|^(1 - a)`` divides channel j of the activation and multiplies its weights (Xiao et al. 2022,
arXiv 2211.10438, equation 4). The division goes into what makes the activation: a normalization, another linear layer, a
constant factor (`hwq.transforms.channels`).

Convolutions are smoothed in the same way. A depthwise one has one weight scale for each channel that it reads, so there the
factor costs the weights nothing and the whole of it is taken (a = 1).
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
from numpy.typing import NDArray

from hwq.calibration import Calibration
from hwq.errors import Error
from hwq.graph import Graph
from hwq.patches import Linear
from hwq.transforms.channels import Site, least_factors, rescale, rows_first, sites

__all__ = ["product_sites", "smooth", "weight_peaks"]

Floats = NDArray[np.float64]

# Bounds of a factor, so that no channel leaves float32's normal range.
LIMIT = 2.0**20


def smooth(graph: Graph, cal: Calibration, strength: float = 0.5, alone: Container[str] = ()) -> Graph:
    """The same function with smoother activations before its linear layers.

    Parameters
    ----------
    graph : Graph
        Float, constants folded.
    cal : Calibration
        Of this graph: the largest magnitude of every channel.
    strength : float
        a, from 0 (weights equalized) to 1 (activations equalized); 0.5 for most networks, 0.75 for heavy outliers.
    alone : container of node names
        Layers whose weights have a scale for each output channel: of the depthwise ones among them a is 1.

    Returns
    -------
    Graph
        ``source["rescaled"]`` lists the activations that hold other numbers.

    Raises
    ------
    Error
        No layer's operand comes from something that can take the factor.
    """
    found = sites(graph)
    if not found:
        raise _nothing(graph, "smooth", "there is nothing to smooth")
    factors = {}
    for site in found:
        peaks = cal[site.tensor]
        if peaks.minima.size != len(site.index):
            continue
        size = np.maximum(np.abs(peaks.minima), np.abs(peaks.maxima)).astype(np.float64)
        channels = np.zeros(site.channels)
        np.maximum.at(channels, site.index, size)
        weights = weight_peaks(graph, site)
        alive = (channels > 0.0) & (weights > 0.0)
        share = 1.0 if all(_depthwise(one) and one.node.name in alone for one in site.readers) else strength
        raw = np.where(alive, channels, 1.0) ** share / np.where(alive, weights, 1.0) ** (1.0 - share)
        least = least_factors(site, cal)
        fixed = alive & np.isinf(least)
        if fixed.any():  # channels at a clamp's bound keep 1, and the others come up to them
            raw /= raw[fixed].max()
        wanted = np.clip(raw, np.maximum(np.where(fixed, 1.0, least), 1.0 / LIMIT), LIMIT)
        factors[site.tensor] = np.where(alive & ~fixed, wanted, 1.0)
    return rescale(graph, factors, found)


def _depthwise(layer: Linear) -> bool:
    return bool(layer.kernel) and layer.groups > 1 and layer.k == int(np.prod(layer.kernel, dtype=np.int64))


def product_sites(graph: Graph, key: str) -> tuple[Site, ...]:
    """Sites whose readers are matrix products, without clamps on the way.

    Raises
    ------
    Error
        There is none; `key` is the transform that asks.
    """
    found = tuple(
        site for site in sites(graph) if not site.clamps and not any(reader.kernel for reader in site.readers)
    )
    if not found:
        raise _nothing(graph, key, "no weights can be scaled by their activations")
    return found


def _nothing(graph: Graph, key: str, what: str) -> Error:
    return Error(
        what,
        where=f"graph {graph.name}, key transforms.{key}",
        why="the factor of a layer's operand must fold into a normalization, a linear layer or a constant factor before it, "
        "and nothing else may read that operand",
        remedy="leave the key out",
    )


def weight_peaks(graph: Graph, site: Site) -> Floats:
    """Largest |weight| that reads each channel."""
    peaks = np.zeros(site.channels)
    for reader in site.readers:
        weight = graph.constant(reader.node.inputs[1])
        assert weight is not None  # `linears` says so
        rows = np.abs(rows_first(reader, weight)).max(axis=(1, 3)).reshape(-1).astype(np.float64)
        np.maximum.at(peaks, site.index, rows)
    return peaks
