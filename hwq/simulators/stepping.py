"""The stepped array: a product of real integers computed as the hardware would, cycle by cycle, and what that took.

The engine is ``simulators/src/systolic.c``; the assumptions about the hardware stand at its top. Cycles and port words
equal `hwq.simulators.dataflow.evaluate` exactly, which is what lets the closed forms stand for machines too large to
step. Operands are what the array's wires carry: 8-bit values, INT4 pairs (``pack=2``), or the bytes of 16-bit values at
half rate, whose sums meet behind the array as ``low + 256 high``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.simulators.dataflow import DATAFLOWS, OVERLAPS, evaluate

__all__ = ["Array", "Step", "parse_array", "step"]

# Registers, edges and tiles of one array; 4096 x 4096 PEs take 0.6 GB.
MAX_BYTES = 2 << 30
# PE-cycles between two looks at the keyboard: about 0.1 s.
_PE_CYCLES = 1 << 29
_BINS = 200  # columns of an occupancy picture over time

Integers = NDArray[Any]


@dataclass(frozen=True)
class Array:
    """An R x C array of processing elements, its dataflow, and what overlaps between folds (see `dataflow`)."""

    rows: int
    cols: int
    dataflow: str = "ws"
    overlap: str = "folds"

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= 4096 and 1 <= self.cols <= 4096):
            raise Error(f"an array of {self.rows} x {self.cols}", why="each side is 1 to 4096")
        if self.dataflow not in DATAFLOWS:
            raise Error(f"unknown dataflow {self.dataflow!r}", remedy=f"use one of {', '.join(DATAFLOWS)}")
        if self.overlap not in OVERLAPS:
            raise Error(f"unknown overlap {self.overlap!r}", remedy=f"use one of {', '.join(OVERLAPS)}")

    def __str__(self) -> str:
        return f"systolic:{self.rows}x{self.cols}:{self.dataflow}:{self.overlap}"


def parse_array(text: str) -> Array:
    """Read ``systolic:32x32[:ws[:folds]]``.

    Raises
    ------
    Error
        Another form, an unknown dataflow or overlap, a size out of range.
    """
    head, *rest = text.split(":")
    sides = rest[0].lower().split("x") if rest else []
    if head != "systolic" or len(rest) > 3 or len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise Error(
            f"{text!r} names no stepped array", remedy="write systolic:ROWSxCOLS[:ws|os|is[:folds|stationary|none]]"
        )
    if any(len(side) > 9 for side in sides):
        raise Error(f"{text!r} is too large", why="each side is 1 to 4096")
    return Array(int(sides[0]), int(sides[1]), *rest[1:])


@dataclass(frozen=True, eq=False)
class Step:
    """A product and what the array did for it.

    Attributes
    ----------
    array : Array
    m, k, n, pack, passes : int
        GEMM shape, MACs per PE and cycle, bytes of A times bytes of B.
    out : int32 array (m, n)
    folds, cycles, load, fill, stream, drain : int
        As in `dataflow.Costs`, counted.
    multiplications : int
        m k n times `passes`: each happened once.
    a_reads, b_reads, sum_reads, sum_writes : int
        Words through the ports.
    occupancy : int64 array (rows, cols) or None
        Cycles in which each PE multiplied.
    timeline : float64 array (rows, spans) or None
        Share of each row's PEs that multiplied, over equal spans of time.
    bin_cycles : int
        Cycles per span (the last may be shorter).
    """

    array: Array
    m: int
    k: int
    n: int
    pack: int
    passes: int
    out: NDArray[np.int32]
    folds: int
    cycles: int
    load: int
    fill: int
    stream: int
    drain: int
    multiplications: int
    a_reads: int
    b_reads: int
    sum_reads: int
    sum_writes: int
    occupancy: NDArray[np.int64] | None
    timeline: NDArray[np.float64] | None
    bin_cycles: int

    @property
    def macs(self) -> int:
        """m k n, whatever the operands' width."""
        return self.m * self.k * self.n

    @property
    def utilization(self) -> float:
        """Multiplications over PE slots, 0 to 1."""
        return self.multiplications / (self.array.rows * self.array.cols * self.pack * self.cycles)

    def to_dict(self) -> dict[str, Any]:
        """Numbers only, for tables and JSON."""
        names = ("m", "k", "n", "pack", "passes", "folds", "cycles", "load", "fill", "stream", "drain", "macs",
                 "multiplications", "utilization", "a_reads", "b_reads", "sum_reads", "sum_writes")  # fmt: skip
        return {"array": str(self.array), **{name: getattr(self, name) for name in names}}


