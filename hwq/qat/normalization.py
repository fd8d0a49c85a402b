"""Differentiable forms of normalizations and reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hwq.graph import Node
from hwq.ops.reduce import axes_of
from hwq.qat.operators import Operand, as_tensor, form, integers, operand

__all__: list[str] = []


@form("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
      "ReduceLogSumExp")  # fmt: skip
def _reduce(node: Node, operands: Sequence[Operand]) -> Any:
    x, given = operands[0], operand(operands, 1)
    axes = axes_of(node, node.attributes.get("axes") if given is None else integers(given), x.ndim)
    keep = bool(node.attributes.get("keepdims", 1))
    if not axes:
        return x
    if node.op == "ReduceProd":
        for axis in sorted(axes, reverse=True):
            x = x.prod(axis, keepdim=keep)
        return x
    return REDUCTIONS[node.op](x, dim=axes, keepdim=keep)


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceL1": lambda x, **along: x.abs().sum(**along),
    "ReduceL2": lambda x, **along: x.square().sum(**along).sqrt(),
    "ReduceSumSquare": lambda x, **along: x.square().sum(**along),
    "ReduceLogSum": lambda x, **along: x.sum(**along).log(),
}


@form("CumSum")
def _running(node: Node, operands: Sequence[Operand]) -> Any:
    x, axis = operands[0], integers(operands[1])[0]
    back = bool(node.attributes.get("reverse", 0))
    given = x.flip(axis) if back else x
    made = given.cumsum(axis)
    made = made - given if node.attributes.get("exclusive", 0) else made
    return made.flip(axis) if back else made


def _epsilon(node: Node) -> float:
    return float(node.attributes.get("epsilon", 1e-5))


def _channels(parameter: Operand, x: Any) -> Any:
    """One value a channel, or one a group of them, broadcastable to an image."""
    values = as_tensor(parameter)
    return values.repeat_interleave(x.shape[1] // values.numel()).reshape(-1, *[1] * (x.ndim - 2))


@form("LayerNormalization", "RMSNormalization")
def _layer_normalization(node: Node, operands: Sequence[Operand]) -> Any:
    x, axis = operands[0], int(node.attributes.get("axis", -1))
    shape = tuple(x.shape[axis % x.ndim :])
    weight, bias = as_tensor(operands[1]), as_tensor(operand(operands, 2))
    if node.op == "LayerNormalization":
        made = F.layer_norm(x, shape, None, None, _epsilon(node)) * weight
    else:
        made = F.rms_norm(x, shape, None, _epsilon(node)) * weight
    return made if bias is None else made + bias


@form("GroupNormalization", "InstanceNormalization")
def _group_normalization(node: Node, operands: Sequence[Operand]) -> Any:
    x, weight, bias = operands
    groups = int(node.attributes.get("num_groups", x.shape[1]))
    # F.group_norm refuses one value a channel, and averages over it here as everywhere.
    parts = x.reshape(x.shape[0], groups, -1)
    centered = parts - parts.mean(2, keepdim=True)
    made = centered * (centered.square().mean(2, keepdim=True) + _epsilon(node)).rsqrt()
    return made.reshape(x.shape) * _channels(weight, x) + _channels(bias, x)


@form("BatchNormalization")
def _batch_normalization(node: Node, operands: Sequence[Operand]) -> Any:
    x, weight, bias, mean, variance = (as_tensor(one) for one in operands[:5])
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, _epsilon(node))


@form("LRN")
def _local_response(node: Node, operands: Sequence[Operand]) -> Any:
    x, get, size = operands[0], node.attributes.get, int(node.attributes["size"])
    alpha, beta, bias = float(get("alpha", 1e-4)), float(get("beta", 0.75)), float(get("bias", 1.0))
    squares = F.pad(x.square(), [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2])
    return x * (bias + alpha / size * squares.unfold(1, size, 1).sum(-1)) ** -beta


@form("LpNormalization")
def _by_norm(node: Node, operands: Sequence[Operand]) -> Any:
    return F.normalize(operands[0], float(node.attributes.get("p", 2)), int(node.attributes.get("axis", -1)), 1e-38)


@form("MeanVarianceNormalization")
def _by_deviation(node: Node, operands: Sequence[Operand]) -> Any:
    x, axes = operands[0], tuple(int(one) for one in node.attributes.get("axes", (0, 2, 3)))
    centered = x - x.mean(axes, keepdim=True)
    return centered / (centered.square().mean(axes, keepdim=True).sqrt() + 1e-9)
