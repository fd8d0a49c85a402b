"""Products of the dialect hwq's own groups: int16 activations, weights with groups of scales, float activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hwq import kernels
from hwq.execution.gathering import Matrix, Weights, apply, clamped, convolved, gathered, offsets_of, weights_of
from hwq.execution.steps import Kernel, Scope, Settings, adapt, present, scalar, writing
from hwq.graph import Array
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

        return writing(convolve)
    matrix = weights_of(scope).matrix(0)
    finish = kernels.Epilogue(kind="float", multipliers=np.float32(1), float_bias=offsets_of(scope, matrix.packed.n))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        def product(group: int, rows: Array) -> Array:
            return kernels.gemm(rows, matrix.packed, epilogue=finish, threads=settings.threads)

        return clamped(scope, apply(scope, [matrix], present(operands[0]), 0, product))

    return adapt(run)


def _grouped(scope: Scope) -> Kernel:
    """Bytes times weights with groups of scales: ``y = fma(f32(acc), scale, y)`` over the groups.

    Stored: ``rint(clip(f32(f32(y + f32(b / sa)) * f32(sa / sy)))) + zy``; float: ``f32(y * sa) + b``.
    """
    (step, zero), made = scope.pair(0), scope.result().quantization
    matrix = weights_of(scope).matrix(0)
    offsets = offsets_of(scope, matrix.packed.n)
    if made is None:
        finish = kernels.Epilogue(kind="float", multipliers=step, float_bias=offsets)
    else:
        scale, point = scalar(scope.node, made)
        with np.errstate(all="ignore"):
            added = None if offsets is None else (offsets / step).astype(np.float32)
            ratio = np.float32(step / scale)
        finish = kernels.Epilogue(
            kind="requant", rounding="fp32", multipliers=ratio, zero_point=point, dtype=made.dtype, float_bias=added,
            clamp=clamp_of(scope, made.dtype, scale, point),
        )  # fmt: skip

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        def product(group: int, rows: Array) -> Array:
            return kernels.gemm(rows, matrix.packed, a_zero_point=zero, epilogue=finish, threads=settings.threads)

        return apply(scope, [matrix], present(operands[0]), zero, product)

    return adapt(run)


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
    depthwise = weights.data.shape[2] == 1 and weights.data.shape[0] > 1
    if finish is not None and not depthwise:
        return _requantized(scope, weights, point, joined, real)
    sums = _depthwise(scope, weights, point) if depthwise else _sums(scope, weights, point)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        acc = sums(_signed(present(operands[0])), settings)
        last = np.ascontiguousarray(np.moveaxis(acc, 1, -1)) if scope.node.op == "Conv" else acc
        total = last if joined is None else last + joined
        if finish is not None:
            result = kernels.requantize(total, finish)
        else:
            result = (total.astype(np.float64) * real).astype(np.float32)
            if offsets is not None and joined is None:
                result = result + offsets
        return np.ascontiguousarray(np.moveaxis(result, -1, 1)) if scope.node.op == "Conv" else result

    return adapt(run)


def _signed(x: Array) -> Array:
    """uint16 as int16, 32768 lower."""
    return x if x.dtype == np.int16 else (x ^ np.uint16(1 << 15)).view(np.int16)


def _requantized(scope: Scope, weights: Weights, point: int, bias: Array | None, real: Array) -> Kernel:
    """Sums of 64 bits that leave the kernel requantized."""
    made = scope.result().quantization
    assert made is not None
    scale, out_point = scalar(scope.node, made)
    count = weights.data.shape[-1]
    matrices = [weights.matrix(group, scaled=False) for group in range(weights.data.shape[0])]
    columns = [slice(group * count, (group + 1) * count) for group in range(len(matrices))]
    finishes = [
        kernels.Epilogue(kind="requant", rounding="f64", multipliers=real[part] / np.float64(scale), zero_point=out_point,
                         dtype=made.dtype, clamp=clamp_of(scope, made.dtype, scale, out_point))
        for part in columns
    ]  # fmt: skip

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        def product(group: int, rows: Array) -> Array:
            return kernels.gemm(
                rows, matrices[group].packed, a_zero_point=point, epilogue=finishes[group], threads=settings.threads,
                bias=None if bias is None else np.ascontiguousarray(bias[columns[group]]),
            )  # fmt: skip

        return apply(scope, matrices, _signed(present(operands[0])), point, product)

    return adapt(run)


Sums = Callable[[Array, Settings], Array]


def _sums(scope: Scope, weights: Weights, point: int) -> Sums:
    """``sum of (a - za)(w - zw)`` in int64: int32 sums over runs of k that cannot overflow, added."""
    parts = []
    for group in range(weights.data.shape[0]):
        flat = weights.data[group].reshape(-1, weights.data.shape[-1])
        packed = kernels.pack(np.ascontiguousarray(flat), zero_point=weights.points[group])
        least, most = packed.accumulator_range("int16", point)
        fits = packed.n == 0 or (int(least.min()) >= -(2**31) and int(most.max()) < 2**31)
        size = max(flat.shape[0], 1) if fits else SAFE_K
        runs = [slice(first, first + size) for first in range(0, flat.shape[0], size)]
        parts.append([(run, packed if fits else kernels.pack(np.ascontiguousarray(flat[run]), zero_point=weights.points[group]))
                      for run in runs])  # fmt: skip
    whole = [Matrix(run[0][1]) for run in parts]

    def sums(x: Array, settings: Settings) -> Array:
        def product(group: int, rows: Array) -> Array:
            total = np.zeros((*rows.shape[:-1], weights.data.shape[-1]), np.int64)
            for run, packed in parts[group]:
                total += kernels.gemm(
                    np.ascontiguousarray(rows[..., run]), packed, a_zero_point=point, threads=settings.threads
                )
            return total

        return apply(scope, whole, x, point, product)

    return sums


def _depthwise(scope: Scope, weights: Weights, point: int) -> Sums:
    """One channel in per group: every product of a window at once, in float64, whose 53 bits hold the sums."""
    taps = weights.data[:, :, 0, :].astype(np.float64) - weights.points[:, None, :]
    tensor = scope.operand(1)
    assert tensor is not None
    kernel = [int(dim) for dim in tensor.shape[2:]]

    def sums(x: Array, settings: Settings) -> Array:
        rows, space = gathered(scope.node, x, kernel, point)
        acc = np.matmul(rows[..., 0].astype(np.float64) - point, taps).astype(np.int64)
        whole = acc.transpose(1, 0, 2).reshape(x.shape[0], *space, -1)
        return np.moveaxis(whole, -1, 1)

    return sums
