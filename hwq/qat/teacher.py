"""A float graph as a torch module: what a prepared module is trained to imitate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hwq.graph import Graph
from hwq.ops.application import evaluate_node
from hwq.qat import operators

__all__ = ["Teacher"]


class Teacher(torch.nn.Module):  # type: ignore[misc]
    """The graph in torch's own float32; nothing in it is trained."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        self._constants = {
            tensor.name: torch.from_numpy(np.array(tensor.data)) if tensor.dtype == "float32" else tensor.data
            for tensor in graph.tensors.values()
            if tensor.data is not None
        }

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The outputs: one tensor, or a tuple in the graph's order."""
        values = self.values(*inputs, **named)
        made = tuple(values[name] for name in self.graph.outputs)
        return made[0] if len(made) == 1 else made

    def logits(self, *inputs: Any, **named: Any) -> list[Any]:
        """Each output that is a float, or what enters the Softmax that makes it."""
        values = self.values(*inputs, **named)
        makers = [(name, self.graph.producers.get(name)) for name in self.graph.outputs]
        names = [maker.inputs[0] if maker is not None and maker.op == "Softmax" else name for name, maker in makers]
        return [values[name] for name in names if isinstance(values[name], torch.Tensor)]

    def values(self, *inputs: Any, **named: Any) -> dict[str, Any]:
        """Every value by name."""
        feeds = {**dict(zip(self.graph.inputs, inputs, strict=False)), **named}
        values: dict[str, Any] = {**self._constants, **feeds}
        for node in self.graph.nodes:
            operands = [values[name] if name else None for name in node.inputs]
            if all(one is None or isinstance(one, np.ndarray) for one in operands):
                made: Any = evaluate_node(node, operands, self.graph)
            else:
                made = operators.compute(node, operands)
            values.update({name: value for name, value in zip(node.outputs, made, strict=False) if name})
        return values
