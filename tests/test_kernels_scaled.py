"""8-bit weights with groups of scales against the stated order, and against exact integers, on every path."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from hwq import kernels
from hwq.errors import Error
from tests.test_kernels_int4 import draw, fma

PATHS = kernels.available_isas()


@pytest.fixture(params=PATHS, autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.use_isa(request.param):
        yield request.param


@pytest.mark.parametrize("w_dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("group", [32, 64, 128, None])
def test_groups_are_added_in_increasing_k(group: int | None, w_dtype: type) -> None:
    rng = np.random.default_rng(4)
    for m, n, symmetric in [(1, 130, True), (5, 17, False), (9, 40, True)]:
        k = 2 * (group or 100) + 21
        size = group or k
        blocks = -(-k // size)
        w, scales = draw(rng, (k, n), w_dtype), rng.standard_normal((blocks, n)).astype(np.float32)
        middle = 128 if w_dtype == np.uint8 else 0
        zw = np.full((blocks, n), middle, np.int64) if symmetric else draw(rng, (blocks, n), w_dtype).astype(np.int64)
        packed = kernels.pack(w, group=group, scales=scales, zero_point=zw)
        turned = kernels.pack(np.ascontiguousarray(w.T), group=group, scales=scales, zero_point=zw, layout="NK")
        a, floats = draw(rng, (m, k), np.uint8), rng.standard_normal((m, k)).astype(np.float32)
        hybrid, whole = np.zeros((m, n), np.float32), np.zeros((m, n), np.float32)
        for g in range(blocks):
            run = slice(g * size, min(k, (g + 1) * size))
            centered = w[run].astype(np.int64) - zw[g]
            whole = fma(((a[:, run].astype(np.int64) - 7) @ centered).astype(np.float32), scales[g], whole)
            chain = np.zeros((m, n), np.float32)
            for i in range(run.start, run.stop):
                chain = fma(floats[:, i, None], centered[i - run.start].astype(np.float32), chain)
            hybrid = fma(chain, scales[g], hybrid)
        for threads in (1, 2):
            for weights in (packed, turned):
                assert np.array_equal(kernels.gemm(floats, weights, threads=threads), hybrid)
                assert np.array_equal(kernels.gemm(a, weights, a_zero_point=7, threads=threads), whole)
        bias = rng.standard_normal(n).astype(np.float32)
        finish = kernels.Epilogue(kind="float", multipliers=np.float32(0.5), float_bias=bias)
        assert np.array_equal(kernels.gemm(floats, packed, epilogue=finish), hybrid * np.float32(0.5) + bias)


def test_bad_operands() -> None:
    w, scales = np.ones((600, 3), np.int8), np.ones((1, 3), np.float32)
    wide, a = kernels.pack(w, scales=scales), np.ones((2, 600), np.int8)
    assert wide.scaled and wide.group == 600
    for call in (
        lambda: kernels.pack(w, group=32),
        lambda: kernels.pack(w, group=30, scales=np.ones((20, 3), np.float32)),
        lambda: kernels.pack(w, group=300, scales=scales),
        lambda: kernels.pack(w, scales=scales.astype(np.float64)),
        lambda: kernels.pack(w, scales=scales * np.float32(np.nan)),
        lambda: kernels.pack(w, scales=scales, zero_point=300),
        lambda: kernels.gemm(a, wide),
        lambda: kernels.gemm(a.astype(np.float32)[:, :5], wide),
        lambda: kernels.gemm(a.astype(np.float32), wide, bias=np.zeros(3, np.int32)),
        lambda: kernels.gemm(a.astype(np.float32), wide, epilogue=kernels.Epilogue()),
    ):
        with pytest.raises(Error):
            call()
