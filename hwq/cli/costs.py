"""Verbs about cost: estimate, report, accelerators, dialects; and the demo, which needs them all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwq.cli import options
from hwq.cli.console import emit, guarded, progress, table

if TYPE_CHECKING:
    from rich.console import Console

    from hwq.verification import Case

__all__ = ["DEMO", "VERBS", "attach"]


@guarded
def estimate(
    model: options.Model,
    on: options.On,
    plan: options.PlanFile = None,
    precision: options.Precision = None,
    batch: options.Batch = 1,
    shape: options.Shapes = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write one row a layer and machine.")
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Estimate time, traffic and energy of a model on machines, from shapes and planned bit widths alone."""
    import hwq
    from hwq.files import write_atomically
    from hwq.names import rich_name

    graph = options.load(model, shape, weights=False)
    chosen = options.plan_of(plan, precision) or options.default_plan(graph)
    found = [hwq.estimate(graph, machine, plan=chosen, batch=batch) for machine in options.machines(on)]
    if csv is not None:
        with write_atomically(csv, overwrite=overwrite, mode="w") as stream:
            for index, one in enumerate(found):
                text = one.to_csv()
                stream.write(text if index == 0 else text.split("\n", 1)[1])

    def show(console: Console) -> None:
        drawn = table(
            f"{rich_name(graph.name)}, batch {batch}",
            "machine",
            "ms",
            "inferences/s",
            "off-chip MB",
            "mJ (low to high)",
            "MAC utilization",
            "bound by",
        )
        for one in found:
            low, high = one.picojoules_band
            drawn.add_row(
                rich_name(one.machine.name),
                f"{one.seconds * 1e3:.4g}",
                f"{one.inferences_per_second:.4g}",
                f"{one.off_chip_bytes / 1e6:.4g}",
                f"{one.picojoules / 1e9:.3g} ({low / 1e9:.3g} to {high / 1e9:.3g})",
                f"{one.mac_utilization:.1%}",
                one.bound,
            )
        console.print(drawn)
        for one in found:
            console.print(f"{one.machine.name}: {one.validity}", markup=False)

    emit("estimate", [one.to_dict() for one in found], show, json)


