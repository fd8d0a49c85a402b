"""The Op protocol: what every operator of the graph can say about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Shape, Tensor
from hwq.work import Work

__all__ = ["REGISTRY", "Inferred", "Op", "lookup", "register"]

# What `infer` says about one output: type, shape, and whether the shape is known at all.
Inferred = tuple[str, Shape, bool]


class Op:
    """One operator: shapes, value, work. A family of operators shares a file; each subclass is registered once.

    `names` are ONNX's operator names (``domain::name`` outside ONNX's own domain). Lowered graphs use the same names:
    a quantized tensor at an input or output makes the op an integer one.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """Types and shapes of the outputs. `inputs[i].data` is set where the value is constant.

        Raises
        ------
        Error
            The shapes or types do not fit the operator.
        """
        raise NotImplementedError

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """The operator's value in the source form's own semantics (ONNX: float32 in the fixed order of DESIGN)."""
        raise NotImplementedError

    def apply(self, node: Node, inputs: Sequence[Array | None], graph: Graph) -> list[Array]:
        """The operator's value inside its graph: `evaluate`, except where stored integers need their tensors' scales."""
        return self.evaluate(node, inputs)

    def work(self, node: Node, graph: Graph) -> Work:
        """The loop nest and bytes of the node (of a lowered group: body included) at the graph's concrete shapes."""
        raise NotImplementedError


REGISTRY: dict[str, Op] = {}


def register(kind: type[Op]) -> type[Op]:
    """Class decorator: make the operator known under each of its names."""
    instance = kind()
    for name in kind.names:
        if name in REGISTRY:
            raise RuntimeError(f"operator {name} is registered twice")
        REGISTRY[name] = instance
    return kind


def lookup(node: Node) -> Op:
    """The operator of a node.

    Raises
    ------
    Error
        hwq has no such operator; the message names node, type and domain.
    """
    import hwq.ops

    hwq.ops.load()
    try:
        return REGISTRY[node.kind]
    except KeyError:
        raise Error(
            f"hwq has no operator {node.kind}",
            where=f"node {node.name} (type {node.op}, domain {node.domain or 'ai.onnx'})",
            remedy="replace it in the exporting tool, or see CONTRIBUTING.md for how to add an operator",
        ) from None


Evaluate = Callable[[Node, Sequence[Array | None]], list[Array]]
Attributes = Mapping[str, Any]
