"""One-op ONNX models, QDQ and QOperator, random and on ties: what the ONNX dialects are verified with.

Only onnx and NumPy are used: models and inputs know nothing of hwq's arithmetic. A case draws shapes, scales, zero points
and data from the generator that it is given; with `ties` every scale is a power of two, so that quotients and rescaled
accumulators fall on halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.verification import Bound
from hwq.verification import float_models as floats
from hwq.verification.onnx_builder import OWN, Builder
from hwq.verification.recurrent_models import integer_lstm, lstm

__all__ = ["BOUNDS", "CASES", "RATES", "VECTORS", "Draw"]

Array = NDArray[Any]

Draw = Callable[[Builder], str]


def _accumulator_scale(builder: Builder, depth: int) -> np.float32:
    # On ties an accumulator is rescaled by 1/8 to 1/2 (scales of 0.5 and of 0.5 to 2 over one of 2).
    if builder.ties:
        return np.float32(2 / 16)
    # Products of full-range bytes have a deviation of about 74 * 74 * sqrt(depth) steps: 40 to 200 outputs steps of that.
    return builder.scale(2.0 * np.sqrt(depth), 8.0 * np.sqrt(depth))


def _quantize(dtype: str) -> Draw:
    def draw(b: Builder) -> str:
        scale = b.scale()
        info = np.iinfo(dtype)
        spread = float(scale) * (int(info.max) - int(info.min))
        x = b.rng.uniform(-spread, spread, 16384).astype(np.float32)
        if b.ties:
            x = ((b.rng.integers(info.min, info.max + 1, 16384) + 0.5) * float(scale)).astype(np.float32)
        return b.quantized(b.feed(x), scale, b.point(dtype))

    return draw


def _dequantize(dtype: str) -> Draw:
    def draw(b: Builder) -> str:
        return b.dequantized(b.feed(b.stored((16384,), dtype)), b.scale(), b.point(dtype))

    return draw


def _dynamic(b: Builder) -> str:
    x = (b.rng.standard_normal(16384) * 10.0 ** b.rng.uniform(-3, 3)).astype(np.float32)
    if b.ties:
        x = (b.rng.integers(-128, 128, 16384) / 2).astype(np.float32)
        x[:2] = -64, 191  # 255 steps of 1
    return b.add("DynamicQuantizeLinear", b.feed(x), outputs=3)


def _product_operands(b: Builder, m: int, k: int, n: int, a: str = "uint8", w: str = "int8", constant: bool = True):  # type: ignore[no-untyped-def]
    left = b.feed(b.operand((m, k), a))
    right = b.operand((k, n), w)
    return left, b.constant(right) if constant else b.feed(right)


def _qlinear_matmul(a: str, w: str, constant: bool = True, channel: bool = True) -> Draw:
    def draw(b: Builder) -> str:
        m, k, n = 96, int(b.rng.integers(1, 200)), int(b.rng.integers(1, 64))
        left, right = _product_operands(b, m, k, n, a, w, constant)
        per_column = b.scales(n, 0.5, 2.0) if channel else b.scale(0.5, 2.0)
        points = np.zeros(n if channel else (), w)
        scale = b.constant(_accumulator_scale(b, k) * np.float32(16))
        return b.add("QLinearMatMul", left, b.constant(np.float32(0.5)), b.constant(b.operand_point(a)), right, b.constant(per_column),
                     b.constant(points), scale, b.constant(b.point(a)))  # fmt: skip

    return draw


def _matmul_qdq(dynamic: bool) -> Draw:
    def draw(b: Builder) -> str:
        m, k, n = 96, int(b.rng.integers(1, 200)), int(b.rng.integers(1, 64))
        x = b.feed(b.operand((m, k), "uint8"))
        w = b.operand((k, n), "uint8" if dynamic else "int8")
        given = b.feed(w) if dynamic else b.constant(w)
        left = b.dequantized(x, np.float32(0.5), b.operand_point())
        if dynamic:
            right = b.dequantized(given, b.scale(0.5, 2.0), b.operand_point())
        else:
            right = b.dequantized(given, b.scales(n, 0.5, 2.0), np.zeros(n, np.int8), axis=1)
        return b.quantized(b.add("MatMul", left, right), _accumulator_scale(b, k) * np.float32(16), b.point())

    return draw


def _qgemm(b: Builder) -> str:
    m, k, n = 64, int(b.rng.integers(1, 200)), int(b.rng.integers(1, 64))
    left, right = _product_operands(b, m, k, n)
    bias = b.constant(b.bias(n))
    return b.add("QGemm", left, b.constant(np.float32(0.5)), b.constant(b.operand_point()), right, b.constant(b.scales(n, 0.5, 2.0)),
                 b.constant(np.zeros(n, np.int8)), bias, b.constant(_accumulator_scale(b, k) * np.float32(16)),
                 b.constant(b.point()), domain=OWN, transA=0, transB=0, alpha=1.0)  # fmt: skip


def _qgemm_to_floats(b: Builder) -> str:
    """No scale of the result: the accumulators, an int32 bias among them, times the operands' scales."""
    m, k, n = 64, int(b.rng.integers(1, 200)), int(b.rng.integers(1, 64))
    left, right = _product_operands(b, m, k, n)
    inputs = [
        left,
        b.constant(b.scale()),
        b.constant(b.operand_point()),
        right,
        b.constant(b.scales(n)),
        b.constant(np.zeros(n, np.int8)),
    ]
    bias = [b.constant(b.bias(n))] if b.rng.integers(0, 2) else []
    return b.add("QGemm", *inputs, *bias, domain=OWN, transA=0, transB=0, alpha=float(b.rng.choice([1, 0.7])))


