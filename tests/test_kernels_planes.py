"""Weights of 1 to 3 bits by lookup: exact on every path, every tail, and at the bound of the 16-bit sums."""

from __future__ import annotations

import numpy as np
import pytest

from hwq import kernels
from hwq.errors import Error


@pytest.mark.parametrize("path", kernels.available_isas())
def test_lookups_give_the_exact_sums(path: str) -> None:
    random = np.random.default_rng(0)
    own = kernels.isa()
    try:
        kernels.use_isa(path)
        for bits in (1, 2, 3):
            for signed in (False, True):
                low = -(1 << (bits - 1)) if signed else 0
                for m, n, k in ((1, 1, 1), (1, 33, 9), (3, 64, 40), (2, 31, 127), (1, 5, 0), (0, 7, 8), (2, 40, 700)):
                    a = random.integers(0, 256, (m, k), dtype=np.uint8)
                    w = random.integers(low, low + (1 << bits), (k, n)).astype(np.int8)
                    packed = kernels.pack_planes(w, bits, signed=signed)
                    made = kernels.gemm_planes(a, packed, a_zero_point=77, threads=2)
                    assert made.dtype == np.int32
                    assert np.array_equal(made, (a.astype(np.int64) - 77) @ w.astype(np.int64)), (bits, signed, m, n, k)
        extreme = np.full((2, 3000), 255, np.uint8), np.full((3000, 34), 7, np.int8)
        made = kernels.gemm_planes(extreme[0], kernels.pack_planes(extreme[1], 3, signed=False))
        assert (made == 255 * 7 * 3000).all()
    finally:
        kernels.use_isa(own)


def test_planes_take_the_bits_they_say() -> None:
    packed = kernels.pack_planes(np.zeros((64, 32), np.int8), 2)
    assert packed.bytes == 64 * 32 * 2 // 8
    out = np.empty((3, 32), np.int32)
    assert kernels.gemm_planes(np.ones((3, 64), np.uint8), packed, out=out) is out and not out.any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(Error, match="does not fit 2 signed bits"):
        kernels.pack_planes(np.full((8, 8), 2, np.int8), 2)
    with pytest.raises(Error, match="1, 2 or 3 bits"):
        kernels.pack_planes(np.zeros((8, 8), np.int8), 4)
    with pytest.raises(Error, match="too long"):
        kernels.pack_planes(np.zeros(((1 << 19) + 1, 1), np.int8), 1)
    packed = kernels.pack_planes(np.zeros((8, 8), np.int8), 1)
    with pytest.raises(Error, match="K = 8"):
        kernels.gemm_planes(np.zeros((2, 9), np.uint8), packed)
