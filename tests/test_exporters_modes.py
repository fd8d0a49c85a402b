"""Every mode of a plan as an ONNX file: onnxruntime runs it to the same values, and reading it back gives the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from test_modes import MODES, layer, plan_of

import hwq
from hwq.importers.onnx import read
from hwq.verification.avx2 import has_vnni

# What onnxruntime 1.31.1 fuses although it has no kernel for it: an 8-bit weight in blocks becomes QLinearConv, which refuses it.
ONLY_UNOPTIMIZED = {("static int8 groups", "conv"), ("static int8 groups", "matmul")}
# Relative to the largest output: float sums in another order, or float16 that onnxruntime computes in float32.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2}


def run(path: Path, x: np.ndarray, optimized: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    # Its default, 4, would quantize the float activations of MatMulNBits again.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def constants(graph: hwq.Graph) -> list[tuple[str, str, tuple, bytes]]:
    return sorted(
        (name, tensor.dtype, tensor.shape, np.ascontiguousarray(tensor.data).tobytes())
        for name, tensor in graph.tensors.items()
        if tensor.data is not None and name not in graph.producers and name in graph.consumers
    )


@pytest.mark.parametrize("kind", ["matmul", "conv"])
@pytest.mark.parametrize("name", MODES)
def test_files_run_elsewhere_and_come_back(name: str, kind: str, tmp_path: Path) -> None:
    graph, x = layer(kind)
    q = hwq.quantize(graph, plan_of(name), hwq.calibrate(graph, x))
    path = tmp_path / "mode.onnx"
    hwq.export(q, path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    y, again = hwq.execute(q, x), hwq.load(str(path))
    if name != "bfloat16":  # written as float32 between Casts
        assert constants(again) == constants(q)
        assert np.array_equal(hwq.execute(again, x, dialect="hwq"), y)
    for optimized in (True, False):
        if optimized and (name, kind) in ONLY_UNOPTIMIZED:
            continue
        theirs = run(path, x, optimized)
        if name == "dynamic" and not optimized and not has_vnni():  # onnxruntime multiplies int8 weights as they are
            y = hwq.execute(again, x, dialect="ort-avx2-saturating")
        assert theirs.shape == y.shape and theirs.dtype == y.dtype
        error = float(np.abs(theirs - y).max() / np.abs(y).max())
        # Stored outputs differ by one step where sums in float32 round to the other side.
        wide = "int16" in name
        step = 1.01 / (65535 if wide else 255) if name.startswith("static") and (wide or not optimized) else 0.0
        assert error <= max(TOLERANCE.get(name, 1e-6), step), error


def test_a_foreign_function_of_the_same_name_is_written_out(tmp_path: Path) -> None:
    graph, x = layer("matmul")
    q = hwq.quantize(graph, plan_of("dynamic row"))
    hwq.export(q, tmp_path / "row.onnx")
    model = onnx.load(tmp_path / "row.onnx")
    assert {node.kind for node in read(model) if node.domain} == {"hwq::DynamicQuantizeRows", "hwq::DequantizeRows"}
    for function in model.functions:
        for node in function.node:
            if node.op_type == "Constant" and node.output[0] == "steps":
                node.attribute[0].f = 127.0  # seven bits: another operator
    other = read(model)
    assert {node.kind for node in other if node.domain} == {"hwq::DequantizeRows"}
    assert not np.array_equal(hwq.execute(other, x, dialect="hwq"), hwq.execute(q, x))
