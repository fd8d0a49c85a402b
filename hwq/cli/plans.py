"""``hwq plan``: read another tool's quantization as a plan, show what a plan says, write it for another tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwq.cli import options
from hwq.cli.console import emit, guarded, table
from hwq.errors import Error

if TYPE_CHECKING:
    from rich.console import Console

    from hwq.importers.encodings import Imported
    from hwq.plan import Plan

__all__ = ["attach"]

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The float model: rules for what it lacks are left out, and constants are told from activations.",
    ),
]


def attach(app: typer.Typer) -> None:
    """Add ``plan choose``, ``plan import``, ``plan show`` and ``plan export``."""
    group = typer.Typer(
        help="A plan chosen by data; plans of other tools: AIMET encodings, TensorRT calibration caches, ai-edge-quantizer recipes, QDQ models.",
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    group.command("choose")(_choose)
    group.command("import")(_import)
    group.command("show")(_show)
    group.command("export")(_export)
    app.add_typer(group, name="plan")


@guarded
def _choose(
    model: options.Model,
    data: options.Data,
    out: options.Out = Path("plan.toml"),
    bits: Annotated[int, typer.Option("--bits", help="Of the weights: 8 or 4.")] = 8,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Ranges of activations at run time instead of calibrated ones.")
    ] = False,
    dialect: options.DialectName = None,
    samples: options.Count = None,
    input_scale: options.InputScale = 1.0,
    input_zero_point: options.InputZeroPoint = 0.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Try quantization methods on samples, judge each on samples held back from it (no labels), write the best plan."""
    from hwq.encodings import save
    from hwq.names import rich_name
    from hwq.validation.choice import choose

    group = {(8, False): "W8A8 static", (8, True): "W8 dynamic", (4, False): "W4A8"}.get((bits, dynamic))
    if group is None:
        raise Error(
            "there are no candidates for this",
            where=f"--bits {bits}",
            remedy="--bits 8, --bits 8 --dynamic or --bits 4",
        )
    graph = options.load(model)
    # Four-bit kernels beside 8-bit activations are hwq's own; eight bits go where most files go.
    spoken = dialect or ("ort" if bits == 8 else "hwq")
    found = choose(graph, options.samples(data, graph, samples, input_scale, input_zero_point), group, spoken)
    save(found.plan, out, overwrite=overwrite)
    result = {**_facts(found.plan), "file": str(out), "group": group, "method": found.method, "measure": found.measure,
              "losses": dict(found.losses), "refused": dict(found.refused)}  # fmt: skip

    def show(console: Console) -> None:
        drawn = table(f"{group}, dialect {spoken}", "method", f"{found.measure} on samples held back")
        for name, loss in sorted(found.losses.items(), key=lambda pair: pair[1]):
            drawn.add_row(name, f"{loss:.6f}")
        console.print(drawn)
        for name, why in found.refused.items():
            console.print(f"left out: {name}: {rich_name(why, 200)}", markup=False)
        console.print(f"chosen: {found.method}; wrote {out}", markup=False)

    emit("plan choose", result, show, json)


@guarded
def _import(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="AIMET encodings, a TensorRT calibration cache, an ai-edge-quantizer recipe, or a quantized ONNX or TFLite model.",
            show_default=False,
        ),
    ],
    out: options.Out = Path("plan.toml"),
    model: Model = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Read another tool's quantization and write it as a plan; every scale keeps its float32 bits."""
    from hwq.encodings import save

    found = _read(file, model)
    save(found.plan, out, overwrite=overwrite)
    result = {**_facts(found.plan), "file": str(out), "format": found.format, "left_out": list(found.left_out)}

    def show(console: Console) -> None:
        console.print(
            f"{found.format}: {result['scales']} scales of {result['tensors']} tensors in {result['rules']} rules, dialect "
            f"{found.plan.dialect}: wrote {out}",
            markup=False,
        )
        _leftovers(console, found.left_out)

    emit("plan import", result, show, json)


