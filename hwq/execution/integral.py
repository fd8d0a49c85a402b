"""What the dialect hwq-integer computes on integers between its products: the formulas of `hwq.lowering.integral`'s groups.

A ratio of scales r is a fixed-point number m 2^-n with m in [2^29, 2^30), rounded once from float64, and ``scaled(a, r) = a m +
2^(n - 1) >> n`` in 64 bits (halves up): exact integers on every CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwq import kernels
from hwq.errors import Error
from hwq.execution.elementwise import binary, concat
from hwq.execution.emission import Site
from hwq.execution.modes import clamp_of
from hwq.execution.products import matmul
from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present, register
from hwq.graph import Array, carrier
from hwq.ops.storage import integer_range

__all__: list[str] = []

BYTES = frozenset({"int8", "uint8"})
# Terms of a sum of two tensors keep this many bits behind the point: |q - z| < 2^17, ratios below 2^14, so |acc| < 2^62.
POINT = 30
LARGEST_RATIO = 2.0**14


def scaled(values: NDArray[np.int64], ratio: float) -> NDArray[np.int64]:
    """``values * ratio``, the ratio in fixed point, rounded once; |values| <= 2^32."""
    fraction, exponent = math.frexp(ratio)  # in [0.5, 1)
    factor, shift = round(fraction * 2**30), 30 - exponent
    if factor == 1 << 30:
        factor, shift = 1 << 29, shift - 1
    if shift > 62:
        return np.zeros_like(values)
    if shift < 1:
        raise Error(
            f"a ratio of scales of {ratio:.3g} is too large for fixed point", remedy="a larger scale of the result"
        )
    made: NDArray[np.int64] = (values * np.int64(factor) + np.int64(1 << (shift - 1))) >> np.int64(shift)
    return made


def _finish(scope: Scope, steps: NDArray[np.int64]) -> Array:
    """Steps of the result, without its zero point, as it is stored: clamped to its type and to a swallowed Relu or Clip."""
    made, (scale, zero) = scope.result().quantization, scope.made_pair()
    assert made is not None
    low, high = clamp_of(scope, made.dtype, scale, zero) or integer_range(made.dtype)
    return np.clip(steps + zero, low, high).astype(carrier(made.dtype))


def _signed(x: Array, dtype: str) -> Array:
    """A stored tensor as int16 of as many steps as fit, less a constant that a function of differences does not see.

    Returns the values; their step is the stored step / `_parts(dtype)`.
    """
    if dtype == "int16":
        return x
    if dtype == "uint16":
        return (x ^ np.uint16(1 << 15)).view(np.int16)
    lowered = x if dtype == "int8" else (x ^ np.uint8(1 << 7)).view(np.int8)
    return lowered.astype(np.int16) * np.int16(256)


def _parts(dtype: str) -> int:
    return 256 if dtype in BYTES else 1


@register("LayerNormalization")
def layer_normalization(scope: Scope) -> Kernel:
    """`kernels.layer_norm`, exact variance; gamma in int16, beta and the result's zero point in its bias."""
    node, x, made = scope.node, scope.operand(0), scope.result().quantization
    (step, _), (scale, zero) = scope.pair(0), scope.made_pair()
    assert x is not None and made is not None
    axis = int(node.attributes.get("axis", -1)) % len(x.shape)
    trailing = tuple(int(dim) for dim in x.shape[axis:])

    def values(index: int, absent: float) -> NDArray[np.float64]:
        tensor = scope.operand(index)
        data = np.asarray(absent) if tensor is None or tensor.data is None else tensor.data
        return np.broadcast_to(data.astype(np.float64), trailing).reshape(-1)

    point = zero - (1 << 15 if made.dtype == "uint16" else 0)
    gamma, beta = values(1, 1.0), values(2, 0.0) + point * float(scale)
    # int16 weights, and an int32 bias of a thousandth of their step; the larger need decides.
    unit = max(np.abs(gamma).max(initial=0.0) / 32767, np.abs(beta).max(initial=0.0) * 1024 / 2**30, 1e-30)
    weights = np.rint(gamma / unit).astype(np.int16)
    bias = np.rint(beta * 1024 / unit).astype(np.int32)
    parts = _parts(x.dtype)
    with np.errstate(over="ignore"):
        epsilon = float(np.float32(node.attributes.get("epsilon", 1e-5))) / (float(step) / parts) ** 2
    low, high = integer_range(made.dtype)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        given = present(operands[0])
        rows = np.ascontiguousarray(_signed(given, x.dtype).reshape(-1, max(math.prod(trailing), 1)))
        found = kernels.layer_norm(
            rows, weights, bias, weight_scale=unit, formula="exact", epsilon=min(epsilon, 2.0**62), scale=float(scale),
            threads=settings.threads,
        ).reshape(given.shape)  # fmt: skip
        if made.dtype == "uint16":
            return found.view(np.uint16) ^ np.uint16(1 << 15)
        return np.clip(found, low, high).astype(carrier(made.dtype))

    def emit(site: Site) -> bool:
        columns = math.prod(trailing)
        if columns != len(weights) or not 0 < columns <= 1 << 16:
            return False
        rows, dtype = math.prod(site.shape(0)) // columns, site.dtype(0)
        a, y = site.read(0), site.make()
        site.step([a], y, lambda steps, at: steps.layer_norm(
            at(a), rows, dtype, weights, bias, weight_scale=unit, epsilon=min(epsilon, 2.0**62), scale=float(scale),
            made=carrier(made.dtype), out=at(y)))  # fmt: skip
        return True

    return adapt(run, emit)


