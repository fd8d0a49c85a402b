"""The parts of the page, as the template takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import hwq
from hwq.reporting.drawing import Drawing
from hwq.reporting.serialization import SCHEMA_VERSION
from hwq.reporting.tables import Table

__all__ = ["Fact", "Fold", "Page", "Section", "Tile"]


@dataclass(frozen=True)
class Fact:
    label: str
    text: str
    code: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Tile:
    label: str
    text: str
    unit: str
    note: str


@dataclass(frozen=True)
class Fold:
    """What opens on demand."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()


@dataclass(frozen=True)
class Section:
    identifier: str
    short: str
    title: str
    lead: str = ""
    tiles: Sequence[Tile] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
    folds: Sequence[Fold] = ()
    words: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Page:
    """What the template prints."""

    title: str
    subtitle: str
    facts: Sequence[Fact]
    sections: Sequence[Section]
    json_name: str
    csv_name: str
    version: str = field(default_factory=lambda: hwq.__version__)
    schema_version: int = SCHEMA_VERSION
