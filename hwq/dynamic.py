"""A matrix operator whose operand is quantized at run time, in ONNX's own operators.

    q, s, z = DynamicQuantizeLinear(x);  acc = MatMulInteger or ConvInteger(q, w, z);  y = float32(acc) * (s * s_w) + b

The scale covers the whole tensor, so with more than one sample a batch the result of each depends on the others: that is
ONNX's operator, and onnxruntime's. A batch of one is the usual use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwq.graph import Array, Graph, Node, Quantization, Tensor
from hwq.placement import Constant

__all__ = ["DynamicLayer", "dynamic_layer"]


@dataclass(frozen=True)
class DynamicLayer:
    """The nodes in the place of one, and the tensors that they make and read."""

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]


def dynamic_layer(
    graph: Graph,
    node: Node,
    constant: Constant,
    values: tuple[Array, Array, Array] | None,
    operand: str,
    fresh: Callable[[str], str],
) -> DynamicLayer:
    """Write `node` (Conv, Gemm or MatMul) with its first operand quantized at run time.

    Parameters
    ----------
    graph : Graph
        Float, that holds the node.
    constant : Constant
        Its weight: int8 or uint8, symmetric, per tensor or channel.
    values : (scale, zero point, stored integers) or None
        None for cost only.
    operand : str
        The float value that the node reads.
    fresh : callable
        Gives names that are not taken.
    """
    nodes: list[Node] = []
    tensors: list[Tensor] = []

    def value(
        name: str, dtype: str, shape: tuple[int | str, ...], data: Array | None = None, known: bool = True
    ) -> str:
        tensors.append(Tensor(fresh(name), dtype, shape, data, known_shape=known))
        return tensors[-1].name

    def add(op: str, label: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: object) -> None:
        nodes.append(
            Node(op, fresh(label), inputs, outputs, attributes, layout=node.layout if op == "ConvInteger" else "")
        )

    x, weight, result = graph.tensors[node.inputs[0]], graph.tensors[constant.tensor], graph.tensors[node.outputs[0]]
    turned = node.op == "Gemm" and bool(node.attributes.get("transB", 0))
    base = node.name
    stored = value(f"{operand}_dynamic", "uint8", x.shape, known=x.known_shape)
    scale, zero = value(f"{operand}_dynamic_scale", "float32", ()), value(f"{operand}_dynamic_zero_point", "uint8", ())
    add("DynamicQuantizeLinear", f"{base}_DynamicQuantizeLinear", (operand,), (stored, scale, zero))
    shape = weight.shape[::-1] if turned else weight.shape
    integers = None if values is None else np.ascontiguousarray(values[2].T if turned else values[2])
    planned = Quantization(
        constant.weights.dtype,
        None if values is None else values[0],
        None if values is None else values[1],
        None if constant.axis is None else (1 if turned else constant.axis),
    )
    kept = fresh(f"{weight.name}_quantized")
    tensors.append(Tensor(kept, constant.weights.dtype, shape, integers, planned))
    # Over channels: a column of a product stands last, a channel of a convolution's result second (NCHW) or last.
    trailing = len(weight.shape) - 2 if node.op == "Conv" and node.layout != "NHWC" else 0
    across = (int(shape[0]) if node.op == "Conv" else int(shape[-1]), *(1,) * trailing)
    steps_shape = () if constant.axis is None else across
    steps = value(
        f"{weight.name}_scale", "float32", steps_shape,
        None if values is None else np.asarray(values[0], np.float32).reshape(steps_shape),
    )  # fmt: skip
    points = value(
        f"{weight.name}_zero_point", constant.weights.dtype, (),
        np.asarray(0 if values is None else np.asarray(values[1]).reshape(-1)[0], np.dtype(constant.weights.dtype)),
    )  # fmt: skip
    inputs = (stored, kept, zero, points)
    total = value(f"{base}_accumulator", "int32", result.shape, known=result.known_shape)
    if node.op == "Conv":
        add("ConvInteger", base, inputs, (total,), **dict(node.attributes))
    else:
        add("MatMulInteger", base, inputs, (total,))
    plain = value(f"{base}_accumulator_float", "float32", result.shape, known=result.known_shape)
    add("Cast", f"{base}_Cast", (total,), (plain,), to="float32")
    factor = value(f"{base}_scale", "float32", steps_shape)
    add("Mul", f"{base}_scales", (scale, steps), (factor,))
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if not bias:
        add("Mul", f"{base}_scaled", (plain, factor), node.outputs[:1])
        return DynamicLayer(tuple(nodes), tuple(tensors))
    scaled = value(f"{base}_product", "float32", result.shape, known=result.known_shape)
    add("Mul", f"{base}_scaled", (plain, factor), (scaled,))
    offset = bias
    data, given = graph.constant(bias), graph.tensors[bias]
    if node.op == "Conv" and trailing:
        offset = value(
            f"{bias}_channels", "float32", across, None if data is None else np.asarray(data).reshape(across)
        )
    else:
        tensors.append(given)
    add("Add", f"{base}_bias", (scaled, offset), node.outputs[:1])
    return DynamicLayer(tuple(nodes), tuple(tensors))
