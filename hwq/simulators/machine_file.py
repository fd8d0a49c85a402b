"""Reading a machine file: strict, so that a number without unit, source or confidence never enters."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hwq.errors import Error
from hwq.files import PathLike, read_bytes
from hwq.simulators.accelerator import Accelerator, Precision, Support
from hwq.simulators.quantity import Quantity, read_quantity
from hwq.simulators.schema import CHOICES, DEFAULTS, FAMILIES, LEVELS, RATES, TILE, find_field, read_number, read_word

__all__ = ["read_accelerator"]

# A machine file is a small text; anything larger is not one.
MAX_BYTES = 1 << 20

_TEXTS = ("name", "family", "summary", "validity")


def read_accelerator(path: PathLike) -> Accelerator:
    """Read and check a machine file.

    Raises
    ------
    Error
        Not TOML, an unknown or missing key, a number without unit, source or confidence, a wrong unit, a non-positive
        number; the message names file and key.
    """
    where = str(path)
    try:
        record = tomllib.loads(read_bytes(path, MAX_BYTES).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Error(
            "this is not a text file", where=where, why=str(error), remedy="a machine file is TOML in UTF-8"
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise Error("this is not valid TOML", where=where, why=str(error)) from None
    if type(record.get("schema")) is not int or record.pop("schema") != 1:
        raise Error(
            "schema = 1 is missing",
            where=where,
            why="machine files are versioned",
            remedy="write schema = 1 in the first line",
        )
    texts = {key: _text(record.pop(key, None), f"{where}, {key}") for key in _TEXTS}
    family = texts["family"]
    if family not in FAMILIES:
        raise Error(f"unknown family {family!r}", where=f"{where}, family", remedy=f"one of: {', '.join(FAMILIES)}")
    aliases = record.pop("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) and alias for alias in aliases):
        raise Error("aliases must be a list of names", where=f"{where}, aliases")
    precisions = _precisions(record.pop("precisions", None), family, where)
    support = _support(record.pop("support", {}), where)
    quantities: dict[str, Quantity] = {}
    choices: dict[str, str] = {}
    for key, value in _flat(record).items():
        spot = f"{where}, {key}"
        if key in CHOICES[family]:
            choices[key] = read_word(family, key, value, spot)
            continue
        spec = find_field(family, key)
        if spec is None:
            known = sorted([*FAMILIES[family], *CHOICES[family], "precisions", "support", "aliases", *_TEXTS])
            raise Error(f"unknown key {key!r}", where=where, remedy=f"known to family {family}: {', '.join(known)}")
        quantities[key] = read_number(value, spec, spot)
    _complete(family, quantities, choices, support, where)
    return Accelerator(
        aliases=tuple(aliases),
        quantities=MappingProxyType(quantities),
        choices=MappingProxyType(choices),
        precisions=MappingProxyType(precisions),
        support=MappingProxyType(support),
        source=where,
        **texts,
    )


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict) and not {"value", "unit", "source", "confidence"} & set(value):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Error("a text is missing here", where=where, why="name, family, summary and validity are required")
    return value


def _precisions(record: Any, family: str, where: str) -> dict[str, Precision]:
    if not isinstance(record, dict) or not record:
        raise Error(
            "[precisions] is missing",
            where=where,
            why="what is absent there is unsupported, so at least one must stand",
        )
    table: dict[str, Precision] = {}
    for name, entry in record.items():
        spot = f"{where}, precisions.{name}"
        if not isinstance(entry, dict) or set(entry) - {"rate", "runs_as", "why"}:
            raise Error("a precision has a rate, or runs_as, or only why", where=spot)
        rate = read_quantity(entry["rate"], RATES[family], f"{spot}.rate") if "rate" in entry else None
        why = _text(entry["why"], f"{spot}.why") if "why" in entry else None
        if rate is None and why is None:
            raise Error("without a rate, why says why it is not supported or runs as another", where=spot)
        table[name] = Precision(rate, entry.get("runs_as"), why)
    for name, precision in table.items():
        target = table.get(precision.runs_as) if isinstance(precision.runs_as, str) else None
        if precision.runs_as is not None and (target is None or target.rate is None or precision.rate is not None):
            raise Error(
                "runs_as must name a precision with a rate, and stands without a rate",
                where=f"{where}, precisions.{name}",
            )
    if not any(precision.rate for precision in table.values()):
        raise Error("no precision has a rate", where=f"{where}, precisions")
    return table


def _support(record: Any, where: str) -> dict[str, Support]:
    if not isinstance(record, dict):
        raise Error("[support] must be a table of operators", where=where)
    table: dict[str, Support] = {}
    for name, entry in record.items():
        spot = f"{where}, support.{name}"
        if not isinstance(entry, dict) or set(entry) != {"level", "why"} or entry["level"] not in LEVELS:
            raise Error(
                "an operator's support has a level and a why",
                where=spot,
                remedy=f"level is one of: {', '.join(LEVELS)}",
            )
        table[name] = Support(entry["level"], _text(entry["why"], f"{spot}.why"))
    return table


def _complete(
    family: str,
    quantities: Mapping[str, Quantity],
    choices: Mapping[str, str],
    support: Mapping[str, Support],
    where: str,
) -> None:
    missing = [key for key, spec in FAMILIES[family].items() if spec.required and key not in quantities]
    missing += [key for key in CHOICES[family] if key not in choices and key not in DEFAULTS.get(family, {})]
    if family == "gpu" and not any(TILE.fullmatch(key) for key in quantities):
        missing.append('tiles."128x128"')
    if family != "npu" and "dram.bandwidth" not in quantities:
        missing.append("dram.bandwidth")
    if any(entry.level == "host" for entry in support.values()):
        missing += [key for key in ("host.rate", "host.latency") if key not in quantities]
    if missing:
        about = FAMILIES[family].get(missing[0])
        raise Error(
            f"{missing[0]} is missing",
            where=where,
            why=f"family {family} needs it" + (f": {about.about}" if about else ""),
            remedy="add " + ", ".join(missing),
        )
