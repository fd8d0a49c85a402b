"""Whole models on a stepped array: the kernels' bits, counted by layer, and pictures of it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from tiny import SHARED, cnn
from typer.testing import CliRunner

import hwq
from hwq.cli import app
from hwq.importers.onnx import read
from hwq.simulators.dataflow import evaluate
from hwq.simulators.stepped_gemm import SteppedGemm
from hwq.simulators.stepping import Array


def _quantized() -> tuple[hwq.Graph, np.ndarray]:
    graph = read(cnn().SerializeToString())
    (name,) = graph.inputs
    shape = [dim if isinstance(dim, int) else 4 for dim in graph.tensors[name].shape]
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return hwq.quantize(graph, hwq.Plan.uniform(), hwq.calibrate(graph, x)), x


@pytest.mark.parametrize("array", [Array(8, 8, "ws"), Array(5, 3, "os"), Array(4, 16, "is", "none")], ids=str)
def test_a_model_has_the_kernels_bits_on_any_array(array: Array) -> None:
    graph, x = _quantized()
    gemm = SteppedGemm(array)
    np.testing.assert_array_equal(hwq.compile(graph, gemm=gemm)(x), hwq.execute(graph, x))
    run = gemm.finish(graph.name, len(x))
    estimated = hwq.estimate(graph, "systolic", batch=1)
    # One layer here for each layer with MACs there, of the same name, and as many MACs.
    per_layer = {layer.name: layer.macs for layer in estimated.layers if layer.macs}
    assert len(run.layers) == len(per_layer)
    assert run.macs % sum(per_layer.values()) == 0
    for layer in run.layers:
        assert layer.multiplications == layer.macs
        assert layer.occupancy is not None and layer.occupancy.sum() == layer.macs
        assert layer.timeline is not None and layer.timeline.shape[0] == array.rows
        one = evaluate(layer.m, layer.k, layer.n, array.rows, array.cols, array.dataflow, overlap=array.overlap)
        assert layer.cycles == layer.products * int(one.cycles)  # groups and batches here have one shape a layer


def test_the_command_writes_table_and_pictures(tmp_path: Path) -> None:
    graph, x = _quantized()
    hwq.export(graph, str(tmp_path / "q.onnx"))
    np.save(tmp_path / "x.npy", x)
    base = ["run", str(tmp_path / "q.onnx"), "--data", str(tmp_path / "x.npy"), "--on", "systolic:4x8:os"]
    for name in ("o.npz", "o.svg", "o.html"):
        result = CliRunner().invoke(app, [*base, "-o", str(tmp_path / name)])
        assert result.exit_code == 0 and "cycles" in result.output and "utilization" in result.output, result.output
    with np.load(tmp_path / "o.npz") as found:
        np.testing.assert_array_equal(found[graph.outputs[0]], hwq.execute(graph, x))
    figure = ElementTree.parse(tmp_path / "o.svg").getroot()
    assert figure.tag.endswith("svg") and "var(" not in (tmp_path / "o.svg").read_text()
    assert "Which PEs worked when" in (tmp_path / "o.html").read_text()
    stepped = json.loads((tmp_path / "report.json").read_text())["stepped"][0]
    told = json.loads(CliRunner().invoke(app, [*base, "--json"]).stdout)["result"]["stepped"]
    assert stepped["cycles"] == told["cycles"] == sum(layer["cycles"] for layer in told["layers"])
    # A file that exists is refused before anything runs.
    assert CliRunner().invoke(app, [*base, "-o", str(tmp_path / "o.svg")]).exit_code == 2


@pytest.mark.skipif(not (SHARED / "models/ic").exists(), reason="no shared models (HWQ_SHARED)")
@pytest.mark.parametrize("array", [Array(32, 32, "ws"), Array(256, 256, "ws"), Array(16, 64, "os")], ids=str)
def test_resnet8_on_real_images(array: Array) -> None:
    graph = hwq.load(str(SHARED / "models/ic/resnet8_f32.onnx"))
    with np.load(SHARED / "models/ic/cifar10_train3000.npz") as data:
        images = data["x"][:40].transpose(0, 3, 1, 2).astype(np.float32)
    quantized = hwq.quantize(graph, hwq.Plan.uniform(), hwq.calibrate(graph, images))
    gemm = SteppedGemm(array, pictures=False)
    made = hwq.compile(quantized, gemm=gemm)(images[:10])
    np.testing.assert_array_equal(made, hwq.execute(quantized, images[:10]))
    assert gemm.finish("resnet8", 10).macs == 125_016_320  # 12.5 M MACs an image
