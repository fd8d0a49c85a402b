"""The array API under callers who do not mean well: one hwq.Error or MemoryError, never a crash, a hang or another's bytes."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from hwq import kernels
from hwq.errors import Error
from hwq.kernels import operands

RNG = np.random.default_rng(7)
W = kernels.pack(RNG.integers(-128, 128, (40, 24), np.int8))
A = RNG.integers(0, 256, (33, 40), np.uint8)
X = RNG.standard_normal((3, 5)).astype(np.float32)
FILTERS = kernels.pack_conv(RNG.integers(-128, 128, (4, 2, 3, 3), np.int8))
IMAGES = RNG.integers(0, 256, (1, 2, 6, 6), np.uint8)
CHAIN = kernels.pack_chain(RNG.standard_normal((4, 3, 3, 2)).astype(np.float32))
PHOTOS = RNG.standard_normal((1, 6, 6, 2)).astype(np.float32)
SUMS = RNG.integers(-9, 9, (3, 5), np.int32)

REFUSED: list[Callable[[], Any]] = [
    lambda: kernels.gemm(A, None),  # type: ignore[arg-type]
    lambda: kernels.gemm(A, dataclasses.replace(W, n=10**9)),
    lambda: kernels.gemm(A, W, threads="2"),  # type: ignore[arg-type]
    lambda: kernels.gemm(A, W, threads=0.5),  # type: ignore[arg-type]
    lambda: kernels.gemm(A, W, a_zero_point=2**70),
    lambda: kernels.gemm([[1], [2, 3]], W),
    lambda: kernels.gemm(A, W, epilogue=0.1),  # type: ignore[arg-type]
    lambda: kernels.gemm(A.astype(np.int16), kernels.pack(np.zeros((40, 2), np.int8), bits=4)),
    lambda: kernels.gemm_saturating(A, kernels.pack(np.zeros((40, 2), np.int8), scales=np.ones((1, 2), np.float32))),
    lambda: kernels.gemm_int16(A.astype(np.int16), kernels.pack(np.zeros((40, 2), np.int8), bits=3)),
    lambda: kernels.gemm_planes(A, W),  # type: ignore[arg-type]
    lambda: kernels.gemm_sequential(X, X.T, block="all"),  # type: ignore[arg-type]
    lambda: kernels.pack(np.zeros((4, 4), np.int8), bits="8"),  # type: ignore[arg-type]
    lambda: kernels.pack(np.zeros((4, 4), np.int8), layout=["KN"]),  # type: ignore[arg-type]
    lambda: kernels.conv2d(IMAGES, FILTERS, strides=1.5),  # type: ignore[arg-type]
    lambda: kernels.conv2d(IMAGES, FILTERS, pads=2**40),
    lambda: kernels.conv2d(IMAGES, FILTERS, pads=2**30),
    lambda: kernels.conv2d(IMAGES, FILTERS, strides=2**63),
    lambda: kernels.max_pool(IMAGES, 3),  # type: ignore[arg-type]
    lambda: kernels.max_pool(IMAGES[:, :0], (2**31 - 1,) * 2, pads=2**31 - 1),
    lambda: kernels.conv_chain(PHOTOS, CHAIN, clamp=(1.0, 0.0)),
    lambda: kernels.conv_chain(PHOTOS, CHAIN, clamp=(float("nan"), 0.0)),
    lambda: kernels.conv_chain(PHOTOS, CHAIN, clamp=0.0),  # type: ignore[arg-type]
    lambda: kernels.scale_sums(SUMS, np.ones(3, np.float32), np.ones(5, np.float32), clamp=(2.0, 1.0)),
    lambda: kernels.ranges(X, 2),
    lambda: kernels.ranges(np.float32(1), 0),
    lambda: kernels.histogram(X, None, 8),  # type: ignore[arg-type]
    lambda: kernels.quantize(X, 0.1, 0, "int7"),
    lambda: kernels.quantize(X, 0.1, 0, clamp=(1,)),  # type: ignore[arg-type]
    lambda: kernels.quantize(X, "fine"),
    lambda: kernels.fake_quantize(X, [0.1, 0.2], 0),
    lambda: kernels.dynamic_quantize(X, formula=np.array(["onnx", "torch"])),  # type: ignore[arg-type]
    lambda: kernels.softmax(A.astype(np.int16), 1e20),
    lambda: kernels.softmax(A, 0.1, formula="ort", result_zero_point=2**40),
    lambda: kernels.layer_norm(X.astype(np.int16), np.ones(5, np.int16), weight_scale=0.1, variance_limit=0.5),  # type: ignore[arg-type]
    lambda: kernels.unpack_int4(A[0], 1.5),  # type: ignore[arg-type]
    lambda: kernels.quantize_multiplier(float("nan")),
    lambda: kernels.quantize_multiplier("big"),
    lambda: kernels.Epilogue(kind="requant", multipliers=0.1, clamp=3),  # type: ignore[arg-type]
    lambda: kernels.Epilogue(kind="requant", multipliers=0.1, residual=A),  # type: ignore[arg-type]
    lambda: kernels.narrow(X, 3),  # type: ignore[arg-type]
    lambda: kernels.sum_f32(X, 10**30),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_one_error_names_it(number: int) -> None:
    with pytest.raises((Error, MemoryError)):
        REFUSED[number]()


def test_a_forged_object_reaches_no_memory() -> None:
    forged = kernels.Packed(k=40, n=24, positive=W.positive, negative=W.negative, data=W.data)
    with pytest.raises((Error, TypeError)):
        kernels.gemm(A, forged)
    image = dataclasses.replace(FILTERS, door=None)
    with pytest.raises((Error, TypeError, ValueError)):
        kernels.conv2d(IMAGES, image)
    with pytest.raises((Error, ValueError)):
        kernels.conv_chain(PHOTOS, dataclasses.replace(CHAIN, data=np.zeros(3, np.float32)))


def test_out_is_no_part_of_the_bias() -> None:
    memory = np.zeros(33 * 24, np.int32)
    for _ in range(2):  # a remembered call too
        kernels.gemm(A, W, bias=memory[:24].copy(), out=memory.reshape(33, 24))
        with pytest.raises(Error, match="overlaps"):
            kernels.gemm(A, W, bias=memory[:24], out=memory.reshape(33, 24))


def test_arrays_of_an_epilogue_are_its_own() -> None:
    bias = np.ones(24, np.float32)
    epilogue = kernels.Epilogue(kind="float", multipliers=1.0, float_bias=bias)
    before = kernels.gemm(A, W, epilogue=epilogue)
    bias.resize(10**6, refcheck=False)
    bias[:] = 9
    assert (kernels.gemm(A, W, epilogue=epilogue) == before).all()


def test_copies_and_pickles() -> None:
    assert copy.copy(W) is W and copy.deepcopy({"w": W})["w"] is W
    with pytest.raises(Error, match="pack them again"):
        pickle.dumps(W)
    lut = np.arange(-128, 128).astype(np.int8)[::-1]
    given = kernels.Epilogue(kind="requant", multipliers=np.full(24, 0.01, np.float32), zero_point=3, lut=lut)
    for again in (pickle.loads(pickle.dumps(given)), copy.deepcopy(given)):
        assert (kernels.gemm(A, W, epilogue=again) == kernels.gemm(A, W, epilogue=given)).all()


def test_one_packed_weight_from_many_threads() -> None:
    want = kernels.gemm(A, W)

    def many(threads: int) -> bool:
        return all((kernels.gemm(A, W, threads=threads) == want).all() for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(many, [1, 2, 3, 5, 8, 16, 33, 10**9]))


def test_no_more_threads_than_the_system_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    want, submitted = kernels.gemm(A, W), []

    class Refusing(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            submitted.append(super().submit(fn, *args, **kwargs))  # queued, as the standard library has it then
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(operands, "_pool", Refusing(1))
    assert (kernels.gemm(A, W, threads=8) == want).all()
    assert len(submitted) == 1


def test_an_error_of_one_run_is_the_callers() -> None:
    def work(first: int, last: int) -> None:
        if first >= 4:
            raise Error("the second run")

    with pytest.raises(Error, match="the second run"):
        operands.over_ranges(8, 2, work)


def test_nobody_writes_after_an_interrupt() -> None:
    running, done = threading.Event(), threading.Event()

    def work(first: int, last: int) -> None:
        if threading.current_thread() is threading.main_thread():
            running.wait(10)
            signal.raise_signal(signal.SIGINT)
        else:
            running.set()
            time.sleep(0.2)
            done.set()

    # A job in the background starts with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            operands.over_ranges(2, 2, work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_multiplies_and_runs_sessions() -> None:
    """Threads stay with the parent: the child makes its own, or works alone; it neither hangs nor changes a bit."""
    code = """
