"""`hwq sweep`: one model over thousands of systolic machines."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwq.cli import options
from hwq.cli.console import emit, guarded, progress, table
from hwq.errors import Error

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rich.console import Console

__all__ = ["VERBS", "read_range"]

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_NUMBER = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)")
_MAX_STEPS = 1 << 16


def read_range(text: str, option: str) -> list[float]:
    """Numbers of ``64,128``, ``8..256`` (doubling) or ``8..256:8`` (steps of 8); sizes take B, KiB, MiB, GiB, KB, MB, GB.

    Raises
    ------
    Error
        Another form, an empty range, more than 65536 numbers.
    """
    found: list[float] = []
    for part in text.split(","):
        span, _, step = part.partition(":")
        low, dots, high = span.partition("..")
        first = _number(low, option)
        if not dots:
            if step:
                raise Error(f"{part!r} has a step but no end", where=option, remedy="write FIRST..LAST:STEP")
            found.append(first)
            continue
        last, add = _number(high, option), _number(step, option) if step else 0.0
        if first > last:
            raise Error(f"{part!r} is empty", where=option, remedy="write the smaller number first")
        if add and (last - first) / add > _MAX_STEPS:
            raise Error(f"{part!r} has more than {_MAX_STEPS} numbers", where=option)
        while first <= last:
            found.append(first)
            first = first + add if add else first * 2
    return list(dict.fromkeys(found))


def _number(text: str, option: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise Error(f"{text!r} is no number above 0", where=option, remedy="such as 8..256, 64KiB..4MiB or 12.8")
    return float(match[1]) * _UNITS[match[2]]


@contextlib.contextmanager
def _executor(text: str | None) -> Iterator[Executor | None]:
    if text is None:
        yield None
        return
    if not text.startswith("dask://"):
        raise Error(
            f"{text!r} is no executor", where="--executor", remedy="write dask://HOST:PORT of a running scheduler"
        )
    try:
        import distributed
    except ImportError as error:
        raise Error("dask:// needs distributed", where="--executor", remedy="pip install 'hwq[dask]'") from error
    try:
        client: Any = distributed.Client("tcp://" + text.removeprefix("dask://"), timeout=10)
    except (OSError, ValueError) as error:
        raise Error("no scheduler answers", where=text, why=str(error)) from error
    with client:
        yield client.get_executor()


@guarded
def sweep(
    model: options.Model,
    on: Annotated[
        str, typer.Option("--on", metavar="MACHINE", help="A systolic machine for all other numbers.")
    ] = "systolic",
    arrays: Annotated[
        str,
        typer.Option(
            "--arrays", metavar="RANGE", help="Rows and columns, every pair: 8..256 (doubling), 8..256:8, 32,64."
        ),
    ] = "8..256",
    sram: Annotated[str | None, typer.Option("--sram", metavar="RANGE", help="Buffer sizes: 64KiB..4MiB.")] = None,
    dataflow: Annotated[str, typer.Option("--dataflow", metavar="LIST", help="all, or some of ws,os,is.")] = "all",
    bandwidth: Annotated[
        str | None, typer.Option("--bandwidth", metavar="RANGE", help="DRAM, in GB/s: 12.8,25.6.")
    ] = None,
    plan: options.PlanFile = None,
    precision: options.Precision = None,
    batch: options.Batch = 1,
    shape: options.Shapes = None,
    out: options.Out = Path("sweep.csv"),
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Time and energy, Pareto front: .svg.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option("--executor", metavar="dask://HOST:PORT", help="Compute the parts on a dask cluster.")
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Cost a model on every array, dataflow, buffer and bandwidth; an interrupted sweep goes on where it stopped."""
    from hwq.names import display_name, rich_name
    from hwq.simulators import find
    from hwq.simulators.dataflow import DATAFLOWS
    from hwq.simulators.exploration import Space, prepare_task
    from hwq.simulators.sweeping import sweep as run

    if plot is not None and plot.suffix.lower() != ".svg":
        raise Error("a plot is an .svg file", where=str(plot))
    machine = find(on)
    if machine.family != "systolic":
        raise Error("only systolic machines can be swept", where=f"--on {on}")
    sides = [int(side) for side in read_range(arrays, "--arrays")]
    space = Space(
        arrays=tuple((rows, cols) for rows in sides for cols in sides),
        dataflows=DATAFLOWS if dataflow == "all" else tuple(dataflow.split(",")),
        sram_bytes=tuple(
            int(size) for size in (read_range(sram, "--sram") if sram else [machine.value("buffer.capacity")])
        ),
        bandwidths=tuple(
            [value * 1e9 for value in read_range(bandwidth, "--bandwidth")]
            if bandwidth
            else [machine.value("dram.bandwidth")]
        ),
    )
    graph = options.load(model, shape, weights=False)
    chosen = options.plan_of(plan, precision) or options.default_plan(graph)
    task = prepare_task(graph, machine, space, chosen, batch)
    with _executor(executor) as pool, progress("sweep") as told:
        found = run(task, out, executor=pool, overwrite=overwrite, progress=told)
    if plot is not None:
        from hwq.files import write_atomically
        from hwq.reporting import pareto
        from hwq.reporting.drawing import standalone

        with write_atomically(plot, overwrite=overwrite, mode="w") as stream:
            stream.write(standalone(pareto.front(found.sample, found.front, display_name(graph.name), len(space))))
    front: list[dict[str, Any]] = [
        {name: values[at].item() for name, values in found.front.items()} for at in range(len(found.front["rows"]))
    ]
    result = {"file": str(out), "plot": None if plot is None else str(plot), "configurations": found.configurations,
              "points": found.points, "resumed_parts": found.resumed, "front": front}  # fmt: skip

    def show(console: Console) -> None:
        drawn = table(f"{rich_name(graph.name)}: the front of time and energy", "array", "dataflow", "SRAM KiB", "GB/s", "ms",
                      "mJ", "off-chip MB", "utilization")  # fmt: skip
        for row in front[:40]:
            drawn.add_row(
                f"{row['rows']} x {row['cols']}",
                row["dataflow"],
                f"{row['sram_bytes'] / 1024:g}",
                f"{row['dram_bytes_per_second'] / 1e9:g}",
                f"{row['seconds'] * 1e3:.4g}",
                f"{row['picojoules'] / 1e9:.4g}",
                f"{row['dram_bytes'] / 1e6:.4g}",
                f"{row['utilization']:.1%}",
            )
        console.print(drawn)
        console.print(
            f"{found.configurations:,} configurations, {found.points:,} layers x configurations: wrote {out}",
            markup=False,
        )

    emit("sweep", result, show, json)


VERBS = (sweep,)
