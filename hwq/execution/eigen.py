"""Float32 sums, means and BatchNormalization as onnxruntime computes them: by Eigen, by MLAS, or one element after the other.

Measured on onnxruntime 1.31.1 with one thread and confirmed bit for bit (`hwq dialects --verify ort`). Which axes are reduced decides
the order (core/providers/cpu/reduction/reduction_ops.cc): neighbors of one kind count as one axis, of size 1 too. With T threads
the kinds that want 2 of an axis want T of it: the order, and so the bits, are then the machine's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from hwq.execution import mlas
from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present, register
from hwq.graph import Array
from hwq.ops.application import evaluate_node
from hwq.ops.reduce import axes_of

__all__ = ["normalized", "row_sums", "total"]

# Floats of the vectors that Eigen was built for (SSE); they begin at multiples of 16 bytes.
LANES = 4
# Most sums that run in order start from it: -0 alone adds up to +0.
ZERO = np.float32(0)


def total(x: Array, axes: Sequence[int]) -> Array:
    """The sum over `axes`, which are left out of the result's shape.

    Parameters
    ----------
    x : float32 array
    axes : sequence of int
        At least one, from the front.

    Returns
    -------
    float32 array
    """
    runs = [(reduced, list(run)) for reduced, run in itertools.groupby(range(x.ndim), lambda axis: axis in axes)]
    kinds = "".join("R" if reduced else "K" for reduced, _ in runs)
    data = np.ascontiguousarray(x).reshape([int(np.prod([x.shape[axis] for axis in run])) for _, run in runs])
    kept = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    if kinds == "R":
        made = row_sums(data[None])
    elif kinds == "KR":
        made = row_sums(data)
    elif kinds == "KRK" and data.shape[0] >= 2:
        ones = np.ones((1, data.shape[1]), np.float32)
        made = np.concatenate([mlas.product(ones, image, packed=False) for image in data])
    elif kinds == "RKR" and data.shape[1] >= 2:
        made = ZERO + _in_order(row_sums(data.reshape(-1, data.shape[2])).reshape(data.shape[:2]))
    elif kinds == "RK" and (len(data) > 256 or (len(data) > 16 and data.shape[1] > 256)):
        made = _in_order(data)
    else:
        first = [axis for axis, kind in enumerate(kinds) if kind == "R"]
        moved = np.moveaxis(data, first, range(len(first)))
        made = ZERO + _in_order(moved.reshape(int(np.prod(moved.shape[: len(first)])), -1))
    return made.reshape(kept)


def _in_order(rows: Array) -> Array:
    """The sum of rows, one after the other."""
    return np.asarray(np.add.accumulate(rows, axis=0)[-1])


def row_sums(data: Array, aligned: bool = True) -> Array:
    """The sum of each row, by Eigen's redux: how far a row begins from a multiple of 16 bytes decides its vectors.

    Parameters
    ----------
    data : float32 array (rows, columns)
    aligned : bool
        False for expressions, whose vectors begin with the row.
    """
    rows, count = data.shape
    made, phases = np.empty(rows, np.float32), -np.arange(rows) * (count if aligned else 0) % LANES
    for first in set(phases.tolist()):
        made[phases == first] = _vectors(data[phases == first], min(first, count))
    return made


def _vectors(data: Array, first: int) -> Array:
    """Rows whose vectors begin at `first`: two vectors in turn, their sum, (l0 + l2) + (l1 + l3), then what is no vector."""
    last = first + (data.shape[1] - first) // LANES * LANES
    if last == first:
        return _in_order(data.T)
    vectors = data[:, first:last].reshape(data.shape[0], -1, LANES)
    pairs = vectors.shape[1] // 2 * 2
    if pairs:
        lanes = _in_order(vectors[:, 0:pairs:2].swapaxes(0, 1)) + _in_order(vectors[:, 1:pairs:2].swapaxes(0, 1))
        if pairs < vectors.shape[1]:
            lanes = lanes + vectors[:, -1]
    else:
        lanes = vectors[:, 0]
    made = (lanes[:, 0] + lanes[:, 2]) + (lanes[:, 1] + lanes[:, 3])
    return _in_order(np.concatenate([made[None], data[:, :first].T, data[:, last:].T]))


def normalized(x: Array, parameters: Sequence[Array], epsilon: float) -> Array:
    """``x * (scale / deviation) + (bias - mean * (scale / deviation))`` for channels along axis 1, each operation rounded.

    Parameters
    ----------
    x : float32 array
    parameters : scale, bias, mean, variance
        float32 arrays, an element a channel.
    epsilon : float
    """
    scale, bias, mean, variance = parameters
    factor = np.float32(1) / np.sqrt(variance + np.float32(epsilon)) * scale
    shape = (-1, *([1] * (x.ndim - 2)))
    return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


def _own(scope: Scope) -> bool:
    return scope.dialect.formulas.get("float-reduce") == "eigen"


@register("float:ReduceSum", "float:ReduceMean")
def reduction(scope: Scope) -> Kernel:
    """A float32 sum or mean in the dialect's order; without elements or axes as `hwq.ops` computes it."""
    node, x = scope.node, scope.operand(0)
    if not _own(scope) or x is None or x.dtype != "float32":
        return interpret(scope)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x, stated = present(operands[0]), operands[1] if len(operands) > 1 else None
        axes = axes_of(node, node.attributes.get("axes") if stated is None else stated.tolist(), x.ndim)
        if not axes or not x.size:
            return evaluate_node(node, operands)[0].copy()
        made = total(x, axes)
        if node.op == "ReduceMean":
            made = made / np.float32(np.prod([x.shape[axis] for axis in axes]))
        return np.expand_dims(made, axes) if node.attributes.get("keepdims", 1) else made

    return adapt(run)


@register("float:BatchNormalization")
def batch_normalization(scope: Scope) -> Kernel:
    """A float32 BatchNormalization with one parameter a channel, in the dialect's order; others as `hwq.ops` computes them."""
    node, operands = scope.node, [scope.operand(index) for index in range(5)]
    floats = all(one is not None and one.dtype == "float32" for one in operands)
    if not _own(scope) or not floats or node.layout == "NHWC":
        return interpret(scope)
    epsilon = float(node.attributes.get("epsilon", 1e-5))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x, *parameters = [present(one) for one in operands]
        if x.ndim < 2 or any(one.shape != x.shape[1:2] for one in parameters):
            return evaluate_node(node, operands)[0]
        return normalized(x, parameters, epsilon)

    return adapt(run)
