"""Products of float activations in the default interpreter: XNNPACK's order of sums on x86-64 with FMA.

One chain of fused multiply-adds from the bias on, over taps and channels in order; with integer weights (hybrid) rows are
quantized over their own range first (T4 of kernels/README.md). Measured against ai-edge-litert 2.3.0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwq import numerics
from hwq.graph import Array
from hwq.ops import arithmetic, spatial
from hwq.ops import tflite_accumulators as sums
from hwq.ops import tflite_hybrid as hybrid
from hwq.ops.tflite_base import Call, by_default, clamp_float

__all__: list[str] = []

# Most taps of XNNPACK's depthwise kernels.
DEPTHWISE_TAPS = 25


def _chain(rows: Array, columns: Array, start: Array | None) -> Array:
    """``start + rows @ columns`` in one chain of fused multiply-adds."""
    from hwq import kernels  # where it computes: shapes and cost need no compiled kernels

    if start is not None:  # 1 * start + 0 is exact, so the chain begins with it
        rows = np.concatenate([np.ones((len(rows), 1), np.float32), rows], axis=1)
        columns = np.concatenate([start[None], columns], axis=0)
    return kernels.gemm_sequential(
        np.ascontiguousarray(rows, np.float32),
        np.ascontiguousarray(columns, np.float32),
        block=max(rows.shape[1], 1),
    )


@by_default("BATCH_MATMUL")
def multiply_matrices(call: Call) -> Array | None:
    """float32 only."""
    if call.dtype(0) != "float32" or call.dtype(1) != "float32":
        return None
    a = np.swapaxes(call.array(0), -1, -2) if call.attribute("transpose_first", False) else call.array(0)
    b = np.swapaxes(call.array(1), -1, -2) if call.attribute("transpose_second", False) else call.array(1)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = np.broadcast_to(a, (*lead, *a.shape[-2:])), np.broadcast_to(b, (*lead, *b.shape[-2:]))
    made = np.empty((*lead, a.shape[-2], b.shape[-1]), np.float32)
    for index in np.ndindex(*lead):
        made[index] = _chain(left[index], right[index], None)
    return made


@by_default("FULLY_CONNECTED", "CONV_2D")
def product(call: Call) -> Array | None:
    """float32 by float32, int8 or int4 weights."""
    if call.dtype(0) != "float32" or call.dtype(1) not in {"float32", "int8", "int4"}:
        return None
    x, weight = call.array(0), call.array(1)
    fully = call.node.op == "FULLY_CONNECTED"
    if call.hybrid:
        if call.dtype(1) == "int4" and not fully:
            return _hybrid_four_bits(call)
        if call.dtype(1) == "int4" and weight.shape[1] % 2:
            return None
        return _hybrid(call, x, weight.astype(np.int32), fully)
    bias = call.array(2).reshape(-1) if call.has(2) else None
    if fully:
        depth = weight.shape[1]
        if not depth:
            return None
        made = _chain(x.reshape(-1, depth), weight.T, bias)
        shape = (*x.shape[:-1], weight.shape[0]) if call.attribute("keep_dims", False) else made.shape
        return clamp_float(call, made.reshape(shape))
    windows = sums.windows_of(call.node, x.shape[1:3], weight.shape[1:3])
    if weight.shape[3] == 1 and len(weight) == x.shape[3] and weight[0].size <= DEPTHWISE_TAPS:
        return clamp_float(call, _by_taps(x, np.moveaxis(weight, 0, 3)[..., 0, :], windows, bias, columns=True))
    return clamp_float(call, _convolve(x, weight, windows, bias))


def _convolve(x: Array, weight: Array, windows: spatial.Windows, bias: Array | None) -> Array:
    image = np.moveaxis(x, 3, 1)
    padded = arithmetic.padded(image, windows.begin, windows.end, 0)
    view = arithmetic.windows(padded, windows.kernel, windows.strides, windows.dilations, windows.sizes)
    rows = view.transpose(0, 2, 3, 4, 5, 1)  # [N, *counts, *taps, C]
    outputs, depth = weight.shape[0], weight.shape[3]
    groups = x.shape[3] // max(depth, 1)
    each = outputs // max(groups, 1)
    made = np.empty((x.shape[0], *windows.sizes, outputs), np.float32)
    for image_index in range(x.shape[0]):  # one image's windows at a time bound the memory
        for group in range(groups):
            columns = slice(group * each, (group + 1) * each)
            part = rows[image_index, ..., group * depth : (group + 1) * depth].reshape(-1, weight[0].size)
            filters = weight[columns].reshape(each, -1).T
            made[image_index, ..., columns] = _chain(part, filters, None if bias is None else bias[columns]).reshape(
                *windows.sizes, each
            )
    return made


@by_default("TRANSPOSE_CONV")
def transposed(call: Call) -> Array | None:
    """float32 only: the chain runs over the taps in order; where no input meets a tap, a zero does and adds nothing.

    SAME padding with a stride beyond the filter XNNPACK refuses: `_scattered`.
    """
    if call.dtype(2) != "float32" or call.dtype(1) != "float32":
        return None
    x, weight, strides = call.array(2), call.array(1), call.attribute("strides")
    height, width = (int(dim) for dim in call.array(0)[1:3])
    kernel = weight.shape[1:3]
    starts = sums.transposed_begin((height, width), kernel, strides, call.attribute("padding"))
    if not x.size:
        return None
    if call.attribute("padding") == "SAME" and any(a > taps for a, taps in zip(strides, kernel, strict=True)):
        return _scattered(call, x, weight, (height, width))
    spread = np.zeros(
        (x.shape[0], *(extent * step for extent, step in zip(x.shape[1:3], strides, strict=True)), x.shape[3]),
        np.float32,
    )
    spread[:, :: strides[0], :: strides[1]] = x
    needed = [size + taps - 1 for size, taps in zip((height, width), kernel, strict=True)]
    before = [taps - 1 - start for taps, start in zip(kernel, starts, strict=True)]
    after = [
        max(total - first - extent, 0) for total, first, extent in zip(needed, before, spread.shape[1:3], strict=True)
    ]
    padded = np.pad(spread, [(0, 0), *zip(before, after, strict=True), (0, 0)])[:, : needed[0], : needed[1]]
    view = arithmetic.windows(np.moveaxis(padded, 3, 1), kernel, (1, 1), (1, 1), (height, width))
    rows = view.transpose(0, 2, 3, 4, 5, 1)[:, :, :, ::-1, ::-1]
    made = np.empty((x.shape[0], height, width, weight.shape[0]), np.float32)
    filters, bias = weight.reshape(weight.shape[0], -1).T, call.array(3).reshape(-1) if call.has(3) else None
    for image in range(len(x)):
        made[image] = _chain(rows[image].reshape(height * width, -1), filters, bias).reshape(height, width, -1)
    return clamp_float(call, made)


def _scattered(call: Call, x: Array, weight: Array, space: tuple[int, int]) -> Array:
    """LiteRT's optimised kernel: a sum over the channels for each tap, added input by input, then the bias.

    Whole vectors of 8 (tap, filter) columns add in order; what is left over Eigen adds otherwise, which is not reproduced.
    """
    filters, height, width, depth = weight.shape
    columns = weight.reshape(filters, height * width, depth).transpose(1, 0, 2).reshape(-1, depth)
    parts = sums.multiply(x.reshape(-1, depth), columns).reshape(*x.shape[:3], height * width * filters)
    picks = np.eye(height * width * filters, dtype=np.float32).reshape(height, width, filters, -1).transpose(2, 0, 1, 3)
    made = sums.transposed(parts, picks, space, call.attribute("strides"), call.attribute("padding"))
    return clamp_float(call, made if not call.has(3) else (made + call.array(3)).astype(np.float32))


@by_default("HARD_SWISH")
def hard_swish(call: Call) -> Array | None:
    """float32: ``clip(fma(x, 1/6, 1/2), 0, 1) * x``."""
    if call.dtype(0) != "float32":
        return None
    x, f32 = call.array(0), np.float32
    gate = numerics.fused_multiply_add(x, np.full_like(x, f32(1) / f32(6)), np.full_like(x, f32(0.5)))
    return np.asarray(np.clip(gate, f32(0), f32(1)) * x, f32)


@by_default("AVERAGE_POOL_2D")
def average(call: Call) -> Array | None:
    """float32: taps column by column in groups of nine, each summed as a tree, times ``f32(1 / count)``.

    XNNPACK takes no pool whose stride exceeds its window.
    """
    kernel, strides = call.attribute("kernel_shape"), call.attribute("strides")
    if call.dtype(0) != "float32" or any(step > size for step, size in zip(strides, kernel, strict=True)):
        return None
    x, f32 = call.array(0), np.float32
    windows = sums.windows_of(call.node, x.shape[1:3], kernel)
    border = [(0, 0), *zip(windows.begin, windows.end, strict=True), (0, 0)]
    padded, inside = np.pad(x, border), np.pad(np.ones((1, *x.shape[1:3], 1), f32), border)

    def taps(image: Array) -> list[Array]:
        rows, columns = (
            [slice(tap, tap + (count - 1) * step + 1, step) for tap in range(size)]
            for size, count, step in zip(windows.kernel, windows.sizes, windows.strides, strict=True)
        )
        return [image[:, row, column] for column in columns for row in rows]

    parts, total = taps(padded), np.zeros((), f32)
    for start in range(0, len(parts), 9):
        i = [*parts[start : start + 9], *[np.zeros((), f32)] * 8][:9]
        total = total + (((i[2] + i[3]) + (i[4] + i[5])) + (((i[0] + i[1]) + i[8]) + (i[6] + i[7])))
    inverse = (f32(1) / np.sum(taps(inside), axis=0, dtype=f32)).astype(f32)
    return clamp_float(call, np.asarray(total * inverse, f32))


@by_default("DEPTHWISE_CONV_2D")
def depthwise(call: Call) -> Array | None:
    """float32: one fused multiply-add a tap, from the bias on; int8 weights: `_hybrid_depthwise`.

    Taps go column by column; with several filters a channel, or more than 25 taps, XNNPACK makes it a convolution, which goes
    row by row.
    """
    if call.dtype(0) != "float32" or call.dtype(1) not in {"float32", "int8"}:
        return None
    x, weight = call.array(0), call.array(1)
    windows = sums.windows_of(call.node, x.shape[1:3], weight.shape[1:3])
    if call.hybrid:
        return _hybrid_depthwise(call, windows)
    columns = weight.shape[3] == x.shape[3] and weight[..., 0].size <= DEPTHWISE_TAPS
    return clamp_float(call, _by_taps(x, weight[0], windows, call.array(2) if call.has(2) else None, columns))


def _by_taps(x: Array, weight: Array, windows: spatial.Windows, bias: Array | None, columns: bool) -> Array:
    """One fused multiply-add a tap, from the bias on; weights are [height, width, channels]."""
    image = np.repeat(np.moveaxis(x, 3, 1), weight.shape[2] // max(x.shape[3], 1), axis=1)
    padded = arithmetic.padded(image, windows.begin, windows.end, 0)
    view = arithmetic.windows(padded, windows.kernel, windows.strides, windows.dilations, windows.sizes)
    made = np.zeros((x.shape[0], *windows.sizes, weight.shape[2]), np.float32)
    if bias is not None:
        made += bias
    places = [(row, column) for row in range(windows.kernel[0]) for column in range(windows.kernel[1])]
    for row, column in sorted(places, key=lambda place: place[::-1]) if columns else places:
        taps = np.moveaxis(view[..., row, column], 1, 3)
        made = numerics.fused_multiply_add(taps, np.broadcast_to(weight[row, column], taps.shape), made)
    return made


def _hybrid_depthwise(call: Call, windows: spatial.Windows) -> Array:
    """LiteRT's optimised kernel: ``f32(f32(acc) * s_w) * s_x + bias`` where vectors of 4 channels reach, s_x first behind."""
    x, f32 = call.array(0), np.float32
    stored, scale, point = hybrid.quantize_asymmetric(x.reshape(x.shape[0], -1))
    filters = call.array(1).astype(np.int32)
    total = sums.depthwise((stored - point[:, None]).reshape(x.shape), filters, windows).astype(f32)
    channel, image = np.broadcast_to(call.scheme(1).scales().reshape(-1), total.shape[3:]), scale[:, None, None, None]
    vector, rest = (total * channel).astype(f32) * image, (total * image).astype(f32) * channel
    made = np.where(np.arange(total.shape[3]) < total.shape[3] // 4 * 4, vector, rest).astype(f32)
    return clamp_float(call, made if not call.has(2) else (made + call.array(2)).astype(f32))


def _hybrid_four_bits(call: Call) -> Array | None:
    """LiteRT's optimised CONV_2D with scales per channel that differ: ``f32(acc) * f32(s_x * s_w) + bias``."""
    x, weight, f32 = call.array(0), call.array(1).astype(np.int32), np.float32
    scales = call.scheme(1).scales().reshape(-1)
    if np.all(scales == scales[:1]) or weight.shape[3] != x.shape[3]:
        return None
    stored, scale, point = hybrid.quantize_asymmetric(x.reshape(x.shape[0], -1))
    windows = sums.windows_of(call.node, x.shape[1:3], weight.shape[1:3])
    total = sums.convolve((stored - point[:, None]).reshape(x.shape), weight, windows).astype(f32)
    made = (total * (scales * scale[:, None, None, None]).astype(f32)).astype(f32)
    return clamp_float(call, made if not call.has(2) else (made + call.array(2)).astype(f32))


def _hybrid(call: Call, x: Array, weight: Array, fully: bool) -> Array:
    """Rows (images) in int8 over their own range; ``fma(f32(f32(acc) * s_x), s_w, bias)``.

    A convolution of single pixels is a product of rows.
    """
    outputs = weight.shape[0]
    pixels = not fully and weight.shape[1:] == (1, 1, x.shape[3]) and set(call.attribute("strides")) == {1}
    rows = x.reshape(-1, weight.shape[-1]) if fully or pixels else x.reshape(x.shape[0], -1)
    stored, inverse = _quantize_rows(rows)
    if fully or pixels:
        total = sums.multiply(stored, weight.reshape(outputs, -1))
        inverse = inverse[:, None]
        shape = (*x.shape[:-1], outputs) if pixels or call.attribute("keep_dims", False) else (len(rows), outputs)
    else:
        windows = sums.windows_of(call.node, x.shape[1:3], weight.shape[1:3])
        total = sums.convolve(stored.reshape(x.shape), weight, windows)
        inverse = inverse[:, None, None, None]
        shape = total.shape
    scales = np.broadcast_to(call.scheme(1).scales().reshape(-1), (outputs,))
    bias = call.array(2).reshape(-1) if call.has(2) else np.zeros(outputs, np.float32)
    scaled = (total.astype(np.float32) * inverse).astype(np.float32)
    made = numerics.fused_multiply_add(
        scaled, np.broadcast_to(scales, scaled.shape), np.broadcast_to(bias, scaled.shape)
    )
    return clamp_float(call, made.reshape(shape))


def _quantize_rows(rows: Array) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(q - zero point, scale) of each row over its range with 0; every step in float32."""
    f32 = np.float32
    low, high = np.minimum(rows.min(axis=1, initial=0), f32(0)), np.maximum(rows.max(axis=1, initial=0), f32(0))
    scale = np.where(high == low, f32(1), f32(255) / np.where(high == low, f32(1), high - low)).astype(f32)
    below, above = (low * scale).astype(f32), (high * scale).astype(f32)
    closer = (f32(-128) + below) + (f32(127) + above) > 0
    point = np.rint(np.clip(np.where(closer, f32(-128) - below, f32(127) - above), f32(-128), f32(127)))
    stored = np.clip(np.rint((rows * scale[:, None]).astype(f32)) + point[:, None], -128, 127) - point[:, None]
    return stored.astype(np.int32), (f32(1) / scale).astype(f32)
