"""Elements taken, put and chosen by indices or by their own values: GatherElements, ScatterND, TopK, NonZero and their kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Tensor
from hwq.ops import accounting, dims
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import operands
from hwq.ops.movement import Movement
from hwq.work import Work

__all__ = ["TopK"]

_INDICES = frozenset({"int32", "int64"})


def _indexed(node: Node, tensor: Tensor) -> None:
    """Raise unless the operand can be an index."""
    if tensor.dtype not in _INDICES:
        raise dims.fault(node, f"the indices must be int32 or int64, not {tensor.dtype}")


def _counted(node: Node, indices: Array, sizes: Any) -> Array:
    """Indices counted from the front.

    Raises
    ------
    Error
        One lies outside ``[-size, size)``.
    """
    size = np.asarray(sizes, np.int64)
    if indices.size and not (np.all(indices >= -size) and np.all(indices < size)):
        raise dims.fault(node, f"an index lies outside the dimensions {np.ravel(size)[:8].tolist()}")
    return np.asarray(np.where(indices < 0, indices + size, indices))


def _along(node: Node, indices: Array, axis: int, size: int) -> tuple[Array, ...]:
    """Index arrays that reach, for each element of `indices`, the place that it names on `axis`."""
    places: list[Array] = list(np.ix_(*(np.arange(size) for size in indices.shape)))
    places[axis] = _counted(node, indices, size)
    return tuple(places)


@register
class GatherElements(Movement):
    """For each index the element at its own place, but on `axis` where the index says."""

    names = ("GatherElements",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, indices = operands(node, inputs, 2, 2)
        _indexed(node, indices)
        if dims.rank_known(x, indices):
            dims.axis_of(node, int(node.attributes.get("axis", 0)), len(x.shape))
            _fitting(node, x, indices)
        return [(x.dtype, indices.shape, indices.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, indices = inputs
        assert x is not None and indices is not None
        axis = dims.axis_of(node, int(node.attributes.get("axis", 0)), x.ndim)
        return [x[_along(node, indices, axis, x.shape[axis])]]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: only what is taken is read."""
        return accounting.move(node, graph, read=graph.tensors[node.outputs[0]].elements)


def _fitting(node: Node, x: Tensor, indices: Tensor) -> None:
    """Raise unless both ranks are equal and the indices reach no farther than the data off the axis."""
    if len(x.shape) != len(indices.shape):
        raise dims.fault(node, f"data of rank {len(x.shape)} need indices of that rank, not {len(indices.shape)}")
    axis = dims.axis_of(node, int(node.attributes.get("axis", 0)), len(x.shape))
    for place, (dim, other) in enumerate(zip(x.shape, indices.shape, strict=True)):
        if place != axis and isinstance(dim, int) and isinstance(other, int) and other > dim:
            raise dims.fault(node, f"the indices {list(indices.shape)} reach beyond the data {list(x.shape)}")


