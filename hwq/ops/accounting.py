"""From a node and its tensors to a `Work` record: the parts that every family of operators shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.graph import Graph, Node, Quantization, Tensor
from hwq.ops import unary
from hwq.work import Kind, Work

__all__ = [
    "ELEMENT_OPERATIONS",
    "changed",
    "is_parameter",
    "move",
    "multiply",
    "number",
    "precision_of",
    "vector",
    "view",
]

# Scalar operations for one output element, counted from the formula; a transcendental (exp, tanh, erf, log, power,
# root) or a division counts as one, as machines with a special-function unit issue it. Not listed: 1.
ELEMENT_OPERATIONS: Mapping[str, int] = MappingProxyType({
    "Clip": 2,                # two comparisons
    "LeakyRelu": 2,           # multiply, select
    "PRelu": 2,
    "Sigmoid": 3,             # exp, add, reciprocal
    "HardSigmoid": 4,         # multiply, add, two comparisons
    "HardSwish": 5,           # hard sigmoid, multiply
    "Gelu": 5,                # scale, erf, add, two multiplies
    "Softmax": 5,             # maximum, subtract, exp, sum, divide
    "LogSoftmax": 6,
    "LayerNormalization": 8,  # two sums, subtract, square, two multiplies, add, and the mean's share
    "GroupNormalization": 8, "InstanceNormalization": 8, "RMSNormalization": 6,
    "BatchNormalization": 2,  # multiply, add (the rest is folded once per channel)
    "QuantizeLinear": 3,      # multiply by the reciprocal scale, round and add the zero point, saturate
    "DequantizeLinear": 2,    # subtract the zero point, multiply
    "DynamicQuantizeLinear": 5,  # minimum, maximum, and quantize
    "DequantizeRows": 2,  # subtract, multiply
    "Identity": 0, "Dropout": 0, "Reshape": 0, "Flatten": 0, "Squeeze": 0, "Unsqueeze": 0, "Cast": 1,
})  # fmt: skip

# Operations that turn one int32 accumulator into a stored integer: multiply, round and add the zero point, saturate.
REQUANTIZE = 3
# A residual in another scale: rescale it, add it.
RESIDUAL = 2
# Tables of functions of one stored value, by its bits: (reads, vector operations) an element, bytes. 16 bits: two neighbors of 513
# samples of two bytes; a subtraction, a product, a sum and a shift between them.
TABLES = MappingProxyType({8: (1, 1, 256), 16: (2, 4, 2 * 513)})
# Tables of an integer softmax: exponentials of 32 bits by distance; or two of 513 samples, exponential and reciprocal.
SOFTMAX_TABLES = MappingProxyType({8: (1, 4 * 256), 16: (2, 2 * 2 * 513)})
# Nodes whose value is a parameter if what they read is one.
_CARRIERS = frozenset(
    {
        "DequantizeLinear",
        "QuantizeLinear",
        "Transpose",
        "Reshape",
        "Cast",
        "Identity",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
    }
)


def number(dim: int | str) -> int:
    """A dimension that must be concrete by now (callers ask `Tensor.elements` first, which raises where it is not)."""
    return int(dim)


def is_parameter(graph: Graph, name: str) -> bool:
    """Whether a value is known before the model runs, also behind Q/DQ, Cast, Transpose and views."""
    for _ in range(16):
        tensor = graph.tensors.get(name)
        if tensor is None or name in graph.inputs:
            return False
        if tensor.data is not None or name not in graph.producers:
            return True  # a weight of a cost-only graph has no data either
        maker = graph.producers[name]
        if maker.op not in _CARRIERS or any(value and not _static(graph, value) for value in maker.inputs[1:]):
            return False
        name = maker.inputs[0]
    return False


def _static(graph: Graph, name: str) -> bool:
    return name not in graph.producers and name not in graph.inputs


def stored(tensor: Tensor) -> str:
    """The stored element type."""
    return tensor.quantization.dtype if tensor.quantization else tensor.dtype


def _integer(dtype: str) -> bool:
    return dtype.startswith(("int", "uint"))


def precision_of(first: Tensor, second: Tensor | None = None) -> str:
    """The arithmetic type of a product: a key of a machine file's ``[precisions]``.

    Two integers compute in the wider of their widths (uint8 counts as int8, int4 with int8 as int8); a float first
    operand keeps its own type whatever the weights are stored in (weight-only).
    """
    a = stored(first)
    b = a if second is None else stored(second)
    if _integer(a) and _integer(b):
        return f"int{max(first.bits, second.bits if second is not None else 0)}"
    if a == "bool":
        return "int8"
    for prefix in ("float8", "float4"):
        if a.startswith(prefix):
            return prefix if b.startswith(("float8", "float4")) else b
    return a if not _integer(a) else b


def scale_bytes(quantization: Quantization | None, shape: Sequence[Any]) -> int:
    """Bytes of a tensor's scales (4 each, or their own width) and zero points (as stored, none where symmetric)."""
    if quantization is None:
        return 0
    scale = quantization.scale
    if isinstance(scale, np.ndarray):
        count, width = scale.size, 4 if scale.dtype.itemsize > 4 else scale.dtype.itemsize
    else:
        count, width = _scales(quantization, shape), 4
    points = 0 if quantization.symmetric else (count * quantization.bits + 7) // 8
    return count * width + points


