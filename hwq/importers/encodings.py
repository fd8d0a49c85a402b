"""Other tools' plans: AIMET encodings, TensorRT calibration caches, ai-edge-quantizer recipes, quantized models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hwq.encodings import Encoding
from hwq.errors import Error, NotSupportedYet
from hwq.files import PathLike, read_bytes
from hwq.graph import Graph, Node
from hwq.names import display_name
from hwq.operator_kinds import MATRIX
from hwq.placement import weight_axes
from hwq.plan import Plan
from hwq.standardization import standardized

__all__ = ["Imported", "read_plan"]

# A file of scales; a model of any size is read by its own importer.
MAX_ENCODING_BYTES = 256 << 20


@dataclass(frozen=True)
class Imported:
    """A plan that was read from another tool's file.

    Attributes
    ----------
    plan : Plan
    format : str
        ``AIMET 1.0.0``, ``TensorRT calibration cache``, ``ai-edge-quantizer recipe``, ``quantized model``.
    left_out : tuple of str
        What the file says beyond the plan, or of tensors that the model lacks, in words.
    """

    plan: Plan
    format: str
    left_out: tuple[str, ...] = ()


def read_plan(path: PathLike, graph: Graph | None = None) -> Imported:
    """Read another tool's quantization as a plan; every scale keeps its float32 bits.

    Parameters
    ----------
    path : path
        AIMET encodings (0.6.1, 1.0.0, 2.0.0), a TensorRT calibration cache, an ai-edge-quantizer recipe, or a quantized
        ONNX or TFLite model; told apart by content.
    graph : Graph, optional
        The float model. Rules for what it lacks are left out, constants are told from activations, and operators are
        named as it names them.

    Returns
    -------
    Imported

    Raises
    ------
    Error
        None of these, or a damaged one: not a number, a scale of 0 or less, a zero point outside the type.
    NotSupportedYet
        Something that a plan cannot say: fractional offsets, LPBQ, activations with one scale a channel, Hadamard
        rotations.
    """
    where = str(path)
    # Plans speak of the operators that `hwq.quantize` sees.
    graph = None if graph is None else standardized(graph)
    head = _head(path)
    start = head.lstrip()[:1]
    if head.startswith(b"TRT-"):
        from hwq.importers import encodings_tensorrt

        return encodings_tensorrt.parse(_text(path), where, graph)
    if start in (b"{", b"["):
        table = _json(path)
        if isinstance(table, list):
            from hwq.importers import encodings_litert

            return encodings_litert.parse(table, where, graph)
        from hwq.importers import encodings_aimet

        return encodings_aimet.parse(table, where, graph)
    from hwq.importers import load

    try:
        model = load(str(path))
    except Error as error:
        if error.where not in {None, where}:
            raise  # a model, and something inside it
        raise Error(
            "this is no plan of another tool that hwq can read",
            where=where,
            why=f"it is no JSON, no calibration cache, and no model: {error.what}",
            remedy="AIMET encodings, TensorRT caches, ai-edge-quantizer recipes, QDQ ONNX and TFLite models are read; a "
            "plan file (TOML) needs no import",
        ) from None
    from hwq.importers import encodings_model

    return encodings_model.parse(model, graph)


def _head(path: PathLike) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(64)
    except OSError as error:
        raise Error("the file cannot be read", where=str(path), why=error.strerror, remedy="check the path") from None


def _text(path: PathLike) -> str:
    try:
        return read_bytes(path, MAX_ENCODING_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Error("the file is not UTF-8 text", where=str(path), why=str(error)) from None


def _json(path: PathLike) -> Any:
    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(_text(path), parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Error(
            "the file is not JSON", where=str(path), why=str(error), remedy="it may be cut off; export it again"
        ) from None


def name_of(value: Any, where: str) -> str:
    """A tensor's name that a plan file can hold.

    Raises
    ------
    Error
        It is no text, is empty, or holds half a surrogate pair.
    """
    if not isinstance(value, str) or not value:
        raise Error("an encoding has no name", where=where)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Error("a tensor's name is no text", where=where, why=str(error)) from None
    return value


def fitting(found: Iterable[Encoding], graph: Graph | None) -> tuple[list[Encoding], tuple[str, ...]]:
    """The encodings that are of use in the model, and why the others are not.

    Raises
    ------
    NotSupportedYet
        A weight whose scales stand along another axis than its operator's output channels.
    """
    every = list(found)
    if graph is None:
        return every, ()
    kept, left = [], []
    for one in every:
        if one.tensor not in graph.tensors:
            left.append(f"tensor {one.tensor} is not in the model")
        elif graph.constant(one.tensor) is None:
            kept.append(one)
        else:
            readers = [
                (node, node.inputs.index(one.tensor))
                for node in graph.consumers.get(one.tensor, ())
                if node.op in MATRIX and one.tensor in node.inputs[:2]
            ]
            if not readers:
                left.append(f"constant {one.tensor} is no weight of a convolution or product")
                continue
            for node, slot in readers:
                shape = graph.tensors[one.tensor].shape
                require_axis(one.tensor, one.axis, one.block, one.scale.ndim, node, slot, len(shape))
                channel = weight_axes(node, slot, len(shape))[0]
                if one.scale.ndim == 1 and channel is not None and one.scale.size not in {1, shape[channel]}:
                    where = f"tensor {display_name(one.tensor)}"
                    raise Error(f"{one.scale.size} scales for {shape[channel]} channels", where=where)
            kept.append(one)
    return kept, tuple(left)


def require_axis(
    tensor: str, axis: int | None, block: int | None, rank_of_scale: int, node: Node, slot: int, rank: int
) -> None:
    """Refuse scales that stand along another axis than a plan's.

    Raises
    ------
    NotSupportedYet
        Names the tensor and both axes.
    """
    channel, reduced = weight_axes(node, slot, rank)
    wanted = reduced if block else channel
    if axis is not None and wanted is not None and rank_of_scale and axis % rank != wanted:
        raise NotSupportedYet(
            f"{'blocks' if block else 'scales'} along axis {axis} of a weight of {node.op}",
            where=f"tensor {display_name(tensor)}",
            why=f"a plan's {'blocks' if block else 'scales'} stand along axis {wanted} there",
        )
