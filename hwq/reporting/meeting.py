"""Where cost and error of the same layer meet, and the file that holds both: layers.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

from hwq.names import csv_cell
from hwq.reporting.records import ComparedLayer, Comparison, Cost, CostLayer

# Cells of the costs that a layer has none of.
_BLANK = ("",) * 8

__all__ = ["CSV_COLUMNS", "compared", "match", "write_csv"]

CSV_COLUMNS = (
    "model",
    "machine",
    "plan_precision",
    "batch",
    "layer",
    "op",
    "outputs",
    "arithmetic",
    "time_seconds",
    "share_of_time_percent",
    "macs",
    "dram_bytes",
    "energy_picojoules",
    "mac_utilization_percent",
    "bound_by",
    "sqnr_db",
    "cosine",
    "max_error_lsb",
)


def match(comparisons: Iterable[Comparison]) -> dict[str, ComparedLayer]:
    """Compared layers by tensor and by name; the first comparison wins."""
    table: dict[str, ComparedLayer] = {}
    for comparison in comparisons:
        for layer in comparison.layers:
            for key in (*layer.outputs, layer.name):
                table.setdefault(key, layer)
    return table


def compared(layer: CostLayer, table: Mapping[str, ComparedLayer]) -> ComparedLayer | None:
    """The compared layer that makes the same tensor, else the one of the same name."""
    return next((table[key] for key in (*reversed(layer.outputs), layer.name) if key in table), None)


def write_csv(stream: IO[str], costs: Sequence[Cost], comparisons: Sequence[Comparison]) -> None:
    """One row a layer of each estimate; compared layers that no estimate has follow with their costs empty.

    Text that a spreadsheet would run as a formula is quoted (`hwq.names.csv_cell`).
    """
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    table = match(comparisons)
    used: set[int] = set()
    for cost in costs:
        for layer in cost.layers:
            error = compared(layer, table)
            used.add(id(error))
            row = (
                cost.model,
                cost.machine,
                cost.precision,
                cost.batch,
                layer.name,
                layer.op,
                " ".join(layer.outputs),
                layer.precision,
                layer.seconds,
                100 * layer.seconds / cost.seconds if cost.seconds else 0.0,
                layer.macs,
                layer.dram_bytes,
                layer.energy_picojoules,
                100 * layer.utilization,
                layer.bound,
                *_errors(error),
            )
            writer.writerow([csv_cell(value) for value in row])
    for comparison in comparisons:
        for alone in (layer for layer in comparison.layers if id(layer) not in used):
            known = (alone.name, alone.op, " ".join(alone.outputs))
            writer.writerow(
                [csv_cell(value) for value in (comparison.model, *_BLANK[:3], *known, *_BLANK, *_errors(alone))]
            )


def _errors(layer: ComparedLayer | None) -> tuple[object, object, object]:
    if layer is None:
        return "", "", ""
    return layer.sqnr_db, layer.cosine, "" if layer.max_lsb is None else layer.max_lsb
