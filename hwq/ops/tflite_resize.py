"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR of NHWC images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops import accounting, dims
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import Call, TfliteOp, inferred, present, renamed
from hwq.work import Work

__all__ = ["Resize"]

Positions = tuple[NDArray[np.int64], NDArray[np.int64], Array]


@register
class Resize(TfliteOp):
    """Operand 1 holds the new height and width."""

    operators = ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, size = present(node, inputs, 2)
        assert x is not None
        found = dims.integers(node, size, "the size")
        if found is None or not x.known_shape:
            return inferred(x.dtype, None)
        if len(x.shape) != 4 or len(found) != 2 or min(found) < 1:
            raise dims.fault(node, f"{list(x.shape)} cannot be resized to {list(found)[:8]}")
        return inferred(x.dtype, (x.shape[0], *found, x.shape[3]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        size = [int(value) for value in call.array(1)]
        if call.node.op == "RESIZE_NEAREST_NEIGHBOR":
            rows, columns = (_nearest(call, count, extent) for count, extent in zip(size, x.shape[1:3], strict=True))
            return [np.ascontiguousarray(x[:, rows][:, :, columns])]
        if x.dtype.kind == "f":
            return [_bilinear_float(call, x, size)]
        if x.dtype == np.uint8:
            return [(_bilinear_float(call, x.astype(np.float32), size) + np.float32(0.5)).astype(np.uint8)]
        return [_bilinear_integer(call, x, size)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: bilinear takes four products and three sums for each result."""
        if node.op == "RESIZE_NEAREST_NEIGHBOR":
            return renamed(accounting.move(node, graph), node)
        return renamed(accounting.vector(node, graph, operations=7 * graph.tensors[node.outputs[0]].elements), node)


def _nearest(call: Call, count: int, extent: int) -> NDArray[np.int64]:
    """The source position of each of `count` results, in float32."""
    align, half = bool(call.attribute("align_corners", False)), bool(call.attribute("half_pixel_centers", False))
    scale = (
        np.float32(extent - 1) / np.float32(count - 1)
        if align and count > 1
        else np.float32(extent) / np.float32(count)
    )
    places = ((np.arange(count).astype(np.float32) + np.float32(0.5 if half else 0.0)) * np.float32(scale)).astype(
        np.float32
    )
    whole = (fixed.away(places) if align else np.floor(places)).astype(np.int64)
    whole = np.minimum(whole, extent - 1)
    return np.maximum(whole, 0) if half else whole


def _weights(call: Call, count: int, extent: int, integer: bool) -> Positions:
    """(lower position, upper position, distance from the lower) of each result; distances of integers in 1 / 1024."""
    align, half = bool(call.attribute("align_corners", False)), bool(call.attribute("half_pixel_centers", False))
    if integer:
        scale = ((1 << 10) * extent + count // 2) // count
        if align and count > 1:
            scale = ((1 << 10) * (extent - 1) + (count - 1) // 2) // (count - 1)
        places = np.arange(count, dtype=np.int64) * scale
        if half:
            places = places + scale // 2 - (1 << 9)
        low = np.maximum(_truncated(places), 0)
        return low, np.minimum(_truncated(places + (1 << 10) - 1), extent - 1), places - (low << 10)
    step = (
        np.float32(extent - 1) / np.float32(count - 1)
        if align and count > 1
        else np.float32(extent) / np.float32(count)
    )
    index = np.arange(count).astype(np.float32)
    at = ((index + np.float32(0.5)) * np.float32(step) - np.float32(0.5) if half else index * np.float32(step)).astype(
        np.float32
    )
    lower = np.maximum(np.floor(at).astype(np.int64), 0)
    return (
        lower,
        np.minimum(np.ceil(at).astype(np.int64), extent - 1),
        (at - lower.astype(np.float32)).astype(np.float32),
    )


def _truncated(x: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(x >= 0, x >> 10, -((-x) >> 10))


def _bilinear_integer(call: Call, x: Array, size: Sequence[int]) -> Array:
    """10-bit weights; |sum| < 2**15 * 2**20, halves away from zero."""
    (y0, y1, dy), (x0, x1, dx) = (
        _weights(call, count, extent, True) for count, extent in zip(size, x.shape[1:3], strict=True)
    )
    wide = x.astype(np.int64)
    dy, dx = dy[:, None, None], dx[None, :, None]
    total = (
        wide[:, y0][:, :, x0] * (1024 - dy) * (1024 - dx)
        + wide[:, y1][:, :, x0] * dy * (1024 - dx)
        + wide[:, y0][:, :, x1] * (1024 - dy) * dx
        + wide[:, y1][:, :, x1] * dy * dx
    )
    rounded = np.where(total > 0, (total + (1 << 19)) >> 20, -(((1 << 19) - total) >> 20))
    return np.asarray(rounded.astype(x.dtype))


def _bilinear_float(call: Call, x: Array, size: Sequence[int]) -> Array:
    """Four products in float32, added in the order of rows first."""
    (y0, y1, dy), (x0, x1, dx) = (
        _weights(call, count, extent, False) for count, extent in zip(size, x.shape[1:3], strict=True)
    )
    one = np.float32(1)
    dy, dx = dy[:, None, None], dx[None, :, None]
    return np.asarray(
        x[:, y0][:, :, x0] * (one - dy) * (one - dx)
        + x[:, y1][:, :, x0] * dy * (one - dx)
        + x[:, y0][:, :, x1] * (one - dy) * dx
        + x[:, y1][:, :, x1] * dy * dx
    ).astype(x.dtype)
