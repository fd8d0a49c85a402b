"""Transforms of the float model: the same function where they promise it, better integers where they are made for."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from onnx import helper

import hwq
from hwq.errors import Error
from hwq.ops.evaluate import evaluate
from hwq.patches import linears
from hwq.plan import Plan
from hwq.transforms.channels import rescale, sites
from hwq.transforms.clipping import clip
from hwq.transforms.equalization import equalize
from hwq.transforms.smoothing import smooth

N = helper.make_node


def mobile(seed=0, bound=None, channels=6):
    """Expansion, depthwise, projection, mean, features and a head; ReLU, or a clamp to [0, bound]."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(size=channels) * 1.5)
    constants = {
        "w1": rng.normal(size=(channels, 3, 3, 3)) * 0.3 * spread[:, None, None, None],
        "b1": rng.normal(size=channels) * spread * 0.1,
        "w2": rng.normal(size=(channels, 1, 3, 3)) * 0.4,
        "b2": rng.normal(size=channels) * 0.1,
        "w3": rng.normal(size=(5, channels, 1, 1)) / spread[None, :, None, None],
        "w4": rng.normal(size=(4, 5 * 4)),
        "b4": rng.normal(size=4),
        "low": np.float32(0.0),
        "high": np.float32(bound or 1.0),
    }

    def clamp(x, y, name):
        return N("Relu", [x], [y], name) if bound is None else N("Clip", [x, "low", "high"], [y], name)

    nodes = [
        N("Conv", ["x", "w1", "b1"], ["c1"], "expand", pads=[1, 1, 1, 1]),
        clamp("c1", "r1", "clamp1"),
        N("Conv", ["r1", "w2", "b2"], ["c2"], "depthwise", pads=[1, 1, 1, 1], group=channels),
        clamp("c2", "r2", "clamp2"),
        N("Conv", ["r2", "w3"], ["c3"], "project"),
        N("LeakyRelu", ["c3"], ["r3"], "leaky", alpha=0.1),
        N("MaxPool", ["r3"], ["p3"], "pool", kernel_shape=[4, 4], strides=[4, 4]),
        N("Flatten", ["p3"], ["f3"], "flatten"),
        N("Gemm", ["f3", "w4", "b4"], ["y"], "head", transB=1),
    ]
    return tiny.graph(tiny.model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 4]}, constants))


def attention(seed=0, outliers=True, norm="LayerNormalization"):
    """A normalization read by three products, a factor, a hidden layer with ReLU, a residual sum that nothing may scale."""
    rng = np.random.default_rng(seed)
    d, h = 16, 24
    heavy = np.ones(d)
    if outliers:
        heavy[[2, 9]] = (40.0, 25.0)
    constants = {
        "gain": rng.uniform(0.5, 1.5, d) * heavy,
        "shift": rng.normal(size=d) * 0.1 * heavy,
        **{f"w{name}": rng.normal(size=(d, d)) / heavy[:, None] / 4 for name in "qkv"},
        "bq": rng.normal(size=d) * 0.1,
        "factor": np.float32(0.5),
        "wh": rng.normal(size=(d, h)) / 4,
        "bh": rng.normal(size=h) * 0.1,
        "wo": rng.normal(size=(h, d)) / 5,
        "wl": rng.normal(size=(d, 7)) / 4,
    }
    nodes = [
        N(norm, ["x", "gain", "shift"], ["n"], "norm", axis=-1),
        N("MatMul", ["n", "wq"], ["q0"], "query"),
        N("Add", ["bq", "q0"], ["q"], "query_bias"),
        N("MatMul", ["n", "wk"], ["k"], "key"),
        N("MatMul", ["n", "wv"], ["v"], "value"),
        N("Mul", ["q", "k"], ["g"], "gate"),
        N("Add", ["g", "v"], ["s"], "sum"),
        N("Mul", ["s", "factor"], ["t"], "scaled"),
        N("MatMul", ["t", "wh"], ["h0"], "hidden"),
        N("Add", ["h0", "bh"], ["h1"], "hidden_bias"),
        N("Relu", ["h1"], ["h"], "relu"),
        N("MatMul", ["h", "wo"], ["o"], "out"),
        N("Add", ["o", "x"], ["r"], "residual"),
        N("MatMul", ["r", "wl"], ["y"], "logits"),
    ]
    return tiny.graph(tiny.model(nodes, {"x": ["N", 5, d]}, {"y": ["N", 5, 7]}, constants))


