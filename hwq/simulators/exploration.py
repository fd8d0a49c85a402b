"""A model on thousands of systolic machines: cycles, traffic and energy of every configuration, exactly as `estimate` has them.

A configuration is an array (R x C), a dataflow, a buffer and a DRAM bandwidth. The closed forms of
`hwq.simulators.systolic` fall apart along these axes: array cycles and port words depend on the array and the dataflow,
DRAM bytes (a tiling search a layer) on the buffer alone. Each is computed once for its own axis; only the longest of
array, vector unit, DRAM and link is taken a layer and configuration.

The space is cut into parts, pure functions of (`Task`, part number), so that any executor can run them in any order, and a
run that was interrupted goes on with the parts that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.simulators import energy, systolic
from hwq.simulators.accelerator import Accelerator
from hwq.simulators.catalogue import find
from hwq.simulators.dataflow import DATAFLOWS
from hwq.simulators.estimation import cost, prepare

if TYPE_CHECKING:
    from hwq.graph import Graph
    from hwq.plan import Plan

__all__ = ["COLUMNS", "Space", "Task", "compute_part", "pareto", "prepare_task"]

Column = NDArray[Any]

# One row a configuration. Energies are typical, and the ends of the DRAM band.
COLUMNS = ("rows", "cols", "dataflow", "sram_bytes", "dram_bytes_per_second", "cycles", "seconds", "dram_bytes",
           "buffer_bytes", "accumulator_bytes", "picojoules", "picojoules_low", "picojoules_high", "utilization")  # fmt: skip
# Layers x configurations of one part: some tenths of a second, and arrays that stay in the cache.
PART_POINTS = 1 << 22
BLOCK_POINTS = 1 << 15
MAX_CONFIGURATIONS = 1 << 30


@dataclass(frozen=True)
class Space:
    """Every combination of these is a configuration.

    Attributes
    ----------
    arrays : tuple of (rows, cols)
    dataflows : tuple of str
    sram_bytes : tuple of int
    bandwidths : tuple of float
        Of the DRAM, bytes per second.
    """

    arrays: tuple[tuple[int, int], ...]
    dataflows: tuple[str, ...]
    sram_bytes: tuple[int, ...]
    bandwidths: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (self.arrays and self.dataflows and self.sram_bytes and self.bandwidths):
            raise Error("an axis of the sweep is empty", remedy="give at least one array, dataflow, SRAM and bandwidth")
        if any(not 1 <= side <= 1 << 16 for array in self.arrays for side in array):
            raise Error("an array's side is out of range", remedy="sides are 1 to 65536")
        if any(word not in DATAFLOWS for word in self.dataflows):
            raise Error(f"unknown dataflow among {', '.join(self.dataflows)}", remedy=f"of: {', '.join(DATAFLOWS)}")
        if min(self.sram_bytes) < 1 or min(self.bandwidths) <= 0:
            raise Error("SRAM sizes and bandwidths are above 0")
        if len(self) > MAX_CONFIGURATIONS:
            raise Error(f"{len(self)} configurations", why=f"a sweep takes at most {MAX_CONFIGURATIONS}")

    def __len__(self) -> int:
        return len(self.arrays) * len(self.dataflows) * len(self.sram_bytes) * len(self.bandwidths)


@dataclass(frozen=True, eq=False)
class Task:
    """What every part needs: the layers that run on the machine, its numbers, and what no configuration changes.

    Attributes
    ----------
    columns : mapping
        As `systolic.evaluate` takes them, native layers only.
    given : mapping
        `systolic.parameters` of the base machine.
    space : Space
    fixed_picojoules, fixed_seconds, fixed_cycles : float, float, int
        MACs, vector unit and register hops; layers that the host runs.
    link_picojoules : tuple of float
        Low, typical, high energy of what crosses the host link.
    per_bit : mapping
        pJ: ``accumulators``, ``buffer`` (one a size of SRAM), ``dram`` (low, typical, high).
    static_watts : float
    macs : int
    peak_per_cell : float
        MACs per cell and second at the widest use of the model's main precision (int8: one a cycle).
    hashes : mapping
    part_points : int
        Layers x configurations of one part, about.
    """

    columns: Mapping[str, Column]
    given: Mapping[str, Any]
    space: Space
    fixed_picojoules: float
    fixed_seconds: float
    fixed_cycles: int
    link_picojoules: tuple[float, float, float]
    per_bit: Mapping[str, Any]
    static_watts: float
    macs: int
    peak_per_cell: float
    hashes: Mapping[str, str]
    part_points: int

    @property
    def layers(self) -> int:
        """Layers that run on the machine."""
        return len(self.columns["macs"])

    @property
    def per_array(self) -> int:
        """Configurations of one array and dataflow."""
        return len(self.space.sram_bytes) * len(self.space.bandwidths)

    @property
    def arrays_per_part(self) -> int:
        """Arrays of one part."""
        return max(1, self.part_points // max(1, self.per_array * self.layers))

    @property
    def parts(self) -> int:
        """How many there are."""
        return len(self.space.dataflows) * -(-len(self.space.arrays) // self.arrays_per_part)

    @property
    def points(self) -> int:
        """Layers times configurations."""
        return len(self.space) * self.layers


def prepare_task(
    graph: Graph, machine: str | Accelerator, space: Space, plan: Plan | None = None, batch: int = 1
) -> Task:
    """Lower the model, count its work, and look up what all configurations share.

    Parameters
    ----------
    graph : Graph
    machine : str or Accelerator
        A systolic machine; the numbers that the space does not name are its own.
    space : Space
    plan : Plan, optional
    batch : int
        Runs whole (`estimate` also tries to run it in parts where it spills).

    Raises
    ------
    Error
        The machine is not systolic, or lacks an operator or a precision of the model.
    """
    base = find(machine)
    if base.family != "systolic":
        raise Error("only systolic machines can be swept", where=f"machine {base.name}", why=f"it is a {base.family}")
    prepared = prepare(graph, base, plan, batch)
    every = prepared.columns
    table = cost(prepared, base)
    on_host = every["host"]
    native = ~on_host & (every["kind"] != "none")
    spent = energy.evaluate(base, every, table, systolic.MEMORIES)
    nothing = dict.fromkeys(energy.BANDS, np.zeros(1))
    fixed = sum(float(spent.get(name, nothing)["typical"].sum()) for name in ("mac", "vector", "array"))
    node = base.value("energy.node")
    accumulators = base.value(systolic.MEMORIES["accumulators"][1], float(2**62))
    dram = energy.offchip_picojoules_per_bit(base.choices["dram.kind"])
    return Task(
        columns={name: values[native] for name, values in every.items() if values.dtype != object}
        | {"kind": every["kind"][native].astype(str)},
        given=systolic.parameters(base),
        space=space,
        fixed_picojoules=fixed,
        fixed_seconds=float(table["seconds"][on_host].sum()),
        fixed_cycles=int(table["cycles"][on_host].sum()),
        link_picojoules=tuple(float(spent.get("host", nothing)[band].sum()) for band in energy.BANDS),  # type: ignore[arg-type]
        per_bit={
            "accumulators": energy.sram_picojoules_per_bit(accumulators, node),
            "buffer": np.array([energy.sram_picojoules_per_bit(size, node) for size in space.sram_bytes]),
            "dram": tuple(dram[band] for band in energy.BANDS),
        },
        static_watts=base.value("energy.static_power", 0.0),
        macs=int(every["macs"].sum()),
        peak_per_cell=base.clock,
        hashes={"graph": graph.hash, "plan": str(getattr(plan, "hash", None)), "machine": base.hash},
        part_points=PART_POINTS,
    )


def compute_part(task: Task, part: int) -> dict[str, Column]:
    """One part of the space: `COLUMNS`, one row a configuration, in the order dataflow, array, SRAM, bandwidth."""
    space, step = task.space, task.arrays_per_part
    per_dataflow = -(-len(space.arrays) // step)
    dataflow = space.dataflows[part // per_dataflow]
    arrays = np.array(space.arrays, np.int64)[part % per_dataflow * step :][:step]
    beside = _beside(task, dataflow)
    blocks = [_block(task, dataflow, block, beside) for block in _blocks(arrays, task)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in COLUMNS}


def _blocks(arrays: Column, task: Task) -> Iterator[Column]:
    size = max(1, BLOCK_POINTS // max(1, task.layers * max(1, task.per_array // 4)))
    for first in range(0, len(arrays), size):
        yield arrays[first : first + size]


def _beside(task: Task, dataflow: str) -> dict[str, Column]:
    """What does not depend on the array: (SRAM, bandwidth, layer) cycles, (SRAM) bytes."""
    columns = task.columns
    product = columns["macs"] > 0
    given = {**task.given, "dataflow": dataflow, "buffer": np.array(task.space.sram_bytes, np.float64)[:, None]}
    array = systolic.array_costs(columns, given, product)
    crossing, traffic = systolic.offchip(columns, given, array, product)
    clock = given["clock"]
    moved = sum(values for key, values in traffic.items() if key.startswith("traffic.dram."))
    linked = sum(values for key, values in traffic.items() if key.startswith("traffic.host."))
    efficiency = task.given["dram"] / task.given["dram_peak"]
    bandwidths = np.array(task.space.bandwidths)[None, :, None] * efficiency
    other = systolic.whole_cycles(np.asarray(moved)[:, None, :], bandwidths, clock)
    if np.any(given["host"]):
        other = np.maximum(other, systolic.whole_cycles(np.asarray(linked), given["host"], clock)[:, None, :])
    onchip = systolic.onchip(columns, array, crossing, product)
    other = np.maximum(other, systolic.vector_cycles(columns, given, product, onchip)[:, None, :])
    filled = sum(values for values in crossing.values()) + crossing.get("sum", 0)
    return {
        "cycles": np.ascontiguousarray(np.broadcast_to(other, (given["buffer"].size, bandwidths.size, task.layers))),
        "dram_bytes": np.broadcast_to(moved, (given["buffer"].size, task.layers)).sum(axis=-1),
        "filled": np.broadcast_to(filled, (given["buffer"].size, task.layers)).sum(axis=-1),
    }


def _block(task: Task, dataflow: str, arrays: Column, beside: Mapping[str, Column]) -> dict[str, Column]:
    columns, space = task.columns, task.space
    product = columns["macs"] > 0
    given = {**task.given, "dataflow": dataflow, "rows": arrays[:, :1], "cols": arrays[:, 1:]}
    array = systolic.array_costs(columns, given, product)
    busy = array["load"] + array["fill"] + array["stream"] + array["drain"]
    onchip = systolic.onchip(
        columns, array, dict.fromkeys(("input", "weight", "other", "output"), np.zeros(1, np.int64)), product
    )
    shape = (len(arrays), task.layers)
    buffer = sum(np.broadcast_to(values, shape).sum(axis=1) for key, values in onchip.items() if ".buffer." in key)
    sums = np.broadcast_to(onchip["traffic.accumulators.sum"], shape).sum(axis=1)
    grid = (len(arrays), len(space.sram_bytes), len(space.bandwidths))
    cycles = np.maximum(busy[:, None, None, :], beside["cycles"][None]).sum(axis=-1)
    seconds = cycles / task.given["clock"] + task.fixed_seconds
    buffer_bytes = np.asarray(buffer)[:, None, None] + beside["filled"][None, :, None]
    picojoules = (
        task.fixed_picojoules
        + sums[:, None, None] * 8.0 * task.per_bit["accumulators"]
        + buffer_bytes * 8.0 * task.per_bit["buffer"][None, :, None]
        + task.static_watts * 1e12 * seconds
    )
    low, typical, high = (
        picojoules + beside["dram_bytes"][None, :, None] * 8.0 * per_bit + link
        for per_bit, link in zip(task.per_bit["dram"], task.link_picojoules, strict=True)
    )
    cells = arrays[:, 0] * arrays[:, 1]
    table: dict[str, Any] = {
        "rows": arrays[:, 0, None, None],
        "cols": arrays[:, 1, None, None],
        "dataflow": np.array(dataflow),
        "sram_bytes": np.array(space.sram_bytes)[None, :, None],
        "dram_bytes_per_second": np.array(space.bandwidths)[None, None, :],
        "cycles": cycles + task.fixed_cycles,
        "seconds": seconds,
        "dram_bytes": beside["dram_bytes"][None, :, None],
        "buffer_bytes": buffer_bytes,
        "accumulator_bytes": sums[:, None, None],
        "picojoules": typical,
        "picojoules_low": low,
        "picojoules_high": high,
        "utilization": task.macs / (cells[:, None, None] * task.peak_per_cell * seconds),
    }
    return {name: np.broadcast_to(values, grid).reshape(-1) for name, values in table.items()}


def pareto(seconds: Column, picojoules: Column) -> Column:
    """Which rows no other row beats in both time and energy: bool, one a row."""
    order = np.lexsort((picojoules, seconds))
    least = np.minimum.accumulate(picojoules[order])
    best = np.empty(len(order), np.bool_)
    best[order] = np.r_[True, picojoules[order][1:] < least[:-1]]
    return best
