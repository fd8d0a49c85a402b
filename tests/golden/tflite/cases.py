"""One-op models: each function below builds one file; inputs are drawn by `make.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from hwq.verification.tflite_builder import TYPES, Builder, options
from hwq.verification.tflite_function_models import FUNCTIONS
from hwq.verification.tflite_movement_models import MOVEMENTS

# name -> function of a generator that returns the file's bytes
CASES: dict[str, Callable[[np.random.Generator], bytes]] = {}


def case(name: str, *arguments: Any, **keywords: Any) -> Callable[..., Any]:
    """Register `function(generator, *arguments, **keywords)` under a name; decorators stack."""

    def add(function: Callable[..., bytes]) -> Callable[..., bytes]:
        if name in CASES:
            raise RuntimeError(f"two cases are called {name}")
        CASES[name] = lambda generator: function(generator, *arguments, **keywords)
        return function

    return add


def weights(rng: np.random.Generator, shape: Any, dtype: str) -> np.ndarray:
    """Full-range weights; TFLite's int8 and int4 weights leave the lowest value out."""
    low, high = {"int8": (-127, 128), "int4": (-7, 8), "uint8": (0, 256)}[dtype]
    return rng.integers(low, high, shape)


def activation(
    b: Builder, rng: np.random.Generator, dtype: str, shape: Any, scale: float = 0.05, zero: int | None = None
) -> int:
    """A computed tensor of a type, with a scale unless it is a float."""
    if dtype in {"float32", "int32", "bool"}:
        return b.tensor(dtype, shape)
    if zero is None:
        zero = {"int8": -7, "uint8": 121, "int16": 0}[dtype]
    return b.tensor(dtype, shape, scale=scale, zero=zero)


def channel_scales(rng: np.random.Generator, count: int, ties: bool, equal: bool = False) -> np.ndarray:
    """Scales per channel; with `ties` powers of two, so that exact halves occur."""
    if equal:
        return np.full(count, 0.01, np.float32)
    return (2.0 ** -rng.integers(5, 9, count) if ties else rng.uniform(0.002, 0.02, count)).astype(np.float32)


