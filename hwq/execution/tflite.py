"""TFLite's integer convolutions and products by the exact kernels; every other operator runs as `hwq.ops` computes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hwq import kernels
from hwq.execution import tflite_floats
from hwq.execution.emission import Site, geometry
from hwq.execution.steps import Kernel, Scope, Settings, interpret, present, register, writing
from hwq.graph import Array
from hwq.ops import tflite_accumulators as sums
from hwq.ops import tflite_rescaling as rescaling
from hwq.ops.tflite_base import Call, activation_range

__all__: list[str] = []


def _epilogue(scope: Scope) -> kernels.Epilogue | None:
    """How the accumulators leave, or None where the kernels have no such form."""
    x, weight, bias = scope.operand(0), scope.operand(1), scope.operand(2)
    assert x is not None and weight is not None
    if x.dtype not in {"int8", "uint8"} or weight.dtype not in {"int8", "uint8", "int4"} or weight.data is None:
        return None
    if bias is not None and (bias.data is None or bias.dtype != "int32"):
        return None
    call = Call.within(scope.node, [None] * len(scope.node.inputs), scope.graph)
    if call.made_dtype() != x.dtype:
        return None
    rounding = rescaling.rounding_of(call, None if bias is None else bias.dtype)
    if rounding.name == "ruy" and rescaling.by_vectors(scope.node.op):
        return None
    return kernels.Epilogue(
        kind="requant",
        rounding=rounding.name,
        multipliers=rounding.multipliers,
        shifts=rounding.shifts,
        zero_point=call.made_zero_point(),
        clamp=activation_range(call),
        dtype=call.made_dtype(),
    )


@register("tflite::CONV_2D", "tflite::DEPTHWISE_CONV_2D")
def convolve(scope: Scope) -> Kernel:
    """A convolution in NHWC; filters of DEPTHWISE_CONV_2D become one a channel."""
    epilogue = _epilogue(scope)
    x, weight, bias = scope.operand(0), scope.operand(1), scope.operand(2)
    assert x is not None and weight is not None
    channels = x.shape[3] if x.known_shape else None
    if epilogue is None or weight.data is None or not isinstance(channels, int) or not weight.data.size:
        return tflite_floats.convolution(scope) or interpret(scope)
    node, (_, zero) = scope.node, scope.pair(0)
    deep = node.op == "DEPTHWISE_CONV_2D"
    filters = np.ascontiguousarray(weight.data.transpose(3, 1, 2, 0)) if deep else weight.data
    packed = kernels.pack_conv(
        filters,
        zero_point=_filter_zero(scope),
        groups=channels if deep else channels // filters.shape[3],
        layout="OHWI",
    )
    offsets = None if bias is None else bias.data

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        image = present(operands[0])
        windows = sums.windows_of(node, image.shape[1:3], filters.shape[1:3])
        return kernels.conv2d(
            image,
            packed,
            strides=windows.strides,
            pads=(*windows.begin, *windows.end),
            dilations=windows.dilations,
            layout="NHWC",
            a_zero_point=zero,
            bias=offsets,
            epilogue=epilogue,
            out=out,
            threads=settings.threads,
            wrap=True,
        )

    def emit(site: Site) -> bool:
        shape = site.shape(0)
        windows = sums.windows_of(node, shape[1:3], (int(filters.shape[1]), int(filters.shape[2])))
        x, y, dtype = site.read(0), site.make(), site.dtype(0)
        site.step([x], y, lambda steps, at: steps.conv(
            at(x), packed, geometry(windows, shape[1:3]), shape[0], dtype, layout="NHWC", a_zero_point=zero,
            bias=offsets, epilogue=epilogue, out=at(y)))  # fmt: skip
        return True

    return writing(run, emit)


@register("tflite::FULLY_CONNECTED")
def multiply(scope: Scope) -> Kernel:
    """Rows of the flattened input times the filters."""
    epilogue = _epilogue(scope)
    weight, bias = scope.operand(1), scope.operand(2)
    if epilogue is None or weight is None or weight.data is None or not weight.data.size:
        return tflite_floats.product(scope) or interpret(scope)
    node, (_, zero) = scope.node, scope.pair(0)
    outputs, depth = weight.data.shape
    packed = kernels.pack(weight.data, zero_point=_filter_zero(scope), layout="NK")
    offsets = None if bias is None or bias.data is None else bias.data.reshape(-1)
    keep = bool(node.attributes.get("keep_dims", False))

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x = present(operands[0])
        rows = x.reshape(-1, depth)
        shape = (*x.shape[:-1], outputs) if keep else (len(rows), outputs)
        target = None if out is None else out.reshape(-1, outputs)
        made = kernels.gemm(
            rows,
            packed,
            a_zero_point=zero,
            bias=offsets,
            epilogue=epilogue,
            out=target,
            threads=settings.threads,
            wrap=True,
        )
        return out if out is not None else made.reshape(shape)

    def emit(site: Site) -> bool:
        x, y, rows, dtype = site.read(0), site.make(), math.prod(site.shape(0)) // depth, site.dtype(0)
        site.step([x], y, lambda steps, at: steps.gemm(
            at(x), packed, rows, dtype, a_zero_point=zero, bias=offsets, epilogue=epilogue, out=at(y)))  # fmt: skip
        return True

    return writing(run, emit)


def _filter_zero(scope: Scope) -> int:
    """The zero point that kernels take off the filters: only uint8, and FULLY_CONNECTED's one, have any."""
    points = scope.quantization(1).zero_points().reshape(-1)
    weight = scope.operand(1)
    assert weight is not None
    if scope.node.op == "FULLY_CONNECTED":
        return int(points[0]) if points.size == 1 else 0
    return int(points[0]) if weight.dtype == "uint8" else 0
