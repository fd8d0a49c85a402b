"""Movement: data change their place, not their value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Shape, Tensor
from hwq.ops import accounting, dims
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import operands
from hwq.work import Work

__all__ = ["Movement"]


class Movement(Op):
    """An op that copies."""

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.move(node, graph)


def _open(node: Node, rank: int) -> Shape:
    """A shape of `rank` fresh symbols."""
    return tuple(f"{node.outputs[0]}.{axis}" for axis in range(rank))


@register
class Transpose(Movement):
    """Axes in the order `perm` (default reversed)."""

    names = ("Transpose",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        if not x.known_shape:
            return [(x.dtype, (), False)]
        order = dims.ints_attribute(node, "perm", tuple(range(len(x.shape)))[::-1])
        if sorted(order) != list(range(len(x.shape))):
            raise dims.fault(node, f"perm {list(order)[:16]} is no permutation of the {len(x.shape)} axes")
        return [(x.dtype, tuple(x.shape[axis] for axis in order), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        return [np.ascontiguousarray(x.transpose(node.attributes.get("perm", tuple(range(x.ndim))[::-1])))]


@register
class Concat(Movement):
    """Operands one behind the other along `axis`."""

    names = ("Concat",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = operands(node, inputs, 1, 1 << 20)
        dtype = dims.same_types(node, given)
        if not dims.rank_known(*given):
            return [(dtype, (), False)]
        if "axis" not in node.attributes:
            raise dims.fault(node, "attribute axis is missing")
        first = given[0].shape
        axis = dims.axis_of(node, int(node.attributes["axis"]), len(first))
        shape = list(first)
        for tensor in given[1:]:
            if len(tensor.shape) != len(first):
                raise dims.fault(node, f"operands of rank {len(first)} and {len(tensor.shape)} cannot be concatenated")
            for index, (a, b) in enumerate(zip(shape, tensor.shape, strict=True)):
                if index != axis and isinstance(a, int) and isinstance(b, int) and a != b:
                    raise dims.fault(
                        node,
                        f"shapes {list(first)} and {list(tensor.shape)} differ in dimension {index}",
                        f"only dimension {axis} may differ",
                    )
                if isinstance(a, str) and isinstance(b, int):
                    shape[index] = b
        shape[axis] = dims.total([tensor.shape[axis] for tensor in given])
        return [(dtype, tuple(shape), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        return [np.concatenate([x for x in inputs if x is not None], axis=int(node.attributes["axis"]))]


@register
class Split(Movement):
    """Parts along `axis`: of the sizes given, or `num_outputs` equal ones (the last may be smaller)."""

    names = ("Split",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 1 <= len(inputs) <= 2 or inputs[0] is None:
            raise dims.fault(node, "Split needs an input and at most the sizes of the parts")
        x, second = inputs[0], inputs[1] if len(inputs) > 1 else None
        count = len(node.outputs)
        if second is None and int(node.attributes.get("num_outputs", count)) != count:
            raise dims.fault(node, f"num_outputs is {node.attributes['num_outputs']}, but the node has {count} outputs")
        if not x.known_shape:
            return [(x.dtype, (), False)] * count
        axis = dims.axis_of(node, int(node.attributes.get("axis", 0)), len(x.shape))
        stated = dims.integers(node, second, "split")
        sizes: Sequence[Dim]
        if stated is not None or (second is None and isinstance(x.shape[axis], int)):
            sizes = _sizes(
                node, stated, int(x.shape[axis]) if isinstance(x.shape[axis], int) else sum(stated or ()), count
            )
        else:
            sizes = [f"{output}.{axis}" for output in node.outputs]
        return [(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :]), True) for size in sizes]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x = inputs[0]
        assert x is not None
        second = inputs[1] if len(inputs) > 1 else None
        axis = int(node.attributes.get("axis", 0))
        sizes = _sizes(node, None if second is None else second.tolist(), x.shape[axis], len(node.outputs))
        return list(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def _sizes(node: Node, stated: Sequence[int] | None, dim: int, count: int) -> list[int]:
    if stated is None:
        each = -(-dim // count)
        return [max(min(each, dim - index * each), 0) for index in range(count)]
    if len(stated) != count or any(size < 0 for size in stated) or sum(stated) != dim:
        raise dims.fault(node, f"the parts {list(stated)[:16]} do not make up the {dim} elements of {count} outputs")
    return [int(size) for size in stated]


def _slices(
    node: Node,
    rank: int,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> list[tuple[int, slice]]:
    """(axis, slice) pairs of a Slice node; ends below -dim with a negative step mean "to the front"."""
    places = dims.axes_of(node, range(len(starts)) if axes is None else axes, rank)
    strides = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(places) == len(strides):
        raise dims.fault(node, "starts, ends, axes and steps have different lengths")
    if any(step == 0 for step in strides):
        raise dims.fault(node, "a step is 0")
    return [
        (axis, slice(start, end, step)) for axis, start, end, step in zip(places, starts, ends, strides, strict=True)
    ]


def _bounded(part: slice, dim: int) -> slice:
    start, end, step = int(part.start), int(part.stop), int(part.step)
    start = start + dim if start < 0 else start
    end = end + dim if end < 0 else end
    if step > 0:
        return slice(min(max(start, 0), dim), min(max(end, 0), dim), step)
    start, end = min(max(start, 0), dim - 1), min(max(end, -1), dim - 1)
    return slice(start, None if end < 0 else end, step)


@register
class Slice(Movement):
    """Every step-th element from start to end on the named axes."""

    names = ("Slice",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 3 <= len(inputs) <= 5 or any(tensor is None for tensor in inputs[:3]) or inputs[0] is None:
            raise dims.fault(node, "Slice needs an input, starts and ends")
        x = inputs[0]
        if not x.known_shape:
            return [(x.dtype, (), False)]
        named = ["starts", "ends", "axes", "steps"]
        values = [dims.integers(node, tensor, what) for tensor, what in zip(inputs[1:], named, strict=False)]
        values += [None] * (4 - len(values))
        starts, ends, axes, steps = values
        unknown = any(tensor is not None and value is None for tensor, value in zip(inputs[1:], values, strict=False))
        if unknown or starts is None or ends is None:
            if axes is not None:
                touched = dims.axes_of(node, axes, len(x.shape))
                return [
                    (
                        x.dtype,
                        tuple(f"{node.outputs[0]}.{i}" if i in touched else dim for i, dim in enumerate(x.shape)),
                        True,
                    )
                ]
            return [(x.dtype, _open(node, len(x.shape)), True)]
        shape = list(x.shape)
        for axis, part in _slices(node, len(shape), starts, ends, axes, steps):
            dim = shape[axis]
            if isinstance(dim, int):
                shape[axis] = len(range(dim)[_bounded(part, dim)])
            elif (part.start, part.step) != (0, 1) or part.stop < (1 << 31) - 1:
                shape[axis] = f"{node.outputs[0]}.{axis}"
        return [(x.dtype, tuple(shape), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x = inputs[0]
        assert x is not None
        starts, ends, axes, steps = ([None if one is None else one.tolist() for one in inputs[1:]] + [None, None])[:4]
        index: list[slice] = [slice(None)] * x.ndim
        for axis, part in _slices(node, x.ndim, starts or [], ends or [], axes, steps):
            index[axis] = _bounded(part, x.shape[axis])
        return [np.ascontiguousarray(x[tuple(index)])]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: only what is taken is read."""
        return accounting.move(node, graph, read=graph.tensors[node.outputs[0]].elements)


