"""onnxruntime's integer operators of domain com.microsoft: QLinearAdd and its kin, QGemm, products of dynamic quantization.

`LAYOUTS` says where each keeps its operands' scales and zero points. In the source form they compute what they stand for,
DequantizeLinear, the operator and QuantizeLinear; a dialect that has their kernels turns them into groups (lowering).
Input orders: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops import accounting, arithmetic, dims
from hwq.ops.base import Inferred, Op, lookup, register
from hwq.ops.matmul import product_shape, product_work
from hwq.ops.quantize import DynamicQuantize, dequantize, quantize
from hwq.work import Work

__all__ = ["LAYOUTS", "Layout", "anchor", "factors", "quantized_dynamically", "scaled", "triples", "unpacked"]

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Where an integer operator keeps what: indices among its inputs.

    Attributes
    ----------
    op : str
        The float operator that it stands for.
    operands : tuple of (value, scale, zero point)
    result : (scale, zero point)
    plain : tuple of int
        Inputs that are not quantized, with their place among the float operator's inputs.
    bias : int or None
        An int32 bias of scale ``a scale * b scale``.
    """

    op: str
    operands: tuple[Triple, ...]
    result: tuple[int, int]
    plain: tuple[tuple[int, int], ...] = ()
    bias: int | None = None


_UNARY = ((0, 1, 2),)
_BINARY = ((0, 1, 2), (3, 4, 5))
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "QLinearAdd": Layout("Add", _BINARY, (6, 7)),
        "QLinearMul": Layout("Mul", _BINARY, (6, 7)),
        "QLinearSigmoid": Layout("Sigmoid", _UNARY, (3, 4)),
        "QLinearLeakyRelu": Layout("LeakyRelu", _UNARY, (3, 4)),
        "QLinearSoftmax": Layout("Softmax", _UNARY, (3, 4)),
        "QLinearAveragePool": Layout("AveragePool", _UNARY, (3, 4)),
        "QLinearGlobalAveragePool": Layout("GlobalAveragePool", _UNARY, (3, 4)),
        "QLinearConcat": Layout("Concat", (), (0, 1)),
        "QLinearWhere": Layout("Where", ((1, 2, 3), (4, 5, 6)), (7, 8), plain=((0, 0),)),
        "QGemm": Layout("Gemm", _BINARY, (7, 8), bias=6),
    }
)
_NOT_FLOATS = frozenset({"channels_last", "opset"})


def triples(node: Node) -> tuple[Triple, ...]:
    """Value, scale and zero point of every operand; QLinearConcat has as many as it is given."""
    if node.op == "QLinearConcat":
        return tuple((index, index + 1, index + 2) for index in range(2, len(node.inputs) - 2, 3))
    return LAYOUTS[node.op].operands


def anchor(node: Node) -> Node:
    """The float operator that an integer one stands for: its inputs are the values alone."""
    layout = LAYOUTS[node.op]
    attributes = {name: value for name, value in node.attributes.items() if name not in _NOT_FLOATS}
    inputs = [""] * (len(triples(node)) + len(layout.plain))
    for index, place in layout.plain:
        inputs[place] = node.inputs[index]
    free = iter([place for place in range(len(inputs)) if place not in {one for _, one in layout.plain}])
    for value, _, _ in triples(node):
        inputs[next(free)] = node.inputs[value]
    if layout.bias is not None and len(node.inputs) > layout.bias and node.inputs[layout.bias]:
        inputs.append(node.inputs[layout.bias])
    last = bool(node.attributes.get("channels_last", 0))
    return dataclasses.replace(
        node,
        op=layout.op,
        domain="",
        inputs=tuple(inputs),
        attributes=attributes,
        layout="NHWC" if last else node.layout,
    )


