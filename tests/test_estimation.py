"""Estimates: hand-worked layers, compulsory bounds, monotonicity, what cannot be estimated, and what a result says."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import worked

from hwq import zoo
from hwq.errors import Error
from hwq.graph import Graph, Node, Tensor
from hwq.plan import Plan
from hwq.simulators import accelerators, estimate, find
from hwq.simulators.estimation import cost, prepare

MACHINES = sorted({machine.name for machine in accelerators().values()})
PLANS = {
    "int8": Plan.uniform(weights="int8", activations="uint8"),
    "float16": Plan.uniform(weights="float16", activations="float16"),
    "int4": Plan.uniform(weights="int4", activations="int4"),
}
BITS = {"int8": 8, "float16": 16, "int4": 4, "bfloat16": 16}
FLOATING = {"bfloat16": Plan.uniform(weights="bfloat16", activations="bfloat16")}
# Where each machine keeps its weights, in bytes per second, from the sources that the machine files name.
WEIGHT_BANDWIDTH = {
    "tpu-v1": 34e9,
    "t4": 320e9,
    "a100": 1555e9,
    "ethos-u55-128": 500e6,
    "systolic": 12.8e9,
    "cpu-avx2": 25.6e9,
    "tpu-v2": 700e9,
    "tpu-v3": 900e9,
    "tpu-v4i": 614e9,
    "eyeriss": 480e6,
}
BLOCKS = {title: block for title, block in worked.blocks().items() if "layer" in block}


@pytest.fixture(scope="module")
def graphs():
    return {name: zoo.build(name, weights=False) for name in zoo.NAMES}


def supported(machine, precision):
    try:
        return bool(find(machine).resolve(precision))
    except Error:
        return False


def plan_for(machine):
    """INT8, or bfloat16 on a machine that multiplies nothing else."""
    return PLANS["int8"] if supported(machine, "int8") else FLOATING["bfloat16"]


@pytest.mark.parametrize("title", BLOCKS)
def test_hand_worked_layers_are_equal_to_the_last_digit(title):
    block = BLOCKS[title]
    assert worked.compare(block["expected"], *worked.measured(block["layer"])) == []


def test_there_are_two_hand_worked_layers_a_family():
    families = [find(block["layer"]["machine"]).family for block in BLOCKS.values()]
    assert all(families.count(family) >= 2 for family in ("systolic", "gpu", "npu", "spatial"))


def weight_bytes(graph, bits):
    """Bytes of each product's stored weights, from the float graph alone."""
    sizes = {}
    for node in graph.nodes:
        if node.op in {"Conv", "Gemm", "MatMul"} and node.inputs[1] not in graph.producers:
            sizes[node.name] = -(-int(np.prod(graph.tensors[node.inputs[1]].shape)) * bits // 8)
    return sizes


@pytest.mark.parametrize("machine", MACHINES)
def test_never_below_the_compulsory_bounds(machine, graphs):
    seen = 0
    for name, graph in graphs.items():
        for precision, plan in (PLANS if supported(machine, "int8") else PLANS | FLOATING).items():
            if not supported(machine, precision):
                with pytest.raises(Error):
                    estimate(graph, machine, plan=plan)
                continue
            stored = weight_bytes(graph, BITS[precision])
            for batch in (1, 8, 128):
                result = estimate(graph, machine, plan=plan, batch=batch)
                peak = result.machine.peak_macs_per_second(precision)
                runs = batch if machine.startswith("ethos") else 1
                assert result.seconds >= result.macs / peak * (1 - 1e-12), (name, precision, batch)
                assert result.seconds >= runs * sum(stored.values()) / WEIGHT_BANDWIDTH[machine]
                memory = "flash" if machine.startswith("ethos") else "dram"
                for layer in result.layers:
                    assert layer.seconds * (1 + 1e-12) >= layer.macs / peak
                    assert 0.0 <= layer.mac_utilization <= 1.0 + 1e-12
                    if layer.name in stored:
                        assert layer.traffic[memory]["weight"] >= runs * stored[layer.name]
                        assert layer.seconds >= runs * stored[layer.name] / WEIGHT_BANDWIDTH[machine]
                seen += 1
    assert seen >= 3 * len(graphs)


def test_macs_equal_the_published_totals(graphs):
    # ../shared/workloads/totals_check.csv: multiply-accumulates of one sample.
    totals = {"resnet50": 4089184256, "vgg16": 15470264320, "mobilenet_v1": 568741376, "bert_base": 11173625856}
    for name, macs in totals.items():
        for machine in MACHINES:
            found = estimate(graphs[name], machine, plan=plan_for(machine), batch=8)
            assert found.macs == 8 * macs == sum(layer.macs for layer in found.layers)


@pytest.mark.parametrize("machine", MACHINES)
def test_terms_add_up_to_the_seconds(machine, graphs):
    for name in ("resnet18", "mobilenet_v2", "bert_base"):
        result = estimate(graphs[name], machine, plan=plan_for(machine), batch=8)
        for layer in result.layers:
            assert sum(layer.terms.values()) == pytest.approx(layer.seconds, rel=1e-9, abs=1e-15), layer
            assert all(value >= 0 for value in layer.terms.values())
            assert all(amount >= 0 for parts in layer.traffic.values() for amount in parts.values())
        assert sum(result.terms.values()) == pytest.approx(result.seconds)
        assert sum(layer.cycles for layer in result.layers) == result.cycles
        assert sum(result.bounds.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("machine", MACHINES)
def test_more_of_anything_is_never_slower(machine, graphs):
    base = find(machine)
    knobs = {
        "systolic": (
            "dram.bandwidth",
            "buffer.capacity",
            "accumulators.capacity",
            "vector.lanes",
            "buffer.bandwidth",
            "clock",
        ),
        "gpu": ("dram.bandwidth", "l2.capacity", "l2.bandwidth", "sm.vector", "clock"),
        "npu": ("flash.bandwidth", "sram.bandwidth", "clock"),
        "cpu": ("dram.bandwidth", "cache.capacity", "cache.bandwidth", "cores", "clock"),
        # A larger buffer lets the mapper save DRAM bytes at the price of cycles: tests/test_spatial.py holds the bytes.
        "spatial": ("dram.bandwidth", "vector.lanes", "clock"),
    }[base.family]
    for name, batch in (("resnet50", 1), ("mobilenet_v2", 8), ("bert_base", 8)):
        prepared = prepare(graphs[name], base, plan_for(machine), batch)
        before = cost(prepared, base)
        for knob in knobs:
            previous = before
            for factor in (2, 4, 16):
                after = cost(prepared, base.replace({knob: base.value(knob) * factor}))
                assert np.all(after["seconds"] <= previous["seconds"] * (1 + 1e-12)), (knob, factor)
                if "capacity" in knob:
                    for memory in ("dram", "host"):
                        keys = [key for key in after if key.startswith(f"traffic.{memory}.")]
                        moved = [sum(table[key] for key in keys) for table in (previous, after)]
                        assert np.all(np.asarray(moved[1]) <= np.asarray(moved[0])), (knob, factor, memory)
                previous = after


@pytest.mark.parametrize("machine", ["systolic", "systolic:16x64:os", "systolic:64x16:is", "t4", "a100", "cpu-avx2"])
def test_fewer_bits_never_move_more(machine):
    random = np.random.default_rng(5)
    widths = ("int16", "int8", "int4") if find(machine).family == "systolic" else ("int8", "int4")
    for _ in range(40):
        layer = {
            "op": "Conv",
            "channels": int(random.integers(1, 200)),
            "size": int(random.integers(3, 40)),
            "filters": int(random.integers(1, 200)),
            "kernel": int(random.choice([1, 3])),
            "groups": 1,
        }
        if random.random() < 0.3:
            layer["groups"] = layer["filters"] = layer["channels"]
        graph = worked.graph_of(layer)
        batch = int(random.choice([1, 7, 64]))
        moved, energy = [], []
        for width in widths:
            result = estimate(graph, machine, plan=Plan.uniform(weights=width, activations=width), batch=batch)
            entry = next(one for one in result.layers if one.op == "Conv")
            moved.append(sum(entry.traffic["dram"].values()))
            energy.append(sum(value for name, value in entry.energy.items() if name != "static"))
        assert moved == sorted(moved, reverse=True), (layer, batch)
        assert energy == sorted(energy, reverse=True), (layer, batch)


def test_a_batch_reads_its_weights_once(graphs):
    one, many = (estimate(graphs["resnet50"], "a100", plan=PLANS["int8"], batch=batch) for batch in (1, 8))
    assert many.traffic["dram"]["weight"] == one.traffic["dram"]["weight"]
    assert many.inferences_per_second > 2 * one.inferences_per_second
    one, many = (estimate(graphs["resnet50"], "ethos-u55-128", plan=PLANS["int8"], batch=batch) for batch in (1, 8))
    assert (
        many.seconds == pytest.approx(8 * one.seconds)
        and many.traffic["flash"]["weight"] == 8 * one.traffic["flash"]["weight"]
    )
    assert any("one sample" in note for note in many.notes)


def test_unsupported_precisions_name_layer_and_reason(graphs):
    with pytest.raises(Error) as caught:
        estimate(graphs["resnet18"], "tpu-v1", plan=PLANS["float16"])
    assert "conv1" in caught.value.where and "integer multipliers" in caught.value.why
    with pytest.raises(Error) as caught:
        estimate(graphs["resnet18"], "tpu-v1")
    assert "float32" in caught.value.what and "plan" in caught.value.remedy


def test_unsupported_operators_name_node_and_reason(tmp_path, graphs):
    text = find("ethos-u55-128").source
    with open(text, encoding="utf-8") as stream:
        changed = stream.read().replace(
            'LayerNormalization = { level = "host"', 'LayerNormalization = { level = "unsupported"'
        )
    path = tmp_path / "npu.toml"
    path.write_text(changed)
    with pytest.raises(Error) as caught:
        estimate(graphs["bert_base"], path, plan=PLANS["int8"])
    assert "LayerNormalization" in caught.value.what and "embeddings.norm" in caught.value.where


def test_host_layers_say_so(graphs):
    result = estimate(graphs["bert_base"], "tpu-v1", plan=PLANS["int8"])
    softmax = [layer for layer in result.layers if layer.op == "Softmax"]
    assert len(softmax) == 12 and all(
        layer.bound == "host" and layer.terms["host"] == layer.seconds for layer in softmax
    )
    machine = find("tpu-v1")
    scores = 12 * 128 * 128
    # Scores cross the link as float32 (this plan stores only operands of products), probabilities come back as uint8; a
    # softmax is five operations an element, requantization three.
    by_hand = 10e-6 + (4 + 1) * scores / machine.value("host.bandwidth") + (5 + 3) * scores / machine.value("host.rate")
    assert softmax[0].seconds == pytest.approx(by_hand, rel=1e-12)
    assert any("Softmax runs on the host" in note for note in result.notes)


def test_open_dimensions_and_bad_arguments(graphs):
    graph = worked.graph_of({"op": "Gemm", "inputs": 8, "outputs": 8})
    for batch in (0, -1, 1.5, True, "1"):
        with pytest.raises(Error):
            estimate(graph, "t4", batch=batch)
    tensors = [Tensor("x", shape=("N", "T", 8)), Tensor("w", shape=(8, 8)), Tensor("y", shape=("N", "T", 8))]
    open_graph = Graph([Node("MatMul", "m", ("x", "w"), ("y",))], tensors, ["x"], ["y"])
    with pytest.raises(Error):
        estimate(open_graph, "t4", plan=PLANS["int8"])
    assert estimate(open_graph, "t4", plan=PLANS["int8"], shapes={"x": (2, 5, 8)}, batch=2).macs == 2 * 5 * 8 * 8


def test_a_result_says_where_it_comes_from(graphs, tmp_path):
    plan = PLANS["int8"]
    result = estimate(graphs["resnet18"], "t4", plan=plan, batch=8)
    record = json.loads(result.to_json())
    assert record["hashes"] == {
        "graph": graphs["resnet18"].hash,
        "plan": plan.hash,
        "machine": find("t4").hash,
        "version": "0.1.0",
    }
    assert record["validity"] and record["interval_seconds"] is None and result.interval() is None
    assert record["seconds"] == result.seconds and len(record["layers"]) == len(result.graph.nodes)
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert len(rows) == len(result.layers)
    assert sum(float(row["seconds"]) for row in rows) == pytest.approx(result.seconds)
    assert sum(int(row["dram_weight_bytes"]) for row in rows) == result.traffic["dram"]["weight"]
    path = tmp_path / "layers.csv"
    result.to_csv(path)
    assert path.read_text() == result.to_csv()
    with pytest.raises(Error):
        result.to_csv(path)
    assert "t4" in str(result) and "ms" in str(result)


def test_hostile_names_stay_harmless():
    graph = worked.graph_of({"op": "Gemm", "inputs": 8, "outputs": 8})
    nodes = [Node("Gemm", '=1+1\x1b[31m<script>"', ("x", "w", "b"), ("y",), {"transB": 1})]
    result = estimate(Graph(nodes, graph.tensors.values(), ["x"], ["y"]), "t4", plan=PLANS["int8"])
    text = result.to_csv()
    assert "\x1b" not in text and "\n=1+1" not in text
    json.loads(result.to_json())


def test_an_interval_needs_residuals(tmp_path, graphs):
    source = find("t4").source
    path = tmp_path / "mine.toml"
    with open(source, encoding="utf-8") as stream:
        path.write_text(stream.read())
    residuals = path.with_suffix(".residuals.csv")
    result = estimate(graphs["resnet18"], path, plan=PLANS["int8"])
    assert result.interval() is None
    residuals.write_text("id,log_ratio\n" + "\n".join(f"r{i},{i / 100 - 0.1}" for i in range(21)))
    # 21 residuals from -0.10 to 0.10: of rank floor(22 * 0.05) = 1 from either end.
    low, high = result.interval(0.9)
    assert (low / result.seconds, high / result.seconds) == (pytest.approx(np.exp(-0.1)), pytest.approx(np.exp(0.1)))
    low, high = result.interval(0.5)
    assert high / result.seconds == pytest.approx(np.exp(0.06))
    for bad in (0.0, 1.0, 2.0):
        with pytest.raises(Error):
            result.interval(bad)


def test_quantized_graphs_cost_what_their_plan_costs(graphs):
    from hwq.quantization import annotate

    graph, plan = graphs["mobilenet_v2"], PLANS["int8"]
    direct, before = estimate(graph, "t4", plan=plan), estimate(annotate(graph, plan), "t4")
    assert direct.seconds == before.seconds and direct.traffic == before.traffic


def test_an_estimate_is_remembered_and_equal(graphs):
    graph = zoo.build("resnet50", weights=False)
    first, again = (estimate(graph, "tpu-v1", plan=PLANS["int8"]) for _ in range(2))
    assert first.graph is again.graph and first.seconds == again.seconds


def test_estimating_never_imports_execution():
    code = (
        "import sys, hwq; from hwq import zoo; g = zoo.build('mobilenet_v2', weights=False); "
        "hwq.estimate(g, 't4', plan=hwq.Plan.uniform()).to_json(); "
        "print(sorted(name for name in sys.modules if name.startswith('hwq')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("hwq.kernels", "hwq.execution", "hwq._kernels", "hwq._simulators"):
        assert f"'{name}'" not in loaded
