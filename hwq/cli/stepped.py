"""What `hwq run --on systolic:...` adds to a run: the array in the kernels' place, its table, its pictures.

Execution and simulators never see each other; they meet here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwq.cli.console import table
from hwq.errors import Error

if TYPE_CHECKING:
    from rich.console import Console

    from hwq.simulators.stepped_gemm import SteppedGemm, SteppedRun

__all__ = ["is_picture", "open_array", "refuse_picture", "show", "write_picture"]

_PICTURES = (".svg", ".html", ".htm")


def is_picture(out: Path) -> bool:
    """Whether the file's name asks for a picture rather than for the outputs."""
    return out.suffix.lower() in _PICTURES


def open_array(on: str, out: Path | None) -> SteppedGemm:
    """The stepped array of ``--on``.

    Raises
    ------
    Error
        Another machine.
    """
    from hwq.simulators.stepped_gemm import SteppedGemm
    from hwq.simulators.stepping import parse_array

    array = parse_array(on)
    return SteppedGemm(array, pictures=out is not None and is_picture(out))


def refuse_picture(on: str | None, out: Path | None) -> None:
    """Raise an `Error` if a picture is asked for where nothing is stepped."""
    if on is None and out is not None and is_picture(out):
        raise Error(
            "only a stepped run has an occupancy picture",
            where=str(out),
            remedy="add --on systolic:32x32:ws, or name an .npz file for the outputs",
        )


def write_picture(run: SteppedRun, out: Path, overwrite: bool) -> None:
    """A report page, or one SVG figure, by the file's suffix."""
    from hwq.files import write_atomically
    from hwq.reporting import occupancy, report
    from hwq.reporting.drawing import standalone

    if out.suffix.lower() != ".svg":
        report([run], out, overwrite=overwrite)
        return
    with write_atomically(out, overwrite=overwrite, mode="w") as stream:
        stream.write(standalone(occupancy.figure(occupancy.read(run))))


def show(console: Console, run: SteppedRun) -> None:
    """The table of layers, and the total."""
    from hwq.names import rich_name

    drawn = table(f"{rich_name(run.model)} on {run.array}", "layer", "m x k x n", "products", "cycles", "utilization")
    for layer in run.layers:
        drawn.add_row(
            rich_name(layer.name),
            f"{layer.m} x {layer.k} x {layer.n}",
            f"{layer.products:,}",
            f"{layer.cycles:,}",
            f"{layer.utilization:.1%}",
        )
    console.print(drawn)
    console.print(f"{run.cycles:,} cycles, {run.macs:,} MACs, utilization {run.utilization:.1%}")
