"""TFLite models of one recurrent operator, drawn at random: SVDF and LSTM in integers, in floats, and in floats beside int8."""

from __future__ import annotations

from typing import Any

import numpy as np

from hwq.verification.tflite_builder import Builder, options

__all__ = ["long_rows", "lstm", "svdf"]

Generator = np.random.Generator


class _Draw:
    """Tensors of one model whose activations are float32 or int8 and whose weights are float32 or int8."""

    def __init__(self, rng: Generator, dtype: str, weight: str):
        self.rng, self.dtype, self.weight, self.b = rng, dtype, weight, Builder()
        self.integer = dtype == "int8"

    def below(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def scale(self, low: float, high: float) -> float:
        """Between e**low and e**high, sometimes a power of two."""
        return float(2.0 ** -self.below(5, 9)) if self.chance(0.2) else float(np.exp(self.rng.uniform(low, high)))

    def scheme(self, low: float, high: float) -> dict[str, Any]:
        return {"scale": self.scale(low, high), "zero": self.below(-128, 128)} if self.integer else {}

    def matrix(self, shape: list[int]) -> int:
        if self.weight == "float32":
            return self.b.tensor("float32", shape, self.rng.standard_normal(shape))
        return self.b.tensor("int8", shape, self.rng.integers(-127, 128, shape), self.scale(-6, -3))

    def vector(self, count: int, bound: int, low: float, high: float, dtype: str) -> int:
        """Integers of a type, or floats where the model's activations are floats and the type is not int8."""
        if not self.integer and (dtype != "int8" or self.weight == "float32"):
            return self.b.tensor("float32", [count], self.rng.standard_normal(count))
        return self.b.tensor(dtype, [count], self.rng.integers(-bound, bound, count), self.scale(low, high))


def lstm(rng: Generator, dtype: str, weight: str, time_first: bool | None = None) -> bytes:
    """UNIDIRECTIONAL_SEQUENCE_LSTM: projection, coupled gates, peepholes, layer normalization and clips at random."""
    d, (batch, steps, depth, cells) = _Draw(rng, dtype, weight), (int(rng.integers(1, n)) for n in (4, 6, 40, 25))
    projected, coupled, peephole, normalized = (d.chance(share) for share in (0.35, 0.3, 0.35, 0.3))
    first = d.chance(0.4) if time_first is None else time_first
    # Beyond the cells the integer kernel's peepholes are undefined; products of one row have another order in Eigen.
    cells = max(cells, 2)
    outputs = d.below(2, cells + 1) if projected else cells
    x = d.b.tensor(dtype, [steps, batch, depth] if first else [batch, steps, depth], None, **d.scheme(-5, -2))
    inputs = [x] + [-1] * 23
    for gate in range(int(coupled), 4):
        inputs[1 + gate], inputs[5 + gate] = d.matrix([cells, depth]), d.matrix([cells, outputs])
        inputs[12 + gate] = d.vector(cells, 1 << d.below(8, 20), -8, -7, "int32")
        if normalized:
            inputs[20 + gate] = d.vector(cells, 32768, -11, -8, "int16")
    for place in (9, 10, 11) if peephole else ():
        if place > 9 or not coupled:
            inputs[place] = d.vector(
                cells,
                32768 if d.integer else 128,
                *((-13, -8) if d.integer else (-6, -3)),
                "int16" if d.integer else "int8",
            )
    if projected:
        inputs[16] = d.matrix([outputs, cells])
        inputs[17] = d.vector(outputs, 2000, -9, -8, "int32") if d.chance(0.6) else -1
    state = d.scheme(-6, -4)
    cell: dict[str, Any] = {"scale": 2.0 ** -d.below(9, 16), "zero": 0} if d.integer else {}
    inputs[18] = d.b.tensor(dtype, [batch, outputs], variable=True, **state)
    inputs[19] = d.b.tensor("int16" if d.integer else dtype, [batch, cells], variable=True, **cell)
    y = d.b.tensor(dtype, [steps, batch, outputs] if first else [batch, steps, outputs], None, **state)
    middle = None
    if d.integer:
        middle = [d.b.tensor("int16", [1], None, d.scale(-9, -6) if normalized else 2.0**-12, 0) for _ in range(4)]
        middle.append(d.b.tensor("int8", [1], None, **(d.scheme(-6, -4) if projected else state)))
    clips = [float(rng.uniform(0.3, 3)) if d.chance(0.3) else 0.0 for _ in range(2)]
    made = options(
        "UnidirectionalSequenceLSTM", fusedActivationFunction="TANH", cellClip=clips[0], projClip=clips[1],
        timeMajor=first, asymmetricQuantizeInputs=d.chance(0.5),
    )  # fmt: skip
    d.b.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], made, middle)
    return d.b.finish([x], [y])


