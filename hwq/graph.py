"""Graph: what the model said, in source form, or the fused groups that a runtime or a machine makes of it, in lowered form.

Q/DQ are ordinary nodes in source form. In lowered form a node works on quantized tensors directly: `Tensor.quantization`
says how, and `Node.body` holds the source nodes that the group swallowed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwq.elements import BITS, carrier
from hwq.errors import Error
from hwq.names import display_name
from hwq.topology import sort_nodes

__all__ = ["BITS", "Array", "Dim", "Graph", "Node", "Quantization", "Shape", "Tensor", "carrier"]

Array = NDArray[Any]
Dim = int | str  # a str is a symbol that stays open until shapes are bound, such as the batch "N"
Shape = tuple[Dim, ...]


@dataclass(frozen=True, eq=False)
class Quantization:
    """How stored integers stand for real numbers: ``real = (stored - zero_point) * scale``.

    Parameters
    ----------
    dtype : str
        Stored type, a key of `BITS`.
    scale : float32 array, str or None
        Shape () per tensor, (C,) per channel along `axis`, or the tensor's rank when `block` is set. The *name of a
        tensor* when computed at run time. None: planned but unset (cost only; execution refuses).
        Its bits are the source's and are never recomputed.
    zero_point : integer array, str or None
        Same shape as `scale`. None with a scale given means 0.
    axis : int, optional
        The channel axis, or with `block` the axis that is cut into blocks.
    block : int, optional
        Elements per block along `axis`.
    storage : {"plain", "packed"}
        Whether the source file packs several elements into a byte.
    """

    dtype: str
    scale: Array | str | None = None
    zero_point: Array | str | None = None
    axis: int | None = None
    block: int | None = None
    storage: Literal["plain", "packed"] = "plain"

    @property
    def bits(self) -> int:
        """Bits of one stored element."""
        return BITS[self.dtype]

    @property
    def granularity(self) -> Literal["tensor", "channel", "group"]:
        """One scale for the tensor, one a channel, or one a group of `block` elements."""
        if self.block is not None:
            return "group"
        return "tensor" if self.axis is None else "channel"

    @property
    def dynamic(self) -> bool:
        """Whether the scale is computed at run time."""
        return isinstance(self.scale, str)

    @property
    def known(self) -> bool:
        """Whether the scale's values are known now."""
        return isinstance(self.scale, np.ndarray)

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 0."""
        return self.zero_point is None or (isinstance(self.zero_point, np.ndarray) and not np.any(self.zero_point))

    def scales(self) -> NDArray[np.float32]:
        """The scale as a float32 array.

        Raises
        ------
        Error
            The scale is unset or computed at run time.
        """
        if not isinstance(self.scale, np.ndarray):
            raise Error(
                "this quantization has no scale yet" if self.scale is None else "this scale is computed at run time",
                why="the graph was planned for cost only" if self.scale is None else None,
                remedy="quantize with a Calibration" if self.scale is None else None,
            )
        return np.asarray(self.scale, dtype=np.float32)

    def zero_points(self) -> NDArray[np.int32]:
        """The zero point as an int32 array of the scale's shape."""
        scale = self.scales()
        if self.zero_point is None:
            return np.zeros(scale.shape, np.int32)
        return np.broadcast_to(np.asarray(self.zero_point).astype(np.int32), scale.shape)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph: an input, a constant or a node's output.

    `data` is the constant's value, held in `carrier(dtype)`, or None. `known_shape` tells whether the shape was stated
    or inferred at all (an unknown rank has ``shape=()`` and ``known_shape=False``).
    """

    name: str
    dtype: str = "float32"
    shape: Shape = ()
    data: Array | None = None
    quantization: Quantization | None = None
    known_shape: bool = True

    def __post_init__(self) -> None:
        if self.data is not None and self.data.flags.writeable:
            frozen = self.data.view()
            frozen.flags.writeable = False
            object.__setattr__(self, "data", frozen)

    @property
    def constant(self) -> bool:
        """Whether the value is known before the model runs."""
        return self.data is not None

    @property
    def concrete(self) -> bool:
        """Whether every dimension is a number."""
        return self.known_shape and all(isinstance(dim, int) for dim in self.shape)

    @property
    def bits(self) -> int:
        """Bits of one stored element."""
        return self.quantization.bits if self.quantization else BITS[self.dtype]

    @property
    def elements(self) -> int:
        """Number of elements.

        Raises
        ------
        Error
            A dimension is still a symbol.
        """
        if not self.concrete:
            raise Error(
                f"the shape {list(self.shape)} still has open dimensions",
                where=f"tensor {self.name}",
                remedy="bind the inputs' open dimensions: --shape INPUT=1,3,224,224, or hwq.load(..., shapes={input: shape}), or batch=",
            )
        count = 1
        for dim in self.shape:
            count *= int(dim)
        return count

    @property
    def bytes(self) -> int:
        """Bytes in a runtime's memory, sub-byte elements packed, rounded up."""
        return (self.elements * self.bits + 7) // 8


@dataclass(frozen=True, eq=False)
class Node:
    """One operator of the graph, or in lowered form one fused group.

    Parameters
    ----------
    op : str
        ONNX's name of the operator where it has one; in a group the operator that does the main work.
    name : str
        Unique in its graph.
    inputs, outputs : tuple of str
        Tensor names; ``""`` stands for an optional input or output that is absent.
    attributes : mapping
        ints, floats, strings, tuples of them, or arrays.
    domain : str
        ``""`` is ONNX's own.
    origin : str
        The name in the source file.
    layout : {"", "NCHW", "NHWC"}
        Of spatial nodes: where the channels stand. Spatial ranks other than 2 keep the word (NCW is "NCHW").
    body : tuple of Node
        The source nodes that a group swallowed, in order; empty in source form.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    origin: str = ""
    layout: Literal["", "NCHW", "NHWC"] = ""
    body: tuple[Node, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Node, tuple((values | {"attributes": dict(self.attributes)}).values())

    @property
    def kind(self) -> str:
        """The operator with its domain, as messages print it."""
        return f"{self.domain}::{self.op}" if self.domain else self.op


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
