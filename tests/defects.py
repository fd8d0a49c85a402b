"""Defects of other runtimes, by hand in NumPy: what one layer would compute by another rule. None where it makes no sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hwq.graph import Graph, Node

f32 = np.float32
Array = np.ndarray
Defect = Callable[[Mapping[str, Array], Graph, Node], Array | None]
PRODUCTS = ("Conv", "MatMul", "Gemm", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def away(value: Any) -> Any:
    return np.sign(value) * np.floor(np.abs(value) + 0.5)


def facts(graph: Graph, name: str) -> tuple[Array, Array, str]:
    pair = graph.tensors[name].quantization
    assert pair is not None
    return pair.scales().astype(f32).reshape(-1), pair.zero_points().astype(np.int64).reshape(-1), pair.dtype


def bounds(graph: Graph, node: Node) -> tuple[Any, int, str, int, int]:
    """(scale, zero point, type, lowest, highest) of a layer's result."""
    scales, zeros, dtype = facts(graph, node.outputs[0])
    scale, zero, info = scales[0], int(zeros[0]), np.iinfo(dtype)
    low, high = int(info.min), int(info.max)
    activation = node.attributes.get("activation", "NONE")
    if activation in {"RELU", "RELU6"}:
        low = max(low, zero)
    if activation == "RELU6":
        high = min(high, zero + int(away(f32(f32(6) / scale))))
    return scale, zero, dtype, low, high