def _gemm_qdq(b: Builder) -> str:
    m, k, n = 64, int(b.rng.integers(1, 200)), int(b.rng.integers(1, 64))
    scales = b.scales(n, 0.5, 2.0)
    left = b.dequantized(b.feed(b.operand((m, k))), np.float32(0.5), b.operand_point())
    right = b.dequantized(b.constant(b.operand((n, k), "int8")), scales, np.zeros(n, np.int8), axis=0)
    bias_scale = (np.float32(0.5) * scales).astype(np.float32)
    bias = b.dequantized(b.constant(b.bias(n)), bias_scale, np.zeros(n, np.int32), axis=0)
    return b.quantized(b.add("Gemm", left, right, bias, transB=1), _accumulator_scale(b, k) * np.float32(16), b.point())


def _conv_shape(b: Builder) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    kind = int(b.rng.integers(0, 5))
    if kind == 0:  # depthwise
        channels = int(b.rng.integers(2, 20))
        return (2, channels, 14, 14), (channels, 1, 3, 3), {"group": channels, "pads": [1, 1, 1, 1]}
    if kind == 1:  # pointwise
        return (2, int(b.rng.integers(1, 40)), 12, 12), (int(b.rng.integers(1, 40)), 0, 1, 1), {}
    if kind == 2:  # groups
        return (1, 12, 12, 12), (18, 4, 3, 3), {"group": 3, "pads": [1, 0, 1, 2]}
    if kind == 3:  # strided, dilated
        return (
            (1, int(b.rng.integers(1, 9)), 21, 19),
            (16, 0, 3, 2),
            {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 1, 1, 1]},
        )
    return (1, int(b.rng.integers(1, 20)), 15, 15), (int(b.rng.integers(1, 40)), 0, 3, 3), {"pads": [1, 1, 1, 1]}


def _conv_parts(b: Builder) -> tuple[Array, Array, dict[str, Any], int]:
    image, filters, attributes = _conv_shape(b)
    filters = (filters[0], filters[1] or image[1], *filters[2:])
    return b.operand(image), b.operand(filters, "int8"), attributes, int(np.prod(filters[1:]))


def _qlinear_conv(b: Builder) -> str:
    x, w, attributes, depth = _conv_parts(b)
    n = w.shape[0]
    inputs = [b.feed(x), b.constant(np.float32(0.5)), b.constant(b.operand_point()), b.constant(w), b.constant(b.scales(n, 0.5, 2.0)),
              b.constant(np.zeros(n, np.int8)), b.constant(_accumulator_scale(b, depth) * np.float32(16)), b.constant(b.point())]  # fmt: skip
    if b.rng.integers(0, 2):
        inputs.append(b.constant(b.bias(n)))
    return b.add("QLinearConv", *inputs, **attributes)


