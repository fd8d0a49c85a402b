"""Node: one operator of the graph, or one fused group."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["Node"]


@dataclass(frozen=True, eq=False)
class Node:
    """One operator of the graph, or in lowered form one fused group.

    Parameters
    ----------
    op : str
        ONNX's name of the operator where it has one; in a group the operator that does the main work.
    name : str
        Unique in its graph.
    inputs, outputs : tuple of str
        Tensor names; ``""`` stands for an optional input or output that is absent.
    attributes : mapping
        ints, floats, strings, tuples of them, or arrays.
    domain : str
        ``""`` is ONNX's own.
    origin : str
        The name in the source file.
    layout : {"", "NCHW", "NHWC"}
        Of spatial nodes: where the channels stand. Spatial ranks other than 2 keep the word (NCW is "NCHW").
    body : tuple of Node
        The source nodes that a group swallowed, in order; empty in source form.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    origin: str = ""
    layout: Literal["", "NCHW", "NHWC"] = ""
    body: tuple[Node, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Node, tuple((values | {"attributes": dict(self.attributes)}).values())

    @property
    def kind(self) -> str:
        """The operator with its domain, as messages print it."""
        return f"{self.domain}::{self.op}" if self.domain else self.op
