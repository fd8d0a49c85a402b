"""Products of the dialect hwq's own groups: int16 activations, weights with groups of scales, float activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from hwq import kernels
from hwq.execution.emission import Emitter, Site, geometry
from hwq.execution.gathering import Weights, apply, channels_second, clamped, convolved, offsets_of, weights_of
from hwq.execution.scaled import Reading, emit_relu, emit_scaled
from hwq.execution.steps import Kernel, Scope, Settings, adapt, present, scalar, writing
from hwq.graph import Array
from hwq.ops import spatial
from hwq.ops.quantize import dequantize
from hwq.ops.storage import integer_range

__all__ = ["clamp_of", "takes", "with_modes"]

# k of one exact int32 sum of int16 x int8: 250 * 65535 * 128 < 2^31.
SAFE_K = 250


def takes(scope: Scope) -> bool:
    """Whether the dialect's own kernels for a group are here."""
    x = scope.operand(0)
    if scope.dialect.formulas.get("weight-only") != "groups" or x is None:
        return False
    return x.quantization is None or x.dtype in {"int16", "uint16"} or scope.quantization(1).block is not None


def clamp_of(scope: Scope, dtype: str, scale: np.float32, zero: int) -> tuple[int, int] | None:
    """The stored range that a swallowed Relu or Clip leaves: the bounds as Q stores them. None for all of the type."""
    low, high = least, most = integer_range(dtype)
    for part in scope.node.body:
        if part.op == "Relu":
            low = max(low, zero)
        if part.op != "Clip":
            continue
        edges: list[int] = [least, most]
        for place, name in enumerate(("min", "max")):
            value = part.inputs[place + 1] if len(part.inputs) > place + 1 else ""
            bound = scope.graph.tensors[value].data if value else part.attributes.get(name)
            if bound is not None:
                with np.errstate(all="ignore"):
                    stored = np.rint(np.float32(np.asarray(bound).reshape(())) / scale) + zero
                edges[place] = int(np.clip(stored, least, most))
        low, high = max(low, edges[0]), min(high, edges[1])
    return None if (low, high) == (least, most) else (min(low, high), high)


def with_modes(scope: Scope) -> Kernel:
    """The kernel of a static group, or of float activations."""
    x = scope.operand(0)
    assert x is not None
    if x.quantization is None:
        return _weight_only(scope)
    return _sixteen(scope) if x.dtype.endswith("16") else _grouped(scope)


