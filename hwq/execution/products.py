"""Quantized convolutions and matrix products, by the exact integer kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwq import kernels
from hwq.dialect import Dialect
from hwq.errors import NotSupportedYet
from hwq.execution.elementwise import floor_of
from hwq.execution.emission import Site, geometry
from hwq.execution.modes import clamp_of, takes, with_modes
from hwq.execution.saturation import stand_in
from hwq.execution.steps import Gemm, Kernel, Scope, Settings, adapt, present, register, scalar, writing
from hwq.graph import Array, Node, Tensor
from hwq.ops import arithmetic, spatial

__all__ = ["convolve_by", "epilogue_of", "integer_bias", "pack_conv"]


def epilogue_of(scope: Scope, columns: int, factor: float = 1.0) -> kernels.Epilogue:
    """How accumulators of the node leave: requantized as the dialect says, or float where no Q follows."""
    input_scale, _ = scope.pair(0)
    weights = scope.quantization(1).scales().reshape(-1)
    made = scope.result().quantization
    # f32(f32(a * sa) * sb), then / sy: onnxruntime's order of products (numerics b2).
    scales = (np.float32(np.float32(factor) * input_scale) * weights).astype(np.float32)
    if made is None:
        added = scope.operand(2)
        offsets = None
        if added is not None and added.dtype == "float32" and added.data is not None:
            offsets = np.ascontiguousarray(np.broadcast_to(added.data.reshape(-1), (columns,)), np.float32)
        return kernels.Epilogue(kind="float", multipliers=_per_column(scales, columns), float_bias=offsets)
    scale, zero = scalar(scope.node, made)
    rounding = _rounding(scope.dialect, scope.node)
    with np.errstate(all="ignore"):
        multipliers = (scales / scale).astype(np.float32)
    bias = scope.operand(2)
    offsets = None
    if bias is not None and bias.dtype == "float32" and bias.data is not None:
        # torch's kernels add f32(bias / f32(sa * sb)) to the accumulators, in float32 (numerics c).
        with np.errstate(all="ignore"):
            offsets = np.ascontiguousarray(np.broadcast_to(bias.data.reshape(-1) / scales, (columns,)), np.float32)
    return kernels.Epilogue(
        kind="requant",
        rounding=rounding,
        multipliers=_per_column(multipliers, columns),
        zero_point=zero,
        dtype=made.dtype,
        float_bias=offsets,
        clamp=clamp_of(scope, made.dtype, scale, zero) if scope.dialect.groups else floor_of(scope, made.dtype, zero),
    )


def integer_bias(tensor: Tensor | None) -> tuple[Array | None, bool]:
    """A constant int32 bias, and whether one is given at run time; a float bias is the epilogue's."""
    if tensor is None or tensor.dtype == "float32":
        return None, False
    return tensor.data, tensor.data is None


def _rounding(dialect: Dialect, node: Node) -> str:
    rounding = dialect.roundings.get(node.op, dialect.roundings.get("*", "fp32"))
    if rounding != "fp32":
        raise NotSupportedYet(f"rounding {rounding} of dialect {dialect.name}", where=f"node {node.name}")
    return rounding


