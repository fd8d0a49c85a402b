"""A stepped array at work: which PEs were busy, and when, layer by layer; as figures of a report or one SVG file."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from hwq.reporting.drawing import Canvas, Drawing, canvas, role, si
from hwq.reporting.records import Floats, Stepped, SteppedLayer
from hwq.reporting.tables import Cell, Column, Table, number

if TYPE_CHECKING:
    from hwq.simulators.stepped_gemm import SteppedRun

__all__ = ["figure", "heaviest", "layer", "read", "shade", "table"]

# Cells of a picture down and across, spans of time, and shades: more would not be seen, and would weigh.
_SIDE = 32
_SPANS = 96
_SHADES = 16
# Layers drawn: those with the most cycles, in order of execution.
MAX_LAYERS = 24


def read(run: SteppedRun) -> Stepped:
    """The record of a run, with pictures made small."""
    layers = []
    for one in run.layers:
        shape = (run.array.rows, run.array.cols)
        busy = np.zeros(shape) if one.occupancy is None else one.occupancy / max(one.cycles, 1)
        line = np.zeros((run.array.rows, 1)) if one.timeline is None else one.timeline
        layers.append(
            SteppedLayer(
                one.name, one.op, one.m, one.k, one.n, one.products, one.cycles, one.macs, one.utilization,
                _shrink(_shrink(busy, _SIDE, 0), _SIDE, 1), _shrink(_shrink(line, _SIDE, 0), _SPANS, 1),
                one.timeline_cycles,
            )
        )  # fmt: skip
    return Stepped(run.model, str(run.array), run.array.rows, run.array.cols, run.samples, run.cycles, run.macs,
                   run.utilization, tuple(layers))  # fmt: skip


def _shrink(picture: Floats, most: int, axis: int) -> Floats:
    """Means over equal parts of an axis, at most so many."""
    size = picture.shape[axis]
    if size <= most:
        return picture
    edges = np.linspace(0, size, most + 1).round().astype(np.int64)
    parts = np.add.reduceat(picture, edges[:-1], axis=axis)
    return np.asarray(parts / np.expand_dims(np.diff(edges), 1 - axis))


def heaviest(run: Stepped) -> list[SteppedLayer]:
    """The layers that are drawn."""
    most = sorted(run.layers, key=lambda layer: -layer.cycles)[:MAX_LAYERS]
    return [one for one in run.layers if one in most]


def table(run: Stepped) -> Table:
    """Every layer's shape, cycles and utilization."""
    columns = (Column("layer", numeric=False), Column("operator", numeric=False), Column("m x k x n", numeric=False),
               Column("products"), Column("cycles"), Column("MACs"), Column("utilization", "%"))  # fmt: skip
    rows = tuple(
        (Cell(one.name), Cell(one.op), Cell(f"{one.m} x {one.k} x {one.n}"), *(_whole(value) for value in
         (one.products, one.cycles, one.macs)), number(100 * one.utilization))
        for one in run.layers
    )  # fmt: skip
    total = (Cell("all layers"), Cell(""), Cell(""), _whole(sum(one.products for one in run.layers)),
             _whole(run.cycles), _whole(run.macs), number(100 * run.utilization))  # fmt: skip
    caption = f"{run.model} on {run.array}, {run.samples:,} samples; a shape is that of a layer's first product."
    return Table(caption, columns, (*rows, total), tall=len(rows) > 30)


def _whole(value: int) -> Cell:
    return Cell(f"{value:,}", str(value))


def layer(identifier: str, run: Stepped, one: SteppedLayer) -> Drawing:
    """One layer: its PEs, and its rows over time."""
    with canvas(identifier, 400, 190, 1, 2, width_ratios=(1, 1.6)) as page:
        _panels(page.axes[0], page.axes[1], run, one, True)
        return page.finish(
            f"{one.name}: {100 * one.utilization:.1f} % utilization",
            f"Left each PE's share of busy cycles, right each row's share of busy PEs over the {one.timeline_cycles:,} cycles "
            f"of the first product, {one.m} x {one.k} x {one.n}; full colour is all, white is none.",
            f"{one.op} {one.name} on {run.array}: {one.cycles} cycles, utilization {100 * one.utilization:.1f} %.",
        )


def figure(run: Stepped) -> Drawing:
    """All layers below one another, for a file of its own."""
    layers = heaviest(run)
    with canvas("occupancy", 760, 70 + 150 * len(layers), max(1, len(layers)), 2, width_ratios=(1, 2.4)) as page:
        for at, one in enumerate(layers):
            _panels(page.axes[2 * at], page.axes[2 * at + 1], run, one, True)
            page.axes[2 * at + 1].set_title(
                _plain(
                    f"{one.name}: {one.m} x {one.k} x {one.n}, {si(one.cycles)} cycles, {100 * one.utilization:.1f} %"
                )
            )
        return _finish_all(page, run)


def _finish_all(page: Canvas, run: Stepped) -> Drawing:
    return page.finish(
        f"{run.model} on {run.array}",
        "Left each PE's share of busy cycles, right each row's share of busy PEs over the first product.",
        f"{run.samples} samples, {run.cycles} cycles, utilization {100 * run.utilization:.1f} %.",
    )


def _plain(text: str) -> str:
    from hwq.names import plot_name

    return plot_name(text, 70)


def _panels(left: Any, right: Any, run: Stepped, one: SteppedLayer, named: bool) -> None:
    shade(left, one.occupancy, run.cols, run.rows)
    shade(right, one.timeline, max(1, one.timeline_cycles), run.rows)
    if named:
        left.set(xlabel="PE column", ylabel="PE row")
        right.set(xlabel="cycle of the first product", ylabel="PE row")


def shade(axes: Any, picture: Floats, width: float, height: float) -> None:
    """Fill rectangles of equal shade, joined along a line, so that a picture is a handful of paths."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    down, across = picture.shape
    shades = np.ceil(np.clip(picture, 0, 1) * _SHADES - 1e-9).astype(int)
    corners: dict[int, list[tuple[float, float]]] = {}
    for y in range(down):
        edges = np.flatnonzero(np.diff(shades[y], prepend=-1, append=-1))
        for start, end in itertools.pairwise(edges):
            if tone := int(shades[y, start]):
                x0, x1 = start * width / across, end * width / across
                y0, y1 = y * height / down, (y + 1) * height / down
                corners.setdefault(tone, []).extend([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
    for tone, points in sorted(corners.items()):
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * (len(points) // 5)
        axes.add_patch(PathPatch(Path(points, codes), facecolor=role("accent"), alpha=tone / _SHADES, linewidth=0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.grid(False)
