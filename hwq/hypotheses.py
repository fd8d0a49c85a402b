"""Which documented rule would make a layer's output differ: every rule applied to the layer's own inputs.

A hypothesis recomputes one node of a lowered graph by another rule than its dialect's, from numerics that kernels/README.md
names. The rule whose outputs are the ones observed is the explanation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq import kernels, numerics
from hwq.errors import Error
from hwq.execution import compile
from hwq.graph import Array, Graph, Node, Quantization, carrier
from hwq.ops.application import evaluate_node
from hwq.ops.tflite_accumulators import windows_of
from hwq.ops.tflite_base import Call, activation_range
from hwq.product_hypotheses import PRODUCTS, permuted, product_of, products

__all__ = ["RULES", "Hypothesis", "hypotheses", "layer"]

# The rules by name, the more specific first: of two that explain the same output, the earlier is named.
RULES: Mapping[str, str] = MappingProxyType(
    {
        "saturation": "neighboring uint8 x int8 products are added in int16 with saturation (a CPU without VNNI)",
        "bias quantized": "the bias is added as a float, not as an int32 of scale input scale * weight scale",
        "bias": "the bias is left out, or added with another sign or twice",
        "padding": "padded places hold another value than the zero point, or are counted otherwise in an average",
        "zero-point order": "the zero point is added before the rounding instead of after it, or the other way round",
        "division or reciprocal": "the scale divides where its reciprocal should multiply, or the other way round",
        "fused multiply-add": "a product and a sum are rounded once instead of twice, or the other way round",
        "rounding": "ties, or all values, are rounded by another rule (away, up, twice, towards zero)",
        "channel scales": "a channel is rescaled by another channel's scale",
        "clamp": "the result is cut at other bounds than its type's and its activation's",
        "resolver": "the runtime took another kernel for the operator: a float island, or another library's formula",
    }
)
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
Rounded = Callable[[Any], Any]
# LiteRT's kernels, by dialect.
RESOLVERS = ("litert-ref", "litert-xnnpack", "litert-ref-fixedfc")
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


def hypotheses(
    graph: Graph, source: Graph, node: Node, feeds: Mapping[str, Array], theirs: Array | None = None
) -> Iterator[Hypothesis]:
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
    theirs : array, optional
        The other run's output: what permutes channels is found from it.
    """
    makers: list[Callable[[], Iterator[Hypothesis]]] = []
    grouped = bool(node.body) or node.domain == "tflite"
    if node.op in PRODUCTS and grouped:
        makers += [lambda: _products(graph, source, node, feeds), lambda: _permuted(graph, node, feeds, theirs)]
    elif node.op in {"QuantizeLinear", "QUANTIZE"}:
        makers.append(lambda: _quantize(graph, node, feeds))
    elif node.op in {"DequantizeLinear", "DEQUANTIZE"}:
        makers.append(lambda: _dequantize(graph, node, feeds))
    elif node.op in {"Add", "Mul", "ADD", "SUB", "MUL"} and grouped:
        makers.append(lambda: _sums(graph, node, feeds))
        makers += [partial(_library, graph, node, feeds, name) for name in ("tflite", "xnnpack", "torch", "ort")]
    elif node.op in {"AveragePool", "AVERAGE_POOL_2D"} and grouped:
        makers.append(lambda: _averages(graph, node, feeds))
    if grouped and node.op not in PRODUCTS | {"QUANTIZE", "DEQUANTIZE"}:
        makers.append(lambda: _through_floats(graph, node, feeds))
    makers += [partial(_resolver, graph, node, feeds, name) for name in RESOLVERS if node.domain == "tflite"]
    makers.append(lambda: _other_kernels(graph, source, node, feeds))
    for make in makers:
        try:
            with np.errstate(all="ignore"):
                yield from make()
        except Error:
            continue  # the rule cannot be applied to these operands


def _resolver(graph: Graph, node: Node, feeds: Mapping[str, Array], dialect: str) -> Iterator[Hypothesis]:
    """Another kernel of LiteRT's for the operator."""
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


