"""One step of an LSTM: in floats, in floats beside int8 weights, and in the integers of TFLite's 8x8_16 kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from hwq.graph import Array
from hwq.ops import tflite_accumulators as sums
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops import tflite_functions as functions
from hwq.ops import tflite_gemmlowp as gemmlowp
from hwq.ops import tflite_hybrid as hybrid
from hwq.ops import tflite_normalization as normalization
from hwq.ops.tflite_arithmetic import power_of_two
from hwq.ops.tflite_base import Call

__all__ = ["Step", "float_step", "hybrid_step", "integer_step"]

# (input, hidden, cell) -> (hidden, cell), all [rows, size].
Step = Callable[[Array, Array, Array], tuple[Array, Array]]
# Rows made ready once for all gates, and (total, ready rows, operand) -> total + rows @ weights.T.
Prepare = Callable[[Array], Any]
Accumulate = Callable[[Array, Any, int], Array]
# Operands of the gates input, forget, cell, output: weights, recurrent weights, peephole, bias.
INPUT, FORGET, CELL, OUTPUT = range(4)
PEEPHOLES = {INPUT: 9, FORGET: 10, OUTPUT: 11}
PROJECTION, PROJECTION_BIAS = 16, 17
# The first of the coefficients of layer normalization, a vector a gate.
NORMS = 20
# Gates before their activation are Q3.12; before a layer normalization they have the scale of an intermediate tensor.
GATE_SCALE = np.float32(2.0**-12)


def float_step(call: Call) -> Step:
    """A step in float32: each row's products as Eigen multiplies one vector.

    With time first Eigen multiplies all rows at once, in another order that depends on the shape; then sums run in order.
    """

    def accumulate(total: Array, rows: Array, operand: int) -> Array:
        at_once = call.attribute("time_major", False) and len(rows) > 1
        multiply = sums.multiply if at_once else sums.multiply_by_lanes
        return (total + multiply(rows, call.array(operand))).astype(np.float32)

    return _real_step(call, lambda rows: rows, accumulate)


def hybrid_step(call: Call) -> Step:
    """A step in float32 beside int8 weights: each product's rows are quantized, and its sums of integers leave as floats.

    ``total + f32(acc) * f32(s_x * s_w)``; the rows of input, state and hidden value have a scale each.
    """
    quantize = hybrid.quantizer(call)

    def accumulate(total: Array, rows: hybrid.Rows, operand: int) -> Array:
        made = hybrid.multiply_quantized(rows, call.array(operand), call.scale(operand))
        return (total + made).astype(np.float32)

    return _real_step(call, quantize, accumulate)


def _real_step(call: Call, prepare: Prepare, accumulate: Accumulate) -> Step:
    cell_clip, projection_clip = float(call.attribute("cell_clip", 0.0)), float(call.attribute("projection_clip", 0.0))
    peepholes = {index: _real(call, operand) for index, operand in PEEPHOLES.items() if call.has(operand)}
    order = (INPUT, CELL, FORGET, OUTPUT) if call.has(1) else (CELL, FORGET, OUTPUT)
    together = bool(call.attribute("time_major", False))

    def activate(tanh: bool, values: Array, place: int) -> Array:
        """Gates lie behind each other in one aligned buffer; rows are taken at once with time first, else one by one."""
        vector = functions.hyperbolic_tangent if tanh else functions.logistic
        scalar = functions.hyperbolic_tangent if tanh else functions.scalar_logistic
        start, (rows, cells) = order.index(place) * values.size, values.shape
        if together:
            return functions.apply_vectors(vector, scalar, values, start)
        return np.stack(
            [functions.apply_vectors(vector, scalar, values[row], start + row * cells) for row in range(rows)]
        )

    def gate(index: int, x: Any, hidden: Any, cell: Array) -> Array:
        normalized = call.has(NORMS + index)
        total = np.zeros_like(cell) if normalized else np.broadcast_to(call.array(12 + index), cell.shape)
        total = accumulate(accumulate(total, x, 1 + index), hidden, 5 + index)
        if index in peepholes:
            total = (total + peepholes[index] * cell).astype(np.float32)
        if normalized:
            total = normalization.normalize_floats(total, call.array(NORMS + index), call.array(12 + index))
        return activate(index == CELL, total, index)

    def step(x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        entered, kept = prepare(x), prepare(hidden)
        forget = gate(FORGET, entered, kept, cell)
        opening = gate(INPUT, entered, kept, cell) if call.has(1) else (np.float32(1) - forget).astype(np.float32)
        after = (forget * cell + opening * gate(CELL, entered, kept, cell)).astype(np.float32)
        if cell_clip > 0:
            after = np.clip(after, -np.float32(cell_clip), np.float32(cell_clip))
        made = (gate(OUTPUT, entered, kept, after) * activate(True, after, CELL)).astype(np.float32)
        if call.has(PROJECTION):
            outputs = call.array(PROJECTION).shape[0]
            bias = call.array(PROJECTION_BIAS) if call.has(PROJECTION_BIAS) else np.zeros(outputs, np.float32)
            made = accumulate(np.broadcast_to(bias, (len(made), outputs)), prepare(made), PROJECTION)
            if projection_clip > 0:
                made = np.clip(made, -np.float32(projection_clip), np.float32(projection_clip))
        return made, after

    return step


def _real(call: Call, operand: int) -> Array:
    """A vector of weights as floats."""
    weights = call.array(operand)
    return weights if weights.dtype.kind == "f" else weights.astype(np.float32) * call.scale(operand)


def integer_step(call: Call) -> Step:
    """A step of the 8x8_16 kernel: R1 everywhere, gates Q0.15, the cell int16 with a power-of-two scale.

    Input and state are brought to Q3.12 apart, each sum saturating to int16.
    """
    exponent = power_of_two(call.scale(19))
    if exponent is None or not 0 <= 15 + exponent <= 6:
        raise call.fault("the cell state's scale must be a power of two from 2**-15 to 2**-9")
    cell_bits = 15 + exponent
    scale, points = call.attribute("intermediate_scale"), call.attribute("intermediate_zero_point")
    if scale is None or len(scale) != 5 or not scale[4] > 0:
        raise call.fault("the scale of the hidden value is missing", "integer LSTM needs five intermediate tensors")
    hidden_scale, hidden_zero = np.float32(scale[4]), int(points[4])
    hidden_rescale = fixed.quantize_multiplier(float(np.float32(2.0**-15 / float(hidden_scale) * 2.0**-15)))
    state_scale, state_zero = call.scale(18), call.zero_point(18)
    cell_clip = _quantized_clip(float(call.attribute("cell_clip", 0.0)), call.scale(19), 16)
    projection_clip = _quantized_clip(float(call.attribute("projection_clip", 0.0)), call.made_scale(), 8)
    normalized = call.has(NORMS + FORGET)
    if normalized and not (scale[:4] > 0).all():
        raise call.fault(
            "the scales before layer normalization are missing", "they are those of four intermediate tensors"
        )
    gate_scales = [np.float32(one) if normalized else GATE_SCALE for one in scale[:4]]

    def rescale(index: int, operand: int, scale_in: np.float32) -> tuple[int, int]:
        real = np.float32(np.float32(call.scale(operand) * scale_in) / gate_scales[index])
        return fixed.quantize_multiplier(float(real))

    inner = {index: rescale(index, 1 + index, call.scale(0)) for index in range(4) if call.has(1 + index)}
    outer = {index: rescale(index, 5 + index, state_scale) for index in range(4) if call.has(5 + index)}

    def product(x: Array, zero: int, weight: int, bias: Array | None) -> fixed.Int64:
        total = sums.multiply(sums.exact(x, zero), call.array(weight).astype(np.int32))
        return fixed.wrap32(total if bias is None else total + bias.astype(np.int64))

    def gate(index: int, x: Array, hidden: Array, cell: fixed.Int64) -> fixed.Int64:
        bias = None if normalized else call.array(12 + index)
        total = fixed.saturate(fixed.multiply(product(x, call.zero_point(0), 1 + index, bias), *inner[index]), 16)
        total = fixed.saturate(total + fixed.multiply(product(hidden, state_zero, 5 + index, None), *outer[index]), 16)
        if index in PEEPHOLES and call.has(PEEPHOLES[index]):
            operand = PEEPHOLES[index]
            real = float(np.float32(2.0**exponent * float(call.scale(operand)) / float(gate_scales[index])))
            reach = _peephole(call, operand, hidden.shape[1], cell)
            total = fixed.saturate(total + fixed.multiply(reach, *fixed.quantize_multiplier(real)), 16)
        if normalized:
            operand = NORMS + index
            total = normalization.normalize_integers(
                total, call.wide(operand), call.wide(12 + index), call.scale(operand)
            )
        return _curve(index == CELL, 3)[total + 32768]

    def step(x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        before = cell.astype(np.int64)
        forget = gate(FORGET, x, hidden, before)
        opening = gate(INPUT, x, hidden, before) if call.has(1) else 32767 - forget
        kept = fixed.divide_by_power(forget * before, 15)
        after = fixed.saturate(kept + fixed.divide_by_power(opening * gate(CELL, x, hidden, before), 30 + exponent), 16)
        if cell_clip:
            after = np.clip(after, -cell_clip, cell_clip)
        opened = gate(OUTPUT, x, hidden, after)
        value = fixed.multiply(opened * _curve(True, cell_bits)[after + 32768], *hidden_rescale)
        if call.has(PROJECTION):
            value = _projected(
                call, np.clip(value - hidden_zero, -128, 127), hidden_zero, hidden_scale, projection_clip
            )
        else:
            value = np.clip(value + hidden_zero, -128, 127)
        return value.astype(np.int8), after.astype(np.int16)

    return step


def _peephole(call: Call, operand: int, outputs: int, cell: fixed.Int64) -> fixed.Int64:
    """Weights times cells, before their rescaling.

    With a projection the kernel takes as many weights a row as there are outputs, and walks the cells without rows: all
    of them at once with time first, else those of one row. What it does not reach stays as it is (times 0 here).
    """
    weights = call.wide(operand)
    if outputs > weights.size:
        raise call.fault(
            f"peepholes of {weights.size} cells beside a projection to {outputs} outputs are undefined",
            "LiteRT reads as many weights as there are outputs, beyond the vector's end",
        )
    rows = len(cell) if call.attribute("time_major", False) else 1
    flat = cell.reshape(-1, rows * cell.shape[1])
    made = np.zeros_like(flat)
    made[:, : rows * outputs] = np.tile(weights[:outputs], rows) * flat[:, : rows * outputs]
    return made.reshape(cell.shape)


@lru_cache(maxsize=16)
def _curve(tanh: bool, bits: int) -> fixed.Int64:
    """The value of every int16 with `bits` integer bits."""
    function = gemmlowp.hyperbolic_tangent if tanh else gemmlowp.logistic
    table = function(np.arange(-32768, 32768), bits)
    table.flags.writeable = False
    return table


def _projected(call: Call, value: fixed.Int64, hidden_zero: int, hidden_scale: np.float32, clip: int) -> fixed.Int64:
    weight = call.array(PROJECTION).astype(np.int32)
    total = sums.multiply(value.astype(np.int32), weight) + hidden_zero * weight.astype(np.int64).sum(axis=1)
    if call.has(PROJECTION_BIAS):
        total = total + call.wide(PROJECTION_BIAS)
    real = float(np.float32(np.float32(call.scale(PROJECTION) * hidden_scale) / call.scale(18)))
    made = np.clip(
        fixed.multiply(fixed.wrap32(total), *fixed.quantize_multiplier(real)) + call.zero_point(18), -128, 127
    )
    return np.clip(made, -clip, clip) if clip else made


def _quantized_clip(clip: float, scale: np.float32, bits: int) -> int:
    bound = 1 << (bits - 1)
    return int(min(max(float(np.float32(clip) / scale), -bound), bound - 1)) if clip > 0 else 0
