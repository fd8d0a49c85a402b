"""Elementwise operators: one value out for each value (or pair) in, with broadcast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops import accounting, dims, functions
from hwq.ops.base import Inferred, Op, register
from hwq.work import Work

__all__ = ["Elementwise"]

_FLOAT = ("float", "bfloat")


class Elementwise(Op):
    """Broadcasts its operands; the output has their type."""

    count: ClassVar[tuple[int, int]] = (1, 1)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = operands(node, inputs, *self.count)
        dtype = self.result_type(node, given)
        if not dims.rank_known(*given):
            return [(dtype, (), False)]
        return [(dtype, dims.broadcast(node, [tensor.shape for tensor in given]), True)]

    def result_type(self, node: Node, given: Sequence[Tensor]) -> str:
        """The output's element type."""
        return dims.same_types(node, given)

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


def operands(node: Node, inputs: Sequence[Tensor | None], least: int, most: int) -> list[Tensor]:
    """The operands, all present and between `least` and `most` in number.

    Raises
    ------
    Error
        Too few, too many, or one is absent.
    """
    if not least <= len(inputs) <= most or any(tensor is None for tensor in inputs):
        needed = str(least) if least == most else f"{least} to {most}"
        raise dims.fault(
            node, f"the operator needs {needed} inputs and has {sum(tensor is not None for tensor in inputs)}"
        )
    return [tensor for tensor in inputs if tensor is not None]


def require_float(node: Node, tensor: Tensor) -> None:
    """Raise unless the operand is a floating-point tensor."""
    if not tensor.dtype.startswith(_FLOAT):
        raise dims.fault(node, f"the operator needs a floating-point input, not {tensor.dtype}")


@register
class Function(Elementwise):
    """A nonlinear function of one operand, in float64 and rounded once."""

    names = tuple(functions.ELEMENTWISE)

    def result_type(self, node: Node, given: Sequence[Tensor]) -> str:
        """See `Elementwise.result_type`."""
        require_float(node, given[0])
        return given[0].dtype

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        return [functions.in_float64(functions.ELEMENTWISE[node.op], x)]


# One IEEE operation, or none, in the operand's own type: no rounding question arises.
_UNARY: dict[str, Callable[[Any], Any]] = {
    "Sqrt": np.sqrt, "Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Round": np.rint, "Sign": np.sign,
    "Reciprocal": lambda x: (np.ones((), x.dtype) / x).astype(x.dtype), "Relu": lambda x: np.maximum(x, np.zeros((), x.dtype)),
}  # fmt: skip


@register
class Unary(Elementwise):
    """One exact operation of one operand."""

    names = tuple(_UNARY)

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        return [np.asarray(_UNARY[node.op](x)).astype(x.dtype, copy=False)]


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not np.all(b):
        raise ValueError("integer division by zero")
    quotient = np.floor_divide(a, b)  # ONNX truncates toward zero, NumPy floors
    return np.asarray(quotient + ((np.remainder(a, b) != 0) & ((a < 0) != (b < 0)))).astype(a.dtype)


