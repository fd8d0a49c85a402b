"""Averages over windows and bilinear interpolation of stored bytes, as ATen's quantized kernels compute them.

Where torch lays channels last, a kernel takes whole vectors of channels and then what is left of them, and the two break ties
in their own ways (aten/src/ATen/native/quantized/cpu: AveragePool2d.cpp, AdaptiveAveragePooling.cpp, UpSampleBilinear2d.cpp and
kernels/QuantizedOpKernels.cpp). A sum of d = q - z over n < 2^14 bytes is exact in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.execution.aten import COLUMNS
from hwq.execution.aten_functions import memory, register_eager
from hwq.execution.steps import Kernel, Scope, Settings, adapt, present
from hwq.graph import Array, Node
from hwq.numerics import fused_multiply_add

__all__: list[str] = []

f32 = np.float32
# Channels that one turn of an adaptive pool or of an interpolation takes, on every CPU.
VECTOR = 8


def _channels_last(scope: Scope, shape: tuple[int, ...]) -> bool:
    """Whether torch takes its kernel for channels last: also where one channel or one pixel makes both layouts the same.

    A value of one dimension (N, C, L) becomes one of two, (N, C, 1, L), which turned rows make channels last.
    """
    last = "turned" if len(shape) == 3 else "channels"
    return memory(scope.graph, scope.node.inputs[0]) == last or shape[1] == 1 or set(shape[2:]) == {1}


def _bytes(rounded: Array) -> Array:
    made: Array = np.clip(rounded, 0, 255).astype(np.uint8)
    return made


def _sums(x: Array, node: Node) -> tuple[Array, Array]:
    """Of each window of an AveragePool over (N, C, H, W): the sum of its values, and by how many torch divides it."""
    get = node.attributes.get
    size, strides = ((1, *(int(one) for one in get(name, (1, 1))))[-2:] for name in ("kernel_shape", "strides"))
    given = [int(one) for one in get("pads", (0,) * 4)]
    pads = given if len(given) == 4 else [0, given[0], 0, given[1]]
    counts, ceil = [], bool(get("ceil_mode", 0))
    for axis in range(2):
        room = x.shape[2 + axis] + pads[axis] + pads[2 + axis] - size[axis]
        count = (-(-room // strides[axis]) if ceil else room // strides[axis]) + 1
        # No window starts in the padding behind the image.
        if ceil and (count - 1) * strides[axis] >= x.shape[2 + axis] + pads[axis]:
            count -= 1
        counts.append(count)
    spans = [(count - 1) * stride + kernel for count, stride, kernel in zip(counts, strides, size, strict=True)]
    wide = np.zeros((*x.shape[:2], *spans), np.int64)
    inside = np.zeros(spans, np.int64)
    height, width = (min(x.shape[2 + axis], spans[axis] - pads[axis]) for axis in range(2))
    wide[:, :, pads[0] : pads[0] + height, pads[1] : pads[1] + width] = x[:, :, :height, :width]
    ends = [
        x.shape[2 + axis] + pads[axis] + (pads[2 + axis] if get("count_include_pad", 0) else 0) for axis in range(2)
    ]
    begins = [0 if get("count_include_pad", 0) else pads[axis] for axis in range(2)]
    inside[begins[0] : ends[0], begins[1] : ends[1]] = 1
    total, number = np.zeros((*x.shape[:2], *counts), np.int64), np.zeros(counts, np.int64)
    for row in range(size[0]):
        for column in range(size[1]):
            down, along = (
                slice(first, first + (count - 1) * stride + 1, stride)
                for first, count, stride in zip((row, column), counts, strides, strict=True)
            )
            total += wide[..., down, along]
            number += inside[down, along]
    return total, number


@register_eager("AveragePool")
def average_pool(scope: Scope) -> Kernel:
    """avg_pool2d: ``rint(f32(f32(d r) + z))`` with r = f32(1 / n), and of whole vectors of channels ``rint(f32(d r)) + z``."""
    point = scope.pair(0)[1]
    # A vector of float32; COLUMNS counts two.
    block = COLUMNS[scope.dialect.formulas["DynamicQuantizeLSTM"]] // 2

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        total, number = _sums(x.reshape(*x.shape[:2], -1, x.shape[-1]).astype(np.int64) - point, scope.node)
        steps = (total.astype(f32) * (f32(1) / number.astype(f32))).astype(f32)
        whole = x.shape[1] // block * block if _channels_last(scope, x.shape) else 0
        first = np.rint(steps[:, :whole]) + point
        made = _bytes(np.concatenate([first, np.rint((steps[:, whole:] + f32(point)).astype(f32))], axis=1))
        return made.reshape(*x.shape[:2], *made.shape[4 - (x.ndim - 2) :])

    return adapt(run)


@register_eager("GlobalAveragePool")
def adaptive_pool(scope: Scope) -> Kernel:
    """adaptive_avg_pool2d to one pixel, channels last: ``rint(fma(d, r, z))``, behind whole vectors ``rint(f32(f32(d r) + z))``.

    Else the zero point is not taken off: ``rint(f32(sum r'))`` with r' = f32(f32(1 / height) / width).
    """
    point = scope.pair(0)[1]

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        height, width = (f32(one) for one in (1, *x.shape[2:])[-2:])
        total = x.astype(np.int64).sum(tuple(range(2, x.ndim)), keepdims=True)
        if not _channels_last(scope, x.shape):
            return _bytes(np.rint(total.astype(f32) * f32(f32(f32(1) / height) / width)))
        deviation, inverse = (total - point * int(height * width)).astype(f32), f32(1) / f32(height * width)
        whole = x.shape[1] // VECTOR * VECTOR
        first = fused_multiply_add(
            np.ascontiguousarray(deviation[:, :whole]),
            np.full_like(deviation[:, :whole], inverse),
            np.full_like(deviation[:, :whole], point),
        )
        rest = (deviation[:, whole:] * inverse).astype(f32) + f32(point)
        return _bytes(np.rint(np.concatenate([first, rest], axis=1)))

    return adapt(run)


@register_eager("ReduceMean")
def mean(scope: Scope) -> Kernel:
    """The mean over the last dimensions, ``rint(f32(f32(d / n) + z))``: what others give too where no tie is in doubt."""
    point = scope.pair(0)[1]
    axes_given, keep = scope.operand(1), bool(scope.node.attributes.get("keepdims", 1))
    listed = scope.node.attributes.get("axes") if axes_given is None else axes_given.data

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        axes = tuple(range(x.ndim)) if listed is None else tuple(int(one) for one in np.asarray(listed).reshape(-1))
        deviation = (x.astype(np.int64) - point).sum(axes, keepdims=keep)
        count = f32(x.size // max(deviation.size, 1))
        return _bytes(np.rint((deviation.astype(f32) / count).astype(f32) + f32(point)))

    return adapt(run)


@register_eager("Resize")
def resize(scope: Scope) -> Kernel:
    """upsample_nearest: pixel ``min(int(i s), size - 1)``, s = f32(size / made) or f32(1 / factor). upsample_bilinear2d: ``rint(f32(f32(y - z) + z))``, y interpolated along rows and then columns.

    Channels last, products are added by fused multiply-adds, the second product's first in whole vectors, the first's behind
    them; coordinates too are fused there. Every coordinate is a float32 whose whole part is one of the image's.
    """
    node, point = scope.node, f32(scope.pair(0)[1])
    nearest = node.attributes.get("mode", "nearest") == "nearest"
    corners = node.attributes.get("coordinate_transformation_mode") == "align_corners"
    exact = nearest and node.attributes.get("coordinate_transformation_mode") == "half_pixel"
    factors, sizes = (
        None if one is None or one.data is None or not one.data.size else one.data[2:].tolist()
        for one in (scope.operand(2), scope.operand(3))
    )

    def coordinates(size: int, made: int, factor: float | None, fused: bool) -> tuple[Array, Array, Array]:
        """Along one axis: the pixel before, the one behind, and the weight of the latter."""
        steps = np.arange(made, dtype=f32)
        step = f32(size) / f32(made) if factor is None else f32(1.0 / factor)
        if nearest:
            at = ((steps + f32(0.5 if exact else 0)) * step).astype(f32)
        elif corners:
            at = steps * (f32(size - 1) / f32(made - 1) if made > 1 else f32(0))
        else:
            middle = steps + f32(0.5)
            half = np.full_like(middle, -0.5)
            at = fused_multiply_add(middle, np.full_like(middle, step), half) if fused else middle * step + half
            at = np.maximum(at, f32(0))
        before = np.minimum(at.astype(np.int64), size - 1)
        return before, np.minimum(before + 1, size - 1), (at - before.astype(f32)).astype(f32)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        made = (
            sizes
            if sizes is not None
            else [int(f32(one) * f32(f)) for one, f in zip(x.shape[2:], factors or (), strict=True)]
        )
        if tuple(made) == x.shape[2:]:
            return np.array(x)
        along = factors or [None] * len(made)
        if nearest:
            every = [coordinates(*one, False)[0] for one in zip(x.shape[2:], made, along, strict=True)]
            return np.array(x[(slice(None), slice(None), *np.ix_(*every))])
        last = _channels_last(scope, x.shape)
        (top, bottom, down), (left, right, aside) = (
            coordinates(x.shape[2 + axis], made[axis], along[axis], last) for axis in range(2)
        )
        wide = x.astype(f32)
        upper, lower = wide[:, :, top], wide[:, :, bottom]
        whole = x.shape[1] // VECTOR * VECTOR

        def mixed(first: Array, second: Array, weight: Array) -> Array:
            """``(1 - w) first + w second``."""
            other = np.broadcast_to((f32(1) - weight).astype(f32), first.shape)
            weight = np.broadcast_to(weight, first.shape)
            if not last:
                return ((other * first).astype(f32) + (weight * second).astype(f32)).astype(f32)
            parts = []
            for channels, (a, b), (c, d) in (
                (slice(0, whole), (weight, second), (other, first)),
                (slice(whole, None), (other, first), (weight, second)),
            ):
                a, b, c, d = (np.ascontiguousarray(one[:, channels]) for one in (a, b, c, d))
                parts.append(fused_multiply_add(a, b, (c * d).astype(f32)))
            return np.concatenate(parts, axis=1)

        first, second = (mixed(one[..., left], one[..., right], aside) for one in (upper, lower))
        y = mixed(first, second, down[:, None])
        return _bytes(np.rint(((y - point).astype(f32) + point).astype(f32)))

    return adapt(run)
