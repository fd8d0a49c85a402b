"""Random LSTMs of one node: float ones, and DynamicQuantizeLSTM with weights of either sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hwq.graph import Array

if TYPE_CHECKING:
    from hwq.verification.onnx_builder import Builder

__all__ = ["integer_lstm", "lstm"]

DIRECTIONS = ("forward", "reverse", "bidirectional")


def _sizes(b: Builder) -> tuple[int, int, int, int, str, int]:
    steps, batch, width, size = (int(b.rng.integers(low, high)) for low, high in ((1, 8), (1, 24), (1, 48), (8, 40)))
    direction = str(b.rng.choice(DIRECTIONS))
    return steps, batch, width, size, direction, 2 if direction == "bidirectional" else 1


def lstm(b: Builder) -> str:
    """LSTM with every optional input, clipping and coupled gates now and then."""
    steps, batch, width, size, direction, count = _sizes(b)

    def draw(*shape: int) -> Array:
        return np.asarray(b.rng.standard_normal(shape) * 0.4, np.float32)

    inputs = [b.feed(draw(steps, batch, width) * 2), b.constant(draw(count, 4 * size, width)), b.constant(draw(count, 4 * size, size))]  # fmt: skip
    lengths = b.rng.integers(0, steps + 1, batch).astype(np.int32)
    for value, share in ((draw(count, 8 * size), 0.8), (lengths, 0.3), (draw(count, batch, size), 0.4),
                         (draw(count, batch, size), 0.4), (draw(count, 3 * size), 0.3)):  # fmt: skip
        inputs.append(b.constant(value) if b.rng.random() < share else "")
    clip: dict[str, Any] = {"clip": 0.8} if b.rng.random() < 0.3 else {}
    return b.add("LSTM", *inputs, hidden_size=size, direction=direction, input_forget=int(b.rng.random() < 0.2), **clip)


def integer_lstm(dtype: str) -> Callable[[Builder], str]:
    """DynamicQuantizeLSTM over all 8 bits."""

    def draw(b: Builder) -> str:
        steps, batch, width, size, direction, count = _sizes(b)
        info = np.iinfo(dtype)
        each = (count, 4 * size) if b.rng.random() < 0.5 else (count,)
        weights = [b.rng.integers(info.min, info.max + 1, (count, k, 4 * size)).astype(dtype) for k in (width, size)]
        pairs = [b.constant(value) for _ in range(2) for value in (b.rng.uniform(0.001, 0.006, each).astype(np.float32), np.full(each, 0 if info.min else 128, dtype))]  # fmt: skip
        bias = (b.rng.standard_normal((count, 8 * size)) * 0.4).astype(np.float32)
        x = b.feed(b.rng.standard_normal((steps, batch, width)).astype(np.float32))
        inputs = [x, *(b.constant(one) for one in (*weights, bias)), "", "", "", "", *pairs]
        return b.add("DynamicQuantizeLSTM", *inputs, domain="com.microsoft", hidden_size=size, direction=direction)

    return draw
