"""Reductions: sums, means, extremes and their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Tensor
from hwq.ops import accounting, arithmetic, dims
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import operands
from hwq.work import Work

__all__ = ["Reduce", "axes_of"]


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    if x.dtype.kind in "iu":
        return np.asarray(x.mean(axis=axes, keepdims=True, dtype=np.float64)).astype(x.dtype)
    wide = x if x.dtype == np.float64 else x.astype(np.float32)
    return arithmetic.total(wide, axes, True) / np.asarray(count, wide.dtype)


def _extreme(function: Callable[..., Any], largest: bool) -> Callable[[Array, tuple[int, ...]], Array]:
    def reduce(x: Array, axes: tuple[int, ...]) -> Array:
        if x.size:
            return np.asarray(function(x, axis=axes, keepdims=True))
        shape = tuple(1 if axis in axes else dim for axis, dim in enumerate(x.shape))
        if x.dtype.kind in "iu":
            bounds = np.iinfo(x.dtype)
            return np.full(shape, bounds.min if largest else bounds.max, x.dtype)
        return np.full(shape, (not largest) if x.dtype == np.bool_ else -np.inf if largest else np.inf).astype(x.dtype)

    return reduce


def _log_sum_exp(x: Array, axes: tuple[int, ...]) -> Array:
    wide = x.astype(np.float64)
    peak = wide.max(axis=axes, keepdims=True) if x.size else np.zeros(1)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    return np.asarray(np.log(np.exp(wide - peak).sum(axis=axes, keepdims=True)) + peak)


_REDUCTIONS: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "ReduceSum": lambda x, axes: arithmetic.total(x, axes, True),
    "ReduceMean": _mean,
    "ReduceMax": _extreme(np.max, True),
    "ReduceMin": _extreme(np.min, False),
    "ReduceProd": lambda x, axes: np.asarray(np.prod(x, axis=axes, keepdims=True, dtype=x.dtype)),
    "ReduceL1": lambda x, axes: arithmetic.total(np.abs(x), axes, True),
    "ReduceL2": lambda x, axes: np.sqrt(np.square(x.astype(np.float64)).sum(axis=axes, keepdims=True)),
    "ReduceSumSquare": lambda x, axes: arithmetic.total(x * x, axes, True),
    "ReduceLogSum": lambda x, axes: np.log(x.astype(np.float64).sum(axis=axes, keepdims=True)),
    "ReduceLogSumExp": _log_sum_exp,
}


@register
class Reduce(Op):
    """A reduction over axes, given as an attribute (opset 13) or an input (ReduceSum from 13, the others from 18)."""

    names = tuple(_REDUCTIONS)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 1 <= len(inputs) <= 2 or inputs[0] is None:
            raise dims.fault(node, "a reduction needs an input and at most its axes")
        x = inputs[0]
        if not x.known_shape:
            return [(x.dtype, (), False)]
        second = inputs[1] if len(inputs) > 1 else None
        stated = dims.integers(node, second, "axes")
        keep = bool(node.attributes.get("keepdims", 1))
        if second is not None and stated is None:
            if not keep:
                return [(x.dtype, (), False)]
            return [(x.dtype, tuple(f"{node.outputs[0]}.{axis}" for axis in range(len(x.shape))), True)]
        axes = axes_of(node, stated if stated is not None else node.attributes.get("axes"), len(x.shape))
        shape: list[Dim] = [1 if axis in axes else dim for axis, dim in enumerate(x.shape)]
        return [(x.dtype, tuple(dim for axis, dim in enumerate(shape) if keep or axis not in axes), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x = inputs[0]
        assert x is not None
        stated = inputs[1] if len(inputs) > 1 else None
        axes = axes_of(node, node.attributes.get("axes") if stated is None else stated.tolist(), x.ndim)
        result = np.asarray(_REDUCTIONS[node.op](x, axes)) if axes or node.op != "ReduceMean" else x
        result = result.astype(x.dtype)
        return [
            result
            if node.attributes.get("keepdims", 1)
            else result.reshape([dim for axis, dim in enumerate(result.shape) if axis not in axes])
        ]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: one operation for each input element."""
        return accounting.vector(node, graph, operations=graph.tensors[node.inputs[0]].elements)


def axes_of(node: Node, stated: Any, rank: int) -> tuple[int, ...]:
    """Axes counted from the front; none stated means all, or none with noop_with_empty_axes."""
    if stated is None or len(stated) == 0:
        return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return dims.axes_of(node, stated, rank)


@register
class Place(Op):
    """Index of the largest or smallest element along an axis; of equal ones the first, or the last if asked."""

    names = ("ArgMax", "ArgMin")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        if not x.known_shape:
            return [("int64", (), False)]
        axis = dims.axis_of(node, int(node.attributes.get("axis", 0)), len(x.shape))
        keep = [1] if node.attributes.get("keepdims", 1) else []
        return [("int64", (*x.shape[:axis], *keep, *x.shape[axis + 1 :]), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        axis = int(node.attributes.get("axis", 0)) % max(x.ndim, 1)
        find = np.argmax if node.op == "ArgMax" else np.argmin
        if node.attributes.get("select_last_index", 0):
            found = x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis, keepdims=True)
        else:
            found = find(x, axis=axis, keepdims=True)
        found = np.asarray(found, np.int64)
        return [found if node.attributes.get("keepdims", 1) else found.squeeze(axis)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: one comparison for each input element."""
        return accounting.vector(node, graph, operations=graph.tensors[node.inputs[0]].elements)
