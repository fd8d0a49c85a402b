"""Portability on random networks, ONNX and TFLite: verdicts against adversaries, witnesses that break, repairs that hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from random_nets import Feeds, quantized_net, tflite_net

import hwq
from hwq.errors import Error
from hwq.exporters.onnx import to_model
from hwq.graph import Graph, Node
from hwq.hypotheses import layer
from hwq.importers.onnx import read
from hwq.lowering import lower
from hwq.overflow import LIMIT, prove, shown
from hwq.portability import portability
from hwq.repair import METHODS, repair
from hwq.translation import in_onnx
from hwq.verification import avx2
from hwq.verification.onnx_dialects import saturating_outputs

TRIES = 12


def net(seed: int, kind: str, folder: Path) -> tuple[Graph, Feeds]:
    rng = np.random.default_rng(seed)
    while True:
        graph, feeds = quantized_net(rng)
        if kind != "tflite":
            break
        try:
            graph, feeds = tflite_net(graph, feeds, folder / "net.tflite")
            break
        except Error as error:  # the next one, then
            assert "AVERAGE_POOL_2D" in error.what, error
    if kind == "integer":
        hwq.export(graph, folder / "net.onnx", format="qoperator", overwrite=True)
        graph = hwq.load(str(folder / "net.onnx"))
    return graph, feeds


def adversary(
    rng: np.random.Generator, node: Node, weights: np.ndarray, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    """Activations at their ends: by halves, all, by channels, or along the signs of one filter."""
    choice = int(rng.integers(0, 5))
    if choice == 0:
        x = rng.choice([0, 255], shape)
    elif choice == 1:
        x = np.full(shape, 255)
    elif choice == 2:
        x = np.broadcast_to(rng.choice([0, 255], (*shape[:2], *[1] * (len(shape) - 2))), shape)
    elif node.op == "Conv":
        signs = (weights[rng.integers(len(weights))] > 0) ^ (rng.random() < 0.5)
        x, corner = (
            np.zeros(shape, int),
            tuple(slice(0, min(one, other)) for one, other in zip(signs.shape[1:], shape[2:], strict=True)),
        )
        start = len(signs) * int(rng.integers(0, int(node.attributes.get("group", 1))))
        x[(slice(None), slice(start, start + len(signs)), *corner)] = 255 * signs[(slice(None), *corner)]
    else:
        columns = weights.T if node.attributes.get("transB", 0) else weights
        x = np.broadcast_to(255 * ((columns[:, rng.integers(columns.shape[1])] > 0) ^ (rng.random() < 0.5)), shape)
    return x.astype(np.uint8) if dtype == "uint8" else (x - 128).astype(np.int8)


@pytest.mark.parametrize("kind", ["onnx", "tflite", "integer"])
@pytest.mark.parametrize("seed", range(6))
def test_verdicts(seed: int, kind: str, tmp_path: Path) -> None:
    graph, feeds = net(seed, kind, tmp_path)
    (x,) = feeds.values()
    made = portability(graph, x)
    rows = {row.dialect: row for row in made.rows}
    assert not rows["ort"].unavailable and not rows["ort-avx2-saturating"].unavailable and made.proofs
    assert rows["ort-avx2-saturating"].differing == 0 or not made.safe
    source = in_onnx(graph)
    lowered, rng = lower(source, "ort"), np.random.default_rng(seed)
    values = {**hwq.compile(source, "ort")({source.inputs[0]: x}, intermediates=True)[1], source.inputs[0]: x}
    for proof in made.proofs:
        node = lowered.node(proof.layer)
        alone, weights = layer(lowered, node), lowered.tensors[node.inputs[1]].data
        assert weights is not None
        shape, dtype = values[node.inputs[0]].shape, lowered.tensors[node.inputs[0]].dtype
        exact, pairs = (hwq.compile(alone.replace(dialect=name), name) for name in ("ort", "ort-avx2-saturating"))
        tries = [{node.inputs[0]: adversary(rng, node, weights, shape, dtype)} for _ in range(TRIES)]
        broken = any(not np.array_equal(exact(one), pairs(one)) for one in tries)
        assert proof.verdict in {"safe on every CPU", "saturates"} and not (broken and proof.verdict != "saturates"), (
            proof
        )
        if proof.verdict == "saturates":
            assert proof.witness is not None and proof.unsafe_pairs
            one, other = shown(proof, lowered)
            assert one != other and (one, other) == (proof.witness.exact, proof.witness.saturated)
            above = [sum(max(side * weight, 0) for weight in proof.witness.weights) for side in (1, -1)]
            assert max(above) > LIMIT


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["onnx", "tflite", "integer"])
@pytest.mark.parametrize("seed", range(4))
def test_repairs(seed: int, kind: str, method: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    graph, feeds = net(seed, kind, tmp_path)
    (x,) = feeds.values()
    made = repair(graph, method)
    given = {made.graph.inputs[0]: x}
    y = hwq.execute(made.graph, given, "ort")
    assert all(proof.verdict == "safe on every CPU" for proof in prove(lower(made.graph, "ort")))
    assert hwq.execute(made.graph, given, "ort-avx2-saturating").tobytes() == y.tobytes()
    before = hwq.execute(in_onnx(graph), given, "ort")
    assert (method != "uint8" and made.layers) or y.tobytes() == before.tobytes()
    assert np.abs(y.astype(float) - before).mean() < 0.1 * np.abs(before.astype(float)).max()
    model = to_model(made.graph)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.run(None, given)[0].tobytes() == y.tobytes()  # its defaults: nothing is asked of the user


def test_what_a_cpu_without_vnni_answers(tmp_path: Path) -> None:
    """onnxruntime itself, its defaults, on such a CPU: masked, native or emulated."""
    pytest.importorskip("onnxruntime")
    try:
        avx2.command("ort-avx2-saturating", Path("none"))
    except Error as error:
        pytest.skip(error.what)
    prepared = {}
    for seed in range(3):
        graph, feeds = net(seed, "onnx", tmp_path)
        prepared[f"{seed}"] = (to_model(graph), feeds)
        prepared[f"{seed} repaired"] = (to_model(repair(graph).graph), feeds)
    found, _ = saturating_outputs(prepared)
    for key, (model, feeds) in prepared.items():
        graph = read(model.SerializeToString())
        theirs = found[f"{key}|out|0"]
        assert theirs.tobytes() == hwq.execute(graph, feeds, "ort-avx2-saturating").tobytes(), key
        assert "repaired" not in key or theirs.tobytes() == hwq.execute(graph, feeds, "ort").tobytes(), key
