"""Another run's values as a program holds them: by name, stored as the program stores them, in its layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hwq import numerics
from hwq.errors import Error
from hwq.graph import Array, Graph, Quantization
from hwq.names import display_name

__all__ = ["Aligned", "align", "unsigned_name"]

# What onnxruntime's lowering calls an int8 value that it stores as uint8, 128 higher (`hwq.lowering.conversion`).
_UNSIGNED = "_u8"


@dataclass(frozen=True)
class Aligned:
    """The other run's values.

    Attributes
    ----------
    values : mapping of the program's names to arrays
        Of the program's types and shapes.
    notes : tuple of str
        What was read otherwise than it lay there.
    foreign : tuple of str
        Names that stand for no value of the program.
    """

    values: Mapping[str, Array]
    notes: tuple[str, ...]
    foreign: tuple[str, ...]


def unsigned_name(name: str) -> str:
    """The source's name of a value that the lowered graph stores unsigned; other names as they are."""
    return name.removesuffix(_UNSIGNED)


def align(graph: Graph, source: Graph, ours: Mapping[str, Array], observed: Mapping[str, Array]) -> Aligned:
    """Values of a dump under the names of a lowered graph.

    A value is found under the graph's name; under the source's, where an int8 value is stored as uint8; or as what a
    DequantizeLinear of the source makes of it. Floats stand for stored integers where they are those integers, or exactly
    their values on the scale's grid. Images may lie channels last or first.

    Parameters
    ----------
    graph, source : Graph
        Lowered, and what it was lowered from.
    ours : mapping of name to array
        The program's values.
    observed : mapping of name to array

    Raises
    ------
    Error
        A value has another shape, holds what its type cannot, or is no array of numbers.
    """
    given = {str(name): np.asarray(value) for name, value in observed.items()}
    real = {
        node.inputs[0]: node.outputs[0]
        for node in source.nodes
        if node.op == "DequantizeLinear" and node.outputs[0] in given and node.outputs[0] not in ours
    }
    values: dict[str, Array] = {}
    notes: list[str] = []
    used: set[str] = set()
    for name, mine in ours.items():
        base = unsigned_name(name)
        found = next((one for one in (name, base, real.get(name, ""), real.get(base, "")) if one in given), None)
        if found is None:
            continue
        used.add(found)
        pair = graph.tensors[name].quantization if name in graph.tensors else None
        shifted = name != base and found != name
        values[name] = _turned(found, _fitted(found, given[found], mine, pair, shifted, notes), mine, notes)
    return Aligned(values, tuple(notes), tuple(sorted(set(given) - used - set(source.tensors))))


def _fitted(name: str, theirs: Array, ours: Array, pair: Quantization | None, shifted: bool, notes: list[str]) -> Array:
    if theirs.dtype.kind not in "iufb":
        raise Error(f"the dump has {theirs.dtype}, the model {ours.dtype}", where=f"value {name}")
    value = _shaped(name, theirs, ours.shape, notes)
    if value.dtype == ours.dtype and not (shifted and value.dtype == np.uint8):
        return value
    if shifted and value.dtype.kind == "i" and np.all((value >= -128) & (value <= 127)):
        return (value.astype(np.int16) + 128).astype(np.uint8)
    if ours.dtype.kind == "f":
        return _float(name, value, ours, notes)
    stored = _whole(value, ours.dtype)
    if stored is None and pair is not None and value.dtype.kind == "f":
        stored = _on_grid(value, ours, pair)
        if stored is not None:
            notes.append(f"{display_name(name)}: floats read as {ours.dtype} on its scale")
    if stored is None:
        what = "values that are no such integers" if value.dtype.kind == "f" else f"dtype {value.dtype}"
        if value.dtype.kind == "f" and not np.all(np.isfinite(value)):
            what = f"{np.count_nonzero(~np.isfinite(value))} values that are infinite or no number"
        raise Error(
            f"the dump has dtype {value.dtype}, the model {ours.dtype}",
            where=f"value {name}",
            why=f"it holds {what}",
            remedy="dump the stored integers, or leave this value out",
        )
    return stored


def _turned(name: str, theirs: Array, ours: Array, notes: list[str]) -> Array:
    """An image as wide and high as it has channels does not show its layout: the reading that is much nearer to ours."""
    if theirs.ndim < 3 or len(set(theirs.shape[1:])) > 1 or not theirs.size:
        return theirs
    readings = {"": theirs, "channels last": np.moveaxis(theirs, -1, 1), "channels first": np.moveaxis(theirs, 1, -1)}
    counts = {what: int(np.count_nonzero(value != ours)) for what, value in readings.items()}
    best = min(counts, key=lambda what: counts[what])
    if 2 * counts[best] >= counts[""]:
        return theirs
    notes.append(f"{display_name(name)}: read as {best}")
    return np.ascontiguousarray(readings[best])


def _float(name: str, value: Array, ours: Array, notes: list[str]) -> Array:
    """Another float type, where nothing is lost or where the values were floats of ours before."""
    with np.errstate(all="ignore"):
        cast = value.astype(ours.dtype)
    if value.dtype.kind == "f" and not np.array_equal(cast.astype(value.dtype), value, equal_nan=True):
        notes.append(f"{display_name(name)}: {value.dtype} rounded to {ours.dtype}")
    return cast


def _whole(value: Array, dtype: np.dtype[np.generic]) -> Array | None:
    with np.errstate(all="ignore"):
        cast = value.astype(dtype)
    return cast if np.array_equal(cast.astype(np.float64), value.astype(np.float64)) else None


def _on_grid(value: Array, ours: Array, pair: Quantization) -> Array | None:
    """Stored integers whose real values are exactly these floats."""
    if not pair.known or pair.scales().size != 1:
        return None
    scale, zero, info = np.float32(pair.scales().reshape(())), int(pair.zero_points().reshape(())), np.iinfo(ours.dtype)
    with np.errstate(all="ignore"):
        steps = np.clip(np.rint(value.astype(np.float64) / np.float64(scale)) + zero, info.min, info.max)
        stored = np.nan_to_num(steps).astype(ours.dtype)
    return stored if np.array_equal(numerics.dequantize(stored, scale, zero), value.astype(np.float32)) else None


def _shaped(name: str, theirs: Array, shape: tuple[int, ...], notes: list[str]) -> Array:
    if theirs.shape == shape:
        return theirs
    if theirs.ndim == len(shape) and theirs.ndim >= 3:
        for source, target, what in ((-1, 1, "channels last"), (1, -1, "channels first")):
            turned = np.moveaxis(theirs, source, target)
            if turned.shape == shape:
                notes.append(f"{display_name(name)}: read as {what}")
                return np.ascontiguousarray(turned)
    squeezed = [size for size in theirs.shape if size != 1]
    if squeezed == [size for size in shape if size != 1]:
        return theirs.reshape(shape)
    remedy = "dump the values in the model's own shape"
    if theirs.ndim == len(shape) and theirs.shape[1:] == shape[1:]:
        remedy = f"give the {theirs.shape[0]} samples that the dump was made from (--samples takes the first of a file)"
    raise Error(
        f"the dump has shape {list(theirs.shape)}, the model {list(shape)}", where=f"value {name}", remedy=remedy
    )
