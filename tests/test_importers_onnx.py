"""ONNX import: what the file says is what the graph keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model_of, run_onnxruntime
from tiny import SHARED

from hwq.errors import Error
from hwq.execution import execute
from hwq.graph import Graph
from hwq.importers import load
from hwq.importers.onnx import read
from hwq.importers.onnx_values import DTYPES, Budget, array_of, unpack
from hwq.ops.base import lookup
from hwq.ops.evaluate import evaluate, infer_shapes

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(5)
F = np.float32


def data(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(F)


# File, input of 8 samples, MACs of one sample by the published layer tables (MLPerf Tiny).
REAL = {"ic/resnet8_f32.onnx": ((3, 32, 32), 255.0, 12_501_632), "kws/ds_cnn_f32.onnx": ((1, 49, 10), 20.0, 2_656_768)}


@pytest.mark.parametrize("name", REAL)
def test_real_models_agree_with_onnxruntime(name: str) -> None:
    path = SHARED / "models" / name
    if not path.exists():
        pytest.skip(f"the real models are not here: {path}")
    pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle")
    shape, scale, macs = REAL[name]
    graph = load(path)
    x = (RNG.random((8, *shape)) * scale).astype(F)
    model = onnx.load(path)
    layers = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in layers)
    expected = run_onnxruntime(model, {graph.inputs[0]: x}, optimize=True)
    found = evaluate(graph, {graph.inputs[0]: x}, intermediates=True)
    names = [*graph.outputs, *(node.output[0] for node in layers)]
    assert len(names) > 10
    for tensor, reference in zip(names, expected, strict=True):
        assert np.abs(found[tensor] - reference).max() <= 1e-4 * np.abs(reference).max(), tensor
    bound = infer_shapes(graph, batch=1)
    assert sum(lookup(node).work(node, bound).macs for node in bound) == macs
    assert {node.layout for node in graph if node.op in {"Conv", "AveragePool"}} == {"NCHW"}


def test_demo_model_agrees_with_onnxruntime() -> None:
    path = ROOT / "hwq" / "demo" / "digits.onnx"
    if not path.exists():
        pytest.skip("the demo model is not here")
    pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle")
    graph = load(path)
    x = RNG.random((16, *[int(dim) for dim in graph.tensors[graph.inputs[0]].shape[1:]])).astype(F)
    expected = run_onnxruntime(onnx.load(path), {graph.inputs[0]: x}, optimize=True)[0]
    found = evaluate(graph, {graph.inputs[0]: x})[graph.outputs[0]]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_source_facts_are_kept(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "block/conv"), helper.make_node("Relu", ["c"], ["r"]), helper.make_node("Relu", ["r"], ["s"], "block/conv"),
             helper.make_node("Neg", ["s"], ["y"])]  # fmt: skip
    model = model_of(nodes, {"x": data(1, 3, 8, 8)}, {"w": data(4, 3, 3, 3)}, ["y"])
    model.producer_name, model.producer_version = "maker", "1.2"
    path = tmp_path / "net.bin"
    path.write_bytes(model.SerializeToString())
    graph = load(path)
    assert graph.name == "net" and graph.dialect == "ort" and graph.form == "source"
    assert [node.name for node in graph] == ["block/conv", "Relu_1", "block/conv_1", "Neg_3"]
    assert [node.origin for node in graph] == ["block/conv", "", "block/conv", ""]
    assert graph.source["producer"] == "maker 1.2" and graph.source["opset"] == 17 and graph.source["file"] == "net.bin"
    assert len(graph.source["sha256"]) == 64 and load(path).hash == graph.hash


def test_scales_keep_their_bits_and_stand_on_the_tensors() -> None:
    scale = np.array(0.1, F)
    odd = np.frombuffer(
        np.array([0x3DCCCCCE, 0x3DCCCCCF, 0x3DCCCCD0, 1], np.uint32).tobytes(), F
    )  # neighbors of 0.1, and a denormal
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
             helper.make_node("DequantizeLinear", ["w", "ws"], ["dw"], axis=0), helper.make_node("DequantizeLinear", ["b", "bs"], ["db"], axis=0),
             helper.make_node("Conv", ["d", "dw", "db"], ["y"])]  # fmt: skip
    constants = {"s": scale, "z": np.array(7, np.uint8), "w": RNG.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8), "ws": odd,
                 "b": np.arange(4, dtype=np.int32), "bs": odd * F(0.1)}  # fmt: skip
    graph = read(model_of(nodes, {"x": data(1, 3, 8, 8)}, constants, ["y"]))
    assert [node.op for node in graph] == [
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
    ]
    assert graph.nodes[0].attributes["output_dtype"] == "uint8"
    q, w, b = (graph.tensors[name].quantization for name in ("q", "w", "b"))
    assert q is not None and w is not None and b is not None
    assert (q.dtype, q.granularity, q.axis) == ("uint8", "tensor", None) and int(q.zero_points()) == 7
    assert (w.dtype, w.granularity, w.axis, w.symmetric) == ("int8", "channel", 0, True) and b.dtype == "int32"
    assert q.scales().tobytes() == scale.tobytes() and w.scales().tobytes() == odd.tobytes()
    assert graph.tensors["d"].quantization is None and graph.tensors["w"].dtype == "int8"


def packed(name: str, data_type: int, dims: list[int], raw: bytes) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, data_type=data_type, dims=dims, raw_data=raw)


def test_packed_weights_and_blocks() -> None:
    """Nibbles, low first: 0x21 0x87 is 1 2 7 -8; a blocked scale has the weight's rank."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    scale = np.array([[1, 2], [3, 4]], F)
    model = model_of(nodes, {"x": np.eye(4, dtype=F)}, {"s": scale}, ["y"], opset=21)
    model.graph.initializer.append(packed("w", TensorProto.INT4, [4, 2], bytes([0x21, 0x87, 0xF0, 0x0F])))
    graph = read(model)
    weight = graph.tensors["w"]
    np.testing.assert_array_equal(weight.data, [[1, 2], [7, -8], [0, -1], [-1, 0]])
    assert weight.dtype == "int4" and weight.data.dtype == np.int8 and weight.bytes == 4
    how = weight.quantization
    assert how is not None and (how.dtype, how.granularity, how.axis, how.block, how.storage) == (
        "int4",
        "group",
        0,
        2,
        "packed",
    )
    found = evaluate(graph, {"x": np.eye(4, dtype=F)})["y"]
    np.testing.assert_array_equal(found, [[1, 4], [7, -16], [0, -4], [-3, 0]])


