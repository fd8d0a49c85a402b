"""TFLite models of functions that few kernels quantize: magnitudes, roots, logarithms, quotients, comparisons, products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hwq.verification import Bound
from hwq.verification.tflite_builder import Builder, options
from hwq.verification.tflite_drawing import RANGES, Draw, Generator, integer, scheme, table

__all__ = ["FUNCTIONS", "RATES"]

# Every scale of a comparison is below 1: LiteRT aborts otherwise.
_LARGEST = np.float32(0.75)
_LOGARITHMS = {"int8": (16 / 256, 127), "uint8": (16 / 256, 255)}
_NORMS = {"int8": (1 / 128, 0), "uint8": (1 / 128, 128)}


def _shape(rng: Generator, longest: int = 10) -> list[int]:
    return [integer(rng, 1, longest) for _ in range(integer(rng, 1, 5))]


def _unary(rng: Generator, op: str, dtype: str, made: tuple[float, int] | None = None) -> bytes:
    b, shape = Builder(), _shape(rng, 20 if made else 12)
    given = scheme(rng, dtype)
    result = {"scale": made[0], "zero": made[1]} if made else scheme(rng, dtype)
    if op in {"ABS", "NEG"} and rng.random() < 0.3:
        result = given
    x, y = b.tensor(dtype, shape, **given), b.tensor(dtype, shape, **result)
    b.operator(op, [x], [y])
    return b.finish([x], [y])


def _root(rng: Generator, op: str, dtype: str) -> bytes:
    """Of a magnitude: LiteRT stops at negative numbers."""
    b, shape = Builder(), _shape(rng, 12)
    x, y, z = (b.tensor(dtype, shape, **scheme(rng, dtype)) for _ in range(3))
    if dtype == "int8":
        b.graph.tensors[y].quantization.zeroPoint[:] = -128
    b.operator("ABS", [x], [y])
    b.operator(op, [y], [z])
    return b.finish([x], [z])


def _shapes(rng: Generator) -> tuple[list[int], list[int]]:
    shape = _shape(rng)
    if rng.random() < 0.5:
        return shape, list(shape)
    return shape, [1 if rng.random() < 0.5 else size for size in shape][integer(rng, 0, len(shape)) :]


def _binary(rng: Generator, op: str, name: str, dtype: str, to: str | None = None) -> bytes:
    b, shapes = Builder(), _shapes(rng)
    given = [scheme(rng, dtype) for _ in range(2)]
    if to:
        given = [{**one, "scale": np.minimum(one["scale"], _LARGEST)} for one in given]
    x, y = (b.tensor(dtype, shape, **one) for shape, one in zip(shapes, given, strict=True))
    made = b.tensor(to or dtype, shapes[0], **({} if to else scheme(rng, dtype)))
    b.operator(op, [x, y], [made], options(name))
    return b.finish([x, y], [made])


def _quotient(rng: Generator, dtype: str) -> bytes:
    """By a constant without zeros: LiteRT stops at one."""
    b, shapes = Builder(), _shapes(rng)
    given, by = scheme(rng, dtype), scheme(rng, dtype)
    divisor = rng.integers(*RANGES[dtype], shapes[1])
    divisor[divisor == by["zero"]] = RANGES[dtype][0] + (by["zero"] == RANGES[dtype][0])
    x, w = b.tensor(dtype, shapes[0], **given), b.tensor(dtype, shapes[1], divisor, **by)
    y = b.tensor(dtype, shapes[0], **scheme(rng, dtype))
    b.operator("DIV", [x, w], [y], options("Div", fusedActivationFunction=str(rng.choice(["NONE", "RELU", "RELU6"]))))
    return b.finish([x], [y])


def _squared(rng: Generator, dtype: str) -> bytes:
    """A product of a value with itself, which XNNPACK takes for a square."""
    b, shape = Builder(), _shape(rng)
    x, y = b.tensor(dtype, shape, **scheme(rng, dtype)), b.tensor(dtype, shape, **scheme(rng, dtype))
    b.operator("MUL", [x, x], [y], options("Mul", fusedActivationFunction=str(rng.choice(["NONE", "RELU", "RELU6"]))))
    return b.finish([x], [y])


def _beyond(rng: Generator, op: str) -> bytes:
    """Floats times, or by, numbers that take them out of float32: the reference kernels' bounds are finite."""
    b, shape = Builder(), _shape(rng)
    # XNNPACK flushes denormal quotients.
    large = [3e38, -3e38] if op != "DIV" else []
    factors = rng.choice([0.0, 1e-30, *large, np.inf, -np.inf, 2.0], shape[-1:])
    x, y = b.tensor("float32", shape), b.tensor("float32", shape)
    made = options(op.title(), fusedActivationFunction=str(rng.choice(["NONE", "RELU", "RELU6"])))
    b.operator(op, [x, b.tensor("float32", shape[-1:], factors)], [y], made)
    return b.finish([x], [y])


