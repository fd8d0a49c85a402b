"""report.json: the records of a report with stable keys, units in their names, and only what JSON knows."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import hwq
from hwq.names import display_name
from hwq.reporting.records import Records

__all__ = ["SCHEMA_VERSION", "to_json"]

# It rises when a key changes its meaning or goes; new keys do not raise it.
SCHEMA_VERSION = 1
# Longest text kept; names of a megabyte are data of nobody.
MAX_TEXT = 4000


def to_json(records: Records, *, command: str | None = None) -> str:
    """The whole file: an object with ``schema_version``, ``hwq_version``, ``command`` and one list a kind of record.

    Numbers that JSON has no word for are the strings ``"inf"``, ``"-inf"`` and the value null (not a number).
    """
    document = {"schema_version": SCHEMA_VERSION, "hwq_version": hwq.__version__, "command": command, **_plain(records)}
    return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)} | _derived(value)
    if isinstance(value, Mapping):
        return {display_name(key, MAX_TEXT): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    return _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    # Line breaks are content (a plan's text); every other control character is escaped.
    return "\n".join(display_name(line, MAX_TEXT) for line in value.split("\n"))


def _derived(value: Any) -> dict[str, Any]:
    names = ("dram_bytes", "total_picojoules", "inferences_per_second")
    return {
        name: _plain(getattr(value, name)) for name in names if isinstance(getattr(type(value), name, None), property)
    }
