"""ONNX files as graphs. The bytes are parsed by protobuf alone; no native checker or shape inference ever sees them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from hwq.errors import Error
from hwq.exporters import nbits
from hwq.files import MAX_BYTES
from hwq.graph import Array, Dim, Graph, Node, Tensor, carrier
from hwq.importers import onnx_older
from hwq.importers.onnx_functions import inlined
from hwq.importers.onnx_quantization import annotated
from hwq.importers.onnx_values import MAX_RANK, Budget, array_of, attributes_of, dtype_of
from hwq.names import display_name
from hwq.ops.inference import infer_shapes

__all__ = ["MIN_OPSET", "read"]

MIN_OPSET = onnx_older.OLDEST
# From this IR version on an initializer is an input too only where a caller may give another value (onnx/docs/IR.md).
OPTIONAL_INPUTS = 4
# ONNX's own domain has two spellings.
_OWN = ("", "ai.onnx")
_SPATIAL = frozenset(
    {
        "Conv",
        "ConvInteger",
        "QLinearConv",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Resize",
        "QLinearAveragePool",
        "QLinearGlobalAveragePool",
    }
)
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def read(
    source: bytes | onnx.ModelProto,
    *,
    name: str = "model",
    folder: Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    max_bytes: int = MAX_BYTES,
    file: str = "",
) -> Graph:
    """Read an ONNX model.

    Parameters
    ----------
    source : bytes or onnx.ModelProto
    name : str
        The graph's name; the file's own is kept in ``Graph.source``.
    folder : Path, optional
        Where external data may lie; None refuses them.
    shapes : mapping of input name to shape, optional
        Binds open dimensions.
    max_bytes : int
        Bound on all tensors together.
    file : str
        Named in errors.

    Returns
    -------
    Graph
        Source form, dialect ``ort`` (``hwq`` where hwq wrote the file by such a plan), shapes inferred, computations about
        shapes folded.

    Raises
    ------
    Error
        Not an ONNX model, damaged, or with something that hwq does not support; the message names file and node.
    """
    try:
        model = _parsed(source) if isinstance(source, bytes) else source
        graph = _graph(model, name, Budget(max_bytes, folder))
        return _typed(annotated(onnx_older.raise_rows(infer_shapes(graph, shapes))))
    except Error as error:
        if file and file not in (error.where or ""):
            where = f"{display_name(file)}: {error.where}" if error.where else file
            raise type(error)(error.what, where=where, why=error.why, remedy=error.remedy) from error
        raise
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        OverflowError,
        AttributeError,
        RecursionError,
        MemoryError,
    ) as error:
        raise Error(
            "the ONNX model is damaged",
            where=file or None,
            why=f"{type(error).__name__}: {error}",
            remedy="export it again",
        ) from error


def _parsed(data: bytes) -> onnx.ModelProto:
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise Error(
            "this is no ONNX model, or a damaged one",
            why=f"protobuf: {error}",
            remedy="give an ONNX file, whole and not compressed",
        ) from error
    if not model.HasField("graph") or not model.opset_import:
        raise Error(
            "this is no ONNX model",
            why="it holds no graph or names no operator set",
            remedy="give an ONNX file, whole and not compressed",
        )
    return model


def _opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set.

    Raises
    ------
    Error
        It is missing, too old or unknown.
    """
    newest = onnx.defs.onnx_opset_version()
    versions = {int(entry.version) for entry in model.opset_import if entry.domain in _OWN}
    if not versions:
        if not any(node.domain in _OWN for node in model.graph.node):
            return newest
        raise Error("the model names no version of ONNX's operator set", where="opset_import", remedy="export it again")
    version = max(versions)
    if version < MIN_OPSET:
        raise Error(
            f"the model uses opset {version}, hwq reads {MIN_OPSET} to {newest}",
            where="opset_import",
            why="operators changed their meaning before",
            remedy=f"convert it: onnx.version_converter.convert_version(model, {MIN_OPSET})",
        )
    if version > newest:
        raise Error(
            f"the model uses opset {version}, hwq reads {MIN_OPSET} to {newest}",
            where="opset_import",
            why=f"the installed onnx {onnx.__version__} knows no newer one",
            remedy="export with an older opset, or upgrade onnx",
        )
    return version


