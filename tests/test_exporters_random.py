"""Random networks, random plans of every mode: exported, read back and run by onnxruntime, to the same bytes; or refused with reasons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from random_nets import float_net
from test_modes import MODES, plan_of

import hwq
from hwq.errors import Error

# Plans that onnxruntime runs on integers: its bytes are ours. Of the others the order of float sums is its own.
EXACT = {
    "channel": hwq.Plan.uniform(),
    "tensor": hwq.Plan.uniform(granularity="tensor"),
    "int8": hwq.Plan.uniform(activations="int8"),
    "asymmetric": hwq.Plan.uniform(weights="uint8", symmetric=False),
}


def by_onnxruntime(path: Path, x: np.ndarray, optimized: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("seed", range(6))
def test_integer_plans_run_to_the_same_bytes(seed: int, kind: str, tmp_path: Path) -> None:
    graph, x = float_net(np.random.default_rng(seed))
    q = hwq.quantize(graph, EXACT[kind], hwq.calibrate(graph, x))
    wanted = hwq.execute(q, x).tobytes()
    hwq.export(q, tmp_path / "qdq.onnx")
    hwq.export(q, tmp_path / "integer.onnx", format="qoperator")
    for name in ("qdq", "integer"):
        path = tmp_path / f"{name}.onnx"
        onnx.checker.check_model(onnx.load(path))  # onnxruntime's own operators have no schema there
        assert hwq.execute(hwq.load(str(path)), x, dialect="ort").tobytes() == wanted, name
        assert by_onnxruntime(path, x).tobytes() == wanted, name
    # Without optimization the Q/DQ form computes in float between them, the integer operators as they did.
    assert by_onnxruntime(tmp_path / "qdq.onnx", x, False).tobytes() == hwq.execute(q, x, "ort-unfused").tobytes()
    assert by_onnxruntime(tmp_path / "integer.onnx", x, False).tobytes() == wanted


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("seed", range(2))
def test_every_mode_comes_back_or_says_why(seed: int, name: str, tmp_path: Path) -> None:
    graph, x = float_net(np.random.default_rng(100 + seed), batch=2)
    try:
        q = hwq.quantize(graph, plan_of(name), hwq.calibrate(graph, x))
    except Error as error:
        assert error.why or error.remedy
        return
    y = hwq.execute(q, x)
    for kind in ("qdq", "qoperator"):
        path = tmp_path / f"{kind}.onnx"
        try:
            hwq.export(q, path, format=kind)
        except Error as error:
            assert kind == "qoperator" and ("nothing to write" in error.what or "no integer operator" in error.what), (
                error
            )
            continue
        again = hwq.execute(hwq.load(str(path)), x, dialect="hwq")
        # bfloat16 is written as float32 between Casts: its sums are then in onnxruntime's order, and some round the other way.
        assert again.shape == y.shape and np.abs(again - y).max() <= 0.02 * np.abs(y).max(), kind
        assert name == "bfloat16" or again.tobytes() == y.tobytes(), kind


def rules_of_tensorrt(model: onnx.ModelProto) -> list[str]:
    """What NVIDIA's documented rules forbid (TensorRT, "Explicit Quantization"), read again from the file alone."""
    held = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        attributes = {one.name: one.i for one in node.attribute}
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            scale, constant = held.get(node.input[1]), node.input[0] in held
            point = held.get(node.input[2]) if len(node.input) > 2 else None
            if scale is None or not np.all(scale > 0) or (point is not None and np.any(point)):
                found.append(f"{node.name}: scale or zero point")
            stored = held[node.input[0]].dtype if constant else None if point is None else point.dtype
            if stored not in (np.int8, None) and not (constant and str(stored) == "int4"):
                found.append(f"{node.name}: {stored}")
            if not constant and scale is not None and scale.size > 1:
                found.append(f"{node.name}: one scale an activation")
        elif node.domain or "QLinear" in node.op_type or node.op_type.endswith("Integer"):
            found.append(f"{node.name}: {node.op_type}")
        elif node.op_type in {"Conv", "Gemm", "MatMul"}:
            pair = [makers[name].op_type == "DequantizeLinear" if name in makers else False for name in node.input[:2]]
            if pair[0] != pair[1]:
                found.append(f"{node.name}: one input quantized")
            if len(node.input) > 2 and node.input[2] in makers:
                found.append(f"{node.name}: bias")
            if pair[1] and held[makers[node.input[1]].input[1]].size > 1:
                given = {one.name: one.i for one in makers[node.input[1]].attribute}.get("axis", 1)
                if given % 2 != {"Conv": 0, "MatMul": 1, "Gemm": 1 - attributes.get("transB", 0)}[node.op_type]:
                    found.append(f"{node.name}: axis of the output channels")
    return found


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("seed", range(8))
def test_tensorrt(seed: int, granularity: str, tmp_path: Path) -> None:
    graph, x = float_net(np.random.default_rng(200 + seed))
    statistics = hwq.calibrate(graph, x)
    plan = hwq.Plan.uniform(weights="int8", activations="int8", granularity=granularity, dialect="tensorrt")
    hwq.export(hwq.quantize(graph, plan, statistics), tmp_path / "trt.onnx", target="tensorrt")
    model = onnx.load(tmp_path / "trt.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert rules_of_tensorrt(model) == [] and any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    again = hwq.load(str(tmp_path / "trt.onnx"))
    assert by_onnxruntime(tmp_path / "trt.onnx", x).tobytes() == hwq.execute(again, x, "ort").tobytes()
    for other in (
        hwq.Plan.uniform(),
        hwq.Plan.uniform(activations="int8"),
        hwq.Plan.uniform(weights="uint8", symmetric=False),
    ):
        with pytest.raises(Error, match="documented rules forbid") as caught:
            hwq.export(hwq.quantize(graph, other, statistics), tmp_path / "no.onnx", target="tensorrt")
        assert ("zero point" in str(caught.value) or "uint8" in str(caught.value)) and not (
            tmp_path / "no.onnx"
        ).exists()
