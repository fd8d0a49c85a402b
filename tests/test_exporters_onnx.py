"""ONNX export: what comes back is what went in, and onnxruntime runs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import helper

import hwq
from hwq.errors import Error, NotSupportedYet
from hwq.exporters.onnx import to_model
from hwq.graph import Graph, Node, Tensor
from hwq.ops.evaluate import evaluate
from hwq.plan import Plan
from hwq.quantization import annotate


def assert_same(one: Graph, other: Graph) -> None:
    """Equal nodes, edges, types, shapes, constants and scales, bit for bit."""
    assert one.inputs == other.inputs and one.outputs == other.outputs
    described = [
        [(n.op, n.domain, n.name, n.inputs, n.outputs, dict(n.attributes)) for n in graph] for graph in (one, other)
    ]
    assert described[0] == described[1]
    assert set(one.tensors) == set(other.tensors)
    for name, tensor in one.tensors.items():
        twin = other.tensors[name]
        assert (tensor.dtype, tensor.shape, tensor.data is None) == (twin.dtype, twin.shape, twin.data is None), name
        pairs = [(tensor.data, twin.data)]
        assert (tensor.quantization is None) == (twin.quantization is None), name
        if tensor.quantization is not None and twin.quantization is not None:
            mine, theirs = tensor.quantization, twin.quantization
            assert (mine.dtype, mine.axis, mine.block) == (theirs.dtype, theirs.axis, theirs.block), name
            pairs += [(mine.scale, theirs.scale), (mine.zero_point, theirs.zero_point)]
        for left, right in pairs:
            assert (left is None) == (right is None), name
            if left is not None:
                assert left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes(), (
                    name
                )


PLANS = {
    "float": None,
    "int8": Plan.uniform(),
    "int8 per tensor, zero points": Plan.uniform(
        weights="uint8", granularity="tensor", symmetric=False, activations="int8"
    ),
    "int4": Plan.uniform(weights="int4", dialect="ort-unfused"),
    "int4 groups": Plan.uniform(weights="int4", granularity=4, activations="float32"),
    "uint4 groups": Plan.uniform(weights="uint4", granularity=3, symmetric=False, activations="float32"),
    "16 bits": Plan.uniform(weights="int16", activations="int16", dialect="ort-unfused"),
    "uint16": Plan.uniform(activations="uint16", dialect="ort-unfused"),
}


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("small", ["cnn", "mlp"])
def test_what_comes_back_is_what_went_in(kind: str, small: str, tmp_path: Path) -> None:
    graph, x = (tiny.graph(tiny.cnn()), tiny.images(16)) if small == "cnn" else (tiny.graph(tiny.mlp()), tiny.rows(16))
    plan = PLANS[kind]
    q = graph if plan is None else hwq.quantize(graph, plan, hwq.calibrate(graph, x))
    hwq.export(q, tmp_path / "q.onnx")
    assert_same(q, hwq.load(tmp_path / "q.onnx"))
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    # Without fusion onnxruntime differs by the order of float sums only: at most a step of the last scale.
    theirs = tiny.session(tmp_path / "q.onnx", fused=False).run(None, {"x": x})[0]
    step = float(q.constant("y_scale")) if "y_scale" in q.tensors else 0.0
    ours = evaluate(q, {"x": x})["y"]
    assert np.abs(ours - theirs).max() <= 1.01 * step + 1e-4
    assert np.mean(np.abs(ours - theirs) > 1e-4) < 0.02


def test_the_opset_rises_only_where_it_must(cnn: Graph) -> None:
    cal = hwq.calibrate(cnn, tiny.images(2))
    versions = {
        kind: to_model(cnn if plan is None else hwq.quantize(cnn, plan, cal)).opset_import[0].version
        for kind, plan in PLANS.items()
    }
    assert (
        versions["float"] == versions["int8"] == 17
        and versions["int4"] == versions["16 bits"] == versions["int4 groups"] == 21
    )


@pytest.mark.parametrize("opset", [13, 17])
def test_old_attributes_become_inputs_when_the_opset_rises(opset: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "dense"),
        helper.make_node("ReduceMean", ["m"], ["r"], "mean", axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["m"], ["z"], "max", axes=[1], keepdims=1),
        helper.make_node("Sub", ["z", "r"], ["s"], "spread"),
        helper.make_node("Split", ["s"], ["a", "b"], "split", axis=2),
        helper.make_node("Sub", ["a", "b"], ["y"], "difference"),
    ]
    w = np.random.default_rng(0).normal(size=(16, 6))
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 4, 16]}, {"y": ["N", 1, 3]}, {"w": w}, opset))
    x = tiny.rows(5)
    q = hwq.quantize(graph, Plan.uniform(weights="int4", granularity=8, activations="float32"))
    hwq.export(q, tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    assert model.opset_import[0].version == 21
    onnx.checker.check_model(model, full_check=True)
    theirs = tiny.session(tmp_path / "q.onnx").run(None, {"x": x})[0]
    assert np.allclose(theirs, evaluate(q, {"x": x})["y"], atol=1e-4)


def test_attributes_take_the_type_that_the_operator_states(tmp_path: Path) -> None:
    """Graphs made by hand write 1 where ONNX wants a float, and tuples where it wants ints."""
    tensors = [
        Tensor("x", shape=("N", 4)),
        Tensor("w", shape=(4, 2), data=np.ones((4, 2), np.float32)),
        Tensor("h", shape=("N", 2)),
        Tensor("y", shape=("N", 2)),
    ]
    nodes = [
        Node("Gemm", "g", ("x", "w"), ("h",), {"alpha": 2, "beta": 1}),
        Node("LeakyRelu", "l", ("h",), ("y",), {"alpha": 0}),
    ]
    hwq.export(Graph(nodes, tensors, ["x"], ["y"]), tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    assert np.array_equal(
        tiny.session(tmp_path / "m.onnx").run(None, {"x": np.ones((1, 4), np.float32)})[0], [[8.0, 8.0]]
    )


def test_zoo_models_export_and_run(tmp_path: Path) -> None:
    graph = hwq.load("zoo:mobilenet_v1")
    hwq.export(graph, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    name = graph.inputs[0]
    theirs = tiny.session(tmp_path / "m.onnx").run(None, {name: x})[0]
    assert theirs.shape[1:] == graph.tensors[graph.outputs[0]].shape[1:] and np.isfinite(theirs).all()
    assert_same(graph, hwq.load(tmp_path / "m.onnx"))


def test_the_file_says_what_it_is(cnn: Graph, tmp_path: Path) -> None:
    cal = hwq.calibrate(cnn, tiny.images(2))
    q = hwq.quantize(cnn, Plan.uniform(), cal)
    facts = {entry.key: entry.value for entry in to_model(q).metadata_props}
    assert facts == {
        "hwq.dialect": "ort",
        "hwq.graph": q.hash,
        "hwq.float_graph": cnn.hash,
        "hwq.plan": Plan.uniform().hash,
        "hwq.calibration": cal.hash,
    }
    first, second = (to_model(q).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_denormal_and_odd_scale_bits_survive(cnn: Graph, tmp_path: Path) -> None:
    q = hwq.quantize(cnn, Plan.uniform(), hwq.calibrate(cnn, tiny.images(2)))
    odd = np.array(0x00000123, np.uint32).view(np.float32)  # a denormal
    q = q.replace(tensors=[dataclasses.replace(t, data=odd) if t.name == "l1_scale" else t for t in q.tensors.values()])
    hwq.export(q, tmp_path / "q.onnx")
    assert hwq.load(tmp_path / "q.onnx").constant("l1_scale").tobytes() == odd.tobytes()


def test_files_are_written_whole_or_not_at_all(cnn: Graph, tmp_path: Path) -> None:
    hwq.export(cnn, tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(Error, match="exists already"):
        hwq.export(cnn, tmp_path / "m.onnx")
    hwq.export(cnn, tmp_path / "m.onnx", overwrite=True)
    assert (tmp_path / "m.onnx").read_bytes() == before
    with pytest.raises(Error, match="no values"):
        hwq.export(annotate(cnn, Plan.uniform()), tmp_path / "other.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_what_cannot_be_exported_says_why(cnn: Graph, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(Error, match="not quantized"):
        hwq.export(cnn, path, format="aimet")
    for arguments in ({"format": "tflite"}, {"target": "coreml"}):
        with pytest.raises(Error, match="no such export"):
            hwq.export(cnn, path, **arguments)
    with pytest.raises(Error, match="lowered"):
        hwq.export(cnn.replace(form="lowered"), path)
    with pytest.raises(NotSupportedYet, match="channels-last"):
        hwq.export(
            cnn.replace(nodes=[dataclasses.replace(n, layout="NHWC") if n.op == "Conv" else n for n in cnn]), path
        )
    with pytest.raises(Error, match="cannot hold"):
        bad = [
            dataclasses.replace(n, attributes={**n.attributes, "pads": ("a", object())}) if n.op == "Conv" else n
            for n in cnn
        ]
        hwq.export(cnn.replace(nodes=bad), path)
    assert not path.exists()
