"""Boxes and sampled places of detectors: NonMaxSuppression and GridSample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops import accounting, dims
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import operands, require_float
from hwq.work import Work

__all__ = ["GridSample", "NonMaxSuppression"]

Float = NDArray[np.float32]


@register
class NonMaxSuppression(Op):
    """(batch, class, box) of the boxes that are kept: best score first, none that overlaps a kept one too much.

    A box may have its corners in any order (``y1 x1 y2 x2``), or is centre and size (`center_point_box`). Boxes of equal
    score come in the order of their number.
    """

    names = ("NonMaxSuppression",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        boxes, scores = operands(node, inputs[:2], 2, 2)
        if len(inputs) > 5:
            raise dims.fault(node, f"NonMaxSuppression has at most 5 inputs, not {len(inputs)}")
        for tensor in (boxes, scores):
            require_float(node, tensor)
            if tensor.known_shape and len(tensor.shape) != 3:
                raise dims.fault(node, f"boxes and scores have rank 3, not {len(tensor.shape)}")
        return [("int64", (f"{node.outputs[0]}.0", 3), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        boxes, scores, most, overlap, least = [*inputs, None, None, None][:5]
        assert boxes is not None and scores is not None
        limit = 0 if most is None else int(most.reshape(-1)[0])
        bound = np.float32(0 if overlap is None else overlap.reshape(-1)[0])
        if not 0 <= bound <= 1:
            raise dims.fault(node, f"iou_threshold {bound} lies outside [0, 1]")
        if boxes.shape[0] != scores.shape[0] or boxes.shape[1] != scores.shape[2] or boxes.shape[2] != 4:
            raise dims.fault(node, f"boxes {list(boxes.shape)} and scores {list(scores.shape)} do not fit")
        found = []
        for batch in range(scores.shape[0]):
            corners = _corners(boxes[batch], bool(node.attributes.get("center_point_box", 0)))
            for kind in range(scores.shape[1]):
                row = scores[batch, kind]
                chosen = np.flatnonzero(row > least.reshape(-1)[0]) if least is not None else np.arange(row.size)
                order = chosen[np.argsort(-row[chosen], kind="stable")]
                found += [(batch, kind, box) for box in _kept(corners, order, bound, limit)]
        return [np.array(found, np.int64).reshape(-1, 3)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: one comparison for each score."""
        return accounting.vector(node, graph, operations=graph.tensors[node.inputs[1]].elements)


def _corners(boxes: Array, centred: bool) -> Float:
    """[4, boxes]: the lower and the upper y, then x, in float32 as onnxruntime computes them."""
    box = boxes.astype(np.float32, copy=False).T
    if centred:
        x, y, w, h = box
        half_w, half_h = w / np.float32(2), h / np.float32(2)
        return np.array([y - half_h, y + half_h, x - half_w, x + half_w], np.float32)
    y1, x1, y2, x2 = box
    return np.array([np.minimum(y1, y2), np.maximum(y1, y2), np.minimum(x1, x2), np.maximum(x1, x2)], np.float32)


