"""GEMM, epilogues and paths against an int64 reading; every path against it, so every path equals ref."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwq import _kernels, kernels, numerics
from hwq.errors import Error

PATHS = kernels.available_isas()
BYTES = (np.uint8, np.int8)


@pytest.fixture(params=PATHS, autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.use_isa(request.param):
        yield request.param


def fill(rng: np.random.Generator, shape: tuple[int, ...], dtype: type, how: str = "random") -> np.ndarray:
    lo, hi = np.iinfo(dtype).min, np.iinfo(dtype).max
    if how == "random":
        return rng.integers(lo, hi + 1, shape).astype(dtype)
    if how == "alternating":
        return np.where(np.indices(shape).sum(0) % 2, hi, lo).astype(dtype)
    return np.full(shape, {"lowest": lo, "highest": hi}[how], dtype)


def exact(a: np.ndarray, w: np.ndarray, za: int = 0, zw: object = 0, bias: object = 0) -> np.ndarray:
    return (a.astype(np.int64) - za) @ (w.astype(np.int64) - np.asarray(zw, np.int64)) + bias


# ---- GEMM ----


@pytest.mark.parametrize("w_dtype", BYTES)
@pytest.mark.parametrize("a_dtype", BYTES)
@pytest.mark.parametrize("how", ["random", "lowest", "highest", "alternating"])
def test_gemm_equals_the_int64_reading(a_dtype: type, w_dtype: type, how: str) -> None:
    rng = np.random.default_rng(1)
    for m, k, n in [(1, 1, 1), (4, 16, 16), (5, 7, 17), (64, 64, 48), (65, 33, 31), (3, 300, 270)]:
        a, w = fill(rng, (m, k), a_dtype, how), fill(rng, (k, n), w_dtype, how)
        za, zw = int(fill(rng, (), a_dtype)), fill(rng, (n,), w_dtype).astype(np.int64)
        bias = rng.integers(-(2**20), 2**20, n).astype(np.int32)
        got = kernels.gemm(a, kernels.pack(w, zero_point=zw), a_zero_point=za, bias=bias)
        assert got.dtype == np.int32
        assert np.array_equal(got, exact(a, w, za, zw, bias)), (m, k, n)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(0, 40), st.integers(0, 40), st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_gemm_of_every_small_shape(m: int, k: int, n: int, signed_a: bool, signed_w: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, w = fill(rng, (m, k), BYTES[signed_a]), fill(rng, (k, n), BYTES[signed_w])
    za, zw = int(fill(rng, (), BYTES[signed_a])), int(fill(rng, (), BYTES[signed_w]))
    packed = kernels.pack(np.ascontiguousarray(w.T), zero_point=zw, layout="NK")
    for name in PATHS:
        with kernels.use_isa(name):
            assert np.array_equal(kernels.gemm(a, packed, a_zero_point=za), exact(a, w, za, zw)), name


def test_every_tail_of_n_and_k() -> None:
    rng = np.random.default_rng(2)
    for n in range(0, 34):
        a, w = fill(rng, (3, n), np.uint8), fill(rng, (n, 35 - n), np.int8)
        assert np.array_equal(kernels.gemm(a, kernels.pack(w), a_zero_point=3), exact(a, w, 3))
    for m in range(0, 10):
        a, w = fill(rng, (m, 5), np.int8), fill(rng, (5, 18), np.uint8)
        assert np.array_equal(kernels.gemm(a, kernels.pack(w, zero_point=128), a_zero_point=-5), exact(a, w, -5, 128))


def test_no_products_give_the_bias() -> None:
    packed = kernels.pack(np.zeros((0, 5), np.int8))
    assert np.array_equal(kernels.gemm(np.zeros((3, 0), np.uint8), packed), np.zeros((3, 5)))
    bias = np.arange(5, dtype=np.int32)
    assert np.array_equal(kernels.gemm(np.zeros((2, 0), np.int8), packed, bias=bias), np.tile(bias, (2, 1)))
    assert kernels.gemm(np.zeros((0, 0), np.int8), packed).shape == (0, 5)


def test_leading_dimensions_out_and_unaligned_operands() -> None:
    rng = np.random.default_rng(3)
    raw = fill(rng, (2 * 3 * 21 + 1,), np.uint8)
    a, w = raw[1:].reshape(2, 3, 21), fill(rng, (21, 19), np.int8)
    guarded = np.full(2 * 3 * 19 + 2, 77, np.int32)
    out = guarded[1:-1].reshape(2, 3, 19)
    assert kernels.gemm(a, kernels.pack(w), out=out) is out
    assert np.array_equal(out, exact(a, w))
    assert guarded[0] == guarded[-1] == 77


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    rng = np.random.default_rng(4)
    epilogue = kernels.Epilogue(kind="requant", multipliers=np.linspace(1e-4, 1e-3, 130), dtype="uint8", zero_point=9)
    packed = kernels.pack(fill(rng, (70, 130), np.int8))
    for rows in (1, 2, 67):
        a = fill(rng, (rows, 70), np.uint8)
        one = kernels.gemm(a, packed, epilogue=epilogue)
        assert np.array_equal(one, kernels.gemm(a, packed, epilogue=epilogue, threads=threads))


def test_batched_product_of_activations() -> None:
    rng = np.random.default_rng(5)
    a, b = fill(rng, (2, 1, 5, 9), np.uint8), fill(rng, (3, 9, 4), np.uint8)
    want = (a.astype(np.int64) - 100) @ (b.astype(np.int64) - 30)
    assert np.array_equal(kernels.matmul(a, b, a_zero_point=100, b_zero_point=30), want)


# ---- Overflow ----


def test_what_may_overflow_raises_and_wrap_wraps() -> None:
    k = 40000
    a, w = np.full((1, k), 255, np.uint8), np.full((k, 1), 255, np.uint8)
    packed = kernels.pack(w)
    with pytest.raises(Error, match="may overflow in 1 of 1 columns"):
        kernels.gemm(a, packed)
    assert kernels.gemm(a, packed, wrap=True).item() == 255 * 255 * k - 2**32 == -1693967296


def test_the_proof_is_tight() -> None:
    # 2^31 - 1 = 2147483647: 65793 * 255 * 128 = 2147483520 fits downwards, and 127 more of bias still does.
    packed = kernels.pack(np.full((65793, 1), -128, np.int8))
    a = np.full((1, 65793), 255, np.uint8)
    assert kernels.gemm(a, packed, bias=np.array([-128], np.int32)).item() == -(2**31)
    with pytest.raises(Error, match="may overflow"):
        kernels.gemm(a, packed, bias=np.array([-129], np.int32))
    # What cannot overflow for these weights passes, however long: half the weights are zero.
    longer = np.zeros((140000, 1), np.int8)
    longer[::3] = -128
    a = np.full((1, 140000), 255, np.uint8)
    assert kernels.gemm(a, kernels.pack(longer)).item() == exact(a, longer).item()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.booleans(), st.integers(0, 2**32))
def test_the_proven_range_is_reached(k: int, n: int, signed: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = BYTES[signed]
    w, za, zw = fill(rng, (k, n), np.int8), int(fill(rng, (), dtype)), int(fill(rng, (), np.int8))
    low, high = kernels.pack(w, zero_point=zw).accumulator_range(np.dtype(dtype).name, za)
    lo, hi = np.iinfo(dtype).min, np.iinfo(dtype).max
    centered = w.astype(np.int64) - zw
    best = np.where(centered > 0, hi, lo).T.astype(np.int64) - za
    worst = np.where(centered > 0, lo, hi).T.astype(np.int64) - za
    assert np.array_equal(high, np.einsum("nk,kn->n", best, centered))
    assert np.array_equal(low, np.einsum("nk,kn->n", worst, centered))


# ---- Epilogue ----

CLAMPS = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32768, 32767), "uint16": (0, 65535)}


def accumulators(rng: np.random.Generator, columns: int) -> np.ndarray:
    """Random ones of every size, extremes, and small ones, among which powers of two meet exact ties."""
    sizes = rng.integers(1, 31, (150, columns))
    mixed = rng.integers(-(2**31), 2**31, (150, columns)) >> (31 - sizes)
    edges = np.resize(np.array([0, 1, -1, 2**31 - 1, -(2**31), 2**24 + 1, -(2**24) - 1]), (7, columns))
    small = np.resize(np.arange(-600, 600), (-(-1200 // columns), columns))
    return np.concatenate([mixed, edges, small]).astype(np.int32)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
@pytest.mark.parametrize("rounding", kernels.ROUNDINGS)
def test_every_rounding_equals_its_numpy_reading(rounding: str, dtype: str) -> None:
    rng = np.random.default_rng(6)
    for columns in (1, 5, 16, 37):
        acc = accumulators(rng, columns)
        for power_of_two in (False, True):
            real = 2.0 ** rng.integers(-9, 0, columns) if power_of_two else np.exp(rng.uniform(-12, 0, columns))
            if rounding in ("fp32", "f64"):
                fields: dict[str, object] = {"multipliers": real.astype(np.float32) if rounding == "fp32" else real}
            elif rounding == "xnn-fixed":
                fields = {"multipliers": rng.integers(1, 2**21, columns), "shifts": rng.integers(1, 31, columns)}
            else:
                multipliers, shifts = kernels.quantize_multiplier(real)
                if rounding == "mbqm64":
                    acc = acc.astype(np.int64)
                fields = {"multipliers": multipliers, "shifts": shifts}
            lo, hi = CLAMPS[dtype]
            for zero_point, clamp in ((0, None), (hi // 3, (lo + hi // 8, hi - 3))):
                epilogue = kernels.Epilogue(
                    kind="requant", rounding=rounding, dtype=dtype, zero_point=zero_point, clamp=clamp, **fields
                )
                want = numerics.requantize(acc, rounding, zero_point=zero_point, clamp=clamp or (lo, hi), **fields)
                got = kernels.requantize(acc, epilogue)
                assert got.dtype == np.dtype(dtype)
                assert np.array_equal(got, want), (columns, power_of_two)


@pytest.mark.parametrize("rounding", ["mbqm64", "f64"])
def test_wide_accumulators(rounding: str) -> None:
    rng = np.random.default_rng(11)
    acc = rng.integers(-(2**46), 2**46, (40, 7)) >> rng.integers(0, 40, (40, 7))
    real = np.exp(rng.uniform(-24, -8, 7))
    multipliers, shifts = kernels.quantize_multiplier(real)
    fields = {"multipliers": real} if rounding == "f64" else {"multipliers": multipliers, "shifts": shifts}
    epilogue = kernels.Epilogue(kind="requant", rounding=rounding, dtype="int16", **fields)
    want = numerics.requantize(acc, rounding, clamp=(-32768, 32767), **fields)
    assert np.array_equal(kernels.requantize(acc, epilogue), want)


def test_left_shifts_wrap_as_the_reference_does() -> None:
    acc = np.array([[2**30, -(2**30), 2**31 - 1, 3]], np.int32)
    multiplier, shift = kernels.quantize_multiplier(5.3)
    for rounding in ("gemmlowp", "ruy"):
        fields = {"multipliers": int(multiplier), "shifts": int(shift)}
        epilogue = kernels.Epilogue(kind="requant", rounding=rounding, dtype="int8", **fields)
        assert np.array_equal(kernels.requantize(acc, epilogue), numerics.requantize(acc, rounding, **fields))


def test_gemm_with_each_epilogue() -> None:
    rng = np.random.default_rng(7)
    a, w = fill(rng, (33, 50), np.uint8), fill(rng, (50, 45), np.int8)
    packed, acc = kernels.pack(w), exact(a, w, 7)
    scales = np.exp(rng.uniform(-9, -5, 45)).astype(np.float32)
    bias = rng.standard_normal(45).astype(np.float32) * 50
    got = kernels.gemm(
        a, packed, a_zero_point=7, epilogue=kernels.Epilogue(kind="float", multipliers=scales, float_bias=bias)
    )
    assert np.array_equal(got, acc.astype(np.float32) * scales + bias)
    fbgemm = kernels.Epilogue(kind="requant", multipliers=scales, float_bias=bias, dtype="uint8", zero_point=130)
    want = numerics.requantize(acc, "fp32", multipliers=scales, float_bias=bias, zero_point=130, clamp=(0, 255))
    assert np.array_equal(kernels.gemm(a, packed, a_zero_point=7, epilogue=fbgemm), want)
    table = rng.integers(-128, 128, 256).astype(np.int8)
    tabled = kernels.Epilogue(kind="requant", multipliers=scales, dtype="int8", zero_point=-3, lut=table)
    plain = numerics.requantize(acc, "fp32", multipliers=scales, zero_point=-3)
    assert np.array_equal(kernels.gemm(a, packed, a_zero_point=7, epilogue=tabled), table[plain + 128])


def test_a_residual_joins_last() -> None:
    rng = np.random.default_rng(8)
    a, w, skip = fill(rng, (70, 20), np.int8), fill(rng, (20, 300), np.int8), fill(rng, (70, 300), np.int8)
    scales = {"a_scale": 0.11, "b_scale": 0.07, "scale": 0.13, "a_zero_point": 4, "b_zero_point": -9, "zero_point": 2}
    operator = kernels.Binary(formula="tflite-add", a_dtype="int8", b_dtype="int8", dtype="int8", **scales)
    epilogue = kernels.Epilogue(kind="requant", multipliers=1e-3, dtype="int8", zero_point=4, residual=operator)
    middle = numerics.requantize(exact(a, w), "fp32", multipliers=1e-3, zero_point=4)
    want = numerics.binary("tflite-add", middle, skip, clamp=(-128, 127), **scales)
    for threads in (1, 2):
        got = kernels.gemm(a, kernels.pack(w), epilogue=epilogue, residual=skip, threads=threads)
        assert np.array_equal(got, want)


# ---- The caller's floating-point state ----


@pytest.mark.skipif(_kernels.float_state() == 0, reason="no floating-point control register on this architecture")
@pytest.mark.parametrize("hostile", [0x3F80, 0x5F80, 0x7F80, 0x9FC0, 0xFFC0])  # down, up, to zero, FTZ + DAZ, all
def test_a_hostile_floating_point_state_changes_nothing_and_comes_back(hostile: int) -> None:
    rng = np.random.default_rng(9)
    a, w = fill(rng, (9, 20), np.uint8), fill(rng, (20, 33), np.int8)
    packed = kernels.pack(w)
    x = np.concatenate([rng.standard_normal(200), [1e-42, -1e-42, 0.5, 1.5, 2.5]]).astype(np.float32)
    tiny, floats = np.full((3, 8), 1e-30, np.float32), (rng.standard_normal((8, 5)) * 1e-10).astype(np.float32)
    small, q = x * np.float32(1e-40), np.arange(256, dtype=np.uint8)
    image, kernel = tiny.reshape(1, 1, 3, 8), kernels.pack_conv(floats.reshape(5, 1, 2, 4))
    requant = kernels.Epilogue(kind="requant", multipliers=2.0**-9, dtype="int8")
    subnormal = kernels.Epilogue(kind="float", multipliers=1e-42)

    def everything() -> list[bytes]:
        results = [
            kernels.gemm(a, packed, epilogue=requant, threads=2),
            kernels.gemm(a, packed, epilogue=subnormal, threads=2),
            kernels.matmul_f32(tiny, floats, threads=2),
            kernels.sum_f32(tiny),
            kernels.conv2d(image, kernel),
            kernels.average_pool(image, (2, 2)),
            kernels.quantize(x, 0.25, 3),
            kernels.quantize(small, 1e-40, 3),
            kernels.dequantize(q, 1e-42, 3),
            kernels.add(a, a, a_scale=0.3, b_scale=0.17, scale=0.4),
        ]
        return [r.tobytes() for r in results]

    calm = everything()
    before = _kernels.float_state()
    _kernels.set_float_state(hostile)
    try:
        hot = everything()
        after = _kernels.float_state()
    finally:
        _kernels.set_float_state(before)
    assert after & 0xFFC0 == hostile & 0xFFC0  # all but the sticky exception flags
    assert hot == calm


# ---- Bad operands ----

GOOD = kernels.pack(np.ones((4, 3), np.int8))
A = np.ones((2, 4), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.gemm(A.astype(np.float32), GOOD), "dtype float32"),
        (lambda: kernels.gemm(A[:, :3], GOOD), "K = 4"),
        (lambda: kernels.gemm(A, GOOD, a_zero_point=256), "does not fit uint8"),
        (lambda: kernels.gemm(A, GOOD, a_zero_point=1.5), "one integer"),
        (lambda: kernels.gemm(A, GOOD, bias=np.ones(2, np.int32)), "bias has shape"),
        (lambda: kernels.gemm(A, GOOD, bias=np.full(3, 2**40)), "does not fit int32"),
        (lambda: kernels.gemm(A, GOOD, out=np.empty((2, 3), np.int8)), "out must be"),
        (lambda: kernels.gemm(A, GOOD, out=np.empty((3, 2), np.int32).T), "contiguous"),
        (lambda: kernels.gemm(A, GOOD, threads=0), "threads"),
        (lambda: kernels.gemm(A, GOOD, residual=A), "residual"),
        (
            lambda: kernels.gemm(A, GOOD, epilogue=kernels.Epilogue(kind="float", multipliers=np.ones(4, np.float32))),
            "4 values",
        ),
        (lambda: kernels.pack(np.ones((2, 2))), "dtype float64"),
        (lambda: kernels.pack(np.ones(3, np.int8)), "2-D"),
        (lambda: kernels.pack(np.ones((2, 2), np.int8), zero_point=[1, 2, 3]), "zero_point must be"),
        (lambda: kernels.pack(np.ones((2, 2), np.int8), zero_point=200), "does not fit int8"),
        (lambda: kernels.pack(np.full((2, 2), 8, np.int8), bits=4), "4-bit range"),
        (lambda: kernels.Epilogue(kind="requant"), "needs multipliers"),
        (lambda: kernels.Epilogue(kind="requant", multipliers=np.nan), "finite"),
        (lambda: kernels.Epilogue(kind="requant", multipliers=1.0, clamp=(0, 300)), "does not lie in"),
        (lambda: kernels.Epilogue(kind="requant", multipliers=1.0, zero_point=300), "does not fit"),
        (lambda: kernels.Epilogue(kind="requant", rounding="ruy", multipliers=3, shifts=40), "shifts of ruy"),
        (lambda: kernels.Epilogue(kind="requant", rounding="ruy", multipliers=0.5), "int32"),
        (lambda: kernels.Epilogue(kind="requant", rounding="nearest", multipliers=1.0), "no rounding"),
        (lambda: kernels.Epilogue(kind="requant", multipliers=1.0, lut=np.zeros(255, np.int8)), "256"),
        (lambda: kernels.use_isa("mmx"), "not available"),
    ],
)
def test_bad_operands_say_what_and_why(call: object, message: str) -> None:
    with pytest.raises(Error, match=message):
        call()  # type: ignore[operator]


# ---- Paths ----


def test_paths_can_be_listed_and_chosen() -> None:
    assert PATHS[0] == "ref" and kernels.isa() in PATHS
    matrix = kernels.matrix()
    assert {op for op, path, present in matrix if path == "ref" and not present} == set()
    assert ("gemm_u8s8", "avx2", True) in matrix and ("gemm_u8s8", "neon") in {(op, path) for op, path, _ in matrix}


def test_the_environment_forces_a_path() -> None:
    code = "from hwq import kernels; print(kernels.isa())"
    for wish, want in (("ref", "ref"), ("nonsense", "not available")):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HWQ_ISA": wish},
            capture_output=True,
            text=True,
            check=False,
        )
        assert want in run.stdout + run.stderr
