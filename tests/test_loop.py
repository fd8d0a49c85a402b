"""The loop in C gives the bits of the Python steps and of onnxruntime, on any thread count, without allocating."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper
from qdq import Builder, graph_of, session
from qdq_patterns import PATTERNS, random_graph

import hwq
from hwq.execution import Program, loop
from hwq.execution.steps import is_group
from hwq.graph import Node

FUNCTIONS = {"Softmax", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Gelu", "Exp", "Erf"}


def feeds_of(program: Program, seed: int, batch: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    made = {}
    for name in program.graph.inputs:
        tensor = program.graph.tensors[name]
        shape = [dim if isinstance(dim, int) else batch for dim in tensor.shape]
        values = random.standard_normal(shape) * 3 if tensor.dtype == "float32" else random.integers(0, 100, shape)
        made[name] = values.astype(tensor.dtype)
    return made


def outputs(program: Program, result: object) -> dict[str, np.ndarray]:
    return result if isinstance(result, dict) else {program.graph.outputs[0]: result}  # type: ignore[dict-item]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def by_python(program: Program, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return outputs(program, program(feeds, intermediates=True)[0])


@pytest.mark.parametrize("dialect", ["ort", "ort-unfused"])
@pytest.mark.parametrize("name", PATTERNS)
def test_the_loop_gives_the_bits_of_the_python_steps(name: str, dialect: str) -> None:
    b = Builder()
    PATTERNS[name](b)
    program = hwq.compile(graph_of(b.model()), dialect)
    for seed in range(2):
        feeds = feeds_of(program, seed, batch=2 + seed)
        wanted = by_python(program, feeds)
        same(outputs(program, program(feeds)), wanted)
        for threads in (1, 2, 3):
            same(outputs(program, program.session(threads)(feeds)), wanted)


def test_random_graphs() -> None:
    for seed in range(60):
        program = hwq.compile(graph_of(random_graph(seed).model()))
        feeds = feeds_of(program, seed)
        wanted = by_python(program, feeds)
        same(outputs(program, program(feeds)), wanted)
        same(outputs(program, program.session(2)(feeds)), wanted)


def made(name: str) -> Program:
    b = Builder()
    PATTERNS[name](b)
    return hwq.compile(graph_of(b.model()))


def test_where_the_caller_wants_the_result() -> None:
    program = made("residual")
    session = program.session()
    (x,) = feeds_of(program, 0, batch=1).values()
    wanted = program(x)
    out = np.empty_like(wanted)
    for _ in range(3):
        assert session(x, out=out) is out
        assert out.tobytes() == wanted.tobytes()
        out[...] = 0
    # Another shape, an array with strides, one that is not aligned: the long way, the same bits.
    both = np.concatenate([x, x])
    assert np.asarray(session(both)).tobytes() == np.concatenate([wanted, wanted]).tobytes()
    strided = np.repeat(x, 2, axis=-1)[..., ::2]
    assert session(strided, out=out) is out and out.tobytes() == wanted.tobytes()
    raw = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    assert session(raw, out=out) is out and out.tobytes() == wanted.tobytes()
    with pytest.raises(hwq.Error, match="out must have shape"):
        session(x, out=out[:, :1].copy())
    with pytest.raises(hwq.Error, match="out must have shape"):
        session(x, out=out.astype(np.float64))
    with pytest.raises(hwq.Error):
        session(x.astype(np.float64), out=out)
    assert session(x, out=out).tobytes() == wanted.tobytes()


def test_an_output_over_the_input() -> None:
    b = Builder()
    x = b.input(["N", 4, 8, 8])
    b.output(b.pair(b.op("Add", b.pair(x, 0.05, 128), b.pair(x, 0.05, 128)), 0.1, 120))
    program = hwq.compile(graph_of(b.model()))
    given = feeds_of(program, 0, batch=1)[x]
    wanted, session = program(given), program.session()
    for _ in range(2):
        copy = given.copy()
        assert session(copy, out=copy).tobytes() == wanted.tobytes()


def test_constants_and_inputs_as_outputs() -> None:
    b = Builder()
    x = b.input(["N", 8])
    q = b.quantize(x, 0.05, 128)
    b.output(q, b.op("Identity", q), b.op("Identity", x), b.op("Identity", b.constant(np.arange(3, dtype=np.float32))))
    program = hwq.compile(graph_of(b.model()))
    feeds = feeds_of(program, 0)
    found = outputs(program, program(feeds))
    same(found, by_python(program, feeds))
    for array in found.values():
        array[...] = 0  # theirs, not the program's nor each other's
    same(outputs(program, program.session()(feeds)), by_python(program, feeds))


def test_one_thread_at_a_time() -> None:
    program = made("residual")
    (x,) = feeds_of(program, 0, batch=256).values()
    session = program.session()
    wanted = program(x)
    refused, results = 0, []

    def work() -> None:
        nonlocal refused
        for _ in range(20):
            try:
                results.append(np.asarray(session(x)))
            except hwq.Error as error:
                assert "another thread" in str(error)
                refused += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused and results and all(one.tobytes() == wanted.tobytes() for one in results)
    with session._busy, pytest.raises(hwq.Error, match="another thread"):
        session.reset()
    session.reset()
    assert np.asarray(session(x)).tobytes() == wanted.tobytes()


def test_programs_are_reentrant() -> None:
    program = made("residual")
    inputs = [feeds_of(program, seed, batch=64) for seed in range(4)]
    wanted = [program(one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(program, inputs), wanted, strict=True):
                assert got.tobytes() == want.tobytes()


def test_threads_of_a_session_end_with_it() -> None:
    program = made("residual")
    session = program.session(3)
    session(feeds_of(program, 0))
    mine = [one for one in threading.enumerate() if one.name == "hwq-crew" and one.is_alive()]
    assert len(mine) >= 2
    del session
    for thread in mine:
        thread.join(10)
    assert not any(one.is_alive() for one in mine)


def test_onnxruntimes_bits() -> None:
    pytest.importorskip("onnxruntime", reason="the oracle")
    checked = 0
    for seed in range(40):
        model = random_graph(seed).model()
        try:
            theirs = session(model)
        except Exception:  # onnxruntime 1.31.1 refuses some of its own rewrites (int8 pairs around MaxPool)
            continue
        program = hwq.compile(graph_of(model))
        if any(node.op in FUNCTIONS and not is_group(program.graph, node) for node in program.graph.nodes):
            continue  # libm's last bit is another library's
        feeds = feeds_of(program, seed)
        wanted = dict(zip(program.graph.outputs, theirs.run(list(program.graph.outputs), feeds), strict=True))
        same(outputs(program, program.session()(feeds)), wanted)
        checked += 1
    assert checked >= 15


COUNT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
long hwq_test_allocations;
void *malloc(size_t n) { hwq_test_allocations++; return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { hwq_test_allocations++; return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { hwq_test_allocations++; return __libc_realloc(p, n); }
"""
CALLS = """
import ctypes, gc, sys
import numpy as np, hwq
from qdq import Builder, graph_of
from qdq_patterns import PATTERNS
b = Builder()
PATTERNS["head"](b)
program = hwq.compile(graph_of(b.model()))
(name,) = program.graph.inputs
x = np.ones([d if isinstance(d, int) else 1 for d in program.graph.tensors[name].shape], np.float32)
count = ctypes.c_long.in_dll(ctypes.CDLL(None), "hwq_test_allocations")
for threads in (1, 2):
    s = program.session(threads)
    y = s(x)
    for _ in range(100):
        s(x, out=y)
    gc.collect()
    blocks, before = sys.getallocatedblocks(), count.value
    for _ in range(100_000 if threads == 1 else 1000):
        s(x, out=y)
    after = count.value
    print(after - before, sys.getallocatedblocks() - blocks)
"""


