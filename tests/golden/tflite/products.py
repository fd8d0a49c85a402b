"""One-op models of products: convolutions, fully connected layers, matrix products."""

from __future__ import annotations

import numpy as np
from cases import activation, case, channel_scales, weights

from hwq.verification.tflite_builder import Builder, options


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
