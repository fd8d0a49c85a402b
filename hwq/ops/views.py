"""Views and shape computations: data keep their place, or are numbers about shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Shape, Tensor, carrier
from hwq.ops import accounting, dims
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import operands
from hwq.work import Work

__all__ = ["View"]


class View(Op):
    """An op that costs nothing: it renames data."""

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.view(node, graph)


@register
class Identity(View):
    """The input itself; Dropout and its mask at inference."""

    names = ("Identity", "Dropout")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not inputs or inputs[0] is None:
            raise dims.fault(node, "the operator needs an input")
        mode = inputs[2] if node.op == "Dropout" and len(inputs) > 2 else None
        if mode is not None and mode.data is not None and mode.data.size == 1 and bool(mode.data.ravel()[0]):
            ratio = inputs[1]
            if ratio is None or ratio.data is None or ratio.data.ravel()[0] != 0:
                raise dims.fault(
                    node, "Dropout in training mode is not supported", "its mask is random", "export in inference mode"
                )
        x = inputs[0]
        return [(x.dtype, x.shape, x.known_shape), ("bool", x.shape, x.known_shape)][: 2 if node.op == "Dropout" else 1]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x = inputs[0]
        assert x is not None
        return [x, np.ones(x.shape, np.bool_)] if node.op == "Dropout" and len(node.outputs) > 1 else [x]


@register
class Reshape(View):
    """The same elements in another shape; 0 copies a dimension (unless allowzero), -1 takes what is left."""

    names = ("Reshape",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, target = operands(node, inputs, 2, 2)
        if target.data is None:
            if (
                target.known_shape
                and len(target.shape) == 1
                and isinstance(target.shape[0], int)
                and target.shape[0] <= 64
            ):
                return [(x.dtype, tuple(f"{node.outputs[0]}.{axis}" for axis in range(target.shape[0])), True)]
            return [(x.dtype, (), False)]
        if target.data.ndim != 1 or target.data.size > 64:
            raise dims.fault(
                node, f"the target shape must be a vector of at most 64 numbers, not {list(target.data.shape)}"
            )
        wanted: list[Any] = target.data.tolist()
        return [(x.dtype, *_reshaped(node, x, wanted))]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, target = inputs
        assert x is not None and target is not None
        wanted = target.tolist()
        if not node.attributes.get("allowzero", 0):
            wanted = [x.shape[index] if dim == 0 else dim for index, dim in enumerate(wanted)]
        if -1 in wanted and 0 in wanted:  # nothing is left to divide
            wanted = [0 if dim == -1 else dim for dim in wanted]
        return [x.reshape(wanted)]


def _reshaped(node: Node, x: Tensor, wanted: list[Any]) -> tuple[Shape, bool]:
    if wanted.count(-1) > 1 or any(isinstance(dim, int) and dim < -1 for dim in wanted):
        raise dims.fault(node, f"the target shape {wanted} has more than one -1, or a number below it")
    zero = bool(node.attributes.get("allowzero", 0))
    shape: list[Dim] = []
    for index, dim in enumerate(wanted):
        if dim == 0 and not zero:
            if x.known_shape and index >= len(x.shape):
                raise dims.fault(
                    node, f"the target shape {wanted} copies dimension {index}, the input {list(x.shape)} has none"
                )
            dim = x.shape[index] if x.known_shape else f"{node.outputs[0]}.{index}"
        shape.append(dim)
    if not x.known_shape:
        return tuple(f"{node.outputs[0]}.{index}" if dim == -1 else dim for index, dim in enumerate(shape)), True
    if -1 in shape:
        rest = [dim for dim in shape if dim != -1]
        left = 0 if 0 in rest else dims.quotient(x.shape, rest)
        if left is None and all(isinstance(dim, int) for dim in (*x.shape, *rest)):
            raise dims.fault(
                node, f"the input {list(x.shape)} cannot become {wanted}", "the numbers of elements do not divide"
            )
        shape[shape.index(-1)] = f"{node.outputs[0]}.{shape.index(-1)}" if left is None else left
    before, after = dims.product(x.shape), dims.product(shape)
    if isinstance(before, int) and isinstance(after, int) and before != after:
        raise dims.fault(
            node, f"the input {list(x.shape)} cannot become {wanted}", f"it has {before} elements, not {after}"
        )
    return tuple(shape), True


@register
class Flatten(View):
    """Two dimensions: those before `axis`, and the rest."""

    names = ("Flatten",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        if not x.known_shape:
            return [(x.dtype, (f"{node.outputs[0]}.0", f"{node.outputs[0]}.1"), True)]
        axis = _flat_axis(node, len(x.shape))
        return [(x.dtype, (dims.product(x.shape[:axis]), dims.product(x.shape[axis:])), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        axis = _flat_axis(node, x.ndim)
        return [x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), int(np.prod(x.shape[axis:], dtype=np.int64)))]


def _flat_axis(node: Node, rank: int) -> int:
    axis = int(node.attributes.get("axis", 1))
    if not -rank <= axis <= rank:
        raise dims.fault(node, f"axis {axis} does not exist in a tensor of rank {rank}")
    return axis + rank if axis < 0 else axis


@register
class Squeeze(View):
    """Remove dimensions of size 1: those named, or all."""

    names = ("Squeeze",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 1 <= len(inputs) <= 2 or inputs[0] is None:
            raise dims.fault(node, "Squeeze needs an input and at most its axes")
        x, second = inputs[0], inputs[1] if len(inputs) > 1 else None
        stated = dims.integers(node, second, "axes") if second is not None else node.attributes.get("axes")
        if not x.known_shape or (second is not None and stated is None) or (stated is None and not x.concrete):
            return [(x.dtype, (), False)]
        axes = (
            [axis for axis, dim in enumerate(x.shape) if dim == 1]
            if stated is None
            else dims.axes_of(node, stated, len(x.shape))
        )
        for axis in axes:
            if isinstance(x.shape[axis], int) and x.shape[axis] != 1:
                raise dims.fault(node, f"dimension {axis} of {list(x.shape)} is not 1 and cannot be squeezed")
        return [(x.dtype, tuple(dim for axis, dim in enumerate(x.shape) if axis not in axes), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x = inputs[0]
        assert x is not None
        second = inputs[1] if len(inputs) > 1 else None
        axes = second.tolist() if second is not None else node.attributes.get("axes")
        return [x.squeeze(None if axes is None else tuple(axes))]


@register
class Unsqueeze(View):
    """Insert dimensions of size 1 at the named places of the result."""

    names = ("Unsqueeze",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 1 <= len(inputs) <= 2 or inputs[0] is None:
            raise dims.fault(node, "Unsqueeze needs an input and its axes")
        x = inputs[0]
        stated = dims.integers(node, inputs[1], "axes") if len(inputs) > 1 else node.attributes.get("axes")
        if stated is None or not x.known_shape:
            return [(x.dtype, (), False)]
        rank = len(x.shape) + len(stated)
        axes = dims.axes_of(node, stated, rank)
        rest = iter(x.shape)
        return [(x.dtype, tuple(1 if axis in axes else next(rest) for axis in range(rank)), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x = inputs[0]
        assert x is not None
        second = inputs[1] if len(inputs) > 1 else None
        return [np.expand_dims(x, tuple(second.ravel().tolist() if second is not None else node.attributes["axes"]))]


@register
class ShapeOf(View):
    """The shape, or a slice of it, as int64; Size is its product."""

    names = ("Shape", "Size")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        if node.op == "Size":
            return [("int64", (), True)]
        if not x.known_shape:
            return [("int64", (f"{node.outputs[0]}.0",), True)]
        return [("int64", (len(range(len(x.shape))[shape_slice(node)]),), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        if node.op == "Size":
            return [np.array(x.size, np.int64)]
        return [np.array(x.shape[shape_slice(node)], np.int64)]


def shape_slice(node: Node) -> slice:
    """The part of the shape that a Shape node returns."""
    return slice(node.attributes.get("start", 0), node.attributes.get("end"))


@register
class Constant(View):
    """A value that stands in the node. Importers turn it into a constant tensor."""

    names = ("Constant",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        value = node.attributes.get("value")
        if not isinstance(value, np.ndarray):
            raise dims.fault(node, "Constant has no array as attribute value")
        return [(str(node.attributes.get("dtype", value.dtype.name)), value.shape, True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        return [np.asarray(node.attributes["value"])]


@register
class ConstantOfShape(View):
    """One value in a shape that is computed; a machine folds it or fills memory, here it costs nothing."""

    names = ("ConstantOfShape",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (target,) = operands(node, inputs, 1, 1)
        value = node.attributes.get("value")
        if value is not None and (not isinstance(value, np.ndarray) or value.size != 1):
            raise dims.fault(node, "attribute value must hold one element")
        dtype = str(node.attributes.get("dtype", "float32" if value is None else value.dtype.name))
        if target.data is None:
            return [(dtype, (), False)]
        wanted = tuple(target.data.ravel().tolist())
        if len(wanted) > 64 or any(isinstance(dim, int) and dim < 0 for dim in wanted):
            raise dims.fault(node, f"the shape {list(wanted)[:8]} has a negative dimension, or more than 64")
        return [(dtype, wanted, True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (target,) = inputs
        assert target is not None
        value = node.attributes.get("value", np.zeros(1, carrier("float32")))
        return [np.full(target.tolist(), value.reshape(-1)[0], value.dtype)]


@register
class Range(View):
    """``start, start + delta, ...`` up to but without `limit`."""

    names = ("Range",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = operands(node, inputs, 3, 3)
        dtype = dims.same_types(node, given)
        values = [tensor.data for tensor in given]
        if any(value is not None and value.dtype == object for value in values):
            first, last, step = (None if value is None else value.reshape(-1)[0] for value in values)
            if isinstance(last, str) and first == 0 and step == 1:
                return [(dtype, (last,), True)]
            return [(dtype, (f"{node.outputs[0]}.0",), True)]
        if any(value is None for value in values):
            return [(dtype, (f"{node.outputs[0]}.0",), True)]
        start, limit, delta = (float(value.reshape(-1)[0]) for value in values if value is not None)
        if delta == 0 or not np.isfinite((limit - start) / delta):
            raise dims.fault(node, f"a range from {start} to {limit} by {delta} never ends")
        return [(dtype, (max(int(np.ceil((limit - start) / delta)), 0),), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        start, limit, delta = (one.reshape(-1)[0] for one in inputs if one is not None)
        count = max(int(np.ceil((float(limit) - float(start)) / float(delta))), 0)
        wide = np.float64 if np.asarray(start).dtype.kind not in "iu" else np.int64
        dtype = np.asarray(start).dtype
        return [(wide(start) + np.arange(count).astype(wide) * wide(delta)).astype(dtype)]
