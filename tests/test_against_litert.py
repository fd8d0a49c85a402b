"""`hwq compare --against litert`: nothing differs from the reference kernels; another resolver's bits are named by layer and rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hwq.cli import app

pytest.importorskip("ai_edge_litert")


def two_layers() -> bytes:
    """A convolution whose accumulators often lie on ties (all scales are powers of two), and a mean."""
    from hwq.verification.tflite_builder import Builder, options

    rng, b = np.random.default_rng(0), Builder()
    x = b.tensor("int8", [1, 8, 8, 4], scale=2.0**-4, zero=-3, name="x")
    w = b.tensor("int8", [8, 3, 3, 4], rng.integers(-127, 128, (8, 3, 3, 4)), [2.0**-6] * 8, 0, 0)
    bias = b.tensor("int32", [8], rng.integers(-500, 500, 8), [2.0**-10] * 8)
    y = b.tensor("int8", [1, 8, 8, 8], scale=2.0**-1, zero=5, name="y")
    window = dict(padding="SAME", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    b.operator("CONV_2D", [x, w, bias], [y], options("Conv2D", **window))
    z = b.tensor("int8", [1, 1, 1, 8], scale=2.0**-3, zero=0, name="z")
    b.operator("MEAN", [y, b.constant([1, 2])], [z], options("Reducer", keepDims=True))
    return b.finish([x], [z])


def test_compare_against_litert(tmp_path: Path) -> None:
    model, data = tmp_path / "m.tflite", tmp_path / "x.npz"
    model.write_bytes(two_layers())
    np.savez(data, x=np.random.default_rng(1).integers(-128, 128, (1, 8, 8, 4)).astype(np.int8))
    runner = CliRunner()
    same = runner.invoke(app, ["compare", str(model), "--data", str(data), "--against", "litert", "--json"])
    assert same.exit_code == 0, same.output
    other = runner.invoke(
        app,
        ["compare", str(model), "--data", str(data), "--against", "litert", "--dialect", "litert-xnnpack", "--json"],
    )
    assert other.exit_code == 1, other.output
    found = json.loads(other.stdout)
    assert found["result"]["first"]["layer"] == "y"
    assert "as litert-ref" in json.dumps(found["result"]["explanations"])


def test_portability_of_a_tflite_model(tmp_path: Path) -> None:
    """Every runtime has a row, and every convolution a proof."""
    model, data = tmp_path / "m.tflite", tmp_path / "x.npz"
    model.write_bytes(two_layers())
    np.savez(data, x=np.random.default_rng(1).integers(-128, 128, (1, 8, 8, 4)).astype(np.int8))
    made = CliRunner().invoke(app, ["portability", str(model), "--data", str(data), "--json"])
    assert made.exit_code in (0, 1), made.output
    rows = {row["dialect"]: row for row in json.loads(made.stdout)["result"]["rows"]}
    assert rows["litert-ref"]["differing"] == 0 and not rows["litert-xnnpack"]["unavailable"]
    for name in ("ort", "ort-avx2-saturating", "torch-fbgemm"):
        assert not rows[name]["unavailable"] and rows[name]["values"] == rows["litert-ref"]["values"]
    assert [proof["op"] for proof in json.loads(made.stdout)["result"]["proofs"]] == ["Conv"]
