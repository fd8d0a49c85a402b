"""Encodings: the exact scales of named tensors, between a plan's rules and other tools' files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error, NotSupportedYet
from hwq.files import PathLike, refuse_existing, write_npz
from hwq.graph import BITS, Array, Graph
from hwq.names import display_name
from hwq.ops.storage import integer_range
from hwq.plan import Group, Plan
from hwq.plan_operators import with_operators
from hwq.plan_reading import exact, float_name, literal, stored_as_parameter
from hwq.plan_values import given_array

__all__ = ["Encoding", "dialect_for", "encodings_of", "encodings_of_graph", "plain_name", "save", "to_plan"]

# A plan file with more numbers than this keeps them beside it.
INLINE_SCALES = 16384
_GLOB = re.compile(r"\[([*?\[])\]")
_OPEN = re.compile(r"[*?\[]")


@dataclass(frozen=True, eq=False)
class Encoding:
    """How one tensor is stored: ``real = (stored - zero_point) * scale``.

    Attributes
    ----------
    tensor : str
    weight : bool
        A constant, else an activation.
    dtype : str
    scale : float32 array
        Of shape () per tensor, (C,) per channel, or as given with `block`.
    zero_point : int64 array of the same shape
    axis : int or None
        The channel or block axis where it is known.
    block : int or None
    """

    tensor: str
    weight: bool
    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int | None = None
    block: int | None = None

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is the middle of the type."""
        return bool((self.zero_point == middle(self.dtype)).all())

    def checked(self, where: str) -> Encoding:
        """Itself, once its numbers are possible.

        Raises
        ------
        Error
            A scale that is not a positive finite float32, a zero point outside the type, shapes that differ.
        """
        where = f"{where}, tensor {display_name(self.tensor)}"
        size = np.abs(self.scale) if self.weight else self.scale
        if not self.scale.size or not (np.isfinite(self.scale) & (size > 0)).all():
            raise Error(
                "a scale must be a positive finite float32",
                where=where,
                why=f"it holds {self.scale.min() if self.scale.size else 'none'}",
            )
        lowest, highest = integer_range(self.dtype)
        if self.zero_point.shape != self.scale.shape:
            raise Error(f"{self.zero_point.size} zero points for {self.scale.size} scales", where=where)
        if (self.zero_point < lowest).any() or (self.zero_point > highest).any():
            raise Error(
                f"a zero point is not an integer of {self.dtype}",
                where=where,
                why=f"it lies outside {lowest} to {highest}: zero must be a stored value",
            )
        return self


def middle(dtype: str) -> int:
    """The stored value that stands for zero in a symmetric type."""
    return 1 << (BITS[dtype] - 1) if dtype.startswith("u") else 0


def dialect_for(weights: Iterable[str], activations: Iterable[str], blocks: bool = False) -> str:
    """The ONNX dialect that takes these stored types: integer kernels where it has them.

    Parameters
    ----------
    weights, activations : iterable of str
        Stored types.
    blocks : bool
        Whether some weights have several scales along the sum.
    """
    (heavy, light), (most, least) = (
        (max(widths, default=8), min(widths, default=8))
        for widths in ([BITS[dtype] for dtype in dtypes] for dtypes in (weights, activations))
    )
    if heavy > 8 or (most > 8 and blocks):
        return "ort-unfused"
    return "hwq" if most > 8 or min(light, least) < 8 or blocks else "ort"


def to_plan(found: Iterable[Encoding], *, dialect: str | None = None, weights: dict[str, Any] | None = None) -> Plan:
    """A plan with one rule a tensor; all else is float but for `weights`, where given.

    Raises
    ------
    Error
        Two encodings of one tensor differ.
    NotSupportedYet
        Activations with one scale a channel.
    """
    rules: dict[str, dict[str, Any]] = {}
    every = list(found)
    for one in every:
        rule = _rule(one)
        if rules.setdefault(one.tensor, rule) != rule:
            raise Error("two encodings of one tensor differ", where=f"tensor {display_name(one.tensor)}")
    return Plan._checked(
        {
            "schema": 1,
            "dialect": dialect
            or dialect_for(
                [one.dtype for one in every if one.weight],
                [one.dtype for one in every if not one.weight],
                any(one.block for one in every),
            ),
            "default": {
                "weights": weights or {"dtype": "float32"},
                "activations": {"dtype": "float32", "mode": "float"},
            },
            "layers": list(rules.values()),
        },
        "imported plan",
    )


