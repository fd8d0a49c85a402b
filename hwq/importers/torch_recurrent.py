"""PyTorch's dynamic recurrent modules, their weights bit for bit, states going in and coming out by name.

A layer of LSTM, and an LSTMCell, is onnxruntime's DynamicQuantizeLSTM; GRU, GRUCell and RNNCell are dynamic products and the
float operators of aten/src/ATen/native/RNN.cpp between them, step by step.
"""

from __future__ import annotations

from typing import Any

from hwq.errors import Error

__all__ = ["cell", "gru", "linear", "lstm", "unpacked"]

# Steps that a GRU may be written out over: some ten nodes each.
STEPS = 256


def linear(torch: Any, x: Any, stored: Any, scales: Any, bias: Any) -> Any:
    """``quantized.linear_dynamic`` with a reduced range: the operator of domain com.microsoft with the same operands."""
    return torch.onnx.ops.symbolic(
        "com.microsoft::DynamicQuantizeMatMul",
        (x, stored, scales, None, bias),
        dtype=torch.float32,
        shape=(*x.shape[:-1], stored.shape[1]),
        version=1,
    )


def unpacked(torch: Any, given: Any, where: str) -> tuple[Any, Any, Any]:
    """Stored weights (K, N), scales (N) and bias (N) of a dynamic product, from quantized weights (N, K) and a bias or None.

    Raises
    ------
    Error
        The weights are not int8 and symmetric.
    """
    weights, bias = given
    if weights.dtype != torch.qint8:
        raise Error(f"weights of type {weights.dtype} have no stand-in", where=where, remedy="use qint8 weights")
    channel = weights.qscheme() in {torch.per_channel_affine, torch.per_channel_symmetric}
    points = weights.q_per_channel_zero_points() if channel else torch.tensor(weights.q_zero_point())
    if bool(points.any()):
        raise Error("weights with a zero point have no stand-in", where=where, remedy="quantize them symmetrically")
    count = weights.shape[0]
    scales = weights.q_per_channel_scales() if channel else torch.full((count,), weights.q_scale())
    offsets = torch.zeros(count) if bias is None else bias.detach()
    return weights.int_repr().t().contiguous(), scales.to(torch.float32), offsets.to(torch.float32)


def _sides(torch: Any, parameter: Any, where: str) -> list[tuple[Any, Any, Any]]:
    """`unpacked` of a layer's input and of its state.

    Raises
    ------
    Error
        As `unpacked`, or activations keep all 8 bits.
    """
    kind, _, _, flags, packs = parameter.__getstate__()[0]
    if kind != "quantized_dynamic":
        raise Error(f"weights stored as {kind} have no stand-in", where=where, remedy="use qint8 weights")
    if not flags or not flags[0]:
        raise Error(
            "activations of 8 bits have no stand-in",
            where=where,
            why="the module was made without reduce_range, before torch 1.7",
            remedy="quantize the float module again",
        )
    return [unpacked(torch, torch.ops.quantized.linear_unpack(pack), where) for pack in packs]


def _layer(torch: Any, x: Any, sides: Any, scales: Any, points: Any, state: Any) -> Any:
    """One layer of LSTM: output, hidden and cell state, with a dimension of directions each."""
    steps, batch = x.shape[:2]
    directions, size = points.shape[0], points.shape[1] // 4
    return torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::DynamicQuantizeLSTM",
        (x, *sides, None, *state, None, scales[0], points, scales[1], points),
        {"hidden_size": size, "direction": "bidirectional" if directions == 2 else "forward"},
        dtypes=(torch.float32,) * 3,
        shapes=((steps, directions, batch, size), *((directions, batch, size),) * 2),
        version=1,
    )


def lstm(torch: Any, module: Any, where: str) -> Any:
    """The stand-in of ``torch.ao.nn.quantized.dynamic.LSTM``: the same arguments and results, stored weights bit for bit.

    Raises
    ------
    Error
        The weights are not int8 and symmetric, activations keep all 8 bits, or the hidden state is projected.
    """
    directions = 2 if module.bidirectional else 1
    size = int(module.hidden_size)
    # torch stacks input, forget, cell, output; ONNX input, output, forget, cell. Whole rows move, so no bit changes.
    order = torch.cat([torch.arange(size) + part * size for part in (0, 3, 1, 2)])

    def ordered(parameter: Any) -> list[tuple[Any, Any, Any]]:
        """Both sides with the gates in ONNX's order."""
        made = _sides(torch, parameter, where)
        if any(stored.shape[1] != 4 * size for stored, _, _ in made) or len(made) != 2:
            raise Error("a projected hidden state has no stand-in", where=where, remedy="leave out proj_size")
        return [(stored[:, order].contiguous(), scales[order], bias[order]) for stored, scales, bias in made]

    class Recurrent(torch.nn.Module):  # type: ignore[misc]
        """``torch.quantized_lstm`` with a reduced range."""

        def __init__(self) -> None:
            super().__init__()
            cells = [ordered(one.param) for one in module._all_weight_values]
            for layer in range(module.num_layers):
                both = cells[layer * directions : (layer + 1) * directions]
                for side, name in enumerate(("input", "state")):
                    for part, what in enumerate(("weights", "scales")):
                        self.register_buffer(f"{name}_{what}_{layer}", torch.stack([one[side][part] for one in both]))
                self.register_buffer(f"bias_{layer}", torch.stack([torch.cat([a[2], b[2]]) for a, b in both]))
            self.register_buffer("points", torch.zeros((directions, 4 * size), dtype=torch.int8))

        def layer(self, index: int, x: Any, state: tuple[Any, Any]) -> Any:
            steps, batch = x.shape[:2]
            sides = [getattr(self, f"{name}_{index}") for name in ("input_weights", "state_weights", "bias")]
            scales = [getattr(self, f"{name}_scales_{index}") for name in ("input", "state")]
            y, hidden, cell = _layer(torch, x, sides, scales, self.points, state)
            return y.transpose(1, 2).reshape(steps, batch, directions * size), hidden, cell

        def forward(self, x: Any, hx: Any = None) -> Any:
            y, hidden, cell = x.transpose(0, 1) if module.batch_first else x, [], []
            for index in range(module.num_layers):
                part = slice(index * directions, (index + 1) * directions)
                y, *last = self.layer(index, y, (None, None) if hx is None else (hx[0][part], hx[1][part]))
                hidden.append(last[0])
                cell.append(last[1])
            return y.transpose(0, 1) if module.batch_first else y, (torch.cat(hidden), torch.cat(cell))

    return Recurrent()


