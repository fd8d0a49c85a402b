"""Differentiable forms of operators that move, choose and repeat elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hwq.errors import NotSupportedYet
from hwq.graph import Node
from hwq.ops.application import evaluate_node
from hwq.qat.operators import Operand, as_tensor, form, integers, operand

__all__: list[str] = []


@form("Flatten")
def _flatten(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    axis = int(node.attributes.get("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


@form("Reshape")
def _reshape(node: Node, operands: Sequence[Operand]) -> Any:
    x, wanted = operands[0], integers(operands[1])
    if not node.attributes.get("allowzero", 0):
        wanted = [x.shape[index] if one == 0 else one for index, one in enumerate(wanted)]
    return x.reshape(wanted)


@form("Transpose")
def _transpose(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0].permute([int(one) for one in node.attributes.get("perm", range(operands[0].ndim)[::-1])])


@form("Squeeze")
def _squeeze(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    given = operand(operands, 1)
    axes = integers(given) if given is not None else [int(one) for one in node.attributes.get("axes", ())]
    return x.squeeze(axes or [index for index, size in enumerate(x.shape) if size == 1])


@form("Unsqueeze")
def _unsqueeze(node: Node, operands: Sequence[Operand]) -> Any:
    x, given = operands[0], operand(operands, 1)
    axes = integers(given) if given is not None else [int(one) for one in node.attributes.get("axes", ())]
    for axis in sorted(one + x.ndim + len(axes) if one < 0 else one for one in axes):
        x = x.unsqueeze(axis)
    return x


@form("Concat")
def _concat(node: Node, operands: Sequence[Operand]) -> Any:
    return torch.cat([as_tensor(one) for one in operands], int(node.attributes["axis"]))


@form("Expand")
def _expand(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(integers(operands[1]))))


@form("Tile")
def _tile(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0].tile(integers(operands[1]))


@form("Gather")
def _gather(node: Node, operands: Sequence[Operand]) -> Any:
    x, where = operands[0], np.asarray(operands[1])
    axis = int(node.attributes.get("axis", 0)) % x.ndim
    chosen = x.index_select(axis, torch.from_numpy(np.where(where < 0, where + x.shape[axis], where).reshape(-1)))
    return chosen.reshape(*x.shape[:axis], *where.shape, *x.shape[axis + 1 :])


@form("Slice")
def _slice(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    starts, ends = (
        integers(operand(operands, index)) if operand(operands, index) is not None else integers(node.attributes[name])
        for index, name in ((1, "starts"), (2, "ends"))
    )
    given, steps = operand(operands, 3), operand(operands, 4)
    axes = integers(given) if given is not None else integers(node.attributes.get("axes", range(len(starts))))
    strides = integers(steps) if steps is not None else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, strides, strict=True):
        chosen = np.arange(x.shape[axis])[slice(start, end if end > -(2**31) else None, step)]
        x = x.index_select(axis, torch.from_numpy(chosen.copy()))
    return x


@form("Split")
def _split(node: Node, operands: Sequence[Operand]) -> Any:
    x, axis = operands[0], int(node.attributes.get("axis", 0))
    given = operand(operands, 1)
    sizes = integers(given) if given is not None else integers(node.attributes.get("split", ()))
    count = len(node.outputs)
    return torch.split(x, sizes, axis) if sizes else torch.split(x, -(-x.shape[axis] // count), axis)


# Which operands are moved; the others are places and sizes.
MOVED = {
    "Pad": (0, 2), "GatherElements": (0,), "GatherND": (0,), "Scatter": (0, 2), "ScatterElements": (0, 2), "ScatterND": (0, 2),
    "Compress": (0,), "DepthToSpace": (0,), "SpaceToDepth": (0,), "ReverseSequence": (0,), "Trilu": (0,),
}  # fmt: skip


@form(*MOVED)
def _by_place(node: Node, operands: Sequence[Operand]) -> Any:
    """What the operator does to the elements' places, read from the operator itself: 0 is what it fills in, a zero."""
    if node.attributes.get("reduction", "none") != "none":
        raise NotSupportedYet(
            f"training through {node.kind} that adds or multiplies",
            where=f"node {node.name}",
            remedy="leave this part out of the module that is trained",
        )
    moved = [index for index in MOVED[node.op] if operand(operands, index) is not None]
    parts = [as_tensor(operands[index]) for index in moved]
    places, given, first = list(operands), [torch.zeros(1), *(part.reshape(-1) for part in parts)], 1
    for index, part in zip(moved, parts, strict=True):
        places[index] = np.arange(first, first + part.numel()).reshape(tuple(part.shape))
        first += part.numel()
    (found,) = evaluate_node(node, places)
    return torch.cat(given).index_select(0, torch.from_numpy(found.reshape(-1))).reshape(found.shape)


@form("TopK")
def _top(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    _, places = evaluate_node(node, [x.detach().numpy(), np.asarray(operands[1])])
    return x.gather(int(node.attributes.get("axis", -1)), torch.from_numpy(places)), places
