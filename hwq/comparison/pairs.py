"""Pairs: which value of the float graph each value of a lowered quantized graph stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hwq.execution import Program
from hwq.graph import Graph, Node, Quantization

__all__ = ["pairs"]


def pairs(graph: Graph, q: Graph, program: Program) -> Iterator[tuple[Node, str, str, str, Quantization | None]]:
    """(float node, float tensor, stored tensor, its type, its quantization) wherever both make the same value."""
    # What a transform scaled channel by channel holds other numbers than its namesake.
    rescaled = set(q.source.get("rescaled", ())) - set(graph.source.get("rescaled", ()))
    named = {name for node in graph.nodes for name in node.outputs if name and name not in rescaled}
    origins = {node.origin or node.name: node for node in graph.nodes}
    sources = {node.name: node for node in q.nodes}
    found: dict[str, tuple[str, Quantization | None]] = {}
    lowered = program.graph
    for node in lowered.nodes:
        quantizes = [part for part in (*node.body, node) if part.op == "QuantizeLinear"]
        for part in quantizes:
            value = _real_name(q, part, sources, named, origins)
            stored = part.outputs[0]
            if value is not None and stored in node.outputs:
                found[value] = (stored, lowered.tensors[stored].quantization)
        for value in node.outputs:
            if value in named and lowered.tensors[value].quantization is None:
                found.setdefault(value, (value, None))
    for node in graph.nodes:
        for value in node.outputs:
            if value in found and graph.tensors[value].dtype == "float32":
                stored, quantization = found[value]
                yield node, value, stored, lowered.tensors[stored].dtype, quantization


def _real_name(
    q: Graph, part: Node, sources: Mapping[str, Node], named: set[str], origins: Mapping[str, Node]
) -> str | None:
    """The float graph's name of what a Q node quantizes: its operand, what its DQ makes, or its maker's twin."""
    source = sources.get(part.name)
    if source is None:
        return None
    if source.inputs[0] in named:
        return source.inputs[0]
    for reader in q.consumers.get(source.outputs[0], ()):
        if reader.op == "DequantizeLinear" and reader.outputs[0] in named:
            return reader.outputs[0]
    maker = q.producers.get(source.inputs[0])
    twin = None if maker is None else origins.get(maker.origin or maker.name)
    if maker is None or twin is None or twin.op != maker.op:
        return None
    return twin.outputs[maker.outputs.index(source.inputs[0])]
