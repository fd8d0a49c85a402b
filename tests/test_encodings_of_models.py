"""Models of other tools as plans: Q/DQ, QOperator and weight-only files, in the float model's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from encoding_facts import facts
from onnx import TensorProto, helper, numpy_helper

import hwq
from hwq.encodings import Encoding, encodings_of, encodings_of_graph, to_plan
from hwq.errors import Error, NotSupportedYet
from hwq.graph import Graph
from hwq.importers.encodings import read_plan
from hwq.plan import Plan


def test_blocks_beside_16_bit_activations_run_in_floats(tmp_path: Path) -> None:
    graph = tiny.graph(tiny.mlp())
    table = {"match": {"op": "MatMul"}, "weights": {"dtype": "int4", "granularity": {"group": 8}}}
    plan = Plan.model_validate(
        {"dialect": "ort-unfused", "default": {"activations": {"dtype": "uint16"}}, "layers": [table]}
    )
    x = tiny.rows(8)
    q = hwq.quantize(graph, plan, hwq.calibrate(graph, x))
    hwq.export(q, tmp_path / "q.onnx")
    assert np.array_equal(hwq.execute(q, x), unoptimized(tmp_path / "q.onnx", x))
    with pytest.raises(Error, match="groups of weights under uint16"):
        hwq.quantize(graph, plan.model_copy(update={"dialect": "hwq"}), hwq.calibrate(graph, x))


def unoptimized(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_scales_in_two_levels_and_stored_constants_of_a_model(tmp_path: Path) -> None:
    """What AIMET's QDQ files hold: a scale that a DequantizeLinear computes, and uint16 bounds of a Clip."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.integers(-8, 8, (8, 4)).astype(np.int8), "factors": random.integers(1, 16, (2, 4)).astype(np.int8),
        "steps": random.uniform(0.01, 0.02, 4).astype(np.float32), "sx": np.float32(2**-12), "zx": np.uint16(32768), "six": np.uint16(24576),
    }  # fmt: skip
    dequantize = "DequantizeLinear"
    nodes = [
        helper.make_node(dequantize, ["factors", "steps"], ["scale"], "levels", axis=1),
        helper.make_node(dequantize, ["w", "scale"], ["wd"], "weight", axis=0, block_size=4),
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], "store"),
        helper.make_node(dequantize, ["xq", "sx", "zx"], ["xd"], "read"),
        helper.make_node("MatMul", ["xd", "wd"], ["m"], "product"),
        helper.make_node(dequantize, ["six", "sx"], ["most"], "bound"),
        helper.make_node("Clip", ["m", "", "most"], ["y"], "clip"),
    ]
    onnx.save(tiny.model(nodes, {"x": ["N", 8]}, {"y": ["N", 4]}, weights, opset=21), tmp_path / "m.onnx")
    graph = hwq.load(tmp_path / "m.onnx")
    given = {one.tensor: one for one in encodings_of(read_plan(tmp_path / "m.onnx").plan)}
    assert (
        np.array_equal(given["w"].scale.reshape(2, 4), weights["factors"] * weights["steps"]) and given["w"].block == 4
    )
    assert given["six"].dtype == "uint16"
    x = random.normal(size=(5, 8)).astype(np.float32)
    assert np.array_equal(hwq.execute(graph, x, dialect="ort-unfused"), unoptimized(tmp_path / "m.onnx", x))


@pytest.mark.parametrize(
    ("weight", "node"),
    [("w1_quantized", "up"), ("q_output_w1_1", "up"), ("w1_i4", "renamed"), ("w1_q", "renamed"), ("w1", "renamed")],
)
def test_a_model_s_plan_speaks_the_float_model_s_names(weight: str, node: str, tmp_path: Path) -> None:
    """Tools name a stored weight in their own ways; the operator that reads it, or else the name, says which it is."""
    graph = tiny.graph(tiny.mlp())
    w1 = graph.constant("w1")
    scale = np.abs(w1).max(0) / 127
    weights = {
        weight: np.rint(w1 / scale).astype(np.int8), "s": scale, "w2": graph.constant("w2"), "sx": np.float32(0.03), "zx": np.uint8(128),
        "b1": graph.constant("b1"), "b2": graph.constant("b2"), "lost": np.ones((3, 4), np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], "store"),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], "read"),
        helper.make_node("DequantizeLinear", [weight, "s"], ["wd"], "weight", axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["m1"], node),
        helper.make_node("Add", ["m1", "b1"], ["a1"], "up_bias"),
        helper.make_node("Relu", ["a1"], ["r1"], "relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"], "down"),
        helper.make_node("Add", ["b2", "m2"], ["y"], "down_bias"),
        helper.make_node("DequantizeLinear", ["lost", "sx"], ["z"], "other"),
    ]
    onnx.save(tiny.model(nodes, {"x": ["N", 4, 16]}, {"y": ["N", 4, 7], "z": [3, 4]}, weights), tmp_path / "m.onnx")
    found = read_plan(tmp_path / "m.onnx", graph)
    assert {one.tensor for one in encodings_of(found.plan)} == {"w1", "x"}
    assert found.left_out == ("tensor z is not in the model",)
    x = tiny.rows(8)
    made = hwq.execute(hwq.quantize(graph, found.plan), x)
    assert np.array_equal(made, hwq.execute(hwq.load(tmp_path / "m.onnx"), {"x": x})["y"])


