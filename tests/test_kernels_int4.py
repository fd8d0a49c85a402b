"""Weights of at most 4 bits against int64 per group and the stated order of groups, on every path."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from hwq import kernels, numerics
from hwq.errors import Error

PATHS = kernels.available_isas()


@pytest.fixture(params=PATHS, autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.use_isa(request.param):
        yield request.param


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: type, bits: int = 8) -> np.ndarray:
    lo, hi = (0, 2**bits) if dtype == np.uint8 else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return rng.integers(lo, hi, shape).astype(dtype)


def fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """float32 x * y + z rounded once: the product is exact in float64 and long double holds the sum of 24-bit neighbors."""
    return (x.astype(np.longdouble) * y.astype(np.longdouble) + z.astype(np.longdouble)).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("w_dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("a_dtype", [np.uint8, np.int8])
def test_unscaled_weights_equal_the_int64_reading(a_dtype: type, w_dtype: type, bits: int) -> None:
    rng = np.random.default_rng(1)
    for m, k, n in [(1, 1, 1), (4, 32, 16), (5, 77, 33), (27, 300, 18), (0, 5, 3), (2, 0, 3)]:
        a, w = draw(rng, (m, k), a_dtype), draw(rng, (k, n), w_dtype, bits)
        za, zw = int(draw(rng, (), a_dtype)), draw(rng, (n,), w_dtype, bits).astype(np.int64)
        bias = rng.integers(-1000, 1000, n).astype(np.int32)
        packed = kernels.pack(w, bits=bits, zero_point=zw)
        want = (a.astype(np.int64) - za) @ (w.astype(np.int64) - zw) + bias
        for threads in (1, 3):
            assert np.array_equal(kernels.gemm(a, packed, a_zero_point=za, bias=bias, threads=threads), want), (m, k, n)
        turned = kernels.pack(np.ascontiguousarray(w.T), bits=bits, zero_point=zw, layout="NK")
        assert np.array_equal(kernels.gemm(a, turned, a_zero_point=za), want - bias)


def test_requantized_and_half_the_bytes() -> None:
    rng = np.random.default_rng(2)
    a, w = draw(rng, (33, 128), np.int8), draw(rng, (128, 40), np.int8, 4)
    packed = kernels.pack(w, bits=4)
    assert packed.nbytes == 128 * 48 // 2
    finish = kernels.Epilogue(kind="requant", multipliers=np.full(40, 0.01, np.float32), dtype="uint8", zero_point=99)
    acc = (a.astype(np.int64) @ w.astype(np.int64)).astype(np.int32)
    want = numerics.requantize(acc, "fp32", multipliers=np.full(40, 0.01, np.float32), zero_point=99, clamp=(0, 255))
    assert np.array_equal(kernels.gemm(a, packed, epilogue=finish), want)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_are_added_in_increasing_k(group: int, symmetric: bool) -> None:
    rng = np.random.default_rng(3)
    for m, n in [(1, 130), (5, 17), (26, 40)]:
        k = 3 * group - 11
        blocks = 3
        a, w = draw(rng, (m, k), np.uint8), draw(rng, (k, n), np.int8, 4)
        zw = np.zeros((blocks, n), np.int64) if symmetric else draw(rng, (blocks, n), np.int8, 4).astype(np.int64)
        scales = (rng.standard_normal((blocks, n)) * 10.0 ** rng.uniform(-3, 3, (blocks, n))).astype(np.float32)
        packed = kernels.pack(w, bits=4, group=group, scales=scales, zero_point=zw)
        floats = rng.standard_normal((m, k)).astype(np.float32)
        whole, hybrid = np.zeros((m, n), np.float32), np.zeros((m, n), np.float32)
        for g in range(blocks):
            run = slice(g * group, min(k, (g + 1) * group))
            centered = w[run].astype(np.int64) - zw[g]
            whole = fma(((a[:, run].astype(np.int64) - 7) @ centered).astype(np.float32), scales[g], whole)
            chain = np.zeros((m, n), np.float32)
            for i in range(run.start, run.stop):
                chain = fma(floats[:, i, None], centered[i - run.start].astype(np.float32), chain)
            hybrid = fma(chain, scales[g], hybrid)
        for threads in (1, 2):
            assert np.array_equal(kernels.gemm(a, packed, a_zero_point=7, threads=threads), whole)
            assert np.array_equal(kernels.gemm(floats, packed, threads=threads), hybrid)
        finish = kernels.Epilogue(kind="requant", multipliers=np.float32(0.03), dtype="int8", zero_point=-4)
        scaled = np.rint(np.clip(whole * np.float32(0.03), -124, 131)).astype(np.int64) - 4
        assert np.array_equal(kernels.gemm(a, packed, a_zero_point=7, epilogue=finish), scaled)


def test_bad_operands() -> None:
    w, scales = np.ones((64, 3), np.int8), np.ones((2, 3), np.float32)
    good, plain = kernels.pack(w, bits=4, group=32, scales=scales), kernels.pack(w, bits=4)
    a, floats = np.ones((2, 64), np.int8), np.ones((2, 64), np.float32)
    for call in (
        lambda: kernels.pack(w * 8, bits=4),
        lambda: kernels.pack(w, bits=4, group=20, scales=scales),
        lambda: kernels.pack(w, bits=4, group=32),
        lambda: kernels.pack(w, bits=4, group=32, scales=scales[:1]),
        lambda: kernels.pack(w, bits=4, zero_point=8),
        lambda: kernels.pack(w, bits=4, zero_point=np.zeros((5, 3), np.int64)),
        lambda: kernels.gemm(floats, plain),
        lambda: kernels.gemm(a[:, :5], good),
        lambda: kernels.gemm(a, good, bias=np.zeros(3, np.int32)),
        lambda: kernels.gemm(a, good, epilogue=kernels.Epilogue()),
        lambda: kernels.gemm(a, good, epilogue=kernels.Epilogue(kind="requant", rounding="f64", multipliers=1.0)),
    ):
        with pytest.raises(Error):
            call()
