"""What a plan asked to be computed on integers and its dialect leaves to floats, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hwq.dialect import Dialect, find
from hwq.graph import Graph, Node, Tensor
from hwq.lowering import lower
from hwq.operator_kinds import CLAMPS, ELEMENTWISE, MATRIX, ROWS, UNARY
from hwq.plan import Plan

__all__ = ["Remaining", "remaining"]

ASKED = MATRIX | ELEMENTWISE | ROWS | UNARY


@dataclass(frozen=True)
class Remaining:
    """A node that computes floats although its plan asked for integers.

    Attributes
    ----------
    node, op : str
    why : str
    """

    node: str
    op: str
    why: str


def remaining(quantized: Graph, plan: Plan) -> tuple[Remaining, ...]:
    """The nodes of a quantized graph, lowered to its own dialect, that run on floats against the plan.

    Parameters
    ----------
    quantized : Graph
        In source form, from `hwq.quantize`.
    plan : Plan
        What it was quantized by.
    """
    lowered, dialect = lower(quantized, quantized.dialect), find(quantized.dialect)
    return tuple(
        Remaining(node.name, node.op, _why(lowered, node, dialect, plan))
        for node in lowered.nodes
        if node.op in ASKED and not node.domain and not _stored(lowered, node) and _asks(lowered, node, plan)
    )


def _stored(graph: Graph, node: Node) -> bool:
    """Whether it works on stored numbers; what makes or reads them beside it is part of it."""
    return any(graph.tensors[name].quantization is not None for name in (*node.inputs, *node.outputs) if name)


def _asks(graph: Graph, node: Node, plan: Plan) -> bool:
    planned = plan.activations_of([*filter(None, node.inputs[:1]), *node.outputs], (node,))
    if planned.floating or graph.tensors[node.outputs[0]].dtype != "float32":
        return False
    if node.op not in MATRIX:
        return planned.mode == "static" and any(_known(graph, name) for name in node.inputs if name)
    return not any(
        plan.weights_of(node, name).floating for name in node.inputs[:2] if _constant(graph, name) is not None
    )


def _constant(graph: Graph, name: str) -> Tensor | None:
    """The constant that a value is, stored or not."""
    tensor, maker = graph.tensors[name], graph.producers.get(name)
    if maker is not None and maker.op == "DequantizeLinear":
        tensor = graph.tensors[maker.inputs[0]]
    return tensor if tensor.data is not None else None


def _known(graph: Graph, name: str) -> str | None:
    """How a computed value was stored before it became floats here; None where it never was."""
    maker = graph.producers.get(name)
    if maker is None or maker.op not in {"DequantizeLinear", "DequantizeRows"} or _constant(graph, name) is not None:
        return None
    return graph.tensors[maker.inputs[0]].dtype


def _why(graph: Graph, node: Node, dialect: Dialect, plan: Plan) -> str:
    return next(_reasons(graph, node, dialect, plan))


def _reasons(graph: Graph, node: Node, dialect: Dialect, plan: Plan) -> Iterator[str]:
    """The first that fits."""
    planned = plan.activations_of([*filter(None, node.inputs[:1]), *node.outputs], (node,))
    own = dialect.formulas.get("weight-only") == "groups"
    computed = [name for name in node.inputs[:2] if name and _constant(graph, name) is None]
    wide = planned.dtype.endswith("16")
    if node.op in MATRIX:
        get, weights = node.attributes.get, _constant(graph, node.inputs[1])
        if weights is None and planned.mode == "dynamic":
            yield "its second operand is computed, and only constant weights meet operands quantized at run time"
        if weights is None and wide and not dialect.integers:
            yield "the product of two computed tensors of 16 bits has integers in dialect hwq-integer alone"
        if node.op == "Gemm" and (get("transA", 0) or get("alpha", 1.0) != 1.0 or get("beta", 1.0) != 1.0):
            yield "a Gemm that scales or turns its first operand has no integer kernel for this plan"
        if weights is not None and node.op in {"Gemm", "MatMul"} and len(weights.shape) != 2:
            yield f"its weights have {len(weights.shape)} dimensions, and the kernels take 2"
        if not own and node.op == "ConvTranspose":
            yield f"dialect {dialect.name} computes it in floats, as its runtime does; dialect hwq has integers"
        if not own and (wide or planned.granularity == "row" or planned.mode == "dynamic" or _in_groups(graph, node)):
            yield f"dialect {dialect.name} computes this mode in floats, as its runtime does; dialect hwq has integers"
        if _in_groups(graph, node):
            yield "no kernel takes groups of scales of this length, or that cross the groups of a convolution"
    elif node.op in ROWS or node.op == "Softmax":
        yield f"dialect {dialect.name} computes it in floats; dialect hwq-integer has a formula of integers"
    readers = {reader.op for reader in graph.consumers.get(node.outputs[0], ())}
    if readers and readers <= CLAMPS:
        yield f"the {min(readers)} behind it cuts more than the stored type does, which dialect {dialect.name} has no kernel for"
    loose = [name for name in computed if planned.mode == "static" and _known(graph, name) is None]
    if loose:
        yield f"its operand {loose[0]} is not stored"
    if node.op not in MATRIX and wide and not dialect.integers:
        yield "tensors of 16 bits meet in integers in dialect hwq-integer alone"
    yield f"dialect {dialect.name} has no integer kernel for these types and scales"


def _in_groups(graph: Graph, node: Node) -> bool:
    """Whether its weights have scales in groups."""
    maker = graph.producers.get(node.inputs[1])
    return maker is not None and maker.op == "DequantizeLinear" and bool(maker.attributes.get("block_size", 0))
