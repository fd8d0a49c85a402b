"""Steps: what one node of a lowered graph does to arrays. A table says which kernel serves which operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hwq.dialect import Dialect
from hwq.errors import Error
from hwq.execution.emission import Emitter
from hwq.graph import Array, Graph, Node, Quantization, Tensor
from hwq.ops.application import FAILURES, evaluate_node
from hwq.ops.dims import fault

__all__ = ["Builder", "Gemm", "Kernel", "Scope", "Settings", "View", "build", "interpret", "register", "step_name"]


class Gemm(Protocol):
    """What may stand in for the integer GEMM: a stepped array, a model of one, another library.

    If it has a method ``enter(name, op)``, that is called before each node with the node's name and operator.
    """

    def __call__(self, a: Array, b: Array, *, a_zero_point: int, b_zero_points: Array) -> Array:
        """The accumulators ``sum over k of (a[m, k] - a_zero_point) * (b[k, n] - b_zero_points[n])``, modulo 2^32.

        Parameters
        ----------
        a : uint8 or int8 array (M, K)
        b : uint8 or int8 array (K, N)
        a_zero_point : int
        b_zero_points : int32 array (N,)

        Returns
        -------
        int32 array (M, N)
        """


@dataclass(frozen=True)
class Settings:
    """What a session gives to every step."""

    threads: int = 1
    gemm: Gemm | None = None


class Kernel(Protocol):
    """One node made ready: weights packed, tables built.

    `in_place` kernels write into the arrays that they are given; the others return arrays of their own, which share no
    memory with their operands.
    """

    @property
    def in_place(self) -> bool:
        """Whether it fills the arrays that it is given."""

    @property
    def emit(self) -> Emitter | None:
        """How to write the node down as C steps; None where only this kernel can compute it."""

    def __call__(
        self, operands: Sequence[Array | None], outs: Sequence[Array | None], settings: Settings
    ) -> Sequence[Array]:
        """Compute the node. `outs` holds an array to fill for each output, or None; the results are returned."""


@dataclass(frozen=True)
class Scope:
    """What a builder may look at."""

    graph: Graph
    dialect: Dialect
    node: Node

    def operand(self, index: int) -> Tensor | None:
        """An input's tensor; None where it is absent."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else ""
        return self.graph.tensors[value] if value else None

    def fixed(self, index: int) -> bool:
        """Whether an input is a constant that onnxruntime takes for one: its kernels prepare nothing that a caller may replace,
        nor, without optimization, anything computed."""
        tensor, notes = self.operand(index), self.graph.source
        moving = {*notes.get("overridable", ()), *(() if self.dialect.fused else notes.get("folded", ()))}
        return tensor is not None and tensor.data is not None and tensor.name not in moving

    def result(self, index: int = 0) -> Tensor:
        """An output's tensor."""
        return self.graph.tensors[self.node.outputs[index]]

    def quantization(self, index: int) -> Quantization:
        """How an input is stored.

        Raises
        ------
        Error
            It is not quantized.
        """
        tensor = self.operand(index)
        if tensor is None or tensor.quantization is None:
            raise fault(self.node, f"input {index} of this group must be quantized")
        return tensor.quantization

    def pair(self, index: int) -> tuple[np.float32, int]:
        """Scale and zero point of an input that has one of each."""
        return scalar(self.node, self.quantization(index))

    def made_pair(self) -> tuple[np.float32, int]:
        """Scale and zero point of the first output."""
        quantization = self.result().quantization
        if quantization is None:
            raise fault(self.node, "the output of this group must be quantized")
        return scalar(self.node, quantization)


def scalar(node: Node, quantization: Quantization) -> tuple[np.float32, int]:
    """The one scale and the one zero point of a tensor."""
    scales, zeros = quantization.scales(), quantization.zero_points()
    if scales.size != 1 or zeros.size != 1:
        raise fault(node, "an activation of this group has more than one scale", "its kernel takes one per tensor")
    return np.float32(scales.reshape(())), int(zeros.reshape(()))


Builder = Callable[[Scope], Kernel]
BUILDERS: dict[str, Builder] = {}


def register(*names: str) -> Callable[[Builder], Builder]:
    """Decorator: `names` are operators of groups (quantized operands), ``float:NAME`` for float ones, ``DIALECT:NAME`` for groups
    of one dialect alone."""

    def note(builder: Builder) -> Builder:
        for name in names:
            # Two builders under one name would run whichever module was imported last.
            assert name not in BUILDERS, name
            BUILDERS[name] = builder
        return builder

    return note


