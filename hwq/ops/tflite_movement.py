"""TFLite's operators that put elements elsewhere: views, slices, joins, borders, gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hwq.graph import Array, Node, Shape, Tensor
from hwq.ops import dims
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import Call, Moving, constant_numbers, contiguous, inferred, present

__all__ = ["Concatenation", "Gather", "Pack", "Pad", "Split", "Transpose", "Unpack"]


@register
class Transpose(Moving):
    """TRANSPOSE: axes in the order of operand 1."""

    operators = ("TRANSPOSE",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, order = present(node, inputs, 2)
        assert x is not None
        found = constant_numbers(node, order, "the order")
        if found is None or not x.known_shape:
            return inferred(x.dtype, None)
        return inferred(x.dtype, [x.shape[axis] for axis in _permutation(node, found, len(x.shape))])

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        return [contiguous(x.transpose(_permutation(call.node, call.numbers(1), x.ndim)))]


def _permutation(node: Node, order: Sequence[int], rank: int) -> tuple[int, ...]:
    axes = dims.axes_of(node, order, rank)
    if len(axes) != rank:
        raise dims.fault(node, f"{list(order)[:16]} is no permutation of {rank} axes")
    return axes


@register
class Variable(Moving):
    """READ_VARIABLE: what a variable holds; ASSIGN_VARIABLE (state, value): what it holds in the next call."""

    operators = ("READ_VARIABLE", "ASSIGN_VARIABLE")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        state, *others = present(node, inputs, 1 if node.op == "READ_VARIABLE" else 2)
        assert state is not None
        for value in others:
            if value is not None and (value.dtype, value.known_shape and value.shape) != (state.dtype, state.shape):
                raise dims.fault(
                    node,
                    f"{value.dtype}{list(value.shape)} is assigned to a variable of {state.dtype}{list(state.shape)}",
                    "hwq keeps a variable's type and shape",
                )
        return inferred(state.dtype, state.shape)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        return [call.array(len(call.node.inputs) - 1).copy()]


@register
class Concatenation(Moving):
    """CONCATENATION along an axis. uint8 operands in other scales than the result's are rescaled in float32."""

    operators = ("CONCATENATION",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not inputs or any(tensor is None for tensor in inputs):
            raise dims.fault(node, "an operand is missing")
        given = [tensor for tensor in inputs if tensor is not None]
        if any(tensor.dtype != given[0].dtype for tensor in given):
            raise dims.fault(node, "operands of different types cannot be joined")
        if node.attributes.get("activation", "NONE") != "NONE":
            raise dims.fault(node, "a fused activation is not supported in this operator", "LiteRT has no such kernel")
        if not all(tensor.known_shape for tensor in given):
            return inferred(given[0].dtype, None)
        first = given[0].shape
        axis = dims.axis_of(node, int(node.attributes.get("axis", 0)), len(first))
        for tensor in given[1:]:
            if len(tensor.shape) != len(first) or any(
                a != b and isinstance(a, int) and isinstance(b, int)
                for index, (a, b) in enumerate(zip(first, tensor.shape, strict=False))
                if index != axis
            ):
                raise dims.fault(node, f"shapes {list(first)} and {list(tensor.shape)} differ outside axis {axis}")
        return inferred(
            given[0].dtype, (*first[:axis], dims.total([tensor.shape[axis] for tensor in given]), *first[axis + 1 :])
        )

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        parts = [call.array(index) for index in range(len(call.arrays))]
        if call.quantized and call.reads[0] is not None and call.reads[0].quantization is not None:
            parts = [self.rescaled(call, index, part) for index, part in enumerate(parts)]
        return [np.concatenate(parts, axis=int(call.attribute("axis", 0)))]

    def rescaled(self, call: Call, index: int, part: Array) -> Array:
        """One operand in the result's scale."""
        from hwq.ops import tflite_fixedpoint as fixed
        from hwq.ops.tflite_base import same_scale

        if same_scale(call, index):
            return part
        if call.dtype(index) != "uint8":
            raise call.fault(
                f"{call.dtype(index)} operands in different scales cannot be joined", "LiteRT refuses them too"
            )
        scale = np.float32(call.scale(index) * np.float32(np.float32(1) / call.made_scale()))
        bias = np.float32(np.float32(-call.zero_point(index)) * scale)
        moved = (
            fixed.away((part.astype(np.float32) * scale + bias).astype(np.float32)).astype(np.int64)
            + call.made_zero_point()
        )
        return np.clip(moved, 0, 255).astype(np.uint8)


@register
class Split(Moving):
    """SPLIT (axis, value) into equal parts and SPLIT_V (value, sizes, axis) into parts of given sizes."""

    operators = ("SPLIT", "SPLIT_V")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        equal = node.op == "SPLIT"
        given = present(node, inputs, 2 if equal else 3)
        x = given[1] if equal else given[0]
        assert x is not None
        axis = constant_numbers(node, given[0] if equal else given[2], "the axis")
        sizes = None if equal else constant_numbers(node, given[1], "the sizes")
        if axis is None or not x.known_shape or (sizes is None and not equal):
            return inferred(x.dtype, None) * len(node.outputs)
        parts = self.parts(node, x.shape, axis, sizes)
        place = dims.axis_of(node, axis[0], len(x.shape))
        return [(x.dtype, (*x.shape[:place], part, *x.shape[place + 1 :]), True) for part in parts]

    def parts(self, node: Node, shape: Shape, axis: Sequence[int], sizes: Sequence[int] | None) -> list[int]:
        """The length of each part."""
        if len(axis) != 1:
            raise dims.fault(node, "one axis is needed")
        extent = shape[dims.axis_of(node, axis[0], len(shape))]
        if not isinstance(extent, int):
            raise dims.fault(node, "the axis to split must have a known length")
        count = len(node.outputs)
        if sizes is None:
            if extent % count:
                raise dims.fault(node, f"{extent} elements cannot be split into {count} equal parts")
            return [extent // count] * count
        found = list(sizes)
        if found.count(-1) == 1:
            found[found.index(-1)] = extent - sum(size for size in found if size != -1)
        if len(found) != count or min(found, default=0) < 0 or sum(found) != extent:
            raise dims.fault(node, f"sizes {list(sizes)[:16]} do not split {extent} elements into {count} parts")
        return found

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        equal = call.node.op == "SPLIT"
        x = call.array(1 if equal else 0)
        axis = call.numbers(0 if equal else 2)
        parts = self.parts(call.node, x.shape, axis, None if equal else call.numbers(1))
        return [contiguous(part) for part in np.split(x, np.cumsum(parts)[:-1], axis=axis[0])]


@register
class Pack(Moving):
    """PACK: operands of one shape stacked along a new axis."""

    operators = ("PACK",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not inputs or any(tensor is None for tensor in inputs):
            raise dims.fault(node, "an operand is missing")
        given = [tensor for tensor in inputs if tensor is not None]
        first = given[0]
        if any(
            tensor.dtype != first.dtype or (tensor.known_shape and first.known_shape and tensor.shape != first.shape)
            for tensor in given
        ):
            raise dims.fault(node, "only operands of one type and shape can be stacked")
        if not first.known_shape:
            return inferred(first.dtype, None)
        place = dims.axis_of(node, int(node.attributes.get("axis", 0)), len(first.shape) + 1)
        return inferred(first.dtype, (*first.shape[:place], len(given), *first.shape[place:]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        return [np.stack([call.array(index) for index in range(len(call.arrays))], axis=int(call.attribute("axis", 0)))]


@register
class Unpack(Moving):
    """UNPACK: the slices along an axis, which disappears."""

    operators = ("UNPACK",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        if not x.known_shape:
            return inferred(x.dtype, None) * len(node.outputs)
        place = dims.axis_of(node, int(node.attributes.get("axis", 0)), len(x.shape))
        if x.shape[place] != len(node.outputs):
            raise dims.fault(node, f"axis {place} of {list(x.shape)} does not give {len(node.outputs)} slices")
        return [(x.dtype, (*x.shape[:place], *x.shape[place + 1 :]), True)] * len(node.outputs)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = np.moveaxis(call.array(0), int(call.attribute("axis", 0)), 0)
        return [contiguous(part) for part in x]


@register
class Pad(Moving):
    """PAD (with the zero point), PADV2 (with operand 2) and MIRROR_PAD."""

    operators = ("PAD", "PADV2", "MIRROR_PAD")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = present(node, inputs, 3 if node.op == "PADV2" else 2)
        x, border = given[:2]
        assert x is not None
        if x.known_shape and border is not None and border.known_shape and border.shape != (len(x.shape), 2):
            raise dims.fault(node, f"borders {list(border.shape)} do not fit {len(x.shape)} axes")
        found = constant_numbers(node, border, "the borders")
        if found is None or not x.known_shape:
            return inferred(x.dtype, None)
        self.check(node, found, x.shape)
        return inferred(
            x.dtype, [dims.offset(dim, found[2 * axis] + found[2 * axis + 1]) for axis, dim in enumerate(x.shape)]
        )

    def check(self, node: Node, border: Sequence[int], shape: Shape) -> None:
        """Raise where a border is negative, or wider than what it mirrors."""
        if any(size < 0 for size in border) or len(border) != 2 * len(shape):
            raise dims.fault(node, f"borders {list(border)[:16]} do not fit {list(shape)}")
        if node.op == "MIRROR_PAD":
            spare = 1 if node.attributes.get("mode") == "REFLECT" else 0
            for axis, dim in enumerate(shape):
                if isinstance(dim, int) and max(border[2 * axis : 2 * axis + 2]) > dim - spare:
                    raise dims.fault(node, f"borders {list(border)[:16]} are wider than the image {list(shape)}")

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, found = call.array(0), call.numbers(1)
        self.check(call.node, found, x.shape)
        border = [(found[2 * axis], found[2 * axis + 1]) for axis in range(x.ndim)]
        if call.node.op == "MIRROR_PAD":
            return [np.pad(x, border, mode="reflect" if call.attribute("mode") == "REFLECT" else "symmetric")]
        value: Any = 0
        if call.node.op == "PADV2":
            value = call.array(2).reshape(-1)[0]
        elif call.quantized and call.makes[0] is not None and call.makes[0].quantization is not None:
            value = call.made_zero_point()
        return [np.pad(x, border, constant_values=value)]


@register
class Gather(Moving):
    """GATHER: elements of operand 0 along an axis, by the indices of operand 1, after `batch_dims` common axes."""

    operators = ("GATHER",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, index = present(node, inputs, 2)
        assert x is not None and index is not None
        if index.dtype not in {"int16", "int32", "int64"}:
            raise dims.fault(node, f"indices cannot be {index.dtype}")
        if not (x.known_shape and index.known_shape):
            return inferred(x.dtype, None)
        axis, batch = self.places(node, len(x.shape), len(index.shape))
        return inferred(x.dtype, (*x.shape[:axis], *index.shape[batch:], *x.shape[axis + 1 :]))

    def places(self, node: Node, rank: int, index_rank: int) -> tuple[int, int]:
        """(axis, batch_dims), both counted from the front."""
        batch = int(node.attributes.get("batch_dims", 0))
        batch += index_rank if batch < 0 else 0
        axis = dims.axis_of(node, int(node.attributes.get("axis", 0)), rank)
        if not 0 <= batch <= min(axis, index_rank):
            raise dims.fault(node, f"{batch} common axes do not fit axis {axis}")
        return axis, batch

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, index = call.array(0), call.array(1).astype(np.int64)
        axis, batch = self.places(call.node, x.ndim, index.ndim)
        if index.size and (index.min() < 0 or index.max() >= x.shape[axis]):
            raise call.fault(f"an index lies outside the {x.shape[axis]} elements of axis {axis}")
        if batch == 0:
            return [np.take(x, index, axis=axis)]
        if x.shape[:batch] != index.shape[:batch]:
            raise call.fault(f"the common axes of {list(x.shape)} and {list(index.shape)} differ")
        lead = int(np.prod(x.shape[:batch], dtype=np.int64))
        parts = [
            np.take(one, picks, axis=axis - batch)
            for one, picks in zip(
                x.reshape(lead, *x.shape[batch:]), index.reshape(lead, *index.shape[batch:]), strict=True
            )
        ]
        shape = (*x.shape[:axis], *index.shape[batch:], *x.shape[axis + 1 :])
        return [np.stack(parts).reshape(shape) if parts else np.zeros(shape, x.dtype)]


@register
class BroadcastTo(Moving):
    """BROADCAST_TO (value, shape), TILE (value, repeats) and FILL (shape, value)."""

    operators = ("BROADCAST_TO", "TILE", "FILL")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = present(node, inputs, 2)
        x, target = (given[1], given[0]) if node.op == "FILL" else (given[0], given[1])
        assert x is not None
        found = constant_numbers(node, target, "the shape")
        if found is None or not x.known_shape:
            return inferred(x.dtype, None)
        return inferred(x.dtype, self.shape(node, x.shape, found))

    def shape(self, node: Node, shape: Shape, wanted: Sequence[int]) -> Shape:
        """The result's shape."""
        if any(dim < 0 for dim in wanted) or (node.op == "TILE" and len(wanted) != len(shape)):
            raise dims.fault(node, f"{list(wanted)[:16]} does not fit {list(shape)}")
        if node.op == "TILE":
            return tuple(dims.product([dim, times]) for dim, times in zip(shape, wanted, strict=True))
        made = dims.broadcast(node, [shape, tuple(wanted)])
        if made != tuple(wanted):
            raise dims.fault(node, f"{list(shape)} does not broadcast to {list(wanted)[:16]}")
        return made

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        fill = call.node.op == "FILL"
        x, wanted = call.array(1 if fill else 0), call.numbers(0 if fill else 1)
        self.shape(call.node, x.shape, wanted)
        return [np.tile(x, wanted) if call.node.op == "TILE" else contiguous(np.broadcast_to(x, wanted))]
