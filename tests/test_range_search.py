"""The observer that looks at the model's outputs, and the two-sided squared error against a full grid."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
from onnx import helper

import hwq
from hwq import range_search
from hwq.errors import Error
from hwq.observers import activation_range, affine
from hwq.ops.evaluate import evaluate
from hwq.plan import Activations, Plan
from hwq.statistics import observe


def plan_of(observer, dtype="uint8", weights="int8", layers=()):
    return Plan._checked(
        {
            "schema": 1,
            "dialect": "ort",
            "default": {"weights": {"dtype": weights}, "activations": {"dtype": dtype, "observer": observer}},
            "layers": list(layers),
        },
        "test",
    )


def divergence(graph, quantized, x):
    p, q = (np.maximum(evaluate(one, {"x": x})[one.outputs[0]].astype(np.float64), 1e-7) for one in (graph, quantized))
    return float((p * np.log(p / q)).sum(axis=1).mean())


def on_the_grid(graph):
    """The graph with weights that int8 a channel holds exactly, so that only activations are rounded."""

    def rounded(tensor):
        if tensor.data is None or tensor.data.ndim < 2:
            return tensor
        steps = np.abs(tensor.data.reshape(len(tensor.data), -1)).max(axis=1) / 127
        steps = steps.reshape(-1, *[1] * (tensor.data.ndim - 1))
        return dataclasses.replace(tensor, data=(np.rint(tensor.data / steps) * steps).astype(np.float32))

    return graph.replace(tensors=[rounded(tensor) for tensor in graph.tensors.values()])


SOFTMAX_FLOAT = [{"match": {"op": "Softmax"}, "activations": {"mode": "float"}}]


@pytest.mark.parametrize("seed", range(3))
def test_no_other_observer_is_nearer_at_the_output(seed):
    graph, x = on_the_grid(tiny.graph(tiny.cnn(seed))), tiny.images(24)
    cal = hwq.calibrate(graph, x)
    found = {
        observer: divergence(graph, hwq.quantize(graph, plan_of(observer, layers=SOFTMAX_FLOAT), cal, x), x)
        for observer in ("minmax", "percentile", "mse", "kl", "coordinate")
    }
    assert found["coordinate"] < 0.9 * found["mse"] and found["coordinate"] < 1.05 * min(found.values())


def test_an_activation_that_the_output_does_not_need_gives_way():
    # One channel is large and its weight is zero: every observer of the tensor alone keeps or half keeps its range.
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(8, 8)), rng.normal(size=(8, 4))
    first[:, 0] *= 60.0
    second[0] = 0.0
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], "second"),
    ]
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 8]}, {"y": ["N", 4]}, {"a": first, "b": second}))
    samples, x = (np.random.default_rng(seed).normal(size=(64, 8)).astype(np.float32) for seed in (1, 2))
    cal = hwq.calibrate(graph, samples)
    errors = {}
    for observer in ("minmax", "mse", "coordinate"):
        q = hwq.quantize(graph, plan_of(observer), cal, samples)
        errors[observer] = float(np.square(evaluate(q, {"x": x})["y"] - evaluate(graph, {"x": x})["y"]).mean())
    assert errors["coordinate"] < 0.7 * errors["mse"] and errors["coordinate"] < 0.7 * errors["minmax"]


def test_it_asks_for_samples_and_its_work_is_bounded(monkeypatch):
    graph, x = tiny.graph(tiny.cnn()), tiny.images(24)
    cal = hwq.calibrate(graph, x)
    with pytest.raises(Error, match="batches="):
        hwq.quantize(graph, plan_of("coordinate"), cal)
    free = hwq.quantize(graph, plan_of("coordinate", weights="int8"), cal, x)
    assert free.hash == hwq.quantize(graph, plan_of("coordinate", weights="int8"), cal, iter([x[:7], x[7:]])).hash
    monkeypatch.setattr(range_search, "WORK", 1)
    bounded = hwq.quantize(graph, plan_of("coordinate", weights="int8"), cal, x)
    plain = hwq.quantize(graph, plan_of("mse", weights="int8"), cal)
    scales = [{n: float(t.data) for n, t in one.tensors.items() if n.endswith("_scale") and t.data is not None and t.data.ndim == 0} for one in (bounded, plain, free)]  # fmt: skip
    assert scales[0] == scales[1] != scales[2]


def test_given_scales_stay():
    graph, x = tiny.graph(tiny.cnn()), tiny.images(8)
    rule = [{"match": {"tensor": "r1"}, "activations": {"scale": 0.5, "zero_point": 3}}]
    q = hwq.quantize(graph, plan_of("coordinate", layers=rule), hwq.calibrate(graph, x), x)
    assert float(q.tensors["r1_scale"].data) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_the_two_sided_search_is_near_the_best_of_a_full_grid(seed):
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=4000), -rng.exponential(8.0, 40), rng.exponential(3.0, 400)]).astype(np.float32)
    how = Activations(dtype="int8", observer="mse")

    def error(low, high):
        scale, zero = affine(low, high, "int8", False)
        stored = np.clip(np.rint(x / np.float64(scale)) + zero, -128, 127)
        return float(np.square((stored - zero) * np.float64(scale) - x).mean())

    found = error(*activation_range(observe(x), how))
    shares = np.linspace(0.05, 1.0, 39)
    grid = min(error(float(x.min()) * a, float(x.max()) * b) for a in shares for b in shares)
    assert found <= 1.05 * grid and found <= error(float(x.min()), float(x.max()))


def test_values_that_fold_once_the_shapes_are_known():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
        helper.make_node("Shape", ["p"], ["s"], "shape"),
        helper.make_node("Reshape", ["p", "s"], ["y"], "view"),
    ]
    weight = np.random.default_rng(0).normal(size=(6, 4))
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 6]}, {"y": ["N", 4]}, {"w": weight}))
    x = np.random.default_rng(1).normal(size=(16, 6)).astype(np.float32)
    made = hwq.quantize(graph, Plan.uniform(observer="coordinate"), hwq.calibrate(graph, x), x)
    assert np.abs(hwq.execute(made, x) - hwq.execute(graph, x)).max() < 0.2