def test_unpacking_odd_counts() -> None:
    np.testing.assert_array_equal(unpack(np.array([0x98, 0x07], np.uint8), "int4", 3), [-8, -7, 7])
    np.testing.assert_array_equal(unpack(np.array([0b11100100, 0b10], np.uint8), "uint2", 5), [0, 1, 2, 3, 2])
    np.testing.assert_array_equal(unpack(np.array([0b11100100], np.uint8), "int2", 4), [0, 1, -2, -1])


@pytest.mark.parametrize("code", sorted(DTYPES), ids=lambda code: DTYPES[code])
def test_every_element_type_reads_as_onnx_reads_it(code: int) -> None:
    """Raw data and typed fields, against onnx.numpy_helper."""
    if DTYPES[code] == "string":
        tensor = helper.make_tensor("t", code, [2], [b"a", b"\xc3\xa9"])
        assert array_of(tensor, "t", Budget())[1].tolist() == ["a", "é"]
        return
    values = [0, 1, 1, 0, 1, 0, 1] if DTYPES[code] in {"bool", "uint2", "uint4", "uint8"} else [0, 1, -1, 0.5, 1, -1, 1]
    values = (
        [abs(value) for value in values] if DTYPES[code].startswith("u") or DTYPES[code] == "float8e8m0" else values
    )
    for raw in (False, True):
        kind = helper.tensor_dtype_to_np_dtype(code)
        array = np.array(values).astype(kind)
        tensor = (
            numpy_helper.from_array(array, "t")
            if raw
            else helper.make_tensor("t", code, [7], array.astype(F) if kind.kind == "V" else array)
        )
        dtype, found = array_of(tensor, "t", Budget())
        assert dtype == DTYPES[code] and found.shape == (7,)
        np.testing.assert_array_equal(found.astype(F), array.astype(F))


