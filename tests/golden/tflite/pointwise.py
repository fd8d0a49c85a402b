"""One-op models of arithmetic: binary and unary operators, pools, reductions, softmax, conversions."""

from __future__ import annotations

import functools

import numpy as np
from cases import CASES, activation, case, weights

from hwq.verification.tflite_builder import TYPES, Builder, options


@case("add_int8_broadcast", "ADD", "int8", broadcast=True)
@case("add_int8_relu", "ADD", "int8", act="RELU")
@case("add_uint8", "ADD", "uint8")
@case("add_int16", "ADD", "int16", pot=False)
@case("add_int16_power_of_two", "ADD", "int16", scales=(2.0**-12, 2.0**-10, 2.0**-10))
@case("add_float_relu6", "ADD", "float32", act="RELU6")
@case("add_int32", "ADD", "int32")
@case("sub_int8", "SUB", "int8")
@case("sub_uint8_broadcast", "SUB", "uint8", broadcast=True)
@case("sub_int16", "SUB", "int16", pot=False)
@case("sub_int16_power_of_two", "SUB", "int16", scales=(2.0**-10, 2.0**-12, 2.0**-10))
@case("mul_int8", "MUL", "int8", out=0.03)
@case("mul_int8_ties", "MUL", "int8", scales=(2.0**-4, 2.0**-5, 2.0**-3))
@case("mul_uint8_broadcast_relu", "MUL", "uint8", broadcast=True, out=0.03, act="RELU")
@case("mul_int16", "MUL", "int16", out=9.0)
@case("mul_float", "MUL", "float32")
@case("div_float", "DIV", "float32")
@case("maximum_int8", "MAXIMUM", "int8", scales=(0.05, 0.05, 0.05), zero=5)
@case("minimum_float", "MINIMUM", "float32")
@case("squared_difference_float", "SQUARED_DIFFERENCE", "float32")
@case("greater_float", "GREATER", "float32", to="bool")
@case("less_equal_int32", "LESS_EQUAL", "int32", to="bool")
def binary(
    rng: np.random.Generator,
    op: str,
    dtype: str,
    *,
    broadcast: bool = False,
    act: str = "NONE",
    pot: bool = True,
    out: float = 0.11,
    scales: tuple[float, float, float] | None = None,
    zero: int | None = None,
    to: str | None = None,
) -> bytes:
    b = Builder()
    one, two, three = scales or (0.047, 0.021, out)
    x = activation(b, rng, dtype, [1, 16, 8, 4], one, zero)
    z = activation(
        b, rng, dtype, [4] if broadcast else [1, 16, 8, 4], two, zero if zero is not None or dtype != "int8" else 13
    )
    y = activation(b, rng, to or dtype, [1, 16, 8, 4], three, zero)
    kind = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div"}.get(op)
    made = None
    if kind:
        made = options(kind, fusedActivationFunction=act)
        if kind in {"Add", "Sub"}:
            made.potScaleInt16 = pot
    b.operator(op, [x, z], [y], made)
    return b.finish([x, z], [y])


@case("average_pool_int8", "AVERAGE_POOL_2D", "int8")
@case("average_pool_uint8_valid", "AVERAGE_POOL_2D", "uint8", padding="VALID")
@case("average_pool_int16", "AVERAGE_POOL_2D", "int16")
@case("average_pool_float_relu", "AVERAGE_POOL_2D", "float32", act="RELU")
@case("max_pool_int8_relu6", "MAX_POOL_2D", "int8", act="RELU6")
@case("max_pool_float", "MAX_POOL_2D", "float32")
def pool(rng: np.random.Generator, op: str, dtype: str, padding: str = "SAME", act: str = "NONE") -> bytes:
    b = Builder()
    x = activation(b, rng, dtype, [2, 9, 8, 5], 0.05)
    space = [5, 4] if padding == "SAME" else [4, 3]
    y = activation(b, rng, dtype, [2, *space, 5], 0.05)
    b.operator(
        op,
        [x],
        [y],
        options(
            "Pool2D", padding=padding, strideW=2, strideH=2, filterWidth=3, filterHeight=3, fusedActivationFunction=act
        ),
    )
    return b.finish([x], [y])