def _kept(corners: Float, order: Array, bound: np.float32, limit: int) -> list[int]:
    low_y, high_y, low_x, high_x = corners
    area = (high_y - low_y) * (high_x - low_x)
    kept: list[int] = []
    while order.size and len(kept) < limit:
        box, rest = int(order[0]), order[1:]
        kept.append(box)
        height = np.minimum(high_y[box], high_y[rest]) - np.maximum(low_y[box], low_y[rest])
        width = np.minimum(high_x[box], high_x[rest]) - np.maximum(low_x[box], low_x[rest])
        common = np.where((height > 0) & (width > 0), height * width, np.float32(0))
        union = area[box] + area[rest] - common
        positive = (area[box] > 0) & (area[rest] > 0) & (union > 0) & (common > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            order = rest[~(positive & (common / union > bound))]
    return kept


_MODES = {"linear": "linear", "bilinear": "linear", "nearest": "nearest", "cubic": "cubic", "bicubic": "cubic"}


@register
class GridSample(Op):
    """An image read at the places of a grid, from -1 to 1 along each axis (last axis first): float32 as onnxruntime weighs them."""

    names = ("GridSample",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, grid = operands(node, inputs, 2, 2)
        require_float(node, grid)
        if node.attributes.get("mode", "linear") not in _MODES:
            raise dims.fault(node, f"mode {node.attributes['mode']!r} is unknown", None, "use linear, nearest or cubic")
        if node.attributes.get("padding_mode", "zeros") not in {"zeros", "border", "reflection"}:
            raise dims.fault(node, f"padding_mode {node.attributes['padding_mode']!r} is unknown")
        if not dims.rank_known(x, grid):
            return [(x.dtype, (), False)]
        space = len(x.shape) - 2
        if space not in (2, 3) or len(grid.shape) != space + 2 or grid.shape[-1] not in (space, str(grid.shape[-1])):
            raise dims.fault(node, f"a grid {list(grid.shape)} does not fit the image {list(x.shape)}")
        return [(x.dtype, (x.shape[0], x.shape[1], *grid.shape[1:-1]), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, grid = inputs
        assert x is not None and grid is not None
        mode = _MODES[node.attributes.get("mode", "linear")]
        sizes, aligned = x.shape[2:], bool(node.attributes.get("align_corners", 0))
        padding = node.attributes.get("padding_mode", "zeros")
        wide = np.float64 if grid.dtype == np.float64 else np.float32
        places = []
        for axis, size in enumerate(sizes):
            along: Any = grid[..., len(sizes) - 1 - axis].astype(wide)
            along = (along + 1) / wide(2) * wide(size - 1) if aligned else ((along + 1) * wide(size) - 1) / wide(2)
            if mode == "nearest":
                along = np.rint(along)
            low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
            if padding == "border" and mode != "cubic":  # of a cubic's taps each is moved to the border by itself
                along = np.clip(along, wide(0), wide(size - 1))
            elif padding == "reflection":
                along = _reflected(along, low, high)
            places.append(along)
        return [_sampled(x, places, mode, padding, aligned).astype(x.dtype, copy=False)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: a multiplication and an addition for each tap."""
        made = graph.tensors[node.outputs[0]]
        taps = {"nearest": 1, "linear": 2, "cubic": 4}[_MODES[node.attributes.get("mode", "linear")]]
        return accounting.vector(node, graph, operations=2 * made.elements * taps ** (len(made.shape) - 2))


def _reflected(along: Array, low: float, high: float) -> Array:
    """Coordinates mirrored at the borders until they lie between them."""
    span = high - low
    if span <= 0:
        return np.zeros_like(along)
    far = np.abs(along - low) % (2 * span)
    return np.asarray(np.where(far > span, 2 * span - far, far) + low).astype(along.dtype)


def _weights(along: Array, mode: str) -> list[tuple[Array, Array]]:
    """(index, weight) of each tap; cubic convolution with a = -0.75 as ONNX has it."""
    if mode == "nearest":
        return [(along.astype(np.int64), np.ones_like(along))]
    base = np.floor(along)
    part = (along - base).astype(along.dtype)
    start = base.astype(np.int64)
    if mode == "linear":
        return [(start, 1 - part), (start + 1, part)]
    a = along.dtype.type(-0.75)

    def near(t: Array) -> Array:
        return np.asarray(((a + 2) * t - (a + 3)) * t * t + 1)

    def far(t: Array) -> Array:
        return np.asarray(((a * t - 5 * a) * t + 8 * a) * t - 4 * a)

    weights = [far(part + 1), near(part), near(1 - part), far(2 - part)]
    return [(start + place - 1, weight) for place, weight in enumerate(weights)]


def _sampled(x: Array, places: Sequence[Array], mode: str, padding: str, aligned: bool) -> Array:
    """Weighted sums over the taps of all axes, the last axis innermost."""
    sizes = x.shape[2:]
    finite = [
        np.where(np.isfinite(one), np.clip(one, -2 - 2 * size, 3 + 3 * size), -9)
        for one, size in zip(places, sizes, strict=True)
    ]
    taps = [_weights(one.astype(places[0].dtype), mode) for one in finite]
    rows = np.arange(x.shape[0]).reshape(-1, *[1] * (places[0].ndim - 1))

    def summed(axis: int, chosen: list[Array], inside: Array) -> Array:
        if axis == len(sizes):
            index: Any = (rows, slice(None), *chosen)
            value = np.moveaxis(x[index], -1, 1)
            return np.asarray(np.where(inside[:, None], value, np.zeros((), x.dtype)))
        made: Array | None = None
        for place, weight in taps[axis]:
            index, size = place, sizes[axis]
            valid = (index >= 0) & (index < size) if padding == "zeros" else np.ones_like(inside)
            if padding == "reflection":
                low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
                index = np.rint(_reflected(index.astype(np.float64), low, high)).astype(np.int64)
            part = summed(axis + 1, [*chosen, np.clip(index, 0, size - 1)], inside & valid)
            part = (
                part
                if mode == "nearest"
                else weight[:, None].astype(np.float64 if x.dtype == np.float64 else np.float32) * part
            )
            made = part if made is None else made + part
        assert made is not None
        return made

    return summed(0, [], np.ones(places[0].shape, np.bool_))
