"""A stepped array in the place of the integer GEMM of a compiled program, and what it did, layer by layer.

``hwq.compile(graph, gemm=SteppedGemm(Array(32, 32)))`` gives the bits of the kernels: convolutions come as matrix products
over gathered windows, and the array multiplies stored values; zero points are taken off behind it, from the sums of the
rows of A and of the columns of B, as accelerators do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.simulators.stepping import Array, Step, step

__all__ = ["SteppedGemm", "SteppedLayer", "SteppedRun"]

Integers = NDArray[Any]

# Where products count that no layer announced.
_NO_LAYER = "product"
_SUMS = ("cycles", "folds", "load", "fill", "stream", "drain", "macs", "multiplications",
         "a_reads", "b_reads", "sum_reads", "sum_writes")  # fmt: skip


@dataclass
class SteppedLayer:
    """All products of one layer, summed over calls.

    Attributes
    ----------
    name, op : str
    array : Array
    m, k, n, pack : int
        Of the first product.
    products : int
        How many ran: one a batch, times groups.
    cycles, folds, load, fill, stream, drain, macs, multiplications, a_reads, b_reads, sum_reads, sum_writes : int
        Sums of those of `Step`.
    occupancy : int64 array (rows, cols) or None
        Cycles in which each PE multiplied.
    timeline : float64 array (rows, spans) or None
        Of the first product: the share of each row's PEs that multiplied, over time.
    timeline_cycles : int
        Cycles that `timeline` spans.
    """

    name: str
    op: str
    array: Array
    m: int = 0
    k: int = 0
    n: int = 0
    pack: int = 1
    products: int = 0
    cycles: int = 0
    folds: int = 0
    load: int = 0
    fill: int = 0
    stream: int = 0
    drain: int = 0
    macs: int = 0
    multiplications: int = 0
    a_reads: int = 0
    b_reads: int = 0
    sum_reads: int = 0
    sum_writes: int = 0
    occupancy: NDArray[np.int64] | None = None
    timeline: NDArray[np.float64] | None = None
    timeline_cycles: int = 0

    def add(self, done: Step) -> None:
        """Count a product."""
        if not self.products:
            self.m, self.k, self.n, self.pack = done.m, done.k, done.n, done.pack
            self.timeline, self.timeline_cycles = done.timeline, done.cycles
        self.products += 1
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(done, name))
        if done.occupancy is not None:
            self.occupancy = done.occupancy if self.occupancy is None else self.occupancy + done.occupancy

    @property
    def utilization(self) -> float:
        """Multiplications over PE slots, 0 to 1."""
        slots = self.array.rows * self.array.cols * self.pack * self.cycles
        return self.multiplications / slots if slots else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Numbers only, without the pictures."""
        kept = [
            one.name for one in fields(self) if one.name not in {"array", "occupancy", "timeline", "timeline_cycles"}
        ]
        return {**{name: getattr(self, name) for name in kept}, "utilization": self.utilization}


@dataclass(frozen=True)
class SteppedRun:
    """A model's products on a stepped array, finished; `hwq.report` takes it.

    Attributes
    ----------
    model : str
    array : Array
    samples : int
    layers : tuple of SteppedLayer
        In order of first execution.
    """

    model: str
    array: Array
    samples: int
    layers: tuple[SteppedLayer, ...]

    @property
    def cycles(self) -> int:
        """Of all products, one after another."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def macs(self) -> int:
        """m k n of all products."""
        return sum(layer.macs for layer in self.layers)

    @property
    def utilization(self) -> float:
        """Multiplications over PE slots, 0 to 1."""
        slots = self.array.rows * self.array.cols * sum(layer.pack * layer.cycles for layer in self.layers)
        return sum(layer.multiplications for layer in self.layers) / slots if slots else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Numbers only, for tables and JSON."""
        return {"model": self.model, "array": str(self.array), "samples": self.samples, "cycles": self.cycles,
                "macs": self.macs, "utilization": self.utilization,
                "layers": [layer.to_dict() for layer in self.layers]}  # fmt: skip


@dataclass
class SteppedGemm:
    """Stands in for the integer GEMM of a compiled program: every product runs on the array, and is counted.

    Attributes
    ----------
    array : Array
    pictures : bool
        Keep occupancy pictures.
    layers : dict of str to SteppedLayer
        By node name, in order of first execution.
    """

    array: Array
    pictures: bool = True
    layers: dict[str, SteppedLayer] = field(default_factory=dict)
    _now: tuple[str, str] = (_NO_LAYER, "Gemm")

    def enter(self, name: str, op: str) -> None:
        """The products that follow belong to this node."""
        self._now = (name, op)

    def __call__(
        self, a: Integers, b: Integers, *, a_zero_point: int = 0, b_zero_points: Integers | int = 0
    ) -> NDArray[np.int32]:
        """``sum over k of (a - a_zero_point)(b - b_zero_points)``, modulo 2^32: int32 (M, N). See `step`."""
        name, op = self._now
        layer = self.layers.setdefault(name, SteppedLayer(name, op, self.array))
        done = step(self.array, a, b, pictures=self.pictures)
        layer.add(done)
        acc = done.out
        points = np.asarray(b_zero_points, np.int64).reshape(-1)
        if a_zero_point or points.any():
            columns = b.sum(axis=0, dtype=np.int64) - a.shape[1] * points
            acc += (-a_zero_point * columns).astype(np.int32)
        if points.any():
            acc -= (a.sum(axis=1, dtype=np.int64)[:, None] * points).astype(np.int32)
        return acc

    def finish(self, model: str, samples: int) -> SteppedRun:
        """What has been done so far, under a model's name."""
        return SteppedRun(model, self.array, samples, tuple(self.layers.values()))
