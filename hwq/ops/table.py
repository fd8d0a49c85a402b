"""`hwq::Table`: a function of one stored value as a lowered graph has it, its entries computed from the group's body."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor, carrier
from hwq.ops import accounting, dims, unary
from hwq.ops.base import Inferred, Op, lookup, register
from hwq.ops.storage import integer_range
from hwq.work import Work

__all__ = ["Table", "element_functions", "entries", "look_up"]

WIDE = frozenset({"int16", "uint16"})


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
    """One read of 256 entries an element where the input is a byte; of 16 bits, two samples and the line between them."""

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
        return [look_up(x, entries(node, graph), str(self.infer(node, [graph.tensors[node.inputs[0]]])[0][0]))]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return accounting.vector(node, graph)


def entries(node: Node, graph: Graph) -> Array:
    """The table, from the lowest stored value of the input up (`hwq.ops.unary`).

    Of a byte: 256 entries, exactly rounded. Between 16-bit types: int16 samples for `hwq.kernels.lut_int16`, within one step
    of the rounded function; uint16 is int16, 32768 lower. From 16 bits to a byte: 65,536 entries.

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


def look_up(x: Array, table: Array, dtype: str) -> Array:
    """The stored results of type `dtype` for stored values `x`, from `entries`."""
    if x.dtype.name in WIDE and dtype in WIDE:
        from hwq.kernels import lut_int16  # here: an estimate needs no kernels

        signed = x if x.dtype == np.int16 else (x ^ np.uint16(1 << 15)).view(np.int16)
        made = lut_int16(np.ascontiguousarray(signed), table)
        return made if dtype == "int16" else made.view(np.uint16) ^ np.uint16(1 << 15)
    found: Array = table[x.astype(np.int64) - int(np.iinfo(x.dtype).min)]
    return found


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
    if key.given[0] in WIDE:
        table = _wide(key, numbers)
    else:
        function = unary.chain_function(key.nodes, key.source, key.result, numbers)
        table = unary.table(function, key.given, key.made)
    table.flags.writeable = False
    return table


def _wide(key: _Key, numbers: Mapping[str, Array]) -> Array:
    """The table of a 16-bit input: its function in float64."""

    def function(real: Array) -> Array:
        values: dict[str, Array | None] = {**{name: one.astype(np.float64) for name, one in numbers.items()}, "": None}
        values[key.source] = real
        for node in key.nodes:
            values[node.outputs[0]] = lookup(node).evaluate(node, [values[name] for name in node.inputs])[0]
        made = values[key.result]
        assert made is not None
        return made

    (kind, scale, zero), (made_kind, made_scale, made_zero) = key.given, key.made
    given = scale, zero - (1 << 15 if kind == "uint16" else 0)
    if made_kind in WIDE:
        return unary.close_samples(function, given, (made_scale, made_zero - (1 << 15 if made_kind == "uint16" else 0)))
    real = (np.arange(-32768, 32768) - given[1]) * scale
    low, high = integer_range(made_kind)
    with np.errstate(all="ignore"):
        steps = np.rint(function(real) / made_scale) + made_zero
    return np.clip(np.where(np.isnan(steps), low, steps), low, high).astype(carrier(made_kind))
