"""Dialects are verified against the installed runtimes, and a planted error is found."""

from __future__ import annotations

import dataclasses
import types

import pytest

from hwq.dialect import DIALECTS
from hwq.errors import Error
from hwq.verification import verifiable, verify

pytest.importorskip("onnxruntime")
RUNTIMES = {"ort": "onnxruntime", "ort-unfused": "onnxruntime", "onnx": "onnx"}


@pytest.mark.parametrize("dialect", RUNTIMES)
def test_installed_runtime_agrees(dialect: str) -> None:
    made = verify(dialect, values=1)
    assert made.passed, [case for case in made.cases if case.differing or case.failure]
    assert made.runtime == RUNTIMES[dialect] and made.version
    assert made.values > 100_000 and made.differing == 0
    assert all(case.values for case in made.cases)


def test_planted_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from hwq.verification import onnx_dialects

    wrong = dataclasses.replace(DIALECTS["ort"], formulas={**DIALECTS["ort"].formulas, "Add": "torch-add"})
    monkeypatch.setattr("hwq.dialect.DIALECTS", types.MappingProxyType({**DIALECTS, "ort": wrong}))
    monkeypatch.setattr(
        onnx_dialects, "CASES", {name: draw for name, draw in onnx_dialects.CASES.items() if "Add" in name}
    )
    made = verify("ort", values=100_000)
    assert not made.passed and made.differing > 0


def test_what_has_no_runtime_is_refused() -> None:
    assert set(RUNTIMES) <= set(verifiable())
    with pytest.raises(Error, match="cannot be verified"):
        verify("tensorrt")
    with pytest.raises(Error, match="no such dialect"):
        verify("nothing")


def test_saturating_dialect_needs_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from hwq.verification import onnx_dialects

    monkeypatch.setattr(onnx_dialects, "has_vnni", lambda: True)
    monkeypatch.setattr(onnx_dialects, "emulator", lambda: None)
    with pytest.raises(Error, match="cannot be verified on this CPU"):
        verify("ort-avx2-saturating", values=1)


@pytest.mark.parametrize("dialect", ["litert-ref", "litert-xnnpack"])
def test_installed_litert_agrees(dialect: str) -> None:
    pytest.importorskip("ai_edge_litert")
    made = verify(dialect, values=1)
    assert made.passed, [case for case in made.cases if case.differing or case.failure]
    assert made.runtime == "ai-edge-litert" and made.version and made.values > 10_000
