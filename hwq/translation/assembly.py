"""A TFLite graph under construction: values with their layouts, and what stands for a Q, a DQ or a constant of the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Quantization, Shape, Tensor
from hwq.lowering.pairs import Affine, affine
from hwq.lowering.rewriting import Draft
from hwq.translation import Value
from hwq.translation.pairs import moved

__all__ = ["Assembly", "Held", "refuse"]


def refuse(node: Node, what: str, why: str | None = None) -> Error:
    """An `Error` about a node that the other runtime cannot represent."""
    return Error(what, where=f"node {node.name} ({node.op})", why=why)


@dataclass(eq=False)
class Held:
    """A value of the source in the translated graph.

    Attributes
    ----------
    shape : tuple
        In the source's layout.
    dtype : str
    quantization : Quantization or None
    names : dict of bool to str
        Its tensors by whether their channels stand last.
    offset : int
        What its stored integers have more than the source's.
    data : array or None
        A constant's value, in the source's layout.
    """

    shape: Shape
    dtype: str
    quantization: Quantization | None = None
    names: dict[bool, str] = field(default_factory=dict)
    offset: int = 0
    data: Array | None = None

    @property
    def scale(self) -> np.float32:
        """The one scale."""
        assert self.quantization is not None
        return np.float32(self.quantization.scales().reshape(()))

    def like(self, shape: Shape) -> Held:
        """Another value of the same type and quantization."""
        return Held(shape, self.dtype, self.quantization, offset=self.offset)


class Assembly:
    """Collects tensors and nodes; `sign` is the type that 8-bit activations take."""

    def __init__(self, graph: Graph, sign: str):
        self.source, self.sign = graph, sign
        self.draft = Draft(graph)
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.stored: dict[str, Held] = {}
        self.dequantized: dict[str, tuple[str, Affine]] = {}
        self.real: dict[str, Held] = {}
        self.taken: set[str] = set(graph.tensors)

    def fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        made, number = name, 2
        while made in self.taken:
            made, number = f"{name}:{number}", number + 1
        self.taken.add(made)
        return made

    def constant(self, values: Any, name: str, dtype: str = "int32", quantization: Quantization | None = None) -> str:
        """Add a constant."""
        data = np.ascontiguousarray(np.asarray(values, None if dtype == "int4" else dtype))
        made = self.fresh(name)
        self.tensors[made] = Tensor(made, dtype, data.shape, data, quantization)
        return made

    def node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], origin: Node | None, **attributes: Any
    ) -> None:
        """Add an operator."""
        name = self.fresh(f"{op}:{outputs[0]}")
        self.nodes.append(Node(op, name, tuple(inputs), tuple(outputs), attributes, "tflite", origin.name if origin else name, "NHWC"))  # fmt: skip

    def make(self, held: Held, name: str, last: bool = False) -> str:
        """Declare a tensor for a value and return its name."""
        made = name if name not in self.tensors else self.fresh(name)
        self.taken.add(made)
        self.tensors[made] = Tensor(made, held.dtype, (), None, held.quantization, known_shape=False)
        held.names[last] = made
        return made

    def take(self, held: Held, last: bool = False) -> str:
        """A value's tensor in a layout; turned where only the other one exists."""
        if last in held.names:
            return held.names[last]
        if held.data is not None:
            data = np.moveaxis(held.data, 1, -1) if last else held.data
            held.names[last] = self.constant(data, "constant", held.dtype, held.quantization)
            return held.names[last]
        given = held.names[not last]
        made = self.make(held, self.fresh(f"{given}:{'NHWC' if last else 'NCHW'}"), last)
        order = self.constant((0, 2, 3, 1) if last else (0, 3, 1, 2), "order")
        self.node("TRANSPOSE", [given, order], [made], None)
        return made

    def pair(self, node: Node) -> Affine:
        """The constants of a Q or DQ node.

        Raises
        ------
        Error
            They are computed, blocked, or no float32.
        """
        found = affine(self.draft, node)
        if found is None or found.block is not None:
            raise refuse(node, "scale and zero point must be float32 constants per tensor or channel")
        return found

    def scheme(self, found: Affine, node: Node) -> tuple[str, Quantization, int]:
        """(stored type, quantization, offset) of an activation.

        Raises
        ------
        Error
            TFLite has no such type, or no such quantization of it.
        """
        if not found.scalar:
            raise refuse(node, "activations have one scale each in TFLite", "these have one a channel")
        if found.dtype in {"int8", "uint8"}:
            quantization, offset = moved(found.quantization(), self.sign)
            return self.sign, quantization, offset
        if found.dtype == "int16" and not found.offset:
            return "int16", found.quantization(), 0
        raise refuse(node, f"TFLite has no {found.dtype} activations with zero point {found.offset}")

    def integer(self, value: str) -> Held | None:
        """The stored value under a DQ (or the stored value itself), or None where the value is real."""
        if value in self.stored:
            return self.stored[value]
        found = self.dequantized.get(value)
        if found is None:
            return None
        name, pair = found
        if name not in self.stored:
            data = self.source.constant(name)
            maker = self.source.producers[value]
            if name in self.source.inputs:
                self.stored[name] = self._entry(name, pair, maker)
                return self.stored[name]
            if data is None:
                raise refuse(maker, f"the stored value {name} is made by an operator that TFLite cannot represent")
            dtype, quantization, offset = self.scheme(pair, maker)
            self.stored[name] = Held(data.shape, dtype, quantization, offset=offset, data=(data.astype(np.int64) + offset).astype(dtype))  # fmt: skip
        return self.stored[name]

    def _entry(self, name: str, pair: Affine, maker: Node) -> Held:
        """A stored input of the model."""
        tensor = self.source.tensors[name]
        dtype, quantization, offset = self.scheme(pair, maker)
        given = Held(tensor.shape, tensor.dtype, pair.quantization(), {False: name})
        self.tensors[name] = Tensor(name, tensor.dtype, tensor.shape, None, given.quantization)
        if tensor.dtype == dtype:
            return given
        made = Held(tensor.shape, dtype, quantization, offset=offset)
        self.node("QUANTIZE", [name], [self.make(made, self.fresh(f"{name}:{dtype}"))], None, to=dtype)
        return made

    def constant_of(self, value: str) -> tuple[Array, Affine | None] | None:
        """(data, pair) of a constant, behind a DQ or plain; None where it is computed."""
        plain = self.source.constant(value)
        if plain is not None:
            return plain, None
        found = self.dequantized.get(value)
        data = None if found is None else self.source.constant(found[0])
        return None if found is None or data is None else (data, found[1])

    def numbers(self, value: str) -> Array | None:
        """A constant's real numbers in float32."""
        found = self.constant_of(value)
        if found is None:
            return None
        data, pair = found
        if pair is None:
            return data.astype(np.float32)
        shape = (
            [-1 if axis == pair.axis else 1 for axis in range(data.ndim)] if pair.scale.size > 1 else [1] * data.ndim
        )
        points = np.zeros(1, np.int64) if pair.zero_point is None else pair.zero_point.astype(np.int64)
        distance = data.astype(np.int64) - points.reshape(shape if points.size > 1 else [1] * data.ndim)
        return (distance.astype(np.float32) * pair.scale.reshape(shape)).astype(np.float32)

    def float(self, value: str, node: Node) -> Held:
        """A value as real numbers: an input, an operator's result, a constant, or a stored value dequantized.

        Raises
        ------
        Error
            Its maker cannot be represented.
        """
        if value in self.real:
            return self.real[value]
        data = self.numbers(value)
        if data is not None:
            self.real[value] = Held(data.shape, "float32", data=data)
            return self.real[value]
        under = self.integer(value)
        if under is None:
            raise refuse(node, f"its operand {value} cannot be represented")
        last = False not in under.names and bool(under.names)
        made = Held(under.shape, "float32")
        source = self.take(under, last)
        self.node("DEQUANTIZE", [source], [self.make(made, value, last)], None, to="float32")
        self.real[value] = made
        return made

    def requantized(self, held: Held, dtype: str, quantization: Quantization, offset: int, name: str) -> Held:
        """A stored value with another scale, zero point or type; the value itself where nothing differs."""
        given = held.quantization
        assert given is not None
        same = dtype == held.dtype and given.scales() == quantization.scales() and given.zero_points() == quantization.zero_points()  # fmt: skip
        if same:
            return held
        made = Held(held.shape, dtype, quantization, offset=offset)
        last = False not in held.names and bool(held.names)
        source = self.take(held, last)
        self.node("QUANTIZE", [source], [self.make(made, name, last)], None, to=dtype)
        return made

    def quantize(self, node: Node) -> None:
        """A Q that no operator swallowed."""
        dtype, quantization, offset = self.scheme(self.pair(node), node)
        under, name = self.integer(node.inputs[0]), node.outputs[0]
        if under is not None:
            self.stored[name] = self.requantized(under, dtype, quantization, offset, name)
            return
        given = self.float(node.inputs[0], node)
        made = Held(given.shape, dtype, quantization, offset=offset)
        last = False not in given.names and bool(given.names)
        source = self.take(given, last)
        self.node("QUANTIZE", [source], [self.make(made, name, last)], node, to=dtype)
        self.stored[name] = made

    def finish(self, dialect: str) -> tuple[Graph, dict[str, Value]]:
        """The graph with the source's inputs and outputs, and where its values lie."""
        from hwq.ops.inference import infer_shapes

        source = self.source
        values = {
            name: Value(held.names[False], None, -held.offset)
            if False in held.names
            else Value(held.names[True], (-1, 1), -held.offset)
            for held_by in (self.stored, self.real)
            for name, held in held_by.items()
            if held.data is None and held.names
        }
        outputs = []
        for name in source.outputs:
            if name in self.stored:
                tensor, held = source.tensors[name], self.stored[name]
                made = self.take(held)
                if tensor.dtype != held.dtype:
                    back, _ = moved(held.quantization, tensor.dtype)  # type: ignore[arg-type]
                    final = self.make(Held(held.shape, tensor.dtype, back), self.fresh(f"{name}:{tensor.dtype}"))
                    self.node("QUANTIZE", [made], [final], None, to=tensor.dtype)
                    made = final
                outputs.append(made)
            else:
                outputs.append(self.take(self.float(name, source.producers.get(name) or source.nodes[-1])))
        used = {value for node in self.nodes for value in node.inputs} | {
            value for node in self.nodes for value in node.outputs
        }
        tensors = [
            tensor for name, tensor in self.tensors.items() if name in used or name in source.inputs or name in outputs
        ]
        graph = Graph(self.nodes, tensors, source.inputs, outputs, name=source.name, dialect=dialect, source=source.source)  # fmt: skip
        return infer_shapes(graph), values
