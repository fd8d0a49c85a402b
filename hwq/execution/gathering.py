"""Weights with groups of scales packed for the kernels, and operands laid out to meet them.

A convolution becomes rows of gathered windows, k over (tap, channel). A group of the sum is a run of channels at one tap; runs
are filled up to what the kernels take with activations that stand for 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwq import kernels
from hwq.execution.steps import Scope, Settings
from hwq.graph import Array, Node
from hwq.ops import arithmetic, spatial

__all__ = [
    "Matrix",
    "Weights",
    "apply",
    "channels_second",
    "clamped",
    "convolved",
    "gathered",
    "offsets_of",
    "weights_of",
]

# Bits of the types that are held two to a byte.
FEW_BITS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}


@dataclass(frozen=True)
class Matrix:
    """Packed weights of a product, or of one group of a convolution.

    Attributes
    ----------
    packed : Packed
    blocks, block : int
        Groups of scales along the channels, and channels in one; 0 without.
    width : int
        k of a block after filling.
    """

    packed: kernels.Packed
    blocks: int = 0
    block: int = 0
    width: int = 0

    def layout(self, taps: int, channels: int) -> tuple[int, int]:
        """Channels of a block and what it is filled up to; all of them, twice, where rows are taken as they are."""
        # With one tap the last block may be short.
        if not self.blocks or (self.width == self.block and (taps == 1 or channels == self.blocks * self.block)):
            return channels, channels
        return self.block, self.width

    def filled(self, rows: Array, fill: int) -> Array:
        """Rows (..., taps, channels) as the packed matrix takes them: (..., K)."""
        lead, channels = rows.shape[:-2], rows.shape[-1]
        taps = rows.shape[-2]
        if self.layout(taps, channels) == (channels, channels):
            return np.ascontiguousarray(rows).reshape(*lead, taps * channels)
        whole = np.full((*lead, taps, self.blocks, self.width), fill, rows.dtype)
        for index in range(self.blocks):
            part = rows[..., index * self.block : (index + 1) * self.block]
            whole[..., index, : part.shape[-1]] = part
        return whole.reshape(*lead, taps * self.blocks * self.width)


@dataclass(frozen=True)
class Weights:
    """Stored weights as (groups, taps, channels, N); scales and zero points (groups, N), or with blocks laid out alike."""

    data: Array
    scales: Array
    points: Array
    block: int | None
    dtype: str

    @property
    def columns(self) -> Array:
        """The scale of every output column, where there are no blocks."""
        return np.ascontiguousarray(self.scales.reshape(-1), np.float32)

    @property
    def outputs(self) -> int:
        """Output columns of all groups."""
        return int(self.data.shape[0] * self.data.shape[-1])

    def matrix(self, group: int, scaled: bool = True) -> Matrix:
        """One group, packed; `scaled` folds the scales into the sums."""
        data, points, bits = self.data[group], self.points[group], FEW_BITS.get(self.dtype, 8)
        taps, channels, columns = data.shape
        if self.block is None:
            flat = np.ascontiguousarray(data.reshape(taps * channels, columns))
            if not scaled:
                return Matrix(kernels.pack(flat, zero_point=points))
            bits = 4 if bits == 8 and _fits_nibbles(flat, points) else bits  # few bits that lowering widened to bytes
            steps = np.ascontiguousarray(self.scales[group][None], np.float32)
            return Matrix(kernels.pack(flat, zero_point=points[None], bits=bits, scales=steps))
        unit = 32 if bits < 8 else 4
        blocks, width = -(-channels // self.block), -(-self.block // unit) * unit
        if not (width == self.block and (taps == 1 or channels == blocks * self.block)):
            whole = np.zeros((taps, blocks, width, columns), data.dtype)
            for index in range(blocks):
                part = data[:, index * self.block : (index + 1) * self.block]
                whole[:, index, : part.shape[1]] = part
            data = whole
        packed = kernels.pack(
            np.ascontiguousarray(data.reshape(-1, columns)),
            zero_point=points.reshape(taps * blocks, columns),
            bits=bits,
            group=width,
            scales=np.ascontiguousarray(self.scales[group].reshape(taps * blocks, columns), np.float32),
        )
        return Matrix(packed, blocks, self.block, width)


def _fits_nibbles(data: Array, points: Array) -> bool:
    low, high = (0, 15) if data.dtype == np.uint8 else (-8, 7)
    every = [int(edge) for values in (data, points) if values.size for edge in (values.min(), values.max())]
    return all(low <= edge <= high for edge in every)


def weights_of(scope: Scope) -> Weights:
    """The constant weights of a node, scales and zero points spread over the output columns."""
    tensor, stored = scope.operand(1), scope.quantization(1)
    assert tensor is not None and tensor.data is not None
    data, steps, points = tensor.data, stored.scales(), stored.zero_points()
    if scope.node.op == "Conv":
        groups = int(scope.node.attributes.get("group", 1))

        def laid(values: Array) -> Array:  # [O, C, *kernel] -> (groups, taps, C, O / groups)
            flat = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
            return np.ascontiguousarray(flat.transpose(0, 3, 2, 1))
    else:
        groups = 1

        def laid(values: Array) -> Array:  # (K, N) -> (1, 1, K, N)
            turned = values.T if scope.node.attributes.get("transB", 0) else values
            return np.ascontiguousarray(turned)[None, None]

    matrix = laid(data)
    if stored.block is not None:
        return Weights(matrix, laid(steps), laid(points), stored.block, tensor.dtype)
    shape = (groups, matrix.shape[-1])
    wide = [np.broadcast_to(values.reshape(-1), (shape[0] * shape[1],)).reshape(shape) for values in (steps, points)]
    return Weights(matrix, wide[0], wide[1], None, tensor.dtype)


def offsets_of(scope: Scope, columns: int) -> Array | None:
    """A constant bias, one value a column."""
    bias = scope.operand(2)
    if bias is None or bias.data is None:
        return None
    return np.ascontiguousarray(np.broadcast_to(bias.data.reshape(-1), (columns,)))


def convolved(
    scope: Scope,
    x: Array,
    packed: kernels.Packed,
    settings: Settings,
    out: Array | None,
    *,
    zero_point: int = 0,
    bias: Array | None = None,
    epilogue: kernels.Epilogue | None = None,
) -> Array:
    """A convolution of an image [N, C, *space], run channel-last, which the kernels like; accumulators wrap."""
    windows = spatial.windows_of(scope.node, x.shape[2:], packed.kernel)
    made = kernels.conv2d(
        np.ascontiguousarray(np.moveaxis(x, 1, -1)), packed, strides=windows.strides,
        pads=(*windows.begin, *windows.end), dilations=windows.dilations, layout="NHWC", a_zero_point=zero_point,
        bias=bias, epilogue=epilogue, threads=settings.threads, wrap=True,
    )  # fmt: skip
    return channels_second(clamped(scope, made), out)


def channels_second(made: Array, out: Array | None) -> Array:
    """A result [N, *space, C] as [N, C, *space], in `out` where it is given."""
    turned = np.moveaxis(made, -1, 1)
    if out is None:
        return np.ascontiguousarray(turned)
    out[...] = turned
    return out


def clamped(scope: Scope, made: Array) -> Array:
    """A float result behind the Relu that its group swallowed, in place."""
    if made.dtype == np.float32 and any(part.op == "Relu" for part in scope.node.body):
        np.maximum(made, np.float32(0), out=made)
    return made


def gathered(node: Node, x: Array, kernel: Sequence[int], fill: int) -> tuple[Array, tuple[int, ...]]:
    """Windows of an image [N, C, *space] as (groups, positions of the batch, taps, channels), and the output's space."""
    windows = spatial.windows_of(node, x.shape[2:], tuple(kernel))
    groups, rank = int(node.attributes.get("group", 1)), x.ndim - 2
    padded = arithmetic.padded(x, windows.begin, windows.end, fill)
    image = np.moveaxis(np.ascontiguousarray(np.moveaxis(padded, 1, -1)), -1, 1)  # channels lie together in memory
    view = arithmetic.windows(image, windows.kernel, windows.strides, windows.dilations, windows.sizes)
    each, shape, steps = x.shape[1] // groups, view.shape, view.strides
    split = np.lib.stride_tricks.as_strided(
        view, (shape[0], groups, each, *shape[2:]), (steps[0], steps[1] * each, *steps[1:]), writeable=False
    )
    rows = split.transpose(1, 0, *range(3, 3 + 2 * rank), 2)
    positions, taps = math.prod(windows.sizes), math.prod(windows.kernel)
    return rows.reshape(groups, x.shape[0] * positions, taps, each), windows.sizes


def apply(
    scope: Scope, matrices: Sequence[Matrix], x: Array, fill: int, product: Callable[[int, Array], Array]
) -> Array:
    """Run ``product(group, rows)`` over the rows of a matrix, or of the windows of an image, and put the results back."""
    weights = scope.operand(1)
    assert weights is not None
    if scope.node.op != "Conv":
        made = product(0, matrices[0].filled(np.atleast_2d(x)[..., None, :], fill))
        return made[0] if x.ndim == 1 else made
    rows, space = gathered(scope.node, x, [int(dim) for dim in weights.shape[2:]], fill)
    parts = [product(group, matrix.filled(rows[group], fill)) for group, matrix in enumerate(matrices)]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(np.moveaxis(whole.reshape(x.shape[0], *space, whole.shape[-1]), -1, 1))
