"""Convolution and pooling against a direct int64 or fixed-order reading, in both layouts, on every path."""

from __future__ import annotations

import itertools
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


def windows(x: np.ndarray, kernel: tuple, strides: tuple, pads: tuple, dilations: tuple, fill: float) -> np.ndarray:
    """x (N, C, *in) to (N, C, *out, *kernel), by slicing a padded copy: one slice a tap."""
    rank = len(kernel)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)], constant_values=fill)
    sides = [(padded.shape[2 + d] - dilations[d] * (kernel[d] - 1) - 1) // strides[d] + 1 for d in range(rank)]
    out = np.empty((*x.shape[:2], *sides, *kernel), x.dtype)
    for tap in itertools.product(*map(range, kernel)):
        spans = [
            slice(t * dilations[d], t * dilations[d] + (sides[d] - 1) * strides[d] + 1, strides[d])
            for d, t in enumerate(tap)
        ]
        out[(..., *tap)] = padded[(slice(None), slice(None), *spans)]
    return out


def terms(x: np.ndarray, w: np.ndarray, groups: int, geometry: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Operands of every output as (N, groups, *out, 1, k) and (groups, *1s, O/g, k), k ordered (tap, channel)."""
    rank = w.ndim - 2
    view = windows(x, w.shape[2:], *geometry, 0)
    n, channels, sides = view.shape[0], view.shape[1], view.shape[2 : 2 + rank]
    view = view.reshape(n, groups, channels // groups, *sides, -1)
    view = np.moveaxis(view, 2, -1).reshape(n, groups, *sides, 1, -1)
    kernel = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1).transpose(0, 1, 3, 2)
    return view, kernel.reshape(groups, *(1,) * rank, w.shape[0] // groups, -1)


def reading(
    x: np.ndarray, w: np.ndarray, za: int, zw: object, bias: object, groups: int, geometry: tuple
) -> np.ndarray:
    """int64 convolution, (N, O, *out)."""
    centered = w.astype(np.int64) - np.broadcast_to(np.asarray(zw), (w.shape[0],)).reshape(-1, *(1,) * (w.ndim - 1))
    a, b = terms(x.astype(np.int64) - za, centered, groups, geometry)
    y = np.moveaxis((a * b).sum(-1), -1, 2)
    y = y.reshape(y.shape[0], -1, *y.shape[3:])
    return y + np.broadcast_to(bias, (y.shape[1],)).reshape(-1, *(1,) * (y.ndim - 2))


CASES = [  # input (N, C, *in), weights (O, C/g, *kernel), groups, strides, pads, dilations
    ((2, 3, 8, 9), (5, 3, 3, 3), 1, (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 16, 7, 7), (16, 16, 1, 1), 1, (1, 1), (0, 0, 0, 0), (1, 1)),
    ((1, 4, 9, 6), (6, 4, 1, 1), 1, (2, 2), (0, 0, 0, 0), (1, 1)),
    ((2, 6, 9, 10), (8, 3, 3, 2), 2, (2, 1), (0, 2, 1, 0), (1, 2)),
    ((1, 5, 11, 5), (5, 1, 3, 3), 5, (1, 1), (1, 1, 1, 1), (1, 1)),
    ((2, 37, 6, 6), (37, 1, 3, 3), 37, (2, 2), (0, 0, 1, 1), (1, 1)),
    ((2, 67, 25, 5), (67, 1, 3, 3), 67, (1, 1), (1, 1, 1, 1), (1, 1)),  # taller than wide
    ((1, 40, 13, 6), (40, 1, 3, 3), 40, (2, 1), (0, 1, 2, 0), (1, 1)),
    ((1, 33, 14, 5), (33, 1, 3, 3), 33, (1, 2), (1, 0, 0, 2), (1, 1)),
    ((1, 20, 12, 12), (20, 1, 9, 9), 20, (1, 1), (4, 4, 4, 4), (1, 1)),
    ((1, 4, 8, 8), (12, 1, 3, 3), 4, (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 1, 25, 5), (64, 1, 10, 4), 1, (2, 2), (4, 1, 5, 1), (1, 1)),
    ((2, 4, 17), (6, 2, 5), 2, (2,), (2, 1), (2,)),
    ((1, 3, 5, 6, 4), (4, 3, 2, 3, 2), 1, (1, 2, 1), (1, 0, 1, 0, 1, 0), (1, 1, 2)),
    ((1, 2, 4, 4), (3, 2, 3, 3), 1, (3, 3), (6, 6, 6, 6), (1, 1)),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{case[1]}")
def test_integer_convolution(case: tuple, layout: str) -> None:
    shape, weights, groups, *geometry = case
    rng = np.random.default_rng(1)
    for a_dtype, w_dtype in itertools.product((np.uint8, np.int8), repeat=2):
        x = rng.integers(np.iinfo(a_dtype).min, np.iinfo(a_dtype).max + 1, shape).astype(a_dtype)
        w = rng.integers(np.iinfo(w_dtype).min, np.iinfo(w_dtype).max + 1, weights).astype(w_dtype)
        za, zw = int(x.flat[0]), w.reshape(weights[0], -1)[:, 0].astype(np.int64)
        bias = rng.integers(-1000, 1000, weights[0]).astype(np.int32)
        packed = kernels.pack_conv(w, zero_point=zw, groups=groups)
        strides, pads, dilations = geometry
        given_x = x if layout == "NCHW" else np.moveaxis(x, 1, -1)
        options = {
            "strides": strides,
            "pads": pads,
            "dilations": dilations,
            "layout": layout,
            "a_zero_point": za,
            "bias": bias,
        }
        want = reading(x, w, za, zw, bias, groups, tuple(geometry))
        want = want if layout == "NCHW" else np.moveaxis(want, 1, -1)
        for threads in (1, 3):
            assert np.array_equal(kernels.conv2d(given_x, packed, threads=threads, **options), want)
        epilogue = kernels.Epilogue(
            kind="requant", multipliers=np.linspace(1e-3, 1e-2, weights[0]), dtype="uint8", zero_point=9
        )
        flat = np.moveaxis(want, 1, -1) if layout == "NCHW" else want
        q = numerics.requantize(
            flat, "fp32", multipliers=np.linspace(1e-3, 1e-2, weights[0]), zero_point=9, clamp=(0, 255)
        )
        q = np.moveaxis(q, -1, 1) if layout == "NCHW" else q
        assert np.array_equal(kernels.conv2d(given_x, packed, epilogue=epilogue, **options), q)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_residual_joins_in_the_outputs_layout(layout: str, depthwise: bool) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (2, 6, 11, 9)).astype(np.uint8)
    w = rng.integers(-128, 128, (6, 1 if depthwise else 6, 3, 3)).astype(np.int8)
    skip = rng.integers(0, 256, (2, 6, 11, 9)).astype(np.uint8)
    scales = {"a_scale": 0.11, "b_scale": 0.07, "scale": 0.13, "a_zero_point": 4, "b_zero_point": 9, "zero_point": 2}
    operator = kernels.Binary(formula="ort-add", **scales)
    epilogue = kernels.Epilogue(kind="requant", multipliers=1e-3, dtype="uint8", zero_point=4, residual=operator)
    acc = reading(x, w, 0, 0, 0, 6 if depthwise else 1, ((1, 1), (1, 1, 1, 1), (1, 1)))
    middle = numerics.requantize(acc, "fp32", multipliers=1e-3, zero_point=4, clamp=(0, 255))
    want = numerics.binary("ort-add", middle, skip, **scales)
    packed = kernels.pack_conv(w, groups=6 if depthwise else 1)
    if layout == "NHWC":
        x, skip, want = (np.ascontiguousarray(np.moveaxis(v, 1, -1)) for v in (x, skip, want))
    for threads in (1, 2, 7):
        got = kernels.conv2d(x, packed, pads=1, layout=layout, epilogue=epilogue, residual=skip, threads=threads)
        assert np.array_equal(got, want)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{case[1]}")
def test_float_convolution_in_the_fixed_order(case: tuple, layout: str) -> None:
    shape, weights, groups, *geometry = case
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(weights).astype(np.float32)
    bias = rng.standard_normal(weights[0]).astype(np.float32)
    a, b = terms(x, w, groups, tuple(geometry))
    want = np.moveaxis(numerics.dot_f32(a, b), -1, 2)
    want = want.reshape(want.shape[0], -1, *want.shape[3:]) + bias.reshape(-1, *(1,) * (x.ndim - 2))
    strides, pads, dilations = geometry
    given_x = x if layout == "NCHW" else np.moveaxis(x, 1, -1)
    packed = kernels.pack_conv(w, groups=groups)
    for threads in (1, 3):
        got = kernels.conv2d(
            given_x, packed, strides=strides, pads=pads, dilations=dilations, layout=layout, bias=bias, threads=threads
        )
        got = got if layout == "NCHW" else np.moveaxis(got, -1, 1)
        assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def test_weights_may_stand_channel_last() -> None:
    rng = np.random.default_rng(4)
    w, x = rng.integers(-128, 128, (6, 2, 3, 2)).astype(np.int8), rng.integers(0, 256, (1, 4, 5, 5)).astype(np.uint8)
    first, last = kernels.pack_conv(w, groups=2), kernels.pack_conv(np.moveaxis(w, 1, -1), groups=2, layout="OHWI")
    assert np.array_equal(kernels.conv2d(x, first), kernels.conv2d(x, last))


def test_empty_batches_and_impossible_windows() -> None:
    packed = kernels.pack_conv(np.ones((4, 2, 3, 3), np.int8))
    assert kernels.conv2d(np.zeros((0, 2, 5, 5), np.uint8), packed).shape == (0, 4, 3, 3)
    with pytest.raises(Error, match="does not fit the padded input"):
        kernels.conv2d(np.zeros((1, 2, 2, 5), np.uint8), packed)
    with pytest.raises(Error, match="weights take 2 channels"):
        kernels.conv2d(np.zeros((1, 3, 5, 5), np.uint8), packed)
    with pytest.raises(Error, match="spatial dimensions"):
        kernels.conv2d(np.zeros((1, 2, 5), np.uint8), packed)
    with pytest.raises(Error, match="pads must be 4 integers"):
        kernels.conv2d(np.zeros((1, 2, 5, 5), np.uint8), packed, pads=(1, 1))
    with pytest.raises(Error, match="packed for a convolution"):
        kernels.gemm(np.zeros((1, 18), np.uint8), packed)
    with pytest.raises(Error, match="may overflow"):
        kernels.conv2d(
            np.zeros((1, 70000, 1, 1), np.uint8), kernels.pack_conv(np.full((1, 70000, 1, 1), -128, np.int8))
        )


# ---- Pooling ----

POOLS = [  # input, kernel, strides, pads, dilations
    ((2, 5, 8, 8), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((1, 3, 7, 9), (3, 3), (2, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 17, 6, 6), (6, 6), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((1, 2, 9), (3,), (2,), (1, 0), (2,)),
    ((1, 2, 4, 5, 6), (2, 2, 3), (1, 2, 2), (1, 0, 0, 0, 1, 2), (1, 1, 1)),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", POOLS, ids=lambda case: str(case[0]))
def test_pools(case: tuple, layout: str) -> None:
    shape, kernel, strides, pads, dilations = case
    rng = np.random.default_rng(5)
    rank = len(kernel)
    axes = tuple(range(-rank, 0))
    options = {"strides": strides, "pads": pads, "dilations": dilations, "layout": layout}

    def turn(v: np.ndarray) -> np.ndarray:
        return v if layout == "NCHW" else np.moveaxis(v, 1, -1)

    inside = windows(np.ones(shape, np.int64), kernel, strides, pads, dilations, 0)
    for dtype in (np.uint8, np.int8):
        x = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)
        view = windows(x.astype(np.int64), kernel, strides, pads, dilations, np.iinfo(dtype).min)
        assert np.array_equal(kernels.max_pool(turn(x), kernel, **options), turn(view.max(axes)))
        view = windows(x.astype(np.int64), kernel, strides, pads, dilations, 0)
        for include, count in ((False, inside.sum(axes)), (True, np.full(view.shape[:-rank], np.prod(kernel)))):
            mean = np.sign(view.sum(axes)) * ((np.abs(view.sum(axes)) + count // 2) // count)  # ties away
            got = kernels.average_pool(turn(x), kernel, count_include_pad=include, threads=2, **options)
            assert np.array_equal(got, turn(mean))
    f = rng.standard_normal(shape).astype(np.float32)
    view = windows(f, kernel, strides, pads, dilations, -np.inf)
    assert np.array_equal(kernels.max_pool(turn(f), kernel, **options), turn(view.max(axes)))
    view = windows(f, kernel, strides, pads, dilations, 0).reshape(*view.shape[:-rank], -1)
    total = np.zeros(view.shape[:-1], np.float32)
    for tap in range(view.shape[-1]):  # window order, each addition rounded
        total = total + view[..., tap]
    want = total / inside.sum(axes).astype(np.float32)
    assert np.array_equal(kernels.average_pool(turn(f), kernel, **options), turn(want))


def test_pool_rounds_sizes_up_and_drops_windows_that_start_in_the_padding() -> None:
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5)
    assert kernels.max_pool(x, (2,), strides=2, ceil_mode=True).tolist() == [[[2, 4, 5]]]
    assert kernels.average_pool(x, (2,), strides=2, ceil_mode=True).tolist() == [[[1.5, 3.5, 5]]]
    assert kernels.average_pool(x, (2,), strides=2, ceil_mode=True, count_include_pad=True).tolist() == [
        [[1.5, 3.5, 5]]
    ]
    assert kernels.max_pool(x, (2,), strides=3, pads=(1, 1), ceil_mode=True).tolist() == [[[1, 4]]]


def test_max_pool_keeps_nan_and_lowest_values() -> None:
    x = np.array([[[np.nan, 1.0, -np.inf, -np.inf]]], np.float32)
    got = kernels.max_pool(x, (2,), strides=2)
    assert np.isnan(got[0, 0, 0]) and got[0, 0, 1] == -np.inf
    assert kernels.max_pool(np.full((1, 1, 4), -128, np.int8), (2,), strides=2).tolist() == [[[-128, -128]]]
    assert kernels.max_pool(np.full((1, 1, 4), 9, np.int8), (2,), strides=2, clamp=(0, 6)).tolist() == [[[6, 6]]]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_geometry(data: st.DataObject) -> None:
    draw = data.draw
    groups, depth, per = draw(st.sampled_from([(1, 3, 5), (2, 2, 3), (6, 1, 1), (3, 1, 2), (17, 1, 1)]))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    strides, dilations = (
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        (draw(st.integers(1, 2)), draw(st.integers(1, 3))),
    )
    pads = tuple(draw(st.integers(0, 3)) for _ in range(4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    least = [max(1, dilations[d] * (kernel[d] - 1) + 1 - pads[d] - pads[d + 2]) for d in range(2)]
    shape = (
        draw(st.integers(1, 2)),
        groups * depth,
        least[0] + draw(st.integers(0, 6)),
        least[1] + draw(st.integers(0, 6)),
    )
    x = rng.integers(-128, 128, shape).astype(np.int8)
    w = rng.integers(-128, 128, (groups * per, depth, *kernel)).astype(np.int8)
    za = int(rng.integers(-128, 128))
    want = reading(x, w, za, 0, 0, groups, (strides, pads, dilations))
    packed = kernels.pack_conv(w, groups=groups)
    options = {"strides": strides, "pads": pads, "dilations": dilations, "a_zero_point": za}
    for name in PATHS:
        with kernels.use_isa(name):
            assert np.array_equal(kernels.conv2d(x, packed, **options), want), name
            last = kernels.conv2d(np.moveaxis(x, 1, -1), packed, layout="NHWC", **options)
            assert np.array_equal(np.moveaxis(last, -1, 1), want), name


@pytest.mark.parametrize("depth", [916, 918])
def test_winograds_bound_is_the_last_that_it_takes(depth: int) -> None:
    """4 x 255 x sum |w - zw| leaves int32 between these depths: the greater one runs without the transform."""
    w = np.full((8, depth, 3, 3), 255, np.uint8)
    x = np.full((1, depth, 4, 5), 255, np.uint8)
    x[0, :, 1, 2] = 0
    want = reading(x, w, 0, 0, 0, 1, ((1, 1), (1, 1, 1, 1), (1, 1)))
    assert np.array_equal(kernels.conv2d(x, kernels.pack_conv(w), pads=1), want)


@pytest.mark.parametrize("depth", [112, 116])
def test_the_bound_of_tiles_of_four(depth: int) -> None:
    """128 x sum |w - zw| reaches 2^25 between these depths: the greater one runs without tiles."""
    w = np.full((40, depth, 3, 3), 255, np.uint8)
    x = np.zeros((1, depth, 16, 20), np.uint8)
    x[0, :, 5:9, 7:] = 255
    want = reading(x, w, 9, 0, 0, 1, ((1, 1), (1, 1, 1, 1), (1, 1)))
    got = kernels.conv2d(np.moveaxis(x, 1, -1), kernels.pack_conv(w), pads=1, layout="NHWC", a_zero_point=9)
    assert np.array_equal(np.moveaxis(got, -1, 1), want)


@pytest.mark.parametrize(
    ("batch", "side", "channels", "outputs", "groups", "threads"),
    [(1, (18, 16), 64, 64, 1, 1), (1, (17, 19), 64, 96, 2, 3), (6, (7, 8), 68, 80, 1, 2), (1, (12, 13), 160, 48, 1, 1)],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_tiles_of_four(
    batch: int, side: tuple[int, int], channels: int, outputs: int, groups: int, threads: int, dtype: type
) -> None:
    """Shapes that repay them: whole and short tiles, several images, threads that share a line of tiles, a residual."""
    rng = np.random.default_rng(channels)
    lo, hi = (0, 256) if dtype is np.uint8 else (-128, 128)
    x = rng.integers(lo, hi, (batch, channels, *side)).astype(dtype)
    w = rng.integers(-128, 128, (outputs, channels // groups, 3, 3)).astype(np.int8)
    zw, bias = rng.integers(-20, 20, outputs), rng.integers(-(2**31), 2**31, outputs).astype(np.int32)
    want = reading(x, w, 7, zw, bias, groups, ((1, 1), (1, 1, 1, 1), (1, 1)))
    packed, last = kernels.pack_conv(w, zero_point=zw, groups=groups), np.ascontiguousarray(np.moveaxis(x, 1, -1))
    options = {"pads": 1, "a_zero_point": 7, "layout": "NHWC", "threads": threads}
    got = kernels.conv2d(last, packed, bias=bias, wrap=True, **options)
    assert np.array_equal(np.moveaxis(got, -1, 1), want.astype(np.int32))
    scales = rng.uniform(1e-5, 1e-3, outputs).astype(np.float32)
    finish = kernels.Epilogue(kind="requant", rounding="fp32", multipliers=scales, zero_point=3, dtype="int8")
    got = kernels.conv2d(last, packed, epilogue=finish, **options)
    with kernels.use_isa("ref"):
        assert np.array_equal(got, kernels.conv2d(last, packed, epilogue=finish, **options))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_random_three_by_three(data: st.DataObject) -> None:
    draw = data.draw
    groups, depth, per = draw(st.sampled_from([(1, 16, 8), (1, 50, 33), (2, 17, 24)]))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    height, width = draw(st.integers(4, 15)), draw(st.integers(4, 15))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.integers(0, 256, (2, groups * depth, height, width)).astype(np.uint8)
    w = rng.integers(0, 256, (groups * per, depth, 3, 3)).astype(np.uint8)
    zw, bias = rng.integers(0, 256, groups * per), rng.integers(-999, 999, groups * per).astype(np.int32)
    geometry = ((1, 1), pads, (1, 1))
    want = reading(x, w, 77, zw, bias, groups, geometry)
    packed = kernels.pack_conv(w, zero_point=zw, groups=groups)
    options = {"pads": pads, "a_zero_point": 77, "bias": bias, "threads": draw(st.integers(1, 5))}
    assert np.array_equal(kernels.conv2d(x, packed, **options), want)
    last = kernels.conv2d(np.moveaxis(x, 1, -1), packed, layout="NHWC", **options)
    assert np.array_equal(np.moveaxis(last, -1, 1), want)
