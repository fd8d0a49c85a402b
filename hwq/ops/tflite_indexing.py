"""TFLite's operators that pick, place or order elements by numbers: reversals, gathers and scatters of points, ranks, tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Node, Shape, Tensor
from hwq.ops import dims
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import INTEGERS, Call, Moving, TfliteOp, constant_numbers, contiguous, inferred, present
from hwq.ops.tflite_quantize import along

__all__ = ["EmbeddingLookup", "GatherNd", "OneHot", "Range", "Rank", "Reverse", "ScatterNd", "TopK", "UpdateSlice"]


@register
class Reverse(Moving):
    """REVERSE_V2 (value, axes) and REVERSE_SEQUENCE (value, length of each sequence)."""

    operators = ("REVERSE_V2", "REVERSE_SEQUENCE")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, _ = present(node, inputs, 2)
        assert x is not None
        return inferred(x.dtype, x.shape if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, numbers = call.array(0), call.numbers(1)
        if call.node.op == "REVERSE_V2":
            return [contiguous(np.flip(x, dims.axes_of(call.node, numbers, x.ndim)))]
        along_axis, batch = (
            dims.axis_of(call.node, int(call.attribute(name, 0)), x.ndim) for name in ("axis", "batch")
        )
        if along_axis == batch or len(numbers) != x.shape[batch]:
            raise call.fault(f"{len(numbers)} lengths do not fit axis {batch} of {list(x.shape)}")
        made = np.moveaxis(x, (batch, along_axis), (0, 1)).copy()
        for row, length in zip(made, numbers, strict=True):
            if not 0 <= length <= x.shape[along_axis]:
                raise call.fault(f"a sequence of {length} elements does not fit {list(x.shape)}")
            row[:length] = row[:length][::-1].copy()
        return [contiguous(np.moveaxis(made, (0, 1), (batch, along_axis)))]


def _points(call: Call, index: Array, shape: Sequence[int]) -> tuple[Array, ...]:
    """One array of positions for each of the leading axes that the last axis of `index` names."""
    depth = index.shape[-1] if index.ndim else 0
    if not 0 < depth <= len(shape):
        raise call.fault(f"points of {depth} numbers do not fit {list(shape)}")
    parts = tuple(index[..., axis].astype(np.int64) for axis in range(depth))
    for part, extent in zip(parts, shape, strict=False):
        if part.size and (part.min() < 0 or part.max() >= extent):
            raise call.fault(f"a point lies outside {list(shape)}")
    return parts


@register
class GatherNd(Moving):
    """GATHER_ND: the slices of operand 0 at the points of operand 1."""

    operators = ("GATHER_ND",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, index = present(node, inputs, 2)
        assert x is not None and index is not None
        if index.dtype not in {"int16", "int32", "int64"}:
            raise dims.fault(node, f"points cannot be {index.dtype}")
        if not (x.known_shape and index.known_shape) or not index.shape or not isinstance(index.shape[-1], int):
            return inferred(x.dtype, None)
        if not 0 < index.shape[-1] <= len(x.shape):
            raise dims.fault(node, f"points {list(index.shape)} do not fit {list(x.shape)}")
        return inferred(x.dtype, (*index.shape[:-1], *x.shape[index.shape[-1] :]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        return [contiguous(x[_points(call, call.array(1), x.shape)])]


@register
class ScatterNd(Moving):
    """SCATTER_ND (points, slices, shape): slices added up at their points, zeros elsewhere."""

    operators = ("SCATTER_ND",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        _, updates, shape = present(node, inputs, 3)
        assert updates is not None
        found = constant_numbers(node, shape, "the shape")
        if found is not None and any(dim < 0 for dim in found):
            raise dims.fault(node, f"the shape {list(found)[:16]} has a negative dimension")
        return inferred(updates.dtype, found)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        index, updates, shape = call.array(0), call.array(1), call.numbers(2)
        if any(dim < 0 for dim in shape):
            raise call.fault(f"the shape {list(shape)[:16]} has a negative dimension")
        points = _points(call, index, shape)
        if updates.shape != (*index.shape[:-1], *shape[len(points) :]):
            raise call.fault(
                f"slices {list(updates.shape)} do not fit points {list(index.shape)} of {list(shape)[:16]}"
            )
        made = np.zeros(shape, updates.dtype)
        np.add.at(made, points, updates)
        return [made]


@register
class UpdateSlice(Moving):
    """DYNAMIC_UPDATE_SLICE (value, slice, begin): the slice in its place, moved inside where it leaves the value."""

    operators = ("DYNAMIC_UPDATE_SLICE",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, part, begin = present(node, inputs, 3)
        assert x is not None and part is not None and begin is not None
        if part.dtype != x.dtype:
            raise dims.fault(node, f"{part.dtype} cannot be put into {x.dtype}")
        if begin.known_shape and x.known_shape and begin.shape != (len(x.shape),):
            raise dims.fault(node, f"begin {list(begin.shape)} does not fit {list(x.shape)}")
        return inferred(x.dtype, x.shape if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        made, part, begin = call.array(0).copy(), call.array(1), call.numbers(2)
        if part.ndim != made.ndim or any(a > b for a, b in zip(part.shape, made.shape, strict=True)):
            raise call.fault(f"a slice {list(part.shape)} does not fit {list(made.shape)}")
        starts = [
            min(max(first, 0), whole - size) for first, whole, size in zip(begin, made.shape, part.shape, strict=True)
        ]
        made[tuple(slice(first, first + size) for first, size in zip(starts, part.shape, strict=True))] = part
        return [made]


@register
class OneHot(Moving):
    """ONE_HOT (indices, depth, on, off): a new axis that is `on` at the index."""

    operators = ("ONE_HOT",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        index, depth, on, off = present(node, inputs, 4)
        assert index is not None and on is not None and off is not None
        if on.dtype != off.dtype:
            raise dims.fault(node, f"{on.dtype} and {off.dtype} have no common type")
        found = constant_numbers(node, depth, "the depth")
        if found is None or not index.known_shape:
            return inferred(on.dtype, None)
        return inferred(on.dtype, self.shape(node, index.shape, found))

    def shape(self, node: Node, shape: Shape, depth: Sequence[int]) -> Shape:
        """The result's shape."""
        if len(depth) != 1 or depth[0] < 0:
            raise dims.fault(node, "one depth is needed")
        axis = int(node.attributes.get("axis", -1))
        place = len(shape) if axis == -1 else dims.axis_of(node, axis, len(shape) + 1)
        return (*shape[:place], depth[0], *shape[place:])

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        index, depth, on, off = (call.array(operand) for operand in range(4))
        axis = int(call.attribute("axis", -1))
        self.shape(call.node, index.shape, call.numbers(1))
        place = index.ndim if axis == -1 else axis
        rows = np.arange(int(depth.reshape(-1)[0])).reshape(-1, *[1] * (index.ndim - place))
        return [np.where(np.expand_dims(index, place) == rows, on.reshape(-1)[0], off.reshape(-1)[0]).astype(on.dtype)]


