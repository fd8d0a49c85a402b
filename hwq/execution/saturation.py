"""Products as onnxruntime computes them by default on x86-64 without VNNI: uint8 x int8 pairs saturate in int16.

MLAS multiplies matrices, and k = 2i, 2i + 1 make a pair. A convolution's k runs over (tap, channel) where the image is on the
left (QLinearConv), over (channel, tap) where the filters are (ConvInteger: uint8 filters on an int8 image saturate, int8
filters on a uint8 image do not). Other signedness, and depthwise QLinearConv, have exact kernels. Compared with onnxruntime
1.31.1 on an emulated CPU without VNNI (tests/golden/onnx/README.md says how).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq import kernels
from hwq.execution import fbgemm, run_time
from hwq.execution.steps import Gemm, Kernel, Scope, Settings, adapt, interpret, present, register
from hwq.graph import Array
from hwq.ops import arithmetic, contributed, spatial

__all__ = ["product", "saturates", "stand_in"]


def saturates(scope: Scope) -> bool:
    """Whether the dialect's uint8 x int8 products saturate."""
    return scope.dialect.formulas.get("u8s8-product") == "saturating-pairs"


def stand_in(scope: Scope) -> Gemm | None:
    """What takes the place of the exact product in a convolution or product; None where the exact one is right."""
    a, b = scope.operand(0), scope.operand(1)
    if a is None or b is None:
        return None
    if scope.dialect.formulas.get("depthwise") == "fbgemm" and fbgemm.depthwise(scope):
        return _multiply
    if not saturates(scope) or scope.quantization(0).dtype != "uint8":
        return None
    if scope.quantization(1).dtype != "int8":
        return None
    if scope.node.op == "Conv":
        groups, each = int(scope.node.attributes.get("group", 1)), b.shape[-1 if scope.node.layout == "NHWC" else 1]
        if groups > 1 and each == 1 and b.shape[0] == groups:  # depthwise: one channel in and out a group
            return None
    return _multiply


def _multiply(a: Array, b: Array, *, a_zero_point: int, b_zero_points: Array) -> Array:
    return kernels.gemm_saturating(a, kernels.pack(b, zero_point=b_zero_points), a_zero_point=a_zero_point)


def product(a: Array, b: Array, a_points: Array | None, b_points: Array | None) -> Array:
    """``(a - a_points) @ (b - b_points)`` modulo 2^32 with saturated pairs: matrices, points per row and per column.

    Parameters
    ----------
    a : uint8 array (M, K)
    b : int8 array (K, N)
    a_points, b_points : integer arrays of 1 or M, of 1 or N elements, or None
    """
    acc = kernels.gemm_saturating(a, kernels.pack(b)).astype(np.int64)
    rows = np.zeros((1, 1), np.int64) if a_points is None else a_points.astype(np.int64).reshape(-1, 1)
    columns = np.zeros((1, 1), np.int64) if b_points is None else b_points.astype(np.int64).reshape(1, -1)
    # |a| <= 255 and |b| <= 128, so int64 holds every sum of fewer than 2^46 terms.
    acc -= rows * b.sum(axis=0, dtype=np.int64)
    acc -= columns * (a.sum(axis=1, dtype=np.int64)[:, None] - rows * a.shape[1])
    return arithmetic.wrap_int32(acc)


@register("float:MatMulInteger")
def matmul_integer(scope: Scope) -> Kernel:
    """MatMulInteger: saturating where the dialect says so, else `hwq.ops`' exact one."""
    a, b = scope.operand(0), scope.operand(1)
    if not saturates(scope) or a is None or b is None or (a.dtype, b.dtype) != ("uint8", "int8"):
        return run_time.integer_product(scope) or interpret(scope)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        first, second = ([*operands[2:], None, None])[:2]
        return _products(present(operands[0]), present(operands[1]), first, second)

    return adapt(run)


