"""An explanation's causes add up to the difference, name the layer that changed, and say where the energy went."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import hwq
from hwq.cli import app


def uniform(weights, activations="int8"):
    return hwq.Plan.uniform(weights=weights, activations=activations)


@pytest.fixture(scope="module")
def graph():
    return hwq.load("zoo:resnet18", weights=False)


@pytest.mark.parametrize("machine", ["t4", "tpu-v1", "systolic", "ethos-u55-128", "cpu-avx2"])
def test_causes_add_up(graph, machine):
    a = hwq.estimate(graph, machine, plan=uniform("int8"))
    b = hwq.estimate(graph, machine, plan=uniform("int8"), batch=8)
    found = hwq.explain(a, b)
    assert sum(cause.seconds for cause in found.times) == pytest.approx(found.seconds, rel=1e-9)
    assert sum(cause.picojoules for cause in found.energies) == pytest.approx(found.picojoules, rel=1e-9)
    sizes = [abs(cause.seconds) for cause in found.times]
    assert sizes == sorted(sizes, reverse=True)
    json.dumps(found.to_dict(), allow_nan=False)


def test_equal_estimates_need_no_explanation(graph):
    a = hwq.estimate(graph, "t4", plan=uniform("int8"))
    found = hwq.explain(a, hwq.estimate(graph, "t4", plan=uniform("int8")))
    assert found.times == () and found.energies == () and found.seconds == 0


def test_int4_against_int8_says_where_the_energy_went(graph):
    a = hwq.estimate(graph, "systolic", plan=uniform("int8"))
    b = hwq.estimate(graph, "systolic", plan=uniform("int4", "int4"))
    found = hwq.explain(a, b)
    saved = {cause.subject: cause.picojoules for cause in found.energies}
    assert {"mac", "dram", "buffer"} <= set(saved) and all(saved[name] < 0 for name in ("mac", "dram", "buffer"))
    assert any("int8 became int4" in cause.rule for cause in found.times)


def test_one_layer_in_another_precision_is_named(graph, tmp_path):
    plan = hwq.Plan.uniform(weights="int8", activations="int8").to_toml()
    plan += '\n[[layers]]\nmatch = { name = "layer4.1.conv2" }\nweights = { dtype = "float16" }\nactivations = { dtype = "float16" }\n'
    (tmp_path / "mixed.toml").write_text(plan)
    mixed = hwq.Plan.load(tmp_path / "mixed.toml")
    found = hwq.explain(hwq.estimate(graph, "t4", plan=uniform("int8")), hwq.estimate(graph, "t4", plan=mixed))
    assert "layer4.1.conv2" in {cause.subject for cause in found.times[:3]}


def test_the_verb():
    run = CliRunner().invoke(app, ["explain", "zoo:resnet18", "--on", "t4", "--precision", "int4", "--against", "int8"])
    assert run.exit_code == 0 and "mJ" in run.stdout and "dram" in run.stdout
    assert CliRunner().invoke(app, ["explain", "zoo:resnet18", "--on", "t4", "--precision", "int4"]).exit_code == 2
    run = CliRunner().invoke(app, ["explain", "zoo:resnet18", "--on", "t4,a100", "--precision", "int8", "--json"])
    assert run.exit_code == 0 and json.loads(run.stdout)["result"][0]["b"]["machine"] == "t4"
