"""Quantize, dequantize, tables, nibbles, and elementwise operators on quantized tensors."""

from __future__ import annotations

import math
from typing import Any, Required, TypedDict, Unpack

import numpy as np
from numpy.typing import DTypeLike

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.epilogue import Binary, clamp_bounds
from hwq.kernels.operands import (
    RANGES,
    TYPES,
    Array,
    array_of,
    dense,
    dtype_of,
    floats,
    in_memory_order,
    integer,
    one_of,
    output,
    real,
)

__all__ = ["add", "binary", "dequantize", "fake_quantize", "lut", "mul", "pack_int4", "quantize", "sub", "unpack_int4"]

FORMULAS = (
    "onnx",
    "reciprocal",
    "tflite",
    "torch-tensor",
    "torch-channel",
    "torch-fake",
    "ort-pool",
)  # the C enum's order


def binary(operator: Binary, a: Any, b: Any, *, out: Array | None = None) -> Array:
    """Apply a prepared elementwise operator to two quantized tensors, broadcast as NumPy does."""
    if not isinstance(operator, Binary):
        raise Error(f"operator must be a Binary, not {type(operator).__name__}")
    left, right = dense(a, "a", [operator.a_dtype]), dense(b, "b", [operator.b_dtype])
    try:
        shape = np.broadcast_shapes(left.shape, right.shape)
    except ValueError:
        raise Error(f"shapes {left.shape} and {right.shape} do not broadcast") from None
    result = output(out, shape, operator.dtype, left, right)
    steps = []
    pair = []
    for operand in (left, right):
        steps.append(0 if operand.size == 1 else 1)
        pair.append(
            operand
            if operand.size == 1 or operand.shape == shape
            else np.ascontiguousarray(np.broadcast_to(operand, shape))
        )
    operator._door.run(math.prod(shape), pair[0], steps[0], pair[1], steps[1], result)
    return result


class Quantizations(TypedDict, total=False):
    """Keywords of `add`, `sub` and `mul`: the fields of `Binary`. The three scales must be given."""

    a_scale: Required[float]
    b_scale: Required[float]
    scale: Required[float]
    a_zero_point: int
    b_zero_point: int
    zero_point: int
    clamp: tuple[int, int] | None


def _named(
    name: str, a: Any, b: Any, formula: str, dtype: DTypeLike | None, out: Array | None, given: Quantizations
) -> Array:
    left, right = array_of(a, "a"), array_of(b, "b")
    operator = Binary(
        formula=formula if str(formula).endswith(f"-{name}") else f"{formula}-{name}",
        a_dtype=left.dtype.name,
        b_dtype=right.dtype.name,
        dtype=left.dtype.name if dtype is None else dtype_of(dtype, "dtype").name,
        **given,
    )
    return binary(operator, left, right, out=out)


def add(
    a: Any,
    b: Any,
    *,
    formula: str = "ort",
    dtype: DTypeLike | None = None,
    out: Array | None = None,
    **quantizations: Unpack[Quantizations],
) -> Array:
    """Quantized sum.

    Parameters
    ----------
    a, b : uint8 or int8 array (int16 too for tflite), broadcast as NumPy does
    formula : {"ort", "tflite", "xnnpack", "torch"}
    dtype : optional
        Of the result; a's by default.
    **quantizations
        ``a_scale b_scale scale``, and optionally ``a_zero_point b_zero_point zero_point clamp``: see `Binary`.
    """
    return _named("add", a, b, formula, dtype, out, quantizations)


def sub(
    a: Any,
    b: Any,
    *,
    formula: str = "tflite",
    dtype: DTypeLike | None = None,
    out: Array | None = None,
    **quantizations: Unpack[Quantizations],
) -> Array:
    """Quantized difference, as `add`. Formulas: ``tflite xnnpack``."""
    return _named("sub", a, b, formula, dtype, out, quantizations)