class _Reader:
    """Collects the nodes and tensors of one model."""

    def __init__(self, model: onnx.ModelProto, budget: Budget, opset: int):
        self.model, self.budget, self.opset = model, budget, opset
        older = opset < onnx_older.RAISED
        self.taken = {output for node in model.graph.node for output in node.output} if older else set[str]()
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.names: set[str] = set()
        self.inputs: list[str] = []
        self.stated = dict(self._values())
        self.defaults: list[str] = []

    def initializers(self) -> None:
        """Constants of the graph."""
        graph = self.model.graph
        if graph.sparse_initializer:
            raise Error(
                "sparse initializers are not supported",
                where=f"initializer {graph.sparse_initializer[0].values.name}",
                remedy="export dense weights",
            )
        for tensor in graph.initializer:
            where = f"initializer {tensor.name}"
            if not tensor.name:
                raise Error("an initializer has no name", where="graph")
            if tensor.name in self.tensors:
                raise Error("two initializers have one name", where=where, remedy="give each a name of its own")
            dtype, value = array_of(tensor, where, self.budget)
            self.tensors[tensor.name] = Tensor(tensor.name, dtype, value.shape, value)

    def graph_inputs(self) -> None:
        """Inputs; those that repeat an initializer, as IR versions before 4 demand, are constants (here nobody gives others)."""
        for value in self.model.graph.input:
            if value.name in self.inputs or not value.name:
                raise Error("two inputs have one name, or one has none", where=f"input {value.name}")
            if value.name in self.tensors:
                self.defaults.append(value.name)
            else:
                self.inputs.append(value.name)
                self.tensors[value.name] = _described(value, f"input {value.name}")

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        """What the file says about computed values, where it can be read; inference has the last word."""
        for value in (*self.model.graph.value_info, *self.model.graph.output):
            try:
                yield value.name, _described(value, f"value {value.name}")
            except Error:
                continue

    def node(self, index: int, proto: onnx.NodeProto) -> None:
        """One node, or the constant that a Constant node stands for."""
        domain = "" if proto.domain in _OWN else proto.domain
        name = self._unique(proto.name or f"{proto.op_type}_{index}")
        where = f"node {display_name(name)} (type {display_name(proto.op_type)}, domain {display_name(domain or 'ai.onnx')})"
        if proto.op_type in _CONTROL and not domain:
            raise Error(
                f"operator {proto.op_type} is not supported",
                where=where,
                why="hwq runs and costs straight-line graphs; it has subgraphs",
                remedy="export the model without control flow",
            )
        if not proto.output:
            raise Error("the node makes nothing", where=where)
        attributes, types = attributes_of(proto, where, self.budget)
        if proto.op_type == "Constant" and not domain:
            self._constant(proto.output[0], attributes, types, where)
            return
        inputs = list(proto.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        _normalize(proto.op_type, attributes, types, where)
        op = proto.op_type
        if self.opset < onnx_older.RAISED and not domain and inputs:
            known = self.tensors.get(inputs[0]) or self.stated.get(inputs[0])
            op, raised = onnx_older.raised(op, self.opset, inputs, attributes, known.dtype if known else "float32")
            inputs = [one if isinstance(one, str) else self._hold(f"{name}_{op.lower()}", one) for one in raised]
        self.nodes.append(
            Node(
                op,
                name,
                tuple(inputs),
                tuple(proto.output),
                attributes,
                domain,
                proto.name,
                "NCHW" if op in _SPATIAL else "",
            )
        )

    def _hold(self, name: str, value: Array) -> str:
        """The name of a constant that the file does not have."""
        held = self._free(name)
        self.tensors[held] = Tensor(held, str(value.dtype), value.shape, value)
        return held

    def _free(self, name: str) -> str:
        """A tensor's name that the file does not use."""
        while name in self.tensors or name in self.taken:
            name += "_"
        return name

    def _unique(self, name: str) -> str:
        found, count = name, 1
        while found in self.names:
            found, count = f"{name}_{count}", count + 1
        self.names.add(found)
        return found

    def _constant(self, output: str, attributes: Mapping[str, Any], types: Mapping[str, str], where: str) -> None:
        if len(attributes) != 1:
            raise Error("Constant needs exactly one value", where=where)
        ((kind, value),) = attributes.items()
        made = {
            "value_int": "int64",
            "value_ints": "int64",
            "value_float": "float32",
            "value_floats": "float32",
            "value_string": "string",
            "value_strings": "string",
            "value": types.get("value"),
        }.get(kind)
        if made is None:
            raise Error(f"Constant with attribute {kind} is not supported", where=where)
        if output in self.tensors:
            raise Error(
                "this value is made twice",
                where=f"tensor {output}",
                why=f"{where} makes it again",
                remedy="give every node output a name of its own",
            )
        data: Array = value if isinstance(value, np.ndarray) else np.array(value, carrier(made))
        self.tensors[output] = Tensor(output, made, data.shape, data)


def _normalize(op: str, attributes: dict[str, Any], types: Mapping[str, str], where: str) -> None:
    """Element types by name instead of by number."""
    for key in ("to", "output_dtype", "precision"):
        if key in attributes and op in {"Cast", "QuantizeLinear", "DequantizeLinear"}:
            if attributes[key] == 0 and key != "to":
                del attributes[key]
            else:
                attributes[key] = dtype_of(attributes[key], f"{where}, attribute {key}")
    if op == "EyeLike" and "dtype" in attributes:
        attributes["dtype"] = dtype_of(attributes["dtype"], f"{where}, attribute dtype")
    if op == "ConstantOfShape" and "value" in types:
        attributes["dtype"] = types["value"]


def _described(value: onnx.ValueInfoProto, where: str) -> Tensor:
    """A value's stated type and shape.

    Raises
    ------
    Error
        It is no tensor, or of unknown type.
    """
    if value.type.WhichOneof("value") != "tensor_type":
        raise Error(
            "only tensors are supported",
            where=where,
            why=f"it is a {value.type.WhichOneof('value') or 'value without a type'}",
            remedy="export the model with tensor inputs and outputs",
        )
    stated = value.type.tensor_type
    dtype = dtype_of(stated.elem_type, where)
    if not stated.HasField("shape"):
        return Tensor(value.name, dtype, (), known_shape=False)
    if len(stated.shape.dim) > MAX_RANK:
        raise Error(f"a tensor of {len(stated.shape.dim)} dimensions is not supported", where=where)
    return Tensor(value.name, dtype, tuple(_dim(dim, value.name, axis) for axis, dim in enumerate(stated.shape.dim)))


def _dim(dim: Any, name: str, axis: int) -> Dim:
    """A number, the file's symbol, or a symbol of our own where it says nothing (negative numbers say nothing)."""
    if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0:
        return int(dim.dim_value)
    symbol = str(dim.dim_param)
    if not symbol:
        return f"{name}.{axis}"
    return f"dim_{symbol}" if symbol.isdigit() else symbol


def _graph(model: onnx.ModelProto, name: str, budget: Budget) -> Graph:
    opset = _opset(model)
    reader = _Reader(model, budget, opset)
    reader.initializers()
    reader.graph_inputs()
    for index, proto in enumerate(inlined(model)):
        reader.node(index, proto)
    _require_known(reader.nodes)
    for node in reader.nodes:
        for output in node.outputs:
            if output and output not in reader.tensors:
                reader.tensors[output] = reader.stated.get(output) or Tensor(output, known_shape=False)
            elif output:
                raise Error(
                    "this value is made twice",
                    where=f"tensor {output}",
                    why=f"node {display_name(node.name)} makes it again",
                    remedy="give every node output a name of its own",
                )
    _require_text([*reader.tensors, *(node.name for node in reader.nodes)])
    outputs = list(dict.fromkeys(value.name for value in model.graph.output))
    if not outputs:
        raise Error("the model has no output", where="graph", remedy="export it again")
    source = {
        "format": "onnx",
        "graph": model.graph.name,
        "opset": max(opset, onnx_older.RAISED),
        "ir_version": int(model.ir_version),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
    }
    if reader.defaults and model.ir_version >= OPTIONAL_INPUTS:
        source["overridable"] = tuple(reader.defaults)
    written = {entry.value for entry in model.metadata_props if entry.key == "hwq.dialect"}
    own = written & {"hwq", "hwq-integer"} if model.producer_name == "hwq" else set()
    dialect = next(iter(own), "ort")  # a plan for hwq's own kernels keeps them
    graph = Graph(
        reader.nodes, reader.tensors.values(), reader.inputs, outputs, name=name, dialect=dialect, source=source
    )
    notes = next((entry.value for entry in model.metadata_props if entry.key == f"hwq.{nbits.KEY}"), None)
    return graph if notes is None or not own else nbits.restored(graph, notes)


def _require_text(names: Sequence[Any]) -> None:
    """protobuf hands over what is no UTF-8 as bytes."""
    for name in names:
        if not isinstance(name, str):
            raise Error("a name is not UTF-8", where=f"{name[:80]!r}", remedy="rename it, or export the model again")


def _require_known(nodes: Sequence[Node]) -> None:
    """Raise for the first operator that hwq lacks, and name the other missing ones."""
    from hwq.ops import load
    from hwq.ops.base import REGISTRY, lookup

    load()
    missing = {node.kind: node for node in nodes if node.kind not in REGISTRY}
    if not missing:
        return
    first, *others = missing.values()
    try:
        lookup(first)
    except Error as error:
        more = f"; also missing: {', '.join(display_name(node.kind) for node in others[:8])}" if others else ""
        raise Error(f"{error.what}{more}", where=error.where, why=error.why, remedy=error.remedy) from None


def _typed(graph: Graph) -> Graph:
    """Q nodes state their stored type, CastLike its target, once inference knows them."""
    nodes = []
    for node in graph.nodes:
        if node.op == "QuantizeLinear" and "output_dtype" not in node.attributes:
            node = dataclasses.replace(
                node, attributes={**node.attributes, "output_dtype": graph.tensors[node.outputs[0]].dtype}
            )
        elif node.op == "CastLike" and "to" not in node.attributes:
            node = dataclasses.replace(node, attributes={**node.attributes, "to": graph.tensors[node.outputs[0]].dtype})
        nodes.append(node)
    return graph.replace(nodes=nodes)


def read_file(data: bytes, path: Path, shapes: Mapping[str, Sequence[int]] | None, max_bytes: int) -> Graph:
    """Read the ONNX model in `data`, which was read from `path`."""
    graph = read(data, name=path.stem, folder=path.parent, shapes=shapes, max_bytes=max_bytes, file=str(path))
    return graph.replace(source={"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), **graph.source})
