"""Stored types: ranges, saturation, wrap-around and conversion of every element type that ONNX stores."""

from __future__ import annotations

from typing import Any

import numpy as np

from hwq.elements import stored_type
from hwq.graph import BITS, Array, carrier

__all__ = ["convert", "integer_range", "is_integer", "saturate", "spread"]


def is_integer(dtype: str) -> bool:
    """Whether `dtype` stores integers."""
    return dtype.startswith(("int", "uint"))


def integer_range(dtype: str) -> tuple[int, int]:
    """Lowest and highest value of an integer type, sub-byte types and a plan's int3, int5 and int6 included."""
    bits = BITS[dtype] if stored_type(dtype) == dtype else int(dtype.removeprefix("int"))
    return (0, (1 << bits) - 1) if dtype.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def saturate(x: Array, dtype: str) -> Array:
    """Integral floats or integers clipped to the range of `dtype`, in its carrier. NaN gives the lowest value."""
    low, high = integer_range(dtype)
    if x.dtype.kind == "f":
        # float(high) of 64-bit types is the next power of two, which no integer type holds: it is put in apart.
        wide = np.where(np.isnan(x), float(low), np.clip(x.astype(np.float64), float(low), float(high)))
        top = wide >= float(high)
        return np.where(top, carrier(dtype).type(high), np.where(top, 0.0, wide).astype(carrier(dtype)))
    if x.dtype == np.uint64:
        return np.minimum(x, np.uint64(high)).astype(carrier(dtype))
    return np.clip(x.astype(np.int64), low, min(high, (1 << 63) - 1)).astype(carrier(dtype))


def spread(values: Array, shape: tuple[int, ...], axis: int | None, block: int | None) -> Array:
    """A scale or zero point made broadcastable to `shape`: one value, one a channel of `axis`, or one a block along it.

    Raises
    ------
    ValueError
        The numbers do not fit.
    """
    if values.size == 1 and values.ndim < 2 and not block:
        return values.reshape(())
    if axis is None or not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"a scale of shape {list(values.shape)} needs an axis inside the tensor's {len(shape)} dimensions"
        )
    axis %= len(shape)
    if not block:
        if values.ndim != 1 or values.size != shape[axis]:
            raise ValueError(f"a scale of shape {list(values.shape)} does not fit axis {axis} of {list(shape)}")
        return values.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    blocks = -(-shape[axis] // block)
    if values.shape != (*shape[:axis], blocks, *shape[axis + 1 :]):
        raise ValueError(
            f"a scale of shape {list(values.shape)} does not fit blocks of {block} along axis {axis} of {list(shape)}"
        )
    return np.repeat(values, block, axis=axis)[tuple(slice(0, dim) for dim in shape)]


def convert(x: Array, dtype: str, *, saturating: bool = True, rounding: str = "up") -> Array:
    """ONNX Cast: to `dtype`, in its carrier.

    Floats go to integers by truncation (out of range: saturated, NaN: 0), integers to narrower ones by wrap-around,
    floats to narrower ones by rounding to nearest even; float8 saturates or overflows to its infinity or NaN.
    """
    with np.errstate(all="ignore"):  # overflow and NaN are part of the definition
        return _converted(x, dtype, saturating, rounding)


def _converted(x: Array, dtype: str, saturating: bool, rounding: str) -> Array:
    target = carrier(dtype)
    if dtype == "string":
        return _texts(x)
    if x.dtype == object:
        x = np.array([float(str(item)) for item in x.ravel()], np.float64).reshape(x.shape)
    if dtype == "bool":
        return np.asarray(x.astype(np.float32) != 0 if _small_float(x) else x != 0)
    if is_integer(dtype):
        return _to_integer(x, dtype)
    if dtype == "float8e8m0":
        return _to_power_of_two(x, saturating, rounding)
    if dtype.startswith(("float8", "float4")):
        return _to_small_float(x, target, saturating or dtype == "float4e2m1")
    return x.astype(np.float32).astype(target) if _small_float(x) else x.astype(target)


def _small_float(x: Array) -> bool:
    return x.dtype.kind == "V" or x.dtype.name.startswith(("bfloat", "float8", "float4"))


def _texts(x: Array) -> Array:
    result = np.empty(x.shape, object)
    for index, value in np.ndenumerate(x):
        result[index] = str(value)
    return result


def _to_integer(x: Array, dtype: str) -> Array:
    if x.dtype.kind not in "fV" and not _small_float(x):
        wide = x.astype(np.int64) if x.dtype != np.uint64 else x
        return _wrapped(wide, dtype)
    if _small_float(x):
        x = x.astype(np.float32)
    whole = np.trunc(np.where(np.isnan(x), 0, x))
    if BITS[dtype] < 8:  # the low bits, as ONNX's own cases have it; 2**62 keeps the conversion defined
        return _wrapped(np.clip(whole.astype(np.float64), -(2.0**62), 2.0**62).astype(np.int64), dtype)
    return saturate(whole, dtype)


def _wrapped(x: Array, dtype: str) -> Array:
    bits = BITS[dtype]
    if bits >= 8:
        return x.astype(carrier(dtype))
    low = (x & ((1 << bits) - 1)).astype(np.int64)
    if not dtype.startswith("u"):
        low = np.where(low >= 1 << (bits - 1), low - (1 << bits), low)
    return low.astype(carrier(dtype))


def _to_small_float(x: Array, target: np.dtype[Any], saturating: bool) -> Array:
    import ml_dtypes

    wide = x.astype(np.float32)
    if saturating:
        peak = float(ml_dtypes.finfo(target).max)  # type: ignore[no-untyped-call]
        return np.clip(wide, -peak, peak).astype(target)  # NaN stays NaN
    return wide.astype(target)


def _to_power_of_two(x: Array, saturating: bool, rounding: str) -> Array:
    """float8e8m0: the exponent alone. 0 and negative numbers have none: they become NaN or the lowest power."""
    wide = x.astype(np.float64)
    mantissa, exponent = np.frexp(np.abs(wide))  # wide = mantissa * 2**exponent, mantissa in [0.5, 1)
    power = exponent - 1
    if rounding == "up":
        power = power + (mantissa > 0.5)
    elif rounding == "nearest":
        power = power + (mantissa >= 0.75)
    elif rounding != "down":
        raise ValueError(f"round_mode = {rounding!r} is not up, down or nearest")
    bits = power + 127
    overflow = 254 if saturating else 255
    bits = np.where(bits > 254, overflow, np.maximum(bits, 0))
    bits = np.where(wide == 0, 0, bits)
    bits = np.where(np.isnan(wide), 255, np.where(np.isinf(wide), overflow, bits))
    return bits.astype(np.uint8).view(carrier("float8e8m0"))
