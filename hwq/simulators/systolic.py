"""Systolic arrays in closed form: folds through the array, double-buffered DRAM, and what the vector unit does.

Symbols: R, C rows and columns; F folds; T words that one fold streams; f clock; all cycles are whole.

Array cycles are those of `hwq.simulators.dataflow` (the cycle-stepped engine counts the same). Around them:

* Groups run one after another. A depthwise layer is block diagonal: ``p = min(R // K, C // N, groups)`` groups lie on
  the diagonal of one fold, so each row does useful work in N of its C columns; the rest multiplies zeros.
* Sums of T rows must fit into the accumulators (A rows). With more than one fold along K the rows are cut into
  ``P = ceil(T / A)`` chunks, and every weight tile is loaded again for each chunk.
* DRAM is double buffered: a layer takes ``max(array, DRAM, host link, vector unit)`` cycles. While the array waits, the
  next weights shift in: of the idle cycles ``min(F R, idle)`` count as load and the rest as stall, as the counters of
  Jouppi et al., ISCA 2017, table 3 do.
* Activations stay in the buffer where they fit (`hwq.simulators.memory`). Where a product's input, weights or output
  cross the DRAM, they do so in the tiles of `hwq.simulators.tiling`: the sizes and the loop order that move the fewest
  bytes, twice each in the buffer, sums of a cut K written and fetched at the accumulators' width, whole bursts.
  ``buffer.weights = "stream"`` (TPU v1) instead: weights never enter the buffer and come from DRAM once a chunk;
  activations that do not fit cross in stripes of half a buffer, the cheaper of keeping input stripes and streaming the
  weights ``ceil(input / half)`` times, or the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.simulators import dataflow
from hwq.simulators.accelerator import Accelerator
from hwq.simulators.memory import ceil_divide, offchip_bytes, stripe_passes
from hwq.simulators.schema import DEFAULTS
from hwq.simulators.tiling import passes

__all__ = [
    "HOST_MEMORY",
    "MEMORIES",
    "TERMS",
    "array_costs",
    "evaluate",
    "offchip",
    "onchip",
    "parameters",
    "vector_cycles",
    "whole_cycles",
]

Column = NDArray[Any]

TERMS = ("compute", "fill", "drain", "load", "stall", "dma", "vector")

# Where the traffic of layers that the host runs is counted.
HOST_MEMORY = "host"

# Memories whose traffic is counted: what they are made of, and the key of their capacity or kind.
MEMORIES: Mapping[str, tuple[str, str]] = {
    "dram": ("offchip", "dram.kind"),
    "buffer": ("sram", "buffer.capacity"),
    "accumulators": ("sram", "accumulators.capacity"),
    "host": ("link", ""),
}


def parameters(machine: Accelerator) -> dict[str, Any]:
    """What `evaluate` reads of a machine: numbers in base units (any of them may become an array) and words."""
    buffer = machine.value("buffer.capacity")
    return {
        "rows": int(machine.value("array.rows")),
        "cols": int(machine.value("array.cols")),
        "multiplier": int(machine.value("array.multiplier")),
        "clock": machine.clock,
        "buffer": buffer,
        "buffer_bandwidth": machine.value("buffer.bandwidth"),
        "accumulators": machine.value("accumulators.capacity", float(2**62)),
        "lanes": machine.value("vector.lanes"),
        "dram": machine.value("dram.bandwidth") * machine.value("dram.efficiency", 1.0),
        "dram_peak": machine.value("dram.bandwidth"),
        "host": machine.value("host.bandwidth", 0.0),
        "dataflow": machine.choices["array.dataflow"],
        "overlap": machine.choices["array.overlap"],
        "depthwise": machine.choices["array.depthwise"],
        "burst": int(machine.value("dram.burst", 1.0)),
        "weights": machine.choices.get("buffer.weights", DEFAULTS["systolic"]["buffer.weights"]),
    }


def evaluate(columns: Mapping[str, Column], given: Mapping[str, Any]) -> dict[str, Column]:
    """Cost of every layer on every configuration.

    Parameters
    ----------
    columns : mapping
        Columns of Work, those of `hwq.simulators.memory.place`, and ``rate`` (MAC rate relative to int8).
    given : mapping
        `parameters`; numbers may be arrays that broadcast against the columns.

    Returns
    -------
    dict
        ``cycles``, ``seconds``, ``term.NAME`` (seconds), ``traffic.MEMORY.OPERAND`` (bytes), ``hop_bytes``, ``bound``.
    """
    product = columns["macs"] > 0
    array = array_costs(columns, given, product)
    crossing, traffic = offchip(columns, given, array, product)
    clock = given["clock"]
    moved = sum(values for key, values in traffic.items() if key.startswith("traffic.dram."))
    linked = sum(values for key, values in traffic.items() if key.startswith("traffic.host."))
    dram = whole_cycles(moved, given["dram"], clock)
    link = whole_cycles(linked, given["host"], clock) if np.any(given["host"]) else np.zeros_like(dram)
    traffic |= onchip(columns, array, crossing, product)
    vector = vector_cycles(columns, given, product, traffic)
    busy = array["load"] + array["fill"] + array["stream"] + array["drain"]
    cycles = np.maximum(np.maximum(busy, vector), np.maximum(dram, link))
    idle = cycles - array["stream"] - array["fill"] - array["drain"]
    load = np.minimum(array["shifts"], idle)
    wait = idle - load
    # What the layer waits for: ties go to the first of compute, vector unit, DRAM, host link.
    by_vector = (vector > busy) & (vector >= dram) & (vector >= link)
    by_dram = (dram > busy) & ~by_vector & (dram >= link)
    by_link = (link > busy) & ~by_vector & ~by_dram
    terms = {
        "compute": array["stream"],
        "fill": array["fill"],
        "drain": array["drain"],
        "load": load,
        "stall": np.where(by_dram, wait, 0),
        "dma": np.where(by_link, wait, 0),
        "vector": np.where(by_vector, wait, 0),
    }
    bound = np.select([by_vector, by_dram, by_link, cycles == 0], ["vector", "dram", "host link", "none"], "compute")
    result = {"cycles": cycles, "seconds": cycles / clock, "bound": bound, "hop_bytes": _hops(columns)}
    result |= {f"term.{name}": values / clock for name, values in terms.items()}
    return result | traffic


def vector_cycles(
    columns: Mapping[str, Column], given: Mapping[str, Any], product: Column, traffic: Mapping[str, Column]
) -> Column:
    """Cycles of the vector unit: results of products one a lane, else scalar operations or the buffer's port."""
    scalar = np.where(
        product, columns["output_elements"], columns["vector_operations"] + columns["epilogue_operations"]
    )
    scalar = scalar + columns["zero_point_operations"]
    ports = np.where(product, 0, sum(values for key, values in traffic.items() if key.startswith("traffic.buffer.")))
    longest = np.maximum(np.ceil(scalar / given["lanes"]), np.ceil(ports / given["buffer_bandwidth"]))
    return np.asarray(longest).astype(np.int64)