def _products(left: Array, right: Array, first: Array | None, second: Array | None) -> Array:
    """`product` over matrices, batched as NumPy's ``@``."""
    wide, tall = np.atleast_2d(left), right[:, None] if right.ndim == 1 else right
    batch = np.broadcast_shapes(wide.shape[:-2], tall.shape[:-2])
    made = np.empty((*batch, wide.shape[-2], tall.shape[-1]), np.int32)
    lefts = np.broadcast_to(wide, (*batch, *wide.shape[-2:]))
    rights = np.broadcast_to(tall, (*batch, *tall.shape[-2:]))
    for index in np.ndindex(*batch):
        pair = np.ascontiguousarray(lefts[index]), np.ascontiguousarray(rights[index])
        made[index] = product(*pair, _at(first, index), _at(second, index))
    made = made[..., 0, :] if left.ndim == 1 else made
    return np.ascontiguousarray(made[..., 0] if right.ndim == 1 else made)


@register("com.microsoft::MatMulIntegerToFloat", "com.microsoft::DynamicQuantizeMatMul")
def product_to_float(scope: Scope) -> Kernel:
    """As `matmul_integer`, then ``f32(f32(acc) * f32(sa * sb)) + bias``."""
    dynamic, a, b = scope.node.op == "DynamicQuantizeMatMul", scope.operand(0), scope.operand(1)
    if dynamic and scope.dialect.formulas.get("DynamicQuantizeMatMul") == "fbgemm":
        return fbgemm.dynamic_linear(scope)
    if not saturates(scope) or a is None or b is None or b.dtype != "int8" or not (dynamic or a.dtype == "uint8"):
        return interpret(scope)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        given = [*operands, *[None] * 4]
        if dynamic:
            quantized = contributed.quantized_dynamically(scope.node, present(given[0]))
            given = [quantized[0], given[1], quantized[1], given[2], quantized[2], *given[3:5]]
        stored, right, scale, b_scale, point, b_point, bias = given[:7]
        acc = _products(present(stored), present(right), point, b_point)
        return contributed.scaled(acc, contributed.factors(present(scale), present(b_scale)), bias)

    return adapt(run)


def _at(points: Array | None, index: tuple[int, ...]) -> Array | None:
    """Zero points of one matrix of a batch: they have its batch dimensions, or none."""
    if points is None or points.ndim <= 1:
        return points
    return np.asarray(points[tuple(min(place, size - 1) for place, size in zip(index, points.shape, strict=False))])


@register("float:ConvInteger")
def conv_integer(scope: Scope) -> Kernel:
    """ConvInteger: MLAS multiplies filters by windows, so uint8 filters on an int8 image saturate."""
    x, weights = scope.operand(0), scope.operand(1)
    if not saturates(scope) or x is None or weights is None or (x.dtype, weights.dtype) != ("int8", "uint8"):
        return run_time.integer_convolution(scope) or interpret(scope)
    node = scope.node
    groups = int(node.attributes.get("group", 1))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        image, filters = spatial.channels_first(present(operands[0]), node), present(operands[1])
        point, filter_points = ([*operands[2:], None, None])[:2]
        windows = spatial.windows_of(node, image.shape[2:], filters.shape[2:])
        padded = arithmetic.padded(image, windows.begin, windows.end, 0 if point is None else int(point.reshape(())))
        view = arithmetic.windows(padded, windows.kernel, windows.strides, windows.dilations, windows.sizes)
        rank, each, depth = len(windows.sizes), filters.shape[0] // groups, filters.shape[1]
        positions = int(np.prod(windows.sizes))
        order = (0, *range(1 + rank, 1 + 2 * rank), *range(1, 1 + rank))
        made = np.empty((image.shape[0], filters.shape[0], positions), np.int32)
        spread = None if filter_points is None else np.broadcast_to(filter_points.reshape(-1), (filters.shape[0],))
        for index in range(image.shape[0]):
            for group in range(groups):
                part = view[index, group * depth : (group + 1) * depth].transpose(order)
                columns = np.ascontiguousarray(part).reshape(-1, positions)
                rows = slice(group * each, (group + 1) * each)
                left = np.ascontiguousarray(filters[rows]).reshape(each, -1)
                made[index, rows] = product(left, columns, None if spread is None else spread[rows], point)
        return spatial.from_channels_first(made.reshape(image.shape[0], -1, *windows.sizes), node)

    return adapt(run)