def tokens(count, seed=1, width=16):
    return np.random.default_rng(seed).normal(size=(count, 5, width)).astype(np.float32)


def run(graph, x):
    return evaluate(graph, {graph.inputs[0]: x})[graph.outputs[0]]


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(a).max())


def sqnr(reference, other):
    return 10 * np.log10(np.square(reference).sum() / np.square(reference - other).sum())


def plan_of(transforms, *, dialect="ort", layers=(), **default):
    return Plan._checked(
        {"schema": 1, "dialect": dialect, "default": default, "transforms": transforms, "layers": list(layers)}, "test"
    )


@pytest.mark.parametrize("seed", range(6))
def test_any_factors_keep_the_function(seed):
    rng = np.random.default_rng(seed)
    for graph, x in ((mobile(seed), tiny.images(6)), (attention(seed), tokens(6))):
        found = sites(graph)
        factors = {site.tensor: np.exp(rng.normal(size=site.channels) * 2) for site in found}
        moved = rescale(graph, factors, found)
        assert relative(run(graph, x), run(moved, x)) < 2e-5
        values = [evaluate(one, {one.inputs[0]: x}, intermediates=True) for one in (graph, moved)]
        changed = {
            name for name in values[0] if name in values[1] and relative(values[0][name], values[1][name]) > 1e-3
        }
        assert changed == set(moved.source["rescaled"]) != set()


def test_sites_are_where_nothing_else_reads():
    assert {site.tensor: site.maker.name for site in sites(mobile())} == {
        "r1": "expand", "r2": "depthwise", "f3": "project"}  # fmt: skip
    assert {site.tensor: (site.maker.name, len(site.readers)) for site in sites(attention())} == {
        "n": ("norm", 3), "t": ("scaled", 1), "h": ("hidden", 1)}  # fmt: skip
    # `r` has a maker that could, but x is read twice; conv1 of the residual network is read by the sum too.
    assert [site.tensor for site in sites(tiny.graph(tiny.cnn()))] == ["r2"]


@pytest.mark.parametrize("seed", range(3))
def test_equalized_ranges_are_equal(seed):
    graph = mobile(seed)
    made = equalize(graph)
    x = tiny.images(8)
    assert relative(run(graph, x), run(made, x)) < 2e-5
    weights = {name: np.abs(made.constant(layer.node.inputs[1])) for name, layer in linears(made).items()}
    rows = weights["expand"].max(axis=(1, 2, 3))
    middle = weights["depthwise"].max(axis=(1, 2, 3))
    columns = weights["project"].max(axis=(0, 2, 3))
    assert np.allclose(rows, middle, rtol=1e-3) and np.allclose(middle, columns, rtol=1e-3)
    features = weights["head"].reshape(4, 5, 4).max(axis=(0, 2))
    assert np.allclose(weights["project"].max(axis=(1, 2, 3)), features, rtol=1e-3)


def test_a_triple_has_the_papers_cube_root():
    rng = np.random.default_rng(0)
    constants = {
        "a": rng.normal(size=(6, 3, 1, 1)),
        "b": rng.normal(size=(6, 1, 3, 3)),
        "c": rng.normal(size=(1, 6, 1, 1)),
    }
    nodes = [N("Conv", ["x", "a"], ["u"], "first"), N("Relu", ["u"], ["v"], "relu"),
             N("Conv", ["v", "b"], ["w"], "depthwise", group=6), N("Conv", ["w", "c"], ["y"], "last")]  # fmt: skip
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 3, 5, 5]}, {"y": ["N", 1, 3, 3]}, constants))
    made = equalize(graph)
    ranges = [
        np.abs(constants[name]).max(axis=axes) for name, axes in (("a", (1, 2, 3)), ("b", (1, 2, 3)), ("c", (0, 2, 3)))
    ]
    root = np.cbrt(ranges[0] * ranges[1] * ranges[2])
    for name, axes in (("a", (1, 2, 3)), ("b", (1, 2, 3)), ("c", (0, 2, 3))):
        assert np.allclose(np.abs(made.constant(name)).max(axis=axes), root, rtol=1e-3)


