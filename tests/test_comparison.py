"""Comparison: its shares against NumPy on the same values, its variants against fake quantization, its advice on planted faults."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper, numpy_helper
from typer.testing import CliRunner

import hwq
from hwq.cli import app
from hwq.comparison import Comparison
from hwq.comparison.places import Places
from hwq.comparison.variants import restored, stored_again, with_scale
from hwq.errors import Error
from hwq.graph import Graph, with_tensors
from hwq.plan import Weights


def quantized(graph: Graph, data: np.ndarray, *rules: dict[str, object], **uniform: object) -> Graph:
    plan = hwq.Plan.uniform(**uniform)  # type: ignore[arg-type]
    table = tomllib.loads(plan.to_toml()) | {"layers": list(rules)}
    return hwq.quantize(graph, hwq.Plan.model_validate(table), hwq.calibrate(graph, data))


def decibels(wanted: np.ndarray, found: np.ndarray) -> float:
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10((wanted**2).sum() / max(((wanted - found) ** 2).sum(), 1e-300)))


def test_shares_equal_numpy_on_the_values(cnn: Graph) -> None:
    x = tiny.images(20)
    # A range that cuts the top quarter and swallows small values, whatever calibration says.
    q = quantized(cnn, x, {"match": {"tensor": "r1"}, "activations": {"scale": 0.008, "zero_point": 9}})
    real = hwq.compile(cnn, "ort-unfused")(x, intermediates=True)[1]["r1"].astype(np.float64)
    layer = next(one for one in hwq.compare(cnn, q, [x[:7], x[7:]]).layers if one.tensor == "r1")
    steps = real / np.float64(np.float32(0.008)) + 9
    cut = (steps < -0.5) | (steps > 255.5)
    assert 0.01 < cut.mean() < 0.5
    assert layer.saturation == cut.mean()
    assert layer.underflow == ((real != 0) & (np.rint(real / np.float64(np.float32(0.008))) == 0) & ~cut).mean() > 0
    assert layer.channel_minima == tuple(real.min(axis=(0, 2, 3)))
    assert layer.channel_maxima == tuple(real.max(axis=(0, 2, 3)))
    wanted = np.log2(np.maximum(np.abs(real).max(axis=(0, 2, 3)) / np.float64(np.float32(0.008)), 1))
    assert np.allclose(layer.channel_bits, wanted, rtol=0, atol=1e-12)


def test_headroom_is_reached_by_an_input(cnn: Graph) -> None:
    x = tiny.images(8)
    q = quantized(cnn, x)
    compared = {one.tensor: one for one in hwq.compare(cnn, q, x).layers}
    weights = q.tensors["w4_quantized"].data.astype(np.int64)
    bias = q.tensors["b4_quantized"].data.astype(np.int64)
    zero = int(q.constant("g1_zero_point"))
    # Each column's extreme accumulators: activations at 255 where the weight is positive, at 0 where it is not.
    top = (np.where(weights > 0, 255 - zero, -zero) * weights).sum(axis=1) + bias
    bottom = (np.where(weights < 0, 255 - zero, -zero) * weights).sum(axis=1) + bias
    wanted = 31 - np.log2(max(np.abs(top).max(), np.abs(bottom).max()))
    assert compared["l1"].headroom_bits == pytest.approx(wanted, abs=1e-9)
    assert compared["g1"].headroom_bits is None


def test_the_split_equals_fake_quantization() -> None:
    graph = tiny.graph(tiny.mlp())
    x = tiny.rows(32)
    q = quantized(graph, x)
    known = {name: q.constant(f"{name}_scale").astype(np.float64) for name in ("x", "w1", "w2", "r1", "y")}
    points = {name: int(q.constant(f"{name}_zero_point")) for name in ("x", "r1", "y")}
    w = {name: graph.constant(name).astype(np.float64) for name in ("w1", "b1", "w2", "b2")}

    def activation(name: str, value: np.ndarray, on: bool) -> np.ndarray:
        if not on:
            return value
        return (np.clip(np.rint(value / known[name]) + points[name], 0, 255) - points[name]) * known[name]

    def weight(name: str, on: bool) -> np.ndarray:
        return np.clip(np.rint(w[name] / known[name]), -128, 127) * known[name] if on else w[name]

    def forward(weights: bool, activations: bool) -> np.ndarray:
        hidden = np.maximum(activation("x", x.astype(np.float64), activations) @ weight("w1", weights) + w["b1"], 0)
        made = activation("r1", hidden, activations) @ weight("w2", weights) + w["b2"]
        return activation("y", made, activations)

    compared = next(one for one in hwq.compare(graph, q, x).layers if one.tensor == "y")
    float_ = forward(False, False)
    assert compared.weights_only_db == pytest.approx(decibels(float_, forward(True, False)), abs=0.1)
    assert compared.activations_only_db == pytest.approx(decibels(float_, forward(False, True)), abs=0.1)
    assert compared.sqnr_db == pytest.approx(decibels(float_, forward(True, True)), abs=0.1)
    assert compared.sqnr_db < min(compared.weights_only_db, compared.activations_only_db)


def test_everything_put_back_is_the_float_model(cnn: Graph) -> None:
    x = tiny.images(8)
    for dialect in ("ort", "ort-unfused", "hwq", "onnx"):
        q = quantized(cnn, x, dialect=dialect)
        places = Places(cnn, q)
        back = restored(places, [place.key for place in places.every])(q)
        assert not [tensor for tensor in back.tensors.values() if tensor.quantization is not None]
        assert decibels(hwq.execute(cnn, x), hwq.execute(back, x)) > 100


def test_changing_nothing_changes_no_bit(cnn: Graph) -> None:
    x = tiny.images(8)
    q = quantized(cnn, x, granularity="tensor")
    places = Places(cnn, q)
    edits = [restored(places, [])]
    for place in places.every:
        how = place.quantization
        if place.kind == "weights":
            edits.append(stored_again(places, place, Weights(granularity="tensor"), None))
        else:
            edits.append(with_scale(places, places.tied(place), how.scales()[()], int(how.zero_points())))
    wanted = hwq.execute(q, x)
    for edit in edits:
        assert np.array_equal(hwq.execute(edit(q), x), wanted)


def test_sensitivity_equals_fake_quantization(cnn: Graph) -> None:
    x = tiny.images(16)
    q = quantized(cnn, x)
    found = hwq.compare(cnn, q, x, sensitivity=16)
    assert found.analysed == 16
    one = next(item for item in found.sensitivities if item.layer == "dense")
    assert (one.weights, one.activations) == (("w4",), ("l1",))
    # The same in NumPy: the layer's weights and output on their grids behind float, and in float behind integers.
    _, real = hwq.compile(cnn, "ort-unfused")(x, intermediates=True)
    _, stored = hwq.compile(q)(x, intermediates=True)

    def softmax(value: np.ndarray) -> np.ndarray:
        powers = np.exp(value - value.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def grid(name: str, value: np.ndarray) -> np.ndarray:
        scale, point = q.constant(f"{name}_scale").astype(np.float64), int(q.constant(f"{name}_zero_point"))
        return (np.clip(np.rint(value / scale) + point, 0, 255) - point) * scale

    w, b = cnn.constant("w4").astype(np.float64), cnn.constant("b4").astype(np.float64)
    stepped = q.constant("b4_quantized") * q.constant("b4_scale").astype(np.float64)
    step = q.constant("w4_scale").astype(np.float64)[:, None]
    only = softmax(grid("l1", real["f1"] @ (np.rint(w / step) * step).T + stepped))
    values = (stored["f1_quantized"].astype(np.float64) - int(q.constant("g1_zero_point"))) * q.constant("g1_scale")
    without = grid("y", softmax(values @ w.T + b))
    assert one.only is not None and one.without is not None
    assert one.only.sqnr_db == pytest.approx(decibels(real["y"], only), abs=0.1)
    assert one.without.sqnr_db == pytest.approx(decibels(real["y"], without), abs=0.1)


def advice(graph: Graph, q: Graph, x: np.ndarray) -> Comparison:
    found = hwq.compare(graph, q, x, sensitivity=True)
    gains = [one.gain_db for one in found.changes]
    assert gains and gains == sorted(gains, reverse=True)
    # Each gain is that of the change alone, and what it promises is what executing it gave.
    for one in found.changes:
        assert one.gain_db == one.after.sqnr_db - one.before.sqnr_db
        assert one.before.sqnr_db == pytest.approx(found.sqnr_db, abs=1e-6)
    return found


@pytest.mark.parametrize(
    ("tensor", "factor"), [("r1", 12.0), ("c3", 20.0), ("r1", 0.12), ("r3", 0.15)], ids=["r1-coarse", "c3-coarse", "r1-saturating", "r3-saturating"]
)  # fmt: skip
def test_a_bad_scale_is_named_first(cnn: Graph, tensor: str, factor: float) -> None:
    x = tiny.images(16)
    good = quantized(cnn, x)
    scale, point = good.constant(f"{tensor}_scale"), int(good.constant(f"{tensor}_zero_point"))
    rule = {"match": {"tensor": tensor}, "activations": {"scale": float(scale) * factor, "zero_point": point}}
    found = advice(cnn, quantized(cnn, x, rule), x)
    first = found.changes[0]
    assert (first.kind, first.tensor) == ("activations", tensor)
    assert "observer" in first.what and first.gain_db > 3
    # The rule in a plan file undoes the fault.
    layers = tomllib.loads(first.rule)["layers"]
    assert layers[0]["match"] == {"tensor": tensor}
    repaired = quantized(cnn, x, *layers)
    assert decibels(hwq.execute(cnn, x), hwq.execute(repaired, x)) == pytest.approx(first.after.sqnr_db, abs=1.0)
    if factor < 1:
        assert max(found.layers, key=lambda layer: layer.saturation).tensor in {tensor, "p1"}


def test_an_outlier_channel_is_named_first(cnn: Graph) -> None:
    # One channel of the depthwise layer is 200 times larger and dead behind its clamp: only the weights' scale suffers.
    w, b = cnn.constant("w2").copy(), cnn.constant("b2").copy()
    w[3], b[3] = np.abs(w[3]) * 200, -1e4
    graph = with_tensors(cnn, {name: dataclasses.replace(cnn.tensors[name], data=value) for name, value in (("w2", w), ("b2", b))})  # fmt: skip
    x = tiny.images(16)
    found = advice(graph, quantized(graph, x, granularity="tensor"), x)
    first = found.changes[0]
    assert (first.kind, first.layer, first.tensor) == ("weights", "depthwise", "w2")
    assert "per channel" in first.what and first.gain_db > 3
    assert tomllib.loads(first.rule)["layers"][0]["weights"]["granularity"] == "channel"
    bits = next(layer for layer in found.layers if layer.weight_bits and layer.tensor == "r2").weight_bits
    assert int(np.argmax(bits)) == 3 and bits[3] > 6.9 and max(bits[:3] + bits[4:]) < 2


def test_a_bad_weight_scale_is_named_first(cnn: Graph) -> None:
    x = tiny.images(16)
    rule = {"match": {"name": "pointwise"}, "weights": {"granularity": "tensor", "scale": 0.3}}
    first = advice(cnn, quantized(cnn, x, rule), x).changes[0]
    assert (first.kind, first.layer) == ("weights", "pointwise") and first.gain_db > 3


def test_four_bits_want_eight(cnn: Graph) -> None:
    x = tiny.images(16)
    rule = {"match": {"name": "dense"}, "weights": {"dtype": "int4", "granularity": "tensor"}}
    first = advice(cnn, quantized(cnn, x, rule, dialect="hwq"), x).changes[0]
    assert first.layer == "dense" and "int8" in first.what


def test_graphs_without_switches_say_so(cnn: Graph) -> None:
    x = tiny.images(4)
    q = quantized(cnn, x)
    # Weights that were changed before they were quantized are not the float model's.
    other = with_tensors(cnn, {"w3": dataclasses.replace(cnn.tensors["w3"], data=cnn.constant("w3") * np.float32(3))})
    with pytest.raises(Error, match="cannot be switched back"):
        hwq.compare(other, quantized(cnn, x), x, sensitivity=True)
    assert hwq.compare(other, q, x).layers[0].weights_only_db is None
    with pytest.raises(Error, match="put back to float"):
        hwq.compare(cnn, cnn, x, sensitivity=True)
    with pytest.raises(Error, match="at least 1 sample"):
        hwq.compare(cnn, q, x, sensitivity=-1)


@pytest.mark.parametrize("transforms", [{"equalize": True}, {"equalize": True, "clip": 5.0}])  # fmt: skip
def test_layers_of_a_transformed_model_are_switched_too(
    cnn: Graph, transforms: dict[str, object], tmp_path: Path
) -> None:
    import onnx

    from hwq.quantization import transformed

    x = tiny.images(16)
    table = {"schema": 1, "dialect": "hwq", "default": {"weights": {"dtype": "int4", "granularity": "tensor"}}, "transforms": transforms}  # fmt: skip
    plan, cal = hwq.Plan.model_validate(table), hwq.calibrate(cnn, x)
    q = hwq.quantize(cnn, plan, cal, x)
    with pytest.raises(Error, match="cannot be switched back"):
        hwq.compare(cnn, q, x, sensitivity=True)
    twin = transformed(cnn, plan, cal, x)
    found = hwq.compare(twin, q, x, sensitivity=8)
    # Every layer stands there, and leaving one in float gives back what quantizing it alone costs, in its order.
    assert {one.layer for one in found.sensitivities} >= {"depthwise", "pointwise", "dense"}
    assert all(one.only is not None and one.without is not None for one in found.sensitivities)
    assert found.layers[0].weights_only_db is not None
    first = found.changes[0]
    assert first.gain_db > 0
    # The gain is what the plan with the change reaches, made anew: within a decibel, since biases and rounding follow.
    better = found.improved(plan)
    again = hwq.compare(transformed(cnn, better, cal, x), hwq.quantize(cnn, better, cal, x), x)
    before = hwq.compare(twin, q, x)
    assert again.layers[-1].sqnr_db > before.layers[-1].sqnr_db
    onnx.save(tiny.cnn(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=x)
    plan.save(tmp_path / "p.toml")
    ran = CliRunner().invoke(app, ["compare", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--plan", str(tmp_path / "p.toml"), "--sensitivity", "--json"])  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "after the plan's transforms" in ran.output


def test_the_command_line(cnn: Graph, tmp_path: Path) -> None:
    import onnx

    onnx.save(tiny.cnn(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=tiny.images(12))
    arguments = ["compare", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--sensitivity"]
    ran = CliRunner().invoke(app, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    envelope = json.loads(ran.stdout)
    assert envelope["schema_version"] == 1
    result = envelope["result"]
    assert {"only", "without"} <= set(result["sensitivities"][0]) and result["analysed"] == 12
    assert all({"what", "rule", "gain_db", "after"} <= set(change) for change in result["changes"])
    ran = CliRunner().invoke(app, [*arguments, "--sensitivity-samples", "4", "-o", str(tmp_path / "page.html")])
    assert ran.exit_code == 0, ran.output
    assert "what to change" in ran.output
    page = (tmp_path / "page.html").read_text()
    assert "What to change" in page and "report.json" in {path.name for path in tmp_path.iterdir()}


def test_values_that_follow_from_shapes_are_no_layers() -> None:
    """A recurrent layer's first state, as torch exports it, is known before the program runs."""
    random = np.random.default_rng(0)
    weights = {
        "one": np.array([1]), "four": np.array([4]), "start": np.array([0]), "end": np.array([1]), "w": random.normal(size=(1, 16, 3)) * 0.4,
        "r": random.normal(size=(1, 16, 4)) * 0.4, "d": random.normal(size=(4, 5)), "axis": np.array([1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "turn", perm=[1, 0, 2]),
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Slice", ["shape", "start", "end"], ["batch"], "batch"),
        helper.make_node("Concat", ["one", "batch", "four"], ["state"], "state", axis=0),
        helper.make_node(
            "ConstantOfShape", ["state"], ["h"], "zeros", value=numpy_helper.from_array(np.zeros(1, np.float32))
        ),
        helper.make_node("LSTM", ["t", "w", "r", "", "", "h", "h"], ["s"], "lstm", hidden_size=4),
        helper.make_node("Squeeze", ["s", "axis"], ["q"], "squeeze"),
        helper.make_node("MatMul", ["q", "d"], ["y"], "dense"),
    ]
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 6, 3]}, {"y": [6, "N", 5]}, weights))
    x = random.normal(size=(8, 6, 3)).astype(np.float32)
    q = hwq.quantize(graph, hwq.Plan.uniform(), hwq.calibrate(graph, x))
    found = hwq.compare(graph, q, x, sensitivity=True)
    assert "y" in {layer.tensor for layer in found.layers} and "h" not in {layer.tensor for layer in found.layers}
