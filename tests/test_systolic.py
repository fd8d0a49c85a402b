"""Systolic arrays: TPU v1's published counters, a plain walk over folds, columns that broadcast."""

from __future__ import annotations

import numpy as np
import pytest
import worked

from hwq import zoo
from hwq.graph import Graph, Node, Tensor
from hwq.plan import Plan
from hwq.simulators import estimate, find, systolic
from hwq.simulators.estimation import prepare

PLAN = worked.PLAN

# Jouppi et al., ISCA 2017, table 3: per cent of cycles that the array is active, stalls on weights, shifts weights.
COUNTERS = {"mlp0": (200, 12.7, 53.9, 15.9), "lstm0": (64, 8.2, 58.1, 15.8), "lstm1": (96, 10.5, 62.1, 17.1)}


@pytest.mark.parametrize("app", COUNTERS)
def test_shares_of_matrix_time_equal_tpu_v1s_counters(app):
    batch, active, stall, shift = COUNTERS[app]
    # Shapes of the applications are unpublished; with full tiles the shares depend on the batch alone.
    layer = {"op": "Gemm", "machine": "tpu-v1", "batch": batch, "inputs": 2048, "outputs": 2048}
    terms = worked.measured(layer)[1].terms
    matrix = active + stall + shift
    total = terms["compute"] + terms["stall"] + terms["load"]
    assert 100 * terms["load"] / total == pytest.approx(100 * shift / matrix, abs=1)
    assert 100 * terms["compute"] / total == pytest.approx(100 * active / matrix, abs=6)
    assert 100 * terms["stall"] / total == pytest.approx(100 * stall / matrix, abs=6)


