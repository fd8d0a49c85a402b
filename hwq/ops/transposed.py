"""Float transposed convolution: every input element lays its filter over the output, where the products add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Shape, Tensor
from hwq.ops import accounting, arithmetic, dims
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import require_float
from hwq.work import Work

__all__ = ["ConvTranspose", "Footprint", "footprint_of", "spread"]

# The product of transposed filters (filters * taps, channels) and an image (channels, positions).
Product = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Footprint:
    """Where filters lie in the output: one entry a dimension in every field; `begin` elements in front are cut off."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    sizes: tuple[Dim, ...]


def footprint_of(node: Node, space: Shape, kernel: Sequence[int]) -> Footprint:
    """The footprint that the node's attributes give filters over an input of `space`.

    Raises
    ------
    Error
        An attribute has a wrong length or value, or nothing is left.
    """
    rank, kernel = len(space), tuple(kernel)
    strides, dilations = (dims.ints_attribute(node, name, [1] * rank, rank, 1) for name in ("strides", "dilations"))
    extents = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilations, strict=True)]
    extra = dims.ints_attribute(node, "output_padding", [0] * rank, rank, 0)
    pads = dims.ints_attribute(node, "pads", [0] * (2 * rank), 2 * rank, 0)
    stated = node.attributes.get("output_shape")
    wanted = None if stated is None else dims.ints_attribute(node, "output_shape", (), None, 1)[-rank:]
    auto = node.attributes.get("auto_pad", "NOTSET")
    if auto not in {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"} or (wanted is not None and len(wanted) != rank):
        raise dims.fault(node, f"auto_pad {auto!r} or output_shape {stated} does not fit {rank} spatial dimensions")
    if max((*extents, *strides, *extra, *pads), default=0) > 1 << 31:
        raise dims.fault(node, "kernel, stride, dilation or padding is beyond any image")
    begin: list[int] = []
    sizes: list[Dim] = []
    for index, (size, stride) in enumerate(zip(space, strides, strict=True)):
        spare = extents[index] + extra[index] - stride
        if wanted is None and not auto.startswith("SAME"):
            cut = (0, 0) if auto == "VALID" else (pads[index], pads[rank + index])
            sizes.append(dims.offset(dims.product([size, stride]), spare - sum(cut)))
            begin.append(cut[0])
        elif isinstance(size, str):
            raise dims.fault(node, f"the padding depends on the open dimension {size}", None, "bind it: shapes={...}")
        else:
            whole = size * stride + spare
            target = size * stride if wanted is None else wanted[index]
            total = max(whole - target, 0)
            begin.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
            sizes.append(whole - total if wanted is None else target)
    if any(isinstance(size, int) and size < 1 for size in sizes) and all(size != 0 for size in space):
        raise dims.fault(node, f"nothing is left of an output of {sizes}")
    return Footprint(kernel, strides, dilations, tuple(begin), tuple(sizes))


def spread(x: Array, weight: Array, groups: int, where: Footprint, product: Product) -> Array:
    """[N, C, *space] and weights [C, filters / groups, *kernel] to [N, filters, *sizes]; tap after tap is added.

    Parameters
    ----------
    x, weight : array
    groups : int
    where : Footprint
        Its sizes are numbers.
    product : callable
        Multiplies filters and one image of one group.
    """
    space, each, depth = x.shape[2:], weight.shape[1], x.shape[1] // groups
    sizes = [int(size) for size in where.sizes]
    reach = [(size - 1) * stride + (taps - 1) * step + 1
             for size, stride, taps, step in zip(space, where.strides, where.kernel, where.dilations, strict=True)]  # fmt: skip
    room = [max(far, first + size) for far, first, size in zip(reach, where.begin, sizes, strict=True)]
    kept = (slice(None), *(slice(first, first + size) for first, size in zip(where.begin, sizes, strict=True)))
    made = np.empty((x.shape[0], each * groups, *sizes), x.dtype)
    for index, group in np.ndindex(x.shape[0], groups):
        part = slice(group * depth, (group + 1) * depth)
        filters = np.ascontiguousarray(weight[part].reshape(depth, -1).T)
        columns = product(filters, np.ascontiguousarray(x[index, part]).reshape(depth, -1))
        columns = columns.reshape(each, *where.kernel, *space)
        total = np.zeros((each, *room), x.dtype)
        for tap in np.ndindex(*where.kernel):
            places = (slice(at * step, at * step + (size - 1) * stride + 1, stride)
                      for at, step, size, stride in zip(tap, where.dilations, space, where.strides, strict=True))  # fmt: skip
            total[(slice(None), *places)] += columns[(slice(None), *tap)]
        made[index, group * each : (group + 1) * each] = total[kept]
    return made


@register
class ConvTranspose(Op):
    """ONNX ConvTranspose, float."""

    names = ("ConvTranspose",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 2 <= len(inputs) <= 3 or inputs[0] is None or inputs[1] is None:
            raise dims.fault(node, "ConvTranspose needs an input, a weight and at most a bias")
        x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        dtype = dims.same_types(node, inputs)
        require_float(node, x)
        groups = node.attributes.get("group", 1)
        if not isinstance(groups, int) or groups < 1:
            raise dims.fault(node, f"group = {groups} must be a positive integer")
        if not dims.rank_known(x, weight):
            return [(dtype, (), False)]
        if len(x.shape) < 3 or len(weight.shape) != len(x.shape) or not weight.concrete:
            raise dims.fault(node, f"a weight {list(weight.shape)} does not fit the input {list(x.shape)}")
        channels, each = (int(size) for size in weight.shape[:2])
        kernel = tuple(int(size) for size in weight.shape[2:])
        if channels % groups or (isinstance(x.shape[1], int) and x.shape[1] != channels):
            raise dims.fault(
                node, f"a weight {list(weight.shape)} of {groups} groups does not fit {x.shape[1]} channels"
            )
        stated = node.attributes.get("kernel_shape")
        if min(kernel) < 1 or (stated is not None and tuple(stated) != kernel):
            raise dims.fault(node, f"kernel_shape {stated} differs from the weight's {list(kernel)}")
        if bias is not None and bias.concrete and bias.shape != (each * groups,):
            raise dims.fault(node, f"the bias {list(bias.shape)} does not fit {each * groups} filters")
        sizes = footprint_of(node, x.shape[2:], kernel).sizes
        return [(dtype, (x.shape[0], each * groups, *sizes), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        assert x is not None and weight is not None
        where = footprint_of(node, x.shape[2:], weight.shape[2:])
        made = spread(x, weight, int(node.attributes.get("group", 1)), where, arithmetic.matmul)
        return [made if bias is None else made + bias.reshape(-1, *([1] * len(where.sizes)))]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: one product of all filters for each input position."""
        x, weight, made = (graph.tensors[name] for name in (*node.inputs[:2], node.outputs[0]))
        groups, kernel = int(node.attributes.get("group", 1)), [int(size) for size in weight.shape[2:]]
        batch, input_h, input_w, channels = accounting.positions(x.shape, "NCHW")
        _, output_h, output_w, filters = accounting.positions(made.shape, "NCHW")
        taps = int(np.prod(kernel, dtype=np.int64))
        strides = dims.ints_attribute(node, "strides", [1] * len(kernel))
        return accounting.multiply(
            node, graph, kind="gemm", groups=groups, m=batch * input_h * input_w, k=channels // groups,
            n=taps * int(weight.shape[1]), batch=batch, input_h=input_h, input_w=input_w, input_c=channels, output_h=output_h,
            output_w=output_w, output_c=filters, kernel_h=taps // kernel[-1], kernel_w=kernel[-1],
            stride_h=strides[-2] if len(strides) > 1 else 1, stride_w=strides[-1],
        )  # fmt: skip