@case("conv_int8_same_stride2_relu6", "int8", stride=2, act="RELU6")
@case("conv_int8_valid_dilated", "int8", padding="VALID", dilation=2)
@case("conv_int8_ties", "int8", ties=True)
@case("conv_int8_grouped", "int8", groups=2)
@case("conv_int8_per_tensor", "int8", per_channel=False)
@case("conv_int8_int4_weights", "int8", weight="int4")
@case("conv_uint8", "uint8", weight="uint8", per_channel=False, act="RELU")
@case("conv_int16_int64_bias", "int16", bias="int64")
@case("conv_int16_int32_bias", "int16", bias="int32")
@case("conv_float", "float32", weight="float32", bias="float32", act="RELU_N1_TO_1")
@case("conv_hybrid_per_tensor", "float32", per_channel=False, bias="float32")
@case("conv_hybrid_per_channel", "float32", bias="float32", act="RELU")
@case("conv_hybrid_equal_scales", "float32", bias="float32", equal=True)
@case("depthwise_int8", "int8", op="DEPTHWISE_CONV_2D")
@case("depthwise_int8_multiplier2_stride2", "int8", op="DEPTHWISE_CONV_2D", multiplier=2, stride=2, act="RELU")
@case("depthwise_int8_ties_dilated", "int8", op="DEPTHWISE_CONV_2D", ties=True, dilation=2)
@case("depthwise_uint8", "uint8", op="DEPTHWISE_CONV_2D", weight="uint8", per_channel=False)
@case("depthwise_int16", "int16", op="DEPTHWISE_CONV_2D", bias="int64")
@case("depthwise_float", "float32", op="DEPTHWISE_CONV_2D", weight="float32", bias="float32", act="RELU6")
@case("conv_float_alone", "float32", weight="float32", bias="float32", alone=True)
@case("depthwise_float_alone", "float32", op="DEPTHWISE_CONV_2D", weight="float32", bias="float32", alone=True)
@case("depthwise_hybrid", "float32", op="DEPTHWISE_CONV_2D", bias="float32")
def convolution(
    rng: np.random.Generator,
    dtype: str,
    *,
    op: str = "CONV_2D",
    weight: str = "int8",
    bias: str | None = "int32",
    padding: str = "SAME",
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    multiplier: int = 1,
    act: str = "NONE",
    per_channel: bool = True,
    ties: bool = False,
    alone: bool = False,
    equal: bool = False,
) -> bytes:
    b = Builder()
    channels, filters = (1, 1) if alone else (4, 6)
    deep = op == "DEPTHWISE_CONV_2D"
    if deep:
        filters = channels * multiplier
    scale_in = 2.0**-4 if ties else 0.037
    x = activation(b, rng, dtype, [1, 9, 8, channels], scale_in)
    shape = [1, 3, 3, filters] if deep else [filters, 3, 3, channels // groups]
    if weight == "float32":
        w = b.tensor("float32", shape, rng.standard_normal(shape))
    else:
        scales = channel_scales(rng, filters if per_channel else 1, ties, equal)
        w = b.tensor(
            weight, shape, weights(rng, shape, weight), scales, 133 if weight == "uint8" else 0, 3 if deep else 0
        )
    inputs = [x, w]
    if bias == "float32":
        inputs.append(b.tensor("float32", [filters], rng.standard_normal(filters)))
    elif bias is not None:
        spread = 30000 if dtype != "int16" else 3000000
        inputs.append(b.tensor(bias, [filters], rng.integers(-spread, spread, filters), scale_in * scales))
    space = [9, 8]
    if padding == "VALID":
        space = [size - 2 * dilation for size in space]
    space = [-(-size // stride) for size in space]
    scale_out = 2.0**-1 if ties else {"int16": 0.01, "uint8": 0.11}.get(dtype, 0.13)
    y = activation(b, rng, dtype, [1, *space, filters], scale_out, 4 if dtype == "int8" else None)
    common = dict(
        padding=padding,
        strideW=stride,
        strideH=stride,
        dilationWFactor=dilation,
        dilationHFactor=dilation,
        fusedActivationFunction=act,
    )
    if deep:
        made = options("DepthwiseConv2D", depthMultiplier=multiplier, **common)
    else:
        made = options("Conv2D", **common)
        if bias == "int32" and dtype == "int16":
            made.quantizedBiasType = 2
    b.operator(op, inputs, [y], made)
    return b.finish([x], [y])


@case("transpose_conv_int8_same", "int8")
@case("transpose_conv_int8_valid_ties", "int8", padding="VALID", ties=True)
@case("transpose_conv_uint8", "uint8")
@case("transpose_conv_int16", "int16")
@case("transpose_conv_float", "float32")
def transpose_convolution(rng: np.random.Generator, dtype: str, padding: str = "SAME", ties: bool = False) -> bytes:
    b = Builder()
    weight = {"uint8": "uint8", "float32": "float32"}.get(dtype, "int8")
    space = [10, 8] if padding == "SAME" else [11, 9]
    target = b.constant([1, *space, 5])
    shape = [5, 3, 3, 3]
    scale_in = 2.0**-4 if ties else 0.041
    if weight == "float32":
        w = b.tensor("float32", shape, rng.standard_normal(shape))
    else:
        scales = channel_scales(rng, 1 if weight == "uint8" else 5, ties)
        w = b.tensor(weight, shape, weights(rng, shape, weight), scales, 120 if weight == "uint8" else 0)
    x = activation(b, rng, dtype, [1, 5, 4, 3], scale_in)
    inputs = [target, w, x]
    if dtype != "float32":
        kind = "int64" if dtype == "int16" else "int32"
        inputs.append(b.tensor(kind, [5], rng.integers(-9000, 9000, 5), scale_in * scales))
    y = activation(b, rng, dtype, [1, *space, 5], 2.0**-2 if ties else 0.09, 11 if dtype == "int8" else None)
    b.operator("TRANSPOSE_CONV", inputs, [y], options("TransposeConv", padding=padding, strideW=2, strideH=2))
    return b.finish([x], [y])


@case("fully_connected_int8", "int8")
@case("fully_connected_int8_ties", "int8", ties=True)
@case("fully_connected_int8_per_channel_keep_dims", "int8", per_channel=True, keep=True)
@case("fully_connected_int8_without_bias_relu", "int8", bias=None, act="RELU")
@case("fully_connected_int4_weights", "int8", weight="int4")
@case("fully_connected_uint8", "uint8", weight="uint8")
@case("fully_connected_int16_int64_bias", "int16", bias="int64")
@case("fully_connected_int16_int32_bias", "int16", bias="int32")
@case("fully_connected_float", "float32", weight="float32", bias="float32", act="RELU6")
@case("fully_connected_hybrid", "float32", bias="float32")
@case("fully_connected_hybrid_per_channel", "float32", bias="float32", per_channel=True)
@case("fully_connected_hybrid_int4", "float32", weight="int4", bias="float32")
def fully_connected(
    rng: np.random.Generator,
    dtype: str,
    *,
    weight: str = "int8",
    bias: str | None = "int32",
    act: str = "NONE",
    per_channel: bool = False,
    keep: bool = False,
    ties: bool = False,
) -> bytes:
    b = Builder()
    rows, depth, outputs = (2, 3), 40, 12
    scale_in = 2.0**-4 if ties else 0.043
    x = activation(b, rng, dtype, [*rows, depth], scale_in)
    shape = [outputs, depth]
    if weight == "float32":
        w = b.tensor("float32", shape, rng.standard_normal(shape))
    else:
        scales = channel_scales(rng, outputs if per_channel else 1, ties)
        w = b.tensor(weight, shape, weights(rng, shape, weight), scales, 119 if weight == "uint8" else 0)
    inputs = [x, w]
    if bias == "float32":
        inputs.append(b.tensor("float32", [outputs], rng.standard_normal(outputs)))
    elif bias is not None:
        spread = 20000 if dtype != "int16" else 3000000
        inputs.append(b.tensor(bias, [outputs], rng.integers(-spread, spread, outputs), scale_in * scales))
    else:
        inputs.append(-1)
    scale_out = 2.0**-1 if ties else {"int16": 0.01}.get(dtype, 0.21 if weight != "int4" else 0.02)
    y = activation(b, rng, dtype, [*rows, outputs] if keep else [6, outputs], scale_out, 9 if dtype == "int8" else None)
    made = options("FullyConnected", fusedActivationFunction=act, keepNumDims=keep)
    if bias == "int32" and dtype == "int16":
        made.quantizedBiasType = 2
    b.operator("FULLY_CONNECTED", inputs, [y], made)
    return b.finish([x], [y])


@case("batch_matmul_int8", "int8")
@case("batch_matmul_int8_transposed", "int8", adj_x=True, adj_y=True)
@case("batch_matmul_int16", "int16")
@case("batch_matmul_float_broadcast", "float32", broadcast=True)
def batch_matmul(
    rng: np.random.Generator, dtype: str, adj_x: bool = False, adj_y: bool = False, broadcast: bool = False
) -> bytes:
    b = Builder()
    lead = [1] if broadcast else [3]
    a = activation(b, rng, dtype, [3, 8, 5] if adj_x else [3, 5, 8], 0.03)
    c = activation(b, rng, dtype, [*lead, 6, 8] if adj_y else [*lead, 8, 6], 0.05, 3 if dtype == "int8" else None)
    y = activation(b, rng, dtype, [3, 5, 6], 0.19 if dtype != "int16" else 0.7)
    b.operator("BATCH_MATMUL", [a, c], [y], options("BatchMatMul", adjX=adj_x, adjY=adj_y))
    return b.finish([a, c], [y])


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


def movement(
    b: Builder,
    rng: np.random.Generator,
    op: str,
    shape: list[int],
    results: list[list[int]],
    before: list[int] | None = None,
    after: list[int] | None = None,
    made: Any = None,
    dtype: str = "int8",
) -> bytes:
    """An operator that keeps type and scale."""
    x = activation(b, rng, dtype, shape)
    ys = [activation(b, rng, dtype, result) for result in results]
    b.operator(op, [*(before or []), x, *(after or [])], ys, made)
    return b.finish([x], ys)


def moving(name: str, op: str, shape: list[int], results: list[list[int]], **keywords: Any) -> None:
    """Register a movement; `before` and `after` are values of constant operands."""

    def build(rng: np.random.Generator) -> bytes:
        b = Builder()
        sides = {side: [b.constant(value) for value in keywords.get(side, [])] for side in ("before", "after")}
        return movement(
            b, rng, op, shape, results, made=keywords.get("made"), dtype=keywords.get("dtype", "int8"), **sides
        )

    CASES[name] = build


moving("reshape", "RESHAPE", [2, 3, 4], [[4, 6]], after=[[-1, 6]], made=options("Reshape", newShape=[-1, 6]))
moving("squeeze", "SQUEEZE", [1, 3, 1, 4], [[3, 4]], made=options("Squeeze", squeezeDims=[0, -2]))
moving("expand_dims", "EXPAND_DIMS", [3, 4], [[3, 1, 4]], after=[[1]])
moving("transpose", "TRANSPOSE", [2, 3, 4, 5], [[2, 5, 3, 4]], after=[[0, 3, 1, 2]])
moving("pad_int8", "PAD", [1, 3, 4, 2], [[1, 6, 5, 2]], after=[[[0, 0], [1, 2], [0, 1], [0, 0]]])
moving("pad_float", "PAD", [1, 3, 4, 2], [[1, 6, 5, 2]], after=[[[0, 0], [1, 2], [0, 1], [0, 0]]], dtype="float32")
moving(
    "mirror_pad_reflect", "MIRROR_PAD", [1, 3, 4, 2], [[1, 6, 5, 2]], after=[[[0, 0], [1, 2], [0, 1], [0, 0]]],
    made=options("MirrorPad", mode=0), dtype="float32",
)  # fmt: skip
moving("split", "SPLIT", [2, 6, 3], [[2, 2, 3]] * 3, before=[1], made=options("Split", numSplits=3))
moving("split_v", "SPLIT_V", [2, 6, 3], [[2, 1, 3], [2, 5, 3]], after=[[1, -1], 1], made=options("SplitV", numSplits=2))
moving("slice", "SLICE", [3, 6, 4], [[2, 3, 4]], after=[[1, 2, 0], [2, 3, -1]])
moving(
    "strided_slice",
    "STRIDED_SLICE",
    [3, 6, 4],
    [[2, 3, 4]],
    after=[[0, 1, 0], [2, 6, 4], [1, 2, 1]],
    made=options("StridedSlice"),
)
moving(
    "strided_slice_masks", "STRIDED_SLICE", [3, 6, 4], [[6, 4]], after=[[1, 0, 3], [2, 0, -9], [1, 1, -1]],
    made=options("StridedSlice", shrinkAxisMask=1, beginMask=2, endMask=2),
)  # fmt: skip
moving("gather", "GATHER", [5, 4], [[2, 3, 4]], after=[[[4, 0, 2], [1, 1, 3]]], made=options("Gather", axis=0))
moving(
    "gather_batch",
    "GATHER",
    [2, 5, 3],
    [[2, 2, 3]],
    after=[[[4, 0], [1, 1]]],
    made=options("Gather", axis=1, batchDims=1),
)
moving("unpack", "UNPACK", [3, 2, 4], [[3, 4]] * 2, made=options("Unpack", num=2, axis=1))
moving("tile", "TILE", [2, 3], [[4, 9]], after=[[2, 3]])
moving("broadcast_to", "BROADCAST_TO", [3, 1], [[2, 3, 4]], after=[[2, 3, 4]])
moving("depth_to_space", "DEPTH_TO_SPACE", [1, 2, 3, 8], [[1, 4, 6, 2]], made=options("DepthToSpace", blockSize=2))
moving("space_to_depth", "SPACE_TO_DEPTH", [1, 4, 6, 2], [[1, 2, 3, 8]], made=options("SpaceToDepth", blockSize=2))
moving("space_to_batch", "SPACE_TO_BATCH_ND", [1, 4, 5, 2], [[4, 2, 3, 2]], after=[[2, 2], [[0, 0], [0, 1]]])
moving("batch_to_space", "BATCH_TO_SPACE_ND", [4, 2, 3, 2], [[1, 4, 5, 2]], after=[[2, 2], [[0, 0], [0, 1]]])
for half, align in ((False, False), (True, False), (False, True)):
    suffix = "_half_pixel" if half else "_align_corners" if align else ""
    for kind in ("int8", "float32"):
        moving(
            f"resize_bilinear_{kind}{suffix}", "RESIZE_BILINEAR", [1, 5, 4, 3], [[1, 8, 9, 3]], after=[[8, 9]], dtype=kind,
            made=options("ResizeBilinear", alignCorners=align, halfPixelCenters=half),
        )  # fmt: skip
    moving(
        f"resize_nearest_int8{suffix}", "RESIZE_NEAREST_NEIGHBOR", [1, 5, 4, 3], [[1, 8, 3, 3]], after=[[8, 3]],
        made=options("ResizeNearestNeighbor", alignCorners=align, halfPixelCenters=half),
    )  # fmt: skip


@case("padv2_int8")
def padding_value(rng: np.random.Generator) -> bytes:
    b = Builder()
    x = activation(b, rng, "int8", [1, 3, 4, 2])
    value = b.tensor("int8", [1], [42], 0.05, -7)
    y = activation(b, rng, "int8", [1, 4, 6, 2])
    b.operator("PADV2", [x, b.constant([[0, 0], [1, 0], [1, 1], [0, 0]]), value], [y])
    return b.finish([x], [y])


@case("concatenation_int8", "CONCATENATION", "int8", 0.05)
@case("concatenation_uint8_rescaled", "CONCATENATION", "uint8", 0.09)
@case("pack_int8", "PACK", "int8", 0.05)
def joined(rng: np.random.Generator, op: str, dtype: str, out: float) -> bytes:
    b = Builder()
    xs = [activation(b, rng, dtype, [2, 3, 4]) for _ in range(3)]
    y = activation(b, rng, dtype, [2, 9, 4] if op == "CONCATENATION" else [2, 3, 3, 4], out)
    b.operator(
        op,
        xs,
        [y],
        options("Concatenation", axis=1) if op == "CONCATENATION" else options("Pack", valuesCount=3, axis=1),
    )
    return b.finish(xs, [y])


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


@case("shape_to_reshape")
def shape_chain(rng: np.random.Generator) -> bytes:
    """SHAPE, STRIDED_SLICE and PACK make the target of a RESHAPE, as converters write Flatten."""
    b = Builder()
    x = activation(b, rng, "int8", [2, 3, 4])
    shape, first, target = b.tensor("int32", [3]), b.tensor("int32", []), b.tensor("int32", [2])
    y = activation(b, rng, "int8", [2, 12])
    b.operator("SHAPE", [x], [shape], options("Shape", outType=2))
    b.operator(
        "STRIDED_SLICE",
        [shape, b.constant([0]), b.constant([1]), b.constant([1])],
        [first],
        options("StridedSlice", shrinkAxisMask=1),
    )
    b.operator("PACK", [first, b.constant(-1)], [target], options("Pack", valuesCount=2, axis=0))
    b.operator("RESHAPE", [x, target], [y], options("Reshape", newShape=[]))
    return b.finish([x], [y])


@case("svdf_int8", "int8")
@case("svdf_float", "float32")
@case("svdf_hybrid", "float32", hybrid=True)
@case("svdf_hybrid_asymmetric", "float32", hybrid=True, asymmetric=True)
def svdf(rng: np.random.Generator, dtype: str, *, hybrid: bool = False, asymmetric: bool = False) -> bytes:
    b = Builder()
    rank, units, memory, depth = 2, 5, 4, 8
    filters = rank * units
    x = activation(b, rng, dtype, [1, depth], 0.05)
    if hybrid:
        feature = b.tensor("int8", [filters, depth], weights(rng, [filters, depth], "int8"), 0.01)
        time = b.tensor("int8", [filters, memory], weights(rng, [filters, memory], "int8"), 0.02)
    elif dtype == "int8":
        feature = b.tensor("int8", [filters, depth], weights(rng, [filters, depth], "int8"), 0.01)
        time = b.tensor("int16", [filters, memory], rng.integers(-3000, 3000, [filters, memory]), 0.0005)
        bias = b.tensor("int32", [units], rng.integers(-30000, 30000, units), 0.0005 * 0.002)
        state = b.tensor("int16", [1, filters * memory], None, 0.002, 0, variable=True)
    else:
        feature = b.tensor("float32", [filters, depth], rng.standard_normal([filters, depth]))
        time = b.tensor("float32", [filters, memory], rng.standard_normal([filters, memory]))
    if dtype == "float32":
        bias = b.tensor("float32", [units], rng.standard_normal(units))
        state = b.tensor("float32", [1, filters * memory], variable=True)
    y = activation(b, rng, dtype, [1, units], 0.03, -128)
    b.operator(
        "SVDF",
        [x, feature, time, bias, state],
        [y],
        options(
            "SVDF",
            rank=rank,
            fusedActivationFunction="RELU" if dtype == "int8" else "NONE",
            asymmetricQuantizeInputs=asymmetric,
        ),
    )
    return b.finish([x], [y])


@case("lstm_int8", "int8")
@case("lstm_int8_coupled_gates_clip", "int8", coupled=True, clip=1.5)
@case("lstm_int8_time_major", "int8", time_major=True)
@case("lstm_int8_projection", "int8", projection=True)
@case("lstm_int8_peephole", "int8", peephole=True)
@case("lstm_int8_peephole_projection", "int8", peephole=True, projection=True)
@case("lstm_int8_peephole_projection_time_major", "int8", peephole=True, projection=True, time_major=True)
@case("lstm_int8_layer_norm", "int8", norm=True)
@case("lstm_int8_layer_norm_coupled_gates", "int8", norm=True, coupled=True, peephole=True)
@case("lstm_float", "float32")
@case("lstm_float_layer_norm", "float32", norm=True, projection=True)
@case("lstm_hybrid", "float32", hybrid=True, peephole=True)
@case("lstm_hybrid_asymmetric_layer_norm", "float32", hybrid=True, norm=True, asymmetric=True, projection=True)
def lstm(
    rng: np.random.Generator,
    dtype: str,
    *,
    coupled: bool = False,
    clip: float = 0.0,
    time_major: bool = False,
    projection: bool = False,
    peephole: bool = False,
    norm: bool = False,
    hybrid: bool = False,
    asymmetric: bool = False,
) -> bytes:
    b = Builder()
    batch, steps, depth, cells = 2, 4, 5, 6
    outputs = 3 if projection else cells
    integer = dtype == "int8"

    def matrix(shape: list[int], scale: float = 0.01) -> int:
        return (
            b.tensor("int8", shape, weights(rng, shape, "int8"), scale)
            if integer or hybrid
            else b.tensor("float32", shape, rng.standard_normal(shape))
        )

    x = activation(b, rng, dtype, [steps, batch, depth] if time_major else [batch, steps, depth], 0.03, 5)
    inputs = [x] + [-1] * 23
    for gate in range(4):
        if gate == 0 and coupled:
            continue
        inputs[1 + gate] = matrix([cells, depth], 0.011 + 0.002 * gate)
        inputs[5 + gate] = matrix([cells, outputs], 0.009 + 0.001 * gate)
        if integer:
            inputs[12 + gate] = b.tensor("int32", [cells], rng.integers(-4000, 4000, cells), 0.0003)
        else:
            inputs[12 + gate] = b.tensor("float32", [cells], rng.standard_normal(cells))
    if peephole:
        for place in (9, 10, 11):
            if place == 9 and coupled:
                continue
            inputs[place] = (
                b.tensor("int16", [cells], rng.integers(-20000, 20000, cells), 0.00004)
                if integer
                else b.tensor("int8", [cells], weights(rng, [cells], "int8"), 0.01)
            )
    if projection:
        inputs[16] = matrix([outputs, cells])
        inputs[17] = (
            b.tensor("int32", [outputs], rng.integers(-2000, 2000, outputs), 0.0001)
            if integer
            else b.tensor("float32", [outputs], rng.standard_normal(outputs))
        )
    for gate in range(coupled, 4 if norm else 0):
        inputs[20 + gate] = (
            b.tensor("int16", [cells], rng.integers(-32000, 32000, cells), 0.00005)
            if integer
            else b.tensor("float32", [cells], rng.standard_normal(cells))
        )
    state_scale, state_zero = (0.009, 7)
    inputs[18] = b.tensor(dtype, [batch, outputs], None, *((state_scale, state_zero) if integer else ()), variable=True)
    inputs[19] = b.tensor(
        "int16" if integer else dtype, [batch, cells], None, *((2.0**-12, 0) if integer else ()), variable=True
    )
    shape = [steps, batch, outputs] if time_major else [batch, steps, outputs]
    y = b.tensor(dtype, shape, None, *((state_scale, state_zero) if integer else ()))
    middle = None
    if integer:
        middle = [b.tensor("int16", [1], None, 0.0007 if norm else 2.0**-12, 0) for _ in range(4)]
        middle.append(
            b.tensor("int8", [1], None, 0.0085, 3)
            if projection
            else b.tensor("int8", [1], None, state_scale, state_zero)
        )
    made = options(
        "UnidirectionalSequenceLSTM",
        fusedActivationFunction="TANH",
        cellClip=clip,
        timeMajor=time_major,
        asymmetricQuantizeInputs=asymmetric,
    )
    b.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], made, middle)
    return b.finish([x], [y])


@case("variables_int8", "int8")
@case("variables_float", "float32")
@case("variables_assigned_twice", "int8", times=2)
def variables(rng: np.random.Generator, dtype: str, times: int = 1) -> bytes:
    """A stream as keyword spotters keep it: what was heard before is a variable, joined with what comes in."""
    b = Builder()
    scheme = {"scale": 0.1, "zero": -5} if dtype == "int8" else {}
    b.operator("CALL_ONCE", [], [], options("CallOnce", initSubgraphIndex=1))
    handle, x = b.variable("stream"), b.tensor(dtype, [1, 1, 8], **scheme)
    for _ in range(times):
        held, whole, last = (b.tensor(dtype, [1, size, 8], **scheme) for size in (3, 4, 3))
        b.operator("READ_VARIABLE", [handle], [held])
        b.operator("CONCATENATION", [held, x], [whole], options("Concatenation", axis=1))
        bounds = [b.constant(values) for values in ([0, 1, 0], [1, 4, 8], [1, 1, 1])]
        b.operator("STRIDED_SLICE", [whole, *bounds], [last], options("StridedSlice"))
        b.operator("ASSIGN_VARIABLE", [handle, last], [])
    w = b.tensor(dtype, [6, 32], rng.integers(-127, 128, [6, 32]), *((0.01,) if scheme else ()))
    y = b.tensor(dtype, [1, 6], **({"scale": 0.3, "zero": 3} if scheme else {}))
    b.operator("FULLY_CONNECTED", [whole, w], [y], options("FullyConnected"))
    b.graph = b.subgraph("once")
    start = b.tensor(dtype, [1, 3, 8], rng.integers(-9, 10, [1, 3, 8]), **scheme)
    b.operator("ASSIGN_VARIABLE", [b.variable("stream"), start], [])
    b.graph = b.model.subgraphs[0]
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
for drawn in (FUNCTIONS, MOVEMENTS):
    CASES.update({f"drawn_{kind.replace(', ', '_').replace(' ', '_').lower()}": build for kind, build in drawn.items()})