def _conv_qdq(b: Builder) -> str:
    x, w, attributes, depth = _conv_parts(b)
    n = w.shape[0]
    scales = b.scales(n, 0.5, 2.0)
    inputs = [
        b.dequantized(b.feed(x), np.float32(0.5), b.operand_point()),
        b.dequantized(b.constant(w), scales, np.zeros(n, np.int8), axis=0),
    ]
    bias_scale = (np.float32(0.5) * scales).astype(np.float32)
    inputs.append(b.dequantized(b.constant(b.bias(n)), bias_scale, np.zeros(n, np.int32), axis=0))
    return b.quantized(b.add("Conv", *inputs, **attributes), _accumulator_scale(b, depth) * np.float32(16), b.point())


def _float_conv(b: Builder) -> str:
    """A convolution that keeps its float weights: nothing around it is fused."""
    x, w, attributes, _ = _conv_parts(b)
    filters = b.constant(b.rng.standard_normal(w.shape).astype(np.float32))
    bias = [b.constant(b.rng.standard_normal(len(w)).astype(np.float32))] if b.rng.integers(0, 2) else []
    return b.add("Conv", b.dequantized(b.feed(x), b.scale(), b.point()), filters, *bias, **attributes)


def _conv_integer(a: str, w: str) -> Draw:
    def draw(b: Builder) -> str:
        x, filters, attributes, _ = _conv_parts(b)
        point = b.point(a)
        return b.add(
            "ConvInteger",
            b.feed(b.operand(x.shape, a)),
            b.constant(b.operand(filters.shape, w)),
            b.constant(point),
            **attributes,
        )

    return draw


def _matmul_integer(a: str, w: str) -> Draw:
    def draw(b: Builder) -> str:
        left, right = _product_operands(
            b, 96, int(b.rng.integers(1, 200)), int(b.rng.integers(1, 64)), a, w, bool(b.rng.integers(0, 2))
        )
        return b.add("MatMulInteger", left, right, b.constant(b.point(a)), b.constant(b.point(w)))

    return draw


def _matmul_integer_to_float(b: Builder) -> str:
    n, k = int(b.rng.integers(1, 64)), int(b.rng.integers(1, 200))
    left, right = _product_operands(b, 96, k, n)
    return b.add("MatMulIntegerToFloat", left, right, b.constant(b.scale()), b.constant(b.scales(n)), b.constant(b.point()),
                 b.constant(np.zeros(n, np.int8)), b.constant(b.rng.standard_normal(n).astype(np.float32)), domain=OWN)  # fmt: skip


def _dynamic_quantize_matmul(b: Builder) -> str:
    n, k = int(b.rng.integers(1, 64)), int(b.rng.integers(1, 200))
    x = (b.rng.integers(-64, 65, (96, k)) / 2 if b.ties else b.rng.standard_normal((96, k)) * 3).astype(np.float32)
    return b.add("DynamicQuantizeMatMul", b.feed(x), b.constant(b.operand((k, n), "int8")), b.constant(b.scales(n)),
                 b.constant(np.zeros(n, np.int8)), b.constant(b.rng.standard_normal(n).astype(np.float32)), domain=OWN)  # fmt: skip


def _binary(op: str, qdq: bool, dtype: str = "uint8") -> Draw:
    def draw(b: Builder) -> str:
        shape = (64, 256)
        first, second = b.feed(b.stored(shape, dtype)), b.feed(b.stored(shape, dtype))
        pairs = [(b.scale(), b.point(dtype)) for _ in range(2)]
        made = (b.scale(), b.point(dtype)) if op == "Add" else (b.scale(0.05, 2.0), b.point(dtype))
        if qdq:
            return b.quantized(b.add(op, b.dequantized(first, *pairs[0]), b.dequantized(second, *pairs[1])), *made)
        inputs = [
            name for value, pair in zip((first, second), pairs, strict=True) for name in (value, *map(b.constant, pair))
        ]
        return b.add(f"QLinear{op}", *inputs, *map(b.constant, made), domain=OWN)

    return draw


