"""Float convolution of any rank, grouped, dilated, with any padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Tensor
from hwq.ops import accounting, arithmetic, dims, spatial
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import require_float
from hwq.work import Work

__all__ = ["Conv", "convolution_shape", "convolution_work", "filters_first"]


def filters_first(weight: Array, node: Node) -> Array:
    """A weight as [filters, channels / groups, *kernel]; layout NHWC stores [filters, *kernel, channels / groups]."""
    return np.moveaxis(weight, -1, 1) if node.layout == "NHWC" else weight


def weight_dims(weight: Tensor, node: Node) -> tuple[Dim, Dim, tuple[Dim, ...]]:
    """(filters, channels / groups, kernel) of a weight in the node's layout."""
    if node.layout == "NHWC":
        return weight.shape[0], weight.shape[-1], weight.shape[1:-1]
    return weight.shape[0], weight.shape[1], weight.shape[2:]


def convolution_shape(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[tuple[Dim, ...], bool]:
    """The shape of a convolution's output, and whether it is known.

    Raises
    ------
    Error
        Input, weight, bias and attributes do not fit together.
    """
    groups = node.attributes.get("group", 1)
    if not isinstance(groups, int) or groups < 1:
        raise dims.fault(node, f"group = {groups} must be a positive integer")
    if not dims.rank_known(x, weight):
        return (), False
    batch, channels, space = spatial.split_shape(node, x.shape)
    if len(weight.shape) != len(x.shape):
        raise dims.fault(
            node, f"a weight {list(weight.shape)} does not fit the input {list(x.shape)}", "their ranks must be equal"
        )
    filters, each, kernel = weight_dims(weight, node)
    stated = node.attributes.get("kernel_shape")
    if all(isinstance(size, int) for size in kernel):
        sizes = tuple(int(size) for size in kernel)
        if stated is not None and tuple(stated) != sizes:
            raise dims.fault(node, f"kernel_shape {list(stated)[:8]} differs from the weight's {list(sizes)}")
    elif stated is not None:
        sizes = tuple(int(size) for size in stated)
    else:
        return (batch, filters), False
    if isinstance(channels, int) and isinstance(each, int) and channels != each * groups:
        raise dims.fault(
            node,
            f"the input has {channels} channels, the weight {list(weight.shape)} with group {groups} takes {each * groups}",
        )
    if isinstance(filters, int) and filters % groups:
        raise dims.fault(node, f"{filters} filters cannot be split into {groups} groups")
    if (
        bias is not None
        and bias.known_shape
        and (
            len(bias.shape) != 1
            or (isinstance(bias.shape[0], int) and isinstance(filters, int) and bias.shape[0] != filters)
        )
    ):
        raise dims.fault(node, f"the bias {list(bias.shape)} does not fit {filters} filters")
    windows = spatial.windows_of(node, space, sizes)
    return spatial.activation_shape(node, batch, filters, windows.counts), True


def convolution_work(node: Node, graph: Graph, first: int = 0, second: int = 1, main: str | None = None) -> Work:
    """The Work of a convolution whose operands are ``node.inputs[first]`` and ``[second]``."""
    x, weight, made = (graph.tensors[name] for name in (node.inputs[first], node.inputs[second], node.outputs[0]))
    _ = x.elements, weight.elements, made.elements  # all concrete, or one clear error
    groups = int(node.attributes.get("group", 1))
    filters, each, kernel = weight_dims(weight, node)
    batch, input_h, input_w, input_c = accounting.positions(x.shape, node.layout or "NCHW")
    _, output_h, output_w, output_c = accounting.positions(made.shape, node.layout or "NCHW")
    taps = int(np.prod([int(size) for size in kernel], dtype=np.int64))
    strides = dims.ints_attribute(node, "strides", [1] * len(kernel))
    depthwise = groups > 1 and int(each) == 1
    return accounting.multiply(
        node, graph, kind="depthwise" if depthwise else "gemm", groups=groups, m=batch * output_h * output_w, k=taps * int(each),
        n=int(filters) // groups, first=first, second=second, main=main, batch=batch, input_h=input_h, input_w=input_w,
        input_c=input_c, output_h=output_h, output_w=output_w, output_c=output_c, kernel_h=taps // int(kernel[-1]),
        kernel_w=int(kernel[-1]), stride_h=strides[-2] if len(strides) > 1 else 1, stride_w=strides[-1],
    )  # fmt: skip


@register
class Conv(Op):
    """ONNX Conv, float."""

    names = ("Conv",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 2 <= len(inputs) <= 3 or inputs[0] is None or inputs[1] is None:
            raise dims.fault(node, "Conv needs an input, a weight and at most a bias")
        dtype = dims.same_types(node, inputs)
        require_float(node, inputs[0])
        shape, known = convolution_shape(node, inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None)
        return [(dtype, shape if known else (), known)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, weight = inputs[0], inputs[1]
        assert x is not None and weight is not None
        image, filters = spatial.channels_first(x, node), filters_first(weight, node)
        windows = spatial.windows_of(node, image.shape[2:], filters.shape[2:])
        result = arithmetic.convolve(
            image,
            filters,
            windows.begin,
            windows.end,
            windows.strides,
            windows.dilations,
            int(node.attributes.get("group", 1)),
            windows.sizes,
            inputs[2] if len(inputs) > 2 else None,
        )
        return [spatial.from_channels_first(result, node)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return convolution_work(node, graph)
