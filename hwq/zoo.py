"""The zoo: well-known networks as real graphs with edges, seeded weights or none. No file, no network."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Shape, Tensor

__all__ = ["NAMES", "build"]

BATCH = "N"
# ReLU6's bound (Howard et al. 2017, MobileNets).
SIX = 6.0


class _Drawing:
    """Collects nodes and tensors while a network is drawn. Batch norm is folded: every convolution has a bias."""

    def __init__(self, name: str, weights: bool, seed: int):
        self.name, self.weights, self.seed = name, weights, seed
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}

    def input(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        self.tensors[name] = Tensor(name, dtype, shape)
        return name

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape without the batch."""
        return tuple(int(dim) for dim in self.tensors[value].shape[1:])

    def constant(self, name: str, value: Array) -> str:
        self.tensors[name] = Tensor(name, str(value.dtype), value.shape, data=value)
        return name

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int, mean: float = 0.0) -> str:
        data = None
        if self.weights:
            # One generator a tensor, so that a network's weights do not depend on the order of drawing (He et al. 2015 scale).
            generator = np.random.default_rng([self.seed, zlib.crc32(f"{self.name}/{name}".encode())])
            data = generator.standard_normal(shape, dtype=np.float32)
            data *= np.float32((2.0 / fan_in) ** 0.5)
            if mean:
                data += np.float32(mean)
        self.tensors[name] = Tensor(name, "float32", shape, data=data)
        return name

    def node(
        self, op: str, name: str, inputs: list[str], shape: Shape, dtype: str = "float32", **attributes: object
    ) -> str:
        layout: Literal["", "NCHW"] = "NCHW" if op in {"Conv", "MaxPool", "GlobalAveragePool", "Resize"} else ""
        self.tensors[name] = Tensor(name, dtype, shape)
        self.nodes.append(Node(op, name, tuple(inputs), (name,), attributes, origin=name, layout=layout))
        return name

    def several(self, op: str, name: str, inputs: list[str], shapes: list[Shape], **attributes: object) -> list[str]:
        outputs = [f"{name}:{index}" for index in range(len(shapes))]
        self.tensors.update(
            {output: Tensor(output, "float32", shape) for output, shape in zip(outputs, shapes, strict=True)}
        )
        self.nodes.append(Node(op, name, tuple(inputs), tuple(outputs), attributes, origin=name))
        return outputs

    def conv(
        self,
        name: str,
        x: str,
        channels: int,
        kernel: int,
        stride: int = 1,
        pads: tuple[int, int] | None = None,
        groups: int = 1,
        act: str = "",
        bias: bool = True,
    ) -> str:
        """`pads` is (before, after) on both axes; default keeps the size at stride 1."""
        depth, height, width = self.shape(x)
        before, after = (kernel // 2, kernel // 2) if pads is None else pads
        out = (
            BATCH,
            channels,
            (height + before + after - kernel) // stride + 1,
            (width + before + after - kernel) // stride + 1,
        )
        fan_in = depth // groups * kernel * kernel
        inputs = [x, self.weight(f"{name}.weight", (channels, depth // groups, kernel, kernel), fan_in)]
        if bias:
            inputs.append(self.weight(f"{name}.bias", (channels,), 200))
        y = self.node(
            "Conv",
            name,
            inputs,
            out,
            kernel_shape=(kernel, kernel),
            strides=(stride, stride),
            group=groups,
            pads=(before, before, after, after),
            dilations=(1, 1),
        )
        return self.activation(name, y, act)

    def activation(self, name: str, x: str, act: str) -> str:
        shape = self.tensors[x].shape
        if act == "relu":
            return self.node("Relu", f"{name}.relu", [x], shape)
        if act == "relu6":
            low, high = self.scalar("zero", 0.0), self.scalar("six", SIX)
            return self.node("Clip", f"{name}.relu6", [x, low, high], shape)
        if act == "silu":
            gate = self.node("Sigmoid", f"{name}.sigmoid", [x], shape)
            return self.node("Mul", f"{name}.silu", [x, gate], shape)
        return x

    def scalar(self, name: str, value: float) -> str:
        return name if name in self.tensors else self.constant(name, np.array(value, np.float32))

    def add(self, name: str, a: str, b: str, act: str = "") -> str:
        return self.activation(name, self.node("Add", name, [a, b], self.tensors[a].shape), act)

    def max_pool(self, name: str, x: str, kernel: int, stride: int, pad: int) -> str:
        depth, height, width = self.shape(x)
        out = (BATCH, depth, (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1)
        return self.node(
            "MaxPool", name, [x], out, kernel_shape=(kernel, kernel), strides=(stride, stride), pads=(pad,) * 4
        )

    def classifier(self, x: str, classes: int) -> str:
        depth = self.shape(x)[0]
        x = self.node("GlobalAveragePool", "gap", [x], (BATCH, depth, 1, 1))
        x = self.node("Flatten", "flatten", [x], (BATCH, depth), axis=1)
        return self.dense("fc", x, classes)

    def dense(self, name: str, x: str, features: int, act: str = "") -> str:
        fan_in = self.shape(x)[-1]
        inputs = [
            x,
            self.weight(f"{name}.weight", (features, fan_in), fan_in),
            self.weight(f"{name}.bias", (features,), 200),
        ]
        return self.activation(
            name, self.node("Gemm", name, inputs, (BATCH, features), transB=1, transA=0, alpha=1.0, beta=1.0), act
        )

    def graph(self, inputs: list[str], outputs: list[str]) -> Graph:
        facts = {"file": f"zoo:{self.name}", "opset": 20, "weights": f"seed {self.seed}" if self.weights else "none"}
        return Graph(self.nodes, self.tensors.values(), inputs, outputs, name=self.name, source=facts)


def _resnet(draw: _Drawing, blocks: tuple[int, ...], bottleneck: bool) -> Graph:
    """He et al. 2016; bottlenecks stride in the 3x3 (version 1.5, as torchvision and MLPerf)."""
    image = draw.input("image", (BATCH, 3, 224, 224))
    x = draw.max_pool("maxpool", draw.conv("conv1", image, 64, 7, 2, act="relu"), 3, 2, 1)
    expansion = 4 if bottleneck else 1
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            if bottleneck:
                y = draw.conv(f"{name}.conv1", x, width, 1, act="relu")
                y = draw.conv(f"{name}.conv2", y, width, 3, stride, act="relu")
                y = draw.conv(f"{name}.conv3", y, width * expansion, 1)
            else:
                y = draw.conv(f"{name}.conv1", x, width, 3, stride, act="relu")
                y = draw.conv(f"{name}.conv2", y, width, 3)
            if draw.shape(x) != draw.shape(y):
                x = draw.conv(f"{name}.downsample", x, width * expansion, 1, stride)
            x = draw.add(f"{name}.add", y, x, "relu")
    return draw.graph([image], [draw.classifier(x, 1000)])


def _resnet18(draw: _Drawing, sequence: int) -> Graph:
    return _resnet(draw, (2, 2, 2, 2), bottleneck=False)


def _resnet50(draw: _Drawing, sequence: int) -> Graph:
    return _resnet(draw, (3, 4, 6, 3), bottleneck=True)


def _mobilenet_v1(draw: _Drawing, sequence: int) -> Graph:
    """Howard et al. 2017, width 1.0, 224; TensorFlow's SAME padding and its 1001 classes."""
    same = {1: (1, 1), 2: (0, 1)}
    image = draw.input("image", (BATCH, 3, 224, 224))
    x = draw.conv("conv0", image, 32, 3, 2, same[2], act="relu6")
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for index, (channels, stride) in enumerate(plan, start=1):
        depth = draw.shape(x)[0]
        x = draw.conv(f"dw{index}", x, depth, 3, stride, same[stride], groups=depth, act="relu6")
        x = draw.conv(f"pw{index}", x, channels, 1, act="relu6")
    return draw.graph([image], [draw.classifier(x, 1001)])


def _mobilenet_v2(draw: _Drawing, sequence: int) -> Graph:
    """Sandler et al. 2018, table 2: expansion t, channels c, repeats n, stride s."""
    image = draw.input("image", (BATCH, 3, 224, 224))
    x = draw.conv("conv0", image, 32, 3, 2, act="relu6")
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    index = 0
    for expansion, channels, repeats, first_stride in table:
        for repeat in range(repeats):
            index += 1
            depth, y = draw.shape(x)[0], x
            if expansion > 1:
                y = draw.conv(f"block{index}.expand", y, depth * expansion, 1, act="relu6")
            y = draw.conv(
                f"block{index}.depthwise",
                y,
                depth * expansion,
                3,
                1 if repeat else first_stride,
                groups=depth * expansion,
                act="relu6",
            )
            y = draw.conv(f"block{index}.project", y, channels, 1)
            x = draw.add(f"block{index}.add", x, y) if draw.shape(x) == draw.shape(y) else y
    return draw.graph([image], [draw.classifier(draw.conv("head", x, 1280, 1, act="relu6"), 1000)])


def _vgg16(draw: _Drawing, sequence: int) -> Graph:
    """Simonyan and Zisserman 2015, configuration D."""
    image = x = draw.input("image", (BATCH, 3, 224, 224))
    index = 0
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = draw.conv(f"conv{index}", x, channels, 3, act="relu")
            index += 1
        x = draw.max_pool(f"maxpool{index}", x, 2, 2, 0)
    x = draw.node("Flatten", "flatten", [x], (BATCH, 512 * 7 * 7), axis=1)
    x = draw.dense("fc2", draw.dense("fc1", x, 4096, "relu"), 4096, "relu")
    return draw.graph([image], [draw.dense("fc3", x, 1000)])


def _bert(draw: _Drawing, layers: int, hidden: int, heads: int, sequence: int) -> Graph:
    """Devlin et al. 2019; vocabulary 30522, 512 positions. Ends at `last_hidden_state`.

    The pooler's weights are held, as in the published parameter count, and not run.
    """
    ids = draw.input("input_ids", (BATCH, sequence), "int64")
    types = draw.input("token_type_ids", (BATCH, sequence), "int64")
    mask = draw.input("attention_mask", (BATCH, sequence), "int64")
    full = (BATCH, sequence, hidden)
    # Where embeddings of unit variance are summed, 0.02 is BERT's initial standard deviation: fan 5000 gives it.
    words = draw.node(
        "Gather", "embeddings.words", [draw.weight("embeddings.word.weight", (30522, hidden), 5000), ids], full, axis=0
    )
    kinds = draw.node(
        "Gather", "embeddings.types", [draw.weight("embeddings.type.weight", (2, hidden), 5000), types], full, axis=0
    )
    places = draw.node(
        "Gather",
        "embeddings.positions",
        [
            draw.weight("embeddings.position.weight", (512, hidden), 5000),
            draw.constant("positions", np.arange(sequence, dtype=np.int64)),
        ],
        (sequence, hidden),
        axis=0,
    )
    x = draw.node("Add", "embeddings.add", [words, kinds], full)
    x = _layer_norm(draw, "embeddings.norm", draw.node("Add", "embeddings.add_positions", [x, places], full))

    axes = draw.constant("mask.axes", np.array([1, 2], np.int64))
    seen = draw.node("Cast", "mask.float", [mask], (BATCH, sequence), to="float32")
    seen = draw.node("Unsqueeze", "mask.unsqueeze", [seen, axes], (BATCH, 1, 1, sequence))
    hidden_from = draw.node("Sub", "mask.inverse", [draw.scalar("one", 1.0), seen], (BATCH, 1, 1, sequence))
    # -10000 is BERT's own "minus infinity" for masked positions.
    bias = draw.node("Mul", "mask.bias", [hidden_from, draw.scalar("masked", -10000.0)], (BATCH, 1, 1, sequence))

    for index in range(layers):
        x = _encoder(draw, f"layer{index}", x, bias, heads)
    draw.weight("pooler.weight", (hidden, hidden), hidden)
    draw.weight("pooler.bias", (hidden,), 200)
    return draw.graph([ids, types, mask], [x])


def _encoder(draw: _Drawing, name: str, x: str, bias: str, heads: int) -> str:
    sequence, hidden = draw.shape(x)
    width = hidden // heads
    split = (
        draw.constant("heads.split", np.array([0, sequence, heads, width], np.int64))
        if "heads.split" not in draw.tensors
        else "heads.split"
    )
    joined = (
        draw.constant("heads.join", np.array([0, sequence, hidden], np.int64))
        if "heads.join" not in draw.tensors
        else "heads.join"
    )

    def head(part: str, permutation: tuple[int, ...], shape: Shape) -> str:
        y = _linear(draw, f"{name}.{part}", x, hidden)
        y = draw.node("Reshape", f"{name}.{part}.split", [y, split], (BATCH, sequence, heads, width))
        return draw.node("Transpose", f"{name}.{part}.heads", [y], shape, perm=permutation)

    q = head("query", (0, 2, 1, 3), (BATCH, heads, sequence, width))
    k = head("key", (0, 2, 3, 1), (BATCH, heads, width, sequence))
    v = head("value", (0, 2, 1, 3), (BATCH, heads, sequence, width))
    square = (BATCH, heads, sequence, sequence)
    scores = draw.node("MatMul", f"{name}.scores", [q, k], square)
    scores = draw.node("Div", f"{name}.scale", [scores, draw.scalar("root_width", width**0.5)], square)
    scores = draw.node("Add", f"{name}.mask", [scores, bias], square)
    shares = draw.node("Softmax", f"{name}.softmax", [scores], square, axis=-1)
    y = draw.node("MatMul", f"{name}.context", [shares, v], (BATCH, heads, sequence, width))
    y = draw.node("Transpose", f"{name}.context.rows", [y], (BATCH, sequence, heads, width), perm=(0, 2, 1, 3))
    y = draw.node("Reshape", f"{name}.context.join", [y, joined], (BATCH, sequence, hidden))
    x = _layer_norm(
        draw, f"{name}.attention.norm", draw.add(f"{name}.attention.add", _linear(draw, f"{name}.output", y, hidden), x)
    )
    y = _linear(draw, f"{name}.up", x, 4 * hidden)
    y = draw.node("Gelu", f"{name}.gelu", [y], (BATCH, sequence, 4 * hidden), approximate="none")
    return _layer_norm(draw, f"{name}.norm", draw.add(f"{name}.add", _linear(draw, f"{name}.down", y, hidden), x))


def _linear(draw: _Drawing, name: str, x: str, features: int) -> str:
    sequence, depth = draw.shape(x)
    shape = (BATCH, sequence, features)
    y = draw.node("MatMul", name, [x, draw.weight(f"{name}.weight", (depth, features), 2 * depth)], shape)
    return draw.node("Add", f"{name}.bias_add", [y, draw.weight(f"{name}.bias", (features,), 5000)], shape)


def _layer_norm(draw: _Drawing, name: str, x: str) -> str:
    depth = draw.shape(x)[-1]
    inputs = [x, draw.weight(f"{name}.gamma", (depth,), 5000, mean=1.0), draw.weight(f"{name}.beta", (depth,), 5000)]
    return draw.node("LayerNormalization", name, inputs, draw.tensors[x].shape, axis=-1, epsilon=1e-12)


def _bert_base(draw: _Drawing, sequence: int) -> Graph:
    return _bert(draw, 12, 768, 12, sequence)


def _bert_large(draw: _Drawing, sequence: int) -> Graph:
    return _bert(draw, 24, 1024, 16, sequence)


def _yolov8n(draw: _Drawing, sequence: int) -> Graph:
    from hwq.zoo_yolo import draw_yolov8n

    return draw_yolov8n(draw)


_BUILDERS: Mapping[str, Callable[[_Drawing, int], Graph]] = MappingProxyType({
    "resnet18": _resnet18, "resnet50": _resnet50, "mobilenet_v1": _mobilenet_v1, "mobilenet_v2": _mobilenet_v2, "vgg16": _vgg16,
    "bert_base": _bert_base, "bert_large": _bert_large, "yolov8n": _yolov8n,
})  # fmt: skip

NAMES: tuple[str, ...] = tuple(_BUILDERS)
# Input size of the published counts: BERT at 128 tokens.
TOKENS = 128


def build(name: str, *, weights: bool = True, seed: int = 0, shapes: Mapping[str, Shape] | None = None) -> Graph:
    """Build a network of the zoo.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    weights : bool
        Seeded weights (float32, normal, He scale), or none: then the graph is for cost only and refuses to run.
    seed : int
        Of the weights.
    shapes : mapping of input to shape, optional
        BERT takes its sequence length (1 to 512 tokens) from the second dimension of ``input_ids``.

    Returns
    -------
    Graph
        In source form, batch open (``"N"``), batch norm folded.

    Raises
    ------
    Error
        There is no such network, or no such sequence length.
    """
    if name not in _BUILDERS:
        raise Error("the zoo has no such network", where=f"zoo:{name}", remedy=f"one of: {', '.join(NAMES)}")
    asked = (shapes or {}).get("input_ids", (1, TOKENS))
    sequence = asked[1] if len(asked) == 2 else None
    if not isinstance(sequence, int) or not 1 <= sequence <= 512:
        raise Error(
            f"input_ids cannot have the shape {list(asked)}",
            where=f"zoo:{name}",
            why="BERT has 512 positions",
            remedy="give (batch, 1..512)",
        )
    return _BUILDERS[name](_Drawing(name, weights, seed), sequence)
