"""Every way to choose a layer's integers by data beats plain rounding, on random layers and on samples it has not seen.

One layer, integer weights beside float activations, so that the layer's output says what the weights cost and nothing else.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from onnx import helper

import hwq
from hwq.observers import weight_affine
from hwq.ops.evaluate import evaluate
from hwq.plan import Plan, Weights

N = helper.make_node
SEEDS = range(3)


def mixed(rng, shape):
    """Correlated inputs, a few channels louder than the rest."""
    k = shape[1]
    basis = np.eye(k) + 0.4 * rng.normal(size=(k, k))
    loud = np.exp(rng.normal(size=k))
    x = np.einsum("nk...,kj->nj...", rng.normal(size=shape), basis * loud)
    return np.maximum(x, 0.0).astype(np.float32)


def layer(kind, seed):
    """A random layer of each kind, samples to choose by, and others to judge by."""
    rng = np.random.default_rng(seed)
    if kind == "product":
        shape, w = (400, 48), rng.normal(size=(20, 48))
        node = N("Gemm", ["x", "w", "b"], ["y"], "layer", transB=1)
    elif kind == "depthwise":
        shape, w = (40, 12, 8, 8), rng.normal(size=(12, 1, 3, 3))
        node = N("Conv", ["x", "w", "b"], ["y"], "layer", pads=[1] * 4, group=12)
    else:
        shape, w = (40, 8, 8, 8), rng.normal(size=(10, 8, 3, 3))
        node = N("Conv", ["x", "w", "b"], ["y"], "layer", pads=[1] * 4)
    w = w * np.exp(0.8 * rng.normal(size=w.shape))  # heavy tails, as trained weights have
    constants = {"w": w, "b": rng.normal(size=len(w))}
    out = ["N", len(w), *shape[2:]]
    graph = tiny.graph(tiny.model([node], {"x": ["N", *shape[1:]]}, {"y": out}, constants))
    both = mixed(rng, (2 * shape[0], *shape[1:]))
    return graph, both[: shape[0]], both[shape[0] :]


def error(graph, samples, unseen, weights, **transforms):
    """Mean squared error of the output on samples that no choice was made by."""
    default = {"weights": weights, "activations": {"dtype": "float32", "mode": "float"}}
    table = {"schema": 1, "dialect": "hwq", "default": default, "transforms": transforms}
    q = hwq.quantize(graph, Plan.model_validate(table), None, samples)
    wanted, made = (evaluate(one, {"x": unseen})[one.outputs[0]] for one in (graph, q))
    return float(np.square(wanted - made).mean())


@pytest.mark.parametrize("kind", ["product", "depthwise", "convolution"])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_step_lowers_the_error_of_the_output(kind, seed):
    of = {
        (scale, rounding): error(*layer(kind, seed), {"dtype": "int4", "scale": scale, "rounding": rounding})
        for scale, rounding in [
            ("minmax", "nearest"), ("seq-mse", "nearest"), ("minmax", "gptq"), ("minmax", "coordinate"),
            ("seq-mse", "gptq"), ("seq-mse", "coordinate"),
        ]
    }  # fmt: skip
    plain = of["minmax", "nearest"]
    assert all(value < plain for pair, value in of.items() if pair != ("minmax", "nearest"))
    # Search and rounding together beat the search alone; descent starts from GPTQ and only goes down on what it sees.
    assert of["seq-mse", "coordinate"] < of["seq-mse", "nearest"]
    assert of["seq-mse", "coordinate"] < 1.05 * of["seq-mse", "gptq"]


@pytest.mark.parametrize("dtype, symmetric", [("int4", True), ("uint4", False)])
@pytest.mark.parametrize("granularity", ["tensor", "channel", {"group": 16}])
def test_every_granularity_gains(dtype, symmetric, granularity):
    how = {"dtype": dtype, "symmetric": symmetric, "granularity": granularity}
    for seed in SEEDS:
        graph, samples, unseen = layer("product", seed)
        plain = error(graph, samples, unseen, how)
        for rounding in ("gptq", "coordinate"):
            assert error(graph, samples, unseen, {**how, "rounding": rounding}) < plain


@pytest.mark.parametrize("seed", SEEDS)
def test_finer_scales_and_zero_points_lower_it(seed):
    graph, samples, unseen = layer("product", seed)

    def plain(**how):
        return error(graph, samples, unseen, {"dtype": "int4", **how})

    assert plain(granularity={"group": 16}) < plain(granularity="channel") < plain(granularity="tensor")
    # Nothing but positive weights: half of the symmetric steps are never used.
    data = graph.constant("w")
    shifted = graph.replace(tensors=[
        one if one.name != "w" else type(one)("w", "float32", data.shape, np.abs(data)) for one in graph.tensors.values()
    ])  # fmt: skip
    assert error(shifted, samples, unseen, {"dtype": "uint4", "symmetric": False}) < 0.5 * error(
        shifted, samples, unseen, {"dtype": "int4"}
    )


@pytest.mark.parametrize("dtype, symmetric", [("int4", True), ("uint4", False), ("int8", True)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_searched_scale_is_the_best_of_its_grid(dtype, symmetric, seed):
    """ "mse" and "weighted" against every candidate, computed here."""
    rng = np.random.default_rng(seed)
    rows = (rng.standard_t(3, size=(4, 60)) + 0.3).astype(np.float32)
    importance = np.exp(rng.normal(size=rows.shape))
    lowest, highest = {"int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127)}[dtype]

    def cost(row, weight, scale, zero):
        stored = np.clip(np.rint(row / scale) + zero, lowest, highest)
        return float((weight * np.square((stored - zero) * scale - row)).sum())

    for scale_method, weight in (("mse", np.ones(rows.shape)), ("weighted", importance)):
        how = Weights(dtype=dtype, symmetric=symmetric, scale=scale_method)
        found, points = weight_affine(rows, how, None, importance if scale_method == "weighted" else None)
        for row, shares, scale, zero in zip(rows, weight, found.astype(float), points, strict=True):
            least = np.inf
            for share in np.linspace(0.3, 1.0, 71):
                low, high = min(row.min(), 0) * share, max(row.max(), 0) * share
                step = max(-low, high) / highest if symmetric else (high - low) / (highest - lowest)
                point = 0 if symmetric else np.clip(np.rint(lowest - low / step), lowest, highest)
                least = min(least, cost(row, shares, step, point))
            assert cost(row, shares, scale, zero) <= least * 1.001


@pytest.mark.parametrize("seed", SEEDS)
def test_awq_lowers_it_where_a_few_inputs_are_loud(seed):
    rng = np.random.default_rng(seed)
    d = 32
    constants = {"gain": np.exp(1.5 * rng.normal(size=d)), "shift": np.zeros(d), "w": rng.normal(size=(d, 24))}
    nodes = [
        N("LayerNormalization", ["x", "gain", "shift"], ["n"], "norm", axis=-1),
        N("MatMul", ["n", "w"], ["y"], "layer"),
    ]
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 6, d]}, {"y": ["N", 6, 24]}, constants))
    samples, unseen = (rng.normal(size=(60, 6, d)).astype(np.float32) for _ in range(2))
    how = {"dtype": "int4", "granularity": {"group": 16}}
    assert error(graph, samples, unseen, how, awq=True) < error(graph, samples, unseen, how)
