"""Microcontroller NPUs of the Ethos-U kind: block MACs and an output unit against SRAM and flash.

A MAC array computes one microblock of H_u x W_u x C_u outputs at a time and takes 8 input channels per output and
cycle, so it makes 8 H_u W_u C_u MACs a cycle; its steps last four cycles. With P = ceil(H / H_u) ceil(W / W_u)
microblocks in the plane, D = ceil(C_out / C_u) in depth, e taps of a kernel, C input channels, and weights decoded at
one microblock's depth a cycle (the floor of 4 C_u):

    convolution, depth first    max(4 C_u, 4 P) e D ceil(C / 32)
    convolution, part kernel    max(4 C_u, 4 P) ceil(e / 4) D ceil(C / 8)
    depthwise                   max(4 C_u, 4 P) ceil(e / 4) D
    pool                        max(4, e) P D

The cheaper of the first two is taken; 16-bit operands double. The output unit takes cycles per element that depend on
the operator, or the activation's where they are more. An operator takes ``max(MAC, output unit, SRAM, flash)`` cycles.
Formulas: Arm's ethos-u-vela 5.2.0 (Apache-2.0), its performance estimate. Left out: block shapes and their edges, SHRAM
banks, command issue, weights that wait for their DMA, cascades of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.simulators.accelerator import Accelerator
from hwq.simulators.memory import ceil_divide

__all__ = ["HOST_MEMORY", "MEMORIES", "TERMS", "evaluate", "notes", "parameters"]

Column = NDArray[Any]

TERMS = ("compute", "vector", "sram", "stall")

# The CPU reads and writes the same SRAM.
HOST_MEMORY = "sram"

MEMORIES: Mapping[str, tuple[str, str]] = {"sram": ("sram", "sram.capacity"), "flash": ("offchip", "flash.kind")}

# Input channels of one MAC step and of one depth-first step, taps of one part-kernel step, cycles of a step.
STEP_CHANNELS = 8
DEPTH_CHANNELS = 32
KERNEL_TAPS = 4
STEP_CYCLES = 4
# Output channels of the largest block: an input is read again for each such block of depth.
BLOCK_DEPTH = 128

CLAMPS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Min", "Max"})
TABLES = frozenset({"Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Softmax", "LogSoftmax"})


def parameters(machine: Accelerator) -> dict[str, Any]:
    """What `evaluate` reads of a machine: numbers in base units; any of them may become an array."""
    keys = (
        *(
            "sram.bandwidth",
            "sram.capacity",
            "flash.bandwidth",
            "weights.encoded",
            "activation.table",
            "activation.clamp",
        ),
        *("output.conv", "output.maxpool", "output.add", "output.multiply"),
    )
    given: dict[str, Any] = {key.replace(".", "_"): machine.value(key) for key in keys}
    given |= {axis: int(machine.value(f"microblock.{axis}")) for axis in ("height", "width", "depth")}
    return given | {"clock": machine.clock}


def evaluate(columns: Mapping[str, Column], given: Mapping[str, Any]) -> dict[str, Column]:
    """Cost of every layer on every configuration.

    Parameters
    ----------
    columns : mapping
        Columns of Work for one sample, and ``rate`` (MAC rate relative to int8).
    given : mapping
        `parameters`; numbers may be arrays that broadcast against the columns.

    Returns
    -------
    dict
        As `hwq.simulators.systolic.evaluate`.
    """
    mac = _mac_cycles(columns, given)
    output = _output_cycles(columns, given)
    traffic = _traffic(columns, given)
    sram = sum(values for key, values in traffic.items() if key.startswith("traffic.sram."))
    flash = sum(values for key, values in traffic.items() if key.startswith("traffic.flash."))
    sram_cycles = np.ceil(sram / given["sram_bandwidth"]).astype(np.int64)
    flash_cycles = np.ceil(flash / given["flash_bandwidth"]).astype(np.int64)
    cycles = np.maximum(np.maximum(mac, output), np.maximum(sram_cycles, flash_cycles))
    by_output = (output > mac) & (output >= sram_cycles) & (output >= flash_cycles)
    by_flash = (flash_cycles > mac) & ~by_output & (flash_cycles >= sram_cycles)
    by_sram = (sram_cycles > mac) & ~by_output & ~by_flash
    wait = cycles - mac
    terms = {
        "compute": mac,
        "vector": np.where(by_output, wait, 0),
        "sram": np.where(by_sram, wait, 0),
        "stall": np.where(by_flash, wait, 0),
    }
    bound = np.select([by_output, by_flash, by_sram, cycles == 0], ["output unit", "flash", "sram", "none"], "compute")
    result = {"cycles": cycles, "seconds": cycles / given["clock"], "bound": bound.astype(object)}
    return result | {f"term.{name}": values / given["clock"] for name, values in terms.items()} | traffic


def _mac_cycles(columns: Mapping[str, Column], given: Mapping[str, Any]) -> Column:
    """Cycles of the MAC array; pools use it too."""
    taps = columns["kernel_h"] * columns["kernel_w"]
    groups = np.where(columns["kind"] == "gemm", np.maximum(columns["groups"], 1), 1)
    product = columns["macs"] > 0
    taps = np.where(product & (columns["k"] % np.maximum(taps, 1) != 0), 1, taps)
    channels = np.where(product, columns["k"] // taps, 1)
    depthwise = columns["kind"] == "depthwise"
    made = np.where(depthwise, columns["groups"] * columns["n"], columns["n"])
    depth = ceil_divide(np.where(product, made, columns["output_c"]), given["depth"])
    # A product's m counts positions of the plane and of the batch: rows of a dense layer lie side by side.
    height = np.where(columns["output_h"] * columns["output_w"] > 0, columns["output_h"], 1)
    width = np.where(product, ceil_divide(columns["m"], np.maximum(height, 1)), columns["output_w"])
    plane = ceil_divide(height, given["height"]) * ceil_divide(width, given["width"])
    column = np.maximum(STEP_CYCLES * given["depth"], STEP_CYCLES * plane)
    deep = column * taps * depth * ceil_divide(channels, DEPTH_CHANNELS)
    part = column * ceil_divide(taps, KERNEL_TAPS) * depth * ceil_divide(channels, STEP_CHANNELS)
    convolution = groups * np.minimum(deep, part)
    cycles = np.where(depthwise, column * ceil_divide(taps, KERNEL_TAPS) * depth, convolution)
    pool = np.isin(columns["op"].astype(str), ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
    spread = np.where(columns["op"] == "GlobalAveragePool", columns["input_h"] * columns["input_w"], taps)
    pooling = np.maximum(STEP_CYCLES, spread) * plane * depth
    cycles = np.where(product, np.ceil(cycles / columns["rate"]), np.where(pool, pooling, 0))
    return np.asarray(cycles).astype(np.int64)


def _output_cycles(columns: Mapping[str, Column], given: Mapping[str, Any]) -> Column:
    """Cycles of the output unit: per element of the result, whichever of operator and activation takes longer."""
    op = columns["op"].astype(str)
    per_element = np.select(
        [np.isin(op, ["MaxPool", "GlobalMaxPool"]), np.isin(op, ["Add", "Sub"]), op == "Mul"],
        [given["output_maxpool"], given["output_add"], given["output_multiply"]],
        given["output_conv"],
    )
    table, clamp = (_does(op, columns["fused"], kinds) for kinds in (TABLES, CLAMPS))
    activation = np.where(table, given["activation_table"], np.where(clamp, given["activation_clamp"], 0.0))
    # A softmax passes its rows several times: one pass for each scalar operation of its formula.
    passes = np.where(
        columns["macs"] > 0,
        1,
        np.where(
            np.isin(op, ["Softmax", "LogSoftmax"]),
            columns["vector_operations"] // np.maximum(columns["output_elements"], 1),
            1,
        ),
    )
    moved = np.where(columns["kind"] == "move", 0, 1)
    return np.asarray(
        np.ceil(columns["output_elements"] * np.maximum(per_element, activation) * passes * moved)
    ).astype(np.int64)


def _does(op: Column, fused: Column, kinds: frozenset[str]) -> Column:
    """Whether a layer's own operator or one that it does on the way is among `kinds`."""
    among = np.frompyfunc(lambda name, others: name in kinds or not kinds.isdisjoint(others), 2, 1)
    return np.asarray(among(op, fused), np.bool_)


