"""Program: a lowered graph made ready to run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq import kernels as native
from hwq.dialect import Dialect
from hwq.errors import Error
from hwq.execution.loop import Memories
from hwq.execution.rowwise import batch_dimension
from hwq.execution.session import Input, Result, Session
from hwq.execution.specialization import Specialization, specialize
from hwq.execution.steps import Gemm, Settings, build
from hwq.graph import Array, Graph
from hwq.ops.application import FAILURES
from hwq.ops.dims import fault
from hwq.ops.evaluate import checked_feeds

__all__ = ["Program"]

# A batch whose arena is larger runs in pieces where its bits allow it: a piece should stay in the last-level cache.
PIECE_BYTES = 8 << 20
# Input shapes whose steps are kept, the latest used last: what a server of many lengths comes back to, not what it ever saw.
KEPT_SHAPES = 16


class Program:
    """An immutable, packed, ready graph. Calls are re-entrant, and each starts from fresh state.

    Attributes
    ----------
    graph : Graph
        The lowered graph that it runs.
    dialect : Dialect
    source : Graph
        What it was compiled from.
    """

    def __init__(self, source: Graph, graph: Graph, dialect: Dialect, gemm: Gemm | None = None):
        self.source = source
        self.graph = graph
        self.dialect = dialect
        self.kernels = tuple(build(graph, dialect, node) for node in graph.nodes)
        self.gemm = gemm
        self._symbol = batch_dimension(graph)
        self._known: dict[tuple[tuple[int, ...], ...], Specialization] = {}
        self._lock = threading.Lock()

    @native.default_state()
    def __call__(self, x: Input, intermediates: bool = False) -> Any:
        """Run once.

        Parameters
        ----------
        x : array, or mapping of input name to array
            An array where the model has one input. Types must be the model's own; NaN passes as the runtime lets it.
        intermediates : bool
            Also return every value that a step makes, as it is stored (integers where it is quantized).

        Returns
        -------
        array, or dict of output name to array
            An array where the model has one output. With `intermediates` a pair: that, and a dict of name to array.

        Raises
        ------
        Error
            An input is missing, unknown, misshapen or of another type, or a node cannot be computed.
        """
        feeds = self.feeds(x)
        settings = Settings(gemm=self.gemm)
        if not intermediates:
            return self.shaped(self.run(feeds, {}, settings, Memories(), {}))
        seen: dict[str, Array] = {}
        return self.shaped(self.run(feeds, {}, settings, Memories(), {}, seen)), seen

    def session(self, threads: int = 1, gemm: Gemm | None = None) -> Session:
        """An arena of its own for one caller; see `Session`.

        Parameters
        ----------
        threads : int
            Threads that the kernels may use; the bits do not depend on it.
        gemm : Gemm, optional
            Stands in for the integer GEMM of every convolution and product.
        """
        return Session(self, threads, gemm or self.gemm)

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """What a result depends on: graph, lowered graph, dialect, runtime, kernel path, version."""
        from hwq import __version__

        return MappingProxyType(
            {
                "graph": self.source.hash,
                "lowered": self.graph.hash,
                "dialect": self.dialect.name,
                "runtime": self.dialect.runtime,
                "kernel_path": native.isa(),
                "version": __version__,
            }
        )

    def specialization(self, shapes: Mapping[str, tuple[int, ...]]) -> Specialization:
        """The steps at concrete input shapes; made once, and kept while `KEPT_SHAPES` others are not used more lately."""
        key = tuple(shapes[name] for name in self.graph.inputs)
        with self._lock:
            found = self._known.pop(key, None)
            if found is not None:
                self._known[key] = found
                return found
        found = specialize(self.graph, self.kernels, shapes)
        with self._lock:
            self._known[key] = found
            while len(self._known) > KEPT_SHAPES:
                del self._known[next(iter(self._known))]
        return found

    def __repr__(self) -> str:
        return f"<Program {self.graph.name}: {len(self.kernels)} steps, dialect {self.dialect.name}>"

    def feeds(self, x: Input) -> dict[str, Array]:
        """The inputs by name, checked, dense and aligned."""
        if isinstance(x, Mapping):
            return {
                name: np.require(array, requirements=["C", "A"]).reshape(array.shape)
                for name, array in checked_feeds(self.graph, x).items()
            }
        if len(self.graph.inputs) != 1:
            raise Error(
                f"the model has {len(self.graph.inputs)} inputs, one array was given",
                where=f"graph {self.graph.name}",
                remedy=f"give a mapping with {', '.join(self.graph.inputs[:16])}",
            )
        return self.feeds({self.graph.inputs[0]: np.asarray(x)})

    def shaped(self, results: dict[str, Array]) -> Result:
        """The one output, or all by name."""
        return (
            results[self.graph.outputs[0]]
            if len(self.graph.outputs) == 1
            else {name: results[name] for name in self.graph.outputs}
        )

    def run(
        self,
        feeds: Mapping[str, Array],
        outs: Mapping[str, Array],
        settings: Settings,
        memories: Memories,
        state: dict[str, Array],
        seen: dict[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Run a batch, in pieces where that changes no bits.

        `memories` are the caller's, to be used again; `state` what recurrent operators keep, by the operand's name.

        Raises
        ------
        Error
            The values do not fit into memory.
        """
        try:
            whole = self.specialization({name: array.shape for name, array in feeds.items()})
            piece = self._piece(feeds, whole) if seen is None else None
            if piece is None:
                return _perform(whole, feeds, outs, settings, memories, state, seen)
            size = next(iter(feeds.values())).shape[0]
            results = {name: outs[name] if name in outs else np.empty(whole.shapes[index], whole_dtype(self.graph, name))
                       for name, index in zip(self.graph.outputs, whole.outputs, strict=True)}  # fmt: skip
            for first in range(0, size, piece):
                part = {name: array[first : first + piece] for name, array in feeds.items()}
                steps = self.specialization({name: array.shape for name, array in part.items()})
                _perform(
                    steps,
                    part,
                    {name: array[first : first + piece] for name, array in results.items()},
                    settings,
                    memories,
                    state,
                    None,
                )
            return results
        except MemoryError as error:
            raise Error(
                "the values of this model do not fit into memory",
                where=f"graph {self.graph.name}",
                why=str(error) or "the system refused memory",
                remedy="give a smaller batch or smaller inputs",
            ) from error

    def _piece(self, feeds: Mapping[str, Array], whole: Specialization) -> int | None:
        """Elements of a piece of the batch, or None to run it whole."""
        if (
            self._symbol is None
            or whole.arena_bytes <= PIECE_BYTES
            or any(index not in whole.shapes for index in whole.outputs)
        ):
            return None
        size = int(next(iter(feeds.values())).shape[0])
        return max(1, min(size, PIECE_BYTES * size // whole.arena_bytes))


def whole_dtype(graph: Graph, name: str) -> np.dtype[Any]:
    """NumPy type of an output."""
    from hwq.graph import carrier

    return carrier(graph.tensors[name].dtype)


def _perform(
    steps: Specialization,
    feeds: Mapping[str, Array],
    outs: Mapping[str, Array],
    settings: Settings,
    memories: Memories,
    state: dict[str, Array],
    seen: dict[str, Array] | None,
) -> dict[str, Array]:
    """Run in C where it can be; what watches or replaces steps, or keeps state, runs them one by one in Python."""
    if steps.loop is None or seen is not None or settings.gemm is not None:
        return _execute(steps, feeds, outs, settings, state, seen)
    loop = steps.loop
    inputs = [feeds[steps.names[index]] for index in steps.inputs]
    results: dict[str, Array] = {}
    made: list[Array] = []
    for index, (shape, dtype) in zip(steps.outputs, loop.arrays[loop.inputs :], strict=True):
        name = steps.names[index]
        given = outs.get(name)
        _require_fit(name, given, shape, dtype)
        results[name] = np.empty(shape, dtype) if given is None else given
        shared = any(np.may_share_memory(results[name], one) for one in (*inputs, *made))
        made.append(np.empty(shape, dtype) if shared or not results[name].flags.aligned else results[name])
    memories.of(loop).run((*inputs, *made), settings)
    for place, found in zip(results.values(), made, strict=True):
        if place is not found:
            place[...] = found
    return results


def _require_fit(name: str, out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if out is not None and (out.shape != shape or out.dtype != dtype):
        raise Error(f"out must have shape {list(shape)} and dtype {dtype}", where=f"output {name}")


def _execute(
    steps: Specialization,
    feeds: Mapping[str, Array],
    outs: Mapping[str, Array],
    settings: Settings,
    state: dict[str, Array],
    seen: dict[str, Array] | None,
) -> dict[str, Array]:
    arena = _aligned(steps.arena_bytes)
    views = steps.views(arena)
    values: list[Array | None] = [None] * len(steps.names)
    for index, array in steps.constants.items():
        values[index] = state.get(steps.names[index], array)
    for index in steps.inputs:
        values[index] = feeds[steps.names[index]]
    wanted = {index: outs.get(steps.names[index]) for index in steps.outputs}
    enter = getattr(settings.gemm, "enter", None)
    for step in steps.instructions:
        if enter is not None:
            enter(step.node.name or step.node.op, step.node.op)
        places = [wanted[index] if index in wanted else views.get(index) for index in step.results]
        try:
            made = step.kernel([values[index] for index in step.operands], places, settings)
        except FAILURES as error:  # operands of a damaged model that no inference could refuse
            raise fault(
                step.node, "it cannot be computed on these operands", f"{type(error).__name__}: {error}"
            ) from error
        for index, value in zip(step.results, made, strict=False):
            if index:
                values[index] = value
                if seen is not None:
                    seen[steps.names[index]] = value.copy()
        for read, written in step.node.attributes.get("states", ()):
            state[step.node.inputs[read]] = made[written].copy()
        for index in step.dead:
            values[index] = None
    results: dict[str, Array] = {}
    for index, place in wanted.items():
        name, found = steps.names[index], values[index]
        assert found is not None
        if place is not None and found is not place:
            _require_fit(name, place, found.shape, found.dtype)
            place[...] = found
            found = place
        elif place is None and _borrowed(found, steps, index, arena, feeds):
            found = found.copy()
        results[name] = found
    return results


def _borrowed(value: Array, steps: Specialization, index: int, arena: Array, feeds: Mapping[str, Array]) -> bool:
    """Whether an output lies in memory that is not the caller's: the arena, an input or a constant."""
    if index in steps.constants or (not value.flags.owndata and value.base is not None and value.base is not arena):
        return True
    return np.may_share_memory(value, arena) or any(np.may_share_memory(value, array) for array in feeds.values())


def _aligned(size: int) -> Array:
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]
