"""Differentiable forms of LSTM, GRU and RNN: the operator's own loop over time, in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hwq.errors import NotSupportedYet
from hwq.graph import Node
from hwq.ops.recurrent import bounded
from hwq.qat.operators import Operand, as_tensor, form, operand

__all__: list[str] = []

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": F.softsign,
    "softplus": F.softplus,
}
DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


@form("LSTM", "GRU", "RNN")
def _recurrent(node: Node, operands: Sequence[Operand]) -> Any:
    """All directions, one after the other (ONNX LSTM, GRU, RNN)."""
    get = node.attributes.get
    if operand(operands, 4) is not None or get("clip") is not None or get("activation_alpha") or get("activation_beta"):
        raise _beyond(node, "lengths, clipped gates, or functions with parameters")
    x, weights, recurrent, bias = (as_tensor(operand(operands, index)) for index in range(4))
    first = bool(get("layout", 0))
    x = x.swapaxes(0, 1) if first else x
    count, size = recurrent.shape[0], recurrent.shape[2]
    starts = [as_tensor(operand(operands, index)) for index in (5, 6)]
    bounded(node, len(x))
    made, last = [], []
    for index in range(count):
        states = [
            x.new_zeros(x.shape[1], size) if one is None else (one.swapaxes(0, 1) if first else one)[index]
            for one in starts
        ]
        given = bias[index] if bias is not None else x.new_zeros(2 * weights.shape[1])
        peep = as_tensor(operand(operands, 7))
        cell = _Cell(node, index, weights[index], recurrent[index], given, None if peep is None else peep[index])
        back = index == 1 or get("direction", "forward") == "reverse"
        rows = []
        for step in x.flip(0) if back else x:
            states = cell(step, *states)
            rows.append(states[0])
        whole = torch.stack(rows)
        made.append(whole.flip(0) if back else whole)
        last.append(states)
    outputs = [torch.stack(made, 1), *(torch.stack([one[state] for one in last]) for state in (0, 1))]
    if first:
        outputs = [outputs[0].permute(2, 0, 1, 3), *(one.swapaxes(0, 1) for one in outputs[1:])]
    return tuple(outputs[: 3 if node.op == "LSTM" else 2])


def _beyond(node: Node, what: str) -> NotSupportedYet:
    return NotSupportedYet(
        f"training through {node.op} with {what}",
        where=f"node {node.name}",
        remedy="leave this part out of the module that is trained",
    )


class _Cell:
    """One direction's step: the gates' order is ONNX's (LSTM i o f c, GRU z r h)."""

    def __init__(self, node: Node, index: int, weights: Any, recurrent: Any, bias: Any, peep: Any):
        self.node, self.weights, self.recurrent = node, weights, recurrent
        self.first, self.second = bias.chunk(2)
        self.peep = None if peep is None else peep.chunk(3)
        each = DEFAULTS[node.op]
        names = [str(one).lower() for one in node.attributes.get("activations", each * (index + 1))]
        names = names[index * len(each) : (index + 1) * len(each)]
        if any(name not in FUNCTIONS for name in names):
            raise _beyond(node, "functions with parameters")
        self.functions = [FUNCTIONS[name] for name in names]

    def __call__(self, x: Any, hidden: Any, cell: Any) -> list[Any]:
        """The new hidden and cell states."""
        given = x @ self.weights.T + self.first
        if self.node.op == "GRU":
            return [self._gru(given, hidden), cell]
        total = given + hidden @ self.recurrent.T + self.second
        if self.node.op == "RNN":
            return [self.functions[0](total), cell]
        f, g, h = self.functions
        inside, outside, forget, candidate = total.chunk(4, 1)
        if self.peep is not None:
            inside, forget = inside + self.peep[0] * cell, forget + self.peep[2] * cell
        opened = f(inside)
        kept = 1 - opened if self.node.attributes.get("input_forget", 0) else f(forget)
        made = kept * cell + opened * g(candidate)
        outside = outside if self.peep is None else outside + self.peep[1] * made
        return [f(outside) * h(made), made]

    def _gru(self, given: Any, hidden: Any) -> Any:
        f, g = self.functions
        size = hidden.shape[1]
        by_hidden = hidden @ self.recurrent.T + self.second
        update, reset = f(given[:, : 2 * size] + by_hidden[:, : 2 * size]).chunk(2, 1)
        if self.node.attributes.get("linear_before_reset", 0):
            inner = reset * by_hidden[:, 2 * size :]
        else:
            inner = (reset * hidden) @ self.recurrent[2 * size :].T + self.second[2 * size :]
        return (1 - update) * g(given[:, 2 * size :] + inner) + update * hidden
