"""Calibration: what the float model's tensors hold, gathered in one pass over the data, before any plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.batches import Batches, Feed, cut, feeds, length
from hwq.errors import Error
from hwq.files import MAX_BYTES, PathLike, read_npz, write_npz
from hwq.graph import Array, Graph
from hwq.names import display_name
from hwq.ops.evaluate import walk
from hwq.patches import Linear, linears, moments_of
from hwq.progress import Progress
from hwq.standardization import standardized
from hwq.statistics import BINS, Moments, Statistics, observe

__all__ = ["Calibration", "calibrate", "channel_axis", "fingerprint"]

VERSION = 1
# Second moments of one model may take this much memory; larger layers are left out and listed.
MOMENT_BYTES = 512 << 20
# Channel axes longer than this are not channels.
MAX_CHANNELS = 1 << 16


class Calibration:
    """Statistics of every float activation of one graph. Immutable, observer-free, printable.

    Attributes
    ----------
    graph : str
        Fingerprint of the graph's operators and constants, shapes aside.
    samples : int
        Samples seen.
    tensors : mapping of tensor name to Statistics
    moments : mapping of node name to Moments
        Second moments of the linear layers' inputs; empty unless asked for.
    skipped : tuple of str
        Linear layers whose moments would have passed the memory bound.
    unbounded : tuple of str
        Activations that held minus infinity, as attention masks do: no range covers them, so they have no statistics and stay
        float in every plan.
    """

    def __init__(
        self,
        graph: str,
        samples: int,
        tensors: Mapping[str, Statistics],
        moments: Mapping[str, Moments] | None = None,
        skipped: Iterable[str] = (),
        unbounded: Iterable[str] = (),
    ):
        self.graph = graph
        self.samples = samples
        self.tensors: Mapping[str, Statistics] = MappingProxyType(dict(tensors))
        self.moments: Mapping[str, Moments] = MappingProxyType(dict(moments or {}))
        self.skipped = tuple(skipped)
        self.unbounded = tuple(unbounded)

    def __getitem__(self, tensor: str) -> Statistics:
        try:
            return self.tensors[tensor]
        except KeyError:
            if tensor in self.unbounded:
                raise Error(
                    "this activation has no range",
                    where=f"tensor {display_name(tensor)}",
                    why="it held minus infinity in calibration",
                    remedy='plan mode = "float" for it',
                ) from None
            raise Error(
                "the calibration knows no such tensor",
                where=f"tensor {tensor}",
                remedy="calibrate the same graph that is quantized",
            ) from None

    def merge(self, other: Calibration) -> Calibration:
        """The calibration of both data sets together; ranges and histograms equal those of one pass over both.

        Raises
        ------
        Error
            They belong to different graphs, or only one has moments.
        """
        if self.graph != other.graph:
            raise Error("these calibrations belong to different graphs", remedy="merge calibrations of one graph only")
        if set(self.moments) != set(other.moments):
            raise Error(
                "one of the calibrations has second moments, the other has not",
                remedy="gather both with the same moments=",
            )
        unbounded = tuple(dict.fromkeys((*self.unbounded, *other.unbounded)))
        tensors = _merged(self.tensors, other.tensors)
        return Calibration(
            self.graph,
            self.samples + other.samples,
            {name: seen for name, seen in tensors.items() if name not in unbounded},
            {name: own.merge(other.moments[name]) for name, own in self.moments.items()},
            self.skipped,
            unbounded,
        )

    @property
    def hash(self) -> str:
        """SHA-256 over everything it holds."""
        digest = hashlib.sha256()
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write an ``.npz`` of plain arrays, whole or not at all."""
        write_npz(path, self._arrays(), overwrite=overwrite)

    def _arrays(self) -> dict[str, Array]:
        names = list(self.tensors)
        every = [self.tensors[name] for name in names]
        header = {
            "version": VERSION,
            "graph": self.graph,
            "samples": self.samples,
            "tensors": names,
            "axes": [item.axis for item in every],
            "moments": list(self.moments),
            "skipped": self.skipped,
            **({"unbounded": self.unbounded} if self.unbounded else {}),
        }
        arrays: dict[str, Array] = {
            "hwq_calibration": np.frombuffer(json.dumps(header).encode(), np.uint8),
            "count": np.array([item.count for item in every], np.int64),
            "sums": np.array([[item.total, item.squares] for item in every], np.float64).reshape(-1, 2),
            "exponent": np.array([item.exponent for item in every], np.int32),
            "histogram": np.stack([item.histogram for item in every]) if every else np.zeros((0, BINS), np.int64),
            "channels": np.array([len(item.totals) for item in every], np.int64),
            "ranges": np.concatenate(
                [np.stack([item.minima, item.maxima]) for item in every] or [np.zeros((2, 0), np.float32)], axis=1
            ),
            "totals": np.concatenate([item.totals for item in every] or [np.zeros(0)]),
        }
        for index, item in enumerate(self.moments.values()):
            arrays[f"moment{index}"], arrays[f"moment{index}_total"] = item.matrix, item.total
            arrays[f"moment{index}_count"] = np.array(item.count, np.int64)
        return arrays

    @classmethod
    def load(cls, path: PathLike, max_bytes: int = MAX_BYTES) -> Calibration:
        """Read what `save` wrote.

        Raises
        ------
        Error
            Not such a file, or a damaged one.
        """
        arrays = read_npz(path, max_bytes)
        if "hwq_calibration" not in arrays:
            raise Error(
                "this archive holds no calibration",
                where=str(path),
                remedy="`hwq calibrate` writes one; data files go to `calibrate` itself",
            )
        try:
            header = json.loads(arrays["hwq_calibration"].tobytes())
            if header["version"] != VERSION:
                raise Error(
                    f"the calibration has layout version {header['version']}, this hwq reads {VERSION}",
                    where=str(path),
                    remedy="calibrate again",
                )
            return cls._from_arrays(header, arrays)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise Error(
                "the calibration is damaged",
                where=str(path),
                why=f"{type(error).__name__}: {error}",
                remedy="calibrate again",
            ) from error

    @classmethod
    def _from_arrays(cls, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Calibration:
        names, axes = list(header["tensors"]), list(header["axes"])
        channels = [int(size) for size in arrays["channels"]]
        if (
            arrays["histogram"].shape != (len(names), BINS)
            or min(channels, default=1) < 1
            or arrays["count"].min(initial=1) < 1
        ):
            raise ValueError("the arrays do not fit the header")
        ends = np.cumsum(channels)
        if arrays["ranges"].shape != (2, sum(channels)) or arrays["totals"].shape != (sum(channels),):
            raise ValueError("the channels do not fit the header")
        if not (np.isfinite(arrays["ranges"]).all() and np.isfinite(arrays["sums"]).all()):
            raise ValueError("a range is not finite")
        tensors: dict[str, Statistics] = {}
        for index, (name, axis) in enumerate(zip(names, axes, strict=True)):
            part = slice(int(ends[index]) - channels[index], int(ends[index]))
            total, squares = (float(value) for value in arrays["sums"][index])
            tensors[str(name)] = Statistics(
                int(arrays["count"][index]), total, squares, int(arrays["exponent"][index]),
                arrays["histogram"][index].astype(np.int64),
                None if axis is None else int(axis), arrays["ranges"][0, part].astype(np.float32),
                arrays["ranges"][1, part].astype(np.float32), arrays["totals"][part].astype(np.float64))  # fmt: skip
        moments = {
            str(name): Moments(
                int(arrays[f"moment{index}_count"]),
                arrays[f"moment{index}"].astype(np.float64),
                arrays[f"moment{index}_total"].astype(np.float64),
            )
            for index, name in enumerate(header["moments"])
        }
        return cls(
            str(header["graph"]), int(header["samples"]), tensors, moments, [str(name) for name in header["skipped"]],
            [str(name) for name in header.get("unbounded", ())],
        )  # fmt: skip

    def to_text(self) -> str:
        """One line a tensor: range, mean, elements, channels."""
        lines = [
            f"calibration of {self.samples} samples, {len(self.tensors)} tensors, graph {self.graph[:12]}",
            f"  {'minimum':>12} {'maximum':>12} {'mean':>12} {'elements':>12} {'channels':>8}  tensor",
        ]
        for name, item in self.tensors.items():
            numbers = (
                f"{item.minimum:12.5g} {item.maximum:12.5g} {item.mean:12.5g} {item.count:12d} {len(item.totals):8d}"
            )
            lines.append(f"  {numbers}  {display_name(name)}")
        lines += [
            f"  no range: minus infinity among its values{'':>21}  {display_name(name)}" for name in self.unbounded
        ]
        return "\n".join(lines)

    __str__ = to_text

    def __repr__(self) -> str:
        return f"<Calibration: {self.samples} samples, {len(self.tensors)} tensors, {len(self.moments)} with moments>"


def calibrate(
    graph: Graph,
    batches: Batches,
    moments: bool = False,
    progress: Progress | None = None,
    *,
    resume: Calibration | None = None,
    only: Collection[str] | None = None,
) -> Calibration:
    """Run the float model over the data once and gather statistics of every float activation.

    Memory is bounded whatever the amount of data: samples are run in small pieces, a tensor lives until its last reader
    has run, and each keeps one histogram of fixed size. Ranges and histograms do not depend on how the samples are
    batched.

    Parameters
    ----------
    graph : Graph
        A float graph in source form, with its weights.
    batches : array, dict, path, or iterable of them
        See `hwq.batches.feeds`. Read once, so a generator will do.
    moments : bool
        Also gather E[x x^T] of every linear layer's input (for layers whose matrices stay within the memory bound).
    progress : callable, optional
        Called as ``progress(done, total, "calibrate: samples")``.
    resume : Calibration, optional
        An earlier calibration of the same graph to go on from. Stopping after some batches, saving, loading and going
        on with the others gives the bits of one pass over all of them.
    only : collection of str, optional
        Gather statistics of these activations only.

    Returns
    -------
    Calibration

    Raises
    ------
    Error
        Bad data (missing input, wrong type or shape, NaN, infinity, nothing at all), a graph that cannot run, or a
        value on the way that is NaN or plus infinity; the message names tensor and sample.
    """
    _require_runnable(graph)
    identity = fingerprint(graph)
    graph = standardized(graph)
    if resume is not None and resume.graph != identity:
        raise Error(
            "the calibration to go on from belongs to another graph",
            remedy="start anew, or load the graph it was made with",
        )
    layers, skipped = _bounded(linears(graph)) if moments else ({}, ())
    if resume is not None and (set(resume.moments) != set(layers)):
        raise Error(
            "the calibration to go on from was gathered with another moments=", remedy="use the same moments= as then"
        )
    axes = {name: channel_axis(graph, name) for name in graph.tensors}
    # Going on adds to the sums where they stopped, in the same order, so that a stop changes no bit.
    found: dict[str, Statistics] = {} if resume is None else dict(resume.tensors)
    second: dict[str, Moments] = {} if resume is None else dict(resume.moments)
    unbounded = dict.fromkeys(() if resume is None else resume.unbounded)
    before = 0 if resume is None else resume.samples
    samples, total = before, length(batches)
    for feed in feeds(graph, batches):
        for piece in cut(graph, feed):
            left = None if only is None else set(only)
            for name, value in _values(graph, piece):
                if left is not None:
                    if name not in left:
                        if not left:
                            break  # what comes later is not asked for
                        continue
                    left.discard(name)
                if not name or value.dtype.kind != "f" or not value.size:
                    continue
                seen = _observed(graph, name, value, axes[name], samples)
                if seen is None or name in unbounded:
                    unbounded[name] = None
                    found.pop(name, None)
                    continue
                found[name] = found[name].merge(seen) if name in found else seen
                for layer in (layers[node.name] for node in graph.consumers.get(name, ()) if node.name in layers):
                    part = moments_of(layer, value)
                    second[layer.node.name] = second[layer.node.name].merge(part) if layer.node.name in second else part
            samples += _samples(piece)
            if progress is not None:
                progress(samples - before, total, "calibrate: samples")
    return Calibration(identity, samples, found, second, skipped, unbounded)


def _samples(piece: Feed) -> int:
    return next((array.shape[0] for array in piece.values() if array.ndim), 1)


def _require_runnable(graph: Graph) -> None:
    if graph.form != "source":
        raise Error(
            "calibration runs on a graph in source form",
            where=f"graph {graph.name}",
            remedy="calibrate before lowering",
        )
    for node in graph.nodes:
        for name in node.inputs:
            if name and name not in graph.producers and name not in graph.inputs and graph.tensors[name].data is None:
                raise Error(
                    "this constant has no values",
                    where=f"tensor {name}",
                    why="the graph was built for cost only",
                    remedy="load it with weights; cost needs no calibration: estimate(graph, machine, plan=plan)",
                )


def fingerprint(graph: Graph) -> str:
    """SHA-256 of operators, edges, attributes and constants: equal for the same model at another batch size."""
    plain = graph.replace(
        tensors=[
            tensor if tensor.constant else type(tensor)(tensor.name, tensor.dtype, known_shape=False)
            for tensor in graph.tensors.values()
        ]
    )
    return plain.hash


def channel_axis(graph: Graph, name: str) -> int | None:
    """Where a tensor's channels stand: second axis next to a channels-first node, else the last axis; None for
    vectors.
    """
    tensor = graph.tensors[name]
    if not tensor.known_shape or len(tensor.shape) < 2:
        return None
    makers = [graph.producers[name]] if name in graph.producers else []
    layouts = {node.layout for node in (*makers, *graph.consumers.get(name, ())) if node.layout}
    first = "NHWC" not in layouts and (bool(layouts) or len(tensor.shape) >= 4) and len(tensor.shape) >= 3
    axis = 1 if first else len(tensor.shape) - 1
    size = tensor.shape[axis]
    return axis if isinstance(size, int) and 0 < size <= MAX_CHANNELS else None


def _observed(graph: Graph, name: str, value: Array, axis: int | None, before: int) -> Statistics | None:
    """Statistics of one value; None of one that holds minus infinity, and neither NaN nor plus infinity: a mask."""
    try:
        return observe(value, axis)
    except FloatingPointError:
        if value.min() == -np.inf and value.max() < np.inf:
            return None
        bad = np.unravel_index(int(np.argmax(np.isnan(value) | (value == np.inf))), value.shape)
        node = graph.producers.get(name)
        made = f" made by node {display_name(node.name)}" if node is not None else ""
        sample = f", sample {before + int(bad[0])}" if bad else ""
        raise Error(
            f"the value is {value[bad]}",
            where=f"tensor {display_name(name)}{made}{sample}",
            why="on this input the float model overflows or divides by zero",
            remedy="check the data's scaling, then the model",
        ) from None


def _values(graph: Graph, feed: Feed) -> Iterator[tuple[str, Array]]:
    """Every activation of one run, inputs first, each as soon as it is made."""
    yield from feed.items()
    for node, values in walk(graph, feed):
        yield from zip(node.outputs, values, strict=False)


def _bounded(layers: Mapping[str, Linear]) -> tuple[dict[str, Linear], tuple[str, ...]]:
    """The layers whose moments fit into MOMENT_BYTES together, smallest first, and the names of the rest."""
    kept: dict[str, Linear] = {}
    spent = 0
    for name, layer in sorted(layers.items(), key=lambda item: item[1].moment_bytes):
        spent += layer.moment_bytes
        if spent <= MOMENT_BYTES:
            kept[name] = layer
    return {name: layer for name, layer in layers.items() if name in kept}, tuple(
        name for name in layers if name not in kept
    )


def _merged(one: Mapping[str, Statistics], other: Mapping[str, Statistics]) -> dict[str, Statistics]:
    return {
        name: one[name].merge(other[name]) if name in one and name in other else one.get(name) or other[name]
        for name in dict.fromkeys((*one, *other))
    }
