"""SLICE and STRIDED_SLICE, and the rearrangements of blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Dim, Node, Shape, Tensor
from hwq.ops import dims
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import Call, Moving, contiguous, inferred, present

__all__ = ["Blocks", "Slice", "StridedSlice", "index_of"]


@register
class Slice(Moving):
    """SLICE: from `begin`, `size` elements an axis; -1 takes the rest."""

    operators = ("SLICE",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, begin, size = present(node, inputs, 3)
        assert x is not None
        starts, sizes = dims.integers(node, begin, "begin"), dims.integers(node, size, "size")
        if starts is None or sizes is None or not x.known_shape:
            return inferred(x.dtype, None)
        return inferred(x.dtype, _extents(node, x.shape, starts, sizes))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        starts, sizes = ([int(value) for value in call.array(index)] for index in (1, 2))
        found = _extents(call.node, x.shape, starts, sizes)
        return [
            contiguous(x[tuple(slice(start, start + int(extent)) for start, extent in zip(starts, found, strict=True))])
        ]


def _extents(node: Node, shape: Shape, starts: Sequence[int], sizes: Sequence[int]) -> Shape:
    if len(starts) != len(shape) or len(sizes) != len(shape):
        raise dims.fault(node, f"begin {list(starts)[:16]} and size {list(sizes)[:16]} do not fit {list(shape)}")
    made: list[Dim] = []
    for dim, start, size in zip(shape, starts, sizes, strict=True):
        if start < 0 or size < -1 or (isinstance(dim, int) and start + max(size, 0) > dim):
            raise dims.fault(node, f"begin {list(starts)[:16]} and size {list(sizes)[:16]} leave {list(shape)}")
        made.append(dims.offset(dim, -start) if size == -1 else size)
    return tuple(made)


@register
class StridedSlice(Moving):
    """STRIDED_SLICE: NumPy's slices with TensorFlow's masks (ellipsis, new and dropped axes included)."""

    operators = ("STRIDED_SLICE",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, *bounds = present(node, inputs, 4)
        assert x is not None
        found = [dims.integers(node, tensor, "a bound") for tensor in bounds]
        if not x.known_shape or any(values is None for values in found):
            return inferred(x.dtype, None)
        index = index_of(node, x.shape, [values for values in found if values is not None])
        made: list[Dim] = []
        axis = 0
        for part in index:
            if part is None:
                made.append(1)
                continue
            dim = x.shape[axis]
            axis += 1
            if isinstance(part, slice):
                if isinstance(dim, str):
                    if part != slice(None, None, 1):
                        raise dims.fault(node, f"an axis of open length {dim} is cut")
                    made.append(dim)
                else:
                    made.append(len(range(*part.indices(dim))))
        return inferred(x.dtype, (*made, *x.shape[axis:]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        return [
            contiguous(
                x[index_of(call.node, x.shape, [[int(value) for value in call.array(index)] for index in (1, 2, 3)])]
            )
        ]


def index_of(node: Node, shape: Shape, bounds: Sequence[Sequence[int]]) -> tuple[slice | int | None, ...]:
    """One entry an axis of the operand (a slice, or a number for a dropped axis), and None for every new axis."""
    begin, end, step = bounds
    if not len(begin) == len(end) == len(step) or len(begin) > 32:
        raise dims.fault(node, "begin, end and strides have different lengths")
    masks = {
        name: int(node.attributes.get(f"{name}_mask", 0))
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    entries = range(len(begin))
    ellipses = [entry for entry in entries if masks["ellipsis"] >> entry & 1]
    added = sum(1 for entry in entries if masks["new_axis"] >> entry & 1 and entry not in ellipses)
    if len(ellipses) > 1:
        raise dims.fault(node, "more than one ellipsis")
    missing = len(shape) - (len(begin) - added - len(ellipses))
    if missing < 0:
        raise dims.fault(node, f"{len(begin)} bounds are too many for {list(shape)}")
    index: list[slice | int | None] = []
    axis = 0
    for entry in entries:
        if entry in ellipses:
            index += [slice(None, None, 1)] * missing
            axis += missing
        elif masks["new_axis"] >> entry & 1:
            index.append(None)
        else:
            index.append(
                _part(
                    node,
                    shape[axis],
                    begin[entry],
                    end[entry],
                    step[entry],
                    {name: bool(mask >> entry & 1) for name, mask in masks.items()},
                )
            )
            axis += 1
    return tuple(index)


def _part(node: Node, dim: Dim, begin: int, end: int, step: int, mask: dict[str, bool]) -> slice | int:
    if step == 0:
        raise dims.fault(node, "a stride is 0")
    if mask["shrink_axis"]:
        if isinstance(dim, str) or not -dim <= begin < dim or step < 0:
            raise dims.fault(node, f"element {begin} of an axis of {dim} cannot be picked")
        return begin
    if node.attributes.get("offset", False) and not mask["end"]:
        end = begin + end
    if step < 0 and not mask["end"] and isinstance(dim, int) and end < -dim:
        return slice(None if mask["begin"] else begin, None, step)
    return slice(None if mask["begin"] else begin, None if mask["end"] else end, step)


@register
class Blocks(Moving):
    """DEPTH_TO_SPACE, SPACE_TO_DEPTH (square blocks of NHWC) and SPACE_TO_BATCH_ND, BATCH_TO_SPACE_ND."""

    operators = ("DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        depth = node.op in {"DEPTH_TO_SPACE", "SPACE_TO_DEPTH"}
        x, *rest = present(node, inputs, 1 if depth else 3)
        assert x is not None
        if not x.known_shape:
            return inferred(x.dtype, None)
        if depth:
            return inferred(x.dtype, _depth_shape(node, x.shape))
        found = [
            None if one is None or one.data is None else [int(value) for value in one.data.reshape(-1)[:64]]
            for one in rest
        ]
        if found[0] is None or found[1] is None:
            return inferred(x.dtype, None)
        return inferred(x.dtype, _batch_shape(node, x.shape, found[0], found[1]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        if call.node.op in {"DEPTH_TO_SPACE", "SPACE_TO_DEPTH"}:
            return [_rearranged(call.node, x)]
        block, border = ([int(value) for value in call.array(index).reshape(-1)] for index in (1, 2))
        shape = [int(dim) for dim in _batch_shape(call.node, x.shape, block, border)]
        return [
            _to_batch(call, x, block, border, shape)
            if call.node.op == "SPACE_TO_BATCH_ND"
            else _to_space(x, block, border, shape)
        ]


def _depth_shape(node: Node, shape: Shape) -> Shape:
    block = int(node.attributes.get("block_size", 0))
    if block < 1 or len(shape) != 4 or not all(isinstance(dim, int) for dim in shape[1:]):
        raise dims.fault(node, f"blocks of {block} do not fit {list(shape)}")
    height, width, depth = (int(dim) for dim in shape[1:])
    if node.op == "DEPTH_TO_SPACE":
        if depth % (block * block):
            raise dims.fault(node, f"blocks of {block} do not fit {list(shape)}")
        return shape[0], height * block, width * block, depth // (block * block)
    if height % block or width % block:
        raise dims.fault(node, f"blocks of {block} do not fit {list(shape)}")
    return shape[0], height // block, width // block, depth * block * block


def _rearranged(node: Node, x: Array) -> Array:
    block = int(node.attributes["block_size"])
    batch, height, width, depth = x.shape
    if node.op == "DEPTH_TO_SPACE":
        parts = x.reshape(batch, height, width, block, block, depth // (block * block)).transpose(0, 1, 3, 2, 4, 5)
    else:
        parts = x.reshape(batch, height // block, block, width // block, block, depth).transpose(0, 1, 3, 2, 4, 5)
    return contiguous(parts).reshape([int(dim) for dim in _depth_shape(node, x.shape)])


def _batch_shape(node: Node, shape: Shape, block: Sequence[int], border: Sequence[int]) -> Shape:
    rank = len(block)
    if (
        not 1 <= rank < len(shape)
        or len(border) != 2 * rank
        or min(block) < 1
        or min(border) < 0
        or not all(isinstance(dim, int) for dim in shape)
    ):
        raise dims.fault(node, f"blocks {list(block)[:8]} with borders {list(border)[:8]} do not fit {list(shape)}")
    total = int(np.prod(block, dtype=object))
    sizes = [int(dim) for dim in shape]
    if node.op == "SPACE_TO_BATCH_ND":
        space = [size + border[2 * axis] + border[2 * axis + 1] for axis, size in enumerate(sizes[1 : rank + 1])]
        if any(size % one for size, one in zip(space, block, strict=True)):
            raise dims.fault(node, f"blocks {list(block)[:8]} do not divide {space}")
        return (sizes[0] * total, *(size // one for size, one in zip(space, block, strict=True)), *sizes[rank + 1 :])
    space = [
        size * one - border[2 * axis] - border[2 * axis + 1]
        for axis, (size, one) in enumerate(zip(sizes[1:], block, strict=False))
    ]
    if sizes[0] % total or min(space) < 0:
        raise dims.fault(node, f"blocks {list(block)[:8]} with borders {list(border)[:8]} do not fit {list(shape)}")
    return (sizes[0] // total, *space, *sizes[rank + 1 :])


def _to_batch(call: Call, x: Array, block: Sequence[int], border: Sequence[int], shape: Sequence[int]) -> Array:
    rank = len(block)
    quantized = call.quantized and call.makes[0] is not None and call.makes[0].quantization is not None
    edges = [
        (0, 0),
        *((border[2 * axis], border[2 * axis + 1]) for axis in range(rank)),
        *[(0, 0)] * (x.ndim - rank - 1),
    ]
    padded = np.pad(x, edges, constant_values=call.made_zero_point() if quantized else 0)
    split: list[int] = [x.shape[0]]
    for size, one in zip(padded.shape[1 : rank + 1], block, strict=True):
        split += [size // one, one]
    parts = padded.reshape(*split, *padded.shape[rank + 1 :])
    order = (*range(2, 2 * rank + 1, 2), 0, *range(1, 2 * rank, 2), *range(2 * rank + 1, parts.ndim))
    return contiguous(parts.transpose(order)).reshape(shape)


def _to_space(x: Array, block: Sequence[int], border: Sequence[int], shape: Sequence[int]) -> Array:
    rank = len(block)
    parts = x.reshape(*block, shape[0], *x.shape[1:])
    order: list[int] = [rank]
    for axis in range(rank):
        order += [rank + 1 + axis, axis]
    moved = parts.transpose(*order, *range(2 * rank + 1, parts.ndim))
    whole = moved.reshape(
        shape[0], *(size * one for size, one in zip(x.shape[1:], block, strict=False)), *x.shape[rank + 1 :]
    )
    cut = tuple(slice(border[2 * axis], border[2 * axis] + shape[axis + 1]) for axis in range(rank))
    return contiguous(whole[(slice(None), *cut)])