EVERY = """
import ctypes
import numpy as np, hwq
from qdq import Builder, graph_of
from qdq_patterns import PATTERNS
count = ctypes.c_long.in_dll(ctypes.CDLL(None), "hwq_test_allocations")
for name, pattern in PATTERNS.items():
    b = Builder()
    pattern(b)
    try:
        program = hwq.compile(graph_of(b.model()))
    except hwq.Error:
        continue
    if len(program.graph.inputs) != 1 or len(program.graph.outputs) != 1:
        continue
    given = program.graph.tensors[program.graph.inputs[0]]
    x, s = np.ones([d if isinstance(d, int) else 2 for d in given.shape], given.dtype), program.session()
    y = s(x)
    for _ in range(10):
        s(x, out=y)
    if s._memories.last is None or not s._memories.last.loop.in_c:
        continue  # a node without a C step
    before = count.value
    for _ in range(100):
        s(x, out=y)
    print(count.value - before, name)
"""


def counted(code: str, folder: Path) -> list[str]:
    """The lines that the code prints where every allocation counts."""
    (folder / "count.c").write_text(COUNT)
    library = folder / "count.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, folder / "count.c"], check=True)
    here = Path(__file__).parent
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": f"{here}:{here.parent}"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


COUNTS = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or shutil.which("cc") is None, reason="counts glibc's malloc by cc"
)


