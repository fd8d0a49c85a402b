"""TFLite's float layers in the default interpreter by C kernels: chains of fused multiply-adds, and products of rows quantized at run time.

What these builders leave (None) runs as `hwq.ops.tflite_xnnpack_floats` reads it, which has the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hwq import kernels
from hwq.execution.emission import At, Site, geometry
from hwq.execution.steps import Kernel, Scope, Settings, present, writing
from hwq.graph import Array, Tensor
from hwq.kernels.chains import UNBOUNDED, Clamp
from hwq.kernels.steps import Steps
from hwq.ops import tflite_accumulators as sums
from hwq.ops.tflite_base import float_range
from hwq.ops.tflite_xnnpack_floats import DEPTHWISE_TAPS

__all__ = ["convolution", "product"]

_SUMS = kernels.Epilogue()


def _operands(scope: Scope) -> tuple[Tensor, Array, Array | None] | None:
    """Input, weights and bias of a layer of floats that the default interpreter runs; None where these kernels do not apply."""
    x, weight, bias = scope.operand(0), scope.operand(1), scope.operand(2)
    if scope.dialect.name != "litert-xnnpack" or x is None or weight is None or x.dtype != "float32":
        return None
    if weight.data is None or not weight.data.size or weight.dtype not in {"float32", "int8"}:
        return None
    if bias is None:
        return x, weight.data, None
    if bias.data is None or bias.dtype != "float32":
        return None
    return x, weight.data, np.ascontiguousarray(bias.data.reshape(-1))


def _clamp(scope: Scope) -> Clamp:
    low, high = float_range(scope.node)
    return UNBOUNDED[0] if low is None else low, UNBOUNDED[1] if high is None else high


def convolution(scope: Scope) -> Kernel | None:
    """CONV_2D and DEPTHWISE_CONV_2D of float32 by float32, and CONV_2D by int8."""
    found = _operands(scope)
    if found is None:
        return None
    x, weight, bias = found
    channels = x.shape[3] if x.known_shape else None
    if not isinstance(channels, int) or not channels:
        return None
    deep = scope.node.op == "DEPTHWISE_CONV_2D"
    if weight.dtype == np.int8:
        return None if deep else _hybrid(scope, channels, weight, bias)
    if deep:
        if weight.shape[3] != channels:
            return None
        weight = weight.transpose(3, 1, 2, 0)
    depth = weight.shape[3]
    if (
        not depth
        or channels % depth
        or len(weight) % (channels // depth)
        or (bias is not None and len(bias) != len(weight))
    ):
        return None
    alone = depth == 1 and len(weight) == channels
    chain = kernels.pack_chain(
        np.ascontiguousarray(weight), groups=channels // depth, columns=alone and weight[0].size <= DEPTHWISE_TAPS
    )
    node, clamp = scope.node, _clamp(scope)

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        image = present(operands[0])
        windows = sums.windows_of(node, image.shape[1:3], chain.kernel)
        return kernels.conv_chain(
            image,
            chain,
            strides=windows.strides,
            pads=(*windows.begin, *windows.end),
            dilations=windows.dilations,
            bias=bias,
            clamp=clamp,
            out=out,
            threads=settings.threads,
        )

    def emit(site: Site) -> bool:
        shape = site.shape(0)
        windows = sums.windows_of(node, shape[1:3], chain.kernel)
        x, y = site.read(0), site.make()
        site.step([x], y, lambda steps, at: steps.conv_chain(
            at(x), chain, geometry(windows, shape[1:3]), shape[0], bias=bias, clamp=clamp, out=at(y)))  # fmt: skip
        return True

    return writing(run, emit)


def product(scope: Scope) -> Kernel | None:
    """FULLY_CONNECTED of float32 by float32 and by int8."""
    found = _operands(scope)
    if found is None or found[1].ndim != 2:
        return None
    _, weight, bias = found
    outputs, depth = weight.shape
    if bias is not None and len(bias) != outputs:
        return None
    if weight.dtype == np.int8:
        return _rows(scope, weight, bias)
    chain = kernels.pack_chain(np.ascontiguousarray(weight).reshape(outputs, 1, 1, depth))
    node, clamp = scope.node, _clamp(scope)
    keep = bool(node.attributes.get("keep_dims", False))

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x = present(operands[0])
        rows = x.reshape(1, 1, -1, depth)
        target = None if out is None else out.reshape(1, 1, -1, outputs)
        made = kernels.conv_chain(rows, chain, bias=bias, clamp=clamp, out=target, threads=settings.threads)
        return out if out is not None else made.reshape((*x.shape[:-1], outputs) if keep else (-1, outputs))

    def emit(site: Site) -> bool:
        x, y, rows = site.read(0), site.make(), math.prod(site.shape(0)) // depth
        place = (1, 1, rows), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, rows)
        site.step([x], y, lambda steps, at: steps.conv_chain(at(x), chain, place, 1, bias=bias, clamp=clamp, out=at(y)))
        return True

    return writing(run, emit)


def _factors(scope: Scope, outputs: int) -> Array:
    return np.ascontiguousarray(np.broadcast_to(scope.quantization(1).scales().reshape(-1), (outputs,)), np.float32)


def _hybrid(scope: Scope, channels: int, weight: Array, bias: Array | None) -> Kernel | None:
    """Images quantized over their own range; single pixels by a stride of 1 are rows of their own."""
    outputs, depth = len(weight), weight.shape[3]
    if not depth or channels % depth or outputs % (channels // depth) or (bias is not None and len(bias) != outputs):
        return None
    if weight.shape[1:] == (1, 1, channels) and set(scope.node.attributes["strides"]) == {1}:
        return _rows(scope, weight.reshape(outputs, channels), bias)
    node, clamp, factors = scope.node, _clamp(scope), _factors(scope, outputs)
    packed = kernels.pack_conv(np.ascontiguousarray(weight), groups=channels // depth, layout="OHWI")
    kernel = int(weight.shape[1]), int(weight.shape[2])

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        image = present(operands[0])
        windows = sums.windows_of(node, image.shape[1:3], kernel)
        flat = np.ascontiguousarray(image).reshape(len(image), -1)
        stored, scale, point = kernels.dynamic_quantize(flat, formula="xnnpack", per_row=True)
        made = np.empty((len(image), *windows.sizes, outputs), np.float32) if out is None else out
        for index in range(len(image)):
            acc = kernels.conv2d(
                stored[index].reshape(1, *image.shape[1:]),
                packed,
                strides=windows.strides,
                pads=(*windows.begin, *windows.end),
                dilations=windows.dilations,
                layout="NHWC",
                a_zero_point=int(point[index]),
                threads=settings.threads,
                wrap=True,
            )
            line = made[index].reshape(-1, outputs)
            kernels.scale_sums(
                acc.reshape(-1, outputs), scale[index : index + 1], factors, bias=bias, clamp=clamp, out=line
            )
        return made

    def emit(site: Site) -> bool:
        shape = site.shape(0)
        if shape[0] != 1:
            return False
        windows = sums.windows_of(node, shape[1:3], kernel)
        x, y, rows = site.read(0), site.make(), math.prod(windows.sizes)
        q, s, z, acc = _scratches(site, shape, 1, rows * outputs)
        site.steps([x], [q, s, z], lambda steps, at: steps.dynamic_quantize(
            at(x), 1, math.prod(shape), formula="xnnpack", out=at(q), scale=at(s), zero_point=at(z)))  # fmt: skip

        def multiply(steps: Steps, at: At) -> None:
            steps.conv(
                at(q), packed, geometry(windows, shape[1:3]), 1, np.int8, layout="NHWC", epilogue=_SUMS, out=at(acc)
            )
            steps.scaled(at(s), at(z))

        site.step([q, s, z], acc, multiply)
        site.step([acc, s], y, lambda steps, at: steps.scale_sums(
            at(acc), rows, rows, at(s), None, sums=None, factors=factors, bias=bias, clamp=clamp, out=at(y)))  # fmt: skip
        return True

    return writing(run, emit)


def _rows(scope: Scope, weight: Array, bias: Array | None) -> Kernel:
    """Rows quantized over their own range: their zero points leave the sums."""
    outputs, depth = weight.shape
    node, clamp, factors = scope.node, _clamp(scope), _factors(scope, outputs)
    packed = kernels.pack(np.ascontiguousarray(weight), layout="NK")
    columns = packed.column_sums.astype(np.int32)
    keep = node.op != "FULLY_CONNECTED" or bool(node.attributes.get("keep_dims", False))

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x = present(operands[0])
        rows = np.ascontiguousarray(x).reshape(-1, depth)
        stored, scale, point = kernels.dynamic_quantize(rows, formula="xnnpack", per_row=True, threads=settings.threads)
        acc = kernels.gemm(stored, packed, threads=settings.threads, wrap=True)
        target = None if out is None else out.reshape(-1, outputs)
        made = kernels.scale_sums(acc, scale, factors, bias=bias, points=point, sums=columns, clamp=clamp, out=target)
        return out if out is not None else made.reshape((*x.shape[:-1], outputs) if keep else (-1, outputs))

    def emit(site: Site) -> bool:
        x, y, rows = site.read(0), site.make(), math.prod(site.shape(0)) // depth
        q, s, z, acc = _scratches(site, (rows, depth), rows, rows * outputs)
        site.steps([x], [q, s, z], lambda steps, at: steps.dynamic_quantize(
            at(x), rows, depth, formula="xnnpack", out=at(q), scale=at(s), zero_point=at(z)))  # fmt: skip
        site.step([q], acc, lambda steps, at: steps.gemm(
            at(q), packed, rows, np.int8, a_zero_point=0, bias=None, epilogue=_SUMS, out=at(acc)))  # fmt: skip
        site.step([acc, s, z], y, lambda steps, at: steps.scale_sums(
            at(acc), rows, 1, at(s), at(z), sums=columns, factors=factors, bias=bias, clamp=clamp, out=at(y)))  # fmt: skip
        return True

    return writing(run, emit)


def _scratches(site: Site, shape: tuple[int, ...], rows: int, elements: int) -> tuple[int, int, int, int]:
    """Memory of stored values, of a scale and a zero point a row, of accumulators."""
    return (
        site.scratch(shape, np.dtype(np.int8)),
        site.scratch((rows,), np.dtype(np.float32)),
        site.scratch((rows,), np.dtype(np.int8)),
        site.scratch((elements,), np.dtype(np.int32)),
    )
