"""Quantize, dequantize, tables, nibbles and elementwise operators against the NumPy reading, on every path."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from hwq import kernels, numerics
from hwq.errors import Error

RANGES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "int4": (-8, 7),
    "uint4": (0, 15),
}
FORMULAS = ("onnx", "reciprocal", "tflite", "torch-tensor", "torch-channel", "torch-fake")


@pytest.fixture(params=kernels.available_isas(), autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.use_isa(request.param):
        yield request.param


def floats(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Random values, exact ties of the grid, and what hurts: NaN, infinities, zeros, subnormals, the largest."""
    ties = (np.arange(-700, 700) / 2 * np.float32(scale)).astype(np.float32)
    spread = (rng.standard_normal(1000) * 100 * scale).astype(np.float32)
    odd = np.array(
        [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 2**31, -(2**31), 0.49999997], np.float32
    )
    return np.concatenate([ties, spread, odd])


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("dtype", RANGES)
def test_quantize_equals_its_reading(dtype: str, formula: str) -> None:
    rng = np.random.default_rng(1)
    lo, hi = RANGES[dtype]
    for scale in (0.25, 0.1, 1.0, 3.7e-3, 1e-39):
        for zero_point in (lo, 0 if lo else 7, (lo + hi) // 2 + 1, hi):
            x = floats(rng, scale)
            want = numerics.quantize(x, np.float32(scale), zero_point, (lo, hi), formula=formula)
            got = kernels.quantize(x, scale, zero_point, dtype, formula=formula)
            assert got.dtype.itemsize == (2 if "16" in dtype else 1)
            assert np.array_equal(got, want), (scale, zero_point, x[got != want][:5])


def test_quantize_by_hand() -> None:
    x = np.array([-1.0, 0.125, 0.375, 0.625, 63.0, 64.0, np.nan, np.inf, -np.inf], np.float32)
    assert kernels.quantize(x, 0.25, 3).tolist() == [0, 3, 5, 5, 255, 255, 0, 255, 0]  # ties to even, then + 3
    assert kernels.quantize(x, 0.25, 3, formula="torch-tensor").tolist() == [
        0,
        4,
        4,
        6,
        255,
        255,
        255,
        255,
        0,
    ]  # + 3, then
    assert kernels.quantize(x, 0.25, 3, formula="tflite").tolist() == [
        0,
        4,
        5,
        6,
        255,
        255,
        0,
        0,
        0,
    ]  # away; unfit is low
    assert kernels.quantize(x[:5], 0.25, 3, clamp=(3, 6)).tolist() == [3, 3, 5, 5, 6]
    # onnxruntime's answers for a scale of zero: -1 -> lo, 0/0 -> lo, 1 -> hi
    assert kernels.quantize(np.array([-1, 0, 1], np.float32), 0.0, 10, "int8").tolist() == [-128, -128, 127]
    assert kernels.quantize(np.array([-1, 0, 1], np.float32), -0.5, 0, "int8").tolist() == [2, 0, -2]


def test_per_axis_quantize_and_dequantize() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 5, 7)).astype(np.float32)
    for axis in (0, 1, 2, -2):
        count = x.shape[axis]
        scale, zero = np.exp(rng.uniform(-4, -1, count)).astype(np.float32), rng.integers(-20, 20, count)
        shape = [count if d == axis % 3 else 1 for d in range(3)]
        q = kernels.quantize(x, scale, zero, "int8", axis=axis)
        assert np.array_equal(q, numerics.quantize(x, scale.reshape(shape), zero.reshape(shape), (-128, 127)))
        back = kernels.dequantize(q, scale, zero, axis=axis)
        assert np.array_equal(back, numerics.dequantize(q, scale.reshape(shape), zero.reshape(shape)))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32"])
def test_dequantize_equals_its_reading(dtype: str) -> None:
    info = np.iinfo(dtype)
    q = np.concatenate(
        [np.random.default_rng(3).integers(info.min, info.max + 1, 500), [info.min, info.max, 0, 1]]
    ).astype(dtype)
    for scale, zero in ((0.1, 0), (1e-42, 3), (3e38, 5), (-0.3, 1)):
        assert np.array_equal(kernels.dequantize(q, scale, zero), numerics.dequantize(q, scale, zero), equal_nan=True)


def test_every_table_entry() -> None:
    rng = np.random.default_rng(4)
    for x in (np.arange(256).astype(np.uint8), np.arange(-128, 128).astype(np.int8)):
        for table in (rng.integers(0, 256, 256).astype(np.uint8), rng.integers(-128, 128, 256).astype(np.int8)):
            assert np.array_equal(kernels.lut(x, table), table)
            shuffled = rng.permutation(x)[:201]
            want = table[shuffled.astype(np.int64) - np.iinfo(x.dtype).min]
            assert np.array_equal(kernels.lut(shuffled, table), want)
    with pytest.raises(Error, match="256 entries"):
        kernels.lut(x, table[:255])


