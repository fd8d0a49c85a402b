"""Where the error comes from: weights against activations, layer by layer, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwq.calibration import calibrate
from hwq.comparison.changes import LAYERS, TOGETHER, rank
from hwq.comparison.pairs import pairs
from hwq.comparison.places import Places
from hwq.comparison.records import Change, Sensitivity
from hwq.comparison.sensitivity import MOST_SAMPLES, Bench, sample_count, sensitivities
from hwq.comparison.statistics import decibels, without_masks
from hwq.comparison.variants import restored
from hwq.errors import Error
from hwq.execution import Program, compile
from hwq.graph import Array, Graph
from hwq.overflow import prove
from hwq.progress import Progress

__all__ = ["Analysis", "Kept", "analyse"]

# What is quantized alone is put on its grid and nothing else happens: every Q and DQ runs, products are float32. A runtime
# left to itself would quantize again what a variant leaves float.
FAKE = "ort-unfused"
# With nothing quantized a variant must be the float model but for the order of sums; less than this is another model.
SAME_MODEL_DB = 40.0
# Runs of one candidate layer, at most: two kinds of places with some nine changes each.
RUNS_A_LAYER = 12


class Kept:
    """The first samples of a stream, kept for the runs after it.

    Parameters
    ----------
    wanted : int
        Samples; 0 for the most that an analysis takes.
    """

    def __init__(self, wanted: int):
        self.wanted = wanted or MOST_SAMPLES
        self.feeds: list[dict[str, Array]] = []
        self.samples = 0

    def add(self, feed: dict[str, Array]) -> None:
        """Keep of a piece what is still wanted; a piece of a fixed batch stays whole."""
        missing = self.wanted - self.samples
        if missing <= 0:
            return
        count = next(iter(feed.values())).shape[0] if next(iter(feed.values())).ndim else 1
        # A copy: the caller may fill the same buffer again.
        self.feeds.append({name: array.copy() for name, array in feed.items()})
        self.samples += count

    def cut(self, graph: Graph, count: int) -> None:
        """Keep only `count` samples, or the whole first piece where the model's batch is fixed."""
        open_batch = all(isinstance(graph.tensors[name].shape[:1], tuple) and graph.tensors[name].shape
                         and isinstance(graph.tensors[name].shape[0], str) for name in graph.inputs)  # fmt: skip
        feeds, left = [], count
        for feed in self.feeds:
            if left <= 0:
                break
            part = {name: array[:left] for name, array in feed.items()} if open_batch else feed
            feeds.append(part)
            left -= next(iter(part.values())).shape[0]
        self.feeds, self.samples = feeds, sum(next(iter(feed.values())).shape[0] for feed in feeds)


@dataclass
class Analysis:
    """What was found: facts to add to layers by the float tensor's name, and the network-wide lists."""

    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    sensitivities: tuple[Sensitivity, ...] = ()
    changes: tuple[Change, ...] = ()


def analyse(
    graph: Graph,
    q: Graph,
    integers: Program,
    floats: Program,
    kept: Kept,
    sensitivity: bool | int,
    progress: Progress | None,
) -> Analysis:
    """Headroom, weight bits and the split of every layer; with `sensitivity` also what each layer costs the output.

    Raises
    ------
    Error
        Sensitivity is asked of a graph that has no places, or of one that was made of other weights.
    """
    made = Analysis()
    _headroom(made, graph, q, integers)
    places = Places(graph, q)
    asked = sensitivity is not False
    if not places.every:
        if asked:
            raise Error(
                "no layer can be put back to float",
                where=f"graph {q.name}",
                why="sensitivity switches Q/DQ nodes off one by one, and this graph has none with a float twin",
                remedy="compare a QDQ model with the float model that it was made of",
            )
        return made
    _weight_bits(made, graph, places)
    units = places.units()
    runs = 2 if not asked else 2 * len(units) + RUNS_A_LAYER * LAYERS + TOGETHER
    if isinstance(sensitivity, bool):
        kept.cut(graph, sample_count(graph, kept.feeds[0], runs))
    else:
        kept.cut(graph, sensitivity)
    dialect = integers.dialect.name
    reference = [_first(floats(feed), graph) for feed in kept.feeds]
    bench, apart = Bench(q, dialect, kept.feeds, reference), Bench(q, FAKE, kept.feeds, reference)
    every = [place.key for place in places.every]
    plain = apart.measure(restored(places, every))
    why = (
        "this dialect cannot run it"
        if plain is None
        else f"with nothing quantized the output SQNR is {plain.sqnr_db:.1f} dB: not all of it can be put back"
        if plain.sqnr_db < SAME_MODEL_DB
        else places.rescaled()
    )
    if why:
        if asked:
            raise Error(
                "the quantized graph cannot be switched back to the float model layer by layer",
                where=f"graph {q.name}",
                why=why,
                remedy="compare with the float model that was quantized: hwq.quantization.transformed(graph, plan, cal, batches); "
                "on the command line give --plan instead of the quantized model",
            )
        return made
    for kind, key in (("activations", "weights_only_db"), ("weights", "activations_only_db")):
        off = [place.key for place in places.every if place.kind == kind]
        for tensor, value in _errors(graph, restored(places, off)(q), floats, kept).items():
            made.layers.setdefault(tensor, {})[key] = value
    if asked:
        made.sensitivities = sensitivities(bench, apart, places, units, progress)
        seen = calibrate(graph, kept.feeds).tensors
        made.changes = rank(bench, places, units, made.sensitivities, seen, integers.dialect, progress)
    return made


