"""Other runtimes as contenders of the kernel benchmark: one product each, weights prepared beforehand, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hwq.kernels.operands import Array

__all__ = ["litert", "numpy_float", "onnxruntime_products"]

Run = Callable[[], Array]


def onnxruntime_products(a: Array, w: Array, scales: Array) -> Iterator[tuple[str, Run, int]]:
    """(name, call, zero point that its output and activations have beyond int8's) of QLinearMatMul, by signedness of weights.

    int8 activations are taken as uint8 with zero point 128, which is what its fast kernels want.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    (m, k), n = a.shape, w.shape[1]
    unsigned = (a.view(np.uint8) ^ 0x80) if a.dtype == np.int8 else a
    zero = np.uint8(128 if a.dtype == np.int8 else 0)
    for label, weights, weight_zero, x64 in (
        ("onnxruntime u8u8", w.view(np.uint8) ^ 0x80, np.full(n, 128, np.uint8), "0"),
        ("onnxruntime u8s8 x64quantprecision", w, np.zeros(n, np.int8), "1"),
        ("onnxruntime u8s8", w, np.zeros(n, np.int8), "0"),
    ):
        constants = {
            "sa": np.float32(1), "za": zero, "w": weights, "sw": scales, "zw": weight_zero, "sy": np.float32(1), "zy": np.uint8(128),
        }  # fmt: skip
        graph = helper.make_graph(
            [helper.make_node("QLinearMatMul", ["a", "sa", "za", "w", "sw", "zw", "sy", "zy"], ["y"])],
            "one",
            [helper.make_tensor_value_info("a", TensorProto.UINT8, [m, k])],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, [m, n])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.x64quantprecision", x64)
        session = onnxruntime.InferenceSession(
            onnx.ModelProto.SerializeToString(model), options, providers=["CPUExecutionProvider"]
        )
        binding, out = session.io_binding(), np.empty((m, n), np.uint8)
        binding.bind_cpu_input("a", np.ascontiguousarray(unsigned))
        binding.bind_output("y", "cpu", 0, np.uint8, (m, n), out.ctypes.data)

        def call(session: Any = session, binding: Any = binding, out: Array = out) -> Array:
            session.run_with_iobinding(binding)
            return out

        yield label, call, 128


def onnxruntime_bits(a: Array, w: Array, scales: Array, group: int) -> Run:
    """MatMulNBits: float activations, 4-bit weights with one scale a group (`scales`: groups x N), accuracy level 4 (int8 inside)."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    (m, k), n = a.shape, w.shape[1]
    stored = (w.T + 8).astype(np.uint8).reshape(n, k // group, group)
    packed = np.ascontiguousarray(stored[..., 0::2] | stored[..., 1::2] << 4)
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMulNBits",
                ["a", "w", "s"],
                ["y"],
                domain="com.microsoft",
                K=k,
                N=n,
                bits=4,
                block_size=group,
                accuracy_level=4,
            )
        ],
        "one",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
        [
            numpy_helper.from_array(packed, "w"),
            numpy_helper.from_array(np.ascontiguousarray(scales.T).reshape(-1), "s"),
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)], ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding, out = session.io_binding(), np.empty((m, n), np.float32)
    binding.bind_cpu_input("a", np.ascontiguousarray(a))
    binding.bind_output("y", "cpu", 0, np.float32, (m, n), out.ctypes.data)

    def call() -> Array:
        session.run_with_iobinding(binding)
        return out

    return call


def litert(a: Array, w: Array, scales: Array) -> Run:
    """FULLY_CONNECTED in int8 with one scale a channel, by XNNPACK; a one-operator file made through the schema."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    (m, k), n = a.shape, w.shape[1]
    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    model.version, model.buffers, graph.tensors = 3, [schema.BufferT()], []
    for name, shape, kind, data, scale, zero in (
        ("a", (m, k), 9, None, np.ones(1, np.float32), 0),
        ("w", (n, k), 9, np.ascontiguousarray(w.T), scales, 0),
        ("b", (n,), 2, np.zeros(n, np.int32), scales, 0),
        ("y", (m, n), 9, None, np.ones(1, np.float32), 0),
    ):
        tensor, buffer = schema.TensorT(), schema.BufferT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), kind, 0
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.broadcast_to(scale, n if name in "wb" else 1).astype(np.float32)
        tensor.quantization.zeroPoint = np.full(tensor.quantization.scale.size, zero, np.int64)
        if data is not None:
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4
    operator.inputs, operator.outputs, operator.opcodeIndex = [0, 1, 2], [3], 0
    operator.builtinOptions, operator.builtinOptionsType = (
        schema.FullyConnectedOptionsT(),
        schema.BuiltinOptions.FullyConnectedOptions,
    )
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [3]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.set_tensor(source, a)

    def call() -> Array:
        interpreter.invoke()
        return np.asarray(interpreter.tensor(target)())

    return call


def numpy_float(a: Array, w: Array) -> Run:
    """NumPy's float32 product on the same values: the speed that integers must beat."""
    left, right, out = a.astype(np.float32), w.astype(np.float32), np.empty((a.shape[0], w.shape[1]), np.float32)
    return lambda: np.matmul(left, right, out=out)