def step(
    array: Array,
    a: Integers,
    b: Integers,
    *,
    pack: int = 1,
    pictures: bool = False,
    bins: int = _BINS,
    reference: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Step:
    """Multiply ``a @ b`` on the array, modulo 2^32, and count.

    Parameters
    ----------
    array : Array
    a : uint8, int8 or int16 array (M, K)
        INT4 values lie one to a byte. int16 runs at half rate, as two rows of bytes.
    b : uint8, int8 or int16 array (K, N)
    pack : {1, 2}
        2: two products along K per PE and cycle; one operand must then be 4 bits wide (-8 to 15).
    pictures : bool
        Also count busy cycles per PE (`Step.occupancy`) and over time (`Step.timeline`).
    bins : int
        Spans of the timeline, at most.
    reference : bool
        Move every register of every PE on its own: about a hundred times slower, same answers.
    max_bytes : int
        Bound on the engine's own memory.

    Returns
    -------
    Step

    Raises
    ------
    Error
        Operands that are no matrices of these types, shapes that do not fit, values too wide, or too large an array.
    """
    from hwq._simulators import Systolic

    a, a_passes = _bytes(a, "a", 0)
    b, b_passes = _bytes(b, "b", 1)
    m, k, n = a.shape[0] // a_passes, a.shape[1], b.shape[1] // b_passes
    if k != b.shape[0]:
        raise Error(f"a is {m} x {k}, b is {b.shape[0]} x {n}", why="a's columns meet b's rows")
    if 0 in (m, k, n):
        raise Error(f"an empty product of {m} x {k} by {k} x {n}", why="an array has nothing to do for it")
    if pack not in (1, 2):
        raise Error(f"pack {pack}", remedy="use 1, or 2 for INT4")
    if pack == 2 and not (_is_narrow(a) or _is_narrow(b)):
        raise Error("no operand is 4 bits wide", why="two products share a PE only if one factor has 4 bits (-8 to 15)")
    costs = evaluate(m, k, n, array.rows, array.cols, array.dataflow, overlap=array.overlap, pack=pack,
                     a_passes=a_passes, b_passes=b_passes)  # fmt: skip
    bin_cycles = max(1, -(-int(costs.cycles) // max(1, bins)))
    occupancy = np.zeros((array.rows, array.cols), np.int64) if pictures else None
    busy = np.zeros((array.rows, -(-int(costs.cycles) // bin_cycles)), np.int64) if pictures else None
    out = np.empty((a.shape[0], b.shape[1]), np.int32)
    try:
        run = Systolic((array.rows, array.cols), array.dataflow, array.overlap, pack, reference, a, b, out,
                       occupancy, busy, bin_cycles, max_bytes)  # fmt: skip
        budget = max(1, _PE_CYCLES // (array.rows * array.cols) // (100 if reference else 1))
        while not run.advance(budget):
            pass
    except (ValueError, OverflowError, MemoryError) as error:
        raise Error("this product cannot be stepped", where=str(array), why=str(error)) from error
    counts = run.read()
    return Step(
        array=array, m=m, k=k, n=n, pack=pack, passes=a_passes * b_passes,
        out=_combine(_combine(out, a_passes, 0), b_passes, 1), multiplications=counts.pop("macs"), **counts,
        occupancy=occupancy, timeline=None if busy is None else _shares(busy, int(costs.cycles), bin_cycles, array),
        bin_cycles=bin_cycles,
    )  # fmt: skip


def _bytes(operand: Integers, name: str, axis: int) -> tuple[Integers, int]:
    """The operand as the ports carry it: 16-bit values become a low (unsigned) and a high (signed) line of bytes."""
    given = np.asarray(operand)
    if given.ndim != 2 or given.dtype not in (np.uint8, np.int8, np.int16):
        raise Error(f"{name} is {given.dtype} of {given.ndim} dimensions", remedy="give a uint8, int8 or int16 matrix")
    if given.dtype != np.int16:
        return given, 1
    return np.stack([given & 255, given >> 8], axis + 1).reshape(
        [size * (2 if at == axis else 1) for at, size in enumerate(given.shape)]
    ), 2


def _combine(sums: NDArray[np.int32], passes: int, axis: int) -> NDArray[np.int32]:
    if passes == 1:
        return sums
    low, high = (sums[at::2] if axis == 0 else sums[:, at::2] for at in (0, 1))
    return low + (high << np.int32(8))


def _is_narrow(operand: Integers) -> bool:
    return bool(operand.min() >= -8 and operand.max() <= 15)


def _shares(busy: NDArray[np.int64], cycles: int, bin_cycles: int, array: Array) -> NDArray[np.float64]:
    spans = np.full(busy.shape[1], bin_cycles, np.int64)
    spans[-1] = cycles - bin_cycles * (spans.size - 1)
    return busy / (spans * array.cols)
