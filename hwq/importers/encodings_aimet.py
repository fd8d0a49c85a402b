"""AIMET encodings (JSON): versions 0.6.1, 1.0.0 and 2.0.0, as aimet-onnx 2.42.0 writes them.

0.6.1 and 1.0.0 count offsets in the unsigned type of the same width, also for signed ones: stored = x / scale - offset in
[0, 2^b - 1]; so an unsigned zero point is -offset, a signed one -offset - 2^(b-1). 2.0.0 names the type and its zero point.
Files hold float64. A plan holds float32: a scale is rounded to nearest even once, when it is read; what hwq writes are the
doubles that equal those float32 numbers, so reading and writing change nothing from then on. `min` and `max` follow from
scale and offset, and are read only where a file has no scale: (max - min) / (2^b - 1), offset rint(min / scale).
LPBQ (a scale a channel times a small integer a block) becomes the blocks' own scales, each product rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.elements import BITS
from hwq.encodings import Encoding, to_plan
from hwq.errors import Error, NotSupportedYet
from hwq.graph import Graph
from hwq.importers.encodings import Imported, fitting, name_of
from hwq.names import display_name
from hwq.operator_kinds import MATRIX
from hwq.placement import weight_axes

__all__ = ["parse"]

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")


def parse(table: Any, where: str, graph: Graph | None) -> Imported:
    """The plan that an encodings file says.

    Raises
    ------
    Error
        Not such a file, or a damaged one.
    NotSupportedYet
        Encodings that a plan cannot say.
    """
    version = _version(table, where)
    left: list[str] = []
    every = list(_merged(table, where, graph, left) if version == "2.0.0" else _both(table, where, graph, left))
    kept, lost = fitting(every, graph)
    if not kept:
        raise Error("the file holds no encoding of this model" if every else "the file holds no encodings", where=where)
    return Imported(to_plan(kept), f"AIMET {version}", (*left, *lost))


def _version(table: Mapping[str, Any], where: str) -> str:
    version = table.get("version")
    groups = [table.get(kind) for kind in ("activation_encodings", "param_encodings")]
    if "encodings" in table:
        made = "2.0.0"
    elif any(group is not None for group in groups):
        made = "0.6.1" if any(isinstance(group, dict) and group for group in groups) else "1.0.0"
    else:
        recipes = [
            name
            for name, value in table.items()
            if isinstance(value, list) and value and isinstance(value[0], dict) and "regex" in value[0]
        ]
        if recipes:
            raise Error(
                f"the file holds recipes of {len(recipes)} models: {', '.join(map(display_name, recipes[:8]))}",
                where=where,
                remedy="save the list of this model as a file of its own",
            )
        raise Error(
            "this JSON holds no encodings",
            where=where,
            why="AIMET's files have activation_encodings and param_encodings, or encodings",
        )
    if version is not None and version not in VERSIONS:
        raise NotSupportedYet(
            f"AIMET encodings of version {display_name(str(version), 20)}",
            where=where,
            remedy=f"export them as one of {', '.join(VERSIONS)}",
        )
    return made


def _both(table: Mapping[str, Any], where: str, graph: Graph | None, left: list[str]) -> Iterator[Encoding]:
    for key, weight in (("activation_encodings", False), ("param_encodings", True)):
        group = table.get(key) or {}
        here = f"{where}, {key}"
        if isinstance(group, dict):
            for name, entries in group.items():
                yield from _legacy(name_of(name, here), entries, weight, here, graph, left)
        elif isinstance(group, list):
            for entry in group:
                yield from _listed(_table(entry, here), weight, here, graph, left)
        else:
            raise Error(
                f"{key} is a {type(group).__name__}", where=where, why="it is a table (0.6.1) or a list (1.0.0)"
            )


def _legacy(
    name: str, entries: Any, weight: bool, where: str, graph: Graph | None, left: list[str]
) -> Iterator[Encoding]:
    where = f"{where}, tensor {display_name(name)}"
    if not isinstance(entries, list) or not entries:
        raise Error("an encoding is a list of one entry a channel", where=where)
    tables = [_table(entry, where) for entry in entries]
    first = tables[0]
    if str(first.get("dtype", "int")).lower() != "int":
        left.append(f"tensor {name} stays floating point ({display_name(str(first.get('dtype')), 20)})")
        return
    bits = _whole(first.get("bitwidth"), "bitwidth", where)
    signed = str(first.get("is_symmetric", "False")).lower() == "true"
    if any(_whole(one.get("bitwidth"), "bitwidth", where) != bits for one in tables):
        raise Error("the channels of one tensor have different widths", where=where)
    pairs = [_pair(one, bits, where) for one in tables]
    plain = len(pairs) == 1
    scales = np.array([scale for scale, _ in pairs], np.float64)
    offsets = np.array([offset for _, offset in pairs], np.float64)
    made = _encoding(name, weight, bits, signed, scales.reshape(()) if plain else scales,
                     offsets.reshape(()) if plain else offsets, where, left)  # fmt: skip
    if made is not None:
        yield _in_blocks(made, graph, where, channels_first=False)


def _pair(entry: Mapping[str, Any], bits: int, where: str) -> tuple[float, float]:
    if "scale" in entry and "offset" in entry:
        return _number(entry["scale"], "scale", where), _number(entry["offset"], "offset", where)
    low, high = _number(entry.get("min"), "min", where), _number(entry.get("max"), "max", where)
    scale = (high - low) / (2**bits - 1)
    if not scale > 0.0:
        raise Error("max must be above min", where=where)
    return scale, float(np.rint(low / scale))


def _listed(
    entry: Mapping[str, Any], weight: bool, where: str, graph: Graph | None, left: list[str]
) -> Iterator[Encoding]:
    name = name_of(entry.get("name"), where)
    where = f"{where}, tensor {display_name(name)}"
    if str(entry.get("dtype", "INT")).upper() != "INT":
        left.append(f"tensor {name} stays floating point ({display_name(str(entry.get('dtype')), 20)})")
        return
    kind = str(entry.get("enc_type", "PER_TENSOR")).upper()
    if kind not in {"PER_TENSOR", "PER_CHANNEL", "PER_BLOCK", "LPBQ"}:
        raise NotSupportedYet(f"encodings of type {display_name(kind, 20)}", where=where)
    shift = entry.get("zero_point_shift")
    if shift is not None and np.any(_numbers(shift, "zero_point_shift", where) != 0):
        raise NotSupportedYet("zero points between two integers", where=where)
    scales, offsets = (_numbers(entry.get(key), key, where) for key in ("scale", "offset"))
    bits, signed = _whole(entry.get("bw"), "bw", where), entry.get("is_sym") is True
    if kind == "LPBQ":
        # Channel by channel; the integers of fewer bits, the offsets those of `bw`.
        if not signed or (offsets != -(2 ** (bits - 1))).any():
            raise NotSupportedYet("LPBQ encodings with zero points", where=where)
        scales = _two_levels(entry, scales[:, None], where, (scales.size, -1)).reshape(-1)
        bits = _whole(entry.get("compressed_bw"), "compressed_bw", where)
        offsets = np.full(scales.shape, -(2.0 ** (bits - 1)))
    if scales.shape != offsets.shape:
        raise Error(f"{offsets.size} offsets for {scales.size} scales", where=where)
    if kind == "PER_TENSOR":
        if scales.size != 1:
            raise Error(f"{scales.size} scales for one tensor", where=where)
        scales, offsets = scales.reshape(()), offsets.reshape(())
    made = _encoding(name, weight, bits, signed, scales, offsets, where, left)
    if made is not None:
        yield _in_blocks(made, graph, where, channels_first=True) if kind in {"PER_BLOCK", "LPBQ"} else made


def _two_levels(
    entry: Mapping[str, Any], scales: NDArray[np.float64], where: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    """LPBQ's scales: a small integer a block times a scale a channel."""
    factors = _nested(entry.get("per_block_int_scale"), "per_block_int_scale", where)
    if (factors != np.rint(factors)).any() or (factors < 1).any():
        raise Error("per_block_int_scale holds numbers that are no factors", where=where)
    try:
        return np.asarray((factors if shape is None else factors.reshape(shape)) * scales)
    except ValueError:
        raise Error(f"{factors.size} factors for {scales.size} scales", where=where) from None


