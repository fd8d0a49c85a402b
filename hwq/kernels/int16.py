"""int16 activations: products with int8 weights in 64 bits, interpolated tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.epilogue import Epilogue, check_columns, finishing, residual_operand
from hwq.kernels.operands import Array, dense, output, over_ranges, zero_point
from hwq.kernels.packing import Packed

__all__ = ["gemm_int16", "lut_int16"]

_PLAIN = Epilogue()
# Shapes of interpolated tables and how far apart their samples lie, as a power of two.
SHIFTS = {((65536 >> shift) + 1,): shift for shift in range(7, -1, -1)}


def gemm_int16(
    a: Any,
    packed: Packed,
    *,
    a_zero_point: int = 0,
    bias: Any = None,
    epilogue: Epilogue | None = None,
    residual: Any = None,
    out: Array | None = None,
    threads: int = 1,
    wrap: bool = False,
) -> Array:
    """``acc = bias + sum over k of (a - za)(w - zw)`` for int16 `a`; `gemm` comes here by itself.

    Accumulators have 64 bits where the epilogue's rounding takes them (``f64``, ``mbqm64``: TFLite's int16 x int8), else
    32, proved from the weights not to overflow unless `wrap`.

    Parameters
    ----------
    a : int16 array (..., K)
    packed : Packed
        From `pack`, int8 or uint8.
    bias : int32 or int64 array (N,), optional
    a_zero_point, epilogue, residual, out, threads, wrap
        As in `gemm`.

    Returns
    -------
    array (..., N)
        int32, or the epilogue's dtype.
    """
    given = dense(a, "a", ["int16"])
    if type(packed) is not Packed or packed.door is None or packed.kernel or packed.group:
        raise Error("int16 activations take int8 or uint8 weights", remedy="pack them with hwq.kernels.pack")
    if not given.ndim or given.shape[-1] != packed.k:
        raise Error(f"a has shape {given.shape}", why=f"the weights have K = {packed.k}")
    point, finish = zero_point(a_zero_point, given.dtype, "a_zero_point"), finishing(epilogue, _PLAIN)
    offsets = None if bias is None else dense(bias, "bias", ["int32", "int64"]).astype(np.int64)
    if offsets is not None and offsets.shape != (packed.n,):
        raise Error(f"bias has shape {offsets.shape}", why=f"there are {packed.n} output columns")
    if offsets is not None and offsets.size and not -(2**62) < offsets.min() <= offsets.max() < 2**62:
        raise Error("a bias passes 62 bits")  # sums below 2^47 beside it stay inside int64
    wide = finish.kind == "requant" and finish.rounding in ("f64", "mbqm64")
    if packed.k >= 2**24:
        raise Error(f"K = {packed.k} is too long for int16 activations", why="column sums are kept in 32 bits")
    if wide:
        least, most = packed.accumulator_range("int16", point, offsets)
        if finish.rounding == "mbqm64" and packed.n and max(-int(least.min()), int(most.max())) >= 2**47:
            raise Error("an accumulator may pass the 47 bits that rounding mbqm64 takes")
    elif not wrap:
        packed.check_overflow("int16", point, offsets)
    check_columns(finish, packed.n)
    shape = (*given.shape[:-1], packed.n)
    second = residual_operand(residual, finish, shape)
    result = output(out, shape, finish.dtype, given, second, offsets)

    def work(first: int, last: int) -> None:
        _kernels.gemm_s16(given, first, last - first, point, packed.door, offsets, wide, finish._door, second, result)

    over_ranges(math.prod(shape[:-1]), threads, work, grain=2)
    return result


def lut_int16(x: Any, table: Any, *, out: Array | None = None) -> Array:
    """Interpolate between samples of a function of int16, ``2^s`` apart: TFLite's LUTLookup where there are 513.

    ``t[i] + ((t[i + 1] - t[i]) * (x mod 2^s) + 2^(s - 1) >> s)`` with ``i = x + 32768 >> s``.

    Parameters
    ----------
    x : int16 array
    table : int16 array (65536 / 2^s + 1,)
        With s from 7 (513 samples) to 0 (one for every input; the last is never read).
    """
    given, samples = dense(x, "x", ["int16"]), dense(table, "table", ["int16"])
    if samples.shape not in SHIFTS:
        sizes = ", ".join(str(shape[0]) for shape in SHIFTS)
        raise Error(f"an interpolated table has one of {sizes} samples, not shape {samples.shape}")
    result = output(out, given.shape, np.int16, samples)
    _kernels.lut_s16(given, samples, result, given.size, SHIFTS[samples.shape])
    return result
