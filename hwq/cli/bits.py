"""Verbs about values: calibrate, quantize, run, compare."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwq.cli import options
from hwq.cli.console import emit, guarded, progress
from hwq.names import display_name

if TYPE_CHECKING:
    from rich.console import Console

    from hwq.calibration import Calibration
    from hwq.graph import Graph
    from hwq.progress import Progress
    from hwq.samples import Samples, Streamed

__all__ = ["VERBS"]

# Samples that go through the model at once.
CHUNK = 32
# Ranges that cost more than they save that are named one by one.
SHOWN = 4
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="What `hwq calibrate` wrote.")
]


@guarded
def calibrate(
    model: options.Model,
    data: options.Stream,
    out: options.Out = Path("calibration.npz"),
    samples: options.Count = None,
    moments: Annotated[
        bool, typer.Option("--moments", help="Also keep E[x x^T] per linear input (for methods that need it).")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FILE", help="Go on from what an earlier `hwq calibrate` wrote."),
    ] = None,
    input_scale: options.InputScale = 1.0,
    input_zero_point: options.InputZeroPoint = 0.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Run samples through the float model and keep the statistics of every tensor."""
    import hwq

    graph = options.load(model)
    found = options.stream(data, graph, samples, input_scale, input_zero_point)
    earlier = None if resume is None else hwq.Calibration.load(str(resume))
    with progress("calibrating") as report:
        statistics = hwq.calibrate(
            graph, found.batches(CHUNK), moments=moments, progress=_of(found, report), resume=earlier
        )
    statistics.save(str(out), overwrite=overwrite)
    result = {
        "file": str(out),
        "samples": statistics.samples,
        "tensors": len(statistics.tensors),
        "calibration_hash": statistics.hash,
    }
    emit(
        "calibrate",
        result,
        lambda console: console.print(
            f"{result['samples']} samples, {result['tensors']} tensors: wrote {out}", markup=False
        ),
        json,
    )


