"""Graph: what the model said, in source form, or the fused groups that a runtime or a machine makes of it, in lowered form.

Q/DQ are ordinary nodes in source form. In lowered form a node works on quantized tensors directly: `Tensor.quantization`
says how, and `Node.body` holds the source nodes that the group swallowed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from hwq.elements import BITS, carrier
from hwq.errors import Error
from hwq.names import display_name
from hwq.node import Node
from hwq.tensor import Array, Dim, Quantization, Shape, Tensor
from hwq.topology import sort_nodes

__all__ = ["BITS", "Array", "Dim", "Graph", "Node", "Quantization", "Shape", "Tensor", "carrier"]


class Graph:
    """An immutable graph of nodes in execution order.

    Parameters
    ----------
    nodes : iterable of Node
        In any order; they are sorted so that every value is made before it is used (stable for sorted input).
    tensors : iterable of Tensor
        Every value: inputs, constants and outputs of nodes.
    inputs, outputs : sequence of str
        Names of the model's inputs (constants excluded) and outputs.
    name : str
    form : {"source", "lowered"}
    dialect : str
        The rounding contract that goes with the graph (DESIGN: tflite gives ``litert-ref``, onnx gives ``ort``).
    source : mapping
        Facts about the origin: ``file``, ``sha256``, ``producer``, ``opset``.

    Raises
    ------
    Error
        A value is made twice or never, or the nodes form a cycle.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        tensors: Iterable[Tensor],
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        name: str = "graph",
        form: Literal["source", "lowered"] = "source",
        dialect: str = "ort",
        source: Mapping[str, Any] | None = None,
    ):
        self.name = name
        self.form: Literal["source", "lowered"] = form
        self.dialect = dialect
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.source: Mapping[str, Any] = MappingProxyType(dict(source or {}))
        self.tensors: Mapping[str, Tensor] = MappingProxyType({tensor.name: tensor for tensor in tensors})
        self.nodes = sort_nodes(tuple(nodes), self.tensors, self.inputs)
        for output in self.outputs:
            if output not in self.tensors:
                raise Error("the graph's output is made by no node", where=f"output {output}")

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            _rebuild,
            (
                self.nodes,
                tuple(self.tensors.values()),
                self.inputs,
                self.outputs,
                self.name,
                self.form,
                self.dialect,
                dict(self.source),
            ),
        )

    def replace(self, **changes: Any) -> Graph:
        """Return a copy with some of the constructor's arguments changed."""
        arguments: dict[str, Any] = {
            "nodes": self.nodes, "tensors": self.tensors.values(), "inputs": self.inputs, "outputs": self.outputs,
            "name": self.name, "form": self.form, "dialect": self.dialect, "source": self.source,
        }  # fmt: skip
        arguments.update(changes)
        return Graph(**arguments)

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that makes each tensor; inputs and constants are absent."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each tensor, in order, each once."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                if value:
                    readers.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in readers.items()}

    def node(self, name: str) -> Node:
        """The node called `name`.

        Raises
        ------
        Error
            There is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise Error(
                "the graph has no such node", where=f"node {name}", remedy="hwq inspect MODEL lists them"
            ) from None

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def constant(self, name: str) -> Array | None:
        """The value of a constant tensor, or None for an absent name or a tensor that is computed."""
        tensor = self.tensors.get(name) if name else None
        return None if tensor is None else tensor.data

    @property
    def parameters(self) -> int:
        """Elements of the model's weights: every floating-point or quantized constant of two elements or more.

        Scales and zero points of Q/DQ nodes and of Resize are not weights, nor are the single numbers that formulas hold.
        """
        return sum(tensor.elements for tensor in self._weights())

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the same constants."""
        return sum(tensor.bytes for tensor in self._weights())

    def _weights(self) -> list[Tensor]:
        made, inputs = self.producers, set(self.inputs)
        scales = {
            value
            for node in self.nodes
            if node.op in {"QuantizeLinear", "DequantizeLinear", "Resize"}
            for value in node.inputs[1:]
        }
        stored = {node.inputs[0] for node in self.nodes if node.op == "DequantizeLinear"}
        return [
            tensor
            for tensor in self.tensors.values()
            if tensor.name not in made
            and tensor.name not in inputs
            and tensor.name not in scales
            and tensor.concrete
            and tensor.elements > 1
            and (
                tensor.name in stored or tensor.quantization is not None or tensor.dtype.startswith(("float", "bfloat"))
            )
        ]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over structure and constants, as 64 hexadecimal digits."""
        from hwq.graph_file import digest

        return digest(self)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the graph as one ``.npz`` (a JSON header and plain arrays, no pickles); `load` gives an equal graph.

        Raises
        ------
        Error
            The file exists and `overwrite` is false, or the folder cannot be written.
        """
        from hwq.graph_file import save

        save(self, path, overwrite=overwrite)

    @staticmethod
    def load(path: str | os.PathLike[str], max_bytes: int | None = None) -> Graph:
        """Read a graph that `save` wrote.

        Raises
        ------
        Error
            The file is missing, damaged, too large or no saved graph.
        """
        from hwq.graph_file import load

        return load(path, max_bytes)

    def to_text(self) -> str:
        """One line a node: outputs, operator, inputs, shapes and types; stable, so that two graphs can be diffed."""
        lines = [f"graph {display_name(self.name)} ({self.form}, dialect {self.dialect})"]
        lines += [f"  input  {_value(self.tensors[name])}" for name in self.inputs]
        for node in self.nodes:
            made = ", ".join(_value(self.tensors[name]) for name in node.outputs if name)
            read = ", ".join(display_name(name) if name else "-" for name in node.inputs)
            extra = f"  [{' + '.join(part.op for part in node.body)}]" if node.body else ""
            lines.append(f"  {display_name(node.name)}: {made} = {display_name(node.kind)}({read}){extra}")
        lines += [f"  output {_value(self.tensors[name])}" for name in self.outputs]
        return "\n".join(lines)

    __str__ = to_text

    def __repr__(self) -> str:
        return f"<Graph {display_name(self.name)}: {len(self.nodes)} nodes, {self.form} form, dialect {self.dialect}>"


def _rebuild(
    nodes: Any, tensors: Any, inputs: Any, outputs: Any, name: str, form: Any, dialect: str, source: Any
) -> Graph:
    return Graph(nodes, tensors, inputs, outputs, name=name, form=form, dialect=dialect, source=source)


def _value(tensor: Tensor) -> str:
    shape = "x".join(str(dim) for dim in tensor.shape) if tensor.known_shape else "?"
    dtype = tensor.quantization.dtype if tensor.quantization else tensor.dtype
    return f"{display_name(tensor.name)}:{dtype}[{display_name(shape)}]"


def with_tensors(graph: Graph, changed: Mapping[str, Tensor]) -> Graph:
    """Return `graph` with some tensors replaced by others of the same name."""
    return graph.replace(tensors=[changed.get(name, tensor) for name, tensor in graph.tensors.items()])


replace = dataclasses.replace
