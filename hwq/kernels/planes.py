"""Weights of 1 to 3 bits as bit planes, multiplied by looking up sums of four activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.operands import Array, dense, integer, output, over_ranges, zero_point

__all__ = ["Planes", "gemm_planes", "pack_planes"]

# 255 * 7 * K and the zero point's share, as much again, stay in int32.
LONGEST = 1 << 19


@dataclass(frozen=True, eq=False)
class Planes:
    """Weights (K, N) of `bits` bits, packed; `low` is what a plane sum of 0 stands for, `sums` the planes' column sums."""

    k: int
    n: int
    bits: int
    low: int
    data: Array
    sums: Array

    @property
    def bytes(self) -> int:
        """Of the packed weights."""
        return int(self.data.nbytes)


def pack_planes(weights: Any, bits: int, *, signed: bool = True) -> Planes:
    """Pack weights for `gemm_planes`.

    Parameters
    ----------
    weights : int8 or uint8 array (K, N)
        In [-2^(bits-1), 2^(bits-1)) if `signed`, else in [0, 2^bits).
    bits : {1, 2, 3}
        One bit signed is -1 and 0.
    signed : bool
    """
    given = dense(weights, "weights", ["int8", "uint8"])
    bits = integer(bits, "bits")
    if given.ndim != 2 or bits not in (1, 2, 3):
        raise Error(f"weights of shape {given.shape} and {bits} bits", remedy="give a matrix (K, N) and 1, 2 or 3 bits")
    k, n = given.shape
    low = -(1 << (bits - 1)) if signed else 0
    values = given.astype(np.int16) - low
    if given.size and (int(values.min()) < 0 or int(values.max()) >= 1 << bits):
        raise Error(
            f"a weight does not fit {bits} {'signed' if signed else 'unsigned'} bits",
            why=f"they lie in [{int(given.min())}, {int(given.max())}]",
        )
    if k > LONGEST:
        raise Error(f"K = {k} is too long for int32 sums", remedy=f"at most {LONGEST}")
    pairs, blocks = -(-k // 8), -(-n // 32)
    padded = np.zeros((pairs * 8, blocks * 32), np.uint8)
    padded[:k, :n] = values
    taps = np.arange(8, dtype=np.uint8)[None, :, None]
    planes = [
        ((padded >> bit & 1).reshape(pairs, 8, blocks * 32) << taps).sum(1, dtype=np.uint8).reshape(pairs, blocks, 32)
        for bit in range(bits)
    ]
    data = np.ascontiguousarray(np.stack(planes).transpose(0, 2, 1, 3)).reshape(-1)
    return Planes(k, n, bits, low, data, values.sum(0, dtype=np.int64))


def gemm_planes(a: Any, planes: Planes, *, a_zero_point: int = 0, out: Array | None = None, threads: int = 1) -> Array:
    """``sum over k of (a - za) w``, exact int32; for few rows of activations faster than multiplying (reports/lut).

    Parameters
    ----------
    a : uint8 array (..., K)
    planes : Planes
        From `pack_planes`.
    a_zero_point : int
    out : int32 array (..., N), optional
    threads : int
        Over rows.

    Returns
    -------
    int32 array (..., N)
    """
    given = dense(a, "a", ["uint8"])
    if type(planes) is not Planes:
        raise Error(f"planes must be packed weights, not {type(planes).__name__}", remedy="pack_planes makes them")
    if not given.ndim or given.shape[-1] != planes.k:
        raise Error(f"a has shape {given.shape}", why=f"the weights have K = {planes.k}")
    point = zero_point(a_zero_point, given.dtype, "a_zero_point")
    shape = (*given.shape[:-1], planes.n)
    result = output(out, shape, np.int32, given)
    rows = math.prod(shape[:-1])

    def work(first: int, last: int) -> None:
        scratch = np.empty(-(-planes.k // 8) * 64, np.uint8)
        _kernels.gemm_planes(given, first, last - first, planes.k, planes.n, planes.bits, planes.data, result, scratch)

    over_ranges(rows, threads, work)
    # sum (a - za)(p + low) = sum a p - za sum p + low (sum a - K za); every term is below 2^31 as LONGEST says.
    if point:
        result -= (point * planes.sums).astype(np.int32)
    if planes.low:
        totals = given.sum(axis=-1, dtype=np.int64) - planes.k * point
        result += (planes.low * totals).astype(np.int32)[..., None]
    return result
