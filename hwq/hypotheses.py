"""Which documented rule would make a layer's output differ: every rule applied to the layer's own inputs.

A hypothesis recomputes one node of a lowered graph by another rule than its dialect's, from numerics that kernels/README.md
names. The rule whose outputs are the ones observed is the explanation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq import kernels, numerics
from hwq.errors import Error
from hwq.execution import compile
from hwq.graph import Array, Graph, Node, Quantization, carrier
from hwq.ops.evaluate import evaluate_node

__all__ = ["RULES", "Hypothesis", "hypotheses", "layer"]

# The rules by name, the more specific first: of two that explain the same output, the earlier is named.
RULES: Mapping[str, str] = MappingProxyType(
    {
        "saturation": "neighboring uint8 x int8 products are added in int16 with saturation (a CPU without VNNI)",
        "bias quantized": "the bias is added as a float, not as an int32 of scale input scale * weight scale",
        "zero-point order": "the zero point is added before the rounding instead of after it, or the other way round",
        "division or reciprocal": "the scale divides where its reciprocal should multiply, or the other way round",
        "fused multiply-add": "a product and a sum are rounded once instead of twice, or the other way round",
        "rounding": "ties, or all values, are rounded by another rule (away, up, twice, towards zero)",
        "resolver": "the runtime took another kernel for the operator: a float island, or another library's formula",
    }
)
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
f32 = np.float32


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One rule applied to one layer: `rule` is a key of `RULES`, `detail` its variant in words, `value` the output."""

    rule: str
    detail: str
    value: Array


def layer(graph: Graph, node: Node) -> Graph:
    """A lowered graph of one node; its variable operands are the inputs."""
    read = [name for name in dict.fromkeys(node.inputs) if name]
    inputs = [name for name in read if graph.tensors[name].data is None]
    outputs = [name for name in node.outputs if name]
    tensors = [graph.tensors[name] for name in dict.fromkeys([*read, *outputs])]
    return Graph([node], tensors, inputs, outputs, form="lowered", dialect=graph.dialect, source=graph.source)