@register
class GatherND(Movement):
    """Slices of the input, each named by a vector of indices, after `batch_dims` common axes."""

    names = ("GatherND",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, indices = operands(node, inputs, 2, 2)
        _indexed(node, indices)
        if not dims.rank_known(x, indices):
            return [(x.dtype, (), False)]
        batch = int(node.attributes.get("batch_dims", 0))
        if not 0 <= batch < min(len(x.shape), len(indices.shape)):
            raise dims.fault(node, f"batch_dims {batch} does not fit ranks {len(x.shape)} and {len(indices.shape)}")
        width = indices.shape[-1]
        if not isinstance(width, int):
            return [(x.dtype, (), False)]
        if not 1 <= width <= len(x.shape) - batch:
            raise dims.fault(node, f"an index of {width} numbers does not fit the data {list(x.shape)}")
        return [(x.dtype, (*indices.shape[:-1], *x.shape[batch + width :]), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, indices = inputs
        assert x is not None and indices is not None
        batch = int(node.attributes.get("batch_dims", 0))
        width = indices.shape[-1]
        if x.shape[:batch] != indices.shape[:batch]:
            raise dims.fault(node, f"the common axes of {list(x.shape)} and {list(indices.shape)} differ")
        found = _counted(node, indices, x.shape[batch : batch + width])
        lead = np.indices(indices.shape[:-1], sparse=True)[:batch]
        return [np.ascontiguousarray(x[(*lead, *np.moveaxis(found, -1, 0))])]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: only what is taken is read."""
        return accounting.move(node, graph, read=graph.tensors[node.outputs[0]].elements)


# What becomes of an element that is written, by attribute `reduction`; in the order of the updates, as onnxruntime does.
_REDUCTIONS: dict[str, Callable[..., None]] = {
    "add": np.add.at, "mul": np.multiply.at, "max": np.maximum.at, "min": np.minimum.at,
}  # fmt: skip


def _put(node: Node, x: Array, places: tuple[Array, ...], updates: Array) -> Array:
    made = x.copy()
    reduction = node.attributes.get("reduction", "none")
    if reduction == "none":
        made[places] = updates
    elif reduction in _REDUCTIONS:
        _REDUCTIONS[reduction](made, places, updates)
    else:
        raise dims.fault(node, f"reduction {reduction!r} is unknown", None, "use none, add, mul, max or min")
    return made


@register
class ScatterElements(Movement):
    """The input, with each update written at its own place, but on `axis` where its index says (Scatter before opset 11)."""

    names = ("ScatterElements", "Scatter")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, indices, updates = operands(node, inputs, 3, 3)
        _indexed(node, indices)
        dims.same_types(node, [x, updates])
        if dims.rank_known(x, indices):
            _fitting(node, x, indices)
        return [(x.dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, indices, updates = inputs
        assert x is not None and indices is not None and updates is not None
        if indices.shape != updates.shape:
            raise dims.fault(node, f"indices {list(indices.shape)} and updates {list(updates.shape)} differ in shape")
        axis = dims.axis_of(node, int(node.attributes.get("axis", 0)), x.ndim)
        return [_put(node, x, _along(node, indices, axis, x.shape[axis]), updates)]


@register
class ScatterND(Movement):
    """The input, with each slice of the updates written where a vector of indices says."""

    names = ("ScatterND",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, indices, updates = operands(node, inputs, 3, 3)
        _indexed(node, indices)
        dims.same_types(node, [x, updates])
        if dims.rank_known(x, indices):
            width = indices.shape[-1] if indices.shape else 0
            if isinstance(width, int) and not 1 <= width <= len(x.shape):
                raise dims.fault(node, f"an index of {width} numbers does not fit the data {list(x.shape)}")
        return [(x.dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, indices, updates = inputs
        assert x is not None and indices is not None and updates is not None
        width = indices.shape[-1]
        if updates.shape != (*indices.shape[:-1], *x.shape[width:]):
            raise dims.fault(
                node, f"updates {list(updates.shape)} do not fit {list(indices.shape)} indices into {list(x.shape)}"
            )
        places = tuple(np.moveaxis(_counted(node, indices, x.shape[:width]), -1, 0))
        return [_put(node, x, places, updates)]


@register
class OneHot(Movement):
    """A new axis of length `depth`: the second value where the index points, the first elsewhere (everywhere for one outside)."""

    names = ("OneHot",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        indices, depth, values = operands(node, inputs, 3, 3)
        if not indices.known_shape:
            return [(values.dtype, (), False)]
        axis = dims.axis_of(node, int(node.attributes.get("axis", -1)), len(indices.shape) + 1)
        size: Dim = f"{node.outputs[0]}.{axis}"
        if depth.data is not None and depth.data.dtype.kind in "iuf":
            size = int(depth.data.reshape(-1)[0])
            if size < 1:
                raise dims.fault(node, f"the depth {size} is not positive")
        return [(values.dtype, (*indices.shape[:axis], size, *indices.shape[axis:]), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        indices, depth, values = inputs
        assert indices is not None and depth is not None and values is not None
        size = int(depth.reshape(-1)[0])
        axis = dims.axis_of(node, int(node.attributes.get("axis", -1)), indices.ndim + 1)
        wanted = indices.astype(np.int64)
        wanted = np.expand_dims(np.where(wanted < 0, wanted + size, wanted), axis)
        places = np.arange(size).reshape([-1 if place == axis else 1 for place in range(wanted.ndim)])
        return [np.where(wanted == places, values[1], values[0]).astype(values.dtype, copy=False)]


@register
class NonZero(Movement):
    """Places of the elements that are not zero, a column each, in row-major order."""

    names = ("NonZero",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        return [("int64", (max(len(x.shape), 1), f"{node.outputs[0]}.1"), x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        return [np.array(np.nonzero(np.atleast_1d(x)), np.int64)]


@register
class Compress(Movement):
    """Slices along `axis` (elements of the flat input without one) where the condition holds; what it does not reach is left out."""

    names = ("Compress",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, condition = operands(node, inputs, 2, 2)
        if condition.dtype != "bool":
            raise dims.fault(node, f"the condition must be bool, not {condition.dtype}")
        if not x.known_shape:
            return [(x.dtype, (), False)]
        if "axis" not in node.attributes:
            return [(x.dtype, (f"{node.outputs[0]}.0",), True)]
        axis = dims.axis_of(node, int(node.attributes["axis"]), len(x.shape))
        return [(x.dtype, (*x.shape[:axis], f"{node.outputs[0]}.{axis}", *x.shape[axis + 1 :]), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, condition = inputs
        assert x is not None and condition is not None
        axis = int(node.attributes["axis"]) if "axis" in node.attributes else None
        return [np.asarray(np.compress(condition, x, axis=axis))]


@register
class TopK(Op):
    """The `k` largest (or smallest) elements along `axis` in order, and their places; of equal ones the first comes first.

    Where `sorted` is 0 their order is open, and is the same here.
    """

    names = ("TopK",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, k = operands(node, inputs, 2, 2)
        if not x.known_shape:
            return [(x.dtype, (), False), ("int64", (), False)]
        axis = dims.axis_of(node, int(node.attributes.get("axis", -1)), len(x.shape))
        count = dims.integers(node, k, "k")
        size: Dim = count[0] if count else f"{node.outputs[0]}.{axis}"
        whole = x.shape[axis]
        if isinstance(size, int) and (size < 0 or (isinstance(whole, int) and size > whole)):
            raise dims.fault(node, f"k is {size}, axis {axis} has {whole} elements")
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        return [(x.dtype, shape, True), ("int64", shape, True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, k = inputs
        assert x is not None and k is not None
        axis = dims.axis_of(node, int(node.attributes.get("axis", -1)), x.ndim)
        count = int(k.reshape(-1)[0])
        if not 0 <= count <= x.shape[axis]:
            raise dims.fault(node, f"k is {count}, axis {axis} has {x.shape[axis]} elements")
        order = np.argsort(x, axis=axis, kind="stable")
        if node.attributes.get("largest", 1):
            # Sorting the reversed input and counting from the back keeps the first of equal elements first.
            back = np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
            order = x.shape[axis] - 1 - back
        places = np.asarray(order.take(np.arange(count), axis=axis), np.int64)
        return [np.take_along_axis(x, places, axis), places]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: one comparison for each input element."""
        return accounting.vector(node, graph, operations=graph.tensors[node.inputs[0]].elements)


@register
class CumSum(Op):
    """Running sums along an axis, one addition after another in the input's type."""

    names = ("CumSum",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, axis = operands(node, inputs, 2, 2)
        stated = dims.integers(node, axis, "axis")
        if stated and x.known_shape:
            dims.axis_of(node, stated[0], len(x.shape))
        return [(x.dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, stated = inputs
        assert x is not None and stated is not None
        axis = dims.axis_of(node, int(stated.reshape(-1)[0]), x.ndim)
        back = bool(node.attributes.get("reverse", 0))
        given = np.flip(x, axis) if back else x
        if node.attributes.get("exclusive", 0) and x.shape[axis]:
            first = np.zeros_like(given.take([0], axis=axis))
            given = np.concatenate([first, given.take(np.arange(x.shape[axis] - 1), axis=axis)], axis)
        total = np.cumsum(given, axis=axis, dtype=x.dtype)
        return [np.ascontiguousarray(np.flip(total, axis)) if back else total]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: one addition for each element."""
        return accounting.vector(node, graph)


@register
class ReverseSequence(Movement):
    """The first ``sequence_lens[b]`` steps of each sequence `b` in reverse order, the rest as they are."""

    names = ("ReverseSequence",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, _ = operands(node, inputs, 2, 2)
        if x.known_shape and len(x.shape) < 2:
            raise dims.fault(node, f"sequences of a batch need rank 2 or more, not {len(x.shape)}")
        return [(x.dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, lengths = inputs
        assert x is not None and lengths is not None
        batch, time = int(node.attributes.get("batch_axis", 1)), int(node.attributes.get("time_axis", 0))
        if {batch, time} != {0, 1} or lengths.shape != (x.shape[batch],):
            raise dims.fault(
                node, f"batch axis {batch}, time axis {time} and {lengths.size} lengths do not fit {list(x.shape)}"
            )
        if lengths.size and not (0 <= int(lengths.min()) and int(lengths.max()) <= x.shape[time]):
            raise dims.fault(node, f"a length lies outside [0, {x.shape[time]}]")
        steps = np.arange(x.shape[time])
        ends = lengths.astype(np.int64)[:, None]
        order = np.where(steps < ends, ends - 1 - steps, steps)
        rows = np.moveaxis(x, batch, 0)
        return [np.ascontiguousarray(np.moveaxis(rows[np.arange(len(rows))[:, None], order], 0, batch))]


@register
class EyeLike(Movement):
    """Ones on the diagonal `k` of a matrix of the input's shape."""

    names = ("EyeLike",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        if x.known_shape and len(x.shape) != 2:
            raise dims.fault(node, f"EyeLike needs a matrix, not rank {len(x.shape)}")
        return [(str(node.attributes.get("dtype", x.dtype)), x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        from hwq.graph import carrier

        (x,) = inputs
        assert x is not None
        dtype = carrier(str(node.attributes["dtype"])) if "dtype" in node.attributes else x.dtype
        return [np.eye(x.shape[0], x.shape[1], int(node.attributes.get("k", 0))).astype(dtype)]
