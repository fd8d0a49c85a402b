"""PyTorch's dynamic LSTM as layers of onnxruntime's DynamicQuantizeLSTM, whose state goes in and comes out by name."""

from __future__ import annotations

from typing import Any

from hwq.errors import Error

__all__ = ["lstm"]


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

    def unpacked(parameter: Any) -> list[tuple[Any, Any, Any]]:
        """Stored weights (k, 4 size), scales (4 size) and bias of the input's side and of the state's."""
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
        made = []
        for pack in packs:
            weights, bias = torch.ops.quantized.linear_unpack(pack)
            channel = weights.qscheme() in {torch.per_channel_affine, torch.per_channel_symmetric}
            points = weights.q_per_channel_zero_points() if channel else torch.tensor(weights.q_zero_point())
            if bool(points.any()):
                raise Error(
                    "weights with a zero point have no stand-in", where=where, remedy="quantize them symmetrically"
                )
            if weights.shape[0] != 4 * size:
                raise Error("a projected hidden state has no stand-in", where=where, remedy="leave out proj_size")
            scales = weights.q_per_channel_scales() if channel else torch.full((4 * size,), weights.q_scale())
            offsets = torch.zeros(4 * size) if bias is None else bias.detach()
            stored = weights.int_repr()[order].t().contiguous()
            made.append((stored, scales.to(torch.float32)[order], offsets.to(torch.float32)[order]))
        return made

    class Recurrent(torch.nn.Module):  # type: ignore[misc]
        """``torch.quantized_lstm`` with a reduced range."""

        def __init__(self) -> None:
            super().__init__()
            cells = [unpacked(one.param) for one in module._all_weight_values]
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
            y, hidden, cell = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::DynamicQuantizeLSTM",
                (x, *sides, None, *state, None, scales[0], self.points, scales[1], self.points),
                {"hidden_size": size, "direction": "bidirectional" if directions == 2 else "forward"},
                dtypes=(torch.float32,) * 3,
                shapes=((steps, directions, batch, size), *((directions, batch, size),) * 2),
                version=1,
            )
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