def whole_cycles(moved: Any, bandwidth: Any, clock: Any) -> Column:
    return np.asarray(np.ceil(moved * clock / bandwidth)).astype(np.int64)


def array_costs(columns: Mapping[str, Column], given: Mapping[str, Any], product: Column) -> dict[str, Column]:
    """Cycles and port words of the array over all groups and chunks; 0 where there are no MACs."""
    rows, cols, word = given["rows"], given["cols"], given["dataflow"]
    m, k, n, groups = (np.where(product, columns[name], 1) for name in ("m", "k", "n", "groups"))
    pack = np.maximum(columns["rate"], 1).astype(np.int64)
    wide = columns["rate"] < 1  # operands wider than the multiplier go in pieces
    passes_a, passes_b = (
        np.where(wide & product, ceil_divide(columns[f"{name}_bits"], given["multiplier"]), 1)
        for name in ("input", "weight")
    )
    on_rows, on_cols = (
        (k, n * passes_b) if word == "ws" else (k, m * passes_a) if word == "is" else (m * passes_a, n * passes_b)
    )
    down_pack = np.where(word == "os", 1, pack)
    diagonal = (columns["kind"] == "depthwise") & (given["depthwise"] == "block-diagonal")
    side = np.minimum(rows * down_pack // on_rows, cols // on_cols)
    packed = np.where(diagonal, np.clip(side, 1, groups), 1)
    groups = ceil_divide(groups, packed)
    m, k, n = (
        np.where(changes, size * packed, size)
        for size, changes in ((m, word != "ws"), (k, word != "os"), (n, word != "is"))
    )
    cost = dataflow.evaluate(
        m, k, n, rows, cols, word, overlap=given["overlap"], pack=pack, a_passes=passes_a, b_passes=passes_b
    )
    stays = word != "os"
    streamed = m * passes_a if word == "ws" else n * passes_b if word == "is" else ceil_divide(k, pack)
    down = ceil_divide(ceil_divide(k, pack), rows)
    room = np.maximum(1, np.floor(given["accumulators"] * 8 / (cols * columns["accumulator_bits"])))
    chunks = np.where((down > 1) & stays, np.ceil(streamed / room), 1).astype(np.int64)
    folds = groups * cost.folds * chunks
    once = given["overlap"] == "folds"
    edges = 1 if once else groups * chunks
    if once:
        load = (rows if stays else 0) + (folds - 1) * np.maximum(rows - streamed // chunks, 0)
    else:
        load = cost.load * (1 if given["overlap"] == "stationary" else groups * chunks)
    shifts = np.maximum(load, folds * rows if stays else load)
    table = {
        "stream": groups * cost.stream,
        "fill": cost.fill * edges,
        "drain": cost.drain * edges,
        "load": load,
        "shifts": shifts,
        "folds": folds,
        "a_words": groups * cost.a_reads,
        "b_words": groups * cost.b_reads * chunks,
        "sums": groups * (cost.sum_reads + cost.sum_writes),
    }
    found = {name: np.where(product, values, 0) for name, values in table.items()}
    found |= {"chunks": chunks, "pack": pack, "passes_a": passes_a, "passes_b": passes_b}
    return found


def offchip(
    columns: Mapping[str, Column], given: Mapping[str, Any], array: Mapping[str, Column], product: Column
) -> tuple[dict[str, Column], dict[str, Column]]:
    """Bytes over DRAM and host link, by operand."""
    crossing = offchip_bytes(columns, given["buffer"])
    external = columns["input_external"]
    if given["weights"] == "tiles":
        values = _tiled(columns, given, array, crossing, product)
    else:
        values = _striped(columns, given, array, crossing, product)
    outside = {"input": external, "other": columns["other_external"], "output": columns["output_external"]}
    values = {name: _in_bursts(total, given["burst"]) for name, total in values.items()}
    linked = np.asarray(given["host"]) > 0
    traffic: dict[str, Column] = {}
    for name, total in values.items():
        over_link = outside.get(name, np.False_) & linked
        traffic[f"traffic.dram.{name}"] = np.where(over_link, 0, total)
        if name in outside and np.any(over_link):
            traffic[f"traffic.host.{name}"] = np.where(over_link, total, 0)
    read = {"bias": columns["bias_bytes"], "scale": columns["scale_bytes"] + columns["table_bytes"]}
    for name, total in read.items():
        traffic[f"traffic.dram.{name}"] = _in_bursts(total, given["burst"]) + 0 * values["input"]
    return values, traffic


def _in_bursts(total: Column, burst: Any) -> Column:
    return np.asarray(ceil_divide(total, burst) * burst)


def _tiled(
    columns: Mapping[str, Column],
    given: Mapping[str, Any],
    array: Mapping[str, Column],
    crossing: Mapping[str, Column],
    product: Column,
) -> dict[str, Column]:
    """Bytes that cross in tiles. Groups run one after another, so each has the whole buffer."""
    groups = np.maximum(columns["groups"], 1)
    sums = ceil_divide(columns["output_elements"] * columns["accumulator_bits"], 8)
    whole = {"a": columns["input_bytes"], "b": columns["weight_bytes"], "out": columns["output_bytes"], "sum": sums}
    a, b, s = passes(
        [np.where(product, columns[name], 1) for name in ("m", "k", "n")],
        [ceil_divide(size, groups) for size in whole.values()],
        [crossing["input"] == 0, crossing["weight"] == 0, crossing["output"] == 0],
        np.asarray(np.floor(given["buffer"])).astype(np.int64),
        given["burst"],
        product,
    )
    burst = given["burst"]
    return {
        "input": a * _in_bursts(crossing["input"], burst),
        "weight": b * _in_bursts(crossing["weight"], burst),
        "other": crossing["other"],
        "output": crossing["output"],
        "sum": np.where(crossing["output"] == 0, 0, 2 * (s - 1) * _in_bursts(sums, burst)),
    }


def _striped(
    columns: Mapping[str, Column],
    given: Mapping[str, Any],
    array: Mapping[str, Column],
    crossing: Mapping[str, Column],
    product: Column,
) -> dict[str, Column]:
    """Bytes that cross where weights stream past the buffer, once a chunk, and inputs come in stripes."""
    half = given["buffer"] / 2
    # Only an input that must come from DRAM can need a second reading: the buffer holds the others whole.
    far = (columns["input_live"] > given["buffer"]) & product
    keep_weights = stripe_passes(columns, "weight", half)
    keep_input = np.maximum(array["chunks"], stripe_passes(columns, "input", half))
    weight, entering = crossing["weight"], crossing["input"]
    first = entering * keep_weights + weight * array["chunks"]
    second = entering + weight * keep_input
    entering = np.where(far & (first < second), entering * keep_weights, entering)
    weight = np.where(far & (second <= first), weight * keep_input, weight * np.where(product, array["chunks"], 1))
    return {"input": entering, "weight": weight, "other": crossing["other"], "output": crossing["output"]}


def onchip(
    columns: Mapping[str, Column], array: Mapping[str, Column], crossing: Mapping[str, Column], product: Column
) -> dict[str, Column]:
    """Bytes through the ports of buffer and accumulators: what the array asks for, and what DRAM fills and drains."""
    a_bits = columns["input_bits"] * array["pack"] / array["passes_a"]
    b_bits = columns["weight_bits"] * array["pack"] / array["passes_b"]
    words = {"input": np.ceil(array["a_words"] * a_bits / 8), "weight": np.ceil(array["b_words"] * b_bits / 8)}
    traffic: dict[str, Column] = {}
    for name in ("input", "weight"):
        asked = np.where(product, words[name], columns[f"{name}_bytes"]).astype(np.int64)
        traffic[f"traffic.buffer.{name}"] = asked + crossing[name]
    for name in ("other", "output"):
        traffic[f"traffic.buffer.{name}"] = columns[f"{name}_bytes"] + crossing[name]
    if "sum" in crossing:  # sums of a cut K pass the buffer on their way out and on their way back
        traffic["traffic.buffer.sum"] = 2 * crossing["sum"]
    # Each sum is read once more on its way out.
    sums = array["sums"] + np.where(product, columns["output_elements"], 0)
    traffic["traffic.accumulators.sum"] = ceil_divide(sums * columns["accumulator_bits"], 8)
    return traffic


def _hops(columns: Mapping[str, Column]) -> Column:
    """Bytes between neighbouring cells: with every MAC one operand and one sum move on by one cell."""
    return np.asarray(columns["macs"] * (columns["input_bits"] + columns["accumulator_bits"]) / 8)
