"""One-op models against the recorded bytes of onnxruntime and onnx's evaluator, on any path, thread count and caller's state."""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwq
from hwq import kernels
from hwq.importers.onnx import read
from hwq.verification.onnx_dialects import drawn
from hwq.verification.onnx_models import CASES, VECTORS

HERE = Path(__file__).parent / "golden" / "onnx"
FACTS = json.loads((HERE / "provenance.json").read_text())["outputs"]
HEADS = np.load(HERE / "outputs.npz")
sys.path.insert(0, str(HERE))


def model_of(key: str) -> tuple[Any, dict[str, np.ndarray]]:
    name, _, index = key.rpartition("#")
    return drawn(name, {**CASES, **VECTORS}[name], int(index))


def assert_recorded(key: str, dialect: str, found: np.ndarray) -> None:
    if dialect == "ort" and "ort" not in FACTS[key]:  # on every CPU the bits of vectors of 8
        dialect = "ort-avx2-saturating"
    facts = FACTS[key][dialect]
    assert (str(found.dtype), list(found.shape)) == (facts["dtype"], facts["shape"])
    if hashlib.sha256(np.ascontiguousarray(found).tobytes()).hexdigest() != facts["sha256"]:
        entry = f"{key}|{dialect}" if f"{key}|{dialect}" in HEADS else f"{key}|ort"
        head = HEADS[entry]
        np.testing.assert_array_equal(found.reshape(-1)[: head.size], head, err_msg=f"{key} in {dialect}")
        raise AssertionError(f"{key} in {dialect} differs after its first {head.size} elements")


def test_models_are_what_was_recorded() -> None:
    from make import drawn_hash

    assert len(CASES) >= 50 and {key.rpartition("#")[0] for key in FACTS} == {*CASES, *VECTORS}
    for key, facts in FACTS.items():
        assert drawn_hash(*model_of(key)) == facts["drawn"], (
            f"{key}: this NumPy draws otherwise; run tests/golden/onnx/make.py"
        )


@pytest.mark.parametrize("dialect", ["ort", "ort-unfused", "ort-avx2-saturating", "onnx"])
def test_recorded_bytes(dialect: str) -> None:
    compared = 0
    for key, facts in FACTS.items():
        if dialect not in facts:
            continue
        model, feeds = model_of(key)
        assert_recorded(key, dialect, hwq.execute(read(model), feeds, dialect))
        compared += 1
    assert compared >= (20 if dialect == "onnx" else 100)


def test_vectors_of_16_and_of_8() -> None:
    """Float convolutions, means and softmax of both widths; `ort` has those of 8 on every CPU."""
    for key in (f"{name}#{index}" for name in VECTORS for index in range(2)):
        model, feeds = model_of(key)
        assert_recorded(key, "ort-avx512", hwq.execute(read(model), feeds, "ort-avx512"))
        for dialect in ("ort", "ort-avx2-saturating"):
            assert_recorded(key, dialect, hwq.execute(read(model), feeds, dialect))
    assert FACTS["float Softmax#0"]["ort-avx512"]["sha256"] != FACTS["float Softmax#0"]["ort-avx2-saturating"]["sha256"]


def test_saturation_shows() -> None:
    facts = {key: one for key, one in FACTS.items() if "ort" in one}
    shown = [key for key, one in facts.items() if one["ort"]["sha256"] != one["ort-avx2-saturating"]["sha256"]]
    assert any("QLinearConv" in key for key in shown) and any("ConvInteger int8 uint8" in key for key in shown)
    assert not any(" uint8 uint8" in key or " int8 int8" in key for key in shown)


@contextmanager
def hostile_state() -> Iterator[None]:
    """Round upwards, flush subnormals to zero, read them as zero (x86-64 glibc: MXCSR is the last word of fenv_t)."""
    libm = ctypes.CDLL("libm.so.6")
    before, changed = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    libm.fegetenv(before)
    libm.fegetenv(changed)
    changed[7] |= 0x4000 | 0x8000 | 0x0040
    try:
        libm.fesetenv(changed)
        yield
    finally:
        libm.fesetenv(before)


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="sets MXCSR through glibc")
def test_the_callers_rounding_mode_changes_nothing() -> None:
    with hostile_state():
        assert np.float32(1) + np.float32(2**-25) > 1, "the state is not hostile"
    for key in FACTS:
        if key.endswith("#0"):
            continue
        model, feeds = model_of(key)
        graph = read(model)
        with hostile_state():
            found = hwq.compile(graph, "ort")(feeds)
            assert np.float32(1) + np.float32(2**-25) > 1, "the caller's state was not put back"
        assert_recorded(key, "ort", found)


@pytest.mark.parametrize("isa", kernels.available_isas())
def test_paths_and_threads_change_nothing(isa: str) -> None:
    with kernels.use_isa(isa):
        for key in FACTS:
            if key.endswith("#1"):
                continue
            model, feeds = model_of(key)
            for dialect in ("ort", "ort-avx2-saturating"):
                found = hwq.compile(read(model), dialect).session(threads=3)(feeds)
                assert_recorded(key, dialect, next(iter(found.values())) if isinstance(found, dict) else found)
