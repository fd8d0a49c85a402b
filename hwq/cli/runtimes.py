"""Verbs about runtimes: portability."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwq.cli import options
from hwq.cli.console import FAILED, emit, guarded, progress

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["VERBS"]


@guarded
def portability(
    model: options.Model,
    data: options.Data,
    samples: options.Count = None,
    repair: Annotated[
        Path | None,
        typer.Option("--repair", metavar="FILE", help="Write the cheapest repair as ONNX, once it is proved safe."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="NAME", help="uint8 (default, keeps every bit), rescale or seven-bit."),
    ] = None,
    input_scale: options.InputScale = 1.0,
    input_zero_point: options.InputZeroPoint = 0.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Run a quantized model as every runtime and CPU class computes it, and prove from its weights what can saturate.

    Exit code 1: some CPU gives another answer, or might.
    """
    import hwq
    from hwq.portability import portability as examine
    from hwq.repair import repair as mend

    graph = options.load(model)
    found = options.samples(data, graph, samples, input_scale, input_zero_point)
    feeds = list(found.batches(256))
    with progress("portability") as report:
        made = examine(graph, feeds, found.labels, progress=report)
    result = made.to_dict()
    notes = [str(made)]
    if repair is not None:
        mended = mend(graph, method)
        again = examine(mended.graph, feeds, found.labels, dialects=("ort", "ort-avx2-saturating"))
        hwq.export(mended.graph, str(repair), overwrite=overwrite)
        result["repair"] = {"file": str(repair), "method": mended.method, "layers": list(mended.layers), "exact": mended.exact,
                            "after": again.to_dict()}  # fmt: skip
        notes.append(f"repaired {len(mended.layers)} layers by {mended.method}, wrote {repair}; after it:\n{again}")

    def show(console: Console) -> None:
        console.print("\n".join(notes), markup=False)

    emit("portability", result, show, json)
    if not made.safe:
        raise typer.Exit(FAILED)


VERBS = (portability,)
