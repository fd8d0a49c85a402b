"""A program at concrete input shapes: every value's shape, and its place in one arena."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwq.errors import Error
from hwq.execution.loop import Loop, emit
from hwq.execution.steps import ON_STORED, Kernel, View, is_group
from hwq.files import MAX_BYTES
from hwq.graph import Array, Graph, Node, Tensor, carrier
from hwq.lowering.liveness import Lifetime, place
from hwq.ops.application import evaluate_node
from hwq.ops.inference import infer_node

__all__ = ["Instruction", "Slot", "Specialization", "specialize"]

# Constants computed while specializing (shapes and what follows from them) are kept up to this many elements.
FOLDED_ELEMENTS = 4096


@dataclass(frozen=True)
class Slot:
    """A value's place: `offset` bytes into the arena."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


@dataclass(frozen=True)
class Instruction:
    """One step: values by index; `dead` are those that no later step reads."""

    kernel: Kernel
    node: Node
    operands: tuple[int, ...]
    results: tuple[int, ...]
    dead: tuple[int, ...]


@dataclass(frozen=True)
class Specialization:
    """A flat list of steps over numbered values.

    Attributes
    ----------
    names : tuple of str
        Name of each value; index 0 is the absent value.
    constants : mapping of index to array
    inputs, outputs : tuple of int
    shapes : mapping of index to shape
        Of outputs, where known.
    slots : mapping of index to Slot
        Values that kernels write into the arena.
    instructions : tuple of Instruction
    arena_bytes : int
    loop : Loop or None
        The same, to be run in C.
    """

    names: tuple[str, ...]
    constants: Mapping[int, Array]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: Mapping[int, tuple[int, ...]]
    slots: Mapping[int, Slot]
    instructions: tuple[Instruction, ...]
    arena_bytes: int
    loop: Loop | None

    def views(self, arena: Array) -> dict[int, Array]:
        """The arena's arrays, one for each slot."""
        made: dict[int, Array] = {}
        for index, slot in self.slots.items():
            size = int(np.prod(slot.shape, dtype=np.int64)) * slot.dtype.itemsize
            made[index] = arena[slot.offset : slot.offset + size].view(slot.dtype).reshape(slot.shape)
        return made


def specialize(graph: Graph, kernels: Sequence[Kernel], shapes: Mapping[str, tuple[int, ...]]) -> Specialization:
    """Infer shapes, compute what follows from shapes alone, and place values.

    Raises
    ------
    Error
        Shapes do not fit the operators.
    """
    found = {name: tensor for name, tensor in graph.tensors.items() if tensor.constant}
    for name in graph.inputs:
        found[name] = dataclasses.replace(graph.tensors[name], shape=shapes[name], known_shape=True)
    steps: list[tuple[Node, Kernel]] = []
    for node, kernel in zip(graph.nodes, kernels, strict=True):
        operands = [found[value] if value else None for value in node.inputs]
        made = _infer(graph, node, operands)
        values = _known_now(graph, node, operands, made)
        for index, tensor in enumerate(made):
            if tensor is not None:
                found[tensor.name] = (
                    tensor
                    if values is None
                    else dataclasses.replace(tensor, data=values[index], shape=values[index].shape, known_shape=True)
                )
        if values is None or any(value in graph.outputs for value in node.outputs):
            steps.append((node, kernel))
    return _assemble(graph, steps, found)


