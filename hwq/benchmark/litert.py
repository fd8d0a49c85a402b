"""LiteRT as a contender of the kernel benchmark: one-operator files made through its schema, run by XNNPACK as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq.kernels.operands import Array

__all__ = ["convolution", "product", "weight_only_product"]

Run = Callable[[], Array]


@dataclass(frozen=True)
class _Tensor:
    """What the file says of one tensor: `scales` of its last axis, or of the given one, or none."""

    shape: Sequence[int]
    kind: str
    scales: Array | None = None
    data: Array | None = None
    axis: int = 0


def product(a: Array, w: Array, scales: Array) -> Run:
    """FULLY_CONNECTED in int8 with one scale a channel."""
    (m, k), n = a.shape, w.shape[1]
    one = np.ones(1, np.float32)
    tensors = (
        _Tensor((m, k), "INT8", one),
        _Tensor((n, k), "INT8", scales, np.ascontiguousarray(w.T)),
        _Tensor((n,), "INT32", scales, np.zeros(n, np.int32)),
        _Tensor((m, n), "INT8", one),
    )
    return _interpreter("FULLY_CONNECTED", tensors, a)


def weight_only_product(a: Array, w: Array, scales: Array) -> Run:
    """FULLY_CONNECTED of floats with 4-bit weights of one scale a channel: it rounds each row of `a` to int8 first."""
    (m, k), n = a.shape, w.shape[1]
    stored = np.ascontiguousarray(w.T).reshape(-1)
    packed = (stored[0::2] & 15 | stored[1::2] << 4).astype(np.int8)
    tensors = (
        _Tensor((m, k), "FLOAT32"),
        _Tensor((n, k), "INT4", scales, packed),
        _Tensor((n,), "FLOAT32", None, np.zeros(n, np.float32)),
        _Tensor((m, n), "FLOAT32"),
    )
    return _interpreter("FULLY_CONNECTED", tensors, a)


def convolution(
    x: Array, w: Array, scales: Array, strides: Sequence[int], sides: Sequence[int], depthwise: bool
) -> Run:
    """CONV_2D or DEPTHWISE_CONV_2D with SAME padding; x is (N, H, W, C), w (O, kH, kW, C / groups)."""
    from ai_edge_litert import schema_py_generated as schema

    one, n = np.ones(1, np.float32), len(w)
    filters = np.ascontiguousarray(w.transpose(3, 1, 2, 0) if depthwise else w)
    tensors = (
        _Tensor(x.shape, "INT8", one),
        _Tensor(filters.shape, "INT8", scales, filters, 3 if depthwise else 0),
        _Tensor((n,), "INT32", scales, np.zeros(n, np.int32)),
        _Tensor((len(x), *sides, n), "INT8", one),
    )
    options: Any = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding, (options.strideH, options.strideW) = schema.Padding.SAME, strides
    if depthwise:
        options.depthMultiplier = 1
    return _interpreter("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", tensors, x, options)


def _interpreter(op: str, tensors: Sequence[_Tensor], given: Array, options: Any = None) -> Run:
    """Tensor 0 is the input, the last one the output."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    model.version, model.buffers, graph.tensors = 3, [schema.BufferT()], []
    for index, stated in enumerate(tensors):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = f"t{index}", list(stated.shape), 0
        tensor.type = getattr(schema.TensorType, stated.kind)
        if stated.scales is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.asarray(stated.scales, np.float32)
            tensor.quantization.zeroPoint = np.zeros(stated.scales.size, np.int64)
            tensor.quantization.quantizedDimension = stated.axis
        if stated.data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(stated.data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, op)
    code.version = 6
    last = len(tensors) - 1
    operator.inputs, operator.outputs, operator.opcodeIndex = list(range(last)), [last], 0
    operator.builtinOptions = options or schema.FullyConnectedOptionsT()
    operator.builtinOptionsType = getattr(
        schema.BuiltinOptions, type(operator.builtinOptions).__name__.removesuffix("T")
    )
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [last]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.set_tensor(source, given)

    def call() -> Array:
        interpreter.invoke()
        return np.asarray(interpreter.tensor(target)())

    return call