def _weight_only(scope: Scope) -> Kernel:
    """Float activations: products with the weights as they are stored, convolutions with their real values.

    ``chain = fma(a, f32(w - zw), chain)`` in a group, ``y = fma(chain, scale, y)``, then ``+ bias``. A convolution runs in the
    fixed order over ``f32(w - zw) * scale``.
    """
    node = scope.node
    if node.op == "Conv":
        tensor, stored, bias = scope.operand(1), scope.quantization(1), scope.operand(2)
        assert tensor is not None and tensor.data is not None
        values = dequantize(tensor.data, stored.scales(), stored.zero_points(), stored.axis, stored.block)
        packed = kernels.pack_conv(values.astype(np.float32), groups=int(node.attributes.get("group", 1)))
        added = None if bias is None else bias.data

        def convolve(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
            return convolved(scope, present(operands[0]), packed, settings, out, bias=added)

        def emit(site: Site) -> bool:
            if site.dtype(0) != np.float32 or node.layout == "NHWC" or (bias is not None and added is None):
                return False
            windows = spatial.windows_of(node, site.space(0), packed.kernel)
            x, y, batch = site.read(0, True), site.make(True), site.shape(0)[0]
            site.step([x], y, lambda steps, at: steps.conv(
                at(x), packed, geometry(windows, site.space(0)), batch, np.float32, layout="NHWC", bias=added, out=at(y)))  # fmt: skip
            emit_relu(site, y)
            return True

        return writing(convolve, emit)
    matrix = weights_of(scope).matrix(0)
    finish = kernels.Epilogue(kind="float", multipliers=np.float32(1), float_bias=offsets_of(scope, matrix.packed.n))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        def product(group: int, rows: Array) -> Array:
            return kernels.gemm(rows, matrix.packed, epilogue=finish, threads=settings.threads)

        return clamped(scope, apply(scope, [matrix], present(operands[0]), 0, product))

    def emit_product(site: Site) -> bool:
        y = None if site.dtype(0) != np.float32 else emit_scaled(site, [matrix], [finish], Reading())
        if y is not None:
            emit_relu(site, y)
        return y is not None

    return adapt(run, emit_product)


def _grouped(scope: Scope) -> Kernel:
    """Bytes times weights with groups of scales: ``y = fma(f32(acc), scale, y)`` over the groups.

    Stored: ``rint(clip(f32(f32(y + f32(b / sa)) * f32(sa / sy)))) + zy``; float: ``f32(y * sa) + b``.
    """
    (step, zero), made, weights = scope.pair(0), scope.result().quantization, weights_of(scope)
    matrices = [weights.matrix(group) for group in range(weights.data.shape[0])]
    offsets, count = offsets_of(scope, weights.outputs), weights.data.shape[-1]

    def finish(bias: Array | None) -> kernels.Epilogue:
        if made is None:
            return kernels.Epilogue(kind="float", multipliers=step, float_bias=bias)
        scale, point = scalar(scope.node, made)
        with np.errstate(all="ignore"):
            added = None if bias is None else (bias / step).astype(np.float32)
            ratio = np.float32(step / scale)
        return kernels.Epilogue(
            kind="requant", rounding="fp32", multipliers=ratio, zero_point=point, dtype=made.dtype, float_bias=added,
            clamp=clamp_of(scope, made.dtype, scale, point),
        )  # fmt: skip

    parts = [None if offsets is None else offsets[first : first + count] for first in range(0, weights.outputs, count)]
    finishes = [finish(part) for part in parts]

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        def product(group: int, rows: Array) -> Array:
            return kernels.gemm(
                rows, matrices[group].packed, a_zero_point=zero, epilogue=finishes[group], threads=settings.threads
            )

        return apply(scope, matrices, present(operands[0]), zero, product)

    def emit(site: Site) -> bool:
        return emit_scaled(site, matrices, finishes, Reading(zero)) is not None

    return adapt(run, emit)


def _sixteen(scope: Scope) -> Kernel:
    """int16 or uint16 activations: exact 64-bit sums, then rounding R2 with ``f64(sa) f64(sw) / f64(sy)``.

    A float bias joins the sums as ``rint(f64(b) / (f64(sa) f64(sw)))``. A float result is ``f32(f64(acc) f64(sa) f64(sw))``,
    plus a float bias.
    """
    (step, zero), made, weights, x = scope.pair(0), scope.result().quantization, weights_of(scope), scope.operand(0)
    assert x is not None
    point = zero - (1 << 15 if x.dtype == "uint16" else 0)
    real = weights.columns.astype(np.float64) * np.float64(step)
    offsets = offsets_of(scope, weights.outputs)
    joined = None if offsets is None else offsets.astype(np.int64)
    if offsets is not None and offsets.dtype == np.float32:
        joined = np.rint(offsets.astype(np.float64) / real).astype(np.int64) if made is not None else None
    finish: kernels.Epilogue | None = None
    if made is not None:
        scale, out_point = scalar(scope.node, made)
        finish = kernels.Epilogue(
            kind="requant", rounding="f64", multipliers=real / np.float64(scale), zero_point=out_point, dtype=made.dtype,
            clamp=clamp_of(scope, made.dtype, scale, out_point),
        )  # fmt: skip
    convolution = scope.node.op == "Conv"
    if finish is not None and not convolution:
        return _requantized(scope, weights, point, joined, finish)
    sums = _by_bytes(scope, point) if convolution else _sums(scope, weights, point)

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        total = sums(_signed(present(operands[0])), settings)
        if joined is not None:
            total += joined
        if finish is not None:
            return channels_second(kernels.requantize(total, finish), out)
        result = (total.astype(np.float64) * real).astype(np.float32)
        if offsets is not None and joined is None:
            result += offsets
        if convolution:
            return channels_second(result, out)
        return result

    return writing(run, _by_bytes_in_c(scope, weights, point, joined, finish, real, offsets))


def _signed(x: Array) -> Array:
    """uint16 as int16, 32768 lower."""
    return x if x.dtype == np.int16 else (x ^ np.uint16(1 << 15)).view(np.int16)


def _requantized(scope: Scope, weights: Weights, point: int, bias: Array | None, finish: kernels.Epilogue) -> Kernel:
    """A product whose sums of 64 bits leave the kernel requantized."""
    matrix = weights.matrix(0, scaled=False)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        def product(group: int, rows: Array) -> Array:
            return kernels.gemm(
                rows, matrix.packed, a_zero_point=point, bias=bias, epilogue=finish, threads=settings.threads
            )

        return apply(scope, [matrix], _signed(present(operands[0])), point, product)

    return adapt(run, _by_bytes_in_c(scope, weights, point, bias, finish, np.zeros(0), None))


def _within_62_bits(bias: Array | None) -> bool:
    """Sums of 47 bits beside such a bias stay inside int64."""
    return bias is None or not bias.size or -(2**62) < int(bias.min()) <= int(bias.max()) < 2**62


def _by_bytes_in_c(
    scope: Scope, weights: Weights, point: int, bias: Array | None, finish: kernels.Epilogue | None, factors: Array, offsets: Array | None
) -> Emitter:  # fmt: skip
    """As C steps: 16 bits apart into two bytes, a product or convolution of each, their sums joined and finished."""
    node, tensor, outputs = scope.node, scope.operand(1), weights.outputs
    assert tensor is not None and tensor.data is not None
    convolution = node.op == "Conv"
    packed = (
        kernels.pack_conv(tensor.data, zero_point=scope.quantization(1).zero_points(), groups=int(node.attributes.get("group", 1)))
        if convolution
        else weights.matrix(0, scaled=False).packed
    )  # fmt: skip
    wide = np.ascontiguousarray(np.broadcast_to(factors.reshape(-1), (outputs,))) if finish is None else None
    added = offsets if finish is None and bias is None else None
    halves = (np.dtype(np.int8), point >> 8), (np.dtype(np.uint8), point & 255)

    def emit(site: Site) -> bool:
        shape, exact = site.shape(0), all(packed.spare(half.name, wrap=False) for half, _ in halves)
        if len(shape) < 2 or not exact or not _within_62_bits(bias) or site.dtype(0).itemsize != 2:
            return False
        size, rows = math.prod(shape), math.prod(site.made_shape()) // max(outputs, 1)
        x = site.read(0, convolution)
        parts = [site.scratch(shape, half) for half, _ in halves]
        site.steps(
            [x], parts, lambda steps, at: steps.split(at(x), size, site.dtype(0), high=at(parts[0]), low=at(parts[1]))
        )
        sums = [_emit_sums(site, packed, rows, half, *how) for half, how in zip(parts, halves, strict=True)]
        y = site.make(convolution)
        site.step(sums, y, lambda steps, at: steps.join(
            at(sums[0]), at(sums[1]), rows, outputs, bias=bias, epilogue=finish, factors=wide, offsets=added, out=at(y)))  # fmt: skip
        return True

    return emit


def _emit_sums(site: Site, packed: kernels.Packed, rows: int, x: int, dtype: np.dtype[np.generic], zero: int) -> int:
    """int32 sums of one of the two bytes."""
    sums, plain = site.scratch((rows, packed.columns), np.dtype(np.int32)), kernels.Epilogue()
    if not packed.kernel:
        site.step([x], sums, lambda steps, at: steps.gemm(
            at(x), packed, rows, dtype, a_zero_point=zero, bias=None, epilogue=plain, out=at(sums)))  # fmt: skip
        return sums
    space, batch = site.space(0), site.shape(0)[0]
    place = geometry(spatial.windows_of(site.node, space, packed.kernel), space)
    site.step([x], sums, lambda steps, at: steps.conv(
        at(x), packed, place, batch, dtype, layout="NHWC", a_zero_point=zero, epilogue=plain, out=at(sums)))  # fmt: skip
    return sums


Sums = Callable[[Array, Settings], Array]


def _sums(scope: Scope, weights: Weights, point: int) -> Sums:
    """``sum of (a - za)(w - zw)`` of a product in int64: int32 sums over runs of k that cannot overflow, added."""
    flat, points = weights.data[0].reshape(-1, weights.data.shape[-1]), weights.points[0]
    parts = [
        (first, kernels.pack(np.ascontiguousarray(flat[first : first + SAFE_K]), zero_point=points))
        for first in range(0, flat.shape[0], SAFE_K)
    ]

    def sums(x: Array, settings: Settings) -> Array:
        total = np.zeros((*x.shape[:-1], flat.shape[1]), np.int64)
        for first, packed in parts:
            run = np.ascontiguousarray(np.atleast_2d(x)[..., first : first + SAFE_K])
            total += kernels.gemm(run, packed, a_zero_point=point, threads=settings.threads).reshape(total.shape)
        return total

    return sums


def _by_bytes(scope: Scope, point: int) -> Sums:
    """The sums of a convolution in int64, channel-last: int16 is 256 times a signed byte and an unsigned one, and so is za.

    ``x - za = 256 (high - high(za)) + (low - low(za))``, so two convolutions of bytes, exact in int32 by the bound of bytes, give
    ``256 acc_high + acc_low``.
    """
    tensor = scope.operand(1)
    assert tensor is not None and tensor.data is not None
    points = scope.quantization(1).zero_points()
    packed = kernels.pack_conv(tensor.data, zero_point=points, groups=int(scope.node.attributes.get("group", 1)))

    def sums(x: Array, settings: Settings) -> Array:
        windows = spatial.windows_of(scope.node, x.shape[2:], packed.kernel)
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        parts = (last >> 8).astype(np.int8), (last & 255).astype(np.uint8)
        high, low = (
            kernels.conv2d(
                part, packed, strides=windows.strides, pads=(*windows.begin, *windows.end), dilations=windows.dilations,
                layout="NHWC", a_zero_point=zero, threads=settings.threads,
            )
            for part, zero in zip(parts, (point >> 8, point & 255), strict=True)
        )  # fmt: skip
        total = high.astype(np.int64)
        total *= 256
        total += low
        return total

    return sums