def gru(torch: Any, module: Any, where: str) -> Any:
    """The stand-in of ``torch.ao.nn.quantized.dynamic.GRU``, written out over the steps of the example.

    Raises
    ------
    Error
        As `lstm`, or there are more than `STEPS` steps.
    """
    directions = 2 if module.bidirectional else 1
    size = int(module.hidden_size)

    class Recurrent(torch.nn.Module):  # type: ignore[misc]
        """``torch.quantized_gru`` with a reduced range."""

        def __init__(self) -> None:
            super().__init__()
            for index, one in enumerate(module._all_weight_values):
                for side, parts in zip(("input", "state"), _sides(torch, one.param, where), strict=True):
                    for what, part in zip(("weights", "scales", "bias"), parts, strict=True):
                        self.register_buffer(f"{side}_{what}_{index}", part)

        def side(self, name: str, index: int, x: Any) -> Any:
            return linear(
                torch, x, *(getattr(self, f"{name}_{what}_{index}") for what in ("weights", "scales", "bias"))
            )

        def forward(self, x: Any, hx: Any = None) -> Any:
            y, states = x.transpose(0, 1) if module.batch_first else x, []
            count = int(y.shape[0])
            if count > STEPS:
                raise Error(
                    f"a GRU over {count} steps is not written out", where=where, remedy=f"export at most {STEPS} steps"
                )
            for layer in range(module.num_layers):
                both = []
                for direction in range(directions):
                    index = layer * directions + direction
                    given = self.side("input", index, y)
                    hidden = y.new_zeros(y.shape[1], size) if hx is None else hx[index]
                    made: list[Any] = [None] * count
                    for step in reversed(range(count)) if direction else range(count):
                        hidden = made[step] = _gru_step(torch, given[step], self.side("state", index, hidden), hidden)
                    both.append(torch.stack(made))
                    states.append(hidden)
                y = torch.cat(both, 2)
            return y.transpose(0, 1) if module.batch_first else y, torch.stack(states)

    return Recurrent()


def _gru_step(torch: Any, given: Any, kept: Any, hidden: Any) -> Any:
    (i_reset, i_update, i_new), (h_reset, h_update, h_new) = given.chunk(3, 1), kept.chunk(3, 1)
    reset, update = (h_reset + i_reset).sigmoid(), (h_update + i_update).sigmoid()
    new = (i_new + h_new * reset).tanh()
    return (hidden - new) * update + new


def cell(torch: Any, module: Any, where: str) -> Any:
    """The stand-in of a dynamic LSTMCell, GRUCell or RNNCell."""
    kind, size = type(module).__name__, int(module.hidden_size)
    packs = (module._packed_weight_ih, module._packed_weight_hh)
    sides = [unpacked(torch, pack.__getstate__()[0][:2], where) for pack in packs]

    class Cell(torch.nn.Module):  # type: ignore[misc]
        """``quantized_lstm_cell_dynamic`` and its kin."""

        def __init__(self) -> None:
            super().__init__()
            for side, parts in zip(("input", "state"), sides, strict=True):
                for what, part in zip(("weights", "scales", "bias"), parts, strict=True):
                    if kind == "LSTMCell":
                        order = torch.cat([torch.arange(size) + gate * size for gate in (0, 3, 1, 2)])
                        part = part[..., order].contiguous()[None]
                    self.register_buffer(f"{side}_{what}", part)
            self.register_buffer("points", torch.zeros((1, 4 * size), dtype=torch.int8))

        def forward(self, x: Any, hx: Any = None) -> Any:
            if kind == "LSTMCell":
                state = (None, None) if hx is None else (hx[0][None], hx[1][None])
                bias = torch.cat([self.input_bias, self.state_bias], 1)
                stored, scales = (self.input_weights, self.state_weights, bias), (self.input_scales, self.state_scales)
                _, hidden, kept = _layer(torch, x[None], stored, scales, self.points, state)
                return hidden[0], kept[0]
            hidden = x.new_zeros(x.shape[0], size) if hx is None else hx
            given = linear(torch, x, self.input_weights, self.input_scales, self.input_bias)
            kept = linear(torch, hidden, self.state_weights, self.state_scales, self.state_bias)
            if kind == "GRUCell":
                return _gru_step(torch, given, kept, hidden)
            return (kept + given).tanh() if module.nonlinearity == "tanh" else (kept + given).relu()

    return Cell()