def _power(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu" and b.dtype.kind in "iu" and (b.dtype.kind == "u" or not np.any(b < 0)):
        return np.asarray(np.power(a.astype(np.int64), b.astype(np.int64)))
    return np.asarray(np.power(a.astype(np.float64), b.astype(np.float64)))


def _shift(node: Node, a: Array, b: Array) -> Any:
    direction = node.attributes.get("direction")
    if direction not in {"LEFT", "RIGHT"}:
        raise dims.fault(node, f"direction must be LEFT or RIGHT, not {direction!r}")
    return (np.left_shift if direction == "LEFT" else np.right_shift)(a, b)


def _modulo(node: Node, a: Array, b: Array) -> Any:
    if a.dtype.kind in "iu" and not np.all(b):
        raise ValueError("integer division by zero")
    if node.attributes.get("fmod", 0):
        return np.fmod(a, b)
    return np.remainder(a, b)


_BINARY: dict[str, Callable[[Array, Array], Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide,
    "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor,
}  # fmt: skip
# These read attributes.
_STATED: dict[str, Callable[[Node, Array, Array], Any]] = {"Mod": _modulo, "BitShift": _shift}


@register
class Binary(Elementwise):
    """Arithmetic of two operands of one type; integers wrap, integer division truncates toward zero."""

    names = (*_BINARY, *_STATED)
    count = (2, 2)

    def result_type(self, node: Node, given: Sequence[Tensor]) -> str:
        """See `Elementwise.result_type`."""
        dtype = dims.same_types(node, given)
        if dtype in {"bool", "string"}:
            raise dims.fault(node, f"the operator does not compute on {dtype}")
        return dtype

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, b = inputs
        assert a is not None and b is not None
        made = _STATED[node.op](node, a, b) if node.op in _STATED else _BINARY[node.op](a, b)
        return [np.asarray(made).astype(a.dtype, copy=False)]


@register
class Pow(Elementwise):
    """``a ** b`` in the type of `a`; `b` may have another type. In float64, rounded once."""

    names = ("Pow",)
    count = (2, 2)

    def result_type(self, node: Node, given: Sequence[Tensor]) -> str:
        """See `Elementwise.result_type`."""
        return given[0].dtype

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, b = inputs
        assert a is not None and b is not None
        return [_power(a, b).astype(a.dtype)]


_MANY: dict[str, Callable[[Array, Array], Any]] = {
    "Min": np.minimum, "Max": np.maximum, "Sum": np.add, "Mean": np.add,
}  # fmt: skip


@register
class Many(Elementwise):
    """Minimum, maximum (a NaN wins), sum or mean of any number of operands."""

    names = tuple(_MANY)
    count = (1, 1 << 20)

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        first = inputs[0]
        assert first is not None
        result = first
        for other in inputs[1:]:
            assert other is not None
            result = np.asarray(_MANY[node.op](result, other))
        if node.op == "Mean":
            result = np.asarray(result * (np.ones((), result.dtype) / np.asarray(len(inputs), result.dtype)))
        return [result.astype(first.dtype, copy=False)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(
            node, graph, operations=max(len(node.inputs) - 1, 0) * graph.tensors[node.outputs[0]].elements
        )


_COMPARISONS: dict[str, Callable[[Array, Array], Any]] = {
    "Equal": np.equal, "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less, "LessOrEqual": np.less_equal,
    "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
}  # fmt: skip


@register
class Comparison(Elementwise):
    """Two operands to bool."""

    names = tuple(_COMPARISONS)
    count = (2, 2)

    def result_type(self, node: Node, given: Sequence[Tensor]) -> str:
        """See `Elementwise.result_type`."""
        dims.same_types(node, given)
        return "bool"

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, b = inputs
        assert a is not None and b is not None
        return [np.asarray(_COMPARISONS[node.op](a, b)).astype(np.bool_)]


@register
class Not(Elementwise):
    """Negation, logical or of every bit."""

    names = ("Not", "BitwiseNot")

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        return [np.logical_not(x) if node.op == "Not" else np.invert(x)]


@register
class Finite(Elementwise):
    """Whether a float is NaN, or infinite with a sign that the attributes let count."""

    names = ("IsNaN", "IsInf")

    def result_type(self, node: Node, given: Sequence[Tensor]) -> str:
        """See `Elementwise.result_type`."""
        require_float(node, given[0])
        return "bool"

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        if node.op == "IsNaN":
            return [np.isnan(x)]
        counted = [
            float(sign)
            for sign, key in ((np.inf, "detect_positive"), (-np.inf, "detect_negative"))
            if node.attributes.get(key, 1)
        ]
        return [np.isin(x.astype(np.float32), counted)]


@register
class Where(Elementwise):
    """``condition ? a : b``."""

    names = ("Where",)
    count = (3, 3)

    def result_type(self, node: Node, given: Sequence[Tensor]) -> str:
        """See `Elementwise.result_type`."""
        if given[0].dtype != "bool":
            raise dims.fault(node, f"the condition must be bool, not {given[0].dtype}")
        return dims.same_types(node, given[1:])

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        condition, a, b = inputs
        assert condition is not None and a is not None and b is not None
        return [np.where(condition, a, b).astype(a.dtype, copy=False)]
