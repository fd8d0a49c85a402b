"""Float against quantized: error of every layer, and agreement, divergence and accuracy of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.batches import Batches, cut, feeds, length
from hwq.comparison.records import Comparison, LayerComparison
from hwq.comparison.statistics import mcnemar
from hwq.comparison.sums import LayerSums, ModelSums
from hwq.errors import Error
from hwq.execution import Program, compile
from hwq.graph import Array, Graph, Node, Quantization
from hwq.progress import Progress

__all__ = ["Comparison", "LayerComparison", "compare", "mcnemar"]

# The float side runs every node and fuses nothing, so that every value keeps its name.
FLOAT_DIALECT = "ort-unfused"


def compare(
    graph: Graph,
    q: Graph,
    batches: Batches,
    labels: Any = None,
    *,
    dialect: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run a float model and its quantized twin on the same data, layer by layer, keeping one batch at a time.

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
    progress : callable, optional
        Called as ``progress(done, total, "compare: samples")``.

    Returns
    -------
    Comparison

    Raises
    ------
    Error
        The two graphs have other inputs or outputs, no layer of one is found in the other, or the labels do not fit.
    """
    if graph.inputs != q.inputs or len(graph.outputs) != len(q.outputs):
        raise Error(
            "the two graphs are not the same model",
            why=f"inputs {list(graph.inputs)[:4]} and {list(q.inputs)[:4]}, "
            f"{len(graph.outputs)} and {len(q.outputs)} outputs",
            remedy="compare a float graph with the quantized graph that was made of it",
        )
    floats, integers = compile(graph, FLOAT_DIALECT), compile(q, dialect)
    layers = [LayerSums(*pair) for pair in _pairs(graph, q, integers)]
    if not layers:
        raise Error(
            "no value of the quantized graph is found in the float graph",
            remedy="keep the names of values when quantizing",
        )
    classes = None if labels is None else _labels(labels)
    whole = ModelSums(classes)
    total = length(batches)
    for feed in _pieces(graph, batches):
        first = whole.samples
        reference, real = floats(feed, intermediates=True)
        made, stored = integers(feed, intermediates=True)
        for layer in layers:
            layer.add(real[layer.tensor], stored[layer.stored], first)
        whole.add(_first(reference, graph), _first(made, q), next(iter(feed.values())).shape[0])
        if progress is not None:
            progress(whole.samples, total, "compare: samples")
    if classes is not None and len(classes) != whole.samples:
        raise Error(f"{len(classes)} labels were given for {whole.samples} samples", where="labels")
    return whole.result(graph.name, tuple(layer.result() for layer in layers), _hashes(graph, integers))


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


def _pairs(graph: Graph, q: Graph, program: Program) -> Iterator[tuple[Node, str, str, str, Quantization | None]]:
    """(float node, float tensor, stored tensor, its type, its quantization) wherever both make the same value."""
    # What a transform scaled channel by channel holds other numbers than its namesake.
    rescaled = set(q.source.get("rescaled", ()))
    named = {name for node in graph.nodes for name in node.outputs if name and name not in rescaled}
    origins = {node.origin or node.name: node for node in graph.nodes}
    sources = {node.name: node for node in q.nodes}
    found: dict[str, tuple[str, Quantization | None]] = {}
    lowered = program.graph
    for node in lowered.nodes:
        quantizes = [part for part in (*node.body, node) if part.op == "QuantizeLinear"]
        for part in quantizes:
            value = _real_name(q, part, sources, named, origins)
            stored = part.outputs[0]
            if value is not None and stored in node.outputs:
                found[value] = (stored, lowered.tensors[stored].quantization)
        for value in node.outputs:
            if value in named and lowered.tensors[value].quantization is None:
                found.setdefault(value, (value, None))
    for node in graph.nodes:
        for value in node.outputs:
            if value in found and graph.tensors[value].dtype == "float32":
                stored, quantization = found[value]
                yield node, value, stored, lowered.tensors[stored].dtype, quantization


def _real_name(
    q: Graph, part: Node, sources: Mapping[str, Node], named: set[str], origins: Mapping[str, Node]
) -> str | None:
    """The float graph's name of what a Q node quantizes: its operand, what its DQ makes, or its maker's twin."""
    source = sources.get(part.name)
    if source is None:
        return None
    if source.inputs[0] in named:
        return source.inputs[0]
    for reader in q.consumers.get(source.outputs[0], ()):
        if reader.op == "DequantizeLinear" and reader.outputs[0] in named:
            return reader.outputs[0]
    maker = q.producers.get(source.inputs[0])
    twin = None if maker is None else origins.get(maker.origin or maker.name)
    if maker is None or twin is None or twin.op != maker.op:
        return None
    return twin.outputs[maker.outputs.index(source.inputs[0])]
