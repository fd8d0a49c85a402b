"""ONNX operators in TFLite's words. An entry of `OPERATORS` returns False where TFLite has no such integer kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.graph import Array, Node
from hwq.translation.assembly import Assembly, Held, refuse
from hwq.translation.tflite_movers import MOVERS
from hwq.translation.tflite_windows import average_pool, convolve, global_average, max_pool

__all__ = ["MOVERS", "OPERATORS"]

# (assembly, node, the value to make, fused activation, its name) -> whether it was made.
Maker = Callable[[Assembly, Node, Held, str, str], bool]
# Results whose quantization TFLite prescribes, for int8 (uint8: 128 more).
FIXED = {"Softmax": (1 / 256, -128), "Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0)}


def operand(assembly: Assembly, value: str, made: Held, node: Node) -> Held | None:
    """An operand in the result's domain: stored of the same type, or float; None where it is not."""
    if made.quantization is None:
        return assembly.float(value, node)
    held = assembly.integer(value)
    return held if held is not None and held.dtype == made.dtype else None


def last_only(held: Held) -> bool:
    """Whether a value exists with its channels last alone."""
    return bool(held.names) and False not in held.names


def _products_bias(assembly: Assembly, node: Node, value: str, scales: Array | None, wide: bool) -> str:
    from hwq.translation.tflite_windows import bias

    return bias(assembly, node, value, scales, wide)


def _linear(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
    """Gemm and MatMul with constant weights: FULLY_CONNECTED; of two values: BATCH_MATMUL."""
    from hwq.translation.tflite_windows import weights

    get = node.attributes.get
    if node.op == "Gemm" and (get("transA", 0) or float(get("alpha", 1.0)) != 1 or float(get("beta", 1.0)) != 1):
        raise refuse(node, "TFLite has no product with transA, alpha or beta")
    x = operand(assembly, node.inputs[0], made, node)
    if x is None:
        return False
    found = assembly.constant_of(node.inputs[1])
    if found is None or found[0].ndim != 2:
        if node.op == "Gemm" or len(node.inputs) > 2:
            raise refuse(node, "TFLite's FULLY_CONNECTED takes constant weights here")
        y = operand(assembly, node.inputs[1], made, node)
        if y is None or activation != "NONE":
            return False
        sides = [assembly.take(x), assembly.take(y)]
        assembly.node("BATCH_MATMUL", sides, [assembly.make(made, name)], node, transpose_first=False, transpose_second=False,
                      asymmetric_inputs=False, to=made.dtype)  # fmt: skip
        return True
    turned = not get("transB", 0)
    filters, scales = weights(assembly, node, made, (1, 0) if turned else (0, 1))
    inputs = [assembly.take(x), filters]
    if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2]:
        step = None if scales is None else x.scale * scales
        inputs.append(_products_bias(assembly, node, node.inputs[2], step, made.dtype == "int16"))
    assembly.node("FULLY_CONNECTED", inputs, [assembly.make(made, name)], node, activation=activation, weights_format="DEFAULT",
                  keep_dims=len(x.shape) != 2, asymmetric_inputs=False, bias_type="float32", to=made.dtype)  # fmt: skip
    return True