def walk(m, k, n, rows, cols, groups, accumulators):
    """Cycles of a weight-stationary array, fold by fold: a tile shifts in R cycles behind the one that streams."""
    down, across = -(-k // rows), -(-n // cols)
    chunks = -(-m // accumulators) if down > 1 else 1
    small = m // chunks
    cycles, first = 0, True
    for _ in range(groups * across * down):
        left = m
        for index in range(chunks):
            stream = small if index < chunks - 1 else left
            left -= stream
            cycles += rows if first else max(0, rows - small)
            first = False
            cycles += stream
    return cycles + (rows - 1) + (cols - 1)


def test_array_cycles_equal_a_walk_over_folds():
    random = np.random.default_rng(3)
    for _ in range(60):
        rows, cols = (int(size) for size in random.choice([4, 8, 16, 32], 2))
        machine = find(f"systolic:{rows}x{cols}:ws").replace(
            {"dram.bandwidth": 1e15, "vector.lanes": 1e9, "accumulators.capacity": float(cols * 4 * 24)}
        )
        size, inputs, outputs = int(random.integers(1, 100)), int(random.integers(1, 90)), int(random.integers(1, 90))
        layer = {"op": "Gemm", "machine": machine, "batch": size, "inputs": inputs, "outputs": outputs}
        entry = worked.measured(layer)[1]
        busy = round(sum(entry.terms[name] for name in ("compute", "load", "fill", "drain")) * machine.clock)
        assert busy == walk(size, inputs, outputs, rows, cols, 1, 24), layer
        assert entry.bound == "compute"


def test_int4_packs_and_int16_takes_passes():
    layer = {"op": "Gemm", "inputs": 256, "outputs": 64}
    machine = find("systolic").replace({"dram.bandwidth": 1e15, "vector.lanes": 1e9})
    graph = worked.graph_of(layer)
    folds = {}
    for weights, activations in (
        ("int8", "int8"),
        ("int4", "int4"),
        ("int8", "int16"),
        ("int16", "int16"),
        ("int4", "int8"),
    ):
        plan = Plan.uniform(weights=weights, activations=activations)
        entry = next(one for one in estimate(graph, machine, plan=plan, batch=100).layers if one.op == "Gemm")
        folds[weights, activations] = round(entry.terms["compute"] * machine.clock) // 100
    # 8 x 2 tiles of 32 x 32; int4 pairs along K, a 16-bit operand doubles rows or columns, int4 weights save nothing.
    assert folds == {
        ("int8", "int8"): 16,
        ("int4", "int4"): 8,
        ("int8", "int16"): 32,
        ("int16", "int16"): 64,
        ("int4", "int8"): 16,
    }


def test_depthwise_uses_one_column_in_each_row():
    layer = {
        "op": "Conv",
        "machine": "tpu-v1",
        "batch": 1,
        "channels": 256,
        "size": 28,
        "filters": 256,
        "kernel": 3,
        "groups": 256,
    }
    entry = worked.measured(layer)[1]
    # 28 channels of 9 taps fill 252 of 256 rows: 10 folds of 784 rows.
    assert round(entry.terms["compute"] * 700e6) == 10 * 784
    assert entry.mac_utilization < 1 / 256
    grouped = find("tpu-v1").replace(choices={"array.depthwise": "group-by-group"})
    entry = worked.measured(layer | {"machine": grouped})[1]
    assert round(entry.terms["compute"] * 700e6) == 256 * 784


def test_dataflows_differ_as_their_mappings_do():
    layer = {"op": "Gemm", "batch": 640, "inputs": 64, "outputs": 32}
    stream = {}
    for word in ("ws", "os", "is"):
        machine = find(f"systolic:32x32:{word}").replace({"dram.bandwidth": 1e15, "vector.lanes": 1e9})
        stream[word] = round(worked.measured(layer | {"machine": machine})[1].terms["compute"] * machine.clock)
    assert stream == {"ws": 2 * 1 * 640, "os": 20 * 1 * 64, "is": 2 * 20 * 32}


def test_spilled_activations_take_the_cheaper_order():
    # 4096 x 256 inputs and 256 x 4096 weights, 1 MiB each, a buffer of 512 KiB: either is read in stripes of 256 KiB.
    streaming = find("systolic").replace({}, choices={"buffer.weights": "stream"})
    layer = {"op": "Gemm", "batch": 4096, "inputs": 256, "outputs": 4096}
    entry = worked.measured(layer | {"machine": streaming})[1]
    mib, half = 1 << 20, 1 << 18
    # Each of the 8 tiles along K overflows 512 accumulator rows: weights are loaded again for each of 8 chunks of rows.
    keep_inputs, keep_weights = mib + mib * max(8, mib // half), mib * (mib // half) + mib * 8
    assert entry.traffic["dram"]["input"] + entry.traffic["dram"]["weight"] == min(keep_inputs, keep_weights)
    # In tiles that keep K whole: 820 rows of the input twice (410 KiB), 47 columns of weights and results twice fit beside
    # them, so the input passes once and the weights ceil(4096 / 820) = 5 times; 4 stripes of 1024 rows alone would fill it.
    entry = worked.measured(layer | {"machine": "systolic"})[1]
    assert 2 * 820 * 256 + 2 * (256 + 820) * 47 <= 1 << 19 <= 2 * 1024 * 256
    assert entry.traffic["dram"]["input"] + entry.traffic["dram"]["weight"] == mib + 5 * mib
    assert entry.traffic["dram"]["output"] == 4096 * 4096


def test_attention_stays_on_chip_where_it_fits():
    tensors = [Tensor(name, shape=(1, 4, 64, 64)) for name in ("q", "k", "y")]
    graph = Graph([Node("MatMul", "scores", ("q", "k"), ("y",))], tensors, ["q", "k"], ["y"])
    entry = next(one for one in estimate(graph, "systolic", plan=PLAN).layers if one.op == "MatMul")
    assert entry.macs == 4 * 64**3 and entry.traffic["dram"]["weight"] == 0
    small = find("systolic").replace({"buffer.capacity": 1024.0})
    entry = next(one for one in estimate(graph, small, plan=PLAN).layers if one.op == "MatMul")
    assert entry.traffic["dram"]["weight"] >= 4 * 64 * 64


def test_columns_broadcast_over_configurations():
    layer = {"op": "Conv", "channels": 64, "size": 28, "filters": 96, "kernel": 3, "groups": 1}
    base = find("systolic")
    prepared = prepare(worked.graph_of(layer), base, PLAN, 4)
    native = prepared.columns["kind"] != "none"
    columns = {name: values[native, None] for name, values in prepared.columns.items()}
    sizes, speeds = np.array([8, 16, 32, 64]), np.array([1e9, 4e9, 16e9, 64e9])
    swept = systolic.evaluate(columns, systolic.parameters(base) | {"rows": sizes, "cols": sizes, "dram": speeds})
    assert swept["cycles"].shape == (int(native.sum()), 4)
    for index in range(4):
        machine = base.replace(
            {"array.rows": int(sizes[index]), "array.cols": int(sizes[index]), "dram.bandwidth": float(speeds[index])}
        )
        alone = systolic.evaluate(
            {name: values[native] for name, values in prepared.columns.items()}, systolic.parameters(machine)
        )
        for name, values in alone.items():
            assert np.array_equal(np.broadcast_to(swept[name], swept["cycles"].shape)[:, index], values), name


def test_a_batch_that_overflows_the_buffer_runs_in_parts():
    graph = zoo.build("resnet50", weights=False)
    results = {batch: estimate(graph, "tpu-v1", plan=Plan.uniform(), batch=batch) for batch in (8, 64)}
    assert results[64].macs == 8 * results[8].macs and not any("parts" in note for note in results[8].notes)
    # 64 samples take no longer than 8 times 8, and read the weights no more often.
    assert results[64].seconds <= 8 * results[8].seconds * (1 + 1e-12)
    assert results[64].traffic["dram"]["weight"] <= 8 * results[8].traffic["dram"]["weight"]
    assert any("parts" in note for note in results[64].notes)


def test_given_shapes_hold_the_batch():
    graph = worked.graph_of({"op": "Gemm", "inputs": 64, "outputs": 64})
    for machine in ("ethos-u55-128", "systolic", "t4"):
        whole = estimate(graph, machine, plan=PLAN, batch=6, shapes={"x": (6, 64)})
        assert whole.macs == 6 * 64 * 64 and whole.seconds == estimate(graph, machine, plan=PLAN, batch=6).seconds
