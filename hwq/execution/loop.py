"""The loop: emitted steps placed in one arena, run in C in as few calls as the Python steps between them allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwq.execution.emission import Emission, Site, Step, Value
from hwq.execution.steps import Kernel, Settings, View
from hwq.graph import Array, Graph, Node, Tensor, carrier
from hwq.kernels.runs import Crew, Run
from hwq.kernels.steps import ARENA, FIRST_ARRAY, Place, Steps
from hwq.lowering.liveness import Lifetime, place
from hwq.ops.application import FAILURES
from hwq.ops.dims import fault

__all__ = ["Loop", "Memories", "Memory", "emit"]

# Shapes whose memory a caller keeps: a batch, its pieces and their remainder.
HELD = 4


@dataclass(frozen=True)
class PythonStep:
    """A node that has no C step: values by number."""

    node: Node
    kernel: Kernel
    operands: tuple[int | None, ...]
    results: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Loop:
    """A program at concrete shapes, ready for anyone's memory.

    Attributes
    ----------
    steps : Steps
    parts : tuple of (first, last) or PythonStep
        Runs of C steps, and what stands between them.
    values : tuple of Value
        With their places.
    arrays : tuple of (shape, dtype)
        The caller's arrays: inputs, then outputs.
    inputs : int
        How many are inputs.
    arena_bytes : int
    """

    steps: Steps
    parts: tuple[tuple[int, int] | PythonStep, ...]
    values: tuple[Value, ...]
    places: tuple[Place, ...]
    arrays: tuple[tuple[tuple[int, ...], np.dtype[np.generic]], ...]
    inputs: int
    arena_bytes: int

    @property
    def in_c(self) -> bool:
        """Whether no Python stands between its steps."""
        return len(self.parts) == 1 and isinstance(self.parts[0], tuple)


class Memory:
    """One caller's arena and workspace for a loop; not re-entrant."""

    def __init__(self, loop: Loop, crew: Crew | None = None):
        needs = [
            (int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, index >= loop.inputs)
            for index, (shape, dtype) in enumerate(loop.arrays)
        ]
        self.loop = loop
        self._run = Run(loop.steps, loop.arena_bytes, needs, crew)
        self.run_steps = self._run.run
        self._views: dict[int, Array] = {}

    def run(self, arrays: tuple[Array, ...], settings: Settings) -> None:
        """Fill the outputs. Arrays must be dense, aligned, of the loop's shapes and types, outputs apart from the rest."""
        for part in self.loop.parts:
            if isinstance(part, tuple):
                self.run_steps(arrays, *part)
            else:
                self._run_python(part, arrays, settings)

    def _run_python(self, step: PythonStep, arrays: tuple[Array, ...], settings: Settings) -> None:
        operands = [None if one is None else self._view(one, arrays) for one in step.operands]
        outs = [None if one is None else self._view(one, arrays) for one in step.results]
        try:
            results = step.kernel(operands, outs, settings)
        except FAILURES as error:  # operands of a damaged model that no inference could refuse
            raise fault(
                step.node, "it cannot be computed on these operands", f"{type(error).__name__}: {error}"
            ) from error
        for out, made in zip(outs, results, strict=False):
            if out is not None and made is not out:
                out[...] = made

    def _view(self, index: int, arrays: tuple[Array, ...]) -> Array:
        if index in self._views:
            return self._views[index]
        value, where = self.loop.values[index], self.loop.places[index]
        if not isinstance(where, tuple):
            return where.reshape(value.shape)
        base, offset = where
        if base != ARENA:
            return arrays[base - FIRST_ARRAY].reshape(value.shape)
        made = self._run.arena[offset : offset + value.bytes].view(value.dtype).reshape(value.shape)
        self._views[index] = made
        return made


class Memories:
    """A caller's memory for every loop that it runs: a few, the latest last."""

    def __init__(self, threads: int = 1):
        self._crew = Crew(threads) if threads > 1 else None
        self._held: dict[Loop, Memory] = {}
        self.last: Memory | None = None

    def of(self, loop: Loop) -> Memory:
        """The memory for a loop, which becomes the last one used."""
        found = self._held.pop(loop, None) or Memory(loop, self._crew)
        self._held[loop] = self.last = found
        while len(self._held) > HELD:
            del self._held[next(iter(self._held))]
        return found

    def clear(self) -> None:
        """Give it all back."""
        self._held.clear()
        self.last = None