import os, sys, numpy as np, hwq
from hwq import kernels
from hwq.verification.onnx_dialects import drawn
from hwq.verification.onnx_models import CASES
from hwq.importers.onnx import read
rng = np.random.default_rng(1)
a, w = rng.integers(0, 256, (64, 40), np.uint8), kernels.pack(rng.integers(-128, 128, (40, 24), np.int8))
model, feeds = drawn("QLinearConv", CASES["QLinearConv"], 0)
session = hwq.compile(read(model), "ort").session(threads=3)
want, made = kernels.gemm(a, w, threads=4), session(feeds)
child = os.fork()
if child == 0:
    same = (kernels.gemm(a, w, threads=4) == want).all() and (session(feeds) == made).all()
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_without_memory_there_is_a_memory_error() -> None:
    code = """
import resource, numpy as np
from hwq import kernels
from hwq.errors import Error
rng = np.random.default_rng(1)
w = kernels.pack(rng.integers(-128, 128, (256, 256), np.int8))
a = rng.integers(0, 256, (20000, 256), np.uint8)
want = kernels.gemm(a[:100], w)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for spare in (0, 1 << 16, 1 << 20, 1 << 22, 1 << 24):
    resource.setrlimit(resource.RLIMIT_AS, (held + spare, resource.RLIM_INFINITY))
    for call in (lambda: kernels.gemm(a, w), lambda: kernels.gemm(a, w, threads=16), lambda: kernels.quantize(np.broadcast_to(np.float32(1), (1 << 20,)), 1.0),
                 lambda: kernels.pack(np.broadcast_to(np.int8(1), (2048, 2048)))):
        try:
            call()
        except (MemoryError, Error):
            pass
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert (kernels.gemm(a[:100], w) == want).all()
print("whole")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "whole\n", ran.stderr[-2000:]
