"""Float against quantized: error of every layer, and agreement, divergence and accuracy of the whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.batches import Batches, cut, feeds, length
from hwq.calibration import channel_axis
from hwq.comparison.analysis import Kept, analyse
from hwq.comparison.pairs import pairs
from hwq.comparison.records import Change, Comparison, Effect, LayerComparison, Sensitivity
from hwq.comparison.statistics import mcnemar
from hwq.comparison.sums import LayerSums, ModelSums, RangeSums
from hwq.costly import WORTH, CostlyRange
from hwq.errors import Error
from hwq.execution import Program, compile
from hwq.graph import Array, Graph
from hwq.progress import Progress
from hwq.standardization import standardized

__all__ = ["Change", "Comparison", "Effect", "LayerComparison", "Sensitivity", "compare", "mcnemar"]

# The float side runs every node and fuses nothing, so that every value keeps its name.
FLOAT_DIALECT = "ort-unfused"


def compare(
    graph: Graph,
    q: Graph,
    batches: Batches,
    labels: Any = None,
    *,
    dialect: str | None = None,
    sensitivity: bool | int = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run a float model and its quantized twin on the same data, layer by layer, keeping one batch at a time.

    Error of weights alone and of activations alone is measured on the first samples (at most 64, fewer for large
    models), where the quantized graph keeps Q/DQ nodes.

    Parameters
    ----------
    graph : Graph
        Float.
    q : Graph
        Quantized, in source form.
    batches : array, mapping, path, or iterable of them
    labels : integer array (samples,), optional
        Class of each sample; the models' first output then has the classes last.
    dialect : str, optional
        Of the quantized model; default ``q.dialect``.
    sensitivity : bool or int
        Also run every layer quantized alone and every layer alone in float, and try changes of the layers that cost
        most, each executed on the first samples: so many, or with True as many as some 2e11 MACs allow (2 to 64).
    progress : callable, optional
        Called as ``progress(done, total, "compare: samples")``, then with ``"compare: sensitivity"`` and
        ``"compare: changes"``.

    Returns
    -------
    Comparison

    Raises
    ------
    Error
        The two graphs have other inputs or outputs, no layer of one is found in the other, or the labels do not fit;
        sensitivity is asked of a graph without Q/DQ nodes, or of one whose weights are not those of the float model.
    """
    if not isinstance(sensitivity, bool) and sensitivity < 1:
        raise Error(f"sensitivity takes at least 1 sample, not {sensitivity}", where="sensitivity")
    if graph.inputs != q.inputs or len(graph.outputs) != len(q.outputs):
        raise Error(
            "the two graphs are not the same model",
            why=f"inputs {list(graph.inputs)[:4]} and {list(q.inputs)[:4]}, "
            f"{len(graph.outputs)} and {len(q.outputs)} outputs",
            remedy="compare a float graph with the quantized graph that was made of it",
        )
    hashed, graph = graph, standardized(graph)
    floats, integers = compile(graph, FLOAT_DIALECT), compile(q, dialect)
    layers = [LayerSums(*pair, channel_axis(graph, pair[1])) for pair in pairs(graph, q, integers)]
    if not layers:
        raise Error(
            "no value of the quantized graph is found in the float graph",
            remedy="keep the names of values when quantizing",
        )
    inputs = {name: RangeSums(q.tensors[node.outputs[0]].quantization) for node in q.nodes for name in node.inputs[:1]
              if node.op == "QuantizeLinear" and name in graph.inputs}  # fmt: skip
    classes = None if labels is None else _labels(labels)
    whole = ModelSums(classes)
    total, kept = length(batches), Kept(0 if isinstance(sensitivity, bool) else sensitivity)
    for feed in _pieces(graph, batches):
        first = whole.samples
        reference, real = floats(feed, intermediates=True)
        made, stored = integers(feed, intermediates=True)
        # What follows from shapes alone, such as a recurrent layer's first state, is known before a program runs.
        layers = [layer for layer in layers if layer.tensor in real and layer.stored in stored]
        for layer in layers:
            layer.add(real[layer.tensor], stored[layer.stored], first)
        for name, held in inputs.items():
            held.add(feed[name])
        kept.add(feed)
        whole.add(_first(reference, graph), _first(made, q), next(iter(feed.values())).shape[0])
        if progress is not None:
            progress(whole.samples, total, "compare: samples")
    if classes is not None and len(classes) != whole.samples:
        raise Error(f"{len(classes)} labels were given for {whole.samples} samples", where="labels")
    made_layers = {layer.tensor: layer.result() for layer in layers}
    analysis = analyse(graph, q, integers, floats, kept, sensitivity, progress)
    for tensor, facts in analysis.layers.items():
        if tensor in made_layers:
            made_layers[tensor] = dataclasses.replace(made_layers[tensor], **facts)
    found = whole.result(graph.name, tuple(made_layers.values()), _hashes(hashed, integers))
    return dataclasses.replace(
        found, analysed=kept.samples, sensitivities=analysis.sensitivities, changes=analysis.changes,
        costly_ranges=_costly({**{name: held.cost() for name, held in inputs.items()},
                               **{layer.tensor: layer.range.cost() for layer in layers}}),
        unbounded=tuple(str(name) for name in q.source.get("unbounded", ())),
    )  # fmt: skip


def _costly(costs: Mapping[str, tuple[float, float] | None]) -> tuple[CostlyRange, ...]:
    found = [
        CostlyRange(name, cost[1], cost[0]) for name, cost in costs.items() if cost is not None and cost[0] >= WORTH
    ]
    return tuple(sorted(found, key=lambda one: -one.decibels))


def _hashes(graph: Graph, program: Program) -> dict[str, str]:
    """Those of the program, of the float graph, and of the plan and calibration where the quantized graph says them."""
    source = program.source.source
    known = {key: source.get(key) for key in ("plan", "calibration")}
    found = {**known, **program.hashes, "float_graph": graph.hash}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _pieces(graph: Graph, batches: Batches) -> Iterator[dict[str, Array]]:
    for feed in feeds(graph, batches):
        yield from cut(graph, feed)


def _first(outputs: Any, graph: Graph) -> Array:
    found: Array = outputs[graph.outputs[0]] if isinstance(outputs, dict) else outputs
    return found


def _labels(labels: Any) -> NDArray[np.int64]:
    given = np.asarray(labels)
    if given.dtype.kind not in "iu" or given.ndim != 1:
        raise Error(
            "labels must be one integer a sample", where="labels", why=f"they are {given.dtype} {list(given.shape)}"
        )
    return given.astype(np.int64)
