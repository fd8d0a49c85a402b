"""A matrix operator whose operand is quantized at run time. One range for the whole tensor, in ONNX's own operators:

    q, s, z = DynamicQuantizeLinear(x);  acc = MatMulInteger or ConvInteger(q, w, z);  y = float32(acc) * (s * s_w) + b

The scale covers the whole tensor, so with more than one sample a batch the result of each depends on the others: that is
ONNX's operator, and onnxruntime's. One range a row (of a product; a whole image of a convolution), int8 without zero points,
and weights that no integer operator of ONNX takes are written between Q and DQ instead:

    q, s, z = DynamicQuantizeLinear(x) or a function of the domain hwq;  y = op(Dequantize(q, s, z), DequantizeLinear(w), b)

which the dialect hwq computes on integers too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Quantization, Tensor
from hwq.names import display_name

if TYPE_CHECKING:
    from hwq.placement import Constant
    from hwq.plan import Activations, Plan

__all__ = ["DynamicLayer", "dynamic_layer", "in_integers", "require_dynamic", "require_products", "run_time_pair"]


@dataclass(frozen=True)
class DynamicLayer:
    """The nodes in the place of one, and the tensors that they make and read."""

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]


def require_dynamic(node: Node, planned: Activations) -> None:
    """Refuse types that nothing quantizes to at run time.

    Raises
    ------
    Error
        Other types than uint8 with a zero point and int8 without.
    """
    if (planned.dtype, planned.symmetric) not in {("uint8", False), ("int8", True)}:
        label = f"{planned.dtype} with symmetric = {str(planned.symmetric).lower()}"
        raise Error(
            f"no activation is quantized at run time to {label}",
            where=f"node {display_name(node.name)}, key activations.{'dtype' if 'int8' not in planned.dtype else 'symmetric'}",
            why="run-time ranges are stored as uint8 with a zero point (ONNX's DynamicQuantizeLinear) or as int8 without",
            remedy='dtype = "uint8", symmetric = false; or dtype = "int8", symmetric = true',
        )


def require_products(plan: Plan, products: Iterable[Sequence[Node]]) -> None:
    """Refuse a rule that asks for run-time activations where there is no product; `products` come with what follows them.

    Raises
    ------
    Error
        Names the rule.
    """
    reached = [node for chain in products for node in chain]
    for index, layer in enumerate(plan.layers):
        if layer.activations.get("mode") == "dynamic" and not any(layer.match.fits(node) for node in reached):
            raise Error(
                "this rule asks for activations quantized at run time where there is no product",
                where=f"layers.{index}.match {layer.match.model_dump(exclude_none=True)}",
                why="the operand of a Conv, Gemm or MatMul with constant weights is quantized at run time, nothing else",
                remedy="name such a layer, or leave the rule out",
            )


def in_integers(graph: Graph, node: Node, planned: Activations, weight: Constant) -> bool:
    """Whether ONNX's integer operators can say it: one range, uint8, and weights of eight bits without zero points."""
    plain = node.op in {"Conv", "MatMul"} or (
        node.op == "Gemm"
        and not node.attributes.get("transA", 0)
        and all(float(node.attributes.get(name, 1.0)) == 1.0 for name in ("alpha", "beta"))
    )
    return (
        plain
        and planned.granularity == "tensor"
        and planned.dtype == "uint8"
        and weight.weights.dtype in {"int8", "uint8"}
        and weight.weights.symmetric
        and weight.weights.zero_point is None
        and weight.block is None
        and len(graph.tensors[weight.tensor].shape) >= 2
    )


def run_time_pair(
    graph: Graph, node: Node, planned: Activations, operand: str, fresh: Callable[[str], str]
) -> tuple[DynamicLayer, str]:
    """Quantize and dequantize the first operand of `node` at run time; the dequantized value's name.

    Raises
    ------
    Error
        A row is asked for where the operand's rank is not known.
    """
    x = graph.tensors[node.inputs[0]]
    plain = planned.granularity == "tensor" and planned.dtype == "uint8"
    if not plain and not x.known_shape:
        raise Error(
            "the rank of this activation is not known",
            where=f"tensor {display_name(x.name)}",
            remedy="give the model's input shapes, or one uint8 range for the tensor",
        )
    rank = len(x.shape)
    if planned.granularity == "tensor":
        axes = tuple(range(rank))
    elif node.op in {"Conv", "ConvTranspose"}:
        axes = tuple(range(1, rank))
    else:
        axes = (0,) if node.attributes.get("transA", 0) else (rank - 1,)
    rows = tuple(1 if axis in axes else dim for axis, dim in enumerate(x.shape)) if not plain else ()
    q, s, z, real = (fresh(f"{operand}_dynamic{suffix}") for suffix in ("", "_scale", "_zero_point", "_dequantized"))
    tensors = (
        Tensor(
            q, planned.dtype, x.shape, None, Quantization("uint8", s, z) if plain else None, known_shape=x.known_shape
        ),
        Tensor(s, "float32", rows),
        Tensor(z, planned.dtype, rows),
        Tensor(real, "float32", x.shape, known_shape=x.known_shape),
    )
    if plain:
        made = Node("DynamicQuantizeLinear", fresh(f"{operand}_DynamicQuantizeLinear"), (operand,), (q, s, z))
        back = Node("DequantizeLinear", fresh(f"{operand}_DequantizeLinear"), (q, s, z), (real,))
    else:
        op = "DynamicQuantizeRows" + ("Symmetric" if planned.symmetric else "")
        made = Node(op, fresh(f"{operand}_{op}"), (operand,), (q, s, z), {"axes": axes}, "hwq")
        back = Node("DequantizeRows", fresh(f"{operand}_DequantizeRows"), (q, s, z), (real,), domain="hwq")
    return DynamicLayer((made, back), tensors), real


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
