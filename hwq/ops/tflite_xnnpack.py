"""What LiteRT's default interpreter computes otherwise than its reference kernels, on x86-64.

XNNPACK takes the operators whose types, scales and shapes it can represent; what it refuses runs in LiteRT's optimised
kernels. Formulas: R3, R4 and R6 of kernels/README.md, found by experiment against ai-edge-litert 2.3.0.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hwq import numerics
from hwq.graph import Array, carrier
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops import tflite_gemmlowp as gemmlowp
from hwq.ops.tflite_activation import lookup
from hwq.ops.tflite_arithmetic import power_of_two, rescaled_product, rescaled_sum
from hwq.ops.tflite_base import Call, activation_range, by_default, clamp
from hwq.ops.tflite_xnnpack_sums import reduce as reduce_floats

__all__: list[str] = []

BYTES = frozenset({"int8", "uint8"})


def _bytes(call: Call, *indices: int) -> bool:
    """Whether the operands and the result are of one 8-bit type."""
    return call.made_dtype() in BYTES and all(call.dtype(index) == call.made_dtype() for index in indices)


@by_default("ADD", "SUB", "MUL")
def arithmetic(call: Call) -> Array | None:
    """8-bit ADD and SUB in R6, MUL in R4, where the ratios of scales let XNNPACK take them."""
    if not _bytes(call, 0, 1):
        return None
    scales = call.scale(0), call.scale(1), call.made_scale()
    if call.node.op == "MUL":
        product = np.float32(np.float32(scales[0] * scales[1]) / scales[2])
        accepted = bool(2.0**-16 <= product < 2.0**8)
    else:
        ratios = [np.float32(scale / scales[2]) for scale in scales[:2]]
        accepted = all(2.0**-10 <= ratio < 2.0**8 for ratio in ratios)
    if not accepted:
        return None if call.node.op == "SUB" else _refused(call)
    if call.node.op == "MUL" and call.node.inputs[0] == call.node.inputs[1]:
        # XNNPACK makes a product of a value with itself a square, by a table.
        return clamp(call, lookup(call, np.square, even=True).astype(np.int64))
    made = numerics.binary(
        f"xnnpack-{call.node.op.lower()}",
        call.array(0),
        call.array(1),
        a_scale=float(scales[0]),
        b_scale=float(scales[1]),
        scale=float(scales[2]),
        a_zero_point=call.zero_point(0),
        b_zero_point=call.zero_point(1),
        zero_point=call.made_zero_point(),
        clamp=activation_range(call),
    )
    return made.astype(carrier(call.made_dtype()))


def _refused(call: Call) -> Array | None:
    """LiteRT's vectorized ADD and MUL: the rescaled result, wrapped or cut to int16, and its zero point wrap in int16 where whole
    vectors of a row reach.

    A row is the whole result, or with broadcast the innermost loop; vectors hold 16 elements of int8, 8 of uint8 and of one
    int8 value added to a row. MUL cuts, but not one uint8 value times a row.
    """
    rows = _rows(call.array(0).shape, call.array(1).shape)
    if rows is None:
        return None
    adds, unsigned = call.node.op == "ADD", call.dtype(0) == "uint8"
    exact, zero = rescaled_sum(call) if adds else rescaled_product(call), call.made_zero_point()
    length, single = rows if rows[0] else (exact.size, False)
    narrow = exact.astype(np.int16) if adds or (single and unsigned) else np.clip(exact, -(2**15), 2**15 - 1)
    wrapped = (narrow.astype(np.int64) + zero).astype(np.int16).astype(np.int64)
    step = 8 if unsigned or (single and adds) else 16
    reached = np.arange(exact.size) % max(length, 1) < length // step * step
    return clamp(call, np.where(reached.reshape(exact.shape), wrapped, exact + zero))


def _rows(first: Sequence[int], second: Sequence[int]) -> tuple[int, bool] | None:
    """(length of the innermost loop, whether one value meets a row) of LiteRT's five loops; None: it has no such loops.

    Length 0: the shapes are equal but for leading ones, and the result is one row.
    """
    rank = max(len(first), len(second))
    sizes = [tuple(reversed([1] * (rank - len(shape)) + list(shape))) for shape in (first, second)]
    if sizes[0] == sizes[1]:
        return 0, False
    repeats = next(one == 1 for one, other in zip(*sizes, strict=True) if one != other)
    pairs = list(
        zip(*(sizes if repeats else sizes[::-1]), strict=True)
    )  # the operand whose innermost sizes repeat first
    lengths: list[int] = []
    fits: tuple[Callable[[int, int], bool], ...] = (
        operator.eq, lambda a, _: a == 1, operator.eq, lambda _, b: b == 1, operator.eq,
    )  # fmt: skip
    for fit in fits:
        lengths.append(1)
        while pairs and fit(*pairs[0]):
            lengths[-1] *= max(pairs.pop(0))
    if pairs:
        return None
    return (lengths[0], False) if lengths[0] > 1 else (lengths[1], True)


@by_default("QUANTIZE")
def quantize(call: Call) -> Array | None:
    """From float to 8 bits by the reciprocal, ties to even; between 8-bit types of one kind in R6 with 8 fraction bits.

    What XNNPACK refuses is vectorized by LiteRT: to int16 8 elements at a time by the reciprocal, ties to even; between
    8-bit types 16 at a time in R3. What is left over is rounded as the reference kernels round it.
    """
    to, info = call.made_dtype(), np.iinfo(carrier(call.made_dtype()))
    if call.made().scales().size != 1 or to not in {*BYTES, "int16"}:
        return None
    scale, zero, bounds = call.made_scale(), call.made_zero_point(), (int(info.min), int(info.max))
    if call.dtype(0) == "float32":
        x = call.array(0)
        made = numerics.quantize(x, scale, zero, bounds, formula="reciprocal")
        if to == "int16":
            made = _left_over(made, numerics.quantize(x, scale, zero, bounds, formula="tflite"), 8)
        return made.astype(info.dtype)
    if call.dtype(0) not in BYTES or to not in BYTES:
        return None
    distance, ratio = call.wide(0) - call.zero_point(0), np.float32(call.scale(0) / scale)
    if call.dtype(0) != to or not 2.0**-8 <= ratio <= 2.0**7:
        real = float(call.scale(0)) / float(scale)
        if call.dtype(0) != to and real == 1.0 and zero - call.zero_point(0) == (128 if to == "uint8" else -128):
            return None
        mantissa, shift = fixed.quantize_multiplier(real)
        rounded = [
            numerics.requantize(distance, name, multipliers=mantissa, shifts=shift, zero_point=zero, clamp=bounds)
            for name in ("ruy", "gemmlowp")
        ]
        return _left_over(rounded[0], rounded[1], 16).astype(info.dtype)
    values = (distance * int(np.rint(np.float32(256) * ratio)) + (zero << 8) + 128) >> 8
    return np.asarray(np.clip(values, *bounds).astype(info.dtype))


def _left_over(vector: Array, scalar: Array, step: int) -> Array:
    """`vector` where whole steps reach in memory order, `scalar` behind."""
    reached = np.arange(vector.size) < vector.size // step * step
    return np.where(reached.reshape(vector.shape), vector, scalar)


@by_default("LEAKY_RELU")
def leaky_relu(call: Call) -> Array | None:
    """One multiplier with 8 fraction bits for each side of the zero point, halves up."""
    if not _bytes(call, 0):
        return None
    above = np.float32(call.scale(0) / call.made_scale())
    below = np.float32(above * np.float32(call.attribute("alpha", 0.0)))
    if not (2.0**-8 <= above <= 2.0**7 and -(2.0**7) + 2.0**-8 <= below <= 2.0**7 and abs(below) >= 2.0**-8):
        return None
    x = call.wide(0) - call.zero_point(0)
    factors = [int(np.rint(np.float32(256) * slope)) for slope in (above, below)]
    values = (np.where(x >= 0, x * factors[0], x * factors[1]) + (call.made_zero_point() << 8) + 128) >> 8
    info = np.iinfo(carrier(call.made_dtype()))
    return np.asarray(np.clip(values, info.min, info.max).astype(info.dtype))


@by_default("MEAN", "SUM")
def reduce(call: Call) -> Array | None:
    """The 8-bit mean or sum: ``rint(f32(sum of q) * s + bias)``; the bias holds both zero points, so ties depend on them."""
    if call.dtype(0) == "float32":
        return reduce_floats(call)
    if not _bytes(call, 0):
        return None
    x, f32 = call.wide(0), np.float32
    axes = tuple(sorted({int(axis) % max(x.ndim, 1) for axis in call.array(1).reshape(-1)}))
    total = fixed.wrap32(x.sum(axis=axes, keepdims=bool(call.attribute("keep_dims", False)))).astype(f32)
    count = math.prod(x.shape[axis] for axis in axes)
    scale = f32(call.scale(0) / call.made_scale())
    if call.node.op == "MEAN" and count:
        scale = f32(scale / f32(count))
    bias = f32(f32(call.made_zero_point()) - f32(f32(call.zero_point(0) * count) * scale))
    info = np.iinfo(carrier(call.made_dtype()))
    values = np.rint(np.clip((total * scale).astype(f32) + bias, f32(info.min), f32(info.max)))
    return np.asarray(values.astype(info.dtype))


@by_default("SOFTMAX")
def softmax(call: Call) -> Array | None:
    """8 bits: float exponentials from a table of 256, their sum in order, one product with a reciprocal."""
    if call.dtype(0) not in BYTES or call.array(0).size == 0:
        return None
    x = call.wide(0)
    distance = x.max(axis=-1, keepdims=True) - x
    step = np.float32(-np.float32(call.scale(0)) * np.float32(call.attribute("beta", 1.0)))
    table = np.exp((step * np.arange(256).astype(np.float32)).astype(np.float64)).astype(np.float32)
    powers = table[distance]
    total = np.zeros((*x.shape[:-1], 1), np.float32)
    for column in range(x.shape[-1]):
        total += powers[..., column : column + 1]
    inverse = (np.float32(1) / (total * call.made_scale()).astype(np.float32)).astype(np.float32)
    info = np.iinfo(carrier(call.made_dtype()))
    values = fixed.away((powers * inverse).astype(np.float32)) + np.float32(call.made_zero_point())
    return np.asarray(np.clip(values, info.min, info.max).astype(info.dtype))


@by_default("LOGISTIC", "TANH")
def curve16(call: Call) -> Array | None:
    """int16 in powers of two by gemmlowp's fixed point (the reference kernels interpolate a table).

    The input is Q3.12 once it is shifted left; LOGISTIC takes no shift, TANH 0 or 1.
    """
    exponent = power_of_two(call.scale(0)) if call.dtype(0) == "int16" else None
    made = power_of_two(call.made_scale()) if exponent is not None else None
    shift = -1 if exponent is None else exponent + 12
    if made != -15 or not 0 <= shift <= (0 if call.node.op == "LOGISTIC" else 1):
        return None
    x = fixed.saturate(call.wide(0) << shift, 16)
    return (gemmlowp.logistic if call.node.op == "LOGISTIC" else gemmlowp.hyperbolic_tangent)(x, 3).astype(np.int16)


@by_default("RESIZE_BILINEAR")
def resize(call: Call) -> Array | None:
    """8 bits: weights with 11 fraction bits, halves up; float32: across, then down, each ``f32(f32((b - a) w) + a)``."""
    if not _bytes(call, 0) and call.dtype(0) != "float32":
        return None
    x = call.array(0)
    size = [int(value) for value in call.array(1)]
    (y0, y1, dy), (x0, x1, dx) = (
        _positions(call, count, extent) for count, extent in zip(size, x.shape[1:3], strict=True)
    )
    if call.dtype(0) == "float32":
        tall, wide32 = dy[:, None, None], dx[None, :, None]
        upper, lower = (rows[:, :, x0] + (rows[:, :, x1] - rows[:, :, x0]) * wide32 for rows in (x[:, y0], x[:, y1]))
        return np.asarray(upper + (lower - upper) * tall, np.float32)
    weights = [np.rint(part * np.float32(2048)).astype(np.int64) for part in (dy, dx)]
    down, right = weights[0][:, None, None], weights[1][None, :, None]
    wide = x.astype(np.int64)
    top, bottom = (
        (rows[:, :, x0] << 11) + (rows[:, :, x1] - rows[:, :, x0]) * right for rows in (wide[:, y0], wide[:, y1])
    )
    return np.asarray((((top << 11) + (bottom - top) * down + (1 << 21)) >> 22).astype(x.dtype))


def _positions(call: Call, count: int, extent: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(lower position, upper position, distance from the lower) of each result, in float32."""
    align, half = bool(call.attribute("align_corners", False)), bool(call.attribute("half_pixel_centers", False))
    cut = 1 if align and count > 1 else 0
    scale = np.float32(extent - cut) / np.float32(count - cut)
    index = np.arange(count).astype(np.float32)
    at = (index * scale).astype(np.float32)
    if half:
        at = (at + np.float32(np.float32(0.5) * scale - np.float32(0.5))).astype(np.float32)
        at = np.clip(at, np.float32(0), np.float32(extent - 1))
    lower = at.astype(np.int64)
    return lower, np.minimum(lower + 1, extent - 1), (at - lower.astype(np.float32)).astype(np.float32)
