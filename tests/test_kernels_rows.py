"""int16 products, 16-bit floats, dynamic quantization, integer softmax and layer normalization, against readings in NumPy
that share no code with the kernels, and against the runtimes that the formulas name."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hwq import kernels, numerics
from hwq.errors import Error
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops import tflite_gemmlowp as gemmlowp
from hwq.ops import tflite_hybrid
from hwq.ops.tflite_fixedpoint import leading_zeros
from hwq.ops.tflite_interpolation import interpolation_table

HALVES = [np.float16, ml_dtypes.bfloat16]


@pytest.fixture(params=kernels.available_isas())
def path(request: pytest.FixtureRequest) -> Any:
    with kernels.use_isa(request.param):
        yield request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(16)


# ---- int16 activations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_int16_products_are_exact_in_64_bits(path: str, rng: np.random.Generator, threads: int) -> None:
    a = rng.integers(-32768, 32768, (7, 700)).astype(np.int16)
    a[0] = -32768
    w = rng.integers(-128, 128, (700, 35)).astype(np.int8)
    w[:, 3] = -128
    bias = rng.integers(-(2**40), 2**40, 35)
    acc = a.astype(np.int64) @ w.astype(np.int64) + bias
    packed = kernels.pack(w)
    m, shift = kernels.quantize_multiplier(2.0**-17 / 3)
    tflite = kernels.Epilogue(kind="requant", rounding="mbqm64", multipliers=m, shifts=shift, dtype="int16")
    got = kernels.gemm(a, packed, bias=bias, epilogue=tflite, threads=threads)
    want = numerics.requantize(acc, "mbqm64", multipliers=m, shifts=shift, clamp=(-32768, 32767))
    assert got.dtype == np.int16 and (got == want).all()
    f64 = kernels.Epilogue(kind="requant", rounding="f64", multipliers=1e-8, dtype="int8")
    out = np.empty((7, 35), np.int8)
    assert kernels.gemm(a, packed, bias=bias, epilogue=f64, out=out, threads=threads) is out
    assert (out == numerics.requantize(acc, "f64", multipliers=1e-8)).all()
    with pytest.raises(Error, match="may overflow"):
        kernels.gemm(a, packed, bias=bias)
    assert (kernels.gemm(a, packed, bias=bias, wrap=True) == acc.astype(np.int32)).all()


def test_int16_products_take_zero_points_on_both_sides(path: str, rng: np.random.Generator) -> None:
    a, w = rng.integers(-900, 900, (2, 3, 21)).astype(np.int16), rng.integers(0, 256, (21, 5)).astype(np.uint8)
    points = rng.integers(0, 256, 5)
    got = kernels.gemm(a, kernels.pack(w, zero_point=points), a_zero_point=-77)
    assert (got == (a.astype(np.int64) + 77) @ (w.astype(np.int64) - points)).all()
    assert (kernels.gemm(a[..., :0], kernels.pack(w[:0])) == 0).all()


@pytest.mark.parametrize("shift", [0, 1, 4, 7])
def test_interpolated_tables(path: str, shift: int, rng: np.random.Generator) -> None:
    table = rng.integers(-32768, 32768, (65536 >> shift) + 1).astype(np.int16)
    x, gap = np.arange(-32768, 32768), 1 << shift
    wide, index = table.astype(np.int64), (x + 32768) // gap
    want = wide[index] + ((wide[index + 1] - wide[index]) * (x % gap) + gap // 2) // gap
    assert (kernels.lut_int16(x.astype(np.int16), table) == want.astype(np.int16)).all()
    with pytest.raises(Error, match="513"):
        kernels.lut_int16(x.astype(np.int16), table[:512])


# ---- 16-bit floats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
def test_narrow_and_widen_are_the_casts_of_numpy(path: str, rng: np.random.Generator, dtype: Any) -> None:
    everything = np.arange(65536).astype(np.uint16).view(dtype)
    same = kernels.widen(everything)
    assert np.array_equal(same, everything.astype(np.float32), equal_nan=True)
    x = rng.integers(0, 2**32, 100_001, np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(dtype)
    got = kernels.narrow(x, dtype)
    nan = np.isnan(x)
    assert (got.view(np.uint16)[~nan] == want.view(np.uint16)[~nan]).all() and np.isnan(
        got.astype(np.float32)[nan]
    ).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_half_products_convolutions_and_sums_round_once(path: str, rng: np.random.Generator, dtype: Any) -> None:
    a = rng.standard_normal((30, 45)).astype(dtype)
    w = rng.standard_normal((45, 19)).astype(dtype)
    wide = a.astype(np.float32)
    want = numerics.dot_f32(wide[:, None, :], w.astype(np.float32).T[None]) + np.float32(0.5)
    bias = np.full(19, 0.5, np.float32)
    results = {kernels.gemm(a, kernels.pack_float(w), bias=bias, threads=t).tobytes() for t in (1, 2, 5)}
    assert results == {want.astype(dtype).tobytes()}
    sums = kernels.sum_f32(a, axis=1)
    assert sums.dtype == dtype and sums.tobytes() == numerics.sum_f32(wide).astype(dtype).tobytes()
    for groups in (1, 6):
        x, kernel = rng.standard_normal((2, 6, 7, 8)).astype(dtype), rng.standard_normal((6, 6 // groups, 3, 3))
        kernel = kernel.astype(dtype)
        full = kernels.conv2d(
            x.astype(np.float32), kernels.pack_conv(kernel.astype(np.float32), groups=groups), pads=1, strides=2
        )
        got = kernels.conv2d(x, kernels.pack_conv(kernel, groups=groups), pads=1, strides=2)
        assert got.dtype == dtype and got.tobytes() == full.astype(dtype).tobytes()
    with pytest.raises(Error, match="weights are"):
        kernels.gemm(wide, kernels.pack_float(w))


# ---- Dynamic quantization -------------------------------------------------------------------------------------------


def some_rows(rng: np.random.Generator) -> Any:
    x = rng.standard_normal((9, 77)).astype(np.float32) * np.float32(3)
    x[1], x[2], x[3] = np.abs(x[1]), -np.abs(x[2]), 0
    x[4] = (rng.integers(-255, 256, 77) / 2).astype(np.float32)
    x[5] *= np.float32(1e-30)
    x[6] *= np.float32(1e30)
    return x


@pytest.mark.parametrize("threads", [1, 4])
def test_dynamic_rows_of_litert(path: str, rng: np.random.Generator, threads: int) -> None:
    x = some_rows(rng)
    q, scale, point = kernels.dynamic_quantize(x, formula="tflite-symmetric", per_row=True, threads=threads)
    want, scales = tflite_hybrid.quantize_symmetric(x)
    assert (q == want).all() and scale.tobytes() == scales.tobytes() and (point == 0).all()
    q, scale, point = kernels.dynamic_quantize(x, formula="tflite-asymmetric", per_row=True, threads=threads)
    stored, scales, points = tflite_hybrid.quantize_asymmetric(x)
    assert (q == stored).all() and scale.tobytes() == scales.tobytes() and (point == points).all()


def test_dynamic_rows_of_xnnpack(path: str, rng: np.random.Generator) -> None:
    """T4 of the numerics reference, spelled out."""
    f32 = np.float32
    x = some_rows(rng)
    q, scale, point = kernels.dynamic_quantize(x, formula="xnnpack", per_row=True)
    for i, row in enumerate(x):
        low, high = min(f32(0), row.min()), max(f32(0), row.max())
        by = f32(1) if low == high else f32(255) / (high - low)
        ends = f32(-128) + low * by, f32(127) + high * by
        z = np.rint(np.clip(f32(-128) - low * by if ends[0] + ends[1] > 0 else f32(127) - high * by, -128, 127))
        assert point[i] == z and scale[i] == f32(1) / by
        assert (q[i] == np.clip(np.rint(row * by) + z, -128, 127)).all()


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("reduced", [False, True])
def test_dynamic_ranges_of_torch(path: str, rng: np.random.Generator, reduced: bool) -> None:
    torch = pytest.importorskip("torch")
    formula = "torch-reduced" if reduced else "torch"
    for row in some_rows(rng):
        want = torch.quantize_per_tensor_dynamic(torch.from_numpy(row.copy()), torch.quint8, reduced)
        q, scale, point = kernels.dynamic_quantize(row, formula=formula)
        assert scale == np.float32(want.q_scale()) and int(point) == want.q_zero_point()  # q_scale is a double
        assert (q == want.int_repr().numpy()).all()


def test_dynamic_ranges_of_onnx(path: str, rng: np.random.Generator) -> None:
    session = one_node("DynamicQuantizeLinear", 1, 3)
    for row in (*some_rows(rng), np.zeros(0, np.float32)):
        q, scale, point = kernels.dynamic_quantize(row)
        if session is not None:
            want = session.run(None, {"x0": row})
            assert (q == want[0]).all() and scale == want[1] and point == want[2]
        low, high = min(np.float32(0), row.min(initial=0)), max(np.float32(0), row.max(initial=0))
        s = np.float32(1) if low == high else np.float32(high - low) / np.float32(255)
        assert scale == s and point == np.clip(np.rint(-np.float32(low / s)), 0, 255)
        assert (q == numerics.quantize(row, s, int(point))).all()
    assert kernels.dynamic_quantize(np.array([1, np.nan, -1], np.float32))[0][1] == 0


def one_node(op: str, inputs: int, outputs: int, domain: str = "", **attributes: Any) -> Any:
    """onnxruntime on one operator, where it is installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    from onnx import TensorProto, helper

    types = [TensorProto.FLOAT] if op == "DynamicQuantizeLinear" else [TensorProto.UINT8, 1, TensorProto.UINT8, 1, 2]
    made = [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8][:outputs]
    names, results = [f"x{i}" for i in range(inputs)], [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, domain=domain, **attributes)
    shapes: list[Any] = [["n"] if op == "DynamicQuantizeLinear" else ["m", "n"], [], [], [], []]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in zip(names, types, shapes, strict=False)],
        [helper.make_tensor_value_info(n, t, None) for n, t in zip(results, made, strict=True)],
    )
    imports = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


