"""Verbs about why and how sure: explain two costs, validate a family against published measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwq.cli import options
from hwq.cli.console import emit, guarded, table

if TYPE_CHECKING:
    from rich.console import Console

    from hwq.graph import Graph
    from hwq.plan import Plan

__all__ = ["VERBS"]


@guarded
def explain(
    model: options.Model,
    on: options.On,
    plan: options.PlanFile = None,
    precision: options.Precision = None,
    against_plan: Annotated[
        Path | None, typer.Option("--against-plan", metavar="FILE", help="The plan to compare with.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="NAME", help="The uniform precision to compare with: int8, int4, ..."),
    ] = None,
    batch: options.Batch = 1,
    shape: options.Shapes = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Of hwq calibrate: also say which ranges cost accuracy and what stays float.",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Causes to show.")] = 8,
    json: options.Json = False,
) -> None:
    """Say why a plan costs more or less than another: ranked causes with ms, bytes and mJ. With two machines and one plan: why they differ."""
    import hwq
    from hwq.errors import Error
    from hwq.names import rich_name

    graph = options.load(model, shape, weights=calibration is not None)
    chosen = options.plan_of(plan, precision) or options.default_plan(graph)
    notes = _range_notes(graph, chosen, calibration)
    other = options.plan_of(against_plan, against)
    machines = options.machines(on)
    if other is None and len(machines) != 2:
        raise Error(
            "there is nothing to compare with",
            remedy="--against PRECISION or --against-plan FILE; or one plan on two machines: --on A,B",
        )
    pairs = (
        [(machine, chosen, machine, other) for machine in machines]
        if other is not None
        else [(machines[0], chosen, machines[1], chosen)]
    )
    # The reference is what stands after "against": b is what was asked about.
    found = []
    for left, ours, right, theirs in pairs:
        asked = hwq.estimate(graph, left, plan=ours, batch=batch)
        reference = hwq.estimate(graph, right, plan=theirs, batch=batch)
        found.append(hwq.explain(reference, asked))

    def show(console: Console) -> None:
        for one in found:
            console.print(
                f"{one.b.machine.name} against {one.a.machine.name}: {one.b.seconds * 1e3:.4g} against {one.a.seconds * 1e3:.4g} ms "
                f"({one.seconds * 1e3:+.4g}), {one.b.picojoules / 1e9:.4g} against {one.a.picojoules / 1e9:.4g} mJ "
                f"({one.picojoules / 1e9:+.4g})",
                markup=False,
            )
            drawn = table("time", "layer", "term", "ms", "off-chip bytes", "rule", "remedy")
            for cause in one.times[:top]:
                drawn.add_row(
                    rich_name(cause.subject), cause.what, f"{cause.seconds * 1e3:+.4g}", f"{cause.bytes:+,}", rich_name(cause.rule, 200),
                    cause.remedy,
                )  # fmt: skip
            console.print(drawn)
            drawn = table("energy", "component", "mJ", "rule")
            for cause in one.energies[:top]:
                drawn.add_row(cause.subject, f"{cause.picojoules / 1e9:+.4g}", cause.rule)
            console.print(drawn)
        for line in notes:
            console.print(line, markup=False)

    emit("explain", [{**one.to_dict(), "ranges": notes} for one in found], show, json)


def _range_notes(graph: Graph, plan: Plan | None, calibration: Path | None) -> list[str]:
    """What the plan's ranges cost in accuracy, and what no range covers."""
    if calibration is None or plan is None:  # without a plan it is quantized already
        return []
    import hwq
    from hwq.costly import costly_ranges, stays_float

    cal = hwq.Calibration.load(str(calibration))
    quantized = hwq.quantize(graph, plan, cal)
    return [*map(stays_float, cal.unbounded), *map(str, costly_ranges(quantized, cal))]


