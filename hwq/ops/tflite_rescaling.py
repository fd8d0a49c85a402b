"""From accumulators to stored integers: the roundings of LiteRT's reference kernels, by operator and type."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops.tflite_base import Call, clamp

__all__ = ["channel_scales", "requantize_convolution", "requantize_matrices", "requantize_rows", "rescale"]


def channel_scales(call: Call, first: int = 0, second: int = 1) -> NDArray[np.float64]:
    """``(f64(s_in) * f64(s_w)) / f64(s_out)`` for each channel, or one for all."""
    weights = call.scheme(second).scales().astype(np.float64)
    return np.asarray(np.float64(call.scale(first)) * weights / np.float64(call.made_scale()))


def product_scale(call: Call, first: int = 0, second: int = 1) -> np.float64:
    """``f64(f32(s_in * s_w)) / f64(s_out)``: the product of the two scales is rounded to float32 first."""
    return np.float64(np.float32(call.scale(first) * call.scale(second))) / np.float64(call.made_scale())


def rescale(call: Call, total: fixed.Int64, real: object) -> Array:
    """R1, zero point, activation."""
    mantissa, shift = fixed.quantize_multipliers(real)
    return clamp(call, fixed.multiply(fixed.wrap32(total), mantissa, shift) + call.made_zero_point())


def requantize_convolution(
    call: Call, total: fixed.Int64, bias: Array | None, first: int = 0, second: int = 1
) -> Array:
    """CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV: R1, or R5 for int16 activations without an int32 bias."""
    if bias is not None:
        total = total + bias.astype(np.int64)
    if call.dtype(first) == "uint8":
        return rescale(call, total, product_scale(call, first, second))
    if call.dtype(first) == "int16" and (bias is None or bias.dtype != np.int32):
        mantissa, shift = fixed.quantize_multipliers(channel_scales(call, first, second))
        return clamp(call, fixed.multiply_wide(total, mantissa, shift) + call.made_zero_point())
    return rescale(call, total, channel_scales(call, first, second))


def requantize_rows(call: Call, total: fixed.Int64, bias: Array | None) -> Array:
    """FULLY_CONNECTED: R2, in float64 with one rounding; older runtimes (``litert-ref-fixedfc``) R1."""
    if bias is not None:
        total = total + bias.astype(np.int64)
    if call.dtype(0) != "int16" or (bias is not None and bias.dtype == np.int32):
        total = fixed.wrap32(total)
    if call.dialect == "litert-ref-fixedfc":
        per_channel = call.scheme(1).scales().size > 1
        real = channel_scales(call) if per_channel else product_scale(call)
        if call.dtype(0) == "int16":
            mantissa, shift = fixed.quantize_multipliers(real)
            return clamp(call, fixed.multiply_wide(total, mantissa, shift) + call.made_zero_point())
        return rescale(call, total, real)
    scaled = fixed.away(total.astype(np.float64) * channel_scales(call))
    bounded = np.clip(scaled, fixed.INT32_MIN, fixed.INT32_MAX).astype(np.int64)
    return clamp(call, bounded + call.made_zero_point())


def requantize_matrices(call: Call, total: fixed.Int64) -> Array:
    """BATCH_MATMUL: R1, for int16 R5."""
    if call.dtype(0) == "int16":
        mantissa, shift = fixed.quantize_multipliers(product_scale(call))
        return clamp(call, fixed.multiply_wide(total, mantissa, shift) + call.made_zero_point())
    return rescale(call, total, product_scale(call))
