"""Attention masks of minus infinity: what holds them stays float and says why; everything else is stored as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny
from onnx import helper

import hwq
from hwq.comparison.statistics import decibels, distributions, without_masks
from hwq.errors import Error
from hwq.graph import Graph


def attention(kind: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """Masked scores: by a constant that is added, by a choice, by an input, or by a vector that looks like a bias."""
    rng, wide = np.random.default_rng(0), 16
    constants: dict[str, Any] = {name: rng.normal(size=(wide, wide)) * 0.3 for name in "qkvo"}
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}1"], f"p{name}") for name in "qkv"]
    nodes += [
        helper.make_node("Transpose", ["k1"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q1", "kt"], ["s"], "scores"),
    ]
    inputs, feeds = {"x": ["N", 6, wide]}, {"x": rng.normal(size=(20, 6, wide)).astype(np.float32)}
    if kind == "input":
        inputs["m"] = ["N", 6, 6]
        seen = np.arange(6)[None, None] < rng.integers(2, 7, 20)[:, None, None]
        feeds["m"] = np.broadcast_to(np.where(seen, 0.0, -np.inf), (20, 6, 6)).astype(np.float32)
    if kind == "constant":
        constants["m"] = np.triu(np.full((6, 6), -np.inf), 1)
    if kind == "vector":
        constants["m"] = np.array([0, 0, 0, 0, 0, -np.inf])
    if kind == "choice":
        constants |= {"c": np.tril(np.ones((6, 6), bool)), "m": np.float32(-np.inf)}
        nodes.append(helper.make_node("Where", ["c", "s", "m"], ["sm"], "mask"))
    else:
        nodes.append(helper.make_node("Add", ["s", "m"], ["sm"], "mask"))
    nodes += [
        helper.make_node("Softmax", ["sm"], ["a"], "soft", axis=-1),
        helper.make_node("MatMul", ["a", "v1"], ["z"], "mix"),
        helper.make_node("MatMul", ["z", "o"], ["y"], "out"),
    ]
    return tiny.graph(tiny.model(nodes, inputs, {"y": ["N", 6, wide]}, constants)), feeds


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["constant", "choice", "input", "vector"])
def test_only_what_holds_the_mask_stays_float(kind: str, tmp_path: Path) -> None:
    graph, feeds = attention(kind)
    cal = hwq.calibrate(graph, feeds)
    assert cal.unbounded == (("m", "sm") if kind == "input" else ("sm",))
    assert "minus infinity" in str(cal)
    cal.save(tmp_path / "cal.npz")
    assert hwq.Calibration.load(tmp_path / "cal.npz").unbounded == cal.unbounded
    halves = [{name: value[part] for name, value in feeds.items()} for part in (slice(10), slice(10, 20))]
    one, other = (hwq.calibrate(graph, half) for half in halves)
    assert one.merge(other).unbounded == hwq.calibrate(graph, halves[1], resume=one).unbounded == cal.unbounded
    for dialect in ("ort", "hwq"):
        q = hwq.quantize(graph, hwq.Plan.uniform(weights="int8", activations="uint8", dialect=dialect), cal)
        stored = {node.inputs[0] for node in q.nodes if node.op == "QuantizeLinear"}
        assert {"x", "q1", "s", "a", "z"} <= stored and not stored & set(cal.unbounded)
        found = hwq.compare(graph, q, feeds, sensitivity=True)
        assert found.sqnr_db > 25 and all(layer.sqnr_db > 20 for layer in found.layers)
        assert "sm stays float: it holds minus infinity" in str(found)
        hwq.export(q, tmp_path / "q.onnx", overwrite=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, feeds)[0] - hwq.execute(hwq.load(tmp_path / "q.onnx"), feeds)).max() < 1e-5


def test_accidents_are_still_refused() -> None:
    graph, feeds = attention("input")
    for bad in (np.nan, np.inf):
        spoiled = {**feeds, "m": feeds["m"].copy()}
        spoiled["m"][3, 0, 0] = bad
        with pytest.raises(Error, match="sample 3"):
            hwq.calibrate(graph, spoiled)
    hidden = {**feeds, "m": np.full_like(feeds["m"], -np.inf)}  # a softmax of nothing is NaN
    with pytest.raises(Error, match="value is nan"):
        hwq.calibrate(graph, hidden)
    spoiled = {**feeds, "x": feeds["x"].copy()}
    spoiled["x"][2, 0, 0] = -np.inf  # a product reads it: no mask
    with pytest.raises(Error, match="sample 2"):
        hwq.calibrate(graph, spoiled)


@pytest.mark.filterwarnings("error")
def test_measures_of_values_with_infinities() -> None:
    real = np.array([[0.0, -np.inf, 2.0], [-np.inf] * 3])
    assert [part.tolist() for part in without_masks(real, real + 1.0)] == [
        [[0.0, 0.0, 2.0], [0.0] * 3],
        [[1.0, 0.0, 3.0], [0.0] * 3],
    ]
    assert decibels(1.0, np.inf) == decibels(np.inf, np.inf) == -np.inf and decibels(np.inf, 0.0) == np.inf
    p, q = distributions(real, real)
    assert np.isfinite(p).all() and np.array_equal(p, q) and p[0, 2] == pytest.approx(1 / (1 + np.exp(-2.0)), rel=1e-5)
