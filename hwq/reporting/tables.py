"""The tables of a report: cells that know their number, columns that name their unit, and layers.csv."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwq.names import rich_name
from hwq.reporting.meeting import compared, match
from hwq.reporting.records import OFFCHIP, Comparison, Cost, CostLayer, Footprint, Unsupported, memory_name

if TYPE_CHECKING:
    from hwq.simulators import Estimate

__all__ = [
    "Cell",
    "Column",
    "Table",
    "accuracy",
    "assumptions",
    "confidence",
    "costliest",
    "gaps",
    "layer_table",
    "machine_row",
    "machines",
    "wilson",
]

# Rows of the sortable layer table on the page; layers.csv has them all.
MAX_ROWS = 1000
COSTLIEST = 3


@dataclass(frozen=True)
class Cell:
    """What a cell prints, and the number to sort by ("" for none)."""

    text: str
    value: str = ""


@dataclass(frozen=True)
class Column:
    """A heading, its unit, and whether it holds numbers."""

    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table of the page; the first column heads its rows."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    tall: bool = False


def number(value: float | None, digits: int = 3) -> Cell:
    """`value` with `digits` significant digits, without an exponent where a reader would not want one."""
    if value is None or math.isnan(value):
        return Cell("–")
    if math.isinf(value):
        return Cell("exact", "1e999") if value > 0 else Cell("-inf", "-1e999")
    magnitude = abs(value)
    if value == 0:
        return Cell("0", "0")
    if magnitude >= 10**digits:
        text = f"{value:,.0f}"
    elif magnitude < 1e-4:
        text = f"{value:.{digits - 1}e}"
    else:
        text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(magnitude)))}f}"
    return Cell(text, repr(float(value)))


def count(value: int) -> Cell:
    """A whole number with separators."""
    return Cell(f"{value:,}", str(value))


def machines(costs: Sequence[Cost], caption: str) -> Table:
    """One row an estimate."""
    several = len({cost.model for cost in costs}) > 1
    every: list[tuple[Column, Callable[[Cost], Cell], bool]] = [
        (Column("model", numeric=False), lambda cost: Cell(cost.model), several),
        (Column("machine", numeric=False), lambda cost: Cell(cost.machine), True),
        (Column("precision", numeric=False), lambda cost: Cell(cost.precision), True),
        (Column("batch", "inferences"), lambda cost: count(cost.batch), True),
        (Column("time", "ms"), lambda cost: number(cost.seconds * 1e3), True),
        (Column("interval", "ms"), _interval, any(cost.interval_seconds for cost in costs)),
        (Column("throughput", "inferences/s"), lambda cost: number(cost.inferences_per_second), True),
        (Column("DRAM traffic", "MB"), _offchip, True),
        (
            Column("energy", "mJ"),
            lambda cost: number(cost.total_picojoules / 1e9 if cost.energy_picojoules else None),
            True,
        ),
        (Column("MAC utilization", "%"), lambda cost: number(cost.utilization * 100), True),
        (Column("bound by", numeric=False), lambda cost: Cell(memory_name(cost.bound)), True),
    ]
    shown = [(column, read) for column, read, wanted in every if wanted]
    rows = [tuple(read(cost) for _, read in shown) for cost in costs]
    return Table(caption, tuple(column for column, _ in shown), tuple(rows))


def gaps(unsupported: Sequence[Unsupported]) -> Table:
    """What the machines cannot run, told once for all models that meet the same reason."""
    models: dict[tuple[str, str, str], dict[str, None]] = {}
    for gap in unsupported:
        models.setdefault((gap.machine, gap.precision, gap.why), {})[gap.model] = None
    columns = tuple(Column(title, numeric=False) for title in ("machine", "precision", "unsupported because", "models"))
    rows = [(*map(Cell, key), Cell(", ".join(found))) for key, found in models.items()]
    return Table("Precisions that a machine lacks.", columns, tuple(rows))


def machine_row(estimate: Estimate) -> tuple[str, ...]:
    """One estimate for a terminal: machine, ms, inferences/s, off-chip MB, mJ, MAC utilization in %, bound by."""
    offchip = sum(sum(operands.values()) for memory, operands in estimate.traffic.items() if memory in OFFCHIP)
    numbers = (estimate.seconds * 1e3, estimate.inferences_per_second, offchip / 1e6, estimate.picojoules / 1e9)
    return (
        rich_name(estimate.machine.name),
        *(number(value).text for value in numbers),
        f"{number(100 * estimate.mac_utilization).text} %",
        rich_name(memory_name(estimate.bound)),
    )


def _offchip(cost: Cost) -> Cell:
    moved = number(cost.dram_bytes / 1e6)
    return moved if cost.offchip == "dram" else Cell(f"{moved.text} ({cost.offchip})", moved.value)


def _interval(cost: Cost) -> Cell:
    if cost.interval_seconds is None:
        return Cell("–")
    low, high = (number(seconds * 1e3) for seconds in cost.interval_seconds)
    return Cell(f"{low.text} to {high.text}", low.value)


def costliest(costs: Sequence[Cost], caption: str) -> Table:
    """The three costliest layers of each estimate."""
    columns = (
        Column("machine", numeric=False),
        Column("precision", numeric=False),
        Column("layer", numeric=False),
        Column("operator", numeric=False),
        Column("time", "ms"),
        Column("of the total", "%"),
        Column("MACs", "10^6"),
        Column("DRAM traffic", "MB"),
        Column("MAC utilization", "%"),
        Column("bound by", numeric=False),
    )
    rows = [
        (
            Cell(cost.machine),
            Cell(cost.precision),
            Cell(layer.name),
            Cell(layer.op),
            number(layer.seconds * 1e3),
            number(100 * _share(layer, cost)),
            number(layer.macs / 1e6),
            number(layer.dram_bytes / 1e6),
            number(layer.utilization * 100),
            Cell(memory_name(layer.bound)),
        )
        for cost in costs
        for layer in top_layers(cost)
    ]
    return Table(caption, columns, tuple(rows))


def top_layers(cost: Cost, many: int = COSTLIEST) -> list[CostLayer]:
    """The layers that take the most time, first the costliest; equals in execution order."""
    return sorted(cost.layers, key=lambda layer: -layer.seconds)[:many]


def _share(layer: CostLayer, cost: Cost) -> float:
    return layer.seconds / cost.seconds if cost.seconds > 0 else 0.0


def accuracy(comparisons: Sequence[Comparison]) -> Table:
    """Float against quantized, one row a comparison."""
    columns = (
        Column("model", numeric=False),
        Column("inputs"),
        Column("accuracy, float", "%"),
        Column("accuracy, quantized", "%"),
        Column("agreement", "%"),
        Column("KL divergence", "nats"),
        Column("gained", "inputs"),
        Column("lost", "inputs"),
        Column("McNemar", "p"),
        Column("lowest SQNR", "dB"),
        Column("at layer", numeric=False),
    )
    rows = []
    for found in comparisons:
        worst = min(
            (layer for layer in found.layers if math.isfinite(layer.sqnr_db)),
            key=lambda layer: layer.sqnr_db,
            default=None,
        )
        rows.append(
            (
                Cell(found.model),
                count(found.samples),
                percent(found.accuracy_float),
                percent(found.accuracy_quantized),
                percent(found.agreement),
                number(found.kl_nats),
                Cell("–") if found.gained is None else count(found.gained),
                Cell("–") if found.lost is None else count(found.lost),
                number(found.mcnemar_p),
                number(worst.sqnr_db if worst else None),
                Cell(worst.name if worst else "–"),
            )
        )
    return Table(
        "Float against quantized. Gained and lost: inputs that only the quantized, only the float model gets right; "
        "McNemar's p: how likely a split this uneven is by chance alone.",
        columns,
        tuple(rows),
    )


def wilson(share: float, samples: int) -> tuple[float, float]:
    """95 % score interval of a share of `samples` independent inputs (Wilson 1927), 0..1."""
    z = 1.959964  # two-sided 95 % point of the normal distribution
    if samples < 1:
        return 0.0, 1.0
    middle = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    return max(0.0, (middle - half) / (1 + z * z / samples)), min(1.0, (middle + half) / (1 + z * z / samples))


def percent(share: float | None) -> Cell:
    """A share of 1 in percent with two decimals."""
    return Cell("–") if share is None else Cell(f"{100 * share:.2f}", repr(100 * share))


def footprints(found: Sequence[Footprint]) -> Table:
    """One row a graph: what its parameters take."""
    columns = (
        Column("model", numeric=False),
        Column("form", numeric=False),
        Column("stored as", numeric=False),
        Column("nodes"),
        Column("parameters", "elements"),
        Column("parameters", "bytes"),
        Column("dialect", numeric=False),
        Column("hash", numeric=False),
    )
    rows = [
        (
            Cell(graph.model),
            Cell(graph.form),
            Cell(graph.precision),
            count(graph.nodes),
            count(graph.parameters),
            count(graph.parameter_bytes),
            Cell(graph.dialect),
            Cell(graph.hash[:12]),
        )
        for graph in found
    ]
    return Table(
        "Parameters as they lie in memory: packed, with scales and zero points not counted.", columns, tuple(rows)
    )


def confidence(costs: Sequence[Cost]) -> Table:
    """How many of each machine's numbers are read, recalled, assumed or fitted, and what it was held against."""
    columns = (
        Column("machine", numeric=False),
        Column("family", numeric=False),
        Column("read", "numbers"),
        Column("recalled", "numbers"),
        Column("assumed", "numbers"),
        Column("fitted", "numbers"),
        Column("machine file", "SHA-256", numeric=False),
        Column("compared with measurements", numeric=False),
    )
    seen = {cost.machine: cost for cost in reversed(costs)}
    rows = [
        (
            Cell(cost.machine),
            Cell(cost.family),
            *(count(cost.confidence.get(level, 0)) for level in ("read", "recalled", "assumed", "fitted")),
            Cell(cost.hashes.get("machine", "")[:12]),
            Cell(cost.validity),
        )
        for cost in reversed(seen.values())
    ]
    return Table(
        "read: seen in the named document; recalled: the document is named but the number was not looked up again; "
        "assumed: nobody published it; fitted: chosen to match measurements.",
        columns,
        tuple(rows),
    )