def _rule(one: Encoding) -> dict[str, Any]:
    scales = [exact(value) for value in one.scale.reshape(-1)]
    zeros = [int(value) for value in one.zero_point.reshape(-1)]
    plain = one.scale.ndim == 0
    values: dict[str, Any] = {"dtype": one.dtype, "symmetric": one.symmetric, "scale": scales[0] if plain else scales}
    if any(zeros):
        values["zero_point"] = zeros[0] if plain else zeros
    match = {"tensor": literal(one.tensor)}
    if one.weight:
        values["granularity"] = {"group": one.block} if one.block else "tensor" if plain else "channel"
        return {"match": match, "weights": values}
    if not plain:
        raise NotSupportedYet(
            "activations with one scale a channel",
            where=f"tensor {display_name(one.tensor)}",
            remedy="plans give activations one scale; if this is a constant, give the model too",
        )
    return {"match": match, "activations": {"mode": "static", **values}}


def encodings_of(plan: Plan) -> Iterator[Encoding]:
    """The tensors whose scales a plan gives, in the order of its rules.

    Raises
    ------
    Error
        A rule that gives a scale names no single tensor, or a file of values cannot be read.
    """
    files: dict[Path, dict[str, Array]] = {}
    for index, layer in enumerate(plan.layers):
        for kind, values in (("weights", layer.weights), ("activations", layer.activations)):
            scale = values.get("scale")
            where = f"plan, layers.{index}.{kind}"
            if scale is None or (isinstance(scale, str) and not scale.startswith("file:")):
                continue
            name = layer.match.tensor
            if name is None or _OPEN.search(_GLOB.sub("", name)):
                raise Error(
                    "a rule gives a scale and names no single tensor",
                    where=where,
                    remedy="match it by tensor, without * and ?",
                )
            name = plain_name(name)
            base = getattr(plan.default, kind).model_dump()
            planned = {**base, **values}
            given = given_array(scale, plan.folder, f"{where}.scale", files)
            points = planned.get("zero_point")
            zeros = np.asarray(0 if points is None else given_array(points, plan.folder, f"{where}.zero_point", files))
            grain = planned.get("granularity")
            block = grain.group if isinstance(grain, Group) else grain.get("group") if isinstance(grain, dict) else None
            scales = np.asarray(given, np.float32)
            yield Encoding(
                name, kind == "weights", str(planned["dtype"]), scales,
                np.broadcast_to(zeros.astype(np.int64), scales.shape), None, block,
            ).checked(where)  # fmt: skip


def save(plan: Plan, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a plan; where its scales would make a long text, they lie as float32 in an ``.npz`` of its name beside it."""
    target = Path(path)
    count = sum(len(values.get("scale", ())) if isinstance(values.get("scale"), list) else 0
                for layer in plan.layers for values in (layer.weights, layer.activations))  # fmt: skip
    if count <= INLINE_SCALES:
        plan.save(target, overwrite=overwrite)
        return
    beside = target.with_suffix(".npz")
    arrays: dict[str, NDArray[Any]] = {}
    table = tomllib.loads(plan.to_toml())
    for index, layer in enumerate(table["layers"]):
        for kind in ("weights", "activations"):
            for key, dtype in (("scale", np.float32), ("zero_point", np.int32)):
                given = layer.get(kind, {}).get(key)
                if isinstance(given, list):
                    arrays[f"{key}{index}"] = np.asarray(given, dtype)
                    layer[kind][key] = f"file:{beside.name}#{key}{index}"
    moved = Plan._checked(table, str(target))
    refuse_existing(target, overwrite)
    write_npz(beside, arrays, overwrite=overwrite)
    moved.save(target, overwrite=overwrite)


def plain_name(pattern: str) -> str:
    """The name that a glob without open wildcards stands for (`hwq.plan_reading.literal` writes such globs)."""
    return _GLOB.sub(r"\1", pattern)


def encodings_of_graph(q: Graph) -> Iterator[Encoding]:
    """The stored tensors of a quantized graph by the float model's names; int32 biases are left out.

    Raises
    ------
    Error
        The graph is not quantized, or a scale is unset.
    """
    q = with_operators(q)
    found = False
    for tensor in q.tensors.values():
        how = tensor.quantization
        if how is None or (tensor.name not in q.consumers and tensor.name not in q.outputs):
            continue
        found = True
        if how.dtype in {"int32", "int64"}:
            continue
        if how.dynamic:
            raise NotSupportedYet(
                "scales that are computed at run time",
                where=f"tensor {display_name(tensor.name)}",
                remedy="quantize with static activations",
            )
        yield Encoding(
            float_name(q, tensor.name), stored_as_parameter(q, tensor.name), how.dtype, how.scales(),
            how.zero_points().astype(np.int64), how.axis, how.block,
        )  # fmt: skip
    if not found:
        raise Error(
            "the graph is not quantized, so it has no encodings",
            where=f"graph {display_name(q.name)}",
            remedy="quantize it first",
        )
