"""FP16 and BF16: operands rounded to nearest even, float32 accumulation in the fixed order, the result rounded once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.operands import Array, dense, dtype_of, output, over_ranges

__all__ = ["HALVES", "gemm_half", "half_name", "narrow", "widen"]

HALVES = {"float16": _kernels.F16, "bfloat16": _kernels.BF16}


def half_name(array: Any) -> str | None:
    """``float16`` or ``bfloat16`` (ml_dtypes) where the array has that dtype, else None."""
    name = str(getattr(getattr(array, "dtype", None), "name", ""))
    return name if name in HALVES else None


def half_dtype(dtype: DTypeLike | str) -> np.dtype[Any]:
    """The dtype of a name in `HALVES`.

    Raises
    ------
    Error
        Another dtype.
    """
    name = dtype if isinstance(dtype, str) else dtype_of(dtype, "dtype").name
    if name == "bfloat16":
        import ml_dtypes

        made: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return made
    if name != "float16":
        raise Error(f"{name} is not a 16-bit float", remedy="float16 or bfloat16")
    return np.dtype(np.float16)


def widen(x: Any, *, out: Array | None = None) -> Array:
    """float16 or bfloat16 to float32, exact."""
    given = np.asarray(x)
    name = half_name(given)
    if name is None:
        raise Error(f"x has dtype {given.dtype}", remedy="pass float16 or bfloat16")
    given = np.ascontiguousarray(given, given.dtype.newbyteorder("=")).reshape(given.shape)
    result = output(out, given.shape, np.float32)
    _kernels.widen(HALVES[name], given.size, given.view(np.uint16), result)
    return result


def narrow(x: Any, dtype: DTypeLike | str, *, out: Array | None = None) -> Array:
    """float32 to float16 or bfloat16, nearest even; beyond the largest value infinite, NaN quiet."""
    given, made = dense(x, "x", ["float32"]), half_dtype(dtype)
    result = output(out, given.shape, made)
    _kernels.narrow(HALVES[made.name], given.size, given, result.view(np.uint16))
    return result


def float_bias(bias: Any, columns: int) -> Array | None:
    """A bias as float32: given so, or widened."""
    if bias is None:
        return None
    given = widen(bias) if half_name(np.asarray(bias)) else dense(bias, "bias", ["float32"])
    if given.shape != (columns,):
        raise Error(f"bias has shape {given.shape}", why=f"there are {columns} columns")
    return given


def gemm_half(a: Any, weights: Array, dtype: str, k: int, n: int, bias: Any, out: Array | None, threads: int) -> Array:
    """`hwq.kernels.gemm` of 16-bit floats: `weights` are widened and packed, `dtype` is theirs and must be a's."""
    given = np.asarray(a)
    if half_name(given) != dtype:
        raise Error(f"a has dtype {given.dtype}", why=f"the weights are {dtype}", remedy=f"pass {dtype}")
    if not given.ndim or given.shape[-1] != k:
        raise Error(f"a has shape {given.shape}", why=f"the weights have K = {k}")
    given = np.ascontiguousarray(given, given.dtype.newbyteorder("=")).reshape(given.shape)
    offsets, shape = float_bias(bias, n), (*given.shape[:-1], n)
    result = output(out, shape, half_dtype(dtype), given, offsets)
    bits, made = given.view(np.uint16), result.view(np.uint16)

    def work(first: int, last: int) -> None:
        _kernels.gemm_half(HALVES[dtype], bits, first, last - first, k, n, weights, offsets, made)

    over_ranges(math.prod(shape[:-1]), threads, work, grain=24)
    return result