def _per_column(values: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    return values.reshape(()) if values.size == 1 else np.ascontiguousarray(np.broadcast_to(values, (columns,)))


@register("Conv")
def conv(scope: Scope) -> Kernel:
    """A quantized convolution: pad with the zero point, exact int32 accumulators, requantize."""
    if takes(scope):
        return with_modes(scope)
    node = scope.node
    _, zero = scope.pair(0)
    weights, bias = scope.operand(1), scope.operand(2)
    assert weights is not None
    layout = node.layout or "NCHW"
    filters = int(weights.shape[0])
    groups = int(node.attributes.get("group", 1))
    epilogue = epilogue_of(scope, filters)
    points = scope.quantization(1).zero_points()
    packed = None if weights.data is None else pack_conv(weights.data, points, groups, layout)
    offsets, given = integer_bias(bias)
    dialects_own = stand_in(scope)

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x, filter_ = present(operands[0]), present(operands[1])
        added = operands[2] if given else offsets
        windows = spatial.windows_of(node, _space(x, node), _kernel(filter_, node))
        instead = settings.gemm or dialects_own
        if instead is not None:
            made = convolve_by(instead, node, x, filter_, windows, zero, points, groups, added, epilogue)
            return _store(made, out)
        return kernels.conv2d(
            x,
            packed if packed is not None else pack_conv(filter_, points, groups, layout),
            strides=windows.strides,
            pads=(*windows.begin, *windows.end),
            dilations=windows.dilations,
            layout=layout,
            a_zero_point=zero,
            bias=added,
            epilogue=epilogue,
            out=out,
            threads=settings.threads,
            wrap=True,
        )

    def emit(site: Site) -> bool:
        if packed is None or dialects_own is not None or given:
            return False
        windows = spatial.windows_of(site.node, site.space(0), packed.kernel)
        x, y, batch, dtype = site.read(0, site.turns), site.make(site.turns), site.shape(0)[0], site.dtype(0)
        site.step([x], y, lambda steps, at: steps.conv(
            at(x), packed, geometry(windows, site.space(0)), batch, dtype, layout="NHWC", a_zero_point=zero,
            bias=offsets, epilogue=epilogue, out=at(y)))  # fmt: skip
        return True

    return writing(run, emit)


def pack_conv(weights: Array, points: Array, groups: int, layout: str) -> kernels.Packed:
    return kernels.pack_conv(weights, zero_point=points, groups=groups, layout="OHWI" if layout == "NHWC" else "OIHW")


def _space(x: Array, node: Node) -> tuple[int, ...]:
    return x.shape[1:-1] if node.layout == "NHWC" else x.shape[2:]


def _kernel(weights: Array, node: Node) -> tuple[int, ...]:
    return weights.shape[1:-1] if node.layout == "NHWC" else weights.shape[2:]


def convolve_by(
    gemm: object,
    node: Node,
    x: Array,
    weights: Array,
    windows: spatial.Windows,
    zero: int,
    points: Array,
    groups: int,
    bias: Array | None,
    epilogue: kernels.Epilogue,
) -> Array:
    """The convolution as one matrix product a group, over gathered windows: k runs over (tap, channel)."""
    assert callable(gemm)
    image = np.ascontiguousarray(x if node.layout == "NHWC" else np.moveaxis(x, 1, -1))
    filters = np.moveaxis(weights, -1, 1) if node.layout == "NHWC" else weights
    counts = windows.sizes
    padded = np.moveaxis(arithmetic.padded(np.moveaxis(image, -1, 1), windows.begin, windows.end, zero), 1, -1)
    padded = np.ascontiguousarray(padded)
    batch, outputs, rank = x.shape[0], filters.shape[0], len(counts)
    taps, depth, each = int(np.prod(windows.kernel)), filters.shape[1], filters.shape[0] // groups
    # [N, *counts, *kernel, C]: channels lie together in memory, and with them the last dimension's taps.
    view = np.lib.stride_tricks.sliding_window_view(padded, windows.extents, axis=tuple(range(1, 1 + rank)))
    at = (slice(0, (count - 1) * stride + 1, stride) for count, stride in zip(counts, windows.strides, strict=True))
    view = view[(slice(None), *at, slice(None), *(slice(None, None, step) for step in windows.dilations))]
    rows = np.moveaxis(view, 1 + rank, -1)
    spread = np.broadcast_to(points.reshape(-1), (outputs,)).astype(np.int32)
    acc = np.empty((batch * int(np.prod(counts)), outputs), np.int32)
    for group in range(groups):
        a = np.ascontiguousarray(rows[..., group * depth : (group + 1) * depth]).reshape(-1, taps * depth)
        columns = slice(group * each, (group + 1) * each)
        b = np.ascontiguousarray(np.moveaxis(filters[columns], 1, -1).reshape(each, taps * depth).T)
        acc[:, columns] = gemm(a, b, a_zero_point=zero, b_zero_points=spread[columns])
    if bias is not None:
        acc = (acc.astype(np.int64) + bias).astype(np.int32)
    made = kernels.requantize(acc, epilogue).reshape(batch, *counts, outputs)
    return made if node.layout == "NHWC" else np.ascontiguousarray(np.moveaxis(made, -1, 1))


def _store(made: Array, out: Array | None) -> Array:
    if out is None or made is out:
        return made
    out[...] = made
    return out


@register("MatMul")
def matmul(scope: Scope) -> Kernel:
    """A quantized matrix product, batched as NumPy's ``@``."""
    return _product(scope, transpose_a=False, transpose_b=False, factor=1.0)


@register("Gemm")
def gemm(scope: Scope) -> Kernel:
    """A quantized Gemm: ``alpha`` multiplies the accumulators' scale, the bias is added as int32."""
    get = scope.node.attributes.get
    return _product(scope, bool(get("transA", 0)), bool(get("transB", 0)), float(get("alpha", 1.0)))


# Elements of an activation row that onnxruntime quantizes with one scale where the weights name no block (accuracy_level 4).
ACTIVATION_BLOCK = 32


def _weight_only(scope: Scope) -> Kernel:
    """What onnxruntime makes a MatMulNBits: dequantized weights under float activations."""
    weights = scope.operand(1)
    assert weights is not None and weights.data is not None
    quantization = scope.quantization(1)
    size = quantization.block or ACTIVATION_BLOCK
    scales = np.broadcast_to(quantization.scales(), (-(-weights.data.shape[0] // size), weights.data.shape[1]))
    points = np.broadcast_to(quantization.zero_points(), scales.shape)
    return quantized_in_blocks(weights.data, points, scales, size, 2)


def quantized_in_blocks(weights: Array, points: Array, scales: Array, size: int, bias: int) -> Kernel:
    """MatMulNBits at accuracy level 4: activations are quantized to int8 per row and block of k, s = max|a| / 127.

    Each block's exact integer sum is scaled by f32(s * s_w) and added in order of k. onnxruntime's own order of the float
    sum follows from the CPU, so this is within an ulp or two, not bit for bit (numerics b2).

    Parameters
    ----------
    weights : integer array (K, N)
    points, scales : arrays (blocks, N)
    size : int
        Rows of a block.
    bias : int
        The place of the bias among the operands.
    """
    k, columns = weights.shape
    packed = [
        kernels.pack(weights[first : first + size], zero_point=np.ascontiguousarray(points[index]))
        for index, first in enumerate(range(0, k, size))
    ]

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        a, added = present(operands[0]), operands[bias] if len(operands) > bias else None
        made = np.zeros((*a.shape[:-1], columns), np.float32)
        for index, block in enumerate(packed):
            part = a[..., index * size : (index + 1) * size]
            largest = np.abs(part).max(axis=-1, keepdims=True)
            step = largest / np.float32(127)
            inverse = np.float32(127) / np.where(largest > 0, largest, np.float32(np.inf))
            inverse = np.where(np.isfinite(inverse), inverse, np.float32(0))
            acc = kernels.gemm(np.rint(part * inverse).astype(np.int8), block, threads=settings.threads, wrap=True)
            made += acc.astype(np.float32) * (step * scales[index])
        return made if added is None else made + added

    return adapt(run)


def _product(scope: Scope, transpose_a: bool, transpose_b: bool, factor: float) -> Kernel:
    left, right, bias = scope.operand(0), scope.operand(1), scope.operand(2)
    assert left is not None and right is not None
    if takes(scope):
        return with_modes(scope)
    if left.quantization is None:
        return _weight_only(scope)
    _, zero = scope.pair(0)
    columns = right.shape[0 if transpose_b else -1] if right.known_shape and len(right.shape) > 1 else 1
    points = scope.quantization(1).zero_points()
    scales = scope.quantization(1).scales()
    # The width is only needed where scales are per column; then it is their number.
    epilogue = epilogue_of(
        scope, scales.size if scales.size != 1 else int(columns) if isinstance(columns, int) else 1, factor
    )
    fixed = right.data is not None and right.data.ndim == 2
    packed = kernels.pack(right.data, zero_point=points, layout="NK" if transpose_b else "KN") if fixed else None
    offsets, given = integer_bias(bias)
    dialects_own = stand_in(scope)

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        a, b = present(operands[0]), present(operands[1])
        added = operands[2] if given else offsets
        a = np.ascontiguousarray(a.T) if transpose_a else a
        b = b.T if transpose_b else b
        rows = _row_bias(added, b.shape[-1])
        by_row = added if rows is None else None  # a bias with a value a row is added to the accumulators
        finish = epilogue if by_row is None else kernels.Epilogue()
        wide = np.atleast_2d(a)
        instead = settings.gemm or dialects_own
        if instead is not None or packed is None:
            made = _batched(
                wide, b if b.ndim > 1 else b[:, None], zero, points, rows, finish, settings.threads, instead
            )
        else:
            target = out if by_row is None and a.ndim > 1 else None
            made = kernels.gemm(
                wide,
                packed,
                a_zero_point=zero,
                bias=rows,
                epilogue=finish,
                out=target,
                threads=settings.threads,
                wrap=True,
            )
        if by_row is not None:
            made = kernels.requantize((made.astype(np.int64) + by_row).astype(np.int32), epilogue)
        made = made[..., 0, :] if a.ndim == 1 else made
        return _store(made[..., 0] if b.ndim == 1 else made, out)

    def emit(site: Site) -> bool:
        added = None if offsets is None and not given else site.constant(2)
        unusual = transpose_a or len(site.shape(0)) < 2 or dialects_own is not None
        if unusual or (given and added is None):
            return False
        if packed is None:
            return _emit_products(site, zero, points, added, epilogue, transpose_b)
        rows = _row_bias(added, packed.n)
        if added is not None and rows is None:
            return False
        x, y, count, dtype = site.read(0), site.make(), math.prod(site.shape(0)[:-1]), site.dtype(0)
        site.step([x], y, lambda steps, at: steps.gemm(
            at(x), packed, count, dtype, a_zero_point=zero, bias=rows, epilogue=epilogue, out=at(y)))  # fmt: skip
        return True

    return writing(run, emit)


def _emit_products(
    site: Site, zero: int, points: Array, bias: Array | None, epilogue: kernels.Epilogue, transposed: bool
) -> bool:
    """Products of activations, the batch's alike or one for all."""
    (*lead, m, k), right = site.shape(0), site.shape(1)
    if len(right) < 2:
        return False
    n, batch = right[-2 if transposed else -1], site.made_shape()[:-2]
    shared = [math.prod(shape) == 1 for shape in (lead, right[:-2])]
    fits = all(one or tuple(shape) == batch for one, shape in zip(shared, (lead, right[:-2]), strict=True))
    rows = _row_bias(bias, n)
    if not fits or (bias is not None and rows is None):
        return False
    if shared[1] and not shared[0]:  # one product of all rows
        m, batch, shared = m * math.prod(lead), (), [True, True]
    a, b, y = site.read(0), site.read(1), site.make()
    kinds = site.dtype(0), site.dtype(1)
    site.step([a, b], y, lambda steps, at: steps.products(
        at(a), at(b), (math.prod(batch), m, k, n), kinds, shared=(shared[0], shared[1]), transposed=transposed, a_zero_point=zero,
        b_zero_points=points, bias=rows, epilogue=epilogue, out=at(y)))  # fmt: skip
    return True


def _row_bias(bias: Array | None, columns: int) -> Array | None:
    """The bias as one int32 a column, or None where it has a value a row (or is absent)."""
    if bias is None or (bias.ndim == 2 and bias.shape[0] != 1):
        return None
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (columns,)))


def _batched(
    a: Array,
    b: Array,
    zero: int,
    points: Array,
    bias: Array | None,
    epilogue: kernels.Epilogue,
    threads: int,
    instead: Gemm | None,
) -> Array:
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    made = np.empty((*batch, a.shape[-2], b.shape[-1]), epilogue.dtype)
    left, right = np.broadcast_to(a, (*batch, *a.shape[-2:])), np.broadcast_to(b, (*batch, *b.shape[-2:]))
    spread = np.broadcast_to(points.reshape(-1), (b.shape[-1],)).astype(np.int32)
    for index in np.ndindex(*batch):
        if instead is not None:
            acc = instead(
                np.ascontiguousarray(left[index]),
                np.ascontiguousarray(right[index]),
                a_zero_point=zero,
                b_zero_points=spread,
            )
            acc = acc if bias is None else (acc.astype(np.int64) + bias).astype(np.int32)
            made[index] = kernels.requantize(acc, epilogue)
        else:
            packed = kernels.pack(np.ascontiguousarray(right[index]), zero_point=points)
            made[index] = kernels.gemm(
                left[index],
                packed,
                a_zero_point=zero,
                bias=bias,
                epilogue=epilogue,
                threads=threads,
                wrap=True,
            )
    return made
