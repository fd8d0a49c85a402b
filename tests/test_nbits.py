"""Weight-only layers as onnxruntime's MatMulNBits: onnxruntime runs them, and reading the file gives the same plan and integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper

import hwq
from hwq.errors import Error
from hwq.graph import Graph, Node, Tensor

ort = pytest.importorskip("onnxruntime")
K, HIDDEN, N = 72, 48, 10  # no multiple of 32


def _graph() -> Graph:
    """MatMul + Add on three dimensions, then a Gemm of each orientation."""
    random = np.random.default_rng(2)
    constants = {"w0": random.normal(size=(K, HIDDEN)), "b0": random.normal(size=HIDDEN), "w1": random.normal(size=(HIDDEN, HIDDEN)),
                 "b1": random.normal(size=HIDDEN), "w2": random.normal(size=(HIDDEN, N)), "b2": random.normal(size=N)}  # fmt: skip
    nodes = [Node("MatMul", "first", ("x", "w0"), ("a",)), Node("Add", "plus", ("a", "b0"), ("b",)), Node("Relu", "relu", ("b",), ("c",)),
             Node("Gemm", "second", ("c", "w1", "b1"), ("d",), {"transB": 1}), Node("Gemm", "third", ("d", "w2", "b2"), ("y",))]  # fmt: skip
    tensors = [
        Tensor("x", shape=("M", K)),
        *(Tensor(name, shape=("M", HIDDEN)) for name in "abcd"),
        Tensor("y", shape=("M", N)),
    ]
    tensors += [Tensor(name, shape=value.shape, data=value.astype(np.float32)) for name, value in constants.items()]
    return Graph(nodes, tensors, ["x"], ["y"])


PLANS = {
    "int4 groups": {"weights": "int4", "granularity": 16},
    "int4 groups of 32, asymmetric": {"weights": "int4", "granularity": 32, "symmetric": False},
    "uint4 groups": {"weights": "uint4", "granularity": 32, "symmetric": False},
    "int4 channels": {"weights": "int4", "granularity": "channel"},
    "int8 groups": {"weights": "int8", "granularity": 32},
    "int8 tensor": {"weights": "int8", "granularity": "tensor"},
    "uint8 channels": {"weights": "uint8", "granularity": "channel", "symmetric": False},
}


@pytest.mark.parametrize("name", PLANS)
def test_onnxruntime_runs_the_file_and_reading_it_gives_the_graph_back(name: str, tmp_path: Path) -> None:
    plan = hwq.Plan.uniform(activations="float32", mode="float", dialect="hwq", **PLANS[name])  # type: ignore[arg-type]
    x = np.random.default_rng(1).normal(size=(9, K)).astype(np.float32)
    q = hwq.quantize(_graph(), plan, hwq.calibrate(_graph(), x))
    path = tmp_path / "nbits.onnx"
    hwq.export(q, path, target="onnxruntime")
    import onnx

    kinds = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert kinds.count("MatMulNBits") == 3 and "DequantizeLinear" not in kinds
    made = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    ours = hwq.execute(q, x)
    # Sums of 72 and 48 products in other orders: K ulps of the largest term bound them; measured below 4 ulps of the output's largest.
    assert np.abs(made - ours).max() <= 16 * np.spacing(np.abs(ours).max())
    again = hwq.load(str(path))
    assert again.dialect == "hwq" and [node.op for node in again.nodes] == [node.op for node in q.nodes]
    for tensor in q.tensors.values():
        if tensor.data is not None:
            other = again.tensors[tensor.name].data
            assert other is not None and other.dtype == tensor.data.dtype and np.array_equal(other, tensor.data), (
                tensor.name
            )
    assert hwq.Plan.of(again) == hwq.Plan.of(q)
    assert np.array_equal(hwq.execute(again, x), ours)
    # Read as any other file, the operator computes the same numbers.
    plain = onnx.load(str(path))
    plain.producer_name = "someone"
    (tmp_path / "plain.onnx").write_bytes(plain.SerializeToString())
    other = hwq.load(str(tmp_path / "plain.onnx"))
    assert [node.op for node in other.nodes].count("MatMulNBits") == 3
    assert np.abs(hwq.execute(other, x) - ours).max() <= 16 * np.spacing(np.abs(ours).max())


def test_a_note_that_does_not_fit_leaves_the_operator(tmp_path: Path) -> None:
    import onnx

    plan = hwq.Plan.uniform("int4", "float32", granularity=16, mode="float", dialect="hwq")
    x = np.random.default_rng(1).normal(size=(3, K)).astype(np.float32)
    q = hwq.quantize(_graph(), plan, hwq.calibrate(_graph(), x))
    hwq.export(q, tmp_path / "a.onnx", target="onnxruntime")
    for index, text in enumerate(["[", "[]", '{"first": 3}', '{"first": {"dtype": "int4"}}', '{"first": {"dtype": "int4", "k": 1, "n": 1, "size": 0, "block": null, "op": "MatMul", "names": []}}']):  # fmt: skip
        model = onnx.load(str(tmp_path / "a.onnx"))
        next(entry for entry in model.metadata_props if entry.key == "hwq.matmulnbits").value = text
        path = tmp_path / f"{index}.onnx"
        path.write_bytes(model.SerializeToString())
        ours = hwq.execute(q, x)
        assert np.abs(hwq.execute(hwq.load(str(path)), x) - ours).max() <= 16 * np.spacing(np.abs(ours).max())


def test_what_it_cannot_hold_is_refused_with_the_reason(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(3, K)).astype(np.float32)
    cal = hwq.calibrate(_graph(), x)
    odd = hwq.quantize(_graph(), hwq.Plan.uniform("int4", "float32", granularity=24, mode="float", dialect="hwq"), cal)
    with pytest.raises(Error, match="no layer of this graph") as caught:
        hwq.export(odd, tmp_path / "a.onnx", target="onnxruntime")
    assert "groups of 24" in str(caught.value)
    static = hwq.quantize(_graph(), hwq.Plan.uniform("int8", "uint8", dialect="ort"), cal)
    with pytest.raises(Error, match="multiplies floats"):
        hwq.export(static, tmp_path / "a.onnx", target="onnxruntime")
    with pytest.raises(Error, match="weight-only"):
        hwq.export(static, tmp_path / "a.onnx", format="qoperator", target="onnxruntime")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("attributes", "shapes", "words"),
    [
        ({"block_size": 8}, {"b": (4, 4, 4), "s": (4, 4)}, "power of two, 16 or more"),
        ({"block_size": 24}, {"b": (4, 2, 12), "s": (4, 2)}, "power of two, 16 or more"),
        ({"block_size": 16}, {"b": (4, 2, 7), "s": (4, 2)}, "weights of shape"),
        ({"block_size": 16}, {"b": (4, 2, 8), "s": (4, 3)}, "scales of shape"),
        ({"block_size": 16}, {"b": (4, 2, 8), "s": (4, 2), "z": (4, 2)}, "zero points of shape"),
    ],
)
def test_operands_that_hold_no_blocks_are_refused_as_onnxruntime_refuses_them(attributes, shapes, words) -> None:
    constants = {name: np.zeros(shape, np.float32 if name == "s" else np.uint8) for name, shape in shapes.items()}
    node = helper.make_node(
        "MatMulNBits", ["x", *constants], ["y"], "product", domain="com.microsoft", K=32, N=4, bits=4, **attributes
    )
    model = tiny.model([node], {"x": ["M", 32]}, {"y": ["M", 4]}, constants)
    with pytest.raises(Error, match=words):
        hwq.execute(tiny.graph(model), np.ones((2, 32), np.float32))
    with pytest.raises(Exception, match=r"MatMulNBits|shape|block"):
        ort.InferenceSession(model.SerializeToString()).run(None, {"x": np.ones((2, 32), np.float32)})
