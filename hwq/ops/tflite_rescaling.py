"""From accumulators to stored integers: LiteRT's roundings, by operator, type and dialect."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwq import numerics
from hwq.graph import Array, carrier
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops.tflite_base import DEFAULT_INTERPRETER, Call, activation_range, clamp

__all__ = ["Rounding", "by_vectors", "channel_scales", "requantize", "requantize_matrices", "rescale", "rounding_of"]


class Rounding(NamedTuple):
    """One of R1..R7 of kernels/README.md with its multipliers and left shifts, one or one a column."""

    name: str
    multipliers: Any
    shifts: Any = 0


def channel_scales(call: Call, first: int = 0, second: int = 1) -> NDArray[np.float64]:
    """``(f64(s_in) * f64(s_w)) / f64(s_out)`` for each channel, or one for all."""
    weights = call.scheme(second).scales().astype(np.float64)
    return np.asarray(np.float64(call.scale(first)) * weights / np.float64(call.made_scale())).reshape(
        weights.size if weights.size != 1 else ()
    )


def product_scale(call: Call, first: int = 0, second: int = 1) -> NDArray[np.float64]:
    """``f64(f32(s_in * s_w)) / f64(s_out)``: the product of the two scales is rounded to float32 first."""
    return np.asarray(np.float64(np.float32(call.scale(first) * call.scale(second))) / np.float64(call.made_scale()))


def rescale(call: Call, total: fixed.Int64, real: object) -> Array:
    """R1, zero point, activation."""
    mantissa, shift = fixed.quantize_multipliers(real)
    return clamp(call, fixed.multiply(fixed.wrap32(total), mantissa, shift) + call.made_zero_point())


def rounding_of(call: Call, bias: str | None, first: int = 0, second: int = 1) -> Rounding:
    """The rounding of a convolution or FULLY_CONNECTED whose bias has the type `bias`.

    Convolutions: R1, or R5 for int16 activations without an int32 bias. FULLY_CONNECTED: R2, in float64 with one
    rounding; older runtimes (``litert-ref-fixedfc``) as convolutions. The default interpreter: see `_by_default`.
    """
    fully = call.node.op == "FULLY_CONNECTED"
    default = call.dialect == DEFAULT_INTERPRETER
    wide = call.dtype(first) == "int16" and bias != "int32" and not (default and fully and bias is None)
    if default and not wide:
        return _by_default(call, first, second)
    if fully and call.dialect != "litert-ref-fixedfc":
        return Rounding("f64", channel_scales(call, first, second))
    return Rounding("mbqm64" if wide else "gemmlowp", *fixed.quantize_multipliers(_scales(call, first, second)))


def _scales(call: Call, first: int, second: int) -> NDArray[np.float64]:
    rounded = call.node.op == "FULLY_CONNECTED" and call.scheme(second).scales().size == 1
    return (product_scale if rounded or call.dtype(first) == "uint8" else channel_scales)(call, first, second)


def _by_default(call: Call, first: int, second: int) -> Rounding:
    """R4 where XNNPACK takes the operator, else R3, in some kernels R1.

    XNNPACK's multiplier is ``f32(f32(s_in * s_w) / s_out)``, accepted from 2**-32 below 256. It takes no depthwise
    convolution of uint8, no bias without a scale, and no transposed one with SAME padding whose stride exceeds the filter. Grouped convolutions
    that it refuses run in the reference kernels.
    """
    reference = Rounding("gemmlowp", *fixed.quantize_multipliers(_scales(call, first, second)))
    if call.node.op == "DEPTHWISE_CONV_2D" and call.dtype(first) == "uint8":
        return reference
    weight = call.dtype(second)
    if weight == "int4" and call.node.op == "FULLY_CONNECTED" and _even(call, second):
        weight = "int8"
    if call.dtype(first) == weight == call.made_dtype() and weight in {"int8", "uint8"}:
        weights = call.scheme(second).scales()
        scales = ((np.float32(call.scale(first)) * weights).astype(np.float32) / call.made_scale()).astype(np.float32)
        if not _refused(call, second) and np.all((scales >= np.float32(2.0**-32)) & (scales < 256)):
            return Rounding("fp32", scales.reshape(() if scales.size == 1 else -1))
    return reference if _grouped(call, first, second) else Rounding("ruy", *reference[1:])


def _even(call: Call, second: int) -> bool:
    weight = call.reads[second]
    return weight is not None and int(weight.shape[-1]) % 2 == 0


def _grouped(call: Call, first: int, second: int) -> bool:
    x, weight = call.reads[first], call.reads[second]
    return (
        call.node.op == "CONV_2D" and x is not None and weight is not None and int(x.shape[3]) != int(weight.shape[3])
    )


def _refused(call: Call, second: int) -> bool:
    place = 3 if call.node.op == "TRANSPOSE_CONV" else 2
    bias, weight = call.reads[place] if len(call.reads) > place else None, call.reads[second]
    if bias is not None and bias.quantization is None:
        return True
    return (
        call.node.op == "TRANSPOSE_CONV"
        and call.attribute("padding") == "SAME"
        and weight is not None
        and any(stride > int(taps) for stride, taps in zip(call.attribute("strides"), weight.shape[1:3], strict=True))
    )


def requantize(call: Call, total: fixed.Int64, bias: Array | None, first: int = 0, second: int = 1) -> Array:
    """Sums of a convolution or FULLY_CONNECTED plus their bias, as stored integers."""
    if bias is not None:
        total = total + bias.astype(np.int64)
    kind = None if bias is None else str(bias.dtype)
    rounding = rounding_of(call, kind, first, second)
    if rounding.name == "ruy" and by_vectors(call.node.op):
        return _by_vectors(call, total, rounding)
    if call.dtype(first) != "int16" or kind == "int32":
        total = fixed.wrap32(total)
    if rounding.name == "mbqm64":
        return clamp(call, fixed.multiply_wide(total, rounding.multipliers, rounding.shifts) + call.made_zero_point())
    made = numerics.requantize(
        total,
        rounding.name,
        multipliers=rounding.multipliers,
        shifts=rounding.shifts,
        zero_point=call.made_zero_point(),
        clamp=activation_range(call),
    )
    return made.astype(carrier(call.made_dtype()))


def by_vectors(op: str) -> bool:
    """Whether the optimised kernel rounds channels that fill no vector otherwise."""
    return op in {"TRANSPOSE_CONV", "DEPTHWISE_CONV_2D"}


def _by_vectors(call: Call, total: fixed.Int64, rounding: Rounding) -> Array:
    """The optimised TRANSPOSE_CONV and DEPTHWISE_CONV_2D: R3 where its vectors reach, R1 for what is left over.

    int8 and int16: 8 channels at a time; uint8: 16 elements at a time.
    """
    step, wide = (16, total.reshape(-1)) if call.made_dtype() == "uint8" else (8, total)
    reached = np.arange(wide.shape[-1]) < wide.shape[-1] // step * step
    low, high = activation_range(call)
    made = [
        numerics.requantize(
            fixed.wrap32(wide),
            name,
            multipliers=rounding.multipliers,
            shifts=rounding.shifts,
            zero_point=call.made_zero_point(),
            clamp=(low, high),
        )
        for name in ("ruy", "gemmlowp")
    ]
    return np.where(reached, *made).reshape(total.shape).astype(carrier(call.made_dtype()))


def requantize_matrices(call: Call, total: fixed.Int64) -> Array:
    """BATCH_MATMUL: R1, for int16 R5; the default interpreter R4 for a right operand of int8 without a zero point."""
    if call.dialect == DEFAULT_INTERPRETER and call.dtype(0) == "int8" and call.zero_point(1) == 0:
        scale = np.float32(np.float32(call.scale(0) * call.scale(1)) / call.made_scale())
        if 2.0**-32 <= scale < 256:
            sums, zero = fixed.wrap32(total), call.made_zero_point()
            made = numerics.requantize(sums, "fp32", multipliers=scale, zero_point=zero, clamp=activation_range(call))
            return made.astype(carrier(call.made_dtype()))
    if call.dtype(0) == "int16":
        mantissa, shift = fixed.quantize_multipliers(product_scale(call))
        return clamp(call, fixed.multiply_wide(total, mantissa, shift) + call.made_zero_point())
    return rescale(call, total, product_scale(call))