def _product(rng: Generator, dtype: str) -> bytes:
    b, shape = Builder(), _shape(rng)
    axes = sorted(int(axis) for axis in rng.choice(len(shape), integer(rng, 1, len(shape) + 1), replace=False))
    keep = bool(rng.random() < 0.5)
    out = [1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes]
    x, y = b.tensor(dtype, shape, **scheme(rng, dtype)), b.tensor(dtype, out, **scheme(rng, dtype))
    b.operator("REDUCE_PROD", [x, b.constant(axes)], [y], options("Reducer", keepDims=keep))
    return b.finish([x], [y])


_COMPARISONS = {
    "EQUAL": "Equal", "NOT_EQUAL": "NotEqual", "LESS": "Less", "LESS_EQUAL": "LessEqual", "GREATER": "Greater",
    "GREATER_EQUAL": "GreaterEqual",
}  # fmt: skip
_KINDS: list[tuple[str, Callable[..., bytes], tuple[Any, ...]]] = [
    *((f"{op} {dtype}", _unary, (op, dtype)) for op in ("ABS", "NEG", "LOG") for dtype in ("int8", "int16")),
    *((f"{op} {dtype}", _root, (op, dtype)) for op in ("SQRT", "RSQRT") for dtype in ("int8", "int16")),
    *((f"EXP {dtype}", _unary, ("EXP", dtype)) for dtype in ("int8", "int16")),
    *((f"LOG_SOFTMAX {dtype}", _unary, ("LOG_SOFTMAX", dtype, made)) for dtype, made in _LOGARITHMS.items()),
    *((f"L2_NORMALIZATION {dtype}", _unary, ("L2_NORMALIZATION", dtype, made)) for dtype, made in _NORMS.items()),
    ("SQUARED_DIFFERENCE int8", _binary, ("SQUARED_DIFFERENCE", "SquaredDifference", "int8")),
    *((f"DIV {dtype}", _quotient, (dtype,)) for dtype in ("int8", "uint8", "int16")),
    *((f"{op} {dtype}", _binary, (op, name, dtype, "bool")) for op, name in _COMPARISONS.items() for dtype in ("int8", "uint8")),
    *((f"{op} {dtype}", _binary, (op, "MaximumMinimum", dtype)) for op in ("MAXIMUM", "MINIMUM") for dtype in RANGES),
    *((f"MUL {dtype}, with itself", _squared, (dtype,)) for dtype in RANGES),
    *((f"{op} float32, beyond its range", _beyond, (op,)) for op in ("ADD", "SUB", "MUL", "DIV")),
    *((f"REDUCE_PROD {dtype}", _product, (dtype,)) for dtype in ("int8", "int16")),
]  # fmt: skip
FUNCTIONS: Mapping[str, Draw] = table(_KINDS)

# Functions of floats by the runtime's own polynomials: how many values may differ, how far.
RATES: Mapping[str, tuple[Draw, Mapping[str, Bound]]] = {
    "SQRT float32": (lambda rng: _root(rng, "SQRT", "float32"), {"litert-xnnpack": Bound(0.4, 2)}),
    "LOG float32": (lambda rng: _root(rng, "LOG", "float32"), {"litert-ref": Bound(0.01, 1), "litert-xnnpack": Bound(0.6, 2)}),
    "SIN float32": (lambda rng: _unary(rng, "SIN", "float32"), {"litert-ref": Bound(0.02, 1), "litert-xnnpack": Bound(0.7, 4)}),
    "COS float32": (lambda rng: _unary(rng, "COS", "float32"), {"litert-ref": Bound(0.02, 1), "litert-xnnpack": Bound(0.8, 4)}),
    "LOG_SOFTMAX float32": (
        lambda rng: _unary(rng, "LOG_SOFTMAX", "float32"), {"litert-ref": Bound(0.02, 2), "litert-xnnpack": Bound(0.5, 4)}),
}  # fmt: skip
