"""Where the error comes from and what would change it: figures and tables of a comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hwq.costly import REMEDY
from hwq.reporting.drawing import Canvas, Dot, Drawing, canvas, labels, legend, role, series
from hwq.reporting.occupancy import shade
from hwq.reporting.records import ComparedLayer, Comparison, Floats, OutputEffect, SensitiveLayer
from hwq.reporting.tables import Cell, Column, Table, number, percent

__all__ = ["changes", "drawings", "rules", "sensitivities", "table"]

# Layers side by side, and below one another: a longer model keeps the worst, in order.
MAX_LAYERS = 80
MAX_ROWS = 36
# Channels side by side; more are drawn as the largest of their neighbors.
MAX_CHANNELS = 96
# Widest a layer's name may be, in characters.
NAME_LIMIT = 20
# Channels that differ by less than this are even.
EVEN_BITS = 0.25
# Bits of the whole range of a stored type, where it is symmetric one less.
TYPE_BITS = 8.0


def drawings(prefix: str, found: Comparison) -> list[Drawing]:
    """Every figure that the comparison has data for."""
    layers = [layer for layer in found.layers if not math.isnan(layer.sqnr_db)]
    drawn = []
    if len(layers) > 1 and any(layer.weights_only_db is not None for layer in layers):
        drawn.append(_split(f"{prefix}-split", found, layers))
    if found.sensitivities:
        drawn.append(_sensitivity(f"{prefix}-sensitivity", found))
    if any(layer.saturation_share or layer.underflow_share for layer in layers):
        drawn.append(_losses(f"{prefix}-losses", layers, found))
    drawn += _heat(f"{prefix}-activations", layers, lambda layer: layer.channel_bits, "activations", found)
    drawn += _heat(f"{prefix}-weights", layers, lambda layer: layer.weight_bits, "weights", found)
    return drawn


def _worst(layers: Sequence[ComparedLayer], most: int = MAX_LAYERS) -> list[ComparedLayer]:
    keep = sorted(range(len(layers)), key=lambda index: layers[index].sqnr_db)[:most]
    return [layers[index] for index in sorted(keep)]


def _split(identifier: str, found: Comparison, layers: Sequence[ComparedLayer]) -> Drawing:
    """SQNR by depth: everything quantized, weights alone, activations alone."""
    shown = _worst(layers)
    curves: dict[str, tuple[Callable[[ComparedLayer], float | None], str]] = {
        "weights only": (lambda layer: layer.weights_only_db, series(1)),
        "activations only": (lambda layer: layer.activations_only_db, series(0)),
        "all quantized": (lambda layer: layer.sqnr_db, role("ink")),
    }
    width = max(560.0, min(1200.0, 130 + 30.0 * len(shown)))
    with canvas(identifier, width, 330) as page:
        axes = page.axes[0]
        finite = [value for read, _ in curves.values() for layer in shown
                  if (value := read(layer)) is not None and math.isfinite(value)]  # fmt: skip
        top = max([*finite, 10.0]) * 1.08
        bottom = min([0.0, *finite])
        for name, (read, colour) in curves.items():
            places = [at for at, layer in enumerate(shown) if read(layer) is not None]
            values = [min(max(float(read(shown[at]) or 0.0), bottom), top) for at in places]
            axes.plot(places, values, color=colour, linewidth=1.6, linestyle="-" if name == "all quantized" else (0, (4, 2)))  # fmt: skip
            for at, value in zip(places, values, strict=True):
                told = read(shown[at])
                text = f"{shown[at].name}, {name}: " + ("exact" if told == math.inf else f"{told:.1f} dB")
                page.dots.append(Dot(axes, at, value, 3.2, colour, text))
        _layer_axis(axes, [layer.name for layer in shown])
        axes.set(ylabel="SQNR, dB", ylim=(bottom, top))
        legend(page, {name: colour for name, (_, colour) in curves.items()})
        last = shown[-1]
        worse = "weights" if (last.weights_only_db or 0.0) < (last.activations_only_db or 0.0) else "activations"
        return page.finish(
            "Weights or activations: SQNR by depth",
            f"The lower of the two dashed lines is what costs more; at the end it is the {worse}. A step down of the full line "
            f"is a layer that adds error of its own. Dashed lines are measured on {found.analysed} samples.",
            f"{len(shown)} layers; at the last all quantized {last.sqnr_db:.1f} dB.",
        )


def _layer_axis(axes: Any, names: Sequence[str]) -> None:
    every = max(1, len(names) // 40)
    axes.set_xticks(range(0, len(names), every), labels(list(names)[::every], NAME_LIMIT))
    for label in axes.get_xticklabels():
        label.set(rotation=60, rotation_mode="anchor", ha="right", va="center")
    axes.set(xlim=(-0.6, len(names) - 0.4), xlabel="layer, in execution order")


def _rows(page: Canvas, names: Sequence[str]) -> Any:
    axes = page.axes[0]
    axes.set_yticks(range(len(names)), labels(list(names), NAME_LIMIT))
    axes.set(ylim=(len(names) - 0.4, -0.6), ylabel="layer, in execution order")
    axes.grid(axis="y", visible=False)
    return axes


def _sensitivity(identifier: str, found: Comparison) -> Drawing:
    """Bars: what each layer costs alone, and what it gives back when it alone is float."""
    layers = _telling(found.sensitivities)
    with canvas(identifier, 372, 76 + 19 * len(layers)) as page:
        axes = _rows(page, [one.name for one in layers])
        losses = [_loss(one.only) for one in layers]
        back = [max(0.0, _gain(found, one.without)) for one in layers]
        for at, (one, loss) in enumerate(zip(layers, losses, strict=True)):
            bar = axes.barh(at - 0.18, loss, height=0.34, color=series(0))
            page.tell(bar[0], f"{one.name} quantized alone: {_told(one.only)}")
            bar = axes.barh(at + 0.18, back[at], height=0.34, color=series(1))
            page.tell(
                bar[0], f"all quantized but {one.name}: {_told(one.without)}, {_gain(found, one.without):+.1f} dB"
            )
        axes.set(xlabel="SQNR lost or won, dB", xlim=(0, max(*losses, *back, 1.0) * 1.04))
        legend(page, {"alone in integers": series(0), "alone in float": series(1)})
        return page.finish(
            "Sensitivity of each layer",
            "Upper bar: how far the output's SQNR falls below 60 dB when only this layer is quantized. Lower bar: the dB that "
            f"the output gains when only this layer is float. Measured on {found.analysed} samples by running the network.",
            f"{len(layers)} of {len(found.sensitivities)} layers, those that cost most.",
        )


def _telling(layers: Sequence[SensitiveLayer]) -> list[SensitiveLayer]:
    keep = set(sorted(range(len(layers)), key=lambda at: -_loss(layers[at].only))[:MAX_ROWS])
    return [one for at, one in enumerate(layers) if at in keep]


def _loss(effect: OutputEffect | None) -> float:
    return 0.0 if effect is None else max(0.0, 60.0 - max(effect.sqnr_db, -20.0))


def _gain(found: Comparison, effect: OutputEffect | None) -> float:
    before = found.changes[0].before.sqnr_db if found.changes else found.sqnr_db
    if effect is None or before is None or not math.isfinite(before) or not math.isfinite(effect.sqnr_db):
        return 0.0
    return effect.sqnr_db - before


def _told(effect: OutputEffect | None) -> str:
    if effect is None:
        return "cannot be run"
    return f"SQNR {effect.sqnr_db:.1f} dB, KL {effect.kl_nats:.3g}, agreement {100 * effect.agreement:.2f} %"


def _losses(identifier: str, layers: Sequence[ComparedLayer], found: Comparison) -> Drawing:
    """Shares of values that are cut or vanish."""
    order = sorted(layers, key=lambda layer: -max(layer.saturation_share, layer.underflow_share))[:MAX_ROWS]
    shown = [layer for layer in layers if layer in order]
    with canvas(identifier, 372, 76 + 19 * len(shown)) as page:
        axes = _rows(page, [layer.name for layer in shown])
        for at, layer in enumerate(shown):
            for offset, share, colour, word in (
                (-0.18, layer.saturation_share, role("warn"), "beyond the stored range"),
                (0.18, layer.underflow_share, series(4), "not zero, stored as zero"),
            ):
                bar = axes.barh(at + offset, 100 * share, height=0.34, color=colour)
                page.tell(bar[0], f"{layer.name}: {100 * share:.3g} % of the values are {word}")
        largest = max(max(layer.saturation_share, layer.underflow_share) for layer in shown)
        axes.set(xlabel="share of the values, %", xlim=(0, max(100 * largest * 1.05, 0.1)))
        legend(page, {"saturated": role("warn"), "vanished": series(4)})
        worst = max(shown, key=lambda layer: layer.saturation_share)
        return page.finish(
            "Saturation and underflow",
            "Saturated: the float value lies beyond the stored range. Vanished: it is not zero and is stored as zero. Many of "
            "the first ask for a wider range, many of the second for a narrower one or finer granularity.",
            f"Most saturated: {worst.name}, {100 * worst.saturation_share:.2f} % of {found.samples} samples' values.",
        )


def _heat(
    identifier: str,
    layers: Sequence[ComparedLayer],
    read: Callable[[ComparedLayer], tuple[float, ...]],
    what: str,
    found: Comparison,
) -> list[Drawing]:
    """Bits that each channel uses, one row a layer; nothing where no layer has channels that differ."""
    shown = _worst([layer for layer in layers if len(read(layer)) > 1], MAX_ROWS)
    # With a scale of its own every channel uses its whole range, and there is nothing to see.
    if all(max(read(layer)) - min(read(layer)) < EVEN_BITS for layer in shown):
        return []
    rows = [_columns(np.asarray(read(layer), np.float64) / TYPE_BITS) for layer in shown]
    picture = np.zeros((len(rows), MAX_CHANNELS))
    for at, row in enumerate(rows):
        picture[at] = row[np.minimum(np.arange(MAX_CHANNELS) * len(row) // MAX_CHANNELS, len(row) - 1)]
    with canvas(identifier, 372, 64 + 17 * len(shown)) as page:
        axes = _rows(page, [layer.name for layer in shown])
        shade(axes, picture, 1.0, len(shown))
        axes.set_yticks([at + 0.5 for at in range(len(shown))], labels([layer.name for layer in shown], NAME_LIMIT))
        axes.set_xticks([0, 0.5, 1], ["0", "50", "100"])
        axes.set(ylabel="layer, in execution order", xlabel="place of the channel, %")
        uneven = max(shown, key=lambda layer: max(read(layer)) - float(np.median(read(layer))))
        bits = read(uneven)
        return [
            page.finish(
                f"Range of each channel: {what}",
                "Shade: log2 of a channel's largest magnitude over the step, full at 8 bits. A pale row with a dark cell is an "
                f"outlier channel that takes the range from the others. Most uneven: {uneven.name}, median "
                f"{float(np.median(bits)):.1f} bits, largest {max(bits):.1f}.",
                f"{len(shown)} layers of {found.model}.",
            )
        ]


def _columns(bits: Floats) -> Floats:
    if len(bits) <= MAX_CHANNELS:
        return bits
    ends = np.linspace(0, len(bits), MAX_CHANNELS + 1).astype(int)
    return np.array([bits[low:high].max() for low, high in itertools.pairwise(ends)])


def changes(found: Comparison) -> Table:
    """What to change, the largest gain first."""
    columns = (Column("layer", numeric=False), Column("change", numeric=False), Column("gain", "dB"), Column("SQNR before", "dB"),
               Column("SQNR after", "dB"), Column("agreement after", "%"), Column("with those above", "dB"))  # fmt: skip
    rows = tuple(
        (Cell(one.layer), Cell(one.what), Cell(f"{one.gain_db:+.1f}", repr(one.gain_db)), number(one.before.sqnr_db), number(one.after.sqnr_db),
         percent(one.after.agreement), number(one.together.sqnr_db if one.together else None))
        for one in found.changes
    )  # fmt: skip
    return Table(
        f"Each change was made and executed on {found.analysed} samples: SQNR and agreement are the network's output's. Cheaper "
        "changes stand for dearer ones that gain little more.",
        columns,
        rows,
    )


def rules(found: Comparison) -> str:
    """The plan rules of all changes, to copy."""
    return "\n\n".join(f"# {one.gain_db:+.1f} dB: {one.what}\n{one.rule}" for one in found.changes)


def sensitivities(found: Comparison) -> Table:
    """Each layer alone, and all but it."""
    columns = (Column("layer", numeric=False), Column("operator", numeric=False), Column("only it: SQNR", "dB"), Column("KL", "nats"),
               Column("agreement", "%"), Column("all but it: SQNR", "dB"), Column("KL", "nats"), Column("agreement", "%"))  # fmt: skip
    rows = tuple((Cell(one.name), Cell(one.op), *_cells(one.only), *_cells(one.without)) for one in found.sensitivities)
    return Table("Quantized alone, and all quantized but it.", columns, rows, tall=len(rows) > 30)


def _cells(effect: OutputEffect | None) -> tuple[Cell, Cell, Cell]:
    if effect is None:
        return Cell("–"), Cell("–"), Cell("–")
    return number(effect.sqnr_db), number(effect.kl_nats), percent(effect.agreement)


def ranges(found: Comparison) -> Table:
    """Stored ranges that cost more than they save, and what no range covers, in words."""
    rows = tuple((Cell(name), Cell(words)) for name, words in found.ranges)
    columns = Column("value", numeric=False), Column("range", numeric=False)
    return Table(f"Ranges to look at; {REMEDY}.", columns, rows, tall=len(rows) > 30)


def table(found: Comparison) -> Table:
    """Every compared value."""
    columns = (Column("layer", numeric=False), Column("operator", numeric=False), Column("stored", numeric=False),
               Column("SQNR", "dB"), Column("weights only", "dB"), Column("activations only", "dB"), Column("cosine"),
               Column("largest error", "LSB"), Column("saturated", "%"), Column("vanished", "%"), Column("range", "dB"),
               Column("headroom", "bits"))  # fmt: skip
    rows = tuple(
        (Cell(one.name), Cell(one.op), Cell(one.dtype or "–"), number(one.sqnr_db), number(one.weights_only_db),
         number(one.activations_only_db), Cell(f"{one.cosine:.6f}", repr(one.cosine)), number(one.max_lsb),
         number(100 * one.saturation_share), number(100 * one.underflow_share), number(one.range_db), number(one.headroom_bits))
        for one in found.layers
    )  # fmt: skip
    return Table(
        "Range: squared error of the stored range over that of all that was seen. Headroom: log2 of 2^31 over the largest "
        "accumulator that any input reaches, proved from the weights.",
        columns,
        rows,
        tall=len(rows) > 30,
    )
