"""Rows of every sample, evenly over its places, and the values beside the layer's output at the same ones."""

from __future__ import annotations

import numpy as np
import pytest

import hwq
from hwq.graph import Node, Tensor
from hwq.ops.evaluate import evaluate
from hwq.patches import linears, outputs_at, rows_of
from hwq.plan import Plan
from hwq.transforms import places
from hwq.transforms.biases import matrix_of


def layer(kind, seed=0):
    """A graph of one layer, and samples of its input."""
    rng = np.random.default_rng(seed)
    if kind == "product":
        shape, weight, out, node = (7, 5, 6), (6, 4), ("N", 5, 4), Node("MatMul", "l", ("x", "w"), ("y",))
    else:
        groups, layout = (3, "") if kind == "depthwise" else (1, "NHWC" if kind == "last" else "")
        attributes = {"group": groups, "pads": (1, 1, 0, 1), "strides": (2, 1)}
        shape, weight = (7, 3, 9, 8), (6, 3 // groups, 3, 2)
        out = ("N", 6, 4, 9)
        if layout:
            shape, weight, out = (7, 9, 8, 3), (6, 3, 2, 3), ("N", 4, 9, 6)
        node = Node("Conv", "l", ("x", "w"), ("y",), attributes, layout=layout)
    data = rng.normal(size=weight).astype(np.float32)
    tensors = [
        Tensor("x", "float32", ("N", *shape[1:])),
        Tensor("w", "float32", data.shape, data),
        Tensor("y", "float32", out),
    ]
    return hwq.Graph([node], tensors, ["x"], ["y"]), rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["product", "plain", "depthwise", "last"])
def test_rows_and_outputs_of_one_place_belong_together(kind):
    graph, x = layer(kind)
    one = linears(graph)["l"]
    y = evaluate(graph, {"x": x})["y"]
    every = rows_of(one, x)
    count = every.shape[1] // len(x)
    at = np.array([0, 6, 3, 3, 5]), np.array([0, count - 1, 1, 2, count // 2])
    taken = rows_of(one, x, at)
    assert np.array_equal(taken, every[:, at[0] * count + at[1]])
    weights = matrix_of(one, graph.constant("w")).reshape(one.groups, -1, one.k)
    made = outputs_at(one, x, y, at)
    assert np.allclose(taken @ weights.transpose(0, 2, 1), made, atol=1e-5)
    assert outputs_at(one, x, y[..., :-1] if kind in {"plain", "depthwise"} else y[:, :-1], at) is None
    assert outputs_at(one, x, y[0], at) is None


@pytest.mark.parametrize("kind", ["product", "plain", "last"])
def test_every_sample_has_its_places_and_none_twice(kind):
    graph, x = layer(kind)
    one, pieces = linears(graph)["l"], [{"x": x[:3]}, {"x": x[3:]}]
    whole = rows_of(one, x).shape[1] // len(x)
    for most in (1, 7, 21, 10**6):
        found = places.spread(one, pieces, most)
        pairs = [
            (piece, *pair)
            for piece, (samples, at) in enumerate(found)
            for pair in zip(samples.tolist(), at.tolist(), strict=True)
        ]
        each = min(max(1, most // 7), whole)
        assert len(pairs) == len(set(pairs)) == 7 * each
        assert all(0 <= at < whole for _, _, at in pairs)
        assert [len(samples) // each for samples, _ in found] == [3, 4]
    spread = np.sort(places.spread(one, pieces, 21)[1][1].reshape(4, 3), axis=1)
    assert len({tuple(line) for line in spread.tolist()}) > 1  # the samples do not look at the same places
    assert np.diff(spread, axis=1).min() >= whole // 3


def block(first):
    """y = relu(W1 x) + (W2 relu(W1 x) + b), either operand first. Sixteen numbers made of four: the error of the one branch is
    known from what the other reads.
    """
    rng = np.random.default_rng(8)
    w1, w2 = ((rng.normal(size=(k, 16)) * 0.4).astype(np.float32) for k in (4, 16))
    nodes = [
        Node("MatMul", "one", ("x", "w1"), ("p",)), Node("Relu", "relu", ("p",), ("r",)),
        Node("MatMul", "two", ("r", "w2"), ("q",)), Node("Add", "bias", ("q", "b"), ("s",)),
        Node("Add", "sum", ("s", "r") if first else ("r", "s"), ("y",)),
    ]  # fmt: skip
    tensors = [Tensor("x", "float32", ("N", 4)), *(Tensor(name, "float32", ("N", 16)) for name in "prqsy")]
    tensors += [
        Tensor(name, "float32", one.shape, one)
        for name, one in (("w1", w1), ("w2", w2), ("b", np.ones(16, np.float32)))
    ]
    return hwq.Graph(nodes, tensors, ["x"], ["y"]), rng.normal(size=(900, 4)).astype(np.float32)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("correct", [False, True])
def test_a_layer_makes_good_the_error_of_the_other_branch(first, correct, monkeypatch):
    graph, x = block(first)
    table = {
        "schema": 1, "dialect": "hwq",
        "default": {"weights": {"dtype": "int4", "scale": "seq-mse", "rounding": "coordinate"}, "activations": {"dtype": "uint8"}},
        "layers": [{"match": {"name": "one"}, "weights": {"dtype": "int3"}}],
        "transforms": {"bias_correction": "empirical"} if correct else {},
    }  # fmt: skip
    plan, cal, wanted = Plan.model_validate(table), hwq.calibrate(graph, x[:600]), hwq.execute(graph, x[600:])
    assert places.partner(graph, "q") == "r" and places.partner(graph, "p") == ""
    errors = []
    for alone in (False, True):
        if alone:
            monkeypatch.setattr(places, "partner", lambda graph, name: "")
        made = hwq.quantize(graph, plan, cal, x[:600])
        errors.append(float(np.square(hwq.execute(made, x[600:]) - wanted).mean()))
    assert errors[0] < 0.75 * errors[1]


def test_a_sum_of_another_shape_is_no_partner():
    rng = np.random.default_rng(9)
    weight, narrow = rng.normal(size=(4, 16)).astype(np.float32), rng.normal(size=(4, 1)).astype(np.float32)
    nodes = [
        Node("MatMul", "narrow", ("x", "v"), ("r",)), Node("MatMul", "wide", ("x", "w"), ("q",)), Node("Add", "sum", ("q", "r"), ("y",)),
    ]  # fmt: skip
    tensors = [
        Tensor("x", "float32", ("N", 4)),
        Tensor("r", "float32", ("N", 1)),
        *(Tensor(n, "float32", ("N", 16)) for n in "qy"),
    ]
    tensors += [Tensor("w", "float32", weight.shape, weight), Tensor("v", "float32", narrow.shape, narrow)]
    graph, x = hwq.Graph(nodes, tensors, ["x"], ["y"]), rng.normal(size=(64, 4)).astype(np.float32)
    default = {
        "weights": {"dtype": "int8", "scale": "seq-mse", "rounding": "coordinate"},
        "activations": {"dtype": "uint8"},
    }
    plan = Plan.model_validate({"schema": 1, "dialect": "hwq", "default": default})
    made = hwq.quantize(graph, plan, hwq.calibrate(graph, x), x)
    assert np.abs(hwq.execute(made, x) - hwq.execute(graph, x)).max() < 0.2
