"""Samples: labelled data files brought into the shape that a model asks for, with a note for everything that was changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hwq.errors import Error
from hwq.files import MAX_BYTES, PathLike, read_npz
from hwq.graph import Array, Graph, Tensor, carrier
from hwq.names import display_name

__all__ = ["Samples", "read"]

# Names under which data files keep their labels.
LABELS = ("y", "label", "labels", "target", "targets")


@dataclass(frozen=True, eq=False)
class Samples:
    """Feeds for a graph: one array an input with the samples along the first axis, and perhaps labels.

    Attributes
    ----------
    feeds : mapping of input name to array
    labels : int64 array of shape (samples,), or None
    notes : tuple of str
        What was converted on the way: types, layout, shape, scale.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Cut the samples into feeds of at most `size` samples."""
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.feeds.items()}

    def first(self, count: int) -> Samples:
        """The first `count` samples."""
        labels = None if self.labels is None else self.labels[:count]
        return Samples({name: array[:count] for name, array in self.feeds.items()}, labels, self.notes)


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
    if set(graph.inputs) <= set(arrays):
        chosen = {name: arrays[name] for name in graph.inputs}
    elif len(graph.inputs) == 1 and len(arrays) == 1:
        chosen = {graph.inputs[0]: next(iter(arrays.values()))}
    else:
        missing = [display_name(name) for name in graph.inputs if name not in arrays]
        raise Error(
            f"no array for the model's inputs {', '.join(missing)}",
            where=str(path),
            why=f"the file holds {', '.join(display_name(name) for name in arrays) or 'no arrays but labels'}",
            remedy="name the arrays as the model names its inputs",
        )
    feeds = {
        name: _fitted(array, graph.tensors[name], str(path), scale, zero_point, notes) for name, array in chosen.items()
    }
    counts = {len(array) for array in feeds.values()}
    if len(counts) != 1 or 0 in counts:
        raise Error(
            "the inputs hold no samples or different numbers of them",
            where=str(path),
            why=f"first axes: {sorted(counts)}",
        )
    return Samples(feeds, _labels(labels, counts.pop(), str(path)), tuple(notes))


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