def assumptions(costs: Sequence[Cost]) -> Table:
    """What each machine's estimates assume beyond its file, and for which models."""
    models: dict[tuple[str, str], dict[str, None]] = {}
    for cost in costs:
        for note in cost.notes:
            models.setdefault((cost.machine, note), {})[cost.model] = None
    columns = (Column("machine", numeric=False), Column("assumption", numeric=False), Column("models", numeric=False))
    return Table(
        "What these estimates assume.",
        columns,
        tuple((Cell(machine), Cell(note), Cell(", ".join(found))) for (machine, note), found in models.items()),
    )


def layer_table(costs: Sequence[Cost], comparison: Comparison | None, caption: str) -> Table:
    """Every layer of some estimates with its error beside its cost."""
    columns = (
        Column("layer", numeric=False),
        Column("operator", numeric=False),
        Column("machine", numeric=False),
        Column("arithmetic", numeric=False),
        Column("SQNR", "dB"),
        Column("largest error", "LSB"),
        Column("time", "ms"),
        Column("MACs", "10^6"),
        Column("DRAM traffic", "MB"),
        Column("energy", "mJ"),
        Column("MAC utilization", "%"),
        Column("bound by", numeric=False),
        Column("cosine"),
    )
    table = match([comparison] if comparison else [])
    rows = []
    for cost in costs:
        for layer in cost.layers:
            error = compared(layer, table)
            rows.append(
                (
                    Cell(layer.name),
                    Cell(layer.op),
                    Cell(cost.machine),
                    Cell(layer.precision),
                    number(error.sqnr_db if error else None),
                    number(error.max_lsb if error else None),
                    number(layer.seconds * 1e3),
                    number(layer.macs / 1e6),
                    number(layer.dram_bytes / 1e6),
                    number(layer.energy_picojoules / 1e9),
                    number(layer.utilization * 100),
                    Cell(memory_name(layer.bound)),
                    Cell(f"{error.cosine:.6f}", repr(error.cosine)) if error else Cell("–"),
                )
            )
    cut = f" The first {MAX_ROWS} of {len(rows)} rows." if len(rows) > MAX_ROWS else ""
    return Table(caption + cut, columns, tuple(rows[:MAX_ROWS]), tall=True)
