"""What a plan's sections may say: weights, activations, transforms, and rules for some layers."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from hwq.graph import Node

__all__ = ["Activations", "Default", "Group", "Layer", "Match", "Strict", "Transforms", "Weights", "merged"]

FloatType = Literal["float32", "float16", "bfloat16"]
WeightType = Literal["int2", "int3", "int4", "int5", "int6", "int8", "int16", "uint2", "uint4", "uint8", "uint16", "float32", "float16", "bfloat16"]  # fmt: skip
ActivationType = Literal["int4", "uint4", "int8", "uint8", "int16", "uint16", "float32", "float16", "bfloat16"]


class Strict(BaseModel):
    """A section that takes the keys it knows and nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Group(Strict):
    """Granularity of one scale per `group` elements along the reduction axis."""

    group: Annotated[int, Field(ge=2, le=65536)]


Granularity = Literal["tensor", "channel"] | Group
Number = float | list[float] | Annotated[str, Field(pattern=r"^file:[^#]+#.+$")]
ZeroPoint = int | list[int] | Annotated[str, Field(pattern=r"^file:[^#]+#.+$")]


def _positive(value: Any) -> Any:
    """Refuse given scales that no quantizer can divide by."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not number > 0.0:
            raise ValueError("a scale must be above 0")
    if value == []:
        raise ValueError("a list of scales must not be empty")
    return value


def _nonzero(value: Any) -> Any:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not abs(number) > 0.0:
            raise ValueError("a scale must not be 0")
    if value == []:
        raise ValueError("a list of scales must not be empty")
    return value


class Weights(Strict):
    """How constants of the matrix operators are stored.

    `scale` is a method, or given values (exact float32): a number, a list (one a channel), or ``"file:PATH.npz#NAME"``. A given
    scale may be below 0 where activations are floats: onnxruntime and NNCF write symmetric blocks so, to use -8 on either side.
    """

    dtype: WeightType = "int8"
    granularity: Granularity = "channel"
    symmetric: bool = True
    scale: Literal["minmax", "mse", "weighted", "seq-mse"] | Number = "minmax"
    zero_point: ZeroPoint | None = None
    rounding: Literal["nearest", "coordinate", "gptq", "adaround"] = "nearest"

    _scale_is_not_zero = field_validator("scale")(_nonzero)

    @property
    def floating(self) -> bool:
        """Whether the weights stay floating-point numbers."""
        return "float" in self.dtype


class Activations(Strict):
    """How values that flow between operators are stored."""

    dtype: ActivationType = "uint8"
    granularity: Annotated[
        Literal["tensor", "row"], BeforeValidator(lambda name: "row" if name == "token" else name)
    ] = "tensor"
    symmetric: bool = False
    mode: Literal["static", "dynamic", "float"] = "static"
    observer: Literal["minmax", "percentile", "mse", "kl", "coordinate"] = "minmax"
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    scale: Number | None = None
    zero_point: ZeroPoint | None = None

    _scale_is_positive = field_validator("scale")(_positive)

    @property
    def floating(self) -> bool:
        """Whether the activations stay floating-point numbers."""
        return self.mode == "float" or "float" in self.dtype


class Transforms(Strict):
    """Rewrites of the float model before it is quantized; absent means off."""

    equalize: bool = False
    smooth: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    clip: Annotated[float, Field(gt=0.0)] | None = None
    awq: bool = False
    bias_correction: Literal["empirical"] | None = None


class Match(Strict):
    """Which layers a rule is for: every key that is given must fit. Names are shell globs, case-sensitive."""

    name: str | None = None
    op: str | None = None
    tensor: str | None = None

    @model_validator(mode="after")
    def _some(self) -> Match:
        if self.name is None and self.op is None and self.tensor is None:
            raise ValueError("a match needs name, op or tensor")
        return self

    def fits(self, node: Node) -> bool:
        """Whether the rule is for `node`."""
        return self.fits_node(node) and self.fits_tensor(*node.inputs, *node.outputs)

    def fits_node(self, node: Node) -> bool:
        """Whether `name` and `op`, where given, fit `node`."""
        if self.op is not None and node.op != self.op:
            return False
        return self.name is None or any(_glob(name, self.name) for name in (node.name, node.origin) if name)

    def fits_tensor(self, *names: str) -> bool:
        """Whether `tensor`, where given, fits one of the names."""
        return self.tensor is None or any(_glob(name, self.tensor) for name in names if name)


class Layer(Strict):
    """A rule: keys given under `weights` and `activations` override those of the default and of earlier rules."""

    match: Match
    weights: dict[str, Any] = Field(default_factory=dict)
    activations: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _valid_overrides(self) -> Layer:
        # Checked here, so that a wrong key is reported at its place in the file and not at the first use.
        merged(Weights(), self.weights)
        merged(Activations(), self.activations)
        return self


class Default(Strict):
    """What holds where no rule says otherwise."""

    weights: Weights = Weights()
    activations: Activations = Activations()


def _glob(name: str, pattern: str) -> bool:
    # Exact first: names such as conv[/a] are legal and would read as a character class.
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def merged(base: Any, changes: Mapping[str, Any]) -> Any:
    # Fields given in `changes` win; the rest keeps the base's values, then everything is validated again.
    if not changes:
        return base
    return type(base).model_validate({**base.model_dump(), **changes})
