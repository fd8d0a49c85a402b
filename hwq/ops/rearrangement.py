"""Rearrangements of images and matrices: DepthToSpace, SpaceToDepth, Trilu."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Node, Tensor
from hwq.ops import dims
from hwq.ops.base import Inferred, register
from hwq.ops.elementwise import operands
from hwq.ops.movement import Movement

__all__ = ["DepthToSpace", "Trilu"]


@register
class DepthToSpace(Movement):
    """Blocks of `blocksize` x `blocksize` positions from channels (modes DCR and CRD), or back into them."""

    names = ("DepthToSpace", "SpaceToDepth")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        if not x.known_shape:
            return [(x.dtype, (), False)]
        block = node.attributes.get("blocksize", 0)
        if not isinstance(block, int) or block < 1 or len(x.shape) != 4:
            raise dims.fault(node, f"blocksize {block} does not fit the input {list(x.shape)}")
        batch, channels, h, w = x.shape
        if node.op == "DepthToSpace":
            if isinstance(channels, int) and channels % block**2:
                raise dims.fault(node, f"{channels} channels cannot be cut into blocks of {block} x {block}")
            less = dims.quotient([channels], [block * block]) or f"{node.outputs[0]}.1"
            return [(x.dtype, (batch, less, dims.product([h, block]), dims.product([w, block])), True)]
        if any(isinstance(dim, int) and dim % block for dim in (h, w)):
            raise dims.fault(node, f"the image {list(x.shape)} cannot be cut into blocks of {block} x {block}")
        fewer = [dims.quotient([dim], [block]) or f"{node.outputs[0]}.{axis}" for axis, dim in ((2, h), (3, w))]
        return [(x.dtype, (batch, dims.product([channels, block * block]), *fewer), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        block, columns = int(node.attributes["blocksize"]), node.attributes.get("mode", "DCR") == "CRD"
        batch, channels, h, w = x.shape
        if node.op == "DepthToSpace":
            depth = channels // block**2
            cut = x.reshape(batch, *((depth, block, block) if columns else (block, block, depth)), h, w)
            order = (0, 1, 4, 2, 5, 3) if columns else (0, 3, 4, 1, 5, 2)
            return [cut.transpose(order).reshape(batch, depth, h * block, w * block)]
        cut = x.reshape(batch, channels, h // block, block, w // block, block)
        order = (0, 1, 3, 5, 2, 4) if columns else (0, 3, 5, 1, 2, 4)
        return [cut.transpose(order).reshape(batch, channels * block**2, h // block, w // block)]


@register
class Trilu(Movement):
    """The upper or lower triangle of the last two dimensions, shifted by `k`; zeros elsewhere."""

    names = ("Trilu",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 1 <= len(inputs) <= 2 or inputs[0] is None or (inputs[0].known_shape and len(inputs[0].shape) < 2):
            raise dims.fault(node, "Trilu needs matrices")
        return [(inputs[0].dtype, inputs[0].shape, inputs[0].known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, shift = [*inputs, None][:2]
        assert x is not None
        offset = 0 if shift is None else max(min(int(shift.reshape(-1)[0]), x.shape[-1] + 1), -x.shape[-2] - 1)
        return [np.triu(x, offset) if node.attributes.get("upper", 1) else np.tril(x, offset)]
