"""What an installed runtime holds inside a model: the values that the drift localizer compares with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwq.alignment import unsigned_name
from hwq.errors import Error
from hwq.exporters.onnx import to_model
from hwq.graph import Array, Graph
from hwq.lowering import lower

__all__ = ["litert_values", "onnxruntime_values"]


def onnxruntime_values(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Everything that a QuantizeLinear makes, and the outputs, as onnxruntime's default session computes them here.

    Asking for a stored value changes what onnxruntime fuses (int8 values would not become uint8), so the graph that its
    optimization makes is written down first, and run once more as it is with every value an output. Values whose names it changed
    have those of our lowered graph, whose nodes follow the same order.

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
    levels = onnxruntime.GraphOptimizationLevel

    def session(model: bytes, level: object, write: str | None = None) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = level
        if write is not None:
            options.optimized_model_filepath = write
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    try:
        with tempfile.TemporaryDirectory() as folder:
            place = str(Path(folder) / "optimized.onnx")
            # Beyond this level only layouts of float convolutions change.
            session(to_model(graph).SerializeToString(), levels.ORT_ENABLE_EXTENDED, place)
            optimized = onnx.load(place)
        present = {output.name for output in optimized.graph.output}
        made = [name for node in optimized.graph.node for name in node.output if name and name not in present]
        optimized.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        names = [output.name for output in optimized.graph.output]
        values = session(optimized.SerializeToString(), levels.ORT_DISABLE_ALL).run(names, dict(feeds))
    except Exception as error:  # onnxruntime's own exception types are many
        raise Error("onnxruntime refuses the model", why=str(error)[:400]) from error
    ours = _names(optimized.graph, lower(graph, "ort"))
    found = {ours.get(name, name): np.asarray(value) for name, value in zip(names, values, strict=True)}
    stored = {node.outputs[0] for node in graph.nodes if node.op == "QuantizeLinear"}
    return {name: value for name, value in found.items() if unsigned_name(name) in stored or name in graph.outputs}


def _names(optimized: onnx.GraphProto, lowered: Graph) -> dict[str, str]:
    """Names in our lowered graph of values of onnxruntime's: a name that it kept, else what the next such node makes of the same values."""
    constants = {one.name for one in optimized.initializer}
    same: dict[str, str] = {name: name for name in lowered.inputs}
    kept = {name for node in optimized.node for name in node.output} & set(lowered.producers)
    left = [node for node in lowered.nodes if not kept & set(node.outputs)]
    for theirs in optimized.node:
        same.update({name: name for name in kept & set(theirs.output)})
        op = theirs.op_type.removeprefix("QLinear").removeprefix("QG").lower()
        read = [same.get(name, "") for name in theirs.input if name and name not in constants]
        for node in left if theirs.output[0] not in kept else []:
            mine = [name for name in node.inputs if name and not lowered.tensors[name].constant]
            if mine == read and node.op.lower().endswith(op):
                same.update(zip(theirs.output, node.outputs, strict=False))
                left.remove(node)
                break
    return same


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
            if detail["dtype"] is np.object_:  # a variable's handle: LiteRT 2.3.0 crashes when asked for its value
                continue
            try:
                found[detail["name"]] = np.array(interpreter.get_tensor(detail["index"]))
            except ValueError:  # a tensor without memory of its own
                continue
        return found
    except (RuntimeError, ValueError) as error:
        raise Error("LiteRT refuses the model or its data", where=str(path), why=str(error)[:400]) from error
