"""ONNX operators as differentiable torch functions: gradients of what runs between the integer groups, and float teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hwq.errors import NotSupportedYet
from hwq.graph import Node
from hwq.ops import spatial
from hwq.ops.transposed import footprint_of

__all__ = ["MOVERS", "behind", "chain", "compute", "convolve", "spread"]

Operand = Any  # a torch tensor, an array (a constant that is no float), or None
Operator = Callable[[Node, Sequence[Operand]], Any]
TABLE: dict[str, Operator] = {}

# Operators that only move or choose stored values: they may be applied to integers as they are.
MOVERS = frozenset(
    {
        "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Slice", "Gather", "Tile", "Expand",
        "Split", "MaxPool", "ReduceMax", "ReduceMin", "Dropout",
    }
)  # fmt: skip


def compute(node: Node, operands: Sequence[Operand]) -> tuple[Any, ...]:
    """The node's outputs.

    Raises
    ------
    NotSupportedYet
        There is no differentiable form of the operator.
    """
    operator = TABLE.get(node.op) if node.domain in {"", "com.microsoft"} else None
    if operator is None or node.layout == "NHWC":
        raise NotSupportedYet(
            f"training through {node.kind}",
            where=f"node {node.name}",
            remedy="leave this part out of the module that is trained",
        )
    made = operator(node, operands)
    return made if isinstance(made, tuple) else (made,)


def chain(node: Node, x: Any, constant: Callable[[str], Any]) -> Any:
    """The function that a table holds, of real values; `constant` gives the numbers in it."""
    values: dict[str, Any] = {str(node.attributes["source"]): x}
    for part in node.body:
        if part.op not in {"DequantizeLinear", "QuantizeLinear"}:
            given = [values.get(name, constant(name)) if name else None for name in part.inputs]
            values[part.outputs[0]] = compute(part, given)[0]
    return values[str(node.attributes["result"])]


def behind(node: Node, x: Any, constant: Callable[[str], Any]) -> Any:
    """What the Relu or Clip that a group swallowed behind its operator leaves of a real value."""
    for part in node.body if node.op not in {"Relu", "Clip"} else ():
        if part.op in {"Relu", "Clip"}:
            x = compute(part, [x, *[constant(name) if name else None for name in part.inputs[1:]]])[0]
    return x


def _operator(*names: str) -> Callable[[Operator], Operator]:
    def note(function: Operator) -> Operator:
        for name in names:
            TABLE[name] = function
        return function

    return note


def _simple(name: str, function: Callable[..., Any]) -> None:
    TABLE[name] = lambda node, operands: function(*[_tensor(one) for one in operands])


def _tensor(value: Operand) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _ints(value: Operand) -> list[int]:
    return [int(one) for one in np.asarray(value).reshape(-1)]


def _operand(operands: Sequence[Operand], index: int) -> Operand:
    return operands[index] if index < len(operands) else None


for _name, _function in {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow, "Neg": torch.neg, "Abs": torch.abs,
    "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Erf": torch.erf, "Relu": torch.relu,
    "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Sin": torch.sin, "Cos": torch.cos, "Softplus": F.softplus, "HardSwish": F.hardswish,
    "Mish": F.mish, "Identity": lambda x: x, "Max": torch.maximum, "Min": torch.minimum,
}.items():  # fmt: skip
    _simple(_name, _function)


def _pads(windows: spatial.Windows, space: Sequence[int]) -> list[int]:
    """What each side needs (or has too much) so that exactly the windows fit, last dimension first as `F.pad` takes it."""
    made: list[int] = []
    sides = zip(space, windows.begin, windows.sizes, windows.strides, windows.extents, strict=True)
    for size, begin, count, stride, extent in reversed(list(sides)):
        made += [begin, (count - 1) * stride + extent - size - begin]
    return made


def convolve(node: Node, x: Any, weights: Any, bias: Any = None) -> Any:
    """The convolution, zeros at the borders; any float type."""
    windows = spatial.windows_of(node, tuple(x.shape[2:]), tuple(weights.shape[2:]))
    pads = _pads(windows, x.shape[2:])
    # Equal pads belong to the convolution, which then copies nothing.
    even = tuple(windows.begin) == tuple(windows.end)
    x = x if even else F.pad(x, pads)
    function = (F.conv1d, F.conv2d, F.conv3d)[weights.ndim - 3]
    padding = tuple(windows.begin) if even else 0
    groups = int(node.attributes.get("group", 1))
    return function(x, weights, bias, tuple(windows.strides), padding, tuple(windows.dilations), groups)


@_operator("Conv")
def _conv(node: Node, operands: Sequence[Operand]) -> Any:
    return convolve(node, *[_tensor(_operand(operands, index)) for index in range(3)])


def spread(node: Node, x: Any, weights: Any) -> Any:
    """A transposed convolution without its bias."""
    rank = weights.ndim - 2
    where = footprint_of(node, tuple(x.shape[2:]), tuple(weights.shape[2:]))
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    groups = int(node.attributes.get("group", 1))
    made = function(x, weights, None, where.strides, 0, 0, groups, where.dilations)
    ends = [first + int(size) for first, size in zip(where.begin, where.sizes, strict=True)]
    beyond = [max(0, end - size) for end, size in zip(ends, made.shape[2:], strict=True)]
    made = F.pad(made, [pad for one in reversed(beyond) for pad in (0, one)])
    return made[(..., *(slice(first, end) for first, end in zip(where.begin, ends, strict=True)))]


@_operator("ConvTranspose")
def _conv_transpose(node: Node, operands: Sequence[Operand]) -> Any:
    made = spread(node, _tensor(operands[0]), _tensor(operands[1]))
    bias = _tensor(_operand(operands, 2))
    return made if bias is None else made + bias.reshape(-1, *[1] * (made.ndim - 2))


@_operator("MatMul")
def _matmul(node: Node, operands: Sequence[Operand]) -> Any:
    made = torch.matmul(_tensor(operands[0]), _tensor(operands[1]))
    bias = _tensor(_operand(operands, 2))
    return made if bias is None else made + bias


@_operator("Gemm")
def _gemm(node: Node, operands: Sequence[Operand]) -> Any:
    get = node.attributes.get
    a, b, bias = _tensor(operands[0]), _tensor(operands[1]), _tensor(_operand(operands, 2))
    made = torch.matmul(a.T if get("transA", 0) else a, b.T if get("transB", 0) else b) * float(get("alpha", 1.0))
    return made if bias is None else made + bias * float(get("beta", 1.0))


@_operator("LeakyRelu")
def _leaky(node: Node, operands: Sequence[Operand]) -> Any:
    return F.leaky_relu(operands[0], float(node.attributes.get("alpha", 0.01)))


@_operator("PRelu")
def _prelu(node: Node, operands: Sequence[Operand]) -> Any:
    x, slope = operands[0], _tensor(operands[1])
    return torch.where(x < 0, x * slope, x)


@_operator("Elu")
def _elu(node: Node, operands: Sequence[Operand]) -> Any:
    return F.elu(operands[0], float(node.attributes.get("alpha", 1.0)))


@_operator("HardSigmoid")
def _hard_sigmoid(node: Node, operands: Sequence[Operand]) -> Any:
    get = node.attributes.get
    return (operands[0] * float(get("alpha", 0.2)) + float(get("beta", 0.5))).clamp(0, 1)


@_operator("Gelu")
def _gelu(node: Node, operands: Sequence[Operand]) -> Any:
    approximate = node.attributes.get("approximate", "none")
    word = approximate.decode() if isinstance(approximate, bytes) else str(approximate)
    return F.gelu(operands[0], approximate=word)


@_operator("Clip")
def _clip(node: Node, operands: Sequence[Operand]) -> Any:
    low, high = (
        _operand(operands, index) if _operand(operands, index) is not None else node.attributes.get(name)
        for index, name in ((1, "min"), (2, "max"))
    )
    bounds = [None if one is None else float(one) for one in (low, high)]
    return operands[0].clamp(*bounds) if any(one is not None for one in bounds) else operands[0]


@_operator("Softmax")
def _softmax(node: Node, operands: Sequence[Operand]) -> Any:
    return torch.softmax(operands[0], int(node.attributes.get("axis", -1)))


@_operator("LogSoftmax")
def _log_softmax(node: Node, operands: Sequence[Operand]) -> Any:
    return torch.log_softmax(operands[0], int(node.attributes.get("axis", -1)))


def _axes(node: Node, operands: Sequence[Operand], rank: int) -> list[int]:
    given = _operand(operands, 1)
    axes = _ints(given) if given is not None else [int(one) for one in node.attributes.get("axes", ())]
    if axes or node.attributes.get("noop_with_empty_axes", 0):
        return axes
    return list(range(rank))


@_operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    axes, keep = _axes(node, operands, x.ndim), bool(node.attributes.get("keepdims", 1))
    if not axes:
        return x
    function = {"ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin}
    return function[node.op](x, dim=axes, keepdim=keep)


@_operator("LayerNormalization")
def _layer_normalization(node: Node, operands: Sequence[Operand]) -> Any:
    x, axis = operands[0], int(node.attributes.get("axis", -1))
    shape = tuple(x.shape[axis % x.ndim :])
    weight, bias = _tensor(operands[1]), _tensor(_operand(operands, 2))
    made = F.layer_norm(x, shape, None, None, float(node.attributes.get("epsilon", 1e-5))) * weight
    return made if bias is None else made + bias


@_operator("BatchNormalization")
def _batch_normalization(node: Node, operands: Sequence[Operand]) -> Any:
    x, weight, bias, mean, variance = (_tensor(one) for one in operands[:5])
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, float(node.attributes.get("epsilon", 1e-5)))


@_operator("GlobalAveragePool")
def _global_average(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0].mean(dim=tuple(range(2, operands[0].ndim)), keepdim=True)


@_operator("AveragePool")
def _average(node: Node, operands: Sequence[Operand]) -> Any:
    x, size = operands[0], tuple(int(one) for one in node.attributes["kernel_shape"])
    windows = spatial.windows_of(node, tuple(x.shape[2:]), size)
    pads = _pads(windows, x.shape[2:])
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]
    sums = function(F.pad(x, pads), size, tuple(windows.strides))
    if node.attributes.get("count_include_pad", 0) or not any(pads):
        return sums
    return sums / function(F.pad(torch.ones_like(x[:1, :1]), pads), size, tuple(windows.strides))


@_operator("MaxPool")
def _max_pool(node: Node, operands: Sequence[Operand]) -> Any:
    x, size = operands[0], tuple(int(one) for one in node.attributes["kernel_shape"])
    windows = spatial.windows_of(node, tuple(x.shape[2:]), size)
    pads = _pads(windows, x.shape[2:])
    x = F.pad(x, pads, value=-torch.inf) if any(pads) else x
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(size) - 1]
    return function(x, size, tuple(windows.strides), 0, tuple(windows.dilations))


@_operator("Flatten")
def _flatten(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    axis = int(node.attributes.get("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


@_operator("Reshape")
def _reshape(node: Node, operands: Sequence[Operand]) -> Any:
    x, wanted = operands[0], _ints(operands[1])
    if not node.attributes.get("allowzero", 0):
        wanted = [x.shape[index] if one == 0 else one for index, one in enumerate(wanted)]
    return x.reshape(wanted)


@_operator("Transpose")
def _transpose(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0].permute([int(one) for one in node.attributes.get("perm", range(operands[0].ndim)[::-1])])


@_operator("Squeeze")
def _squeeze(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    given = _operand(operands, 1)
    axes = _ints(given) if given is not None else [int(one) for one in node.attributes.get("axes", ())]
    return x.squeeze(axes or [index for index, size in enumerate(x.shape) if size == 1])


@_operator("Unsqueeze")
def _unsqueeze(node: Node, operands: Sequence[Operand]) -> Any:
    x, given = operands[0], _operand(operands, 1)
    axes = _ints(given) if given is not None else [int(one) for one in node.attributes.get("axes", ())]
    for axis in sorted(one + x.ndim + len(axes) if one < 0 else one for one in axes):
        x = x.unsqueeze(axis)
    return x


@_operator("Concat")
def _concat(node: Node, operands: Sequence[Operand]) -> Any:
    return torch.cat([_tensor(one) for one in operands], int(node.attributes["axis"]))


@_operator("Expand")
def _expand(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(_ints(operands[1]))))


@_operator("Tile")
def _tile(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0].tile(_ints(operands[1]))


@_operator("Gather")
def _gather(node: Node, operands: Sequence[Operand]) -> Any:
    x, where = operands[0], np.asarray(operands[1])
    axis = int(node.attributes.get("axis", 0)) % x.ndim
    chosen = x.index_select(axis, torch.from_numpy(np.where(where < 0, where + x.shape[axis], where).reshape(-1)))
    return chosen.reshape(*x.shape[:axis], *where.shape, *x.shape[axis + 1 :])


@_operator("Slice")
def _slice(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    starts, ends = (
        _ints(_operand(operands, index)) if _operand(operands, index) is not None else _ints(node.attributes[name])
        for index, name in ((1, "starts"), (2, "ends"))
    )
    given, steps = _operand(operands, 3), _operand(operands, 4)
    axes = _ints(given) if given is not None else _ints(node.attributes.get("axes", range(len(starts))))
    strides = _ints(steps) if steps is not None else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, strides, strict=True):
        chosen = np.arange(x.shape[axis])[slice(start, end if end > -(2**31) else None, step)]
        x = x.index_select(axis, torch.from_numpy(chosen.copy()))
    return x


@_operator("Split")
def _split(node: Node, operands: Sequence[Operand]) -> Any:
    x, axis = operands[0], int(node.attributes.get("axis", 0))
    given = _operand(operands, 1)
    sizes = _ints(given) if given is not None else _ints(node.attributes.get("split", ()))
    count = len(node.outputs)
    return torch.split(x, sizes, axis) if sizes else torch.split(x, -(-x.shape[axis] // count), axis)


@_operator("Where")
def _where(node: Node, operands: Sequence[Operand]) -> Any:
    return torch.where(*[_tensor(one) for one in operands])


@_operator("Dropout")
def _dropout(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0]


@_operator("Cast")
def _cast(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0]
