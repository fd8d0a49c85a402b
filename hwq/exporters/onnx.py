"""Graphs as ONNX files, float or QDQ: names kept, every number bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from hwq import __version__
from hwq.errors import Error, NotSupportedYet
from hwq.exporters.bfloat16 import in_float32
from hwq.exporters.functions import functions_of
from hwq.exporters.opset import opset_of
from hwq.files import PathLike, write_atomically
from hwq.graph import BITS, Array, Graph, Node, Tensor
from hwq.importers.onnx_values import DTYPES

__all__ = ["require_exportable", "to_model", "write"]

# ONNX's element types by hwq's names.
_CODES: Mapping[str, int] = {name: code for code, name in DTYPES.items()}
# Attributes whose value is an element type by name.
_TYPE_ATTRIBUTES = frozenset({"to", "output_dtype", "precision"})
# protobuf refuses larger messages.
MAX_MODEL_BYTES = (1 << 31) - 1


def write(graph: Graph, path: PathLike, *, overwrite: bool = False) -> None:
    """Write `graph` as an ONNX file; see `hwq.export`."""
    model = to_model(graph)
    with write_atomically(path, overwrite=overwrite) as stream:
        stream.write(model.SerializeToString(deterministic=True))


def to_model(graph: Graph) -> onnx.ModelProto:
    """The ONNX model of a graph in source form.

    Raises
    ------
    Error
        The graph is lowered, has no values, is too large for one file, or holds what ONNX cannot say.
    NotSupportedYet
        Channels-last operators.
    """
    require_exportable(graph)
    graph = in_float32(graph)
    opset = _opset(graph)
    nodes, constants = _upgraded(graph, opset)
    read = {name for node in nodes for name in node.inputs} | set(graph.outputs)
    made = graph.producers
    stored = [
        tensor
        for name, tensor in graph.tensors.items()
        if name in read and name not in made and name not in graph.inputs
    ]
    inputs = [*graph.inputs, *(tensor.name for tensor in stored if tensor.name in graph.source.get("overridable", ()))]
    proto = helper.make_graph(
        [_node(node, opset) for node in nodes], str(graph.source.get("graph") or graph.name),
        [_value(graph.tensors[name]) for name in inputs], [_value(graph.tensors[name]) for name in graph.outputs],
        initializer=[_initializer(tensor) for tensor in (*stored, *constants)])  # fmt: skip
    domains = sorted({node.domain for node in nodes if node.domain})
    model = helper.make_model(
        proto,
        functions=functions_of(nodes, opset),
        producer_name="hwq",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)],
    )
    model.ir_version = helper.find_min_ir_version_for([entry for entry in model.opset_import if not entry.domain])
    facts = {
        "hwq.dialect": graph.dialect,
        "hwq.graph": graph.hash,
        **{
            f"hwq.{key}": str(graph.source[key])
            for key in ("float_graph", "plan", "calibration", "matmulnbits")
            if key in graph.source
        },
    }
    helper.set_model_props(model, facts)
    return model


def require_exportable(graph: Graph) -> None:
    """Raise unless ONNX can hold the graph: source form, values known, channels first, below 2 GiB."""
    if graph.form != "source":
        raise Error(
            "a lowered graph cannot be exported",
            where=f"graph {graph.name}",
            remedy="export the graph that was lowered",
        )
    size = 0
    for node in graph.nodes:
        if node.layout == "NHWC":
            raise NotSupportedYet(
                "export of channels-last operators",
                where=f"node {node.name} ({node.op})",
                why="ONNX's operators are channels-first; the graph was read from a TFLite file",
            )
        for name in node.inputs:
            tensor = graph.tensors.get(name)
            if tensor is None or name in graph.producers or name in graph.inputs:
                continue
            if tensor.data is None:
                raise Error(
                    "this tensor has no values",
                    where=f"tensor {name}",
                    why="the graph was built for cost only",
                    remedy="load the model with its weights and quantize it with a calibration",
                )
            size += tensor.bytes
    if size > MAX_MODEL_BYTES:
        raise Error(
            f"the constants take {size} bytes, more than one ONNX file can hold",
            where=f"graph {graph.name}",
            why="protobuf messages end at 2 GiB",
            remedy="store weights in fewer bits",
        )


def _opset(graph: Graph) -> int:
    """The source's opset, raised as far as the graph's operators and types need.

    Raises
    ------
    Error
        The installed onnx knows none so new.
    """
    needed, known = opset_of(graph), onnx.defs.onnx_opset_version()
    if needed > known:
        raise Error(
            f"the graph needs opset {needed}, the installed onnx {onnx.__version__} knows {known}",
            remedy="upgrade onnx",
        )
    return needed


def _upgraded(graph: Graph, opset: int) -> tuple[list[Node], list[Tensor]]:
    """The nodes as `opset` writes them: attributes of older versions that became inputs, and what was added without a
    default.
    """
    nodes: list[Node] = []
    constants: dict[str, Tensor] = {}
    for node in graph.nodes:
        attributes, inputs = dict(node.attributes), node.inputs
        axes = attributes.get("axes")
        moved_since = {"ReduceSum": 13, "Squeeze": 13, "Unsqueeze": 13}.get(
            node.op, 18 if node.op.startswith("Reduce") else None
        )
        if axes is not None and moved_since is not None and opset >= moved_since:
            del attributes["axes"]
            value = np.asarray(axes, np.int64).reshape(-1)
            name = f"{node.name}_axes"
            while name in graph.tensors:
                name += "_"
            constants[name] = Tensor(name, "int64", value.shape, value)
            inputs = (inputs[0], name)
        if node.op == "Split" and opset >= 18 and len(inputs) < 2 and "num_outputs" not in attributes:
            attributes["num_outputs"] = len(node.outputs)
        if node.op == "Split" and opset < 18:
            attributes.pop("num_outputs", None)
        if node.op == "QuantizeLinear" and len(inputs) > 2:
            attributes.pop("output_dtype", None)  # the zero point says it
        if node.op == "ConstantOfShape":
            attributes.pop("dtype", None)
        nodes.append(Node(node.op, node.name, inputs, node.outputs, attributes, node.domain))
    return nodes, list(constants.values())


def _node(node: Node, opset: int) -> onnx.NodeProto:
    proto = onnx.NodeProto(op_type=node.op, name=node.name, domain=node.domain)
    proto.input.extend(node.inputs)
    proto.output.extend(node.outputs)
    proto.attribute.extend(_attributes(node, opset))
    return proto


def _attributes(node: Node, opset: int) -> Iterator[AttributeProto]:
    kinds: Mapping[str, Any] = {}
    if not node.domain and onnx.defs.has(node.op, opset):
        schema = onnx.defs.get_schema(node.op, opset)
        kinds = {name: getattr(entry.type, "value", entry.type) for name, entry in schema.attributes.items()}
    for name, value in node.attributes.items():
        if name in _TYPE_ATTRIBUTES and isinstance(value, str):
            value = _CODES[value]
        yield _attribute(node, name, value, kinds.get(name))


def _attribute(node: Node, name: str, value: Any, kind: int | None) -> AttributeProto:
    """One attribute in the type that the operator's definition states, else in the value's own."""
    made = AttributeProto(name=name)
    where = f"node {node.name}, attribute {name}"
    try:
        if isinstance(value, np.ndarray):
            made.type = AttributeProto.TENSOR
            made.t.CopyFrom(
                _initializer(Tensor("", str(value.dtype) if value.dtype != object else "string", value.shape, value))
            )
            return made
        several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        first = next(iter(value), 0) if several else value
        if kind in {AttributeProto.FLOAT, AttributeProto.FLOATS} or (kind is None and isinstance(first, float)):
            made.type = AttributeProto.FLOATS if several else AttributeProto.FLOAT
            if several:
                made.floats.extend(float(item) for item in value)
            else:
                made.f = float(value)
        elif isinstance(first, (str, bytes)):
            texts = [item.encode() if isinstance(item, str) else item for item in (value if several else [value])]
            made.type = AttributeProto.STRINGS if several else AttributeProto.STRING
            if several:
                made.strings.extend(texts)
            else:
                made.s = texts[0]
        else:
            made.type = AttributeProto.INTS if several else AttributeProto.INT
            if several:
                made.ints.extend(int(item) for item in value)
            else:
                made.i = int(value)
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise Error("ONNX cannot hold this attribute", where=where, why=f"{type(error).__name__}: {error}") from error
    return made


def _code(dtype: str, where: str) -> int:
    if dtype not in _CODES:
        raise Error(f"ONNX has no type {dtype}", where=where, remedy="plan another stored type")
    return _CODES[dtype]


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    code = _code(tensor.dtype, f"tensor {tensor.name}")
    return helper.make_tensor_value_info(tensor.name, code, list(tensor.shape) if tensor.known_shape else None)


def _initializer(tensor: Tensor) -> TensorProto:
    made = TensorProto(name=tensor.name, data_type=_code(tensor.dtype, f"tensor {tensor.name}"))
    made.dims.extend(int(dim) for dim in tensor.shape)
    assert tensor.data is not None
    if tensor.dtype == "string":
        made.string_data.extend(str(item).encode() for item in tensor.data.reshape(-1))
    else:
        made.raw_data = _packed(tensor.data, BITS[tensor.dtype])
    return made


def _packed(data: Array, bits: int) -> bytes:
    """Little-endian bytes; elements of 2 or 4 bits share a byte, the first in the lowest bits (ONNX)."""
    flat = np.ascontiguousarray(data).reshape(-1)
    if bits >= 8:
        plain = flat.astype(flat.dtype.newbyteorder("<")) if flat.dtype.kind in "iuf" else flat
        return plain.tobytes()
    each = 8 // bits
    codes = flat.view(np.uint8) & np.uint8((1 << bits) - 1)
    codes = np.pad(codes, (0, -len(codes) % each)).reshape(-1, each)
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    packed: Array = np.bitwise_or.reduce(codes << shifts, axis=1).astype(np.uint8)
    return packed.tobytes()
