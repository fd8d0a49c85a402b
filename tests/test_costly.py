"""Ranges that cost more than they save are named, with the decibels that the values themselves lose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper
from typer.testing import CliRunner

import hwq
from hwq.cli import app
from hwq.costly import costly_ranges
from hwq.exporters.onnx import to_model
from hwq.plan import Plan


def tails(kind: str) -> np.ndarray:
    """Values on which the entropy formula is known to cut too much, and harmless ones."""
    rng = np.random.default_rng(0)
    x = rng.laplace(size=(600, 16))
    if kind == "heavy":
        x = x**3
    if kind == "far":
        x = np.concatenate([x[:590] * 0.1 + 10.0, x[590:] * 0.1 - 40.0])
    return x.astype(np.float32)


def graph() -> hwq.Graph:
    rng = np.random.default_rng(1)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    return tiny.graph(tiny.model(nodes, {"x": ["N", 16]}, {"y": ["N", 4]}, {"w": rng.normal(size=(16, 4))}))


def planned(observer: str, dtype: str = "int8", symmetric: bool = True) -> Plan:
    activations = {"dtype": dtype, "observer": observer, "symmetric": symmetric}
    default = {"weights": {"dtype": "int8"}, "activations": activations}
    return Plan.model_validate({"schema": 1, "dialect": "hwq", "default": default})


@pytest.mark.parametrize("kind", ["heavy", "far"])
@pytest.mark.parametrize(("dtype", "symmetric"), [("int8", True), ("uint8", False)])
def test_the_loss_is_the_one_that_the_values_have(kind: str, dtype: str, symmetric: bool) -> None:
    x, model = tails(kind), graph()
    cal = hwq.calibrate(model, x)
    quantized = hwq.quantize(model, planned("kl", dtype, symmetric), cal)
    found = {one.tensor: one for one in costly_ranges(quantized, cal)}
    errors = []
    for one in (quantized, hwq.quantize(model, planned("minmax", dtype, symmetric), cal)):
        pair = one.tensors["x_quantized"].quantization
        assert pair is not None
        made = hwq.kernels.fake_quantize(x, pair.scales().reshape(()), int(pair.zero_points()), dtype)
        errors.append(float(np.square(made.astype(np.float64) - x).sum()))
    decibels = 10.0 * np.log10(errors[0] / errors[1])
    assert decibels > 10.0 and found["x"].share < 0.8
    assert found["x"].decibels == pytest.approx(decibels, abs=0.5)


@pytest.mark.parametrize("kind", ["plain", "heavy", "far"])
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_other_observers_cost_nothing(kind: str, observer: str) -> None:
    x, model = tails(kind), graph()
    cal = hwq.calibrate(model, x)
    for plan in (planned(observer), planned(observer, "int16"), planned(observer, "uint8", False)):
        assert costly_ranges(hwq.quantize(model, plan, cal), cal) == ()


def test_the_command_warns_by_name(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(to_model(graph()).SerializeToString())
    np.save(tmp_path / "x.npy", tails("heavy"))
    (tmp_path / "p.toml").write_text('schema = 1\n[default]\nactivations = { dtype = "uint8", observer = "kl" }\n')
    given = [
        "quantize",
        str(tmp_path / "m.onnx"),
        "--data",
        str(tmp_path / "x.npy"),
        "--plan",
        str(tmp_path / "p.toml"),
        "-o",
    ]
    shown = CliRunner().invoke(app, [*given, str(tmp_path / "a.onnx")])
    assert (
        shown.exit_code == 0 and "warning: x: the range reaches" in shown.output and 'observer = "mse"' in shown.output
    )
    told = CliRunner().invoke(app, [*given, str(tmp_path / "b.onnx"), "--json"])
    assert json.loads(told.stdout)["result"]["costly_ranges"][0]["tensor"] in {"x", "y"}


def test_compare_and_explain_say_so_too(tmp_path: Path) -> None:
    x = tails("heavy")
    cal = hwq.calibrate(graph(), x)
    cal.save(tmp_path / "cal.npz")
    (tmp_path / "float.onnx").write_bytes(to_model(graph()).SerializeToString())
    planned("kl").save(tmp_path / "plan.toml")
    bad, good = (hwq.compare(graph(), hwq.quantize(graph(), planned(name), cal), x) for name in ("kl", "minmax"))
    (named,) = (one for one in bad.costly_ranges if one.tensor == "x")
    wanted = {one.tensor: one for one in costly_ranges(hwq.quantize(graph(), planned("kl"), cal), cal)}["x"]
    assert named.decibels == pytest.approx(wanted.decibels) and f"warning: {named}" in str(bad)
    assert not good.costly_ranges and "warning" not in str(good)
    page = tmp_path / "report.html"
    hwq.report([bad], page)
    assert "worse than the whole of it" in page.read_text()
    asked = [
        "explain",
        str(tmp_path / "float.onnx"),
        "--on",
        "t4",
        "--plan",
        str(tmp_path / "plan.toml"),
        "--against",
        "int8",
    ]
    for more, told in (([], False), (["--calibration", str(tmp_path / "cal.npz")], True)):
        run = CliRunner().invoke(app, [*asked, *more, "--json"])
        assert run.exit_code == 0, run.output
        assert any("x: the range reaches" in line for line in json.loads(run.output)["result"][0]["ranges"]) == told
