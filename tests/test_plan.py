"""Plans: the file and back, rules and what they fit, and the plan that a quantized graph obeys."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import hwq
from hwq.errors import Error
from hwq.graph import Graph
from hwq.plan import Plan


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


FULL = """
schema = 1
dialect = "ort-unfused"

[default]
weights = { dtype = "int8", granularity = "channel", symmetric = true, scale = "mse", rounding = "nearest" }
activations = { dtype = "uint8", granularity = "tensor", mode = "static", observer = "percentile", percentile = 99.9 }

[transforms]
equalize = true
smooth = 0.5
bias_correction = "empirical"

[[layers]]
match = { name = "conv*" }
weights = { dtype = "float16" }

[[layers]]
match = { op = "Gemm" }
weights = { dtype = "int4", granularity = { group = 32 } }
activations = { mode = "float" }

[[layers]]
match = { tensor = "r1" }
activations = { scale = 0.1, zero_point = 3 }
"""


def test_the_design_s_example_survives_writing_and_reading(tmp_path: Path) -> None:
    plan = Plan.load(written(tmp_path, FULL))
    plan.save(tmp_path / "again.toml")
    again = Plan.load(tmp_path / "again.toml")
    assert again == plan and again.hash == plan.hash and again.to_toml() == plan.to_toml() and hash(again) == hash(plan)
    table = tomllib.loads(plan.to_toml())
    assert table["layers"][1]["weights"] == {"dtype": "int4", "granularity": {"group": 32}}
    assert table["transforms"] == {"equalize": True, "smooth": 0.5, "bias_correction": "empirical"}
    with pytest.raises(Error, match="exists already"):
        plan.save(tmp_path / "again.toml")


def test_later_rules_win_and_match_by_name_op_and_tensor(cnn: Graph, tmp_path: Path) -> None:
    plan = Plan.load(
        written(
            tmp_path,
            FULL
            + '[[layers]]\nmatch = { name = "conv1", op = "Conv" }\nweights = { dtype = "int8", scale = "minmax" }\n',
        )
    )
    planned = plan.resolve(cnn.nodes)
    assert planned["conv1"].weights.dtype == "int8" and planned["conv1"].weights.scale == "minmax"
    assert planned["dense"].label == "W4A32" and planned["depthwise"].label == "W8A8"
    # A tensor's rule is about that tensor: r1 is conv1's and relu1's output, and an operand of depthwise.
    relu, depthwise = cnn.node("relu1"), cnn.node("depthwise")
    assert plan.activations_of(["r1"], [relu]).scale == 0.1
    assert plan.activations_of(["c2"], [depthwise]).scale is None
    assert plan.gives_scale("r1", [relu]) and not plan.gives_scale("c2", [depthwise])


def test_a_tensor_rule_fits_a_weight_or_the_layer_that_makes_the_tensor(cnn: Graph, tmp_path: Path) -> None:
    head = "schema = 1\n[[layers]]\n"
    by_weight = Plan.load(written(tmp_path, head + 'match = { tensor = "w2" }\nweights = { dtype = "int4" }\n'))
    by_output = Plan.load(written(tmp_path, head + 'match = { tensor = "c2" }\nweights = { dtype = "int4" }\n'))
    for plan in (by_weight, by_output):
        assert plan.weights_of(cnn.node("depthwise"), "w2").dtype == "int4"
        assert plan.weights_of(cnn.node("conv1"), "w1").dtype == "int8"
    # An operand's name does not reach into the reader's weights.
    by_operand = Plan.load(written(tmp_path, head + 'match = { tensor = "r1" }\nweights = { dtype = "int4" }\n'))
    assert by_operand.weights_of(cnn.node("depthwise"), "w2").dtype == "int8"


@pytest.mark.parametrize(
    "name",
    [
        "conv[/a]",
        "a*b",
        "what?",
        r"$\frac{1$",
        "<script>",
        "=1+1",
        "\x1b[31mred",
        'quo"te\\',
        "ünïcode 🙂",
        "tab\tnew\nline",
        "del\x7f",
        "x" * 1_000_000,
    ],
)
def test_hostile_names_match_and_survive_the_file(name: str, tmp_path: Path) -> None:
    proto = tiny.mlp()
    proto.graph.node[0].name = name
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = name + "/out"
    graph = tiny.graph(proto)
    plan = Plan._checked({"schema": 1, "layers": [{"match": {"name": name}, "weights": {"dtype": "uint8"}}]}, "test")
    plan.save(tmp_path / "plan.toml")
    plan = Plan.load(tmp_path / "plan.toml")
    assert (
        plan.resolve(graph.nodes)[name].weights.dtype == "uint8"
        and plan.resolve(graph.nodes)["down"].weights.dtype == "int8"
    )
    cal = hwq.calibrate(graph, tiny.rows(4))
    q = hwq.quantize(graph, plan, cal)
    assert q.tensors["w1_quantized"].dtype == "uint8" and q.tensors["w2_quantized"].dtype == "int8"
    hwq.export(q, tmp_path / "q.onnx")
    assert {node.name for node in hwq.load(tmp_path / "q.onnx")} == {node.name for node in q}
    assert Plan.of(q) == Plan.load(saved(Plan.of(q), tmp_path / "of.toml"))


def saved(plan: Plan, path: Path) -> Path:
    plan.save(path)
    return path


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(min_value=2.0**-140, max_value=2.0**120, width=32), min_size=1, max_size=8),
    st.text(min_size=1, max_size=12),
)
def test_given_scales_keep_their_float32_bits(scales: list[float], name: str) -> None:
    plan = Plan._checked({"schema": 1, "layers": [{"match": {"tensor": name}, "weights": {"scale": scales}}]}, "test")
    back = Plan._checked(tomllib.loads(plan.to_toml()), "test")
    assert back == plan and back.layers[0].match.tensor == name
    assert np.array_equal(
        np.float32(back.layers[0].weights["scale"]).view(np.uint32), np.float32(scales).view(np.uint32)
    )


def test_uniform_s_defaults() -> None:
    plan = Plan.uniform()
    assert plan.default.weights.model_dump() == {
        "dtype": "int8",
        "granularity": "channel",
        "symmetric": True,
        "scale": "minmax",
        "zero_point": None,
        "rounding": "nearest",
    }
    assert plan.default.activations.mode == "static" and not plan.default.activations.symmetric
    assert Plan.uniform(activations="float32").default.activations.mode == "float"
    assert Plan.uniform(activations="int16").default.activations.symmetric
    assert Plan.uniform(weights="int4", granularity=32).default.weights.granularity.group == 32


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "tensor", "weights": "uint8", "symmetric": False, "activations": "int8"},
        {"weights": "int4", "granularity": 8, "activations": "float32"},
        {"symmetric_activations": True, "activations": "int8"},
    ],
)
def test_the_plan_of_a_quantized_graph_gives_it_back(options: dict, cnn: Graph, tmp_path: Path) -> None:
    q = hwq.quantize(cnn, Plan.uniform(**options), hwq.calibrate(cnn, tiny.images(16)))
    plan = Plan.load(saved(Plan.of(q), tmp_path / "plan.toml"))
    again = hwq.quantize(cnn, plan)  # no calibration: every scale is given
    assert again.hash == q.hash
    assert Plan.of(again) == plan
    # Another calibration changes nothing, either.
    assert hwq.quantize(cnn, plan, hwq.calibrate(cnn, 3 * tiny.images(4, seed=9))).hash == q.hash


def test_the_plan_of_a_file_made_by_onnxruntime_s_tool(cnn: Graph, tmp_path: Path) -> None:
    quantization = pytest.importorskip(
        "onnxruntime.quantization", reason="onnxruntime's quantization tool is the oracle here"
    )
    (tmp_path / "float.onnx").write_bytes(tiny.cnn().SerializeToString())

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": image[None]} for image in tiny.images(8)]

        def get_next(self):
            return self.left.pop() if self.left else None

    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "q.onnx",
        Reader(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    theirs = hwq.load(tmp_path / "q.onnx")
    plan = Plan.load(saved(Plan.of(theirs), tmp_path / "plan.toml"))
    ours = hwq.quantize(hwq.load(tmp_path / "float.onnx"), plan)
    read = {name: tensor.quantization for name, tensor in stored(theirs).items()}
    made = {name: tensor.quantization for name, tensor in stored(ours).items()}
    assert set(read) == set(made) and len(read) >= 14
    for name, quantization_ in read.items():
        assert np.array_equal(quantization_.scales().reshape(-1), made[name].scales().reshape(-1)), name
        assert np.array_equal(quantization_.zero_points().reshape(-1), made[name].zero_points().reshape(-1)), name


def stored(graph: Graph) -> dict:
    from hwq.plan_reading import float_name

    return {
        float_name(graph, tensor.name): tensor
        for tensor in graph.tensors.values()
        if tensor.quantization is not None and tensor.dtype != "int32"
    }


def test_given_values_from_a_file_beside_the_plan(cnn: Graph, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "encodings.npz",
        r1=np.float32(0.0371),
        w1=np.linspace(0.01, 0.02, 8).astype(np.float32),
        zero=np.int64(7),
    )
    text = """schema = 1
