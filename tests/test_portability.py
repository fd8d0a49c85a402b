"""Portability: runtimes side by side, static proofs that adversaries do not break, repairs that restore every bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

import hwq
from hwq import kernels
from hwq.cli import app
from hwq.errors import Error
from hwq.importers.onnx import read
from hwq.lowering import lower
from hwq.overflow import LIMIT, prove, shown
from hwq.portability import portability
from hwq.repair import METHODS, repair
from hwq.verification.onnx_dialects import drawn
from hwq.verification.onnx_models import CASES


@pytest.fixture(scope="module")
def quantized() -> tuple[hwq.Graph, np.ndarray]:
    graph = tiny.graph(tiny.cnn())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, *(int(size) for size in graph.tensors[graph.inputs[0]].shape[1:]))).astype(np.float32)
    return hwq.quantize(graph, hwq.Plan.uniform(), hwq.calibrate(graph, x)), x


def test_runtimes_side_by_side(quantized) -> None:
    graph, x = quantized
    labels = hwq.execute(graph, x).reshape(len(x), -1).argmax(axis=1)
    made = portability(graph, x, labels)
    rows = {row.dialect: row for row in made.rows}
    assert rows["ort"].accuracy == rows["ort"].agreement == 1.0 and rows["ort"].differing == 0
    found = hwq.execute(graph, x, "ort-avx2-saturating")
    expected = hwq.execute(graph, x)
    assert rows["ort-avx2-saturating"].differing == np.count_nonzero(found != expected)
    assert not rows["litert-ref"].unavailable and rows["litert-ref"].values == rows["ort"].values
    with pytest.raises(Error, match="labels"):
        portability(graph, x, labels[:-1])


def test_a_planted_saturation_is_named_where_it_starts() -> None:
    graph, feeds = next(
        (read(model), feeds) for model, feeds in (drawn("QDQ Conv", CASES["QDQ Conv"], i) for i in range(0, 20, 2))
        if not model.graph.node[3].attribute or all(a.name != "group" for a in model.graph.node[3].attribute)
    )  # fmt: skip
    made = portability(graph, feeds)
    row = next(row for row in made.rows if row.dialect == "ort-avx2-saturating")
    assert not made.safe and row.differing > 0 and row.first_differing.startswith(made.proofs[0].layer)
    proof = made.proofs[0]
    assert proof.witness is not None
    exact, saturated = shown(proof, lower(graph, "ort"))
    assert (exact, saturated) == (proof.witness.exact, proof.witness.saturated) and exact != saturated


def test_verdict_is_exact_pair_by_pair() -> None:
    """Every pair of weights: the rule says safe exactly if no activations saturate it."""
    weights = np.arange(-128, 128)
    first, second = (one.reshape(-1) for one in np.meshgrid(weights, weights))
    extremes = np.stack(
        [255 * np.where(np.stack([first, second]) > 0, 1, 0), 255 * np.where(np.stack([first, second]) < 0, 1, 0)]
    )
    sums = (extremes * np.stack([first, second])).sum(axis=1)
    breaks = ((sums > 32767) | (sums < -32768)).any(axis=0)
    above = np.maximum(first, 0) + np.maximum(second, 0)
    below = np.minimum(first, 0) + np.minimum(second, 0)
    np.testing.assert_array_equal(breaks, (above > LIMIT) | (below < -LIMIT))


def test_safe_verdict_survives_ten_million_adversarial_inputs() -> None:
    rng = np.random.default_rng(1)
    k, n, m = 24, 64, 160_000  # 10.2 million outputs
    first = rng.integers(-LIMIT, LIMIT, (k // 2, n))
    second = np.where(rng.random((k // 2, n)) < 0.5, np.sign(first) * (LIMIT - np.abs(first)), -first).clip(-128, 127)
    weights = np.stack([first, second], axis=1).reshape(k, n).astype(np.int8)
    above, below = (
        np.abs(side).reshape(k // 2, 2, n).sum(axis=1)
        for side in (np.maximum(weights, 0), np.minimum(weights.astype(int), 0))
    )
    assert above.max() <= LIMIT and below.max() <= LIMIT and above.max() == LIMIT  # at the bound, not far from it
    packed = kernels.pack(weights)
    # Activations that follow the sign of some column, full or nothing, and a few in between.
    pushed = (weights.T[rng.integers(0, n, m)] > 0) ^ (rng.random((m, 1)) < 0.5)
    a = np.where(pushed, 255, np.where(rng.random((m, k)) < 0.1, 254, 0)).astype(np.uint8)
    assert m * n >= 10**7
    np.testing.assert_array_equal(kernels.gemm_saturating(a, packed), kernels.gemm(a, packed))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["QDQ Conv", "QDQ Gemm", "QDQ MatMul"])
def test_repairs_are_safe_on_every_cpu(name: str, method: str) -> None:
    for index in range(0, 6, 2):
        model, feeds = drawn(name, CASES[name], index)
        graph = read(model)
        expected = hwq.execute(graph, feeds)
        made = repair(graph, method)
        assert all(proof.verdict == "safe on every CPU" for proof in made.proofs)
        exact = hwq.execute(made.graph, feeds)
        np.testing.assert_array_equal(exact, hwq.execute(made.graph, feeds, "ort-avx2-saturating"))
        if method == "uint8":
            np.testing.assert_array_equal(exact, expected)
        else:
            assert np.abs(exact.astype(int) - expected.astype(int)).mean() < 8
    with pytest.raises(Error, match="no such repair"):
        repair(graph, "glue")


def test_onnxruntime_runs_the_repair() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from hwq.exporters.onnx import to_model

    model, feeds = drawn("QDQ Conv", CASES["QDQ Conv"], 4)
    graph = read(model)
    mended = repair(graph).graph
    session = onnxruntime.InferenceSession(to_model(mended).SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, feeds)[0].tobytes() == hwq.execute(graph, feeds).tobytes()


def test_layers_without_constant_weights_are_not_called_safe() -> None:
    model, _ = drawn("QLinearMatMul uint8 int8 variable", CASES["QLinearMatMul uint8 int8 variable"], 0)
    assert prove(lower(read(model), "ort"))[0].verdict == "unknown"
    model, _ = drawn("ConvInteger int8 uint8", CASES["ConvInteger int8 uint8"], 0)
    assert prove(lower(read(model), "ort"))[0].verdict == "unknown"


def test_command(tmp_path: Path) -> None:
    model, feeds = drawn("QDQ Gemm", CASES["QDQ Gemm"], 0)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    np.savez(tmp_path / "x.npz", **feeds)
    arguments = [
        "portability",
        str(tmp_path / "m.onnx"),
        "--data",
        str(tmp_path / "x.npz"),
        "--repair",
        str(tmp_path / "r.onnx"),
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)["result"]
    assert not found["safe"] and found["repair"]["after"]["safe"] and found["repair"]["exact"]
    assert [row["differing"] for row in found["repair"]["after"]["rows"]] == [0, 0]
    again = CliRunner().invoke(app, ["portability", str(tmp_path / "r.onnx"), "--data", str(tmp_path / "x.npz")])
    assert again.exit_code == 0, again.output
