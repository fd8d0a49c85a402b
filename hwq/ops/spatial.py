"""Where windows stand: kernel, strides, dilations and padding of convolutions and pools, in either layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwq.graph import Array, Dim, Node, Shape
from hwq.ops import dims

__all__ = ["Windows", "activation_shape", "channels_first", "from_channels_first", "split_shape", "windows_of"]


@dataclass(frozen=True)
class Windows:
    """Windows over a space of any rank: one entry a dimension in every field."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    counts: tuple[Dim, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """`counts` once every dimension is a number."""
        return tuple(int(count) for count in self.counts)

    @property
    def extents(self) -> tuple[int, ...]:
        """Elements from a window's first tap to its last, both included."""
        return tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))

    def reach(self, space: Sequence[int]) -> tuple[int, ...]:
        """Elements behind the image that the last window touches, `end` at least (ceil_mode may need more)."""
        last = (
            (count - 1) * stride + extent
            for count, stride, extent in zip(self.sizes, self.strides, self.extents, strict=True)
        )
        return tuple(
            max(end, one - begin - size)
            for end, one, begin, size in zip(self.end, last, self.begin, space, strict=True)
        )


def split_shape(node: Node, shape: Shape) -> tuple[Dim, Dim, Shape]:
    """(batch, channels, space) of an activation.

    Raises
    ------
    Error
        It has fewer than three dimensions.
    """
    if len(shape) < 3:
        raise dims.fault(
            node, f"the input {list(shape)} has no spatial dimension", "the operator needs [batch, channels, space...]"
        )
    if node.layout == "NHWC":
        return shape[0], shape[-1], shape[1:-1]
    return shape[0], shape[1], shape[2:]


def activation_shape(node: Node, batch: Dim, channels: Dim, space: Sequence[Dim]) -> Shape:
    """The shape of an activation in the node's layout."""
    return (batch, *space, channels) if node.layout == "NHWC" else (batch, channels, *space)


def channels_first(x: Array, node: Node) -> Array:
    """`x` as [batch, channels, *space], whatever the node's layout."""
    return np.moveaxis(x, -1, 1) if node.layout == "NHWC" else x


def from_channels_first(x: Array, node: Node) -> Array:
    """A result [batch, channels, *space] in the node's layout."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if node.layout == "NHWC" else x


def windows_of(node: Node, space: Sequence[Dim], kernel: Sequence[int]) -> Windows:
    """The windows that the node's attributes lay over `space`.

    Raises
    ------
    Error
        An attribute has a wrong length or value, or no window fits.
    """
    rank = len(space)
    kernel = tuple(kernel)
    if len(kernel) != rank or any(size < 1 for size in kernel):
        raise dims.fault(node, f"a kernel of shape {list(kernel)} does not fit an input with {rank} spatial dimensions")
    strides = dims.ints_attribute(node, "strides", [1] * rank, rank, 1)
    dilations = dims.ints_attribute(node, "dilations", [1] * rank, rank, 1)
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    if max((*extents, *strides), default=0) > 1 << 31:
        raise dims.fault(node, "kernel, stride or dilation is beyond any image")
    pads = dims.ints_attribute(node, "pads", [0] * (2 * rank), 2 * rank, 0)
    auto = node.attributes.get("auto_pad", "NOTSET")
    ceil = bool(node.attributes.get("ceil_mode", 0))
    begin, end = list(pads[:rank]), list(pads[rank:])
    counts: list[Dim] = []
    for index, (dim, extent, stride) in enumerate(zip(space, extents, strides, strict=True)):
        if auto in {"SAME_UPPER", "SAME_LOWER"}:
            counts.append(_same(node, dim, extent, stride, auto == "SAME_UPPER", begin, end, index))
            continue
        if auto == "VALID":
            begin[index] = end[index] = 0
        elif auto != "NOTSET":
            raise dims.fault(
                node, f"auto_pad = {auto!r} is unknown", None, "use NOTSET, VALID, SAME_UPPER or SAME_LOWER"
            )
        padding = begin[index] + end[index]
        count = dims.window(dim, extent, stride, padding, ceil)
        if ceil and isinstance(dim, int) and isinstance(count, int) and (count - 1) * stride >= dim + begin[index]:
            count -= 1  # a window must not start in the padding behind the image
        counts.append(count)
    if any(isinstance(count, int) and count < 1 for count in counts) and all(dim != 0 for dim in space):
        raise dims.fault(
            node, f"a window of {extents} does not fit into the padded input {list(space)} + {begin} + {end}"
        )
    return Windows(kernel, strides, dilations, tuple(begin), tuple(end), tuple(counts))


def _same(
    node: Node, dim: Dim, extent: int, stride: int, upper: bool, begin: list[int], end: list[int], index: int
) -> Dim:
    """SAME padding: ``ceil(dim / stride)`` windows; the odd element goes behind (UPPER) or before (LOWER)."""
    if isinstance(dim, str):
        if stride != 1:
            begin[index] = end[index] = 0  # unknown until the dimension is bound
            return dims.text(f"ceil({dim},{stride})")
        needed = extent - 1
        count: Dim = dim
    else:
        count = -(-dim // stride)
        needed = max((count - 1) * stride + extent - dim, 0)
    small, large = needed // 2, needed - needed // 2
    begin[index], end[index] = (small, large) if upper else (large, small)
    return count