def pads_of(node: Node, space: Any, kernel: Any, strides: Any) -> list[tuple[int, int]]:
    if node.domain != "tflite":
        top, left, bottom, right = node.attributes.get("pads", (0, 0, 0, 0))
        return [(top, bottom), (left, right)]
    if node.attributes["padding"] != "SAME":
        return [(0, 0), (0, 0)]
    need = [
        max((-(-size // step) - 1) * step + taps - size, 0)
        for size, taps, step in zip(space, kernel, strides, strict=True)
    ]
    return [(one // 2, one - one // 2) for one in need]


def sums(
    operands: Mapping[str, Array], graph: Graph, node: Node, padding: int | None, saturate: bool
) -> tuple[Array, bool] | None:
    """Sums without bias, channels last, and whether anything is padded."""
    x, w = operands[node.inputs[0]], graph.tensors[node.inputs[1]].data
    assert w is not None
    _, (zero, *_), dtype = facts(graph, node.inputs[0])
    _, zeros, weight_type = facts(graph, node.inputs[1])
    zeros = zeros if weight_type == "uint8" else np.zeros(1, np.int64)
    if saturate and weight_type == "uint8":
        return None

    def product(a: Array, b: Array, z: Array) -> Array:
        if not saturate:
            return (a - zero) @ (b - z)
        shift = 128 if dtype == "int8" else 0  # such kernels take uint8
        pairs = [np.clip((a[..., k : k + 2] + shift) @ b[k : k + 2], -32768, 32767) for k in range(0, len(b), 2)]
        return sum(pairs) - (zero + shift) * b.sum(0)

    if node.op not in {"Conv", "CONV_2D", "DEPTHWISE_CONV_2D"}:
        b = w.T if node.op == "FULLY_CONNECTED" or node.attributes.get("transB", 0) else w
        a = x.reshape(-1, len(b)).astype(np.int64)
        return product(a, b.astype(np.int64), np.broadcast_to(zeros, b.shape[1:])), False
    last = node.domain == "tflite"
    image = (x if last else np.moveaxis(x, 1, -1)).astype(np.int64)
    if node.op == "DEPTHWISE_CONV_2D":
        taps = w[0].astype(np.int64)[:, :, None]
    else:
        taps = np.moveaxis(
            (w if last else np.moveaxis(w, 1, -1)).astype(np.int64), 0, -1
        )  # kh, kw, channels of a group, filters
    kh, kw, each, filters = taps.shape
    strides = node.attributes.get("strides", (1, 1))
    pads = pads_of(node, image.shape[1:3], (kh, kw), strides)
    wide = np.pad(image, [(0, 0), *pads, (0, 0)], constant_values=zero if padding is None else padding)
    counts = [(size - taps_) // step + 1 for size, taps_, step in zip(wide.shape[1:3], (kh, kw), strides, strict=True)]
    windows = np.stack([
        wide[:, i : i + (counts[0] - 1) * strides[0] + 1 : strides[0], j : j + (counts[1] - 1) * strides[1] + 1 : strides[1]]
        for i in range(kh) for j in range(kw)], -2)  # fmt: skip
    groups = image.shape[-1] // each
    per, made = filters // groups, []
    for group in range(groups):
        a = windows[..., group * each : (group + 1) * each].reshape(*windows.shape[:3], -1)
        b = taps[..., group * per : (group + 1) * per].reshape(-1, per)
        made.append(product(a, b, np.broadcast_to(zeros, (filters,))[group * per : (group + 1) * per]))
    return np.concatenate(made, -1), any(map(sum, pads))


def fixed(total: Array, real: Array, kind: str) -> Array:
    """In Python's own integers: `double` rounds twice (away last), `up` twice upwards, `single` once."""
    made = np.empty(total.shape, np.int64)
    for channel, factor in enumerate(np.broadcast_to(real, total.shape[-1:])):
        fraction, exponent = np.frexp(np.float64(factor))
        m, right, left = int(away(fraction * 2.0**31)), max(-int(exponent), 0), max(int(exponent), 0)
        half = (1 << right) >> 1
        for place in np.ndindex(total.shape[:-1]):
            product = (int(total[(*place, channel)]) << left) * m
            high = (product + (1 << 30)) >> 31
            if kind == "single":
                value = (product + (1 << (30 + right))) >> (31 + right)
            elif kind == "up" or high >= 0:
                value = (high + half) >> right
            else:
                value = -((-high + half) >> right)
            made[(*place, channel)] = value
    return made


def product(kind: str) -> Defect:
    def made(operands: Mapping[str, Array], graph: Graph, node: Node) -> Array | None:
        found = sums(operands, graph, node, 0 if kind == "padding" else None, kind == "saturate")
        given = graph.tensors[node.inputs[2]].data if len(node.inputs) > 2 and node.inputs[2] else None
        scale, zero, dtype, low, high = bounds(graph, node)
        s_in, s_w = facts(graph, node.inputs[0])[0], facts(graph, node.inputs[1])[0]
        if (
            found is None
            or (kind == "padding" and not found[1])
            or (kind == "no bias" and given is None)
            or (kind == "scales" and s_w.size < 2)
        ):
            return None
        total = found[0] if given is None or kind == "no bias" else found[0] + given.astype(np.int64).reshape(-1)
        s_w = np.roll(s_w, 1) if kind == "scales" else s_w
        products = (s_in * s_w).astype(f32)
        factor, narrow = (products / scale).astype(f32), total.astype(f32)
        wide = np.float64(s_in[0]) * s_w.astype(np.float64) / np.float64(scale)
        lite = node.domain == "tflite"
        ties = away if lite else np.rint
        if kind in {"double", "up", "single"}:
            value = fixed(total, wide, kind) + zero
        elif kind in {"even", "away", "truncated", "downwards"}:
            rounded = {"even": np.rint, "away": away, "truncated": np.trunc, "downwards": np.floor}[kind]
            value = rounded(total * wide if lite else narrow * factor) + zero
        elif kind == "zero first":
            value = ties((narrow * factor).astype(f32) + f32(zero))
        elif kind == "reciprocal":
            value = ties(narrow * (products * (f32(1) / scale)).astype(f32)) + zero
        elif not lite:
            value = np.rint(narrow * factor) + zero
        else:
            value = (away(total * wide) if node.op == "FULLY_CONNECTED" else fixed(total, wide, "double")) + zero
        if kind == "clamp":
            high -= 1
        value = np.clip(value, low, high).astype(dtype)
        return np.ascontiguousarray(np.moveaxis(value, -1, 1)) if node.op == "Conv" else value

    return made


def quantize(kind: str) -> Defect:
    def made(operands: Mapping[str, Array], graph: Graph, node: Node) -> Array | None:
        x = operands[node.inputs[0]]
        if x.dtype != f32:
            return None
        scale, zero, dtype, low, high = bounds(graph, node)
        ratio, ties = (x / scale).astype(f32), away if node.domain == "tflite" else np.rint
        value = {
            "even": lambda: np.rint(ratio) + zero, "away": lambda: away(ratio) + zero, "truncated": lambda: np.trunc(ratio) + zero,
            "zero first": lambda: ties(ratio + f32(zero)), "reciprocal": lambda: ties((x * (f32(1) / scale)).astype(f32)) + zero,
            "fused": lambda: np.rint((x.astype(np.float64) * np.float64(f32(1) / scale) + zero).astype(f32)),
        }[kind]()  # fmt: skip
        return np.clip(value, low, high).astype(dtype)

    return made


def average(kind: str) -> Defect:
    """TFLite's average pool: padded places counted, or another rounding."""

    def made(operands: Mapping[str, Array], graph: Graph, node: Node) -> Array | None:
        x, (_, _, dtype, low, high) = operands[node.inputs[0]], bounds(graph, node)
        kernel, strides = node.attributes["kernel_shape"], node.attributes["strides"]
        pads = pads_of(node, x.shape[1:3], kernel, strides)
        if dtype == "float32" or (kind == "counted" and not any(map(sum, pads))):
            return None
        ones, wide = (
            np.pad(one, [(0, 0), *pads, (0, 0)]) for one in (np.ones((1, *x.shape[1:3], 1), int), x.astype(int))
        )
        counts = [(size - taps) // step + 1 for size, taps, step in zip(wide.shape[1:3], kernel, strides, strict=True)]
        spans = [
            [slice(tap, tap + (count - 1) * step + 1, step) for tap in range(taps)]
            for taps, step, count in zip(kernel, strides, counts, strict=True)
        ]
        total, number = (sum(one[:, i, j] for i in spans[0] for j in spans[1]) for one in (wide, ones))
        if kind == "counted":
            value = away(total / (kernel[0] * kernel[1]))
        else:
            value = (np.rint if kind == "even" else np.trunc)(total / number)
        return np.clip(value, low, high).astype(dtype)

    return made


def softmax(operands: Mapping[str, Array], graph: Graph, node: Node) -> Array:
    """In floats, between dequantizing and quantizing."""
    s, z, _ = facts(graph, node.inputs[0])
    scale, zero, dtype, low, high = bounds(graph, node)
    real = ((operands[node.inputs[0]].astype(f32) - f32(z[0])) * s[0]).astype(np.float64)
    powers = np.exp(real - real.max(-1, keepdims=True))
    share = (powers / powers.sum(-1, keepdims=True)).astype(f32)
    return np.clip(
        (away if node.domain == "tflite" else np.rint)((share / scale).astype(f32)) + zero, low, high
    ).astype(dtype)


# Name, operators, rule, what the other runtime computes there.
DEFECTS: tuple[tuple[str, tuple[str, ...], str, Defect], ...] = (
    *((kind, PRODUCTS, "rounding", product(kind)) for kind in ("even", "away", "truncated", "downwards", "double", "up", "single")),
    ("zero first", PRODUCTS, "zero-point order", product("zero first")),
    ("reciprocal", PRODUCTS, "division or reciprocal", product("reciprocal")),
    ("saturate", PRODUCTS, "saturation", product("saturate")),
    ("no bias", PRODUCTS, "bias", product("no bias")),
    ("padding", PRODUCTS, "padding", product("padding")),
    ("scales", PRODUCTS, "channel scales", product("scales")),
    ("clamp", PRODUCTS, "clamp", product("clamp")),
    *((kind, ("QuantizeLinear", "QUANTIZE"), "rounding", quantize(kind)) for kind in ("even", "away", "truncated")),
    ("zero first", ("QuantizeLinear", "QUANTIZE"), "zero-point order", quantize("zero first")),
    ("reciprocal", ("QuantizeLinear", "QUANTIZE"), "division or reciprocal", quantize("reciprocal")),
    ("fused", ("QuantizeLinear", "QUANTIZE"), "fused multiply-add", quantize("fused")),
    ("counted", ("AVERAGE_POOL_2D",), "padding", average("counted")),
    *((kind, ("AVERAGE_POOL_2D",), "rounding", average(kind)) for kind in ("even", "truncated")),
    ("in floats", ("Softmax", "SOFTMAX"), "resolver", softmax),
)  # fmt: skip