# ---- Softmax --------------------------------------------------------------------------------------------------------


def softmax8(x: Any, scale: float, beta: float, kind: Any, bits: int) -> Any:
    """T3: exponentials in Q0.31, their sum with 12 integer bits, one reciprocal a row."""
    m, left = numerics.quantize_multiplier(min(beta * float(np.float32(scale)) * 2**26, 2.0**31 - 1))
    away = x.astype(np.int64) - x.astype(np.int64).max(axis=-1, keepdims=True)
    kept = away >= -math.floor(31 * 2.0**26 / 2.0**left)
    powers = np.where(kept, gemmlowp.exponential(fixed.multiply(np.where(kept, away, 0), m, left), 5), 0)
    total = fixed.divide_by_power(powers, 12).sum(axis=-1, keepdims=True)
    headroom = leading_zeros(total)
    reciprocal = gemmlowp.one_over_one_plus((total << headroom) - 2**31)
    shift = (12 - headroom) + 31 - bits
    made = fixed.divide_by_power(fixed.double_high_multiply(powers, reciprocal), shift) + int(kind.min)
    return np.where(kept, np.clip(made, kind.min, kind.max), kind.min).astype(kind.dtype)


def softmax16(x: Any, scale: float, beta: float) -> Any:
    """exp on [-10, 0] and 1 / (1 + x) on [0, 1] by interpolation, Q0.15 throughout."""

    def interpolate(table: Any, v: Any) -> Any:
        i = 256 + (v >> 7)
        return table[i] + (((table[i + 1] - table[i]) * (v & 127) + 64) >> 7)

    exponentials = interpolation_table(np.exp, 10.0 / 65535, 32767, 2.0 / 65535, 0)
    reciprocals = interpolation_table(lambda v: 1.0 / (1.0 + v), 1.0 / 65535, -32768, 2.0 / 65535, 0)
    m, left = numerics.quantize_multiplier(float(np.float32(np.float32(scale) * np.float32(beta))) / (10.0 / 65535.0))
    away = x.astype(np.int64) - x.astype(np.int64).max(axis=-1, keepdims=True)
    powers = interpolate(exponentials, np.clip(fixed.multiply(away, m, left) + 32767, -32768, 32767))
    total = powers.sum(axis=-1, keepdims=True)
    headroom = leading_zeros(total)
    shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
    reciprocal = interpolate(reciprocals, np.clip(shifted - (1 << 15) - (1 << 16), -32768, 32767))
    right = 31 - headroom
    return np.clip((powers * reciprocal + (np.int64(1) << (right - 1))) >> right, 0, 32767).astype(np.int16)


