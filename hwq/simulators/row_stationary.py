"""The row-stationary dataflow in closed form: a mapping of a convolution onto a spatial array, and what it moves.

Symbols as in Chen et al., JSSC 2017 (Eyeriss). Shape: N images, C input and M output channels of one of G groups, padded
input height H and width W, R x S kernel, E x F output, U stride. A PE keeps one row of a kernel and slides one row of
the input past it; R x e PEs make a *set* that computes e output rows. Mapping:

=====  ==================================================================================
``m``  output channels whose partial sums lie in the global buffer together
``n``  images in a pass
``e``  output rows in a strip (the width of a set)
``p``  filters interleaved in one set; ``q`` input channels interleaved in one set
``r``  sets on different input channels; ``t`` sets on different filters
=====  ==================================================================================

Bytes, each word once for every time that it must be there:

* DRAM: inputs once for each block of ``m`` channels, strips overlapping by R - U rows; filters once for each ``n`` images
  and each strip; outputs once.
* Between global buffer and array: inputs once for each ``p t`` filters of the block; filters as from DRAM; partial sums
  to the buffer after each of the ``ceil(C / (q r))`` passes and back before all but the first.

The mapper takes, among the mappings that fit, the one with the least DRAM traffic, then the least buffer traffic (a DRAM
access costs 200 and a buffer access 6 MACs: Chen et al., ISCA 2016, table IV), then the fewest cycles. On AlexNet it
finds four of the five mappings that the authors publish, and for conv3 one with less traffic (``tests/test_spatial.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cost", "Mapping7", "Shape", "evaluate", "find_mapping"]

Column = NDArray[np.int64]

# Words that the port between global buffer and array moves in a cycle (64 bits of 16-bit words).
FILTER_WORDS_PER_CYCLE = 4


def _ceil(dividend: Any, divisor: Any) -> Any:
    return -(-dividend // divisor)


@dataclass(frozen=True)
class Shape:
    """One convolution: images, channels per group, groups, padded input, kernel, output, stride (all counts)."""

    N: int
    C: int
    M: int
    G: int
    W: int
    R: int
    S: int
    E: int
    F: int
    U: int


@dataclass(frozen=True)
class Mapping7:
    """The seven numbers of a row-stationary mapping."""

    m: int
    n: int
    e: int
    p: int
    q: int
    r: int
    t: int


@dataclass(frozen=True)
class Cost:
    """What a mapping moves and takes, over all groups and images.

    Attributes
    ----------
    input, filter, output : int
        DRAM words.
    buffer_input, buffer_filter, buffer_sum : int
        Words between global buffer and array.
    passes, compute, load : int
        Processing passes; cycles in which PEs multiply; cycles in which filters are loaded.
    active : int
        PEs at work.
    """

    input: int
    filter: int
    output: int
    buffer_input: int
    buffer_filter: int
    buffer_sum: int
    passes: int
    compute: int
    load: int
    active: int

    @property
    def dram(self) -> int:
        """DRAM words."""
        return self.input + self.filter + self.output

    @property
    def buffer(self) -> int:
        """Words between global buffer and array."""
        return self.buffer_input + self.buffer_filter + self.buffer_sum


def _pieces(shape: Shape, given: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Kernel rows and columns that fit (a larger kernel runs in pieces), and the number of pieces along each."""
    tall, wide = min(shape.R, given["rows"]), min(shape.S, given["input_spad"], given["filter_spad"])
    return tall, wide, _ceil(shape.R, tall), _ceil(shape.S, wide)


