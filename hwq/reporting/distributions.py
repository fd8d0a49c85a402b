"""Which tensors' histograms a report shows, with the lines at which their stored types clip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwq.calibration import Calibration
from hwq.graph import Graph, Quantization
from hwq.ops.storage import integer_range
from hwq.reporting.meeting import match
from hwq.reporting.records import Comparison, Floats, Histogram
from hwq.statistics import Statistics

__all__ = ["choose"]

# Histograms on the page: the activations that lose most, and the weights that do.
MAX_ACTIVATIONS = 4
MAX_WEIGHTS = 2
# Bars of one histogram: enough to see tails, few enough to tell apart in 300 pixels.
MAX_BARS = 96


def choose(
    calibrations: Sequence[Calibration], graphs: Sequence[Graph], comparisons: Sequence[Comparison]
) -> list[Histogram]:
    """Histograms of the activations with the lowest SQNR (without a comparison: those that are clipped most) and of the
    weights with the lowest SQNR, in the order of the graph.
    """
    return [*_activations(calibrations, graphs, comparisons), *_weights(graphs)]


def _activations(
    calibrations: Sequence[Calibration], graphs: Sequence[Graph], comparisons: Sequence[Comparison]
) -> list[Histogram]:
    known = {
        name: statistics for calibration in reversed(calibrations) for name, statistics in calibration.tensors.items()
    }
    stored = {name: found for graph in reversed(graphs) for name, found in _points(graph, known)}
    errors = match(comparisons)
    ranked = []
    for place, (name, statistics) in enumerate(known.items()):
        if statistics.count == 0 or statistics.minimum == statistics.maximum or (stored and name not in stored):
            continue
        quantization = stored.get(name)
        edges, counts = _rebinned(statistics)
        clip, dtype = (None, "") if quantization is None else (_limits(quantization), quantization.dtype)
        clipped = 0.0 if clip is None else _outside(statistics, clip, dtype)
        sqnr = errors[name].sqnr_db if name in errors else math.inf
        ranked.append((sqnr, -clipped, place, Histogram(name, "activation", edges, counts, clip, clipped, dtype)))
    chosen = sorted(ranked, key=lambda entry: entry[:3])[:MAX_ACTIVATIONS]
    return [histogram for *_, histogram in sorted(chosen, key=lambda entry: entry[2])]


def _points(graph: Graph, known: Mapping[str, Statistics]) -> Iterator[tuple[str, Quantization]]:
    """Calibrated tensors that `graph` stores with one known scale; around Q and DQ a name has a suffix."""
    for node in graph.nodes:
        if node.op == "QuantizeLinear" and len(node.inputs) >= 2:
            scale, zero = (
                graph.constant(node.inputs[1]),
                graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None,
            )
            name = next(
                (name for name in (node.inputs[0], node.inputs[0].removesuffix("_float")) if name in known), None
            )
            if name is not None and scale is not None and scale.size == 1:
                yield (
                    name,
                    Quantization(
                        graph.tensors[node.outputs[0]].dtype,
                        scale.reshape(()),
                        None if zero is None else zero.reshape(()),
                    ),
                )
    for tensor in graph.tensors.values():
        name = tensor.name if tensor.name in known else tensor.name.removesuffix("_quantized")
        if (
            name in known
            and not tensor.constant
            and tensor.quantization is not None
            and tensor.quantization.known
            and tensor.quantization.granularity == "tensor"
        ):
            yield name, tensor.quantization


def _limits(quantization: Quantization) -> tuple[float, float]:
    lowest, highest = integer_range(quantization.dtype)
    scale = float(quantization.scales().reshape(-1)[0])
    zero = (
        0
        if quantization.zero_point is None or isinstance(quantization.zero_point, str)
        else int(np.asarray(quantization.zero_point).reshape(-1)[0])
    )
    return (lowest - zero) * scale, (highest - zero) * scale


def _outside(statistics: Statistics, clip: tuple[float, float], dtype: str) -> float:
    """Share of the values more than half a step beyond the limits: nearer ones are rounded, not clipped."""
    lowest, highest = integer_range(dtype)
    slack = (clip[1] - clip[0]) / (highest - lowest) / 2
    edges = statistics.edges
    beyond = (edges[1:] <= clip[0] - slack) | (edges[:-1] >= clip[1] + slack)
    return float(statistics.histogram[beyond].sum() / statistics.count)


def _rebinned(statistics: Statistics) -> tuple[Floats, Floats]:
    """Whole bins merged, so that no count is split; only the used range is kept."""
    used = np.flatnonzero(statistics.histogram)
    first, last = int(used[0]), int(used[-1]) + 1
    factor = max(1, 1 << math.ceil(math.log2(max(1.0, (last - first) / MAX_BARS))))
    first -= first % factor
    last += -last % factor
    counts = statistics.histogram[first:last].reshape(-1, factor).sum(axis=1).astype(np.float64)
    return statistics.edges[first : last + 1 : factor], counts


@dataclass(frozen=True)
class _Stored:
    sqnr_db: float
    histogram: Histogram


def _weights(graphs: Sequence[Graph]) -> list[Histogram]:
    floats = {
        name: tensor.data
        for graph in graphs
        for name, tensor in graph.tensors.items()
        if tensor.data is not None and tensor.dtype == "float32" and tensor.data.ndim >= 2
    }
    found: dict[str, _Stored] = {}
    for graph in graphs:
        for node in graph.nodes:
            name = node.inputs[0].removesuffix("_quantized") if node.op == "DequantizeLinear" else ""
            if (
                name in floats
                and name not in found
                and (stored := _stored(graph, node.inputs, node.attributes, name, floats[name])) is not None
            ):
                found[name] = stored
    worst = sorted(found, key=lambda name: found[name].sqnr_db)[:MAX_WEIGHTS]
    return [stored.histogram for name, stored in found.items() if name in worst]


def _stored(
    graph: Graph, inputs: Sequence[str], attributes: Mapping[str, int], name: str, real: NDArray[np.float32]
) -> _Stored | None:
    """The float weights in steps of their own scale, beside the bounds of their stored type."""
    integers, scale = graph.constant(inputs[0]), graph.constant(inputs[1])
    zero = graph.constant(inputs[2]) if len(inputs) > 2 else None
    dtype = graph.tensors[inputs[0]].dtype
    if integers is None or scale is None or integers.shape != real.shape or dtype.startswith("float"):
        return None
    axis, block = int(attributes.get("axis", 1)), int(attributes.get("block_size", 0))
    step, offset = (
        _spread(values, real.shape, axis, block)
        for values in (
            scale.astype(np.float64),
            np.zeros_like(scale, np.float64) if zero is None else zero.astype(np.float64),
        )
    )
    steps = real / step
    error = float(np.square(steps * step - (integers - offset) * step).sum())
    power = float(np.square(real, dtype=np.float64).sum())
    if power == 0.0:
        return None
    lowest, highest = integer_range(dtype)
    clip = (float(lowest - offset.max()), float(highest - offset.min()))
    counts, edges = np.histogram(steps, MAX_BARS // 2)
    clipped = float(np.mean((steps + offset < lowest - 0.5) | (steps + offset > highest + 0.5)))
    histogram = Histogram(name, "weight", edges.astype(np.float64), counts.astype(np.float64), clip, clipped, dtype)
    return _Stored(math.inf if error == 0.0 else 10 * math.log10(power / error), histogram)


def _spread(values: Floats, shape: tuple[int, ...], axis: int, block: int) -> Floats:
    if values.ndim == 0 or values.size == 1:
        return np.broadcast_to(values.reshape(()), shape)
    if block:
        return np.repeat(values, block, axis=axis)[tuple(slice(size) for size in shape)]
    return np.broadcast_to(
        values.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))]), shape
    )