@pytest.mark.parametrize("scale", [0.001, 0.05, 0.37, 30.0])
def test_fixed_point_softmax(path: str, rng: np.random.Generator, scale: float) -> None:
    """The readings are those of `hwq.ops.tflite_softmax`, which tests/golden holds against LiteRT."""
    for columns in (1, 2, 10, 100, 1001):
        for dtype in (np.int8, np.uint8):
            low = np.iinfo(dtype).min
            x = rng.integers(low, low + 256, (6, columns)).astype(dtype)
            x[0] = x[0, 0]
            for made, bits in ((dtype, 8), (np.int16, 16)):
                got = kernels.softmax(x, scale, beta=0.9, dtype=made, threads=2)
                assert (got == softmax8(x, scale, float(np.float32(0.9)), np.iinfo(made), bits)).all()
        wide = rng.integers(-32768, 32768, (5, columns)).astype(np.int16)
        wide[1] //= 512
        assert (kernels.softmax(wide, scale / 100) == softmax16(wide, scale / 100, 1.0)).all()


def test_table_softmax_of_onnxruntime(path: str, rng: np.random.Generator) -> None:
    session = one_node("QLinearSoftmax", 5, 1, "com.microsoft", axis=-1, opset=13)
    if session is None:
        pytest.skip("onnxruntime is not installed")
    for columns in (1, 7, 64, 1000):
        for scale in (0.004, 0.11, 0.9):
            x = rng.integers(0, 256, (5, columns)).astype(np.uint8)
            feeds = dict(x0=x, x1=np.float32(scale), x2=np.uint8(9), x3=np.float32(1 / 256), x4=np.uint8(0))
            (want,) = session.run(None, {name: np.asarray(value) for name, value in feeds.items()})
            got = kernels.softmax(x, scale, formula="ort", threads=3)
            assert (got == want).all(), (columns, scale)


