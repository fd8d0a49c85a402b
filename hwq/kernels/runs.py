"""Runs: one caller's memory for a list of steps, and the threads that may run them together."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.operands import align
from hwq.kernels.steps import Steps

__all__ = ["Crew", "Run"]


class Crew:
    """Threads that wait for steps to run with the caller's own thread; they end with this object.

    Parameters
    ----------
    threads : int
        The caller included, at least 2.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._door = _kernels.Crew(threads)
        weakref.finalize(self, self._door.stop)
        try:
            for index in range(1, threads):
                threading.Thread(target=self._door.serve, args=(index,), name="hwq-crew", daemon=True).start()
        except RuntimeError as error:
            self._door.stop()
            raise Error(f"{threads} threads are too many", why=str(error)) from None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kernels.forked)


class Run:
    """One caller's memory for a list of steps; not re-entrant.

    Parameters
    ----------
    steps : Steps
    arena_bytes : int
    needs : sequence of (int, bool)
        Bytes of each array that a call hands over, and whether steps write it.
    crew : Crew, optional
    """

    def __init__(self, steps: Steps, arena_bytes: int, needs: Sequence[tuple[int, bool]], crew: Crew | None = None):
        self.arena = align(arena_bytes, np.uint8)
        size = -(-steps._door.workspace() // 64) * 64
        memory = align(size * (1 if crew is None else crew.threads), np.uint8)
        signed = tuple(-size if written else size for size, written in needs)
        self._crew = crew
        door = _kernels.Run(steps._door, None if crew is None else crew._door, self.arena, memory, size, signed)
        self.run = door.run
