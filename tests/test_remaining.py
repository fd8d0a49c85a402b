"""What a plan asked for in integers and its dialect computes in floats is named, with the reason; nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper
from test_modes import MODES, layer, plan_of

import hwq
from hwq.lowering.remaining import remaining


@pytest.mark.parametrize("kind", ["gemm", "matmul", "conv", "depthwise"])
@pytest.mark.parametrize("name", MODES)
def test_products_of_dialect_hwq_leave_nothing(name: str, kind: str) -> None:
    graph, x = layer(kind)
    plan = plan_of(name)
    assert remaining(hwq.quantize(graph, plan, hwq.calibrate(graph, x)), plan) == ()


def attention() -> tuple[hwq.graph.Graph, np.ndarray]:
    random = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["q"], "keys"), helper.make_node("Transpose", ["q"], ["t"], "turn", perm=[0, 2, 1]),
             helper.make_node("MatMul", ["x", "t"], ["s"], "scores"), helper.make_node("Softmax", ["s"], ["p"], "shares", axis=-1),
             helper.make_node("MatMul", ["p", "x"], ["m"], "mixed"), helper.make_node("LayerNormalization", ["m", "g"], ["y"], "norm")]  # fmt: skip
    graph = tiny.graph(
        tiny.model(nodes, {"x": ["N", 5, 8]}, {"y": ["N", 5, 8]}, {"w": random.normal(size=(8, 8)), "g": np.ones(8)})
    )
    return graph, random.normal(size=(12, 5, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "dialect", "left"),
    [
        ("static uint8", "hwq", {"norm": "hwq-integer"}),
        ("static uint8", "hwq-integer", {}),
        (
            "static int16",
            "hwq",
            {"scores": "hwq-integer", "shares": "hwq-integer", "mixed": "hwq-integer", "norm": "hwq-integer"},
        ),
        ("static int16", "hwq-integer", {}),
        ("dynamic row", "hwq", {"scores": "constant weights", "mixed": "constant weights"}),
        ("dynamic row", "ort", {"scores": "constant weights", "mixed": "constant weights"}),
        ("weight-only int8", "hwq", {}),
        ("float16", "hwq", {"norm": "hwq-integer"}),
    ],
)
def test_what_stays_float_has_a_reason(name: str, dialect: str, left: dict[str, str]) -> None:
    graph, x = attention()
    plan = plan_of(name, dialect)
    quantized = hwq.quantize(graph, plan, hwq.calibrate(graph, x))
    found = {one.node.removesuffix("_1"): one.why for one in remaining(quantized, plan)}
    assert found.keys() == left.keys()
    for node, part in left.items():
        assert part in found[node], (node, found[node])


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from typer.testing import CliRunner

    from hwq.cli import app

    graph, x = attention()
    graph.save(str(tmp_path / "model.npz"))
    np.save(tmp_path / "x.npy", x)
    plan_of("static int16").save(tmp_path / "plan.toml")
    given = ["quantize", str(tmp_path / "model.npz"), "--plan", str(tmp_path / "plan.toml"), "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "q.npz")]  # fmt: skip
    ran = CliRunner().invoke(app, given)
    assert ran.exit_code == 0, ran.output
    assert "norm (LayerNormalization) stays float" in " ".join(ran.output.split())
    ran = CliRunner().invoke(app, [*given, "--overwrite", "--json"])
    assert {one["node"] for one in json.loads(ran.stdout)["result"]["floats"]} >= {"scores", "norm"}
