"""What a dialect's runtime can represent: checked before anything is packed."""

from __future__ import annotations

import numpy as np

from hwq.dialect import Dialect
from hwq.errors import Error
from hwq.graph import Graph, Tensor

__all__ = ["require_representable"]


def require_representable(graph: Graph, dialect: Dialect) -> None:
    """Raise unless every value is known and the runtime has a form for every quantized tensor.

    Raises
    ------
    Error
        A scale is unset, a weight has no values, or the dialect forbids a type, a zero point or a value.
    """
    foreign = next(
        (node for node in graph.nodes if (node.domain == "tflite") != dialect.name.startswith("litert")), None
    )
    if foreign is not None:
        raise Error(
            f"dialect {dialect.name} cannot represent this operator",
            where=f"node {foreign.name} ({foreign.kind})",
            why="it is TFLite's own" if foreign.domain == "tflite" else "that runtime executes TFLite models only",
            remedy="convert the float model to ONNX first: this operator has no counterpart among those that plans quantize"
            if dialect.name == graph.dialect
            else f"run it in dialect {graph.dialect}",
        )
    made = graph.producers
    read = {value for node in graph.nodes for value in node.inputs if value}
    for name in (*read, *graph.outputs):
        tensor = graph.tensors[name]
        if tensor.quantization is not None and tensor.quantization.scale is None and not _integers(graph, name):
            raise Error(
                "this tensor's scale is unset",
                where=f"tensor {name}",
                why="the graph was planned for cost only",
                remedy="quantize it with a Calibration",
            )
        if name not in made and name not in graph.inputs and tensor.data is None:
            raise Error(
                "this weight has no values",
                where=f"tensor {name}",
                why="the graph was built for cost only",
                remedy="load the model with its weights",
            )
    onnx = dialect.name.startswith(("ort", "onnx"))
    for name in sorted(read):
        quantization = graph.tensors[name].quantization
        if quantization is None or graph.form == "lowered":
            continue
        if onnx and not _by_nodes(graph, name):
            raise Error(
                f"dialect {dialect.name} cannot represent this tensor",
                where=f"tensor {name}",
                why=f"it is quantized without Q and DQ nodes, as in dialect {graph.dialect}",
                remedy=f"run it in dialect {graph.dialect}, or quantize the float model for {dialect.name}",
            )
        if not dialect.name.startswith("litert"):  # LiteRT computes with what a file holds, allowed or not
            _require_allowed(graph.tensors[name], dialect)


def _integers(graph: Graph, name: str) -> bool:
    """Whether only MatMulInteger and its kin read the tensor: they need no scale."""
    readers = graph.consumers.get(name, ())
    return bool(readers) and all(node.op.endswith("Integer") for node in readers)


def _by_nodes(graph: Graph, name: str) -> bool:
    """Whether Q, DQ or integer operators say how the tensor is stored."""
    maker = graph.producers.get(name)
    around = [*graph.consumers.get(name, ()), *([maker] if maker is not None else [])]
    return any("Linear" in node.op or "Integer" in node.op or node.domain == "com.microsoft" for node in around)


def _require_allowed(tensor: Tensor, dialect: Dialect) -> None:
    quantization = tensor.quantization
    assert quantization is not None
    if not quantization.known:
        return
    if tensor.constant and dialect.symmetric_weights and not quantization.symmetric and tensor.dtype != "int32":
        raise Error(
            f"dialect {dialect.name} forbids zero points of weights",
            where=f"tensor {tensor.name}",
            remedy="plan symmetric weights",
        )
    if not tensor.constant and dialect.symmetric_activations and not quantization.symmetric:
        raise Error(
            f"dialect {dialect.name} forbids zero points of activations",
            where=f"tensor {tensor.name}",
            remedy="plan symmetric activations",
        )
    if (
        tensor.data is not None
        and tensor.dtype == "int8"
        and tensor.data.size
        and int(np.min(tensor.data)) < dialect.weight_minimum
    ):
        raise Error(
            f"dialect {dialect.name} forbids weights below {dialect.weight_minimum}",
            where=f"tensor {tensor.name}",
            remedy=f"quantize for {dialect.name}",
        )
