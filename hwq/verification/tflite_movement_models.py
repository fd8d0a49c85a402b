"""TFLite models that move, pick, order or count elements: whatever their type, every value must be the runtime's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hwq.verification.tflite_builder import TYPES, Builder, options
from hwq.verification.tflite_drawing import Draw, Generator, integer, scheme, table

__all__ = ["MOVEMENTS"]

# What an operator with constant operands needs: (shape, results, operands before, operands behind, options).
Form = tuple[Sequence[int], Sequence[Sequence[int]], Sequence[Any], Sequence[Any], Any]


def _shape(rng: Generator, least: int = 1, most: int = 5, longest: int = 8) -> list[int]:
    return [integer(rng, 1, longest) for _ in range(integer(rng, least, most))]


def _known(rng: Generator, dtype: str) -> dict[str, Any]:
    return scheme(rng, dtype) if dtype in {"int8", "uint8", "int16"} else {}


def _moved(rng: Generator, op: str, form: Callable[[Generator], Form], dtype: str) -> bytes:
    b = Builder()
    shape, results, before, behind, made = form(rng)
    given = _known(rng, dtype)
    x = b.tensor(dtype, shape, **given)
    ys = [b.tensor(dtype, result, **given) for result in results]
    b.operator(op, [*map(b.constant, before), x, *map(b.constant, behind)], ys, made)
    return b.finish([x], ys[:1])


def _reverse(rng: Generator) -> Form:
    shape = _shape(rng)
    first = integer(rng, 0, len(shape))
    return shape, [shape], [], [list(range(first, integer(rng, first, len(shape)) + 1))], options("ReverseV2")


def _reverse_sequence(rng: Generator) -> Form:
    shape = _shape(rng, 2)
    batch, axis = (int(part) for part in rng.choice(len(shape), 2, replace=False))
    made = options("ReverseSequence", seqDim=axis, batchDim=batch)
    return shape, [shape], [], [rng.integers(1, shape[axis] + 1, shape[batch])], made


def _gather_nd(rng: Generator) -> Form:
    shape, lead = _shape(rng), _shape(rng, 1, 3)
    depth = integer(rng, 1, len(shape) + 1)
    points = np.stack([rng.integers(0, extent, lead) for extent in shape[:depth]], axis=-1)
    return shape, [[*lead, *shape[depth:]]], [], [points], options("GatherNd")


def _scatter_nd(rng: Generator) -> Form:
    shape, count = _shape(rng), integer(rng, 1, 6)
    depth = integer(rng, 1, len(shape) + 1)
    points = np.stack([rng.integers(0, extent, count) for extent in shape[:depth]], axis=-1)
    return [count, *shape[depth:]], [shape], [points], [shape], options("ScatterNd")


def _blocks(rng: Generator, deep: bool) -> Form:
    size, (batch, height, width, channels) = integer(rng, 1, 4), (integer(rng, 1, 5) for _ in range(4))
    flat, tall = [batch, height, width, channels * size**2], [batch, height * size, width * size, channels]
    name = "DepthToSpace" if deep else "SpaceToDepth"
    return (flat, [tall], [], [], options(name, blockSize=size)) if deep else (tall, [flat], [], [], options(name, blockSize=size))  # fmt: skip


def _batches(rng: Generator, apart: bool) -> Form:
    block, border = [integer(rng, 1, 4) for _ in range(2)], [[integer(rng, 0, 2) for _ in range(2)] for _ in range(2)]
    batch, height, width, channels = (integer(rng, 2, 5) for _ in range(4))
    whole = [max(size * step - sum(edge), 1) for size, step, edge in zip((height, width), block, border, strict=True)]
    border = [[edge[0], size * step - part - edge[0]]
              for edge, size, step, part in zip(border, (height, width), block, whole, strict=True)]  # fmt: skip
    border = [edge if min(edge) >= 0 else [0, sum(edge)] for edge in border]
    flat, many = [batch, *whole, channels], [batch * block[0] * block[1], height, width, channels]
    if apart:
        return flat, [many], [], [block, border], options("SpaceToBatchND")
    return many, [flat], [], [block, border], options("BatchToSpaceND")


def _mirror(rng: Generator, mode: int) -> Form:
    shape = [integer(rng, 3, 7) for _ in range(integer(rng, 1, 5))]
    border = rng.integers(0, 3, (len(shape), 2))
    made = options("MirrorPad", mode=mode)
    return shape, [[size + int(edge.sum()) for size, edge in zip(shape, border, strict=True)]], [], [border], made


def _repeat(rng: Generator) -> Form:
    shape = _shape(rng)
    times = [integer(rng, 1, 4) for _ in shape]
    return shape, [[size * count for size, count in zip(shape, times, strict=True)]], [], [times], options("Tile")


def _broadcast(rng: Generator) -> Form:
    shape = _shape(rng)
    return [1 if rng.random() < 0.5 else size for size in shape], [shape], [], [shape], options("BroadcastTo")


def _split(rng: Generator) -> Form:
    shape = _shape(rng)
    axis, sizes = integer(rng, 0, len(shape)), [integer(rng, 1, 5) for _ in range(3)]
    shape[axis] = sum(sizes)
    parts = [[*shape[:axis], size, *shape[axis + 1 :]] for size in sizes]
    return shape, parts, [], [[sizes[0], -1, sizes[2]], axis], options("SplitV", numSplits=3)


def _largest(rng: Generator) -> Form:
    shape = _shape(rng, longest=20)
    shape[-1] += 1
    count = integer(rng, 1, shape[-1] + 1)
    return shape, [[*shape[:-1], count]], [], [count], options("TopKV2")


def _top(rng: Generator, dtype: str, place: int) -> bytes:
    b = Builder()
    shape, (made,), _, (count,), option = _largest(rng)
    given = _known(rng, dtype)
    x, ys = b.tensor(dtype, shape, **given), [b.tensor(dtype, made, **given), b.tensor("int32", made)]
    b.operator("TOPK_V2", [x, b.constant(count)], ys, option)
    return b.finish([x], [ys[place]])


def _one_hot(rng: Generator, dtype: str) -> bytes:
    b = Builder()
    shape, depth, given = _shape(rng, 1, 4), integer(rng, 1, 9), _known(rng, dtype)
    axis = integer(rng, -1, len(shape) + 1)
    on, off = (b.tensor(dtype, [], value, **given) for value in (1, 0))
    made = list(shape)
    made.insert(len(shape) if axis < 0 else axis, depth)
    x, index, y = b.tensor("int8", shape), b.tensor("int32", shape), b.tensor(dtype, made, **given)
    b.operator("CAST", [x], [index], options("Cast", inDataType=TYPES["int8"], outDataType=TYPES["int32"]))
    b.operator("ONE_HOT", [index, b.constant(depth), on, off], [y], options("OneHot", axis=axis))
    return b.finish([x], [y])


def _update(rng: Generator, dtype: str) -> bytes:
    b = Builder()
    shape, given = _shape(rng), _known(rng, dtype)
    part = [integer(rng, 1, size + 1) for size in shape]
    x, u, y = b.tensor(dtype, shape, **given), b.tensor(dtype, part, **given), b.tensor(dtype, shape, **given)
    begin = b.constant(rng.integers(-2, 9, len(shape)))
    b.operator("DYNAMIC_UPDATE_SLICE", [x, u, begin], [y], options("DynamicUpdateSlice"))
    return b.finish([x, u], [y])


def _embedding(rng: Generator, dtype: str, to: str) -> bytes:
    b = Builder()
    rows, columns, count = integer(rng, 1, 20), integer(rng, 1, 40), integer(rng, 1, 9)
    scales: dict[str, Any] = (
        {} if dtype == to else {"scale": np.exp(rng.uniform(-6, 0, rows if rng.random() < 0.5 else 1))}
    )
    content = rng.integers(-7, 8, (rows, columns)) if dtype == "int4" else rng.integers(-127, 128, (rows, columns))
    x, w = b.tensor("int32", [count], rng.integers(0, rows, count)), b.tensor(dtype, [rows, columns], content, **scales)
    y, made, z = b.tensor(to, [count, columns]), b.tensor(to, [count, columns]), b.tensor(to, [count, columns])
    b.operator("EMBEDDING_LOOKUP", [x, w], [y])
    b.operator("MUL", [y, made], [z], options("Mul"))
    return b.finish([made], [z])


def _cumulative(rng: Generator, dtype: str) -> bytes:
    b = Builder()
    shape = _shape(rng)
    x, y = b.tensor(dtype, shape), b.tensor(dtype, shape)
    made = options("Cumsum", exclusive=bool(rng.random() < 0.5), reverse=bool(rng.random() < 0.5))
    b.operator("CUMSUM", [x, b.constant(integer(rng, -len(shape), len(shape)))], [y], made)
    return b.finish([x], [y])


def _truth(rng: Generator, op: str) -> bytes:
    b = Builder()
    shape = _shape(rng)
    axes = sorted(int(axis) for axis in rng.choice(len(shape), integer(rng, 1, len(shape) + 1), replace=False))
    keep = bool(rng.random() < 0.5)
    out = [1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes]
    x, some, y = b.tensor("float32", shape), b.tensor("bool", shape), b.tensor("bool", out)
    b.operator("GREATER", [x, b.constant(float(rng.uniform(-4, 4)), "float32")], [some], options("Greater"))
    b.operator(op, [some, b.constant(axes)], [y], options("Reducer", keepDims=keep))
    return b.finish([x], [y])


_ANY = ("int8", "uint8", "int16", "float32")
_FORMS: Mapping[str, tuple[Callable[[Generator], Form], Sequence[str]]] = {
    "REVERSE_V2": (_reverse, _ANY), "REVERSE_SEQUENCE": (_reverse_sequence, ("uint8", "int16", "float32")),
    "GATHER_ND": (_gather_nd, _ANY), "SCATTER_ND": (_scatter_nd, ("int8", "uint8", "float32")),
    "DEPTH_TO_SPACE": (lambda rng: _blocks(rng, True), ("int8", "uint8", "float32")),
    "SPACE_TO_DEPTH": (lambda rng: _blocks(rng, False), ("int8", "uint8", "float32")),
    "SPACE_TO_BATCH_ND": (lambda rng: _batches(rng, True), _ANY),
    "BATCH_TO_SPACE_ND": (lambda rng: _batches(rng, False), _ANY),
    "TILE": (_repeat, ("int8", "uint8", "int16", "float32")), "BROADCAST_TO": (_broadcast, _ANY),
    "SPLIT_V": (_split, _ANY),
}  # fmt: skip
MOVEMENTS: Mapping[str, Draw] = table([
    *((f"{op} {dtype}", _moved, (op, form, dtype)) for op, (form, types) in _FORMS.items() for dtype in types),
    *((f"MIRROR_PAD {dtype}, mode {mode}", _moved, ("MIRROR_PAD", lambda rng, mode=mode: _mirror(rng, mode), dtype))
      for mode in (0, 1) for dtype in ("int8", "float32")),
    *((f"TOPK_V2 {dtype}, {what}", _top, (dtype, place)) for dtype in _ANY for place, what in enumerate(("values", "places"))),
    *((f"ONE_HOT {dtype}", _one_hot, (dtype,)) for dtype in ("int8", "float32")),
    *((f"DYNAMIC_UPDATE_SLICE {dtype}", _update, (dtype,)) for dtype in ("int8", "int16", "float32")),
    *((f"EMBEDDING_LOOKUP {dtype}", _embedding, (dtype, "float32")) for dtype in ("int8", "int4", "float32")),
    *((f"CUMSUM {dtype}", _cumulative, (dtype,)) for dtype in ("int32", "float32")),
    *((f"{op} bool", _truth, (op,)) for op in ("REDUCE_ANY", "REDUCE_ALL")),
])  # fmt: skip
