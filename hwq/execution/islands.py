"""Float32 convolutions and products: in a dialect's own order where it names one, else in the fixed order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from hwq import kernels
from hwq.execution import halves, mlas, nchwc
from hwq.execution.emission import Site, geometry
from hwq.execution.products import quantized_in_blocks
from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present, register, writing
from hwq.graph import Array, Node
from hwq.ops import arithmetic, contributed, einsum, spatial

__all__: list[str] = []

# MatMulNBits' accuracy_level of int8 activations.
BYTES_LEVEL = 4


def _space(x: Array, node: Node) -> tuple[int, ...]:
    return x.shape[1:-1] if node.layout == "NHWC" else x.shape[2:]


@register("float:Conv")
def float_conv(scope: Scope) -> Kernel:
    """A float32 convolution: in the dialect's own order where it names one, else in the fixed order, packed once."""
    node, x, weights, bias = scope.node, scope.operand(0), scope.operand(1), scope.operand(2)
    assert x is not None and weights is not None
    if x.dtype in halves.HALVES:
        return halves.convolution(scope)
    if {x.dtype, weights.dtype} != {"float32"} or not 3 <= len(weights.shape) <= 5:
        return interpret(scope)
    if scope.dialect.formulas.get("float-product") == "mlas":
        blocked = nchwc.convolution(scope)
        if blocked is not None:
            return blocked

        def by_mlas(operands: Sequence[Array | None], settings: Settings) -> Array:
            x, filters, added = present(operands[0]), present(operands[1]), operands[2] if len(operands) > 2 else None
            windows = spatial.windows_of(node, _space(x, node), _space(filters, node))
            return mlas.convolve(node, x, filters, windows, added, settings.threads)

        return adapt(by_mlas)
    data = weights.data
    if data is None or (bias is not None and bias.data is None):
        return interpret(scope)
    layout = node.layout or "NCHW"
    packed = kernels.pack_conv(
        data, groups=int(node.attributes.get("group", 1)), layout="OHWI" if layout == "NHWC" else "OIHW"
    )
    offsets = None if bias is None else bias.data
    kernel = _space(data, node)

    def emit(site: Site) -> bool:
        windows = spatial.windows_of(node, site.space(0), kernel)
        x, y, batch = site.read(0, site.turns), site.make(site.turns), site.shape(0)[0]
        site.step([x], y, lambda steps, at: steps.conv(
            at(x), packed, geometry(windows, site.space(0)), batch, np.float32, layout="NHWC", bias=offsets, out=at(y)))  # fmt: skip
        return True

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x = present(operands[0])
        windows = spatial.windows_of(node, _space(x, node), kernel)
        return kernels.conv2d(
            x,
            packed,
            strides=windows.strides,
            pads=(*windows.begin, *windows.end),
            dilations=windows.dilations,
            layout=layout,
            bias=offsets,
            out=out,
            threads=settings.threads,
        )

    return writing(run, emit)


@register("float:ConvTranspose")
def float_transposed(scope: Scope) -> Kernel:
    """A float32 transposed convolution, as `float_conv`."""
    node, x, weights = scope.node, scope.operand(0), scope.operand(1)
    assert x is not None and weights is not None
    if {x.dtype, weights.dtype} != {"float32"} or scope.dialect.formulas.get("float-product") != "mlas":
        return interpret(scope)
    packed = scope.fixed(1)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        bias = operands[2] if len(operands) > 2 else None
        image, filters = present(operands[0]), present(operands[1])
        return mlas.convolve_transposed(node, image, filters, bias, packed, settings.threads)

    return adapt(run)


