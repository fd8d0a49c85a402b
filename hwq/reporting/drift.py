"""Where a run parts from another runtime's: differences by depth, as a figure and a table of a report or one SVG file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwq.reporting.drawing import Drawing, canvas, labels, legend, role
from hwq.reporting.records import Drift, DriftLayer
from hwq.reporting.tables import Cell, Column, Table, number

if TYPE_CHECKING:
    from hwq.difference import Difference

__all__ = ["draw", "read", "table"]


def read(found: Difference) -> Drift:
    """The record of a comparison with another runtime."""
    first = found.first
    layers = tuple(
        DriftLayer(one.layer, one.op, one.tensor, one.elements, one.differing, one.own, one.largest)
        for one in found.layers
    )
    best = found.explanations[0] if found.explanations and found.rule not in {"", "unexplained"} else None
    detail = "" if best is None else best.detail
    return Drift(
        found.model, found.dialect, found.against, "" if first is None else first.layer, found.rule, detail, layers
    )


def draw(identifier: str, drift: Drift) -> Drawing:
    """Share of elements that differ, layer by layer: all, and those that the layer adds itself."""
    places = np.arange(len(drift.layers))
    share = [100 * one.differing / max(one.elements, 1) for one in drift.layers]
    own = [100 * one.own / max(one.elements, 1) for one in drift.layers]
    with canvas(identifier, 760, 300) as page:
        axes = page.axes[0]
        bars = axes.bar(places, share, color=role("muted"), width=0.8)
        axes.bar(places, own, color=role("accent"), width=0.4)
        for bar, one in zip(bars, drift.layers, strict=True):
            page.tell(
                bar, f"{one.layer} ({one.op}): {one.differing:,} of {one.elements:,} differ, {one.own:,} of its own"
            )
        # Differences begin with a few elements of a million and end with most: equal steps on the axis are factors.
        least = min((one for one in (*share, *own) if one), default=1.0)
        axes.set_yscale("log")
        axes.set_ylim(10.0 ** np.floor(np.log10(least) - 0.3), 100 if any(share) else 10)
        every = max(1, len(places) // 30)
        axes.set_xticks(
            places[::every], labels([one.layer for one in drift.layers][::every], 18), rotation=60, ha="right"
        )
        axes.set(xlabel="layer, in order of execution", ylabel="elements that differ (%)")
        legend(page, {"differ": role("muted"), "added by the layer": role("accent")})
        return page.finish(
            f"{drift.model} against {drift.against}",
            _told(drift),
            f"{sum(bool(one.differing) for one in drift.layers)} of {len(drift.layers)} layers differ.",
        )


def _told(drift: Drift) -> str:
    if not drift.first:
        return "Every value is equal, bit for bit."
    rule = "No documented rule explains it." if drift.rule == "unexplained" else f"Rule: {drift.rule} ({drift.detail})."
    return f"The runs part in layer {drift.first}. {rule}"


def table(drift: Drift) -> Table:
    """Every value that both runs hold."""
    columns = (Column("layer", numeric=False), Column("operator", numeric=False), Column("tensor", numeric=False),
               Column("elements"), Column("differ"), Column("of its own"), Column("largest", "steps or absolute"))  # fmt: skip
    rows = tuple(
        (Cell(one.layer), Cell(one.op), Cell(one.tensor), *(Cell(f"{value:,}", str(value)) for value in
         (one.elements, one.differing, one.own)), number(one.largest))
        for one in drift.layers
    )  # fmt: skip
    return Table(
        f"{drift.model} in {drift.dialect} against {drift.against}. {_told(drift)}", columns, rows, tall=len(rows) > 30
    )