def _binary(op: str) -> Maker:
    def make(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
        if op == "DIV" and made.quantization is not None:
            return False
        sides = [operand(assembly, value, made, node) for value in node.inputs]
        if any(side is None for side in sides):
            return False
        given = [side for side in sides if side is not None]
        last = len(made.shape) == 4 and all(
            len(side.shape) == 4 and (side.data is not None or True in side.names) for side in given
        )
        last = last and any(True in side.names for side in given)
        inputs = [assembly.take(side, last) for side in given]
        extra: dict[str, Any] = {"power_of_two_scale": False} if op in {"ADD", "SUB"} else {}
        assembly.node(op, inputs, [assembly.make(made, name, last)], node, activation=activation, **extra)
        return True

    return make


def _unary(op: str, **attributes: Any) -> Maker:
    def make(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
        if activation != "NONE":
            return False
        given = operand(assembly, node.inputs[0], made, node)
        if given is None or (made.quantization is not None and not _allowed(node, given, made)):
            return False
        last = last_only(given)
        more = dict(attributes)
        if op == "LEAKY_RELU":
            more["alpha"] = float(np.float32(node.attributes.get("alpha", 0.01)))
        if op == "GELU":
            more["approximate"] = node.attributes.get("approximate", "none") == "tanh"
        if op == "ELU" and float(node.attributes.get("alpha", 1.0)) != 1.0:
            raise refuse(node, "TFLite's ELU has no alpha")
        assembly.node(op, [assembly.take(given, last)], [assembly.make(made, name, last)], node, **more)
        return True

    return make


def _allowed(node: Node, given: Held, made: Held) -> bool:
    assert made.quantization is not None
    scale, zero = float(made.scale), int(made.quantization.zero_points().reshape(()))
    if node.op in FIXED:
        fixed, point = FIXED[node.op]
        return made.dtype != "int16" and scale == fixed and zero == point + (128 if made.dtype == "uint8" else 0)
    if node.op == "HardSwish":
        return made.dtype != "int16" and float(given.scale) / 128 <= scale
    return not (node.op in {"Elu", "Gelu"} and made.dtype == "int16") and not (
        node.op == "Elu" and made.dtype == "uint8"
    )


def _softmax(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
    given = operand(assembly, node.inputs[0], made, node)
    if given is None or (made.quantization is not None and not _allowed(node, given, made)):
        return False
    rank = len(given.shape)
    axis = int(node.attributes.get("axis", -1)) % max(rank, 1)
    if axis != rank - 1 and not (rank == 4 and axis == 1):
        raise refuse(node, "TFLite's SOFTMAX runs over the last axis only")
    last = rank == 4 and axis == 1
    assembly.node(
        "SOFTMAX", [assembly.take(given, last)], [assembly.make(made, name, last)], node, beta=1.0, to=made.dtype
    )
    return True


def _clip(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
    from hwq.translation.tflite import clip_name

    op = clip_name(assembly, node)
    if op is None:
        raise refuse(node, "TFLite clips to [0, 6], [-1, 1] and from 0 on only")
    return _unary(op)(assembly, node, made, activation, name)


def _mean(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
    given = operand(assembly, node.inputs[0], made, node)
    if given is None or activation != "NONE":
        return False
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        found = assembly.source.constant(node.inputs[1])
        if found is None:
            raise refuse(node, "the axes must be constants")
        axes = [int(axis) for axis in found.reshape(-1)]
    rank = len(given.shape)
    chosen = sorted(range(rank) if axes is None else {int(axis) % rank for axis in axes})
    keep = bool(node.attributes.get("keepdims", 1))
    last = last_only(given) and chosen == [2, 3]
    op = {"ReduceMean": "MEAN", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN", "ReduceSum": "SUM"}[node.op]
    if op != "MEAN" and made.quantization is not None:
        return False
    inputs = [assembly.take(given, last), assembly.constant([1, 2] if last else chosen, "axes")]
    assembly.node(op, inputs, [assembly.make(made, name, last and keep)], node, keep_dims=keep)
    return True


OPERATORS: Mapping[str, Maker] = MappingProxyType(
    {
        "Conv": convolve,
        "Gemm": _linear,
        "MatMul": _linear,
        "Add": _binary("ADD"),
        "Sub": _binary("SUB"),
        "Mul": _binary("MUL"),
        "Div": _binary("DIV"),
        "AveragePool": average_pool,
        "GlobalAveragePool": global_average,
        "MaxPool": max_pool,
        "ReduceMean": _mean,
        "Softmax": _softmax,
        "Sigmoid": _unary("LOGISTIC"),
        "Tanh": _unary("TANH"),
        "Relu": _unary("RELU"),
        "Clip": _clip,
        "LeakyRelu": _unary("LEAKY_RELU"),
        "HardSwish": _unary("HARD_SWISH"),
        "Elu": _unary("ELU"),
        "Gelu": _unary("GELU"),
    }
)