def _traffic(columns: Mapping[str, Column], given: Mapping[str, Any]) -> dict[str, Column]:
    """Bytes of SRAM and flash by operand: weights cross both (DMA into SRAM, then read), activations live in SRAM."""
    product = columns["macs"] > 0
    again = np.where(product & (columns["kind"] == "gemm"), ceil_divide(np.maximum(columns["n"], 1), BLOCK_DEPTH), 1)
    stored = np.ceil(columns["weight_bytes"] * given["weights_encoded"]).astype(np.int64)
    from_flash = np.where(columns["weight_is_activation"], 0, stored)
    return {
        "traffic.sram.input": columns["input_bytes"] * again,
        "traffic.sram.weight": np.where(columns["weight_is_activation"], columns["weight_bytes"], 2 * stored),
        "traffic.sram.other": columns["other_bytes"] + 0 * from_flash,
        "traffic.sram.output": columns["output_bytes"] + 0 * from_flash,
        "traffic.flash.weight": from_flash,
        "traffic.flash.bias": columns["bias_bytes"] + 0 * from_flash,
        "traffic.flash.scale": columns["scale_bytes"] + columns["table_bytes"] + 0 * from_flash,
    }


def notes(columns: Mapping[str, Column], given: Mapping[str, Any]) -> list[str]:
    """What an estimate on such an NPU must say about itself."""
    peak = int(max(columns[f"{name}_live"].max(initial=0) for name in ("input", "weight", "other", "output")))
    if peak > given["sram_capacity"]:
        return [
            f"{peak} bytes are alive at once, SRAM holds {int(given['sram_capacity'])}: costed as if layers were "
            "cascaded in stripes that fit"
        ]
    return []