def emit(graph: Graph, nodes: Sequence[tuple[Node, Kernel]], tensors: Mapping[str, Tensor]) -> Loop | None:
    """Write a program's nodes down as a loop; None where a shape is not known before the values are.

    Parameters
    ----------
    graph : Graph
    nodes : sequence of (Node, Kernel)
        In order, those whose values follow from shapes left out.
    tensors : mapping of name to Tensor
        Every value at its concrete shape.
    """
    names = {value for node, _ in nodes for value in (*node.inputs, *node.outputs) if value}
    if any("states" in node.attributes for node, _ in nodes):
        return None  # what a call leaves for the next is carried by the Python steps
    if not all(tensors[name].concrete for name in (*names, *graph.inputs, *graph.outputs)):
        return None
    emission = Emission()
    arrays = [_array(tensors[name]) for name in (*graph.inputs, *graph.outputs)]
    for index, name in enumerate(graph.inputs):
        emission.held[name, False] = emission.value(Value(*arrays[index], array=index))
    needed = _needed(graph, nodes)
    for number, (node, kernel) in enumerate(nodes):
        if number in needed:
            _emit_node(Site(graph, node, tensors, emission), number, kernel)
    _deliver(graph, tensors, emission)
    return _assemble(emission, nodes, tensors, arrays, len(graph.inputs))


def _needed(graph: Graph, nodes: Sequence[tuple[Node, Kernel]]) -> set[int]:
    """Nodes that an output rests on: a group computes what it swallowed, and its source's scales may be left unread."""
    wanted, found = set(graph.outputs), set()
    for number, (node, _) in reversed(list(enumerate(nodes))):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            found.add(number)
    return found


def _array(tensor: Tensor) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    return tuple(int(dim) for dim in tensor.shape), carrier(tensor.dtype)


def _emit_node(site: Site, number: int, kernel: Kernel) -> None:
    if all(site.tensors[value].data is not None for value in site.node.outputs if value):
        return  # known already, and an output of the graph
    if isinstance(kernel, View):
        source = site.read(0)
        value = site.emission.values[source]
        site.emission.held[site.node.outputs[0], False] = site.emission.value(
            Value(site.made_shape(), value.dtype, root=source)
        )
        return
    if kernel.emit is not None and kernel.emit(site):
        return
    node = site.node
    reads = tuple(site.read(index) for index, value in enumerate(node.inputs) if value)
    writes = tuple(site.make(index=index) for index, value in enumerate(node.outputs) if value)
    site.emission.steps.append(Step(reads, writes, python=number))


def _root(values: Sequence[Value], index: int) -> int:
    while (root := values[index].root) is not None:
        index = root
    return index


def _deliver(graph: Graph, tensors: Mapping[str, Tensor], emission: Emission) -> None:
    """Outputs are made where the caller wants them; what is an input, a constant or two outputs at once is copied."""
    taken: set[int] = set()
    for number, name in enumerate(graph.outputs, len(graph.inputs)):
        found = emission.find(name, tensors[name], False)
        root = _root(emission.values, found)
        value = emission.values[root]
        if value.constant is None and value.array is None and root not in taken and value.bytes:
            value.array = number
            taken.add(root)
            continue
        target = emission.value(Value(*_array(tensors[name]), array=number))
        size = emission.values[target].bytes

        def append(
            steps: Steps, at: Callable[[int], Place], source: int = found, size: int = size, target: int = target
        ) -> None:
            steps.copy(at(source), 1, size, size, size, out=at(target))

        emission.steps.append(Step((found,), (target,), append))


def _assemble(
    emission: Emission,
    nodes: Sequence[tuple[Node, Kernel]],
    tensors: Mapping[str, Tensor],
    arrays: Sequence[tuple[tuple[int, ...], np.dtype[np.generic]]],
    inputs: int,
) -> Loop:
    values = emission.values
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, step in enumerate(emission.steps):
        for index in (*step.reads, *step.writes):
            root = _root(values, index)
            first.setdefault(root, position)
            last[root] = position
    lives = [
        Lifetime(str(root), first[root], last[root], values[root].bytes)
        for root in first
        if values[root].constant is None and values[root].array is None
    ]
    offsets, total = place(lives)

    def at(index: int) -> Place:
        root = _root(values, index)
        value = values[root]
        if value.constant is not None:
            return value.constant
        return (ARENA, offsets.get(str(root), 0)) if value.array is None else (FIRST_ARRAY + value.array, 0)

    steps = Steps(sum(step.append is not None for step in emission.steps))
    parts: list[tuple[int, int] | PythonStep] = []
    for step in emission.steps:
        begin = len(steps)
        if step.append is not None:
            step.append(steps, at)
            if parts and isinstance(parts[-1], tuple):
                parts[-1] = (parts[-1][0], len(steps))
            else:
                parts.append((begin, len(steps)))
        else:
            node, kernel = nodes[step.python]
            reads, writes = iter(step.reads), iter(step.writes)
            parts.append(
                PythonStep(
                    node,
                    kernel,
                    tuple(next(reads) if value else None for value in node.inputs),
                    tuple(next(writes) if value else None for value in node.outputs),
                )
            )
    return Loop(
        steps, tuple(parts), tuple(values), tuple(at(i) for i in range(len(values))), tuple(arrays), inputs, total
    )
