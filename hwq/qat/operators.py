"""Differentiable torch forms of ONNX operators: gradients of what runs between the integer groups, and float teachers.

A form need not have the program's bits, which come from the program's own steps; it has the gradient. One family a file;
`compute` loads them all.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hwq.errors import NotSupportedYet
from hwq.graph import Node
from hwq.ops.application import evaluate_node

__all__ = ["MOVERS", "Operand", "as_tensor", "behind", "chain", "compute", "form", "integers", "operand"]

Operand = Any  # a torch tensor, an array (a constant or a value that is no float), or None
Operator = Callable[[Node, Sequence[Operand]], Any]
TABLE: dict[str, Operator] = {}
FAMILIES = ("pointwise", "windows", "movement", "normalization", "recurrent")

# Operators that only move or choose stored values: they may be applied to integers as they are.
MOVERS = frozenset(
    {
        "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Slice", "Gather", "Tile", "Expand",
        "Split", "MaxPool", "ReduceMax", "ReduceMin", "Dropout",
    }
)  # fmt: skip
# No gradient passes through these: comparisons, counts, places, and functions that are constant almost everywhere.
STEPS = frozenset(
    {
        "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "ConstantOfShape",
        "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "Less", "LessOrEqual",
        "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "Range", "Round", "Shape", "Sign", "Size", "Xor",
    }
)  # fmt: skip


def compute(node: Node, operands: Sequence[Operand]) -> tuple[Any, ...]:
    """The node's outputs: tensors where they are floats, else arrays.

    Raises
    ------
    NotSupportedYet
        There is no differentiable form of the operator.
    """
    _load()
    known = node.domain in {"", "com.microsoft", "hwq"}
    if known and node.op in STEPS:
        return tuple(_held(value) for value in evaluate_node(node, [_array(one) for one in operands]))
    operator = TABLE.get(node.op) if known else None
    if operator is None or node.layout == "NHWC":
        raise NotSupportedYet(
            f"training through {node.kind}",
            where=f"node {node.name}",
            remedy="leave this part out of the module that is trained",
        )
    made = operator(node, operands)
    return made if isinstance(made, tuple) else (made,)


@functools.cache
def _load() -> None:
    for family in FAMILIES:
        importlib.import_module(f"hwq.qat.{family}")


def chain(node: Node, x: Any, constant: Callable[[str], Any]) -> Any:
    """The function that a table holds, of real values; `constant` gives the numbers in it."""
    values: dict[str, Any] = {str(node.attributes["source"]): x}
    for part in node.body:
        if part.op not in {"DequantizeLinear", "QuantizeLinear"}:
            given = [values.get(name, constant(name)) if name else None for name in part.inputs]
            values[part.outputs[0]] = compute(part, given)[0]
    return values[str(node.attributes["result"])]


def behind(node: Node, x: Any, constant: Callable[[str], Any]) -> Any:
    """What the Relu or Clip that a group swallowed behind its operator leaves of a real value."""
    for part in node.body if node.op not in {"Relu", "Clip"} else ():
        if part.op in {"Relu", "Clip"}:
            x = compute(part, [x, *[constant(name) if name else None for name in part.inputs[1:]]])[0]
    return x


def form(*names: str) -> Callable[[Operator], Operator]:
    """Decorator: the function is the differentiable form of these operators."""

    def note(function: Operator) -> Operator:
        for name in names:
            TABLE[name] = function
        return function

    return note


def as_tensor(value: Operand) -> Any:
    """An array as a tensor; tensors and None as they are."""
    return torch.from_numpy(np.array(value, order="C")) if isinstance(value, np.ndarray) else value


def integers(value: Operand) -> list[int]:
    """Numbers that an operator reads, as Python's."""
    return [int(one) for one in np.asarray(value).reshape(-1)]


def operand(operands: Sequence[Operand], index: int) -> Operand:
    """An operand, None where it is absent."""
    return operands[index] if index < len(operands) else None


def _array(value: Operand) -> Any:
    return value.detach().numpy() if isinstance(value, torch.Tensor) else value


def _held(value: Any) -> Any:
    return torch.from_numpy(np.array(value)) if value.dtype.kind == "f" else value
