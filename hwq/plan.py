"""Plan: which tensors become which integers, how they are calibrated and rounded. A readable, diffable TOML file."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from hwq.dialect import find
from hwq.errors import Error
from hwq.files import PathLike, read_bytes, write_atomically
from hwq.graph import Graph, Node
from hwq.plan_sections import Activations, Default, Group, Layer, Match, Strict, Transforms, Weights, merged
from hwq.plan_toml import to_toml

__all__ = ["Activations", "Group", "Layer", "Match", "Plan", "Planned", "Transforms", "Weights"]

# A plan is a small text; anything larger is not one.
MAX_PLAN_BYTES = 16 << 20


@dataclass(frozen=True)
class Planned:
    """What the plan says of one node."""

    weights: Weights
    activations: Activations

    @property
    def label(self) -> str:
        """The field's shorthand, such as W8A8 or W4A16."""
        plain = self.activations.mode == "float" and not self.activations.dtype.endswith("float16")
        kinds = self.weights.dtype, "float32" if plain else self.activations.dtype
        widths = [int("".join(filter(str.isdigit, kind.removeprefix("b")))) for kind in kinds]
        return f"W{widths[0]}A{widths[1]}"


class Plan(Strict):
    """A quantization plan. Immutable; later rules win.

    See Also
    --------
    Plan.uniform, Plan.load, Plan.of : the three ways to one.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    dialect: str = "ort"
    default: Default = Default()
    transforms: Transforms = Transforms()
    layers: tuple[Layer, ...] = Field(default=(), strict=False)

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)

    @field_validator("schema_version", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if type(value) is not int:  # true and 1.0 equal 1
            raise ValueError("must be 1")
        return value

    _folder: str = PrivateAttr(default="")

    @field_validator("dialect")
    @classmethod
    def _known_dialect(cls, name: str) -> str:
        try:
            find(name)
        except Error as error:
            raise ValueError(f"{error.what}; {error.remedy}") from None
        return name

    @classmethod
    def uniform(
        cls,
        weights: str = "int8",
        activations: str = "uint8",
        *,
        granularity: str | int = "channel",
        symmetric: bool = True,
        symmetric_activations: bool | None = None,
        observer: str = "minmax",
        scale: str = "minmax",
        mode: str | None = None,
        activation_granularity: str = "tensor",
        dialect: str = "ort",
    ) -> Plan:
        """One setting for every layer.

        Parameters
        ----------
        weights, activations : str
            Stored types, such as ``int8``, ``uint8``, ``int4``, ``float16``, ``float32``.
        granularity : {"tensor", "channel"} or int
            Of the weights; a number is a group size.
        symmetric : bool
            Weights without zero points.
        symmetric_activations : bool, optional
            Activations without zero points; default: for signed types only when the type is int4 or int16, or at run time,
            and wherever the dialect allows none.
        observer, scale : str
            Range method of the activations and of the weights.
        mode : {"static", "dynamic", "float"}, optional
            Default: static for integers, float for floating-point activations.
        activation_granularity : {"tensor", "row"}
            With mode "dynamic": one range for the tensor, or one a row (also called "token").
        dialect : str
            See `hwq.dialects`.

        Raises
        ------
        Error
            An unknown word.
        """
        if mode is None:
            mode = "float" if "float" in activations else "static"
        if symmetric_activations is None:
            signed = activations in {"int4", "int16"} or (activations == "int8" and mode == "dynamic")
            symmetric_activations = signed or find(dialect).symmetric_activations
        grain = {"group": granularity} if isinstance(granularity, int) else granularity
        return cls._checked({
            "schema": 1,
            "dialect": dialect,
            "default": {
                "weights": {"dtype": weights, "granularity": grain, "symmetric": symmetric, "scale": scale},
                "activations": {"dtype": activations, "symmetric": symmetric_activations, "mode": mode,
                                "observer": observer, "granularity": activation_granularity},
            },
        }, "Plan.uniform")  # fmt: skip

    @classmethod
    def load(cls, path: PathLike) -> Plan:
        """Read a plan file (TOML).

        Raises
        ------
        Error
            Not TOML, an unknown key, a wrong value; the message names file and key.
        """
        raw = read_bytes(path, MAX_PLAN_BYTES)
        try:
            table = tomllib.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or an integer of too many digits
            raise Error(
                "this is not a plan: it cannot be read as TOML",
                where=str(path),
                why=str(error),
                remedy="see the plan format in README.md; Plan.uniform().save(path) writes an example",
            ) from None
        plan = cls._checked(table, str(path))
        plan._folder = str(Path(path).parent)
        return plan

    @classmethod
    def of(cls, graph: Graph) -> Plan:
        """The plan that a quantized graph obeys: the stored types, granularities and scales of its nodes.

        Raises
        ------
        Error
            The graph is not quantized.
        """
        from hwq.plan_reading import read

        return cls._checked(read(graph), f"graph {graph.name}")

    @classmethod
    def _checked(cls, table: Mapping[str, Any], where: str) -> Plan:
        try:
            return cls.model_validate(dict(table))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(
                str(part)
                for part in first["loc"]
                if not str(part).startswith(("literal[", "constrained-", "list[", "function-"))
            )
            given = first.get("input")
            shown = f", got {given!r}" if isinstance(given, (str, int, float, bool)) else ""
            what = (
                "unknown key"
                if first["type"] == "extra_forbidden"
                else f"{first['msg'].removeprefix('Value error, ')}{shown}"
            )
            raise Error(
                f"bad plan: {what}",
                where=f"{where}, key {key}",
                why=_why(first["type"]),
                remedy="see the plan format in README.md",
            ) from None

    def to_toml(self) -> str:
        """The plan as the text of a plan file; `Plan.load` reads back an equal plan."""
        return to_toml(self.model_dump(by_alias=True, exclude_none=True))

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write the plan file, whole or not at all."""
        with write_atomically(path, overwrite=overwrite, mode="w") as stream:
            stream.write(self.to_toml())

    @property
    def hash(self) -> str:
        """SHA-256 of the plan's text."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()

    def resolve(self, nodes: Iterable[Node]) -> dict[str, Planned]:
        """What the plan says of every node, by name; later rules win.

        Raises
        ------
        Error
            A rule fits no node.
        """
        planned: dict[str, Planned] = {}
        unused = set(range(len(self.layers)))
        for node in nodes:
            weights, activations = self.default.weights, self.default.activations
            for index, layer in enumerate(self.layers):
                if layer.match.fits(node):
                    unused.discard(index)
                    weights = merged(weights, layer.weights)
                    activations = merged(activations, layer.activations)
            planned[node.name] = Planned(weights, activations)
        if unused:
            index = min(unused)
            shown = self.layers[index].match.model_dump(exclude_none=True)
            raise Error(
                "a rule of the plan fits no layer of the model",
                where=f"layers.{index}.match {shown}",
                why="a rule that does nothing is most often a misspelt name",
                remedy="hwq inspect MODEL lists the layers",
            )
        return planned

    def weights_of(self, node: Node, tensor: str) -> Weights:
        """What the plan says of one constant of a node. A rule's `tensor` fits the constant itself or the node's
        output.
        """
        weights = self.default.weights
        for layer in self.layers:
            if layer.weights and layer.match.fits_node(node) and layer.match.fits_tensor(tensor, *node.outputs):
                weights = merged(weights, layer.weights)
        return weights

    def activations_of(self, tensors: Sequence[str], nodes: Iterable[Node]) -> Activations:
        """What the plan says of the activation that `nodes` (a producer and what is fused behind it) make together.

        A rule's `tensor` fits any of `tensors`: the activation's name and those of the steps inside.
        """
        makers = tuple(nodes)
        activations = self.default.activations
        for layer in self.layers:
            if (
                layer.activations
                and layer.match.fits_tensor(*tensors)
                and any(layer.match.fits_node(node) for node in makers)
            ):
                activations = merged(activations, layer.activations)
        return activations

    def gives_scale(self, tensor: str, nodes: Iterable[Node]) -> bool:
        """Whether a rule that names this activation gives its scale, so that it is stored as integers wherever it
        stands.
        """
        makers = tuple(nodes)
        return any(
            "scale" in layer.activations
            and layer.match.tensor is not None
            and layer.match.fits_tensor(tensor)
            and any(layer.match.fits_node(node) for node in makers)
            for layer in self.layers
        )

    @property
    def folder(self) -> str:
        """Where the plan's file lies: relative ``file:`` references start there. Empty without a file."""
        return self._folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_toml() == other.to_toml()

    def __hash__(self) -> int:
        return hash(self.to_toml())

    def __str__(self) -> str:
        return self.to_toml()


def _why(kind: str) -> str | None:
    return {
        "extra_forbidden": "hwq refuses keys it does not know, so that a misspelling cannot pass unnoticed",
        "missing": "this key is required",
    }.get(kind)
