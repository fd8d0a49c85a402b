"""Functions of int16 by 513 samples with straight lines between, as TFLite's int16 kernels use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.ops import tflite_fixedpoint as fixed

__all__ = ["interpolate", "interpolation_table"]

Int64 = fixed.Int64


def interpolation_table(
    function: Callable[[NDArray[Any]], NDArray[Any]],
    scale: float,
    zero_point: int,
    made_scale: float,
    made_zero_point: int,
    kind: type[np.floating[Any]] = np.float64,
) -> Int64:
    """513 int16 samples of a function, each shifted by half of the error in the middle of its interval.

    Every step is rounded to `kind`: the tables inside kernels are computed in float64, those of whole operators in float32.
    What is no number (a difference of infinities) becomes 0.
    """
    step_in, step_out = kind(scale), kind(made_scale)
    low, high = step_in * kind(-32768 - zero_point), step_in * kind(32767 - zero_point)
    step = (high - low) / kind(512)
    half = step / kind(2)
    inverse = kind(65536) / (step_out * kind(32767 - made_zero_point) - step_out * kind(-32768 - made_zero_point))
    index = np.arange(512).astype(kind)
    value, middle, following = (
        function(low + index * step),
        function(low + index * step + half),
        function(low + (index + kind(1)) * step),
    )
    with np.errstate(over="ignore", invalid="ignore"):
        sample = fixed.away(value * inverse)
        interpolated = fixed.away((following * inverse + sample) / kind(2))
        bias = fixed.away((interpolated - fixed.away(middle * inverse)) / kind(2))
        samples = np.concatenate([sample - bias, fixed.away(function(np.array([high])) * inverse)])
    return np.asarray(np.clip(np.where(np.isnan(samples), 0, samples), -32768, 32767).astype(np.int64))


def interpolate(table: Int64, x: Int64) -> Int64:
    """The table's value at int16 `x`: the upper 9 bits name the sample, the lower 7 the place behind it.

    Slope and value are int16 and wrap, as they do between samples of a steep function.
    """
    index = 256 + (x >> 7)
    base = table[index]
    slope = (table[index + 1] - base).astype(np.int16).astype(np.int64)
    return np.asarray((base + ((slope * (x & 0x7F) + 64) >> 7)).astype(np.int16).astype(np.int64))
