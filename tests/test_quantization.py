"""Quantization: hand-worked scales, the structure that onnxruntime fuses, real models, cost-only graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper

import hwq
from hwq.errors import Error, NotSupportedYet
from hwq.graph import Graph
from hwq.observers import activation_range, affine, weight_affine
from hwq.ops.evaluate import evaluate
from hwq.plan import Activations, Plan, Weights
from hwq.quantization import annotate
from hwq.statistics import observe


@pytest.fixture(scope="module")
def cnn() -> Graph:
    return tiny.graph(tiny.cnn())


@pytest.fixture(scope="module")
def cal(cnn: Graph) -> hwq.Calibration:
    return hwq.calibrate(cnn, tiny.images(32))


def plan_of(**table) -> Plan:
    return Plan._checked({"schema": 1, **table}, "test")


# Scales by hand


@pytest.mark.parametrize(
    "low, high, dtype, symmetric, scale, zero",
    [
        (-1.0, 3.0, "uint8", False, 4 / 255, 64),  # 255 / 4 = 63.75
        (-1.0, 3.0, "int8", False, 4 / 255, -64),  # -128 + 63.75 = -64.25
        (0.0, 6.0, "uint8", False, 6 / 255, 0),
        (0.5, 6.0, "uint8", False, 6 / 255, 0),  # widened to zero
        (-6.0, -2.0, "uint8", False, 6 / 255, 255),
        (-1.0, 3.0, "int8", True, 3 / 127, 0),
        (-1.0, 3.0, "uint8", True, 3 / 127, 128),
        (0.0, 3.0, "uint8", True, 3 / 255, 0),
        (-4.0, 3.0, "int16", True, 4 / 32767, 0),
        (-1.0, 2.0, "int4", True, 2 / 7, 0),
        (0.0, 0.0, "uint8", False, 1.0, 0),
        (0.0, 0.0, "int8", False, 1.0, -128),
        (-1e-45, 1e-45, "uint8", False, 2.0**-126, 0),
    ],
)
def test_affine_by_hand(low: float, high: float, dtype: str, symmetric: bool, scale: float, zero: int) -> None:
    made = affine(low, high, dtype, symmetric)
    assert made == (np.float32(scale), zero) and isinstance(made[0], np.float32)


# The tool's symmetric uint8 is [0, 254] around 127, ours [0, 255] around 128, so that pair is not compared.
@pytest.mark.parametrize("dtype, symmetric", [("uint8", False), ("int8", False), ("int8", True)])
def test_affine_equals_onnxruntime_s_tool(dtype: str, symmetric: bool) -> None:
    utilities = pytest.importorskip(
        "onnxruntime.quantization.quant_utils", reason="onnxruntime's quantization tool is the oracle here"
    )
    random = np.random.default_rng(0)
    qmin, qmax = (0, 255) if dtype == "uint8" else (-127, 127) if symmetric else (-128, 127)
    for low, high in np.sort(random.normal(size=(50, 2)) * 5, axis=1):
        zero, scale = utilities.compute_scale_zp(
            np.float64(low), np.float64(high), np.int64(qmin), np.int64(qmax), symmetric
        )
        made = affine(float(low), float(high), dtype, symmetric)
        assert made[0] == np.float32(scale) and made[1] == int(zero)


def test_weights_by_hand() -> None:
    groups = np.array([[-1.0, 0.5], [0.0, 0.0], [2.54, -1.0]], np.float32)
    scale, zero = weight_affine(groups, Weights())
    assert np.array_equal(scale, np.float32([1 / 127, 0.0, np.float64(np.float32(2.54)) / 127])) and not zero.any()
    scale, zero = weight_affine(groups, Weights(dtype="uint8", symmetric=False))
    assert np.array_equal(scale, np.float32([1.5 / 255, 0.0, (np.float64(np.float32(2.54)) + 1) / 255]))
    assert list(zero) == [170, 0, 72]  # 255 / 1.5 = 170; 255 / 3.54 = 72.03
    scale, _ = weight_affine(groups, Weights(dtype="int4"))
    assert scale[0] == np.float32(1 / 7)


def test_searching_the_scale_lowers_the_error() -> None:
    random = np.random.default_rng(2)
    groups = np.concatenate([random.normal(size=(6, 200)), 9 * np.ones((6, 1))], axis=1).astype(np.float32)

    def error(scale: np.ndarray) -> np.ndarray:
        step = scale[:, None].astype(np.float64)
        return np.square(np.clip(np.rint(groups / step), -8, 7) * step - groups).sum(axis=1)

    plain, _ = weight_affine(groups, Weights(dtype="int4"))
    searched, _ = weight_affine(groups, Weights(dtype="int4", scale="mse"))
    best = np.min([error(plain * np.float32(share)) for share in np.linspace(0.3, 1.0, 71)], axis=0)
    assert (error(searched) < error(plain)).all() and np.allclose(error(searched), best, rtol=1e-3)


def test_observers_by_their_definitions() -> None:
    values = np.append(np.random.default_rng(1).normal(size=1_000_000), 12.0).astype(np.float32)
    seen = observe(values)
    assert activation_range(seen, Activations()) == (values.min(), 12.0)
    low, high = activation_range(seen, Activations(observer="percentile", percentile=99.9))
    assert (
        abs(low - np.quantile(values, 0.001)) < 2 * seen.width
        and abs(high - np.quantile(values, 0.999)) < 2 * seen.width
    )
    # Nothing of a ReLU's output is cut at zero.
    assert activation_range(observe(np.abs(values)), Activations(observer="percentile"))[0] == 0.0

    def error(ends: tuple[float, float]) -> float:
        scale, zero = affine(*ends, "uint8", False)
        step = float(scale)
        return float(np.square((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step - values).sum())

    searched = activation_range(seen, Activations(observer="mse"))
    assert error(searched) < 0.7 * error((float(values.min()), 12.0))
    brute = min(error((low, high)) for low in np.linspace(-5, -2, 13) for high in np.linspace(2, 12, 21))
    assert error(searched) < 1.05 * brute


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


def test_scales_and_integers_by_numpy(cnn: Graph, cal: hwq.Calibration) -> None:
    q = hwq.quantize(cnn, Plan.uniform(), cal)
    value = evaluate(cnn, {"x": tiny.images(32)}, intermediates=True)["r1"]
    sx = np.float32(float(value.max()) / 255)
    assert q.constant("r1_scale") == sx and q.constant("r1_zero_point") == 0
    w, b = cnn.constant("w2"), cnn.constant("b2")
    sw = (np.abs(w).max(axis=(1, 2, 3)).astype(np.float64) / 127).astype(np.float32)
    assert np.array_equal(q.constant("w2_scale"), sw)
    assert np.array_equal(q.constant("w2_quantized"), np.rint(w / sw[:, None, None, None]).astype(np.int8))
    assert np.array_equal(q.constant("b2_scale"), sx * sw) and (sx * sw).dtype == np.float32
    assert np.array_equal(q.constant("b2_quantized"), np.rint(b.astype(np.float64) / (sx * sw)).astype(np.int32))
    # Softmax has the range of its function.
    assert q.constant("y_scale") == np.float32(1 / 255) and q.constant("y_zero_point") == 0


def test_the_input_quantized_at_the_evaluator_equals_onnxruntime(
    cnn: Graph, cal: hwq.Calibration, tmp_path: Path
) -> None:
    """The whole QDQ graph in float, ours against onnxruntime without fusion: equal but for float accumulation order."""
    q, x = hwq.quantize(cnn, Plan.uniform(), cal), tiny.images(64, seed=5)
    hwq.export(q, tmp_path / "q.onnx")
    theirs = tiny.session(tmp_path / "q.onnx", fused=False).run(None, {"x": x})[0]
    assert np.mean(np.abs(evaluate(q, {"x": x})["y"] - theirs) > 1e-6) < 0.01


def test_zero_and_nearly_dead_channels() -> None:
    proto = tiny.cnn()
    graph = tiny.graph(proto)
    w, b = graph.constant("w1").copy(), graph.constant("b1").copy()
    w[0], b[0] = 0.0, 0.7  # only a bias
    w[1] = 0.0
    b[1] = 0.0
    w[2], b[2] = 1e-30, 5.0  # bias / (sx * amax / 127) would pass 2^31
    graph = with_constants(graph, w1=w, b1=b)
    x = tiny.images(16)
    q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, x))
    scale, bias = q.constant("w1_scale"), q.constant("b1_quantized")
    assert (scale > 0).all() and np.abs(bias.astype(np.int64)).max() <= 2**30 and bias[1] == 0
    assert np.allclose(bias * q.constant("b1_scale"), b, rtol=1e-3, atol=1e-3)


def test_a_layer_of_zeros_keeps_its_bias() -> None:
    graph = tiny.graph(tiny.cnn())
    graph = with_constants(graph, w1=np.zeros((8, 3, 3, 3), np.float32))
    q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, tiny.images(4)))
    assert np.allclose(q.constant("b1_quantized") * q.constant("b1_scale"), graph.constant("b1"), atol=1e-5)


def with_constants(graph: Graph, **values: np.ndarray) -> Graph:
    import dataclasses

    return graph.replace(
        tensors=[dataclasses.replace(t, data=values.get(t.name, t.data)) for t in graph.tensors.values()]
    )


def test_constant_and_denormal_activations_are_guarded() -> None:
    graph = tiny.graph(tiny.cnn())
    for x in (
        np.zeros((2, 3, 8, 8), np.float32),
        np.full((2, 3, 8, 8), 1e-42, np.float32),
        np.full((2, 3, 8, 8), 3e4, np.float32),
    ):
        q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, x))
        scales = [t.quantization.scales() for t in q.tensors.values() if t.quantization]
        assert all((s >= 2.0**-126).all() and np.isfinite(s).all() for s in scales)
        assert np.isfinite(evaluate(q, {"x": x})["y"]).all()


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


def test_group_scales_by_numpy() -> None:
    graph = tiny.graph(tiny.mlp())
    q = hwq.quantize(graph, Plan.uniform(weights="int4", granularity=8, activations="float32"))
    w = graph.constant("w1")  # (16, 24), summed over axis 0
    scale = (np.abs(w).reshape(2, 8, 24).max(axis=1).astype(np.float64) / 7).astype(np.float32)
    assert np.array_equal(q.constant("w1_scale"), scale)
    stored = np.clip(np.rint(w / np.repeat(scale, 8, axis=0)), -8, 7)
    assert np.array_equal(q.constant("w1_quantized"), stored)
    assert dict(q.producers["w1_dequantized"].attributes) == {"axis": 0, "block_size": 8}


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


@pytest.mark.parametrize(
    ("dtype", "stored", "largest"), [("int3", "int4", 3), ("int5", "int8", 15), ("int6", "int8", 31)]
)
def test_widths_that_no_file_has_are_stored_in_the_next(
    dtype: str, stored: str, largest: int, cnn: Graph, cal: hwq.Calibration
) -> None:
    q = hwq.quantize(cnn, hwq.Plan.uniform(dtype, "uint8", dialect="hwq"), cal)
    weights = [one for one in q.tensors.values() if one.data is not None and one.dtype == stored and len(one.shape) > 1]
    assert weights and {one.quantization.dtype for one in weights} == {stored}
    assert max(int(np.abs(one.data).max()) for one in weights) == largest
    assert all(-largest - 1 <= one.data.min() for one in weights)


@pytest.mark.parametrize(
    "table, key",
    [
        ({"default": {"activations": {"granularity": "row"}}}, "activations.granularity"),
    ],
)
def test_what_is_not_built_is_named_and_never_replaced(table: dict, key: str, cnn: Graph, cal: hwq.Calibration) -> None:
    with pytest.raises(NotSupportedYet, match="not supported yet") as caught:
        hwq.quantize(cnn, plan_of(**table), cal)
    assert key in str(caught.value)


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


# Real models


def real(kind: str) -> tuple[Graph, np.ndarray, np.ndarray, np.ndarray, float]:
    """Graph, calibration inputs, test inputs, labels, floor of agreement: the protocols of the models' README."""
    if kind == "resnet8":
        train = np.load(tiny.shared("models", "ic", "cifar10_train3000.npz"))["x"][::6]
        test = np.load(tiny.shared("models", "ic", "cifar10_test1017.npz"))
        turned = [np.ascontiguousarray(part.transpose(0, 3, 1, 2), np.float32) for part in (train, test["x"])]
        return hwq.load(tiny.shared("models", "ic", "resnet8_f32.onnx")), *turned, test["y"].reshape(-1), 0.97
    data = np.load(tiny.shared("models", "kws", "kws_mfcc_1000.npz"))
    x = ((data["x_int8"].astype(np.float32) - 83) * np.float32(0.5847029)).reshape(-1, 1, 49, 10)
    order = np.random.default_rng(0).permutation(1000)
    graph = hwq.load(tiny.shared("models", "kws", "ds_cnn_f32.onnx"))
    return graph, x[order[:100]], x[order[100:]], data["y"].reshape(-1)[order[100:]], 0.985


@pytest.mark.parametrize("kind", ["resnet8", "ds_cnn"])
def test_static_int8_of_the_real_models(kind: str, tmp_path: Path) -> None:
    graph, calibration, x, y, floor = real(kind)
    q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, calibration))
    hwq.export(q, tmp_path / "q.onnx")
    hwq.export(graph, tmp_path / "float.onnx")
    plain, theirs = (
        tiny.session(tmp_path / file).run(None, {graph.inputs[0]: x})[0] for file in ("float.onnx", "q.onnx")
    )
    ours = hwq.execute(q, x)
    assert np.array_equal(ours, theirs)
    plain, made = plain.argmax(axis=1), ours.argmax(axis=1)
    agreement, before, after = np.mean(plain == made), np.mean(plain == y), np.mean(made == y)
    print(f"{kind}: agreement {agreement:.4f}, accuracy float {before:.4f}, int8 {after:.4f}")
    assert agreement >= floor and abs(after - before) <= 0.01


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