@register("hwq-integer:Softmax")
def softmax(scope: Scope) -> Kernel:
    """TFLite's fixed-point softmax to int16, then the result's scale: 2^-15 a step of 16 bits, of bytes 2^-16 from -32768 up."""
    x, axis = scope.operand(0), int(scope.node.attributes.get("axis", -1))
    (step, _), (scale, _) = scope.pair(0), scope.made_pair()
    assert x is not None
    ratio, lowest = (2.0**-16, -32768) if x.dtype in BYTES else (2.0**-15, 0)
    ratio /= float(scale)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        given = np.ascontiguousarray(np.moveaxis(present(operands[0]), axis, -1))
        if x.dtype == "uint16":
            given = _signed(given, x.dtype)
        shares = kernels.softmax(given, float(step), formula="tflite", dtype="int16", threads=settings.threads)
        return np.ascontiguousarray(
            np.moveaxis(_finish(scope, scaled(shares.astype(np.int64) - lowest, ratio)), -1, axis)
        )

    return adapt(run)


@register("hwq-integer:ReduceMean", "hwq-integer:GlobalAveragePool")
def mean(scope: Scope) -> Kernel:
    """``scaled(sum of (q - z), s / (s_y n))``; n up to 2^15 elements of 16 bits."""
    node = scope.node
    (step, zero), (scale, _) = scope.pair(0), scope.made_pair()
    given = scope.operand(1)
    attribute = node.attributes.get("axes")
    axes = attribute if given is None or given.data is None else [int(one) for one in given.data.reshape(-1)]
    keep = bool(node.attributes.get("keepdims", 1))
    nothing = not node.attributes.get("noop_with_empty_axes", 0)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        if node.op == "GlobalAveragePool":
            chosen = tuple(range(1, x.ndim - 1)) if node.layout == "NHWC" else tuple(range(2, x.ndim))
        else:
            chosen = (
                tuple(sorted({int(one) % x.ndim for one in axes})) if axes else tuple(range(x.ndim) if nothing else ())
            )
        count = math.prod(x.shape[one] for one in chosen)
        total = x.sum(axis=chosen, keepdims=keep, dtype=np.int64) - zero * count
        if count > 1 << 15 or not count:
            raise Error(f"a mean over {count} elements", where=f"node {node.name}", why="its sum is kept in 32 bits")
        return _finish(scope, scaled(total, float(step) / (float(scale) * count)))

    return adapt(run)


