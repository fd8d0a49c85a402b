"""QDQ models for tests, node by node, and what onnxruntime makes of them."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwq.graph import Graph
from hwq.importers.onnx import read

Array = NDArray[Any]
STORED = {
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int64): TensorProto.INT64,
}


class Builder:
    """Nodes one after the other; every method returns the name of the value that it makes."""

    def __init__(self, seed: int = 0, opset: int = 17):
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.count = 0

    def name(self, base: str) -> str:
        self.count += 1
        return f"{base}{self.count}"

    def constant(self, value: Any) -> str:
        name = self.name("c")
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def input(self, shape: list[Any], dtype: int = TensorProto.FLOAT) -> str:
        name = self.name("x")
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(op, *inputs, count=1, **attributes)[0]

    def ops(self, op: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        names = [self.name(op.lower()) for _ in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=self.name("n_"), **attributes))
        return names

    def quantize(self, x: str, scale: float, zero: int, dtype: Any = np.uint8) -> str:
        return self.op("QuantizeLinear", x, self.constant(np.float32(scale)), self.constant(np.array(zero, dtype)))

    def dequantize(self, x: str, scale: Any, zero: Any, dtype: Any = np.uint8, **attributes: Any) -> str:
        scales, zeros = self.constant(np.asarray(scale, np.float32)), self.constant(np.asarray(zero, dtype))
        return self.op("DequantizeLinear", x, scales, zeros, **attributes)

    def pair(self, x: str, scale: float, zero: int, dtype: Any = np.uint8) -> str:
        return self.dequantize(self.quantize(x, scale, zero, dtype), scale, zero, dtype)

    def weight(self, shape: tuple[int, ...], dtype: Any = np.int8, axis: int | None = None) -> tuple[str, Array]:
        """(dequantized weight, scales); values over the whole range."""
        info = np.iinfo(dtype)
        stored = self.constant(self.random.integers(info.min, info.max + 1, shape, dtype=dtype))
        zero = 0 if dtype == np.int8 else 128
        if axis is None:
            return self.dequantize(stored, 0.02, zero, dtype), np.float32(0.02)
        scales = (self.random.random(shape[axis], dtype=np.float32) * 0.02 + 0.005).astype(np.float32)
        return self.dequantize(stored, scales, np.full(shape[axis], zero), dtype, axis=axis), scales

    def bias(self, count: int, scale: Any, kind: str = "int32") -> str:
        """A bias at the accumulators' scale, as int32 behind a DQ or as float."""
        stored = self.random.integers(-4000, 4000, count).astype(np.int32)
        scales = np.asarray(scale, np.float32)
        if kind == "float32":
            return self.constant((stored * np.broadcast_to(scales, (count,)) * np.float32(1.0003)).astype(np.float32))
        attributes = {"axis": 0} if scales.ndim else {}
        return self.dequantize(self.constant(stored), scales, np.zeros(scales.shape), np.int32, **attributes)

    def conv(self, x: str, channels: int = 4, filters: int = 4, kernel: int = 3, scale: float = 0.05, dtype: Any = np.int8,
             bias: str | None = "int32", axis: int | None = 0, group: int = 1) -> str:  # fmt: skip
        weight, scales = self.weight((filters, channels // group, kernel, kernel), dtype, axis)
        extra = [] if bias is None else [self.bias(filters, np.float32(scale) * scales, bias)]
        return self.op("Conv", x, weight, *extra, pads=[kernel // 2] * 4, group=group)

    def image(self, zero: int = 128, dtype: Any = np.uint8, scale: float = 0.05, channels: int = 4) -> str:
        return self.pair(self.input(["N", channels, 8, 8]), scale, zero, dtype)

    def matrix(self, width: int = 16, zero: int = 128, dtype: Any = np.uint8) -> str:
        return self.pair(self.input(["N", width]), 0.05, zero, dtype)

    def output(self, *names: str) -> None:
        for name in names:
            self.outputs.append(onnx.ValueInfoProto(name=name))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(made)


def graph_of(model: onnx.ModelProto) -> Graph:
    return read(model.SerializeToString())


def session(
    model: onnx.ModelProto | bytes | str, dialect: str = "ort", write: Path | None = None, precision: str = "1"
) -> Any:
    """onnxruntime as the dialect means it: all optimizations or none, exact kernels, one thread."""
    import onnxruntime

    logging.disable(logging.WARNING)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", precision)
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if dialect == "ort" else levels.ORT_DISABLE_ALL
    if write is not None:
        # The extended level holds every rule of the lowering; the last level only changes layouts.
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(write)
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that onnxruntime runs instead of `model`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, write=path)
        return onnx.load(path)


# Operators that work on stored numbers as they are. Reshape is left out: onnxruntime also joins chains of them.
MOVERS = {"Flatten", "Transpose", "Slice", "Gather", "Tile", "Squeeze", "Unsqueeze", "MaxPool", "ReduceMax", "Resize",
          "Split", "ArgMax"}  # fmt: skip


def groups_of_onnxruntime(model: onnx.ModelProto) -> Counter[str]:
    """How often each fused operator, Q, DQ (of computed values) and mover stands in onnxruntime's graph."""
    made = optimized(model)
    stored = {one.name for one in made.graph.initializer if one.data_type in STORED.values()}
    stored |= {one.name for one in made.graph.input if one.type.tensor_type.elem_type in STORED.values()}
    constants = {one.name for one in made.graph.initializer}
    found: Counter[str] = Counter()
    for node in made.graph.node:
        op = node.op_type
        if op == "QuantizeLinear" or op.startswith("QLinear") or (op == "QGemm" and len(node.input) > 7):
            stored.update(node.output)
        if op in MOVERS | {"Reshape"} and node.input[0] in stored:
            stored.update(node.output)
            found[f"{op} of integers"] += op != "Reshape"
        elif op.startswith("QLinear") or op in {"QGemm", "MatMulIntegerToFloat", "MatMulNBits", "QuantizeLinear"}:
            found[op] += 1
        elif op in MOVERS or (op == "DequantizeLinear" and node.input[0] not in constants):
            found[op] += 1
    return +found


def groups_of(graph: Graph) -> Counter[str]:
    """The same of a lowered graph."""
    found: Counter[str] = Counter()
    for node in graph.nodes:
        stored = [graph.tensors[name].quantization is not None for name in (*node.inputs, *node.outputs) if name]
        if node.op in {"QuantizeLinear", "DequantizeLinear"}:
            found[node.op] += node.op == "QuantizeLinear" or not graph.tensors[node.inputs[0]].constant
        elif node.op in MOVERS:
            found[f"{node.op} of integers" if node.body else node.op] += 1
        elif node.op == "Reshape" or not any(stored):
            continue
        elif node.op == "MatMul" and not stored[-1]:
            found["MatMulIntegerToFloat" if stored[0] else "MatMulNBits"] += 1
        else:
            found["QGemm" if node.op == "Gemm" else f"QLinear{node.op}"] += 1
    return +found


def feeds(model: onnx.ModelProto, seed: int = 0, batch: int = 3) -> dict[str, Array]:
    """Random inputs; floats cover the range of scale 0.05 a byte, ties among them."""
    random = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [one.dim_value if one.HasField("dim_value") else batch for one in dims]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            # Multiples of half a step put half of the values on ties.
            steps = random.integers(-260, 260, shape) * 0.025
            found[value.name] = np.where(random.random(shape) < 0.5, steps, random.normal(size=shape) * 3).astype(
                np.float32
            )
        else:
            signed = value.type.tensor_type.elem_type == TensorProto.INT8
            low = -128 if signed else 0
            found[value.name] = random.integers(low, low + 256, shape).astype(np.int8 if signed else np.uint8)
    return found


def differing(one: Array, other: Array) -> int:
    """Elements that are not equal; NaN equals NaN."""
    assert one.shape == other.shape and one.dtype == other.dtype
    return int(np.count_nonzero((one != other) & ~((one != one) & (other != other))))
