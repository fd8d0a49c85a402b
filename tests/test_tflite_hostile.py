"""Damaged TFLite files: one `hwq.Error` or a result, whatever the bytes; no crash, no hang, no memory beyond bounds."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import hwq
from hwq.graph import Graph, carrier
from hwq.importers.tflite import read

MODELS = np.load(Path(__file__).resolve().parent / "golden" / "tflite" / "models.npz")
# Values that offsets, lengths, dimensions and indices take in a hostile file.
NUMBERS = (0, 1, 2, 3, 4, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
CHANGES = 400
SECONDS = 5.0
# No model here needs a hundredth of it.
BYTES = 1 << 30
# A model that a changed dimension made large is not run.
ELEMENTS = 1 << 13


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: bits flipped, words replaced, a word copied elsewhere, the end cut off, a stretch removed or doubled."""
    changed = bytearray(data)
    kind = int(rng.integers(0, 6))
    place = int(rng.integers(0, len(data)))
    if kind == 0:
        for where in rng.integers(0, len(data), int(rng.integers(1, 5))):
            changed[where] ^= 1 << int(rng.integers(0, 8))
    elif kind in (1, 2):
        for _ in range(int(rng.integers(1, 3))):
            where = int(rng.integers(0, len(data) - 4)) // 4 * 4
            struct.pack_into("<I", changed, where, NUMBERS[int(rng.integers(0, len(NUMBERS)))])
    elif kind == 3:
        other = int(rng.integers(0, len(data) - 4)) // 4 * 4
        changed[other : other + 4] = changed[place // 4 * 4 : place // 4 * 4 + 4]
    elif kind == 4:
        del changed[place:]
    else:
        stretch = int(rng.integers(1, 32))
        changed[place : place + stretch] = b"" if rng.random() < 0.5 else bytes(changed[place : place + stretch]) * 2
    return bytes(changed)


def feeds(graph: Graph) -> dict[str, np.ndarray] | None:
    """Zeros, or None where the file asks for very many."""
    found = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        shape = [dim if isinstance(dim, int) else 1 for dim in tensor.shape]
        if np.prod(shape, dtype=object) > ELEMENTS:
            return None
        found[name] = np.zeros(shape, carrier(tensor.dtype))
    return found


def attempt(data: bytes) -> str:
    """Read, lower, compile and run; every refusal is an `hwq.Error`."""
    try:
        graph = read(data, "hostile.tflite")
        given = feeds(graph)
        if given is None:
            return "large"
        for dialect in ("litert-ref", "litert-xnnpack"):
            hwq.compile(graph, dialect)(given)
        return "ran"
    except hwq.Error:
        return "refused"


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_run() -> None:
    rng = np.random.default_rng(20)
    counts = {"ran": 0, "refused": 0, "large": 0}
    tracemalloc.start()
    try:
        for index in range(CHANGES):
            data = MODELS[MODELS.files[index % len(MODELS.files)]].tobytes()
            started = time.process_time()
            counts[attempt(damaged(data, rng))] += 1
            assert time.process_time() - started < SECONDS
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()
    assert counts["refused"] > CHANGES // 10 and counts["ran"] > CHANGES // 10


@pytest.mark.parametrize("length", [0, 3, 7, 8, 12, 40])
def test_stumps_are_refused(length: int) -> None:
    data = MODELS["conv_int8_ties"].tobytes()[:length]
    with pytest.raises(hwq.Error):
        read(data, "stump.tflite")


def test_an_offset_that_points_at_itself_is_refused() -> None:
    data = bytearray(MODELS["conv_int8_ties"].tobytes())
    struct.pack_into("<I", data, 0, 0)
    with pytest.raises(hwq.Error):
        read(bytes(data), "loop.tflite")
