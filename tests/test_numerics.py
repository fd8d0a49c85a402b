"""The NumPy reading against exact rational arithmetic, hand-worked numbers and onnxruntime-independent definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwq import kernels, numerics

INT32 = st.integers(-(2**31), 2**31 - 1)


def nearest(value: Fraction, ties: str) -> int:
    """Exact rounding of a rational: the definition itself."""
    low = math.floor(value)
    rest = value - low
    if rest != Fraction(1, 2):
        return low + (rest > Fraction(1, 2))
    return {"up": low + 1, "away": low + (value > 0), "even": low + low % 2}[ties]


@given(INT32, INT32)
def test_doubling_high_multiply_is_the_nearest_high_half(a: int, b: int) -> None:
    want = 2**31 - 1 if a == b == -(2**31) else nearest(Fraction(a * b, 2**31), "up")
    assert int(numerics.saturating_doubling_high_multiply(a, b)) == want


@given(INT32, st.integers(0, 31))
def test_rounding_divide_takes_ties_away_from_zero(x: int, e: int) -> None:
    assert int(numerics.rounding_divide(x, e)) == nearest(Fraction(x, 2**e), "away")


@given(INT32, st.integers(0, 40))
def test_up_takes_ties_up(x: int, e: int) -> None:
    assert int(numerics.up(x, e)) == nearest(Fraction(x, 2**e), "up")


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_away_takes_ties_away_from_zero(x: float) -> None:
    assert int(numerics.away(np.float32(x))) == nearest(Fraction(float(np.float32(x))), "away")


@given(st.floats(1e-12, 1e6))
def test_multiplier_is_the_real_within_half_a_unit(real: float) -> None:
    multiplier, shift = numerics.quantize_multiplier(real)
    if multiplier:
        assert 2**30 <= multiplier < 2**31
        assert abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) - Fraction(real)) <= Fraction(2) ** (shift - 32)
    else:
        assert real < 2.0**-31
    c_multiplier, c_shift = kernels.quantize_multiplier(real)
    assert (int(c_multiplier), int(c_shift)) == (multiplier, shift)


def test_multiplier_of_known_values() -> None:
    assert numerics.quantize_multiplier(0.0) == (0, 0)
    assert numerics.quantize_multiplier(1.0) == (2**30, 1)
    assert numerics.quantize_multiplier(0.5) == (2**30, 0)
    assert numerics.quantize_multiplier(1 - 2.0**-40) == (2**30, 1)  # rounds up to 2^31, which is renormalized


@given(st.integers(-(2**24), 2**24), st.floats(1e-6, 0.9), st.integers(-128, 127))
def test_each_rounding_is_within_one_of_the_exact_product(acc: int, real: float, zero_point: int) -> None:
    multiplier, shift = numerics.quantize_multiplier(real)
    exact = Fraction(acc) * Fraction(real) + zero_point
    want = min(127, max(-128, nearest(exact, "even")))
    fixed = {"multipliers": multiplier, "shifts": shift, "zero_point": zero_point}
    got = {
        "gemmlowp": numerics.requantize(acc, "gemmlowp", **fixed),
        "ruy": numerics.requantize(acc, "ruy", **fixed),
        "single": numerics.requantize(acc, "single", **fixed),
        "fp32": numerics.requantize(acc, "fp32", multipliers=np.float32(real), zero_point=zero_point),
        "f64": numerics.requantize(acc, "f64", multipliers=real, zero_point=zero_point),
    }
    for name, value in got.items():
        assert abs(int(value) - want) <= 1, name


def test_ties_tell_the_roundings_apart() -> None:
    """acc / 4 with a two-step shift: -1.5, -0.5, 0.5, 1.5, 2.5 by each rule."""
    acc = np.array([-6, -2, 2, 6, 10])
    multiplier, shift = numerics.quantize_multiplier(0.25)
    fixed = {"multipliers": multiplier, "shifts": shift}
    assert numerics.requantize(acc, "fp32", multipliers=0.25).tolist() == [-2, 0, 0, 2, 2]
    assert numerics.requantize(acc, "f64", multipliers=0.25).tolist() == [-2, -1, 1, 2, 3]
    assert numerics.requantize(acc, "single", **fixed).tolist() == [-1, 0, 1, 2, 3]
    # The two-stage roundings first halve (exact halves up, so -3, -1, 1, 3, 5), then divide by two.
    assert numerics.requantize(acc, "gemmlowp", **fixed).tolist() == [-2, -1, 1, 2, 3]
    assert numerics.requantize(acc, "ruy", **fixed).tolist() == [-1, 0, 1, 2, 3]


@pytest.mark.parametrize("exponent", [-140, -60, 0, 60])
def test_fma_is_one_rounding_of_the_exact_sum(exponent: int) -> None:
    rng = np.random.default_rng(exponent + 200)
    a, b, c = (rng.standard_normal(300).astype(np.float32) for _ in range(3))
    a = (a * 2.0**exponent).astype(np.float32)
    c = np.where(np.arange(300) % 3 == 0, (-a * b), c * np.float32(2.0) ** exponent).astype(np.float32)
    got = numerics.fused_multiply_add(a, b, c)
    for x, y, z, value in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(value)) - exact)
        for neighbor in (np.nextafter(value, np.float32(np.inf)), np.nextafter(value, np.float32(-np.inf))):
            assert error <= abs(Fraction(float(neighbor)) - exact)


@pytest.mark.parametrize(("zero_point", "step"), [(0, 0.5), (128, 0.25), (100, 0.125), (77, 1.0)])
def test_four_stages_equal_the_affine_form_when_zero_is_on_the_grid(zero_point: int, step: float) -> None:
    stages = numerics.FourStages(-zero_point * step, (255 - zero_point) * step)
    x = np.arange(-300, 600) * step / 4  # quarter steps: every second one of the odd quarters is a tie
    assert stages.zero_on_grid()
    predicted = stages.equals_affine(x)
    assert np.all(stages.quantized(x)[predicted] == stages.affine(x)[predicted])
    assert predicted.all() == (zero_point % 2 == 0)
    assert stages.dequantized(stages.quantized(0.0)) == 0.0


def test_four_stages_differ_from_the_affine_form_when_zero_is_off_the_grid() -> None:
    stages = numerics.FourStages(-0.3, 0.7)  # z = 76.5: the runtime's integer zero point is half a step away
    x = np.linspace(-0.3, 0.7, 2001)
    assert not stages.zero_on_grid() and not stages.equals_affine(x).any()
    differ = stages.quantized(x) != stages.affine(x)
    assert 0.4 < differ.mean() < 0.6
    assert np.abs(stages.quantized(x) - stages.affine(x)).max() == 1
    assert stages.dequantized(stages.quantized(0.0)) != 0.0  # zero comes back as another number


def test_four_stages_invert_within_half_a_step() -> None:
    data = np.random.default_rng(3).normal(2.0, 3.0, 1000)
    for bits in (2, 4, 8, 16):
        q, stages = numerics.four_stages(data, bits)
        assert q.min() == 0 and q.max() == 2**bits - 1
        assert np.abs(stages.dequantized(q) - data).max() <= 0.5 / stages.scale * (1 + 1e-9)


def test_four_stages_refuse_an_empty_range() -> None:
    with pytest.raises(ValueError, match="no range"):
        numerics.FourStages(1.0, 1.0)


def test_the_fixed_order_by_hand() -> None:
    # Lanes: (1e8 + 8), 1..7 each +0: float32 rounds 1e8 + 8 exactly, 1e8 + 1 does not.
    terms = np.array([1e8, 1, 2, 3, 4, 5, 6, 7, 8], np.float32)
    lane = [np.float32(1e8) + np.float32(8), *(np.float32(i) for i in range(1, 8))]
    want = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]))
    assert numerics.sum_f32(terms) == want
    assert numerics.dot_f32(terms, np.ones(9, np.float32)) == want
