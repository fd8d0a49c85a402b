"""A float TFLite model in ONNX's operators, channels last: so that a plan can quantize it as any other model.

TFLite's operators carry their activation and their padding's name; here the activation is a node of its own and the layout
stays NHWC. What has no plain counterpart (recurrent cells, transposed weights, a Softmax with another beta) stays as it is
and is a float island of the quantized model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor

__all__ = ["standardized"]

DOMAIN = "tflite"
ELEMENTWISE = {
    "ADD": "Add",
    "SUB": "Sub",
    "MUL": "Mul",
    "DIV": "Div",
    "MAXIMUM": "Max",
    "MINIMUM": "Min",
    "PRELU": "PRelu",
}
UNARY = {"RELU": "Relu", "RELU6": "Clip", "LOGISTIC": "Sigmoid", "TANH": "Tanh", "HARD_SWISH": "HardSwish", "ELU": "Elu", "EXP": "Exp",
         "LOG": "Log", "SQRT": "Sqrt", "ABS": "Abs", "NEG": "Neg", "FLOOR": "Floor", "CEIL": "Ceil", "SIN": "Sin", "COS": "Cos"}  # fmt: skip
REDUCTIONS = {"MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin"}
POOLS = {"AVERAGE_POOL_2D": "AveragePool", "MAX_POOL_2D": "MaxPool"}
PADS = {"SAME": "SAME_UPPER", "VALID": "VALID"}


def standardized(graph: Graph) -> Graph:
    """The same function in ONNX's operators where each has one; other graphs come back as they are.

    Names of values stay. A fused activation's operand is new: ``X_sum`` before ``X``.
    """
    if not any(node.domain == DOMAIN for node in graph.nodes):
        return graph
    return _Writer(_widened(graph)).graph()


def _widened(graph: Graph) -> Graph:
    """Weights that are stored in float16 and read behind a DEQUANTIZE, as the float32 numbers that they are."""
    wide = {}
    for node in graph.nodes:
        stored = graph.constant(node.inputs[0]) if node.domain == DOMAIN and node.op == "DEQUANTIZE" else None
        if stored is not None and stored.dtype == np.float16:
            wide[node.outputs[0]] = Tensor(node.outputs[0], "float32", stored.shape, stored.astype(np.float32))
    if not wide:
        return graph
    nodes = [node for node in graph.nodes if node.outputs[0] not in wide]
    return graph.replace(nodes=nodes, tensors=[wide.get(name, tensor) for name, tensor in graph.tensors.items()])


class _Writer:
    def __init__(self, graph: Graph):
        self.old = graph
        self.tensors = dict(graph.tensors)
        self.nodes: list[Node] = []
        # What each operator needs beyond a name; None: it stays.
        self.rules: Mapping[str, Callable[[Node], Node | None]] = {
            "CONV_2D": self._convolution,
            "DEPTHWISE_CONV_2D": self._depthwise,
            "FULLY_CONNECTED": self._dense,
            "SOFTMAX": self._softmax,
            "RESHAPE": self._reshape,
            "PAD": self._padded,
            "PADV2": self._padded,
            "MIRROR_PAD": self._padded,
            "SQUARE": lambda node: self._written(node, "Mul", (node.inputs[0], node.inputs[0])),
            "LEAKY_RELU": self._leaky,
            "TRANSPOSE": self._transpose,
            "SQUEEZE": self._reshape,
            "EXPAND_DIMS": self._reshape,
            "STRIDED_SLICE": self._slice,
            "RESIZE_BILINEAR": self._resize,
            "RESIZE_NEAREST_NEIGHBOR": self._resize,
            **dict.fromkeys(REDUCTIONS, self._reduce),
            "CONCATENATION": self._concatenation,
            **dict.fromkeys(ELEMENTWISE, self._elementwise),
            **dict.fromkeys(UNARY, self._unary),
            **dict.fromkeys(POOLS, self._pool),
        }

    def graph(self) -> Graph:
        for node in self.old.nodes:
            rule = self.rules.get(node.op) if node.domain == DOMAIN and self._float(node) else None
            made = None if rule is None else rule(node)
            if made is None:
                self.nodes.append(node)
            else:
                self._activated(node, made)
        used = {name for node in self.nodes for name in (*node.inputs, *node.outputs)}
        kept = [one for name, one in self.tensors.items() if name in used or name in self.old.inputs]
        return self.old.replace(nodes=self.nodes, tensors=kept)

    def _float(self, node: Node) -> bool:
        given = [self.old.tensors[name] for name in (*node.inputs, *node.outputs) if name]
        return all(one.quantization is None for one in given) and self.old.tensors[node.outputs[0]].dtype == "float32"

    def _constant(self, name: str, data: Array) -> str:
        while name in self.tensors:
            name += "_"
        self.tensors[name] = Tensor(name, str(data.dtype), data.shape, data)
        return name

    def _activated(self, node: Node, made: Node) -> None:
        """Write the operator, and its activation behind it."""
        kind, result = str(node.attributes.get("activation", "NONE")), node.outputs[0]
        if kind == "NONE":
            self.nodes.append(made)
            return
        inner = f"{result}_sum"
        while inner in self.tensors:
            inner += "_"
        self.tensors[inner] = dataclasses.replace(self.tensors[result], name=inner)
        self.nodes.append(dataclasses.replace(made, outputs=(inner,)))
        self.nodes.append(self._clamp(kind, f"{node.name}_{kind}", inner, result))

    def _clamp(self, kind: str, name: str, given: str, result: str) -> Node:
        if kind in {"RELU", "TANH"}:
            return Node({"RELU": "Relu", "TANH": "Tanh"}[kind], name, (given,), (result,))
        ends = (-1.0, 1.0) if kind == "RELU_N1_TO_1" else (0.0, 6.0)
        low, high = (
            self._constant(f"{result}_{word}", np.array(end, np.float32))
            for word, end in zip(("low", "high"), ends, strict=True)
        )
        return Node("Clip", name, (given, low, high), (result,))

    def _written(
        self, node: Node, op: str, inputs: tuple[str, ...], layout: bool = False, **attributes: object
    ) -> Node:
        return Node(
            op, node.name, inputs, node.outputs[:1], attributes, origin=node.origin, layout="NHWC" if layout else ""
        )

    def _known(self, node: Node) -> bool:
        return str(node.attributes.get("activation", "NONE")) in {"NONE", "RELU", "RELU6", "RELU_N1_TO_1", "TANH"}

    def _window(self, node: Node) -> dict[str, object] | None:
        pad = PADS.get(str(node.attributes.get("padding")))
        if pad is None or not self._known(node):
            return None
        return {"strides": tuple(node.attributes.get("strides", (1, 1))), "auto_pad": pad}

    def _convolution(self, node: Node) -> Node | None:
        weight, window = self.old.constant(node.inputs[1]), self._window(node)
        channels = self.old.tensors[node.inputs[0]].shape[-1:]
        if weight is None or window is None or not channels or not isinstance(channels[0], int):
            return None
        window["dilations"] = tuple(node.attributes.get("dilations", (1, 1)))
        groups = channels[0] // weight.shape[-1]
        return self._written(node, "Conv", tuple(filter(None, node.inputs)), True, group=groups, **window)

    def _depthwise(self, node: Node) -> Node | None:
        weight, window = self.old.constant(node.inputs[1]), self._window(node)
        channels = self.old.tensors[node.inputs[0]].shape[-1:]
        if weight is None or window is None or not channels or not isinstance(channels[0], int):
            return None
        window["dilations"] = tuple(node.attributes.get("dilations", (1, 1)))
        # 1HWC to [C, H, W, 1]: filter c reads channel c // multiplier in both.
        turned = self._constant(f"{node.inputs[1]}_filters", np.ascontiguousarray(np.moveaxis(weight, -1, 0).reshape(
            weight.shape[-1], *weight.shape[1:3], 1)))  # fmt: skip
        inputs = (node.inputs[0], turned, *filter(None, node.inputs[2:]))
        return self._written(node, "Conv", inputs, True, group=channels[0], **window)

    def _dense(self, node: Node) -> Node | None:
        plain = node.attributes.get("weights_format", "DEFAULT") == "DEFAULT" and self._known(node)
        operand, made = self.old.tensors[node.inputs[0]], self.old.tensors[node.outputs[0]]
        if not plain or self.old.constant(node.inputs[1]) is None or len(operand.shape) != 2 or len(made.shape) != 2:
            return None
        return self._written(node, "Gemm", tuple(filter(None, node.inputs)), transB=1)

    def _softmax(self, node: Node) -> Node | None:
        if float(node.attributes.get("beta", 1.0)) != 1.0:
            return None
        return self._written(node, "Softmax", node.inputs[:1], axis=-1)

    def _reshape(self, node: Node) -> Node | None:
        before, after = (self.old.tensors[name] for name in (node.inputs[0], node.outputs[0]))
        if not before.known_shape or not after.known_shape or not before.shape or not after.shape:
            return None
        if len(after.shape) == 2 and before.shape[:1] == after.shape[:1]:
            return self._written(node, "Flatten", node.inputs[:1], axis=1)
        wanted = [dim if isinstance(dim, int) else -1 for dim in after.shape]
        if wanted.count(-1) > 1 or 0 in wanted:
            return None
        return self._written(node, "Reshape", (node.inputs[0], self._numbers(node, wanted)))

    def _numbers(self, node: Node, values: object, word: str = "shape") -> str:
        return self._constant(f"{node.outputs[0]}_{word}", np.asarray(values, np.int64))

    def _reduce(self, node: Node) -> Node | None:
        axes = self.old.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None:
            return None
        keep = int(bool(node.attributes.get("keep_dims", False)))
        places = tuple(int(one) for one in axes.reshape(-1))
        if node.op == "SUM":
            return self._written(
                node, "ReduceSum", (node.inputs[0], self._numbers(node, places, "axes")), keepdims=keep
            )
        return self._written(node, REDUCTIONS[node.op], node.inputs[:1], axes=places, keepdims=keep)

    def _padded(self, node: Node) -> Node | None:
        pads = self.old.constant(node.inputs[1])
        mirrored = node.op == "MIRROR_PAD"
        if pads is None or (mirrored and node.attributes.get("mode") != "REFLECT"):
            return None
        widths = self._numbers(node, pads.reshape(-1, 2).T.reshape(-1), "pads")
        mode: dict[str, Any] = {"mode": "reflect"} if mirrored else {}
        return self._written(node, "Pad", (node.inputs[0], widths, *node.inputs[2:3]), **mode)

    def _leaky(self, node: Node) -> Node | None:
        return self._written(node, "LeakyRelu", node.inputs[:1], alpha=float(node.attributes.get("alpha", 0.0)))

    def _transpose(self, node: Node) -> Node | None:
        order = self.old.constant(node.inputs[1])
        if order is None:
            return None
        return self._written(node, "Transpose", node.inputs[:1], perm=tuple(int(one) for one in order.reshape(-1)))

    def _slice(self, node: Node) -> Node | None:
        get = node.attributes.get
        parts = [self.old.constant(name) for name in node.inputs[1:4]]
        if any(get(f"{word}_mask", 0) for word in ("ellipsis", "new_axis", "shrink_axis")) or get("offset", False):
            return None
        if len(parts) != 3 or any(part is None for part in parts):
            return None
        begin, end, step = (np.asarray(part, np.int64).reshape(-1) for part in parts)
        if np.any(step < 1):
            return None
        masks = [[int(get(f"{word}_mask", 0)) >> axis & 1 for axis in range(len(begin))] for word in ("begin", "end")]
        starts, ends = np.where(masks[0], 0, begin), np.where(masks[1], np.iinfo(np.int64).max, end)
        cuts = (self._numbers(node, values, word) for values, word in (
            (starts, "starts"), (ends, "ends"), (np.arange(len(begin)), "axes"), (step, "steps")))  # fmt: skip
        return self._written(node, "Slice", (node.inputs[0], *cuts))

    def _resize(self, node: Node) -> Node | None:
        size, x = self.old.constant(node.inputs[1]), self.old.tensors[node.inputs[0]]
        aligned, half = (bool(node.attributes.get(key, False)) for key in ("align_corners", "half_pixel_centers"))
        nearest = node.op == "RESIZE_NEAREST_NEIGHBOR"
        if size is None or len(x.shape) != 4 or (nearest and aligned):
            return None
        mode: dict[str, Any] = {"mode": "nearest" if nearest else "linear"}
        if nearest:  # TFLite takes the position below (x + 1/2) scale, which is the one nearest to it less a half
            mode["nearest_mode"] = "round_prefer_ceil" if half else "floor"
        mode["coordinate_transformation_mode"] = "align_corners" if aligned else "half_pixel" if half else "asymmetric"
        sizes = self._numbers(node, size.reshape(-1), "sizes")
        return self._written(node, "Resize", (node.inputs[0], "", "", sizes), axes=(1, 2), **mode)

    def _concatenation(self, node: Node) -> Node | None:
        if "axis" not in node.attributes or not self._known(node):
            return None
        return self._written(node, "Concat", node.inputs, axis=int(node.attributes["axis"]))

    def _elementwise(self, node: Node) -> Node | None:
        return self._written(node, ELEMENTWISE[node.op], node.inputs[:2]) if self._known(node) else None

    def _unary(self, node: Node) -> Node | None:
        if node.op == "RELU6":
            return dataclasses.replace(
                self._clamp("RELU6", node.name, node.inputs[0], node.outputs[0]), origin=node.origin
            )
        return self._written(node, UNARY[node.op], node.inputs[:1])

    def _pool(self, node: Node) -> Node | None:
        window = self._window(node)
        if window is None:
            return None
        return self._written(
            node, POOLS[node.op], node.inputs[:1], True, kernel_shape=tuple(node.attributes["kernel_shape"]), **window
        )
