"""Float32 convolutions and means in blocks of channels (NCHWc), the layout that onnxruntime's optimizer gives to images.

Which nodes it takes is core/optimizer/nchwc_transformer.cc's, the order of sums core/mlas/lib/snchwc.cpp's: a block is a vector of
floats, so the order follows from the CPU's width, which the dialect names. Measured on onnxruntime 1.31.1, vectors of 8 and of 16, and
confirmed bit for bit (`hwq dialects --verify ort`, `ort-avx512`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwq import kernels
from hwq.execution.steps import Kernel, Scope, Settings, adapt, present
from hwq.graph import Array
from hwq.ops import spatial

__all__ = ["convolution", "pools", "taken"]

# Channels of one chain of a convolution of 1 x 1 without padding.
POINTWISE_CHANNELS = 128
# Channels in multiples of this are filled up with zeros to whole blocks.
ALIGNED = 4
# Functions that take and make blocks, and those that only become part of a convolution.
FUNCTIONS = frozenset({"Relu", "Sigmoid", "Tanh"})
FUSED_FUNCTIONS = FUNCTIONS | {"LeakyRelu", "HardSigmoid", "Clip"}


def _block(scope: Scope) -> int:
    """Channels of a block; 0 where the dialect blocks nothing."""
    return int(scope.dialect.formulas.get("float-blocks", 0))


def pools(scope: Scope) -> bool:
    """Whether a mean runs over blocked channels: each window in memory order.

    A mean of the whole image only where the image is in blocks already, or no operator makes it.
    """
    if not _block(scope) or not _whole_blocks(scope, scope.node.inputs[0]):
        return False
    given = scope.node.inputs[0]
    return scope.node.op == "AveragePool" or given not in scope.graph.producers or given in _blocked_values(scope)


def _whole_blocks(scope: Scope, value: str) -> bool:
    """Whether an image's channels fill whole blocks."""
    tensor = scope.graph.tensors[value]
    channels = tensor.shape[1] if tensor.known_shape and len(tensor.shape) == 4 else None
    return isinstance(channels, int) and channels % _block(scope) == 0


def _blocked_values(scope: Scope) -> set[str]:
    """What the graph's operators make and hand on in blocks."""
    made: set[str] = set()
    graph = scope.graph
    for node in graph.nodes:
        operands = [value for value in node.inputs if value]
        if node.domain or not operands or graph.tensors[node.outputs[0]].dtype != "float32":
            continue
        one = Scope(graph, scope.dialect, node)
        ready = made.issuperset(operands)
        if node.op == "Conv":
            held = taken(one)
        elif node.op in {"AveragePool", "MaxPool"}:
            held = len(node.outputs) == 1 and _whole_blocks(one, operands[0])
        elif node.op in FUSED_FUNCTIONS:
            before = graph.producers.get(operands[0])
            alone = before is not None and before.op == "Conv" and len(graph.consumers[operands[0]]) == 1
            held = operands[0] in made and (node.op in FUNCTIONS or alone)
        elif node.op in {"Add", "Sum", "Mul"}:
            held = ready and len({graph.tensors[value].shape for value in operands}) == 1
        elif node.op == "Concat":
            held = ready and node.attributes.get("axis") == 1 and all(_whole_blocks(one, value) for value in operands)
        else:
            held = node.op in {"GlobalAveragePool", "GlobalMaxPool"} and ready and _whole_blocks(one, operands[0])
        if held:
            made.add(node.outputs[0])
    return made


@dataclass(frozen=True)
class Part:
    """Channels [first, last) of every group, and the chain that sums their products."""

    first: int
    last: int
    chain: kernels.Chain


def taken(scope: Scope) -> bool:
    """Whether onnxruntime blocks the channels of a convolution: constant filters and bias, and groups that fit."""
    node, weights, bias = scope.node, scope.operand(1), scope.operand(2)
    block, groups = _block(scope), int(node.attributes.get("group", 1))
    if not block or node.layout == "NHWC" or weights is None or not scope.fixed(1) or len(weights.shape) != 4:
        return False
    outputs, depth = (int(size) for size in weights.shape[:2])
    if weights.dtype != "float32" or groups < 1 or not weights.elements or outputs % groups:
        return False
    if bias is not None and (not scope.fixed(2) or bias.dtype != "float32" or bias.shape != (outputs,)):
        return False
    if groups == 1:
        return depth < block or depth % ALIGNED == 0
    if depth == 1 and outputs == groups:
        return outputs % ALIGNED == 0
    return depth % block == 0 and outputs // groups % block == 0


def convolution(scope: Scope) -> Kernel | None:
    """A convolution in blocks; None where onnxruntime leaves it as it is.

    A chain of fused multiply-adds from +0 over (tap, channel of the block), one block after the other added to what is
    there, then the bias. Images of fewer channels than a block are read as they are, one channel a chain.
    """
    node, weights, bias = scope.node, scope.operand(1), scope.operand(2)
    if not taken(scope) or weights is None or weights.data is None:
        return None
    block, groups, depth = _block(scope), int(node.attributes.get("group", 1)), weights.data.shape[1]
    filters, added = weights.data, None if bias is None else bias.data
    begin_end = node.attributes.get("pads", ())
    pointwise = filters.shape[2:] == (1, 1) and not any(begin_end) and depth >= block
    each = 1 if depth < block else POINTWISE_CHANNELS if pointwise else block
    last_first = np.moveaxis(filters, 1, -1)
    parts = [
        Part(first, min(first + each, depth), kernels.pack_chain(np.ascontiguousarray(last_first[..., first : first + each]), groups=groups))
        for first in range(0, depth, each)
    ]  # fmt: skip

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        windows = spatial.windows_of(node, x.shape[2:], filters.shape[2:])
        image = np.ascontiguousarray(np.moveaxis(x, 1, -1)).reshape(x.shape[0], *x.shape[2:], groups, depth)
        total: Array | None = None
        for part in parts:
            given = np.ascontiguousarray(image[..., part.first : part.last]).reshape(*image.shape[:3], -1)
            made = kernels.conv_chain(
                given, part.chain, strides=windows.strides, pads=(*windows.begin, *windows.end),
                dilations=windows.dilations, threads=settings.threads,
            )  # fmt: skip
            total = made if total is None else np.add(made, total, out=total)
        assert total is not None
        if added is not None:
            total += added
        return np.ascontiguousarray(np.moveaxis(total, -1, 1))

    return adapt(run)
