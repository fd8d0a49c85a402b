"""Models that carry state from run to run: SVDF, LSTM, resource variables."""

from __future__ import annotations

import numpy as np
from cases import activation, case, weights

from hwq.verification.tflite_builder import Builder, options


@case("svdf_int8", "int8")
@case("svdf_float", "float32")
@case("svdf_hybrid", "float32", hybrid=True)
@case("svdf_hybrid_asymmetric", "float32", hybrid=True, asymmetric=True)
def svdf(rng: np.random.Generator, dtype: str, *, hybrid: bool = False, asymmetric: bool = False) -> bytes:
    b = Builder()
    rank, units, memory, depth = 2, 5, 4, 8
    filters = rank * units
    x = activation(b, rng, dtype, [1, depth], 0.05)
    if hybrid:
        feature = b.tensor("int8", [filters, depth], weights(rng, [filters, depth], "int8"), 0.01)
        time = b.tensor("int8", [filters, memory], weights(rng, [filters, memory], "int8"), 0.02)
    elif dtype == "int8":
        feature = b.tensor("int8", [filters, depth], weights(rng, [filters, depth], "int8"), 0.01)
        time = b.tensor("int16", [filters, memory], rng.integers(-3000, 3000, [filters, memory]), 0.0005)
        bias = b.tensor("int32", [units], rng.integers(-30000, 30000, units), 0.0005 * 0.002)
        state = b.tensor("int16", [1, filters * memory], None, 0.002, 0, variable=True)
    else:
        feature = b.tensor("float32", [filters, depth], rng.standard_normal([filters, depth]))
        time = b.tensor("float32", [filters, memory], rng.standard_normal([filters, memory]))
    if dtype == "float32":
        bias = b.tensor("float32", [units], rng.standard_normal(units))
        state = b.tensor("float32", [1, filters * memory], variable=True)
    y = activation(b, rng, dtype, [1, units], 0.03, -128)
    b.operator(
        "SVDF",
        [x, feature, time, bias, state],
        [y],
        options(
            "SVDF",
            rank=rank,
            fusedActivationFunction="RELU" if dtype == "int8" else "NONE",
            asymmetricQuantizeInputs=asymmetric,
        ),
    )
    return b.finish([x], [y])