def test_initializers_that_repeat_as_inputs_are_constants() -> None:
    model = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])], {"x": data(2, 3), "w": data(3)}, {"w": data(3)}, ["y"]
    )
    graph = read(model)
    assert graph.inputs == ("x",) and graph.constant("w") is not None


def test_constants_of_every_form() -> None:
    forms: list[tuple[dict[str, Any], Any]] = [({"value_float": 1.5}, F(1.5)), ({"value_floats": [1.0, 2.0]}, np.array([1, 2], F)), ({"value_int": 3}, np.int64(3)),
                                               ({"value_ints": [3, 4]}, np.array([3, 4])), ({"value": numpy_helper.from_array(np.ones((2, 2), np.int8))}, np.ones((2, 2), np.int8))]  # fmt: skip
    for attributes, expected in forms:
        model = model_of([helper.make_node("Constant", [], ["y"], **attributes)], {}, {}, ["y"])
        found = evaluate(read(model), {})["y"]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_optional_operands_may_be_absent() -> None:
    model = model_of(
        [helper.make_node("Clip", ["x", "", "high"], ["y"])], {"x": data(50)}, {"high": np.array(0.5, F)}, ["y"]
    )
    x = data(50)
    np.testing.assert_array_equal(evaluate(read(model), {"x": x})["y"], np.minimum(x, F(0.5)))
    pool = model_of([helper.make_node("MaxPool", ["x"], ["y", ""], kernel_shape=[2])], {"x": data(1, 1, 4)}, {}, ["y"])
    assert evaluate(read(pool), {"x": np.arange(4, dtype=F).reshape(1, 1, 4)})["y"].tolist() == [[[1, 2, 3]]]


def test_functions_are_written_out() -> None:
    inner = helper.make_function("own", "Scaled", ["a"], ["r"], [helper.make_node("LeakyRelu", ["a"], ["t"]), helper.make_node("Add", ["t", "t"], ["r"])],
                                 [helper.make_opsetid("", 17)], ["slope"])  # fmt: skip
    reference = inner.node[0].attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "alpha", "slope", onnx.AttributeProto.FLOAT
    outer = helper.make_function("own", "Twice", ["a"], ["r"], [helper.make_node("Scaled", ["a"], ["t"], domain="own", slope=0.5),
                                                             helper.make_node("Scaled", ["t"], ["r"], domain="own", slope=0.25)],
                                 [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)])  # fmt: skip
    model = model_of(
        [
            helper.make_node("Twice", ["x"], ["t"], "first", domain="own"),
            helper.make_node("Twice", ["t"], ["y"], domain="own"),
        ],
        {"x": data(4)},
        {},
        ["y"],
    )
    model.functions.extend([inner, outer])
    model.opset_import.append(helper.make_opsetid("own", 1))
    graph = read(model)
    assert [node.op for node in graph] == ["LeakyRelu", "Add"] * 4 and graph.nodes[0].name.startswith("first/")
    x = np.array([-1, 2, -3, 4], F)
    once = (
        np.where(
            np.where(x < 0, x * 0.5, x) * 2 < 0, np.where(x < 0, x * 0.5, x) * 2 * 0.25, np.where(x < 0, x * 0.5, x) * 2
        )
        * 2
    )
    twice = np.where(once < 0, once * 0.5, once) * 2
    np.testing.assert_array_equal(evaluate(graph, {"x": x})["y"], np.where(twice < 0, twice * 0.25, twice) * 2)
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], run_onnxruntime(model, {"x": x})[0])


def test_a_function_may_shadow_an_operator() -> None:
    """A model's own `Relu` in its own domain is not ONNX's."""
    mine = helper.make_function(
        "own", "Relu", ["a"], ["r"], [helper.make_node("Neg", ["a"], ["r"])], [helper.make_opsetid("", 17)]
    )
    model = model_of([helper.make_node("Relu", ["x"], ["y"], domain="own")], {"x": data(4)}, {}, ["y"])
    model.functions.append(mine)
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert [node.op for node in read(model)] == ["Neg"]