@case("mean_int8", "MEAN", "int8", (1, 2), True)
@case("mean_int8_last_axis", "MEAN", "int8", (-1,), False)
@case("mean_uint8", "MEAN", "uint8", (1, 2), False)
@case("mean_int16", "MEAN", "int16", (1, 2), False)
@case("mean_float", "MEAN", "float32", (1, 2), True)
@case("sum_int8", "SUM", "int8", (2,), False)
@case("sum_float", "SUM", "float32", (1, 3), False)
@case("reduce_max_int8", "REDUCE_MAX", "int8", (1,), True)
@case("reduce_min_float", "REDUCE_MIN", "float32", (0, 3), False)
@case("reduce_prod_float", "REDUCE_PROD", "float32", (3,), False)
def reduction(rng: np.random.Generator, op: str, dtype: str, axes: tuple[int, ...], keep: bool) -> bytes:
    b = Builder()
    shape = [3, 7, 6, 5]
    x = activation(b, rng, dtype, shape, 0.05)
    found = {axis % 4 for axis in axes}
    made = [1 if index in found else dim for index, dim in enumerate(shape) if keep or index not in found]
    scale, zero = (
        (0.05, None) if op.startswith("REDUCE") else ({"SUM": 0.17}.get(op, 0.031), 3 if dtype == "int8" else None)
    )
    y = activation(b, rng, dtype, made, scale, zero)
    b.operator(op, [x, b.constant(list(axes))], [y], options("Reducer", keepDims=keep))
    return b.finish([x], [y])


@case("softmax_int8", "int8", 0.1, 1.0)
@case("softmax_int8_beta", "int8", 0.05, 0.7)
@case("softmax_uint8", "uint8", 0.08, 1.0)
@case("softmax_int8_to_int16", "int8", 0.1, 1.0, "int16")
@case("softmax_int16", "int16", 0.0005, 1.0)
@case("softmax_float_beta", "float32", 1.0, 1.3)
def softmax(rng: np.random.Generator, dtype: str, scale: float, beta: float, to: str | None = None) -> bytes:
    b = Builder()
    x = activation(b, rng, dtype, [40, 11], scale)
    made, zero = {"int8": (1 / 256, -128), "uint8": (1 / 256, 0), "int16": (1 / 32768, 0)}.get(to or dtype, (1.0, 0))
    y = activation(b, rng, to or dtype, [40, 11], made, zero)
    b.operator("SOFTMAX", [x], [y], options("Softmax", beta=beta))
    return b.finish([x], [y])


EVERY = [1, 16, 16, 1]


@case("logistic_int8", "LOGISTIC", "int8", 0.061, 1 / 256, -128)
@case("logistic_uint8", "LOGISTIC", "uint8", 0.047, 1 / 256, 0)
@case("logistic_int16", "LOGISTIC", "int16", 0.0003, 1 / 32768, 0, shape=[4096])
@case("logistic_int16_power_of_two", "LOGISTIC", "int16", 2.0**-12, 1 / 32768, 0, shape=[4096])
@case("logistic_float", "LOGISTIC", "float32")
@case("tanh_int8", "TANH", "int8", 0.031, 1 / 128, 0)
@case("tanh_uint8", "TANH", "uint8", 0.031, 1 / 128, 128)
@case("tanh_int16", "TANH", "int16", 0.0002, 1 / 32768, 0, shape=[4096])
@case("tanh_int16_power_of_two", "TANH", "int16", 2.0**-11, 1 / 32768, 0, shape=[4096])
@case("tanh_float", "TANH", "float32")
@case("hard_swish_int8", "HARD_SWISH", "int8", 0.06, 0.04, -100)
@case("hard_swish_uint8", "HARD_SWISH", "uint8", 0.02, 0.015, 30)
@case("hard_swish_float", "HARD_SWISH", "float32")
@case("relu_int8", "RELU", "int8", 0.07, 0.05, -100)
@case("relu_int16", "RELU", "int16", 0.0007, 0.0005, 0)
@case("relu6_int8", "RELU6", "int8", 0.07, 0.05, -100)
@case("relu_n1_to_1_uint8", "RELU_N1_TO_1", "uint8", 0.02, 0.01, 127)
@case("relu_0_to_1_int8", "RELU_0_TO_1", "int8", 0.02, 0.01, -110)
@case("relu_float", "RELU", "float32")
@case("leaky_relu_int8", "LEAKY_RELU", "int8", 0.07, 0.05, 10, alpha=0.13)
@case("leaky_relu_uint8", "LEAKY_RELU", "uint8", 0.07, 0.05, 130, alpha=-0.4)
@case("leaky_relu_int16", "LEAKY_RELU", "int16", 0.0007, 0.0005, 0, alpha=0.3)
@case("leaky_relu_float", "LEAKY_RELU", "float32", alpha=0.2)
@case("gelu_int8", "GELU", "int8", 0.04, 0.03, -100)
@case("exp_int8", "EXP", "int8", 0.02, 0.05, -128)
@case("abs_float", "ABS", "float32")
@case("sqrt_float", "SQRT", "float32", shape=[64])
def unary(
    rng: np.random.Generator,
    op: str,
    dtype: str,
    scale: float = 1.0,
    out: float = 1.0,
    zero: int = 0,
    *,
    shape: list[int] | None = None,
    alpha: float | None = None,
) -> bytes:
    b = Builder()
    shape = shape or EVERY
    x = activation(b, rng, dtype, shape, scale)
    y = activation(b, rng, dtype, shape, out, zero)
    made = options("LeakyRelu", alpha=alpha) if alpha is not None else options("Gelu") if op == "GELU" else None
    b.operator(op, [x], [y], made)
    return b.finish([x], [y])


