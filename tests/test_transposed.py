"""Transposed convolutions of stored values in dialect hwq: exact integer sums, one rounding, in every shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from onnx import helper
from test_kernels_int4 import fma
from test_modes import INTEGER
from test_modes import plan_of as modes_plan
from test_modes_in_c import held, in_python

import hwq
from hwq.lowering import lower
from hwq.ops.transposed import footprint_of, spread
from hwq.plan import Plan

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "u-net": ((4, 6, 2, 2), (5, 6), {"strides": [2, 2]}),
    "overlap": ((4, 3, 3, 3), (5, 6), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    "groups": ((6, 2, 3, 2), (4, 5), {"group": 3, "strides": [1, 2], "dilations": [2, 1]}),
    "depthwise": ((6, 1, 3, 3), (4, 5), {"group": 6, "strides": [2, 2], "pads": [0, 1, 1, 0]}),
    "1-d": ((4, 3, 5), (9,), {"strides": [3], "auto_pad": "SAME_UPPER"}),
    "3-d": ((2, 3, 2, 2, 3), (3, 2, 4), {"strides": [1, 2, 1]}),
    "gaps": ((4, 3, 2, 1), (5, 4), {"strides": [3, 2]}),
    "stride and dilation": (
        (4, 2, 3, 4),
        (5, 6),
        {"group": 2, "strides": [2, 3], "dilations": [2, 2], "pads": [1, 2, 0, 3]},
    ),
    "cut": ((3, 2, 2, 3), (6, 5), {"strides": [2, 1], "pads": [2, 3, 3, 2]}),
    "given size": ((4, 3, 3, 3), (5, 6), {"strides": [2, 2], "output_shape": [8, 13]}),
    "one stride": ((4, 3, 3, 3), (5, 6), {"pads": [1, 1, 1, 1], "auto_pad": "NOTSET"}),
}


def net(name: str, seed: int = 0) -> tuple[hwq.graph.Graph, np.ndarray]:
    """A Conv that keeps the size makes what the transposed one reads; a Relu behind it."""
    shape, space, attributes = CASES[name]
    rng = np.random.default_rng(seed)
    groups, rank = attributes.get("group", 1), len(space)
    constants = {
        "w0": rng.normal(size=(shape[0], 3, *[1] * rank)),
        "w": rng.normal(size=shape) * np.exp(rng.normal(size=(1, shape[1], *[1] * rank))),
        "b": rng.normal(size=groups * shape[1]) * 0.3,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], "before"),
        helper.make_node("ConvTranspose", ["c", "w", "b"], ["t"], "up", **attributes),
        helper.make_node("Relu", ["t"], ["y"], "clamp"),
    ]
    data = rng.normal(size=(6, 3, *space)).astype(np.float32)
    return tiny.graph(tiny.model(nodes, {"x": ["N", 3, *space]}, {"y": ["N", *["?"] * (rank + 1)]}, constants)), data


def plan_of(weights: dict[str, Any], activations: str = "uint8") -> Plan:
    default = {"weights": weights, "activations": {"dtype": activations}}
    return Plan.model_validate({"schema": 1, "dialect": "hwq", "default": default})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "weights",
    [{"dtype": "int8"}, {"dtype": "uint8", "symmetric": False}, {"dtype": "int8", "granularity": "tensor"}, {"dtype": "int4"}],
    ids=["int8", "uint8", "tensor", "int4"],
)  # fmt: skip
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_sums_are_exact_and_rounded_once(name: str, weights: dict[str, Any], activations: str) -> None:
    graph, x = net(name)
    quantized = hwq.quantize(graph, plan_of(weights, activations), hwq.calibrate(graph, x))
    lowered = lower(quantized, "hwq")
    node = next(node for node in lowered.nodes if node.op == "ConvTranspose")
    stored, filters, made = (lowered.tensors[value].quantization for value in (*node.inputs[:2], node.outputs[0]))
    assert stored is not None and filters is not None and made is not None
    values = hwq.compile(quantized)(x, intermediates=True)[1]
    given, weight = values[node.inputs[0]].astype(np.int64), lowered.constant(node.inputs[1])
    assert weight is not None
    groups, rank = int(node.attributes.get("group", 1)), x.ndim - 2
    points, scales = (
        np.broadcast_to(one.reshape(-1), (weight.shape[1],)) for one in (filters.zero_points(), filters.scales())
    )
    centered = weight.astype(np.int64) - points.reshape(1, -1, *[1] * rank)
    where = footprint_of(node, given.shape[2:], weight.shape[2:])
    sums = spread(given - int(stored.zero_points()), centered, groups, where, np.matmul)
    column = (-1, *[1] * rank)
    factor = np.tile((stored.scales().astype(np.float32) * scales).astype(np.float32), groups).reshape(column)
    bias = (graph.constant("b").reshape(column) / factor).astype(np.float32)
    scale, zero = np.float32(made.scales()), int(made.zero_points())
    real = (sums.astype(np.float32) + bias) * (factor / scale).astype(np.float32)
    low, high = (0, 255) if made.dtype == "uint8" else (-128, 127)
    wanted = np.clip(np.rint(real).astype(np.int64) + zero, max(low, zero), high)
    assert np.array_equal(values[node.outputs[0]].astype(np.int64), wanted)
    plain = hwq.execute(quantized, x, dialect="ort-unfused")
    assert np.abs(hwq.execute(quantized, x) - plain).max() <= 1.01 * float(scale)


f32 = np.float32


def reading(
    q: hwq.graph.Graph, x: np.ndarray
) -> tuple[hwq.graph.Node, np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The node of a quantized source graph; its weights less their zero points, and scales, as filters; scale and stored values."""
    program = hwq.compile(q)
    values = program(x, intermediates=True)[1]
    lowered = next(node for node in program.graph.nodes if node.op == "ConvTranspose")
    own = program.graph.tensors[lowered.inputs[0]].quantization
    node = q.node("up")
    weights, activations = (q.producers[name] for name in node.inputs[:2][::-1])
    stored, scale, point = (np.asarray(q.constant(name)) for name in weights.inputs)
    block = weights.attributes.get("block_size")
    spread_out = []
    for one in (scale, point.astype(np.int64)):
        if block is not None:
            spread_out.append(np.repeat(one, block, 0)[: stored.shape[0]])
        else:
            spread_out.append(np.broadcast_to(one.reshape(1, -1, *[1] * (stored.ndim - 2)), stored.shape))
    given = [
        values[name] if name in values else np.asarray(q.constant(name))
        for name in (lowered.inputs[0], *activations.inputs[1:])
    ]
    return (
        node,
        stored.astype(np.int64) - spread_out[1],
        spread_out[0],
        given[0].astype(np.int64) - (given[2] if own is None or own.dynamic else own.zero_points()),
        given[1],
        values,
    )


