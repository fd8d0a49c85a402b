"""Session: one caller's arena, threads and state; calls after the first touch no allocator."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hwq import kernels as native
from hwq.errors import Error
from hwq.execution.loop import Memories
from hwq.execution.steps import Gemm, Settings
from hwq.graph import Array
from hwq.kernels.operands import integer

if TYPE_CHECKING:
    from hwq.execution.program import Program

__all__ = ["Input", "Result", "Session"]

Input = Array | Mapping[str, Array]
Result = Array | dict[str, Array]


class Session:
    """One caller's memory and state: later calls use the arena of earlier ones again. One thread at a time. In a forked child, where
    its threads are not, it runs alone, with the same bits.

    Recurrent state (LSTM, SVDF of TFLite) lives here and is carried from call to call until `reset`; models without it
    behave as `Program` does.
    """

    def __init__(self, program: Program, threads: int = 1, gemm: Gemm | None = None):
        threads = integer(threads, "threads")
        if threads < 1:
            raise Error(f"threads must be at least 1, not {threads}")
        self.program = program
        self.threads = threads
        self._settings = Settings(threads, gemm)
        self._memories = Memories(threads)
        self._state: dict[str, Array] = {}
        self._ready: _Ready | None = None
        self._busy = threading.Lock()

    def __call__(self, x: Input, out: Input | None = None) -> Result:
        """Run once.

        Parameters
        ----------
        x : array, or mapping of input name to array
        out : array, or mapping of output name to array, optional
            Filled and returned; contiguous, of the output's shape and type.

        Raises
        ------
        Error
            As `Program`; or another thread is inside this session.
        """
        if not self._busy.acquire(blocking=False):
            raise Error(
                "this session is running in another thread",
                why="it owns one arena",
                remedy="give every thread its own session",
            )
        try:
            ready = self._ready
            if ready is not None and ready.fits(x, out) and not ready.run((x, out), 0, ready.steps):
                return out  # type: ignore[return-value]
            return self._run(x, out)
        finally:
            self._busy.release()

    @native.default_state()
    def _run(self, x: Input, out: Input | None) -> Result:
        feeds = self.program.feeds(x)
        state = dict(self._state)
        results = self.program.run(feeds, self._outs(out), self._settings, self._memories, state)
        self._state = state  # only a run that ended well moves on
        self._ready = self._prepared()
        return self.program.shaped(results)

    def reset(self) -> None:
        """Forget recurrent state and give the arena's memory back.

        Raises
        ------
        Error
            Another thread is inside this session.
        """
        if not self._busy.acquire(blocking=False):
            raise Error("this session is running in another thread", remedy="reset it when it has finished")
        self._ready = None
        self._memories.clear()
        self._state.clear()
        self._busy.release()

    def _prepared(self) -> _Ready | None:
        """A short way for the next call like this one: one input, one output, no Python step."""
        memory = self._memories.last
        if memory is None or not memory.loop.in_c or len(memory.loop.arrays) != 2 or memory.loop.inputs != 1:
            return None
        return _Ready(memory.run_steps, len(memory.loop.steps), *memory.loop.arrays[0], *memory.loop.arrays[1])

    def _outs(self, out: Input | None) -> dict[str, Array]:
        names = self.program.graph.outputs
        if out is None:
            return {}
        if not isinstance(out, Mapping):
            if len(names) != 1:
                raise Error(
                    f"the model has {len(names)} outputs, one array was given as out",
                    remedy=f"give a mapping with {', '.join(names[:16])}",
                )
            out = {names[0]: out}
        for name, array in out.items():
            if name not in names:
                raise Error(
                    "the model has no such output", where=f"output {name}", remedy=f"it has {', '.join(names[:16])}"
                )
            if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.flags.writeable:
                raise Error("out must be a writable, contiguous array", where=f"output {name}")
        return dict(out)


class _Ready:
    """What the last call was like. A call that fits goes straight to C, which refuses arrays that overlap."""

    __slots__ = ("dtype", "made_dtype", "made_shape", "run", "shape", "steps")

    def __init__(self, run: Any, steps: int, shape: Any, dtype: Any, made_shape: Any, made_dtype: Any):
        self.run, self.steps = run, steps
        self.shape, self.dtype, self.made_shape, self.made_dtype = shape, dtype, made_shape, made_dtype

    def fits(self, x: Any, out: Any) -> bool:
        """Whether both are arrays as the last call's, dense and aligned."""
        return (
            type(x) is np.ndarray
            and type(out) is np.ndarray
            and x.shape == self.shape
            and out.shape == self.made_shape
            and x.dtype == self.dtype
            and out.dtype == self.made_dtype
            and (flags := x.flags).c_contiguous
            and flags.aligned
            and out.flags.carray
        )