def _infer(graph: Graph, node: Node, operands: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The outputs with their shapes; stored types come from the lowered graph."""
    given = list(operands)
    if is_group(graph, node) and (node.body or node.op not in ON_STORED):
        # Shapes follow from the source operator, whose operands are real numbers.
        first = 1 if node.op == "Where" else 0
        product = node.op in {"Conv", "Gemm", "MatMul"}
        given = [
            _real(tensor, product) if tensor is not None and index >= first else tensor
            for index, tensor in enumerate(operands)
        ]
    inferred = infer_node(node, given)
    made: list[Tensor | None] = []
    for value, (_, shape, known) in zip(node.outputs, inferred, strict=False):
        if not value:
            made.append(None)
            continue
        stated = graph.tensors[value]
        concrete = known and all(isinstance(dim, int) for dim in shape)
        made.append(dataclasses.replace(stated, shape=shape if concrete else (), known_shape=concrete, data=None))
    size = sum(tensor.bytes for tensor in made if tensor is not None and tensor.concrete)
    if size > MAX_BYTES:
        raise Error(
            f"it would make {size} bytes, more than the bound of {MAX_BYTES}",
            where=f"node {node.name} ({node.kind})",
            remedy="fewer samples at once, or smaller inputs",
        )
    return made


def _real(tensor: Tensor, product: bool) -> Tensor:
    """A quantized operand as the source operator saw it; a product's int32 bias has no scale of its own, an index never has."""
    if tensor.dtype in {"int64", "bool", "float32"} or (
        tensor.quantization is None and not (product and tensor.dtype == "int32")
    ):
        return tensor
    return Tensor(tensor.name, "float32", tensor.shape, known_shape=tensor.known_shape)


def _known_now(
    graph: Graph, node: Node, operands: Sequence[Tensor | None], made: Sequence[Tensor | None]
) -> list[Array] | None:
    """The node's values, where they follow from shapes and constants alone."""
    if any(tensor is not None and tensor.concrete and tensor.elements > FOLDED_ELEMENTS for tensor in made):
        return None
    if node.op == "Shape" and operands[0] is not None and operands[0].concrete:
        return evaluate_node(node, [np.broadcast_to(np.zeros((), np.uint8), [int(dim) for dim in operands[0].shape])])
    if not operands or node.body or any(tensor is not None and tensor.data is None for tensor in operands):
        return None
    if "states" in node.attributes:
        return None
    known = [None if tensor is None else tensor.data for tensor in operands]
    return evaluate_node(node, known, graph if node.domain == "tflite" else None)


def _assemble(graph: Graph, steps: Sequence[tuple[Node, Kernel]], found: Mapping[str, Tensor]) -> Specialization:
    names = [""]
    numbers: dict[str, int] = {"": 0}

    def number(value: str) -> int:
        if value not in numbers:
            numbers[value] = len(names)
            names.append(value)
        return numbers[value]

    for value in (*graph.inputs, *graph.outputs):
        number(value)
    # The last step that reads a value, or a view of it.
    roots: dict[str, str] = {}
    last: dict[str, int] = {}
    for position, (node, kernel) in enumerate(steps):
        for value in (*node.inputs, *node.outputs):
            if value:
                last[roots.get(value, value)] = position
        if isinstance(kernel, View) and node.inputs[0]:
            root = roots.get(node.inputs[0], node.inputs[0])
            roots.update(dict.fromkeys((value for value in node.outputs if value), root))
            last[root] = position
    kept = {roots.get(value, value) for value in graph.outputs}
    lives: list[Lifetime] = []
    for position, (node, kernel) in enumerate(steps):
        for value in node.outputs:
            tensor = found.get(value)
            if value and kernel.in_place and value not in graph.outputs and tensor is not None and tensor.concrete:
                end = len(steps) if value in kept else last[value]
                lives.append(Lifetime(value, position, end, tensor.elements * carrier(tensor.dtype).itemsize))
    offsets, total = place(lives)
    instructions = []
    for position, (node, kernel) in enumerate(steps):
        operands = tuple(number(value) for value in node.inputs)
        results = tuple(number(value) for value in node.outputs)
        ended = {
            value for value in (*node.inputs, *node.outputs) if value and last[roots.get(value, value)] == position
        }
        dead = tuple(
            number(value) for value in sorted(ended) if value not in graph.outputs and value not in graph.inputs
        )
        instructions.append(Instruction(kernel, node, operands, results, dead))
    slots = {number(value): Slot(offset, tuple(int(dim) for dim in found[value].shape), carrier(found[value].dtype))
             for value, offset in offsets.items()}  # fmt: skip
    constants = {index: data for name, index in numbers.items() if name and (data := found[name].data) is not None}
    known = {
        number(value): tuple(int(dim) for dim in found[value].shape) for value in graph.outputs if found[value].concrete
    }
    return Specialization(
        tuple(names),
        constants,
        tuple(number(value) for value in graph.inputs),
        tuple(number(value) for value in graph.outputs),
        known,
        slots,
        tuple(instructions),
        total,
        emit(graph, steps, found),
    )