@case("prelu_int8", "int8")
@case("prelu_float", "float32")
def prelu(rng: np.random.Generator, dtype: str) -> bytes:
    b = Builder()
    x = activation(b, rng, dtype, [1, 8, 8, 4], 0.05)
    slopes = rng.integers(-127, 128, [1, 1, 4]) if dtype == "int8" else rng.standard_normal([1, 1, 4])
    slope = b.tensor(dtype, [1, 1, 4], slopes, *((0.01, 5) if dtype == "int8" else ()))
    y = activation(b, rng, dtype, [1, 8, 8, 4], 0.04, 2)
    b.operator("PRELU", [x, slope], [y])
    return b.finish([x], [y])


@case("quantize_float_to_int8", "float32", "int8", out=(0.11, -5))
@case("quantize_float_to_uint8", "float32", "uint8", out=(0.05, 128))
@case("quantize_float_to_int16", "float32", "int16", out=(0.001, 0))
@case("quantize_int8_to_int8", "int8", "int8", (0.07, 3), (0.05, -9))
@case("quantize_int8_to_uint8_flip", "int8", "uint8", (0.07, -3), (0.07, 125))
@case("quantize_uint8_to_int8", "uint8", "int8", (0.07, 100), (0.03, 7))
@case("quantize_int16_to_int8", "int16", "int8", (0.0009, 0), (0.13, 4))
@case("quantize_int8_to_int16", "int8", "int16", (0.09, 4), (0.001, 0))
@case("quantize_int16_to_int16", "int16", "int16", (0.0009, 0), (0.0013, 0))
@case("quantize_int16_to_int32", "int16", "int32", (0.0009, 0), (0.0001, 0))
@case("dequantize_int8", "int8", "float32", (0.07, 3))
@case("dequantize_uint8", "uint8", "float32", (0.07, 128))
@case("dequantize_int16", "int16", "float32", (0.0013, 0))
@case("dequantize_float16", "float16", "float32")
def conversion(
    rng: np.random.Generator,
    dtype: str,
    to: str,
    given: tuple[float, int] | None = None,
    out: tuple[float, int] | None = None,
) -> bytes:
    b = Builder()
    x = b.tensor(dtype, [1024], None, *(given or ()))
    y = b.tensor(to, [1024], None, *(out or ()))
    b.operator("DEQUANTIZE" if to == "float32" else "QUANTIZE", [x], [y])
    return b.finish([x], [y])


@case("dequantize_int8_per_channel_constant")
def constant_weights(rng: np.random.Generator) -> bytes:
    """A per-channel constant, dequantized and added to the input."""
    b = Builder()
    w = b.tensor("int8", [3, 8], weights(rng, [3, 8], "int8"), rng.uniform(0.01, 0.1, 3), 0, 0)
    x, f, y = b.tensor("float32", [3, 8]), b.tensor("float32", [3, 8]), b.tensor("float32", [3, 8])
    b.operator("DEQUANTIZE", [w], [f])
    b.operator("ADD", [x, f], [y], options("Add"))
    return b.finish([x], [y])


@case("arg_max_int8", "ARG_MAX", "int8")
@case("arg_min_float", "ARG_MIN", "float32")
def argument(rng: np.random.Generator, op: str, dtype: str) -> bytes:
    b = Builder()
    x = activation(b, rng, dtype, [4, 6, 5])
    y = b.tensor("int32", [4, 6])
    b.operator(op, [x, b.constant([-1])], [y], options("ArgMax" if op == "ARG_MAX" else "ArgMin", outputType=2))
    return b.finish([x], [y])


@case("cast_float_to_int32")
def cast(rng: np.random.Generator) -> bytes:
    b = Builder()
    x, y = b.tensor("float32", [64]), b.tensor("int32", [64])
    b.operator("CAST", [x], [y], options("Cast", inDataType=0, outDataType=2))
    return b.finish([x], [y])


def far(rng: np.random.Generator, to: str) -> bytes:
    """Floats to another type: cut off, saturated."""
    b = Builder()
    x, y = b.tensor("float32", [64]), b.tensor(to, [64])
    w, z = b.constant(10.0 ** rng.uniform(-2, 20, 64), "float32"), b.tensor("float32", [64])
    b.operator("MUL", [x, w], [z], options("Mul"))
    b.operator("CAST", [z], [y], options("Cast", inDataType=TYPES["float32"], outDataType=TYPES[to]))
    return b.finish([x], [y])


for dtype in ("int8", "uint8", "int16", "int32", "int64", "bool"):
    CASES[f"cast_far_to_{dtype}"] = functools.partial(far, to=dtype)