def test_channels_of_zeros_keep_their_scale():
    graph = mobile()
    weight = graph.constant("w1").copy()
    weight[2] = 0.0
    dead = graph.replace(
        tensors=[
            one if name != "w1" else type(one)(name, one.dtype, one.shape, weight)
            for name, one in graph.tensors.items()
        ]
    )
    made = equalize(dead)
    assert (
        np.isfinite(run(made, tiny.images(2))).all()
        and relative(run(dead, tiny.images(2)), run(made, tiny.images(2))) < 2e-5
    )


def test_a_clamp_with_a_bound_moves_only_what_stays_below_it():
    graph = mobile(bound=4.0)
    x = tiny.images(32)
    assert [site.tensor for site in sites(graph) if not site.clamps] == ["f3"]
    alone = equalize(graph)
    assert set(alone.source["rescaled"]) == {"c3", "r3", "p3", "f3"}
    cal = hwq.calibrate(graph, x)
    made = equalize(graph, cal)
    assert relative(run(graph, x), run(made, x)) < 2e-5
    reached = cal["r1"].maxima >= 4.0
    values = evaluate(made, {"x": x}, intermediates=True)
    assert reached.any() and not reached.all()
    assert np.array_equal(values["r1"].max(axis=(0, 2, 3))[reached], cal["r1"].maxima[reached])
    assert values["r1"].max() <= 4.0 and "r1" in made.source["rescaled"]


def test_equalization_mends_weights_per_tensor():
    x, samples = tiny.images(64), tiny.images(48)
    graph = mobile(3)
    cal = hwq.calibrate(graph, samples)
    gains = []
    for transforms in ({}, {"equalize": True}):
        plan = plan_of(transforms, weights={"dtype": "int8", "granularity": "tensor"}, activations={"dtype": "uint8"})
        gains.append(sqnr(run(graph, x), hwq.execute(hwq.quantize(graph, plan, cal, samples), x)))
    assert gains[1] > gains[0] + 6.0


def test_smoothing_recovers_what_outlier_channels_cost():
    samples, x = tokens(48), tokens(64, 2)
    clean, heavy = attention(outliers=False), attention()
    results = {}
    for name, graph, transforms in (("clean", clean, {}), ("heavy", heavy, {}), ("smooth", heavy, {"smooth": 0.5})):
        plan = plan_of(transforms, weights={"dtype": "int8", "granularity": "channel"}, activations={"dtype": "uint8"})
        quantized = hwq.quantize(graph, plan, hwq.calibrate(graph, samples), samples)
        results[name] = sqnr(run(graph, x), hwq.execute(quantized, x))
    lost = results["clean"] - results["heavy"]
    assert lost > 6.0 and results["smooth"] > results["heavy"] + 0.9 * lost


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_smoothing_keeps_the_function_and_follows_the_formula(strength):
    graph = attention()
    cal = hwq.calibrate(graph, tokens(32))
    made = smooth(graph, cal, strength)
    assert relative(run(graph, tokens(8)), run(made, tokens(8))) < 2e-5
    peaks = np.maximum(np.abs(cal["n"].minima), np.abs(cal["n"].maxima)).astype(np.float64)
    weights = np.max([np.abs(graph.constant(f"w{name}")).max(axis=1) for name in "qkv"], axis=0)
    factor = graph.constant("gain") / made.constant("gain")
    assert np.allclose(factor, peaks**strength / weights ** (1 - strength), rtol=1e-4)


@pytest.mark.parametrize("bound", [None, 2.0])
def test_smoothing_between_convolutions(bound):
    graph, samples, x = mobile(3, bound), tiny.images(48), tiny.images(64)
    cal = hwq.calibrate(graph, samples)
    made = smooth(graph, cal, 0.5, {"depthwise"})
    assert relative(run(graph, samples), run(made, samples)) < 1e-5
    again = hwq.calibrate(made, samples)
    before, after = (one["r1"].maxima for one in (cal, again))
    if bound is None:  # a depthwise layer takes whole factors: every channel fills the range
        assert np.ptp(before) > 0.5 and np.allclose(after, 1.0, rtol=1e-5)
    else:  # channels at the bound stay, the others come up to it
        assert np.allclose(after[before > 0.0], bound, rtol=1e-5) and (after <= bound).all()
    dynamic = {"weights": {"dtype": "int8"}, "activations": {"dtype": "uint8", "mode": "dynamic"}}
    for planned in ({}, dynamic):
        errors = []
        for transforms in ({}, {"smooth": 0.5}):
            quantized = hwq.quantize(graph, plan_of(transforms, **planned), cal, samples)
            errors.append(sqnr(run(graph, x), hwq.execute(quantized, x)))
        assert errors[1] > errors[0] + (3.0 if bound is None else -0.5)


