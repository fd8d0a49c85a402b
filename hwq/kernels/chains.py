"""Float convolutions in the order of one chain of fused multiply-adds, XNNPACK's, and sums of rows quantized at run time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.operands import TYPES, Array, dense, integer, interval, one_of, output, over_ranges
from hwq.kernels.windows import _geometry

__all__ = ["SCALES", "Chain", "conv_chain", "pack_chain", "scale_sums"]

# The C enums' orders.
_ROWS, _COLUMNS = 1, 2
SCALES = ("xnnpack", "onnx", "floats")
# The strip's columns: HWQ_CHAIN_STRIP.
_STRIP = 16

Clamp = tuple[float, float]
UNBOUNDED: Clamp = (-math.inf, math.inf)


@dataclass(frozen=True, eq=False, kw_only=True)
class Chain:
    """Immutable weights of a float32 convolution that sums in one chain.

    Attributes
    ----------
    channels, outputs, groups : int
    kernel : (int, int)
    columns : bool
        Taps go column by column (depthwise only).
    depthwise : bool
        One filter for each channel.
    data : float32 array
    """

    channels: int
    outputs: int
    groups: int
    kernel: tuple[int, int]
    columns: bool
    depthwise: bool
    data: Array

    @property
    def door(self) -> tuple[int, int, int, int, bool]:
        """What the door asks of weights."""
        return self.channels, self.outputs, self.groups, _COLUMNS if self.columns else _ROWS, self.depthwise


def pack_chain(weights: Any, *, groups: int = 1, columns: bool = False) -> Chain:
    """Lay out float32 weights for `conv_chain`.

    Parameters
    ----------
    weights : float32 array (outputs, height, width, channels / groups)
    groups : int
        As many as outputs and channels: depthwise.
    columns : bool
        Let the chain go through the taps column by column; only depthwise.

    Returns
    -------
    Chain

    Raises
    ------
    Error
        Weights of another type or rank, groups that do not divide the outputs, or `columns` of another convolution.
    """
    given, groups = dense(weights, "weights", ["float32"]), integer(groups, "groups")
    if given.ndim != 4 or groups < 1 or given.shape[0] % groups:
        raise Error(
            f"weights have shape {given.shape} in {groups} groups", why="(outputs, height, width, depth) is needed"
        )
    outputs, height, width, depth = given.shape
    depthwise = groups == outputs and depth == 1
    if columns and not depthwise:
        raise Error("only depthwise chains go column by column")
    if depthwise:
        taps = given[..., 0].transpose(2, 1, 0) if columns else given[..., 0].transpose(1, 2, 0)
        data = np.ascontiguousarray(taps).reshape(-1)
    else:
        n, k = outputs // groups, height * width * depth
        wide = np.zeros((groups, -(-n // _STRIP) * _STRIP, k), np.float32)
        wide[:, :n] = given.reshape(groups, n, k)
        data = np.ascontiguousarray(wide.reshape(groups, -(-n // _STRIP), _STRIP, k).transpose(0, 1, 3, 2)).reshape(-1)
    data.flags.writeable = False
    return Chain(
        channels=groups * depth,
        outputs=outputs,
        groups=groups,
        kernel=(height, width),
        columns=columns,
        depthwise=depthwise,
        data=data,
    )


def conv_chain(
    x: Any,
    chain: Chain,
    *,
    strides: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
    dilations: int | Sequence[int] = 1,
    bias: Any = None,
    clamp: Clamp = UNBOUNDED,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """Float32 convolution as XNNPACK sums on x86-64 with FMA.

    ``y = bias``, then ``y = fma(x, w, y)`` over the taps and the channels of the group, in order; padding is +0 and takes part.

    Parameters
    ----------
    x : float32 array (N, H, W, C)
    chain : Chain
        From `pack_chain`.
    strides, dilations : int or (int, int)
    pads : int or four ints
        Top, left, bottom, right.
    bias : float32 array (O,), optional
        Without it the chain starts from +0.
    clamp : (float, float)
        Least and greatest result; NaN stays.
    out, threads
        As in `conv2d`.

    Returns
    -------
    float32 array (N, H', W', O)

    Raises
    ------
    Error
        Operands that do not fit.
    """
    given, bounds = dense(x, "x", ["float32"]), interval(clamp, "clamp")
    if type(chain) is not Chain:
        raise Error(f"chain must be packed weights, not {type(chain).__name__}", remedy="pack_chain makes them")
    if given.ndim != 4 or given.shape[3] != chain.channels:
        raise Error(f"x has shape {given.shape}", why=f"the weights take images (N, H, W, {chain.channels})")
    offsets = None if bias is None else dense(bias, "bias", ["float32"])
    if offsets is not None and offsets.shape != (chain.outputs,):
        raise Error(f"bias has shape {offsets.shape}", why=f"there are {chain.outputs} output channels")
    geometry, sides, _ = _geometry(given.shape[1:3], chain.kernel, strides, pads, dilations)
    result = output(out, (given.shape[0], *sides, chain.outputs), np.float32, given, offsets)

    def work(first: int, last: int) -> None:
        _kernels.conv_chain(
            geometry, given.shape[0], *chain.door, *bounds, given, chain.data, offsets, result, first, last
        )

    if result.size:
        over_ranges(given.shape[0] * math.prod(sides), threads, work, grain=sides[1])
    return result


def scale_sums(
    acc: Any,
    scales: Any,
    factors: Any,
    *,
    formula: str = "xnnpack",
    bias: Any = None,
    points: Any = None,
    sums: Any = None,
    clamp: Clamp = UNBOUNDED,
    out: Array | None = None,
) -> Array:
    """Sums of bytes to floats where rows have scales of their own, ``acc - point * sum`` modulo 2^32.

    Parameters
    ----------
    acc : int32 array (rows, columns)
        With formula ``floats`` float32.
    scales : float32 array (count,)
        One for each rows / count rows.
    factors : float32 array (columns,)
        Scales of the weights.
    formula : {"xnnpack", "onnx", "floats"}
        ``fma(f32(acc) * scale, factor, bias)``; ``f32(acc) * (scale * factor)``, then ``+ bias``; or ``acc * scale``, then ``+ bias``.
    bias : float32 array (columns,), optional
    points : int8 or uint8 array (count,), optional
        Zero points that `acc` still holds, times `sums`.
    sums : int32 array (columns,), optional
        Sums of the weights, with `points`.
    clamp : (float, float)
        Least and greatest result; NaN stays.
    out : float32 array (rows, columns), optional

    Returns
    -------
    float32 array (rows, columns)

    Raises
    ------
    Error
        Operands that do not fit.
    """
    one_of(formula, SCALES, "formula")
    given, by = dense(acc, "acc", ["float32" if formula == "floats" else "int32"]), dense(scales, "scales", ["float32"])
    if given.ndim != 2 or by.ndim != 1 or (len(given) % len(by) if len(by) else len(given)):
        raise Error(f"acc has shape {given.shape} and scales {by.shape}", why="each scale serves as many rows")
    bounds = interval(clamp, "clamp")
    if (points is None) != (sums is None) or (points is not None and formula == "floats"):
        raise Error("points and sums belong together", why="sums of floats hold no zero point")
    rows, columns = given.shape
    vectors: list[Array | None] = [dense(factors, "factors", ["float32"])]
    vectors.append(None if bias is None else dense(bias, "bias", ["float32"]))
    vectors.append(None if sums is None else dense(sums, "sums", ["int32"]))
    if any(one is not None and one.shape != (columns,) for one in vectors):
        raise Error(f"a vector of columns has another size than {columns}")
    zero = None if points is None else dense(points, "points", ["int8", "uint8"])
    if zero is not None and zero.shape != by.shape:
        raise Error(f"points have shape {zero.shape}", why=f"there are {len(by)} scales")
    result = output(out, given.shape, np.float32, given, by, zero, *vectors)
    if result.size:
        kind = TYPES[np.dtype(np.int8) if zero is None else zero.dtype]
        _kernels.scale_sums(
            SCALES.index(formula),
            kind,
            rows,
            columns,
            rows // len(by),
            given,
            by,
            zero,
            vectors[2],
            vectors[0],
            vectors[1],
            *bounds,
            result,
        )
    return result
