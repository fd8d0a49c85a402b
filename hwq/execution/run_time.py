"""Activations quantized at run time: over the tensor or a row, and the integer products behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwq import kernels
from hwq.execution.emission import At, Emitter, Site, geometry
from hwq.execution.gathering import apply, channels_second, clamped, convolved, offsets_of, weights_of
from hwq.execution.scaled import Reading, emit_relu, emit_scaled, shared_by
from hwq.execution.steps import Kernel, Scope, Settings, adapt, present, register, writing
from hwq.graph import Array
from hwq.kernels.steps import Place, Steps
from hwq.ops import dynamic_rows, spatial
from hwq.ops.application import evaluate_node

__all__ = ["integer_convolution", "integer_product", "one_at_run_time", "quantize_at_run_time"]


@register("DynamicQuantizeLinear")
def over_tensor(scope: Scope) -> Kernel:
    """One range for the whole tensor, ONNX's formula."""
    return _Quantizing(lambda x, threads: kernels.dynamic_quantize(x, threads=threads), _emit_range)


@register("hwq::DynamicQuantizeRows")
def over_rows(scope: Scope) -> Kernel:
    """ONNX's formula on each row."""

    def quantize(x: Array, threads: int) -> tuple[Array, Array, Array]:
        axes = dynamic_rows.axes_of(scope.node, x.ndim)
        if axes != tuple(range(x.ndim - len(axes), x.ndim)):
            return dynamic_rows.quantize_rows(x, axes, symmetric=False)
        lead = x.shape[: x.ndim - len(axes)]
        row = math.prod(x.shape[len(lead) :])
        q, s, z = kernels.dynamic_quantize(x.reshape(*lead, row), per_row=True, threads=threads)
        rows = (*lead, *(1,) * len(axes))
        return q.reshape(x.shape), s.reshape(rows), z.reshape(rows)

    return _Quantizing(quantize, lambda site: _emit_rows(site, "onnx"))


def _emit_range(site: Site) -> bool:
    """One range for the whole operand."""
    return _emit_ranges(site, 1, "onnx")


def _emit_rows(site: Site, formula: str) -> bool:
    """One range a row, or an image, of the last axes."""
    shape = site.shape(0)
    axes = dynamic_rows.axes_of(site.node, len(shape))
    lead = len(shape) - len(axes)
    return axes == tuple(range(lead, len(shape))) and _emit_ranges(site, math.prod(shape[:lead]), formula)


def _emit_ranges(site: Site, rows: int, formula: str) -> bool:
    """In whatever form the operand lies where whole images are rows: order does not show."""
    shape = site.shape(0)
    if site.dtype(0) != np.float32:
        return False
    last = site.is_last(0) and rows in {1, shape[0]}
    x, size = site.read(0, last), math.prod(shape) // max(rows, 1)
    q, s, z = site.make(last), site.make(index=1), site.make(index=2)
    site.steps([x], [q, s, z], lambda steps, at: steps.dynamic_quantize(
        at(x), rows, size, formula=formula, out=at(q), scale=at(s), zero_point=at(z)))  # fmt: skip
    return True


@register("hwq::DynamicQuantizeRowsSymmetric")
def over_rows_symmetric(scope: Scope) -> Kernel:
    """int8 without zero points, on each row."""
    return _Quantizing(
        lambda x, _: dynamic_rows.quantize_rows(x, dynamic_rows.axes_of(scope.node, x.ndim), symmetric=True),
        lambda site: _emit_rows(site, "symmetric"),
    )


@register("hwq::DequantizeRows")
def dequantize_rows(scope: Scope) -> Kernel:
    """``float32(q - zero point) * scale``."""
    return adapt(lambda operands, settings: evaluate_node(scope.node, operands)[0])


@dataclass(frozen=True)
class _Quantizing:
    """A kernel that makes stored values, scales and zero points."""

    function: Callable[[Array, int], tuple[Array, Array, Array]]
    emit: Emitter | None = None
    in_place: bool = False

    def __call__(
        self, operands: Sequence[Array | None], outs: Sequence[Array | None], settings: Settings
    ) -> Sequence[Array]:
        """See `Kernel`."""
        return self.function(np.ascontiguousarray(present(operands[0])), settings.threads)


