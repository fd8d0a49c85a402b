"""Files whose operators say how values are stored, made by onnxruntime's own tools: run-time ranges, packed blocks, one pair a reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization as tool

import hwq
from hwq.encodings import encodings_of, encodings_of_graph
from hwq.errors import Error, NotSupportedYet
from hwq.graph import Graph
from hwq.importers.encodings import read_plan


def saved(proto: onnx.ModelProto, folder: Path) -> tuple[Path, Graph]:
    onnx.save(proto, folder / "float.onnx")
    return folder / "float.onnx", hwq.load(folder / "float.onnx")


class Reader(tool.CalibrationDataReader):
    def __init__(self, x: np.ndarray):
        self.rest = iter([{"x": x}])

    def get_next(self) -> Any:
        return next(self.rest, None)


def answer(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def scales(encodings: Any) -> dict[str, bytes]:
    return {one.tensor: one.scale.reshape(-1).tobytes() for one in encodings}


@pytest.mark.parametrize("per_channel", [False, True])
def test_ranges_at_run_time(per_channel: bool, tmp_path: Path) -> None:
    source, graph = saved(tiny.mlp(), tmp_path)
    made = tmp_path / "dynamic.onnx"
    tool.quantize_dynamic(source, made, weight_type=tool.QuantType.QInt8, per_channel=per_channel)
    plan = read_plan(made, graph).plan
    model = onnx.load(made)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    found = scales(encodings_of(plan))
    for weight in ("w1", "w2"):
        assert found[weight] == constants[f"{weight}_scale"].reshape(-1).tobytes()
    q = hwq.quantize(graph, plan)  # without a calibration
    x = tiny.rows(8)
    assert np.array_equal(hwq.execute(q, x), answer(made, x))
    hwq.export(q, tmp_path / "again.onnx")
    assert scales(encodings_of(read_plan(tmp_path / "again.onnx", graph).plan)) == found


def test_convolutions_with_ranges_at_run_time(tmp_path: Path) -> None:
    source, graph = saved(tiny.cnn(), tmp_path)
    made = tmp_path / "dynamic.onnx"
    tool.quantize_dynamic(source, made, weight_type=tool.QuantType.QUInt8)
    q = hwq.quantize(graph, read_plan(made, graph).plan)
    x = tiny.images(1)
    assert np.abs(hwq.execute(q, x) - answer(made, x)).max() < 1e-5


def test_ranges_a_row_come_back_from_the_file(tmp_path: Path) -> None:
    graph = tiny.graph(tiny.mlp())
    x = tiny.rows(8)
    for granularity, dtype, symmetric in (("row", "uint8", False), ("row", "int8", True), ("tensor", "int8", True)):
        how = {"dtype": dtype, "mode": "dynamic", "granularity": granularity, "symmetric": symmetric}
        default = {"weights": {"dtype": "int8"}, "activations": how}
        q = hwq.quantize(
            graph, hwq.Plan.model_validate({"dialect": "hwq", "default": default}), hwq.calibrate(graph, x)
        )
        hwq.export(q, tmp_path / "rows.onnx", overwrite=True)
        again = hwq.quantize(graph, read_plan(tmp_path / "rows.onnx", graph).plan)
        assert np.array_equal(hwq.execute(again, x), hwq.execute(q, x))


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (4, True), (8, False)])
def test_blocks_of_matmulnbits(bits: int, symmetric: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    _, graph = saved(tiny.mlp(), tmp_path)
    quantizer = MatMulNBitsQuantizer(tiny.mlp(), bits=bits, block_size=16, is_symmetric=symmetric)
    quantizer.process()
    made = tmp_path / "blocks.onnx"
    onnx.save(quantizer.model.model, made)
    plan = read_plan(made, graph).plan
    q = hwq.quantize(graph, plan)
    # The weights that onnxruntime unpacks: an identity matrix gives back each of them.
    for node in (one for one in quantizer.model.model.graph.node if one.op_type == "MatMulNBits"):
        weight = next(name for name in ("w1", "w2") if node.input[1].startswith(name))
        tensor = q.tensors[f"{weight}_quantized"]
        assert tensor.quantization is not None and tensor.data is not None
        k, n = tensor.shape
        graph_of_one = helper.make_graph(
            [node], "one", [helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [k, k])],
            [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [k, n])],
            [one for one in quantizer.model.model.graph.initializer if one.name in node.input],
        )  # fmt: skip
        alone = helper.make_model(
            graph_of_one, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        )
        alone.ir_version = 8
        session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
        theirs = session.run(None, {node.input[0]: np.eye(k, dtype=np.float32)})[0]
        steps, points = (np.repeat(part, 16, axis=0)[:k] for part in (tensor.quantization.scales(), tensor.quantization.zero_points()))  # fmt: skip
        ours = (tensor.data.astype(np.float32) - points) * steps
        # Another integer would be a whole step away; what is left is onnxruntime's order of (q - z) * s.
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


def test_one_pair_a_reader_is_one_storage(tmp_path: Path) -> None:
    source, graph = saved(tiny.cnn(), tmp_path)
    made, x = tmp_path / "pairs.onnx", tiny.images(8)
    tool.quantize_static(source, made, Reader(x), per_channel=True, weight_type=tool.QuantType.QInt8,
                         extra_options={"DedicatedQDQPair": True})  # fmt: skip
    plan = read_plan(made, graph).plan
    assert np.array_equal(hwq.execute(hwq.quantize(graph, plan), x), answer(made, x))


def test_integer_operators_that_swallowed_a_clamp(tmp_path: Path) -> None:
    source, graph = saved(tiny.cnn(), tmp_path)
    made, x = tmp_path / "operators.onnx", tiny.images(8)
    tool.quantize_static(source, made, Reader(x), quant_format=tool.QuantFormat.QOperator, per_channel=True,
                         weight_type=tool.QuantType.QInt8)  # fmt: skip
    found = read_plan(made, graph)
    assert not found.left_out
    q = hwq.quantize(graph, found.plan)  # every activation has its scale
    assert np.array_equal(hwq.execute(q, x), answer(made, x))
    given, kept = scales(encodings_of(found.plan)), scales(encodings_of_graph(q))
    assert all(kept[name] == given[name] for name in given)


def test_16_bit_activations_beside_16_bit_constants_have_a_dialect(tmp_path: Path) -> None:
    source, graph = saved(tiny.attention(), tmp_path)
    made, x = tmp_path / "wide.onnx", np.random.default_rng(0).normal(size=(4, 6, 16)).astype(np.float32)
    tool.quantize_static(source, made, Reader(x), activation_type=tool.QuantType.QInt16, weight_type=tool.QuantType.QInt16,
                         extra_options={"ActivationSymmetric": True})  # fmt: skip
    q = hwq.quantize(graph, read_plan(made, graph).plan)
    real = hwq.execute(graph, x)
    assert np.square(hwq.execute(q, x) - real).sum() < 1e-6 * np.square(real).sum()


def product(weights: dict[str, Any], attributes: dict[str, int]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("DequantizeLinear", [*weights], ["real"], "back", **attributes),
        helper.make_node("Gemm", ["x", "real"], ["y"], "product", transB=1),
    ]
    return tiny.model(nodes, {"x": ["N", 4]}, {"y": ["N", 6]}, weights, opset=21)


def test_what_a_plan_cannot_say_is_named(tmp_path: Path) -> None:
    stored = np.ones((6, 4), np.int8)
    across = product({"w": stored, "s": np.ones((3, 4), np.float32)}, {"axis": 0, "block_size": 2})
    nothing = product({"w": stored, "s": np.array([1, 1, 0, 1, 1, 1], np.float32)}, {"axis": 0})
    for proto, message in ((across, "blocks along axis 0"), (nothing, "scales of 0 or less")):
        onnx.save(proto, tmp_path / "q.onnx")
        with pytest.raises(NotSupportedYet, match=message):
            read_plan(tmp_path / "q.onnx")
    # A model that is damaged inside is no file of unknown kind.
    onnx.save(product({"w": stored, "s": np.ones((6, 1, 1), np.float32)}, {"axis": 0}), tmp_path / "bad.onnx")
    with pytest.raises(Error, match="does not fit") as caught:
        read_plan(tmp_path / "bad.onnx")
    assert "node back" in (caught.value.where or "")


def test_exports_of_ranges_at_run_time_say_what_is_in_the_way(tmp_path: Path) -> None:
    source, _ = saved(tiny.mlp(), tmp_path)
    tool.quantize_dynamic(source, tmp_path / "dynamic.onnx")
    model = hwq.load(tmp_path / "dynamic.onnx")
    with pytest.raises(NotSupportedYet, match="scales that are computed at run time"):
        hwq.export(model, tmp_path / "q.encodings", format="aimet")
    with pytest.raises(Error, match="nothing to write") as caught:
        hwq.export(model, tmp_path / "q.onnx", format="qoperator")
    assert "written already" in str(caught.value)
    with pytest.raises(Error, match="nothing to write") as caught:
        hwq.export(tiny.graph(tiny.mlp()), tmp_path / "q.onnx", format="qoperator")
    assert "not quantized" in str(caught.value)
