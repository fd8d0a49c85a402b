"""Dynamic-range ("hybrid") kernels: float activations are quantized on the fly and meet integer weights.

Every step is one float32 operation in the order written; the integer sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array
from hwq.ops import spatial
from hwq.ops import tflite_accumulators as sums
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops.tflite_base import Call

__all__ = [
    "Rows",
    "convolve",
    "filter_zero_point",
    "multiply_quantized",
    "multiply_rows",
    "quantize_asymmetric",
    "quantize_symmetric",
    "quantizer",
]

Float32 = NDArray[np.float32]


def filter_zero_point(call: Call) -> int:
    """The zero point that FULLY_CONNECTED takes off its weights; per-channel weights are symmetric."""
    points = call.scheme(1).zero_points()
    return int(points.reshape(-1)[0]) if points.size == 1 else 0


# Elements of a row that LiteRT's kernel takes at a time.
VECTOR = 8
# Up to so many weights of 8 bits a row, LiteRT's sums of rows fit their 8 lanes of 16 bits: 255 x 128 < 2**15.
EXACT_SUMS = 8 * 255


def _rounded(rows: Float32) -> NDArray[np.int64]:
    """Halves away from 0; vectors add 0.5 in float32, which carries the float32 below 0.5 to 1, what is left of a row does not."""
    vectors = np.arange(rows.shape[1]) < rows.shape[1] // VECTOR * VECTOR
    carried = np.trunc(rows + np.copysign(np.float32(0.5), rows))
    return np.where(vectors, carried, fixed.away(rows)).astype(np.int64)


def quantize_symmetric(rows: Float32) -> tuple[NDArray[np.int32], Float32]:
    """(q in [-127, 127], scale) of each row: ``q = rounded(x * f32(127 / r))``, ``scale = f32(r / 127)``, r = max |x|."""
    reach = np.abs(rows).max(axis=1, initial=np.float32(0)).astype(np.float32)
    zero = reach == 0
    safe = np.where(zero, np.float32(1), reach).astype(np.float32)
    inverse = (np.float32(127) / safe).astype(np.float32)
    stored = np.clip(_rounded((rows * inverse[:, None]).astype(np.float32)), -127, 127).astype(np.int32)
    return stored, np.where(zero, np.float32(1), (safe / np.float32(127)).astype(np.float32)).astype(np.float32)


def quantize_asymmetric(rows: Float32) -> tuple[NDArray[np.int32], Float32, NDArray[np.int32]]:
    """(q in [-128, 127], scale, zero point) of each row over its range with 0.

    The zero point is found in float64 from the float32 range; ``q = zero point + rounded(x * f32(1 / scale))``.
    """
    zero = np.float32(0)
    low, high = np.minimum(rows.min(axis=1, initial=zero), zero), np.maximum(rows.max(axis=1, initial=zero), zero)
    flat = low == high
    exact = np.where(flat, 1.0, (high - low).astype(np.float64) / 255)
    below, above = low / exact, high / exact
    point = np.where(128 + np.abs(below) < 127 + np.abs(above), -128 - below, 127 - above)
    nudged = np.where(flat, 0, np.clip(fixed.away(point), -128, 127)).astype(np.int32)
    scale = exact.astype(np.float32)
    inverse = (np.float32(1) / scale).astype(np.float32)
    stored = np.clip(nudged[:, None] + _rounded((rows * inverse[:, None]).astype(np.float32)), -128, 127)
    return np.where(flat[:, None], 0, stored).astype(np.int32), scale, nudged


class Rows(NamedTuple):
    """Quantized rows, and the scale and the zero point of each."""

    stored: NDArray[np.int32]
    scale: Float32
    point: NDArray[np.int32]


def quantizer(call: Call) -> Callable[[Array], Rows]:
    """How this operator quantizes rows: over their range, or symmetrically."""

    def symmetric(rows: Array) -> Rows:
        return Rows(*quantize_symmetric(rows), np.zeros(len(rows), np.int32))

    return (lambda rows: Rows(*quantize_asymmetric(rows))) if call.attribute("asymmetric_inputs", False) else symmetric


def products(rows: Rows, weight: NDArray[np.int32]) -> Float32:
    """Sums of (q - zero point) times weights [N, K], where the runtime takes the zero point off by its own row sums."""
    exact = sums.multiply(rows.stored - rows.point[:, None], weight)
    if weight.shape[1] > EXACT_SUMS and rows.point.any():
        exact = exact + rows.point[:, None] * (weight.sum(axis=1) - _vector_sums(weight))
    return np.asarray(exact.astype(np.float32))


def multiply_quantized(rows: Rows, weight: Array, scale: np.float32) -> Float32:
    """``f32(acc) * f32(s_x * s_w)`` for weights [N, K] of one scale."""
    total = products(rows, weight.astype(np.int32))
    return (total * (rows.scale * scale).astype(np.float32)[:, None]).astype(np.float32)


def _vector_sums(weight: NDArray[np.int32]) -> NDArray[np.int32]:
    """What LiteRT on x86-64 takes for the sum of each row: pairs add up in 8 lanes of int16, which wrap beyond 2,064 weights.

    SseReductionSumVector (sse_tensor_utils.cc); the last 8 go in too, what is left then comes on top.
    """
    whole = weight.shape[1] // 16 * 16
    lanes = weight[:, :whole].reshape(len(weight), -1, 8, 2).sum(axis=(1, 3))
    edge = weight.shape[1] // 8 * 8
    if edge > whole:
        lanes = lanes + weight[:, whole:edge]
    return np.asarray(lanes.astype(np.int16).astype(np.int32).sum(axis=1) + weight[:, edge:].sum(axis=1), np.int32)


def multiply_rows(call: Call, rows: Array, weight: Array, bias: Array | None) -> Float32:
    """FULLY_CONNECTED: ``bias + f32(acc) * f32(s_x * s_w)``; asymmetric inputs take their zero point off the sum."""
    scales = call.scheme(1).scales().reshape(-1)
    quantized = quantizer(call)(rows)
    total, scale = products(quantized, weight.astype(np.int32)), quantized.scale
    made = (total * (scale[:, None] * scales[None, :]).astype(np.float32)).astype(np.float32)
    return made if bias is None else (bias.astype(np.float32) + made).astype(np.float32)


def convolve(call: Call, windows: spatial.Windows, add: Callable[[Array, Array, spatial.Windows], Array]) -> Float32:
    """CONV_2D and DEPTHWISE_CONV_2D: each image is quantized as one row.

    CONV_2D with one weight scale, or equal ones and no groups: symmetric,
    ``f32(acc) * f32(s_x * s_w) + bias``; with scales per channel: asymmetric, ``f32(f32(acc) * s_w) * s_x + bias``.
    DEPTHWISE_CONV_2D: asymmetric, products as the first.
    """
    x, weight = call.array(0), call.array(1).astype(np.int32)
    rows, scales = x.reshape(x.shape[0], -1), call.scheme(1).scales()
    equal = weight.shape[-1] == x.shape[-1] and np.all(scales == scales.reshape(-1)[:1])
    if call.node.op == "CONV_2D" and (scales.size == 1 or equal):
        scales = scales.reshape(-1)[:1]
        stored, scale = quantize_symmetric(rows)
        total = add(stored.reshape(x.shape), weight, windows).astype(np.float32)
        made = (total * (scale * scales).astype(np.float32)[:, None, None, None]).astype(np.float32)
    else:
        stored, scale, point = quantize_asymmetric(rows)
        total = add((stored - point[:, None]).reshape(x.shape), weight, windows).astype(np.float32)
        factor, images = scales.reshape(-1), scale[:, None, None, None]
        if call.node.op == "CONV_2D":
            made = ((total * factor).astype(np.float32) * images).astype(np.float32)
        else:
            made = (total * (factor * images).astype(np.float32)).astype(np.float32)
    return made if not call.has(2) else (made + call.array(2)).astype(np.float32)