def svdf(rng: Generator, dtype: str, weight: str) -> bytes:
    """SVDF of one to three filters a unit."""
    d = _Draw(rng, dtype, weight)
    batch, units, rank, memory, depth = (d.below(1, high) for high in (5, 13, 4, 12, 40))
    filters = units * rank
    x, feature = d.b.tensor(dtype, [batch, depth], None, **d.scheme(-6, -3)), d.matrix([filters, depth])
    if d.integer:
        time = d.b.tensor("int16", [filters, memory], rng.integers(-32767, 32768, [filters, memory]), d.scale(-11, -6))
    else:
        time = d.matrix([filters, memory])
    bias = d.vector(units, 30000, -12, -11, "int32") if d.chance(0.75) else -1
    scheme: dict[str, Any] = {"scale": d.scale(-9, -4), "zero": 0} if d.integer else {}
    state = d.b.tensor("int16" if d.integer else dtype, [batch, filters * memory], variable=True, **scheme)
    y = d.b.tensor(dtype, [batch, units], None, **d.scheme(-5, -1))
    activation = "RELU" if d.integer else str(rng.choice(["NONE", "RELU", "RELU6", "RELU_N1_TO_1"]))
    made = options("SVDF", rank=rank, fusedActivationFunction=activation, asymmetricQuantizeInputs=d.chance(0.5))
    d.b.operator("SVDF", [x, feature, time, bias, state], [y], made)
    return d.b.finish([x], [y])


def _one_sided(b: Builder, rng: Generator, shape: list[int]) -> int:
    """int8 weights of which most rows lie at one end of their range: their sums wrap in the runtime's vectors."""
    ends = rng.choice([-127, 127], (shape[0], 1))
    weights = np.where(rng.random((shape[0], 1)) < 0.7, ends, rng.integers(-127, 128, shape))
    return b.tensor("int8", shape, weights, np.exp(rng.uniform(-9, -5)))


def long_rows(rng: Generator, op: str) -> bytes:
    """SVDF, or a bare LSTM, of floats whose rows are quantized over their range and are thousands of elements long."""
    b, (batch, depth, cells) = Builder(), (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 5000), (2, 5)))
    if op == "SVDF":
        x, feature = b.tensor("float32", [batch, depth]), _one_sided(b, rng, [cells, depth])
        time = b.tensor("int8", [cells, 4], rng.integers(-127, 128, [cells, 4]), 0.01)
        state, y = b.tensor("float32", [batch, 4 * cells], variable=True), b.tensor("float32", [batch, cells])
        b.operator("SVDF", [x, feature, time, -1, state], [y], options("SVDF", rank=1, asymmetricQuantizeInputs=True))
        return b.finish([x], [y])
    x, y = b.tensor("float32", [batch, 2, depth]), b.tensor("float32", [batch, 2, cells])
    inputs = [x] + [-1] * 23
    for gate in range(4):
        inputs[1 + gate], inputs[5 + gate] = (_one_sided(b, rng, [cells, size]) for size in (depth, cells))
        inputs[12 + gate] = b.tensor("float32", [cells], rng.standard_normal(cells))
    inputs[18], inputs[19] = (b.tensor("float32", [batch, cells], variable=True) for _ in range(2))
    made = options("UnidirectionalSequenceLSTM", fusedActivationFunction="TANH", asymmetricQuantizeInputs=True)
    b.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], made)
    return b.finish([x], [y])
