"""Closed forms of a systolic array: weight-, output- and input-stationary, on columns of GEMM shapes.

A GEMM ``A[M, K] @ B[K, N]`` runs on R x C processing elements (PEs), one MAC each per cycle. Cycles are counted, not
indexed: the first is cycle 0 and a layer that ends in cycle t took t + 1. A word that is produced in a cycle leaves in
that cycle; registered ports would add a constant to the whole layer. Unused rows and columns are clocked but their
ports make no request, so every fold lasts as long as a full one. The stepped engine (``simulators/src/systolic.c``)
is the second witness: its cycles and port counts equal these, exactly.

Mapping, with T the number of words streamed by one fold and F the number of folds:

============  ==============  ==============  ===  ============================  ==========================
dataflow      on the rows     on the columns  T    F                             stationary
============  ==============  ==============  ===  ============================  ==========================
``ws``        K               N               M    ceil(K/R) ceil(N/C)           B, R cycles to shift in
``is``        K               M               N    ceil(K/R) ceil(M/C)           A, R cycles to shift in
``os``        M               N               K    ceil(M/R) ceil(N/C)           the sums
============  ==============  ==============  ===  ============================  ==========================

One fold alone: ``ws`` and ``is`` take R (load) + R - 1 (fill: the first sum reaches the bottom edge) + T (one sum per
column and cycle) + C - 1 (drain: the skew of the last column). ``os`` takes T + R + C - 2: the far corner starts
R + C - 2 cycles after the near one (drain), and PE (r, c) puts its sum on the result bus of its column in the cycle of
its last MAC, K - 1 + r + c; no two rows of a column meet on that bus.

Overlap between folds:

``none``
    The next fold starts when the last word has left: F times the fold alone.
``stationary``
    A second stationary register per PE; the next tile shifts in behind the wavefront while the current one is used.
    PE (r, c) takes its new weight at start + r + c, so its second register is free from then and the whole column is
    filled R cycles later: never exposed here, since a fold lasts T + R + C - 2 >= R. Only the first load shows.
``folds``
    Also the streams follow one another without a gap, as in the TPU: a fold starts max(T, R) cycles after the one
    before it. R, because a tile needs R cycles to shift in (``ws``, ``is``), or because the result bus of a column
    takes one of its R sums per cycle (``os``).

Narrow and wide operands: ``pack`` pairs along K share a PE (INT4: 2), so the array sees ceil(K / pack) words. An
operand wider than the multiplier goes in bytes: ``a_passes`` = 2 (16-bit A) runs 2 M rows, ``b_passes`` = 2 runs 2 N
columns, and the bytes' sums meet, shifted, behind the array (half rate as in the TPU, a quarter if both are wide).

Where this differs from SCALE-Sim (Samajdar et al., ISPASS 2020), whose own arithmetic is in `hwq.simulators.scalesim`:
it prints F P - 1, counts R + C output words too many per ``os`` fold, and never reads partial sums back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error

__all__ = ["DATAFLOWS", "OVERLAPS", "Costs", "evaluate"]

DATAFLOWS = ("ws", "os", "is")
OVERLAPS = ("none", "stationary", "folds")

Column = NDArray[np.int64]


@dataclass(frozen=True)
class Costs:
    """What an array spends on each GEMM; every field has the broadcast shape of the arguments.

    Attributes
    ----------
    folds : int64
        Tiles that pass through the array.
    cycles : int64
        load + fill + stream + drain.
    load, fill, stream, drain : int64
        Cycles in which the array waits for the stationary operand; until the first sum leaves; streams; empties.
    macs : int64
        M K N, one per multiply-accumulate of whole operands, whatever their width.
    mapping_efficiency : float64
        Share of the PE slots that the folds occupy, 0 to 1.
    utilization : float64
        Byte (or packed) multiplications over slots: (macs x passes) / (R C pack cycles), 0 to 1.
    a_reads, b_reads : int64
        Words taken by the ports of each operand; a word is ``pack`` operands, or one byte of a wide one.
    sum_reads, sum_writes : int64
        Words between the array and its accumulators: a later fold along K reads back what it adds to.
    """

    folds: Column
    cycles: Column
    load: Column
    fill: Column
    stream: Column
    drain: Column
    macs: Column
    mapping_efficiency: NDArray[np.float64]
    utilization: NDArray[np.float64]
    a_reads: Column
    b_reads: Column
    sum_reads: Column
    sum_writes: Column


def evaluate(
    m: Any,
    k: Any,
    n: Any,
    rows: Any,
    cols: Any,
    dataflow: str = "ws",
    *,
    overlap: str = "folds",
    pack: Any = 1,
    a_passes: Any = 1,
    b_passes: Any = 1,
) -> Costs:
    """Cycles, efficiency and port words of GEMMs on systolic arrays, exactly as the stepped engine counts them.

    Parameters
    ----------
    m, k, n : int or int array
        GEMM shape: A is m x k, B is k x n. A convolution has m = output pixels, k = taps x channels, n = filters.
    rows, cols : int or int array
        Array size R x C.
    dataflow : {"ws", "os", "is"}
    overlap : {"none", "stationary", "folds"}
        What runs during what; see the module's text.
    pack : int or int array
        MACs along k that share one PE and cycle (2 for INT4).
    a_passes, b_passes : int or int array
        Bytes per operand: 1, or 2 for 16-bit values.

    Returns
    -------
    Costs
        Columns of the broadcast shape of all arguments (0-d for scalars).

    Raises
    ------
    Error
        An unknown dataflow or overlap, a number below 1, or counts beyond 63 bits.
    """
    if dataflow not in DATAFLOWS:
        raise Error(f"unknown dataflow {dataflow!r}", remedy=f"use one of {', '.join(DATAFLOWS)}")
    if overlap not in OVERLAPS:
        raise Error(f"unknown overlap {overlap!r}", remedy=f"use one of {', '.join(OVERLAPS)}")
    m, k, n, rows, cols, pack, a_passes, b_passes = _columns(m, k, n, rows, cols, pack, a_passes, b_passes)
    macs = m * k * n
    m, k, n = m * a_passes, _ceil(k, pack), n * b_passes
    if dataflow == "ws":
        on_rows, on_cols, temporal = k, n, m
    elif dataflow == "is":
        on_rows, on_cols, temporal = k, m, n
    else:
        on_rows, on_cols, temporal = m, n, k
    down, across = _ceil(on_rows, rows), _ceil(on_cols, cols)
    folds = down * across
    load, fill, stream, drain = _phases(dataflow, overlap, folds, temporal, rows, cols)
    cycles = load + fill + stream + drain
    again = np.ones_like(folds)  # how often an operand that stays is read
    if dataflow == "os":
        a_again, b_again, updates = across, down, again
    elif dataflow == "ws":
        a_again, b_again, updates = across, again, down
    else:
        a_again, b_again, updates = again, across, down
    slots = rows.astype(np.float64) * cols * pack
    work = macs.astype(np.float64) * (a_passes * b_passes)
    return Costs(
        folds=folds,
        cycles=cycles,
        load=load,
        fill=fill,
        stream=stream,
        drain=drain,
        macs=macs,
        mapping_efficiency=work / (slots * (folds * temporal)),
        utilization=work / (slots * cycles),
        a_reads=a_again * m * k,
        b_reads=b_again * k * n,
        sum_reads=(updates - 1) * m * n,
        sum_writes=updates * m * n,
    )


def _phases(
    dataflow: str, overlap: str, folds: Column, temporal: Column, rows: Column, cols: Column
) -> tuple[Column, Column, Column, Column]:
    stays = dataflow != "os"
    fill = rows - 1 if stays else np.zeros_like(folds)
    drain = cols - 1 if stays else rows + cols - 2
    load = rows if stays else np.zeros_like(folds)
    stream = folds * temporal
    if overlap == "folds":
        return load + (folds - 1) * np.maximum(rows - temporal, 0), fill + 0 * folds, stream, drain + 0 * folds
    if overlap == "none":
        load = load * folds
    return load + 0 * folds, fill * folds, stream, drain * folds


def _ceil(dividend: Column, divisor: Column) -> Column:
    return -(-dividend // divisor)


def _columns(*values: Any) -> tuple[Column, ...]:
    try:
        arrays = np.broadcast_arrays(*(np.asarray(value) for value in values))
    except ValueError as error:
        raise Error("shapes and array sizes do not broadcast together", why=str(error)) from error
    for array in arrays:
        if array.dtype.kind not in "iu":
            raise Error(f"whole numbers are expected, these are {array.dtype}", remedy="give ints or int64 arrays")
        if array.size and array.min() < 1:
            raise Error("sizes below 1 have no cost", why="every dimension counts at least one word")
    columns = tuple(
        np.ascontiguousarray(array, dtype=np.int64) if array.ndim else array.astype(np.int64) for array in arrays
    )
    m, k, n, rows, cols, _, a_passes, b_passes = (column.astype(np.float64) for column in columns)
    largest = (m * a_passes + rows) * (k + rows) * (n * b_passes + cols) * 4.0
    if largest.size and largest.max() >= 2.0**63:
        raise Error(
            "these shapes need counts beyond 63 bits", why="m x k x n on this array is too large to count exactly"
        )
    return columns