def test_layer_normalization_of_opset_13_runs_as_its_parts() -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1]), helper.make_node("Sub", ["x", "m"], ["c"]), helper.make_node("Pow", ["c", "two"], ["p"]),
             helper.make_node("ReduceMean", ["p"], ["v"], axes=[-1]), helper.make_node("Add", ["v", "e"], ["a"]), helper.make_node("Sqrt", ["a"], ["r"]),
             helper.make_node("Div", ["c", "r"], ["n"]), helper.make_node("Mul", ["n", "g"], ["w"]), helper.make_node("Add", ["w", "b"], ["y"])]  # fmt: skip
    x, gamma, beta = data(4, 7, 16), data(16), data(16)
    model = model_of(
        nodes,
        {"x": x},
        {"two": np.array(2, F), "e": np.array(1e-5, F), "g": gamma, "b": beta},
        ["y"],
        opset=13,
        dynamic=True,
    )
    found = evaluate(read(model), {"x": x})["y"]
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * gamma + beta
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_open_dimensions_are_named() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": data(2, 3)}, {}, ["y"])
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[0].ClearField("dim_value")
    shape.dim[1].dim_value = -1
    assert read(model).tensors["y"].shape == ("x.0", "x.1")
    shape.dim[0].dim_param, shape.dim[1].dim_param = "batch", "7"
    assert read(model).tensors["y"].shape == ("batch", "dim_7")
    assert read(model, shapes={"x": (4, 5)}).tensors["y"].shape == (4, 5)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    graph = read(model)
    assert not graph.tensors["x"].known_shape and not graph.tensors["y"].known_shape
    assert evaluate(graph, {"x": np.ones((2, 1), F)})["y"].shape == (2, 1)