@guarded
def validate(
    family: Annotated[
        str, typer.Option("--family", metavar="NAME", help="systolic, accuracy (the others come later).")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="Measurement files (accuracy: real models); default: $HWQ_SHARED/validation, $HWQ_SHARED/models.",
        ),
    ] = None,
    peer_python: Annotated[
        list[Path] | None,
        typer.Option(
            "--peer-python",
            metavar="PYTHON",
            help="accuracy: another Python whose toolkits run too (NNCF, torchao, AIMET); may be repeated.",
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write one line a row.")] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Score a family of machine models against published measurements: every row, or why it is not scored.

    accuracy: quantization methods on real networks instead, beside the other toolkits that are installed; minutes.
    """
    if family == "accuracy":
        _validate_accuracy(data, peer_python or [], csv, overwrite, json)
        return
    from hwq.files import write_atomically
    from hwq.names import rich_name
    from hwq.validation import validate as scored

    board = scored(family, data)
    if csv is not None:
        with write_atomically(csv, overwrite=overwrite, mode="w") as stream:
            stream.write(board.to_csv())

    def show(console: Console) -> None:
        drawn = table(f"{family}: {len(board.scored)} of {len(board.scores)} rows scored", "device", "model", "quantity", "measured",
                      "estimate", "unit", "error")  # fmt: skip
        for score in board.scored:
            error = score.error or 0.0
            drawn.add_row(
                rich_name(score.row.device), rich_name(score.row.model), rich_name(score.quantity or score.row.metric),
                f"{score.measured:.4g}", f"{score.estimate:.4g}", score.unit or score.row.unit,
                f"{error:+.2f} points" if score.points else f"{error:+.1%}",
            )  # fmt: skip
        console.print(drawn)
        drawn = table("statistics of |error|", "device", "quantity", "n", "mean", "median", "p90", "worst")
        for row in board.statistics():
            form = "{:.2f} points" if row["error_unit"] == "points" else "{:.1%}"
            drawn.add_row(
                rich_name(row["device"]), rich_name(row["quantity"]), str(row["n"]),
                *(form.format(row[name]) for name in ("mean", "median", "p90", "worst")),
            )  # fmt: skip
        console.print(drawn)
        reasons: dict[str, int] = {}
        for score in board.scores:
            if score.reason:
                reasons[score.reason] = reasons.get(score.reason, 0) + 1
        for reason, count in reasons.items():
            console.print(f"not scored, {count} rows: {reason}", markup=False)
        console.print(f"rows that constants were fitted to: {', '.join(board.fitted) or 'none'}", markup=False)

    result: Any = board.to_dict()
    emit("validate", result, show, json)


def _validate_accuracy(data: Path | None, pythons: list[Path], csv: Path | None, overwrite: bool, json: bool) -> None:
    from hwq.files import write_atomically
    from hwq.names import rich_name
    from hwq.validation.accuracy import measure

    board = measure(data, pythons=pythons, progress=lambda what: typer.echo(what, err=True))
    if csv is not None:
        with write_atomically(csv, overwrite=overwrite, mode="w") as stream:
            stream.write(board.to_csv())

    def show(console: Console) -> None:
        drawn = table("quantization methods (* chosen on calibration data)", "model", "group", "method", "by", "accuracy", "p",
                      "agreement", "KL", "CPU s", "bytes")  # fmt: skip
        for row in board.rows:
            drawn.add_row(
                rich_name(f"{row.model} ({row.samples})"), row.group, row.method + (" *" if row.chosen else ""), row.by,
                f"{row.accuracy:.2%}", f"{row.p:.2g}", f"{row.agreement:.2%}", f"{row.kl:.5f}", f"{row.seconds:.2f}",
                f"{row.bytes:,}",
            )  # fmt: skip
        console.print(drawn)
        console.print(f"CPU: {board.machine['flags']}; path {board.machine['path']}", markup=False)
        for line in board.absent:
            console.print(f"left out: {line}", markup=False)

    emit("validate", board.to_dict(), show, json)


VERBS = [explain, validate]
