"""Everything between the products: Q and DQ, quantized sums, tables and softmax, formula by formula."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwq import kernels
from hwq.errors import NotSupportedYet
from hwq.execution import curves, run_time
from hwq.execution.emission import Site
from hwq.execution.movement import join
from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present, register, writing
from hwq.graph import Array, carrier
from hwq.ops import arithmetic
from hwq.ops.application import evaluate_node
from hwq.ops.table import entries as table_entries
from hwq.ops.table import look_up

__all__ = ["floor_of", "looked_up"]

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


@register("QuantizeLinear")
def quantize(scope: Scope) -> Kernel:
    """``rint(clip(x / scale)) + zero point``, per tensor or per channel; other forms as `hwq.ops` computes them."""
    x, made = scope.operand(0), scope.result()
    scale, zero = _constant(scope, 1), _constant(scope, 2)
    plain = x is not None and x.dtype == "float32" and made.dtype in {"uint8", "int8", "uint16", "int16"}
    formula = scope.dialect.formulas.get("QuantizeLinear", "onnx")
    if not plain or not _simple(scope, scale, zero) or scope.node.attributes.get("precision", 0):
        if plain and formula != "onnx" and run_time.one_at_run_time(scope):
            return run_time.quantize_at_run_time(made.dtype, formula)
        if formula != "onnx":
            raise NotSupportedYet(
                f"this form of quantization in dialect {scope.dialect.name}",
                where=f"node {scope.node.name}",
                remedy="float32 scales, per tensor or constant and per channel, 8 or 16 bits",
            )
        return interpret(scope)
    axis = None if scale is None or scale.size == 1 else int(scope.node.attributes.get("axis", 1))

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        point = 0 if zero is None else zero.reshape(-1) if axis is not None else zero.reshape(())
        return kernels.quantize(
            present(operands[0]),
            present(scale).reshape(-1 if axis is not None else ()),
            point,
            made.dtype,
            axis=axis,
            formula=formula,
            out=out,
        )

    def emit(site: Site) -> bool:
        if formula != "onnx":
            return False
        point = np.zeros((), np.int64) if zero is None else zero
        last, outer, inner = _lines(site, axis)
        x, y = site.read(0, last), site.make(last)
        site.step([x], y, lambda steps, at: steps.quantize(
            at(x), outer, inner, present(scale).reshape(-1), point.reshape(-1), made.dtype, out=at(y)))  # fmt: skip
        return True

    return writing(run, emit)


def _lines(site: Site, axis: int | None) -> tuple[bool, int, int]:
    """Whether an elementwise node may stay channel-last, and how its elements lie around the channels of `axis`."""
    shape = site.shape(0)
    if axis is None:
        return site.is_last(0), 1, math.prod(shape)
    axis %= max(len(shape), 1)
    return False, math.prod(shape[:axis]), math.prod(shape[axis + 1 :])


@register("DequantizeLinear")
def dequantize(scope: Scope) -> Kernel:
    """``f32(q - zero point) * scale``."""
    q = scope.operand(0)
    scale, zero = _constant(scope, 1), _constant(scope, 2)
    plain = (
        q is not None and q.dtype in {"uint8", "int8", "uint16", "int16", "int32"} and scope.result().dtype == "float32"
    )
    if not plain or not _simple(scope, scale, zero):
        return interpret(scope)
    axis = None if scale is None or scale.size == 1 else int(scope.node.attributes.get("axis", 1))

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        point = 0 if zero is None else zero.reshape(-1) if axis is not None else zero.reshape(())
        return kernels.dequantize(
            present(operands[0]), present(scale).reshape(-1 if axis is not None else ()), point, axis=axis, out=out
        )

    def emit(site: Site) -> bool:
        point = np.zeros((), np.int64) if zero is None else zero
        last, outer, inner = _lines(site, axis)
        x, y, dtype = site.read(0, last), site.make(last), site.dtype(0)
        site.step([x], y, lambda steps, at: steps.dequantize(
            at(x), outer, inner, present(scale).reshape(-1), point.reshape(-1), dtype, out=at(y)))  # fmt: skip
        return True

    return writing(run, emit)


def _constant(scope: Scope, index: int) -> Array | None:
    tensor = scope.operand(index)
    return None if tensor is None else tensor.data


def _simple(scope: Scope, scale: Array | None, zero: Array | None) -> bool:
    """Constant float32 scales, one or one a channel, no blocks."""
    given = scope.operand(2)
    return (
        scale is not None
        and scale.dtype == np.float32
        and scale.ndim <= 1
        and (given is None or zero is not None)
        and not scope.node.attributes.get("block_size", 0)
    )


@register("Add", "Mul")
def binary(scope: Scope) -> Kernel:
    """A quantized sum or product in the dialect's formula."""
    node = scope.node
    formula = scope.dialect.formulas.get(node.op)
    if formula is None:
        raise NotSupportedYet(f"a quantized {node.op} in dialect {scope.dialect.name}", where=f"node {node.name}")
    (a_scale, a_zero), (b_scale, b_zero), (scale, zero) = scope.pair(0), scope.pair(1), scope.made_pair()
    a, b, made = scope.quantization(0), scope.quantization(1), scope.result()
    assert made.quantization is not None
    operator = kernels.Binary(
        formula=formula,
        a_scale=float(a_scale),
        b_scale=float(b_scale),
        scale=float(scale),
        a_zero_point=a_zero,
        b_zero_point=b_zero,
        zero_point=zero,
        a_dtype=a.dtype,
        b_dtype=b.dtype,
        dtype=made.quantization.dtype,
        clamp=floor_of(scope, made.quantization.dtype, zero),
    )

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        return kernels.binary(operator, present(operands[0]), present(operands[1]), out=out)

    def emit(site: Site) -> bool:
        shapes = site.shape(0), site.shape(1)
        sizes = [math.prod(shape) for shape in shapes]
        whole = math.prod(site.made_shape())
        if any(shape != site.made_shape() and size != 1 for shape, size in zip(shapes, sizes, strict=True)):
            return False
        last = any(site.is_last(index) for index in (0, 1) if sizes[index] == whole > 1)
        left, right = (site.read(index, last and sizes[index] == whole) for index in (0, 1))
        y, (a_step, b_step) = site.make(last), (int(size > 1) for size in sizes)
        site.step([left, right], y, lambda steps, at: steps.binary(
            operator, whole, at(left), a_step, at(right), b_step, at(y)))  # fmt: skip
        return True

    return writing(run, emit)


