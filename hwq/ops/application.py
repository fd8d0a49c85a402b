"""One operator applied to arrays, with every failure told as an `Error` about its node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node
from hwq.ops import dims
from hwq.ops.base import lookup

__all__ = ["FAILURES", "evaluate_node"]

# What Python and NumPy raise where operands do not fit an operator.
FAILURES = (
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    ZeroDivisionError,
    AttributeError,
    AssertionError,
    MemoryError,
)


def evaluate_node(node: Node, operands: Sequence[Array | None], graph: Graph | None = None) -> list[Array]:
    """`Op.apply` in its graph, or `Op.evaluate` without one, with every failure told as an `Error` about the node.

    Overflow, division by zero and invalid operations give IEEE's infinities and NaN silently, as every runtime does.
    """
    op = lookup(node)
    try:
        with np.errstate(all="ignore"):
            return [
                np.asarray(value)
                for value in (op.evaluate(node, operands) if graph is None else op.apply(node, operands, graph))
            ]
    except Error:
        raise
    except FAILURES as error:
        raise dims.fault(node, "it cannot be computed on these operands", f"{type(error).__name__}: {error}") from error
