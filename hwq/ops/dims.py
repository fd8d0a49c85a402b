"""Arithmetic on dimensions that may be open: a symbol such as the batch ``N`` passes through as text.

Two equal texts always stand for equal numbers; nothing else is concluded from a symbol.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Dim, Node, Shape, Tensor

__all__ = ["axes_of", "axis_of", "broadcast", "fault", "integers", "ints_attribute", "offset", "product", "quotient", "rank_known",
           "same_types", "text", "total", "window"]  # fmt: skip

# A longer expression is replaced by a digest of itself, so that texts stay printable and still compare equal.
LIMIT = 80
_FACTOR = re.compile(r"\w+|\([^()]*\)")


def fault(node: Node, what: str, why: str | None = None, remedy: str | None = None) -> Error:
    """An `Error` about a node."""
    return Error(what, where=f"node {node.name} ({node.kind})", why=why, remedy=remedy)


def rank_known(*tensors: Tensor | None) -> bool:
    """Whether every given tensor's shape was stated or inferred."""
    return all(tensor is None or tensor.known_shape for tensor in tensors)


def axis_of(node: Node, axis: int, rank: int) -> int:
    """`axis` counted from the front.

    Raises
    ------
    Error
        It is outside [-rank, rank).
    """
    if not -rank <= axis < rank:
        raise fault(
            node, f"axis {axis} does not exist in a tensor of rank {rank}", f"it must be in [{-rank}, {rank - 1}]"
        )
    return axis % rank if rank else 0


