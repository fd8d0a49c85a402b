"""Which programs treat every element of a batch alone, so that a large batch may run in pieces with the same bits."""

from __future__ import annotations

from hwq.graph import Graph, Node

__all__ = ["batch_dimension"]

# Operators that compute each slice along the first dimension from the same slices of their operands.
ELEMENTWISE = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Ceil",
        "Clip",
        "Cos",
        "DequantizeLinear",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Pow",
        "QuantizeLinear",
        "Reciprocal",
        "Relu",
        "Round",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Sqrt",
        "Sub",
        "Tanh",
        "Where",
    }
)
WINDOWED = frozenset({"AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


def batch_dimension(graph: Graph) -> str | None:
    """The symbol of the batch, if the graph may be cut along it; else None.

    Every input and output and every computed value must have the same symbol first, and every operator must keep its
    slices apart. What is not known to do so counts as not doing so.
    """
    first = {
        graph.tensors[name].shape[0] if graph.tensors[name].shape else None for name in (*graph.inputs, *graph.outputs)
    }
    if len(first) != 1:
        return None
    (symbol,) = first
    if not isinstance(symbol, str):
        return None
    return symbol if all(_apart(graph, node, symbol) for node in graph.nodes) else None


def _apart(graph: Graph, node: Node, symbol: str) -> bool:
    if node.domain:
        return False
    for value in node.outputs:
        if value and (not graph.tensors[value].known_shape or graph.tensors[value].shape[:1] != (symbol,)):
            return False
    operands = [graph.tensors[value] for value in node.inputs if value]
    moving = [tensor for tensor in operands if not tensor.constant]
    if not moving or any(tensor.shape[:1] != (symbol,) for tensor in moving):
        return False
    rank = len(graph.tensors[node.inputs[0]].shape)
    get = node.attributes.get
    if node.op in ELEMENTWISE:
        width = len(graph.tensors[node.outputs[0]].shape)
        # A constant that reaches the first dimension must be 1 there; a moving operand of lower rank would slide.
        return all(len(tensor.shape) == width for tensor in moving) and all(
            len(tensor.shape) < width or tensor.shape[0] == 1 for tensor in operands if tensor.constant
        )
    if node.op in WINDOWED:
        return len(moving) == 1 and rank > 2
    if node.op in {"Softmax", "LayerNormalization", "Concat"}:
        axis = int(get("axis", -1))
        return (axis if axis >= 0 else axis + rank) > 0
    if node.op in {"Gemm", "MatMul"} and not _settled(graph, node, rank):
        return False
    if node.op == "Gemm":
        bias = operands[2].shape if len(operands) > 2 else ()
        return not get("transA", 0) and len(moving) == 1 and (len(bias) < 2 or bias[0] == 1)
    if node.op == "MatMul":
        ranks = {len(tensor.shape) for tensor in moving}
        return moving[0].name == node.inputs[0] and (len(moving) == 1 or (len(ranks) == 1 and rank > 2))
    if node.op == "Flatten":
        return int(get("axis", 1)) == 1
    if node.op == "Transpose":
        return tuple(get("perm", (1,)))[:1] == (0,)
    # A view whose first dimension stays the batch keeps whole slices in order.
    return node.op in {"Reshape", "Squeeze", "Unsqueeze"} and len(moving) == 1


def _settled(graph: Graph, node: Node, rank: int) -> bool:
    """Whether the product's bits do not depend on the number of rows: integers, or a constant matrix (see `mlas`)."""
    left, right = (graph.tensors[value] for value in node.inputs[:2])
    return left.quantization is not None or (right.constant and rank > 1)
