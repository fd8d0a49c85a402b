"""What fbgemm, PyTorch's quantized engine on x86-64, does in its own way: dynamic products and 3x3, 5x5 depthwise windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq import kernels
from hwq.errors import NotSupportedYet
from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present
from hwq.graph import Array

__all__ = ["Linear", "depthwise", "dynamic_linear", "fused"]


def depthwise(scope: Scope) -> bool:
    """Whether fbgemm takes its depthwise kernel, whose taps 2i and 2i + 1 saturate in int16 on every x86-64 CPU.

    The conditions of fbgemm's takeDepthWiseFastPath: as many channels as groups and filters, a multiple of 8; windows of
    3x3, 5x5 or 3x3x3, padded by half of that, strides of 1 or 2, no dilation.
    """
    node, weights = scope.node, scope.operand(1)
    if node.op != "Conv" or weights is None or len(weights.shape) not in (4, 5):
        return False
    get = node.attributes.get
    groups, window = int(get("group", 1)), tuple(weights.shape[2:])
    half, rank = int(weights.shape[2]) // 2, len(window)
    return (
        weights.shape[:2] == (groups, 1)
        and groups % 8 == 0
        and window in {(3, 3), (5, 5), (3, 3, 3)}
        and {int(one) for one in get("pads", (0,) * 2 * rank)} == {half}
        and tuple(get("strides", (1,) * rank)) in {(1,) * rank, (2,) * rank}
        and {int(one) for one in get("dilations", (1,) * rank)} == {1}
    )


@dataclass(frozen=True)
class Linear:
    """A matrix made ready for dynamic products: `kernels.pack` of int8 (K, N), float32 scales (1 or N), biases (N)."""

    packed: Any
    scales: Array
    offsets: Array

    def __call__(self, x: Array, threads: int) -> Array:
        """``fma(f32(acc), f32(sx * sw), bias)``; one range for all of `x`, whose last axis is K. No sum wraps below 2^16 terms."""
        stored, scale, point = kernels.dynamic_quantize(x, formula="torch-reduced")
        acc = kernels.gemm(stored, self.packed, a_zero_point=int(point), threads=threads, wrap=True)
        return fused(acc.astype(np.float32), (scale * self.scales).astype(np.float32), self.offsets)


def dynamic_linear(scope: Scope) -> Kernel:
    """quantized.linear_dynamic: ``fma(f32(acc), f32(sx * sw), bias)`` over activations of 7 bits, one range a call.

    Raises
    ------
    NotSupportedYet
        The weights are computed, or have zero points.
    """
    weights, scales, points, bias = (scope.operand(index) for index in (1, 2, 3, 4))
    if weights is None or scales is None or weights.data is None or scales.data is None or weights.data.ndim != 2:
        raise NotSupportedYet(f"computed weights in dialect {scope.dialect.name}", where=f"node {scope.node.name}")
    if weights.dtype != "int8" or (points is not None and (points.data is None or points.data.any())):
        raise NotSupportedYet(
            f"weights with a zero point in dialect {scope.dialect.name}", where=f"node {scope.node.name}"
        )
    if bias is not None and bias.data is None:
        return interpret(scope)
    columns = weights.data.shape[1]
    offsets = np.zeros(columns, np.float32) if bias is None or bias.data is None else bias.data.reshape(-1)
    linear = Linear(kernels.pack(weights.data), scales.data.reshape(-1), offsets)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        return linear(present(operands[0]), settings.threads)

    return adapt(run)


def fused(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` of float32 with one rounding.

    The float64 product is exact (24 + 24 bits); the float64 sum is rounded to odd (Boldo and Melquiond 2008), so that
    rounding it to float32 gives what one rounding of the exact sum gives (53 >= 2 * 24 + 2 bits).
    """
    product, added = a.astype(np.float64) * b.astype(np.float64), np.broadcast_to(c, np.broadcast(a, b, c).shape)
    added = added.astype(np.float64)
    total = product + added
    # Knuth's two-sum: what the rounded sum left out, exactly.
    virtual = total - product
    rest = (product - (total - virtual)) + (added - virtual)
    even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
    with np.errstate(all="ignore"):
        toward = np.nextafter(total, np.where(rest > 0, np.inf, -np.inf))
        made: Array = np.where((rest != 0) & even & np.isfinite(total), toward, total).astype(np.float32)
    return made
