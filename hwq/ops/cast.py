"""Cast and CastLike."""

from __future__ import annotations

from collections.abc import Sequence

from hwq.graph import BITS, Array, Graph, Node, Tensor
from hwq.ops import accounting, dims, storage
from hwq.ops.base import Inferred, Op, register
from hwq.work import Work

__all__ = ["Cast"]


@register
class Cast(Op):
    """Conversion of the element type. Importers give attribute ``to`` as a name of `hwq.graph.BITS`, for CastLike too."""

    names = ("Cast", "CastLike")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not inputs or inputs[0] is None:
            raise dims.fault(node, "the operator needs an input")
        return [(_target(node, inputs), inputs[0].shape, inputs[0].known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x = inputs[0]
        assert x is not None
        if "to" not in node.attributes and len(inputs) > 1 and inputs[1] is not None:
            dtype = inputs[1].dtype.name
        else:
            dtype = _target(node, [])
        return [
            storage.convert(
                x,
                dtype,
                saturating=bool(node.attributes.get("saturate", 1)),
                rounding=str(node.attributes.get("round_mode", "up")),
            )
        ]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


def _target(node: Node, inputs: Sequence[Tensor | None]) -> str:
    if "to" not in node.attributes and len(inputs) > 1 and inputs[1] is not None:
        return inputs[1].dtype
    target = node.attributes.get("to")
    if not isinstance(target, str) or target not in BITS or target.startswith("complex"):
        raise dims.fault(node, f"the target type {target!r} is unknown", None, "use an element type of ONNX")
    return target
