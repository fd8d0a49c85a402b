"""FP16 and BF16 products and convolutions: float32 sums in the fixed order over exact operands, the result rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq import kernels
from hwq.execution.gathering import convolved
from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present, writing
from hwq.graph import Array

__all__ = ["HALVES", "convolution", "product"]

HALVES = frozenset({"float16", "bfloat16"})


def product(scope: Scope) -> Kernel:
    """A matrix times a matrix of weights, with a bias that joins before the rounding; other forms as `hwq.ops` computes them."""
    node, a, b, bias = scope.node, scope.operand(0), scope.operand(1), scope.operand(2)
    assert a is not None and b is not None
    get = node.attributes.get
    plain = not get("transA", 0) and get("alpha", 1.0) == 1.0 and get("beta", 1.0) == 1.0
    if a.dtype != b.dtype or not plain or not b.known_shape or len(b.shape) != 2:
        return interpret(scope)
    if bias is not None and (bias.data is None or bias.data.size != b.shape[0 if get("transB", 0) else 1]):
        return interpret(scope)
    layout = "NK" if get("transB", 0) else "KN"
    fixed = None if b.data is None else kernels.pack_float(b.data, layout=layout)
    offsets = None if bias is None or bias.data is None else bias.data.reshape(-1)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        packed = kernels.pack_float(present(operands[1]), layout=layout) if fixed is None else fixed
        made = kernels.gemm(np.atleast_2d(x), packed, bias=offsets, threads=settings.threads)
        return made[0] if x.ndim == 1 else made

    return adapt(run)


def convolution(scope: Scope) -> Kernel:
    """A convolution by constant weights, packed once; other forms as `hwq.ops` computes them."""
    node, x, weights, bias = scope.node, scope.operand(0), scope.operand(1), scope.operand(2)
    assert x is not None and weights is not None
    if x.dtype != weights.dtype or weights.data is None or not 3 <= len(weights.shape) <= 5:
        return interpret(scope)
    if node.layout == "NHWC" or (bias is not None and bias.data is None):
        return interpret(scope)
    packed = kernels.pack_conv(weights.data, groups=int(node.attributes.get("group", 1)))
    offsets = None if bias is None else bias.data

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        return convolved(scope, present(operands[0]), packed, settings, out, bias=offsets)

    return writing(run)
