"""Small float models for tests, built through onnx so that onnxruntime can run them too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwq.graph import Graph
from hwq.importers.onnx import read

SHARED = Path(os.environ.get("HWQ_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    constants: dict[str, Any],
    opset: int = 17,
    dtypes: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A model; constants become initializers, floats as float32."""
    dtypes = dtypes or {}
    values = {
        key: np.asarray(value, np.float32) if np.asarray(value).dtype.kind == "f" else np.asarray(value)
        for key, value in constants.items()
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, dtypes.get(name, TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, dtypes.get(name, TensorProto.FLOAT), shape)
            for name, shape in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8 if opset < 21 else 10
    return made


def cnn(seed: int = 0) -> onnx.ModelProto:
    """Convolution and clamp, depthwise, a residual sum, pools, a dense layer, softmax: every shape of placement."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.normal(size=(8, 3, 3, 3)) * 0.3,
        "b1": random.normal(size=8) * 0.1,
        "w2": random.normal(size=(8, 1, 3, 3)) * 0.4,
        "b2": random.normal(size=8) * 0.1,
        "w3": random.normal(size=(8, 8, 1, 1)) * 0.4,
        "low": np.float32(0.0),
        "high": np.float32(6.0),
        "w4": random.normal(size=(5, 8)) * 0.5,
        "b4": random.normal(size=5) * 0.1,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "depthwise", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Clip", ["c2", "low", "high"], ["r2"], "relu6"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "pointwise"),
        helper.make_node("Add", ["c3", "r1"], ["a1"], "residual"),
        helper.make_node("Relu", ["a1"], ["r3"], "relu3"),
        helper.make_node("MaxPool", ["r3"], ["p1"], "maxpool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p1"], ["g1"], "gap"),
        helper.make_node("Flatten", ["g1"], ["f1"], "flatten"),
        helper.make_node("Gemm", ["f1", "w4", "b4"], ["l1"], "dense", transB=1),
        helper.make_node("Softmax", ["l1"], ["y"], "softmax", axis=-1),
    ]
    return model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 5]}, weights)


def attention(seed: int = 0) -> onnx.ModelProto:
    """A layer norm, two heads of attention and a sum: products of activations, and values that only move between them."""
    random = np.random.default_rng(seed)
    weights = {
        "one": np.ones(16), "zero": np.zeros(16), "wq": random.normal(size=(16, 48)) * 0.3, "wo": random.normal(size=(16, 16)) * 0.3,
        "parts": np.array([16, 16, 16]), "heads": np.array([0, 0, 2, 8]), "joined": np.array([0, 0, 16]), "root": np.float32(8**-0.5),
    }  # fmt: skip
    nodes = [helper.make_node("LayerNormalization", ["x", "one", "zero"], ["n"], "norm"),
             helper.make_node("MatMul", ["n", "wq"], ["qkv"], "project"),
             helper.make_node("Split", ["qkv", "parts"], ["q", "k", "v"], "split", axis=-1)]  # fmt: skip
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(helper.make_node("Reshape", [name, "heads"], [f"{name}h"], f"reshape_{name}"))
        nodes.append(helper.make_node("Transpose", [f"{name}h"], [f"{name}t"], f"turn_{name}", perm=perm))
    nodes += [
        helper.make_node("MatMul", ["qt", "kt"], ["s"], "scores"),
        helper.make_node("Mul", ["s", "root"], ["m"], "scale"),
        helper.make_node("Softmax", ["m"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "vt"], ["c"], "context"),
        helper.make_node("Transpose", ["c"], ["ct"], "back", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["ct", "joined"], ["cj"], "join"),
        helper.make_node("MatMul", ["cj", "wo"], ["o"], "output"),
        helper.make_node("Add", ["x", "o"], ["y"], "residual"),
    ]
    return model(nodes, {"x": ["N", 6, 16]}, {"y": ["N", 6, 16]}, weights)


def mlp(seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """Two products over rows with bias vectors, as transformers write dense layers."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.normal(size=(16, 24)),
        "b1": random.normal(size=24),
        "w2": random.normal(size=(24, 7)),
        "b2": random.normal(size=7),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"], "up"),
        helper.make_node("Add", ["m1", "b1"], ["a1"], "up_bias"),
        helper.make_node("Relu", ["a1"], ["r1"], "relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"], "down"),
        helper.make_node("Add", ["b2", "m2"], ["y"], "down_bias"),
    ]
    return model(nodes, {"x": ["N", 4, 16]}, {"y": ["N", 4, 7]}, weights, opset)


def hourglass(seed: int = 0) -> onnx.ModelProto:
    """Down by a convolution and up by a transposed one: blocks of their weights' input channels."""
    random = np.random.default_rng(seed)
    weights = {"w1": random.normal(size=(6, 8, 3, 3)) * 0.2, "w2": random.normal(size=(6, 4, 2, 2)) * 0.3}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], "down", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], "bend"),
        helper.make_node("ConvTranspose", ["r", "w2"], ["y"], "up", strides=[2, 2]),
    ]
    return model(nodes, {"x": ["N", 8, 6, 6]}, {"y": ["N", 4, 6, 6]}, weights)


def graph(proto: onnx.ModelProto) -> Graph:
    """The model as hwq reads it."""
    return read(proto.SerializeToString())


def images(count: int, seed: int = 1) -> np.ndarray:
    """Inputs of `cnn`."""
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def rows(count: int, seed: int = 1) -> np.ndarray:
    """Inputs of `mlp`."""
    return np.random.default_rng(seed).normal(size=(count, 4, 16)).astype(np.float32)


def session(source: str | bytes | Path, *, fused: bool = True, optimized: Path | None = None) -> Any:
    """onnxruntime on one thread with its exact integer kernels."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle here")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    given = source if isinstance(source, bytes) else str(source)
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def shared(*parts: str) -> Path:
    """A file of the shared evaluation material; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path.name} in HWQ_SHARED")
    return path