def test_a_scale_behind_a_move_holds_before_it() -> None:
    """ModelOpt stores what a product reads, behind the Reshape and Transpose that other tools store before them."""
    graph = tiny.graph(tiny.attention())
    given = [Encoding(name, False, "int8", np.float32(scale) * np.ones((), np.float32), np.zeros((), np.int64))
             for name, scale in (("n", 0.03), ("cj", 0.02))]  # fmt: skip
    q = hwq.quantize(graph, to_plan(given, weights={"dtype": "int8"}))
    scales = facts(encodings_of_graph(q))
    assert all(scales[name][3:5] == scales["cj"][3:5] for name in ("c", "ct", "cj")) and "qkv" not in scales
    # Where another operator reads the value as it was, it stays.
    nodes = [helper.make_node("Relu", ["x"], ["r"], "relu"), helper.make_node("Reshape", ["r", "two"], ["f"], "reshape"),
             helper.make_node("MatMul", ["f", "w"], ["m"], "product"), helper.make_node("Exp", ["r"], ["e"], "exp")]  # fmt: skip
    proto = tiny.model(
        nodes, {"x": ["N", 8]}, {"m": ["N", 4], "e": ["N", 8]}, {"two": np.array([-1, 8]), "w": np.ones((8, 4))}
    )
    q = hwq.quantize(
        tiny.graph(proto),
        to_plan([Encoding("f", False, "int8", np.float32(0.5) * np.ones((), np.float32), np.zeros((), np.int64))]),
    )
    assert {node.inputs[0] for node in q.nodes if node.op == "QuantizeLinear"} == {"f"} and q.node("exp").inputs == (
        "r",
    )


def test_floats_of_8_bits_are_no_plan_yet(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    proto = tiny.model(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, {"s": np.float32(0.5)}, opset=19)
    proto.graph.initializer.append(zero)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(NotSupportedYet, match="float8e4m3fn"):
        read_plan(tmp_path / "m.onnx")


def modelopt_style() -> onnx.ModelProto:
    """Q and DQ as NVIDIA ModelOpt writes them: int8 without zero points, weights in float behind a Q node a channel."""
    random = np.random.default_rng(5)
    w = random.normal(size=(4, 3, 3, 3)).astype(np.float32)
    scales = (np.abs(w).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    constants = {"w": w, "ws": scales, "wz": np.zeros(4, np.int8), "xs": np.float32(0.03), "xz": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "xQ"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "xDQ"),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], "wQ", axis=0),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "wDQ", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"], "conv"),
    ]
    graph = helper.make_graph(
        nodes, "modelopt", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_models_of_other_tools_are_plans(tmp_path: Path) -> None:
    onnx.save(modelopt_style(), tmp_path / "m.onnx")
    found = read_plan(tmp_path / "m.onnx")
    assert found.format == "quantized model"
    given = {one.tensor: one for one in encodings_of(found.plan)}
    model = hwq.load(tmp_path / "m.onnx")
    assert given["w"].weight and np.array_equal(given["w"].scale, model.constant("ws"))
    assert not given["x"].weight and given["x"].scale == np.float32(0.03)
    float_model = modelopt_style()
    del float_model.graph.node[:4]
    float_model.graph.node[0].input[:] = ["x", "w"]
    graph = tiny.graph(float_model)
    q = hwq.quantize(graph, found.plan)
    assert facts(encodings_of_graph(q)) == facts(given.values())
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(hwq.execute(q, x, dialect="ort-unfused"), hwq.execute(model, x, dialect="ort-unfused"))


def test_onnxruntime_s_own_files_are_plans(cnn: Graph, tmp_path: Path) -> None:
    tools = pytest.importorskip("onnxruntime.quantization")
    onnx.save(tiny.cnn(), tmp_path / "f.onnx")

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            self.rest = iter([{"x": tiny.images(4)}])

        def get_next(self) -> Any:
            return next(self.rest, None)

    tools.quantize_static(str(tmp_path / "f.onnx"), str(tmp_path / "q.onnx"), Reader(), per_channel=True)
    plan = read_plan(tmp_path / "q.onnx").plan
    theirs = onnx.load(tmp_path / "q.onnx")
    values = {item.name: numpy_helper.to_array(item) for item in theirs.graph.initializer}
    pairs = [node for node in theirs.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    scales = {node.input[0].removesuffix("_quantized"): values[node.input[1]] for node in pairs}
    scales |= {node.output[0]: values[node.input[1]] for node in pairs if node.output[0] == "y"}
    given = {one.tensor: one for one in encodings_of(plan)}
    for name, one in given.items():
        assert np.array_equal(one.scale.reshape(-1), scales[name].reshape(-1)), name
    assert len(given) >= 10
    hwq.export(hwq.load(tmp_path / "q.onnx"), tmp_path / "q.encodings", format="aimet")
    assert facts(encodings_of(read_plan(tmp_path / "q.encodings").plan)) == facts(given.values())


@pytest.mark.parametrize("format", ["qdq", "qoperator"])
def test_a_model_is_a_plan_that_makes_it_again(format: str, cnn: Graph, tmp_path: Path) -> None:
    """Also where the integers are those of onnxruntime's own operators."""
    x = tiny.images(16)
    q = hwq.quantize(cnn, Plan.uniform(), hwq.calibrate(cnn, x))
    hwq.export(q, tmp_path / "q.onnx", format=format)
    found = read_plan(tmp_path / "q.onnx", cnn)
    assert not found.left_out
    again = hwq.quantize(cnn, found.plan)
    assert facts(encodings_of_graph(again)) == facts(encodings_of_graph(q))
    assert np.array_equal(hwq.execute(again, x), hwq.execute(hwq.load(tmp_path / "q.onnx"), x))
