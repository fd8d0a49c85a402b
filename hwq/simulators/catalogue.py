"""The shipped machines, and how a name finds one."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from hwq.errors import Error
from hwq.files import PathLike
from hwq.simulators.accelerator import Accelerator
from hwq.simulators.machine_file import read_accelerator

__all__ = ["accelerators", "find"]

_ARRAY = re.compile(r"(?P<base>[^:]+):(?P<rows>[1-9]\d{0,4})x(?P<cols>[1-9]\d{0,4})(?::(?P<dataflow>\w+))?")


def find(name: PathLike | Accelerator) -> Accelerator:
    """The machine of that name, alias or file.

    Parameters
    ----------
    name : str, path or Accelerator
        A shipped machine (``tpu-v1``), one of its aliases in any case (``NVIDIA T4``), a systolic machine with another
        array (``systolic:32x32:ws``), or the path of a ``.toml`` file.

    Raises
    ------
    Error
        There is none, or the file is not a valid machine file.
    """
    if isinstance(name, Accelerator):
        return name
    text = str(name)
    if text.endswith(".toml") or isinstance(name, Path):
        return read_accelerator(text)
    if text in _files():
        return _shipped(text)
    array = _ARRAY.fullmatch(text)
    if array:
        return _with_array(array, text)
    folded = {key.casefold(): machine for key, machine in accelerators().items()}
    if text.casefold() in folded:
        return folded[text.casefold()]
    known = ", ".join(sorted(_files()))
    raise Error(
        "there is no such machine",
        where=f"machine {text}",
        remedy=f"one of {known}; or systolic:ROWSxCOLS:DATAFLOW, or the path of a .toml file",
    )


def accelerators() -> Mapping[str, Accelerator]:
    """Every shipped machine by name and by alias."""
    table: dict[str, Accelerator] = {}
    for name in sorted(_files()):
        machine = _shipped(name)
        for key in (machine.name, *machine.aliases):
            table[key] = machine
    return MappingProxyType(table)


@functools.cache
def _files() -> Mapping[str, Path]:
    folder = resources.files("hwq.simulators") / "accelerators"
    return {Path(str(entry)).stem: Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".toml")}


@functools.cache
def _shipped(name: str) -> Accelerator:
    return read_accelerator(_files()[name])


def _with_array(match: re.Match[str], name: str) -> Accelerator:
    base = find(match["base"])
    if base.family != "systolic":
        raise Error(
            "only systolic machines take an array size", where=f"machine {name}", why=f"{base.name} is a {base.family}"
        )
    choices = {"array.dataflow": match["dataflow"]} if match["dataflow"] else {}
    return base.replace(
        {"array.rows": int(match["rows"]), "array.cols": int(match["cols"])}, choices=choices, name=name
    )