@register("hwq-integer:Add", "hwq-integer:Sub", "Sub")
def sums(scope: Scope) -> Kernel:
    """``(a - za) rint(2^30 sa / sy) + (b - zb) rint(2^30 sb / sy)``, rounded once; two bytes are added as `ort` adds them."""
    types = {scope.quantization(0).dtype, scope.quantization(1).dtype, str(scope.result().dtype)}
    if scope.node.op == "Add" and len(types) == 1 and types <= BYTES and not _clamped(scope):
        return binary(scope)
    (a_step, a_zero), (b_step, b_zero), (scale, _) = scope.pair(0), scope.pair(1), scope.made_pair()
    ratios = float(a_step) / float(scale), float(b_step) / float(scale)
    if max(ratios) >= LARGEST_RATIO:
        raise Error(f"a ratio of scales of {max(ratios):.3g} is too large", where=f"node {scope.node.name}", remedy="a larger scale of the result")  # fmt: skip
    left, right = (np.int64(round(ratio * 2**POINT)) for ratio in ratios)
    right = -right if scope.node.op == "Sub" else right

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        a, b = (present(one).astype(np.int64) for one in operands[:2])
        total = (a - a_zero) * left + (b - b_zero) * right
        return _finish(scope, (total + (1 << (POINT - 1))) >> POINT)

    return adapt(run)


def _clamped(scope: Scope) -> bool:
    return any(part.op in {"Relu", "Clip"} for part in scope.node.body)


@register("hwq-integer:Mul")
def product(scope: Scope) -> Kernel:
    """``scaled((a - za)(b - zb), sa sb / sy)``; two bytes are multiplied as `ort` multiplies them."""
    types = {scope.quantization(0).dtype, scope.quantization(1).dtype, str(scope.result().dtype)}
    if len(types) == 1 and types <= BYTES and not _clamped(scope):
        return binary(scope)
    (a_step, a_zero), (b_step, b_zero), (scale, _) = scope.pair(0), scope.pair(1), scope.made_pair()
    ratio = float(a_step) * float(b_step) / float(scale)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        a, b = (present(one).astype(np.int64) for one in operands[:2])
        return _finish(scope, scaled((a - a_zero) * (b - b_zero), ratio))

    return adapt(run)


@register("hwq-integer:MatMul")
def moving_product(scope: Scope) -> Kernel:
    """Two activations of 16 bits: exact sums, ``scaled`` in two steps; everything else is a product as in `hwq`."""
    left, right = scope.operand(0), scope.operand(1)
    assert left is not None and right is not None
    if right.data is not None or {left.dtype, right.dtype} <= BYTES or scope.result().quantization is None:
        return matmul(scope)
    (a_step, a_zero), (b_step, b_zero), (scale, _) = scope.pair(0), scope.pair(1), scope.made_pair()
    ratio = float(a_step) * float(b_step) / float(scale)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        a, b = (present(one).astype(np.float64) for one in operands[:2])
        if a.shape[-1] > 1 << 18:
            raise Error(f"a sum of {a.shape[-1]} products of 16 bits", where=f"node {scope.node.name}", why="below 2^53 sums of float64 are exact")  # fmt: skip
        # |a - za| <= 2^16 on both sides: sums of up to 2^18 products stay below 2^51, exact in float64 in any order.
        exact = np.matmul(a - a_zero, b - b_zero).astype(np.int64)
        # As many bits as K has leave first, so that 2^32 are left beside the factor of 30 bits.
        down = max(a.shape[-1] - 1, 0).bit_length()
        return _finish(scope, scaled((exact + (1 << down >> 1)) >> down, ratio * 2.0**down))

    return adapt(run)


@register("hwq-integer:Concat")
def joined(scope: Scope) -> Kernel:
    """Operands of another type or scale than the result's are rescaled first."""
    made = scope.result().quantization
    if (
        made is not None
        and {scope.quantization(index).dtype for index in range(len(scope.node.inputs))} | {made.dtype} <= BYTES
    ):
        return concat(scope)
    ratios = [float(scope.pair(index)[0]) / float(scope.made_pair()[0]) for index in range(len(scope.node.inputs))]
    zeros = [scope.pair(index)[1] for index in range(len(scope.node.inputs))]
    axis = int(scope.node.attributes["axis"])

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        parts = [
            _finish(scope, scaled(present(one).astype(np.int64) - zero, ratio))
            for one, ratio, zero in zip(operands, ratios, zeros, strict=True)
        ]
        return np.concatenate(parts, axis=axis)

    return adapt(run)


register("hwq-integer:MaxPool")(interpret)
