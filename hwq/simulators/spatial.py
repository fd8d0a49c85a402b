"""Spatial arrays with the row-stationary dataflow: Eyeriss. The mapping and its traffic are `hwq.simulators.row_stationary`.

Every feature map goes to DRAM and comes back; ``dram.compression`` divides its bytes and the filters' (Chen et al. state
one rate for all DRAM traffic of a layer). Array and DRAM work at the same time: a layer takes the longer of the two.
Scratchpads: a MAC reads an input, a weight and a sum and writes the sum; a sum moves to the next PE once for the ``q S``
MACs that a PE adds to it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.names import display_name
from hwq.simulators import row_stationary
from hwq.simulators.accelerator import Accelerator
from hwq.simulators.row_stationary import Shape

__all__ = ["HOST_MEMORY", "MEMORIES", "TERMS", "evaluate", "parameters", "shape_of"]

Column = NDArray[Any]

TERMS = ("compute", "load", "stall", "vector")

HOST_MEMORY = "dram"

MEMORIES: Mapping[str, tuple[str, str]] = {
    "dram": ("offchip", "dram.kind"),
    "buffer": ("sram", "buffer.capacity"),
    "spad": ("sram", "spad.capacity"),
}


def parameters(machine: Accelerator) -> dict[str, Any]:
    """What `evaluate` reads of a machine: numbers in base units."""
    return {
        "rows": int(machine.value("array.rows")),
        "cols": int(machine.value("array.cols")),
        "input_spad": int(machine.value("spad.input")),
        "filter_spad": int(machine.value("spad.filter")),
        "sum_spad": int(machine.value("spad.sum")),
        "buffer": int(machine.value("buffer.capacity") * 8),
        "sum_bits": int(machine.value("buffer.sum")),
        "clock": machine.clock,
        "lanes": machine.value("vector.lanes"),
        "dram": machine.value("dram.bandwidth") * machine.value("dram.efficiency", 1.0),
        "compression": machine.value("dram.compression", 1.0),
    }


def shape_of(layer: Mapping[str, Any]) -> Shape:
    """The convolution of one row of the columns of Work; a matrix product is a 1 x 1 convolution of its rows."""
    groups, spatial = int(layer["groups"]), layer["input_h"] * layer["input_w"] > 1
    kernel = int(layer["kernel_h"] * layer["kernel_w"])
    images = int(layer["batch"]) if spatial else int(layer["m"])
    E, F = (int(layer["output_h"]), int(layer["output_w"])) if spatial else (1, 1)
    R, S = (int(layer["kernel_h"]), int(layer["kernel_w"])) if spatial else (1, 1)
    width = (F - 1) * int(layer["stride_w"]) + S
    channels = int(layer["k"]) // kernel if spatial else int(layer["k"])
    if spatial and images * E * F != int(layer["m"]):
        # Three spatial dimensions or a product over positions: one row of positions, one tap.
        images, E, F, R, S, width, channels = 1, 1, int(layer["m"]), 1, 1, int(layer["m"]), int(layer["k"])
    return Shape(images, channels, int(layer["n"]), groups, width, R, S, E, F, int(layer["stride_h"]) if spatial else 1)


def evaluate(columns: Mapping[str, Column], given: Mapping[str, Any]) -> dict[str, Column]:
    """Cost of every layer; arguments and result as `hwq.simulators.systolic.evaluate`.

    Raises
    ------
    Error
        One row of a layer does not fit the global buffer.
    """
    rows = [_layer(index, columns, given) for index in range(len(columns["macs"]))]
    whole = {"cycles"} | {key for key in _KEYS if key.startswith("traffic.")}
    table: dict[str, Column] = {
        key: np.array([row[key] for row in rows], np.int64 if key in whole else np.float64) for key in _KEYS
    }
    table["bound"] = np.array([row["bound"] for row in rows], object)
    return table


_DRAM = tuple(f"traffic.dram.{name}" for name in ("input", "weight", "other", "output", "bias", "scale"))
_BUFFER = tuple(f"traffic.buffer.{name}" for name in ("input", "weight", "sum"))
_SPAD = tuple(f"traffic.spad.{name}" for name in ("input", "weight", "sum"))
_KEYS = ("cycles", "seconds", "hop_bytes", *(f"term.{name}" for name in TERMS), *_DRAM, *_BUFFER, *_SPAD)


_SIZES = ("rows", "cols", "input_spad", "filter_spad", "sum_spad", "buffer", "sum_bits")


@functools.lru_cache(maxsize=4096)
def _mapped(
    shape: Shape, sizes: tuple[tuple[str, int], ...]
) -> tuple[row_stationary.Mapping7, row_stationary.Cost] | None:
    return row_stationary.find_mapping(shape, dict(sizes))


def _layer(index: int, columns: Mapping[str, Column], given: Mapping[str, Any]) -> dict[str, Any]:
    layer = {name: values[index] for name, values in columns.items()}
    row: dict[str, Any] = dict.fromkeys(_KEYS, 0)
    words = {"input": 0, "weight": 0}
    compute = load = 0
    if layer["macs"] > 0:
        found = _mapped(
            shape_of(layer), (*((name, given[name]) for name in _SIZES), ("input_bits", int(layer["input_bits"])))
        )
        if found is None:
            raise Error(
                "no row-stationary mapping fits the global buffer",
                where=f"layer {display_name(str(layer['name']))}",
                why="one row of input and of partial sums is larger than the buffer",
                remedy="a machine with a larger buffer.capacity, or a narrower input",
            )
        mapping, cost = found
        compute, load = cost.compute, cost.load
        words = {"input": cost.input, "weight": cost.filter}
        row["traffic.buffer.input"] = _bytes(cost.buffer_input, layer["input_bits"])
        row["traffic.buffer.weight"] = _bytes(cost.buffer_filter, layer["weight_bits"])
        row["traffic.buffer.sum"] = _bytes(cost.buffer_sum, given["sum_bits"])
        row["traffic.spad.input"] = _bytes(layer["macs"], layer["input_bits"])
        row["traffic.spad.weight"] = _bytes(layer["macs"], layer["weight_bits"])
        row["traffic.spad.sum"] = _bytes(2 * int(layer["macs"]), given["sum_bits"])
        row["hop_bytes"] = int(layer["macs"]) / (mapping.q * shape_of(layer).S) * given["sum_bits"] / 8
    else:
        words = {"input": int(layer["input_elements"]), "weight": int(layer["weight_elements"])}
    moved = {
        "input": _bytes(words["input"], layer["input_bits"]),
        "weight": _bytes(words["weight"], layer["weight_bits"]),
        "other": int(layer["other_bytes"]),
        "output": int(layer["output_bytes"]),
        "bias": int(layer["bias_bytes"]),
        "scale": int(layer["scale_bytes"] + layer["table_bytes"]),
    }
    for name, total in moved.items():
        row[f"traffic.dram.{name}"] = int(np.ceil(total / given["compression"]))
    scalar = (
        layer["output_elements"] if layer["macs"] > 0 else layer["vector_operations"] + layer["epilogue_operations"]
    )
    vector = int(np.ceil(scalar / given["lanes"]))
    dram = int(np.ceil(sum(row[key] for key in _DRAM) * given["clock"] / given["dram"]))
    busy = compute + load
    cycles = max(busy, vector, dram)
    by_vector = vector > busy and vector >= dram
    terms = {
        "compute": compute,
        "load": load,
        "stall": 0 if by_vector else cycles - busy,
        "vector": cycles - busy if by_vector else 0,
    }
    row |= {f"term.{name}": value / given["clock"] for name, value in terms.items()}
    row["cycles"], row["seconds"] = cycles, cycles / given["clock"]
    row["bound"] = "none" if cycles == 0 else "vector" if by_vector else "dram" if dram > busy else "compute"
    return row


def _bytes(words: Any, bits: Any) -> int:
    return -(-int(words) * int(bits) // 8)
