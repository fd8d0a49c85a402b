"""Sums of products as TFLite's layouts have them: NHWC images, OHWI filters, 1HWC depthwise filters.

Integers are summed exactly: in float64 while every partial sum stays below 2**53 (then any order gives the same), else
in int64. Floats are summed as LiteRT's reference kernels sum them: one product after the other from 0 on, each step
rounded to float32, no fused multiply-add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from hwq.graph import Array, Dim, Node
from hwq.ops import arithmetic, spatial

__all__ = [
    "add_by_four",
    "convolve",
    "depthwise",
    "exact",
    "multiply",
    "multiply_by_four",
    "multiply_by_lanes",
    "multiply_matrices",
    "transposed",
    "transposed_begin",
    "windows_of",
]

# Bytes of gathered windows that are held at once.
GATHER_BYTES = 32 << 20
# Sums that stay in a core's cache while one product after the other is added.
CACHED_ELEMENTS = 1 << 15


def windows_of(node: Node, space: tuple[Dim, ...], kernel: tuple[int, int]) -> spatial.Windows:
    """The windows that padding, strides and dilations lay over `space`; SAME puts the odd element behind."""
    attributes = {
        "strides": node.attributes["strides"],
        "dilations": node.attributes.get("dilations", (1, 1)),
        "auto_pad": "SAME_UPPER" if node.attributes["padding"] == "SAME" else "VALID",
    }
    return spatial.windows_of(dataclasses.replace(node, attributes=attributes), space, kernel)


def multiply(rows: Array, filters: Array) -> Array:
    """``rows @ filters.T``: floats in order; integers exact, in int64."""
    if rows.dtype.kind != "f":
        return arithmetic.integer_matmul(rows, filters.T)
    total = np.zeros((len(rows), len(filters)), np.float32)
    step = max(CACHED_ELEMENTS // max(len(filters), 1), 1)
    columns = np.ascontiguousarray(filters.T, np.float32)
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step].T, np.float32)
        block = total[start : start + step]
        product = np.empty_like(block)
        for left, right in zip(part, columns, strict=True):
            np.multiply(left[:, None], right, out=product)
            block += product
    return total


def multiply_by_four(rows: Array, filters: Array) -> Array:
    """``rows @ filters.T`` in floats as the recurrent kernels sum: four interleaved sums added in order, then the rest."""
    return add_by_four(rows[:, None, :] * filters[None])


def multiply_by_lanes(rows: Array, filters: Array) -> Array:
    """``rows @ filters.T`` in floats as Eigen multiplies one vector (SSE): four sums side by side, folded 0 + 2 and 1 + 3, then the rest."""
    terms = rows[:, None, :] * filters[None]
    whole = terms.shape[-1] // 4 * 4
    lanes = np.zeros((*terms.shape[:-1], 4), np.float32)
    for start in range(0, whole, 4):
        lanes += terms[..., start : start + 4]
    total = (lanes[..., 0] + lanes[..., 2]) + (lanes[..., 1] + lanes[..., 3])
    for column in range(whole, terms.shape[-1]):
        total += terms[..., column]
    return np.asarray(total)


def add_by_four(terms: Array) -> Array:
    """The sum over the last axis in that order, each step rounded to float32."""
    depth = terms.shape[-1] // 4 * 4
    total = np.zeros(terms.shape[:-1], np.float32)
    for lane in range(4):
        partial = np.zeros(terms.shape[:-1], np.float32)
        for column in range(lane, depth, 4):
            partial += terms[..., column]
        total += partial
    for column in range(depth, terms.shape[-1]):
        total += terms[..., column]
    return total


def multiply_matrices(a: Array, b: Array) -> Array:
    """``a @ b`` over the last two dimensions: floats in order; integers exact, in int64."""
    if a.dtype.kind != "f":
        return arithmetic.integer_matmul(a, b)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left = np.broadcast_to(a, (*lead, *a.shape[-2:])).reshape(-1, *a.shape[-2:])
    right = np.broadcast_to(b, (*lead, *b.shape[-2:])).reshape(-1, *b.shape[-2:])
    made = [multiply(x, np.swapaxes(y, 0, 1)) for x, y in zip(left, right, strict=True)]
    return (
        np.stack(made).reshape(*lead, a.shape[-2], b.shape[-1])
        if made
        else np.zeros((*lead, a.shape[-2], b.shape[-1]), np.float32)
    )


def exact(x: Array, zero_point: int = 0) -> Array:
    """Integers less their zero point, in int32 (two operands of 16 bits fit)."""
    return x.astype(np.int32) - np.int32(zero_point)


def _padded(x: Array, windows: spatial.Windows) -> Array:
    if not any(windows.begin) and not any(windows.end):
        return x
    return np.pad(x, [(0, 0), *zip(windows.begin, windows.end, strict=True), (0, 0)])


def _bands(windows: spatial.Windows, images: int, row_bytes: int) -> Iterator[tuple[slice, slice]]:
    """(images, output rows) blocks whose gathered windows stay within `GATHER_BYTES`."""
    height = windows.sizes[0]
    if row_bytes * height <= GATHER_BYTES:
        step = max(GATHER_BYTES // max(row_bytes * height, 1), 1)
        for start in range(0, images, step):
            yield slice(start, start + step), slice(0, height)
        return
    rows = max(GATHER_BYTES // row_bytes, 1)
    for image in range(images):
        for start in range(0, height, rows):
            yield slice(image, image + 1), slice(start, min(start + rows, height))


def convolve(x: Array, filters: Array, windows: spatial.Windows) -> Array:
    """Convolution of `x` [N, H, W, C] by `filters` [O, kh, kw, C / groups]; padding is 0."""
    padded = np.ascontiguousarray(_padded(x, windows))
    (kh, kw), (sh, sw), (dh, dw), (oh, ow) = windows.kernel, windows.strides, windows.dilations, windows.sizes
    each = filters.shape[3]
    groups = max(x.shape[3] // each, 1) if each else 1
    per = filters.shape[0] // groups
    wide = np.float32 if x.dtype.kind == "f" else np.int64
    result = np.empty((x.shape[0], oh, ow, filters.shape[0]), wide)
    steps = padded.strides
    flat = filters.reshape(filters.shape[0], -1)
    for images, rows in _bands(windows, x.shape[0], ow * kh * kw * each * 8):
        part = padded[images]
        height = rows.stop - rows.start
        for group in range(groups):
            view = np.lib.stride_tricks.as_strided(
                part[:, rows.start * sh :, :, group * each :],
                (part.shape[0], height, ow, kh, kw, each),
                (steps[0], steps[1] * sh, steps[2] * sw, steps[1] * dh, steps[2] * dw, steps[3]),
                writeable=False,
            )
            made = multiply(
                view.reshape(part.shape[0] * height * ow, kh * kw * each), flat[group * per : (group + 1) * per]
            )
            result[images, rows, :, group * per : (group + 1) * per] = made.reshape(part.shape[0], height, ow, per)
    return result


def depthwise(x: Array, filters: Array, windows: spatial.Windows) -> Array:
    """Depthwise convolution of `x` [N, H, W, C] by `filters` [1, kh, kw, C * multiplier]; taps are added in order."""
    padded = _padded(x, windows)
    channels = x.shape[3]
    multiplier = filters.shape[3] // max(channels, 1)
    wide = np.float32 if x.dtype.kind == "f" else np.int64
    result = np.zeros((x.shape[0], *windows.sizes, channels, multiplier), wide)
    for row in range(windows.kernel[0]):
        for column in range(windows.kernel[1]):
            steps = [
                slice(tap * step, tap * step + (count - 1) * stride + 1, stride)
                for tap, step, count, stride in zip(
                    (row, column), windows.dilations, windows.sizes, windows.strides, strict=True
                )
            ]
            taps = padded[:, steps[0], steps[1], :].astype(wide, copy=False)
            result += taps[..., None] * filters[0, row, column].reshape(channels, multiplier).astype(wide, copy=False)
    return result.reshape(x.shape[0], *windows.sizes, channels * multiplier)


def transposed_begin(
    out_space: tuple[int, int], kernel: tuple[int, ...], strides: tuple[int, int], padding: str
) -> list[int]:
    """Elements that a transposed convolution drops before its output, in each dimension."""
    begin = []
    for size, taps, stride in zip(out_space, kernel, strides, strict=True):
        count = -(-size // stride) if padding == "SAME" else -(-(size - taps + 1) // stride)
        begin.append(max((count - 1) * stride + taps - size, 0) // 2)
    return begin


def transposed(x: Array, filters: Array, out_space: tuple[int, int], strides: tuple[int, int], padding: str) -> Array:
    """Transposed convolution of `x` [N, H, W, C] by `filters` [O, kh, kw, C] to [N, *out_space, O].

    Element (y, x) of the input adds to outputs from ``stride * position - begin`` on; what falls outside is dropped.
    """
    kernel = filters.shape[1:3]
    wide = np.float32 if x.dtype.kind == "f" else np.int64
    begin = transposed_begin(out_space, kernel, strides, padding)
    full = [
        max((extent - 1) * stride + taps, start + size)
        for extent, stride, taps, start, size in zip(x.shape[1:3], strides, kernel, begin, out_space, strict=True)
    ]
    result = np.zeros((x.shape[0], *full, filters.shape[0]), wide)
    reach = [(extent - 1) * stride + 1 for extent, stride in zip(x.shape[1:3], strides, strict=True)]
    # Inputs are taken in order, so the last tap reaches an output first.
    for row in reversed(range(kernel[0])):
        for column in reversed(range(kernel[1])):
            rows, columns = slice(row, row + reach[0], strides[0]), slice(column, column + reach[1], strides[1])
            tap = np.ascontiguousarray(filters[:, row, column])
            if x.dtype.kind == "f":
                for channel in range(x.shape[3]):
                    result[:, rows, columns] += x[..., channel : channel + 1] * tap[:, channel]
            else:
                result[:, rows, columns] += multiply(x.reshape(-1, x.shape[3]), tap).reshape(*x.shape[:3], -1)
    return np.ascontiguousarray(result[:, begin[0] : begin[0] + out_space[0], begin[1] : begin[1] + out_space[1]])
