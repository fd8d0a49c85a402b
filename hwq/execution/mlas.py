"""Float32 products in the order of MLAS, onnxruntime's kernel library, on x86-64 with FMA and one thread.

Measured on onnxruntime 1.31.1 and confirmed bit for bit (`hwq dialects --verify ort`): matrix products run one chain of
fused multiply-adds over blocks of k whose length follows from the shape; a single row takes other kernels, without FMA.
"""

from __future__ import annotations

import itertools

import numpy as np

from hwq import kernels
from hwq.graph import Array, Node
from hwq.numerics import fused_multiply_add
from hwq.ops import arithmetic, spatial, transposed

__all__ = ["block_length", "convolve", "convolve_transposed", "product"]

# Steps of k in one chain when the right operand was packed beforehand (a constant matrix).
PACKED_BLOCK = 256
# Where the search for a shape's strides starts: columns and steps of k (MLAS_SGEMM_STRIDEN, MLAS_SGEMM_STRIDEK).
STRIDE_N = STRIDE_K = 128


def block_length(columns: int, k: int, turned: bool = False) -> int:
    """Steps of k in one chain for operands that are packed as they come.

    Both strides keep their product: wide matrices halve k's, narrow ones double it, unless the left operand is `turned`.
    """
    stride_n, stride_k = STRIDE_N, STRIDE_K
    if columns >= k:
        while stride_k // 2 >= max(k, 1):
            stride_k //= 2
    elif not turned:
        while stride_n > 16 and stride_n // 2 >= columns:
            stride_k, stride_n = stride_k * 2, stride_n // 2
    return stride_k


def product(
    a: Array, b: Array, *, packed: bool, transposed: tuple[bool, bool] = (False, False), start: Array | None = None,
    factors: tuple[float, float] = (1.0, 1.0), threads: int = 1,
) -> Array:  # fmt: skip
    """``alpha * (a @ b) + beta * start``.

    Parameters
    ----------
    a : float32 array (M, K)
    b : float32 array (K, N)
    packed : bool
        Whether `b` is a constant of the model.
    transposed : pair of bool
        Whether the model holds `a` as (K, M), `b` as (N, K).
    start : float32 array that broadcasts to (M, N), optional
        What the sums start from.
    factors : pair of float
        alpha and beta.
    threads : int

    Returns
    -------
    float32 array (M, N)
    """
    (rows, k), columns, (alpha, beta) = a.shape, b.shape[1], (np.float32(one) for one in factors)
    begin = None if start is None else np.broadcast_to(start, (rows, columns)).copy(order="C")
    simple = not packed and alpha == 1 and (begin is None or beta == 1)
    if begin is not None and beta != 1:
        begin *= beta
    if simple and rows == 1 and not transposed[0]:
        made = _dots(b.T, a[0])[None] if transposed[1] else _row(a[0], b, begin)
        return made if begin is None or not transposed[1] else begin + made
    if simple and columns == 1 and not transposed[1]:
        if transposed[0]:
            return _row(b[:, 0], np.ascontiguousarray(a.T), None if begin is None else begin.T).T
        made = _dots(a, b[:, 0])[:, None]
        return made if begin is None else begin + made
    block = PACKED_BLOCK if packed else block_length(columns, k, transposed[0])
    if alpha == 1:
        return kernels.gemm_sequential(a, b, block=block, out=begin, accumulate=begin is not None, threads=threads)
    for first in range(0, max(k, 1), block):
        parts = np.ascontiguousarray(a[:, first : first + block]), np.ascontiguousarray(b[first : first + block])
        chain = kernels.gemm_sequential(*parts, block=block, threads=threads)
        begin = chain * alpha if begin is None else fused_multiply_add(chain, np.full_like(chain, alpha), begin)
    return np.asarray(begin)


def _row(a: Array, b: Array, start: Array | None) -> Array:
    """One row times a matrix: runs of 4, 2 and 1 products are summed, then added; no fused multiply-add."""
    made = np.zeros((1, *b.shape[1:]), np.float32) if start is None else start
    for first, last in _runs(a.shape[0]):
        run = a[first] * b[first]
        for k in range(first + 1, last):
            run = run + a[k] * b[k]
        made = made + run
    return made


def _runs(k: int) -> list[tuple[int, int]]:
    edges = [*range(0, k - k % 4 + 1, 4)]
    if k % 4 >= 2:
        edges.append(edges[-1] + 2)
    if k % 2:
        edges.append(edges[-1] + 1)
    return list(itertools.pairwise(edges))