def mul(
    a: Any,
    b: Any,
    *,
    formula: str = "ort",
    dtype: DTypeLike | None = None,
    out: Array | None = None,
    **quantizations: Unpack[Quantizations],
) -> Array:
    """Quantized product, as `add`. Formulas: ``ort tflite xnnpack torch``."""
    return _named("mul", a, b, formula, dtype, out, quantizations)


def _channels(shape: tuple[int, ...], axis: int | None) -> tuple[int, int, int]:
    if axis is None:
        return 1, 1, math.prod(shape)
    axis = integer(axis, "axis")
    if not -len(shape) <= axis < len(shape):
        raise Error(f"axis {axis} does not fit shape {shape}")
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _parameters(scale: Any, zero_point: Any, channels: int, axis: int | None) -> tuple[Array, Array]:
    scales, points = array_of(scale, "scale"), array_of(zero_point, "zero_point")
    if scales.dtype.kind not in "fiu" or points.dtype.kind not in "iu":
        raise Error(f"scale must be float32 and zero_point an integer, not {scales.dtype} and {points.dtype}")
    for name, values in (("scale", scales), ("zero_point", points)):
        if values.size != 1 and (axis is None or values.shape != (channels,)):
            raise Error(
                f"{name} has shape {values.shape}",
                why=f"one value{'' if axis is None else f' or {channels}'} is needed",
            )
    if points.size and (points.min() < -(2**31) or points.max() >= 2**31):
        raise Error("a zero point does not fit int32")
    spread = (channels,)
    return (
        floats(scales.reshape(-1), np.float32, spread),
        np.ascontiguousarray(np.broadcast_to(points.reshape(-1), spread), np.int32),
    )


def quantize(
    x: Any,
    scale: Any,
    zero_point: Any = 0,
    dtype: DTypeLike | str = "uint8",
    *,
    axis: int | None = None,
    formula: str = "onnx",
    clamp: tuple[int, int] | None = None,
    out: Array | None = None,
) -> Array:
    """float32 to integers, in the formula of one runtime.

    Parameters
    ----------
    x : float32 array
    scale, zero_point : scalar, or 1-D along `axis`
        Scales are used as the float32 they are; 0, negative and infinite ones follow IEEE, as in onnxruntime.
    dtype : {"uint8", "int8", "uint16", "int16", "int4", "uint4"}
        int4 and uint4 come back one per int8 or uint8 (see `pack_int4`).
    axis : int, optional
    formula : {"onnx", "reciprocal", "tflite", "torch-tensor", "torch-channel", "torch-fake", "ort-pool"}
        ``onnx``: ``rint(clip(f32(x / s), lo - zp, hi - zp)) + zp``. The others: kernels/README.md.
    clamp : (int, int), optional
        Narrower bounds inside the type's range.
    """
    given = dense(x, "x", ["float32"])
    name = dtype if isinstance(dtype, str) and dtype in ("int4", "uint4") else dtype_of(dtype, "dtype").name
    if name not in RANGES or name == "int32":
        raise Error(f"quantize does not know dtype {name}")
    one_of(formula, FORMULAS, "formula of quantize")
    lo, hi = clamp_bounds(clamp, name)
    outer, channels, inner = _channels(given.shape, axis)
    scales, points = _parameters(scale, zero_point, channels, axis)
    if points.size and not (RANGES[name][0] <= points.min() and points.max() <= RANGES[name][1]):
        raise Error(f"a zero point does not fit {name}")
    stored = np.dtype({"int4": "int8", "uint4": "uint8"}.get(name, name))
    result = output(out, given.shape, stored, given)
    _kernels.quantize(
        FORMULAS.index(formula), outer, channels, inner, given, scales, points, lo, hi, result, TYPES[stored]
    )
    return result


