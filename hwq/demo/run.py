"""The demo: the whole job on the embedded model and the cost of three known ones, as one screen and one report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwq.errors import Error
from hwq.names import display_name, rich_name
from hwq.reporting.records import OFFCHIP, memory_name

if TYPE_CHECKING:
    from rich.console import Console

    from hwq.files import PathLike
    from hwq.progress import Progress
    from hwq.reporting import Unsupported
    from hwq.simulators import Estimate

__all__ = ["MACHINES", "MODELS", "Row", "Summary", "run", "show"]

MACHINES = ("tpu-v1", "t4", "ethos-u55-128")
MODELS = ("resnet50", "mobilenet_v2", "bert_base")
# What a precision means as a plan: weights and activations.
PRECISIONS: Mapping[str, tuple[str, str]] = {
    "FP16": ("float16", "float16"),
    "INT8": ("int8", "uint8"),
    "INT4": ("int4", "int4"),
}
COMMAND = "hwq demo"
COSTLIEST = 3
# Steps of the progress bar: load, calibrate, quantize, compare, one an estimate, report.
STEPS = 5 + len(MACHINES) + len(MODELS) * len(PRECISIONS) * len(MACHINES)


@dataclass(frozen=True)
class Row:
    """A model at a precision on a machine, or why the machine cannot run it.

    Attributes
    ----------
    model, machine, precision : str
    milliseconds, inferences_per_second, dram_megabytes, millijoules, mac_utilization : float or None
        Of one inference; `mac_utilization` is a share of 1. None where unsupported.
    bound : str
    costliest : tuple of (layer name, milliseconds)
        The three layers that take the most time.
    unsupported : str
        Why, or ``""``.
    """

    model: str
    machine: str
    precision: str
    milliseconds: float | None = None
    inferences_per_second: float | None = None
    dram_megabytes: float | None = None
    millijoules: float | None = None
    mac_utilization: float | None = None
    bound: str = ""
    costliest: tuple[tuple[str, float], ...] = ()
    unsupported: str = ""


@dataclass(frozen=True)
class Summary:
    """What the demo found.

    Attributes
    ----------
    model, dialect, status, kernels : str
        `status` is the dialect's, such as ``verified``; `kernels` the path of the integer kernels, such as ``avx2``.
    images, calibration_images : int
    accuracy_float, accuracy_int8, agreement : float
        Shares of 1.
    parameter_bytes : mapping of precision to bytes
    rows : tuple of Row
    files : tuple of str
        What was written.
    """

    model: str
    dialect: str
    status: str
    kernels: str
    images: int
    calibration_images: int
    accuracy_float: float
    accuracy_int8: float
    agreement: float
    parameter_bytes: Mapping[str, int]
    rows: tuple[Row, ...]
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def run(out: PathLike, *, overwrite: bool = False, progress: Progress | None = None) -> Summary:
    """Load, calibrate, quantize to INT8, run bit-exactly, compare, estimate, and write the report.

    Needs no network and no file from outside the package.

    Parameters
    ----------
    out : path
        Folder for ``report.html``, ``report.json`` and ``layers.csv``; made if it is not there.
    overwrite : bool
        Replace a report that is there already.
    progress : Progress, optional

    Raises
    ------
    Error
        The files exist and `overwrite` is false, or the folder cannot be written.
    """
    import hwq
    from hwq import demo
    from hwq.files import refuse_existing
    from hwq.quantization import annotate

    page = Path(out) / "report.html"
    refuse_existing(page, overwrite)
    tell = _Steps(progress)
    digits = demo.data()
    graph = hwq.load(str(demo.model_path()))
    tell("load")
    statistics = hwq.calibrate(graph, digits.calibration)
    tell("calibrate")
    plan = hwq.Plan.uniform("int8", "uint8", granularity="channel", dialect="ort")
    quantized = hwq.quantize(graph, plan, statistics)
    tell("quantize")
    comparison = hwq.compare(graph, quantized, digits.images, labels=digits.labels)
    tell("run and compare")
    estimates = []
    for machine in MACHINES:
        estimates.append(hwq.estimate(quantized, machine))
        tell(f"estimate on {machine}")
    narrow = annotate(graph, hwq.Plan.uniform("int4", "uint8", granularity="channel"))
    costs, gaps, rows = _cost_models(tell)
    items = [graph, quantized, narrow, plan, statistics, comparison, *estimates, *costs, *gaps]
    files = hwq.report(items, page, overwrite=overwrite, title=f"hwq demo: {graph.name}", command=COMMAND)
    tell("report")
    return Summary(
        model=graph.name,
        dialect=plan.dialect,
        status=hwq.dialects()[plan.dialect].status,
        kernels=hwq.kernels.isa(),
        images=len(digits.images),
        calibration_images=statistics.samples,
        accuracy_float=comparison.accuracy_float or 0.0,
        accuracy_int8=comparison.accuracy or 0.0,
        agreement=comparison.agreement,
        parameter_bytes={
            "float32": graph.parameter_bytes,
            "int8": quantized.parameter_bytes,
            "int4": narrow.parameter_bytes,
        },
        rows=tuple([*(_row(estimate, "INT8") for estimate in estimates), *rows]),
        files=tuple(str(file) for file in files),
    )


class _Steps:
    """Counts the demo's steps for its progress callback."""

    def __init__(self, progress: Progress | None):
        self.progress, self.done = progress, 0

    def __call__(self, what: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, STEPS, f"demo: {what}")


