"""The figures of a report: functions from records to drawings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hwq.names import plot_name
from hwq.reporting.drawing import Canvas, Dot, Drawing, canvas, labels, legend, role, series
from hwq.reporting.meeting import compared, match
from hwq.reporting.records import ComparedLayer, Comparison, Cost, CostLayer, Histogram, memory_name

__all__ = ["distribution", "layers", "precision_colour"]

# Layers that one axis shows; a longer model keeps the costliest and the least precise, in order.
MAX_LAYERS = 240
# Widest a name may be under a tick, in characters.
NAME_LIMIT = 26

# Fixed, so that a precision has one colour on the whole page.
_PRECISIONS = {
    "float32": 5,
    "bfloat16": 4,
    "float16": 0,
    "int16": 4,
    "int8": 1,
    "uint8": 1,
    "int4": 2,
    "uint4": 2,
    "int2": 3,
    "float8e4m3fn": 6,
}


def precision_colour(precision: str) -> str:
    """The series colour of an arithmetic type."""
    return series(_PRECISIONS.get(precision, 7))


def layers(identifier: str, costs: Sequence[Cost], comparison: Comparison | None, model: str) -> Drawing:
    """SQNR per layer (dB) above the time per layer on each machine, on one shared axis of layers.

    Layers meet by the tensor that they make, so a machine that fuses more and one that fuses less share the axis.
    """
    axis, sqnr = _shared_axis(costs, comparison)
    shown = _most_telling(axis, costs, sqnr)
    position = {key: index for index, key in enumerate(shown)}
    sqnr = {key: layer for key, layer in sqnr.items() if key in position and not math.isnan(layer.sqnr_db)}
    width = 96.0 + max(5, len(shown)) * min(48.0, max(15.0, 1100.0 / max(len(shown), 1)))
    name_height = 18 + 5.2 * max((min(len(axis[key]), NAME_LIMIT) for key in shown), default=1)
    ratios = ([1.35] if sqnr else []) + [1.0] * len(costs)
    with canvas(
        identifier, width, 96 * sum(ratios) + name_height + 40, rows=len(ratios), sharex=True, height_ratios=ratios
    ) as page:
        rest = list(page.axes)
        if sqnr:
            _draw_sqnr(page, rest.pop(0), sqnr, position)
        for axes, cost in zip(rest, costs, strict=True):
            _draw_times(page, axes, cost, position)
        last = page.axes[-1]
        last.set_xlim(-0.7, len(shown) - 0.3)
        last.set_xticks(range(len(shown)), labels([axis[key] for key in shown], NAME_LIMIT))
        for label in last.get_xticklabels():
            label.set(rotation=90, rotation_mode="anchor", ha="right", va="center")
        last.set_xlabel("layer, in execution order")
        page.figure.align_ylabels()
        legend(
            page,
            {
                layer.precision: precision_colour(layer.precision)
                for cost in costs
                for layer in cost.layers
                if layer.seconds > 0
            },
        )
        return page.finish(*_layers_text(axis, len(shown), sqnr, costs, model))


def _layers_text(
    axis: Mapping[str, str], shown: int, sqnr: Mapping[str, ComparedLayer], costs: Sequence[Cost], model: str
) -> tuple[str, str, str]:
    left_out = f" {len(axis) - shown} cheaper and more precise layers are left out." if shown < len(axis) else ""
    lowest = min(sqnr.items(), key=lambda item: item[1].sqnr_db, default=None)
    tell = "" if lowest is None else f" Lowest SQNR {lowest[1].sqnr_db:.1f} dB at {axis[lowest[0]]}."
    if sqnr and costs:
        told = (
            "Dots are the signal over the quantization error (10 dB less is ten times the error's power), bars what "
            "the same layer costs: a low dot over a low bar is a layer where more bits are cheap."
        )
    elif sqnr:
        told = "Dots are the signal over the quantization error: 10 dB less is ten times the error's power."
    else:
        told = "Each bar is one layer's time, its colour the arithmetic."
    title = (
        "Error above cost, layer by layer"
        if sqnr and costs
        else "Error, layer by layer"
        if sqnr
        else "Cost, layer by layer"
    )
    where = ", ".join(cost.machine for cost in costs) or "no machine"
    return (
        f"{title}: {model}",
        told + left_out,
        f"Layers of {model} on {where}.{tell} The numbers are in the layer table.",
    )


def _shared_axis(
    costs: Sequence[Cost], comparison: Comparison | None
) -> tuple[dict[str, str], dict[str, ComparedLayer]]:
    """Keys of the layers with the names to print, merged over machines (a new layer stands after its predecessor), and
    the compared layer of each key that has one."""
    if not costs:
        found = comparison.layers if comparison else ()
        return {layer.name: layer.name for layer in found}, {layer.name: layer for layer in found}
    order: list[str] = []
    merged: dict[str, CostLayer] = {}
    errors: dict[str, ComparedLayer] = {}
    known = match([comparison] if comparison else [])
    for cost in costs:
        place = 0
        for layer in cost.layers:
            if layer.key in merged:
                place = order.index(layer.key) + 1
                continue
            order.insert(place, layer.key)
            place += 1
            merged[layer.key] = layer
            error = compared(layer, known)
            if error is not None and error not in errors.values():
                errors[layer.key] = error
    # One machine fuses what another runs alone: then both carry the name of the main operator.
    bearers = Counter(layer.name for layer in merged.values())
    names = {
        key: f"{layer.name} + {' + '.join(layer.fused)}" if layer.fused and bearers[layer.name] > 1 else layer.name
        for key, layer in merged.items()
    }
    return {key: names[key] for key in order}, errors


def _most_telling(axis: Mapping[str, str], costs: Sequence[Cost], sqnr: Mapping[str, ComparedLayer]) -> list[str]:
    if len(axis) <= MAX_LAYERS:
        return list(axis)
    weight = dict.fromkeys(axis, 0.0)
    for cost in costs:
        for layer in cost.layers:
            weight[layer.key] += layer.seconds / max(cost.seconds, 1e-30)
    keep = set(sorted(sqnr, key=lambda key: sqnr[key].sqnr_db)[: MAX_LAYERS // 3])
    for key in sorted(axis, key=lambda key: -weight[key]):
        if len(keep) == MAX_LAYERS:
            break
        keep.add(key)
    return [key for key in axis if key in keep]


def _draw_sqnr(page: Canvas, axes: Any, sqnr: Mapping[str, ComparedLayer], position: Mapping[str, int]) -> None:
    finite = [layer.sqnr_db for layer in sqnr.values() if math.isfinite(layer.sqnr_db)]
    bottom, top = min([0.0, *finite]), max([*finite, 30.0]) * 1.12
    values = {key: min(max(layer.sqnr_db, bottom), top * 0.96) for key, layer in sqnr.items()}
    axes.vlines([position[key] for key in values], bottom, list(values.values()), color=role("grid"), linewidth=3)
    for key, layer in sqnr.items():
        exact = layer.sqnr_db == math.inf
        level = "exact" if exact else f"{layer.sqnr_db:.1f} dB"
        text = f"{layer.name} ({layer.op}): SQNR {level}, cosine {layer.cosine:.6f}"
        text += f", largest error {layer.max_lsb:g} LSB" if layer.max_lsb is not None else ""
        page.dots.append(
            Dot(axes, position[key], values[key], 4.0, role("accent"), text, "triangle" if exact else "circle")
        )
    axes.set_ylim(bottom, top)
    axes.set_ylabel("SQNR, dB")
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)


def _draw_times(page: Canvas, axes: Any, cost: Cost, position: Mapping[str, int]) -> None:
    factor, unit = _time_unit(max((layer.seconds for layer in cost.layers), default=0.0))
    drawn: dict[str, None] = {}
    for layer in cost.layers:
        place = position.get(layer.key)
        if place is None:
            continue
        bar = axes.bar(place, layer.seconds * factor, width=0.72, color=precision_colour(layer.precision))
        drawn.setdefault(layer.precision)
        page.tell(
            bar[0],
            f"{layer.name} ({layer.op}, {layer.precision}) on {cost.machine}: {layer.seconds * factor:.4g} {unit}, "
            f"{layer.macs:,} MACs, {layer.dram_bytes / 1e6:.4g} MB DRAM, bound by {memory_name(layer.bound)}",
        )
    axes.set_ylabel(f"time, {unit}")
    axes.set_title(plot_name(f"{cost.machine}, {cost.precision}, batch {cost.batch}", 60))
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)


def _time_unit(seconds: float) -> tuple[float, str]:
    # Milliseconds throughout the report; a figure whose highest bar would read 0.00x ms says microseconds instead.
    return (1e6, "µs") if seconds < 2e-5 else (1e3, "ms")


def distribution(identifier: str, histogram: Histogram) -> Drawing:
    """Histogram of a tensor's values with the two lines at which its stored type clips."""
    total = max(float(histogram.counts.sum()), 1.0)
    share = 100.0 * histogram.counts / total
    colour = series(0) if histogram.kind == "activation" else series(2)
    name = plot_name(histogram.tensor, 44)
    with canvas(identifier, 372, 216) as page:
        axes = page.axes[0]
        axes.stairs(share, histogram.edges, fill=True, color=colour, alpha=0.75, linewidth=0)
        axes.set_yscale("symlog", linthresh=0.01, linscale=0.4)
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 0.01, 0.1, 1, 10, 100], ["0", "0.01", "0.1", "1", "10", "100"])
        axes.minorticks_off()
        axes.set_ylabel("share of values, %")
        axes.set_xlabel(
            f"value of {name}, real units"
            if histogram.kind == "activation"
            else f"weights of {name}, LSB of their channel"
        )
        clipped = ""
        if histogram.clip:
            for bound, text, side in zip(histogram.clip, ("clip low", "clip high"), ("left", "right"), strict=True):
                line = axes.axvline(bound, color=role("warn"), linewidth=1.4, linestyle=(0, (4, 2)))
                page.tell(line, f"{text} at {bound:.5g}: {histogram.dtype} stores nothing beyond it")
                axes.annotate(
                    f"{bound:.3g}",
                    (bound, 1.0),
                    xycoords=("data", "axes fraction"),
                    xytext=(3 if side == "left" else -3, -2),
                    textcoords="offset points",
                    ha=side,
                    va="top",
                    fontsize=9.5,
                    color=role("warn"),
                )
            clipped = (
                f" About {100 * histogram.clipped_share:.2g} % of the values are clipped."
                if histogram.clipped_share
                else " No value is clipped."
            )
        kind = "Activation" if histogram.kind == "activation" else "Weights"
        return page.finish(
            f"{kind} {histogram.tensor}",
            f"Bars are values, dashed lines the lowest and highest that {histogram.dtype or 'the stored type'} can "
            f"stand for: bars outside are clipped, empty room inside is lost resolution.{clipped}",
            f"Histogram of {total:.0f} values from {histogram.edges[0]:.4g} to {histogram.edges[-1]:.4g}."
            + (f" Clip lines at {histogram.clip[0]:.4g} and {histogram.clip[1]:.4g}." if histogram.clip else ""),
        )
