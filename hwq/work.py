"""Work: one op's loop nest and bytes, and columns of it for the machine families."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error

__all__ = ["Kind", "Work", "columns"]

# Exact in float64, which closed forms compute in; times 32 bits an element it is still far inside int64.
_LARGEST = 2**53

Kind = Literal["gemm", "depthwise", "vector", "move", "none"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one op (or fused group) asks of a machine, once, at the batch of its shapes.

    The arithmetic is `groups` independent matrix products of `m` x `k` by `k` x `n`; ``macs = groups * m * k * n``
    (MACs, never doubled). A convolution is its im2col view per group: m = batch * output positions,
    k = kernel positions * input channels of the group, n = output channels of the group. Depthwise: groups = channels,
    n = multiplier. A batched product: groups = product of the leading dimensions.

    Elements count each tensor once, as it lies in memory (the im2col copies are not memory). Bits are those of the plan.

    Attributes
    ----------
    name, op : str
        Node and operator. `fused` lists the operators of the group's body that are done on the fly.
    kind : {"gemm", "depthwise", "vector", "move", "none"}
        vector: elementwise or reduction work without MACs; move: data only changes place; none: a view, costs nothing.
    precision : str
        Arithmetic type: a key of a machine file's ``[precisions]``, such as ``int8``, ``int4``, ``float16``, ``float32``.
        Integer weights under float activations keep the activations' type (weight-only).
    batch, input_h, input_w, input_c, output_h, output_w, output_c, kernel_h, kernel_w, stride_h, stride_w : int
        Geometry of spatial ops; a GEMM is 1 x m positions (output_h = 1, output_w = m / batch) with 1 x 1 kernels.
    groups, m, k, n, macs : int
        The products.
    vector_operations : int
        Scalar operations outside the MACs and the epilogue (comparisons of a pool, additions of an add, ...).
    epilogue_operations : int
        Scalar operations on accumulators on their way out (bias, requantize, activation, residual add).
    zero_point_operations : int
        Additions that correct for zero points (row and column sums).
    lookups, table_bytes : int
        Table reads and the table's size.
    input_elements, weight_elements, other_elements, output_elements : int
        First operand, second operand of the products, further activations (a residual), results.
    input_bits, weight_bits, other_bits, output_bits, accumulator_bits : int
        Width of one element.
    weight_is_activation : bool
        The second operand is computed too (attention), so it is no parameter.
    bias_bytes, scale_bytes : int
        Bytes of bias, and of scales and zero points, read once.
    """

    name: str
    op: str
    kind: Kind
    precision: str
    fused: tuple[str, ...] = ()
    batch: int = 1
    input_h: int = 1
    input_w: int = 1
    input_c: int = 1
    output_h: int = 1
    output_w: int = 1
    output_c: int = 1
    kernel_h: int = 1
    kernel_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    groups: int = 1
    m: int = 0
    k: int = 0
    n: int = 0
    macs: int = 0
    vector_operations: int = 0
    epilogue_operations: int = 0
    zero_point_operations: int = 0
    lookups: int = 0
    table_bytes: int = 0
    input_elements: int = 0
    weight_elements: int = 0
    other_elements: int = 0
    output_elements: int = 0
    input_bits: int = 32
    weight_bits: int = 32
    other_bits: int = 32
    output_bits: int = 32
    accumulator_bits: int = 32
    weight_is_activation: bool = False
    bias_bytes: int = 0
    scale_bytes: int = 0

    @property
    def input_bytes(self) -> int:
        """Bytes of the first operand, packed, rounded up."""
        return _bytes(self.input_elements, self.input_bits)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the second operand, packed, rounded up."""
        return _bytes(self.weight_elements, self.weight_bits)

    @property
    def other_bytes(self) -> int:
        """Bytes of further activations, packed, rounded up."""
        return _bytes(self.other_elements, self.other_bits)

    @property
    def output_bytes(self) -> int:
        """Bytes of the results, packed, rounded up."""
        return _bytes(self.output_elements, self.output_bits)


def _bytes(elements: int, bits: int) -> int:
    return (elements * bits + 7) // 8


def columns(works: Sequence[Work]) -> dict[str, NDArray[Any]]:
    """Turn works into one array a field (int64 for numbers, bool, or object for text), plus the four ``*_bytes``.

    The machine families compute on these columns, so that a sweep over configurations is one broadcast.
    """
    table: dict[str, NDArray[Any]] = {}
    for field in dataclasses.fields(Work):
        values = [getattr(work, field.name) for work in works]
        if field.type == "int":
            table[field.name] = _int64(values, field.name, works)
        elif field.type == "bool":
            table[field.name] = np.array(values, np.bool_)
        else:
            column = np.empty(len(values), object)
            column[:] = values
            table[field.name] = column
    for name in ("input_bytes", "weight_bytes", "other_bytes", "output_bytes"):
        table[name] = _int64([getattr(work, name) for work in works], name, works)
    return table


def _int64(values: Sequence[int], name: str, works: Sequence[Work]) -> NDArray[np.int64]:
    """Bounded so that a family may add a few such numbers, or multiply one by an operand's bits, within int64."""
    for value, work in zip(values, works, strict=True):
        if not -_LARGEST <= value <= _LARGEST:
            raise Error(
                f"the layer is too large to estimate: {name} is {value:.3g}",
                where=f"layer {work.name} ({work.op})",
                why=f"numbers above {_LARGEST:.3g} are not computed exactly",
                remedy="smaller input dimensions or batch",
            )
    return np.array(values, np.int64)