@pytest.mark.parametrize("size", [0, 1, 2, 31, 64, 67])
def test_nibbles_go_low_first_and_come_back(size: int) -> None:
    rng = np.random.default_rng(5)
    signed, unsigned = rng.integers(-8, 8, size).astype(np.int8), rng.integers(0, 16, size).astype(np.uint8)
    for values, is_signed in ((signed, True), (unsigned, False)):
        packed = kernels.pack_int4(values)
        nibbles = np.append(values.view(np.uint8) & 15, np.zeros(size % 2, np.uint8)).reshape(-1, 2)
        assert np.array_equal(packed, nibbles[:, 0] | nibbles[:, 1] << 4)
        assert np.array_equal(kernels.unpack_int4(packed, size, signed=is_signed), values)
    with pytest.raises(Error, match="outside"):
        kernels.pack_int4(np.array([8], np.int8))
    with pytest.raises(Error, match="do not hold"):
        kernels.unpack_int4(np.zeros(1, np.uint8), 3)


# ---- Elementwise operators ----

BYTE_FORMULAS = (
    *("ort-add", "ort-mul", "torch-add", "torch-mul", "tflite-add", "tflite-sub", "tflite-mul"),
    *("xnnpack-add", "xnnpack-sub", "xnnpack-mul"),
)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("formula", BYTE_FORMULAS)
def test_every_pair_of_bytes(formula: str, dtype: str) -> None:
    lo, hi = RANGES[dtype]
    a, b = (v.reshape(-1).astype(dtype) for v in np.meshgrid(np.arange(lo, hi + 1), np.arange(lo, hi + 1)))
    kind, name = formula.rsplit("-", 1)
    grids = [  # powers of two make exact ties
        {"a_scale": 0.25, "b_scale": 0.5, "scale": 1.0},
        {
            "a_scale": 0.0123,
            "b_scale": 0.0457,
            "scale": 0.031,
            "a_zero_point": lo + 100,
            "b_zero_point": lo + 3,
            "zero_point": hi - 9,
        },
        {"a_scale": 0.5, "b_scale": 0.5, "scale": 0.5, "zero_point": lo + 129, "clamp": (lo + 20, hi - 20)},
    ]
    for scales in grids:
        want = numerics.binary(formula, a, b, **{"clamp": (lo, hi), **scales})
        got = getattr(kernels, name)(a, b, formula=kind, **scales)
        assert got.dtype == np.dtype(dtype)
        assert np.array_equal(got, want), scales


@pytest.mark.parametrize("formula", ["tflite-add", "tflite-sub", "tflite-mul"])
def test_sixteen_bits(formula: str) -> None:
    rng = np.random.default_rng(6)
    a, b = (rng.integers(-32768, 32768, 5000).astype(np.int16) for _ in range(2))
    a[:4], b[:4] = [-32768, 32767, -32768, 32767], [-32768, 32767, 32767, -32768]
    scales = {"a_scale": 3.1e-4, "b_scale": 1.7e-4, "scale": 4.4e-4}
    want = numerics.binary(formula, a, b, clamp=(-32768, 32767), sixteen=True, **scales)
    operator = kernels.Binary(formula=formula, a_dtype="int16", b_dtype="int16", dtype="int16", **scales)
    assert np.array_equal(kernels.binary(operator, a, b), want)


def test_broadcasting_and_mixed_types() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.integers(0, 256, (3, 4, 5)).astype(np.uint8), rng.integers(-128, 128, (4, 1)).astype(np.int8)
    scales = {"a_scale": 0.02, "b_scale": 0.05, "scale": 0.06, "a_zero_point": 110, "b_zero_point": -4}
    want = numerics.binary("ort-add", a, b, clamp=(-128, 127), **scales)
    assert np.array_equal(kernels.add(a, b, dtype="int8", **scales), want)
    scalar = np.array(37, np.int8)
    want = numerics.binary("ort-mul", a, scalar, **scales)
    assert np.array_equal(kernels.mul(a, scalar, **scales), want)
    assert kernels.add(a[:0], b, dtype="int8", **scales).shape == (0, 4, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"formula": "ort-sub"}, "no elementwise formula"),
        ({"formula": "ort-add", "a_scale": 0.0}, "not positive"),
        ({"formula": "ort-add", "a_scale": float("nan")}, "not positive"),
        ({"formula": "ort-add", "a_zero_point": 256}, "not allowed"),
        ({"formula": "ort-add", "a_dtype": "int16"}, "does not take int16"),
        ({"formula": "xnnpack-add", "scale": 1e-6}, "cannot represent"),
        ({"formula": "tflite-mul", "clamp": (5, 4)}, "does not lie in"),
    ],
)
def test_operators_refuse_what_they_cannot_represent(fields: dict, message: str) -> None:
    with pytest.raises(Error, match=message):
        kernels.Binary(**{"a_scale": 0.1, "b_scale": 0.1, "scale": 0.1, **fields})


def test_quantize_refuses_bad_parameters() -> None:
    x = np.zeros((2, 3), np.float32)
    for call in (
        lambda: kernels.quantize(x.astype(np.float64), 0.1),
        lambda: kernels.quantize(x, [0.1, 0.2]),
        lambda: kernels.quantize(x, [0.1, 0.2], axis=1),
        lambda: kernels.quantize(x, 0.1, 300),
        lambda: kernels.quantize(x, 0.1, 0.5),
        lambda: kernels.quantize(x, 0.1, axis=2),
        lambda: kernels.quantize(x, 0.1, formula="mine"),
        lambda: kernels.quantize(x, 0.1, clamp=(-1, 4)),
        lambda: kernels.dequantize(x, 0.1),
    ):
        with pytest.raises(Error):
            call()
