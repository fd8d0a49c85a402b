"""Sensitivity: each layer quantized alone, and all but it, measured at the network's output by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwq.comparison.places import Places, Unit
from hwq.comparison.records import Effect, Sensitivity
from hwq.comparison.statistics import decibels, distributions, without_masks
from hwq.comparison.variants import Edit, restored
from hwq.errors import Error
from hwq.execution import Program, compile
from hwq.graph import Array, Graph
from hwq.ops.base import lookup
from hwq.ops.inference import infer_shapes
from hwq.progress import Progress

__all__ = ["Bench", "sample_count", "sensitivities"]

# MACs that an analysis may spend when nobody says how many samples it takes: some half a minute on one core.
MAC_BUDGET = 2e11
MOST_SAMPLES, LEAST_SAMPLES = 64, 2


@dataclass
class Bench:
    """Variants of one quantized graph, measured at the first output on the same samples.

    Parameters
    ----------
    q : Graph
    dialect : str or None
    feeds : sequence of dict
        Pieces of the samples.
    reference : sequence of array
        The float model's first output on each.
    """

    q: Graph
    dialect: str | None
    feeds: Sequence[dict[str, Array]]
    reference: Sequence[Array]

    def measure(self, *edits: Edit) -> Effect | None:
        """The effect of `edits`, in this order; None where the dialect cannot run what they make."""
        graph = self.q
        try:
            for edit in edits:
                graph = edit(graph)
            return self.run(compile(graph, self.dialect))
        except Error:
            return None

    def run(self, program: Program) -> Effect:
        """What a program's first output loses against the float model's."""
        signal = noise = divergence = 0.0
        agreeing = positions = 0
        for feed, wanted in zip(self.feeds, self.reference, strict=True):
            made = program(feed)
            found = made[program.source.outputs[0]] if isinstance(made, dict) else made
            left, right = wanted.astype(np.float64), np.asarray(found, np.float64)
            p, other = distributions(left, right)
            divergence += float(np.sum(p * (np.log(p) - np.log(other))))
            best, chosen = left.argmax(axis=-1), right.argmax(axis=-1)
            left, right = without_masks(left, right)
            signal += float(np.sum(left * left))
            noise += float(np.sum((left - right) ** 2))
            positions += best.size
            agreeing += int(np.count_nonzero(best == chosen))
        return Effect(decibels(signal, noise), divergence / max(positions, 1), agreeing / max(positions, 1))


def sample_count(graph: Graph, feed: Mapping[str, Array], runs: int) -> int:
    """Samples of which `runs` runs of a model stay within `MAC_BUDGET`, from 2 to 64.

    Parameters
    ----------
    graph : Graph
        Float.
    feed : mapping of input name to array
        A piece of the data: its shapes are what is counted.
    runs : int
    """
    bound = infer_shapes(graph, {name: array.shape for name, array in feed.items()})
    macs = sum(lookup(node).work(node, bound).macs for node in bound.nodes)
    samples = next(iter(feed.values())).shape[0]
    return min(MOST_SAMPLES, max(LEAST_SAMPLES, int(MAC_BUDGET * samples / max(1, macs * runs))))


def sensitivities(
    bench: Bench, apart: Bench, places: Places, units: Sequence[Unit], progress: Progress | None = None
) -> tuple[Sensitivity, ...]:
    """Every layer's effect when it alone is quantized, and when it alone is float.

    Parameters
    ----------
    bench, apart : Bench
        In the dialect of the graph, for layers in float among integers; without integer arithmetic, for layers quantized
        alone.
    places : Places
    units : sequence of Unit
    progress : callable, optional
        Called as ``progress(done, total, "compare: sensitivity")``.
    """
    every = [place.key for place in places.every]
    found = []
    for done, unit in enumerate(units, 1):
        own = [place.key for place in unit.places]
        only = apart.measure(restored(places, [key for key in every if key not in own]))
        without = bench.measure(restored(places, own))
        kinds = {kind: tuple(place.tensor for place in unit.places if place.kind == kind) for kind in ("weights", "activations")}  # fmt: skip
        found.append(Sensitivity(unit.layer, unit.op, kinds["weights"], kinds["activations"], only, without))
        if progress is not None:
            progress(done, len(units), "compare: sensitivity")
    return tuple(found)
