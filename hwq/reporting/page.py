"""The page: which sections a set of records makes, in which order, and the template that prints them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import hwq
from hwq.names import display_name
from hwq.reporting import causes, cost_plots, drift, occupancy, plots, tables
from hwq.reporting.drawing import Drawing
from hwq.reporting.layout import Fact, Fold, Page, Section, Tile
from hwq.reporting.meeting import compared, match
from hwq.reporting.records import Comparison, Cost, Records

if TYPE_CHECKING:
    from hwq.progress import Progress

__all__ = ["render"]

# Figures drawn for models other than the one in focus.
MAX_FIGURES = 24

_SECTIONS = 13
# Which hashes the header shows, and what it calls them.
_HASHES = {"graph": "graph", "float_graph": "float graph", "plan": "plan", "calibration": "calibration"}

_WORDS = (
    ("MAC", "one multiplication and one addition to a sum; never counted twice as two operations"),
    (
        "SQNR",
        "signal-to-quantization-noise ratio: 10 log10 of the float tensor's power over the power of its error, in dB",
    ),
    ("LSB", "one step of the stored integer"),
    ("agreement", "share of inputs on which float and quantized model choose the same class"),
    ("MAC utilization", "MACs done over the MACs that the machine could do in the same time at that precision"),
    ("bound by", "the resource that is busy the whole time: compute, a memory, launch or conversion"),
    ("arithmetic intensity", "MACs per byte of DRAM traffic; left of the ridge a layer waits for memory"),
    ("clip lines", "the lowest and highest real value that the stored type can stand for"),
    ("MB, mJ, ms", "10^6 bytes, 10^-3 joules, 10^-3 seconds; GB/s is 10^9 bytes a second"),
    (
        "dialect",
        "one runtime's arithmetic, rounding by rounding; verified: outputs were compared with that runtime bit by bit",
    ),
)


@dataclass(frozen=True)
class Focus:
    """The model that gets every figure: the one that was compared, else the first one costed."""

    model: str
    costs: tuple[Cost, ...]
    comparison: Comparison | None
    beside: tuple[Cost, ...]  # one estimate a machine: that of the compared plan


def render(
    records: Records,
    *,
    title: str | None,
    command: str | None,
    json_name: str,
    csv_name: str,
    progress: Progress | None = None,
) -> str:
    """The whole HTML file. Equal records give equal bytes."""
    focus = _focus(records)
    name = title or f"hwq report: {display_name(focus.model, 60)}"
    parts = []
    for done, section in enumerate(_sections(records, focus), 1):
        parts += [section] if section is not None else []
        if progress is not None:
            progress(done, _SECTIONS, "report: sections")
    page = Page(name, _subtitle(records), _facts(records, focus, command), parts, json_name, csv_name)
    return str(_template().render(page=page, css=_text("report.css"), js=_text("report.js")))


def _text(name: str) -> str:
    return (resources.files("hwq.reporting") / name).read_text("utf-8")


def _template() -> Any:
    import jinja2
    from markupsafe import Markup, escape

    # Every value is escaped unless the template says otherwise; names pass display_name first: no control characters.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["name"] = lambda value, limit=120: display_name(value, limit)
    environment.filters["lines"] = lambda value: Markup("\n").join(
        escape(display_name(line, 400)) for line in str(value).split("\n")
    )
    return environment.from_string(_text("report.html"))


def _focus(records: Records) -> Focus:
    comparison = records.comparisons[0] if records.comparisons else None
    model = (
        records.costs[0].model
        if records.costs
        else comparison.model
        if comparison
        else records.footprints[0].model
        if records.footprints
        else records.stepped[0].model
        if records.stepped
        else records.drifts[0].model
        if records.drifts
        else "no model"
    )
    if comparison:
        known = match([comparison])
        met = {
            cost.model: sum(compared(layer, known) is not None for layer in cost.layers)
            for cost in reversed(records.costs)
        }
        best = max(reversed(met), key=lambda name: met[name], default=None)
        if best is not None and met[best]:
            model = best
        elif records.costs:
            comparison = None  # it is of another model; its table stands, but its layers meet no cost
    costs = tuple(cost for cost in records.costs if cost.model == model)
    beside: dict[str, Cost] = {}
    for cost in costs:
        if cost.machine not in beside or (
            comparison and _of_the_plan(cost, comparison) > _of_the_plan(beside[cost.machine], comparison)
        ):
            beside[cost.machine] = cost
    return Focus(model, costs, comparison, tuple(beside.values()))


def _of_the_plan(cost: Cost, comparison: Comparison) -> int:
    graph = comparison.hashes.get("graph")
    return int(graph is not None and graph == cost.hashes.get("graph"))


def _subtitle(records: Records) -> str:
    parts = [
        (len({cost.model for cost in records.costs}), "model"),
        (len({cost.machine for cost in records.costs}), "machine"),
        (len(records.costs), "estimate"),
        (len(records.comparisons), "comparison"),
        (len(records.stepped), "stepped run"),
        (len(records.drifts), "runtime beside it"),
    ]
    return ", ".join(f"{many} {word}{'s' if many != 1 else ''}" for many, word in parts if many) or "nothing to show"


def _facts(records: Records, focus: Focus, command: str | None) -> list[Fact]:
    facts = [Fact("model", focus.model)]
    hashes: dict[str, dict[str, None]] = {}
    run = focus.comparison.hashes if focus.comparison else {}
    for found in (*(cost.hashes for cost in focus.costs), run):
        for kind in _HASHES:
            if found.get(kind):
                hashes.setdefault(kind, {})[found[kind][:12]] = None
    for plan in records.plans:
        hashes.setdefault("plan", {})[plan.hash[:12]] = None
    facts += [
        Fact(f"{_HASHES[kind]} hash", ", ".join(values), code=True)
        for kind, values in sorted(hashes.items())
        if len(values) <= 4
    ]
    machine_hashes = {cost.machine: cost.hashes.get("machine", "")[:12] for cost in records.costs}
    facts += [
        Fact(f"machine {machine}", f"file {value}" if value else "no hash", code=True)
        for machine, value in machine_hashes.items()
    ]
    mine = [graph.dialect for graph in records.footprints if graph.model == focus.model or not focus.costs]
    facts += [Fact("dialect", _dialect(name)) for name in dict.fromkeys([run["dialect"]] if "dialect" in run else mine)]
    if "kernel_path" in run:
        facts.append(Fact("kernel path", f"{run['kernel_path']}: every path gives the same bits"))
    facts += [Fact("calibration", calibration.summary) for calibration in records.calibrations]
    facts.append(Fact("hwq version", hwq.__version__))
    if command:
        facts.append(Fact("command to reproduce", command, code=True, wide=True))
    return facts


def _dialect(name: str) -> str:
    from hwq.dialect import DIALECTS

    found = DIALECTS.get(name)
    if found is None:
        return name
    return f"{name}: {found.status}, {found.runtime}" + ("; values compared: hwq dialects" if found.evidence else "")


def _sections(records: Records, focus: Focus) -> Iterator[Section | None]:
    yield _accuracy(records)
    yield _causes(records)
    yield _machines(records, focus)
    yield _layers(focus)
    yield _cost_figures(focus)
    yield _stepped(records)
    yield _drifts(records)
    yield _distributions(records)
    yield _others(records, focus)
    yield _validity(records)
    yield _layer_table(focus)
    yield _plans(records)
    yield Section("words", "Words", "Words and units", words=_WORDS)


def _accuracy(records: Records) -> Section | None:
    if not records.comparisons and not records.footprints:
        return None
    tiles = []
    for found in records.comparisons:
        if found.accuracy_float is not None:
            tiles.append(_share_tile("accuracy, float", found.accuracy_float, found.samples))
        if found.accuracy_quantized is not None:
            tiles.append(_share_tile("accuracy, quantized", found.accuracy_quantized, found.samples))
        if found.agreement is not None:
            tiles.append(Tile("agreement", f"{100 * found.agreement:.2f}", "%", "same class as float"))
    tiles += [
        Tile(
            f"parameters, {graph.precision.split(' + ')[0]}",
            f"{graph.parameter_bytes:,}",
            "bytes",
            f"{graph.parameters:,} numbers of {display_name(graph.model, 60)}",
        )
        for graph in records.footprints[:6]
    ]
    made = [tables.accuracy(records.comparisons)] if records.comparisons else []
    made += [tables.footprints(records.footprints)] if records.footprints else []
    return Section(
        "accuracy",
        "Accuracy",
        "What it computes",
        tiles=tiles,
        tables=made,
        lead="The quantized model runs on integer kernels under the rounding rules of its dialect; the header says which "
        "runtime's bits these are and whether that was verified."
        if records.comparisons
        else "",
    )


def _causes(records: Records) -> Section | None:
    """What costs the accuracy, for every comparison that has layers."""
    found = [one for one in records.comparisons if one.layers]
    if not found:
        return None
    made, drawn, folds = [], [], []
    for index, one in enumerate(found):
        made += [causes.ranges(one)] if one.ranges else []
        made += [causes.changes(one)] if one.changes else []
        drawn += causes.drawings(f"causes-{index}", one)
        folds += (
            [Fold("plan rules of these changes, to append to a plan file", text=causes.rules(one))]
            if one.changes
            else []
        )
        folds += (
            [Fold("each layer alone and all but it", tables=[causes.sensitivities(one)])] if one.sensitivities else []
        )
        folds.append(Fold(f"every compared value of {display_name(one.model, 60)}", tables=[causes.table(one)]))
    title = "What to change" if any(one.sensitivities for one in found) else "Where the error comes from"
    return Section("causes", "Causes", title, tables=made, drawings=drawn, folds=folds)


def _share_tile(label: str, share: float, samples: int) -> Tile:
    low, high = tables.wilson(share, samples)
    return Tile(
        label, f"{100 * share:.2f}", "%", f"{samples:,} inputs; 95 % interval {100 * low:.1f} to {100 * high:.1f}"
    )


def _machines(records: Records, focus: Focus) -> Section | None:
    if not records.costs and not records.unsupported:
        return None
    caption = f"{display_name(focus.model, 60)} on each machine; time, traffic and energy are of one batch."
    made = [tables.machines(focus.costs, caption)] if focus.costs else []
    made += [tables.gaps(mine)] if (mine := [gap for gap in records.unsupported if gap.model == focus.model]) else []
    if focus.beside:
        made.append(tables.costliest(focus.beside, "The three costliest layers on each machine."))
    return Section(
        "machines",
        "Machines",
        "What it costs",
        tables=made,
        lead="Closed-form estimates. An interval stands where published measurements allow one; the section on "
        "validity says what each machine was held against.",
    )


def _layers(focus: Focus) -> Section | None:
    if not focus.beside and not (focus.comparison and focus.comparison.layers):
        return None
    return Section(
        "layers",
        "Layers",
        "Error and cost, layer by layer",
        drawings=[plots.layers("layer-chart", focus.beside, focus.comparison, focus.model)],
    )


def _cost_figures(focus: Focus) -> Section | None:
    if not focus.costs:
        return None
    drawn = _rooflines("roofline", focus.costs)
    drawn += _traffic_and_energy("focus", focus.costs)
    return Section("cost", "Roofline, traffic, energy", "Where the time, the bytes and the energy go", drawings=drawn)


def _rooflines(prefix: str, costs: Sequence[Cost]) -> list[Drawing]:
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        if cost.peaks and any(layer.macs for layer in cost.layers):
            groups.setdefault(cost.machine, []).append(cost)
    return [cost_plots.roofline(f"{prefix}-{index}", group) for index, group in enumerate(groups.values())]


def _traffic_and_energy(prefix: str, costs: Sequence[Cost]) -> list[Drawing]:
    drawn = []
    if any(sum(operands.values()) for cost in costs for operands in cost.traffic_bytes.values()):
        drawn.append(cost_plots.traffic(f"{prefix}-traffic", costs))
    if any(cost.energy_picojoules for cost in costs):
        drawn.append(cost_plots.energy(f"{prefix}-energy", costs))
    return drawn


def _stepped(records: Records) -> Section | None:
    if not records.stepped:
        return None
    drawn = [
        occupancy.layer(f"stepped-{index}-{at}", run, layer)
        for index, run in enumerate(records.stepped)
        for at, layer in enumerate(occupancy.heaviest(run))
    ]
    return Section(
        "stepped",
        "Stepped array",
        "Which PEs worked when",
        lead="The model's own values went through the array, cycle by cycle; the outputs have the bits of the kernels.",
        tables=[occupancy.table(run) for run in records.stepped],
        drawings=drawn,
    )


def _drifts(records: Records) -> Section | None:
    if not records.drifts:
        return None
    return Section(
        "drift",
        "Drift",
        "Where runs part",
        lead="Values of the model beside another runtime's, bit for bit, in order of execution.",
        tables=[drift.table(one) for one in records.drifts],
        drawings=[drift.draw(f"drift-{index}", one) for index, one in enumerate(records.drifts)],
    )


def _distributions(records: Records) -> Section | None:
    if not records.histograms:
        return None
    drawn = [plots.distribution(f"histogram-{index}", histogram) for index, histogram in enumerate(records.histograms)]
    return Section("distributions", "Distributions", "Where values are clipped", drawings=drawn)


def _others(records: Records, focus: Focus) -> Section | None:
    models = dict.fromkeys([*(cost.model for cost in records.costs), *(gap.model for gap in records.unsupported)])
    models.pop(focus.model, None)
    if not models:
        return None
    folds, drawn = [], 0
    for index, model in enumerate(models):
        costs = [cost for cost in records.costs if cost.model == model]
        figures: list[Drawing] = []
        if drawn < MAX_FIGURES and costs:
            figures = [*_rooflines(f"model-{index}-roofline", costs), *_traffic_and_energy(f"model-{index}", costs)]
            drawn += len(figures)
        folds.append(
            Fold(
                f"{model}: costliest layers{', rooflines, traffic and energy' if figures else ''}",
                tables=[tables.costliest(costs, "The three costliest layers on each machine.")],
                drawings=figures,
            )
        )
    costs = [cost for cost in records.costs if cost.model != focus.model]
    gaps = [gap for gap in records.unsupported if gap.model != focus.model]
    made = [tables.machines(costs, "Time, traffic and energy are of one batch.")] if costs else []
    made += [tables.gaps(gaps)] if gaps else []
    return Section("models", "Other models", "Other models on the same machines", tables=made, folds=folds)


def _validity(records: Records) -> Section | None:
    if not records.costs:
        return None
    total: Mapping[str, int] = {
        level: sum(cost.confidence.get(level, 0) for cost in {cost.machine: cost for cost in records.costs}.values())
        for level in ("read", "recalled", "assumed", "fitted")
    }
    lead = (
        "Of the machines' numbers, "
        + ", ".join(f"{many} are {level}" for level, many in total.items())
        + ". An estimate is as good as they are."
        if sum(total.values())
        else ""
    )
    made = [tables.confidence(records.costs)]
    if any(cost.notes for cost in records.costs):
        made.append(tables.assumptions(records.costs))
    return Section("validity", "Validity", "How far to trust the estimates", lead=lead, tables=made)


def _layer_table(focus: Focus) -> Section | None:
    if not focus.beside:
        return None
    return Section(
        "table",
        "Layer table",
        "Every layer",
        tables=[
            tables.layer_table(
                focus.beside, focus.comparison, f"Layers of {display_name(focus.model, 60)}; select a heading to sort."
            )
        ],
    )


def _plans(records: Records) -> Section | None:
    if not records.plans:
        return None
    return Section(
        "plans",
        "Plans",
        "Quantization plans",
        folds=[Fold(f"plan {plan.hash[:12]}", text=plan.text) for plan in records.plans],
    )
