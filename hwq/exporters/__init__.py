"""Exporters: graphs as files that other programs read."""

from __future__ import annotations

from hwq.errors import Error, NotSupportedYet
from hwq.files import PathLike
from hwq.graph import Graph

__all__ = ["export"]

FORMATS = ("qdq", "qoperator", "aimet")


def export(q: Graph, path: PathLike, format: str = "qdq", target: str | None = None, overwrite: bool = False) -> None:
    """Write a graph as an ONNX file, whole or not at all.

    Parameters
    ----------
    q : Graph
        Float or quantized, in source form. Names, integers and the bits of every scale are kept.
    path : path
    format : {"qdq", "qoperator", "aimet"}
        ``qdq``: QuantizeLinear and DequantizeLinear nodes around float operators.
    target : {None, "tensorrt"}
        A reader with rules of its own.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    Error
        An unknown format or target, a graph without values, something that ONNX cannot say, or the file exists.
    NotSupportedYet
        A format or target that is not built.
    """
    if format not in FORMATS:
        raise Error("there is no such export format", where=f"format {format}", remedy=f"one of: {', '.join(FORMATS)}")
    if target not in {None, "tensorrt"}:
        raise Error("there is no such export target", where=f"target {target}", remedy="one of: tensorrt; or none")
    if format != "qdq" or target is not None:
        name = f'format "{format}"' if format != "qdq" else f'target "{target}"'
        raise NotSupportedYet(f"export with {name}", remedy='use format="qdq" without a target')
    from hwq.exporters.onnx import write

    write(q, path, overwrite=overwrite)