def _in_blocks(one: Encoding, graph: Graph | None, where: str, *, channels_first: bool) -> Encoding:
    """Several scales a channel, brought into the weight's own order: versions before 2.0.0 list them without shape, 1.0.0
    channel by channel, 0.6.1 as they lie in the weight. The model says how many channels there are.
    """
    readers = [] if graph is None or not one.weight else graph.consumers.get(one.tensor, ())
    node = next((node for node in readers if node.op in MATRIX and one.tensor in node.inputs[:2]), None)
    if node is None or graph is None:
        if channels_first and graph is None:
            raise NotSupportedYet(
                "blocks of a weight whose shape is not known", where=where, remedy="give the model too (--model)"
            )
        return one
    shape = tuple(int(size) for size in graph.tensors[one.tensor].shape)
    channel, reduced = weight_axes(node, node.inputs.index(one.tensor), len(shape))
    if channel is None or reduced is None or one.scale.ndim != 1 or one.scale.size in {1, shape[channel]}:
        return one
    blocks, rest = divmod(one.scale.size, shape[channel])
    if rest or shape[reduced] % blocks:
        raise Error(f"{one.scale.size} scales for {shape[channel]} channels of {shape[reduced]}", where=where)
    made = [1] * len(shape)
    made[channel], made[reduced] = shape[channel], blocks

    def turned(values: NDArray[Any]) -> NDArray[Any]:
        if channels_first and reduced < channel and len(shape) == 2:
            return values.reshape(shape[channel], blocks).T.reshape(made)
        return values.reshape(made)

    return replace(one, scale=turned(one.scale), zero_point=turned(one.zero_point), axis=reduced, block=shape[reduced] // blocks)  # fmt: skip


def _encoding(
    name: str,
    weight: bool,
    bits: int,
    signed: bool,
    scales: NDArray[np.float64],
    offsets: NDArray[np.float64],
    where: str,
    left: list[str],
) -> Encoding | None:
    if bits > 16:
        left.append(f"tensor {name} of {bits} bits: a bias follows from its layer's scales")
        return None
    if (offsets != np.rint(offsets)).any():
        raise NotSupportedYet("zero points between two integers", where=where)
    points = -offsets - (2 ** (bits - 1) if signed else 0)
    return _made(name, weight, f"{'int' if signed else 'uint'}{bits}", scales, points, where)


def _made(
    name: str,
    weight: bool,
    dtype: str,
    scales: NDArray[np.float64],
    points: NDArray[np.float64],
    where: str,
    axis: int | None = None,
    block: int | None = None,
) -> Encoding:
    if dtype not in BITS or dtype.startswith(("float", "bfloat")):
        raise NotSupportedYet(f"stored type {display_name(dtype, 20)}", where=where)
    with np.errstate(over="ignore"):
        stored = np.asarray(scales, np.float64).astype(np.float32)
    if (np.abs(points) > 2.0**31).any():
        raise Error("a zero point is far outside its type", where=where)
    return Encoding(name, weight, dtype, stored, points.astype(np.int64), axis, block).checked(where)


def _merged(table: Mapping[str, Any], where: str, graph: Graph | None, left: list[str]) -> Iterator[Encoding]:
    group = table["encodings"]
    if not isinstance(group, list):
        raise Error(f"encodings is a {type(group).__name__}, not a list", where=where)
    for item in group:
        entry = _table(item, where)
        name = name_of(entry.get("name"), where)
        here = f"{where}, tensor {display_name(name)}"
        dtype = str(entry.get("output_dtype"))
        if "float" in dtype:
            left.append(f"tensor {name} stays floating point ({display_name(dtype, 20)})")
            continue
        if dtype in {"int32", "uint32"}:
            left.append(f"tensor {name} of 32 bits: a bias follows from its layer's scales")
            continue
        yield _versioned(name, dtype, entry, here, graph)


def _versioned(name: str, dtype: str, entry: Mapping[str, Any], where: str, graph: Graph | None) -> Encoding:
    if "per_block_int_scale" in entry:
        scales = _two_levels(
            entry, _nested(entry.get("per_channel_float_scale"), "per_channel_float_scale", where), where
        )
    else:
        scales = _nested(entry.get("y_scale"), "y_scale", where)
    given = entry.get("y_zero_point")
    points = np.zeros(scales.shape) if given is None else _nested(given, "y_zero_point", where)
    if (points != np.rint(points)).any():
        raise NotSupportedYet("zero points between two integers", where=where)
    axis = None if entry.get("axis") is None else _whole(entry["axis"], "axis", where, -32)
    block = None if entry.get("block_size") is None else _whole(entry["block_size"], "block_size", where)
    if scales.shape != points.shape:
        raise Error(f"{points.size} zero points for {scales.size} scales", where=where)
    if block is not None and scales.ndim < 2:
        raise Error("blocks need a scale of the tensor's rank", where=where)
    if axis is None and scales.size == 1:
        scales, points = scales.reshape(()), points.reshape(())
    # AIMET writes activations unsigned unless asked otherwise, and signed types for parameters.
    known = graph is not None and name in graph.tensors
    weight = graph.constant(name) is not None if graph is not None and known else axis is not None or dtype.startswith("int")  # fmt: skip
    return _made(name, weight, dtype, scales, points, where, axis, block)


def _table(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise Error(f"an encoding is a {type(entry).__name__}, not a table", where=where)
    return entry


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Error(f"{key} is no number" if value is not None else f"{key} is missing", where=where)
    try:
        made = float(value)
    except OverflowError:
        raise Error(f"{key} is too large", where=where) from None
    if not np.isfinite(made):
        raise Error(f"{key} is {made}", where=where)
    return made


def _whole(value: Any, key: str, where: str, lowest: int = 1) -> int:
    made = _number(value, key, where)
    if made != int(made) or not lowest <= made <= 65536:
        raise Error(f"{key} is {made:g}", where=where, why="it must be a whole number, and possible")
    return int(made)


def _numbers(value: Any, key: str, where: str) -> NDArray[np.float64]:
    if not isinstance(value, list):
        value = [value]
    return np.array([_number(one, key, where) for one in value], np.float64)


def _nested(value: Any, key: str, where: str, depth: int = 0) -> NDArray[np.float64]:
    """A number or lists of lists of them, all of one length a level."""
    if not isinstance(value, list):
        return np.asarray(_number(value, key, where))
    if depth > 8:
        raise Error(f"{key} has too many levels", where=where)
    parts = [_nested(one, key, where, depth + 1) for one in value]
    if not parts or any(part.shape != parts[0].shape for part in parts):
        raise Error(f"{key} is no array", where=where, why="its lists have different lengths, or hold nothing")
    return np.stack(parts)
