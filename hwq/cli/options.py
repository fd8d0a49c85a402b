"""Arguments and options that several verbs share, and the reading of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwq.errors import Error

if TYPE_CHECKING:
    from hwq.graph import Graph
    from hwq.plan import Plan
    from hwq.samples import Samples, Streamed

__all__ = [
    "PRECISIONS",
    "default_plan",
    "load",
    "machines",
    "plan_of",
    "quantizing_plan",
    "samples",
    "shapes_of",
    "stream",
]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="An .onnx or .tflite file, a saved graph (.npz), or zoo:NAME.", show_default=False
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="FILE", help="Samples: .npz or .npy, first axis = samples; labels under y or labels."
    ),
]
Stream = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Samples: .npz or .npy, first axis = samples, or a folder of such files; read in order, so of any length.",
    ),
]
MaybeStream = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Samples: .npz or .npy, first axis = samples, or a folder of such files; read in order, so of any length.",
    ),
]
MaybeData = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="FILE", help="Samples: .npz or .npy, first axis = samples; labels under y or labels."
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="File to write.")]
MaybeOut = Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="File to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON (with a schema_version) instead of a table.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="INPUT=1,3,224,224", help="Bind an input's open dimensions. Repeatable."),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Plan file (TOML); default for a float model: INT8 weights per channel and UINT8 activations of least squared error, biases corrected where samples are given.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision", metavar="NAME", help="A uniform plan instead of a file: int8, int4, fp16, bf16 or fp32."
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, max=1 << 20, help="Inferences at once.")]
On = Annotated[
    str,
    typer.Option(
        "--on", metavar="MACHINE[,MACHINE]", help="Machines by name or .toml file; `hwq accelerators` lists them."
    ),
]
MaxBytes = Annotated[int, typer.Option("--max-bytes", min=1, help="Refuse larger files.")]
Count = Annotated[int | None, typer.Option("--samples", min=1, help="Use only the first so many samples.")]
InputScale = Annotated[
    float, typer.Option("--input-scale", help="Integer data for a float input become (value - zero point) * scale.")
]
InputZeroPoint = Annotated[float, typer.Option("--input-zero-point", help="See --input-scale.")]
DialectName = Annotated[
    str | None,
    typer.Option("--dialect", metavar="NAME", help="Whose bits: `hwq dialects` lists them. Default: the graph's own."),
]

Sensitivity = Annotated[
    bool,
    typer.Option(
        "--sensitivity",
        help="Also run each layer quantized alone and each alone in float, and try changes of the worst: what to change, with the measured gain.",
    ),
]

# Uniform plans by name: weights, activations.
PRECISIONS = {"int8": ("int8", "uint8"), "int4": ("int4", "int4"), "fp16": ("float16", "float16"), "bf16": ("bfloat16", "bfloat16"),
              "fp32": ("float32", "float32")}  # fmt: skip


def shapes_of(texts: list[str] | None) -> dict[str, tuple[int, ...]] | None:
    """``["x=1,3,8,8"]``, or with 1x3x8x8, as ``{"x": (1, 3, 8, 8)}``."""
    if not texts:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")
        try:
            shapes[name] = tuple(int(dim) for dim in dims.replace("x", ",").split(","))
        except ValueError:
            equals = ""
        if not equals or not name or any(dim < 0 for dim in shapes.get(name, ())):
            raise Error("this is not a shape", where=f"--shape {text}", remedy="write INPUT=1,3,224,224")
    return shapes


def load(model: str, shapes: list[str] | None = None, max_bytes: int | None = None, *, weights: bool = True) -> Graph:
    """Load the verb's model; a zoo network without weights where values do not matter."""
    import hwq

    extra: dict[str, Any] = {} if max_bytes is None else {"max_bytes": max_bytes}
    return hwq.load(model, shapes=shapes_of(shapes), weights=weights, **extra)


def plan_of(path: Path | None, precision: str | None) -> Plan | None:
    """The plan that `--plan` or `--precision` asks for, or None."""
    from hwq.plan import Plan

    if path is not None and precision is not None:
        raise Error("--plan and --precision were both given", remedy="give one of them")
    if path is not None:
        return Plan.load(path)
    if precision is None:
        return None
    if precision not in PRECISIONS:
        raise Error(
            "there is no such precision", where=f"--precision {precision}", remedy=f"one of: {', '.join(PRECISIONS)}"
        )
    return Plan.uniform(*PRECISIONS[precision])


def quantizing_plan(*, corrected: bool) -> Plan:
    """What a float model is quantized by where nothing else is said; `corrected`: samples can be run again.

    8 bits; of the ways that need no choice the one whose KL on samples held back was the nearest to the best of each network
    (reports/defaults).
    """
    from hwq.plan import Plan, Transforms

    plan = Plan.uniform(observer="mse", scale="mse")
    return plan.model_copy(update={"transforms": Transforms(bias_correction="empirical")}) if corrected else plan


def default_plan(graph: Graph, *, corrected: bool = False) -> Plan | None:
    """INT8 for a float model, told on standard error; a model that is quantized already keeps its own types."""
    if any(tensor.quantization is not None for tensor in graph.tensors.values()):
        return None
    typer.echo("note: no --plan or --precision: INT8 weights per channel, UINT8 activations", err=True)
    return quantizing_plan(corrected=corrected)


def samples(path: Path, graph: Graph, count: int | None, scale: float, zero_point: float) -> Samples:
    """Read the verb's data and say on standard error what was converted."""
    from hwq.samples import read

    found = read(path, graph, scale=scale, zero_point=zero_point)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    return found if count is None else found.first(count)


def stream(path: Path, graph: Graph, count: int | None, scale: float, zero_point: float) -> Samples | Streamed:
    """As `samples`, for verbs that read the data in order: they may be of any length, or a folder of files."""
    from hwq.samples import stream as open_stream

    found = open_stream(path, graph, count, scale=scale, zero_point=zero_point)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    return found


def machines(text: str) -> list[Any]:
    """The machines that `--on` names."""
    from hwq.simulators import find

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise Error("--on names no machine", remedy="hwq accelerators lists them")
    return [find(name) for name in names]
