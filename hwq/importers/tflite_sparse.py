"""Constants that a TFLite file stores sparse (SparsityParameters of the schema): the dense array that DENSIFY makes of one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array
from hwq.importers.flatbuffer import Reader, Table

__all__ = ["dense"]

# The unions of segments and indices.
_VECTORS = {1: "int32", 2: "uint16", 3: "uint8"}
_Index = NDArray[np.int64]
LIMIT = 1 << 28


def dense(
    sparsity: Table, raw: NDArray[np.uint8], shape: tuple[int, ...], kind: np.dtype[Any], reader: Reader
) -> Array:
    """The dense array: levels in traversal order, each with all its places or with those that its segments list.

    Raises
    ------
    Error
        The levels do not fit the shape or the stored values, or the array is out of proportion to the file.
    """
    order, blocks = (_numbers(sparsity, field, name) for field, name in ((0, "traversal_order"), (1, "block_map")))
    levels = list(sparsity.tables(2, "dim_metadata", 64))
    rank = len(shape)
    if (
        len(levels) != rank + len(blocks)
        or sorted(order.tolist()) != list(range(len(levels)))
        or np.any((blocks < 0) | (blocks >= rank))
    ):
        raise reader.fault(f"{sparsity.path}: {len(levels)} levels do not fit the shape {list(shape)}")
    count = int(np.prod(shape, dtype=object))
    reader.spend(8 * count)
    places: _Index = np.zeros(1, np.int64)
    found: list[_Index] = []
    sizes: list[int] = []
    for level in levels:
        step, rows, size = _level(level, places, count, reader)
        found = [one[rows] for one in found] + [step[1]]
        places = step[0]
        sizes.append(size)
    if len(raw) != len(places) * kind.itemsize:
        raise reader.fault(f"{sparsity.path}: {len(raw)} bytes are stored for {len(places)} values of {kind.itemsize}")
    coordinates = [np.zeros(len(places), np.int64) for _ in shape]
    for level_index in np.argsort(order, kind="stable"):  # dimensions first, then their blocks
        target = int(order[level_index])
        axis = target if target < rank else int(blocks[target - rank])
        scale = sizes[level_index] if target >= rank else 1
        coordinates[axis] = coordinates[axis] * scale + found[level_index]
    for axis, size in enumerate(shape):
        if len(places) and not 0 <= int(coordinates[axis].min()) <= int(coordinates[axis].max()) < size:
            raise reader.fault(f"{sparsity.path}: a value lies outside the shape {list(shape)}")
    made = np.zeros(shape, kind)
    made[tuple(coordinates)] = raw.view(kind.newbyteorder("<"))
    return made


def _numbers(table: Table, field: int, name: str, dtype: str = "int32") -> _Index:
    values = table.numbers(field, dtype, name, LIMIT)
    return np.zeros(0, np.int64) if values is None else values.astype(np.int64)


def _level(level: Table, places: _Index, count: int, reader: Reader) -> tuple[tuple[_Index, _Index], _Index, int]:
    """((places in this level, coordinates), which place before each comes from, the level's size)."""
    if not level.scalar(0, "int8", 0):
        size = int(level.scalar(1, "int32", 0))
        if size < 0 or len(places) * size > max(count, 1):
            raise reader.fault(f"{level.path} has {size} places, more than the tensor")
        steps = np.arange(size)
        rows = np.repeat(np.arange(len(places)), size)
        return (places[rows] * size + np.tile(steps, len(places)), np.tile(steps, len(places))), rows, size
    vectors = []
    for field, name in ((2, "array_segments"), (4, "array_indices")):
        dtype = _VECTORS.get(level.scalar(field, "uint8", 0))
        table = level.table(field + 1, name)
        if dtype is None or table is None:
            raise reader.fault(f"{level.path} has no {name}")
        vectors.append(_numbers(table, 0, "values", dtype))
    segments, indices = vectors
    if len(places) and int(places.max()) + 1 >= len(segments):
        raise reader.fault(f"{level.path} has {len(segments)} segments, too few")
    starts, lengths = segments[places], segments[places + 1] - segments[places]
    if (
        np.any(lengths < 0)
        or np.any(starts < 0)
        or int(lengths.sum()) > min(count, len(indices))
        or np.any(starts + lengths > len(indices))
    ):
        raise reader.fault(f"{level.path}: its segments do not fit {len(indices)} indices")
    rows = np.repeat(np.arange(len(places)), lengths)
    inside = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    reached = starts[rows] + inside
    return (reached, indices[reached]), rows, int(indices.max(initial=-1)) + 1
