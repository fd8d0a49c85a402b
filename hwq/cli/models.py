"""Verbs about the model itself: inspect, lower, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwq.cli import options
from hwq.cli.console import emit, guarded, table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["VERBS"]


@guarded
def inspect(
    model: options.Model, shape: options.Shapes = None, batch: options.Batch = 1, json: options.Json = False
) -> None:
    """Show what a model holds: layers, shapes, MACs, parameters, bytes."""
    from hwq.names import display_name, rich_name
    from hwq.ops.base import lookup
    from hwq.ops.inference import infer_shapes, require_bound

    loaded = options.load(model, shape, weights=False)
    # Counted before shapes are bound: folding drops constants that nothing reads.
    parameters, parameter_bytes = loaded.parameters, loaded.parameter_bytes
    graph = infer_shapes(loaded, batch=batch)
    require_bound(graph)
    rows: list[dict[str, Any]] = []
    for node in graph:
        work = lookup(node).work(node, graph)
        made = graph.tensors[node.outputs[0]]
        rows.append({"name": display_name(node.name), "op": node.kind, "output_shape": list(made.shape), "output_dtype": made.dtype, "macs": work.macs,
                     "weight_elements": 0 if work.weight_is_activation else work.weight_elements, "output_bytes": made.bytes if made.concrete else None})  # fmt: skip
    macs = sum(row["macs"] for row in rows)
    result: dict[str, Any] = {
        "model": display_name(graph.name), "source": dict(graph.source), "graph_hash": graph.hash, "dialect": graph.dialect, "batch": batch,
        "inputs": {display_name(name): list(graph.tensors[name].shape) for name in graph.inputs},
        "outputs": {display_name(name): list(graph.tensors[name].shape) for name in graph.outputs},
        "nodes": len(graph), "macs": macs, "parameters": parameters, "parameter_bytes": parameter_bytes, "layers": rows,
    }  # fmt: skip

    def show(console: Console) -> None:
        drawn = table(
            f"{rich_name(graph.name)}: {len(graph)} nodes, batch {batch}",
            "layer",
            "op",
            "output shape",
            "type",
            "MACs",
            "weights",
            "output bytes",
        )
        for row in rows:
            drawn.add_row(rich_name(row["name"]), rich_name(row["op"]), "x".join(map(str, row["output_shape"])), row["output_dtype"],
                          f"{row['macs']:,}" if row["macs"] else "", f"{row['weight_elements']:,}" if row["weight_elements"] else "",
                          "" if row["output_bytes"] is None else f"{row['output_bytes']:,}")  # fmt: skip
        console.print(drawn)
        for kind in ("inputs", "outputs"):
            console.print(
                f"{kind}: "
                + ", ".join(f"{rich_name(name)} [{' x '.join(map(str, dims))}]" for name, dims in result[kind].items())
            )
        console.print(f"{macs:,} MACs, {parameters:,} parameters, {parameter_bytes:,} bytes of parameters")

    emit("inspect", result, show, json)


@guarded
def lower(
    model: options.Model,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="RULES", help="A dialect (ort, ort-unfused), a family (gpu, systolic, npu) or a machine."
        ),
    ] = "ort",
    plan: options.PlanFile = None,
    precision: options.Precision = None,
    shape: options.Shapes = None,
    json: options.Json = False,
) -> None:
    """Print the fused groups that a runtime or a machine makes of a model, one line each."""
    import hwq

    graph = options.load(model, shape)
    chosen = options.plan_of(plan, precision)
    if chosen is not None:
        from hwq.quantization import annotate

        graph = annotate(graph, chosen)
    lowered = hwq.lower(graph, to)
    result: dict[str, Any] = {"rules": to, "graph_hash": lowered.hash, "text": lowered.to_text().splitlines(),
                              "groups": [{"name": node.name, "op": node.op, "body": [part.op for part in node.body]} for node in lowered]}  # fmt: skip
    emit("lower", result, lambda console: console.print(lowered.to_text(), markup=False), json)


@guarded
def export(
    model: options.Model,
    out: options.Out,
    format: Annotated[
        str,
        typer.Option(
            "--format", metavar="NAME", help="qdq; qoperator: integer operators; aimet: encodings alone (JSON)."
        ),
    ] = "qdq",
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="NAME",
            help="A runtime whose rules the file must obey: tensorrt; onnxruntime: weight-only layers as its MatMulNBits.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write a float or quantized model as ONNX, or its scales as encodings, with their exact bits."""
    import hwq

    graph = options.load(model)
    hwq.export(graph, str(out), format=format, target=target, overwrite=overwrite)
    emit(
        "export",
        {"file": str(out), "format": format, "graph_hash": graph.hash},
        lambda console: console.print(f"wrote {out}", markup=False),
        json,
    )


VERBS = (inspect, lower, export)
