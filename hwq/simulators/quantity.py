"""A number of a machine: value, unit, source and how far the source can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hwq.errors import Error

__all__ = ["CONFIDENCES", "UNITS", "Confidence", "Quantity", "read_quantity"]

Confidence = Literal["read", "recalled", "assumed", "fitted"]

# read: seen in the document named. recalled: the document is named, the figure was not looked up again. assumed: nobody
# published it; the source says why this value. fitted: chosen to match measurements; the source names them.
CONFIDENCES: tuple[str, ...] = get_args(Confidence)

# unit -> (what it measures, factor to the base unit of that dimension)
UNITS: Mapping[str, tuple[str, float]] = {
    "Hz": ("frequency", 1.0), "kHz": ("frequency", 1e3), "MHz": ("frequency", 1e6), "GHz": ("frequency", 1e9),
    "B/s": ("bandwidth", 1.0), "MB/s": ("bandwidth", 1e6), "GB/s": ("bandwidth", 1e9), "TB/s": ("bandwidth", 1e12),
    "MiB/s": ("bandwidth", 2.0**20), "GiB/s": ("bandwidth", 2.0**30),
    "B": ("data", 1.0), "KB": ("data", 1e3), "MB": ("data", 1e6), "GB": ("data", 1e9),
    "KiB": ("data", 2.0**10), "MiB": ("data", 2.0**20), "GiB": ("data", 2.0**30),
    "s": ("time", 1.0), "ms": ("time", 1e-3), "us": ("time", 1e-6), "ns": ("time", 1e-9),
    "cycle": ("cycles", 1.0), "cycles": ("cycles", 1.0),
    "B/cycle": ("data per cycle", 1.0), "operation/cycle": ("operations per cycle", 1.0),
    "operation/s": ("operations per second", 1.0), "Goperation/s": ("operations per second", 1e9),
    "MAC/cycle": ("MACs per cycle", 1.0), "MAC/MAC int8": ("relative rate", 1.0),
    "cycle/element": ("cycles per element", 1.0),
    "W": ("power", 1.0), "mW": ("power", 1e-3),
    "nm": ("node", 1.0), "bit": ("width", 1.0), "count": ("count", 1.0), "x": ("ratio", 1.0),
    "fraction": ("fraction", 1.0), "%": ("fraction", 0.01),
    "pJ": ("energy", 1.0), "fJ": ("energy", 1e-3), "pJ/bit": ("energy per bit", 1.0), "pJ/B": ("energy per bit", 0.125),
}  # fmt: skip

KEYS = {"value", "unit", "source", "confidence"}


@dataclass(frozen=True)
class Quantity:
    """One number with its unit, its source and the confidence in it.

    Attributes
    ----------
    value : float
        As the source states it, in `unit`.
    unit : str
        A key of `UNITS`.
    source : str
        Document, table or reasoning.
    confidence : {"read", "recalled", "assumed", "fitted"}
    """

    value: float
    unit: str
    source: str
    confidence: Confidence

    @property
    def si(self) -> float:
        """The value in the base unit of its dimension (Hz, B, B/s, s, W, pJ; counts and rates as they are)."""
        return self.value * UNITS[self.unit][1]

    @property
    def dimension(self) -> str:
        """What the unit measures."""
        return UNITS[self.unit][0]

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit} ({self.confidence}: {self.source})"


def read_quantity(record: Any, dimension: str, where: str) -> Quantity:
    """Check one inline table of a machine file and make it a Quantity.

    Parameters
    ----------
    record : Any
        What TOML gave.
    dimension : str
        What the key measures, as in `UNITS`.
    where : str
        File and key, for messages.

    Raises
    ------
    Error
        Not a table, a key is missing or unknown, the unit is of another dimension, the value is not a positive number.
    """
    if not isinstance(record, dict):
        raise Error(
            "a number needs a unit, a source and a confidence",
            where=where,
            why=f"this is a bare {type(record).__name__}",
            remedy='write { value = 1, unit = "...", source = "...", confidence = "..." }',
        )
    _known(record, KEYS, where)
    missing = sorted(KEYS - set(record))
    if missing:
        raise Error(
            f"{', '.join(missing)} is missing",
            where=where,
            why="every number says its unit, source and confidence",
            remedy=f"add {missing[0]}",
        )
    value, unit, source, confidence = (record[key] for key in ("value", "unit", "source", "confidence"))
    if not isinstance(unit, str) or unit not in UNITS:
        raise Error(f"unknown unit {unit!r}", where=where, remedy=f"for {dimension}: {_units(dimension)}")
    if UNITS[unit][0] != dimension:
        raise Error(
            f"the unit {unit} measures {UNITS[unit][0]}, this key is a {dimension}",
            where=where,
            remedy=f"one of: {_units(dimension)}",
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise Error(f"the value must be a positive number, not {value!r}", where=where)
    if not isinstance(source, str) or not source.strip():
        raise Error("the source is empty", where=where, remedy="name a document, or say why this value is assumed")
    if not isinstance(confidence, str) or confidence not in CONFIDENCES:
        raise Error(f"unknown confidence {confidence!r}", where=where, remedy=f"one of: {', '.join(CONFIDENCES)}")
    return Quantity(value, unit, source, confidence)  # type: ignore[arg-type]


def _units(dimension: str) -> str:
    return ", ".join(unit for unit, (kind, _) in UNITS.items() if kind == dimension)


def _known(record: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(record) - known)
    if unknown:
        raise Error(f"unknown key {unknown[0]!r}", where=where, remedy=f"known here: {', '.join(sorted(known))}")
