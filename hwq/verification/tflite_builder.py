"""Builds TFLite files with one or a few operators, through the schema's own object API."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    "float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int16": 7, "int8": 9, "resource": 13, "int4": 17,
}  # fmt: skip
ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3, "TANH": 4}
# Operators whose first version the runtime no longer has.
VERSIONS = {"BROADCAST_TO": 2}
PADDING = {"SAME": 0, "VALID": 1}


def packed(values: np.ndarray) -> bytes:
    """Two 4-bit elements a byte, the first in the low half."""
    nibbles = (values.astype(np.int16).reshape(-1) & 15).astype(np.uint8)
    nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
    return (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()


class Builder:
    """Collects the tensors and operators of one subgraph."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "hwq verification model"
        self.model.operatorCodes = []
        self.empty = schema.BufferT()
        self.model.buffers = [self.empty]
        self.model.subgraphs = []
        self.graph = self.subgraph("main")

    def subgraph(self, name: str) -> Any:
        """Add a subgraph; tensors and operators go to the one that `graph` names."""
        made = schema.SubGraphT()
        made.name = name
        made.tensors, made.operators, made.inputs, made.outputs = [], [], [], []
        self.model.subgraphs.append(made)
        return made

    def variable(self, name: str) -> int:
        """A handle of the variable `name`, made in the current subgraph."""
        handle = self.tensor("resource", [])
        self.operator("VAR_HANDLE", [], [handle], options("VarHandle", container="", sharedName=name))
        return handle

    def tensor(
        self,
        dtype: str,
        shape: Any,
        data: Any = None,
        scale: Any = None,
        zero: Any = 0,
        axis: int = 0,
        name: str | None = None,
        variable: bool = False,
    ) -> int:
        """Add a tensor and return its index."""
        made = schema.TensorT()
        made.name = name or f"t{len(self.graph.tensors)}"
        made.shape = [int(dim) for dim in shape]
        made.type = TYPES[dtype]
        made.isVariable = variable
        made.buffer = 0
        if data is not None:
            buffer = schema.BufferT()
            raw = packed(np.asarray(data)) if dtype == "int4" else np.asarray(data, dtype).tobytes()
            buffer.data = np.frombuffer(raw, np.uint8)
            self.model.buffers.append(buffer)
            made.buffer = len(self.model.buffers) - 1
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            made.quantization.scale = scales
            made.quantization.zeroPoint = np.broadcast_to(np.asarray(zero, np.int64), scales.shape).copy()
            made.quantization.quantizedDimension = axis
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(self, data: Any, dtype: str = "int32") -> int:
        """Add a plain constant."""
        values = np.asarray(data, dtype)
        return self.tensor(dtype, values.shape, values)

    def operator(
        self,
        name: str,
        inputs: list[int],
        outputs: list[int],
        options: Any = None,
        intermediates: list[int] | None = None,
    ) -> None:
        """Add an operator."""
        number = getattr(schema.BuiltinOperator, name)
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
        code.version = VERSIONS.get(name, 1)
        self.model.operatorCodes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = len(self.model.operatorCodes) - 1
        made.inputs, made.outputs = inputs, outputs
        if intermediates:
            made.intermediates = intermediates
        if options is not None:
            made.builtinOptions = options
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        self.graph.operators.append(made)

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        """The file."""
        self.graph.inputs, self.graph.outputs = inputs, outputs
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def options(name: str, **values: Any) -> Any:
    """An options object with fields set; words become the schema's numbers."""
    made = getattr(schema, f"{name}OptionsT")()
    for key, value in values.items():
        if not hasattr(made, key):
            raise AttributeError(f"{name} has no {key}")
        if key == "padding":
            value = PADDING[value]
        elif key == "fusedActivationFunction":
            value = ACTIVATIONS[value]
        setattr(made, key, value)
    return made
