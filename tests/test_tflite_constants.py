"""Weights that a TFLite file keeps in float16 or int8 behind a DEQUANTIZE: LiteRT's values, computed once and run in C."""

from __future__ import annotations

import numpy as np
import pytest

import hwq
from hwq.importers.tflite import read

interpreter = pytest.importorskip("ai_edge_litert.interpreter")


def network(kind: str) -> bytes:
    """A convolution, a depthwise one and a product, their weights and biases behind DEQUANTIZE."""
    from hwq.verification.tflite_builder import Builder, options

    rng, b = np.random.default_rng(0), Builder()

    def constant(shape: list[int], axis: int = 0) -> int:
        if kind == "float16":
            stored = b.tensor("float16", shape, rng.standard_normal(shape) / 4)
        else:
            scales = np.exp(rng.uniform(-7, -5, shape[axis]))
            stored = b.tensor("int8", shape, rng.integers(-127, 128, shape), scales, 0, axis)
        wide = b.tensor("float32", shape)
        b.operator("DEQUANTIZE", [stored], [wide])
        return wide

    x, y, z = (b.tensor("float32", [1, 9, 8, channels]) for channels in (3, 6, 6))
    o = b.tensor("float32", [1, 5])
    common = dict(padding="SAME", strideH=1, strideW=1, fusedActivationFunction="RELU6")
    b.operator("CONV_2D", [x, constant([6, 3, 3, 3]), constant([6])], [y], options("Conv2D", **common))
    weights = [constant([1, 3, 3, 6], 3), constant([6])]
    b.operator("DEPTHWISE_CONV_2D", [y, *weights], [z], options("DepthwiseConv2D", depthMultiplier=1, **common))
    b.operator("FULLY_CONNECTED", [z, constant([5, 432]), constant([5])], [o], options("FullyConnected"))
    return b.finish([x], [z, o])


@pytest.mark.parametrize("dialect", ["litert-ref", "litert-xnnpack"])
@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_values_are_litert_s(kind: str, dialect: str) -> None:
    from hwq.verification.litert_dialects import litert_outputs

    data, x = network(kind), np.random.default_rng(1).standard_normal((1, 9, 8, 3)).astype(np.float32)
    program = hwq.compile(read(data, "m"), dialect)
    assert [node.op for node in program.graph.nodes] == ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]
    for ours, theirs in zip(program(x).values(), litert_outputs(data, [x], dialect), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_default_order_runs_in_c() -> None:
    program = hwq.compile(read(network("float16"), "m"), "litert-xnnpack")
    loop = program.specialization({program.graph.inputs[0]: (1, 9, 8, 3)}).loop
    assert loop is not None and loop.in_c


def test_a_dequantized_constant_may_be_an_output() -> None:
    from hwq.verification.tflite_builder import Builder

    b = Builder()
    stored, wide = b.tensor("float16", [3], [1, 2, 3]), b.tensor("float32", [3])
    b.operator("DEQUANTIZE", [stored], [wide])
    np.testing.assert_array_equal(hwq.compile(read(b.finish([], [wide]), "m"))({}), [1, 2, 3])