@case("lstm_int8", "int8")
@case("lstm_int8_coupled_gates_clip", "int8", coupled=True, clip=1.5)
@case("lstm_int8_time_major", "int8", time_major=True)
@case("lstm_int8_projection", "int8", projection=True)
@case("lstm_int8_peephole", "int8", peephole=True)
@case("lstm_int8_peephole_projection", "int8", peephole=True, projection=True)
@case("lstm_int8_peephole_projection_time_major", "int8", peephole=True, projection=True, time_major=True)
@case("lstm_int8_layer_norm", "int8", norm=True)
@case("lstm_int8_layer_norm_coupled_gates", "int8", norm=True, coupled=True, peephole=True)
@case("lstm_float", "float32")
@case("lstm_float_layer_norm", "float32", norm=True, projection=True)
@case("lstm_hybrid", "float32", hybrid=True, peephole=True)
@case("lstm_hybrid_asymmetric_layer_norm", "float32", hybrid=True, norm=True, asymmetric=True, projection=True)
def lstm(
    rng: np.random.Generator,
    dtype: str,
    *,
    coupled: bool = False,
    clip: float = 0.0,
    time_major: bool = False,
    projection: bool = False,
    peephole: bool = False,
    norm: bool = False,
    hybrid: bool = False,
    asymmetric: bool = False,
) -> bytes:
    b = Builder()
    batch, steps, depth, cells = 2, 4, 5, 6
    outputs = 3 if projection else cells
    integer = dtype == "int8"

    def matrix(shape: list[int], scale: float = 0.01) -> int:
        return (
            b.tensor("int8", shape, weights(rng, shape, "int8"), scale)
            if integer or hybrid
            else b.tensor("float32", shape, rng.standard_normal(shape))
        )

    x = activation(b, rng, dtype, [steps, batch, depth] if time_major else [batch, steps, depth], 0.03, 5)
    inputs = [x] + [-1] * 23
    for gate in range(4):
        if gate == 0 and coupled:
            continue
        inputs[1 + gate] = matrix([cells, depth], 0.011 + 0.002 * gate)
        inputs[5 + gate] = matrix([cells, outputs], 0.009 + 0.001 * gate)
        if integer:
            inputs[12 + gate] = b.tensor("int32", [cells], rng.integers(-4000, 4000, cells), 0.0003)
        else:
            inputs[12 + gate] = b.tensor("float32", [cells], rng.standard_normal(cells))
    if peephole:
        for place in (9, 10, 11):
            if place == 9 and coupled:
                continue
            inputs[place] = (
                b.tensor("int16", [cells], rng.integers(-20000, 20000, cells), 0.00004)
                if integer
                else b.tensor("int8", [cells], weights(rng, [cells], "int8"), 0.01)
            )
    if projection:
        inputs[16] = matrix([outputs, cells])
        inputs[17] = (
            b.tensor("int32", [outputs], rng.integers(-2000, 2000, outputs), 0.0001)
            if integer
            else b.tensor("float32", [outputs], rng.standard_normal(outputs))
        )
    for gate in range(coupled, 4 if norm else 0):
        inputs[20 + gate] = (
            b.tensor("int16", [cells], rng.integers(-32000, 32000, cells), 0.00005)
            if integer
            else b.tensor("float32", [cells], rng.standard_normal(cells))
        )
    state_scale, state_zero = (0.009, 7)
    inputs[18] = b.tensor(dtype, [batch, outputs], None, *((state_scale, state_zero) if integer else ()), variable=True)
    inputs[19] = b.tensor(
        "int16" if integer else dtype, [batch, cells], None, *((2.0**-12, 0) if integer else ()), variable=True
    )
    shape = [steps, batch, outputs] if time_major else [batch, steps, outputs]
    y = b.tensor(dtype, shape, None, *((state_scale, state_zero) if integer else ()))
    middle = None
    if integer:
        middle = [b.tensor("int16", [1], None, 0.0007 if norm else 2.0**-12, 0) for _ in range(4)]
        middle.append(
            b.tensor("int8", [1], None, 0.0085, 3)
            if projection
            else b.tensor("int8", [1], None, state_scale, state_zero)
        )
    made = options(
        "UnidirectionalSequenceLSTM",
        fusedActivationFunction="TANH",
        cellClip=clip,
        timeMajor=time_major,
        asymmetricQuantizeInputs=asymmetric,
    )
    b.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], made, middle)
    return b.finish([x], [y])


@case("variables_int8", "int8")
@case("variables_float", "float32")
@case("variables_assigned_twice", "int8", times=2)
def variables(rng: np.random.Generator, dtype: str, times: int = 1) -> bytes:
    """A stream as keyword spotters keep it: what was heard before is a variable, joined with what comes in."""
    b = Builder()
    scheme = {"scale": 0.1, "zero": -5} if dtype == "int8" else {}
    b.operator("CALL_ONCE", [], [], options("CallOnce", initSubgraphIndex=1))
    handle, x = b.variable("stream"), b.tensor(dtype, [1, 1, 8], **scheme)
    for _ in range(times):
        held, whole, last = (b.tensor(dtype, [1, size, 8], **scheme) for size in (3, 4, 3))
        b.operator("READ_VARIABLE", [handle], [held])
        b.operator("CONCATENATION", [held, x], [whole], options("Concatenation", axis=1))
        bounds = [b.constant(values) for values in ([0, 1, 0], [1, 4, 8], [1, 1, 1])]
        b.operator("STRIDED_SLICE", [whole, *bounds], [last], options("StridedSlice"))
        b.operator("ASSIGN_VARIABLE", [handle, last], [])
    w = b.tensor(dtype, [6, 32], rng.integers(-127, 128, [6, 32]), *((0.01,) if scheme else ()))
    y = b.tensor(dtype, [1, 6], **({"scale": 0.3, "zero": 3} if scheme else {}))
    b.operator("FULLY_CONNECTED", [whole, w], [y], options("FullyConnected"))
    b.graph = b.subgraph("once")
    start = b.tensor(dtype, [1, 3, 8], rng.integers(-9, 10, [1, 3, 8]), **scheme)
    b.operator("ASSIGN_VARIABLE", [b.variable("stream"), start], [])
    b.graph = b.model.subgraphs[0]
    return b.finish([x], [y])
