"""bfloat16 arithmetic as float32 operators between Casts: onnxruntime has no bfloat16 kernels on CPUs.

A bfloat16 operator rounds its float32 result once (kernels/README.md), and so does the Cast behind its float32 twin. Constants stay
bfloat16 in the file.
"""

from __future__ import annotations

import dataclasses

from hwq.graph import Graph, Node, Tensor

__all__ = ["in_float32"]

HALF = "bfloat16"
# Operators that take any type: they round nothing.
ANY_TYPE = frozenset(
    {"Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Gather", "Slice", "Concat"}
)


def in_float32(graph: Graph) -> Graph:
    """The graph with no operator that computes in bfloat16; the same graph where none does."""
    tensors = dict(graph.tensors)
    if all(tensor.dtype != HALF for tensor in tensors.values()):
        return graph
    nodes: list[Node] = []
    widened: dict[str, str] = {}

    def fresh(name: str) -> str:
        made = f"{name}_float32"
        while made in tensors:
            made += "_"
        tensors[made] = dataclasses.replace(graph.tensors[name], name=made, dtype="float32", data=None)
        return made

    def wide(name: str) -> str:
        if name not in widened:
            widened[name] = fresh(name)
            nodes.append(Node("Cast", f"{widened[name]}_Cast", (name,), (widened[name],), {"to": "float32"}))
        return widened[name]

    def is_half(name: str) -> bool:
        tensor: Tensor | None = graph.tensors.get(name)
        return bool(name) and tensor is not None and tensor.dtype == HALF

    for node in graph.nodes:
        if node.op in ANY_TYPE and not node.domain:
            nodes.append(node)
            continue
        inputs = tuple(wide(name) if is_half(name) else name for name in node.inputs)
        outputs = tuple(fresh(name) if is_half(name) else name for name in node.outputs)
        nodes.append(dataclasses.replace(node, inputs=inputs, outputs=outputs))
        for made, name in zip(outputs, node.outputs, strict=True):
            if made != name:
                nodes.append(Node("Cast", f"{name}_Cast", (made,), (name,), {"to": HALF}))
    return graph.replace(nodes=nodes, tensors=tensors.values())
