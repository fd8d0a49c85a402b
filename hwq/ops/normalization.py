"""Normalization: LayerNormalization, RMSNormalization and BatchNormalization at inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops import accounting, dims, functions
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import operands, require_float
from hwq.work import Work

__all__ = ["BatchNormalization", "LayerNormalization"]


@register
class LayerNormalization(Op):
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over the axes from `axis` on, in float64, rounded once.

    RMSNormalization leaves the mean out. Outputs 2 and 3 (mean, reciprocal deviation) are optional.
    """

    names = ("LayerNormalization", "RMSNormalization")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = operands(node, [tensor for tensor in inputs if tensor is not None], 2, 3)
        x = given[0]
        require_float(node, x)
        if not dims.rank_known(*given):
            return [(x.dtype, (), False), ("float32", (), False), ("float32", (), False)]
        axis = dims.axis_of(node, int(node.attributes.get("axis", -1)), len(x.shape))
        for tensor in given[1:]:
            if len(dims.broadcast(node, [x.shape[axis:], tensor.shape])) > max(len(x.shape) - axis, len(tensor.shape)):
                raise dims.fault(node, "scale and bias do not fit the normalized axes")
            known = [
                (a, b)
                for a, b in zip(x.shape[::-1], tensor.shape[::-1], strict=False)
                if isinstance(a, int) and isinstance(b, int)
            ]
            if any(b not in (1, a) for a, b in known) or len(tensor.shape) > len(x.shape):
                raise dims.fault(node, f"scale or bias {list(tensor.shape)} does not fit the input {list(x.shape)}")
        reduced = (*x.shape[:axis], *([1] * (len(x.shape) - axis)))
        return [(x.dtype, x.shape, True), ("float32", reduced, True), ("float32", reduced, True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, scale = inputs[0], inputs[1]
        assert x is not None and scale is not None
        axes = tuple(range(int(node.attributes.get("axis", -1)) % x.ndim, x.ndim))
        epsilon = float(np.float32(node.attributes.get("epsilon", 1e-5)))
        wide = x.astype(np.float64)
        if node.op == "RMSNormalization":
            root = np.sqrt(np.square(wide).mean(axis=axes, keepdims=True) + epsilon)
            return [np.asarray(wide / root * scale.astype(np.float64)).astype(x.dtype)]
        normalized, mean, reciprocal = functions.layer_normalization(wide, axes, epsilon)
        result = normalized * scale.astype(np.float64)
        if len(inputs) > 2 and inputs[2] is not None:
            result = result + inputs[2].astype(np.float64)
        return [result.astype(x.dtype), mean.astype(np.float32), reciprocal.astype(np.float32)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


@register
class BatchNormalization(Op):
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` per channel, with the stored mean and variance."""

    names = ("BatchNormalization",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = operands(node, inputs, 5, 5)
        if node.attributes.get("training_mode") or len([name for name in node.outputs if name]) > 1:
            raise dims.fault(
                node,
                "BatchNormalization in training mode is not supported",
                "its statistics would come from the batch",
                "export the model in inference mode",
            )
        x = given[0]
        require_float(node, x)
        if x.known_shape:
            axis = (len(x.shape) - 1 if node.layout == "NHWC" else 1) if len(x.shape) > 1 else 0
            channels = x.shape[axis] if x.shape else 1
            for tensor in given[1:]:
                if tensor.known_shape and (
                    len(tensor.shape) != 1
                    or (
                        isinstance(channels, int)
                        and tensor.shape[0] not in (channels, 1)
                        and isinstance(tensor.shape[0], int)
                    )
                ):
                    raise dims.fault(node, f"parameter {list(tensor.shape)} does not fit {channels} channels")
        return [(x.dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x = inputs[0]
        assert x is not None
        last = node.layout == "NHWC" or x.ndim < 2
        shape = (1, -1) if last and x.ndim > 1 else (-1,) if last else (1, -1, *([1] * (x.ndim - 2)))
        scale, bias, mean, variance = (one.astype(np.float64).reshape(shape) for one in inputs[1:5] if one is not None)
        epsilon = float(np.float32(node.attributes.get("epsilon", 1e-5)))
        return [((x.astype(np.float64) - mean) / np.sqrt(variance + epsilon) * scale + bias).astype(x.dtype)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


@register
class GroupNormalization(Op):
    """Normalization over the space and the channels of each group (InstanceNormalization: of each channel), then scale and bias.

    In float64, rounded once. GroupNormalization scales channels since opset 21, whole groups before: the length decides.
    """

    names = ("GroupNormalization", "InstanceNormalization")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, *parameters = operands(node, inputs, 3, 3)
        require_float(node, x)
        if x.known_shape:
            if len(x.shape) < 3:
                raise dims.fault(node, f"the input {list(x.shape)} has no spatial dimension")
            channels, groups = x.shape[1], node.attributes.get("num_groups", x.shape[1])
            if isinstance(channels, int) and (not isinstance(groups, int) or groups < 1 or channels % groups):
                raise dims.fault(node, f"{channels} channels cannot be split into {groups} groups")
            for tensor in parameters:
                fits = not tensor.concrete or not isinstance(channels, int) or tensor.shape in {(channels,), (groups,)}
                if not fits:
                    raise dims.fault(node, f"parameter {list(tensor.shape)} does not fit {channels} channels")
        return [(x.dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, scale, bias = inputs
        assert x is not None and scale is not None and bias is not None
        groups = int(node.attributes.get("num_groups", x.shape[1]))
        epsilon = float(np.float32(node.attributes.get("epsilon", 1e-5)))
        grouped = x.astype(np.float64).reshape(x.shape[0], groups, -1)
        normalized = functions.layer_normalization(grouped, (2,), epsilon)[0].reshape(x.shape)
        gain, offset = (
            np.repeat(one.astype(np.float64), x.shape[1] // one.size).reshape(1, -1, *([1] * (x.ndim - 2)))
            for one in (scale, bias)
        )
        return [(normalized * gain + offset).astype(x.dtype)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


@register
class LRN(Op):
    """``x (bias + alpha / size * s) ** -beta``, `s` the sum of squares over `size` channels around each; in float64, rounded once."""

    names = ("LRN",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        require_float(node, x)
        if int(node.attributes.get("size", 0)) < 1 or (x.known_shape and len(x.shape) < 2):
            raise dims.fault(node, f"size {node.attributes.get('size')} and a tensor of rank {len(x.shape)} do not fit")
        return [(x.dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        size, channels = int(node.attributes["size"]), x.shape[1]
        alpha, beta, bias = (
            float(np.float32(node.attributes.get(name, default)))
            for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
        )
        wide = x.astype(np.float64)
        before = np.zeros((x.shape[0], channels + 1, *x.shape[2:]))
        np.cumsum(np.square(wide), axis=1, out=before[:, 1:])
        places = np.arange(channels)
        first = np.maximum(places - (size - 1) // 2, 0)
        last = np.minimum(places + size // 2 + 1, channels)
        total = before[:, last] - before[:, first]
        return [np.asarray(wide * (bias + alpha / size * total) ** -beta).astype(x.dtype)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: a multiplication for each square and an addition for each of the window, a power and a product."""
        return accounting.vector(
            node, graph, operations=(int(node.attributes["size"]) + 4) * graph.tensors[node.inputs[0]].elements
        )


@register
class Along(Op):
    """LpNormalization: over the 1- or 2-norm along `axis`; Hardmax: 1 at the first largest element along `axis`, 0 elsewhere.

    MeanVarianceNormalization: less the mean and over the standard deviation (plus 1e-9) of `axes`. In float64, rounded once.
    """

    names = ("LpNormalization", "Hardmax", "MeanVarianceNormalization")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        require_float(node, x)
        if x.known_shape:
            self.axes(node, len(x.shape))
        return [(x.dtype, x.shape, x.known_shape)]

    @staticmethod
    def axes(node: Node, rank: int) -> tuple[int, ...]:
        """The axes that are taken together."""
        if node.op == "MeanVarianceNormalization":
            return dims.axes_of(node, dims.ints_attribute(node, "axes", (0, 2, 3)), rank)
        return (dims.axis_of(node, int(node.attributes.get("axis", -1)), rank),)

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        axes, wide = self.axes(node, x.ndim), x.astype(np.float64)
        if node.op == "Hardmax":
            places = np.arange(x.shape[axes[0]]).reshape([-1 if axis in axes else 1 for axis in range(x.ndim)])
            return [(places == x.argmax(axes[0], keepdims=True)).astype(x.dtype)]
        if node.op == "MeanVarianceNormalization":
            centered = wide - wide.mean(axis=axes, keepdims=True)
            return [(centered / (np.sqrt(np.square(centered).mean(axis=axes, keepdims=True)) + 1e-9)).astype(x.dtype)]
        power = int(node.attributes.get("p", 2))
        if power not in (1, 2):
            raise dims.fault(node, f"p = {power}: ONNX has the norms 1 and 2")
        size = (
            np.abs(wide).sum(axis=axes, keepdims=True)
            if power == 1
            else np.sqrt(np.square(wide).sum(axis=axes, keepdims=True))
        )
        return [np.divide(wide, size, out=np.zeros_like(wide), where=size != 0).astype(x.dtype)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: three operations for each element."""
        return accounting.vector(node, graph, operations=3 * graph.tensors[node.inputs[0]].elements)
