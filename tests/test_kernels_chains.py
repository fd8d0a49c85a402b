"""Float convolutions in one chain and sums of rows with scales of their own: bits against the NumPy reading, on every path."""

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


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint32)


def reading(x, w, groups, strides, pads, dilations, bias, clamp, columns=False) -> np.ndarray:
    """One fused multiply-add after the other, tap by tap and channel by channel."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    outputs, height, width, depth = w.shape
    sides = [
        (size - (taps - 1) * hole - 1) // step + 1
        for size, taps, hole, step in zip(padded.shape[1:3], (height, width), dilations, strides, strict=True)
    ]
    y = np.zeros((len(x), *sides, outputs), np.float32)
    if bias is not None:
        y += bias
    places = [(i, j) for i in range(height) for j in range(width)]
    for i, j in sorted(places, key=lambda place: place[::-1]) if columns else places:
        rows, cols = (
            slice(tap * hole, tap * hole + (count - 1) * step + 1, step)
            for tap, hole, count, step in zip((i, j), dilations, sides, strides, strict=True)
        )
        for d in range(depth):
            channel = np.arange(outputs) // (outputs // groups) * depth + d
            part = padded[:, rows, cols][..., channel]
            y = numerics.fused_multiply_add(part, np.broadcast_to(w[:, i, j, d], part.shape), y)
    y = np.where(y < np.float32(clamp[0]), np.float32(clamp[0]), y)
    return np.where(y > np.float32(clamp[1]), np.float32(clamp[1]), y)


def wide(rng, shape) -> np.ndarray:
    """Wide exponents: another order of additions gives other bits."""
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3, shape)).astype(np.float32)


EVERY = (-np.inf, np.inf)
CASES = [
    # x, weights, groups, strides, pads, dilations, clamp
    ((2, 5, 7, 3), (5, 3, 3, 3), 1, (1, 1), (1, 1, 1, 1), (1, 1), (0.0, np.inf)),
    ((1, 9, 8, 4), (33, 3, 2, 4), 1, (2, 1), (0, 1, 1, 0), (1, 1), EVERY),
    ((1, 4, 19, 16), (48, 1, 1, 16), 1, (1, 1), (0, 0, 0, 0), (1, 1), (0.0, 6.0)),
    ((1, 6, 9, 2), (17, 1, 1, 2), 1, (2, 2), (0, 0, 0, 0), (1, 1), EVERY),
    ((1, 8, 8, 6), (8, 3, 3, 3), 2, (1, 2), (2, 0, 2, 1), (2, 1), (-1.0, 1.0)),
    ((1, 7, 7, 2), (3, 2, 3, 2), 1, (1, 1), (1, 2, 1, 2), (1, 2), EVERY),
    ((1, 2, 2, 1), (1, 2, 2, 1), 1, (1, 1), (3, 3, 3, 3), (1, 1), EVERY),  # windows wholly in the padding
    *[((1, 3, 1 + n % 9, 3), (n, 1, 2, 3), 1, (1, 1), (0, 1, 0, 0), (1, 1), EVERY) for n in range(1, 36)],
    *[((1, 4, 5, n), (n, 3, 3, 1), n, (1, 1), (1, 1, 1, 1), (1, 1), EVERY) for n in (2, 7, 8, 9, 15, 16, 17, 40)],
    ((2, 9, 6, 5), (5, 3, 2, 1), 5, (2, 2), (0, 1, 1, 0), (2, 1), (0.0, np.inf)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolutions_have_the_chains_bits(case: tuple) -> None:
    shape, filters, groups, strides, pads, dilations, clamp = case
    rng = np.random.default_rng(3)
    x, w, bias = wide(rng, shape), wide(rng, filters), wide(rng, filters[0])
    options = {"strides": strides, "pads": pads, "dilations": dilations, "clamp": clamp}
    for columns in {False, groups == shape[3] > 1}:
        chain = kernels.pack_chain(w, groups=groups, columns=columns)
        for start in (bias, None):
            want = reading(x, w, groups, strides, pads, dilations, start, clamp, columns)
            for threads in (1, 3):
                made = kernels.conv_chain(x, chain, bias=start, threads=threads, **options)
                assert np.array_equal(bits(made), bits(want))


def test_nan_passes_the_clamp_and_infinities_do_not() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.5], np.float32).reshape(1, 1, 4, 1)
    chain = kernels.pack_chain(np.ones((1, 1, 1, 1), np.float32))
    made = kernels.conv_chain(x, chain, clamp=(0.0, 6.0)).reshape(-1)
    assert np.isnan(made[0]) and np.array_equal(made[1:], np.array([6, 0, 0.5], np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (6, 7), (6, 8), (4, 40), (0, 3), (3, 0)])
@pytest.mark.parametrize("each", [1, 2])
def test_sums_become_floats(shape: tuple[int, int], each: int) -> None:
    rng = np.random.default_rng(4)
    rows, columns = shape
    if rows % each:
        pytest.skip("scales serve as many rows each")
    acc = rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    scales, factors, bias = wide(rng, rows // each), wide(rng, columns), wide(rng, columns)
    points = rng.integers(-128, 128, rows // each).astype(np.int8)
    sums = rng.integers(-9999, 9999, columns).astype(np.int32)
    repeat = np.repeat(np.arange(rows // each), each)
    for given in ({}, {"points": points, "sums": sums}):
        exact = acc.astype(np.int64)
        if given:
            exact = exact - points[repeat].astype(np.int64)[:, None] * sums
        scaled = exact.astype(np.int32).astype(np.float32) * scales[repeat][:, None]
        for start in (bias, None):
            offset = np.zeros(columns, np.float32) if start is None else start
            want = numerics.fused_multiply_add(scaled, np.broadcast_to(factors, shape), np.broadcast_to(offset, shape))
            made = kernels.scale_sums(acc, scales, factors, bias=start, clamp=(-1e5, 1e5), **given)
            assert np.array_equal(bits(made), bits(np.clip(want, np.float32(-1e5), np.float32(1e5))))


def test_what_does_not_fit_is_refused() -> None:
    w = np.zeros((4, 3, 3, 2), np.float32)
    chain = kernels.pack_chain(w)
    with pytest.raises(Error, match="groups"):
        kernels.pack_chain(w, groups=3)
    with pytest.raises(Error, match="column by column"):
        kernels.pack_chain(w, columns=True)
    with pytest.raises(Error, match="images"):
        kernels.conv_chain(np.zeros((1, 5, 5, 3), np.float32), chain)
    with pytest.raises(Error, match="bias"):
        kernels.conv_chain(np.zeros((1, 5, 5, 2), np.float32), chain, bias=np.zeros(3, np.float32))
    with pytest.raises(Error, match="belong together"):
        kernels.scale_sums(
            np.zeros((2, 2), np.int32), np.ones(2, np.float32), np.ones(2, np.float32), points=np.zeros(2, np.int8)
        )
    with pytest.raises(Error, match="as many rows"):
        kernels.scale_sums(np.zeros((3, 2), np.int32), np.ones(2, np.float32), np.ones(2, np.float32))