def test_default_softmax_of_litert(path: str, rng: np.random.Generator) -> None:
    """The reading is that of `hwq.ops.tflite_xnnpack`, which the dialect's verification holds against LiteRT."""
    for columns in (1, 2, 10, 31, 100, 1001):
        for scale, beta in ((0.0005, 1.0), (0.06, 0.7), (20.0, 1.0)):
            for dtype, result in ((np.int8, (1 / 256, -128)), (np.uint8, (0.01, 7))):
                x = rng.integers(-128, 128, (6, columns)).astype(dtype)
                x[0] = x[0, 0]
                step = np.float32(-np.float32(scale) * np.float32(beta))
                table = np.exp((step * np.arange(256).astype(np.float32)).astype(np.float64)).astype(np.float32)
                powers = table[x.astype(int).max(axis=-1, keepdims=True) - x]
                total = np.add.accumulate(powers, axis=-1, dtype=np.float32)[:, -1:]
                inverse = np.float32(1) / (total * np.float32(result[0]))
                values = numerics.away(powers * inverse).astype(np.int64) + result[1]
                want = np.clip(values, np.iinfo(dtype).min, np.iinfo(dtype).max)
                got = kernels.softmax(
                    x,
                    scale,
                    formula="xnnpack",
                    beta=beta,
                    result_scale=result[0],
                    result_zero_point=result[1],
                    threads=2,
                )
                assert (got == want).all(), (columns, scale, dtype)