def _products(graph: Graph, source: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    for rule, detail, value in products(graph, source, node, feeds):
        yield Hypothesis(rule, detail, value)


def _permuted(graph: Graph, node: Node, feeds: Mapping[str, Array], theirs: Array | None) -> Iterator[Hypothesis]:
    if theirs is not None:
        for rule, detail, value in permuted(product_of(graph, node, feeds), theirs):
            yield Hypothesis(rule, detail, value)


def _ties(graph: Graph) -> Rounded:
    """How the dialect rounds ties in floats: one rule is varied at a time."""
    return numerics.away if graph.dialect.startswith("litert-ref") else np.rint


def _quantize(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """QuantizeLinear by other formulas."""
    x, before, made = (
        _array(graph, node.inputs[0], feeds),
        graph.tensors[node.inputs[0]].quantization,
        _quantization(graph, node.outputs[0]),
    )
    if before is not None:  # from stored integers to others
        x = numerics.dequantize(x, f32(before.scales().reshape(())), int(before.zero_points().reshape(())))
    yield from _quantized(x, made, _ties(graph))


def _quantized(x: Array, made: Quantization, ties: Rounded) -> Iterator[Hypothesis]:
    scales, points = made.scales(), made.zero_points()
    if scales.size != 1 or points.size != 1 or made.dtype not in RANGES:
        return
    scale, zero, dtype = f32(scales.reshape(())), int(points.reshape(())), made.dtype
    ratio, inverse = (x / scale).astype(f32), f32(1) / scale
    product = (x * inverse).astype(f32)
    yield Hypothesis("zero-point order", "added before rounding", _stored(ties(ratio + f32(zero)), dtype))
    yield Hypothesis("division or reciprocal", "multiplied by the reciprocal", _stored(ties(product) + zero, dtype))
    fused = numerics.fused_multiply_add(*np.broadcast_arrays(x, inverse, f32(zero)))
    yield Hypothesis(
        "fused multiply-add", "reciprocal product and zero point rounded once", _stored(np.rint(fused), dtype)
    )
    yield Hypothesis("rounding", "ties to even", _stored(np.rint(ratio) + zero, dtype))
    yield Hypothesis("rounding", "ties away from zero", _stored(numerics.away(ratio) + zero, dtype))
    yield Hypothesis("rounding", "towards zero", _stored(np.trunc(ratio) + zero, dtype))
    yield Hypothesis("rounding", "downwards", _stored(np.floor(ratio) + zero, dtype))
    yield Hypothesis("rounding", "upwards from halves", _stored(np.floor(ratio.astype(np.float64) + 0.5) + zero, dtype))
    low, high = RANGES[dtype]
    for bounds in ((low + 1, high), (low, high - 1), (low + 1, high - 1)):
        value = np.clip(_stored(np.rint(ratio) + zero, dtype), *bounds).astype(carrier(dtype))
        yield Hypothesis("clamp", f"to {list(bounds)} instead of {[low, high]}", value)


def _dequantize(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """DequantizeLinear with the zero point's share taken off behind the product."""
    given = graph.tensors[node.inputs[0]].quantization or _quantization(graph, node.outputs[0])
    scale, zero = f32(given.scales().reshape(())), f32(int(given.zero_points().reshape(())))
    x = _array(graph, node.inputs[0], feeds).astype(f32)
    yield Hypothesis("zero-point order", "subtracted after the product", (x * scale - f32(zero * scale)).astype(f32))
    fused = numerics.fused_multiply_add(*np.broadcast_arrays(x, scale, -f32(zero * scale)))
    yield Hypothesis("fused multiply-add", "product and zero point rounded once", fused)
    yield Hypothesis("division or reciprocal", "divided by the reciprocal", ((x - zero) / (f32(1) / scale)).astype(f32))


def _pairs(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[tuple[Any, int, Array]]:
    """(scale, zero point, stored values) of both operands."""
    for name in node.inputs[:2]:
        given = _quantization(graph, name)
        yield f32(given.scales().reshape(-1)[0]), int(given.zero_points().reshape(-1)[0]), _array(graph, name, feeds)


def _activated(graph: Graph, node: Node, values: Array) -> Array:
    """Within the fused activation of a TFLite operator."""
    if node.domain != "tflite":
        return values
    bounds = activation_range(Call.within(node, [None] * len(node.inputs), graph))
    return np.clip(values, *bounds).astype(values.dtype)


def _sums(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """Quantized Add, Sub and Mul by other formulas."""
    made = _quantization(graph, node.outputs[0])
    (sa, za, a), (sb, zb, b) = _pairs(graph, node, feeds)
    sc, zc = f32(made.scales().reshape(-1)[0]), int(made.zero_points().reshape(-1)[0])
    x, y = a.astype(f32), b.astype(f32)

    def given(rule: str, detail: str, value: Array) -> Hypothesis:
        return Hypothesis(rule, detail, _activated(graph, node, _stored(np.rint(value.astype(f32)), made.dtype)))

    if node.op == "Add":
        ra, rb = f32(sa / sc), f32(sb / sc)
        fixed = f32(f32(zc) - f32(f32(ra * f32(za)) + f32(rb * f32(zb))))
        value = (x * ra).astype(f32) + ((y * rb).astype(f32) + fixed).astype(f32)
        yield given("fused multiply-add", "products and sums rounded one by one", value)
    if node.op not in {"Mul", "MUL"}:
        return
    factor = f32(f32(sa * sb) / sc)
    product = ((x - f32(za)) * (y - f32(zb))).astype(f32)
    value = (product * factor).astype(f32)
    ties = _ties(graph)
    yield given("zero-point order", "added after rounding", ties(value) + zc)
    yield given("zero-point order", "added before rounding", ties(value + f32(zc)))
    fused = numerics.fused_multiply_add(*np.broadcast_arrays(product, factor, f32(zc)))
    yield given("fused multiply-add", "product and zero point rounded once", fused)
    inverse = f32(f32(sa * sb) * (f32(1) / sc))
    for zero in ((product * inverse).astype(f32) + f32(zc), np.rint((product * inverse).astype(f32)) + zc):
        yield given("division or reciprocal", "multiplier by the reciprocal of the output scale", zero)
    wide = (product.astype(np.float64) * np.float64(sa) * np.float64(sb)) / np.float64(sc)
    roundings: dict[str, Rounded] = {
        "ties to even": np.rint, "ties away from zero": numerics.away, "towards zero": np.trunc, "downwards": np.floor
    }  # fmt: skip
    for detail, rounded in roundings.items():
        yield given("rounding", detail, rounded(value) + zc)
        yield given("rounding", f"float64, {detail}", rounded(wide) + zc)


def _library(graph: Graph, node: Node, feeds: Mapping[str, Array], library: str) -> Iterator[Hypothesis]:
    """A library's formula of a binary operator."""
    made = _quantization(graph, node.outputs[0])
    (sa, za, a), (sb, zb, b) = _pairs(graph, node, feeds)
    operator = kernels.Binary(
        formula=f"{library}-{node.op.lower()}", a_scale=float(sa), b_scale=float(sb), scale=float(made.scales().reshape(-1)[0]),
        a_zero_point=za, b_zero_point=zb, zero_point=int(made.zero_points().reshape(-1)[0]), a_dtype=str(a.dtype), b_dtype=str(b.dtype),
        dtype=made.dtype)  # fmt: skip
    yield Hypothesis("resolver", f"{library}'s formula", _activated(graph, node, kernels.binary(operator, a, b)))


def _averages(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """Averages that count padded places otherwise, or round their quotient otherwise."""
    if node.domain != "tflite":
        include = int(node.attributes.get("count_include_pad", 0))
        other = dataclasses.replace(node, attributes={**node.attributes, "count_include_pad": 1 - include})
        value = compile(layer(graph, other), graph.dialect)(dict(feeds))
        yield Hypothesis("padding", f"padded places are {'not ' if include else ''}counted", np.asarray(value))
        return
    x, made = _array(graph, node.inputs[0], feeds), _quantization(graph, node.outputs[0])
    windows = windows_of(node, x.shape[1:3], node.attributes["kernel_shape"])
    border = [(0, 0), *zip(windows.begin, windows.end, strict=True), (0, 0)]
    ones = np.pad(np.ones((1, *x.shape[1:3], 1), np.int64), border)
    zero = int(made.zero_points().reshape(-1)[0])

    def windowed(values: Array) -> Array:
        view = np.lib.stride_tricks.sliding_window_view(values, windows.kernel, (1, 2))
        return np.asarray(view[:, :: windows.strides[0], :: windows.strides[1]].sum(axis=(-2, -1)))

    inside, whole = windowed(ones), np.int64(windows.kernel[0] * windows.kernel[1])
    for padding in (0, zero):
        total = windowed(np.pad(x.astype(np.int64), border, constant_values=padding))
        value = np.trunc((total + np.where(total > 0, whole // 2, -(whole // 2))) / whole)
        yield Hypothesis(
            "padding", f"padded places count, as {padding}", _activated(graph, node, _stored(value, made.dtype))
        )
    mean = windowed(np.pad(x.astype(np.int64), border)) / inside
    for detail, rounded in (("ties to even", np.rint), ("towards zero", np.trunc), ("downwards", np.floor), ("upwards from halves", lambda v: np.floor(v + 0.5))):  # fmt: skip
        yield Hypothesis("rounding", detail, _activated(graph, node, _stored(rounded(mean), made.dtype)))


def _through_floats(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Iterator[Hypothesis]:
    """DQ, the float operator, and Q by the dialect's formula; then by others, where they give something else."""
    made = _quantization(graph, node.outputs[0])
    operands: list[Array | None] = []
    for name in node.inputs:
        quantization = graph.tensors[name].quantization if name else None
        value = _array(graph, name, feeds) if name else None
        if quantization is not None and value is not None:
            value = numerics.dequantize(
                value, f32(quantization.scales().reshape(-1)[0]), int(quantization.zero_points().reshape(-1)[0])
            )
        operands.append(value)
    real = evaluate_node(dataclasses.replace(node, body=()), operands)[0].astype(f32)
    scale, zero = f32(made.scales().reshape(-1)[0]), int(made.zero_points().reshape(-1)[0])
    formula = "tflite" if node.domain == "tflite" else "onnx"
    plain = kernels.quantize(np.ascontiguousarray(real), scale, zero, made.dtype, formula=formula)
    yield Hypothesis("resolver", "computed in float32 between DQ and Q", plain)
    for one in _quantized(real, made, _ties(graph)):
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