@COUNTS
def test_calls_allocate_nothing(tmp_path: Path) -> None:
    lines = counted(CALLS, tmp_path)
    for line in lines:
        allocations, blocks = map(int, line.split())
        assert allocations == 0
        assert abs(blocks) <= 20  # the loop's own integers, not one a call
    assert len(lines) == 2


@COUNTS
def test_no_program_of_c_steps_alone_allocates(tmp_path: Path) -> None:
    """Whatever its layers: every pattern that needs no Python between its steps."""
    lines = counted(EVERY, tmp_path)
    assert len(lines) >= 30
    assert [line for line in lines if not line.startswith("0 ")] == []


def test_a_program_keeps_the_steps_of_few_shapes() -> None:
    from hwq.execution.program import KEPT_SHAPES

    b = Builder()
    next(iter(PATTERNS.values()))(b)
    program = hwq.compile(graph_of(b.model()), "ort")
    for batch in range(1, KEPT_SHAPES + 6):
        feeds = feeds_of(program, batch, batch)
        same(outputs(program, program(feeds)), by_python(program, feeds))
    assert len(program._known) <= KEPT_SHAPES


@pytest.mark.parametrize(
    ("weights", "activations", "in_python"),
    [
        ({}, {"mode": "dynamic"}, {"Softmax"}),
        ({"granularity": "tensor"}, {"mode": "dynamic"}, {"Softmax"}),
        ({}, {"mode": "dynamic", "granularity": "row"}, {"Softmax"}),
        ({}, {"mode": "float"}, {"Softmax"}),
    ],
)
def test_layers_of_run_time_ranges_and_float_layers_have_c_steps(
    weights: dict[str, str], activations: dict[str, str], in_python: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    step = loop.PythonStep

    def watch(node: Node, *rest: object) -> object:
        left.append(node.op)
        return step(node, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "PythonStep", watch)
    b = Builder(seed=3, opset=18)
    x = b.input(["n", 3, 9, 7])

    def conv(x: str, shape: tuple[int, ...], **attributes: object) -> str:
        weight, bias = b.random.standard_normal(shape), b.random.standard_normal(shape[0])
        constants = [b.constant(one.astype(np.float32)) for one in (weight, bias)]
        return b.op("Conv", x, *constants, kernel_shape=list(shape[2:]), **attributes)

    first = b.op("Relu", conv(x, (11, 3, 3, 3), pads=[1, 1, 1, 1]))
    second = b.op("Add", first, conv(first, (11, 1, 3, 2), group=11, pads=[1, 0, 1, 1]))
    third = b.op("Flatten", conv(second, (6, 11, 1, 1), strides=[2, 2]))
    weight = b.constant(b.random.standard_normal((120, 5)).astype(np.float32))
    made = b.op("Gemm", third, weight, b.constant(b.random.standard_normal(5).astype(np.float32)))
    b.output(b.op("Softmax", made))
    graph = graph_of(b.model())
    table = {"schema": 1, "dialect": "hwq", "default": {"weights": weights, "activations": activations}}
    quantized = hwq.quantize(graph, hwq.Plan.model_validate(table), None)
    program = hwq.compile(quantized)
    for batch in (1, 3):
        feeds = feeds_of(program, batch, batch)
        wanted = by_python(program, feeds)
        for threads in (1, 2):
            same(outputs(program, program.session(threads=threads)(feeds)), wanted)
        assert set(left) == in_python


@pytest.mark.parametrize("kinds", [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")])
@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 2, 5, 7), (3, 2, 7, 9)), ((3, 2, 5, 33), (33, 20)), ((1, 1, 5, 7), (3, 2, 7, 9)), ((3, 2, 5, 7), (1, 1, 7, 1)), ((5, 7), (4, 7, 3)),
     ((3, 1, 5, 7), (1, 2, 7, 4)), ((2, 1, 64), (2, 64, 40))],
)  # fmt: skip
def test_products_of_activations_are_c_steps(
    kinds: tuple[str, str], left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    """The right operand is packed as it comes; batches that broadcast crosswise stay in Python."""
    b = Builder()
    points = [3 if kind == "int8" else 130 for kind in kinds]
    pairs = [b.pair(b.input(list(shape)), 0.05, point, np.dtype(kind).type)
             for shape, kind, point in zip((left, right), kinds, points, strict=True)]  # fmt: skip
    b.output(b.pair(b.op("MatMul", *pairs), 0.4, points[0], np.dtype(kinds[0]).type))
    program = hwq.compile(graph_of(b.model()), "ort")
    random = np.random.default_rng(0)
    feeds = {
        name: (random.standard_normal(shape) * 3).astype(np.float32)
        for name, shape in zip(program.graph.inputs, (left, right), strict=True)
    }
    expected = by_python(program, feeds)
    for threads in (1, 3):
        s = program.session(threads=threads)
        same(outputs(program, s(feeds)), expected)
        crossed = left[:2] == (3, 1)
        assert crossed or s._memories.last.loop.in_c
    with hwq.kernels.use_isa("ref"):
        same(outputs(program, program(feeds)), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layers_of_16_bit_floats_are_c_steps(dtype: str) -> None:
    """Casts, convolutions, products, clamps and sums; NaN, infinities, negative zeros and subnormals among the values."""
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(6, 4, 3, 3)) * 0.2, "b": random.normal(size=6), "d": random.normal(size=(6, 1, 3, 3)), "m": random.normal(size=(6 * 25, 7)),
               "n": random.normal(size=7), "shape": np.array([0, -1])}  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["r"], "relu"),
             helper.make_node("Conv", ["r", "d"], ["e"], "depthwise", pads=[1, 1, 1, 1], group=6), helper.make_node("Add", ["e", "r"], ["a"], "add"),
             helper.make_node("Mul", ["a", "e"], ["p"], "mul"), helper.make_node("Sub", ["p", "r"], ["s"], "sub"),
             helper.make_node("Reshape", ["s", "shape"], ["f"], "flatten"), helper.make_node("Gemm", ["f", "m", "n"], ["y"], "gemm")]  # fmt: skip
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 4, 5, 5]}, {"y": ["N", 7], "s": ["N", 6, 5, 5]}, weights))
    program = hwq.compile(hwq.quantize(graph, hwq.Plan.uniform(dtype, dtype, dialect="hwq")))
    x = random.normal(size=(3, 4, 5, 5)).astype(np.float32) * np.float32(10.0) ** random.integers(
        -9, 5, (3, 1, 1, 1)
    ).astype(np.float32)
    x[0, 0, 0, :3] = np.nan, np.inf, -0.0
    with np.errstate(all="ignore"):
        expected = by_python(program, {"x": x})
        for threads in (1, 2):
            s = program.session(threads=threads)
            found = outputs(program, s({"x": x}))
            for name, value in expected.items():
                assert np.array_equal(np.isnan(found[name]), np.isnan(value)), name
                assert (
                    np.where(np.isnan(value), 0, found[name]).tobytes() == np.where(np.isnan(value), 0, value).tobytes()
                ), name
            assert s._memories.last.loop.in_c
