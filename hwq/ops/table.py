"""`hwq::Table`: a function of one byte as a lowered graph has it, its entries computed from the group's body."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor
from hwq.ops import accounting, dims, unary
from hwq.ops.base import Inferred, Op, register
from hwq.work import Work

__all__ = ["Table", "element_functions", "entries"]


def element_functions(graph: Graph, chains: Mapping[str, Sequence[Node]], products: frozenset[str]) -> dict[str, str]:
    """The values of a float graph that are functions of one other value, element by element, by that value's name.

    Parameters
    ----------
    graph : Graph
    chains : mapping of node name to nodes
        A head and what its kernel does on its way out: no function of its own, unless the head is one.
    products : frozenset of op
        Heads that never are.
    """

    def computed(name: str) -> bool:
        return name in graph.producers or name in graph.inputs

    def single(name: str, node: Node) -> bool:
        tensor = graph.tensors[name]
        rank = len(graph.tensors[node.outputs[0]].shape)
        return (
            tensor.data is not None and tensor.data.size == 1 and tensor.data.ndim <= rank and tensor.dtype == "float32"
        )

    fixed = {node.name for head, chain in chains.items() if graph.node(head).op in products for node in chain}
    followers = {head: {node.name for node in chain[1:]} for head, chain in chains.items()}
    apart = fixed.union(*followers.values())
    found: dict[str, str] = {}
    for _ in range(2):  # what follows a head that is a function belongs to that function
        found = unary.sources([node for node in graph.nodes if node.name not in apart], {}, single, computed)
        apart = fixed.union(*(names for head, names in followers.items() if graph.node(head).outputs[0] not in found))
    return found


@register
class Table(Op):
    """One read of 256 entries an element; input and output are bytes with one scale each."""

    names = ("hwq::Table",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x = inputs[0]
        if x is None:
            raise dims.fault(node, "a table has one operand")
        quantize = node.body[-1] if node.body else node
        dtype = quantize.attributes.get("output_dtype", x.dtype)
        return [(str(dtype), x.shape, x.known_shape)]

    def apply(self, node: Node, inputs: Sequence[Array | None], graph: Graph) -> list[Array]:
        """See `Op.apply`."""
        x = inputs[0]
        assert x is not None
        return [entries(node, graph)[x.astype(np.int64) - int(np.iinfo(x.dtype).min)]]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


def entries(node: Node, graph: Graph) -> Array:
    """The 256 entries, from the lowest byte of the input up, exactly rounded (`hwq.ops.unary`).

    Raises
    ------
    Error
        Input or output is not stored with one scale.
    """
    pairs = []
    for name in (node.inputs[0], node.outputs[0]):
        quantization = graph.tensors[name].quantization
        if quantization is None or not quantization.known or quantization.scales().size != 1:
            raise dims.fault(node, "a table needs one scale on either side")
        scale = float(quantization.scales().reshape(()))
        pairs.append((quantization.dtype, scale, int(quantization.zero_points().reshape(()))))
    inside = [one for one in node.body if one.op not in {"DequantizeLinear", "QuantizeLinear"}]
    made = {name for one in node.body for name in one.outputs}
    constants = []
    for one in inside:
        for name in one.inputs:
            data = graph.constant(name) if name and name not in made else None
            if data is not None:
                constants.append((name, float(data.reshape(()))))
    source, result = str(node.attributes["source"]), str(node.attributes["result"])
    chain = tuple((one.kind, repr(sorted(one.attributes.items())), one.inputs, one.outputs) for one in inside)
    return _kept(_Key(chain, source, result, tuple(dict.fromkeys(constants)), pairs[0], pairs[1], tuple(inside)))


@dataclass(frozen=True)
class _Key:
    """What the entries depend on; the nodes lie beside it."""

    chain: tuple[object, ...]
    source: str
    result: str
    constants: tuple[tuple[str, float], ...]
    given: tuple[str, float, int]
    made: tuple[str, float, int]
    nodes: tuple[Node, ...] = field(compare=False)


@functools.lru_cache(maxsize=256)
def _kept(key: _Key) -> Array:
    numbers: dict[str, Array] = {name: np.asarray(value, np.float32) for name, value in key.constants}
    function = unary.chain_function(key.nodes, key.source, key.result, numbers)
    table = unary.table(function, key.given, key.made)
    table.flags.writeable = False
    return table
