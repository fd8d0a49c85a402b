"""Quantized weights, biases and ranges are the same on every CPU: no BLAS, no vector unit and no path of ours decides an integer."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from tiny import images

from hwq import kernels
from hwq.exporters.onnx import to_model

PLANS = """
[[plans]]
default.weights = { dtype = "int4", rounding = "coordinate", scale = "seq-mse" }
default.activations = { dtype = "uint8", observer = "mse" }
transforms = { equalize = true, bias_correction = "empirical" }
[[plans]]
default.weights = { dtype = "int8", rounding = "gptq", scale = "weighted" }
default.activations = { dtype = "uint8", observer = "kl" }
transforms = { bias_correction = "empirical" }
[[plans]]
default.weights = { dtype = "int8", scale = "mse" }
default.activations = { dtype = "uint8", observer = "coordinate" }
transforms = { bias_correction = "empirical" }
[[plans]]
default.weights = { dtype = "int4", granularity = { group = 8 }, rounding = "gptq" }
default.activations = { mode = "float" }
[[plans]]
default.weights = { dtype = "int4", granularity = { group = 8 }, scale = "mse" }
default.activations = { mode = "float" }
transforms = { awq = true }
[[plans]]
default.weights = { dtype = "int8", scale = "mse" }
default.activations = { dtype = "uint8", observer = "percentile" }
transforms = { smooth = 0.6 }
"""
SCRIPT = """
import sys, tomllib, hwq, numpy as np
from hwq.plan import Plan
folder = sys.argv[1]
every = tomllib.load(open(f"{folder}/plans.toml", "rb"))["plans"]
for name in ("cnn", "attention"):
    graph, data = hwq.load(f"{folder}/{name}.onnx"), np.load(f"{folder}/{name}.npy")
    cal = hwq.calibrate(graph, data, moments=True)
    print(name, cal.hash)
    for number, one in enumerate(every):
        asked = one.get("transforms", {})
        if name == "cnn" and {"awq", "smooth"} & set(asked) or name == "attention" and "equalize" in asked:
            continue
        plan = Plan._checked({"schema": 1, "dialect": "hwq", **one}, "test")
        for batches in (data, None):
            if batches is None and (asked or one["default"]["activations"].get("observer") == "coordinate"):
                continue
            made = hwq.quantize(graph, plan, cal, batches)
            print(name, number, batches is None, made.hash)
"""


def rows(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, length, 16)).astype(np.float32)


def environments() -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{"HWQ_ISA": name} for name in kernels.available_isas()]
    if platform.machine() == "x86_64":
        found += [{"OPENBLAS_CORETYPE": name} for name in ("Prescott", "Haswell", "SkylakeX")]
    wide = " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])
    return [*found, {"NPY_DISABLE_CPU_FEATURES": wide}] if wide else found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("same")
    (made / "plans.toml").write_text(PLANS)
    for name, proto, data in (("cnn", tiny.cnn(), images(40)), ("attention", tiny.attention(), rows(40, 6))):
        (made / f"{name}.onnx").write_bytes(to_model(tiny.graph(proto)).SerializeToString())
        np.save(made / f"{name}.npy", data)
    return made


def hashes(folder: Path, changed: dict[str, str]) -> str:
    env = {key: value for key, value in os.environ.items() if key != "HWQ_ISA"} | changed
    ran = subprocess.run([sys.executable, "-c", SCRIPT, folder], env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def here(folder: Path) -> str:
    return hashes(folder, {})


@pytest.mark.parametrize("changed", environments(), ids=lambda one: "=".join(next(iter(one.items())))[:40])
def test_the_integers_do_not_depend_on_the_cpu(folder: Path, here: str, changed: dict[str, str]) -> None:
    assert here.count("\n") >= 10
    assert hashes(folder, changed) == here
