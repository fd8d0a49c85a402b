"""Quantized transposed convolutions: a convolution of the input with its zero point between the elements, by the filters turned around."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq import kernels
from hwq.errors import NotSupportedYet
from hwq.execution import products
from hwq.execution.saturation import stand_in
from hwq.execution.steps import Kernel, Scope, Settings, adapt, present, register
from hwq.graph import Array
from hwq.ops import arithmetic, spatial
from hwq.ops.transposed import Footprint, footprint_of

__all__: list[str] = []


@register("ConvTranspose")
def conv_transpose(scope: Scope) -> Kernel:
    """Exact int32 accumulators, requantized as a convolution's.

    Raises
    ------
    NotSupportedYet
        Computed weights.
    """
    node, (_, zero), weights = scope.node, scope.pair(0), scope.operand(1)
    if weights is None or weights.data is None:
        raise NotSupportedYet("a quantized ConvTranspose with computed weights", where=f"node {node.name}")
    groups, kernel = int(node.attributes.get("group", 1)), weights.data.shape[2:]
    turned, points = _turned(weights.data, groups), products.of_filters(scope, scope.quantization(1).zero_points())
    epilogue, packed = products.epilogue_of(scope, len(turned)), products.pack_conv(turned, points, groups, "NCHW")
    offsets, _ = products.integer_bias(scope.operand(2))
    dialects_own, still = stand_in(scope), (0,) * len(kernel)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        where = footprint_of(node, x.shape[2:], kernel)
        wide, instead = _spread(x, where, zero), settings.gemm or dialects_own
        if instead is not None:
            windows = spatial.Windows(kernel, (1,) * len(kernel), where.dilations, still, still, where.sizes)
            return products.convolve_by(instead, node, wide, turned, windows, zero, points, groups, offsets, epilogue)
        return kernels.conv2d(
            wide,
            packed,
            dilations=where.dilations,
            a_zero_point=zero,
            bias=offsets,
            epilogue=epilogue,
            threads=settings.threads,
            wrap=True,
        )

    return adapt(run)


def _turned(weight: Array, groups: int) -> Array:
    """Weights [C, M / groups, *kernel] as those of the convolution, [M, C / groups, *kernel], turned around."""
    channels, each = weight.shape[:2]
    grouped = weight.reshape(groups, channels // groups, each, *weight.shape[2:]).swapaxes(1, 2)
    made = grouped.reshape(groups * each, channels // groups, *weight.shape[2:])
    return np.ascontiguousarray(np.flip(made, tuple(range(2, weight.ndim))))


def _spread(x: Array, where: Footprint, value: int) -> Array:
    """`x` [N, C, *space] with `value` between its elements and around them, so that windows of stride 1 make `where`."""
    every = slice(None)
    wide = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], where.strides, strict=True)]
    made = np.full((*x.shape[:2], *wide), value, x.dtype)
    made[(every, every, *(slice(None, None, stride) for stride in where.strides))] = x
    first = [
        (taps - 1) * step - cut for taps, step, cut in zip(where.kernel, where.dilations, where.begin, strict=True)
    ]
    last = [
        int(size) + (taps - 1) * step - extent - before
        for size, taps, step, extent, before in zip(
            where.sizes, where.kernel, where.dilations, wide, first, strict=True
        )
    ]
    made = arithmetic.padded(made, [max(one, 0) for one in first], [max(one, 0) for one in last], value)
    cut = [
        slice(max(-before, 0), size - max(-behind, 0))
        for before, behind, size in zip(first, last, made.shape[2:], strict=True)
    ]
    return np.ascontiguousarray(made[(every, every, *cut)])
