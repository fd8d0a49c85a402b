"""The rows that a linear layer multiplies with its weights: a product's last axis, or a convolution's patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array, Graph, Node
from hwq.ops import arithmetic, spatial
from hwq.ops.convolution import filters_first
from hwq.statistics import Moments

__all__ = ["Linear", "Places", "linears", "moments_of", "outputs_at", "places_of", "rows_of"]

# A sample and a place in it, pair by pair.
Places = tuple[NDArray[np.int64], NDArray[np.int64]]
# Elements of the rows that are made at once: 8 MB in float64.
_ELEMENTS = 1 << 20


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer with constant weights: `groups` products over `k` inputs each; `kernel` is empty for plain
    products.
    """

    node: Node
    operand: str
    groups: int
    k: int
    kernel: tuple[int, ...] = ()

    @property
    def moment_bytes(self) -> int:
        """Bytes of its second moments in float64."""
        return 8 * self.groups * self.k * (self.k + 1)


def linears(graph: Graph) -> dict[str, Linear]:
    """The layers of the graph that multiply an activation with a constant weight, by node name."""
    found: dict[str, Linear] = {}
    for node in graph.nodes:
        weight = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is None or node.domain:
            continue
        if node.op == "Conv":
            kernel = filters_first(weight, node).shape[2:]
            groups = int(node.attributes.get("group", 1))
            found[node.name] = Linear(node, node.inputs[0], groups, weight[0].size, kernel)
        elif node.op == "MatMul" and weight.ndim == 2:
            found[node.name] = Linear(node, node.inputs[0], 1, weight.shape[0])
        elif node.op == "Gemm" and not node.attributes.get("transA", 0):
            found[node.name] = Linear(
                node, node.inputs[0], 1, weight.shape[1 if node.attributes.get("transB", 0) else 0]
            )
    return {name: layer for name, layer in found.items() if graph.constant(layer.operand) is None}


def rows_of(layer: Linear, x: Array, at: Places | None = None) -> NDArray[np.float32]:
    """The layer's input as (groups, rows, K); a convolution's K runs over (channel of the group, kernel position).

    `at`: only the rows of these samples and these places of each, by pairs; a place counts a convolution's output positions,
    or a product's rows of a sample.
    """
    if not layer.kernel:
        if at is None:
            return x.reshape(1, -1, layer.k)
        return x.reshape(*_product_places(layer, x), layer.k)[at][None]
    image = spatial.channels_first(x, layer.node)
    windows = spatial.windows_of(layer.node, image.shape[2:], layer.kernel)
    padded = arithmetic.padded(image, windows.begin, windows.end)
    views = arithmetic.windows(padded, windows.kernel, windows.strides, windows.dilations, windows.sizes)
    rank, (batch, channels) = len(layer.kernel), views.shape[:2]
    if at is not None:
        picked = _at(views, windows.sizes, at)
        grouped = picked.reshape(len(picked), layer.groups, layer.k)
        return np.ascontiguousarray(grouped.transpose(1, 0, 2))
    grouped = views.reshape(batch, layer.groups, channels // layer.groups, *views.shape[2:])
    order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    return grouped.transpose(order).reshape(layer.groups, -1, layer.k)


def places_of(layer: Linear, x: Array) -> tuple[int, int]:
    """Samples of the layer's input, and rows of each."""
    if not layer.kernel:
        return _product_places(layer, x)
    windows = spatial.windows_of(layer.node, spatial.channels_first(x, layer.node).shape[2:], layer.kernel)
    return len(x), int(np.prod(windows.sizes, dtype=np.int64))


def _product_places(layer: Linear, x: Array) -> tuple[int, int]:
    samples = len(x) if x.ndim > 1 else 1
    return samples, x.size // layer.k // max(1, samples)


def _at(image: Array, sizes: Sequence[int], at: Places) -> Array:
    """(pairs, channels, what follows the places) of (samples, channels, *sizes, ...)."""
    indices: tuple[Any, ...] = (at[0], slice(None), *np.unravel_index(at[1], sizes))
    return np.asarray(image[indices])  # indices with a slice between them lead


def outputs_at(layer: Linear, x: Array, y: Array, at: Places) -> Array | None:
    """Values `y` of the shape of the layer's output, as (groups, rows, channels of a group) at these samples and places of the
    rows of input `x`; None where the shape is another.
    """
    if not layer.kernel:
        if y.ndim != x.ndim or y.shape[:-1] != x.shape[:-1]:
            return None
        return y.reshape(*_product_places(layer, x), y.shape[-1])[at][None]
    if y.ndim != x.ndim:
        return None
    image, given = (spatial.channels_first(one, layer.node) for one in (y, x))
    sizes = spatial.windows_of(layer.node, given.shape[2:], layer.kernel).sizes
    if image.shape[0] != given.shape[0] or image.shape[1] % layer.groups or image.shape[2:] != tuple(sizes):
        return None
    taken = _at(image, sizes, at)
    return np.ascontiguousarray(taken.reshape(len(taken), layer.groups, -1).transpose(1, 0, 2))


def moments_of(layer: Linear, x: Array) -> Moments:
    """Sum of the outer products of the layer's input rows, sample by sample so that the patches stay small."""
    from hwq import kernels  # cost asks for layers and needs no kernels

    matrix = np.zeros((layer.groups, layer.k, layer.k))
    total = np.zeros((layer.groups, layer.k))
    count = 0
    step = max(1, _ELEMENTS // max(1, x[0].size * int(np.prod(layer.kernel, dtype=np.int64)))) if x.ndim > 1 else len(x)
    for start in range(0, len(x), step):
        rows = rows_of(layer, x[start : start + step]).astype(np.float64)
        for group, one in enumerate(rows):
            kernels.matmul_f64(one, one, transposed=True, out=matrix[group], accumulate=True)
        total += rows.sum(axis=1)
        count += rows.shape[1]
    return Moments(count, matrix, total)