@register("hwq::Conv", "hwq::Gemm", "hwq::MatMul")
def product(scope: Scope) -> Kernel:
    """Stored operand, stored weights: exact sums of ``(a - za)(w - zw)``, then ``f32(acc) * f32(s * sw) + b``.

    With groups of scales ``y = fma(f32(acc), scale, y)`` over them, then ``f32(y * s) + b``.
    """
    if scope.quantization(1).block is not None:
        return _grouped(scope)
    weights = weights_of(scope)
    steps, offsets = weights.columns, offsets_of(scope, weights.outputs)
    if scope.node.op == "Conv":
        return _convolution(scope, steps, offsets)
    matrix = weights.matrix(0, scaled=False)
    sums = matrix.packed.column_sums

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        a, s, z = (present(operands[place]) for place in (0, 3, 4))
        wide = np.atleast_2d(a)
        if z.size == 1:
            acc = kernels.gemm(
                wide, matrix.packed, a_zero_point=int(z.reshape(())), threads=settings.threads, wrap=True
            )
        else:  # the zero point of a row leaves the sum: acc - z * sum(w - zw), modulo 2^32
            acc = kernels.gemm(wide, matrix.packed, threads=settings.threads, wrap=True)
            acc = (acc - z.astype(np.int64) * sums).astype(np.int32)
        made: Array = acc.astype(np.float32) * (s.reshape(() if s.size == 1 else s.shape) * steps).astype(np.float32)
        made = clamped(scope, made if offsets is None else made + offsets)
        return made[0] if a.ndim == 1 else made

    wide = np.ascontiguousarray(np.broadcast_to(steps, (matrix.packed.n,)), np.float32)
    finish = kernels.Epilogue(kind="float", multipliers=wide, float_bias=offsets)
    whole = sums.astype(np.int32)  # modulo 2^32

    def emit(site: Site) -> bool:
        each, dtype = shared_by(site, 3), site.dtype(0)
        if each is None or len(site.shape(0)) < 2:
            return False
        rows = math.prod(site.shape(0)[:-1])
        if math.prod(site.shape(3)) == 1:
            return _emit_product(site, False, lambda steps, a, y: steps.gemm(
                a, matrix.packed, rows, dtype, a_zero_point=0, bias=None, epilogue=finish, out=y))  # fmt: skip
        a, s, z, acc, y = site.read(0), site.read(3), site.read(4), site.scratch((rows, matrix.packed.n), np.dtype(np.int32)), site.make()  # fmt: skip
        site.step([a], acc, lambda steps, at: steps.gemm(
            at(a), matrix.packed, rows, dtype, a_zero_point=0, bias=None, epilogue=kernels.Epilogue(), out=at(acc)))  # fmt: skip
        site.step([acc, s, z], y, lambda steps, at: steps.scale_sums(
            at(acc), rows, each, at(s), at(z), sums=whole, factors=wide, bias=offsets, formula="onnx", points=dtype, out=at(y)))  # fmt: skip
        emit_relu(site, y)
        return True

    return adapt(run, emit)


def _emit_product(
    site: Site, last: bool, append: Callable[[Steps, Place, Place], None], by_image: bool = False
) -> bool:
    """One scale and zero point of the whole operand, or an image: they multiply the epilogue's factors, and are taken off the sum."""
    a, s, z, y = site.read(0, last), site.read(3), site.read(4), site.make(last)

    def multiply(steps: Steps, at: At) -> None:
        append(steps, at(a), at(y))
        steps.scaled(at(s), at(z), by_image=by_image)

    site.step([a, s, z], y, multiply)
    emit_relu(site, y)
    return True


def _convolution(scope: Scope, steps: Array, offsets: Array | None) -> Kernel:
    """One exact convolution, or one an image where images have ranges of their own."""
    node, tensor = scope.node, scope.operand(1)
    assert tensor is not None and tensor.data is not None
    points = scope.quantization(1).zero_points()
    packed = kernels.pack_conv(tensor.data, zero_point=points, groups=int(node.attributes.get("group", 1)))

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x, s, z = (present(operands[place]) for place in (0, 3, 4))
        if s.size == 1:
            factor = np.ascontiguousarray(s.reshape(()) * steps, np.float32)
            finish = kernels.Epilogue(kind="float", multipliers=factor, float_bias=offsets)
            return convolved(scope, x, packed, settings, out, zero_point=int(z.reshape(())), epilogue=finish)
        windows = spatial.windows_of(node, x.shape[2:], packed.kernel)
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        acc = np.empty((x.shape[0], *windows.sizes, packed.columns), np.int32)
        zeros = z.reshape(-1)
        alike = zeros.size > 0 and bool((zeros == zeros[0]).all())
        for index in range(1 if alike else zeros.size):
            part = slice(0, x.shape[0]) if alike else slice(index, index + 1)
            kernels.conv2d(
                last[part], packed, strides=windows.strides, pads=(*windows.begin, *windows.end),
                dilations=windows.dilations, layout="NHWC", a_zero_point=int(zeros[index]), out=acc[part],
                threads=settings.threads, wrap=True,
            )  # fmt: skip
        made = acc.astype(np.float32)
        made *= s.reshape(-1, *(1,) * (made.ndim - 1)) * steps
        if offsets is not None:
            made += offsets
        return channels_second(clamped(scope, made), out)

    finish = kernels.Epilogue(kind="float", multipliers=np.ascontiguousarray(steps, np.float32), float_bias=offsets)

    def emit(site: Site) -> bool:
        if shared_by(site, 3) is None or node.layout == "NHWC":
            return False
        windows = spatial.windows_of(site.node, site.space(0), packed.kernel)
        place, batch, dtype = geometry(windows, site.space(0)), site.shape(0)[0], site.dtype(0)
        return _emit_product(site, True, lambda steps, x, y: steps.conv(
            x, packed, place, batch, dtype, layout="NHWC", epilogue=finish, out=y), math.prod(site.shape(3)) > 1)  # fmt: skip

    return writing(run, emit)