# ---- Layer normalization --------------------------------------------------------------------------------------------


def test_layer_norm_by_its_formula(path: str, rng: np.random.Generator) -> None:
    """Exact rational statistics and a float64 root: the fixed-point result may be one step away, and is the same on every path."""
    x = rng.integers(-9000, 9000, (6, 40)).astype(np.int16)
    weights, bias = rng.integers(-32768, 32768, 40).astype(np.int16), rng.integers(-(10**6), 10**6, 40).astype(np.int32)
    scale = 1 / 32768
    got = kernels.layer_norm(x, weights, bias, weight_scale=scale, threads=2)
    centered = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(axis=1, keepdims=True))
    real = (centered / deviation * weights + bias / 1024) * scale
    assert np.abs(got - np.clip(real * 4096, -32768, 32767)).max() <= 4  # of 2^15: the mean and the root are rounded
    with kernels.use_isa("ref"):
        assert (kernels.layer_norm(x, weights, bias, weight_scale=scale) == got).all()
    assert (kernels.layer_norm(np.full((1, 40), 7, np.int16), weights, weight_scale=scale) == 0).all()


@pytest.mark.parametrize("columns", [1, 2, 7, 48, 1000])
@pytest.mark.parametrize(("deviation", "mean"), [(3, 20000), (300, -500), (9000, 0)])
def test_exact_layer_norm_is_within_its_steps_of_1024_parts(
    path: str, columns: int, deviation: float, mean: float, rng: np.random.Generator
) -> None:
    x = np.clip(rng.normal(mean, deviation, (9, columns)).round(), -32768, 32767).astype(np.int16)
    x[0] = 5
    weights = rng.integers(-32767, 32768, columns).astype(np.int16)
    bias = rng.integers(-(10**6), 10**6, columns).astype(np.int32)
    scale, epsilon = max(np.sqrt(columns), 4) / 30000, 3.25
    given = {"weight_scale": 1 / 32767, "formula": "exact", "epsilon": epsilon, "scale": scale}
    got = kernels.layer_norm(x, weights, bias, threads=2, **given)
    centered = x.astype(np.longdouble) - x.mean(axis=1, keepdims=True, dtype=np.longdouble)
    real = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + epsilon) * weights + bias / 1024
    # Half a step of 1/1024 and the mean's own step over the deviation; then the result's rounding.
    allowed = 1 / 2048 + 1 / 1024 / np.sqrt(np.maximum((centered**2).mean(axis=1, keepdims=True), epsilon)) + 1 / 32767
    assert (np.abs(got - np.clip(real / 32767 / scale, -32768, 32767)) <= allowed / scale + 1.01).all()
    with kernels.use_isa("ref"):
        assert (kernels.layer_norm(x, weights, bias, **given) == got).all()
    assert (kernels.layer_norm(x[:1], weights, weight_scale=1 / 32767, formula="exact") == 0).all()


def test_operands_that_do_not_fit_are_named(rng: np.random.Generator) -> None:
    x = np.zeros((2, 4), np.int16)
    with pytest.raises(Error, match="softmax does not make"):
        kernels.softmax(x, 0.1, dtype="int8")
    with pytest.raises(Error, match="no dynamic formula"):
        kernels.dynamic_quantize(np.zeros(3, np.float32), formula="round")
    with pytest.raises(Error, match="positive"):
        kernels.layer_norm(x, x[0], weight_scale=0.0)
    with pytest.raises(Error, match="no normalization formula"):
        kernels.layer_norm(x, x[0], weight_scale=1.0, formula="l2")
    with pytest.raises(Error, match="too many steps"):
        kernels.layer_norm(x, x[0] + 3, np.full(4, 2**31 - 1, np.int32), weight_scale=1.0, formula="exact")
    with pytest.raises(Error, match="not a 16-bit float"):
        kernels.narrow(np.zeros(3, np.float32), "float32")
    with pytest.raises(Error, match="columns"):
        kernels.gemm(x, kernels.pack(np.zeros((4, 3), np.int8)), bias=np.zeros(4, np.int64))


