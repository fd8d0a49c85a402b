"""One stored tensor that operators take in several scales, and tables of a byte over many scales: onnxruntime's bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import hwq
from hwq.importers.onnx import read

onnxruntime = pytest.importorskip("onnxruntime")
OWN = "com.microsoft"
X = np.arange(0, 256, 3).astype(np.uint8)


def model(nodes: list[onnx.NodeProto], held: dict[str, Any], outputs: list[str], x: np.ndarray) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in held.items() if name in used],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(OWN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def differing(made: onnx.ModelProto, outputs: list[str], x: np.ndarray, dialect: str) -> int:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found = hwq.execute(read(made), x, dialect=dialect)
    ours = found if isinstance(found, dict) else {outputs[0]: found}
    return sum(
        int(np.count_nonzero(ours[name] != value))
        for name, value in zip(outputs, session.run(outputs, {"x": x}), strict=True)
    )


HELD = {"a": np.float32(0.1), "b": np.float32(0.2), "c": np.float32(0.05), "z": np.uint8(10), "w": np.uint8(20)}


def leaky(x: str, scale: str, zero: str, y: str) -> onnx.NodeProto:
    return helper.make_node("QLinearLeakyRelu", [x, scale, zero, "c", "z"], [y], domain=OWN, alpha=0.1)


CASES = {
    "an input": ([leaky("x", "a", "z", "y"), leaky("x", "b", "w", "v")], ["y", "v"]),
    "what another made": ([leaky("x", "a", "z", "m"), leaky("m", "b", "w", "y")], ["y"]),
    "what a Q made": ([helper.make_node("DequantizeLinear", ["x", "a", "z"], ["f"]),
                       helper.make_node("QuantizeLinear", ["f", "c", "z"], ["q"]), leaky("q", "b", "w", "y")], ["y"]),
    "two operands": ([helper.make_node("QLinearAdd", ["x", "a", "z", "x", "b", "w", "c", "z"], ["y"], domain=OWN)], ["y"]),
    "moved twice": ([helper.make_node("Transpose", ["x"], ["s"]), helper.make_node("Transpose", ["x"], ["t"]),
                     leaky("s", "a", "z", "y"), leaky("t", "b", "w", "v")], ["y", "v"]),
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["ort", "ort-unfused", "onnx"])
@pytest.mark.parametrize("case", CASES)
def test_in_several_scales(case: str, dialect: str) -> None:
    nodes, outputs = CASES[case]
    assert differing(model(nodes, HELD, outputs, X), outputs, X, dialect) == 0


@pytest.mark.parametrize(("op", "attributes"), [("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.137})])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_tables_of_many_scales(op: str, attributes: dict[str, Any], dtype: str) -> None:
    """A table has 256 entries a pair of scales, so ties show over many scales and not over many values of one."""
    rng, count = np.random.default_rng(5), 800
    info = np.iinfo(dtype)
    x = np.arange(info.min, info.max + 1).astype(dtype)
    held: dict[str, Any] = {}
    nodes = []
    for index in range(count):
        names = [f"{part}{index}" for part in ("sx", "zx", "sy", "zy")]
        made = rng.uniform(0.003, 0.005) if op == "QLinearSigmoid" else 10 ** rng.uniform(-3, -0.7)
        values = (np.float32(10 ** rng.uniform(-3, -0.7)), rng.choice(x), np.float32(made), rng.choice(x))
        held.update(zip(names, values, strict=True))
        nodes.append(helper.make_node(op, ["x", *names], [f"y{index}"], domain=OWN, **attributes))
    outputs = [f"y{index}" for index in range(count)]
    assert differing(model(nodes, held, outputs, x), outputs, x, "ort") == 0
