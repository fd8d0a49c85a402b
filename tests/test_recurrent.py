"""LSTM, GRU and RNN against onnxruntime, at a stated rate; integer LSTM likewise; control flow refused; huge models mapped."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hwq
from hwq.errors import Error
from hwq.importers.onnx import read
from hwq.plan import Plan

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def one_node(
    op: str,
    feeds: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
    outputs: int,
    domain: str = "",
    order=None,
    **attributes,
):  # type: ignore[no-untyped-def]
    names = order or [*feeds, *constants]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ],
        [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)],
        initializer=[numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def by_onnxruntime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, feeds
    )


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_float_recurrence_is_onnxruntimes_within_rounding(op: str, direction: str) -> None:
    rng = np.random.default_rng(0)
    time, batch, width, size = 9, 4, 5, 7
    count, gates = 2 if direction == "bidirectional" else 1, GATES[op]
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    feeds = {"x": draw(time, batch, width)}
    lengths = np.array([9, 3, 0, 5], np.int32) if op != "RNN" else np.full(4, 9, np.int32)
    constants = {"w": draw(count, gates * size, width), "r": draw(count, gates * size, size), "b": draw(count, 2 * gates * size),
                 "lengths": lengths, "h": draw(count, batch, size)}  # fmt: skip
    attributes = {"hidden_size": size, "direction": direction, "clip": 3.0}
    if op == "LSTM":
        constants |= {"c": draw(count, batch, size), "p": draw(count, 3 * size)}
    if op == "GRU":
        attributes["linear_before_reset"] = 1
    model = one_node(op, feeds, constants, 3 if op == "LSTM" else 2, **attributes)
    expected = by_onnxruntime(model, feeds)
    found = hwq.execute(read(model), feeds)
    for theirs, ours in zip(expected, found.values(), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["LSTM", "DynamicQuantizeLSTM int8", "DynamicQuantizeLSTM uint8"])
def test_lstm_has_onnxruntimes_bits(name: str) -> None:
    """Peepholes, clips, lengths, coupled gates and both directions; integer weights over all 8 bits, whatever the CPU."""
    from hwq.verification.onnx_dialects import drawn, onnxruntime_outputs
    from hwq.verification.onnx_models import CASES

    for index in range(12):
        model, feeds = drawn(name, CASES[name], index)
        theirs = onnxruntime_outputs(model, feeds, "ort")
        ours = hwq.execute(read(model), feeds, "ort")
        assert ours.dtype == theirs.dtype and np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_lstm_of_16_bit_floats_computes_in_float32(half: str) -> None:
    """onnxruntime casts around the operator, which it has in float32 alone."""
    rng = np.random.default_rng(4)
    feeds = {"x": rng.standard_normal((5, 3, 6)).astype(np.float32)}
    constants = {name: rng.standard_normal((1, *shape)).astype(np.float32) * 0.4 for name, shape in (("w", (16, 6)), ("r", (16, 4)), ("b", (32,)))}  # fmt: skip
    graph = read(one_node("LSTM", feeds, constants, 3, hidden_size=4))
    types = {"weights": {"dtype": half}, "activations": {"dtype": half, "mode": "float"}}
    quantized = hwq.quantize(graph, Plan.model_validate({"schema": 1, "dialect": "hwq", "default": types}))
    ours = hwq.execute(quantized, feeds)
    kind = np.float16 if half == "float16" else ml_dtypes.bfloat16
    rounded = {name: value.astype(kind).astype(np.float32) for name, value in {**feeds, **constants}.items()}
    wide = read(one_node("LSTM", {"x": rounded.pop("x")}, rounded, 3, hidden_size=4))
    theirs = hwq.execute(wide, {"x": feeds["x"].astype(kind).astype(np.float32)})
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        assert np.array_equal(mine, other.astype(kind).astype(np.float32))


def test_both_products_of_an_integer_lstm_saturate_without_vnni() -> None:
    """One step from a state of ones: each weight's pair alone, then its proof."""
    from hwq.lowering import lower
    from hwq.overflow import prove

    big, small = np.full((1, 2, 8), 127, np.int8), np.full((1, 2, 8), 1, np.int8)
    feeds = {"x": np.ones((1, 1, 2), np.float32)}
    scale, zero = np.array([0.01], np.float32), np.array([0], np.int8)
    start = np.ones((1, 1, 2), np.float32)
    for w, r, unsafe in ((big, small, [True, False]), (small, big, [False, True]), (small, small, [False, False])):
        constants = {"w": w, "r": r, "h": start, "ws": scale, "wz": zero, "rs": scale.copy(), "rz": zero.copy()}
        order = ["x", "w", "r", "", "", "h", "", "", "ws", "wz", "rs", "rz"]
        graph = read(one_node("DynamicQuantizeLSTM", feeds, constants, 1, "com.microsoft", order, hidden_size=2))
        proofs = prove(lower(graph, "ort"))
        assert [proof.verdict == "saturates" for proof in proofs] == unsafe
        exact, saturated = (hwq.execute(graph, feeds, name) for name in ("ort", "ort-avx2-saturating"))
        assert np.any(exact != saturated) == any(unsafe)