def _dots(rows: Array, vector: Array) -> Array:
    """Rows times a vector: 8 lanes of products, then their sum, whose order is that of 4 rows, of 2 or of 1 at a time."""
    padding = -vector.shape[0] % 8
    left, right = np.pad(rows, ((0, 0), (0, padding))), np.pad(vector, (0, padding))
    lanes = np.zeros((rows.shape[0], 8), np.float32)
    for first in range(0, right.shape[0], 8):
        lanes += left[:, first : first + 8] * right[first : first + 8]
    a, b, c, d = lanes.reshape(-1, 2, 4).transpose(2, 1, 0)
    fours, pairs, single = ((a + b) + c) + d, ((a + c)[0] + (a + c)[1]) + ((b + d)[0] + (b + d)[1]), (a + b) + (c + d)
    made = fours[0] + fours[1]
    four, two = rows.shape[0] // 4 * 4, rows.shape[0] // 2 * 2
    made[four:two], made[two:] = pairs[four:two], (single[0] + single[1])[two:]
    return np.asarray(made)


def convolve(node: Node, x: Array, weights: Array, windows: spatial.Windows, bias: Array | None, threads: int) -> Array:
    """A convolution: per image and group the filters times the gathered windows, k over (channel, tap); bias last."""
    image, filters = spatial.channels_first(x, node), weights
    if node.layout == "NHWC":
        filters = np.moveaxis(weights, -1, 1)
    padded = arithmetic.padded(image, windows.begin, windows.end)
    view = arithmetic.windows(padded, windows.kernel, windows.strides, windows.dilations, windows.sizes)
    groups = int(node.attributes.get("group", 1))
    rank, each, depth = len(windows.sizes), filters.shape[0] // groups, filters.shape[1]
    made = np.empty((x.shape[0], filters.shape[0], *windows.sizes), np.float32)
    # A filter as wide as the image slides over its rows: they are taken for a transposed right operand.
    wide = depth == 1 and rank < 3 and windows.kernel[-1] == image.shape[-1] and padded.shape == image.shape
    wide = wide and {*windows.strides, *windows.dilations} == {1}
    if each == 1 and wide:
        for place in np.ndindex(*image.shape[:2]):
            rows = view[place].reshape(-1, int(np.prod(windows.kernel)))
            made[place] = _dots(rows, filters[place[1]].reshape(-1)).reshape(windows.sizes)
    elif each == 1:
        _single_filters(view, filters, made, depth, rank)
    else:
        taps, positions = int(np.prod(windows.kernel)), int(np.prod(windows.sizes, dtype=np.int64))
        matrices = np.ascontiguousarray(filters).reshape(groups, each, depth * taps)
        block = block_length(positions, depth * taps)
        order = (0, *range(1 + rank, 1 + 2 * rank), *range(1, 1 + rank))
        for index in range(x.shape[0]):
            for group in range(groups):
                part = view[index, group * depth : (group + 1) * depth].transpose(order)
                columns = np.ascontiguousarray(part).reshape(depth * taps, positions)
                target = made[index, group * each : (group + 1) * each].reshape(each, positions)
                if positions == 1 and (not wide or image.shape[-1] == 1):
                    target[:, 0] = _dots(matrices[group], columns[:, 0])
                    continue
                kernels.gemm_sequential(matrices[group], columns, block=block, out=target, threads=threads)
    if bias is not None:
        made += bias.reshape(-1, *([1] * rank))
    return spatial.from_channels_first(made, node)


def convolve_transposed(node: Node, x: Array, weights: Array, bias: Array | None, packed: bool, threads: int) -> Array:
    """A transposed convolution: per image and group the turned filters times the image, added tap after tap; bias last."""
    where = transposed.footprint_of(node, x.shape[2:], weights.shape[2:])

    def multiply(filters: Array, image: Array) -> Array:
        turned = packed and len(filters) > 1  # constant filters, beforehand
        return product(filters, image, packed=False, transposed=(not turned, False), threads=threads)

    made = transposed.spread(x, weights, int(node.attributes.get("group", 1)), where, multiply)
    return made if bias is None else made + bias.reshape(-1, *([1] * len(where.sizes)))


def _single_filters(view: Array, filters: Array, made: Array, depth: int, rank: int) -> None:
    """One filter a group (depthwise, or one output channel): the kernel of a single row, for all groups at once."""
    flat = filters.reshape(filters.shape[0], -1)
    factors = flat.T.reshape(-1, flat.shape[0], *([1] * rank))
    taps = [(channel, *tap) for channel in range(depth) for tap in np.ndindex(*filters.shape[2:])]

    def term(k: int) -> Array:
        channel, *tap = taps[k]
        return np.asarray(factors[k] * view[(slice(None), slice(channel, None, depth), ..., *tap)])

    made[...] = 0
    for first, last in _runs(len(taps)):
        run = term(first)
        for k in range(first + 1, last):
            run += term(k)
        made += run