def _errors(graph: Graph, variant: Graph, floats: Program, kept: Kept) -> dict[str, float]:
    """SQNR of every value of a variant, in dB."""
    try:
        program = compile(variant, FAKE)
    except Error:  # it cannot be run so: nothing to say
        return {}
    known = list(pairs(graph, variant, program))
    sums = {tensor: [0.0, 0.0] for _, tensor, *_ in known}
    for feed in kept.feeds:
        _, real = floats(feed, intermediates=True)
        _, found = program(feed, intermediates=True)
        for _, tensor, stored, _, how in known:
            if tensor not in real or stored not in found:
                continue  # it follows from shapes alone
            value = np.asarray(found[stored], np.float64)
            if how is not None:
                shape = [-1 if axis == how.axis else 1 for axis in range(value.ndim)] if how.axis is not None else ()
                value = (value - how.zero_points().reshape(shape)) * how.scales().astype(np.float64).reshape(shape)
            wanted, value = without_masks(real[tensor].astype(np.float64), value)
            sums[tensor][0] += float(np.sum(wanted * wanted))
            sums[tensor][1] += float(np.sum((wanted - value) ** 2))
    return {tensor: decibels(*both) for tensor, both in sums.items()}


def _headroom(made: Analysis, graph: Graph, q: Graph, integers: Program) -> None:
    proofs = {proof.layer: proof.headroom_bits for proof in prove(integers.graph) if math.isfinite(proof.headroom_bits)}
    for tensor, layer in _tensors(graph, q, integers):
        if layer in proofs:
            made.layers.setdefault(tensor, {})["headroom_bits"] = proofs[layer]


def _tensors(graph: Graph, q: Graph, integers: Program) -> Iterable[tuple[str, str]]:
    """(float tensor, node of the lowered graph that makes it)."""
    for _, tensor, stored, *_ in pairs(graph, q, integers):
        maker = integers.graph.producers.get(stored)
        if maker is not None:
            yield tensor, maker.name


def _weight_bits(made: Analysis, graph: Graph, places: Places) -> None:
    """How many bits each output channel of a layer's stored weights uses."""
    outputs = {
        unit.layer: [place.tensor for place in unit.places if place.kind == "activations"] for unit in places.units()
    }
    for place in places.every:
        how, value = place.quantization, places.values.get(place.key)
        if place.kind != "weights" or value is None or how.block is not None or value.ndim < 2:
            continue
        reader = places.sources[place.readers[0]]
        axis = 0 if reader.op == "Conv" or reader.attributes.get("transB", 0) else value.ndim - 1
        peaks = np.abs(value).max(axis=tuple(one for one in range(value.ndim) if one != axis))
        scales = how.scales().astype(np.float64).reshape(-1)
        if scales.size not in (1, peaks.size):
            continue
        bits = tuple(np.log2(np.maximum(peaks / scales, 1.0)).tolist())
        for tensor in outputs.get(reader.name) or reader.outputs:
            made.layers.setdefault(tensor, {})["weight_bits"] = bits


def _first(outputs: Any, graph: Graph) -> Array:
    found: Array = outputs[graph.outputs[0]] if isinstance(outputs, dict) else outputs
    return found