def test_bad_recurrences() -> None:
    x, w, r = np.zeros((2, 1, 3), np.float32), np.zeros((1, 16, 3), np.float32), np.zeros((1, 16, 4), np.float32)
    cases = {
        "unknown": {"direction": "sideways"},
        "not supported": {"activations": ["Sigmoid", "Tanh", "Sinc"]},
        "activations are given": {"activations": ["Sigmoid"]},
    }
    for told, attributes in cases.items():
        with pytest.raises(Error, match=told):
            hwq.execute(read(one_node("LSTM", {"x": x}, {"w": w, "r": r}, 1, hidden_size=4, **attributes)), x)


@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_control_flow_is_refused_by_name(op: str) -> None:
    body = helper.make_graph([], "body", [], [])
    node = helper.make_node(
        op,
        ["x"],
        ["y"],
        name="branch",
        **({"then_branch": body, "else_branch": body} if op == "If" else {"body": body}),
    )
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.BOOL, [1])], [onnx.ValueInfoProto(name="y")]
    )
    with pytest.raises(Error, match=op) as caught:
        read(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert "branch" in str(caught.value)


def test_models_over_two_gigabytes_are_mapped(tmp_path: Path) -> None:
    """A table of 2.4 GB in a sparse file: nothing is read until a row is asked for."""
    rows, width = 600_000, 1000
    with (tmp_path / "table.bin").open("wb") as stream:
        stream.truncate(rows * width * 4)
        stream.seek((rows - 1) * width * 4)
        stream.write(np.arange(width, dtype=np.float32).tobytes())
    table = TensorProto(
        name="table", data_type=TensorProto.FLOAT, dims=[rows, width], data_location=TensorProto.EXTERNAL
    )
    table.external_data.add(key="location", value="table.bin")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])], "g", [helper.make_tensor_value_info("i", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, width])], initializer=[table])  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )
    loaded = hwq.load(tmp_path / "m.onnx")
    data = loaded.tensors["table"].data
    assert data is not None and data.nbytes > 2**31 and not data.flags.writeable
    found = hwq.execute(loaded, np.array([rows - 1, 5], np.int64))
    np.testing.assert_array_equal(found, np.stack([np.arange(width, dtype=np.float32), np.zeros(width, np.float32)]))
    table.external_data[0].value = "../table.bin"
    graph.initializer[0].CopyFrom(table)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "m.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    )
    with pytest.raises(Error, match="outside the model's folder"):
        hwq.load(tmp_path / "inner" / "m.onnx")


def test_a_sequence_that_would_run_for_minutes_is_refused() -> None:
    from hwq.ops.recurrent import MAX_STEPS

    steps = MAX_STEPS + 1
    zeros = [
        numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in (("w", (1, 4, 1)), ("r", (1, 4, 1)))
    ]
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=1)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, 1, 1])
    model = helper.make_model(helper.make_graph([node], "g", [x], [onnx.ValueInfoProto(name="y")], zeros))
    with pytest.raises(Error, match=f"{steps} steps is longer"):
        hwq.execute(read(model.SerializeToString()), np.zeros((steps, 1, 1), np.float32))
