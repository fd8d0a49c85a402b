"""Float TFLite models in ONNX's operators: the same function, and plans that quantize them."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

import hwq
from hwq.ops.evaluate import evaluate
from hwq.standardization import standardized

pytest.importorskip("ai_edge_litert", reason="the builder of TFLite files uses LiteRT's schema")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    from hwq.verification.tflite_builder import Builder, options

    rng = np.random.default_rng(0)
    b = Builder()

    def weight(*shape):
        return b.tensor("float32", shape, rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])))

    x = b.tensor("float32", (1, 9, 9, 3), name="x")
    c1, c2, c3, a1, m1, p1, f1, d1, y = (
        b.tensor("float32", shape, name=name)
        for name, shape in (
            ("c1", (1, 5, 5, 8)), ("c2", (1, 5, 5, 16)), ("c3", (1, 5, 5, 8)), ("a1", (1, 5, 5, 8)), ("m1", (1, 3, 3, 8)),
            ("p1", (1, 1, 1, 8)), ("f1", (1, 8)), ("d1", (1, 5)), ("y", (1, 5)))
    )  # fmt: skip
    window = {"padding": "SAME", "dilationWFactor": 1, "dilationHFactor": 1}
    b.operator(
        "CONV_2D",
        [x, weight(8, 3, 3, 3), weight(8)],
        [c1],
        options("Conv2D", strideW=2, strideH=2, fusedActivationFunction="RELU6", **window),
    )
    b.operator(
        "DEPTHWISE_CONV_2D",
        [c1, weight(1, 3, 3, 16), weight(16)],
        [c2],
        options("DepthwiseConv2D", strideW=1, strideH=1, depthMultiplier=2, fusedActivationFunction="RELU", **window),
    )
    b.operator(
        "CONV_2D",
        [c2, weight(8, 1, 1, 16), weight(8)],
        [c3],
        options("Conv2D", strideW=1, strideH=1, fusedActivationFunction="NONE", **window),
    )
    b.operator("ADD", [c3, c1], [a1], options("Add", fusedActivationFunction="RELU"))
    b.operator(
        "MAX_POOL_2D",
        [a1],
        [m1],
        options("Pool2D", padding="SAME", strideW=2, strideH=2, filterWidth=2, filterHeight=2),
    )
    b.operator(
        "AVERAGE_POOL_2D",
        [m1],
        [p1],
        options("Pool2D", padding="VALID", strideW=1, strideH=1, filterWidth=3, filterHeight=3),
    )
    b.operator("RESHAPE", [p1, b.constant([1, 8])], [f1], options("Reshape", newShape=[1, 8]))
    b.operator("FULLY_CONNECTED", [f1, weight(5, 8), weight(5)], [d1], options("FullyConnected"))
    b.operator("SOFTMAX", [d1], [y], options("Softmax", beta=1.0))
    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    path.write_bytes(b.finish([x], [y]))
    return hwq.load(str(path))  # fmt: skip


def images(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 9, 9, 3)).astype(np.float32)


def run(graph, x):
    return np.concatenate([evaluate(graph, {"x": x[i : i + 1]})["y"] for i in range(len(x))])


def test_the_function_stays_and_every_operator_has_a_counterpart(graph):
    made = standardized(graph)
    assert not [node.kind for node in made.nodes if node.domain]
    assert np.abs(run(graph, images(4)) - run(made, images(4))).max() < 1e-6
    assert {"c1", "c2", "a1", "y"} <= set(made.tensors) and standardized(made) is made
    assert standardized(tiny.graph(tiny.cnn())).hash == tiny.graph(tiny.cnn()).hash


@pytest.mark.parametrize("transforms", [{}, {"equalize": True, "bias_correction": "empirical"}])
def test_plans_quantize_it(graph, transforms):
    samples, x = images(24), images(24, 2)
    plan = hwq.Plan.model_validate(
        {"schema": 1, "dialect": "hwq", "default": {"activations": {"observer": "mse"}}, "transforms": transforms}
    )
    q = hwq.quantize(graph, plan, hwq.calibrate(graph, samples), samples)
    lowered = hwq.lower(q, "hwq")
    assert all(lowered.tensors[node.outputs[0]].dtype == "uint8" for node in lowered.nodes if node.op == "Conv")
    compared = hwq.compare(graph, q, x)
    assert compared.kl < 1e-3 and np.abs(run(q, x) - run(graph, x)).max() < 0.05


def test_what_has_no_counterpart_stays(graph):
    made = graph.replace(nodes=[
        node if node.op != "SOFTMAX" else type(node)(node.op, node.name, node.inputs, node.outputs, {**node.attributes, "beta": 2.0}, node.domain)
        for node in graph.nodes
    ])  # fmt: skip
    assert [node.op for node in standardized(made).nodes if node.domain] == ["SOFTMAX"]


def test_what_real_networks_hold(tmp_path):
    """Float16 weights, borders, slopes, clamps, views, cuts and images that grow: the same numbers, and integers by a plan."""
    from hwq.verification.tflite_builder import Builder, options

    rng, b = np.random.default_rng(2), Builder()
    names = (
        "pad",
        "conv",
        "slope",
        "leak",
        "low",
        "high",
        "hard",
        "cut",
        "grown",
        "near",
        "sum",
        "turned",
        "flat",
        "rows",
        "y",
    )
    shapes = ((1, 10, 11, 3), (1, 8, 9, 4), (1, 8, 9, 4), (1, 8, 9, 4), (1, 8, 9, 4), (1, 8, 9, 4), (1, 8, 9, 4), (1, 4, 8, 4),
              (1, 7, 12, 4), (1, 14, 24, 4), (1, 14, 24), (1, 24, 14), (24, 14), (1, 24, 14), (1, 24))  # fmt: skip
    x = b.tensor("float32", (1, 9, 9, 3), name="x")
    made = {name: b.tensor("float32", shape, name=name) for name, shape in zip(names, shapes, strict=True)}
    half = b.tensor("float16", (4, 3, 3, 3), rng.normal(size=(4, 3, 3, 3)).astype(np.float16))
    wide = b.tensor("float32", (4, 3, 3, 3), name="wide")
    bias = b.tensor("float32", (4,), rng.normal(size=4).astype(np.float32))
    window = dict(padding="VALID", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    steps = [
        ("DEQUANTIZE", [half], wide, options("Dequantize")),
        ("MIRROR_PAD", [x, b.constant([[0, 0], [0, 1], [2, 0], [0, 0]])], "pad", options("MirrorPad", mode=0)),
        ("CONV_2D", [made["pad"], wide, bias], "conv", options("Conv2D", **window)),
        ("PRELU", [made["conv"], b.tensor("float32", (1, 1, 4), rng.normal(size=(1, 1, 4)).astype(np.float32))], "slope", None),
        ("LEAKY_RELU", [made["slope"]], "leak", options("LeakyRelu", alpha=0.125)),
        ("MAXIMUM", [made["leak"], b.constant(-0.5, "float32")], "low", options("MaximumMinimum")),
        ("MINIMUM", [made["low"], b.constant(1.5, "float32")], "high", options("MaximumMinimum")),
        ("HARD_SWISH", [made["high"]], "hard", options("HardSwish")),
        ("STRIDED_SLICE", [made["hard"], b.constant([0, 1, 1, 0]), b.constant([1, 8, 0, 4]), b.constant([1, 2, 1, 1])],
         "cut", options("StridedSlice", endMask=4)),
        ("RESIZE_BILINEAR", [made["cut"], b.constant([7, 12])], "grown", options("ResizeBilinear", halfPixelCenters=True)),
        ("RESIZE_NEAREST_NEIGHBOR", [made["grown"], b.constant([14, 24])], "near", options("ResizeNearestNeighbor")),
        ("SUM", [made["near"], b.constant([3])], "sum", options("Reducer")),
        ("TRANSPOSE", [made["sum"], b.constant([0, 2, 1])], "turned", options("Transpose")),
        ("SQUEEZE", [made["turned"]], "flat", options("Squeeze", squeezeDims=[0])),
        ("EXPAND_DIMS", [made["flat"], b.constant(0)], "rows", options("ExpandDims")),
        ("REDUCE_MAX", [made["rows"], b.constant([2])], "y", options("Reducer")),
    ]  # fmt: skip
    for op, inputs, output, option in steps:
        b.operator(op, inputs, [output if isinstance(output, int) else made[output]], option)
    path = tmp_path / "net.tflite"
    path.write_bytes(b.finish([x], [made["y"]]))
    graph, data = hwq.load(str(path)), images(4)
    other = standardized(graph)
    assert not any(node.domain == "tflite" for node in other.nodes)
    want = run(graph, data)
    np.testing.assert_allclose(run(other, data), want, rtol=0, atol=3e-6 * np.abs(want).max())
    quantized = hwq.quantize(graph, hwq.Plan.uniform(), hwq.calibrate(graph, data), batches=data)
    found = np.concatenate([hwq.execute(quantized, one[None]) for one in data])
    assert np.square(found - want).sum() < 1e-2 * np.square(want).sum()
