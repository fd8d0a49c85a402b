"""A plan chosen by data: the best of its candidates on samples that none of them saw, at the library and the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
from onnx import helper
from typer.testing import CliRunner

import hwq
from hwq.cli import app
from hwq.errors import Error
from hwq.plan import Plan
from hwq.samples import Samples
from hwq.validation import choice
from hwq.validation.choice import choose
from hwq.validation.methods import METHODS


def unequal(seed=0):
    """A network whose channels differ by factors of hundreds, as folded normalizations leave them: equalization mends it."""
    rng = np.random.default_rng(seed)
    spread = np.exp(2.0 * rng.normal(size=12))
    constants = {
        "w1": rng.normal(size=(12, 3, 3, 3)) * spread[:, None, None, None] / 5,
        "b1": rng.normal(size=12) * spread / 5,
        "w2": rng.normal(size=(12, 1, 3, 3)) / 3,
        "b2": np.zeros(12),
        "w3": rng.normal(size=(5, 12, 1, 1)) / spread[None, :, None, None] / 3,
        "b3": rng.normal(size=5) / 5,
    }
    n = helper.make_node
    nodes = [
        n("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1] * 4),
        n("Relu", ["c1"], ["r1"], "relu1"),
        n("Conv", ["r1", "w2", "b2"], ["c2"], "depthwise", pads=[1] * 4, group=12),
        n("Relu", ["c2"], ["r2"], "relu2"),
        n("Conv", ["r2", "w3", "b3"], ["c3"], "last"),
        n("GlobalAveragePool", ["c3"], ["g"], "pool"),
        n("Flatten", ["g"], ["y"], "flatten"),
    ]
    return tiny.graph(tiny.model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 5]}, constants))


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("dialect", ["ort", "hwq"])
def test_the_least_loss_wins_and_beats_the_default_on_unseen_samples(dialect):
    graph, seen, unseen = unequal(), images(40), images(100, 1)
    found = choose(graph, Samples({"x": seen}, None), dialect=dialect)
    assert found.losses[found.method] == min(found.losses.values()) and found.measure == "KL"
    assert "equalize" in found.method and found.plan.dialect == dialect
    assert all("smooth" in name for name in found.refused)
    calibration, wanted = hwq.calibrate(graph, seen), hwq.execute(graph, unseen)
    errors = [
        np.square(hwq.execute(hwq.quantize(graph, plan, calibration, seen), unseen) - wanted).mean()
        for plan in (found.plan, Plan.uniform(dialect=dialect))
    ]
    assert errors[0] < 0.5 * errors[1]


def test_no_candidate_sees_what_judges_it(monkeypatch):
    graph, seen = unequal(), images(16)
    given = []
    real = hwq.quantize

    def noted(graph, plan, calibration, batches):
        parts = list(batches)
        made = real(graph, plan, calibration, iter(parts))  # what does not apply is refused in its first turn
        given.append(np.concatenate([part["x"] for part in parts]))
        return made

    monkeypatch.setattr(choice.hwq, "quantize", noted)
    choose(graph, Samples({"x": seen}, None))
    # Each quarter judges in turn, since 4 samples are fewer than 500; the candidate had the other twelve.
    quarters = [np.delete(seen, np.s_[3 - turn :: 4], axis=0) for turn in range(4)]
    assert len(given) % 4 == 0 and all(np.array_equal(one, quarters[at % 4]) for at, one in enumerate(given))
    assert [len(choice.turns(count)) for count in (40, 400, 800, 1200, 5000)] == [4, 4, 3, 2, 1]


def test_what_does_not_apply_is_left_out_and_said():
    n = helper.make_node
    graph = tiny.graph(
        tiny.model(
            [n("Gemm", ["x", "w"], ["y"], "only")],
            {"x": ["N", 6]}, {"y": ["N", 4]}, {"w": np.random.default_rng(0).normal(size=(6, 4))},
        )
    )  # fmt: skip
    samples = Samples({"x": np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)}, None)
    found = choose(graph, samples)
    names = {one.name for one in choice.offered("W8A8 static")}
    assert {one.name for one in METHODS if one.candidate and one.group == "W8A8 static"} < names
    assert found.refused.keys() == {name for name in names if "equalize" in name or "smooth" in name}
    assert found.losses.keys() | found.refused.keys() == names
    with pytest.raises(Error, match="too few"):
        choose(graph, samples.first(7))
    with pytest.raises(Error, match="no such group"):
        choose(graph, samples, "W1A1")


@pytest.mark.parametrize("group", ["W8A8 static", "W8 dynamic", "W4A8"])
def test_outlier_channels_in_front_of_a_normalized_product_are_smoothed(group):
    rng = np.random.default_rng(3)
    spread = np.where(np.arange(16) % 8 == 3, 100.0, 1.0)
    constants = {
        "g": spread, "b": np.zeros(16), "w1": rng.normal(size=(16, 32)) / spread[:, None] / 4, "b1": rng.normal(size=32) / 5,
        "w2": rng.normal(size=(32, 5)) / 6, "b2": rng.normal(size=5) / 5,
    }  # fmt: skip
    n = helper.make_node
    nodes = [
        n("LayerNormalization", ["x", "g", "b"], ["l"], "norm"),
        n("MatMul", ["l", "w1"], ["p1"], "up"),
        n("Add", ["p1", "b1"], ["h"], "bias1"),
        n("Tanh", ["h"], ["t"], "tanh"),
        n("MatMul", ["t", "w2"], ["p2"], "down"),
        n("Add", ["p2", "b2"], ["y"], "bias2"),
    ]
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 16]}, {"y": ["N", 5]}, constants))
    x = rng.normal(size=(48, 16)).astype(np.float32)
    found = choose(graph, Samples({"x": x}, None), group, dialect="hwq")
    plain = min(loss for name, loss in found.losses.items() if "smooth" not in name)
    assert "smooth" in found.method and found.losses[found.method] < 0.5 * plain


def test_at_the_command_line(tmp_path):
    model = tmp_path / "m.onnx"
    hwq.export(unequal(), model)
    np.savez(tmp_path / "d.npz", x=images(24))
    words = ["plan", "choose", str(model), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "p.toml"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)["result"]
    assert result["losses"][result["method"]] == min(result["losses"].values())
    assert Plan.load(tmp_path / "p.toml").transforms.equalize == ("equalize" in result["method"])
    assert CliRunner().invoke(app, [*words, "--overwrite", "--bits", "3"]).exit_code == 2