@guarded
def report(
    model: options.Model,
    on: options.On = "tpu-v1,t4,ethos-u55-128",
    out: options.Out = Path("report.html"),
    data: options.MaybeData = None,
    calibration_data: Annotated[
        Path | None,
        typer.Option("--calibration-data", metavar="FILE", help="Samples to calibrate on; default: those of --data."),
    ] = None,
    plan: options.PlanFile = None,
    precision: options.Precision = None,
    batch: options.Batch = 1,
    samples: options.Count = None,
    sensitivity: options.Sensitivity = False,
    input_scale: options.InputScale = 1.0,
    input_zero_point: options.InputZeroPoint = 0.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write one offline HTML page (with report.json and layers.csv beside it): cost, and with --data also accuracy."""
    import hwq
    from hwq.cli.bits import CHUNK
    from hwq.cli.console import progress
    from hwq.errors import Error

    graph = options.load(model, weights=data is not None)
    chosen = options.plan_of(plan, precision) or options.default_plan(graph, corrected=data is not None)
    items: list[Any] = [graph] if chosen is None else [graph, chosen]
    subject: Any = graph
    if data is not None:
        if chosen is None:
            raise Error(
                "a report with samples starts from the float model",
                where=model,
                why="it compares float with quantized",
                remedy="give the float model and --plan, or leave --data away",
            )
        found = options.samples(data, graph, samples, input_scale, input_zero_point)
        source = (
            found
            if calibration_data is None
            else options.samples(calibration_data, graph, None, input_scale, input_zero_point)
        )
        with progress("calibrating") as told:
            statistics = hwq.calibrate(graph, source.batches(CHUNK), progress=told)
        subject = hwq.quantize(graph, chosen, statistics, source.batches(CHUNK))
        with progress("comparing") as told:
            compared = hwq.compare(
                graph, subject, found.batches(CHUNK), labels=found.labels, sensitivity=sensitivity, progress=told
            )
        items += [statistics, compared]
    for machine in options.machines(on):
        items.append(hwq.estimate(subject, machine, plan=None if subject is not graph else chosen, batch=batch))
    hwq.report(items, str(out), overwrite=overwrite)
    emit("report", {"file": str(out)}, lambda console: console.print(f"wrote {out}", markup=False), json)


def _bound(case: Case) -> str:
    """What a kind with a rate may differ by, and by how much it does."""
    return f"allowed {case.allowed_share:.2g} by {case.allowed_distance:g} ulps or steps: {case.distance:.2g}"


def _verify(name: str, values: int, json: bool) -> None:
    from hwq.dialect import find
    from hwq.errors import Error
    from hwq.verification import verify

    find(name)
    try:
        with progress(f"verifying {name}") as report:
            made = verify(name, values=values, progress=report)
    except Error as error:  # what cannot be verified is not verified: a failed check, not bad usage
        typer.echo(f"hwq: {error}", err=True)
        raise typer.Exit(1) from None

    def show(console: Console) -> None:
        console.print(f"{name}: {made.runtime} {made.version} ({made.command})", markup=False)
        drawn = table("", "case", "values", "differing", "")
        for case in made.cases:
            note = case.failure or (_bound(case) if case.rate_only else "")
            drawn.add_row(case.name, f"{case.values:,}", f"{case.differing:,}", note)
        console.print(drawn)
        console.print(
            f"{made.values:,} values compared, {made.differing:,} differ: {'verified' if made.passed else 'NOT verified'}"
        )

    emit("dialects", made.to_dict(), show, json)
    if not made.passed:
        raise typer.Exit(1)


@guarded
def dialects(
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify",
            metavar="NAME",
            help="Run the dialect against its installed runtime again; exit 1 on any difference.",
        ),
    ] = None,
    values: Annotated[int, typer.Option("--values", min=1, help="Values to compare in each case, at least.")] = 100_000,
    json: options.Json = False,
) -> None:
    """List the rounding contracts: which runtime's bits, and what verified it."""
    import hwq

    if verify is not None:
        _verify(verify, values, json)
        return
    found = hwq.dialects().values()
    rows = [
        {
            "name": one.name,
            "summary": one.summary,
            "runtime": one.runtime,
            "status": one.status,
            "evidence": one.evidence,
        }
        for one in found
    ]

    def show(console: Console) -> None:
        from rich.padding import Padding
        from rich.text import Text

        def line(text: str, indent: int) -> None:
            console.print(Padding(Text(text), (0, 0, 0, indent), expand=False))

        for row in rows:
            console.print(f"[bold]{row['name']}[/bold]  ({row['status']})")
            line(row["summary"], 4)
            line(f"runtime: {row['runtime']}", 4)
            if row["evidence"]:
                line("verified by:", 4)
                for clause in row["evidence"].split("; "):
                    line(clause, 6)

    emit("dialects", rows, show, json)


@guarded
def scalesim(
    config: Annotated[Path, typer.Option("-c", "--config", metavar="FILE", help="SCALE-Sim's .cfg, version 2 or 3.")],
    topology: Annotated[Path, typer.Option("-t", "--topology", metavar="FILE", help="SCALE-Sim's topology .csv.")],
    out: Annotated[Path, typer.Option("-p", "--path", metavar="FOLDER", help="Reports go to FOLDER/run_name/.")],
    gemm: Annotated[
        str | None, typer.Option("-i", "--input-type", metavar="conv|gemm", help="Default: by the topology's header.")
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """SCALE-Sim's own files in, its reports out: a drop-in, its documented bugs included."""
    from hwq.cli.console import progress
    from hwq.errors import Error
    from hwq.names import rich_name
    from hwq.simulators.scalesim import run

    if gemm not in {None, "conv", "gemm"}:
        raise Error("there is no such topology", where=f"-i {gemm}", remedy="conv or gemm")
    with progress("scalesim") as told:
        done = run(
            config, topology, out, gemm=None if gemm is None else gemm == "gemm", overwrite=overwrite, progress=told
        )
    rows = [
        {"layer": one.layer.name, "total_cycles": one.total_cycles, "stall_cycles": one.stall_cycles}
        for one in done.layers
    ]

    def show(console: Console) -> None:
        drawn = table(rich_name(done.configuration.run_name), "layer", "total cycles", "stall cycles")
        for row in rows:
            drawn.add_row(rich_name(row["layer"]), f"{row['total_cycles']:,}", f"{row['stall_cycles']:,}")
        console.print(drawn)
        for file in done.files:
            console.print(f"wrote {file}", markup=False)

    emit("scalesim", {"layers": rows, "files": [str(file) for file in done.files]}, show, json)


VERBS = (estimate, report, scalesim, dialects)


@guarded
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for report.html, report.json and layers.csv.")
    ] = Path("hwq-demo"),
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """The whole job on the built-in digit classifier: bits, accuracy, cost on three machines, one report. Start here."""
    from hwq.cli.console import progress
    from hwq.demo.run import run, show

    with progress("demo") as told:
        summary = run(out, overwrite=overwrite, progress=told)
    emit("demo", summary.to_dict(), lambda console: show(summary, console), json)


DEMO = demo


def attach(app: typer.Typer) -> None:
    """Add ``accelerators`` and ``accelerators show NAME``."""
    group = typer.Typer(help="List the machines, or show one with the source of every number.", rich_markup_mode=None)

    @group.callback(invoke_without_command=True)
    def listing(context: typer.Context, json: options.Json = False) -> None:
        if context.invoked_subcommand is None:
            guarded(_list)(json)

    group.command("show")(_show)
    app.add_typer(group, name="accelerators")


def _list(json: bool) -> None:
    import hwq
    from hwq.names import rich_name

    machines = list({machine.name: machine for machine in hwq.accelerators().values()}.values())
    rows: list[dict[str, Any]] = [
        {
            "name": machine.name,
            "aliases": list(machine.aliases),
            "family": machine.family,
            "summary": machine.summary,
            "peak_macs_per_second": {name: machine.peak_macs_per_second(name) for name in machine.usable_precisions},
            "validity": machine.validity,
            "confidences": dict(machine.confidences),
            "hash": machine.hash,
        }
        for machine in machines
    ]

    def show(console: Console) -> None:
        counted = "numbers read / recalled / assumed / fitted"
        drawn = table("Machines", "name", "family", "peak, tera-MAC/s by precision", counted, "validity")
        for machine, row in zip(machines, rows, strict=True):
            drawn.add_row(
                rich_name(machine.name),
                machine.family,
                ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in row["peak_macs_per_second"].items()),
                " / ".join(str(machine.confidences.get(kind, 0)) for kind in ("read", "recalled", "assumed", "fitted")),
                rich_name(machine.validity),
            )
        console.print(drawn)
        console.print("hwq accelerators show NAME gives every number with its unit, source and confidence.")

    emit("accelerators", rows, show, json)


@guarded
def _show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A machine's name, alias, or .toml file.", show_default=False)
    ],
    json: options.Json = False,
) -> None:
    """Every number of one machine, with unit, source and confidence."""
    from hwq.names import rich_name
    from hwq.simulators import find

    machine = find(name)
    numbers = dict(machine.quantities)
    numbers |= {f"precisions.{name}.rate": entry.rate for name, entry in machine.precisions.items() if entry.rate}
    rows = [{"key": key, **dataclasses.asdict(number)} for key, number in numbers.items()]
    missing = {name: entry.why for name, entry in machine.precisions.items() if entry.rate is None and entry.why}
    support = {op: dataclasses.asdict(entry) for op, entry in machine.support.items()}

    def show(console: Console) -> None:
        drawn = table(f"{rich_name(machine.name)} ({machine.family})", "key", "value", "unit", "confidence", "source")
        for row in rows:
            drawn.add_row(
                row["key"], f"{row['value']:g}", row["unit"], row["confidence"], rich_name(row["source"], 400)
            )
        console.print(drawn)
        for key, word in machine.choices.items():
            console.print(f"{key} = {word}", markup=False)
        for name, why in missing.items():
            console.print(f"{name}: {why}", markup=False)
        for op, entry in support.items():
            console.print(f"{op}: {entry['level']}, {entry['why']}", markup=False)
        console.print(machine.validity, markup=False)

    result = {**machine.to_dict(), "quantities": rows, "hash": machine.hash}
    emit("accelerators show", result, show, json)
