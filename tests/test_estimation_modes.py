"""What every mode of a plan costs: bits and bytes counted by hand, and machines that lack the arithmetic say so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
from test_modes import MODES, layer, plan_of

import hwq
from hwq.errors import Error
from hwq.lowering.families import lower_for_family
from hwq.ops.base import lookup
from hwq.ops.inference import infer_shapes
from hwq.plan import Plan
from hwq.quantization import annotate
from hwq.work import Work

# The layer "gemm" of test_modes: 18 x 7 weights. (precision, activation bits, weight bits, scale and zero point bytes of weights
# and of a stored activation).
BY_HAND = {
    "static uint8": ("int8", 8, 8, 7 * 4, 4 + 1),
    "static int8 symmetric": ("int8", 8, 8, 7 * 4, 4),
    "static int4 channel": ("int8", 8, 4, 7 * 4, 4 + 1),
    "static int4 groups": ("int8", 8, 4, 5 * 7 * 4, 4 + 1),
    "static uint4 groups": ("int8", 8, 4, 4 * 7 * 4 + 4 * 7 // 2, 4 + 1),
    "static int8 groups": ("int8", 8, 8, 6 * 7 * 4, 4 + 1),
    "static int16": ("int16", 16, 8, 7 * 4, 4),
    "static int16 int4": ("int16", 16, 4, 4, 4),
    "dynamic": ("int8", 8, 8, 7 * 4, 4 + 1),
    "dynamic row": ("int8", 8, 8, 7 * 4, 3 * (4 + 1)),
    "dynamic row int4 groups": ("int8", 8, 4, 5 * 7 * 4, 3 * (4 + 1)),
    "weight-only int8": ("float32", 32, 8, 7 * 4, 0),
    "weight-only int8 tensor": ("float32", 32, 8, 4, 0),
    "weight-only uint4 groups": ("float32", 32, 4, 5 * 7 * 4 + math.ceil(5 * 7 / 2), 0),
    "float16": ("float16", 16, 16, 0, 0),
    "bfloat16": ("bfloat16", 16, 16, 0, 0),
}


def product_of(graph: hwq.Graph) -> Work:
    lowered = lower_for_family(infer_shapes(graph, batch=3), "gpu")
    (found,) = [work for node in lowered.nodes if (work := lookup(node).work(node, lowered)).macs]
    return found


@pytest.mark.parametrize("name", BY_HAND)
def test_bits_and_bytes_by_hand(name: str) -> None:
    graph, x = layer("gemm")
    quantized = hwq.quantize(graph, plan_of(name), hwq.calibrate(graph, x))
    precision, a_bits, w_bits, w_scales, a_scales = BY_HAND[name]
    for made in (quantized, annotate(graph, plan_of(name))):
        work = product_of(made)
        assert (work.m, work.k, work.n, work.precision) == (3, 18, 7, precision)
        assert (work.input_bits, work.weight_bits) == (a_bits, w_bits)
        assert work.weight_elements == 18 * 7
        stored = 4 if name.startswith("static") else 0  # of the result, whose zero point is 0 behind the ReLU
        if made is quantized:  # without values, zero points of unsigned types are assumed
            assert work.scale_bytes == w_scales + a_scales + stored


@pytest.mark.parametrize("machine", ["t4", "tpu-v1", "ethos-u55-128"])
@pytest.mark.parametrize("name", MODES)
def test_machines_cost_it_or_name_the_precision(name: str, machine: str) -> None:
    graph = tiny.graph(tiny.cnn())
    plan = plan_of(name)
    try:
        found = hwq.estimate(graph, machine, plan=plan)
    except Error as error:
        precision = "int16" if "int16" in name else "float32" if name.startswith("weight") else name
        assert precision in error.what and error.remedy, error
        return
    assert found.seconds > 0 and found.macs == hwq.estimate(graph, machine, plan=Plan.uniform()).macs
    assert not (name == "bfloat16" and machine == "t4") and not ("int16" in name and machine == "t4")


def test_run_time_ranges_are_a_pass_of_their_own() -> None:
    graph = tiny.graph(tiny.cnn())
    for name in ("dynamic", "dynamic row", "dynamic int4"):
        found = hwq.estimate(graph, "t4", plan=plan_of(name))
        quantizers = [item for item in found.layers if item.op.startswith("DynamicQuantize")]
        assert len(quantizers) == 4 and all(item.seconds > 0 for item in quantizers)
        # Scales multiply on the way out: no kernel of their own.
        assert not [item for item in found.layers if item.op in {"Mul", "Cast", "DequantizeRows", "DequantizeLinear"}]


def test_weights_alone_in_sixteen_bit_floats() -> None:
    graph, x = layer("matmul")
    table = {
        "weights": {"dtype": "int4", "granularity": {"group": 6}},
        "activations": {"dtype": "float16", "mode": "float"},
    }
    plan = Plan._checked({"schema": 1, "dialect": "hwq", "default": table}, "test")
    q = hwq.quantize(graph, plan)
    work = product_of(q)
    assert (work.precision, work.input_bits, work.weight_bits, work.scale_bytes) == ("float16", 16, 4, 3 * 7 * 4)
    want = np.maximum(x @ np.asarray(graph.tensors["w"].data), 0)
    assert np.abs(hwq.execute(q, x) - want).max() < 0.15 * np.abs(want).max()