def _unary(op: str, qdq: bool, shape: tuple[int, ...], dtype: str = "uint8", **attributes: Any) -> Draw:
    def draw(b: Builder) -> str:
        x, pair = b.feed(b.stored(shape, dtype)), (b.scale(), b.point(dtype))
        low, high = (0.002, 0.006) if op in {"Sigmoid", "Softmax"} else (0.004, 0.08)
        made = (b.scale(low, high), b.point(dtype))
        if op == "Softmax":
            made = (np.float32(2.0**-8 if b.ties else 1 / 255), np.zeros((), dtype))
        if qdq:
            return b.quantized(b.add(op, b.dequantized(x, *pair), **attributes), *made)
        own = {**attributes, **({"opset": 13} if op == "Softmax" else {})}
        return b.add(f"QLinear{op}", x, *map(b.constant, pair), *map(b.constant, made), domain=OWN, **own)

    return draw


def _concat(qdq: bool) -> Draw:
    def draw(b: Builder) -> str:
        parts = [b.feed(b.stored((32, 128))) for _ in range(3)]
        pairs = [(b.scale(), b.point()) for _ in parts]
        made = (b.scale(), b.point())
        if qdq:
            real = [b.dequantized(part, *pair) for part, pair in zip(parts, pairs, strict=True)]
            return b.quantized(b.add("Concat", *real, axis=1), *made)
        inputs = [name for part, pair in zip(parts, pairs, strict=True) for name in (part, *map(b.constant, pair))]
        return b.add("QLinearConcat", *map(b.constant, made), *inputs, domain=OWN, axis=1)

    return draw


def _where(b: Builder) -> str:
    condition = b.constant(b.rng.integers(0, 2, (64, 256)).astype(bool))
    inputs = [
        name for _ in range(2) for name in (b.feed(b.stored((64, 256))), b.constant(b.scale()), b.constant(b.point()))
    ]
    return b.add("QLinearWhere", condition, *inputs, b.constant(b.scale()), b.constant(b.point()), domain=OWN)


def _overridable(draw: Draw) -> Draw:
    """The same model, whose initializers are inputs too: a caller may replace them, so onnxruntime takes none for a constant."""

    def drawn(b: Builder) -> str:
        b.overridable = True
        return draw(b)

    return drawn


