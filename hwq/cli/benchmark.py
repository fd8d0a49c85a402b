"""Benchmarks from the command line: products, `hwq bench --models`, `hwq bench --simulators`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwq.cli import options
from hwq.cli.console import emit, guarded, progress, table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["VERBS"]


@guarded
def bench(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="For --models: files or zoo:NAME.")
    ] = None,
    models: Annotated[
        bool, typer.Option("--models", help="Whole models beside onnxruntime (exact kernels) and LiteRT, batch 1.")
    ] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="For --models: time a model.")] = 5.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="For --models.")] = 1,
    simulators: Annotated[
        bool, typer.Option("--simulators", help="hwq scalesim beside the real SCALE-Sim, which --tool names.")
    ] = False,
    tool: Annotated[
        Path | None,
        typer.Option("--tool", metavar="PYTHON", help="Interpreter of an environment that has scalesim==3.0.0."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="TEXT", help="Cases whose name contains it: int8, int4, 512x512, ..."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes, a fifth of the time.")] = False,
    cpu: Annotated[
        str | None,
        typer.Option("--cpu", metavar="avx2", help="Show every contender a CPU without AVX-512, VNNI and AMX."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure hwq beside other programs, on the same work, in one run."""
    from hwq.errors import Error

    _keep_libraries_to_one_thread()
    if cpu is not None:
        _masked(cpu)
    if models:
        _bench_models(inputs or ["zoo:mobilenet_v2"], seconds, threads, json)
        return
    if not simulators:
        _products(only, quick, json)
        return
    if tool is None:
        raise Error("the real tool runs in an environment of its own", remedy="give --tool side/bin/python")
    from hwq.benchmark.simulators import compare

    with progress("bench") as told:
        found = compare(tool, progress=told)
    tool_seconds, seconds = sum(one.tool_seconds for one in found), sum(one.seconds for one in found)
    rows = [
        {"dataflow": one.case.dataflow, "mode": one.case.mode, "identical": one.identical,
         "tool_seconds": one.tool_seconds, "seconds": one.seconds, "ratio": one.ratio}
        for one in found
    ]  # fmt: skip
    result = {
        "cases": rows,
        "identical": all(one.identical for one in found),
        "tool_seconds": tool_seconds,
        "seconds": seconds,
        "ratio": tool_seconds / seconds,
    }

    def show(console: Console) -> None:
        drawn = table(
            "CPU time of one core, a network of four layers",
            "dataflow",
            "mode",
            "SCALE-Sim s",
            "hwq ms",
            "ratio",
            "reports",
        )
        for one in found:
            drawn.add_row(
                one.case.dataflow,
                one.case.mode,
                f"{one.tool_seconds:.3f}",
                f"{one.seconds * 1e3:.3f}",
                f"{one.ratio:,.0f}",
                "identical" if one.identical else "DIFFERENT",
            )
        console.print(drawn)
        console.print(
            f"all cases: {tool_seconds:.2f} s against {seconds * 1e3:.2f} ms, {result['ratio']:,.0f} times less"
        )

    emit("bench", result, show, json)
    if not result["identical"]:
        raise typer.Exit(1)


def _keep_libraries_to_one_thread() -> None:
    """Before NumPy loads: a second thread of its BLAS that waits for work takes the core from whoever is measured."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _masked(cpu: str) -> None:
    """Run this command again in a process that sees that CPU, and exit as it does; go on if this is the process."""
    import subprocess
    import sys

    from hwq import masking
    from hwq.errors import Error

    if cpu != "avx2":
        raise Error(f"no CPU {cpu} can be shown", remedy="--cpu avx2")
    if masking.masked():
        return
    sys.stdout.flush()
    done = subprocess.run(masking.command("-m", "hwq", *sys.argv[1:]))
    raise typer.Exit(done.returncode)


def _shown() -> str:
    """Which CPU the contenders saw: avx2, or native for this one as it is."""
    from hwq import masking

    return "avx2" if masking.masked() else "native"


def _bench_models(names: list[str], seconds: float, threads: int, json: bool) -> None:
    import dataclasses

    from hwq.benchmark.models import contenders, geometric_mean, measure

    rows = []
    for name in names:
        rows += measure(Path(name).name, contenders(name, threads=threads), seconds=seconds, threads=threads)
    mean = geometric_mean(rows)
    result = {"cpu": _shown(), "rows": [dataclasses.asdict(row) for row in rows], "geometric_mean": mean}

    def show(console: Console) -> None:
        drawn = table(
            f"one inference, batch 1, interleaved, {_shown()} CPU",
            "model",
            "runtime",
            "us",
            "time / ours",
            "our bits",
            "samples",
        )
        for row in rows:
            bits = "" if row.exact is None else "its own" if row.exact else "DIFFERENT"
            samples = f"{row.samples}{'' if row.undisturbed else ' (disturbed)'}"
            drawn.add_row(row.model, row.runtime, f"{row.microseconds:,.1f}", f"{row.ratio:.2f}", bits, samples)
        console.print(drawn)
        if mean is not None:
            console.print(f"geometric mean against the fastest other runtime: {mean:.2f}")

    emit("bench", result, show, json)
    if any(row.exact is False for row in rows):
        raise typer.Exit(1)


def _products(only: str | None, quick: bool, json: bool) -> None:
    from dataclasses import asdict

    from hwq import kernels
    from hwq.benchmark.kernels import compare
    from hwq.errors import Error

    rows = list(compare(only, quick=quick))
    if not rows:
        raise Error(f"no case is named like {only}" if only else "no case is small enough")
    wrong = [row for row in rows if row.ours and not row.exact]

    def show(console: Console) -> None:
        drawn = table(
            f"path {kernels.isa()}, {_shown()} CPU, one thread, processor time",
            "case",
            "contender",
            "GMAC/s",
            "of ceiling",
            "against int64",
        )
        for row in rows:
            share = "" if row.ceiling is None else f"{row.ceiling:.0%}"
            drawn.add_row(row.case, row.contender, f"{row.gmacs:.1f}", share, row.verdict)
        console.print(drawn)

    emit("bench", {"cpu": _shown(), "path": kernels.isa(), "rows": [asdict(row) for row in rows]}, show, json)
    if wrong:
        raise typer.Exit(1)


VERBS = (bench,)
