"""Float32 in the one fixed order: bits against the NumPy reading, values against float64, on every path."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwq import kernels, numerics
from hwq.errors import Error

PATHS = kernels.available_isas()


@pytest.fixture(params=PATHS, autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.use_isa(request.param):
        yield request.param


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint32)


def reading(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return numerics.dot_f32(a[..., :, None, :], np.swapaxes(b, -1, -2)[..., None, :, :])


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (3, 8, 4), (4, 9, 5), (7, 31, 13), (2, 100, 70), (5, 0, 3), (0, 4, 3)]
)
def test_products_have_the_fixed_orders_bits(m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(1)
    # Wide exponents: another order of additions gives other bits.
    a = (rng.standard_normal((m, k)) * 10.0 ** rng.uniform(-4, 4, (m, k))).astype(np.float32)
    b = (rng.standard_normal((k, n)) * 10.0 ** rng.uniform(-4, 4, (k, n))).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    for threads in (1, 3):
        assert np.array_equal(bits(kernels.matmul_f32(a, b, threads=threads)), bits(reading(a, b)))
        packed = kernels.pack_float(np.ascontiguousarray(b.T), layout="NK")
        assert np.array_equal(bits(kernels.gemm(a, packed, bias=bias, threads=threads)), bits(reading(a, b) + bias))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.integers(0, 40), st.integers(0, 12), st.integers(0, 2**32))
def test_every_small_shape_is_the_same_on_every_path(m: int, k: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    want = bits(reading(a, b))
    for name in PATHS:
        with kernels.use_isa(name):
            assert np.array_equal(bits(kernels.matmul_f32(a, b)), want), name


def test_values_are_close_to_float64() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((20, 3000)).astype(np.float32), rng.standard_normal((3000, 9)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    # 3000 / 8 fused steps and 3 additions: error below 378 * 2^-24 * sum |a b|.
    bound = 378 * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))
    assert np.all(np.abs(kernels.matmul_f32(a, b) - exact) <= bound)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (6, 31, 13), (5, 700, 25), (3, 0, 4), (0, 4, 3)])
def test_float64_is_one_chain_however_it_is_cut(m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 4, shape) for shape in ((m, k), (k, n)))
    with kernels.use_isa("ref"):
        want = kernels.matmul_f64(a, b)
    got = kernels.matmul_f64(a, b, threads=3)
    assert got.tobytes() == want.tobytes() == kernels.matmul_f64(a.T, b, transposed=True).tobytes()
    first = kernels.matmul_f64(a[:, : k // 3], b[: k // 3])
    assert kernels.matmul_f64(a[:, k // 3 :], b[k // 3 :], out=first, accumulate=True).tobytes() == want.tobytes()
    assert np.all(np.abs(got - a @ b) <= 2.0 * k * 2.0**-53 * (np.abs(a) @ np.abs(b)))


def test_subnormals_infinities_and_nan() -> None:
    tiny = np.full((1, 3), 1e-30, np.float32)
    assert kernels.matmul_f32(tiny, tiny.T * np.float32(1e-10)).item() == np.float32(3e-70)
    assert kernels.matmul_f32(tiny, np.full((3, 1), 1e-12, np.float32)).item() == 3 * float(np.float32(1e-42)) > 0
    a = np.array([[np.inf, 1.0], [np.nan, 1.0], [3e38, 3e38]], np.float32)
    got = kernels.matmul_f32(a, np.array([[1.0, 0.0], [1.0, 1.0]], np.float32))
    assert np.isinf(got[0, 0]) and np.isnan(got[0, 1]) and np.isnan(got[1]).all() and np.isinf(got[2, 0])


def test_batches_vectors_and_out() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 1, 4, 11)).astype(np.float32), rng.standard_normal((3, 11, 5)).astype(np.float32)
    want = reading(np.broadcast_to(a, (2, 3, 4, 11)), np.broadcast_to(b, (2, 3, 11, 5)))
    assert np.array_equal(kernels.matmul_f32(a, b), want)
    out = np.empty((4, 5), np.float32)
    assert kernels.matmul_f32(a[0, 0], b[0], out=out) is out and np.array_equal(out, want[0, 0])
    vector = a[0, 0, 0]
    assert np.array_equal(kernels.matmul_f32(vector, b[0]), want[0, 0, 0])
    assert np.array_equal(kernels.matmul_f32(b[0].T, vector), kernels.matmul_f32(b[0].T, vector[:, None])[:, 0])
    assert kernels.matmul_f32(vector, vector).shape == ()


def test_bad_shapes_and_types() -> None:
    one = np.ones((2, 3), np.float32)
    for call in (
        lambda: kernels.matmul_f32(one, one),
        lambda: kernels.matmul_f32(one.astype(np.float64), one.T),
        lambda: kernels.matmul_f32(one, one.T, bias=np.ones(3, np.float32)),
        lambda: kernels.matmul_f32(np.ones((2, 2, 3), np.float32), np.ones((3, 3, 2), np.float32)),
        lambda: kernels.matmul_f32(np.float32(1), one),
        lambda: kernels.matmul_f64(one, one.T),
        lambda: kernels.matmul_f64(np.ones((2, 3)), np.ones((2, 3))),
        lambda: kernels.matmul_f64(np.ones((2, 3)), np.ones((3, 2)), accumulate=True),
        lambda: kernels.sum_f32(one, 2),
        lambda: kernels.sum_f32(one, (0, 0)),
        lambda: kernels.gemm(one, kernels.pack_float(one.T), epilogue=kernels.Epilogue()),
    ):
        with pytest.raises(Error):
            call()


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, (0, 1), (1, 2), (0, 2), (2, 0, 1), ()])
def test_sums_in_the_fixed_order(axis: object) -> None:
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((5, 9, 13)) * 10.0 ** rng.uniform(-4, 4, (5, 9, 13))).astype(np.float32)
    axes = (0, 1, 2) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = sorted(d % 3 for d in axes)
    kept = [d for d in range(3) if d not in axes]
    moved = x.transpose(*kept, *axes).reshape(*(x.shape[d] for d in kept), -1)
    want = numerics.sum_f32(moved)
    assert np.array_equal(bits(kernels.sum_f32(x, axis)), bits(want))
    assert kernels.sum_f32(x, axis, keepdims=True).shape == tuple(1 if d in axes else x.shape[d] for d in range(3))
    assert kernels.sum_f32(np.zeros((3, 0), np.float32), 1).tolist() == [0, 0, 0]