@guarded
def _show(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A plan file, or whatever plan import reads.", show_default=False)
    ],
    model: Model = None,
    json: options.Json = False,
) -> None:
    """Show what a plan gives each tensor: type, granularity, scale, zero point."""
    from hwq.encodings import encodings_of
    from hwq.names import rich_name

    plan, left = _plan(file, model)
    rows = [
        {
            "tensor": one.tensor, "kind": "weights" if one.weight else "activations", "dtype": one.dtype,
            "granularity": f"group {one.block}" if one.block else "channel" if one.scale.ndim else "tensor",
            "scales": int(one.scale.size), "scale_min": float(one.scale.min()), "scale_max": float(one.scale.max()),
            "zero_point_min": int(one.zero_point.min()), "zero_point_max": int(one.zero_point.max()),
        }
        for one in encodings_of(plan)
    ]  # fmt: skip
    result = {**_facts(plan), "left_out": list(left), "text": plan.to_toml(), "given": rows}

    def show(console: Console) -> None:
        if not rows:
            console.print(plan.to_toml(), markup=False)
            return
        drawn = table(
            f"{len(rows)} tensors with given scales, dialect {plan.dialect}",
            "tensor",
            "kind",
            "type",
            "granularity",
            "scales",
            "scale",
            "zero point",
        )
        for row in rows:
            scale = f"{row['scale_min']:.6g}" + (
                f" to {row['scale_max']:.6g}" if row["scale_max"] != row["scale_min"] else ""
            )
            points = f"{row['zero_point_min']}" + (
                f" to {row['zero_point_max']}" if row["zero_point_max"] != row["zero_point_min"] else ""
            )
            drawn.add_row(rich_name(str(row["tensor"])), str(row["kind"]), str(row["dtype"]), str(row["granularity"]),
                          f"{row['scales']:,}", scale, points)  # fmt: skip
        console.print(drawn)
        _leftovers(console, left)

    emit("plan show", result, show, json)


@guarded
def _export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A plan file, or whatever plan import reads.", show_default=False)
    ],
    out: options.Out,
    format: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="aimet (or aimet-0.6.1, aimet-1.0.0, aimet-2.0.0), or tensorrt."),
    ] = "aimet",
    model: Model = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write the scales that a plan gives for another tool; the float32 bits stay."""
    from hwq.encodings import encodings_of
    from hwq.exporters.encodings import FORMATS, write

    if format not in FORMATS:
        raise Error("there is no such format", where=f"--format {format}", remedy=f"one of: {', '.join(FORMATS)}")
    plan, left = _plan(file, model)
    write(encodings_of(plan), out, format, overwrite=overwrite)
    result = {**_facts(plan), "file": str(out), "format": format, "left_out": list(left)}
    emit("plan export", result, lambda console: console.print(f"wrote {out}", markup=False), json)


def _read(file: Path, model: str | None) -> Imported:
    from hwq.importers.encodings import read_plan

    return read_plan(file, None if model is None else options.load(model))


def _plan(file: Path, model: str | None) -> tuple[Plan, tuple[str, ...]]:
    from hwq.plan import Plan

    if file.suffix.lower() == ".toml":
        return Plan.load(file), ()
    found = _read(file, model)
    return found.plan, found.left_out


def _facts(plan: Plan) -> dict[str, Any]:
    from hwq.encodings import encodings_of

    given = list(encodings_of(plan))
    return {"dialect": plan.dialect, "plan_hash": plan.hash, "rules": len(plan.layers), "tensors": len(given),
            "scales": sum(int(one.scale.size) for one in given)}  # fmt: skip


def _leftovers(console: Console, left: tuple[str, ...]) -> None:
    from hwq.names import display_name

    for note in left[:20]:
        console.print(f"left out: {display_name(note, 200)}", markup=False)
    if len(left) > 20:
        console.print(f"left out: {len(left) - 20} more (--json lists them)")
