"""Where Q and DQ stand: what integer runtimes fuse, shared scales, layers left in floats, cost-only plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper

import hwq
from hwq.errors import Error
from hwq.graph import Graph
from hwq.ops.evaluate import evaluate
from hwq.plan import Plan
from hwq.quantization import annotate


@pytest.fixture(scope="module")
def cal(cnn: Graph) -> hwq.Calibration:
    return hwq.calibrate(cnn, tiny.images(32))


def plan_of(**table) -> Plan:
    return Plan._checked({"schema": 1, **table}, "test")


# Structure


def test_q_and_dq_stand_where_integer_runtimes_fuse(cnn: Graph, cal: hwq.Calibration) -> None:
    q = hwq.quantize(cnn, Plan.uniform(), cal)
    pairs = [node.inputs[0] for node in q if node.op == "QuantizeLinear"]
    # Behind clamps, not before; on the sum and both its operands; through pools and reshapes; the output too.
    assert pairs == ["x", "r1", "r2", "c3", "r3", "p1", "g1", "f1", "l1", "y_float"]
    assert q.outputs == ("y",) and q.producers["y"].op == "DequantizeLinear"
    assert q.node("relu1").inputs == ("c1",) and q.node("residual").inputs == ("c3_dequantized", "r1_dequantized")
    # What only moves values shares its input's scale.
    assert q.producers["p1_quantized"].inputs[1] == "r3_scale" and q.producers["f1_quantized"].inputs[1] == "g1_scale"
    assert q.producers["g1_quantized"].inputs[1] == "g1_scale"
    # Every float name that still has a meaning is there; weights are integers.
    assert {node.name for node in cnn} <= {node.name for node in q}
    assert not {"w1", "w2", "w3", "w4"} & set(q.tensors)
    assert (
        q.source["float_graph"] == cnn.hash
        and q.source["plan"] == Plan.uniform().hash
        and q.source["calibration"] == cal.hash
    )


def test_onnxruntime_fuses_it_to_integers_from_end_to_end(cnn: Graph, cal: hwq.Calibration, tmp_path: Path) -> None:
    import onnx

    hwq.export(hwq.quantize(cnn, Plan.uniform(), cal), tmp_path / "q.onnx")
    tiny.session(tmp_path / "q.onnx", optimized=tmp_path / "fused.onnx")
    ops = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert ops.count("QLinearConv") == 3 and ops.count("QGemm") == 1 and ops.count("QLinearAdd") == 1
    assert ops.count("QuantizeLinear") == 1 and ops.count("DequantizeLinear") == 1
    assert not {"Conv", "Gemm", "Add", "Relu", "Clip", "Softmax"} & set(ops)


def test_a_bias_vector_and_a_scalar_factor_stay_inside_the_product(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "k"], ["s"], "scores"),
        helper.make_node("Div", ["s", "root"], ["d"], "scaled"),
        helper.make_node("Softmax", ["d"], ["y"], "attention"),
    ]
    proto = tiny.model(nodes, {"x": ["N", 4, 8], "k": ["N", 8, 4]}, {"y": ["N", 4, 4]}, {"root": np.float32(2.0)})
    graph = tiny.graph(proto)
    random = np.random.default_rng(0)
    feed = {
        "x": random.normal(size=(6, 4, 8)).astype(np.float32),
        "k": random.normal(size=(6, 8, 4)).astype(np.float32),
    }
    q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, feed))
    assert [node.inputs[0] for node in q if node.op == "QuantizeLinear"] == ["x", "k", "d", "y_float"]
    q = hwq.quantize(tiny.graph(tiny.mlp()), Plan.uniform(), hwq.calibrate(tiny.graph(tiny.mlp()), tiny.rows(8)))
    assert [node.inputs[0] for node in q if node.op == "QuantizeLinear"] == ["x", "r1", "y_float"]


def test_concatenated_tensors_share_a_scale_unless_read_elsewhere() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "left"),
        helper.make_node("Conv", ["x", "v"], ["b"], "right"),
        helper.make_node("Concat", ["a", "b"], ["c"], "both", axis=1),
        helper.make_node("Conv", ["c", "u"], ["d"], "next"),
        helper.make_node("Add", ["d", "b"], ["y"], "skip"),
    ]
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(2, 3, 1, 1)),
        "v": 9 * random.normal(size=(2, 3, 1, 1)),
        "u": random.normal(size=(2, 4, 1, 1)),
    }
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 3, 5, 5]}, {"y": ["N", 2, 5, 5]}, weights))
    cal = hwq.calibrate(graph, random.normal(size=(4, 3, 5, 5)).astype(np.float32))
    q = hwq.quantize(graph, Plan.uniform(), cal)
    assert (
        q.producers["a_quantized"].inputs[1]
        == q.producers["c_quantized"].inputs[1]
        != q.producers["b_quantized"].inputs[1]
    )
    # TFLite's concatenation has one scale for all (its Prepare fails otherwise).
    lite = hwq.quantize(graph, Plan.uniform(activations="int8", dialect="litert-ref"), cal)
    assert len({lite.producers[f"{name}_quantized"].inputs[1] for name in "abc"}) == 1


def test_a_decomposed_layer_norm_stays_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "dense"),
        helper.make_node("Add", ["h", "x"], ["s"], "residual"),
        helper.make_node("ReduceMean", ["s"], ["mean"], "mean", axes=[-1]),
        helper.make_node("Sub", ["s", "mean"], ["c"], "center"),
        helper.make_node("Pow", ["c", "two"], ["p"], "square"),
        helper.make_node("ReduceMean", ["p"], ["v"], "variance", axes=[-1]),
        helper.make_node("Add", ["v", "eps"], ["ve"], "epsilon"),
        helper.make_node("Sqrt", ["ve"], ["sd"], "root"),
        helper.make_node("Div", ["c", "sd"], ["n"], "norm"),
        helper.make_node("Mul", ["n", "gamma"], ["g"], "gamma"),
        helper.make_node("Add", ["g", "beta"], ["b"], "beta"),
        helper.make_node("MatMul", ["b", "w"], ["y"], "last"),
    ]
    random = np.random.default_rng(0)
    constants = {
        "w": random.normal(size=(8, 8)),
        "two": np.float32(2),
        "eps": np.float32(1e-5),
        "gamma": np.ones(8),
        "beta": np.zeros(8),
    }
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 3, 8]}, {"y": ["N", 3, 8]}, constants))
    q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, random.normal(size=(9, 3, 8)).astype(np.float32)))
    assert [node.inputs[0] for node in q if node.op == "QuantizeLinear"] == ["x", "h", "s", "b", "y_float"]
    # One weight for two layers is stored once.
    assert sum(name.startswith("w_quantized") for name in q.tensors) == 1


def test_what_exporters_leave_apart_is_folded_first(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flatten"),
        helper.make_node("Dropout", ["f"], ["d"], "dropout"),
        helper.make_node("Transpose", ["u"], ["t"], "turned", perm=[1, 0]),
        helper.make_node("MatMul", ["d", "t"], ["y"], "dense"),
    ]
    constants = {
        "w": random.normal(size=(4, 3, 3, 3)),
        "g": random.uniform(0.5, 2.0, 4),
        "b": random.normal(size=4),
        "m": random.normal(size=4),
        "v": random.uniform(0.5, 2.0, 4),
        "u": random.normal(size=(5, 4 * 36)),
    }
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 5]}, constants))
    x = tiny.images(16)
    q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, x))
    assert [node.op for node in q if "Linear" not in node.op] == ["Conv", "Relu", "Flatten", "MatMul"]
    assert [node.inputs[0] for node in q if node.op == "QuantizeLinear"] == ["x", "r", "f", "y_float"]
    plain, made = evaluate(graph, {"x": x})["y"], evaluate(q, {"x": x})["y"]
    assert np.square(plain).sum() / np.square(plain - made).sum() > 10**3  # 30 dB
    # A rule may name what the folding takes away, and the plan of the result fits the model as it was.
    hwq.quantize(
        graph,
        plan_of(layers=[{"match": {"op": "BatchNormalization"}, "weights": {"dtype": "float32"}}]),
        hwq.calibrate(graph, x),
    )
    assert hwq.quantize(graph, Plan.of(q)).hash == q.hash


# The plan's rules


def test_a_float_layer_between_integer_layers(cnn: Graph, cal: hwq.Calibration) -> None:
    plan = plan_of(
        layers=[{"match": {"name": "depthwise"}, "activations": {"mode": "float"}, "weights": {"dtype": "float32"}}]
    )
    q = hwq.quantize(cnn, plan, cal)
    assert "w2" in q.tensors and q.node("depthwise").inputs == ("r1_dequantized", "w2", "b2")
    assert "r2_quantized" in q.tensors  # the next integer layer wants its input stored


def test_weights_only(cnn: Graph) -> None:
    q = hwq.quantize(cnn, Plan.uniform(weights="int4", granularity=4, activations="float32"))
    assert not any(node.op == "QuantizeLinear" for node in q)
    w4 = q.tensors["w4_quantized"]
    assert w4.dtype == "int4" and w4.quantization.block == 4 and q.constant("w4_scale").shape == (5, 2)
    # Depthwise and the stem have fewer elements along the sum than a group: one scale a channel.
    assert q.tensors["w2_quantized"].quantization.granularity == "channel"
    x = tiny.images(8)
    plain, made = evaluate(cnn, {"x": x})["y"], evaluate(q, {"x": x})["y"]
    assert 0 < np.abs(made - plain).max() < 0.25


def test_a_wider_layer_reads_a_second_storage(cnn: Graph, cal: hwq.Calibration) -> None:
    plan = plan_of(
        dialect="ort-unfused",
        layers=[{"match": {"name": "pointwise"}, "activations": {"dtype": "int16", "symmetric": True}}],
    )
    q = hwq.quantize(cnn, plan, cal)
    border = q.producers["r2_int16_quantized"]
    assert border.op == "QuantizeLinear" and border.inputs[0] == "r2_dequantized"
    assert q.node("pointwise").inputs[0] == "r2_int16_dequantized" and q.tensors["c3_quantized"].dtype == "int16"
    # The residual sum is planned uint8: its operand comes back to uint8.
    assert q.node("residual").inputs[0] == "c3_uint8_dequantized"


# Cost only


def test_annotate_has_the_structure_of_quantize(cnn: Graph, cal: hwq.Calibration) -> None:
    plan = Plan.uniform()
    q, planned = hwq.quantize(cnn, plan, cal), annotate(cnn, plan)
    shape = [(n.op, n.name, n.inputs, n.outputs, dict(n.attributes)) for n in q]
    assert shape == [(n.op, n.name, n.inputs, n.outputs, dict(n.attributes)) for n in planned]
    for name, tensor in q.tensors.items():
        other = planned.tensors[name]
        assert (tensor.dtype, tensor.shape, tensor.bits) == (other.dtype, other.shape, other.bits)
        if tensor.quantization is not None:
            assert other.quantization.granularity == tensor.quantization.granularity and not other.quantization.known
    assert planned.constant("w1_quantized") is None
    with pytest.raises(Error, match="no values"):
        evaluate(planned, {"x": tiny.images(1)})


@pytest.mark.parametrize(
    "weights, activations, share",
    [("int8", "uint8", 4), ("int4", "uint8", 8), ("float16", "float16", 2), ("int4", "float16", 8)],
)
@pytest.mark.parametrize("name", ["resnet50", "bert_base"])
def test_cost_only_plans_of_the_zoo(name: str, weights: str, activations: str, share: int) -> None:
    from hwq.ops.inference import infer_shapes

    graph = hwq.load(f"zoo:{name}", weights=False)
    planned = annotate(graph, Plan.uniform(weights=weights, activations=activations))
    matrix = [
        node
        for node in graph
        if node.op in {"Conv", "Gemm"} or (node.op == "MatMul" and node.inputs[1] not in graph.producers)
    ]
    plain = sum(graph.tensors[node.inputs[1]].bytes for node in matrix)
    readers = {node.name: node for node in planned}
    stored = 0
    for node in matrix:
        weight = readers[node.name].inputs[1]
        source = planned.producers.get(weight)
        stored += planned.tensors[weight if source is None else source.inputs[0]].bytes
    assert stored * share == plain
    if "float16" in activations:
        assert {planned.tensors[output].dtype for node in planned for output in node.outputs} <= {
            "float16",
            "int64",
            "bool",
            "int4",
        }
    again = infer_shapes(planned, batch=4)
    assert all(
        tensor.dtype == planned.tensors[key].dtype for key, tensor in again.tensors.items() if key in planned.tensors
    )


def test_one_float16_layer_has_casts_at_its_borders(cnn: Graph) -> None:
    plan = plan_of(
        layers=[{"match": {"name": "pointwise"}, "weights": {"dtype": "float16"}, "activations": {"dtype": "float16"}}]
    )
    planned = annotate(cnn, plan)
    node = planned.node("pointwise")
    assert [planned.tensors[name].dtype for name in (*node.inputs, *node.outputs)] == ["float16"] * 3
    assert planned.producers[node.inputs[0]].op == "Cast" and [r.op for r in planned.consumers[node.outputs[0]]] == [
        "Cast"
    ]
    assert planned.tensors["w1_quantized"].dtype == "int8"


# Dialects


def test_tflite_s_rules(cnn: Graph, cal: hwq.Calibration) -> None:
    q = hwq.quantize(cnn, Plan.uniform(activations="int8", dialect="litert-ref"), cal)
    assert all(
        int(q.constant(name).min()) >= -127 for name in ("w1_quantized", "w2_quantized", "w3_quantized", "w4_quantized")
    )
    assert q.constant("y_scale") == np.float32(1 / 256) and q.constant("y_zero_point") == -128
    given = plan_of(
        dialect="litert-ref",
        default={"activations": {"dtype": "int8"}},
        layers=[{"match": {"tensor": "w1"}, "weights": {"granularity": "tensor", "scale": 0.001}}],
    )
    assert int(hwq.quantize(cnn, given, cal).constant("w1_quantized").min()) == -127  # a given scale clips there, too


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_transposed_convolution_is_stored_and_has_onnxruntime_s_bytes(
    groups: int, granularity: str, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(11)
    constants = {"w1": rng.normal(size=(8, 3, 3, 3)) * 0.3, "b1": rng.normal(size=8) * 0.1,
                 "w2": rng.normal(size=(8, 6 // groups, 3, 3)) * 0.3, "b2": rng.normal(size=6) * 0.1,
                 "w3": rng.normal(size=(4, 6, 1, 1)) * 0.3}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], "down", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("ConvTranspose", ["r", "w2", "b2"], ["u"], "up", strides=[2, 2], pads=[1] * 4, group=groups,
                         output_padding=[1, 1]),
        helper.make_node("Conv", ["u", "w3"], ["y"], "last"),
    ]  # fmt: skip
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 4, 8, 8]}, constants))
    x = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)
    cal = hwq.calibrate(graph, x)
    made = hwq.quantize(graph, Plan.uniform(granularity=granularity), cal)
    weight = made.tensors[made.producers[made.node("up").inputs[1]].inputs[0]]
    assert weight.dtype == "int8" and weight.quantization is not None
    assert weight.quantization.axis == (1 if granularity == "channel" else None)
    assert hwq.estimate(made, "ethos-u55-128", batch=1).seconds > 0.0
    found = hwq.execute(made, x)
    assert np.abs(found - hwq.execute(graph, x)).max() < 0.1
    hwq.export(made, tmp_path / "q.onnx")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": x})[0].tobytes() == found.tobytes()
    for mode, kind in (("dynamic", "uint8"), ("float", "float16"), ("float", "float32")):
        plan = Plan.uniform(activations=kind, mode=mode, granularity=granularity, dialect="hwq")
        assert np.abs(hwq.execute(hwq.quantize(graph, plan, cal), x) - hwq.execute(graph, x)).max() < 0.1
