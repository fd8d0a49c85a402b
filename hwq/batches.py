"""Batches: what a caller hands over (array, dict, file, iterable of them) as checked feeds, cut to bounded pieces."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.files import Stream, read_npz, streams
from hwq.graph import Array, Graph, Shape, Tensor, carrier
from hwq.names import display_name
from hwq.operator_kinds import MOVES

__all__ = ["Batch", "Batches", "Feed", "cut", "feeds", "length"]

Feed = dict[str, Array]
Batch = Array | Mapping[str, Array] | str | os.PathLike[str]
Batches = Batch | Iterable[Batch]

# Names that data files give to a single input besides the model's own; what else lies beside it (labels) is left alone.
PLAIN_NAMES = ("x", "data", "input", "inputs", "images", "features")
# Piece size: this many samples, or fewer where one activation tensor of a piece would pass 32 MiB.
PIECE_SAMPLES = 64
PIECE_BYTES = 32 << 20


def feeds(graph: Graph, batches: Batches) -> Iterator[Feed]:
    """Check batches against the graph's inputs, one at a time.

    Parameters
    ----------
    graph : Graph
    batches : array, mapping, path, or iterable of them
        An array feeds the one input of the graph, a mapping feeds inputs by name. A path is an ``.npz`` (members named
        as the inputs, or one plain array ``x`` for a graph with one input), an ``.npy``, or a folder of such files in
        name order.

    Yields
    ------
    dict of input name to array
        Samples along the first axis, as the caller batched them; those of a file in the pieces that `cut` makes.

    Raises
    ------
    Error
        Nothing to read, a missing or unknown input, a wrong type or shape, an object array, NaN or infinity; the
        message names input and sample.
    """
    empty = True
    for batch, where in _each(batches, "batches"):
        empty = False
        if isinstance(batch, Path):
            yield from _read(graph, batch)
        else:
            yield _checked(graph, batch, where)
    if empty:
        raise Error(
            "there are no batches",
            why="the iterable is empty",
            remedy="give at least one batch; a generator can be read only once",
        )


def length(batches: Batches) -> int | None:
    """Samples along the first axis when that is known without reading anything, else None."""
    if isinstance(batches, Mapping):
        batches = next(iter(batches.values()), np.empty(0))
    return int(batches.shape[0]) if isinstance(batches, np.ndarray) and batches.ndim else None


def _each(batches: Any, where: str) -> Iterator[tuple[Any, str]]:
    if isinstance(batches, Mapping) or _array_like(batches):
        yield batches, where
    elif isinstance(batches, (str, os.PathLike)):
        path = Path(batches)
        if path.is_dir():
            for file in sorted(item for item in path.iterdir() if item.suffix in {".npz", ".npy"}):
                yield file, str(file)
        else:
            yield path, str(path)
    elif isinstance(batches, Iterable) and not isinstance(batches, (bytes, bytearray)):
        for index, item in enumerate(batches):
            if not (isinstance(item, (str, os.PathLike, Mapping)) or _array_like(item)):
                raise Error(
                    f"a batch is a {type(item).__name__}",
                    where=f"{where}[{index}]",
                    why="a batch is an array, a dict or a path",
                    remedy="convert it with numpy.asarray and the input's type",
                )
            yield from _each(item, f"{where}[{index}]")
    else:
        raise Error(
            f"batches cannot be a {type(batches).__name__}",
            why="they are an array, a dict, a path, or an iterable of those",
        )


def _read(graph: Graph, path: Path) -> Iterator[Feed]:
    """The samples of a file, never more of them in memory than one piece."""
    where = str(path)
    given = _selected(graph, streams(path), where)
    chosen: dict[str, Stream] = {name: given[name] for name in graph.inputs}
    if any(one.whole for one in chosen.values()) or len({one.shape[0] for one in chosen.values()}) != 1:
        yield _checked(graph, read_npz(path), where)
        return
    stand_ins = {name: one.stand_in for name, one in chosen.items()}
    bound: dict[str, int] = {}
    for name, array in stand_ins.items():
        _require_fit(graph.tensors[name], array, f"{where}, input {display_name(name)}", bound)
    size, _ = _piece(graph, stand_ins)
    parts = zip(*(one.pieces(size) for one in chosen.values()), strict=True)
    for start, arrays in zip(itertools.count(0, size), parts, strict=False):
        piece = dict(zip(chosen, arrays, strict=True))
        for name, array in piece.items():
            if graph.tensors[name].dtype == "bfloat16" or array.dtype.kind == "f":
                masks = _may_mask(graph, name)
                _require_finite(array, f"{where}, input {display_name(name)}", start, masks)
        yield piece


def _array_like(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__")


def _checked(graph: Graph, batch: Any, where: str) -> Feed:
    if isinstance(batch, Mapping):
        given = _selected(graph, batch, where)
    elif len(graph.inputs) == 1:
        given = {graph.inputs[0]: batch}
    else:
        raise Error(
            f"the model has {len(graph.inputs)} inputs, the batch is one array",
            where=where,
            remedy=f"give a dict with {_listed(graph.inputs)}",
        )
    bound: dict[str, int] = {}
    return {
        name: _fitting(
            graph, graph.tensors[name], np.asarray(given[name]), f"{where}, input {display_name(name)}", bound
        )
        for name in graph.inputs
    }


def _selected(graph: Graph, batch: Mapping[Any, Any], where: str) -> Mapping[str, Any]:
    from_file = where.endswith((".npz", ".npy"))
    missing = [name for name in graph.inputs if name not in batch]
    if missing and from_file and len(graph.inputs) == 1:
        # A data file need not know the model's tensor names.
        plain = next((name for name in PLAIN_NAMES if name in batch), next(iter(batch)) if len(batch) == 1 else None)
        if plain is not None:
            return {graph.inputs[0]: batch[plain]}
    if missing:
        raise Error(
            f"the batch has nothing for the model's input {display_name(missing[0])}",
            where=where,
            why=f"it holds {_listed(batch) or 'nothing'}",
            remedy=f"the model wants {_listed(graph.inputs)}",
        )
    unknown = [name for name in batch if name not in graph.inputs]
    if unknown and not from_file:
        raise Error(
            f"the model has no input {display_name(unknown[0])}",
            where=where,
            remedy=f"the model wants {_listed(graph.inputs)}",
        )
    return batch


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(display_name(name) for name in names)


def _fitting(graph: Graph, tensor: Tensor, array: Array, where: str, bound: dict[str, int]) -> Array:
    _require_fit(tensor, array, where, bound)
    if array.dtype.kind == "f" or tensor.dtype == "bfloat16":
        _require_finite(array, where, masks=_may_mask(graph, tensor.name))
    return array


def _may_mask(graph: Graph, name: str) -> bool:
    """Whether a value is only added or chosen on its way, so that minus infinity in it hides others: an attention mask."""
    readers = graph.consumers.get(name, ())
    return bool(readers) and all(
        node.op in {"Add", "Where"} or ((node.op in MOVES or node.op == "Cast") and _may_mask(graph, node.outputs[0]))
        for node in readers
    )


def _require_fit(tensor: Tensor, array: Array, where: str, bound: dict[str, int]) -> None:
    wanted = carrier(tensor.dtype)
    if array.dtype != wanted:
        raise Error(
            f"the batch holds {array.dtype}, the model wants {tensor.dtype}",
            where=where,
            why="hwq changes no data silently: only the model's author knows how stored numbers stand for its inputs",
            remedy=f"convert it with the model's own scaling, such as x.astype(numpy.{wanted.name})",
        )
    if tensor.known_shape and not _matches(tensor.shape, array.shape, bound):
        raise Error(
            f"the batch has shape {list(array.shape)}, the model wants {list(tensor.shape)}",
            where=where,
            why="a name in the shape stands for any size, the same wherever it stands",
            remedy="samples stand along the first axis; the rest must be as the model says",
        )
    if array.size == 0:
        raise Error(
            f"the batch is empty: its shape is {list(array.shape)}", where=where, remedy="give at least one sample"
        )


def _matches(shape: Shape, given: tuple[int, ...], bound: dict[str, int]) -> bool:
    if len(shape) != len(given):
        return False
    for axis, (dim, size) in enumerate(zip(shape, given, strict=True)):
        # The first axis carries the samples: a multiple of a fixed batch is cut later.
        if isinstance(dim, str):
            if dim and bound.setdefault(dim, size) != size:
                return False
        elif size != dim and not (axis == 0 and dim > 0 and size % dim == 0):
            return False
    return True


def _require_finite(array: Array, where: str, before: int = 0, masks: bool = False) -> None:
    finite = np.isfinite(array) | ((array == -np.inf) & masks)
    if not finite.all():
        place = np.unravel_index(int(np.argmin(finite)), array.shape)
        sample = f", sample {before + int(place[0])}" if array.ndim else ""
        raise Error(
            f"the data hold {array[place]}",
            where=f"{where}{sample}, element {[int(i) for i in place[1:]]}",
            why="one NaN or infinity makes every range and every result meaningless",
            remedy="mend or drop that sample",
        )


def cut(graph: Graph, feed: Feed) -> Iterator[Feed]:
    """Cut a checked feed along the samples, to the model's fixed batch or to pieces of bounded memory.

    Raises
    ------
    Error
        The number of samples is no multiple of the model's fixed batch.
    """
    size, count = _piece(graph, feed)
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in feed.items()} if size < count else feed


def _piece(graph: Graph, feed: Feed) -> tuple[int, int]:
    tensors = [graph.tensors[name] for name in graph.inputs]
    counts = {array.shape[0] if array.ndim else 0 for array in feed.values()}
    leads = {tensor.shape[0] if tensor.known_shape and tensor.shape else "" for tensor in tensors}
    if len(counts) != 1 or len(leads) != 1 or 0 in counts:
        if any(
            array.shape != tensor.shape for array, tensor in zip(feed.values(), tensors, strict=True) if tensor.concrete
        ):
            raise Error(
                "the inputs hold different numbers of samples",
                why=f"first axes: {sorted(counts)}",
                remedy="give every input the same number of samples",
            )
        return 1, 1  # no common batch axis: run it whole
    count, lead = counts.pop(), leads.pop()
    if isinstance(lead, int):
        return lead, count
    return max(1, min(count, PIECE_SAMPLES, PIECE_BYTES // max(1, _largest(graph, feed)))), count


def _largest(graph: Graph, feed: Feed) -> int:
    """Bytes of the largest activation tensor at one sample, symbols counted as 1; inputs where no shape is known."""
    sizes = [
        4 * int(np.prod([dim if isinstance(dim, int) else 1 for dim in tensor.shape[1:]], dtype=np.int64))
        for name, tensor in graph.tensors.items()
        if tensor.known_shape and tensor.shape and name in graph.producers
    ]
    sizes += [array.nbytes // max(1, array.shape[0]) for array in feed.values()]
    return max(sizes)
