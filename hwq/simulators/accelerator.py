"""Accelerator: one machine, read from one TOML file in which every number has a unit, a source and a confidence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from hwq.errors import Error
from hwq.simulators.quantity import CONFIDENCES, UNITS, Quantity
from hwq.simulators.schema import FAMILIES, TILE, find_field, read_number, read_word

__all__ = ["Accelerator", "Precision", "Support"]


@dataclass(frozen=True)
class Precision:
    """What a machine does with one arithmetic type.

    Attributes
    ----------
    rate : Quantity or None
        MAC rate: relative to int8 (systolic, npu), or MACs per cycle and multiprocessor or core. None: not supported.
    runs_as : str or None
        Another precision whose units do the arithmetic after unpacking.
    why : str or None
        Why it is not supported, or what is special.
    """

    rate: Quantity | None = None
    runs_as: str | None = None
    why: str | None = None


@dataclass(frozen=True)
class Support:
    """Where an operator runs: ``native``, ``host`` or ``unsupported``, and why."""

    level: str
    why: str


@dataclass(frozen=True, eq=False)
class Accelerator:
    """One machine. Immutable; `replace` gives a changed copy.

    Attributes
    ----------
    name, family, summary : str
    validity : str
        What the machine's estimates were compared with, or "not validated".
    aliases : tuple of str
        Names of the device in measurement files.
    quantities : mapping of dotted key to Quantity
    choices : mapping of dotted key to word
        Such as ``array.dataflow``.
    precisions : mapping of arithmetic type to Precision
        What is absent is unsupported.
    support : mapping of operator to Support
        What is absent is native.
    source : str
        The file it was read from.
    """

    name: str
    family: str
    summary: str
    validity: str
    aliases: tuple[str, ...]
    quantities: Mapping[str, Quantity]
    choices: Mapping[str, str]
    precisions: Mapping[str, Precision]
    support: Mapping[str, Support]
    source: str = field(default="", repr=False)

    def value(self, key: str, default: float | None = None) -> float:
        """The number under `key` in the base unit of its dimension (Hz, B, B/s, s, W; counts and rates as they are).

        Raises
        ------
        Error
            The machine does not say it and there is no `default`.
        """
        found = self.quantities.get(key)
        if found is not None:
            return found.si
        if default is None:
            raise Error(f"this machine says nothing about {key}", where=f"machine {self.name}")
        return default

    @property
    def clock(self) -> float:
        """Sustained clock in Hz: nominal clock times ``clock_share``."""
        return self.value("clock") * self.value("clock_share", 1.0)

    @property
    def tiles(self) -> tuple[tuple[int, int, float], ...]:
        """GEMM tiles of a GPU's kernels: rows, columns, share of the SM's peak."""
        found = [(match, number) for key, number in self.quantities.items() if (match := TILE.fullmatch(key))]
        return tuple((int(match[1]), int(match[2]), number.si) for match, number in found)

    def resolve(self, precision: str) -> str:
        """The precision whose arithmetic units do the work for `precision`.

        Raises
        ------
        Error
            The machine has no such arithmetic; `why` says why.
        """
        found = self.precisions.get(precision)
        if found is None or (found.rate is None and found.runs_as is None):
            able = ", ".join(name for name, entry in self.precisions.items() if entry.rate or entry.runs_as)
            why = found.why if found is not None and found.why else None
            why = why or f"{self.name} has no {precision} arithmetic; it has {able}"
            raise Error(
                f"unsupported precision {precision}",
                where=f"machine {self.name}",
                why=why,
                remedy=f"plan these layers in one of: {able}",
            )
        return found.runs_as or precision

    @property
    def usable_precisions(self) -> tuple[str, ...]:
        """Arithmetic types that the machine runs, directly or on the units of another."""
        return tuple(name for name, entry in self.precisions.items() if entry.rate or entry.runs_as)

    def rate(self, precision: str) -> float:
        """MAC rate of `precision` in the unit of the machine's family (see `Precision`)."""
        found = self.precisions[self.resolve(precision)].rate
        assert found is not None  # the reader checked it
        return found.si

    def peak_macs_per_second(self, precision: str) -> float:
        """MACs per second if every multiplier worked in every cycle at the sustained clock."""
        rate = self.rate(precision)
        if self.family in {"systolic", "spatial"}:
            rate *= self.value("array.rows") * self.value("array.cols")
        elif self.family == "npu":
            # A MAC array takes 8 input channels per output of its microblock and cycle (see simulators/README.md).
            microblock = (self.value(f"microblock.{axis}") for axis in ("height", "width", "depth"))
            rate *= math.prod(microblock) * 8
        else:
            rate *= self.value("sm.count" if self.family == "gpu" else "cores")
        return rate * self.clock

    @cached_property
    def confidences(self) -> Mapping[str, int]:
        """How many of the machine's numbers are read, recalled, assumed and fitted."""
        numbers = [*self.quantities.values(), *(entry.rate for entry in self.precisions.values() if entry.rate)]
        return {level: sum(number.confidence == level for number in numbers) for level in CONFIDENCES}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything the machine says, as 64 hexadecimal digits."""
        record = self.to_dict()
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the source path left out."""
        return {
            "name": self.name, "family": self.family, "summary": self.summary, "validity": self.validity,
            "aliases": list(self.aliases), "choices": dict(self.choices),
            "quantities": {key: dataclasses.asdict(number) for key, number in self.quantities.items()},
            "precisions": {key: dataclasses.asdict(entry) for key, entry in self.precisions.items()},
            "support": {key: dataclasses.asdict(entry) for key, entry in self.support.items()},
        }  # fmt: skip

    def replace(
        self,
        values: Mapping[str, float] | None = None,
        *,
        name: str | None = None,
        choices: Mapping[str, str] | None = None,
    ) -> Accelerator:
        """Copy with some numbers (base units) or words changed; the changed ones say so in their source.

        Raises
        ------
        Error
            An unknown key, a word that is not among the choices, or a value that is not positive.
        """
        numbers, words = dict(self.quantities), dict(self.choices)
        for key, value in (values or {}).items():
            spec = find_field(self.family, key)
            if spec is None:
                known = ", ".join(FAMILIES[self.family])
                raise Error(f"unknown key {key!r}", where=f"machine {self.name}", remedy=f"known: {known}")
            unit = _BASE_UNITS[spec.dimension]
            record = {"value": value, "unit": unit, "source": "given by the caller", "confidence": "assumed"}
            numbers[key] = read_number(record, spec, f"machine {self.name}, {key}")
        for key, word in (choices or {}).items():
            words[key] = read_word(self.family, key, word, f"machine {self.name}, {key}")
        return dataclasses.replace(
            self, quantities=MappingProxyType(numbers), choices=MappingProxyType(words), name=name or self.name
        )

    def __str__(self) -> str:
        count = ", ".join(f"{number} {level}" for level, number in self.confidences.items() if number)
        return f"{self.name} ({self.family}): {self.summary}; {count}; {self.validity}"


# The base unit of each dimension: what `replace` takes.
_BASE_UNITS = {dimension: unit for unit, (dimension, factor) in reversed(list(UNITS.items())) if factor == 1.0}
