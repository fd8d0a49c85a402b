"""Float32 products, convolutions and sums in the one fixed order of DESIGN, and exact integer products.

Every float operator of this package computes through this file and so through `hwq.kernels`: the same bits on every
machine, path and thread count.
float16 and bfloat16 operands are widened (exactly), accumulated in float32, and the result is rounded once; float64
stays NumPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array

if TYPE_CHECKING:
    from hwq.kernels import Packed

__all__ = ["convolve", "integer_matmul", "matmul", "total", "windows", "wrap_int32"]


def matmul(a: Array, b: Array) -> Array:
    """``a @ b`` over the last two dimensions, leading ones broadcast."""
    if a.dtype.kind in "iu":
        return integer_matmul(a, b).astype(a.dtype)
    if a.dtype == np.float64:
        return np.asarray(np.matmul(a, b))
    from hwq import kernels  # where it computes: shapes and cost need no compiled kernels

    return kernels.matmul_f32(a.astype(np.float32, copy=False), b.astype(np.float32, copy=False)).astype(
        a.dtype, copy=False
    )


def total(x: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """Sum over `axes`; float32 in the fixed order, integers wrap in their own type."""
    if x.dtype == np.float64 or x.dtype.kind in "iu":
        return np.asarray(x.sum(axis=axes, keepdims=keepdims, dtype=x.dtype))
    from hwq import kernels

    made = kernels.sum_f32(x.astype(np.float32, copy=False), axes, keepdims=keepdims)
    return np.asarray(made).astype(x.dtype, copy=False)


def integer_matmul(a: Array, b: Array) -> NDArray[np.int64]:
    """``a @ b`` of integers, exact in int64 (or wrapped there).

    Where ``K * max|a| * max|b| < 2**53`` float64 holds every partial sum exactly, in any order, and is faster.
    """
    bound = a.shape[-1] * _peak(a) * _peak(b)
    if bound < 2**53:
        return np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64))).astype(np.int64)
    return np.asarray(np.matmul(a.astype(np.int64), b.astype(np.int64)))


def _peak(x: Array) -> int:
    return max(abs(int(x.min())), abs(int(x.max()))) if x.size else 0


def wrap_int32(x: NDArray[np.int64]) -> NDArray[np.int32]:
    """The low 32 bits: what an int32 accumulator holds when it wraps."""
    return x.astype(np.int32)


def windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Array:
    """A read-only view of padded `x` [N, C, *space] as [N, C, *counts, *kernel].

    Raises
    ------
    ValueError
        A window would leave `x`.
    """
    space = x.strides[2:]
    for size, width, stride, dilation, count in zip(x.shape[2:], kernel, strides, dilations, counts, strict=True):
        if count > 0 and width > 0 and (count - 1) * stride + (width - 1) * dilation >= size:
            raise ValueError(f"{count} windows of {width} by {stride} leave {size} elements")
    shape = (*x.shape[:2], *counts, *kernel)
    steps = (
        *x.strides[:2],
        *(one * stride for one, stride in zip(space, strides, strict=True)),
        *(one * dilation for one, dilation in zip(space, dilations, strict=True)),
    )
    return np.lib.stride_tricks.as_strided(x, shape, steps, writeable=False)


def padded(x: Array, begin: Sequence[int], end: Sequence[int], value: Any = 0) -> Array:
    """`x` [N, C, *space] with `value` around its space."""
    if not any(begin) and not any(end):
        return x
    return np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)], constant_values=value)


def convolve(
    x: Array,
    weight: Array,
    begin: Sequence[int],
    end: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    counts: Sequence[int],
    bias: Array | None = None,
) -> Array:
    """Convolution of `x` [N, C, *space] by `weight` [M, C / groups, *kernel]; integers give int64 (padding is 0).

    Floats come back as a view of a channel-last array: the kernels compute channel-last, and so the operators of a whole network
    hand images on without turning them.
    """
    rank = len(counts)
    if rank <= 3 and (x.dtype in (np.float32, np.float16) or x.dtype.name == "bfloat16"):
        from hwq import kernels

        packed = _packed(weight, groups)
        offsets = None if bias is None else bias.astype(np.float32)
        made = kernels.conv2d(
            np.moveaxis(x, 1, -1).astype(np.float32, order="C", copy=False),
            packed,
            strides=strides,
            pads=(*begin, *end),
            dilations=dilations,
            layout="NHWC",
            bias=offsets,
        )
        return np.moveaxis(made, -1, 1).astype(x.dtype, copy=False)
    result = _by_windows(padded(x, begin, end), weight, strides, dilations, groups, counts)
    return result if bias is None else result + bias.reshape(-1, *([1] * rank)).astype(result.dtype)


# Packed weights of the graphs that are alive: a graph is run piece by piece, and its constants cannot change.
_PACKED: dict[tuple[int, int], tuple[ReferenceType[Array], Packed]] = {}


def _packed(weight: Array, groups: int) -> Packed:
    """The weights packed, remembered as long as they live where they are read-only."""
    from hwq import kernels

    key = id(weight), groups
    held = _PACKED.get(key)
    if held is not None and held[0]() is weight:
        return held[1]
    packed = kernels.pack_conv(weight.astype(np.float32, copy=False), groups=groups)
    if not weight.flags.writeable:
        _PACKED[key] = ref(weight, lambda _: _PACKED.pop(key, None)), packed
    return packed


def _by_windows(
    x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int, counts: Sequence[int]
) -> Array:
    """Convolution of padded `x` as products of gathered windows, one image at a time to bound their memory."""
    view = windows(x, weight.shape[2:], strides, dilations, counts)
    batch, channels, rank = x.shape[0], x.shape[1], len(counts)
    positions, taps = int(np.prod(counts, dtype=np.int64)), int(np.prod(weight.shape[2:], dtype=np.int64))
    made, each = weight.shape[0], channels // groups
    result = np.empty((batch, groups, positions, made // groups), np.int64 if x.dtype.kind in "iu" else x.dtype)
    order = (*range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
    multiply = integer_matmul if x.dtype.kind in "iu" else matmul
    for image in range(batch):
        for group in range(groups):
            part = view[image : image + 1, group * each : (group + 1) * each]
            rows = part.transpose(0, *order).reshape(positions, each * taps)
            filters = weight[group * (made // groups) : (group + 1) * (made // groups)].reshape(
                made // groups, each * taps
            )
            result[image, group] = multiply(rows, filters.T)
    return result.transpose(0, 1, 3, 2).reshape(batch, made, *counts)