@guarded
def quantize(
    model: options.Model,
    out: options.Out = Path("quantized.onnx"),
    plan: options.PlanFile = None,
    precision: options.Precision = None,
    calibration: CalibrationFile = None,
    data: options.MaybeStream = None,
    samples: options.Count = None,
    input_scale: options.InputScale = 1.0,
    input_zero_point: options.InputZeroPoint = 0.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Quantize a float model by a plan and write it as QDQ ONNX (or as a saved graph, if the name ends in .npz)."""
    import hwq
    from hwq.costly import costly_ranges, stays_float
    from hwq.lowering.remaining import remaining

    graph = options.load(model)
    chosen = options.plan_of(plan, precision) or options.quantizing_plan(corrected=data is not None)
    found = None if data is None else options.stream(data, graph, samples, input_scale, input_zero_point)
    statistics = _statistics(graph, calibration, found)
    # Plans that round against data run the samples once more; without them the calibration's moments must serve.
    quantized = hwq.quantize(graph, chosen, statistics, None if found is None else found.batches(CHUNK))
    if out.suffix == ".npz":
        quantized.save(str(out), overwrite=overwrite)
    else:
        hwq.export(quantized, str(out), format="qdq", overwrite=overwrite)
    result = {"file": str(out), "dialect": quantized.dialect, "graph_hash": quantized.hash, "plan_hash": chosen.hash,
              "float_bytes": graph.parameter_bytes, "quantized_bytes": quantized.parameter_bytes}  # fmt: skip
    costly = costly_ranges(quantized, statistics)
    result["costly_ranges"] = [dataclasses.asdict(one) for one in costly]
    unbounded = result["unbounded"] = list(quantized.source.get("unbounded", ()))
    floats = remaining(quantized, chosen)
    result["floats"] = [dataclasses.asdict(one) for one in floats]

    def show(console: Console) -> None:
        console.print(
            f"{result['float_bytes']:,} bytes of parameters became {result['quantized_bytes']:,} (dialect {result['dialect']}): wrote {out}",
            markup=False,
        )
        for name in unbounded:
            console.print(f"note: {stays_float(name)}", markup=False)
        for one in costly[:SHOWN]:
            console.print(f"warning: {one}", markup=False)
        if len(costly) > SHOWN:
            console.print(f"warning: {len(costly) - SHOWN} more such ranges (--json lists them)", markup=False)
        for left in floats[:SHOWN]:
            console.print(f"note: {display_name(left.node)} ({left.op}) stays float: {left.why}", markup=False)
        if len(floats) > SHOWN:
            console.print(f"note: {len(floats) - SHOWN} more layers stay float (--json lists them)", markup=False)

    emit("quantize", result, show, json)


def _statistics(graph: Graph, calibration: Path | None, found: Samples | Streamed | None) -> Calibration:
    import hwq
    from hwq.errors import Error

    if (calibration is None) == (found is None):
        raise Error(
            "quantizing needs statistics of the activations, from one place",
            remedy="give --calibration FILE (of hwq calibrate), or --data FILE of samples",
        )
    if calibration is not None:
        return hwq.Calibration.load(str(calibration))
    assert found is not None
    with progress("calibrating") as report:
        return hwq.calibrate(graph, found.batches(CHUNK), progress=_of(found, report))


def _of(found: Samples | Streamed, report: Progress) -> Progress:
    """Progress of a known number of samples: batches are a stream to the library."""
    return lambda done, total, what: report(done, len(found), what)


@guarded
def run(
    model: options.Model,
    data: options.Data,
    out: options.MaybeOut = None,
    dialect: options.DialectName = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="MACHINE",
            help="Run every integer product on a stepped array instead: systolic:ROWSxCOLS[:ws|os|is].",
        ),
    ] = None,
    samples: options.Count = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, max=256, help="Threads; the bits are the same for any number.")
    ] = 1,
    input_scale: options.InputScale = 1.0,
    input_zero_point: options.InputZeroPoint = 0.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Run samples through a model with exactly the bits of its dialect; say the accuracy if the data has labels.

    With --on, -o may also name an .svg or .html file: a picture of which PEs worked when, layer by layer.
    """
    import time

    import numpy as np

    import hwq
    from hwq.cli import stepped
    from hwq.files import write_npz

    gemm = None if on is None else stepped.open_array(on, out)
    stepped.refuse_picture(on, out)
    graph = options.load(model)
    found = options.samples(data, graph, samples, input_scale, input_zero_point)
    program = hwq.compile(graph, dialect=dialect, gemm=gemm)
    session = program.session(threads=threads)
    parts: list[list[Any]] = [[] for _ in graph.outputs]
    done = 0
    started = time.process_time()
    with progress("running") as report:
        for feeds in found.batches(CHUNK):
            made = session(feeds if len(feeds) > 1 else next(iter(feeds.values())))
            for part, name in zip(parts, graph.outputs, strict=True):
                part.append(made[name] if isinstance(made, dict) else made)
            done += len(next(iter(feeds.values())))
            report(done, len(found))
    seconds = time.process_time() - started
    outputs = {name: np.concatenate(part) for name, part in zip(graph.outputs, parts, strict=True)}
    first = outputs[graph.outputs[0]]
    accuracy = None
    if found.labels is not None and first.ndim == 2:
        accuracy = float(np.mean(first.argmax(axis=1) == found.labels))
    finished = None if gemm is None else gemm.finish(graph.name, len(found))
    if out is not None and finished is not None and stepped.is_picture(out):
        stepped.write_picture(finished, out, overwrite)
    elif out is not None:
        write_npz(str(out), outputs, overwrite=overwrite)
    result = {
        "samples": len(found),
        "cpu_seconds": seconds,
        "accuracy": accuracy,
        "file": None if out is None else str(out),
        **_hashes(program),
        **({} if finished is None else {"stepped": finished.to_dict()}),
    }

    def show(console: Console) -> None:
        if finished is not None:
            stepped.show(console, finished)
        console.print(
            f"{result['samples']} samples in {seconds:.2f} s of CPU time, dialect {result.get('dialect', graph.dialect)}",
            markup=False,
        )
        if accuracy is not None:
            console.print(f"accuracy {accuracy:.2%} (top-1 of the first output against the labels)")
        if out is not None:
            console.print(f"wrote {out}", markup=False)

    emit("run", result, show, json)


def _hashes(program: Any) -> dict[str, Any]:
    return dict(program.hashes)


def _localize(
    model: str,
    graph: Graph,
    found: Any,
    against: str,
    dialect: str | None,
    plot: Path | None,
    out: Path | None,
    overwrite: bool,
    json: bool,
) -> None:
    """``hwq compare --against``: exit code 1 where anything differs."""
    from hwq.difference import localize
    from hwq.errors import Error
    from hwq.files import read_npz
    from hwq.observation import litert_values, onnxruntime_values

    if out is not None and out.suffix.lower() not in {".html", ".htm"}:
        raise Error("with --against, -o writes an offline page", where=f"-o {out}", remedy="name an .html file")
    feeds = next(iter(found.batches(max(len(found), 1))))
    if found.fixed is not None and found.fixed < len(found):
        typer.echo(f"note: the model takes {found.fixed} at once: these are compared", err=True)
    if against == "ort":
        observed = onnxruntime_values(graph, feeds)
    elif against == "litert":
        observed = litert_values(model, feeds)
    else:
        observed = read_npz(against)
    made = localize(graph, feeds, observed, dialect=dialect, against=against)
    if plot is not None:
        from hwq.files import write_atomically
        from hwq.reporting import drift
        from hwq.reporting.drawing import standalone

        with write_atomically(plot, overwrite=overwrite, mode="w") as stream:
            stream.write(standalone(drift.draw("drift", drift.read(made))))
    if out is not None:
        from hwq.reporting import report

        report([made], out, overwrite=overwrite)
    emit("compare", made.to_dict(), lambda console: console.print(str(made), markup=False), json)
    if made.first is not None:
        raise typer.Exit(1)


@guarded
def compare(
    model: options.Model,
    quantized: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUANTIZED]",
            help="The quantized model; without it, MODEL is quantized by the plan.",
            show_default=False,
        ),
    ] = None,
    data: options.MaybeData = None,
    plan: options.PlanFile = None,
    precision: options.Precision = None,
    calibration: CalibrationFile = None,
    samples: options.Count = None,
    out: options.MaybeOut = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="DUMP.npz|ort|litert",
            help="Compare a quantized MODEL with another runtime's values instead: where they part, and by which rule.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="With --against: draw differences by depth (SVG)."),
    ] = None,
    sensitivity: options.Sensitivity = False,
    sensitivity_samples: Annotated[
        int | None,
        typer.Option(
            "--sensitivity-samples",
            min=1,
            help="Samples for --sensitivity; default: 2 to 64, so that a large model takes about half a minute.",
        ),
    ] = None,
    dialect: options.DialectName = None,
    input_scale: options.InputScale = 1.0,
    input_zero_point: options.InputZeroPoint = 0.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Compare a float model with its quantized twin: error per layer and where it comes from, agreement, KL, accuracy.

    -o writes the layers as CSV, an offline page where the name ends in .html (with --against always), or with --sensitivity the plan with the changes
    that gain most together where it ends in .toml.
    """
    import hwq
    from hwq.errors import Error
    from hwq.files import write_atomically
    from hwq.plan import Plan

    if data is None:
        raise Error("compare needs samples", remedy="give --data FILE")
    graph = options.load(model)
    found = options.samples(data, graph, samples, input_scale, input_zero_point)
    if against is not None:
        _localize(str(model), graph, found, against, dialect, plot, out, overwrite, json)
        return
    if quantized is not None:
        other, chosen = options.load(quantized), Plan.uniform()
    else:
        chosen = options.plan_of(plan, precision) or options.quantizing_plan(corrected=calibration is None)
        if calibration is None:
            typer.echo("note: calibrated on the samples that are compared (no --calibration given)", err=True)
        statistics = _statistics(graph, calibration, None if calibration else found)
        again = None if calibration else found.batches(CHUNK)
        other = hwq.quantize(graph, chosen, statistics, again)
        asked = chosen.transforms
        scaled = asked.equalize or asked.smooth is not None or asked.awq
        # The same function with the plan's factors in it: its layers are the ones that were stored. Clamps change the function.
        if sensitivity if asked.clip is not None else scaled:
            from hwq.quantization import transformed

            graph = transformed(graph, chosen, statistics, None if calibration else found.batches(CHUNK))
            typer.echo("note: layers are compared with the float model after the plan's transforms", err=True)
    depth: bool | int = sensitivity if sensitivity_samples is None else sensitivity_samples
    with progress("comparing") as report:
        result = hwq.compare(
            graph, other, found.batches(CHUNK), labels=found.labels, dialect=dialect, sensitivity=depth, progress=report
        )
    if out is not None and out.suffix.lower() in {".html", ".htm"}:
        hwq.report([other, result], out, overwrite=overwrite)
    elif out is not None and out.suffix.lower() == ".toml":
        if quantized is not None or not result.sensitivities:
            raise Error("a better plan needs a plan and --sensitivity", where=f"-o {out}",
                        remedy="compare MODEL alone, with --plan or --precision, and --sensitivity")  # fmt: skip
        result.improved(chosen).save(out, overwrite=overwrite)
    elif out is not None:
        with write_atomically(out, overwrite=overwrite, mode="w") as stream:
            stream.write(result.to_csv())
    emit("compare", result.to_dict(), lambda console: console.print(str(result), markup=False), json)


VERBS = (calibrate, quantize, run, compare)
