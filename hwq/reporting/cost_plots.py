"""The figures of cost: rooflines, traffic by memory and operand, energy by component, models side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hwq.names import plot_name
from hwq.reporting.drawing import SERIES, Canvas, Dot, Drawing, canvas, labels, legend, role, series, si, ticks_si
from hwq.reporting.plots import precision_colour
from hwq.reporting.records import Cost, CostLayer, memory_name
from hwq.reporting.tables import number

__all__ = ["energy", "roofline", "traffic"]

# Fixed, so that an operand or a component has one colour on the whole page; others take what is free.
_OPERANDS = ("weight", "input", "output", "other", "partial", "bias", "scale")
_COMPONENTS = ("mac", "dram", "sram", "buffer", "l2", "vector", "static", "array")
# Radius of a dot that takes all the time (area is the share), and of the smallest that still can be pointed at.
_LARGEST_RADIUS = 17.0
_SMALLEST_RADIUS = 2.6


def roofline(identifier: str, costs: Sequence[Cost]) -> Drawing:
    """Attained MAC/s over MAC per byte of DRAM traffic; one machine, one model, any precisions.

    A dot is a layer, its area the layer's share of the time, its colour the arithmetic. Layers without MACs have no
    place here; layers without DRAM traffic stand as triangles on the right edge.
    """
    machine, model, memory = costs[0].machine, costs[0].model, memory_name(costs[0].offchip)
    dots = [(cost, layer) for cost in costs for layer in cost.layers if layer.macs > 0 and layer.seconds > 0]
    finite = [layer.macs / layer.dram_bytes for _, layer in dots if layer.dram_bytes > 0]
    peaks = {
        name: peak
        for cost in costs
        for name, peak in cost.peaks.items()
        if any(layer.precision == name for layer in cost.layers)
    }
    bandwidth = next((cost.bandwidth for cost in costs if cost.bandwidth), None)
    ridges = sorted({peak / bandwidth for peak in peaks.values()}) if bandwidth else []
    low = min([*finite, *ridges, 1.0]) / 3
    high = max([*finite, *ridges, 1.0]) * 6
    rates = [layer.macs / layer.seconds for _, layer in dots]
    with canvas(identifier, 400, 320) as page:
        axes = page.axes[0]
        axes.set(xscale="log", yscale="log", xlim=(low, high))
        top = max([*peaks.values(), *rates, 1.0])
        axes.set_ylim(min([*rates, top / 100]) / 3, top * 4)
        _draw_roofs(page, axes, peaks, bandwidth, memory, low, high)
        for cost, layer in sorted(dots, key=lambda dot: -dot[1].seconds):
            page.dots.append(_dot(axes, cost, layer, high))
        ticks_si(axes.xaxis)
        ticks_si(axes.yaxis)
        axes.set_xlabel(f"arithmetic intensity, MAC per byte of {memory} traffic")
        axes.set_ylabel("attained rate, MAC/s")
        legend(page, {cost.precision: precision_colour(_main_precision(cost)) for cost in costs})
        ridge = f" The ridge is at {', '.join(f'{value:.0f}' for value in ridges)} MAC/byte." if ridges else ""
        return page.finish(
            f"Roofline of {machine}: {model}",
            "Each dot is a layer, larger where it takes more of the time; under the slope memory holds it back, under "
            f"the flat line arithmetic does, and the gap to the line is what the machine leaves unused.{ridge}",
            f"Roofline of {machine} with {len(dots)} layers of {model}."
            + "".join(f" Peak {name} {si(peak)}MAC/s." for name, peak in peaks.items())
            + (f" {memory} {si(bandwidth)}B/s." if bandwidth else ""),
        )


def _draw_roofs(
    page: Canvas, axes: Any, peaks: Mapping[str, float], bandwidth: float | None, memory: str, low: float, high: float
) -> None:
    highest = max(peaks.values(), default=0.0)
    if bandwidth and highest:
        end = highest / bandwidth
        (slope,) = axes.plot([low, end], [low * bandwidth, highest], color=role("muted"), linewidth=1.4)
        page.tell(slope, f"{memory} {si(bandwidth)}B/s")
        at = math.sqrt(low * end)
        axes.annotate(
            f"{memory} {si(bandwidth)}B/s",
            (at, at * bandwidth),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9.5,
            color=role("ink"),
        )
    for name, peak in peaks.items():
        (roof,) = axes.plot(
            [peak / bandwidth if bandwidth else low, high], [peak, peak], color=precision_colour(name), linewidth=1.4
        )
        page.tell(roof, f"peak {name} {si(peak)}MAC/s")
        axes.annotate(
            f"{name} {si(peak)}MAC/s",
            (high, peak),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9.5,
            color=role("ink"),
        )


def _dot(axes: Any, cost: Cost, layer: CostLayer, right_edge: float) -> Dot:
    share = min(layer.seconds / cost.seconds, 1.0) if cost.seconds else 0.0
    rate = layer.macs / layer.seconds
    place = layer.macs / layer.dram_bytes if layer.dram_bytes > 0 else right_edge / 1.25
    where = f"{place:.4g} MAC/byte" if layer.dram_bytes > 0 else f"no {memory_name(cost.offchip)} traffic"
    text = f"{layer.name} ({layer.op}, {layer.precision}): {where}, {si(rate)}MAC/s, {100 * share:.3g} % of the time"
    text += f", bound by {memory_name(layer.bound)}"
    return Dot(
        axes,
        place,
        rate,
        max(_SMALLEST_RADIUS, _LARGEST_RADIUS * math.sqrt(share)),
        precision_colour(layer.precision),
        text,
        "circle" if layer.dram_bytes > 0 else "triangle",
    )


def _main_precision(cost: Cost) -> str:
    seconds: dict[str, float] = {}
    for layer in cost.layers:
        if layer.macs:
            seconds[layer.precision] = seconds.get(layer.precision, 0.0) + layer.macs
    return max(seconds, key=lambda name: seconds[name]) if seconds else cost.precision


def traffic(identifier: str, costs: Sequence[Cost]) -> Drawing:
    """Bytes moved by memory and operand, one panel a machine."""
    rows = {
        machine: [
            (f"{memory_name(memory)}, {cost.precision}", {name: value / 1e6 for name, value in operands.items()}, None)
            for memory in _memories(group)
            for cost in group
            if (operands := cost.traffic_bytes.get(memory))
        ]
        for machine, group in _by_machine(costs).items()
    }
    model = costs[0].model
    return _stacked(
        identifier,
        rows,
        _OPERANDS,
        "traffic per batch, MB",
        "MB",
        f"Traffic by memory and operand: {model}",
        "Each bar is one memory; its parts are what is moved through it (1 MB = 10^6 bytes), so the longest part is "
        "what fewer bits would help most.",
    )


def energy(identifier: str, costs: Sequence[Cost]) -> Drawing:
    """Energy by component, one panel a machine, with the low and high end of the total."""
    rows = {
        machine: [
            (
                cost.precision,
                {name: value / 1e9 for name, value in cost.energy_picojoules.items()},
                tuple(value / 1e9 for value in cost.energy_interval_picojoules)
                if cost.energy_interval_picojoules
                else None,
            )
            for cost in group
            if cost.energy_picojoules
        ]
        for machine, group in _by_machine(costs).items()
    }
    model = costs[0].model
    return _stacked(
        identifier,
        rows,
        _COMPONENTS,
        "energy per batch, mJ",
        "mJ",
        f"Energy by component: {model}",
        "Each bar is the energy of one batch, split by where it goes; the whisker spans the low and high end of the "
        "energy table's own uncertainty.",
    )


_REST = "rest"
Row = tuple[str, Mapping[str, float], tuple[float, ...] | None]


def _memories(group: Sequence[Cost]) -> list[str]:
    return list(dict.fromkeys(memory for cost in group for memory in cost.traffic_bytes))


def _by_machine(costs: Sequence[Cost]) -> dict[str, list[Cost]]:
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        groups.setdefault(cost.machine, []).append(cost)
    return groups


def _stacked(
    identifier: str,
    panels: Mapping[str, Sequence[Row]],
    order: Sequence[str],
    label: str,
    unit: str,
    title: str,
    caption: str,
) -> Drawing:
    panels = {machine: _lumped(rows) for machine, rows in panels.items() if rows}
    parts = list(dict.fromkeys(part for rows in panels.values() for _, values, _ in rows for part in values))
    parts.sort(key=lambda part: (order.index(part) if part in order else len(order) + (part == _REST), part))
    colours = _colours(parts, order)
    counts = [len(rows) for rows in panels.values()]
    height = sum(20 * count + 46 for count in counts) + 16 * math.ceil(len(parts) / 4) + 34
    with canvas(identifier, 400, height, rows=len(panels), height_ratios=[count + 1.2 for count in counts]) as page:
        for axes, (machine, rows) in zip(page.axes, panels.items(), strict=True):
            _draw_panel(page, axes, machine, rows, colours, unit)
        page.figure.supxlabel(label, fontsize=10.5)
        page.figure.supylabel("memory, precision" if unit == "MB" else "precision", fontsize=10.5)
        legend(page, colours)
        told = "; ".join(
            f"{machine} {name} {sum(values.values()):.4g} {unit}"
            for machine, rows in panels.items()
            for name, values, _ in rows
        )
        return page.finish(title, caption, told)


def _lumped(rows: Sequence[Row]) -> list[Row]:
    """Parts below a hundredth of every bar of the panel become one: the legend names what can be seen."""
    visible = {part for _, values, _ in rows for part, value in values.items() if value > 0.01 * sum(values.values())}
    found: list[Row] = []
    for name, values, band in rows:
        kept = {part: value for part, value in values.items() if part in visible and value > 0}
        rest = sum(value for part, value in values.items() if part not in visible)
        found.append((name, kept | ({_REST: rest} if rest > 0 else {}), band))
    return found


def _colours(parts: Sequence[str], order: Sequence[str]) -> dict[str, str]:
    taken = {order.index(part) for part in parts if part in order}
    free = iter([index for index in range(SERIES) if index not in taken] or [0])
    return {
        part: role("muted") if part == _REST else series(order.index(part) if part in order else next(free, 0))
        for part in parts
    }


def _draw_panel(
    page: Canvas, axes: Any, machine: str, rows: Sequence[Row], colours: Mapping[str, str], unit: str
) -> None:
    largest = max(max(sum(values.values()), *(band or (0.0,))) for _, values, band in rows)
    for place, (name, values, band) in enumerate(rows):
        left = 0.0
        for part, colour in colours.items():
            value = values.get(part, 0.0)
            if value > 0:
                bar = axes.barh(
                    place, value, left=left, height=0.7, color=colour, edgecolor=role("paper"), linewidth=0.6
                )
                page.tell(bar[0], f"{machine}, {name}, {part}: {value:.4g} {unit}")
                left += value
        end = left
        if band:
            line = axes.hlines(place, band[0], band[1], color=role("ink"), linewidth=1.3)
            page.tell(line, f"{machine}, {name}: {band[0]:.4g} to {band[1]:.4g} {unit}")
            axes.plot(band, [place, place], "|", color=role("ink"), markersize=7)
            end = max(left, band[1])
        axes.annotate(
            number(left).text, (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5
        )
    axes.set_xlim(0, largest * 1.2 or 1.0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_yticks(range(len(rows)), labels([name for name, _, _ in rows], 24))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(plot_name(machine, 40))
