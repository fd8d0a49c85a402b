"""Every shape of Q, DQ and op that quantizers write, and random graphs of them, as `Builder` programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto
from qdq import Builder

Pattern = Callable[[Builder], None]
PATTERNS: dict[str, Pattern] = {}


def pattern(function: Pattern) -> Pattern:
    PATTERNS[function.__name__] = function
    return function


def on_conv(name: str, last: Callable[[Builder, str], str], **options: Any) -> None:
    """A pattern: image, convolution with `options`, and what `last` puts behind it."""

    def build(b: Builder) -> None:
        b.output(last(b, b.conv(b.image(), **options)))

    PATTERNS[name] = build


def bounds(b: Builder, x: str, low: float, high: float) -> str:
    return b.op("Clip", x, b.constant(np.float32(low)), b.constant(np.float32(high)))


on_conv("conv", lambda b, y: b.pair(y, 0.5, 120))
on_conv("conv without bias", lambda b, y: b.pair(y, 0.5, 120), bias=None)
on_conv("conv with a float bias", lambda b, y: b.pair(y, 0.5, 120), bias="float32")
on_conv("conv with uint8 weights per tensor", lambda b, y: b.pair(y, 0.5, 120), dtype=np.uint8, axis=None)
on_conv("depthwise", lambda b, y: b.pair(y, 0.5, 120), group=4)
on_conv("grouped", lambda b, y: b.pair(y, 0.5, 120), filters=6, group=2)
on_conv("conv to float", lambda b, y: y)
on_conv("conv relu", lambda b, y: b.pair(b.op("Relu", y), 0.5, 0))
on_conv("conv relu beside the zero point", lambda b, y: b.pair(b.op("Relu", y), 0.5, 10))
on_conv("conv clip", lambda b, y: b.pair(bounds(b, y, 0, 6), 6 / 255, 0))
on_conv("conv clip inside the range", lambda b, y: b.pair(bounds(b, y, 0, 6), 7 / 255, 0))
on_conv("conv pair relu", lambda b, y: b.pair(b.op("Relu", b.pair(y, 0.5, 128)), 0.25, 0))
on_conv("uint8 in, int8 out", lambda b, y: b.pair(y, 0.5, 3, np.int8))
on_conv("identity behind", lambda b, y: b.pair(b.op("Identity", y), 0.5, 120))
on_conv("hard swish behind", lambda b, y: b.pair(b.op("HardSwish", y), 0.5, 1))
on_conv("two pairs in a row", lambda b, y: b.pair(b.pair(y, 0.5, 120), 0.4, 100))
on_conv("three pairs in a row", lambda b, y: b.pair(b.pair(b.pair(y, 0.5, 120), 0.4, 100), 0.3, 90))
on_conv("pairs of two types", lambda b, y: b.pair(b.pair(y, 0.5, 120), 0.4, 3, np.int8))
on_conv("same shape between pairs", lambda b, y: b.pair(b.op("Expand", b.pair(y, 0.5, 120), b.integers(1)), 0.4, 100))
on_conv(
    "times one between pairs", lambda b, y: b.pair(b.op("Mul", b.constant(np.float32(1)), b.pair(y, 0.5, 120)), 0.4, 99)
)
on_conv(
    "less one between pairs", lambda b, y: b.pair(b.op("Sub", b.pair(y, 0.5, 120), b.constant(np.float32(1))), 0.4, 99)
)
on_conv(
    "everything between pairs",
    lambda b, y: b.pair(b.op("Slice", b.pair(y, 0.5, 120), b.integers(0), b.integers(2**63 - 1)), 0.4, 99),
)
on_conv("clip then relu", lambda b, y: b.pair(b.op("Relu", bounds(b, b.pair(y, 0.5, 0), 0, 600)), 0.5, 0))
ATTRIBUTES: dict[str, dict[str, Any]] = {"Transpose": {"perm": [0, 2, 3, 1]}, "MaxPool": {"kernel_shape": [2, 2]}}


def moved(b: Builder, op: str, x: str) -> str:
    extra = {"Unsqueeze": [b.integers(4)], "Gather": [b.integers(0, 1)]}.get(op, [])
    return b.op(op, x, *extra, **ATTRIBUTES.get(op, {}))


def around(op: str) -> None:
    """Two patterns: the op between a convolution and its Q, and between a DQ and a function."""

    def before(b: Builder) -> None:
        b.output(b.pair(b.op("Sigmoid", moved(b, op, b.image())), 1 / 256, 0))

    on_conv(f"{op} before Q", lambda b, y: b.pair(moved(b, op, y), 0.5, 120))
    PATTERNS[f"{op} behind DQ"] = before


for _op in ("Flatten", "Transpose", "Unsqueeze", "MaxPool", "Gather"):
    around(_op)


@pattern
def unquantized_weight(b: Builder) -> None:
    weight = b.constant(b.random.normal(size=(4, 4, 3, 3)).astype(np.float32))
    bias = b.constant(b.random.normal(size=4).astype(np.float32))
    b.output(b.pair(b.op("Conv", b.image(), weight, bias, pads=[1] * 4), 0.5, 120))


@pattern
def weight_quantized_in_the_graph(b: Builder) -> None:
    weight = b.pair(b.constant(b.random.normal(size=(4, 4, 3, 3)).astype(np.float32)), 0.02, 0, np.int8)
    b.output(b.pair(b.op("Conv", b.image(), weight, pads=[1] * 4), 0.5, 120))


@pattern
def bias_at_another_scale(b: Builder) -> None:
    weight, scales = b.weight((4, 4, 3, 3), axis=0)
    b.output(b.pair(b.op("Conv", b.image(), weight, b.bias(4, 0.1 * scales), pads=[1] * 4), 0.5, 120))


@pattern
def int8_activations(b: Builder) -> None:
    b.output(b.pair(b.conv(b.image(0, np.int8)), 0.5, 3, np.int8))


@pattern
def int8_input(b: Builder) -> None:
    x = b.dequantize(b.input(["N", 4, 8, 8], TensorProto.INT8), 0.05, 0, np.int8)
    b.output(b.pair(b.conv(x), 0.5, 3, np.int8))


@pattern
def int8_fan_out(b: Builder) -> None:
    x = b.image(0, np.int8)
    y = b.pair(b.conv(x), 0.5, 3, np.int8)
    b.output(b.pair(b.op("Add", x, y), 0.6, -4, np.int8), b.op("Tanh", y))


@pattern
def two_readers(b: Builder) -> None:
    y = b.conv(b.image())
    b.output(b.pair(y, 0.5, 120), b.op("Relu", y))


@pattern
def fan_out_of_a_pair(b: Builder) -> None:
    y = b.pair(b.conv(b.image()), 0.5, 120)
    b.output(b.pair(b.conv(y, scale=0.5), 2.0, 120), b.op("Relu", y))


@pattern
def residual(b: Builder) -> None:
    x = b.image()
    b.output(b.pair(b.op("Add", x, b.pair(b.conv(x), 0.5, 120)), 0.6, 128))


@pattern
def residual_relu(b: Builder) -> None:
    x = b.image()
    b.output(b.pair(b.op("Relu", b.op("Add", x, b.pair(b.conv(x), 0.5, 120))), 0.6, 0))


@pattern
def residual_of_a_bare_conv(b: Builder) -> None:
    x = b.image()
    b.output(b.pair(b.op("Add", x, b.conv(x)), 0.6, 128))


@pattern
def sums_with_constants(b: Builder) -> None:
    x = b.image()
    b.output(b.pair(b.op("Add", x, b.weight((1, 4, 1, 1), np.uint8)[0]), 0.6, 128))
    b.output(b.pair(b.op("Add", x, b.weight((1, 4, 1, 1))[0]), 0.6, 128))
    b.output(b.pair(b.op("Mul", b.dequantize(b.constant(np.array([[[[3]]]], np.int8)), 0.1, 0, np.int8), x), 0.05, 128))
    b.output(b.pair(b.op("Add", x, b.constant(np.ones((1, 4, 1, 1), np.float32))), 0.6, 128))


@pattern
def sums(b: Builder) -> None:
    x = b.image()
    y = b.pair(b.conv(x), 0.5, 120)
    b.output(
        b.pair(b.op("Add", x, x), 0.1, 128), b.pair(b.op("Mul", x, y), 3.0, 127), b.pair(b.op("Sub", x, y), 0.6, 128)
    )


@pattern
def swish(b: Builder) -> None:
    x = b.image()
    b.output(b.pair(b.op("Mul", x, b.pair(b.op("Sigmoid", x), 1 / 255, 0)), 0.05, 20))


@pattern
def functions(b: Builder) -> None:
    x = b.image()
    for op in ("Sigmoid", "LeakyRelu", "Softmax", "HardSwish", "Relu", "GlobalAveragePool", "Abs", "HardSigmoid"):
        b.output(b.pair(b.op(op, x), 0.03, 5))
    b.output(b.pair(b.op("LeakyRelu", x, alpha=0.3), 0.04, 200), b.pair(b.op("Softmax", x, axis=1), 1 / 256, 0))


@pattern
def pools(b: Builder) -> None:
    x = b.image()
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    b.output(b.pair(b.op("AveragePool", x, **window), 0.03, 5), b.pair(b.op("MaxPool", x, **window), 0.05, 128))
    b.output(b.pair(b.op("MaxPool", x, **window), 0.03, 5), b.pair(b.op("GlobalAveragePool", x), 0.01, 127))
    b.output(b.pair(b.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4), 0.05, 129))
    b.output(b.pair(b.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1), 0.05, 129))
    b.output(b.pair(b.op("AveragePool", x, kernel_shape=[8, 8]), 0.01, 3))


@pattern
def joined(b: Builder) -> None:
    x = b.image()
    y = b.pair(b.conv(x), 0.5, 120)
    b.output(b.pair(b.op("Concat", x, y, axis=1), 0.5, 120), b.pair(b.op("Concat", x, x, axis=2), 0.05, 128))
    chosen = b.op("Where", b.constant(np.array([True, False] * 4)), x, b.weight((1, 4, 8, 8), np.uint8)[0])
    b.output(b.pair(chosen, 0.05, 128))


@pattern
def movers(b: Builder) -> None:
    x = b.image()
    ends = (b.integers(0), b.integers(2), b.integers(1))
    values = [b.op("Transpose", x, perm=[0, 2, 3, 1]), b.op("Flatten", x), b.op("Slice", x, *ends),
             b.op("Gather", x, b.integers(0, 1), axis=1), b.op("Tile", x, b.integers(1, 2, 1, 1)),
             b.op("Pad", x, b.integers(0, 0, 1, 1, 0, 0, 1, 1)), b.op("Unsqueeze", x, b.integers(4)),
             b.op("ReduceMax", x, axes=[1]), b.op("Reshape", x, b.integers(0, -1)), *b.ops("Split", x, count=2, axis=1),
             b.op("Resize", x, "", b.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")]  # fmt: skip
    for value in values:
        b.output(b.pair(value, 0.05, 128))
    b.output(b.op("ArgMax", x, axis=1))


@pattern
def transposed_in_between(b: Builder) -> None:
    y = b.conv(b.op("Transpose", b.image(), perm=[0, 1, 3, 2]))
    b.output(b.pair(b.op("Reshape", y, b.integers(0, -1)), 0.5, 120))


@pattern
def pooled_in_between(b: Builder) -> None:
    y = b.op("MaxPool", b.op("Relu", b.conv(b.image())), kernel_shape=[2, 2], strides=[2, 2])
    b.output(b.pair(b.conv(b.pair(y, 0.5, 0), scale=0.5), 2.0, 120))


@pattern
def head(b: Builder) -> None:
    y = b.op("Reshape", b.pair(b.op("GlobalAveragePool", b.image()), 0.02, 128), b.integers(0, -1))
    weight, scales = b.weight((10, 4), axis=0)
    b.output(b.pair(b.op("Gemm", y, weight, b.bias(10, np.float32(0.02) * scales), transB=1), 0.3, 100))


for _kind in ("int32", "float32"):
    for _last in ("Q", "float", "Relu"):

        def _gemm(b: Builder, kind: str = _kind, last: str = _last) -> None:
            weight, scales = b.weight((16, 10), axis=1)
            y = b.op("Gemm", b.matrix(), weight, b.bias(10, np.float32(0.05) * scales, kind))
            b.output(y if last == "float" else b.pair(y if last == "Q" else b.op("Relu", y), 0.5, 0))

        PATTERNS[f"gemm, {_kind} bias, {_last}"] = _gemm


@pattern
def gemm_with_alpha(b: Builder) -> None:
    weight, scales = b.weight((16, 10), axis=1)
    b.output(b.pair(b.op("Gemm", b.matrix(), weight, b.bias(10, np.float32(0.05) * scales), alpha=0.7), 0.5, 128))


@pattern
def matmul(b: Builder) -> None:
    b.output(b.pair(b.op("MatMul", b.matrix(), b.weight((16, 10), axis=1)[0]), 0.5, 128))


@pattern
def matmul_to_float(b: Builder) -> None:
    b.output(b.op("MatMul", b.matrix(), b.weight((16, 10), axis=1)[0]))


@pattern
def matmul_relu_to_float(b: Builder) -> None:
    b.output(b.op("Relu", b.op("MatMul", b.matrix(), b.weight((16, 10), axis=1)[0])))


@pattern
def matmul_int8(b: Builder) -> None:
    b.output(b.pair(b.op("MatMul", b.matrix(16, 0, np.int8), b.weight((16, 10), axis=1)[0]), 0.5, 0, np.int8))


@pattern
def matmul_add(b: Builder) -> None:
    y = b.pair(b.op("MatMul", b.matrix(), b.weight((16, 10), axis=1)[0]), 0.5, 128)
    b.output(b.pair(b.op("Add", y, b.weight((10,), np.uint8)[0]), 0.5, 128))


for _shape, _quantized in ((["N", 16], True), (["N", 16], False), (["N", 5, 16], True), ([2, 5, 16], True)):

    def _matmul_add(b: Builder, shape: list[Any] = _shape, quantized: bool = _quantized) -> None:
        x = b.pair(b.input(shape), 0.05, 128)
        y = b.op("MatMul", x, b.weight((16, 10), axis=1)[0])
        y = b.op("Add", y, b.constant(b.random.normal(size=10).astype(np.float32)))
        b.output(b.pair(y, 0.5, 128) if quantized else y)

    PATTERNS[f"matmul {_shape} and a float sum{', Q' if _quantized else ''}"] = _matmul_add


@pattern
def matmul_of_activations(b: Builder) -> None:
    x, y = b.pair(b.input(["N", 5, 16]), 0.05, 128), b.pair(b.input(["N", 16, 5]), 0.05, 100)
    b.output(b.pair(b.op("MatMul", x, y), 0.5, 128))


@pattern
def without_zero_points(b: Builder) -> None:
    scale, after = b.constant(np.float32(0.05)), b.constant(np.float32(0.5))
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", b.input(["N", 4, 8, 8]), scale), scale)
    for y in (b.conv(x), b.op("Relu", b.conv(x))):
        b.output(b.op("DequantizeLinear", b.op("QuantizeLinear", y, after), after))


@pattern
def equal_nodes(b: Builder) -> None:
    x = b.image()
    y, scale, zero = b.conv(x), b.constant(np.float32(0.5)), b.constant(np.uint8(120))
    for op in ("Relu", "Sigmoid"):
        b.output(b.op(op, b.op("DequantizeLinear", b.op("QuantizeLinear", y, scale, zero), scale, zero)))
    b.output(b.pair(b.op("Tanh", x), 0.5, 120), b.pair(b.op("Tanh", x), 0.3, 120))


@pattern
def second_pair_fans_out(b: Builder) -> None:
    y = b.pair(b.pair(b.input(["N", 4, 8, 8]), 0.5, 120), 0.4, 100)
    b.output(b.op("Relu", y), b.op("Abs", y))


# Patterns whose floats pass exp or tanh: equal to a few ulps, not to the bit.
NEARLY = {"equal_nodes", "int8_fan_out", "functions"}


def random_graph(seed: int) -> Builder:
    """Up to ten random ops, each behind a Q DQ pair three times in four."""
    r = np.random.default_rng(seed + 1)
    b = Builder(seed, opset=int(r.choice([13, 17, 21])))

    def pair(value: str, at_zero: bool = False) -> tuple[str, float]:
        dtype: Any = np.int8 if r.random() < 0.1 else np.uint8
        low = -128 if dtype == np.int8 else 0
        scale = float(r.choice([0.01, 0.02, 0.5, 0.25]))
        return b.pair(value, scale, low if at_zero else int(r.integers(low, low + 256)), dtype), scale

    x = b.input([2, 4, 8, 8])
    values: list[tuple[str, float | None]] = [pair(x)]
    used: set[str] = set()
    for _ in range(int(r.integers(3, 10))):
        value, scale = values[int(r.integers(len(values)))] if r.random() < 0.5 else values[-1]
        other = values[int(r.integers(len(values)))][0]
        used.add(value)
        kind = str(
            r.choice(["Conv", "Conv", "Conv", "Add", "Mul", "Concat", "function", "mover", "AveragePool", "MaxPool"])
        )
        if kind == "Conv":
            made = b.conv(value, kernel=int(r.choice([1, 3])), scale=scale or 0.1, dtype=np.int8 if r.random() < 0.7 else np.uint8,
                          bias=[None, "int32", "float32"][int(r.integers(3))], axis=0 if r.random() < 0.6 else None,
                          group=int(r.choice([1, 1, 4])))  # fmt: skip
        elif kind in {"Add", "Mul"}:
            made, used = b.op(kind, value, other), used | {other}
        elif kind == "Concat":
            joined, used = b.op("Concat", value, other, axis=1), used | {other}
            made = b.op("Slice", joined, b.integers(2), b.integers(6), b.integers(1))
        elif kind == "function":
            op = str(r.choice(["Sigmoid", "LeakyRelu", "Softmax", "Relu", "Relu", "Clip", "Identity", "Abs"]))
            made = bounds(b, value, 0, 6) if op == "Clip" else b.op(op, value)
        elif kind == "mover":
            op = str(r.choice(["Transpose", "Gather", "Unsqueeze"]))
            extra = {"Gather": [b.integers(3, 2, 1, 0)], "Unsqueeze": [b.integers(2)]}
            given: dict[str, Any] = {"Transpose": {"perm": [0, 1, 3, 2]}, "Gather": {"axis": 1}}.get(op, {})
            made = b.op(op, value, *extra.get(op, []), **given)
            made = b.op("Squeeze", made, b.integers(2)) if op == "Unsqueeze" else made
        else:
            made = b.op(kind, value, kernel_shape=[3, 3], pads=[1] * 4)
        made = b.op("Relu", made) if r.random() < 0.3 else made
        values.append(pair(made, bool(r.random() < 0.5)) if r.random() < 0.75 else (made, None))
    for value, _ in values:
        if value not in used:
            b.output(value)
    return b
