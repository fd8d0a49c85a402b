"""The trained encoder of reports/encoder: outliers that change no output cost W8A8 its accuracy, SmoothQuant wins it back."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import hwq
import hwq.demo
from hwq.errors import Error

ROOT = Path(__file__).resolve().parent.parent
SCRIPT, MODEL = ROOT / "reports" / "encoder.py", ROOT / "reports" / "encoder" / "encoder.onnx"


@pytest.fixture(scope="module")
def encoder() -> Any:
    spec = importlib.util.spec_from_file_location("encoder_report", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _sqnr(graph: hwq.Graph, plan: hwq.Plan, calibration: Any, images: Any, encoder: Any) -> float:
    q = hwq.quantize(graph, plan, hwq.calibrate(graph, calibration), calibration)
    return float(encoder.sqnr(np.asarray(hwq.execute(graph, images)), np.asarray(hwq.execute(q, images))))


def test_smoothquant_recovers_what_outliers_cost(encoder: Any, tmp_path: Path) -> None:
    digits = hwq.demo.data()
    calibration, images = digits.calibration[:64, 0], digits.images[:150, 0]
    source = onnx.load(MODEL, load_external_data=False)
    assert MODEL.stat().st_size < 300_000
    graphs = []
    for name, model in (("plain", source), ("outliers", encoder.inject(source))):
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
        graphs.append(hwq.load(str(tmp_path / f"{name}.onnx")))
    plain, outliers = graphs
    real = np.asarray(hwq.execute(plain, images))
    assert np.mean(real.argmax(1) == digits.labels[:150]) >= 0.97
    assert np.abs(np.asarray(hwq.execute(outliers, images)) - real).max() < 1e-3  # the rescale changes no output
    plans = {}
    for name in ("W8A8", "W8A8 smooth"):
        (tmp_path / "plan.toml").write_text(encoder.plans()[name])
        plans[name] = hwq.Plan.load(tmp_path / "plan.toml")
    clean = _sqnr(plain, plans["W8A8"], calibration, images, encoder)
    lost = clean - _sqnr(outliers, plans["W8A8"], calibration, images, encoder)
    assert lost > 10  # dB
    kept = clean - _sqnr(outliers, plans["W8A8 smooth"], calibration, images, encoder)
    assert kept <= 0.1 * lost


def test_the_other_methods_of_the_report_are_plans(encoder: Any, tmp_path: Path) -> None:
    for text in encoder.plans().values():
        (tmp_path / "plan.toml").write_text(text)
        try:
            hwq.Plan.load(tmp_path / "plan.toml")
        except Error as error:  # pragma: no cover
            pytest.fail(str(error))
