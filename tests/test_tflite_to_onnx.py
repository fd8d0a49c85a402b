"""TFLite models in ONNX's operators: near the home runtime, onnxruntime's bytes in both formats, proofs and repairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import hwq
from hwq.errors import Error
from hwq.execution import compile
from hwq.importers.tflite import read
from hwq.portability import portability
from hwq.repair import repair
from hwq.translation import translate
from hwq.verification.tflite_builder import Builder, options

ONES = dict(strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
ZERO = {"int8": 3, "uint8": 131, "int16": 0}
RANGE = {"int8": (-128, 128), "uint8": (0, 256), "int16": (-32768, 32768)}


class Net:
    """Operators one behind another on stored values of one type."""

    def __init__(self, dtype: str, seed: int = 0, limit: int = 127):
        self.b, self.dtype, self.rng, self.limit = Builder(), dtype, np.random.default_rng(seed), limit
        self.fine = 2.0**-8 if dtype == "int16" else 1.0

    def value(self, shape: list[int], scale: float = 0.05, zero: int | None = None) -> int:
        return self.b.tensor(
            self.dtype, shape, scale=scale * self.fine, zero=ZERO[self.dtype] if zero is None else zero
        )

    def weights(self, shape: list[int], axis: int) -> tuple[int, Any]:
        if self.dtype == "uint8":
            scale = np.float32([0.004])
            return self.b.tensor("uint8", shape, self.rng.integers(0, 256, shape), scale, 120, axis), scale
        scale = self.rng.uniform(0.003, 0.006, shape[axis]).astype(np.float32)
        data = self.rng.integers(-self.limit, self.limit + 1, shape)
        return self.b.tensor("int8", shape, data, scale, 0, axis), scale

    def bias(self, scale: Any, wide: bool = True) -> int:
        step = np.float32(0.05 * self.fine) * scale
        count = len(scale)
        kind = "int64" if self.dtype == "int16" and wide else "int32"
        return self.b.tensor(kind, [count], self.rng.integers(-500, 500, count), step)

    def add(self, op: str, inputs: list[int], shape: list[int], table: str = "", scale: float = 0.05, zero: int | None = None, **values: Any) -> int:  # fmt: skip
        made = self.value(shape, scale, zero)
        self.b.operator(op, inputs, [made], options(table, **values) if table else None)
        return made


def network(dtype: str, seed: int = 0, limit: int = 127) -> bytes:
    """Convolutions, pools, sums, movers and a head."""
    net = Net(dtype, seed, limit)
    x = net.value([1, 9, 8, 4])
    channels = [1] if dtype == "uint8" else [6]
    w, scale = net.weights([6, 3, 3, 4], 0)
    bias = np.broadcast_to(scale, 6) if channels == [1] else scale
    y = net.add("CONV_2D", [x, w, net.bias(bias)], [1, 5, 4, 6], "Conv2D", padding="SAME", fusedActivationFunction="RELU6", **{**ONES, "strideH": 2, "strideW": 2})  # fmt: skip
    w, scale = net.weights([1, 3, 2, 12], 3)
    bias = np.broadcast_to(scale, 12) if channels == [1] else scale
    z = net.add("DEPTHWISE_CONV_2D", [y, w, net.bias(bias)], [1, 5, 4, 12], "DepthwiseConv2D", padding="SAME", depthMultiplier=2, **ONES)  # fmt: skip
    a, c = net.value([1, 5, 4, 6]), net.value([1, 5, 4, 6])
    net.b.operator("SPLIT", [net.b.constant(3), z], [a, c], options("Split", numSplits=2))
    a = net.add("ADD", [a, y], [1, 5, 4, 6], "Add", scale=0.07, potScaleInt16=False)
    a = net.add("PAD", [a, net.b.constant([[0, 0], [0, 1], [1, 1], [0, 0]])], [1, 6, 6, 6], scale=0.07)
    a = net.add("AVERAGE_POOL_2D", [a], [1, 3, 3, 6], "Pool2D", scale=0.07, padding="SAME", strideH=2, strideW=2, filterHeight=3, filterWidth=2)  # fmt: skip
    c = net.add("MAX_POOL_2D", [c], [1, 3, 3, 6], "Pool2D", padding="VALID", strideH=1, strideW=1, filterHeight=3, filterWidth=2)  # fmt: skip
    c = net.add("QUANTIZE", [c], [1, 3, 3, 6], scale=0.07)
    d = net.add("CONCATENATION", [a, c], [1, 3, 3, 12], "Concatenation", scale=0.07, axis=-1)
    d = net.add("STRIDED_SLICE", [d, *(net.b.constant(one) for one in ([0, 0, 0, 2], [0, 2, 3, 12], [1, 1, 1, 1]))], [1, 2, 3, 10], "StridedSlice", scale=0.07, beginMask=1, endMask=1)  # fmt: skip
    d = net.add("GATHER", [d, net.b.constant([1, 0, 1])], [1, 3, 3, 10], "Gather", scale=0.07, axis=1)
    d = net.add("MUL", [d, net.add("MEAN", [d, net.b.constant([1, 2])], [1, 1, 1, 10], "Reducer", scale=0.07, keepDims=True)], [1, 3, 3, 10], "Mul", scale=0.2)  # fmt: skip
    d = net.add("RESHAPE", [d, net.b.constant([1, 9, 10])], [1, 9, 10], "Reshape", scale=0.2, newShape=np.array([1, 9, 10], np.int32))  # fmt: skip
    w, scale = net.weights([5, 10], 0)
    d = net.add("FULLY_CONNECTED", [d, w], [1, 9, 5], "FullyConnected", scale=0.1, keepNumDims=True)
    d = net.add("TRANSPOSE", [d, net.b.constant([0, 2, 1])], [1, 5, 9], scale=0.1)
    w, scale = net.weights([4, 45], 0)
    d = net.add("FULLY_CONNECTED", [d, w], [1, 4], "FullyConnected", scale=0.1)
    if dtype == "int16":
        return net.b.finish([x], [d])
    head = net.b.tensor(dtype, [1, 4], scale=1 / 256, zero=RANGE[dtype][0])
    net.b.operator("SOFTMAX", [d], [head], options("Softmax", beta=1.0))
    return net.b.finish([x], [head])


def feeds(graph: hwq.Graph, dtype: str, count: int = 4, seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {graph.inputs[0]: rng.integers(*RANGE[dtype], (count, 9, 8, 4)).astype(dtype)}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_every_value_is_near_the_home_runtime(dtype: str) -> None:
    graph = read(network(dtype), "m")
    made = translate(graph, "ort")
    feed = {name: array[:1] for name, array in feeds(graph, dtype).items()}
    home = compile(graph)(feed, intermediates=True)[1]
    there = compile(made.graph, "ort-unfused")(feed, intermediates=True)[1]
    seen = 0
    for name, value in home.items():
        place = made.values.get(name)
        if place is None or place.name not in there:
            continue
        other = place.restored(there[place.name], value.dtype)
        assert other.shape == value.shape
        distance = np.abs(other.astype(np.int64) - value.astype(np.int64))
        # A step a layer, carried on by the layers behind it; another layout or border would differ by the whole range.
        assert distance.max() <= (4 if dtype != "int16" else 400) and np.mean(distance) < (
            1 if dtype != "int16" else 100
        )
        seen += 1
    assert seen >= 18


@pytest.mark.parametrize("format", ["qdq", "qoperator"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_onnxruntime_gives_our_bytes(dtype: str, format: str, tmp_path: Path) -> None:
    graph = read(network(dtype), "m")
    path = tmp_path / "m.onnx"
    hwq.export(graph, path, format)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    whole, program = feeds(graph, dtype), compile(hwq.load(path), "ort")
    translated = compile(translate(graph, "ort").graph, "ort")
    for sample in next(iter(whole.values())):
        feed = {graph.inputs[0]: sample[None]}
        theirs = session.run(None, feed)[0]
        for ours in (program(feed), translated(feed)):
            assert theirs.dtype == ours.dtype and np.array_equal(theirs, ours)


def test_portability_and_repair_of_a_tflite_model(tmp_path: Path) -> None:
    graph = read(network("int8", seed=3), "m")
    x = feeds(graph, "int8", 8)
    made = portability(graph, x)
    rows = {row.dialect: row for row in made.rows}
    assert all(not row.unavailable for row in made.rows)
    assert rows["litert-ref"].differing == 0 and rows["ort"].agreement is not None and rows["ort"].agreement > 0.5
    assert all(row.first_differing != "an output" for row in made.rows)
    layers = {node.name for node in graph.nodes}
    assert made.proofs and all(proof.layer in layers for proof in made.proofs)
    assert not made.safe and any(proof.witness is not None for proof in made.proofs)
    mended = repair(graph)
    again = portability(mended.graph, x, dialects=("ort", "ort-avx2-saturating"))
    assert again.safe and all(row.differing == 0 for row in again.rows)
    ours = compile(translate(graph, "ort").graph, "ort")
    for sample in x[graph.inputs[0]]:
        feed = {graph.inputs[0]: sample[None]}
        assert np.array_equal(ours(feed), compile(mended.graph, "ort-avx2-saturating")(feed))
    hwq.export(mended.graph, tmp_path / "safe.onnx")


def test_what_has_no_counterpart_is_named() -> None:
    b = Builder()
    x = b.tensor("int8", [1, 4, 4, 1], scale=0.1)
    y = b.tensor("int8", [1, 6, 6, 1], scale=0.1)
    b.operator("MIRROR_PAD", [x, b.constant([[0, 0], [1, 1], [1, 1], [0, 0]])], [y], options("MirrorPad", mode=1))
    graph = read(b.finish([x], [y]), "m")
    made = portability(graph, np.zeros((1, 4, 4, 1), np.int8), dialects=("ort",))
    assert "SYMMETRIC" in made.rows[1].unavailable and "MIRROR_PAD" in made.rows[1].unavailable
    with pytest.raises(Error, match="MIRROR_PAD"):
        hwq.export(graph, "never.onnx")
    assert not Path("never.onnx").exists()
