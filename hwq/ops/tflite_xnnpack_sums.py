"""Float MEAN and SUM of the default interpreter: XNNPACK's order of sums on x86-64 with AVX2.

Measured against ai-edge-litert 2.3.0. With AVX-512 XNNPACK takes 16 elements at a time where the last axis is summed, and
other bits follow; a sum over other axes has one order on every CPU.
"""

from __future__ import annotations

import math

import numpy as np

from hwq.graph import Array
from hwq.ops.tflite_base import Call

__all__ = ["reduce"]

# Elements of an AVX2 vector, and of the four accumulators that take them in turn.
LANES, TILE = 8, 32


def reduce(call: Call) -> Array | None:
    """Neighboring axes of one fate are one; each innermost sum is scaled and added to what the outer axes gave so far."""
    x, f32 = call.array(0), np.float32
    axes = {int(axis) % max(x.ndim, 1) for axis in call.array(1).reshape(-1)}
    if not x.size or not axes:
        return None
    sizes, summed = list[int](), list[bool]()
    for axis, size in enumerate(x.shape):
        if summed and summed[-1] == (axis in axes):
            sizes[-1] *= size
        else:
            sizes.append(size)
            summed.append(axis in axes)
    count = math.prod(size for size, gone in zip(sizes, summed, strict=True) if gone)
    scale = f32(1) / f32(count) if call.node.op == "MEAN" else f32(1)
    gone, kept = ([axis for axis, is_gone in enumerate(summed) if is_gone == want] for want in (True, False))
    view = np.transpose(x.reshape(sizes), [*gone[:-1], *kept, gone[-1]])
    inner = _contiguous(view) if summed[-1] else _in_order(view)
    parts = (inner * scale).astype(f32).reshape(-1, *[sizes[axis] for axis in kept])
    keep = bool(call.attribute("keep_dims", False))
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape) if keep or axis not in axes]
    return np.asarray(_in_order(np.moveaxis(parts, 0, -1)).reshape(shape), f32)


def _in_order(x: Array) -> Array:
    total = np.zeros(x.shape[:-1], np.float32)
    for index in range(x.shape[-1]):
        total = total + x[..., index]
    return np.asarray(total, np.float32)


def _contiguous(x: Array) -> Array:
    """Whole vectors go to four accumulators in turn, which fold in halves; the rest of the row is one more vector."""
    whole = x.shape[-1] // LANES * LANES
    total = np.zeros((*x.shape[:-1], TILE), np.float32)
    for start in range(0, whole, LANES):
        lane = start % TILE
        total[..., lane : lane + LANES] += x[..., start : start + LANES]
    while total.shape[-1] > 1:
        if total.shape[-1] == LANES and whole < x.shape[-1]:
            total[..., : x.shape[-1] - whole] += x[..., whole:]
        half = total.shape[-1] // 2
        total = total[..., :half] + total[..., half:]
    return np.asarray(total[..., 0], np.float32)
