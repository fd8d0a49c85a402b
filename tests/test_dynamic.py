"""Dynamic quantization: the graph that a plan with ``mode = "dynamic"`` makes, against onnxruntime and a plain reading."""

from __future__ import annotations

import numpy as np
import onnxruntime
import tiny

import hwq
from hwq.plan import Plan
from hwq.quantization import annotate


def plan_of(**activations) -> Plan:
    table = {"dtype": "uint8", "mode": "dynamic", **activations}
    return Plan._checked({"schema": 1, "default": {"activations": table}}, "test")


def test_every_matrix_operator_is_an_integer_product(cnn):
    quantized = hwq.quantize(cnn, plan_of())
    kinds = [node.op for node in quantized.nodes]
    products = sum(node.op in {"Conv", "Gemm", "MatMul"} for node in cnn.nodes)
    assert not {"Conv", "Gemm", "MatMul", "QuantizeLinear"} & set(kinds)
    assert kinds.count("DynamicQuantizeLinear") == products
    assert kinds.count("ConvInteger") + kinds.count("MatMulInteger") == products


def test_onnxruntime_gives_the_same_values(cnn, tmp_path):
    quantized = hwq.quantize(cnn, plan_of())
    hwq.export(quantized, tmp_path / "dynamic.onnx", format="qdq")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(tmp_path / "dynamic.onnx", options, providers=["CPUExecutionProvider"])
    program, name = hwq.compile(quantized), session.get_inputs()[0].name
    for x in tiny.images(12)[:, None]:
        assert np.allclose(program(x), session.run(None, {name: x})[0], rtol=1e-5, atol=1e-6)
    again = hwq.load(str(tmp_path / "dynamic.onnx"))
    x = tiny.images(1)
    assert np.array_equal(hwq.execute(again, x), program(x))


def test_one_product_by_hand():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(6, 9)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    from hwq.graph import Graph, Node, Tensor

    graph = Graph(
        [Node("Gemm", "fc", ("x", "w", "b"), ("y",), {"transB": 1})],
        [Tensor("x", shape=("N", 9)), Tensor("w", shape=(6, 9), data=weight), Tensor("b", shape=(6,), data=bias),
         Tensor("y", shape=("N", 6))],
        ["x"], ["y"],
    )  # fmt: skip
    x = rng.normal(size=(1, 9)).astype(np.float32)
    low, high = min(x.min(), 0), max(x.max(), 0)
    s = np.float32((high - low) / np.float32(255))
    z = int(np.clip(np.rint(-low / s), 0, 255))
    q = np.clip(np.rint(x / s) + z, 0, 255).astype(np.int64)
    sw = (np.abs(weight).max(axis=1).astype(np.float64) / 127).astype(np.float32)
    w = np.rint(weight / sw[:, None]).astype(np.int64)
    expected = ((q - z) @ w.T).astype(np.float32) * (s * sw) + bias
    assert np.array_equal(hwq.execute(hwq.quantize(graph, plan_of()), x), expected)


def test_some_layers_alone(cnn):
    first = next(node for node in cnn.nodes if node.op == "Conv")
    plan = Plan._checked(
        {"schema": 1, "layers": [{"match": {"name": first.name}, "activations": {"mode": "dynamic"}}]}, "test"
    )
    quantized = hwq.quantize(cnn, plan, hwq.calibrate(cnn, tiny.images(16)))
    kinds = [node.op for node in quantized.nodes]
    assert kinds.count("ConvInteger") == 1 and "QuantizeLinear" in kinds
    assert np.isfinite(hwq.execute(quantized, tiny.images(1))).all()


def test_cost_needs_no_values(cnn):
    plan = plan_of()
    found = hwq.estimate(cnn, "t4", plan=plan)
    assert found.macs == hwq.estimate(cnn, "t4", plan=Plan.uniform()).macs
    assert sum(node.op.endswith("Integer") for node in annotate(cnn, plan).nodes) > 0
