"""TFLite models of one operator, drawn at random: shapes, strides, padding, scales and zero points, extremes among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hwq.graph import Array
from hwq.verification import Bound
from hwq.verification.tflite_builder import Builder, options
from hwq.verification.tflite_drawing import RANGES, Draw, Generator, integer, scheme, table
from hwq.verification.tflite_function_models import FUNCTIONS, RATES
from hwq.verification.tflite_movement_models import MOVEMENTS
from hwq.verification.tflite_recurrent_models import long_rows, lstm, svdf

__all__ = ["CASES", "FLOATS", "WIDE"]

ACTIVATIONS = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
WEIGHTS = {"int8": (-127, 128), "int4": (-7, 8), "uint8": (0, 256)}
# The schema's number of int32, for the option that says that int16 layers have int32 biases.
INT32_BIAS = 2


def _filters(b: Builder, rng: Generator, dtype: str, shape: Sequence[int], axis: int) -> tuple[int, Array]:
    """(tensor, scales) of constant weights."""
    if dtype == "float32":
        return b.tensor(dtype, shape, rng.standard_normal(shape)), np.ones(1, np.float32)
    count = shape[axis] if dtype != "uint8" and rng.random() < 0.6 else 1
    scales = (2.0 ** -rng.integers(4, 10, count) if rng.random() < 0.3 else np.exp(rng.uniform(-9, -2, count))).astype(
        np.float32
    )
    if rng.random() < 0.1:
        scales[:] = scales[0]  # hybrid convolutions take equal scales for one
    zero = integer(rng, 0, 256) if dtype == "uint8" else 0
    return b.tensor(dtype, shape, rng.integers(*WEIGHTS[dtype], shape), scales, zero, axis), scales


def _bias(b: Builder, rng: Generator, dtype: str, count: int, scales: Array) -> int:
    if dtype == "float32":
        return b.tensor(dtype, [count], rng.standard_normal(count))
    return b.tensor(dtype, [count], rng.integers(-20000, 20000, count), scales)


def _result(b: Builder, rng: Generator, dtype: str, shape: Sequence[int], scale: float, depth: int) -> int:
    """A product's result, whose scale lets most sums stay within the type."""
    if dtype == "float32":
        return b.tensor(dtype, shape)
    spread = scale * np.sqrt(depth) * rng.uniform(5, 80) / (10 if dtype == "int16" else 1)
    return b.tensor(dtype, shape, scale=spread, zero=scheme(rng, dtype).get("zero", 0))


