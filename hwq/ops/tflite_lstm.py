"""One step of an LSTM: in floats, and in the integers of TFLite's 8x8_16 kernel (int8 activations, int16 cell)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from hwq.graph import Array
from hwq.ops import functions
from hwq.ops import tflite_accumulators as sums
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops import tflite_gemmlowp as gemmlowp
from hwq.ops.tflite_arithmetic import power_of_two
from hwq.ops.tflite_base import Call

__all__ = ["Step", "float_step", "integer_step"]

# (input, hidden, cell) -> (hidden, cell), all [rows, size].
Step = Callable[[Array, Array, Array], tuple[Array, Array]]
# Operands of the gates input, forget, cell, output: weights, recurrent weights, peephole, bias.
INPUT, FORGET, CELL, OUTPUT = range(4)
PEEPHOLES = {INPUT: 9, FORGET: 10, OUTPUT: 11}
PROJECTION, PROJECTION_BIAS = 16, 17
# Gates before their activation are Q3.12.
GATE_SCALE = np.float32(2.0**-12)


def float_step(call: Call) -> Step:
    """A step in float32; nonlinear functions in float64, rounded once."""
    cell_clip, projection_clip = float(call.attribute("cell_clip", 0.0)), float(call.attribute("projection_clip", 0.0))

    def gate(index: int, x: Array, hidden: Array, cell: Array) -> Array:
        total = (call.array(12 + index) + sums.multiply_by_four(x, call.array(1 + index))).astype(np.float32)
        total = (total + sums.multiply_by_four(hidden, call.array(5 + index))).astype(np.float32)
        if index in PEEPHOLES and call.has(PEEPHOLES[index]):
            total = (total + call.array(PEEPHOLES[index]) * cell).astype(np.float32)
        return functions.in_float64(np.tanh if index == CELL else functions.sigmoid, total)

    def step(x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        forget = gate(FORGET, x, hidden, cell)
        opening = gate(INPUT, x, hidden, cell) if call.has(1) else (np.float32(1) - forget).astype(np.float32)
        after = (forget * cell + opening * gate(CELL, x, hidden, cell)).astype(np.float32)
        if cell_clip > 0:
            after = np.clip(after, -np.float32(cell_clip), np.float32(cell_clip))
        made = (gate(OUTPUT, x, hidden, after) * functions.in_float64(np.tanh, after)).astype(np.float32)
        if call.has(PROJECTION):
            made = sums.multiply_by_four(made, call.array(PROJECTION))
            if call.has(PROJECTION_BIAS):
                made = (made + call.array(PROJECTION_BIAS)).astype(np.float32)
            if projection_clip > 0:
                made = np.clip(made, -np.float32(projection_clip), np.float32(projection_clip))
        return made, after

    return step


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
    inner = {
        index: fixed.quantize_multiplier(
            float(np.float32(np.float32(call.scale(1 + index) * call.scale(0)) / GATE_SCALE))
        )
        for index in range(4)
        if call.has(1 + index)
    }
    outer = {
        index: fixed.quantize_multiplier(
            float(np.float32(np.float32(call.scale(5 + index) * state_scale) / GATE_SCALE))
        )
        for index in range(4)
        if call.has(5 + index)
    }

    def product(x: Array, zero: int, weight: int, bias: Array | None) -> fixed.Int64:
        total = sums.multiply(sums.exact(x, zero), call.array(weight).astype(np.int32))
        return fixed.wrap32(total if bias is None else total + bias.astype(np.int64))

    def gate(index: int, x: Array, hidden: Array, cell: fixed.Int64) -> fixed.Int64:
        total = fixed.saturate(
            fixed.multiply(product(x, call.zero_point(0), 1 + index, call.array(12 + index)), *inner[index]), 16
        )
        total = fixed.saturate(total + fixed.multiply(product(hidden, state_zero, 5 + index, None), *outer[index]), 16)
        if index in PEEPHOLES and call.has(PEEPHOLES[index]):
            operand = PEEPHOLES[index]
            real = float(np.float32(2.0**exponent * float(call.scale(operand)) / float(GATE_SCALE)))
            total = fixed.saturate(
                total + fixed.multiply(call.wide(operand) * cell, *fixed.quantize_multiplier(real)), 16
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
