"""Samples: labelled data files brought into the shape that a model asks for, with a note for everything that was changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from hwq.errors import Error
from hwq.files import MAX_BYTES, PathLike, Stream, read_npz, streams
from hwq.graph import Array, Graph, Tensor, carrier
from hwq.names import display_name

__all__ = ["Samples", "Streamed", "read", "stream"]

# Names under which data files keep their labels.
LABELS = ("y", "label", "labels", "target", "targets")


Kind = TypeVar("Kind")


@dataclass(frozen=True, eq=False)
class Samples:
    """Feeds for a graph: one array an input with the samples along the first axis, and perhaps labels.

    Attributes
    ----------
    feeds : mapping of input name to array
    labels : int64 array of shape (samples,), or None
    notes : tuple of str
        What was converted on the way: types, layout, shape, scale.
    fixed : int, optional
        The batch that the model was written for; None where it is open.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    notes: tuple[str, ...] = ()
    fixed: int | None = None

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Cut the samples into feeds of `fixed` samples, else of at most `size`."""
        step = self.fixed or size
        for start in range(0, len(self), step):
            yield {name: array[start : start + step] for name, array in self.feeds.items()}

    def first(self, count: int) -> Samples:
        """The first `count` samples."""
        labels = None if self.labels is None else self.labels[:count]
        return Samples({name: array[:count] for name, array in self.feeds.items()}, labels, self.notes, self.fixed)


def read(
    path: PathLike, graph: Graph, *, scale: float = 1.0, zero_point: float = 0.0, max_bytes: int = MAX_BYTES
) -> Samples:
    """Read an ``.npz`` or ``.npy`` for the inputs of `graph`.

    Arrays are matched by input name; a model with one input also takes the only array that is not a label. Real numbers,
    or integers of another type, for an input that stores integers with a scale are quantized to it. Integers for a float
    input become ``(value - zero_point) * scale``; channels-last images are turned for a channels-first model and
    the reverse; flat samples are reshaped when the element counts agree.

    Raises
    ------
    Error
        The file is bad, an input has no array, or an array cannot be brought into shape.
    """
    arrays = read_npz(path, max_bytes)
    labels = next((arrays.pop(name) for name in LABELS if name in arrays and name not in graph.inputs), None)
    notes: list[str] = []
    chosen = _chosen(arrays, graph, str(path))
    feeds = {
        name: _fitted(array, graph.tensors[name], str(path), scale, zero_point, notes) for name, array in chosen.items()
    }
    count = _count([len(array) for array in feeds.values()], str(path))
    return Samples(feeds, _labels(labels, count, str(path)), tuple(notes), _fixed(graph))


@dataclass(frozen=True, eq=False)
class Streamed:
    """Samples that stay in their files until they are asked for, without labels."""

    graph: Graph
    files: tuple[tuple[str, Mapping[str, Stream]], ...]
    count: int
    scale: float
    zero_point: float
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """The samples of one file after the other, converted as `read` does, cut as `Samples.batches` cuts."""
        left, step = self.count, _fixed(self.graph) or size
        for where, chosen in self.files:
            for arrays in zip(*(one.pieces(step) for one in chosen.values()), strict=True):
                feed = {
                    name: _fitted(array, self.graph.tensors[name], where, self.scale, self.zero_point, [])[:left]
                    for name, array in zip(chosen, arrays, strict=True)
                }
                yield feed
                left -= len(next(iter(feed.values())))
                if not left:
                    return


def stream(
    path: PathLike, graph: Graph, count: int | None = None, *, scale: float = 1.0, zero_point: float = 0.0
) -> Samples | Streamed:
    """As `read`, with as little in memory as a batch takes, for data of any length that are needed in order.

    Parameters
    ----------
    path : path
        An ``.npz`` or ``.npy``, or a folder of them, taken in the order of their names.
    graph : Graph
    count : int, optional
        Of the samples, the first so many.
    scale, zero_point : float
        As for `read`.

    Raises
    ------
    Error
        As `read`; what is wrong with later samples when they are read.
    """
    folder = Path(path)
    names = sorted(one for one in folder.iterdir() if one.suffix in {".npz", ".npy"}) if folder.is_dir() else [folder]
    if not names:
        raise Error("there are no samples in this folder", where=str(path), remedy="put .npz or .npy files there")
    files, total = [], 0
    notes: dict[str, None] = {}
    for name in names:
        held = streams(name)
        for label in LABELS:
            if label not in graph.inputs:
                held.pop(label, None)
        chosen = _chosen(held, graph, str(name))
        if any(one.whole for one in chosen.values()):
            if len(names) == 1:
                found = read(name, graph, scale=scale, zero_point=zero_point)
                return found if count is None else found.first(count)
            raise Error(
                "this file must be read whole", where=str(name), remedy="save it in C order (numpy.ascontiguousarray)"
            )
        total += _count([one.shape[0] for one in chosen.values()], str(name))
        told: list[str] = []
        for input_name, one in chosen.items():
            first = next(one.pieces(1))
            _fitted(first, graph.tensors[input_name], str(name), scale, zero_point, told)
        notes.update(dict.fromkeys(told))
        files.append((str(name), chosen))
    return Streamed(graph, tuple(files), total if count is None else min(count, total), scale, zero_point, tuple(notes))


def _chosen(arrays: Mapping[str, Kind], graph: Graph, path: str) -> dict[str, Kind]:
    """What each input of the model reads."""
    if set(graph.inputs) <= set(arrays):
        return {name: arrays[name] for name in graph.inputs}
    if len(graph.inputs) == 1 and len(arrays) == 1:
        return {graph.inputs[0]: next(iter(arrays.values()))}
    missing = [display_name(name) for name in graph.inputs if name not in arrays]
    raise Error(
        f"no array for the model's inputs {', '.join(missing)}",
        where=path,
        why=f"the file holds {', '.join(display_name(name) for name in arrays) or 'no arrays but labels'}",
        remedy="name the arrays as the model names its inputs",
    )


def _fixed(graph: Graph) -> int | None:
    shapes = [graph.tensors[name].shape for name in graph.inputs]
    leads = {shape[0] if shape else "" for shape in shapes}
    lead = leads.pop() if len(leads) == 1 else ""
    return lead if isinstance(lead, int) and lead > 0 else None


def _count(counts: Sequence[int], path: str) -> int:
    if len(set(counts)) != 1 or not counts[0]:
        raise Error(
            "the inputs hold no samples or different numbers of them",
            where=path,
            why=f"first axes: {sorted(set(counts))}",
        )
    return counts[0]


def _fitted(array: Array, tensor: Tensor, path: str, scale: float, zero_point: float, notes: list[str]) -> Array:
    where = f"{path}, input {tensor.name}"
    array = _shaped(array, tensor, where, notes)
    wanted = carrier(tensor.dtype)
    if array.dtype == wanted and scale == 1.0 and zero_point == 0.0:
        return array
    if wanted.kind == "f" and array.dtype.kind in "iufb":
        if array.dtype != wanted or scale != 1.0 or zero_point != 0.0:
            formula = "value" if (scale, zero_point) == (1.0, 0.0) else f"(value - {zero_point:g}) * {scale:g}"
            notes.append(f"{display_name(tensor.name)}: {array.dtype} read as {tensor.dtype} = {formula}")
        if (scale, zero_point) == (1.0, 0.0):
            return array.astype(wanted)
        return ((array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)).astype(wanted)
    found = _stored(array, tensor, scale, zero_point, notes)
    if found is not None:
        return found
    whole = wanted.kind in "iu" and array.dtype.kind in "iu"
    if _within(array, wanted) if whole else np.can_cast(array.dtype, wanted, "same_kind"):
        return array.astype(wanted)
    raise Error(
        f"the model wants {tensor.dtype}, the file holds {array.dtype}",
        where=where,
        remedy="convert the data before saving it",
    )


def _stored(array: Array, tensor: Tensor, scale: float, zero_point: float, notes: list[str]) -> Array | None:
    """Real numbers as an input that stores integers holds them; None where the input has no scale.

    Data of another type than the input's are real numbers, as they are for a float input: ``rint(f32(x / scale)) + zero
    point``, saturated.
    """
    pair = tensor.quantization
    if pair is None or not pair.known or pair.scales().size != 1:
        return None
    real = (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    step, point = np.float32(pair.scales().reshape(())), int(pair.zero_points().reshape(()))
    info = np.iinfo(carrier(tensor.dtype))
    notes.append(
        f"{display_name(tensor.name)}: {array.dtype} read as real numbers, stored as {tensor.dtype} = "
        f"value / {float(step):g} + {point}"
    )
    with np.errstate(invalid="ignore"):
        stored = np.clip(np.rint((real / step).astype(np.float32)) + point, info.min, info.max)
    return np.asarray(stored.astype(info.dtype))


def _within(array: Array, wanted: np.dtype[np.generic]) -> bool:
    bounds = np.iinfo(wanted)  # type: ignore[type-var]
    return array.size == 0 or (int(array.min()) >= bounds.min and int(array.max()) <= bounds.max)


def _shaped(array: Array, tensor: Tensor, where: str, notes: list[str]) -> Array:
    want = tensor.shape[1:]
    if not tensor.known_shape or (array.ndim == len(tensor.shape) and _matches(array.shape[1:], want)):
        return array
    name = display_name(tensor.name)
    if array.ndim == 4 and len(want) == 3:
        if _matches((array.shape[3], array.shape[1], array.shape[2]), want):
            notes.append(f"{name}: channels-last turned to channels-first")
            return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        if _matches((array.shape[2], array.shape[3], array.shape[1]), want):
            notes.append(f"{name}: channels-first turned to channels-last")
            return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    if array.ndim >= 1 and all(isinstance(dim, int) for dim in want):
        elements = int(np.prod([int(dim) for dim in want], dtype=np.int64))
        if len(array) and array.size == elements * len(array):
            notes.append(f"{name}: samples reshaped to {'x'.join(str(dim) for dim in want)}")
            return array.reshape((len(array), *[int(dim) for dim in want]))
    raise Error(
        f"the model wants samples of shape {list(want)}, the file holds {list(array.shape[1:])}",
        where=where,
        remedy="reshape the data to the model's input, samples along the first axis",
    )


def _matches(shape: tuple[int, ...], want: tuple[int | str, ...]) -> bool:
    return len(shape) == len(want) and all(
        isinstance(dim, str) or dim == size for size, dim in zip(shape, want, strict=True)
    )


def _labels(labels: Array | None, count: int, path: str) -> Array | None:
    if labels is None:
        return None
    if labels.ndim != 1 or len(labels) != count or labels.dtype.kind not in "iu":
        raise Error(
            f"labels must be {count} integers in one row",
            where=path,
            why=f"found {labels.dtype} of shape {list(labels.shape)}",
        )
    return labels.astype(np.int64)
