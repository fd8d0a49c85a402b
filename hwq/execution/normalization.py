"""Float32 LayerNormalization and InstanceNormalization as onnxruntime computes them: by MLAS, one row after the other, or by Eigen.

Measured on onnxruntime 1.31.1 and confirmed bit for bit (`hwq dialects --verify ort`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.execution import eigen
from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present, register
from hwq.graph import Array
from hwq.numerics import fused_multiply_add
from hwq.ops.application import evaluate_node

__all__ = ["channels", "rows"]

f32 = np.float32
# Floats of MLAS's vectors; shorter rows take a loop of their own.
LANES = 8


def rows(x: Array, scale: Array, bias: Array | None, epsilon: float) -> Array:
    """LayerNormalization of every row of `x` (rows, length): mean and variance by vectors, or for short rows one element after the other."""
    if x.shape[1] < LANES:
        return _short_rows(x, scale, bias, epsilon)
    mean = x.mean(axis=1, dtype=np.float64).astype(f32)[:, None]
    less = x - mean
    factor = (f32(1) / np.sqrt(_squares(less) / f32(x.shape[1]) + f32(epsilon)))[:, None]
    normal = less * factor
    if bias is None:
        return np.asarray(normal * scale)
    return fused_multiply_add(normal, np.broadcast_to(scale, x.shape), np.broadcast_to(bias, x.shape))


def _squares(x: Array) -> Array:
    """Sums of squares of rows: 8 chains, halves added; of what is left 4 products are added in turn, then one chain."""
    whole = x.shape[1] // LANES * LANES
    total = np.zeros((len(x), LANES), f32)
    for first in range(0, whole, LANES):
        part = x[:, first : first + LANES]
        total = fused_multiply_add(part, part, total)
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    made = total[:, 0]
    fours = whole + (x.shape[1] - whole) // 4 * 4
    for index in range(whole, fours):
        made = made + x[:, index] * x[:, index]
    for index in range(fours, x.shape[1]):
        made = fused_multiply_add(x[:, index], x[:, index], made)
    return np.asarray(made)


def _short_rows(x: Array, scale: Array, bias: Array | None, epsilon: float) -> Array:
    """By Welford's running mean and squared distances."""
    mean: Array = np.zeros(len(x), f32)
    squares: Array = np.zeros(len(x), f32)
    for index in range(x.shape[1]):
        less = x[:, index] - mean
        mean = mean + less / f32(index + 1)
        squares = squares + less * (x[:, index] - mean)
    deviation = np.sqrt(squares / f32(x.shape[1]) + f32(epsilon))[:, None]
    made = (x - mean[:, None]) / deviation * scale
    return np.asarray(made if bias is None else made + bias)


def channels(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """InstanceNormalization of [N, C, *space]: Eigen's sums, then ``x * factor + (bias - mean * factor)``."""
    flat = np.ascontiguousarray(x).reshape(x.shape[0] * x.shape[1], -1)
    count = f32(flat.shape[1])
    mean = (eigen.row_sums(flat) / count)[:, None]
    less = flat - mean
    squares = eigen.row_sums(less * less, aligned=False)
    gain, offset = (np.tile(one, x.shape[0])[:, None] for one in (scale, bias))
    factor = (f32(1) / np.sqrt(squares / count + f32(epsilon)))[:, None] * gain
    return np.asarray(flat * factor + (offset - mean * factor)).reshape(x.shape)


@register("float:LayerNormalization", "float:InstanceNormalization")
def normalization(scope: Scope) -> Kernel:
    """A float32 normalization in the dialect's order; other forms as `hwq.ops` computes them."""
    node, whole = scope.node, scope.node.op == "LayerNormalization"
    given = [scope.operand(index) for index in range(len(node.inputs))]
    floats = all(one is None or one.dtype == "float32" for one in given)
    if scope.dialect.formulas.get("float-function") != "mlas" or not floats or any(node.outputs[1:]):
        return interpret(scope)
    epsilon = float(node.attributes.get("epsilon", 1e-5))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x, scale, *others = operands
        x, scale, bias = present(x), present(scale), others[0] if others else None
        if not x.size:
            return evaluate_node(node, operands)[0]
        if not whole:
            return channels(x, scale, present(bias), epsilon)
        axis = int(node.attributes.get("axis", -1)) % x.ndim
        length = int(np.prod(x.shape[axis:]))
        if scale.size != length or (bias is not None and bias.size != length):
            return evaluate_node(node, operands)[0]
        flat = np.ascontiguousarray(x).reshape(-1, length)
        return rows(flat, scale.reshape(-1), None if bias is None else bias.reshape(-1), epsilon).reshape(x.shape)

    return adapt(run)
