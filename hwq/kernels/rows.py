"""What treats every row alone: dynamic quantization, integer softmax, integer layer normalization."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.epilogue import quantize_multiplier
from hwq.kernels.operands import (
    TYPES,
    Array,
    dense,
    dtype_of,
    floats,
    integer,
    one_of,
    output,
    over_ranges,
    real,
    zero_point,
)

__all__ = ["dynamic_quantize", "layer_norm", "softmax"]

DYNAMIC = {
    "onnx": "uint8",
    "tflite-symmetric": "int8",
    "tflite-asymmetric": "int8",
    "xnnpack": "int8",
    "torch": "uint8",
    "torch-reduced": "uint8",
    "symmetric": "int8",
}  # formula -> dtype of the result, in the C enum's order

NORMALIZATIONS = ("lstm", "exact")  # the C enum's order

# The least scale of xnnpack's result: its quotients are below 2^20, which int32 and float32 hold with a fraction.
LEAST_SCALE = 2.0**-20


def dynamic_quantize(
    x: Any, *, formula: str = "onnx", per_row: bool = False, out: Array | None = None, threads: int = 1
) -> tuple[Array, Array, Array]:
    """Quantize float32 over its own range, which always contains 0.

    Parameters
    ----------
    x : float32 array
    formula : {"onnx", "tflite-symmetric", "tflite-asymmetric", "xnnpack", "torch", "torch-reduced"}
        ONNX DynamicQuantizeLinear; LiteRT's hybrid kernels; XNNPACK's; torch's choose_qparams with quantize_per_tensor,
        over 8 or 7 bits. Formulas: kernels/README.md.
    per_row : bool
        One range for each row of the last axis instead of one for all.
    out : uint8 or int8 array, optional
    threads : int
        Over rows.

    Returns
    -------
    values : uint8 array (int8 for tflite and xnnpack)
    scale : float32 array, of shape () or ``x.shape[:-1]``
    zero_point : array like scale, of the values' dtype
    """
    given = dense(x, "x", ["float32"])
    one_of(formula, DYNAMIC, "dynamic formula")
    if per_row and not given.ndim:
        raise Error("per_row needs an array of at least one dimension")
    result = output(out, given.shape, DYNAMIC[formula], given)
    shape: tuple[int, ...] = given.shape[:-1] if per_row else ()
    rows, columns = math.prod(shape), given.shape[-1] if per_row else given.size
    scales, points = np.empty(shape, np.float32), np.empty(shape, np.int32)
    code = list(DYNAMIC).index(formula)

    def work(first: int, last: int) -> None:
        _kernels.dynamic_quantize(code, first, last - first, columns, given, result, scales, points)

    over_ranges(rows, threads, work)
    return result, scales, points.astype(result.dtype)


@functools.lru_cache(maxsize=64)
def _prepared(
    formula: int, kind: int, out_kind: int, scale: float, beta: float, made_scale: float, zero_point: int, columns: int
) -> _kernels.Softmax:
    table, inverse = None, 0.0
    if formula == 2:
        # Exponentials of the distances to the largest, shifted up as far as float32 can sum `columns` of them.
        most = np.finfo(np.float32).max / np.float32(max(columns, 1))
        shift = max(0.0, float(np.float32(math.log(float(most)))) - 5.0) / scale
        table = floats([math.exp((i - 255 + shift) * scale) for i in range(256)], np.float32)
        inverse = float(np.floor(np.float32(1) / np.float32(made_scale)))
    elif formula == 3:
        table, scale = exponentials(scale, beta), made_scale
    return _kernels.Softmax(formula, kind, out_kind, scale, beta, table, inverse, zero_point)


def exponentials(scale: float, beta: float) -> Array:
    """XNNPACK's table: entry 255 - d is f32(exp(f32(d f32(-scale beta))))."""
    with np.errstate(over="ignore"):
        step = np.float32(-np.float32(scale) * np.float32(beta))
        distances = (step * np.arange(255, -1, -1).astype(np.float32)).astype(np.float64)
    return np.exp(distances).astype(np.float32)


