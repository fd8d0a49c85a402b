"""Tiles and DRAM traffic of matrix products under a double-buffered on-chip memory, in closed form.

``A[M, K] @ B[K, N]`` is cut into tiles of Tm x Tk and Tk x Tn; three loops over the ``ceil(M / Tm)``, ``ceil(K / Tk)`` and
``ceil(N / Tn)`` tiles stand in one of six orders (`ORDERS`, outermost first). A tile stays in the buffer while only loops
that it has no index of run inside, so an operand passes the chip's edge

* once, if no loop of its own with more than one step runs inside the loop that it has no index of;
* else as often as that loop has steps: A ``ceil(N / Tn)`` times, B ``ceil(M / Tm)`` times.

The same holds for partial sums and the loop over K: with ``s`` passes they are written ``s`` times, the last time as
results, and fetched again ``s - 1`` times, at the width of the accumulators. A pass moves the whole operand in the order
of its tiles, in whole DRAM bursts. Every tile is held twice (one in use, the next on its way), unless it is the only one.

`search` finds the tiling with the fewest bytes among all (``simulators/src/tiling.c`` enumerates). Hence, by
construction: never below one pass of each operand, never above any schedule without reuse that fits, and a larger buffer
never costs more. Loop orders and reuse as in Timeloop (Parashar et al., ISPASS 2019), on one level and three loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error

__all__ = ["ORDERS", "Product", "Tiling", "passes", "room", "search", "traffic"]

Column = NDArray[Any]

ORDERS = ("mnk", "nmk", "mkn", "kmn", "nkm", "knm")


@dataclass(frozen=True)
class Product:
    """A product and its operands as they lie in DRAM.

    Attributes
    ----------
    m, k, n : int
    a_bytes, b_bytes, out_bytes, sum_bytes : int
        Whole operands; the input of a convolution counts once, not once a tap. Sums have the accumulators' width.
    stays : frozenset of str
        Of ``a``, ``b``, ``out``: what is on chip already. It has its own place and moves no bytes.
    """

    m: int
    k: int
    n: int
    a_bytes: int
    b_bytes: int
    out_bytes: int
    sum_bytes: int
    stays: frozenset[str] = frozenset()

    @classmethod
    def of_bits(cls, m: int, k: int, n: int, a: int = 8, b: int = 8, out: int = 8, accumulator: int = 32) -> Product:
        """A plain GEMM with these operand widths, packed, rounded up to whole bytes an operand."""
        return cls(m, k, n, -(-m * k * a // 8), -(-k * n * b // 8), -(-m * n * out // 8), -(-m * n * accumulator // 8))


@dataclass(frozen=True)
class Tiling:
    """Tile sizes, loop order, and the DRAM bytes that they move."""

    tm: int
    tk: int
    tn: int
    order: str
    a_bytes: int
    b_bytes: int
    out_bytes: int
    sum_bytes: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.a_bytes + self.b_bytes + self.out_bytes + self.sum_bytes


def traffic(product: Product, tm: int, tk: int, tn: int, order: str, burst: int = 1) -> Tiling:
    """The closed form: DRAM bytes of one tiling.

    Parameters
    ----------
    product : Product
    tm, tk, tn : int
        Tile sizes, at least 1.
    order : str
        One of `ORDERS`.
    burst : int
        Bytes of one DRAM burst; a pass moves whole ones.
    """
    trips = {"m": -(-product.m // tm), "k": -(-product.k // tk), "n": -(-product.n // tn)}

    def passes(other: str) -> int:
        inside = order[order.index(other) + 1 :]
        return trips[other] if any(trips[loop] > 1 for loop in inside) else 1

    def moved(name: str, size: int, times: int) -> int:
        return 0 if name in product.stays else times * -(-size // burst) * burst

    return Tiling(
        tm, tk, tn, order,
        moved("a", product.a_bytes, passes("n")),
        moved("b", product.b_bytes, passes("m")),
        moved("out", product.out_bytes, 1),
        moved("out", product.sum_bytes, 2 * (passes("k") - 1)),
    )  # fmt: skip


def room(product: Product, tm: int, tk: int, tn: int) -> int:
    """Bytes of the buffer that tiles of this size take: each twice, unless the operand is one tile."""
    one_m, one_k, one_n = tm >= product.m, tk >= product.k, tn >= product.n

    def tiles(name: str, alone: bool, size: int, part: int, whole: int) -> int:
        return 0 if name in product.stays else (1 if alone else 2) * -(-size * min(part, whole) // whole)

    m, k, n = min(tm, product.m), min(tk, product.k), min(tn, product.n)
    results = product.out_bytes if one_k else product.sum_bytes
    return (
        tiles("a", one_m and one_k, product.a_bytes, m * k, product.m * product.k)
        + tiles("b", one_k and one_n, product.b_bytes, k * n, product.k * product.n)
        + tiles("out", one_m and one_n, results, m * n, product.m * product.n)
    )


def search(product: Product, capacity: int, burst: int = 1) -> Tiling:
    """The tiling that moves the fewest bytes, of all tile sizes and loop orders that fit.

    Parameters
    ----------
    product : Product
    capacity : int
        Bytes of the buffer.
    burst : int
        Bytes of one DRAM burst.

    Raises
    ------
    Error
        Not even tiles of one element fit, or sizes are out of range.
    """
    from hwq._simulators import search_tiling

    stays = product.stays
    try:
        tm, tk, tn, order, *moved = search_tiling(
            (product.m, product.k, product.n),
            (product.a_bytes, product.b_bytes, product.out_bytes, product.sum_bytes),
            ("a" in stays, "b" in stays, "out" in stays), capacity, burst,
        )  # fmt: skip
    except (ValueError, OverflowError) as error:
        raise Error(
            f"a product of {product.m} x {product.k} by {product.k} x {product.n} cannot be tiled",
            where=f"a buffer of {capacity} bytes",
            why="not even single elements fit, or a size is 2^31 and more",
            remedy="give the machine a larger buffer",
        ) from error
    return Tiling(tm, tk, tn, ORDERS[order], *moved)


def passes(
    shape: Sequence[Column],
    sizes: Sequence[Column],
    stays: Sequence[Column],
    capacity: Column,
    burst: Any,
    known: Column,
) -> tuple[Column, Column, Column]:
    """`search` on columns: how often A, B and the partial sums pass, 1 where `known` is false.

    Parameters
    ----------
    shape : m, k, n
    sizes : bytes of a, b, results, sums
    stays : bool, of a, b, results
    capacity, burst : bytes
    known : bool
        Where there is a product.

    Raises
    ------
    Error
        A product cannot be tiled at all.
    """
    from hwq._simulators import count_passes

    every = np.broadcast_arrays(*shape, *sizes, *stays, capacity, burst, known)
    table = np.stack([np.asarray(column, np.int64).reshape(-1) for column in every], axis=1)
    # What is on chip, or not there, is asked for once: a sweep has few different products.
    rows, places = np.unique(table[table[:, -1] != 0, :-1], axis=0, return_inverse=True)
    found = np.empty((len(rows), 3), np.int64)
    try:
        count_passes(np.ascontiguousarray(rows), found)
    except ValueError as error:
        raise Error("a product has a size of 2^31 and more", why=str(error)) from error
    if (found == 0).any():
        m, k, n = rows[(found == 0).any(axis=1)][0][:3]
        raise Error(
            f"a product of {m} x {k} by {k} x {n} cannot be tiled",
            why="not even single elements fit into the buffer",
            remedy="give the machine a larger buffer",
        )
    whole = np.ones((len(table), 3), np.int64)
    whole[table[:, -1] != 0] = found[places.reshape(-1)]
    a, b, sums = (whole[:, at].reshape(every[0].shape) for at in range(3))
    return a, b, sums
