"""The functions of `hwq.ops.unary` that are rational, in fractions: whether a value lies on a tie has no other certain answer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from hwq.graph import Node

__all__ = ["Irrational", "bounds_of", "evaluate_rational", "number"]


def number(node: Node, name: str, default: float) -> Decimal:
    """An attribute: float32 in ONNX, its default too."""
    return Decimal(float(np.float32(node.attributes.get(name, default))))


class Irrational(Exception):
    """The chain leaves the rational numbers."""


def _root(x: Fraction) -> Fraction:
    roots = [math.isqrt(part) if part >= 0 else 0 for part in (x.numerator, x.denominator)]
    if roots[0] ** 2 != x.numerator or roots[1] ** 2 != x.denominator:
        raise Irrational
    return Fraction(*roots)


def _power(x: Fraction, y: Fraction) -> Fraction:
    if y.denominator != 1 or abs(y) > 64:
        raise Irrational
    return Fraction(x) ** int(y)


def _above(x: Fraction, slope: Decimal | int) -> Fraction:
    if x < 0:
        raise Irrational
    return x * Fraction(slope)


# The same functions of fractions, where they are rational.
RATIONAL: Mapping[str, Callable[[Fraction, Node], Fraction]] = {
    "Identity": lambda x, node: x,
    "Neg": lambda x, node: -x,
    "Abs": lambda x, node: abs(x),
    "Sqrt": lambda x, node: _root(x),
    "Reciprocal": lambda x, node: 1 / x,
    "Softsign": lambda x, node: x / (1 + abs(x)),
    "Relu": lambda x, node: max(x, Fraction(0)),
    "LeakyRelu": lambda x, node: x if x >= 0 else x * Fraction(number(node, "alpha", 0.01)),
    "ThresholdedRelu": lambda x, node: x if x > Fraction(number(node, "alpha", 1.0)) else Fraction(0),
    "Elu": lambda x, node: _above(x, 1),
    "Celu": lambda x, node: _above(x, 1),
    "Selu": lambda x, node: _above(x, number(node, "gamma", 1.05070102214813232421875)),
    "HardSigmoid": lambda x, node: min(
        max(Fraction(number(node, "alpha", 0.2)) * x + Fraction(number(node, "beta", 0.5)), Fraction(0)), Fraction(1)
    ),
    "HardSwish": lambda x, node: x * min(max(x + 3, Fraction(0)), Fraction(6)) / 6,
}
RATIONAL_BINARY: Mapping[str, Callable[[Fraction, Fraction], Fraction]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv, "Min": min, "Max": max, "Pow": _power,
}  # fmt: skip


def evaluate_rational(node: Node, operands: Sequence[Any]) -> Fraction:
    """The node's value of fractions.

    Raises
    ------
    Irrational
        It is none, or has none (a division by zero, a bound that is infinite).
    """
    try:
        given: list[Any] = [one if one is None else Fraction(one) for one in operands]
        if node.kind == "Clip":
            low, high = bounds_of(node, given)
            first: Fraction = given[0] if low is None else max(given[0], Fraction(low))
            return first if high is None else min(first, Fraction(high))
        if node.kind in RATIONAL:
            return RATIONAL[node.kind](given[0], node)
        return RATIONAL_BINARY[node.kind](*given)
    except (KeyError, TypeError, ValueError, ArithmeticError):  # Fraction refuses infinities and NaN
        raise Irrational from None


def bounds_of(node: Node, operands: Sequence[Any]) -> list[Any]:
    """The lower and the upper bound of a Clip, None where there is none."""
    return [
        given if given is not None else number(node, name, 0.0) if name in node.attributes else None
        for given, name in zip([*operands[1:], None, None], ("min", "max"), strict=False)
    ]