def floor_of(scope: Scope, dtype: str, zero: int) -> tuple[int, int] | None:
    """The stored range over which a ReLU that torch's kernels swallow leaves its values."""
    swallowed = scope.dialect.name.startswith("torch-fbgemm") and any(part.op == "Relu" for part in scope.node.body)
    return (zero, RANGES[dtype][1]) if swallowed else None


@register("Relu")
def relu(scope: Scope) -> Kernel:
    """On stored values, whose zero is the zero point: ``max(q, zp)``."""
    point = np.asarray(scope.pair(0)[1], carrier(scope.quantization(0).dtype))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        made: Array = np.maximum(present(operands[0]), point)
        return made

    return adapt(run)


@register("Sigmoid", "LeakyRelu")
def table(scope: Scope) -> Kernel:
    """A function of one byte: 256 entries, DQ then the float function then Q; onnxruntime's sigmoid is MLAS's there too."""
    if scope.node.op == "Sigmoid" and scope.dialect.formulas.get("float-function") == "mlas":
        return looked_up(_table(scope, curves.logistic))
    return looked_up(_table(scope, lambda real: evaluate_node(scope.node, [real])[0]))


@register("hwq::Table")
def exact_table(scope: Scope) -> Kernel:
    """A function of one stored value: of a byte exactly rounded over all 256, of 16 bits within one step."""
    table, given, made = table_entries(scope.node, scope.graph), scope.quantization(0).dtype, scope.result().dtype
    if given in RANGES and made in RANGES:
        return looked_up(table)
    return adapt(lambda operands, settings: look_up(present(operands[0]), table, made))


def looked_up(entries: Array) -> Kernel:
    """256 entries, indexed by the operand's byte."""

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        return kernels.lut(present(operands[0]), entries, out=out)

    def emit(site: Site) -> bool:
        last, _, size = _lines(site, None)
        x, y, dtype = site.read(0, last), site.make(last), site.dtype(0)
        site.step([x], y, lambda steps, at: steps.lut(at(x), size, dtype, entries, out=at(y)))
        return True

    return writing(run, emit)


def _table(scope: Scope, function: object, index: int = 0) -> Array:
    assert callable(function)
    scale, zero = scope.pair(index)
    made_scale, made_zero = scope.made_pair()
    made = scope.result().quantization
    assert made is not None
    real = kernels.dequantize(_every_byte(scope.quantization(index).dtype), scale, zero)
    return kernels.quantize(np.ascontiguousarray(function(real), np.float32), made_scale, made_zero, made.dtype)


