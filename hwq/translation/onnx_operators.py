"""TFLite's arithmetic in ONNX's words: products, sums, reductions and functions of one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.graph import Node
from hwq.translation.onnx_assembly import Held, OnnxAssembly
from hwq.translation.onnx_movers import reshaped, same_pair, target_of
from hwq.translation.onnx_windows import bias, filters

__all__ = ["OPERATORS"]

Rule = Callable[[OnnxAssembly, Node], None]
UNARY = {
    "RELU": "Relu", "LOGISTIC": "Sigmoid", "TANH": "Tanh", "HARD_SWISH": "HardSwish", "ELU": "Elu", "EXP": "Exp", "LOG": "Log", "SQRT": "Sqrt",
    "ABS": "Abs", "NEG": "Neg", "CEIL": "Ceil", "FLOOR": "Floor", "ROUND": "Round", "SIN": "Sin", "COS": "Cos", "SIGN": "Sign",
    "LOGICAL_NOT": "Not",
}  # fmt: skip
CLAMPS = ("RELU6", "RELU_N1_TO_1", "RELU_0_TO_1")
BINARY = {
    "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MAXIMUM": "Max", "MINIMUM": "Min", "POW": "Pow", "LESS": "Less",
    "LESS_EQUAL": "LessOrEqual", "GREATER": "Greater", "GREATER_EQUAL": "GreaterOrEqual", "EQUAL": "Equal", "LOGICAL_AND": "And", "LOGICAL_OR": "Or",
}  # fmt: skip
REDUCTIONS = {"MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin", "REDUCE_PROD": "ReduceProd"}  # fmt: skip


def _layout(assembly: OnnxAssembly, *names: str) -> bool:
    """Whether images come with their channels second: one does, and every other value can."""
    shapes = [assembly.source.tensors[name].shape for name in names]
    return all(len(shape) == 4 for shape in shapes) and any(assembly.has(name, True) for name in names)


def _unary(op: str, **attributes: Any) -> Rule:
    def write(assembly: OnnxAssembly, node: Node) -> None:
        second = _layout(assembly, node.inputs[0])
        assembly.emit(node, op, [assembly.value(node.inputs[0], node, second)], second=second, **attributes)

    return write


def _clamp(assembly: OnnxAssembly, node: Node) -> None:
    second = _layout(assembly, node.inputs[0])
    op, bounds, _ = assembly.activation(node, node.op)
    assembly.emit(node, op, [assembly.value(node.inputs[0], node, second), *bounds], second=second)


def _leaky(assembly: OnnxAssembly, node: Node) -> None:
    _unary("LeakyRelu", alpha=float(node.attributes.get("alpha", 0.0)))(assembly, node)


def _gelu(assembly: OnnxAssembly, node: Node) -> None:
    x = assembly.value(node.inputs[0], node)
    assembly.emit(node, "Gelu", [x], approximate="tanh" if node.attributes.get("approximate") else "none")


def _prelu(assembly: OnnxAssembly, node: Node) -> None:
    x, slope = node.inputs[:2]
    assembly.emit(node, "PRelu", [assembly.value(x, node), assembly.value(slope, node)])


def _binary(op: str) -> Rule:
    def write(assembly: OnnxAssembly, node: Node) -> None:
        second = _layout(assembly, *node.inputs[:2])
        assembly.emit(node, op, [assembly.value(name, node, second) for name in node.inputs[:2]], second=second)

    return write


def _different(assembly: OnnxAssembly, node: Node) -> None:
    """NOT_EQUAL."""
    same = assembly.step(node, "Equal", [assembly.value(name, node) for name in node.inputs[:2]], "bool")
    assembly.emit(node, "Not", [same])


def _square(assembly: OnnxAssembly, node: Node) -> None:
    """SQUARE and SQUARED_DIFFERENCE."""
    real = [assembly.value(name, node) for name in node.inputs]
    given = real[0] if len(real) == 1 else assembly.step(node, "Sub", real)
    assembly.emit(node, "Mul", [given, given])


def _inverse_root(assembly: OnnxAssembly, node: Node) -> None:
    root = assembly.step(node, "Sqrt", [assembly.value(node.inputs[0], node)])
    assembly.emit(node, "Reciprocal", [root])


def _softmax(assembly: OnnxAssembly, node: Node) -> None:
    x, beta = assembly.value(node.inputs[0], node), float(node.attributes.get("beta", 1.0))
    if node.op == "SOFTMAX" and beta != 1.0:
        x = assembly.step(node, "Mul", [x, assembly.constant(np.float32(beta), f"{node.outputs[0]}_beta")])
    assembly.emit(node, "LogSoftmax" if node.op == "LOG_SOFTMAX" else "Softmax", [x], axis=-1)


def _reduction(assembly: OnnxAssembly, node: Node) -> None:
    found = assembly.source.constant(node.inputs[1])
    shape = assembly.source.tensors[node.inputs[0]].shape
    if found is None:
        raise assembly.refuse(node, "its axes must be constants")
    axes, keep = sorted({int(axis) % len(shape) for axis in found.reshape(-1)}), bool(node.attributes.get("keep_dims"))
    if node.op == "MEAN" and len(shape) == 4 and axes == [1, 2]:
        # onnxruntime has an integer kernel for this mean alone.
        _global_mean(assembly, node, keep)
        return
    held = assembly.take(node.inputs[0], node)
    places = assembly.constant(np.asarray(axes, np.int64), f"{node.outputs[0]}_axes")
    pair = held.pair if node.op in {"REDUCE_MAX", "REDUCE_MIN"} else None
    assembly.emit(node, REDUCTIONS[node.op], [assembly.real(held, node), places], pair=pair, keepdims=int(keep))


def _global_mean(assembly: OnnxAssembly, node: Node, keep: bool) -> None:
    x = assembly.value(node.inputs[0], node, True)
    if keep:
        assembly.emit(node, "GlobalAveragePool", [x], second=True)
        return
    mean = assembly.step(node, "GlobalAveragePool", [x])
    name = node.outputs[0]
    held = assembly.quantized(node, mean, assembly.pair_of(name), assembly.fresh(f"{name}:mean"))
    target = target_of(assembly, node, assembly.source.tensors[name].shape)
    assembly.emit(node, "Reshape", [assembly.real(held, node), target], pair=held.pair)


def _dense(assembly: OnnxAssembly, node: Node) -> None:
    """FULLY_CONNECTED: Gemm over rows of the operand."""
    x, w, *rest = node.inputs
    tensor, weights, made = (assembly.source.tensors[name] for name in (x, w, node.outputs[0]))
    if node.attributes.get("weights_format", "DEFAULT") != "DEFAULT" or len(weights.shape) != 2:
        raise assembly.refuse(node, "its weights are stored shuffled")
    if not tensor.known_shape or not made.known_shape:
        raise assembly.refuse(node, "its operand's shape is computed")
    held = assembly.take(x, node)
    depth = int(weights.shape[1])
    if len(tensor.shape) != 2 or tensor.shape[1] != depth:
        held = reshaped(assembly, node, held, ("rows", depth), f"{node.outputs[0]}:rows")
    inputs = [assembly.real(held, node), assembly.value(w, node) if weights.data is None else filters(assembly, node, w, None)]  # fmt: skip
    if rest and rest[0]:
        inputs.append(bias(assembly, node, rest[0], x, w))
    if len(made.shape) == 2:
        assembly.emit(node, "Gemm", inputs, transB=1)
        return
    activation = str(node.attributes.get("activation", "NONE"))
    product = assembly.step(node, "Gemm", inputs, transB=1)
    if activation != "NONE":
        op, operands, _ = assembly.activation(node, activation)
        product = assembly.step(node, op, [product, *operands])
    flat = assembly.quantized(node, product, made.quantization, assembly.fresh(f"{node.outputs[0]}:flat"))
    bare = Node(node.op, node.name, node.inputs, node.outputs, {}, node.domain)
    assembly.emit(bare, "Reshape", [assembly.real(flat, node), target_of(assembly, node, made.shape)], pair=flat.pair)


def _product(assembly: OnnxAssembly, node: Node) -> None:
    """BATCH_MATMUL."""
    operands: list[Held] = []
    for name, flag in zip(node.inputs, ("transpose_first", "transpose_second"), strict=False):
        held = assembly.take(name, node)
        if node.attributes.get(flag):
            rank = len(assembly.source.tensors[name].shape)
            held = assembly.turned(held, (*range(rank - 2), rank - 1, rank - 2), node, f"{name}:turned")
        operands.append(held)
    assembly.emit(node, "MatMul", [assembly.real(held, node) for held in operands])


def _quantize(assembly: OnnxAssembly, node: Node) -> None:
    second = _layout(assembly, node.inputs[0])
    held, made = assembly.take(node.inputs[0], node, second), Held("", assembly.pair_of(node.outputs[0]))
    if made.pair is None:
        raise assembly.refuse(node, "its result has no scale")
    if held.pair is not None and same_pair(held, made):
        assembly.emit(node, "Identity", [assembly.real(held, node)], second=second)
        return
    name = node.outputs[0]
    assembly.held[name, second] = assembly.quantized(node, assembly.real(held, node), made.pair, assembly.named(name, second))  # fmt: skip


def _dequantize(assembly: OnnxAssembly, node: Node) -> None:
    second = _layout(assembly, node.inputs[0])
    held = assembly.take(node.inputs[0], node, second)
    if held.pair is None:  # float16 constants
        assembly.emit(node, "Cast", [held.name], second=second, to="float32")
        return
    assembly.emit(node, "Identity", [assembly.real(held, node)], second=second)


def _cast(assembly: OnnxAssembly, node: Node) -> None:
    held = assembly.take(node.inputs[0], node)
    assembly.emit(node, "Cast", [held.name], to=assembly.source.tensors[node.outputs[0]].dtype)


def _select(assembly: OnnxAssembly, node: Node) -> None:
    condition, first, second = node.inputs
    shapes = [assembly.source.tensors[name].shape for name in (condition, first)]
    if node.op == "SELECT" and shapes[0] != shapes[1] and len(shapes[0]) == 1:
        raise assembly.refuse(node, "ONNX's Where picks elements, not samples")
    given = [assembly.value(name, node) for name in (first, second)]
    assembly.emit(node, "Where", [assembly.take(condition, node).name, *given])


def _place(op: str) -> Rule:
    def write(assembly: OnnxAssembly, node: Node) -> None:
        axis = assembly.source.constant(node.inputs[1])
        if axis is None:
            raise assembly.refuse(node, "its axis must be a constant")
        given = assembly.value(node.inputs[0], node)
        dtype, attributes = assembly.source.tensors[node.outputs[0]].dtype, {"axis": int(axis.reshape(-1)[0]), "keepdims": 0}  # fmt: skip
        found = assembly.step(node, op, [given], "int64", **attributes)
        assembly.emit(node, "Cast", [found], to=dtype)

    return write


OPERATORS: Mapping[str, Rule] = MappingProxyType(
    {
        **{name: _unary(op) for name, op in UNARY.items()},
        **dict.fromkeys(CLAMPS, _clamp),
        **{name: _binary(op) for name, op in BINARY.items()},
        **dict.fromkeys(REDUCTIONS, _reduction),
        **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX"), _softmax),
        **dict.fromkeys(("SQUARE", "SQUARED_DIFFERENCE"), _square),
        **dict.fromkeys(("SELECT", "SELECT_V2"), _select),
        "NOT_EQUAL": _different,
        "RSQRT": _inverse_root,
        "LEAKY_RELU": _leaky,
        "GELU": _gelu,
        "PRELU": _prelu,
        "FULLY_CONNECTED": _dense,
        "BATCH_MATMUL": _product,
        "QUANTIZE": _quantize,
        "DEQUANTIZE": _dequantize,
        "CAST": _cast,
        "ARG_MAX": _place("ArgMax"),
        "ARG_MIN": _place("ArgMin"),
    }
)