@pytest.mark.parametrize("exponent", [-149, -20, 0, 5])
def test_a_histogram_puts_every_value_into_its_bin(path: str, exponent: int) -> None:
    rng = np.random.default_rng(exponent + 200)
    width = 2.0**exponent
    edges = (rng.integers(-40, 40, 200) * width).astype(np.float32)
    x = np.concatenate([edges, np.nextafter(edges, np.float32(-np.inf)), np.nextafter(edges, np.float32(np.inf)),
                        (rng.normal(size=301) * 12 * width).astype(np.float32), [0.0, -0.0, np.nan]]).astype(np.float32)  # fmt: skip
    counts, squares = kernels.histogram(x, exponent, 64)
    bins = np.floor(x[:-1].astype(np.float64) / width)
    inside = bins[(bins >= -32) & (bins < 32)].astype(int) + 32
    assert np.array_equal(counts, np.bincount(inside, minlength=64)) and np.isnan(squares)
    assert kernels.histogram(x[:-1], exponent, 64)[1] == pytest.approx(float(np.square(x[:-1].astype(np.float64)).sum()), rel=1e-14)  # fmt: skip


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 5, 3, 4), (3, 33, 6, 2)])
def test_ranges_and_sums_of_channels_in_either_order_of_memory(
    path: str, rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    x = rng.standard_normal(shape).astype(np.float32)
    for axis in (None, *range(-1, len(shape))):
        others = None if axis is None else tuple(at for at in range(len(shape)) if at != axis % len(shape))
        for given in (x, np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1), np.repeat(x, 2, 0)[::2]):
            found = kernels.ranges(given, axis)
            assert found is not None
            assert np.array_equal(found[0], np.atleast_1d(x.min(axis=others)))
            assert np.array_equal(found[1], np.atleast_1d(x.max(axis=others)))
            assert np.allclose(found[2], x.sum(axis=others, dtype=np.float64), rtol=1e-13, atol=1e-13)
            for bad in (np.nan, np.inf, -np.inf):
                broken = given.copy(order="K")
                broken[tuple(size - 1 for size in shape)] = bad
                assert kernels.ranges(broken, axis) is None
    with pytest.raises(Error, match="ranges"):
        kernels.ranges(np.zeros(0, np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int4", "uint4"])
def test_fake_quantization_is_quantize_and_dequantize(path: str, rng: np.random.Generator, dtype: str) -> None:
    x = (rng.standard_normal((2, 5, 3, 7)) * 40).astype(np.float32)
    x[0, 0, 0, :4] = np.nan, np.inf, -np.inf, -0.0
    x[1] = np.rint(x[1] * 2) / 2 * np.float32(0.3)  # ties
    low, high = {"int4": (-8, 7), "uint4": (0, 15)}.get(dtype) or (np.iinfo(dtype).min, np.iinfo(dtype).max)
    for scale, point in (
        (np.float32(0.3), low),
        (np.float32(0.5), high),
        (np.float32(1e-40), 0),
        (np.float32(0.02), (low + high) // 2),
    ):
        want = kernels.dequantize(kernels.quantize(x, scale, point, dtype), scale, point)
        for given in (x, np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1), np.repeat(x, 2, 3)[..., ::2]):
            made = kernels.fake_quantize(given, scale, point, dtype)
            assert np.array_equal(made.view(np.uint32), want.view(np.uint32))
    with pytest.raises(Error, match="zero point"):
        kernels.fake_quantize(x, np.float32(1), high + 1, dtype)
    with pytest.raises(Error, match="fake_quantize"):
        kernels.fake_quantize(x.astype(np.float64), np.float32(1), 0, dtype)


def test_a_histogram_refuses_what_it_cannot_hold() -> None:
    for exponent, bins in ((-150, 8), (128, 8), (0, 7), (0, 0), (0, 1 << 25)):
        with pytest.raises(Error, match="histogram"):
            kernels.histogram(np.zeros(3, np.float32), exponent, bins)