def test_opset_range() -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in (7, newest):
        assert (
            len(read(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": data(2)}, {}, ["y"], opset=opset))) == 1
        )
    for opset in (6, newest + 1):
        with pytest.raises(Error, match=f"7 to {newest}"):
            read(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": data(2)}, {}, ["y"], opset=opset))


@pytest.mark.parametrize("opset", [11, 12])
def test_older_opsets_mean_what_they_meant(opset: int) -> None:
    """Axes and parts as attributes, rows of Softmax from axis 1, a ratio of Dropout: as onnxruntime reads them."""
    ratio = {"ratio": 0.5} if opset == 11 else {}
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, split=[1, 3]),
        helper.make_node("ReduceSum", ["b"], ["c"], axes=[1], keepdims=0),
        helper.make_node("Unsqueeze", ["c"], ["d"], axes=[1, 3]),
        helper.make_node("Squeeze", ["d"], ["e"], axes=[3]),
        helper.make_node("Softmax", ["e"], ["f"], axis=2),
        helper.make_node("Squeeze", ["a"], ["g"]),
        helper.make_node("Softmax", ["g"], ["h"]),
        helper.make_node("Dropout", ["h"], ["i"], **ratio),
        helper.make_node("Concat", ["f", "j"], ["y"], axis=1),
        helper.make_node("Unsqueeze", ["i"], ["j"], axes=[1]),
    ]
    nodes[-2:] = nodes[:-3:-1]
    x = np.random.default_rng(opset).integers(-8, 8, (3, 4, 5)).astype(F)
    model = model_of(nodes, {"x": x}, {}, ["y"], opset=opset)
    graph = read(model)
    assert graph.source["opset"] == 13
    # onnxruntime's softmax is an ulp or two off the exact one.
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], run_onnxruntime(model, {"x": x})[0], rtol=1e-6)
    wide = helper.make_node("Softmax", ["x"], ["y"])
    with pytest.raises(Error, match="several axes"):
        read(model_of([wide], {"x": x}, {}, ["y"], opset=opset))


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_oldest_opsets_mean_what_they_meant(opset: int) -> None:
    """Bounds, pads, slices and scales as attributes; images that grow from the corner: the bits of onnxruntime."""
    shape = (2, 3, 4, 6)
    held = {
        "ten": np.array([1, 1, 2, 1.5], F),
        "k": np.array([2]),
        "s": np.array([1]),
        "e": np.array([9]),
        "a": np.array([-1]),
    }
    grown = helper.make_node("Upsample", ["c"], ["u"], mode="linear", scales=[1.0, 1.0, 2.0, 1.5])
    top = helper.make_node("TopK", ["u"], ["t", "places"], k=2, axis=1)
    cut = helper.make_node("Slice", ["t"], ["v"], starts=[1], ends=[9], axes=[3])
    if opset >= 9:
        grown = helper.make_node("Upsample" if opset == 9 else "Resize", ["c", "ten"], ["u"], mode="nearest")
    if opset >= 10:
        top = helper.make_node("TopK", ["u", "k"], ["t", "places"], axis=1)
        cut = helper.make_node("Slice", ["t", "s", "e", "a"], ["v"])
    nodes = [
        helper.make_node("Pad", ["x"], ["p"], pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.5),
        helper.make_node("Pad", ["p"], ["q"], mode="reflect", pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        helper.make_node("Clip", ["q"], ["b"], max=1.25),
        helper.make_node("Clip", ["b"], ["c"], min=-0.75),
        grown,
        top,
        cut,
        helper.make_node("Clip", ["v"], ["w"], min=-0.5, max=0.875),
        helper.make_node("Dropout", ["w"], ["y"], ratio=0.25),
        helper.make_node("Identity", ["places"], ["z"]),
    ]
    x = np.random.default_rng(opset).standard_normal(shape).astype(F)
    used = {name: held[name] for node in nodes for name in node.input if name in held}
    model = model_of(nodes, {"x": x}, used, ["y", "z"], opset=opset)
    found = evaluate(read(model), {"x": x})
    for ours, theirs in zip((found["y"], found["z"]), run_onnxruntime(model, {"x": x}), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("shape", "axis"), [((5, 6), 1), ((3, 5, 1, 1), 1), ((2, 3, 4), -1), ((1, 7, 1), 1)])
def test_onnxruntimes_own_softmax_follows_the_opset_that_it_states(shape: tuple[int, ...], axis: int) -> None:
    pytest.importorskip("onnxruntime", reason="the oracle")
    constants = {
        "s": np.array(0.1, F),
        "z": np.array(3, np.uint8),
        "r": np.array(1 / 256, F),
        "o": np.array(0, np.uint8),
    }
    node = helper.make_node(
        "QLinearSoftmax", ["x", *constants], ["y"], "rows", domain="com.microsoft", axis=axis, opset=11
    )
    x = RNG.integers(0, 256, shape).astype(np.uint8)
    model = model_of([node], {"x": x}, constants, ["y"])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    np.testing.assert_array_equal(execute(read(model), {"x": x}, "ort"), run_onnxruntime(model, {"x": x})[0])
    node.attribute[0].i = 0
    with pytest.raises(Error, match="several axes"):
        read(model_of([node], {"x": np.zeros((3, 4, 5), np.uint8)}, constants, ["y"]))


def test_unsupported_operators_are_named_with_type_and_domain() -> None:
    nodes = [
        helper.make_node("Fancy", ["x"], ["a"], "the one", domain="com.example"),
        helper.make_node("Fancier", ["a"], ["y"], domain="com.example"),
    ]
    with pytest.raises(Error) as caught:
        read(model_of(nodes, {"x": data(2)}, {}, ["y"]), file="some.onnx")
    assert all(word in str(caught.value) for word in ("some.onnx", "the one", "Fancy", "com.example", "Fancier"))


def test_graphs_survive_saving(tmp_path: Path) -> None:
    path = ROOT / "hwq" / "demo" / "digits.onnx"
    if not path.exists():
        pytest.skip("the demo model is not here")
    graph = load(path)
    graph.save(tmp_path / "graph.npz")
    again = load(tmp_path / "graph.npz")
    assert (
        isinstance(again, Graph)
        and again.hash == graph.hash
        and again.to_text() == graph.to_text()
        and again.source == graph.source
    )


def test_zoo_names_load() -> None:
    graph = load("zoo:resnet18", weights=False)
    assert graph.tensors[graph.inputs[0]].shape[0] == "N"
    assert load("zoo:resnet18", {graph.inputs[0]: (2, 3, 224, 224)}, weights=False).tensors[graph.outputs[0]].shape == (
        2,
        1000,
    )
    with pytest.raises(Error, match="nothing-like-it"):
        load("zoo:nothing-like-it")