@register
class IntegerOperator(Op):
    """DequantizeLinear of every operand, the float operator, QuantizeLinear."""

    names = tuple(f"com.microsoft::{name}" for name in LAYOUTS)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        value, made = dict(zip(node.inputs, inputs, strict=True)), anchor(node)
        plain = {index for index, _ in LAYOUTS[node.op].plain}
        real = [
            None
            if tensor is None
            else tensor
            if place in plain
            else dataclasses.replace(tensor, dtype="float32", data=None)
            for place, tensor in enumerate(value.get(name) for name in made.inputs)
        ]
        if len(inputs) < 3 or not triples(node) or any(tensor is None for tensor in real):
            raise dims.fault(node, "the operator lacks an operand")
        _, shape, known = lookup(made).infer(made, real)[0]
        scale, point = (
            [*inputs, None, None][index] if index < len(inputs) else None for index in LAYOUTS[node.op].result
        )
        first = inputs[triples(node)[0][0]]
        assert first is not None
        if node.op == "QGemm" and scale is None:
            return [("float32", shape, known)]
        return [(point.dtype if point is not None else first.dtype, shape, known)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        given, layout = list(inputs) + [None] * 2, LAYOUTS[node.op]
        real: list[Array | None] = [given[index] for index, _ in layout.plain]
        for value, scale, point in triples(node):
            x, step = given[value], given[scale]
            assert x is not None and step is not None
            axis = None if step.size == 1 else x.ndim - 1 if not node.attributes.get("transB") else 0
            steps = step.reshape(()) if axis is None else step.reshape(-1)
            zero = given[point]
            real.append(dequantize(x, steps, None if zero is None else zero.reshape(steps.shape), axis))
        if layout.bias is not None and layout.bias < len(inputs) and given[layout.bias] is not None:
            first, second, bias = given[1], given[4], given[layout.bias]
            assert first is not None and second is not None and bias is not None
            real.append((bias * (first * second).astype(np.float32)).astype(np.float32))
        made = anchor(node)
        value_made = lookup(made).evaluate(made, real)[0]
        step = given[layout.result[0]] if layout.result[0] < len(given) else None
        if step is None:
            return [value_made]
        zero = given[layout.result[1]]
        first_operand = given[triples(node)[0][0]]
        assert first_operand is not None
        dtype = zero.dtype.name if zero is not None else first_operand.dtype.name
        return [quantize(value_made, step.reshape(()), None if zero is None else zero.reshape(()), dtype)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        if node.op == "QGemm" and not node.attributes.get("transA") and not node.attributes.get("transB"):
            return product_work(node, graph, 0, 3)
        return accounting.vector(node, graph)


def factors(a_scale: Array, b_scale: Array) -> Array:
    """``f32(sa * sb)``, one for all columns or one a column."""
    return np.asarray(a_scale.reshape(()) * b_scale.reshape(-1 if b_scale.size > 1 else ()), np.float32)


def quantized_dynamically(node: Node, x: Array) -> tuple[Array, Array, Array]:
    """What DynamicQuantizeLinear makes of `x`: stored values, scale, zero point."""
    stored, scale, point = DynamicQuantize().evaluate(node, [x])
    return stored, scale, point


def scaled(acc: Array, factor: Array, bias: Array | None) -> Array:
    """``f32(f32(acc) * factor) + bias``: two roundings, no fused multiply-add (measured on onnxruntime 1.31.1)."""
    made = acc.astype(np.float32) * factor.astype(np.float32)
    return made if bias is None else np.asarray(made + bias)


def _integer_product(a: Array, b: Array, a_point: Array | None, b_point: Array | None) -> Array:
    left = a.astype(np.int32) - (0 if a_point is None else a_point.astype(np.int32).reshape(()))
    right = b.astype(np.int32) - (
        0 if b_point is None else b_point.astype(np.int32).reshape(-1 if b_point.size > 1 else ())
    )
    return arithmetic.wrap_int32(arithmetic.integer_matmul(left, right))


@register
class MatMulIntegerToFloat(Op):
    """``float32((a - za) @ (b - zb)) * (sa * sb) + bias``: inputs a, b, sa, sb, za, zb, bias."""

    names = ("com.microsoft::MatMulIntegerToFloat",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if len(inputs) < 4 or any(tensor is None for tensor in inputs[:4]):
            raise dims.fault(node, "the operator needs two operands and their scales")
        a, b = inputs[0], inputs[1]
        assert a is not None and b is not None
        return [("float32", *product_shape(node, a, b))]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, b, sa, sb, za, zb, bias = [*inputs, None, None, None][:7]
        assert a is not None and b is not None and sa is not None and sb is not None
        return [scaled(_integer_product(a, b, za, zb), factors(sa, sb), bias)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return product_work(node, graph)


@register
class DynamicQuantizeMatMul(Op):
    """A float operand, quantized as DynamicQuantizeLinear does, times a quantized one: inputs a, b, sb, zb, bias."""

    names = ("com.microsoft::DynamicQuantizeMatMul",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if len(inputs) < 3 or any(tensor is None for tensor in inputs[:3]):
            raise dims.fault(node, "the operator needs two operands and the second one's scale")
        a, b = inputs[0], inputs[1]
        assert a is not None and b is not None
        return [("float32", *product_shape(node, a, b))]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, b, sb, zb, bias = [*inputs, None, None][:5]
        assert a is not None and b is not None and sb is not None
        stored, scale, point = quantized_dynamically(node, a)
        return [scaled(_integer_product(stored, b, point, zb), factors(scale, sb), bias)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return product_work(node, graph)


@register
class MatMulNBits(Op):
    """A float operand times a matrix in blocks of few bits: inputs a, b [N, blocks, bytes], scales [N, blocks], zero points, -, bias."""

    names = ("com.microsoft::MatMulNBits",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if len(inputs) < 3 or any(tensor is None for tensor in inputs[:3]):
            raise dims.fault(node, "the operator needs an operand, packed weights and scales")
        if not {"K", "N", "block_size"} <= set(node.attributes):
            raise dims.fault(node, "attributes K, N and block_size must be set")
        if len(inputs) > 4 and inputs[4] is not None:
            raise dims.fault(node, "a permutation of k (g_idx) is not supported")
        if int(node.attributes.get("bits", 4)) not in {2, 4, 8}:
            raise dims.fault(node, f"weights of {node.attributes['bits']} bits are not supported")
        a = inputs[0]
        assert a is not None
        _require_blocks(node, inputs)
        if not a.known_shape:
            return [(a.dtype, (), False)]
        return [(a.dtype, (*a.shape[:-1], int(node.attributes["N"])), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        a, packed, scales, points, _, bias = [*inputs, None, None, None][:6]
        assert a is not None and packed is not None and scales is not None
        made = arithmetic.matmul(a, unpacked(node, packed, scales, points))
        return [made if bias is None else np.asarray(made + bias)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        k, n = int(node.attributes["K"]), int(node.attributes["N"])
        dtype = f"uint{int(node.attributes.get('bits', 4))}"
        weights = dataclasses.replace(graph.tensors[node.inputs[1]], dtype=dtype, shape=(k, n), data=None)
        return product_work(
            node, graph.replace(tensors=[{weights.name: weights}.get(name, one) for name, one in graph.tensors.items()])
        )


def _require_blocks(node: Node, inputs: Sequence[Tensor | None]) -> None:
    """Refuse operands that do not hold one block after another, as onnxruntime does: it pads no row."""
    k, n, block = (int(node.attributes[key]) for key in ("K", "N", "block_size"))
    bits = int(node.attributes.get("bits", 4))
    if k < 1 or n < 1 or block < 16 or block & (block - 1):
        raise dims.fault(node, f"K = {k}, N = {n}, block_size = {block}", "a block is a power of two, 16 or more")
    blocks = -(-k // block)
    points = inputs[3] if len(inputs) > 3 else None
    packed = points is not None and points.dtype == "uint8"
    wanted = ("weights", n * blocks * block * bits // 8), ("scales", n * blocks), (
        "zero points", n * (-(-blocks * bits // 8) if packed else blocks),
    )  # fmt: skip
    for (label, size), tensor in zip(wanted, inputs[1:4], strict=False):
        if tensor is not None and tensor.concrete and tensor.elements != size:
            raise dims.fault(node, f"{label} of shape {list(tensor.shape)}: {size} elements are needed")


def unpacked(node: Node, packed: Array, scales: Array, points: Array | None) -> Array:
    """float32 weights [K, N]."""
    stored, zero = integers(node, packed, points)
    blocks, block = zero.shape[1], int(node.attributes["block_size"])
    wide = stored.astype(np.float32).reshape(-1, blocks, block) - zero.astype(np.float32)[..., None]
    real = wide * scales.reshape(-1, blocks, 1).astype(np.float32)
    return np.ascontiguousarray(real.reshape(len(stored), -1)[:, : int(node.attributes["K"])].T)


def integers(node: Node, packed: Array, points: Array | None) -> tuple[Array, Array]:
    """Stored weights [N, blocks * block_size] and zero points [N, blocks] of a MatMulNBits: low bits first, the middle of the
    range where no zero point is given."""
    get = node.attributes.get
    k, n, block, bits = int(get("K")), int(get("N")), int(get("block_size")), int(get("bits", 4))  # type: ignore[arg-type]
    blocks = -(-k // block)
    stored = _elements(packed.reshape(n, -1), bits)[:, : blocks * block]
    if points is None:
        return stored, np.full((n, blocks), 1 << (bits - 1), np.uint8)
    if points.dtype == np.uint8:
        return stored, _elements(points.reshape(n, -1), bits)[:, :blocks]
    return stored, points.reshape(n, blocks)


def _elements(rows: Array, bits: int) -> Array:
    parts = [(rows >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(rows.shape[0], -1)
