"""GEMM, matrix products of activations, and float32 sums in the fixed order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.epilogue import Epilogue, check_columns, finishing, residual_operand
from hwq.kernels.half import HALVES, gemm_half, half_name, narrow, widen
from hwq.kernels.int4 import gemm_int4
from hwq.kernels.int16 import gemm_int16
from hwq.kernels.operands import (
    ANY_BIAS,
    NAMES,
    Array,
    Run,
    dense,
    empty,
    int32_bias,
    integer,
    output,
    over_ranges,
    over_tiles,
    zero_point,
)
from hwq.kernels.packing import Packed, pack, pack_float
from hwq.kernels.scaled import gemm_scaled

__all__ = ["gemm", "gemm_saturating", "gemm_sequential", "matmul", "matmul_f32", "matmul_f64", "sum_f32"]

_PLAIN, _INT16 = Epilogue(), np.dtype(np.int16)
BYTES = frozenset({"int8", "uint8"})


def gemm(
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
    """``acc = bias + sum over k of (a - za)(w - zw)``, exact, then the epilogue.

    Parameters
    ----------
    a : uint8 or int8 array (..., K); int16 (see `gemm_int16`); float32, float16 or bfloat16 with weights from `pack_float`.
        float32 also with weights packed with scales: ``chain = fma(a, f32(w - zw), chain)`` in a group, then
        ``y = fma(chain, scale, y)``, both in increasing k.
    packed : Packed
        From `pack` or `pack_float`.
    a_zero_point : int
        Within the dtype of `a`.
    bias : int32 array (N,), optional
        float32 for float weights, added after the sum.
    epilogue : Epilogue, optional
        int32 accumulators by default. Not for float32.
    residual : array (..., N), optional
        Second operand of ``epilogue.residual``.
    out : array (..., N), optional
    threads : int
        Static split over rows or columns; the bits do not depend on it.
    wrap : bool
        Allow accumulators that may overflow; they wrap modulo 2^32.

    Returns
    -------
    array (..., N)
        int32, float32, or the epilogue's dtype.

    Raises
    ------
    Error
        Operands that do not fit, or an accumulator that may overflow while `wrap` is false.
    """
    terms = (a_zero_point, threads, wrap)
    if type(packed) is not Packed:
        raise Error(f"packed must be packed weights, not {type(packed).__name__}", remedy="hwq.kernels.pack makes them")
    known = packed._calls.again(a, bias, residual, out, epilogue, terms)
    if known is not None:
        return known
    if packed.dtype == "float32" or packed.dtype in HALVES:
        if epilogue is not None or residual is not None:
            raise Error("a float product takes no epilogue")
        if packed.kernel:
            raise Error("these weights were packed for a convolution", remedy="pack them with hwq.kernels.pack_float")
        if packed.dtype in HALVES:
            return gemm_half(a, packed.data, packed.dtype, packed.k, packed.n, bias, out, threads)
        return _gemm_f32(a, packed, bias, out, threads, terms)
    if packed.group and packed.dtype in BYTES:
        if residual is not None:
            raise Error("scaled weights take no residual")
        return gemm_scaled(a, packed, a_zero_point, bias, epilogue, out, threads, terms)
    if packed.group:
        return gemm_int4(a, packed, a_zero_point, bias, epilogue, residual, out, threads, wrap, terms)
    if isinstance(a, np.ndarray) and a.dtype == _INT16:
        return gemm_int16(
            a,
            packed,
            a_zero_point=a_zero_point,
            bias=bias,
            epilogue=epilogue,
            residual=residual,
            out=out,
            threads=threads,
            wrap=wrap,
        )
    if packed.kernel or packed.depthwise:
        raise Error("these weights were packed for a convolution", remedy="pack them with hwq.kernels.pack")
    given = dense(a, "a", ["uint8", "int8"])
    if not given.ndim or given.shape[-1] != packed.k:
        raise Error(f"a has shape {given.shape}", why=f"the weights have K = {packed.k}")
    point = zero_point(a_zero_point, given.dtype, "a_zero_point")
    offsets = int32_bias(bias, packed.n)
    if not wrap:
        packed.check_overflow(NAMES[given.dtype], point, offsets)
    finish = finishing(epilogue, _PLAIN)
    check_columns(finish, packed.n)
    shape = (*given.shape[:-1], packed.n)
    second = residual_operand(residual, finish, shape)
    result = output(out, shape, finish.dtype, given, second, offsets)
    run = _product(given.shape, given.dtype, point, packed, finish, threads, saturating=False)
    packed._calls.remember(given, offsets, second, out, epilogue, terms, packed.spare(NAMES[given.dtype], wrap), run)
    return run(given, offsets, second, result)


def gemm_saturating(
    a: Any,
    packed: Packed,
    *,
    a_zero_point: int = 0,
    bias: Any = None,
    epilogue: Epilogue | None = None,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """The product of uint8 and int8 as runtimes compute it on x86-64 without VNNI: wrong where a pair leaves int16.

    Products of k = 2i and k = 2i + 1, zero points not yet subtracted, are added with int16 saturation (VPMADDUBSW).
    Accumulators wrap modulo 2^32.

    Parameters
    ----------
    a : uint8 array (..., K)
    packed : Packed
        int8 weights, from `pack`.
    a_zero_point, bias, epilogue, out, threads
        As in `gemm`.

    Raises
    ------
    Error
        Operands that do not fit, or of other types.
    """
    given = dense(a, "a", ["uint8"])
    if type(packed) is not Packed or packed.dtype != "int8" or packed.kernel or packed.depthwise or packed.group:
        raise Error(
            "a saturating product takes int8 weights of a matrix, without scales",
            why=f"these are {packed.dtype}" if type(packed) is Packed else f"this is {type(packed).__name__}",
        )
    if not given.ndim or given.shape[-1] != packed.k:
        raise Error(f"a has shape {given.shape}", why=f"the weights have K = {packed.k}")
    finish = finishing(epilogue, _PLAIN)
    check_columns(finish, packed.n)
    if finish.residual is not None:
        raise Error("a saturating product takes no residual")
    point, offsets = zero_point(a_zero_point, given.dtype, "a_zero_point"), int32_bias(bias, packed.n)
    result = output(out, (*given.shape[:-1], packed.n), finish.dtype, given, offsets)
    run = _product(given.shape, given.dtype, point, packed, finish, threads, saturating=True)
    return run(given, offsets, None, result)


def _product(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    point: int,
    packed: Packed,
    finish: Epilogue,
    threads: int,
    saturating: bool,
) -> Run:
    """The product of operands that passed; holds nothing that holds it, so that weights go when their owner lets go."""
    rows, n, door, ending, signed = math.prod(shape[:-1]), packed.n, packed.door, finish._door, NAMES[dtype] == "int8"
    whole, result_dtype = (*shape[:-1], n), np.dtype(finish.dtype)

    def run(a: Array, bias: Array | None, residual: Array | None, out: Array | None) -> Array:
        result = np.empty(whole, result_dtype) if out is None else out

        def work(row: int, count: int, strip: int, strips: int) -> None:
            _kernels.gemm(a, signed, saturating, row, count, point, door, strip, strips, bias, ending, residual, result)

        over_tiles(rows, n, threads, work)
        return result

    return run


def _gemm_f32(
    a: Any, packed: Packed, bias: Any, out: Array | None, threads: int, terms: tuple[Any, ...] | None = None
) -> Array:
    given = dense(a, "a", ["float32"])
    if not given.ndim or given.shape[-1] != packed.k or packed.kernel:
        raise Error(
            f"a has shape {given.shape}",
            why=f"the weights have K = {packed.k}{' and belong to a convolution' * bool(packed.kernel)}",
        )
    offsets = None if bias is None else dense(bias, "bias", ["float32"])
    if offsets is not None and offsets.shape != (packed.n,):
        raise Error(f"bias has shape {offsets.shape}", why=f"there are {packed.n} columns")
    shape = (*given.shape[:-1], packed.n)
    result = output(out, shape, np.float32, given, offsets)
    rows, k, n, weights = math.prod(shape[:-1]), packed.k, packed.n, packed.data

    def run(a: Array, bias: Array | None, residual: Array | None, out: Array | None) -> Array:
        result = np.empty(shape, np.float32) if out is None else out

        def work(first: int, last: int) -> None:
            _kernels.gemm_f32(a, first, last - first, k, n, weights, bias, result)

        over_ranges(rows, threads, work, grain=3)
        return result

    if terms is not None:
        packed._calls.remember(given, offsets, None, out, None, terms, ANY_BIAS, run)
    return run(given, offsets, None, result)


def gemm_sequential(
    a: Any, b: Any, *, block: int, out: Array | None = None, accumulate: bool = False, threads: int = 1
) -> Array:
    """``a @ b`` in float32 in sequential order: a chain of fused multiply-adds per block of k, blocks added in turn.

    With the block that MLAS takes this is the order of onnxruntime's float products on x86-64 (measured, bit for bit).

    Parameters
    ----------
    a : float32 array (M, K)
    b : float32 array (K, N)
    block : int
        Steps of k in one chain, at least 1.
    out : float32 array (M, N), optional
    accumulate : bool
        Add to what `out` holds.
    threads : int
    """
    left, right = dense(a, "a", ["float32"]), dense(b, "b", ["float32"])
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise Error(f"shapes {left.shape} and {right.shape} do not multiply")
    block = integer(block, "block")
    if block < 1 or (accumulate and out is None):
        raise Error(f"block = {block} must be at least 1" if block < 1 else "accumulate needs out")
    (rows, k), n = left.shape, right.shape[1]
    result = output(out, (rows, n), np.float32, left, right)

    def work(first: int, last: int) -> None:
        _kernels.gemm_sequential(left, first, last - first, k, n, min(block, 2**62), right, accumulate, result)

    over_ranges(rows, threads, work, grain=4)
    return result


def matmul_f32(a: Any, b: Any, *, bias: Any = None, out: Array | None = None, threads: int = 1) -> Array:
    """NumPy's ``a @ b`` in float32 and the fixed order: the same bits on every path, tile and thread count.

    Parameters
    ----------
    a : float32 array (..., M, K) or (K,)
    b : float32 array (..., K, N) or (K,)
    bias : float32 array (N,), optional
        Added after the sum.
    """
    left, right = dense(a, "a", ["float32"]), dense(b, "b", ["float32"])
    if not left.ndim or not right.ndim:
        raise Error("matmul_f32 takes arrays of at least one dimension")
    wide_a, wide_b = left[None] if left.ndim == 1 else left, right[:, None] if right.ndim == 1 else right
    if wide_a.shape[-1] != wide_b.shape[-2]:
        raise Error(f"shapes {left.shape} and {right.shape} do not multiply")
    if wide_b.ndim == 2:
        whole = _gemm_f32(
            wide_a, pack_float(wide_b), bias, None if out is None or left.ndim == 1 or right.ndim == 1 else out, threads
        )
    else:
        whole = _batched(wide_a, wide_b, np.float32, lambda x, y, o: _gemm_f32(x, pack_float(y), bias, o, threads))
    if left.ndim == 1:
        whole = whole[..., 0, :]
    if right.ndim == 1:
        whole = whole[..., 0]
    if out is None or whole is out:
        return whole
    output(out, whole.shape, np.float32)[...] = whole
    return out


def matmul_f64(
    a: Any, b: Any, *, transposed: bool = False, out: Array | None = None, accumulate: bool = False, threads: int = 1
) -> Array:
    """``a @ b`` in float64, every element one chain of fused multiply-adds in increasing k: the same bits on every path.

    Parameters
    ----------
    a : float64 array (M, K); (K, M) if `transposed`
    b : float64 array (K, N)
    transposed : bool
        Multiply by the transpose of `a`, in place.
    out : float64 array (M, N), optional
    accumulate : bool
        Go on from what `out` holds, so that a sum over k may be cut anywhere.
    threads : int
    """
    left, right = dense(a, "a", ["float64"]), dense(b, "b", ["float64"])
    if left.ndim != 2 or right.ndim != 2 or left.shape[0 if transposed else 1] != right.shape[0]:
        raise Error(f"shapes {left.shape} and {right.shape} do not multiply", why=f"transposed is {transposed}")
    if accumulate and out is None:
        raise Error("accumulate needs out")
    (k, n), rows = right.shape, left.shape[1 if transposed else 0]
    result = output(out, (rows, n), np.float64, left, right)

    def work(first: int, last: int) -> None:
        _kernels.gemm_f64(left, transposed, rows, first, last - first, k, n, right, accumulate, result)

    over_ranges(rows, threads, work, grain=4)
    return result


def matmul(
    a: Any,
    b: Any,
    *,
    a_zero_point: int = 0,
    b_zero_point: Any = 0,
    epilogue: Epilogue | None = None,
    threads: int = 1,
    wrap: bool = False,
) -> Array:
    """Integer product of two activations, batched as NumPy's ``@``: packs `b` anew for every matrix.

    Parameters
    ----------
    a : uint8 or int8 array (..., M, K)
    b : uint8 or int8 array (..., K, N)
    a_zero_point, b_zero_point : int
        `b_zero_point` may have one value a column.
    """
    left, right = dense(a, "a", ["uint8", "int8"]), dense(b, "b", ["uint8", "int8"])
    if left.ndim < 2 or right.ndim < 2 or left.shape[-1] != right.shape[-2]:
        raise Error(f"shapes {left.shape} and {right.shape} do not multiply")

    def one(x: Array, y: Array, o: Array) -> Array:
        return gemm(
            x,
            pack(y, zero_point=b_zero_point),
            a_zero_point=a_zero_point,
            epilogue=epilogue,
            out=o,
            threads=threads,
            wrap=wrap,
        )

    return _batched(left, right, "int32" if epilogue is None else epilogue.dtype, one)


def _batched(a: Array, b: Array, dtype: Any, one: Any) -> Array:
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise Error(f"shapes {a.shape} and {b.shape} do not broadcast") from None
    whole = empty((*batch, a.shape[-2], b.shape[-1]), dtype)
    wide_a, wide_b = np.broadcast_to(a, (*batch, *a.shape[-2:])), np.broadcast_to(b, (*batch, *b.shape[-2:]))
    for index in np.ndindex(*batch):
        one(wide_a[index], wide_b[index], whole[index])
    return whole


def sum_f32(x: Any, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Array:
    """Sum in the fixed order: 8 interleaved partial sums over the reduced elements (row-major), then the tree.

    Parameters
    ----------
    x : float32 array; float16 or bfloat16, summed as float32 and rounded once
    axis : int, tuple of int, or None for all
    keepdims : bool
    """
    half = half_name(x)
    if half is not None:
        return narrow(sum_f32(widen(x), axis, keepdims=keepdims), half)
    given = dense(x, "x", ["float32"])
    try:
        axes = np.lib.array_utils.normalize_axis_tuple(tuple(range(given.ndim)) if axis is None else axis, given.ndim)
    except (ValueError, TypeError, OverflowError) as error:
        raise Error(f"axis {axis} does not fit shape {given.shape}", why=str(error)) from None
    axes = tuple(sorted(axes))
    kept = [d for d in range(given.ndim) if d not in axes]
    shape = tuple(given.shape[d] for d in kept)
    whole = np.empty(shape, np.float32)
    k = math.prod(given.shape[d] for d in axes)
    if axes and axes == tuple(range(axes[0], axes[-1] + 1)):  # one run of axes: no copy
        outer, inner = math.prod(given.shape[: axes[0]]), math.prod(given.shape[axes[-1] + 1 :])
    else:
        given, outer, inner = np.ascontiguousarray(given.transpose(*kept, *axes)), math.prod(shape), 1
    _kernels.sum_f32(outer, k, inner, given, whole)
    return whole.reshape([1 if d in axes else s for d, s in enumerate(np.shape(x))]) if keepdims else whole