def dequantize(q: Any, scale: Any, zero_point: Any = 0, *, axis: int | None = None, out: Array | None = None) -> Array:
    """``f32(q - zp) * s`` in float32.

    Parameters
    ----------
    q : uint8, int8, uint16, int16 or int32 array
    scale, zero_point : scalar, or 1-D along `axis`
    """
    given = dense(q, "q", ["uint8", "int8", "uint16", "int16", "int32"])
    outer, channels, inner = _channels(given.shape, axis)
    scales, points = _parameters(scale, zero_point, channels, axis)
    lo, hi = RANGES[given.dtype.name]
    if points.size and not (lo <= points.min() and points.max() <= hi):
        raise Error(f"a zero point does not fit {given.dtype}")
    result = output(out, given.shape, np.float32, given)
    _kernels.dequantize(outer, channels, inner, given, TYPES[given.dtype], scales, points, result)
    return result


def fake_quantize(x: Any, scale: Any, zero_point: int, dtype: str = "uint8") -> Array:
    """``dequantize(quantize(x, scale, zero_point, dtype), scale, zero_point)`` in one pass, for one scale.

    Parameters
    ----------
    x : float32 array
        What is dense in another order of axes, such as a channel-last image, stays so.
    scale : float32 scalar
    zero_point : int
        Within the type.
    dtype : {"uint8", "int8", "uint16", "int16", "int4", "uint4"}
    """
    given = array_of(x, "x")
    if given.dtype != np.float32 or not isinstance(dtype, str) or dtype not in RANGES or dtype == "int32":
        raise Error(f"fake_quantize takes float32, not {given.dtype}, and a type of up to 16 bits, not {dtype}")
    (lo, hi), zero_point = RANGES[dtype], integer(zero_point, "zero_point")
    if not lo <= zero_point <= hi:
        raise Error(f"a zero point does not fit {dtype}")
    lines = in_memory_order(given)
    if lines is None:
        given = np.ascontiguousarray(given)
        lines = given.reshape(-1)
    result = np.empty_like(given)
    _kernels.fake_quantize(
        lines.size, lines, real(floats(scale, np.float32), "scale"), zero_point, lo, hi, result.ravel("K")
    )
    return result


def lut(x: Any, table: Any, *, out: Array | None = None) -> Array:
    """Replace every byte by a table entry, indexed by value - lowest value.

    Parameters
    ----------
    x : uint8 or int8 array
    table : uint8 or int8 array (256,)
        ``f(np.arange(-128, 128))`` for int8, ``f(np.arange(256))`` for uint8.

    Returns
    -------
    array of x's shape and the table's dtype
    """
    given, entries = dense(x, "x", ["uint8", "int8"]), dense(table, "table", ["uint8", "int8"])
    if entries.shape != (256,):
        raise Error(f"a table has 256 entries, not shape {entries.shape}")
    result = output(out, given.shape, entries.dtype, entries)
    _kernels.lut(given, given.dtype == np.int8, entries, result, given.size)
    return result


def pack_int4(x: Any) -> Array:
    """Two nibbles per byte, first element low, flattened row-major; an odd last high nibble is 0.

    Parameters
    ----------
    x : int8 in [-8, 7] or uint8 in [0, 15]

    Returns
    -------
    uint8 array (ceil(size / 2),)
    """
    given = dense(x, "x", ["int8", "uint8"])
    lo, hi = RANGES["int4" if given.dtype == np.int8 else "uint4"]
    if given.size and not (lo <= given.min() and given.max() <= hi):
        raise Error(f"a value lies outside [{lo}, {hi}]")
    packed = np.empty((given.size + 1) // 2, np.uint8)
    _kernels.pack_int4(given, packed, given.size)
    return packed


def unpack_int4(packed: Any, count: int, *, signed: bool = True) -> Array:
    """The first `count` nibbles, as int8 (signed) or uint8."""
    given, count = dense(packed, "packed", ["uint8", "int8"]), integer(count, "count")
    if count < 0 or (count + 1) // 2 > given.size:
        raise Error(f"{given.size} bytes do not hold {count} nibbles")
    result = np.empty(count, np.int8 if signed else np.uint8)
    _kernels.unpack_int4(given, signed, result, count)
    return result
