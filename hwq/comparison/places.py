"""Places: where a quantized graph stores numbers as integers, each of which can be put back to float on its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hwq.graph import Array, Graph, Node, Quantization
from hwq.operator_kinds import MOVES
from hwq.ops.folding import fold
from hwq.ops.quantize import dequantize
from hwq.plan_reading import float_name

__all__ = ["Place", "Places", "Unit"]

# What stands between a layer and the Q node behind it and belongs to the layer.
FOLLOWERS = frozenset({"Relu", "Clip", "BatchNormalization", "Add", "Mul", "Div", "Identity", "Dropout"})


@dataclass(frozen=True)
class Place:
    """One tensor that is stored as integers.

    Attributes
    ----------
    kind : {"weights", "activations"}
    tensor : str
        The float graph's name of it, as far as it is known.
    key : str
        Name of its Q node, or of the DequantizeLinear of a constant: what tells the place in every variant.
    dequantizes : tuple of str
        Names of the DequantizeLinear nodes that read it.
    readers : tuple of str
        Names of the operators behind them.
    quantization : Quantization
    """

    kind: Literal["weights", "activations"]
    tensor: str
    key: str
    dequantizes: tuple[str, ...]
    readers: tuple[str, ...]
    quantization: Quantization


@dataclass(frozen=True)
class Unit:
    """What is switched on and off together: an operator's weights, the activation that it makes, and what shares its
    scale.

    Attributes
    ----------
    layer, op : str
        The operator; for a stored model input the input's name and ``Input``.
    places : tuple of Place
    """

    layer: str
    op: str
    places: tuple[Place, ...]


class Places:
    """Every place of a quantized graph whose float value is known.

    Parameters
    ----------
    graph : Graph
        Float.
    q : Graph
        Quantized, in source form; its operators keep the float graph's names.
    """

    def __init__(self, graph: Graph, q: Graph):
        self.q = q
        self.floats = fold(graph)
        self.scaled = tuple(graph.source.get("rescaled", ()))  # of the float model itself, after the plan's transforms
        self.twins = {name: node for node in self.floats.nodes for name in (node.name, node.origin) if name}
        self.sources = {node.name: node for node in q.nodes}
        self.values: dict[str, Array] = {}  # key of a weight -> its float value
        self.biases: dict[str, Array | None] = {}  # DequantizeLinear of a bias -> its float value
        self.every: tuple[Place, ...] = tuple(self._found())
        self.ties: dict[str, str] = {}  # key of an activation -> that of the first which shares its scale
        self._tie()

    def _found(self) -> Iterator[Place]:
        for node in self.q.nodes:
            if node.op == "QuantizeLinear" and not node.domain:
                place = self._activation(node)
            elif node.op == "DequantizeLinear" and not node.domain and self.q.constant(node.inputs[0]) is not None:
                place = self._weight(node)
            else:
                place = None
            if place is not None:
                yield place

    def _activation(self, node: Node) -> Place | None:
        readers = self.q.consumers.get(node.outputs[0], ())
        how = self.q.tensors[node.outputs[0]].quantization
        # An integer operator that reads the stored value cannot be given the float one.
        if (
            how is None
            or not how.known
            or not readers
            or node.outputs[0] in self.q.outputs
            or any(reader.op != "DequantizeLinear" for reader in readers)
        ):
            return None
        constant = self.q.constant(node.inputs[0])
        behind = self._behind(readers)
        if constant is not None:
            self.values[node.name] = constant
        return Place(
            "activations" if constant is None else "weights",
            float_name(self.q, node.outputs[0]),
            node.name,
            tuple(reader.name for reader in readers),
            behind,
            how,
        )

    def _weight(self, node: Node) -> Place | None:
        how = self.q.tensors[node.inputs[0]].quantization
        readers = self._behind([node])
        reader = self.sources[readers[0]] if readers else None
        if how is None or not how.known or reader is None:
            return None
        slot = reader.inputs.index(node.outputs[0])
        value = self._twin(reader, slot, self.q.tensors[node.inputs[0]].shape)
        if self.q.tensors[node.inputs[0]].dtype in {"int32", "int64"}:
            self.biases[node.name] = value
            return None
        if value is None:
            return None
        self.values[node.name] = value
        return Place("weights", float_name(self.q, node.inputs[0]), node.name, (node.name,), readers, how)

    def _behind(self, dequantizes: Iterable[Node]) -> tuple[str, ...]:
        return tuple(reader.name for node in dequantizes for reader in self.q.consumers.get(node.outputs[0], ()))

    def _twin(self, reader: Node, slot: int, shape: tuple[object, ...]) -> Array | None:
        """The float graph's constant at the same operand of the same operator."""
        twin = self.twins.get(reader.name) or self.twins.get(reader.origin)
        if twin is None or twin.op != reader.op or slot >= len(twin.inputs):
            return None
        value = self.floats.constant(twin.inputs[slot])
        return value if value is not None and value.shape == shape and value.dtype == np.float32 else None

    def units(self) -> tuple[Unit, ...]:
        """The places, those of one operator together, in execution order."""
        made: dict[str, list[Place]] = {}
        order = {node.name: index for index, node in enumerate(self.q.nodes)}
        heads = {place.readers[0] for place in self.every if place.kind == "weights"}
        for place in self.every:
            chief = self.ties.get(place.key, place.key)
            layer = place.readers[0] if place.kind == "weights" else self._maker(self.sources[chief], heads)
            made.setdefault(layer, []).append(place)
        inputs = [name for name in made if name not in order]
        names = inputs + sorted((name for name in made if name in order), key=order.__getitem__)
        return tuple(
            Unit(name, self.sources[name].op if name in order else "Input", tuple(made[name])) for name in names
        )

    def _maker(self, quantize: Node, heads: set[str]) -> str:
        """The operator whose result a Q node stores: behind it only clamps and constant terms; an input's own name."""
        node = self.q.producers.get(quantize.inputs[0])
        while node is not None and node.op in FOLLOWERS and node.name not in heads:
            computed = [name for name in node.inputs if name and self.q.constant(name) is None]
            behind = self.q.producers.get(computed[0]) if len(computed) == 1 else None
            if behind is None or behind.op in {"QuantizeLinear", "DequantizeLinear"}:
                break
            node = behind
        if node is None:
            return quantize.inputs[0]
        # A value that is stored once more, in another type, belongs to the same maker.
        if node.op == "DequantizeLinear":
            return self._again(node, heads)
        return node.name

    def _again(self, node: Node, heads: set[str]) -> str:
        maker = self.q.producers.get(node.inputs[0])
        return self._maker(maker, heads) if maker is not None and maker.op == "QuantizeLinear" else node.name

    def _tie(self) -> None:
        """Activations that share a scale: by its name, or because one is the other moved."""
        first: dict[str, str] = {}
        made_by = {name: place for place in self.every for name in place.dequantizes}
        for place in self.every:
            if place.kind != "activations":
                continue
            node = self.sources[place.key]
            mover = self.q.producers.get(node.inputs[0])
            behind = None if mover is None or mover.op not in MOVES else self.q.producers.get(mover.inputs[0])
            source = None if behind is None else made_by.get(behind.name)
            chief = first.setdefault(node.inputs[1], place.key)
            if chief == place.key and source is not None and _same(source.quantization, place.quantization):
                chief = first[node.inputs[1]] = self.ties.get(source.key, source.key)
            self.ties[place.key] = chief

    def tied(self, place: Place) -> tuple[Place, ...]:
        """The activations that share the scale of `place`, itself among them; of a weight itself alone."""
        chief = self.ties.get(place.key)
        return (place,) if chief is None else tuple(one for one in self.every if self.ties.get(one.key) == chief)

    def rescaled(self) -> str:
        """Why the stored weights cannot be the float model's, or "" where they can: channels that keep their direction
        and not their length were scaled before they were quantized.
        """
        if set(self.q.source.get("rescaled", ())) - set(self.scaled):
            return "a transform of the plan scaled channels of the float model first"
        for place in self.every:
            value = self.values.get(place.key)
            stored = self.q.constant(self.sources[place.key].inputs[0])
            if place.kind != "weights" or value is None or stored is None or stored.dtype.kind == "f" or value.ndim < 2:
                continue
            how = place.quantization
            axis = how.axis if how.block is None else None
            if how.block is not None:
                continue
            real = dequantize(stored, how.scales(), how.zero_points(), axis).astype(np.float64)
            rows = [
                np.moveaxis(one, axis or 0, 0).reshape(value.shape[axis or 0], -1)
                for one in (value.astype(np.float64), real)
            ]
            lengths = [np.sqrt((one**2).sum(axis=1)) for one in rows]
            with np.errstate(divide="ignore", invalid="ignore"):
                cosine = (rows[0] * rows[1]).sum(axis=1) / (lengths[0] * lengths[1])
                apart = (cosine > 0.95) & (np.abs(np.log2(lengths[1] / lengths[0])) > 1)
            if apart.sum() * 2 > apart.size:
                return (
                    f"the stored weights of {place.readers[0]} are those of the float model scaled channel by channel"
                )
        return ""

    def by_key(self) -> Mapping[str, Place]:
        """Places by their key."""
        return {place.key: place for place in self.every}


def _same(one: Quantization, other: Quantization) -> bool:
    return (
        one.dtype == other.dtype
        and np.array_equal(one.scales(), other.scales())
        and np.array_equal(one.zero_points(), other.zero_points())
    )
