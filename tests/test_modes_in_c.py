"""Every mode of a plan as C steps: the bits of the Python steps on every path and thread count, no Python between, no allocation.

`test_modes.py` holds the results themselves to readings in NumPy's int64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper
from test_loop import COUNTS, counted
from test_modes import MODES, layer, odd, plan_of

import hwq
from hwq.execution import Program
from hwq.execution.loop import PythonStep
from hwq.graph import Graph

ODD = ["one dimension", "three dimensions", "groups, dilated", "same padding", "two a channel", "scaled", "stacked weights"]  # fmt: skip
# A Gemm with factors is no group of the dialect hwq: where onnxruntime fuses nothing it stays float.
FLOAT = {"scaled", "stacked weights"}


def in_python(program: Program, x: np.ndarray) -> list[str]:
    found = program.specialization({program.graph.inputs[0]: x.shape}).loop
    assert found is not None
    return [part.node.kind for part in found.parts if isinstance(part, PythonStep)]


def compiled(graph: Graph, x: np.ndarray, name: str) -> Program:
    return hwq.compile(hwq.quantize(graph, plan_of(name), hwq.calibrate(graph, x)))


def held(program: Program, x: np.ndarray) -> None:
    """The loop's bits are those of the Python steps."""
    wanted = program(x, intermediates=True)[0]
    assert wanted.size
    for path in {hwq.kernels.isa(), "ref"}:
        with hwq.kernels.use_isa(path):
            for threads in (1, 3):
                assert program.session(threads)(x).tobytes() == wanted.tobytes(), (path, threads)


@pytest.mark.parametrize("kind", ["gemm", "matmul", "conv", "depthwise"])
@pytest.mark.parametrize("name", MODES)
def test_every_mode_runs_in_c(name: str, kind: str) -> None:
    graph, x = layer(kind)
    program = compiled(graph, x, name)
    for batch in (1, 5):
        assert in_python(program, x[:batch]) == []
        held(program, x[:batch])


@pytest.mark.parametrize("form", ODD)
@pytest.mark.parametrize("name", MODES)
def test_odd_forms(name: str, form: str) -> None:
    graph, x = odd(form)
    program = compiled(graph, x, name)
    assert form in FLOAT or in_python(program, x[:3]) == []
    held(program, x[:3])


@pytest.mark.parametrize("name", ["static int16", "static uint16", "static int4 groups", "static int8 groups", "dynamic row", "dynamic row int4 groups",
                                  "weight-only int4"])  # fmt: skip
def test_extremes(name: str) -> None:
    """The range's ends beside each other, rows of one value, NaN and infinities, no rows at all."""
    for kind in ("matmul", "conv"):
        graph, x = layer(kind)
        program = compiled(graph, x, name)
        given = np.where(np.random.default_rng(1).integers(0, 2, x[:4].shape), np.float32(1e6), np.float32(-1e6))
        given[1] = 0
        held(program, given)
        given.reshape(4, -1)[2, :3] = np.nan, np.inf, -np.inf
        with np.errstate(all="ignore"):
            wanted, found = program(given, intermediates=True)[0], program(given)
        assert np.array_equal(wanted, found, equal_nan=True)
        assert program(given[:0]).size == 0


MODES_CODE = """
import ctypes, gc
import numpy as np, hwq
from test_modes import MODES, layer, plan_of
count = ctypes.c_long.in_dll(ctypes.CDLL(None), "hwq_test_allocations")
for kind in ("matmul", "conv"):
    for name in MODES:
        graph, x = layer(kind)
        s = hwq.compile(hwq.quantize(graph, plan_of(name), hwq.calibrate(graph, x))).session()
        x = x[:3].copy()
        y = s(x)
        for _ in range(100):
            s(x, out=y)
        gc.collect()
        before = count.value
        for _ in range(50):
            s(x, out=y)
        print(count.value - before, name, kind)
"""


@COUNTS
def test_no_mode_allocates(tmp_path: Path) -> None:
    lines = counted(MODES_CODE, tmp_path)
    assert len(lines) == 2 * len(MODES)
    assert [line for line in lines if not line.startswith("0 ")] == []


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_normalization_of_integers(dtype: str, axis: int) -> None:
    random = np.random.default_rng(0)
    length = (24,) if axis == -1 else (5, 24)
    constants = {
        "w": random.normal(size=(12, 24)),
        "g": random.uniform(0.5, 1.5, length),
        "b": random.normal(size=length),
    }
    nodes = [helper.make_node("MatMul", ["x", "w"], ["c"], "m"), helper.make_node("LayerNormalization", ["c", "g", "b"], ["y"], "n", axis=axis)]  # fmt: skip
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 5, 12]}, {"y": ["N", 5, 24]}, constants))
    x = random.normal(size=(20, 5, 12)).astype(np.float32)
    plan = hwq.Plan.uniform(activations=dtype, dialect="hwq-integer")
    program = hwq.compile(hwq.quantize(graph, plan, hwq.calibrate(graph, x)))
    assert in_python(program, x[:3]) == []
    held(program, x[:3])
    held(program, np.concatenate([x[:2] * 0, x[:2] * 1e9]))
    held(program, np.tile(x, (20, 1, 1)))  # rows over threads