def hypotheses(graph: Graph, source: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """Every rule that applies to a node, with the first output that it gives.

    Parameters
    ----------
    graph : Graph
        Lowered.
    source : Graph
        What it was lowered from.
    node : Node
        Of `graph`.
    feeds : mapping of name to array
        The node's variable operands, as stored.
    """
    makers: list[Callable[[], Iterator[Hypothesis]]] = []
    if node.domain == "tflite":
        makers.append(lambda: _resolvers(graph, node, feeds))
    elif node.op in {"Conv", "MatMul", "Gemm"} and node.body:
        makers.append(lambda: _products(graph, source, node, feeds))
    elif node.op == "QuantizeLinear":
        makers.append(lambda: _quantize(graph, node, feeds))
    elif node.op in {"Add", "Mul"} and node.body:
        makers.append(lambda: _sums(graph, node, feeds))
    elif node.body:
        makers.append(lambda: _through_floats(graph, node, feeds))
    makers.append(lambda: _other_kernels(graph, source, node, feeds))
    for make in makers:
        try:
            with np.errstate(all="ignore"):
                yield from make()
        except Error:
            continue  # the rule cannot be applied to these operands


def _resolvers(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """LiteRT's other kernels of the operator."""
    for dialect in ("litert-ref", "litert-xnnpack", "litert-ref-fixedfc"):
        if dialect != graph.dialect:
            value = compile(layer(graph, node).replace(dialect=dialect), dialect)(dict(feeds))
            yield Hypothesis("resolver", f"as {dialect}", np.asarray(value))


def _array(graph: Graph, name: str, feeds: Mapping[str, Array]) -> Array:
    data = graph.tensors[name].data
    return feeds[name] if data is None else data


def _quantization(graph: Graph, name: str) -> Quantization:
    found = graph.tensors[name].quantization
    if found is None:
        raise Error("this operand is not quantized", where=f"tensor {name}")
    return found


def _stored(values: Array, dtype: str) -> Array:
    low, high = RANGES[dtype]
    return np.ascontiguousarray(
        np.clip(np.nan_to_num(values.astype(np.float64), nan=low), low, high).astype(carrier(dtype))
    )


def _away(values: Array) -> Array:
    return np.asarray(np.trunc(values + np.copysign(0.5, values)))


def _products(graph: Graph, source: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """Accumulators that leave by other roundings."""
    a, w, made = (_quantization(graph, name) for name in (*node.inputs[:2], node.outputs[0]))
    if a.dtype == "uint8" and w.dtype == "int8":
        value = compile(layer(graph, node).replace(dialect="ort-avx2-saturating"), "ort-avx2-saturating")(dict(feeds))
        yield Hypothesis("saturation", "int16 pairs", np.asarray(value))
    plain, bias = _accumulators(graph, node, feeds)
    channel = (-1, *([1] * (plain.ndim - 2))) if node.op == "Conv" and node.layout != "NHWC" else (-1,)
    alpha = f32(node.attributes.get("alpha", 1.0)) if node.op == "Gemm" else f32(1)
    products = (alpha * a.scales().reshape(-1)[0] * w.scales().reshape(-1)).astype(f32)
    scale, zero = f32(made.scales().reshape(-1)[0]), int(made.zero_points().reshape(-1)[0])
    products = products.reshape(channel) if products.size > 1 else products.reshape(())
    factors = (products / scale).astype(f32)
    offset = np.zeros((), np.int64) if bias is None else bias.astype(np.int64).reshape(channel)
    acc = (plain.astype(np.int64) + offset).astype(np.int32).astype(f32)
    for detail, real in _float_biases(source, node, products, offset, bias is not None):
        value = np.rint((plain.astype(f32) + (real / products).astype(f32)) * factors) + zero
        yield Hypothesis("bias quantized", detail, _stored(value, made.dtype))
        value = np.rint(((plain.astype(f32) * products + real) / scale).astype(f32)) + zero
        yield Hypothesis("bias quantized", f"{detail}, after the scale", _stored(value, made.dtype))
    yield Hypothesis(
        "zero-point order", "added before rounding", _stored(np.rint(acc * factors + f32(zero)), made.dtype)
    )
    inverse = (products * (f32(1) / scale)).astype(f32)
    yield Hypothesis(
        "division or reciprocal",
        "multiplier by the reciprocal of the output scale",
        _stored(np.rint(acc * inverse) + zero, made.dtype),
    )
    value = np.rint(((acc * products).astype(f32) / scale).astype(f32)) + zero
    yield Hypothesis(
        "division or reciprocal",
        "the accumulator is scaled, then divided by the output scale",
        _stored(value, made.dtype),
    )
    fused = (acc.astype(np.float64) * factors.astype(np.float64) + zero).astype(f32)
    yield Hypothesis("fused multiply-add", "product and zero point rounded once", _stored(np.rint(fused), made.dtype))
    yield Hypothesis("rounding", "ties away from zero", _stored(_away((acc * factors).astype(f32)) + zero, made.dtype))
    exact = (plain.astype(np.int64) + offset).astype(np.int32).astype(np.float64)
    wide = products.astype(np.float64) / np.float64(scale)
    yield Hypothesis("rounding", "R2, float64, ties away from zero", _stored(_away(exact * wide) + zero, made.dtype))
    yield Hypothesis("rounding", "towards zero", _stored(np.trunc(acc * factors) + zero, made.dtype))
    yield Hypothesis(
        "rounding", "upwards from halves", _stored(np.floor(acc.astype(np.float64) * factors + 0.5) + zero, made.dtype)
    )
    for name in ("gemmlowp", "ruy", "single"):
        yield Hypothesis(
            "rounding",
            f"fixed point, {name}",
            _fixed_point(exact.astype(np.int32), wide, channel, name, zero, made.dtype),
        )


def _accumulators(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> tuple[Array, Array | None]:
    """int32 sums without the bias, and the bias."""
    a, w = (_array(graph, name, feeds) for name in node.inputs[:2])
    bias = _array(graph, node.inputs[2], feeds) if len(node.inputs) > 2 and node.inputs[2] else None
    a_zero = np.asarray(_quantization(graph, node.inputs[0]).zero_points().reshape(-1)[0]).astype(a.dtype)
    w_zero = np.ascontiguousarray(_quantization(graph, node.inputs[1]).zero_points().reshape(-1)).astype(w.dtype)
    if w_zero.size == 1:
        w_zero = w_zero.reshape(())
    if node.op == "Conv":
        integer = dataclasses.replace(node, op="ConvInteger", inputs=("x", "w", "xz", "wz"), body=())
    else:
        get = node.attributes.get
        a = np.ascontiguousarray(a.T) if node.op == "Gemm" and get("transA", 0) else a
        w = np.ascontiguousarray(w.T) if node.op == "Gemm" and get("transB", 0) else w
        integer = Node("MatMulInteger", node.name, ("x", "w", "xz", "wz"), node.outputs)
    return evaluate_node(integer, [a, w, a_zero, w_zero])[0], bias


def _float_biases(
    source: Graph, node: Node, products: Array, offset: Array, given: bool
) -> Iterator[tuple[str, Array]]:
    """The bias in float32: the source's own where it has one, and the dequantized one."""
    if not given:
        return
    try:
        before = source.node(node.name)
    except Error:
        before = None
    if before is not None and len(before.inputs) > 2:
        value = source.constant(before.inputs[2])
        if value is not None and value.dtype == f32:
            yield "the model's float bias", value.reshape(offset.shape)
    yield "the dequantized bias", (offset.astype(f32) * products).astype(f32)


def _fixed_point(acc: Array, real: Array, channel: tuple[int, ...], rounding: str, zero: int, dtype: str) -> Array:
    flat = np.atleast_1d(real).reshape(-1)
    pairs = [kernels.quantize_multiplier(float(one)) for one in flat]
    multipliers, shifts = np.array([one for one, _ in pairs], np.int32), np.array([one for _, one in pairs], np.int32)
    columns = acc if channel == (-1,) else np.moveaxis(acc, 1, -1)
    if flat.size == 1:
        multipliers, shifts = multipliers.reshape(()), shifts.reshape(())
    finish = kernels.Epilogue(
        kind="requant", rounding=rounding, multipliers=multipliers, shifts=shifts, zero_point=zero, dtype=dtype
    )
    made = kernels.requantize(np.ascontiguousarray(columns), finish)
    return made if channel == (-1,) else np.ascontiguousarray(np.moveaxis(made, -1, 1))


def _quantize(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """QuantizeLinear by other formulas."""
    x = _array(graph, node.inputs[0], feeds)
    made = _quantization(graph, node.outputs[0])
    yield from _quantized(x, made)


def _quantized(x: Array, made: Quantization) -> Iterator[Hypothesis]:
    scales, points = made.scales(), made.zero_points()
    if scales.size != 1 or points.size != 1 or made.dtype not in RANGES:
        return
    scale, zero, dtype = f32(scales.reshape(())), int(points.reshape(())), made.dtype
    ratio, inverse = (x / scale).astype(f32), f32(1) / scale
    product = (x * inverse).astype(f32)
    yield Hypothesis("zero-point order", "added before rounding", _stored(np.rint(ratio + f32(zero)), dtype))
    yield Hypothesis("division or reciprocal", "multiplied by the reciprocal", _stored(np.rint(product) + zero, dtype))
    fused = (x.astype(np.float64) * np.float64(inverse) + zero).astype(f32)
    yield Hypothesis(
        "fused multiply-add", "reciprocal product and zero point rounded once", _stored(np.rint(fused), dtype)
    )
    yield Hypothesis("rounding", "ties away from zero", _stored(_away(ratio) + zero, dtype))
    yield Hypothesis("rounding", "towards zero", _stored(np.trunc(ratio) + zero, dtype))
    yield Hypothesis("rounding", "upwards from halves", _stored(np.floor(ratio.astype(np.float64) + 0.5) + zero, dtype))


def _sums(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """Quantized Add and Mul by other formulas."""
    first, second, made = (_quantization(graph, name) for name in (*node.inputs[:2], node.outputs[0]))
    a, b = (_array(graph, name, feeds) for name in node.inputs[:2])
    (sa, za), (sb, zb), (sc, zc) = (
        (f32(q.scales().reshape(-1)[0]), int(q.zero_points().reshape(-1)[0])) for q in (first, second, made)
    )
    x, y = a.astype(f32), b.astype(f32)
    if node.op == "Add":
        ra, rb = f32(sa / sc), f32(sb / sc)
        fixed = f32(f32(zc) - f32(f32(ra * f32(za)) + f32(rb * f32(zb))))
        value = (x * ra).astype(f32) + ((y * rb).astype(f32) + fixed).astype(f32)
        yield Hypothesis(
            "fused multiply-add",
            "products and sums rounded one by one",
            _stored(np.rint(value.astype(f32)), made.dtype),
        )
        real = ((x - f32(za)) * sa).astype(f32) + ((y - f32(zb)) * sb).astype(f32)
    else:
        factor = f32(f32(sa * sb) / sc)
        product = ((x - f32(za)) * (y - f32(zb))).astype(f32)
        value = (product * factor).astype(f32)
        yield Hypothesis("zero-point order", "added after rounding", _stored(np.rint(value) + zc, made.dtype))
        fused = (product.astype(np.float64) * np.float64(factor) + zc).astype(f32)
        yield Hypothesis(
            "fused multiply-add", "product and zero point rounded once", _stored(np.rint(fused), made.dtype)
        )
        inverse = f32(f32(sa * sb) * (f32(1) / sc))
        value = (product * inverse).astype(f32) + f32(zc)
        yield Hypothesis(
            "division or reciprocal",
            "multiplier by the reciprocal of the output scale",
            _stored(np.rint(value), made.dtype),
        )
        real = (((x - f32(za)) * sa).astype(f32) * ((y - f32(zb)) * sb).astype(f32)).astype(f32)
    yield from _through(real.astype(f32), made)
    for library in ("tflite", "xnnpack", "torch"):
        operator = kernels.Binary(
            formula=f"{library}-{node.op.lower()}", a_scale=float(sa), b_scale=float(sb), scale=float(sc), a_zero_point=za,
            b_zero_point=zb, zero_point=zc, a_dtype=first.dtype, b_dtype=second.dtype, dtype=made.dtype)  # fmt: skip
        yield Hypothesis("resolver", f"{library}'s formula", kernels.binary(operator, a, b))


def _through_floats(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """DQ, the float operator, and Q by other formulas."""
    made = _quantization(graph, node.outputs[0])
    operands = []
    for name in node.inputs:
        quantization = graph.tensors[name].quantization if name else None
        value = _array(graph, name, feeds) if name else None
        if quantization is not None and value is not None:
            value = numerics.dequantize(
                value, f32(quantization.scales().reshape(-1)[0]), int(quantization.zero_points().reshape(-1)[0])
            )
        operands.append(value)
    yield from _through(evaluate_node(dataclasses.replace(node, body=()), operands)[0].astype(f32), made)


def _through(real: Array, made: Quantization) -> Iterator[Hypothesis]:
    """A float result, quantized; then by other formulas, where they give something else."""
    scale, zero = f32(made.scales().reshape(-1)[0]), int(made.zero_points().reshape(-1)[0])
    plain = kernels.quantize(np.ascontiguousarray(real), scale, zero, made.dtype)
    yield Hypothesis("resolver", "computed in float32 between DQ and Q", plain)
    for one in _quantized(real, made):
        if not np.array_equal(one.value, plain):
            yield one


def _other_kernels(graph: Graph, source: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """The nodes that the group swallowed, run one by one in float32."""
    if not node.body or graph.dialect == "ort-unfused":
        return
    made = {name for part in node.body for name in part.outputs}
    read = [name for part in node.body for name in part.inputs if name and name not in made]
    inputs = [name for name in dict.fromkeys(read) if source.constant(name) is None]
    if not set(inputs) <= set(feeds) or any(
        name not in source.tensors for part in node.body for name in (*part.inputs, *part.outputs) if name
    ):
        return
    names = dict.fromkeys(name for part in node.body for name in (*part.inputs, *part.outputs) if name)
    whole: Any = Graph(
        node.body,
        [source.tensors[name] for name in names],
        inputs,
        [node.body[-1].outputs[0]],
        dialect="ort-unfused",
        source=source.source,
    )
    value = np.asarray(compile(whole, "ort-unfused")({name: feeds[name] for name in inputs}))
    yield Hypothesis("resolver", "left as a float island between DQ and Q", value)