@register("float:MatMul", "float:Gemm")
def float_product(scope: Scope) -> Kernel:
    """A float32 product, as `float_conv`; unusual forms as `hwq.ops` computes them."""
    a, b, bias = scope.operand(0), scope.operand(1), scope.operand(2)
    assert a is not None and b is not None
    if a.dtype in halves.HALVES:
        return halves.product(scope)
    get = scope.node.attributes.get
    plain = not get("transA", 0) and get("alpha", 1.0) == 1.0 and get("beta", 1.0) == 1.0
    ranks = len(a.shape) >= 2 and len(b.shape) >= 2 and a.known_shape and b.known_shape
    if {a.dtype, b.dtype} != {"float32"} or not ranks:
        return interpret(scope)
    transposed = bool(get("transB", 0))
    if scope.dialect.formulas.get("float-product") == "mlas":
        return adapt(_product_by_mlas(scope.node, scope.fixed(1) and len(b.shape) == 2))
    if not plain:
        return interpret(scope)
    if b.data is None or b.data.ndim != 2:
        return interpret(scope)
    if bias is not None and (bias.data is None or bias.data.shape != (b.data.shape[0 if transposed else 1],)):
        return interpret(scope)
    packed = kernels.pack_float(b.data, layout="NK" if transposed else "KN")
    offsets = None if bias is None else bias.data

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        return kernels.gemm(present(operands[0]), packed, bias=offsets, out=out, threads=settings.threads)

    def emit(site: Site) -> bool:
        x, y, rows = site.read(0), site.make(), math.prod(site.shape(0)[:-1])
        site.step([x], y, lambda steps, at: steps.gemm_f32(at(x), packed, rows, bias=offsets, out=at(y)))
        return True

    return writing(run, emit)


@register("float:Einsum")
def float_contraction(scope: Scope) -> Kernel:
    """Einsum's products, two operands at a time, in the dialect's order."""
    a, node = scope.operand(0), scope.node
    if scope.dialect.formulas.get("float-product") != "mlas" or a is None or a.dtype != "float32":
        return interpret(scope)
    multiply = _product_by_mlas(Node("MatMul", node.name, node.inputs, node.outputs), False)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        given = [present(one) for one in operands]
        return einsum.contract(node, given, lambda a, b: multiply([a, b], settings), arithmetic.total)

    return adapt(run)


@register("float:Cast")
def float_cast(scope: Scope) -> Kernel:
    """Between float32 and 16-bit floats in C."""
    return interpret(scope, halves.cast)


@register("float:Relu", "float:Add", "float:Sub", "float:Mul")
def float_elements(scope: Scope) -> Kernel:
    """One operation an element, of operands of one shape in C."""
    count = 1 if scope.node.op == "Relu" else 2

    def emit(site: Site) -> bool:
        shapes, kinds = ({one(index) for index in range(count)} for one in (site.shape, site.dtype))
        if shapes != {site.made_shape()} or len(kinds) > 1:
            return False
        last = any(site.is_last(index) for index in range(count))
        if site.dtype(0).name in halves.HALVES:
            return halves.elements(site, scope.node.op.lower(), count, last)
        if site.dtype(0) != np.float32:
            return False
        reads, y, size = (
            [site.read(index, last) for index in range(count)],
            site.make(last),
            math.prod(site.made_shape()),
        )
        site.step(reads, y, lambda steps, at: steps.map(
            scope.node.op.lower(), size, at(reads[0]), at(reads[1]) if count > 1 else None, out=at(y)))  # fmt: skip
        return True

    return interpret(scope, emit)


