"""What an installed runtime holds inside a model: the values that the drift localizer compares with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from hwq.errors import Error
from hwq.exporters.onnx import to_model
from hwq.graph import Array, Graph

__all__ = ["litert_values", "onnxruntime_values"]


def onnxruntime_values(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Everything that a QuantizeLinear makes, and the outputs, as onnxruntime's default session computes them here.

    The stored values become outputs of the model; between Q and DQ this takes no fusion away.

    Raises
    ------
    Error
        onnxruntime is not installed, or refuses the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise Error(
            "onnxruntime is not installed", why="the model is compared with it", remedy="pip install onnxruntime"
        ) from error
    model = to_model(graph)
    present = {output.name for output in model.graph.output}
    for node in graph.nodes:
        if node.op == "QuantizeLinear" and node.outputs[0] not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=node.outputs[0]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    names = [output.name for output in model.graph.output]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = session.run(None, dict(feeds))
    except Exception as error:  # onnxruntime's own exception types are many
        raise Error("onnxruntime refuses the model", why=str(error)[:400]) from error
    return {name: np.asarray(value) for name, value in zip(names, made, strict=True)}


def litert_values(path: str | Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor of a TFLite file, as LiteRT's reference kernels compute it.

    Raises
    ------
    Error
        LiteRT is not installed, the file is none of its own, or the data do not fit.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise Error(
            "LiteRT is not installed", why="the model is compared with it", remedy="pip install ai-edge-litert"
        ) from error
    try:
        interpreter = Interpreter(
            model_path=str(path),
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
        )
        given = list(feeds.values())
        details = interpreter.get_input_details()
        for detail, value in zip(details, given, strict=True):
            interpreter.resize_tensor_input(detail["index"], value.shape)
        interpreter.allocate_tensors()
        for detail, value in zip(details, given, strict=True):
            interpreter.set_tensor(detail["index"], np.ascontiguousarray(value))
        interpreter.invoke()
        found: dict[str, Array] = {}
        for detail in interpreter.get_tensor_details():
            try:
                found[detail["name"]] = np.array(interpreter.get_tensor(detail["index"]))
            except ValueError:  # a tensor without memory of its own
                continue
        return found
    except (RuntimeError, ValueError) as error:
        raise Error("LiteRT refuses the model or its data", where=str(path), why=str(error)[:400]) from error