def _space(rng: Generator, padding: str, kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    sizes = [integer(rng, 1, 18) for _ in range(2)]
    if padding == "SAME":
        return sizes
    return [max(size, (taps - 1) * step + 1) for size, taps, step in zip(sizes, kernel, dilations, strict=True)]


def _counts(
    padding: str, space: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int] = (1, 1)
) -> list[int]:
    if padding == "SAME":
        return [-(-size // stride) for size, stride in zip(space, strides, strict=True)]
    return [
        (size - (taps - 1) * step - 1) // stride + 1
        for size, taps, stride, step in zip(space, kernel, strides, dilations, strict=True)
    ]


def _convolution(rng: Generator, dtype: str, weight: str, bias: str, deep: bool = False) -> bytes:
    b = Builder()
    padding = str(rng.choice(["SAME", "VALID"]))
    kernel, strides = ([integer(rng, 1, high) for _ in range(2)] for high in (8 if rng.random() < 0.2 else 5, 4))
    dilations = [integer(rng, 1, 3) for _ in range(2)] if rng.random() < 0.3 else [1, 1]
    space = _space(rng, padding, kernel, dilations)
    groups, deep_like = integer(rng, 1, 20) if deep else int(rng.choice([1, 1, 1, 2])), False
    if not deep and dtype == "float32" and weight == "float32" and rng.random() < 0.2:
        deep_like, groups = True, integer(rng, 1, 20)
    channels = groups * (1 if deep or deep_like else integer(rng, 1, 20))
    filters = groups * integer(rng, 1, 4 if deep or deep_like else 24)
    shape = [1, *kernel, filters] if deep else [filters, *kernel, channels // groups]
    given = scheme(rng, dtype)
    x = b.tensor(dtype, [integer(rng, 1, 4), *space, channels], **given)
    w, scales = _filters(b, rng, weight, shape, 3 if deep else 0)
    step = given.get("scale", np.float32(1)) * scales
    inputs = [x, w, _bias(b, rng, bias, filters, step)]
    counts = _counts(padding, space, kernel, strides, dilations)
    depth = kernel[0] * kernel[1] * (1 if deep else channels // groups)
    batch = b.graph.tensors[x].shape[0]
    y = _result(b, rng, dtype, [batch, *counts, filters], float(step.mean()), depth)
    common = dict(
        padding=padding, strideH=strides[0], strideW=strides[1], dilationHFactor=dilations[0],
        dilationWFactor=dilations[1], fusedActivationFunction=str(rng.choice(ACTIVATIONS)),
    )  # fmt: skip
    if deep:
        b.operator(
            "DEPTHWISE_CONV_2D", inputs, [y], options("DepthwiseConv2D", depthMultiplier=filters // channels, **common)
        )
    else:
        made = options("Conv2D", **common)
        made.quantizedBiasType = INT32_BIAS if dtype == "int16" and bias == "int32" else 0
        b.operator("CONV_2D", inputs, [y], made)
    return b.finish([x], [y])


def _transposed(rng: Generator, dtype: str, weight: str, bias: str, beyond: bool = False) -> bytes:
    """`beyond`: the stride exceeds the filter; of floats otherwise not with SAME padding."""
    b = Builder()
    padding = "SAME" if beyond else str(rng.choice(["SAME", "VALID"]))
    kernel, strides, space = ([integer(rng, 1, high) for _ in range(2)] for high in (5, 5, 9))
    if beyond:
        strides[0] = kernel[0] + integer(rng, 1, 3)
    elif dtype == "float32" and padding == "SAME":
        strides = [min(pair) for pair in zip(strides, kernel, strict=True)]
    batch, channels, filters = integer(rng, 1, 3), integer(rng, 1, 12), integer(rng, 1, 12)
    target = [
        size * stride if padding == "SAME" else (size - 1) * stride + taps
        for size, stride, taps in zip(space, strides, kernel, strict=True)
    ]
    given = scheme(rng, dtype)
    x = b.tensor(dtype, [batch, *space, channels], **given)
    w, scales = _filters(b, rng, weight, [filters, *kernel, channels], 0)
    step = given.get("scale", np.float32(1)) * scales
    y = _result(b, rng, dtype, [batch, *target, filters], float(step.mean()), channels * kernel[0])
    inputs = [b.constant([batch, *target, filters]), w, x, _bias(b, rng, bias, filters, step)]
    made = options("TransposeConv", padding=padding, strideH=strides[0], strideW=strides[1])
    made.quantizedBiasType = INT32_BIAS if dtype == "int16" and bias == "int32" else 0
    b.operator("TRANSPOSE_CONV", inputs, [y], made)
    return b.finish([x], [y])


def _fully_connected(rng: Generator, dtype: str, weight: str, bias: str) -> bytes:
    b = Builder()
    rows, depth, outputs = integer(rng, 1, 30), integer(rng, 1, 300), integer(rng, 1, 60)
    given = scheme(rng, dtype)
    x = b.tensor(dtype, [rows, depth], **given)
    w, scales = _filters(b, rng, weight, [outputs, depth], 0)
    step = given.get("scale", np.float32(1)) * scales
    inputs = [x, w, *([_bias(b, rng, bias, outputs, step)] if rng.random() < 0.8 else [])]
    y = _result(b, rng, dtype, [rows, outputs], float(step.mean()), depth)
    made = options("FullyConnected", fusedActivationFunction=str(rng.choice(ACTIVATIONS)))
    made.quantizedBiasType = INT32_BIAS if dtype == "int16" and bias == "int32" else 0
    b.operator("FULLY_CONNECTED", inputs, [y], made)
    return b.finish([x], [y])


def _long_rows(rng: Generator) -> bytes:
    """FULLY_CONNECTED of floats quantized over their range, whose weights may all lie at one end of theirs: their sums wrap."""
    b = Builder()
    rows, depth, outputs = integer(rng, 1, 6), integer(rng, 1, 6000), integer(rng, 1, 60)
    ends = np.where(rng.random((outputs, 1)) < 0.5, rng.choice([-127, 127], (outputs, 1)), 0)
    x = b.tensor("float32", [rows, depth])
    weights = np.where(ends, ends, rng.integers(-127, 128, (outputs, depth)))
    scales = np.exp(rng.uniform(-9, -2, outputs if rng.random() < 0.5 else 1))
    w, y = b.tensor("int8", [outputs, depth], weights, scales), b.tensor("float32", [rows, outputs])
    b.operator("FULLY_CONNECTED", [x, w], [y], options("FullyConnected", asymmetricQuantizeInputs=True))
    return b.finish([x], [y])


def _matrices(rng: Generator, dtype: str) -> bytes:
    b = Builder()
    batch, rows, depth, columns = (integer(rng, 1, high) for high in (5, 20, 40, 20))
    first, second = (bool(rng.random() < 0.4) for _ in range(2))
    left, right = scheme(rng, dtype), scheme(rng, dtype)
    if right and rng.random() < 0.5:
        right["zero"] = 0
    x = b.tensor(dtype, [batch, depth, rows] if first else [batch, rows, depth], **left)
    lead = 1 if rng.random() < 0.3 else batch
    w = b.tensor(dtype, [lead, columns, depth] if second else [lead, depth, columns], **right)
    scale = float(left.get("scale", 1) * right.get("scale", 1)) * float(rng.uniform(20, 400))
    y = b.tensor(
        dtype, [batch, rows, columns], **({} if dtype == "float32" else {**scheme(rng, dtype), "scale": scale})
    )
    b.operator("BATCH_MATMUL", [x, w], [y], options("BatchMatMul", adjX=first, adjY=second))
    return b.finish([x, w], [y])


def _arithmetic(rng: Generator, name: str, dtype: str) -> bytes:
    b = Builder()
    shape = [integer(rng, 1, 9) for _ in range(integer(rng, 2, 5))]
    other = list(shape)
    if rng.random() < 0.5:
        other = [1 if rng.random() < 0.5 else size for size in shape][integer(rng, 0, len(shape)) :]
    shapes = [shape, other] if rng.random() < 0.7 else [other, shape]
    x, y = (b.tensor(dtype, one, **scheme(rng, dtype)) for one in shapes)
    result = scheme(rng, dtype)
    if name == "Mul" and result and rng.random() < 0.2:
        result["scale"] = np.float32(result["scale"] / 1000)
    made = b.tensor(dtype, shape, **result)
    given = {} if name == "Mul" else {"potScaleInt16": False}
    b.operator(
        name.upper(), [x, y], [made], options(name, fusedActivationFunction=str(rng.choice(ACTIVATIONS)), **given)
    )
    return b.finish([x, y], [made])


# Operators whose result has a prescribed quantization, by type.
_PRESCRIBED: Mapping[str, Mapping[str, tuple[float, int]]] = {
    "LOGISTIC": {"int8": (1 / 256, -128), "uint8": (1 / 256, 0), "int16": (1 / 32768, 0)},
    "TANH": {"int8": (1 / 128, 0), "uint8": (1 / 128, 128), "int16": (1 / 32768, 0)},
    "SOFTMAX": {"int8": (1 / 256, -128), "uint8": (1 / 256, 0), "int16": (1 / 32768, 0)},
}


def _unary(rng: Generator, op: str, dtype: str) -> bytes:
    b = Builder()
    reduces = op in {"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"}
    shape = [integer(rng, 1, 24 if reduces else 12) for _ in range(integer(rng, 1, 5))]
    given, made = scheme(rng, dtype), scheme(rng, dtype)
    out, extra, option = shape, [], None
    if op == "GELU":
        option = options("Gelu", approximate=bool(rng.random() < 0.5))
    if op in _PRESCRIBED and dtype != "float32":
        scale, zero = _PRESCRIBED[op][dtype]
        made = {"scale": scale, "zero": zero}
        if dtype == "int16" and rng.random() < 0.5:
            given = {"scale": 2.0**-12, "zero": 0}
    if op == "SOFTMAX":
        if dtype == "int16" and rng.random() < 0.2:
            given["scale"] = np.float32(10.0 ** rng.uniform(3, 38))
        option = options("Softmax", beta=float(rng.choice([1.0, rng.uniform(0.1, 3)])))
    elif op == "LEAKY_RELU":
        option = options("LeakyRelu", alpha=float(rng.uniform(0.01, 1.5)))
    elif op == "HARD_SWISH":
        made = made and {**made, "scale": given["scale"] * rng.uniform(0.3, 1.0)}
        option = options("HardSwish")
    elif reduces:
        axes = sorted(int(axis) for axis in rng.choice(len(shape), integer(rng, 1, len(shape) + 1), replace=False))
        keep = bool(rng.random() < 0.5)
        out = [1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes]
        made = given if op.startswith("REDUCE") else made
        extra, option = [b.constant(axes)], options("Reducer", keepDims=keep)
    x, y = b.tensor(dtype, shape, **given), b.tensor(dtype, out, **made)
    b.operator(op, [x, *extra], [y], option)
    return b.finish([x], [y])


def _mean(rng: Generator, op: str, last: bool) -> bytes:
    """MEAN or SUM of floats over axes with the last or without it."""
    b = Builder()
    shape = [integer(rng, 1, 12) for _ in range(integer(rng, 2, 5))]
    if rng.random() < 0.4:
        shape[-1] = integer(rng, 1, 200)
    count = len(shape) - 1
    axes = [int(axis) for axis in rng.choice(count, integer(rng, 0 if last else 1, count + 1), replace=False)]
    axes, keep = sorted([*axes, count] if last else axes), bool(rng.random() < 0.5)
    out = [1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes]
    x, y = b.tensor("float32", shape), b.tensor("float32", out)
    b.operator(op, [x, b.constant(axes)], [y], options("Reducer", keepDims=keep))
    return b.finish([x], [y])


def _prelu(rng: Generator, dtype: str) -> bytes:
    b = Builder()
    shape = [integer(rng, 1, 12) for _ in range(integer(rng, 1, 5))]
    x, y = (b.tensor(dtype, shape, **scheme(rng, dtype)) for _ in range(2))
    slopes = b.tensor(dtype, shape[-1:], rng.integers(*RANGES[dtype], shape[-1:]), **scheme(rng, dtype))
    b.operator("PRELU", [x, slopes], [y])
    return b.finish([x], [y])


def _quantize(rng: Generator, dtype: str, to: str) -> bytes:
    b = Builder()
    shape = [integer(rng, 1, 40) for _ in range(2)]
    x, y = b.tensor(dtype, shape, **scheme(rng, dtype)), b.tensor(to, shape, **scheme(rng, to))
    b.operator("DEQUANTIZE" if to == "float32" else "QUANTIZE", [x], [y])
    return b.finish([x], [y])


def _pool(rng: Generator, op: str, dtype: str) -> bytes:
    b = Builder()
    padding = str(rng.choice(["SAME", "VALID"]))
    kernel, strides = ([integer(rng, 1, 5) for _ in range(2)] for _ in range(2))
    space = _space(rng, padding, kernel, (1, 1))
    batch, channels, given = integer(rng, 1, 3), integer(rng, 1, 24), scheme(rng, dtype)
    x = b.tensor(dtype, [batch, *space, channels], **given)
    y = b.tensor(dtype, [batch, *_counts(padding, space, kernel, strides), channels], **given)
    made = options(
        "Pool2D", padding=padding, strideH=strides[0], strideW=strides[1], filterHeight=kernel[0], filterWidth=kernel[1],
        fusedActivationFunction=str(rng.choice(ACTIVATIONS)),
    )  # fmt: skip
    b.operator(op, [x], [y], made)
    return b.finish([x], [y])


def _resize(rng: Generator, op: str, name: str, dtype: str) -> bytes:
    b = Builder()
    batch, height, width, channels, tall, wide = (integer(rng, 1, high) for high in (3, 12, 12, 9, 20, 20))
    given, mode = scheme(rng, dtype), integer(rng, 0, 3)
    x, y = (b.tensor(dtype, [batch, *size, channels], **given) for size in ((height, width), (tall, wide)))
    b.operator(
        op, [x, b.constant([tall, wide])], [y], options(name, alignCorners=mode == 1, halfPixelCenters=mode == 2)
    )
    return b.finish([x], [y])


_INTEGERS = ("int8", "uint8", "int16")
# One kind of model a line: every value must be the runtime's.
CASES: Mapping[str, Draw] = {**FUNCTIONS, **MOVEMENTS, **table([
    *((f"CONV_2D {x} x {w}, {b} bias", _convolution, (x, w, b)) for x, w, b in (
        ("int8", "int8", "int32"), ("uint8", "uint8", "int32"), ("int8", "int4", "int32"), ("int16", "int8", "int64"),
        ("int16", "int8", "int32"), ("float32", "int8", "float32"), ("float32", "int4", "float32"), ("float32", "float32", "float32"))),
    *((f"DEPTHWISE_CONV_2D {x} x {w}", _convolution, (x, w, b, True)) for x, w, b in (
        ("int8", "int8", "int32"), ("uint8", "uint8", "int32"), ("int16", "int8", "int64"),
        ("float32", "int8", "float32"), ("float32", "float32", "float32"))),
    *((f"TRANSPOSE_CONV {x} x {w}, {b} bias", _transposed, (x, w, b)) for x, w, b in (
        ("int8", "int8", "int32"), ("uint8", "uint8", "int32"), ("int16", "int8", "int64"), ("int16", "int8", "int32"),
        ("float32", "float32", "float32"))),
    *((f"{op} float32", _mean, (op, False)) for op in ("MEAN", "SUM")),
    *((f"FULLY_CONNECTED {x} x {w}, {b} bias", _fully_connected, (x, w, b)) for x, w, b in (
        ("int8", "int8", "int32"), ("uint8", "uint8", "int32"), ("int8", "int4", "int32"), ("int16", "int8", "int64"),
        ("int16", "int8", "int32"), ("float32", "int8", "float32"), ("float32", "int4", "float32"),
        ("float32", "float32", "float32"))),
    ("FULLY_CONNECTED float32 x int8, asymmetric, long", _long_rows, ()),
    *((f"BATCH_MATMUL {dtype}", _matrices, (dtype,)) for dtype in ("int8", "int16", "float32")),
    *((f"{name.upper()} {dtype}", _arithmetic, (name, dtype)) for name in ("Add", "Sub", "Mul") for dtype in (*_INTEGERS, "float32")),
    *((f"{op} {dtype}", _unary, (op, dtype)) for op in ("LOGISTIC", "TANH", "SOFTMAX", "LEAKY_RELU", "MEAN", "RELU", "RELU6",
                                                       "REDUCE_MAX", "REDUCE_MIN") for dtype in _INTEGERS),
    *((f"HARD_SWISH {dtype}", _unary, ("HARD_SWISH", dtype)) for dtype in ("int8", "uint8", "float32")),
    ("SUM uint8", _unary, ("SUM", "uint8")), ("SUM int8", _unary, ("SUM", "int8")),
    *((f"{op} float32", _unary, (op, "float32")) for op in ("LEAKY_RELU", "RELU", "RELU6", "REDUCE_MAX")),
    *((f"QUANTIZE {x} to {y}", _quantize, (x, y)) for x, y in (
        ("float32", "int8"), ("float32", "uint8"), ("float32", "int16"), ("int8", "int8"), ("uint8", "uint8"), ("int8", "uint8"),
        ("uint8", "int8"), ("int16", "int16"), ("int16", "int8"), ("int8", "int16"))),
    *((f"DEQUANTIZE {dtype}", _quantize, (dtype, "float32")) for dtype in _INTEGERS),
    *((f"{op} {dtype}", _pool, (op, dtype)) for op in ("AVERAGE_POOL_2D", "MAX_POOL_2D") for dtype in (*_INTEGERS, "float32")),
    *((f"{op} {dtype}", _resize, (op, name, dtype)) for op, name in (
        ("RESIZE_BILINEAR", "ResizeBilinear"), ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor"))
      for dtype in (*_INTEGERS, *(["float32"] if op == "RESIZE_BILINEAR" else []))),
    ("PRELU int8", _prelu, ("int8",)), ("PRELU uint8", _prelu, ("uint8",)),
    *((f"SVDF {x} x {w}", svdf, (x, w)) for x, w in (("int8", "int8"), ("float32", "int8"), ("float32", "float32"))),
    *((f"LSTM {x} x {w}", lstm, (x, w)) for x, w in (("int8", "int8"), ("float32", "int8"))),
    *((f"{op} float32 x int8, asymmetric, long", long_rows, (op,)) for op in ("SVDF", "LSTM")),
    ("LSTM float32", lstm, ("float32", "float32", False)),
])}  # fmt: skip

# Sums in an order that is the runtime's own, functions by its own polynomials: how many values may differ, how far; a
# dialect that is not named has the runtime's bits.
FLOATS: Mapping[str, tuple[Draw, Mapping[str, Bound]]] = {
    **RATES,
    "TRANSPOSE_CONV float32, SAME, stride beyond the filter": (
        lambda rng: _transposed(rng, "float32", "float32", "float32", True), {"litert-xnnpack": Bound(0.05, 4)}),
    "LSTM float32, time first": (
        lambda rng: lstm(rng, "float32", "float32", True), dict.fromkeys(("litert-ref", "litert-xnnpack"), Bound(0.2, 64))),
    "SOFTMAX float32": (lambda rng: _unary(rng, "SOFTMAX", "float32"), {"litert-ref": Bound(0.01, 1), "litert-xnnpack": Bound(0.7, 8)}),
    "LOGISTIC float32": (lambda rng: _unary(rng, "LOGISTIC", "float32"), {"litert-ref": Bound(0.01, 1), "litert-xnnpack": Bound(0.6, 4)}),
    "TANH float32": (lambda rng: _unary(rng, "TANH", "float32"), {"litert-ref": Bound(0.2, 4), "litert-xnnpack": Bound(0.7, 8)}),
    "EXP float32": (lambda rng: _unary(rng, "EXP", "float32"), {"litert-ref": Bound(0.01, 1), "litert-xnnpack": Bound(0.7, 16)}),
    "GELU float32": (lambda rng: _unary(rng, "GELU", "float32"), {"litert-ref": Bound(0.6, 8), "litert-xnnpack": Bound(0.6, 8)}),
}  # fmt: skip
# The default interpreter's order where the CPU has AVX-512; without it these kinds have the runtime's bits.
WIDE: Mapping[str, tuple[Draw, Mapping[str, Bound]]] = {
    f"{op} float32 over the last axis": (table([("", _mean, (op, True))])[""], {"litert-xnnpack": Bound(0.3, 128)})
    for op in ("MEAN", "SUM")
}