def _grouped(scope: Scope) -> Kernel:
    """Groups of scales: ``a - za`` as floats, whose sums in a group are exact integers (kernels/README.md)."""
    weights = weights_of(scope)
    matrices = [weights.matrix(group) for group in range(weights.data.shape[0])]
    offsets = offsets_of(scope, weights.outputs)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        a, s, z = (present(operands[place]) for place in (0, 3, 4))
        centered = a.astype(np.float32) - z.astype(np.float32)

        def multiply(group: int, rows: Array) -> Array:
            return kernels.gemm(rows, matrices[group].packed, threads=settings.threads)

        made: Array = apply(scope, matrices, centered, 0, multiply) * s
        channels = (-1, *(1,) * (a.ndim - 2)) if scope.node.op == "Conv" else (-1,)
        return clamped(scope, made if offsets is None else made + offsets.reshape(channels))

    plain = kernels.Epilogue(kind="float", multipliers=1.0)

    def emit(site: Site) -> bool:
        each = shared_by(site, 3)
        if each is None or len(site.shape(0)) < 2:
            return False
        s, z, outputs = site.read(3), site.read(4), weights.outputs
        rows = math.prod(site.made_shape()) // max(outputs, 1)
        sums = site.scratch((rows, outputs), np.dtype(np.float32))
        emit_scaled(site, matrices, [plain] * len(matrices), Reading(points=z, each=each), sums)
        y = site.make(scope.node.op == "Conv")
        site.step([sums, s], y, lambda steps, at: steps.scale_sums(
            at(sums), rows, each, at(s), None, sums=None, factors=np.ones(outputs, np.float32), bias=offsets, formula="floats", out=at(y)))  # fmt: skip
        emit_relu(site, y)
        return True

    return adapt(run, emit)


def integer_product(scope: Scope) -> Kernel | None:
    """MatMulInteger by constant weights of two dimensions; None where it has another form."""
    b, points, first = scope.operand(1), scope.operand(3), scope.operand(2)
    if b is None or b.data is None or b.data.ndim != 2 or b.dtype not in {"int8", "uint8"}:
        return None
    if (points is not None and points.data is None) or (first is not None and first.elements != 1):
        return None
    zero = np.zeros((), np.int32) if points is None or points.data is None else points.data.astype(np.int32)
    if zero.ndim > 1:
        return None
    packed = kernels.pack(b.data, zero_point=zero.reshape(() if zero.size == 1 else -1))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        a, point = present(operands[0]), operands[2] if len(operands) > 2 else None
        made = kernels.gemm(
            np.atleast_2d(a), packed, a_zero_point=0 if point is None else int(point.reshape(())),
            threads=settings.threads, wrap=True,
        )  # fmt: skip
        return made[0] if a.ndim == 1 else made

    return adapt(run)


def integer_convolution(scope: Scope) -> Kernel | None:
    """ConvInteger by constant weights; None where it has another form."""
    node, weights, points = scope.node, scope.operand(1), scope.operand(3)
    if weights is None or weights.data is None or weights.dtype not in {"int8", "uint8"}:
        return None
    if not 3 <= weights.data.ndim <= 5 or (points is not None and points.data is None):
        return None
    zero = np.zeros((), np.int32) if points is None or points.data is None else points.data.astype(np.int32)
    layout = node.layout or "NCHW"
    packed = kernels.pack_conv(
        weights.data, zero_point=zero.reshape(() if zero.size == 1 else -1), groups=int(node.attributes.get("group", 1)),
        layout="OHWI" if layout == "NHWC" else "OIHW",
    )  # fmt: skip

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x, point = present(operands[0]), operands[2] if len(operands) > 2 else None
        zero_point = 0 if point is None else int(point.reshape(()))
        if layout == "NCHW":
            return convolved(scope, x, packed, settings, out, zero_point=zero_point)
        windows = spatial.windows_of(node, x.shape[1:-1], packed.kernel)
        return kernels.conv2d(
            x, packed, strides=windows.strides, pads=(*windows.begin, *windows.end), dilations=windows.dilations,
            layout=layout, a_zero_point=zero_point, out=out, threads=settings.threads, wrap=True,
        )  # fmt: skip

    return writing(run)


def one_at_run_time(scope: Scope) -> bool:
    """Whether scale and zero point are one number each, however they come."""
    given = [scope.operand(index) for index in (1, 2)]
    plain = not scope.node.attributes.get("block_size", 0) and not scope.node.attributes.get("precision", 0)
    return plain and all(one is None or (one.concrete and one.elements == 1 and len(one.shape) <= 1) for one in given)


def quantize_at_run_time(dtype: str, formula: str) -> Kernel:
    """QuantizeLinear whose scale and zero point are computed, one number each."""

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x, scale, *rest = operands
        point = 0 if not rest or rest[0] is None else rest[0].reshape(())
        return kernels.quantize(present(x), present(scale).reshape(()), point, dtype, formula=formula, out=out)

    return writing(run)