def _every_byte(dtype: str) -> Array:
    low = -128 if dtype == "int8" else 0
    return np.arange(low, low + 256).astype(carrier(dtype))


@register("Concat")
def concat(scope: Scope) -> Kernel:
    """Operands with other scales than the result's pass a table first."""
    tables = [
        None if scope.pair(index) == scope.made_pair() else _table(scope, lambda real: real, index)
        for index in range(len(scope.node.inputs))
    ]

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        parts = [
            present(one) if entries is None else kernels.lut(one, entries)
            for one, entries in zip(operands, tables, strict=True)
        ]
        return evaluate_node(scope.node, parts)[0]

    return adapt(run, lambda site: join(site, tables))


@register("Where")
def where(scope: Scope) -> Kernel:
    """As `concat`: both branches in the result's scale, then chosen."""
    tables = [
        None if scope.pair(index) == scope.made_pair() else _table(scope, lambda real: real, index) for index in (1, 2)
    ]

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        parts = [
            present(one) if entries is None else kernels.lut(one, entries)
            for one, entries in zip(operands[1:], tables, strict=True)
        ]
        return np.where(present(operands[0]), *parts)

    return adapt(run)


@register("Softmax")
def softmax(scope: Scope) -> Kernel:
    """onnxruntime's QLinearSoftmax: a float table of exponentials, a float32 sum in order (numerics b2)."""
    formula = scope.dialect.formulas.get("Softmax")
    if formula != "ort-softmax":
        raise NotSupportedYet(f"a quantized Softmax in dialect {scope.dialect.name}", where=f"node {scope.node.name}")
    (scale, _), (made_scale, made_zero) = scope.pair(0), scope.made_pair()
    x, made = scope.operand(0), scope.result().quantization
    assert x is not None and made is not None
    axis = int(scope.node.attributes.get("axis", -1))
    inverse = np.floor(np.float32(1) / made_scale).astype(np.float32)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        stored = np.moveaxis(present(operands[0]).astype(np.int64), axis, -1)
        exponentials = _exponentials(scale, stored.shape[-1])
        # The largest element takes the last entry, so the sum is at least its exponential: no overflow, no zero.
        found = exponentials[stored - stored.max(axis=-1, keepdims=True, initial=-128) + 255]
        total = np.add.accumulate(found, axis=-1, dtype=np.float32)[..., -1:]
        with np.errstate(over="ignore"):  # with few columns the product may be infinite
            shares = np.rint((found * inverse).astype(np.float32) / total)
        # The kernel's int32 is INT32_MIN where a share does not fit (x86), and wraps; int8 saturates at both ends, uint8
        # above only (qlinear_softmax.cc).
        fits = shares < np.float32(2.0**31)
        steps = arithmetic.wrap_int32(
            np.where(fits, np.where(fits, shares, 0), -(2.0**31)).astype(np.int64) + made_zero
        )
        signed = made.dtype == "int8"
        narrowed = np.clip(steps, -128, 127) if signed else np.minimum(steps, 255) & 255
        narrowed = narrowed.astype(carrier(made.dtype))
        return np.ascontiguousarray(np.moveaxis(narrowed, -1, axis))

    def emit(site: Site) -> bool:
        shape = site.shape(0)
        count = shape[axis] if shape else 0
        # The table's last entry is at most FLT_MAX / (148 count): its product with `inverse` must stay finite.
        if axis % max(len(shape), 1) != len(shape) - 1 or not count or not 0 < inverse < 64 * count:
            return False
        if made.dtype == "int8" and inverse + made_zero > 127:  # the step does not saturate int8
            return False
        exponentials = _exponentials(scale, count)
        x, y, dtype = site.read(0), site.make(), site.dtype(0)
        site.step([x], y, lambda steps, at: steps.softmax_by_table(
            at(x), math.prod(shape) // count, count, dtype, exponentials, float(inverse), made_zero, out=at(y)))  # fmt: skip
        return True

    return adapt(run, emit)


def _exponentials(scale: np.float32, length: int) -> NDArray[np.float32]:
    # Shifted up as far as `length` of them can be summed in float32: ln(FLT_MAX / D) - 5, the logarithm in float32.
    largest = np.finfo(np.float32).max / np.float32(max(length, 1))
    shift = max(0.0, float(np.float32(np.log(float(largest)))) - 5.0) / float(scale)
    steps = np.arange(256, dtype=np.float64) - 255.0 + shift
    made: NDArray[np.float32] = np.exp(steps * float(scale)).astype(np.float32)
    return made