def _product_by_mlas(node: Node, packed: bool) -> Callable[[Sequence[Array | None], Settings], Array]:
    get = node.attributes.get
    transposed = bool(get("transA", 0)), bool(get("transB", 0))
    factors = float(get("alpha", 1.0)), float(get("beta", 1.0))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        a, b, start = present(operands[0]), present(operands[1]), operands[2] if len(operands) > 2 else None
        a, right = (
            np.ascontiguousarray(one.T) if turned else one for one, turned in zip((a, b), transposed, strict=True)
        )
        start = None if factors[1] == 0 else start
        if right.ndim == 2:
            # A matrix on the right makes one product of all leading dimensions (MatMulComputeHelper).
            rows = np.ascontiguousarray(a).reshape(-1, a.shape[-1])
            made = mlas.product(
                rows,
                right,
                packed=packed,
                transposed=transposed,
                start=start,
                factors=factors,
                threads=settings.threads,
            )
            return made.reshape(*a.shape[:-1], right.shape[-1])
        batch = np.broadcast_shapes(a.shape[:-2], right.shape[:-2])
        left = np.broadcast_to(a, (*batch, *a.shape[-2:]))
        right = np.broadcast_to(right, (*batch, *right.shape[-2:]))
        result = np.empty((*batch, a.shape[-2], right.shape[-1]), np.float32)
        for index in np.ndindex(*batch):
            pair = np.ascontiguousarray(left[index]), np.ascontiguousarray(right[index])
            result[index] = mlas.product(*pair, packed=False, threads=settings.threads)
        return result

    return run


@register("com.microsoft::MatMulNBits")
def few_bits(scope: Scope) -> Kernel:
    """MatMulNBits with float32 activations: weights dequantized, then one product; at accuracy level 4 activations of bytes.

    Measured on onnxruntime 1.31.1: with 4 bits one chain of fused multiply-adds over all of k (a single row takes another
    kernel, which differs by CPU: ulps); with 8 bits, and weights that a caller may replace, MLAS's product of weights held as (N, K).
    """
    node, a = scope.node, scope.operand(0)
    level = int(node.attributes.get("accuracy_level", 0))
    if scope.dialect.formulas.get("float-product") != "mlas" or a is None or a.dtype != "float32":
        return interpret(scope)
    if level == BYTES_LEVEL and _takes_bytes(scope):
        return _in_bytes(scope)
    constant = [scope.operand(index) for index in range(1, len(node.inputs))]
    bits, k = int(node.attributes.get("bits", 4)), int(node.attributes["K"])
    known = all(one is None or one.data is not None for one in constant[:3])
    chained = bits == 4 and scope.fixed(1)

    def unpacked(operands: Sequence[Array | None]) -> Array:
        points = operands[3] if len(operands) > 3 else None
        return contributed.unpacked(node, present(operands[1]), present(operands[2]), points)

    fixed = unpacked([None, *(None if one is None else one.data for one in constant[:3])]) if known else None

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x, weights = present(operands[0]), unpacked(operands) if fixed is None else fixed
        rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
        bias = operands[5] if len(operands) > 5 else None
        if chained:
            made = kernels.gemm_sequential(rows, weights, block=max(k, 1), threads=settings.threads)
            made = made if bias is None else made + bias
        else:
            made = mlas.product(
                rows, weights, packed=False, transposed=(False, True), start=bias, threads=settings.threads
            )
        return np.ascontiguousarray(made.reshape(*x.shape[:-1], weights.shape[1]))

    return adapt(run)


def _takes_bytes(scope: Scope) -> bool:
    """Whether onnxruntime quantizes the activations: weights and zero points are constants, the points stored as the weights are."""
    points, bits = scope.operand(3), int(scope.node.attributes.get("bits", 4))
    stored = points is None or (points.dtype == "uint8" and scope.fixed(3))
    return scope.fixed(1) and scope.fixed(2) and stored and (bits > 2 or int(scope.node.attributes["block_size"]) >= 32)


def _in_bytes(scope: Scope) -> Kernel:
    node, (weights, scales, points) = scope.node, (scope.operand(index) for index in (1, 2, 3))
    assert weights is not None and weights.data is not None and scales is not None and scales.data is not None
    stored, zero = contributed.integers(node, weights.data, None if points is None else points.data)
    k = int(node.attributes["K"])
    matrix = np.ascontiguousarray(stored[:, :k].T)
    steps = np.ascontiguousarray(scales.data.reshape(zero.shape).T, np.float32)
    return quantized_in_blocks(matrix, np.ascontiguousarray(zero.T), steps, int(node.attributes["block_size"]), 5)