def is_group(graph: Graph, node: Node) -> bool:
    """Whether a node works on quantized tensors, rather than being a Q, a DQ or a float island."""
    if node.op in {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"} or node.op.endswith("Integer"):
        return False
    if node.op.startswith("QLinear") or node.domain == "com.microsoft":  # integer operators, computed as they stand
        return False
    if node.domain == "tflite":  # computes on its tensors as they are stored
        return False
    if (
        node.op == "Clip"
        and len(node.inputs) == 3
        and all(node.inputs)
        and len({graph.tensors[value].dtype for value in node.inputs}) == 1
    ):
        if graph.tensors[node.inputs[1]].dtype in {"int8", "uint8"}:
            return False  # bounds on stored values, of their own type: PT2E's quant_min and quant_max
    return any(graph.tensors[value].quantization is not None for value in (*node.inputs, *node.outputs) if value)


def step_name(graph: Graph, node: Node) -> str:
    """The key of a node's builder."""
    if node.domain:
        return node.kind
    return node.op if is_group(graph, node) or node.op.endswith("Linear") else f"float:{node.op}"


def build(graph: Graph, dialect: Dialect, node: Node) -> Kernel:
    """The kernel of one node.

    Raises
    ------
    Error
        There is no kernel for these operands, or the operator is unknown.
    """
    key = step_name(graph, node)
    builder = BUILDERS.get(f"{dialect.name}:{key}") or BUILDERS.get(key, interpret)
    try:
        return builder(Scope(graph, dialect, node))
    except Error:
        raise
    except FAILURES as error:
        raise fault(node, "its operands do not fit it", f"{type(error).__name__}: {error}") from error


# Operators whose result is the operand's memory in another shape.
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


@dataclass(frozen=True)
class View:
    """The first operand in another shape, in place."""

    node: Node
    in_place: bool = False
    emit: Emitter | None = None

    def __call__(
        self, operands: Sequence[Array | None], outs: Sequence[Array | None], settings: Settings
    ) -> Sequence[Array]:
        """See `Kernel`."""
        return evaluate_node(self.node, operands)


@dataclass(frozen=True)
class Interpreted:
    """The operator's own value, from `hwq.ops`: float islands, and ops that only move or compare stored numbers."""

    node: Node
    emit: Emitter | None = None
    in_place: bool = False
    graph: Graph | None = None

    def __call__(
        self, operands: Sequence[Array | None], outs: Sequence[Array | None], settings: Settings
    ) -> Sequence[Array]:
        """See `Kernel`."""
        made = evaluate_node(self.node, operands, self.graph)
        # Results must not lie in an operand's memory, which another value may take over.
        return [
            value.copy() if any(one is not None and np.may_share_memory(value, one) for one in operands) else value
            for value in made
        ]


# What may be done on stored numbers as they are: one scale and zero point holds for operand and result.
ON_STORED = frozenset(
    {
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Transpose",
        "Slice",
        "Gather",
        "GatherElements",
        "Tile",
        "Expand",
        "Split",
        "MaxPool",
        "ReduceMax",
        "ReduceMin",
        "ArgMax",
        "Resize",
        "Concat",
        "Pad",
        "DepthToSpace",
        "SpaceToDepth",
        "GatherND",
    }
)


def interpret(scope: Scope, emit: Emitter | None = None) -> Kernel:
    """`View` or `Interpreted`, with the C steps that come to the same.

    Raises
    ------
    Error
        The operator is unknown, or would read stored numbers as if they were real ones.
    """
    from hwq.ops.base import lookup

    lookup(scope.node)
    if is_group(scope.graph, scope.node) and scope.node.op not in ON_STORED:
        raise fault(scope.node, f"dialect {scope.dialect.name} has no kernel for a quantized {scope.node.op}")
    if scope.node.op in VIEWS and not scope.node.domain:
        return View(scope.node)
    # TFLite's operators take scales from the graph.
    return Interpreted(scope.node, emit, graph=scope.graph if scope.node.domain == "tflite" else None)


def adapt(function: Callable[[Sequence[Array | None], Settings], Array], emit: Emitter | None = None) -> Kernel:
    """A kernel with one output from a plain function that allocates its own result."""
    return _Plain(function, emit)


@dataclass(frozen=True)
class _Plain:
    function: Callable[[Sequence[Array | None], Settings], Array]
    emit: Emitter | None = None
    in_place: bool = False

    def __call__(
        self, operands: Sequence[Array | None], outs: Sequence[Array | None], settings: Settings
    ) -> Sequence[Array]:
        return [self.function(operands, settings)]


def writing(
    function: Callable[[Sequence[Array | None], Array | None, Settings], Array], emit: Emitter | None = None
) -> Kernel:
    """A kernel with one output from a function that fills `out` where it is given."""
    return _Writing(function, emit)


@dataclass(frozen=True)
class _Writing:
    function: Callable[[Sequence[Array | None], Array | None, Settings], Array]
    emit: Emitter | None = None
    in_place: bool = True

    def __call__(
        self, operands: Sequence[Array | None], outs: Sequence[Array | None], settings: Settings
    ) -> Sequence[Array]:
        return [self.function(operands, outs[0], settings)]


def present(value: Any) -> Any:
    """An operand that the operator requires."""
    assert value is not None
    return value


Table = Mapping[str, Builder]
