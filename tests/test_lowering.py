"""Lowering: groups are those that onnxruntime itself makes, pattern by pattern; arenas never overlap what lives together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from qdq import Builder, graph_of, groups_of, groups_of_onnxruntime, optimized, session
from qdq_patterns import PATTERNS, random_graph

import hwq
from hwq.errors import Error
from hwq.graph import Graph, Node, Quantization, Tensor
from hwq.lowering import lower
from hwq.lowering.liveness import ALIGNMENT_BYTES, Lifetime, lifetimes, place


@pytest.mark.parametrize("name", PATTERNS)
def test_groups_are_onnxruntimes(name: str) -> None:
    pytest.importorskip("onnxruntime", reason="the groups' oracle")
    b = Builder()
    PATTERNS[name](b)
    model = b.model()
    assert groups_of(lower(graph_of(model), "ort")) == groups_of_onnxruntime(model)


@pytest.mark.parametrize(("axis", "block"), [(1, 0), (-1, 0), (0, 16), (-2, 16)])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_weights_alone_count_their_axis_from_the_front(op: str, axis: int, block: int, tmp_path: Path) -> None:
    """onnxruntime's selector of MatMulNBits compares the attribute: the same axis from the end stays in floats."""
    pytest.importorskip("onnxruntime", reason="the groups' oracle")
    random = np.random.default_rng(0)
    weights = {
        "w": random.integers(-127, 128, (64, 32)).astype(np.int8),
        "s": random.uniform(0.01, 0.02, (4, 32) if block else 32).astype(np.float32),
    }
    extra = {"block_size": block} if block else {}
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"], "weight", axis=axis, **extra),
             helper.make_node(op, ["x", "d"], ["y"], "product")]  # fmt: skip
    model = tiny.model(nodes, {"x": ["N", 64]}, {"y": ["N", 32]}, weights, opset=21)
    session(model, write=tmp_path / "optimized.onnx", precision="0")
    fused = any(node.op_type == "MatMulNBits" for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert fused == (axis >= 0) == (len(lower(graph_of(model), "ort").nodes) == 1)


def test_groups_of_random_graphs_are_onnxruntimes() -> None:
    pytest.importorskip("onnxruntime", reason="the groups' oracle")
    wrong: list[object] = []
    checked = 0
    for seed in range(120):
        model = random_graph(seed).model()
        try:
            wanted = groups_of_onnxruntime(model)
        except Exception:  # onnxruntime 1.31.1 refuses some of its own rewrites (int8 pairs around MaxPool)
            continue
        checked += 1
        found = groups_of(lower(graph_of(model), "ort"))
        # Rewrites that change no bits: onnxruntime cancels transposes against each other, and leaves some DQ Q pairs
        # that undo each other in place.
        if wanted["QuantizeLinear"] - found["QuantizeLinear"] == wanted["DequantizeLinear"] - found["DequantizeLinear"]:
            found.pop("QuantizeLinear", None), wanted.pop("QuantizeLinear", None)
            found.pop("DequantizeLinear", None), wanted.pop("DequantizeLinear", None)
        for key in ("Transpose", "Transpose of integers"):
            found.pop(key, None), wanted.pop(key, None)
        if found != wanted:
            wrong.append((seed, found - wanted, wanted - found))
    assert not wrong
    assert checked >= 110


# Where a scale may change, onnxruntime's transposes pass the Q or DQ themselves.
@pytest.mark.parametrize("name", [name for name in PATTERNS if "ranspose" not in name])
def test_defaults_of_inputs_are_no_constants_to_onnxruntime(name: str) -> None:
    """From IR version 4 on a caller may replace an initializer that is an input too; some rules ask whether one may."""
    pytest.importorskip("onnxruntime", reason="the groups' oracle")
    b = Builder()
    PATTERNS[name](b)
    constants = list(b.model().graph.initializer)
    random = np.random.default_rng(len(name))
    for chosen in (constants, *([one for one in constants if random.random() < 0.3] for _ in range(2))):
        model = b.model()
        model.graph.input.extend(helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in chosen)
        found, wanted = groups_of(lower(graph_of(model), "ort")), groups_of_onnxruntime(model)
        # What onnxruntime computes of defaults at run time is a constant here; its transposes cancel each other.
        for key in ("QuantizeLinear", "DequantizeLinear", "Transpose", "Transpose of integers"):
            found.pop(key, None), wanted.pop(key, None)
        assert found == wanted
    model.ir_version = 3
    assert "overridable" not in graph_of(model).source


@pytest.mark.parametrize("opset", [13, 15, 18, 19, 21, 23])
def test_the_opset_changes_no_group(opset: int) -> None:
    pytest.importorskip("onnxruntime", reason="the groups' oracle")
    for name in ("conv relu", "pooled_in_between", "head", "residual"):
        b = Builder(opset=opset)
        PATTERNS[name](b)
        model = b.model()
        assert groups_of(lower(graph_of(model), "ort")) == groups_of_onnxruntime(model)


def built(name: str) -> Graph:
    b = Builder()
    PATTERNS[name](b)
    return graph_of(b.model())


def test_a_group_reads_and_makes_quantized_tensors_and_keeps_its_source() -> None:
    source = built("conv relu")
    low = lower(source, "ort")
    assert low.form == "lowered" and low.dialect == "ort"
    (conv,) = [node for node in low.nodes if node.op == "Conv"]
    assert [part.op for part in conv.body] == ["DequantizeLinear"] * 3 + ["Conv", "QuantizeLinear"]
    x, weight, bias = (low.tensors[name] for name in conv.inputs)
    made = low.tensors[conv.outputs[0]]
    assert (x.dtype, weight.dtype, bias.dtype, made.dtype) == ("uint8", "int8", "int32", "uint8")
    for tensor, scale, zero in ((x, 0.05, 128), (made, 0.5, 0)):
        assert tensor.quantization is not None
        assert tensor.quantization.scales() == np.float32(scale) and tensor.quantization.zero_points() == zero
    assert (
        weight.quantization is not None and weight.quantization.axis == 0 and weight.quantization.scales().shape == (4,)
    )
    assert conv.attributes["pads"] == (1, 1, 1, 1) and conv.layout == "NCHW"
    assert "Conv" in str(low) and "DequantizeLinear" in str(low)
    # The source is as it was, and lowering is a function of it.
    assert source.form == "source" and lower(source, "ort").hash == low.hash


def test_scales_keep_their_bits() -> None:
    b = Builder()
    scale = float(np.nextafter(np.float32(0.05), np.float32(1)))
    b.output(b.pair(b.conv(b.pair(b.input(["N", 4, 8, 8]), scale, 7)), 0.3, 9))
    low = lower(graph_of(b.model()), "ort")
    (conv,) = [node for node in low.nodes if node.op == "Conv"]
    quantization = low.tensors[conv.inputs[0]].quantization
    assert quantization is not None and quantization.scales().tobytes() == np.float32(scale).tobytes()


def test_without_optimization_nothing_is_fused() -> None:
    source = built("conv relu")
    low = lower(source, "ort-unfused")
    assert [node.name for node in low.nodes] == [node.name for node in source.nodes]
    stored = [tensor for tensor in low.tensors.values() if tensor.quantization is not None]
    assert {tensor.dtype for tensor in stored} == {"uint8", "int8", "int32"}


def test_two_readers_with_other_scales_each_have_their_own_view() -> None:
    b = Builder()
    q = b.quantize(b.input(["N", 4, 8, 8]), 0.05, 128)
    b.output(
        b.pair(b.conv(b.dequantize(q, 0.05, 128)), 0.5, 0), b.pair(b.conv(b.dequantize(q, 0.1, 100), scale=0.1), 0.5, 0)
    )
    low = lower(graph_of(b.model()), "ort")
    pairs = set()
    for node in low.nodes:
        if node.op == "Conv":
            quantization = low.tensors[node.inputs[0]].quantization
            assert quantization is not None
            pairs.add((float(quantization.scales()), int(quantization.zero_points())))
    assert pairs == {(float(np.float32(0.05)), 128), (float(np.float32(0.1)), 100)}


def constants(model: object, op: str) -> list[np.ndarray]:
    made = optimized(model)  # type: ignore[arg-type]
    values = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    (node,) = [one for one in made.graph.node if one.op_type == op]
    return [values[name] for name in node.input if name in values]


@pytest.mark.parametrize("seed", range(4))
def test_unquantized_weights_and_biases_become_onnxruntimes_integers(seed: int) -> None:
    pytest.importorskip("onnxruntime", reason="the integers' oracle")
    b = Builder(seed)
    weight = b.random.normal(size=(4, 4, 3, 3)).astype(np.float32) + np.float32([0, 0, 3, -0.2][seed])
    bias = b.random.normal(size=4).astype(np.float32) * 3
    y = b.op("Conv", b.image(), b.constant(weight), b.constant(bias), pads=[1] * 4)
    b.output(b.pair(y, 0.5, 120))
    model = b.model()
    low = lower(graph_of(model), "ort")
    (conv,) = [node for node in low.nodes if node.op == "Conv"]
    stored, added = (low.tensors[name] for name in conv.inputs[1:])
    assert stored.quantization is not None and stored.data is not None and added.data is not None
    # x scale, x zero, weight, its scale, its zero point (all as uint8), y scale, y zero, bias
    _, _, w, scale, zero, _, _, wanted_bias = constants(model, "QLinearConv")
    assert np.array_equal(stored.data.astype(np.int64) + 128, w) and np.array_equal(added.data, wanted_bias)
    assert stored.quantization.scales() == scale and stored.quantization.zero_points() + 128 == zero


def test_two_pairs_become_the_common_range() -> None:
    # uint8: [-60, 67.5] and [-40, 62] meet in [-40, 62]: scale f32(102 / 255), zero point rint(40 / 0.4) = 100.
    low = lower(built("two pairs in a row"), "ort")
    (conv,) = [node for node in low.nodes if node.op == "Conv"]
    quantization = low.tensors[conv.outputs[0]].quantization
    assert quantization is not None and int(quantization.zero_points()) == 100
    assert quantization.scales() == np.float32(
        np.float32(155) * np.float32(0.4) + np.float32(100) * np.float32(0.4)
    ) / np.float32(255)


def test_integer_operators_of_the_source_are_groups_too() -> None:
    b = Builder()
    x = b.input(["N", 2, 5, 5], TensorProto.UINT8)
    scale, zero = b.constant(np.float32(0.1)), b.constant(np.uint8(3))
    weight = b.constant(b.random.integers(-128, 128, (3, 2, 3, 3)).astype(np.int8))
    scales, zeros = b.constant(np.float32([0.1, 0.2, 0.3])), b.constant(np.zeros(3, np.int8))
    y = b.op("QLinearConv", x, scale, zero, weight, scales, zeros, scale, zero)
    b.output(y)
    for dialect in ("ort", "ort-unfused"):
        low = lower(graph_of(b.model()), dialect)
        (node,) = low.nodes
        assert node.op == "Conv" and [part.op for part in node.body] == ["QLinearConv"] and len(node.inputs) == 2
        quantization = low.tensors[node.inputs[1]].quantization
        assert (
            quantization is not None
            and quantization.axis == 0
            and quantization.scales().tolist() == np.float32([0.1, 0.2, 0.3]).tolist()
        )


def test_rules_must_exist_and_graphs_must_be_source() -> None:
    graph = built("conv")
    with pytest.raises(Error, match="no such rules"):
        lower(graph, "abacus")
    for standing in ("onnx", "tensorrt"):  # nothing is fused
        assert [node.op for node in lower(graph, standing).nodes] == [node.op for node in graph.nodes]
    with pytest.raises(Error, match="lowered already"):
        lower(lower(graph, "ort"), "ort")
    assert hwq.lower(graph, "ort").hash == lower(graph, "ort").hash


# ---- Liveness ----


def test_lifetimes_by_hand() -> None:
    tensors = [Tensor(name, "uint8", (64,), quantization=Quantization("uint8")) for name in "abcd"]
    graph = Graph([Node("Relu", "one", ("a",), ("b",)), Node("Relu", "two", ("b",), ("c",)), Node("Add", "three", ("b", "c"), ("d",))],
                  tensors, ["a"], ["d"])  # fmt: skip
    assert lifetimes(graph) == [Lifetime("b", 0, 2, 64), Lifetime("c", 1, 2, 64), Lifetime("d", 2, 3, 64)]
    offsets, total = place(lifetimes(graph))
    assert sorted(offsets.values()) == [0, 64, 128] and total == 192


def test_values_that_do_not_meet_share_memory() -> None:
    offsets, total = place([Lifetime("a", 0, 1, 100), Lifetime("b", 2, 3, 80), Lifetime("c", 1, 2, 10)])
    assert offsets["a"] == offsets["b"] == 0 and offsets["c"] == 128 and total == 138


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(0, 500)), max_size=25))
def test_what_lives_together_never_overlaps(raw: list[tuple[int, int, int]]) -> None:
    values = [Lifetime(str(index), first, first + length, size) for index, (first, length, size) in enumerate(raw)]
    offsets, total = place(values)
    for one in values:
        assert offsets[one.name] % ALIGNMENT_BYTES == 0 and offsets[one.name] + one.bytes <= total
        for other in values:
            if one is not other and one.overlaps(other):
                ends = (
                    offsets[one.name] + one.bytes <= offsets[other.name]
                    or offsets[other.name] + other.bytes <= offsets[one.name]
                )
                assert ends
    for moment in range(20):
        assert total >= sum(value.bytes for value in values if value.first <= moment <= value.last)