def softmax(
    x: Any,
    scale: float,
    *,
    formula: str = "tflite",
    beta: float = 1.0,
    dtype: DTypeLike | None = None,
    result_scale: float = 1 / 256,
    result_zero_point: int = 0,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """Softmax over the last axis of a quantized tensor; its zero point cancels.

    Parameters
    ----------
    x : uint8 or int8 array (tflite: int16 too)
    scale : float
        Of `x`, as the float32 it is.
    formula : {"tflite", "ort", "xnnpack"}
        ``tflite``: fixed point of 8-bit tensors, two interpolated tables for int16; the result's scale is 1/256 (1/32768
        for int16) and its zero point the lowest value. ``ort``: QLinearSoftmax, float table; int8 wraps as it does.
        ``xnnpack``: LiteRT's default for 8 bits, the float table and one reciprocal a row; the result's scale is at least 2^-20.
    beta : float
        Of tflite and xnnpack.
    dtype : optional
        Of the result: x's by default; tflite also makes int16 of 8-bit tensors.
    result_scale, result_zero_point
        Of ort and xnnpack.
    out, threads
        Rows are split over threads.

    Returns
    -------
    array of x's shape
    """
    given = dense(x, "x", ["uint8", "int8", "int16"])
    made = given.dtype if dtype is None else dtype_of(dtype, "dtype")
    one_of(formula, ("tflite", "ort", "xnnpack"), "softmax formula")
    pairs = {("int16", "int16")} if given.dtype == np.int16 else {(given.dtype.name, given.dtype.name)}
    if formula == "tflite" and given.dtype != np.int16:
        pairs.add((given.dtype.name, "int16"))
    if (given.dtype.name, made.name) not in pairs or (formula != "tflite" and given.dtype == np.int16):
        raise Error(f"{formula} softmax does not make {made} of {given.dtype}")
    if not given.ndim:
        raise Error("softmax needs an axis")
    for name, value in (("scale", scale), ("beta", beta), ("result_scale", result_scale)):
        real(value, name)
        if not (np.isfinite(value) and floats(value, np.float32) > 0):
            raise Error(f"scales and beta must be positive and finite, not {value}")
    code = {"ort": 2, "xnnpack": 3}.get(formula, int(given.dtype == np.int16))
    point, columns = integer(result_zero_point, "result_zero_point"), given.shape[-1]
    if not -(2**31) <= point < 2**31:
        raise Error(f"result_zero_point {point} does not fit int32")
    if code == 1 and real(scale, "scale") * real(beta, "beta") * 65535 / 10 >= 2.0**31:
        raise Error(f"scale {scale} is too large", why="neighboring int16 values are infinitely far apart")
    if formula == "xnnpack":
        point = zero_point(result_zero_point, made, "result_zero_point")
        if result_scale < LEAST_SCALE:
            raise Error(f"the result's scale is {result_scale}", remedy="at least 2^-20")
    door = _prepared(
        code,
        TYPES[given.dtype],
        TYPES[made],
        float(floats(scale, np.float32)),
        float(beta),
        float(result_scale),
        point,
        columns if code == 2 else 0,
    )
    result = output(out, given.shape, made, given)
    over_ranges(
        math.prod(given.shape[:-1]), threads, lambda first, last: door.run(first, last - first, columns, given, result)
    )
    return result


class Terms(NamedTuple):
    """What the kernel is told of a normalization's scales: weight_scale / scale in fixed point, epsilon in n^2-fold squared steps."""

    multiplier: int
    shift: int
    epsilon: int


def normalization_terms(
    factors: Array, offsets: Array | None, weight_scale: float, formula: str, epsilon: float, scale: float
) -> Terms:
    """See `layer_norm`.

    Raises
    ------
    Error
        A result could pass the 32 bits of the last multiplication, or a number is out of range.
    """
    columns = len(factors)
    weight_scale, scale, epsilon = (
        real(v, n) for v, n in ((weight_scale, "weight_scale"), (scale, "scale"), (epsilon, "epsilon"))
    )
    for name, value in (("weight_scale", weight_scale), ("scale", scale)):
        if not 0 < value < 2**31:
            raise Error(f"{name} {value} is not positive and finite")
    if not (np.isfinite(epsilon) and epsilon >= 0):
        raise Error(f"epsilon {epsilon} is negative or not finite")
    multiplier, shift = (int(v) for v in quantize_multiplier(weight_scale / max(scale * 4096, 2.0**-1022)))
    if not -43 <= shift <= 19:
        raise Error(f"the ratio of weight_scale {weight_scale} and scale {scale} lies outside [2^-56, 2^7]")
    # A normalized value is at most sqrt(N); times the weight, plus the bias, then shifted left before the multiplication.
    reach = math.sqrt(columns) * _largest(factors) + _largest(offsets) / 1024 + 1
    if formula == "exact" and reach * 2.0 ** max(shift + 12, 0) >= 2.0**31:
        raise Error(f"a result could be {reach * weight_scale:.3g}, too many steps of {scale}", remedy="a larger scale")
    return Terms(multiplier, shift, int(min(epsilon * columns * columns, 2.0**62) + 0.5))


def layer_norm(
    x: Any,
    weights: Any,
    bias: Any = None,
    *,
    weight_scale: float,
    variance_limit: int = 1,
    formula: str = "lstm",
    epsilon: float = 0.0,
    scale: float = 2.0**-12,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """Integer layer normalization over the last axis; the result has zero point 0.

    Parameters
    ----------
    x : int16 array (..., N)
    weights : int16 array (N,)
    bias : int32 array (N,), optional
        In steps of ``weight_scale / 1024``.
    weight_scale : float
    variance_limit : int
        Of lstm: stands for a variance below 1.
    formula : {"lstm", "exact"}
        ``lstm``: the row's statistics as TFLite's quantized LSTM computes them (``ApplyLayerNorm``; documented, not compared
        with a runtime: none of those at hand offers it as an operator); N at most 2^20, best a power of two. ``exact``: the
        variance from 64-bit sums; N at most 2^16.
    epsilon : float
        Of exact: added to the variance, in squared steps of `x`.
    scale : float
        Of the result.

    Raises
    ------
    Error
        Operands do not fit, or a result could pass the 32 bits of the last multiplication.
    """
    given, factors = dense(x, "x", ["int16"]), dense(weights, "weights", ["int16"])
    columns = given.shape[-1] if given.ndim else 0
    offsets = None if bias is None else dense(bias, "bias", ["int32"])
    one_of(formula, NORMALIZATIONS, "normalization formula")
    longest = 2**20 if formula == "lstm" else 2**16
    if not given.ndim or columns > longest or factors.shape != (columns,):
        raise Error(
            f"x has shape {given.shape}, weights {factors.shape}", why=f"{formula} takes rows of at most {longest}"
        )
    if offsets is not None and offsets.shape != (columns,):
        raise Error(f"bias has shape {offsets.shape}", why=f"there are {columns} columns")
    terms = normalization_terms(factors, offsets, weight_scale, formula, epsilon, scale)
    variance_limit = integer(variance_limit, "variance_limit")
    if not 0 < variance_limit < 2**31:
        raise Error(f"variance_limit {variance_limit} is not positive and finite")
    result = output(out, given.shape, np.int16, given, factors, offsets)

    def work(first: int, last: int) -> None:
        _kernels.layer_norm_s16(
            first, last - first, columns, given, factors, offsets, terms.multiplier, terms.shift,
            NORMALIZATIONS.index(formula), variance_limit, terms.epsilon, result,
        )  # fmt: skip

    over_ranges(math.prod(given.shape[:-1]), threads, work)
    return result


def _largest(values: Array | None) -> float:
    return 0.0 if values is None or not values.size else float(np.abs(values.astype(np.int64)).max())
