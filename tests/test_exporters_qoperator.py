"""Integer-operator export: onnxruntime gives the same bytes for both forms, and so do we after reading it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny

import hwq
from hwq.errors import Error
from hwq.exporters.onnx import to_model
from hwq.exporters.qoperator import to_qoperator
from hwq.importers.onnx import read
from hwq.verification.onnx_dialects import drawn
from hwq.verification.onnx_models import CASES

onnxruntime = pytest.importorskip("onnxruntime")
FUSED = [name for name in CASES if name.startswith("QDQ") and not name.endswith(("variable", "defaults of inputs"))]


def by_onnxruntime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def assert_same_bytes(graph: hwq.Graph, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    integer = to_qoperator(graph)
    model = to_model(integer)
    expected = by_onnxruntime(to_model(graph), feeds)
    found = by_onnxruntime(model, feeds)
    again = hwq.compile(read(model), "ort")(feeds)
    ours = hwq.compile(graph, "ort")(feeds)
    for index, name in enumerate(graph.outputs):
        mine, theirs = (value[name] if isinstance(value, dict) else value for value in (ours, again))
        assert expected[index].tobytes() == found[index].tobytes() == mine.tobytes() == theirs.tobytes()
    return model


@pytest.mark.parametrize("name", FUSED)
def test_one_operator(name: str) -> None:
    for index in range(2):
        model, feeds = drawn(name, CASES[name], index)
        made = assert_same_bytes(read(model), feeds)
        assert not {node.op_type for node in made.graph.node} & {"DequantizeLinear", "QuantizeLinear"}, (
            "not integer-only"
        )


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_network(granularity: str) -> None:
    graph = tiny.graph(tiny.cnn())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, *(int(size) for size in graph.tensors[graph.inputs[0]].shape[1:]))).astype(np.float32)
    plan = hwq.Plan.uniform(activations="uint8", granularity=granularity)
    quantized = hwq.quantize(graph, plan, hwq.calibrate(graph, x))
    made = assert_same_bytes(quantized, {graph.inputs[0]: x})
    assert {"QLinearConv"} <= {node.op_type for node in made.graph.node}


def test_files_and_refusals(tmp_path: Path) -> None:
    model, _ = drawn("QDQ Conv", CASES["QDQ Conv"], 0)
    graph = read(model)
    hwq.export(graph, tmp_path / "integer.onnx", format="qoperator")
    assert [node.op for node in hwq.load(tmp_path / "integer.onnx").nodes] == ["QLinearConv"]
    with pytest.raises(Error, match="nothing to write as integer"):
        hwq.export(tiny.graph(tiny.cnn()), tmp_path / "float.onnx", format="qoperator")
    with pytest.raises(Error, match="reads Q and DQ"):
        hwq.export(graph, tmp_path / "both.onnx", format="qoperator", target="tensorrt")
    assert [path.name for path in tmp_path.iterdir()] == ["integer.onnx"]


def test_tensorrt_rules(tmp_path: Path) -> None:
    graph = tiny.graph(tiny.cnn())
    x = (
        np.random.default_rng(0)
        .standard_normal((4, *(int(s) for s in graph.tensors[graph.inputs[0]].shape[1:])))
        .astype(np.float32)
    )
    cal = hwq.calibrate(graph, x)
    with pytest.raises(Error, match="TensorRT's documented rules forbid") as caught:
        hwq.export(
            hwq.quantize(graph, hwq.Plan.uniform(activations="uint8"), cal), tmp_path / "no.onnx", target="tensorrt"
        )
    assert "zero point" in str(caught.value) and "uint8" in str(caught.value)
    plan = hwq.Plan.uniform(activations="int8", symmetric_activations=True, dialect="tensorrt")
    quantized = hwq.quantize(graph, plan, cal)
    hwq.export(quantized, tmp_path / "yes.onnx", target="tensorrt")
    written = onnx.load(tmp_path / "yes.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    assert not any(value.dtype in (np.int32, np.uint8) for value in constants.values()), (
        "biases stay float, nothing is uint8"
    )
    for node in written.graph.node:
        if node.op_type.endswith("QuantizeLinear") or node.op_type == "DequantizeLinear":
            assert len(node.input) < 3 or not constants[node.input[2]].any()
    assert [path.name for path in tmp_path.iterdir()] == ["yes.onnx"]
    assert np.isfinite(hwq.execute(hwq.load(tmp_path / "yes.onnx"), x)).all()
