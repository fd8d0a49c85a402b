"""GPUs: padding, waves, launches, unfused Q/DQ, and published TensorRT latencies that no parameter was fitted to."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import worked
from tiny import SHARED

from hwq import zoo
from hwq.graph import Graph, Node, Quantization, Tensor
from hwq.plan import Plan
from hwq.simulators import estimate, find, gpu
from hwq.simulators.estimation import prepare


def test_channels_are_padded_to_the_packed_layout():
    # int8: NC/32HW32 above 16 channels, powers of two below; float16: 16 channels are 32 bytes.
    found = gpu.padded_bytes(np.array([1, 3, 4, 5, 16, 17, 32, 33, 64, 65]), 8, 32)
    assert found.tolist() == [1, 4, 4, 8, 16, 32, 32, 64, 64, 96]
    assert gpu.padded_bytes(np.array([3, 8, 16, 17]), 16, 32).tolist() == [8, 16, 32, 64]
    assert gpu.padded_bytes(np.array([3, 64, 65]), 4, 32).tolist() == [2, 32, 64]
    for bits in (4, 8, 16, 32):
        channels = np.arange(1, 300)
        padded = gpu.padded_bytes(channels, bits, 32)
        assert np.all(padded * 8 >= channels * bits) and np.all(padded <= gpu.padded_bytes(channels, 2 * bits, 32))


def test_a_wave_that_is_not_full_takes_as_long():
    machine = find("a100").replace({"dram.bandwidth": 1e15, "l2.bandwidth": 1e15})
    seconds = []
    for tiles in (108, 109):
        layer = {"op": "Gemm", "machine": machine, "batch": 256 * tiles, "inputs": 64, "outputs": 128}
        entry = worked.measured(layer)[1]
        seconds.append(entry.seconds - entry.terms["launch"])
    # 108 tiles of 256 x 128 are one wave at 0.9 of the peak. With one more, 128 x 64 makes 5 waves of a quarter at 0.7.
    assert seconds[1] / seconds[0] == pytest.approx(5 / 4 * 0.9 / 0.7)


def test_int4_arithmetic_is_twice_int8_where_a_layer_is_large():
    graph = worked.graph_of({"op": "Gemm", "inputs": 8192, "outputs": 8192})
    seconds = {}
    for width in ("int4", "int8", "float16"):
        entries = estimate(graph, "t4", plan=Plan.uniform(weights=width, activations=width), batch=8192).layers
        seconds[width] = next(one for one in entries if one.op == "Gemm").seconds
    assert seconds["int8"] / seconds["int4"] == pytest.approx(2, rel=0.1)
    assert seconds["float16"] / seconds["int8"] == pytest.approx(2, rel=0.1)


def test_weight_only_saves_bytes_and_no_arithmetic():
    graph = worked.graph_of({"op": "Gemm", "inputs": 4096, "outputs": 4096})
    found = {}
    for weights in ("float16", "int4"):
        plan = Plan.uniform(weights=weights, activations="float16")
        found[weights] = next(one for one in estimate(graph, "t4", plan=plan, batch=1).layers if one.op == "Gemm")
    assert found["int4"].precision == found["float16"].precision == "float16"
    assert found["int4"].traffic["dram"]["weight"] * 4 == found["float16"].traffic["dram"]["weight"]
    assert found["int4"].seconds < 0.5 * found["float16"].seconds


def test_unfused_quantization_is_a_kernel_of_its_own():
    def graph(weight_quantized):
        shapes = {"x": (1, 64, 56, 56), "w": (64, 64, 3, 3), "y": (1, 64, 56, 56)}
        tensors = [
            Tensor("x", shape=shapes["x"]),
            Tensor("y", shape=shapes["y"]),
            Tensor("z", shape=shapes["y"]),
            Tensor("q", "int8", shapes["x"], quantization=Quantization("int8")),
            Tensor("d", shape=shapes["x"]),
            Tensor("s", shape=()),
            Tensor("f", shape=shapes["w"]),
            Tensor("r", shape=shapes["x"]),
        ]
        nodes = [
            Node("Relu", "r", ("x",), ("r",)),
            Node("QuantizeLinear", "q", ("r", "s"), ("q",)),
            Node("DequantizeLinear", "d", ("q", "s"), ("d",)),
        ]
        attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
        if weight_quantized:
            tensors.append(Tensor("w", "int8", shapes["w"], quantization=Quantization("int8", axis=0)))
            nodes.append(Node("DequantizeLinear", "f", ("w", "s"), ("f",)))
        nodes += [
            Node("Conv", "conv", ("d", "f"), ("y",), attributes, layout="NCHW"),
            Node("Tanh", "tanh", ("y",), ("z",)),
        ]
        return Graph(nodes, tensors, ["x"], ["z"])

    fused, loose = (estimate(graph(flag), "t4") for flag in (True, False))
    assert [layer.op for layer in fused.layers] == ["Relu", "Conv"]
    assert [layer.op for layer in loose.layers] == ["Relu", "DequantizeLinear", "Conv"]
    assert loose.layers[-1].precision == "float32" and loose.terms["reformat"] > 0
    assert loose.seconds > fused.seconds


def test_columns_broadcast_over_configurations():
    base = find("a100")
    prepared = prepare(worked.graph_of({"op": "Gemm", "inputs": 512, "outputs": 512}), base, worked.PLAN, 64)
    columns = {name: values[:, None] for name, values in prepared.columns.items()}
    speeds = np.array([1e11, 1e12, 1e13])
    swept = gpu.evaluate(columns, gpu.parameters(base) | {"dram": speeds, "sms": np.array([10, 50, 100])})
    for index, (speed, sms) in enumerate(zip(speeds, (10, 50, 100), strict=True)):
        alone = gpu.evaluate(prepared.columns, gpu.parameters(base) | {"dram": speed, "sms": sms})
        assert np.allclose(swept["seconds"][:, index], alone["seconds"], rtol=1e-15)


@pytest.mark.parametrize(("machine", "mean", "tail"), [("t4", 0.06, 0.13), ("a100", 0.13, 0.25)])
def test_published_bert_latencies(machine, mean, tail):
    """NVIDIA's own TensorRT 8.4 table, GPU compute only. The clock was fitted on FP16 rows; INT8 is only scored."""
    path = SHARED / "validation" / "gpu_tensorrt.csv"
    if not path.is_file():
        pytest.skip("needs the published measurements (HWQ_SHARED)")
    with open(path, encoding="utf-8", newline="") as stream:
        rows = [
            row for row in csv.DictReader(stream) if row["metric"] == "latency" and row["model"].startswith("bert_")
        ]
    rows = [row for row in rows if machine in row["device"].lower() and row["precision"] == "int8"]
    assert len(rows) == 40
    plan, graphs, errors = Plan.uniform(weights="int8", activations="int8"), {}, []
    for row in rows[::2]:
        key = row["model"], int(row["input_shape"].removeprefix("seq="))
        if key not in graphs:
            graphs[key] = zoo.build(key[0], weights=False, shapes={"input_ids": (1, key[1])})
        found = estimate(graphs[key], machine, plan=plan, batch=int(row["batch"]))
        errors.append(abs(found.seconds / (float(row["value"]) * 1e-3) - 1))
    # simulators/README.md states all 40 rows; this is every other.
    assert np.mean(errors) < mean and np.quantile(errors, 0.9) < tail


def test_fused_attention_keeps_its_scores():
    graph = zoo.build("bert_base", weights=False)
    layers = estimate(graph, "a100", plan=Plan.uniform(weights="int8", activations="int8")).layers
    softmax = [layer for layer in layers if layer.op == "Softmax"]
    assert len(softmax) == 12
    for layer in softmax:
        assert layer.terms["launch"] == 0 and sum(sum(parts.values()) for parts in layer.traffic.values()) <= 64
    # The transposed heads are read, the scores are not written; 12 chains of three kernels launch once each.
    launches = sum(layer.terms["launch"] > 0 for layer in layers)
    assert launches == sum(layer.kind != "none" for layer in layers) - 24