def axes_of(node: Node, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, each once.

    Raises
    ------
    Error
        One is out of range, or named twice.
    """
    if len(axes) > rank:
        raise fault(node, f"{len(axes)} axes are named in a tensor of rank {rank}")
    found = tuple(axis_of(node, int(axis), rank) for axis in axes)
    if len(set(found)) != len(found):
        raise fault(node, f"the axes {list(found)} name one axis twice")
    return found


def integers(node: Node, tensor: Tensor | None, what: str) -> tuple[int, ...] | None:
    """The value of a constant integer operand, or None where it is only known at run time (or absent).

    Raises
    ------
    Error
        It is no integer vector, or longer than any shape may be.
    """
    if tensor is None or tensor.data is None:
        return None
    if tensor.data.dtype.kind not in "iuO" or tensor.data.ndim > 1:
        raise fault(node, f"{what} must be a vector of integers", f"it is {tensor.dtype}{list(tensor.data.shape)}")
    if tensor.data.size > 4096:
        raise fault(node, f"{what} has {tensor.data.size} elements", "no shape has so many dimensions")
    if tensor.data.dtype == object and any(not isinstance(value, int) for value in tensor.data.ravel()):
        return None  # partly symbolic; see hwq.ops.inference
    return tuple(int(value) for value in tensor.data.ravel())


def text(expression: str) -> str:
    """`expression` as a symbol, shortened to a digest where it is long."""
    return expression if len(expression) <= LIMIT else f"d{hashlib.sha256(expression.encode()).hexdigest()[:12]}"


def _factors(dims: Sequence[Dim]) -> tuple[int, Counter[str]]:
    number = 1
    symbols: Counter[str] = Counter()
    for dim in dims:
        if isinstance(dim, int):
            number *= dim
            continue
        parts = dim.split("*")
        if not all(_FACTOR.fullmatch(part) for part in parts):
            symbols[dim if _FACTOR.fullmatch(dim) else f"({dim})"] += 1
            continue
        for part in parts:
            if part.isdigit():
                number *= int(part)
            else:
                symbols[part] += 1
    return number, symbols


def _joined(number: int, symbols: Counter[str]) -> Dim:
    names = sorted(symbols.elements())
    if not names or number == 0:
        return number
    if number == 1 and len(names) == 1:
        only = names[0]
        return only[1:-1] if only.startswith("(") else only
    return text("*".join(([str(number)] if number != 1 else []) + names))


def product(dims: Sequence[Dim]) -> Dim:
    """The product of dimensions (1 for none)."""
    return _joined(*_factors(dims))


def quotient(total: Sequence[Dim], parts: Sequence[Dim]) -> Dim | None:
    """``product(total) / product(parts)`` where it is certain, else None (also when it does not divide)."""
    number, symbols = _factors(total)
    divisor, others = _factors(parts)
    if divisor == 0 or number % divisor or any(symbols[name] < count for name, count in others.items()):
        return None
    return _joined(number // divisor, symbols - others)


def offset(dim: Dim, amount: int) -> Dim:
    """``dim + amount``."""
    if isinstance(dim, int):
        return dim + amount
    return dim if amount == 0 else text(f"({dim}){amount:+d}")


def total(dims: Sequence[Dim]) -> Dim:
    """The sum of dimensions, as Concat needs it."""
    number = sum(dim for dim in dims if isinstance(dim, int))
    symbols = sorted(dim for dim in dims if isinstance(dim, str))
    if not symbols:
        return number
    if len(symbols) == 1 and number == 0:
        return symbols[0]
    return text("+".join([f"({symbol})" for symbol in symbols] + ([str(number)] if number else [])))


def window(dim: Dim, extent: int, stride: int, padding: int, ceil: bool = False) -> Dim:
    """Positions of a window of `extent` elements that moves by `stride` over ``dim + padding`` elements."""
    if isinstance(dim, int):
        free = dim + padding - extent
        return (-(-free // stride) if ceil else free // stride) + 1
    if stride == 1:
        return offset(dim, padding - extent + 1)
    rounding = "ceil" if ceil else "floor"
    return text(f"{rounding}(({dim}){padding - extent:+d},{stride})+1")


def broadcast(node: Node, shapes: Sequence[Shape]) -> Shape:
    """NumPy's broadcast of shapes. A symbol meets 1 and keeps its name; a symbol meets a number and yields to it.

    Raises
    ------
    Error
        Two numbers differ and neither is 1.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = []
    for position in range(rank):
        found: Dim = 1
        for shape in shapes:
            index = position - rank + len(shape)
            dim = shape[index] if index >= 0 else 1
            if dim == found or dim == 1:
                continue
            if found == 1 or (isinstance(found, str) and isinstance(dim, int)):
                found = dim
            elif isinstance(found, int) and isinstance(dim, int):
                raise fault(
                    node,
                    f"shapes {' and '.join(str(list(one)) for one in shapes)} do not broadcast",
                    f"in dimension {position - rank} {found} meets {dim}",
                    "one of them must be 1, or both equal",
                )
        result.append(found)
    return tuple(result)


def same_types(node: Node, tensors: Sequence[Tensor | None]) -> str:
    """The one element type of all operands.

    Raises
    ------
    Error
        They differ.
    """
    types = [tensor.dtype for tensor in tensors if tensor is not None]
    if any(dtype != types[0] for dtype in types):
        raise fault(
            node,
            f"its operands have different types: {', '.join(types)}",
            "ONNX has no implicit conversion",
            "insert a Cast",
        )
    return types[0]


def ints_attribute(
    node: Node, name: str, default: Sequence[int], count: int | None = None, least: int | None = None
) -> tuple[int, ...]:
    """An attribute that is a list of integers.

    Raises
    ------
    Error
        It has another type, another length than `count`, or a value below `least`.
    """
    value: Any = node.attributes.get(name, tuple(default))
    values = tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else (value,)
    if len(values) > 4096 or not all(isinstance(item, (int, np.integer)) for item in values):
        raise fault(node, f"attribute {name} must be a short list of integers")
    if count is not None and len(values) != count:
        raise fault(node, f"attribute {name} has {len(values)} values where {count} are needed")
    if least is not None and any(item < least for item in values):
        raise fault(node, f"attribute {name} = {list(values)} has a value below {least}")
    return tuple(int(item) for item in values)
