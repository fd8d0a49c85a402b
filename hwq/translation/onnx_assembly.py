"""An ONNX graph under construction from a TFLite one: every stored value, the real value under it, and both layouts of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Graph, Node, Quantization, Tensor
from hwq.translation import Translation, Value

__all__ = ["Held", "OnnxAssembly"]

# What a fused activation becomes: a plain operator, or a Clip with these bounds.
PLAIN = {"RELU": "Relu", "TANH": "Tanh"}
BOUNDS = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}
# Images: channels last to channels second, and back.
TO_SECOND, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True, eq=False)
class Held:
    """A value of the ONNX graph: its tensor, and how its integers stand for real numbers (None: it is what it is)."""

    name: str
    pair: Quantization | None


class OnnxAssembly:
    """Collects tensors and nodes. An image lies as the source has it until an operator wants its channels second."""

    def __init__(self, graph: Graph):
        self.source = graph
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.held: dict[tuple[str, bool], Held] = {}
        self._real: dict[str, str] = {}
        self._named: set[str] = set()
        self._taken: set[str] = set(graph.tensors) | {node.name for node in graph.nodes}
        for name in graph.inputs:
            tensor = graph.tensors[name]
            self.tensors[name] = Tensor(name, tensor.dtype, tensor.shape, known_shape=tensor.known_shape)
            self.held[name, False] = Held(name, tensor.quantization)

    def refuse(self, node: Node, what: str, why: str | None = None) -> Error:
        """An `Error` about an operator that ONNX cannot represent."""
        return Error(what, where=f"node {node.name} ({node.op})", why=why)

    def fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        made, number = name, 2
        while made in self._taken:
            made, number = f"{name}:{number}", number + 1
        self._taken.add(made)
        return made

    def constant(self, values: Any, name: str, dtype: str | None = None) -> str:
        """Add a constant; `dtype` where NumPy has no such type."""
        data = np.ascontiguousarray(values).reshape(np.shape(values))
        made = self.fresh(name)
        self.tensors[made] = Tensor(made, dtype or str(data.dtype), data.shape, data)
        return made

    def node(self, origin: Node, op: str, inputs: Sequence[str], outputs: Sequence[str], dtype: str = "float32", **attributes: Any) -> None:  # fmt: skip
        """Add an operator that makes new values; the first that does the source's work has the source's name."""
        for name in outputs:
            self.tensors[name] = Tensor(name, dtype, (), known_shape=False)
        plain = op in {"DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape"} or origin.name in self._named
        name = self.fresh(f"{op}:{outputs[0]}") if plain else origin.name
        self._named.add(name)
        self.nodes.append(Node(op, name, tuple(inputs), tuple(outputs), attributes, origin=origin.name))

    def step(self, origin: Node, op: str, inputs: Sequence[str], dtype: str = "float32", **attributes: Any) -> str:
        """Add an operator inside of what one operator of the source becomes; returns its value."""
        made = self.fresh(f"{origin.outputs[0]}:{op}")
        self.node(origin, op, inputs, [made], dtype, **attributes)
        return made

    def pair_of(self, name: str) -> Quantization | None:
        """How the source stores a value."""
        return self.source.tensors[name].quantization

    def constants(self, pair: Quantization, name: str) -> list[str]:
        """The scale and zero point of a Q or DQ."""
        scales, points = pair.scales(), pair.zero_points()
        found = [self.constant(scales, f"{name}_scale")]
        stored = pair.dtype if pair.dtype in {"int4", "uint4"} else None
        kind = {"int4": "int8", "uint4": "uint8"}.get(pair.dtype, pair.dtype)
        return [*found, self.constant(points.astype(kind), f"{name}_zero_point", stored)]

    def real(self, held: Held, origin: Node) -> str:
        """The real value under a stored one: its DQ."""
        if held.pair is None:
            return held.name
        if held.name not in self._real:
            made = self.fresh(f"{held.name}:real")
            attributes: dict[str, Any] = {} if held.pair.axis is None else {"axis": held.pair.axis}
            inputs = [held.name, *self.constants(held.pair, held.name)]
            self.node(origin, "DequantizeLinear", inputs, [made], **attributes)
            self._real[held.name] = made
        return self._real[held.name]

    def quantized(self, origin: Node, real: str, pair: Quantization | None, name: str) -> Held:
        """A Q behind a real value; the value itself where it has no pair."""
        if pair is None:
            return Held(real, None)
        self.node(origin, "QuantizeLinear", [real, *self.constants(pair, name)], [name], pair.dtype)
        return Held(name, pair)

    def turned(self, held: Held, order: Sequence[int], origin: Node, name: str) -> Held:
        """A value with its axes in another order."""
        return self.moved(held, "Transpose", (), origin, name, perm=tuple(order))

    def moved(self, held: Held, op: str, inputs: Sequence[str], origin: Node, name: str, **attributes: Any) -> Held:
        """A value after an operator that only moves its elements: they keep their scale."""
        dtype = self.tensors[held.name].dtype if held.pair is None else "float32"
        made = self.fresh(name if held.pair is None else f"{name}:moved")
        self.node(origin, op, [self.real(held, origin), *inputs], [made], dtype, **attributes)
        return self.quantized(origin, made, held.pair, made if held.pair is None else self.fresh(name))

    def has(self, name: str, second: bool) -> bool:
        """Whether a value lies in this layout already."""
        return (name, second) in self.held

    def take(self, name: str, origin: Node, second: bool = False) -> Held:
        """A value in a layout, turned where only the other one exists."""
        found = self.held.get((name, second))
        if found is not None:
            return found
        other = self.held.get((name, not second))
        if other is None:
            made = self._constant(name, origin, second)
        else:
            made = self.turned(other, TO_SECOND if second else TO_LAST, origin, self.named(name, second))
        self.held[name, second] = made
        return made

    def value(self, name: str, origin: Node, second: bool = False) -> str:
        """The real value of a tensor of the source."""
        return self.real(self.take(name, origin, second), origin)

    def _constant(self, name: str, origin: Node, second: bool) -> Held:
        tensor = self.source.tensors[name]
        if tensor.data is None:
            raise self.refuse(origin, f"the value {name} is made by an operator that ONNX cannot represent")
        data, pair = tensor.data, tensor.quantization
        if second:
            data = np.moveaxis(data, -1, 1)
            if pair is not None and pair.axis is not None:
                axis = {0: 0, 1: 2, 2: 3, 3: 1}[pair.axis]
                pair = Quantization(pair.dtype, pair.scale, pair.zero_point, axis)
        return Held(self.constant(data, self.named(name, second), tensor.dtype), pair)

    def named(self, name: str, second: bool) -> str:
        """What a value is called: as in the source, where its layout is the source's."""
        if second or name in self.tensors:
            return f"{name}:{'NCHW' if second else 'NHWC'}"
        self._taken.discard(name)
        return name

    def emit(
        self,
        node: Node,
        op: str,
        inputs: Sequence[str],
        *,
        second: bool = False,
        pair: Quantization | None = None,
        result: str | None = None,
        **attributes: Any,
    ) -> None:
        """Add the operator that makes a result of `node`, then its fused activation and its Q.

        Parameters
        ----------
        node : Node
        op : str
        inputs : sequence of str
        second : bool
            The result's channels stand second.
        pair : Quantization, optional
            Of an operator that only moves elements; default: the result's own.
        result : str, optional
            Default: the first output.
        """
        name = node.outputs[0] if result is None else result
        tensor = self.source.tensors[name]
        pair = tensor.quantization if pair is None else pair
        steps: list[tuple[str, list[str], dict[str, Any]]] = [(op, list(inputs), attributes)]
        activation = str(node.attributes.get("activation", "NONE"))
        if activation != "NONE":
            steps.append(self.activation(node, activation))
        dtype = "float32" if pair is not None else tensor.dtype
        final = self.fresh(self.named(name, second))
        given = ""
        for index, (kind, operands, options) in enumerate(steps):
            last = index == len(steps) - 1
            made = final if last and pair is None else self.fresh(f"{name}:{kind}")
            self.node(node, kind, operands if index == 0 else [given, *operands], [made], dtype, **options)
            given = made
        self.held[name, second] = self.quantized(node, given, pair, final)

    def activation(self, node: Node, kind: str) -> tuple[str, list[str], dict[str, Any]]:
        """(operator, operands besides the value, attributes) of an activation."""
        if kind in PLAIN:
            return PLAIN[kind], [], {}
        if kind not in BOUNDS:
            raise self.refuse(node, f"ONNX has no counterpart of the activation {kind}")
        ends = BOUNDS[kind]
        return "Clip", [self.constant(np.float32(end), f"{node.outputs[0]}_{word}") for end, word in zip(ends, ("low", "high"), strict=True)], {}  # fmt: skip

    def finish(self) -> Translation:
        """The graph with the source's inputs and outputs, and where its values lie."""
        from hwq.ops.inference import infer_shapes, pruned

        source, outputs = self.source, []
        for name in source.outputs:
            held = self.held.get((name, False))
            if held is None:
                held = self.take(name, source.producers.get(name, source.nodes[-1]))
            outputs.append(held.name)
        values = {
            name: Value(held.name, (1, -1) if second else None)
            for (name, second), held in sorted(self.held.items(), key=lambda entry: -entry[0][1])
            if source.constant(name) is None
        }
        facts = {key: value for key, value in source.source.items() if key != "opset"}
        graph = Graph(self.nodes, self.tensors.values(), source.inputs, outputs, name=source.name, dialect="ort", source=facts)  # fmt: skip
        return Translation(pruned(infer_shapes(graph)), values)