def _table() -> dict[str, Draw]:
    table: dict[str, Draw] = {}
    for dtype in ("uint8", "int8", "uint16", "int16"):
        table[f"QuantizeLinear {dtype}"] = _quantize(dtype)
        table[f"DequantizeLinear {dtype}"] = _dequantize(dtype)
    table["DynamicQuantizeLinear"] = _dynamic
    for a, w in (("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")):
        table[f"QLinearMatMul {a} {w}"] = _qlinear_matmul(a, w)
    table["QLinearMatMul uint8 uint8 variable"] = _qlinear_matmul("uint8", "uint8", constant=False, channel=False)
    table["QLinearMatMul uint8 int8 variable"] = _qlinear_matmul("uint8", "int8", constant=False, channel=False)
    table["QDQ MatMul"], table["QDQ MatMul variable"] = _matmul_qdq(False), _matmul_qdq(True)
    table["QGemm"], table["QDQ Gemm"], table["QGemm to floats"] = _qgemm, _gemm_qdq, _qgemm_to_floats
    table["QLinearConv"], table["QDQ Conv"] = _qlinear_conv, _conv_qdq
    for a, w in (("uint8", "int8"), ("uint8", "uint8"), ("int8", "uint8"), ("int8", "int8")):
        table[f"MatMulInteger {a} {w}"] = _matmul_integer(a, w)
    for a, w in (("uint8", "uint8"), ("uint8", "int8"), ("int8", "uint8")):
        table[f"ConvInteger {a} {w}"] = _conv_integer(a, w)
    table["MatMulIntegerToFloat"], table["DynamicQuantizeMatMul"] = _matmul_integer_to_float, _dynamic_quantize_matmul
    for op in ("Add", "Mul"):
        table[f"QLinear{op} uint8"], table[f"QDQ {op}"] = _binary(op, False), _binary(op, True)
        table[f"QLinear{op} int8"] = _binary(op, False, "int8")
    for op, shape, attributes in (("Sigmoid", (64, 256), {}), ("LeakyRelu", (64, 256), {"alpha": 0.1}),
                                  ("Softmax", (256, 64), {"axis": -1}),
                                  ("AveragePool", (4, 16, 18, 18), {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}),
                                  ("GlobalAveragePool", (64, 64, 5, 5), {})):  # fmt: skip
        table[f"QLinear{op}"] = _unary(op, False, shape, **attributes)
        table[f"QDQ {op}"] = _unary(op, True, shape, **attributes)
    table["QLinearConcat"], table["QDQ Concat"], table["QLinearWhere"] = _concat(False), _concat(True), _where
    for op in ("Relu", "Tanh", "HardSwish", "Exp", "Erf"):
        table[f"island {op}"] = floats.island(op)
    for op in ("ReduceSum", "ReduceMean"):
        table[f"island {op}"] = floats.reduction(op)
    table["island BatchNormalization"] = floats.batch_normalization
    table["island LayerNormalization"] = floats.layer_normalization
    table["float LayerNormalization"] = floats.float_layer_normalization
    table["float InstanceNormalization"] = floats.instance_normalization
    for op in floats.FUNCTIONS:
        table[f"float {op}"] = floats.function(op)
    table["float Gelu by tanh"], table["Gelu of com.microsoft"] = floats.tanh_gelu, floats.own_gelu
    table["float Softmax up to 16"] = floats.softmax((1, 17))
    table["float Gemm"], table["float Conv 1-D"], table["float ConvTranspose"] = (
        floats.product,
        floats.line,
        floats.transposed,
    )
    for bits, rows in ((4, 64), (8, 64), (8, 1)):
        table[f"MatMulNBits {bits} bits{', one row' if rows == 1 else ''}"] = floats.matmul_nbits(bits, rows)
    table["MatMulNBits with zero points"] = floats.matmul_nbits_points
    for name in ("QDQ Conv", "QDQ Gemm", "float Gemm", "float ConvTranspose", "MatMulNBits 4 bits"):
        table[f"{name}, defaults of inputs"] = _overridable(table[name])
    table["LSTM"] = lstm
    for dtype in ("int8", "uint8"):
        table[f"DynamicQuantizeLSTM {dtype}"] = integer_lstm(dtype)
    table["island MaxPool"] = floats.island("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    return table


CASES: Mapping[str, Draw] = MappingProxyType(_table())
# Their bits are those of the CPU's vectors: promised where the dialect's are as wide as the runtime's, else within bounds.
VECTORS: Mapping[str, Draw] = MappingProxyType(
    {"island Conv": _float_conv, "float Softmax": floats.softmax((17, 200)), "float AveragePool": floats.average}
)
# Compared, and allowed to differ within bounds: their float order is the runtime's own.
RATES: Mapping[str, Draw] = MappingProxyType(
    {
        "float LogSoftmax": floats.softmax((1, 200), "LogSoftmax"),
        "MatMulNBits 4 bits, one row": floats.matmul_nbits(4, 1),
        "MatMulNBits in bytes": floats.matmul_nbits_bytes,
        **{f"float {op}": floats.function(op) for op in floats.NEARLY},
    }
)
BOUNDS: Mapping[str, Bound] = MappingProxyType(
    {
        "island Conv": Bound(0.9, 64),
        "float Softmax": Bound(0.8, 4),
        "float AveragePool": Bound(0.9, 16),
        "float LogSoftmax": Bound(0.3, 8),
        "MatMulNBits 4 bits, one row": Bound(1.0, 64),
        "MatMulNBits in bytes": Bound(1.0, 64),
        **dict.fromkeys((f"float {op}" for op in floats.NEARLY), Bound(0.0005, 1)),
    }
)
