"""Benchmarks from the command line: `hwq bench --simulators`."""

from __future__ import annotations

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
    simulators: Annotated[
        bool, typer.Option("--simulators", help="hwq scalesim beside the real SCALE-Sim, which --tool names.")
    ] = False,
    tool: Annotated[
        Path | None,
        typer.Option("--tool", metavar="PYTHON", help="Interpreter of an environment that has scalesim==3.0.0."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure hwq beside other programs, on the same work, in one run."""
    from hwq.errors import Error, NotSupportedYet

    if not simulators:
        raise NotSupportedYet("hwq bench: our kernels beside every other exact runtime", remedy="use --simulators")
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


VERBS = (bench,)
