"""Operators against onnxruntime and NumPy: values, shapes, and what fits or does not."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_models import model_of, run_onnxruntime

from hwq.errors import Error
from hwq.graph import Graph, Node, Tensor
from hwq.importers.onnx import read
from hwq.ops import arithmetic, functions, storage
from hwq.ops.evaluate import evaluate, infer_shapes
from hwq.ops.quantize import dequantize, quantize

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle")
RNG = np.random.default_rng(3)
F = np.float32


def agree(
    op: str, inputs: list[Any], *, opset: int = 17, count: int = 1, tolerance: float = 1e-5, **attributes: Any
) -> list[Any]:
    """Run one node here and in onnxruntime; exact for integers. The first input is computed, the others are constants."""
    names = [f"i{index}" if value is not None else "" for index, value in enumerate(inputs)]
    outputs = [f"o{index}" for index in range(count)]
    feeds = {"i0": inputs[0]}
    constants = {name: value for name, value in zip(names[1:], inputs[1:], strict=True) if value is not None}
    model = model_of([helper.make_node(op, names, outputs, "it", **attributes)], feeds, constants, outputs, opset)
    graph = read(model)
    found = evaluate(graph, feeds)
    expected = run_onnxruntime(model, feeds)
    for name, reference in zip(outputs, expected, strict=True):
        ours = found[name]
        assert ours.shape == reference.shape == graph.tensors[name].shape and ours.dtype == reference.dtype
        if reference.dtype.kind in "iub":
            np.testing.assert_array_equal(ours, reference)
        else:
            np.testing.assert_allclose(
                ours, reference, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(reference).max(initial=0)))
            )
    return [found[name] for name in outputs]


def data(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(F)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(
    ("stride", "dilation", "kernel"), [(1, 1, 3), (2, 1, 3), (3, 1, 2), (1, 2, 3), (2, 1, 4), (3, 1, 1)]
)
def test_convolution_pads_itself(auto_pad: str, stride: int, dilation: int, kernel: int) -> None:
    inputs = [data(2, 3, 10, 7), data(4, 3, kernel, kernel), data(4)]
    if dilation == 1 or not auto_pad.startswith("SAME"):
        agree("Conv", inputs, auto_pad=auto_pad, strides=[stride] * 2, dilations=[dilation] * 2)
        return
    # onnxruntime refuses dilation here, so it gets the padding that keeps the size: 4 elements in all.
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y"], dilations=[dilation] * 2, **given)
        for given in ({"auto_pad": auto_pad}, {"pads": [2] * 4})
    ]
    constants = dict(zip("wb", inputs[1:], strict=True))
    ours, theirs = (model_of([node], {"x": inputs[0]}, constants, ["y"]) for node in nodes)
    np.testing.assert_allclose(
        evaluate(read(ours), {"x": inputs[0]})["y"], run_onnxruntime(theirs, {"x": inputs[0]})[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("groups", "channels", "filters"), [(1, 6, 4), (2, 6, 4), (3, 6, 9), (6, 6, 6), (6, 6, 12)])
def test_convolution_groups_and_asymmetric_padding(groups: int, channels: int, filters: int) -> None:
    agree(
        "Conv",
        [data(2, channels, 9, 8), data(filters, channels // groups, 3, 2), data(filters)],
        group=groups,
        pads=[0, 1, 3, 2],
        strides=[2, 1],
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution_of_every_rank(rank: int) -> None:
    agree(
        "Conv",
        [data(2, 3, *[6, 5, 4][:rank]), data(4, 3, *[3, 2, 2][:rank])],
        pads=[1] * rank + [0] * rank,
        dilations=[1, 2, 1][:rank],
    )


def test_convolution_in_both_layouts() -> None:
    x, weight = data(2, 6, 9, 8), data(4, 3, 3, 2)
    attributes = {"group": 2, "strides": (2, 1), "pads": (1, 0, 0, 1)}
    made = [Tensor("y", known_shape=False)]
    first = Graph(
        [Node("Conv", "c", ("x", "w"), ("y",), attributes, layout="NCHW")],
        [Tensor("x", shape=x.shape), Tensor("w", shape=weight.shape, data=weight), *made],
        ["x"],
        ["y"],
    )
    flipped, filters = np.moveaxis(x, 1, -1).copy(), np.moveaxis(weight, 1, -1).copy()
    second = Graph(
        [Node("Conv", "c", ("x", "w"), ("y",), attributes, layout="NHWC")],
        [Tensor("x", shape=flipped.shape), Tensor("w", shape=filters.shape, data=filters), *made],
        ["x"],
        ["y"],
    )
    first, second = infer_shapes(first), infer_shapes(second)
    a, b = evaluate(first, {"x": x})["y"], evaluate(second, {"x": flipped})["y"]
    assert a.shape == first.tensors["y"].shape and b.shape == second.tensors["y"].shape
    np.testing.assert_array_equal(np.moveaxis(a, 1, -1), b)


POOLS = [dict(kernel_shape=[3, 2]), dict(kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), dict(kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1),
         dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]), dict(kernel_shape=[3, 3], pads=[0, 1, 2, 0]),
         dict(kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]), dict(kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
         dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], ceil_mode=1)]  # fmt: skip


@pytest.mark.parametrize("attributes", POOLS, ids=str)
def test_pools(attributes: dict[str, Any]) -> None:
    x = data(2, 3, 10, 9)
    agree("MaxPool", [x], count=1, **attributes)
    agree("MaxPool", [x], count=2, **attributes)
    agree("AveragePool", [x], opset=19, **attributes)
    agree("AveragePool", [x], opset=19, count_include_pad=1, **attributes)


def test_pools_with_dilation() -> None:
    agree("MaxPool", [data(1, 2, 9, 9)], kernel_shape=[3, 3], dilations=[2, 3], count=2)
    agree("AveragePool", [data(1, 2, 9, 9)], opset=19, kernel_shape=[3, 3], dilations=[2, 3])
    agree("MaxPool", [RNG.integers(-128, 128, (1, 2, 9, 9)).astype(np.int8)], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    agree("MaxPool", [data(1, 2, 7)], kernel_shape=[3], strides=[2], count=2)
    agree("MaxPool", [data(1, 2, 5, 4, 6)], kernel_shape=[2, 2, 3], count=2)
    agree("GlobalAveragePool", [data(2, 3, 5, 4)])
    agree("GlobalMaxPool", [data(2, 3, 5)])


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
def test_resize_by_scales_and_sizes(mode: str, coordinates: str) -> None:
    x = data(1, 2, 6, 5)
    nearest = (
        ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"] if mode == "nearest" else ["round_prefer_floor"]
    )
    for scale, policy in itertools.product([(1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 0.6, 1.7), (1.0, 1.0, 3.3, 0.4)], nearest):
        agree(
            "Resize",
            [x, None, np.array(scale, F)],
            mode=mode,
            coordinate_transformation_mode=coordinates,
            nearest_mode=policy,
        )
    for size in ((1, 2, 3, 8), (1, 2, 13, 1), (1, 2, 6, 5)):
        agree("Resize", [x, None, None, np.array(size)], mode=mode, coordinate_transformation_mode=coordinates)
    agree(
        "Resize",
        [x, None, None, np.array([9, 4])],
        opset=18,
        mode=mode,
        coordinate_transformation_mode=coordinates,
        axes=[2, 3],
    )


@pytest.mark.parametrize("mode", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("size", [(16, 10), (13, 11), (4, 3), (8, 9), (1, 1)])
def test_bilinear_resize_has_onnxruntimes_bits(mode: str, size: tuple[int, int]) -> None:
    """On a grid of steps half of the results are ties, which the next QuantizeLinear rounds by the last bit."""
    x = (np.rint(data(2, 3, 8, 5) * 20) * F(0.0371)).astype(F)
    sizes = np.array([2, 3, *size])
    agree("Resize", [x, None, None, sizes], tolerance=0, mode="linear", coordinate_transformation_mode=mode)


def test_resize_smoothly() -> None:
    x = data(1, 1, 12, 12)
    for antialias in (0, 1):
        agree("Resize", [x, None, None, np.array([1, 1, 5, 7])], opset=18, mode="linear", antialias=antialias)
    agree("Resize", [x, None, None, np.array([1, 1, 17, 7])], opset=18, mode="cubic")
    # onnxruntime's answer for the two cases that ONNX's node tests have otherwise (see tests/conformance).
    small = np.arange(1, 9, dtype=F).reshape(1, 1, 2, 4)
    agree(
        "Resize",
        [small, None, np.array([1, 1, 0.6, 0.6], F)],
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 5), (5, 3)),
        ((2, 4, 5), (5, 3)),
        ((2, 3, 4, 5), (2, 3, 5, 6)),
        ((2, 1, 4, 5), (3, 5, 2)),
        ((5,), (5, 3)),
        ((4, 5), (5,)),
    ],
)
def test_matrix_products(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    agree("MatMul", [data(*shapes[0]), data(*shapes[1])])


@pytest.mark.parametrize(("a", "b"), list(itertools.product([0, 1], [0, 1])))
def test_gemm(a: int, b: int) -> None:
    left, right = data(4, 5), data(5, 3)
    for addend in (None, data(3), data(4, 1), data(1)):
        agree(
            "Gemm",
            [left.T.copy() if a else left, right.T.copy() if b else right, addend],
            transA=a,
            transB=b,
            alpha=0.5,
            beta=2.0,
        )


UNARY = ["Exp", "Log", "Sqrt", "Tanh", "Sigmoid", "Erf", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Neg", "Abs", "Floor", "Ceil", "Round", "Softplus",
         "Elu", "Selu", "Softsign", "Reciprocal", "Sign"]  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_functions_of_one_operand(op: str) -> None:
    x = np.concatenate([data(4000) * 4, np.array([0, -0.0, 1e-30, 88, -88, 0.5, 1.5, 2.5, -2.5], F)])
    agree(op, [np.abs(x) + F(1e-6) if op in {"Log", "Sqrt", "Reciprocal"} else x], tolerance=1e-6)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    agree("Gelu", [data(5000) * 3], opset=20, approximate=approximate, tolerance=2e-6)


def test_normalizations() -> None:
    x = data(3, 4, 10)
    agree("LayerNormalization", [x, data(10), data(10)], axis=-1, epsilon=1e-4)
    agree("LayerNormalization", [x, data(4, 10), data(4, 10)], axis=1, count=3)
    agree("BatchNormalization", [x, data(4), data(4), data(4), np.abs(data(4))])
    agree("Softmax", [x * 10], axis=1)
    agree("LogSoftmax", [x * 10], axis=-1)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_before_and_after_opset_18(op: str, keep: int) -> None:
    x = data(3, 4, 5, 6)
    for axes in ([1], [-1, 0], [0, 1, 2, 3]):
        agree(op, [x, np.array(axes)], opset=18, keepdims=keep)
        if op != "ReduceSum":
            agree(op, [x], opset=17, axes=axes, keepdims=keep)
    agree(op, [x], opset=18, keepdims=keep)


def test_integer_arithmetic_wraps_and_truncates() -> None:
    a, b = np.array([7, -7, 7, -7, 2**31 - 1], np.int32), np.array([2, 2, -2, -2, 1], np.int32)
    agree("Div", [a, b])
    for op in ("Add", "Sub", "Mul"):
        agree(op, [a, b])
    np.testing.assert_array_equal(agree("Add", [a, b])[0][-1], -(2**31))
    agree("Pow", [np.array([2, 3, 4], np.int64), np.array([3, 2, 0], np.int64)])
    agree("Pow", [np.abs(data(50)), data(50)], tolerance=1e-6)


def test_division_of_integers_by_zero_is_one_error() -> None:
    model = model_of(
        [helper.make_node("Div", ["a", "b"], ["y"], "ratio")],
        {"a": np.ones(2, np.int32)},
        {"b": np.zeros(2, np.int32)},
        ["y"],
    )
    with pytest.raises(Error, match=r"ratio.*\n.*zero"):
        evaluate(read(model), {"a": np.ones(2, np.int32)})


def test_movement() -> None:
    x = data(4, 5, 6)
    agree("Slice", [x, np.array([-1, 1]), np.array([-100, 4]), np.array([0, 2]), np.array([-2, 1])])
    agree("Slice", [x, np.array([1]), np.array([2**63 - 1])])
    agree("Pad", [x, np.array([1, 0, 2, 0, 1, 3]), np.array(2.5, F)])
    for mode in ("reflect", "edge"):
        agree("Pad", [x, np.array([1, 0, 2, 0, 1, 3])], mode=mode)
    agree("Pad", [x, np.array([-1, 0, 1, 0, -2, 0])])
    agree("Split", [x, np.array([1, 4])], axis=1, count=2)
    agree("Split", [x], opset=18, axis=1, count=2, num_outputs=2)
    agree("Gather", [x, np.array([[0, -1], [2, 1]])], axis=1)
    agree("Tile", [x, np.array([1, 2, 3])])
    agree("Expand", [data(3, 1), np.array([2, 1, 4])])
    agree("Transpose", [x], perm=[2, 0, 1])
    agree("ArgMax", [np.round(x)], axis=1, select_last_index=1)
    agree("ArgMax", [np.round(x)], axis=-1, keepdims=0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_quantize_and_dequantize_match_onnxruntime_bit_for_bit(dtype: str) -> None:
    kind = np.dtype(dtype)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    scale, point = np.array(0.037, F), np.array((low + high) // 2 + 3, kind)
    ties = (np.arange(-300, 300) + 0.5).astype(F) * scale
    x = np.concatenate([data(20000) * 5, ties, np.array([np.inf, -np.inf, 1e30, -1e30, 0, -0.0], F)])
    agree("QuantizeLinear", [x, scale, point], opset=21)
    agree("DequantizeLinear", [RNG.integers(low, high + 1, 5000).astype(kind), scale, point], opset=21, tolerance=0)
    per_axis = np.abs(data(6)) + F(0.01), RNG.integers(low, high + 1, 6).astype(kind)
    agree("QuantizeLinear", [data(4, 6, 50) * 50, *per_axis], opset=21, axis=1)
    agree(
        "DequantizeLinear",
        [RNG.integers(low, high + 1, (4, 6, 50)).astype(kind), *per_axis],
        opset=21,
        axis=1,
        tolerance=0,
    )


@pytest.mark.parametrize("dtype", ["int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16"])
def test_quantize_equals_its_formula_in_integers(dtype: str) -> None:
    """The textbook formula in exact rationals: round half to even of x / s, plus z, clipped."""
    from fractions import Fraction

    low, high = storage.integer_range(dtype)
    scale, point = F(0.1), (low + high) // 2
    x = np.concatenate([data(200), (np.arange(-9, 9) + F(0.5)) * scale]).astype(F)
    expected = [min(max(round(Fraction(float(F(value / scale)))) + point, low), high) for value in x]
    np.testing.assert_array_equal(quantize(x, np.array(scale), np.array(point), dtype).astype(int), expected)


def test_blocked_scales() -> None:
    x = data(3, 10)
    scale = np.abs(data(3, 4)) + F(0.05)
    stored = quantize(x, scale, None, "int4", 1, 3)
    real = dequantize(stored, scale, None, 1, 3)
    assert stored.min() >= -8 and stored.max() <= 7
    spread = np.repeat(scale, 3, axis=1)[:, :10]
    inside = np.abs(x / spread) < 7
    assert np.all(np.abs(real - x)[inside] <= spread[inside] / 2 * 1.0001)
    with pytest.raises(ValueError, match="blocks"):
        quantize(x, scale[:, :3], None, "int4", 1, 3)


def test_float8_storage_saturates() -> None:
    x = np.array([0.1, 447, 449, 1e6, -1e6, np.nan], F)
    stored = quantize(x, np.array(1, F), None, "float8e4m3fn").astype(F)
    np.testing.assert_array_equal(stored[1:5], [448, 448, 448, -448])
    assert np.isnan(stored[5])


@pytest.mark.parametrize("types", [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")])
def test_integer_products_match_onnxruntime_bit_for_bit(types: tuple[str, str]) -> None:
    def draw(dtype: str, *shape: int) -> Any:
        # Weights within seven bits: beyond them onnxruntime's AVX2 kernels saturate where the operand is no constant.
        bounds = np.iinfo(dtype)
        return RNG.integers(max(bounds.min, -64), min(bounds.max, 63) + 1, shape).astype(dtype)

    a, b = types
    points = draw(a), draw(b)
    agree("MatMulInteger", [draw(a, 7, 33), draw(b, 33, 5), *points])
    scales = np.array(0.02, F), np.abs(data(5)) + F(0.01), np.array(0.3, F)
    out = draw(a)
    agree(
        "QLinearMatMul",
        [draw(a, 7, 33), scales[0], points[0], draw(b, 33, 5), scales[1], np.full(5, points[1]), scales[2], out],
    )
    if a == "uint8":
        agree(
            "ConvInteger",
            [draw(a, 1, 3, 9, 8), draw(b, 4, 3, 3, 3), points[0], np.array(0, b) if b == "int8" else points[1]],
            pads=[1, 0, 1, 2],
        )
    bias = RNG.integers(-2000, 2000, 4).astype(np.int32)
    for group, channels in ((1, 4), (4, 4)):
        agree("QLinearConv", [draw(a, 2, channels, 9, 8), scales[0], points[0], draw(b, 4, channels // group, 3, 3), scales[1][:4], np.zeros(4, b),
                              scales[2], out, bias], group=group, pads=[1, 0, 1, 2], strides=[2, 1])  # fmt: skip


def test_dynamic_quantization_matches_onnxruntime_bit_for_bit() -> None:
    for x in (data(1000), np.abs(data(1000)) + 3, -np.abs(data(500)), np.zeros(4, F), np.array([1e-40, 2e-40], F)):
        agree("DynamicQuantizeLinear", [x], count=3, tolerance=0)


def test_accumulators_wrap() -> None:
    """40000 products of 255 x 255 need 32 bits and wrap: 2 601 000 000 - 2**32."""
    a = np.full((1, 40000), 255, np.uint8)
    assert agree("MatMulInteger", [a, a.T.copy()])[0][0, 0] == -1693967296


def test_integer_products_are_exact_where_float64_is_not() -> None:
    a = np.full((1, 4), 2**40 + 1, np.int64)
    b = np.full((4, 1), 2**20 + 1, np.int64)
    assert int(arithmetic.integer_matmul(a, b)[0, 0]) == 4 * (2**40 + 1) * (2**20 + 1)


def test_error_function_is_the_c_library_s() -> None:
    x = np.linspace(-7, 7, 20001)
    np.testing.assert_array_equal(functions.erf(x), [math.erf(value) for value in x])


def test_float32_products_do_not_depend_on_blocking() -> None:
    """The fixed order: a row alone gives the bits that it gives among others."""
    a, b = data(37, 301), data(301, 29)
    whole = arithmetic.matmul(a, b)
    rows = np.concatenate([arithmetic.matmul(a[index : index + 1], b) for index in range(37)])
    np.testing.assert_array_equal(whole, rows)


def test_half_precision_accumulates_in_float32() -> None:
    a = np.full((1, 4096), 1, np.float16)
    assert arithmetic.matmul(a, a.T)[0, 0] == 4096  # float16 sums stop at 2048


@pytest.mark.parametrize(("dtype", "value", "expected"), [("int8", 300.7, 127), ("int8", -1.9, -1), ("uint8", -5.0, 0), ("int4", 9.0, -7), ("int32", np.nan, 0),
                                                          ("bool", 0.1, True), ("float16", 1e9, np.inf), ("int64", 1e30, 2**63 - 1)])  # fmt: skip
def test_conversions(dtype: str, value: float, expected: object) -> None:
    assert storage.convert(np.array(value, F), dtype)[()] == expected


def test_neighbors_of_the_listed_operators() -> None:
    x = data(2, 8, 4, 6)
    for mode in ("DCR", "CRD"):
        agree("DepthToSpace", [x], blocksize=2, mode=mode)
    agree("SpaceToDepth", [x], blocksize=2)
    for upper, shift in itertools.product((0, 1), (-2, 0, 3)):
        agree("Trilu", [x, np.array(shift)], upper=upper)
    agree("InstanceNormalization", [x, data(8), data(8)])
    agree("GroupNormalization", [x, data(8), data(8)], opset=21, num_groups=4)