[[layers]]
match = { tensor = "r1" }
activations = { scale = "file:encodings.npz#r1", zero_point = "file:encodings.npz#zero" }
[[layers]]
match = { tensor = "w1" }
weights = { scale = "file:encodings.npz#w1" }
"""
    plan = Plan.load(written(tmp_path, text))
    q = hwq.quantize(cnn, plan, hwq.calibrate(cnn, tiny.images(4)))
    assert q.constant("r1_scale") == np.float32(0.0371) and q.constant("r1_zero_point") == 7
    assert np.array_equal(q.constant("w1_scale"), np.linspace(0.01, 0.02, 8).astype(np.float32))


def test_a_float_graph_has_no_plan(cnn: Graph) -> None:
    with pytest.raises(Error, match="not quantized"):
        Plan.of(cnn)


def test_a_graph_planned_for_cost_only_has_no_scales_to_read(cnn: Graph) -> None:
    from hwq.quantization import annotate

    with pytest.raises(Error, match="unset"):
        Plan.of(annotate(cnn, Plan.uniform()))


@pytest.mark.parametrize("types", [("int8", "int16"), ("int4", "uint8")])
def test_a_file_of_types_that_onnxruntime_runs_in_floats_is_a_plan_that_quantizes(
    types: tuple[str, str], cnn: Graph
) -> None:
    made = Plan.uniform(*types, symmetric_activations=types[1] == "int16", dialect="hwq")
    theirs = hwq.quantize(cnn, made, hwq.calibrate(cnn, tiny.images(16))).replace(
        dialect="ort"
    )  # as any tool's file is read
    plan = Plan.of(theirs)
    assert plan.dialect == "hwq"
    again = hwq.quantize(cnn, plan)
    stored = {name: tensor for name, tensor in theirs.tensors.items() if tensor.data is not None}
    assert all(np.array_equal(again.tensors[name].data, tensor.data) for name, tensor in stored.items())