def test_awq_lowers_the_error_of_weight_only_groups():
    samples, x = tokens(64), tokens(64, 3)
    graph = attention()
    errors = []
    for transforms in ({}, {"awq": True}):
        plan = plan_of(
            transforms,
            weights={"dtype": "int4", "granularity": {"group": 8}},
            activations={"dtype": "float32", "mode": "float"},
        )
        quantized = hwq.quantize(graph, plan, None, samples)
        errors.append(sqnr(run(graph, x), run(quantized, x)))
    assert errors[1] > errors[0] + 0.5


def test_awq_wants_weight_only_layers_and_moments():
    graph, samples = attention(), tokens(8)
    cal = hwq.calibrate(graph, samples)
    with pytest.raises(Error, match="weight-only"):
        hwq.quantize(graph, plan_of({"awq": True}), cal, samples)
    floats = {"weights": {"dtype": "int4"}, "activations": {"dtype": "float32", "mode": "float"}}
    with pytest.raises(Error, match=r"moments=True|batches="):
        hwq.quantize(graph, plan_of({"awq": True}, **floats), cal)
    moments = hwq.calibrate(graph, samples, moments=True)
    assert hwq.quantize(graph, plan_of({"awq": True}, **floats), moments).source["rescaled"]


def test_clipping_cuts_outliers_only():
    graph = mobile()
    x = tiny.images(32)
    cal = hwq.calibrate(graph, x)
    made = clip(graph, cal, 3.0)
    added = {
        node.inputs[0]: [float(made.constant(name)) for name in node.inputs[1:]]
        for node in made.nodes
        if node.op == "Clip"
    }
    assert added and "y" not in added and "x" not in added
    for name, (low, high) in added.items():
        seen = cal[name]
        spread = np.sqrt(seen.squares / seen.count - seen.mean**2)
        assert high == pytest.approx(seen.mean + 3 * spread, rel=1e-5) and seen.maximum > high
        assert low == -np.inf or seen.minimum < low <= 0
    assert len(clip(graph, cal, 1e6).nodes) == len(graph.nodes)
    with pytest.raises(Error, match="standard deviations"):
        clip(graph, cal, float("inf"))


def test_clipping_saves_the_step_of_the_rest():
    graph, samples, x = mobile(), tiny.images(48), tiny.images(64)
    samples[0, :, 3, 3] = 100.0  # one broken pixel
    cal = hwq.calibrate(graph, samples)
    found = []
    for transforms in ({}, {"clip": 6.0}):
        plan = plan_of(
            transforms, layers=[{"match": {"tensor": "x"}, "activations": {"scale": 0.05, "zero_point": 128}}]
        )
        found.append(sqnr(run(graph, x), hwq.execute(hwq.quantize(graph, plan, cal, samples), x)))
    assert found[1] > found[0] + 6.0


def test_transforms_that_do_not_apply_are_refused():
    constants = {"w": np.eye(3), "v": np.eye(3)}
    nodes = [
        N("MatMul", ["x", "w"], ["a"], "one"),
        N("Sigmoid", ["a"], ["b"], "curve"),
        N("MatMul", ["b", "v"], ["y"], "two"),
    ]
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, constants))
    x = np.ones((2, 3), np.float32)
    for transforms, key in (({"equalize": True}, "transforms.equalize"), ({"smooth": 0.5}, "transforms.smooth")):
        with pytest.raises(Error, match=key):
            hwq.quantize(graph, plan_of(transforms), hwq.calibrate(graph, x), x)


