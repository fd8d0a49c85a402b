"""Energy by component from a sourced table of events: picojoules at two nodes, each component interpolated alone."""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.simulators.accelerator import Accelerator
from hwq.simulators.quantity import Quantity, read_quantity

__all__ = [
    "BANDS",
    "energy_table",
    "evaluate",
    "event_picojoules",
    "offchip_picojoules_per_bit",
    "sram_picojoules_per_bit",
]

Column = NDArray[Any]

# The three readings of an off-chip bit; the other components have one value, used in all three.
BANDS = ("low", "typical", "high")

# Nodes of the table's two columns, in nm, and the memory sizes of its SRAM rows, in bytes.
_NODES = (45.0, 7.0)
_SIZES = (8 * 2**10, 32 * 2**10, 2**20)
# Accesses of the SRAM rows are 64 bits wide.
_ACCESS_BITS = 64


@functools.cache
def energy_table() -> Mapping[str, Quantity]:
    """Every number of the table, by dotted key such as ``multiply.int8.nm45`` or ``offchip.DDR3.high``."""
    text = (resources.files("hwq.simulators") / "energy.toml").read_text(encoding="utf-8")
    record = tomllib.loads(text)
    record.pop("schema")
    table: dict[str, Quantity] = {}
    for group, members in record.items():
        for member, points in members.items():
            for point, number in points.items():
                key = f"{group}.{member}.{point}"
                dimension = "energy per bit" if group == "offchip" else "energy"
                table[key] = read_quantity(number, dimension, f"energy.toml, {key}")
    return MappingProxyType(table)


@functools.cache
def event_picojoules(event: str, node: float) -> float:
    """Energy of one event at a process node.

    Parameters
    ----------
    event : str
        Such as ``multiply.int8``, ``add.int32``, ``hop.byte`` (one byte), ``sram.kib8`` (64 bits).
    node : float
        nm; held inside 7 to 45.

    Returns
    -------
    float
        pJ: ``exp`` of the line through the two table points in (log node, log energy).
    """
    table = energy_table()
    if f"{event}.nm45" not in table:
        raise Error(f"the energy table has no event {event!r}", where="energy.toml")
    old, new = (table[f"{event}.nm{int(point)}"].si for point in _NODES)
    node = min(max(node, _NODES[1]), _NODES[0])
    if node == _NODES[0]:
        return old
    if node == _NODES[1]:
        return new
    share = (math.log(node) - math.log(_NODES[1])) / (math.log(_NODES[0]) - math.log(_NODES[1]))
    return math.exp(math.log(new) + share * (math.log(old) - math.log(new)))


def sram_picojoules_per_bit(capacity: float, node: float) -> float:
    """Energy of one bit read from or written to an SRAM of `capacity` bytes, in pJ."""
    points = [event_picojoules(f"sram.kib{size // 1024}", node) for size in _SIZES]
    size = min(capacity, float(_SIZES[-1]))  # banks of 1 MiB
    low = 0 if size <= _SIZES[1] else 1
    span = math.log(_SIZES[low + 1]) - math.log(_SIZES[low])
    share = (math.log(size) - math.log(_SIZES[low])) / span
    return math.exp(math.log(points[low]) + share * (math.log(points[low + 1]) - math.log(points[low]))) / _ACCESS_BITS


def offchip_picojoules_per_bit(kind: str) -> dict[str, float]:
    """Low, typical and high energy of one bit over a memory or link of that kind, in pJ."""
    return {band: energy_table()[f"offchip.{kind}.{band}"].si for band in BANDS}


def evaluate(
    machine: Accelerator,
    columns: Mapping[str, Column],
    results: Mapping[str, Column],
    memories: Mapping[str, tuple[str, str]],
) -> dict[str, dict[str, Column]]:
    """Energy of every layer by component and band.

    Parameters
    ----------
    machine : Accelerator
    columns : mapping
        Columns of Work, with ``arithmetic`` (the precision that does the MACs).
    results : mapping
        What the family's ``evaluate`` returned: ``traffic.MEMORY.OPERAND`` in bytes, ``hop_bytes``, ``seconds``.
    memories : mapping of memory to (kind, key)
        ``("sram", key of its capacity)``, ``("offchip", key of the kind's word)`` or ``("link", "")``.

    Returns
    -------
    dict of component to dict of band to array
        pJ. Components: mac, array (register hops), vector, one per memory, static.
    """
    node = machine.value("energy.node")
    on_chip = ~np.asarray(columns["host"], np.bool_)
    components: dict[str, Column] = {}
    per_mac = np.array([_mac_picojoules(str(precision), node) for precision in columns["arithmetic"]])
    components["mac"] = columns["macs"] * per_mac * on_chip
    components["vector"] = _vector_picojoules(columns, node) * on_chip
    if "hop_bytes" in results:
        components["array"] = results["hop_bytes"] * event_picojoules("hop.byte", node)
    energy = {name: dict.fromkeys(BANDS, values) for name, values in components.items()}
    for memory, (kind, key) in memories.items():
        moved = sum(values for name, values in results.items() if name.startswith(f"traffic.{memory}."))
        if isinstance(moved, int):
            continue
        if kind == "sram":
            energy[memory] = dict.fromkeys(BANDS, moved * 8.0 * sram_picojoules_per_bit(machine.value(key), node))
        else:
            per_bit = offchip_picojoules_per_bit(machine.choices[key] if kind == "offchip" else "link")
            energy[memory] = {band: moved * 8.0 * per_bit[band] for band in BANDS}
    if "energy.static_power" in machine.quantities:
        energy["static"] = dict.fromkeys(BANDS, results["seconds"] * machine.value("energy.static_power") * 1e12)
    return energy


def _mac_picojoules(precision: str, node: float) -> float:
    """One product and one addition to the accumulator: int32 below integers, float32 below floats."""
    accumulate = "add.float32" if "float" in precision else "add.int32"
    return event_picojoules(f"multiply.{precision}", node) + event_picojoules(accumulate, node)


def _vector_picojoules(columns: Mapping[str, Column], node: float) -> Column:
    """An addition for each scalar operation, and one int32 product for each stored output of an integer MAC op."""
    floating = np.array(["float" in str(precision) for precision in columns["precision"]])
    addition = np.where(floating, event_picojoules("add.float32", node), event_picojoules("add.int32", node))
    operations = columns["vector_operations"] + columns["epilogue_operations"] + columns["zero_point_operations"]
    requantized = (columns["macs"] > 0) & ~floating & (columns["output_bits"] <= 16)
    return operations * addition + np.where(requantized, columns["output_elements"], 0) * event_picojoules(
        "multiply.int32", node
    )
