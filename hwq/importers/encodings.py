"""Other tools' plans: AIMET encodings, TensorRT calibration caches, ai-edge-quantizer recipes, quantized models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hwq.encodings import Encoding, plain_name
from hwq.errors import Error, NotSupportedYet
from hwq.files import PathLike, read_bytes
from hwq.graph import Graph, Node
from hwq.names import display_name
from hwq.operator_kinds import MATRIX
from hwq.ops.folding import fold
from hwq.placement import weight_axes
from hwq.plan import Plan
from hwq.plan_reading import literal
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
        raise Error(
            "this is no plan of another tool that hwq can read",
            where=where,
            why=f"it is no JSON, no calibration cache, and no model: {error.what}",
            remedy="AIMET encodings, TensorRT caches, ai-edge-quantizer recipes, QDQ ONNX and TFLite models are read; a "
            "plan file (TOML) needs no import",
        ) from None
    plan = Plan.of(model)
    return Imported(plan, "quantized model") if graph is None else _for(graph, model, plan)


# What tools add to the name of a weight that they store: hwq and onnxruntime, AIMET, ModelOpt, NNCF.
_STORED = re.compile(r"(?:q_output_)?(.+?)(?:_quantized|_q|_i4|_\d+)?$")


def _for(graph: Graph, model: Graph, plan: Plan) -> Imported:
    """A quantized model's plan in the float model's names; rules for what it lacks are left out."""
    nodes = [*graph.nodes, *fold(graph).nodes]
    places = {(node.name, slot): name for node in graph.nodes for slot, name in enumerate(node.inputs)}
    rules, left = [], []
    for layer in plan.layers:
        rule = layer.model_dump(exclude_none=True)
        tensor = rule["match"].get("tensor")
        if tensor is not None and not any(layer.match.fits(node) for node in nodes):
            name = _float_weight(plain_name(tensor), model, graph, places) if rule["weights"] else None
            if name is None:
                left.append(f"tensor {plain_name(tensor)} is not in the model")
                continue
            rule["match"]["tensor"] = literal(name)
        rules.append({key: value for key, value in rule.items() if value})
    table = {**plan.model_dump(by_alias=True, exclude_none=True), "layers": rules}
    return Imported(Plan._checked(table, "imported plan"), "quantized model", tuple(left))


def _float_weight(label: str, model: Graph, graph: Graph, places: Mapping[tuple[str, int], str]) -> str | None:
    """The float model's constant in place of a stored one: what the same operator reads there, or the name that is left."""
    tensor = model.tensors.get(label)
    for reader in model.consumers.get(label, ()) if tensor is not None else ():
        for node in model.consumers.get(reader.outputs[0], ()) if reader.op == "DequantizeLinear" else (reader,):
            for slot, name in enumerate(node.inputs):
                found = places.get((node.name, slot)) if name in {label, *reader.outputs} else None
                if found is not None and graph.constant(found) is not None:
                    return found
    stripped = _STORED.match(label)
    return stripped[1] if stripped is not None and graph.constant(stripped[1]) is not None else None


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
                _require_axis(one, node, slot, graph)
            kept.append(one)
    return kept, tuple(left)


def _require_axis(one: Encoding, node: Node, slot: int, graph: Graph) -> None:
    shape = graph.tensors[one.tensor].shape
    channel, reduced = weight_axes(node, slot, len(shape))
    wanted = reduced if one.block else channel
    if one.axis is not None and wanted is not None and one.scale.ndim and one.axis % len(shape) != wanted:
        raise NotSupportedYet(
            f"scales along axis {one.axis} of a weight of {node.op}",
            where=f"tensor {display_name(one.tensor)}",
            why=f"a plan's scales stand along axis {wanted} there",
        )
    if one.scale.ndim == 1 and channel is not None and one.scale.size not in {1, shape[channel]}:
        raise Error(
            f"{one.scale.size} scales for {shape[channel]} channels", where=f"tensor {display_name(one.tensor)}"
        )
