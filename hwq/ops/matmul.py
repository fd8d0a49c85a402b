"""Matrix products: MatMul and Gemm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Shape, Tensor
from hwq.ops import accounting, arithmetic, dims
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import operands
from hwq.work import Work

__all__ = ["Gemm", "MatMul", "product_shape", "product_work"]


def product_shape(node: Node, a: Tensor, b: Tensor) -> tuple[Shape, bool]:
    """The shape of ``a @ b`` by NumPy's rules, and whether it is known.

    Raises
    ------
    Error
        An operand is a scalar, or the inner dimensions differ.
    """
    if not dims.rank_known(a, b):
        return (), False
    if not a.shape or not b.shape:
        raise dims.fault(
            node, "a matrix product needs operands of rank 1 or more", f"they are {list(a.shape)} and {list(b.shape)}"
        )
    left: Shape = a.shape if len(a.shape) > 1 else (1, *a.shape)
    right: Shape = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    _inner(node, left[-1], right[-2], a, b)
    leading = dims.broadcast(node, [left[:-2], right[:-2]])
    return (*leading, *left[-2:-1][: len(a.shape) > 1], *right[-1:][: len(b.shape) > 1]), True


def _inner(node: Node, left: Dim, right: Dim, a: Tensor, b: Tensor) -> None:
    if isinstance(left, int) and isinstance(right, int) and left != right:
        raise dims.fault(
            node,
            f"the inner dimensions of {list(a.shape)} and {list(b.shape)} differ: {left} and {right}",
            "a product sums over one dimension of both",
        )


def product_work(node: Node, graph: Graph, first: int = 0, second: int = 1, main: str | None = None) -> Work:
    """The Work of ``a @ b``; a constant first operand is the weight of the transposed product."""
    a, b = graph.tensors[node.inputs[first]], graph.tensors[node.inputs[second]]
    _ = a.elements, b.elements
    left = [int(dim) for dim in (a.shape if len(a.shape) > 1 else (1, *a.shape))]
    right = [int(dim) for dim in (b.shape if len(b.shape) > 1 else (*b.shape, 1))]
    m, k, n = left[-2], left[-1], right[-1]
    over_a, over_b = (int(np.prod(side[:-2], dtype=np.int64)) for side in (left, right))
    groups = int(
        np.prod([int(dim) for dim in dims.broadcast(node, [tuple(left[:-2]), tuple(right[:-2])])], dtype=np.int64)
    )
    batch = left[0] if len(left) > 2 else m
    if over_b == 1:
        groups, m = 1, over_a * m  # one weight for every row of every leading dimension
    elif not accounting.is_parameter(graph, node.inputs[second]):
        batch = 1
    if accounting.is_parameter(graph, node.inputs[first]) and not accounting.is_parameter(graph, node.inputs[second]):
        m, n, first, second = n, m, second, first
        batch = right[0] if len(right) > 2 and groups == over_b and over_a == 1 else 1
        if over_a == 1 and groups > 1:
            groups, m = 1, groups * m
    return _gemm(node, graph, groups, m, k, n, batch, first, second, main)


def _gemm(
    node: Node,
    graph: Graph,
    groups: int,
    m: int,
    k: int,
    n: int,
    batch: int,
    first: int,
    second: int,
    main: str | None = None,
) -> Work:
    batch = batch if batch and m % batch == 0 else 1
    return accounting.multiply(
        node,
        graph,
        kind="gemm",
        groups=groups,
        m=m,
        k=k,
        n=n,
        first=first,
        second=second,
        main=main,
        batch=batch,
        input_h=1,
        input_w=m // batch if batch else 0,
        input_c=k,
        output_h=1,
        output_w=m // batch if batch else 0,
        output_c=n,
    )


@register
class MatMul(Op):
    """``a @ b`` by NumPy's rules."""

    names = ("MatMul",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        a, b, *_ = operands(node, inputs, 2, 3 if node.body else 2)  # a group may hold its bias
        return [(dims.same_types(node, [a, b]), *product_shape(node, a, b))]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, b = inputs
        assert a is not None and b is not None
        return [arithmetic.matmul(a, b)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return product_work(node, graph)


@register
class Gemm(Op):
    """``alpha * a' @ b' + beta * c``; a' and b' are transposed where transA and transB say so."""

    names = ("Gemm",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = operands(node, [tensor for tensor in inputs if tensor is not None], 2, 3)
        a, b = given[0], given[1]
        dtype = dims.same_types(node, given)
        if not dims.rank_known(a, b):
            return [(dtype, (), False)]
        if len(a.shape) != 2 or len(b.shape) != 2:
            raise dims.fault(node, f"Gemm multiplies matrices, not {list(a.shape)} and {list(b.shape)}")
        m, k = a.shape[::-1] if node.attributes.get("transA") else a.shape
        other, n = b.shape[::-1] if node.attributes.get("transB") else b.shape
        _inner(node, k, other, a, b)
        if len(given) > 2 and given[2].known_shape:
            whole = dims.broadcast(node, [(m, n), given[2].shape])
            if len(whole) > 2 or any(
                isinstance(x, int) and isinstance(y, int) and x != y for x, y in zip(whole, (m, n), strict=True)
            ):
                raise dims.fault(node, f"the addend {list(given[2].shape)} does not broadcast to {[m, n]}")
        return [(dtype, (m, n), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, b = inputs[0], inputs[1]
        assert a is not None and b is not None
        get, dtype, c = node.attributes.get, a.dtype, inputs[2] if len(inputs) > 2 else None
        if a.dtype == np.float16 or a.dtype.name == "bfloat16":  # one rounding, at the end
            a, b, c = a.astype(np.float32), b.astype(np.float32), None if c is None else c.astype(np.float32)
        result = arithmetic.matmul(a.T if get("transA") else a, b.T if get("transB") else b)
        result = _scaled(result, get("alpha", 1.0))
        if c is not None:
            result = result + _scaled(c, get("beta", 1.0))
        return [result.astype(dtype, copy=False)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        a, b = graph.tensors[node.inputs[0]], graph.tensors[node.inputs[1]]
        _ = a.elements, b.elements
        m, k = a.shape[::-1] if node.attributes.get("transA") else a.shape
        n = b.shape[0] if node.attributes.get("transB") else b.shape[1]
        return _gemm(node, graph, 1, int(m), int(k), int(n), int(m), 0, 1)


def _scaled(x: Array, factor: Any) -> Array:
    return x if factor == 1.0 else (x * np.asarray(factor, np.float32).astype(x.dtype)).astype(x.dtype)