@register
class TopK(TfliteOp):
    """TOPK_V2: the largest elements of each row in falling order, and where they were; of equal ones the first comes first."""

    operators = ("TOPK_V2",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, count = present(node, inputs, 2)
        assert x is not None
        found = constant_numbers(node, count, "the count")
        if found is None or not x.known_shape:
            return [(x.dtype, (), False), ("int32", (), False)]
        if not x.shape or len(found) != 1 or found[0] < 0 or (isinstance(x.shape[-1], int) and found[0] > x.shape[-1]):
            raise dims.fault(node, f"{list(found)[:4]} elements cannot be taken of {list(x.shape)}")
        shape = (*x.shape[:-1], found[0])
        return [(x.dtype, shape, True), ("int32", shape, True)]

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, (count,) = call.array(0), call.numbers(1)
        if not 0 <= count <= x.shape[-1]:
            raise call.fault(f"{count} elements cannot be taken of {list(x.shape)}")
        order = np.argsort(-x.astype(np.float64 if x.dtype.kind == "f" else np.int64), axis=-1, kind="stable")
        order = order[..., :count]
        return [np.take_along_axis(x, order, axis=-1), order.astype(np.int32)]


@register
class Range(TfliteOp):
    """RANGE (start, limit, step)."""

    operators = ("RANGE",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = [tensor for tensor in present(node, inputs, 3) if tensor is not None]
        if any(tensor.dtype != given[0].dtype for tensor in given):
            raise dims.fault(node, "start, limit and step have different types")
        if any(tensor.data is None for tensor in given):
            return inferred(given[0].dtype, None)
        return inferred(given[0].dtype, (self.count(node, [tensor.data.reshape(-1) for tensor in given]),))  # type: ignore[union-attr]

    def count(self, node: Node, bounds: Sequence[Array]) -> int:
        """How many elements."""
        if any(bound.size != 1 for bound in bounds):
            raise dims.fault(node, "start, limit and step must be numbers")
        start, limit, step = (bound[0].item() for bound in bounds)
        if step == 0 or ((step > 0) != (limit > start) and limit != start):
            raise dims.fault(node, f"no range goes from {start} to {limit} in steps of {step}")
        count = -((start - limit) // step)
        if not 0 <= count < 1 << 40:
            raise dims.fault(node, f"a range of {count} elements is larger than any memory")
        return int(count)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        start, limit, step = (call.array(index).reshape(-1) for index in range(3))
        count = self.count(call.node, [start, limit, step])
        if start.dtype.kind != "f":
            return [(start + np.arange(count, dtype=start.dtype) * step).astype(start.dtype)]
        made = np.empty(count, start.dtype)
        for index in range(count):  # each element is the one before plus the step
            made[index] = start[0] if index == 0 else made[index - 1] + step[0]
        return [made]


@register
class Rank(TfliteOp):
    """RANK: the number of axes."""

    operators = ("RANK",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        present(node, inputs, 1)
        return inferred("int32", ())

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        return [np.array(call.array(0).ndim, np.int32)]


@register
class EmbeddingLookup(Moving):
    """EMBEDDING_LOOKUP (indices, table): rows; a stored table of a float result is multiplied by its scales."""

    operators = ("EMBEDDING_LOOKUP",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        index, table = present(node, inputs, 2)
        assert index is not None and table is not None
        dtype = str(node.attributes.get("to", table.dtype))
        if index.dtype != "int32" or (dtype != table.dtype and (dtype != "float32" or table.dtype not in INTEGERS)):
            raise dims.fault(node, f"{index.dtype} rows of {table.dtype} cannot become {dtype}")
        if not (index.known_shape and table.known_shape):
            return inferred(dtype, None)
        if len(index.shape) != 1 or len(table.shape) < 2:
            raise dims.fault(node, f"indices {list(index.shape)} do not fit a table {list(table.shape)}")
        return inferred(dtype, (*index.shape, *table.shape[1:]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        index, table = call.array(0), call.array(1)
        if index.size and (index.min() < 0 or index.max() >= len(table)):
            raise call.fault(f"a row lies outside the {len(table)} of the table")
        rows = table[index]
        if call.dtype(1) == "int4" and table[0].size % 2:
            # A row is read from the byte in which it begins, so that every other one begins an element early.
            count = table[0].size
            starts = index.astype(np.int64)[:, None] * count // 2 * 2
            rows = table.reshape(-1)[starts + np.arange(count)].reshape(rows.shape)
        if call.made_dtype() == call.dtype(1):
            return [rows]
        scheme = call.scheme(1)
        scales = np.broadcast_to(along(scheme.scales(), scheme, table.ndim), (len(table), *[1] * (table.ndim - 1)))
        return [(rows.astype(np.float32) * scales[index]).astype(np.float32)]
