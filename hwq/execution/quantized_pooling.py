"""Means of quantized windows in onnxruntime's formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hwq import kernels
from hwq.execution.elementwise import RANGES
from hwq.execution.emission import Site, geometry
from hwq.execution.steps import Kernel, Scope, Settings, adapt, present, register
from hwq.graph import Array, carrier
from hwq.ops import arithmetic, spatial


@register("AveragePool")
def average_pool(scope: Scope) -> Kernel:
    """onnxruntime's QLinearAveragePool: ``rint(f32(f32(mean / s_y) + zp_y))``, the mean over dequantized taps in order.

    The zero point is added before rounding, in float32, which decides ties (qlinear_pool.cc, measured).
    """
    node = scope.node
    (scale, zero), (made_scale, made_zero) = scope.pair(0), scope.made_pair()
    made = scope.result().quantization
    assert made is not None
    low, high = RANGES[made.dtype]
    size = tuple(int(one) for one in node.attributes["kernel_shape"])
    padding = bool(node.attributes.get("count_include_pad", 0))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        stored = spatial.channels_first(present(operands[0]), node)
        windows = spatial.windows_of(node, stored.shape[2:], size)
        if stored.shape[2:] == size and not any(windows.begin) and not any(windows.end):
            # The kernel falls back to the global one (qlinear_pool.cc, fallback_to_global).
            return spatial.from_channels_first(_mean_of_all(scope, stored), node)
        real = kernels.dequantize(stored, scale, zero)
        mean = kernels.average_pool(
            real,
            size,
            strides=windows.strides,
            pads=(*windows.begin, *windows.end),
            dilations=windows.dilations,
            ceil_mode=bool(node.attributes.get("ceil_mode", 0)),
            threads=settings.threads,
        )
        if padding:
            mean = _over_whole_kernel(real, windows)
        steps = np.rint(mean / made_scale + np.float32(made_zero))
        return spatial.from_channels_first(np.clip(steps, low, high).astype(carrier(made.dtype)), node)

    def emit(site: Site) -> bool:
        windows = spatial.windows_of(node, site.space(0), size)
        if site.space(0) == size and not any(windows.begin) and not any(windows.end):
            return _emit_mean(scope, site)
        if padding or site.channels(0) == 0 or len(size) > 3:
            return False
        x, y, dtype, shape = site.read(0, site.turns), site.make(site.turns), site.dtype(0), site.shape(0)
        real = site.scratch(shape, np.dtype(np.float32))
        mean = site.scratch(site.made_shape(), np.dtype(np.float32))
        batch, channels, made_size = shape[0], site.channels(0), math.prod(site.made_shape())
        site.step([x], real, lambda steps, at: steps.dequantize(
            at(x), 1, math.prod(shape), scale, zero, dtype, out=at(real)))  # fmt: skip
        site.step([real], mean, lambda steps, at: steps.pool(
            at(real), "average", geometry(windows, site.space(0)), windows.end, batch, channels, np.float32,
            layout="NHWC", out=at(mean)))  # fmt: skip
        site.step([mean], y, lambda steps, at: steps.quantize(
            at(mean), 1, made_size, made_scale, made_zero, made.dtype, formula="ort-pool", out=at(y)))  # fmt: skip
        return True

    return adapt(run, emit)


def _over_whole_kernel(real: Array, windows: spatial.Windows) -> Array:
    """Means that divide by the kernel's size wherever the window stands, padding and ceil_mode's margin included."""
    padded = arithmetic.padded(real, windows.begin, windows.reach(real.shape[2:]))
    taps = arithmetic.windows(padded, windows.kernel, windows.strides, windows.dilations, windows.sizes)
    total = np.zeros(taps.shape[: real.ndim], np.float32)
    for index in np.ndindex(*windows.kernel):
        total += taps[(..., *index)]
    return total / np.float32(np.prod(windows.kernel))


@register("GlobalAveragePool")
def global_average_pool(scope: Scope) -> Kernel:
    """An exact integer sum over the image, requantized by f32(s_x / f32(s_y * n))."""

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        stored = spatial.channels_first(present(operands[0]), scope.node)
        return spatial.from_channels_first(_mean_of_all(scope, stored), scope.node)

    return adapt(run, lambda site: _emit_mean(scope, site))


def _mean_of_all(scope: Scope, stored: Array) -> Array:
    _, zero = scope.pair(0)
    axes = tuple(range(2, stored.ndim))
    count = int(np.prod(stored.shape[2:], dtype=np.int64))
    # |sum| <= 255 * count; int32 wraps where an image has more than 2^31 / 255 positions, as onnxruntime's does.
    acc = (stored.sum(axis=axes, keepdims=True, dtype=np.int64) - zero * count).astype(np.int32)
    return kernels.requantize(acc, _mean_epilogue(scope, count))


def _mean_epilogue(scope: Scope, count: int) -> kernels.Epilogue:
    (scale, _), (made_scale, made_zero) = scope.pair(0), scope.made_pair()
    made = scope.result().quantization
    assert made is not None
    multiplier = np.float32(scale / np.float32(made_scale * np.float32(count)))
    return kernels.Epilogue(kind="requant", multipliers=multiplier, zero_point=made_zero, dtype=made.dtype)


def _emit_mean(scope: Scope, site: Site) -> bool:
    _, zero = scope.pair(0)
    batch, count, channels, dtype = site.shape(0)[0], math.prod(site.space(0)), site.channels(0), site.dtype(0)
    if not count or not channels:
        return False
    epilogue = _mean_epilogue(scope, count)
    x, y = site.read(0, site.turns), site.make(site.turns)
    site.step([x], y, lambda steps, at: steps.mean(
        at(x), batch, count, channels, dtype, zero, epilogue=epilogue, out=at(y)))  # fmt: skip
    return True
