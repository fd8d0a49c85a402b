"""Convolution and pooling over one to three spatial dimensions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.epilogue import Epilogue, check_columns, clamp_bounds, finishing, residual_operand
from hwq.kernels.half import HALVES, float_bias, half_name, narrow, widen
from hwq.kernels.operands import (
    ANY_BIAS,
    NAMES,
    TYPES,
    Array,
    dense,
    int32_bias,
    integer,
    one_of,
    output,
    over_ranges,
    sizes,
    zero_point,
)
from hwq.kernels.packing import Packed, spatial

__all__ = ["average_pool", "conv2d", "max_pool"]

_PLAIN = Epilogue()
_LAYOUTS = ("NCHW", "NHWC")  # the C enum's order
_MOST = 2**40  # of positions or taps: products of them with channels stay inside int64

Geometry = tuple[tuple[int, ...], ...]


def conv2d(
    x: Any,
    packed: Packed,
    *,
    strides: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
    dilations: int | Sequence[int] = 1,
    layout: str = "NCHW",
    a_zero_point: int = 0,
    bias: Any = None,
    epilogue: Epilogue | None = None,
    residual: Any = None,
    out: Array | None = None,
    threads: int = 1,
    wrap: bool = False,
) -> Array:
    """Convolution: grouped, dilated, asymmetrically padded, depthwise; exact integers, or float32 in the fixed order.

    Parameters
    ----------
    x : uint8, int8, float32, float16 or bfloat16 array (N, C, *spatial), or (N, *spatial, C) with layout ``NHWC``
        One to three spatial dimensions, as many as the weights were packed with.
    packed : Packed
        From `pack_conv`.
    strides, dilations : int or one int a dimension
    pads : int or sequence
        All begins, then all ends (ONNX order: top, left, bottom, right). Padding holds `a_zero_point`, so it
        adds nothing; float padding is +0 and takes part in the sum.
    layout : {"NCHW", "NHWC"}
        Of x, residual and the result.
    a_zero_point, bias, epilogue, residual, out, threads, wrap
        As in `gemm`.

    Returns
    -------
    array (N, O, *spatial) or (N, *spatial, O)

    Raises
    ------
    Error
        Operands that do not fit, or an accumulator that may overflow while `wrap` is false.
    """
    terms = (strides, pads, dilations, layout, a_zero_point, threads, wrap)
    if type(packed) is not Packed:
        raise Error(f"packed must be packed weights, not {type(packed).__name__}", remedy="pack_conv makes them")
    known = packed._calls.again(x, bias, residual, out, epilogue, terms)
    if known is not None:
        return known
    threads = integer(threads, "threads")
    if packed.dtype in HALVES:
        if half_name(x) != packed.dtype or residual is not None:
            raise Error(f"x has dtype {getattr(x, 'dtype', type(x).__name__)}", why=f"the weights are {packed.dtype}")
        wide = conv2d(
            widen(x),
            dataclasses.replace(packed, dtype="float32"),
            strides=strides,
            pads=pads,
            dilations=dilations,
            layout=layout,
            bias=float_bias(bias, packed.columns),
            epilogue=epilogue,
            threads=threads,
        )
        return narrow(wide, packed.dtype, out=out)
    is_float = packed.dtype == "float32"
    given = dense(x, "x", ["float32"] if is_float else ["uint8", "int8"])
    rank = len(packed.kernel)
    if not rank:
        raise Error("these weights were not packed for a convolution", remedy="pack them with hwq.kernels.pack_conv")
    channels = packed.groups * (packed.k // math.prod(packed.kernel) if math.prod(packed.kernel) else 0)
    batch, inside = _split(given, rank, layout)
    if given.shape[1 if layout == "NCHW" else -1] != channels:
        raise Error(f"x has shape {given.shape} in layout {layout}", why=f"the weights take {channels} channels")
    geometry, sides, _ = _geometry(inside, packed.kernel, strides, pads, dilations)
    finish = finishing(epilogue, _PLAIN)
    point, offsets = 0, None
    if is_float:
        if epilogue is not None or residual is not None:
            raise Error("a float32 convolution takes no epilogue")
        offsets = None if bias is None else dense(bias, "bias", ["float32"])
        if offsets is not None and offsets.shape != (packed.columns,):
            raise Error(f"bias has shape {offsets.shape}", why=f"there are {packed.columns} output channels")
    else:
        point = zero_point(a_zero_point, given.dtype, "a_zero_point")
        offsets = int32_bias(bias, packed.columns)
        if not wrap:
            packed.check_overflow(NAMES[given.dtype], point, offsets)
        check_columns(finish, packed.columns)
    shape = (batch, packed.columns, *sides) if layout == "NCHW" else (batch, *sides, packed.columns)
    second = None if is_float else residual_operand(residual, finish, shape)
    result = output(out, shape, np.float32 if is_float else finish.dtype, given, second, offsets)
    taps, weights_f32 = (packed.data, None) if packed.depthwise else (None, packed.data if is_float else None)
    columns, groups, order, kind, door = (
        packed.columns,
        packed.groups,
        _LAYOUTS.index(layout),
        TYPES[given.dtype],
        packed.door,
    )
    ending, dtype, positions = None if is_float else finish._door, result.dtype, math.prod(sides)

    def run(a: Array, bias: Array | None, residual: Array | None, out: Array | None) -> Array:
        result = np.empty(shape, dtype) if out is None else out

        def work(first: int, last: int) -> None:
            _kernels.conv(
                geometry,
                batch,
                channels,
                columns,
                groups,
                order,
                kind,
                point,
                a,
                door,
                taps,
                weights_f32,
                bias,
                ending,
                residual,
                result,
                first,
                last,
            )

        if result.size:
            over_ranges(batch * positions, threads, work, grain=positions if batch >= threads else 1)
        return result

    spare = ANY_BIAS if is_float else packed.spare(NAMES[given.dtype], wrap)
    packed._calls.remember(given, offsets, second, out, epilogue, terms, spare, run)
    return run(given, offsets, second, result)


def _split(x: Array, rank: int, layout: str) -> tuple[int, tuple[int, ...]]:
    one_of(layout, _LAYOUTS, "layout")
    if x.ndim != rank + 2:
        raise Error(f"x has shape {x.shape}", why=f"a batch, channels and {rank} spatial dimensions are needed")
    return x.shape[0], x.shape[2:] if layout == "NCHW" else x.shape[1:-1]


def _geometry(
    inside: tuple[int, ...],
    kernel: Sequence[int],
    strides: int | Sequence[int],
    pads: int | Sequence[int],
    dilations: int | Sequence[int],
    ceil_mode: bool = False,
) -> tuple[Geometry, tuple[int, ...], tuple[int, ...]]:
    """The door's geometry, the output's sides, and the end pads; remembered, since loops ask for the same ones."""

    rank = len(inside)
    return _measure(
        inside,
        tuple(kernel),
        sizes(strides, rank, "strides", 1),
        sizes(pads, 2 * rank, "pads", 0),
        sizes(dilations, rank, "dilations", 1),
        bool(ceil_mode),
    )


@lru_cache(maxsize=1024)
def _measure(
    inside: tuple[int, ...],
    kernel: tuple[int, ...],
    steps: tuple[int, ...],
    edges: tuple[int, ...],
    holes: tuple[int, ...],
    ceil_mode: bool,
) -> tuple[Geometry, tuple[int, ...], tuple[int, ...]]:
    rank = len(inside)
    begin, end = edges[:rank], edges[rank:]
    sides = []
    for d in range(rank):
        room = inside[d] + begin[d] + end[d] - (holes[d] * (kernel[d] - 1) + 1)
        if room < 0:
            raise Error(
                f"the kernel {tuple(kernel)} does not fit the padded input {inside}",
                why=f"pads {edges}, dilations {holes}",
            )
        side = room // steps[d] + 1
        if ceil_mode and room % steps[d] and side * steps[d] < inside[d] + begin[d]:  # a last window must start inside
            side += 1
        sides.append(side)
    if max(math.prod(sides), math.prod(kernel), math.prod(inside)) > _MOST:
        raise Error(f"the kernel {tuple(kernel)} on {inside} with pads {edges} is too large")
    columns = ((inside, 1), (tuple(kernel), 1), (steps, 1), (holes, 1), (begin, 0), (tuple(sides), 1))
    return tuple(spatial(values, fill) for values, fill in columns), tuple(sides), end


def max_pool(
    x: Any,
    kernel: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
    dilations: int | Sequence[int] = 1,
    layout: str = "NCHW",
    ceil_mode: bool = False,
    clamp: tuple[int, int] | None = None,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """Greatest element of each window; padding never wins, and NaN always does.

    Parameters
    ----------
    x : uint8, int8 or float32 array in `layout`, one to three spatial dimensions
    kernel : sequence of int
    strides, pads, dilations
        As in `conv2d`.
    ceil_mode : bool
        Round output sizes up; a window that would start in the end padding is dropped.
    clamp : (int, int), optional
        Fused activation of integer results.
    """
    given = dense(x, "x", ["uint8", "int8", "float32"])
    return _pool(given, 0, kernel, strides, pads, dilations, layout, ceil_mode, False, clamp, out, threads)


def average_pool(
    x: Any,
    kernel: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
    dilations: int | Sequence[int] = 1,
    layout: str = "NCHW",
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    clamp: tuple[int, int] | None = None,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """Mean of each window.

    Integers: the sum of raw values divided by the number of taps inside the image, ties away from zero (TFLite's
    kernel; the zero point passes through). float32: the sum in window order, each addition rounded, then one
    division, as onnxruntime does.

    Parameters
    ----------
    x : uint8, int8, int16 or float32 array in `layout`, one to three spatial dimensions
    count_include_pad : bool
        Divide by the taps inside the padded image instead.
    kernel, strides, pads, dilations, ceil_mode, clamp
        As in `max_pool`.
    """
    given = dense(x, "x", ["uint8", "int8", "int16", "float32"])
    kind = 2 if given.dtype == np.float32 else 1
    return _pool(
        given, kind, kernel, strides, pads, dilations, layout, ceil_mode, count_include_pad, clamp, out, threads
    )


def _pool(
    given: Array,
    kind: int,
    kernel: Sequence[int],
    strides: int | Sequence[int],
    pads: int | Sequence[int],
    dilations: int | Sequence[int],
    layout: str,
    ceil_mode: bool,
    count_include_pad: bool,
    clamp: tuple[int, int] | None,
    out: Array | None,
    threads: int,
) -> Array:
    try:
        rank = len(kernel)
    except TypeError:
        raise Error(f"kernel must be one to three integers, not {kernel}") from None
    if not 1 <= rank <= 3:
        raise Error(f"kernel {tuple(kernel)} must have one to three dimensions")
    batch, inside = _split(given, rank, layout)
    channels = given.shape[1 if layout == "NCHW" else -1]
    geometry, sides, end = _geometry(inside, sizes(kernel, rank, "kernel", 1), strides, pads, dilations, ceil_mode)
    shape = (batch, channels, *sides) if layout == "NCHW" else (batch, *sides, channels)
    result = output(out, shape, given.dtype, given)
    lo, hi = (0, 0) if given.dtype == np.float32 else clamp_bounds(clamp, given.dtype.name)
    if given.dtype == np.float32 and clamp is not None:
        raise Error("a float32 pool takes no clamp")

    def work(first: int, last: int) -> None:
        _kernels.pool(
            geometry,
            spatial(end, 0),
            last - first,
            channels,
            _LAYOUTS.index(layout),
            TYPES[given.dtype],
            kind,
            count_include_pad,
            lo,
            hi,
            given[first:last],
            result[first:last],
        )

    over_ranges(batch, threads, work)
    return result
