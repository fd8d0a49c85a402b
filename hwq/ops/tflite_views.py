"""TFLite's operators that rename elements: their data stays where it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Graph, Node, Shape, Tensor
from hwq.ops import dims
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import Call, Moving, constant_numbers, inferred, present, renamed
from hwq.work import Work

__all__ = ["ExpandDims", "Reshape", "ShapeOf", "Squeeze"]


@register
class Reshape(Moving):
    """RESHAPE: the shape comes from operand 1, else from the attribute ``new_shape``; one -1 takes the rest."""

    operators = ("RESHAPE",)
    view = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, target = present(node, inputs, 1, 2)
        assert x is not None
        wanted = (
            constant_numbers(node, target, "the shape")
            if target is not None
            else tuple(node.attributes.get("new_shape", ()))
        )
        if wanted is None or not x.known_shape:
            return inferred(x.dtype, None)
        return inferred(x.dtype, _reshaped(node, x.shape, wanted))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        wanted = call.numbers(1) if call.has(1) else tuple(call.attribute("new_shape", ()))
        x = call.array(0)
        return [x.reshape([int(dim) for dim in _reshaped(call.node, x.shape, wanted)])]


def _reshaped(node: Node, shape: Shape, wanted: Sequence[int]) -> Shape:
    if any(dim < -1 for dim in wanted) or sum(dim == -1 for dim in wanted) > 1:
        raise dims.fault(node, f"the target {list(wanted)[:16]} is no shape")
    rest = dims.quotient(shape, [dim for dim in wanted if dim != -1])
    if rest is None and 0 in wanted and 0 in shape:
        rest = 0
    if rest is None or (-1 not in wanted and rest != 1 and not (0 in wanted and 0 in shape)):
        raise dims.fault(
            node, f"{list(shape)} cannot become {list(wanted)[:16]}", "the number of elements must stay the same"
        )
    return tuple(rest if dim == -1 else dim for dim in wanted)


@register
class Squeeze(Moving):
    """SQUEEZE: drops the axes named, without any every axis of length 1."""

    operators = ("SQUEEZE",)
    view = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        if not x.known_shape:
            return inferred(x.dtype, None)
        gone = self.gone(node, x.shape)
        return inferred(x.dtype, [dim for axis, dim in enumerate(x.shape) if axis not in gone])

    def gone(self, node: Node, shape: Shape) -> set[int]:
        """The axes that are dropped."""
        axes = dims.ints_attribute(node, "axes", ())
        gone = (
            {dims.axis_of(node, axis, len(shape)) for axis in axes}
            if axes
            else {axis for axis, dim in enumerate(shape) if dim == 1}
        )
        for axis in gone:
            if shape[axis] != 1 and isinstance(shape[axis], int):
                raise dims.fault(node, f"axis {axis} of {list(shape)} is not 1")
        return gone

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        return [x.reshape([dim for axis, dim in enumerate(x.shape) if axis not in self.gone(call.node, x.shape)])]


@register
class ExpandDims(Moving):
    """EXPAND_DIMS: an axis of length 1 before the axis that operand 1 names."""

    operators = ("EXPAND_DIMS",)
    view = True

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, axis = present(node, inputs, 2)
        assert x is not None
        found = constant_numbers(node, axis, "the axis")
        if found is None or not x.known_shape:
            return inferred(x.dtype, None)
        if len(found) != 1:
            raise dims.fault(node, "one axis is needed")
        place = dims.axis_of(node, found[0], len(x.shape) + 1)
        return inferred(x.dtype, (*x.shape[:place], 1, *x.shape[place:]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        return [np.expand_dims(x, dims.axis_of(call.node, call.numbers(1)[0], x.ndim + 1))]


@register
class ShapeOf(Moving):
    """SHAPE: the operand's dimensions."""

    operators = ("SHAPE",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        return inferred(str(node.attributes.get("to", "int32")), (len(x.shape),) if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        return [np.array(call.array(0).shape, str(call.attribute("to", "int32")))]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: nothing is read but the shape."""
        return renamed(super().work(node, graph), node, kind="none", input_elements=0)