def _sets(tall: int, e: int, given: Mapping[str, Any]) -> int:
    """Sets of ``tall`` x ``e`` PEs that fit; a set wider than the array is cut into segments, one above the other."""
    down, across = int(given["rows"]) // tall, int(given["cols"])
    return down * (across // e) if e <= across else down // _ceil(e, across)


def _candidates(shape: Shape, given: Mapping[str, Any], e: int, n: int) -> dict[str, Column]:
    """Mappings with strips of ``e`` rows and ``n`` images that fit the scratchpads, the array and the global buffer.

    Sums and the input strips of one pass must fit into the buffer. ``r`` and ``t`` are the sets over whole numbers:
    between two of these the counts of passes do not change for the better.
    """
    _, wide, _, _ = _pieces(shape, given)
    sets = _sets(_pieces(shape, given)[0], e, given)
    shares = np.unique(sets // np.arange(1, sets + 1)) if sets else np.zeros(0, np.int64)
    most_q = min(shape.C, given["input_spad"] // wide, given["filter_spad"] // wide)
    most_p = min(shape.M, given["sum_spad"], given["filter_spad"] // wide)
    axes = (np.arange(1, most_p + 1), np.arange(1, most_q + 1), shares, shares)
    p, q, r, t = (axis.reshape(-1) for axis in np.meshgrid(*axes, indexing="ij"))
    rows = (e - 1) * shape.U + shape.R
    room = given["buffer"] - np.minimum(q * r, shape.C) * (rows * shape.W * n * given["input_bits"])
    most = np.minimum(shape.M, room // (e * shape.F * n * given["sum_bits"]))
    fits = (r * t <= sets) & (p * q * wide <= given["filter_spad"]) & (p * t <= most) & (room > 0)
    p, q, r, t, most = p[fits], q[fits], r[fits], t[fits], most[fits]
    return {
        "m": most // (p * t) * p * t,
        "n": np.full_like(p, n),
        "e": np.full_like(p, e),
        "p": p,
        "q": q,
        "r": r,
        "t": t,
    }


def evaluate(shape: Shape, mapping: Mapping7, given: Mapping[str, Any]) -> Cost:
    """What a mapping moves.

    ``given`` holds ``rows``, ``cols``, ``input_spad``, ``filter_spad``, ``sum_spad`` (words per PE), ``buffer`` (bits),
    ``input_bits`` and ``sum_bits``. The numbers of the mapping may be arrays.
    """
    tall, wide, down, along = _pieces(shape, given)
    strips, images = _ceil(shape.E, mapping.e), _ceil(shape.N, mapping.n)
    rows = (mapping.e - 1) * shape.U + shape.R
    blocks = _ceil(shape.M, mapping.m)
    inner = _ceil(mapping.m, mapping.p * mapping.t)
    deep = _ceil(shape.C, mapping.q * mapping.r) * down * along
    entering = shape.G * shape.N * shape.C * rows * strips * shape.W * blocks
    filters = shape.G * shape.M * shape.C * shape.R * shape.S * images * strips
    sums = shape.G * shape.N * shape.M * mapping.e * strips * shape.F
    passes = deep * shape.G * blocks * inner * images * strips
    words = mapping.p * mapping.q * tall * wide * mapping.r * mapping.t
    return Cost(
        input=entering,
        filter=filters,
        output=shape.G * shape.N * shape.M * shape.E * shape.F,
        buffer_input=entering * inner,
        buffer_filter=filters,
        buffer_sum=sums * (2 * deep - 1),
        passes=passes,
        compute=passes * mapping.n * mapping.q * mapping.p * wide * shape.F,
        load=passes * _ceil(words, FILTER_WORDS_PER_CYCLE),
        active=tall * mapping.e * mapping.r * mapping.t,
    )


def _least_dram(shape: Shape, given: Mapping[str, Any], e: int, n: int) -> int:
    """DRAM words that no mapping with these strips and images goes below: one channel of input, the rest sums."""
    rows = (e - 1) * shape.U + shape.R
    room = given["buffer"] - rows * shape.W * n * given["input_bits"]
    m = min(shape.M, room // (e * shape.F * n * given["sum_bits"]))
    if m < 1:
        return 0
    return evaluate(shape, Mapping7(m, n, e, 1, 1, 1, 1), given).dram


def find_mapping(shape: Shape, given: Mapping[str, Any]) -> tuple[Mapping7, Cost] | None:
    """The mapping with the least DRAM traffic, then buffer traffic, then cycles; None where none fits."""
    strips = sorted({_ceil(shape.E, parts) for parts in range(1, shape.E + 1)})
    images = [count for count in range(1, shape.N + 1) if shape.N % count == 0]
    bounds = sorted((least, e, n) for e in strips for n in images if (least := _least_dram(shape, given, e, n)))
    best: tuple[tuple[int, int, int], Mapping7, Cost] | None = None
    for least, e, n in bounds:
        if best is not None and least > best[0][0]:
            break
        columns = _candidates(shape, given, e, n)
        if not columns["p"].size:
            continue
        every: Any = evaluate(shape, Mapping7(**cast(dict[str, Any], columns)), given)
        first = np.lexsort((every.compute + every.load, every.buffer, every.dram + 0 * columns["p"]))[0]
        mapping = Mapping7(**{name: int(values[first]) for name, values in columns.items()})
        found = evaluate(shape, mapping, given)
        rank = (found.dram, found.buffer, found.compute + found.load)
        if best is None or rank < best[0]:
            best = rank, mapping, found
    return None if best is None else best[1:]