def _cost_models(tell: _Steps) -> tuple[list[Estimate], list[Unsupported], list[Row]]:
    """Every model at every precision on every machine, from shapes alone."""
    import hwq
    from hwq.reporting import Unsupported

    estimates, gaps, rows = [], [], []
    for name in MODELS:
        graph = hwq.load(f"zoo:{name}", weights=False)
        for machine in MACHINES:
            for precision, types in PRECISIONS.items():
                try:
                    estimates.append(hwq.estimate(graph, machine, plan=hwq.Plan.uniform(*types)))
                    rows.append(_row(estimates[-1], precision))
                except Error as error:
                    why = error.why or error.what
                    gaps.append(Unsupported(graph.name, machine, precision, why))
                    rows.append(Row(graph.name, machine, precision, unsupported=why))
                tell(f"{name} on {machine} at {precision}")
    return estimates, gaps, rows


def _row(estimate: Estimate, precision: str) -> Row:
    each = 1.0 / estimate.batch
    offchip = sum(sum(operands.values()) for memory, operands in estimate.traffic.items() if memory in OFFCHIP)
    worst = sorted(estimate.layers, key=lambda layer: -layer.seconds)[:COSTLIEST]
    return Row(
        model=estimate.graph.name,
        machine=estimate.machine.name,
        precision=precision,
        milliseconds=estimate.seconds * 1e3 * each,
        inferences_per_second=estimate.inferences_per_second,
        dram_megabytes=offchip / 1e6 * each,
        millijoules=estimate.picojoules / 1e9 * each,
        mac_utilization=estimate.mac_utilization,
        bound=estimate.bound,
        costliest=tuple((layer.name, layer.seconds * 1e3 * each) for layer in worst),
    )


def show(summary: Summary, console: Console) -> None:
    """Print the demo's one screen; it fits 100 columns and 50 lines."""
    from rich.table import Table

    def line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=False)

    sizes = "   ".join(f"{name} {size:,} bytes" for name, size in summary.parameter_bytes.items())
    line(
        f"[bold]{rich_name(summary.model)}[/bold]: a digit classifier, INT8 per channel, "
        f"dialect {rich_name(summary.dialect)} ({rich_name(summary.status)}), kernel path {rich_name(summary.kernels)}"
    )
    line(
        f"  accuracy   float {100 * summary.accuracy_float:.2f} %   INT8 {100 * summary.accuracy_int8:.2f} %   "
        f"agreement {100 * summary.agreement:.2f} %   "
        f"({summary.images} test images, {summary.calibration_images} to calibrate)"
    )
    line(f"  parameters {sizes}")
    mine = [row for row in summary.rows if row.model == summary.model]
    others = [row for row in summary.rows if row.model != summary.model]
    for rows, title in (
        (mine, "one image at a time"),
        (others, "one inference at a time, cost only: from shapes, without weights"),
    ):
        console.print()
        line(f"[bold]{title}[/bold]")
        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
        for head, right in (
            ("model", False),
            ("machine", False),
            ("type", False),
            ("ms", True),
            ("inferences/s", True),
            ("DRAM MB", True),
            ("mJ", True),
            ("MAC utilization %", True),
            ("bound by", False),
        ):
            table.add_column(head, justify="right" if right else "left", no_wrap=True)
        for row in rows:
            if not row.unsupported:
                table.add_row(
                    rich_name(row.model, 16),
                    rich_name(row.machine, 16),
                    row.precision,
                    *map(_figure, (row.milliseconds, row.inferences_per_second, row.dram_megabytes, row.millijoules)),
                    _figure(100 * (row.mac_utilization or 0.0)),
                    rich_name(memory_name(row.bound), 12),
                )
        console.print(table)
    for (machine, precision, why), models in _unsupported(others).items():
        which = "" if len(models) == len(MODELS) else f" ({', '.join(models)})"
        line(f"unsupported: {precision} on {rich_name(machine)}{which}: {rich_name(why, 200)}")
    console.print()
    line("[bold]three costliest layers[/bold], ms")
    for row in [*mine, *(row for row in others if row.model == MODELS[0])]:
        if row.precision == "INT8" and not row.unsupported:
            line(
                f"  {rich_name(row.model, 16)} on {rich_name(row.machine, 16)}: "
                + ", ".join(f"{rich_name(name, 26)} {_figure(cost)}" for name, cost in row.costliest)
            )
    console.print()
    line("DRAM on ethos-u55-128 is its flash. Costs are closed-form estimates; the report says how far to trust them:")
    line("  " + ", ".join(rich_name(file, 200) for file in summary.files))


def _unsupported(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[str]]:
    """Gaps that several models share, told once."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.unsupported:
            found.setdefault((row.machine, row.precision, row.unsupported), []).append(display_name(row.model, 16))
    return found


def _figure(value: float | None) -> str:
    """Three significant digits without an exponent."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value >= 1e-4 else f"{value:.1e}" if value else "0"