def test_without_samples_nothing_changed_is_guessed():
    graph, x = mobile(), tiny.images(16)
    cal = hwq.calibrate(graph, x)
    with pytest.raises(Error, match="batches="):
        hwq.quantize(graph, plan_of({"equalize": True}), cal)
    # Weight-only plans need no ranges.
    floats = {"weights": {"dtype": "int8"}, "activations": {"dtype": "float32", "mode": "float"}}
    assert hwq.quantize(graph, plan_of({"equalize": True}, **floats), cal).source["rescaled"]


def test_an_iterator_of_samples_serves_every_step():
    graph, x = mobile(), tiny.images(32)
    plan = plan_of({"equalize": True, "clip": 4.0, "bias_correction": "empirical"})
    cal = hwq.calibrate(graph, x)
    once = hwq.quantize(graph, plan, cal, iter([x[:16], x[16:]]))
    again = hwq.quantize(graph, plan, cal, [x[:16], x[16:]])
    assert once.hash == again.hash
    assert hwq.compare(graph, once, x).agreement > 0.9


def test_weights_shared_with_another_layer_are_copied():
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(3, 3)), "v": rng.normal(size=(3, 3))}
    nodes = [N("MatMul", ["x", "w"], ["a"], "one"), N("Relu", ["a"], ["b"], "relu"), N("MatMul", ["b", "v"], ["c"], "two"),
             N("MatMul", ["x", "v"], ["d"], "other"), N("Add", ["c", "d"], ["y"], "sum")]  # fmt: skip
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, constants))
    made = equalize(graph)
    x = rng.normal(size=(5, 3)).astype(np.float32)
    assert relative(run(graph, x), run(made, x)) < 1e-5
    assert np.array_equal(made.constant("v"), graph.constant("v"))


def test_a_normalization_in_parts_takes_the_factor_too():
    rng = np.random.default_rng(0)
    constants = {"gain": rng.uniform(0.5, 30.0, 6), "shift": rng.normal(size=6), "a": rng.normal(size=(6, 4)), "b": rng.normal(size=(6, 4))}  # fmt: skip
    nodes = [N("Mul", ["x", "gain"], ["m"], "gain_of"), N("Add", ["m", "shift"], ["n"], "shift_of"), N("MatMul", ["n", "a"], ["u"], "one"),
             N("MatMul", ["n", "b"], ["v"], "two"), N("Sub", ["u", "v"], ["y"], "difference")]  # fmt: skip
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 3, 6]}, {"y": ["N", 3, 4]}, constants))
    x = rng.normal(size=(8, 3, 6)).astype(np.float32)
    cal = hwq.calibrate(graph, x)
    made = smooth(graph, cal)
    assert relative(run(graph, x), run(made, x)) < 1e-5
    assert np.allclose(graph.constant("gain") / made.constant("gain"), graph.constant("shift") / made.constant("shift"))
    again = hwq.calibrate(made, x)["n"]
    assert np.ptp(np.log(again.maxima - again.minima)) < 0.6 * np.ptp(np.log(cal["n"].maxima - cal["n"].minima))


def test_what_stands_beside_changes_nothing():
    graph = mobile()
    rng = np.random.default_rng(5)
    beside = [
        hwq.graph.Node("Conv", "beside", ("x", "wb"), ("cb",), {"pads": (1, 1, 1, 1)}, layout="NCHW"),
        hwq.graph.Node("Sigmoid", "curve", ("cb",), ("z",)),
    ]
    tensors = [hwq.graph.Tensor("wb", "float32", (2, 3, 3, 3), rng.normal(size=(2, 3, 3, 3)).astype(np.float32)),
               *(hwq.graph.Tensor(name, "float32", ("N", 2, 8, 8)) for name in ("cb", "z"))]  # fmt: skip
    wider = graph.replace(
        nodes=[*beside, *graph.nodes], tensors=[*graph.tensors.values(), *tensors], outputs=("y", "z")
    )
    one, other = equalize(graph), equalize(wider)
    for name in ("w1", "b1", "w2", "b2", "w3", "w4", "b4"):
        assert np.array_equal(one.constant(name), other.constant(name))
    assert np.array_equal(other.constant("wb"), wider.constant("wb"))
    # An output of the model keeps its numbers: a value that is read outside is no place for a factor.
    shown = graph.replace(outputs=("y", "r1"))
    assert "r1" not in equalize(shown).source["rescaled"]
