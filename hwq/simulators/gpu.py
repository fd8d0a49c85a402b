"""GPUs in closed form: tiles and waves against L2 and DRAM, and a launch for every kernel.

For a product of M x K by K x N on S multiprocessors, a tile T_m x T_n of the result per thread block, K split s ways:

    K'     = K with its channels padded to the layout's vector, then to K steps of 64 bytes
    blocks = groups ceil(M / T_m) ceil(N / T_n) s
    waves  = ceil(blocks / S)                                  blocks that share an SM share its matrix unit
    t_math = waves T_m T_n ceil(K' / s) / (rate eff(tile) f)
    t_L2   = (blocks bytes(T_m, T_n, K' / s) + 8 s M N groups [s > 1]) / L2 bandwidth
    t_DRAM = bytes that L2 does not hold / (DRAM bandwidth efficiency)
    t      = launch + max(t_math, t_L2, t_DRAM), the least over tiles and s, as a builder's profiler picks it

An input that L2 does not keep is read again: the least of input stripes of half the L2 (the weights as often as there
are stripes), weight stripes likewise, and waves that share what they read, ceil(N / W) times the input and ceil(M / W)
times the weights with W = 128 sqrt(S). Kernels without matrix units, 8 x 64 results a block, stand among the tiles: few
rows take them.

What is left out: shared-memory bank conflicts, instruction issue, clocks that change with temperature, kernels that
overlap. Structure as in LLMCompass (Zhang et al., ISCA 2024); tile efficiencies are the machine file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Graph
from hwq.simulators.accelerator import Accelerator
from hwq.simulators.memory import ceil_divide, offchip_bytes, stripe_passes
from hwq.work import Work

__all__ = [
    "HOST_MEMORY",
    "K_STEP_BYTES",
    "MEMORIES",
    "SPLITS",
    "TERMS",
    "chain_columns",
    "evaluate",
    "padded_bytes",
    "parameters",
]

Column = NDArray[Any]

TERMS = ("launch", "compute", "vector", "l2", "stall", "reformat")

# Where the traffic of layers that the host runs is counted.
HOST_MEMORY = "dram"

MEMORIES: Mapping[str, tuple[str, str]] = {"dram": ("offchip", "dram.kind"), "l2": ("sram", "l2.capacity")}

# Bytes of K that one step of the main loop takes from each operand: one 64-byte row of a tile in shared memory.
K_STEP_BYTES = 64
# Ways to cut K over thread blocks; partial sums in 32 bits cross L2 once each way.
SPLITS = (1, 2, 4, 8, 16)
# Tile whose waves share what they read from DRAM: S blocks side by side cover a square of side WAVE_TILE sqrt(S).
WAVE_TILE = 128
# Results of one block of a kernel without matrix units: few rows, as in a matrix times a vector.
PLAIN_ROWS, PLAIN_COLS = 8, 64
# Operators that only change representation: their time is the price of a layout or of an unfused Q/DQ.
REFORMATS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Transpose", "Cast"})


def parameters(machine: Accelerator) -> dict[str, Any]:
    """What `evaluate` reads of a machine: numbers in base units (any but the tiles may become an array)."""
    return {
        "sms": machine.value("sm.count"),
        "vector": machine.value("sm.vector"),
        "clock": machine.clock,
        "l2": machine.value("l2.capacity") * machine.value("l2.share"),
        "l2_bandwidth": machine.value("l2.bandwidth"),
        "dram": machine.value("dram.bandwidth") * machine.value("dram.efficiency", 1.0),
        "launch": machine.value("launch"),
        "alignment": int(machine.value("alignment")),
        "tiles": machine.tiles,
    }


def padded_bytes(channels: Any, bits: Any, vector: int) -> Any:
    """Bytes of one position's channels in a packed layout: a power of two up to `vector` bytes, then multiples of it.

    TensorRT packs C to 32 bytes (NC/32HW32 for int8, NC/16HW16 for float16) and has narrower formats for few channels.
    """
    raw = ceil_divide(channels * bits, 8)
    narrow = 2 ** np.ceil(np.log2(np.maximum(raw, 1))).astype(np.int64)
    return np.where(raw < vector, narrow, ceil_divide(raw, vector) * vector)


def chain_columns(graph: Graph, works: Sequence[Work]) -> dict[str, Column]:
    """Columns that mark fused attention: product, softmax, product, where no other kernel reads what passes between.

    Such a chain is one kernel (TensorRT's fused multi-head attention): its first part launches, and the scores never
    leave the multiprocessor.

    Returns
    -------
    dict
        ``chained`` (bool): a kernel that the one before it has launched; ``input_held``, ``output_held`` (bool).
    """
    place = {node.name: index for index, node in enumerate(graph.nodes)}
    flags = {name: np.zeros(len(works), np.bool_) for name in ("chained", "input_held", "output_held")}

    def only_reader(index: int) -> int | None:
        value = graph.nodes[index].outputs[0]
        readers = graph.consumers.get(value, ())
        if len(readers) != 1 or value in graph.outputs or readers[0].inputs[0] != value:
            return None
        return place[readers[0].name]

    for first, work in enumerate(works):
        middle = only_reader(first) if work.weight_is_activation and work.kind == "gemm" else None
        last = only_reader(middle) if middle is not None and works[middle].op == "Softmax" else None
        if middle is None or last is None or not works[last].weight_is_activation:
            continue
        flags["chained"][[middle, last]] = True
        flags["input_held"][[middle, last]] = True
        flags["output_held"][[first, middle]] = True
    return flags


def evaluate(columns: Mapping[str, Column], given: Mapping[str, Any]) -> dict[str, Column]:
    """Cost of every layer on every configuration.

    Parameters
    ----------
    columns : mapping
        Columns of Work, those of `hwq.simulators.memory.place` and `chain_columns`, and ``rate`` (MACs per cycle, SM).
    given : mapping
        `parameters`; numbers may be arrays that broadcast against the columns.

    Returns
    -------
    dict
        As `hwq.simulators.systolic.evaluate`.
    """
    product = columns["kind"] == "gemm"
    dram = _dram(columns, given, product)
    dram_seconds = sum(dram.values()) / given["dram"]
    math, moved_a, moved_b, sums = _best_tile(columns, given, dram_seconds)
    scalar = columns["vector_operations"] + columns["epilogue_operations"] + columns["zero_point_operations"]
    scalar = np.where(product, 0, scalar + columns["macs"])  # depthwise kernels multiply outside the matrix units
    vector = scalar / (given["sms"] * given["vector"] * given["clock"])
    l2 = {
        "traffic.l2.input": np.where(columns["input_held"], 0, np.where(product, moved_a, columns["input_bytes"])),
        "traffic.l2.weight": np.where(product, moved_b, columns["weight_bytes"]),
        "traffic.l2.other": columns["other_bytes"] + 0 * moved_a,
        "traffic.l2.output": np.where(columns["output_held"], 0, columns["output_bytes"]) + 0 * moved_a,
        "traffic.l2.sum": np.where(product, sums, 0),
    }
    l2_seconds = sum(l2.values()) / given["l2_bandwidth"]
    busy = np.where(product, math, vector)
    body = np.maximum(busy, np.maximum(l2_seconds, dram_seconds))
    by_dram = (dram_seconds > busy) & (dram_seconds >= l2_seconds)
    by_l2 = (l2_seconds > busy) & ~by_dram
    launch = np.where(columns["chained"], 0.0, given["launch"])
    seconds = launch + body
    reformat = np.isin(columns["op"].astype(str), list(REFORMATS))
    terms = {
        "launch": launch + 0 * body,
        "reformat": np.where(reformat, body, 0),
        "compute": np.where(product, busy, 0),
        "vector": np.where(product | reformat, 0, busy),
        "l2": np.where(by_l2 & ~reformat, body - busy, 0),
        "stall": np.where(by_dram & ~reformat, body - busy, 0),
    }
    unit = np.where(product, "compute", "vector")
    bound = np.where(by_dram, "dram", np.where(by_l2, "l2", unit))
    bound = np.where(launch > body, "launch", bound)
    # Shared memory takes every byte that leaves L2 once in and once out; its energy is not counted apart from L2's.
    result = {
        "cycles": np.ceil(seconds * given["clock"]).astype(np.int64),
        "seconds": seconds,
        "bound": bound.astype(object),
    }
    result |= {f"term.{name}": values for name, values in terms.items()}
    return result | {f"traffic.dram.{name}": values for name, values in dram.items()} | l2


def _dram(columns: Mapping[str, Column], given: Mapping[str, Any], product: Column) -> dict[str, Column]:
    """Bytes over DRAM by operand. Activations lie padded; what L2 holds from layer to layer does not cross."""
    crossing = offchip_bytes(columns, given["l2"])
    padded = dict(crossing)
    for name in ("input", "output"):
        channels = columns[f"{name}_c"]
        elements = columns[f"{name}_elements"]
        packed = (channels > 1) & (elements % channels == 0)
        vectors = (
            elements // np.maximum(channels, 1) * padded_bytes(channels, columns[f"{name}_bits"], given["alignment"])
        )
        padded[name] = np.where(packed & (crossing[name] > 0), np.maximum(crossing[name], vectors), crossing[name])
    for name in ("input", "output"):
        padded[name] = np.where(columns[f"{name}_held"], 0, padded[name])
    half = given["l2"] / 2
    far = (columns["input_live"] > given["l2"]) & product & ~columns["input_held"]
    side = WAVE_TILE * np.sqrt(given["sms"])
    once = np.ones_like(columns["m"])
    orders = [
        (stripe_passes(columns, "weight", half), once),
        (once, stripe_passes(columns, "input", half)),
        (np.ceil(np.maximum(columns["n"], 1) / side), np.ceil(np.maximum(columns["m"], 1) / side)),
    ]
    entering, weight = padded["input"] * orders[0][0], padded["weight"] * orders[0][1]
    for passes_a, passes_b in orders[1:]:
        a, b = padded["input"] * passes_a, padded["weight"] * passes_b
        less = a + b < entering + weight
        entering, weight = np.where(less, a, entering), np.where(less, b, weight)
    table = {
        "input": np.where(far, entering, padded["input"]).astype(np.int64),
        "weight": np.where(far, weight, padded["weight"]).astype(np.int64),
        "other": padded["other"],
        "output": padded["output"],
        "bias": columns["bias_bytes"],
        "scale": columns["scale_bytes"] + columns["table_bytes"],
    }
    return {name: values + 0 * padded["input"] for name, values in table.items()}


def _best_tile(columns: Mapping[str, Column], given: Mapping[str, Any], dram_seconds: Column) -> tuple[Column, ...]:
    """Seconds of the matrix units, L2 bytes of both operands and of partial sums, for the quickest tile and split."""
    product = columns["kind"] == "gemm"
    m, n, k, groups = (np.where(product, columns[name], 1) for name in ("m", "n", "k", "groups"))
    taps = np.maximum(columns["kernel_h"] * columns["kernel_w"], 1)
    taps = np.where(k % taps == 0, taps, 1)
    a_bits, b_bits = columns["input_bits"], columns["weight_bits"]
    bits = np.maximum(a_bits, b_bits)
    row_bytes = taps * padded_bytes(k // taps, bits, given["alignment"])
    steps = ceil_divide(row_bytes, K_STEP_BYTES)
    per_step = K_STEP_BYTES * 8 // bits
    # A kernel of several taps reads its input window once: L1 catches the overlap, so stride decides what is new.
    fresh = np.minimum(taps, columns["stride_h"] * columns["stride_w"]) / taps
    plain = columns["macs"] / (given["sms"] * given["vector"] * given["clock"])
    plain_a = columns["input_bytes"] * np.maximum(1, ceil_divide(n, PLAIN_COLS))
    plain_b = columns["weight_bytes"] * np.maximum(1, ceil_divide(m, PLAIN_ROWS))
    beside = columns["other_bytes"] + np.where(columns["output_held"], 0, columns["output_bytes"])
    l2 = (np.where(columns["input_held"], 0, plain_a) + plain_b + beside) / given["l2_bandwidth"]
    best: tuple[Column, ...] = (plain, plain_a, plain_b, 0 * plain)
    least = _rank(plain, l2, dram_seconds)
    for rows, cols, efficiency in given["tiles"]:
        for split in SPLITS:
            share = ceil_divide(steps, split)
            blocks = groups * ceil_divide(m, rows) * ceil_divide(n, cols) * split
            waves = np.ceil(blocks / given["sms"])
            math = waves * (rows * cols) * (share * per_step) / (columns["rate"] * efficiency * given["clock"])
            moved_a = np.ceil(blocks * rows * share * per_step * a_bits / 8 * fresh)
            moved_b = np.ceil(blocks * cols * share * per_step * b_bits / 8)
            sums = groups * m * n * (8.0 * split if split > 1 else 0.0)
            l2 = (np.where(columns["input_held"], 0, moved_a) + moved_b + sums + beside) / given["l2_bandwidth"]
            found = (math, moved_a, moved_b, sums + 0 * moved_a)
            rank = _rank(math, l2, dram_seconds)
            better = rank < least
            best = tuple(np.where(better, new, old) for new, old in zip(found, best, strict=True))
            least = np.where(better, rank, least)
    math, moved_a, moved_b, sums = best
    return math, moved_a.astype(np.int64), moved_b.astype(np.int64), sums.astype(np.int64)


def _rank(math: Column, l2: Column, dram: Column) -> Column:
    """Seconds without the launch; among equals the least arithmetic, then the least L2 time, then the file's order."""
    return np.asarray(np.maximum(np.maximum(math, l2), dram) + 1e-6 * math + 1e-9 * l2)


def notes(columns: Mapping[str, Column], given: Mapping[str, Any]) -> list[str]:
    """What an estimate on a GPU must say about itself."""
    chains = int(columns["chained"].sum()) // 2
    return [f"{chains} attention blocks are one kernel each: their scores stay on chip"] if chains else []
