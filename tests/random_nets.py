"""Random convolutional networks, float and quantized, in ONNX and in TFLite: residuals, branches, groups, pools, odd paddings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import hwq
from hwq.exporters.onnx import to_model
from hwq.graph import Graph
from hwq.importers import load
from hwq.importers.onnx import read
from hwq.translation import translate
from hwq.verification.tflite_writer import written

f32 = np.float32
Feeds = dict[str, np.ndarray]


class Net:
    """Nodes one after the other; `shape` is (channels, height, width) of the last image."""

    def __init__(self, rng: np.random.Generator, channels: int, size: int):
        self.rng, self.nodes, self.constants = rng, [], []
        self.shape, self.given = (channels, size, size), (channels, size, size)

    def constant(self, value: Any) -> str:
        array, name = np.asarray(value), f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array.astype(f32) if array.dtype.kind == "f" else array, name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"n_{name}", **attributes))
        return name

    def conv(self, x: str, kind: str = "", filters: int = 0) -> str:
        """A convolution, perhaps with a bias and a clamp."""
        (c, h, w), rng = self.shape, self.rng
        kind = kind or str(rng.choice(["plain", "plain", "deep", "groups", "point", "stride", "odd"]))
        kernel, stride, group, pads = (1, 1, 1, [0] * 4) if kind == "point" else (3, 1, 1, [1] * 4)
        filters = filters or int(rng.integers(2, 13))
        if kind == "deep":
            group, filters = c, c * int(rng.integers(1, 3))
        if kind == "groups" and c % 2 == 0:
            group, filters = 2, 2 * int(rng.integers(1, 6))
        if kind == "stride" and h >= 4:
            stride = 2
        if kind == "odd":
            pads = [1, 0, 2, 1]
        spread = np.exp(rng.normal(size=(filters, 1, 1, 1)) * 0.5) * rng.uniform(0.2, 0.8)
        inputs = [x, self.constant(rng.normal(size=(filters, c // group, kernel, kernel)) * spread)]
        if rng.random() < 0.8:
            inputs.append(self.constant(rng.normal(size=filters) * 0.3))
        made = self.add("Conv", *inputs, pads=pads, group=group, strides=[stride, stride])
        self.shape = (
            filters,
            (h + pads[0] + pads[2] - kernel) // stride + 1,
            (w + pads[1] + pads[3] - kernel) // stride + 1,
        )
        clamp = rng.random()
        if clamp < 0.4:
            return self.add("Relu", made)
        return self.add("Clip", made, self.constant(f32(0)), self.constant(f32(6))) if clamp < 0.5 else made

    def block(self, x: str) -> str:
        (c, h, w), kind = (
            self.shape,
            str(self.rng.choice(["conv", "conv", "residual", "concat", "pool", "average", "mul", "sigmoid"])),
        )
        if kind == "residual":
            made = self.add("Add", *([self.conv(x, "plain", c), x][:: int(self.rng.choice([1, -1]))]))
            return self.add("Relu", made) if self.rng.random() < 0.5 else made
        if kind in {"concat", "mul"}:
            first, before = self.conv(x, "point"), self.shape
            self.shape = (c, h, w)
            second = self.conv(x, "plain" if kind == "concat" else "point", 0 if kind == "concat" else before[0])
            if kind == "mul":
                return self.add("Mul", first, second)
            self.shape = (before[0] + self.shape[0], h, w)
            return self.add("Concat", first, second, axis=1)
        if kind == "pool" and h >= 4 and w >= 4:
            self.shape = (c, h // 2, w // 2)
            return self.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        if kind == "average" and h >= 4 and w >= 4:
            self.shape = (c, (h - 1) // 2 + 1, (w - 1) // 2 + 1)
            return self.add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        return self.add("Sigmoid", x) if kind == "sigmoid" else self.conv(x)

    def head(self, x: str) -> str:
        x, rng = self.conv(x), self.rng
        if rng.random() < 0.5:
            x, self.shape = self.add("GlobalAveragePool", x), (self.shape[0], 1, 1)
        x, k, n = self.add("Flatten", x), int(np.prod(self.shape)), int(rng.integers(3, 12))
        if rng.random() < 0.6:
            x = self.add(
                "Gemm", x, self.constant(rng.normal(size=(n, k)) * 0.3), self.constant(rng.normal(size=n)), transB=1
            )
        else:
            x = self.add("MatMul", x, self.constant(rng.normal(size=(k, n)) * 0.3))
        return self.add("Softmax", x, axis=-1) if rng.random() < 0.6 else x


def float_net(rng: np.random.Generator, batch: int = 8) -> tuple[Graph, np.ndarray]:
    """A network and inputs of it."""
    net, x = Net(rng, int(rng.choice([1, 3, 4])), 8), "x"
    for _ in range(int(rng.integers(1, 5))):
        x = net.block(x)
    x = net.head(x)
    graph = helper.make_graph(
        net.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *net.given])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)], net.constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(made).SerializeToString()
    return read(model), (rng.normal(size=(batch, *net.given)) * 1.5).astype(f32)


def quantized_net(rng: np.random.Generator, ties: bool = False, plan: hwq.Plan | None = None) -> tuple[Graph, Feeds]:
    """Quantized by a random plan of bytes, or by `plan`; with `ties` every scale is a power of two."""
    graph, x = float_net(rng)
    signed = rng.random() < 0.3
    weights = "int8" if signed or rng.random() < 0.7 else "uint8"
    if plan is None:
        plan = hwq.Plan.uniform(weights=weights, activations="int8" if signed else "uint8",
                                granularity=str(rng.choice(["channel", "tensor"])))  # fmt: skip
    made = hwq.quantize(graph, plan, hwq.calibrate(graph, x))
    return (_powers_of_two(made), {"x": (np.round(x * 32) / 32).astype(f32)}) if ties else (made, {"x": x})


def _powers_of_two(graph: Graph) -> Graph:
    scales: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if node.op in {"QuantizeLinear", "DequantizeLinear"}:
            scales[node.inputs[1]] = np.exp2(np.round(np.log2(graph.constant(node.inputs[1])))).astype(f32)  # type: ignore[arg-type]
    for node in graph.nodes:
        makers = [graph.producers.get(name) for name in node.inputs[:3]]
        if (
            node.op in {"Conv", "Gemm"}
            and len(makers) == 3
            and all(one and one.op == "DequantizeLinear" for one in makers)
        ):
            x, w, bias = (one.inputs[1] for one in makers if one)
            scales[bias] = (scales[x] * scales[w]).astype(f32).reshape(scales[bias].shape)
    tensors = [
        dataclasses.replace(one, data=scales.get(one.name, one.data), quantization=None)
        for one in graph.tensors.values()
    ]
    return read(to_model(graph.replace(tensors=tensors)).SerializeToString())


def tflite_net(graph: Graph, feeds: Feeds, path: Path) -> tuple[Graph, Feeds]:
    """The same network written in TFLite's operators, and its inputs as it stores them; raises where it has none."""
    (x,) = feeds.values()
    path.write_bytes(written(translate(graph, "litert-ref").graph, batch=len(x))[0])
    made = load(path)
    tensor = made.tensors[made.inputs[0]]
    x = x if tuple(tensor.shape) == x.shape else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    if tensor.quantization is not None:
        info, pair = np.iinfo(tensor.dtype), tensor.quantization
        x = np.clip(np.rint(x / pair.scales().reshape(())) + pair.zero_points().reshape(()), info.min, info.max).astype(
            tensor.dtype
        )
    return made, {made.inputs[0]: x}
