"""Pools: MaxPool, AveragePool and their global forms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops import accounting, arithmetic, dims, spatial
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import operands, require_float
from hwq.work import Work

__all__ = ["GlobalPool", "Pool"]


@register
class Pool(Op):
    """Maximum or mean over windows."""

    names = ("MaxPool", "AveragePool")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        if node.op == "AveragePool":
            require_float(node, x)
        if "kernel_shape" not in node.attributes:
            raise dims.fault(node, "attribute kernel_shape is missing")
        kernel = dims.ints_attribute(node, "kernel_shape", (), None, 1)
        if not x.known_shape:
            return [(x.dtype, (), False), ("int64", (), False)]
        batch, channels, space = spatial.split_shape(node, x.shape)
        windows = spatial.windows_of(node, space, kernel)
        if any(
            pad >= extent
            for pads in (windows.begin, windows.end)
            for pad, extent in zip(pads, windows.extents, strict=True)
        ):
            raise dims.fault(
                node,
                f"pads {list(windows.begin)} + {list(windows.end)} are not smaller than the window {list(windows.extents)}",
                "a window would lie wholly in the padding",
            )
        shape = spatial.activation_shape(node, batch, channels, windows.counts)
        return [(x.dtype, shape, True), ("int64", shape, True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        image = spatial.channels_first(x, node)
        kernel = dims.ints_attribute(node, "kernel_shape", (), None, 1)
        windows = spatial.windows_of(node, image.shape[2:], kernel)
        if node.op == "AveragePool":
            return [spatial.from_channels_first(_average(node, image, windows), node)]
        made, indices = _maximum(node, image, windows)
        if len(node.outputs) < 2 or not node.outputs[1]:
            return [spatial.from_channels_first(made, node)]
        return [spatial.from_channels_first(made, node), spatial.from_channels_first(indices, node)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: a comparison or an addition for each tap."""
        taps = int(np.prod(dims.ints_attribute(node, "kernel_shape", ()), dtype=np.int64))
        made = graph.tensors[node.outputs[0]]
        work = accounting.vector(node, graph, operations=made.elements * taps)
        kernel = dims.ints_attribute(node, "kernel_shape", ())
        strides = dims.ints_attribute(node, "strides", [1] * len(kernel))
        return accounting.changed(
            work,
            kernel_h=taps // kernel[-1],
            kernel_w=kernel[-1],
            stride_h=strides[-2] if len(strides) > 1 else 1,
            stride_w=strides[-1],
        )


def _taps(windows: spatial.Windows) -> itertools.product[tuple[int, ...]]:
    return itertools.product(*(range(size) for size in windows.kernel))


def _tap(padded: Array, windows: spatial.Windows, tap: Sequence[int]) -> Array:
    """The element under `tap` of every window."""
    steps = [
        slice(index * dilation, index * dilation + (count - 1) * stride + 1, stride)
        for index, dilation, count, stride in zip(tap, windows.dilations, windows.sizes, windows.strides, strict=True)
    ]
    return padded[(slice(None), slice(None), *steps)]


def _average(node: Node, image: Array, windows: spatial.Windows) -> Array:
    """Sum of taps in order, divided by their number; padding counts where count_include_pad says so, ceil's never."""
    space = image.shape[2:]
    if image.dtype == np.float32 and len(space) <= 3 and not node.attributes.get("ceil_mode", 0):
        from hwq import kernels  # where it computes: shapes and cost need no compiled kernels

        made = kernels.average_pool(  # channel-last: the kernel takes channels side by side
            np.moveaxis(image, 1, -1), windows.kernel, strides=windows.strides, pads=(*windows.begin, *windows.end),
            dilations=windows.dilations, count_include_pad=bool(node.attributes.get("count_include_pad", 0)), layout="NHWC",
        )  # fmt: skip
        return np.moveaxis(made, -1, 1)
    reach = windows.reach(space)
    wide = image.astype(np.float32) if image.dtype != np.float64 else image
    padded = arithmetic.padded(wide, windows.begin, reach)
    counted = np.zeros(
        [begin + size + end for begin, size, end in zip(windows.begin, space, reach, strict=True)], wide.dtype
    )
    include = bool(node.attributes.get("count_include_pad", 0))
    counted[
        tuple(
            slice(0 if include else begin, begin + size + (end if include else 0))
            for begin, size, end in zip(windows.begin, space, windows.end, strict=True)
        )
    ] = 1
    result = np.zeros((*image.shape[:2], *windows.sizes), wide.dtype)
    number = np.zeros((1, 1, *windows.sizes), wide.dtype)
    for tap in _taps(windows):
        result += _tap(padded, windows, tap)
        number += _tap(counted[None, None], windows, tap)
    return (result / number).astype(image.dtype)


def _maximum(node: Node, image: Array, windows: spatial.Windows) -> tuple[Array, Array]:
    """(maximum, index of its first occurrence in the whole input, rows or columns first by storage_order)."""
    space = image.shape[2:]
    floating = image.dtype.kind not in "iu"
    lowest = -np.inf if floating else np.iinfo(image.dtype).min
    padded = arithmetic.padded(image, windows.begin, windows.reach(space), np.asarray(lowest).astype(image.dtype))
    result: Array | None = None
    if len(node.outputs) < 2 or not node.outputs[1]:
        for tap in _taps(windows):
            part = _tap(padded, windows, tap)
            result = part if result is None else np.maximum(result, part)
        assert result is not None
        return np.ascontiguousarray(result), np.zeros(0, np.int64)
    numbers: Array = np.arange(int(np.prod(space)))
    numbers = numbers.reshape(space[::-1]).T if node.attributes.get("storage_order", 0) else numbers.reshape(space)
    planes = np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[0], image.shape[1], *([1] * len(space)))
    indices = arithmetic.padded(
        numbers[None, None] + planes * int(np.prod(space)), windows.begin, windows.reach(space), -1
    )
    chosen: Array | None = None
    for tap in _taps(windows):
        part, index = _tap(padded, windows, tap), _tap(indices, windows, tap)
        if result is None or chosen is None:
            result, chosen = part, index
            continue
        better = (part > result) | (chosen < 0)
        result, chosen = np.where(better, part, result), np.where(better, index, chosen)
    assert result is not None and chosen is not None
    return result, chosen.astype(np.int64)


@register
class GlobalPool(Op):
    """Mean or maximum over the whole space."""

    names = ("GlobalAveragePool", "GlobalMaxPool")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        require_float(node, x)
        if not x.known_shape:
            return [(x.dtype, (), False)]
        if len(x.shape) == 2:
            return [(x.dtype, x.shape, True)]
        batch, channels, space = spatial.split_shape(node, x.shape)
        return [(x.dtype, spatial.activation_shape(node, batch, channels, [1] * len(space)), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        axes = tuple(range(1, x.ndim - 1)) if node.layout == "NHWC" else tuple(range(2, x.ndim))
        if node.op == "GlobalMaxPool":
            return [x.max(axis=axes, keepdims=True)]
        count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
        wide = x if x.dtype == np.float64 else x.astype(np.float32, copy=False)
        return [(arithmetic.total(wide, axes, True) / np.asarray(count, wide.dtype)).astype(x.dtype, copy=False)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: an addition or a comparison for each element."""
        return accounting.vector(node, graph, operations=graph.tensors[node.inputs[0]].elements)
