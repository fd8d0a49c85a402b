"""Transposed convolutions of stored values in dialect hwq: exact integer sums, one rounding, in every shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from onnx import helper

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


def test_a_machine_of_integers_takes_it() -> None:
    graph, x = net("u-net")
    plan = plan_of({"dtype": "int8"}).model_copy(update={"dialect": "hwq-integer"})
    quantized = hwq.quantize(graph, plan, hwq.calibrate(graph, x))  # refuses what has no kernel of integers
    assert np.array_equal(hwq.execute(quantized, x), hwq.execute(quantized, x, dialect="hwq"))
    assert hwq.estimate(quantized, "t4").seconds > 0.0
