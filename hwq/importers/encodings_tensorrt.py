"""TensorRT calibration caches: a header line, then ``tensor: scale``, the scale as float32 bits in hexadecimal.

Documented with sampleINT8: ``TRT-7000-EntropyCalibration2``, the digits are the number's bits, big-endian, leading zeros
left out; the scale is the dynamic range / 127. A tensor that the engine does not use has 0. TensorRT's INT8 has no zero
points; weights are not in the cache: it quantizes them per output channel, symmetric, over their range.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from hwq.encodings import Encoding, to_plan
from hwq.errors import Error
from hwq.graph import Graph
from hwq.importers.encodings import Imported, fitting, name_of
from hwq.names import display_name

__all__ = ["parse"]

_HEADER = re.compile(r"TRT-\d+-\w+\Z")
_LINE = re.compile(r"(.*\S)\s*:\s*([0-9a-fA-F]{1,8})\Z")
WEIGHTS = {"dtype": "int8", "granularity": "channel", "symmetric": True, "scale": "minmax"}


def parse(text: str, where: str, graph: Graph | None) -> Imported:
    """The plan that a calibration cache says, in the dialect ``tensorrt``.

    Raises
    ------
    Error
        Not such a file, or a damaged one.
    """
    lines = text.splitlines()
    if not lines or not _HEADER.match(lines[0].strip()):
        raise Error("the first line is no header of a calibration cache", where=where,
                    why="it reads like TRT-8401-EntropyCalibration2")  # fmt: skip
    left: list[str] = []
    every = list(_each(lines[1:], where, left))
    kept, lost = fitting(every, graph)
    if not kept:
        raise Error("the cache holds no scale of this model" if every else "the cache holds no scales", where=where)
    return Imported(to_plan(kept, dialect="tensorrt", weights=WEIGHTS), "TensorRT calibration cache", (*left, *lost))


def _each(lines: list[str], where: str, left: list[str]) -> Iterator[Encoding]:
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        found = _LINE.match(line.strip())
        here = f"{where}, line {number}"
        if found is None:
            raise Error("a line is no tensor with its scale", where=here, why=f"it reads {display_name(line, 60)}",
                        remedy="the file may be cut off")  # fmt: skip
        name = name_of(found[1], here)
        scale = np.array(int(found[2], 16), np.uint32).view(np.float32)
        if scale == 0:
            left.append(f"tensor {name} has no scale: the engine does not quantize it")
            continue
        yield Encoding(name, False, "int8", scale, np.zeros((), np.int64)).checked(here)
