"""Differentiable forms of what slides or stretches over an image: convolutions, pools, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hwq.graph import Node
from hwq.ops import spatial
from hwq.ops.resize import axis_weights
from hwq.ops.transposed import footprint_of
from hwq.qat.operators import Operand, as_tensor, form, operand

__all__ = ["convolve", "spread"]


def _pads(windows: spatial.Windows, space: Sequence[int]) -> list[int]:
    """What each side needs (or has too much) so that exactly the windows fit, last dimension first as `F.pad` takes it."""
    made: list[int] = []
    sides = zip(space, windows.begin, windows.sizes, windows.strides, windows.extents, strict=True)
    for size, begin, count, stride, extent in reversed(list(sides)):
        made += [begin, (count - 1) * stride + extent - size - begin]
    return made


def convolve(node: Node, x: Any, weights: Any, bias: Any = None) -> Any:
    """The convolution, zeros at the borders; any float type."""
    windows = spatial.windows_of(node, tuple(x.shape[2:]), tuple(weights.shape[2:]))
    pads = _pads(windows, x.shape[2:])
    # Equal pads belong to the convolution, which then copies nothing.
    even = tuple(windows.begin) == tuple(windows.end)
    x = x if even else F.pad(x, pads)
    function = (F.conv1d, F.conv2d, F.conv3d)[weights.ndim - 3]
    padding = tuple(windows.begin) if even else 0
    groups = int(node.attributes.get("group", 1))
    return function(x, weights, bias, tuple(windows.strides), padding, tuple(windows.dilations), groups)


@form("Conv")
def _conv(node: Node, operands: Sequence[Operand]) -> Any:
    return convolve(node, *[as_tensor(operand(operands, index)) for index in range(3)])


def spread(node: Node, x: Any, weights: Any) -> Any:
    """A transposed convolution without its bias."""
    rank = weights.ndim - 2
    where = footprint_of(node, tuple(x.shape[2:]), tuple(weights.shape[2:]))
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    groups = int(node.attributes.get("group", 1))
    made = function(x, weights, None, where.strides, 0, 0, groups, where.dilations)
    ends = [first + int(size) for first, size in zip(where.begin, where.sizes, strict=True)]
    beyond = [max(0, end - size) for end, size in zip(ends, made.shape[2:], strict=True)]
    made = F.pad(made, [pad for one in reversed(beyond) for pad in (0, one)])
    return made[(..., *(slice(first, end) for first, end in zip(where.begin, ends, strict=True)))]


@form("ConvTranspose")
def _conv_transpose(node: Node, operands: Sequence[Operand]) -> Any:
    made = spread(node, as_tensor(operands[0]), as_tensor(operands[1]))
    bias = as_tensor(operand(operands, 2))
    return made if bias is None else made + bias.reshape(-1, *[1] * (made.ndim - 2))


@form("GlobalAveragePool")
def _global_average(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0].mean(dim=tuple(range(2, operands[0].ndim)), keepdim=True)


@form("AveragePool")
def _average(node: Node, operands: Sequence[Operand]) -> Any:
    x, size = operands[0], tuple(int(one) for one in node.attributes["kernel_shape"])
    windows = spatial.windows_of(node, tuple(x.shape[2:]), size)
    pads = _pads(windows, x.shape[2:])
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]
    sums = function(F.pad(x, pads), size, tuple(windows.strides))
    if node.attributes.get("count_include_pad", 0) or not any(pads):
        return sums
    return sums / function(F.pad(torch.ones_like(x[:1, :1]), pads), size, tuple(windows.strides))


@form("MaxPool")
def _max_pool(node: Node, operands: Sequence[Operand]) -> Any:
    x, size = operands[0], tuple(int(one) for one in node.attributes["kernel_shape"])
    windows = spatial.windows_of(node, tuple(x.shape[2:]), size)
    pads = _pads(windows, x.shape[2:])
    x = F.pad(x, pads, value=-torch.inf) if any(pads) else x
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(size) - 1]
    return function(x, size, tuple(windows.strides), 0, tuple(windows.dilations))


@form("GlobalMaxPool")
def _global_max(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0].amax(dim=tuple(range(2, operands[0].ndim)), keepdim=True)


@form("Resize")
def _resize(node: Node, operands: Sequence[Operand]) -> Any:
    """Every axis is a product by a matrix: what the operator makes of a one at each place."""
    x = operands[0]
    sizes = [one.numpy() if isinstance(one, torch.Tensor) else one for one in operands[1:]]
    for axis, weights in axis_weights(node, tuple(x.shape), [None, *sizes]):
        x = torch.tensordot(x, torch.from_numpy(weights.astype(np.float32)), ([axis], [1])).movedim(-1, axis)
    return x


@form("GridSample")
def _grid(node: Node, operands: Sequence[Operand]) -> Any:
    get = node.attributes.get
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(str(get("mode", "linear")), str(get("mode", "linear")))
    x, grid = (as_tensor(one) for one in operands)
    return F.grid_sample(x, grid, mode, str(get("padding_mode", "zeros")), bool(get("align_corners", 0)))