def _run_time_bytes(graph: Graph, quantization: Quantization) -> int:
    """Bytes of scales and zero points that a node computes: one of each a tensor or a row."""
    names = [part for part in (quantization.scale, quantization.zero_point) if isinstance(part, str)]
    return sum(graph.tensors[name].bytes for name in names if graph.tensors[name].concrete)


def _scales(quantization: Quantization, shape: Sequence[Any]) -> int:
    if quantization.axis is None or not shape:
        return 1
    axis = quantization.axis % len(shape)
    if quantization.block is None:
        return int(shape[axis])
    count = 1
    for index, dim in enumerate(shape):
        count *= -(-int(dim) // quantization.block) if index == axis else int(dim)
    return count


def _tensors(graph: Graph, names: Sequence[str]) -> list[Tensor]:
    return [graph.tensors[name] for name in dict.fromkeys(names) if name]


def _geometry(graph: Graph, node: Node) -> dict[str, Any]:
    """Batch, height, width and channels of the first input and the first output."""
    found: dict[str, Any] = {}
    first = next((graph.tensors[name] for name in node.inputs if name and not _static(graph, name)), None)
    made = graph.tensors[node.outputs[0]]
    for side, tensor in (("input", first), ("output", made)):
        if tensor is None or not tensor.shape or not tensor.concrete:
            continue
        batch, h, w, c = positions(tensor.shape, node.layout)
        found |= {f"{side}_h": h, f"{side}_w": w, f"{side}_c": c}
        if side == "output":
            found["batch"] = batch
    return found


def positions(shape: Sequence[Any], layout: str = "") -> tuple[int, int, int, int]:
    """(batch, height, width, channels): images by layout; anything else has its channels last and height 1.

    Depth of a 3-D image counts into the height.
    """
    dims = [int(dim) for dim in shape]
    if len(dims) >= 3 and layout:
        batch, channels, space = (dims[0], dims[1], dims[2:]) if layout == "NCHW" else (dims[0], dims[-1], dims[1:-1])
        return batch, int(np.prod(space[:-1], dtype=np.int64)), space[-1], channels
    if len(dims) == 4:
        return dims[0], dims[2], dims[3], dims[1]
    if len(dims) <= 1:
        return 1, 1, 1, dims[0] if dims else 1
    return dims[0], 1, int(np.prod(dims[1:-1], dtype=np.int64)), dims[-1]


def _tabled(op: str, given: Tensor | None, made: Tensor) -> tuple[int, int, int] | None:
    """(reads, vector operations) an element and bytes of the table that a machine reads the operator's result from: a function
    of one stored value that makes one; None where it is computed.
    """
    nonlinear = op in unary.NONLINEAR or op == "Table"
    first = made if given is None else given
    if not nonlinear or any(one.quantization is None or one.bits not in {8, 16} for one in (first, made)):
        return None
    return TABLES[first.bits] if first.bits == made.bits else (1, 1, (1 << first.bits) * made.bits // 8)


def _body_operations(node: Node, main: str, outputs: int) -> tuple[int, tuple[str, ...], bool]:
    """Operations of a group's other members on each output element, their names, and whether the body requantizes."""
    operations = 0
    fused: list[str] = []
    requantized = False
    main_seen = False
    for part in node.body:
        if part.op == main and not main_seen:
            main_seen = True
        elif part.op in {"DequantizeLinear", "DequantizeRows"}:
            continue  # an operand's scale is folded into the requantization
        elif part.op == "QuantizeLinear":
            requantized = requantized or main_seen
        elif main_seen:
            fused.append(part.op)
            operations += (RESIDUAL if part.op in {"Add", "Sub"} else ELEMENT_OPERATIONS.get(part.op, 1)) * outputs
        else:
            fused.append(part.op)
    return operations, tuple(fused), requantized


def multiply(
    node: Node,
    graph: Graph,
    *,
    kind: Kind,
    groups: int,
    m: int,
    k: int,
    n: int,
    first: int = 0,
    second: int = 1,
    main: str | None = None,
    **geometry: int,
) -> Work:
    """The Work of a matrix product or convolution whose operands are ``node.inputs[first]`` and ``[second]``."""
    activation, weight = graph.tensors[node.inputs[first]], graph.tensors[node.inputs[second]]
    made = graph.tensors[node.outputs[0]]
    rest = [tensor for index, tensor in enumerate(_inputs(node, graph)) if tensor and index not in (first, second)]
    biases = [
        tensor for tensor in rest if is_parameter(graph, tensor.name) and tensor.concrete and _is_bias(node, tensor)
    ]
    others = [tensor for tensor in rest if not is_parameter(graph, tensor.name) and tensor.elements > 1]
    moving = not is_parameter(graph, node.inputs[second])
    precision = precision_of(activation, weight)
    integer = precision.startswith("int")
    outputs = made.elements
    epilogue, fused, requantized = _body_operations(node, main or node.op, outputs)
    if biases:
        epilogue += outputs
    stored_out = made.quantization is not None or requantized or (_integer(stored(made)) and made.bits < 32)
    if stored_out:
        epilogue += REQUANTIZE * outputs
    elif integer and not (stored(made) == "int32"):
        epilogue += outputs  # dequantize: one multiply by the scales' product
    if weight.quantization is not None and weight.quantization.block:
        epilogue += outputs * (-(-k // weight.quantization.block))  # one scaled partial sum a block of the reduction
    nonlinear = [op for op in fused if op in unary.NONLINEAR] if integer and stored_out and made.bits in {8, 16} else []
    reads, each, table_bytes = TABLES[made.bits] if nonlinear else (0, 0, 0)
    if nonlinear:  # requantized to a stored value, then read from one table
        epilogue += (each - sum(ELEMENT_OPERATIONS.get(op, 1) for op in nonlinear)) * outputs
    zero_points = 0
    if integer and _asymmetric(weight):
        zero_points += groups * m * k
    if integer and moving and _asymmetric(activation):
        zero_points += groups * k * n
    scales = sum(
        _run_time_bytes(graph, tensor.quantization)
        if tensor.quantization is not None and tensor.quantization.dynamic
        else scale_bytes(tensor.quantization, tensor.shape)
        for tensor in (activation, weight, made)
    )
    return Work(
        name=node.name, op=node.op, kind=kind, precision=precision, fused=fused, groups=groups, m=m, k=k, n=n,
        lookups=reads * outputs, table_bytes=table_bytes,
        macs=groups * m * k * n, epilogue_operations=epilogue, zero_point_operations=zero_points,
        input_elements=activation.elements, weight_elements=weight.elements, other_elements=sum(t.elements for t in others),
        output_elements=outputs, input_bits=activation.bits, weight_bits=weight.bits,
        other_bits=max((t.bits for t in others), default=made.bits), output_bits=made.bits,
        accumulator_bits=64 if integer and max(activation.bits, weight.bits) > 8 else 32, weight_is_activation=moving,
        bias_bytes=sum(tensor.bytes for tensor in biases), scale_bytes=scales, **geometry,
    )  # fmt: skip


def _inputs(node: Node, graph: Graph) -> list[Tensor | None]:
    return [graph.tensors[name] if name else None for name in node.inputs]


def _is_bias(node: Node, tensor: Tensor) -> bool:
    """Whether a constant operand beyond the two factors is added to every output (and is no scale or zero point)."""
    if node.op.startswith("QLinear"):
        return tensor.name == (node.inputs[8] if len(node.inputs) > 8 else None)
    if tensor.elements <= 1 and tensor.name != (node.inputs[2] if len(node.inputs) > 2 else None):
        return False  # a bound of a fused Clip
    return node.op not in {"ConvInteger", "MatMulInteger"} or tensor.dtype in {"int32", "float32"}


def _asymmetric(tensor: Tensor) -> bool:
    quantization = tensor.quantization
    if quantization is None:
        return False
    if quantization.scale is None and quantization.zero_point is None:
        return quantization.dtype.startswith("uint")  # planned, values unset
    return not quantization.symmetric


def vector(node: Node, graph: Graph, operations: int | None = None) -> Work:
    """The Work of an elementwise op or a reduction. `operations`: scalar operations; default by the table per output."""
    made = [graph.tensors[name] for name in node.outputs if name]
    outputs = sum(tensor.elements for tensor in made)
    read = _tensors(graph, node.inputs)
    computed = [tensor for tensor in read if not is_parameter(graph, tensor.name)]
    known = [tensor for tensor in read if is_parameter(graph, tensor.name) and tensor.concrete]
    scales = [
        tensor
        for tensor in known
        if node.op in {"QuantizeLinear", "DequantizeLinear"} and tensor.name in node.inputs[1:]
    ]
    weights = [tensor for tensor in known if tensor not in scales and tensor.dtype not in {"int64", "bool"}]
    if not computed and known:  # a parameter that is decoded at run time
        computed, weights = weights[:1] or known[:1], weights[1:]
    first = computed[0] if computed else made[0]
    others = computed[1:]
    plain = bool(computed) and not others and all(tensor.elements == 1 for tensor in weights)
    tabled = _tabled(node.op, first, made[0]) if plain else None
    if operations is None:
        each = ELEMENT_OPERATIONS.get(node.op, 1) if tabled is None else tabled[1]
        operations = each * made[0].elements
    epilogue, fused, _ = _body_operations(node, node.op, made[0].elements)
    if node.body and made[0].quantization is not None and tabled is None:
        epilogue += REQUANTIZE * made[0].elements
    lookups, table_bytes = (0, 0) if tabled is None else (tabled[0], tabled[2])
    if node.op == "Softmax" and node.body and first.quantization is not None:
        lookups, table_bytes = SOFTMAX_TABLES.get(first.bits, (0, 0))
    if tabled is not None:
        epilogue = 0  # the table holds what follows, and the requantization
    return Work(
        lookups=lookups * made[0].elements, table_bytes=table_bytes,
        name=node.name, op=node.op, kind="vector", precision=precision_of(first if node.op != "QuantizeLinear" else read[0]),
        fused=fused, vector_operations=operations, epilogue_operations=epilogue,
        input_elements=first.elements if computed else 0, weight_elements=sum(t.elements for t in weights),
        other_elements=sum(t.elements for t in others), output_elements=outputs, input_bits=first.bits,
        weight_bits=max((t.bits for t in weights), default=first.bits), other_bits=max((t.bits for t in others), default=first.bits),
        output_bits=made[0].bits,
        scale_bytes=sum(t.bytes for t in scales) + sum(scale_bytes(t.quantization, t.shape) for t in (*computed, made[0]) if node.body),
        **_geometry(graph, node),
    )  # fmt: skip


def move(node: Node, graph: Graph, read: int | None = None) -> Work:
    """The Work of an op that only puts data elsewhere. `read`: elements taken from the first operand, default all."""
    work = vector(node, graph, operations=0)
    changes: dict[str, Any] = {"kind": "move", "vector_operations": 0}
    if read is not None:
        changes["input_elements"] = read
    return changed(work, **changes)


def view(node: Node, graph: Graph) -> Work:
    """The Work of an op that only renames data: nothing."""
    return changed(
        vector(node, graph, operations=0),
        kind="none",
        vector_operations=0,
        input_elements=0,
        weight_elements=0,
        other_elements=0,
        output_elements=0,
        scale_bytes=0,
        epilogue_operations=0,
    )


def changed(work: Work, **changes: Any) -> Work:
    import dataclasses

    return dataclasses.replace(work, **changes)
