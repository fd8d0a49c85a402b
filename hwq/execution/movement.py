"""Stored numbers moved or compared as they are: maxima of windows, transposes, joins."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hwq.execution.emission import At, Site, geometry
from hwq.execution.steps import Kernel, Scope, interpret, register
from hwq.graph import Array
from hwq.kernels.steps import Steps
from hwq.ops import spatial

__all__ = ["join"]


@register("MaxPool", "float:MaxPool")
def max_pool(scope: Scope) -> Kernel:
    """The greatest element of each window."""
    node = scope.node

    def emit(site: Site) -> bool:
        size = tuple(int(one) for one in node.attributes["kernel_shape"])
        dtype, shape = site.dtype(0), site.shape(0)
        if len(node.outputs) > 1 or dtype.name not in {"uint8", "int8", "float32"} or not 1 <= len(size) <= 3:
            return False
        windows = spatial.windows_of(node, site.space(0), size)
        x, y, channels = site.read(0, site.turns), site.make(site.turns), site.channels(0)
        site.step([x], y, lambda steps, at: steps.pool(
            at(x), "max", geometry(windows, site.space(0)), windows.end, shape[0], channels, dtype, layout="NHWC",
            out=at(y)))  # fmt: skip
        return True

    return interpret(scope, emit)


@register("Transpose", "float:Transpose")
def transpose(scope: Scope) -> Kernel:
    """Axes in another order, where that turns matrices; other orders as `hwq.ops` does."""
    node = scope.node

    def emit(site: Site) -> bool:
        shape = site.shape(0)
        order = tuple(int(axis) for axis in node.attributes.get("perm", range(len(shape))[::-1]))
        element, blocks = site.dtype(0).itemsize, _matrices(shape, order)
        if blocks is None or element not in {1, 2, 4}:
            return False
        x, y = site.read(0), site.make()
        site.step([x], y, lambda steps, at: steps.transpose(at(x), element, *blocks, out=at(y)))
        return True

    return interpret(scope, emit)


def _matrices(shape: Sequence[int], order: Sequence[int]) -> tuple[int, int, int] | None:
    """How many matrices of which rows and columns the permutation turns, if it does that: it swaps two runs of axes."""
    rank = len(shape)
    for first in range(rank + 1):
        for middle in range(first, rank + 1):
            if tuple(order) == (*range(first), *range(middle, rank), *range(first, middle)):
                return math.prod(shape[:first]), math.prod(shape[first:middle]), math.prod(shape[middle:])
    return None


def join(site: Site, tables: Sequence[Array | None]) -> bool:
    """Concatenate bytes, those with a table through it."""
    made = site.made_shape()
    count = len(site.node.inputs)
    axis = int(site.node.attributes.get("axis", 0)) % len(made)
    last = len(made) > 2 and any(site.is_last(index) for index in range(count))
    if last:
        axis = 0 if axis == 0 else len(made) - 1 if axis == 1 else axis - 1
    parts = [site.read(index, last) for index in range(count)]
    y = site.make(last)
    values = site.emission.values
    whole = values[y].shape
    element, inner = values[y].dtype.itemsize, math.prod(whole[axis + 1 :])
    outer, offset = math.prod(whole[:axis]), 0
    for part, entries in zip(parts, tables, strict=True):
        shape = values[part].shape
        run, stride = shape[axis] * inner * element, whole[axis] * inner * element
        _copy(site, part if entries is None else _map(site, part, entries), y, outer, run, stride, offset)
        offset += run
    return True


def _map(site: Site, x: int, entries: Array) -> int:
    value = site.emission.values[x]
    y, size = site.scratch(value.shape, entries.dtype), math.prod(value.shape)
    site.step([x], y, lambda steps, at: steps.lut(at(x), size, value.dtype, entries, out=at(y)))
    return y


def _copy(site: Site, x: int, y: int, runs: int, size: int, stride: int, offset: int) -> None:
    def append(steps: Steps, at: At) -> None:
        target = at(y)
        assert isinstance(target, tuple)
        steps.copy(at(x), runs, size, size, stride, out=(target[0], target[1] + offset))

    site.step([x], y, append)
