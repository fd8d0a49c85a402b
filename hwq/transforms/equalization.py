"""Cross-layer equalization: the channels between two linear layers get weights of equal range on both sides.

With r1 and r2 the largest |weight| that makes and that reads a channel, dividing the channel by ``s = sqrt(r1 / r2)`` gives
both sqrt(r1 r2) (Nagel et al. 2019, arXiv 1906.04721). Layers share their weights with the layers behind them, so the
factors are found by going round until none moves any more; through convolution, depthwise and convolution the fixed point
is the paper's cube root, where all three ranges are equal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwq.calibration import Calibration
from hwq.errors import Error
from hwq.graph import Graph
from hwq.patches import linears
from hwq.transforms.channels import Site, least_factors, rescale, rows_first, sites

__all__ = ["equalize"]

Floats = NDArray[np.float64]

# The rounds end when no factor moves by more than this share, a small part of a weight's step, or after so many.
TOLERANCE = 1e-3
ROUNDS = 100
# A channel's factor in all: beyond this float32 weights would leave their normal range in small networks.
LIMIT = 2.0**20


def equalize(graph: Graph, cal: Calibration | None = None) -> Graph:
    """The same function with equalized weight ranges.

    Parameters
    ----------
    graph : Graph
        Float, constants and batch normalization folded.
    cal : Calibration, optional
        Of this graph. A clamp with an upper bound (ReLU6) hands no factor on in general. With a calibration, a channel
        that stayed below the bound may be scaled as far as all that was seen still stays below; one that reached it
        keeps its scale. Without one, pairs around such a clamp are left alone.

    Returns
    -------
    Graph
        Channels of zeros keep their scale. ``source["rescaled"]`` lists the activations that hold other numbers.

    Raises
    ------
    Error
        No two linear layers stand behind each other with nothing but such operators between them.
    """
    found = tuple(site for site in sites(graph) if site.maker.name in linears(graph) and (cal or not site.clamps))
    if not found:
        raise Error(
            "there is nothing to equalize",
            where=f"graph {graph.name}, key transforms.equalize",
            why="two layers with constant weights must follow each other with only ReLU, pools, views or added constants "
            "between them, one reader each; around a clamp with an upper bound the calibration is needed too",
            remedy="leave the key out",
        )
    magnitudes = _magnitudes(graph, found)
    bounds = {site.tensor: least_factors(site, cal) for site in found}
    factors = {site.tensor: np.ones(site.channels) for site in found}
    for _ in range(ROUNDS):
        moved = 0.0
        for site in found:
            step = _step(site, magnitudes)
            least = bounds[site.tensor]
            wanted = np.clip(factors[site.tensor] * step, np.maximum(least, 1.0 / LIMIT), LIMIT)
            wanted[np.isinf(least)] = 1.0
            step = wanted / factors[site.tensor]
            factors[site.tensor] = wanted
            _apply(site, step, magnitudes)
            moved = max(moved, float(np.abs(step - 1.0).max()))
        if moved < TOLERANCE:
            break
    return rescale(graph, factors, found)


def _magnitudes(graph: Graph, found: tuple[Site, ...]) -> dict[str, Floats]:
    """Largest |weight| over the kernel, (groups, outputs, inputs), of every layer that a site touches."""
    layers = linears(graph)
    made: dict[str, Floats] = {}
    for name in {site.maker.name for site in found} | {one.node.name for site in found for one in site.readers}:
        weight = graph.constant(layers[name].node.inputs[1])
        assert weight is not None  # `linears` says so
        made[name] = np.abs(rows_first(layers[name], weight).astype(np.float64)).max(axis=3)
    return made


def _step(site: Site, magnitudes: dict[str, Floats]) -> Floats:
    """``sqrt(r1 / r2)``; 1 where either is 0."""
    made = magnitudes[site.maker.name].max(axis=2).reshape(-1)
    read = np.zeros(site.channels)
    for reader in site.readers:
        np.maximum.at(read, site.index, magnitudes[reader.node.name].max(axis=1).reshape(-1))
    alive = (made > 0.0) & (read > 0.0)
    return np.sqrt(np.where(alive, made, 1.0) / np.where(alive, read, 1.0))


def _apply(site: Site, step: Floats, magnitudes: dict[str, Floats]) -> None:
    rows = magnitudes[site.maker.name]
    rows /= step.reshape(*rows.shape[:2], 1)
    for reader in site.readers:
        read = magnitudes[reader.node.name]
        read *= step[site.index].reshape(read.shape[0], 1, read.shape[2])
