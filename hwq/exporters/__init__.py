"""Exporters: graphs as files that other programs read."""

from __future__ import annotations

from hwq.errors import Error
from hwq.files import PathLike
from hwq.graph import Graph

__all__ = ["export"]

FORMATS = ("qdq", "qoperator", "aimet", "aimet-0.6.1", "aimet-1.0.0", "aimet-2.0.0")


def export(q: Graph, path: PathLike, format: str = "qdq", target: str | None = None, overwrite: bool = False) -> None:
    """Write a graph as an ONNX file, whole or not at all.

    Parameters
    ----------
    q : Graph
        Float or quantized, in source form. Names, integers and the bits of every scale are kept. TFLite's operators are
        written as ONNX's (`hwq.translation`), with the same inputs and outputs.
    path : path
    format : {"qdq", "qoperator", "aimet", "aimet-0.6.1", "aimet-1.0.0", "aimet-2.0.0"}
        ``qdq``: QuantizeLinear and DequantizeLinear nodes around float operators. ``qoperator``: the integer operators
        that onnxruntime makes of them; float operators that it does not fuse stay between DQ and Q. ``aimet``: the scales
        and zero points alone, as AIMET's encodings (JSON) beside the float model; without a version 1.0.0, or 2.0.0 where
        weights have blocks.
    target : {None, "tensorrt", "onnxruntime"}
        A reader with rules of its own. ``tensorrt``: the file obeys them (float biases), or the error lists what they forbid.
        ``onnxruntime``: weight-only layers of 4 and 8 bits are its MatMulNBits (accuracy level 0), which it runs without
        unpacking them first.
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
    if target not in {None, "tensorrt", "onnxruntime"}:
        raise Error(
            "there is no such export target", where=f"target {target}", remedy="one of: tensorrt, onnxruntime; or none"
        )
    if format.startswith("aimet"):
        if target is not None:
            raise Error("encodings have no target", where=f"format {format}, target {target}", remedy='format="qdq"')
        from hwq.encodings import encodings_of_graph
        from hwq.exporters.encodings import write as write_encodings

        write_encodings(encodings_of_graph(q), path, format, overwrite=overwrite)
        return
    if format == "qoperator" and target is not None:
        raise Error(
            "TensorRT reads Q and DQ around float operators, not integer operators"
            if target == "tensorrt"
            else "integer operators hold no weight-only layers",
            where=f"format {format}, target {target}",
            remedy='use format="qdq" with this target',
        )
    from hwq.exporters.onnx import require_exportable, write
    from hwq.translation import in_onnx

    q = in_onnx(q)
    require_exportable(q)
    if format == "qoperator":
        from hwq.exporters.qoperator import to_qoperator

        q = to_qoperator(q)
    if target == "tensorrt":
        from hwq.exporters.tensorrt import for_tensorrt

        q = for_tensorrt(q)
    if target == "onnxruntime":
        from hwq.exporters.nbits import with_matmulnbits

        q = with_matmulnbits(q)
    write(q, path, overwrite=overwrite)