def fused(node: hwq.graph.Node, given: np.ndarray, weight: np.ndarray, scales: np.ndarray, block: int) -> np.ndarray:
    """``y = fma(f32(sum), scale, y)`` over the taps, the last first, as the input lies, and the blocks of channels."""
    groups = int(node.attributes.get("group", 1))
    where, made = footprint_of(node, given.shape[2:], weight.shape[2:]), None
    for tap in np.ndindex(*weight.shape[2:]):
        at = tuple(size - 1 - one for size, one in zip(weight.shape[2:], tap, strict=True))
        for first in range(0, weight.shape[0], block):
            part = np.zeros_like(weight)
            part[(slice(first, first + block), slice(None), *at)] = weight[
                (slice(first, first + block), slice(None), *at)
            ]
            acc = spread(given, part, groups, where, np.matmul).astype(f32)
            step = np.tile(scales[(first, slice(None), *at)], groups).reshape(-1, *[1] * (given.ndim - 2))
            made = np.zeros_like(acc) if made is None else made
            made = fma(acc, np.ascontiguousarray(np.broadcast_to(step, acc.shape)), made)
    assert made is not None
    return made


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", [name for name in INTEGER if name not in {"static uint8", "static int8"}])
def test_every_mode_of_integers(mode: str, name: str) -> None:
    """In C as in Python, and by a reading of 64-bit integers; groups of scales that two groups of channels share stay float."""
    graph, x = net(name)
    q = hwq.quantize(graph, modes_plan(mode), hwq.calibrate(graph, x))
    program = hwq.compile(q)
    lowered = next(node for node in program.graph.nodes if node.op == "ConvTranspose")
    shared = "groups" in mode and name in {"groups", "depthwise", "stride and dilation"}
    if lowered.body or not shared:
        assert lowered.body and "ConvTranspose" not in " ".join(in_python(program, x[:3]))
    held(program, x[:3])
    held(program, x[:1])
    if shared:
        return
    node, weight, scales, given, step, values = reading(q, x)
    rank = x.ndim - 2
    column = (-1, *[1] * rank)
    groups, bias = int(node.attributes.get("group", 1)), graph.constant("b").reshape(column)
    where = footprint_of(node, given.shape[2:], weight.shape[2:])
    width = q.producers[node.inputs[1]].attributes.get("block_size", 0)
    blocks = width > 0
    if blocks:
        sums = fused(node, given, weight, scales, width)
    else:
        sums = spread(given, weight, groups, where, np.matmul)
        factor = np.tile(scales[(0, slice(None), *(0,) * rank)], groups).reshape(column)
    if mode.startswith("dynamic"):
        made = sums * step + bias if blocks else sums.astype(f32) * (step * factor).astype(f32) + bias
        assert np.array_equal(np.maximum(made, 0), program(x))
        return
    made = program.graph.tensors[lowered.outputs[0]].quantization
    assert made is not None
    scale, zero = f32(made.scales()), int(made.zero_points())
    low, high = np.iinfo(made.dtype).min, np.iinfo(made.dtype).max
    if made.dtype.endswith("16"):
        real = factor.astype(np.float64) * np.float64(step)
        total = (sums + np.rint(bias.astype(np.float64) / real).astype(np.int64)).astype(np.float64) * (
            real / np.float64(scale)
        )
        wanted = (np.sign(total) * np.floor(np.abs(total) + 0.5)).astype(np.int64) + zero
    elif blocks:
        wanted = (
            np.rint(np.clip((sums + (bias / step).astype(f32)) * f32(step / scale), low - zero, high - zero)).astype(
                np.int64
            )
            + zero
        )
    else:
        steps = (f32(step) * factor).astype(f32)
        real = (sums.astype(f32) + (bias / steps).astype(f32)) * (steps / scale).astype(f32)
        wanted = np.rint(np.clip(real, low - zero, high - zero)).astype(np.int64) + zero
    assert np.array_equal(values[lowered.outputs[0]].astype(np.int64), np.clip(wanted, max(low, zero), high))


def test_a_machine_of_integers_takes_it() -> None:
    graph, x = net("u-net")
    plan = plan_of({"dtype": "int8"}).model_copy(update={"dialect": "hwq-integer"})
    quantized = hwq.quantize(graph, plan, hwq.calibrate(graph, x))  # refuses what has no kernel of integers
    assert np.array_equal(hwq.execute(quantized, x), hwq.execute(quantized, x, dialect="hwq"))
    assert hwq.estimate(quantized, "t4").seconds > 0.0