@register
class Pad(Movement):
    """Elements added (or with negative pads removed) around the named axes."""

    names = ("Pad",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 2 <= len(inputs) <= 4 or inputs[0] is None or inputs[1] is None:
            raise dims.fault(node, "Pad needs an input and its pads")
        x = inputs[0]
        if len(inputs) > 2 and inputs[2] is not None:
            dims.same_types(node, [x, inputs[2]])
        if not x.known_shape:
            return [(x.dtype, (), False)]
        pads = dims.integers(node, inputs[1], "pads")
        axes = dims.integers(node, inputs[3], "axes") if len(inputs) > 3 else None
        if pads is None or (axes is None and len(inputs) > 3 and inputs[3] is not None):
            return [(x.dtype, _open(node, len(x.shape)), True)]
        shape = list(x.shape)
        for axis, (begin, end) in enumerate(_pads(node, pads, axes, len(shape))):
            shape[axis] = dims.offset(shape[axis], begin + end)
            if isinstance(shape[axis], int) and int(shape[axis]) < 0:
                raise dims.fault(node, f"the pads {list(pads)} remove more than the input {list(x.shape)} has")
        return [(x.dtype, tuple(shape), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, pads = inputs[0], inputs[1]
        assert x is not None and pads is not None
        axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else None
        pairs = _pads(node, pads.tolist(), axes, x.ndim)
        cut = x[
            tuple(slice(max(-begin, 0), dim - max(-end, 0)) for dim, (begin, end) in zip(x.shape, pairs, strict=True))
        ]
        widths = [(max(begin, 0), max(end, 0)) for begin, end in pairs]
        mode = node.attributes.get("mode", "constant")
        if mode == "constant":
            value = inputs[2].reshape(-1)[0] if len(inputs) > 2 and inputs[2] is not None else np.zeros((), x.dtype)
            return [np.pad(cut, widths, constant_values=value)]
        modes: dict[str, Any] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
        if mode not in modes:
            raise dims.fault(node, f"pad mode {mode!r} is unknown", None, "use constant, reflect, edge or wrap")
        return [np.pad(cut, widths, mode=modes[mode])]


def _pads(node: Node, pads: Sequence[int], axes: Sequence[int] | None, rank: int) -> list[tuple[int, int]]:
    places = dims.axes_of(node, range(rank) if axes is None else axes, rank)
    if len(pads) != 2 * len(places):
        raise dims.fault(
            node, f"{len(pads)} pads are given for {len(places)} axes", "each axis needs a begin and an end"
        )
    pairs = [(0, 0)] * rank
    for index, axis in enumerate(places):
        pairs[axis] = (int(pads[index]), int(pads[index + len(places)]))
    return pairs


@register
class Gather(Movement):
    """Slices of the input along `axis`, by index."""

    names = ("Gather",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, indices = operands(node, inputs, 2, 2)
        if indices.dtype not in {"int32", "int64"}:
            raise dims.fault(node, f"the indices must be int32 or int64, not {indices.dtype}")
        if not dims.rank_known(x, indices):
            return [(x.dtype, (), False)]
        axis = dims.axis_of(node, int(node.attributes.get("axis", 0)), len(x.shape))
        return [(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, indices = inputs
        assert x is not None and indices is not None
        axis = int(node.attributes.get("axis", 0))
        size = x.shape[axis]
        if indices.size and not (-size <= int(indices.min()) and int(indices.max()) < size):
            raise dims.fault(node, f"an index is outside [-{size}, {size - 1}]")
        return [np.take(x, indices, axis=axis)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: a table (constant input) is read only where the indices point."""
        work = accounting.move(node, graph)
        if accounting.is_parameter(graph, node.inputs[0]) and not accounting.is_parameter(graph, node.inputs[1]):
            return accounting.changed(work, weight_elements=graph.tensors[node.outputs[0]].elements)
        return accounting.changed(work, input_elements=graph.tensors[node.outputs[0]].elements)


@register
class Expand(Movement):
    """Broadcast to a shape (in both directions)."""

    names = ("Expand",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, target = operands(node, inputs, 2, 2)
        if target.data is None or not x.known_shape:
            return [(x.dtype, (), False)]
        wanted = tuple(target.data.ravel().tolist())
        if len(wanted) > 64 or any(isinstance(dim, int) and dim < 0 for dim in wanted):
            raise dims.fault(node, f"the shape {list(wanted)[:8]} has a negative dimension, or more than 64")
        return [(x.dtype, dims.broadcast(node, [x.shape, wanted]), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, target = inputs
        assert x is not None and target is not None
        return [np.ascontiguousarray(np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(target.tolist()))))]


@register
class Tile(Movement):
    """The input repeated along each axis."""

    names = ("Tile",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, repeats = operands(node, inputs, 2, 2)
        if not x.known_shape:
            return [(x.dtype, (), False)]
        counts = dims.integers(node, repeats, "repeats")
        if counts is None:
            return [(x.dtype, _open(node, len(x.shape)), True)]
        if len(counts) != len(x.shape) or any(count < 0 for count in counts):
            raise dims.fault(node, f"repeats {list(counts)[:16]} do not fit the input {list(x.shape)}")
        return [(x.dtype, tuple(dims.product([dim, count]) for dim, count in zip(x.shape, counts, strict=True)), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, repeats = inputs
        assert x is not None and repeats is not None
        return [np.tile(x, repeats.tolist())]
